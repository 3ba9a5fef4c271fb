//! The packets of TC and XDP as windows.

use core::arch::asm;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::bpf_skb_vlan_pop,
    programs::{TcContext, XdpContext},
};
use lb_ebpf::{
    icmp::IcmpError,
    packet::{Chain, Headers, MAX_EXTENSIONS_LEN, Network, PacketWindow},
    pipeline::Arrival,
    verdict::PassReason,
    wire::{ETH_LEN, EthHdr, ICMP_LEN, IPV4_MIN_LEN, IPV6_LEN, TCP_MIN_LEN},
};

use super::{cb::Word, now, now_for};

/// Headers of IPv4 without options, behind an Ethernet header.
const USUAL_LEN: usize = ETH_LEN + IPV4_MIN_LEN + TCP_MIN_LEN;
/// Headers of IPv6 without extensions, behind an Ethernet header.
const USUAL_LEN_V6: usize = ETH_LEN + IPV6_LEN + TCP_MIN_LEN;
/// Headers of IPv4 with as many options as there can be, behind an Ethernet header; those of IPv6 without extensions.
const LONGEST_LEN: usize = ETH_LEN + 60 + TCP_MIN_LEN;
/// What the first byte of an IPv4 header without options says.
const USUAL_FIRST: u8 = 0x45;

/// An ICMP error, and the headers of a segment inside, with as many options as there can be, or as is usual for IPv6.
const LONGEST_ERROR_LEN: usize = ETH_LEN + 60 + ICMP_LEN + 60 + TCP_MIN_LEN;

/// What stands in front of the network header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// Nothing: a tunnel, a modem.
    None,
}

impl Link {
    /// Returns how many bytes there are of it.
    #[inline(always)]
    pub const fn header_len(self) -> usize {
        match self {
            Self::Ethernet => ETH_LEN,
            Self::None => 0,
        }
    }
}

/// A socket buffer's linear part.
pub struct SkbWindow<'a>(pub &'a TcContext);

// SAFETY: the verifier checks every access against these two.
unsafe impl PacketWindow for SkbWindow<'_> {
    #[inline(always)]
    fn start(&self) -> usize {
        address::<{ core::mem::offset_of!(__sk_buff, data) }>(self.0)
    }
    #[inline(always)]
    fn end(&self) -> usize {
        address::<{ core::mem::offset_of!(__sk_buff, data_end) }>(self.0)
    }
    #[inline(always)]
    fn frame_len(&self) -> usize {
        self.0.len() as usize
    }
    #[inline(always)]
    fn chain(&self, from: usize, first: u8) -> Result<Chain, PassReason> {
        follow(self.0, from, first);
        Chain::from_words([Word::Chain.read(self.0), Word::ChainId.read(self.0)])
    }
}

/// Follows extension headers. Like a [`Detour`](super::slow::Detour), what is found is told by the socket buffer: the
/// verifier knows it for some number or other, and follows all that comes after once, not for each length.
#[inline(never)]
fn follow(ctx: &TcContext, from: usize, first: u8) {
    let window = SkbWindow(ctx);
    // Neither is known to the verifier where a packet is about another.
    let from = from & MOST_FROM;
    window.pull(from + MAX_EXTENSIONS_LEN + TCP_MIN_LEN);
    let [word, id] = Chain::words(&Chain::follow(&window, from, first));
    Word::Chain.write(ctx, word);
    Word::ChainId.write(ctx, id);
}

/// More than where extension headers can begin: in an ICMPv6 error, behind the longest ones outside.
const MOST_FROM: usize = 0x3ff;
const _: () = assert!(ETH_LEN + 2 * IPV6_LEN + 2 * MAX_EXTENSIONS_LEN + ICMP_LEN < MOST_FROM);

/// Reads an address from the context. The field has 32 bits, and what the program gets from it has 64: were it read as a
/// word, the compiler might extend it later, and the verifier would take it for a number.
#[inline(always)]
fn address<const OFFSET: usize>(ctx: &TcContext) -> usize {
    let address: usize;
    // SAFETY: a load from the context, which is valid as long as the program runs.
    unsafe {
        asm!("{address} = *(u32 *)({ctx} + {offset})", address = out(reg) address, ctx = in(reg) ctx.skb.skb,
            offset = const OFFSET, options(readonly, nostack));
    }
    address
}

