//! A flood of SYNs from everywhere, with clients in the middle of it.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    agent::{Agent, assert_no_failure},
    frames::{self, Dice, SYN, v6},
    lab::{self, Lab, UPLINK, UPLINK_V6, Wire, Wiring, inside},
};
use serde_json::Value;

/// For how long it rains.
const FLOOD: Duration = Duration::from_secs(8);
/// Frames that are made beforehand, each from an address and a port of its own.
const FRAMES: usize = 30_000;
/// What a listener's queue holds: little, so that it is full at once.
const BACKLOG: u64 = 128;
/// When a client gives up: after its SYN and two repetitions (RFC 6298: 1 s, 2 s), and a second for the answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// Which version is flooded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Makes SYNs from everywhere in the networks of tests, whose checksums are right.
fn syns(version: Version, to: &[u8; 6]) -> Vec<Vec<u8>> {
    let mut dice = Dice::new(7);
    let mut frames: Vec<Vec<u8>> = (0..FRAMES)
        .map(|_| {
            let (port, sequence) = (1024 + dice.below(60_000) as u16, dice.below(1 << 30) as u32);
            let [first, second, third] = [dice.below(256) as u8, dice.below(254) as u8 + 1, dice.below(256) as u8];
            match version {
                // 198.19.0.0/16, half of the network of tests, in which nobody is here.
                Version::V4 => {
                    let from = ([198, 19, first, second], port);
                    let syn = frames::tcp(from, ([198, 18, 1, 1], 80), SYN, sequence, 0, &[]);
                    frames::with_tcp_options(syn, &[2, 4, 5, 0xb4])
                }
                Version::V6 => {
                    let mut from = v6::address(0, second);
                    (from[4], from[5], from[7]) = (1, first, third);
                    v6::tcp((from, port), (v6::address(1, 1), 80), SYN, sequence, 0, &[])
                }
            }
        })
        .collect();
    frames.iter_mut().for_each(|frame| frame[..6].copy_from_slice(to));
    frames
}

/// Returns the link-layer address of a device.
fn mac_of(namespace: &str, device: &str) -> [u8; 6] {
    let output = lab::run(lab::command_in(namespace, "ip").args(["-o", "link", "show", "dev", device]));
    let address = output.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("an address");
    let bytes: Vec<u8> = address.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().expect("six bytes")
}

fn event(status: &Value, name: &str) -> u64 {
    status["verdicts"]["events"][name].as_u64().unwrap_or(0)
}

fn drop_of(status: &Value, name: &str) -> u64 {
    status["verdicts"]["drops"][name].as_u64().unwrap_or(0)
}

/// Asks for a page by a connection of its own; returns whether it was answered.
fn ask(to: SocketAddr) -> bool {
    let answered = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.contains("backend "))
    };
    answered().unwrap_or(false)
}

/// Two backends whose listeners hold little, and an agent.
fn served(version: Version, more: &[&str]) -> (Lab, Agent) {
    let mut lab = Lab::new(2, Wiring::Bridge);
    lab.add_ipv6();
    for number in 0..2 {
        // What Linux has by default, whatever the machine says to its first namespace.
        for setting in [format!("net.core.somaxconn={BACKLOG}"), "net.ipv4.tcp_syncookies=1".to_owned()] {
            lab::run(lab.command(&lab.backend(number), "sysctl").args(["-qw", &setting]));
        }
    }
    lab.start_servers();
    let backends = (0..2).map(|number| match version {
        Version::V4 => format!("{}:80", lab::backend(number)),
        Version::V6 => format!("[{}]:80", lab::backend_v6(number)),
    });
    let backends: Vec<String> = backends.collect();
    let mut arguments = vec!["--publish", "80", "--uplink", "up0"];
    backends.iter().for_each(|backend| arguments.extend(["--backend", backend]));
    arguments.extend(more);
    let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
    agent.wait_ready(2);
    (lab, agent)
}

