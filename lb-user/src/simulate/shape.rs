//! Traces: how many connections begin in each second, from a file or of a shape that is the same for the same seed.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use super::Scenario;

/// Seconds in a shape, unless somebody says otherwise.
pub const SHAPE_SECONDS: u32 = 3600;
/// The shortest shape.
pub const LEAST_SHAPE: Duration = Duration::from_secs(60);
/// The longest shape.
pub const MOST_SHAPE: Duration = Duration::from_secs(24 * 3600);
/// The longest trace: two weeks.
pub const MOST_SECONDS: u64 = 14 * 24 * 3600;

/// Connections over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Its name, for people.
    pub name: String,
    /// How many begin in each second.
    pub arrivals: Vec<f64>,
}

/// A shape of demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// Five times as much, all at once, and back.
    Step,
    /// A minute of eight times as much, twice.
    Spike,
    /// A wave, as of days, in half an hour each.
    Diurnal,
    /// Another demand every five seconds, around a mean.
    Noise,
    /// A ramp of five minutes and a fall, again and again.
    Sawtooth,
    /// Nobody for one, two and four minutes, and then all of them at once, with those that have waited.
    Outage,
}

impl Shape {
    /// All of them.
    pub const ALL: [Shape; 6] =
        [Shape::Step, Shape::Spike, Shape::Diurnal, Shape::Noise, Shape::Sawtooth, Shape::Outage];

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Shape::Step => "step",
            Shape::Spike => "spike",
            Shape::Diurnal => "diurnal",
            Shape::Noise => "noise",
            Shape::Sawtooth => "sawtooth",
            Shape::Outage => "outage",
        }
    }

    /// Returns a trace of this shape: its demand is the same in processors, whatever a connection costs.
    pub fn trace(self, scenario: &Scenario, seed: u64, seconds: u32) -> Trace {
        let mut chance = Chance::new(seed);
        let mut level = 0.0;
        let arrivals = (0..seconds)
            .map(|second| {
                let part = f64::from(second) / f64::from(seconds.max(1));
                let at = f64::from(second);
                let cores = match self {
                    Shape::Step => {
                        if (1.0 / 3.0..2.0 / 3.0).contains(&part) {
                            6.0
                        } else {
                            1.2
                        }
                    }
                    Shape::Spike => {
                        let is_within = |begin: f64| (begin..begin + 60.0).contains(&at);
                        let spikes = [0.25, 0.65].map(|begin| (begin * f64::from(seconds)).floor());
                        if spikes.into_iter().any(is_within) { 9.2 } else { 1.2 }
                    }
                    Shape::Diurnal => 4.0 + 3.2 * (at * std::f64::consts::TAU / 1800.0).sin(),
                    Shape::Noise => {
                        if second % 5 == 0 {
                            level = (3.0 + 0.8 * chance.normal()).max(0.1);
                        }
                        level
                    }
                    Shape::Sawtooth => 1.0 + 7.0 * (at % 300.0) / 300.0,
                    Shape::Outage => {
                        let outages = [(0.15, 60.0), (0.40, 120.0), (0.70, 240.0)]
                            .map(|(begin, lasts)| ((begin * f64::from(seconds)).floor(), lasts));
                        let is_out = outages.iter().any(|(begin, lasts)| (*begin..begin + lasts).contains(&at));
                        let is_back =
                            outages.iter().any(|(begin, lasts)| (begin + lasts..begin + lasts + 10.0).contains(&at));
                        match (is_out, is_back) {
                            (true, _) => 0.0,
                            (false, true) => 6.0,
                            (false, false) => 4.0,
                        }
                    }
                };
                cores / scenario.cost
            })
            .collect();
        Trace { name: self.name().to_owned(), arrivals }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no shape {0:?}: write step, spike, diurnal, noise, sawtooth or outage")]
pub struct NoShape(String);

impl FromStr for Shape {
    type Err = NoShape;

    fn from_str(text: &str) -> Result<Self, NoShape> {
        Self::ALL.into_iter().find(|shape| shape.name() == text).ok_or_else(|| NoShape(text.to_owned()))
    }
}

/// Why a text is no trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A line is not two numbers.
    #[error("line {line}: {given:?} is not of the form UNIX_SECONDS,COUNT: write 804571201,12")]
    Line {
        /// Which, counted from 1.
        line: usize,
        /// What stands there.
        given: String,
    },
    /// There is nothing.
    #[error("no line has a number of connections: write UNIX_SECONDS,COUNT lines")]
    Empty,
    /// The first and the last second are too far apart.
    #[error("{seconds} seconds are too many: at most {MOST_SECONDS}, two weeks")]
    TooLong {
        /// How many.
        seconds: u64,
    },
}

