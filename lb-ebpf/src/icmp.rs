//! ICMP and ICMPv6 errors: messages about a packet, whose beginning they carry, to whoever sent it.
//!
//! A router that cannot send a packet on says so to its source. The source that it sees is the frontend, where the packet
//! was a backend's, or the client as its backend knows it, where it was a client's; the real sender has to hear of it, and
//! in words that it understands: so the message is translated, and the packet inside as well.

use crate::{
    abi::{Address, FlowKey, Port, Proto},
    checksum::Delta,
    nat::{self, Hops, TCP_CHECK, UDP_CHECK},
    packet::{Chain, Network, PacketWindow, Part, Version},
    verdict::PassReason,
    wire::{ExtensionHdr, ICMP_LEN, IPV4_MIN_LEN, IPV6_LEN, IcmpHdr, Ipv4Hdr, Ipv6Hdr, Ports},
};

/// Where a message has its parts.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(feature = "user", test), derive(Debug))]
pub struct IcmpError {
    /// Who says it.
    pub source: Address,
    /// Whom it is said to.
    pub destination: Address,
    /// Its time to live.
    pub ttl: u8,
    /// The packet that it is about, as that was sent.
    pub about: FlowKey,
    /// The protocol of that.
    pub proto: Proto,
    /// The version of both IP headers.
    version: Version,
    /// Offset of its own IP header, in bytes.
    l3: usize,
    /// Offset of the ICMP header.
    icmp: usize,
    /// Offset of the IP header inside.
    inner_l3: usize,
    /// Offset of the TCP or UDP header inside, of which there are eight bytes or more.
    inner_l4: usize,
    /// Offset of what follows the message.
    end: usize,
}

/// Addresses and ports that a message gets.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(feature = "user", test), derive(Debug))]
pub struct Translated {
    /// Who says it.
    pub source: Address,
    /// Whom it is said to.
    pub destination: Address,
    /// What it is about.
    pub about: FlowKey,
}

/// Bytes of the transport header that every message carries.
///
/// # Source
/// RFC 792. RFC 4443 asks for more.
const QUOTED: usize = 8;

/// An IP header inside a message.
struct Inner {
    source: Address,
    destination: Address,
    protocol: u8,
    part: Part,
    l4: usize,
}

impl Inner {
    /// The packet need not be whole, and its lengths are what they were.
    #[inline(always)]
    fn parse<W: PacketWindow>(window: &W, version: Version, l3: usize) -> Result<Self, PassReason> {
        match version {
            Version::V4 => {
                let Some(ip) = window.read::<Ipv4Hdr>(l3) else { return Err(PassReason::Malformed) };
                let len = ip.header_len();
                if ip.version() != 4 || len < IPV4_MIN_LEN {
                    return Err(PassReason::Malformed);
                }
                let part = if ip.is_later_fragment() { Part::Later } else { Part::Whole };
                let (source, destination) = (ip.source(), ip.destination());
                Ok(Self { source, destination, protocol: ip.protocol, part, l4: l3 + len })
            }
            Version::V6 => {
                let Some(ip) = window.read::<Ipv6Hdr>(l3) else { return Err(PassReason::Malformed) };
                if ip.version() != 6 {
                    return Err(PassReason::Malformed);
                }
                let (source, destination) = (Address::from_v6_wire(ip.source), Address::from_v6_wire(ip.destination));
                let behind = l3 + IPV6_LEN;
                let chain = match ExtensionHdr::is_followed(ip.next) {
                    true => window.chain(behind, ip.next)?,
                    false => Chain::none(ip.next),
                };
                if !source.is_routable_v6() || !destination.is_routable_v6() {
                    return Err(PassReason::Protocol);
                }
                Ok(Self { source, destination, protocol: chain.protocol, part: chain.part, l4: behind + chain.len })
            }
        }
    }
}

