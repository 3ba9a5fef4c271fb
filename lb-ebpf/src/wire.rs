//! Headers as they stand in a frame.
//!
//! Field types are in network byte order; the accessors say what they return. The kernel keeps the IP header on a
//! four-byte boundary (NET_IP_ALIGN), and the BPF machine reads whole words there; elsewhere nothing is assumed.

use crate::abi::{Address, FlowKey, Port};

/// Bytes of an Ethernet header.
pub const ETH_LEN: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4_MIN_LEN: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_LEN: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP_MIN_LEN: usize = 20;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;

/// Bytes of an ICMP or ICMPv6 header.
pub const ICMP_LEN: usize = 8;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// A type that may be read from a packet.
///
/// # Safety
/// Every bit pattern is valid, and the alignment is at most four.
pub unsafe trait Wire: Copy {}

/// Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EthHdr {
    /// Destination MAC.
    pub destination: [u8; 6],
    /// Source MAC.
    pub source: [u8; 6],
    /// EtherType, network order.
    pub ether_type: u16,
}

/// IPv4 header, RFC 791, 3.1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4Hdr {
    /// Version and header length in words.
    pub version_ihl: u8,
    /// Type of service.
    pub tos: u8,
    /// Length of header and payload, network order.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset, network order.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub protocol: u8,
    /// Header checksum.
    pub check: u16,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

impl Ipv4Hdr {
    /// Returns the version field.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Returns the length of the header in bytes, 0 to 60.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        ((self.version_ihl & 0x0f) as usize) * 4
    }

    /// Returns the length of header and payload in bytes.
    #[inline(always)]
    pub const fn total_len(&self) -> usize {
        u16::from_be(self.total_len) as usize
    }

    /// Returns whether this is a part of a datagram: more fragments follow, or some went before.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        u16::from_be(self.fragment) & 0x3fff != 0
    }

    /// Returns whether fragments went before this one.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        u16::from_be(self.fragment) & 0x1fff != 0
    }

    /// Returns the source address.
    #[inline(always)]
    pub const fn source(&self) -> Address {
        Address::from_v4_wire(self.source)
    }

    /// Returns the destination address.
    #[inline(always)]
    pub const fn destination(&self) -> Address {
        Address::from_v4_wire(self.destination)
    }
}

/// IPv6 header, RFC 8200, 3.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6Hdr {
    /// Version, traffic class and flow label, network order.
    pub version_class_label: u32,
    /// Length of what follows the header, network order.
    pub payload_len: u16,
    /// What follows: an extension header, or the protocol.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u32; 4],
    /// Destination address.
    pub destination: [u32; 4],
}

impl Ipv6Hdr {
    /// Returns the version field.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        (u32::from_be(self.version_class_label) >> 28) as u8
    }

    /// Returns the length of header and payload in bytes.
    #[inline(always)]
    pub const fn total_len(&self) -> usize {
        IPV6_LEN + u16::from_be(self.payload_len) as usize
    }
}

/// The beginning of an extension header of IPv6, RFC 8200, 4.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ExtensionHdr {
    /// What follows it.
    pub next: u8,
    /// Its length in units of eight bytes, the first eight not counted; of a fragment header nothing.
    pub len: u8,
    /// Of a fragment header: offset, two bits that mean nothing, and whether more follow; network order. Of a routing header:
    /// its type and the segments left, a byte each.
    pub fragment: u16,
    /// Of a fragment header: what all fragments of a packet have in common.
    pub id: u32,
}

impl ExtensionHdr {
    /// Number of the header with options for each router, RFC 8200, 4.3.
    pub const HOP_BY_HOP: u8 = 0;
    /// Number of the routing header, RFC 8200, 4.4.
    pub const ROUTING: u8 = 43;
    /// Number of the fragment header, RFC 8200, 4.5.
    pub const FRAGMENT: u8 = 44;
    /// Number of the header with options for the destination, RFC 8200, 4.6.
    pub const DESTINATION: u8 = 60;

    /// Returns whether a header of this number is one of those that are followed.
    #[inline(always)]
    pub const fn is_followed(number: u8) -> bool {
        matches!(number, Self::HOP_BY_HOP | Self::ROUTING | Self::FRAGMENT | Self::DESTINATION)
    }

    /// Returns its length in bytes if it is none of fragments.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        (self.len as usize + 1) * 8
    }

    /// Returns whether it is a routing header by which the packet goes on from its destination to another node.
    ///
    /// # Source
    /// RFC 8200, 4.4.
    #[inline(always)]
    pub const fn has_segments_left(&self, number: u8) -> bool {
        number == Self::ROUTING && u16::from_be(self.fragment) & 0xff != 0
    }

    /// Returns whether more fragments follow.
    #[inline(always)]
    pub const fn has_more(&self) -> bool {
        u16::from_be(self.fragment) & 1 != 0
    }

    /// Returns whether fragments went before.
    #[inline(always)]
    pub const fn is_later(&self) -> bool {
        u16::from_be(self.fragment) & 0xfff8 != 0
    }
}

