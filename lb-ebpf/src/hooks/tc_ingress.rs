//! TC ingress at an uplink: the front door that keeps GRO, GSO and checksum offload.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_OK},
    helpers::{bpf_csum_update, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_head},
    macros::classifier,
    programs::TcContext,
};
use lb_ebpf::{
    abi::{Backend, FlowKey, HandOff, Proto},
    checksum::Delta,
    nat::{self, Hops},
    packet::{Headers, PacketWindow as _},
    pipeline::{self, ToBackend},
    verdict::{DropReason, Verdict},
    wire::{ETH_LEN, EthHdr},
};

use super::{
    Note, answer,
    cookie::ByTc,
    maps,
    maps::KernelTables,
    note_mark,
    slow::{self, Detour, Door},
    tc_action, trace,
    window::{Link, SkbWindow},
};

/// The packet could not be changed.
pub const FAILED: Verdict = Verdict::Drop(DropReason::RewriteFailed);

#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    if let Some((backend, mtu)) = noted(&ctx) {
        return match (SkbWindow(&ctx).is_of_vlan(), mtu) {
            (true, _) => tc_action(Verdict::Drop(DropReason::HiddenTag)),
            (false, 0) => hand_off(backend),
            (false, mtu) => slow::refuse(&ctx, Link::Ethernet, mtu as u16),
        };
    }
    slow::run(&ctx, Link::Ethernet, Door::Front, || forward(&ctx, Link::Ethernet))
}

#[classifier]
pub fn tc_ingress_l3(ctx: TcContext) -> i32 {
    slow::run(&ctx, Link::None, Door::Front, || forward(&ctx, Link::None))
}

/// The usual way. A function of its own in the object, so that what is called after it has the stack for itself.
#[inline(never)]
fn forward(ctx: &TcContext, link: Link) -> i32 {
    try_forward(ctx, link).unwrap_or_else(tc_action)
}

#[inline(always)]
fn try_forward(ctx: &TcContext, link: Link) -> Result<i32, Verdict> {
    let window = SkbWindow(ctx);
    let packet = match window.parse(link) {
        Ok(packet) => packet,
        Err(reason) => return Detour::after(ctx, reason),
    };
    if pipeline::is_at_its_end(packet.ttl) {
        return Ok(Detour::EXPIRED.take(ctx));
    }
    let tables = KernelTables(ByTc(ctx));
    let ToBackend { to, backend, id: _ } = match pipeline::ingress(&packet, window.arrival(&packet), &tables) {
        Ok(forward) => forward,
        Err(Verdict::Answer) => return Ok(Detour::ANSWER.take(ctx)),
        Err(Verdict::Acknowledge) => return Ok(Detour::ACKNOWLEDGE.take(ctx)),
        Err(verdict) => return Err(verdict),
    };
    if answer::is_limited(&window, &packet, backend)
        && let Some(mtu) = answer::exceeds(ctx, link, backend.ifindex)
    {
        return Ok(Detour::too_big(mtu).take(ctx));
    }
    rewrite(ctx, &packet, &to, Hops::to(backend))?;
    if slow::is_first_fragment(ctx) {
        Detour::FIRST_FRAGMENT.take(ctx);
    }
    let action = send(ctx, link, backend)?;
    trace::packet(ctx, &packet, action as u32);
    Ok(action)
}

/// Sends a rewritten packet to a backend.
///
/// # Errors
/// [`FAILED`].
#[inline(always)]
pub fn send(ctx: &TcContext, link: Link, backend: &Backend) -> Result<i32, Verdict> {
    address(ctx, link, backend)?;
    Ok(hand_off(backend))
}

/// Writes the link header by which a packet reaches a backend.
#[inline(always)]
fn address(ctx: &TcContext, link: Link, backend: &Backend) -> Result<(), Verdict> {
    match backend.hand_off() {
        HandOff::Peer | HandOff::Neighbour => write_link(ctx, link, [backend.mac, backend.source_mac]),
        HandOff::Routing | HandOff::Local => Ok(()),
    }
}

