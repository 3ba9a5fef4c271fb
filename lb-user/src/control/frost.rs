//! Containers that are frozen: the reserve, and whoever is left of a service that nobody asks for anything.
//!
//! ```text
//!            in a slot: whoever comes is told      no flows since       answered
//! Awake ────────────────────────────▶ Dozing ───────────────▶ Freezing ─────────▶ Frozen
//!   ▲  └──────────────────── of the reserve, which has no flows ──▲                  │
//!   └───────────────── Thawing ◀──── somebody comes, it is needed, or it has to go ◀─┘
//! ```
//!
//! A backend in a slot ([`BackendState::Idle`](super::BackendState)) serves: its kernel accepts connections while it is frozen,
//! and the datapath tells of the first. So it is frozen only after a sweep that began when the datapath was telling already,
//! and that found no flow. What cannot be frozen goes on running, and is tried again; whatever leaves the service is thawed
//! before it is stopped. One that is needed and cannot be thawed counts as one that fails its checks.

use std::collections::BTreeSet;
use std::time::Duration;

use super::backend::{Backend, DrainCause, State};
use super::event::{Command, ContainerId};
use super::history::DecisionKind;
use super::retry::{Errand, Pace};
use super::time::Timestamp;
use super::{Controller, Phase};

/// How freezing is tried again.
const FREEZE_PACE: Pace = Pace { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
/// How thawing is tried again: somebody may be waiting.
const THAW_PACE: Pace = Pace { first: Duration::from_millis(20), longest: Duration::from_secs(5) };
/// The least time between a thaw and the next freeze.
const REST: Duration = Duration::from_secs(1);
/// After so long without an answer, either has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one runs after a signal was sent to it: longer than nearly any grace. What has not ended by then did not have to.
const SIGNAL_REST: Duration = Duration::from_secs(120);
/// What cannot be thawed so many times in a row is stopped as it is.
const THAW_TRIES: u32 = 4;

/// Whether a container is frozen, as far as the controller has asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frost {
    /// It runs.
    Awake,
    /// It runs, and is to be frozen when it has no flows.
    Dozing {
        /// Since when the datapath tells who comes.
        since: Option<Timestamp>,
        /// Whether a sweep that began late enough found no flows.
        clear: bool,
    },
    /// It was asked to be frozen; without an answer by then, it has failed.
    Freezing(Timestamp),
    /// It is frozen.
    Frozen,
    /// It is to be thawed.
    Thawing(Errand),
}

impl Frost {
    /// Whether its processes may stand still.
    pub fn is_cold(self) -> bool {
        match self {
            Frost::Awake | Frost::Dozing { .. } => false,
            Frost::Freezing(_) | Frost::Frozen | Frost::Thawing(_) => true,
        }
    }

    /// Whether the datapath has to tell who comes.
    pub fn is_told(self) -> bool {
        match self {
            Frost::Awake | Frost::Thawing(_) => false,
            Frost::Dozing { .. } | Frost::Freezing(_) | Frost::Frozen => true,
        }
    }

    /// Whether thawing has failed, and nobody may count on it.
    pub fn is_stuck(self) -> bool {
        matches!(self, Frost::Thawing(errand) if errand.failures() > 0)
    }

    /// Whether it has been tried for long enough to thaw it.
    pub fn is_given_up(self) -> bool {
        matches!(self, Frost::Thawing(errand) if errand.failures() >= THAW_TRIES)
    }

    /// Returns when something has to be done about it.
    pub fn due(self) -> Option<Timestamp> {
        match self {
            Frost::Awake | Frost::Dozing { .. } | Frost::Frozen => None,
            Frost::Freezing(deadline) => Some(deadline),
            Frost::Thawing(errand) => Some(errand.due()),
        }
    }
}

/// What a container is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Awake,
    /// Frozen, in its slots.
    Idle,
    /// Frozen, outside of them.
    Warm,
}

