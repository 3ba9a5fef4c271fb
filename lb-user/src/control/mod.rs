//! The controller: events and the time in, commands out. It waits for nothing and knows neither clock nor engine.
//!
//! A decision's way: [`Event::LoadSampled`] → [`policy::decide`] (the reason is attached here) → the wish →
//! `reconcile::plan` (start, keep or drain) → [`Command::Start`] → [`Event::BackendSeen`] → [`Command::Probe`] →
//! [`Event::BackendProbed`] → ready → [`Command::Publish`] → [`Event::Published`]. Down: out of the publication's ready
//! set first; when the kernel holds that, and a later sweep finds no flows or the deadline has passed,
//! [`Command::Stop`]. A container that dies leaves the publication in the same breath.
//!
//! Every event is handled in two steps: it is noted, and then [`Controller::settle`] brings everything that is due into
//! a fixed order: thaws, publication, stops, removals, starts, freezes, probes. So the order of commands never depends on which event
//! made them due. A command may fail or be repeated; its failure is an event.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

mod addresses;
mod backend;
mod changes;
mod crash_loop;
mod discovery;
mod ended;
mod event;
mod families;
mod frost;
mod history;
mod idle;
pub mod law;
mod load;
mod measures;
mod orders;
mod passive;
pub mod policy;
mod publisher;
mod reconcile;
mod report;
mod retry;
mod rollout;
mod settings;
mod slow_start;
mod time;

pub use addresses::{Addresses, Family};
pub use backend::BackendState;
pub use changes::Change;
pub use crash_loop::CrashLoop;
pub use event::{BackendName, Command, ContainerId, Event, GoneCause, Publication, Sighting, Terms};
pub use families::Heard;
pub use history::{Decision, DecisionKind};
pub use load::CpuLoad;
pub use measures::{CpuUsed, Measures};
pub use orders::{Directions, Manual, Order, Orders, Reach, Refusal};
pub use passive::Answers;
pub use report::{BackendReport, ControlReport, Phase, RolloutReport};
pub use settings::{OnChange, Reconfiguration, Scaling, Settings};
pub use slow_start::WHOLE;
pub use time::Timestamp;

use backend::{Backend, DrainCause, Held, State, Turn};
use discovery::LeftOut;
use families::Shift;
use frost::Frost;
use history::History;
use idle::Idle;
use policy::{Bounds, Law};
use publisher::Publisher;
use reconcile::FirstToGo;
use retry::{Errand, Pace};
use rollout::Rollout;

/// How failed stops and removals are tried again.
const STOP_PACE: Pace = Pace { first: Duration::from_secs(1), longest: Duration::from_secs(30) };
/// How long the answer to a removal is waited for: longer than the engine's own delays.
const REMOVE_PATIENCE: Duration = Duration::from_secs(130);
/// How long the answer to a start is waited for: longer than the provider waits for the engine, for each of three steps.
const START_PATIENCE: Duration = Duration::from_secs(390);
/// How long a container that has ended is left alone: somebody may be restarting it by hand.
const REMOVE_DELAY: Duration = Duration::from_secs(2);

/// Decides what there should be, from what there is.
#[derive(Debug)]
pub struct Controller {
    settings: Settings,
    phase: Phase,
    wish: u32,
    load: Option<CpuLoad>,
    standing: Option<String>,
    memory: policy::Memory,
    demand: measures::Demand,
    orders: Orders,
    /// What was decided on the last one. Of the history it may be gone at once, where much comes of it.
    last_order: Option<String>,
    /// When somebody was there last.
    idle: Idle,
    backends: BTreeMap<ContainerId, Backend>,
    pending: BTreeMap<u32, Timestamp>,
    crash_loop: CrashLoop,
    publisher: Publisher,
    history: History,
    news: Vec<Decision>,
    changes: Vec<Change>,
    kept_last: BTreeSet<ContainerId>,
    /// Who of the reserve is on its way into the slots.
    called: BTreeSet<ContainerId>,
    /// Containers that could not be frozen, and why.
    freeze_errors: BTreeMap<ContainerId, String>,
    provider_error: Option<String>,
    start_error: Option<String>,
    /// Containers that were gone before the answer to their start had come.
    stillborn: BTreeMap<ContainerId, GoneCause>,
    rollout: Rollout,
    /// Containers that others have started and that are not served.
    left_out: BTreeMap<ContainerId, LeftOut>,
    /// Whether the end was asked for before it was known what there is.
    stop_awaits_list: bool,
    forced: bool,
    finished: bool,
    /// When everything that was due was brought about last.
    settled: Timestamp,
}

impl Controller {
    /// Creates a controller that knows of no backend yet; it does nothing before the first [`Event::Resynced`].
    pub fn new(mut settings: Settings) -> Self {
        let wish = match settings.scaling {
            Scaling::Fixed => 0,
            Scaling::Auto(law) => law.bounds.awake().min(),
            Scaling::Demand(law) => law.bounds.awake().min(),
        };
        let demand = measures::Demand::new(settings.adopted_cost, settings.adopted_cooldowns);
        let orders = match settings.scaling {
            Scaling::Fixed => Orders::default(),
            Scaling::Auto(_) | Scaling::Demand(_) => settings.adopted_orders,
        };
        // Another agent may take over before this one knows what there is.
        let stands = orders.paused().is_some() || settings.adopted_rollout.is_some();
        let former = orders.manual.map(|manual| manual.count).or(settings.adopted_desired.filter(|_| stands));
        let wish = former.unwrap_or(wish);
        let crash_loop = settings.adopted_crash_loop.take().map(CrashLoop::adopted).unwrap_or_default();
        Controller {
            publisher: Publisher::new(settings.adopted_generation),
            history: History::new(std::mem::take(&mut settings.adopted_decisions)),
            settings,
            phase: Phase::Starting,
            wish,
            load: None,
            standing: None,
            memory: policy::Memory::default(),
            demand,
            orders,
            last_order: None,
            idle: Idle::default(),
            backends: BTreeMap::new(),
            pending: BTreeMap::new(),
            crash_loop,
            news: Vec::new(),
            changes: Vec::new(),
            kept_last: BTreeSet::new(),
            called: BTreeSet::new(),
            freeze_errors: BTreeMap::new(),
            provider_error: None,
            start_error: None,
            stillborn: BTreeMap::new(),
            rollout: Rollout::None,
            left_out: BTreeMap::new(),
            stop_awaits_list: false,
            forced: false,
            finished: false,
            settled: Timestamp::ZERO,
        }
    }

