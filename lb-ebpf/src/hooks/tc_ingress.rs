//! TC ingress at an uplink: the front door that keeps GRO, GSO and checksum offload.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_OK},
    helpers::{bpf_redirect_neigh, bpf_redirect_peer},
    macros::classifier,
    programs::TcContext,
};
use lb_ebpf::{
    abi::{Backend, FlowKey, HandOff, Proto},
    checksum::Delta,
    nat,
    packet::{Headers, PacketWindow as _},
    pipeline::{self, Arrival, ToBackend},
    verdict::{DropReason, Verdict},
};

use super::{NOTE_MAGIC, Note, maps, maps::KernelTables, now, tc_action, window::SkbWindow};

#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    if let Some(backend) = noted(&ctx) {
        return hand_off(backend);
    }
    match forward(&ctx) {
        Ok(action) => action,
        Err(verdict) => tc_action(verdict),
    }
}

#[inline(always)]
fn forward(ctx: &TcContext) -> Result<i32, Verdict> {
    let window = SkbWindow(ctx);
    let packet = window.parse().map_err(Verdict::Pass)?;
    let ToBackend { to, backend, id: _ } = pipeline::ingress(&packet, arrival(ctx), &KernelTables)?;

    if matches!(backend.hand_off(), HandOff::Peer) {
        let written = window.write(0, backend.mac).and_then(|()| window.write(6, backend.source_mac));
        if written.is_none() {
            return Err(Verdict::Drop(DropReason::RewriteFailed));
        }
    }
    rewrite(ctx, &packet, &to)?;
    Ok(hand_off(backend))
}

/// Returns by which device a packet came, how long it is, and when.
#[inline(always)]
pub fn arrival(ctx: &TcContext) -> Arrival {
    // SAFETY: the context is valid as long as the program runs.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    Arrival { ifindex, bytes: ctx.len(), now: now() }
}

/// Writes other addresses and ports. The kernel's helpers change the checksum of TCP and UDP, because only the kernel
/// knows whether it is whole (`skb->ip_summed`).
#[inline(always)]
pub fn rewrite(ctx: &TcContext, packet: &Headers, to: &FlowKey) -> Result<(), Verdict> {
    let failed = Verdict::Drop(DropReason::RewriteFailed);
    let Some(change) = nat::apply_headers(&SkbWindow(ctx), packet, to) else { return Err(failed) };
    let (check, flags) = match packet.proto {
        Proto::Tcp => (packet.l4 + nat::TCP_CHECK, 0),
        Proto::Udp => (packet.l4 + nat::UDP_CHECK, u64::from(BPF_F_MARK_MANGLED_0)),
    };
    replace(ctx, check, change.addresses, flags | u64::from(BPF_F_PSEUDO_HDR)).ok_or(failed)?;
    if packet.key.source_port != to.source_port || packet.key.destination_port != to.destination_port {
        replace(ctx, check, change.ports, flags).ok_or(failed)?;
    }
    Ok(())
}

/// `bpf_l4_csum_replace` with size zero takes a difference instead of two values.
#[inline(always)]
fn replace(ctx: &TcContext, check: usize, delta: Delta, flags: u64) -> Option<()> {
    ctx.l4_csum_replace(check, 0, u64::from(delta.wsum()), flags).ok()
}

/// Gives a rewritten packet to its backend.
#[inline(always)]
fn hand_off(backend: &Backend) -> i32 {
    match backend.hand_off() {
        // SAFETY: takes numbers only.
        HandOff::Peer => unsafe { bpf_redirect_peer(backend.ifindex, 0) as i32 },
        // SAFETY: no parameters are passed, so the kernel looks up route and neighbour.
        HandOff::Neighbour => unsafe { bpf_redirect_neigh(backend.ifindex, core::ptr::null_mut(), 0, 0) as i32 },
        HandOff::Routing => TC_ACT_OK as i32,
    }
}

/// Returns the backend that an XDP program on the same device has already rewritten the packet for.
#[inline(always)]
fn noted(ctx: &TcContext) -> Option<&'static Backend> {
    // SAFETY: the context is valid as long as the program runs.
    let (from, to) = unsafe { ((*ctx.skb.skb).data_meta as usize, (*ctx.skb.skb).data as usize) };
    if from + size_of::<Note>() > to {
        return None;
    }
    // SAFETY: compared with the end of the metadata right above.
    let note = unsafe { (from as *const Note).read() };
    if note.magic != NOTE_MAGIC {
        return None;
    }
    maps::backend(note.backend)
}
