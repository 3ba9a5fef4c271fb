//! A packet given other addresses and ports.
//!
//! The IP header's checksum is always whole and is changed in place. The checksum of TCP and UDP is not: a segment from
//! a local veth carries only the sum of its pseudo-header, and a device may have summed the packet already. Where the
//! kernel knows (TC), its helpers change it; where nobody does (XDP), the uplink must deliver whole checksums.

use crate::{
    abi::{FlowKey, Proto},
    checksum::Delta,
    packet::{Headers, PacketWindow},
    wire::{Ipv4Hdr, Ports},
};

/// Offset of the checksum in a TCP header.
pub const TCP_CHECK: usize = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECK: usize = 6;

/// Offset of the checksum in an IPv4 header.
const IPV4_CHECK: usize = core::mem::offset_of!(Ipv4Hdr, check);
/// Offset of the time to live in an IPv4 header; the protocol follows it.
const IPV4_TTL: usize = core::mem::offset_of!(Ipv4Hdr, ttl);
/// Offsets of the addresses in an IPv4 header.
const IPV4_SOURCE: usize = core::mem::offset_of!(Ipv4Hdr, source);
const IPV4_DESTINATION: usize = core::mem::offset_of!(Ipv4Hdr, destination);

/// By how much the checksum of TCP or UDP has to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// By the pseudo-header.
    pub addresses: Delta,
    /// By the segment itself.
    pub ports: Delta,
}

impl Change {
    /// Compares two keys.
    #[inline(always)]
    pub const fn between(from: &FlowKey, to: &FlowKey) -> Self {
        Self {
            addresses: Delta::ZERO
                .replace32(from.source.v4_wire(), to.source.v4_wire())
                .replace32(from.destination.v4_wire(), to.destination.v4_wire()),
            ports: Delta::ZERO
                .replace16(from.source_port.wire(), to.source_port.wire())
                .replace16(from.destination_port.wire(), to.destination_port.wire()),
        }
    }
}

/// Writes addresses, ports and the IP header's checksum, and returns what remains to be done to the checksum of TCP or
/// UDP. The time to live is one less: this is a router.
#[inline(always)]
#[must_use]
pub fn apply_headers<W: PacketWindow>(window: &W, headers: &Headers, to: &FlowKey) -> Option<Change> {
    let change = Change::between(&headers.key, to);
    apply_network(window, headers.l3, to, change.addresses)?;
    window.write(headers.l4, Ports::of(to))?;
    Some(change)
}

/// Writes the addresses of an IP header, takes one off its time to live, and changes its checksum.
#[inline(always)]
#[must_use]
pub fn apply_network<W: PacketWindow>(window: &W, l3: usize, to: &FlowKey, addresses: Delta) -> Option<()> {
    let old = window.read::<u16>(l3 + IPV4_TTL)?;
    let new = u16::from_be(old).wrapping_sub(1 << 8).to_be();
    window.write(l3 + IPV4_TTL, new)?;
    apply_addresses(window, l3, to, addresses.replace16(old, new)).map(|_| ())
}

/// Writes the addresses of an IP header and changes its checksum by so much; returns the change of that.
#[inline(always)]
#[must_use]
pub fn apply_addresses<W: PacketWindow>(window: &W, l3: usize, to: &FlowKey, change: Delta) -> Option<Delta> {
    let old = window.read::<u16>(l3 + IPV4_CHECK)?;
    let new = change.apply(old);
    window.write(l3 + IPV4_CHECK, new)?;
    window.write(l3 + IPV4_SOURCE, to.source.v4_wire())?;
    window.write(l3 + IPV4_DESTINATION, to.destination.v4_wire())?;
    Some(Delta::ZERO.replace16(old, new))
}

/// Rewrites a packet whose checksum is whole.
#[inline(always)]
#[must_use]
pub fn apply_whole<W: PacketWindow>(window: &W, headers: &Headers, to: &FlowKey) -> Option<()> {
    let change = apply_headers(window, headers, to)?;
    let all = change.addresses.and(change.ports);
    match headers.proto {
        Proto::Tcp => {
            let check = window.read::<u16>(headers.l4 + TCP_CHECK)?;
            window.write(headers.l4 + TCP_CHECK, all.apply(check))
        }
        Proto::Udp => {
            let check = window.read::<u16>(headers.l4 + UDP_CHECK)?;
            // RFC 768: zero means that the sender computed none, and a computed zero is sent as all ones.
            let updated = match (check, all.apply(check)) {
                (0, _) => 0,
                (_, 0) => 0xffff,
                (_, sum) => sum,
            };
            window.write(headers.l4 + UDP_CHECK, updated)
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        abi::{Address, Port},
        packet::tests::tcp,
    };

    proptest! {
        #[test]
        fn nat_and_its_reversal_restore_the_packet(
            source in any::<[u8; 4]>(), destination in any::<[u8; 4]>(), backend in any::<[u8; 4]>(),
            ports in any::<[u16; 3]>(), checks in any::<[u8; 4]>(),
        ) {
            let mut frame = tcp(source, ports[0], destination, ports[1], 0x10);
            frame.0[24..26].copy_from_slice(&checks[..2]);
            frame.0[50..52].copy_from_slice(&checks[2..]);
            prop_assume!(!matches!(checks, [0 | 255, 0 | 255, ..] | [.., 0 | 255, 0 | 255]));
            let mut original = frame.0.clone();
            let headers = Headers::parse(&frame).unwrap();
            let mut to = headers.key;
            to.destination = Address::from_v4(backend);
            to.destination_port = Port::new(ports[2]);

            apply_whole(&frame, &headers, &to).unwrap();
            let rewritten = Headers::parse(&frame).unwrap();
            prop_assert_eq!(rewritten.key, to);
            apply_whole(&frame, &rewritten, &headers.key).unwrap();

            let before = u16::from_be_bytes([original[24], original[25]]);
            let after = u16::from_be_bytes([frame.0[24], frame.0[25]]);
            prop_assert_eq!(u32::from(after) % 0xffff, (u32::from(before) + 0x200) % 0xffff, "two hops");
            original[22] -= 2;
            original[24..26].copy_from_slice(&frame.0[24..26]);
            prop_assert_eq!(frame.0, original);
        }
    }
}
