//! ICMP and ICMPv6 errors of this host's own, to the sender of a packet that cannot be sent on, as a router answers.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_check_mtu_flags::BPF_MTU_CHK_SEGS,
    helpers::{bpf_check_mtu, bpf_redirect, bpf_skb_change_tail},
    macros::map,
    maps::PerCpuArray,
    programs::{TcContext, XdpContext},
};
use lb_ebpf::{
    abi::{Address, Backend, HandOff, KtimeNs},
    checksum::Delta,
    packet::{Headers, PacketWindow, Version},
    pipeline,
    verdict::{DropReason, Verdict},
    wire::{ETH_LEN, EthHdr, ICMP_LEN, IPV4_MIN_LEN, IPV6_LEN, IcmpHdr, Ipv4Hdr, Ipv6Hdr},
};

use super::{
    maps::TABLES,
    now,
    slow::Door,
    tc_action,
    tc_ingress::FAILED,
    window::{Link, SkbWindow},
};

/// Answers of a processor in a second at most: as many as the host's own (`net.ipv4.icmp_msgs_per_sec`).
const ANSWERS_PER_SECOND: u32 = 1000;
/// Packets up to this size fit everywhere: below what IPv6 asks of every link.
const SMALL: usize = ETH_LEN + 1280;
/// What is quoted of a packet, in words: its IP header and eight bytes.
const QUOTED_WORDS: usize = (IPV4_MIN_LEN + 8) / 4;
/// Bytes of an answer, from its IP header on.
const ANSWER_LEN: usize = IPV4_MIN_LEN + ICMP_LEN + QUOTED_WORDS * 4;
/// Bytes of the longest header of IPv6 about which there is an answer: with the one extension that big packets have.
const WITH_FRAGMENT_LEN: usize = IPV6_LEN + 8;
/// The same as [`QUOTED_WORDS`] of IPv6. What every receiver needs; RFC 4443 asks for more where there is more.
const QUOTED_WORDS_V6: usize = (IPV6_LEN + 8) / 4;
/// Of a packet with a fragment header.
const QUOTED_WORDS_FRAGMENT: usize = (WITH_FRAGMENT_LEN + 8) / 4;
/// As the host's own messages, RFC 1812, 4.3.2.5: internetwork control.
const TYPE_OF_SERVICE: u8 = 0xc0;
const DO_NOT_FRAGMENT: u16 = 0x4000;
/// How far an answer may go.
const HOPS: u8 = 64;

/// How many answers this processor has sent since when. Never seen by the agent.
#[map]
static ANSWERS: PerCpuArray<Budget> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
#[derive(Clone, Copy)]
struct Budget {
    since: KtimeNs,
    spent: u32,
    _pad: u32,
}

/// Returns whether a packet may be too big for the way to its backend. What a container takes is its own affair: a redirect
/// into it asks for no MTU, and what ends here has no way before it. The kernel's routing cuts what may be cut.
#[inline(always)]
pub fn is_limited<W: PacketWindow>(window: &W, packet: &Headers, backend: &Backend) -> bool {
    match backend.hand_off() {
        HandOff::Peer | HandOff::Local => false,
        HandOff::Neighbour => true,
        HandOff::Routing => !may_be_cut(window, packet),
    }
}

/// Returns whether routers may send a packet on in fragments.
#[inline(always)]
fn may_be_cut<W: PacketWindow>(window: &W, packet: &Headers) -> bool {
    match window.read::<Ipv4Hdr>(packet.l3) {
        Some(ip) => ip.version() == 4 && u16::from_be(ip.fragment) & DO_NOT_FRAGMENT == 0,
        None => false,
    }
}

/// Returns the MTU of a device, in bytes, if a frame of `len` bytes that XDP has is too big to leave by it.
#[inline(always)]
pub fn frame_exceeds(ctx: &XdpContext, len: u32, ifindex: u32) -> Option<u16> {
    if len as usize <= SMALL {
        return None;
    }
    let mut mtu = len - ETH_LEN as u32;
    // SAFETY: the context is valid as long as the program runs; the kernel reads a length there, and writes the MTU.
    let fits = unsafe { bpf_check_mtu(ctx.as_ptr(), ifindex, &raw mut mtu, 0, 0) };
    told(fits, mtu)
}

/// Reads what the kernel says of a length. A negative outcome: the device is gone, which the redirect will find out.
#[inline(always)]
fn told(outcome: i64, mtu: u32) -> Option<u16> {
    if outcome > 0 { Some(if mtu > 0xffff { 0xffff } else { mtu as u16 }) } else { None }
}

