//! The maps, and the pipeline's view of them. What each holds, who writes it and what happens when it is full stands
//! in `abi::map`.

use core::ptr::NonNull;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::bpf_get_prandom_u32,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use lb_ebpf::{
    abi::{
        Address, AffinityEntry, AffinityKey, AgentRecord, Backend, BackendId, DEFAULT_FLOWS, Endpoint, FlowEntry,
        FlowKey, FragmentEntry, FragmentKey, Frontend, FrontendId, Guard, Handshakes, KtimeNs, Lifetimes, LocalFlow,
        LocalKey, MAX_ADDRESSES, MAX_AFFINITIES, MAX_BACKENDS, MAX_COOKIE_RATES, MAX_COUNTERS, MAX_DATAGRAMS,
        MAX_FRAGMENTS, MAX_FRONTENDS, MAX_HALF_OPEN, MAX_LOCAL_FLOWS, MAX_LOCAL_NETNS, MAX_RATES, MAX_SLOTS,
        MAX_SOURCES, MAX_XDP_ANSWERS, Proto, REPORT_PAGES, RateKey, ReplyEntry, ReportPage, SOURCE_BITS, Slot, Source,
        Tally, Traffic, WAKES_BYTES, Wake,
    },
    tables::{Insert, Scratch, Shared, Table, Tables},
    tcp_state::{Flags, State},
    verdict::Event,
};

use super::{
    apart, atomic,
    cookie::{Listeners, Nobody},
};

#[map]
static ADDRESSES: HashMap<Endpoint, FrontendId> = HashMap::with_max_entries(MAX_ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static LOCAL_BACKENDS: HashMap<Endpoint, u32> = HashMap::with_max_entries(MAX_BACKENDS, BPF_F_NO_PREALLOC);
#[map]
static FRONTENDS: HashMap<FrontendId, Frontend> = HashMap::with_max_entries(MAX_FRONTENDS, BPF_F_NO_PREALLOC);
#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(MAX_SLOTS, 0);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(MAX_BACKENDS, 0);
#[map]
static CURSORS: Array<u64> = Array::with_max_entries(MAX_FRONTENDS, 0);
#[map]
static AFFINITIES: LruHashMap<AffinityKey, AffinityEntry> = LruHashMap::with_max_entries(MAX_AFFINITIES, 0);
#[map]
static TALLIES: Array<Tally> = Array::with_max_entries(MAX_BACKENDS, 0);
#[map]
static TALLY_ERRORS: Array<Tally> = Array::with_max_entries(MAX_BACKENDS, 0);
#[map]
static SWEPT: Array<KtimeNs> = Array::with_max_entries(1, 0);
#[map]
static FLOWS: HashMap<FlowKey, FlowEntry> = HashMap::with_max_entries(DEFAULT_FLOWS, BPF_F_NO_PREALLOC);
#[map]
static REPLIES: HashMap<FlowKey, ReplyEntry> = HashMap::with_max_entries(DEFAULT_FLOWS, BPF_F_NO_PREALLOC);
#[map]
static HALF_OPEN: LruHashMap<FlowKey, FlowEntry> = LruHashMap::with_max_entries(MAX_HALF_OPEN, 0);
#[map]
static HALF_OPEN_REPLIES: LruHashMap<FlowKey, ReplyEntry> = LruHashMap::with_max_entries(MAX_HALF_OPEN, 0);
#[map]
static DATAGRAMS: LruHashMap<FlowKey, FlowEntry> = LruHashMap::with_max_entries(MAX_DATAGRAMS, 0);
#[map]
static DATAGRAM_REPLIES: LruHashMap<FlowKey, ReplyEntry> = LruHashMap::with_max_entries(MAX_DATAGRAMS, 0);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry> = LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);
#[map]
pub static LOCAL_FLOWS: HashMap<u64, LocalFlow> = HashMap::with_max_entries(MAX_LOCAL_FLOWS, BPF_F_NO_PREALLOC);
#[map]
pub static LOCAL_DATAGRAMS: LruHashMap<LocalKey, LocalFlow> = LruHashMap::with_max_entries(MAX_LOCAL_FLOWS, 0);
#[map]
pub static LOCAL_NETNS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_LOCAL_NETNS, BPF_F_NO_PREALLOC);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_COUNTERS, 0);
#[map]
static BACKEND_STATS: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(MAX_BACKENDS, 0);
#[map]
static HANDSHAKES: PerCpuArray<Handshakes> = PerCpuArray::with_max_entries(MAX_BACKENDS, 0);
#[map]
static RETIRED: Array<Traffic> = Array::with_max_entries(MAX_FRONTENDS, 0);
#[map]
static GUARDS: Array<Guard> = Array::with_max_entries(MAX_FRONTENDS, 0);
#[map]
static SOURCES: LpmTrie<Source, u32> = LpmTrie::with_max_entries(MAX_SOURCES, BPF_F_NO_PREALLOC);
#[map]
static RATES: LruHashMap<RateKey, KtimeNs> = LruHashMap::with_max_entries(MAX_RATES, 0);
#[map]
static COOKIES: Array<KtimeNs> = Array::with_max_entries(MAX_FRONTENDS, 0);
#[map]
static COOKIE_RATES: Array<KtimeNs> = Array::with_max_entries(MAX_COOKIE_RATES, 0);
#[map]
static XDP_ANSWERS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_XDP_ANSWERS, BPF_F_NO_PREALLOC);
#[map]
static WOKEN: Array<KtimeNs> = Array::with_max_entries(MAX_BACKENDS, 0);
#[map]
static WAKES: RingBuf = RingBuf::with_byte_size(WAKES_BYTES, 0);
#[map]
static LIFETIMES: Array<Lifetimes> = Array::with_max_entries(1, 0);
#[map]
static AGENT: Array<AgentRecord> = Array::with_max_entries(1, 0);
/// This processor's room for entries that are about to be inserted. Never seen by the agent.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static REPORT: Array<ReportPage> = Array::with_max_entries(2 * REPORT_PAGES, 0);

