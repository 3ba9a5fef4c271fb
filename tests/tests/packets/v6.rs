//! The same tables over IPv6: what the versions have in common is tested once, beside this; here is what differs.

use std::net::SocketAddr;

use lb_ebpf::{
    abi::{Address, FlowKey, Guard, Port, Proto, RateLimit, Scheduler, Slot},
    sched::{client_hash, tuple_hash},
    tcp_state::State,
    verdict::{DropReason, Event, PassReason},
};
use lb_tests::{
    frames::{
        ACK, Dice, FIN, SYN,
        v6::{
            Judged, JudgedError, Side, address, fragments, icmp, icmp_error, judge, judge_error, tcp, together, udp,
            with_extensions, with_hops,
        },
    },
    object::{Action, Door, HOST_V6, Object, action},
};

use lb_user::datapath::layout::{Share, lay_out};

use super::{FRONT_DOORS, dropped, passed};

const CLIENT: Side = (address(1, 2), 40_000);
const FRONTEND: Side = (address(1, 1), 80);
const DATAGRAMS: Side = (address(1, 1), 53);
const BACKENDS: [Side; 3] = [(address(2, 11), 5000), (address(2, 12), 5000), (address(2, 13), 5001)];
const ROUTER: [u8; 16] = address(77, 1);
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;
/// Types and codes of ICMPv6.
const PORT_UNREACHABLE: (u8, u8) = (1, 4);
const TOO_BIG: (u8, u8) = (2, 0);
const HOPS_EXCEEDED: (u8, u8) = (3, 0);
const PARAMETER_PROBLEM: (u8, u8) = (4, 1);

fn object() -> Object {
    let mut object = Object::load();
    for (id, at) in (0..).zip(BACKENDS) {
        object.backend(id, 0, 1, at);
        object.backend(id + 3, 1, 1, at);
    }
    object.serve(0, FRONTEND, Proto::Tcp, &[0, 1, 2]);
    object.serve(1, DATAGRAMS, Proto::Udp, &[3, 4, 5]);
    object
}

fn client(port: u16) -> Side {
    (CLIENT.0, port)
}

/// Sends a packet that has to be redirected with a right checksum, and returns what came out.
fn forwarded(object: &Object, door: Door, frame: &[u8]) -> Judged {
    let (did, out) = object.run(door, frame);
    assert_eq!(did, Action::Redirect, "{door:?}: {:?}", judge(frame));
    assert_eq!(out.len(), frame.len());
    assert_eq!(out[12..21], frame[12..21], "{door:?}: what is neither address nor hop limit stays");
    let (before, out) = (judge(frame).unwrap(), judge(&out).expect("what was whole stays whole"));
    assert!(out.sum, "{door:?}: wrong checksum: {out:?}");
    assert_eq!((out.payload.as_slice(), out.hops), (before.payload.as_slice(), before.hops - 1), "{door:?}");
    out
}

/// Opens a connection and returns its backend.
fn open(object: &Object, door: Door, from: Side, to: Side) -> Side {
    let syn = forwarded(object, door, &tcp(from, to, SYN, 100, 0, &[]));
    assert_eq!(syn.from, from);
    let accepted = forwarded(object, Door::Reply, &tcp(syn.to, from, SYN | ACK, 900, 101, &[]));
    assert_eq!((accepted.from, accepted.to), (to, from));
    assert_eq!(forwarded(object, door, &tcp(from, to, ACK, 101, 901, &[])).to, syn.to);
    syn.to
}

