//! Servers of the balancer's own host, beside a container, and clients from everywhere.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    process::Stdio,
    time::Duration,
};

use lb_tests::{
    agent::{Agent, assert_gone, binary},
    lab::{self, Lab, UPLINK, UPLINK_V6, Wiring, inside, wait_until},
};
use nix::sys::signal::Signal;

use super::{count, vlan};

/// Where servers of datagrams listen.
const ECHO: u16 = 5353;
/// The ports of two servers of the host; the third is the container's.
const PORTS: [u16; 2] = [8080, 8081];

/// Services as one file has them: the page of three servers, of which two are the host's, bulk data, datagrams, and what
/// nobody listens at.
fn services() -> Vec<String> {
    let service = |name: &str, publish: &str, backends: &[String], more: &str| {
        let backends: Vec<String> = backends.iter().map(|backend| format!("\"{backend}\"")).collect();
        let backends = backends.join(", ");
        format!(
            "[[service]]\ndrain-timeout = \"1s\"\nname = \"{name}\"\npublish = [{publish}]\nbackends = [{backends}]\n{more}\n"
        )
    };
    let of_both = |port: u16| [format!("{UPLINK}:{port}"), format!("[{UPLINK_V6}]:{port}")];
    let web: Vec<String> = PORTS.into_iter().flat_map(of_both).collect();
    let container = [format!("{}:80", lab::backend(0)), format!("[{}]:80", lab::backend_v6(0))];
    vec![
        service("web", "\"80\"", &[web, container.into()].concat(), ""),
        service("bulk", "\"5202\"", &of_both(5201), "health = \"none\""),
        service("names", "\"53/udp\"", &of_both(ECHO), "health = \"none\""),
        service("closed", "\"9/udp\", \"9/tcp\"", &of_both(9999), "health = \"none\""),
    ]
}

/// Backends in those.
const BACKENDS: u64 = 12;

fn write(file: &tempfile::NamedTempFile, lab: &Lab, top: &[&str], services: &[String]) {
    let top = [&[&format!("instance = \"{}\"", lab.instance()), "uplinks = [\"up0\"]"], top].concat().join("\n");
    std::fs::write(file.path(), format!("{top}\n{}", services.concat())).expect("written");
}

fn start(lab: &Lab, file: &tempfile::NamedTempFile) -> Agent {
    let agent = Agent::start_file(Some(&lab.balancer()), &lab.instance(), file.path());
    agent.wait_ready(BACKENDS);
    agent
}

/// A lab with servers of the host and of one container; datagrams are answered twice as long.
fn servers() -> (Lab, std::process::Child) {
    let mut lab = Lab::new(1, Wiring::Bridge);
    lab.add_ipv6();
    lab.start_server_in(&lab.backend(0), 2);
    for (number, port) in PORTS.into_iter().enumerate() {
        lab.start_server_at(&lab.balancer(), port, number);
    }
    for address in [UPLINK, UPLINK_V6].map(|address| address.parse::<IpAddr>().expect("an address")) {
        let socket = inside(&lab.balancer(), || UdpSocket::bind((address, ECHO)).expect("the port is free"));
        std::thread::spawn(move || {
            let mut room = [0; 8192];
            while let Ok((len, from)) = socket.recv_from(&mut room) {
                let _client_left = socket.send_to(&room[..len].repeat(2), from);
            }
        });
    }
    let mut iperf = lab.command(&lab.balancer(), "iperf3");
    let iperf = iperf.args(["-s", "-p", "5201"]).stdout(Stdio::null()).spawn().expect("iperf3 starts");
    (lab, iperf)
}

