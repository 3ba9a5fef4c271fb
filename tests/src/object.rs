//! The real kernel object, loaded without being attached, and run packet by packet (`BPF_PROG_TEST_RUN`).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, MapData, PerCpuArray, PerCpuValues, RingBuf,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
    util::nr_cpus,
};
use lb_ebpf::abi::{
    Address, AffinityEntry, AffinityKey, Backend, BackendId, Endpoint, FlowEntry, FlowKey, FragmentEntry, FragmentKey,
    Frontend, FrontendId, Guard, HandOff, Handshakes, KtimeNs, Lifetimes, MAX_COUNTERS, MAX_FRONTENDS, Port, Proto,
    RateKey, ReplyEntry, SOURCE_BITS, Scheduler, Slot, SlotRange, Source, Tally, Traffic, Wake, map, program,
};

use crate::frames::Side;

/// A side of a connection, of either version of IP: a [`Side`], or one of [`crate::frames::v6`].
pub trait At: Copy {
    /// Returns its address.
    fn address(self) -> Address;
    /// Returns its port.
    fn port(self) -> Port;
}

impl At for Side {
    fn address(self) -> Address {
        Address::from_v4(self.0)
    }
    fn port(self) -> Port {
        Port::new(self.1)
    }
}

impl At for crate::frames::v6::Side {
    fn address(self) -> Address {
        Address::from(Ipv6Addr::from(self.0))
    }
    fn port(self) -> Port {
        Port::new(self.1)
    }
}

/// The object with its maps.
pub struct Object {
    /// Nothing only while it is put away.
    ebpf: Option<Ebpf>,
    size: Size,
    next_slot: u32,
    backends: BTreeSet<BackendId>,
}

/// Room for flows, and for half-open ones.
type Size = (u32, u32);

/// Objects that nobody has at the moment, with empty maps: the verifier takes a second for one, and under emulation a minute.
static IDLE: Mutex<Vec<(Size, Ebpf)>> = Mutex::new(Vec::new());

/// A program that takes packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// TC at an uplink.
    Tc,
    /// XDP at an uplink.
    Xdp,
    /// TC at a backend's device.
    Reply,
    /// TC where this host, a backend itself, sends.
    Local,
}

impl Door {
    /// Returns the name of a door's program of TC; of XDP, that of the one behind it.
    const fn classifier(self) -> &'static str {
        match self {
            Self::Tc | Self::Xdp => program::TC_INGRESS,
            Self::Reply => program::TC_REPLY,
            Self::Local => program::TC_LOCAL,
        }
    }
}

/// What a program did with a packet, in words common to TC and XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Left to the host.
    Pass,
    /// Ended.
    Drop,
    /// Redirected.
    Redirect,
    /// Given to the host's stack, rewritten.
    Route,
    /// Sent back by XDP.
    Return,
    /// Something no program of ours does.
    Unknown(u32),
}

/// What marks the notes that XDP leaves for TC.
pub const NOTE_MARK: u32 = 0x0123_4567;

/// The host's IPv6 address beside the backends.
pub const HOST_V6: [u8; 16] = crate::frames::v6::address(2, 1);

/// How backends are reached in a test.
pub const REACH: HandOff = HandOff::Peer;

impl Object {
    /// Loads the object with small tables.
    pub fn load() -> Self {
        Self::load_with(65_536, 4096)
    }

    /// Loads the object with room for so many flows.
    pub fn load_with(flows: u32, half_open: u32) -> Self {
        let size = (flows, half_open);
        let idle = {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().position(|(of, _)| *of == size).map(|place| idle.swap_remove(place).1)
        };
        let ebpf = Some(idle.unwrap_or_else(|| load(size)));
        let mut object = Self { ebpf, size, next_slot: 0, backends: BTreeSet::new() };
        object.live_for(Lifetimes::DEFAULT);
        object
    }

    fn ebpf(&self) -> &Ebpf {
        self.ebpf.as_ref().expect("it is not put away")
    }

