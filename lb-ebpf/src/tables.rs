//! The maps as the pipeline sees them, so that the same pipeline runs in the kernel and in a test.

use core::ptr::NonNull;

use crate::{
    abi::{
        Address, AffinityEntry, AffinityKey, Backend, BackendId, Endpoint, FlowEntry, FlowKey, FragmentEntry,
        FragmentKey, Frontend, FrontendId, Guard, Handshakes, KtimeNs, Port, Proto, RateKey, ReplyEntry, Slot, Tally,
        Traffic, Wake,
    },
    cookie::Question,
    tcp_state::{Flags, Seen, State},
    verdict::Event,
};

/// How late `last_seen` may be, so that a busy flow writes its entry once a second and not once a packet.
pub const TOUCH_NS: KtimeNs = 1_000_000_000;

/// What became of an insertion.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// The entry is in.
    Done = 0,
    /// The key is taken, and was to be new.
    Exists = 1,
    /// No room, or no memory.
    Full = 2,
}

impl Insert {
    /// Reads what one was told by as a number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Done,
            1 => Self::Exists,
            _ => Self::Full,
        }
    }
}

/// A value of a map that other processors read and write at the same time.
///
/// Fields are read and written one by one, whole; what a race may do is told where the fields are ([`FlowEntry`]).
#[derive(Debug)]
pub struct Shared<T>(NonNull<T>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    /// Takes a map's value.
    ///
    /// # Safety
    /// The value stays allocated, though not necessarily the same flow's, as long as this is used.
    #[inline(always)]
    pub const unsafe fn new(value: NonNull<T>) -> Self {
        Self(value)
    }
}

/// Reads a number in such a way that the compiler does not take it for what it was before.
#[inline(always)]
pub fn afresh(number: &u32) -> u32 {
    // SAFETY: a reference.
    unsafe { core::ptr::read_volatile(number) }
}

macro_rules! field {
    ($read:ident, $field:ident, $type:ty) => {
        #[doc = concat!("Reads `", stringify!($field), "`.")]
        #[inline(always)]
        pub fn $read(self) -> $type {
            // SAFETY: `new`'s caller keeps the value allocated; fields are aligned within it.
            unsafe { (&raw const (*self.0.as_ptr()).$field).read_volatile() }
        }
    };
    ($read:ident, $write:ident, $field:ident, $type:ty) => {
        field!($read, $field, $type);

        #[doc = concat!("Writes `", stringify!($field), "`.")]
        #[inline(always)]
        pub fn $write(self, value: $type) {
            // SAFETY: as for reading.
            unsafe { (&raw mut (*self.0.as_ptr()).$field).write_volatile(value) }
        }
    };
}

/// Which of the tables of flows, and of their reply halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// TCP connections of clients that have proven to be real.
    Proven,
    /// TCP connections that are not proven, or over.
    HalfOpen,
    /// UDP.
    Datagrams,
}

impl Shared<FlowEntry> {
    field!(last_seen, set_last_seen, last_seen, KtimeNs);
    field!(backend, backend, BackendId);
    field!(generation, generation, u32);
    field!(awaited_ack, set_awaited_ack, awaited_ack, u32);
    field!(ifindex, set_ifindex, ifindex, u32);
    field!(tag, tag, u32);
    field!(seen_client_port, seen_client_port, Port);
    field!(ingress_bits, set_ingress_bits, ingress, u8);
    field!(egress_bits, set_egress_bits, egress, u8);

    /// Returns what the client has been seen to do.
    #[inline(always)]
    pub fn client(self) -> Seen {
        Seen(self.ingress_bits())
    }

    /// Says what the client has been seen to do. For the ingress direction alone.
    #[inline(always)]
    pub fn set_client(self, seen: Seen) {
        self.set_ingress_bits(seen.0);
    }

    /// Returns what the backend has been seen to do.
    #[inline(always)]
    pub fn server(self) -> Seen {
        Seen(self.egress_bits())
    }

    /// Says what the backend has been seen to do. For the egress direction alone.
    #[inline(always)]
    pub fn set_server(self, seen: Seen) {
        self.set_egress_bits(seen.0);
    }