/// Asks for a page from a namespace.
fn get(lab: &Lab, namespace: &str, url: &str) -> String {
    let output = lab.command(namespace, "curl").args(["-s", "-m", "3", url]).output().unwrap();
    assert!(output.status.success(), "{namespace}: curl {url}: {}", output.status);
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Asks every backend for its page, by a frontend's address.
fn assert_all_answer(lab: &Lab, namespace: &str, address: &str) {
    let answers: BTreeSet<String> = (0..3).map(|_| get(lab, namespace, &format!("http://{address}/"))).collect();
    let all = ["backend 0", "backend 1", "backend 2"].map(str::to_owned);
    assert_eq!(answers, all.into(), "{namespace}: {address}");
}

/// Fetches a big file by each backend, which has to be as it should be.
fn assert_bulk(lab: &Lab, address: &str) {
    for _ in 0..3 {
        let big = lab.from_client("curl", &["-s", "-m", "20", &format!("http://{address}/big")]).stdout;
        let wrong =
            (0..20_000_000_u32).zip(&big).find(|(byte, got)| (byte.wrapping_mul(2_654_435_761) >> 24) as u8 != **got);
        assert_eq!((big.len(), wrong), (20_000_000, None), "{address}");
    }
}

/// Moves data by several streams, both ways.
fn assert_streams(lab: &Lab, address: &str) {
    for direction in [&[][..], &["-R"]] {
        let all = [&["-c", address, "-p", "5202", "-P", "4", "-t", "1", "--json"], direction].concat();
        let mut report = serde_json::Value::Null;
        // It serves one at a time, and may not have done with the last one yet.
        wait_until("iperf3 has time", Duration::from_secs(5), || {
            report = serde_json::from_slice(&lab.from_client("iperf3", &all).stdout).expect("a report");
            !report["error"].as_str().unwrap_or_default().contains("busy")
        });
        let bytes = report["end"]["sum_received"]["bytes"].as_f64().unwrap_or(0.0);
        assert!(report["error"].is_null() && bytes > 10e6, "{address} {direction:?}: {report:#}");
    }
}

/// Asks by datagrams of several sizes, from whole ones to those in fragments both ways; the answers come from the frontend.
fn assert_datagrams(namespace: &str, address: &str) {
    let to = SocketAddr::new(address.parse().expect("an address"), 53);
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    inside(namespace, || {
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        for len in [1, 700, 1400, 4000] {
            socket.send_to(&vec![len as u8; len], to).unwrap();
            let mut room = [0; 9000];
            let (got, from) = socket.recv_from(&mut room).unwrap_or_else(|error| panic!("{to} {len}: {error}"));
            assert_eq!((got, from), (2 * len, to));
            assert!(room[..got].iter().all(|byte| *byte == len as u8));
        }
    });
}

/// Asks where nobody listens: the host says so, as the frontend.
fn assert_refused(lab: &Lab, address: &str) {
    let to = SocketAddr::new(address.parse().expect("an address"), 9);
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    inside(&lab.client(), || {
        let error = TcpStream::connect_timeout(&to, Duration::from_secs(3)).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"?").unwrap();
        let error = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    });
}

/// Returns how many programs of ours are at the egress of a device of the balancer.
fn doors(lab: &Lab, attach: &str) -> usize {
    if attach == "clsact" {
        let shown =
            |device| lab::run(lab.command(&lab.balancer(), "tc").args(["filter", "show", "dev", device, "egress"]));
        return ["up0", "br0"]
            .into_iter()
            .map(|device| {
                shown(device).lines().filter(|line| line.contains(" handle ") && line.contains("tc_local")).count()
            })
            .sum();
    }
    let pins = std::fs::read_dir(format!("/sys/fs/bpf/lb/{}", lab.instance())).into_iter().flatten().flatten();
    pins.filter(|pin| pin.file_name().to_string_lossy().starts_with("tc_local-")).count()
}

