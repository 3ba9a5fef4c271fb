//! What scaling follows: metrics by name, each with what it aims at.

use std::{fmt, str::FromStr, time::Duration};

use lb_ebpf::abi::Histogram;

use super::{ConfigError, Percent, value};
use crate::control::{
    law::{Law, Metric, Targets},
    policy::TargetLoad,
};

/// The latency aimed at where none is said.
const DEFAULT_LATENCY: Duration = Duration::from_millis(5);
/// The longest time to an answer that can be aimed at: longer ones are hardly told from each other,
/// [`Histogram::MOST_US`].
const MOST_RESPONSE: Duration = Duration::from_secs(30);
const _: () = assert!(MOST_RESPONSE.as_micros() < Histogram::MOST_US as u128);
/// The pressure aimed at where none is said, in percent.
const DEFAULT_PRESSURE: f64 = 20.0;
/// The most that metrics of CPU may aim at, in percent: a container at its quota shows 100, which has to exceed the target
/// by more than [`RISE_BAND`](crate::control::law::RISE_BAND), and by some noise.
const MOST_TARGET_CPU: f64 = 85.0;
/// The name of the host's load as a metric.
const HOST_CPU: &str = "host-cpu";

/// A metric as it is said: `container-cpu=70`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricChoice {
    /// The load of the whole host: the law of [`policy`](crate::control::policy), which stands alone.
    HostCpu(Option<Percent>),
    /// The CPU that containers use.
    ContainerCpu(Option<Percent>),
    /// The CPU that new connections will cost.
    Arrivals(Option<Percent>),
    /// Live connections, so many for each container.
    Connections(f64),
    /// The time from SYN to SYN-ACK, and where it is said the time from a first request to its answer.
    Latency(Duration, Option<Duration>),
    /// Tasks that wait for a processor.
    Pressure(Percent),
}

impl MetricChoice {
    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostCpu(_) => HOST_CPU,
            Self::ContainerCpu(_) => Metric::ContainerCpu.name(),
            Self::Arrivals(_) => Metric::Arrivals.name(),
            Self::Connections(_) => Metric::Connections.name(),
            Self::Latency(..) => Metric::Latency.name(),
            Self::Pressure(_) => Metric::Pressure.name(),
        }
    }
}

impl FromStr for MetricChoice {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (name, target) = match text.split_once('=') {
            Some((name, target)) => (name, Some(target)),
            None => (text, None),
        };
        let percent = || target.map(str::parse::<Percent>).transpose();
        if name == HOST_CPU {
            return percent().map(Self::HostCpu);
        }
        let metric = Metric::ALL.into_iter().find(|metric| metric.name() == name);
        match metric.ok_or_else(|| ConfigError::Metric { given: text.to_owned() })? {
            Metric::ContainerCpu => percent().map(Self::ContainerCpu),
            Metric::Arrivals => percent().map(Self::Arrivals),
            Metric::Connections => {
                let count = target.and_then(|target| target.parse::<f64>().ok());
                let count = count.filter(|count| count.is_finite() && *count >= 1.0);
                count.map(Self::Connections).ok_or_else(|| ConfigError::ConnectionsTarget { given: text.to_owned() })
            }
            Metric::Latency => {
                let (handshake, response) = match target.map(|target| (target, target.split_once('/'))) {
                    None => (None, None),
                    Some((_, Some((handshake, response)))) => (Some(handshake), Some(response)),
                    Some((handshake, None)) => (Some(handshake), None),
                };
                let [handshake, response] = [handshake.map(latency).transpose()?, response.map(latency).transpose()?];
                if response.is_some_and(|response| response > MOST_RESPONSE) {
                    return Err(ConfigError::ResponseTooLong { most: MOST_RESPONSE });
                }
                Ok(Self::Latency(handshake.unwrap_or(DEFAULT_LATENCY), response))
            }
            Metric::Response => Err(ConfigError::ResponseAlone { target: target.unwrap_or("300ms").to_owned() }),
            Metric::Pressure => Ok(Self::Pressure(match percent()? {
                Some(target) => target,
                None => DEFAULT_PRESSURE.to_string().parse()?,
            })),
        }
    }
}