    /// Empties the maps that a packet or a test can have written.
    fn clear(&mut self) {
        for name in [map::FLOWS, map::HALF_OPEN, map::DATAGRAMS] {
            self.clear_hash::<FlowKey, FlowEntry>(name);
        }
        for name in [map::REPLIES, map::HALF_OPEN_REPLIES, map::DATAGRAM_REPLIES] {
            self.clear_hash::<FlowKey, ReplyEntry>(name);
        }
        self.clear_hash::<FragmentKey, FragmentEntry>(map::FRAGMENTS);
        self.clear_hash::<AffinityKey, AffinityEntry>(map::AFFINITIES);
        self.clear_hash::<Endpoint, FrontendId>(map::ADDRESSES);
        self.clear_hash::<Endpoint, u32>(map::LOCAL_BACKENDS);
        self.clear_hash::<FrontendId, Frontend>(map::FRONTENDS);
        let none = Backend::new(0, 0, Address::from_v4([0; 4]), Port::new(0));
        for id in std::mem::take(&mut self.backends) {
            self.write_backend(id, none);
            for name in [map::TALLIES, map::TALLY_ERRORS] {
                let mut tallies: Array<&mut MapData, Tally> = self.map(name);
                tallies.set(id, Tally::default(), 0).unwrap();
            }
            let mut woken: Array<&mut MapData, KtimeNs> = self.map(map::WOKEN);
            woken.set(id, 0, 0).unwrap();
            self.clear_counted::<Traffic>(map::BACKEND_STATS, id);
            self.clear_counted::<Handshakes>(map::HANDSHAKES, id);
        }
        self.backends.clear();
        self.wakes();
        self.sweep_at(0);
        let mut cursors: Array<&mut MapData, u64> = self.map(map::CURSORS);
        for id in 0..MAX_FRONTENDS {
            cursors.set(id, 0, 0).unwrap();
        }
        let mut guards: Array<&mut MapData, Guard> = self.map(map::GUARDS);
        for id in 0..MAX_FRONTENDS {
            guards.set(id, Guard::default(), 0).unwrap();
        }
        let mut sources: LpmTrie<&mut MapData, Source, u32> = self.map(map::SOURCES);
        for key in sources.keys().collect::<Result<Vec<_>, _>>().unwrap() {
            sources.remove(&key).unwrap();
        }
        self.clear_hash::<RateKey, KtimeNs>(map::RATES);
        // Their buckets are full again within a second by themselves.
        self.forget_cookies();
        self.answer_by_xdp(false);
        for index in 0..MAX_COUNTERS {
            self.clear_counted::<u64>(map::COUNTERS, index);
        }
        // How many answers were sent since when: the object's own affair.
        self.clear_counted::<[u64; 2]>("ANSWERS", 0);
    }

    fn clear_hash<K: Pod, V: Pod>(&mut self, name: &str) {
        let mut entries: HashMap<&mut MapData, K, V> = self.map(name);
        let keys: Vec<K> = entries.keys().collect::<Result<_, _>>().unwrap();
        for key in keys {
            entries.remove(&key).unwrap();
        }
    }

    fn clear_counted<V: Pod + Default>(&mut self, name: &str, index: u32) {
        let mut values: PerCpuArray<&mut MapData, V> = self.map(name);
        let none = vec![V::default(); nr_cpus().expect("there are some")];
        values.set(index, PerCpuValues::try_from(none).unwrap(), 0).unwrap();
    }

    /// Forgets that cookies were issued.
    pub fn forget_cookies(&mut self) {
        let mut cookies: Array<&mut MapData, KtimeNs> = self.map(map::COOKIES);
        for id in 0..MAX_FRONTENDS {
            cookies.set(id, 0, 0).unwrap();
        }
    }

    /// Says whether XDP answers by itself. The device of test runs is the loopback.
    pub fn answer_by_xdp(&mut self, answers: bool) {
        const LOOPBACK: u32 = 1;
        let mut devices: HashMap<&mut MapData, u32, u32> = self.map(map::XDP_ANSWERS);
        match answers {
            true => devices.insert(LOOPBACK, 1, 0).unwrap(),
            false => _ = devices.remove(&LOOPBACK),
        }
    }

