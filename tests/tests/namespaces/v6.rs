//! The same with real clients over IPv6.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use lb_tests::{
    agent::{Agent, assert_gone},
    lab::{self, BRIDGE_V6, CLIENT_V6, Lab, UPLINK_V6, Wiring, inside},
};
use nix::sys::signal::Signal;

use super::count;

/// A lab whose client, balancer and backends have addresses of IPv6.
fn lab(backends: usize) -> Lab {
    let lab = Lab::new(backends, Wiring::Bridge);
    lab.add_ipv6();
    lab
}

/// Serves backends of IPv6 alone at a port.
fn serve(lab: &Lab, publish: &str, backends: usize, port: u16, more: &[&str]) -> Agent {
    let backends: Vec<String> = (0..backends).map(|number| format!("[{}]:{port}", lab::backend_v6(number))).collect();
    let mut arguments = vec!["--publish", publish, "--uplink", "up0"];
    backends.iter().for_each(|backend| arguments.extend(["--backend", backend]));
    arguments.extend(more);
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(backends.len() as u64);
    agent
}

fn web(more: &[&str], backends: usize) -> (Lab, Agent) {
    let mut lab = lab(backends);
    lab.start_servers();
    let agent = serve(&lab, "80", backends, 80, more);
    (lab, agent)
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<Ipv6Addr>().expect(address).into(), port)
}

fn page() -> String {
    format!("http://[{UPLINK_V6}]/")
}

/// Fetches the big file as the client, which is as it should be.
fn fetch_big(lab: &Lab, namespace: &str) {
    let url = page() + "big";
    let big = lab.command(namespace, "curl").args(["-s", "-m", "20", &url]).output().unwrap().stdout;
    let wrong =
        (0..20_000_000_u32).zip(&big).find(|(byte, got)| (byte.wrapping_mul(2_654_435_761) >> 24) as u8 != **got);
    assert_eq!((big.len(), wrong), (20_000_000, None));
}

fn set_offload(lab: &Lab, number: usize, offload: &str) {
    lab::run(lab.command(&lab.backend(number), "ethtool").args(["-K", "eth0", "tso", offload, "gso", offload]));
}

/// Answers each datagram with itself, as long as the test runs.
fn echo_datagrams(lab: &Lab, number: usize) {
    let socket = inside(&lab.backend(number), || UdpSocket::bind("[::]:53").expect("the port is free"));
    std::thread::spawn(move || {
        let mut room = vec![0; 65_535];
        while let Ok((len, from)) = socket.recv_from(&mut room) {
            let _client_left = socket.send_to(&room[..len], from);
        }
    });
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("[::]:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket
}

pub fn clients_of_ipv6_are_served() {
    let (lab, mut agent) = web(&[], 2);
    let mut answers: Vec<String> = (0..4).map(|_| lab.get(&page())).collect();
    answers.sort();
    assert_eq!(answers, ["backend 0", "backend 0", "backend 1", "backend 1"]);
    for offload in ["on", "off"] {
        for (namespace, device) in [(lab.client(), "cl0"), (lab.backend(0), "eth0"), (lab.backend(1), "eth0")] {
            lab::run(lab.command(&namespace, "ethtool").args(["-K", device, "tx", offload, "rx", offload]));
        }
        fetch_big(&lab, &lab.client());
        fetch_big(&lab, &lab.client());
    }

    let status = agent.status();
    let frontend = &status["frontends"][0];
    assert_eq!(frontend["name"], "[::]:80/tcp");
    let addresses: Vec<&str> = frontend["addresses"].as_array().unwrap().iter().filter_map(|at| at.as_str()).collect();
    assert_eq!(addresses, ["[::1]:80", "[2001:db8:1::1]:80", "[2001:db8:2::1]:80"]);
    assert_eq!(frontend["backends"][0]["address"], "[2001:db8:2::b]:80");
    assert_eq!(frontend["backends"][0]["reach"], "veth");
    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
}

pub fn xdp_serves_ipv6() {
    let mut lab = lab(2);
    lab.start_servers();
    lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "tx", "off"]));
    let mut agent = serve(&lab, "80", 2, 80, &["--hook", "xdp", "--complete-checksums"]);
    let mut answers: Vec<String> = (0..4).map(|_| lab.get(&page())).collect();
    answers.sort();
    assert_eq!(answers, ["backend 0", "backend 0", "backend 1", "backend 1"]);
    fetch_big(&lab, &lab.client());
    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());

    (0..2).for_each(|number| echo_datagrams(&lab, number));
    let agent = serve(&lab, &format!("[{UPLINK_V6}]:53/udp"), 2, 53, &["--hook", "xdp", "--complete-checksums"]);
    ask_datagrams(&lab, &[0, 1, 1000, 1452, 1453, 4000]);
    assert_eq!(count(&agent, "passes", "fragment"), 0);
}

