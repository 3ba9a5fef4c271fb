//! What becomes of a packet, and the name under which it is counted.
//!
//! Every exit of the datapath that is not a hand-off to a backend or a client is a reason here; those hand-offs are
//! counted per backend. The numbers are places in the map `COUNTERS`; a retired one stays reserved.

/// What becomes of a packet.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Left untouched, for the host.
    Pass(PassReason),
    /// Ended here.
    Drop(DropReason),
    /// A SYN for which its backend has no room: to be answered by the cookie at hand, [`crate::cookie`].
    Answer,
    /// A segment of no flow that may acknowledge such a cookie.
    Acknowledge,
}

macro_rules! reasons {
    ($(#[$doc:meta])* $kind:ident from $base:literal { $($(#[$line:meta])* $name:ident = $number:literal $text:literal,)* }) => {
        $(#[$doc])*
        // Not `u8`: joining verdicts of two paths, LLVM reads the bytes that such a one leaves undefined, and the verifier of
        // 6.18 says "R0 !read_ok".
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $kind {
            $($(#[$line])* $name = $number,)*
        }

        impl $kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Returns the place in `COUNTERS`.
            #[inline(always)]
            pub const fn index(self) -> u32 {
                $base + self as u32
            }

            /// Returns the name shown by `status`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reasons! {
    /// Why a packet, or a connect(), was left to the host.
    PassReason from 0 {
        /// No IP packet: ARP and the like.
        NotIp = 0 "not_ip",
        // 1 stood for all of IPv6, when none of it was balanced.
        /// Of a VLAN: what came by one is met at the VLAN's own device.
        Vlan = 2 "vlan",
        /// Too short, or lengths that contradict each other.
        Malformed = 3 "malformed",
        /// A fragment without ports, and the first one, which has them, was not seen before it.
        Fragment = 4 "fragment",
        /// Neither TCP nor UDP, nor an ICMP or ICMPv6 error about such a packet of ours.
        Protocol = 5 "protocol",
        /// Not for a frontend.
        NotOurs = 6 "not_ours",
        /// For a frontend, but of no flow that is known, and beginning none: the host refuses it.
        NoFlow = 7 "no_flow",
        /// The frontend has no ready backend: the host refuses it.
        NoBackend = 8 "no_backend",
        /// The flow's backend is gone: the host refuses it.
        BackendGone = 9 "backend_gone",
        /// The slots were being replaced under the reader's eyes.
        StaleSlot = 10 "stale_slot",
        /// From a backend, but no reply of a flow that is known.
        NotReply = 11 "not_reply",
        /// connect() in a network namespace that is not ours.
        ForeignNetns = 12 "foreign_netns",
        /// connect() of a socket that is bound to a loopback address, from which no backend can be reached.
        LoopbackBound = 13 "loopback_bound",
        /// The driver gives XDP no room to tell TC where the packet goes: TC does the whole work.
        NoMetadata = 14 "no_metadata",
        /// connect() of a socket that is bound to a device, by which no backend may be reachable.
        DeviceBound = 15 "device_bound",
        /// IPv6 extension headers that are not followed: too many, too long, or with a way that goes on from here.
        Extensions = 16 "extensions",
        /// IPv6 from or to an address that is of one link alone, or that no packet may have.
        Scope = 17 "scope",
    }
}

reasons! {
    /// Why a packet was ended.
    DropReason from 64 {
        /// The client's port is taken on the backend's side, and no other could be found.
        NoSourcePort = 0 "no_source_port",
        /// The packet could not be rewritten.
        RewriteFailed = 1 "rewrite_failed",
        /// No memory for the flow.
        NoMemory = 2 "no_memory",
        /// A late segment of a backend that the client's port has left: it would end the client's new connection.
        StaleReply = 3 "stale_reply",
        /// The memory of the packet's flow became another flow's while it was read: the sender repeats the packet.
        Raced = 5 "raced",
        /// It has passed as many routers as it may: its sender is told (RFC 792, RFC 4443, time exceeded).
        TtlExpired = 6 "ttl_expired",
        /// Too big for the device by which it would have to leave: its sender is told (RFC 1191, RFC 4443).
        TooBig = 7 "too_big",
        /// Its sender's address is denied, or not among those that are allowed.
        Denied = 8 "denied",
        /// Its sender's network begins more connections than it may.
        RateLimited = 9 "rate_limited",
        /// Of a VLAN, but XDP could not see it, as the device had taken the tag off: rewritten already, for the wrong device.
        HiddenTag = 12 "hidden_tag",
        /// A client's reset that would end a connection past us, whose ports its own has: it is told by its next SYN.
        ForeignReset = 10 "foreign_reset",
        /// All of the frontend's backends that were looked at have as many connections as they may: a SYN comes again.
        BackendsFull = 11 "backends_full",
        /// A SYN for which its backend has no room, with a wrong checksum: its sender is not who it says.
        WrongChecksum = 13 "wrong_checksum",
        /// A SYN for which its backend has no room, from a network that has been sent as many cookies as it may.
        CookieLimited = 14 "cookie_limited",
        /// A SYN for which its backend has no room, with data, options of IP, or in fragments: no cookie remembers them. A
        /// client that sends data at once repeats its SYN without (RFC 7413, 4.1.3.1).
        CookieUnfit = 15 "cookie_unfit",
        /// A backend is its own client, or is to know none, and the host cannot stand in: it has no address on the backend's
        /// network, or reaches it by routing.
        NoStandIn = 4 "no_stand_in",
    }
}

reasons! {
    /// What is worth counting besides.
    Event from 128 {
        /// A flow is proven.
        Proven = 0 "proven",
        /// A flow is proven, but the table of proven flows is full.
        FlowTableFull = 1 "flow_table_full",
        /// The client's port was taken on the backend's side; another was chosen.
        PortRemapped = 2 "port_remapped",
        /// A SYN that was seen before.
        SynRetransmitted = 3 "syn_retransmitted",
        /// A SYN-ACK, RST or FIN that belongs to a flow whose forward half is gone.
        OrphanReply = 4 "orphan_reply",
        /// A flow of a backend that is gone, or does not answer, was given another one.
        Rescheduled = 5 "rescheduled",
        /// A RST or FIN outside the window: handed on, and not believed.
        OutOfWindow = 6 "out_of_window",
        /// A socket of this host was led to a backend, but there is no room to remember it.
        LocalTableFull = 7 "local_table_full",
        /// An ICMP error was led to the sender of the packet that it is about.
        IcmpError = 8 "icmp_error",
        /// A SYN for which its backend has no room was answered by a cookie.
        CookieIssued = 9 "cookie_issued",
        /// A client has acknowledged a cookie: its flow begins.
        CookieAccepted = 10 "cookie_accepted",
        /// While cookies are acknowledged, a segment of no flow did not acknowledge one, or its port is taken on the
        /// backend's side.
        CookieRefused = 11 "cookie_refused",
        /// A flow that begins has woken a backend that is asleep.
        Woken = 12 "woken",
        /// It has not, as too many wakings wait for the agent: the agent's sweep finds the flow.
        WakeLost = 13 "wake_lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::MAX_COUNTERS;

    #[test]
    fn every_reason_has_a_place_of_its_own() {
        extern crate std;
        let mut places: std::vec::Vec<u32> = PassReason::ALL.iter().map(|r| r.index()).collect();
        places.extend(DropReason::ALL.iter().map(|r| r.index()));
        places.extend(Event::ALL.iter().map(|r| r.index()));
        let all = places.len();

        places.sort_unstable();
        places.dedup();

        assert_eq!(places.len(), all);
        assert!(places.iter().all(|&place| place < MAX_COUNTERS));
    }
}
