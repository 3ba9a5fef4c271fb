//! Backends whose replies would go past the balancer: other machines of the clients' network, and containers on macvlan.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use lb_tests::{
    agent::{Agent, assert_gone, binary},
    lab::{self, Lab, UPLINK, Wiring, inside},
};
use nix::sys::signal::Signal;

use super::count;

/// Where servers of datagrams listen.
const ECHO: u16 = 53;

/// Answers each datagram with the address of its sender, as long as the test runs.
fn tell_senders(namespace: &str) {
    let socket = inside(namespace, || UdpSocket::bind(("0.0.0.0", ECHO)).expect("the port is free"));
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 2048]) {
            let _client_left = socket.send_to(from.ip().to_string().as_bytes(), from);
        }
    });
}

/// Asks as the client by whom the backend was asked.
fn ask_sender(lab: &Lab) -> String {
    inside(&lab.client(), || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let mut room = [0; 64];
        // In fragments there, and whole back.
        socket.send_to(&[7; 2000], (UPLINK, ECHO)).unwrap();
        let (len, from) = socket.recv_from(&mut room).expect("an answer");
        assert_eq!(from, SocketAddr::from(([198, 18, 1, 1], ECHO)));
        String::from_utf8_lossy(&room[..len]).into_owned()
    })
}

/// Asks every backend, and moves bulk data.
fn assert_served(lab: &Lab) {
    let mut answers: Vec<String> = (0..4).map(|_| lab.get("http://198.18.1.1/")).collect();
    answers.sort();
    assert_eq!(answers, ["backend 0", "backend 0", "backend 1", "backend 1"]);
    let big = lab.from_client("curl", &["-s", "-m", "20", "http://198.18.1.1/big"]).stdout;
    assert_eq!(big.len(), 20_000_000);
}

/// A frontend of TCP before two servers, and one of datagrams before the first of them.
fn config(lab: &Lab, servers: [&str; 2], hook: &str, snat: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let xdp = if hook == "tc" { "" } else { "complete-checksums = true" };
    let text = format!(
        "instance = \"{}\"\nuplinks = [\"up0\"]\nhook = \"{hook}\"\n{xdp}\n\
         [[service]]\ndrain-timeout = \"1s\"\nname = \"web\"\npublish = \"80\"\nbackends = [\"{}:80\", \"{}:80\"]\n{snat}\n\
         [[service]]\ndrain-timeout = \"1s\"\nname = \"dns\"\npublish = \"{ECHO}/udp\"\nhealth = \"none\"\nbackends = [\"{}:{ECHO}\"]\n{snat}\n",
        lab.instance(),
        servers[0],
        servers[1],
        servers[0]
    );
    std::fs::write(file.path(), text).expect("written");
    file
}

fn start(lab: &Lab, servers: [&str; 2], hook: &str, snat: &str) -> Agent {
    let file = config(lab, servers, hook, snat);
    let agent = Agent::start_file(Some(&lab.balancer()), &lab.instance(), file.path());
    agent.wait_ready(3);
    agent
}

/// The client's namespace becomes a switch, with client, balancer and two servers at it. The balancer's uplink is a veth
/// there, so that packets for servers are put behind it; by any other device they would leave by its own queue, as in the
/// case with macvlan.
fn lan() -> (Lab, [String; 2]) {
    let mut lab = Lab::new(0, Wiring::Bridge);
    let client = lab.client();
    lab::ip(&format!("-n {client} link add lan0 type bridge"));
    lab::ip(&format!("-n {client} addr del 198.18.1.2/24 dev cl0"));
    lab::ip(&format!("-n {client} link set cl0 master lan0"));
    lab::ip(&format!("-n {client} addr add 198.18.1.2/24 dev lan0"));
    lab::ip(&format!("-n {client} link set lan0 up"));
    lab::run(lab.command(&client, "ethtool").args(["-K", "lan0", "tx", "off"]));
    let servers = [0, 1].map(|number| lab.namespace(&format!("s{number}")));
    for (number, server) in servers.iter().enumerate() {
        lab::ip(&format!("link add eth0 netns {server} type veth peer name sw{number} netns {client}"));
        lab::ip(&format!("-n {client} link set sw{number} master lan0 up"));
        lab::ip(&format!("-n {server} addr add 198.18.1.{}/24 dev eth0", 21 + number));
        lab::ip(&format!("-n {server} link set eth0 up"));
        lab::run(lab.command(server, "ethtool").args(["-K", "eth0", "tx", "off"]));
        lab.start_server_in(server, number);
    }
    tell_senders(&servers[0]);
    (lab, servers)
}

