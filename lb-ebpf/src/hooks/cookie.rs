//! SYN cookies: the listener is asked, and a SYN is turned into the SYN-ACK that the listener would send.

use core::ptr::null_mut;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_CSUM_LEVEL_QUERY, BPF_F_PSEUDO_HDR, bpf_sock, bpf_sock_tuple, tcphdr, xdp_action},
    cty::c_void,
    helpers::{
        bpf_csum_level, bpf_redirect, bpf_sk_release, bpf_skb_change_tail, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
        bpf_tcp_gen_syncookie, bpf_xdp_adjust_tail,
    },
    programs::{TcContext, XdpContext},
};
use lb_ebpf::{
    abi::{Address, NETNS_HERE, Proto},
    checksum::Delta,
    cookie::{ANSWER_WORDS, CHECK_WORD, Question, Sum, SynCookie, TCP_WORDS, accept, lead, note_issued, spend},
    nat::{Hops, TCP_CHECK},
    packet::{Network, PacketWindow, Part, Version},
    pipeline::{Arrival, ToBackend},
    tables::Tables as _,
    verdict::{DropReason, PassReason, Verdict},
    wire::{ETH_LEN, EthHdr, IPV4_MIN_LEN, IPV6_LEN, Ipv4Hdr, Ipv6Hdr, Ports, TCP_MIN_LEN, TcpHdr, Wire},
};

use super::{
    maps::{self, KernelTables, TABLES},
    now, precise_now, tc_action,
    tc_ingress::{FAILED, replace, rewrite, send},
    window::{Link, SkbWindow, XdpWindow},
    xdp_action as count_xdp,
};

/// Who asks listeners for a program.
pub trait Listeners {
    /// Asks for the cookie of the question at hand.
    fn syn_cookie(&self, netns: u32) -> bool;
    /// Asks whether the segment of the question at hand acknowledges a cookie.
    fn is_syn_cookie(&self, netns: u32) -> bool;
}

/// Nobody: for programs that no SYN meets.
pub struct Nobody;

impl Listeners for Nobody {
    #[inline(always)]
    fn syn_cookie(&self, _netns: u32) -> bool {
        false
    }
    #[inline(always)]
    fn is_syn_cookie(&self, _netns: u32) -> bool {
        false
    }
}

/// Asks for a TC program.
pub struct ByTc<'a>(pub &'a TcContext);

impl Listeners for ByTc<'_> {
    #[inline(always)]
    fn syn_cookie(&self, netns: u32) -> bool {
        tc_syn_cookie(self.0, netns) >= 0
    }
    #[inline(always)]
    fn is_syn_cookie(&self, netns: u32) -> bool {
        tc_is_syn_cookie(self.0, netns) == 0
    }
}

/// Asks for an XDP program. Acknowledgements are left to TC, which sees them next.
pub struct ByXdp<'a>(pub &'a XdpContext);

impl Listeners for ByXdp<'_> {
    #[inline(always)]
    fn syn_cookie(&self, netns: u32) -> bool {
        xdp_syn_cookie(self.0, netns) >= 0
    }
    #[inline(always)]
    fn is_syn_cookie(&self, _netns: u32) -> bool {
        false
    }
}

/// No listener, or no answer.
const NONE: i64 = -1;
/// The network namespace of the device at which the program is: `BPF_F_CURRENT_NETNS`, include/uapi/linux/bpf.h.
const CURRENT_NETNS: u64 = u64::MAX;
/// More than where a TCP header begins.
const MOST_BEFORE: usize = 0x3ff;
/// More bytes than its options have, and as many as they can have.
const MOST_LONG: usize = 0x3f;
const MOST_OPTIONS: usize = TCP_WORDS * 4 - TCP_MIN_LEN;

#[inline(never)]
fn tc_syn_cookie(ctx: &TcContext, netns: u32) -> i64 {
    syn_cookie(ctx.as_ptr(), &SkbWindow(ctx), netns)
}

#[inline(never)]
fn xdp_syn_cookie(ctx: &XdpContext, netns: u32) -> i64 {
    syn_cookie(ctx.as_ptr(), &XdpWindow(ctx), netns)
}

