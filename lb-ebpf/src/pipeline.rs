//! A packet's way, whole: [`ingress`] from client to backend, [`egress`] back. Both decide; the hooks perform.
//!
//! Ingress, in the order of how often it happens:
//!
//! 1. A known flow, proven if it is TCP: one look-up, its backend, done.
//! 2. Not for a frontend: left to the host.
//! 3. A connection whose client has proven nothing yet. The acknowledgement of the SYN-ACK proves it, and moves it to
//!    the proven ones, where no flood can push it out. When it is over it moves back, where it ages out by itself, so
//!    that the table of the proven holds what lives, with or without an agent. Its old place is kept for that as long as
//!    nobody else needs it.
//! 4. A beginning: a SYN, or any datagram. If the guard lets its client in: the backend that the client keeps, or that the
//!    scheduler chooses; the reply's key is claimed, so that no two flows share one; where the client's port is taken on
//!    the backend's side, the flow gets another. A SYN under a flood of them is answered at once, without an entry
//!    ([`cookie`]).
//! 5. The acknowledgement of such an answer: a flow that is proven from its beginning.
//! 6. Anything else is left to the host, which answers with RST: the honest answer.

use crate::{
    abi::{
        Address, AffinityEntry, AffinityKey, Backend, BackendId, FlowEntry, FlowKey, FragmentEntry, FragmentKey,
        Frontend, FrontendId, HandOff, KtimeNs, Port, Proto, REPLY_FOREIGN, REPLY_SEEN, REQUEST_ASKED, REQUEST_HEARD,
        ReplyEntry, Slot, SlotRange,
    },
    cookie,
    guard::{self, Admission},
    icmp::{IcmpError, Translated},
    packet::Headers,
    sched::{self, NOBODY},
    tables::{FirstFragment, Insert, Scratch, Shared, TOUCH_NS, Table, Tables, afresh},
    tcp_state::{Direction, Flags, Seen, State},
    verdict::{DropReason, Event, PassReason, Verdict},
};

/// By which device a packet came, and how much it is.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The device.
    pub ifindex: u32,
    /// Packets on the wire: more than one if the kernel has merged segments.
    pub packets: u32,
    /// Bytes of those on the wire, link header included.
    pub bytes: u32,
    /// When.
    pub now: KtimeNs,
}

/// A packet on its way to a backend.
#[derive(Clone, Copy)]
pub struct ToBackend<'tables> {
    /// Addresses and ports that it gets.
    pub to: FlowKey,
    /// Where it is handed to.
    pub backend: &'tables Backend,
    /// Its number.
    pub id: BackendId,
}

/// A packet on its way to a client.
#[derive(Clone, Copy)]
pub struct ToClient {
    /// Addresses and ports that it gets.
    pub to: FlowKey,
    /// The device by which it leaves.
    pub ifindex: u32,
}

/// How many source ports are tried when the client's own is taken on the backend's side.
const PORT_TRIES: u32 = 8;
/// Ports that are given to a flow whose own is taken, or is not to be seen: below what Linux gives to sockets by itself
/// (`net.ipv4.ip_local_port_range`), so that none of the host's own connections to the backend is met, and above those of
/// servers.
const OTHER_PORTS: core::ops::Range<u16> = 1024..32_768;
/// How long a SYN waits for its backend before a repetition takes the next one: the second repetition of a client that
/// keeps to RFC 6298 (1 s, then 2 s more).
const SILENCE_NS: KtimeNs = 2_500_000_000;
/// For how long a claimed reply key is its claimant's although there is no flow: another processor may be about to add it.
const CLAIM_NS: KtimeNs = 1_000_000_000;
/// For how long a backend remembers a connection of TCP that is over, and may refuse another one's SYN from the same
/// address and port: `TCP_TIMEWAIT_LEN`, include/net/tcp.h.
const TIME_WAIT_NS: KtimeNs = 60_000_000_000;
/// How far the acknowledgement of a SYN may be ahead of it: by the data that came with it, RFC 7413.
const SYN_WINDOW: u32 = 1 << 16;
/// How far a FIN may be ahead of what the backend has acknowledged, and be believed: all that may be in flight.
const FIN_WINDOW: u32 = 1 << 24;
/// The same for a RST, which ends a connection at once, and for a segment that comes by another device than those before:
/// one in 4096 for who has to guess.
const NARROW_WINDOW: u32 = 1 << 20;

/// For how long what the first fragment has said holds for those that follow it: as long as Linux waits for them
/// (`net.ipv4.ipfrag_time`).
const FRAGMENTS_NS: KtimeNs = 30_000_000_000;

/// Decides what becomes of a fragment that entered by an uplink and is not the first of its datagram: the same. Returns
/// the addresses that it gets.
///
/// # Errors
/// The verdict; [`PassReason::Fragment`] if the first has not been seen.
#[inline(always)]
pub fn ingress_fragment<'t, T: Tables>(
    key: &FragmentKey,
    arrival: Arrival,
    tables: &'t T,
) -> Result<(&'t FragmentEntry, &'t Backend), Verdict> {
    let (first, backend) = follow(key, arrival, tables)?;
    // From another backend, on its way to this door: the first of its datagram is noted by then, and this one is none of
    // that door's.
    if first.ifindex != 0 {
        return Err(Verdict::Pass(PassReason::Fragment));
    }
    if let Some(traffic) = tables.traffic(first.backend) {
        traffic.count_ingress(u64::from(arrival.packets), u64::from(arrival.bytes));
    }
    Ok((first, backend))
}

/// The same for one that entered from a backend.
///
/// # Errors
/// As there.
#[inline(always)]
pub fn egress_fragment<'t, T: Tables>(
    key: &FragmentKey,
    arrival: Arrival,
    tables: &'t T,
) -> Result<&'t FragmentEntry, Verdict> {
    let (first, _) = follow(key, arrival, tables)?;
    if first.ifindex == 0 {
        return Err(Verdict::Pass(PassReason::NotReply));
    }
    if let Some(traffic) = tables.traffic(first.backend) {
        traffic.count_egress(u64::from(arrival.packets), u64::from(arrival.bytes));
    }
    Ok(first)
}

#[inline(always)]
fn follow<'t, T: Tables>(
    key: &FragmentKey,
    arrival: Arrival,
    tables: &'t T,
) -> Result<(&'t FragmentEntry, &'t Backend), Verdict> {
    let first = match tables.fragment(key) {
        Some(first) if arrival.now.saturating_sub(first.seen) <= FRAGMENTS_NS => first,
        Some(_) | None => return Err(Verdict::Pass(PassReason::Fragment)),
    };
    Ok((first, serving(first.backend, first.generation, tables)?))
}

/// Returns the backend of a flow.
///
/// # Errors
/// [`PassReason::BackendGone`] if it serves the flow no longer.
#[inline(always)]
fn serving<T: Tables>(id: BackendId, generation: u32, tables: &T) -> Result<&Backend, Verdict> {
    match tables.backend(id) {
        Some(backend) if backend.serves(generation) => Ok(backend),
        Some(_) | None => Err(Verdict::Pass(PassReason::BackendGone)),
    }
}

/// Notes what became of a first fragment that went to a backend, for those that follow it.
#[inline(always)]
pub fn remember_ingress<T: Tables>(now: KtimeNs, tables: &T) {
    let Some(scratch) = tables.scratch() else { return };
    let FirstFragment { key, flow: as_sent, entry } = scratch.first_fragment();
    if let Some(proto) = as_sent.proto()
        && let Some(flow) = forward_half(as_sent, proto, tables)
        && let Some(backend) = tables.backend(flow.backend())
    {
        let client = flow.client().address(as_sent.source, backend.host_address);
        (entry.seen, entry.source, entry.destination) = (now, client, backend.address);
        (entry.backend, entry.generation, entry.ifindex) = (flow.backend(), flow.generation(), 0);
        tables.put_fragment(key, entry);
    }
}

