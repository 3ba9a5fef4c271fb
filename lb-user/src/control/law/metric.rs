//! The metrics, what is known of each, and how many backends it wants.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::judge::fewest_after;
use super::{Law, Repeats, Surge, TargetLoad};

/// What demand is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The CPU that new connections will cost.
    Arrivals,
    /// The CPU that containers use.
    ContainerCpu,
    /// Live connections.
    Connections,
    /// The time from SYN to SYN-ACK.
    Latency,
    /// The time from the first byte of a connection's first request to the first of its answer: the other half of what is
    /// asked for by `latency`.
    Response,
    /// Tasks that wait for a processor.
    Pressure,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 6] = [
        Metric::Arrivals,
        Metric::ContainerCpu,
        Metric::Connections,
        Metric::Latency,
        Metric::Response,
        Metric::Pressure,
    ];

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Metric::ContainerCpu => "container-cpu",
            Metric::Arrivals => "arrivals",
            Metric::Connections => "connections",
            Metric::Latency => "latency",
            Metric::Response => "response",
            Metric::Pressure => "pressure",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known at one tick, free of targets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The count that stands.
    pub current: u32,
    /// How many of it serve.
    pub ready: u32,
    /// How many those are worth, each by the part of its share that it gets in slow start.
    pub whole: f64,
    /// How many processors one backend may use, where that is limited.
    pub limit: Option<f64>,
    /// The CPU that a connection costs, in seconds.
    pub cost: Option<f64>,
    /// The CPU that is used, in processors, where it is far less than what arrives would cost: what arrives is worth no more.
    pub paid: Option<Demand>,
    /// The processors of the host.
    pub processors: Option<f64>,
    /// How many of them are busy, whoever keeps them so.
    pub busy: Option<f64>,
    /// How many of them others keep busy.
    pub foreign: Option<f64>,
    /// How many of them the backends keep busy that serve.
    pub used: Option<f64>,
    /// What each metric tells.
    pub sights: Vec<Sight>,
    /// What came since the tick and did not wait for the next one.
    #[serde(default)]
    pub surge: Option<Surge>,
    /// SYNs that came again within the last seconds.
    #[serde(default)]
    pub repeats: Option<Repeats>,
    /// How long there has been no gap.
    pub seen_for: Duration,
    /// How long the last burst still forbids fewer.
    pub burst_for: Duration,
    /// How long the last gap still does.
    pub hold_for: Duration,
    /// How long a demand that was gone all at once still does.
    pub outage_for: Duration,
    /// The smallest count of the last seconds, from which growth is counted.
    pub count_before: u32,
    /// How long ago the count fell last.
    pub fell_ago: Option<Duration>,
    /// Whether what was asked for by a push serves by now.
    pub may_push: bool,
}

/// What one metric tells.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sight {
    /// Which.
    pub metric: Metric,
    /// What.
    pub seen: Seen,
}

/// What is known of one metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// A demand, in the metric's own unit.
    Demand(Demand),
    /// A level that says only whether all is well.
    Level {
        /// At this tick.
        latest: f64,
        /// What it did not fall below in the last ticks.
        lasting: f64,
        /// The highest of the down window, where more were an answer to it.
        highest: f64,
        /// For how long it has been measured without a gap.
        seen_for: Duration,
    },
    /// Nothing, as too little has happened.
    Learning {
        /// How many connections have.
        connections: u64,
    },
    /// Nothing, as it cannot be measured.
    Missing {
        /// For how many ticks.
        ticks: u32,
    },
}

/// A demand.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    /// The mean of the last seconds.
    pub fast: f64,
    /// The mean of the up window.
    pub slow: f64,
    /// The highest such mean of the down window.
    pub peak: f64,
    /// For how long it has been measured without a gap.
    pub seen_for: Duration,
}

/// How many backends a metric wants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wish {
    /// Which.
    pub metric: Metric,
    /// By the last seconds.
    pub fast: Option<f64>,
    /// At least.
    pub up: Option<f64>,
    /// At most; none where it does not agree to fewer.
    pub down: Option<f64>,
    /// Whether it has nothing to say, and so nothing against fewer.
    pub abstains: bool,
}