/// ICMP header, RFC 792, and ICMPv6 header, RFC 4443; what the second word means depends on the type.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IcmpHdr {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum of the whole message.
    pub check: u16,
    /// Of "fragmentation needed", RFC 1191, 4: zero, then the MTU in bytes, network order. Of "packet too big", RFC 4443,
    /// 3.2: the same, as its MTU has four bytes.
    pub rest: [u16; 2],
}

impl IcmpHdr {
    /// Protocol number of ICMP.
    pub const PROTOCOL: u8 = 1;
    /// Type: the destination cannot be reached.
    pub const UNREACHABLE: u8 = 3;
    /// Code of that: too big to be sent on, and not to be fragmented.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Type: the time to live, or the time for reassembly, has ended.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Type: a header field makes no sense.
    pub const PARAMETER_PROBLEM: u8 = 12;

    /// Protocol number of ICMPv6.
    pub const PROTOCOL_V6: u8 = 58;
    /// Type of ICMPv6: the destination cannot be reached.
    pub const UNREACHABLE_V6: u8 = 1;
    /// Type of ICMPv6: too big to be sent on.
    pub const TOO_BIG_V6: u8 = 2;
    /// Type of ICMPv6: the hop limit, or the time for reassembly, has ended.
    pub const TIME_EXCEEDED_V6: u8 = 3;
    /// Type of ICMPv6: a header field makes no sense.
    pub const PARAMETER_PROBLEM_V6: u8 = 4;

    /// Returns whether the message is about another packet, whose beginning it carries.
    #[inline(always)]
    pub const fn is_error(&self) -> bool {
        matches!(self.kind, Self::UNREACHABLE | Self::TIME_EXCEEDED | Self::PARAMETER_PROBLEM)
    }

    /// The same for ICMPv6. Errors have the types below 128; those that are not defined are left to the host.
    #[inline(always)]
    pub const fn is_error_v6(&self) -> bool {
        matches!(
            self.kind,
            Self::UNREACHABLE_V6 | Self::TOO_BIG_V6 | Self::TIME_EXCEEDED_V6 | Self::PARAMETER_PROBLEM_V6
        )
    }
}

/// TCP header, RFC 9293, 3.1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TcpHdr {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number, network order.
    pub sequence: u32,
    /// Acknowledgement number, network order.
    pub acknowledgement: u32,
    /// Data offset in words, upper half.
    pub offset: u8,
    /// Flags.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Checksum.
    pub check: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

impl TcpHdr {
    /// Returns the length of the header in bytes, 0 to 60.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        ((self.offset >> 4) as usize) * 4
    }
}

/// UDP header, RFC 768.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UdpHdr {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Length of header and payload, network order.
    pub len: u16,
    /// Checksum; zero if the sender computed none.
    pub check: u16,
}

/// The ports, which TCP and UDP have in the same place.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ports {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

impl Ports {
    /// Returns the ports of a key.
    #[inline(always)]
    pub const fn of(key: &FlowKey) -> Self {
        Self { source: key.source_port.wire(), destination: key.destination_port.wire() }
    }

    /// Returns both as their types.
    #[inline(always)]
    pub const fn pair(self) -> (Port, Port) {
        (Port::from_wire(self.source), Port::from_wire(self.destination))
    }
}

// SAFETY: integers and byte arrays only, no padding; alignment at most four.
unsafe impl Wire for EthHdr {}
// SAFETY: as above.
unsafe impl Wire for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Wire for Ipv6Hdr {}
// SAFETY: as above.
unsafe impl Wire for ExtensionHdr {}
// SAFETY: as above.
unsafe impl Wire for IcmpHdr {}
// SAFETY: as above.
unsafe impl Wire for TcpHdr {}
// SAFETY: as above.
unsafe impl Wire for UdpHdr {}
// SAFETY: as above.
unsafe impl Wire for Ports {}
// SAFETY: as above.
unsafe impl Wire for u8 {}
// SAFETY: as above.
unsafe impl Wire for u16 {}
// SAFETY: as above.
unsafe impl Wire for u32 {}
// SAFETY: as above.
unsafe impl Wire for [u8; 6] {}
// SAFETY: as above.
unsafe impl Wire for [[u8; 6]; 2] {}
// SAFETY: as above.
unsafe impl<const WORDS: usize> Wire for [u32; WORDS] {}

/// Reads a value that may stand anywhere.
///
/// # Safety
/// `at` points to `size_of::<T>()` readable bytes.
#[inline(always)]
pub unsafe fn read<T: Wire>(at: *const T) -> T {
    if cfg!(target_arch = "bpf") {
        // SAFETY: the caller's promise; the BPF machine reads unaligned words where the processor does.
        unsafe { at.read() }
    } else {
        // SAFETY: the caller's promise.
        unsafe { at.read_unaligned() }
    }
}

/// Writes a value that may stand anywhere.
///
/// # Safety
/// `at` points to `size_of::<T>()` writable bytes.
#[inline(always)]
pub unsafe fn write<T: Wire>(at: *mut T, value: T) {
    if cfg!(target_arch = "bpf") {
        // SAFETY: the caller's promise; as for `read`.
        unsafe { at.write(value) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { at.write_unaligned(value) }
    }
}
