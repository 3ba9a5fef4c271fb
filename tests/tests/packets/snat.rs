//! Backends that know clients by an address of the host, to which their replies come from anywhere.

use std::{collections::BTreeSet, net::Ipv6Addr};

use lb_ebpf::{
    abi::{Address, Backend, HandOff, Port, Proto},
    verdict::{DropReason, Event, PassReason},
};
use lb_tests::{
    frames::{ACK, SYN, Side, fragment, icmp_error, later_fragment, tcp, udp, v6},
    object::{Action, Door, Object, REACH},
};

use super::{BACKENDS, CLIENT, DATAGRAMS, FRONT_DOORS, FRONTEND, client, dropped, forwarded, passed, translated};

/// The address of the host.
const SNAT: [u8; 4] = [198, 18, 1, 1];
const PORTS: std::ops::Range<u16> = 1024..32_768;

/// An object whose frontends have one backend each, which knows no client.
fn object() -> Object {
    let mut object = Object::load();
    for id in [0, 1] {
        object.write_backend(id, backend(id, REACH));
    }
    object.serve(0, FRONTEND, Proto::Tcp, &[0]);
    object.serve(1, DATAGRAMS, Proto::Udp, &[1]);
    object
}

fn backend(frontend: u32, hand_off: HandOff) -> Backend {
    Backend::new(frontend, 1, Address::from_v4(BACKENDS[0].0), Port::new(BACKENDS[0].1))
        .reached_by(hand_off, 1, [6; 6], [7; 6])
        .beside(Address::from_v4(SNAT))
        .hiding_clients()
        .taking_xdp()
}

pub fn clients_are_hidden_from_syn_to_fin() {
    for door in FRONT_DOORS {
        let object = object();
        let mut seen = BTreeSet::new();
        // Two clients with the same port, and a third with another.
        for from in [CLIENT, ([198, 18, 1, 3], CLIENT.1), client(41_000)] {
            let syn = forwarded(&object, door, &tcp(from, FRONTEND, SYN, 100, 0, &[]));
            assert_eq!((syn.from.0, syn.to), (SNAT, BACKENDS[0]), "{door:?}");
            assert!(PORTS.contains(&syn.from.1) && seen.insert(syn.from), "{:?}", syn.from);
            let accepted = tcp(BACKENDS[0], syn.from, SYN | ACK, 900, 101, &[]);
            // It comes by the uplink: the front door leaves it to the reply door behind it.
            passed(&object, door, &accepted, PassReason::NotOurs);
            let answer = forwarded(&object, Door::Reply, &accepted);
            assert_eq!((answer.from, answer.to), (FRONTEND, from));
            for payload in [&b""[..], b"GET / HTTP/1.0\r\n\r\n"] {
                let ack = forwarded(&object, door, &tcp(from, FRONTEND, ACK, 101, 901, payload));
                assert_eq!((ack.from, ack.to), (syn.from, BACKENDS[0]));
            }
            assert!(object.flow(from, FRONTEND, Proto::Tcp).is_some(), "proven");
        }
        assert_eq!(object.count(Event::PortRemapped.index()), 0, "nobody's own port was taken");
    }
}

pub fn hidden_datagrams_fragments_and_errors_find_home() {
    let object = object();
    let asked = forwarded(&object, Door::Tc, &udp(CLIENT, DATAGRAMS, b"?"));
    assert_eq!((asked.from.0, asked.to), (SNAT, BACKENDS[0]));
    assert_eq!(forwarded(&object, Door::Tc, &udp(CLIENT, DATAGRAMS, b"??")).from, asked.from, "and stays");
    let seen = asked.from;

    let first = fragment(udp(BACKENDS[0], seen, &[1; 16]), 7, 0, false);
    let later = later_fragment(BACKENDS[0], seen, 7, 24, true, &[2; 8]);
    assert_eq!(object.run(Door::Tc, &first), (Action::Pass, first.clone()), "it is the reply door's");
    for frame in [&first, &later] {
        let (did, out) = object.run(Door::Reply, frame);
        assert_eq!((did, &out[26..30], &out[30..34]), (Action::Redirect, &DATAGRAMS.0[..], &CLIENT.0[..]));
    }
    passed(&object, Door::Tc, &later, PassReason::Fragment);

    // A router on the way to the backend, and the client's own host.
    let about = udp(seen, BACKENDS[0], b"?");
    let error = icmp_error([198, 18, 9, 9], SNAT, (3, 1), &about, 8);
    passed(&object, Door::Tc, &error, PassReason::Protocol);
    let told = translated(&object, Door::Reply, &error);
    assert_eq!((told.from, told.to, told.about), ([198, 18, 9, 9], CLIENT.0, (CLIENT, DATAGRAMS)));
    let error = icmp_error(CLIENT.0, DATAGRAMS.0, (3, 3), &udp(DATAGRAMS, CLIENT, b"!"), 8);
    let told = translated(&object, Door::Tc, &error);
    assert_eq!((told.to, told.about), (BACKENDS[0].0, (BACKENDS[0], seen)));
}