impl IcmpError {
    /// Reads a message whose IP header is known.
    ///
    /// # Errors
    /// [`PassReason::Protocol`] if it is not about TCP or UDP, or no error at all.
    ///
    /// # Source
    /// RFC 792; RFC 1812, 4.3.2.3; RFC 4443, 3.
    #[inline(always)]
    pub fn parse<W: PacketWindow>(window: &W, network: &Network) -> Result<Self, PassReason> {
        let Network { version, protocol, ttl, part, l3, l4: icmp, end, .. } = *network;
        if !matches!(part, Part::Whole) {
            return Err(PassReason::Fragment);
        }
        let icmp_of_version = match version {
            Version::V4 => IcmpHdr::PROTOCOL,
            Version::V6 => IcmpHdr::PROTOCOL_V6,
        };
        if protocol != icmp_of_version {
            return Err(PassReason::Protocol);
        }
        let Some(message) = window.read::<IcmpHdr>(icmp) else { return Err(PassReason::Malformed) };
        let is_error = match version {
            Version::V4 => message.is_error(),
            Version::V6 => message.is_error_v6(),
        };
        if !is_error {
            return Err(PassReason::Protocol);
        }
        let inner_l3 = icmp + ICMP_LEN;
        let inner = Inner::parse(window, version, inner_l3)?;
        // Without ports nobody knows whose it was.
        if matches!(inner.part, Part::Later) {
            return Err(PassReason::Protocol);
        }
        let Some(proto) = Proto::from_number(inner.protocol) else { return Err(PassReason::Protocol) };
        let inner_l4 = inner.l4;
        if inner_l4 + QUOTED > end {
            return Err(PassReason::Malformed);
        }
        let Some(ports) = window.read::<Ports>(inner_l4) else { return Err(PassReason::Malformed) };
        let (source_port, destination_port) = ports.pair();
        let Some((source, destination)) = network.addresses(window) else { return Err(PassReason::Malformed) };
        let about = FlowKey::new(inner.source, source_port, inner.destination, destination_port, proto);
        Ok(Self { source, destination, ttl, about, proto, version, l3, icmp, inner_l3, inner_l4, end })
    }

    /// Writes other addresses and ports, outside and inside. All checksums are whole: nobody leaves that of ICMP to a
    /// device. Its time to live is so much less. Returns by how much the sum of the whole packet differs: by the hop limit of IPv6.
    ///
    /// # Source
    /// RFC 5508, 4; the pseudo-header of ICMPv6: RFC 4443, 2.3.
    #[inline(always)]
    #[must_use]
    pub fn apply<W: PacketWindow>(&self, window: &W, to: &Translated, hops: Hops) -> Option<Delta> {
        let none = Port::new(0);
        let from = FlowKey::new(self.source, none, self.destination, none, self.proto);
        let outside = FlowKey::new(to.source, none, to.destination, none, self.proto);
        let addresses = nat::Change::between(self.version, &from, &outside).addresses;

        let inside = nat::Change::between(self.version, &self.about, &to.about);
        let mut changed = inside.addresses.and(inside.ports);
        let inner = (self.version, self.inner_l3);
        changed = changed.and(nat::apply_addresses(window, inner, &to.about, inside.addresses)?);
        window.write(self.inner_l4, Ports::of(&to.about))?;
        if let Some(more) = self.apply_inner_checksum(window, inside) {
            changed = changed.and(more);
        }
        let pseudo_header = match self.version {
            Version::V4 => Delta::ZERO,
            Version::V6 => addresses,
        };
        let check_at = self.icmp + core::mem::offset_of!(IcmpHdr, check);
        let check = window.read::<u16>(check_at)?;
        window.write(check_at, changed.and(pseudo_header).apply(check))?;
        match self.version {
            Version::V4 => nat::apply_v4(window, self.l3, (&outside, hops), addresses).map(|()| Delta::ZERO),
            Version::V6 => nat::apply_v6(window, self.l3, (&outside, hops)),
        }
    }

    /// Changes the checksum of the segment inside, where the message carries it; returns by how much.
    #[inline(always)]
    fn apply_inner_checksum<W: PacketWindow>(&self, window: &W, change: nat::Change) -> Option<Delta> {
        let at = self.inner_l4
            + match self.proto {
                Proto::Tcp => TCP_CHECK,
                Proto::Udp => UDP_CHECK,
            };
        if at + size_of::<u16>() > self.end {
            return None;
        }
        let old = window.read::<u16>(at)?;
        if matches!(self.proto, Proto::Udp) && old == 0 {
            return None;
        }
        let new = change.addresses.and(change.ports).apply(old);
        window.write(at, new)?;
        Some(Delta::ZERO.replace16(old, new))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        packet::tests::{Frame, tcp, tcp_v6, v6},
        wire::ETH_LEN,
    };

