//! Ctrl-C: everything that takes long looks whether the run is to end.

use std::{
    io::{Read as _, Seek as _},
    process::{Command, Output, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_tests::lab::end;

/// The run was asked to end.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Signals are sent to the process as a whole, so this is one thing of the process.
static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// How often is looked.
const PATIENCE: Duration = Duration::from_millis(10);

/// Lets the run end early on SIGINT, SIGTERM or SIGHUP; a second one ends it at once.
pub fn watch() -> Result<()> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register_conditional_default(signal, ASKED.clone())
            .and_then(|_| signal_hook::flag::register(signal, ASKED.clone()))
            .context("watch for signals")?;
    }
    Ok(())
}

/// Returns whether the run is to end.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Ends the run if it is to end.
///
/// # Errors
/// [`Interrupted`].
pub fn check() -> Result<()> {
    if asked() { Err(Interrupted.into()) } else { Ok(()) }
}

/// Sleeps, unless the run is to end.
///
/// # Errors
/// [`Interrupted`].
pub fn sleep(duration: Duration) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < duration {
        check()?;
        thread::sleep(PATIENCE.min(duration.saturating_sub(start.elapsed())));
    }
    check()
}

/// Runs a program to its end and returns what it printed; kills it if the run is to end.
///
/// # Errors
/// [`Interrupted`], or why it did not start.
pub fn output(command: &mut Command) -> Result<Output> {
    let (mut printed, mut complained) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(printed.try_clone()?).stderr(complained.try_clone()?);
    let mut child = command.spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if asked() {
            end(&mut child);
            return Err(Interrupted.into());
        }
        thread::sleep(PATIENCE);
    };
    let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
    for (file, text) in [(&mut printed, &mut output.stdout), (&mut complained, &mut output.stderr)] {
        file.rewind().and_then(|()| file.read_to_end(text)).context("read what it printed")?;
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_is_returned_however_much() {
        let script = "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; echo bad >&2; exit 3";

        let output = output(Command::new("sh").args(["-c", script])).unwrap();

        assert_eq!((output.stdout.len(), output.stderr.as_slice()), (220_000, b"bad\n".as_slice()));
        assert_eq!(output.status.code(), Some(3));
    }
}
