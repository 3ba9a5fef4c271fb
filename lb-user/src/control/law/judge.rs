//! The verdict on what is known: how many backends are wanted, what limits the wish, and why.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::metric::{Demand, Evidence, Metric, Seen, Wish};
use super::repeats::Repeats;
use super::{DOWN_PERIOD, Law};

/// How far a wish has to exceed the count, and to stay below it.
pub const RISE_BAND: f64 = 0.10;
const FALL_BAND: f64 = 0.20;
/// What a fall leaves beyond the demand.
const FALL_ROOM: f64 = 0.05;
/// A burst begins where the last seconds want so many times what serves. At the usual target of 70 % it is more than can
/// be served at all.
pub(super) const BURST: f64 = 1.5;
/// It also begins where a container's CPU shows that it is at its limit, above which it shows nothing.
const BURST_CPU: f64 = 0.95;
/// A demand that is counted explains what CPU wants where it wants so much of it.
const EXPLAINED: f64 = 0.5;
/// A host is busy that has less than a tenth of its processors left.
const HOST_BUSY: f64 = 0.9;
/// Growth is limited to doubling, and to this at the least.
const LEAST_GROWTH: u32 = 4;
/// A fall takes one part of so many, and one at the least.
const FALL_PART: u32 = 4;

/// What was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The count that is wanted.
    pub target: u32,
    /// What each metric wants.
    pub wishes: Vec<Wish>,
    /// Who has decided.
    pub winner: Option<Winner>,
    /// What has kept the count from being the wish.
    pub limits: Vec<Limit>,
    /// What the service is about.
    pub mood: Mood,
    /// Whether the demand of the last seconds counts.
    pub in_burst: bool,
    /// Why, for people.
    pub reason: String,
}

/// Who has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Winner {
    /// A metric: the one that wants the most.
    Metric(Metric),
    /// SYNs that came again.
    Repeats,
    /// The smallest and the largest count.
    Bounds,
}

/// What keeps a count from being the wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// The largest count.
    Max,
    /// The smallest count.
    Min,
    /// The processors of the host.
    Host,
    /// Growth within a few seconds.
    UpRate,
    /// The size of a fall, and the time between two.
    DownRate,
    /// Fewer have not been enough for long enough.
    DownWindow,
    /// A burst a moment ago.
    Burst,
    /// A gap in the samples a moment ago.
    Gap,
    /// A demand that was gone all at once.
    Outage,
    /// A metric that is missing, or does not agree.
    Metric,
}

/// What a service is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mood {
    /// The count is right.
    Steady,
    /// More are wanted.
    ScalingUp,
    /// More are wanted, at once.
    Burst,
    /// Fewer would do, and it is too early.
    Holding,
    /// Fewer are wanted.
    ScalingDown,
    /// More are wanted, and the host has no processors for them.
    HostSaturated,
    /// More are wanted than the largest count, which stands.
    AtMax,
    /// A metric is missing for so long that fewer are not thought of.
    Degraded,
}

impl fmt::Display for Mood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mood::Steady => "steady",
            Mood::ScalingUp => "scaling up",
            Mood::Burst => "burst",
            Mood::Holding => "holding",
            Mood::ScalingDown => "scaling down",
            Mood::HostSaturated => "host saturated",
            Mood::AtMax => "at max",
            Mood::Degraded => "degraded",
        })
    }
}

/// A metric is missed after so many ticks.
const MISSED: u32 = 5;

