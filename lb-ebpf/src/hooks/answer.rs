//! ICMP errors of this host's own, to the sender of a packet that cannot be sent on, as a router answers.

use aya_ebpf::{
    bindings::bpf_check_mtu_flags::BPF_MTU_CHK_SEGS,
    helpers::{bpf_check_mtu, bpf_redirect, bpf_skb_change_tail},
    macros::map,
    maps::PerCpuArray,
    programs::TcContext,
};
use lb_ebpf::{
    abi::KtimeNs,
    checksum::Delta,
    packet::{Headers, PacketWindow as _},
    pipeline,
    verdict::{DropReason, Verdict},
    wire::{ETH_LEN, ETHERTYPE_IPV4, EthHdr, ICMP_LEN, IPV4_MIN_LEN, IcmpHdr, Ipv4Hdr},
};

use super::{
    maps::KernelTables,
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
/// As the host's own messages, RFC 1812, 4.3.2.5: internetwork control.
const TYPE_OF_SERVICE: u8 = 0xc0;
const DO_NOT_FRAGMENT: u16 = 0x4000;

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
    // A negative one: the device is gone, which the redirect will find out.
    if fits > 0 { Some(if mtu > 0xffff { 0xffff } else { mtu as u16 }) } else { None }
}

/// Ends a packet, if it is of a flow, and tells its sender why where that is allowed: not about later fragments, nor about
/// headers with options, nor beyond the budget (RFC 1812, 4.3.2.7 and 4.3.2.8). It is too big for a device of `mtu` bytes,
/// or, where that is zero, may pass no more routers.
#[inline(never)]
pub fn refuse(ctx: &TcContext, link: Link, door: Door, mtu: u16) -> i32 {
    let window = SkbWindow(ctx);
    let Ok(packet) = window.network(link).and_then(|network| Headers::parse_transport(&window, &network)) else {
        return tc_action(FAILED);
    };
    let verdict = match (mtu, door) {
        (0, Door::Front) => pipeline::ingress_expired(&packet.key, &KernelTables),
        (0, Door::Reply) => pipeline::egress_expired(&packet.key, &KernelTables),
        _ => Verdict::Drop(DropReason::TooBig),
    };
    let action = tc_action(verdict);
    if matches!(verdict, Verdict::Drop(_)) && packet.l4 - packet.l3 == IPV4_MIN_LEN && is_within_budget() {
        let from = match door {
            Door::Front => Some(packet.key.destination),
            Door::Reply => pipeline::gateway(&packet.key, packet.proto, &KernelTables),
        };
        return from.and_then(|from| answer(ctx, link, from.v4_wire(), mtu)).unwrap_or(action);
    }
    action
}

/// Turns a packet into an answer to its sender, and sends it back where it came from.
#[inline(always)]
fn answer(ctx: &TcContext, link: Link, from: u32, mtu: u16) -> Option<i32> {
    let window = SkbWindow(ctx);
    let l3 = link.header_len();
    let asked = window.read::<Ipv4Hdr>(l3)?;
    let quoted = window.read::<[u32; QUOTED_WORDS]>(l3)?;
    let len = (l3 + ANSWER_LEN) as u32;
    // SAFETY: the context is valid as long as the program runs, and what was read is not looked at again.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, len, 0) } != 0 || ctx.pull_data(len).is_err() {
        return None;
    }

    if matches!(link, Link::Ethernet) {
        let eth = window.read::<EthHdr>(0)?;
        let back = EthHdr { destination: eth.source, source: eth.destination, ether_type: ETHERTYPE_IPV4.to_be() };
        window.write(0, back)?;
    }
    let ip = Ipv4Hdr {
        version_ihl: 0x45,
        tos: TYPE_OF_SERVICE,
        total_len: (ANSWER_LEN as u16).to_be(),
        id: 0,
        fragment: DO_NOT_FRAGMENT.to_be(),
        ttl: 64,
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
    window.write(l3 + IPV4_MIN_LEN + ICMP_LEN, quoted)?;
    // SAFETY: the context is valid as long as the program runs; the helper takes numbers only.
    Some(unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32 })
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