pub fn each_family_is_led_to_its_own_backends() {
    let mut lab = lab(2);
    lab.start_servers();
    let v6 = format!("[{}]:80", lab::backend_v6(1));
    let arguments = ["--publish", "80", "--uplink", "up0", "--backend", "198.18.2.11:80", "--backend", &v6];
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(2);
    let ask = || {
        for _ in 0..2 {
            assert_eq!((lab.get("http://198.18.1.1/"), lab.get(&page())), ("backend 0".into(), "backend 1".into()));
        }
    };
    ask();
    let names =
        agent.status()["frontends"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names, ["80/tcp", "[::]:80/tcp"]);

    // Whoever takes over knows them all.
    agent.crash();
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(2);
    ask();
    for frontend in agent.status()["frontends"].as_array().unwrap() {
        assert_eq!(frontend["connections_total"], 4, "the counters go on: {frontend:#}");
    }
}

pub fn clients_of_ipv6_on_the_host_see_the_frontend() {
    let (lab, agent) = web(&[], 2);
    for address in ["::1", UPLINK_V6, BRIDGE_V6] {
        let mut answers: Vec<String> = (0..4)
            .map(|_| {
                inside(&lab.balancer(), || {
                    let mut stream = TcpStream::connect(at(address, 80)).expect("connected");
                    assert_eq!(stream.peer_addr().unwrap(), at(address, 80));
                    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                    let mut text = String::new();
                    stream.read_to_string(&mut text).unwrap();
                    text.rsplit('\n').nth(1).unwrap_or_default().to_owned()
                })
            })
            .collect();
        answers.sort();
        assert_eq!(answers, ["backend 0", "backend 0", "backend 1", "backend 1"], "{address}");
    }
    // A socket that is bound to an address of the host reaches a backend, and one that is bound to the loopback none.
    inside(&lab.balancer(), || {
        for (own, is_led) in [(UPLINK_V6, true), ("::1", false)] {
            let before = count(&agent, "passes", "loopback_bound");
            let outcome = connect_from(own, at("::1", 80));
            assert_eq!(outcome.is_ok(), is_led, "{own}: {outcome:?}");
            assert_eq!(count(&agent, "passes", "loopback_bound") - before, u64::from(!is_led));
        }
    });
    let frontend = &agent.status()["frontends"][0];
    assert_eq!(
        (frontend["local_connections_total"].as_u64(), frontend["ingress"]["packets"].as_u64()),
        (Some(13), Some(0))
    );

    let lab = self::lab(2);
    (0..2).for_each(|number| echo_datagrams(&lab, number));
    let _agent = serve(&lab, "53/udp", 2, 53, &[]);
    inside(&lab.balancer(), || {
        let (unconnected, connected) = (socket(), socket());
        connected.connect(at("::1", 53)).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), at("::1", 53));
        let mut room = [0; 16];
        for question in [b"one", b"two"] {
            for to in [at("::1", 53), at(UPLINK_V6, 53)] {
                unconnected.send_to(question, to).unwrap();
                let (len, from) = unconnected.recv_from(&mut room).expect("an answer");
                assert_eq!((&room[..len], from), (&question[..], to), "the process sees the frontend");
            }
            connected.send(question).unwrap();
            assert_eq!(connected.recv_from(&mut room).expect("an answer").1, at("::1", 53));
        }
    });
}

/// Connects from an address of this host.
fn connect_from(own: &str, to: SocketAddr) -> nix::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    use std::os::fd::AsRawFd as _;
    let socket = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::empty(), None)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at(own, 0)))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))
}