    /// Takes note of an event and returns what is to be done, in this order.
    #[must_use]
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Command> {
        self.lapse(now);
        self.note(event, now);
        // What was taken over, or is to last for no time at all.
        self.lapse(now);
        let commands = self.settle(now);
        self.note_changes();
        commands
    }

    /// Returns when [`Event::Tick`] is due at the latest. What was due already at the last event was done then, or waits
    /// for another event, such as the engine's return.
    pub fn deadline(&self) -> Option<Timestamp> {
        let settings = &self.settings;
        let of_backend = |backend: &Backend| {
            let timed = match &backend.state {
                State::Starting if self.is_auto() => Some(backend.since + settings.start_timeout),
                State::Stopping(errand) | State::Dead(errand) => Some(errand.due()),
                State::Draining(_) => backend.drain_deadline(settings.drain_timeout),
                State::Starting | State::Ready | State::Warm | State::Unhealthy => {
                    backend.failing_since().map(|fell| fell + settings.unhealthy_limit)
                }
            };
            let share = backend.next_share(settings.slow_start, self.settled);
            let telling = backend.untold.map(|untold| untold.until);
            timed.into_iter().chain(backend.probe_due()).chain(share).chain(backend.frost_due()).chain(telling)
        };
        let is_missing = self.phase == Phase::Running && self.is_auto() && !self.plan(self.settled).start.is_empty();
        let starts = is_missing.then(|| self.crash_loop.wait_until());
        let pending = self.pending.values().map(|&sent| sent + START_PATIENCE).min();
        self.backends
            .values()
            .flat_map(of_backend)
            .chain(self.publisher.due())
            .chain(starts)
            .chain(pending)
            .chain(self.manual_until())
            .filter(|due| *due > self.settled)
            .min()
    }

    /// Returns what was decided since the last call, for the log.
    pub fn take_news(&mut self) -> Vec<Decision> {
        std::mem::take(&mut self.news)
    }

    /// Returns what the controller shows of itself.
    pub fn snapshot(&self, now: Timestamp) -> ControlReport {
        let warming = self.warming(now);
        let mut backends: Vec<_> = self
            .backends
            .values()
            .map(|backend| BackendReport {
                id: backend.id.clone(),
                name: backend.name.clone(),
                ordinal: backend.ordinal,
                address: backend.address,
                state: backend.summary(),
                since: backend.since,
                warming_since: backend.warming_since,
                tenths: warming.get(&backend.id).copied(),
                flows: backend.flows,
                last_error: backend.error(),
            })
            .collect();
        backends.sort_by(|one, other| (one.ordinal, &one.id).cmp(&(other.ordinal, &other.id)));
        let bounds = self.bounds();
        ControlReport {
            at: now,
            phase: self.phase,
            min: bounds.map(Bounds::min),
            max: bounds.map(Bounds::max),
            desired: if self.is_auto() { self.wish } else { self.taken() as u32 },
            load: self.load,
            standing: self.standing.clone(),
            record: self.demand.record.clone(),
            changed: self.demand.changed.clone(),
            orders: self.orders,
            cooldowns: self.demand.cooldowns(),
            crash_loop: Some(self.crash_loop).filter(|crash_loop| crash_loop.failures() > 0),
            rollout: self.rollout_report(),
            backends,
            decisions: self.history.to_vec(),
            generation: self.publisher.confirmed_generation(),
            problems: self.problems(now),
        }
    }

    fn problems(&self, now: Timestamp) -> Vec<String> {
        let mut problems = Vec::new();
        let outdated = self.backends.values().filter(|backend| backend.is_active() && backend.outdated).count();
        if let Some(problem) = self.rollout_problem() {
            problems.push(problem);
        } else if outdated > 0 && !self.is_rolling_out() {
            problems.push(format!(
                "{outdated} of the containers were started with other settings than today's, or of another image: they are the \
                 first to go, or `lb-user rollout` replaces them"
            ));
        }
        problems.extend(self.left_out_told());
        problems.extend(self.provider_error.iter().map(|error| format!("{error}; nothing is started or stopped")));
        problems.extend(self.frost_problems());
        problems.extend(self.publisher.error().map(|error| format!("publish: {error}")));
        if let Some(error) = &self.start_error
            && self.crash_loop.failures() > 0
            && self.ready() < self.wish as usize
        {
            let tries = match self.crash_loop.failures() {
                1 => String::new(),
                failures => format!("{failures} times in a row, "),
            };
            let next = match self.crash_loop.wait_until().since(now) {
                Duration::ZERO => "another try is under way".into(),
                wait => format!("the next try is in {} s", wait.as_secs() + 1),
            };
            problems.push(format!("{error} ({tries}{next})"));
        }
        problems
    }

    fn is_auto(&self) -> bool {
        matches!(self.settings.scaling, Scaling::Auto(_) | Scaling::Demand(_))
    }

    fn law(&self) -> Option<Law> {
        match self.settings.scaling {
            Scaling::Auto(law) => Some(law),
            Scaling::Demand(_) | Scaling::Fixed => None,
        }
    }

