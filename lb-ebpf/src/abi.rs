//! What the kernel object and the agent agree upon: every map's key and value, to the byte.
//!
//! Addresses are sixteen bytes everywhere, IPv4 mapped as in RFC 4291, 2.5.5.2. Addresses and ports keep network byte
//! order inside [`Address`] and [`Port`]; nobody else swaps bytes. Any change here raises [`ABI_VERSION`].

use core::fmt;

/// Version of everything in this file. The agent adopts pinned maps of its own version only.
pub const ABI_VERSION: u32 = 7;

/// Names of the maps in the object, which are also the names of their pins.
pub mod map {
    /// `Endpoint → FrontendId` (u32). Hash. Writer: agent. Full: the agent refuses the frontend.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// `Endpoint → 1` (u32): those of backends that are this host itself. Hash. Writer: agent. Full: the agent refuses the
    /// publication.
    pub const LOCAL_BACKENDS: &str = "LOCAL_BACKENDS";
    /// `FrontendId → Frontend`. Hash, replaced value by value. Writer: agent. Full: the agent refuses the frontend.
    pub const FRONTENDS: &str = "FRONTENDS";
    /// `SlotIndex → Slot`: the frontends' layouts. Array. Writer: agent. Full: the agent refuses the publication.
    pub const SLOTS: &str = "SLOTS";
    /// `BackendId → Backend`. Array. Writer: agent. Full: the agent refuses the publication.
    pub const BACKENDS: &str = "BACKENDS";
    /// `FrontendId → next ticket` (u64). Array. Writer: datapath.
    pub const CURSORS: &str = "CURSORS";
    /// `AffinityKey → AffinityEntry`: the backends that clients keep. LRU hash. Writer: datapath. Full: the oldest goes; its
    /// client is given a backend like any other.
    pub const AFFINITIES: &str = "AFFINITIES";
    /// `BackendId → Tally`: connections begun less those whose end was seen. Array. Writer: datapath.
    pub const TALLIES: &str = "TALLIES";
    /// `BackendId → Tally`: by how much that exceeds the connections under way, as of the last sweep: what idled out, was
    /// pushed out or ended unseen. Array. Writer: agent.
    pub const TALLY_ERRORS: &str = "TALLY_ERRORS";
    /// `0 → when the tallies were last set right` (u64, [`KtimeNs`](super::KtimeNs)). Array of one. Writer: agent.
    pub const SWEPT: &str = "SWEPT";
    /// `FlowKey as the client sends it → FlowEntry`, TCP connections of clients that have proven to be real, while they
    /// last. Hash. Writer: datapath; the agent deletes what idled out. Full: a connection stays in `HALF_OPEN` and works
    /// on, counted as `flow_table_full`.
    pub const FLOWS: &str = "FLOWS";
    /// `FlowKey as the backend sends it → ReplyEntry` of those. Hash. Writers and full: as `FLOWS`.
    pub const REPLIES: &str = "REPLIES";
    /// The same for TCP connections whose client has proven nothing yet, and for those that are over: late segments
    /// still find home. Also the former entries of the proven, marked as moved. LRU hash. Writer: datapath. Full: the
    /// oldest goes.
    pub const HALF_OPEN: &str = "HALF_OPEN";
    /// The reply halves of those. As `HALF_OPEN`.
    pub const HALF_OPEN_REPLIES: &str = "HALF_OPEN_REPLIES";
    /// The same for UDP. LRU hash. Writer: datapath; the agent deletes those whose client's device is gone. Full: the
    /// oldest goes; its next datagram takes the next backend.
    pub const DATAGRAMS: &str = "DATAGRAMS";
    /// The reply halves of those. As `DATAGRAMS`; one that went is put back within a second of its flow's traffic.
    pub const DATAGRAM_REPLIES: &str = "DATAGRAM_REPLIES";
    /// `FragmentKey → FragmentEntry`, of both directions: what became of the first fragment, for those that follow it. LRU
    /// hash. Writer: datapath. Full: the oldest goes, and the rest of its datagram is passed as `fragment`.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// `socket cookie (u64) → LocalFlow`: connected sockets of this host that were led to a backend. Hash. Writer:
    /// datapath, which removes an entry with its socket; the agent removes those whose socket went without a word. Full:
    /// a socket works and is not counted as active, and its process sees the backend as its peer.
    pub const LOCAL_FLOWS: &str = "LOCAL_FLOWS";
    /// `LocalKey → LocalFlow`: unconnected UDP sockets of this host, their datagrams and the answers. LRU hash. Writer:
    /// datapath. Full: the oldest goes; its next datagram takes the next backend.
    pub const LOCAL_DATAGRAMS: &str = "LOCAL_DATAGRAMS";
    /// `netns cookie (u64) → 1`: network namespaces whose sockets are balanced at connect(). Hash. Writer: agent.
    pub const LOCAL_NETNS: &str = "LOCAL_NETNS";
    /// `CounterIndex → u64`. Per-CPU array. Writer: datapath.
    pub const COUNTERS: &str = "COUNTERS";
    /// `BackendId → Traffic`. Per-CPU array. Writer: datapath; the agent zeroes a row before it reuses its id.
    pub const BACKEND_STATS: &str = "BACKEND_STATS";
    /// `BackendId → Handshakes`. Per-CPU array. Writer: datapath; the agent zeroes a row before it reuses its id.
    pub const HANDSHAKES: &str = "HANDSHAKES";
    /// `FrontendId → Traffic` of backends that are no more. Array. Writer: agent.
    pub const RETIRED: &str = "RETIRED";
    /// `FrontendId → Guard`. Array. Writer: agent.
    pub const GUARDS: &str = "GUARDS";
    /// `Source → 1 if it may begin connections, else 0` (u32). Trie of longest prefixes. Writer: agent. Full: the agent
    /// refuses the configuration.
    pub const SOURCES: &str = "SOURCES";
    /// `RateKey → when its bucket is full again` (u64, [`KtimeNs`](super::KtimeNs)). LRU hash. Writer: datapath. Full: the
    /// oldest goes, and its network may begin a whole burst again.
    pub const RATES: &str = "RATES";
    /// `FrontendId → when it has last answered a SYN by a cookie, at most a second late` (u64,
    /// [`KtimeNs`](super::KtimeNs)). Array. Writer: datapath.
    pub const COOKIES: &str = "COOKIES";
    /// `a number of a network's → when its bucket of cookies is full again` (u64, [`KtimeNs`](super::KtimeNs)). Array:
    /// networks share buckets by chance, and none pushes another out. Writer: datapath.
    pub const COOKIE_RATES: &str = "COOKIE_RATES";
    /// `device (u32) → 1` (u32): those that send back what an XDP program tells them to. Hash. Writer: agent. Full: a device
    /// that is not in it leaves the answers to TC.
    pub const XDP_ANSWERS: &str = "XDP_ANSWERS";
    /// `BackendId → when it was last woken` (u64, [`KtimeNs`](super::KtimeNs)). Array. Writer: datapath.
    pub const WOKEN: &str = "WOKEN";
    /// [`Wake`](super::Wake)s, in the order in which they came. Ring buffer. Writer: datapath; reader: agent. Full: the next
    /// is counted and left out, as hundreds are waiting already; the agent's sweep finds the connection as well.
    pub const WAKES: &str = "WAKES";
    /// `0 → Lifetimes`. Array of one. Writer: agent.
    pub const LIFETIMES: &str = "LIFETIMES";
    /// `0 → AgentRecord`. Array of one. Writer: agent.
    pub const AGENT: &str = "AGENT";
    /// Two halves of [`REPORT_PAGES`](super::REPORT_PAGES) pages of the agent's report. Array. Writer: agent.
    pub const REPORT: &str = "REPORT";