/// Returns the MTU of a device, in bytes, if a packet is too big to leave by it.
#[inline(always)]
pub fn exceeds(ctx: &TcContext, link: Link, ifindex: u32) -> Option<u16> {
    if (ctx.len() as usize) <= SMALL {
        return None;
    }
    // Merged segments are judged by the kernel. For others it would take the link header of this device for that of the
    // other, unless it is told how long the packet is without.
    // SAFETY: the context is valid as long as the program runs.
    let (mut mtu, flags) = match unsafe { (*ctx.skb.skb).gso_size } {
        0 => (ctx.len() - link.header_len() as u32, 0),
        _ => (0, u64::from(BPF_MTU_CHK_SEGS)),
    };
    // SAFETY: as above; the kernel reads a length there, and writes the MTU.
    let fits = unsafe { bpf_check_mtu(ctx.skb.skb.cast(), ifindex, &raw mut mtu, 0, flags) };
    told(fits, mtu)
}

/// Ends a packet, if it is of a flow, and tells its sender why where that is allowed: not about later fragments, nor about
/// headers with options or extensions other than that of fragments, nor beyond the budget (RFC 1812, 4.3.2.7 and 4.3.2.8;
/// RFC 4443, 2.4). It is too big for a device of `mtu` bytes, or, where that is zero, may pass no more routers.
#[inline(never)]
pub fn refuse(ctx: &TcContext, link: Link, door: Door, mtu: u16) -> i32 {
    let window = SkbWindow(ctx);
    let Ok(network) = window.network(link) else { return tc_action(FAILED) };
    let Ok(packet) = Headers::parse_transport(&window, &network) else { return tc_action(FAILED) };
    let verdict = match (mtu, door) {
        (0, Door::Front) => pipeline::ingress_expired(&packet.key, &TABLES),
        // Nothing of this host's own is refused here.
        (0, Door::Reply | Door::Local) => pipeline::egress_expired(&packet.key, &TABLES),
        _ => Verdict::Drop(DropReason::TooBig),
    };
    let action = tc_action(verdict);
    let header_len = packet.l4 - packet.l3;
    let may_answer = match network.version {
        Version::V4 => header_len == IPV4_MIN_LEN,
        Version::V6 => header_len == IPV6_LEN || header_len == WITH_FRAGMENT_LEN,
    };
    if !matches!(verdict, Verdict::Drop(_)) || !may_answer || !is_within_budget() {
        return action;
    }
    let from = match door {
        Door::Front => packet.key.destination,
        Door::Reply | Door::Local => match pipeline::gateway(&packet.key, packet.proto, &TABLES) {
            Some(from) => from,
            None => return action,
        },
    };
    let sent = match (network.version, header_len) {
        (Version::V4, _) => answer_v4(ctx, link, from.v4_wire(), mtu),
        (Version::V6, IPV6_LEN) => answer_v6::<QUOTED_WORDS_V6>(ctx, link, &from, mtu),
        (Version::V6, _) => answer_v6::<QUOTED_WORDS_FRAGMENT>(ctx, link, &from, mtu),
    };
    if sent { back(ctx) } else { action }
}

/// Sends a packet back where it came from.
#[inline(always)]
fn back(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid as long as the program runs; the helper takes numbers only.
    unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32 }
}

/// Makes a packet as long as an answer, whose link header leads back. What was read of it before is not to be looked at
/// again.
#[inline(always)]
fn turn(ctx: &TcContext, link: Link, len: usize) -> Option<()> {
    let len = (link.header_len() + len) as u32;
    // SAFETY: the context is valid as long as the program runs.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, len, 0) } != 0 || ctx.pull_data(len).is_err() {
        return None;
    }
    let window = SkbWindow(ctx);
    match link {
        Link::Ethernet => {
            let eth = window.read::<EthHdr>(0)?;
            window.write(0, [eth.source, eth.destination])
        }
        Link::None => Some(()),
    }
}

/// Turns a packet into an answer to its sender; returns whether it could.
#[inline(always)]
fn answer_v4(ctx: &TcContext, link: Link, from: u32, mtu: u16) -> bool {
    try_answer_v4(ctx, link, from, mtu).is_some()
}

