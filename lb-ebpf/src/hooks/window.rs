//! The packets of TC and XDP as windows.

use aya_ebpf::programs::{TcContext, XdpContext};
use lb_ebpf::{
    packet::{Headers, PacketWindow},
    pipeline::Arrival,
    verdict::PassReason,
    wire::{ETH_LEN, IPV4_MIN_LEN, TCP_MIN_LEN},
};

use super::now;

/// Headers without options, behind an Ethernet header.
const USUAL_LEN: usize = ETH_LEN + IPV4_MIN_LEN + TCP_MIN_LEN;
/// Headers with as many IP options as there can be, behind an Ethernet header.
const LONGEST_LEN: u32 = (ETH_LEN + 60 + TCP_MIN_LEN) as u32;

/// What stands in front of the network header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// Nothing: a tunnel, a modem.
    None,
}

/// A socket buffer's linear part.
pub struct SkbWindow<'a>(pub &'a TcContext);

// SAFETY: the verifier checks every access against these two.
unsafe impl PacketWindow for SkbWindow<'_> {
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
        self.0.len() as usize
    }
}

impl SkbWindow<'_> {
    /// Reads the headers, after bringing them into the linear part where they are not.
    #[inline(always)]
    pub fn parse(&self, link: Link) -> Result<Headers, PassReason> {
        // SAFETY: the context is valid as long as the program runs.
        if unsafe { (*self.0.skb.skb).vlan_present } != 0 {
            return Err(PassReason::Vlan);
        }
        if self.start() + USUAL_LEN > self.end() {
            self.pull();
        }
        match self.parse_linear(link) {
            Err(PassReason::Malformed) if self.start() + (LONGEST_LEN as usize) > self.end() && self.pull() => {
                self.parse_linear(link)
            }
            parsed => parsed,
        }
    }

    #[inline(always)]
    fn parse_linear(&self, link: Link) -> Result<Headers, PassReason> {
        match link {
            Link::Ethernet => Headers::parse(self),
            Link::None => {
                // SAFETY: the context is valid as long as the program runs.
                let ether_type = unsafe { (*self.0.skb.skb).protocol } as u16;
                Headers::parse_network(self, 0, ether_type)
            }
        }
    }

    /// Makes the linear part long enough for any headers; returns whether it grew.
    #[inline(always)]
    fn pull(&self) -> bool {
        let linear = self.end() - self.start();
        let len = self.0.len();
        linear < len as usize && self.0.pull_data(if len < LONGEST_LEN { len } else { LONGEST_LEN }).is_ok()
    }

    /// Returns by which device a packet came, how much it is, and when.
    #[inline(always)]
    pub fn arrival(&self, packet: &Headers) -> Arrival {
        // SAFETY: the context is valid as long as the program runs.
        let (ifindex, segments) = unsafe { ((*self.0.skb.skb).ifindex, (*self.0.skb.skb).gso_segs) };
        let packets = if segments > 1 { segments } else { 1 };
        Arrival { ifindex, packets, bytes: packet.wire_bytes(self.0.len(), segments), now: now() }
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
