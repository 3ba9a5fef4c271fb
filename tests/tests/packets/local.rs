//! Backends that are this host itself: clients' packets go to its own stack, and what that answers is met where it leaves.

use std::{net::TcpListener, process::Command, thread};

use lb_ebpf::{
    abi::{FrontendId, Proto},
    verdict::{DropReason, Event, PassReason},
};
use lb_tests::{
    frames::{
        ACK, Dice, FIN, RST, SYN, Side, fragment, icmp_error, judge, judge_error, later_fragment, sealed, tcp, udp,
        v6::{self, fragments, with_hops},
        with_ip_options, with_tcp_options, with_ttl,
    },
    lab,
    object::{Action, Door, NOTE_MARK, Object, action},
};
use nix::sched::{CloneFlags, unshare};

use super::{CLIENT, DATAGRAMS, FRONT_DOORS, FRONTEND, client, passed};

/// Servers at the address that frontends have, too, as on a host with one.
const WEB: Side = ([198, 18, 1, 1], 5000);
const NAMES: Side = ([198, 18, 1, 1], 5353);
/// The same of IPv6.
const CLIENT_V6: v6::Side = (v6::address(1, 2), 40_000);
const FRONTEND_V6: v6::Side = (v6::address(1, 1), 80);
const DATAGRAMS_V6: v6::Side = (v6::address(1, 1), 53);
const WEB_V6: v6::Side = (v6::address(1, 1), 5000);
const NAMES_V6: v6::Side = (v6::address(1, 1), 5353);

fn object() -> Object {
    let mut object = Object::load();
    object.local_backend(0, 0, WEB, Proto::Tcp);
    object.local_backend(1, 1, NAMES, Proto::Udp);
    object.local_backend(2, 2, WEB_V6, Proto::Tcp);
    object.local_backend(3, 3, NAMES_V6, Proto::Udp);
    object.serve(0, FRONTEND, Proto::Tcp, &[0]);
    object.serve(1, DATAGRAMS, Proto::Udp, &[1]);
    object.serve(2, FRONTEND_V6, Proto::Tcp, &[2]);
    object.serve(3, DATAGRAMS_V6, Proto::Udp, &[3]);
    object
}

/// Sends a packet through a front door; it has to come to the host's stack as this one. By XDP it comes with a note, which
/// keeps it from being taken for a client's at TC.
fn comes_in(object: &Object, door: Door, frame: &[u8], wanted: &[u8], id: FrontendId, what: &str) {
    let (did, out) = object.run(door, frame);
    let note = [NOTE_MARK, id, 0].map(u32::to_ne_bytes).concat();
    match door {
        Door::Xdp => assert_eq!((did, &out[..]), (Action::Pass, &[&note, wanted].concat()[..]), "{door:?}: {what}"),
        Door::Tc | Door::Reply | Door::Local => {
            assert_eq!((did, &out[..]), (Action::Route, wanted), "{door:?}: {what}");
        }
    }
}

/// Lets the host send a packet, which has to leave as that one.
fn leaves(object: &Object, frame: &[u8], wanted: &[u8], what: &str) {
    let (did, out) = object.run(Door::Local, frame);
    assert_eq!((did, &out[..]), (Action::Pass, wanted), "{what}\n came {out:02x?}\nwants {wanted:02x?}");
}

/// What a side sends to the other.
type Shape = fn(Side, Side) -> Vec<u8>;
type ShapeV6 = fn(v6::Side, v6::Side) -> Vec<u8>;