pub(super) fn servers_of_the_host_are_balanced(top: &[&str], attach: &str) {
    let (lab, mut iperf) = servers();
    let file = tempfile::NamedTempFile::new().expect("a file");
    write(&file, &lab, top, &services());
    if attach == "xdp" {
        lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "tx", "off"]));
    }
    let mut agent = start(&lab, &file);
    let status = agent.status();
    let reach: Vec<&str> = status["frontends"][0]["backends"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|backend| backend["reach"].as_str())
        .collect();
    assert_eq!(reach.iter().filter(|reach| **reach == "local").count(), 2, "{status:#}");
    assert_eq!(doors(&lab, attach), 2, "at the uplink, and at the bridge");

    for address in [UPLINK.to_owned(), format!("[{UPLINK_V6}]")] {
        assert_all_answer(&lab, &lab.client(), &address);
        // Processes of the host itself, and containers of it.
        assert_all_answer(&lab, &lab.balancer(), &address);
        assert_all_answer(&lab, &lab.backend(0), &address);
    }
    assert_all_answer(&lab, &lab.balancer(), "127.0.0.1");
    assert_all_answer(&lab, &lab.backend(0), "198.18.2.1");
    let offloads: &[&str] = if attach == "xdp" { &[""] } else { &["on", "off"] };
    for offload in offloads {
        if !offload.is_empty() {
            for (namespace, device) in [(lab.client(), "cl0"), (lab.balancer(), "up0")] {
                let settings = ["tx", offload, "tso", offload, "gso", offload, "gro", offload];
                lab::run(lab.command(&namespace, "ethtool").args(["-K", device]).args(settings));
            }
        }
        assert_bulk(&lab, UPLINK);
        assert_bulk(&lab, &format!("[{UPLINK_V6}]"));
        assert_streams(&lab, UPLINK);
        assert_streams(&lab, UPLINK_V6);
    }
    for address in [UPLINK, UPLINK_V6] {
        for namespace in [lab.client(), lab.backend(0), lab.balancer()] {
            assert_datagrams(&namespace, address);
        }
        assert_refused(&lab, address);
    }
    assert_eq!(count(&agent, "events", "icmp_error"), 2, "port unreachable, of each version");
    assert_eq!((count(&agent, "events", "port_remapped"), count(&agent, "drops", "raced")), (0, 0));

    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
    for device in ["up0", "br0"] {
        let qdiscs = lab::run(lab.command(&lab.balancer(), "tc").args(["qdisc", "show", "dev", device]));
        assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    }
    lab::end(&mut iperf);
}

/// Sends a request by a connection, and returns what came.
fn ask(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("asked");
    let mut room = [0; 1024];
    let len = stream.read(&mut room).expect("answered");
    String::from_utf8_lossy(&room[..len]).trim_end().rsplit('\n').next().unwrap_or_default().to_owned()
}

pub(super) fn a_direct_connection_is_let_be() {
    let (lab, mut iperf) = servers();
    let file = tempfile::NamedTempFile::new().expect("a file");
    write(&file, &lab, &[], &services());
    let agent = start(&lab, &file);
    inside(&lab.client(), || {
        let mut held = Vec::new();
        for from in 40_000..40_012 {
            // To both servers of the host, and then by the frontend, which leads to one of them or to the container.
            for (port, expected) in [(8080, "backend 0"), (8081, "backend 1"), (80, "backend ")] {
                let mut stream = lab::connect_from(from, format!("{UPLINK}:{port}").parse().expect("an endpoint"));
                let answer = ask(&mut stream);
                assert!(answer.starts_with(expected), "from {from} to {port}: {answer}");
                held.push((stream, port, answer));
            }
        }
        for (stream, port, answer) in &mut held {
            assert_eq!(ask(stream), *answer, "to {port} again");
        }
    });
    assert!(count(&agent, "events", "rescheduled") > 0, "none has met what it was to meet");
    lab::end(&mut iperf);
}

pub(super) fn a_killed_agent_leaves_them_served() {
    for (top, attach) in [(&[][..], "tcx"), (&["tc-attach = \"clsact\""], "clsact")] {
        let (lab, mut iperf) = servers();
        let file = tempfile::NamedTempFile::new().expect("a file");
        write(&file, &lab, top, &services());
        let agent = start(&lab, &file);
        let mut held: Vec<(TcpStream, String)> = inside(&lab.client(), || {
            let held = (0..6).map(|_| TcpStream::connect((UPLINK, 80)).expect("connected"));
            held.map(|mut stream| (ask(&mut stream), stream)).map(|(answer, stream)| (stream, answer)).collect()
        });
        agent.crash();
        assert_all_answer(&lab, &lab.client(), UPLINK);

        let mut agent = start(&lab, &file);
        assert_all_answer(&lab, &lab.client(), UPLINK);
        assert!(held.iter_mut().all(|(stream, answer)| ask(stream) == *answer), "{attach}");
        assert_eq!(doors(&lab, attach), 2, "one at each device, and no former one");
        drop(held);
        agent.stop(Signal::SIGTERM);
        assert_gone(&lab.instance());
        lab::end(&mut iperf);
    }
}