    fn sum(bytes: &[u8]) -> u32 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum
    }

    /// A message with so many bytes of the segment that it is about, its checksums whole.
    fn message(about: &Frame, quoted: usize) -> Frame {
        let inner = &about.0[ETH_LEN..ETH_LEN + IPV4_MIN_LEN + quoted];
        let mut bytes = vec![0; ETH_LEN + IPV4_MIN_LEN + ICMP_LEN];
        bytes[12] = 8;
        bytes[14] = 0x45;
        let total = (IPV4_MIN_LEN + ICMP_LEN + inner.len()) as u16;
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
        bytes[22] = 64;
        bytes[23] = IcmpHdr::PROTOCOL;
        bytes[26..34].copy_from_slice(&[198, 18, 9, 9, 198, 18, 0, 1]);
        bytes[34..36].copy_from_slice(&[IcmpHdr::UNREACHABLE, IcmpHdr::FRAGMENTATION_NEEDED]);
        bytes.extend_from_slice(inner);
        let check = !(sum(&bytes[14..34]) as u16);
        bytes[24..26].copy_from_slice(&check.to_be_bytes());
        let check = !(sum(&bytes[34..]) as u16);
        bytes[36..38].copy_from_slice(&check.to_be_bytes());
        Frame(bytes)
    }

    fn parse(frame: &Frame) -> Result<IcmpError, PassReason> {
        IcmpError::parse(frame, &Network::of_frame(frame)?)
    }

    /// The sum over an ICMPv6 message with its pseudo-header, RFC 4443, 2.3.
    fn sum_v6(frame: &[u8]) -> u32 {
        let len = (frame.len() - 54) as u32;
        sum(&[&frame[22..54], &len.to_be_bytes(), &[0, 0, 0, IcmpHdr::PROTOCOL_V6], &frame[54..]].concat())
    }

    /// The same as [`message`] of ICMPv6: "packet too big", about all that there is.
    fn message_v6(about: &Frame) -> Frame {
        let inner = &about.0[ETH_LEN..];
        let mut bytes = tcp_v6((v6(9), 0), (v6(1), 0), 0, &[]).0[..54].to_vec();
        bytes[18..20].copy_from_slice(&((ICMP_LEN + inner.len()) as u16).to_be_bytes());
        bytes[20] = IcmpHdr::PROTOCOL_V6;
        bytes.extend_from_slice(&[IcmpHdr::TOO_BIG_V6, 0, 0, 0, 0, 0, 5, 0x14]);
        bytes.extend_from_slice(inner);
        let check = !(sum_v6(&bytes) as u16);
        bytes[56..58].copy_from_slice(&check.to_be_bytes());
        Frame(bytes)
    }

    fn about_v6() -> Frame {
        tcp_v6((v6(1), 80), (v6(2), 40_000), 0x10, &[])
    }

    #[test]
    fn what_is_no_error_of_icmpv6_about_a_segment_is_told_apart() {
        let cases: [(&str, usize, u8, PassReason); 7] = [
            ("an echo", 54, 128, PassReason::Protocol),
            ("a neighbour solicitation", 54, 135, PassReason::Protocol),
            ("an error that nobody has defined", 54, 100, PassReason::Protocol),
            ("ICMP for IPv4", 20, 1, PassReason::Protocol),
            ("about ICMPv6", 68, 58, PassReason::Protocol),
            ("about a link-local address", 70, 0xfe, PassReason::Protocol),
            ("about IPv4", 62, 0x45, PassReason::Malformed),
        ];
        for (what, at, value, reason) in cases {
            let mut frame = message_v6(&about_v6());
            assert!(parse(&frame).is_ok());
            frame.0[at] = value;
            if value == 0xfe {
                frame.0[71] = 0x80;
            }

            assert_eq!(parse(&frame), Err(reason), "{what}");
        }
    }

    #[test]
    fn extension_headers_inside_are_followed() {
        let fragment = (44, vec![0, 0, 0, 1, 1, 2, 3, 4]);
        let about = tcp_v6((v6(1), 80), (v6(2), 40_000), 0x10, &[(60, vec![0; 8]), fragment]);

        let error = parse(&message_v6(&about)).unwrap();

        assert_eq!((error.about.source_port.number(), error.about.destination_port.number()), (80, 40_000));
        let later = (44, vec![0, 0, 0, 9, 1, 2, 3, 4]);
        let about = tcp_v6((v6(1), 80), (v6(2), 40_000), 0x10, &[later]);
        assert_eq!(parse(&message_v6(&about)), Err(PassReason::Protocol), "a later fragment has no ports");
    }

    #[test]
    fn what_is_no_error_about_a_segment_is_told_apart() {
        let cases: [(&str, usize, u8, PassReason); 6] = [
            ("an echo", 34, 8, PassReason::Protocol),
            ("a fragment of a message", 21, 1, PassReason::Fragment),
            ("about ICMP", 51, 1, PassReason::Protocol),
            ("about a later fragment", 49, 1, PassReason::Protocol),
            ("about IPv6", 42, 0x65, PassReason::Malformed),
            ("about a longer header than it carries", 42, 0x46, PassReason::Malformed),
        ];
        for (what, at, value, reason) in cases {
            let mut frame = message(&tcp([198, 18, 0, 1], 80, [198, 18, 0, 2], 40_000, 0x10), 8);
            assert!(parse(&frame).is_ok());
            frame.0[at] = value;

            assert_eq!(parse(&frame), Err(reason), "{what}");
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = message(&tcp([198, 18, 0, 1], 80, [198, 18, 0, 2], 40_000, 0x10), 8).0;
        for len in 34..whole.len() {
            assert_eq!(parse(&Frame(whole[..len].to_vec())), Err(PassReason::Malformed), "{len}");
        }
    }

    proptest! {
        #[test]
        fn a_translated_message_of_icmpv6_has_right_checksums(
            backend in any::<u8>(), client in any::<u8>(), says in any::<u8>(), ports in any::<[u16; 2]>(),
            check in any::<u16>(),
        ) {
            let address = |last| Address::from(std::net::Ipv6Addr::from(v6(last)));
            let mut about = about_v6();
            about.0[70..72].copy_from_slice(&check.to_be_bytes());
            let frame = message_v6(&about);
            let error = parse(&frame).unwrap();
            let inner_before = sum(&[&frame.0[70..102], &frame.0[102..]].concat());
            let to = Translated {
                source: address(says),
                destination: address(backend),
                about: FlowKey::new(
                    address(backend), Port::new(ports[0]), address(client), Port::new(ports[1]), Proto::Tcp,
                ),
            };

            error.apply(&frame, &to, Hops::ONE).unwrap();

            let after = parse(&frame).unwrap();
            prop_assert_eq!((after.source, after.destination, after.about), (to.source, to.destination, to.about));
            prop_assert_eq!(after.ttl, error.ttl - 1);
            prop_assert_eq!(sum_v6(&frame.0), 0xffff);
            prop_assert_eq!(sum(&[&frame.0[70..102], &frame.0[102..]].concat()) % 0xffff, inner_before % 0xffff);
            prop_assert_eq!(&frame.0[58..62], &[0, 0, 5, 0x14], "the MTU");
        }

        #[test]
        fn a_translated_message_has_right_checksums(
            backend in any::<[u8; 4]>(), client in any::<[u8; 4]>(), says in any::<[u8; 4]>(),
            ports in any::<[u16; 2]>(), check in any::<u16>(), quoted in prop::sample::select(Vec::from([8, 20])),
        ) {
            let mut about = tcp([198, 18, 0, 1], 80, [198, 18, 0, 2], 40_000, 0x10);
            let ip_check = !(sum(&about.0[14..34]) as u16);
            about.0[24..26].copy_from_slice(&ip_check.to_be_bytes());
            about.0[50..52].copy_from_slice(&check.to_be_bytes());
            let frame = message(&about, quoted);
            let error = parse(&frame).unwrap();
            let to = Translated {
                source: Address::from_v4(says),
                destination: Address::from_v4(backend),
                about: FlowKey::new(
                    Address::from_v4(backend), Port::new(ports[0]), Address::from_v4(client), Port::new(ports[1]), Proto::Tcp,
                ),
            };

            error.apply(&frame, &to, Hops::ONE).unwrap();

            let after = parse(&frame).unwrap();
            prop_assert_eq!((after.source, after.destination, after.about), (to.source, to.destination, to.about));
            prop_assert_eq!(after.ttl, error.ttl - 1);
            prop_assert_eq!(sum(&frame.0[14..34]), 0xffff);
            prop_assert_eq!(sum(&frame.0[34..]), 0xffff);
            prop_assert_eq!(sum(&frame.0[42..62]), 0xffff);
        }
    }
}