/// Judges what is known under a law. The same evidence and law always lead to the same verdict.
pub fn judge(law: &Law, evidence: &Evidence) -> Verdict {
    let wishes: Vec<Wish> = evidence.sights.iter().map(|sight| evidence.wish(law, sight)).collect();
    let overflow = evidence.overflow(law);
    let in_burst = overflow.is_some() || is_burst(law, evidence, &wishes);
    let wanted = |wish: &Wish| match in_burst {
        true => wish.up.map(|up| wish.fast.map_or(up, |fast| fast.max(up))),
        false => wish.up,
    };
    let most = wishes.iter().filter_map(|wish| Some((wish.metric, wanted(wish)?))).max_by(|a, b| a.1.total_cmp(&b.1));
    let asked = most.map(|(metric, wish)| (Asker::Metric(metric), wish)).into_iter();
    let pushed = overflow.map(|(repeats, wish)| (Asker::Repeats(repeats), wish));
    // A metric is told of where both want as many.
    let first = pushed.into_iter().chain(asked).max_by(|a, b| a.1.total_cmp(&b.1));
    let mut case = Case { law, evidence, limits: Vec::new(), target: evidence.current };
    let (current, bounds) = (evidence.current, law.bounds);

    let (winner, why, mood);
    if current != bounds.clamp(current) {
        case.target = bounds.clamp(current);
        winner = Some(Winner::Bounds);
        (why, mood) = if current < bounds.min() {
            ("below the minimum".to_owned(), Mood::ScalingUp)
        } else {
            ("above the maximum".to_owned(), Mood::ScalingDown)
        };
    } else if let Some((asker, wish)) = first.filter(|(_, wish)| *wish > f64::from(current) * (1.0 + RISE_BAND)) {
        winner = Some(match asker {
            Asker::Metric(metric) => Winner::Metric(metric),
            Asker::Repeats(_) => Winner::Repeats,
        });
        (why, mood) = case.rise(asker, wish, in_burst);
    } else {
        let fall = agreed(&wishes);
        winner = fall.or(most).map(|(metric, _)| Winner::Metric(metric));
        (why, mood) = case.fall(fall, in_burst);
    }
    let Case { mut limits, target, .. } = case;
    limits.sort();
    limits.dedup();
    let step = if target == current { format!("{current} stay") } else { format!("{current} -> {target}") };
    let told: Vec<String> =
        evidence.sights.iter().zip(&wishes).map(|(sight, wish)| told(evidence, sight, wish)).collect();
    let told = if told.is_empty() { String::new() } else { format!("{}; ", told.join(", ")) };
    let reason = format!("{told}{why}: {step}");
    Verdict { target, wishes, winner, limits, mood, in_burst, reason }
}

/// Returns the largest of what all metrics agree to at most; nothing if one does not agree, or none says anything.
fn agreed(wishes: &[Wish]) -> Option<(Metric, f64)> {
    let asked = wishes.iter().filter(|wish| !wish.abstains);
    let all: Option<Vec<(Metric, f64)>> = asked.map(|wish| Some((wish.metric, wish.down?))).collect();
    all?.into_iter().max_by(|a, b| a.1.total_cmp(&b.1))
}

/// Whether the last seconds want what cannot be served by those that do.
fn is_burst(law: &Law, evidence: &Evidence, wishes: &[Wish]) -> bool {
    let ready = f64::from(evidence.ready.max(1));
    let fast_of = |is_asked: fn(Metric) -> bool| {
        wishes.iter().filter(|wish| is_asked(wish.metric)).filter_map(|wish| wish.fast).fold(0.0, f64::max)
    };
    let cpu = fast_of(|metric| metric == Metric::ContainerCpu);
    let explains = fast_of(|metric| metric != Metric::ContainerCpu) >= EXPLAINED * cpu;
    wishes.iter().any(|wish| {
        let Some(fast) = wish.fast else { return false };
        let limit = match wish.metric {
            // Where the demand itself can be seen, that it is beyond what serves says more than that what serves is busy.
            // But requests in connections that last arrive unseen.
            Metric::ContainerCpu if explains => return false,
            Metric::ContainerCpu => law.targets.container_cpu.map_or(BURST, |target| BURST_CPU / target.share()),
            Metric::Arrivals | Metric::Connections | Metric::Latency | Metric::Response | Metric::Pressure => BURST,
        };
        fast >= limit * ready && fast > f64::from(law.bounds.min())
    })
}

/// Who asks for more.
#[derive(Clone, Copy)]
enum Asker {
    Metric(Metric),
    Repeats(Repeats),
}

/// A verdict in the making.
struct Case<'a> {
    law: &'a Law,
    evidence: &'a Evidence,
    limits: Vec<Limit>,
    target: u32,
}

