//! The kernel object laid out for measurement: frontends, backends, and any number of established connections.

use std::time::Duration;

use anyhow::{Result, ensure};
use lb_ebpf::{
    abi::{Address, Backend, BackendId, FlowKey, FrontendId, Port, Proto},
    yardstick::{FRAME_LEN, Pattern, client},
};
use lb_tests::{
    frames::{self, ACK, SYN, Side},
    object::{Action, Door, Object, REACH},
};

use crate::yardstick::{Called, Yardstick};

/// The first client.
const CLIENT: [u8; 4] = [198, 18, 64, 0];
/// Where all frontends are, port after port.
const FRONTEND: Side = ([198, 18, 1, 1], 1000);
/// The backend of UDP.
const DATAGRAM_BACKEND: BackendId = 4000;
/// A frontend of UDP.
const DATAGRAMS: Side = ([198, 18, 1, 1], 53);
/// A frontend whose only backend is its own client, and may not be.
const REFUSED: Side = ([198, 18, 1, 2], 80);
/// Where the backends are, address after address.
const BACKEND: Side = ([198, 19, 0, 1], 80);
/// Somebody whom the balancer does not know.
const STRANGER: Side = ([198, 18, 1, 3], 80);

/// Connections that are opened at once: few enough for the table of those that are not proven.
const BATCH: u32 = 4096;
/// Prime to every number of flows here.
const STRIDE: u32 = 982_451_653;
/// Flows of UDP at most.
const MOST_DATAGRAMS: u32 = 65_536;
/// Flows from here on are not there.
const FRESH: u32 = 2_000_000;

/// A laid-out object.
pub struct Bed {
    object: Object,
    flows: u32,
    services: u32,
    ports: u32,
    next_fresh: u32,
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Established TCP connections.
    pub flows: u32,
    /// Frontends. Each has a backend of its own, if there are several.
    pub frontends: u32,
    /// Backends, of the only frontend.
    pub backends: u32,
}

/// A kind of packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Established,
    NewSyn,
    Datagram,
    Reply,
    NotOurs,
    Ipv6,
    Dropped,
}

impl Kind {
    /// Returns its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established TCP",
            Self::NewSyn => "new SYN",
            Self::Datagram => "UDP",
            Self::Reply => "reply",
            Self::NotOurs => "not ours",
            Self::Ipv6 => "IPv6",
            Self::Dropped => "dropped",
        }
    }

    /// Returns what the programs do with it.
    pub const fn expected(self) -> Action {
        match self {
            Self::Established | Self::NewSyn | Self::Datagram | Self::Reply => Action::Redirect,
            Self::NotOurs | Self::Ipv6 => Action::Pass,
            Self::Dropped => Action::Drop,
        }
    }
}

impl Bed {
    /// Lays an object out. The calling thread stays on its processor from then on, or tickets would mix.
    pub fn new(size: Size, yardstick: &mut Yardstick) -> Result<Self> {
        let mut object = Object::load_with((size.flows + size.flows / 8).max(65_536), 65_536);
        let backend_at = |number: u32| (add(BACKEND.0, number), BACKEND.1);
        for frontend in 0..size.frontends {
            let at = (FRONTEND.0, FRONTEND.1 + frontend as u16);
            let backends: Vec<BackendId> =
                if size.frontends > 1 { vec![frontend] } else { (0..size.backends).collect() };
            for &id in &backends {
                object.backend(id, frontend, 1, backend_at(id));
            }
            object.serve(frontend, at, Proto::Tcp, &backends);
        }
        let (udp, refused): (FrontendId, FrontendId) = (1000, 1001);
        object.backend(DATAGRAM_BACKEND, udp, 1, (add(BACKEND.0, DATAGRAM_BACKEND), 53));
        object.serve(udp, DATAGRAMS, Proto::Udp, &[DATAGRAM_BACKEND]);
        let alone = Backend::new(refused, 1, Address::from_v4(CLIENT), Port::new(80));
        object.write_backend(4001, alone.reached_by(REACH, 1, [6; 6], [6; 6]).taking_xdp());
        object.serve(refused, REFUSED, Proto::Tcp, &[4001]);
        let services = size.backends.max(size.frontends);
        let mut bed = Self { object, flows: size.flows, services, ports: size.frontends, next_fresh: FRESH };
        bed.establish(yardstick)?;
        Ok(bed)
    }

    /// Opens all connections, by handshakes.
    fn establish(&mut self, yardstick: &mut Yardstick) -> Result<()> {
        let (to_frontend, to_client) = (Kind::Established, Kind::Reply);
        let mut first = 0;
        while first < self.flows {
            let count = BATCH.min(self.flows - first);
            for (kind, door, flags, numbers) in [
                (to_frontend, Door::Xdp, SYN, (1000, 0)),
                (to_client, Door::Reply, SYN | ACK, (5000, 1001)),
                (to_frontend, Door::Xdp, ACK, (1001, 5001)),
            ] {
                let pattern = Pattern { first, count, stride: 1, ..self.tcp(kind, flags, numbers) };
                yardstick.lay(pattern)?;
                self.run(door, count, Action::Redirect, yardstick)?;
            }
            first += count;
        }
        // In another order than they are measured in, as clients come: their entries lie side by side in memory.
        yardstick.lay(Pattern { stride: 1, ..self.pattern(Kind::Datagram, 0) })?;
        self.run(Door::Xdp, self.flows.min(MOST_DATAGRAMS), Action::Redirect, yardstick)?;
        for flow in (0..self.flows).step_by((self.flows as usize / 97).max(1)) {
            let FlowKey { source, source_port, destination, destination_port, .. } = self.key(flow);
            let side = |address: Address, port: Port| (address.v4().unwrap_or_default(), port.number());
            let (from, to) = (side(source, source_port), side(destination, destination_port));
            ensure!(
                self.object.flow(from, to, Proto::Tcp).is_some(),
                "flow {flow} of {} was not established",
                self.flows
            );
        }
        Ok(())
    }

