//! The scaling law of a service: what was measured and the count that stands in, the count that is wanted out, with a
//! [`Record`] of everything that led to it.
//!
//! The demand of each metric is absolute, a total divided by what one backend is to carry, so that asking again while
//! backends start asks for the same count:
//!
//! ```text
//! container-cpu   W = Σ cores used / (target · cores of one)              blind above saturation
//! arrivals        W = new connections a second · cost / (target · cores)  sees the demand before it is served
//! connections     W = Σ live connections / target                         for connections that last
//! latency         W = current + a quarter, while SYN-ACKs come late       a push, and a veto against fewer
//! response        the same, while answers to first requests do            the other half of `latency`
//! pressure        the same, while tasks wait for a processor
//! ```
//!
//! The largest wish wins upwards; downwards all metrics that measure have to agree, and one that is missing does not.
//!
//! ```text
//! observe: readings ─▶ windows ─▶ Evidence        what is known, free of targets
//! judge:   law, Evidence ─▶ Verdict               the wish, what limits it, and why; remembers nothing
//! hasten:  last Evidence, Surge ─▶ judge          between two ticks, where what comes leaves no doubt ([`surge`])
//! ```
//!
//! SYNs that come again push like a level that is too high, and begin a burst ([`repeats`]).
//!
//! [`decide`] is the first two in a row. As the evidence is free of targets, [`judge`] answers also what another law would
//! have decided (`lb-user explain --if`).
//!
//! # Why it does not flap
//! Under a constant demand `w` a rise ends at `⌈w⌉`, and none follows, as that needs `w > 1.1 n`; a fall ends at
//! `⌈1.05 w⌉ >= w`, and no rise follows; a second fall needs `w < 0.8 n` and ends where the first did, or is the rest of
//! one that a limit has cut short. So from any start there is one reversal at most. Under noise, a fall needs *every* mean
//! of the down window to be low, and in a burst there is none.
//!
//! # Slow start
//! A demand is a total, whoever serves it, so wishes know nothing of slow start. But backends that get a part of their
//! share are not busy where all that can be served is: saturation, and whether more are an answer, count each by its part
//! ([`Inputs::whole`]), and no second push comes before what the first has asked for has half of its share.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::policy::{Bounds, TargetLoad};
use super::time::Timestamp;

mod cooldowns;
mod cost;
mod judge;
mod levels;
mod metric;
mod repeats;
mod stay;
mod surge;
mod track;

pub use cooldowns::Cooldowns;
pub use judge::{Limit, Mood, RISE_BAND, Verdict, Winner, judge};
pub use metric::{Demand, Evidence, Metric, Seen, Sight, Wish};
pub use repeats::Repeats;
pub use surge::{Looks, Standing, Surge, hasten};

use cost::Cost;
use levels::Levels;
use stay::Stay;
use track::Track;

/// How far back the mean reaches that finds a burst.
const FAST: Duration = Duration::from_secs(3);
/// So many new connections are enough for a mean: their number is off by a tenth then, by chance alone.
const ENOUGH: f64 = 100.0;
/// How long after its start a backend's CPU is that of starting, and says nothing of the demand.
const WARM_UP: Duration = Duration::from_secs(5);
/// How long growth is counted together.
const UP_PERIOD: Duration = Duration::from_secs(5);
/// The time between two falls.
const DOWN_PERIOD: Duration = Duration::from_secs(15);
/// How many ticks in a row a level has to be beyond its target.
const LEVEL_TICKS: usize = 3;
/// The means of the host's and the foreign load reach as far back, lest a compiler's seconds keep a service small.
const FOREIGN: Duration = Duration::from_secs(15);
/// Of the down window, so much has to pass after a burst before fewer are wanted, and after a collapse.
const BURST_HOLD: f64 = 0.5;
const COLLAPSE_HOLD: f64 = 2.5;
/// A demand that falls below this share of what it was within [`COLLAPSE_SPAN`] is an outage until the opposite is shown.
const COLLAPSE: f64 = 0.1;
const COLLAPSE_SPAN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(30));
/// After so many intervals without a tick, and this time at least, nothing is known about the time between.
const GAP_INTERVALS: u32 = 5;
const LEAST_GAP: Duration = Duration::from_secs(5);
/// A saturated service shows less CPU for each connection than they cost: what is late is not paid yet.
const SATURATED: f64 = 0.9;
/// How long after saturation the CPU is that of what was late.
const CATCH_UP: Duration = Duration::from_secs(5);
/// A backend in slow start that gets so much of its share has shown by then whether it helps.
const GROWN: f64 = 0.5;
/// What arrives is not paid where it would cost so many times the CPU that is used, for so long, while nobody is busy.
const UNPAID: f64 = 1.5;
const UNPAID_FOR: Duration = Duration::from_secs(8);
/// In so long what waits is to be served, with every processor that there is.
const BACKLOG: Duration = Duration::from_secs(2);

