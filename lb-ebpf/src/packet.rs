//! From bytes to [`Headers`]: the one place that compares with a packet's end.

use crate::{
    abi::{Address, FlowKey, FragmentKey, Proto},
    tcp_state::Flags,
    verdict::PassReason,
    wire::{
        self, ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthHdr, ExtensionHdr,
        IPV4_MIN_LEN, IPV6_LEN, Ipv4Hdr, Ipv6Hdr, Ports, TCP_MIN_LEN, TcpHdr, UDP_LEN, UdpHdr, Wire,
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

    /// Follows the extension headers of IPv6 at `from`, the first of which has the number `first`. A window may leave that
    /// to a function of its own, or to others.
    ///
    /// # Errors
    /// As [`Chain::follow`].
    #[inline(always)]
    fn chain(&self, from: usize, first: u8) -> Result<Chain, PassReason>
    where
        Self: Sized,
    {
        Chain::follow(self, from, first)
    }
}

/// Largest total length that IPv4 can say, and payload that IPv6 can; a GSO packet beyond it says zero.
const MAX_SAID: usize = 65_535;
/// How many extension headers are followed: as many as a packet of TCP or UDP has in the order that RFC 8200, 4.1 asks for,
/// what is encrypted left out.
const MAX_EXTENSIONS: u32 = 5;
/// How many bytes of them are.
pub const MAX_EXTENSIONS_LEN: usize = 256;

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

impl Version {
    /// Reads the version of the IP header at `l3`, which is known to be one.
    #[inline(always)]
    pub fn at<W: PacketWindow>(window: &W, l3: usize) -> Option<Self> {
        Some(if window.read::<u8>(l3)? >> 4 == 6 { Self::V6 } else { Self::V4 })
    }
}

/// Whether a packet is a part of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It is whole.
    Whole,
    /// It is the first of its fragments, with the ports.
    First,
    /// Others went before it.
    Later,
}

impl Part {
    #[inline(always)]
    const fn of(is_later: bool, has_more: bool) -> Self {
        match (is_later, has_more) {
            (true, _) => Self::Later,
            (false, true) => Self::First,
            (false, false) => Self::Whole,
        }
    }
}

/// The extension headers of an IPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The protocol that follows them.
    pub protocol: u8,
    /// What the fragment header says.
    pub part: Part,
    /// How long they are, in bytes.
    pub len: usize,
    /// The identification in the fragment header, as it stands there.
    pub id: u32,
}

impl Chain {
    /// None at all.
    #[inline(always)]
    pub const fn none(protocol: u8) -> Self {
        Self { protocol, part: Part::Whole, len: 0, id: 0 }
    }

    /// Follows the headers at `from`, the first of which has the number `first`. In a later fragment, what follows the
    /// fragment header is no header.
    ///
    /// # Errors
    /// [`PassReason::Extensions`] if there are more than are followed, or one leads elsewhere; [`PassReason::Malformed`] if the packet ends before.
    ///
    /// # Source
    /// RFC 8200, 4. A fragment header of a packet that is whole is allowed: RFC 6946.
    #[inline(always)]
    pub fn follow<W: PacketWindow>(window: &W, from: usize, first: u8) -> Result<Self, PassReason> {
        let mut chain = Self::none(first);
        let mut has_fragment = false;
        for _ in 0..MAX_EXTENSIONS {
            if !ExtensionHdr::is_followed(chain.protocol) || matches!(chain.part, Part::Later) {
                return Ok(chain);
            }
            let Some(header) = window.read::<ExtensionHdr>(from + chain.len) else { return Err(PassReason::Malformed) };
            if chain.protocol == ExtensionHdr::FRAGMENT {
                if has_fragment {
                    return Err(PassReason::Extensions);
                }
                has_fragment = true;
                chain.part = Part::of(header.is_later(), header.has_more());
                chain.id = header.id;
                chain.len += size_of::<ExtensionHdr>();
            } else if header.has_segments_left(chain.protocol) {
                // Its destination is on the way only, and not the one that its checksum is about (RFC 8200, 8.1).
                return Err(PassReason::Extensions);
            } else {
                chain.len += header.header_len();
            }
            chain.protocol = header.next;
            if chain.len > MAX_EXTENSIONS_LEN {
                return Err(PassReason::Extensions);
            }
        }
        match ExtensionHdr::is_followed(chain.protocol) && !matches!(chain.part, Part::Later) {
            true => Err(PassReason::Extensions),
            false => Ok(chain),
        }
    }

