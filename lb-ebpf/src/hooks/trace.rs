//! What the programs did with each packet, for debugging: in objects that are built with the feature `log` only.

use aya_ebpf::EbpfContext;
use lb_ebpf::packet::Headers;

/// Says what became of a packet. Not inlined: the program's stack has no room for a message.
#[cfg(feature = "log")]
#[inline(never)]
pub fn packet<C: EbpfContext>(ctx: &C, packet: &Headers, action: u32) {
    aya_log_ebpf::info!(
        ctx,
        "{:i} {} > {:i} {} flags {:x}: action {}",
        bytes(packet.key.source),
        packet.key.source_port.number(),
        bytes(packet.key.destination),
        packet.key.destination_port.number(),
        packet.flags.0,
        action
    );
}

/// Returns an address as the log takes it; IPv4 is shown as it is mapped.
#[cfg(feature = "log")]
#[inline(always)]
fn bytes(address: lb_ebpf::abi::Address) -> [u8; 16] {
    // SAFETY: both are sixteen bytes of which every pattern is valid.
    unsafe { core::mem::transmute(address.v6_wire()) }
}

/// Says nothing, and costs nothing.
#[cfg(not(feature = "log"))]
#[inline(always)]
pub fn packet<C: EbpfContext>(_ctx: &C, _packet: &Headers, _action: u32) {}