#[inline(never)]
fn tc_is_syn_cookie(ctx: &TcContext, netns: u32) -> i64 {
    let Some(question) = TABLES.question() else { return NONE };
    let question = question.value();
    let sk = look_up(ctx.as_ptr(), question, netns);
    if sk.is_null() {
        return NONE;
    }
    let (ip, ip_len) = ip_header(question);
    let tcp = (&raw mut question.tcp).cast::<tcphdr>();
    // SAFETY: the socket is there until it is released; the headers are as long as is said.
    let answer = unsafe { bpf_tcp_check_syncookie(sk.cast(), ip, ip_len, tcp, TCP_MIN_LEN as u32) };
    // SAFETY: it was looked up, and is not used any more.
    unsafe { bpf_sk_release(sk.cast()) };
    answer
}

/// Adds the SYN's options, of which the segment size is one, to the question, and asks.
#[inline(always)]
fn syn_cookie<W: PacketWindow>(ctx: *mut c_void, window: &W, netns: u32) -> i64 {
    let Some(question) = TABLES.question() else { return NONE };
    let question = question.value();
    // What is read from a map is any number to the verifier. 6.1 learns the least length by this addition alone: "R4 min
    // value is outside of the allowed memory range".
    let options_len = (question.tcp_len as usize).wrapping_sub(TCP_MIN_LEN) & MOST_LONG;
    if options_len > MOST_OPTIONS {
        return NONE;
    }
    let (l4, tcp_len) = (question.l4 as usize & MOST_BEFORE, options_len + TCP_MIN_LEN);
    for place in TCP_MIN_LEN / 4..TCP_WORDS {
        if place * 4 >= tcp_len {
            break;
        }
        let Some(word) = window.read::<u32>(l4 + place * 4) else { return NONE };
        question.tcp[place] = word;
    }
    let sk = look_up(ctx, question, netns);
    if sk.is_null() {
        return NONE;
    }
    let (ip, ip_len) = ip_header(question);
    let tcp = (&raw mut question.tcp).cast::<tcphdr>();
    // SAFETY: the socket is there until it is released; the headers are as long as is said.
    let answer = unsafe { bpf_tcp_gen_syncookie(sk.cast(), ip, ip_len, tcp, tcp_len as u32) };
    // SAFETY: it was looked up, and is not used any more.
    unsafe { bpf_sk_release(sk.cast()) };
    if let Some(cookie) = SynCookie::of(answer) {
        question.answer = cookie;
    }
    answer
}

#[inline(always)]
fn is_v4(question: &Question) -> bool {
    question.ip[0].to_ne_bytes()[0] >> 4 == 4
}

#[inline(always)]
fn ip_header(question: &mut Question) -> (*mut c_void, u32) {
    let len = if is_v4(question) { IPV4_MIN_LEN } else { IPV6_LEN };
    ((&raw mut question.ip).cast(), len as u32)
}

/// Looks for the socket that the question's segment would meet in a network namespace; null if there is none.
#[inline(always)]
fn look_up(ctx: *mut c_void, question: &mut Question, netns: u32) -> *mut bpf_sock {
    const V4_LEN: u32 = 12;
    const V6_LEN: u32 = 36;
    if netns > i32::MAX as u32 {
        return null_mut();
    }
    let netns = if netns == NETNS_HERE { CURRENT_NETNS } else { netns.into() };
    let tuple = (&raw mut question.tuple).cast::<bpf_sock_tuple>();
    // The length tells the version, and has to be a constant for each.
    match is_v4(question) {
        // SAFETY: the context is valid as long as the program runs, and the tuple as long as is said.
        true => unsafe { bpf_skc_lookup_tcp(ctx, tuple, V4_LEN, netns, 0) },
        // SAFETY: as above.
        false => unsafe { bpf_skc_lookup_tcp(ctx, tuple, V6_LEN, netns, 0) },
    }
}

/// Sends a segment that acknowledges a cookie to its backend, or leaves it to the host. Called when the usual way has ended.
#[inline(always)]
pub fn acknowledge(ctx: &TcContext, link: Link) -> i32 {
    if is_accepted(ctx, link) { lead_on(ctx, link) } else { tc_action(Verdict::Pass(PassReason::NoFlow)) }
}

