//! From facts and a configuration to findings: pure, so that every machine can be judged without having it.

use super::{Finding, Group, Level, facts::Facts};
use crate::config::RunConfig;

mod clients;
mod host;
mod kernel;
mod servers;
#[cfg(test)]
mod tests;

/// Judges what was chosen without being asked for.
pub fn configuration(config: &RunConfig) -> Vec<Finding> {
    config.notes.iter().map(|note| Finding::new(Group::Configuration, Level::Note, "notes", note)).collect()
}

/// Judges a machine by what an instance of a configuration needs; without services, by what any would.
pub fn judge(facts: &Facts, config: &RunConfig) -> Vec<Finding> {
    let mut findings = kernel::judge(&facts.kernel, config);
    findings.extend(host::judge(&facts.host, config));
    findings.extend(clients::judge(facts, config));
    findings.extend(servers::containers(facts, config));
    findings.extend(servers::backends(facts, config));
    findings.extend(servers::instances(facts, config));
    findings
}