    /// Returns the outcome of [`Chain::follow`] as two words, [`Chain::from_words`].
    ///
    /// # Shape
    /// Length in the low 16 bits, then part and protocol, a byte each; the identification.
    #[inline(always)]
    pub const fn words(outcome: &Result<Self, PassReason>) -> [u32; 2] {
        match *outcome {
            Ok(Self { protocol, part, len, id }) => [len as u32 | (part as u32) << 16 | (protocol as u32) << 24, id],
            Err(PassReason::Extensions) => [TOO_LONG << 16, 0],
            Err(_) => [BROKEN << 16, 0],
        }
    }

    /// Reads what [`Chain::words`] has written.
    ///
    /// # Errors
    /// As there.
    #[inline(always)]
    pub const fn from_words([word, id]: [u32; 2]) -> Result<Self, PassReason> {
        const WHOLE: u32 = Part::Whole as u32;
        const FIRST: u32 = Part::First as u32;
        const LATER: u32 = Part::Later as u32;
        let part = match word >> 16 & 0xff {
            WHOLE => Part::Whole,
            FIRST => Part::First,
            LATER => Part::Later,
            TOO_LONG => return Err(PassReason::Extensions),
            _ => return Err(PassReason::Malformed),
        };
        // The verifier wants a limit, and knows none of what it has not seen to be written.
        let len = word as usize & (MAX_EXTENSIONS_LEN * 2 - 1);
        Ok(Self { protocol: (word >> 24) as u8, part, len, id })
    }
}

/// In the place of a [`Part`]: the headers are too many or too long.
const TOO_LONG: u32 = 3;
/// In the place of a [`Part`]: the packet ends before them.
const BROKEN: u32 = 4;

/// An IP header, and where its payload is.
#[derive(Clone, Copy)]
pub struct Network {
    /// Its version.
    pub version: Version,
    /// The protocol of its payload.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Whether it is a part of a datagram.
    pub part: Part,
    /// What the parts have in common, as it stands in the packet.
    pub id: u32,
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
    /// Why it is none.
    #[inline(always)]
    pub fn parse<W: PacketWindow>(window: &W, l3: usize, ether_type: u16) -> Result<Self, PassReason> {
        match u16::from_be(ether_type) {
            ETHERTYPE_IPV4 => Self::parse_v4(window, l3),
            ETHERTYPE_IPV6 => Self::parse_v6(window, l3),
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(PassReason::Vlan),
            _ => Err(PassReason::NotIp),
        }
    }

    /// Reads the IP header of an Ethernet frame.
    ///
    /// # Errors
    /// As [`Network::parse`].
    #[inline(always)]
    pub fn of_frame<W: PacketWindow>(window: &W) -> Result<Self, PassReason> {
        let Some(eth) = window.read::<EthHdr>(0) else { return Err(PassReason::Malformed) };
        Self::parse(window, ETH_LEN, eth.ether_type)
    }

    /// # Source
    /// RFC 791, 3.1.
    #[inline(always)]
    fn parse_v4<W: PacketWindow>(window: &W, l3: usize) -> Result<Self, PassReason> {
        let Some(ip) = window.read::<Ipv4Hdr>(l3) else { return Err(PassReason::Malformed) };
        let ip_len = ip.header_len();
        if ip.version() != 4 || ip_len < IPV4_MIN_LEN {
            return Err(PassReason::Malformed);
        }
        let frame = window.frame_len();
        let total = match ip.total_len() {
            0 if frame > MAX_SAID => frame - l3,
            said => said,
        };
        if l3 + total > frame || total < ip_len {
            return Err(PassReason::Malformed);
        }
        Ok(Self {
            version: Version::V4,
            protocol: ip.protocol,
            ttl: ip.ttl,
            part: Part::of(ip.is_later_fragment(), ip.is_fragment()),
            id: u32::from(ip.id),
            l3,
            l4: l3 + ip_len,
            end: l3 + total,
        })
    }

