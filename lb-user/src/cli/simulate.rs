//! What can be said to `simulate`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;

use crate::{
    config::{ConfigError, Cpus, Following, MetricChoice, Percent, value::parse_duration},
    control::{law::Law, policy::Bounds},
    simulate::{Request, Scenario, Shape, Trace, shape},
    status::Exit,
};

pub const EXAMPLES: &str = "\
Examples:
  All shapes, with a picture:
    lb-user simulate -o scaling.svg

  An hour of another noise, with twice as long to start:
    lb-user simulate --shape noise --seed 7 --start-time 6s

  What there was yesterday, with other targets:
    lb-user simulate --trace yesterday.csv --cost 12ms --max 40 --host-cpus 32 \\
      --target-cpu 60 --metric arrivals --metric container-cpu";

/// What can be said to `simulate`.
#[derive(Clone, Debug, Args)]
pub struct SimulateArgs {
    /// Demand of this shape; may be repeated [default: all of them]
    ///
    /// step, spike, diurnal, noise, sawtooth or outage; all of them between 0 and 9.2 processors.
    #[arg(long, value_name = "SHAPE", conflicts_with = "trace", help_heading = DEMAND)]
    pub shape: Vec<Shape>,

    /// Demand as in this file: lines of UNIX_SECONDS,COUNT, the connections that began in that second
    #[arg(long, value_name = "FILE", help_heading = DEMAND)]
    pub trace: Option<PathBuf>,

    /// Number that decides over chance in a shape: the same for the same
    #[arg(long, value_name = "N", default_value = "1", help_heading = DEMAND)]
    pub seed: u64,

    /// Length of a shape, 1m to 24h
    #[arg(long, value_name = "DUR", value_parser = parse_duration, default_value = "1h", help_heading = DEMAND)]
    pub duration: Duration,

    /// CPU time that a connection costs
    #[arg(long, value_name = "DUR", value_parser = parse_duration, default_value = "20ms", help_heading = DEMAND)]
    pub cost: Duration,

    /// Fewest backends
    #[arg(long, value_name = "N", default_value = "1", help_heading = LAW)]
    pub min: u32,

    /// Most backends
    #[arg(long, value_name = "N", default_value = "16", help_heading = LAW)]
    pub max: u32,

    /// As in `run`; latency, pressure and host-cpu are not simulated
    #[arg(long, value_name = "NAME[=TARGET]", help_heading = LAW)]
    pub metric: Vec<MetricChoice>,

    /// As in `run`; the models of others keep to 70
    #[arg(long, value_name = "PCT", help_heading = LAW)]
    pub target_cpu: Option<Percent>,

    /// As in `run` [default: 45s]
    #[arg(long, value_name = "DUR", value_parser = parse_duration, help_heading = LAW)]
    pub scale_up_window: Option<Duration>,

    /// As in `run` [default: 2m]
    #[arg(long, value_name = "DUR", value_parser = parse_duration, help_heading = LAW)]
    pub scale_down_window: Option<Duration>,

    /// Processors that one backend may use
    #[arg(long, value_name = "X", default_value = "1", help_heading = HOST)]
    pub cpus: Cpus,

    /// Processors of the host
    #[arg(long, value_name = "X", default_value = "16", help_heading = HOST)]
    pub host_cpus: Cpus,

    /// Processors of the host that others keep busy [default: 0]
    #[arg(long, value_name = "X", help_heading = HOST)]
    pub foreign: Option<Cpus>,

    /// Time from the wish for a backend until it serves
    #[arg(long, value_name = "DUR", value_parser = parse_duration, default_value = "3s", help_heading = HOST)]
    pub start_time: Duration,

    /// Print JSON instead of the table
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,

    /// Draw the demand, what is wanted and what serves over time: SVG
    #[arg(short, long, value_name = "FILE", help_heading = OUTPUT)]
    pub output: Option<PathBuf>,
}

const DEMAND: &str = "Demand";
const LAW: &str = "Law";
const HOST: &str = "Host";
const OUTPUT: &str = "Output";

