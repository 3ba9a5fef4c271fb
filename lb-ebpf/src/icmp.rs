//! ICMP errors: messages about a packet, whose beginning they carry, to whoever sent it.
//!
//! A router that cannot send a packet on says so to its source. The source that it sees is the frontend, where the packet
//! was a backend's, or the client as its backend knows it, where it was a client's; the real sender has to hear of it, and
//! in words that it understands: so the message is translated, and the packet inside as well.

use crate::{
    abi::{Address, FlowKey, Port, Proto},
    checksum::Delta,
    nat::{self, TCP_CHECK, UDP_CHECK},
    packet::{Network, PacketWindow},
    verdict::PassReason,
    wire::{ICMP_LEN, IPV4_MIN_LEN, IcmpHdr, Ipv4Hdr, Ports},
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
/// RFC 792.
const QUOTED: usize = 8;

impl IcmpError {
    /// Reads a message whose IP header is known.
    ///
    /// # Errors
    /// [`PassReason::Protocol`] if it is not about TCP or UDP, or no error at all.
    ///
    /// # Source
    /// RFC 792; RFC 1812, 4.3.2.3.
    #[inline(always)]
    pub fn parse<W: PacketWindow>(window: &W, network: &Network) -> Result<Self, PassReason> {
        let Network { ip, l3, l4: icmp, end } = network;
        if ip.is_fragment() {
            return Err(PassReason::Fragment);
        }
        if ip.protocol != IcmpHdr::PROTOCOL {
            return Err(PassReason::Protocol);
        }
        let Some(message) = window.read::<IcmpHdr>(*icmp) else { return Err(PassReason::Malformed) };
        if !message.is_error() {
            return Err(PassReason::Protocol);
        }
        let inner_l3 = icmp + ICMP_LEN;
        let Some(inner) = window.read::<Ipv4Hdr>(inner_l3) else { return Err(PassReason::Malformed) };
        let inner_len = inner.header_len();
        if inner.version() != 4 || inner_len < IPV4_MIN_LEN {
            return Err(PassReason::Malformed);
        }
        // Without ports nobody knows whose it was.
        if inner.is_later_fragment() {
            return Err(PassReason::Protocol);
        }
        let Some(proto) = Proto::from_number(inner.protocol) else { return Err(PassReason::Protocol) };
        let inner_l4 = inner_l3 + inner_len;
        if inner_l4 + QUOTED > *end {
            return Err(PassReason::Malformed);
        }
        let Some(ports) = window.read::<Ports>(inner_l4) else { return Err(PassReason::Malformed) };
        let (source_port, destination_port) = ports.pair();
        let about = FlowKey::new(inner.source(), source_port, inner.destination(), destination_port, proto);
        Ok(Self {
            source: ip.source(),
            destination: ip.destination(),
            ttl: ip.ttl,
            about,
            proto,
            l3: *l3,
            icmp: *icmp,
            inner_l3,
            inner_l4,
            end: *end,
        })
    }

    /// Writes other addresses and ports, outside and inside. All checksums are whole: nobody leaves that of ICMP to a
    /// device.
    ///
    /// # Source
    /// RFC 5508, 4.
    #[inline(always)]
    #[must_use]
    pub fn apply<W: PacketWindow>(&self, window: &W, to: &Translated) -> Option<()> {
        let inside = nat::Change::between(&self.about, &to.about);
        let mut changed = inside.addresses.and(inside.ports);
        changed = changed.and(nat::apply_addresses(window, self.inner_l3, &to.about, inside.addresses)?);
        window.write(self.inner_l4, Ports::of(&to.about))?;
        if let Some(more) = self.apply_inner_checksum(window, inside) {
            changed = changed.and(more);
        }
        let check_at = self.icmp + core::mem::offset_of!(IcmpHdr, check);
        let check = window.read::<u16>(check_at)?;
        window.write(check_at, changed.apply(check))?;

        let none = Port::new(0);
        let from = FlowKey::new(self.source, none, self.destination, none, self.proto);
        let outside = FlowKey::new(to.source, none, to.destination, none, self.proto);
        nat::apply_network(window, self.l3, &outside, nat::Change::between(&from, &outside).addresses)
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
        packet::tests::{Frame, tcp},
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
        IcmpError::parse(frame, &Network::parse(frame, ETH_LEN, 0x0800_u16.to_be())?)
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

            error.apply(&frame, &to).unwrap();

            let after = parse(&frame).unwrap();
            prop_assert_eq!((after.source, after.destination, after.about), (to.source, to.destination, to.about));
            prop_assert_eq!(after.ttl, error.ttl - 1);
            prop_assert_eq!(sum(&frame.0[14..34]), 0xffff);
            prop_assert_eq!(sum(&frame.0[34..]), 0xffff);
            prop_assert_eq!(sum(&frame.0[42..62]), 0xffff);
        }
    }
}
