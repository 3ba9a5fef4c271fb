//! `containers`: one real container, asked through the balancer, through a port that Docker publishes, and through
//! Docker's proxy.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow};
use lb_tests::{
    agent::Agent,
    site::{IMAGE, Site, docker},
};

use crate::{
    options::Peer,
    record::Values,
    session::{Session, caught},
    wrk::{self, Reuse},
};

const SUITE: &str = "containers";
const THREADS: usize = 2;
/// Where Docker publishes the container's port.
const PUBLISHED: u16 = 18_190;
/// Where the container listens.
const INSIDE: u16 = 5000;

const OURS: &str = "ours, TC";
const DOCKER: &str = "Docker, published port";
const OURS_LOCAL: &str = "ours, socket hook";
const DOCKER_LOCAL: &str = "Docker, docker-proxy";
const DIRECT_LOCAL: &str = "direct, local client";

const CASES: [(&str, Reuse, &[&str]); 4] = [
    ("connections, remote client", Reuse::OneRequest, &[DOCKER, OURS]),
    ("requests, remote client", Reuse::ManyRequests, &[DOCKER, OURS]),
    ("connections, local client", Reuse::OneRequest, &[DIRECT_LOCAL, OURS_LOCAL, DOCKER_LOCAL]),
    ("requests, local client", Reuse::ManyRequests, &[DIRECT_LOCAL, OURS_LOCAL, DOCKER_LOCAL]),
];

/// Returns the name of what a system is compared with.
pub fn reference(system: &str) -> Option<&'static str> {
    match system {
        OURS => Some(DOCKER),
        OURS_LOCAL | DOCKER_LOCAL => Some(DIRECT_LOCAL),
        _ => None,
    }
}

/// A container whose port Docker publishes; it ends with this.
struct Container {
    site: Site,
    id: String,
    address: Ipv4Addr,
}

impl Container {
    fn start() -> Result<Self> {
        let site = Site::new(90);
        let at = |host: &str| format!("{host}:{PUBLISHED}:{INSIDE}");
        let (remote, local) = (at(&site.host_address()), at("127.0.0.1"));
        let id = docker(&["run", "-d", "--network", site.instance(), "-p", &remote, "-p", &local, IMAGE]);
        let mut container = Self { site, id: id.trim().to_owned(), address: Ipv4Addr::UNSPECIFIED };
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = docker(&["inspect", "--format", format, &container.id]);
        container.address = address.trim().parse().context("the container's address")?;
        Ok(container)
    }

    fn host(&self) -> Result<Ipv4Addr> {
        self.site.host_address().parse().context("the host's address")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _gone_already = Command::new("docker").args(["rm", "-f", &self.id]).output();
    }
}

/// Runs the suite.
pub fn run(session: &mut Session) -> Result<()> {
    let peers = &session.options.peers;
    let with_docker = peers.is_empty() || peers.contains(&Peer::Docker);
    let takes_part = |system: &&str| with_docker || ![DOCKER, DOCKER_LOCAL].contains(system);
    let turns: usize = CASES.iter().map(|(_, _, systems)| systems.iter().filter(|one| takes_part(one)).count()).sum();
    if let Some(lack) = lacks_docker() {
        session.leave_out(SUITE, "everything", &lack);
        return Ok(());
    }
    session.expect(turns * session.options.rounds as usize);
    session.say("containers: starting one");
    let container = caught(Container::start);
    let duration = session.options.duration;
    for round in 1..=session.options.rounds {
        for (case, reuse, systems) in CASES {
            for &system in systems.iter().filter(|one| takes_part(one)) {
                session.turn((SUITE, case), system, round, || {
                    let container = container.as_ref().map_err(|error| anyhow!("{error:#}"))?;
                    ask(container, system, reuse, duration)
                })?;
            }
        }
    }
    Ok(())
}

fn ask(container: &Container, system: &str, reuse: Reuse, duration: std::time::Duration) -> Result<Values> {
    let site = &container.site;
    let local = |at: SocketAddrV4| wrk::run_here(&[at], THREADS, duration, reuse);
    let remote = |at: SocketAddrV4| wrk::run(&site.client(), &[at], THREADS, duration, reuse);
    match system {
        DOCKER => remote(SocketAddrV4::new(container.host()?, PUBLISHED)),
        DOCKER_LOCAL => local(SocketAddrV4::new(Ipv4Addr::LOCALHOST, PUBLISHED)),
        DIRECT_LOCAL => local(SocketAddrV4::new(container.address, INSIDE)),
        _ => {
            let frontend = SocketAddrV4::new(container.host()?, site.port() as u16);
            let backend = SocketAddrV4::new(container.address, INSIDE).to_string();
            let (publish, uplink) = (frontend.to_string(), site.uplink());
            let arguments = ["--uplink", &uplink, "--publish", &publish, "--backend", &backend];
            let agent = Agent::start(None, site.instance(), &arguments);
            agent.wait_ready(1);
            if system == OURS_LOCAL { local(frontend) } else { remote(frontend) }
        }
    }
}

/// Returns what is wrong if no container of the sample API can be started.
pub fn lacks_docker() -> Option<String> {
    match Command::new("docker").args(["image", "inspect", "--format", "{{.Id}}", IMAGE]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            Some(format!("docker image inspect {IMAGE}: {}", complaint.lines().next().unwrap_or_default()))
        }
        Err(error) => Some(format!("docker: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_but_the_references_has_one() {
        for (_, _, systems) in CASES {
            assert_eq!(reference(systems[0]), None);
            assert!(systems[1..].iter().all(|system| reference(system) == Some(systems[0])));
        }
    }
}
