//! Which slot the next connection goes to: one file for each way to choose.
//!
//! What a layout looks like is the agent's affair: in turn by weight, or scattered for hashing. Here a place in it is
//! chosen, at the beginning of a connection alone.

mod hashed;
mod least_conn;
mod random_two;
mod round_robin;

pub use hashed::{client_hash, tuple_hash};

use crate::{
    abi::{BackendId, FlowKey, Frontend, FrontendId, Scheduler, SlotRange},
    tables::Tables,
};

/// No backend's number.
pub const NOBODY: BackendId = BackendId::MAX;

/// A backend that is compared with others.
///
/// No condition here but the comparison itself: the verifier would follow both ways of each through all looks that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    id: BackendId,
    active: u64,
    weight: u64,
}

impl Candidate {
    /// What every backend is less busy than.
    const NONE: Self = Self { id: NOBODY, active: u32::MAX as u64, weight: 1 };

    /// Makes one of a backend's weight and the connections that it has. Without a weight it is never chosen.
    #[inline(always)]
    pub const fn new(id: BackendId, weight: u32, active: u64) -> Self {
        Self { id, active: active & (u32::MAX as u64 >> 1), weight: weight as u64 }
    }

    /// Makes it one without a weight if it has as many connections as it may, or more; zero: any number.
    #[inline(always)]
    #[must_use]
    const fn within(self, limit: u32) -> Self {
        let limit = if limit == 0 { u64::MAX >> 1 } else { limit as u64 };
        // All bits, if it has fewer: of two numbers below 2^63 the difference is negative.
        let has_room = (self.active.wrapping_sub(limit) as i64 >> 63) as u64;
        Self { weight: self.weight & has_room, ..self }
    }

    /// Returns whether one more connection would be less for this one than for another, by their weights.
    #[inline(always)]
    const fn is_less_busy(&self, other: &Self) -> bool {
        (self.active + 1) * other.weight < (other.active + 1) * self.weight
    }
}

/// Chooses the backend of a client that begins a connection, but none of number `but`; `None` if no other was found. There
/// are slots. Who has `limit` connections or more, if that is not zero, is passed over as far as others are looked at: the
/// caller asks again.
#[inline(always)]
pub fn pick<T: Tables>(
    (id, frontend): (FrontendId, &Frontend),
    client: &FlowKey,
    but: BackendId,
    limit: u32,
    tables: &T,
) -> Option<BackendId> {
    let SlotRange { base, len } = frontend.slots();
    let slot = |place: u32| tables.slot(base.wrapping_add(place)).filter(|slot| slot.backend != but);
    let backend = |place| slot(place).map(|slot| slot.backend);
    let open = |place| backend(place).filter(|id| !is_full(*id, limit, tables));
    let candidate = |place| {
        let slot = slot(place)?;
        Some(Candidate::new(slot.backend, slot.weight, tables.active(slot.backend)?).within(limit))
    };
    match frontend.scheduler() {
        Scheduler::RoundRobin | Scheduler::Weighted => backend(round_robin::place(tables.ticket(id), len)),
        Scheduler::LeastConn => least_conn::pick(tables.ticket(id), len, candidate),
        Scheduler::RandomTwo => random_two::pick((tables.random(), tables.random()), len, candidate),
        Scheduler::SourceHash => hashed::pick(client_hash(client), len, open),
        Scheduler::Maglev => hashed::pick(tuple_hash(client), len, open),
    }
}

/// Returns whether a backend has as many connections as it may; with a limit of zero it may have any number.
///
/// Two processors that begin one at the same moment may both begin the last: it has as many too many as there are other
/// processors, at most, until one ends.
#[inline(always)]
pub fn is_full<T: Tables>(id: BackendId, limit: u32, tables: &T) -> bool {
    limit != 0 && tables.active(id).is_some_and(|active| active >= u64::from(limit))
}

/// Returns the backend at the place of a ticket.
#[inline(always)]
pub fn at<T: Tables>(ticket: u64, frontend: &Frontend, tables: &T) -> Option<BackendId> {
    let SlotRange { base, len } = frontend.slots();
    tables.slot(base.wrapping_add(round_robin::place(ticket, len))).map(|slot| slot.backend)
}

/// Chooses the backend whose turn it is, whatever the scheduler: where its choice has come to nothing.
#[inline(always)]
pub fn next<T: Tables>((id, frontend): (FrontendId, &Frontend), tables: &T) -> Option<BackendId> {
    at(tables.ticket(id), frontend, tables)
}

#[cfg(test)]
mod tests {
    use super::Candidate;

    #[test]
    fn who_has_as_many_connections_as_it_may_is_never_chosen() {
        let full = |active, limit| !Candidate::new(1, 3, active).within(limit).is_less_busy(&Candidate::NONE);

        for limit in [1_u32, 2, 1000, u32::MAX >> 2] {
            let most = u64::from(limit);
            assert_eq!(
                [0, most - 1, most, most + 1].map(|active| full(active, limit)),
                [false, false, true, true],
                "{limit}"
            );
        }
        assert!(!full(1_000_000_000, 0), "without a limit, nobody is full");
    }

    #[test]
    fn the_busier_one_is_chosen_where_the_other_is_full() {
        let (full, busier) = (Candidate::new(1, 5, 2).within(2), Candidate::new(2, 1, 900).within(1000));

        assert!(busier.is_less_busy(&full) && !full.is_less_busy(&busier));
    }
}
