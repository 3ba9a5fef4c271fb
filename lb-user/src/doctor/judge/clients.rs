//! Where clients come from: uplinks, what else is attached to them, and who else waits for the same clients.

use std::net::{IpAddr, SocketAddr};

use super::super::{
    Finding, Group, Level,
    facts::{Clients, Facts, Sight, Uplink},
};
use crate::{
    config::{At, Family, Hook, Publish, RunConfig, publish::Proto},
    datapath::{
        links::LinkKind,
        netdev::XdpFeatures,
        probe::{self, Neighbour},
    },
    status::human::list,
};

/// Judges where clients come from.
pub fn judge(facts: &Facts, config: &RunConfig) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.refusals.iter().map(|told| new(Level::Error, "interfaces", told)).collect();
    match &facts.clients {
        Err(told) => findings.push(new(Level::Error, "interfaces", told)),
        Ok(clients) => {
            for uplink in &clients.uplinks {
                findings.push(at(uplink, config));
                findings.extend(xdp(uplink, config));
                findings.extend(others(uplink));
            }
            findings.extend(clients.programs.iter().filter_map(|(device, programs)| before(device, programs)));
            findings.extend(sizes(clients));
        }
    }
    match &facts.taken {
        Sight::Seen(taken) => findings.extend(taken.iter().map(|told| new(Level::Error, "frontends", told))),
        Sight::NeedsRoot if config.services.is_empty() => {}
        Sight::NeedsRoot => findings.push(Finding::needs_root(Group::Clients, "frontends of others")),
        Sight::Unclear(_) => {}
    }
    findings.extend(listeners(facts, config));
    findings
}

fn new(level: Level, subject: impl Into<String>, found: impl Into<String>) -> Finding {
    Finding::new(Group::Clients, level, subject, found)
}

/// Returns the level of what keeps XDP from serving at an uplink.
fn unfit(uplink: &Uplink, finding: impl FnOnce(Level) -> Finding) -> Finding {
    if uplink.is_dispensable {
        finding(Level::Warning)
            .means("it is left out: clients do not come by it, as it is an uplink of one family alone")
    } else {
        finding(Level::Error)
    }
}

fn at(uplink: &Uplink, config: &RunConfig) -> Finding {
    let Uplink { name, mtu, .. } = uplink;
    if let Some(told) = &uplink.refusal {
        return unfit(uplink, |level| new(level, name, told));
    }
    let hook = match config.hook {
        Hook::Auto | Hook::Tc => "TC",
        Hook::Xdp => "XDP",
        Hook::XdpGeneric => "generic XDP",
    };
    let families = if uplink.families.is_empty() { "no address".to_owned() } else { list(&uplink.families) };
    let mut found = format!("{}: {families}; {hook}; MTU {mtu}", kind(&uplink.kind));
    if !uplink.vlans.is_empty() {
        found.push_str(&format!("; VLANs {}", list(&uplink.vlans)));
    }
    if let (Hook::Auto | Hook::Tc, Sight::Seen(features)) = (config.hook, &uplink.xdp) {
        found.push_str(if features.runs { "; its driver could run XDP" } else { "; its driver has no XDP" });
    }
    if !uplink.is_up {
        return new(Level::Warning, name, format!("{found}; down"))
            .means("clients cannot come by it")
            .command(format!("ip link set {name} up"));
    }
    let is_anywhere = |publish: &&Publish| !matches!(publish.at, At::One(_));
    if uplink.families.is_empty() && uplink.vlans.is_empty() && config.frontends().any(|publish| is_anywhere(&publish))
    {
        return new(Level::Warning, name, found)
            .means("frontends without an address have none here: clients can reach them by no address of this device")
            .command(format!("ip address add ADDRESS/BITS dev {name}"));
    }
    new(Level::Ok, name, found)
}

fn kind(kind: &LinkKind) -> &str {
    match kind {
        LinkKind::Loopback => "loopback",
        LinkKind::Physical => "device with a driver",
        LinkKind::Veth => "veth",
        LinkKind::Bridge => "bridge",
        LinkKind::Vlan => "VLAN",
        LinkKind::Other(kind) => kind,
    }
}

/// What keeps XDP from being attached, where it is wanted.
fn xdp(uplink: &Uplink, config: &RunConfig) -> Vec<Finding> {
    let wanted = match config.hook {
        Hook::Auto | Hook::Tc => false,
        Hook::Xdp | Hook::XdpGeneric => uplink.refusal.is_none(),
    };
    if !wanted {
        return Vec::new();
    }
    let subject = format!("XDP at {}", uplink.name);
    let mut findings = Vec::new();
    if let Some(other) = uplink.xdp_program.as_ref().filter(|program| !probe::is_ours(program)) {
        findings.push(unfit(uplink, |level| {
            new(level, &subject, format!("{other} is there"))
                .mend("a device has room for one: take it away, by the program that put it there or as below, or use --hook tc")
                .command(format!("ip link set dev {} xdp off", uplink.name))
        }));
    }
    if config.hook == Hook::XdpGeneric {
        return findings;
    }
    match &uplink.xdp {
        Sight::Seen(XdpFeatures { runs: false, .. }) => findings.push(unfit(uplink, |level| {
            new(level, &subject, "the driver has no XDP")
                .mend("use --hook tc, or --hook xdp-generic where speed does not matter")
        })),
        Sight::Seen(XdpFeatures { redirects: false, .. }) => findings.push(
            new(Level::Note, &subject, "the driver hands packets to no other device")
                .means("what XDP has decided is handed over by TC, which costs what TC costs"),
        ),
        Sight::Seen(_) => findings.push(new(Level::Ok, &subject, "the driver runs it, and hands packets on")),
        Sight::NeedsRoot | Sight::Unclear(_) => findings.push(
            new(Level::Note, &subject, "the driver does not tell whether it has XDP (Linux 6.3)")
                .means("only lb-user run will show it"),
        ),
    }
    if config.complete_checksums && uplink.kind == LinkKind::Veth {
        findings.push(
            new(Level::Note, &subject, "--complete-checksums is taken at its word")
                .means("if a sender leaves checksums to its device, its connections hang; at its end of the veth:")
                .command("ethtool -k IFACE | grep tx-checksumming"),
        );
    }
    findings
}