    /// Says for how long flows may stay idle.
    pub fn live_for(&mut self, lifetimes: Lifetimes) {
        let mut map: Array<&mut MapData, Lifetimes> = self.map(map::LIFETIMES);
        map.set(0, lifetimes, 0).unwrap();
    }

    /// Serves a frontend with these backends in its slots.
    pub fn serve(&mut self, id: FrontendId, at: impl At, proto: Proto, slots: &[BackendId]) {
        self.publish(id, slots);
        let endpoint = Endpoint::new(at.address(), at.port(), proto);
        let mut addresses: HashMap<&mut MapData, Endpoint, FrontendId> = self.map(map::ADDRESSES);
        addresses.insert(endpoint, id, 0).unwrap();
    }

    /// Replaces a frontend's slots, in turn.
    pub fn publish(&mut self, id: FrontendId, slots: &[BackendId]) {
        let layout: Vec<Slot> = slots.iter().map(|&backend| Slot { backend, weight: 1 }).collect();
        self.lay_out(id, Scheduler::RoundRobin, 0, &layout);
    }

    /// Says how many connections of each backend of a frontend may be under way; zero: any number.
    pub fn limit(&mut self, id: FrontendId, max_connections: u32) {
        let mut frontends: HashMap<&mut MapData, FrontendId, Frontend> = self.map(map::FRONTENDS);
        let frontend = frontends.get(&id, 0).unwrap();
        frontends.insert(id, frontend.limited_to(max_connections), 0).unwrap();
    }

    /// Says that a sweep was at this time.
    pub fn sweep_at(&mut self, at: KtimeNs) {
        let mut swept: Array<&mut MapData, KtimeNs> = self.map(map::SWEPT);
        swept.set(0, at, 0).unwrap();
    }

    /// Replaces a frontend's slots, and says how a backend is chosen there. Behind them, each backend is once.
    pub fn lay_out(&mut self, id: FrontendId, scheduler: Scheduler, affinity_ms: u32, layout: &[Slot]) {
        let base = self.next_slot;
        let each: BTreeSet<Slot> = layout.iter().copied().collect();
        let roll: Vec<Slot> = if each.len() < layout.len() { each.into_iter().collect() } else { Vec::new() };
        self.next_slot += (layout.len() + roll.len()) as u32;
        let mut slots: Array<&mut MapData, Slot> = self.map(map::SLOTS);
        for (place, slot) in layout.iter().chain(&roll).enumerate() {
            slots.set(base + place as u32, slot, 0).unwrap();
        }
        let range = SlotRange { base, len: layout.len() as u32 };
        let mut frontends: HashMap<&mut MapData, FrontendId, Frontend> = self.map(map::FRONTENDS);
        let former = frontends.get(&id, 0).map_or(SlotRange { base: 0, len: 0 }, |frontend| frontend.slots());
        let frontend = Frontend::new(range, scheduler).keeping_clients(affinity_ms).rolling(roll.len() as u32);
        let frontend = frontend.after(former);
        frontends.insert(id, frontend, 0).unwrap();
    }

    /// Returns how many connections of a backend the datapath takes for being under way.
    pub fn active(&self, id: BackendId) -> i64 {
        self.tally(id).active as i64
    }

    /// Returns how many connections of a backend the datapath takes for being held.
    pub fn held(&self, id: BackendId) -> i64 {
        self.tally(id).held as i64
    }

    fn tally(&self, id: BackendId) -> Tally {
        let tallies = |name| -> Array<&MapData, Tally> { self.ebpf().map(name).unwrap().try_into().unwrap() };
        let [tally, error] = [map::TALLIES, map::TALLY_ERRORS].map(|name| tallies(name).get(&id, 0).unwrap());
        Tally { active: tally.active.wrapping_sub(error.active), held: tally.held.wrapping_sub(error.held) }
    }

