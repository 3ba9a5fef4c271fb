//! The program as Docker sees it: it says where it listens, answers, and ends with success when told to.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[test]
fn each_signal_ends_it_with_success() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut server, address) = start();
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.contains(r#""message":"Hello""#), "{response}");

        let told = Instant::now();
        kill(Pid::from_raw(server.id().cast_signed()), signal).unwrap();

        assert!(server.wait().unwrap().success());
        assert!(told.elapsed() < Duration::from_secs(2), "{signal} took {:?}", told.elapsed());
    }
}

#[test]
fn a_wrong_address_is_explained() {
    let output = Command::new(env!("CARGO_BIN_EXE_lb-api")).env("LB_API_LISTEN", "5000").output().unwrap();

    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("LB_API_LISTEN=5000"));
}

fn start() -> (Child, String) {
    let mut server = Command::new(env!("CARGO_BIN_EXE_lb-api"))
        .env("LB_API_LISTEN", "127.0.0.1:0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    std::thread::spawn(move || lines.count()); // keeps the pipe open for what it prints later
    let address = line.strip_prefix("listening on ").unwrap().to_owned();
    (server, address)
}