    /// All of them, in the order in which `detach` removes their pins.
    pub const ALL: [&str; 35] = [
        ADDRESSES,
        LOCAL_BACKENDS,
        FRONTENDS,
        SLOTS,
        BACKENDS,
        CURSORS,
        AFFINITIES,
        TALLIES,
        TALLY_ERRORS,
        SWEPT,
        FLOWS,
        REPLIES,
        HALF_OPEN,
        HALF_OPEN_REPLIES,
        DATAGRAMS,
        DATAGRAM_REPLIES,
        FRAGMENTS,
        LOCAL_FLOWS,
        LOCAL_DATAGRAMS,
        LOCAL_NETNS,
        COUNTERS,
        BACKEND_STATS,
        HANDSHAKES,
        RETIRED,
        GUARDS,
        SOURCES,
        RATES,
        COOKIES,
        COOKIE_RATES,
        XDP_ANSWERS,
        WOKEN,
        WAKES,
        LIFETIMES,
        AGENT,
        REPORT,
    ];
}

/// Names of the programs in the object.
pub mod program {
    /// XDP at the uplink.
    pub const XDP_INGRESS: &str = "xdp_ingress";
    /// TC ingress at the uplink.
    pub const TC_INGRESS: &str = "tc_ingress";
    /// The same where the device carries bare IP packets.
    pub const TC_INGRESS_L3: &str = "tc_ingress_l3";
    /// TC ingress at the device by which a backend's packets enter the host.
    pub const TC_REPLY: &str = "tc_reply";
    /// The same where the device carries bare IP packets.
    pub const TC_REPLY_L3: &str = "tc_reply_l3";
    /// TC egress at the devices by which clients are met: the replies of backends that are this host itself.
    pub const TC_LOCAL: &str = "tc_local";
    /// The same where the device carries bare IP packets.
    pub const TC_LOCAL_L3: &str = "tc_local_l3";
    /// `connect(2)` of IPv4 sockets.
    pub const CONNECT4: &str = "connect4";
    /// `connect(2)` of IPv6 sockets, to IPv4 addresses mapped into IPv6, too.
    pub const CONNECT6: &str = "connect6";
    /// `sendto(2)`, `sendmsg(2)` of unconnected UDP sockets to IPv4 addresses, mapped ones too.
    pub const SENDMSG4: &str = "sendmsg4";
    /// The same to IPv6 addresses.
    pub const SENDMSG6: &str = "sendmsg6";
    /// `recvfrom(2)`, `recvmsg(2)` of IPv4 UDP sockets.
    pub const RECVMSG4: &str = "recvmsg4";
    /// `recvfrom(2)`, `recvmsg(2)` of IPv6 UDP sockets.
    pub const RECVMSG6: &str = "recvmsg6";
    /// `getpeername(2)` of IPv4 sockets.
    pub const GETPEERNAME4: &str = "getpeername4";
    /// `getpeername(2)` of IPv6 sockets.
    pub const GETPEERNAME6: &str = "getpeername6";
    /// The last close of a socket.
    pub const SOCK_RELEASE: &str = "sock_release";
}

/// Frontends at most.
pub const MAX_FRONTENDS: u32 = 1024;
/// Addresses of frontends at most.
pub const MAX_ADDRESSES: u32 = 8192;
/// Backends at most, over all frontends, draining ones included.
pub const MAX_BACKENDS: u32 = 4096;
/// Places in all slot ranges, live and spare.
pub const MAX_SLOTS: u32 = 278_528;
/// Clients at most whose backends are kept in mind.
pub const MAX_AFFINITIES: u32 = 65_536;
/// Proven flows at most, unless the agent is told otherwise.
pub const DEFAULT_FLOWS: u32 = 1_048_576;
/// Connections at most that are not proven, or over.
pub const MAX_HALF_OPEN: u32 = 65_536;
/// UDP flows at most.
pub const MAX_DATAGRAMS: u32 = 131_072;
/// Fragmented datagrams at most of which fragments are awaited.
pub const MAX_FRAGMENTS: u32 = 8192;
/// Connected sockets of this host that are tracked, and as many unconnected ones.
pub const MAX_LOCAL_FLOWS: u32 = 65_536;
/// Network namespaces whose sockets are balanced.
pub const MAX_LOCAL_NETNS: u32 = 4096;
/// Prefixes in the lists of all frontends.
pub const MAX_SOURCES: u32 = 65_536;
/// Networks at most whose rate of new connections is known.
pub const MAX_RATES: u32 = 65_536;
/// Buckets of cookies. A flood of a million SYNs a second from everywhere leaves four to each.
pub const MAX_COOKIE_RATES: u32 = 262_144;
/// Devices at which XDP answers.
pub const MAX_XDP_ANSWERS: u32 = 1024;
/// Bytes of `WAKES`: as few as there may be, 256 of them.
pub const WAKES_BYTES: u32 = 4096;
/// Pages in one half of the report.
pub const REPORT_PAGES: u32 = 512;
/// Bytes in one page of the report.
pub const REPORT_PAGE_BYTES: usize = 4096;
/// Places in `COUNTERS`.
pub const MAX_COUNTERS: u32 = 192;

/// An IPv6 address, or an IPv4 address mapped into one.
///
/// # Shape
/// 16 bytes, network order, held as four words so that keys are copied by words.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address {
    words: [u32; 4],
}

impl Address {
    /// Maps an IPv4 address given as the word in which it stands in a packet.
    ///
    /// # Source
    /// RFC 4291, 2.5.5.2.
    #[inline(always)]
    pub const fn from_v4_wire(word: u32) -> Self {
        Self { words: [0, 0, 0xffff_u32.to_be(), word] }
    }

    /// Takes an IPv6 address given as its four words as they stand in a packet, or in a system call.
    #[inline(always)]
    pub const fn from_v6_wire(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The loopback address of IPv6.
    pub const LOOPBACK_V6: Self = Self { words: [0, 0, 0, 1_u32.to_be()] };

    /// Returns whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        matches!(self.words, [0, 0, marker, _] if marker == 0xffff_u32.to_be())
    }

    /// Returns the IPv6 address as the words in which it stands in a packet.
    #[inline(always)]
    pub const fn v6_wire(self) -> [u32; 4] {
        self.words
    }

    /// Returns whether packets of IPv6 may have this address, and it means the same one host on every link: it is neither
    /// one of a link (`fe80::/10`) or of many hosts (`ff00::/8`) nor one of those that mean none, this host, or an IPv4
    /// address (all below `0:0:1::`).
    ///
    /// # Source
    /// RFC 4291, 2.5 and 2.7.
    #[inline(always)]
    pub const fn is_routable_v6(self) -> bool {
        let first = u32::from_be(self.words[0]);
        first != 0 && first >> 24 != 0xff && !self.is_of_link()
    }

    /// Returns whether this is an IPv6 address of one link alone.
    ///
    /// # Source
    /// RFC 4291, 2.5.6.
    #[inline(always)]
    pub const fn is_of_link(self) -> bool {
        u32::from_be(self.words[0]) >> 22 == 0xfe80 >> 6
    }

