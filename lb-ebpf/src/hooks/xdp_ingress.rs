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
    nat::{self, Hops},
    packet::{Headers, Network, PacketWindow as _, Part},
    pipeline::{self, Arrival, ToBackend},
    verdict::{DropReason, PassReason, Verdict},
};

use super::{Note, answer, maps::KernelTables, note_mark, now_for, trace, window::XdpWindow};

/// The packet could not be changed.
const FAILED: Verdict = Verdict::Drop(DropReason::RewriteFailed);

#[xdp]
pub fn xdp_ingress(ctx: XdpContext) -> u32 {
    let verdict = match parse(&ctx) {
        // What needs more than other addresses is TC's, which sees it next.
        Ok((Part::First | Part::Later, _)) => return xdp_action::XDP_PASS,
        Ok((Part::Whole, packet)) if packet.ttl <= 1 => return xdp_action::XDP_PASS,
        // First of all, before anything is counted or begun: without room for a note, the whole work is TC's.
        Ok(_) if !make_room(&ctx) => Verdict::Pass(PassReason::NoMetadata),
        Ok((Part::Whole, packet)) => match forward(&ctx, &packet) {
            Ok(Sent::WithNote) => return xdp_action::XDP_PASS,
            Ok(Sent::Without(action)) => {
                take_room_back(&ctx);
                return action;
            }
            Err(verdict) => {
                take_room_back(&ctx);
                verdict
            }
        },
        Err(reason) => Verdict::Pass(reason),
    };
    super::xdp_action(verdict)
}

/// Reads the headers of a packet, and whether others of its datagram follow it.
#[inline(always)]
fn parse(ctx: &XdpContext) -> Result<(Part, Headers), PassReason> {
    let window = XdpWindow(ctx);
    let network = Network::of_frame(&window)?;
    Ok((network.part, Headers::parse_transport(&window, &network)?))
}

/// What became of a packet that goes to a backend.
enum Sent {
    /// It goes up, with a note.
    WithNote,
    /// The action is all there is to it.
    Without(u32),
}

#[inline(always)]
fn forward(ctx: &XdpContext, packet: &Headers) -> Result<Sent, Verdict> {
    let bytes = (ctx.data_end() - ctx.data()) as u32;
    let arrival = Arrival { ifindex: ctx.ingress_ifindex() as u32, packets: 1, bytes, now: now_for(packet.flags) };
    let ToBackend { to, backend, id } = pipeline::ingress(packet, arrival, &KernelTables)?;

    let window = XdpWindow(ctx);
    if answer::is_limited(&window, packet, backend)
        && let Some(mtu) = answer::frame_exceeds(ctx, bytes, backend.ifindex)
    {
        write_note(ctx, id, u32::from(mtu)).ok_or(FAILED)?;
        return Ok(Sent::WithNote);
    }
    trace::packet(ctx, packet, id);
    nat::apply_whole(&window, packet, &to, Hops::to(backend)).ok_or(FAILED)?;
    match backend.hand_off() {
        HandOff::Peer | HandOff::Neighbour => {
            window.write(0, backend.mac).and_then(|()| window.write(6, backend.source_mac)).ok_or(FAILED)?;
            if matches!(backend.hand_off(), HandOff::Peer) && backend.takes_xdp() {
                // SAFETY: takes numbers only.
                return Ok(Sent::Without(unsafe { bpf_redirect(backend.ifindex, 0) as u32 }));
            }
            write_note(ctx, id, 0).ok_or(FAILED)?;
            Ok(Sent::WithNote)
        }
        HandOff::Routing => Ok(Sent::Without(xdp_action::XDP_PASS)),
    }
}

/// Makes room for a [`Note`] in front of the packet; returns whether the driver allows it.
#[inline(always)]
fn make_room(ctx: &XdpContext) -> bool {
    // SAFETY: the context is valid as long as the program runs.
    unsafe { bpf_xdp_adjust_meta(ctx.as_ptr().cast(), -(size_of::<Note>() as i32)) == 0 }
}

/// Leaves a packet as it came.
#[inline(always)]
fn take_room_back(ctx: &XdpContext) {
    // SAFETY: as above; what was made can be taken back.
    let _never_fails = unsafe { bpf_xdp_adjust_meta(ctx.as_ptr().cast(), size_of::<Note>() as i32) };
}

/// Tells `tc_ingress` to whom the packet goes, or that it is too big for this MTU.
#[inline(always)]
fn write_note(ctx: &XdpContext, backend: BackendId, mtu: u32) -> Option<()> {
    let (from, to) = (ctx.metadata(), ctx.data());
    if from + size_of::<Note>() > to {
        return None;
    }
    // SAFETY: compared with the end of the metadata right above.
    unsafe { (from as *mut Note).write(Note { mark: note_mark(), backend, mtu }) };
    Some(())
}
