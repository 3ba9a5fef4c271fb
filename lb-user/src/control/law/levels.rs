//! A level over time, which says only whether all is well: what it did lately, and how high it has been.

use std::collections::VecDeque;
use std::time::Duration;

use super::metric::Seen;
use super::{LEVEL_TICKS, Law, Timestamp};

/// What was measured of one level.
#[derive(Clone, Debug, Default)]
pub struct Levels {
    lately: VecDeque<f64>,
    /// Those that no later one has reached, so that the first is the highest.
    highest: VecDeque<(Timestamp, f64)>,
    last: Option<Timestamp>,
    /// When anything was measured last.
    heard: Option<Timestamp>,
    /// Since when it has been measured without a gap.
    unbroken_since: Option<Timestamp>,
}

impl Levels {
    /// Adds a measurement, or that there is none. Where more would be no answer to it of those that fewer would be, it is not
    /// held against fewer.
    pub fn push(&mut self, law: &Law, level: Option<f64>, is_held_against_fewer: bool, now: Timestamp) {
        self.forget(law, now);
        let Some(level) = level.filter(|level| level.is_finite()) else {
            self.lately.clear();
            return;
        };
        if self.last.replace(now).is_none_or(|last| now.since(last) > law.gap()) {
            self.unbroken_since = Some(now);
        }
        self.lately.push_back(level);
        while self.lately.len() > LEVEL_TICKS {
            self.lately.pop_front();
        }
        self.heard = Some(now);
        if is_held_against_fewer {
            while self.highest.back().is_some_and(|(_, before)| *before <= level) {
                self.highest.pop_back();
            }
            self.highest.push_back((now, level));
        }
    }

    /// Adds that there was nothing to measure: what was measured last stands, for a while, as who is late may well be later
    /// than a tick is long.
    pub fn pause(&mut self, law: &Law, now: Timestamp) {
        self.forget(law, now);
        if self.last.replace(now).is_none_or(|last| now.since(last) > law.gap()) {
            self.unbroken_since = Some(now);
        }
        if self.heard.is_none_or(|heard| now.since(heard) > law.up_window) {
            self.lately.clear();
        }
    }

    fn forget(&mut self, law: &Law, now: Timestamp) {
        while self.highest.front().is_some_and(|(at, _)| now.since(*at) > law.down_window) {
            self.highest.pop_front();
        }
    }

    /// Returns what is known of the level by now.
    pub fn seen(&self, now: Timestamp) -> Seen {
        let is_whole = self.lately.len() == LEVEL_TICKS;
        Seen::Level {
            latest: self.lately.back().copied().unwrap_or(0.0),
            lasting: if is_whole { self.lately.iter().copied().fold(f64::INFINITY, f64::min) } else { 0.0 },
            highest: self.highest.front().map_or(0.0, |(_, level)| *level),
            seen_for: self.unbroken_since.map_or(Duration::ZERO, |since| now.since(since)),
        }
    }
}
