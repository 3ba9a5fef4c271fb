//! A run of the benchmarks: its options, what it has measured, how far it is, and whether it is to end.

use std::{
    cell::Cell,
    collections::BTreeSet,
    panic::{self, AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    field::{Field, Service},
    interrupt::{self, Interrupted},
    options::Options,
    record::{Record, Values},
    systems::{self, System},
};

/// A run.
pub struct Session {
    /// What was asked for.
    pub options: Options,
    /// What was measured.
    pub record: Record,
    progress: ProgressBar,
    failed: BTreeSet<(&'static str, String, String)>,
}

impl Session {
    /// Begins a run that ends early if it is asked to.
    pub fn begin(options: Options) -> Result<Self> {
        interrupt::watch()?;
        let aloud = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            if CATCHING.get() == 0 {
                aloud(what);
            }
        }));
        let progress = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style =
            ProgressStyle::with_template("{prefix}  {bar:24} {pos}/{len}  {elapsed} of about {duration}  {msg}");
        progress.set_style(style.context("the progress bar's style")?);
        progress.enable_steady_tick(Duration::from_secs(1));
        Ok(Self { options, record: Record::default(), progress, failed: BTreeSet::new() })
    }

    /// Returns those of the systems that can balance a service here; of the others it is said why they cannot.
    pub fn able(&mut self, suite: &'static str, systems: &[System], field: &Field, service: &Service) -> Vec<System> {
        let mut able = Vec::new();
        for &system in systems {
            match system.lacks(field, service) {
                None => able.push(system),
                Some(lack) => self.leave_out(suite, system.name(), &lack),
            }
        }
        able
    }

    /// Returns the systems that take turns.
    pub fn systems(&self) -> Vec<System> {
        systems::chosen(&self.options.peers)
    }

    /// Begins with a suite, the first one of so many being number 1: the display shows how far it is in this one.
    pub fn begin_suite(&self, number: usize, of: usize) {
        self.progress.reset();
        self.progress.set_length(0);
        self.progress.set_prefix(format!("suite {number} of {of}"));
    }

    /// Says that so many turns of the suite are to come.
    pub fn expect(&self, turns: usize) {
        self.progress.inc_length(turns as u64);
    }

    /// Says what happens between turns.
    pub fn say(&self, what: &str) {
        if self.progress.is_hidden() {
            eprintln!("{what}");
        } else {
            self.progress.set_message(what.to_owned());
        }
    }

    /// Lets a system have its turn. If it fails, that is told, and it gets none any more in this case.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn turn(
        &mut self,
        (suite, case): (&'static str, &str),
        system: &str,
        round: u32,
        work: impl FnOnce() -> Result<Values>,
    ) -> Result<()> {
        interrupt::check()?;
        let place = (suite, case.to_owned(), system.to_owned());
        if !self.failed.contains(&place) {
            let case_text = if case.is_empty() { String::new() } else { format!(", {case}") };
            self.say(&format!("{suite}{case_text}: {system}, round {round} of {}", self.options.rounds));
            match caught(work) {
                // What was interrupted has measured something else.
                _ if interrupt::asked() => return Err(Interrupted.into()),
                Ok(values) => self.record.add(suite, case, system, round, values),
                Err(error) => {
                    let what = if case.is_empty() { system.to_owned() } else { format!("{system}, {case}") };
                    self.leave_out(suite, &what, &format!("{error:#}"));
                    self.failed.insert(place);
                }
            }
        }
        self.progress.inc(1);
        Ok(())
    }

    /// Says that something is not measured, and why.
    pub fn leave_out(&mut self, suite: &'static str, what: &str, reason: &str) {
        self.progress.suspend(|| eprintln!("{suite}: {what} is left out: {}", reason.trim()));
        // Some errors bring a log along.
        self.record.leave_out(suite, what, reason.lines().next().unwrap_or_default().trim());
    }

    /// Ends the progress display.
    pub fn end(&self) {
        self.progress.finish_and_clear();
    }
}

thread_local! {
    /// How many [`caught`] there are around what this thread does.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
}

/// Turns a panic of the harness, whose checks are made for tests, into an error.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    CATCHING.set(CATCHING.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(CATCHING.get() - 1);
    outcome.unwrap_or_else(|panic| Err(anyhow!(said(&*panic))))
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_owned()
}
