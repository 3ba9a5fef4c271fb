//! What the verifier looks at by itself, once: global functions, whose arguments may be anything and whose results mean
//! nothing to it. A function that is only not inlined is followed again from every state in which it is called.
//!
//! Those are global, also in BTF (`BTF_FUNC_GLOBAL`), that the linker has to keep for others; they return a number, whether
//! there is something to tell or not. One is called after the other, and but for the smallest none
//! by another: the stack is theirs in turn.
//!
//! # Source
//! Linux 5.6, commit 51c39bb1d5d1 (numbers as arguments); 5.13, commit e5069b9c23b3 (pointers to memory).

use core::ptr::NonNull;

use lb_ebpf::{
    abi::{BackendId, FlowKey, Frontend, FrontendId, KtimeNs, Proto, ReplyEntry},
    pipeline,
    sched::NOBODY,
    tables::{Insert, Shared},
    tcp_state::Flags,
    wake,
};

use super::{
    atomic,
    maps::{self, TABLES},
    now, precise_now,
};

/// [`pipeline::kept`].
///
/// # Safety
/// `entry` is null, or points to a frontend; `client` is null, or points to a key.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn kept_backend(
    frontend: FrontendId,
    entry: *const Frontend,
    client: *const FlowKey,
    but: BackendId,
    now: KtimeNs,
) -> BackendId {
    // SAFETY: the caller's promise; the verifier does not know it, and insists on the comparison with null.
    match unsafe { (entry.as_ref(), client.as_ref()) } {
        (Some(entry), Some(client)) => pipeline::kept((frontend, entry), client, but, now, &TABLES),
        (None, _) | (_, None) => NOBODY,
    }
}

/// [`pipeline::pick`].
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn pick_backend(
    frontend: FrontendId,
    entry: *const Frontend,
    client: *const FlowKey,
    but: BackendId,
    now: KtimeNs,
) -> BackendId {
    // SAFETY: as above.
    match unsafe { (entry.as_ref(), client.as_ref()) } {
        (Some(entry), Some(client)) => pipeline::pick((frontend, entry), client, but, now, &TABLES),
        (None, _) | (_, None) => NOBODY,
    }
}

/// [`pipeline::spare`].
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn spare_backend(
    frontend: FrontendId,
    entry: *const Frontend,
    client: *const FlowKey,
    but: BackendId,
    now: KtimeNs,
) -> BackendId {
    // SAFETY: as above.
    match unsafe { (entry.as_ref(), client.as_ref()) } {
        (Some(entry), Some(client)) => pipeline::spare((frontend, entry), client, but, now, &TABLES),
        (None, _) | (_, None) => NOBODY,
    }
}

/// [`pipeline::look`]. Of conditions that lead on to the next look, the verifier would follow each through all that are
/// left: it does not keep so many states.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn look_at_backend(
    place: u32,
    frontend: FrontendId,
    client: *const FlowKey,
    but: BackendId,
    limit: u32,
) -> BackendId {
    // SAFETY: as above.
    match unsafe { client.as_ref() } {
        Some(client) => pipeline::look((place, frontend), client, but, limit, &TABLES),
        None => NOBODY,
    }
}

/// [`pipeline::keep`]. Returns zero.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn keep_backend(
    frontend: FrontendId,
    client: *const FlowKey,
    id: BackendId,
    generation: u32,
    now: KtimeNs,
) -> u32 {
    // SAFETY: as above.
    if let Some(client) = unsafe { client.as_ref() } {
        pipeline::keep(frontend, client, (id, generation), now, &TABLES);
    }
    0
}

/// [`pipeline::forget`]. Returns zero.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn forget_connection(key: *const FlowKey) -> u32 {
    // SAFETY: as above.
    if let Some(key) = unsafe { key.as_ref() } {
        pipeline::forget(key, &TABLES);
    }
    0
}

/// Counts a connection that begins, and wakes its backend. Returns zero.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tally_begun(id: BackendId) -> u32 {
    if let Some((active, _)) = maps::tally_counters(id) {
        atomic::increment(active);
    }
    wake::rouse(id, now(), &TABLES);
    0
}

/// [`wake::rouse`]. Returns zero.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rouse_backend(id: BackendId) -> u32 {
    wake::rouse(id, now(), &TABLES);
    0
}

/// Counts one that is held. Returns zero.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tally_held(id: BackendId) -> u32 {
    if let Some((_, held)) = maps::tally_counters(id) {
        atomic::increment(held);
    }
    0
}

/// Counts one that was held and is over. Returns zero.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tally_ended(id: BackendId) -> u32 {
    if let Some((active, held)) = maps::tally_counters(id) {
        atomic::decrement(active);
        atomic::decrement(held);
    }
    0
}

/// [`pipeline::note_request`]. Returns zero.
///
/// # Safety
/// `client` is null, or points to a key.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn note_request(client: *const FlowKey, sequence: u32) -> u32 {
    // SAFETY: as above.
    if let Some(client) = unsafe { client.as_ref() } {
        pipeline::note_request(client, sequence, precise_now(), &TABLES);
    }
    0
}

/// [`pipeline::note_response`]. Returns zero.
///
/// # Safety
/// `reply` is null, or a value of a map.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn note_response(reply: *mut ReplyEntry, id: BackendId, flags: u32, acknowledged: u32) -> u32 {
    if let Some(reply) = NonNull::new(reply) {
        // SAFETY: the kernel keeps a map's value allocated until the program has ended.
        let reply = unsafe { Shared::new(reply) };
        pipeline::note_response(reply, id, (Flags(flags as u8), acknowledged), precise_now(), &TABLES);
    }
    0
}

/// [`pipeline::claim_key`], of a protocol by its number. Returns the number of an [`Insert`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn claim_key(proto: u32) -> u32 {
    match Proto::from_number(proto as u8) {
        Some(proto) => pipeline::claim_key(proto, &TABLES) as u32,
        None => Insert::Full as u32,
    }
}