/// Adds one to a place of `COUNTERS`.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this processor's own value.
        unsafe { *counter += 1 };
    }
}

/// Adds one to a place of `COUNTERS`, in a program that others can interrupt on the same processor.
#[inline(always)]
pub fn count_atomically(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        atomic::increment(counter);
    }
}

/// Returns the counters of a backend's connections: those begun, and those held.
#[inline(always)]
pub fn tally_counters(id: BackendId) -> Option<(*mut u64, *mut u64)> {
    // SAFETY: fields of a value that the kernel keeps allocated.
    TALLIES.get_ptr_mut(id).map(|tally| unsafe { (&raw mut (*tally).active, &raw mut (*tally).held) })
}

/// Returns a backend.
#[inline(always)]
pub fn backend(id: BackendId) -> Option<&'static Backend> {
    BACKENDS.get(id)
}

/// Returns all bits if a number is negative, and none if it is not. By an instruction of which the compiler knows nothing:
/// it would make a condition of what is done with that, and the verifier follow both of its ways.
#[inline(always)]
fn sign(mut number: u64) -> u64 {
    // SAFETY: an instruction between registers.
    unsafe { core::arch::asm!("{0} s>>= 63", inout(reg) number, options(nomem, nostack)) };
    number
}

/// For how long after a sweep connections under way count as known: long enough for one agent to take over from another,
/// and short enough for what is never seen to end.
const SWEPT_NS: KtimeNs = 60_000_000_000;

/// Returns whether a device sends back what XDP tells it to.
#[inline(always)]
pub fn answers_by_xdp(ifindex: u32) -> bool {
    // SAFETY: nothing is read of the value.
    unsafe { XDP_ANSWERS.get(ifindex) }.is_some()
}

/// The maps of this object, and who asks listeners for the program.
pub struct KernelTables<L = Nobody>(pub L);

/// The maps of this object alone.
pub const TABLES: KernelTables = KernelTables(Nobody);

#[inline(always)]
fn shared<T>(value: *mut T) -> Option<Shared<T>> {
    // SAFETY: the kernel keeps a map's value allocated until the program has ended (RCU).
    NonNull::new(value).map(|value| unsafe { Shared::new(value) })
}

