//! Where backends come from: the engine and its images and networks, servers that somebody else runs; and what runs already.

use lb_ebpf::abi::ABI_VERSION;

use super::super::{
    Finding, Group, Level,
    facts::{Backend, Containers, Facts, Hindrance, Sight},
};
use crate::{
    config::{Docker, Family, Following, RunConfig, Service, Snat, Source},
    datapath::links::Reach,
    status::human::list,
};

/// Judges the engine, and what containers need.
pub fn containers(facts: &Facts, config: &RunConfig) -> Vec<Finding> {
    let new = |level, subject: &str, found: String| Finding::new(Group::Containers, level, subject, found);
    let is_needed = config.services.iter().any(|service| !matches!(service.source, Source::Static { .. }));
    let mut findings = Vec::new();
    match &facts.engine {
        Ok(engine) => {
            let told = format!("Docker {} (API {}) at {}", engine.version, engine.api, engine.endpoint);
            findings.push(if is_needed && !engine.endpoint.starts_with("unix:") {
                new(Level::Warning, "engine", told)
                    .means("of containers elsewhere, no CPU is known, and they have to be reachable from here")
                    .mend("scale by what is seen here: --metric connections=N")
            } else {
                new(Level::Ok, "engine", told)
            });
        }
        Err(trouble) if trouble.is_permission && !facts.kernel.is_root => {
            findings.push(Finding::needs_root(Group::Containers, "engine"));
        }
        Err(trouble) if is_needed => {
            findings.push(new(Level::Error, "engine", trouble.told.clone()).means("no container can be started"));
        }
        Err(trouble) => findings.push(
            new(Level::Note, "engine", trouble.told.clone())
                .means("--image needs it; servers given by --backend are balanced without"),
        ),
    }
    for (name, outcome) in &facts.containers {
        let service = config.services.iter().find(|service| service.name == *name);
        let Some((service, docker)) = service.and_then(|service| Some((service, docker_of(service)?))) else {
            continue;
        };
        match outcome {
            Err(told) => findings.push(new(Level::Error, name.as_str(), told.clone())),
            Ok(found) => findings.push(fits(service, docker, found)),
        }
        if facts.engine.as_ref().is_ok_and(|engine| engine.cgroups == Some(1)) && follows_pressure(docker) {
            findings.push(
                new(Level::Note, name.as_str(), "control groups are of version 1: pressure is the whole host's".into())
                    .means("what others do on this host brings containers, too")
                    .mend("boot with systemd.unified_cgroup_hierarchy=1"),
            );
        }
    }
    findings.extend(facts.frost.iter().map(|(name, told)| {
        new(Level::Error, name.as_str(), told.clone())
            .mend("mount one of them, or leave out --warm and let --min be 1 at least")
            .command("mount -t cgroup2 none /sys/fs/cgroup")
    }));
    findings.extend(facts.room.iter().map(|told| new(Level::Error, "room", told.clone())));
    findings
}

fn docker_of(service: &Service) -> Option<&Docker> {
    match &service.source {
        Source::Docker(docker) => Some(docker),
        Source::Static { .. } | Source::Discovered(_) => None,
    }
}

fn follows_pressure(docker: &Docker) -> bool {
    matches!(&docker.scaling.following, Following::Demand(targets) if targets.pressure.is_some())
}

fn fits(service: &Service, docker: &Docker, found: &Containers) -> Finding {
    let network = docker.network.as_deref().unwrap_or("bridge");
    let driver = found.driver.as_deref().unwrap_or("unknown");
    let told = format!("image {} is there; network {network} ({driver}): {}", docker.image, list(&found.families));
    let new = |level| Finding::new(Group::Containers, level, service.name.as_str(), told.clone());
    match driver {
        "macvlan" | "ipvlan" if service.snat == Snat::default() => new(Level::Warning)
            .means("the kernel keeps a device and its macvlans apart: this host reaches none of the containers")
            .mend("give the host one of its own, with a route to the containers, and its address to --snat:")
            .command("ip link add lb0 link DEVICE type macvlan mode bridge")
            .command("ip address add ADDRESS/32 dev lb0 && ip link set lb0 up")
            .command("ip route add RANGE-OF-CONTAINERS dev lb0 src ADDRESS"),
        "overlay" => new(Level::Warning)
            .means("containers on an overlay are not behind a device of this host that leads to them")
            .mend("give the service a bridge network: docker network create NAME, and --network NAME"),
        _ => new(Level::Ok),
    }
}

