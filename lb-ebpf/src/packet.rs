//! From bytes to [`Headers`]: the one place that compares with a packet's end.

use crate::{
    abi::{FlowKey, FragmentKey, Proto},
    tcp_state::Flags,
    verdict::PassReason,
    wire::{
        self, ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthHdr, IPV4_MIN_LEN, Ipv4Hdr,
        Ports, TCP_MIN_LEN, TcpHdr, UDP_LEN, UdpHdr, Wire,
    },
};

/// The bytes of a packet that a program may touch.
///
/// # Safety
/// From `start` to `end` everything is readable and writable as long as no helper moves the packet.
pub unsafe trait PacketWindow {
    /// Returns the address of the first byte.
    fn start(&self) -> usize;
    /// Returns the address behind the last byte.
    fn end(&self) -> usize;
    /// Returns the length of the whole frame in bytes, of which the window may be only the beginning.
    fn frame_len(&self) -> usize;

    /// Returns where a `T` stands, if it is whole.
    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        let start = self.start() + offset;
        if start + size_of::<T>() > self.end() { None } else { Some(start as *mut T) }
    }

    /// Reads a `T`, if it is whole.
    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        let at = self.at::<T>(offset)?;
        // SAFETY: `at` has compared with both ends of the window.
        Some(unsafe { wire::read(at) })
    }

    /// Writes a `T`, if there is room.
    #[inline(always)]
    fn write<T: Wire>(&self, offset: usize, value: T) -> Option<()> {
        let at = self.at::<T>(offset)?;
        // SAFETY: `at` has compared with both ends of the window.
        unsafe { wire::write(at, value) };
        Some(())
    }
}

/// Largest total length that IPv4 can say; a GSO packet beyond it says zero.
const IPV4_MAX_TOTAL: usize = 65_535;

/// An IP header, and where its payload is.
#[derive(Clone, Copy)]
pub struct Network {
    /// The header.
    pub ip: Ipv4Hdr,
    /// Its offset, in bytes.
    pub l3: usize,
    /// Offset of its payload, in bytes.
    pub l4: usize,
    /// Offset of what follows its payload, in bytes.
    pub end: usize,
}

impl Network {
    /// Reads the IP header at `l3` of a packet whose EtherType is known, in network order.
    ///
    /// # Errors
    /// Why it is none, or none of a version that is balanced.
    ///
    /// # Source
    /// RFC 791, 3.1.
    #[inline(always)]
    pub fn parse<W: PacketWindow>(window: &W, l3: usize, ether_type: u16) -> Result<Self, PassReason> {
        match u16::from_be(ether_type) {
            ETHERTYPE_IPV4 => {}
            ETHERTYPE_IPV6 => return Err(PassReason::Ipv6),
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => return Err(PassReason::Vlan),
            _ => return Err(PassReason::NotIp),
        }
        let Some(ip) = window.read::<Ipv4Hdr>(l3) else { return Err(PassReason::Malformed) };
        let ip_len = ip.header_len();
        if ip.version() != 4 || ip_len < IPV4_MIN_LEN {
            return Err(PassReason::Malformed);
        }
        let frame = window.frame_len();
        let total = match ip.total_len() {
            0 if frame > IPV4_MAX_TOTAL => frame - l3,
            said => said,
        };
        if l3 + total > frame || total < ip_len {
            return Err(PassReason::Malformed);
        }
        Ok(Self { ip, l3, l4: l3 + ip_len, end: l3 + total })
    }

    /// Returns what all fragments of the packet's datagram have in common; `None` if it is whole, or cannot be balanced.
    #[inline(always)]
    pub const fn fragment_key(&self) -> Option<FragmentKey> {
        match Proto::from_number(self.ip.protocol) {
            Some(proto) if self.ip.is_fragment() => {
                Some(FragmentKey::new(self.ip.source(), self.ip.destination(), self.ip.id as u32, proto))
            }
            Some(_) | None => None,
        }
    }
}

/// What the datapath knows of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(feature = "user", test), derive(Debug))]
pub struct Headers {
    /// Addresses, ports, protocol.
    pub key: FlowKey,
    /// Its protocol, as a type.
    pub proto: Proto,
    /// Offset of the IP header, in bytes.
    pub l3: usize,
    /// Offset of the TCP or UDP header, in bytes.
    pub l4: usize,
    /// Offset of the payload, in bytes.
    pub payload: usize,
    /// Time to live.
    pub ttl: u8,
    /// TCP flags; none for UDP.
    pub flags: Flags,
    /// TCP acknowledgement number, host order.
    pub acknowledgement: u32,
    /// TCP sequence number, host order.
    pub sequence: u32,
}