    /// Says how many connections of a backend are under way, all of them held, as a sweep would.
    pub fn set_active(&mut self, id: BackendId, active: i64) {
        let Tally { active: begun, held } = self.tally(id);
        let mut errors: Array<&mut MapData, Tally> = self.map(map::TALLY_ERRORS);
        let error = errors.get(&id, 0).unwrap();
        let error = Tally {
            active: error.active.wrapping_add(begun).wrapping_sub(active as u64),
            held: error.held.wrapping_add(held).wrapping_sub(active as u64),
        };
        errors.set(id, error, 0).unwrap();
    }

    /// Writes a backend that takes XDP frames, so that both front doors redirect.
    pub fn backend(&mut self, id: BackendId, frontend: FrontendId, generation: u32, at: impl At) {
        let host = match at.address().v4() {
            Some(_) => Address::from_v4([198, 18, 2, 1]),
            None => Address::from(Ipv6Addr::from(HOST_V6)),
        };
        let backend = Backend::new(frontend, generation, at.address(), at.port())
            .reached_by(REACH, 1, [6, 0, 0, 0, 0, id as u8], [6, 0, 0, 0, 1, 0])
            .beside(host)
            .taking_xdp();
        self.write_backend(id, backend);
    }

    /// Writes a backend that is this host itself.
    pub fn local_backend(&mut self, id: BackendId, frontend: FrontendId, at: impl At, proto: Proto) {
        let backend = Backend::new(frontend, 1, at.address(), at.port());
        self.write_backend(id, backend.reached_by(HandOff::Local, 1, [0; 6], [0; 6]).listening_here());
        let mut endpoints: HashMap<&mut MapData, Endpoint, u32> = self.map(map::LOCAL_BACKENDS);
        endpoints.insert(Endpoint::new(at.address(), at.port(), proto), 1, 0).unwrap();
    }

    /// Writes any backend.
    pub fn write_backend(&mut self, id: BackendId, backend: Backend) {
        self.backends.insert(id);
        let mut backends: Array<&mut MapData, Backend> = self.map(map::BACKENDS);
        backends.set(id, backend, 0).unwrap();
    }

    /// Says in which network namespace a backend listens.
    pub fn listen_in(&mut self, id: BackendId, netns: u32) {
        let backend = {
            let backends: Array<&mut MapData, Backend> = self.map(map::BACKENDS);
            backends.get(&id, 0).unwrap()
        };
        self.write_backend(id, backend.listening_in(netns));
    }

    /// Frees a backend.
    pub fn free(&mut self, id: BackendId) {
        let backend = {
            let backends: Array<&mut MapData, Backend> = self.map(map::BACKENDS);
            backends.get(&id, 0).unwrap()
        };
        self.write_backend(id, backend.freed());
    }

    /// Marks a backend as one that has left the slots.
    pub fn leave(&mut self, id: BackendId) {
        let backend = {
            let backends: Array<&mut MapData, Backend> = self.map(map::BACKENDS);
            backends.get(&id, 0).unwrap()
        };
        self.write_backend(id, backend.leaving());
    }

    /// Marks a backend as one that is asleep.
    pub fn sleep(&mut self, id: BackendId) {
        let backend = {
            let backends: Array<&mut MapData, Backend> = self.map(map::BACKENDS);
            backends.get(&id, 0).unwrap()
        };
        self.write_backend(id, backend.asleep());
    }

    /// Returns which backends were woken since the last call, by id and generation.
    pub fn wakes(&mut self) -> Vec<(BackendId, u32)> {
        let map = self.ebpf.as_mut().expect("it is not put away").map_mut(map::WAKES).expect("it is in the object");
        let mut ring = RingBuf::try_from(map).unwrap();
        let mut wakes = Vec::new();
        while let Some(item) = ring.next() {
            let word = |from: usize| u32::from_ne_bytes(item[from..from + 4].try_into().unwrap());
            assert_eq!(item.len(), size_of::<Wake>());
            wakes.push((word(0), word(4)));
        }
        wakes
    }

