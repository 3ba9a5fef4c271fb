//! SYN cookies: real listeners in a network namespace of their own, asked by the real object, in the words of both versions.

use std::{
    net::{Ipv6Addr, TcpListener},
    time::{Duration, Instant},
};

use lb_ebpf::{
    abi::{Guard, Proto},
    tcp_state::State,
    verdict::{DropReason, Event, PassReason},
};
use lb_tests::{
    frames::{self, ACK, Dice, FIN, RST, SYN, v6},
    lab::{self, inside},
    object::{Action, At, Door, Object},
};

use super::{FRONT_DOORS, dropped};

/// The number that the balancer's namespace has for that of the listeners.
const LISTENERS: u32 = 9;
/// A segment size that cookies can express: among those of `msstab`, net/ipv4/syncookies.c and net/ipv6/syncookies.c.
const MSS_V4: u16 = 1460;
const MSS_V6: u16 = 1440;

/// Two namespaces: the balancer's, and one in which the backends of both versions listen.
struct World {
    balancer: String,
    listeners: String,
    _sockets: Vec<TcpListener>,
}

impl World {
    /// Makes them; `always` says whether listeners answer by cookies whatever room they have.
    fn new(always: bool) -> Self {
        let names = ["balancer", "listeners"].map(|role| format!("lbt{}k{role}", std::process::id()));
        let [balancer, listeners] = names;
        for name in [&balancer, &listeners] {
            let _left_by_a_crash = std::process::Command::new("ip").args(["netns", "del", name]).output();
            lab::ip(&format!("netns add {name}"));
            lab::ip(&format!("-n {name} link set lo up"));
        }
        lab::ip(&format!("-n {balancer} netns set {listeners} {LISTENERS}"));
        let setting = format!("net.ipv4.tcp_syncookies={}", if always { 2 } else { 1 });
        lab::run(lab::command_in(&listeners, "sysctl").args(["-qw", &setting]));
        let sockets = inside(&listeners, || {
            [5000, 5001].map(|port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("the port is free")).into()
        });
        Self { balancer, listeners, _sockets: sockets }
    }

