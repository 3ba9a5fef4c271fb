//! The rollout: containers of former settings, or of a former image, are replaced without anybody noticing.
//!
//! ```text
//! asked for, and listed ─▶ start one more than wanted ─▶ ready, and confirmed to have its slots ─▶ drain an old one ─▶ … ─▶ finished
//!                     │ it cannot be started, is not ready in time, dies, or fails its checks for too long
//!                     ▼
//!                  aborted: those of before stay, those that were too many go, and why is told until the next attempt
//! ```
//!
//! Beside it everything goes on: the law may want more or fewer, and containers may die. There are as many more than wanted,
//! even than the most, as are replaced at a time.

use super::backend::{Backend, DrainCause, State};
use super::event::ContainerId;
use super::history::DecisionKind;
use super::report::RolloutReport;
use super::settings::OnChange;
use super::time::Timestamp;
use super::{Controller, Phase};

/// A rollout under way, or how the last one failed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Rollout {
    /// There is none.
    #[default]
    None,
    /// One was asked for, and the next list tells whether there is anything to replace.
    Asked {
        since: Timestamp,
        /// How many are to be replaced at a time.
        parallel: u32,
    },
    /// One is under way.
    Active(Active),
    /// The last one was given up.
    Aborted {
        /// Why, for people.
        why: String,
    },
}

/// How far a rollout has come.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Active {
    since: Timestamp,
    /// How many are replaced at a time.
    parallel: u32,
    /// How many old ones have gone.
    replaced: u32,
}

impl Controller {
    fn old(&self) -> impl Iterator<Item = &Backend> {
        self.backends.values().filter(|backend| backend.is_active() && backend.outdated)
    }

    pub(super) fn is_rolling_out(&self) -> bool {
        matches!(self.rollout, Rollout::Active(_))
    }

    /// Returns how many backends there are to be at this moment: those wanted, and as many more as are being replaced.
    pub(super) fn goal(&self) -> u32 {
        match &self.rollout {
            Rollout::Active(active) if self.phase == Phase::Running => {
                self.standing_wish() + active.parallel.min(self.old().count() as u32)
            }
            Rollout::Active(_) | Rollout::None | Rollout::Asked { .. } | Rollout::Aborted { .. } => {
                self.standing_wish()
            }
        }
    }

    /// Returns whether containers of today's settings have shown not to be fit to replace the others.
    pub(super) fn distrusts_new(&self) -> bool {
        matches!(self.rollout, Rollout::Aborted { .. })
    }

    /// Begins to replace what is outdated, `parallel` at a time; where nothing is known to be, once all of them are listed.
    pub(super) fn rollout_requested(&mut self, parallel: u32, now: Timestamp) {
        let old = self.old().count();
        let parallel = parallel.max(1);
        let can_replace = self.phase != Phase::Stopping && self.is_auto();
        let reason = match &mut self.rollout {
            _ if !can_replace => "there is nothing that could be replaced".to_owned(),
            Rollout::Active(active) => {
                active.parallel = parallel;
                format!("it is under way, {parallel} at a time")
            }
            Rollout::None | Rollout::Asked { .. } | Rollout::Aborted { .. } if old == 0 => {
                self.rollout = Rollout::Asked { since: now, parallel };
                "asked for: whether any is of former settings or a former image is looked up".to_owned()
            }
            Rollout::None | Rollout::Asked { .. } | Rollout::Aborted { .. } => {
                self.rollout = Rollout::Active(Active { since: now, parallel, replaced: 0 });
                format!("{old} of former settings or a former image are replaced, {parallel} at a time")
            }
        };
        self.remark(DecisionKind::Rollout, reason, now);
    }

    /// Goes on with what a former agent was at, by whatever is of former settings today.
    pub(super) fn adopt_rollout(&mut self, now: Timestamp) {
        let Some(RolloutReport { since, parallel, of, .. }) = self.settings.adopted_rollout.take() else { return };
        // Somebody has asked for one of this agent before it knew what there is: that one begins by itself.
        if matches!(self.rollout, Rollout::Asked { .. }) {
            return;
        }
        if of == 0 {
            self.rollout = Rollout::Asked { since, parallel };
            return;
        }
        // Who was on the way out is counted when it goes.
        let replaced = of.saturating_sub(self.old().count() as u32);
        self.rollout = Rollout::Active(Active { since, parallel, replaced });
        let reason =
            format!("what a former agent was at goes on: {replaced} of {of} are replaced, {parallel} at a time");
        self.remark(DecisionKind::Rollout, reason, now);
    }

    /// Begins what was asked for, as all containers are listed by now.
    pub(super) fn rollout_listed(&mut self, now: Timestamp) {
        let Rollout::Asked { parallel, .. } = self.rollout else { return };
        if self.old().next().is_some() {
            self.rollout_requested(parallel, now);
        } else {
            self.rollout = Rollout::None;
            self.remark(DecisionKind::Rollout, "every container is of today's image and settings".into(), now);
        }
    }