    /// Gives a frontend a scheduler by a number that no version has used.
    pub fn set_scheduler_number(&mut self, id: FrontendId, number: u8) {
        const SCHEDULER: usize = 16;
        let mut frontends: HashMap<&mut MapData, FrontendId, [u8; size_of::<Frontend>()]> = self.map(map::FRONTENDS);
        let mut bytes = frontends.get(&id, 0).unwrap();
        bytes[SCHEDULER] = number;
        frontends.insert(id, bytes, 0).unwrap();
    }

    /// Runs a packet through a program.
    pub fn run(&self, door: Door, frame: &[u8]) -> (Action, Vec<u8>) {
        let mut out = vec![0; frame.len() + 256];
        let (value, len) = self.run_into(door, frame, &mut out);
        out.truncate(len);
        (action(door, value), out)
    }

    /// Runs a packet through a TC program as one that the kernel has merged of `segments`, each with `size` bytes.
    pub fn run_merged(&self, door: Door, frame: &[u8], segments: u32, size: u32) -> Action {
        // The fields that the kernel does not take from a test have to be zero.
        let mut context = [0_u8; size_of::<SkBuff>()];
        let mut set = |offset: usize, value: u32| context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        set(std::mem::offset_of!(SkBuff, gso_segs), segments);
        set(std::mem::offset_of!(SkBuff, gso_size), size);
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let name = door.classifier();
        let result = self.program::<SchedClassifier>(name).test_run(options);
        let result = result.unwrap_or_else(|error| panic!("{door:?}: {error}"));
        action(door, result.return_value)
    }

    /// Runs a packet through XDP that has as much metadata in front of it as the kernel allows; returns also that.
    ///
    /// # Source
    /// include/net/xdp.h, `xdp_metalen_invalid`: 32 bytes at first, and later what a byte can say and a frame has room for.
    pub fn run_behind_metadata(&self, frame: &[u8]) -> (Action, Vec<u8>) {
        let run = |len: usize| {
            let data = [&vec![0xab; len][..], frame].concat();
            // `struct xdp_md`: where the packet begins and ends, then where its metadata begins, and devices.
            let context: Vec<u8> =
                [len, data.len(), 0, 0, 0, 0].iter().flat_map(|&field| (field as u32).to_ne_bytes()).collect();
            let mut out = vec![0; data.len() + 256];
            let options = TestRunOptions {
                data_in: Some(&data),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            };
            let result = self.program::<Xdp>(program::XDP_INGRESS).test_run(options).ok()?;
            out.truncate(result.data_size_out as usize);
            Some((action(Door::Xdp, result.return_value), out))
        };
        (0..=252).rev().step_by(4).find_map(run).expect("the kernel takes some")
    }

    /// Gives every port that a client could get at a backend to connections of somebody else.
    pub fn take_all_ports(&mut self, backend: Side, client: Side, now: KtimeNs) {
        let other = key(([198, 18, 9, 9], 1), backend, Proto::Tcp);
        let mut replies: HashMap<&mut MapData, FlowKey, ReplyEntry> = self.map(map::REPLIES);
        for port in crate::model::LOT.chain([client.1]) {
            let key = key(backend, (client.0, port), Proto::Tcp);
            replies.insert(key, ReplyEntry::new(&key, other, (0, 1, 1), 0, now), 0).unwrap();
        }
    }

    /// Removes the reply half of a flow of UDP, as a full table would.
    pub fn push_out_datagram_reply(&mut self, from: Side, to: Side) {
        let mut replies: HashMap<&mut MapData, FlowKey, ReplyEntry> = self.map(map::DATAGRAM_REPLIES);
        replies.remove(&key(from, to, Proto::Udp)).unwrap();
    }

