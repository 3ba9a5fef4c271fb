//! A packet given other addresses and ports.
//!
//! The IPv4 header's checksum is always whole and is changed in place; IPv6 has none, and its sender's sum over the whole
//! packet, where the kernel has it from the device, is told what the header has become. The checksum of TCP and UDP is not: a segment from
//! a local veth carries only the sum of its pseudo-header, and a device may have summed the packet already. Where the
//! kernel knows (TC), its helpers change it; where nobody does (XDP), the uplink must deliver whole checksums.

use crate::{
    abi::{Backend, FlowKey, Proto},
    checksum::Delta,
    packet::{Headers, PacketWindow, Version},
    wire::{Ipv4Hdr, Ipv6Hdr, Ports},
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

/// Offset of what follows an IPv6 header; the hop limit stands behind it.
const IPV6_NEXT: usize = core::mem::offset_of!(Ipv6Hdr, next);
/// Offsets of the addresses in an IPv6 header.
const IPV6_SOURCE: usize = core::mem::offset_of!(Ipv6Hdr, source);
const IPV6_DESTINATION: usize = core::mem::offset_of!(Ipv6Hdr, destination);

/// How many routers a packet passes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hops(u16);

impl Hops {
    /// One: this is a router.
    pub const ONE: Self = Self(1);
    /// None: it is this host's own.
    pub const NONE: Self = Self(0);

    /// Returns how many there are on the way to a backend: the kernel's routing counts itself, and what ends here passes none.
    #[inline(always)]
    pub const fn to(backend: &Backend) -> Self {
        Self(backend.is_redirected_to() as u16)
    }

    /// Takes them off the word in which the time to live comes first.
    #[inline(always)]
    const fn off_first(self, word: u16) -> u16 {
        u16::from_be(word).wrapping_sub(self.0 << 8).to_be()
    }

    /// The same where it comes second.
    #[inline(always)]
    const fn off_second(self, word: u16) -> u16 {
        u16::from_be(word).wrapping_sub(self.0).to_be()
    }
}

/// By how much the checksum of TCP or UDP has to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// By the pseudo-header.
    pub addresses: Delta,
    /// By the segment itself.
    pub ports: Delta,
    /// By how much the sum of the IP header differs; zero for IPv4, whose own checksum makes up for it.
    pub header: Delta,
}

impl Change {
    /// Compares two keys of IPv4.
    #[inline(always)]
    const fn between_v4(from: &FlowKey, to: &FlowKey) -> Self {
        let addresses = Delta::ZERO
            .replace32(from.source.v4_wire(), to.source.v4_wire())
            .replace32(from.destination.v4_wire(), to.destination.v4_wire());
        Self { addresses, ports: Self::ports(from, to), header: Delta::ZERO }
    }

    /// Compares two keys of IPv6.
    #[inline(always)]
    const fn between_v6(from: &FlowKey, to: &FlowKey) -> Self {
        let addresses = Delta::ZERO
            .replace128(from.source.v6_wire(), to.source.v6_wire())
            .replace128(from.destination.v6_wire(), to.destination.v6_wire());
        Self { addresses, ports: Self::ports(from, to), header: Delta::ZERO }
    }

    /// Compares two keys of a version.
    #[inline(always)]
    pub const fn between(version: Version, from: &FlowKey, to: &FlowKey) -> Self {
        match version {
            Version::V4 => Self::between_v4(from, to),
            Version::V6 => Self::between_v6(from, to),
        }
    }

    #[inline(always)]
    const fn ports(from: &FlowKey, to: &FlowKey) -> Delta {
        Delta::ZERO
            .replace16(from.source_port.wire(), to.source_port.wire())
            .replace16(from.destination_port.wire(), to.destination_port.wire())
    }
}

/// Writes addresses, ports and the IP header's checksum, and returns what remains to be done to the checksum of TCP or
/// UDP. The time to live is so much less.
#[inline(always)]
#[must_use]
pub fn apply_headers<W: PacketWindow>(window: &W, headers: &Headers, to: &FlowKey, hops: Hops) -> Option<Change> {
    let l3 = headers.l3;
    // Asked of the packet, where the verifier does not know the answer: it would follow both versions through all that
    // comes before.
    let change = match Version::at(window, l3)? {
        Version::V4 => {
            let change = Change::between_v4(&headers.key, to);
            apply_v4(window, l3, (to, hops), change.addresses)?;
            change
        }
        Version::V6 => {
            let change = Change::between_v6(&headers.key, to);
            Change { header: apply_v6(window, l3, (to, hops))?.and(change.addresses), ..change }
        }
    };
    window.write(headers.l4, Ports::of(to))?;
    Some(change)
}

