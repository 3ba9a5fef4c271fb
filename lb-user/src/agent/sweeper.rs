//! Sweeps beside the loop, on a thread and map handles of their own: a million flows take a moment, and a container's
//! death must not wait for it.

use std::{
    collections::BTreeSet,
    sync::mpsc as thread_channel,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_ebpf::abi::BackendId;
use tokio::sync::mpsc;

use crate::{
    control::Timestamp,
    datapath::{DatapathError, Maps, Pins, clock, sweep},
};

/// A sweep may take one part in so many of a processor.
const SHARE: u32 = 20;
/// How often reply halves that stand alone are looked for, too.
const DEEP: Duration = Duration::from_secs(60);

/// How often sockets are looked for that are gone without a word.
const SOCKETS: Duration = Duration::from_secs(60);
/// How soon a look that has missed some is followed by the one that tells.
const SOCKETS_AGAIN: Duration = Duration::from_secs(5);

/// A thread that sweeps when asked to.
pub struct Sweeper {
    requests: thread_channel::Sender<Request>,
    results: mpsc::UnboundedReceiver<Swept>,
    busy: bool,
    rest_until: Instant,
}

/// A sweep that is asked for.
struct Request {
    began: Timestamp,
    retiring: BTreeSet<BackendId>,
}

/// A sweep that is done.
pub struct Swept {
    /// When it was asked for.
    pub began: Timestamp,
    /// Backends that had ended before it began.
    pub retiring: BTreeSet<BackendId>,
    /// What it found.
    pub outcome: Result<sweep::Census, DatapathError>,
    took: Duration,
}

impl Sweeper {
    /// Starts the thread, which ends when this is dropped.
    ///
    /// # Errors
    /// If the maps cannot be opened, or no thread be started.
    pub fn start(instance: &str) -> Result<Self> {
        let mut maps = Maps::open(&Pins::of(instance))?;
        let (requests, inbox) = thread_channel::channel::<Request>();
        let (outbox, results) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("sweeper".into())
            .spawn(move || {
                let mut last_deep = Instant::now();
                let mut sockets = Sockets::default();
                while let Ok(Request { began, retiring }) = inbox.recv() {
                    let start = Instant::now();
                    let depth = if last_deep.elapsed() >= DEEP { sweep::Depth::All } else { sweep::Depth::Flows };
                    if depth == sweep::Depth::All {
                        last_deep = start;
                    }
                    let outcome = sweep::sweep(&mut maps, clock::ktime(), depth);
                    sockets.sweep(&maps);
                    if outbox.send(Swept { began, retiring, outcome, took: start.elapsed() }).is_err() {
                        return;
                    }
                }
            })
            .context("start the sweeper's thread")?;
        Ok(Self { requests, results, busy: false, rest_until: Instant::now() })
    }

    /// Asks for a sweep, unless one is under way or the last one was so long that a rest is due.
    pub fn request(&mut self, began: Timestamp, retiring: BTreeSet<BackendId>) {
        if !self.busy && Instant::now() >= self.rest_until {
            self.busy = self.requests.send(Request { began, retiring }).is_ok();
        }
    }

    /// Waits for the next result.
    ///
    /// # Errors
    /// If the thread has ended, which it has no reason to.
    pub async fn next(&mut self) -> Result<Swept> {
        let swept = self
            .results
            .recv()
            .await
            .context("the sweeper's thread has ended by itself: this is a fault of lb-user")?;
        self.busy = false;
        self.rest_until = Instant::now() + swept.took * SHARE;
        Ok(swept)
    }
}

/// Looks for sockets that are gone without a word, when it is time to.
#[derive(Default)]
struct Sockets {
    absent: sweep::Absent,
    looked: Option<Instant>,
    has_complained: bool,
}

impl Sockets {
    fn sweep(&mut self, maps: &Maps) {
        let pause = if self.absent.is_in_doubt() { SOCKETS_AGAIN } else { SOCKETS };
        if self.looked.is_some_and(|looked| looked.elapsed() < pause) {
            return;
        }
        self.looked = Some(Instant::now());
        match sweep::sweep_sockets(maps, &mut self.absent, clock::ktime()) {
            Ok(0) => {}
            Ok(gone) => tracing::debug!(gone, "sockets of this host were gone without a word"),
            // A kernel without inet_diag is no reason to call the instance degraded: what is left over is little.
            Err(error) if !self.has_complained => {
                self.has_complained = true;
                tracing::warn!("look for sockets that are gone: {}", super::chain(&error));
            }
            Err(error) => tracing::debug!("look for sockets that are gone: {}", super::chain(&error)),
        }
    }
}
