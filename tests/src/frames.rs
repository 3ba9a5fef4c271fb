//! Frames to send through the programs, and a judge of what comes out that shares no code with them.

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

pub mod v6;

/// A side of a connection.
pub type Side = ([u8; 4], u16);

/// FIN.
pub const FIN: u8 = 1;
/// SYN.
pub const SYN: u8 = 2;
/// RST.
pub const RST: u8 = 4;
/// ACK.
pub const ACK: u8 = 16;

/// Builds a TCP segment with right checksums.
pub fn tcp(from: Side, to: Side, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]) -> Vec<u8> {
    let mut builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(from.0, to.0, 64)
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

/// Builds a UDP datagram with right checksums.
pub fn udp(from: Side, to: Side, payload: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(from.0, to.0, 64).udp(from.1, to.1);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).expect("a vector takes everything");
    frame
}

/// Puts `words` of options (no-operations) into the IP header and corrects lengths and checksum.
pub fn with_ip_options(mut frame: Vec<u8>, words: usize) -> Vec<u8> {
    frame.splice(34..34, vec![1_u8; words * 4]);
    frame[14] = 0x45 + words as u8;
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..34 + words * 4]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Puts options into the TCP header of a segment without IP options, a multiple of four bytes, and corrects lengths and
/// checksums.
pub fn with_tcp_options(mut frame: Vec<u8>, options: &[u8]) -> Vec<u8> {
    frame.splice(54..54, options.iter().copied());
    frame[46] = ((5 + options.len() / 4) as u8) << 4 | frame[46] & 15;
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    sealed(frame)
}

/// Corrects the checksums of a packet without IP options; that of UDP is left out where it was.
pub fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    set_ip_sum(&mut frame);
    let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let check = if frame[23] == 6 { 50 } else { 40 };
    if frame[23] == 17 && frame[40..42] == [0, 0] {
        return frame;
    }
    frame[check..check + 2].fill(0);
    let len = ((end - 34) as u16).to_be_bytes();
    let pseudo = [&frame[26..34], &[0, frame[23]], &len].concat();
    let sum = checksum(&[&pseudo, &frame[34..end]]);
    let sum = if frame[23] == 17 && sum == 0 { 0xffff } else { sum };
    frame[check..check + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Makes an IP packet a fragment of a datagram: `offset` in bytes, a multiple of eight.
pub fn fragment(mut frame: Vec<u8>, id: u16, offset: u16, is_last: bool) -> Vec<u8> {
    let more = if is_last { 0 } else { 0x2000 };
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    frame[20..22].copy_from_slice(&(more | (offset / 8)).to_be_bytes());
    set_ip_sum(&mut frame);
    frame
}

/// Builds a later fragment of a datagram of UDP.
pub fn later_fragment(from: Side, to: Side, id: u16, offset: u16, is_last: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = udp(from, to, &[]);
    frame.truncate(34);
    frame.extend_from_slice(payload);
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    fragment(frame, id, offset, is_last)
}

/// Gives an IP packet another time to live.
pub fn with_ttl(mut frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    frame[22] = ttl;
    set_ip_sum(&mut frame);
    frame
}

fn set_ip_sum(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..end]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Builds an ICMP error about a frame, of whose transport header it quotes so many bytes.
pub fn icmp_error(from: [u8; 4], to: [u8; 4], (kind, code): (u8, u8), about: &[u8], quoted: usize) -> Vec<u8> {
    let header_len = usize::from(about[14] & 15) * 4;
    let mut message = vec![kind, code, 0, 0, 0, 0, 5, 0x14];
    message.extend_from_slice(&about[14..14 + header_len + quoted]);
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(from, to, 64);
    let mut frame = Vec::new();
    builder.write(&mut frame, etherparse::IpNumber::ICMP, &message).expect("a vector takes everything");
    frame
}

/// What an ICMP error says, after its checksums were computed anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedError {
    /// Who says it.
    pub from: [u8; 4],
    /// Whom it is said to.
    pub to: [u8; 4],
    /// Type and code.
    pub kind: (u8, u8),
    /// The MTU, if it is about one.
    pub mtu: u16,
    /// Source and destination of the packet that it is about.
    pub about: (Side, Side),
    /// Whether the checksums of the IP header, of the message, and of the IP header inside are right.
    pub sums: [bool; 3],
    /// Whether the checksum of the segment inside is right, if that is whole.
    pub inner_sum: Option<bool>,
}