/// A connection from its first segment to its last, and after it, as the client and the server send it.
const CONVERSATION: &[(&str, Sender, Shape)] = &[
    ("a SYN", Sender::Client, |a, b| tcp(a, b, SYN, 100, 0, b"")),
    ("a SYN again", Sender::Client, |a, b| tcp(a, b, SYN, 100, 0, b"")),
    ("the SYN-ACK", Sender::Host, |a, b| with_tcp_options(tcp(a, b, SYN | ACK, 900, 101, b""), &[2, 4, 5, 0xb4])),
    ("the ACK", Sender::Client, |a, b| tcp(a, b, ACK, 101, 901, b"")),
    ("a request", Sender::Client, |a, b| tcp(a, b, ACK, 101, 901, b"GET / HTTP/1.1\r\n\r\n")),
    ("as much as fits", Sender::Client, |a, b| tcp(a, b, ACK, 119, 901, &[7; 1460])),
    ("options", Sender::Client, |a, b| with_ip_options(tcp(a, b, ACK, 119, 901, b"?"), 3)),
    ("an answer", Sender::Host, |a, b| tcp(a, b, ACK, 901, 119, b"HTTP/1.1 200 OK\r\n\r\n")),
    ("as much as fits", Sender::Host, |a, b| tcp(a, b, ACK, 901, 119, &[7; 1460])),
    ("what may pass one router", Sender::Host, |a, b| with_ttl(tcp(a, b, ACK, 901, 119, b"near"), 1)),
    ("a wrong checksum stays wrong", Sender::Host, |a, b| wrong(tcp(a, b, ACK, 901, 119, b"?"))),
    ("a FIN", Sender::Client, |a, b| tcp(a, b, FIN | ACK, 119, 920, b"")),
    ("a FIN", Sender::Host, |a, b| tcp(a, b, FIN | ACK, 920, 120, b"")),
    ("the last ACK", Sender::Client, |a, b| tcp(a, b, ACK, 120, 921, b"")),
    ("the FIN again", Sender::Host, |a, b| tcp(a, b, FIN | ACK, 920, 120, b"")),
];

const CONVERSATION_V6: &[(&str, Sender, ShapeV6)] = &[
    ("a SYN", Sender::Client, |a, b| v6::tcp(a, b, SYN, 100, 0, b"")),
    ("the SYN-ACK", Sender::Host, |a, b| v6::tcp(a, b, SYN | ACK, 900, 101, b"")),
    ("the ACK", Sender::Client, |a, b| v6::tcp(a, b, ACK, 101, 901, b"")),
    ("a request", Sender::Client, |a, b| v6::tcp(a, b, ACK, 101, 901, b"GET / HTTP/1.1\r\n\r\n")),
    ("an answer", Sender::Host, |a, b| v6::tcp(a, b, ACK, 901, 119, &[7; 1400])),
    ("what may pass one router", Sender::Host, |a, b| with_hops(v6::tcp(a, b, ACK, 901, 119, b"near"), 1)),
    ("a RST", Sender::Host, |a, b| v6::tcp(a, b, RST, 901, 0, b"")),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Client,
    Host,
}

/// Makes a segment's checksum wrong by one.
fn wrong(mut frame: Vec<u8>) -> Vec<u8> {
    let sum = u16::from_be_bytes([frame[50], frame[51]]);
    frame[50..52].copy_from_slice(&if sum == 0xfffe { 1_u16 } else { sum + 1 }.to_be_bytes());
    frame
}

/// Leaves the checksum of a segment as a stack that lets a device complete it: that of the pseudo-header alone.
fn without_sum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[40..42].fill(0);
    frame
}

pub fn a_server_of_the_host_is_a_backend() {
    for door in FRONT_DOORS {
        let object = object();
        for &(what, sender, shape) in CONVERSATION {
            match sender {
                Sender::Client => comes_in(&object, door, &shape(CLIENT, FRONTEND), &shape(CLIENT, WEB), 0, what),
                Sender::Host => leaves(&object, &shape(WEB, CLIENT), &shape(FRONTEND, CLIENT), what),
            }
        }
        let traffic = object.traffic(0);
        let of = |who| CONVERSATION.iter().filter(|(_, sender, _)| *sender == who).count() as u64;
        let counted = (traffic.connections, traffic.ingress_packets, traffic.egress_packets);
        assert_eq!(counted, (1, of(Sender::Client), of(Sender::Host)), "{door:?}");
        let timed = object.handshakes(0);
        assert_eq!((timed.latency.total(), timed.response.total()), (1, 1), "{door:?}");
        assert_eq!((object.active(0), object.held(0)), (0, 0), "it is over");

        // A refusal, from a port that is closed.
        let (syn, refusal): (Shape, Shape) = (|a, b| tcp(a, b, SYN, 5, 0, b""), |a, b| tcp(a, b, RST | ACK, 0, 6, b""));
        let other = client(41_000);
        comes_in(&object, door, &syn(other, FRONTEND), &syn(other, WEB), 0, "a SYN");
        leaves(&object, &refusal(WEB, other), &refusal(FRONTEND, other), "a refusal");
        assert_eq!(object.handshakes(0).refused, 1);

        let datagrams: [Shape; 2] = [|a, b| udp(a, b, b"question"), |a, b| without_sum(udp(a, b, b"question"))];
        for ask in datagrams {
            comes_in(&object, door, &ask(CLIENT, DATAGRAMS), &ask(CLIENT, NAMES), 1, "a datagram");
            leaves(&object, &ask(NAMES, CLIENT), &ask(DATAGRAMS, CLIENT), "an answer");
        }
    }
}

