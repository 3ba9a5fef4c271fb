//! Machines that nobody has here, and what is said of them.

use std::net::SocketAddr;

use super::*;
use crate::{
    cli::file::parse,
    config::{Family, publish::Proto},
    datapath::{
        links::{LinkKind, Reach},
        loader::Remains,
        netdev::XdpFeatures,
        probe::Neighbour,
    },
    doctor::{
        facts::{Backend, Bridge, Containers, EngineTrouble, Hindrance, Instance, Sight, Uplink},
        tests::{clients, machine, nothing, trial},
    },
};

/// Returns a configuration of one service of containers, with more said of it, and of the instance.
fn web(instance: &str, service: &str) -> RunConfig {
    let text = format!(
        "{instance}\n[[service]]\nname = \"web\"\nimage = \"lb-api\"\npublish = \"80:5000\"\ncpus = 1\n{service}\n"
    );
    parse(&text).unwrap_or_else(|mistakes| panic!("{text}{mistakes:?}"))
}

/// Returns a configuration of one service of these backends.
fn fixed(backends: &str, service: &str) -> RunConfig {
    let text = format!("[[service]]\nname = \"web\"\npublish = \"80\"\nbackends = [{backends}]\n{service}\n");
    parse(&text).unwrap_or_else(|mistakes| panic!("{text}{mistakes:?}"))
}

/// Returns what is no better than a note, each in a line.
fn told(facts: &Facts, config: &RunConfig) -> Vec<String> {
    let mut findings = judge(facts, config);
    findings.retain(|finding| finding.level > Level::Ok);
    findings.iter().map(|finding| format!("{:?} {}: {}", finding.level, finding.subject, finding.found)).collect()
}

/// Returns what is said of a machine that is changed, beyond what is said of it as it is.
fn change(config: &RunConfig, change: impl FnOnce(&mut Facts)) -> Vec<String> {
    let (mut facts, before) = (machine(), told(&machine(), config));
    change(&mut facts);
    let after = told(&facts, config);
    after.into_iter().filter(|line| !before.contains(line)).collect()
}

fn uplink(facts: &mut Facts) -> &mut Uplink {
    &mut facts.clients.as_mut().expect("there are uplinks").uplinks[0]
}

#[test]
fn a_machine_that_has_everything_is_fine() {
    assert_eq!(told(&machine(), &nothing()), [""; 0]);
    assert_eq!(told(&machine(), &web("", "")), [""; 0]);
}

#[test]
fn what_the_kernel_lacks_is_told() {
    let tell = |by: fn(&mut Facts)| change(&nothing(), by);

    assert_eq!(tell(|facts| facts.kernel.release = "5.14.21-150500".into()), ["Error version: Linux 5.14.21-150500"]);
    assert_eq!(
        tell(|facts| facts.kernel.release = "5.15.0-91-generic".into()),
        ["Note version: Linux 5.15.0-91-generic"]
    );
    assert_eq!(tell(|facts| facts.kernel.release = "6.1.0-49-amd64".into()), [""; 0]);
    assert_eq!(
        tell(|facts| facts.kernel.release = "unknown".into()),
        ["Note version: \"unknown\" is no version that is understood"]
    );
    assert_eq!(
        tell(|facts| facts.kernel.refusals = vec![("types", "the kernel has no type information".into())]),
        ["Error types: the kernel has no type information"]
    );
    assert_eq!(
        tell(|facts| {
            facts.kernel.refusals = vec![("object", "this lb-user was built without its kernel object".into())];
            facts.kernel.trial = Sight::Seen(Err("this lb-user was built without its kernel object".into()));
        }),
        ["Error object: this lb-user was built without its kernel object"],
        "once"
    );
    let lacks = |facts: &mut Facts| facts.kernel.lacking = vec!["CAP_NET_ADMIN", "CAP_SYS_ADMIN"];
    assert_eq!(change(&nothing(), lacks), ["Warning privileges: root without CAP_NET_ADMIN and CAP_SYS_ADMIN"]);
    let refused = change(&nothing(), |facts| {
        lacks(facts);
        facts.kernel.trial = Sight::Seen(Err("load the kernel object: operation not permitted".into()));
    });
    assert_eq!(refused[0], "Error privileges: root without CAP_NET_ADMIN and CAP_SYS_ADMIN");
    assert_eq!(
        tell(|facts| (facts.kernel.has_cgroup2, facts.kernel.cgroup2) = (false, None)),
        ["Error control groups: the kernel has no unified control groups (cgroup2)"]
    );
    assert_eq!(
        tell(|facts| facts.kernel.cgroup2 = None),
        ["Note control groups: unified ones are not mounted: lb-user run mounts them at /run/lb/cgroup2"]
    );
    assert_eq!(
        tell(|facts| facts.kernel.sees_all_cgroups = false),
        ["Warning control groups: those of a container at /sys/fs/cgroup"]
    );
    assert_eq!(
        tell(|facts| facts.kernel.bpffs = false),
        ["Note BPF file system: not mounted at /sys/fs/bpf: lb-user run mounts it"]
    );
    assert_eq!(
        tell(|facts| (facts.kernel.bpffs, facts.kernel.shares_mounts) = (false, Sight::Seen(false))),
        ["Warning BPF file system: not mounted, or hidden in this mount namespace"]
    );
}