/// Writes destination and source of the link header, and makes one where there is none: what redirects to an Ethernet
/// device wants one.
#[inline(always)]
pub fn write_link(ctx: &TcContext, link: Link, addresses: [[u8; 6]; 2]) -> Result<(), Verdict> {
    let window = SkbWindow(ctx);
    let written = match link {
        Link::Ethernet => window.write(0, addresses),
        Link::None => {
            let [destination, source] = addresses;
            // SAFETY: the context is valid as long as the program runs.
            let ether_type = unsafe { (*ctx.skb.skb).protocol as u16 };
            // SAFETY: as above.
            if unsafe { bpf_skb_change_head(ctx.skb.skb, ETH_LEN as u32, 0) } != 0 {
                return Err(FAILED);
            }
            window.write(0, EthHdr { destination, source, ether_type })
        }
    };
    written.ok_or(FAILED)
}

/// Writes other addresses and ports. The kernel's helpers change the checksum of TCP and UDP, because only the kernel
/// knows whether it is whole (`skb->ip_summed`).
#[inline(always)]
pub fn rewrite(ctx: &TcContext, packet: &Headers, to: &FlowKey, hops: Hops) -> Result<(), Verdict> {
    let Some(change) = nat::apply_headers(&SkbWindow(ctx), packet, to, hops) else { return Err(FAILED) };
    tell_sum(ctx, change.header);
    let (check, flags) = match packet.proto {
        Proto::Tcp => (packet.l4 + nat::TCP_CHECK, 0),
        Proto::Udp => (packet.l4 + nat::UDP_CHECK, u64::from(BPF_F_MARK_MANGLED_0)),
    };
    replace(ctx, check, change.addresses, flags | u64::from(BPF_F_PSEUDO_HDR)).ok_or(FAILED)?;
    if packet.key.source_port != to.source_port || packet.key.destination_port != to.destination_port {
        replace(ctx, check, change.ports, flags).ok_or(FAILED)?;
    }
    Ok(())
}

/// Tells the kernel what a changed header adds to the sum over the whole packet that the device may have given it
/// (`CHECKSUM_COMPLETE`): by IPv6 alone, whose header has no checksum that would make up for it. By a changed pseudo-header,
/// `bpf_l4_csum_replace` takes as much off as if there were one.
#[inline(always)]
pub fn tell_sum(ctx: &TcContext, header: Delta) {
    if header != Delta::ZERO {
        // SAFETY: the context is valid as long as the program runs.
        let _there_is_none = unsafe { bpf_csum_update(ctx.skb.skb, header.wsum()) };
    }
}

/// `bpf_l4_csum_replace` with size zero takes a difference instead of two values.
#[inline(always)]
pub fn replace(ctx: &TcContext, check: usize, delta: Delta, flags: u64) -> Option<()> {
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
        HandOff::Routing | HandOff::Local => TC_ACT_OK as i32,
    }
}

/// Returns the backend that an XDP program of this instance on the same device has already rewritten the packet for; or has
/// not, as it is too big for this MTU.
#[inline(always)]
fn noted(ctx: &TcContext) -> Option<(&'static Backend, u32)> {
    // SAFETY: the context is valid as long as the program runs.
    let (from, to) = unsafe { ((*ctx.skb.skb).data_meta as usize, (*ctx.skb.skb).data as usize) };
    if from + size_of::<Note>() > to {
        return None;
    }
    // SAFETY: compared with the end of the metadata right above.
    let note = unsafe { (from as *const Note).read() };
    if note.mark == 0 || note.mark != note_mark() {
        return None;
    }
    // It is said once: a backend that sends the packet on would find it led back here.
    // SAFETY: as above; metadata is the program's to write.
    unsafe { (from as *mut u32).write(0) };
    maps::backend(note.backend).map(|backend| (backend, note.mtu))
}