/// The same of one that came from a backend.
#[inline(always)]
pub fn remember_egress<T: Tables>(now: KtimeNs, tables: &T) {
    let Some(scratch) = tables.scratch() else { return };
    let FirstFragment { key, flow: as_sent, entry } = scratch.first_fragment();
    if let Some(proto) = as_sent.proto()
        && let Some(reply) = reply_half(as_sent, proto, tables)
    {
        let to = reply.flow();
        (entry.seen, entry.source, entry.destination) = (now, to.destination, to.source);
        (entry.backend, entry.generation, entry.ifindex) = (reply.backend(), reply.generation(), reply.ifindex());
        tables.put_fragment(key, entry);
    }
}

/// Decides to which backend an ICMP error that entered by an uplink goes: to the one that sent what it is about.
///
/// # Errors
/// The verdict, if it is about no packet of a backend.
#[inline(always)]
pub fn ingress_error<'t, T: Tables>(
    error: &IcmpError,
    arrival: Arrival,
    tables: &'t T,
) -> Result<(Translated, &'t Backend), Verdict> {
    let key = error.about.reversed();
    let Some(flow) = forward_half(&key, error.proto, tables) else { return Err(Verdict::Pass(PassReason::Protocol)) };
    let (id, generation, port) = (flow.backend(), flow.generation(), flow.seen_client_port());
    let seen = flow.client();
    if flow.tag() != key.tag() {
        return Err(Verdict::Drop(DropReason::Raced));
    }
    let backend = serving(id, generation, tables)?;
    if is_at_its_end(error.ttl) && !matches!(backend.hand_off(), HandOff::Local) {
        return Err(Verdict::Drop(DropReason::TtlExpired));
    }
    let client = seen.address(key.source, backend.host_address);
    tables.count(Event::IcmpError);
    if let Some(traffic) = tables.traffic(id) {
        traffic.count_ingress(u64::from(arrival.packets), u64::from(arrival.bytes));
    }
    let about = FlowKey::new(backend.address, backend.port, client, port, error.proto);
    // An address of the link that it came by says nothing on another, and no router sends it on.
    let source = if error.source.is_of_link() { key.destination } else { error.source };
    Ok((Translated { source, destination: backend.address, about }, backend))
}

/// Decides to which client an ICMP error that entered from a backend goes: to the one that sent what it is about. Returns
/// also the device by which it leaves.
///
/// # Errors
/// The verdict, if it is about no packet of a client.
#[inline(always)]
pub fn egress_error<T: Tables>(error: &IcmpError, arrival: Arrival, tables: &T) -> Result<(Translated, u32), Verdict> {
    let key = error.about.reversed();
    let reply = match reply_half(&key, error.proto, tables) {
        Some(reply) if reply.flags() & REPLY_FOREIGN == 0 => reply,
        Some(_) | None => return Err(Verdict::Pass(PassReason::Protocol)),
    };
    let (id, generation, ifindex, about) = (reply.backend(), reply.generation(), reply.ifindex(), reply.flow());
    if reply.tag() != key.tag() {
        return Err(Verdict::Drop(DropReason::Raced));
    }
    let backend = serving(id, generation, tables)?;
    if is_at_its_end(error.ttl) && !matches!(backend.hand_off(), HandOff::Local) {
        return Err(Verdict::Drop(DropReason::TtlExpired));
    }
    // A router behind the device speaks for itself, if others know its address.
    let source =
        if error.source == backend.address || error.source.is_of_link() { about.destination } else { error.source };
    tables.count(Event::IcmpError);
    if let Some(traffic) = tables.traffic(id) {
        traffic.count_egress(u64::from(arrival.packets), u64::from(arrival.bytes));
    }
    Ok((Translated { source, destination: about.source, about }, ifindex))
}

/// Looks for a flow where it can be.
#[inline(always)]
fn forward_half<T: Tables>(key: &FlowKey, proto: Proto, tables: &T) -> Option<Shared<FlowEntry>> {
    match proto {
        Proto::Tcp => connection(key, tables).map(|(_, flow)| flow),
        Proto::Udp => tables.flow(Table::Datagrams, key),
    }
}

/// The same for its reply half.
#[inline(always)]
fn reply_half<T: Tables>(key: &FlowKey, proto: Proto, tables: &T) -> Option<Shared<ReplyEntry>> {
    match proto {
        Proto::Tcp => tables.reply(Table::Proven, key).or_else(|| tables.reply(Table::HalfOpen, key)),
        Proto::Udp => tables.reply(Table::Datagrams, key),
    }
}

/// Returns the address by which this host is the router of a backend that has sent a packet of this key.
#[inline(always)]
pub fn gateway<T: Tables>(key: &FlowKey, proto: Proto, tables: &T) -> Option<Address> {
    let reply = reply_half(key, proto, tables)?;
    match tables.backend(reply.backend()) {
        Some(backend) if !backend.host_address.is_none() => Some(backend.host_address),
        Some(_) | None => Some(reply.flow().destination),
    }
}

/// Decides what becomes of a packet from a client that may pass no more routers.
#[inline(always)]
pub fn ingress_expired<T: Tables>(key: &FlowKey, tables: &T) -> Verdict {
    let flow = key.proto().and_then(|proto| forward_half(key, proto, tables));
    match flow.is_some() || tables.frontend_at(&key.to()).is_some() {
        true => Verdict::Drop(DropReason::TtlExpired),
        false => Verdict::Pass(PassReason::NotOurs),
    }
}

/// The same for one from a backend.
#[inline(always)]
pub fn egress_expired<T: Tables>(key: &FlowKey, tables: &T) -> Verdict {
    match key.proto().and_then(|proto| reply_half(key, proto, tables)) {
        Some(_) => Verdict::Drop(DropReason::TtlExpired),
        None => Verdict::Pass(PassReason::NotReply),
    }
}

/// Returns whether a packet from a client ends at this host, where its backend is: that of its flow, or else the first of
/// its frontend.
#[inline(always)]
pub fn ends_here<T: Tables>(key: &FlowKey, tables: &T) -> bool {
    let known = key.proto().and_then(|proto| forward_half(key, proto, tables)).map(Shared::<FlowEntry>::backend);
    let first = || {
        let frontend = tables.frontend_at(&key.to()).and_then(|id| tables.frontend(id))?;
        tables.slot(frontend.slots().base).map(|slot| slot.backend)
    };
    let backend = known.or_else(first).and_then(|id| tables.backend(id));
    backend.is_some_and(|backend| matches!(backend.hand_off(), HandOff::Local))
}

/// Returns whether a packet may pass no more routers, and this host is one.
#[inline(always)]
pub const fn is_at_its_end(ttl: u8) -> bool {
    ttl <= 1
}

/// Decides what becomes of a packet that entered by an uplink.
///
/// # Errors
/// The verdict, if the packet goes to no backend.
#[inline(always)]
pub fn ingress<'t, T: Tables>(packet: &Headers, arrival: Arrival, tables: &'t T) -> Result<ToBackend<'t>, Verdict> {
    let table = match packet.proto {
        Proto::Tcp => Table::Proven,
        Proto::Udp => Table::Datagrams,
    };
    let known = match going_on(table, packet, arrival, tables) {
        GoingOn::Yes(known) => known,
        GoingOn::No | GoingOn::Over | GoingOn::Orphan(_) => match begin(packet, arrival, tables)? {
            Begun::Before(known) => known,
            Begun::Now(to) => return Ok(to),
        },
    };
    proceed(packet, arrival, &known, tables)
}

