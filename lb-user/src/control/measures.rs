//! What is measured of a service's demand, and the decisions on it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::backend::{Backend, State};
use super::event::ContainerId;
use super::history::DecisionKind;
use super::law::{self, CpuUse, Handshakes, HostUse, Inputs, Mood, Record, Responses, Standing, Surge};
use super::settings::Scaling;
use super::slow_start;
use super::time::Timestamp;
use super::{Controller, Phase};

/// How long the connections that a sweep has counted are those that there are.
const SWEEP_AGE: Duration = Duration::from_secs(5);

/// What was measured at one tick; what could not be is missing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measures {
    /// The processors of the host.
    pub host: Option<HostUse>,
    /// The CPU of the service's containers, as far as it is known.
    pub cpu: BTreeMap<ContainerId, CpuUsed>,
    /// Connections that were begun since the last tick.
    pub arrivals: Option<f64>,
    /// How they were answered.
    pub handshakes: Option<Handshakes>,
    /// How what they asked for first was answered.
    pub responses: Option<Responses>,
    /// The share of the time in which tasks waited for a processor.
    pub pressure: Option<f64>,
    /// SYNs that came again since the last tick, to backends that serve and have accepted others meanwhile.
    pub repeats: Option<f64>,
}

/// The CPU of one container.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuUsed {
    /// Processors used since the last tick.
    pub cores: f64,
    /// How many it may use, where that is limited.
    pub quota: Option<f64>,
}

/// What is known of the demand.
#[derive(Debug, Default)]
pub(super) struct Demand {
    state: law::State,
    /// The last decision.
    pub record: Option<Record>,
    /// The last one that changed the number.
    pub changed: Option<Record>,
    /// When connections were counted last.
    pub swept: Option<Timestamp>,
}

impl Demand {
    /// Creates one that knows nothing, but perhaps what a connection costs, and what a former law was waiting for.
    pub fn new(cost: Option<f64>, cooldowns: Option<law::Cooldowns>) -> Self {
        let mut demand = Demand::default();
        if let Some(cost) = cost {
            demand.state.adopt_cost(cost);
        }
        if let Some(cooldowns) = cooldowns {
            demand.state.adopt_cooldowns(cooldowns);
        }
        demand
    }

    /// Returns what the law waits for.
    pub fn cooldowns(&self) -> law::Cooldowns {
        self.state.cooldowns()
    }

    /// Returns whether connections were counted a moment ago.
    pub fn is_swept(&self, now: Timestamp) -> bool {
        self.swept.is_some_and(|swept| now.since(swept) <= SWEEP_AGE)
    }

    /// Returns what a connection costs, in seconds of CPU.
    pub fn cost(&self) -> Option<f64> {
        self.state.cost()
    }
}

impl Controller {
    /// Decides by what was measured.
    pub(super) fn measured(&mut self, measures: &Measures, now: Timestamp) {
        self.doze_off(measures, now);
        let Scaling::Demand(law) = self.settings.scaling else { return };
        if self.phase != Phase::Running {
            return;
        }
        let law = law::Law { bounds: law.bounds.awake(), ..law };
        let inputs = self.inputs(measures, now);
        let record = law::consider(&law, &inputs, &mut self.demand.state, now);
        self.decided(record, now);
    }

    /// Returns the rate of new connections, a second, beyond which there is no waiting for the next measurement; nothing
    /// where it would change nothing.
    pub fn tripwire(&self) -> Option<f64> {
        let (law, last) = self.awake()?;
        let may_grow = self.orders.gate(self.wish, self.wish.saturating_add(1)) > self.wish;
        last.tripwire(&law, self.standing_now()).filter(|_| may_grow)
    }

    /// Decides by what has come since the last measurement.
    pub(super) fn surged(&mut self, surge: Surge, now: Timestamp) {
        let Some((law, last)) = self.awake().map(|(law, last)| (law, last.clone())) else { return };
        let standing = self.standing_now();
        if let Some(record) = law::hasten(&law, &last, standing, surge, &mut self.demand.state, now) {
            self.decided(record, now);
        }
    }