    /// Returns whether this is an entry of the same flow as another, under a key.
    #[inline(always)]
    pub fn is_of(self, key: &FlowKey, other: Self) -> bool {
        self.tag() == key.tag()
            && self.backend() == other.backend()
            && self.generation() == other.generation()
            && self.seen_client_port() == other.seen_client_port()
            && self.client().any(Seen::STAND_IN) == other.client().any(Seen::STAND_IN)
    }

    /// Returns how far the flow has come.
    #[inline(always)]
    pub fn state(self) -> State {
        State::of(self.client(), self.server())
    }

    /// Returns whether it has idled for longer than its state allows, [`FlowEntry::is_expired`].
    #[inline(always)]
    pub fn is_expired<T: Tables>(self, now: KtimeNs, tables: &T) -> bool {
        now.saturating_sub(self.last_seen()) > tables.lifetime_ns(self.state())
    }
}

impl Shared<ReplyEntry> {
    field!(last_seen, set_last_seen, last_seen, KtimeNs);
    field!(flow, flow, FlowKey);
    field!(backend, backend, BackendId);
    field!(generation, generation, u32);
    field!(ifindex, set_ifindex, ifindex, u32);
    field!(acknowledged, set_acknowledged, acknowledged, u32);
    field!(tag, tag, u32);
    field!(flags, set_flags, flags, u8);
    field!(request, set_request, request, u8);
    field!(requested_at, set_requested_at, requested_at, KtimeNs);

    /// Returns whether this is an entry of the same reply half as another, under a key.
    #[inline(always)]
    pub fn is_of(self, key: &FlowKey, other: Self) -> bool {
        self.tag() == key.tag()
            && self.backend() == other.backend()
            && self.generation() == other.generation()
            && self.is_of_same_flow(other)
    }

    /// Returns whether both are reply halves of the same flow.
    #[inline(always)]
    pub fn is_of_same_flow(self, other: Self) -> bool {
        // SAFETY: `new`'s caller keeps the value allocated.
        self.leads_to(unsafe { &(*other.0.as_ptr()).flow })
    }

    /// Returns whether this is the reply half of a flow. Compares word by word: a program's stack has no room for one key
    /// more.
    #[inline(always)]
    pub fn leads_to(self, flow: &FlowKey) -> bool {
        const WORDS: usize = size_of::<FlowKey>() / size_of::<u32>();
        // SAFETY: `new`'s caller keeps the value allocated; a key is made of whole words, and aligned to them.
        let word = |key: *const FlowKey, place: usize| unsafe { key.cast::<u32>().add(place).read_volatile() };
        // SAFETY: a field of a value that `new`'s caller keeps allocated.
        let own = unsafe { &raw const (*self.0.as_ptr()).flow };
        (0..WORDS).all(|place| word(own, place) == word(flow, place))
    }
}

/// The memory may become another client's at any moment: that one's backend is one of the same frontend, or is refused.
impl Shared<AffinityEntry> {
    field!(seen, set_seen, seen, KtimeNs);
    field!(backend, backend, BackendId);
    field!(generation, generation, u32);
}

/// Room for entries that are about to be inserted: a program's stack of 512 bytes has none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Scratch {
    flow: FlowEntry,
    reply: ReplyEntry,
    reply_key: FlowKey,
    holder: FlowKey,
    fragment: FirstFragment,
    frontend: Frontend,
    question: Question,
}

/// A first fragment that is on its way.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FirstFragment {
    /// What its datagram is known by.
    pub key: FragmentKey,
    /// Addresses and ports, as it came.
    pub flow: FlowKey,
    /// What became of it.
    pub entry: FragmentEntry,
}

impl Shared<Scratch> {
    /// Writes a flow and returns where it is.
    #[inline(always)]
    pub fn flow(self, entry: FlowEntry) -> Shared<FlowEntry> {
        // SAFETY: `new`'s caller keeps the value allocated, and fields of a value that is not null are not.
        unsafe {
            let at = &raw mut (*self.0.as_ptr()).flow;
            at.write(entry);
            Shared(NonNull::new_unchecked(at))
        }
    }

