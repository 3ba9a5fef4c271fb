//! The way to a backend: how far it is, and how wide.

use std::{process::Command, thread};

use lb_ebpf::{
    abi::{Address, Backend, HandOff, Port, Proto},
    verdict::{DropReason, Event, PassReason},
};
use lb_tests::{
    frames::{
        ACK, SYN, fragment, icmp_error, judge, judge_error, later_fragment, tcp, udp,
        v6::{self, judge as judge_v6, judge_error as judge_error_v6},
        with_ttl,
    },
    lab,
    object::{Action, Door, NOTE_MARK, Object},
};
use nix::sched::{CloneFlags, unshare};

use super::{BACKENDS, CLIENT, DATAGRAMS, FRONT_DOORS, FRONTEND, answered};

/// The packets of IPv6, of the same clients and servers.
const CLIENT_V6: v6::Side = (v6::address(1, 2), 40_000);
const DATAGRAMS_V6: v6::Side = (v6::address(1, 1), 53);
const BACKEND_V6: v6::Side = (v6::address(2, 11), 5000);
/// What the only device of a namespace takes there.
const MTU: u16 = 1300;

/// An object whose frontends have a backend each that is reached by the first device of the namespace.
fn reached_by(hand_off: HandOff) -> Object {
    let mut object = Object::load();
    let address = Address::from_v4(BACKENDS[0].0);
    let all =
        [(address, 5000, 0), (address, 5000, 1), (Address::from(std::net::Ipv6Addr::from(BACKEND_V6.0)), 5000, 2)];
    for (address, port, frontend) in all {
        let backend = Backend::new(frontend, 1, address, Port::new(port)).reached_by(hand_off, 1, [6; 6], [7; 6]);
        object.write_backend(frontend, backend);
    }
    object.serve(0, FRONTEND, Proto::Tcp, &[0]);
    object.serve(1, DATAGRAMS, Proto::Udp, &[1]);
    object.serve(2, DATAGRAMS_V6, Proto::Udp, &[2]);
    object
}

/// Lets a packet be cut by routers.
fn may_be_cut(mut frame: Vec<u8>) -> Vec<u8> {
    frame[20] = 0;
    with_ttl(frame, 64)
}

/// Runs in a namespace of its own, whose only device takes packets of [`MTU`] bytes.
fn on_a_narrow_device(work: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may leave");
            lab::run(Command::new("ip").args(["link", "set", "lo", "mtu", &MTU.to_string()]));
            work();
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

pub fn what_is_too_big_for_the_way_is_told_so() {
    on_a_narrow_device(|| {
        for hand_off in [HandOff::Neighbour, HandOff::Routing] {
            let object = reached_by(hand_off);
            let (big, fits) = (udp(CLIENT, DATAGRAMS, &[1; 1400]), udp(CLIENT, DATAGRAMS, &[1; 1272]));

            let answer = answered(&object, Door::Tc, &big, DropReason::TooBig);
            assert_eq!((answer.from, answer.kind, answer.mtu), (DATAGRAMS.0, (3, 4), MTU), "{hand_off:?}");
            assert_eq!(object.run(Door::Xdp, &big), (Action::Pass, noted(1, MTU, &big)), "{hand_off:?}: TC answers");
            assert_eq!(object.traffic(1).ingress_packets, 2, "each was counted once");

            let (tc, xdp) = (object.run(Door::Tc, &fits), object.run(Door::Xdp, &fits));
            let expected = if hand_off == HandOff::Routing { Action::Route } else { Action::Redirect };
            assert_eq!((tc.0, xdp.0), (expected, Action::Pass));
            let rewritten = &xdp.1[xdp.1.len() - fits.len()..];
            assert!([&tc.1[..], rewritten].iter().all(|out| judge(out).is_some_and(|out| out.to == BACKENDS[0])));

            let big = v6::udp(CLIENT_V6, DATAGRAMS_V6, &[1; 1400]);
            let (did, out) = object.run(Door::Tc, &big);
            let answer = judge_error_v6(&out).unwrap();
            assert_eq!((did, answer.kind, answer.word, answer.from), (Action::Redirect, (2, 0), 1300, DATAGRAMS_V6.0));
            assert_eq!(object.run(Door::Xdp, &big), (Action::Pass, noted(2, MTU, &big)), "{hand_off:?}");
            assert_eq!(object.count(DropReason::TooBig.index()), 2);
        }
    });
}

/// Returns a frame that XDP leaves to TC, with its note in front.
fn noted(backend: u32, mtu: u16, frame: &[u8]) -> Vec<u8> {
    [&NOTE_MARK.to_ne_bytes()[..], &backend.to_ne_bytes(), &u32::from(mtu).to_ne_bytes(), frame].concat()
}

pub fn routing_cuts_what_may_be_cut() {
    on_a_narrow_device(|| {
        let big = may_be_cut(udp(CLIENT, DATAGRAMS, &[1; 1400]));
        let object = reached_by(HandOff::Routing);
        assert_eq!(object.run(Door::Tc, &big).0, Action::Route);
        let (did, out) = object.run(Door::Xdp, &big);
        assert_eq!((did, out.len(), judge(&out).unwrap().to), (Action::Pass, big.len(), BACKENDS[0]));
        answered(&reached_by(HandOff::Neighbour), Door::Tc, &big, DropReason::TooBig);
    });
}

pub fn a_redirect_into_a_container_asks_for_no_mtu() {
    on_a_narrow_device(|| {
        let object = reached_by(HandOff::Peer);
        let big = udp(CLIENT, DATAGRAMS, &[1; 1400]);
        assert_eq!(object.run(Door::Tc, &big).0, Action::Redirect);
        let (did, out) = object.run(Door::Xdp, &big);
        assert_eq!((did, &out[..12]), (Action::Pass, &noted(1, 0, &[])[..]));
    });
}

pub fn who_has_no_room_for_a_note_is_left_as_it_came() {
    for hand_off in [HandOff::Peer, HandOff::Neighbour] {
        let object = reached_by(hand_off);
        let syn = tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]);

        let (did, out) = object.run_behind_metadata(&syn);

        assert_eq!((did, &out[out.len() - syn.len()..]), (Action::Pass, &syn[..]), "{hand_off:?}");
        assert!(out[..out.len() - syn.len()].iter().all(|byte| *byte == 0xab), "{hand_off:?}: no note");
        assert_eq!(object.count(PassReason::NoMetadata.index()), 1);
        // It is TC's, which sees it next, and finds the flow.
        let (did, out) = object.run(Door::Tc, &syn);
        assert_eq!((did, judge(&out).unwrap().to), (Action::Redirect, BACKENDS[0]));
        assert_eq!(object.traffic(0).connections, 1, "{hand_off:?}");
    }
}