impl Headers {
    /// Returns how many bytes there were on the wire if the kernel has merged so many segments: each had headers.
    #[inline(always)]
    pub const fn wire_bytes(&self, bytes: u32, segments: u32) -> u32 {
        bytes.wrapping_add(segments.saturating_sub(1).wrapping_mul(self.payload as u32))
    }

    /// Reads the headers of an Ethernet frame.
    ///
    /// # Errors
    /// Why the packet is none that can be balanced.
    #[inline(always)]
    pub fn parse<W: PacketWindow>(window: &W) -> Result<Self, PassReason> {
        let Some(eth) = window.read::<EthHdr>(0) else { return Err(PassReason::Malformed) };
        Self::parse_network(window, ETH_LEN, eth.ether_type)
    }

    /// Reads the headers of a packet whose network header begins at `l3`, and whose EtherType is known, in network
    /// order.
    ///
    /// # Errors
    /// Why the packet is none that can be balanced.
    ///
    /// # Source
    /// RFC 791, 3.1; RFC 9293, 3.1; RFC 768.
    #[inline(always)]
    pub fn parse_network<W: PacketWindow>(window: &W, l3: usize, ether_type: u16) -> Result<Self, PassReason> {
        let network = Network::parse(window, l3, ether_type)?;
        Self::parse_transport(window, &network)
    }

