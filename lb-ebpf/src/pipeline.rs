//! A packet's way, whole: [`ingress`] from client to backend, [`egress`] back. Both decide; the hooks perform.
//!
//! Ingress, in the order of how often it happens:
//!
//! 1. A proven flow: one look-up, its backend, done.
//! 2. Not for a frontend: left to the host.
//! 3. A flow whose client has proven nothing yet. The acknowledgement of the SYN-ACK proves it (for UDP: a datagram
//!    after an answer), and moves it to the proven ones, where no flood can push it out.
//! 4. A beginning: a SYN, or any datagram. The next backend in turn; the reply's key is claimed, so that no two flows
//!    share one; where the client's port is taken on the backend's side, the flow gets another.
//! 5. Anything else is left to the host, which answers with RST: the honest answer.

use crate::{
    abi::{Backend, BackendId, FlowEntry, FlowKey, FrontendId, KtimeNs, Port, Proto, REPLY_SEEN, ReplyEntry},
    packet::Headers,
    sched,
    tables::{Insert, Shared, TOUCH_NS, Tables},
    tcp_state::{Direction, Flags, Seen, State},
    verdict::{DropReason, Event, PassReason, Verdict},
};

/// By which device a packet came, and its length.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The device.
    pub ifindex: u32,
    /// Bytes, link header included.
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

/// Lowest port that is given to a flow whose own is taken.
const FIRST_OTHER_PORT: u16 = 1024;

/// Decides what becomes of a packet that entered by an uplink.
///
/// # Errors
/// The verdict, if the packet goes to no backend.
#[inline(always)]
pub fn ingress<'t, T: Tables>(packet: &Headers, arrival: Arrival, tables: &'t T) -> Result<ToBackend<'t>, Verdict> {
    if let Some(flow) = tables.flow(&packet.key) {
        let entry = flow.copy();
        if let Some(backend) = serving(&entry, tables)
            && !restarts(packet, &entry)
        {
            return Ok(proceed(packet, arrival, flow, &entry, backend, tables));
        }
    }
    begin(packet, arrival, tables)
}

/// Decides about a packet that belongs to no proven flow that goes on.
#[inline(always)]
fn begin<'t, T: Tables>(packet: &Headers, arrival: Arrival, tables: &'t T) -> Result<ToBackend<'t>, Verdict> {
    let Some(frontend) = tables.frontend_at(&packet.key.to()) else {
        return Err(Verdict::Pass(PassReason::NotOurs));
    };
    let mut orphan = false;
    if let Some(flow) = tables.half_open(&packet.key) {
        let entry = flow.copy();
        // Another processor may have moved the flow to the proven ones meanwhile, and its memory may be another flow's
        // by now: what was read counts only if the flow is still there.
        if tables.half_open(&packet.key).is_some() {
            match serving(&entry, tables) {
                Some(backend) if !restarts(packet, &entry) => {
                    if packet.flags.opens() {
                        tables.count(Event::SynRetransmitted);
                        renew_reply(packet, arrival, &entry, backend, tables);
                    } else if proves(packet, &entry) {
                        promote(packet, arrival, flow, &entry, backend, tables);
                    }
                    return Ok(proceed(packet, arrival, flow, &entry, backend, tables));
                }
                Some(_) => {}
                None => orphan = true,
            }
        }
    }
    // A second look: the flow may have moved from the half-open to the proven between the two looks above.
    if let Some(flow) = tables.flow(&packet.key) {
        let entry = flow.copy();
        match serving(&entry, tables) {
            Some(backend) if !restarts(packet, &entry) => {
                return Ok(proceed(packet, arrival, flow, &entry, backend, tables));
            }
            Some(_) => {}
            None => orphan = true,
        }
    }
    match packet.proto {
        Proto::Tcp if !packet.flags.opens() => {
            Err(Verdict::Pass(if orphan { PassReason::BackendGone } else { PassReason::NoFlow }))
        }
        Proto::Tcp | Proto::Udp => {
            if orphan {
                tables.count(Event::Rescheduled);
            }
            schedule(packet, arrival, frontend, tables)
        }
    }
}

