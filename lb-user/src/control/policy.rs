//! The scaling law: a load and the count that stands in, the count that is wanted out, with the reason.
//!
//! The demand is the share of `max` that the load is of its target, as in the set-up this replaces (a script, one
//! container per 10 % of CPU, at most 10):
//!
//! ```text
//! W    = max · load / target
//! up   = ⌈W − 0.10⌉ in min..=max      wanted at least: more than this and the count is too small
//! down = ⌈W + 0.25⌉ in min..=max      wanted at most:  less than this and the count may be too small
//! ```
//!
//! The count changes only where it lies outside `up..=down`: upwards to the *smallest* `up` of the up window, downwards
//! to the *largest* `down` of the down window. A peak shorter than the up window starts nothing; a pause shorter than
//! the down window stops nothing.
//!
//! # Why it does not flap
//! `up <= down` for every W. Under a constant load a rise ends at `up`, and no fall follows, because a fall needs a
//! count above `down >= up`; a fall ends at `down`, and no rise follows, because a rise needs a count below
//! `up <= down`. So there is one step at most. To go round once, the demand must rise by more than 0.10 above a whole
//! number *for the whole up window* and then stay 0.25 below it *for the whole down window*: noise of less than 0.35 of
//! a backend (3.5 % of the host's CPU at `max` 10) never does. Both windows hold the latest sample, so a rise and a fall
//! never contend.
//!
//! The law knows nothing of processors: whatever can be said as a share of a target can drive it.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// How far the demand has to exceed a count before one more backend is wanted.
const RISE_MARGIN: f64 = 0.10;
/// How far the demand has to stay below a count before one backend fewer is wanted.
const FALL_MARGIN: f64 = 0.25;
/// After so many intervals without a sample nothing is known about the time between.
const GAP_INTERVALS: u32 = 5;

/// The smallest and the largest count of backends: `1 <= min <= max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    min: u32,
    max: u32,
}

/// Why two numbers are no [`Bounds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundsError {
    /// The smallest count is zero: nobody would answer.
    #[error("the minimum has to be at least 1")]
    NoMinimum,
    /// The smallest count exceeds the largest.
    #[error("the minimum {min} exceeds the maximum {max}")]
    Crossed {
        /// The smallest count asked for.
        min: u32,
        /// The largest count asked for.
        max: u32,
    },
}

impl Bounds {
    /// Returns the bounds `min..=max`.
    ///
    /// # Errors
    /// Where `min` is zero or exceeds `max`.
    pub fn new(min: u32, max: u32) -> Result<Self, BoundsError> {
        if min == 0 {
            return Err(BoundsError::NoMinimum);
        }
        if min > max {
            return Err(BoundsError::Crossed { min, max });
        }
        Ok(Bounds { min, max })
    }

    /// Returns the smallest count.
    pub fn min(self) -> u32 {
        self.min
    }

    /// Returns the largest count.
    pub fn max(self) -> u32 {
        self.max
    }

    /// Draws a count into the bounds.
    pub fn clamp(self, count: u32) -> u32 {
        count.clamp(self.min, self.max)
    }
}

/// The load at which `max` backends are wanted: a share, `0.0 < target <= 1.0`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct TargetLoad(f64);

impl TargetLoad {
    /// The whole of what is measured.
    pub const FULL: TargetLoad = TargetLoad(1.0);

    /// Returns the target of that share, or nothing where it is outside `0.0 < share <= 1.0`.
    pub fn new(share: f64) -> Option<Self> {
        (share > 0.0 && share <= 1.0).then_some(TargetLoad(share))
    }

    /// Returns the target as a share.
    pub fn share(self) -> f64 {
        self.0
    }
}

/// The parameters of the law.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Law {
    /// The smallest and the largest count.
    pub bounds: Bounds,
    /// The load at which the largest count is wanted.
    pub target: TargetLoad,
    /// How long a higher demand has to last.
    pub up_window: Duration,
    /// How long a lower demand has to last.
    pub down_window: Duration,
    /// How often the load is sampled.
    pub interval: Duration,
}

impl Law {
    /// Returns the law with its defaults: the whole host as target, 3 s up, 30 s down, a sample each second.
    pub fn new(bounds: Bounds) -> Self {
        Law {
            bounds,
            target: TargetLoad::FULL,
            up_window: Duration::from_secs(3),
            down_window: Duration::from_secs(30),
            interval: Duration::from_secs(1),
        }
    }