pub(super) fn other_machines_of_the_network_reply_by_snat() {
    let (lab, _) = lan();
    let servers = ["198.18.1.21", "198.18.1.22"];
    let mut agent = start(&lab, servers, "tc", "");
    let past = lab.from_client("curl", &["-s", "-m", "2", "http://198.18.1.1/"]);
    assert!(!past.status.success(), "a reply from a stranger is none");
    agent.stop(Signal::SIGTERM);

    for hook in ["tc", "xdp"] {
        let mut agent = start(&lab, servers, hook, "snat = \"198.18.1.1\"");
        assert_served(&lab);
        assert_eq!(ask_sender(&lab), "198.18.1.1", "{hook}");
        assert_eq!((count(&agent, "drops", "no_source_port"), count(&agent, "drops", "no_stand_in")), (0, 0));
        // Who takes over goes on with what there is.
        if hook == "xdp" {
            agent.crash();
            agent = start(&lab, servers, hook, "snat = \"198.18.1.1\"");
            assert_served(&lab);
        }
        agent.stop(Signal::SIGTERM);
        assert_gone(&lab.instance());
    }
}

pub(super) fn containers_on_macvlan_are_reached_by_a_macvlan_of_the_host() {
    let mut lab = Lab::new(0, Wiring::Bridge);
    let balancer = lab.balancer();
    // As Docker makes them: children of the uplink, on the clients' network.
    for number in 0..2 {
        let container = lab.namespace(&format!("m{number}"));
        lab::ip(&format!("-n {balancer} link add mv{number} link up0 type macvlan mode bridge"));
        lab::ip(&format!("-n {balancer} link set mv{number} netns {container} name eth0"));
        lab::ip(&format!("-n {container} addr add 198.18.1.{}/24 dev eth0", 21 + number));
        lab::ip(&format!("-n {container} link set eth0 up"));
        lab.start_server_in(&container, number);
        if number == 0 {
            tell_senders(&container);
        }
    }
    let servers = ["198.18.1.21", "198.18.1.22"];
    // By the uplink itself, the kernel leads nothing to its own macvlans.
    let file = config(&lab, servers, "tc", "snat = \"198.18.1.1\"");
    let mut agent = Agent::start_file(Some(&balancer), &lab.instance(), file.path());
    agent.wait_for("the reason is told", Duration::from_secs(15), |status| {
        let error = status["frontends"][0]["backends"][0]["last_error"].as_str().unwrap_or_default();
        error.contains("no answer to ARP on up0") && error.contains("macvlan")
    });
    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());

    lab::ip(&format!("-n {balancer} link add shim0 link up0 type macvlan mode bridge"));
    lab::ip(&format!("-n {balancer} addr add 198.18.1.9/32 dev shim0"));
    lab::ip(&format!("-n {balancer} link set shim0 up"));
    for server in servers {
        lab::ip(&format!("-n {balancer} route add {server}/32 dev shim0 src 198.18.1.9"));
    }
    let mut agent = start(&lab, servers, "tc", "snat = \"198.18.1.9\"");
    assert_eq!(agent.status()["frontends"][0]["backends"][0]["reach"], "neighbour");
    assert_served(&lab);
    assert_eq!(ask_sender(&lab), "198.18.1.9");
    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
}

pub(super) fn what_cannot_be_balanced_is_told_with_what_to_do() {
    let lab = Lab::new(1, Wiring::Bridge);
    let run = |arguments: &[&str]| {
        let output = lab
            .command(&lab.balancer(), &binary())
            .args(["run", "--instance", &lab.instance(), "--publish", "80", "--uplink", "up0"])
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let backend = ["--backend", "198.18.2.11:80"];
    let (code, error) = run(&[&backend[..], &["--snat", "198.18.1.77"]].concat());
    assert!(code == Some(1) && error.contains("ip address add 198.18.1.77/32"), "{error}");
    let (code, error) = run(&[&backend[..], &["--snat", "2001:db8::1"]].concat());
    assert!(code == Some(64) && error.contains("no backend is"), "{error}");
    assert_gone(&lab.instance());
}
