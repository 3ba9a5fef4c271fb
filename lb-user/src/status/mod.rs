//! What an instance is like: the snapshot, the rules by which it is healthy, and how both are shown.

use std::{fmt, path::PathBuf, process::ExitCode};

use serde::Serialize;

pub mod explain;
pub mod human;
pub mod page;
pub mod read;
pub mod render;
pub mod snapshot;

pub use page::Style;
pub use render::render;
pub use snapshot::Snapshot;

use human::{age, list};
use snapshot::{Agent, BackendState, SCHEMA};

/// A sign of life may be late by so many intervals, or by [`LATEST_HEARTBEAT_MS`], whichever is more.
const LATE_INTERVALS: u64 = 5;
/// Milliseconds that a sign of life may be late on a busy host, however short the interval is.
const LATEST_HEARTBEAT_MS: u64 = 5_000;

/// How `status` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything is as it should be.
    Healthy,
    /// Something is wrong.
    Degraded,
    /// There is no such instance.
    NotRunning,
    /// The command line makes no sense: `EX_USAGE` of sysexits.h.
    Usage,
}

impl Exit {
    /// Returns the number that the process exits with.
    pub const fn code(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Degraded => 1,
            Self::NotRunning => 2,
            Self::Usage => 64,
        }
    }

    /// Returns the name in the JSON document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::NotRunning => "not-running",
            Self::Usage => "usage",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// What can be said of an agent from its process and its last sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// The process lives and tells so.
    Alive,
    /// The process lives and does not tell so: it hangs, or another process has its id.
    Stalled,
    /// The process is gone.
    Dead,
}

impl Agent {
    /// Returns what can be said of the agent.
    pub fn state(&self) -> AgentState {
        let patience = self.heartbeat_interval_ms.saturating_mul(LATE_INTERVALS).max(LATEST_HEARTBEAT_MS);
        match self.alive {
            false => AgentState::Dead,
            true if self.heartbeat_age_ms > patience => AgentState::Stalled,
            true => AgentState::Alive,
        }
    }

    /// Returns what is wrong with the agent; nothing if it lives.
    pub fn problem(&self) -> Option<String> {
        let last = age(self.heartbeat_age_ms);
        match self.state() {
            AgentState::Alive => None,
            AgentState::Stalled => {
                Some(format!("the agent hangs (pid {}, last heartbeat {last} ago): see its log, or kill it", self.pid))
            }
            AgentState::Dead => Some(format!(
                "the agent is dead (pid {}, last heartbeat {last} ago): start lb-user run again",
                self.pid
            )),
        }
    }
}

impl Snapshot {
    /// Returns how `status` ends: degraded if anything is wrong.
    pub fn health(&self) -> Exit {
        if self.findings().is_empty() { Exit::Healthy } else { Exit::Degraded }
    }

    /// Returns everything that is wrong, one sentence each: what the snapshot itself shows, then its `problems`.
    pub fn findings(&self) -> Vec<String> {
        let ready = |frontend: &&snapshot::Frontend| {
            frontend
                .backends
                .iter()
                .any(|backend| backend.slot && matches!(backend.state, BackendState::Ready | BackendState::Idle))
        };
        // One without addresses is on its way out: it has connections, and gets no more.
        let is_leaving = |frontend: &&snapshot::Frontend| frontend.addresses.is_empty();
        let unserved =
            self.frontends.iter().filter(|frontend| !is_leaving(frontend) && !ready(frontend)).map(|frontend| {
                format!("frontend {} has no ready backend: new connections are refused", frontend.name)
            });
        let mut findings: Vec<String> = self.agent.problem().into_iter().chain(unserved).collect();
        for problem in &self.problems {
            if !findings.contains(problem) {
                findings.push(problem.clone());
            }
        }
        findings
    }

    /// Returns the JSON document: `schema`, `health` (`healthy` or `degraded`), and the snapshot with all
    /// [`findings`](Self::findings) as its `problems`.
    pub fn json(&self) -> String {
        let snapshot = Self { problems: self.findings(), ..self.clone() };
        document(self.health(), &snapshot)
    }
}

/// The answer where there is no such instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotRunning {
    /// The instance's name.
    pub instance: String,
    /// Where its pins would be.
    pub pin_path: PathBuf,
    /// The instances that there are.
    pub others: Vec<String>,
}

impl NotRunning {
    /// Returns the JSON document: `schema`, `health` (`not-running`), `instance`, `pin_path`, `others`.
    pub fn json(&self) -> String {
        document(Exit::NotRunning, self)
    }
}

impl fmt::Display for NotRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "instance {} is not running: nothing is pinned at {}", self.instance, self.pin_path.display())?;
        match self.others.as_slice() {
            [] => writeln!(f, "no other instance runs on this host"),
            [other] => writeln!(f, "one other instance runs: lb-user status --instance {other}"),
            others => writeln!(f, "other instances run: {}; name one with --instance", list(others)),
        }
    }
}

/// Prints the state of an instance.
///
/// # Errors
/// If it cannot be read, other than because there is none.
pub fn show(instance: &str, as_json: bool) -> Result<Exit, read::StatusError> {
    use std::io::Write as _;
    let (text, exit) = match read::read(instance) {
        Ok(snapshot) if as_json => (snapshot.json() + "\n", snapshot.health()),
        Ok(snapshot) => (render(&snapshot, Style::of_stdout()), snapshot.health()),
        Err(read::StatusError::NotRunning(absent)) if as_json => (absent.json() + "\n", Exit::NotRunning),
        Err(read::StatusError::NotRunning(absent)) => {
            eprint!("{absent}");
            (String::new(), Exit::NotRunning)
        }
        Err(error) => return Err(error),
    };
    // Whoever closes the pipe has read enough.
    let _reader_left = std::io::stdout().write_all(text.as_bytes());
    Ok(exit)
}

#[derive(Serialize)]
struct Document<'a, T> {
    schema: u32,
    health: &'static str,
    #[serde(flatten)]
    content: &'a T,
}

fn document<T: Serialize>(exit: Exit, content: &T) -> String {
    let document = Document { schema: SCHEMA, health: exit.name(), content };
    serde_json::to_string_pretty(&document).expect("keys are text and numbers are finite or null")
}

#[cfg(test)]
mod tests;