    /// Reads what follows an IP header.
    ///
    /// # Errors
    /// Why the packet is none that can be balanced.
    ///
    /// # Source
    /// RFC 791, 3.1; RFC 9293, 3.1; RFC 768.
    #[inline(always)]
    pub fn parse_transport<W: PacketWindow>(window: &W, network: &Network) -> Result<Self, PassReason> {
        let Network { ip, l3, l4, end } = *network;
        let Some(proto) = Proto::from_number(ip.protocol) else { return Err(PassReason::Protocol) };
        if ip.is_later_fragment() {
            return Err(PassReason::Fragment);
        }
        let ttl = ip.ttl;
        let segment = end - l4;
        let Some(ports) = window.read::<Ports>(l4) else { return Err(PassReason::Malformed) };
        let (source_port, destination_port) = ports.pair();
        let key = FlowKey::new(ip.source(), source_port, ip.destination(), destination_port, proto);
        match proto {
            Proto::Tcp => {
                let Some(tcp) = window.read::<TcpHdr>(l4) else { return Err(PassReason::Malformed) };
                let tcp_len = tcp.header_len();
                if tcp_len < TCP_MIN_LEN || tcp_len > segment {
                    return Err(PassReason::Malformed);
                }
                Ok(Self {
                    key,
                    proto,
                    l3,
                    l4,
                    payload: l4 + tcp_len,
                    ttl,
                    flags: Flags(tcp.flags),
                    acknowledgement: u32::from_be(tcp.acknowledgement),
                    sequence: u32::from_be(tcp.sequence),
                })
            }
            Proto::Udp => {
                let Some(udp) = window.read::<UdpHdr>(l4) else { return Err(PassReason::Malformed) };
                let said = u16::from_be(udp.len) as usize;
                let too_short = said < UDP_LEN && !(said == 0 && segment > IPV4_MAX_TOTAL - IPV4_MIN_LEN);
                if too_short || (said > segment && !ip.is_fragment()) {
                    return Err(PassReason::Malformed);
                }
                let (payload, flags) = (l4 + UDP_LEN, Flags(0));
                Ok(Self { key, proto, l3, l4, payload, ttl, flags, acknowledgement: 0, sequence: 0 })
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    /// A frame in memory, for tests on the host.
    pub struct Frame(pub Vec<u8>);

    // SAFETY: the window is the vector, which nobody resizes while it is looked at.
    unsafe impl PacketWindow for Frame {
        fn start(&self) -> usize {
            self.0.as_ptr().expose_provenance()
        }
        fn end(&self) -> usize {
            self.start() + self.0.len()
        }
        fn frame_len(&self) -> usize {
            self.0.len()
        }
    }

    /// Builds a TCP segment without payload; checksums are zero.
    pub fn tcp(source: [u8; 4], source_port: u16, destination: [u8; 4], destination_port: u16, flags: u8) -> Frame {
        let mut bytes = vec![0; 54];
        bytes[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        bytes[14] = 0x45;
        bytes[16..18].copy_from_slice(&40_u16.to_be_bytes());
        bytes[22] = 64;
        bytes[23] = 6;
        bytes[26..30].copy_from_slice(&source);
        bytes[30..34].copy_from_slice(&destination);
        bytes[34..36].copy_from_slice(&source_port.to_be_bytes());
        bytes[36..38].copy_from_slice(&destination_port.to_be_bytes());
        bytes[46] = 0x50;
        bytes[47] = flags;
        Frame(bytes)
    }

    #[test]
    fn a_segment_is_read() {
        let frame = tcp([198, 18, 0, 2], 40_000, [198, 18, 0, 1], 80, 0x02);

        let headers = Headers::parse(&frame).unwrap();

        assert_eq!(headers.key.source.v4(), Some([198, 18, 0, 2]));
        assert_eq!(headers.key.destination_port.number(), 80);
        assert_eq!(headers.l4, 34);
        assert!(headers.flags.opens());
    }

    #[test]
    fn merged_segments_count_as_they_came() {
        let headers = Headers::parse(&tcp([198, 18, 0, 2], 40_000, [198, 18, 0, 1], 80, 0x10)).unwrap();

        assert_eq!(headers.wire_bytes(1514, 0), 1514, "the kernel says zero for one");
        assert_eq!(headers.wire_bytes(1514, 1), 1514);
        assert_eq!(headers.wire_bytes(54 + 3 * 1460, 3), 3 * 1514);
    }

    #[test]
    fn a_packet_without_a_link_header_is_read() {
        let frame = tcp([198, 18, 0, 2], 40_000, [198, 18, 0, 1], 80, 0x02);
        let with = Headers::parse(&frame).unwrap();

        let without = Headers::parse_network(&Frame(frame.0[14..].to_vec()), 0, ETHERTYPE_IPV4.to_be()).unwrap();

        assert_eq!((without.key, without.l4 + 14, without.payload + 14), (with.key, with.l4, with.payload));
    }

    #[test]
    fn what_is_no_whole_segment_is_told_apart() {
        let cases: [(&str, usize, u8, PassReason); 6] = [
            ("ARP", 13, 0x06, PassReason::NotIp),
            ("version 6 in an IPv4 frame", 14, 0x65, PassReason::Malformed),
            ("a header of four words", 14, 0x44, PassReason::Malformed),
            ("ICMP", 23, 1, PassReason::Protocol),
            ("more than the frame holds", 17, 41, PassReason::Malformed),
            ("a TCP header longer than the segment", 46, 0x60, PassReason::Malformed),
        ];
        for (what, at, value, reason) in cases {
            let mut frame = tcp([198, 18, 0, 2], 40_000, [198, 18, 0, 1], 80, 0x02);
            frame.0[at] = value;

            assert_eq!(Headers::parse(&frame).map(|_| ()), Err(reason), "{what}");
        }
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        let datagram = || tcp([198, 18, 0, 2], 40_000, [198, 18, 0, 1], 80, 0x10);
        for (offset, is_fragment, expected) in [
            (0x0000_u16, false, Ok(80)),
            (0x4000, false, Ok(80)),
            (0x2000, true, Ok(80)),
            (0x2001, true, Err(PassReason::Fragment)),
            (0x0001, true, Err(PassReason::Fragment)),
        ] {
            let mut frame = datagram();
            frame.0[20..22].copy_from_slice(&offset.to_be_bytes());

            let port = Headers::parse(&frame).map(|headers| headers.key.destination_port.number());
            let network = Network::parse(&frame, ETH_LEN, ETHERTYPE_IPV4.to_be()).unwrap();

            assert_eq!((port, network.fragment_key().is_some()), (expected, is_fragment), "{offset:#x}");
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = tcp([198, 18, 0, 2], 40_000, [198, 18, 0, 1], 80, 0x02).0;
        for len in 0..whole.len() {
            assert_eq!(Headers::parse(&Frame(whole[..len].to_vec())).map(|_| ()), Err(PassReason::Malformed), "{len}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_pass(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let frame = Frame(bytes);
            if let Ok(headers) = Headers::parse(&frame) {
                prop_assert!(headers.l4 + UDP_LEN <= frame.0.len());
                prop_assert!(headers.payload <= frame.0.len());
            }
        }
    }
}