    fn bounds(&self) -> Option<Bounds> {
        match self.settings.scaling {
            Scaling::Auto(law) => Some(law.bounds),
            Scaling::Demand(law) => Some(law.bounds),
            Scaling::Fixed => None,
        }
    }

    fn ready(&self) -> usize {
        self.backends.values().filter(|backend| backend.state == State::Ready).count()
    }

    /// Returns what has to come and to go, so that as many backends count as are wanted.
    fn plan(&self, now: Timestamp) -> reconcile::Plan {
        let wanted = (self.goal(), self.settings.warm);
        let first = if self.distrusts_new() { FirstToGo::New } else { FirstToGo::Outdated };
        reconcile::plan(wanted, first, &self.backends, &self.pending, self.settings.unhealthy_limit, now)
    }

    fn record(&mut self, kind: DecisionKind, from: u32, reason: String, now: Timestamp) {
        if kind.is_about_orders() {
            self.last_order = Some(reason.clone());
        }
        let decision = Decision { at: now, kind, from, to: self.wish, load: self.load, reason, times: 1 };
        self.news.push(decision.clone());
        self.history.record(decision);
    }

    fn remark(&mut self, kind: DecisionKind, reason: String, now: Timestamp) {
        self.record(kind, self.wish, reason, now);
    }
}

