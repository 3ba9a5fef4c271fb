//! What is seldom: fragments, ICMP errors, and packets that are answered instead of sent on.
//!
//! The programs leave these to functions that begin when the usual way has ended, with a stack of their own: a program and
//! all that it calls have 512 bytes together, and the verifier would follow each of these through every state of the usual
//! way.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use lb_ebpf::{
    abi::{FlowKey, FragmentEntry, HandOff, Port, Proto},
    nat::{self, Hops},
    packet::{Headers, Network, PacketWindow as _, Part},
    pipeline,
    tables::Tables as _,
    verdict::{DropReason, PassReason, Verdict},
    wire::ExtensionHdr,
};

use super::{
    answer,
    cb::Word,
    cookie,
    maps::TABLES,
    now, tc_action,
    tc_ingress::{self, FAILED, tell_sum},
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
    /// From this host, which is a backend itself.
    Local,
}

/// What is left to be done when the usual way has ended. Told by a word of the socket buffer, not by what a function
/// returns: the verifier would know that value, and follow each of them through the whole program.
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
    /// The packet is a SYN to be answered by the cookie at hand.
    pub const ANSWER: Self = Self(5);
    /// The packet may acknowledge a cookie.
    pub const ACKNOWLEDGE: Self = Self(6);

    /// The sender is to be told that the packet is too big for a device of this MTU.
    #[inline(always)]
    pub const fn too_big(mtu: u16) -> Self {
        Self((mtu as u32) << 16 | Self::EXPIRED.0)
    }

    /// Asks for a detour, for now; returns the action that stands if nothing comes of it.
    #[inline(always)]
    pub fn take(self, ctx: &TcContext) -> i32 {
        Word::Detour.write(ctx, self.0);
        TC_ACT_SHOT as i32
    }

    /// Returns which one was asked for.
    #[inline(always)]
    fn taken(ctx: &TcContext) -> Self {
        Self(Word::Detour.read(ctx))
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
    // What leaves by a VLAN has met the door at its own device, and a tag that tells only a priority is to stay.
    let is_of_vlan = if door == Door::Local { SkbWindow(ctx).has_tag() } else { SkbWindow(ctx).is_of_vlan() };
    if is_of_vlan {
        return tc_action(Verdict::Pass(PassReason::Vlan));
    }
    SkbWindow(ctx).gather(link);
    Detour::NONE.take(ctx);
    Word::Fragment.write(ctx, 0);
    // Linux 6.1 takes the flags that IPv6 keeps here for its own when it looks for a socket, and what GRO has left for a VRF.
    Word::ChainId.write(ctx, 0);
    if may_be_first_fragment(ctx, link) {
        prepare(ctx, link);
    }
    if door == Door::Front && may_pass_no_more(ctx, link) {
        lift(ctx, link);
    }
    let action = finish(ctx, link, door, usual());
    // What is left to the host is left as it came: a loop of the network would have no end otherwise.
    if door == Door::Front && is_lifted(ctx) && action == TC_ACT_UNSPEC {
        set_ttl(ctx, link, NO_MORE);
    }
    action
}

/// Takes a packet through what is left to be done after the usual way, of which this is the action.
#[inline(always)]
fn finish(ctx: &TcContext, link: Link, door: Door, action: i32) -> i32 {
    match Detour::taken(ctx) {
        Detour::NONE => action,
        Detour::FRAGMENT => fragment(ctx, link, door),
        Detour::ERROR => error(ctx, link, door),
        Detour::FIRST_FRAGMENT => {
            remember(door);
            action
        }
        // Only at the front door: no SYN of a backend's is answered.
        Detour::ANSWER if door == Door::Front => cookie::answer(ctx, link),
        Detour::ACKNOWLEDGE if door == Door::Front => cookie::acknowledge(ctx, link),
        // What this host sends goes where it leads it.
        Detour(_) if door == Door::Local => action,
        Detour(refused) => answer::refuse(ctx, link, door, (refused >> 16) as u16),
    }
}

/// Tells the sender of a packet, which has come no further than XDP, that it is too big.
#[inline(always)]
pub fn refuse(ctx: &TcContext, link: Link, mtu: u16) -> i32 {
    SkbWindow(ctx).gather(link);
    answer::refuse(ctx, link, Door::Front, mtu)
}

/// Returns whether others of its datagram may follow a packet, and none went before: those of IPv4 do.
#[inline(always)]
fn may_be_first_fragment(ctx: &TcContext, link: Link) -> bool {
    // Version and lengths; then the fragment field of IPv4, or what follows the header of IPv6.
    let Some([first, second]) = SkbWindow(ctx).read::<[u32; 2]>(link.header_len()) else { return false };
    match first.to_ne_bytes()[0] >> 4 {
        6 => ExtensionHdr::is_followed(second.to_ne_bytes()[2]),
        _ => u32::from_be(second) & 0x3fff == 0x2000,
    }
}

/// Returns whether a packet may pass no more routers.
#[inline(always)]
fn may_pass_no_more(ctx: &TcContext, link: Link) -> bool {
    let Some([first, second, third]) = SkbWindow(ctx).read::<[u32; 3]>(link.header_len()) else { return false };
    let ttl = match first.to_ne_bytes()[0] >> 4 {
        6 => second.to_ne_bytes()[3],
        _ => third.to_ne_bytes()[0],
    };
    pipeline::is_at_its_end(ttl)
}

