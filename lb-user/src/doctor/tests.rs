//! A page and a document, to the letter; and the machine that the tests change.

use std::path::PathBuf;

use super::{
    facts::{Bridge, Clients, Containers, Engine, Facts, Host, Kernel, Sight, Uplink},
    judge::{configuration, judge},
    render::render,
    *,
};
use crate::{
    cli::file::parse,
    config::Family,
    datapath::{
        links::LinkKind,
        netdev::XdpFeatures,
        probe::{Neighbour, Trial},
    },
};

const PLAIN: Style = Style { width: 100, colours: false };

/// A trial that succeeded.
pub fn trial() -> Trial {
    Trial {
        programs: ["tc_ingress", "xdp_ingress"].map(|name| (name.to_owned(), None)).into(),
        is_compiled: true,
        is_by_link: true,
        tc: None,
        xdp: None,
    }
}

/// One uplink, and Docker's bridge.
pub fn clients() -> Clients {
    Clients {
        uplinks: vec![Uplink {
            name: "eth0".into(),
            kind: LinkKind::Physical,
            is_up: true,
            mtu: 1500,
            families: vec![Family::V4, Family::V6],
            vlans: Vec::new(),
            refusal: None,
            is_dispensable: false,
            xdp: Sight::Seen(XdpFeatures { runs: true, redirects: true }),
            programs: Sight::Seen(Vec::new()),
            xdp_program: None,
        }],
        bridges: vec![Bridge { name: "docker0".into(), mtu: 1500 }],
        programs: vec![("docker0".into(), Vec::new())],
    }
}

/// A machine that has everything.
pub fn machine() -> Facts {
    Facts {
        kernel: Kernel {
            release: "6.18.44".into(),
            is_root: true,
            lacking: Vec::new(),
            refusals: Vec::new(),
            trial: Sight::Seen(Ok(trial())),
            lockdown: None,
            has_tc: true,
            bpffs: true,
            shares_mounts: Sight::Seen(true),
            cgroup2: Some("/sys/fs/cgroup".into()),
            has_cgroup2: true,
            sees_all_cgroups: true,
            at_connect: Sight::Seen(Vec::new()),
        },
        host: Host {
            processors: 8,
            memory_available: Some(4 << 30),
            open_files: Some(65_536),
            tells_pressure: true,
            forwards: [(Family::V4, Some(false)), (Family::V6, Some(false))],
            local_ports: Some((32_768, 60_999)),
            reserved_ports: String::new(),
        },
        clients: Ok(clients()),
        refusals: Vec::new(),
        listeners: Sight::Seen([].into()),
        taken: Sight::Seen(Vec::new()),
        instances: Sight::Seen(Vec::new()),
        engine: Ok(Engine {
            endpoint: "unix:///var/run/docker.sock".into(),
            version: "28.3.0".into(),
            api: "1.51".into(),
            cgroups: Some(2),
        }),
        containers: vec![(
            "web".parse().expect("a name"),
            Ok(Containers { driver: Some("bridge".into()), families: vec![Family::V4] }),
        )],
        room: None,
        frost: Vec::new(),
        backends: Vec::new(),
        backends_left_out: 0,
    }
}

/// A configuration without services.
pub fn nothing() -> RunConfig {
    let one = "[[service]]\nname = \"a\"\npublish = \"80\"\nbackends = [\"198.18.2.11:80\"]\n";
    RunConfig { services: Vec::new(), ..parse(one).expect("a right file") }
}

