//! Ends flows that are over, and counts those that are not: the only truth about active connections.
//!
//! A flow that idles longer than its state allows, or whose backend is gone, is deleted. An entry that a packet revives
//! between the look and the deletion is lost with it; it had idled for its whole lifetime, and a SYN begins anew.

use std::collections::BTreeMap;

use lb_ebpf::{
    abi::{Address, BackendId, FlowEntry, FlowKey, KtimeNs, MAX_BACKENDS, map},
    tcp_state::{State, lifetime_ns},
};

use super::{DatapathError, Maps, maps::failed};

/// How long a reply half may idle before it is asked whether its flow still exists.
const REPLY_IDLE_NS: u64 = 60_000_000_000;

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Connections under way, by backend and generation.
    pub active: BTreeMap<(BackendId, u32), u64>,
    /// Proven flows, those that are over and linger included.
    pub established: u64,
    /// Flows that are not proven.
    pub half_open: u64,
    /// Sockets of this host.
    pub local: u64,
    /// Entries deleted.
    pub ended: u64,
}

/// The backends as a sweep sees them.
struct Backends(Vec<(u32, bool, Address, lb_ebpf::abi::Port)>);

impl Backends {
    fn read(maps: &Maps) -> Result<Self, DatapathError> {
        let mut all = Vec::with_capacity(MAX_BACKENDS as usize);
        for backend in maps.backends.iter() {
            let backend = backend.map_err(failed(map::BACKENDS))?;
            all.push((backend.generation, backend.is_active(), backend.address, backend.port));
        }
        Ok(Self(all))
    }

    fn serves(&self, id: BackendId, generation: u32) -> bool {
        self.0.get(id as usize).is_some_and(|&(held, active, ..)| active && held == generation)
    }
}

/// Deletes what is over and counts the rest.
///
/// # Errors
/// What the kernel said.
pub fn sweep(maps: &Maps, now: KtimeNs) -> Result<Census, DatapathError> {
    let backends = Backends::read(maps)?;
    let mut census = Census::default();
    let mut ended = Vec::new();
    let mut ended_replies = Vec::new();
    maps.flows.scan(|key: &FlowKey, entry: &FlowEntry| match fate(entry, &backends, now) {
        Fate::Ended => {
            ended.push(*key);
            ended_replies.extend(reply_key(key, entry, &backends));
        }
        Fate::Lingers => census.established += 1,
        Fate::Active => {
            census.established += 1;
            *census.active.entry((entry.backend, entry.generation)).or_default() += 1;
        }
    })?;
    maps.flows.delete(&ended)?;
    maps.replies.delete(&ended_replies)?;
    census.ended += ended.len() as u64;

    ended.clear();
    maps.half_open.scan(|key, entry| match fate(entry, &backends, now) {
        Fate::Ended => ended.push(*key),
        Fate::Lingers => census.half_open += 1,
        Fate::Active => {
            census.half_open += 1;
            *census.active.entry((entry.backend, entry.generation)).or_default() += 1;
        }
    })?;
    maps.half_open.delete(&ended)?;
    census.ended += ended.len() as u64;

    census.ended += sweep_replies(maps, &backends, now)?;
    sweep_local(maps, &backends, now, &mut census)?;
    Ok(census)
}

/// Counts without deleting anything: for `status`, which has no business to write.
///
/// # Errors
/// What the kernel said.
pub fn count(maps: &Maps, now: KtimeNs) -> Result<Census, DatapathError> {
    let backends = Backends::read(maps)?;
    let mut census = Census::default();
    let active = &mut census.active;
    let (mut established, mut half_open, mut local) = (0, 0, 0);
    let mut tally = |total: &mut u64, entry: &FlowEntry| match fate(entry, &backends, now) {
        Fate::Ended => {}
        Fate::Lingers => *total += 1,
        Fate::Active => {
            *total += 1;
            *active.entry((entry.backend, entry.generation)).or_default() += 1;
        }
    };
    maps.flows.scan(|_, entry| tally(&mut established, entry))?;
    maps.half_open.scan(|_, entry| tally(&mut half_open, entry))?;
    maps.local_flows.scan(|key, flow| {
        if key.is_flow() && backends.serves(flow.backend, flow.generation) {
            local += 1;
            *active.entry((flow.backend, flow.generation)).or_default() += 1;
        }
    })?;
    (census.established, census.half_open, census.local) = (established, half_open, local);
    Ok(census)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Ended,
    Lingers,
    Active,
}