    /// Runs a packet through a front door, as the kernel would: what XDP passes meets TC.
    fn front(&self, object: &Object, door: Door, frame: &[u8]) -> (Action, Vec<u8>) {
        inside(&self.balancer, || match door {
            Door::Xdp => match object.run(Door::Xdp, frame) {
                (Action::Pass, out) => {
                    assert_eq!(out, frame, "what is left to TC is left untouched");
                    object.run(Door::Tc, frame)
                }
                other => other,
            },
            Door::Tc | Door::Reply | Door::Local => object.run(door, frame),
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [&self.balancer, &self.listeners] {
            let _gone_already = std::process::Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Whether the versions are one or the other, with what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];

/// A side of a connection, told from others by the last byte of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    version: Version,
    network: u8,
    last: u8,
    port: u16,
}

impl At for End {
    fn address(self) -> lb_ebpf::abi::Address {
        match self.version {
            Version::V4 => At::address(self.v4()),
            Version::V6 => At::address(self.v6()),
        }
    }
    fn port(self) -> lb_ebpf::abi::Port {
        lb_ebpf::abi::Port::new(self.port)
    }
}

impl End {
    fn v4(self) -> frames::Side {
        ([198, 18, self.network, self.last], self.port)
    }
    fn v6(self) -> v6::Side {
        (v6::address(self.network, self.last), self.port)
    }
}

impl Version {
    fn end(self, network: u8, last: u8, port: u16) -> End {
        End { version: self, network, last, port }
    }
    fn client(self, last: u8, port: u16) -> End {
        self.end(7, last, port)
    }
    fn frontend(self) -> End {
        self.end(1, 1, 80)
    }
    fn backend(self, number: u8) -> End {
        self.end(2, 11 + number, if number == 2 { 5001 } else { 5000 })
    }
    fn mss(self) -> u16 {
        match self {
            Self::V4 => MSS_V4,
            Self::V6 => MSS_V6,
        }
    }
    /// Where the TCP header begins.
    fn l4(self) -> usize {
        match self {
            Self::V4 => 34,
            Self::V6 => 54,
        }
    }
}

fn segment(from: End, to: End, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]) -> Vec<u8> {
    match from.version {
        Version::V4 => frames::tcp(from.v4(), to.v4(), flags, sequence, acknowledgement, payload),
        Version::V6 => v6::tcp(from.v6(), to.v6(), flags, sequence, acknowledgement, payload),
    }
}

/// A SYN with the options that Linux sends: segment size, selective acknowledgements, time stamps, window scale.
fn syn(from: End, sequence: u32) -> Vec<u8> {
    let [high, low] = from.version.mss().to_be_bytes();
    let options = [2, 4, high, low, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    with_options(segment(from, from.version.frontend(), SYN, sequence, 0, &[]), &options)
}

fn with_options(frame: Vec<u8>, options: &[u8]) -> Vec<u8> {
    if frame[12..14] == [8, 0] {
        return frames::with_tcp_options(frame, options);
    }
    let mut frame = frame;
    frame.splice(74..74, options.iter().copied());
    frame[66] = ((5 + options.len() / 4) as u8) << 4;
    let len = ((frame.len() - 54) as u16).to_be_bytes();
    frame[18..20].copy_from_slice(&len);
    frame[70..72].fill(0);
    let sum = frames::checksum(&[&frame[22..54], &[0, 0], &len, &[0, 0, 0, 6], &frame[54..]]);
    frame[70..72].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// A SYN-ACK that answered a SYN, after everything in it was looked at but its sequence number, which is returned.
fn judged(answer: &[u8], question: &[u8], client: End, sequence: u32) -> u32 {
    let (version, l4) = (client.version, client.version.l4());
    assert_eq!(answer.len(), l4 + 24, "{answer:02x?}");
    assert_eq!((&answer[..6], &answer[6..12]), (&question[6..12], &question[..6]), "back where it came from");
    assert_eq!(answer[12..14], question[12..14]);
    let word = |at: usize| u32::from_be_bytes(answer[at..at + 4].try_into().unwrap());
    let (hops, is_right) = match version {
        Version::V4 => {
            let judged = frames::judge(answer).expect("a segment");
            assert_eq!((judged.from, judged.to), (version.frontend().v4(), client.v4()));
            (judged.ttl, judged.ip_sum && judged.transport_sum)
        }
        Version::V6 => {
            let judged = v6::judge(answer).expect("a segment");
            assert_eq!((judged.from, judged.to), (version.frontend().v6(), client.v6()));
            (judged.hops, judged.sum)
        }
    };
    assert!(is_right, "{version:?}: wrong checksum: {answer:02x?}");
    assert_eq!(hops, 64);
    assert_eq!(word(l4 + 8), sequence.wrapping_add(1), "it acknowledges the SYN");
    assert_eq!(answer[l4 + 12..l4 + 14], [6 << 4, SYN | ACK]);
    assert_eq!(u32::from(u16::from_be_bytes([answer[l4 + 14], answer[l4 + 15]])), u32::from(version.mss()) * 10);
    let mss = version.mss().to_be_bytes();
    assert_eq!(answer[l4 + 20..], [2, 4, mss[0], mss[1]], "one option, that of the segment size");
    word(l4 + 4)
}

/// Three backends that listen in the other namespace.
fn object(version: Version) -> Object {
    let mut object = Object::load();
    for number in 0..3 {
        object.backend(number.into(), 0, 1, version.backend(number));
        object.listen_in(number.into(), LISTENERS);
    }
    object.serve(0, version.frontend(), Proto::Tcp, &[0, 1, 2]);
    object
}

fn events(object: &Object) -> [u64; 3] {
    [Event::CookieIssued, Event::CookieAccepted, Event::CookieRefused].map(|event| object.count(event.index()))
}

/// Sends a SYN that has to be answered; returns the cookie.
fn cookie(world: &World, object: &Object, door: Door, client: End, sequence: u32) -> u32 {
    let question = syn(client, sequence);
    let (did, answer) = world.front(object, door, &question);
    assert_eq!(did, Action::Redirect, "{door:?} {client:?}");
    judged(&answer, &question, client, sequence)
}

/// Returns which backend a frame goes to.
fn taker(version: Version, frame: &[u8]) -> u8 {
    (0..3).find(|number| to(version, frame) == version.backend(*number)).expect("it goes to a backend")
}

/// Returns to whom a segment with a right checksum goes.
fn to(version: Version, frame: &[u8]) -> End {
    match version {
        Version::V4 => {
            let judged = frames::judge(frame).unwrap();
            assert!(judged.ip_sum && judged.transport_sum);
            version.end(judged.to.0[2], judged.to.0[3], judged.to.1)
        }
        Version::V6 => {
            let judged = v6::judge(frame).unwrap();
            assert!(judged.sum);
            version.end(judged.to.0[5], judged.to.0[15], judged.to.1)
        }
    }
}

pub fn a_syn_is_answered_by_a_cookie_and_leaves_nothing() {
    let world = World::new(true);
    for (version, door) in VERSIONS.into_iter().flat_map(|version| FRONT_DOORS.map(|door| (version, door))) {
        let object = object(version);
        let client = version.client(1, 40_000);

        let first = cookie(&world, &object, door, client, 100);
        let again = cookie(&world, &object, door, client, 100);
        let other = cookie(&world, &object, door, version.client(1, 40_001), u32::MAX);

        assert_eq!(first, again, "within a minute, the same SYN has the same answer");
        assert_ne!(first, other);
        assert!(object.half_open(client, version.frontend(), Proto::Tcp).is_none());
        assert!((0..3).all(|id| object.traffic(id).connections == 0));
        assert_eq!(events(&object), [3, 0, 0], "{door:?}");
    }
}

pub fn an_acknowledged_cookie_is_a_connection_from_its_beginning() {
    let world = World::new(true);
    for (version, door) in VERSIONS.into_iter().flat_map(|version| FRONT_DOORS.map(|door| (version, door))) {
        let object = object(version);
        let frontend = version.frontend();
        let mut shares = [0; 3];
        for number in 0..60_u8 {
            let client = version.end(10 + number, 2, 40_000 + u16::from(number));
            let cookie = cookie(&world, &object, door, client, 500);
            let ack = segment(client, frontend, ACK, 501, cookie.wrapping_add(1), &[]);
            let (did, out) = world.front(&object, door, &ack);
            assert_eq!(did, Action::Redirect);
            let number = taker(version, &out);
            shares[usize::from(number)] += 1;
            let backend = version.backend(number);
            let flow = || object.flow(client, frontend, Proto::Tcp).map(|flow| flow.state());
            assert_eq!(flow(), Some(State::Established), "proven by its acknowledgement");
            assert!(object.half_open(client, frontend, Proto::Tcp).is_none());

            // Repeated, with data, and answered.
            assert_eq!(taker(version, &world.front(&object, door, &ack).1), number);
            let data = segment(client, frontend, ACK, 501, cookie.wrapping_add(1), b"GET /");
            assert_eq!(taker(version, &world.front(&object, door, &data).1), number);
            let reply = segment(backend, client, ACK, cookie.wrapping_add(1), 506, b"200");
            let (did, out) = object.run(Door::Reply, &reply);
            assert_eq!((did, to(version, &out)), (Action::Redirect, client));

            let end = segment(client, frontend, FIN | ACK, 506, cookie.wrapping_add(4), &[]);
            assert_eq!(taker(version, &world.front(&object, door, &end).1), number);
            assert_eq!(flow(), Some(State::ClientClosed));
            let end = segment(backend, client, FIN | ACK, cookie.wrapping_add(4), 507, &[]);
            assert_eq!(object.run(Door::Reply, &end).0, Action::Redirect);
            assert_eq!(flow(), None, "what is over leaves the proven");
        }

        assert!(shares.iter().all(|share| *share >= 8), "the hash leads everywhere: {shares:?}");
        assert_eq!(events(&object), [60, 60, 0], "{version:?} {door:?}: each once");
        assert_eq!((0..3).map(|id| object.traffic(id).connections).sum::<u64>(), 60);
    }
}

pub fn xdp_answers_by_itself_where_devices_send_back() {
    let world = World::new(true);
    for version in VERSIONS {
        let mut object = object(version);
        object.answer_by_xdp(true);
        let (client, l4) = (version.client(1, 40_000), version.l4());
        let question = syn(client, 100);
        let run = |frame: &[u8]| inside(&world.balancer, || object.run(Door::Xdp, frame));

        let (did, answer) = run(&question);
        assert_eq!(did, Action::Return);
        let cookie = judged(&answer, &question, client, 100);
        let padded = [&segment(client, version.frontend(), SYN, 100, 0, &[])[..], &[0; 6]].concat();
        let (did, answer) = run(&padded);
        assert_eq!((did, answer.len()), (Action::Return, l4 + 24), "padding is none of the segment");

        let ended = |frame: &[u8], reason| inside(&world.balancer, || dropped(&object, Door::Xdp, frame, reason));
        let mut wrong = question.clone();
        wrong[l4 + 4] ^= 1;
        ended(&wrong, DropReason::WrongChecksum);
        let len = ((question.len() - l4) as u16).to_be_bytes();
        let addresses = if version == Version::V4 { 26..34 } else { 22..54 };
        let begun = !frames::checksum(&[&question[addresses], &[0, 6], &len]);
        wrong.clone_from(&question);
        wrong[l4 + 16..l4 + 18].copy_from_slice(&begun.to_be_bytes());
        ended(&wrong, DropReason::WrongChecksum);
        ended(&segment(client, version.frontend(), SYN, 100, 0, b"early"), DropReason::CookieUnfit);
        assert_eq!(events(&object), [2, 0, 0]);

        let ack = segment(client, version.frontend(), ACK, 101, cookie.wrapping_add(1), &[]);
        let (did, out) = world.front(&object, Door::Xdp, &ack);
        assert_eq!(did, Action::Redirect, "by TC");
        taker(version, &out);
        assert_eq!(events(&object), [2, 1, 0]);
    }
}

pub fn a_port_used_again_after_a_cookie_begins_another_connection() {
    let world = World::new(true);
    for version in VERSIONS {
        let object = object(version);
        let (client, frontend) = (version.client(1, 40_000), version.frontend());
        let cookie = cookie(&world, &object, Door::Tc, client, 500);
        world.front(&object, Door::Tc, &segment(client, frontend, ACK, 501, cookie.wrapping_add(1), &[]));
        world.front(&object, Door::Tc, &segment(client, frontend, RST | ACK, 501, 0, &[]));

        let (did, out) = world.front(&object, Door::Tc, &syn(client, 9000));

        assert_eq!(did, Action::Redirect);
        taker(version, &out);
        let began = object.half_open(client, frontend, Proto::Tcp).map(|flow| flow.state());
        assert_eq!(began, Some(State::SynSent), "it has an entry already, which is its own");
        assert_eq!(events(&object), [1, 1, 0]);
    }
}

pub fn a_first_segment_with_data_or_an_end_is_taken() {
    let world = World::new(true);
    for version in VERSIONS {
        let object = object(version);
        let frontend = version.frontend();
        for (number, flags, state) in [(1, ACK, State::Established), (2, ACK | FIN, State::ClientClosed)] {
            let client = version.client(number, 40_000);
            let cookie = cookie(&world, &object, Door::Tc, client, 500);
            let data = segment(client, frontend, flags, 501, cookie.wrapping_add(1), b"GET /");

            let (did, out) = world.front(&object, Door::Tc, &data);

            assert_eq!(did, Action::Redirect, "the bare acknowledgement may be lost");
            let backend = taker(version, &out);
            assert_eq!(object.flow(client, frontend, Proto::Tcp).map(|flow| flow.state()), Some(state));
            let answered = || object.handshakes(backend.into()).response.total();
            let before = answered();
            for acknowledged in [501, 506, 506] {
                let answer = segment(version.backend(backend), client, ACK, 1, acknowledged, b"200");
                assert_eq!(world.front(&object, Door::Reply, &answer).0, Action::Redirect);
            }
            assert_eq!(answered(), before + 1, "a request that rides on it is timed, once");
        }
        assert_eq!(events(&object), [2, 2, 0]);
    }
}

pub fn only_a_cookie_of_the_listener_is_taken() {
    let world = World::new(true);
    for (version, door) in VERSIONS.into_iter().flat_map(|version| FRONT_DOORS.map(|door| (version, door))) {
        let mut object = object(version);
        let (client, frontend) = (version.client(1, 40_000), version.frontend());
        let refused = |object: &Object, frame: &[u8]| {
            let before = object.count(PassReason::NoFlow.index());
            assert_eq!(world.front(object, door, frame), (Action::Pass, frame.to_vec()));
            assert_eq!(object.count(PassReason::NoFlow.index()), before + 1);
            assert!(object.flow(client, frontend, Proto::Tcp).is_none());
        };
        let cookie = cookie(&world, &object, door, client, 500);
        let right = segment(client, frontend, ACK, 501, cookie.wrapping_add(1), &[]);

        refused(&object, &segment(client, frontend, ACK, 501, cookie.wrapping_add(0x0100_0001), &[]));
        refused(&object, &segment(client, frontend, ACK, 777, cookie.wrapping_add(1), &[]));
        refused(&object, &segment(version.client(2, 40_000), frontend, ACK, 501, cookie.wrapping_add(1), &[]));
        assert_eq!(events(&object), [1, 0, 3]);
        refused(&object, &segment(client, frontend, RST | ACK, 501, cookie.wrapping_add(1), &[]));
        refused(&object, &segment(client, frontend, SYN | ACK, 501, cookie.wrapping_add(1), &[]));
        assert_eq!(events(&object), [1, 0, 3], "those are not asked about");
        object.forget_cookies();
        refused(&object, &right);
        assert_eq!(events(&object), [1, 0, 3], "nor is anything while no cookie has been issued lately");
    }
}

pub fn what_no_cookie_can_answer_is_dropped() {
    let world = World::new(true);
    for version in VERSIONS {
        let object = object(version);
        let (client, l4) = (version.client(1, 40_000), version.l4());
        let ended = |frame: &[u8], reason| inside(&world.balancer, || dropped(&object, Door::Tc, frame, reason));

        for byte in [l4 + 17, l4 + 4, l4 + 15, l4 + 23] {
            let mut wrong = syn(client, 100);
            wrong[byte] ^= 1;
            ended(&wrong, DropReason::WrongChecksum);
        }
        ended(&segment(client, version.frontend(), SYN, 100, 0, b"early"), DropReason::CookieUnfit);
        let plain = segment(client, version.frontend(), SYN, 100, 0, &[]);
        let unfit = match version {
            Version::V4 => frames::with_ip_options(plain.clone(), 2),
            Version::V6 => v6::with_extensions(plain.clone(), &[(60, 1)]),
        };
        ended(&unfit, DropReason::CookieUnfit);
        assert_eq!(events(&object), [0; 3]);
        assert!((0..3).all(|id| object.traffic(id).connections == 0), "nor does it begin a connection");

        // Without options, the least segment size is assumed. As a sender leaves a checksum whose device completes it.
        let (did, answer) = world.front(&object, Door::Tc, &plain);
        assert_eq!((did, answer.len()), (Action::Redirect, l4 + 24));
        assert!(u16::from_be_bytes([answer[l4 + 22], answer[l4 + 23]]) <= version.mss());
        let mut begun = syn(client, 100);
        let len = (begun.len() - l4) as u16;
        let addresses = if version == Version::V4 { 26..34 } else { 22..54 };
        let pseudo = !frames::checksum(&[&begun[addresses], &[0, 6], &len.to_be_bytes()]);
        begun[l4 + 16..l4 + 18].copy_from_slice(&pseudo.to_be_bytes());
        assert_eq!(world.front(&object, Door::Tc, &begun).0, Action::Redirect);
    }
}

pub fn a_network_is_sent_no_more_cookies_than_it_may() {
    let world = World::new(true);
    for version in VERSIONS {
        let object = object(version);
        let answered = |last: u8, ports: std::ops::Range<u16>| {
            let did = ports.map(|port| world.front(&object, Door::Tc, &syn(version.client(last, port), 1)).0);
            did.filter(|did| *did == Action::Redirect).count()
        };
        // A bucket may be another test's a moment ago.
        std::thread::sleep(Duration::from_secs(1));

        let start = Instant::now();
        let most = || 33 + start.elapsed().as_millis() as usize * 32 / 1000;
        let burst = answered(200, 1000..1100);
        assert!((32..=most()).contains(&burst), "{burst}, in {:?}", start.elapsed());
        assert_eq!(object.count(DropReason::CookieLimited.index()), 100 - burst as u64);
        let (other, share) = (answered(201, 1000..1010), events(&object)[0]);
        match version {
            Version::V4 => assert_eq!(other, 10, "another address has its own"),
            Version::V6 => assert!(burst + other <= most(), "a host has a whole /64: {burst} and {other}"),
        }
        assert_eq!(share, (burst + other) as u64);
    }
}

pub fn a_listener_with_room_gets_its_syns_in_turn() {
    let world = World::new(false);
    for (version, door) in VERSIONS.into_iter().flat_map(|version| FRONT_DOORS.map(|door| (version, door))) {
        let object = object(version);
        for number in 0..30_u8 {
            let (did, out) = world.front(&object, door, &syn(version.client(number, 40_000), 1));
            assert_eq!(did, Action::Redirect);
            assert_eq!(taker(version, &out), number % 3, "{door:?}: strictly in turn");
        }
        assert_eq!(events(&object), [0; 3]);
    }
}

pub fn nobody_is_asked_where_it_is_forbidden_or_cannot_be() {
    type Step = fn(&mut Object, Version);
    let world = World::new(true);
    let cases: [(&str, Step); 5] = [
        ("cookies are off", |object, _| object.guard(0, Guard::default().without_cookies(), &[])),
        ("no namespace is known", |object, version| {
            (0..3).for_each(|number| object.backend(number.into(), 0, 1, version.backend(number)));
        }),
        ("the namespace is gone", |object, _| (0..3).for_each(|id| object.listen_in(id, LISTENERS + 1))),
        ("nobody listens", |object, version| {
            for number in 0..3_u8 {
                let at = End { port: 6000, ..version.backend(number) };
                object.backend(number.into(), 0, 1, at);
                object.listen_in(number.into(), LISTENERS);
            }
        }),
        ("the client is the backend itself", |object, version| {
            for id in 0..3_u32 {
                let host = version.client(1, 5000);
                object.backend(id, 0, 1, host);
                object.listen_in(id, LISTENERS);
            }
        }),
    ];
    for (what, step) in cases {
        for version in VERSIONS {
            let mut object = object(version);
            step(&mut object, version);

            let (did, _) = world.front(&object, Door::Tc, &syn(version.client(1, 40_000), 1));

            assert_eq!(did, Action::Redirect, "{what}");
            assert_eq!(object.traffic(0).connections, 1, "{what}: it begins as ever");
            assert_eq!(events(&object), [0; 3], "{what}");
        }
    }
}

pub fn a_cookie_outlives_one_publication() {
    let world = World::new(true);
    for version in VERSIONS {
        let mut object = object(version);
        let frontend = version.frontend();
        let clients: Vec<End> = (0..40).map(|number| version.end(10 + number, 2, 40_000)).collect();
        let acks: Vec<Vec<u8>> = clients
            .iter()
            .map(|&client| {
                let cookie = cookie(&world, &object, Door::Tc, client, 500);
                segment(client, frontend, ACK, 501, cookie.wrapping_add(1), &[])
            })
            .collect();

        object.publish(0, &[2]);
        let takers: Vec<u8> = acks[..20]
            .iter()
            .map(|ack| {
                let (did, out) = world.front(&object, Door::Tc, ack);
                assert_eq!(did, Action::Redirect);
                taker(version, &out)
            })
            .collect();
        assert!(takers.contains(&0) && takers.contains(&1), "who left the slots still serves: {takers:?}");
        assert_eq!(events(&object), [40, 20, 0]);

        object.publish(0, &[1]);
        object.publish(0, &[0]);
        let dids: Vec<Action> = acks[20..].iter().map(|ack| world.front(&object, Door::Tc, ack).0).collect();
        assert!(dids.contains(&Action::Pass), "after a second one the host refuses: {dids:?}");
    }
}

pub fn a_cookie_whose_port_is_taken_is_refused() {
    let world = World::new(true);
    for version in VERSIONS {
        let mut object = object(version);
        object.publish(0, &[0]);
        // Another frontend leads the same client's port to the same backend, without cookies.
        let second = version.end(1, 1, 81);
        object.backend(3, 1, 1, version.backend(0));
        object.serve(1, second, Proto::Tcp, &[3]);
        let client = version.client(1, 40_000);
        let cookie = cookie(&world, &object, Door::Tc, client, 500);
        let (did, _) = world.front(&object, Door::Tc, &segment(client, second, SYN, 1, 0, &[]));
        assert_eq!(did, Action::Redirect);

        let ack = segment(client, version.frontend(), ACK, 501, cookie.wrapping_add(1), &[]);
        assert_eq!(world.front(&object, Door::Tc, &ack).0, Action::Pass);

        assert_eq!(events(&object), [1, 0, 1]);
        assert!(object.flow(client, version.frontend(), Proto::Tcp).is_none());
    }
}

pub fn a_full_table_of_flows_takes_no_cookies() {
    let world = World::new(true);
    let version = Version::V4;
    let mut object = Object::load_with(8, 4096);
    for number in 0..3 {
        object.backend(number.into(), 0, 1, version.backend(number));
        object.listen_in(number.into(), LISTENERS);
    }
    object.serve(0, version.frontend(), Proto::Tcp, &[0, 1, 2]);
    let mut dids = Vec::new();
    for last in 0..40 {
        let client = version.client(last, 40_000);
        let cookie = cookie(&world, &object, Door::Tc, client, 500);
        let ack = segment(client, version.frontend(), ACK, 501, cookie.wrapping_add(1), &[]);
        dids.push(world.front(&object, Door::Tc, &ack).0);
    }

    let taken = dids.iter().filter(|did| **did == Action::Redirect).count() as u64;
    assert!((8..40).contains(&taken), "{taken}");
    assert_eq!(events(&object), [40, taken, 40 - taken]);
    assert_eq!(object.count(Event::FlowTableFull.index()), 40 - taken, "and it is told why");
}

pub fn mutated_syns_are_answered_rightly_or_not_at_all() {
    let world = World::new(true);
    for (version, door) in VERSIONS.into_iter().flat_map(|version| [Door::Tc, Door::Xdp].map(|door| (version, door))) {
        let mut object = object(version);
        object.answer_by_xdp(true);
        let mut dice = Dice::new(11);
        let l4 = version.l4();
        let mut answered = 0;
        inside(&world.balancer, || {
            for number in 0..20_000_u32 {
                // From so many networks that none is sent more than it may.
                let (network, last) = ((number % 250) as u8, (number / 250) as u8);
                let client = version.end(network, last, 1024 + number as u16);
                let mut frame = syn(client, number);
                for _ in 0..dice.below(3) {
                    let place = 14 + dice.below(frame.len() - 14);
                    frame[place] = dice.below(256) as u8;
                }
                if dice.below(4) == 0 {
                    frame.truncate(14 + dice.below(frame.len() - 14));
                }
                if frame.len() < if version == Version::V4 { 34 } else { 54 } {
                    continue; // the kernel makes no such socket buffer
                }
                let (did, out) = object.run(door, &frame);
                let is_answer = out.len() == l4 + 24 && out[..6] == frame[6..12] && out[6..12] == frame[..6];
                if !(matches!(did, Action::Redirect | Action::Return) && is_answer) {
                    continue;
                }
                answered += 1;
                let is_right = match version {
                    Version::V4 => frames::judge(&out).is_some_and(|out| out.ip_sum && out.transport_sum),
                    Version::V6 => v6::judge(&out).is_some_and(|out| out.sum),
                };
                assert!(is_right, "{door:?} {number}: {frame:02x?} {out:02x?}");
                let len = frame.len();
                let asked = match version {
                    Version::V4 => frames::judge(&frame).is_some_and(|asked| asked.transport_sum),
                    Version::V6 => v6::judge(&frame).is_some_and(|asked| asked.sum),
                };
                assert!(asked && len > l4, "{door:?} {number}: what is wrong is not answered: {frame:02x?}");
            }
        });
        assert_eq!(events(&object)[0], answered, "{version:?} {door:?}");
        assert!(answered > 3_000, "{answered}");
    }
}
