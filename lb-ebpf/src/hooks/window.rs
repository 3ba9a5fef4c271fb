//! The packets of TC and XDP as windows.

use core::arch::asm;

use aya_ebpf::{
    bindings::__sk_buff,
    programs::{TcContext, XdpContext},
};
use lb_ebpf::{
    icmp::IcmpError,
    packet::{Headers, Network, PacketWindow},
    pipeline::Arrival,
    verdict::PassReason,
    wire::{ETH_LEN, EthHdr, ICMP_LEN, IPV4_MIN_LEN, TCP_MIN_LEN},
};

use super::{now, now_for};

/// Headers without options, behind an Ethernet header.
const USUAL_LEN: usize = ETH_LEN + IPV4_MIN_LEN + TCP_MIN_LEN;
/// Headers with as many IP options as there can be, behind an Ethernet header.
const LONGEST_LEN: u32 = (ETH_LEN + 60 + TCP_MIN_LEN) as u32;

/// An ICMP error, and the headers of a segment inside, with as many options as there can be.
const LONGEST_ERROR_LEN: u32 = (ETH_LEN + 60 + ICMP_LEN + 60 + TCP_MIN_LEN) as u32;

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
}

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
        // SAFETY: the context is valid as long as the program runs.
        if unsafe { (*self.0.skb.skb).vlan_present } != 0 {
            return Err(PassReason::Vlan);
        }
        Headers::parse_transport(self, &self.network(link)?)
    }

    /// Brings the headers into the linear part where they are not.
    #[inline(always)]
    pub fn gather(&self, link: Link) {
        if self.start() + USUAL_LEN > self.end() || self.has_options(link) {
            self.pull(LONGEST_LEN);
        }
    }

    /// Returns whether the IP header is not as short as it can be.
    #[inline(always)]
    fn has_options(&self, link: Link) -> bool {
        self.read::<u16>(link.header_len()).is_some_and(|word| u16::from_be(word) >> 8 & 0x0f != 5)
    }

    /// Reads an ICMP error, after bringing it into the linear part.
    #[inline(always)]
    pub fn parse_error(&self, link: Link) -> Result<IcmpError, PassReason> {
        self.pull(LONGEST_ERROR_LEN);
        IcmpError::parse(self, &self.network(link)?)
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

    /// Makes the linear part long enough for headers of so many bytes; returns whether it grew.
    #[inline(always)]
    fn pull(&self, longest: u32) -> bool {
        let linear = self.end() - self.start();
        let len = self.0.len();
        linear < len as usize && self.0.pull_data(if len < longest { len } else { longest }).is_ok()
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
}
