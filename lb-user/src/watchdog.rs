//! A process beside the agent that thaws what sleeps in a slot when there is no agent left to wake it.
//!
//! ```text
//! agent ── a pipe: "+" before a container is frozen, "-" when it is thawed, "." as a sign of life ──▶ lb-user watchdog
//!   └── killed, or hangs ── the pipe ends, or stays silent ──────────────────▶ thaws what it was told of
//! ```
//!
//! A pipe outlives its writer: what was said before a kill is read after it. The kernel ends it however the agent ends.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{SigSet, Signal},
};

use crate::freezer::Freezer;

/// The verb of the command line by which it is started.
pub const VERB: &str = "watchdog";
/// After so long without a sign of life the agent hangs; one comes each interval, of ten seconds at most on a busy host.
const PATIENCE: Duration = Duration::from_secs(15);

/// The agent's end.
#[derive(Debug, Default)]
pub struct Watchdog {
    process: Option<(Child, ChildStdin)>,
    held: BTreeSet<Freezer>,
}

impl Watchdog {
    /// Says that a container is about to be frozen that may get connections; starts the process with the first.
    ///
    /// # Errors
    /// If it cannot be started: then the container has to go on running.
    pub fn hold(&mut self, freezer: &Freezer) -> io::Result<()> {
        if self.held.contains(freezer) && self.is_running() {
            return Ok(());
        }
        self.held.insert(freezer.clone());
        let told = match self.is_running() {
            true => self.say('+', freezer),
            false => self.start(),
        };
        told.inspect_err(|_| {
            self.held.remove(freezer);
        })
    }

    /// Says that a container was thawed.
    pub fn release(&mut self, freezer: &Freezer) {
        if self.held.remove(freezer) {
            // One that is dead holds nothing.
            let _told = self.say('-', freezer);
        }
    }

    /// Gives a sign of life, and starts the process again if it has ended while anything is held, or reads no longer.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn beat(&mut self) -> io::Result<()> {
        if self.is_running() {
            if self.write(".\n").is_ok() {
                return Ok(());
            }
            self.kill();
        }
        if self.held.is_empty() { Ok(()) } else { self.start() }
    }

    /// Ends a process that somebody has stopped, say: what it held is told to the next.
    fn kill(&mut self) {
        if let Some((mut child, _)) = self.process.take() {
            // One that has ended meanwhile is no harm, and it is not waited for: it may hang in the kernel.
            let _ended_already = child.kill().and_then(|()| child.try_wait());
        }
    }

    fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|(child, _)| matches!(child.try_wait(), Ok(None)))
    }

    /// Starts the process, and tells it of everything that is held.
    fn start(&mut self) -> io::Result<()> {
        // By the file that runs, which may have been replaced since.
        let mut command = Command::new("/proc/self/exe");
        command.arg(VERB).stdin(Stdio::piped()).stdout(Stdio::null());
        // A group of its own, lest Ctrl-C ends it together with the agent.
        self.adopt(command.process_group(0).spawn()?)?;
        for freezer in self.held.clone() {
            self.say('+', &freezer)?;
        }
        Ok(())
    }

    fn adopt(&mut self, mut child: Child) -> io::Result<()> {
        let Some(pipe) = child.stdin.take() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        // The agent's loop never waits for it: a line that finds no room is an error.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        self.process = Some((child, pipe));
        Ok(())
    }

    fn say(&mut self, sign: char, freezer: &Freezer) -> io::Result<()> {
        let told = serde_json::to_string(freezer).map_err(io::Error::other)?;
        self.write(&format!("{sign}{told}\n"))
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        match &mut self.process {
            Some((_, pipe)) => pipe.write_all(line.as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Runs the process: until the pipe ends, whatever signals ask for.
pub fn run() -> ExitCode {
    // systemd asks every process of a unit to end at once, and the agent may need its time.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    if let Err(error) = signals.thread_block() {
        tracing::warn!(%error, "signals may end the watchdog");
    }
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut held = Held::default();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => held.note(&line),
            Err(RecvTimeoutError::Timeout) => held.thaw("the agent hangs"),
            Err(RecvTimeoutError::Disconnected) => {
                held.thaw("the agent has ended");
                return ExitCode::SUCCESS;
            }
        }
    }
}

/// What the process was told of.
#[derive(Debug, Default)]
struct Held(BTreeSet<Freezer>);

impl Held {
    fn note(&mut self, line: &str) {
        let freezer = |told: &str| serde_json::from_str::<Freezer>(told).ok();
        match line.split_at_checked(1) {
            Some(("+", told)) => self.0.extend(freezer(told)),
            Some(("-", told)) => {
                if let Some(freezer) = freezer(told) {
                    self.0.remove(&freezer);
                }
            }
            Some(_) | None => {}
        }
    }

    /// Thaws all of them, and remembers them: an agent that hangs may go on, and freeze what it has told of before.
    fn thaw(&self, why: &str) {
        for freezer in &self.0 {
            // The agent may have thawed it, and the container may be gone.
            if freezer.is_asked() {
                match freezer.thaw() {
                    Ok(()) => tracing::warn!("{why}: a container that slept is thawed"),
                    Err(error) => tracing::error!("{why}: {error}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_that_reads_no_longer_is_ended_and_holds_up_nobody() {
        let stuck = Command::new("sleep").arg("600").stdin(Stdio::piped()).spawn().expect("sleep is there");
        let mut watchdog = Watchdog::default();
        watchdog.adopt(stuck).unwrap();

        // A pipe has room for 64 KiB, pipe(7).
        let beats = (0..64 * 1024).position(|_| {
            watchdog.beat().unwrap();
            watchdog.process.is_none()
        });

        assert!(beats.is_some_and(|beats| beats > 1024), "{beats:?}");
    }

    #[test]
    fn what_was_told_and_not_taken_back_is_thawed() {
        let folder = std::env::temp_dir().join(format!("lb-watchdog-{}", std::process::id()));
        let freezer = |name: &str| {
            fs::create_dir_all(folder.join(name)).unwrap();
            fs::write(folder.join(name).join("freezer.state"), "FROZEN").unwrap();
            Freezer::State(folder.join(name))
        };
        let (kept, thawed) = (freezer("a"), freezer("b"));
        let told = |sign: &str, freezer: &Freezer| format!("{sign}{}", serde_json::to_string(freezer).unwrap());
        let mut held = Held::default();

        for line in
            [told("+", &kept), ".".into(), told("+", &thawed), told("-", &thawed), "+nonsense".into(), "".into()]
        {
            held.note(&line);
        }
        held.thaw("a test");

        assert_eq!(
            (kept.is_frozen(), thawed.is_frozen()),
            (false, true),
            "the second is none of its business any more"
        );

        // The agent goes on where it was held up, and is killed while the kernel is at it.
        fs::write(folder.join("a/freezer.state"), "FREEZING").unwrap();
        held.thaw("a test");
        assert!(!kept.is_asked());
        fs::remove_dir_all(&folder).unwrap();
    }
}
