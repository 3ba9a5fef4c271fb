//! The same over IPv6: frames to send through the programs, and a judge that shares no code with them.

use etherparse::PacketBuilder;

use super::{ACK, FIN, RST, SYN, checksum};

/// A side of a connection.
pub type Side = ([u8; 16], u16);

/// Bytes of an Ethernet and an IPv6 header.
const HEADERS: usize = 54;

/// Returns an address of a network of the documentation: the second part of which network, and the last byte.
pub const fn address(network: u8, last: u8) -> [u8; 16] {
    [0x20, 0x01, 0x0d, 0xb8, 0, network, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// Builds a TCP segment with a right checksum.
pub fn tcp(from: Side, to: Side, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]) -> Vec<u8> {
    let mut builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv6(from.0, to.0, 64)
        .tcp(from.1, to.1, sequence, 64_000);
    if flags & SYN != 0 {
        builder = builder.syn();
    }
    if flags & FIN != 0 {
        builder = builder.fin();
    }
    if flags & RST != 0 {
        builder = builder.rst();
    }
    if flags & ACK != 0 {
        builder = builder.ack(acknowledgement);
    }
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).expect("a vector takes everything");
    frame
}

/// Builds a UDP datagram with a right checksum.
pub fn udp(from: Side, to: Side, payload: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv6(from.0, to.0, 64).udp(from.1, to.1);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).expect("a vector takes everything");
    frame
}

/// Puts extension headers of options in front of what follows the IPv6 header: the number of each, and its length in units
/// of eight bytes.
pub fn with_extensions(mut frame: Vec<u8>, extensions: &[(u8, u8)]) -> Vec<u8> {
    let mut next = frame[20];
    for (number, units) in extensions.iter().rev() {
        let len = usize::from(*units) * 8;
        let mut header = vec![0; len];
        // Padding, RFC 8200, 4.2: one option over all the rest. Routing, 4.4: of a kind for experiments, and at its end.
        let [kind, rest] = if *number == 43 { [253, 0] } else { [1, (len - 4) as u8] };
        header[..4].copy_from_slice(&[next, units - 1, kind, rest]);
        frame.splice(HEADERS..HEADERS, header);
        next = *number;
    }
    frame[20] = next;
    set_len(&mut frame);
    frame
}

/// Cuts a packet into fragments of so many bytes, a multiple of eight.
pub fn fragments(whole: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    let (header, payload) = whole.split_at(HEADERS);
    let parts = payload.len().div_ceil(size);
    let cut = payload.chunks(size).enumerate().map(|(place, part)| {
        let more = u16::from(place + 1 < parts);
        let offset = (place * size) as u16 | more;
        let mut frame = header.to_vec();
        frame[20] = 44;
        frame.extend_from_slice(&[whole[20], 0]);
        frame.extend_from_slice(&offset.to_be_bytes());
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(part);
        set_len(&mut frame);
        frame
    });
    cut.collect()
}

/// Puts a packet together again; the kernel's own rules are not asked.
pub fn together(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = fragments[0][..HEADERS].to_vec();
    whole[20] = fragments[0][HEADERS];
    fragments.iter().for_each(|fragment| whole.extend_from_slice(&fragment[HEADERS + 8..]));
    set_len(&mut whole);
    whole
}

/// Gives a packet another hop limit.
pub fn with_hops(mut frame: Vec<u8>, hops: u8) -> Vec<u8> {
    frame[21] = hops;
    frame
}

fn set_len(frame: &mut [u8]) {
    let len = (frame.len() - HEADERS) as u16;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
}

