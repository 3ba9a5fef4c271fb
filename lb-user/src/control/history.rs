//! The decisions of the controller with their reasons, the last of them kept for `status`.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::load::CpuLoad;
use super::time::Timestamp;

/// How many decisions are remembered.
pub const CAPACITY: usize = 64;

/// One thing that the controller decided or took note of, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// When; where it was repeated, the last time.
    pub at: Timestamp,
    /// What kind of decision.
    pub kind: DecisionKind,
    /// How many backends were wanted before.
    pub from: u32,
    /// How many backends are wanted since.
    pub to: u32,
    /// The load that was known then.
    pub load: Option<CpuLoad>,
    /// Why, for people.
    pub reason: String,
    /// How many times in a row the same was decided for the same reason.
    pub times: u32,
}

/// What kind of thing was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// Nothing changes; see [`ControlReport::standing`](super::report::ControlReport::standing).
    Hold,
    /// More backends are wanted.
    ScaleUp,
    /// Fewer backends are wanted.
    ScaleDown,
    /// Backends of an earlier life were taken over.
    Adopted,
    /// Containers are started.
    Start,
    /// A container could not be started, or did not become ready in time.
    StartFailed,
    /// A container that others have started is not served.
    LeftOut,
    /// A container ended by itself or was taken away.
    BackendDied,
    /// A backend fails its checks and gets no new connections.
    Unhealthy,
    /// A backend fails its checks and is kept, because it is the last one.
    KeptLast,
    /// A backend passes its checks again.
    Recovered,
    /// A backend is taken out of rotation, to be stopped when its flows are gone.
    Drain,
    /// A draining backend is needed again.
    DrainCancelled,
    /// A backend is stopped although flows are left.
    DrainTimedOut,
    /// Containers of former settings are replaced.
    Rollout,
    /// They are not replaced any further.
    RolloutAborted,
    /// A container could not be stopped or removed.
    StopFailed,
    /// A container could not be frozen, or thawed.
    FreezeFailed,
    /// A container was thawed because somebody has sent it a signal.
    Signalled,
    /// The kernel's maps could not be written.
    PublishFailed,
    /// More are wanted than the host has processors for.
    HostSaturated,
    /// A metric is missing for so long that fewer are not thought of.
    MetricMissing,
    /// The load cannot be read.
    LoadUnavailable,
    /// The provider cannot be reached.
    ProviderLost,
    /// The provider can be reached again.
    ProviderBack,
    /// More are wanted than the largest count.
    AtMax,
    /// An operator has asked for a count of his own.
    Manual,
    /// The law decides again, after a count by hand.
    ManualEnded,
    /// The law is not followed, in one direction or both.
    Paused,
    /// The law is followed again.
    Resumed,
    /// Settings have changed.
    Reconfigured,
    /// The agent was asked to end.
    Stopping,
}

impl fmt::Display for DecisionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecisionKind::Hold => "hold",
            DecisionKind::ScaleUp => "scale up",
            DecisionKind::ScaleDown => "scale down",
            DecisionKind::Adopted => "adopted",
            DecisionKind::Start => "start",
            DecisionKind::StartFailed => "start failed",
            DecisionKind::LeftOut => "left out",
            DecisionKind::BackendDied => "backend died",
            DecisionKind::Unhealthy => "unhealthy",
            DecisionKind::KeptLast => "kept as the last",
            DecisionKind::Recovered => "recovered",
            DecisionKind::Drain => "drain",
            DecisionKind::DrainCancelled => "drain cancelled",
            DecisionKind::DrainTimedOut => "drain timed out",
            DecisionKind::Rollout => "rollout",
            DecisionKind::RolloutAborted => "rollout aborted",
            DecisionKind::StopFailed => "stop failed",
            DecisionKind::FreezeFailed => "freeze failed",
            DecisionKind::Signalled => "signalled",
            DecisionKind::PublishFailed => "publish failed",
            DecisionKind::HostSaturated => "host saturated",
            DecisionKind::MetricMissing => "metric missing",
            DecisionKind::LoadUnavailable => "load unavailable",
            DecisionKind::ProviderLost => "provider lost",
            DecisionKind::ProviderBack => "provider back",
            DecisionKind::AtMax => "at max",
            DecisionKind::Manual => "manual count",
            DecisionKind::ManualEnded => "manual count ended",
            DecisionKind::Paused => "paused",
            DecisionKind::Resumed => "resumed",
            DecisionKind::Reconfigured => "reconfigured",
            DecisionKind::Stopping => "stopping",
        })
    }
}

/// The last [`CAPACITY`] decisions, oldest first. Repetitions are counted, so that a fault that comes back every few
/// seconds does not push the rest out.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    decisions: VecDeque<Decision>,
}

impl History {
    /// Creates a history that begins with what a former agent decided.
    pub fn new(former: Vec<Decision>) -> Self {
        let mut history = Self::default();
        former.into_iter().for_each(|decision| history.record(decision));
        history
    }

    /// Adds a decision, or counts it where it repeats the last one.
    pub fn record(&mut self, decision: Decision) {
        if let Some(last) = self.decisions.back_mut()
            && (last.kind, last.from, last.to) == (decision.kind, decision.from, decision.to)
            && last.reason == decision.reason
        {
            let times = last.times.saturating_add(decision.times);
            *last = Decision { times, ..decision };
            return;
        }
        if self.decisions.len() == CAPACITY {
            self.decisions.pop_front();
        }
        self.decisions.push_back(decision);
    }

    /// Returns the decisions, oldest first.
    pub fn to_vec(&self) -> Vec<Decision> {
        self.decisions.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn decision(at_ms: u64, reason: &str) -> Decision {
        Decision {
            at: Timestamp::from_millis(at_ms),
            kind: DecisionKind::PublishFailed,
            from: 1,
            to: 1,
            load: None,
            reason: reason.into(),
            times: 1,
        }
    }

    #[test]
    fn the_ring_keeps_the_last_ones() {
        let mut history = History::default();

        for n in 0..1000 {
            history.record(decision(n, &n.to_string()));
        }

        let kept = history.to_vec();
        assert_eq!(kept.len(), CAPACITY);
        assert_eq!(kept[0].reason, "936");
        assert_eq!(kept[CAPACITY - 1].reason, "999");
    }

    #[test]
    fn repetitions_are_counted_and_take_one_place() {
        let mut history = History::default();

        history.record(decision(1, "a"));
        history.record(decision(2, "b"));
        history.record(decision(3, "b"));
        history.record(decision(4, "a"));

        let kept: Vec<(Duration, String, u32)> =
            history.to_vec().into_iter().map(|d| (d.at.elapsed(), d.reason, d.times)).collect();
        let ms = Duration::from_millis;
        assert_eq!(kept, [(ms(1), "a".into(), 1), (ms(3), "b".into(), 2), (ms(4), "a".into(), 1)]);
    }
}