    /// # Source
    /// RFC 8200, 3.
    #[inline(always)]
    fn parse_v6<W: PacketWindow>(window: &W, l3: usize) -> Result<Self, PassReason> {
        let Some(ip) = window.read::<Ipv6Hdr>(l3) else { return Err(PassReason::Malformed) };
        if ip.version() != 6 {
            return Err(PassReason::Malformed);
        }
        let frame = window.frame_len();
        let total = match ip.total_len() {
            IPV6_LEN if frame > MAX_SAID => frame - l3,
            said => said,
        };
        if l3 + total > frame {
            return Err(PassReason::Malformed);
        }
        let behind = l3 + IPV6_LEN;
        let chain = match ExtensionHdr::is_followed(ip.next) {
            true => window.chain(behind, ip.next)?,
            false => Chain::none(ip.next),
        };
        if chain.len > total - IPV6_LEN {
            return Err(PassReason::Malformed);
        }
        let Some(ip) = window.read::<Ipv6Hdr>(l3) else { return Err(PassReason::Malformed) };
        Ok(Self {
            version: Version::V6,
            protocol: chain.protocol,
            ttl: ip.hop_limit,
            part: chain.part,
            id: chain.id,
            l3,
            l4: behind + chain.len,
            end: l3 + total,
        })
    }

    /// Reads who sent it, and to whom. Last of all: a program's stack has no room to keep them beside all that is read
    /// before they are stored.
    #[inline(always)]
    pub fn addresses<W: PacketWindow>(&self, window: &W) -> Option<(Address, Address)> {
        match self.version {
            Version::V4 => self.addresses_v4(window),
            Version::V6 => self.addresses_v6(window),
        }
    }

    #[inline(always)]
    fn addresses_v4<W: PacketWindow>(&self, window: &W) -> Option<(Address, Address)> {
        let ip = window.read::<Ipv4Hdr>(self.l3)?;
        Some((ip.source(), ip.destination()))
    }

    #[inline(always)]
    fn addresses_v6<W: PacketWindow>(&self, window: &W) -> Option<(Address, Address)> {
        let ip = window.read::<Ipv6Hdr>(self.l3)?;
        Some((Address::from_v6_wire(ip.source), Address::from_v6_wire(ip.destination)))
    }

    /// The same, of a packet that is to be balanced.
    ///
    /// # Errors
    /// [`PassReason::Scope`] of IPv6: a router sends nothing on that comes from a link-local address.
    ///
    /// # Source
    /// RFC 4291, 2.5.6.
    #[inline(always)]
    fn addresses_in_scope<W: PacketWindow>(&self, window: &W) -> Result<(Address, Address), PassReason> {
        // The version is asked of the packet, whose answer the verifier does not know: it would follow each through all
        // that comes between.
        match Version::at(window, self.l3) {
            Some(Version::V4) => self.addresses_v4(window).ok_or(PassReason::Malformed),
            Some(Version::V6) => match self.addresses_v6(window) {
                Some((source, destination)) if source.is_routable_v6() && destination.is_routable_v6() => {
                    Ok((source, destination))
                }
                Some(_) => Err(PassReason::Scope),
                None => Err(PassReason::Malformed),
            },
            None => Err(PassReason::Malformed),
        }
    }

