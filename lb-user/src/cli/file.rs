//! A file of services: TOML whose keys are the flags of the command line, read by the flags' own definitions.
//!
//! What holds for the whole instance stands first, and then a `[[service]]` for each service. Every mistake is told with
//! its line and column: what is no TOML; keys that nobody knows; values that the flag's parser refuses; and what
//! [`Draft::check`] finds in all of it together.

use std::{
    collections::BTreeMap,
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Args, Command, FromArgMatches};
use serde::Serialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Draft, Fault, InstanceArgs, ServiceArgs, Spot};
use crate::{
    config::{ConfigError, RunConfig, ServiceName},
    health::HealthCheckError,
};

/// The key of the services' tables.
const SERVICE: &str = "service";
/// The key of a service's name, which no flag gives.
const NAME: &str = "name";
/// Flags that may be repeated are keys with a list; where the flag is a singular, the key is its plural.
const PLURALS: [(&str, &str); 3] = [("backend", "backends"), ("metric", "metrics"), ("uplink", "uplinks")];
/// How much alike a key and one that exists have to be for the one to be meant by the other, from 0 to 1.
const LIKENESS: f64 = 0.8;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("read {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file has mistakes.
    #[error("{}", told(path, mistakes))]
    Mistaken {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, by line and column.
        mistakes: Vec<Mistake>,
    },
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mistake {
    /// The line, counted from 1.
    pub line: usize,
    /// The character in the line, counted from 1.
    pub column: usize,
    /// What is wrong, and what a right one looks like.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

fn told(path: &Path, mistakes: &[Mistake]) -> String {
    let lines: Vec<String> = mistakes.iter().map(|mistake| format!("{}:{mistake}", path.display())).collect();
    lines.join("\n")
}

/// Reads a file of services.
///
/// # Errors
/// If it cannot be read, or has mistakes.
pub fn read(path: &Path) -> Result<RunConfig, FileError> {
    let unreadable = |source| FileError::Unreadable { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(&text).map_err(|mistakes| FileError::Mistaken { path: path.to_owned(), mistakes })
}

/// Reads the text of a file of services.
///
/// # Errors
/// Its mistakes, in the order of the text.
pub fn parse(text: &str) -> Result<RunConfig, Vec<Mistake>> {
    let mut reader = Reader::new(text);
    let config = reader.read();
    reader.mistakes.sort();
    match config {
        Some(config) if reader.mistakes.is_empty() => Ok(config),
        Some(_) | None => Err(reader.mistakes),
    }
}

type Span = Range<usize>;

/// A table of the file in the words of a command line, and where each word stands.
#[derive(Default)]
struct Words {
    words: Vec<String>,
    /// By flag: its key.
    keys: BTreeMap<String, Span>,
    /// By flag and place: its values.
    values: BTreeMap<(String, usize), Span>,
}

struct Reader<'t> {
    text: &'t str,
    instance: Command,
    service: Command,
    mistakes: Vec<Mistake>,
}

impl<'t> Reader<'t> {
    fn new(text: &'t str) -> Self {
        let bare = || Command::new("").no_binary_name(true);
        let (mut instance, mut service) = (InstanceArgs::augment_args(bare()), ServiceArgs::augment_args(bare()));
        instance.build();
        service.build();
        Self { text, instance, service, mistakes: Vec::new() }
    }

    fn read(&mut self) -> Option<RunConfig> {
        let (root, errors) = DeTable::parse_recoverable(self.text);
        if !errors.is_empty() {
            for error in errors {
                self.mistake(&error.span().unwrap_or_default(), error.message().to_owned());
            }
            return None;
        }
        let root = root.into_inner();
        let top = self.words(&root, &self.instance.clone(), SERVICE);
        let tables = self.services(&root);
        let instance: Option<InstanceArgs> = self.parsed(&self.instance.clone(), &top.words);
        let mut drafts = Vec::new();
        let mut headers = Vec::new();
        for (table, header) in tables {
            let words = self.words(table, &self.service.clone(), NAME);
            let name = self.name(table, &header);
            let said: Option<ServiceArgs> = self.parsed(&self.service.clone(), &words.words);
            drafts.extend(name.zip(said));
            headers.push((header, words, table.get(NAME).map(Spanned::span)));
        }
        if !self.mistakes.is_empty() {
            return None;
        }
        if drafts.is_empty() {
            self.mistake(&(self.text.len()..self.text.len()), ConfigError::NoService.to_string());
            return None;
        }
        let draft = Draft { instance: instance?, services: drafts };
        match draft.check() {
            Ok(config) => Some(config),
            Err(faults) => {
                for Fault { error, at } in faults {
                    let span = match at.service.and_then(|position| headers.get(position)) {
                        None => top.find(&at).unwrap_or_default(),
                        Some((header, _, name)) if at.flag == NAME => name.clone().unwrap_or_else(|| header.clone()),
                        Some((header, words, _)) => words.find(&at).unwrap_or_else(|| header.clone()),
                    };
                    let message = self.in_keys(&error.to_string());
                    self.mistake(&span, message);
                }
                None
            }
        }
    }

    /// Returns the services' tables, with where they begin.
    fn services<'a>(&mut self, root: &'a DeTable<'t>) -> Vec<(&'a DeTable<'t>, Span)> {
        let Some(services) = root.get(SERVICE) else { return Vec::new() };
        let mut tables = Vec::new();
        match services.get_ref() {
            DeValue::Array(entries) => {
                for entry in entries.iter() {
                    match entry.get_ref() {
                        DeValue::Table(table) => tables.push((table, entry.span())),
                        other => {
                            let message = format!("a service is a table, not {}: write [[service]]", kind(other));
                            self.mistake(&entry.span(), message);
                        }
                    }
                }
            }
            DeValue::Table(_) => {
                let message = "there may be several services, so each is written with two brackets: [[service]]";
                self.mistake(&services.span(), message.to_owned());
            }
            other => {
                let message = format!("services are tables, not {}: write [[service]]", kind(other));
                self.mistake(&services.span(), message);
            }
        }
        tables
    }

    fn name(&mut self, table: &DeTable<'_>, header: &Span) -> Option<ServiceName> {
        let Some(name) = table.get(NAME) else {
            self.mistake(header, ConfigError::NoServiceName.to_string());
            return None;
        };
        let parsed = match name.get_ref() {
            DeValue::String(text) => text.parse::<ServiceName>().map_err(|error| error.to_string()),
            other => Err(format!("{NAME} is a text, not {}: write {NAME} = \"web\"", kind(other))),
        };
        parsed.map_err(|message| self.mistake(&name.span(), message)).ok()
    }

    /// Reads a table key by key. `extra` is a key that no flag gives.
    fn words(&mut self, table: &DeTable<'_>, flags: &Command, extra: &str) -> Words {
        let mut found = Words::default();
        let mut said = Vec::new();
        for (key, value) in table {
            if key.get_ref() == extra {
                continue;
            }
            let Some((flag, arg)) = flag_of(flags, key.get_ref()) else {
                let message = self.unknown(key.get_ref(), flags, extra);
                self.mistake(&key.span(), message);
                continue;
            };
            found.keys.insert(flag.to_owned(), key.span());
            for (place, (word, span)) in self.values(key.get_ref(), arg, value).into_iter().enumerate() {
                found.values.insert((flag.to_owned(), place), span.clone());
                found.words.push(format!("--{flag}{word}"));
                said.push((arg, flag, word, span));
            }
        }
        if flags.clone().try_get_matches_from(&found.words).is_err() {
            found.words.clear();
            for (arg, flag, word, span) in said {
                if let Some(message) = refusal(flags, arg, flag, &word) {
                    self.mistake(&span, message);
                }
            }
        }
        found
    }

    /// Returns what a flag is given, as it follows the flag on the command line.
    fn values(&mut self, key: &str, arg: &Arg, value: &Spanned<DeValue<'_>>) -> Vec<(String, Span)> {
        match (arg.get_action(), value.get_ref()) {
            (ArgAction::SetTrue, DeValue::Boolean(true)) => vec![(String::new(), value.span())],
            (ArgAction::SetTrue, DeValue::Boolean(false)) => Vec::new(),
            (ArgAction::SetTrue, other) => {
                self.mistake(&value.span(), format!("{key} is true or false, not {}", kind(other)));
                Vec::new()
            }
            (ArgAction::Append, DeValue::Array(entries)) => {
                entries.iter().filter_map(|entry| self.value(key, entry)).collect()
            }
            (_, _) => self.value(key, value).into_iter().collect(),
        }
    }

    fn value(&mut self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<(String, Span)> {
        let word = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => number.to_string(),
                Err(_) => number.as_str().to_owned(),
            },
            DeValue::Float(number) => number.as_str().to_owned(),
            other => {
                self.mistake(&value.span(), format!("{key} is a text or a number, not {}", kind(other)));
                return None;
            }
        };
        Some((format!("={word}"), value.span()))
    }

    /// Says what may have been meant by a key that nobody knows.
    fn unknown(&self, key: &str, flags: &Command, extra: &str) -> String {
        let is_top = extra == SERVICE;
        let elsewhere = if is_top { &self.service } else { &self.instance };
        if flag_of(elsewhere, key).is_some() || (is_top && key == NAME) {
            return match is_top {
                true => format!("{key} belongs to a service: write it below a [[service]]"),
                false => format!("{key} holds for all services: write it above the first [[service]]"),
            };
        }
        let known: Vec<&str> = keys(flags).chain([extra]).collect();
        let alike = |one: &&str| strsim::jaro_winkler(one, key);
        match known.iter().copied().max_by(|one, other| alike(one).total_cmp(&alike(other))) {
            Some(nearest) if alike(&nearest) >= LIKENESS => format!("unknown key {key}: did you mean {nearest}?"),
            Some(_) | None => format!("unknown key {key}: there are {}", known.join(", ")),
        }
    }

    /// Parses the words of a table, each of which is right by itself.
    fn parsed<T: FromArgMatches>(&mut self, flags: &Command, words: &[String]) -> Option<T> {
        let matches = flags.clone().try_get_matches_from(words);
        match matches.and_then(|matches| T::from_arg_matches(&matches)) {
            Ok(said) => Some(said),
            Err(error) => {
                self.mistake(&(0..0), error.to_string());
                None
            }
        }
    }

    /// Says in keys what is said in flags.
    fn in_keys(&self, message: &str) -> String {
        let mut flags: Vec<&str> = [&self.instance, &self.service]
            .iter()
            .flat_map(|flags| flags.get_arguments())
            .filter_map(Arg::get_long)
            .collect();
        // None may be the beginning of another.
        flags.sort_by_key(|flag| std::cmp::Reverse(flag.len()));
        flags.iter().fold(message.to_owned(), |text, flag| text.replace(&format!("--{flag}"), key_of(flag)))
    }

    fn mistake(&mut self, span: &Span, message: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        self.mistakes.push(Mistake { line, column, message });
    }
}