pub fn connections_over_ipv6_live_from_syn_to_fin() {
    for door in FRONT_DOORS {
        let object = object();
        for number in 0..30_u16 {
            let from = client(10_000 + number);
            let backend = open(&object, door, from, FRONTEND);
            assert_eq!(backend, BACKENDS[usize::from(number) % 3], "{door:?}, connection {number}");
            for size in [1, 2, 333, 1440] {
                let payload: Vec<u8> = (0..size).map(|byte| byte as u8 ^ 0x5a).collect();
                assert_eq!(forwarded(&object, door, &tcp(from, FRONTEND, ACK, 101, 901, &payload)).to, backend);
                let back = forwarded(&object, Door::Reply, &tcp(backend, from, ACK, 901, 101, &payload));
                assert_eq!((back.from, back.to), (FRONTEND, from));
            }
            assert_eq!(object.flow(from, FRONTEND, Proto::Tcp).unwrap().state(), State::Established);
            forwarded(&object, Door::Reply, &tcp(backend, from, FIN | ACK, 901, 101, &[]));
            forwarded(&object, door, &tcp(from, FRONTEND, FIN | ACK, 101, 902, &[]));
            assert_eq!(object.half_open(from, FRONTEND, Proto::Tcp).unwrap().state(), State::Closed);
        }
        let traffic = object.traffic(0);
        assert_eq!((traffic.connections, traffic.ingress_packets, traffic.egress_packets), (10, 70, 60), "{door:?}");
        assert_eq!(object.count(Event::Proven.index()), 30);
    }
}

pub fn answers_over_ipv6_are_timed() {
    for door in FRONT_DOORS {
        let object = object();
        let backend = open(&object, door, CLIENT, FRONTEND);
        let counted = || object.handshakes(0).response.total();
        for payload in [&b""[..], b"GET /", b"GET /"] {
            forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, payload));
        }
        forwarded(&object, Door::Reply, &tcp(backend, CLIENT, ACK, 901, 101, b"a banner"));
        assert_eq!(counted(), 0, "{door:?}");
        for _ in 0..2 {
            forwarded(&object, Door::Reply, &tcp(backend, CLIENT, ACK, 909, 106, b"200"));
            assert_eq!(counted(), 1, "{door:?}");
        }
    }
    // Behind extension headers, which XDP leaves to TC.
    let object = object();
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    let behind = |frame| with_extensions(frame, &[(DESTINATION, 3)]);
    forwarded(&object, Door::Tc, &behind(tcp(CLIENT, FRONTEND, ACK, 101, 901, b"")));
    assert_eq!(object.reply(backend, CLIENT, Proto::Tcp).unwrap().request, 0);
    forwarded(&object, Door::Tc, &behind(tcp(CLIENT, FRONTEND, ACK, 101, 901, b"?")));
    forwarded(&object, Door::Reply, &behind(tcp(backend, CLIENT, ACK, 901, 102, b"")));
    assert_eq!(object.handshakes(0).response.total(), 0);
    forwarded(&object, Door::Reply, &behind(tcp(backend, CLIENT, ACK, 901, 102, b"!")));
    assert_eq!(object.handshakes(0).response.total(), 1);
}

pub fn datagrams_over_ipv6_stay_with_a_backend() {
    for door in FRONT_DOORS {
        let object = object();
        for number in 0..6_u16 {
            let from = client(50_000 + number);
            let backend = BACKENDS[usize::from(number) % 3];
            for payload in [b"one".as_slice(), b"".as_slice()] {
                assert_eq!(forwarded(&object, door, &udp(from, DATAGRAMS, payload)).to, backend);
            }
            let answer = forwarded(&object, Door::Reply, &udp(backend, from, b"answer"));
            assert_eq!((answer.from, answer.to), (DATAGRAMS, from));
        }
        // A tunnel's: RFC 6935. What a checksum becomes is never zero, which would say that there is none.
        let mut without = udp(CLIENT, DATAGRAMS, b"payload");
        without[60..62].fill(0);
        let (did, out) = object.run(door, &without);
        assert_eq!((did, &out[60..62]), (Action::Redirect, [0, 0].as_slice()), "{door:?}");
        let sums = (0..=u16::MAX).step_by(7).map(|fill| {
            let out = object.run(door, &udp(client(50_000), DATAGRAMS, &fill.to_be_bytes())).1;
            [out[60], out[61]]
        });
        assert_eq!(sums.filter(|sum| *sum == [0, 0]).count(), 0, "{door:?}");
    }
}

