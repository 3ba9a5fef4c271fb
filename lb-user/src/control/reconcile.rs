//! The plan: what has to be started, kept and drained so that as many backends count as are wanted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::backend::{Backend, DrainCause, State};
use super::event::ContainerId;
use super::frost::Frost;
use super::time::Timestamp;

/// What has to be done. Of what serves, nothing is drained while anything is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Drains to be cancelled.
    pub cancel: Vec<ContainerId>,
    /// Containers to be called out of the reserve.
    pub call: Vec<ContainerId>,
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

/// Plans from the wish, the size of the reserve, and what there is.
///
/// A backend counts from its start until its drain, and also while it fails, up to `unhealthy_limit`: it is hoped for.
/// `pending` starts count, too, but are no reason to drain anything before they have come to something, so that a
/// ready backend never goes in favour of one that is promised.
///
/// Who serves is missing is called out of the reserve before anybody is waited for: starts that are under way fill it up
/// again. What drains and was ready is going to be of the reserve, as far as there is room.
pub(super) fn plan(
    (wish, reserve): (u32, u32),
    first: FirstToGo,
    backends: &BTreeMap<ContainerId, Backend>,
    pending: &BTreeMap<u32, Timestamp>,
    unhealthy_limit: Duration,
    now: Timestamp,
) -> Plan {
    let (wish, reserve) = (wish as usize, reserve as usize);
    let active: Vec<&Backend> =
        backends.values().filter(|b| b.is_active() && !b.is_given_up(unhealthy_limit, now)).collect();
    let (starting, up): (Vec<&Backend>, Vec<&Backend>) = active.iter().partition(|b| b.state == State::Starting);
    let (starting, coming) = (starting.len(), starting.len() + pending.len());

    // Who serves at once: drains that are taken back, then the reserve. Without one, starts under way are waited for.
    let missing = wish.saturating_sub(up.len());
    let warm = callable(backends);
    let waits = match first {
        FirstToGo::Outdated if warm.is_empty() && reserve == 0 => coming,
        // What is on its way is of today's settings: it is no reason to let others go.
        FirstToGo::Outdated | FirstToGo::New => 0,
    };
    let (mut cancel, others) = returners(backends, missing.saturating_sub(waits));
    let call: Vec<&Backend> = warm.iter().copied().take(missing - cancel.len()).collect();
    let sure = call.iter().filter(|b| !b.frost.is_stuck()).count();
    let short = missing - cancel.len() - sure;

    let drained = backends.values().filter(|b| will_be_warm(b) && !cancel.contains(&b.id)).count();
    let reserve_short = reserve.saturating_sub(warm.len() - call.len() + drained);
    let allowed = reserve_short.min(starting);
    let drain =
        if active.len() > wish + allowed { victims(active, first, wish + allowed) } else { victims(up, first, wish) };
    if !drain.is_empty() {
        return Plan { cancel, call: ids(&call), drain, ..Plan::default() };
    }
    // Starts that are under way are for those first who are missing still, and so is what drains and was not ready.
    let more = (short + reserve_short).saturating_sub(coming);
    let returning: Vec<ContainerId> = others.into_iter().take(short.saturating_sub(coming)).collect();
    let start = free_ordinals(backends, pending).take(more - returning.len()).collect();
    cancel.extend(returning);
    Plan { cancel, call: ids(&call), start, drain }
}

fn ids(backends: &[&Backend]) -> Vec<ContainerId> {
    backends.iter().map(|b| b.id.clone()).collect()
}

/// Returns whether a backend that drains is to be of the reserve afterwards, if there is room.
fn will_be_warm(backend: &Backend) -> bool {
    matches!(&backend.state, State::Draining(drain) if drain.cause == DrainCause::Excess && drain.was_ready)
        && backend.fits_reserve()
}

/// Returns the reserve in the order in which it is called: what runs or is about to, then the oldest; last what could not be
/// thawed.
fn callable(backends: &BTreeMap<ContainerId, Backend>) -> Vec<&Backend> {
    let mut warm: Vec<&Backend> = backends.values().filter(|b| b.state == State::Warm && !b.outdated).collect();
    let place = |frost: Frost| match frost {
        Frost::Awake | Frost::Dozing { .. } => 0,
        Frost::Thawing(_) => 1,
        Frost::Frozen => 2,
        Frost::Freezing(_) => 3,
    };
    warm.sort_by_key(|b| (b.frost.is_stuck(), place(b.frost), b.created, b.ordinal));
    warm
}

/// Returns all but the `keep` best: what is not ready goes first, then what is outdated (or is not, where that is `first`), then
/// what has the fewest live connections, and of those the newest.
fn victims(mut active: Vec<&Backend>, first: FirstToGo, keep: usize) -> Vec<ContainerId> {
    active.sort_by_key(|b| {
        let usefulness = match b.state {
            State::Unhealthy => 0,
            State::Starting => 1,
            State::Ready => 2,
            State::Warm | State::Draining(_) | State::Stopping(_) | State::Dead(_) => {
                unreachable!("only active backends are asked")
            }
        };
        let is_kept = b.outdated == (first == FirstToGo::New);
        (usefulness, is_kept, b.flows, Reverse(b.created), Reverse(b.ordinal))
    });
    active.iter().take(active.len().saturating_sub(keep)).map(|b| b.id.clone()).collect()
}

/// Returns draining backends that can serve again, the oldest first: up to `missing` that were ready, and all that were not.
fn returners(backends: &BTreeMap<ContainerId, Backend>, missing: usize) -> (Vec<ContainerId>, Vec<ContainerId>) {
    let mut draining: Vec<_> = backends
        .values()
        .filter_map(|b| match &b.state {
            State::Draining(drain) if drain.cause == DrainCause::Excess => {
                Some((!drain.was_ready, b.created, b.ordinal, &b.id))
            }
            State::Draining(_)
            | State::Starting
            | State::Ready
            | State::Warm
            | State::Unhealthy
            | State::Stopping(_)
            | State::Dead(_) => None,
        })
        .collect();
    draining.sort();
    let (others, ready): (Vec<_>, Vec<_>) = draining.into_iter().partition(|(was_not, ..)| *was_not);
    (
        ready.into_iter().take(missing).map(|(.., id)| id.clone()).collect(),
        others.into_iter().map(|(.., id)| id.clone()).collect(),
    )
}

/// Returns the ordinals that no container has, lowest first.
fn free_ordinals<'a>(
    backends: &BTreeMap<ContainerId, Backend>,
    pending: &'a BTreeMap<u32, Timestamp>,
) -> impl Iterator<Item = u32> + 'a {
    let taken: BTreeSet<u32> = backends.values().map(|b| b.ordinal).collect();
    (1..).filter(move |ordinal| !taken.contains(ordinal) && !pending.contains_key(ordinal))
}