impl Case<'_> {
    fn rise(&mut self, asker: Asker, wish: f64, in_burst: bool) -> (String, Mood) {
        let (law, evidence) = (self.law, self.evidence);
        let current = evidence.current;
        let wanted = round_up(wish);
        let who = match asker {
            Asker::Metric(Metric::Arrivals) if evidence.surge.is_some() => {
                let told = evidence.surge.map(|surge| format!("{} in {:.0?}", surge.connections, surge.within));
                format!("arrivals, {}, wants", told.unwrap_or_default())
            }
            Asker::Metric(metric) => format!("{metric} wants"),
            Asker::Repeats(Repeats { syns, connections, within }) => {
                let seconds = within.as_secs_f64();
                format!(
                    "{syns} SYNs that came again in {seconds:.1} s, beside {connections} connections, as where listeners \
                     overflow, want"
                )
            }
        };
        let mut target = wanted;
        let mut cap = |limit: Limit, most: u32, limits: &mut Vec<Limit>| {
            if target > most {
                target = most.max(current);
                limits.push(limit);
            }
        };
        cap(Limit::Max, law.bounds.max(), &mut self.limits);
        // What a burst wants is counted, not guessed, and absolute: it cannot run away. That of a surge is no second old.
        let base = if in_burst && evidence.surge.is_none() { law.bounds.max() } else { evidence.count_before };
        cap(Limit::UpRate, base.saturating_mul(2).max(base.saturating_add(LEAST_GROWTH)), &mut self.limits);
        // Who does not keep up with what comes is short of processors.
        let metric = if let Asker::Metric(metric) = asker { metric } else { Metric::Arrivals };
        if let Some(most) = host_cap(law, evidence, metric) {
            cap(Limit::Host, most, &mut self.limits);
        }
        self.target = target;
        if self.limits.contains(&Limit::Host) {
            let (foreign, processors) = (evidence.foreign.unwrap_or(0.0), evidence.processors.unwrap_or(0.0));
            let why = format!(
                "host saturated: foreign load {foreign:.1} of {processors:.0} processors; {wanted} wanted, and more than \
                 {target} would share the same"
            );
            return (why, Mood::HostSaturated);
        }
        if target == current && self.limits.contains(&Limit::Max) {
            let why = format!("at max: {who} {wish:.1}, so {wanted}, and the maximum is {}", law.bounds.max());
            return (why, Mood::AtMax);
        }
        let limited = limited_by(&self.limits);
        match in_burst {
            true => (format!("burst: {who} {wish:.1} at once{limited}"), Mood::Burst),
            false => (format!("{who} {wish:.1}{limited}"), Mood::ScalingUp),
        }
    }

    fn fall(&mut self, agreed: Option<(Metric, f64)>, in_burst: bool) -> (String, Mood) {
        let (law, evidence) = (self.law, self.evidence);
        let current = evidence.current;
        let missing = evidence.sights.iter().find_map(|sight| match sight.seen {
            Seen::Missing { ticks } => Some((sight.metric, ticks)),
            Seen::Demand(_) | Seen::Level { .. } | Seen::Learning { .. } => None,
        });
        if let Some((metric, ticks)) = missing {
            self.limits.push(Limit::Metric);
            let mood = if ticks > MISSED { Mood::Degraded } else { Mood::Holding };
            return (format!("{metric} cannot be measured, so fewer are not thought of"), mood);
        }
        if evidence.ready == 0 {
            self.limits.push(Limit::Metric);
            return ("nobody serves, so nothing is known of the demand".to_owned(), Mood::Holding);
        }
        let Some((metric, wish)) = agreed else {
            self.limits.push(Limit::Metric);
            return ("not all metrics agree to fewer".to_owned(), Mood::Steady);
        };
        if wish >= f64::from(current) * (1.0 - FALL_BAND) {
            return (format!("{metric} wants {wish:.1} at most"), Mood::Steady);
        }
        let wanted = round_up(wish * (1.0 + FALL_ROOM));
        let bounded = wanted.max(law.bounds.min());
        if bounded > wanted {
            self.limits.push(Limit::Min);
        }
        if bounded >= current {
            return (format!("{metric} wants {wish:.1} at most"), Mood::Steady);
        }
        let rest = evidence.fell_ago.map_or(Duration::ZERO, |ago| DOWN_PERIOD.min(law.down_window).saturating_sub(ago));
        let held = [
            (Limit::Burst, in_burst || !evidence.burst_for.is_zero(), "a burst a moment ago"),
            (Limit::Gap, !evidence.hold_for.is_zero(), "a gap in the samples a moment ago"),
            (Limit::Outage, !evidence.outage_for.is_zero(), "the demand was gone all at once, as in an outage"),
            (Limit::DownWindow, evidence.is_young(law.down_window), "not seen for long enough"),
            (Limit::DownRate, !rest.is_zero(), "others went a moment ago"),
        ];
        if let Some((limit, _, why)) = held.into_iter().find(|(_, is_held, _)| *is_held) {
            self.limits.push(limit);
            return (format!("{metric} wants {wish:.1} at most, but {why}"), Mood::Holding);
        }
        self.target = bounded.max(fewest_after(current));
        if self.target > bounded {
            self.limits.push(Limit::DownRate);
        }
        let window = law.down_window;
        (format!("{metric} wants {wish:.1} at most for {window:?}{}", limited_by(&self.limits)), Mood::ScalingDown)
    }
}

