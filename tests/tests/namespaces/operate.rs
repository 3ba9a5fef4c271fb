//! What is said to an agent whose backends somebody else runs, in words that make sense and in others.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use lb_tests::agent::{assert_gone, lb_user};
use nix::sys::{
    signal::Signal,
    stat::{Mode, umask},
};

use super::served;

/// Sends bytes as they are, and returns the first line of what comes back.
fn raw(socket: &PathBuf, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("it can be set");
    let _refused_early = stream.write_all(request);
    let mut answer = Vec::new();
    let _reset_after_the_answer = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

pub fn static_backends_take_no_orders() {
    // An umask that keeps nobody out is no invitation.
    let usual = umask(Mode::empty());
    let (lab, mut agent) = served(2, &[]);
    umask(usual);
    let (instance, socket) = (lab.instance(), PathBuf::from(format!("/run/lb/{}.sock", lab.instance())));
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o7777;
    assert_eq!(format!("{:o} {:o}", mode(&socket), mode(&socket.with_extension("lock"))), "660 600");

    for order in [&["scale", "3"] as &[&str], &["scale", "3", "--force"], &["scale", "auto"], &["pause"], &["resume"]] {
        let output = lb_user(&[order, &["--instance", &instance]].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{order:?}: {error}");
        assert!(error.starts_with(&format!("error: service {instance}: its backends are run by others")), "{error}");
    }
    assert_eq!(lb_user(&["scale", "auto", "--wait", "--instance", &instance]).status.code(), Some(64));

    let giant = [b"GET /v1/services HTTP/1.1\r\nHost: lb\r\nX: ".as_slice(), &[b'a'; 100_000], b"\r\n\r\n"].concat();
    let rows: [(&[u8], &str); 5] = [
        (b"GET /v1/events?after=18446744073709551615 HTTP/1.1\r\nHost: lb\r\n\r\n", "HTTP/1.1 200 OK"),
        (b"GET /v1/events?last=18446744073709551615 HTTP/1.1\r\nHost: lb\r\n\r\n", "HTTP/1.1 200 OK"),
        (&giant, "HTTP/1.1 431 Request Header Fields Too Large"),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (b"POST /v1/scale HTTP/1.1\r\nHost: lb\r\nContent-Length: 9\r\n\r\n{", "HTTP/1.1 408 Request Timeout"),
    ];
    for (request, answer) in rows {
        assert_eq!(raw(&socket, request), answer, "{:?}", String::from_utf8_lossy(&request[..request.len().min(60)]));
    }
    let status = agent.status();
    assert_eq!((&status["agent"]["alive"], &status["scaling"]["manual"]), (&true.into(), &serde_json::Value::Null));
    lab.get("http://198.18.1.1/");

    agent.stop(Signal::SIGTERM);
    assert!(!socket.exists());
    assert_gone(&instance);
}
