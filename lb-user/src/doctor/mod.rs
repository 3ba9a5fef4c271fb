//! `lb-user check`: what a machine can do for an instance, what it cannot, what that means, and what mends it.
//!
//! ```text
//! gather ─▶ Facts ─▶ judge ─▶ findings ─▶ render
//! asks the kernel,    pure: facts and a      text, or
//! Docker, backends    configuration in       JSON
//! ```
//!
//! Nothing is changed by it: what is loaded or attached for a trial ends with the process, in a network namespace of its own
//! (`datapath::probe`). What `run` refuses is found by the functions by which it refuses, and told in their words.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use serde::Serialize;

pub mod facts;
pub mod gather;
pub mod judge;
mod render;
#[cfg(test)]
mod tests;

use crate::{
    cli::file::Mistake,
    config::RunConfig,
    status::{Exit, Style},
};

/// The version of the JSON document. Members may be added to it; none is renamed or given another meaning.
pub const SCHEMA: u32 = 1;

/// What is said of something that shows itself to root alone.
const NOT_LOOKED_AT: &str = "not looked at: needs root";

/// What is to be checked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The file that was read, if it was a file; it has no mistakes.
    pub file: Option<PathBuf>,
    /// What is to be run. Without services, it is the machine alone.
    pub config: RunConfig,
    /// What is looked at.
    pub scope: Scope,
    /// Whether the answer is a JSON document.
    pub as_json: bool,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The file alone.
    File,
    /// The machine as well.
    Machine,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// It is as it should be.
    Ok,
    /// It is worth knowing.
    Note,
    /// Something will not be as expected.
    Warning,
    /// `run` would refuse, or serve nobody.
    Error,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// What was configured.
    Configuration,
    /// The kernel, and what may be done with it.
    Kernel,
    /// What the machine has.
    Host,
    /// Where clients come from.
    Clients,
    /// Docker, images, networks.
    Containers,
    /// Servers that somebody else runs.
    Backends,
    /// What runs already.
    Instances,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub group: Group,
    /// Which thing of that.
    pub subject: String,
    /// How much it matters.
    pub level: Level,
    /// What was found, with the numbers.
    pub found: String,
    /// What that means for who runs it; empty where there is nothing to say.
    pub means: String,
    /// What to do about it, in words; empty where there is nothing to do.
    pub mend: String,
    /// Commands that do it, or show how; as root.
    pub commands: Vec<String>,
}

impl Finding {
    /// Returns a finding that says what was found, and nothing else yet.
    fn new(group: Group, level: Level, subject: impl Into<String>, found: impl Into<String>) -> Self {
        let (subject, found) = (subject.into(), found.into());
        Self { group, subject, level, found, means: String::new(), mend: String::new(), commands: Vec::new() }
    }

    /// Says what it means.
    fn means(self, text: impl Into<String>) -> Self {
        Self { means: text.into(), ..self }
    }

    /// Says what to do about it.
    fn mend(self, text: impl Into<String>) -> Self {
        Self { mend: text.into(), ..self }
    }

    /// Says by which command.
    fn command(mut self, text: impl Into<String>) -> Self {
        self.commands.push(text.into());
        self
    }

    /// Returns what is said of something that shows itself to root alone.
    fn needs_root(group: Group, subject: impl Into<String>) -> Self {
        Self::new(group, Level::Note, subject, NOT_LOOKED_AT)
    }
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// The version of this document.
    pub schema: u32,
    /// The worst level of the findings.
    pub verdict: Level,
    /// The file, if it was one.
    pub file: Option<PathBuf>,
    /// What is wrong with it; where there is anything, nothing else was looked at.
    pub mistakes: Vec<Mistake>,
    /// What would be served.
    pub services: Vec<Served>,
    /// What was found: by group, and then by what is looked at first.
    pub findings: Vec<Finding>,
}

/// A service, as it would be served.
#[derive(Clone, Debug, Serialize)]
pub struct Served {
    /// Its name.
    pub name: String,
    /// The names of its frontends.
    pub frontends: Vec<String>,
}

impl Diagnosis {
    /// Puts findings together.
    pub fn new(file: Option<PathBuf>, config: &RunConfig, mut findings: Vec<Finding>) -> Self {
        // The order of each group is that in which things were judged.
        findings.sort_by_key(|finding| finding.group);
        let served = config.services.iter().map(|service| Served {
            name: service.name.to_string(),
            frontends: service.frontends.iter().map(|publish| publish.name()).collect(),
        });
        Self {
            schema: SCHEMA,
            verdict: findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok),
            file,
            mistakes: Vec::new(),
            services: served.collect(),
            findings,
        }
    }

    /// Returns what is said of a file with mistakes.
    pub fn of_mistakes(path: &Path, mistakes: &[Mistake]) -> Self {
        Self {
            schema: SCHEMA,
            verdict: Level::Error,
            file: Some(path.to_owned()),
            mistakes: mistakes.to_vec(),
            services: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Returns how many findings are of a level.
    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// Returns how `check` ends: 1 if something that `run` needs is missing.
    pub fn exit(&self) -> Exit {
        if self.verdict == Level::Error { Exit::Degraded } else { Exit::Healthy }
    }

    /// Returns the JSON document.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("keys are text")
    }
}

/// Looks at what was asked for, and prints what was found.
pub async fn show(request: Request) -> Exit {
    let Request { file, mut config, scope, as_json } = request;
    let mut findings = judge::configuration(&config);
    if scope == Scope::Machine {
        let progress = Progress { is_shown: io::stderr().is_terminal() && !as_json };
        let facts = gather::gather(&mut config, &progress).await;
        progress.end();
        findings.extend(judge::judge(&facts, &config));
    }
    let diagnosis = Diagnosis::new(file, &config, findings);
    let text = match as_json {
        true => diagnosis.json() + "\n",
        false => render::render(&diagnosis, scope, Style::of_stdout()),
    };
    // Whoever closes the pipe has read enough.
    let _reader_left = io::stdout().write_all(text.as_bytes());
    diagnosis.exit()
}

/// A line that says what is looked at, while there is nothing else to see.
pub struct Progress {
    is_shown: bool,
}

impl Progress {
    /// Says what is looked at.
    pub fn tell(&self, what: &str) {
        if self.is_shown {
            eprint!("\r\x1b[K{what} …");
        }
    }

    fn end(&self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}