/// Returns how few may be left of a count at once.
pub(super) fn fewest_after(current: u32) -> u32 {
    current.saturating_sub((current / FALL_PART).max(1))
}

/// Returns a wish as a count: a hundredth of a backend is worth none.
fn round_up(wish: f64) -> u32 {
    // The conversion saturates, and takes what is not a number for zero.
    (wish - 0.01).ceil() as u32
}

/// Returns how many backends there are processors for beside what others use, and no fewer than the smallest count. The
/// last of them may have half of its processors only. What is no matter of CPU is limited where the host is busy indeed.
pub(super) fn host_cap(law: &Law, evidence: &Evidence, metric: Metric) -> Option<u32> {
    let is_about_cpu = match metric {
        Metric::Arrivals | Metric::ContainerCpu | Metric::Latency | Metric::Response | Metric::Pressure => true,
        Metric::Connections => evidence.busy? >= HOST_BUSY * evidence.processors?,
    };
    if !is_about_cpu {
        return None;
    }
    let free = evidence.processors? - evidence.foreign?;
    let fit = (free / evidence.unit(law) + 0.5).floor();
    fit.is_finite().then(|| (fit.max(0.0) as u32).max(law.bounds.min()))
}

impl Limit {
    /// Returns what it is, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Limit::Max => "the maximum",
            Limit::Min => "the minimum",
            Limit::Host => "the host",
            Limit::UpRate => "the rate of growth",
            Limit::DownRate => "the rate of falls",
            Limit::DownWindow => "the down window",
            Limit::Burst => "a burst",
            Limit::Gap => "a gap",
            Limit::Outage => "an outage",
            Limit::Metric => "a metric",
        }
    }
}

fn limited_by(limits: &[Limit]) -> String {
    let names: Vec<&str> = limits.iter().map(|limit| limit.name()).collect();
    if names.is_empty() { String::new() } else { format!(", limited by {}", names.join(" and ")) }
}

/// Says what a metric shows and wants: `container-cpu 2.10 cores (3.0)`.
fn told(evidence: &Evidence, sight: &super::Sight, wish: &Wish) -> String {
    let metric = sight.metric;
    match (sight.seen, metric) {
        (Seen::Demand(Demand { slow, .. }), _) => {
            let value = match metric {
                Metric::ContainerCpu => format!("{slow:.2} cores"),
                Metric::Arrivals => {
                    let cost = evidence.cost.map(|cost| format!(" of {:.2} ms", cost * 1000.0)).unwrap_or_default();
                    let paid =
                        evidence.paid.map(|paid| format!(", paid by {:.2} cores", paid.slow)).unwrap_or_default();
                    format!("{slow:.1}/s{cost}{paid}")
                }
                Metric::Connections | Metric::Latency | Metric::Response | Metric::Pressure => format!("{slow:.1}"),
            };
            let backends = wish.up.map(|up| format!(" = {up:.2} backends")).unwrap_or_default();
            format!("{metric} {value}{backends}")
        }
        (Seen::Level { latest, .. }, Metric::Latency | Metric::Response) => {
            format!("{metric} {:.2} ms", latest * 1000.0)
        }
        (Seen::Level { latest, .. }, _) => format!("{metric} {:.0} %", latest * 100.0),
        (Seen::Learning { connections }, Metric::Arrivals) => format!("{metric} learns ({connections} connections)"),
        (Seen::Learning { .. }, _) => format!("{metric} begins"),
        (Seen::Missing { ticks }, _) => format!("{metric} missing for {ticks} ticks"),
    }
}