/// Step one: what happened.
impl Controller {
    fn note(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::LoadSampled(load) => self.sampled(load, now),
            Event::Measured(measures) => self.measured(&measures, now),
            Event::Surged(surge) => self.surged(surge, now),
            Event::LoadUnavailable { reason } if matches!(self.settings.scaling, Scaling::Demand(_)) => {
                self.load = None;
                self.remark(DecisionKind::LoadUnavailable, reason, now);
            }
            Event::LoadUnavailable { reason } => {
                self.load = None;
                self.standing = Some(format!("{reason}: the number of backends stays as it is"));
                self.remark(DecisionKind::LoadUnavailable, reason, now);
            }
            Event::BackendSeen(sighting) => self.seen(sighting, now),
            Event::Resynced(sightings) => self.resynced(sightings, now),
            Event::BackendGone { id, cause } => self.gone(&id, cause, now),
            Event::BackendProbed { id, outcome } => self.probed(&id, outcome, now),
            Event::Published { generation } => self.published(generation, now),
            Event::BackendUnreachable { id, error } => self.unreachable(&id, error, now),
            Event::WayChanged { id } => {
                if self.backends.get(&id).is_some_and(Backend::may_have_flows) {
                    self.publisher.renew();
                }
            }
            Event::EndpointsChanged => self.publisher.renew(),
            Event::Ordered(order) => self.ordered(order, now),
            Event::Reconfigured(new) => self.reconfigured(*new, now),
            Event::PublishFailed { generation, error } => {
                if self.publisher.fail(generation, &error, now) {
                    self.remark(DecisionKind::PublishFailed, error, now);
                }
            }
            Event::Frozen { id } => self.froze(&id, Ok(()), now),
            Event::FreezeFailed { id, error } => self.froze(&id, Err(error), now),
            Event::Thawed { id } => self.thawed(&id, Ok(()), now),
            Event::ThawFailed { id, error } => self.thawed(&id, Err(error), now),
            Event::Woken { id } => self.woken(&id, now),
            Event::Signalled { id } => self.signalled(&id, now),
            Event::Swept { began, flows, answers } => {
                self.demand.swept = Some(now);
                if flows.values().any(|count| *count > 0) {
                    self.wake_up("connections are under way".into(), now);
                }
                for backend in self.backends.values_mut() {
                    let count = flows.get(&backend.id).copied().unwrap_or(0);
                    backend.swept(count, began, self.settings.settle);
                }
                for ((id, family), answers) in answers {
                    if let Some(backend) = self.backends.get_mut(&id) {
                        backend.answered(family, answers, now);
                    }
                }
            }
            Event::Started { ordinal, id } => {
                self.pending.remove(&ordinal);
                if let Some(cause) = self.stillborn.remove(&id) {
                    self.backends.entry(id.clone()).or_insert_with(|| Backend::started(id.clone(), ordinal, now));
                    self.gone(&id, cause, now);
                } else {
                    self.backends.entry(id.clone()).or_insert_with(|| Backend::started(id, ordinal, now));
                }
            }
            Event::StartFailed { ordinal, error } => {
                self.pending.remove(&ordinal);
                self.start_failed(error.clone(), now);
                self.new_one_failed(&error, now);
            }
            Event::Stopped { id } => {
                self.forget(&id);
            }
            Event::StopFailed { id, error } | Event::RemoveFailed { id, error } => {
                if let Some(backend) = self.backends.get_mut(&id)
                    && let State::Stopping(errand) | State::Dead(errand) = &mut backend.state
                {
                    errand.failed(STOP_PACE, now);
                    backend.last_error = Some(error.clone());
                    self.remark(DecisionKind::StopFailed, error, now);
                }
            }
            Event::ProviderLost { error } => {
                self.remark(DecisionKind::ProviderLost, error.clone(), now);
                self.provider_error = Some(error);
            }
            Event::ProviderBack => {
                if self.provider_error.take().is_some() {
                    self.remark(DecisionKind::ProviderBack, "the containers can be seen again".into(), now);
                }
            }
            Event::StopRequested => self.stop_requested(now),
            Event::StopForced => self.stop_forced(now),
            Event::Tick => {}
        }
    }

    fn sampled(&mut self, load: CpuLoad, now: Timestamp) {
        self.load = Some(load);
        let Some(law) = self.law() else { return };
        // Others' load wakes nobody.
        if self.phase != Phase::Running || self.is_asleep() {
            return;
        }
        let law = Law { bounds: law.bounds.awake(), ..law };
        let proposal = policy::decide(&law, &mut self.memory, load.share(), self.wish, now);
        let target = self.orders.gate(self.wish, proposal.target);
        if target == self.wish {
            let is_followed = target == proposal.target && self.orders.manual.is_none();
            self.standing = Some(if is_followed { proposal.reason } else { self.orders.excuse(&proposal.reason) });
            return;
        }
        let from = std::mem::replace(&mut self.wish, target);
        let kind = if target > from { DecisionKind::ScaleUp } else { DecisionKind::ScaleDown };
        self.standing = None;
        self.record(kind, from, proposal.reason, now);
    }

    /// Takes settings over in place: what they leave alone goes on, and the windows of a law that stays are kept.
    fn reconfigured(&mut self, new: Reconfiguration, now: Timestamp) {
        let from = self.wish;
        match (self.settings.scaling, new.scaling) {
            (Scaling::Auto(former), Scaling::Auto(law)) if former != law => {
                self.settings.scaling = new.scaling;
                // The demands of the other law mean nothing under this one.
                self.memory = policy::Memory::default();
                self.standing = None;
                if self.phase == Phase::Running {
                    self.keep_to_bounds();
                }
            }
            (Scaling::Demand(former), Scaling::Demand(law)) if former != law => {
                self.settings.scaling = new.scaling;
                // What was measured is free of targets, and so are the windows.
                self.standing = None;
                if self.phase == Phase::Running {
                    self.keep_to_bounds();
                }
            }
            (Scaling::Auto(_), Scaling::Demand(_)) | (Scaling::Demand(_), Scaling::Auto(_)) => {
                self.settings.scaling = new.scaling;
                self.memory = policy::Memory::default();
                self.demand = measures::Demand::new(self.demand.cost(), None);
                self.standing = None;
                if self.phase == Phase::Running {
                    self.keep_to_bounds();
                }
            }
            (Scaling::Auto(_) | Scaling::Demand(_) | Scaling::Fixed, _) => {}
        }
        self.settings.most = new.most;
        self.settings.on_change = new.on_change;
        self.forget_aborted_rollout();
        self.settings.drain_timeout = new.drain_timeout;
        self.settings.slow_start = new.slow_start;
        self.settings.warm = new.warm;
        self.settings.probe_interval = new.probe_interval;
        self.settings.stop_patience = new.stop_patience;
        self.settings.keep = new.keep;
        self.record(DecisionKind::Reconfigured, from, new.reason, now);
        for id in new.unlisted {
            if let Some(address) = self.settings.adopted_ready.remove(&id) {
                self.settings.adopted_leaving.insert(id.clone(), address);
            }
            let Some(backend) = self.backends.get_mut(&id).filter(|backend| !backend.is_unlisted()) else { continue };
            backend.unlist(now);
            let reason = format!("{} is not in the list any more", backend.name);
            self.kept_last.remove(&id);
            self.remark(DecisionKind::Drain, reason, now);
        }
    }

    fn seen(&mut self, sighting: Sighting, now: Timestamp) {
        if self.is_untold(&sighting.id) {
            if !sighting.running {
                return;
            }
            // It runs again, so that nobody will tell any more.
            self.gone(&sighting.id.clone(), GoneCause::FOUND_ENDED, now);
        }
        if self.leaves_out(&sighting, now) {
            return;
        }
        if !sighting.running {
            match self.backends.get(&sighting.id) {
                Some(_) => self.gone(&sighting.id.clone(), GoneCause::FOUND_ENDED, now),
                // Created, and about to be started. Otherwise left by an earlier life: out of the way, so that its name
                // is free.
                None if self.pending.contains_key(&sighting.ordinal) => {}
                None if self.is_auto() => {
                    let mut backend = Backend::starting(sighting, now);
                    backend.enter(State::Dead(Errand::new(now)), now);
                    self.backends.insert(backend.id.clone(), backend);
                }
                None => {}
            }
            return;
        }
        self.pending.remove(&sighting.ordinal);
        if let Some(backend) = self.backends.get_mut(&sighting.id) {
            if matches!(backend.state, State::Dead(_)) {
                backend.enter(State::Starting, now);
            }
            let is_back = backend.is_unlisted() && self.phase != Phase::Stopping;
            if is_back {
                backend.relist(now);
            }
            backend.sight(sighting, now);
            if is_back {
                let reason = format!("{} is in the list again", backend.name);
                self.remark(DecisionKind::DrainCancelled, reason, now);
            }
            return;
        }
        let mut backend = Backend::starting(sighting, now);
        let adopted = self.settings.adopted_ready.remove(&backend.id);
        if let Some((adopted, _)) = adopted.zip(backend.address).filter(|(adopted, address)| adopted.are_of(address)) {
            backend.adopt(adopted, now);
            backend.warming_since = self.settings.adopted_warming.remove(&backend.id);
            let reason = format!("{} had its slot already", backend.name);
            self.backends.insert(backend.id.clone(), backend);
            self.remark(DecisionKind::Adopted, reason, now);
            return;
        }
        if self.settings.adopted_flows.remove(&backend.id) {
            backend.held = Held::Flows { since: now };
        }
        self.backends.insert(backend.id.clone(), backend);
    }

    fn resynced(&mut self, sightings: Vec<Sighting>, now: Timestamp) {
        self.provider_error = None;
        let listed: BTreeSet<ContainerId> = sightings.iter().map(|sighting| sighting.id.clone()).collect();
        for sighting in sightings {
            self.seen(sighting, now);
        }
        self.left_out.retain(|id, _| listed.contains(id));
        // What was only started, and never seen, may be younger than the list.
        let absent: Vec<ContainerId> = self
            .backends
            .values()
            .filter(|backend| backend.sighted && !listed.contains(&backend.id))
            .map(|backend| backend.id.clone())
            .collect();
        for id in absent {
            self.gone(&id, GoneCause::Removed, now);
        }
        self.stillborn.clear();
        if self.phase == Phase::Starting {
            self.phase = Phase::Running;
            self.adopt_leaving(now);
            if let Some(bounds) = self.bounds() {
                let is_wanted =
                    |backend: &&Backend| backend.is_active() && !self.settings.adopted_warm.contains(&backend.id);
                let active = self.backends.values().filter(is_wanted).count() as u32;
                // A law that is not followed has left a count that stands, however many of it have died meanwhile.
                let former = self.orders.paused().and(self.settings.adopted_desired);
                // Of those that a rollout has started beside the others, none was wanted for itself.
                let rolled = self.settings.adopted_rollout.and(self.settings.adopted_desired);
                self.wish = former.unwrap_or_else(|| bounds.awake().clamp(rolled.unwrap_or(active)));
                // A count by hand whose time was over before anybody could see to it starts nothing.
                self.lapse(now);
                self.keep_to_bounds();
                self.idle.somebody_came(now);
                self.adopt_rollout(now);
            }
            if self.stop_awaits_list {
                self.stop_requested(now);
            }
        }
        self.rollout_listed(now);
    }

    /// Drains what a former agent has served and the list lacks.
    fn adopt_leaving(&mut self, now: Timestamp) {
        for (id, address) in std::mem::take(&mut self.settings.adopted_leaving) {
            if self.backends.contains_key(&id) {
                continue;
            }
            let ordinal = self.backends.values().map(|backend| backend.ordinal + 1).max().unwrap_or(0);
            let backend = Backend::leaving(id.clone(), address, ordinal, now);
            self.remark(DecisionKind::Drain, format!("{} is not in the list any more", backend.name), now);
            self.backends.insert(id, backend);
        }
    }

    fn unreachable(&mut self, id: &ContainerId, error: String, now: Timestamp) {
        let Some(backend) = self.backends.get_mut(id).filter(|backend| backend.state == State::Ready) else { return };
        let reason = format!("{} cannot be reached: {error}", backend.name);
        backend.last_error = Some(error);
        backend.enter(State::Unhealthy, now);
        self.remark(DecisionKind::Unhealthy, reason, now);
    }

    fn gone(&mut self, id: &ContainerId, cause: GoneCause, now: Timestamp) {
        let auto = self.is_auto();
        if cause == GoneCause::Ending {
            self.ends(id, now);
            return;
        }
        if cause != GoneCause::Paused {
            self.left_out.remove(id);
        }
        let Some(backend) = self.backends.get_mut(id) else {
            if !self.pending.is_empty() && cause != GoneCause::Paused {
                self.stillborn.insert(id.clone(), cause);
            }
            return;
        };
        let (was_active, is_new) = (backend.is_active() || backend.state == State::Warm, !backend.outdated);
        // What has ended is not frozen, and what the engine has paused is the engine's to thaw.
        backend.frost = Frost::Awake;
        if cause == GoneCause::Ended {
            self.ended(id, now);
            return;
        }
        let what = format!("{}: {cause}", backend.name);
        if cause == GoneCause::Paused {
            // One that is on its way out goes on: it exists, and so do its flows.
            if was_active {
                backend.last_error = Some(cause.to_string());
                match backend.state {
                    State::Warm => backend.begin_drain(DrainCause::Superfluous, now),
                    State::Starting
                    | State::Ready
                    | State::Unhealthy
                    | State::Draining(_)
                    | State::Stopping(_)
                    | State::Dead(_) => backend.enter(State::Unhealthy, now),
                }
                self.remark(DecisionKind::Unhealthy, what, now);
            }
            return;
        }
        backend.held = Held::Nothing;
        let untold = backend.untold.take();
        let short = untold.map_or_else(|| backend.is_short_lived(now), |untold| untold.short);
        match backend.state {
            // Its stop is under way, and its answer to come.
            State::Stopping(_) if cause != GoneCause::Removed => return,
            State::Starting | State::Ready | State::Warm | State::Unhealthy | State::Draining(_)
                if cause != GoneCause::Removed =>
            {
                backend.last_error = Some(cause.to_string());
                backend.enter(State::Dead(Errand::new(now + REMOVE_DELAY)), now);
            }
            State::Dead(_) if cause != GoneCause::Removed && untold.is_none() => return,
            State::Dead(_) if cause != GoneCause::Removed => backend.last_error = Some(cause.to_string()),
            State::Starting
            | State::Ready
            | State::Warm
            | State::Unhealthy
            | State::Draining(_)
            | State::Stopping(_)
            | State::Dead(_) => {
                self.forget(id);
            }
        }
        if (was_active || untold.is_some()) && self.phase != Phase::Stopping {
            self.remark(DecisionKind::BackendDied, what.clone(), now);
            if auto && short && cause.is_own_doing() {
                self.crash_loop.failed(now);
                self.start_error = Some(what.clone());
                if is_new {
                    self.new_one_failed(&what, now);
                }
            }
        }
        if !auto {
            self.forget(id);
        }
    }

    fn probed(&mut self, id: &ContainerId, outcome: Result<Heard, String>, now: Timestamp) {
        let Some(backend) = self.backends.get_mut(id) else { return };
        let turn = backend.probed(outcome, &self.settings, now);
        let name = backend.name.clone();
        match turn {
            Turn::None => {}
            Turn::BecameReady => {
                self.kept_last.remove(id);
                if self.is_for_reserve(id)
                    && let Some(backend) = self.backends.get_mut(id)
                {
                    backend.enter(State::Warm, now);
                }
            }
            Turn::Recovered => {
                self.kept_last.remove(id);
                self.remark(DecisionKind::Recovered, format!("{name} passes its checks again"), now);
            }
        }
    }

    fn published(&mut self, generation: u64, now: Timestamp) {
        let Some(confirmed) = self.publisher.confirm(generation) else { return };
        let ready: BTreeSet<&ContainerId> = confirmed.ready.iter().collect();
        for id in &confirmed.asleep {
            if let Some(Backend { frost: Frost::Dozing { since, .. }, .. }) = self.backends.get_mut(id) {
                since.get_or_insert(now);
            }
        }
        for backend in self.backends.values_mut().filter(|backend| !ready.contains(&backend.id)) {
            backend.confirmed_out(now);
        }
    }

    fn start_failed(&mut self, error: String, now: Timestamp) {
        self.crash_loop.failed(now);
        self.remark(DecisionKind::StartFailed, error.clone(), now);
        self.start_error = Some(error);
    }

    fn forget(&mut self, id: &ContainerId) {
        if let Some(backend) = self.backends.remove(id) {
            self.note_end(&backend);
        }
        self.kept_last.remove(id);
        self.called.remove(id);
        self.freeze_errors.remove(id);
    }

    fn stop_requested(&mut self, now: Timestamp) {
        if self.phase == Phase::Stopping {
            return;
        }
        if self.phase == Phase::Starting && !self.settings.keep {
            self.stop_awaits_list = true;
            return;
        }
        self.phase = Phase::Stopping;
        if self.settings.keep {
            self.finished = true;
            self.remark(DecisionKind::Stopping, "asked to end, and to leave everything serving".into(), now);
            return;
        }
        self.wish = 0;
        // What ends has no use for orders, and the next instance of that name has not been given any.
        self.orders = Orders::default();
        self.rollout = Rollout::None;
        self.settings.adopted_rollout = None;
        self.standing = None;
        self.remark(DecisionKind::Stopping, "asked to end: every backend is drained and stopped".into(), now);
    }

    fn stop_forced(&mut self, now: Timestamp) {
        if self.phase == Phase::Starting {
            let reason = "asked again, before it is known which containers there are: they are left".into();
            self.remark(DecisionKind::Stopping, reason, now);
            self.finished = true;
            return;
        }
        self.stop_requested(now);
        if self.forced {
            self.finished = true;
            return;
        }
        self.forced = true;
        self.remark(DecisionKind::Stopping, "asked again: what is not drained is cut".into(), now);
    }
}

