//! Single values of the command line: each type parses itself and cannot be wrong afterwards.

use std::{fmt, str::FromStr, time::Duration};

use clap::ValueEnum;
use lb_ebpf::{abi, tcp_state::State};
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::control::OnChange;

/// The shortest time between two samples of the load: below it the processor times of the kernel are too coarse.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(200);
/// The longest time between two samples, and between two signs of life.
pub const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest time between two health checks.
pub const SHORTEST_HEALTH_INTERVAL: Duration = Duration::from_millis(100);
/// The longest time between two health checks.
pub const LONGEST_HEALTH_INTERVAL: Duration = Duration::from_secs(3600);
/// The shortest time for which a client keeps its backend, and of a slow start: less is a slip of the pen.
pub const SHORTEST_MEMORY: Duration = Duration::from_secs(1);
/// The longest of all other durations: more is a slip of the pen.
pub const LONGEST_DURATION: Duration = Duration::from_secs(24 * 3600);
/// The shortest lifetime of an idle flow.
pub const SHORTEST_LIFETIME: Duration = Duration::from_secs(1);
/// The longest lifetime of an idle flow.
pub const LONGEST_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// The fewest flows that are worth a table.
pub const FEWEST_FLOWS: u32 = 1024;
/// The most flows: both halves of one take about 300 bytes in the kernel, these then 5 GB.
pub const MOST_FLOWS: u32 = 1 << 24;

/// The least memory that Docker gives a container (moby, `linuxMinMemory`).
const LEAST_MEMORY: u64 = 6 << 20;
/// The fewest processors that Docker gives a container (moby, `validateResources`).
const FEWEST_CPUS: f64 = 0.01;
/// The longest name of an interface (linux/if.h, `IFNAMSIZ` less the final zero).
const LONGEST_INTERFACE: usize = 15;

/// The name of an instance: 1 to 32 of `a-z`, `0-9`, `-` and `_`, a letter or digit first. It becomes part of paths
/// and of names of containers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(String);

impl InstanceName {
    /// The name of an instance that was given none.
    pub const DEFAULT: &'static str = "default";

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceName {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if is_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ConfigError::InstanceName { given: text.to_owned() })
        }
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=32).contains(&text.len())
        && text.bytes().all(|byte| plain(byte) || byte == b'-' || byte == b'_')
        && text.bytes().next().is_some_and(plain)
}

/// The name of a service within its instance, written as that of an instance. It becomes part of names of containers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

impl ServiceName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&InstanceName> for ServiceName {
    fn from(instance: &InstanceName) -> Self {
        Self(instance.0.clone())
    }
}

impl FromStr for ServiceName {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if is_name(text) { Ok(Self(text.to_owned())) } else { Err(ConfigError::ServiceName { given: text.to_owned() }) }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A percentage above 0 and up to 100, written `80` or `80%`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Percent(f64);

impl Percent {
    /// 100 %.
    pub const WHOLE: Self = Self(100.0);

    /// Returns the percentage: above 0.0, at most 100.0.
    pub fn percent(self) -> f64 {
        self.0
    }

    /// Returns the same as a share of one: above 0.0, at most 1.0.
    pub fn share(self) -> f64 {
        self.0 / 100.0
    }
}

impl FromStr for Percent {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let number = text.strip_suffix('%').map_or(text, str::trim_end);
        match number.parse::<f64>() {
            Ok(percent) if percent / 100.0 > 0.0 && percent <= 100.0 => Ok(Self(percent)),
            Ok(_) | Err(_) => Err(ConfigError::Percent { given: text.to_owned() }),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A size of memory in bytes, at least what Docker gives a container; written in bytes, or with `k`, `m`, `g` for
/// their binary multiples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

impl MemorySize {
    /// Returns the size in bytes; it fits an `i64`.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_start_matches(|letter: char| letter.is_ascii_digit());
        let (number, suffix) = lower.split_at(lower.len() - digits.len());
        let unit: u64 = match suffix {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            _ => return Err(ConfigError::Size { given: text.to_owned() }),
        };
        if number.is_empty() {
            return Err(ConfigError::Size { given: text.to_owned() });
        }
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        match bytes {
            Some(bytes) if bytes >= LEAST_MEMORY && i64::try_from(bytes).is_ok() => Ok(Self(bytes)),
            Some(_) | None => Err(ConfigError::SizeRange { given: text.to_owned() }),
        }
    }
}

/// A number of processors, at least the fewest that Docker gives a container.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Cpus(f64);

impl Cpus {
    /// Returns the number of processors.
    pub fn count(self) -> f64 {
        self.0
    }
}

impl FromStr for Cpus {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.parse::<f64>() {
            Ok(cpus) if cpus >= FEWEST_CPUS && cpus.is_finite() => Ok(Self(cpus)),
            Ok(_) | Err(_) => Err(ConfigError::Cpus { given: text.to_owned() }),
        }
    }
}

/// An environment variable with its value, written `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvVar {
    name: String,
    value: String,
}

