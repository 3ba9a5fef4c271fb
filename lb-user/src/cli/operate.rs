//! What can be said to the verbs that speak to a running agent.

use std::{num::NonZeroU32, process::ExitCode, str::FromStr, time::Duration};

use clap::Args;

use crate::{
    config::{InstanceName, value::parse_duration},
    operate::events,
    server::asks::{Auto, Count, Rollout, Scale, Ways},
    status::Exit,
};

pub const SCALE_EXAMPLES: &str = "\
Examples:
  lb-user scale 5
  lb-user scale web=5 --for 2h --wait
  lb-user scale web=20 --force
  lb-user scale web=auto

The dead are replaced, and crash loops braked, as ever. The law goes on judging, and
`lb-user explain` tells what it wants; from the end of the time on, or `auto`, it goes
on from the count that stands.";

pub const PAUSE_EXAMPLES: &str = "\
Examples:
  Nothing changes the number of containers:
    lb-user pause
  More may come, and none goes, as while it is debugged:
    lb-user pause web --in
  Followed again:
    lb-user resume web

A service that sleeps (--min 0) is woken by whoever comes all the same, and sleeps no
more while scale-in is paused.";

pub const ROLLOUT_EXAMPLES: &str = "\
Examples:
  docker build --tag lb-api . && lb-user rollout --wait
  lb-user rollout web --parallel 3
  lb-user rollout web --abort

Replaced is what was started with other settings than the present ones, or of another
image than the name means by now. New ones come first: more than --max, by as many as
are replaced at a time. Where one is not fit, those of before stay.";

pub const EVENTS_EXAMPLES: &str = "\
Examples:
  lb-user events --since 10m
  lb-user events -f
  lb-user events -f --json | jq --unbuffered 'select(.kind == \"decision\")'

Kinds of lines: decision, backend, health, publication, agent, gap (some are not kept any
longer). Who follows goes on with the next agent where this one ends.";

/// What can be said to `scale`.
#[derive(Clone, Debug, Args)]
pub struct ScaleArgs {
    /// How many containers, of which service where several are scaled; auto: as many as demand needs
    #[arg(value_name = "[SERVICE=]N|auto")]
    pub target: Target,

    /// Time after which demand decides again [default: until `scale auto`]
    #[arg(long = "for", value_name = "DUR", value_parser = parse_lasting)]
    pub lasting: Option<Duration>,

    /// Take a number beside --min and --max, too
    #[arg(long)]
    pub force: bool,

    /// Wait until so many are ready, for DUR at most
    #[arg(long, value_name = "DUR", num_args = 0..=1, require_equals = true, default_missing_value = "5m",
        value_parser = parse_duration)]
    pub wait: Option<Duration>,

    /// Name of the instance
    #[arg(long, value_name = "NAME", default_value = InstanceName::DEFAULT)]
    pub instance: InstanceName,
}

/// What can be said to `pause` and `resume`.
#[derive(Clone, Debug, Args)]
pub struct PauseArgs {
    /// Name of the service [default: every one that is scaled]
    #[arg(value_name = "SERVICE")]
    pub service: Option<String>,

    /// Scale-in alone: that fewer are wanted
    #[arg(long = "in")]
    pub scale_in: bool,

    /// Scale-out alone: that more are wanted
    #[arg(long = "out")]
    pub scale_out: bool,

    /// Name of the instance
    #[arg(long, value_name = "NAME", default_value = InstanceName::DEFAULT)]
    pub instance: InstanceName,
}

/// What can be said to `rollout`.
#[derive(Clone, Debug, Args)]
pub struct RolloutArgs {
    /// Name of the service [default: every one that is scaled]
    #[arg(value_name = "SERVICE")]
    pub service: Option<String>,

    /// How many are replaced at a time [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "abort")]
    pub parallel: Option<NonZeroU32>,

    /// Give up the one that is under way; those of before that are left stay
    #[arg(long)]
    pub abort: bool,

    /// Wait until all are replaced, for DUR at most; exit code 1 if that fails
    #[arg(long, value_name = "DUR", num_args = 0..=1, require_equals = true, default_missing_value = "10m",
        value_parser = parse_duration, conflicts_with = "abort")]
    pub wait: Option<Duration>,

    /// Name of the instance
    #[arg(long, value_name = "NAME", default_value = InstanceName::DEFAULT)]
    pub instance: InstanceName,
}

impl RolloutArgs {
    /// Returns what is ordered.
    pub fn order(&self) -> Rollout {
        Rollout { service: self.service.clone(), parallel: self.parallel, abort: self.abort }
    }
}

