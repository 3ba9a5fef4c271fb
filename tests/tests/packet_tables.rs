//! Tables of single packets through the real object: what is known of the connection, the packet that comes, and what has to
//! become of it. Requests go through both front doors, replies through theirs.
//!
//! A packet is written once, as what one side sends to the other. It goes in between the sides that its sender knows, and
//! has to come out between those that its receiver knows, to the byte: [`Sent`], [`Next`].

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use lb_ebpf::{
    abi::{BackendId, FrontendId, Proto},
    verdict::{DropReason, PassReason},
};
use lb_tests::{
    frames::{
        ACK, FIN, RST, SYN, Side, fragment, icmp_error, judge, judge_error, later_fragment, sealed, tcp, udp,
        with_ip_options, with_tcp_options, with_ttl,
    },
    object::{Action, Door, Object},
    suite::{self, Need},
};

use Fate::{Answered, Dropped, Next, Passed, Sent};
use Given::{
    Accepted, Answers, Asked, BackendClosed, ClientClosed, Closed, Gone, HalfOpen, Moved, New, NewDatagram, Open,
    OtherPort, OwnClient, Reset,
};

const FRONTEND: Side = ([198, 18, 1, 1], 80);
const DATAGRAMS: Side = ([198, 18, 1, 1], 53);
/// A second frontend of the first backend.
const OTHER: Side = ([198, 18, 1, 1], 81);
/// One whose backends come and go.
const FICKLE: Side = ([198, 18, 1, 1], 82);
const HOST: [u8; 4] = [198, 18, 2, 1];
const ROUTER: [u8; 4] = [198, 18, 77, 1];
const BACKENDS: [Side; 3] = [([198, 18, 2, 11], 5000), ([198, 18, 2, 12], 5000), ([198, 18, 2, 13], 5001)];
const FICKLE_BACKENDS: [Side; 2] = [([198, 18, 2, 21], 5000), ([198, 18, 2, 22], 5000)];
const ALONE: Side = ([198, 18, 2, 31], 5000);

/// What has happened between client and backend before the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    /// Nothing; the packet is for the frontend of TCP.
    New,
    /// The client has sent a SYN.
    HalfOpen,
    /// The backend has accepted.
    Accepted,
    /// The client has acknowledged that.
    Open,
    /// The client has closed its half.
    ClientClosed,
    /// The backend has closed its half.
    BackendClosed,
    /// Both have.
    Closed,
    /// The backend has refused.
    Reset,
    /// It was open, and its backend is no more.
    Gone,
    /// It was closed, and the client's port has a connection to another backend; the reply is of the former one.
    Moved,
    /// It is open, under another port at the backend, where the client's own was taken.
    OtherPort,
    /// It is open, and the client is the backend itself, which knows the host as its client.
    OwnClient,
    /// Nothing; the packet is for the frontend of UDP.
    NewDatagram,
    /// The client has sent a datagram.
    Asked,
    /// The backend has answered it.
    Answers,
}

/// What has to become of the packet.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It comes out between the other sides, a router further.
    Sent,
    /// The same, and begins a connection at the backend whose turn it is.
    Next,
    /// It is left as it is.
    Passed(PassReason),
    /// It is ended.
    Dropped(DropReason),
    /// It is ended, and its sender is told by ICMP, type and code, by this host under one of its addresses.
    Answered(DropReason, (u8, u8), [u8; 4]),
}

/// What one side sends to the other.
type Shape = fn(Side, Side) -> Vec<u8>;

/// Which door sees the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Both front doors do the same.
    Both,
    /// TC does it; XDP leaves the packet to TC.
    Tc,
    /// The reply door.
    Reply,
}

