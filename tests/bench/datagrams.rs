//! Small datagrams, as fast as one sender can: how many arrive.

use std::{
    io::IoSlice,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_tests::lab;
use nix::sys::socket::{self, MsgFlags, MultiHeaders, SockaddrIn, sockopt};

use crate::{field::PATIENCE, interrupt};

/// Bytes of payload: with headers and frame check sequence, 64 bytes on a wire.
const PAYLOAD: usize = 18;
/// Datagrams per system call.
const BATCH: usize = 64;
/// Sockets that take turns, each a flow.
const FLOWS: usize = 64;
/// Room in the receiver's queue, in bytes.
const QUEUE: usize = 8 << 20;

/// Counts what arrives at a socket.
pub fn count(socket: &UdpSocket, arrived: &AtomicU64, stop: &AtomicBool) {
    let _smaller_queue = socket::setsockopt(socket, sockopt::RcvBufForce, &QUEUE);
    if socket.set_read_timeout(Some(PATIENCE)).is_err() {
        return;
    }
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut payloads = vec![[0_u8; PAYLOAD]; BATCH];
    while !stop.load(Ordering::Relaxed) {
        let mut slices: Vec<_> = payloads.iter_mut().map(|payload| [std::io::IoSliceMut::new(payload)]).collect();
        let received =
            socket::recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None);
        if let Ok(messages) = received {
            arrived.fetch_add(messages.count() as u64, Ordering::Relaxed);
        }
    }
}

/// What a burst came to.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    /// Datagrams that the sender's kernel took.
    pub sent: u64,
    /// Datagrams that arrived.
    pub arrived: u64,
    /// For how long was sent.
    pub took: Duration,
}

/// Sends to one or more servers from one thread, flow after flow.
pub fn send(namespace: &str, to: &[SocketAddrV4], duration: Duration, arrived: impl Fn() -> u64) -> Result<Burst> {
    let sockets: Vec<UdpSocket> = lab::inside(namespace, || {
        (0..FLOWS)
            .map(|flow| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect(to[flow % to.len()])?;
                Ok(socket)
            })
            .collect::<std::io::Result<_>>()
    })
    .context("open sockets")?;
    let payload = [0_u8; PAYLOAD];
    let slices = [[IoSlice::new(&payload)]; BATCH];
    let addresses = [None; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let before = arrived();
    let mut sent = 0;
    let start = Instant::now();
    'burst: loop {
        for socket in &sockets {
            if start.elapsed() >= duration || interrupt::asked() {
                break 'burst;
            }
            // A port that is not reached answers once, by an error of the next call; that is a loss like any other.
            let taken = socket::sendmmsg(socket.as_raw_fd(), &mut headers, &slices, addresses, [], MsgFlags::empty());
            sent += taken.map_or(0, |taken| taken.count() as u64);
        }
    }
    let took = start.elapsed();
    thread::sleep(Duration::from_millis(300)); // what is under way arrives
    Ok(Burst { sent, arrived: arrived() - before, took })
}