    /// Returns whether this is no address at all.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        matches!(self.words, [0, 0, 0, 0])
    }

    /// Returns the network of an address: of IPv4 by a mask, as it stands in a packet; of IPv6 the first half.
    #[inline(always)]
    #[must_use]
    pub const fn network(self, v4_mask: u32) -> Self {
        match self.words {
            [0, 0, marker, word] if marker == 0xffff_u32.to_be() => Self::from_v4_wire(word & v4_mask),
            [first, second, _, _] => Self { words: [first, second, 0, 0] },
        }
    }

    /// Maps an IPv4 address given as its four bytes.
    pub const fn from_v4(bytes: [u8; 4]) -> Self {
        Self::from_v4_wire(u32::from_ne_bytes(bytes))
    }

    /// Returns its four words as numbers, the same on every machine.
    #[inline(always)]
    pub const fn numbers(self) -> [u32; 4] {
        let [a, b, c, d] = self.words;
        [u32::from_be(a), u32::from_be(b), u32::from_be(c), u32::from_be(d)]
    }

    /// Returns the IPv4 address as the word in which it stands in a packet, whatever the rest says.
    #[inline(always)]
    pub const fn v4_wire(self) -> u32 {
        self.words[3]
    }

    /// Returns the IPv4 address, if this is one.
    pub const fn v4(self) -> Option<[u8; 4]> {
        match self.words {
            [0, 0, marker, word] if marker == 0xffff_u32.to_be() => Some(word.to_ne_bytes()),
            _ => None,
        }
    }
}

/// A TCP or UDP port.
///
/// # Shape
/// 2 bytes, network order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Port(u16);

impl Port {
    /// Takes a port as it stands in a packet.
    #[inline(always)]
    pub const fn from_wire(word: u16) -> Self {
        Self(word)
    }

    /// Takes a port as people write it.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// Returns the port as it stands in a packet.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }

    /// Returns the port as people write it.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// A transport protocol that is balanced.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proto {
    /// RFC 9293.
    Tcp = 6,
    /// RFC 768.
    Udp = 17,
}

impl Proto {
    /// Reads a protocol number of the IANA registry.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Number of a frontend: key of `FRONTENDS` and `RETIRED`, place of its ticket in `CURSORS`.
pub type FrontendId = u32;
/// Number of a backend: place in `BACKENDS` and `BACKEND_STATS`.
pub type BackendId = u32;

/// An address, port and protocol.
///
/// # Shape
/// `0` address 16, `16` port 2, `18` protocol 1, `19` padding 1.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address.
    pub address: Address,
    /// Port.
    pub port: Port,
    proto: u8,
    _pad: u8,
}

impl Endpoint {
    /// Joins an address, a port and a protocol.
    #[inline(always)]
    pub const fn new(address: Address, port: Port, proto: Proto) -> Self {
        Self { address, port, proto: proto as u8, _pad: 0 }
    }

    /// Returns the protocol; `None` if the map holds what no agent writes.
    #[inline(always)]
    pub const fn proto(&self) -> Option<Proto> {
        Proto::from_number(self.proto)
    }
}

/// What a flow is known by: the addresses and ports of a packet, as its sender sends it.
///
/// # Shape
/// `0` source 16, `16` destination 16, `32` source port 2, `34` destination port 2, `36` protocol 1, `37` padding 3.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    proto: u8,
    _pad: [u8; 3],
}

impl FlowKey {
    /// Joins the parts of a key.
    #[inline(always)]
    pub const fn new(
        source: Address,
        source_port: Port,
        destination: Address,
        destination_port: Port,
        proto: Proto,
    ) -> Self {
        Self { source, destination, source_port, destination_port, proto: proto as u8, _pad: [0; 3] }
    }

    /// Returns the protocol; `None` if the map holds what no datapath writes.
    #[inline(always)]
    pub const fn proto(&self) -> Option<Proto> {
        Proto::from_number(self.proto)
    }

    /// Returns where the packet goes.
    #[inline(always)]
    pub const fn to(&self) -> Endpoint {
        Endpoint { address: self.destination, port: self.destination_port, proto: self.proto, _pad: 0 }
    }

    /// Returns the endpoint that the packet comes from.
    #[inline(always)]
    pub const fn from(&self) -> Endpoint {
        Endpoint { address: self.source, port: self.source_port, proto: self.proto, _pad: 0 }
    }

    /// Returns a number by which an entry tells whose it is: the kernel may reuse an entry's memory for another flow
    /// while it is looked at. Never zero.
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        self.mixed().wrapping_mul(0x9e37_79b1) | 1
    }

    /// Returns a number that is another for nearly every flow, in all its bits.
    ///
    /// # Source
    /// The finalizer of MurmurHash3, Appleby 2011.
    #[inline(always)]
    pub const fn spread(&self) -> u32 {
        let mut hash = self.mixed();
        hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
        hash ^ hash >> 16
    }

    #[inline(always)]
    const fn mixed(&self) -> u32 {
        let ports = (self.source_port.wire() as u32) << 16 | self.destination_port.wire() as u32;
        let [s0, s1, s2, s3] = self.source.words;
        let [d0, d1, d2, d3] = self.destination.words;
        let source = s0 ^ s1.rotate_left(5) ^ s2.rotate_left(11) ^ s3.rotate_left(17);
        let destination = d0.rotate_left(3) ^ d1.rotate_left(8) ^ d2.rotate_left(14) ^ d3.rotate_left(21);
        source ^ destination ^ ports ^ self.proto as u32
    }

    /// Returns the key of the opposite direction.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            proto: self.proto,
            _pad: [0; 3],
        }
    }
}

/// A frontend: where its layout stands in `SLOTS`, and how a backend is chosen there.
///
/// # Shape
/// `0` slot range 8, `8` former slot range 8, `16` scheduler 1, `17` padding 3, `20` affinity 4, `24` connections at most 4,
/// `28` roll 4. A slot range is one word so that a reader sees both its halves from the same publication.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    slots: u64,
    former: u64,
    scheduler: u8,
    _pad: [u8; 3],
    affinity_ms: u32,
    max_connections: u32,
    roll: u32,
}

impl Frontend {
    /// Makes a frontend whose layout is `len` slots from `base` on.
    #[inline(always)]
    pub const fn new(slots: SlotRange, scheduler: Scheduler) -> Self {
        Self {
            slots: slots.word(),
            former: 0,
            scheduler: scheduler as u8,
            _pad: [0; 3],
            affinity_ms: 0,
            max_connections: 0,
            roll: 0,
        }
    }

    /// Says which slots it had before the last publication: who was answered by a cookie by then has its backend there.
    #[must_use]
    pub const fn after(mut self, former: SlotRange) -> Self {
        self.former = former.word();
        self
    }

    /// Says for how long after its last connection began a client keeps its backend; zero: no longer than the connection.
    #[must_use]
    pub const fn keeping_clients(mut self, affinity_ms: u32) -> Self {
        self.affinity_ms = affinity_ms;
        self
    }

    /// Says how many connections of each backend may be under way; zero: any number.
    #[must_use]
    pub const fn limited_to(mut self, max_connections: u32) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// Says that so many slots follow its layout in which each of its backends is once.
    #[must_use]
    pub const fn rolling(mut self, roll: u32) -> Self {
        self.roll = roll;
        self
    }

    /// Returns how many slots follow its layout.
    pub const fn roll_len(&self) -> u32 {
        self.roll
    }

    /// Returns the slots in which each of its backends is once: those behind its layout, or the layout itself.
    #[inline(always)]
    pub const fn roll(&self) -> SlotRange {
        let SlotRange { base, len } = self.slots();
        if self.roll == 0 {
            SlotRange { base, len }
        } else {
            SlotRange { base: base.wrapping_add(len), len: self.roll }
        }
    }

    /// Returns its layout and what follows that.
    pub const fn places(&self) -> SlotRange {
        let SlotRange { base, len } = self.slots();
        SlotRange { base, len: len + self.roll }
    }

    /// Returns its slots.
    #[inline(always)]
    pub const fn slots(&self) -> SlotRange {
        SlotRange::from_word(self.slots)
    }

    /// Returns the slots that it had before. Nobody keeps them: they may be others' by now.
    #[inline(always)]
    pub const fn former_slots(&self) -> SlotRange {
        SlotRange::from_word(self.former)
    }

    /// Returns its scheduler.
    #[inline(always)]
    pub const fn scheduler(&self) -> Scheduler {
        Scheduler::from_number(self.scheduler)
    }