pub fn a_server_of_the_host_is_a_backend_over_ipv6() {
    for door in FRONT_DOORS {
        let object = object();
        for &(what, sender, shape) in CONVERSATION_V6 {
            match sender {
                Sender::Client => {
                    comes_in(&object, door, &shape(CLIENT_V6, FRONTEND_V6), &shape(CLIENT_V6, WEB_V6), 2, what);
                }
                Sender::Host => leaves(&object, &shape(WEB_V6, CLIENT_V6), &shape(FRONTEND_V6, CLIENT_V6), what),
            }
        }
        let ask: ShapeV6 = |a, b| v6::udp(a, b, b"question");
        comes_in(&object, door, &ask(CLIENT_V6, DATAGRAMS_V6), &ask(CLIENT_V6, NAMES_V6), 3, "a datagram");
        leaves(&object, &ask(NAMES_V6, CLIENT_V6), &ask(DATAGRAMS_V6, CLIENT_V6), "an answer");
    }
}

pub fn what_else_the_host_sends_is_left_untouched() {
    let mut object = object();
    // A container is a backend, too, and its replies leave by the same device when its own door has rewritten them.
    let container = ([198, 18, 2, 11], 5000);
    object.backend(4, 4, 1, container);
    let other = (FRONTEND.0, 81);
    object.serve(4, other, Proto::Tcp, &[4]);
    let stranger = client(41_000);
    // From the port of a flow of ours, but to the server itself, before there was that flow.
    passed(&object, Door::Local, &tcp(WEB, CLIENT, SYN | ACK, 1, 2, b""), PassReason::NotReply);
    object.run(Door::Tc, &tcp(CLIENT, FRONTEND, SYN, 100, 0, b""));
    object.run(Door::Tc, &tcp(CLIENT, other, SYN, 100, 0, b""));

    let rows: &[(&str, Vec<u8>, PassReason)] = &[
        ("a direct connection", tcp(WEB, stranger, ACK, 1, 2, b"?"), PassReason::NotReply),
        ("a direct connection that was there before", tcp(WEB, CLIENT, ACK, 7, 7000, b"?"), PassReason::NotReply),
        ("of another server", tcp((WEB.0, 22), CLIENT, ACK, 1, 2, b"?"), PassReason::NotReply),
        ("of another protocol", udp((WEB.0, WEB.1), CLIENT, b"?"), PassReason::NotReply),
        ("the frontend's, rewritten before", tcp(FRONTEND, CLIENT, SYN | ACK, 1, 101, b""), PassReason::NotReply),
        ("a container's, not rewritten", tcp(container, CLIENT, SYN | ACK, 1, 101, b""), PassReason::NotReply),
        ("what is redirected to a neighbour", tcp(CLIENT, container, ACK, 1, 2, b""), PassReason::NotReply),
        ("a fragment of a datagram", later_fragment(NAMES, CLIENT, 9, 8, true, b"rest"), PassReason::Fragment),
        ("a ping", icmp_error(WEB.0, CLIENT.0, (8, 0), &udp(CLIENT, NAMES, b""), 8), PassReason::Protocol),
        (
            "an error about others",
            icmp_error(WEB.0, CLIENT.0, (3, 3), &udp(CLIENT, NAMES, b""), 8),
            PassReason::Protocol,
        ),
    ];
    for (what, frame, reason) in rows {
        for frame in [frame.clone(), with_ttl(frame.clone(), 1)] {
            let before = object.count(reason.index());
            leaves(&object, &frame, &frame, what);
            assert_eq!(object.count(reason.index()), before + 1, "{what}");
        }
    }
    assert_eq!(object.traffic(0).egress_packets + object.traffic(4).egress_packets, 0);
    // The client's SYN comes again, and takes another port, as that one is the direct connection's.
    let (_, out) = object.run(Door::Tc, &tcp(CLIENT, FRONTEND, SYN, 100, 0, b""));
    let seen = judge(&out).unwrap().from;
    assert!(seen.0 == CLIENT.0 && seen.1 != CLIENT.1, "{seen:?}");
    leaves(&object, &tcp(WEB, seen, SYN | ACK, 1, 101, b""), &tcp(FRONTEND, CLIENT, SYN | ACK, 1, 101, b""), "its own");

    // Without a backend there, a reply is none.
    object.free(0);
    leaves(&object, &tcp(WEB, seen, ACK, 2, 101, b""), &tcp(WEB, seen, ACK, 2, 101, b""), "its backend is gone");
    assert_eq!(object.count(PassReason::BackendGone.index()), 1);
}