/// Decides what becomes of a packet that entered from a backend.
///
/// # Errors
/// The verdict, if the packet is no reply of a flow.
#[inline(always)]
pub fn egress<T: Tables>(packet: &Headers, arrival: Arrival, tables: &T) -> Result<ToClient, Verdict> {
    let (reply, entry) = match tables.reply(&packet.key) {
        Some(reply) => (reply, reply.copy()),
        None => match tables.half_open_reply(&packet.key) {
            Some(reply) => {
                let entry = reply.copy();
                // As at ingress: what was read counts only if it is still there.
                if tables.half_open_reply(&packet.key).is_none() {
                    return Err(Verdict::Pass(PassReason::NotReply));
                }
                (reply, entry)
            }
            None => return Err(Verdict::Pass(PassReason::NotReply)),
        },
    };
    let id = entry.backend;
    let generation = entry.generation;
    match tables.backend(id) {
        Some(backend) if backend.serves(generation) => {}
        Some(_) | None => return Err(Verdict::Pass(PassReason::BackendGone)),
    }
    let first = entry.flags & REPLY_SEEN == 0;
    let late = arrival.now.wrapping_sub(entry.last_seen) >= TOUCH_NS;
    if packet.flags.moves() || first || late {
        if note_reply(packet, arrival, &entry.flow, (id, generation), tables) == Belongs::No {
            tables.remove_reply(&packet.key);
            tables.remove_half_open_reply(&packet.key);
            return Err(Verdict::Pass(PassReason::NotReply));
        }
        reply.set_last_seen(arrival.now);
        reply.set_flags(entry.flags | REPLY_SEEN);
    }
    if let Some(traffic) = tables.traffic(id) {
        traffic.count_egress(u64::from(arrival.bytes));
    }
    Ok(ToClient { to: entry.flow.reversed(), ifindex: entry.ifindex })
}

/// Whether a packet from a backend is a reply of the flow whose key it has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Belongs {
    Yes,
    No,
}

/// Tells the flow's forward half what its backend did.
///
/// A SYN-ACK that no SYN of the flow has asked for answers somebody who has gone to the backend directly, from the port
/// that a flow used before: that is none of ours, and neither is what follows it.
#[inline(always)]
fn note_reply<T: Tables>(
    packet: &Headers,
    arrival: Arrival,
    flow_key: &FlowKey,
    (id, generation): (BackendId, u32),
    tables: &T,
) -> Belongs {
    let flow = match tables.flow(flow_key) {
        Some(flow) => Some(flow),
        None => tables.half_open(flow_key),
    };
    match flow {
        Some(flow) if flow.backend() == id && flow.generation() == generation => {
            if packet.flags.accepts() && flow.state().is_over() {
                return Belongs::No;
            }
            flow.set_last_seen(arrival.now);
            let before = flow.server();
            let after = match packet.proto {
                Proto::Tcp => before.after(Direction::Egress, packet.flags),
                Proto::Udp => before.with(Seen::ANSWERED),
            };
            if packet.flags.accepts() && !before.any(Seen::ANSWERED) {
                flow.set_awaited_ack(packet.sequence.wrapping_add(1));
            }
            if after != before {
                flow.set_server(after);
            }
        }
        Some(_) | None => {
            if packet.flags.accepts() {
                return Belongs::No;
            }
            if packet.flags.moves() {
                tables.count(Event::OrphanReply);
            }
        }
    }
    Belongs::Yes
}

/// Returns the backend of a flow, while it serves it.
#[inline(always)]
fn serving<'t, T: Tables>(entry: &FlowEntry, tables: &'t T) -> Option<&'t Backend> {
    match tables.backend(entry.backend) {
        Some(backend) if backend.serves(entry.generation) => Some(backend),
        Some(_) | None => None,
    }
}

/// Returns whether the packet begins another connection under the key of one that is over.
///
/// That connection is scheduled like any other: a client that uses its ports over and over would otherwise never see
/// another backend. The reply half of the old one stays until it is swept, so that late segments still find home.
#[inline(always)]
fn restarts(packet: &Headers, entry: &FlowEntry) -> bool {
    packet.flags.opens() && entry.state().is_over()
}

