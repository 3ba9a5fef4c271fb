//! Looks at the counters of new connections between two ticks, and tells of a surge that does not wait for the next.
//!
//! What a surge is, and what comes of it, the law says ([`Looks`]). Here is only how often it is looked: at the services for
//! which a controller wants to know, since none of the others has more to start or to thaw; seldom while nobody comes; and
//! never so often that looking takes more than a small part of a processor, however many backends there are.

use std::{
    collections::BTreeMap,
    future::pending,
    time::{Duration, Instant},
};

use tokio::time::sleep_until;

use super::{chain, measure::connections};
use crate::{
    config::ServiceName,
    control::{
        Timestamp,
        law::{Looks, Surge},
    },
    datapath::Datapath,
    metrics::arrivals::Arrivals,
};

/// The time from a look to the next. Three of them tell a surge.
const LOOKS: Duration = Duration::from_millis(14);
/// The same while nobody comes.
const SELDOM: Duration = Duration::from_millis(28);
/// Looks may take one part in so many of a processor.
const SHARE: u32 = 200;

/// What is looked at.
pub struct Tripwire {
    wires: BTreeMap<ServiceName, Wire>,
    due: Instant,
    /// How long the last look took.
    took: Duration,
}

/// One service.
#[derive(Default)]
struct Wire {
    /// More than so many connections a second are told; nothing where they were, until the next tick.
    limit: Option<f64>,
    arrivals: Arrivals,
    looks: Looks,
}

impl Tripwire {
    /// Creates one that looks at nothing.
    pub fn new() -> Self {
        Self { wires: BTreeMap::new(), due: Instant::now(), took: Duration::ZERO }
    }

    /// Looks at these services, each with the rate of new connections, a second, beyond which it is told once; until the next
    /// call.
    pub fn set(&mut self, limits: BTreeMap<ServiceName, f64>) {
        self.wires.retain(|name, _| limits.contains_key(name));
        for (name, limit) in limits {
            self.wires.entry(name).or_default().limit = Some(limit);
        }
    }

    /// Waits for surges. What was seen until then is kept where the wait is given up.
    pub async fn next(&mut self, datapath: &Datapath, started: Instant) -> Vec<(ServiceName, Surge)> {
        if self.wires.is_empty() {
            return pending().await;
        }
        loop {
            sleep_until(self.due.into()).await;
            let began = Instant::now();
            let surges = self.look(datapath, Timestamp::new(began - started));
            let pause = if self.wires.values().all(|wire| wire.looks.are_empty()) { SELDOM } else { LOOKS };
            // The shorter of two: one that was interrupted by others has not cost what it took.
            let took = began.elapsed();
            self.due = began + pause.max(took.min(std::mem::replace(&mut self.took, took)) * SHARE);
            if !surges.is_empty() {
                return surges;
            }
        }
    }

    fn look(&mut self, datapath: &Datapath, now: Timestamp) -> Vec<(ServiceName, Surge)> {
        let mut surges = Vec::new();
        for (name, wire) in &mut self.wires {
            match connections(datapath, name).map(|counted| wire.arrivals.sample(counted)) {
                // Since when, is not known the first time.
                Ok(came) => wire.looks.push(came.unwrap_or(0.0), now),
                Err(error) => {
                    tracing::debug!("count the connections of {name}: {}", chain(&error));
                    wire.arrivals.lose();
                    wire.looks.forget();
                }
            }
            if let Some(surge) = wire.limit.and_then(|limit| wire.looks.surge(limit)) {
                wire.limit = None;
                surges.push((name.clone(), surge));
            }
        }
        surges
    }
}