#[test]
fn what_came_of_the_trial_is_told() {
    let tell = |by: fn(&mut crate::datapath::probe::Trial)| {
        let mut trial = trial();
        by(&mut trial);
        change(&nothing(), |facts| facts.kernel.trial = Sight::Seen(Ok(trial)))
    };

    assert_eq!(
        tell(|trial| trial.programs[0].1 = Some("unknown func bpf_tcp_gen_syncookie#110: Invalid argument".into())),
        [
            "Error programs: 1 of 2 pass the verifier\ntc_ingress: unknown func bpf_tcp_gen_syncookie#110: Invalid argument"
        ]
    );
    assert_eq!(
        tell(|trial| {
            let denied = Some("operation not permitted".to_owned());
            trial.programs = ["b", "a"].map(|name| (name.to_owned(), denied.clone())).into();
            trial.is_compiled = false;
        }),
        ["Error programs: 0 of 2 pass the verifier\na, b: operation not permitted"],
        "of what is not loaded, nothing is compiled"
    );
    assert_eq!(tell(|trial| trial.is_compiled = false), ["Warning compiler: programs are interpreted"]);
    assert_eq!(tell(|trial| trial.is_by_link = false), [""; 0], "clsact is as good");
    assert_eq!(
        tell(|trial| (trial.is_by_link, trial.tc) = (false, Some("no such file or directory".into()))),
        ["Error TC: filters on a clsact qdisc: no such file or directory"]
    );
    assert_eq!(tell(|trial| trial.xdp = Some("not supported".into())), ["Note XDP: not supported"]);
    let mut broken = trial();
    broken.xdp = Some("not supported".into());
    let xdp = change(&web("hook = \"xdp\"", ""), |facts| facts.kernel.trial = Sight::Seen(Ok(broken)));
    assert_eq!(xdp, ["Error XDP: not supported"]);
    let clsact = change(&nothing(), |facts| {
        facts.kernel.has_tc = false;
        facts.kernel.trial = Sight::Seen(Ok(crate::datapath::probe::Trial { is_by_link: false, ..trial() }));
    });
    assert_eq!(clsact, ["Warning tc: there is no program tc"]);
}

#[test]
fn lockdown_is_blamed_only_where_nothing_can_be_loaded() {
    let findings = |lockdown: Option<&str>, outcome| {
        let mut facts = machine();
        (facts.kernel.lockdown, facts.kernel.trial) = (lockdown.map(str::to_owned), Sight::Seen(outcome));
        judge(&facts, &nothing()).into_iter().find(|finding| finding.subject == "programs").expect("it is judged")
    };

    let refused = || Err("load the kernel object: operation not permitted".to_owned());
    assert!(findings(Some("confidentiality"), refused()).mend.starts_with("lockdown is confidentiality"));
    assert_eq!(findings(Some("none"), refused()).mend, "");
    assert_eq!(findings(Some("integrity"), Ok(trial())).level, Level::Ok);
}