    /// Returns for how long a client keeps its backend, in milliseconds.
    pub const fn affinity_ms(&self) -> u32 {
        self.affinity_ms
    }

    /// Returns how many connections of each backend may be under way; zero: any number.
    #[inline(always)]
    pub const fn max_connections(&self) -> u32 {
        self.max_connections
    }

    /// Returns for how long a client keeps its backend, in nanoseconds.
    #[inline(always)]
    pub const fn affinity_ns(&self) -> KtimeNs {
        self.affinity_ms as u64 * 1_000_000
    }
}

/// How many connections a backend has.
///
/// A SYN is a load from the moment that it is sent on, or a burst would go to one backend. It holds no place among those
/// that a backend may have at most: whoever can forge an address sends SYNs, and would keep everybody else out with them.
///
/// # Shape
/// `0` active 8, `8` held 8.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Those that have begun. Wraps.
    pub active: u64,
    /// Of those, what is proven, or can not be proven: TCP connections of clients that have answered, flows of UDP, and
    /// sockets of this host. Wraps.
    pub held: u64,
}

/// A place in a frontend's layout.
///
/// # Shape
/// `0` backend 4, `4` weight 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The backend.
    pub backend: BackendId,
    /// How many connections it should have beside those of the others, for schedulers that compare.
    pub weight: u32,
}

/// A run of places in `SLOTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotRange {
    /// First place.
    pub base: u32,
    /// How many.
    pub len: u32,
}

impl SlotRange {
    const fn word(self) -> u64 {
        (self.base as u64) << 32 | self.len as u64
    }

    #[inline(always)]
    const fn from_word(word: u64) -> Self {
        Self { base: (word >> 32) as u32, len: word as u32 }
    }
}

/// How a frontend chooses the backend of a connection.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduler {
    /// Strictly in turn.
    RoundRobin = 0,
    /// In turn, by weight: the layout has each backend as often as its weight says.
    Weighted = 1,
    /// The fewest connections under way for its weight.
    LeastConn = 2,
    /// Of two that are drawn, the one with fewer connections under way for its weight.
    RandomTwo = 3,
    /// By the client's address, in a layout that changes little when a backend comes or goes.
    SourceHash = 4,
    /// The same by both addresses and ports.
    Maglev = 5,
}

impl Scheduler {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::RoundRobin, Self::Weighted, Self::LeastConn, Self::RandomTwo, Self::SourceHash, Self::Maglev];

    /// Reads a scheduler's number; an unknown one is served round robin.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Weighted,
            2 => Self::LeastConn,
            3 => Self::RandomTwo,
            4 => Self::SourceHash,
            5 => Self::Maglev,
            _ => Self::RoundRobin,
        }
    }

    /// Returns the name by which it is asked for and shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Weighted => "weighted",
            Self::LeastConn => "least-conn",
            Self::RandomTwo => "random-two",
            Self::SourceHash => "source-hash",
            Self::Maglev => "maglev",
        }
    }
}

/// What the datapath may do with a backend.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// The id is free: flows that name it are over.
    Free = 0,
    /// Flows that name it are forwarded. Whether it gets new ones is a matter of the slots.
    Active = 1,
}

/// How a packet is handed to a backend once its destination is rewritten.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOff {
    /// To the kernel's routing, with all that netfilter and routing have to say: the fallback.
    Routing = 0,
    /// Into the namespace behind a host-side veth (`bpf_redirect_peer`).
    Peer = 1,
    /// Out of a device, the neighbour found by the kernel (`bpf_redirect_neigh`).
    Neighbour = 2,
    /// To this host's own stack: the backend is a server of it.
    Local = 3,
}

impl HandOff {
    /// Reads a hand-off's number; an unknown one is the fallback.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Peer,
            2 => Self::Neighbour,
            3 => Self::Local,
            _ => Self::Routing,
        }
    }
}

/// A backend.
///
/// # Shape
/// `0` address 16, `16` host address 16, `32` frontend 4, `36` generation 4, `40` ifindex 4, `44` port 2, `46` state 1,
/// `47` hand-off 1, `48` MAC 6, `54` source MAC 6, `60` flags 1, `61` padding 1, `62` network namespace 2.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub address: Address,
    /// An address of the host: the source that a backend sees when it is its own client, or with [`BACKEND_SNAT`].
    pub host_address: Address,
    /// The frontend it serves.
    pub frontend: FrontendId,
    /// Told apart from earlier holders of the same id.
    pub generation: u32,
    /// The device that [`HandOff`] names.
    pub ifindex: u32,
    /// Its port.
    pub port: Port,
    state: u8,
    hand_off: u8,
    /// Its MAC address; zero if the kernel resolves it.
    pub mac: [u8; 6],
    /// The MAC address that it sees as the sender.
    pub source_mac: [u8; 6],
    flags: u8,
    _pad: u8,
    netns: u16,
}

/// [`Backend::netns`] of one that listens where the balancer is. Linux gives the lowest number that is free, and that many
/// network namespaces nobody has.
pub const NETNS_HERE: u32 = 0xfffe;

/// Flag of [`Backend`]: the device takes XDP frames directly (its far side runs NAPI).
pub const BACKEND_XDP_REDIRECT: u8 = 1;
/// Flag of [`Backend`]: it has left the slots, and clients that would keep it are given another.
pub const BACKEND_LEAVING: u8 = 2;
/// Flag of [`Backend`]: it knows every client by the host's address, to which its replies come from anywhere.
pub const BACKEND_SNAT: u8 = 4;
/// Flag of [`Backend`]: it is frozen, or about to be: a flow that begins has to be told, [`Wake`].
pub const BACKEND_ASLEEP: u8 = 8;

impl Backend {
    /// Makes an active backend; the parts that concern its link are set by [`Backend::reached_by`].
    pub const fn new(frontend: FrontendId, generation: u32, address: Address, port: Port) -> Self {
        Self {
            address,
            host_address: Address { words: [0; 4] },
            frontend,
            generation,
            ifindex: 0,
            port,
            state: BackendState::Active as u8,
            hand_off: HandOff::Routing as u8,
            mac: [0; 6],
            source_mac: [0; 6],
            flags: 0,
            _pad: 0,
            netns: 0,
        }
    }

    /// Says in which network namespace it listens, by the number that the namespace of the balancer has for it. Numbers
    /// that do not fit are as good as none: Linux gives the lowest that is free.
    #[must_use]
    pub const fn listening_in(mut self, netns: u32) -> Self {
        self.netns = if netns < NETNS_HERE { netns as u16 + 1 } else { 0 };
        self
    }

    /// Says that it listens in the network namespace of the balancer.
    #[must_use]
    pub const fn listening_here(mut self) -> Self {
        self.netns = NETNS_HERE as u16 + 1;
        self
    }

    /// Returns the number of the network namespace in which it listens, [`NETNS_HERE`] for that of the balancer; `None` if
    /// that is not known.
    #[inline(always)]
    pub const fn netns(&self) -> Option<u32> {
        match self.netns {
            0 => None,
            number => Some(number as u32 - 1),
        }
    }

    /// Says how packets are handed to it.
    #[must_use]
    pub const fn reached_by(mut self, hand_off: HandOff, ifindex: u32, mac: [u8; 6], source_mac: [u8; 6]) -> Self {
        self.hand_off = hand_off as u8;
        self.ifindex = ifindex;
        self.mac = mac;
        self.source_mac = source_mac;
        self
    }

    /// Says which address the host has on its network.
    #[must_use]
    pub const fn beside(mut self, host_address: Address) -> Self {
        self.host_address = host_address;
        self
    }

    /// Says that its device takes XDP frames directly.
    #[must_use]
    pub const fn taking_xdp(mut self) -> Self {
        self.flags |= BACKEND_XDP_REDIRECT;
        self
    }