/// A row of a table.
struct Row(&'static str, Given, Shape, Fate);

fn main() -> ExitCode {
    let scene = Arc::new(Mutex::new(None));
    let mut cases = Vec::new();
    let tables = [(At::Both, "request", REQUESTS), (At::Tc, "request", REQUESTS_OF_TC), (At::Reply, "reply", REPLIES)];
    for (at, kind, rows) in tables {
        for (number, row) in rows.iter().enumerate() {
            let doors: &[(Door, &str)] = match at {
                At::Both | At::Tc => &[(Door::Tc, "tc"), (Door::Xdp, "xdp")],
                At::Reply => &[(Door::Reply, "tc")],
            };
            for &(door, hook) in doors {
                let left_to_tc = at == At::Tc && door == Door::Xdp;
                let name =
                    format!("{kind} {hook}, {:?}: {}{}", row.1, row.0, if left_to_tc { " (left to tc)" } else { "" });
                let (scene, row) = (scene.clone(), &rows[number]);
                let run = move || {
                    // A row that has failed leaves the next ones a scene of their own.
                    let mut place = scene.lock().unwrap_or_else(PoisonError::into_inner);
                    let mut current = place.take().unwrap_or_else(Scene::new);
                    current.play(row, door, left_to_tc);
                    *place = Some(current);
                };
                cases.push((name, Box::new(run) as Box<dyn FnOnce() + Send>));
            }
        }
    }
    suite::run_named(&[Need::Root], cases)
}

fn syn(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, SYN, 100, 0, b"")
}
fn ack(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, ACK, 101, 901, b"")
}
fn data(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, ACK, 101, 901, b"GET / HTTP/1.1\r\n\r\n")
}
fn fin(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, FIN | ACK, 101, 901, b"")
}
fn rst(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, RST, 101, 0, b"")
}
fn syn_ack(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, SYN | ACK, 100, 901, b"")
}
fn accept(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, SYN | ACK, 900, 101, b"")
}
fn refuse(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, RST | ACK, 0, 101, b"")
}
fn answer(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, ACK, 901, 101, b"HTTP/1.1 200 OK\r\n\r\n")
}
fn close(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, FIN | ACK, 901, 101, b"")
}
fn reset(a: Side, b: Side) -> Vec<u8> {
    tcp(a, b, RST, 901, 0, b"")
}
fn ask(a: Side, b: Side) -> Vec<u8> {
    udp(a, b, b"question")
}
/// Changes a byte without correcting anything.
fn with(mut frame: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    frame[at] = value;
    frame
}
fn without_sum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[40..42].fill(0);
    frame
}
/// An error about what the receiver has sent, from a router.
fn error(b: Side, kind: (u8, u8), about: &[u8], quoted: usize) -> Vec<u8> {
    icmp_error(ROUTER, b.0, kind, about, quoted)
}
const TOO_BIG: (u8, u8) = (3, 4);
const PORT: (u8, u8) = (3, 3);
const TIME: (u8, u8) = (11, 0);

use DropReason::{StaleReply, TtlExpired};
use PassReason::{BackendGone, Fragment, Malformed, NoFlow, NotIp, NotOurs, NotReply, Protocol, Vlan};