/// Judges servers that somebody else runs: what is alike of a service in one line, and each that is not by itself.
pub fn backends(facts: &Facts, config: &RunConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    for service in &config.services {
        let own: Vec<&Backend> = facts.backends.iter().filter(|backend| backend.service == service.name).collect();
        let (good, bad): (Vec<&Backend>, Vec<&Backend>) =
            own.iter().partition(|backend| backend.way.is_ok() && backend.health.is_ok());
        if own.is_empty() {
            continue;
        }
        let told = format!("{} of {} answer ({})", good.len(), own.len(), service.health);
        let level = if good.is_empty() { Level::Error } else { Level::Ok };
        let mut sum = Finding::new(Group::Backends, level, service.name.as_str(), told);
        if good.is_empty() {
            sum = sum.means("lb-user run would start, and refuse every client");
        }
        findings.push(sum);
        for backend in bad {
            let why = backend.way.as_ref().err().or(backend.health.as_ref().err()).cloned().unwrap_or_default();
            let at = backend.address.to_string();
            let why = if why.contains(&at) { why } else { format!("{at}: {why}") };
            findings.push(
                Finding::new(Group::Backends, Level::Warning, service.name.as_str(), why)
                    .means("it gets no connections until its checks pass"),
            );
        }
        findings.extend(ways(service, &own, facts));
    }
    if facts.backends_left_out > 0 {
        let told = format!("{} more were not asked", facts.backends_left_out);
        findings.push(Finding::new(Group::Backends, Level::Note, "backends", told));
    }
    findings
}

/// What the ways to a service's backends ask for.
fn ways(service: &Service, own: &[&Backend], facts: &Facts) -> Vec<Finding> {
    let new = |level, found: String| Finding::new(Group::Backends, level, service.name.as_str(), found);
    let by = |wanted: Option<Reach>| -> Vec<&&Backend> {
        own.iter().filter(|backend| backend.way.as_ref().is_ok_and(|(reach, _)| *reach == wanted)).collect()
    };
    let devices = |backends: &[&&Backend]| {
        let mut devices: Vec<&str> =
            backends.iter().filter_map(|backend| Some(backend.way.as_ref().ok()?.1.as_str())).collect();
        devices.sort_unstable();
        devices.dedup();
        list(devices)
    };
    let mut findings = Vec::new();
    let veth = by(Some(Reach::Veth));
    if !veth.is_empty() {
        findings
            .push(new(Level::Ok, format!("{} behind veths of this host: straight into their namespaces", veth.len())));
    }
    let local = by(Some(Reach::Local));
    if !local.is_empty() {
        findings.push(new(Level::Ok, format!("{} at addresses of this host: its own stack has them", local.len())));
    }
    let neighbours = by(Some(Reach::Neighbour));
    if !neighbours.is_empty() {
        let told = format!("{} elsewhere, by {}", neighbours.len(), devices(&neighbours));
        let is_hidden = neighbours.iter().all(|backend| service.snat.of(Family::of(backend.address.ip())).is_some());
        findings.push(if is_hidden {
            new(Level::Ok, format!("{told}: they reply to the address of --snat"))
        } else {
            new(Level::Note, told)
                .means("their replies have to pass here: their routes to clients have to lead through this host")
                .mend("or let them know clients by an address of this host: --snat ADDRESS")
        });
    }
    let routed = by(Some(Reach::Routed));
    for (family, forwards) in facts.host.forwards {
        let of_family: Vec<&&Backend> =
            routed.iter().copied().filter(|backend| Family::of(backend.address.ip()) == family).collect();
        let Some(first) = of_family.first() else { continue };
        let (sysctl, tables) = match family {
            Family::V4 => ("net.ipv4.ip_forward", "iptables"),
            Family::V6 => ("net.ipv6.conf.all.forwarding", "ip6tables"),
        };
        let told = format!("{} routed by the kernel, by {} ({family})", of_family.len(), devices(&of_family));
        if forwards == Some(false) {
            findings.push(
                new(Level::Error, format!("{told}; {sysctl} is 0"))
                    .means("the kernel drops what is to be routed: no connection to them begins")
                    .command(format!("sysctl -w {sysctl}=1")),
            );
        }
        let address = first.address.ip();
        findings.push(
            new(Level::Warning, told)
                .means("a firewall that forwards nothing, as Docker's does by default, drops these connections")
                .mend("let them pass, as for the first of them:")
                .command(format!("{tables} -I FORWARD -d {address} -j ACCEPT"))
                .command(format!("{tables} -I FORWARD -s {address} -j ACCEPT")),
        );
    }
    let unknown = by(None);
    if !unknown.is_empty() {
        let told =
            format!("{} on {}: who they are there is not known until they are asked", unknown.len(), devices(&unknown));
        findings.push(new(Level::Note, told));
    }
    findings
}

