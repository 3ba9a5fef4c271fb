//! The maps as the pipeline sees them, so that the same pipeline runs in the kernel and in a test.

use core::ptr::NonNull;

use crate::{
    abi::{Backend, BackendId, Endpoint, FlowEntry, FlowKey, Frontend, FrontendId, KtimeNs, ReplyEntry, Traffic},
    tcp_state::{Seen, State},
    verdict::Event,
};

/// How late `last_seen` may be, so that a busy flow writes its entry once a second and not once a packet.
pub const TOUCH_NS: KtimeNs = 1_000_000_000;

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// The entry is in.
    Done,
    /// The key is taken, and was to be new.
    Exists,
    /// No room, or no memory.
    Full,
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

impl Shared<FlowEntry> {
    field!(last_seen, set_last_seen, last_seen, KtimeNs);
    field!(backend, backend, BackendId);
    field!(generation, generation, u32);
    field!(awaited_ack, set_awaited_ack, awaited_ack, u32);
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

    /// Returns how far the flow has come.
    #[inline(always)]
    pub fn state(self) -> State {
        State::of(self.client(), self.server())
    }

    /// Returns the whole entry.
    #[inline(always)]
    pub fn copy(self) -> FlowEntry {
        // SAFETY: as for `field!`; each side's byte is whole.
        unsafe { self.0.as_ptr().read() }
    }
}

impl Shared<ReplyEntry> {
    field!(last_seen, set_last_seen, last_seen, KtimeNs);
    field!(flow, flow, FlowKey);
    field!(backend, backend, BackendId);
    field!(generation, generation, u32);
    field!(flags, set_flags, flags, u8);

    /// Returns the whole entry.
    #[inline(always)]
    pub fn copy(self) -> ReplyEntry {
        // SAFETY: as for `field!`.
        unsafe { self.0.as_ptr().read() }
    }
}

impl Shared<Traffic> {
    /// Counts a packet from a client. The value is this processor's own.
    #[inline(always)]
    pub fn count_ingress(self, bytes: u64) {
        // SAFETY: per-CPU value, and no program that counts interrupts another on the same processor.
        let traffic = unsafe { &mut *self.0.as_ptr() };
        traffic.ingress_packets = traffic.ingress_packets.wrapping_add(1);
        traffic.ingress_bytes = traffic.ingress_bytes.wrapping_add(bytes);
    }

    /// Counts a packet to a client. The value is this processor's own.
    #[inline(always)]
    pub fn count_egress(self, bytes: u64) {
        // SAFETY: as above.
        let traffic = unsafe { &mut *self.0.as_ptr() };
        traffic.egress_packets = traffic.egress_packets.wrapping_add(1);
        traffic.egress_bytes = traffic.egress_bytes.wrapping_add(bytes);
    }

    /// Counts a connection that begins. The value is this processor's own.
    #[inline(always)]
    pub fn count_connection(self) {
        // SAFETY: as above.
        let traffic = unsafe { &mut *self.0.as_ptr() };
        traffic.connections = traffic.connections.wrapping_add(1);
    }

    /// Counts a connection of a socket of this host. A softirq may count packets in between: other fields.
    #[inline(always)]
    pub fn count_local_connection(self) {
        // SAFETY: as above; the program cannot migrate.
        let traffic = unsafe { &mut *self.0.as_ptr() };
        traffic.local_connections = traffic.local_connections.wrapping_add(1);
    }
}

/// The maps that the pipeline reads and writes.
pub trait Tables {
    /// Returns the frontend at an endpoint.
    fn frontend_at(&self, endpoint: &Endpoint) -> Option<FrontendId>;
    /// Returns a frontend.
    fn frontend(&self, id: FrontendId) -> Option<Frontend>;
    /// Draws the next ticket of a frontend.
    fn ticket(&self, id: FrontendId) -> u64;
    /// Returns the backend in a slot.
    fn slot(&self, index: u32) -> Option<BackendId>;
    /// Returns a backend.
    fn backend(&self, id: BackendId) -> Option<&Backend>;
    /// Returns this processor's counters of a backend.
    fn traffic(&self, id: BackendId) -> Option<Shared<Traffic>>;
    /// Counts an event.
    fn count(&self, event: Event);
    /// Returns a number that no client can foresee.
    fn random(&self) -> u32;

    /// Returns a proven flow.
    fn flow(&self, key: &FlowKey) -> Option<Shared<FlowEntry>>;
    /// Returns a flow that is not proven.
    fn half_open(&self, key: &FlowKey) -> Option<Shared<FlowEntry>>;
    /// Returns the reply half of a proven flow.
    fn reply(&self, key: &FlowKey) -> Option<Shared<ReplyEntry>>;
    /// Returns the reply half of a flow that is not proven.
    fn half_open_reply(&self, key: &FlowKey) -> Option<Shared<ReplyEntry>>;

    /// Adds a proven flow, if there is none of that key.
    fn add_flow(&self, key: &FlowKey, entry: &FlowEntry) -> Insert;
    /// Adds or replaces a flow that is not proven.
    fn put_half_open(&self, key: &FlowKey, entry: &FlowEntry) -> Insert;
    /// Adds or replaces the reply half of a proven flow.
    fn put_reply(&self, key: &FlowKey, entry: &ReplyEntry) -> Insert;
    /// Adds the reply half of a flow that is not proven, if the key is free.
    fn claim_half_open_reply(&self, key: &FlowKey, entry: &ReplyEntry) -> Insert;
    /// Adds or replaces the reply half of a flow that is not proven.
    fn put_half_open_reply(&self, key: &FlowKey, entry: &ReplyEntry) -> Insert;

    /// Removes a proven flow.
    fn remove_flow(&self, key: &FlowKey);
    /// Removes a flow that is not proven.
    fn remove_half_open(&self, key: &FlowKey);
    /// Removes the reply half of a proven flow.
    fn remove_reply(&self, key: &FlowKey);
    /// Removes the reply half of a flow that is not proven.
    fn remove_half_open_reply(&self, key: &FlowKey);
}