pub fn smaller_links_are_discovered_over_ipv6() {
    let (lab, agent) = web(&[], 1);
    // The client's namespace becomes a router, with a link of 1,300 bytes behind it that its host knows nothing of.
    let (router, far) = (lab.client(), lab.namespace("f"));
    lab::ip(&format!("link add fr0 netns {router} mtu 1300 type veth peer name eth0 netns {far}"));
    lab::ip(&format!("-n {router} addr add 2001:db8:3::1/64 dev fr0 nodad"));
    lab::ip(&format!("-n {router} link set fr0 up"));
    lab::ip(&format!("-n {far} addr add 2001:db8:3::9/64 dev eth0 nodad"));
    lab::ip(&format!("-n {far} link set eth0 up"));
    lab::ip(&format!("-n {far} route add default via 2001:db8:3::1"));
    lab::run(lab.command(&router, "sysctl").args(["-qw", "net.ipv6.conf.all.forwarding=1"]));
    lab::ip(&format!("-n {} route add 2001:db8:3::/64 via {CLIENT_V6}", lab.balancer()));
    for offload in ["on", "off"] {
        set_offload(&lab, 0, offload);
        lab::ip(&format!("-n {} -6 route flush cache", lab.backend(0)));
        let before = count(&agent, "events", "icmp_error");
        fetch_big(&lab, &far);
        assert!(count(&agent, "events", "icmp_error") > before, "what is too big is said to the server");
    }

    // As in clouds whose networks carry less than Docker's take; below this, there is no IPv6.
    lab::ip(&format!("-n {} link set up0 mtu 1280", lab.balancer()));
    for offload in ["on", "off"] {
        set_offload(&lab, 0, offload);
        lab::ip(&format!("-n {} -6 route flush cache", lab.backend(0)));
        let before = count(&agent, "drops", "too_big");
        fetch_big(&lab, &lab.client());
        assert!(count(&agent, "drops", "too_big") > before, "it was answered");
    }
    let seen = lab::run(lab.command(&lab.backend(0), "ip").args(["-6", "route", "get", CLIENT_V6]));
    assert!(seen.contains("mtu 1280"), "the server's kernel has learned it: {seen}");
}

/// Asks a server that echoes for datagrams of these sizes, as the client.
fn ask_datagrams(lab: &Lab, sizes: &[u32]) {
    inside(&lab.client(), || {
        for _ in 0..4 {
            let socket = socket();
            let mut room = vec![0; 65_535];
            for &size in sizes {
                let asked: Vec<u8> = (0..size).map(|byte: u32| (byte * 13) as u8).collect();
                socket.send_to(&asked, at(UPLINK_V6, 53)).unwrap();
                let (len, from) = socket.recv_from(&mut room).unwrap_or_else(|error| panic!("{size}: {error}"));
                assert_eq!((from, &room[..len]), (at(UPLINK_V6, 53), &asked[..]));
            }
        }
    });
}

pub fn datagrams_over_ipv6_arrive_whole() {
    let lab = lab(2);
    (0..2).for_each(|number| echo_datagrams(&lab, number));
    let agent = serve(&lab, "53/udp", 2, 53, &[]);

    ask_datagrams(&lab, &[0, 1, 700, 1452, 1453, 4000, 30_000, 60_000]);

    assert_eq!(count(&agent, "passes", "fragment"), 0);
    assert_eq!(agent.status()["frontends"][0]["connections_total"], 4, "one socket, one backend");
}

pub fn errors_of_ipv6_reach_clients() {
    let lab = lab(1);
    let agent = serve(&lab, "53/udp", 1, 53, &["--health", "none"]);
    inside(&lab.client(), || {
        // No server: the backend's kernel says so by ICMPv6, as from the frontend.
        let refused = socket();
        refused.connect(at(UPLINK_V6, 53)).unwrap();
        refused.send(b"?").unwrap();
        let error = refused.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
        // What may pass one router only ends at the balancer, and is told so, as traceroute wants it.
        let short = socket();
        nix::sys::socket::setsockopt(&short, nix::sys::socket::sockopt::Ipv6Ttl, &1).unwrap();
        nix::sys::socket::setsockopt(&short, nix::sys::socket::sockopt::Ipv6RecvErr, &true).unwrap();
        short.connect(at(UPLINK_V6, 53)).unwrap();
        short.send(b"?").unwrap();
        let error = short.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
    });
    assert_eq!((count(&agent, "events", "icmp_error"), count(&agent, "drops", "ttl_expired")), (1, 1));
}
