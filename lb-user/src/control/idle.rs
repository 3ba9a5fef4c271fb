//! When nobody needs a service: no connection has begun for the whole down window, and none is under way.
//!
//! The laws of demand know one backend at least. What CPU a container uses by itself, or for its health checks, would keep it
//! awake for ever, so here only clients count.

use std::time::Duration;

use super::history::DecisionKind;
use super::measures::Measures;
use super::settings::Scaling;
use super::time::Timestamp;
use super::{Controller, Phase};

/// When somebody was there last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Idle {
    busy: Timestamp,
    looked: Timestamp,
}

impl Idle {
    /// Notes that somebody is there, or that it cannot be said that nobody is.
    pub fn somebody_came(&mut self, now: Timestamp) {
        self.busy = self.busy.max(now);
    }

    /// Notes how many connections have begun, if that is known, and returns for how long nobody has come. After a gap,
    /// nothing is known about the time between.
    fn look(&mut self, arrivals: Option<f64>, gap: Duration, now: Timestamp) -> Duration {
        let before = std::mem::replace(&mut self.looked, now);
        if arrivals != Some(0.0) || now.since(before) > gap {
            self.busy = now;
        }
        now.since(self.busy)
    }
}

impl Controller {
    /// Lets the service fall asleep where nobody has come for long enough.
    pub(super) fn doze_off(&mut self, measures: &Measures, now: Timestamp) {
        let (window, gap) = match self.settings.scaling {
            Scaling::Auto(law) => (law.down_window, law.gap()),
            Scaling::Demand(law) => (law.down_window, law.gap()),
            Scaling::Fixed => return,
        };
        let quiet = self.idle.look(measures.arrivals, gap, now);
        if measures.arrivals.is_some_and(|arrivals| arrivals > 0.0) {
            self.wake_up("clients have come".into(), now);
        }
        let may_sleep = self.bounds().is_some_and(|bounds| bounds.min() == 0);
        let is_seen = self.demand.is_swept(now);
        // An operator's count stands, and where fewer are not to be wanted, none is fewer than one.
        let is_let = self.orders.gate(1, 0) == 0;
        if self.phase != Phase::Running || !may_sleep || self.wish != 1 || !is_seen || quiet < window || !is_let {
            return;
        }
        self.wish = 0;
        self.standing = Some(ASLEEP.into());
        let reason = format!("nobody has come for {window:?}: the last one is frozen until somebody does");
        self.record(DecisionKind::ScaleDown, 1, reason, now);
    }

    /// Lets a service wake up that sleeps.
    pub(super) fn wake_up(&mut self, reason: String, now: Timestamp) {
        self.idle.somebody_came(now);
        if self.is_asleep() {
            self.wish = 1;
            self.standing = None;
            self.record(DecisionKind::ScaleUp, 0, reason, now);
        }
    }
}

/// What a service is about that sleeps, for people.
pub(super) const ASLEEP: &str = "asleep until somebody comes";

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn only_a_look_that_shows_nobody_tells_that_nobody_comes() {
        let mut idle = Idle::default();
        let quiet: Vec<u64> = [Some(0.0), Some(0.0), Some(1.0), Some(0.0), None, Some(0.0)]
            .into_iter()
            .zip(1..)
            .map(|(arrivals, second)| idle.look(arrivals, GAP, at(second)).as_secs())
            .collect();

        assert_eq!(quiet, [1, 2, 0, 1, 0, 1]);
        assert_eq!(idle.look(Some(0.0), GAP, at(100)).as_secs(), 0, "the machine slept");
        idle.somebody_came(at(101));
        assert_eq!(idle.look(Some(0.0), GAP, at(103)).as_secs(), 2);
    }
}