    /// Writes the key of a reply half and returns it, until the next one is written.
    #[inline(always)]
    pub fn reply_key<'a>(self, key: FlowKey) -> &'a FlowKey {
        // SAFETY: `new`'s caller keeps the value allocated; this processor's own, and written here alone.
        unsafe {
            let at = &raw mut (*self.0.as_ptr()).reply_key;
            at.write(key);
            &*at
        }
    }

    /// Writes the key of what a backend sends to a client of TCP that it knows by an address and a port, in the same place.
    /// Word by word: who asks has next to no stack.
    #[inline(always)]
    pub fn key_of_replies<'a>(self, backend: &Backend, client: &Address, port: Port) -> &'a FlowKey {
        const ADDRESS: usize = size_of::<Address>() / size_of::<u32>();
        // SAFETY: `new`'s caller keeps the value allocated, this processor's own; a key is made of ten whole words, and aligned
        // to them: either address, the ports, and the protocol, which is a byte.
        unsafe {
            let at = &raw mut (*self.0.as_ptr()).reply_key;
            let words = at.cast::<u32>();
            for (place, address) in [(0, &backend.address), (ADDRESS, client)] {
                for number in 0..ADDRESS {
                    let from = (&raw const *address).cast::<u32>().add(number);
                    words.add(place + number).write_volatile(from.read_volatile());
                }
            }
            (&raw mut (*at).source_port).write_volatile(backend.port);
            (&raw mut (*at).destination_port).write_volatile(port);
            words.add(2 * ADDRESS + 1).write_volatile(u32::from_ne_bytes([Proto::Tcp as u8, 0, 0, 0]));
            &*at
        }
    }

    /// Writes a reply half and returns where it is.
    #[inline(always)]
    pub fn reply(self, entry: ReplyEntry) -> Shared<ReplyEntry> {
        // SAFETY: as above.
        unsafe {
            let at = &raw mut (*self.0.as_ptr()).reply;
            at.write(entry);
            Shared(NonNull::new_unchecked(at))
        }
    }

    /// Copies a frontend, as it is at this moment, and returns where the copy is.
    #[inline(always)]
    pub fn frontend<'a>(self, entry: &Frontend) -> &'a Frontend {
        // SAFETY: as above.
        unsafe {
            let at = &raw mut (*self.0.as_ptr()).frontend;
            core::ptr::copy_nonoverlapping(entry, at, 1);
            &*at
        }
    }

    /// Returns key and reply half as they were written last.
    #[inline(always)]
    pub const fn written_reply<'a>(self) -> (&'a FlowKey, Shared<ReplyEntry>) {
        // SAFETY: as above.
        unsafe {
            let (key, reply) = (&raw const (*self.0.as_ptr()).reply_key, &raw mut (*self.0.as_ptr()).reply);
            (&*key, Shared(NonNull::new_unchecked(reply)))
        }
    }

    /// Copies the flow of a reply half, as it is at this moment, and returns where the copy is.
    #[inline(always)]
    pub fn flow_of<'a>(self, reply: Shared<ReplyEntry>) -> &'a FlowKey {
        // SAFETY: `new`'s callers keep both values allocated, and they are of two maps; this processor's own, and one part
        // of a program at a time asks.
        unsafe {
            let at = &raw mut (*self.0.as_ptr()).holder;
            core::ptr::copy_nonoverlapping(&raw const (*reply.0.as_ptr()).flow, at, 1);
            &*at
        }
    }

    /// Copies a key, in the same place, and returns where the copy is.
    #[inline(always)]
    pub fn copy_of<'a>(self, key: &FlowKey) -> &'a FlowKey {
        // SAFETY: as above.
        unsafe {
            let at = &raw mut (*self.0.as_ptr()).holder;
            at.write(*key);
            &*at
        }
    }

    /// Returns the room for a first fragment. Between two programs it means nothing.
    #[inline(always)]
    pub const fn first_fragment<'a>(self) -> &'a mut FirstFragment {
        // SAFETY: `new`'s caller keeps the value allocated; this processor's own, and one part of a program at a time asks.
        unsafe { &mut (*self.0.as_ptr()).fragment }
    }
}