impl SimulateArgs {
    /// Returns what is to be simulated.
    ///
    /// # Errors
    /// The exit code, once it is printed what is wrong.
    pub fn resolve(self) -> Result<Request, ExitCode> {
        let usage = |error: &dyn std::fmt::Display| {
            eprintln!("error: {error}");
            ExitCode::from(Exit::Usage)
        };
        let text = match &self.trace {
            None => None,
            Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                eprintln!("error: read {}: {error}", path.display());
                ExitCode::FAILURE
            })?),
        };
        let (scenario, law) = self.scenario_and_law().map_err(|error| usage(&error))?;
        let traces = match (&self.trace, text) {
            (Some(path), Some(text)) => {
                let name = path.file_stem().map_or_else(|| "trace".into(), |stem| stem.to_string_lossy().into_owned());
                let trace = Trace::parse(&name, &text);
                vec![trace.map_err(|error| usage(&format!("{}: {error}", path.display())))?]
            }
            (_, _) => {
                let shapes = if self.shape.is_empty() { Shape::ALL.to_vec() } else { self.shape.clone() };
                let seconds = self.duration.as_secs() as u32;
                shapes.into_iter().map(|shape| shape.trace(&scenario, self.seed, seconds)).collect()
            }
        };
        Ok(Request { scenario, law, traces, as_json: self.json, picture: self.output })
    }

    fn scenario_and_law(&self) -> Result<(Scenario, Law), ConfigError> {
        if self.min == 0 {
            return Err(ConfigError::MinZero);
        }
        let Ok(bounds) = Bounds::new(self.min, self.max) else {
            return Err(ConfigError::MinOverMax { min: self.min, max: self.max, max_given: true });
        };
        let out_of_range = |given: Duration, least: Duration| ConfigError::DurationRange {
            given: format!("{given:?}"),
            least,
            most: shape::MOST_SHAPE,
        };
        if self.duration < shape::LEAST_SHAPE {
            return Err(out_of_range(self.duration, shape::LEAST_SHAPE));
        }
        if self.cost.is_zero() {
            return Err(out_of_range(self.cost, Duration::from_nanos(1)));
        }
        let targets = match Following::new(&self.metric, self.target_cpu).map_err(|(error, _)| error)? {
            Following::Demand(targets) if targets.latency.is_none() && targets.pressure.is_none() => *targets,
            Following::Demand(_) | Following::HostCpu(_) => return Err(ConfigError::NotSimulated),
        };
        let scenario = Scenario {
            processors: self.host_cpus.count(),
            foreign: self.foreign.map_or(0.0, Cpus::count),
            quota: self.cpus.count(),
            cost: self.cost.as_secs_f64(),
            start_lag: self.start_time,
            bounds,
            ..Scenario::default()
        };
        let law = Law {
            targets,
            quota: Some(scenario.quota),
            up_window: self.scale_up_window.unwrap_or(Law::UP_WINDOW),
            down_window: self.scale_down_window.unwrap_or(Law::DOWN_WINDOW),
            ..Law::new(bounds)
        };
        Ok((scenario, law))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Verb, parse_from};

    fn resolve(words: &str) -> Result<Request, String> {
        let words = ["lb-user", "simulate"].into_iter().chain(words.split_whitespace());
        let Verb::Simulate(arguments) = parse_from(words).map_err(|error| error.to_string())?.verb else {
            panic!("it is simulated")
        };
        arguments.scenario_and_law().map_err(|error| error.to_string())?;
        arguments.resolve().map_err(|code| format!("{code:?}"))
    }

    #[test]
    fn without_words_it_is_every_shape_with_the_defaults_of_run() {
        let request = resolve("").unwrap();

        let names: Vec<&str> = request.traces.iter().map(|trace| trace.name.as_str()).collect();
        assert_eq!(names, ["step", "spike", "diurnal", "noise", "sawtooth", "outage"]);
        assert_eq!(request.scenario, Scenario::default());
        assert_eq!(request.law, Law { quota: Some(1.0), ..Law::new(request.scenario.bounds) });
    }

    #[test]
    fn what_is_said_is_simulated() {
        let request = resolve(
            "--shape noise --shape step --seed 3 --duration 2m --min 2 --max 4 --cpus 0.5 --host-cpus 8 --foreign 2 \
             --cost 1ms --start-time 1s --target-cpu 50 --metric connections=5 --scale-down-window 1m --json -o a.svg",
        )
        .unwrap();

        assert_eq!((request.traces.len(), request.traces[0].arrivals.len()), (2, 120));
        assert_eq!((request.scenario.quota, request.scenario.foreign, request.scenario.cost), (0.5, 2.0, 0.001));
        assert_eq!(request.law.targets.told(), "connections (5)");
        assert!(request.as_json && request.picture.is_some());
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let rows = [
            ("--shape circle", "there is no shape \"circle\": write step"),
            ("--shape step --trace a.csv", "cannot be used with"),
            ("--min 0", "--min 0 is decided beside the law"),
            ("--min 3 --max 2", "--min 3 exceeds --max 2"),
            ("--duration 1s", "1s is out of range"),
            ("--cost 0s", "0ns is out of range"),
            ("--metric host-cpu", "host-cpu, latency and pressure are not simulated"),
            ("--metric arrivals --metric latency", "host-cpu, latency and pressure are not simulated"),
        ];
        for (words, told) in rows {
            let error = resolve(words).unwrap_err();
            assert!(error.contains(told), "{words}: {error}");
        }
        assert!(resolve("--trace /nonexistent.csv").is_err());
    }
}
