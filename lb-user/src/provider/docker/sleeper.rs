//! A process for tests, which ends with the test at the latest.

use std::process::{Child, Command};

pub(super) struct Sleeper(Child);

impl Sleeper {
    pub fn start() -> Self {
        Self(Command::new("sleep").arg("60").spawn().expect("it starts"))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Kills it. It keeps its number until it is [`reap`](Self::reap)ed.
    pub fn kill(&mut self) {
        self.0.kill().expect("it is ours");
    }

    pub fn reap(&mut self) {
        self.0.wait().expect("it is ours");
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _nobody_asks = self.0.wait();
    }
}