    /// Says that it has left the slots.
    #[must_use]
    pub const fn leaving(mut self) -> Self {
        self.flags |= BACKEND_LEAVING;
        self
    }

    /// Says that it knows every client by the host's address.
    #[must_use]
    pub const fn hiding_clients(mut self) -> Self {
        self.flags |= BACKEND_SNAT;
        self
    }

    /// Says that it is frozen, or about to be.
    #[must_use]
    pub const fn asleep(mut self) -> Self {
        self.flags |= BACKEND_ASLEEP;
        self
    }

    /// Returns the same id, free: no flow of the present generation is served any longer.
    #[must_use]
    pub const fn freed(mut self) -> Self {
        self.state = BackendState::Free as u8;
        self
    }

    /// Returns whether flows of `generation` are served.
    #[inline(always)]
    pub const fn serves(&self, generation: u32) -> bool {
        self.is_active() && self.generation == generation
    }

    /// Returns whether it may be given flows.
    #[inline(always)]
    pub const fn is_active(&self) -> bool {
        self.state == BackendState::Active as u8
    }

    /// Returns how packets are handed to it.
    #[inline(always)]
    pub const fn hand_off(&self) -> HandOff {
        HandOff::from_number(self.hand_off)
    }

    /// Returns whether it has left the slots.
    #[inline(always)]
    pub const fn is_leaving(&self) -> bool {
        self.flags & BACKEND_LEAVING != 0
    }

    /// Returns whether it is frozen, or about to be.
    #[inline(always)]
    pub const fn is_asleep(&self) -> bool {
        self.flags & BACKEND_ASLEEP != 0
    }

    /// Returns 1 if packets are redirected to it, and 0 if they are left to the kernel's routing, or end here. Computed
    /// without a branch, which the verifier would follow through all that comes after.
    #[inline(always)]
    pub const fn is_redirected_to(&self) -> u8 {
        const _: () = assert!(HandOff::Routing as u8 == 0 && HandOff::Peer as u8 == 1);
        const _: () = assert!(HandOff::Neighbour as u8 == 2 && HandOff::Local as u8 == 3);
        self.hand_off.wrapping_add(1) >> 1 & 1
    }

    /// Returns whether it knows every client by the host's address.
    #[inline(always)]
    pub const fn hides_clients(&self) -> bool {
        self.flags & BACKEND_SNAT != 0
    }

    /// Returns whether its device takes XDP frames directly.
    #[inline(always)]
    pub const fn takes_xdp(&self) -> bool {
        self.flags & BACKEND_XDP_REDIRECT != 0
    }
}

/// A flow has begun at a backend that is asleep.
///
/// # Shape
/// `0` backend 4, `4` generation 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// The backend.
    pub backend: BackendId,
    /// Its generation.
    pub generation: u32,
}

/// Time of `CLOCK_MONOTONIC`, in nanoseconds, at the resolution of the kernel's tick.
pub type KtimeNs = u64;

/// A flow, as seen from the client's side. Each direction writes a byte of its own of what it has seen, so that two
/// segments that cross on two processors never undo each other. `last_seen` may be written by both: either is right.
///
/// # Shape
/// `0` last seen 8, `8` backend 4, `12` generation 4, `16` awaited acknowledgement 4, `20` ifindex 4, `24` tag 4, `28` port
/// of the client as the backend sees it 2, `30` ingress 1, `31` egress 1. With its key and the kernel's own 56 bytes it
/// fills two cache lines and no more: a packet of one among a million flows waits for each.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FlowEntry {
    /// When a packet of either direction was last seen, at most a second late; while nothing was answered, when the
    /// first was.
    pub last_seen: KtimeNs,
    /// The backend.
    pub backend: BackendId,
    /// Its generation.
    pub generation: u32,
    /// What the client must acknowledge to prove that it is one: the sequence number after the SYN-ACK's.
    pub awaited_ack: u32,
    /// The device by which the client's packets come.
    pub ifindex: u32,
    /// [`FlowKey::tag`] of its key.
    pub tag: u32,
    /// The client's port as the backend sees it.
    pub seen_client_port: Port,
    /// What the client has done: [`crate::tcp_state::Seen`]. Written by the ingress direction.
    pub ingress: u8,
    /// What the backend has done: [`crate::tcp_state::Seen`]. Written by the egress direction.
    pub egress: u8,
}

impl FlowEntry {
    /// Makes the entry of a flow that begins.
    #[inline(always)]
    pub const fn new(
        key: &FlowKey,
        (backend, generation): (BackendId, u32),
        ifindex: u32,
        ingress: u8,
        now: KtimeNs,
    ) -> Self {
        Self {
            last_seen: now,
            backend,
            generation,
            awaited_ack: 0,
            ifindex,
            tag: key.tag(),
            seen_client_port: Port(0),
            ingress,
            egress: 0,
        }
    }

    /// Returns how far the flow has come.
    #[inline(always)]
    pub const fn state(&self) -> crate::tcp_state::State {
        crate::tcp_state::State::of(crate::tcp_state::Seen(self.ingress), crate::tcp_state::Seen(self.egress))
    }

    /// Returns whether the connection is in another table, for which this entry keeps a place.
    #[inline(always)]
    pub const fn is_moved(&self) -> bool {
        self.ingress & crate::tcp_state::Seen::MOVED != 0
    }

    /// Returns whether it has idled for longer than its state allows: it is as good as gone, whether it was swept or not.
    ///
    /// A stamp from another processor may be a tick ahead.
    pub fn is_expired(&self, now: KtimeNs, lifetimes: &Lifetimes) -> bool {
        now.saturating_sub(self.last_seen) > lifetimes.of(self.state())
    }

    /// Says by which port the backend knows the client.
    #[inline(always)]
    #[must_use]
    pub const fn seen_as(mut self, port: Port) -> Self {
        self.seen_client_port = port;
        self
    }

    /// Returns the address by which the backend knows the client: its own, or the host's, which stands in for it.
    #[inline(always)]
    #[must_use]
    pub const fn seen_client(&self, client: Address, host_address: Address) -> Address {
        crate::tcp_state::Seen(self.ingress).address(client, host_address)
    }
}

/// Who may begin connections to a frontend, and how often. All zero: everybody, as often as they like.
///
/// # Shape
/// `0` interval 4, `4` burst 4, `8` IPv4 mask 4, `12` flags 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    interval_ns: u32,
    burst: u32,
    v4_mask: u32,
    flags: u32,
}

/// How many connections a network may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Nanoseconds after which it may begin another.
    pub interval_ns: u32,
    /// How many it may begin at once; not zero.
    pub burst: u32,
    /// What of an IPv4 address is the network, as it stands in a packet. Of IPv6, it is the first 64 bits.
    pub v4_mask: u32,
}

impl Guard {
    const SOURCES: u32 = 1;
    const DENIES_OTHERS: u32 = 2;
    const NO_COOKIES: u32 = 4;

    /// Says that `SOURCES` is to be asked, and whether those are admitted that it does not know.
    #[must_use]
    pub const fn with_sources(mut self, admits_others: bool) -> Self {
        self.flags |= if admits_others { Self::SOURCES } else { Self::SOURCES | Self::DENIES_OTHERS };
        self
    }

    /// Says that no SYN is answered by a cookie.
    #[must_use]
    pub const fn without_cookies(mut self) -> Self {
        self.flags |= Self::NO_COOKIES;
        self
    }

    /// Returns whether a SYN may be answered by a cookie.
    #[inline(always)]
    pub const fn allows_cookies(&self) -> bool {
        self.flags & Self::NO_COOKIES == 0
    }

