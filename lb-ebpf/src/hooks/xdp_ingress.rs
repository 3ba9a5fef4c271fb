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

use super::{Note, maps::KernelTables, note_mark, now, window::XdpWindow};

/// The packet could not be changed.
const FAILED: Verdict = Verdict::Drop(DropReason::RewriteFailed);

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
    let packet = Headers::parse(&XdpWindow(ctx)).map_err(Verdict::Pass)?;
    // First of all, before anything is counted or begun: without room for a note, the whole work is TC's.
    make_room(ctx)?;
    let bytes = (ctx.data_end() - ctx.data()) as u32;
    let arrival = Arrival { ifindex: ctx.ingress_ifindex() as u32, packets: 1, bytes, now: now() };
    let ToBackend { to, backend, id } = pipeline::ingress(&packet, arrival, &KernelTables)?;

    let window = XdpWindow(ctx);
    nat::apply_whole(&window, &packet, &to).ok_or(FAILED)?;
    match backend.hand_off() {
        HandOff::Peer | HandOff::Neighbour => {
            window.write(0, backend.mac).and_then(|()| window.write(6, backend.source_mac)).ok_or(FAILED)?;
            if matches!(backend.hand_off(), HandOff::Peer) && backend.takes_xdp() {
                // SAFETY: takes numbers only.
                return Ok(unsafe { bpf_redirect(backend.ifindex, 0) as u32 });
            }
            write_note(ctx, id)?;
        }
        HandOff::Routing => {}
    }
    Ok(xdp_action::XDP_PASS)
}

/// Makes room for a [`Note`] in front of the packet, and writes there that it says nothing.
#[inline(always)]
fn make_room(ctx: &XdpContext) -> Result<(), Verdict> {
    let no_room = Verdict::Pass(PassReason::NoMetadata);
    // SAFETY: the context is valid as long as the program runs.
    if unsafe { bpf_xdp_adjust_meta(ctx.as_ptr().cast(), -(size_of::<Note>() as i32)) } != 0 {
        return Err(no_room);
    }
    put_note(ctx, Note { mark: 0, backend: 0 }).ok_or(no_room)
}

/// Tells `tc_ingress` to whom the packet goes.
#[inline(always)]
fn write_note(ctx: &XdpContext, backend: BackendId) -> Result<(), Verdict> {
    put_note(ctx, Note { mark: note_mark(), backend }).ok_or(FAILED)
}

#[inline(always)]
fn put_note(ctx: &XdpContext, note: Note) -> Option<()> {
    let (from, to) = (ctx.metadata(), ctx.data());
    if from + size_of::<Note>() > to {
        return None;
    }
    // SAFETY: compared with the end of the metadata right above.
    unsafe { (from as *mut Note).write(note) };
    Some(())
}
