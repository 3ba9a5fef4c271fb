//! The time from a client's first request to its backend's answer: what is counted, once, and what is none.

use std::{thread, time::Duration};

use lb_ebpf::abi::{Histogram, Proto, REQUEST_ASKED};
use lb_tests::{
    frames::{ACK, FIN, SYN, tcp, udp, with_tcp_options},
    object::{Door, Object},
};

use super::{BACKENDS, CLIENT, DATAGRAMS, FRONT_DOORS, FRONTEND, Side, client, forwarded, object, open};

const WAIT: Duration = Duration::from_millis(20);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// What follows [`REQUEST`] in a connection of [`open`].
const NEXT: u32 = 101 + REQUEST.len() as u32;

/// How many answers of a backend were counted.
fn counted(object: &Object, id: u32) -> u64 {
    object.handshakes(id).response.total()
}

fn request(from: Side) -> Vec<u8> {
    tcp(from, FRONTEND, ACK, 101, 901, REQUEST)
}

fn answer(backend: Side, to: Side) -> Vec<u8> {
    tcp(backend, to, ACK, 901, NEXT, b"HTTP/1.1 200 OK\r\n\r\n")
}

pub fn the_answer_to_a_first_request_is_timed_once() {
    for door in FRONT_DOORS {
        let object = object();
        let backend = open(&object, door, CLIENT, FRONTEND);
        assert_eq!(object.reply(backend, CLIENT, Proto::Tcp).unwrap().request, 0);
        forwarded(&object, door, &request(CLIENT));
        assert_eq!(object.reply(backend, CLIENT, Proto::Tcp).unwrap().request, REQUEST_ASKED, "{door:?}");
        thread::sleep(WAIT);
        assert_eq!(counted(&object, 0), 0, "nobody has answered");
        forwarded(&object, Door::Reply, &answer(backend, CLIENT));

        let response = object.handshakes(0).response;
        let least = Histogram::place(WAIT.as_nanos() as u64);
        assert_eq!(response.total(), 1, "{door:?}");
        assert!((least..least + 5).any(|place| response.counts[place] == 1), "{door:?}: {response:?}");

        // The rest of the answer, the next request and its answer.
        forwarded(&object, Door::Reply, &tcp(backend, CLIENT, ACK, 920, NEXT, &[7; 1400]));
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, NEXT, 2320, REQUEST));
        forwarded(&object, Door::Reply, &tcp(backend, CLIENT, ACK, 2320, NEXT + REQUEST.len() as u32, b"200"));
        assert_eq!(object.handshakes(0).response, response, "{door:?}: the first alone");
        assert_eq!((counted(&object, 1), counted(&object, 2)), (0, 0));

        // Another connection from the same port is another beginning.
        let end = NEXT + REQUEST.len() as u32;
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, FIN | ACK, end, 2323, b""));
        forwarded(&object, Door::Reply, &tcp(backend, CLIENT, FIN | ACK, 2323, end + 1, b""));
        let other = open(&object, door, CLIENT, FRONTEND);
        assert_eq!((backend, other), (BACKENDS[0], BACKENDS[1]));
        forwarded(&object, door, &request(CLIENT));
        forwarded(&object, Door::Reply, &answer(other, CLIENT));
        assert_eq!((counted(&object, 0), counted(&object, 1)), (1, 1), "{door:?}");
    }
}

pub fn a_request_that_comes_again_does_not_start_the_clock_again() {
    for door in FRONT_DOORS {
        let object = object();
        let backend = open(&object, door, CLIENT, FRONTEND);
        forwarded(&object, door, &request(CLIENT));
        let began = object.reply(backend, CLIENT, Proto::Tcp).unwrap().requested_at;
        thread::sleep(WAIT);
        forwarded(&object, door, &request(CLIENT));
        // Nor does what follows it.
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, NEXT, 901, &[7; 500]));
        assert_eq!(object.reply(backend, CLIENT, Proto::Tcp).unwrap().requested_at, began, "{door:?}");

        // By a bare acknowledgement it is only heard.
        forwarded(&object, Door::Reply, &tcp(backend, CLIENT, ACK, 901, NEXT, b""));
        assert_eq!(counted(&object, 0), 0, "{door:?}");
        forwarded(&object, Door::Reply, &answer(backend, CLIENT));
        let response = object.handshakes(0).response;
        assert_eq!(response.total(), 1, "{door:?}");
        assert!(response.quantile_us(1).is_some_and(|us| us > WAIT.as_micros() as u64), "{door:?}: {response:?}");
        forwarded(&object, door, &request(CLIENT));
        forwarded(&object, Door::Reply, &answer(backend, CLIENT));
        assert_eq!(counted(&object, 0), 1, "{door:?}: both once more, late");
    }
}