/// Programs of others that see packets of an uplink before ours.
fn others(uplink: &Uplink) -> Vec<Finding> {
    let subject = format!("others at {}", uplink.name);
    let mut findings = Vec::new();
    match &uplink.programs {
        Sight::Seen(programs) => findings.extend(before(&uplink.name, programs)),
        Sight::NeedsRoot => findings.push(Finding::needs_root(Group::Clients, &subject)),
        Sight::Unclear(why) => {
            findings.push(new(Level::Note, &subject, format!("the programs there cannot be listed: {why}")));
        }
    }
    if let Some(other) = uplink.xdp_program.as_ref().filter(|program| !probe::is_ours(program)) {
        findings.push(
            new(Level::Note, &subject, format!("{other} at XDP"))
                .means("it sees packets before TC does; what it drops or takes never reaches lb-user"),
        );
    }
    findings
}

/// Programs of others at TCX that run before ours, which come last where they are not there.
fn before(device: &str, programs: &[Neighbour]) -> Option<Finding> {
    let before: Vec<String> =
        programs.iter().take_while(|program| !probe::is_ours(program)).map(ToString::to_string).collect();
    if before.is_empty() {
        return None;
    }
    Some(
        new(Level::Warning, format!("others at {device}"), format!("{} at TCX, before ours", list(before)))
            .means("what they answer with anything but TCX_NEXT never reaches lb-user")
            .mend("let them attach later, or pass on what is for frontends; the order is shown by")
            .command(format!("bpftool net show dev {device}")),
    )
}

/// Bridges whose packets are larger, or smaller, than those of an uplink.
fn sizes(clients: &Clients) -> Vec<Finding> {
    let mut findings = Vec::new();
    for uplink in &clients.uplinks {
        let others = clients.bridges.iter().filter(|bridge| bridge.mtu != uplink.mtu);
        let told: Vec<String> = others.clone().map(|bridge| format!("{} has {}", bridge.name, bridge.mtu)).collect();
        if told.is_empty() {
            continue;
        }
        let finding = new(Level::Note, "MTU", format!("{} has {}, {}", uplink.name, uplink.mtu, list(told))).means(
            "what is too big for the smaller one is answered with \"fragmentation needed\"; where such answers are dropped on \
             their way, large transfers hang",
        );
        findings.push(if others.clone().any(|bridge| bridge.mtu > uplink.mtu) {
            finding
                .mend("make networks of containers as small as the uplink:")
                .command(format!("docker network create -o com.docker.network.driver.mtu={} NAME", uplink.mtu))
        } else {
            finding
        });
    }
    findings
}

/// Sockets of this host that wait for the clients of frontends.
fn listeners(facts: &Facts, config: &RunConfig) -> Vec<Finding> {
    let all = match &facts.listeners {
        Sight::Seen(all) => all,
        Sight::NeedsRoot => return vec![Finding::needs_root(Group::Clients, "ports")],
        Sight::Unclear(why) => return vec![new(Level::Note, "ports", format!("sockets cannot be listed: {why}"))],
    };
    let mut findings = Vec::new();
    for publish in config.frontends() {
        let same = |(proto, at): &&(Proto, SocketAddr)| {
            (*proto, at.port()) == (publish.proto, publish.port.get()) && waits_at(at.ip(), publish.at)
        };
        let waiting: Vec<String> = all.iter().filter(same).map(|(_, at)| at.to_string()).collect();
        if waiting.is_empty() {
            continue;
        }
        let flags = match publish.proto {
            Proto::Tcp => "-ltnp",
            Proto::Udp => "-lunp",
        };
        findings.push(
            new(
                Level::Warning,
                "ports",
                format!("{}: a socket of this host waits at {}", publish.name(), list(waiting)),
            )
            .means("while the frontend is served, clients are led to its backends and never come to that socket")
            .mend("if that is not meant, end it, or publish another port; whose it is:")
            .command(format!("ss {flags} 'sport = :{}'", publish.port)),
        );
    }
    if findings.is_empty() && !config.services.is_empty() {
        findings.push(new(Level::Ok, "ports", "no socket of this host waits for the same clients"));
    }
    findings
}

/// Whether a socket at an address may get clients of a frontend. One of IPv6 that is bound to no address may take those of
/// IPv4, too.
fn waits_at(socket: IpAddr, at: At) -> bool {
    let takes = |family: Family| Family::of(socket) == family || (socket.is_unspecified() && socket.is_ipv6());
    match at {
        At::One(address) => socket == address || (socket.is_unspecified() && takes(Family::of(address))),
        At::Every(family) => takes(family),
        At::EveryOfBoth => true,
    }
}