/// Step two: what is due.
impl Controller {
    fn settle(&mut self, now: Timestamp) -> Vec<Command> {
        let mut commands = Vec::new();
        self.settled = now;
        if self.finished {
            // What is left serving is not left asleep: there will be nobody to wake it.
            let is_idle = |backend: &&Backend| backend.state == State::Ready && backend.frost.is_cold();
            let idle = self.backends.values().filter(is_idle);
            let thaws = idle.map(|backend| Command::Thaw { id: backend.id.clone() });
            return thaws.chain([Command::Finish]).collect();
        }
        if self.phase == Phase::Starting {
            return commands;
        }
        self.expire(now);
        self.expire_untold(now);
        self.take_waiting(now);
        self.judge(now);
        self.judge_ending(now);
        self.arrange(now, &mut commands);
        let starts = std::mem::take(&mut commands);
        self.release(now);
        let (thaws, freezes): (Vec<Command>, Vec<Command>) =
            self.frost(now).into_iter().partition(|command| matches!(command, Command::Thaw { .. }));
        commands.extend(thaws);
        self.publish(now, &mut commands);
        self.dismiss(now, &mut commands);
        commands.extend(starts);
        commands.extend(freezes);
        self.probe(now, &mut commands);
        if self.phase == Phase::Stopping && self.backends.is_empty() && self.pending.is_empty() {
            self.finished = true;
            commands.push(Command::Finish);
        }
        commands
    }