fn fate(entry: &FlowEntry, backends: &Backends, now: KtimeNs) -> Fate {
    let state = entry.state();
    // A stamp from another processor may be a tick ahead.
    let idle = now.saturating_sub(entry.last_seen);
    if !backends.serves(entry.backend, entry.generation) || idle > lifetime_ns(state) {
        Fate::Ended
    } else if state.is_over() {
        Fate::Lingers
    } else {
        Fate::Active
    }
}

/// Returns the key of a flow's replies, while its backend's endpoint is known.
fn reply_key(key: &FlowKey, entry: &FlowEntry, backends: &Backends) -> Option<FlowKey> {
    let &(generation, _, address, port) = backends.0.get(entry.backend as usize)?;
    let proto = key.proto().filter(|_| generation == entry.generation)?;
    Some(FlowKey::new(address, port, entry.seen_client, entry.seen_client_port, proto))
}

/// Deletes reply halves that stand alone.
fn sweep_replies(maps: &Maps, backends: &Backends, now: KtimeNs) -> Result<u64, DatapathError> {
    let mut ended = Vec::new();
    let mut doubtful = Vec::new();
    maps.replies.scan(|key, reply| {
        if !backends.serves(reply.backend, reply.generation) {
            ended.push(*key);
        } else if now.saturating_sub(reply.last_seen) > REPLY_IDLE_NS {
            doubtful.push((*key, *reply));
        }
    })?;
    for (key, reply) in doubtful {
        let flow = maps.flows.get(&reply.flow)?;
        if flow.is_none_or(|flow| (flow.backend, flow.generation) != (reply.backend, reply.generation)) {
            ended.push(key);
        }
    }
    maps.replies.delete(&ended)?;
    Ok(ended.len() as u64)
}

/// Deletes what local sockets have left, and counts those that are connected.
fn sweep_local(maps: &Maps, backends: &Backends, now: KtimeNs, census: &mut Census) -> Result<(), DatapathError> {
    let mut ended = Vec::new();
    maps.local_flows.scan(|key, flow| {
        let idle = now.saturating_sub(flow.last_seen);
        let expired = !key.is_connected() && idle > lifetime_ns(State::UdpReplied);
        if expired || !backends.serves(flow.backend, flow.generation) {
            ended.push(*key);
        } else if key.is_flow() {
            census.local += 1;
            *census.active.entry((flow.backend, flow.generation)).or_default() += 1;
        }
    })?;
    maps.local_flows.delete(&ended)?;
    census.ended += ended.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use lb_ebpf::{abi::Port, tcp_state::Seen};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn backends() -> Backends {
        Backends(vec![(3, true, Address::from_v4([198, 19, 0, 2]), Port::new(80))])
    }

    fn in_state(state: State, generation: u32, last_seen: KtimeNs) -> FlowEntry {
        let (ingress, egress) = match state {
            State::Established => (Seen::PROVEN, Seen::ANSWERED),
            State::Closed => (Seen::PROVEN | Seen::FIN, Seen::ANSWERED | Seen::FIN),
            State::Reset => (Seen::RST, 0),
            State::UdpUnreplied => (Seen::DATAGRAMS, 0),
            State::UdpReplied => (Seen::DATAGRAMS, Seen::ANSWERED),
            other => panic!("no test needs {other:?}"),
        };
        let mut entry = FlowEntry::new(0, generation, 1, ingress, last_seen);
        entry.egress = egress;
        assert_eq!(entry.state(), state);
        entry
    }

    #[test]
    fn a_flow_lives_as_long_as_its_state_allows_and_its_backend_serves() {
        let cases = [
            ("fresh", 3, State::Established, 0, Fate::Active),
            ("two hours idle", 3, State::Established, 7_200 * SECOND, Fate::Active),
            ("three hours idle", 3, State::Established, 10_800 * SECOND, Fate::Ended),
            ("of a former generation", 2, State::Established, 0, Fate::Ended),
            ("just closed", 3, State::Closed, SECOND, Fate::Lingers),
            ("closed long ago", 3, State::Closed, 11 * SECOND, Fate::Ended),
            ("an unanswered datagram", 3, State::UdpUnreplied, 31 * SECOND, Fate::Ended),
            ("an answered one", 3, State::UdpReplied, 31 * SECOND, Fate::Active),
        ];
        for (what, generation, state, idle, expected) in cases {
            let now = 20_000 * SECOND;
            let entry = in_state(state, generation, now - idle);

            assert_eq!(fate(&entry, &backends(), now), expected, "{what}");
        }
    }

    #[test]
    fn a_stamp_ahead_of_the_clock_is_fresh() {
        let entry = in_state(State::Reset, 3, 10 * SECOND);

        assert_eq!(fate(&entry, &backends(), 9 * SECOND), Fate::Lingers);
    }
}
