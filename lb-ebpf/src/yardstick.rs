//! What the benchmarks and their own kernel object share: how a program under measurement is given another packet each
//! time it runs.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on the packet that it has left behind: a balancer would meet an address that it
//! has already translated. So the repeated program is one of ours that first lays a whole packet anew, of another flow
//! each time, and then tail-calls what is measured; its own cost is known from a tail call to a program that does
//! nothing.

/// Bytes of a laid packet: the smallest Ethernet frame as a driver hands it over, and some.
pub const FRAME_LEN: usize = 64;
/// Ports by which one client address has flows.
pub const PORTS_PER_CLIENT: u32 = 1 << 14;
/// The first of them.
pub const FIRST_PORT: u32 = 16_384;

/// Names in the object.
pub mod name {
    /// XDP: lays a packet and calls what is in [`XDP_TARGET`].
    pub const XDP_LAY: &str = "xdp_lay";
    /// TC: lays a packet and calls what is in [`TC_TARGET`].
    pub const TC_LAY: &str = "tc_lay";
    /// XDP: does nothing.
    pub const XDP_EMPTY: &str = "xdp_empty";
    /// TC: does nothing.
    pub const TC_EMPTY: &str = "tc_empty";
    /// XDP: looks the packet's flow up in [`TABLE`], nothing else; drops and counts what is not there.
    pub const XDP_LOOKUP: &str = "xdp_lookup";
    /// XDP: redirects to the pattern's device, nothing else.
    pub const XDP_FORWARD: &str = "xdp_forward";
    /// XDP: drops and counts.
    pub const XDP_SINK: &str = "xdp_sink";
    /// What `xdp_lay` calls.
    pub const XDP_TARGET: &str = "XDP_TARGET";
    /// What `tc_lay` calls.
    pub const TC_TARGET: &str = "TC_TARGET";
    /// One [`super::Pattern`].
    pub const PATTERN: &str = "PATTERN";
    /// How often each processor has laid a packet.
    pub const TURN: &str = "TURN";
    /// An LRU hash of the shape of the balancer's tables.
    pub const TABLE: &str = "TABLE";
    /// Packets that each processor has dropped, or whose flow it has not found in [`TABLE`].
    pub const SUNK: &str = "SUNK";
}

/// Which packets are laid.
///
/// # Shape
/// `0` frame 64, `64` first 4, `68` count 4, `72` stride 4, `76` services 4, `80` service ports 4, `84` replies 4, `88`
/// device 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The packet of flow 0, in words as they stand in memory: Ethernet, IPv4 without options, TCP or UDP, payload.
    pub frame: [u32; FRAME_LEN / 4],
    /// The first flow.
    pub first: u32,
    /// How many flows, at least one.
    pub count: u32,
    /// From one turn to the next, so many flows are skipped. Prime to `count`, all have their turn.
    pub stride: u32,
    /// Flow after flow, so many addresses take turns at the other end, at least one.
    pub services: u32,
    /// The same for ports at the other end.
    pub service_ports: u32,
    /// Whether the client is the packet's source (0) or its destination (1).
    pub replies: u32,
    /// Where [`name::XDP_FORWARD`] sends it.
    pub device: u32,
}

impl Pattern {
    /// Returns the flow of a turn.
    #[inline(always)]
    pub const fn flow(&self, turn: u64) -> u32 {
        let count = self.count as u64;
        self.first.wrapping_add((turn % count * self.stride as u64 % count) as u32)
    }
}

/// Returns by which address, counted from the frame's, and by which port the client of a flow sends.
#[inline(always)]
pub const fn client(flow: u32) -> (u32, u16) {
    (flow / PORTS_PER_CLIENT, (FIRST_PORT + flow % PORTS_PER_CLIENT) as u16)
}

impl Pattern {
    /// Makes a pattern of one flow.
    pub fn new(frame: &[u8; FRAME_LEN]) -> Self {
        let mut words = [0; FRAME_LEN / 4];
        for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self { frame: words, first: 0, count: 1, stride: 1, services: 1, service_ports: 1, replies: 0, device: 0 }
    }
}

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, integers only, no padding, so that every bit pattern is valid.
unsafe impl aya::Pod for Pattern {}

const _: () = assert!(size_of::<Pattern>() == 92);

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_flows_have_their_turn() {
        let pattern = Pattern { first: 7, count: 1000, stride: 7919, ..Pattern::new(&[0; FRAME_LEN]) };

        let flows: BTreeSet<u32> = (0..1000).map(|turn| pattern.flow(turn)).collect();

        assert_eq!((flows.len(), flows.first(), flows.last()), (1000, Some(&7), Some(&1006)));
    }

    #[test]
    fn flows_differ_by_address_or_port() {
        let clients: BTreeSet<(u32, u16)> = (0..100_000).map(client).collect();

        assert_eq!(clients.len(), 100_000);
        assert_eq!(client(PORTS_PER_CLIENT), (1, 16_384));
    }
}
