//! TC ingress at the device by which a backend's packets enter the host: the reply door.

use aya_ebpf::{helpers::bpf_redirect_neigh, macros::classifier, programs::TcContext};
use lb_ebpf::{
    nat::Hops,
    pipeline::{self, ToClient},
    verdict::Verdict,
};

use super::{
    answer,
    maps::KernelTables,
    slow::{self, Detour, Door},
    tc_action,
    tc_ingress::{rewrite, write_link},
    trace,
    window::{Link, SkbWindow},
};

#[classifier]
pub fn tc_reply(ctx: TcContext) -> i32 {
    slow::run(&ctx, Link::Ethernet, Door::Reply, || reply(&ctx, Link::Ethernet))
}

#[classifier]
pub fn tc_reply_l3(ctx: TcContext) -> i32 {
    slow::run(&ctx, Link::None, Door::Reply, || reply(&ctx, Link::None))
}

/// The usual way.
#[inline(never)]
fn reply(ctx: &TcContext, link: Link) -> i32 {
    try_reply(ctx, link).unwrap_or_else(tc_action)
}

#[inline(always)]
fn try_reply(ctx: &TcContext, link: Link) -> Result<i32, Verdict> {
    let window = SkbWindow(ctx);
    let packet = match window.parse(link) {
        Ok(packet) => packet,
        Err(reason) => return Detour::after(ctx, reason),
    };
    if pipeline::is_at_its_end(packet.ttl) {
        return Ok(Detour::EXPIRED.take(ctx));
    }
    let ToClient { to, ifindex } = pipeline::egress(&packet, window.arrival(&packet), &KernelTables)?;
    if let Some(mtu) = answer::exceeds(ctx, link, ifindex) {
        return Ok(Detour::too_big(mtu).take(ctx));
    }
    rewrite(ctx, &packet, &to, Hops::ONE)?;
    if slow::is_first_fragment(ctx) {
        Detour::FIRST_FRAGMENT.take(ctx);
    }
    let action = send(ctx, link, ifindex)?;
    trace::packet(ctx, &packet, action as u32);
    Ok(action)
}

/// Sends a rewritten packet to its client. Its source is an address of this host, which its routing would drop as a
/// martian: so the packet leaves by redirect, through the device by which the flow came.
///
/// # Errors
/// `FAILED`.
#[inline(always)]
pub fn send(ctx: &TcContext, link: Link, ifindex: u32) -> Result<i32, Verdict> {
    if matches!(link, Link::None) {
        write_link(ctx, link, [[0; 6]; 2])?;
    }
    // SAFETY: no parameters are passed, so the kernel looks up route and neighbour, and writes the link header.
    Ok(unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 })
}