/// What each metric aims at, for each backend; one without a target is not asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// The share of its processors that a backend is to use.
    pub container_cpu: Option<TargetLoad>,
    /// The share of its processors that the connections of a second are to cost a backend.
    pub arrivals: Option<TargetLoad>,
    /// Live connections for each backend, above zero.
    pub connections: Option<f64>,
    /// The time from SYN to SYN-ACK that 99 of a hundred are to keep to.
    pub latency: Option<Duration>,
    /// The time from the first byte of a connection's first request to the first of its answer that 99 of a hundred are to
    /// keep to.
    pub response: Option<Duration>,
    /// The share of the time in which tasks may wait for a processor.
    pub pressure: Option<TargetLoad>,
}

impl Targets {
    /// Returns the metrics that have a target.
    pub fn metrics(&self) -> impl Iterator<Item = Metric> {
        let targets = *self;
        Metric::ALL.into_iter().filter(move |metric| targets.of(*metric).is_some())
    }

    /// Returns what a metric aims at, for people.
    pub fn of(&self, metric: Metric) -> Option<String> {
        let percent = |target: TargetLoad| format!("{} %", (target.share() * 1000.0).round() / 10.0);
        match metric {
            Metric::ContainerCpu => self.container_cpu.map(percent),
            Metric::Arrivals => self.arrivals.map(percent),
            Metric::Connections => self.connections.map(|count| count.to_string()),
            Metric::Latency => self.latency.map(|latency| format!("{latency:?}")),
            Metric::Response => self.response.map(|response| format!("{response:?}")),
            Metric::Pressure => self.pressure.map(percent),
        }
    }

    /// Returns the metrics with what they aim at, for people: `arrivals (70 %) and container-cpu (70 %)`.
    pub fn told(&self) -> String {
        let one = |metric: Metric| self.of(metric).map(|target| format!("{metric} ({target})"));
        let mut all: Vec<String> = Metric::ALL.into_iter().filter_map(one).collect();
        let last = all.pop().unwrap_or_default();
        if all.is_empty() { last } else { format!("{} and {last}", all.join(", ")) }
    }
}

/// The parameters of the law.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Law {
    /// The smallest and the largest count.
    pub bounds: Bounds,
    /// The metrics, and what they aim at.
    pub targets: Targets,
    /// How many processors one backend may use; without it, its share of the host where there are `max`.
    pub quota: Option<f64>,
    /// How far back the mean reaches that asks for more, where there is no burst.
    pub up_window: Duration,
    /// How long fewer have to be enough.
    pub down_window: Duration,
    /// How often it is measured.
    pub interval: Duration,
}

impl Law {
    /// The mean of so long asks for more: under noise, shorter ones ask for backends that go again (`lb-user simulate`).
    /// Sudden demand does not wait for it.
    pub const UP_WINDOW: Duration = Duration::from_secs(45);
    /// So long fewer have to be enough.
    pub const DOWN_WINDOW: Duration = Duration::from_secs(120);
    /// What a backend is to use of its processors: room for noise, and for the time in which others start.
    pub const TARGET: TargetLoad = TargetLoad::SEVENTY;

    /// Returns the law with its defaults and the metrics that follow demand best: `arrivals` and `container-cpu`.
    pub fn new(bounds: Bounds) -> Self {
        let targets = Targets { container_cpu: Some(Self::TARGET), arrivals: Some(Self::TARGET), ..Targets::default() };
        Law {
            bounds,
            targets,
            quota: None,
            up_window: Self::UP_WINDOW,
            down_window: Self::DOWN_WINDOW,
            interval: Duration::from_secs(1),
        }
    }

    /// Returns the time between two ticks after which the windows start afresh.
    pub(super) fn gap(&self) -> Duration {
        self.interval.saturating_mul(GAP_INTERVALS).max(LEAST_GAP)
    }

    fn keep(&self) -> Duration {
        self.down_window.max(self.up_window).max(COLLAPSE_SPAN.1).max(FOREIGN) + self.gap()
    }
}