    /// Gives up what takes too long.
    fn expire(&mut self, now: Timestamp) {
        let overdue: Vec<u32> =
            self.pending.iter().filter(|(_, sent)| now.since(**sent) >= START_PATIENCE).map(|(&o, _)| o).collect();
        for ordinal in overdue {
            self.pending.remove(&ordinal);
            let error = format!("start of container {ordinal}: no answer");
            self.start_failed(error.clone(), now);
            self.new_one_failed(&error, now);
        }
        if self.is_auto() {
            let timeout = self.settings.start_timeout;
            let late: Vec<ContainerId> = self
                .backends
                .values()
                .filter(|backend| backend.state == State::Starting && now.since(backend.since) >= timeout)
                .map(|backend| backend.id.clone())
                .collect();
            for id in late {
                let Some(backend) = self.backends.get_mut(&id) else { continue };
                backend.begin_drain(DrainCause::Failing, now);
                let why = backend.last_error.clone().unwrap_or_else(|| "it has no address".into());
                let error = format!("{} is not ready after {} s: {why}", backend.name, timeout.as_secs());
                let is_new = !backend.outdated;
                self.start_failed(error.clone(), now);
                if is_new {
                    self.new_one_failed(&error, now);
                }
            }
            for backend in self.backends.values() {
                if let Some(life) = backend.life(now).filter(|_| backend.state == State::Ready) {
                    self.crash_loop.proven(backend.known_since, life);
                }
            }
        }
    }

    /// Takes backends that fail their checks out of rotation, but never the last one.
    fn judge(&mut self, now: Timestamp) {
        let failing: Vec<ContainerId> = self
            .backends
            .values()
            .filter(|backend| backend.state == State::Ready && backend.failing_since().is_some())
            .map(|backend| backend.id.clone())
            .collect();
        for id in failing {
            let ready = self.ready();
            let Some(backend) = self.backends.get_mut(&id) else { continue };
            let error = backend.last_error.clone().unwrap_or_default();
            let (kind, reason) = if ready > 1 {
                backend.enter(State::Unhealthy, now);
                self.kept_last.remove(&id);
                (DecisionKind::Unhealthy, format!("{} {}: {error}", backend.name, backend.failing(now)))
            } else if self.kept_last.insert(id) {
                (
                    DecisionKind::KeptLast,
                    format!("{} {}, but is the last one: {error}", backend.name, backend.failing(now)),
                )
            } else {
                continue;
            };
            self.remark(kind, reason, now);
        }
        self.judge_families(now);
    }