/// The layout of the backends with these weights, as the agent makes it.
fn layout(scheduler: Scheduler, weights: [u32; 3]) -> Vec<Slot> {
    let share = |((backend, weight), (ip, port)): ((u32, u32), Side)| Share {
        backend,
        endpoint: SocketAddr::from((ip, port)),
        weight,
    };
    let shares: Vec<Share> = (0..).zip(weights).zip(BACKENDS).map(share).collect();
    lay_out(scheduler, &shares, 1_021)
}

/// Begins a connection and returns the number of its backend.
fn begin(object: &Object, door: Door, from: Side) -> u32 {
    let to = forwarded(object, door, &tcp(from, FRONTEND, SYN, 1, 0, &[])).to;
    BACKENDS.iter().position(|backend| *backend == to).expect("a backend") as u32
}

pub fn every_scheduler_serves_ipv6() {
    let addresses = |from: Side| [from.0, FRONTEND.0].map(|bytes| Address::from(std::net::Ipv6Addr::from(bytes)));
    let key = |from: Side| {
        let [client, frontend] = addresses(from);
        FlowKey::new(client, Port::new(from.1), frontend, Port::new(FRONTEND.1), Proto::Tcp)
    };
    let at = |layout: &[Slot], hash: u32| layout[((u64::from(hash) * layout.len() as u64) >> 32) as usize].backend;
    let weights = [2, 1, 1];
    for scheduler in Scheduler::ALL {
        for door in FRONT_DOORS {
            let mut object = object();
            let layout = layout(scheduler, weights);
            object.lay_out(0, scheduler, 0, &layout);
            let mut counts = [0; 3];
            for number in 0..240_u8 {
                // Clients differ in one byte of sixteen, each time another.
                let mut from = client(40_000);
                from.0[usize::from(number) % 16] ^= number / 16 + 1;
                let chosen = begin(&object, door, from);
                match scheduler {
                    Scheduler::SourceHash => assert_eq!(chosen, at(&layout, client_hash(&key(from)))),
                    Scheduler::Maglev => assert_eq!(chosen, at(&layout, tuple_hash(&key(from)))),
                    Scheduler::RoundRobin | Scheduler::Weighted | Scheduler::LeastConn | Scheduler::RandomTwo => {}
                }
                counts[chosen as usize] += 1;
            }
            match scheduler {
                Scheduler::RoundRobin | Scheduler::Weighted | Scheduler::LeastConn => {
                    assert_eq!(counts, [120, 60, 60], "{scheduler:?}, {door:?}");
                }
                Scheduler::RandomTwo | Scheduler::SourceHash | Scheduler::Maglev => {
                    // Five standard deviations of a fair draw.
                    let is_near = (80..=160).contains(&counts[0]) && counts[1..].iter().all(|n| (26..=94).contains(n));
                    assert!(is_near, "{scheduler:?}, {door:?}: {counts:?}");
                }
            }
        }
    }
}

pub fn a_client_of_ipv6_keeps_its_backend() {
    for door in FRONT_DOORS {
        let mut object = object();
        object.lay_out(0, Scheduler::RoundRobin, 60_000, &layout(Scheduler::RoundRobin, [1; 3]));
        // Each differs from the first in one byte.
        let clients: Vec<Side> = (0..16)
            .map(|place| {
                let mut from = CLIENT;
                from.0[place] ^= 1;
                from
            })
            .collect();
        for (turn, &(address, _)) in clients.iter().enumerate() {
            for port in 10_000..10_003 {
                assert_eq!(begin(&object, door, (address, port)) as usize, turn % 3, "{door:?}, client {turn}");
            }
        }
    }
}