pub fn clients_of_ipv6_are_hidden() {
    let (at, server): (v6::Side, v6::Side) = ((v6::address(1, 1), 80), (v6::address(2, 11), 5000));
    let from: v6::Side = (v6::address(1, 2), 40_000);
    let mut object = Object::load();
    let backend = Backend::new(0, 1, Address::from(Ipv6Addr::from(server.0)), Port::new(server.1))
        .reached_by(REACH, 1, [6; 6], [7; 6])
        .beside(Address::from(Ipv6Addr::from(at.0)))
        .hiding_clients()
        .taking_xdp();
    object.write_backend(0, backend);
    object.serve(0, at, Proto::Tcp, &[0]);
    for door in FRONT_DOORS {
        let (did, out) = object.run(door, &v6::tcp(from, at, SYN, 100, 0, &[]));
        let syn = v6::judge(&out).unwrap();
        assert_eq!((did, syn.from.0, syn.to, syn.sum), (Action::Redirect, at.0, server, true), "{door:?}");
        let (_, out) = object.run(Door::Reply, &v6::tcp(server, syn.from, SYN | ACK, 900, 101, &[]));
        let answer = v6::judge(&out).unwrap();
        assert_eq!((answer.from, answer.to, answer.sum), (at, from, true));
    }
}

pub fn a_reply_to_the_port_of_a_frontend_is_no_clients() {
    let mut object = object();
    // An eighth of all ports are frontends' at the same address.
    let taken: BTreeSet<u16> = PORTS.step_by(8).collect();
    for &port in &taken {
        for (frontend, proto) in [(0, Proto::Tcp), (1, Proto::Udp)] {
            object.serve(frontend, (SNAT, port), proto, &[frontend]);
        }
    }
    object.serve(1, DATAGRAMS, Proto::Udp, &[1]);
    let mut met = 0;
    for port in 40_000..40_040 {
        let asked = forwarded(&object, Door::Tc, &udp(client(port), DATAGRAMS, b"?"));
        let syn = forwarded(&object, Door::Tc, &tcp(client(port), FRONTEND, SYN, 100, 0, &[]));
        met += usize::from(taken.contains(&asked.from.1)) + usize::from(taken.contains(&syn.from.1));

        let replies = [udp(BACKENDS[0], asked.from, b"!"), tcp(BACKENDS[0], syn.from, SYN | ACK, 900, 101, &[])];
        for (reply, at) in replies.iter().zip([DATAGRAMS, FRONTEND]) {
            for door in FRONT_DOORS {
                assert_eq!(object.run(door, reply), (Action::Pass, reply.clone()), "{door:?}");
            }
            let answer = forwarded(&object, Door::Reply, reply);
            assert_eq!((answer.from, answer.to), (at, client(port)));
        }
    }
    assert!(met > 0, "none of 80 has met one, of which every eighth should");
}

pub fn routing_hides_nobody() {
    let mut object = object();
    object.write_backend(0, backend(0, HandOff::Routing));
    for door in FRONT_DOORS {
        dropped(&object, door, &tcp(CLIENT, FRONTEND, SYN, 1, 0, &[]), DropReason::NoStandIn);
    }
    let other: Side = ([198, 18, 1, 9], 40_000);
    object.write_backend(0, backend(0, REACH));
    assert_eq!(forwarded(&object, Door::Tc, &tcp(other, FRONTEND, SYN, 1, 0, &[])).from.0, SNAT);
}