impl Words {
    /// Returns where a value stands, or else its key.
    fn find(&self, at: &Spot) -> Option<Span> {
        let value = self.values.get(&(at.flag.to_owned(), at.place));
        value.or_else(|| self.keys.get(at.flag)).cloned()
    }
}

/// Returns the key of a flag.
fn key_of(flag: &str) -> &str {
    PLURALS.iter().find(|(one, _)| *one == flag).map_or(flag, |(_, plural)| plural)
}

/// Returns the flag of a key.
fn flag_of<'a>(flags: &'a Command, key: &str) -> Option<(&'a str, &'a Arg)> {
    let long = |arg: &'a Arg| arg.get_long().map(|long| (long, arg));
    flags.get_arguments().filter_map(long).find(|(flag, _)| *flag != "help" && key_of(flag) == key)
}

fn keys(flags: &Command) -> impl Iterator<Item = &str> {
    flags.get_arguments().filter_map(Arg::get_long).filter(|flag| *flag != "help").map(key_of)
}

/// Returns why a flag refuses a value, if it does.
fn refusal(flags: &Command, arg: &Arg, flag: &str, word: &str) -> Option<String> {
    use std::error::Error as _;
    let error = flags.clone().try_get_matches_from([format!("--{flag}{word}")]).err()?;
    let given = word.trim_start_matches('=');
    let known: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    Some(match error.source() {
        Some(source) if source.is::<ConfigError>() || source.is::<HealthCheckError>() => source.to_string(),
        Some(source) => format!("{given:?} is no {}: {source}", key_of(flag)),
        None if !known.is_empty() => format!("{given:?} is no {}: write {}", key_of(flag), known.join(", ")),
        None => error.to_string(),
    })
}

