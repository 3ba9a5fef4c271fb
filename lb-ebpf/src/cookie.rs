//! SYN cookies: a SYN whose backend has no room for it is answered here, and leaves nothing behind.
//!
//! ```text
//! SYN ─▶ guard ─▶ candidate: a hash of the SYN's addresses over the slots
//!                 its listener: "no room, answer by this number" ─▶ SYN-ACK back, by which it came; no state at all
//!                 its listener: "there is room"                  ─▶ the usual way, round robin
//! ACK ─▶ no flow, and the frontend has issued cookies lately
//!                 the same candidate; or the one by the slots before the last publication
//!                 its listener: "mine"                           ─▶ a proven flow, as if it had been seen from its SYN on
//!                 its listener: "not mine"                       ─▶ the usual way: the host answers RST
//! ```
//!
//! The listener in the backend's network namespace decides by itself when it is flooded, and makes and takes cookies for
//! the addresses that it sees, those behind the translation (`bpf_tcp_gen_syncookie`, `bpf_tcp_check_syncookie`): so
//! nothing has to be told to it, and it takes the client's acknowledgement as that of its own cookie.
//!
//! The candidate has to be found again without having been noted, which a ticket cannot be. Only SYNs that are answered
//! follow the hash; what there is room for stays strictly in turn.

use crate::{
    abi::{
        Address, Backend, BackendId, FlowEntry, FlowKey, FrontendId, Guard, KtimeNs, MAX_COOKIE_RATES, Port, Proto,
        REPLY_SEEN, ReplyEntry,
    },
    checksum::Delta,
    guard,
    packet::Headers,
    pipeline::{self, Arrival, ToBackend},
    tables::{Insert, Shared, TOUCH_NS, Table, Tables},
    tcp_state::{Direction, Flags, Seen},
    verdict::{DropReason, Event, PassReason, Verdict},
    wire::Ports,
};

/// For how long after its last cookie a frontend takes acknowledgements of some: as long as Linux believes in one
/// (`TCP_SYNCOOKIE_VALID`, include/net/tcp.h).
pub const VALID_NS: KtimeNs = 120_000_000_000;
/// Cookies for a network in a second, and at once: what reflects to somebody whose address is forged.
pub const PER_SECOND: u32 = 32;
/// Words of the longest TCP header.
pub const TCP_WORDS: usize = 15;
/// Words of the TCP header of a SYN-ACK with the one option that it has, that of the segment size.
pub const ANSWER_WORDS: usize = 6;
/// How many segments a sender may send before it hears of any: what a SYN-ACK has to leave room for (RFC 6928).
const INITIAL_SEGMENTS: u32 = 10;
/// Where in a TCP header, in words, the checksum is: the first half of it.
pub const CHECK_WORD: usize = 4;
/// Number of the TCP option of the segment size, and its length: RFC 9293, 3.2.
const OPTION_MSS: u32 = 0x0204_0000;

/// What a listener is asked, and what it has answered. Written once for each question.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Question {
    /// The segment's addresses and ports, as its sender sends it.
    pub key: FlowKey,
    /// Its addresses and ports as the backend sees them, as `struct bpf_sock_tuple` has them.
    pub tuple: [u32; 9],
    /// Its IP header, as far as that counts for a cookie.
    pub ip: [u32; 10],
    /// Its TCP header, with its options as far as the asker has added them.
    pub tcp: [u32; TCP_WORDS],
    /// Where its TCP header begins, in bytes.
    pub l4: u32,
    /// How long its TCP header is, in bytes.
    pub tcp_len: u32,
    /// The frontend to which it goes.
    pub frontend: FrontendId,
    /// The backend whose listener is asked.
    pub candidate: BackendId,
    /// [`FlowKey::spread`] of its key.
    pub spread: u32,
    /// The cookie.
    pub answer: SynCookie,
}

/// What a listener answers a SYN by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynCookie {
    /// The sequence number of its SYN-ACK.
    pub sequence: u32,
    /// The segment size that it will remember by that number, in bytes.
    pub mss: u32,
}