/// From client to frontend, through either front door.
const REQUESTS: &[Row] = &[
    Row("a SYN begins a connection", New, syn, Next),
    Row("a SYN with data begins one", New, |a, b| tcp(a, b, SYN, 100, 0, b"fast open"), Next),
    Row("a SYN with ECN begins one", New, |a, b| sealed(with(syn(a, b), 47, 0xc2)), Next),
    Row("a SYN with options begins one", New, |a, b| with_tcp_options(syn(a, b), &[2, 4, 5, 0xb4, 1, 3, 3, 7]), Next),
    Row("a SYN of port 1 begins one", New, |a, b| syn((a.0, 1), b), Next),
    Row("a SYN of port 65535 begins one", New, |a, b| syn((a.0, 65_535), b), Next),
    Row("an ACK belongs to nothing", New, ack, Passed(NoFlow)),
    Row("data belong to nothing", New, data, Passed(NoFlow)),
    Row("a FIN belongs to nothing", New, fin, Passed(NoFlow)),
    Row("a RST belongs to nothing", New, rst, Passed(NoFlow)),
    Row("a SYN-ACK belongs to nothing", New, syn_ack, Passed(NoFlow)),
    Row("a SYN with FIN belongs to nothing", New, |a, b| tcp(a, b, SYN | FIN, 1, 0, b""), Passed(NoFlow)),
    Row("a SYN with RST belongs to nothing", New, |a, b| tcp(a, b, SYN | RST, 1, 0, b""), Passed(NoFlow)),
    Row("no flag at all belongs to nothing", New, |a, b| tcp(a, b, 0, 1, 0, b""), Passed(NoFlow)),
    Row("all flags belong to nothing", New, |a, b| sealed(with(syn(a, b), 47, 0xff)), Passed(NoFlow)),
    Row("another port", New, |a, b| syn(a, (b.0, 83)), Passed(NotOurs)),
    Row("port 0", New, |a, b| syn(a, (b.0, 0)), Passed(NotOurs)),
    Row("another address", New, |a, b| syn(a, ([198, 18, 1, 9], b.1)), Passed(NotOurs)),
    Row("a backend itself", New, |a, _| syn(a, BACKENDS[0]), Passed(NotOurs)),
    Row("broadcast", New, |a, b| syn(a, ([255; 4], b.1)), Passed(NotOurs)),
    Row("multicast", New, |a, b| syn(a, ([224, 0, 0, 1], b.1)), Passed(NotOurs)),
    Row("the port of TCP by UDP", New, ask, Passed(NotOurs)),
    Row("ARP", New, |a, b| with(with(syn(a, b), 12, 8), 13, 6), Passed(NotIp)),
    Row("LLDP", New, |a, b| with(with(syn(a, b), 12, 0x88), 13, 0xcc), Passed(NotIp)),
    Row("a length for a type", New, |a, b| with(with(syn(a, b), 12, 0), 13, 40), Passed(NotIp)),
    Row("IPv4 in an IPv6 frame", New, |a, b| with(with(syn(a, b), 12, 0x86), 13, 0xdd), Passed(Malformed)),
    Row("a VLAN tag", New, |a, b| with(with(syn(a, b), 12, 0x81), 13, 0), Passed(Vlan)),
    Row("a service tag", New, |a, b| with(with(syn(a, b), 12, 0x88), 13, 0xa8), Passed(Vlan)),
    Row("IGMP", New, |a, b| with(syn(a, b), 23, 2), Passed(Protocol)),
    Row("GRE", New, |a, b| with(syn(a, b), 23, 47), Passed(Protocol)),
    Row("ESP", New, |a, b| with(syn(a, b), 23, 50), Passed(Protocol)),
    Row("IP in IP", New, |a, b| with(syn(a, b), 23, 4), Passed(Protocol)),
    Row("SCTP", New, |a, b| with(syn(a, b), 23, 132), Passed(Protocol)),
    Row("UDP-Lite", New, |a, b| with(syn(a, b), 23, 136), Passed(Protocol)),
    Row("a header of four words", New, |a, b| with(syn(a, b), 14, 0x44), Passed(Malformed)),
    Row("IP version 5", New, |a, b| with(syn(a, b), 14, 0x55), Passed(Malformed)),
    Row("a header longer than the packet", New, |a, b| with(syn(a, b), 14, 0x4f), Passed(Malformed)),
    Row("longer than the frame", New, |a, b| with(syn(a, b), 17, 200), Passed(Malformed)),
    Row("shorter than its header", New, |a, b| with(syn(a, b), 17, 19), Passed(Malformed)),
    Row("a TCP header of four words", New, |a, b| with(syn(a, b), 46, 0x40), Passed(Malformed)),
    Row("a TCP header of none", New, |a, b| with(syn(a, b), 46, 0), Passed(Malformed)),
    Row("a TCP header beyond the segment", New, |a, b| with(syn(a, b), 46, 0x60), Passed(Malformed)),
    Row("cut in the TCP header", New, |a, b| syn(a, b)[..53].to_vec(), Passed(Malformed)),
    Row("cut behind the ports", New, |a, b| syn(a, b)[..38].to_vec(), Passed(Malformed)),
    Row("cut behind the IP header", New, |a, b| syn(a, b)[..34].to_vec(), Passed(Malformed)),
    Row("bytes behind the packet are kept", Open, |a, b| [ack(a, b), vec![0; 6]].concat(), Sent),
    Row("a SYN again", HalfOpen, syn, Sent),
    Row("a SYN of another try", HalfOpen, |a, b| tcp(a, b, SYN, 7000, 0, b""), Sent),
    Row("an ACK of nothing", HalfOpen, ack, Sent),
    Row("a FIN", HalfOpen, fin, Sent),
    Row("a RST", HalfOpen, rst, Sent),
    Row("a SYN-ACK", HalfOpen, syn_ack, Sent),
    Row("a SYN again", Accepted, syn, Sent),
    Row("the right ACK", Accepted, ack, Sent),
    Row("a guessed ACK", Accepted, |a, b| tcp(a, b, ACK, 101, 555, b""), Sent),
    Row("the ACK with data", Accepted, data, Sent),
    Row("the ACK with FIN", Accepted, fin, Sent),
    Row("a RST", Accepted, rst, Sent),
    Row("an ACK", Open, ack, Sent),
    Row("data", Open, data, Sent),
    Row("as much as fits a frame", Open, |a, b| tcp(a, b, ACK, 101, 901, &[7; 1460]), Sent),
    Row("an odd number of bytes", Open, |a, b| tcp(a, b, ACK, 101, 901, &[7; 1459]), Sent),
    Row("a SYN of who guesses", Open, syn, Sent),
    Row("a FIN", Open, fin, Sent),
    Row("a FIN far ahead", Open, |a, b| tcp(a, b, FIN | ACK, 0x7000_0000, 901, b""), Sent),
    Row("a RST", Open, rst, Sent),
    Row("a RST far ahead", Open, |a, b| tcp(a, b, RST, 0x7000_0000, 0, b""), Sent),
    Row("no flag at all", Open, |a, b| tcp(a, b, 0, 101, 0, b""), Sent),
    Row("a type of service is kept", Open, |a, b| sealed(with(ack(a, b), 15, 0xb8)), Sent),
    Row("congestion experienced is kept", Open, |a, b| sealed(with(ack(a, b), 15, 3)), Sent),
    Row("an identification is kept", Open, |a, b| sealed(with(with(ack(a, b), 18, 0x12), 19, 0x34)), Sent),
    Row("do not fragment is kept", Open, |a, b| sealed(with(ack(a, b), 20, 0x40)), Sent),
    Row("fragments allowed is kept", Open, |a, b| sealed(with(ack(a, b), 20, 0)), Sent),
    Row("PSH and URG are kept", Open, |a, b| sealed(with(with(data(a, b), 47, 0x38), 53, 5)), Sent),
    Row("ECE and CWR are kept", Open, |a, b| sealed(with(data(a, b), 47, 0xd0)), Sent),
    Row("a window is kept", Open, |a, b| sealed(with(with(ack(a, b), 48, 0), 49, 1)), Sent),
    Row("reserved bits are kept", Open, |a, b| sealed(with(ack(a, b), 46, 0x5e)), Sent),
    Row(
        "time stamps are kept",
        Open,
        |a, b| with_tcp_options(data(a, b), &[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]),
        Sent,
    ),
    Row("forty bytes of options are kept", Open, |a, b| with_tcp_options(data(a, b), &[1; 40]), Sent),
    Row("one word of IP options is kept", Open, |a, b| with_ip_options(data(a, b), 1), Sent),
    Row("ten words of IP options are kept", Open, |a, b| with_ip_options(data(a, b), 10), Sent),
    Row(
        "both kinds of options are kept",
        Open,
        |a, b| with_ip_options(with_tcp_options(ack(a, b), &[1; 40]), 10),
        Sent,
    ),
    Row("the last router but one", Open, |a, b| with_ttl(data(a, b), 2), Sent),
    Row("as many routers as there can be", Open, |a, b| with_ttl(data(a, b), 255), Sent),
    Row("a wrong checksum stays wrong", Open, |a, b| wrong(data(a, b)), Sent),
    Row("data", OtherPort, data, Sent),
    Row("a FIN", OtherPort, fin, Sent),
    Row("data", OwnClient, data, Sent),
    Row("a RST", OwnClient, rst, Sent),
    Row("a SYN", ClientClosed, syn, Sent),
    Row("an ACK", ClientClosed, |a, b| tcp(a, b, ACK, 102, 901, b""), Sent),
    Row("a FIN again", ClientClosed, fin, Sent),
    Row("a RST", ClientClosed, |a, b| tcp(a, b, RST, 102, 0, b""), Sent),
    Row("a SYN", BackendClosed, syn, Sent),
    Row("data", BackendClosed, |a, b| tcp(a, b, ACK, 101, 902, b"more"), Sent),
    Row("a FIN", BackendClosed, |a, b| tcp(a, b, FIN | ACK, 101, 902, b""), Sent),
    Row("a RST", BackendClosed, rst, Sent),
    Row("a SYN begins another connection", Closed, |a, b| tcp(a, b, SYN, 5000, 0, b""), Next),
    Row("the last ACK again", Closed, |a, b| tcp(a, b, ACK, 102, 902, b""), Sent),
    Row("the FIN again", Closed, fin, Sent),
    Row("a RST", Closed, rst, Sent),
    Row("a SYN begins another connection", Reset, |a, b| tcp(a, b, SYN, 5000, 0, b""), Next),
    Row("an ACK", Reset, ack, Sent),
    Row("a RST", Reset, rst, Sent),
    Row("a SYN begins another connection", Gone, |a, b| tcp(a, b, SYN, 5000, 0, b""), Next),
    Row("an ACK", Gone, ack, Passed(BackendGone)),
    Row("data", Gone, data, Passed(BackendGone)),
    Row("a FIN", Gone, fin, Passed(BackendGone)),
    Row("a RST", Gone, rst, Passed(BackendGone)),
    Row("the first datagram", NewDatagram, ask, Next),
    Row("one without payload", NewDatagram, |a, b| udp(a, b, b""), Next),
    Row("one of a byte", NewDatagram, |a, b| udp(a, b, b"?"), Next),
    Row("as much as fits a frame", NewDatagram, |a, b| udp(a, b, &[7; 1472]), Next),
    Row("one without checksum", NewDatagram, |a, b| without_sum(ask(a, b)), Next),
    Row("bytes behind the datagram are kept", NewDatagram, |a, b| sealed(with(with(ask(a, b), 17, 34), 39, 14)), Next),
    Row("shorter than its header", NewDatagram, |a, b| with(ask(a, b), 39, 7), Passed(Malformed)),
    Row("longer than the packet", NewDatagram, |a, b| with(ask(a, b), 39, 17), Passed(Malformed)),
    Row("cut in the header", NewDatagram, |a, b| ask(a, b)[..41].to_vec(), Passed(Malformed)),
    Row("the port of UDP by TCP", NewDatagram, syn, Passed(NotOurs)),
    Row("the second datagram", Asked, ask, Sent),
    Row("one without checksum", Asked, |a, b| without_sum(ask(a, b)), Sent),
    Row("one with IP options", Asked, |a, b| with_ip_options(ask(a, b), 3), Sent),
    Row("another datagram", Answers, ask, Sent),
];