impl EnvVar {
    /// Returns its name, which is not empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its value.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl FromStr for EnvVar {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.split_once('=') {
            Some(("", _)) => Err(ConfigError::EnvName { given: text.to_owned() }),
            Some((name, value)) => Ok(Self { name: name.to_owned(), value: value.to_owned() }),
            None => Err(ConfigError::EnvSyntax { given: text.to_owned() }),
        }
    }
}

impl fmt::Display for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// How much of a frontend's connections a backend gets beside the others: 1 to [`Weight::MOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

impl Weight {
    /// As much as any other that was given none.
    pub const ONE: Self = Self(1);
    /// The greatest.
    pub const MOST: u32 = 256;

    /// Returns the weight.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl FromStr for Weight {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(weight) if digits && (1..=Self::MOST).contains(&weight) => Ok(Self(weight)),
            Ok(_) | Err(_) => Err(ConfigError::Weight { given: text.to_owned(), most: Self::MOST }),
        }
    }
}

/// What becomes of containers of former settings, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnChangeChoice {
    /// They stay, until there are too many or `lb-user rollout` is asked for
    Keep,
    /// They are replaced one at a time, new ones first
    Rollout,
}

impl From<OnChangeChoice> for OnChange {
    fn from(choice: OnChangeChoice) -> Self {
        match choice {
            OnChangeChoice::Keep => Self::Keep,
            OnChangeChoice::Rollout => Self::Rollout,
        }
    }
}

/// How a connection's backend is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scheduler {
    /// Strictly in turn, over all processors
    RoundRobin,
    /// In turn by weight, spread evenly
    Weighted,
    /// The fewest connections under way for its weight; of 16 in a row where there are more backends
    LeastConn,
    /// Of two drawn by weight, the one with fewer connections for its weight
    RandomTwo,
    /// By a hash of the client's address; all processes on this host are one client
    SourceHash,
    /// By a hash of addresses and ports (Maglev); another machine with the same backends and as many frontends chooses the
    /// same, without --affinity, --max-connections and --slow-start
    Maglev,
}

impl Scheduler {
    /// Returns whether weights have a meaning.
    pub fn weighs(self) -> bool {
        match self {
            Self::RoundRobin => false,
            Self::Weighted | Self::LeastConn | Self::RandomTwo | Self::SourceHash | Self::Maglev => true,
        }
    }

    /// Returns whether a hash chooses, from a table of a fixed size.
    pub fn hashes(self) -> bool {
        match self {
            Self::SourceHash | Self::Maglev => true,
            Self::RoundRobin | Self::Weighted | Self::LeastConn | Self::RandomTwo => false,
        }
    }

    /// Returns whether a backend has as many slots as its weight says, so that their sum is limited.
    pub fn counts_weights(self) -> bool {
        match self {
            Self::Weighted | Self::RandomTwo => true,
            Self::RoundRobin | Self::LeastConn | Self::SourceHash | Self::Maglev => false,
        }
    }
}

impl From<Scheduler> for abi::Scheduler {
    fn from(scheduler: Scheduler) -> Self {
        match scheduler {
            Scheduler::RoundRobin => Self::RoundRobin,
            Scheduler::Weighted => Self::Weighted,
            Scheduler::LeastConn => Self::LeastConn,
            Scheduler::RandomTwo => Self::RandomTwo,
            Scheduler::SourceHash => Self::SourceHash,
            Scheduler::Maglev => Self::Maglev,
        }
    }
}

/// Where in the kernel clients' packets are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hook {
    /// What is fastest for the uplink and its backends: TC for containers on this host
    Auto,
    /// TC ingress of the uplink
    Tc,
    /// XDP in the driver of the uplink; an error where the driver or its checksums do not allow it
    Xdp,
    /// XDP behind the driver, on every interface, slower than TC
    XdpGeneric,
}

