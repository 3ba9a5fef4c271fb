//! Containers that others start: who of them is served, who is left out and why. None is ever started or stopped here.

use super::backend::{Backend, DrainCause, State};
use super::event::{ContainerId, Sighting};
use super::history::DecisionKind;
use super::time::Timestamp;
use super::{Controller, Phase};

/// A container that is not served.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LeftOut {
    sighting: Sighting,
    /// Why, for people.
    why: String,
}

impl LeftOut {
    /// Returns whether nothing is wrong with it but that there are enough already.
    fn waits(&self) -> bool {
        self.sighting.terms.unfit.is_none()
    }
}

impl Controller {
    /// Returns how many backends are taken that others run.
    pub(super) fn taken(&self) -> usize {
        self.backends.values().filter(|backend| !backend.is_unlisted() && !backend.is_ending()).count()
    }

    fn is_full(&self) -> bool {
        self.settings.most.is_some_and(|most| self.taken() >= most as usize)
    }

    /// Takes note of a container that cannot be served, or need not be; returns whether it is one. What it has already, it
    /// keeps until it is drained.
    pub(super) fn leaves_out(&mut self, sighting: &Sighting, now: Timestamp) -> bool {
        let id = &sighting.id;
        let is_further = self.backends.get(id).is_none_or(Backend::is_unlisted);
        let why = match &sighting.terms.unfit {
            Some(unfit) if sighting.running => unfit.clone(),
            None if sighting.running && is_further && self.is_full() => {
                format!("there are {} already, and no more are taken: raise --max", self.taken())
            }
            Some(_) | None => {
                self.left_out.remove(id);
                return false;
            }
        };
        // It may have a slot of a former agent.
        if let Some(address) = self.settings.adopted_ready.remove(id) {
            self.settings.adopted_leaving.insert(id.clone(), address);
        }
        if let Some(backend) = self.backends.get_mut(id).filter(|backend| !backend.is_unlisted()) {
            backend.unlist(now);
            self.kept_last.remove(id);
        }
        let left = LeftOut { sighting: sighting.clone(), why };
        let (reason, former) = (format!("{}: {}", sighting.name, left.why), self.left_out.get(id));
        if former.is_none_or(|former| former.why != left.why) {
            self.remark(DecisionKind::LeftOut, reason, now);
        }
        self.left_out.insert(id.clone(), left);
        true
    }

    /// Takes those that wait, the oldest first, where there is room again.
    pub(super) fn take_waiting(&mut self, now: Timestamp) {
        if self.phase != Phase::Running || self.is_full() {
            return;
        }
        let mut waiting: Vec<Sighting> =
            self.left_out.values().filter(|left| left.waits()).map(|left| left.sighting.clone()).collect();
        waiting.sort_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)));
        for sighting in waiting {
            if self.is_full() {
                return;
            }
            self.seen(sighting, now);
        }
    }

    /// Takes note that somebody has asked a container to end.
    pub(super) fn ends(&mut self, id: &ContainerId, now: Timestamp) {
        self.left_out.remove(id);
        let Some(backend) = self.backends.get_mut(id).filter(|backend| backend.is_active()) else { return };
        if !std::mem::replace(&mut backend.ending, true) {
            let reason = format!("{} is asked to end from outside", backend.name);
            self.remark(DecisionKind::Drain, reason, now);
        }
    }

    /// Takes those out of rotation that were asked to end. The last one that is ready stays, as far as it can: it may still
    /// answer, and nobody else would.
    pub(super) fn judge_ending(&mut self, now: Timestamp) {
        let ending: Vec<ContainerId> = self
            .backends
            .values()
            .filter(|backend| backend.ending && backend.is_active())
            .map(|backend| backend.id.clone())
            .collect();
        for id in ending {
            let is_last = self.ready() <= 1;
            let Some(backend) = self.backends.get_mut(&id) else { continue };
            if backend.state != State::Ready || !is_last {
                backend.begin_drain(DrainCause::Ending, now);
                self.kept_last.remove(&id);
            }
        }
    }

    /// Says who is left out, one sentence each.
    pub(super) fn left_out_told(&self) -> impl Iterator<Item = String> {
        self.left_out.values().map(|left| format!("container {} is left out: {}", left.sighting.name, left.why))
    }
}