pub fn fragments_of_the_host_follow_their_first() {
    let object = object();
    let first: Shape = |a, b| fragment(udp(a, b, &[1; 16]), 7, 0, false);
    let later: Shape = |a, b| later_fragment(a, b, 7, 24, true, &[2; 9]);
    // Later fragments have no ports.
    let at = |side: Side| (side.0, 0);
    comes_in(&object, Door::Tc, &first(CLIENT, DATAGRAMS), &first(CLIENT, NAMES), 1, "the first");
    comes_in(&object, Door::Tc, &later(at(CLIENT), at(DATAGRAMS)), &later(at(CLIENT), at(NAMES)), 1, "the rest");
    leaves(&object, &first(NAMES, CLIENT), &first(DATAGRAMS, CLIENT), "the first of an answer");
    leaves(&object, &later(at(NAMES), at(CLIENT)), &later(at(DATAGRAMS), at(CLIENT)), "the rest of it");
    let near = |frame| with_ttl(frame, 1);
    let (sent, wanted) = (near(later(at(NAMES), at(CLIENT))), near(later(at(DATAGRAMS), at(CLIENT))));
    leaves(&object, &sent, &wanted, "one that may pass one router");

    let parts = |a, b| fragments(&v6::udp(a, b, &[3; 40]), 9, 24);
    let ask = parts(CLIENT_V6, DATAGRAMS_V6).into_iter().zip(parts(CLIENT_V6, NAMES_V6));
    ask.for_each(|(frame, wanted)| comes_in(&object, Door::Tc, &frame, &wanted, 3, "IPv6"));
    let answer = parts(NAMES_V6, CLIENT_V6).into_iter().zip(parts(DATAGRAMS_V6, CLIENT_V6));
    answer.for_each(|(frame, wanted)| leaves(&object, &frame, &wanted, "IPv6"));
}

pub fn errors_of_the_host_speak_of_the_frontend() {
    const PORT: (u8, u8) = (3, 3);
    const TOO_BIG: (u8, u8) = (3, 4);
    let object = object();
    object.run(Door::Tc, &udp(CLIENT, DATAGRAMS, b"?"));
    object.run(Door::Tc, &tcp(CLIENT, FRONTEND, SYN, 100, 0, b""));
    object.run(Door::Tc, &v6::udp(CLIENT_V6, DATAGRAMS_V6, b"?"));

    // Nobody listens at the server's port.
    for quoted in [8, 9] {
        let error = |server: Side| icmp_error(server.0, CLIENT.0, PORT, &udp(CLIENT, server, b"?"), quoted);
        leaves(&object, &error(NAMES), &error(DATAGRAMS), "port unreachable");
        leaves(&object, &with_ttl(error(NAMES), 1), &with_ttl(error(DATAGRAMS), 1), "to a neighbour");
    }
    let (did, out) = object
        .run(Door::Local, &v6::icmp_error(NAMES_V6.0, CLIENT_V6.0, (1, 4), &v6::udp(CLIENT_V6, NAMES_V6, b"?"), 9));
    let wanted = v6::icmp_error(DATAGRAMS_V6.0, CLIENT_V6.0, (1, 4), &v6::udp(CLIENT_V6, DATAGRAMS_V6, b"?"), 9);
    assert_eq!((did, out), (Action::Pass, wanted));

    // A router between the two tells the server about its answer, which is the frontend's there.
    let router = [198, 18, 77, 1];
    let error = |server: Side| icmp_error(router, server.0, TOO_BIG, &tcp(server, CLIENT, ACK, 1, 101, b"much"), 20);
    comes_in(&object, Door::Tc, &error(FRONTEND), &error(WEB), 0, "fragmentation needed");
    let near = |frame| with_ttl(frame, 1);
    comes_in(&object, Door::Tc, &near(error(FRONTEND)), &near(error(WEB)), 0, "by the next router");
    assert_eq!(object.count(Event::IcmpError.index()), 7);
}