#[test]
fn without_root_what_is_not_seen_is_told() {
    let mut facts = machine();
    facts.kernel.is_root = false;
    (facts.kernel.trial, facts.kernel.at_connect) = (Sight::NeedsRoot, Sight::NeedsRoot);
    (facts.taken, facts.instances) = (Sight::NeedsRoot, Sight::NeedsRoot);
    uplink(&mut facts).programs = Sight::NeedsRoot;
    facts.engine = Err(EngineTrouble { told: "ping: permission denied".into(), is_permission: true });
    facts.containers.clear();

    let told = told(&facts, &web("", ""));

    let unseen = ["programs", "others at connect()", "others at eth0", "frontends of others", "engine", "instances"];
    assert_eq!(told[0], "Warning privileges: not root");
    for subject in unseen {
        assert!(told.contains(&format!("Note {subject}: not looked at: needs root")), "{subject}: {told:#?}");
    }
    assert_eq!(told.len(), 1 + unseen.len(), "{told:#?}");
}

#[test]
fn what_the_host_lacks_is_told() {
    let web = web("", "metrics = [\"arrivals\", \"pressure\"]\nmax = 1000");
    let snat = fixed("\"198.18.2.11:80\"", "snat = \"198.18.1.1\"");
    let few = |facts: &mut Facts| facts.host.local_ports = Some((1024, 65_535));

    assert_eq!(
        change(&web, |facts| facts.host.tells_pressure = false),
        ["Warning pressure: web: the kernel tells no pressure (/proc/pressure/cpu)"]
    );
    assert_eq!(
        change(&web, |facts| facts.host.open_files = Some(1024)),
        ["Warning open files: 1024 descriptors at a time; all containers and checks at once need 2128"]
    );
    assert_eq!(
        change(&web, |facts| facts.host.memory_available = Some(64 << 20)),
        ["Warning memory: 64 MiB available; 1048576 connections (--max-flows) take up to 300 MiB"]
    );
    assert_eq!(change(&web, few), [""; 0], "they matter to snat alone");
    assert_eq!(
        change(&snat, few),
        ["Warning ports: net.ipv4.ip_local_port_range is 1024 to 65535; --snat takes 1024 to 32767"]
    );
    for (reserved, is_enough) in
        [("1024-32767", true), ("8080,1000-40000", true), ("1024-32766", false), ("8080", false)]
    {
        let told = change(&snat, |facts| {
            few(facts);
            facts.host.reserved_ports = reserved.into();
        });
        assert_eq!(told.is_empty(), is_enough, "{reserved}: {told:?}");
    }
}

#[test]
fn ports_that_are_reserved_already_stay_so() {
    let mut facts = machine();
    (facts.host.local_ports, facts.host.reserved_ports) = (Some((1024, 65_535)), "8080,9090".into());

    let findings = judge(&facts, &fixed("\"198.18.2.11:80\"", "snat = \"198.18.1.1\""));

    let ports = findings.iter().find(|finding| finding.level == Level::Warning && finding.subject == "ports");
    let commands = &ports.expect("they overlap").commands;
    assert_eq!(*commands, ["sysctl -w net.ipv4.ip_local_reserved_ports=8080,9090,1024-32767"]);
}

#[test]
fn what_is_wrong_with_uplinks_is_told() {
    let (tc, xdp) = (web("", ""), web("hook = \"xdp\"", ""));
    let is = "device with a driver: IPv4, IPv6; TC; MTU 1500; its driver could run XDP";

    assert_eq!(
        change(&tc, |facts| facts.refusals = vec!["interface eth9 does not exist here: there are lo".into()]),
        ["Error interfaces: interface eth9 does not exist here: there are lo"]
    );
    assert_eq!(change(&tc, |facts| uplink(facts).is_up = false), [format!("Warning eth0: {is}; down")]);
    assert_eq!(
        change(&tc, |facts| uplink(facts).families.clear()),
        ["Warning eth0: device with a driver: no address; TC; MTU 1500; its driver could run XDP"]
    );
    let features = |runs, redirects| Sight::Seen(XdpFeatures { runs, redirects });
    assert_eq!(change(&tc, |facts| uplink(facts).xdp = features(false, false)), [""; 0], "nobody asks for it");
    assert_eq!(
        change(&xdp, |facts| uplink(facts).xdp = features(false, false)),
        ["Error XDP at eth0: the driver has no XDP"]
    );
    assert_eq!(
        change(&xdp, |facts| (uplink(facts).xdp, uplink(facts).is_dispensable) = (features(false, false), true)),
        ["Warning XDP at eth0: the driver has no XDP"]
    );
    assert_eq!(
        change(&xdp, |facts| uplink(facts).xdp = features(true, false)),
        ["Note XDP at eth0: the driver hands packets to no other device"]
    );
    assert_eq!(
        change(&xdp, |facts| uplink(facts).xdp = Sight::Unclear("no such file".into())),
        ["Note XDP at eth0: the driver does not tell whether it has XDP (Linux 6.3)"]
    );
    assert_eq!(
        change(&xdp, |facts| uplink(facts).refusal = Some("attach XDP to eth0: it is a bond".into())),
        ["Error eth0: attach XDP to eth0: it is a bond"]
    );
    assert_eq!(
        change(&tc, |facts| facts.clients.as_mut().unwrap().bridges[0].mtu = 9000),
        ["Note MTU: eth0 has 1500, docker0 has 9000"]
    );
}

