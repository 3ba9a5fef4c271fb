//! What the programs did with each packet, for debugging: in objects that are built with the feature `log` only.

use aya_ebpf::EbpfContext;
use lb_ebpf::packet::Headers;

/// Says what became of a packet. Not inlined: the program's stack has no room for a message.
#[cfg(feature = "log")]
#[inline(never)]
pub fn packet<C: EbpfContext>(ctx: &C, packet: &Headers, action: u32) {
    aya_log_ebpf::info!(
        ctx,
        "{:i}:{} > {:i}:{} flags {:x}: action {}",
        u32::from_be(packet.key.source.v4_wire()),
        packet.key.source_port.number(),
        u32::from_be(packet.key.destination.v4_wire()),
        packet.key.destination_port.number(),
        packet.flags.0,
        action
    );
}

/// Says nothing, and costs nothing.
#[cfg(not(feature = "log"))]
#[inline(always)]
pub fn packet<C: EbpfContext>(_ctx: &C, _packet: &Headers, _action: u32) {}
