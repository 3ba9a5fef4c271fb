//! One backend, one container: its states and what moves it from one to the next.
//!
//! ```text
//!            rise passes           fall failures, not the last
//! Starting ───────────────▶ Ready ◀──────────────────────────▶ Unhealthy
//!    │                        │     rise_again passes              │
//!    │ too many, too slow     │ too many                           │ too long
//!    ▼                        ▼                                    ▼
//!    └──────────────────▶ Draining ◀───────────────────────────────┘
//!                             │ no flows, or the deadline     (back, where it is needed again)
//!                             ▼
//!                         Stopping ── ended ──▶ Dead ── removed ──▶ forgotten
//! ```
//!
//! Beside them stands the reserve, `Warm`: one that passes its checks when enough are ready, or that has drained, is frozen and
//! has no slot; it goes to `Ready` by being thawed. What is frozen of those that are ready is told apart by its [`Frost`].
//!
//! A container that ends by itself goes to `Dead` from wherever it is. A backend keeps its flows in every state but
//! `Dead`; it gets new connections in `Ready` alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::addresses::{Addresses, Family};
use super::ended::Untold;
use super::event::{BackendName, ContainerId, Sighting, Terms};
use super::families::{Families, Heard, Shift, Verdict};
use super::frost::Frost;
use super::passive::Answers;
use super::retry::Errand;
use super::settings::Settings;
use super::slow_start;
use super::time::Timestamp;

/// After so long without an answer a probe counts as not answered.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// How long one that was asked to end is waited for at least: until then it is not taken again, though it still runs.
const ENDING_PATIENCE: Duration = Duration::from_secs(60);

/// The state of a backend, for people and for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// It runs and has not passed its checks.
    Starting,
    /// It gets new connections.
    Ready,
    /// It is frozen in its slots, and thawed when somebody comes.
    Idle,
    /// It is frozen, and outside of the slots, until it is needed.
    Warm,
    /// It fails its checks or is paused; it keeps its flows.
    Unhealthy,
    /// It is on its way out and keeps its flows.
    Draining,
    /// It was asked to end.
    Stopping,
    /// It does not run and waits for its removal.
    Dead,
}

/// The state with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    Starting,
    Ready,
    Warm,
    Unhealthy,
    Draining(Drain),
    Stopping(Errand),
    Dead(Errand),
}

/// How far a drain has come.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drain {
    pub cause: DrainCause,
    /// Whether a sweep that began late enough found no flows.
    pub clear: bool,
    /// What the backend was, and is again where the drain is cancelled.
    pub was_ready: bool,
}

/// What the datapath may hold of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Nothing: it was never published, or its flows are over.
    Nothing,
    /// A slot, and flows.
    Slot,
    /// Flows, and since it was confirmed no slot.
    Flows {
        /// When that was confirmed.
        since: Timestamp,
    },
}

/// Why a backend has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrainCause {
    /// More backends than wanted: the only drain that can be cancelled.
    Excess,
    /// The reserve has no use for it.
    Superfluous,
    /// It failed its checks for too long, or was not ready in time.
    Failing,
    /// The agent ends.
    Shutdown,
    /// It was served by a former agent and is nobody's by now: there is nothing to stop.
    Unlisted,
    /// Somebody asked it to end, and it will.
    Ending,
    /// One of today's settings has taken its place.
    Replaced,
}

/// What a probe's outcome changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Turn {
    None,
    BecameReady,
    Recovered,
}

/// The consecutive outcomes of the active checks.
#[derive(Clone, Debug, PartialEq)]
struct Health {
    /// When the probe was sent that has not been answered.
    in_flight: Option<Timestamp>,
    next: Timestamp,
    passes: u32,
    failures: u32,
    /// Since when the backend fails: set by `fall` failures or by a pause, cleared by `rise_again` passes.
    fell: Option<Timestamp>,
}

impl Health {
    fn new(now: Timestamp) -> Self {
        Health { in_flight: None, next: now, passes: 0, failures: 0, fell: None }
    }
}