#[test]
fn programs_of_others_matter_where_they_come_first() {
    let (tc, xdp) = (web("", ""), web("hook = \"xdp\"", ""));
    let programs = |names: &[&str]| {
        let numbered = names.iter().zip(7..).map(|(name, id)| Neighbour { id, name: (*name).into() });
        Sight::Seen(numbered.collect::<Vec<_>>())
    };
    let with = |names: &[&str]| change(&tc, |facts| uplink(facts).programs = programs(names));

    assert_eq!(with(&["cil_from_netdev"]), ["Warning others at eth0: program cil_from_netdev (7) at TCX, before ours"]);
    assert_eq!(
        with(&["a", "", "tc_ingress", "b"]),
        ["Warning others at eth0: program a (7), program 8 at TCX, before ours"]
    );
    assert_eq!(with(&["tc_ingress", "cil_from_netdev"]), [""; 0]);
    let at_connect = |names: &[&str]| change(&tc, |facts| facts.kernel.at_connect = programs(names));
    assert_eq!(
        at_connect(&["cil_sock4_connect", "connect4", "b"]),
        ["Note others at connect(): program cil_sock4_connect (7) at the root of control groups, before ours"]
    );
    assert_eq!(at_connect(&["connect4", "connect6"]), [""; 0]);
    let at_bridge = change(&tc, |facts| {
        facts.clients.as_mut().unwrap().programs =
            vec![("docker0".into(), vec![Neighbour { id: 7, name: "a".into() }])];
    });
    assert_eq!(at_bridge, ["Warning others at docker0: program a (7) at TCX, before ours"]);
    let other = |facts: &mut Facts| uplink(facts).xdp_program = Some(Neighbour { id: 7, name: "guard".into() });
    assert_eq!(change(&tc, other), ["Note others at eth0: program guard (7) at XDP"]);
    assert_eq!(
        change(&xdp, other),
        ["Error XDP at eth0: program guard (7) is there", "Note others at eth0: program guard (7) at XDP"]
    );
    let own = |facts: &mut Facts| uplink(facts).xdp_program = Some(Neighbour { id: 7, name: "xdp_ingress".into() });
    assert_eq!(change(&xdp, own), [""; 0]);
}

#[test]
fn sockets_that_would_lose_their_clients_are_told() {
    let waits = |config: &RunConfig, proto, at: &str| {
        let at: SocketAddr = at.parse().unwrap();
        change(config, |facts| facts.listeners = Sight::Seen([(proto, at)].into()))
    };
    let (every, one) = (fixed("\"198.18.2.11:80\"", ""), {
        let text = "[[service]]\nname = \"web\"\npublish = \"192.0.2.1:80\"\nbackends = [\"198.18.2.11:80\"]\n";
        parse(text).expect("a right file")
    });

    let told = "Warning ports: 80/tcp: a socket of this host waits at 0.0.0.0:80";
    assert_eq!(waits(&every, Proto::Tcp, "0.0.0.0:80"), [told]);
    assert_eq!(waits(&every, Proto::Tcp, "[::]:80").len(), 1, "it may take IPv4, too");
    assert_eq!(waits(&every, Proto::Tcp, "127.0.0.1:80").len(), 1);
    assert_eq!(waits(&every, Proto::Tcp, "[::1]:80"), [""; 0]);
    assert_eq!(waits(&every, Proto::Udp, "0.0.0.0:80"), [""; 0]);
    assert_eq!(waits(&every, Proto::Tcp, "0.0.0.0:81"), [""; 0]);
    assert_eq!(waits(&one, Proto::Tcp, "192.0.2.1:80").len(), 1);
    assert_eq!(waits(&one, Proto::Tcp, "0.0.0.0:80").len(), 1);
    assert_eq!(waits(&one, Proto::Tcp, "127.0.0.1:80"), [""; 0]);
    assert_eq!(
        change(&every, |facts| facts.taken = Sight::Seen(vec!["frontend 192.0.2.1:80 belongs to instance a".into()])),
        ["Error frontends: frontend 192.0.2.1:80 belongs to instance a"]
    );
}