pub fn routing_takes_its_own_hop() {
    for (hand_off, ours) in [(HandOff::Routing, 0), (HandOff::Neighbour, 1), (HandOff::Peer, 1)] {
        for door in FRONT_DOORS {
            let object = reached_by(hand_off);
            let out = |frame: &[u8]| {
                let (_, out) = object.run(door, frame);
                out[out.len() - frame.len()..].to_vec()
            };
            let syn = out(&with_ttl(tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]), 2));
            let judged = judge(&syn).unwrap();
            assert_eq!((judged.to, judged.ttl), (BACKENDS[0], 2 - ours), "{hand_off:?} {door:?}");
            assert!(judged.ip_sum && judged.transport_sum);
            let datagram = out(&v6::with_hops(v6::udp(CLIENT_V6, DATAGRAMS_V6, b"?"), 2));
            let judged = judge_v6(&datagram).unwrap();
            assert_eq!((judged.to, judged.hops, judged.sum), (BACKEND_V6, 2 - ours, true), "{hand_off:?} {door:?}");
        }
        // At its end, it ends here: the kernel's own answer would speak of addresses that the client does not know.
        let object = reached_by(hand_off);
        answered(&object, Door::Tc, &with_ttl(tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]), 1), DropReason::TtlExpired);

        // The same of fragments, and of errors about what a backend has sent.
        let first = fragment(udp(CLIENT, DATAGRAMS, &[1; 16]), 7, 0, false);
        assert_eq!(judge_ttl(&object, &first), 64 - ours);
        assert_eq!(judge_ttl(&object, &later_fragment(CLIENT, DATAGRAMS, 7, 24, true, &[2; 8])), 64 - ours);
        object.run(Door::Tc, &tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]));
        let about = tcp(FRONTEND, CLIENT, SYN | ACK, 1, 2, &[]);
        let error = icmp_error([198, 18, 9, 9], FRONTEND.0, (3, 1), &about, 20);
        let (_, out) = object.run(Door::Tc, &error);
        assert_eq!((judge_error(&out).unwrap().sums, out[22]), ([true; 3], 64 - ours), "{hand_off:?}");
        assert_eq!(object.count(Event::IcmpError.index()), 1);
    }
}

/// Sends a frame through the front door, and returns the time to live with which it goes on.
fn judge_ttl(object: &Object, frame: &[u8]) -> u8 {
    let (did, out) = object.run(Door::Tc, frame);
    assert!(matches!(did, Action::Redirect | Action::Route), "{did:?}");
    assert_eq!(out[30..34], BACKENDS[0].0);
    out[22]
}