/// From client to frontend; what TC does alone.
const REQUESTS_OF_TC: &[Row] = &[
    Row("a SYN at its end", New, |a, b| with_ttl(syn(a, b), 1), Answered(TtlExpired, TIME, FRONTEND.0)),
    Row("data at their end", Open, |a, b| with_ttl(data(a, b), 1), Answered(TtlExpired, TIME, FRONTEND.0)),
    Row("data beyond their end", Open, |a, b| with_ttl(data(a, b), 0), Answered(TtlExpired, TIME, FRONTEND.0)),
    Row("a datagram at its end", NewDatagram, |a, b| with_ttl(ask(a, b), 1), Answered(TtlExpired, TIME, DATAGRAMS.0)),
    Row("with options at its end", Open, |a, b| with_ip_options(with_ttl(ack(a, b), 1), 1), Dropped(TtlExpired)),
    Row("for another port at its end", New, |a, b| with_ttl(syn(a, (b.0, 83)), 1), Passed(NotOurs)),
    Row("the first fragment of a datagram", NewDatagram, |a, b| fragment(ask(a, b), 7, 0, false), Next),
    Row("the first fragment of the next", Asked, |a, b| fragment(ask(a, b), 8, 0, false), Sent),
    Row("a first fragment of data", Open, |a, b| fragment(data(a, b), 9, 0, false), Sent),
    Row("a later fragment alone", Asked, |a, b| later_fragment(a, b, 99, 8, true, b"rest"), Passed(Fragment)),
    Row("an echo request", Open, |a, b| error(b, (8, 0), &answer(b, a), 8), Passed(Protocol)),
    Row("a redirect", Open, |a, b| error(b, (5, 1), &answer(b, a), 8), Passed(Protocol)),
    Row("fragmentation needed", Open, |a, b| error(b, TOO_BIG, &answer(b, a), 8), Sent),
    Row("the same with the whole segment", Open, |a, b| error(b, TOO_BIG, &answer(b, a), 39), Sent),
    Row("the same about IP options", Open, |a, b| error(b, TOO_BIG, &with_ip_options(answer(b, a), 2), 8), Sent),
    Row("the same behind IP options", Open, |a, b| with_ip_options(error(b, TOO_BIG, &answer(b, a), 8), 1), Sent),
    Row("time exceeded", Open, |a, b| error(b, TIME, &answer(b, a), 8), Sent),
    Row("a parameter problem", Open, |a, b| error(b, (12, 0), &answer(b, a), 8), Sent),
    Row("host unreachable", HalfOpen, |a, b| error(b, (3, 1), &accept(b, a), 8), Sent),
    Row("administratively prohibited", Accepted, |a, b| error(b, (3, 13), &accept(b, a), 8), Sent),
    Row("fragmentation needed", OtherPort, |a, b| error(b, TOO_BIG, &answer(b, a), 20), Sent),
    Row("fragmentation needed", OwnClient, |a, b| error(b, TOO_BIG, &answer(b, a), 20), Sent),
    Row("about no connection", New, |a, b| error(b, TOO_BIG, &answer(b, a), 8), Passed(Protocol)),
    Row("about one that is gone", Gone, |a, b| error(b, TOO_BIG, &answer(b, a), 8), Passed(BackendGone)),
    Row("with less than it has to quote", Open, |a, b| error(b, TOO_BIG, &answer(b, a), 7), Passed(Malformed)),
    Row(
        "about a later fragment",
        Open,
        |a, b| error(b, TOO_BIG, &fragment(answer(b, a), 1, 8, true), 8),
        Passed(Protocol),
    ),
    Row(
        "an error in fragments",
        Open,
        |a, b| fragment(error(b, TOO_BIG, &answer(b, a), 8), 1, 0, false),
        Passed(Fragment),
    ),
    Row("an error at its end", Open, |a, b| with_ttl(error(b, TOO_BIG, &answer(b, a), 8), 1), Dropped(TtlExpired)),
    Row("port unreachable about an answer", Answers, |a, b| icmp_error(a.0, b.0, PORT, &ask(b, a), 8), Sent),
    Row("fragmentation needed for an answer", Answers, |a, b| error(b, TOO_BIG, &ask(b, a), 16), Sent),
    Row("the same without checksum inside", Answers, |a, b| error(b, TOO_BIG, &without_sum(ask(b, a)), 16), Sent),
];

