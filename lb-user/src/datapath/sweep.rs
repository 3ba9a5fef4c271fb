//! Ends connections that have idled out, and counts those that have not: the only truth about active connections.
//!
//! The datapath moves a connection that is over out of the table of the proven, and pays no heed to what has idled out;
//! so there is little to delete: connections that went silent, and those of backends that are gone. An entry is looked
//! at again right before it is deleted, because its key may be another connection's by then.

use std::collections::{BTreeMap, BTreeSet};

use lb_ebpf::{
    abi::{
        Backend, BackendId, FlowEntry, FlowKey, Handshakes, KtimeNs, Lifetimes, LocalFlow, LocalKey, ReplyEntry, Tally,
        map,
    },
    tcp_state::{Seen, State},
};

use super::{DatapathError, Maps, doors, maps::failed, netns, sockets};

/// How long a reply half may idle before it is asked whether its flow still exists.
const REPLY_IDLE_NS: u64 = 60_000_000_000;
/// How long after it connected a socket that is not listed may be in creation.
const LOCAL_GRACE_NS: u64 = 60_000_000_000;
/// From when on a SYN counts as waiting for its answer: its client has repeated it then (RFC 6298, 2.1).
const WAITING_NS: u64 = 1_000_000_000;
/// Until when: its client has given it up, or it was given to another backend.
const GIVEN_UP_NS: u64 = 4_000_000_000;
/// How many entries are looked at again before they are deleted together.
const CHUNK: usize = 64;

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Connections under way, by backend and generation.
    pub active: BTreeMap<(BackendId, u32), u64>,
    /// The same as the datapath counts them: without what nobody waits for, and with those that are held.
    pub tallies: BTreeMap<(BackendId, u32), Tally>,
    /// TCP connections whose SYN waits for its answer, by backend and generation.
    pub waiting: BTreeMap<(BackendId, u32), u64>,
    /// How the backends that serve answer, by backend and generation. Only what deletes looks at that, too.
    pub handshakes: BTreeMap<(BackendId, u32), Handshakes>,
    /// TCP connections that are proven and last.
    pub established: u64,
    /// TCP connections that are not proven.
    pub half_open: u64,
    /// UDP flows.
    pub datagrams: u64,
    /// Sockets of this host.
    pub local: u64,
    /// Entries deleted.
    pub ended: u64,
}

/// How much is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Connections.
    Flows,
    /// Also what reply halves stand alone, which is seldom and costs another walk over as many entries.
    All,
}

/// What decides over a flow, as it was when a sweep began.
struct Rules {
    backends: Vec<Backend>,
    lifetimes: Lifetimes,
}

impl Rules {
    fn read(maps: &Maps) -> Result<Self, DatapathError> {
        Ok(Self { backends: maps.all_backends()?, lifetimes: maps.lifetimes()? })
    }

    /// Returns whether flows of a backend go on. One that was published after the sweep had begun is younger than what
    /// is known here.
    fn serves(&self, id: BackendId, generation: u32) -> bool {
        self.backends.get(id as usize).is_some_and(|backend| match backend.generation.wrapping_sub(generation) as i32 {
            0 => backend.is_active(),
            1.. => false,
            i32::MIN..0 => true,
        })
    }

    /// Returns those that serve, with their generations.
    fn serving(&self) -> impl Iterator<Item = (BackendId, u32)> {
        let active = |(id, backend): (BackendId, &Backend)| backend.is_active().then_some((id, backend.generation));
        (0..).zip(&self.backends).filter_map(active)
    }

    fn of(&self, entry: &FlowEntry) -> Option<&Backend> {
        self.backends.get(entry.backend as usize).filter(|backend| backend.generation == entry.generation)
    }
}