    /// Returns the time between two samples after which the windows start afresh: the machine slept, or the load could
    /// not be read, and what was seen before says nothing about the time between.
    pub fn gap(&self) -> Duration {
        self.interval.saturating_mul(GAP_INTERVALS)
    }

    /// Returns the demand in backends, not yet rounded or bounded.
    pub fn demand(&self, load: f64) -> f64 {
        f64::from(self.bounds.max) * load / self.target.0
    }

    /// Returns the counts between which nothing changes under that demand: `up <= down`, both in bounds.
    fn band(&self, demand: f64) -> (u32, u32) {
        (self.round_up(demand - RISE_MARGIN), self.round_up(demand + FALL_MARGIN))
    }

    fn round_up(&self, demand: f64) -> u32 {
        // The conversion saturates, and takes what is not a number for zero.
        self.bounds.clamp(demand.ceil() as u32)
    }
}

/// What the law remembers: the samples of its longer window.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Since when samples have come without a gap.
    unbroken_since: Option<Timestamp>,
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Timestamp,
    up: u32,
    down: u32,
}

impl Memory {
    fn observe(&mut self, law: &Law, sample: Sample) {
        if self.samples.back().is_some_and(|last| sample.at.since(last.at) > law.gap()) {
            *self = Memory::default();
        }
        self.unbroken_since.get_or_insert(sample.at);
        self.samples.push_back(sample);
        let oldest = sample.at - law.up_window.max(law.down_window);
        while self.samples.front().is_some_and(|sample| sample.at < oldest) {
            self.samples.pop_front();
        }
    }

    /// Returns the samples of the last `window`, or how much of the window has been seen where that is not all.
    fn window(&self, window: Duration, now: Timestamp) -> Result<impl Iterator<Item = &Sample>, Duration> {
        let seen = self.unbroken_since.map_or(Duration::ZERO, |since| now.since(since));
        if seen < window { Err(seen) } else { Ok(self.samples.iter().filter(move |sample| sample.at >= now - window)) }
    }
}

/// What the law says to one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The load that was measured, as a share.
    pub load: f64,
    /// The demand in backends, not yet rounded or bounded.
    pub demand: f64,
    /// The count that stands.
    pub current: u32,
    /// The count that is wanted; `current` where nothing changes.
    pub target: u32,
    /// Why.
    pub reason: String,
}

/// Decides how many backends are wanted.
///
/// `load` is a share, 0.0..=1.0, of whatever is measured. `current` is the count that was decided before: backends that
/// are ready, starting, or due as replacements. A backend that died is no fall of demand, and capacity that is under
/// way is not asked for twice.
pub fn decide(law: &Law, memory: &mut Memory, load: f64, current: u32, now: Timestamp) -> Proposal {
    if !load.is_finite() {
        let reason = format!("the load is not a number: {current} stay");
        return Proposal { load: 0.0, demand: 0.0, current, target: law.bounds.clamp(current), reason };
    }
    let demand = law.demand(load);
    let (up, down) = law.band(demand);
    memory.observe(law, Sample { at: now, up, down });

    let (target, why) = if current < law.bounds.min {
        (law.bounds.min, "below the minimum".into())
    } else if current > law.bounds.max {
        (law.bounds.max, "above the maximum".into())
    } else if up > current {
        match memory.window(law.up_window, now) {
            Ok(samples) => {
                let lowest = samples.map(|sample| sample.up).min().unwrap_or(current);
                (lowest.max(current), format!("at least {lowest} wanted for {:?}", law.up_window))
            }
            Err(seen) => (current, format!("{up} wanted, {} of {:?} seen", secs(seen), law.up_window)),
        }
    } else if down < current {
        match memory.window(law.down_window, now) {
            Ok(samples) => {
                let highest = samples.map(|sample| sample.down).max().unwrap_or(current);
                (highest.min(current), format!("at most {highest} wanted for {:?}", law.down_window))
            }
            Err(seen) => (current, format!("{down} wanted, {} of {:?} seen", secs(seen), law.down_window)),
        }
    } else {
        (current, format!("{up} to {down} are right"))
    };
    let step = if target == current { format!("{current} stay") } else { format!("{current} -> {target}") };
    let reason =
        format!("load {:.1} % of {:.0} %: demand {demand:.2}, {why}: {step}", load * 100.0, law.target.0 * 100.0);
    Proposal { load, demand, current, target, reason }
}

/// Writes a duration in tenths of a second.
fn secs(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}