/// What is measured at one tick. `None` is what could not be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// The count that was decided before: backends that are ready, starting, or due as replacements.
    pub current: u32,
    /// How many of them serve.
    pub ready: u32,
    /// The host.
    pub host: Option<HostUse>,
    /// The CPU of the backends that are ready, each with its age since it became so.
    pub cpu: Vec<CpuUse>,
    /// Processors that each of those uses that get no new connections but may have old ones, being unhealthy or on their
    /// way out; none where that is not known. What they serve is demand, too: others have to serve it soon.
    pub aside: Vec<Option<f64>>,
    /// Processors that the service's other containers use, those that start or stop: neither demand nor foreign.
    pub beside: f64,
    /// Connections begun since the last tick.
    pub arrivals: Option<f64>,
    /// Connections under way.
    pub connections: Option<f64>,
    /// The time that 99 of a hundred handshakes since the last tick did not exceed.
    pub handshakes: Option<Handshakes>,
    /// How long first requests waited for their answers that have come since the last tick.
    pub responses: Option<Responses>,
    /// The share of the time in which tasks waited for a processor.
    pub pressure: Option<f64>,
    /// SYNs that came again since the last tick, to backends that serve and have accepted others meanwhile.
    #[serde(default)]
    pub repeats: Option<f64>,
}

impl Inputs {
    /// Returns the parts of their shares that backends get, beside those that get the most: where all have just begun,
    /// none is spared.
    fn parts(&self) -> impl Iterator<Item = f64> {
        let most = self.cpu.iter().map(|one| one.part).fold(0.0, f64::max);
        self.cpu.iter().map(move |one| if most > 0.0 { one.part / most } else { 1.0 })
    }

    /// Returns the processors that those use which get no new connections, as far as that is known.
    fn aside(&self) -> f64 {
        self.aside.iter().flatten().filter(|cores| cores.is_finite()).sum()
    }

    /// Returns how many backends what serves is worth, each by the part of its share that it gets.
    fn whole(&self) -> f64 {
        f64::from(self.ready) - self.parts().map(|part| 1.0 - part).sum::<f64>()
    }
}

/// The processors of the host.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostUse {
    /// How many there are.
    pub processors: f64,
    /// How many of them are busy, whoever keeps them so; none where a reading is missing.
    pub busy: Option<f64>,
}

/// The CPU of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuUse {
    /// Processors used; none if that is not known.
    pub cores: Option<f64>,
    /// How many it may use at the most, where that is limited and known.
    pub quota: Option<f64>,
    /// How long it has been ready.
    pub age: Duration,
    /// The part of its share of new connections that it gets: less than one in slow start.
    pub part: f64,
}

/// Handshakes since the last tick.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handshakes {
    /// How many.
    pub count: u64,
    /// The time that 99 of a hundred did not exceed.
    pub p99: Duration,
}

/// Answers to first requests since the last tick.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Responses {
    /// How many.
    pub count: u64,
    /// The time that one of a hundred took at least: an answer that is slow by nature is not late by how it is counted.
    pub p99_at_least: Duration,
}

/// What the law remembers.
#[derive(Clone, Debug, Default)]
pub struct State {
    last: Option<Timestamp>,
    unbroken_since: Option<Timestamp>,
    cpu: Track,
    /// Since when what arrives would cost more CPU than is used, and nobody is busy.
    unpaid_since: Option<Timestamp>,
    arrivals: Track,
    connections: Track,
    foreign: Track,
    busy: Track,
    latency: Levels,
    response: Levels,
    pressure: Levels,
    missing: [u32; Metric::ALL.len()],
    cost: Cost,
    stay: Stay,
    /// Until when the CPU is that of what was late.
    saturated_until: Timestamp,
    burst_until: Timestamp,
    hold_until: Timestamp,
    collapse: Option<Collapse>,
    counts: VecDeque<(Timestamp, u32)>,
    repeats: repeats::Counts,
    fell: Option<Timestamp>,
    pushed: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Collapse {
    until: Timestamp,
    /// The demand that has collapsed; half of it ends the hold.
    before: f64,
}

impl State {
    /// Returns the CPU that a connection costs, in seconds, once enough have been seen.
    pub fn cost(&self) -> Option<f64> {
        self.cost.known()
    }

