//! What is supposed of a law: `target-cpu=60`, to see what it would have decided.

use std::{fmt, str::FromStr};

use super::{ConfigError, Following, MetricChoice, Percent};
use crate::control::{
    law::{Law, Metric, Record},
    policy::Bounds,
};

/// One setting, as it is supposed to have been.
#[derive(Clone, Debug, PartialEq)]
pub struct Supposition {
    given: String,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    TargetCpu(Percent),
    Min(u32),
    Max(u32),
    Metric(MetricChoice),
}

impl FromStr for Supposition {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Supposition { given: text.to_owned() };
        let (key, value) = text.split_once('=').ok_or_else(wrong)?;
        let what = match key {
            "target-cpu" => What::TargetCpu(value.parse()?),
            "min" => What::Min(value.parse().map_err(|_| wrong())?),
            "max" => What::Max(value.parse().map_err(|_| wrong())?),
            _ => match text.parse()? {
                MetricChoice::HostCpu(_) => return Err(wrong()),
                choice => What::Metric(choice),
            },
        };
        Ok(Self { given: text.to_owned(), what })
    }
}

impl fmt::Display for Supposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.given)
    }
}

/// Returns the law of a record as it is supposed to have been.
///
/// # Errors
/// If it could not be so, or what it would have asked for was not measured.
pub fn suppose(record: &Record, all: &[Supposition]) -> Result<Law, ConfigError> {
    let mut law = record.law;
    let (mut min, mut max) = (law.bounds.min(), law.bounds.max());
    for Supposition { what, .. } in all {
        match *what {
            What::Min(count) => min = count,
            What::Max(count) => max = count,
            What::TargetCpu(percent) => {
                let following = Following::new(&[], Some(percent)).map_err(|(error, _)| error)?;
                let Following::Demand(targets) = following else { continue };
                law.targets.container_cpu = law.targets.container_cpu.and(targets.container_cpu);
                law.targets.arrivals = law.targets.arrivals.and(targets.arrivals);
            }
            What::Metric(choice) => {
                if !record.law.targets.metrics().any(|metric| metric.name() == choice.name()) {
                    return Err(ConfigError::NotMeasured { metric: choice.name() });
                }
                Following::check(choice, None)?;
                let only = Following::targets(choice, None);
                law.targets.container_cpu = only.container_cpu.or(law.targets.container_cpu);
                law.targets.arrivals = only.arrivals.or(law.targets.arrivals);
                law.targets.connections = only.connections.or(law.targets.connections);
                law.targets.latency = only.latency.or(law.targets.latency);
                // Nothing is known of the answers where nobody has asked for them.
                if only.response.is_some() && law.targets.response.is_none() {
                    return Err(ConfigError::NotMeasured { metric: Metric::Response.name() });
                }
                law.targets.response = only.response.or(law.targets.response);
                law.targets.pressure = only.pressure.or(law.targets.pressure);
            }
        }
    }
    if min == 0 {
        return Err(ConfigError::MinZero);
    }
    law.bounds = match Bounds::new(min, max) {
        Ok(bounds) => bounds,
        Err(_) => return Err(ConfigError::MinOverMax { min, max, max_given: true }),
    };
    Ok(law)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        Timestamp,
        law::{self, Inputs},
    };

    fn record() -> Record {
        let law = Law::new(Bounds::new(2, 8).unwrap());
        law::decide(&law, &Inputs { current: 2, ..Inputs::default() }, &mut law::State::default(), Timestamp::ZERO)
    }

    fn told(words: &str) -> Result<String, String> {
        let all: Result<Vec<Supposition>, ConfigError> = words.split_whitespace().map(str::parse).collect();
        let law = all.and_then(|all| suppose(&record(), &all)).map_err(|error| error.to_string())?;
        Ok(format!("{} to {}: {}", law.bounds.min(), law.bounds.max(), law.targets.told()))
    }

    #[test]
    fn a_law_is_what_it_was_but_for_what_is_supposed() {
        let rows = [
            ("", "2 to 8: arrivals (70 %) and container-cpu (70 %)"),
            ("target-cpu=60", "2 to 8: arrivals (60 %) and container-cpu (60 %)"),
            ("arrivals=50 max=9 min=1", "1 to 9: arrivals (50 %) and container-cpu (70 %)"),
        ];
        for (words, expected) in rows {
            assert_eq!(told(words).as_deref(), Ok(expected), "{words}");
        }
    }

    #[test]
    fn what_cannot_be_supposed_is_told() {
        let rows = [
            ("target-cpu", "\"target-cpu\" cannot be supposed"),
            ("max=many", "\"max=many\" cannot be supposed"),
            ("host-cpu=50", "\"host-cpu=50\" cannot be supposed"),
            ("scale-up-window=1s", "there is no metric"),
            ("connections=5", "connections was not measured"),
            ("target-cpu=90", "arrivals at 90% leaves no room"),
            ("container-cpu=100", "container-cpu at 100% leaves no room"),
            ("min=9", "--min 9 exceeds --max 8"),
            ("min=0", "--min 0 is decided beside the law"),
        ];
        for (words, expected) in rows {
            let error = told(words).unwrap_err();
            assert!(error.starts_with(expected), "{words}: {error}");
        }
    }
}