    /// Makes a proven connection one whose client came by another device. Keys: of the client's packets, of the replies.
    pub fn move_flow(&mut self, (from, to): (Side, Side), (backend, client): (Side, Side), ifindex: u32) {
        let at = key(from, to, Proto::Tcp);
        let mut flows: HashMap<&mut MapData, FlowKey, FlowEntry> = self.map(map::FLOWS);
        let flow = flows.get(&at, 0).unwrap();
        flows.insert(at, FlowEntry { ifindex, ..flow }, 0).unwrap();
        let at = key(backend, client, Proto::Tcp);
        let mut replies: HashMap<&mut MapData, FlowKey, ReplyEntry> = self.map(map::REPLIES);
        let mut reply = replies.get(&at, 0).unwrap();
        reply.ifindex = ifindex;
        replies.insert(at, reply, 0).unwrap();
    }

    /// Runs a packet through a program, with a buffer that is used again.
    pub fn run_into(&self, door: Door, frame: &[u8], out: &mut [u8]) -> (u32, usize) {
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(out), ..TestRunOptions::default() };
        let result = match door {
            Door::Xdp => self.program::<Xdp>(program::XDP_INGRESS).test_run(options),
            Door::Tc | Door::Reply | Door::Local => {
                self.program::<SchedClassifier>(door.classifier()).test_run(options)
            }
        };
        let result = result.unwrap_or_else(|error| panic!("{door:?} {frame:02x?}: {error}"));
        (result.return_value, result.data_size_out as usize)
    }

    /// Returns a counter.
    pub fn count(&self, index: u32) -> u64 {
        let counters: PerCpuArray<&MapData, u64> = self.ebpf().map(map::COUNTERS).unwrap().try_into().unwrap();
        counters.get(&index, 0).unwrap().iter().sum()
    }

    /// Returns what went through a backend.
    pub fn traffic(&self, id: BackendId) -> Traffic {
        let stats: PerCpuArray<&MapData, Traffic> = self.ebpf().map(map::BACKEND_STATS).unwrap().try_into().unwrap();
        stats.get(&id, 0).unwrap().iter().fold(Traffic::default(), |mut sum, value| {
            sum.add(value);
            sum
        })
    }

    /// Returns how a backend answers, over all processors.
    pub fn handshakes(&self, id: BackendId) -> Handshakes {
        let map: PerCpuArray<&MapData, Handshakes> = self.ebpf().map(map::HANDSHAKES).unwrap().try_into().unwrap();
        map.get(&id, 0).unwrap().iter().fold(Handshakes::default(), |mut sum, value| {
            sum.add(value);
            sum
        })
    }

    /// Says who may begin connections to a frontend: by the rules, and by networks with whether they may.
    pub fn guard(&mut self, id: FrontendId, rules: Guard, networks: &[(IpAddr, u32, bool)]) {
        let mut guards: Array<&mut MapData, Guard> = self.map(map::GUARDS);
        guards.set(id, rules, 0).unwrap();
        let mut sources: LpmTrie<&mut MapData, Source, u32> = self.map(map::SOURCES);
        for &(network, bits, admits) in networks {
            let source = Source { frontend: id, address: Address::from(network) };
            let of = if network.is_ipv4() { 32 } else { 128 };
            sources.insert(&Key::new(SOURCE_BITS - of + bits, source), u32::from(admits), 0).unwrap();
        }
    }

    /// Returns a proven flow.
    pub fn flow(&self, from: impl At, to: impl At, proto: Proto) -> Option<FlowEntry> {
        let flows: HashMap<&MapData, FlowKey, FlowEntry> = self.ebpf().map(map::FLOWS).unwrap().try_into().unwrap();
        flows.get(&key(from, to, proto), 0).ok()
    }

    /// Returns a flow that is not proven, or over.
    pub fn half_open(&self, from: impl At, to: impl At, proto: Proto) -> Option<FlowEntry> {
        let flows: HashMap<&MapData, FlowKey, FlowEntry> = self.ebpf().map(map::HALF_OPEN).unwrap().try_into().unwrap();
        flows.get(&key(from, to, proto), 0).ok().filter(|flow| !flow.is_moved())
    }

    /// Returns a flow of UDP.
    pub fn datagrams(&self, from: impl At, to: impl At) -> Option<FlowEntry> {
        let flows: HashMap<&MapData, FlowKey, FlowEntry> = self.ebpf().map(map::DATAGRAMS).unwrap().try_into().unwrap();
        flows.get(&key(from, to, Proto::Udp), 0).ok()
    }

    /// Returns the reply half of a proven flow.
    pub fn reply(&self, from: impl At, to: impl At, proto: Proto) -> Option<ReplyEntry> {
        let replies: HashMap<&MapData, FlowKey, ReplyEntry> =
            self.ebpf().map(map::REPLIES).unwrap().try_into().unwrap();
        replies.get(&key(from, to, proto), 0).ok()
    }

    /// Returns a program, to be called by another.
    pub fn program_fd(&self, door: Door) -> &ProgramFd {
        let fd = match door {
            Door::Xdp => self.program::<Xdp>(program::XDP_INGRESS).fd(),
            Door::Tc | Door::Reply | Door::Local => self.program::<SchedClassifier>(door.classifier()).fd(),
        };
        fd.expect("the object is loaded")
    }

    fn map<'a, T>(&'a mut self, name: &str) -> T
    where
        T: TryFrom<&'a mut aya::maps::Map>,
        T::Error: std::fmt::Debug,
    {
        self.ebpf.as_mut().expect("it is not put away").map_mut(name).unwrap().try_into().unwrap()
    }

    fn program<'a, P: 'a>(&'a self, name: &str) -> &'a P
    where
        &'a P: TryFrom<&'a aya::programs::Program>,
        <&'a P as TryFrom<&'a aya::programs::Program>>::Error: std::fmt::Debug,
    {
        self.ebpf().program(name).unwrap().try_into().unwrap()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        self.clear();
        if let Some(ebpf) = self.ebpf.take() {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push((self.size, ebpf));
        }
    }
}

