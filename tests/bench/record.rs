//! What was measured, and what follows from it: medians, spread, and ratios within a round.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::stats::Spread;

/// What is measured, in the order of columns; the first of a table is the one that ratios and spread are shown of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    Duration,
    RequestsPerSecond,
    LatencyP50,
    LatencyP99,
    LatencyP999,
    CpuPerRequest,
    SoftirqPerRequest,
    ProcessPerRequest,
    Failures,
    BitsPerSecond,
    CpuPerByte,
    PacketsPerSecond,
    Loss,
    CpuPerPacket,
    RoundTripP50,
    RoundTripAdded,
    RoundTripP99,
    PerPacket,
    Lookups,
    CpuShare,
    Resident,
    WorstSecond,
}

/// Which way a metric is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

impl Metric {
    /// Returns its heading, with the unit.
    pub const fn title(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests/s",
            Self::LatencyP50 => "p50 µs",
            Self::LatencyP99 => "p99 µs",
            Self::LatencyP999 => "p99.9 µs",
            Self::CpuPerRequest => "CPU µs/request",
            Self::SoftirqPerRequest => "softirq µs/request",
            Self::ProcessPerRequest => "process µs/request",
            Self::Failures => "failed",
            Self::BitsPerSecond => "Gbit/s",
            Self::CpuPerByte => "CPU ns/KiB",
            Self::PacketsPerSecond => "kpps",
            Self::Loss => "loss %",
            Self::CpuPerPacket => "CPU µs/packet",
            Self::RoundTripP50 => "round trip p50 µs",
            Self::RoundTripAdded => "added µs",
            Self::RoundTripP99 => "round trip p99 µs",
            Self::PerPacket => "ns/packet",
            Self::Lookups => "in LRU look-ups",
            Self::Duration => "ms",
            Self::CpuShare => "CPU %",
            Self::Resident => "MiB",
            Self::WorstSecond => "worst second %",
        }
    }

    /// Returns which way it is good.
    pub const fn better(self) -> Better {
        match self {
            Self::RequestsPerSecond | Self::BitsPerSecond | Self::PacketsPerSecond | Self::WorstSecond => {
                Better::Higher
            }
            Self::LatencyP50
            | Self::LatencyP99
            | Self::LatencyP999
            | Self::CpuPerRequest
            | Self::SoftirqPerRequest
            | Self::ProcessPerRequest
            | Self::Failures
            | Self::CpuPerByte
            | Self::Loss
            | Self::CpuPerPacket
            | Self::RoundTripP50
            | Self::RoundTripAdded
            | Self::RoundTripP99
            | Self::PerPacket
            | Self::Lookups
            | Self::Duration
            | Self::CpuShare
            | Self::Resident => Better::Lower,
        }
    }

    /// Returns a value as people read it.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::RequestsPerSecond | Self::Failures => format!("{value:.0}"),
            Self::LatencyP50 | Self::LatencyP99 | Self::LatencyP999 => format!("{value:.0}"),
            Self::PacketsPerSecond | Self::CpuPerByte => format!("{value:.0}"),
            Self::Duration if value < 0.1 => format!("{value:.3}"),
            Self::Duration if value >= 100.0 => format!("{value:.0}"),
            Self::BitsPerSecond | Self::CpuShare | Self::Lookups | Self::Loss | Self::Duration => format!("{value:.2}"),
            Self::CpuPerRequest
            | Self::SoftirqPerRequest
            | Self::ProcessPerRequest
            | Self::CpuPerPacket
            | Self::RoundTripP50
            | Self::RoundTripAdded
            | Self::RoundTripP99
            | Self::PerPacket
            | Self::Resident
            | Self::WorstSecond => format!("{value:.1}"),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// The values of one turn.
pub type Values = BTreeMap<Metric, f64>;

/// One turn of one system in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Turn {
    /// The suite.
    pub suite: &'static str,
    /// What was done in it; empty if there is only one thing.
    pub case: String,
    /// By what.
    pub system: String,
    /// From 1.
    pub round: u32,
    /// What it came to.
    pub values: Values,
}

