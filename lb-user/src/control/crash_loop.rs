//! The brake on starts: the sooner containers end, the longer the next start waits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::retry::Pace;
use super::time::Timestamp;

/// A backend that served for less than this did not live.
pub(super) const SHORT_LIFE: Duration = Duration::from_secs(10);
/// A backend that served for this long, and was started after the last failure, ends the loop.
const PROVEN: Duration = Duration::from_secs(60);
const PACE: Pace = Pace { first: Duration::from_secs(1), longest: Duration::from_secs(60) };

/// Counts starts that came to nothing, in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashLoop {
    failures: u32,
    last_failure: Timestamp,
    wait_until: Timestamp,
}

impl CrashLoop {
    /// Goes on from that of a former agent: who starts the next one may have set the cause right, so one start is tried at
    /// once; if it fails, too, the wait is the longer one that was due.
    pub(super) fn adopted(former: Self) -> Self {
        Self { wait_until: Timestamp::ZERO, ..former }
    }

    /// Notes a start that came to nothing. Failures during the wait belong to the wave that caused it and count once.
    pub(super) fn failed(&mut self, now: Timestamp) {
        self.last_failure = now;
        if now >= self.wait_until {
            self.failures = self.failures.saturating_add(1);
            self.wait_until = now + PACE.delay(self.failures);
        }
    }

    /// Forgets the failures where a backend has proved itself that is known since `known_since` and has served for
    /// `life`.
    pub(super) fn proven(&mut self, known_since: Timestamp, life: Duration) {
        if known_since > self.last_failure && life >= PROVEN {
            *self = CrashLoop::default();
        }
    }

    /// Returns how many failures there were in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns when the next start may begin.
    pub(super) fn wait_until(&self) -> Timestamp {
        self.wait_until
    }

    /// Returns how many of `limit` starts may be tried at once by `now`: during a loop one, and none while it waits.
    pub(super) fn room(&self, limit: u32, now: Timestamp) -> u32 {
        if now < self.wait_until {
            0
        } else if self.failures > 0 {
            1
        } else {
            limit
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_wave_counts_once_and_each_next_one_doubles_the_wait() {
        let mut crash_loop = CrashLoop::default();
        let mut now = Timestamp::from_millis(1000);
        let mut waits = Vec::new();

        for _ in 0..8 {
            for _ in 0..4 {
                crash_loop.failed(now);
            }
            waits.push(crash_loop.wait_until().since(now).as_secs());
            assert_eq!(crash_loop.room(4, now), 0);
            now = crash_loop.wait_until();
            assert_eq!(crash_loop.room(4, now), 1);
        }

        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn only_a_later_start_that_serves_for_long_ends_the_loop() {
        let mut crash_loop = CrashLoop::default();
        let failure = Timestamp::from_millis(5000);
        crash_loop.failed(failure);

        crash_loop.proven(failure - SECOND, Duration::from_secs(600));
        crash_loop.proven(failure + SECOND, PROVEN - SECOND);
        assert_eq!(crash_loop.failures(), 1);

        crash_loop.proven(failure + SECOND, PROVEN);
        assert_eq!(crash_loop.failures(), 0);
        assert_eq!(crash_loop.room(4, failure), 4);
    }
}