pub fn what_ends_here_needs_no_more_routers() {
    let mut object = object();
    let shapes: [(Shape, Side, Side, u32); 2] =
        [(|a, b| tcp(a, b, SYN, 1, 0, b""), FRONTEND, WEB, 0), (|a, b| udp(a, b, b"?"), DATAGRAMS, NAMES, 1)];
    for (shape, frontend, server, id) in shapes {
        for ttl in [0, 1] {
            for _ in 0..2 {
                let (frame, wanted) = (with_ttl(shape(CLIENT, frontend), ttl), with_ttl(shape(CLIENT, server), 2));
                comes_in(&object, Door::Tc, &frame, &wanted, id, "one more router, for the sake of the way");
                assert_eq!(object.run(Door::Xdp, &frame), (Action::Pass, frame), "TC does it");
            }
        }
        comes_in(
            &object,
            Door::Tc,
            &with_ttl(shape(CLIENT, frontend), 2),
            &with_ttl(shape(CLIENT, server), 2),
            id,
            "2",
        );
    }
    let (frame, wanted) = (v6::udp(CLIENT_V6, DATAGRAMS_V6, b"?"), v6::udp(CLIENT_V6, NAMES_V6, b"?"));
    comes_in(&object, Door::Tc, &with_hops(frame, 1), &with_hops(wanted, 2), 3, "IPv6");
    assert_eq!(object.count(DropReason::TtlExpired.index()), 0);

    // What is left to the host is left as it came.
    for frame in [tcp(client(50_000), FRONTEND, ACK, 1, 2, b""), tcp(client(50_000), (FRONTEND.0, 22), SYN, 1, 0, b"")]
    {
        let frame = with_ttl(frame, 1);
        assert_eq!(object.run(Door::Tc, &frame), (Action::Pass, frame));
    }
    let frame = with_hops(v6::tcp((CLIENT_V6.0, 50_000), FRONTEND_V6, ACK, 1, 2, b""), 1);
    assert_eq!(object.run(Door::Tc, &frame), (Action::Pass, frame));
    assert_eq!(object.count(PassReason::NoFlow.index()), 2);

    // Fragments, too.
    let first: Shape = |a, b| fragment(udp(a, b, &[1; 16]), 7, 0, false);
    let later: Shape = |a, b| later_fragment((a.0, 0), (b.0, 0), 7, 24, true, &[2; 9]);
    comes_in(&object, Door::Tc, &with_ttl(first(CLIENT, DATAGRAMS), 1), &with_ttl(first(CLIENT, NAMES), 2), 1, "first");
    comes_in(&object, Door::Tc, &with_ttl(later(CLIENT, DATAGRAMS), 1), &with_ttl(later(CLIENT, NAMES), 1), 1, "later");

    // To another machine, this host is a router as ever.
    object.backend(4, 4, 1, ([198, 18, 2, 11], 5000));
    object.serve(4, (FRONTEND.0, 81), Proto::Tcp, &[4]);
    let (did, out) = object.run(Door::Tc, &with_ttl(tcp(CLIENT, (FRONTEND.0, 81), SYN, 1, 0, b""), 1));
    assert_eq!((did, judge_error(&out).unwrap().kind), (Action::Redirect, (11, 0)));
}