impl Trace {
    /// Reads lines of `unix_seconds,count`, in any order; a heading, empty lines and lines that begin with `#` are skipped.
    /// Counts of one second are added, and in a second without a line nobody came.
    ///
    /// # Errors
    /// The first line that is none.
    pub fn parse(name: &str, text: &str) -> Result<Self, TraceError> {
        let mut counts: BTreeMap<u64, f64> = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match entry(line) {
                Some((second, count)) => *counts.entry(second).or_default() += count,
                // A heading has no number.
                None if counts.is_empty() && !line.contains(|c: char| c.is_ascii_digit()) => {}
                None => return Err(TraceError::Line { line: number + 1, given: line.to_owned() }),
            }
        }
        let (Some((&first, _)), Some((&last, _))) = (counts.first_key_value(), counts.last_key_value()) else {
            return Err(TraceError::Empty);
        };
        let seconds = (last - first).saturating_add(1);
        if seconds > MOST_SECONDS {
            return Err(TraceError::TooLong { seconds });
        }
        let mut arrivals = vec![0.0; seconds as usize];
        for (second, count) in counts {
            arrivals[(second - first) as usize] = count;
        }
        Ok(Self { name: name.to_owned(), arrivals })
    }
}

fn entry(line: &str) -> Option<(u64, f64)> {
    let (second, count) = line.split_once(',')?;
    let count: f64 = count.trim().parse().ok()?;
    (count.is_finite() && count >= 0.0).then_some((second.trim().parse().ok()?, count))
}

/// Chance that comes out the same for the same seed (splitmix64, by Sebastiano Vigna, in the public domain).
struct Chance {
    state: u64,
}

impl Chance {
    fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number above 0, at most 1.
    fn share(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number of the standard normal distribution (Box and Muller).
    fn normal(&mut self) -> f64 {
        let (radius, angle) = ((-2.0 * self.share().ln()).sqrt(), std::f64::consts::TAU * self.share());
        radius * angle.cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_line_by_line() {
        let text = "second,count\n# from a log\n100, 3\n103,1.5\n\n101,2\n100,1\n";

        assert_eq!(Trace::parse("log", text).unwrap().arrivals, [4.0, 2.0, 0.0, 1.5]);
    }

    #[test]
    fn what_is_no_trace_is_told_by_its_line() {
        let rows = [
            ("", "no line has"),
            ("a,b\n", "no line has"),
            ("100,1\nx\n", "line 2: \"x\""),
            ("100,-1\n", "line 1: \"100,-1\""),
            ("100,NaN\n101,NaN", "line 1"),
            ("1,1\n99999999,1\n", "99999999 seconds are too many"),
            ("0,1\n18446744073709551615,1\n", "18446744073709551615 seconds are too many"),
        ];
        for (text, told) in rows {
            let error = Trace::parse("log", text).unwrap_err().to_string();
            assert!(error.starts_with(told), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_shape_is_the_same_for_the_same_seed_alone() {
        let scenario = Scenario::default();
        for shape in Shape::ALL {
            assert_eq!(shape.name().parse(), Ok(shape));
            let trace = shape.trace(&scenario, 1, 600);
            assert_eq!(trace, shape.trace(&scenario, 1, 600));
            assert_eq!(trace.arrivals.len(), 600);
            assert!(trace.arrivals.iter().all(|count| *count >= 0.0));
        }
        let noise = |seed| Shape::Noise.trace(&scenario, seed, 36_000).arrivals;
        assert_ne!(noise(1), noise(2));
        let mean = noise(3).iter().sum::<f64>() / 36_000.0 * scenario.cost;
        assert!((mean - 3.0).abs() < 0.05, "{mean}");
    }
}