#[inline(never)]
fn is_accepted(ctx: &TcContext, link: Link) -> bool {
    let window = SkbWindow(ctx);
    let Ok(packet) = window.parse(link) else { return false };
    // A request may ride on it, which is timed.
    let arrival = Arrival { now: precise_now(), ..window.arrival(&packet) };
    accept(&packet, &arrival, &KernelTables(ByTc(ctx)))
}

#[inline(never)]
fn lead_on(ctx: &TcContext, link: Link) -> i32 {
    try_lead_on(ctx, link).unwrap_or_else(tc_action)
}

#[inline(always)]
fn try_lead_on(ctx: &TcContext, link: Link) -> Result<i32, Verdict> {
    let packet = SkbWindow(ctx).parse(link).map_err(Verdict::Pass)?;
    // Behind a veth, where there is no other MTU to be asked for.
    let ToBackend { to, backend, id: _ } = lead(&packet, &TABLES)?;
    rewrite(ctx, &packet, &to, Hops::to(backend))?;
    send(ctx, link, backend)
}

/// Answers the SYN by the cookie at hand, or ends it. Called when the usual way has ended.
#[inline(never)]
pub fn answer(ctx: &TcContext, link: Link) -> i32 {
    try_answer(ctx, link).unwrap_or_else(tc_action)
}

#[inline(always)]
fn try_answer(ctx: &TcContext, link: Link) -> Result<i32, Verdict> {
    let network = SkbWindow(ctx).network(link).map_err(Verdict::Pass)?;
    match fit(&network)? {
        Version::V4 => {
            turn::<IPV4_MIN_LEN, [u32; 1]>(ctx, link, &network)?;
            write_v4(&SkbWindow(ctx), link.header_len()).ok_or(FAILED)?;
        }
        Version::V6 => {
            turn::<IPV6_LEN, [u32; 4]>(ctx, link, &network)?;
            write_v6(&SkbWindow(ctx), link.header_len()).ok_or(FAILED)?;
        }
    }
    note_issued(now(), &TABLES);
    // SAFETY: the context is valid as long as the program runs; the helper takes numbers only.
    Ok(unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32 })
}

/// Returns whether a device sends back what XDP tells it to. A function of its own in the object: its key needs room on the
/// stack.
#[inline(never)]
pub fn may_answer_by_xdp(ctx: &XdpContext) -> bool {
    maps::answers_by_xdp(ctx.ingress_ifindex() as u32)
}

/// The same as [`answer`] by XDP, for packets whose checksums are whole.
#[inline(never)]
pub fn answer_by_xdp(ctx: &XdpContext) -> u32 {
    try_answer_by_xdp(ctx).unwrap_or_else(count_xdp)
}

#[inline(always)]
fn try_answer_by_xdp(ctx: &XdpContext) -> Result<u32, Verdict> {
    let network = Network::of_frame(&XdpWindow(ctx)).map_err(Verdict::Pass)?;
    match fit(&network)? {
        Version::V4 => {
            turn_by_xdp::<IPV4_MIN_LEN, [u32; 1]>(ctx, &network)?;
            write_v4(&XdpWindow(ctx), ETH_LEN).ok_or(FAILED)?;
        }
        Version::V6 => {
            turn_by_xdp::<IPV6_LEN, [u32; 4]>(ctx, &network)?;
            write_v6(&XdpWindow(ctx), ETH_LEN).ok_or(FAILED)?;
        }
    }
    note_issued(now(), &TABLES);
    Ok(xdp_action::XDP_TX)
}

const UNFIT: Verdict = Verdict::Drop(DropReason::CookieUnfit);
/// Bytes of the answer's TCP header.
const ANSWER_LEN: usize = ANSWER_WORDS * 4;
/// How far the answer may go.
const HOPS: u8 = 64;
const DO_NOT_FRAGMENT: u16 = 0x4000;

/// Returns the version of a packet that is whole, and whose IP header is as short as it can be.
#[inline(always)]
fn fit(network: &Network) -> Result<Version, Verdict> {
    match (network.version, network.part, network.l4 - network.l3) {
        (Version::V4, Part::Whole, IPV4_MIN_LEN) => Ok(Version::V4),
        (Version::V6, Part::Whole, IPV6_LEN) => Ok(Version::V6),
        (Version::V4 | Version::V6, Part::Whole | Part::First | Part::Later, _) => Err(UNFIT),
    }
}

