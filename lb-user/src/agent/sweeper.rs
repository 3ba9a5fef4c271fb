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
        let maps = Maps::open(&Pins::of(instance))?;
        let (requests, inbox) = thread_channel::channel::<Request>();
        let (outbox, results) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("sweeper".into())
            .spawn(move || {
                while let Ok(Request { began, retiring }) = inbox.recv() {
                    let start = Instant::now();
                    let outcome = sweep::sweep(&maps, clock::ktime());
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

    /// Waits for the next result; `None` if the thread has ended.
    pub async fn next(&mut self) -> Option<Swept> {
        let swept = self.results.recv().await?;
        self.busy = false;
        self.rest_until = Instant::now() + swept.took * SHARE;
        Some(swept)
    }
}