/// Returns what a value is, for people.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{prelude::ProptestConfig, prop_assert, proptest};

    use super::*;
    use crate::{
        cli::{Verb, parse_from},
        config::{Hook, Source},
    };

    const TWO: &str = r#"
instance = "edge"
uplinks = ["eth0", "eth1"]
hook = "tc"
interval = "500ms"
max-flows = 65_536
keep = true

[[service]]
name = "web"
image = "lb-api"
publish = ["80:5000", "8000-8002:5000"]
min = 3
max = 0x10
target-cpu = 70.5
metrics = ["arrivals", "connections=80"]
health = "http:/healthz"
cpus = 0.5
memory = "64m"
env = ["A=1", "B=2"]
stop-grace = "1s"

[[service]]
name = "cache"
publish = "6379"
backends = ["198.18.2.11:6379", "198.18.2.12:6379"]
drain-timeout = "5s"
"#;

    #[test]
    fn a_file_says_what_flags_say() {
        let config = parse(TWO).expect("a right file");

        assert_eq!((config.instance.as_str(), config.hook, config.max_flows), ("edge", Hook::Tc, 65_536));
        assert_eq!((config.uplinks.join(" "), config.keep), ("eth0 eth1".to_owned(), true));
        assert_eq!(config.interval, Duration::from_millis(500));
        let [web, cache] = config.services.as_slice() else { panic!("{config:?}") };
        let flags = "run --image lb-api --publish 80:5000 --publish 8000-8002:5000 --min 3 --max 16 --target-cpu 70.5 \
                     --metric arrivals --metric connections=80 \
                     --health http:/healthz --cpus 0.5 --memory 64m --env A=1 --env B=2 --stop-grace 1s";
        let Verb::Run(run) = parse_from(["lb-user"].into_iter().chain(flags.split_whitespace())).unwrap().verb else {
            panic!("it is run");
        };
        let [same] = run.check().expect("a right command line").services.try_into().unwrap();
        assert_eq!(*web, crate::config::Service { name: web.name.clone(), ..same });
        assert_eq!((web.name.as_str(), cache.name.as_str()), ("web", "cache"));
        assert!(matches!(&cache.source, Source::Static { backends } if backends.len() == 2));
        assert_eq!((cache.drain_timeout, cache.health_interval), (Duration::from_secs(5), Duration::from_secs(2)));
    }

    #[test]
    fn the_examples_of_help_and_readme_are_right() {
        let between = |text: &'static str, begin: &str, end: &str| {
            let (_, rest) = text.split_once(begin).expect("it begins");
            rest.split_once(end).expect("it ends").0
        };
        let help = between(super::super::RUN_EXAMPLES, "--config services.toml\n", "  Keys are");
        let readme = between(include_str!("../../../README.md"), "```toml\n", "```");
        for example in [help, readme] {
            let config = parse(example).unwrap_or_else(|mistakes| panic!("{example}{mistakes:?}"));

            let names: Vec<&str> = config.services.iter().map(|service| service.name.as_str()).collect();
            assert_eq!(names, ["web", "cache"]);
        }
    }

    /// A right file of 14 lines, to which rows add their mistake.
    const RIGHT: &str = "\
hook = \"tc\"

