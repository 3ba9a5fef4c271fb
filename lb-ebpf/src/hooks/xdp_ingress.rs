//! XDP at an uplink: the front door at the driver, for devices that deliver whole checksums.
//!
//! A rewritten packet goes straight into the backend's device where that takes XDP frames. Elsewhere it goes up with a
//! note for `tc_ingress` on the same device, which hands it over after GRO: so it never meets routing and netfilter.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    helpers::{bpf_redirect, bpf_xdp_adjust_meta},
    macros::xdp,
    programs::XdpContext,
};
use lb_ebpf::{
    abi::{BackendId, HandOff},
    nat,
    packet::{Headers, PacketWindow as _},
    pipeline::{self, Arrival, ToBackend},
    verdict::{DropReason, PassReason, Verdict},
};

use super::{NOTE_MAGIC, Note, maps::KernelTables, now, window::XdpWindow};

#[xdp]
pub fn xdp_ingress(ctx: XdpContext) -> u32 {
    match forward(&ctx) {
        Ok(action) => action,
        Err(verdict) => super::xdp_action(verdict),
    }
}

/// The yardstick: what entering and leaving a program costs.
#[xdp]
pub fn xdp_empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[inline(always)]
fn forward(ctx: &XdpContext) -> Result<u32, Verdict> {
    let window = XdpWindow(ctx);
    let packet = Headers::parse(&window).map_err(Verdict::Pass)?;
    let bytes = (ctx.data_end() - ctx.data()) as u32;
    let arrival = Arrival { ifindex: ctx.ingress_ifindex() as u32, bytes, now: now() };
    let ToBackend { to, backend, id } = pipeline::ingress(&packet, arrival, &KernelTables)?;

    let direct = matches!(backend.hand_off(), HandOff::Peer) && backend.takes_xdp();
    if !direct && !matches!(backend.hand_off(), HandOff::Routing) {
        leave_note(ctx, id)?;
    }
    if !matches!(backend.hand_off(), HandOff::Routing) {
        let written = window.write(0, backend.mac).and_then(|()| window.write(6, backend.source_mac));
        written.ok_or(Verdict::Drop(DropReason::RewriteFailed))?;
    }
    nat::apply_whole(&window, &packet, &to).ok_or(Verdict::Drop(DropReason::RewriteFailed))?;
    if direct {
        // SAFETY: takes numbers only.
        return Ok(unsafe { bpf_redirect(backend.ifindex, 0) as u32 });
    }
    Ok(xdp_action::XDP_PASS)
}

/// Writes a [`Note`] in front of the packet, which is untouched as yet: a driver without room for it leaves the whole
/// work to TC.
#[inline(always)]
fn leave_note(ctx: &XdpContext, backend: BackendId) -> Result<(), Verdict> {
    let no_room = Verdict::Pass(PassReason::NoMetadata);
    // SAFETY: the context is valid as long as the program runs.
    if unsafe { bpf_xdp_adjust_meta(ctx.as_ptr().cast(), -(size_of::<Note>() as i32)) } != 0 {
        return Err(no_room);
    }
    let (from, to) = (ctx.metadata(), ctx.data());
    if from + size_of::<Note>() > to {
        return Err(no_room);
    }
    // SAFETY: compared with the end of the metadata right above.
    unsafe { (from as *mut Note).write(Note { magic: NOTE_MAGIC, backend }) };
    Ok(())
}
