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
        Address, Backend, BackendId, FlowEntry, FlowKey, Frontend, FrontendId, Guard, KtimeNs, MAX_COOKIE_RATES, Port,
        Proto, REPLY_SEEN, REQUEST_ASKED, ReplyEntry,
    },
    checksum::Delta,
    guard,
    packet::Headers,
    pipeline::{Arrival, ToBackend},
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
/// every listener. That costs a fifth of what the beginning of a flow costs by itself.
#[inline(always)]
pub fn is_offered<T: Tables>(packet: &Headers, (frontend, entry): (FrontendId, &Frontend), tables: &T) -> bool {
    let Some(question) = tables.question() else { return false };
    question.put(packet, frontend);
    let netns = aim(Aim::Offer, entry, tables);
    netns != NOWHERE && tables.syn_cookie(netns)
}

/// What a listener is looked for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// To ask it for a cookie.
    Offer,
    /// To ask it about one, by the slots as they are.
    Accept,
    /// The same by the slots before the last publication.
    AcceptFormer,
}

/// Turns the question at hand to the listener of its candidate; returns the network namespace in which that is. A function
/// of its own in the object, for the sake of the stack.
#[inline(never)]
fn aim<T: Tables>(aim: Aim, entry: &Frontend, tables: &T) -> u32 {
    let Some(question) = tables.question() else { return NOWHERE };
    let frontend = question.value().frontend;
    // What was issued before it was forbidden is still accepted.
    if matches!(aim, Aim::Offer) && !tables.guard(frontend).is_some_and(Guard::allows_cookies) {
        return NOWHERE;
    }
    let slots = match aim {
        Aim::Offer | Aim::Accept => entry.slots(),
        Aim::AcceptFormer => entry.former_slots(),
    };
    let Some(place) = place(question.value().spread, slots.len) else { return NOWHERE };
    let Some(id) = tables.slot(slots.base.wrapping_add(place)).map(|slot| slot.backend) else { return NOWHERE };
    let Some(backend) = tables.backend(id) else { return NOWHERE };
    // Nor has a client a candidate that would know it by another port: a container that is its own, or who knows the host.
    let is_own = backend.hides_clients() || backend.address == question.value().key.source;
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
    let Some(entry) = tables.frontend(frontend) else { return false };
    let Some(scratch) = tables.scratch() else { return false };
    let entry = scratch.frontend(entry);
    question.put(packet, frontend);
    let mut netns = aim(Aim::Accept, entry, tables);
    if netns == NOWHERE || !tables.is_syn_cookie(netns) {
        netns = aim(Aim::AcceptFormer, entry, tables);
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
    if tables.claim(Proto::Tcp) != Insert::Done {
        return false;
    }
    let mut client = Seen(Seen::PROVEN).after(Direction::Ingress, packet.flags);
    if packet.flags.any(Flags::DATA) {
        reply.set_requested_at(now);
        reply.set_request(REQUEST_ASKED);
        client = client.with(Seen::REQUESTED);
    }
    let flow = FlowEntry::new(key, (id, backend.generation), ifindex, client.0, now).seen_as(port);
    let flow = scratch.flow(flow);
    flow.set_server(Seen(Seen::ANSWERED));
    flow.set_awaited_ack(packet.acknowledgement);
    if tables.put_reply(Table::Proven, reply_key, reply) != Insert::Done {
        tables.count(Event::FlowTableFull);
        return false;
    }
    match tables.add_flow(Table::Proven, key, flow) {
        Insert::Done => {}
        // Another processor was faster, and has counted it.
        Insert::Exists => return true,
        Insert::Full => {
            tables.remove_reply(Table::Proven, reply_key);
            tables.count(Event::FlowTableFull);
            return false;
        }
    }
    tables.begun(id);
    tables.held(id);
    if let Some(traffic) = tables.traffic(id) {
        traffic.count_connection();
        traffic.count_ingress(u64::from(arrival.packets), u64::from(arrival.bytes));
    }
    true
}

/// Returns the place among `len` slots to which a hash of the addresses leads; `None` if there are none.
#[inline(always)]
const fn place(spread: u32, len: u32) -> Option<u32> {
    if len == 0 { None } else { Some(((spread as u64 * len as u64) >> 32) as u32) }
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
    /// Returns whether the checksum is right.
    #[inline(always)]
    pub const fn is_whole(self) -> bool {
        let whole = self.header.and(self.pseudo).apply(0);
        self.check == whole || (self.check == 0xffff && whole == 0)
    }

    /// Returns whether the checksum is right, or so far only that of the pseudo-header, as a sender leaves it whose device,
    /// or the virtual one of whose neighbour, completes it. Who sends the second from elsewhere could send the first as
    /// well.
    #[inline(always)]
    pub const fn is_right(self) -> bool {
        self.is_whole() || self.check == !self.pseudo.apply(0)
    }

    /// Returns by how much the header's sum changes if it becomes another.
    #[inline(always)]
    pub const fn header_to(self, header: &[u32; ANSWER_WORDS]) -> Delta {
        Delta::sum(header).replace32(self.header.wsum(), 0)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::{
        cell::{Cell, RefCell},
        ptr::NonNull,
    };
    use std::{boxed::Box, collections::BTreeMap, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        abi::{
            AffinityEntry, AffinityKey, Endpoint, FragmentEntry, FragmentKey, Frontend, Handshakes, Lifetimes, RateKey,
            Scheduler, Slot, SlotRange, Tally, Traffic,
        },
        packet::tests::{tcp, tcp_v6, v6},
        pipeline,
        tables::Scratch,
        tcp_state::State,
    };

    const CLIENT: ([u8; 4], u16) = ([198, 18, 1, 2], 40_000);
    const FRONTEND: ([u8; 4], u16) = ([198, 18, 1, 1], 80);
    const SECOND: KtimeNs = 1_000_000_000;

    /// The maps in memory, three backends that listen in namespaces 1 to 3, and whether these have room.
    struct Memory {
        frontend: Frontend,
        slots: Vec<BackendId>,
        backends: Vec<Backend>,
        guard: Guard,
        has_room: bool,
        capacity: usize,
        ticket: RefCell<u64>,
        /// Connections that have begun, and that are held.
        under_way: Cell<[u64; 2]>,
        flows: [RefCell<BTreeMap<FlowKey, Box<FlowEntry>>>; 3],
        replies: [RefCell<BTreeMap<FlowKey, Box<ReplyEntry>>>; 3],
        events: RefCell<Vec<Event>>,
        asked: RefCell<Vec<u32>>,
        issued: Cells<1>,
        buckets: RefCell<BTreeMap<u32, Cells<1>>>,
        scratch: NonNull<Scratch>,
        traffic: NonNull<Traffic>,
    }

    /// Values that stay where they are.
    struct Cells<const N: usize>(NonNull<[KtimeNs; N]>);

    impl Cells<1> {
        fn new() -> Self {
            Self(NonNull::from(Box::leak(Box::new([0]))))
        }
        fn first(&self) -> Shared<KtimeNs> {
            // SAFETY: it is leaked.
            unsafe { Shared::new(self.0.cast()) }
        }
    }

    impl Memory {
        fn new() -> Self {
            let backend = |number: u8| {
                Backend::new(0, 1, Address::from_v4([198, 18, 2, 11 + number]), Port::new(5000))
                    .listening_in(u32::from(number) + 1)
            };
            Self {
                frontend: Frontend::new(SlotRange { base: 0, len: 3 }, Scheduler::RoundRobin),
                slots: std::vec![0, 1, 2],
                backends: (0..3).map(backend).collect(),
                guard: Guard::default(),
                has_room: false,
                capacity: 1000,
                ticket: RefCell::default(),
                under_way: Cell::default(),
                flows: Default::default(),
                replies: Default::default(),
                events: RefCell::default(),
                asked: RefCell::default(),
                issued: Cells::new(),
                buckets: RefCell::default(),
                // SAFETY: integers and arrays of them only, for which all zero is a value.
                scratch: NonNull::from(Box::leak(Box::new(unsafe { core::mem::zeroed() }))),
                traffic: NonNull::from(Box::leak(Box::new(Traffic::default()))),
            }
        }

        fn publish(&mut self, slots: &[BackendId]) {
            let range = SlotRange { base: self.slots.len() as u32, len: slots.len() as u32 };
            self.slots.extend(slots);
            self.frontend = Frontend::new(range, Scheduler::RoundRobin).after(self.frontend.slots());
        }

        /// What a listener computes from the addresses that it sees.
        fn cookie_of(&self, netns: u32) -> u32 {
            let question = self.question().unwrap().value();
            let words = question.tuple.iter().chain(&question.tcp[..1]).chain([&question.tcp[1], &netns]);
            words.fold(7, |sum: u32, word| sum.rotate_left(5).wrapping_mul(0x9e37_79b1) ^ *word)
        }

        fn entries(&self) -> [usize; 2] {
            [0, 1].map(|table| self.flows[table].borrow().len())
        }

        fn send(&self, flags: u8, sequence: u32, acknowledgement: u32, now: KtimeNs) -> Result<BackendId, Verdict> {
            let packet = segment(flags, sequence, acknowledgement);
            let arrival = Arrival { ifindex: 5, packets: 1, bytes: 54, now };
            match pipeline::ingress(&packet, arrival, self) {
                Ok(to) => Ok(to.id),
                Err(Verdict::Acknowledge) if accept(&packet, &arrival, self) => lead(&packet, self).map(|to| {
                    assert_eq!(to.to.destination, self.backends[to.id as usize].address);
                    to.id
                }),
                Err(Verdict::Acknowledge) => Err(Verdict::Pass(PassReason::NoFlow)),
                Err(Verdict::Answer) => {
                    note_issued(now, self);
                    Err(Verdict::Answer)
                }
                Err(verdict) => Err(verdict),
            }
        }

        /// Sends a SYN that is answered; returns by which number.
        fn cookie(&self, sequence: u32, now: KtimeNs) -> u32 {
            assert_eq!(self.send(Flags::SYN, sequence, 0, now), Err(Verdict::Answer));
            self.question().unwrap().value().answer.sequence
        }
    }

    fn segment(flags: u8, sequence: u32, acknowledgement: u32) -> Headers {
        let mut frame = tcp(CLIENT.0, CLIENT.1, FRONTEND.0, FRONTEND.1, flags);
        frame.0[38..42].copy_from_slice(&sequence.to_be_bytes());
        frame.0[42..46].copy_from_slice(&acknowledgement.to_be_bytes());
        Headers::parse(&frame).unwrap()
    }

    fn shared<T>(value: &mut T) -> Shared<T> {
        // SAFETY: the tests keep the boxes for as long as they use what points into them.
        unsafe { Shared::new(NonNull::from(value)) }
    }

    fn insert<V: Copy>(
        map: &RefCell<BTreeMap<FlowKey, Box<V>>>,
        key: &FlowKey,
        value: Shared<V>,
        full: usize,
    ) -> Insert {
        let mut map = map.borrow_mut();
        if map.len() >= full && !map.contains_key(key) {
            return Insert::Full;
        }
        // SAFETY: as above.
        map.insert(*key, Box::new(unsafe { *value.as_ptr() }));
        Insert::Done
    }

    impl Tables for Memory {
        fn frontend_at(&self, endpoint: &Endpoint) -> Option<FrontendId> {
            (endpoint.port == Port::new(FRONTEND.1)).then_some(0)
        }
        fn is_local_backend(&self, _endpoint: &Endpoint) -> bool {
            false
        }
        fn frontend(&self, _id: FrontendId) -> Option<&Frontend> {
            Some(&self.frontend)
        }
        fn ticket(&self, _id: FrontendId) -> u64 {
            *self.ticket.borrow_mut() += 1;
            *self.ticket.borrow() - 1
        }
        fn slot(&self, index: u32) -> Option<Slot> {
            self.slots.get(index as usize).map(|&backend| Slot { backend, weight: 1 })
        }
        fn backend(&self, id: BackendId) -> Option<&Backend> {
            self.backends.get(id as usize)
        }
        fn traffic(&self, _id: BackendId) -> Option<Shared<Traffic>> {
            // SAFETY: it is leaked.
            Some(unsafe { Shared::new(self.traffic) })
        }
        fn handshakes(&self, _id: BackendId) -> Option<Shared<Handshakes>> {
            None
        }
        fn lifetime_ns(&self, state: State) -> KtimeNs {
            Lifetimes::DEFAULT.of(state)
        }
        fn guard(&self, _frontend: FrontendId) -> Option<&Guard> {
            Some(&self.guard)
        }
        fn source(&self, _frontend: FrontendId, _client: &Address) -> Option<bool> {
            None
        }
        fn bucket(&self, _key: &RateKey) -> Option<Shared<KtimeNs>> {
            None
        }
        fn add_bucket(&self, _key: &RateKey, _full_at: KtimeNs) {}
        fn tally(&self, _id: BackendId) -> Option<Tally> {
            let under_way = self.under_way.get();
            Some(Tally { active: under_way[0], held: under_way[1] })
        }
        fn is_swept(&self, _now: KtimeNs) -> bool {
            true
        }
        fn begun(&self, _id: BackendId) {
            let [active, held] = self.under_way.get();
            self.under_way.set([active + 1, held]);
        }
        fn rouse(&self, _id: BackendId) {}
        fn woken(&self, _id: BackendId) -> Option<Shared<KtimeNs>> {
            None
        }
        fn wake(&self, _wake: &crate::abi::Wake) -> bool {
            false
        }
        fn count_atomically(&self, event: Event) {
            self.count(event);
        }
        fn held(&self, _id: BackendId) {
            let [active, held] = self.under_way.get();
            self.under_way.set([active, held + 1]);
        }
        fn ended(&self, _id: BackendId) {}
        fn forget(&self, key: &FlowKey) {
            pipeline::forget(key, self);
        }
        fn spare(
            &self,
            frontend: (FrontendId, &Frontend),
            client: &FlowKey,
            but: BackendId,
            now: KtimeNs,
        ) -> BackendId {
            pipeline::spare(frontend, client, but, now, self)
        }
        fn look(&self, at: (u32, FrontendId), client: &FlowKey, but: BackendId, limit: u32) -> BackendId {
            pipeline::look(at, client, but, limit, self)
        }
        fn kept(&self, frontend: (FrontendId, &Frontend), client: &FlowKey, but: BackendId, now: KtimeNs) -> BackendId {
            pipeline::kept(frontend, client, but, now, self)
        }
        fn pick(&self, frontend: (FrontendId, &Frontend), client: &FlowKey, but: BackendId, now: KtimeNs) -> BackendId {
            pipeline::pick(frontend, client, but, now, self)
        }
        fn keep(&self, _frontend: FrontendId, _client: &FlowKey, _backend: (BackendId, u32), _now: KtimeNs) {}
        fn note_request(&self, client: &FlowKey, sequence: u32) {
            pipeline::note_request(client, sequence, SECOND, self);
        }
        fn note_response(&self, reply: Shared<ReplyEntry>, id: BackendId, flags: Flags, acknowledged: u32) {
            pipeline::note_response(reply, id, (flags, acknowledged), SECOND, self);
        }
        fn claim(&self, proto: Proto) -> Insert {
            pipeline::claim_key(proto, self)
        }
        fn affinity(&self, _key: &AffinityKey) -> Option<Shared<AffinityEntry>> {
            None
        }
        fn put_affinity(&self, _key: &AffinityKey, _entry: &AffinityEntry) {}
        fn cookies(&self, _frontend: FrontendId) -> Option<Shared<KtimeNs>> {
            Some(self.issued.first())
        }
        fn cookie_bucket(&self, number: u32) -> Option<Shared<KtimeNs>> {
            Some(self.buckets.borrow_mut().entry(number).or_insert_with(Cells::new).first())
        }
        fn syn_cookie(&self, netns: u32) -> bool {
            self.asked.borrow_mut().push(netns);
            let answer = SynCookie { sequence: self.cookie_of(netns), mss: 1460 };
            self.question().unwrap().value().answer = answer;
            !self.has_room
        }
        fn is_syn_cookie(&self, netns: u32) -> bool {
            self.asked.borrow_mut().push(netns);
            let question = self.question().unwrap().value();
            let acknowledged = u32::from_be(question.tcp[2]).wrapping_sub(1);
            // The number of the SYN is one less.
            question.tcp[1] = u32::from_be(question.tcp[1]).wrapping_sub(1).to_be();
            let is_it = acknowledged == self.cookie_of(netns);
            question.tcp[1] = u32::from_be(question.tcp[1]).wrapping_add(1).to_be();
            is_it
        }
        fn count(&self, event: Event) {
            self.events.borrow_mut().push(event);
        }
        fn random(&self) -> u32 {
            4
        }
        fn scratch(&self) -> Option<Shared<Scratch>> {
            // SAFETY: it is leaked.
            Some(unsafe { Shared::new(self.scratch) })
        }
        fn flow(&self, table: Table, key: &FlowKey) -> Option<Shared<FlowEntry>> {
            self.flows[table as usize].borrow_mut().get_mut(key).map(|entry| shared(&mut **entry))
        }
        fn add_flow(&self, table: Table, key: &FlowKey, entry: Shared<FlowEntry>) -> Insert {
            match self.flow(table, key) {
                Some(_) => Insert::Exists,
                None => self.put_flow(table, key, entry),
            }
        }
        fn put_flow(&self, table: Table, key: &FlowKey, entry: Shared<FlowEntry>) -> Insert {
            insert(&self.flows[table as usize], key, entry, self.capacity)
        }
        fn remove_flow(&self, table: Table, key: &FlowKey) -> bool {
            self.flows[table as usize].borrow_mut().remove(key).is_some()
        }
        fn reply(&self, table: Table, key: &FlowKey) -> Option<Shared<ReplyEntry>> {
            self.replies[table as usize].borrow_mut().get_mut(key).map(|entry| shared(&mut **entry))
        }
        fn add_reply(&self, table: Table, key: &FlowKey, entry: Shared<ReplyEntry>) -> Insert {
            match self.reply(table, key) {
                Some(_) => Insert::Exists,
                None => self.put_reply(table, key, entry),
            }
        }
        fn put_reply(&self, table: Table, key: &FlowKey, entry: Shared<ReplyEntry>) -> Insert {
            insert(&self.replies[table as usize], key, entry, usize::MAX)
        }
        fn remove_reply(&self, table: Table, key: &FlowKey) {
            self.replies[table as usize].borrow_mut().remove(key);
        }
        fn fragment(&self, _key: &FragmentKey) -> Option<&FragmentEntry> {
            None
        }
        fn put_fragment(&self, _key: &FragmentKey, _entry: &FragmentEntry) {}
    }

    #[test]
    fn a_syn_without_room_leaves_nothing_and_draws_no_ticket() {
        let tables = Memory::new();

        let (first, second) = (tables.cookie(100, SECOND), tables.cookie(100, 2 * SECOND));

        assert_eq!(first, second);
        assert_eq!(tables.entries(), [0, 0]);
        assert!(tables.replies.iter().all(|replies| replies.borrow().is_empty()));
        assert_eq!((*tables.ticket.borrow(), tables.asked.borrow().len()), (0, 2));
        assert_eq!(*tables.events.borrow(), [Event::CookieIssued; 2]);
    }

    #[test]
    fn with_room_backends_take_their_turns() {
        let tables = Memory { has_room: true, ..Memory::new() };

        assert_eq!(tables.send(Flags::SYN, 100, 0, SECOND), Ok(0));
        assert_eq!(tables.send(Flags::SYN, 100, 0, SECOND), Ok(0), "repeated");

        assert_eq!((tables.entries(), tables.asked.borrow().len()), ([0, 1], 1), "asked once");
        assert_eq!(tables.issued.first().get(), 0);
    }

    #[test]
    fn an_acknowledgement_finds_the_backend_whose_cookie_it_is() {
        let tables = Memory::new();
        let cookie = tables.cookie(100, SECOND);
        let asked = *tables.asked.borrow().last().unwrap();

        let taken = tables.send(Flags::ACK, 101, cookie.wrapping_add(1), SECOND).expect("it is accepted");

        assert_eq!(taken + 1, asked);
        assert_eq!(tables.entries(), [1, 0]);
        let flow = *tables.flows[0].borrow().values().next().unwrap().clone();
        assert_eq!((flow.state(), flow.ifindex, flow.awaited_ack), (State::Established, 5, cookie.wrapping_add(1)));
        let reply = *tables.replies[0].borrow().values().next().unwrap().clone();
        assert_eq!((reply.acknowledged, reply.flags, reply.backend), (101, REPLY_SEEN, taken));
        assert_eq!(tables.send(Flags::ACK, 101, cookie.wrapping_add(1), SECOND), Ok(taken), "repeated");
        assert_eq!(*tables.events.borrow(), [Event::CookieIssued, Event::CookieAccepted]);
        assert_eq!(tables.under_way.get(), [1, 1], "it counts as under way");
    }

    #[test]
    fn what_two_processors_accept_begins_once() {
        let tables = Memory::new();
        let cookie = tables.cookie(100, SECOND);
        let packet = segment(Flags::ACK, 101, cookie.wrapping_add(1));
        let arrival = Arrival { ifindex: 5, packets: 1, bytes: 54, now: SECOND };

        assert!(accept(&packet, &arrival, &tables) && accept(&packet, &arrival, &tables));

        assert_eq!((tables.entries(), tables.under_way.get()), ([1, 0], [1, 1]));
    }

    #[test]
    fn replies_of_an_accepted_cookie_find_home() {
        let tables = Memory::new();
        let cookie = tables.cookie(100, SECOND);
        let taken = tables.send(Flags::ACK, 101, cookie.wrapping_add(1), SECOND).unwrap();
        let mut frame = tcp([198, 18, 2, 11 + taken as u8], 5000, CLIENT.0, CLIENT.1, Flags::ACK);
        frame.0[42..46].copy_from_slice(&101_u32.to_be_bytes());

        let arrival = Arrival { ifindex: 9, packets: 1, bytes: 54, now: SECOND };
        let to = pipeline::egress(&Headers::parse(&frame).unwrap(), arrival, &tables).expect("a reply");

        assert_eq!((to.ifindex, to.to), (5, segment(0, 0, 0).key.reversed()));
    }

    #[test]
    fn who_acknowledges_anything_else_is_refused() {
        let tables = Memory::new();
        let cookie = tables.cookie(100, SECOND);
        let refused = Err(Verdict::Pass(PassReason::NoFlow));

        assert_eq!(tables.send(Flags::ACK, 101, cookie, SECOND), refused);
        assert_eq!(tables.send(Flags::ACK, 102, cookie.wrapping_add(1), SECOND), refused);
        assert_eq!(tables.events.borrow()[1..], [Event::CookieRefused; 2]);
        for flags in [Flags::RST, Flags::RST | Flags::ACK, Flags::SYN | Flags::ACK, Flags::FIN, 0] {
            assert_eq!(tables.send(flags, 101, cookie.wrapping_add(1), SECOND), refused, "{flags:#x}");
        }
        assert_eq!((tables.events.borrow().len(), tables.entries()), (3, [0, 0]));
    }

    #[test]
    fn nobody_is_asked_long_after_the_last_cookie() {
        let tables = Memory::new();
        let cookie = tables.cookie(100, SECOND);
        let late = SECOND + VALID_NS;

        assert!(tables.send(Flags::ACK, 101, cookie.wrapping_add(1), late).is_err());
        assert_eq!(tables.asked.borrow().len(), 1);
        tables.cookie(7, late);
        assert!(tables.send(Flags::ACK, 101, cookie.wrapping_add(1), late + VALID_NS - 1).is_ok(), "while some are");
    }

    #[test]
    fn a_port_with_an_entry_goes_the_usual_way() {
        let mut tables = Memory { has_room: true, ..Memory::new() };
        tables.send(Flags::SYN, 100, 0, SECOND).unwrap();
        tables.has_room = false;

        assert_eq!(tables.send(Flags::SYN, 100, 0, 2 * SECOND), Ok(0), "what goes on");
        let silent = tables.send(Flags::SYN, 100, 0, 6 * SECOND);
        assert_eq!(silent, Ok(1), "what its backend does not answer");
        tables.flows[1].borrow_mut().values_mut().for_each(|flow| flow.egress = Seen::RST);
        assert_eq!(tables.send(Flags::SYN, 900, 0, 7 * SECOND), Ok(2), "what is over");
        assert!(!tables.events.borrow().contains(&Event::CookieIssued));
    }

    #[test]
    fn where_cookies_are_off_nobody_is_asked() {
        let mut tables = Memory::new();
        let cookie = tables.cookie(100, SECOND);
        tables.guard = Guard::default().without_cookies();

        assert_eq!(tables.send(Flags::SYN, 100, 0, SECOND), Ok(0));
        assert_eq!(tables.asked.borrow().len(), 1);
        tables.flows[1].borrow_mut().clear();
        tables.replies[1].borrow_mut().clear();
        assert!(tables.send(Flags::ACK, 101, cookie.wrapping_add(1), SECOND).is_ok(), "what was issued before");
    }

    #[test]
    fn without_a_namespace_or_an_active_backend_nobody_is_asked() {
        for change in [
            (|backend: Backend| Backend::new(0, 1, backend.address, backend.port)) as fn(Backend) -> Backend,
            |backend| Backend::new(1, 1, backend.address, backend.port).listening_in(1),
            |backend| backend.freed(),
            |backend| Backend::new(0, 1, Address::from_v4(CLIENT.0), backend.port).listening_in(1),
        ] {
            let mut tables = Memory::new();
            tables.backends = tables.backends.into_iter().map(change).collect();

            let _whatever = tables.send(Flags::SYN, 100, 0, SECOND);

            assert!(tables.asked.borrow().is_empty());
        }
    }

    #[test]
    fn a_full_table_refuses_cookies_and_says_so() {
        let tables = Memory { capacity: 0, ..Memory::new() };
        let cookie = tables.cookie(100, SECOND);

        assert!(tables.send(Flags::ACK, 101, cookie.wrapping_add(1), SECOND).is_err());

        assert_eq!(tables.events.borrow()[1..], [Event::FlowTableFull, Event::CookieRefused]);
        assert!(tables.replies[0].borrow().is_empty(), "no half stands alone");
    }

    #[test]
    fn a_port_that_another_flow_has_is_refused() {
        let tables = Memory::new();
        let cookie = tables.cookie(100, SECOND);
        let asked = *tables.asked.borrow().last().unwrap();
        let backend = &tables.backends[asked as usize - 1];
        let (client, port) = (Address::from_v4(CLIENT.0), Port::new(CLIENT.1));
        let other = FlowKey::new(client, port, Address::from_v4(FRONTEND.0), Port::new(81), Proto::Tcp);
        let key = FlowKey::new(backend.address, backend.port, client, port, Proto::Tcp);
        let mut holder = ReplyEntry::new(&key, other, (asked - 1, 1, 5), 7, SECOND);
        tables.put_reply(Table::HalfOpen, &key, shared(&mut holder));

        assert!(tables.send(Flags::ACK, 101, cookie.wrapping_add(1), SECOND).is_err());

        assert_eq!(tables.entries(), [0, 0]);
    }

    #[test]
    fn a_network_has_so_many_cookies_a_second() {
        let tables = Memory::new();
        let granted = |client: [u8; 4], times: u64, now| {
            (0..times).filter(|_| spend(&Address::from_v4(client), now, &tables)).count()
        };

        assert_eq!(granted([198, 18, 1, 2], 100, SECOND), 32);
        assert_eq!(granted([198, 18, 1, 3], 100, SECOND), 32, "another");
        assert_eq!(granted([198, 18, 1, 2], 100, 3 * SECOND), 32);
        let v6 = |last| Address::from(std::net::Ipv6Addr::from(v6(last)));
        assert!((0..32).all(|last| spend(&v6(last), SECOND, &tables)));
        assert!(!spend(&v6(99), SECOND, &tables), "all of a /64 together");
    }

    #[test]
    fn buckets_and_candidates_are_spread() {
        let mut numbers = std::collections::BTreeSet::new();
        let mut places = [0; 10];
        for client in 0..100_000_u32 {
            let key = FlowKey::new(
                Address::from_v4((0xc612_0000 + client / 4).to_be_bytes()),
                Port::new(40_000 + (client % 4) as u16),
                Address::from_v4(FRONTEND.0),
                Port::new(80),
                Proto::Tcp,
            );
            places[place(key.spread(), 10).unwrap() as usize] += 1;
            numbers.insert(key.spread() % MAX_COOKIE_RATES);
        }

        assert!(places.iter().all(|count| (9_000..11_000).contains(count)), "{places:?}");
        // So many balls fill so many of the boxes: n (1 - e^(-m/n)).
        assert!((80_000..86_000).contains(&numbers.len()), "{}", numbers.len());
        assert_eq!(place(7, 0), None);
    }

    #[test]
    fn a_listener_answers_by_number_and_segment_size_or_by_an_error() {
        assert_eq!(SynCookie::of(-2), None);
        assert_eq!(SynCookie::of(-22), None);
        let both = 1460_i64 << 32 | 0xfedc_ba98;
        assert_eq!(SynCookie::of(both), Some(SynCookie { sequence: 0xfedc_ba98, mss: 1460 }));
    }

    /// The sum over words of two bytes, RFC 1071, 4.1.
    fn sum(parts: &[&[u8]]) -> u16 {
        let bytes = parts.concat();
        let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn words(bytes: &[u8]) -> Delta {
        bytes
            .chunks(4)
            .fold(Delta::ZERO, |sum, word| sum.and(Delta::sum(&[u32::from_ne_bytes(word.try_into().unwrap())])))
    }

    proptest! {
        #[test]
        fn the_answer_to_any_syn_has_a_right_checksum(
            ports in any::<[u16; 2]>(), numbers in any::<[u32; 2]>(), mss in 0..0x1_0000_u32,
            options in proptest::collection::vec(any::<[u8; 4]>(), 0..=10),
        ) {
            let frame = tcp([198, 18, 1, 2], ports[0], [198, 18, 1, 1], ports[1], Flags::SYN);
            let mut header = [&frame.0[34..54], &options.concat()].concat();
            header[4..8].copy_from_slice(&numbers[0].to_be_bytes());
            let pseudo_of = |len: usize| [&frame.0[26..34], &[0, 6], &(len as u16).to_be_bytes()[..]].concat();
            let check = !sum(&[&pseudo_of(header.len()), &header]);
            header[16..18].copy_from_slice(&check.to_be_bytes());
            let before = Sum {
                header: words(&[&header[..16], &[0, 0], &header[18..]].concat()),
                pseudo: words(&pseudo_of(header.len())),
                check: u16::from_ne_bytes([header[16], header[17]]),
            };
            prop_assert!(before.is_right() && before.is_whole());
            let wrong = Sum { check: before.check ^ 0x10, ..before };
            prop_assert!(!wrong.is_right());
            let begun = Sum { check: sum(&[&pseudo_of(header.len())]).to_be(), ..before };
            prop_assert!(begun.is_right(), "as a sender leaves it to its device");

            let cookie = SynCookie { sequence: numbers[1], mss };
            let wire = Ports { source: ports[0].to_be(), destination: ports[1].to_be() };
            let answer = cookie.answer(wire, numbers[0]);
            let mut bytes: Vec<u8> = answer.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let longer = words(&pseudo_of(24)).and(Delta::ZERO.replace32(before.pseudo.wsum(), 0));
            let check = before.header_to(&answer).apply(longer.apply(before.check));
            bytes[16..18].copy_from_slice(&check.to_ne_bytes());

            prop_assert_eq!(sum(&[&pseudo_of(24), &bytes]), 0xffff);
            prop_assert_eq!(&bytes[..2], &ports[1].to_be_bytes());
            prop_assert_eq!(&bytes[2..4], &ports[0].to_be_bytes());
            prop_assert_eq!(&bytes[4..8], &numbers[1].to_be_bytes());
            prop_assert_eq!(&bytes[8..12], &numbers[0].wrapping_add(1).to_be_bytes());
            prop_assert_eq!(&bytes[12..14], &[0x60, 0x12]);
            prop_assert_eq!(&bytes[20..], &[2, 4, (mss >> 8) as u8, mss as u8]);
        }

        #[test]
        fn a_question_looks_as_the_backend_sees_it(ports in any::<[u16; 2]>(), numbers in any::<[u32; 2]>(), last in 1..=9_u8) {
            let mut frame = tcp_v6((v6(last), ports[0]), (v6(200), 80), Flags::ACK, &[]);
            frame.0[58..62].copy_from_slice(&numbers[0].to_be_bytes());
            frame.0[62..66].copy_from_slice(&numbers[1].to_be_bytes());
            let tables = Memory::new();
            let question = tables.question().unwrap();
            let address = Address::from(std::net::Ipv6Addr::from(v6(100)));

            question.put(&Headers::parse(&frame).unwrap(), 0);
            question.lead_to(&Backend::new(0, 1, address, Port::new(ports[1])));

            let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
            let both = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
            let value = question.value();
            prop_assert_eq!(bytes(&value.tuple), [&v6(last)[..], &v6(100), &both].concat());
            prop_assert_eq!(value.ip[0].to_ne_bytes()[0] >> 4, 6);
            prop_assert_eq!(&bytes(&value.ip)[8..], &[v6(last), v6(100)].concat());
            let tcp = bytes(&value.tcp[..5]);
            prop_assert_eq!(&tcp[..12], &[&both[..], &numbers[0].to_be_bytes(), &numbers[1].to_be_bytes()].concat());
            prop_assert_eq!(&tcp[12..14], &[0x50, Flags::ACK]);
        }

        #[test]
        fn one_publication_between_changes_nothing(first in 1..8_usize, slots in proptest::collection::vec(0..3_u32, 0..8)) {
            let mut tables = Memory::new();
            tables.publish(&[0, 1, 2].repeat(first));
            let cookie = tables.cookie(100, SECOND);
            let asked = *tables.asked.borrow().last().unwrap();

            tables.publish(&slots);

            prop_assert_eq!(tables.send(Flags::ACK, 101, cookie.wrapping_add(1), SECOND), Ok(asked - 1));
        }
    }
}