    /// Gives the rollout up because somebody asks for it.
    pub(super) fn rollout_abort_requested(&mut self, now: Timestamp) {
        match self.rollout {
            Rollout::Active(_) => self.abort_rollout("it was asked for", now),
            Rollout::Asked { .. } => {
                self.rollout = Rollout::None;
                self.remark(DecisionKind::RolloutAborted, "it was asked for, and had not begun".into(), now);
            }
            Rollout::None if self.settings.adopted_rollout.take().is_some() => {
                let reason = "it was asked for; what a former agent has not replaced stays in service";
                self.remark(DecisionKind::RolloutAborted, reason.into(), now);
            }
            Rollout::None | Rollout::Aborted { .. } => {
                self.remark(DecisionKind::Rollout, "none is under way that could be aborted".into(), now);
            }
        }
    }

    /// Takes note that a container of today's settings is not fit.
    pub(super) fn new_one_failed(&mut self, why: &str, now: Timestamp) {
        if self.is_rolling_out() {
            self.abort_rollout(why, now);
        }
    }

    /// Leaves the old ones in service: those on their way out may return, and of the others go those that are too many.
    fn abort_rollout(&mut self, why: &str, now: Timestamp) {
        let Rollout::Active(Active { replaced, .. }) = &self.rollout else { return };
        let left = self.old().count();
        let reason = format!("{why}: {replaced} are replaced, and {left} of before stay in service");
        self.rollout = Rollout::Aborted { why: why.to_owned() };
        self.remark(DecisionKind::RolloutAborted, reason, now);
        for backend in self.backends.values_mut() {
            if let State::Draining(drain) = &mut backend.state
                && drain.cause == DrainCause::Replaced
            {
                drain.cause = DrainCause::Excess;
            }
        }
    }

    /// Takes note that settings have changed: another attempt may well succeed.
    pub(super) fn forget_aborted_rollout(&mut self) {
        if self.distrusts_new() {
            self.rollout = Rollout::None;
        }
    }

    /// Brings a rollout one step further: drains old ones whose place is taken, and takes note when there are none left. Begins
    /// one where that is to happen by itself.
    pub(super) fn roll_out(&mut self, now: Timestamp) {
        if self.phase != Phase::Running || self.provider_error.is_some() {
            return;
        }
        if self.old().next().is_none() {
            self.forget_aborted_rollout();
        } else if self.rollout == Rollout::None && self.settings.on_change == OnChange::Rollout {
            self.rollout_requested(1, now);
        }
        if !self.is_rolling_out() {
            return;
        }
        while let Some(id) = self.replaceable() {
            let Some(backend) = self.backends.get_mut(&id) else { return };
            backend.begin_drain(DrainCause::Replaced, now);
            self.kept_last.remove(&id);
            let reason = format!("{} is replaced", backend.name);
            let Rollout::Active(active) = &mut self.rollout else { return };
            active.replaced += 1;
            let done = active.replaced;
            let all = done as usize + self.old().count();
            self.remark(DecisionKind::Drain, format!("{reason}: {done} of {all}"), now);
        }
        if let Rollout::Active(Active { since, replaced, .. }) = self.rollout
            && self.old().next().is_none()
        {
            self.rollout = Rollout::None;
            let took = now.since(since).as_secs();
            self.remark(DecisionKind::Rollout, format!("finished: {replaced} were replaced in {took} s"), now);
        }
    }

    /// Returns the old one that is the next to go, if there are enough without it: those that serve no one first, then those
    /// with the fewest connections, and of those the newest. A new one counts once the datapath has confirmed its slots.
    fn replaceable(&self) -> Option<ContainerId> {
        let serves = |backend: &&Backend| {
            backend.state == State::Ready && !backend.outdated && self.publisher.has_confirmed(&backend.id)
        };
        let (new, old) = (self.backends.values().filter(serves).count(), self.old().count());
        let order = |backend: &&Backend| {
            let is_ready = backend.state == State::Ready;
            (is_ready, backend.flows, std::cmp::Reverse((backend.created, backend.ordinal)))
        };
        let next = self.old().min_by_key(order)?;
        (new + old > self.standing_wish() as usize).then(|| next.id.clone())
    }

    /// Returns how far the rollout is.
    pub(super) fn rollout_report(&self) -> Option<RolloutReport> {
        match self.rollout {
            Rollout::None => self.settings.adopted_rollout,
            Rollout::Asked { since, parallel } => Some(RolloutReport { since, parallel, replaced: 0, of: 0 }),
            Rollout::Active(Active { since, parallel, replaced }) => {
                Some(RolloutReport { since, parallel, replaced, of: replaced + self.old().count() as u32 })
            }
            Rollout::Aborted { .. } => None,
        }
    }

    /// Says why the last one was given up, as long as that matters.
    pub(super) fn rollout_problem(&self) -> Option<String> {
        let Rollout::Aborted { why } = &self.rollout else { return None };
        Some(format!("rollout aborted: {why}; `lb-user rollout` tries again"))
    }
}
