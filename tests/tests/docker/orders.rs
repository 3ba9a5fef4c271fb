//! What operators say to a running agent, by its verbs and by its socket.

use std::{
    fs::{self, File},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::Duration,
};

use lb_tests::{
    agent::{assert_no_failure, binary, lb_user},
    lab::{end, run, wait_until},
    site::{Site, docker},
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// `lb-user events -f --json`, with what it has printed.
struct Watch {
    child: Child,
    lines: tempfile::NamedTempFile,
}

impl Watch {
    fn start(instance: &str) -> Self {
        let lines = tempfile::NamedTempFile::new().expect("a file");
        let out = File::options().append(true).open(lines.path()).expect("it can be written");
        let mut command = Command::new(binary());
        command.args(["events", "-f", "--json", "--instance", instance]).stdout(out);
        Self { child: command.spawn().expect("lb-user starts"), lines }
    }

    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.lines.path()).expect("it can be read");
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn wait_for(&self, what: &str, is_it: impl Fn(&Value) -> bool) {
        wait_until(what, Duration::from_secs(20), || self.events().iter().any(&is_it));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn socket(instance: &str) -> PathBuf {
    Path::new("/run/lb").join(format!("{instance}.sock"))
}

/// Says something to the agent of an instance.
fn say(instance: &str, words: &[&str]) -> Output {
    lb_user(&[words, &["--instance", instance]].concat())
}

/// The same, which has to succeed; returns what was decided.
fn order(instance: &str, words: &[&str]) -> String {
    let output = say(instance, words);
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words:?}: {:?} {told}{errors}", output.status.code());
    told.into_owned()
}

/// The same, which has to fail with that code; returns why.
fn refused(instance: &str, words: &[&str], code: i32) -> String {
    let output = say(instance, words);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {errors}");
    errors
}

pub fn orders_hold_while_clients_are_served_and_agents_come_and_go() {
    let site = Site::new(14);
    let instance = site.instance();
    let start = || site.start(&["--min", "1", "--max", "4", "--cpus", "0.5"]);
    let agent = start();
    agent.wait_ready(1);
    let there = fs::symlink_metadata(socket(instance)).expect("a socket");
    assert!(there.file_type().is_socket());
    assert_eq!((there.mode() & 0o7777, there.uid(), there.gid()), (0o660, 0, 0));
    let watch = Watch::start(instance);
    let clients = [site.gentle_wrk(true), site.gentle_wrk(false)];

    let told = order(instance, &["scale", "3", "--wait=30s"]);
    assert_eq!(told, format!("service {instance}: 3 wanted by hand until `scale auto`\n"));
    let status = agent.status();
    assert_eq!((&status["scaling"]["ready"], &status["scaling"]["manual"]["count"]), (&3.into(), &3.into()));
    assert_eq!(site.containers().len(), 3);
    order(instance, &["scale", "2", "--for", "1h", "--wait=30s"]);
    wait_until("the third one is drained and removed", Duration::from_secs(20), || site.containers().len() == 2);
    // Longer than the down window of this site, in which the law would have let one go.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(agent.status()["scaling"]["desired"], 2);
    let page = String::from_utf8_lossy(&say(instance, &["status"]).stdout).into_owned();
    assert!(page.contains("ordered: 2 by hand since") && page.contains("for 59 min more"), "{page}");

    let before = watch.events().len();
    agent.crash();
    let told = refused(instance, &["scale", "4"], 1);
    assert!(told.starts_with("error: the agent is dead (pid "), "{told}");
    assert!(socket(instance).exists(), "nobody was there to take it away");
    let next = start();
    next.wait_ready(2);
    let manual = next.status()["scaling"]["manual"].clone();
    assert!(manual["count"] == 2 && manual["left_ms"].as_u64() < Some(3_600_000), "{manual}");
    watch.wait_for("who follows sees the next agent", |event| {
        event["kind"] == "agent" && event["text"].as_str().is_some_and(|text| text.ends_with("took over"))
    });

    order(instance, &["pause"]);
    let told = order(instance, &["scale", "auto"]);
    assert!(
        told.ends_with("2 by hand no longer, as ordered: the law goes on from 2, with scale-in and scale-out paused\n"),
        "{told}"
    );
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(next.status()["scaling"]["desired"], 2, "a pause holds");
    for client in clients {
        let requests = assert_no_failure(&client.finish());
        assert!(requests > 300, "{requests}");
    }
    let victim = site.containers().first().expect("a container").clone();
    docker(&["kill", &victim]);
    wait_until("the dead one is replaced", Duration::from_secs(20), || {
        site.containers().len() == 2 && !site.containers().contains(&victim)
    });
    next.wait_ready(2);
    order(instance, &["resume"]);
    next.wait_for("the law is followed again", Duration::from_secs(40), |status| status["scaling"]["ready"] == 1);

    let events = watch.events();
    assert!(events.len() > before);
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "each once, in order: {numbers:?}");
    let has = |key: &str, value: &str| events.iter().any(|event| event[key] == value);
    for decision in ["manual", "manual_ended", "paused", "resumed", "drain", "backend_died", "scale_down"] {
        assert!(has("decision", decision), "{decision}: {events:?}");
    }
    assert!(has("kind", "publication") && has("to", "ready") && has("to", "draining"), "{events:?}");

    let mut next = next;
    next.stop(Signal::SIGTERM);
    assert!(!socket(instance).exists());
    site.assert_gone();
    assert!(refused(instance, &["pause"], 2).contains("is not running"));
}