/// Writes the addresses of an IP header, takes hops off its time to live, and changes its checksum if it has one. Returns
/// by how much its sum differs, [`Change::header`].
#[inline(always)]
#[must_use]
pub fn apply_network<W: PacketWindow>(
    window: &W,
    (version, l3): (Version, usize),
    from: &FlowKey,
    (to, hops): (&FlowKey, Hops),
) -> Option<Delta> {
    let addresses = Change::between(version, from, to).addresses;
    match version {
        Version::V4 => apply_v4(window, l3, (to, hops), addresses).map(|()| Delta::ZERO),
        Version::V6 => apply_v6(window, l3, (to, hops)).map(|hop| hop.and(addresses)),
    }
}

/// Lets a packet pass as many routers as is said; returns by how much the sum of its IP header differs, [`Change::header`].
#[inline(always)]
#[must_use]
pub fn set_ttl<W: PacketWindow>(window: &W, (version, l3): (Version, usize), ttl: u8) -> Option<Delta> {
    match version {
        Version::V4 => {
            let old = window.read::<u16>(l3 + IPV4_TTL)?;
            let new = u16::from_ne_bytes([ttl, old.to_ne_bytes()[1]]);
            let check = window.read::<u16>(l3 + IPV4_CHECK)?;
            let change = Delta::ZERO.replace16(old, new);
            window.write(l3 + IPV4_TTL, new)?;
            window.write(l3 + IPV4_CHECK, change.apply(check))?;
            Some(Delta::ZERO)
        }
        Version::V6 => {
            let old = window.read::<u16>(l3 + IPV6_NEXT)?;
            let new = u16::from_ne_bytes([old.to_ne_bytes()[0], ttl]);
            window.write(l3 + IPV6_NEXT, new)?;
            Some(Delta::ZERO.replace16(old, new))
        }
    }
}

/// Writes the addresses of an IPv4 header, takes hops off its time to live, and changes its checksum.
#[inline(always)]
#[must_use]
pub fn apply_v4<W: PacketWindow>(window: &W, l3: usize, (to, hops): (&FlowKey, Hops), addresses: Delta) -> Option<()> {
    let old = window.read::<u16>(l3 + IPV4_TTL)?;
    let new = hops.off_first(old);
    window.write(l3 + IPV4_TTL, new)?;
    apply_addresses_v4(window, l3, to, addresses.replace16(old, new)).map(|_| ())
}

/// Writes the addresses of an IPv6 header and takes hops off its hop limit; returns by how much that changes its sum.
#[inline(always)]
#[must_use]
pub fn apply_v6<W: PacketWindow>(window: &W, l3: usize, (to, hops): (&FlowKey, Hops)) -> Option<Delta> {
    let old = window.read::<u16>(l3 + IPV6_NEXT)?;
    let new = hops.off_second(old);
    window.write(l3 + IPV6_NEXT, new)?;
    apply_addresses_v6(window, l3, to)?;
    Some(Delta::ZERO.replace16(old, new))
}

/// Writes the addresses of an IP header and changes its checksum by so much, if it has one; returns the change of that.
#[inline(always)]
#[must_use]
pub fn apply_addresses<W: PacketWindow>(
    window: &W,
    (version, l3): (Version, usize),
    to: &FlowKey,
    change: Delta,
) -> Option<Delta> {
    match version {
        Version::V4 => apply_addresses_v4(window, l3, to, change),
        Version::V6 => apply_addresses_v6(window, l3, to).map(|()| Delta::ZERO),
    }
}

#[inline(always)]
fn apply_addresses_v6<W: PacketWindow>(window: &W, l3: usize, to: &FlowKey) -> Option<()> {
    window.write(l3 + IPV6_SOURCE, to.source.v6_wire())?;
    window.write(l3 + IPV6_DESTINATION, to.destination.v6_wire())
}

