//! The agent as a user runs it: the binary, its status, its end.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::lab::{end, patience, wait_until};

/// A running agent; what it leaves is removed with this.
pub struct Agent {
    child: Child,
    instance: String,
    namespace: Option<String>,
    log: tempfile::NamedTempFile,
    with_containers: bool,
}

/// Returns the binary.
pub fn binary() -> String {
    std::env::var("LB_BIN").expect("the case needs LB_BIN")
}

/// Prepares the binary in a namespace, or where the test runs.
fn command(namespace: Option<&str>) -> Command {
    match namespace {
        Some(namespace) => crate::lab::command_in(namespace, &binary()),
        None => Command::new(binary()),
    }
}

impl Agent {
    /// Starts the agent in a namespace, or where the test runs.
    pub fn start(namespace: Option<&str>, instance: &str, arguments: &[&str]) -> Self {
        Self::start_by(command(namespace), namespace, instance, arguments)
    }

    /// Starts the agent with a file of services, which names the instance, in a namespace or where the test runs.
    pub fn start_file(namespace: Option<&str>, instance: &str, file: &Path) -> Self {
        let file = file.to_str().expect("a path that is text");
        let with_containers = std::fs::read_to_string(file).expect("a file").contains("image");
        Self::spawn(command(namespace), namespace, instance, &["--config", file], with_containers)
    }

    /// Starts the agent by a command that leads to the binary in a namespace, or where the test runs.
    pub fn start_by(command: Command, namespace: Option<&str>, instance: &str, arguments: &[&str]) -> Self {
        let with_containers = arguments.contains(&"--image");
        let arguments = [&["--instance", instance], arguments].concat();
        Self::spawn(command, namespace, instance, &arguments, with_containers)
    }

    fn spawn(
        mut command: Command,
        namespace: Option<&str>,
        instance: &str,
        arguments: &[&str],
        with_containers: bool,
    ) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a file for the log");
        let output = || File::options().append(true).open(log.path()).expect("the log can be written");
        let child =
            command.arg("run").args(arguments).stdout(output()).stderr(output()).spawn().expect("the agent starts");
        let namespace = namespace.map(str::to_owned);
        Self { child, instance: instance.to_owned(), namespace, log, with_containers }
    }

    /// Waits until the instance is healthy with so many ready backends.
    pub fn wait_ready(&self, backends: u64) {
        let what = format!("{} has {backends} ready backends", self.instance);
        self.wait_for(&what, Duration::from_secs(30), |status| {
            status["health"] == "healthy" && status["scaling"]["ready"] == backends
        });
    }

    /// Waits until the status is as wanted; shows the log if it does not become so.
    pub fn wait_for(&self, what: &str, limit: Duration, is_so: impl Fn(&Value) -> bool) {
        let (start, limit) = (std::time::Instant::now(), patience(limit));
        while !is_so(&self.status()) {
            assert!(start.elapsed() < limit, "{what}: not within {limit:?}\n{:#}\n{}", self.status(), self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns what `status --json` says; null if there is nothing.
    pub fn status(&self) -> Value {
        status(&self.instance)
    }

    /// Returns the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the agent runs");
    }

    /// Kills the agent and forgets it; what it has left stays.
    pub fn crash(mut self) {
        end(&mut self.child);
        self.instance.clear();
    }

    /// Asks the agent to end and waits until it has.
    pub fn stop(&mut self, signal: Signal) {
        self.signal(signal);
        let mut code = None;
        wait_until("the agent ends", Duration::from_secs(60), || {
            code = self.child.try_wait().expect("it is our child");
            code.is_some()
        });
        assert!(code.is_some_and(|code| code.success()), "{code:?}\n{}", self.log());
    }

    /// Returns what the agent has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.instance.is_empty() {
            return;
        }
        end(&mut self.child);
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.instance, self.log());
        }
        detach_in(self.namespace.as_deref(), &self.instance, self.with_containers);
    }
}

/// Returns what `status --json` says of an instance; null if there is nothing.
pub fn status(instance: &str) -> Value {
    serde_json::from_slice(&lb_user(&["status", "--json", "--instance", instance]).stdout).unwrap_or(Value::Null)
}

/// Runs the agent's binary to its end.
pub fn lb_user(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).stdin(Stdio::null()).output().expect("lb-user starts")
}

/// Removes what an instance has left.
pub fn detach(instance: &str, with_containers: bool) {
    detach_in(None, instance, with_containers);
}

/// Removes what an instance has left, in a namespace or where the test runs.
fn detach_in(namespace: Option<&str>, instance: &str, with_containers: bool) {
    let mut command = command(namespace);
    command.args(["detach", "--instance", instance]);
    if with_containers {
        command.arg("--containers");
    }
    let output = command.stdin(Stdio::null()).output().expect("lb-user starts");
    assert!(output.status.success(), "detach: {}", String::from_utf8_lossy(&output.stderr));
}

/// Checks that an instance has left neither pins nor lock nor socket.
pub fn assert_gone(instance: &str) {
    assert!(!Path::new("/sys/fs/bpf/lb").join(instance).exists(), "pins of {instance} are left");
    assert!(!Path::new("/run/lb").join(format!("{instance}.lock")).exists(), "the lock of {instance} is left");
    assert!(!Path::new("/run/lb").join(format!("{instance}.sock")).exists(), "the socket of {instance} is left");
    let output = lb_user(&["status", "--instance", instance]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Checks that wrk has seen no failure, and returns how many requests it made.
pub fn assert_no_failure(report: &str) -> u64 {
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
    let requests = report.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests = requests.and_then(|(number, _)| number.trim().parse().ok());
    requests.unwrap_or_else(|| panic!("wrk did not report: {report}"))
}