pub(super) fn they_come_and_go() {
    let (lab, mut iperf) = servers();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let service = |backends: &str| {
        format!("[[service]]\ndrain-timeout = \"3s\"\nname = \"web\"\npublish = \"80\"\nbackends = [{backends}]\n")
    };
    let (own, container) = (format!("\"{UPLINK}:8080\""), format!("\"{}:80\"", lab::backend(0)));
    write(&file, &lab, &[], &[service(&container)]);
    let mut agent = Agent::start_file(Some(&lab.balancer()), &lab.instance(), file.path());
    agent.wait_ready(1);
    assert_eq!(doors(&lab, "tcx"), 0, "nobody needs one");

    write(&file, &lab, &[], &[service(&format!("{container}, {own}"))]);
    agent.signal(Signal::SIGHUP);
    agent.wait_ready(2);
    assert_eq!(doors(&lab, "tcx"), 2);
    let mut held: Vec<TcpStream> =
        inside(&lab.client(), || (0..2).map(|_| TcpStream::connect((UPLINK, 80)).expect("connected")).collect());
    let before: BTreeSet<String> = held.iter_mut().map(ask).collect();
    assert_eq!(before, ["backend 0", "backend 2"].map(str::to_owned).into());

    // A device at which clients are met from now on has its doors.
    lab::ip(&format!("-n {} link add br9 type bridge", lab.balancer()));
    lab::ip(&format!("-n {} addr add 198.18.9.1/24 dev br9", lab.balancer()));
    lab::ip(&format!("-n {} link set br9 up", lab.balancer()));
    agent.wait_for("the bridge is followed", Duration::from_secs(20), |status| {
        status["hooks"].to_string().contains("br9")
    });
    assert_eq!(doors(&lab, "tcx"), 3);
    lab::ip(&format!("-n {} link del br9", lab.balancer()));
    agent.wait_for("it is gone", Duration::from_secs(20), |status| !status["hooks"].to_string().contains("br9"));
    assert_eq!(doors(&lab, "tcx"), 2);

    // What drains keeps its connections, and the doors go with the last of it.
    write(&file, &lab, &[], &[service(&container)]);
    agent.signal(Signal::SIGHUP);
    agent.wait_for("it drains", Duration::from_secs(10), |status| status["scaling"]["draining"] == 1);
    assert_eq!(held.iter_mut().map(ask).collect::<BTreeSet<_>>(), before);
    assert_eq!(lab.get("http://198.18.1.1/"), "backend 2");
    assert_eq!(doors(&lab, "tcx"), 2);
    agent.wait_for("it has drained", Duration::from_secs(15), |status| status["scaling"]["draining"] == 0);
    wait_until("the doors are gone", Duration::from_secs(5), || doors(&lab, "tcx") == 0);
    assert_eq!(lab.get("http://198.18.1.1/"), "backend 2");

    // A server whose address comes to this host, and leaves it: another way to the same one.
    let vip = "198.18.1.77";
    write(&file, &lab, &[], &[service(&format!("\"{vip}:8080\""))]);
    lab::ip(&format!("-n {} addr add {vip}/32 dev lo", lab.balancer()));
    agent.signal(Signal::SIGHUP);
    agent.wait_for("it is found", Duration::from_secs(20), |status| {
        status["frontends"][0]["backends"].as_array().is_some_and(|backends| {
            backends.len() == 1 && backends[0]["reach"] == "local" && backends[0]["state"] == "ready"
        })
    });
    assert_eq!(lab.get("http://198.18.1.1/"), "backend 0");
    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
    lab::end(&mut iperf);
}

/// A lab with one server of the host, and an agent that serves it alone.
fn alone() -> (Lab, Agent) {
    let mut lab = Lab::new(0, Wiring::Bridge);
    lab.start_server_at(&lab.balancer(), 8080, 3);
    let arguments = ["--publish", "80", "--uplink", "up0", "--backend", "198.18.1.1:8080"];
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(1);
    (lab, agent)
}