    /// Says how many connections a network may begin.
    #[must_use]
    pub const fn with_limit(mut self, limit: RateLimit) -> Self {
        (self.interval_ns, self.burst, self.v4_mask) = (limit.interval_ns, limit.burst, limit.v4_mask);
        self
    }

    /// Returns whether `SOURCES` is to be asked.
    #[inline(always)]
    pub const fn asks_for_sources(&self) -> bool {
        self.flags & Self::SOURCES != 0
    }

    /// Returns whether those are admitted that `SOURCES` does not know.
    #[inline(always)]
    pub const fn admits_others(&self) -> bool {
        self.flags & Self::DENIES_OTHERS == 0
    }

    /// Returns how many connections a network may begin; `None` if nobody counts.
    #[inline(always)]
    pub const fn limit(&self) -> Option<RateLimit> {
        match self.burst {
            0 => None,
            burst => Some(RateLimit { interval_ns: self.interval_ns, burst, v4_mask: self.v4_mask }),
        }
    }
}

/// A client's address at a frontend, or the first bits of both: key of `SOURCES`, behind the number of those bits.
///
/// # Shape
/// `0` frontend 4, `4` address 16. All 32 bits of the frontend belong to every prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(any(feature = "user", test), derive(Debug))]
pub struct Source {
    /// The frontend.
    pub frontend: FrontendId,
    /// The address.
    pub address: Address,
}

/// Bits of a [`Source`].
pub const SOURCE_BITS: u32 = 160;

/// A network that begins connections to a frontend.
///
/// # Shape
/// `0` frontend 4, `4` network 16.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RateKey {
    frontend: FrontendId,
    network: Address,
}

impl RateKey {
    /// Joins the two.
    #[inline(always)]
    pub const fn new(frontend: FrontendId, network: Address) -> Self {
        Self { frontend, network }
    }
}

/// For how long flows may stay idle before they are over.
///
/// # Shape
/// Nine u32 of seconds, in the order of [`State::ALL`](crate::tcp_state::State::ALL).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    seconds: [u32; 9],
}

impl Lifetimes {
    /// What holds unless the agent is told otherwise.
    pub const DEFAULT: Self = {
        let mut seconds = [0; 9];
        let mut place = 0;
        while place < seconds.len() {
            seconds[place] = crate::tcp_state::State::ALL[place].default_lifetime_s();
            place += 1;
        }
        Self { seconds }
    };

    /// Returns the lifetime of a state, in nanoseconds.
    #[inline(always)]
    pub fn of(&self, state: crate::tcp_state::State) -> KtimeNs {
        self.seconds.get(state as usize).map_or(0, |&seconds| KtimeNs::from(seconds) * 1_000_000_000)
    }

    /// Says that flows may stay idle in a state for so many seconds.
    #[must_use]
    pub fn with(mut self, state: crate::tcp_state::State, seconds: u32) -> Self {
        self.seconds[state as usize] = seconds;
        self
    }
}

/// A flow, as seen from the backend's side: all that a reply needs, in one place.
///
/// # Shape
/// `0` last seen 8, `8` flow 40, `48` backend 4, `52` generation 4, `56` ifindex 4, `60` acknowledged 4, `64` tag 4,
/// `68` flags 1, `69` request 1, `70` padding 2, `72` requested at 8. With its key and the kernel's own 56 bytes it fills three
/// cache lines and no more.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReplyEntry {
    /// When a reply was last seen, at most a second late.
    pub last_seen: KtimeNs,
    /// The flow as the client sends it.
    pub flow: FlowKey,
    /// The backend.
    pub backend: BackendId,
    /// Its generation.
    pub generation: u32,
    /// The device by which replies leave.
    pub ifindex: u32,
    /// What the backend has acknowledged: the next sequence number that it expects of the client.
    pub acknowledged: u32,
    /// [`FlowKey::tag`] of its key.
    pub tag: u32,
    /// [`REPLY_SEEN`].
    pub flags: u8,
    /// What has become of the client's first request: zero, [`REQUEST_ASKED`] or [`REQUEST_HEARD`]. Written once by the
    /// ingress direction, and from there on by the egress direction alone.
    pub request: u8,
    _pad: [u8; 2],
    /// When the first request came, precisely. Means nothing while `request` is zero.
    pub requested_at: KtimeNs,
}

/// Flag of [`ReplyEntry`]: the backend has answered.
pub const REPLY_SEEN: u8 = 1;
/// Flag of [`ReplyEntry`]: the backend has a connection of this key that goes past us.
pub const REPLY_FOREIGN: u8 = 2;

/// Of [`ReplyEntry::request`]: the client has asked.
pub const REQUEST_ASKED: u8 = 1;
/// Of [`ReplyEntry::request`]: the backend has acknowledged some of that, so that what it sends may be the answer.
pub const REQUEST_HEARD: u8 = 2;

impl ReplyEntry {
    /// Makes the reply half of a flow.
    #[inline(always)]
    pub const fn new(
        key: &FlowKey,
        flow: FlowKey,
        (backend, generation, ifindex): (BackendId, u32, u32),
        acknowledged: u32,
        now: KtimeNs,
    ) -> Self {
        Self {
            last_seen: now,
            flow,
            backend,
            generation,
            ifindex,
            acknowledged,
            tag: key.tag(),
            flags: 0,
            request: 0,
            _pad: [0; 2],
            requested_at: 0,
        }
    }
}

/// A client that keeps its backend at a frontend.
///
/// # Shape
/// `0` client 16, `16` frontend 4.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey {
    client: Address,
    frontend: FrontendId,
}

impl AffinityKey {
    /// Joins the parts of a key.
    #[inline(always)]
    pub const fn new(client: Address, frontend: FrontendId) -> Self {
        Self { client, frontend }
    }
}

/// The backend that a client keeps.
///
/// # Shape
/// `0` seen 8, `8` backend 4, `12` generation 4.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AffinityEntry {
    /// When the client's last connection began.
    pub seen: KtimeNs,
    /// The backend.
    pub backend: BackendId,
    /// Its generation.
    pub generation: u32,
}

/// What the fragments of a datagram have in common.
///
/// # Shape
/// `0` source 16, `16` destination 16, `32` identification 4, `36` protocol 1 (zero for IPv6), `37` padding 3.
///
/// # Source
/// RFC 791, 2.3; RFC 8200, 4.5.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    source: Address,
    destination: Address,
    id: u32,
    proto: u8,
    _pad: [u8; 3],
}

impl FragmentKey {
    /// Joins the parts of a key of IPv4; the identification as it stands in the packet.
    #[inline(always)]
    pub const fn of_v4(source: Address, destination: Address, id: u32, proto: Proto) -> Self {
        Self { source, destination, id, proto: proto as u8, _pad: [0; 3] }
    }

    /// The same of IPv6, where the protocol is none of them: what it would be, a later fragment need not tell.
    #[inline(always)]
    pub const fn of_v6(source: Address, destination: Address, id: u32) -> Self {
        Self { source, destination, id, proto: 0, _pad: [0; 3] }
    }
}

/// What became of the first fragment of a datagram, for those that follow it: they have no ports.
///
/// # Shape
/// `0` seen 8, `8` source 16, `24` destination 16, `40` backend 4, `44` generation 4, `48` ifindex 4, `52` padding 4.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FragmentEntry {
    /// When it came. The identification may be another datagram's half a minute later.
    pub seen: KtimeNs,
    /// The source that it got.
    pub source: Address,
    /// The destination that it got.
    pub destination: Address,
    /// The backend to which it went, or from which it came.
    pub backend: BackendId,
    /// Its generation.
    pub generation: u32,
    /// The device by which it left, if it came from a backend.
    pub ifindex: u32,
    _pad: [u8; 4],
}