pub fn who_may_not_begin_over_ipv6_is_dropped() {
    let syn = |from: [u8; 16]| tcp((from, 40_000), FRONTEND, SYN, 100, 0, &[]);
    for door in FRONT_DOORS {
        let mut object = object();
        let networks = [(address(1, 0).into(), 64, false), (address(1, 3).into(), 128, true)];
        object.guard(0, Guard::default().with_sources(true), &networks);
        for (from, admitted) in [(address(1, 2), false), (address(1, 3), true), (address(3, 2), true)] {
            let before = object.count(DropReason::Denied.index());
            let expected = if admitted { (Action::Redirect, 0) } else { (Action::Drop, 1) };
            let did = object.run(door, &syn(from)).0;
            assert_eq!((did, object.count(DropReason::Denied.index()) - before), expected, "{door:?} {from:02x?}");
        }

        // None comes back while the test runs.
        let limit = RateLimit { interval_ns: 4_000_000_000, burst: 3, v4_mask: u32::MAX };
        object.guard(0, Guard::default().with_limit(limit), &[]);
        let begun = (10..20).filter(|&last| object.run(door, &syn(address(1, last))).0 == Action::Redirect).count();
        assert_eq!(begun, 3, "{door:?}: all of a /64 together");
        assert_eq!(object.run(door, &syn(address(9, 1))).0, Action::Redirect, "{door:?}: another has its own");
    }
}

pub fn the_families_never_meet() {
    for door in FRONT_DOORS {
        let mut object = object();
        super::set_up_at(&mut object, 10);
        let over_v6 = open(&object, door, CLIENT, FRONTEND);
        let over_v4 = super::open(&object, door, super::CLIENT, super::FRONTEND);
        assert!(BACKENDS.contains(&over_v6) && super::BACKENDS.contains(&over_v4));

        // An address of IPv6 that names one of IPv4 is none of a packet's.
        let mut mapped = [0; 16];
        mapped[10..12].fill(0xff);
        mapped[12..].copy_from_slice(&super::FRONTEND.0);
        passed(&object, door, &tcp(CLIENT, (mapped, 80), SYN, 1, 0, &[]), PassReason::Scope);
        mapped[12..].copy_from_slice(&super::CLIENT.0);
        passed(&object, door, &tcp((mapped, 40_000), FRONTEND, SYN, 1, 0, &[]), PassReason::Scope);
    }
}

pub fn extension_headers_are_carried_along() {
    let object = object();
    let chains: [&[(u8, u8)]; 5] = [
        &[(HOP_BY_HOP, 1)],
        &[(DESTINATION, 3)],
        &[(HOP_BY_HOP, 1), (43, 3), (DESTINATION, 1)],
        &[(HOP_BY_HOP, 4), (DESTINATION, 1), (43, 20), (DESTINATION, 7)],
        &[(DESTINATION, 32)],
    ];
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    for chain in chains {
        let segment = with_extensions(tcp(CLIENT, FRONTEND, ACK, 101, 901, b"extended"), chain);
        assert_eq!(forwarded(&object, Door::Tc, &segment).to, backend, "{chain:?}");
        let reply = with_extensions(tcp(backend, CLIENT, ACK, 901, 101, b"extended"), chain);
        assert_eq!(forwarded(&object, Door::Reply, &reply).from, FRONTEND, "{chain:?}");
        let datagram = with_extensions(udp(CLIENT, DATAGRAMS, b"extended"), chain);
        assert!(BACKENDS.contains(&forwarded(&object, Door::Tc, &datagram).to));
        assert_eq!(object.run(Door::Xdp, &segment), (Action::Pass, segment.clone()), "TC does it");
    }
    for chain in [&[(DESTINATION, 33)][..], &[(HOP_BY_HOP, 20), (DESTINATION, 20)], &[(DESTINATION, 1); 6]] {
        let segment = with_extensions(tcp(CLIENT, FRONTEND, ACK, 101, 901, b"extended"), chain);
        passed(&object, Door::Tc, &segment, PassReason::Extensions);
        assert_eq!(object.run(Door::Xdp, &segment).0, Action::Pass);
    }
    let mut routed = with_extensions(tcp(CLIENT, FRONTEND, ACK, 101, 901, b"extended"), &[(43, 3)]);
    routed[54 + 3] = 1;
    passed(&object, Door::Tc, &routed, PassReason::Extensions);
    for unknown in [50, 51, 135, 139, 253] {
        let segment = with_extensions(tcp(CLIENT, FRONTEND, ACK, 101, 901, b"extended"), &[(unknown, 1)]);
        passed(&object, Door::Tc, &segment, PassReason::Protocol);
    }
}