/// Judges what runs already.
pub fn instances(facts: &Facts, config: &RunConfig) -> Vec<Finding> {
    let new = |level, name: &str, found: String| Finding::new(Group::Instances, level, name, found);
    let instances = match &facts.instances {
        Sight::Seen(instances) => instances,
        Sight::NeedsRoot => return vec![Finding::needs_root(Group::Instances, "instances")],
        Sight::Unclear(why) => return vec![new(Level::Note, "instances", why.clone())],
    };
    let own = config.instance.as_str();
    let mut findings = Vec::new();
    for instance in instances {
        let (name, is_own) = (instance.name.as_str(), instance.name == own);
        findings.push(match &instance.remains {
            Err(Hindrance::Elsewhere(told) | Hindrance::Version { told, .. } | Hindrance::Other(told)) if is_own => {
                new(Level::Error, name, told.clone())
            }
            Err(Hindrance::Version { abi, .. }) => new(
                Level::Note,
                name,
                format!("of another version of lb-user: ABI {abi}, not {ABI_VERSION}"),
            )
            .means(
                "which frontends it has cannot be told: if both claim one, clients go to whichever is attached first",
            ),
            Err(Hindrance::Elsewhere(_)) => new(Level::Note, name, "balances in another network namespace".into()),
            Err(Hindrance::Other(told)) => new(Level::Note, name, told.clone()),
            Ok(Some(remains)) if remains.is_running && is_own => {
                new(Level::Note, name, format!("runs (pid {})", remains.pid))
                    .means("a second lb-user run of it is refused; with --config, it reads its file again on SIGHUP:")
                    .command(format!("kill -HUP {}", remains.pid))
            }
            Ok(Some(remains)) if remains.is_running => new(Level::Ok, name, format!("runs (pid {})", remains.pid)),
            Ok(Some(_)) if is_own => new(Level::Ok, name, "its agent has ended, the kernel goes on balancing".into())
                .means("lb-user run takes over its connections and containers"),
            Ok(Some(_)) => new(Level::Note, name, "its agent has ended, the kernel goes on balancing".into())
                .mend("run it again, or remove it:")
                .command(format!("lb-user detach --instance {name}")),
            Ok(None) => new(Level::Note, name, "left by a run that died while it began, or one that begins now".into())
                .means("it serves nobody, and the next run of it takes it away"),
        });
    }
    if instances.iter().all(|instance| instance.name != own) {
        findings.push(new(Level::Ok, own, "nothing is there: lb-user run begins anew".into()));
    }
    findings
}
