//! The plan: what has to be started, kept and drained so that as many backends count as are wanted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::backend::{Backend, DrainCause, State};
use super::event::ContainerId;
use super::time::Timestamp;

/// What has to be done. At most one of `drain` and the other two is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Drains to be cancelled.
    pub cancel: Vec<ContainerId>,
    /// Ordinals of containers to be started; the caller may put some of them off.
    pub start: Vec<u32>,
    /// Backends to be drained.
    pub drain: Vec<ContainerId>,
}

/// Which of those that are of equal use have to go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstToGo {
    /// Those of other settings than today's.
    Outdated,
    /// Those of today's, which have shown not to be fit.
    New,
}

/// Plans from the wish and what there is.
///
/// A backend counts from its start until its drain, and also while it fails, up to `unhealthy_limit`: it is hoped for.
/// `pending` starts count, too, but are no reason to drain anything before they have come to something, so that a
/// ready backend never goes in favour of one that is promised.
pub(super) fn plan(
    wish: u32,
    first: FirstToGo,
    backends: &BTreeMap<ContainerId, Backend>,
    pending: &BTreeMap<u32, Timestamp>,
    unhealthy_limit: Duration,
    now: Timestamp,
) -> Plan {
    let wish = wish as usize;
    let active: Vec<&Backend> =
        backends.values().filter(|b| b.is_active() && !b.is_given_up(unhealthy_limit, now)).collect();
    if active.len() > wish {
        return Plan { drain: victims(active, first, wish), ..Plan::default() };
    }
    let lacking = wish.saturating_sub(active.len());
    let missing = lacking.saturating_sub(pending.len());
    let cancel = match first {
        FirstToGo::Outdated => returners(backends, missing),
        // What is on its way is of today's settings: it is no reason to let others go.
        FirstToGo::New => returners(backends, lacking),
    };
    let start = free_ordinals(backends, pending).take(missing.saturating_sub(cancel.len())).collect();
    Plan { cancel, start, drain: Vec::new() }
}

/// Returns all but the `keep` best: what is not ready goes first, then what is outdated (or is not, where that is `first`), then
/// what has the fewest live connections, and of those the newest.
fn victims(mut active: Vec<&Backend>, first: FirstToGo, keep: usize) -> Vec<ContainerId> {
    active.sort_by_key(|b| {
        let usefulness = match b.state {
            State::Unhealthy => 0,
            State::Starting => 1,
            State::Ready => 2,
            State::Draining(_) | State::Stopping(_) | State::Dead(_) => unreachable!("only active backends are asked"),
        };
        let is_kept = b.outdated == (first == FirstToGo::New);
        (usefulness, is_kept, b.flows, Reverse(b.created), Reverse(b.ordinal))
    });
    active.iter().take(active.len().saturating_sub(keep)).map(|b| b.id.clone()).collect()
}

/// Returns up to `missing` draining backends that can serve again: the ones that were ready first, then the oldest.
fn returners(backends: &BTreeMap<ContainerId, Backend>, missing: usize) -> Vec<ContainerId> {
    let mut draining: Vec<_> = backends
        .values()
        .filter_map(|b| match &b.state {
            State::Draining(drain) if drain.cause == DrainCause::Excess => {
                Some((!drain.was_ready, b.created, b.ordinal, &b.id))
            }
            State::Draining(_)
            | State::Starting
            | State::Ready
            | State::Unhealthy
            | State::Stopping(_)
            | State::Dead(_) => None,
        })
        .collect();
    draining.sort();
    draining.into_iter().take(missing).map(|(.., id)| id.clone()).collect()
}

/// Returns the ordinals that no container has, lowest first.
fn free_ordinals<'a>(
    backends: &BTreeMap<ContainerId, Backend>,
    pending: &'a BTreeMap<u32, Timestamp>,
) -> impl Iterator<Item = u32> + 'a {
    let taken: BTreeSet<u32> = backends.values().map(|b| b.ordinal).collect();
    (1..).filter(move |ordinal| !taken.contains(ordinal) && !pending.contains_key(ordinal))
}