#[inline(always)]
fn apply_addresses_v4<W: PacketWindow>(window: &W, l3: usize, to: &FlowKey, change: Delta) -> Option<Delta> {
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
pub fn apply_whole<W: PacketWindow>(window: &W, headers: &Headers, to: &FlowKey, hops: Hops) -> Option<()> {
    let change = apply_headers(window, headers, to, hops)?;
    let all = change.addresses.and(change.ports);
    match headers.proto {
        Proto::Tcp => {
            let check = window.read::<u16>(headers.l4 + TCP_CHECK)?;
            window.write(headers.l4 + TCP_CHECK, all.apply(check))
        }
        Proto::Udp => {
            let check = window.read::<u16>(headers.l4 + UDP_CHECK)?;
            // RFC 768: zero means that the sender computed none, and a computed zero is sent as all ones. IPv6 allows
            // none for tunnels alone (RFC 6935); whether this is one, its receiver knows.
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
        packet::tests::{tcp, tcp_v6, v6},
    };

    /// The sum over words of two bytes, RFC 1071, 4.1.
    fn sum(parts: &[&[u8]]) -> u32 {
        let bytes = parts.concat();
        let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum
    }

    /// The sum over a segment of TCP over IPv6 with its pseudo-header, RFC 8200, 8.1.
    fn segment_sum(frame: &[u8]) -> u32 {
        sum(&[&frame[22..54], &[0, 0, 0, 20, 0, 0, 0, 6], &frame[54..74]])
    }

    #[test]
    fn routing_counts_itself_and_what_ends_here_passes_none() {
        use crate::abi::HandOff;
        let hops = |hand_off| {
            let backend = Backend::new(0, 1, Address::from_v4([198, 18, 2, 11]), Port::new(80));
            Hops::to(&backend.reached_by(hand_off, 1, [0; 6], [0; 6]))
        };
        assert_eq!([HandOff::Peer, HandOff::Neighbour].map(hops), [Hops::ONE; 2]);
        assert_eq!([HandOff::Routing, HandOff::Local].map(hops), [Hops::NONE; 2]);
        let frame = tcp([198, 18, 0, 2], 40_000, [198, 18, 0, 1], 80, 0x10);
        let headers = Headers::parse(&frame).unwrap();

        apply_whole(&frame, &headers, &headers.key, Hops(0)).unwrap();

        assert_eq!(frame.0, tcp([198, 18, 0, 2], 40_000, [198, 18, 0, 1], 80, 0x10).0, "nothing else is touched");
    }

    proptest! {
        #[test]
        fn a_segment_over_ipv6_keeps_a_right_checksum(
            client in any::<u8>(), frontend in any::<u8>(), backend in any::<[u8; 15]>(), ports in any::<[u16; 3]>(),
        ) {
            let mut frame = tcp_v6((v6(client), ports[0]), (v6(frontend), ports[1]), 0x10, &[]);
            let check = !(segment_sum(&frame.0) as u16);
            frame.0[70..72].copy_from_slice(&check.to_be_bytes());
            let before = frame.0.clone();
            let headers = Headers::parse(&frame).unwrap();
            let mut to = headers.key;
            let bytes = core::array::from_fn(|at| if at == 0 { 0x20 } else { backend[at - 1] });
            to.destination = Address::from(std::net::Ipv6Addr::from(bytes));
            to.destination_port = Port::new(ports[2]);

            apply_whole(&frame, &headers, &to, Hops::ONE).unwrap();

            let rewritten = Headers::parse(&frame).unwrap();
            prop_assert_eq!(rewritten.key, to);
            prop_assert_eq!(rewritten.ttl, headers.ttl - 1);
            prop_assert_eq!(segment_sum(&frame.0), 0xffff);
            prop_assert_eq!(&frame.0[..21], &before[..21]);
        }

        #[test]
        fn what_the_header_of_ipv6_adds_to_the_whole_sum_is_told(backend in any::<[u8; 15]>(), port in any::<u16>()) {
            let frame = tcp_v6((v6(2), 40_000), (v6(1), 80), 0x10, &[]);
            let headers = Headers::parse(&frame).unwrap();
            let bytes = core::array::from_fn(|at| if at == 0 { 0x20 } else { backend[at - 1] });
            let mut to = headers.key;
            (to.destination, to.destination_port) = (Address::from(std::net::Ipv6Addr::from(bytes)), Port::new(port));
            let before = sum(&[&frame.0[14..54]]);

            let change = apply_headers(&frame, &headers, &to, Hops::ONE).unwrap();

            // As the kernel adds it to a sum that it has of the device.
            let as_held = |sum: u32| u64::from((sum as u16).to_be());
            let told = as_held(before) + u64::from(change.header.wsum());
            prop_assert_eq!(told % 0xffff, as_held(sum(&[&frame.0[14..54]])) % 0xffff);
        }

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

            apply_whole(&frame, &headers, &to, Hops::ONE).unwrap();
            let rewritten = Headers::parse(&frame).unwrap();
            prop_assert_eq!(rewritten.key, to);
            apply_whole(&frame, &rewritten, &headers.key, Hops::ONE).unwrap();

            let before = u16::from_be_bytes([original[24], original[25]]);
            let after = u16::from_be_bytes([frame.0[24], frame.0[25]]);
            prop_assert_eq!(u32::from(after) % 0xffff, (u32::from(before) + 0x200) % 0xffff, "two hops");
            original[22] -= 2;
            original[24..26].copy_from_slice(&frame.0[24..26]);
            prop_assert_eq!(frame.0, original);
        }
    }
}
