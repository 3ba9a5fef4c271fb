//! TC egress at the devices by which clients are met: the reply door of backends that are this host itself.
//!
//! What its own stack answers enters by no device, and leaves by where the host's routing leads it: there it is rewritten to
//! come from the frontend, and goes on. The host has sent it, so that no hop is taken off. Checksums are unfinished here
//! as a rule, and segments not cut yet: both are the kernel's to change and to finish.
//!
//! Every packet that the host sends by such a device passes here while there is such a backend; all but its replies go on
//! after one look into a small table, also what another door has rewritten and redirected.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use lb_ebpf::{nat::Hops, pipeline, verdict::Verdict};

use super::{
    maps::TABLES,
    slow::{self, Detour, Door},
    tc_action,
    tc_ingress::rewrite,
    trace,
    window::{Link, SkbWindow},
};

#[classifier]
pub fn tc_local(ctx: TcContext) -> i32 {
    slow::run(&ctx, Link::Ethernet, Door::Local, || reply(&ctx, Link::Ethernet))
}

#[classifier]
pub fn tc_local_l3(ctx: TcContext) -> i32 {
    slow::run(&ctx, Link::None, Door::Local, || reply(&ctx, Link::None))
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
    let client = pipeline::egress_local(&packet, || window.arrival(&packet), &TABLES)?;
    rewrite(ctx, &packet, &client.to, Hops::NONE)?;
    if slow::is_first_fragment(ctx) {
        Detour::FIRST_FRAGMENT.take(ctx);
    }
    trace::packet(ctx, &packet, TC_ACT_UNSPEC as u32);
    // What others do with packets that leave is theirs.
    Ok(TC_ACT_UNSPEC)
}