/// Reads an ICMP error about TCP or UDP over IPv4; `None` if the frame is none.
pub fn judge_error(frame: &[u8]) -> Option<JudgedError> {
    let header_len = usize::from(frame.get(14)? & 15) * 4;
    let header = frame.get(14..14 + header_len)?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let message = frame.get(14 + header_len..14 + total)?;
    if header[9] != 1 {
        return None;
    }
    let inner = message.get(8..)?;
    let inner_len = usize::from(inner.first()? & 15) * 4;
    let (inner_header, transport) = (inner.get(..inner_len)?, inner.get(inner_len..)?);
    let word = |bytes: &[u8], at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let side = |at: usize, port: usize| Some((inner_header.get(at..at + 4)?.try_into().ok()?, word(transport, port)?));
    let whole = usize::from(word(inner_header, 2)?) == inner.len();
    let pseudo = [&inner_header[12..20], &[0, inner_header[9]], &(transport.len() as u16).to_be_bytes()].concat();
    Some(JudgedError {
        from: header[12..16].try_into().ok()?,
        to: header[16..20].try_into().ok()?,
        kind: (message[0], message[1]),
        mtu: word(message, 6)?,
        about: (side(12, 0)?, side(16, 2)?),
        sums: [header, message, inner_header].map(|bytes| checksum(&[bytes]) == 0),
        inner_sum: whole.then(|| checksum(&[&pseudo, transport]) == 0),
    })
}

/// Computes an Internet checksum the slow way.
///
/// # Source
/// RFC 1071, 4.1.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// What a frame says, after its checksums were computed anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Who sent it.
    pub from: Side,
    /// To whom.
    pub to: Side,
    /// Time to live.
    pub ttl: u8,
    /// Whether the checksum of the IP header is right.
    pub ip_sum: bool,
    /// Whether the checksum of TCP or UDP is right, or none was sent.
    pub transport_sum: bool,
    /// Payload behind the TCP or UDP header.
    pub payload: Vec<u8>,
}

/// Reads a frame; `None` if it is no whole TCP segment or UDP datagram over IPv4.
pub fn judge(frame: &[u8]) -> Option<Judged> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let header_len = usize::from(frame.get(14)? & 15) * 4;
    let header = frame.get(14..14 + header_len)?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let segment = frame.get(14 + header_len..14 + total)?;
    let side = |at: usize, port: u16| ([header[at], header[at + 1], header[at + 2], header[at + 3]], port);
    let (source, destination, payload, has_sum) = match packet.transport? {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port(), tcp.payload().to_vec(), true),
        TransportSlice::Udp(udp) => {
            (udp.source_port(), udp.destination_port(), udp.payload().to_vec(), udp.checksum() != 0)
        }
        _ => return None,
    };
    let len = (segment.len() as u16).to_be_bytes();
    let pseudo = [&header[12..20], &[0, header[9]], &len].concat();
    Some(Judged {
        from: side(12, source),
        to: side(16, destination),
        ttl: header[8],
        ip_sum: checksum(&[header]) == 0,
        transport_sum: !has_sum || checksum(&[&pseudo, segment]) == 0,
        payload,
    })
}

/// A generator of numbers that are the same in every run of a seed.
///
/// # Source
/// xorshift64*, Vigna 2014.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Starts from a seed other than zero.
    pub const fn new(seed: u64) -> Self {
        Self(if seed == 0 { 1 } else { seed })
    }

    /// Returns a number below `limit`.
    pub const fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}
