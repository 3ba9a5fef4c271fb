//! The atomic operations.
//!
//! `AtomicU64::fetch_add` does not exist for the BPF target, and LLVM 22 turns a relaxed `atomic_xadd` whose result is
//! used into an addition without a result, so that every connection would draw the same ticket.

/// Adds one and returns what was there before.
#[inline(always)]
pub fn fetch_increment(counter: *mut u64) -> u64 {
    fetch_add(counter, 1)
}

/// Adds one.
#[inline(always)]
pub fn increment(counter: *mut u64) {
    let _before = fetch_add(counter, 1);
}

/// Takes one away.
#[inline(always)]
pub fn decrement(counter: *mut u64) {
    let _before = fetch_add(counter, u64::MAX);
}

/// Adds and returns what was there before; wraps.
///
/// # Source
/// BPF_ATOMIC with BPF_ADD | BPF_FETCH: kernel 5.12, commit 5ca419f2864a.
#[inline(always)]
fn fetch_add(counter: *mut u64, mut value: u64) -> u64 {
    // SAFETY: `counter` points to an aligned u64 of a map, as the verifier checks.
    unsafe {
        core::arch::asm!(
            "{value} = atomic_fetch_add((u64 *)({counter} + 0), {value})",
            value = inout(reg) value,
            counter = in(reg) counter,
            options(nostack),
        );
    }
    value
}