impl Backend {
    /// Brings it nearer to what is wanted; returns what is to be done.
    fn frost(&mut self, wanted: Wanted, now: Timestamp) -> Option<Command> {
        let may_freeze = self.freeze.due() <= now;
        match (self.frost, wanted) {
            (Frost::Awake, Wanted::Idle) if may_freeze => self.frost = Frost::Dozing { since: None, clear: false },
            (Frost::Awake, Wanted::Warm) | (Frost::Dozing { clear: true, .. }, Wanted::Idle) if may_freeze => {
                self.frost = Frost::Freezing(now + PATIENCE);
                self.forget_probe();
                return Some(Command::Freeze { id: self.id.clone() });
            }
            (Frost::Dozing { .. }, Wanted::Awake | Wanted::Warm) => self.frost = Frost::Awake,
            (Frost::Freezing(_) | Frost::Frozen, Wanted::Awake) => self.frost = Frost::Thawing(Errand::new(now)),
            (Frost::Freezing(deadline), Wanted::Idle | Wanted::Warm) if deadline <= now => {
                self.freeze.failed(FREEZE_PACE, now);
                self.frost = Frost::Thawing(Errand::new(now));
            }
            (
                Frost::Awake | Frost::Dozing { .. } | Frost::Freezing(_) | Frost::Frozen | Frost::Thawing(_),
                Wanted::Awake | Wanted::Idle | Wanted::Warm,
            ) => {}
        }
        match &mut self.frost {
            Frost::Thawing(errand) if errand.due() <= now => {
                errand.sent(PATIENCE, now);
                Some(Command::Thaw { id: self.id.clone() })
            }
            Frost::Awake | Frost::Dozing { .. } | Frost::Freezing(_) | Frost::Frozen | Frost::Thawing(_) => None,
        }
    }

    /// Returns when it has to be looked at for its frost's sake.
    pub fn frost_due(&self) -> Option<Timestamp> {
        let freeze =
            || matches!(self.state, State::Ready | State::Warm).then(|| self.freeze.due().max(self.runs_until));
        self.frost.due().or_else(freeze)
    }

    /// Whether it may serve again some day, as it is.
    pub fn fits_reserve(&self) -> bool {
        !self.outdated && !self.frost.is_stuck()
    }
}

impl Controller {
    /// Freezes and thaws. What has to be thawed comes first of all.
    pub(super) fn frost(&mut self, now: Timestamp) -> Vec<Command> {
        let is_idle = self.is_asleep();
        let mut commands = Vec::new();
        for backend in self.backends.values_mut() {
            let wanted = match backend.state {
                State::Ready | State::Warm if backend.runs_until > now => Wanted::Awake,
                // Not before the datapath has let go of it.
                State::Warm if !self.publisher.holds(&backend.id) => Wanted::Warm,
                State::Ready if is_idle && backend.failing_since().is_none() => Wanted::Idle,
                State::Starting
                | State::Ready
                | State::Warm
                | State::Unhealthy
                | State::Draining(_)
                | State::Stopping(_)
                | State::Dead(_) => Wanted::Awake,
            };
            // Who is called out of the reserve is on its way already.
            let wanted = if self.called.contains(&backend.id) { Wanted::Awake } else { wanted };
            if wanted == Wanted::Awake {
                self.freeze_errors.remove(&backend.id);
            }
            commands.extend(backend.frost(wanted, now));
        }
        commands.sort_by_key(|command| !matches!(command, Command::Thaw { .. }));
        commands
    }

    /// Whether nobody has come for so long that whoever is left sleeps.
    pub(super) fn is_asleep(&self) -> bool {
        self.is_auto() && self.phase == Phase::Running && self.wish == 0
    }

    /// Returns how many backends have to have slots: one, though nobody comes.
    pub(super) fn standing_wish(&self) -> u32 {
        if self.is_auto() && self.phase == Phase::Running { self.wish.max(1) } else { self.wish }
    }

    /// Calls containers out of the reserve. One that runs is in the slots at once, the others when they are thawed.
    pub(super) fn call(&mut self, called: Vec<ContainerId>, now: Timestamp) {
        self.called = called.into_iter().collect();
        for id in &self.called {
            if let Some(backend) = self.backends.get_mut(id)
                && backend.frost == Frost::Awake
            {
                backend.leave_reserve(now);
            }
        }
        let backends = &self.backends;
        self.called.retain(|id| backends.get(id).is_some_and(|backend| backend.state == State::Warm));
    }

    /// Lets go of what the reserve has too many of, and of what would serve as it is not to serve.
    pub(super) fn trim_reserve(&mut self, now: Timestamp) {
        let mut kept: Vec<(bool, bool, u64, u32, ContainerId)> = self
            .backends
            .values()
            .filter(|backend| backend.state == State::Warm && !self.called.contains(&backend.id))
            .map(|b| (!b.fits_reserve(), b.frost != Frost::Frozen, b.created, b.ordinal, b.id.clone()))
            .collect();
        kept.sort();
        let room = self.settings.warm as usize;
        let surplus: BTreeSet<ContainerId> = kept
            .into_iter()
            .enumerate()
            .filter(|(place, (is_unfit, ..))| *place >= room || *is_unfit)
            .map(|(_, (.., id))| id)
            .collect();
        for id in surplus {
            let Some(backend) = self.backends.get_mut(&id) else { continue };
            let why = match (backend.outdated, backend.frost.is_stuck()) {
                (true, _) => "is of other settings",
                (false, true) => "cannot be thawed",
                (false, false) => "is one too many",
            };
            let reason = format!("{} of the reserve {why}", backend.name);
            backend.begin_drain(DrainCause::Superfluous, now);
            self.remark(DecisionKind::Drain, reason, now);
        }
    }