    /// Notes that what was decided is done.
    pub fn follow(&mut self, record: &Record) {
        let Record { at: now, law, inputs, verdict, .. } = record;
        if verdict.target < inputs.current {
            self.fell = Some(*now);
        }
        let is_push = matches!(
            verdict.winner,
            Some(Winner::Metric(Metric::Latency | Metric::Response | Metric::Pressure) | Winner::Repeats)
        );
        if is_push && verdict.target > inputs.current {
            self.pushed = Some(*now);
            self.burst_until = *now + law.down_window;
        }
    }

    /// Holds what stands for a while, where a verdict is on a burst.
    fn note_burst(&mut self, law: &Law, verdict: &Verdict, now: Timestamp) {
        if verdict.in_burst {
            self.burst_until = self.burst_until.max(now + law.down_window.mul_f64(BURST_HOLD));
        }
    }

    /// Takes over what a connection costs from a former life.
    pub fn adopt_cost(&mut self, seconds: f64) {
        self.cost.adopt(seconds);
    }
}

/// A decision with everything that led to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: Timestamp,
    /// The law.
    pub law: Law,
    /// What was measured.
    pub inputs: Inputs,
    /// What was known.
    pub evidence: Evidence,
    /// What was decided.
    pub verdict: Verdict,
}

/// Decides how many backends are wanted, and takes for granted that it is done.
pub fn decide(law: &Law, inputs: &Inputs, state: &mut State, now: Timestamp) -> Record {
    let record = consider(law, inputs, state, now);
    state.follow(&record);
    record
}

/// Decides how many backends are wanted. Whether it is done, [`State::follow`] tells.
pub fn consider(law: &Law, inputs: &Inputs, state: &mut State, now: Timestamp) -> Record {
    let evidence = observe(law, inputs, state, now);
    let verdict = judge(law, &evidence);
    state.note_burst(law, &verdict, now);
    Record { at: now, law: *law, inputs: inputs.clone(), evidence, verdict }
}

impl Record {
    /// Returns the verdict of another law on what was known then. The windows are those of its own law.
    pub fn under(&self, law: &Law) -> Verdict {
        judge(law, &self.evidence)
    }
}