    /// Takes families in which backends fail out of rotation, but never the last backend of one, and brings back those that
    /// pass again.
    fn judge_families(&mut self, now: Timestamp) {
        let mut serving: BTreeMap<Family, usize> = BTreeMap::new();
        for backend in self.backends.values().filter(|backend| backend.state == State::Ready) {
            for (family, _) in backend.families().filter(|(_, serves)| *serves) {
                *serving.entry(family).or_default() += 1;
            }
        }
        let mut remarks = Vec::new();
        for backend in self.backends.values_mut() {
            let is_last = |family| serving.get(&family).is_none_or(|count| *count <= 1);
            for shift in backend.shift(is_last, &self.settings, now) {
                let name = &backend.name;
                remarks.push(match shift {
                    Shift::Comes(family) => {
                        *serving.entry(family).or_default() += 1;
                        (DecisionKind::Recovered, format!("{name} passes its checks by {family}"))
                    }
                    Shift::Fails(family, error) => {
                        (DecisionKind::Unhealthy, format!("{name} gets no clients of {family}: {error}"))
                    }
                    Shift::Goes(family, error) => {
                        serving.entry(family).and_modify(|count| *count -= 1);
                        (DecisionKind::Unhealthy, format!("{name} gets no more clients of {family}: {error}"))
                    }
                    Shift::Stays(family, error) => {
                        (DecisionKind::KeptLast, format!("{name} fails by {family}, but is the last one: {error}"))
                    }
                });
            }
        }
        for (kind, reason) in remarks {
            self.remark(kind, reason, now);
        }
    }

    /// Starts, keeps and drains, so that as many backends count as are wanted.
    fn arrange(&mut self, now: Timestamp, commands: &mut Vec<Command>) {
        if self.phase == Phase::Stopping {
            self.drain_all(now);
        }
        if self.phase != Phase::Running || !self.is_auto() {
            return;
        }
        let limit = self.settings.unhealthy_limit;
        let given_up: Vec<ContainerId> = self
            .backends
            .values()
            .filter(|backend| backend.state == State::Unhealthy && backend.is_given_up(limit, now))
            .map(|backend| backend.id.clone())
            .collect();
        for id in given_up {
            let Some(backend) = self.backends.get_mut(&id) else { continue };
            backend.begin_drain(DrainCause::Failing, now);
            let (name, is_new) = (backend.name.clone(), !backend.outdated);
            let failed = format!("{name} has failed its checks for {} s", limit.as_secs());
            self.remark(DecisionKind::Drain, format!("{failed}: it is replaced"), now);
            if is_new {
                self.new_one_failed(&failed, now);
            }
        }
        self.roll_out(now);

        let (is_distrusted, plan) = (self.distrusts_new(), self.plan(now));
        for id in plan.cancel {
            let Some(backend) = self.backends.get_mut(&id) else { continue };
            let was_ready = matches!(&backend.state, State::Draining(drain) if drain.was_ready);
            backend.return_from_drain(was_ready, now);
            let reason = format!("{} is needed again", backend.name);
            self.remark(DecisionKind::DrainCancelled, reason, now);
        }
        self.call(plan.call, now);
        self.trim_reserve(now);
        for id in plan.drain {
            let active = self.backends.values().filter(|backend| backend.is_active()).count();
            let Some(backend) = self.backends.get_mut(&id) else { continue };
            backend.begin_drain(DrainCause::Excess, now);
            let reason = match backend.flows {
                _ if is_distrusted && !backend.outdated => {
                    format!(
                        "{} is of the settings whose rollout was aborted, and {} are wanted",
                        backend.name, self.wish
                    )
                }
                0 => format!("{} is the newest of {active}, and {} are wanted", backend.name, self.wish),
                flows => format!(
                    "{} has the fewest connections ({flows}) of {active}, and {} are wanted",
                    backend.name, self.wish
                ),
            };
            self.remark(DecisionKind::Drain, reason, now);
        }
        if self.provider_error.is_some() || self.is_to_be_told() {
            return;
        }
        let room = (self.crash_loop.room(self.settings.start_limit, now) as usize).saturating_sub(self.starting());
        let starts: Vec<u32> = plan.start.into_iter().take(room).collect();
        if !starts.is_empty() {
            let active = self.backends.values().filter(|backend| backend.is_active()).count() + self.pending.len();
            let wish = self.standing_wish();
            let reserve = match self.settings.warm {
                0 => String::new(),
                warm => format!(" and {warm} in reserve"),
            };
            let beside = match self.goal() - wish {
                0 => String::new(),
                more => format!(", and {more} beside them to replace others"),
            };
            let warm = self.backends.values().filter(|backend| backend.state == State::Warm).count();
            let there = active + warm;
            let reason =
                format!("{wish} wanted{reserve}{beside}, {there} there or on their way: {} more", starts.len());
            self.remark(DecisionKind::Start, reason, now);
        }
        for ordinal in starts {
            self.pending.insert(ordinal, now);
            commands.push(Command::Start { ordinal });
        }
    }

    /// Drains whatever there is at the end, those included whose start was under way.
    fn drain_all(&mut self, now: Timestamp) {
        for backend in self.backends.values_mut() {
            match &mut backend.state {
                State::Starting | State::Ready | State::Warm | State::Unhealthy => {
                    backend.begin_drain(DrainCause::Shutdown, now);
                }
                State::Draining(drain) if drain.cause == DrainCause::Unlisted => {}
                State::Draining(drain) => drain.cause = DrainCause::Shutdown,
                State::Stopping(_) | State::Dead(_) => {}
            }
        }
    }