pub fn orders_that_make_no_sense_are_refused_and_change_nothing() {
    let site = Site::new(15);
    let instance = site.instance();
    let mut agent = site.start(&["--min", "1", "--max", "2"]);
    agent.wait_ready(1);

    let told = refused(instance, &["scale", "3"], 1);
    assert!(told.contains("3 is more than the maximum of 2: ask for it by force"), "{told}");
    let near = format!("{instance}x");
    let told = refused(instance, &["scale", &format!("{near}=2")], 1);
    assert_eq!(told, format!("error: there is no service {near} (did you mean {instance}?): there is {instance}\n"));
    assert!(refused(instance, &["scale", "0", "--force"], 1).contains("without an answer"));
    assert!(refused(instance, &["scale", "2000", "--force"], 1).contains("too many"));
    refused(instance, &["scale", "many"], 64);
    assert!(agent.status()["scaling"]["manual"].is_null());
    let curl = |words: &[&str]| {
        let path = socket(instance);
        let all = [&["-s", "--unix-socket", path.to_str().expect("text")], words].concat();
        run(Command::new("curl").args(all))
    };
    let order = curl(&["http://lb/v1/scale", "-d", r#"{"count":3,"force":true}"#]);
    let order: Value = serde_json::from_str(&order).expect("a document");
    assert_eq!(order["services"][0]["scaling"]["desired"], 3, "{order}");
    agent.wait_ready(3);
    let status: Value = serde_json::from_str(&curl(&["http://lb/v1/status"])).expect("a document");
    assert_eq!((&status["health"], &status["scaling"]["manual"]["count"]), (&"healthy".into(), &3.into()));
    let code = curl(&["-o", "/dev/null", "-w", "%{http_code}", "-X", "DELETE", "http://lb/v1/scale"]);
    assert_eq!(code, "405");

    agent.stop(Signal::SIGTERM);
    assert!(!socket(instance).exists());
    site.assert_gone();
}

pub fn a_dry_run_tells_what_a_run_would_do_and_does_nothing() {
    let site = Site::new(16);
    let instance = site.instance();
    let publish = format!("{}:5000", site.port());
    let (uplink, image) = (site.uplink(), lb_tests::site::IMAGE);
    let dry = |more: &[&str]| {
        let fixed = ["run", "--publish", &publish, "--uplink", &uplink, "--network", instance, "--dry-run"];
        say(instance, &[&fixed, more].concat())
    };
    let told = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();

    let output = dry(&["--image", image, "--min", "2"]);
    let page = told(&output);
    assert!(output.status.success(), "{page}{}", String::from_utf8_lossy(&output.stderr));
    let (at, name) = (site.address(), format!("lb-{instance}-1"));
    for line in [
        format!("instance {instance}: is not there and would begin"),
        "programs: the kernel accepts every one".to_owned(),
        format!("clients at {uplink}: TC"),
        format!("0 there, 2 wanted; would start 2 (at first {name}, lb-{instance}-2)"),
        "dry run: nothing was attached, started, stopped or removed".to_owned(),
    ] {
        assert!(page.contains(&line), "{line}\n{page}");
    }
    assert!(page.lines().any(|line| line.starts_with("frontend ") && line.contains(&at)), "{page}");
    site.assert_gone();

    let output = dry(&["--image", "no-such-image:at-all"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("no-such-image:at-all is not on this engine"), "{error}");

    let agent = site.start(&["--min", "1", "--max", "4"]);
    agent.wait_ready(1);
    order(instance, &["scale", "3", "--wait=30s"]);
    let before = (site.containers(), agent.status()["decisions"].as_array().map(Vec::len));
    let output = dry(&["--image", image, "--min", "1", "--max", "4", "--cpus", "0.5"]);
    let page = told(&output);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("so a run would be refused"), "{error}");
    assert!(page.contains("3 there, 3 wanted; 3 of other settings than these"), "{page}");
    assert_eq!((site.containers(), agent.status()["decisions"].as_array().map(Vec::len)), before);

    agent.crash();
    let output = dry(&["--image", image, "--min", "1", "--max", "4"]);
    assert!(output.status.success() && told(&output).contains("what it has left would be taken over"));
    // Its order is taken over, too: without it, three would be as many as there are, and one would be wanted to begin with.
    docker(&["rm", "-f", site.containers().first().expect("a container")]);
    let page = told(&dry(&["--image", image, "--min", "1", "--max", "4"]));
    assert!(page.contains("2 there, 3 wanted; would start 1"), "{page}");
    lb_tests::agent::detach(instance, true);
    site.assert_gone();
}
