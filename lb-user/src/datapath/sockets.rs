//! Which sockets there are, by the cookies under which the datapath knows them.
//!
//! # Source
//! sock_diag(7). A cookie is the same to `bpf_get_socket_cookie` and to inet_diag, and never given twice while the machine
//! runs: `__sock_gen_cookie`, net/core/sock_diag.c.

use std::{collections::BTreeSet, io, net::SocketAddr as Endpoint};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use crate::config::publish::Proto;

/// Returns the cookies of all TCP and UDP sockets of the calling thread's network namespace. A socket that moves from one
/// state to the next meanwhile may be missing, and so may one that is neither bound nor connected. Connections of MPTCP
/// are there by their subflows, as which the datapath knows them.
///
/// # Errors
/// What the kernel said; an incomplete answer is an error.
pub fn cookies() -> io::Result<BTreeSet<u64>> {
    let mut cookies = BTreeSet::new();
    for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
        // Every state, the kernel's own included, but the one in which there is no socket any more.
        let states = StateFlags::from_bits_retain(!StateFlags::TIME_WAIT.bits());
        list(protocol, &states, |found| _ = cookies.insert(u64::from_ne_bytes(found.header.socket_id.cookie)))?;
    }
    Ok(cookies)
}

/// Returns where sockets of the calling thread's network namespace wait for clients. A socket of IPv6 may take clients of IPv4,
/// too.
///
/// # Errors
/// What the kernel said.
pub fn listeners() -> io::Result<BTreeSet<(Proto, Endpoint)>> {
    let mut listeners = BTreeSet::new();
    // A UDP socket that is connected to nobody is in the state "close".
    let kinds = [(IPPROTO_TCP, Proto::Tcp, StateFlags::LISTEN), (IPPROTO_UDP, Proto::Udp, StateFlags::CLOSE)];
    for (protocol, proto, states) in kinds {
        list(protocol, &states, |found| {
            let id = &found.header.socket_id;
            listeners.insert((proto, Endpoint::new(id.source_address, id.source_port)));
        })?;
    }
    Ok(listeners)
}

/// Shows the sockets of both families in some states.
fn list(protocol: u8, states: &StateFlags, mut each: impl FnMut(&InetResponse)) -> io::Result<()> {
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let (extensions, states) = (ExtensionFlags::empty(), states.clone());
        list_family(InetRequest { family, protocol, extensions, states, socket_id }, &mut each)?;
    }
    Ok(())
}

fn list_family(request: InetRequest, each: &mut impl FnMut(&InetResponse)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (answers, _) = socket.recv_from_full()?;
        let mut rest = answers.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            if answer.header.flags & NLM_F_DUMP_INTR != 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            // Messages begin at multiples of four: NLMSG_ALIGN of netlink(7).
            rest = rest.get((answer.header.length as usize).max(1).next_multiple_of(4)..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                    each(&found);
                }
                NetlinkPayload::Done(end) if end.code == 0 => return Ok(()),
                NetlinkPayload::Done(end) => return Err(io::Error::from_raw_os_error(-end.code)),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::Overrun(_) => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn who_waits_for_clients_is_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();

        let all = listeners().unwrap();

        assert!(all.contains(&(Proto::Tcp, listener.local_addr().unwrap())));
        assert!(all.contains(&(Proto::Udp, socket.local_addr().unwrap())));
        assert!(!all.contains(&(Proto::Tcp, stream.local_addr().unwrap())));
    }

    #[test]
    fn sockets_are_listed_as_long_as_they_are_open() {
        // So many that no other process explains them.
        const MANY: usize = 100;
        let before = cookies().unwrap();
        let listeners: Vec<_> = (0..MANY).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let with_listeners = cookies().unwrap();
        let streams: Vec<_> =
            listeners.iter().map(|listener| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
        let with_streams = cookies().unwrap();
        let datagrams: Vec<_> = (0..MANY).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let with_datagrams = cookies().unwrap();
        drop(datagrams);
        let without_datagrams = cookies().unwrap();

        assert!(with_listeners.difference(&before).count() >= MANY);
        assert!(with_streams.difference(&with_listeners).count() >= 2 * MANY, "both ends");
        assert!(with_datagrams.difference(&with_streams).count() >= MANY);
        assert!(with_datagrams.difference(&without_datagrams).count() >= MANY, "a UDP socket lingers in no state");
        drop((listeners, streams));
    }
}