    /// Returns what all fragments of the packet's datagram have in common; `None` if it is whole, or cannot be balanced.
    #[inline(always)]
    pub fn fragment_key<W: PacketWindow>(&self, window: &W) -> Option<FragmentKey> {
        let Self { version, id, .. } = *self;
        let (source, destination) = self.addresses(window)?;
        match (self.part, version, Proto::from_number(self.protocol)) {
            (Part::Whole, _, _) | (Part::First | Part::Later, Version::V4, None) => None,
            (Part::First | Part::Later, Version::V4, Some(proto)) => {
                Some(FragmentKey::of_v4(source, destination, id, proto))
            }
            (Part::First | Part::Later, Version::V6, _) => Some(FragmentKey::of_v6(source, destination, id)),
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
    /// Time to live, or hop limit.
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
        let network = Network::of_frame(window)?;
        Self::parse_transport(window, &network)
    }

    /// Reads the headers of a packet whose network header begins at `l3`, and whose EtherType is known, in network
    /// order.
    ///
    /// # Errors
    /// Why the packet is none that can be balanced.
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
    /// RFC 9293, 3.1; RFC 768.
    #[inline(always)]
    pub fn parse_transport<W: PacketWindow>(window: &W, network: &Network) -> Result<Self, PassReason> {
        let Network { l3, l4, end, ttl, .. } = *network;
        // First of all: what a later fragment of IPv6 says to follow need not be the protocol.
        if matches!(network.part, Part::Later) {
            return Err(PassReason::Fragment);
        }
        let Some(proto) = Proto::from_number(network.protocol) else { return Err(PassReason::Protocol) };
        let segment = end - l4;
        let Some(ports) = window.read::<Ports>(l4) else { return Err(PassReason::Malformed) };
        let key = || {
            let (source, destination) = network.addresses_in_scope(window)?;
            let (source_port, destination_port) = ports.pair();
            Ok(FlowKey::new(source, source_port, destination, destination_port, proto))
        };
        match proto {
            Proto::Tcp => {
                let Some(tcp) = window.read::<TcpHdr>(l4) else { return Err(PassReason::Malformed) };
                let tcp_len = tcp.header_len();
                if tcp_len < TCP_MIN_LEN || tcp_len > segment {
                    return Err(PassReason::Malformed);
                }
                Ok(Self {
                    key: key()?,
                    proto,
                    l3,
                    l4,
                    payload: l4 + tcp_len,
                    ttl,
                    flags: Flags::of(tcp.flags, segment - tcp_len),
                    acknowledgement: u32::from_be(tcp.acknowledgement),
                    sequence: u32::from_be(tcp.sequence),
                })
            }
            Proto::Udp => {
                let Some(udp) = window.read::<UdpHdr>(l4) else { return Err(PassReason::Malformed) };
                let said = u16::from_be(udp.len) as usize;
                let too_short = said < UDP_LEN && !(said == 0 && segment > MAX_SAID - IPV4_MIN_LEN);
                if too_short || (said > segment && matches!(network.part, Part::Whole)) {
                    return Err(PassReason::Malformed);
                }
                let (payload, flags) = (l4 + UDP_LEN, Flags(0));
                Ok(Self { key: key()?, proto, l3, l4, payload, ttl, flags, acknowledgement: 0, sequence: 0 })
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

    /// An address of the documentation's network, told from others by its last byte.
    pub const fn v6(last: u8) -> [u8; 16] {
        [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
    }

    /// The same over IPv6, behind these extension headers: the number of each, and its bytes, the first of which is written
    /// here.
    pub fn tcp_v6(
        (source, source_port): ([u8; 16], u16),
        (destination, destination_port): ([u8; 16], u16),
        flags: u8,
        extensions: &[(u8, Vec<u8>)],
    ) -> Frame {
        let numbers: Vec<u8> = extensions.iter().map(|(number, _)| *number).chain([6]).collect();
        let mut chain = Vec::new();
        for ((_, bytes), next) in extensions.iter().zip(&numbers[1..]) {
            chain.push(*next);
            chain.extend_from_slice(&bytes[1..]);
        }
        let mut bytes = vec![0; 14];
        bytes[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
        bytes.extend_from_slice(&[0x60, 0, 0, 0]);
        bytes.extend_from_slice(&(chain.len() as u16 + 20).to_be_bytes());
        bytes.extend_from_slice(&[numbers[0], 64]);
        bytes.extend_from_slice(&[source, destination].concat());
        bytes.extend_from_slice(&chain);
        let mut segment = [0; 20];
        segment[0..2].copy_from_slice(&source_port.to_be_bytes());
        segment[2..4].copy_from_slice(&destination_port.to_be_bytes());
        (segment[12], segment[13]) = (0x50, flags);
        bytes.extend_from_slice(&segment);
        Frame(bytes)
    }

    /// An extension header of options, so many units of eight bytes long.
    fn options(number: u8, units: u8) -> (u8, Vec<u8>) {
        let mut bytes = vec![0; usize::from(units) * 8];
        bytes[1] = units - 1;
        (number, bytes)
    }

    fn fragment_header(offset_and_more: u16) -> (u8, Vec<u8>) {
        let [high, low] = offset_and_more.to_be_bytes();
        (44, vec![0, 0, high, low, 1, 2, 3, 4])
    }

    fn with_extensions(extensions: &[(u8, Vec<u8>)]) -> Frame {
        tcp_v6((v6(2), 40_000), (v6(1), 80), 0x02, extensions)
    }

    #[test]
    fn a_segment_over_ipv6_is_read() {
        let headers = Headers::parse(&with_extensions(&[])).unwrap();

        assert_eq!(headers.key.source, Address::from(std::net::Ipv6Addr::from(v6(2))));
        assert_eq!(headers.key.destination, Address::from(std::net::Ipv6Addr::from(v6(1))));
        assert_eq!((headers.l4, headers.payload, headers.ttl), (54, 74, 64));
        assert_eq!(headers.key.destination_port.number(), 80);
        assert!(headers.flags.opens());
    }

    #[test]
    fn extension_headers_are_followed_as_far_as_they_may_go() {
        let read = |extensions: &[(u8, Vec<u8>)]| {
            let headers = Headers::parse(&with_extensions(extensions));
            headers.map(|headers| (headers.l4, headers.key.destination_port.number()))
        };
        let every = [options(0, 1), options(60, 2), options(43, 3), fragment_header(0), options(60, 1)];
        let six = [&every[..], &[options(60, 1)]].concat();

        assert_eq!(read(&[options(0, 1)]), Ok((62, 80)));
        assert_eq!(read(&[options(60, 32)]), Ok((54 + 256, 80)));
        assert_eq!(read(&every), Ok((54 + 64, 80)));
        assert_eq!(read(&[options(60, 33)]), Err(PassReason::Extensions), "too long");
        assert_eq!(read(&[options(60, 20), options(43, 20)]), Err(PassReason::Extensions), "too long together");
        assert_eq!(read(&six), Err(PassReason::Extensions), "too many");
        assert_eq!(read(&[fragment_header(0), fragment_header(0)]), Err(PassReason::Extensions));
        let mut routed = options(43, 3);
        routed.1[3] = 1;
        assert_eq!(read(&[options(0, 1), routed]), Err(PassReason::Extensions), "to be sent on from here");
        assert_eq!(read(&[options(51, 1)]), Err(PassReason::Protocol), "authenticated");
        assert_eq!(read(&[options(50, 1)]), Err(PassReason::Protocol), "encrypted");
        assert_eq!(read(&[options(59, 1)]), Err(PassReason::Protocol), "nothing follows");
        assert_eq!(read(&[options(58, 1)]), Err(PassReason::Protocol), "ICMPv6");
    }

    #[test]
    fn what_is_no_whole_segment_over_ipv6_is_told_apart() {
        let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 0, 1];
        for (from, to) in [(link_local, v6(1)), (mapped, v6(1)), (v6(2), mapped), ([0; 16], v6(1)), (v6(2), link_local)]
        {
            let frame = tcp_v6((from, 40_000), (to, 80), 0x02, &[]);
            assert_eq!(Headers::parse(&frame).map(|_| ()), Err(PassReason::Scope));
        }
        let cases: [(&str, usize, u8, PassReason); 5] = [
            ("version 4 in an IPv6 frame", 14, 0x45, PassReason::Malformed),
            ("more than the frame holds", 19, 21, PassReason::Malformed),
            ("less than the header of TCP", 19, 19, PassReason::Malformed),
            ("a TCP header longer than the segment", 66, 0x60, PassReason::Malformed),
            ("SCTP", 20, 132, PassReason::Protocol),
        ];
        for (what, at, value, reason) in cases {
            let mut frame = with_extensions(&[]);
            frame.0[at] = value;

            assert_eq!(Headers::parse(&frame).map(|_| ()), Err(reason), "{what}");
        }
        let mut frame = with_extensions(&[options(0, 4)]);
        frame.0[19] = 24;
        assert_eq!(Headers::parse(&frame).map(|_| ()), Err(PassReason::Malformed), "extensions beyond the payload");
    }

    #[test]
    fn only_the_first_fragment_of_ipv6_has_ports() {
        for (offset_and_more, part, expected) in [
            (0x0000, Part::Whole, Ok(80)),
            (0x0001, Part::First, Ok(80)),
            (0x0009, Part::Later, Err(PassReason::Fragment)),
            (0x0008, Part::Later, Err(PassReason::Fragment)),
        ] {
            // Behind a later one stands what looks like a header, and is none.
            let frame = with_extensions(&[fragment_header(offset_and_more), options(60, 1)]);

            let port = Headers::parse(&frame).map(|headers| headers.key.destination_port.number());
            let network = Network::of_frame(&frame).unwrap();

            assert_eq!((port, network.part), (expected, part), "{offset_and_more:#x}");
            let (source, destination) = network.addresses(&frame).unwrap();
            let key = FragmentKey::of_v6(source, destination, u32::from_ne_bytes([1, 2, 3, 4]));
            assert!(network.fragment_key(&frame) == (part != Part::Whole).then_some(key));
        }
    }

    #[test]
    fn every_truncation_of_ipv6_is_refused() {
        for whole in [with_extensions(&[]).0, with_extensions(&[options(0, 2), fragment_header(1)]).0] {
            for len in 0..whole.len() {
                let outcome = Headers::parse(&Frame(whole[..len].to_vec())).map(|_| ());
                assert_eq!(outcome, Err(PassReason::Malformed), "{len}");
            }
        }
    }

    #[test]
    fn what_is_found_of_extensions_survives_its_words() {
        let chain = Chain { protocol: 58, part: Part::First, len: 256, id: 0xdead_beef };
        for outcome in [Ok(chain), Ok(Chain::none(6)), Err(PassReason::Extensions), Err(PassReason::Malformed)] {
            assert_eq!(Chain::from_words(Chain::words(&outcome)), outcome);
        }
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

            assert_eq!((port, network.fragment_key(&frame).is_some()), (expected, is_fragment), "{offset:#x}");
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
        fn any_bytes_parse_or_pass(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            version in prop::sample::select(vec![None, Some(4), Some(6)]),
            next in prop::sample::select(vec![0_u8, 6, 17, 43, 44, 58, 60]),
        ) {
            let mut frame = Frame(bytes);
            if let Some(version) = version
                && frame.0.len() > 54
            {
                let len = (frame.0.len() - 54) as u16;
                let ether_type = if version == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
                frame.0[12..14].copy_from_slice(&ether_type.to_be_bytes());
                frame.0[14] = version << 4 | 5;
                if version == 6 {
                    frame.0[18..20].copy_from_slice(&len.to_be_bytes());
                    (frame.0[20], frame.0[22], frame.0[38]) = (next, 0x20, 0x20);
                }
            }
            if let Ok(headers) = Headers::parse(&frame) {
                prop_assert!(headers.l4 + UDP_LEN <= frame.0.len());
                prop_assert!(headers.payload <= frame.0.len());
            }
        }
    }
}