pub fn a_server_that_speaks_first_answers_nothing() {
    for door in FRONT_DOORS {
        let object = object();
        let backend = open(&object, door, CLIENT, FRONTEND);
        let banner = |sequence| tcp(backend, CLIENT, ACK, sequence, 101, b"220 ready\r\n");
        forwarded(&object, Door::Reply, &banner(901));
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 912, b""));
        assert_eq!(counted(&object, 0), 0, "{door:?}: nobody has asked");

        // What it says while the first request is on its way is no answer to that.
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 912, REQUEST));
        forwarded(&object, Door::Reply, &banner(912));
        assert_eq!(counted(&object, 0), 0, "{door:?}: nor heard anything");
        forwarded(&object, Door::Reply, &tcp(backend, CLIENT, ACK, 923, NEXT, b"250 ok\r\n"));
        assert_eq!(counted(&object, 0), 1, "{door:?}");
    }
}

pub fn what_is_no_request_starts_no_clock() {
    for door in FRONT_DOORS {
        let object = object();
        let backend = open(&object, door, CLIENT, FRONTEND);
        let asked = || object.reply(backend, CLIENT, Proto::Tcp).unwrap().request;
        let silent = |frame: &[u8], what: &str| {
            forwarded(&object, door, frame);
            assert_eq!(asked(), 0, "{door:?}: {what}");
        };

        silent(&tcp(CLIENT, FRONTEND, ACK, 101, 901, b""), "an acknowledgement");
        silent(&tcp(CLIENT, FRONTEND, ACK, 100, 901, b"?"), "a probe whether the connection is there");
        silent(&tcp(CLIENT, FRONTEND, ACK, 101 + (1 << 20), 901, REQUEST), "beyond the window");
        silent(&with_tcp_options(tcp(CLIENT, FRONTEND, ACK, 101, 901, b""), &[1; 12]), "options");
        let mut filled = tcp(CLIENT, FRONTEND, ACK, 101, 901, b"");
        filled.resize(60, 0);
        object.run(door, &filled);
        assert_eq!(asked(), 0, "{door:?}: a frame of the least length, filled up");

        // What a backend's frames are filled up with is no answer.
        forwarded(&object, door, &tcp(CLIENT, FRONTEND, ACK, 101, 901, b"?"));
        assert_eq!(asked(), REQUEST_ASKED, "{door:?}: one byte");
        let mut filled = tcp(backend, CLIENT, ACK, 901, 102, b"");
        filled.resize(60, 0);
        object.run(Door::Reply, &filled);
        assert_eq!(counted(&object, 0), 0, "{door:?}");
        forwarded(&object, Door::Reply, &tcp(backend, CLIENT, ACK | FIN, 901, 102, b"!"));
        assert_eq!(counted(&object, 0), 1, "{door:?}: an answer of one byte, with the end");

        forwarded(&object, door, &udp(CLIENT, DATAGRAMS, b"question"));
        forwarded(&object, Door::Reply, &udp(BACKENDS[0], CLIENT, b"answer"));
        assert_eq!(counted(&object, 3), 0, "{door:?}: datagrams are none");
    }
}

pub fn a_request_may_ride_on_the_acknowledgement_that_proves() {
    for door in FRONT_DOORS {
        let object = object();
        let from = client(41_000);
        let backend = forwarded(&object, door, &tcp(from, FRONTEND, SYN, 100, 0, &[])).to;
        // Before the client is proven, anybody may have sent it.
        forwarded(&object, door, &tcp(from, FRONTEND, ACK, 101, 7, REQUEST));
        forwarded(&object, Door::Reply, &tcp(backend, from, SYN | ACK, 900, 101, &[]));
        assert!(object.reply(backend, from, Proto::Tcp).is_none());

        forwarded(&object, door, &request(from));
        assert_eq!(object.reply(backend, from, Proto::Tcp).unwrap().request, REQUEST_ASKED, "{door:?}");
        // The acceptance once more: what it acknowledged before.
        forwarded(&object, Door::Reply, &tcp(backend, from, SYN | ACK, 900, 101, &[]));
        thread::sleep(WAIT);
        forwarded(&object, Door::Reply, &answer(backend, from));
        let response = object.handshakes(0).response;
        assert_eq!(response.total(), 1, "{door:?}");
        assert!(response.quantile_us(1).is_some_and(|us| us > WAIT.as_micros() as u64), "{door:?}: {response:?}");
    }
}

pub fn where_there_is_no_room_for_the_proven_requests_are_timed_as_well() {
    for door in FRONT_DOORS {
        let mut object = Object::load_with(1, 64);
        super::set_up(&mut object);
        open(&object, door, CLIENT, FRONTEND);
        let from = client(41_000);
        let backend = open(&object, door, from, FRONTEND);
        assert!(object.flow(from, FRONTEND, Proto::Tcp).is_none(), "it has stayed where it was");

        forwarded(&object, door, &request(from));
        forwarded(&object, Door::Reply, &answer(backend, from));
        assert_eq!((counted(&object, 0), counted(&object, 1)), (0, 1), "{door:?}");
    }
}
