//! The five words of a socket buffer that belong to the program that has it (`cb`).
//!
//! What is written there and read again is any number to the verifier: it does not follow each value through all that comes
//! after.

use aya_ebpf::programs::TcContext;

/// A word, and what it says.
#[derive(Clone, Copy)]
#[repr(usize)]
pub enum Word {
    /// [`Detour`](super::slow::Detour).
    Detour = 0,
    /// The extension headers that were followed last, [`Chain::words`](lb_ebpf::packet::Chain::words).
    Chain = 1,
    /// The identification in them.
    ChainId = 2,
    /// Whether the packet is noted as a first fragment, and whether it was let pass one more router.
    Fragment = 3,
    /// Where the transport header begins: somewhere else in each version of IP, and with each length of options.
    Transport = 4,
}

impl Word {
    /// Writes the word.
    #[inline(always)]
    pub fn write(self, ctx: &TcContext, value: u32) {
        // SAFETY: the context is valid as long as the program runs.
        unsafe { core::ptr::write_volatile(&raw mut (*ctx.skb.skb).cb[self as usize], value) };
    }

    /// Returns a value that the verifier has forgotten.
    #[inline(always)]
    pub fn veil(self, ctx: &TcContext, value: u32) -> u32 {
        self.write(ctx, value);
        self.read(ctx)
    }

    /// Reads the word.
    #[inline(always)]
    pub fn read(self, ctx: &TcContext) -> u32 {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).cb[self as usize]) }
    }
}