pub fn what_is_not_ours_over_ipv6_is_left_untouched() {
    let link_local = of_link(9);
    let solicited = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1];
    for door in FRONT_DOORS {
        let object = object();
        for (what, reason, frame) in [
            ("another port", PassReason::NotOurs, tcp(CLIENT, (FRONTEND.0, 81), SYN, 1, 0, &[])),
            ("another address", PassReason::NotOurs, tcp(CLIENT, (address(1, 9), 80), SYN, 1, 0, &[])),
            ("no flow and no SYN", PassReason::NoFlow, tcp(CLIENT, FRONTEND, ACK, 1, 1, &[])),
            ("from the link", PassReason::Scope, tcp((link_local, 40_000), FRONTEND, SYN, 1, 0, &[])),
            ("to the link", PassReason::Scope, tcp(CLIENT, (link_local, 80), SYN, 1, 0, &[])),
            ("from many", PassReason::Scope, tcp((solicited, 40_000), FRONTEND, SYN, 1, 0, &[])),
            ("an echo", PassReason::Protocol, icmp(CLIENT.0, FRONTEND.0, (128, 0), 1, b"ping")),
            ("a solicitation", PassReason::Protocol, icmp(link_local, solicited, (135, 0), 0, &FRONTEND.0)),
            ("an advertisement", PassReason::Protocol, icmp(link_local, FRONTEND.0, (136, 0), 0, &link_local)),
            ("of a router", PassReason::Protocol, icmp(link_local, solicited, (134, 0), 0x4000_0708, &[0; 8])),
        ] {
            eprintln!("{door:?}: {what}");
            passed(&object, door, &frame, reason);
        }
        let whole = tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]);
        for len in 54..whole.len() {
            passed(&object, door, &whole[..len], PassReason::Malformed);
        }
        passed(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, ACK, 1, 1, b"?"), PassReason::NotReply);
        passed(&object, Door::Reply, &icmp(link_local, solicited, (135, 0), 0, &HOST_V6), PassReason::Protocol);
    }
}

pub fn a_backend_of_ipv6_that_is_its_own_client_sees_the_host() {
    let mut object = object();
    object.publish(0, &[0]);
    let from = (BACKENDS[0].0, 40_000);

    let syn = forwarded(&object, Door::Tc, &tcp(from, FRONTEND, SYN, 1, 0, &[]));

    assert_eq!((syn.from.0, syn.to), (HOST_V6, BACKENDS[0]));
    let answer = forwarded(&object, Door::Reply, &tcp(BACKENDS[0], syn.from, SYN | ACK, 7, 2, &[]));
    assert_eq!((answer.from, answer.to), (FRONTEND, from));
}