/// Deletes what has idled out and counts the rest; what the datapath counts by itself is set right by it.
///
/// # Errors
/// What the kernel said.
pub fn sweep(maps: &mut Maps, now: KtimeNs, depth: Depth) -> Result<Census, DatapathError> {
    let rules = Rules::read(maps)?;
    // Before the count: a connection that begins meanwhile is counted twice until the next sweep, and none is missed.
    let tallies = rules.serving().map(|(id, generation)| Ok(((id, generation), maps.tally(id)?)));
    let tallies: Vec<((BackendId, u32), Tally)> = tallies.collect::<Result<_, DatapathError>>()?;
    let mut ended = Vec::new();
    let mut census = count_with(maps, &rules, now, |key| ended.push(*key))?;
    for (backend, tally) in tallies {
        maps.correct_tally(backend.0, tally, census.tallies.get(&backend).copied().unwrap_or_default())?;
    }
    // Before what may fail by itself: limits hold as long as this is done.
    maps.write_swept(now)?;
    clean(maps, &rules, &ended, &mut census, now, depth)?;
    Ok(census)
}

fn clean(
    maps: &Maps,
    rules: &Rules,
    ended: &[FlowKey],
    census: &mut Census,
    now: KtimeNs,
    depth: Depth,
) -> Result<(), DatapathError> {
    for (id, generation) in rules.serving() {
        census.handshakes.insert((id, generation), maps.handshakes(id)?);
    }
    for chunk in ended.chunks(CHUNK) {
        let (mut keys, mut reply_keys) = (Vec::new(), Vec::new());
        for key in chunk {
            let Some(entry) = maps.flows.get(key)? else { continue };
            if fate(&entry, rules, now) == Fate::Ended {
                keys.push(*key);
                reply_keys.extend(reply_key(maps, key, &entry, rules)?);
            }
        }
        maps.flows.delete(&keys)?;
        maps.replies.delete(&reply_keys)?;
        census.ended += keys.len() as u64;
    }
    census.ended += sweep_lost(maps)?;
    if depth == Depth::All {
        census.ended += sweep_replies(maps, rules, now)?;
    }
    Ok(())
}

/// Counts without deleting anything: for `status`, which has no business to write.
///
/// # Errors
/// What the kernel said.
pub fn count(maps: &Maps, now: KtimeNs) -> Result<Census, DatapathError> {
    count_with(maps, &Rules::read(maps)?, now, |_| {})
}

/// Counts, and shows the keys of proven connections that have ended.
fn count_with(
    maps: &Maps,
    rules: &Rules,
    now: KtimeNs,
    mut ended: impl FnMut(&FlowKey),
) -> Result<Census, DatapathError> {
    let mut census = Census::default();
    let Census { active, tallies, waiting, handshakes: _, established, half_open, datagrams, local, ended: _ } =
        &mut census;
    let mut tally = |total: &mut u64, backend: BackendId, generation: u32, is: Tally| {
        *total += 1;
        *active.entry((backend, generation)).or_default() += 1;
        let tally = tallies.entry((backend, generation)).or_default();
        (tally.active, tally.held) = (tally.active + is.active, tally.held + is.held);
    };
    maps.flows.scan(|key: &FlowKey, entry: &FlowEntry| match fate(entry, rules, now) {
        Fate::Ended => ended(key),
        Fate::Lingers => {}
        Fate::Active => tally(established, entry.backend, entry.generation, HELD),
    })?;
    for (table, total) in [(&maps.half_open, half_open), (&maps.datagrams, datagrams)] {
        table.scan(|_, entry: &FlowEntry| match fate(entry, rules, now) {
            Fate::Ended | Fate::Lingers => {}
            Fate::Active => {
                tally(total, entry.backend, entry.generation, standing(entry, now));
                if is_waiting(entry, now) {
                    *waiting.entry((entry.backend, entry.generation)).or_default() += 1;
                }
            }
        })?;
    }
    maps.local_flows.scan(|_, flow: &LocalFlow| {
        if rules.serves(flow.backend, flow.generation) {
            tally(local, flow.backend, flow.generation, HELD);
        }
    })?;
    maps.local_datagrams.scan(|key: &LocalKey, flow: &LocalFlow| {
        if key.is_flow() && is_in_use(flow, rules, now) && rules.serves(flow.backend, flow.generation) {
            tally(local, flow.backend, flow.generation, HELD);
        }
    })?;
    Ok(census)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Ended,
    Lingers,
    Active,
}

fn fate(entry: &FlowEntry, rules: &Rules, now: KtimeNs) -> Fate {
    if !rules.serves(entry.backend, entry.generation) || entry.is_expired(now, &rules.lifetimes) {
        Fate::Ended
    } else if entry.state().is_over() || entry.is_moved() {
        Fate::Lingers
    } else {
        Fate::Active
    }
}

