//! What is seldom: fragments, ICMP errors, and packets that are answered instead of sent on.
//!
//! The programs leave these to functions that begin when the usual way has ended, with a stack of their own: a program and
//! all that it calls have 512 bytes together, and the verifier would follow each of these through every state of the usual
//! way.

use aya_ebpf::{bindings::TC_ACT_SHOT, programs::TcContext};
use lb_ebpf::{
    abi::{FlowKey, FragmentEntry, Port, Proto},
    nat,
    packet::{Headers, PacketWindow as _},
    pipeline,
    tables::Tables as _,
    verdict::{DropReason, PassReason, Verdict},
    wire::Ipv4Hdr,
};

use super::{
    answer,
    maps::KernelTables,
    now, tc_action,
    tc_ingress::{self, FAILED},
    tc_reply,
    window::{Link, SkbWindow},
};

/// By which side of the balancer a packet came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// From clients.
    Front,
    /// From backends.
    Reply,
}

/// What is left to be done when the usual way has ended. Told by a word of the socket buffer that belongs to the program
/// (`cb`), not by what a function returns: the verifier would know that value, and follow each of them through the whole
/// program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Detour(u32);

impl Detour {
    /// Nothing.
    const NONE: Self = Self(0);
    /// The packet is a fragment that is not the first of its datagram.
    const FRAGMENT: Self = Self(1);
    /// The packet may be an ICMP error.
    const ERROR: Self = Self(2);
    /// What became of the packet is to be noted for the fragments that follow it.
    pub const FIRST_FRAGMENT: Self = Self(3);
    /// The sender is to be told that the packet may pass no more routers.
    pub const EXPIRED: Self = Self(4);

    /// The sender is to be told that the packet is too big for a device of this MTU.
    #[inline(always)]
    pub const fn too_big(mtu: u16) -> Self {
        Self((mtu as u32) << 16 | Self::EXPIRED.0)
    }

    /// Asks for a detour, for now; returns the action that stands if nothing comes of it.
    #[inline(always)]
    pub fn take(self, ctx: &TcContext) -> i32 {
        // SAFETY: the context is valid as long as the program runs.
        unsafe { core::ptr::write_volatile(&raw mut (*ctx.skb.skb).cb[0], self.0) };
        TC_ACT_SHOT as i32
    }

    /// Returns which one was asked for.
    #[inline(always)]
    fn taken(ctx: &TcContext) -> Self {
        // SAFETY: as above.
        Self(unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).cb[0]) })
    }

    /// Takes the detour that a verdict of the parser asks for.
    ///
    /// # Errors
    /// The verdict, if none.
    #[inline(always)]
    pub fn after(ctx: &TcContext, reason: PassReason) -> Result<i32, Verdict> {
        match reason {
            PassReason::Fragment => Ok(Self::FRAGMENT.take(ctx)),
            PassReason::Protocol => Ok(Self::ERROR.take(ctx)),
            reason => Err(Verdict::Pass(reason)),
        }
    }
}

/// Takes a packet through the usual way, and what is left to be done after it.
#[inline(always)]
pub fn run(ctx: &TcContext, link: Link, door: Door, usual: impl FnOnce() -> i32) -> i32 {
    SkbWindow(ctx).gather(link);
    Detour::NONE.take(ctx);
    if is_first_fragment(ctx, link) {
        prepare(ctx, link);
    }
    let action = usual();
    match Detour::taken(ctx) {
        Detour::NONE => action,
        Detour::FRAGMENT => fragment(ctx, link, door),
        Detour::ERROR => error(ctx, link, door),
        Detour::FIRST_FRAGMENT => {
            remember(door);
            action
        }
        Detour(refused) => answer::refuse(ctx, link, door, (refused >> 16) as u16),
    }
}