pub fn fragments_of_ipv6_follow_the_first_of_their_datagram() {
    let object = object();
    let sent = |door, frame: &[u8]| {
        let (did, out) = object.run(door, frame);
        assert_eq!((did, out.len()), (Action::Redirect, frame.len()), "{door:?}");
        assert_eq!((out[21], &out[54..62]), (frame[21] - 1, &frame[54..62]));
        out
    };
    let payload: Vec<u8> = (0..2600_u32).map(|byte| (byte * 7) as u8).collect();
    let of = |from, to, id| fragments(&udp(from, to, &payload), id, 1000);
    let [first, second, third] = of(CLIENT, DATAGRAMS, 0x1_0000).try_into().expect("three");
    // Before the first one nobody knows the ports.
    passed(&object, Door::Tc, &second, PassReason::Fragment);
    let out = [&first, &third, &second].map(|frame| sent(Door::Tc, frame));
    let [first_out, third_out, second_out] = out;
    let whole = judge(&together(&[first_out, second_out, third_out])).unwrap();
    assert!(whole.sum && whole.from == CLIENT && BACKENDS.contains(&whole.to), "{whole:?}");
    assert_eq!(whole.payload, payload);
    // Another datagram of the client, of another backend's, is told apart by the upper half of its number alone.
    let others = of(client(40_001), DATAGRAMS, 0x2_0000);
    let other = sent(Door::Tc, &others[0]);
    assert_ne!(other[38..54], whole.to.0);
    assert_eq!(sent(Door::Tc, &others[1])[38..54], other[38..54]);
    assert_eq!(sent(Door::Tc, &third)[38..54], whole.to.0);

    let answer: Vec<Vec<u8>> = of(whole.to, CLIENT, 5).iter().map(|frame| sent(Door::Reply, frame)).collect();
    let answer = judge(&together(&answer)).unwrap();
    assert!(answer.sum && (answer.from, answer.to) == (DATAGRAMS, CLIENT), "{answer:?}");

    dropped(&object, Door::Tc, &with_hops(second.clone(), 1), DropReason::TtlExpired);
    passed(&object, Door::Reply, &second, PassReason::NotReply);
    // A fragment that is all of its datagram is no fragment: RFC 6946. XDP leaves all of them to TC.
    let atomic = fragments(&tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]), 9, 1000).remove(0);
    assert!(BACKENDS.contains(&forwarded(&object, Door::Tc, &atomic).to));
    for frame in [&first, &second, &atomic] {
        assert_eq!(object.run(Door::Xdp, frame), (Action::Pass, frame.clone()));
    }
}