/// What counts as begun and as held.
const HELD: Tally = Tally { active: 1, held: 1 };

/// Returns as what a flow counts at its backend that is not among the proven.
fn standing(entry: &FlowEntry, now: KtimeNs) -> Tally {
    let is_proven = Seen(entry.ingress).any(Seen::PROVEN | Seen::DATAGRAMS);
    let is_given_up = entry.state() == State::SynSent && now.saturating_sub(entry.last_seen) >= GIVEN_UP_NS;
    Tally { active: u64::from(!is_given_up), held: u64::from(is_proven) }
}

/// Returns whether an unconnected socket can be thought to use a flow: nothing tells when it is closed, nor whether it was
/// answered. It is led to the same backend for longer than that.
fn is_in_use(flow: &LocalFlow, rules: &Rules, now: KtimeNs) -> bool {
    now.saturating_sub(flow.last_seen) <= rules.lifetimes.of(State::UdpUnreplied)
}

/// Returns whether a client has repeated its SYN and waits for the answer.
fn is_waiting(entry: &FlowEntry, now: KtimeNs) -> bool {
    let since = now.saturating_sub(entry.last_seen);
    entry.state() == State::SynSent && (WAITING_NS..GIVEN_UP_NS).contains(&since)
}

/// Returns the key of a connection's replies, if its backend is known and the reply half there is its own.
fn reply_key(maps: &Maps, key: &FlowKey, entry: &FlowEntry, rules: &Rules) -> Result<Option<FlowKey>, DatapathError> {
    let (Some(backend), Some(proto)) = (rules.of(entry), key.proto()) else { return Ok(None) };
    let client = entry.seen_client(key.source, backend.host_address);
    let reply_key = FlowKey::new(backend.address, backend.port, client, entry.seen_client_port, proto);
    Ok(maps.replies.get(&reply_key)?.filter(|reply| reply.flow == *key).map(|_| reply_key))
}

/// Deletes flows of UDP whose client came by a device that is gone: replies leave by no other, and the client's datagrams
/// would keep them alive. The next of those begins anew.
fn sweep_lost(maps: &Maps) -> Result<u64, DatapathError> {
    let mut devices = BTreeSet::new();
    maps.datagrams.scan(|_, flow: &FlowEntry| {
        devices.insert(flow.ifindex);
    })?;
    // What cannot be told is kept.
    devices.retain(|&ifindex| matches!(doors::device_name(ifindex), Ok(None)));
    if devices.is_empty() {
        return Ok(0);
    }
    let (mut keys, mut reply_keys) = (Vec::new(), Vec::new());
    maps.datagrams.scan(|key: &FlowKey, flow: &FlowEntry| {
        if devices.contains(&flow.ifindex) {
            keys.push(*key);
        }
    })?;
    maps.datagram_replies.scan(|key: &FlowKey, reply: &ReplyEntry| {
        if devices.contains(&reply.ifindex) {
            reply_keys.push(*key);
        }
    })?;
    // First the replies: a flow that begins meanwhile has claimed its own by then, or finds the key free.
    maps.datagram_replies.delete(&reply_keys)?;
    maps.datagrams.delete(&keys)?;
    Ok(keys.len() as u64)
}

/// Deletes reply halves that stand alone.
fn sweep_replies(maps: &Maps, rules: &Rules, now: KtimeNs) -> Result<u64, DatapathError> {
    let mut doubtful = Vec::new();
    maps.replies.scan(|key: &FlowKey, reply: &ReplyEntry| {
        let idle = now.saturating_sub(reply.last_seen) > REPLY_IDLE_NS;
        if idle || !rules.serves(reply.backend, reply.generation) {
            doubtful.push(*key);
        }
    })?;
    let mut count = 0;
    for chunk in doubtful.chunks(CHUNK) {
        let mut keys = Vec::new();
        for key in chunk {
            let Some(reply) = maps.replies.get(key)? else { continue };
            let flow = maps.flows.get(&reply.flow)?;
            let is_alone = flow.is_none_or(|flow| (flow.backend, flow.generation) != (reply.backend, reply.generation));
            if is_alone && now.saturating_sub(reply.last_seen) > REPLY_IDLE_NS {
                keys.push(*key);
            }
        }
        maps.replies.delete(&keys)?;
        count += keys.len() as u64;
    }
    Ok(count)
}

