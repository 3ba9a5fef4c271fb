//! Processors that do not sleep: waking one, above all one of a virtual machine, takes longer than what is measured.

use std::{
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result};
use lb_tests::lab;

/// Keeps every processor busy with work that anything else interrupts at once; it ends with this.
pub struct Awake {
    idlers: Vec<Child>,
}

impl Awake {
    /// Begins.
    ///
    /// # Source
    /// sched(7), SCHED_IDLE.
    pub fn begin() -> Result<Self> {
        let mut awake = Self { idlers: Vec::new() };
        for processor in 0..processors() {
            let mut idler = Command::new("taskset");
            idler.args(["-c", &processor.to_string(), "chrt", "--idle", "0", "sh", "-c", "while :; do :; done"]);
            let idler = idler.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            awake.idlers.push(idler.context("start taskset")?);
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.idlers.iter_mut().for_each(lab::end);
    }
}

/// Returns how many processors there are.
pub fn processors() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