/// Brings a tick's readings into the windows, and returns what is known with them.
fn observe(law: &Law, inputs: &Inputs, state: &mut State, now: Timestamp) -> Evidence {
    let elapsed = match state.last {
        Some(last) if now.since(last) > law.gap() => {
            let (cost, stay) = (state.cost, state.stay);
            *state = State { cost, stay, hold_until: now + law.down_window, ..State::default() };
            None
        }
        Some(last) => Some(now.since(last)).filter(|elapsed| !elapsed.is_zero()),
        None => None,
    };
    state.last = Some(now);
    let since = *state.unbroken_since.get_or_insert(now);

    let processors = inputs.host.map(|host| host.processors);
    let limit = limit(law, inputs);
    let unit = metric::unit(law, limit, processors);
    let used: f64 = inputs.cpu.iter().filter_map(|one| one.cores).sum();
    // The mean of a tick in which the host did less than its backends, as their clocks are not read at once, is no load.
    let busy = inputs.host.and_then(|host| Some((host.processors, host.busy?)));
    if let Some((processors, busy)) = busy {
        let own = used + inputs.aside() + inputs.beside;
        let foreign = (busy - own).clamp(0.0, processors);
        state.foreign.push(law, foreign, foreign, now);
        state.busy.push(law, busy, busy, now);
    }

    let whole = inputs.whole();
    let is_busy = used >= SATURATED * unit * whole || busy.is_some_and(|(processors, busy)| busy >= 0.95 * processors);
    if is_busy {
        state.saturated_until = now + CATCH_UP;
    }
    let cpu = cpu_demand(inputs, unit);
    if let (Some(arrivals), Some((low, high)), Some(elapsed)) = (inputs.arrivals, cpu, elapsed)
        && low >= high
        && now >= state.saturated_until
    {
        state.cost.learn(low * elapsed.as_secs_f64(), arrivals, elapsed);
    } else {
        state.cost.skip();
    }
    let rate = elapsed.and_then(|elapsed| Some(inputs.arrivals? / elapsed.as_secs_f64()));
    let counted = inputs.repeats.zip(inputs.arrivals).zip(elapsed);
    let repeats = if let Some(((syns, connections), within)) = counted {
        Some(state.repeats.add(Repeats { syns, connections, within }, now))
    } else {
        state.repeats.forget();
        None
    };
    let waiting = match (rate, inputs.connections) {
        (Some(rate), Some(active)) => state.stay.waiting(rate, active, is_busy),
        (Some(_) | None, _) => 0.0,
    };

    if let Some((low, high)) = cpu {
        state.cpu.push(law, low, high, now);
    }
    let paid = paid(state, law, cpu, rate, now);
    let used = cpu_of_ready(inputs, unit).map(|(low, _)| low);
    let is_held = metric::is_answered_after_fall(used, unit, whole, inputs.current);
    if is_held && paid.is_none() && repeats.is_some_and(|repeats| repeats.are_many()) {
        state.burst_until = state.burst_until.max(now + law.down_window);
    }
    let mut sights = Vec::new();
    for metric in Metric::ALL {
        let is_missing;
        let seen = match metric {
            Metric::ContainerCpu if law.targets.container_cpu.is_some() => {
                is_missing = cpu.is_none() && !inputs.cpu.is_empty();
                state.cpu.seen(law, cpu.is_some(), FAST, now)
            }
            Metric::Arrivals if law.targets.arrivals.is_some() => {
                is_missing = inputs.arrivals.is_none();
                if let Some(rate) = rate {
                    let target = law.targets.arrivals.map_or(1.0, TargetLoad::share);
                    let rate = rate.max(target * (rate + waiting / BACKLOG.as_secs_f64()));
                    state.arrivals.push(law, rate, rate, now);
                }
                match state.cost.known() {
                    None if !is_missing => Seen::Learning { connections: state.cost.connections() },
                    Some(_) | None => {
                        let fast = state.arrivals.shortest(ENOUGH, FAST, now);
                        state.arrivals.seen(law, rate.is_some(), fast, now)
                    }
                }
            }
            Metric::Connections if law.targets.connections.is_some() => {
                is_missing = inputs.connections.is_none();
                if let Some(active) = inputs.connections {
                    state.connections.push(law, active, active, now);
                }
                state.connections.seen(law, inputs.connections.is_some(), FAST, now)
            }
            Metric::Latency if law.targets.latency.is_some() => {
                is_missing = inputs.handshakes.is_none();
                let level = inputs.handshakes.map(|told| if told.count == 0 { 0.0 } else { told.p99.as_secs_f64() });
                state.latency.push(law, level, is_held, now);
                state.latency.seen(now)
            }
            Metric::Response if law.targets.response.is_some() => {
                is_missing = inputs.responses.is_none();
                match inputs.responses {
                    Some(told) if told.count == 0 => state.response.pause(law, now),
                    told => {
                        let level = told.map(|told| told.p99_at_least.as_secs_f64());
                        state.response.push(law, level, is_held, now);
                    }
                }
                state.response.seen(now)
            }
            Metric::Pressure if law.targets.pressure.is_some() => {
                is_missing = inputs.pressure.is_none();
                state.pressure.push(law, inputs.pressure, is_held, now);
                state.pressure.seen(now)
            }
            Metric::ContainerCpu
            | Metric::Arrivals
            | Metric::Connections
            | Metric::Latency
            | Metric::Response
            | Metric::Pressure => continue,
        };
        let ticks = &mut state.missing[metric as usize];
        *ticks = if is_missing { ticks.saturating_add(1) } else { 0 };
        let seen = if is_missing { Seen::Missing { ticks: *ticks } } else { seen };
        sights.push(Sight { metric, seen });
    }

    let outage = collapsed(law, state, unit, now);
    let base = count_before(state, inputs.current, now);
    Evidence {
        current: inputs.current,
        ready: inputs.ready,
        whole,
        limit,
        cost: state.cost.known(),
        paid,
        processors,
        busy: state.busy.mean(FOREIGN, now).map(|(low, _)| low),
        foreign: state.foreign.mean(FOREIGN, now).map(|(low, _)| low),
        used,
        sights,
        surge: None,
        repeats,
        seen_for: now.since(since),
        burst_for: state.burst_until.since(now),
        hold_for: state.hold_until.since(now),
        outage_for: outage,
        count_before: base,
        fell_ago: state.fell.map(|fell| now.since(fell)),
        may_push: inputs.ready >= inputs.current
            && inputs.parts().all(|part| part >= GROWN)
            && state.pushed.is_none_or(|pushed| now.since(pushed) >= law.interval.saturating_mul(LEVEL_TICKS as u32)),
    }
}

/// Returns how many processors one backend may use, where that is limited.
fn limit(law: &Law, inputs: &Inputs) -> Option<f64> {
    let limits: Vec<f64> = inputs.cpu.iter().filter_map(|one| one.quota).filter(|quota| *quota > 0.0).collect();
    if limits.len() == inputs.cpu.len() && !limits.is_empty() {
        Some(limits.iter().sum::<f64>() / limits.len() as f64)
    } else {
        law.quota
    }
}