#[test]
fn what_docker_lacks_is_told() {
    let rootless = || EngineTrouble { told: "the engine at unix:///run/a is rootless".into(), is_permission: false };
    let missing = |facts: &mut Facts| facts.engine = Err(rootless());
    let driver = |driver: &str| {
        let (driver, families) = (Some(driver.to_owned()), vec![Family::V4]);
        vec![("web".parse().unwrap(), Ok(Containers { driver, families }))]
    };
    let lan = web("", "network = \"lan\"");

    assert_eq!(change(&web("", ""), missing), ["Error engine: the engine at unix:///run/a is rootless"]);
    assert_eq!(change(&nothing(), missing), ["Note engine: the engine at unix:///run/a is rootless"]);
    assert_eq!(
        change(&web("", ""), |facts| {
            facts.containers = vec![("web".parse().unwrap(), Err("image lb-api is not on this engine".into()))];
        }),
        ["Error web: image lb-api is not on this engine"]
    );
    let there = "image lb-api is there; network lan";
    assert_eq!(
        change(&lan, |facts| facts.containers = driver("macvlan")),
        [format!("Warning web: {there} (macvlan): IPv4")]
    );
    assert_eq!(
        change(&lan, |facts| facts.containers = driver("overlay")),
        [format!("Warning web: {there} (overlay): IPv4")]
    );
    let hidden = web("", "network = \"lan\"\nsnat = \"192.0.2.9\"");
    assert_eq!(change(&hidden, |facts| facts.containers = driver("macvlan")), [""; 0]);
    let afar = |facts: &mut Facts| facts.engine.as_mut().unwrap().endpoint = "http://198.18.1.9:2375".into();
    assert_eq!(change(&nothing(), afar), [""; 0]);
    assert_eq!(
        change(&web("", ""), afar),
        ["Warning engine: Docker 28.3.0 (API 1.51) at http://198.18.1.9:2375"],
        "no control group of a container is here"
    );
    let first_version = |facts: &mut Facts| facts.engine.as_mut().unwrap().cgroups = Some(1);
    assert_eq!(change(&web("", ""), first_version), [""; 0]);
    assert_eq!(
        change(&web("", "metrics = [\"arrivals\", \"pressure\"]"), first_version),
        ["Note web: control groups are of version 1: pressure is the whole host's"]
    );
    let told = "--warm: containers cannot be frozen here";
    assert_eq!(
        change(&web("", ""), |facts| facts.frost = vec![("web".parse().unwrap(), told.into())]),
        [format!("Error web: {told}")]
    );
    assert_eq!(
        change(&web("", ""), |facts| facts.room = Some("service web: with this service there may be 4096".into())),
        ["Error room: service web: with this service there may be 4096"]
    );
}