/// A flow that goes on.
struct Known<'tables> {
    table: Table,
    flow: Shared<FlowEntry>,
    backend: &'tables Backend,
}

/// Whether a flow goes on.
enum GoingOn<'tables> {
    Yes(Known<'tables>),
    /// There is none.
    No,
    /// It is over, or as good as: the packet begins another under its key.
    Over,
    /// Its backend is gone ([`NOBODY`]), or that of this number does not answer.
    Orphan(BackendId),
}

/// Looks for the packet's flow in a table.
#[inline(always)]
fn going_on<'t, T: Tables>(table: Table, packet: &Headers, arrival: Arrival, tables: &'t T) -> GoingOn<'t> {
    let Some(flow) = tables.flow(table, &packet.key) else { return GoingOn::No };
    let id = flow.backend();
    let serving = match tables.backend(id) {
        Some(backend) if backend.serves(flow.generation()) => Some(backend),
        Some(_) | None => None,
    };
    let (silent, over) = (is_silent(packet, flow, arrival.now), restarts(packet, flow, arrival.now, tables));
    // Between the look-up and here, the memory may have become another flow's; this one has been moved or removed then.
    if flow.tag() != packet.key.tag() || flow.client().any(Seen::MOVED) {
        return GoingOn::No;
    }
    match serving {
        None => GoingOn::Orphan(NOBODY),
        Some(_) if silent => GoingOn::Orphan(id),
        Some(_) if over => GoingOn::Over,
        Some(backend) => GoingOn::Yes(Known { table, flow, backend }),
    }
}

/// What became of a packet that belongs to no flow that goes on and is proven, if it is TCP.
enum Begun<'tables> {
    /// It belongs to a flow after all.
    Before(Known<'tables>),
    /// A flow begins with it.
    Now(ToBackend<'tables>),
}

#[inline(always)]
fn begin<'t, T: Tables>(packet: &Headers, arrival: Arrival, tables: &'t T) -> Result<Begun<'t>, Verdict> {
    let Some(frontend) = tables.frontend_at(&packet.key.to()) else {
        return Err(Verdict::Pass(PassReason::NotOurs));
    };
    let table = match packet.proto {
        Proto::Tcp => Table::HalfOpen,
        Proto::Udp => Table::Datagrams,
    };
    let (mut orphan, mut silent, mut fresh) = (false, NOBODY, true);
    match going_on(table, packet, arrival, tables) {
        GoingOn::Yes(known) if is_shut_out(packet, &known, tables) => match packet.flags.opens() {
            true => orphan = true,
            false => return Err(Verdict::Drop(DropReason::ForeignReset)),
        },
        GoingOn::Yes(known) => match packet.proto {
            Proto::Tcp => {
                advance(packet, arrival, &known, tables);
                // It may have moved. What this very segment does, such as a FIN, belongs to the entry of now.
                return match going_on(Table::Proven, packet, arrival, tables) {
                    GoingOn::Yes(proven) => Ok(Begun::Before(proven)),
                    GoingOn::No | GoingOn::Over | GoingOn::Orphan(_) => Ok(Begun::Before(known)),
                };
            }
            Proto::Udp => return Ok(Begun::Before(known)),
        },
        GoingOn::Orphan(id) => (orphan, silent) = (true, id),
        GoingOn::Over => fresh = false,
        GoingOn::No => {}
    }
    // A second look: the flow may have moved between the tables, from under the two looks above.
    if matches!(packet.proto, Proto::Tcp) {
        match going_on(Table::Proven, packet, arrival, tables) {
            GoingOn::Yes(known) => return Ok(Begun::Before(known)),
            GoingOn::Orphan(_) => orphan = true,
            GoingOn::Over => fresh = false,
            GoingOn::No => {}
        }
        if !packet.flags.opens() {
            if !orphan && cookie::may_acknowledge(packet.flags, frontend, arrival.now, tables) {
                return Err(Verdict::Acknowledge);
            }
            return Err(Verdict::Pass(if orphan { PassReason::BackendGone } else { PassReason::NoFlow }));
        }
    }
    // The host stands in for a client by a port that one of its frontends has: this is the reply, and the reply door's. Of
    // TCP, nothing but a SYN comes so far.
    if matches!(packet.proto, Proto::Udp)
        && OTHER_PORTS.contains(&packet.key.destination_port.number())
        && tables.reply(Table::Datagrams, &packet.key).is_some()
    {
        return Err(Verdict::Pass(PassReason::NotOurs));
    }
    let is_first = fresh && !orphan;
    let begun = schedule(packet, arrival, (frontend, silent, is_first), tables)?;
    // Nobody else may have room, and its backend may answer yet.
    match &begun {
        Begun::Now(to) if to.id == silent => note_repetition(silent, true, tables),
        Begun::Now(_) | Begun::Before(_) if orphan => tables.count(Event::Rescheduled),
        Begun::Now(_) | Begun::Before(_) => {}
    }
    Ok(begun)
}

/// Counts a SYN that was seen before; of its backend, if that has not answered: else the answer was lost on its way, or
/// somebody does not care for it.
#[inline(always)]
fn note_repetition<T: Tables>(id: BackendId, is_unanswered: bool, tables: &T) {
    tables.count(Event::SynRetransmitted);
    // Should the first have found no room to wake it.
    tables.rouse(id);
    if is_unanswered && let Some(handshakes) = tables.handshakes(id) {
        handshakes.count_retransmitted();
    }
}

/// Takes a connection that is not among the proven one step further.
#[inline(always)]
fn advance<T: Tables>(packet: &Headers, arrival: Arrival, known: &Known<'_>, tables: &T) {
    let flow = known.flow;
    let late = is_late(arrival, flow.last_seen());
    if packet.flags.opens() {
        note_repetition(flow.backend(), matches!(flow.state(), State::SynSent), tables);
    }
    let proven = flow.client().any(Seen::PROVEN);
    let moves = if proven { late && !flow.state().is_over() } else { proves(packet, flow) };
    if packet.flags.opens() || late || moves {
        let reply = renew_reply(packet, arrival, known, tables);
        if moves {
            flow.set_client(flow.client().with(Seen::PROVEN));
            promote(packet, known, reply, tables);
        }
    }
}

/// Decides what becomes of a packet that entered from a backend.
///
/// # Errors
/// The verdict, if the packet is no reply of a flow.
#[inline(always)]
pub fn egress<T: Tables>(packet: &Headers, arrival: Arrival, tables: &T) -> Result<ToClient, Verdict> {
    let first_table = match packet.proto {
        Proto::Tcp => Table::Proven,
        Proto::Udp => Table::Datagrams,
    };
    let (table, reply) = match tables.reply(first_table, &packet.key) {
        Some(reply) => (first_table, reply),
        None => match packet.proto {
            Proto::Tcp => match tables.reply(Table::HalfOpen, &packet.key) {
                Some(reply) => (Table::HalfOpen, reply),
                None => return Err(Verdict::Pass(PassReason::NotReply)),
            },
            Proto::Udp => return Err(Verdict::Pass(PassReason::NotReply)),
        },
    };
    let (id, generation, ifindex) = (reply.backend(), reply.generation(), reply.ifindex());
    let to = reply.flow().reversed();
    let first = reply.flags() & REPLY_SEEN == 0;
    let late = is_late(arrival, reply.last_seen());
    // Between the look-up and here, the memory may have become another flow's.
    if reply.tag() != packet.key.tag() {
        return Err(Verdict::Drop(DropReason::Raced));
    }
    serving(id, generation, tables)?;
    // Before that, the entry tells which acknowledgement answers the SYN. Later, it may be another flow's.
    let former = reply.acknowledged();
    let acknowledges = packet.flags.any(Flags::ACK) && packet.acknowledgement != former;
    // Before its end is noted, by which the entry may go.
    if reply.request() != 0 {
        tables.note_response(reply, id, packet.flags, packet.acknowledgement ^ former);
    }
    if acknowledges && (!first || answers(packet, reply)) {
        reply.set_acknowledged(packet.acknowledgement);
    }
    // The client's acknowledgements keep a proven connection, not what its backend sends.
    let is_proven = matches!(table, Table::Proven);
    if packet.flags.moves() || first || (late && !is_proven) {
        note_reply(packet, arrival, (table, reply), (&to.reversed(), id, generation), tables)?;
    } else if late {
        reply.set_last_seen(arrival.now);
    }
    if let Some(traffic) = tables.traffic(id) {
        traffic.count_egress(u64::from(arrival.packets), u64::from(arrival.bytes));
    }
    Ok(ToClient { to, ifindex })
}