    /// Returns the key of an established connection.
    pub fn key(&self, flow: u32) -> FlowKey {
        let (address, port) = client(flow);
        let to = FRONTEND.1 + (flow % self.ports) as u16;
        FlowKey::new(
            Address::from_v4(add(CLIENT, address)),
            Port::new(port),
            Address::from_v4(FRONTEND.0),
            Port::new(to),
            Proto::Tcp,
        )
    }

    /// Returns the pattern of packets of a kind, as many flows as there are.
    pub fn pattern(&mut self, kind: Kind, times: u32) -> Pattern {
        let all = Pattern { count: self.flows, stride: STRIDE % self.flows.max(2), ..Pattern::new(&[0; FRAME_LEN]) };
        let same = |frame: Vec<u8>| Pattern::new(&whole(frame));
        match kind {
            Kind::Established => {
                let frame = self.tcp(kind, ACK, (1001, 5001));
                Pattern { count: all.count, stride: all.stride, ..frame }
            }
            Kind::Reply => {
                let frame = self.tcp(kind, ACK, (5001, 1001));
                Pattern { count: all.count, stride: all.stride, ..frame }
            }
            Kind::NewSyn => {
                let first = self.next_fresh;
                self.next_fresh += times;
                Pattern { first, count: times, ..self.tcp(kind, SYN, (1000, 0)) }
            }
            Kind::Datagram => {
                let frame = same(frames::udp((CLIENT, 1), DATAGRAMS, &[7; 22]));
                let count = all.count.min(MOST_DATAGRAMS);
                Pattern { count, stride: STRIDE % count.max(2), ..frame }
            }
            Kind::NotOurs => same(frames::tcp((CLIENT, 1), STRANGER, ACK, 1001, 5001, &[7; 10])),
            Kind::Ipv6 => {
                let (from, to) = ((frames::v6::address(1, 2), 1), (frames::v6::address(1, 9), STRANGER.1));
                same(frames::v6::udp(from, to, &[7; 2]))
            }
            Kind::Dropped => same(frames::tcp((CLIENT, 1), REFUSED, SYN, 1000, 0, &[])),
        }
    }

    fn tcp(&self, kind: Kind, flags: u8, (sequence, acknowledgement): (u32, u32)) -> Pattern {
        let payload: &[u8] = if flags & SYN == 0 { &[7; 10] } else { &[] };
        if kind == Kind::Reply {
            let frame = frames::tcp(BACKEND, (CLIENT, 1), flags, sequence, acknowledgement, payload);
            return Pattern { services: self.services, replies: 1, ..Pattern::new(&whole(frame)) };
        }
        let frame = frames::tcp((CLIENT, 1), FRONTEND, flags, sequence, acknowledgement, payload);
        Pattern { service_ports: self.ports, ..Pattern::new(&whole(frame)) }
    }

    /// Runs a program so often, and checks what it did: with the last packet, and if it sends packets on, with all.
    /// Returns what a run took, the laying included.
    pub fn run(&self, door: Door, times: u32, expected: Action, yardstick: &mut Yardstick) -> Result<Duration> {
        let before = self.sent_on(door);
        let took = yardstick.run(self.called(door), times, expected)?;
        let sent_on = self.sent_on(door) - before;
        ensure!(
            expected != Action::Redirect || sent_on == u64::from(times),
            "{door:?}: {sent_on} of {times} packets were sent on"
        );
        Ok(took)
    }

    /// Returns how many packets that came by a door have been sent on.
    fn sent_on(&self, door: Door) -> u64 {
        let sent_on = |id| {
            let traffic = self.object.traffic(id);
            if door == Door::Reply { traffic.egress_packets } else { traffic.ingress_packets }
        };
        (0..self.services).chain([DATAGRAM_BACKEND]).map(sent_on).sum()
    }

    /// Returns the program of a door.
    pub fn called(&self, door: Door) -> Called<'_> {
        Called::Ours(door, self.object.program_fd(door))
    }

    /// Leads all backends to a device.
    pub fn lead_to(&mut self, ifindex: u32) {
        for id in 0..self.services {
            let at = (Address::from_v4(add(BACKEND.0, id)), Port::new(BACKEND.1));
            let backend = Backend::new(0, 1, at.0, at.1).reached_by(REACH, ifindex, [6; 6], [6; 6]);
            self.object.write_backend(id, backend.taking_xdp());
        }
    }
}

fn add(address: [u8; 4], more: u32) -> [u8; 4] {
    u32::from_be_bytes(address).wrapping_add(more).to_be_bytes()
}

/// Fills a frame up to its length.
fn whole(mut frame: Vec<u8>) -> [u8; FRAME_LEN] {
    frame.resize(FRAME_LEN, 0);
    frame.try_into().unwrap_or([0; FRAME_LEN])
}
