//! The time that the controller is told: monotonic, counted from the agent's start.

use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment, as the time since the agent started.
///
/// The controller never asks what time it is; every call brings its own `now`.
///
/// # Units
/// Monotonic; a suspended machine may or may not count, see [`Law::gap`](super::policy::Law::gap).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(Duration);

impl Timestamp {
    /// The agent's start.
    pub const ZERO: Timestamp = Timestamp(Duration::ZERO);

    /// Returns the moment `elapsed` after the agent's start.
    pub const fn new(elapsed: Duration) -> Self {
        Timestamp(elapsed)
    }

    /// Returns the moment `millis` milliseconds after the agent's start.
    pub const fn from_millis(millis: u64) -> Self {
        Timestamp(Duration::from_millis(millis))
    }

    /// Returns how long after the agent's start this moment is.
    pub const fn elapsed(self) -> Duration {
        self.0
    }

    /// Returns how long ago `earlier` was; zero where it was not earlier.
    pub fn since(self, earlier: Timestamp) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    /// Saturates: a duration that means "for ever" leads to the last moment there is.
    fn add(self, after: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(after))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Timestamp;

    /// Saturates at the agent's start.
    fn sub(self, before: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let late = Timestamp::from_millis(5) + Duration::MAX;

        assert_eq!(late, Timestamp::new(Duration::MAX));
        assert_eq!(Timestamp::from_millis(5) - Duration::MAX, Timestamp::ZERO);
        assert_eq!(Timestamp::ZERO.since(late), Duration::ZERO);
    }
}
