//! What the project promises of its speed, and whether it holds in a run.

use serde::Serialize;

use crate::{
    record::{Metric, Record},
    stats::Spread,
    suites::{control, deaths, http, steps},
    systems::System,
};

/// A promise.
struct Target {
    what: &'static str,
    suite: &'static str,
    /// Every case of the suite whose name contains this.
    case: &'static str,
    metric: Metric,
    system: String,
    /// Compared with this system's, within rounds; else as it is.
    versus: Option<&'static str>,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A promise and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The promise.
    pub what: String,
    /// What was wanted.
    pub wanted: String,
    /// What was measured.
    pub measured: Spread,
    /// Whether the median is as wanted; of failures, every round.
    pub holds: bool,
}

/// Returns what came of the promises that the run has measured.
pub fn outcomes(record: &Record) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for target in targets() {
        for case in record.cases(target.suite).into_iter().filter(|case| case.contains(target.case)) {
            if let Some(measured) = measured(&target, record, &case) {
                let (wanted, holds) = match target.bound {
                    Bound::AtLeast(bound) => (format!("≥ {bound}"), measured.median >= bound),
                    // One failure in one round is one too many.
                    Bound::AtMost(bound) if target.metric == Metric::Failures => {
                        (format!("≤ {bound}"), measured.high <= bound)
                    }
                    Bound::AtMost(bound) => (format!("≤ {bound}"), measured.median <= bound),
                };
                let unit = if target.versus.is_some() { "×" } else { "" };
                // The name says it where there is only one case.
                let case = if case == target.case { String::new() } else { format!(", {case}") };
                let what = format!("{}{case}", target.what);
                outcomes.push(Outcome { what, wanted: wanted + unit, measured, holds });
            }
        }
    }
    outcomes
}

fn measured(target: &Target, record: &Record, case: &str) -> Option<Spread> {
    match target.versus {
        Some(versus) => record.ratio(target.suite, case, target.metric, &target.system, versus),
        None => {
            let lines = record.lines(target.suite, case);
            lines.iter().find(|line| line.system == target.system)?.values.get(&target.metric).copied()
        }
    }
}