/// Whether SYNs are answered by cookies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SynCookies {
    /// While the listener of a backend has no room for more
    #[default]
    Auto,
    /// Never: the backend's own kernel does what it does
    Off,
}

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcAttach {
    /// TCX where the kernel has it (6.6 and newer), else clsact
    Auto,
    /// By a TCX link, which is replaced atomically and ordered beside other programs
    Tcx,
    /// By a filter on a clsact queueing discipline, which every kernel has
    Clsact,
}

/// Reads the time between two samples of the load.
///
/// # Errors
/// Where it is no duration, or outside [`SHORTEST_INTERVAL`] to [`LONGEST_INTERVAL`].
pub fn parse_interval(text: &str) -> Result<Duration, ConfigError> {
    parse_within(text, SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

/// Reads the time between two health checks.
///
/// # Errors
/// Where it is no duration, or outside [`SHORTEST_HEALTH_INTERVAL`] to [`LONGEST_HEALTH_INTERVAL`].
pub fn parse_health_interval(text: &str) -> Result<Duration, ConfigError> {
    parse_within(text, SHORTEST_HEALTH_INTERVAL, LONGEST_HEALTH_INTERVAL)
}

/// Reads for how long a client keeps its backend, or how long a slow start takes.
///
/// # Errors
/// Where it is no duration, or outside [`SHORTEST_MEMORY`] to [`LONGEST_DURATION`].
pub fn parse_memory(text: &str) -> Result<Duration, ConfigError> {
    parse_within(text, SHORTEST_MEMORY, LONGEST_DURATION)
}

/// Reads any other duration.
///
/// # Errors
/// Where it is none, or longer than [`LONGEST_DURATION`].
pub fn parse_duration(text: &str) -> Result<Duration, ConfigError> {
    parse_within(text, Duration::ZERO, LONGEST_DURATION)
}

fn parse_within(text: &str, least: Duration, most: Duration) -> Result<Duration, ConfigError> {
    match humantime::parse_duration(text) {
        Ok(duration) if (least..=most).contains(&duration) => Ok(duration),
        Ok(_) => Err(ConfigError::DurationRange { given: text.to_owned(), least, most }),
        Err(problem) => Err(ConfigError::Duration { given: text.to_owned(), problem: problem.to_string() }),
    }
}

/// For how long flows in one state may stay idle: `established=4h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The state.
    pub state: State,
    /// The time, in whole seconds.
    pub seconds: u32,
}

impl FromStr for Lifetime {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Lifetime { given: text.to_owned(), states: State::ALL.map(State::name).join(", ") };
        let (name, time) = text.split_once('=').ok_or_else(wrong)?;
        let state = State::ALL.into_iter().find(|state| state.name() == name).ok_or_else(wrong)?;
        let time = parse_within(time, SHORTEST_LIFETIME, LONGEST_LIFETIME)?;
        let seconds = u32::try_from(time.as_secs()).map_err(|_| wrong())?;
        Ok(Self { state, seconds })
    }
}

/// Reads how many flows the kernel keeps.
///
/// # Errors
/// Where it is no number, or outside [`FEWEST_FLOWS`] to [`MOST_FLOWS`].
pub fn parse_max_flows(text: &str) -> Result<u32, ConfigError> {
    match text.parse() {
        Ok(flows) if (FEWEST_FLOWS..=MOST_FLOWS).contains(&flows) => Ok(flows),
        Ok(_) | Err(_) => Err(ConfigError::MaxFlows { given: text.to_owned(), least: FEWEST_FLOWS, most: MOST_FLOWS }),
    }
}

/// Reads the name of an interface; whether it exists is asked when it is attached to.
///
/// # Errors
/// Where no interface can have that name.
pub fn parse_interface(text: &str) -> Result<String, ConfigError> {
    let right = (1..=LONGEST_INTERFACE).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.contains(|letter: char| letter == '/' || letter == ':' || letter.is_whitespace());
    if right { Ok(text.to_owned()) } else { Err(ConfigError::Interface { given: text.to_owned() }) }
}

/// Reads the reference of an image.
///
/// # Errors
/// Where it is empty.
pub fn parse_image(text: &str) -> Result<String, ConfigError> {
    parse_name(text, "lb-api")
}

/// Reads the name of a network.
///
/// # Errors
/// Where it is empty.
pub fn parse_network(text: &str) -> Result<String, ConfigError> {
    parse_name(text, "bridge")
}