/// Writes the answer's IP header in the place of the SYN's, whose addresses are read where they stand: kept until now, they
/// would need room on the stack.
#[inline(always)]
fn write_v4<W: PacketWindow>(window: &W, l3: usize) -> Option<()> {
    let asked = window.read::<Ipv4Hdr>(l3)?;
    let (source, destination) = (asked.destination, asked.source);
    let ip = Ipv4Hdr {
        version_ihl: 0x45,
        tos: 0,
        total_len: ((IPV4_MIN_LEN + ANSWER_LEN) as u16).to_be(),
        id: 0,
        fragment: DO_NOT_FRAGMENT.to_be(),
        ttl: HOPS,
        protocol: Proto::Tcp as u8,
        check: 0,
        source,
        destination,
    };
    let first = u32::from_ne_bytes([ip.version_ihl, ip.tos, 0, 0]) | u32::from(ip.total_len) << 16;
    let third = u32::from_ne_bytes([ip.ttl, ip.protocol, 0, 0]);
    let sum = Delta::sum(&[first, u32::from(ip.fragment) << 16, third, source, destination]);
    window.write(l3, Ipv4Hdr { check: sum.apply(0), ..ip })
}

/// The same of IPv6.
#[inline(always)]
fn write_v6<W: PacketWindow>(window: &W, l3: usize) -> Option<()> {
    let asked = window.read::<Ipv6Hdr>(l3)?;
    let (source, destination) = (asked.destination, asked.source);
    let ip = Ipv6Hdr {
        version_class_label: (6_u32 << 28).to_be(),
        payload_len: (ANSWER_LEN as u16).to_be(),
        next: Proto::Tcp as u8,
        hop_limit: HOPS,
        source,
        destination,
    };
    window.write(l3, ip)
}

/// An address as it stands in a packet.
trait OnWire: Wire {
    /// Returns it as others know it.
    fn address(self) -> Address;
    /// Returns what it adds to a sum.
    fn sum(self) -> Delta;
}

impl OnWire for [u32; 1] {
    #[inline(always)]
    fn address(self) -> Address {
        Address::from_v4_wire(self[0])
    }
    #[inline(always)]
    fn sum(self) -> Delta {
        Delta::sum(&self)
    }
}

impl OnWire for [u32; 4] {
    #[inline(always)]
    fn address(self) -> Address {
        Address::from_v6_wire(self)
    }
    #[inline(always)]
    fn sum(self) -> Delta {
        Delta::sum(&self)
    }
}

/// What is read of a SYN before it becomes its answer.
struct Syn<A> {
    source: A,
    destination: A,
    tcp: TcpHdr,
    sum: Sum,
}

impl<A: OnWire> Syn<A> {
    /// Reads a SYN whose IP header has `IP` bytes and is ended by the addresses.
    #[inline(always)]
    fn read<const IP: usize, W: PacketWindow>(window: &W, l3: usize, network: &Network) -> Result<Self, Verdict> {
        let (l4, size) = (l3 + IP, size_of::<A>());
        let source = window.read::<A>(l4 - 2 * size).ok_or(FAILED)?;
        let destination = window.read::<A>(l4 - size).ok_or(FAILED)?;
        let tcp = window.read::<TcpHdr>(l4).ok_or(FAILED)?;
        let len = network.end - network.l4;
        if len != tcp.header_len() {
            return Err(UNFIT);
        }
        let mut header = Delta::ZERO;
        for place in 0..TCP_WORDS {
            if place * 4 >= len {
                break;
            }
            let word = window.read::<u32>(l4 + place * 4).ok_or(FAILED)?;
            let [_, _, third, fourth] = word.to_ne_bytes();
            let counted = if place == CHECK_WORD { u32::from_ne_bytes([0, 0, third, fourth]) } else { word };
            header = header.and(Delta::sum(&[counted]));
        }
        let sum = Sum { header, pseudo: pseudo(source, destination, len), check: tcp.check };
        Ok(Self { source, destination, tcp, sum })
    }

