//! How containers are killed, and how long they keep their slots.

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lb_user::datapath::{Maps, Pins};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    lab::has_ended,
    site::{Site, docker},
};

/// The slots of an instance, as the kernel sees them.
pub struct Slots(Maps);

impl Slots {
    /// Looks at the slots of a site whose agent runs.
    pub fn of(site: &Site) -> Self {
        Self(Maps::open(&Pins::of(site.instance())).expect("an agent runs"))
    }

    /// Returns how many containers have a slot.
    pub fn count(&self) -> u64 {
        self.0.frontends.iter().flatten().map(|(_, frontend)| frontend.slots().len.into()).max().unwrap_or(0)
    }

    /// Returns how long it takes from a death to one slot less.
    pub fn leave(&self, death: impl FnOnce() -> Instant) -> Duration {
        let before = self.count();
        let died = death();
        while self.count() >= before {
            assert!(died.elapsed() < Duration::from_secs(10), "it has its slot still");
            thread::yield_now();
        }
        died.elapsed()
    }
}

/// Kills a container's process behind the engine's back.
pub fn kill_process(id: &str) -> Instant {
    let pid = Pid::from_raw(process(id));
    let killed = Instant::now();
    kill(pid, Signal::SIGKILL).expect("it runs");
    killed
}

/// Returns a container's first process.
pub fn process(id: &str) -> i32 {
    docker(&["inspect", "--format", "{{.State.Pid}}", id]).trim().parse().expect("a number")
}

/// Kills a container by the engine. What is measured is from the moment in which its process has ended: before, the engine
/// has to do what it was asked to.
pub fn kill_by_engine(id: &str) -> Instant {
    let process = process(id);
    let mut command = Command::new("docker").args(["kill", id]).stdout(Stdio::null()).spawn().expect("docker starts");
    while !has_ended(process) {
        thread::yield_now();
    }
    let died = Instant::now();
    thread::spawn(move || command.wait());
    died
}

/// Returns when the engine has learned of deaths of containers with a label since then, in nanoseconds of Unix time.
pub fn told_by_engine(label: &str, since: SystemTime) -> Vec<u128> {
    let label = format!("label={label}");
    let seconds = |time| (unix_ns(time) / 1_000_000_000).to_string();
    let (since, until) = (seconds(since), seconds(SystemTime::now() + Duration::from_secs(1)));
    let filters = ["--filter", "type=container", "--filter", "event=die", "--filter", &label];
    let format = ["--since", &since, "--until", &until, "--format", "{{.TimeNano}}"];
    let told = docker(&[&["events"], &filters[..], &format[..]].concat());
    told.lines().map(|line| line.trim().parse().expect("a time")).collect()
}

/// Returns a time as the engine tells it.
pub fn unix_ns(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).expect("it is later than 1970").as_nanos()
}