/// One backend as the controller knows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Backend {
    pub id: ContainerId,
    pub name: BackendName,
    pub ordinal: u32,
    pub address: Option<Addresses>,
    pub created: u64,
    /// Whether it was started with other settings than one would be today.
    pub outdated: bool,
    pub state: State,
    /// When the state was entered.
    pub since: Timestamp,
    /// The state in which it was told of last; nothing if it was not yet.
    pub told: Option<BackendState>,
    /// When it was first heard of.
    pub known_since: Timestamp,
    /// When it became ready for the first time.
    pub ready_since: Option<Timestamp>,
    /// When it passed the checks that it had not passed before: from then on it gets more and more of its share.
    pub warming_since: Option<Timestamp>,
    /// Whether somebody has asked it to end.
    pub ending: bool,
    /// What is kept of one that has ended until it is told how.
    pub untold: Option<Untold>,
    /// Whether the provider has shown it; otherwise it is known from the answer to its start alone.
    pub sighted: bool,
    /// What the datapath may hold of it.
    pub held: Held,
    /// Live connections at the last sweep.
    pub flows: u64,
    pub last_error: Option<String>,
    /// Whether it is frozen.
    pub frost: Frost,
    /// When it may be frozen.
    pub freeze: Errand,
    /// Until when it runs in any case, to take a signal.
    pub runs_until: Timestamp,
    health: Health,
    families: Families,
}

impl Backend {
    /// Creates a backend that is starting.
    pub fn starting(sighting: Sighting, now: Timestamp) -> Self {
        Backend {
            id: sighting.id,
            name: sighting.name,
            ordinal: sighting.ordinal,
            address: sighting.address,
            created: sighting.created,
            outdated: sighting.outdated,
            state: State::Starting,
            since: now,
            told: None,
            known_since: now,
            ready_since: None,
            warming_since: None,
            ending: false,
            untold: None,
            sighted: true,
            held: Held::Nothing,
            flows: 0,
            last_error: None,
            frost: Frost::Awake,
            freeze: Errand::new(now),
            runs_until: Timestamp::ZERO,
            health: Health::new(now),
            families: Families::default(),
        }
    }

    /// Creates a backend whose start was confirmed before the provider showed it.
    pub fn started(id: ContainerId, ordinal: u32, now: Timestamp) -> Self {
        let name = BackendName(id.0.clone());
        // It is newer than every backend that has been seen.
        let sighting = Sighting {
            id,
            name,
            ordinal,
            address: None,
            running: true,
            created: u64::MAX,
            outdated: false,
            terms: Terms::default(),
        };
        Backend { sighted: false, ..Backend::starting(sighting, now) }
    }

    /// Creates a backend that a former agent has served and nobody shows: on its way out from the first moment on.
    pub fn leaving(id: ContainerId, address: Addresses, ordinal: u32, now: Timestamp) -> Self {
        let mut backend = Backend::started(id, ordinal, now);
        backend.address = Some(address);
        // Whether it has a slot is not known for sure, so the datapath has to confirm that it has none.
        backend.held = Held::Slot;
        backend.begin_drain(DrainCause::Unlisted, now);
        backend
    }

    /// Returns whether it is nobody's: it leaves, and nothing is stopped.
    pub fn is_unlisted(&self) -> bool {
        matches!(&self.state, State::Draining(drain) if drain.cause == DrainCause::Unlisted)
    }

    /// Returns whether it is on its way out because somebody has asked it to end.
    pub fn is_ending(&self) -> bool {
        matches!(&self.state, State::Draining(drain) if drain.cause == DrainCause::Ending)
    }

    /// Makes it nobody's: it is on its way out, and will not be missed in a list.
    pub fn unlist(&mut self, now: Timestamp) {
        self.sighted = false;
        self.begin_drain(DrainCause::Unlisted, now);
    }

    /// Takes back that it is nobody's: it serves again, or has to pass its checks if it did not serve.
    pub fn relist(&mut self, now: Timestamp) {
        let was_ready = matches!(&self.state, State::Draining(drain) if drain.was_ready);
        self.return_from_drain(was_ready, now);
    }

