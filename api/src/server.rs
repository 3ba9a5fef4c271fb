//! Serves connections, and stops without losing a request.
//!
//! A server that closes an idle keep-alive connection races with the client's next request: the request meets a closed socket. So after the
//! signal to stop
//!
//! 1. it goes on accepting and serving, and every response says `Connection: close`;
//! 2. connections that stay idle keep that offer for the time to linger, then they are closed;
//! 3. it ends when no connection is left, at the latest at the limit.
//!
//! A balancer that sends no new connections here has taken the server out of rotation by then.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use hyper::{
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::{Instant, sleep},
};

use crate::routes::Api;

/// Connections the kernel may hold ready for us to accept; it cuts this to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// How long to leave the listener alone when the process is out of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How the end of the service is spread over time.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// How long idle connections may still send one more request.
    pub linger: Duration,
    /// When to end although connections are open. Docker kills a container 10 s after its signal.
    pub limit: Duration,
    /// How long there must be no connection at all for an end before `linger` is over.
    pub quiet: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { linger: Duration::from_secs(3), limit: Duration::from_secs(8), quiet: Duration::from_millis(200) }
    }
}

/// Listens on an address; IPv6's `[::]` takes IPv4 as well where the host allows it.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let bind = || -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("listen on {address}"))
}

/// Listens on every address of both families; on those of IPv4 alone where the kernel has no IPv6.
///
/// # Errors
/// When neither can be bound.
pub fn listen_everywhere(port: u16) -> Result<TcpListener> {
    let all_of_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).or_else(|_| listen(all_of_ipv4))
}

/// Serves until `stop` completes and the connections have ended as `drain` says.
pub async fn serve(listener: TcpListener, api: Api, stop: impl Future<Output = ()>, drain: Drain) {
    let (phase, phase_seen) = watch::channel(Phase::Serving);
    let traffic = Arc::new(Traffic::default());
    let ending = async {
        stop.await;
        end(&phase, &traffic, drain).await;
    };
    tokio::select! {
        () = accept(&listener, &api, &phase_seen, &traffic) => {}
        () = ending => {}
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Lingering,
    Closing,
}

/// Connections ever accepted and ever ended; the difference is open.
#[derive(Default)]
struct Traffic {
    accepted: AtomicU64,
    ended: AtomicU64,
}

/// Counts its connection as ended when dropped, even by a panic.
struct Open(Arc<Traffic>);

impl Open {
    fn new(traffic: &Arc<Traffic>) -> Self {
        traffic.accepted.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(traffic))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

async fn accept(listener: &TcpListener, api: &Api, phase: &watch::Receiver<Phase>, traffic: &Arc<Traffic>) {
    loop {
        match listener.accept().await {
            Ok((stream, _client)) => {
                tokio::spawn(converse(stream, api.clone(), phase.clone(), Open::new(traffic)));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                eprintln!("accept a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, api: Api, mut phase: watch::Receiver<Phase>, open: Open) {
    let _open = open;
    let _ = stream.set_nodelay(true); // refused only when the client has gone, and then the next read tells
    let born_closing = *phase.borrow() == Phase::Closing;
    let phase_now = phase.clone();
    let service = service_fn(|request| {
        let (api, phase_now) = (&api, &phase_now);
        async move {
            let mut response = api.answer(&request).await;
            if *phase_now.borrow() != Phase::Serving {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });

    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    // A client that breaks off is no fault of ours, so how a connection ends is of no interest.
    if born_closing {
        let _ = connection.await; // its first request is answered, and that answer closes it
        return;
    }
    let closing = async {
        let _ = phase.wait_for(|phase| *phase == Phase::Closing).await; // its sender outlives the connections
    };
    tokio::select! {
        _ = connection.as_mut() => {}
        () = closing => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn end(phase: &watch::Sender<Phase>, traffic: &Traffic, drain: Drain) {
    const LOOK: Duration = Duration::from_millis(10);
    let began = Instant::now();
    let mut quiet_since = began;
    let mut accepted = traffic.accepted.load(Ordering::Relaxed);
    phase.send_replace(Phase::Lingering);

    loop {
        sleep(LOOK).await;
        let ended = traffic.ended.load(Ordering::Relaxed);
        let accepted_by_then = std::mem::replace(&mut accepted, traffic.accepted.load(Ordering::Relaxed));
        let quiet = ended == accepted && accepted == accepted_by_then;
        if !quiet {
            quiet_since = Instant::now();
        }

        let lingered = began.elapsed() >= drain.linger;
        let was_quiet = quiet_since.elapsed() >= drain.quiet;
        if began.elapsed() >= drain.limit || quiet && (lingered || was_quiet) {
            return;
        }
        if lingered && *phase.borrow() == Phase::Lingering {
            phase.send_replace(Phase::Closing);
        }
    }
}

#[cfg(test)]
mod tests;