impl Shared<Scratch> {
    /// Returns the room for a question to a listener. Between two programs it means nothing.
    #[inline(always)]
    pub const fn question(self) -> Shared<Question> {
        // SAFETY: `new`'s caller keeps the value allocated, and fields of a value that is not null are not.
        unsafe { Shared(NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).question)) }
    }
}

impl Shared<Question> {
    /// Returns the question. This processor's own.
    #[inline(always)]
    pub const fn value<'a>(self) -> &'a mut Question {
        // SAFETY: `new`'s caller keeps the value allocated; one part of a program at a time asks.
        unsafe { &mut *self.0.as_ptr() }
    }
}

impl<T> Shared<T> {
    /// Returns where the value is.
    #[inline(always)]
    pub const fn as_mut_ptr(self) -> *mut T {
        self.0.as_ptr()
    }

    /// Returns where the value is, to be copied by the kernel into a map, as it is at that moment.
    #[inline(always)]
    pub const fn as_ptr(self) -> *const T {
        self.0.as_ptr()
    }
}

impl Shared<Traffic> {
    /// Counts packets from a client. The value is this processor's own.
    #[inline(always)]
    pub fn count_ingress(self, packets: u64, bytes: u64) {
        // SAFETY: per-CPU value, and no program that counts these interrupts another on the same processor.
        let traffic = unsafe { &mut *self.0.as_ptr() };
        traffic.ingress_packets = traffic.ingress_packets.wrapping_add(packets);
        traffic.ingress_bytes = traffic.ingress_bytes.wrapping_add(bytes);
    }

    /// Counts packets to a client. The value is this processor's own.
    #[inline(always)]
    pub fn count_egress(self, packets: u64, bytes: u64) {
        // SAFETY: as above.
        let traffic = unsafe { &mut *self.0.as_ptr() };
        traffic.egress_packets = traffic.egress_packets.wrapping_add(packets);
        traffic.egress_bytes = traffic.egress_bytes.wrapping_add(bytes);
    }

    /// Counts a connection that begins. The value is this processor's own.
    #[inline(always)]
    pub fn count_connection(self) {
        // SAFETY: as above.
        let traffic = unsafe { &mut *self.0.as_ptr() };
        traffic.connections = traffic.connections.wrapping_add(1);
    }

    /// Returns the counter of connections of this host's sockets. Their programs can be interrupted by each other, so
    /// it has to be added to atomically.
    #[inline(always)]
    pub const fn local_connections(self) -> *mut u64 {
        // SAFETY: the field is within the value, which `new`'s caller keeps allocated.
        unsafe { &raw mut (*self.0.as_ptr()).local_connections }
    }
}

impl Shared<KtimeNs> {
    /// Reads it.
    #[inline(always)]
    pub fn get(self) -> KtimeNs {
        // SAFETY: `new`'s caller keeps the value allocated; it is aligned.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    /// Writes it.
    #[inline(always)]
    pub fn set(self, value: KtimeNs) {
        // SAFETY: as above.
        unsafe { self.0.as_ptr().write_volatile(value) };
    }
}

impl Shared<Handshakes> {
    /// Counts a SYN-ACK. The value is this processor's own.
    #[inline(always)]
    pub fn count_accepted(self, latency_ns: u64) {
        // SAFETY: as for `Traffic`.
        let handshakes = unsafe { &mut *self.0.as_ptr() };
        handshakes.latency.count(latency_ns);
    }

    /// Counts the answer to the first request of a connection. The value is this processor's own.
    #[inline(always)]
    pub fn count_response(self, latency_ns: u64) {
        // SAFETY: as above.
        let handshakes = unsafe { &mut *self.0.as_ptr() };
        handshakes.response.count(latency_ns);
    }

    /// Counts a SYN that came again. The value is this processor's own.
    #[inline(always)]
    pub fn count_retransmitted(self) {
        // SAFETY: as above.
        let handshakes = unsafe { &mut *self.0.as_ptr() };
        handshakes.retransmitted = handshakes.retransmitted.wrapping_add(1);
    }