/// Returns whether others of its datagram follow a packet, and none went before.
#[inline(always)]
pub fn is_first_fragment(ctx: &TcContext, link: Link) -> bool {
    const FRAGMENT: usize = core::mem::offset_of!(Ipv4Hdr, fragment);
    let word = SkbWindow(ctx).read::<u16>(link.header_len() + FRAGMENT);
    word.is_some_and(|word| u16::from_be(word) & 0x3fff == 0x2000)
}

/// Notes what a first fragment is known by while it still has the addresses by which it came.
#[inline(never)]
fn prepare(ctx: &TcContext, link: Link) {
    let window = SkbWindow(ctx);
    if let Ok(network) = window.network(link)
        && let (Some(key), Ok(packet)) = (network.fragment_key(), Headers::parse_transport(&window, &network))
        && let Some(scratch) = KernelTables.scratch()
    {
        let first = scratch.first_fragment();
        first.key = key;
        first.flow = packet.key;
    }
}

#[inline(never)]
fn remember(door: Door) {
    match door {
        Door::Front => pipeline::remember_ingress(now(), &KernelTables),
        Door::Reply => pipeline::remember_egress(now(), &KernelTables),
    }
}

#[inline(never)]
fn fragment(ctx: &TcContext, link: Link, door: Door) -> i32 {
    try_fragment(ctx, link, door).unwrap_or_else(tc_action)
}

/// Sends a fragment after the first of its datagram.
#[inline(always)]
fn try_fragment(ctx: &TcContext, link: Link, door: Door) -> Result<i32, Verdict> {
    let window = SkbWindow(ctx);
    let network = window.network(link).map_err(Verdict::Pass)?;
    let Some(key) = network.fragment_key() else { return Err(Verdict::Pass(PassReason::Fragment)) };
    let arrival = window.arrival_of_one();
    match door {
        Door::Front => {
            let (first, backend) = pipeline::ingress_fragment(&key, arrival, &KernelTables)?;
            rewrite(ctx, &network.ip, network.l3, first)?;
            tc_ingress::send(ctx, link, backend)
        }
        Door::Reply => {
            let first = pipeline::egress_fragment(&key, arrival, &KernelTables)?;
            rewrite(ctx, &network.ip, network.l3, first)?;
            tc_reply::send(ctx, link, first.ifindex)
        }
    }
}

#[inline(always)]
fn rewrite(ctx: &TcContext, ip: &Ipv4Hdr, l3: usize, first: &FragmentEntry) -> Result<(), Verdict> {
    if pipeline::is_at_its_end(ip.ttl) {
        // Nothing is said about later fragments (RFC 1812, 4.3.2.7).
        return Err(Verdict::Drop(DropReason::TtlExpired));
    }
    let none = Port::new(0);
    // Ports and protocol do not count here.
    let from = FlowKey::new(ip.source(), none, ip.destination(), none, Proto::Udp);
    let to = FlowKey::new(first.source, none, first.destination, none, Proto::Udp);
    let change = nat::Change::between(&from, &to).addresses;
    nat::apply_network(&SkbWindow(ctx), l3, &to, change).ok_or(FAILED)
}

#[inline(never)]
fn error(ctx: &TcContext, link: Link, door: Door) -> i32 {
    try_error(ctx, link, door).unwrap_or_else(tc_action)
}

/// Sends an ICMP error on to the sender of what it is about.
#[inline(always)]
fn try_error(ctx: &TcContext, link: Link, door: Door) -> Result<i32, Verdict> {
    let window = SkbWindow(ctx);
    let error = window.parse_error(link).map_err(Verdict::Pass)?;
    let arrival = window.arrival_of_one();
    match door {
        Door::Front => {
            let (to, backend) = pipeline::ingress_error(&error, arrival, &KernelTables)?;
            error.apply(&SkbWindow(ctx), &to).ok_or(FAILED)?;
            tc_ingress::send(ctx, link, backend)
        }
        Door::Reply => {
            let (to, ifindex) = pipeline::egress_error(&error, arrival, &KernelTables)?;
            error.apply(&SkbWindow(ctx), &to).ok_or(FAILED)?;
            tc_reply::send(ctx, link, ifindex)
        }
    }
}
