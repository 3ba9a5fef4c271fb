//! TC ingress at the device by which a backend's packets enter the host: the reply door.

use aya_ebpf::{helpers::bpf_redirect_neigh, macros::classifier, programs::TcContext};
use lb_ebpf::{
    pipeline::{self, ToClient},
    verdict::Verdict,
};

use super::{
    maps::KernelTables,
    tc_action,
    tc_ingress::{IPV4_FRAME, rewrite, write_link},
    trace,
    window::{Link, SkbWindow},
};

#[classifier]
pub fn tc_reply(ctx: TcContext) -> i32 {
    match reply(&ctx, Link::Ethernet) {
        Ok(action) => action,
        Err(verdict) => tc_action(verdict),
    }
}

#[classifier]
pub fn tc_reply_l3(ctx: TcContext) -> i32 {
    match reply(&ctx, Link::None) {
        Ok(action) => action,
        Err(verdict) => tc_action(verdict),
    }
}

/// Once rewritten, the source is an address of this host, which its routing would drop as a martian: so the packet
/// leaves by redirect, through the device by which the flow came.
#[inline(always)]
fn reply(ctx: &TcContext, link: Link) -> Result<i32, Verdict> {
    let window = SkbWindow(ctx);
    let packet = window.parse(link).map_err(Verdict::Pass)?;
    let ToClient { to, ifindex } = pipeline::egress(&packet, window.arrival(&packet), &KernelTables)?;
    rewrite(ctx, &packet, &to)?;
    if matches!(link, Link::None) {
        write_link(ctx, link, IPV4_FRAME)?;
    }
    // SAFETY: no parameters are passed, so the kernel looks up route and neighbour, and writes the link header.
    let action = unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 };
    trace::packet(ctx, &packet, action as u32);
    Ok(action)
}
