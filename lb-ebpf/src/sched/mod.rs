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
    abi::{BackendId, FlowKey, Frontend, FrontendId, Scheduler, SlotRange, Tally},
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

    /// Makes it one without a weight if it holds as many connections as it may, or more; zero: any number.
    #[inline(always)]
    #[must_use]
    const fn within(self, held: u64, limit: u32) -> Self {
        let limit = if limit == 0 { u64::MAX >> 1 } else { limit as u64 };
        // All bits, if it has fewer: of two numbers below 2^63 the difference is negative.
        let has_room = ((held & (u64::MAX >> 1)).wrapping_sub(limit) as i64 >> 63) as u64;
        Self { weight: self.weight & has_room, ..self }
    }

    /// Returns whether one more connection would be less for this one than for another, by their weights.
    #[inline(always)]
    const fn is_less_busy(&self, other: &Self) -> bool {
        (self.active + 1) * other.weight < (other.active + 1) * self.weight
    }
}

/// Chooses the backend of a client that begins a connection, but none of number `but`; `None` if no other was found. There
/// are slots. Who holds `limit` connections or more, if that is not zero, is passed over as far as others are looked at: the
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
        let Tally { active, held } = tables.tally(slot.backend)?;
        Some(Candidate::new(slot.backend, slot.weight, active).within(held, limit))
    };
    match frontend.scheduler() {
        Scheduler::RoundRobin | Scheduler::Weighted => backend(round_robin::place(tables.ticket(id), len)),
        Scheduler::LeastConn => least_conn::pick(tables.ticket(id), len, candidate),
        Scheduler::RandomTwo => random_two::pick((tables.random(), tables.random()), len, candidate),
        Scheduler::SourceHash => hashed::pick(client_hash(client), len, open),
        Scheduler::Maglev => hashed::pick(tuple_hash(client), len, open),
    }
}

/// Returns whether a backend holds as many connections as it may; with a limit of zero it may have any number.
///
/// What is not proven when another begins holds no place yet: it has as many too many as there are clients within a
/// handshake of it at that moment. Were those counted, few who forge addresses would keep everybody else out.
#[inline(always)]
pub fn is_full<T: Tables>(id: BackendId, limit: u32, tables: &T) -> bool {
    limit != 0 && tables.tally(id).is_some_and(|tally| tally.held >= u64::from(limit))
}

/// Returns the place within `len` slots of a ticket.
#[inline(always)]
pub const fn place(ticket: u64, len: u32) -> u32 {
    round_robin::place(ticket, len)
}

#[cfg(test)]
mod tests {
    use super::Candidate;

    #[test]
    fn who_has_as_many_connections_as_it_may_is_never_chosen() {
        let full = |active, limit| !Candidate::new(1, 3, 0).within(active, limit).is_less_busy(&Candidate::NONE);

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
        let (full, busier) = (Candidate::new(1, 5, 2).within(2, 2), Candidate::new(2, 1, 900).within(900, 1000));

        assert!(busier.is_less_busy(&full) && !full.is_less_busy(&busier));
    }
}