/// Decides what becomes of a packet that leaves this host: as [`egress`] does, where a backend that is the host itself has
/// sent it. All that the host sends comes here, so that is asked of a table that is small, and before all else.
///
/// # Errors
/// As there.
#[inline(always)]
pub fn egress_local<T: Tables>(
    packet: &Headers,
    arrival: impl FnOnce() -> Arrival,
    tables: &T,
) -> Result<ToClient, Verdict> {
    match tables.is_local_backend(&packet.key.from()) {
        true => egress(packet, arrival(), tables),
        false => Err(Verdict::Pass(PassReason::NotReply)),
    }
}

/// Tells the flow's forward half what its backend did.
///
/// # Errors
/// The verdict, if the packet is none of the flow's. A SYN-ACK that no SYN of the flow has asked for answers somebody
/// who has gone to the backend directly, from the port that a flow used before: that is none of ours, and neither is
/// what follows it. What does not answer a SYN that waits for its answer is of a connection that was there before, or that
/// the backend remembers, and the repeated SYN takes another port. A segment of a connection that the client's port has
/// left for another backend ends here: its client would answer it with a reset.
#[inline(always)]
fn note_reply<T: Tables>(
    packet: &Headers,
    arrival: Arrival,
    (table, reply): (Table, Shared<ReplyEntry>),
    (key, id, generation): (&FlowKey, BackendId, u32),
    tables: &T,
) -> Result<(), Verdict> {
    if reply.flags() & REPLY_FOREIGN != 0 && !answers(packet, reply) {
        return Err(foreign(packet, arrival, reply));
    }
    let found = match table {
        Table::Proven | Table::HalfOpen => connection(key, tables),
        Table::Datagrams => tables.flow(Table::Datagrams, key).map(|flow| (Table::Datagrams, flow)),
    };
    match found.filter(|(_, flow)| flow.tag() == key.tag()) {
        Some((at, flow))
            if flow.backend() == id
                && flow.generation() == generation
                && flow.seen_client_port() == packet.key.destination_port =>
        {
            if matches!(flow.state(), State::SynSent) && !answers(packet, reply) {
                let verdict = foreign(packet, arrival, reply);
                // By a bare acknowledgement a stack tells that it knows another connection (RFC 9293, 3.10.7.4). Its client
                // repeats a SYN that is answered so at once, and not after a second; the reset that it sends first ends
                // at `begin`. Were it the other connection's own, the next acknowledgement says the same and more.
                return if is_bare(packet) { Ok(()) } else { Err(verdict) };
            }
            let before = flow.server();
            if packet.flags.accepts() {
                if flow.state().is_over() {
                    return Err(disown(packet, tables));
                }
                flow.set_awaited_ack(packet.sequence.wrapping_add(1));
            }
            note_answer(packet, arrival, flow, id, tables);
            flow.set_last_seen(arrival.now);
            let after = match packet.proto {
                Proto::Tcp => before.after(Direction::Egress, packet.flags),
                Proto::Udp => before.with(Seen::ANSWERED),
            };
            if after != before && flow.tag() == key.tag() {
                flow.set_server(after);
                // It may have been moved meanwhile: this side or that of `promote` sees what the other has written, but for
                // the nanoseconds that a store waits; then the connection counts as open until it has idled out.
                if matches!(at, Table::HalfOpen)
                    && flow.client().any(Seen::MOVED)
                    && let Some(moved) = tables.flow(Table::Proven, key)
                    && moved.tag() == key.tag()
                {
                    moved.set_server(moved.server().with(after.0));
                }
                // Read again: the client's FIN may have come on another processor since.
                if matches!((at, table), (Table::Proven, Table::Proven)) && flow.state().is_over() {
                    retire((key, flow), (&packet.key, reply), tables);
                }
            }
        }
        Some(_) if matches!(packet.proto, Proto::Tcp) => return Err(Verdict::Drop(DropReason::StaleReply)),
        Some(_) | None => {
            if packet.flags.accepts() {
                return Err(disown(packet, tables));
            }
            if packet.flags.moves() {
                tables.count(Event::OrphanReply);
            }
        }
    }
    reply.set_last_seen(arrival.now);
    reply.set_flags(REPLY_SEEN);
    Ok(())
}

/// Counts how a backend answers, before the flow is told.
#[inline(always)]
fn note_answer<T: Tables>(packet: &Headers, arrival: Arrival, flow: Shared<FlowEntry>, id: BackendId, tables: &T) {
    let (accepts, resets) = (packet.flags.accepts(), packet.flags.any(Flags::RST));
    if !(accepts || resets) {
        return;
    }
    let Some(handshakes) = tables.handshakes(id) else { return };
    match (matches!(flow.state(), State::SynSent), accepts) {
        (true, true) => handshakes.count_accepted(arrival.now.saturating_sub(flow.last_seen())),
        (true, false) => handshakes.count_refused(),
        (false, true) => {}
        (false, false) => handshakes.count_reset(),
    }
}

/// Notes a client's first request, so that what its backend answers is timed. `client` is the flow's key, and the
/// request begins at `sequence`.
///
/// Not by a segment that is out of the window: it may be of one who guesses, or probe whether the connection is still there.
///
/// Two processors may have two segments of it at once: the time is that of either. Should the backend have answered before
/// the second is noted, its next answer is counted as well.
#[inline(always)]
pub fn note_request<T: Tables>(client: &FlowKey, sequence: u32, now: KtimeNs, tables: &T) {
    let Some(scratch) = tables.scratch() else { return };
    // What a caller points to is no key of a map for the verifier of 6.1.
    let Some((_, flow)) = connection(scratch.copy_of(client), tables) else { return };
    let Some(backend) = tables.backend(flow.backend()) else { return };
    let known_by = if flow.client().any(Seen::STAND_IN) { &backend.host_address } else { &client.source };
    let key = scratch.key_of_replies(backend, known_by, flow.seen_client_port());
    let Some(reply) = reply_half(key, Proto::Tcp, tables) else { return };
    // Between the look-ups and here, the memory may have become another flow's.
    if !reply.leads_to(client)
        || flow.tag() != client.tag()
        || sequence.wrapping_sub(reply.acknowledged()) >= NARROW_WINDOW
    {
        return;
    }
    reply.set_requested_at(now);
    reply.set_request(REQUEST_ASKED);
    // A FIN of the same client may be noted at this moment by another processor, and be lost: then the connection counts as
    // open until it has idled out.
    flow.set_client(flow.client().with(Seen::REQUESTED));
}