impl SynCookie {
    /// Reads what `bpf_tcp_gen_syncookie` returns: a negative number where the listener has room, else the sequence number
    /// in the lower half, and the segment size above.
    #[inline(always)]
    pub const fn of(returned: i64) -> Option<Self> {
        match returned {
            0.. => Some(Self { sequence: returned as u32, mss: (returned >> 32) as u32 & 0xffff }),
            _ => None,
        }
    }

    /// Returns the TCP header of the SYN-ACK, its checksum zero, that answers a SYN of these ports and this sequence number.
    ///
    /// # Source
    /// RFC 9293, 3.1. No time stamps, no scaled window, no selective acknowledgements: nobody would remember them.
    #[inline(always)]
    pub const fn answer(self, ports: Ports, sequence: u32) -> [u32; ANSWER_WORDS] {
        let window = self.mss.saturating_mul(INITIAL_SEGMENTS);
        let window = if window > 0xffff { 0xffff } else { window };
        let offset_flags = (ANSWER_WORDS as u32) << 28 | ((Flags::SYN | Flags::ACK) as u32) << 16;
        [
            Ports { source: ports.destination, destination: ports.source }.word(),
            self.sequence.to_be(),
            sequence.wrapping_add(1).to_be(),
            (offset_flags | window).to_be(),
            0,
            (OPTION_MSS | self.mss).to_be(),
        ]
    }
}

impl Shared<Question> {
    /// Writes what is known of a segment to a frontend.
    #[inline(always)]
    pub fn put(self, packet: &Headers, frontend: FrontendId) {
        let question = self.value();
        question.key = packet.key;
        question.tcp[1] = packet.sequence.to_be();
        question.tcp[2] = packet.acknowledgement.to_be();
        let tcp_len = (packet.payload - packet.l4) as u32;
        question.tcp[3] = (tcp_len << 26 | u32::from(packet.flags.0) << 16).to_be();
        question.tcp[CHECK_WORD] = 0;
        (question.l4, question.tcp_len) = (packet.l4 as u32, tcp_len);
        (question.frontend, question.spread) = (frontend, packet.key.spread());
    }

    /// Writes how the segment looks to a backend.
    #[inline(always)]
    fn lead_to(self, backend: &Backend) {
        let question = self.value();
        let key = &question.key;
        let ports = Ports { source: key.source_port.wire(), destination: backend.port.wire() }.word();
        question.tcp[0] = ports;
        if backend.address.is_v4() {
            let (source, destination) = (key.source.v4_wire(), backend.address.v4_wire());
            (question.tuple[0], question.tuple[1], question.tuple[2]) = (source, destination, ports);
            question.ip[0] = u32::from_ne_bytes([0x45, 0, 0, 0]);
            (question.ip[3], question.ip[4]) = (source, destination);
        } else {
            let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (key.source.v6_wire(), backend.address.v6_wire());
            question.tuple = [s0, s1, s2, s3, d0, d1, d2, d3, ports];
            question.ip = [u32::from_ne_bytes([0x60, 0, 0, 0]), 0, s0, s1, s2, s3, d0, d1, d2, d3];
        }
    }
}

/// No network namespace.
const NOWHERE: u32 = u32::MAX;

/// Decides whether a SYN that begins a flow is answered by a cookie instead, [`Question::answer`].
///
/// The listener is asked for each such SYN: it alone knows when its queue is full, and no threshold here would be right for
/// every listener.
#[inline(always)]
pub fn is_offered<T: Tables>(packet: &Headers, frontend: FrontendId, tables: &T) -> bool {
    let Some(question) = tables.question() else { return false };
    question.put(packet, frontend);
    let netns = aim(Aim::ToOffer, tables);
    netns != NOWHERE && tables.syn_cookie(netns)
}

/// What a listener is looked for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// To ask it for a cookie.
    ToOffer,
    /// To ask it about one, by the slots as they are.
    ToAccept,
    /// The same by the slots before the last publication.
    ToAcceptFormer,
}