/// From backend to client, through the reply door.
const REPLIES: &[Row] = &[
    Row("a SYN-ACK that nobody asked for", New, accept, Passed(NotReply)),
    Row("data of a direct connection", New, answer, Passed(NotReply)),
    Row("a SYN of the backend's own", New, syn, Passed(NotReply)),
    Row("a RST", New, reset, Passed(NotReply)),
    Row("ARP", New, |a, b| with(with(answer(a, b), 12, 8), 13, 6), Passed(NotIp)),
    Row("IPv4 in an IPv6 frame", New, |a, b| with(with(answer(a, b), 12, 0x86), 13, 0xdd), Passed(Malformed)),
    Row("a VLAN tag", Open, |a, b| with(with(answer(a, b), 12, 0x81), 13, 0), Passed(Vlan)),
    Row("a header of four words", Open, |a, b| with(answer(a, b), 14, 0x44), Passed(Malformed)),
    Row("longer than the frame", Open, |a, b| with(answer(a, b), 17, 200), Passed(Malformed)),
    Row("cut in the TCP header", Open, |a, b| answer(a, b)[..50].to_vec(), Passed(Malformed)),
    Row("the SYN-ACK", HalfOpen, accept, Sent),
    Row(
        "the SYN-ACK with options",
        HalfOpen,
        |a, b| with_tcp_options(accept(a, b), &[2, 4, 5, 0xb4, 1, 3, 3, 7]),
        Sent,
    ),
    Row("a SYN-ACK for data, too", HalfOpen, |a, b| tcp(a, b, SYN | ACK, 900, 110, b""), Sent),
    Row("a SYN-ACK for another SYN", HalfOpen, |a, b| tcp(a, b, SYN | ACK, 900, 0x7000_0000, b""), Passed(NotReply)),
    Row("a refusal", HalfOpen, refuse, Sent),
    Row("a refusal of another SYN", HalfOpen, |a, b| tcp(a, b, RST | ACK, 0, 0x7000_0000, b""), Passed(NotReply)),
    Row("a RST of a direct connection", HalfOpen, reset, Passed(NotReply)),
    Row("data of a direct connection", HalfOpen, answer, Passed(NotReply)),
    Row("a FIN of a direct connection", HalfOpen, close, Passed(NotReply)),
    Row("a challenge", HalfOpen, |a, b| tcp(a, b, ACK, 7000, 555, b""), Sent),
    Row("the SYN-ACK again", Accepted, accept, Sent),
    Row("data before the ACK", Accepted, answer, Sent),
    Row("a FIN before the ACK", Accepted, close, Sent),
    Row("a RST before the ACK", Accepted, reset, Sent),
    Row("the SYN-ACK again", Open, accept, Sent),
    Row("data", Open, answer, Sent),
    Row("as much as fits a frame", Open, |a, b| tcp(a, b, ACK, 901, 101, &[7; 1460]), Sent),
    Row("an odd number of bytes", Open, |a, b| tcp(a, b, ACK, 901, 101, &[7; 1459]), Sent),
    Row("an ACK", Open, |a, b| tcp(a, b, ACK, 901, 101, b""), Sent),
    Row("a FIN", Open, close, Sent),
    Row("a RST", Open, reset, Sent),
    Row("a type of service is kept", Open, |a, b| sealed(with(answer(a, b), 15, 0xb8)), Sent),
    Row("congestion experienced is kept", Open, |a, b| sealed(with(answer(a, b), 15, 3)), Sent),
    Row("do not fragment is kept", Open, |a, b| sealed(with(answer(a, b), 20, 0x40)), Sent),
    Row(
        "time stamps are kept",
        Open,
        |a, b| with_tcp_options(answer(a, b), &[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]),
        Sent,
    ),
    Row("forty bytes of options are kept", Open, |a, b| with_tcp_options(answer(a, b), &[1; 40]), Sent),
    Row("ten words of IP options are kept", Open, |a, b| with_ip_options(answer(a, b), 10), Sent),
    Row("the last router but one", Open, |a, b| with_ttl(answer(a, b), 2), Sent),
    Row("at its end", Open, |a, b| with_ttl(answer(a, b), 1), Answered(TtlExpired, TIME, HOST)),
    Row("a wrong checksum stays wrong", Open, |a, b| wrong(answer(a, b)), Sent),
    Row("data", OtherPort, answer, Sent),
    Row("a FIN", OtherPort, close, Sent),
    Row("data", OwnClient, answer, Sent),
    Row("a RST", OwnClient, reset, Sent),
    Row("data", ClientClosed, |a, b| tcp(a, b, ACK, 901, 102, b"rest"), Sent),
    Row("a FIN", ClientClosed, |a, b| tcp(a, b, FIN | ACK, 901, 102, b""), Sent),
    Row("a RST", ClientClosed, reset, Sent),
    Row("the FIN again", BackendClosed, close, Sent),
    Row("an ACK", BackendClosed, |a, b| tcp(a, b, ACK, 902, 101, b""), Sent),
    Row("the last ACK again", Closed, |a, b| tcp(a, b, ACK, 902, 102, b""), Sent),
    Row("the FIN again", Closed, close, Sent),
    Row("a SYN-ACK of a direct connection", Closed, accept, Passed(NotReply)),
    Row("the refusal again", Reset, refuse, Sent),
    Row("a SYN-ACK of a direct connection", Reset, accept, Passed(NotReply)),
    Row("data", Gone, answer, Passed(BackendGone)),
    Row("a FIN", Gone, close, Passed(BackendGone)),
    Row("a SYN-ACK", Gone, accept, Passed(BackendGone)),
    Row("a late FIN of the former backend", Moved, close, Dropped(StaleReply)),
    Row("a late RST of the former backend", Moved, reset, Dropped(StaleReply)),
    Row("a late SYN-ACK of the former backend", Moved, accept, Dropped(StaleReply)),
    Row("the first answer", Asked, ask, Sent),
    Row("an answer without payload", Asked, |a, b| udp(a, b, b""), Sent),
    Row("as much as fits a frame", Asked, |a, b| udp(a, b, &[7; 1472]), Sent),
    Row("one without checksum", Asked, |a, b| without_sum(ask(a, b)), Sent),
    Row("from another port", Asked, |a, b| udp((a.0, 9), b, b"?"), Passed(NotReply)),
    Row("to another port", Asked, |a, b| udp(a, (b.0, 9), b"?"), Passed(NotReply)),
    Row("another answer", Answers, ask, Sent),
    Row("a first fragment", Answers, |a, b| fragment(ask(a, b), 7, 0, false), Sent),
    Row("a later fragment alone", Answers, |a, b| later_fragment(a, b, 99, 8, true, b"rest"), Passed(Fragment)),
    Row("nobody asked", NewDatagram, ask, Passed(NotReply)),
    Row("port unreachable", Asked, |a, b| icmp_error(a.0, b.0, PORT, &ask(b, a), 8), Sent),
    Row("port unreachable with all", Asked, |a, b| icmp_error(a.0, b.0, PORT, &ask(b, a), 16), Sent),
    Row("host unreachable", HalfOpen, |a, b| icmp_error(a.0, b.0, (3, 1), &syn(b, a), 8), Sent),
    Row("fragmentation needed", Open, |a, b| icmp_error(a.0, b.0, TOO_BIG, &data(b, a), 8), Sent),
    Row("the same by a router behind", Open, |a, b| error(b, TOO_BIG, &data(b, a), 20), Sent),
    Row("fragmentation needed", OtherPort, |a, b| icmp_error(a.0, b.0, TOO_BIG, &data(b, a), 20), Sent),
    Row("about no connection", New, |a, b| icmp_error(a.0, b.0, TOO_BIG, &data(b, a), 8), Passed(Protocol)),
    Row("about one that is gone", Gone, |a, b| icmp_error(a.0, b.0, TOO_BIG, &data(b, a), 8), Passed(BackendGone)),
    Row("an echo reply", Open, |a, b| icmp_error(a.0, b.0, (0, 0), &data(b, a), 8), Passed(Protocol)),
];