/// Connected sockets of this host that the last look did not find, by their cookies, with when they connected.
#[derive(Debug, Default)]
pub struct Absent(BTreeMap<u64, KtimeNs>);

impl Absent {
    /// Takes what is held, all of it longer than [`LOCAL_GRACE_NS`], and which sockets are listed; returns the cookies of
    /// sockets that are gone: missed now and at the last look, without having connected in between. A single look may
    /// miss one that is changing its state.
    fn look(&mut self, held: &BTreeMap<u64, KtimeNs>, listed: &BTreeSet<u64>) -> Vec<u64> {
        let missed: BTreeMap<u64, KtimeNs> = held
            .iter()
            .filter(|(cookie, _)| !listed.contains(cookie))
            .map(|(&cookie, &since)| (cookie, since))
            .collect();
        let (gone, absent) = missed.into_iter().partition(|(cookie, since)| self.0.get(cookie) == Some(since));
        self.0 = absent;
        gone.into_keys().collect()
    }

    /// Returns whether a look missed a socket and the next has to tell.
    pub fn is_in_doubt(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Deletes the entries of connected sockets that are gone without a word: the kernel tells of the release of those that a
/// process has made, not of its own, such as the subflows of MPTCP. Returns how many.
///
/// Sockets can be listed in the network namespace of the calling thread alone. That is the only one whose sockets are led
/// to backends; should the datapath serve others as well, nothing is deleted, because an entry does not tell where its
/// socket is.
///
/// # Errors
/// What the kernel said.
pub fn sweep_sockets(maps: &Maps, absent: &mut Absent, now: KtimeNs) -> Result<u64, DatapathError> {
    let mut held = BTreeMap::new();
    maps.local_flows.scan(|&cookie: &u64, flow: &LocalFlow| {
        if now.saturating_sub(flow.last_seen) > LOCAL_GRACE_NS {
            held.insert(cookie, flow.last_seen);
        }
    })?;
    if held.is_empty() {
        *absent = Absent::default();
        return Ok(0);
    }
    let here = netns::current_cookie().map_err(|source| DatapathError::Netns { source })?;
    let served: Vec<u64> = maps.local_netns.keys().collect::<Result<_, _>>().map_err(failed(map::LOCAL_NETNS))?;
    if served != [here] {
        return Ok(0);
    }
    let listed = sockets::cookies().map_err(|source| DatapathError::Sockets { source })?;
    let gone = absent.look(&held, &listed);
    let mut count = 0;
    for chunk in gone.chunks(CHUNK) {
        let mut keys = Vec::new();
        for &cookie in chunk {
            if maps.local_flows.get(&cookie)?.is_some_and(|flow| held.get(&cookie) == Some(&flow.last_seen)) {
                keys.push(cookie);
            }
        }
        maps.local_flows.delete(&keys)?;
        count += keys.len() as u64;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use lb_ebpf::{
        abi::{Address, Endpoint, Port, Proto},
        tcp_state::Seen,
    };

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rules() -> Rules {
        let backends = vec![Backend::new(0, 3, Address::from_v4([198, 19, 0, 2]), Port::new(80))];
        Rules { backends, lifetimes: Lifetimes::DEFAULT }
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
        let side = |last| (Address::from_v4([198, 18, 1, last]), Port::new(80));
        let key = FlowKey::new(side(2).0, side(2).1, side(1).0, side(1).1, Proto::Tcp);
        let mut entry = FlowEntry::new(&key, (0, generation), 1, ingress, last_seen);
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
            ("closed long ago", 3, State::Closed, 121 * SECOND, Fate::Ended),
            ("of a generation that was published since", 4, State::Established, 0, Fate::Active),
            ("an unanswered datagram", 3, State::UdpUnreplied, 31 * SECOND, Fate::Ended),
            ("an answered one", 3, State::UdpReplied, 31 * SECOND, Fate::Active),
        ];
        for (what, generation, state, idle, expected) in cases {
            let now = 20_000 * SECOND;
            let entry = in_state(state, generation, now - idle);

            assert_eq!(fate(&entry, &rules(), now), expected, "{what}");
        }
    }

    #[test]
    fn a_syn_waits_once_it_was_repeated_and_until_it_was_given_up() {
        let now = 20_000 * SECOND;
        for (idle_ms, expected) in [(0, false), (999, false), (1_000, true), (3_999, true), (4_000, false)] {
            let mut entry = in_state(State::Reset, 3, now - idle_ms * 1_000_000);
            entry.ingress = 0;
            assert_eq!(entry.state(), State::SynSent);

            assert_eq!(is_waiting(&entry, now), expected, "{idle_ms} ms");
        }
        assert!(!is_waiting(&in_state(State::Established, 3, now - 2 * SECOND), now));
    }

    #[test]
    fn a_syn_is_a_load_until_it_was_given_up_and_holds_nothing() {
        let now = 20_000 * SECOND;
        let syn = |idle_ms: u64| FlowEntry { ingress: 0, ..in_state(State::Reset, 3, now - idle_ms * 1_000_000) };
        let tally = |active, held| Tally { active, held };

        assert_eq!([0, 3_999, 4_000].map(|idle| standing(&syn(idle), now)), [tally(1, 0), tally(1, 0), tally(0, 0)]);
        let answered = FlowEntry { egress: Seen::ANSWERED, ..syn(9_000) };
        assert_eq!((answered.state(), standing(&answered, now)), (State::SynReceived, tally(1, 0)));
        // There was no room among the proven.
        assert_eq!(standing(&in_state(State::Established, 3, now), now), tally(1, 1));
        assert_eq!(
            standing(&in_state(State::UdpUnreplied, 3, now), now),
            tally(1, 1),
            "a datagram proves nothing, ever"
        );
    }

    #[test]
    fn an_unconnected_socket_uses_a_flow_for_as_long_as_an_unanswered_one_lives() {
        let now = 20_000 * SECOND;
        let to = Endpoint::new(Address::from_v4([198, 18, 1, 1]), Port::new(53), Proto::Udp);
        let sent = |seconds: u64| LocalFlow {
            last_seen: now - seconds * SECOND,
            wanted: to,
            given: to,
            backend: 0,
            generation: 3,
        };

        assert_eq!([0, 30, 31].map(|seconds| is_in_use(&sent(seconds), &rules(), now)), [true, true, false]);
    }

    #[test]
    fn a_lifetime_may_be_set() {
        let now = 20_000 * SECOND;
        let mut rules = rules();
        rules.lifetimes = rules.lifetimes.with(State::Established, 5);

        assert_eq!(fate(&in_state(State::Established, 3, now - 5 * SECOND), &rules, now), Fate::Active);
        assert_eq!(fate(&in_state(State::Established, 3, now - 6 * SECOND), &rules, now), Fate::Ended);
        assert_eq!(fate(&in_state(State::UdpReplied, 3, now - 6 * SECOND), &rules, now), Fate::Active);
    }

    #[test]
    fn a_stamp_ahead_of_the_clock_is_fresh() {
        let entry = in_state(State::Reset, 3, 10 * SECOND);

        assert_eq!(fate(&entry, &rules(), 9 * SECOND), Fate::Lingers);
    }

    #[test]
    fn a_socket_is_gone_when_two_looks_in_a_row_have_missed_it() {
        let mut absent = Absent::default();
        let held = BTreeMap::from([(1, 10), (2, 10), (3, 10), (4, 10)]);

        assert_eq!(absent.look(&held, &[1].into()), [0; 0]);
        assert!(absent.is_in_doubt());
        // The second was changing its state, and the third has connected anew.
        let held = BTreeMap::from([(1, 10), (2, 10), (3, 20), (4, 10)]);
        assert_eq!(absent.look(&held, &[1, 2].into()), [4]);
        assert_eq!(absent.look(&held, &[1].into()), [3]);
        assert_eq!(absent.look(&held, &[1, 2, 3, 4].into()), [0; 0], "missed once is not missed in a row");
        assert!(!absent.is_in_doubt());
    }
}