impl Evidence {
    /// Returns what a metric wants under a law.
    pub fn wish(&self, law: &Law, sight: &Sight) -> Wish {
        let metric = sight.metric;
        let silent = Wish { metric, fast: None, up: None, down: None, abstains: true };
        let Some(target) = self.one_carries(law, metric).filter(|target| *target > 0.0) else { return silent };
        let is_answered = is_answered_by_more(self.used, self.unit(law), self.whole);
        match self.paid_part(sight) {
            Seen::Demand(demand) => Wish {
                fast: Some(demand.fast / target),
                up: Some(demand.slow / target),
                down: Some(demand.peak.max(demand.fast) / target),
                abstains: false,
                ..silent
            },
            Seen::Level { lasting, .. } if lasting > target && is_answered => {
                let pushed = f64::from(self.current) + f64::from(self.current.div_ceil(4));
                Wish { up: self.may_push.then_some(pushed), abstains: false, ..silent }
            }
            // What is late at half the target may well be beyond it with fewer.
            Seen::Level { highest, .. } if highest > target / 2.0 => Wish { abstains: false, ..silent },
            Seen::Level { .. } | Seen::Learning { .. } => silent,
            Seen::Missing { .. } => Wish { abstains: false, ..silent },
        }
    }

    /// Returns how many backends SYNs ask for that come again, where more are an answer to them: a quarter more, or as many
    /// as stand where what was pushed for before does not serve yet.
    pub(super) fn overflow(&self, law: &Law) -> Option<(Repeats, f64)> {
        let is_answered = is_answered_by_more(self.used, self.unit(law), self.whole);
        let repeats = self.repeats.filter(|repeats| repeats.are_many() && is_answered && self.paid.is_none())?;
        let more = if self.may_push { self.current.div_ceil(4) } else { 0 };
        Some((repeats, f64::from(self.current) + f64::from(more)))
    }

    /// Returns what is seen of a metric; of what arrives, the surge, and as much as CPU pays for.
    fn paid_part(&self, sight: &Sight) -> Seen {
        let surging = |demand: Demand| match self.surge {
            Some(surge) if sight.metric == Metric::Arrivals => Demand { fast: demand.fast.max(surge.rate()), ..demand },
            Some(_) | None => demand,
        };
        let seen = match sight.seen {
            Seen::Demand(demand) => Seen::Demand(surging(demand)),
            seen @ (Seen::Level { .. } | Seen::Learning { .. } | Seen::Missing { .. }) => seen,
        };
        match (seen, self.paid.zip(self.cost)) {
            (Seen::Demand(demand), Some((paid, cost))) if sight.metric == Metric::Arrivals => Seen::Demand(Demand {
                fast: demand.fast.min(paid.fast / cost),
                slow: demand.slow.min(paid.slow / cost),
                peak: demand.peak.min(paid.peak / cost),
                ..demand
            }),
            (seen, _) => seen,
        }
    }

    /// Returns what one backend is to carry, in the metric's own unit.
    pub fn one_carries(&self, law: &Law, metric: Metric) -> Option<f64> {
        let targets = &law.targets;
        match metric {
            Metric::ContainerCpu => targets.container_cpu.map(|target| target.share() * self.unit(law)),
            Metric::Arrivals => targets.arrivals.and_then(|target| Some(target.share() * self.unit(law) / self.cost?)),
            Metric::Connections => targets.connections,
            Metric::Latency => targets.latency.map(|target| target.as_secs_f64()),
            Metric::Response => targets.response.map(|target| target.as_secs_f64()),
            Metric::Pressure => targets.pressure.map(TargetLoad::share),
        }
    }

    /// Whether the ticks, or a metric that has something to say, have not been seen for a time without a gap.
    pub fn is_young(&self, time: Duration) -> bool {
        self.seen_for < time
            || self.sights.iter().any(|sight| match sight.seen {
                Seen::Demand(Demand { seen_for, .. }) | Seen::Level { seen_for, .. } => seen_for < time,
                Seen::Learning { .. } | Seen::Missing { .. } => false,
            })
    }

    /// Returns how many processors are the whole of one backend.
    pub fn unit(&self, law: &Law) -> f64 {
        unit(law, self.limit, self.processors)
    }
}

/// Returns how many processors are the whole of one backend: what it may use, or its share of the host where there are as
/// many as there may be.
pub fn unit(law: &Law, limit: Option<f64>, processors: Option<f64>) -> f64 {
    let processors = processors.unwrap_or(1.0);
    match limit {
        // A quota beyond what the host has means nothing.
        Some(limit) => limit.min(processors),
        None => processors / f64::from(law.bounds.max()),
    }
}

/// Whether backends that use so many processors, of those that are theirs, are busy enough for more of them to be an
/// answer to waiting: what waits for something else is not served sooner by more.
pub fn is_answered_by_more(used: Option<f64>, unit: f64, whole: f64) -> bool {
    used.is_none_or(|used| used > 0.5 * unit * whole.max(1.0))
}

/// Whether more would be an answer again to the fewest that those that stand may fall to at once: then what is late is held
/// against fewer, or they would go and be asked for in turn.
pub fn is_answered_after_fall(used: Option<f64>, unit: f64, whole: f64, current: u32) -> bool {
    let least = f64::from(fewest_after(current).max(1)) / f64::from(current.max(1));
    is_answered_by_more(used, unit, (whole * least).max(1.0))
}