/// Turns the question at hand to the listener of its candidate; returns the network namespace in which that is. A function
/// of its own in the object, for the sake of the stack.
#[inline(never)]
fn aim<T: Tables>(aim: Aim, tables: &T) -> u32 {
    let Some(question) = tables.question() else { return NOWHERE };
    let frontend = question.value().frontend;
    // What was issued before it was forbidden is still accepted.
    if matches!(aim, Aim::ToOffer) && !tables.guard(frontend).is_some_and(Guard::allows_cookies) {
        return NOWHERE;
    }
    let Some(entry) = tables.frontend(frontend) else { return NOWHERE };
    let slots = match aim {
        Aim::ToOffer | Aim::ToAccept => entry.slots(),
        Aim::ToAcceptFormer => entry.former_slots(),
    };
    let Some(place) = place(question.value().spread, slots.len) else { return NOWHERE };
    let Some(id) = tables.slot(slots.base.wrapping_add(place)) else { return NOWHERE };
    let Some(backend) = tables.backend(id) else { return NOWHERE };
    // A container that is its own client has no candidate: its port would have to be another.
    let is_own = backend.address == question.value().key.source;
    if is_own || !backend.is_active() || backend.frontend != frontend {
        return NOWHERE;
    }
    question.lead_to(backend);
    question.value().candidate = id;
    backend.netns().unwrap_or(NOWHERE)
}

/// Notes that the question at hand was answered by a cookie.
#[inline(always)]
pub fn note_issued<T: Tables>(now: KtimeNs, tables: &T) {
    if let Some(question) = tables.question()
        && let Some(issued) = tables.cookies(question.value().frontend)
        && now.saturating_sub(issued.get()) >= TOUCH_NS
    {
        issued.set(now);
    }
    tables.count(Event::CookieIssued);
}

/// Returns whether a segment of no flow may acknowledge a cookie: its frontend has issued some lately.
#[inline(always)]
pub fn may_acknowledge<T: Tables>(flags: Flags, frontend: FrontendId, now: KtimeNs, tables: &T) -> bool {
    let acknowledges = flags.any(Flags::ACK) && !flags.any(Flags::SYN | Flags::RST);
    // Zero: never. A stamp of another processor may be a tick ahead.
    acknowledges
        && tables.cookies(frontend).is_some_and(|issued| {
            let issued = issued.get();
            issued != 0 && now.saturating_sub(issued) < VALID_NS
        })
}

/// Begins the flow of a segment of none, among the proven ones, if it acknowledges a cookie; returns whether it does.
///
/// What is repeated, or comes on two processors at once, finds the flow, or is what the other has added. The client's port
/// cannot be changed any more: where another flow has it on the backend's side, the cookie is refused.
#[inline(always)]
pub fn accept<T: Tables>(packet: &Headers, arrival: &Arrival, tables: &T) -> bool {
    let is_accepted = resume(packet, arrival, tables);
    tables.count(if is_accepted { Event::CookieAccepted } else { Event::CookieRefused });
    is_accepted
}

/// Decides where a segment goes that was just accepted.
///
/// # Errors
/// The verdict, if its backend has gone since.
#[inline(always)]
pub fn lead<'t, T: Tables>(packet: &Headers, tables: &'t T) -> Result<ToBackend<'t>, Verdict> {
    let Some(question) = tables.question() else { return Err(Verdict::Drop(DropReason::NoMemory)) };
    let id = question.value().candidate;
    let Some(backend) = tables.backend(id) else { return Err(Verdict::Pass(PassReason::BackendGone)) };
    let key = &packet.key;
    let to = FlowKey::new(key.source, key.source_port, backend.address, backend.port, Proto::Tcp);
    Ok(ToBackend { to, backend, id })
}

#[inline(always)]
fn resume<T: Tables>(packet: &Headers, arrival: &Arrival, tables: &T) -> bool {
    let Some(frontend) = tables.frontend_at(&packet.key.to()) else { return false };
    let Some(question) = tables.question() else { return false };
    question.put(packet, frontend);
    let mut netns = aim(Aim::ToAccept, tables);
    if netns == NOWHERE || !tables.is_syn_cookie(netns) {
        netns = aim(Aim::ToAcceptFormer, tables);
        if netns == NOWHERE || !tables.is_syn_cookie(netns) {
            return false;
        }
    }
    let id = question.value().candidate;
    let Some(backend) = tables.backend(id) else { return false };
    begin(packet, arrival, (id, backend), tables)
}