#[test]
fn ways_to_backends_ask_for_what_they_need() {
    let with = |service: &str, ways: &[Result<Option<Reach>, &str>]| {
        let config = fixed("\"198.18.2.11:80\", \"198.18.2.12:80\"", service);
        change(&config, |facts| {
            let backends = ways.iter().zip(11..).map(|(way, number)| Backend {
                service: "web".parse().unwrap(),
                address: SocketAddr::from(([198, 18, 2, number], 80)),
                way: way.map(|reach| (reach, "dev0".to_owned())).map_err(str::to_owned),
                health: Ok(()),
            });
            facts.backends = backends.collect();
        })
    };

    assert_eq!(with("", &[Ok(Some(Reach::Veth)), Ok(Some(Reach::Veth))]), [""; 0]);
    assert_eq!(with("", &[Ok(Some(Reach::Neighbour)); 2]), ["Note web: 2 elsewhere, by dev0"]);
    assert_eq!(with("snat = \"198.18.1.1\"", &[Ok(Some(Reach::Neighbour)); 2]), [""; 0]);
    assert_eq!(
        with("", &[Ok(Some(Reach::Routed)); 2]),
        [
            "Error web: 2 routed by the kernel, by dev0 (IPv4); net.ipv4.ip_forward is 0",
            "Warning web: 2 routed by the kernel, by dev0 (IPv4)"
        ]
    );
    assert_eq!(
        with("", &[Ok(Some(Reach::Veth)), Err("backend 198.18.2.12: no route from here")]),
        ["Warning web: 198.18.2.12:80: backend 198.18.2.12: no route from here"]
    );
    assert_eq!(with("", &[Err("no route"); 2])[0], "Error web: 0 of 2 answer (tcp)");
    assert_eq!(with("", &[Ok(None); 2]), ["Note web: 2 on dev0: who they are there is not known until they are asked"]);
}

#[test]
fn what_runs_already_is_told() {
    let with = |name: &str, remains: Result<Option<Remains>, Hindrance>| {
        change(&nothing(), |facts| facts.instances = Sight::Seen(vec![Instance { name: name.into(), remains }]))
    };
    let remains = |is_running| Ok(Some(Remains { pid: 7, is_running }));
    let elsewhere = || Err(Hindrance::Elsewhere("instance default balances in another network namespace".into()));

    assert_eq!(with("default", remains(true)), ["Note default: runs (pid 7)"]);
    assert_eq!(with("other", remains(true)), [""; 0]);
    assert_eq!(with("default", remains(false)), [""; 0], "it is taken over");
    assert_eq!(with("other", remains(false)), ["Note other: its agent has ended, the kernel goes on balancing"]);
    assert_eq!(with("default", elsewhere()), ["Error default: instance default balances in another network namespace"]);
    assert_eq!(with("other", elsewhere()), ["Note other: balances in another network namespace"]);
    let abi = || Err(Hindrance::Version { told: "instance default was pinned by another version".into(), abi: 4 });
    assert_eq!(with("default", abi()), ["Error default: instance default was pinned by another version"]);
    assert!(with("other", abi())[0].starts_with("Note other: of another version of lb-user: ABI 4, not "));
    let unreadable = || Err(Hindrance::Other("map AGENT: permission denied".into()));
    assert_eq!(with("default", unreadable()), ["Error default: map AGENT: permission denied"]);
    assert_eq!(with("default", Ok(None)).len(), 1);
}

#[test]
fn nothing_that_is_worse_than_a_note_is_left_without_a_word() {
    let mut facts = machine();
    facts.kernel.is_root = false;
    facts.kernel.bpffs = false;
    facts.kernel.shares_mounts = Sight::Seen(false);
    facts.kernel.has_cgroup2 = false;
    facts.kernel.trial = Sight::Seen(Ok(crate::datapath::probe::Trial {
        is_compiled: false,
        is_by_link: false,
        tc: Some("not supported".into()),
        ..trial()
    }));
    facts.kernel.has_tc = false;
    facts.host.memory_available = Some(1 << 20);
    facts.host.open_files = Some(8);
    facts.clients = Ok(clients());
    uplink(&mut facts).is_up = false;
    uplink(&mut facts).programs = Sight::Seen(vec![Neighbour { id: 7, name: "a".into() }]);
    facts.clients.as_mut().unwrap().bridges.push(Bridge { name: "br9".into(), mtu: 9000 });
    facts.listeners = Sight::Seen([(Proto::Tcp, "0.0.0.0:80".parse().unwrap())].into());
    assert_eq!(uplink(&mut facts).kind, LinkKind::Physical);

    for finding in judge(&facts, &web("", "")) {
        let says = [&finding.means, &finding.mend].iter().any(|text| !text.is_empty()) || !finding.commands.is_empty();
        assert!(finding.level < Level::Warning || says, "{finding:?}");
    }
}
