//! How far a flow has come, from what either side has been seen to do.
//!
//! Only segments with SYN, FIN or RST add to that, so the established path never looks at it. Each direction keeps a
//! byte of its own: a client's FIN and a backend's, crossing on two processors, both count.

use crate::abi::Address;

/// TCP flags, RFC 9293, 3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Sequence numbers are being agreed upon.
    pub const SYN: u8 = 0x02;
    /// The connection is reset.
    pub const RST: u8 = 0x04;
    /// The segment has a payload. In the place of PSH, which says less and is asked by nobody: a byte more would be one too
    /// many for the program's stack.
    pub const DATA: u8 = 0x08;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;

    /// Takes the flags of a header, in front of a payload of so many bytes. What fills up a frame that would be too short is
    /// none of it.
    #[inline(always)]
    pub const fn of(header: u8, payload: usize) -> Self {
        // Without a branch, which the verifier would follow through all that comes after. No payload is as long as 2^24.
        const LONGEST: usize = (1 << 24) - 1;
        Self(header & !Self::DATA | (payload.wrapping_add(LONGEST) >> 21) as u8 & Self::DATA)
    }

    /// Returns whether any of `flags` is set.
    #[inline(always)]
    pub const fn any(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    /// Returns whether the segment begins a connection: SYN, and none of ACK, RST and FIN.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    /// Returns whether the segment accepts a connection: SYN and ACK.
    #[inline(always)]
    pub const fn accepts(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN | Self::ACK
    }

    /// Returns whether its sender ends the connection, or its half of it.
    #[inline(always)]
    pub const fn ends(self) -> bool {
        self.any(Self::FIN | Self::RST)
    }

    /// Returns whether the segment can move the automaton.
    #[inline(always)]
    pub const fn moves(self) -> bool {
        self.any(Self::SYN | Self::FIN | Self::RST)
    }
}

/// Who sent a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The client.
    Ingress,
    /// The backend.
    Egress,
}

/// What one side of a flow has been seen to do: a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(pub u8);

impl Seen {
    /// It has closed its half of the connection.
    pub const FIN: u8 = Flags::FIN;
    /// It has reset the connection.
    pub const RST: u8 = Flags::RST;
    /// The backend has accepted the connection, or answered a datagram.
    pub const ANSWERED: u8 = Flags::SYN;
    /// The client's first request has been seen. In the client's byte.
    pub const REQUESTED: u8 = Flags::DATA;
    /// The client has shown that it received what the backend sent.
    pub const PROVEN: u8 = Flags::ACK;
    /// The backend knows the client by the host's address ([`crate::abi::Backend::host_address`]). In the client's byte.
    pub const STAND_IN: u8 = 0x20;
    /// The flow is one of datagrams. In the client's byte.
    pub const DATAGRAMS: u8 = 0x40;
    /// The connection is among the proven ones; this entry is only kept for when it is over. In the client's byte.
    pub const MOVED: u8 = 0x80;

    /// Returns whether any of `bits` is set.
    #[inline(always)]
    pub const fn any(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// Returns the set with `bits`.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, bits: u8) -> Self {
        Self(self.0 | bits)
    }

    /// Returns the address by which a backend knows the client whose byte this is.
    #[inline(always)]
    #[must_use]
    pub const fn address(self, client: Address, host_address: Address) -> Address {
        if self.any(Self::STAND_IN) { host_address } else { client }
    }

    /// Returns whether a segment with such flags is the first request of the client whose byte this is, and who has proven to
    /// be one. Datagrams prove nothing.
    #[inline(always)]
    pub const fn asks(self, flags: Flags) -> bool {
        // Without a branch, which the verifier would follow through all that comes after.
        const _: () = assert!(Seen::PROVEN == Seen::REQUESTED << 1 && Seen::REQUESTED == Flags::DATA);
        (flags.0 & Flags::DATA) << 1 & self.0 & !(self.0 << 1) != 0
    }

    /// Returns the set after a segment of this side.
    ///
    /// # Source
    /// RFC 9293, 3.3.2, seen from between the two ends.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, direction: Direction, flags: Flags) -> Self {
        let seen = self.with(flags.0 & (Self::FIN | Self::RST));
        match direction {
            Direction::Egress if flags.accepts() => seen.with(Self::ANSWERED),
            Direction::Egress | Direction::Ingress => seen,
        }
    }
}

/// How far a flow has come; states as in nf_conntrack_proto_tcp.c.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The client has sent a SYN.
    SynSent,
    /// The backend has answered with SYN and ACK.
    SynReceived,
    /// The client has acknowledged that.
    Established,
    /// The client has closed its half.
    ClientClosed,
    /// The backend has closed its half.
    BackendClosed,
    /// Both have.
    Closed,
    /// Either has reset the connection.
    Reset,
    /// A datagram from the client, none from the backend.
    UdpUnreplied,
    /// Datagrams from both.
    UdpReplied,
}