/// Builds an ICMPv6 message: type, code, the word behind the checksum, and the rest.
pub fn icmp(from: [u8; 16], to: [u8; 16], (kind, code): (u8, u8), word: u32, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(&word.to_be_bytes());
    message.extend_from_slice(rest);
    let len = (message.len() as u32).to_be_bytes();
    let sum = checksum(&[&from, &to, &len, &[0, 0, 0, 58], &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv6(from, to, 64);
    let mut frame = Vec::new();
    builder.write(&mut frame, etherparse::IpNumber::IPV6_ICMP, &message).expect("a vector takes everything");
    frame
}

/// Builds an ICMPv6 error about a frame, of which it quotes so many bytes behind the IPv6 header.
pub fn icmp_error(from: [u8; 16], to: [u8; 16], kind: (u8, u8), about: &[u8], quoted: usize) -> Vec<u8> {
    icmp(from, to, kind, 1300, &about[14..HEADERS + quoted])
}

/// What a frame says, after its checksum was computed anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Who sent it.
    pub from: Side,
    /// To whom.
    pub to: Side,
    /// Hop limit.
    pub hops: u8,
    /// Whether the checksum of TCP or UDP is right, or none was sent.
    pub sum: bool,
    /// Payload behind the TCP or UDP header.
    pub payload: Vec<u8>,
}

/// What follows an IPv6 header and its extension headers: the protocol, and the bytes.
fn upper(packet: &[u8]) -> Option<(u8, &[u8])> {
    let (mut next, mut rest) = (*packet.get(6)?, packet.get(40..)?);
    while matches!(next, 0 | 43 | 44 | 60) {
        let len = if next == 44 { 8 } else { 8 * (usize::from(*rest.get(1)?) + 1) };
        (next, rest) = (*rest.first()?, rest.get(len..)?);
    }
    Some((next, rest))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Reads a frame; `None` if it is no whole TCP segment or UDP datagram over IPv6.
pub fn judge(frame: &[u8]) -> Option<Judged> {
    let packet = frame.get(14..14 + 40 + usize::from(word(frame, 18)?))?;
    if frame[12..14] != [0x86, 0xdd] || packet[0] >> 4 != 6 {
        return None;
    }
    let (protocol, segment) = upper(packet)?;
    let (header_len, has_sum) = match protocol {
        6 => (usize::from(*segment.get(12)? >> 4) * 4, true),
        17 => (8, word(segment, 6)? != 0),
        _ => return None,
    };
    let len = (segment.len() as u32).to_be_bytes();
    let sum = checksum(&[&packet[8..40], &len, &[0, 0, 0, protocol], segment]);
    Some(Judged {
        from: (packet[8..24].try_into().ok()?, word(segment, 0)?),
        to: (packet[24..40].try_into().ok()?, word(segment, 2)?),
        hops: packet[7],
        sum: !has_sum || sum == 0,
        payload: segment.get(header_len..)?.to_vec(),
    })
}

/// What an ICMPv6 error says, after its checksum was computed anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedError {
    /// Who says it.
    pub from: [u8; 16],
    /// Whom it is said to.
    pub to: [u8; 16],
    /// Type and code.
    pub kind: (u8, u8),
    /// What stands behind the checksum: the MTU, if it is about one.
    pub word: u32,
    /// Source and destination of the packet that it is about.
    pub about: (Side, Side),
    /// Whether the checksum of the message is right.
    pub sum: bool,
    /// Whether the checksum of the segment inside is right, if that is whole.
    pub inner_sum: Option<bool>,
}

/// Reads an ICMPv6 error about TCP or UDP; `None` if the frame is none.
pub fn judge_error(frame: &[u8]) -> Option<JudgedError> {
    let packet = frame.get(14..14 + 40 + usize::from(word(frame, 18)?))?;
    let (58, message) = upper(packet)? else { return None };
    let inner = message.get(8..)?;
    let (protocol, segment) = upper(inner)?;
    let side = |at: usize, port: usize| Some((inner.get(at..at + 16)?.try_into().ok()?, word(segment, port)?));
    let is_whole = usize::from(word(inner, 4)?) + 40 == inner.len();
    let sum_of = |addresses: &[u8], protocol: u8, bytes: &[u8]| {
        checksum(&[addresses, &(bytes.len() as u32).to_be_bytes(), &[0, 0, 0, protocol], bytes]) == 0
    };
    Some(JudgedError {
        from: packet[8..24].try_into().ok()?,
        to: packet[24..40].try_into().ok()?,
        kind: (message[0], message[1]),
        word: u32::from_be_bytes(message[4..8].try_into().ok()?),
        about: (side(8, 0)?, side(24, 2)?),
        sum: sum_of(&packet[8..40], 58, message),
        inner_sum: is_whole.then(|| sum_of(&inner[8..40], protocol, segment)),
    })
}