#[inline(always)]
fn try_answer_v4(ctx: &TcContext, link: Link, from: u32, mtu: u16) -> Option<()> {
    let window = SkbWindow(ctx);
    let l3 = link.header_len();
    let asked = window.read::<Ipv4Hdr>(l3)?;
    let quoted = window.read::<[u32; QUOTED_WORDS]>(l3)?;
    turn(ctx, link, ANSWER_LEN)?;

    let ip = Ipv4Hdr {
        version_ihl: 0x45,
        tos: TYPE_OF_SERVICE,
        total_len: (ANSWER_LEN as u16).to_be(),
        id: 0,
        fragment: DO_NOT_FRAGMENT.to_be(),
        ttl: HOPS,
        protocol: IcmpHdr::PROTOCOL,
        check: 0,
        source: from,
        destination: asked.source,
    };
    let first = u32::from_ne_bytes([ip.version_ihl, ip.tos, 0, 0]) | u32::from(ip.total_len) << 16;
    let third = u32::from_ne_bytes([ip.ttl, ip.protocol, 0, 0]);
    let sum = Delta::sum(&[first, u32::from(ip.fragment) << 16, third, ip.source, ip.destination]);
    window.write(l3, Ipv4Hdr { check: sum.apply(0), ..ip })?;

    let (kind, code) = match mtu {
        0 => (IcmpHdr::TIME_EXCEEDED, 0),
        _ => (IcmpHdr::UNREACHABLE, IcmpHdr::FRAGMENTATION_NEEDED),
    };
    let mtu = mtu.to_be();
    let first = u32::from_ne_bytes([kind, code, 0, 0]);
    let check = Delta::sum(&[first, u32::from(mtu) << 16]).and(Delta::sum(&quoted)).apply(0);
    window.write(l3 + IPV4_MIN_LEN, IcmpHdr { kind, code, check, rest: [0, mtu] })?;
    window.write(l3 + IPV4_MIN_LEN + ICMP_LEN, quoted)
}

/// The same for IPv6.
#[inline(never)]
fn answer_v6<const QUOTED: usize>(ctx: &TcContext, link: Link, from: &Address, mtu: u16) -> bool {
    try_answer_v6::<QUOTED>(ctx, link, from, mtu).is_some()
}

#[inline(always)]
fn try_answer_v6<const QUOTED: usize>(ctx: &TcContext, link: Link, from: &Address, mtu: u16) -> Option<()> {
    let window = SkbWindow(ctx);
    let l3 = link.header_len();
    let destination = window.read::<Ipv6Hdr>(l3)?.source;
    let quoted = window.read::<[u32; QUOTED]>(l3)?;
    let payload_len = (ICMP_LEN + QUOTED * 4) as u16;
    turn(ctx, link, IPV6_LEN + ICMP_LEN + QUOTED * 4)?;

    let ip = Ipv6Hdr {
        version_class_label: (6_u32 << 28).to_be(),
        payload_len: payload_len.to_be(),
        next: IcmpHdr::PROTOCOL_V6,
        hop_limit: HOPS,
        source: from.v6_wire(),
        destination,
    };
    window.write(l3, ip)?;

    let kind = match mtu {
        0 => IcmpHdr::TIME_EXCEEDED_V6,
        _ => IcmpHdr::TOO_BIG_V6,
    };
    let mtu = mtu.to_be();
    let pseudo_header = Delta::sum(&[u32::from(payload_len).to_be(), u32::from(IcmpHdr::PROTOCOL_V6).to_be()])
        .and(Delta::sum(&ip.source))
        .and(Delta::sum(&ip.destination));
    let first = u32::from_ne_bytes([kind, 0, 0, 0]);
    let message = Delta::sum(&[first, u32::from(mtu) << 16]).and(Delta::sum(&quoted));
    let check = pseudo_header.and(message).apply(0);
    window.write(l3 + IPV6_LEN, IcmpHdr { kind, code: 0, check, rest: [0, mtu] })?;
    window.write(l3 + IPV6_LEN + ICMP_LEN, quoted)
}

#[inline(always)]
fn is_within_budget() -> bool {
    const SECOND: KtimeNs = 1_000_000_000;
    let Some(budget) = ANSWERS.get_ptr_mut(0) else { return false };
    // SAFETY: this processor's own value.
    let budget = unsafe { &mut *budget };
    let now = now();
    if now.wrapping_sub(budget.since) >= SECOND {
        (budget.since, budget.spent) = (now, 0);
    }
    budget.spent = budget.spent.saturating_add(1);
    budget.spent <= ANSWERS_PER_SECOND
}