    /// Takes over what the provider shows of a running backend. One with another address is another server: it has to
    /// pass its checks again, and what flows led to the old address are lost. A further one changes nothing of that.
    pub fn sight(&mut self, sighting: Sighting, now: Timestamp) {
        self.name = sighting.name;
        self.ordinal = sighting.ordinal;
        self.created = sighting.created;
        self.outdated = sighting.outdated;
        self.sighted = true;
        let moved = self.address.zip(sighting.address).is_some_and(|(own, seen)| !own.are_of(&seen));
        if sighting.address.is_some() {
            self.address = sighting.address;
        }
        if moved {
            self.held = Held::Nothing;
            match &mut self.state {
                State::Ready | State::Warm | State::Unhealthy => self.enter(State::Starting, now),
                State::Draining(drain) => drain.was_ready = false,
                State::Starting | State::Stopping(_) | State::Dead(_) => {}
            }
        }
        if self.address.is_some() {
            self.health.next = self.health.next.min(now);
        }
    }

    pub fn enter(&mut self, state: State, now: Timestamp) {
        match state {
            State::Ready => {
                self.ready_since.get_or_insert(now);
                self.last_error = None;
            }
            State::Starting => {
                self.health = Health { in_flight: self.health.in_flight, ..Health::new(now) };
                self.families = Families::default();
            }
            State::Unhealthy => {
                self.health.fell.get_or_insert(now);
                self.health.passes = 0;
            }
            State::Warm => {
                self.ready_since.get_or_insert(now);
                (self.last_error, self.held, self.flows) = (None, Held::Nothing, 0);
            }
            State::Draining(_) | State::Stopping(_) | State::Dead(_) => {}
        }
        self.state = state;
        self.since = now;
    }

    /// Returns to rotation, or to its start, after a drain that was cancelled.
    pub fn return_from_drain(&mut self, was_ready: bool, now: Timestamp) {
        self.health = Health { in_flight: self.health.in_flight, ..Health::new(now) };
        self.enter(if was_ready { State::Ready } else { State::Starting }, now);
    }

    /// Returns how many tenths of its share of new connections it gets; nothing if all of them.
    pub fn tenths(&self, ramp: Duration, now: Timestamp) -> Option<u32> {
        let since = self.warming_since.filter(|_| self.state == State::Ready)?;
        Some(slow_start::tenths(since, ramp, now)).filter(|tenths| *tenths < slow_start::WHOLE)
    }

    /// Returns when it gets more.
    pub fn next_share(&self, ramp: Duration, now: Timestamp) -> Option<Timestamp> {
        let since = self.warming_since.filter(|_| self.state == State::Ready)?;
        slow_start::next(since, ramp, now)
    }

    pub fn begin_drain(&mut self, cause: DrainCause, now: Timestamp) {
        let was_ready = self.state == State::Ready;
        self.enter(State::Draining(Drain { cause, clear: false, was_ready }), now);
    }