pub(super) fn it_finds_out_how_big_it_may_be() {
    let (lab, agent) = alone();
    // The client's namespace becomes a router, with a link of 1,300 bytes behind it that its host knows nothing of.
    let (router, far) = (lab.client(), lab.namespace("f"));
    lab::ip(&format!("link add fr0 netns {router} mtu 1300 type veth peer name eth0 netns {far}"));
    lab::ip(&format!("-n {router} addr add 198.18.3.1/24 dev fr0"));
    lab::ip(&format!("-n {router} link set fr0 up"));
    lab::ip(&format!("-n {far} addr add 198.18.3.9/24 dev eth0"));
    lab::ip(&format!("-n {far} link set eth0 up"));
    lab::ip(&format!("-n {far} route add default via 198.18.3.1"));
    lab::run(lab.command(&router, "sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    lab::ip(&format!("-n {} route add 198.18.3.0/24 via 198.18.1.2", lab.balancer()));

    let big = lab.command(&far, "curl").args(["-s", "-m", "20", "http://198.18.1.1/big"]).output().unwrap().stdout;

    assert_eq!(big.len(), 20_000_000);
    assert!(count(&agent, "events", "icmp_error") > 0);
    let seen = lab::run(lab.command(&lab.balancer(), "ip").args(["route", "get", "198.18.3.9"]));
    assert!(seen.contains("mtu 1300"), "the host has learned it: {seen}");
}

pub(super) fn they_answer_by_a_tunnel() {
    let mut lab = Lab::new(0, Wiring::Bridge);
    let (balancer, far) = (lab.balancer(), lab.namespace("f"));
    let _tunnel = lab::Tunnel::new((&balancer, "tun0", "198.18.4.1/24"), (&far, "tun0", "198.18.4.2/24"));
    lab.start_server_at(&balancer, 8080, 3);
    let arguments = ["--publish", "80", "--uplink", "tun0", "--backend", "198.18.1.1:8080"];
    let mut agent = Agent::start(Some(&balancer), &lab.instance(), &arguments);
    agent.wait_ready(1);
    assert_eq!(get(&lab, &far, "http://198.18.4.1/"), "backend 3");
    let big = lab.command(&far, "curl").args(["-s", "-m", "20", "http://198.18.4.1/big"]).output().unwrap().stdout;
    assert_eq!(big.len(), 20_000_000);
    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
}

pub(super) fn what_it_cannot_be_is_told() {
    let lab = Lab::new(0, Wiring::Bridge);
    let run = |arguments: &[&str]| {
        let output = lab
            .command(&lab.balancer(), &binary())
            .args(["run", "--instance", &lab.instance(), "--uplink", "up0"])
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (publish, reason) in [
        ("80", "backend 198.18.1.1:80: it is frontend 80/tcp itself, so that there is nothing to balance"),
        ("198.18.1.1:80", "backend 198.18.1.1:80 is a frontend itself"),
    ] {
        let (code, error) = run(&["--publish", publish, "--backend", "198.18.1.1:80"]);
        assert!(code != Some(0) && error.contains(reason), "{error}");
    }
    let (code, error) = run(&["--publish", "80", "--backend", "127.0.0.1:8080"]);
    assert!(code == Some(64) && error.contains("of this host or of a network"), "{error}");
    assert_gone(&lab.instance());
}

pub(super) fn they_are_reached_by_vlans() {
    let mut lab = vlan::trunk(1);
    lab.start_server_at(&lab.balancer(), 8080, 3);
    let arguments = ["--publish", "80", "--uplink", "up0", "--backend", "198.18.1.1:8080"];
    let mut agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(1);
    for offload in ["on", "off"] {
        vlan::offload_tags(&lab, offload);
        for network in ["198.18.1", "198.18.5", "198.18.7"] {
            let url = format!("http://{network}.1/");
            assert_eq!(lab.get(&url), "backend 3", "{network}");
            let big = lab.from_client("curl", &["-s", "-m", "20", &format!("{url}big")]).stdout;
            assert_eq!(big.len(), 20_000_000, "{network}");
        }
    }
    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
}