fn latency(text: &str) -> Result<Duration, ConfigError> {
    match value::parse_duration(text)? {
        latency if latency.is_zero() => Err(ConfigError::LatencyZero),
        latency => Ok(latency),
    }
}

impl fmt::Display for MetricChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What scaling follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Following {
    /// The load of the host, of which that share is what all containers are wanted for.
    HostCpu(Percent),
    /// The demand for the service.
    Demand(Box<Targets>),
}

impl Following {
    /// Puts together what was said. `target_cpu` is what those metrics aim at that are about CPU and say nothing else.
    ///
    /// # Errors
    /// If the metrics do not go together; and which of them it is about.
    pub fn new(choices: &[MetricChoice], target_cpu: Option<Percent>) -> Result<Self, (ConfigError, usize)> {
        for (place, choice) in choices.iter().enumerate() {
            if choices[..place].iter().any(|other| other.name() == choice.name()) {
                return Err((ConfigError::DuplicateMetric { metric: choice.name() }, place));
            }
        }
        if let Some((place, own)) = choices.iter().enumerate().find_map(|(place, choice)| match choice {
            MetricChoice::HostCpu(own) => Some((place, *own)),
            MetricChoice::ContainerCpu(_)
            | MetricChoice::Arrivals(_)
            | MetricChoice::Connections(_)
            | MetricChoice::Latency(..)
            | MetricChoice::Pressure(_) => None,
        }) {
            return match choices {
                [_] => Ok(Self::HostCpu(own.or(target_cpu).unwrap_or(Percent::WHOLE))),
                _ => Err((ConfigError::HostCpuAlone, place)),
            };
        }
        let by_default = [MetricChoice::Arrivals(None), MetricChoice::ContainerCpu(None)];
        let choices = if choices.is_empty() { &by_default } else { choices };
        for (place, choice) in choices.iter().enumerate() {
            Self::check(*choice, target_cpu).map_err(|error| (error, place))?;
        }
        let targets = choices.iter().fold(Targets::default(), |targets, choice| {
            let one = Self::targets(*choice, target_cpu);
            Targets {
                container_cpu: targets.container_cpu.or(one.container_cpu),
                arrivals: targets.arrivals.or(one.arrivals),
                connections: targets.connections.or(one.connections),
                latency: targets.latency.or(one.latency),
                response: targets.response.or(one.response),
                pressure: targets.pressure.or(one.pressure),
            }
        });
        let tells_of_too_many =
            targets.container_cpu.is_some() || targets.arrivals.is_some() || targets.connections.is_some();
        if tells_of_too_many { Ok(Self::Demand(Box::new(targets))) } else { Err((ConfigError::MetricsPushOnly, 0)) }
    }

    /// Checks that a metric aims at what leaves it able to ask for more.
    ///
    /// # Errors
    /// If it does not.
    pub fn check(choice: MetricChoice, target_cpu: Option<Percent>) -> Result<(), ConfigError> {
        let own = match choice {
            MetricChoice::ContainerCpu(own) | MetricChoice::Arrivals(own) => own,
            MetricChoice::HostCpu(_)
            | MetricChoice::Connections(_)
            | MetricChoice::Latency(..)
            | MetricChoice::Pressure(_) => return Ok(()),
        };
        match own.or(target_cpu).filter(|target| target.percent() > MOST_TARGET_CPU) {
            None => Ok(()),
            Some(target) => Err(ConfigError::CpuTargetTooHigh {
                metric: choice.name(),
                given: target.to_string(),
                most: MOST_TARGET_CPU,
                is_own: own.is_some(),
            }),
        }
    }

    /// Returns what one metric aims at; of the host's load nothing, as it is another law's.
    pub fn targets(choice: MetricChoice, target_cpu: Option<Percent>) -> Targets {
        let share = |own: Option<Percent>| Some(own.or(target_cpu).map_or(Law::TARGET, target_load));
        let none = Targets::default();
        match choice {
            MetricChoice::HostCpu(_) => none,
            MetricChoice::ContainerCpu(own) => Targets { container_cpu: share(own), ..none },
            MetricChoice::Arrivals(own) => Targets { arrivals: share(own), ..none },
            MetricChoice::Connections(count) => Targets { connections: Some(count), ..none },
            MetricChoice::Latency(handshake, response) => Targets { latency: Some(handshake), response, ..none },
            MetricChoice::Pressure(target) => Targets { pressure: Some(target_load(target)), ..none },
        }
    }