/// Something that was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The suite.
    pub suite: &'static str,
    /// What.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// All that was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Record {
    /// In the order in which it was.
    pub turns: Vec<Turn>,
    /// What was not.
    pub left_out: Vec<LeftOut>,
}

/// A line of a table: what a system came to in a case.
#[derive(Clone, Debug)]
pub struct Line {
    /// The system.
    pub system: String,
    /// Its values over the rounds.
    pub values: BTreeMap<Metric, Spread>,
}

impl Record {
    /// Adds a turn.
    pub fn add(&mut self, suite: &'static str, case: &str, system: &str, round: u32, values: Values) {
        self.turns.push(Turn { suite, case: case.to_owned(), system: system.to_owned(), round, values });
    }

    /// Adds what is left out, once.
    pub fn leave_out(&mut self, suite: &'static str, what: &str, reason: &str) {
        let left_out = LeftOut { suite, what: what.to_owned(), reason: reason.to_owned() };
        if !self.left_out.contains(&left_out) {
            self.left_out.push(left_out);
        }
    }

    /// Returns the cases of a suite, in the order of their first turns.
    pub fn cases(&self, suite: &str) -> Vec<String> {
        first_seen(self.turns.iter().filter(|turn| turn.suite == suite).map(|turn| &turn.case))
    }

    /// Returns what the systems came to in a case, in the order of their first turns.
    pub fn lines(&self, suite: &str, case: &str) -> Vec<Line> {
        let of_case = || self.turns.iter().filter(|turn| turn.suite == suite && turn.case == case);
        let systems = first_seen(of_case().map(|turn| &turn.system));
        systems
            .into_iter()
            .map(|system| {
                let mut values: BTreeMap<Metric, Vec<f64>> = BTreeMap::new();
                for turn in of_case().filter(|turn| turn.system == system) {
                    for (&metric, &value) in &turn.values {
                        values.entry(metric).or_default().push(value);
                    }
                }
                let values = values.into_iter().filter_map(|(metric, all)| Some((metric, Spread::of(all)?))).collect();
                Line { system, values }
            })
            .collect()
    }

    /// Returns how a system's values relate to another's, round by round.
    pub fn ratio(&self, suite: &str, case: &str, metric: Metric, system: &str, to: &str) -> Option<Spread> {
        let by_round = |system: &str| -> BTreeMap<u32, f64> {
            let of = |turn: &&Turn| turn.suite == suite && turn.case == case && turn.system == system;
            self.turns.iter().filter(of).filter_map(|turn| Some((turn.round, *turn.values.get(&metric)?))).collect()
        };
        let base = by_round(to);
        let ratios = by_round(system).into_iter().filter_map(|(round, value)| {
            let base = base.get(&round)?;
            (*base > 0.0).then_some(value / base)
        });
        Spread::of(ratios.collect())
    }
}

fn first_seen<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for name in names {
        if !seen.contains(name) {
            seen.push(name.clone());
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_made_within_rounds() {
        let mut record = Record::default();
        for (round, ours, theirs) in [(1, 20.0, 10.0), (2, 3.0, 1.0), (3, 100.0, 100.0)] {
            record.add("s", "", "ours", round, Values::from([(Metric::Duration, ours)]));
            record.add("s", "", "theirs", round, Values::from([(Metric::Duration, theirs)]));
        }

        let ratio = record.ratio("s", "", Metric::Duration, "ours", "theirs").unwrap();

        assert_eq!((ratio.low, ratio.median, ratio.high), (1.0, 2.0, 3.0));
        assert!(record.ratio("s", "", Metric::Duration, "ours", "nobody").is_none());
    }

    #[test]
    fn lines_keep_the_order_of_the_turns() {
        let mut record = Record::default();
        for round in 1..=2 {
            for system in ["b", "a"] {
                record.add("s", "c", system, round, Values::from([(Metric::Loss, f64::from(round))]));
            }
        }

        let lines = record.lines("s", "c");

        let names: Vec<&str> = lines.iter().map(|line| line.system.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(lines[0].values[&Metric::Loss].median, 1.5);
        assert_eq!(record.cases("s"), ["c"]);
    }
}