/// Counts what a backend sends as the answer to a request, if it is. `acknowledged` is not zero if it
/// acknowledges something that was not acknowledged before.
///
/// What a server sends before it has received anything of the request is no answer to it: both sides of SSH begin at once.
/// The entry may have become another flow's: then its answer is not counted, or too early.
#[inline(always)]
pub fn note_response<T: Tables>(
    reply: Shared<ReplyEntry>,
    id: BackendId,
    (flags, acknowledged): (Flags, u32),
    now: KtimeNs,
    tables: &T,
) {
    if acknowledged != 0 {
        reply.set_request(REQUEST_HEARD);
    }
    if !flags.any(Flags::DATA) || reply.request() != REQUEST_HEARD {
        return;
    }
    reply.set_request(0);
    if let Some(handshakes) = tables.handshakes(id) {
        handshakes.count_response(now.saturating_sub(reply.requested_at()));
    }
}

/// Looks for a connection where it can be. It may move from the second place to the first between the two looks there.
#[inline(always)]
fn connection<T: Tables>(key: &FlowKey, tables: &T) -> Option<(Table, Shared<FlowEntry>)> {
    for table in [Table::Proven, Table::HalfOpen, Table::Proven] {
        if let Some(flow) = tables.flow(table, key)
            && !flow.client().any(Seen::MOVED)
        {
            return Some((table, flow));
        }
    }
    None
}

/// Returns whether a segment answers the SYN of the flow, of which this is the reply half.
#[inline(always)]
fn answers(packet: &Headers, reply: Shared<ReplyEntry>) -> bool {
    let acknowledges = packet.acknowledgement.wrapping_sub(reply.acknowledged()) < SYN_WINDOW;
    packet.flags.any(Flags::ACK) && packet.flags.any(Flags::SYN | Flags::RST) && acknowledges
}

/// Returns whether a segment is an acknowledgement and nothing else.
#[inline(always)]
fn is_bare(packet: &Headers) -> bool {
    packet.flags.any(Flags::ACK) && !packet.flags.any(Flags::SYN | Flags::FIN | Flags::RST | Flags::DATA)
}

/// Notes that the reply key is another connection's, which goes past us.
#[inline(always)]
fn foreign(packet: &Headers, arrival: Arrival, reply: Shared<ReplyEntry>) -> Verdict {
    if reply.tag() == packet.key.tag() {
        reply.set_flags(REPLY_FOREIGN);
        reply.set_last_seen(arrival.now);
    }
    Verdict::Pass(PassReason::NotReply)
}

/// Returns whether a repeated SYN, or a reset, meets at its backend a connection that goes past us and has the same ports.
#[inline(always)]
fn is_shut_out<T: Tables>(packet: &Headers, known: &Known<'_>, tables: &T) -> bool {
    (packet.flags.opens() || packet.flags.any(Flags::RST))
        && matches!(known.flow.state(), State::SynSent)
        && tables.reply(known.table, &reply_key(packet, known)).is_some_and(|reply| reply.flags() & REPLY_FOREIGN != 0)
}

/// Gives up a reply key: a connection that is none of ours has it.
#[inline(always)]
fn disown<T: Tables>(packet: &Headers, tables: &T) -> Verdict {
    tables.remove_reply(Table::Proven, &packet.key);
    tables.remove_reply(Table::HalfOpen, &packet.key);
    Verdict::Pass(PassReason::NotReply)
}

/// Moves a connection that is over out of the proven ones, back to where it came from, if that place is still its own.
/// That comes first: another processor finds it in one place or the other.
#[inline(always)]
fn retire<T: Tables>(
    (key, flow): (&FlowKey, Shared<FlowEntry>),
    (reply_key, reply): (&FlowKey, Shared<ReplyEntry>),
    tables: &T,
) {
    // To change what is there costs a tenth of an insertion. Should the place become another flow's right now, that one
    // takes this one's end for its own, and is scheduled anew by its next SYN.
    let reply_is_back = match tables.reply(Table::HalfOpen, reply_key) {
        Some(former) if former.is_of(reply_key, reply) => {
            former.set_last_seen(reply.last_seen());
            former.set_ifindex(reply.ifindex());
            former.set_acknowledged(reply.acknowledged());
            former.set_flags(reply.flags());
            true
        }
        Some(_) | None => tables.put_reply(Table::HalfOpen, reply_key, reply) == Insert::Done,
    };
    let flow_is_back = match tables.flow(Table::HalfOpen, key) {
        Some(former) if former.is_of(key, flow) => {
            former.set_last_seen(flow.last_seen());
            former.set_ifindex(flow.ifindex());
            former.set_server(flow.server());
            former.set_client(flow.client());
            true
        }
        Some(_) | None => tables.put_flow(Table::HalfOpen, key, flow) == Insert::Done,
    };
    if reply_is_back && flow_is_back {
        let id = flow.backend();
        // Of two processors that get here at once, one has ended it.
        if tables.remove_flow(Table::Proven, key) {
            tables.ended(id);
        }
        tables.remove_reply(Table::Proven, reply_key);
    }
}

/// Removes a connection from the proven ones whose key another one takes: it was over, had idled out or lost its backend.
#[inline(always)]
pub fn forget<T: Tables>(key: &FlowKey, tables: &T) {
    // What a caller points to is no key of a map for the verifier of 6.1.
    let Some(key) = tables.scratch().map(|scratch| scratch.copy_of(key)) else { return };
    let Some(flow) = tables.flow(Table::Proven, key) else { return };
    let (id, generation) = (flow.backend(), flow.generation());
    if tables.remove_flow(Table::Proven, key)
        && let Some(backend) = tables.backend(id)
        && backend.serves(generation)
    {
        tables.ended(id);
    }
}

/// Returns whether the packet begins another flow under the key of one that is over.
///
/// That one is scheduled like any other: a client that uses its ports over and over would otherwise never see another
/// backend. The reply half of the old one stays, so that late segments still find home.
#[inline(always)]
fn restarts<T: Tables>(packet: &Headers, flow: Shared<FlowEntry>, now: KtimeNs, tables: &T) -> bool {
    match packet.proto {
        Proto::Tcp => packet.flags.opens() && (flow.state().is_over() || flow.is_expired(now, tables)),
        Proto::Udp => flow.is_expired(now, tables),
    }
}

/// Returns whether a SYN has been repeated for so long that its backend must be thought dead.
#[inline(always)]
fn is_silent(packet: &Headers, flow: Shared<FlowEntry>, now: KtimeNs) -> bool {
    packet.flags.opens() && matches!(flow.state(), State::SynSent) && now.saturating_sub(flow.last_seen()) >= SILENCE_NS
}

/// Returns whether an entry has to be told that it is still in use. A stamp of another processor may be a tick ahead.
#[inline(always)]
const fn is_late(arrival: Arrival, last_seen: KtimeNs) -> bool {
    arrival.now.saturating_sub(last_seen) >= TOUCH_NS
}

/// Sends a packet on to its flow's backend.
///
/// # Errors
/// [`DropReason::Raced`].
#[inline(always)]
fn proceed<'t, T: Tables>(
    packet: &Headers,
    arrival: Arrival,
    known: &Known<'t>,
    tables: &T,
) -> Result<ToBackend<'t>, Verdict> {
    let Known { flow, backend, .. } = *known;
    let id = flow.backend();
    let to = to_backend(packet, known);
    let late = is_late(arrival, flow.last_seen());
    let asks = flow.client().asks(packet.flags);
    if flow.tag() != packet.key.tag() {
        return Err(Verdict::Drop(DropReason::Raced));
    }
    // Before all that is seldom: what is counted need not be kept on the stack beside that.
    if let Some(traffic) = tables.traffic(id) {
        traffic.count_ingress(u64::from(arrival.packets), u64::from(arrival.bytes));
    }
    if packet.flags.ends() {
        note_end(packet, arrival, known, tables);
    }
    if late {
        touch(packet, arrival, known, tables);
    }
    if asks {
        tables.note_request(&packet.key, packet.sequence);
    }
    Ok(ToBackend { to, backend, id })
}