fn load((flows, half_open): Size) -> Ebpf {
    assert!(!lb_user::datapath::OBJECT.is_empty(), "lb-user was built without the kernel object");
    let mut ebpf = EbpfLoader::new()
        .map_max_entries(map::FLOWS, flows)
        .map_max_entries(map::REPLIES, flows)
        .map_max_entries(map::HALF_OPEN, half_open)
        .map_max_entries(map::HALF_OPEN_REPLIES, half_open)
        .override_global("NOTE_MARK", &NOTE_MARK, true)
        .load(lb_user::datapath::OBJECT)
        .expect("the object loads");
    for name in [program::TC_INGRESS, program::TC_REPLY, program::TC_LOCAL] {
        let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let program: &mut Xdp = ebpf.program_mut(program::XDP_INGRESS).unwrap().try_into().unwrap();
    program.load().unwrap_or_else(|error| panic!("{}: {error}", program::XDP_INGRESS));
    ebpf
}

/// A TC program's context.
///
/// # Source
/// include/uapi/linux/bpf.h, `struct __sk_buff`.
#[repr(C)]
struct SkBuff {
    before: [u32; 41],
    gso_segs: u32,
    sk: u64,
    gso_size: u32,
    tstamp_type: u32,
    hwtstamp: u64,
}

const _: () = assert!(std::mem::offset_of!(SkBuff, gso_size) == 176 && size_of::<SkBuff>() == 192);

/// Translates what a program returned.
///
/// # Source
/// include/uapi/linux/pkt_cls.h, include/uapi/linux/bpf.h.
pub const fn action(door: Door, value: u32) -> Action {
    match (door, value) {
        (Door::Xdp, 1) | (Door::Tc | Door::Reply | Door::Local, 2) => Action::Drop,
        (Door::Xdp, 2) | (Door::Tc | Door::Reply | Door::Local, u32::MAX) => Action::Pass,
        (Door::Xdp, 3) => Action::Return,
        (Door::Xdp, 4) | (Door::Tc | Door::Reply, 7) => Action::Redirect,
        (Door::Tc | Door::Reply, 0) => Action::Route,
        (_, other) => Action::Unknown(other),
    }
}

fn key(from: impl At, to: impl At, proto: Proto) -> FlowKey {
    FlowKey::new(from.address(), from.port(), to.address(), to.port(), proto)
}