impl State {
    /// All of them, in the order in which [`crate::abi::Lifetimes`] holds their lifetimes.
    pub const ALL: [Self; 9] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::ClientClosed,
        Self::BackendClosed,
        Self::Closed,
        Self::Reset,
        Self::UdpUnreplied,
        Self::UdpReplied,
    ];

    /// Returns its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::SynReceived => "syn-received",
            Self::Established => "established",
            Self::ClientClosed => "client-closed",
            Self::BackendClosed => "backend-closed",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::UdpUnreplied => "udp-unreplied",
            Self::UdpReplied => "udp-replied",
        }
    }

    /// Returns for how many seconds a flow may stay idle in this state, unless the agent is told otherwise.
    ///
    /// # Source
    /// RFC 5382, REQ-5: established at least 2 h 4 min, transitory at least 4 min; RFC 4787, REQ-5: UDP at least 2 min;
    /// the unanswered, the closed (in which data may still be repeated) and the reset as in nf_conntrack.
    pub const fn default_lifetime_s(self) -> u32 {
        match self {
            Self::SynSent | Self::SynReceived => 60,
            Self::Established => (2 * 60 + 4) * 60,
            Self::ClientClosed | Self::BackendClosed => 4 * 60,
            Self::Closed => 120,
            Self::Reset => 10,
            Self::UdpUnreplied => 30,
            Self::UdpReplied => 120,
        }
    }

    /// Returns the state of a flow whose sides have been seen to do this.
    #[inline(always)]
    pub const fn of(client: Seen, backend: Seen) -> Self {
        if client.any(Seen::RST) || backend.any(Seen::RST) {
            return Self::Reset;
        }
        if client.any(Seen::DATAGRAMS) {
            return if backend.any(Seen::ANSWERED) { Self::UdpReplied } else { Self::UdpUnreplied };
        }
        match (client.any(Seen::FIN), backend.any(Seen::FIN)) {
            (true, true) => Self::Closed,
            (true, false) => Self::ClientClosed,
            (false, true) => Self::BackendClosed,
            (false, false) if client.any(Seen::PROVEN) => Self::Established,
            (false, false) if backend.any(Seen::ANSWERED) => Self::SynReceived,
            (false, false) => Self::SynSent,
        }
    }

    /// Returns whether the connection is over, so that a SYN begins another one.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: Flags = Flags(Flags::SYN);
    const SYN_ACK: Flags = Flags(Flags::SYN | Flags::ACK);
    const ACK: Flags = Flags(Flags::ACK);
    const FIN: Flags = Flags(Flags::FIN | Flags::ACK);
    const RST: Flags = Flags(Flags::RST);

    #[test]
    fn every_pair_of_sides_has_one_state() {
        for client in 0..=255_u8 {
            for backend in 0..=255_u8 {
                let has = |side: u8, bit: u8| side & bit != 0;
                let expected = if has(client | backend, 0x04) {
                    State::Reset
                } else if has(client, 0x40) {
                    if has(backend, 0x02) { State::UdpReplied } else { State::UdpUnreplied }
                } else if has(client & backend, 0x01) {
                    State::Closed
                } else if has(client, 0x01) {
                    State::ClientClosed
                } else if has(backend, 0x01) {
                    State::BackendClosed
                } else if has(client, 0x10) {
                    State::Established
                } else if has(backend, 0x02) {
                    State::SynReceived
                } else {
                    State::SynSent
                };
                assert_eq!(State::of(Seen(client), Seen(backend)), expected, "{client:#x} {backend:#x}");
            }
        }
    }

    #[test]
    fn segments_add_to_what_their_sender_was_seen_to_do() {
        use Direction::{Egress, Ingress};
        for direction in [Ingress, Egress] {
            for (flags, ingress, egress) in [
                (Flags(0), 0, 0),
                (SYN, 0, 0),
                (SYN_ACK, 0, Seen::ANSWERED),
                (ACK, 0, 0),
                (FIN, Seen::FIN, Seen::FIN),
                (RST, Seen::RST, Seen::RST),
                (Flags(Flags::SYN | Flags::ACK | Flags::RST), Seen::RST, Seen::RST),
            ] {
                let expected = if direction == Ingress { ingress } else { egress };
                assert_eq!(Seen(0).after(direction, flags), Seen(expected), "{direction:?} {flags:?}");
                let proven = Seen(Seen::PROVEN).after(direction, flags);
                assert_eq!(proven, Seen(expected | Seen::PROVEN), "nothing is forgotten");
            }
        }
    }

    #[test]
    fn a_connection_opens_and_closes_in_whatever_order_the_halves_close() {
        use Direction::{Egress, Ingress};
        let (client, backend) = (Seen(0), Seen(0).after(Egress, SYN_ACK));
        assert_eq!(State::of(client, backend), State::SynReceived);
        let client = client.with(Seen::PROVEN);
        assert_eq!(State::of(client, backend), State::Established);

        assert_eq!(State::of(client.after(Ingress, FIN), backend), State::ClientClosed);
        assert_eq!(State::of(client, backend.after(Egress, FIN)), State::BackendClosed);
        assert!(State::of(client.after(Ingress, FIN), backend.after(Egress, FIN)).is_over());
    }

    #[test]
    fn a_payload_is_told_whatever_its_length_and_what_else_the_header_says() {
        for header in 0..=255_u8 {
            for payload in [0, 1, 2, 255, 256, 1460, 65_495, 65_536, 1 << 19, (1 << 24) - 1] {
                let flags = Flags::of(header, payload);

                assert_eq!(flags.any(Flags::DATA), payload > 0, "{header:#x} {payload}");
                assert_eq!(flags.0 | Flags::DATA, header | Flags::DATA);
            }
        }
    }

    #[test]
    fn only_a_proven_client_that_has_not_asked_asks() {
        for bits in 0..=255_u8 {
            for flags in 0..=255_u8 {
                let asks = bits & 0x18 == 0x10 && flags & 0x08 != 0;
                assert_eq!(Seen(bits).asks(Flags(flags)), asks, "{bits:#x} {flags:#x}");
            }
        }
        let data = Flags(Flags::DATA | Flags::ACK);
        assert_eq!(Seen(0).after(Direction::Ingress, data), Seen(0), "who asks is told by another");
    }

    #[test]
    fn only_a_bare_syn_opens() {
        for bits in 0..=255 {
            let flags = Flags(bits);
            let bare = bits & 0x17 == 0x02;
            assert_eq!(flags.opens(), bare, "{bits:#x}");
        }
    }
}