impl SkbWindow<'_> {
    /// Reads the headers, which [`SkbWindow::gather`] has brought into the linear part.
    #[inline(always)]
    pub fn parse(&self, link: Link) -> Result<Headers, PassReason> {
        let network = self.network(link)?;
        let l4 = Word::Transport.veil(self.0, network.l4 as u32) as usize & MOST_FROM;
        Headers::parse_transport(self, &Network { l4, ..network })
    }

    /// Returns whether a packet is of a VLAN. The kernel has taken the outer tag off already, and leads the packet to the
    /// VLAN's device after this one. A tag that tells only a priority is taken off for good: it leads nowhere.
    ///
    /// # Source
    /// IEEE 802.1Q, 9.6: VLAN 0. net/core/dev.c, `__netif_receive_skb_core`.
    #[inline(always)]
    pub fn is_of_vlan(&self) -> bool {
        const VLAN: u32 = 0x0fff;
        let skb = self.0.skb.skb;
        // SAFETY: the context is valid as long as the program runs.
        if unsafe { (*skb).vlan_present } == 0 {
            return false;
        }
        // SAFETY: as above. Behind such a tag may be another, which takes its place.
        unsafe { (*skb).vlan_tci & VLAN != 0 || bpf_skb_vlan_pop(skb) != 0 || (*skb).vlan_present != 0 }
    }

    /// Returns whether a packet has a tag that stands beside it, where the kernel has it of those that leave by a VLAN.
    #[inline(always)]
    pub fn has_tag(&self) -> bool {
        // SAFETY: the context is valid as long as the program runs.
        unsafe { (*self.0.skb.skb).vlan_present != 0 }
    }

    /// Brings the headers into the linear part where they are not.
    #[inline(always)]
    pub fn gather(&self, link: Link) {
        if self.start() + USUAL_LEN > self.end() || self.has_longer_header(link) {
            self.pull(LONGEST_LEN);
        }
    }

    /// Returns whether the IP header is not as short as it can be, or is one of IPv6 whose segment may not be there.
    #[inline(always)]
    fn has_longer_header(&self, link: Link) -> bool {
        match self.read::<u8>(link.header_len()) {
            Some(USUAL_FIRST) | None => false,
            Some(first) => first >> 4 != 6 || self.start() + USUAL_LEN_V6 > self.end(),
        }
    }

    /// Reads an ICMP error, after bringing it into the linear part.
    #[inline(always)]
    pub fn parse_error(&self, link: Link) -> Result<IcmpError, PassReason> {
        self.pull(LONGEST_ERROR_LEN);
        let network = self.network(link)?;
        // Extension headers may have taken the room.
        self.pull((network.l4 & MOST_FROM) + ICMP_LEN + 60 + TCP_MIN_LEN);
        IcmpError::parse(self, &network)
    }

    /// Reads the IP header.
    #[inline(always)]
    pub fn network(&self, link: Link) -> Result<Network, PassReason> {
        let ether_type = match link {
            Link::Ethernet => self.read::<EthHdr>(0).ok_or(PassReason::Malformed)?.ether_type,
            // SAFETY: the context is valid as long as the program runs.
            Link::None => unsafe { (*self.0.skb.skb).protocol as u16 },
        };
        Network::parse(self, link.header_len(), ether_type)
    }

    /// Makes the linear part long enough for headers of so many bytes, or for all that there is.
    #[inline(always)]
    fn pull(&self, longest: usize) {
        let (linear, len) = (self.end() - self.start(), self.0.len() as usize);
        let wanted = if len < longest { len } else { longest };
        if linear < wanted {
            // Without memory for it, what is missing is found to be missing.
            let _no_memory = self.0.pull_data(wanted as u32);
        }
    }

    /// Returns by which device a packet came, how much it is, and when. For those whose length is theirs on the wire.
    #[inline(always)]
    pub fn arrival_of_one(&self) -> Arrival {
        // SAFETY: the context is valid as long as the program runs.
        let ifindex = unsafe { (*self.0.skb.skb).ifindex };
        Arrival { ifindex, packets: 1, bytes: self.0.len(), now: now() }
    }

    /// The same for a packet that the kernel may have merged of several.
    #[inline(always)]
    pub fn arrival(&self, packet: &Headers) -> Arrival {
        // SAFETY: the context is valid as long as the program runs.
        let (ifindex, segments) = unsafe { ((*self.0.skb.skb).ifindex, (*self.0.skb.skb).gso_segs) };
        let packets = if segments > 1 { segments } else { 1 };
        Arrival { ifindex, packets, bytes: packet.wire_bytes(self.0.len(), segments), now: now_for(packet.flags) }
    }
}

/// A driver's buffer.
pub struct XdpWindow<'a>(pub &'a XdpContext);

// SAFETY: the verifier checks every access against these two.
unsafe impl PacketWindow for XdpWindow<'_> {
    #[inline(always)]
    fn start(&self) -> usize {
        self.0.data()
    }
    #[inline(always)]
    fn end(&self) -> usize {
        self.0.data_end()
    }
    #[inline(always)]
    fn frame_len(&self) -> usize {
        self.0.data_end() - self.0.data()
    }
    /// Leaves packets with extension headers to TC, as all that is seldom.
    #[inline(always)]
    fn chain(&self, _from: usize, _first: u8) -> Result<Chain, PassReason> {
        Err(PassReason::Extensions)
    }
}