/// Once a second at most: tells the entry that it is in use, and its reply half by which device the client comes. Replies
/// of UDP leave by the device of its first datagram.
#[inline(always)]
fn touch<T: Tables>(packet: &Headers, arrival: Arrival, known: &Known<'_>, tables: &T) {
    let flow = known.flow;
    // The stamp of a connection that nobody has answered tells when it began.
    if !matches!(flow.state(), State::SynSent) {
        flow.set_last_seen(arrival.now);
    }
    if matches!(known.table, Table::Datagrams) {
        let _taken_or_there = renew_reply(packet, arrival, known, tables);
    }
    // Only where the packet shows that its sender knows the connection: who can forge addresses must not draw replies to
    // another device.
    if flow.ifindex() != arrival.ifindex
        && matches!(packet.proto, Proto::Tcp)
        && let Some(reply) = tables.reply(known.table, &reply_key(packet, known))
        && packet.sequence.wrapping_sub(reply.acknowledged()) < NARROW_WINDOW
        && reply.leads_to(&packet.key)
    {
        flow.set_ifindex(arrival.ifindex);
        reply.set_ifindex(arrival.ifindex);
    }
}

/// Notes a client's FIN or RST, if it is within the window: who only guesses the ports must not end a connection.
///
/// # Source
/// RFC 5961, 3.2, with the window that can be known from between the two ends.
#[inline(always)]
fn note_end<T: Tables>(packet: &Headers, arrival: Arrival, known: &Known<'_>, tables: &T) {
    let flow = known.flow;
    let before = flow.client();
    let after = before.after(Direction::Ingress, packet.flags);
    if after == before {
        return;
    }
    let reply_key = reply_key(packet, known);
    let Some(reply) = tables.reply(known.table, &reply_key) else { return };
    // A connection that is over may have lost its key to another one of the same client and server.
    if !reply.leads_to(&packet.key) {
        return;
    }
    let window = if packet.flags.any(Flags::RST) { NARROW_WINDOW } else { FIN_WINDOW };
    if packet.sequence.wrapping_sub(reply.acknowledged()) >= window {
        tables.count(Event::OutOfWindow);
        return;
    }
    if flow.tag() != packet.key.tag() {
        return;
    }
    flow.set_client(after);
    flow.set_last_seen(arrival.now);
    // Read again: the backend's FIN may have come on another processor since.
    if matches!(known.table, Table::Proven) && flow.state().is_over() {
        retire((&packet.key, flow), (&reply_key, reply), tables);
    }
}

/// Returns whether the packet shows that its sender has received what the backend sent.
#[inline(always)]
fn proves(packet: &Headers, flow: Shared<FlowEntry>) -> bool {
    let acknowledges = packet.flags.any(Flags::ACK) && !packet.flags.any(Flags::RST);
    match flow.state() {
        State::SynReceived => acknowledges && packet.acknowledgement == flow.awaited_ack(),
        State::SynSent
        | State::Established
        | State::ClientClosed
        | State::BackendClosed
        | State::Closed
        | State::Reset
        | State::UdpUnreplied
        | State::UdpReplied => false,
    }
}

/// Moves a connection to the proven ones: reply half first, so that the forward half never stands alone. If there is no
/// room, it works on where it is, and is tried again a second later.
///
/// Both halves stay behind, the forward one marked as moved, and age out unless the connection comes back when it is over:
/// another processor may be between its two look-ups.
#[inline(always)]
fn promote<T: Tables>(packet: &Headers, known: &Known<'_>, reply: Option<Shared<ReplyEntry>>, tables: &T) {
    let reply_key = reply_key(packet, known);
    if let Some(reply) = reply {
        let before = known.flow.server();
        reply.set_flags(REPLY_SEEN);
        if tables.put_reply(Table::Proven, &reply_key, reply) == Insert::Done {
            match tables.add_flow(Table::Proven, &packet.key, known.flow) {
                Insert::Done => {
                    tables.held(known.flow.backend());
                    if known.flow.tag() == packet.key.tag() {
                        known.flow.set_client(known.flow.client().with(Seen::MOVED));
                        let after = known.flow.server();
                        if after != before {
                            catch_up(packet, after, (&reply_key, reply), tables);
                        }
                    }
                    tables.count(Event::Proven);
                    return;
                }
                // Another processor was faster.
                Insert::Exists => return,
                Insert::Full => tables.remove_reply(Table::Proven, &reply_key),
            }
        }
    }
    tables.count(Event::FlowTableFull);
}

/// Tells a connection that has just been moved what its backend did meanwhile, on another processor, to the entry that it
/// was copied from.
#[inline(always)]
fn catch_up<T: Tables>(packet: &Headers, server: Seen, (reply_key, reply): (&FlowKey, Shared<ReplyEntry>), tables: &T) {
    let Some(flow) = tables.flow(Table::Proven, &packet.key) else { return };
    if flow.tag() != packet.key.tag() {
        return;
    }
    flow.set_server(flow.server().with(server.0));
    if flow.state().is_over() {
        retire((&packet.key, flow), (reply_key, reply), tables);
    }
}

/// Puts the reply half of a flow back, should it have been pushed out, and returns it, unless its key is another flow's by
/// now.
#[inline(always)]
fn renew_reply<T: Tables>(
    packet: &Headers,
    arrival: Arrival,
    known: &Known<'_>,
    tables: &T,
) -> Option<Shared<ReplyEntry>> {
    let flow = known.flow;
    let reply_key = reply_key(packet, known);
    let expected = packet.sequence.wrapping_add(u32::from(packet.flags.opens()));
    // An insertion that fails costs as much as one that does not.
    if let Some(there) = tables.reply(known.table, &reply_key) {
        if there.tag() != reply_key.tag() || !there.leads_to(&packet.key) {
            return None;
        }
        // A client that has given up may try again from the same port, by another sequence.
        if packet.flags.opens() && there.flags() & REPLY_SEEN == 0 {
            there.set_acknowledged(expected);
        }
        return Some(there);
    }
    let whose = (flow.backend(), flow.generation(), flow.ifindex());
    let reply = tables.scratch()?.reply(ReplyEntry::new(&reply_key, packet.key, whose, expected, arrival.now));
    match tables.add_reply(known.table, &reply_key, reply) {
        Insert::Done => tables.reply(known.table, &reply_key),
        Insert::Exists | Insert::Full => None,
    }
}

/// Returns the key of what a backend sends to the client of a flow.
#[inline(always)]
fn reply_key(packet: &Headers, known: &Known<'_>) -> FlowKey {
    to_backend(packet, known).reversed()
}

/// Returns the addresses and ports by which a backend is sent what a client of a flow sends.
#[inline(always)]
fn to_backend(packet: &Headers, known: &Known<'_>) -> FlowKey {
    let Known { flow, backend, .. } = *known;
    let client = flow.client().address(packet.key.source, backend.host_address);
    FlowKey::new(client, flow.seen_client_port(), backend.address, backend.port, packet.proto)
}

/// A backend that was chosen.
#[derive(Clone, Copy)]
pub struct Choice<'tables> {
    /// Its number.
    pub id: BackendId,
    /// The backend.
    pub backend: &'tables Backend,
    /// Whether there is nothing to be kept: the client keeps it already, or clients of the frontend keep none. Otherwise
    /// it is to be kept when the connection has begun, and not when it comes to nothing.
    pub is_kept: bool,
}

