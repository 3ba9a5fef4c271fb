//! What the machine has, held against what is asked of it.

use super::super::{Finding, Group, Level, facts::Host};
use crate::{
    config::{Docker, Following, RunConfig, Service, Snat, Source},
    status::human::bytes,
};

/// Bytes of a connection in the kernel's tables.
const FLOW_BYTES: u64 = 300;
/// Descriptors that an agent has open beside those of its containers and their checks.
const FILES: u64 = 128;
/// The ports by which backends know clients.
const SNAT_PORTS: (u16, u16) = (1024, 32_767);

/// Judges the machine.
pub fn judge(host: &Host, config: &RunConfig) -> Vec<Finding> {
    let mut findings = vec![memory(host, config)];
    findings.extend(open_files(host, config));
    findings.extend(ports(host, config));
    for service in &config.services {
        let Source::Docker(docker) = &service.source else { continue };
        findings.extend(processors(host, service, docker));
        findings.extend(pressure(host, service, docker));
    }
    findings
}

fn new(level: Level, subject: &str, found: impl Into<String>) -> Finding {
    Finding::new(Group::Host, level, subject, found)
}

fn memory(host: &Host, config: &RunConfig) -> Finding {
    let most = u64::from(config.max_flows) * FLOW_BYTES;
    let takes = format!("{} connections (--max-flows) take up to {}", config.max_flows, bytes(most));
    match host.memory_available {
        Some(available) if available < most => {
            new(Level::Warning, "memory", format!("{} available; {takes}", bytes(available)))
                .means("a full table would push others out of memory")
                .mend(format!("give less, such as --max-flows {}", (available / 4 / FLOW_BYTES).max(1024)))
        }
        Some(available) => new(Level::Ok, "memory", format!("{} available; {takes}", bytes(available))),
        None => new(Level::Note, "memory", format!("how much is available is not told; {takes}")),
    }
}

fn open_files(host: &Host, config: &RunConfig) -> Option<Finding> {
    let taken = |service: &Service| {
        let most = service.most_backends_each();
        // One for each container by which its end is heard of.
        let held = match service.source {
            Source::Docker(_) | Source::Discovered(_) => most,
            Source::Static { .. } => 0,
        };
        most * service.families.len().max(1) as u64 + held
    };
    let needed = FILES + config.services.iter().map(taken).sum::<u64>();
    let allowed = host.open_files.filter(|allowed| *allowed < needed)?;
    Some(
        new(
            Level::Warning,
            "open files",
            format!("{allowed} descriptors at a time; all containers and checks at once need {needed}"),
        )
        .means("health checks fail for want of a socket, and backends leave rotation for no fault of theirs")
        .mend("in a unit of systemd: LimitNOFILE=65536; in a shell:")
        .command(format!("ulimit -n {}", needed.next_power_of_two())),
    )
}

fn processors(host: &Host, service: &Service, docker: &Docker) -> Option<Finding> {
    let note = docker.note_on_share(host.processors)?;
    Some(new(Level::Note, "processors", format!("{}: {note}", service.name)))
}

fn pressure(host: &Host, service: &Service, docker: &Docker) -> Option<Finding> {
    let Following::Demand(targets) = &docker.scaling.following else { return None };
    if host.tells_pressure || targets.pressure.is_none() {
        return None;
    }
    Some(
        new(Level::Warning, "pressure", format!("{}: the kernel tells no pressure (/proc/pressure/cpu)", service.name))
            .means("a metric that is missing asks for no more containers, and lets none go")
            .mend("boot with psi=1, or leave --metric pressure out"),
    )
}

/// With snat, connections of the host and those of clients share ports.
fn ports(host: &Host, config: &RunConfig) -> Option<Finding> {
    if config.services.iter().all(|service| service.snat == Snat::default()) {
        return None;
    }
    let (low, high) = host.local_ports?;
    let shared = (low.max(SNAT_PORTS.0), high.min(SNAT_PORTS.1));
    if shared.0 > shared.1 || is_reserved(&host.reserved_ports, shared) {
        return Some(new(
            Level::Ok,
            "ports",
            format!("connections of this host begin at {low} to {high}, apart from those of --snat"),
        ));
    }
    let reserved = if host.reserved_ports.is_empty() { String::new() } else { format!("{},", host.reserved_ports) };
    Some(
        new(Level::Warning, "ports", format!("net.ipv4.ip_local_port_range is {low} to {high}; --snat takes 1024 to 32767"))
            .means("a connection of this host to a backend, a health check among them, may meet a client's: one of them breaks")
            .command(format!("sysctl -w net.ipv4.ip_local_reserved_ports={reserved}{}-{}", SNAT_PORTS.0, SNAT_PORTS.1)),
    )
}

/// Whether a list such as `1024-2000,8080` has all ports of a range.
fn is_reserved(list: &str, (low, high): (u16, u16)) -> bool {
    let ranges: Vec<(u16, u16)> = list
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
            Some((first.parse().ok()?, last.parse().ok()?))
        })
        .collect();
    (low..=high).all(|port| ranges.iter().any(|(first, last)| (first..=last).contains(&&port)))
}
