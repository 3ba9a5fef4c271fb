//! What the balancer has to do, written a second time and as plainly as can be: one map of connections, one of replies, and
//! time that stands still. It shares no code with the pipeline, only the names of the reasons.
//!
//! Time stands still, so nothing idles out, no backend is silent for too long, and every port that was used is still
//! remembered at its backend. What depends on time is tested by hand.

use std::collections::BTreeMap;

use lb_ebpf::{
    abi::{BackendId, FrontendId},
    verdict::{DropReason, Event, PassReason},
};

use crate::frames::{ACK, FIN, RST, SYN, Side};

/// How a packet is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carrier {
    /// TCP, with its flags.
    Tcp,
    /// UDP.
    Udp,
}

/// What of a packet matters.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Its carrier.
    pub carrier: Carrier,
    /// Who sends it.
    pub from: Side,
    /// To whom.
    pub to: Side,
    /// Flags of TCP.
    pub flags: u8,
    /// Sequence number of TCP.
    pub sequence: u32,
    /// Acknowledgement number of TCP.
    pub acknowledgement: u32,
    /// Bytes on the wire.
    pub bytes: u64,
}

/// What has to become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leaves with other addresses; the second from the client's side is the backend, the first from the backend's side
    /// the frontend.
    Sent {
        /// Its source.
        from: Side,
        /// Its destination.
        to: Side,
        /// The backend to which it goes, or from which it comes.
        backend: BackendId,
    },
    /// It begins a connection at a backend, under a port that the balancer chooses by lot.
    Begun {
        /// The client's address as the backend sees it.
        client: [u8; 4],
        /// Its destination.
        to: Side,
        /// The backend.
        backend: BackendId,
        /// The connection.
        flow: FlowName,
        /// The sequence number that the backend expects next.
        expected: u32,
    },
    /// It is left to the host.
    Passed(PassReason),
    /// It is ended.
    Dropped(DropReason),
}

/// A connection, or the datagrams of a client's socket to a frontend: client, frontend, carrier.
pub type FlowName = (Side, Side, Carrier);
/// What a reply is known by: backend, client as the backend sees it, carrier.
type ReplyName = (Side, Side, Carrier);

/// Ports that are given to clients whose own are taken.
pub const LOT: std::ops::Range<u16> = 1024..32_768;
/// How far ahead of what the backend has acknowledged an end of the client may be, to be believed.
const FIN_AHEAD: u32 = 1 << 24;
const RST_AHEAD: u32 = 1 << 20;
/// How far an answer to a SYN may acknowledge beyond it.
const SYN_AHEAD: u32 = 1 << 16;
/// A segment that carries nothing, in bytes: Ethernet, IPv4 and TCP without options.
const SEGMENT: u64 = 54;

/// A backend.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// The frontend that it serves.
    pub frontend: FrontendId,
    /// Where it listens.
    pub at: Side,
    /// Which of those that had its number.
    pub generation: u32,
    /// Whether it serves.
    pub alive: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    backend: BackendId,
    generation: u32,
    /// The client as the backend sees it.
    seen: Side,
    accepted: bool,
    /// What the client has to acknowledge.
    awaited: u32,
    proven: bool,
    client_ended: bool,
    client_reset: bool,
    backend_ended: bool,
    backend_reset: bool,
}

impl Flow {
    const fn is_reset(&self) -> bool {
        self.client_reset || self.backend_reset
    }

    const fn is_over(&self) -> bool {
        self.is_reset() || self.client_ended && self.backend_ended
    }

    const fn is_ending(&self) -> bool {
        self.is_reset() || self.client_ended || self.backend_ended
    }

    const fn is_unanswered(&self) -> bool {
        !self.accepted && !self.proven && !self.is_ending()
    }
}

#[derive(Clone, Copy, Debug)]
struct Reply {
    flow: FlowName,
    backend: BackendId,
    generation: u32,
    /// What the backend expects next of the client.
    expected: u32,
    /// The backend has answered the flow.
    answered: bool,
    /// The backend has sent something that is no answer to the flow: it has a connection of this name with somebody.
    foreign: bool,
}

/// What went through a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Packets and bytes from clients.
    pub ingress: (u64, u64),
    /// The same to clients.
    pub egress: (u64, u64),
    /// Connections.
    pub connections: u64,
}