    /// Takes a cookie from the bucket of its source and returns the TCP header of the answer, its checksum zero.
    #[inline(always)]
    fn answer(&self) -> Result<[u32; ANSWER_WORDS], Verdict> {
        if !spend(&self.source.address(), now(), &TABLES) {
            return Err(Verdict::Drop(DropReason::CookieLimited));
        }
        let Some(question) = TABLES.question() else { return Err(FAILED) };
        let ports = Ports { source: self.tcp.source, destination: self.tcp.destination };
        Ok(question.value().answer.answer(ports, u32::from_be(self.tcp.sequence)))
    }
}

/// Returns what the pseudo-header of a segment of `len` bytes adds to a sum, in whichever direction.
#[inline(always)]
fn pseudo<A: OnWire>(source: A, destination: A, len: usize) -> Delta {
    let rest = Delta::sum(&[(len as u32).to_be(), u32::from(Proto::Tcp as u8).to_be()]);
    source.sum().and(destination.sum()).and(rest)
}

/// Turns all but the IP header, of `IP` bytes and ended by addresses, into the answer.
///
/// The checksum is changed by the kernel's helpers, as it may be unfinished; then the kernel, or a device, finishes it from
/// where the TCP header begins, which stays where it is.
#[inline(always)]
fn turn<const IP: usize, A: OnWire>(ctx: &TcContext, link: Link, network: &Network) -> Result<(), Verdict> {
    let (l3, l4) = (link.header_len(), link.header_len() + IP);
    let syn = Syn::<A>::read::<IP, _>(&SkbWindow(ctx), l3, network)?;
    // SAFETY: the context is valid as long as the program runs.
    let by_device = unsafe { bpf_csum_level(ctx.skb.skb, BPF_CSUM_LEVEL_QUERY.into()) };
    if by_device < 0 && !syn.sum.is_right() {
        return Err(Verdict::Drop(DropReason::WrongChecksum));
    }
    let answer = syn.answer()?;
    let Syn { source, destination, sum, .. } = syn;
    let longer = pseudo(source, destination, ANSWER_LEN).and(Delta::ZERO.replace32(sum.pseudo.wsum(), 0));
    let total = (l4 + ANSWER_LEN) as u32;
    // SAFETY: as above.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, total, 0) } != 0 || ctx.pull_data(total).is_err() {
        return Err(FAILED);
    }
    let window = SkbWindow(ctx);
    if matches!(link, Link::Ethernet) {
        turn_link(&window)?;
    }
    let mut written = answer;
    let [first, second] = sum.check.to_ne_bytes();
    written[CHECK_WORD] = u32::from_ne_bytes([first, second, 0, 0]);
    window.write(l4, written).ok_or(FAILED)?;
    replace(ctx, l4 + TCP_CHECK, longer, BPF_F_PSEUDO_HDR.into()).ok_or(FAILED)?;
    replace(ctx, l4 + TCP_CHECK, sum.header_to(&answer), 0).ok_or(FAILED)
}

/// The same by XDP.
#[inline(always)]
fn turn_by_xdp<const IP: usize, A: OnWire>(ctx: &XdpContext, network: &Network) -> Result<(), Verdict> {
    let l4 = ETH_LEN + IP;
    let syn = Syn::<A>::read::<IP, _>(&XdpWindow(ctx), ETH_LEN, network)?;
    if !syn.sum.is_whole() {
        return Err(Verdict::Drop(DropReason::WrongChecksum));
    }
    let mut answer = syn.answer()?;
    let Syn { source, destination, .. } = syn;
    let check = pseudo(source, destination, ANSWER_LEN).and(Delta::sum(&answer)).apply(0);
    let [first, second] = check.to_ne_bytes();
    answer[CHECK_WORD] = u32::from_ne_bytes([first, second, 0, 0]);
    let longer = (l4 + ANSWER_LEN) as i32 - XdpWindow(ctx).frame_len() as i32;
    // SAFETY: the context is valid as long as the program runs.
    if unsafe { bpf_xdp_adjust_tail(ctx.as_ptr().cast(), longer) } != 0 {
        return Err(FAILED);
    }
    let window = XdpWindow(ctx);
    turn_link(&window)?;
    window.write(l4, answer).ok_or(FAILED)
}

/// Lets the link header lead back.
#[inline(always)]
fn turn_link<W: PacketWindow>(window: &W) -> Result<(), Verdict> {
    let eth = window.read::<EthHdr>(0).ok_or(FAILED)?;
    window.write(0, [eth.source, eth.destination]).ok_or(FAILED)
}