[[service]]
name = \"web\"
image = \"lb-api\"
publish = [\"80:5000\", \"81:5000\"]
max = 4

[[service]]
name = \"cache\"
publish = \"6379\"
backends = [\"198.18.2.11:6379\", \"198.18.2.12:6379\"]
";

    #[test]
    fn every_mistake_is_told_with_its_line_and_column() {
        assert_eq!(parse(RIGHT).map(|config| config.services.len()), Ok(2));
        // What is replaced, by what, and what that is told as.
        let rows = [
            // No TOML.
            ("max = 4", "max = ", "7:7: "),
            ("max = 4", "max = 4\nmax = 5", "8:1: duplicate key"),
            ("name = \"web\"", "name = \"web", "4:12: invalid basic string"),
            // Keys.
            ("max = 4", "targt-cpu = 4", "7:1: unknown key targt-cpu: did you mean target-cpu?"),
            ("backends =", "backend =", "12:1: unknown key backend: did you mean backends?"),
            (
                "max = 4",
                "colour = 4",
                "7:1: unknown key colour: there are publish, image, backends, discover, snat, allow, ",
            ),
            ("hook", "hoock", "1:1: unknown key hoock: did you mean hook?"),
            ("max = 4", "hook = \"tc\"", "7:1: hook holds for all services: write it above the first [[service]]"),
            ("hook = \"tc\"", "min = 1", "1:1: min belongs to a service: write it below a [[service]]"),
            ("hook = \"tc\"", "help = true", "1:1: unknown key help: "),
            ("hook = \"tc\"", "servce = 1", "1:1: unknown key servce: did you mean service?"),
            ("name = \"web\"\n", "", "3:1: a service needs a name: write name = \"web\""),
            ("\"web\"", "\"Web\"", "4:8: service name \"Web\" has to be 1 to 32 of a-z, 0-9, - and _"),
            ("\"web\"", "7", "4:8: name is a text, not a number"),
            ("\"cache\"", "\"web\"", "10:8: service web is there twice"),
            // Values, refused by the flags' parsers.
            ("max = 4", "max = -4", "7:7: \"-4\" is no max: "),
            ("max = 4", "max = \"four\"", "7:7: \"four\" is no max: invalid digit"),
            ("max = 4", "max = [4]", "7:7: max is a text or a number, not a list"),
            ("max = 4", "max = true", "7:7: max is a text or a number, not true or false"),
            ("max = 4", "drain-timeout = 30", "7:17: \"30\" is not a duration ("),
            ("max = 4", "health = \"ping\"", "7:10: unknown health check \"ping\""),
            ("max = 4", "memory = \"5m\"", "7:10: 5m of memory is out of range"),
            ("max = 4", "env = [\"A=1\", \"B\"]", "7:15: environment variable \"B\" has no value"),
            ("\"81:5000\"", "\"81:x\"", "6:23: port \"x\" is not a number"),
            ("\"81:5000\"", "\"81-80:5000\"", "6:23: ports 81-80 are none: write the lower port first"),
            ("\"81:5000\"", "81.5", "6:23: port \"81.5\" is not a number"),
            ("\"198.18.2.12:6379\"", "\"127.0.0.1:1\"", "12:33: backend 127.0.0.1:1 is a loopback address"),
            ("\"tc\"", "\"tcp\"", "1:8: \"tcp\" is no hook: write auto, tc, xdp, xdp-generic"),
            ("\"tc\"", "\"tc\"\nkeep = \"yes\"", "2:8: keep is true or false, not a text"),
            ("hook = \"tc\"", "instance = \"A\"", "1:12: instance name \"A\" has to be"),
            // Contradictions within a service.
            ("max = 4", "min = 11", "7:7: min 11 exceeds max 10 (the default): raise max or lower min"),
            ("max = 4", "max = 0", "7:7: max 0 would leave nobody to answer"),
            (
                "image = \"lb-api\"\n",
                "",
                "3:1: where the backends are is not said: give image IMAGE for containers, or backends",
            ),
            ("image", "backends = [\"10.0.0.2:80\"]\nimage", "5:13: image and backends exclude each other"),
            (
                "image",
                "discover = true\nimage",
                "6:9: discover takes containers that others start, and image beside them",
            ),
            (
                "image = \"lb-api\"",
                "discover = true\nmin = 1",
                "6:7: min would have no effect, containers that others start",
            ),
            ("image = \"lb-api\"", "discover = 1", "5:12: discover is true or false, not a number"),
            ("\"81:5000\"", "\"81\"", "6:23: publish 81/tcp does not say on which port"),
            ("\"81:5000\"", "\"80:5001\"", "6:23: publish 80:5001/tcp claims connections that 80:5000/tcp claims"),
            ("publish = \"6379\"\n", "", "9:1: what clients connect to is not said: give publish PORT:CONTAINER_PORT"),
            ("publish = \"6379\"", "publish = \"6379\"\nmin = 1", "12:7: min would have no effect"),
            ("\"198.18.2.12:6379\"", "\"198.18.2.11:6379\"", "12:33: backend 198.18.2.11:6379 is given twice"),
            ("\"6379\"", "\"[2001:db8::1]:6379\"", "11:11: publish [2001:db8::1]:6379/tcp is for clients of IPv6"),
            (
                "publish = \"6379\"",
                "publish = \"6379/udp\"\nhealth = \"tcp\"",
                "12:10: health check tcp needs a TCP port",
            ),
            // Contradictions between services, and of the instance.
            ("\"6379\"", "[\"6379\", \"81\"]", "11:20: publish 81/tcp claims connections that 81:5000/tcp claims"),
            ("\"6379\"", "\"198.18.2.12:6379\"", "12:33: backend 198.18.2.12:6379 is a frontend itself"),
            ("\"6379\"", "\"7000-7062\"", "11:11: 65 frontends are too many: at most 64"),
            ("max = 4", "max = 1024", "12:13: with this service there may be 2050 backends"),
            (
                "\"198.18.2.12:6379\"",
                "\"198.18.2.12:6379=2\"",
                "12:33: weights have no effect with scheduler round-robin",
            ),
            ("max = 4", "scheduler = \"fair\"", "7:13: \"fair\" is no scheduler: write round-robin, weighted, "),
            ("\"tc\"", "\"tc\"\ncomplete-checksums = true", "2:22: complete-checksums speaks of XDP"),
            ("hook = \"tc\"", "uplinks = [\"a\", \"b\", \"a\"]", "1:22: uplink a is given twice"),
        ];
        let mut wrong = Vec::new();
        for (replaced, by, told) in rows {
            let text = RIGHT.replacen(replaced, by, 1);
            assert_ne!(text, RIGHT, "{replaced}");

            let mistakes = parse(&text).map(|_| ()).expect_err(by);

            if mistakes.len() != 1 || !mistakes[0].to_string().starts_with(told) {
                wrong.push(format!("{by}: {mistakes:#?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn backends_for_which_there_is_no_room_are_told_where_they_are_said() {
        let text = RIGHT
            .replace("[\"80:5000\", \"81:5000\"]", "\"80:5000\"")
            .replace("max = 4", "max = 1022\nscheduler = \"maglev\"")
            .replace("\"6379\"", "\"7000-7015\"");

        let mistakes = parse(&text).expect_err("a table has 1021 places beyond 16 frontends");

        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert!(told.len() == 1 && told[0].starts_with("7:7: ") && told[0].contains("1021"), "{told:?}");
        assert!(parse(&text.replace("7000-7015", "7000-7014")).is_ok());
    }

    #[test]
    fn all_mistakes_are_told_at_once_in_the_order_of_the_text() {
        let text = RIGHT.replace("\"tc\"", "\"tcp\"").replace("max = 4", "mx = 4").replace("\"6379\"", "\"x\"");

        let mistakes = parse(&text).expect_err("three mistakes");

        let lines: Vec<(usize, usize)> = mistakes.iter().map(|mistake| (mistake.line, mistake.column)).collect();
        assert_eq!(lines, [(1, 8), (7, 1), (11, 11)]);
    }

    #[test]
    fn what_has_no_service_is_told_so() {
        for (text, told) in [
            ("", "1:1: there is no service: write [[service]]"),
            ("keep = true\n", "2:1: there is no service"),
            ("[service]\nname = \"web\"\n", "1:1: there may be several services, so each is written with two brackets"),
            ("service = 1\n", "1:11: services are tables, not a number"),
            ("service = [1]\n", "1:12: a service is a table, not a number"),
        ] {
            let mistakes = parse(text).map(|_| ()).expect_err(text);
            assert!(mistakes[0].to_string().starts_with(told), "{text}: {mistakes:?}");
        }
    }

    #[test]
    fn columns_are_counted_in_characters() {
        let mistakes = parse("hook = \"äöü\" ; x").expect_err("no TOML");

        assert_eq!((mistakes[0].line, mistakes[0].column), (1, 14));
    }

    #[test]
    fn an_error_names_the_file_once_for_each_mistake() {
        let mistakes = parse(&RIGHT.replace("max", "mox").replace("hook", "hoock")).expect_err("mistakes");
        let error = FileError::Mistaken { path: "a.toml".into(), mistakes };

        let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
        assert!(lines.len() == 2 && lines[0].starts_with("a.toml:1:1: ") && lines[1].starts_with("a.toml:7:1: "));
        assert!(
            read(Path::new("/nonexistent/a.toml")).unwrap_err().to_string().starts_with("read /nonexistent/a.toml: ")
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_text_is_a_configuration_or_has_mistakes(text in ".{0,80}", line in "[a-z-]{0,12} = [\"0-9a-z:./\\[\\]{}-]{0,24}") {
            for text in [text.clone(), format!("{line}\n{RIGHT}"), format!("{RIGHT}{line}\n"), format!("{RIGHT}{text}")] {
                if let Err(mistakes) = parse(&text) {
                    prop_assert!(!mistakes.is_empty());
                    prop_assert!(mistakes.iter().all(|mistake| mistake.line >= 1 && mistake.column >= 1));
                }
            }
        }
    }
}