/// Makes a segment's checksum wrong by one.
fn wrong(frame: Vec<u8>) -> Vec<u8> {
    let sum = u16::from_be_bytes([frame[50], frame[51]]);
    let [high, low] = if sum == 0xfffe { 1_u16 } else { sum + 1 }.to_be_bytes();
    with(with(frame, 50, high), 51, low)
}

/// Who is who in a connection.
#[derive(Clone, Copy, Debug)]
struct Cast {
    client: Side,
    frontend: Side,
    /// The client as the backend knows it.
    seen: Side,
    backend: Side,
    id: BackendId,
}

/// The object, and whose turn it is.
struct Scene {
    object: Object,
    /// Connections begun, by frontend.
    turns: [usize; 4],
    played: u16,
    generation: u32,
}

impl Scene {
    fn new() -> Self {
        let mut object = Object::load();
        for (id, at) in (0..).zip(BACKENDS) {
            object.backend(id, 0, 1, at);
            object.backend(id + 3, 1, 1, at);
        }
        object.backend(6, 2, 1, ALONE);
        object.serve(0, FRONTEND, Proto::Tcp, &[0, 1, 2]);
        object.serve(1, DATAGRAMS, Proto::Udp, &[3, 4, 5]);
        object.serve(2, OTHER, Proto::Tcp, &[6]);
        object.serve(3, FICKLE, Proto::Tcp, &[]);
        Self { object, turns: [0; 4], played: 0, generation: 0 }
    }