pub fn a_listener_of_the_host_is_asked_for_cookies() {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may leave");
            lab::run(Command::new("ip").args(["link", "set", "lo", "up"]));
            lab::run(Command::new("ip").args(["addr", "add", "198.18.1.1/32", "dev", "lo"]));
            // Whatever room there is.
            lab::run(Command::new("sysctl").args(["-qw", "net.ipv4.tcp_syncookies=2"]));
            let _listener = TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, WEB.1)).expect("the port is free");
            let object = object();
            let mss = |frame| with_tcp_options(frame, &[2, 4, 5, 0xb4]);

            let (did, out) = object.run(Door::Tc, &mss(tcp(CLIENT, FRONTEND, SYN, 100, 0, b"")));
            let answer = judge(&out).unwrap();
            assert_eq!((did, answer.from, answer.to), (Action::Redirect, FRONTEND, CLIENT));
            assert_eq!((object.count(Event::CookieIssued.index()), object.traffic(0).ingress_packets), (1, 0));
            // It leaves by the door that looks for the host's replies.
            leaves(&object, &out, &out, "our own answer");

            let cookie = u32::from_be_bytes(out[38..42].try_into().unwrap());
            let ack: Shape = |a, b| tcp(a, b, ACK, 101, 0, b"");
            let acknowledged = |frame: Vec<u8>| {
                let mut frame = frame;
                frame[42..46].copy_from_slice(&cookie.wrapping_add(1).to_be_bytes());
                sealed(frame)
            };
            let wanted = acknowledged(ack(CLIENT, WEB));
            comes_in(&object, Door::Tc, &acknowledged(ack(CLIENT, FRONTEND)), &wanted, 0, "the acknowledgement");
            assert_eq!(object.count(Event::CookieAccepted.index()), 1);
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// What the host sends is rewritten rightly or left as it is, whatever it is.
pub fn mutated() {
    let packets = std::env::var("LB_PACKETS").ok().and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let seed = std::env::var("LB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_126);
    eprintln!("LB_SEED={seed}");
    let object = object();
    let mut dice = Dice::new(seed);
    let mut templates = Vec::new();
    for number in 0..8 {
        let from = client(30_000 + number);
        object.run(Door::Tc, &tcp(from, FRONTEND, SYN, 100, 0, b""));
        object.run(Door::Local, &tcp(WEB, from, SYN | ACK, 900, 101, b""));
        object.run(Door::Tc, &tcp(from, FRONTEND, ACK, 101, 901, b""));
        object.run(Door::Tc, &udp(from, DATAGRAMS, b"?"));
        let payload = vec![number as u8; usize::from(number) * 13];
        templates.push(tcp(WEB, from, ACK, 901, 101, &payload));
        templates.push(with_ip_options(tcp(WEB, from, ACK, 901, 101, &payload), 3));
        templates.push(udp(NAMES, from, &payload));
        templates.push(icmp_error(NAMES.0, from.0, (3, 3), &udp(from, NAMES, b"?"), 9));
    }
    let mut out = vec![0; 2048];
    let (mut rewritten, mut left) = (0, 0);
    for number in 0..packets {
        let mut frame = templates[dice.below(templates.len())].clone();
        match dice.below(8) {
            0 => frame[14..].iter_mut().for_each(|byte| *byte = dice.below(256) as u8),
            1 => frame.truncate(34 + dice.below(frame.len() + 1 - 34)),
            2 => {}
            changes => {
                for _ in 0..changes - 2 {
                    let at = dice.below(frame.len().min(70));
                    frame[at] = dice.below(256) as u8;
                }
            }
        }
        if frame[12..14] == [0x86, 0xdd] && frame.len() < 54 {
            continue; // the kernel makes no such socket buffer
        }
        let (value, len) = object.run_into(Door::Local, &frame, &mut out);
        assert_eq!((action(Door::Local, value), len), (Action::Pass, frame.len()), "packet {number}");
        let came = &out[..len];
        if came == frame {
            left += 1;
            continue;
        }
        rewritten += 1;
        // An error may be a router's, whose address stays.
        let is_error = frame[23] == 1;
        let is_frontend = came[26..30] == FRONTEND.0;
        assert!((is_frontend || is_error) && came[30..34] == CLIENT.0, "packet {number}: {frame:02x?}");
        if let (Some(before), Some(after)) = (judge(&frame), judge(came)) {
            assert!(
                [FRONTEND, DATAGRAMS].contains(&after.from) && [WEB, NAMES].contains(&before.from),
                "packet {number}"
            );
            assert_eq!(
                (after.to, after.ttl, after.payload),
                (before.to, before.ttl, before.payload),
                "packet {number}"
            );
            assert_eq!((after.ip_sum, after.transport_sum), (before.ip_sum, before.transport_sum), "packet {number}");
        }
    }
    assert!(rewritten > packets / 20 && left > packets / 20, "{rewritten} {left}");
}