    /// Returns how many containers are in creation, or, after a failure, on trial.
    fn starting(&self) -> usize {
        let on_trial = if self.crash_loop.failures() > 0 {
            self.backends.values().filter(|backend| backend.state == State::Starting).count()
        } else {
            0
        };
        self.pending.len() + on_trial
    }

    /// Lets go of backends that are drained.
    fn release(&mut self, now: Timestamp) {
        let timeout = self.settings.drain_timeout;
        let drained: Vec<ContainerId> = self
            .backends
            .values()
            .filter(|backend| matches!(backend.state, State::Draining(_)))
            .filter(|backend| self.forced || backend.is_drained(timeout, now))
            .map(|backend| backend.id.clone())
            .collect();
        for id in drained {
            let is_auto = self.is_auto();
            let Some(backend) = self.backends.get_mut(&id) else { continue };
            if backend.is_unlisted() && backend.flows > 0 {
                let reason = format!("{} leaves with {} connections left", backend.name, backend.flows);
                self.remark(DecisionKind::DrainTimedOut, reason, now);
                self.forget(&id);
                continue;
            }
            if !is_auto || backend.is_unlisted() {
                self.forget(&id);
                continue;
            }
            let cut = matches!(&backend.state, State::Draining(drain) if !drain.clear) && backend.may_have_flows();
            let reason = format!("{} is stopped with {} connections left", backend.name, backend.flows);
            let flows = backend.flows;
            let was_excess = matches!(&backend.state,
                State::Draining(drain) if drain.cause == DrainCause::Excess && drain.was_ready);
            if was_excess && !cut && backend.fits_reserve() && self.reserve_is_short() {
                if let Some(backend) = self.backends.get_mut(&id) {
                    backend.enter(State::Warm, now);
                }
                continue;
            }
            let Some(backend) = self.backends.get_mut(&id) else { continue };
            backend.enter(State::Stopping(Errand::new(now)), now);
            if cut && flows > 0 {
                self.remark(DecisionKind::DrainTimedOut, reason, now);
            }
        }
    }

    /// Returns the backends that get less than their share of new connections, and how many tenths of it.
    fn warming(&self, now: Timestamp) -> BTreeMap<ContainerId, u32> {
        let ready = || self.backends.values().filter(|backend| backend.state == State::Ready);
        let tenths = |backend: &Backend| backend.tenths(self.settings.slow_start, now);
        let all: Vec<u32> = ready().map(|backend| tenths(backend).unwrap_or(slow_start::WHOLE)).collect();
        let floor = slow_start::floor(&all);
        ready()
            .filter_map(|backend| Some((backend.id.clone(), tenths(backend)?.max(floor))))
            .filter(|(_, tenths)| *tenths < slow_start::WHOLE)
            .collect()
    }

    fn publish(&mut self, now: Timestamp, commands: &mut Vec<Command>) {
        let mut ready = Vec::new();
        let mut deaf = BTreeSet::new();
        let warming = self.warming(now);
        let mut asleep = BTreeSet::new();
        let mut draining = Vec::new();
        let mut ordered: Vec<&Backend> = self.backends.values().collect();
        ordered.sort_by(|one, other| (one.ordinal, &one.id).cmp(&(other.ordinal, &other.id)));
        for backend in ordered {
            match backend.state {
                State::Ready => {
                    ready.push(backend.id.clone());
                    if backend.frost.is_told() {
                        asleep.insert(backend.id.clone());
                    }
                    let unserved = backend.families().filter(|(_, serves)| !serves);
                    deaf.extend(unserved.map(|(family, _)| (backend.id.clone(), family)));
                }
                State::Unhealthy | State::Draining(_) | State::Stopping(_) | State::Starting
                    if backend.may_have_flows() =>
                {
                    draining.push(backend.id.clone());
                }
                State::Starting
                | State::Warm
                | State::Unhealthy
                | State::Draining(_)
                | State::Stopping(_)
                | State::Dead(_) => {}
            }
        }
        if let Some(publication) = self.publisher.offer(ready, deaf, warming, asleep, draining, now) {
            for id in &publication.ready {
                if let Some(backend) = self.backends.get_mut(id) {
                    backend.offered_slot();
                }
            }
            commands.push(Command::Publish(publication));
        }
    }

    /// Stops and removes what is out of service.
    fn dismiss(&mut self, now: Timestamp, commands: &mut Vec<Command>) {
        if self.provider_error.is_some() && !self.forced {
            return;
        }
        for backend in self.backends.values_mut() {
            let id = backend.id.clone();
            // Whoever is frozen cannot end by itself.
            let is_cold = backend.frost.is_cold() && !backend.frost.is_given_up() && !self.forced;
            match &mut backend.state {
                State::Stopping(errand) if errand.due() <= now && !is_cold => {
                    errand.sent(self.settings.stop_patience, now);
                    commands.push(Command::Stop { id });
                }
                State::Dead(errand) if errand.due() <= now => {
                    errand.sent(REMOVE_PATIENCE, now);
                    commands.push(Command::Remove { id });
                }
                State::Starting
                | State::Ready
                | State::Warm
                | State::Unhealthy
                | State::Draining(_)
                | State::Stopping(_)
                | State::Dead(_) => {}
            }
        }
    }

    fn probe(&mut self, now: Timestamp, commands: &mut Vec<Command>) {
        for backend in self.backends.values_mut() {
            if backend.probe_due().is_some_and(|due| due <= now) {
                backend.probe_sent(now);
                commands.push(Command::Probe { id: backend.id.clone() });
            }
        }
    }
}

#[cfg(test)]
mod tests;