    /// Returns the backend whose turn it is.
    fn turn(&self, frontend: FrontendId) -> (Side, BackendId) {
        let turn = self.turns[frontend as usize];
        match frontend {
            0 => (BACKENDS[turn % 3], (turn % 3) as BackendId),
            1 => (BACKENDS[turn % 3], (turn % 3) as BackendId + 3),
            2 => (ALONE, 6),
            _ => (FICKLE_BACKENDS[0], 7),
        }
    }

    fn step(&self, door: Door, frame: &[u8]) -> Vec<u8> {
        let (did, out) = self.object.run(door, frame);
        assert_eq!(did, Action::Redirect, "what was given: {:?}", judge(frame));
        out
    }

    /// Begins a connection by a packet, and returns who is who.
    fn begin(&mut self, frontend: FrontendId, client: Side, to: Side, frame: &[u8]) -> Cast {
        let (backend, id) = self.turn(frontend);
        let out = judge(&self.step(Door::Tc, frame)).expect("it is whole");
        self.turns[frontend as usize] += 1;
        assert_eq!(out.to, backend, "what was given: the next in turn");
        Cast { client, frontend: to, seen: out.from, backend, id }
    }

    /// Begins a connection, and goes on as far as it is to be.
    fn open(&mut self, frontend: FrontendId, client: Side, to: Side, how_far: Given) -> Cast {
        let cast = self.begin(frontend, client, to, &syn(client, to));
        let Cast { backend, seen, .. } = cast;
        if how_far == HalfOpen {
            return cast;
        }
        if how_far == Reset {
            self.step(Door::Reply, &refuse(backend, seen));
            return cast;
        }
        self.step(Door::Reply, &accept(backend, seen));
        if how_far == Accepted {
            return cast;
        }
        self.step(Door::Tc, &ack(client, to));
        if [ClientClosed, Closed, Moved].contains(&how_far) {
            self.step(Door::Tc, &fin(client, to));
        }
        if [BackendClosed, Closed, Moved].contains(&how_far) {
            self.step(Door::Reply, &close(backend, seen));
        }
        cast
    }