/// Sends a packet on to its flow's backend.
#[inline(always)]
fn proceed<'t, T: Tables>(
    packet: &Headers,
    arrival: Arrival,
    flow: Shared<FlowEntry>,
    entry: &FlowEntry,
    backend: &'t Backend,
    tables: &'t T,
) -> ToBackend<'t> {
    if packet.flags.moves() {
        let before = flow.client();
        let after = before.after(Direction::Ingress, packet.flags);
        if after != before {
            flow.set_client(after);
        }
    }
    if arrival.now.wrapping_sub(entry.last_seen) >= TOUCH_NS {
        flow.set_last_seen(arrival.now);
    }
    let id = entry.backend;
    if let Some(traffic) = tables.traffic(id) {
        traffic.count_ingress(u64::from(arrival.bytes));
    }
    let to = FlowKey::new(entry.seen_client, entry.seen_client_port, backend.address, backend.port, packet.proto);
    ToBackend { to, backend, id }
}

/// Returns whether the packet shows that its sender has received what the backend sent.
#[inline(always)]
fn proves(packet: &Headers, entry: &FlowEntry) -> bool {
    if Seen(entry.ingress).any(Seen::STAYS_HALF_OPEN) {
        return false;
    }
    let acknowledges = packet.flags.any(Flags::ACK) && !packet.flags.any(Flags::RST);
    match entry.state() {
        State::SynReceived => acknowledges && packet.acknowledgement == entry.awaited_ack,
        // A backend that speaks first and closes at once has moved the flow on; any acknowledgement will do.
        State::BackendClosed => acknowledges,
        State::UdpReplied => true,
        State::SynSent
        | State::Established
        | State::ClientClosed
        | State::Closed
        | State::Reset
        | State::UdpUnreplied => false,
    }
}

/// Moves a flow to the proven ones: reply half first, so that the forward half never stands alone.
///
/// The half-open reply stays behind and ages out: another processor may be between its two look-ups.
#[inline(always)]
fn promote<T: Tables>(
    packet: &Headers,
    arrival: Arrival,
    flow: Shared<FlowEntry>,
    entry: &FlowEntry,
    backend: &Backend,
    tables: &T,
) {
    let reply_key = reply_key(backend, entry.seen_client, entry.seen_client_port, packet.proto);
    let mut reply = ReplyEntry::new(packet.key, entry.backend, entry.generation, entry.ifindex, arrival.now);
    reply.flags = REPLY_SEEN;
    if tables.put_reply(&reply_key, &reply) == Insert::Done {
        let mut proven = *entry;
        proven.last_seen = arrival.now;
        proven.ingress |= Seen::PROVEN;
        match tables.add_flow(&packet.key, &proven) {
            Insert::Done => {
                tables.remove_half_open(&packet.key);
                tables.count(Event::Proven);
                return;
            }
            // Another processor was faster.
            Insert::Exists => return,
            Insert::Full => tables.remove_reply(&reply_key),
        }
    }
    flow.set_client(Seen(entry.ingress).with(Seen::PROVEN | Seen::STAYS_HALF_OPEN));
    tables.count(Event::FlowTableFull);
}

/// Puts the reply half of a half-open flow back, should it have been pushed out.
#[inline(always)]
fn renew_reply<T: Tables>(packet: &Headers, arrival: Arrival, entry: &FlowEntry, backend: &Backend, tables: &T) {
    let reply_key = reply_key(backend, entry.seen_client, entry.seen_client_port, packet.proto);
    let reply = ReplyEntry::new(packet.key, entry.backend, entry.generation, arrival.ifindex, arrival.now);
    let _taken_or_there = tables.claim_half_open_reply(&reply_key, &reply);
}

/// Returns the key of what a backend sends to a client.
#[inline(always)]
const fn reply_key(backend: &Backend, client: crate::abi::Address, client_port: Port, proto: Proto) -> FlowKey {
    FlowKey::new(backend.address, backend.port, client, client_port, proto)
}

/// Chooses the backend whose turn it is.
///
/// # Errors
/// Why there is none.
#[inline(always)]
pub fn choose<T: Tables>(frontend: FrontendId, tables: &T) -> Result<(BackendId, &Backend), PassReason> {
    // Twice: between reading the slot range and the backend, a publication may have replaced both.
    for _ in 0..2 {
        let Some(entry) = tables.frontend(frontend) else { return Err(PassReason::NoBackend) };
        let slots = entry.slots();
        if slots.len == 0 {
            return Err(PassReason::NoBackend);
        }
        let Some(place) = sched::pick(entry.scheduler(), tables.ticket(frontend), slots.len) else {
            return Err(PassReason::NoBackend);
        };
        if let Some(id) = tables.slot(slots.base.wrapping_add(place))
            && let Some(backend) = tables.backend(id)
            && backend.is_active()
            && backend.frontend == frontend
        {
            return Ok((id, backend));
        }
    }
    Err(PassReason::StaleSlot)
}