/// What can be said to `events`.
#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// Go on with what happens, until it is interrupted
    #[arg(short, long)]
    pub follow: bool,

    /// Only what happened in the last DUR
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub since: Option<Duration>,

    /// Only the last N [default: all that are kept, up to 1024; with --follow 10]
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "since")]
    pub last: Option<u32>,

    /// Print lines of JSON
    #[arg(long)]
    pub json: bool,

    /// Name of the instance
    #[arg(long, value_name = "NAME", default_value = InstanceName::DEFAULT)]
    pub instance: InstanceName,
}

/// How many, and of what: `web=5`, `5`, `auto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    service: Option<String>,
    count: Count,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, count) = match text.rsplit_once('=') {
            Some(("", _)) => return Err("there is no name in front of =".to_owned()),
            Some((service, count)) => (Some(service.to_owned()), count),
            None => (None, text),
        };
        let count = match count {
            "auto" => Count::Law(Auto::Auto),
            number => Count::By(number.parse().map_err(|_| {
                format!("{number:?} is no number of containers: write N, auto, SERVICE=N or SERVICE=auto")
            })?),
        };
        Ok(Self { service, count })
    }
}

fn parse_lasting(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("no time at all: leave it out for a count without an end".to_owned()),
        Ok(lasting) => Ok(lasting),
        Err(error) => Err(error.to_string()),
    }
}

impl ScaleArgs {
    /// Returns what is ordered.
    ///
    /// # Errors
    /// The exit code, once it is printed what is wrong.
    pub fn resolve(&self) -> Result<Scale, ExitCode> {
        self.order().map_err(|error| {
            eprintln!("error: {error}");
            ExitCode::from(Exit::Usage)
        })
    }

    fn order(&self) -> Result<Scale, &'static str> {
        if self.target.count == Count::Law(Auto::Auto) && (self.lasting.is_some() || self.force || self.wait.is_some())
        {
            return Err("auto is as many as demand needs: there is nothing to force, to end or to wait for");
        }
        let lasting = self.lasting.map(|lasting| humantime::format_duration(lasting).to_string());
        Ok(Scale { service: self.target.service.clone(), count: self.target.count, lasting, force: self.force })
    }
}

impl PauseArgs {
    /// Returns what is ordered.
    pub fn ways(&self) -> Ways {
        Ways { service: self.service.clone(), scale_in: self.scale_in, scale_out: self.scale_out }
    }
}

impl EventsArgs {
    /// Returns what is to be shown.
    pub fn request(&self) -> events::Request {
        /// How many of the past who follows is shown.
        const CONTEXT: u32 = 10;
        let last = self.last.or(self.follow.then_some(CONTEXT));
        let start = match (self.since, last) {
            (Some(since), _) => Some(format!("since={}ms", since.as_millis())),
            (None, Some(last)) => Some(format!("last={last}")),
            (None, None) => None,
        };
        events::Request { start, follow: self.follow, json: self.json }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_count_of_a_service() {
        let of = |service: Option<&str>, count| Ok(Target { service: service.map(Into::into), count });

        assert_eq!("5".parse(), of(None, Count::By(5)));
        assert_eq!("web=5".parse(), of(Some("web"), Count::By(5)));
        assert_eq!("web=auto".parse(), of(Some("web"), Count::Law(Auto::Auto)));
        assert_eq!("auto".parse(), of(None, Count::Law(Auto::Auto)));
        for text in ["", "=5", "web", "web=", "-1", "web=5=", "5.5"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn auto_has_nothing_to_wait_for() {
        let order = |target: &str, wait: Option<u64>| {
            let (target, wait) = (target.parse().unwrap(), wait.map(Duration::from_secs));
            ScaleArgs { target, lasting: None, force: false, wait, instance: "a".parse().unwrap() }.order()
        };

        assert!(order("auto", None).is_ok() && order("5", Some(1)).is_ok());
        assert!(order("web=auto", Some(1)).unwrap_err().starts_with("auto is as many as demand needs"));
    }

    #[test]
    fn who_follows_is_shown_a_little_of_what_was_before() {
        let args = |follow, since: Option<u64>, last| EventsArgs {
            follow,
            since: since.map(Duration::from_secs),
            last,
            json: false,
            instance: "a".parse().unwrap(),
        };
        let start = |args: EventsArgs| args.request().start;

        assert_eq!(start(args(false, None, None)), None);
        assert_eq!(start(args(true, None, None)).as_deref(), Some("last=10"));
        assert_eq!(start(args(true, None, Some(0))).as_deref(), Some("last=0"));
        assert_eq!(start(args(true, Some(90), None)).as_deref(), Some("since=90000ms"));
    }
}