/// Clients are served in the middle of a flood, and those that were connected before notice nothing.
pub fn clients_are_served_in_a_flood(version: Version, more: &[&str]) {
    let (lab, agent) = served(version, more);
    if more.contains(&"--hook") {
        lab::run(lab.command(&lab.client(), "ethtool").args(["-K", "cl0", "tx", "off"]));
    }
    let to: IpAddr = if version == Version::V4 { UPLINK } else { UPLINK_V6 }.parse().unwrap();
    let to = SocketAddr::new(to, 80);
    let frames = syns(version, &mac_of(&lab.balancer(), "up0"));
    let wire = Wire::open(&lab.client(), "cl0");
    let url = format!("http://{to}/");
    let seconds = (FLOOD.as_secs() + 2).to_string();
    // With a pause before each request, lest the client takes the processors from all others.
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "function delay() return 10 end\n").unwrap();
    let established = lab
        .command(&lab.client(), "wrk")
        .args(["-t1", "-c8", &format!("-d{seconds}"), "--timeout", "5s", "-s"])
        .arg(script.path())
        .arg(&url)
        .stdout(Stdio::piped())
        .spawn()
        .expect("wrk starts");
    thread::sleep(Duration::from_millis(500));
    let before = agent.status();

    let is_over = AtomicBool::new(false);
    let (sent, asked, answered) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            for frame in frames.iter().cycle() {
                wire.send(frame);
                if sent.fetch_add(1, Ordering::Relaxed) % 256 == 0 && start.elapsed() > FLOOD {
                    break;
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        // The queues are full by then.
        thread::sleep(Duration::from_millis(500));
        for _ in 0..4 {
            scope.spawn(|| {
                inside(&lab.client(), || {
                    while !is_over.load(Ordering::Relaxed) {
                        asked.fetch_add(1, Ordering::Relaxed);
                        answered.fetch_add(u64::from(ask(to)), Ordering::Relaxed);
                    }
                });
            });
        }
    });

    let report = String::from_utf8(established.wait_with_output().unwrap().stdout).unwrap();
    let requests = assert_no_failure(&report);
    let (sent, asked, answered) = (sent.into_inner(), asked.into_inner(), answered.into_inner());
    // Counters are read of the kernel, but for what the agent adds to them.
    let after = agent.status();
    let rose = |name: &str| event(&after, name) - event(&before, name);
    let (issued, accepted) = (rose("cookie_issued"), rose("cookie_accepted"));
    println!(
        "{version:?} {more:?}: {sent} SYNs sent, {issued} answered by cookies, {accepted} of them taken; {answered} of \
         {asked} new clients served, {requests} requests of established ones; {} half-open",
        after["flows"]["half_open"]
    );
    assert!(asked >= 50, "too few to tell: {asked}");
    assert!(answered * 100 >= asked * 99, "{answered} of {asked} new clients were served");
    assert!(issued * 10 >= sent * 9, "{issued} of {sent} SYNs were answered here: {after}");
    assert!(accepted * 2 >= answered, "{accepted} of {answered} began by a cookie");
    let half_open = after["flows"]["half_open"].as_u64().unwrap();
    assert!(half_open < 10 * BACKLOG + 2 * asked, "the flood fills the table: {half_open}");

    // The queues are still full, of the first SYNs. Garbage is not answered, and neither is one address for ever.
    let mut wrong = frames[FRAMES - 2000..].to_vec();
    wrong.iter_mut().for_each(|frame| *frame.last_mut().unwrap() ^= 0x55);
    wrong.iter().for_each(|frame| wire.send(frame));
    let garbage = agent.status();
    let refused = drop_of(&garbage, "wrong_checksum") - drop_of(&after, "wrong_checksum");
    assert!(refused >= 1900, "{refused} of 2000 with a wrong checksum were refused: {garbage}");
    assert_eq!(event(&garbage, "cookie_issued"), event(&after, "cookie_issued"), "none was answered");
    for port in 2000..2500 {
        let mut frame = match version {
            Version::V4 => frames::tcp(([198, 19, 9, 0], port), ([198, 18, 1, 1], 80), SYN, 1, 0, &[]),
            Version::V6 => v6::tcp((v6::address(99, 9), port), (v6::address(1, 1), 80), SYN, 1, 0, &[]),
        };
        frame[..6].copy_from_slice(&frames[0][..6]);
        wire.send(&frame);
    }
    let one = agent.status();
    let answers = event(&one, "cookie_issued") - event(&garbage, "cookie_issued");
    assert!((20..=80).contains(&answers), "{answers} of 500 from one address were answered");
}

/// Where cookies are off, the backends' own kernels answer, and the table of half-open connections takes the flood.
pub fn a_flood_is_the_backends_own_where_cookies_are_off() {
    let (lab, agent) = served(Version::V4, &["--syn-cookies", "off"]);
    let frames = syns(Version::V4, &mac_of(&lab.balancer(), "up0"));
    let wire = Wire::open(&lab.client(), "cl0");

    frames[..5000].iter().for_each(|frame| wire.send(frame));

    let status = agent.status();
    assert_eq!(event(&status, "cookie_issued"), 0);
    assert!(status["flows"]["half_open"].as_u64() >= Some(4500), "{}", status["flows"]);
    assert!(inside(&lab.client(), || ask(SocketAddr::new(UPLINK.parse().unwrap(), 80))), "a client is served");
    assert_eq!(status["frontends"][0]["guard"]["syn_cookies"], "off");
}