    /// Counts a SYN that was answered by RST. The value is this processor's own.
    #[inline(always)]
    pub fn count_refused(self) {
        // SAFETY: as above.
        let handshakes = unsafe { &mut *self.0.as_ptr() };
        handshakes.refused = handshakes.refused.wrapping_add(1);
    }

    /// Counts a RST in a connection that was accepted. The value is this processor's own.
    #[inline(always)]
    pub fn count_reset(self) {
        // SAFETY: as above.
        let handshakes = unsafe { &mut *self.0.as_ptr() };
        handshakes.reset = handshakes.reset.wrapping_add(1);
    }
}

/// The maps that the pipeline reads and writes.
pub trait Tables {
    /// Returns the frontend at an endpoint.
    fn frontend_at(&self, endpoint: &Endpoint) -> Option<FrontendId>;
    /// Returns whether a backend that is this host itself is at an endpoint.
    fn is_local_backend(&self, endpoint: &Endpoint) -> bool;
    /// Returns a frontend. The memory may become another's as soon as that is replaced: who needs more than a word of it
    /// copies it at once.
    fn frontend(&self, id: FrontendId) -> Option<&Frontend>;
    /// Draws the next ticket of a frontend.
    fn ticket(&self, id: FrontendId) -> u64;
    /// Returns a slot.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// Returns a backend.
    fn backend(&self, id: BackendId) -> Option<&Backend>;
    /// Returns this processor's counters of a backend.
    fn traffic(&self, id: BackendId) -> Option<Shared<Traffic>>;
    /// Returns this processor's counters of how a backend answers.
    fn handshakes(&self, id: BackendId) -> Option<Shared<Handshakes>>;
    /// Returns for how long a flow may stay idle in a state, in nanoseconds.
    fn lifetime_ns(&self, state: State) -> KtimeNs;
    /// Returns who may begin connections to a frontend.
    fn guard(&self, frontend: FrontendId) -> Option<&Guard>;
    /// Returns whether a client may, by the longest prefix that holds it; `None` if there is none.
    fn source(&self, frontend: FrontendId, client: &Address) -> Option<bool>;
    /// Returns when a network's bucket is full again.
    fn bucket(&self, key: &RateKey) -> Option<Shared<KtimeNs>>;
    /// Notes that of one that nobody knows.
    fn add_bucket(&self, key: &RateKey, full_at: KtimeNs);
    /// Returns how many connections of a backend are under way: exact when a sweep has just been, and between two sweeps
    /// as far as beginnings and ends are seen.
    fn tally(&self, id: BackendId) -> Option<Tally>;
    /// Returns whether a sweep has been of late: without one, what ends unseen is counted for ever.
    fn is_swept(&self, now: KtimeNs) -> bool;
    /// Notes that a connection begins, and wakes its backend.
    fn begun(&self, id: BackendId);
    /// The same as [`kept`](Self::kept) for [`wake::rouse`](crate::wake::rouse).
    fn rouse(&self, id: BackendId);
    /// Returns when a backend was last woken.
    fn woken(&self, id: BackendId) -> Option<Shared<KtimeNs>>;
    /// Tells the agent; returns whether there was room.
    fn wake(&self, wake: &Wake) -> bool;
    /// Notes that one that has begun is held, [`Tally`].
    fn held(&self, id: BackendId);
    /// Notes that a connection is over that was held.
    fn ended(&self, id: BackendId);
    /// The same as [`kept`](Self::kept) for [`pipeline::forget`](crate::pipeline::forget).
    fn forget(&self, key: &FlowKey);
    /// Returns [`pipeline::kept`](crate::pipeline::kept) by these tables: a way round for the sake of the verifier, which
    /// looks at it apart in the object.
    fn kept(&self, frontend: (FrontendId, &Frontend), client: &FlowKey, but: BackendId, now: KtimeNs) -> BackendId;
    /// The same for [`pipeline::pick`](crate::pipeline::pick).
    fn pick(&self, frontend: (FrontendId, &Frontend), client: &FlowKey, but: BackendId, now: KtimeNs) -> BackendId;
    /// The same for [`pipeline::spare`](crate::pipeline::spare).
    fn spare(&self, frontend: (FrontendId, &Frontend), client: &FlowKey, but: BackendId, now: KtimeNs) -> BackendId;
    /// The same for [`pipeline::look`](crate::pipeline::look).
    fn look(&self, at: (u32, FrontendId), client: &FlowKey, but: BackendId, limit: u32) -> BackendId;
    /// The same for [`pipeline::keep`](crate::pipeline::keep).
    fn keep(&self, frontend: FrontendId, client: &FlowKey, backend: (BackendId, u32), now: KtimeNs);
    /// The same for [`pipeline::note_request`](crate::pipeline::note_request), by the precise time.
    fn note_request(&self, client: &FlowKey, sequence: u32);
    /// The same for [`pipeline::note_response`](crate::pipeline::note_response).
    fn note_response(&self, reply: Shared<ReplyEntry>, id: BackendId, flags: Flags, acknowledged: u32);
    /// The same for [`pipeline::claim_key`](crate::pipeline::claim_key).
    fn claim(&self, proto: Proto) -> Insert;
    /// Returns when a frontend has last answered a SYN by a cookie; zero if never.
    fn cookies(&self, frontend: FrontendId) -> Option<Shared<KtimeNs>>;
    /// Returns when a bucket of cookies is full again.
    fn cookie_bucket(&self, number: u32) -> Option<Shared<KtimeNs>>;
    /// Asks the listener in a network namespace by which cookie it answers the SYN of the question at hand, and notes it
    /// there; false if it has room for it, or there is no listener.
    fn syn_cookie(&self, netns: u32) -> bool;
    /// Asks the listener whether the segment of the question at hand acknowledges a cookie of its own.
    fn is_syn_cookie(&self, netns: u32) -> bool;
    /// Counts an event.
    fn count(&self, event: Event);
    /// The same where another program may come between.
    fn count_atomically(&self, event: Event);
    /// Returns a number that no client can foresee.
    fn random(&self) -> u32;

