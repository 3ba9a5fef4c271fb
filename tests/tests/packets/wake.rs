//! Backends that are asleep: who begins a flow wakes them, and nobody else does.

use std::{thread, time::Duration};

use lb_ebpf::{abi::Proto, verdict::Event};
use lb_tests::{
    frames::{ACK, SYN, tcp, udp},
    object::{Door, Object},
};

use super::{BACKENDS, CLIENT, DATAGRAMS, FRONT_DOORS, FRONTEND, client, forwarded};

/// Longer than the least time between two wakings, by the kernel's tick.
const PAUSE: Duration = Duration::from_millis(20);

/// An object whose frontends have one backend each, of which the first is of generation 7.
fn object() -> Object {
    let mut object = Object::load();
    object.backend(0, 0, 7, BACKENDS[0]);
    object.backend(1, 1, 1, BACKENDS[0]);
    object.serve(0, FRONTEND, Proto::Tcp, &[0]);
    object.serve(1, DATAGRAMS, Proto::Udp, &[1]);
    object
}

pub fn who_begins_wakes_a_backend_that_is_asleep() {
    for door in FRONT_DOORS {
        let mut object = object();
        let syn = |port| tcp(client(port), FRONTEND, SYN, 100, 0, &[]);
        forwarded(&object, door, &syn(41_000));
        assert_eq!(object.wakes(), [], "{door:?}: nobody sleeps");
        object.sleep(0);
        object.sleep(1);

        let sent = forwarded(&object, door, &syn(CLIENT.1));
        assert_eq!(sent.to, BACKENDS[0], "its way is that of any other");
        assert_eq!(object.wakes(), [(0, 7)], "{door:?}");

        thread::sleep(PAUSE);
        forwarded(&object, Door::Reply, &tcp(BACKENDS[0], CLIENT, SYN | ACK, 900, 101, &[]));
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, b"GET / HTTP/1.0\r\n\r\n"));
        assert_eq!(object.wakes(), [], "{door:?}: what goes on asks for nothing");

        forwarded(&object, door, &syn(41_000));
        assert_eq!(object.wakes(), [(0, 7)], "{door:?}: a SYN that is repeated");

        let datagram = udp(CLIENT, DATAGRAMS, b"?");
        forwarded(&object, door, &datagram);
        assert_eq!(object.wakes(), [(1, 1)], "{door:?}: each backend for itself, whenever another was woken");
        thread::sleep(PAUSE);
        forwarded(&object, door, &datagram);
        assert_eq!(object.wakes(), [], "{door:?}: the flow is there");
        assert_eq!(object.count(Event::Woken.index()), 3);
    }
}

pub fn a_flood_wakes_a_backend_but_now_and_then() {
    let mut object = object();
    object.sleep(0);
    let began = std::time::Instant::now();
    for port in 20_000..22_000 {
        forwarded(&object, Door::Tc, &tcp(client(port), FRONTEND, SYN, 100, 0, &[]));
    }
    let most = 2 + began.elapsed().as_millis();

    let wakes = object.wakes().len() as u128;
    assert!((1..=most).contains(&wakes), "{wakes} in {most} ms, of 2000 SYNs");
    assert_eq!(u128::from(object.count(Event::Woken.index())), wakes);
}

pub fn wakings_that_nobody_reads_end_nothing() {
    let mut object = Object::load();
    // Each has a pause of its own: so all are told at once.
    for id in 0..400 {
        object.backend(id, 0, 1, BACKENDS[0]);
        object.sleep(id);
    }
    object.serve(0, FRONTEND, Proto::Tcp, &(0..400).collect::<Vec<_>>());
    for port in 20_000..20_400 {
        forwarded(&object, Door::Tc, &tcp(client(port), FRONTEND, SYN, 100, 0, &[]));
    }

    let (woken, lost) = (object.count(Event::Woken.index()), object.count(Event::WakeLost.index()));
    assert_eq!(woken + lost, 400, "each SYN was sent on, and told or counted");
    assert!((200..400).contains(&woken), "{woken}");
    assert_eq!(object.wakes().len() as u64, woken);

    thread::sleep(PAUSE);
    let before = object.count(Event::Woken.index());
    forwarded(&object, Door::Tc, &tcp(client(30_000), FRONTEND, SYN, 100, 0, &[]));
    assert_eq!(object.count(Event::Woken.index()), before + 1, "who was read makes room");
}
