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
    abi::{Backend, BackendId, HandOff},
    nat::{self, Hops},
    packet::{Headers, Network, PacketWindow as _, Part},
    pipeline::{self, Arrival, ToBackend},
    verdict::{DropReason, PassReason, Verdict},
};

use super::{
    Note, answer,
    cookie::{self, ByXdp},
    maps::KernelTables,
    note_mark, now_for, trace,
    window::XdpWindow,
};

/// The packet could not be changed.
const FAILED: Verdict = Verdict::Drop(DropReason::RewriteFailed);

#[xdp]
pub fn xdp_ingress(ctx: XdpContext) -> u32 {
    let verdict = match parse(&ctx) {
        // What needs more than other addresses is TC's, which sees it next.
        Ok((Part::First | Part::Later, _)) => return xdp_action::XDP_PASS,
        Ok((Part::Whole, packet)) if packet.ttl <= 1 => return xdp_action::XDP_PASS,
        // First of all, before anything is counted or begun: without room for a note, the whole work is TC's.
        Ok(_) if !takes_notes(&ctx) => Verdict::Pass(PassReason::NoMetadata),
        Ok((Part::Whole, packet)) => match forward(&ctx, &packet) {
            Ok(action) => return action,
            Err(Verdict::Answer) if cookie::may_answer_by_xdp(&ctx) => return cookie::answer_by_xdp(&ctx),
            Err(verdict) => verdict,
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

#[inline(always)]
fn forward(ctx: &XdpContext, packet: &Headers) -> Result<u32, Verdict> {
    let bytes = (ctx.data_end() - ctx.data()) as u32;
    let arrival = Arrival { ifindex: ctx.ingress_ifindex() as u32, packets: 1, bytes, now: now_for(packet.flags) };
    let tables = KernelTables(ByXdp(ctx));
    let ToBackend { to, backend, id } = pipeline::ingress(packet, arrival, &tables)?;

    let window = XdpWindow(ctx);
    let too_big = match answer::is_limited(&window, packet, backend) {
        true => answer::frame_exceeds(ctx, bytes, backend.ifindex),
        false => None,
    };
    let goes_with_note = too_big.is_some() || needs_note(backend);
    // As long as the packet is as it came: TC finds its flow, and does the work once more.
    if goes_with_note && !make_room(ctx) {
        return Err(Verdict::Pass(PassReason::NoMetadata));
    }
    if let Some(mtu) = too_big {
        return write_note(ctx, id, u32::from(mtu));
    }
    trace::packet(ctx, packet, id);
    nat::apply_whole(&window, packet, &to, Hops::to(backend)).ok_or(FAILED)?;
    match backend.hand_off() {
        HandOff::Peer | HandOff::Neighbour => {
            window.write(0, backend.mac).and_then(|()| window.write(6, backend.source_mac)).ok_or(FAILED)?;
        }
        HandOff::Routing => return Ok(xdp_action::XDP_PASS),
        HandOff::Local => {}
    }
    if goes_with_note {
        return write_note(ctx, id, 0);
    }
    // SAFETY: takes numbers only.
    Ok(unsafe { bpf_redirect(backend.ifindex, 0) as u32 })
}

/// Returns whether TC has to be told where a packet to a backend goes: it hands over what XDP cannot, and would take an
/// endpoint of this host for a frontend.
#[inline(always)]
fn needs_note(backend: &Backend) -> bool {
    match backend.hand_off() {
        HandOff::Peer => !backend.takes_xdp(),
        HandOff::Neighbour | HandOff::Local => true,
        HandOff::Routing => false,
    }
}

/// Returns whether the driver has room for a [`Note`] in front of packets. One that has none says that what is there
/// begins behind the packet.
///
/// # Source
/// include/net/xdp.h, `xdp_data_meta_unsupported`.
#[inline(always)]
fn takes_notes(ctx: &XdpContext) -> bool {
    ctx.metadata() <= ctx.data()
}

/// Makes room for a [`Note`] in front of the packet; returns whether there was any left.
#[inline(always)]
fn make_room(ctx: &XdpContext) -> bool {
    // SAFETY: the context is valid as long as the program runs.
    unsafe { bpf_xdp_adjust_meta(ctx.as_ptr().cast(), -(size_of::<Note>() as i32)) == 0 }
}

/// Sends a packet up, and tells `tc_ingress` to whom it goes, or that it is too big for this MTU.
///
/// # Errors
/// [`FAILED`].
#[inline(always)]
fn write_note(ctx: &XdpContext, backend: BackendId, mtu: u32) -> Result<u32, Verdict> {
    let (from, to) = (ctx.metadata(), ctx.data());
    if from + size_of::<Note>() > to {
        return Err(FAILED);
    }
    // SAFETY: compared with the end of the metadata right above.
    unsafe { (from as *mut Note).write(Note { mark: note_mark(), backend, mtu }) };
    Ok(xdp_action::XDP_PASS)
}