/// Chooses the backend of a client that begins a connection, another than `but` where there is one: the one that it keeps,
/// or the scheduler's choice.
///
/// # Errors
/// The verdict, if there is none.
#[inline(always)]
pub fn choose<'t, T: Tables>(
    (frontend, entry): (FrontendId, &Frontend),
    client: &FlowKey,
    but: BackendId,
    now: KtimeNs,
    tables: &'t T,
) -> Result<Choice<'t>, Verdict> {
    let kept = if entry.affinity_ns() == 0 { NOBODY } else { tables.kept((frontend, entry), client, but, now) };
    let mut id = if kept < FIRST_OF_NONE { kept } else { tables.pick((frontend, entry), client, but, now) };
    if id == STALE {
        id = tables.spare((frontend, entry), client, but, now);
    }
    match tables.backend(id) {
        Some(backend) if backend.is_active() && backend.frontend == frontend => {
            Ok(Choice { id, backend, is_kept: kept != NOT_YET })
        }
        None if id == NOBODY => Err(Verdict::Pass(PassReason::NoBackend)),
        None if id == FULL => Err(Verdict::Drop(DropReason::BackendsFull)),
        None if id == ITSELF => Err(Verdict::Drop(DropReason::NoStandIn)),
        Some(_) | None => Err(Verdict::Pass(PassReason::StaleSlot)),
    }
}

/// From this number on they are no backends'.
const FIRST_OF_NONE: BackendId = NOBODY - 3;
/// Clients of the frontend keep their backends, and this one has none.
const NOT_YET: BackendId = NOBODY - 1;
/// No backend could be chosen for a publication that goes on.
const STALE: BackendId = NOBODY - 1;
/// All that were looked at have as many connections as they may.
const FULL: BackendId = NOBODY - 2;
/// The only one is the client itself, [`is_itself`].
const ITSELF: BackendId = NOBODY - 3;
/// How many backends in a row are looked at for one that may have one more connection, where the scheduler's choice has come
/// to nothing. A SYN that is repeated begins at another.
const SPARE_LOOKS: u64 = 256;

/// Returns the number of the backend that a client keeps, unless it is `but`; [`NOT_YET`] if there is none that serves. From
/// here on it is kept anew. Clients of the frontend keep backends.
#[inline(always)]
pub fn kept<T: Tables>(
    (frontend, entry): (FrontendId, &Frontend),
    client: &FlowKey,
    but: BackendId,
    now: KtimeNs,
    tables: &T,
) -> BackendId {
    if let Some(kept) = tables.affinity(&AffinityKey::new(client.source, frontend)) {
        let (id, generation) = (kept.backend(), kept.generation());
        if now.saturating_sub(kept.seen()) <= entry.affinity_ns()
            && id != but
            && let Some(backend) = tables.backend(id)
            && backend.serves(generation)
            && backend.frontend == frontend
            && !backend.is_leaving()
            && !is_itself(backend, client)
            && !sched::is_full(id, limit(entry, now, tables), tables)
        {
            kept.set_seen(now);
            return id;
        }
    }
    NOT_YET
}

/// Notes which backend a client keeps.
#[inline(always)]
pub fn keep<T: Tables>(
    frontend: FrontendId,
    client: &FlowKey,
    (backend, generation): (BackendId, u32),
    now: KtimeNs,
    tables: &T,
) {
    let key = AffinityKey::new(client.source, frontend);
    tables.put_affinity(&key, &AffinityEntry { seen: now, backend, generation });
}

/// Returns how many connections of each backend of a frontend may be under way; zero: any number. So it is while nobody
/// sweeps, or connections that ended unseen would fill the backends for ever.
#[inline(always)]
fn limit<T: Tables>(frontend: &Frontend, now: KtimeNs, tables: &T) -> u32 {
    match frontend.max_connections() {
        0 => 0,
        limit if tables.is_swept(now) => limit,
        _ => 0,
    }
}

/// Returns the number of the backend that the scheduler chooses, [`NOBODY`] if there is none, or [`STALE`] if it
/// may have no more connections.
#[inline(always)]
pub fn pick<T: Tables>(
    (frontend, entry): (FrontendId, &Frontend),
    client: &FlowKey,
    but: BackendId,
    now: KtimeNs,
    tables: &T,
) -> BackendId {
    if entry.slots().len == 0 {
        return NOBODY;
    }
    let limit = limit(entry, now, tables);
    // A number, and no `Option`: of one that is none, LLVM stores what it leaves undefined, and the verifier of 6.18 says
    // "R4 !read_ok".
    let id = sched::pick((frontend, entry), client, but, limit, tables).unwrap_or(NOBODY);
    match tables.backend(id) {
        Some(backend) if id != but && takes((id, backend), frontend, client, limit, tables) => id,
        Some(_) | None => STALE,
    }
}

/// Returns whether a backend may have one more connection.
#[inline(always)]
fn takes<T: Tables>(
    (id, backend): (BackendId, &Backend),
    frontend: FrontendId,
    client: &FlowKey,
    limit: u32,
    tables: &T,
) -> bool {
    backend.is_active()
        && backend.frontend == frontend
        && !is_itself(backend, client)
        && !sched::is_full(id, limit, tables)
}

/// Looks for a backend where the scheduler's choice has come to nothing: it is full, does not answer, or a publication has
/// replaced it meanwhile. Each is looked at once, from the one on whose turn it is. If there is none, it is the one that has
/// not answered: its client is there already, however many others are.
#[inline(always)]
pub fn spare<T: Tables>(
    (frontend, entry): (FrontendId, &Frontend),
    client: &FlowKey,
    but: BackendId,
    now: KtimeNs,
    tables: &T,
) -> BackendId {
    let (SlotRange { base, len }, limit) = (entry.roll(), limit(entry, now, tables));
    if len == 0 {
        return NOBODY;
    }
    let ticket = tables.ticket(frontend);
    for look in 0..SPARE_LOOKS {
        // Of a number that it knew to be the same each time, LLVM would count down the lesser of both, and the verifier of 6.1
        // follow a loop whose end it cannot see.
        if look >= u64::from(afresh(&len)) {
            break;
        }
        let place = base.wrapping_add(sched::place(ticket.wrapping_add(look), len));
        let id = tables.look((place, frontend), client, but, limit);
        if id < FIRST_OF_NONE {
            return id;
        }
    }
    if let Some(backend) = tables.backend(but)
        && backend.is_active()
        && backend.frontend == frontend
    {
        return but;
    }
    if let Some(first) = tables.slot(base)
        && let Some(backend) = tables.backend(first.backend)
        && is_itself(backend, client)
    {
        return ITSELF;
    }
    // Some of them may have been replaced meanwhile, which the next SYN does not meet.
    if limit == 0 { STALE } else { FULL }
}

/// Returns the backend at a place if it may have one more connection, and is not `but`; otherwise [`STALE`].
#[inline(always)]
pub fn look<T: Tables>(
    (place, frontend): (u32, FrontendId),
    client: &FlowKey,
    but: BackendId,
    limit: u32,
    tables: &T,
) -> BackendId {
    if let Some(Slot { backend: id, weight: _ }) = tables.slot(place)
        && id != but
        && let Some(backend) = tables.backend(id)
        && takes((id, backend), frontend, client, limit, tables)
    {
        return id;
    }
    STALE
}

/// Returns whether a backend is the client, or is to know none, and nobody can stand in for it there: it would see its own
/// address as the source, which its stack refuses (RFC 1812, 5.3.8), and routing refuses the host's own as one that came
/// from elsewhere.
#[inline(always)]
fn is_itself(backend: &Backend, client: &FlowKey) -> bool {
    hides(backend, &client.source)
        && (backend.host_address.is_none() || matches!(backend.hand_off(), HandOff::Routing | HandOff::Local))
}