/// Begins a flow.
#[inline(always)]
fn schedule<'t, T: Tables>(
    packet: &Headers,
    arrival: Arrival,
    frontend: FrontendId,
    tables: &'t T,
) -> Result<ToBackend<'t>, Verdict> {
    let (id, backend) = match choose(frontend, tables) {
        Ok(chosen) => chosen,
        Err(reason) => return Err(Verdict::Pass(reason)),
    };
    // A container that is its own client would see its own address as the source, which its stack refuses (RFC 1812,
    // 5.3.8): it sees the host instead.
    let client = if backend.address == packet.key.source { backend.host_address } else { packet.key.source };
    let reply = ReplyEntry::new(packet.key, id, backend.generation, arrival.ifindex, arrival.now);
    let port = match claim(packet, client, backend, &reply, tables) {
        Ok(port) => port,
        Err(reason) => return Err(Verdict::Drop(reason)),
    };
    let ingress = match packet.proto {
        Proto::Tcp => 0,
        Proto::Udp => Seen::DATAGRAMS,
    };
    let flow = FlowEntry::new(id, backend.generation, arrival.ifindex, ingress, arrival.now).seen_as(client, port);
    tables.remove_flow(&packet.key);
    if tables.put_half_open(&packet.key, &flow) != Insert::Done {
        return Err(Verdict::Drop(DropReason::NoMemory));
    }
    if let Some(traffic) = tables.traffic(id) {
        traffic.count_connection();
        traffic.count_ingress(u64::from(arrival.bytes));
    }
    let to = FlowKey::new(client, port, backend.address, backend.port, packet.proto);
    Ok(ToBackend { to, backend, id })
}

/// Claims the key of a flow's replies and returns the port by which the backend knows the client: its own, or another
/// where that one is taken.
#[inline(always)]
fn claim<T: Tables>(
    packet: &Headers,
    client: crate::abi::Address,
    backend: &Backend,
    reply: &ReplyEntry,
    tables: &T,
) -> Result<Port, DropReason> {
    let mut port = packet.key.source_port;
    for attempt in 0..PORT_TRIES {
        let key = reply_key(backend, client, port, packet.proto);
        match claim_key(&key, reply, tables) {
            Insert::Done => {
                if attempt > 0 {
                    tables.count(Event::PortRemapped);
                }
                return Ok(port);
            }
            Insert::Full => return Err(DropReason::NoMemory),
            Insert::Exists => {}
        }
        port = Port::new((tables.random() as u16) | FIRST_OTHER_PORT);
    }
    Err(DropReason::NoSourcePort)
}

/// Claims one key, taking it over from a flow that is over.
#[inline(always)]
fn claim_key<T: Tables>(key: &FlowKey, reply: &ReplyEntry, tables: &T) -> Insert {
    if let Some(holder) = tables.reply(key) {
        if is_held(holder, reply, tables) {
            return Insert::Exists;
        }
        tables.remove_reply(key);
    }
    match tables.claim_half_open_reply(key, reply) {
        Insert::Exists => match tables.half_open_reply(key) {
            Some(holder) if is_held(holder, reply, tables) => Insert::Exists,
            Some(_) | None => tables.put_half_open_reply(key, reply),
        },
        done_or_full => done_or_full,
    }
}

/// Returns whether a reply half belongs to another flow that goes on.
#[inline(always)]
fn is_held<T: Tables>(holder: Shared<ReplyEntry>, claimant: &ReplyEntry, tables: &T) -> bool {
    let key = holder.flow();
    if key == claimant.flow {
        return false;
    }
    let flow = match tables.flow(&key) {
        Some(flow) => flow,
        None => match tables.half_open(&key) {
            Some(flow) => flow,
            None => return false,
        },
    };
    flow.backend() == holder.backend() && flow.generation() == holder.generation() && !flow.state().is_over()
}
