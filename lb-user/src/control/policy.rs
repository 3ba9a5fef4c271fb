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

/// The smallest and the largest count of backends: `min <= max`, and `1 <= max`. Where the smallest is zero, the last one
/// sleeps while nobody comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    min: u32,
    max: u32,
}

/// Why two numbers are no [`Bounds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundsError {
    /// The largest count is zero: nobody would answer.
    #[error("the maximum has to be at least 1")]
    NoMaximum,
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
    /// Where `max` is zero, or less than `min`.
    pub fn new(min: u32, max: u32) -> Result<Self, BoundsError> {
        if max == 0 {
            return Err(BoundsError::NoMaximum);
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

    /// Returns the bounds of those that are awake: there is one at least.
    #[must_use]
    pub fn awake(self) -> Self {
        Bounds { min: self.min.max(1), max: self.max }
    }

    /// Draws a count into the bounds.
    pub fn clamp(self, count: u32) -> u32 {
        count.clamp(self.min, self.max)
    }
}

/// The load at which `max` backends are wanted: a share, `0.0 < target <= 1.0`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct TargetLoad(f64);

/// A number that is no [`TargetLoad`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a target has to be above 0 and at most 1")]
pub struct NotATarget;

impl From<TargetLoad> for f64 {
    fn from(target: TargetLoad) -> f64 {
        target.0
    }
}

impl TryFrom<f64> for TargetLoad {
    type Error = NotATarget;

    fn try_from(share: f64) -> Result<Self, NotATarget> {
        Self::new(share).ok_or(NotATarget)
    }
}

impl TargetLoad {
    /// The whole of what is measured.
    pub const FULL: TargetLoad = TargetLoad(1.0);
    /// Seven parts of ten.
    pub const SEVENTY: TargetLoad = TargetLoad(0.7);

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
    } else if current == law.bounds.max && demand - RISE_MARGIN > f64::from(current) {
        (current, format!("at max: {:.0} wanted, and the maximum is {current}", (demand - RISE_MARGIN).ceil()))
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

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn law(min: u32, max: u32) -> Law {
        Law::new(Bounds::new(min, max).unwrap())
    }

    /// Runs the law over loads, one a second, and returns the counts that it wants.
    fn run(law: &Law, from: u32, loads: impl IntoIterator<Item = f64>) -> Vec<u32> {
        let mut memory = Memory::default();
        let mut current = from;
        (0..)
            .zip(loads)
            .map(|(second, load)| {
                let now = Timestamp::new(Duration::from_secs(second));
                current = decide(law, &mut memory, load, current, now).target;
                current
            })
            .collect()
    }

    fn reversals(counts: &[u32]) -> usize {
        let steps: Vec<bool> =
            counts.windows(2).filter(|pair| pair[0] != pair[1]).map(|pair| pair[0] < pair[1]).collect();
        steps.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    #[test]
    fn ten_percent_of_the_host_are_one_of_ten() {
        let law = law(1, 10);
        let rows = [(0.0, 1), (0.05, 1), (0.11, 1), (0.15, 2), (0.37, 4), (0.5, 5), (0.95, 10), (1.0, 10)];
        for (load, expected) in rows {
            assert_eq!(run(&law, 1, vec![load; 10]).last(), Some(&expected), "load {load}");
        }
    }

    #[test]
    fn the_target_is_where_the_most_are_wanted() {
        let half = Law { target: TargetLoad::new(0.5).unwrap(), ..law(1, 10) };

        assert_eq!(run(&half, 1, vec![0.5; 10]).last(), Some(&10));
        assert_eq!(run(&half, 1, vec![0.25; 10]).last(), Some(&5));
    }

    #[test]
    fn a_rise_waits_three_seconds_and_a_fall_thirty() {
        let counts = run(&law(2, 10), 2, std::iter::repeat_n(0.5, 10).chain(std::iter::repeat_n(0.0, 40)));

        assert_eq!(counts[..3], [2, 2, 2]);
        assert_eq!(counts[3..10], [5; 7]);
        assert_eq!(counts[10..40], [5; 30]);
        assert_eq!(counts[40..], [2; 10]);
    }

    #[test]
    fn a_peak_shorter_than_its_window_changes_nothing() {
        let mut loads = vec![0.15; 20];
        loads[5..8].fill(1.0);

        assert_eq!(run(&law(1, 10), 2, loads), [2; 20]);
    }

    #[test]
    fn a_pause_shorter_than_its_window_changes_nothing() {
        let mut loads = vec![0.45; 60];
        loads[10..39].fill(0.0);

        assert!(run(&law(1, 10), 5, loads).iter().all(|&count| count == 5));
    }

    #[test]
    fn after_a_gap_the_windows_begin_anew() {
        let law = law(1, 10);
        let mut memory = Memory::default();
        let mut decide_at = |second, load| {
            let now = Timestamp::new(Duration::from_secs(second));
            decide(&law, &mut memory, load, 1, now).target
        };
        assert_eq!((decide_at(0, 1.0), decide_at(1, 1.0), decide_at(2, 1.0)), (1, 1, 1));

        // The machine slept; what was before says nothing.
        assert_eq!((decide_at(600, 1.0), decide_at(602, 1.0)), (1, 1));
        assert_eq!(decide_at(603, 1.0), 10);
    }

    #[test]
    fn every_decision_says_why() {
        let law = law(1, 10);
        let mut memory = Memory::default();
        let reason = |memory: &mut Memory, current, load| decide(&law, memory, load, current, Timestamp::ZERO).reason;

        assert_eq!(reason(&mut memory, 4, 0.37), "load 37.0 % of 100 %: demand 3.70, 4 to 4 are right: 4 stay");
        assert_eq!(
            reason(&mut memory, 2, 0.37),
            "load 37.0 % of 100 %: demand 3.70, 4 wanted, 0.0s of 3s seen: 2 stay"
        );
        assert_eq!(reason(&mut memory, 2, f64::NAN), "the load is not a number: 2 stay");
        assert_eq!(reason(&mut memory, 12, 0.37), "load 37.0 % of 100 %: demand 3.70, above the maximum: 12 -> 10");
    }

    #[test]
    fn bounds_are_in_order() {
        assert_eq!(Bounds::new(0, 0), Err(BoundsError::NoMaximum));
        assert_eq!(Bounds::new(0, 3).map(Bounds::awake), Bounds::new(1, 3));
        assert_eq!(Bounds::new(4, 3), Err(BoundsError::Crossed { min: 4, max: 3 }));
        assert!(
            TargetLoad::new(0.0).is_none() && TargetLoad::new(1.1).is_none() && TargetLoad::new(f64::NAN).is_none()
        );
    }

    proptest! {
        #[test]
        fn no_load_leads_out_of_the_bounds(min in 1..20_u32, more in 0..30_u32, from in 0..80_u32, loads in vec(any::<f64>(), 1..100)) {
            let law = law(min, min + more);

            prop_assert!(run(&law, from, loads).iter().all(|count| (min..=min + more).contains(count)));
        }

        #[test]
        fn a_constant_load_leads_to_one_step_at_most(load in 0.0..1.0_f64, min in 1..5_u32, more in 0..20_u32, from in 1..25_u32) {
            let law = law(min, min + more);
            let from = law.bounds.clamp(from);

            let counts = run(&law, from, vec![load; 200]);

            let steps = std::iter::once(&from).chain(&counts).zip(&counts).filter(|(before, after)| before != after).count();
            prop_assert!(steps <= 1, "{:?}", counts);
        }

        #[test]
        fn a_rising_load_never_lowers_the_count(mut loads in vec(0.0..1.0_f64, 1..200)) {
            loads.sort_by(f64::total_cmp);

            prop_assert!(run(&law(1, 10), 1, loads).is_sorted());
        }

        #[test]
        fn noise_within_the_band_never_goes_round(base in 0.05..0.95_f64, noise in vec(-0.0174..0.0174_f64, 300)) {
            let counts = run(&law(1, 10), 1, noise.iter().map(|noise| base + noise));

            prop_assert_eq!(reversals(&counts), 0, "{:?}", counts);
        }

        #[test]
        fn the_memory_stays_small(loads in vec(0.0..1.0_f64, 1000)) {
            let law = law(1, 10);
            let mut memory = Memory::default();
            for (second, load) in (0..).zip(loads) {
                decide(&law, &mut memory, load, 5, Timestamp::new(Duration::from_secs(second)));
            }

            prop_assert!(memory.samples.len() <= 31);
        }
    }
}