/// Returns whether a backend is to know a client by the host's address instead of its own. This host as its own client
/// needs none to stand in: sockets are led by `connect()`, and what comes from elsewhere by an address of the host is
/// forged, as its stack will find.
#[inline(always)]
fn hides(backend: &Backend, client: &Address) -> bool {
    backend.hides_clients() || (backend.address == *client && !matches!(backend.hand_off(), HandOff::Local))
}

/// Begins a flow.
#[inline(always)]
fn schedule<'t, T: Tables>(
    packet: &Headers,
    arrival: Arrival,
    (frontend, silent, is_first): (FrontendId, BackendId, bool),
    tables: &'t T,
) -> Result<Begun<'t>, Verdict> {
    match guard::admit(&packet.key.source, frontend, arrival.now, tables) {
        Admission::Granted => {}
        Admission::Denied => return Err(Verdict::Drop(DropReason::Denied)),
        Admission::TooMany => return Err(Verdict::Drop(DropReason::RateLimited)),
    }
    let Some(scratch) = tables.scratch() else { return Err(Verdict::Drop(DropReason::NoMemory)) };
    let entry = match tables.frontend(frontend) {
        Some(entry) => scratch.frontend(entry),
        None => return Err(Verdict::Pass(PassReason::NoBackend)),
    };
    // What has an entry already takes no more room, and would meet it with the acknowledgement of a cookie.
    if is_first && packet.flags.opens() && cookie::is_offered(packet, (frontend, entry), tables) {
        return Err(Verdict::Answer);
    }
    let Choice { id, backend, is_kept } = choose((frontend, entry), &packet.key, silent, arrival.now, tables)?;
    // A container that is its own client would see its own address as the source, which its stack refuses (RFC 1812,
    // 5.3.8): it sees the host instead, by a port that is not one of the host's own. So does a backend whose replies would
    // not come back otherwise.
    let (client, wanted, stand_in) = if hides(backend, &packet.key.source) {
        (backend.host_address, other_port(tables), Seen::STAND_IN)
    } else {
        (packet.key.source, packet.key.source_port, 0)
    };
    let port = match claim(packet, arrival, (client, wanted), (id, backend), scratch, tables) {
        Ok(port) => port,
        Err(reason) => return Err(Verdict::Drop(reason)),
    };
    let (table, ingress) = match packet.proto {
        Proto::Tcp => {
            tables.forget(&packet.key);
            (Table::HalfOpen, 0)
        }
        Proto::Udp => (Table::Datagrams, Seen::DATAGRAMS),
    };
    tables.remove_flow(table, &packet.key);
    let whose = (id, backend.generation);
    let flow = FlowEntry::new(&packet.key, whose, arrival.ifindex, ingress | stand_in, arrival.now).seen_as(port);
    match tables.add_flow(table, &packet.key, scratch.flow(flow)) {
        Insert::Done => {}
        // Another processor has begun it at the same moment: one flow, one backend. What was claimed here ages out.
        Insert::Exists => {
            return match going_on(table, packet, arrival, tables) {
                GoingOn::Yes(known) => Ok(Begun::Before(known)),
                GoingOn::No | GoingOn::Over | GoingOn::Orphan(_) => Err(Verdict::Drop(DropReason::Raced)),
            };
        }
        Insert::Full => return Err(Verdict::Drop(DropReason::NoMemory)),
    }
    if !is_kept {
        tables.keep(frontend, &packet.key, whose, arrival.now);
    }
    if id != silent {
        tables.begun(id);
    }
    if matches!(packet.proto, Proto::Udp) {
        tables.held(id);
    }
    if let Some(traffic) = tables.traffic(id) {
        if id != silent {
            traffic.count_connection();
        }
        traffic.count_ingress(u64::from(arrival.packets), u64::from(arrival.bytes));
    }
    let to = FlowKey::new(client, port, backend.address, backend.port, packet.proto);
    Ok(Begun::Now(ToBackend { to, backend, id }))
}

/// Claims the key of a flow's replies and returns the port by which the backend knows the client: the one that is
/// wanted, or another where that one is taken.
#[inline(always)]
fn claim<T: Tables>(
    packet: &Headers,
    arrival: Arrival,
    (client, mut port): (Address, Port),
    (id, backend): (BackendId, &Backend),
    scratch: Shared<Scratch>,
    tables: &T,
) -> Result<Port, DropReason> {
    let whose = (id, backend.generation, arrival.ifindex);
    // The next that the backend can expect is what follows the SYN.
    let expected = packet.sequence.wrapping_add(1);
    for attempt in 0..PORT_TRIES {
        let key = scratch.reply_key(FlowKey::new(backend.address, backend.port, client, port, packet.proto));
        scratch.reply(ReplyEntry::new(key, packet.key, whose, expected, arrival.now));
        match tables.claim(packet.proto) {
            Insert::Done => {
                if attempt > 0 {
                    tables.count(Event::PortRemapped);
                }
                return Ok(port);
            }
            Insert::Full => return Err(DropReason::NoMemory),
            Insert::Exists => {}
        }
        port = other_port(tables);
    }
    Err(DropReason::NoSourcePort)
}

/// Returns a port that the host gives to none of its sockets.
#[inline(always)]
fn other_port<T: Tables>(tables: &T) -> Port {
    const COUNT: u32 = (OTHER_PORTS.end - OTHER_PORTS.start) as u32;
    Port::new((tables.random() % COUNT) as u16 + OTHER_PORTS.start)
}

/// Claims the key of the reply half that was written last, taking it over from a flow that is over.
#[inline(always)]
pub fn claim_key<T: Tables>(proto: Proto, tables: &T) -> Insert {
    let Some((key, reply)) = tables.scratch().map(Shared::<Scratch>::written_reply) else { return Insert::Full };
    let table = match proto {
        Proto::Tcp => {
            if let Some(holder) = tables.reply(Table::Proven, key) {
                if is_held(holder, reply, proto, tables) {
                    return Insert::Exists;
                }
                tables.remove_reply(Table::Proven, key);
            }
            Table::HalfOpen
        }
        Proto::Udp => Table::Datagrams,
    };
    match tables.add_reply(table, key, reply) {
        Insert::Exists => match tables.reply(table, key) {
            Some(holder) if is_held(holder, reply, proto, tables) => Insert::Exists,
            Some(_) | None => tables.put_reply(table, key, reply),
        },
        done_or_full => done_or_full,
    }
}

/// Returns whether a reply half belongs to another flow that goes on, or that the backend still remembers.
#[inline(always)]
fn is_held<T: Tables>(holder: Shared<ReplyEntry>, claimant: Shared<ReplyEntry>, proto: Proto, tables: &T) -> bool {
    let silent_for = claimant.last_seen().saturating_sub(holder.last_seen());
    if holder.flags() & REPLY_FOREIGN != 0 {
        return silent_for < TIME_WAIT_NS;
    }
    if holder.is_of_same_flow(claimant) {
        return false;
    }
    if matches!(proto, Proto::Tcp) && silent_for < TIME_WAIT_NS {
        return true;
    }
    // Not on the stack, of which this is the deepest place.
    let Some(scratch) = tables.scratch() else { return true };
    let (now, key) = (claimant.last_seen(), scratch.flow_of(holder));
    match forward_half(key, proto, tables).filter(|flow| flow.tag() == key.tag()) {
        Some(flow) => {
            flow.backend() == holder.backend()
                && flow.generation() == holder.generation()
                && !flow.state().is_over()
                && !flow.is_expired(now, tables)
        }
        None => silent_for < CLAIM_NS,
    }
}