    /// Counts for the wish: it serves, or is hoped to.
    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Starting | State::Ready | State::Unhealthy)
    }

    /// Returns since when it fails its checks or is paused, where it does and still counts for the wish. The time that it is
    /// put aside for its clients' sake does not count: its checks may pass all the while.
    pub fn failing_since(&self) -> Option<Timestamp> {
        match self.state {
            State::Ready | State::Unhealthy => self.health.fell.max(self.health.fell.and(self.families.aside_until())),
            State::Starting | State::Warm | State::Draining(_) | State::Stopping(_) | State::Dead(_) => None,
        }
    }

    /// Whether it has failed for so long that it has to be replaced.
    pub fn is_given_up(&self, limit: Duration, now: Timestamp) -> bool {
        self.failing_since().is_some_and(|fell| now.since(fell) >= limit)
    }

    /// Returns how long it has served by now; nothing where it never did.
    pub fn life(&self, now: Timestamp) -> Option<Duration> {
        self.ready_since.map(|since| now.since(since))
    }

    /// Whether it has been ready, and so may have connections.
    pub fn has_been_ready(&self) -> bool {
        self.ready_since.is_some()
    }

    /// Returns when the next probe is due, or when one in flight counts as lost.
    pub fn probe_due(&self) -> Option<Timestamp> {
        self.address?;
        (self.is_active() && !self.frost.is_cold()).then(|| match self.health.in_flight {
            Some(sent) => sent + PROBE_PATIENCE,
            None => self.health.next,
        })
    }

    pub fn probe_sent(&mut self, now: Timestamp) {
        self.health.in_flight = Some(now);
    }

    /// Forgets the probe that is under way: whoever is frozen answers none.
    pub fn forget_probe(&mut self) {
        self.health.in_flight = None;
    }

    /// Forgets what checks have shown, and has it checked at once: its health is known from before it was frozen.
    pub fn probe_afresh(&mut self, now: Timestamp) {
        self.health = Health::new(now);
    }

    /// Counts as one that fails its checks: it answers none.
    pub fn fall(&mut self, now: Timestamp) {
        self.health.fell.get_or_insert(now);
        self.health.passes = 0;
    }

    /// Goes from the reserve into the slots.
    pub fn leave_reserve(&mut self, now: Timestamp) {
        self.probe_afresh(now);
        self.warming_since = Some(now);
        self.enter(State::Ready, now);
    }

    /// Takes an outcome. An outcome that nobody waits for (repeated, or older than the state) changes nothing.
    pub fn probed(&mut self, outcome: Result<Heard, String>, settings: &Settings, now: Timestamp) -> Turn {
        if self.health.in_flight.take().is_none() || !self.is_active() {
            return Turn::None;
        }
        let starting = self.state == State::Starting;
        self.health.next = now + if starting { settings.start_probe_interval } else { settings.probe_interval };
        let outcome = match outcome {
            Ok(mut heard) => {
                heard.retain(|family, _| self.address.is_some_and(|address| address.of_family(*family).is_some()));
                self.families.check(heard, self.state == State::Ready, now)
            }
            Err(error) => {
                self.families.fail(&error);
                Err(error)
            }
        };
        match outcome {
            Ok(verdict) => {
                self.health.passes = match verdict {
                    Verdict::Passes => self.health.passes.saturating_add(1),
                    // What clients meet is worse than what this host does.
                    Verdict::Aside => 0,
                };
                self.health.failures = 0;
                if self.state == State::Ready && self.health.fell.is_none() {
                    self.last_error = None;
                }
            }
            Err(error) => {
                self.health.failures = self.health.failures.saturating_add(1);
                self.health.passes = 0;
                self.last_error = Some(error);
            }
        }
        match self.state {
            State::Starting if self.health.passes >= settings.rise => {
                self.health.next = now + settings.probe_interval;
                self.families.begin();
                self.enter(State::Ready, now);
                self.warming_since = Some(now);
                Turn::BecameReady
            }
            State::Ready | State::Unhealthy
                if self.health.fell.is_some() && self.health.passes >= settings.rise_again =>
            {
                self.health.fell = None;
                self.families.begin();
                // The last one has stayed in rotation all the while.
                if self.state == State::Unhealthy {
                    self.warming_since = Some(now);
                }
                self.enter(State::Ready, now);
                Turn::Recovered
            }
            State::Ready if self.health.failures >= settings.fall => {
                self.health.fell.get_or_insert(now);
                Turn::None
            }
            State::Starting
            | State::Ready
            | State::Warm
            | State::Unhealthy
            | State::Draining(_)
            | State::Stopping(_)
            | State::Dead(_) => Turn::None,
        }
    }

    /// Takes the number of flows that a sweep found which began at `began`.
    pub fn swept(&mut self, flows: u64, began: Timestamp, settle: Duration) {
        self.flows = flows;
        if let (State::Draining(drain), Held::Flows { since }) = (&mut self.state, self.held) {
            drain.clear = flows == 0 && began >= since + settle;
        }
        if let Frost::Dozing { since: Some(since), clear } = &mut self.frost {
            *clear = flows == 0 && began >= *since + settle;
        }
    }

    /// Takes how new connections of a family were answered.
    pub fn answered(&mut self, family: Family, answers: Answers, now: Timestamp) {
        if let Some(reason) = self.families.answered(family, answers, self.state == State::Ready, now) {
            self.last_error = Some(reason);
            self.health.fell.get_or_insert(now);
            self.health.passes = 0;
        }
    }

    /// Takes over that it has slots at these addresses, and is ready without a check.
    pub fn adopt(&mut self, addresses: Addresses, now: Timestamp) {
        self.families.adopt(addresses);
        self.offered_slot();
        self.enter(State::Ready, now);
    }

    /// Brings each family of a ready backend to where it belongs.
    pub fn shift(&mut self, is_last: impl Fn(Family) -> bool, settings: &Settings, now: Timestamp) -> Vec<Shift> {
        if self.state == State::Ready { self.families.shift(is_last, settings, now) } else { Vec::new() }
    }

    /// Returns the families of its addresses, each with whether it is served while the backend is ready.
    pub fn families(&self) -> impl Iterator<Item = (Family, bool)> {
        let has = |family: &Family| self.address.is_some_and(|address| address.of_family(*family).is_some());
        [Family::V4, Family::V6].into_iter().filter(has).map(|family| (family, self.families.serves(family)))
    }

    /// Returns what is wrong with it, for people; that of one family if there is nothing else.
    pub fn error(&self) -> Option<String> {
        let of_family = || self.families.error().filter(|_| self.state == State::Ready);
        self.last_error.clone().or_else(of_family)
    }

    /// Says what it does wrong, for people.
    pub fn failing(&self, now: Timestamp) -> &'static str {
        if self.families.is_aside(now) { "fails its clients" } else { "fails its checks" }
    }

    /// Notes that the datapath is asked to give it a slot.
    pub fn offered_slot(&mut self) {
        self.held = Held::Slot;
    }

    /// Notes that the datapath has confirmed to hold no slot of it.
    pub fn confirmed_out(&mut self, now: Timestamp) {
        match self.held {
            Held::Slot => self.held = Held::Flows { since: now },
            Held::Nothing | Held::Flows { .. } => {}
        }
    }

    /// Whether the datapath may hold flows to it.
    pub fn may_have_flows(&self) -> bool {
        match self.held {
            Held::Nothing => false,
            Held::Slot | Held::Flows { .. } => true,
        }
    }

    /// Returns when the drain ends even with flows left: never before the datapath has confirmed it.
    pub fn drain_deadline(&self, timeout: Duration) -> Option<Timestamp> {
        match &self.state {
            // It ends by itself, and so do its flows.
            State::Draining(drain) if drain.cause == DrainCause::Ending => {
                Some(self.since + ENDING_PATIENCE.max(timeout))
            }
            State::Draining(_) => match self.held {
                Held::Flows { since } => Some(since.max(self.since) + timeout),
                Held::Nothing | Held::Slot => None,
            },
            State::Starting | State::Ready | State::Warm | State::Unhealthy | State::Stopping(_) | State::Dead(_) => {
                None
            }
        }
    }

    /// Whether nothing is lost when it is stopped, or the time for its flows is over.
    pub fn is_drained(&self, timeout: Duration, now: Timestamp) -> bool {
        match &self.state {
            State::Draining(drain) if drain.cause == DrainCause::Ending => {
                self.drain_deadline(timeout).is_some_and(|at| at <= now)
            }
            State::Draining(drain) => {
                !self.may_have_flows() || drain.clear || self.drain_deadline(timeout).is_some_and(|at| at <= now)
            }
            State::Starting | State::Ready | State::Warm | State::Unhealthy | State::Stopping(_) | State::Dead(_) => {
                false
            }
        }
    }

    /// Returns the state without what belongs to it.
    pub fn summary(&self) -> BackendState {
        match self.state {
            State::Starting => BackendState::Starting,
            State::Ready if self.frost.is_cold() => BackendState::Idle,
            State::Ready => BackendState::Ready,
            State::Warm => BackendState::Warm,
            State::Unhealthy => BackendState::Unhealthy,
            State::Draining(_) => BackendState::Draining,
            State::Stopping(_) => BackendState::Stopping,
            State::Dead(_) => BackendState::Dead,
        }
    }
}