impl FragmentEntry {
    /// Notes what a first fragment of a backend got: the addresses of `to`.
    #[inline(always)]
    pub const fn new(seen: KtimeNs, to: &FlowKey, (backend, generation, ifindex): (BackendId, u32, u32)) -> Self {
        Self { seen, source: to.source, destination: to.destination, backend, generation, ifindex, _pad: [0; 4] }
    }
}

/// What an unconnected UDP socket of this host is known by.
///
/// # Shape
/// `0` socket cookie 8, `8` peer 20, `28` kind 1, `29` padding 3.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalKey {
    cookie: u64,
    peer: Endpoint,
    kind: u8,
    _pad: [u8; 3],
}

/// What a [`LocalKey`] stands for.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalKind {
    /// Datagrams to a frontend: one flow.
    Datagrams = 0,
    /// The answers to those.
    Answers = 1,
}

impl LocalKey {
    /// Names the datagrams of a socket to a frontend.
    #[inline(always)]
    pub const fn datagrams(cookie: u64, frontend: Endpoint) -> Self {
        Self { cookie, peer: frontend, kind: LocalKind::Datagrams as u8, _pad: [0; 3] }
    }

    /// Names the answers of a backend to a socket.
    #[inline(always)]
    pub const fn answers(cookie: u64, backend: Endpoint) -> Self {
        Self { cookie, peer: backend, kind: LocalKind::Answers as u8, _pad: [0; 3] }
    }

    /// Returns whether the key stands for a flow of its own.
    pub const fn is_flow(&self) -> bool {
        self.kind == LocalKind::Datagrams as u8
    }
}

/// A socket of this host that was led to a backend.
///
/// # Shape
/// `0` last seen 8, `8` frontend 20, `28` backend's endpoint 20, `48` backend 4, `52` generation 4.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LocalFlow {
    /// When the socket connected, or last sent.
    pub last_seen: KtimeNs,
    /// Where the process wanted to go.
    pub wanted: Endpoint,
    /// Where it was led.
    pub given: Endpoint,
    /// The backend.
    pub backend: BackendId,
    /// Its generation.
    pub generation: u32,
}

/// What went through a backend on one processor.
///
/// # Shape
/// Six u64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets from clients.
    pub ingress_packets: u64,
    /// Bytes of those, link header included.
    pub ingress_bytes: u64,
    /// Packets to clients.
    pub egress_packets: u64,
    /// Bytes of those, link header included.
    pub egress_bytes: u64,
    /// Connections begun by packets.
    pub connections: u64,
    /// Connections begun by sockets of this host; their packets pass the datapath by.
    pub local_connections: u64,
}

impl Traffic {
    /// Adds what another processor saw.
    pub const fn add(&mut self, other: &Self) {
        self.ingress_packets = self.ingress_packets.wrapping_add(other.ingress_packets);
        self.ingress_bytes = self.ingress_bytes.wrapping_add(other.ingress_bytes);
        self.egress_packets = self.egress_packets.wrapping_add(other.egress_packets);
        self.egress_bytes = self.egress_bytes.wrapping_add(other.egress_bytes);
        self.connections = self.connections.wrapping_add(other.connections);
        self.local_connections = self.local_connections.wrapping_add(other.local_connections);
    }
}

/// Places in a [`Histogram`].
pub const LATENCY_BUCKETS: usize = 26;

/// Times, counted by their magnitude: place 0 those within two microseconds, place `n` those within 2^n to 2^(n+1)
/// microseconds, the last all above, from half a minute on.
///
/// # Shape
/// 26 u64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many there are of each place.
    pub counts: [u64; LATENCY_BUCKETS],
}

impl Histogram {
    /// The longest time that is told from longer ones.
    pub const MOST_US: u64 = 1 << (LATENCY_BUCKETS - 1);

    /// Returns the place of a time.
    #[inline(always)]
    pub const fn place(latency_ns: u64) -> usize {
        let micros = latency_ns / 1000;
        let place = 63 - (micros | 1).leading_zeros() as usize;
        if place < LATENCY_BUCKETS { place } else { LATENCY_BUCKETS - 1 }
    }

    /// Counts a time.
    #[inline(always)]
    pub fn count(&mut self, latency_ns: u64) {
        // The verifier has to see that the place is within: `place` alone convinces it of nothing.
        if let Some(count) = self.counts.get_mut(Self::place(latency_ns)) {
            *count = count.wrapping_add(1);
        }
    }

    /// Returns how many were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Returns the time, in microseconds, that so many of a thousand did not exceed: the upper end of its place, so at most
    /// twice the truth. `None` if there was none.
    pub fn quantile_us(&self, per_mille: u64) -> Option<u64> {
        let rank = self.total().saturating_mul(per_mille).div_ceil(1000).max(1);
        let mut passed = 0;
        let place = self.counts.iter().position(|count| {
            passed += count;
            passed >= rank
        })?;
        Some(2 << place)
    }

    /// Adds what another processor saw.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum = sum.wrapping_add(count);
        }
    }

    /// Returns what has come since it was another.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        for (now, before) in self.counts.iter_mut().zip(before.counts) {
            *now = now.saturating_sub(before);
        }
        self
    }
}

/// How a backend answered those who began a connection of TCP, and what they asked for first, on one processor. Sockets of
/// this host pass it by.
///
/// # Shape
/// `0` latency 26 u64, `208` retransmitted 8, `216` refused 8, `224` reset 8, `232` response 26 u64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshakes {
    /// SYN-ACKs by the time since the first SYN of their flow.
    pub latency: Histogram,
    /// SYNs that came again before they were answered.
    pub retransmitted: u64,
    /// SYNs that were answered by RST.
    pub refused: u64,
    /// RSTs of the backend in connections that it had accepted.
    pub reset: u64,
    /// Connections by the time from the first byte of the client's first request to the first byte that the backend sent
    /// when it had received some of that. Nothing of one whose client never asks, or gets no answer.
    pub response: Histogram,
}

impl Handshakes {
    /// Returns how many SYNs were answered by SYN-ACK.
    pub fn accepted(&self) -> u64 {
        self.latency.total()
    }

    /// Adds what another processor saw.
    pub fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.response.add(&other.response);
        self.retransmitted = self.retransmitted.wrapping_add(other.retransmitted);
        self.refused = self.refused.wrapping_add(other.refused);
        self.reset = self.reset.wrapping_add(other.reset);
    }
}

/// The agent's sign of life, and where its report stands.
///
/// # Shape
/// `0` ABI version 4, `4` process id 4, `8` netns cookie 8, `16` heartbeat 8, `24` interval 8, `32` report half 4,
/// `36` report length 4, `40` sequence 8.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentRecord {
    /// [`ABI_VERSION`] of the writer.
    pub abi_version: u32,
    /// Its process.
    pub pid: u32,
    /// The network namespace in which it balances.
    pub netns_cookie: u64,
    /// When it last wrote.
    pub heartbeat: KtimeNs,
    /// How often it writes.
    pub interval_ns: u64,
    /// Which half of `REPORT` is whole.
    pub report_half: u32,
    /// Bytes in it.
    pub report_len: u32,
    /// Rises with every write: a reader who sees the same before and after has read one report.
    pub sequence: u64,
}

/// A page of the report.
pub type ReportPage = [u8; REPORT_PAGE_BYTES];