    /// Whether the reserve has room for one that has drained.
    pub(super) fn reserve_is_short(&self) -> bool {
        let warm = self.backends.values().filter(|backend| backend.state == State::Warm).count();
        self.phase == Phase::Running && warm < self.settings.warm as usize
    }

    /// Whether one that has just passed its checks is for the reserve: as many as are wanted are ready. One that may have flows,
    /// of a former agent or from before a drain that was taken back, is drained first.
    pub(super) fn is_for_reserve(&self, id: &ContainerId) -> bool {
        if self.backends.get(id).is_none_or(Backend::may_have_flows) {
            return false;
        }
        let others = self.backends.values().filter(|b| b.state == State::Ready && b.id != *id).count();
        self.is_auto() && self.phase == Phase::Running && self.settings.warm > 0 && others >= self.goal() as usize
    }

    /// Takes note that a container is frozen, or could not be.
    pub(super) fn froze(&mut self, id: &ContainerId, outcome: Result<(), String>, now: Timestamp) {
        let Some(backend) = self.backends.get_mut(id) else { return };
        if !matches!(backend.frost, Frost::Freezing(_)) {
            return;
        }
        match outcome {
            Ok(()) => {
                backend.frost = Frost::Frozen;
                backend.freeze = Errand::new(now);
                self.freeze_errors.remove(id);
            }
            Err(error) => {
                backend.freeze.failed(FREEZE_PACE, now);
                backend.frost = Frost::Thawing(Errand::new(now));
                let reason = format!("{} goes on running: {error}", backend.name);
                if self.freeze_errors.insert(id.clone(), reason.clone()).as_ref() != Some(&reason) {
                    self.remark(DecisionKind::FreezeFailed, reason, now);
                }
            }
        }
    }

    /// Takes note that a container runs again, or could not be thawed.
    pub(super) fn thawed(&mut self, id: &ContainerId, outcome: Result<(), String>, now: Timestamp) {
        let Some(backend) = self.backends.get_mut(id) else { return };
        let Frost::Thawing(errand) = &mut backend.frost else { return };
        match outcome {
            Ok(()) => {
                backend.frost = Frost::Awake;
                // A late answer to the former freeze must not be taken for that to the next.
                if backend.freeze.due() < now + REST {
                    backend.freeze.sent(REST, now);
                }
                // Why another one was thawed stands in its checks.
                if backend.state == State::Ready {
                    backend.probe_afresh(now);
                    self.kept_last.remove(id);
                }
                if self.called.remove(id) {
                    backend.leave_reserve(now);
                }
            }
            Err(error) => {
                errand.failed(THAW_PACE, now);
                if backend.frost.is_given_up() && backend.state == State::Ready {
                    backend.fall(now);
                }
                let reason = format!("{} stays frozen: {error}", backend.name);
                // It is tried again and again; once is told.
                if backend.last_error.as_ref() != Some(&reason) {
                    backend.last_error = Some(reason.clone());
                    self.remark(DecisionKind::FreezeFailed, reason, now);
                }
            }
        }
    }

    /// Somebody has come to a backend that is frozen, or about to be.
    pub(super) fn woken(&mut self, id: &ContainerId, now: Timestamp) {
        let Some(backend) = self.backends.get(id) else { return };
        if backend.state != State::Ready || !backend.frost.is_told() {
            return;
        }
        let reason = match backend.frost.is_cold() {
            true => format!("a client has come to {}, which was frozen", backend.name),
            false => format!("a client has come to {} before it was frozen", backend.name),
        };
        self.wake_up(reason, now);
    }

    /// Lets a container run that is frozen, or about to be, until it has taken a signal. Nobody has come, so its service sleeps on:
    /// if it ends, the one in its place is frozen in turn.
    pub(super) fn signalled(&mut self, id: &ContainerId, now: Timestamp) {
        let Some(backend) = self.backends.get_mut(id) else { return };
        // Also of one that has just been started, and would be frozen as soon as it is ready.
        backend.runs_until = now + SIGNAL_REST;
        if backend.frost.is_cold() && matches!(backend.state, State::Ready | State::Warm) {
            let reason = format!("{} is thawed to take a signal from outside", backend.name);
            self.remark(DecisionKind::Signalled, reason, now);
        }
    }

    /// Says what could not be frozen, and what could not be thawed, for people.
    pub(super) fn frost_problems(&self) -> impl Iterator<Item = String> {
        let stuck = self.backends.values().filter(|backend| backend.frost.is_stuck());
        self.freeze_errors.values().cloned().chain(stuck.filter_map(|backend| backend.last_error.clone()))
    }
}