    /// Returns this processor's room for entries. Each call returns the same, so nothing in it outlasts the next.
    fn scratch(&self) -> Option<Shared<Scratch>>;
    /// Returns this processor's room for a question to a listener.
    #[inline(always)]
    fn question(&self) -> Option<Shared<Question>> {
        self.scratch().map(Shared::<Scratch>::question)
    }

    /// Returns a flow.
    fn flow(&self, table: Table, key: &FlowKey) -> Option<Shared<FlowEntry>>;
    /// Adds a copy of a flow, if there is none of that key.
    fn add_flow(&self, table: Table, key: &FlowKey, entry: Shared<FlowEntry>) -> Insert;
    /// Adds a copy of a flow, or replaces what is there by it.
    fn put_flow(&self, table: Table, key: &FlowKey, entry: Shared<FlowEntry>) -> Insert;
    /// Removes a flow; returns whether it was there.
    fn remove_flow(&self, table: Table, key: &FlowKey) -> bool;

    /// Returns the reply half of a flow.
    fn reply(&self, table: Table, key: &FlowKey) -> Option<Shared<ReplyEntry>>;
    /// Adds a copy of the reply half of a flow, if the key is free.
    fn add_reply(&self, table: Table, key: &FlowKey, entry: Shared<ReplyEntry>) -> Insert;
    /// Adds a copy of the reply half of a flow, or replaces what is there by it.
    fn put_reply(&self, table: Table, key: &FlowKey, entry: Shared<ReplyEntry>) -> Insert;
    /// Removes the reply half of a flow.
    fn remove_reply(&self, table: Table, key: &FlowKey);

    /// Returns the backend that a client keeps.
    fn affinity(&self, key: &AffinityKey) -> Option<Shared<AffinityEntry>>;
    /// Notes it.
    fn put_affinity(&self, key: &AffinityKey, entry: &AffinityEntry);

    /// Returns what became of the first fragment of a datagram.
    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentEntry>;
    /// Notes it.
    fn put_fragment(&self, key: &FragmentKey, entry: &FragmentEntry);
}