/// Returns the processors that the backends use at least and at most; nothing if that is known of none that is ready. One
/// that is not known uses nothing where more are asked for, and all that it may where fewer are.
fn cpu_demand(inputs: &Inputs, unit: f64) -> Option<(f64, f64)> {
    let unknown = inputs.aside.iter().filter(|cores| !cores.is_some_and(f64::is_finite)).count();
    let (low, high) = cpu_of_ready(inputs, unit)?;
    Some((low + inputs.aside(), high + inputs.aside() + unit * unknown as f64))
}

fn cpu_of_ready(inputs: &Inputs, unit: f64) -> Option<(f64, f64)> {
    let told = |one: &CpuUse| one.cores.filter(|cores| cores.is_finite() && one.age >= WARM_UP);
    let known: Vec<f64> = inputs.cpu.iter().filter_map(told).collect();
    if known.is_empty() {
        // Where all have just begun, what they use is all that there is to know.
        let young: Vec<f64> = inputs.cpu.iter().filter_map(|one| one.cores).collect();
        let all = young.len() == inputs.cpu.len() && !young.is_empty();
        return all.then(|| (young.iter().sum(), young.iter().sum::<f64>().max(unit * young.len() as f64)));
    }
    let low: f64 = known.iter().sum();
    Some((low, low + unit * (inputs.cpu.len() - known.len()) as f64))
}

/// Returns the CPU that is used, where what arrives has been asking for far more for a while, and nobody is busy: SYNs with
/// forged addresses cost no backend anything, and what a connection costs may have been learned of idle backends.
fn paid(
    state: &mut State,
    law: &Law,
    cpu: Option<(f64, f64)>,
    rate: Option<f64>,
    now: Timestamp,
) -> Option<metric::Demand> {
    let is_unpaid = || {
        let ((low, high), rate) = (cpu?, rate?);
        Some(low >= high && now >= state.saturated_until && rate * state.cost.known()? > UNPAID * low)
    };
    if is_unpaid() != Some(true) {
        state.unpaid_since = None;
        return None;
    }
    let since = *state.unpaid_since.get_or_insert(now);
    match state.cpu.seen(law, true, FAST, now) {
        Seen::Demand(demand) if now.since(since) >= UNPAID_FOR => Some(demand),
        Seen::Demand(_) | Seen::Level { .. } | Seen::Learning { .. } | Seen::Missing { .. } => None,
    }
}

/// Returns for how long a demand that is gone all at once holds the count.
fn collapsed(law: &Law, state: &mut State, unit: f64, now: Timestamp) -> Duration {
    // The demand in processors, or in connections where that is all that there is; half a backend's is worth a thought.
    let in_cores = |state: &State| {
        let cost = state.cost.known()?;
        let (recent, before) = state.arrivals.fall(FAST, COLLAPSE_SPAN, now)?;
        Some((recent * cost, before * cost, unit / 2.0))
    };
    let in_connections = |state: &State| {
        let (recent, before) = state.connections.fall(FAST, COLLAPSE_SPAN, now)?;
        Some((recent, before, law.targets.connections? / 2.0))
    };
    let Some((recent, before, least)) = in_cores(state).or_else(|| in_connections(state)) else {
        return state.collapse.map_or(Duration::ZERO, |collapse| collapse.until.since(now));
    };
    match state.collapse {
        Some(collapse) if recent >= collapse.before / 2.0 || now >= collapse.until => state.collapse = None,
        Some(_) => {}
        None if before >= least && recent < COLLAPSE * before => {
            state.collapse = Some(Collapse { until: now + law.down_window.mul_f64(COLLAPSE_HOLD), before });
        }
        None => {}
    }
    state.collapse.map_or(Duration::ZERO, |collapse| collapse.until.since(now))
}

/// Returns the smallest count of the period in which growth is counted together.
fn count_before(state: &mut State, current: u32, now: Timestamp) -> u32 {
    state.counts.push_back((now, current));
    // A tick is measured before its decision: what it decides is the next one's count.
    while state.counts.front().is_some_and(|(at, _)| now.since(*at) >= UP_PERIOD) {
        state.counts.pop_front();
    }
    state.counts.iter().map(|(_, count)| *count).min().unwrap_or(current)
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