    /// Returns the law and the last decision by it, of a service that is awake.
    fn awake(&self) -> Option<(law::Law, &Record)> {
        let Scaling::Demand(law) = self.settings.scaling else { return None };
        let last = self.demand.record.as_ref().filter(|_| self.phase == Phase::Running && !self.is_asleep())?;
        Some((law::Law { bounds: law.bounds.awake(), ..law }, last))
    }

    fn standing_now(&self) -> Standing {
        Standing { current: self.wish.max(1), ready: self.ready() as u32 }
    }

    /// Brings about what was decided, as far as an operator lets it.
    fn decided(&mut self, record: Record, now: Timestamp) {
        let target = self.orders.gate(self.wish, record.verdict.target);
        let is_followed = target == record.verdict.target && self.orders.manual.is_none();
        if is_followed {
            self.demand.state.follow(&record);
        }
        let before = self.demand.record.replace(record.clone());
        let verdict = record.verdict.clone();
        if self.is_asleep() {
            return;
        }
        if target != self.wish {
            let from = std::mem::replace(&mut self.wish, target);
            let kind = if target > from { DecisionKind::ScaleUp } else { DecisionKind::ScaleDown };
            self.standing = None;
            self.demand.changed = Some(record);
            self.record(kind, from, verdict.reason, now);
            return;
        }
        let is_new = before.is_none_or(|before| before.verdict.mood != verdict.mood);
        match verdict.mood {
            Mood::HostSaturated if is_new => {
                self.remark(DecisionKind::HostSaturated, verdict.reason.clone(), now);
            }
            Mood::AtMax if is_new => self.remark(DecisionKind::AtMax, verdict.reason.clone(), now),
            Mood::Degraded if is_new => self.remark(DecisionKind::MetricMissing, verdict.reason.clone(), now),
            Mood::HostSaturated
            | Mood::AtMax
            | Mood::Degraded
            | Mood::Steady
            | Mood::ScalingUp
            | Mood::Burst
            | Mood::Holding
            | Mood::ScalingDown => {}
        }
        self.standing = Some(if is_followed { verdict.reason } else { self.orders.excuse(&verdict.reason) });
    }

    fn inputs(&self, measures: &Measures, now: Timestamp) -> Inputs {
        let ready = || self.backends.values().filter(|backend| backend.state == State::Ready);
        let aside = || self.backends.values().filter(|backend| is_aside(backend));
        let cores = |backend: &Backend| measures.cpu.get(&backend.id).map(|used| used.cores);
        let others = self.backends.values().filter(|backend| backend.state != State::Ready && !is_aside(backend));
        let cpu = ready().map(|backend| {
            let used = measures.cpu.get(&backend.id);
            CpuUse {
                cores: used.map(|used| used.cores),
                quota: used.and_then(|used| used.quota),
                age: backend.life(now).unwrap_or_default(),
                part: slow_start::part(backend.tenths(self.settings.slow_start, now)),
            }
        });
        Inputs {
            current: self.wish.max(1),
            ready: ready().count() as u32,
            host: measures.host,
            cpu: cpu.collect(),
            aside: aside().map(cores).collect(),
            beside: others.filter_map(cores).filter(|cores| cores.is_finite()).sum(),
            arrivals: measures.arrivals,
            connections: self
                .demand
                .is_swept(now)
                .then(|| ready().chain(aside()).map(|backend| backend.flows as f64).sum()),
            handshakes: measures.handshakes,
            responses: measures.responses,
            pressure: measures.pressure,
            repeats: measures.repeats,
        }
    }
}

/// Whether a backend gets no new connections and may have old ones: who waits for them to end is served all the same.
fn is_aside(backend: &Backend) -> bool {
    match backend.state {
        State::Unhealthy | State::Draining(_) => backend.has_been_ready(),
        State::Starting | State::Ready | State::Warm | State::Stopping(_) | State::Dead(_) => false,
    }
}