/// The balancer.
#[derive(Debug, Default)]
pub struct Model {
    frontends: BTreeMap<(Side, Carrier), FrontendId>,
    slots: BTreeMap<FrontendId, Vec<BackendId>>,
    tickets: BTreeMap<FrontendId, u64>,
    servers: BTreeMap<BackendId, Server>,
    /// The address of the host on the backends' network, by which a backend knows itself as a client.
    host: [u8; 4],
    flows: BTreeMap<FlowName, Flow>,
    replies: BTreeMap<ReplyName, Reply>,
    sums: BTreeMap<BackendId, Sum>,
    events: BTreeMap<Event, u64>,
}

impl Model {
    /// A balancer without frontends, on a host that has this address on the backends' network.
    pub fn new(host: [u8; 4]) -> Self {
        Self { host, ..Self::default() }
    }

    /// Serves a frontend by nobody.
    pub fn serve(&mut self, at: Side, carrier: Carrier, id: FrontendId) {
        self.frontends.insert((at, carrier), id);
        self.publish(id, &[]);
    }

    /// Gives a frontend's new connections to these backends.
    pub fn publish(&mut self, id: FrontendId, backends: &[BackendId]) {
        self.slots.insert(id, backends.to_vec());
    }

    /// Returns the backends that get a frontend's new connections.
    pub fn slots(&self, id: FrontendId) -> &[BackendId] {
        self.slots.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Puts a backend in place of the one of its number.
    pub fn put(&mut self, id: BackendId, server: Server) {
        self.servers.insert(id, server);
    }

    /// Returns a backend.
    pub fn server(&self, id: BackendId) -> Server {
        self.servers[&id]
    }

    /// Returns what went through a backend's number.
    pub fn sum(&self, id: BackendId) -> Sum {
        self.sums.get(&id).copied().unwrap_or_default()
    }

    /// Returns how often something has happened.
    pub fn events(&self, event: Event) -> u64 {
        self.events.get(&event).copied().unwrap_or_default()
    }

    /// Returns how far the backend of a reply has acknowledged what the client sent, and what the client has to acknowledge:
    /// numbers that a packet of the connection would bear.
    pub fn numbers(&self, name: FlowName) -> Option<(u32, u32)> {
        let flow = self.flows.get(&name)?;
        let reply = self.replies.get(&(self.servers[&flow.backend].at, flow.seen, name.2))?;
        Some((reply.expected, flow.awaited))
    }

    /// Returns backend and client of a connection as the backend sees them.
    pub fn behind(&self, name: FlowName) -> Option<(Side, Side)> {
        self.flows.get(&name).map(|flow| (self.servers[&flow.backend].at, flow.seen))
    }

    fn happens(&mut self, event: Event) {
        *self.events.entry(event).or_default() += 1;
    }

    fn serves(&self, id: BackendId, generation: u32) -> bool {
        self.servers.get(&id).is_some_and(|server| server.alive && server.generation == generation)
    }

    /// Decides about a packet that comes by an uplink.
    pub fn from_client(&mut self, packet: &Packet) -> Fate {
        let name = (packet.from, packet.to, packet.carrier);
        let Some(&frontend) = self.frontends.get(&(packet.to, packet.carrier)) else {
            return Fate::Passed(PassReason::NotOurs);
        };
        let opens = packet.flags & (SYN | ACK | RST | FIN) == SYN;
        let mut is_orphan = false;
        if let Some(flow) = self.flows.get(&name).copied() {
            let resets = packet.carrier == Carrier::Tcp && packet.flags & RST != 0;
            let meets_another = flow.is_unanswered() && self.reply_of(name, &flow).is_some_and(|it| it.foreign);
            let is_shut_out = (opens || resets) && meets_another;
            let starts_again = packet.carrier == Carrier::Tcp && opens && flow.is_over();
            let is_served = self.serves(flow.backend, flow.generation);
            if is_served && is_shut_out && resets {
                return Fate::Dropped(DropReason::ForeignReset);
            }
            if !is_served || is_shut_out {
                is_orphan = true;
            } else if !starts_again {
                return self.go_on(packet, name, flow);
            }
        }
        if packet.carrier == Carrier::Tcp && !opens {
            return Fate::Passed(if is_orphan { PassReason::BackendGone } else { PassReason::NoFlow });
        }
        let fate = self.begin(packet, name, frontend);
        if is_orphan && matches!(fate, Fate::Sent { .. } | Fate::Begun { .. }) {
            self.happens(Event::Rescheduled);
        }
        fate
    }

    fn reply_of(&self, name: FlowName, flow: &Flow) -> Option<&Reply> {
        let reply = self.replies.get(&(self.servers[&flow.backend].at, flow.seen, name.2));
        reply.filter(|reply| reply.flow == name)
    }

    fn go_on(&mut self, packet: &Packet, name: FlowName, mut flow: Flow) -> Fate {
        let at = self.servers[&flow.backend].at;
        let opens = packet.flags & (SYN | ACK | RST | FIN) == SYN;
        let mut reply = self.reply_of(name, &flow).copied();
        if packet.carrier == Carrier::Tcp {
            if opens && !flow.proven {
                self.happens(Event::SynRetransmitted);
                if let Some(reply) = reply.as_mut().filter(|reply| !reply.answered) {
                    reply.expected = packet.sequence.wrapping_add(1);
                }
            }
            let proves = flow.accepted && !flow.proven && !flow.is_ending() && packet.flags & (ACK | RST) == ACK;
            if proves && packet.acknowledgement == flow.awaited {
                flow.proven = true;
                reply = reply.map(|reply| Reply { answered: true, foreign: false, ..reply });
                self.happens(Event::Proven);
            }
            self.end_by_client(packet, &mut flow, reply);
        }
        if let Some(reply) = reply {
            self.replies.insert((at, flow.seen, name.2), reply);
        }
        self.flows.insert(name, flow);
        self.count_ingress(flow.backend, packet);
        Fate::Sent { from: flow.seen, to: at, backend: flow.backend }
    }

    /// Believes an end of the client only where it is not guessed.
    fn end_by_client(&mut self, packet: &Packet, flow: &mut Flow, reply: Option<Reply>) {
        let (ends, resets) = (packet.flags & FIN != 0, packet.flags & RST != 0);
        let is_news = ends && !flow.client_ended || resets && !flow.client_reset;
        let Some(reply) = reply.filter(|_| is_news) else { return };
        if packet.sequence.wrapping_sub(reply.expected) >= if resets { RST_AHEAD } else { FIN_AHEAD } {
            self.happens(Event::OutOfWindow);
            return;
        }
        flow.client_ended |= ends;
        flow.client_reset |= resets;
    }

    fn begin(&mut self, packet: &Packet, name: FlowName, frontend: FrontendId) -> Fate {
        let slots = self.slots.get(&frontend).cloned().unwrap_or_default();
        if slots.is_empty() {
            return Fate::Passed(PassReason::NoBackend);
        }
        // A slot may name a backend that was freed since: then the first that serves has it, from the next ticket's on.
        let mut draw = || {
            let ticket = self.tickets.entry(frontend).or_default();
            *ticket += 1;
            (*ticket - 1) as usize
        };
        let serves =
            |id: &BackendId| self.servers.get(id).is_some_and(|server| server.alive && server.frontend == frontend);
        let at = |place: usize| slots[place % slots.len()];
        let chosen = Some(at(draw())).filter(serves).or_else(|| {
            let first = draw();
            (first..first + slots.len()).map(at).find(serves)
        });
        let Some(id) = chosen else { return Fate::Passed(PassReason::StaleSlot) };
        let to = self.servers[&id].at;
        let expected = packet.sequence.wrapping_add(1);
        let is_own_client = to.0 == packet.from.0;
        if is_own_client || self.is_taken((to, packet.from, packet.carrier), name) {
            if !is_own_client {
                self.happens(Event::PortRemapped);
            }
            let client = if is_own_client { self.host } else { packet.from.0 };
            return Fate::Begun { client, to, backend: id, flow: name, expected };
        }
        self.enter(packet, (id, packet.from), name, expected);
        Fate::Sent { from: packet.from, to, backend: id }
    }

    /// Returns whether a reply of this name would be another flow's.
    fn is_taken(&self, reply: ReplyName, by: FlowName) -> bool {
        let Some(holder) = self.replies.get(&reply) else { return false };
        if holder.foreign {
            return true;
        }
        if holder.flow == by {
            return false;
        }
        // Backends remember connections of TCP for longer than time stands still. The holder of a socket's datagrams may have
        // been led to another backend since.
        let holds = |flow: &Flow| (flow.backend, flow.generation) == (holder.backend, holder.generation);
        holder.flow.2 == Carrier::Tcp || self.flows.get(&holder.flow).is_none_or(holds)
    }

    /// Learns which port the lot gave to a connection that has begun.
    ///
    /// # Errors
    /// If it must not be that one.
    pub fn drawn(&mut self, packet: &Packet, fate: &Fate, port: u16) -> Result<(), String> {
        let Fate::Begun { client, to, backend, flow, expected } = *fate else { return Ok(()) };
        let seen = (client, port);
        if !LOT.contains(&port) {
            return Err(format!("port {port} is none of those that the host gives to nobody"));
        }
        if self.is_taken((to, seen, flow.2), flow) {
            return Err(format!("two flows have replies from {to:?} to {seen:?}"));
        }
        self.enter(packet, (backend, seen), flow, expected);
        Ok(())
    }

    fn enter(&mut self, packet: &Packet, (id, seen): (BackendId, Side), name: FlowName, expected: u32) {
        let Server { at, generation, .. } = self.servers[&id];
        let reply = Reply { flow: name, backend: id, generation, expected, answered: false, foreign: false };
        self.replies.insert((at, seen, name.2), reply);
        self.flows.insert(name, Flow { backend: id, generation, seen, ..Flow::default() });
        self.sums.entry(id).or_default().connections += 1;
        self.count_ingress(id, packet);
    }

    /// Decides about a packet that comes from a backend's device.
    pub fn from_backend(&mut self, packet: &Packet) -> Fate {
        let name = (packet.from, packet.to, packet.carrier);
        let Some(mut reply) = self.replies.get(&name).copied() else { return Fate::Passed(PassReason::NotReply) };
        if !self.serves(reply.backend, reply.generation) {
            return Fate::Passed(PassReason::BackendGone);
        }
        let acknowledges = packet.flags & ACK != 0;
        let ahead = packet.acknowledgement.wrapping_sub(reply.expected);
        let answers = acknowledges && packet.flags & (SYN | RST) != 0 && ahead < SYN_AHEAD;
        if acknowledges && (reply.answered || answers) {
            reply.expected = packet.acknowledgement;
        }
        if packet.carrier == Carrier::Udp {
            reply.answered = true;
        } else if packet.flags & (SYN | FIN | RST) != 0 || !reply.answered {
            let accepts = packet.flags & (SYN | ACK | RST) == SYN | ACK;
            let flow = self.flows.get(&reply.flow).copied();
            let is_of = |flow: &Flow| {
                (flow.backend, flow.generation, flow.seen.1) == (reply.backend, reply.generation, packet.to.1)
            };
            let waits = flow.as_ref().is_some_and(|flow| is_of(flow) && flow.is_unanswered());
            if (reply.foreign || waits) && !answers {
                self.replies.insert(name, Reply { foreign: true, answered: false, ..reply });
                // The first bare acknowledgement tells the client that its port is taken.
                let is_bare = packet.flags & (SYN | FIN | RST | ACK) == ACK && packet.bytes == SEGMENT;
                if reply.foreign || !is_bare {
                    return Fate::Passed(PassReason::NotReply);
                }
                let sum = self.sums.entry(reply.backend).or_default();
                sum.egress = (sum.egress.0 + 1, sum.egress.1 + packet.bytes);
                return Fate::Sent { from: reply.flow.1, to: reply.flow.0, backend: reply.backend };
            }
            match flow {
                Some(mut flow) if is_of(&flow) => {
                    if accepts && flow.is_over() {
                        self.replies.remove(&name);
                        return Fate::Passed(PassReason::NotReply);
                    }
                    if accepts {
                        (flow.accepted, flow.awaited) = (true, packet.sequence.wrapping_add(1));
                    }
                    flow.backend_ended |= packet.flags & FIN != 0;
                    flow.backend_reset |= packet.flags & RST != 0;
                    self.flows.insert(reply.flow, flow);
                }
                Some(_) => {
                    self.replies.insert(name, reply);
                    return Fate::Dropped(DropReason::StaleReply);
                }
                None => {}
            }
            (reply.answered, reply.foreign) = (true, false);
        }
        self.replies.insert(name, reply);
        let sum = self.sums.entry(reply.backend).or_default();
        sum.egress = (sum.egress.0 + 1, sum.egress.1 + packet.bytes);
        Fate::Sent { from: reply.flow.1, to: reply.flow.0, backend: reply.backend }
    }

    fn count_ingress(&mut self, id: BackendId, packet: &Packet) {
        let sum = self.sums.entry(id).or_default();
        sum.ingress = (sum.ingress.0 + 1, sum.ingress.1 + packet.bytes);
    }
}