/// Times to live of what may pass no more routers, and of what may pass this one.
const NO_MORE: u8 = 1;
const ONE_MORE: u8 = 2;

/// Lets a packet pass one more router, as if this host were none, where its backend is this host. Were another one chosen,
/// it would come there at its end.
#[inline(never)]
fn lift(ctx: &TcContext, link: Link) {
    let window = SkbWindow(ctx);
    if let Ok(network) = window.network(link)
        && let Ok(packet) = Headers::parse_transport(&window, &network)
        && pipeline::ends_here(&packet.key, &TABLES)
    {
        set_ttl(ctx, link, ONE_MORE);
        Word::Fragment.write(ctx, Word::Fragment.read(ctx) | LIFTED);
    }
}

#[inline(never)]
fn set_ttl(ctx: &TcContext, link: Link, ttl: u8) {
    let window = SkbWindow(ctx);
    if let Ok(network) = window.network(link)
        && let Some(header) = nat::set_ttl(&window, (network.version, network.l3), ttl)
    {
        tell_sum(ctx, header);
    }
}

/// What [`Word::Fragment`] says.
const FIRST: u32 = 1;
const LIFTED: u32 = 2;

/// Returns whether a packet is noted as a first fragment.
#[inline(always)]
pub fn is_first_fragment(ctx: &TcContext) -> bool {
    Word::Fragment.read(ctx) & FIRST != 0
}

/// Returns whether a packet was let pass one more router.
#[inline(always)]
fn is_lifted(ctx: &TcContext) -> bool {
    Word::Fragment.read(ctx) & LIFTED != 0
}

/// Notes what a first fragment is known by while it still has the addresses by which it came.
#[inline(never)]
fn prepare(ctx: &TcContext, link: Link) {
    let window = SkbWindow(ctx);
    if let Ok(network) = window.network(link)
        && matches!(network.part, Part::First)
        && let (Some(key), Ok(packet)) = (network.fragment_key(&window), Headers::parse_transport(&window, &network))
        && let Some(scratch) = TABLES.scratch()
    {
        let first = scratch.first_fragment();
        first.key = key;
        first.flow = packet.key;
        Word::Fragment.write(ctx, FIRST);
    }
}

#[inline(never)]
fn remember(door: Door) {
    match door {
        Door::Front => pipeline::remember_ingress(now(), &TABLES),
        Door::Reply | Door::Local => pipeline::remember_egress(now(), &TABLES),
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
    let Some(key) = network.fragment_key(&window) else { return Err(Verdict::Pass(PassReason::Fragment)) };
    let arrival = window.arrival_of_one();
    match door {
        Door::Front => {
            let (first, backend) = pipeline::ingress_fragment(&key, arrival, &TABLES)?;
            if !matches!(backend.hand_off(), HandOff::Local) {
                may_pass(&network)?;
            }
            rewrite(ctx, &network, first, Hops::to(backend))?;
            tc_ingress::send(ctx, link, backend)
        }
        Door::Reply => {
            let first = pipeline::egress_fragment(&key, arrival, &TABLES)?;
            may_pass(&network)?;
            rewrite(ctx, &network, first, Hops::ONE)?;
            tc_reply::send(ctx, link, first.ifindex)
        }
        Door::Local => {
            let first = pipeline::egress_fragment(&key, arrival, &TABLES)?;
            rewrite(ctx, &network, first, Hops::NONE)?;
            Ok(TC_ACT_UNSPEC)
        }
    }
}

/// Ends a fragment that may pass no more routers. Nothing is said about later ones (RFC 1812, 4.3.2.7).
#[inline(always)]
fn may_pass(network: &Network) -> Result<(), Verdict> {
    match pipeline::is_at_its_end(network.ttl) {
        true => Err(Verdict::Drop(DropReason::TtlExpired)),
        false => Ok(()),
    }
}

#[inline(always)]
fn rewrite(ctx: &TcContext, network: &Network, first: &FragmentEntry, hops: Hops) -> Result<(), Verdict> {
    let none = Port::new(0);
    // Ports and protocol do not count here.
    let (source, destination) = network.addresses(&SkbWindow(ctx)).ok_or(FAILED)?;
    let from = FlowKey::new(source, none, destination, none, Proto::Udp);
    let to = FlowKey::new(first.source, none, first.destination, none, Proto::Udp);
    let at = (network.version, network.l3);
    let header = nat::apply_network(&SkbWindow(ctx), at, &from, (&to, hops)).ok_or(FAILED)?;
    tell_sum(ctx, header);
    Ok(())
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
            let (to, backend) = pipeline::ingress_error(&error, arrival, &TABLES)?;
            tell_sum(ctx, error.apply(&SkbWindow(ctx), &to, Hops::to(backend)).ok_or(FAILED)?);
            tc_ingress::send(ctx, link, backend)
        }
        Door::Reply => {
            let (to, ifindex) = pipeline::egress_error(&error, arrival, &TABLES)?;
            tell_sum(ctx, error.apply(&SkbWindow(ctx), &to, Hops::ONE).ok_or(FAILED)?);
            tc_reply::send(ctx, link, ifindex)
        }
        Door::Local => {
            let (to, _) = pipeline::egress_error(&error, arrival, &TABLES)?;
            tell_sum(ctx, error.apply(&SkbWindow(ctx), &to, Hops::NONE).ok_or(FAILED)?);
            Ok(TC_ACT_UNSPEC)
        }
    }
}