    /// Returns the names of the metrics with what they aim at, for people.
    pub fn told(&self) -> String {
        match self {
            Self::HostCpu(target) => format!("{HOST_CPU} ({target})"),
            Self::Demand(targets) => targets.told(),
        }
    }
}

fn target_load(percent: Percent) -> TargetLoad {
    TargetLoad::new(percent.share()).expect("a percentage is above 0 and at most 100")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn following(words: &str, target_cpu: Option<&str>) -> Result<String, String> {
        let choices: Result<Vec<MetricChoice>, _> = words.split_whitespace().map(str::parse).collect();
        let target_cpu = target_cpu.map(|text| text.parse().unwrap());
        let choices = choices.map_err(|error: ConfigError| error.to_string())?;
        Following::new(&choices, target_cpu).map(|one| one.told()).map_err(|(error, _)| error.to_string())
    }

    #[test]
    fn metrics_have_targets_of_their_own_or_the_one_of_cpu() {
        let rows = [
            ("", None, "arrivals (70 %) and container-cpu (70 %)"),
            ("", Some("60"), "arrivals (60 %) and container-cpu (60 %)"),
            ("host-cpu", None, "host-cpu (100%)"),
            ("host-cpu", Some("80"), "host-cpu (80%)"),
            ("host-cpu=90%", Some("80"), "host-cpu (90%)"),
            ("container-cpu=50", Some("80"), "container-cpu (50 %)"),
            ("", Some("85"), "arrivals (85 %) and container-cpu (85 %)"),
            ("host-cpu", Some("100"), "host-cpu (100%)"),
            ("container-cpu=50", Some("100"), "container-cpu (50 %)"),
            ("arrivals connections=200", Some("80"), "arrivals (80 %) and connections (200)"),
            ("container-cpu latency pressure", None, "container-cpu (70 %), latency (5ms) and pressure (20 %)"),
            ("arrivals latency=5ms/300ms", None, "arrivals (70 %), latency (5ms) and response (300ms)"),
            ("connections=1.5 latency=20ms pressure=35", None, "connections (1.5), latency (20ms) and pressure (35 %)"),
        ];
        for (words, target, told) in rows {
            assert_eq!(following(words, target).as_deref(), Ok(told), "{words}");
        }
    }

    #[test]
    fn what_is_no_metric_or_does_not_go_together_is_told() {
        let rows = [
            ("cpu", "there is no metric \"cpu\": write arrivals"),
            ("container-cpu=0", "\"0\" is not a percentage"),
            ("connections", "\"connections\" does not say how many"),
            ("connections=0.5", "\"connections=0.5\" does not say how many"),
            ("latency=0s", "a latency of nothing"),
            ("latency=5ms/0s", "a latency of nothing"),
            ("latency=/1s", "\"\" is not a duration"),
            ("latency=5ms/31s", "times to an answer beyond 30s are hardly told from each other"),
            ("response=1s", "the time to an answer is the second half of latency: write latency=5ms/1s"),
            ("latency=soon", "\"soon\" is not a duration"),
            ("host-cpu arrivals", "host-cpu is a law of its own"),
            ("connections=5 container-cpu=91", "container-cpu at 91% leaves no room to tell"),
            ("arrivals=85.5", "arrivals at 85.5% leaves no room"),
            ("arrivals arrivals=60", "metric arrivals is given twice"),
            ("latency pressure", "latency and pressure tell that there are too few"),
        ];
        for (words, told) in rows {
            let error = following(words, None).unwrap_err();
            assert!(error.starts_with(told), "{words}: {error}");
        }
        let error = following("", Some("100")).unwrap_err();
        assert!(
            error.ends_with("give at most 85; where the load of the whole host is meant, --metric host-cpu"),
            "{error}"
        );
    }
}
