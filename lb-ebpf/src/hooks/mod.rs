//! The programs. Each reads its context, asks the pipeline, and performs what it decided; nothing is decided here.

mod answer;
mod apart;
mod atomic;
mod cb;
mod cookie;
mod maps;
mod slow;
mod sock_connect;
mod tc_ingress;
mod tc_local;
mod tc_reply;
mod trace;
mod window;
mod xdp_ingress;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
};
use lb_ebpf::{
    abi::KtimeNs,
    tcp_state::Flags,
    verdict::{PassReason, Verdict},
};

/// What an XDP program leaves in front of a packet for `tc_ingress`: the packet is rewritten, and goes to this backend; or it
/// is not, and its sender is to be told that it is too big.
#[repr(C)]
#[derive(Clone, Copy)]
struct Note {
    /// [`note_mark`]; zero says nothing.
    mark: u32,
    backend: u32,
    /// Zero, or what the way to the backend takes.
    mtu: u32,
}

/// A number of this instance alone, written by the agent before the object is loaded: two instances may have programs
/// on the same device, and must not read each other's notes.
#[unsafe(no_mangle)]
static NOTE_MARK: u32 = 0;

/// Returns what marks a [`Note`] as this instance's.
#[inline(always)]
fn note_mark() -> u32 {
    // SAFETY: a static of this object. Volatile, as its value is written behind the compiler's back.
    unsafe { core::ptr::read_volatile(&raw const NOTE_MARK) }
}

/// Returns the time at tick resolution, which costs a fraction of the precise one.
#[inline(always)]
fn now() -> KtimeNs {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Returns the time for a packet with these TCP flags: precise where a handshake is timed.
#[inline(always)]
fn now_for(flags: Flags) -> KtimeNs {
    if flags.any(Flags::SYN) { precise_now() } else { now() }
}

/// Returns the time as precisely as the kernel knows it.
#[inline(always)]
fn precise_now() -> KtimeNs {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts a verdict and turns it into a TC action. A pass lets other programs on the device run.
#[inline(always)]
fn tc_action(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass(reason) => {
            maps::count(reason.index());
            TC_ACT_UNSPEC
        }
        Verdict::Drop(reason) => {
            maps::count(reason.index());
            TC_ACT_SHOT as i32
        }
        // Taken as detours before they come here.
        Verdict::Answer | Verdict::Acknowledge => TC_ACT_SHOT as i32,
    }
}

/// Counts a verdict and turns it into an XDP action. What is passed is counted by TC, which sees it next, but for the
/// reason that only XDP knows.
#[inline(always)]
fn xdp_action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass(reason) => {
            if matches!(reason, PassReason::NoMetadata) {
                maps::count(reason.index());
            }
            xdp_action::XDP_PASS
        }
        Verdict::Drop(reason) => {
            maps::count(reason.index());
            xdp_action::XDP_DROP
        }
        // By TC, which asks the listener again.
        Verdict::Answer | Verdict::Acknowledge => xdp_action::XDP_PASS,
    }
}
