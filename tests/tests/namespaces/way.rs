//! Ways to backends that are narrower than the client's, and those that the kernel routes.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use lb_tests::{
    agent::{Agent, assert_gone},
    lab::{self, Lab, UPLINK, Wiring, inside},
};
use nix::sys::signal::Signal;

use super::count;

/// How many bytes are sent to a backend.
const BULK: usize = 3_000_000;
/// Where one that swallows them listens.
const PORT: u16 = 5000;

/// The hooks at which a client's packets are met; on a veth, XDP is told that checksums are whole.
const HOOKS: [&[&str]; 2] = [&["--hook", "tc"], &["--hook", "xdp", "--complete-checksums"]];

/// Reads all that a client sends, and answers how much it was, as long as the test runs.
fn swallow(namespace: &str) {
    let listener = inside(namespace, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("the port is free"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.expect("accepted");
                let mut all = Vec::new();
                // Who only looks whether somebody is there leaves by a reset.
                let _a_probe = stream.read_to_end(&mut all).and_then(|len| write!(stream, "{len}"));
            });
        }
    });
}

/// Sends bulk data as the client, and returns how much of it arrived.
fn upload(lab: &Lab) -> String {
    lab::ip(&format!("-n {} route flush cache", lab.client()));
    inside(&lab.client(), || {
        let mut stream = TcpStream::connect((UPLINK, PORT)).expect("connected");
        stream.set_read_timeout(Some(lab::patience(Duration::from_secs(10)))).unwrap();
        stream.set_write_timeout(Some(lab::patience(Duration::from_secs(10)))).unwrap();
        stream.write_all(&vec![7; BULK]).expect("sent");
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    })
}

/// Serves one backend and checks that a client learns how narrow the way to it is, by both hooks.
fn assert_discovered(lab: &Lab, backend: &str, reach: &str) {
    let publish = PORT.to_string();
    for hook in HOOKS {
        let arguments = ["--publish", &publish, "--uplink", "up0", "--backend", backend];
        let mut agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &[&arguments[..], hook].concat());
        agent.wait_ready(1);
        assert_eq!(agent.status()["frontends"][0]["backends"][0]["reach"], reach);
        for offload in ["on", "off"] {
            lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "tso", offload, "gso", offload]));
            let before = count(&agent, "drops", "too_big");

            assert_eq!(upload(lab), BULK.to_string(), "{hook:?}, segments {offload}");

            assert!(count(&agent, "drops", "too_big") > before, "{hook:?}, segments {offload}: it was answered");
            let learnt = lab::run(lab.command(&lab.client(), "ip").args(["route", "get", UPLINK]));
            assert!(learnt.contains("mtu 1300"), "{hook:?}, segments {offload}: {learnt}");
        }
        agent.stop(Signal::SIGTERM);
        assert_gone(&lab.instance());
    }
}

pub(super) fn a_narrow_way_to_a_backend_is_discovered() {
    let lab = Lab::new(1, Wiring::Bridge);
    lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "tx", "off"]));
    // The backend's namespace becomes a router, and the server stands behind it.
    let (router, beyond) = (lab.backend(0), lab.namespace("r"));
    lab::ip(&format!("link add eth1 netns {router} type veth peer name eth0 netns {beyond}"));
    lab::ip(&format!("-n {router} addr add 198.18.3.1/24 dev eth1"));
    lab::ip(&format!("-n {router} link set eth1 up"));
    lab::ip(&format!("-n {beyond} addr add 198.18.3.9/24 dev eth0"));
    lab::ip(&format!("-n {beyond} link set eth0 up"));
    lab::ip(&format!("-n {beyond} route add default via 198.18.3.1"));
    lab::run(lab.command(&router, "sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    lab::ip(&format!("-n {} route add 198.18.3.0/24 via 198.18.2.11", lab.balancer()));
    lab::ip(&format!("-n {} link set br0 mtu 1300", lab.balancer()));
    swallow(&beyond);

    assert_discovered(&lab, &format!("198.18.3.9:{PORT}"), "neighbour");
}

pub(super) fn a_narrow_routed_way_is_discovered() {
    let lab = Lab::new(0, Wiring::Bridge);
    lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "tx", "off"]));
    let (balancer, far) = (lab.balancer(), lab.namespace("f"));
    let _tunnel = lab::Tunnel::new((&balancer, "tun0", "198.18.4.1/24"), (&far, "tun0", "198.18.4.2/24"));
    lab::ip(&format!("-n {far} route add default dev tun0"));
    lab::ip(&format!("-n {balancer} link set tun0 mtu 1300"));
    lab.allow_forwarding();
    swallow(&far);

    assert_discovered(&lab, &format!("198.18.4.2:{PORT}"), "routed");
}

pub(super) fn a_routed_backend_is_one_hop_away() {
    let lab = Lab::new(0, Wiring::Bridge);
    lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "tx", "off"]));
    let (balancer, far) = (lab.balancer(), lab.namespace("f"));
    let _tunnel = lab::Tunnel::new((&balancer, "tun0", "198.18.4.1/24"), (&far, "tun0", "198.18.4.2/24"));
    lab::ip(&format!("-n {far} route add default dev tun0"));
    lab.allow_forwarding();
    let server = inside(&far, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).expect("the port is free"));
    std::thread::spawn(move || {
        let mut room = [0; 64];
        while let Ok((len, from)) = server.recv_from(&mut room) {
            let _client_left = server.send_to(&room[..len], from);
        }
    });
    for hook in HOOKS {
        let arguments =
            ["--publish", "53/udp", "--uplink", "up0", "--backend", "198.18.4.2:53", "--drain-timeout", "1s"];
        let mut agent = Agent::start(Some(&balancer), &lab.instance(), &[&arguments[..], hook].concat());
        agent.wait_ready(1);
        inside(&lab.client(), || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            socket.set_ttl(2).unwrap();
            socket.send_to(b"?", (UPLINK, 53)).unwrap();
            let (_, from) = socket.recv_from(&mut [0; 16]).expect("one router is between the two");
            assert_eq!(from, SocketAddr::from(([198, 18, 1, 1], 53)));

            socket.connect((UPLINK, 53)).unwrap();
            socket.set_ttl(1).unwrap();
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4RecvErr, &true).unwrap();
            socket.send(b"?").unwrap();
            let error = socket.recv(&mut [0; 16]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
        });
        assert_eq!(count(&agent, "drops", "ttl_expired"), 1, "{hook:?}");
        agent.stop(Signal::SIGTERM);
        assert_gone(&lab.instance());
    }
}
