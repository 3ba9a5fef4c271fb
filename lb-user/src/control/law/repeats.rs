//! SYNs that come again: nobody has answered them, so there is demand beyond what is served, though each connection has
//! been counted as an arrival when it came first.
//!
//! A listener whose queue is full drops what comes, and clients try again after a second (RFC 6298, 2.1). That is told apart
//! from what looks like it:
//!
//! ```text
//! losses of the network    a tenth of what arrives, and twenty in three seconds, are not told from them
//! a backend that is dead   only those count that serve and have accepted others meanwhile; passive checks put it aside
//! forged SYNs              do not come again from the same port, and are arrivals, which the share is of. Once they fill
//!                          a listener's queue it answers by cookies, without a flow: none is counted at all
//! whoever waits for others is not busy: more backends were no answer
//! ```
//!
//! How much more is wanted they do not say: it is a push by a quarter, at once, and none goes while they come.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::surge::is_no_chance;
use super::{FAST, Timestamp};

/// So many of what arrives may be lost on the way: a network that is worse is no network to scale by.
const LOSSES: f64 = 0.1;
/// Fewer are a handful, whatever share they are.
const FEWEST: f64 = 20.0;

/// SYNs that came again within the last seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Repeats {
    /// How many.
    pub syns: f64,
    /// How many connections were begun meanwhile.
    pub connections: f64,
    /// For how long they were counted.
    pub within: Duration,
}

impl Repeats {
    /// Whether they are more than losses and chance explain.
    pub fn are_many(&self) -> bool {
        self.syns >= FEWEST && is_no_chance(self.syns, LOSSES * self.connections)
    }
}

/// What was counted at the last ticks.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    ticks: VecDeque<(Timestamp, Repeats)>,
}

impl Counts {
    /// Adds what was counted since the last tick, and returns the sum of the last seconds.
    pub fn add(&mut self, counted: Repeats, now: Timestamp) -> Repeats {
        self.ticks.push_back((now, counted));
        while self.ticks.front().is_some_and(|(at, _)| now.since(*at) >= FAST) {
            self.ticks.pop_front();
        }
        let nothing = Repeats { syns: 0.0, connections: 0.0, within: Duration::ZERO };
        self.ticks.iter().fold(nothing, |sum, (_, one)| Repeats {
            syns: sum.syns + one.syns,
            connections: sum.connections + one.connections,
            within: sum.within + one.within,
        })
    }

    /// Forgets them, as they could not be counted.
    pub fn forget(&mut self) {
        self.ticks.clear();
    }
}