fn parse_name(text: &str, example: &'static str) -> Result<String, ConfigError> {
    if text.trim().is_empty() { Err(ConfigError::Empty { example }) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::prop_assert, proptest};

    use super::*;

    /// Parses every text and compares the error's beginning; a row without one has to be right.
    fn check<T>(parse: impl Fn(&str) -> Result<T, ConfigError>, rows: &[(&str, Option<&str>)]) {
        for (text, message) in rows {
            match (parse(text), message) {
                (Ok(_), None) => {}
                (Err(error), Some(message)) => {
                    assert!(error.to_string().starts_with(message), "{text:?} gives {error}");
                }
                (Ok(_), Some(_)) => panic!("{text:?} is accepted"),
                (Err(error), None) => panic!("{text:?} gives {error}"),
            }
        }
    }

    #[test]
    fn instance_names_fit_into_paths() {
        let longest = "a".repeat(32);
        let too_long = "a".repeat(33);
        let wrong = Some("instance name ");
        check(
            str::parse::<InstanceName>,
            &[
                ("default", None),
                ("0", None),
                ("web-1_b", None),
                (&longest, None),
                (&too_long, wrong),
                (
                    "",
                    Some(r#"instance name "" has to be 1 to 32 of a-z, 0-9, - and _, a letter or digit first: write"#),
                ),
                ("-web", wrong),
                ("_web", wrong),
                ("Web", wrong),
                ("web 1", wrong),
                ("../web", wrong),
                ("wéb", wrong),
            ],
        );
    }

    #[test]
    fn percentages_are_above_zero_and_at_most_a_hundred() {
        let wrong = Some("\"");
        check(
            str::parse::<Percent>,
            &[
                ("80", None),
                ("80%", None),
                ("80 %", None),
                ("0.5", None),
                ("100", None),
                ("0", Some(r#""0" is not a percentage above 0 and up to 100: write 80 or 80%"#)),
                ("100.1", wrong),
                ("-5", wrong),
                ("nan", wrong),
                ("inf", wrong),
                ("1e-324", wrong),
                ("eighty", wrong),
                ("%", wrong),
                ("", wrong),
            ],
        );
        assert!(matches!("80%".parse::<Percent>(), Ok(p) if p.percent() == 80.0 && p.share() == 0.8));
    }

    #[test]
    fn sizes_are_binary() {
        let bytes = |text: &str| text.parse().map(MemorySize::bytes);
        assert_eq!(bytes("6291456"), Ok(6 << 20));
        assert_eq!(bytes("8192k"), Ok(8 << 20));
        assert_eq!(bytes("64m"), Ok(64 << 20));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("2G"), Ok(2 << 30));
        let range = Some("");
        check(
            bytes,
            &[
                ("", Some(r#""" is not a size: write bytes, or a whole number with k, m or g, such as 64m"#)),
                ("m", Some(r#""m" is not a size"#)),
                ("1.5g", Some(r#""1.5g" is not a size"#)),
                ("-1m", Some(r#""-1m" is not a size"#)),
                ("64t", Some(r#""64t" is not a size"#)),
                ("é", Some(r#""é" is not a size"#)),
                ("0", Some("0 of memory is out of range: write at least 6m")),
                ("5m", range),
                ("9223372036854775808", range),
                ("99999999999g", range),
                ("99999999999999999999999", range),
            ],
        );
    }

    #[test]
    fn processors_are_above_zero() {
        let wrong = Some("\"");
        check(
            str::parse::<Cpus>,
            &[
                ("0.5", None),
                ("2", None),
                ("0", Some(r#""0" is not a number of processors: write 0.01 or more, such as 0.5 or 2"#)),
                ("-1", wrong),
                ("inf", wrong),
                ("NaN", wrong),
                ("two", wrong),
            ],
        );
    }

    #[test]
    fn environment_variables_have_a_name_and_a_value() {
        assert_eq!("K=V=W".parse::<EnvVar>().map(|env| (env.name, env.value)), Ok(("K".into(), "V=W".into())));
        check(
            str::parse::<EnvVar>,
            &[
                ("K=", None),
                ("K", Some(r#"environment variable "K" has no value: write KEY=VALUE, or KEY= for an empty one"#)),
                ("=V", Some(r#"environment variable "=V" has no name before the =: write KEY=VALUE"#)),
                ("", Some(r#"environment variable "" has no value"#)),
            ],
        );
    }

    #[test]
    fn durations_have_units_and_ranges() {
        check(
            parse_duration,
            &[
                ("0s", None),
                ("500ms", None),
                ("2m", None),
                ("1h 30m", None),
                ("24h", None),
                ("25h", Some("25h is out of range: write a duration from 0s to 1day")),
                (
                    "30",
                    Some(r#""30" is not a duration (time unit needed, for example 30sec or 30ms): write 500ms, 30s"#),
                ),
                ("", Some(r#""" is not a duration (value was empty)"#)),
                ("-3s", Some(r#""-3s" is not a duration"#)),
                ("soon", Some(r#""soon" is not a duration"#)),
                ("99999999999999999999s", Some(r#""99999999999999999999s" is not a duration"#)),
            ],
        );
        check(
            parse_interval,
            &[
                ("200ms", None),
                ("1m", None),
                ("199ms", Some("199ms is out of range: write a duration from 200ms to 1m")),
                ("61s", Some("61s is out of range")),
            ],
        );
        check(parse_memory, &[("1s", None), ("24h", None), ("999ms", Some("999ms is out of range"))]);
        check(parse_health_interval, &[("100ms", None), ("1h", None), ("0s", Some("0s is out of range"))]);
    }

    #[test]
    fn a_lifetime_is_of_a_state() {
        let right: Lifetime = "established=4h".parse().expect("right");
        assert_eq!(right, Lifetime { state: State::Established, seconds: 4 * 3600 });
        check(
            Lifetime::from_str,
            &[
                ("udp-unreplied=1s", None),
                ("udp=1s", Some("\"udp=1s\" is no lifetime: write STATE=DUR, such as established=4h; the states are")),
                ("established", Some("\"established\" is no lifetime")),
                ("reset=999ms", Some("999ms is out of range")),
                ("reset=soon", Some("\"soon\"")),
            ],
        );
    }

    #[test]
    fn weights_are_small_numbers_and_never_zero() {
        let wrong = Some("weight ");
        check(
            str::parse::<Weight>,
            &[
                ("1", None),
                ("256", None),
                ("0", Some(r#"weight "0" is no whole number from 1 to 256: write one, or leave the backend out"#)),
                ("257", wrong),
                ("+1", wrong),
                ("1.5", wrong),
                ("", wrong),
            ],
        );
    }

    #[test]
    fn schedulers_are_called_as_the_status_calls_them() {
        for scheduler in Scheduler::value_variants() {
            let name = scheduler.to_possible_value().map(|value| value.get_name().to_owned());

            assert_eq!(name.as_deref(), Some(abi::Scheduler::from(*scheduler).name()));
        }
    }

    #[test]
    fn flow_tables_have_a_size() {
        check(
            parse_max_flows,
            &[
                ("1024", None),
                ("16777216", None),
                ("1023", Some(r#""1023" flows are out of range: write a number from 1024 to 16777216"#)),
                ("16777217", Some("\"")),
                ("many", Some("\"")),
            ],
        );
    }

    #[test]
    fn interfaces_have_names_that_the_kernel_takes() {
        let wrong = Some("\"");
        check(
            parse_interface,
            &[
                ("eth0", None),
                ("wlp0s20f3.4094@", None),
                ("", Some(r#""" cannot be an interface: write the name that `ip link` shows, such as eth0"#)),
                ("sixteen-letters0", wrong),
                ("eth 0", wrong),
                ("../eth0", wrong),
                ("..", wrong),
            ],
        );
    }

    #[test]
    fn names_are_not_empty() {
        check(
            parse_image,
            &[("lb-api", None), (" ", Some("an empty name is none: leave the option out, or write one"))],
        );
        check(parse_network, &[("web", None), ("", Some("an empty name is none"))]);
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error(text in ".*", near in "[0-9.eE+%kmgbi=-]{0,12}") {
            for text in [&text, &near] {
                let _ = (text.parse::<InstanceName>(), text.parse::<EnvVar>(), parse_duration(text), parse_interface(text));
                let _ = (parse_max_flows(text), text.parse::<MemorySize>().map(MemorySize::bytes));
                if let Ok(percent) = text.parse::<Percent>() {
                    prop_assert!(percent.share() > 0.0 && percent.share() <= 1.0);
                }
                if let Ok(cpus) = text.parse::<Cpus>() {
                    prop_assert!(cpus.count().is_finite() && cpus.count() > 0.0);
                }
            }
        }
    }
}