const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Endpoint>() == 20 && align_of::<Endpoint>() == 4);
    assert!(size_of::<FlowKey>() == 40 && offset_of!(FlowKey, proto) == 36);
    assert!(size_of::<Frontend>() == 32 && offset_of!(Frontend, max_connections) == 24 && size_of::<Slot>() == 8);
    assert!(size_of::<Wake>() == 8 && offset_of!(Wake, generation) == 4);
    assert!(size_of::<Tally>() == 16 && offset_of!(Frontend, roll) == 28);
    assert!(size_of::<AffinityKey>() == 20 && size_of::<AffinityEntry>() == 16);
    assert!(size_of::<Backend>() == 64 && offset_of!(Backend, port) == 44 && offset_of!(Backend, mac) == 48);
    assert!(offset_of!(Backend, netns) == 62);
    assert!(size_of::<FragmentKey>() == 40 && size_of::<FragmentEntry>() == 56);
    assert!(size_of::<FlowEntry>() == 32 && offset_of!(FlowEntry, ingress) == 30);
    assert!(size_of::<ReplyEntry>() == 80 && offset_of!(ReplyEntry, ifindex) == 56);
    assert!(offset_of!(ReplyEntry, request) == 69 && offset_of!(ReplyEntry, requested_at) == 72);
    assert!(size_of::<LocalKey>() == 32 && size_of::<LocalFlow>() == 56);
    assert!(size_of::<Traffic>() == 48 && size_of::<AgentRecord>() == 48);
    assert!(size_of::<Lifetimes>() == 36 && size_of::<Guard>() == 16);
    assert!(size_of::<Source>() == 20 && size_of::<RateKey>() == 20);
    assert!(size_of::<Histogram>() == 208 && size_of::<Handshakes>() == 440);
    assert!(offset_of!(Handshakes, refused) == 216 && offset_of!(Handshakes, response) == 232);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        AffinityEntry, AffinityKey, AgentRecord, Backend, Endpoint, FlowEntry, FlowKey, FragmentEntry, FragmentKey,
        Frontend, Guard, Handshakes, Lifetimes, LocalFlow, LocalKey, RateKey, ReplyEntry, Slot, Source, Tally, Traffic,
        Wake,
    };

    macro_rules! pod {
        ($($name:ty),*) => {$(
            // SAFETY: `repr(C)`, only integers and byte arrays, all padding named, so that every bit pattern is valid.
            unsafe impl aya::Pod for $name {}
        )*};
    }
    pod!(
        AffinityEntry,
        AffinityKey,
        AgentRecord,
        Backend,
        Endpoint,
        FlowEntry,
        FlowKey,
        FragmentEntry,
        FragmentKey,
        Frontend,
        Guard,
        Handshakes,
        Lifetimes,
        LocalFlow,
        LocalKey,
        RateKey,
        ReplyEntry,
        Slot,
        Source,
        Tally,
        Traffic,
        Wake
    );
}

#[cfg(any(feature = "user", test))]
mod show {
    //! Forms for people; the kernel object prints nothing.
    extern crate std;

    use core::fmt;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::{Address, Endpoint, FlowKey, Port};

    impl From<Ipv4Addr> for Address {
        fn from(address: Ipv4Addr) -> Self {
            Self::from_v4(address.octets())
        }
    }

    impl From<Ipv6Addr> for Address {
        fn from(address: Ipv6Addr) -> Self {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(address.octets().as_chunks().0) {
                *word = u32::from_ne_bytes(*bytes);
            }
            Self::from_v6_wire(words)
        }
    }

    impl From<std::net::IpAddr> for Address {
        fn from(address: std::net::IpAddr) -> Self {
            match address {
                std::net::IpAddr::V4(address) => address.into(),
                std::net::IpAddr::V6(address) => address.into(),
            }
        }
    }

    impl From<Address> for std::net::IpAddr {
        fn from(address: Address) -> Self {
            match address.v4() {
                Some(bytes) => Self::V4(Ipv4Addr::from(bytes)),
                None => {
                    let mut bytes = [0; 16];
                    for (to, word) in bytes.chunks_exact_mut(4).zip(address.words) {
                        to.copy_from_slice(&word.to_ne_bytes());
                    }
                    Self::V6(Ipv6Addr::from(bytes))
                }
            }
        }
    }

    impl fmt::Display for Address {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            std::net::IpAddr::from(*self).fmt(f)
        }
    }

    impl fmt::Debug for Address {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    impl fmt::Debug for Port {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.number().fmt(f)
        }
    }

    impl fmt::Display for Endpoint {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            SocketAddr::new(self.address.into(), self.port.number()).fmt(f)
        }
    }

    impl fmt::Debug for Endpoint {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{self}/{}", self.proto)
        }
    }

    impl fmt::Debug for FlowKey {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let from = SocketAddr::new(self.source.into(), self.source_port.number());
            let to = SocketAddr::new(self.destination.into(), self.destination_port.number());
            write!(f, "{from} > {to} /{}", self.proto)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_survives_the_mapping() {
        let address = Address::from_v4([198, 18, 0, 1]);

        assert_eq!(address.v4(), Some([198, 18, 0, 1]));
        assert_eq!(Address::from_v4_wire(address.v4_wire()), address);
        assert_eq!(Address::default().v4(), None);
    }

    #[test]
    fn a_latency_has_the_place_of_its_magnitude() {
        let cases = [(0, 0), (1_999, 0), (2_000, 1), (3_999, 1), (64_000, 6), (1_000_000_000, 19), (u64::MAX, 25)];
        for (latency_ns, place) in cases {
            assert_eq!(Histogram::place(latency_ns), place, "{latency_ns} ns");
            let mut histogram = Histogram::default();
            histogram.count(latency_ns);
            assert_eq!((histogram.total(), histogram.counts[place]), (1, 1), "{latency_ns} ns");
        }
        assert_eq!(Histogram::place(Histogram::MOST_US * 1000), LATENCY_BUCKETS - 1);
        assert_eq!(Histogram::place(Histogram::MOST_US * 1000 - 1), LATENCY_BUCKETS - 2);
    }

    #[test]
    fn a_quantile_is_the_upper_end_of_its_place() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_us(500), None);

        histogram.counts[5] = 98;
        histogram.counts[10] = 2;

        assert_eq!(histogram.total(), 100);
        assert_eq!(
            [0, 500, 980, 990, 1000].map(|share| histogram.quantile_us(share)),
            [64, 64, 64, 2048, 2048].map(Some)
        );
    }

    #[test]
    fn an_ipv6_address_survives_its_words() {
        for text in ["2001:db8::1", "::1", "::", "ff02::1", "fe80::1:2:3:4"] {
            let address: std::net::IpAddr = text.parse().unwrap();
            let words = Address::from(address).v6_wire();

            assert_eq!(std::net::IpAddr::from(Address::from_v6_wire(words)), address);
        }
    }

    #[test]
    fn only_addresses_that_mean_one_host_everywhere_are_routable() {
        let routable = |text: &str| Address::from(text.parse::<std::net::Ipv6Addr>().unwrap()).is_routable_v6();

        for text in ["2001:db8::1", "fd00::1", "64:ff9b::1", "fec0::1", "fe7f::1"] {
            assert!(routable(text), "{text}");
        }
        for text in ["::", "::1", "::ffff:198.18.0.1", "::198.18.0.1", "fe80::1", "febf::1", "ff02::1", "ff0e::1"] {
            assert!(!routable(text), "{text}");
        }
    }

    #[test]
    fn a_slot_range_survives_its_word() {
        let range = SlotRange { base: 0xdead_beef, len: 7 };

        assert_eq!(Frontend::new(range, Scheduler::RoundRobin).slots(), range);
    }

    #[test]
    fn schedulers_survive_their_numbers_and_an_unknown_one_is_round_robin() {
        for scheduler in Scheduler::ALL {
            assert_eq!(Scheduler::from_number(scheduler as u8), scheduler);
        }
        assert_eq!(Scheduler::from_number(200), Scheduler::RoundRobin);
    }

    #[test]
    fn a_freed_backend_serves_no_generation() {
        let backend = Backend::new(1, 5, Address::from_v4([198, 19, 0, 2]), Port::new(80));

        assert!(backend.serves(5));
        assert!(!backend.serves(4));
        assert!(!backend.freed().serves(5));
    }
}
