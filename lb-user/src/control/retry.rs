//! When to try again: a delay that doubles from try to try, up to a ceiling.

use std::time::Duration;

use super::time::Timestamp;

/// The first delay and the longest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    pub first: Duration,
    pub longest: Duration,
}

impl Pace {
    /// Returns the delay after `failures` failures in a row.
    pub fn delay(self, failures: u32) -> Duration {
        let doubled = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doubled).min(self.longest)
    }
}

/// A command that has to be repeated until an event says that it succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errand {
    due: Timestamp,
    failures: u32,
}

impl Errand {
    /// Creates an errand that is due at once.
    pub fn new(now: Timestamp) -> Self {
        Errand { due: now, failures: 0 }
    }

    /// Returns when to send the command, again or for the first time.
    pub fn due(&self) -> Timestamp {
        self.due
    }

    /// Returns how many times in a row it has failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Notes that the command was sent; an answer that takes longer than `patience` counts as lost.
    pub fn sent(&mut self, patience: Duration, now: Timestamp) {
        self.due = now + patience;
    }

    /// Notes that the command failed, and plans the next try.
    pub fn failed(&mut self, pace: Pace, now: Timestamp) {
        self.failures = self.failures.saturating_add(1);
        self.due = now + pace.delay(self.failures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let pace = Pace { first: Duration::from_secs(1), longest: Duration::from_secs(60) };

        let delays: Vec<u64> = [1, 2, 3, 6, 7, 8, 1000, u32::MAX].map(|n| pace.delay(n).as_secs()).into();

        assert_eq!(delays, [1, 2, 4, 32, 60, 60, 60, 60]);
    }
}
