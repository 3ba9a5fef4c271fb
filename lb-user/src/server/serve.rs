//! Connections and their limits: one request each, with a time for every part of it.

use std::{
    convert::Infallible,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, send},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{
    asks::Asking,
    journal::Journal,
    route::{self, Desk},
    socket::{self, SocketError, SocketFile},
    views::Views,
};

/// Connections at once; others wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Those of them that may follow events, so that there is always room for orders.
const FOLLOWERS: usize = 32;
/// Those of them that may read maps at once.
const LOOKS: usize = 2;
/// Time for the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Time for a request and its response, unless it follows.
const WHOLE_LIMIT: Duration = Duration::from_secs(30);
/// The head of a request: more than any of ours needs.
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;
/// How often it is looked whether a client is there still.
const LOOK: Duration = Duration::from_secs(1);
/// How long to leave the listener alone when the process is out of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How long followers may take to read the last events.
const FAREWELL: Duration = Duration::from_millis(500);

/// The server; it ends with this, and its socket goes.
#[derive(Debug)]
pub struct Server {
    accepting: JoinHandle<()>,
    journal: Arc<Journal>,
    connections: Arc<Semaphore>,
    _file: SocketFile,
}

impl Server {
    /// Begins to serve at a path.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub fn start(
        path: &Path,
        asks: mpsc::Sender<Asking>,
        journal: Arc<Journal>,
        views: Arc<dyn Views>,
    ) -> Result<Self, SocketError> {
        let (listener, file) = socket::listen(path)?;
        let (followers, looks) = (Arc::new(Semaphore::new(FOLLOWERS)), Arc::new(Semaphore::new(LOOKS)));
        let desk = Arc::new(Desk { asks, journal: journal.clone(), views, followers, looks });
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        let accepting = tokio::spawn(accept(listener, desk, connections.clone()));
        Ok(Self { accepting, journal, connections, _file: file })
    }

    /// Ends it: nobody is accepted any more, and who follows may read what is left.
    pub async fn end(self) {
        self.journal.close();
        // One place is that of who comes next.
        let _some_do_not_read = timeout(FAREWELL, self.connections.acquire_many(CONNECTIONS as u32 - 1)).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: UnixListener, desk: Arc<Desk>, connections: Arc<Semaphore>) {
    // All of them end with this.
    let mut served = JoinSet::new();
    loop {
        while served.try_join_next().is_some() {}
        let Ok(place) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = desk.clone();
                served.spawn(async move {
                    converse(stream, desk).await;
                    drop(place);
                });
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::warn!("accept a connection at the control socket: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers one request.
async fn converse(stream: UnixStream, desk: Arc<Desk>) {
    let Ok(line) = stream.as_fd().try_clone_to_owned() else { return };
    let peer = stream.peer_cred().map(|peer| peer.uid()).ok();
    let follows = Arc::new(AtomicBool::new(false));
    let respond = service_fn(|request| {
        let (desk, follows) = (desk.clone(), follows.clone());
        async move { Ok::<_, Infallible>(route::respond(&desk, request, peer, &follows).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .keep_alive(false)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), respond);
    let overdue = async {
        let mut waited = Duration::ZERO;
        while (follows.load(Ordering::Relaxed) || waited < WHOLE_LIMIT) && !has_left(&line) {
            sleep(LOOK).await;
            waited += LOOK;
        }
    };
    tokio::select! {
        outcome = connection => {
            if let Err(error) = outcome {
                tracing::debug!("control socket: {error}");
            }
        }
        () = overdue => tracing::debug!("control socket: a client has left, or took longer than {WHOLE_LIMIT:?}"),
    }
}

/// Returns whether a client has closed his end; who has shut down the half by which he asks is there still. Nothing else
/// tells the one from the other as long as there is nothing to write.
///
/// # Source
/// `unix_stream_sendmsg`, net/unix/af_unix.c: that nobody will read is looked at before how much there is to send.
fn has_left(line: &OwnedFd) -> bool {
    send(line.as_raw_fd(), &[], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) == Err(Errno::EPIPE)
}