/// Adds a proven flow, as if it had been seen from its SYN on; returns whether it is there.
#[inline(always)]
fn begin<T: Tables>(packet: &Headers, arrival: &Arrival, (id, backend): (BackendId, &Backend), tables: &T) -> bool {
    let Some(scratch) = tables.scratch() else { return false };
    let (key, port, ifindex, now) = (&packet.key, packet.key.source_port, arrival.ifindex, arrival.now);
    let reply_key = scratch.reply_key(FlowKey::new(backend.address, backend.port, key.source, port, Proto::Tcp));
    // The segment is the first that the backend sees, and what it expects next.
    let reply = ReplyEntry::new(reply_key, *key, (id, backend.generation, ifindex), packet.sequence, now);
    let reply = scratch.reply(reply);
    reply.set_flags(REPLY_SEEN);
    if pipeline::claim_key(reply_key, reply, Proto::Tcp, tables) != Insert::Done {
        return false;
    }
    let client = Seen(Seen::PROVEN).after(Direction::Ingress, packet.flags);
    let flow = FlowEntry::new(key, (id, backend.generation), ifindex, client.0, now).seen_as(port);
    let flow = scratch.flow(flow);
    flow.set_server(Seen(Seen::ANSWERED));
    flow.set_awaited_ack(packet.acknowledgement);
    if tables.put_reply(Table::Proven, reply_key, reply) != Insert::Done {
        tables.count(Event::FlowTableFull);
        return false;
    }
    // Where it is there, another processor was faster.
    if tables.add_flow(Table::Proven, key, flow) == Insert::Full {
        tables.remove_reply(Table::Proven, reply_key);
        tables.count(Event::FlowTableFull);
        return false;
    }
    if let Some(traffic) = tables.traffic(id) {
        traffic.count_connection();
        traffic.count_ingress(u64::from(arrival.packets), u64::from(arrival.bytes));
    }
    true
}

/// Returns the place among `len` slots to which a hash of the addresses leads; `None` if there are none.
#[inline(always)]
const fn place(spread: u32, len: u32) -> Option<u32> {
    if len == 0 { None } else { Some((spread as u64 * len as u64 >> 32) as u32) }
}

/// Takes a cookie for a client's network from its bucket; returns whether there was one left. Of IPv6, the network is the
/// first 64 bits.
#[inline(always)]
pub fn spend<T: Tables>(client: &Address, now: KtimeNs, tables: &T) -> bool {
    const INTERVAL_NS: u32 = 1_000_000_000 / PER_SECOND;
    let none = Port::new(0);
    let network = client.network(u32::MAX);
    let number = FlowKey::new(network, none, Address::default(), none, Proto::Tcp).spread() % MAX_COOKIE_RATES;
    let Some(bucket) = tables.cookie_bucket(number) else { return false };
    match guard::spend(bucket.get(), INTERVAL_NS, PER_SECOND, now) {
        Some(full_at) => {
            bucket.set(full_at);
            true
        }
        None => false,
    }
}

/// The sum over a SYN as it came.
#[derive(Clone, Copy)]
pub struct Sum {
    /// Over its TCP header, without the checksum in it.
    pub header: Delta,
    /// Over the pseudo-header.
    pub pseudo: Delta,
    /// The checksum in it.
    pub check: u16,
}

impl Sum {
    /// Returns whether the checksum is right, or so far only that of the pseudo-header, as a sender leaves it whose device,
    /// or the virtual one of whose neighbour, completes it. Who sends the second from elsewhere could send the first as
    /// well.
    #[inline(always)]
    pub const fn is_right(self) -> bool {
        let whole = self.header.and(self.pseudo).apply(0);
        let begun = !self.pseudo.apply(0);
        self.check == whole || self.check == begun || (self.check == 0xffff && whole == 0)
    }

    /// Returns by how much the header's sum changes if it becomes another.
    #[inline(always)]
    pub const fn header_to(self, header: &[u32; ANSWER_WORDS]) -> Delta {
        Delta::sum(header).replace32(self.header.wsum(), 0)
    }
}