fn targets() -> Vec<Target> {
    use Bound::{AtLeast, AtMost};
    let against = |what, suite, metric, versus: System, bound| Target {
        what,
        suite,
        case: "",
        metric,
        system: System::Tc.name().to_owned(),
        versus: Some(versus.name()),
        bound,
    };
    let alone = |what, suite, case, metric, system: &str, bound| Target {
        what,
        suite,
        case,
        metric,
        system: system.to_owned(),
        versus: None,
        bound,
    };
    let growing = |what, case, system: &str, versus, bound| Target {
        what,
        suite: "packet",
        case,
        metric: Metric::PerPacket,
        system: system.to_owned(),
        versus: Some(versus),
        bound,
    };
    let (rps, cpu) = (Metric::RequestsPerSecond, Metric::CpuPerRequest);
    let thousand = control::publishing(1_000);
    vec![
        Target {
            case: http::ONE_SERVER,
            ..against("TC to direct: new connections", "connections", rps, System::Direct, AtLeast(1.05))
        },
        Target {
            case: http::ONE_SERVER,
            ..against("TC to direct: keep-alive requests", "requests", rps, System::Direct, AtLeast(1.05))
        },
        Target {
            case: "stream",
            ..against("TC to direct: bulk", "throughput", Metric::BitsPerSecond, System::Direct, AtLeast(1.05))
        },
        Target {
            case: http::TWO_SERVERS,
            ..against("TC to HAProxy: new connections", "connections", rps, System::Haproxy, AtLeast(1.4))
        },
        Target {
            case: http::TWO_SERVERS,
            ..against("TC to HAProxy: keep-alive requests", "requests", rps, System::Haproxy, AtLeast(2.0))
        },
        Target {
            case: http::TWO_SERVERS,
            ..against("TC to HAProxy: CPU per connection", "connections", cpu, System::Haproxy, AtMost(0.5))
        },
        Target {
            case: http::TWO_SERVERS,
            ..against("TC to HAProxy: CPU per keep-alive request", "requests", cpu, System::Haproxy, AtMost(0.5))
        },
        Target {
            case: http::TWO_SERVERS,
            ..against("TC to nftables: new connections", "connections", rps, System::Nftables, AtLeast(1.25))
        },
        Target {
            case: http::TWO_SERVERS,
            ..against("TC to nftables: keep-alive requests", "requests", rps, System::Nftables, AtLeast(1.3))
        },
        Target {
            case: http::TWO_SERVERS,
            ..against("TC to nftables: CPU per connection", "connections", cpu, System::Nftables, AtMost(0.75))
        },
        Target {
            case: http::TWO_SERVERS,
            ..against("TC to nftables: CPU per keep-alive request", "requests", cpu, System::Nftables, AtMost(0.75))
        },
        Target {
            system: System::Socket.name().to_owned(),
            case: http::ONE_SERVER,
            ..against("socket hook to direct: keep-alive requests", "requests", rps, System::DirectLocal, AtLeast(0.99))
        },
        alone(
            "XDP, established TCP: ns over the empty program",
            "packet",
            "by kind",
            Metric::PerPacket,
            "XDP, established TCP",
            AtMost(120.0),
        ),
        alone(
            "XDP, established TCP: in LRU look-ups",
            "packet",
            "by kind",
            Metric::Lookups,
            "XDP, established TCP",
            AtMost(3.0),
        ),
        growing(
            "a packet at 1,000,000 flows",
            "established TCP, by flows",
            "1,000,000 flows",
            "1,000 flows",
            AtMost(2.0),
        ),
        growing(
            "a packet at 1,000 backends",
            "established TCP, by backends",
            "1,000 backends",
            "1 backends",
            AtMost(1.1),
        ),
        alone("publish 1,000 backends: ms", "control", control::TIMES, Metric::Duration, &thousand, AtMost(10.0)),
        alone("publish 1,000 backends: failed", "control", control::TIMES, Metric::Failures, &thousand, AtMost(0.0)),
        alone(
            "a death to out of the slots: ms",
            "control",
            control::TIMES,
            Metric::Duration,
            deaths::OUT,
            AtMost(10.0),
        ),
        alone(
            "a step to the first extra backend, warm: ms",
            "control",
            control::TIMES,
            Metric::Duration,
            steps::WARM,
            AtMost(100.0),
        ),
        alone(
            "a step to the first extra backend, cold: ms",
            "control",
            control::TIMES,
            Metric::Duration,
            steps::COLD,
            AtMost(1500.0),
        ),
        alone("agent at rest: % of a CPU", "control", control::NEEDS, Metric::CpuShare, control::AT_REST, AtMost(1.0)),
        alone("agent at rest: MiB", "control", control::NEEDS, Metric::Resident, control::AT_REST, AtMost(25.0)),
        alone("churn: failed requests", "churn", "", Metric::Failures, System::Tc.name(), AtMost(0.0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::Values, suites::packet};

    #[test]
    fn a_promise_holds_or_does_not() {
        let mut record = Record::default();
        for (case, system, rps) in [
            (http::ONE_SERVER, "ours, TC", 110.0),
            (http::ONE_SERVER, "direct", 100.0),
            (http::TWO_SERVERS, "ours, TC", 110.0),
            (http::TWO_SERVERS, "direct", 120.0),
            (http::TWO_SERVERS, "HAProxy, tcp", 90.0),
        ] {
            record.add("connections", case, system, 1, Values::from([(Metric::RequestsPerSecond, rps)]));
        }

        let outcomes = outcomes(&record);

        let told: Vec<(&str, bool)> = outcomes.iter().map(|outcome| (outcome.what.as_str(), outcome.holds)).collect();
        assert_eq!(told, [("TC to direct: new connections", true), ("TC to HAProxy: new connections", false)]);
    }

    #[test]
    fn one_failure_in_one_round_is_one_too_many() {
        let mut record = Record::default();
        for (round, failures) in [(1, 0.0), (2, 5.0), (3, 0.0)] {
            record.add("churn", "", "ours, TC", round, Values::from([(Metric::Failures, failures)]));
        }

        let told: Vec<bool> = outcomes(&record).iter().map(|outcome| outcome.holds).collect();

        assert_eq!(told, [false]);
    }

    #[test]
    fn names_are_those_that_the_suites_use() {
        assert_eq!(packet::reference("XDP, established TCP, by flows", "1,000,000 flows"), Some("1,000 flows"));
        assert_eq!(control::publishing(1_000), "publish 1000 backends");
    }
}