/// A file of services, and a machine that lacks much of what it needs.
fn troubled() -> Diagnosis {
    let text =
        "hook = \"xdp\"\n[[service]]\nname = \"web\"\nimage = \"lb-api\"\npublish = \"80:5000\"\ncpus = 0.5\nmax = 1\n";
    let config = parse(text).expect("a right file");
    let mut facts = machine();
    facts.kernel.release = "5.10.0-39-amd64".into();
    let refused = Some("unknown func bpf_loop#181: Invalid argument".to_owned());
    facts.kernel.trial =
        Sight::Seen(Ok(Trial { programs: vec![("tc_ingress".into(), refused), ("connect4".into(), None)], ..trial() }));
    let uplink = &mut facts.clients.as_mut().expect("there are clients").uplinks[0];
    uplink.xdp = Sight::Seen(XdpFeatures { runs: false, redirects: false });
    uplink.programs = Sight::Seen(vec![Neighbour { id: 41, name: "cil_from_netdev".into() }]);
    uplink.vlans = vec!["eth0.5".into()];
    facts.listeners =
        Sight::Seen([(crate::config::publish::Proto::Tcp, "0.0.0.0:80".parse().expect("an address"))].into());
    facts.containers[0].1 = Err("image lb-api:latest is not on this engine: build it".into());
    let mut findings = configuration(&config);
    findings.extend(judge(&facts, &config));
    Diagnosis::new(Some(PathBuf::from("services.toml")), &config, findings)
}

#[test]
fn a_page_tells_what_is_wrong_and_what_mends_it() {
    let page = render(&troubled(), Scope::Machine, PLAIN);

    assert_eq!(page, include_str!("golden/troubled.txt"), "\n{page}");
}

#[test]
fn a_machine_without_configuration_is_a_page() {
    let diagnosis = Diagnosis::new(None, &nothing(), judge(&machine(), &nothing()));
    let page = render(&diagnosis, Scope::Machine, PLAIN);

    assert_eq!(page, include_str!("golden/machine.txt"), "\n{page}");
    assert_eq!(diagnosis.exit(), Exit::Healthy);
}

#[test]
fn the_document_is_stable() {
    let document = troubled().json();

    assert_eq!(document, include_str!("golden/troubled.json").trim_end(), "\n{document}");
    assert_eq!(troubled().exit(), Exit::Degraded);
}

#[test]
fn a_file_alone_is_told_in_its_own_lines() {
    let page = render(&troubled(), Scope::File, PLAIN);

    assert_eq!(page, "--min is 1, because --max is\nweb: 80/tcp\nservices.toml: no mistakes\n");
}

#[test]
fn commands_stay_in_one_piece_on_narrow_terminals() {
    for width in [20, 64, 80] {
        let page = render(&troubled(), Scope::Machine, Style { width, ..PLAIN });
        assert!(page.lines().any(|line| line.trim() == "bpftool net show dev eth0"), "{width}:\n{page}");
    }
}

#[test]
fn colours_mark_what_is_worse_than_a_note() {
    let page = render(&troubled(), Scope::Machine, Style { colours: true, ..PLAIN });

    let lines = |start: &str| page.lines().filter(|line| line.starts_with(start)).count();
    assert!(lines("\u{1b}[1;31m  error") >= 3 && lines("\u{1b}[33m  warning") == 2, "{page}");
}

#[test]
fn texts_from_elsewhere_do_not_reach_the_terminal() {
    let finding =
        Finding::new(Group::Clients, Level::Error, "a\u{1b}[2J", "b\u{1b}[2J").mend("c\u{7}").command("d\u{1b}e");
    let page = render(&Diagnosis::new(None, &nothing(), vec![finding]), Scope::Machine, PLAIN);

    assert!(!page.contains(['\u{1b}', '\u{7}']), "{page:?}");
}

#[test]
fn mistakes_of_a_file_are_a_document_as_well() {
    let mistakes = parse("hook = \"tcp\"\n").map(|_| ()).expect_err("mistakes");
    let document: serde_json::Value =
        serde_json::from_str(&Diagnosis::of_mistakes(Path::new("a.toml"), &mistakes).json()).expect("JSON");

    assert_eq!(document["mistakes"][0]["line"], 1);
    assert_eq!((&document["verdict"], &document["schema"]), (&"error".into(), &1.into()));
}