/// Returns an address of a link.
const fn of_link(last: u8) -> [u8; 16] {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// Sends an ICMPv6 error that has to be translated, and returns what came out.
fn translated(object: &Object, door: Door, frame: &[u8]) -> JudgedError {
    let before = object.count(Event::IcmpError.index());
    let (did, out) = object.run(door, frame);
    assert_eq!((did, out.len()), (Action::Redirect, frame.len()), "{door:?}: {:?}", judge_error(frame));
    assert_eq!(object.count(Event::IcmpError.index()), before + 1);
    assert_eq!(out[21], frame[21] - 1);
    let (before, after) = (judge_error(frame).unwrap(), judge_error(&out).unwrap());
    assert_eq!((after.kind, after.word, after.sum), (before.kind, before.word, true), "{door:?}");
    assert_eq!(after.inner_sum, before.inner_sum);
    after
}

pub fn errors_of_icmpv6_reach_whom_they_are_about() {
    let object = object();
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    let of_backend = tcp(FRONTEND, CLIENT, ACK, 901, 101, &[5; 41]);
    let of_client = tcp(CLIENT, backend, ACK, 101, 901, &[5; 40]);
    for kind in [PORT_UNREACHABLE, TOO_BIG, HOPS_EXCEEDED, PARAMETER_PROBLEM] {
        for quoted in [8, 20, 60] {
            let error = icmp_error(ROUTER, FRONTEND.0, kind, &of_backend, quoted);
            let out = translated(&object, Door::Tc, &error);
            assert_eq!((out.from, out.to, out.about), (ROUTER, backend.0, (backend, CLIENT)), "{kind:?} {quoted}");
            let error = icmp_error(of_link(1), FRONTEND.0, kind, &of_backend, quoted);
            assert_eq!(translated(&object, Door::Tc, &error).from, FRONTEND.0, "a router's address of its link");
            for (who, seen) in [(backend.0, FRONTEND.0), (ROUTER, ROUTER), (of_link(1), FRONTEND.0)] {
                let out = translated(&object, Door::Reply, &icmp_error(who, CLIENT.0, kind, &of_client, quoted));
                assert_eq!((out.from, out.to, out.about), (seen, CLIENT.0, (CLIENT, FRONTEND)), "{kind:?} {quoted}");
            }
        }
    }
    // Extension headers, outside and inside; a first fragment inside.
    let extended = with_extensions(of_backend.clone(), &[(HOP_BY_HOP, 1), (DESTINATION, 2)]);
    let error = with_extensions(icmp_error(ROUTER, FRONTEND.0, TOO_BIG, &extended, 24 + 20), &[(DESTINATION, 1)]);
    assert_eq!(translated(&object, Door::Tc, &error).about, (backend, CLIENT));
    let asked = forwarded(&object, Door::Tc, &udp(CLIENT, DATAGRAMS, b"?"));
    let cut = fragments(&udp(DATAGRAMS, CLIENT, &[3; 2000]), 7, 1200);
    let error = icmp_error(ROUTER, DATAGRAMS.0, TOO_BIG, &cut[0], 8 + 8);
    assert_eq!(translated(&object, Door::Tc, &error).about, (asked.to, CLIENT));

    for (what, frame, reason) in [
        ("about another connection", with_port(&of_backend, 9), PassReason::Protocol),
        ("about a later fragment", icmp_error(ROUTER, FRONTEND.0, TOO_BIG, &cut[1], 16), PassReason::Protocol),
        (
            "shorter than what it has to quote",
            icmp_error(ROUTER, FRONTEND.0, TOO_BIG, &of_backend, 7),
            PassReason::Malformed,
        ),
    ] {
        eprintln!("{what}");
        passed(&object, Door::Tc, &frame, reason);
    }
    let error = icmp_error(ROUTER, FRONTEND.0, TOO_BIG, &of_backend, 8);
    assert_eq!(object.run(Door::Xdp, &error).0, Action::Pass, "TC does it");
    dropped(&object, Door::Tc, &with_hops(error, 1), DropReason::TtlExpired);
}

/// An error about a segment to another port than it was.
fn with_port(about: &[u8], port: u16) -> Vec<u8> {
    let mut about = about.to_vec();
    about[56..58].copy_from_slice(&port.to_be_bytes());
    icmp_error(ROUTER, FRONTEND.0, TOO_BIG, &about, 8)
}

pub fn a_packet_of_ipv6_at_its_end_is_answered() {
    let object = object();
    let backend = open(&object, Door::Tc, CLIENT, FRONTEND);
    let fragment = fragments(&udp(CLIENT, DATAGRAMS, &[1; 2000]), 3, 1200).remove(0);
    for hops in [0, 1] {
        for (door, from, frame) in [
            (Door::Tc, FRONTEND.0, tcp(CLIENT, FRONTEND, ACK, 101, 901, b"data")),
            (Door::Tc, FRONTEND.0, tcp(client(1), FRONTEND, SYN, 1, 0, &[])),
            (Door::Tc, DATAGRAMS.0, udp(CLIENT, DATAGRAMS, &[])),
            (Door::Tc, DATAGRAMS.0, udp(CLIENT, DATAGRAMS, &[1; 1400])),
            (Door::Tc, DATAGRAMS.0, fragment.clone()),
            (Door::Reply, HOST_V6, tcp(backend, CLIENT, ACK, 901, 101, b"data")),
        ] {
            let frame = with_hops(frame, hops);
            let before = object.count(DropReason::TtlExpired.index());
            let (did, out) = object.run(door, &frame);
            assert_eq!(did, Action::Redirect, "{door:?}");
            assert_eq!(object.count(DropReason::TtlExpired.index()), before + 1);
            assert_eq!((&out[..6], &out[6..12]), (&frame[6..12], &frame[..6]), "back to where it came from");
            let answer = judge_error(&out).unwrap();
            let asked = [(CLIENT.0, 0), (backend.0, 0)].map(|side| side.0);
            assert!(answer.sum && asked.contains(&answer.to), "{answer:?}");
            assert_eq!((answer.from, answer.kind, answer.word), (from, HOPS_EXCEEDED, 0));
            let quoted = out.len() - 14 - 40 - 8;
            assert_eq!(out[out.len() - quoted..], frame[14..14 + quoted], "it quotes what was sent");
        }
    }
    passed(&object, Door::Tc, &with_hops(tcp(CLIENT, client(80), SYN, 1, 0, &[]), 1), PassReason::NotOurs);
    let options = with_extensions(tcp(CLIENT, FRONTEND, ACK, 101, 901, &[]), &[(DESTINATION, 2)]);
    dropped(&object, Door::Tc, &with_hops(options, 1), DropReason::TtlExpired);
}

/// Mutated and random packets: what comes out is what went in, or a right translation of it.
pub fn mutated(door: Door) {
    const PACKETS: usize = 300_000;
    let seed = std::env::var("LB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_126);
    eprintln!("LB_SEED={seed}");
    let object = object();
    let mut dice = Dice::new(seed);
    let mut templates = Vec::new();
    for number in 0..8 {
        let from = client(30_000 + number);
        let backend = open(&object, Door::Tc, from, FRONTEND);
        let asked = forwarded(&object, Door::Tc, &udp(from, DATAGRAMS, b"?")).to;
        let payload = vec![number as u8; usize::from(number) * 13];
        let (segment, datagram) = match door {
            Door::Reply | Door::Local => (tcp(backend, from, ACK, 901, 101, &payload), udp(asked, from, &payload)),
            Door::Tc | Door::Xdp => (tcp(from, FRONTEND, ACK, 101, 901, &payload), udp(from, DATAGRAMS, &payload)),
        };
        templates.push(with_extensions(segment.clone(), &[(HOP_BY_HOP, 1), (DESTINATION, 2)]));
        templates.extend(fragments(&datagram, number.into(), 64));
        templates.extend([segment, datagram]);
    }
    let mut out = vec![0; 2048];
    let (mut redirected, mut left) = (0, 0);
    for number in 0..PACKETS {
        let mut frame = templates[dice.below(templates.len())].clone();
        match dice.below(8) {
            0 => frame.iter_mut().skip(54).for_each(|byte| *byte = dice.below(256) as u8),
            1 => frame.truncate(54 + dice.below(frame.len() + 1 - 54)),
            2 => {}
            changes => {
                for _ in 0..changes - 2 {
                    let at = dice.below(frame.len().min(100));
                    frame[at] = dice.below(256) as u8;
                }
            }
        }
        let (value, len) = object.run_into(door, &frame, &mut out);
        let came = &out[..len];
        match action(door, value) {
            Action::Pass => {
                assert_eq!(came, frame, "packet {number}: passed, but changed");
                left += 1;
            }
            Action::Redirect if frame[21] <= 1 => {
                let answer = judge_error(came).unwrap_or_else(|| panic!("packet {number}: {frame:02x?}"));
                assert!(answer.sum && answer.to == frame[22..38], "packet {number}: {answer:?}");
            }
            Action::Redirect => {
                redirected += 1;
                assert_eq!((len, came[21]), (frame.len(), frame[21] - 1), "packet {number}");
                let (Some(before), Some(after)) = (judge(&frame), judge(came)) else { continue };
                assert!(after.sum || !before.sum || frame[20] == 44, "packet {number}: checksum broken: {frame:02x?}");
                assert_eq!(before.payload, after.payload, "packet {number}");
                match door {
                    Door::Reply | Door::Local => assert_eq!(after.from.0, FRONTEND.0, "packet {number}: {after:?}"),
                    Door::Tc | Door::Xdp => {
                        assert!(BACKENDS.iter().any(|at| at.0 == after.to.0), "packet {number}: {after:?}");
                    }
                }
            }
            Action::Drop => {
                let drops: u64 = DropReason::ALL.iter().map(|reason| object.count(reason.index())).sum();
                assert!(drops > 0, "packet {number}: dropped without a reason");
            }
            other @ (Action::Route | Action::Return | Action::Unknown(_)) => {
                panic!("packet {number}: {other:?}: {frame:02x?}")
            }
        }
    }
    eprintln!("{door:?}: {redirected} translated, {left} left alone");
    assert!(redirected > PACKETS / 20 && left > PACKETS / 20, "the mix does not test both");
}