#[inline(always)]
fn inserted(result: Result<(), i32>) -> Insert {
    match result {
        Ok(()) => Insert::Done,
        Err(error) if error == -EEXIST => Insert::Exists,
        Err(_) => Insert::Full,
    }
}

/// `asm-generic/errno-base.h`.
const EEXIST: i32 = 17;

impl<L: Listeners> Tables for KernelTables<L> {
    #[inline(always)]
    fn frontend_at(&self, endpoint: &Endpoint) -> Option<FrontendId> {
        // SAFETY: one word, read at once.
        unsafe { ADDRESSES.get(endpoint) }.copied()
    }

    #[inline(always)]
    fn is_local_backend(&self, endpoint: &Endpoint) -> bool {
        // SAFETY: nothing is read of the value.
        unsafe { LOCAL_BACKENDS.get(endpoint) }.is_some()
    }

    #[inline(always)]
    fn frontend(&self, id: FrontendId) -> Option<&Frontend> {
        // SAFETY: the slot range is one word, read at once.
        unsafe { FRONTENDS.get(id) }
    }

    #[inline(always)]
    fn ticket(&self, id: FrontendId) -> u64 {
        match CURSORS.get_ptr_mut(id) {
            Some(cursor) => atomic::fetch_increment(cursor),
            None => 0,
        }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<&Backend> {
        backend(id)
    }

    #[inline(always)]
    fn traffic(&self, id: BackendId) -> Option<Shared<Traffic>> {
        BACKEND_STATS.get_ptr_mut(id).and_then(shared)
    }

    #[inline(always)]
    fn handshakes(&self, id: BackendId) -> Option<Shared<Handshakes>> {
        HANDSHAKES.get_ptr_mut(id).and_then(shared)
    }

    #[inline(always)]
    fn lifetime_ns(&self, state: State) -> KtimeNs {
        LIFETIMES.get(0).map_or(0, |lifetimes| lifetimes.of(state))
    }

    #[inline(always)]
    fn guard(&self, frontend: FrontendId) -> Option<&Guard> {
        GUARDS.get(frontend)
    }

    #[inline(always)]
    fn source(&self, frontend: FrontendId, client: &Address) -> Option<bool> {
        let key = Key::new(SOURCE_BITS, Source { frontend, address: *client });
        SOURCES.get(key).map(|admits| *admits != 0)
    }

    #[inline(always)]
    fn bucket(&self, key: &RateKey) -> Option<Shared<KtimeNs>> {
        RATES.get_ptr_mut(key).and_then(shared)
    }

    #[inline(always)]
    fn add_bucket(&self, key: &RateKey, full_at: KtimeNs) {
        // Without it, one more than allowed may come.
        let _full = RATES.insert(key, full_at, BPF_ANY.into());
    }

    #[inline(always)]
    fn tally(&self, id: BackendId) -> Option<Tally> {
        let (tally, error) = (TALLIES.get(id)?, TALLY_ERRORS.get(id)?);
        // SAFETY: whole words of maps, read at once; either may be a moment older than the other.
        let difference = |of: fn(&Tally) -> *const u64| unsafe {
            core::ptr::read_volatile(of(tally)).wrapping_sub(core::ptr::read_volatile(of(error)))
        };
        let (active, held) = (difference(|tally| &raw const tally.active), difference(|tally| &raw const tally.held));
        // Ends may be seen of connections that no sweep has counted: those are none, and not a great many.
        Some(Tally { active: active & !sign(active), held: held & !sign(held) })
    }

    #[inline(always)]
    fn is_swept(&self, now: KtimeNs) -> bool {
        SWEPT.get(0).is_some_and(|swept| {
            // SAFETY: a whole word of a map, read at once.
            let swept = unsafe { core::ptr::read_volatile(swept) };
            now.saturating_sub(swept) <= SWEPT_NS
        })
    }

    #[inline(always)]
    fn begun(&self, id: BackendId) {
        apart::tally_begun(id);
    }

    #[inline(always)]
    fn rouse(&self, id: BackendId) {
        apart::rouse_backend(id);
    }

    #[inline(always)]
    fn woken(&self, id: BackendId) -> Option<Shared<KtimeNs>> {
        WOKEN.get_ptr_mut(id).and_then(shared)
    }

    #[inline(always)]
    fn wake(&self, wake: &Wake) -> bool {
        WAKES.output::<Wake>(wake, 0).is_ok()
    }

    #[inline(always)]
    fn held(&self, id: BackendId) {
        apart::tally_held(id);
    }

    #[inline(always)]
    fn ended(&self, id: BackendId) {
        apart::tally_ended(id);
    }

    #[inline(always)]
    fn forget(&self, key: &FlowKey) {
        // SAFETY: a reference.
        unsafe { apart::forget_connection(key) };
    }

    #[inline(always)]
    fn kept(&self, frontend: (FrontendId, &Frontend), client: &FlowKey, but: BackendId, now: KtimeNs) -> BackendId {
        // SAFETY: references.
        unsafe { apart::kept_backend(frontend.0, frontend.1, client, but, now) }
    }

    #[inline(always)]
    fn pick(&self, frontend: (FrontendId, &Frontend), client: &FlowKey, but: BackendId, now: KtimeNs) -> BackendId {
        // SAFETY: references.
        unsafe { apart::pick_backend(frontend.0, frontend.1, client, but, now) }
    }

    #[inline(always)]
    fn spare(&self, frontend: (FrontendId, &Frontend), client: &FlowKey, but: BackendId, now: KtimeNs) -> BackendId {
        // SAFETY: references.
        unsafe { apart::spare_backend(frontend.0, frontend.1, client, but, now) }
    }

    #[inline(always)]
    fn look(&self, (place, frontend): (u32, FrontendId), client: &FlowKey, but: BackendId, limit: u32) -> BackendId {
        // SAFETY: a reference.
        unsafe { apart::look_at_backend(place, frontend, client, but, limit) }
    }

    #[inline(always)]
    fn keep(&self, frontend: FrontendId, client: &FlowKey, (id, generation): (BackendId, u32), now: KtimeNs) {
        // SAFETY: a reference.
        unsafe { apart::keep_backend(frontend, client, id, generation, now) };
    }

    #[inline(always)]
    fn note_request(&self, client: &FlowKey, sequence: u32) {
        // SAFETY: a reference.
        unsafe { apart::note_request(client, sequence) };
    }

    #[inline(always)]
    fn note_response(&self, reply: Shared<ReplyEntry>, id: BackendId, flags: Flags, acknowledged: u32) {
        // SAFETY: a value of a map.
        unsafe { apart::note_response(reply.as_mut_ptr(), id, flags.0.into(), acknowledged) };
    }

    #[inline(always)]
    fn claim(&self, proto: Proto) -> Insert {
        Insert::from_number(apart::claim_key(proto as u32))
    }

    #[inline(always)]
    fn cookies(&self, frontend: FrontendId) -> Option<Shared<KtimeNs>> {
        COOKIES.get_ptr_mut(frontend).and_then(shared)
    }

    #[inline(always)]
    fn cookie_bucket(&self, number: u32) -> Option<Shared<KtimeNs>> {
        COOKIE_RATES.get_ptr_mut(number).and_then(shared)
    }

    #[inline(always)]
    fn syn_cookie(&self, netns: u32) -> bool {
        self.0.syn_cookie(netns)
    }

    #[inline(always)]
    fn is_syn_cookie(&self, netns: u32) -> bool {
        self.0.is_syn_cookie(netns)
    }

    #[inline(always)]
    fn count(&self, event: Event) {
        count(event.index());
    }

    #[inline(always)]
    fn count_atomically(&self, event: Event) {
        count_atomically(event.index());
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: takes nothing.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn scratch(&self) -> Option<Shared<Scratch>> {
        SCRATCH.get_ptr_mut(0).and_then(shared)
    }

    #[inline(always)]
    fn flow(&self, table: Table, key: &FlowKey) -> Option<Shared<FlowEntry>> {
        let found = match table {
            Table::Proven => FLOWS.get_ptr_mut(key),
            Table::HalfOpen => HALF_OPEN.get_ptr_mut(key),
            Table::Datagrams => DATAGRAMS.get_ptr_mut(key),
        };
        found.and_then(shared)
    }

    #[inline(always)]
    fn add_flow(&self, table: Table, key: &FlowKey, entry: Shared<FlowEntry>) -> Insert {
        insert_flow(table, key, entry, BPF_NOEXIST)
    }

    #[inline(always)]
    fn put_flow(&self, table: Table, key: &FlowKey, entry: Shared<FlowEntry>) -> Insert {
        insert_flow(table, key, entry, BPF_ANY)
    }

    #[inline(always)]
    fn remove_flow(&self, table: Table, key: &FlowKey) -> bool {
        let removed = match table {
            Table::Proven => FLOWS.remove(key),
            Table::HalfOpen => HALF_OPEN.remove(key),
            Table::Datagrams => DATAGRAMS.remove(key),
        };
        removed.is_ok()
    }

    #[inline(always)]
    fn reply(&self, table: Table, key: &FlowKey) -> Option<Shared<ReplyEntry>> {
        let found = match table {
            Table::Proven => REPLIES.get_ptr_mut(key),
            Table::HalfOpen => HALF_OPEN_REPLIES.get_ptr_mut(key),
            Table::Datagrams => DATAGRAM_REPLIES.get_ptr_mut(key),
        };
        found.and_then(shared)
    }

    #[inline(always)]
    fn add_reply(&self, table: Table, key: &FlowKey, entry: Shared<ReplyEntry>) -> Insert {
        insert_reply(table, key, entry, BPF_NOEXIST)
    }

    #[inline(always)]
    fn put_reply(&self, table: Table, key: &FlowKey, entry: Shared<ReplyEntry>) -> Insert {
        insert_reply(table, key, entry, BPF_ANY)
    }

    #[inline(always)]
    fn remove_reply(&self, table: Table, key: &FlowKey) {
        let _absent = match table {
            Table::Proven => REPLIES.remove(key),
            Table::HalfOpen => HALF_OPEN_REPLIES.remove(key),
            Table::Datagrams => DATAGRAM_REPLIES.remove(key),
        };
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Shared<AffinityEntry>> {
        AFFINITIES.get_ptr_mut(key).and_then(shared)
    }

    #[inline(always)]
    fn put_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) {
        // Without it the client's next connection is scheduled like any other.
        let _full = AFFINITIES.insert(key, entry, BPF_ANY.into());
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentEntry> {
        // SAFETY: it may become another datagram's meanwhile, whose checksum then tells at its end.
        unsafe { FRAGMENTS.get(key) }
    }

    #[inline(always)]
    fn put_fragment(&self, key: &FragmentKey, entry: &FragmentEntry) {
        // Without it the datagram's other fragments are passed, and counted there.
        let _full = FRAGMENTS.insert(key, entry, BPF_ANY.into());
    }
}

#[inline(always)]
fn insert_flow(table: Table, key: &FlowKey, entry: Shared<FlowEntry>, how: u32) -> Insert {
    // SAFETY: the kernel copies it, as it is at this moment.
    let entry = unsafe { &*entry.as_ptr() };
    inserted(match table {
        Table::Proven => FLOWS.insert(key, entry, how.into()),
        Table::HalfOpen => HALF_OPEN.insert(key, entry, how.into()),
        Table::Datagrams => DATAGRAMS.insert(key, entry, how.into()),
    })
}

#[inline(always)]
fn insert_reply(table: Table, key: &FlowKey, entry: Shared<ReplyEntry>, how: u32) -> Insert {
    // SAFETY: as above.
    let entry = unsafe { &*entry.as_ptr() };
    inserted(match table {
        Table::Proven => REPLIES.insert(key, entry, how.into()),
        Table::HalfOpen => HALF_OPEN_REPLIES.insert(key, entry, how.into()),
        Table::Datagrams => DATAGRAM_REPLIES.insert(key, entry, how.into()),
    })
}