    /// Brings about what is given.
    fn set(&mut self, given: Given) -> Cast {
        self.played += 1;
        let client = ([198, 18, 5 + (self.played >> 8) as u8, self.played as u8], 40_000 + self.played);
        match given {
            New => Cast { client, frontend: FRONTEND, seen: client, backend: BACKENDS[0], id: 0 },
            NewDatagram => Cast { client, frontend: DATAGRAMS, seen: client, backend: BACKENDS[0], id: 3 },
            HalfOpen | Accepted | Open | ClientClosed | BackendClosed | Closed | Reset => {
                self.open(0, client, FRONTEND, given)
            }
            Moved => {
                let former = self.open(0, client, FRONTEND, given);
                self.begin(0, client, FRONTEND, &tcp(client, FRONTEND, SYN, 5000, 0, b""));
                former
            }
            OwnClient => {
                let own = (ALONE.0, client.1);
                let cast = self.open(2, own, OTHER, Open);
                assert_eq!(cast.seen.0, HOST);
                cast
            }
            OtherPort => {
                // The client has the same port in use for another frontend of the server.
                self.generation += 1;
                self.object.backend(8, 3, self.generation, ALONE);
                self.object.publish(3, &[8]);
                let first = self.step(Door::Tc, &syn(client, FICKLE));
                assert_eq!(judge(&first).map(|first| first.to), Some(ALONE));
                let cast = self.open(2, client, OTHER, Open);
                assert_ne!(cast.seen, client);
                cast
            }
            Gone => {
                self.generation += 1;
                self.object.backend(7, 3, self.generation, FICKLE_BACKENDS[0]);
                self.object.publish(3, &[7]);
                let cast = self.open(3, client, FICKLE, Open);
                self.object.free(7);
                self.object.backend(8, 3, self.generation, FICKLE_BACKENDS[1]);
                self.object.publish(3, &[8]);
                cast
            }
            Asked | Answers => {
                let cast = self.begin(1, client, DATAGRAMS, &ask(client, DATAGRAMS));
                if given == Answers {
                    self.step(Door::Reply, &ask(cast.backend, cast.seen));
                }
                cast
            }
        }
    }

    fn play(&mut self, &Row(_, given, shape, fate): &Row, door: Door, left_to_tc: bool) {
        let mut cast = self.set(given);
        let is_reply = door == Door::Reply;
        let frame = if is_reply { shape(cast.backend, cast.seen) } else { shape(cast.client, cast.frontend) };
        if matches!(fate, Next) && !left_to_tc {
            let frontend = [FRONTEND, DATAGRAMS, OTHER, FICKLE].iter().position(|&at| at == cast.frontend);
            let frontend = frontend.expect("one of them");
            (cast.backend, cast.id) =
                if given == Gone { (FICKLE_BACKENDS[1], 8) } else { self.turn(frontend as FrontendId) };
            cast.seen = cast.client;
            self.turns[frontend] += 1;
        }
        let reason = match fate {
            Passed(reason) if door != Door::Xdp => Some(reason.index()),
            Dropped(reason) | Answered(reason, ..) if !left_to_tc => Some(reason.index()),
            Sent | Next | Passed(_) | Dropped(_) | Answered(..) => None,
        };
        let before = reason.map(|reason| self.object.count(reason));

        let (did, out) = self.object.run(door, &frame);

        if left_to_tc {
            assert_eq!((did, out), (Action::Pass, frame));
            return;
        }
        assert_eq!(reason.map(|reason| self.object.count(reason)), before.map(|count| count + 1), "counted: {did:?}");
        match fate {
            Sent | Next => {
                let (a, b) = if is_reply { (cast.frontend, cast.client) } else { (cast.seen, cast.backend) };
                let shaped = shape(a, b);
                let mut wanted = with_ttl(shaped.clone(), shaped[22] - 1);
                if !is_reply {
                    wanted[..12].copy_from_slice(&[6, 0, 0, 0, 0, cast.id as u8, 6, 0, 0, 0, 1, 0]);
                }
                assert_eq!(did, Action::Redirect);
                assert_eq!(out, wanted, "\n came {out:02x?}\nwants {wanted:02x?}");
            }
            Passed(_) => assert_eq!((did, out), (Action::Pass, frame)),
            Dropped(_) => assert_eq!(did, Action::Drop),
            Answered(_, kind, from) => {
                assert_eq!(did, Action::Redirect);
                assert_eq!((&out[..6], &out[6..12]), (&frame[6..12], &frame[..6]), "back to where it came from");
                let (asked, told) = (judge(&frame).expect("whole"), judge_error(&out).expect("an ICMP error"));
                assert_eq!((told.from, told.to, told.kind), (from, asked.from.0, kind));
                assert_eq!((told.about, told.sums), ((asked.from, asked.to), [true; 3]));
            }
        }
    }
}
