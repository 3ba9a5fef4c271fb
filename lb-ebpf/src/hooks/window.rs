//! The packets of TC and XDP as windows.

use aya_ebpf::programs::{TcContext, XdpContext};
use lb_ebpf::{
    packet::{Headers, PacketWindow},
    verdict::PassReason,
    wire::{ETH_LEN, IPV4_MIN_LEN, TCP_MIN_LEN},
};

/// Headers without options.
const USUAL_LEN: usize = ETH_LEN + IPV4_MIN_LEN + TCP_MIN_LEN;
/// Headers with as many IP options as there can be.
const LONGEST_LEN: u32 = (ETH_LEN + 60 + TCP_MIN_LEN) as u32;

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
    pub fn parse(&self) -> Result<Headers, PassReason> {
        if self.start() + USUAL_LEN > self.end() {
            self.pull();
        }
        match Headers::parse(self) {
            Err(PassReason::Malformed) if self.start() + (LONGEST_LEN as usize) > self.end() && self.pull() => {
                Headers::parse(self)
            }
            parsed => parsed,
        }
    }

    /// Makes the linear part long enough for any headers; returns whether it grew.
    #[inline(always)]
    fn pull(&self) -> bool {
        let linear = self.end() - self.start();
        let len = self.0.len();
        linear < len as usize && self.0.pull_data(if len < LONGEST_LEN { len } else { LONGEST_LEN }).is_ok()
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
