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

    /// Returns whether one more connection would be less for this one than for another, by their weights.
    #[inline(always)]
    const fn is_less_busy(&self, other: &Self) -> bool {
        (self.active + 1) * other.weight < (other.active + 1) * self.weight
    }
}

/// Chooses the backend of a client that begins a connection, but none of number `but`; `None` if no other was found. There
/// are slots.
#[inline(always)]
pub fn pick<T: Tables>(
    (id, frontend): (FrontendId, &Frontend),
    client: &FlowKey,
    but: BackendId,
    tables: &T,
) -> Option<BackendId> {
    let SlotRange { base, len } = frontend.slots();
    let slot = |place: u32| tables.slot(base.wrapping_add(place)).filter(|slot| slot.backend != but);
    let backend = |place| slot(place).map(|slot| slot.backend);
    let candidate = |place| {
        let slot = slot(place)?;
        Some(Candidate::new(slot.backend, slot.weight, tables.active(slot.backend)?))
    };
    match frontend.scheduler() {
        Scheduler::RoundRobin | Scheduler::Weighted => backend(round_robin::place(tables.ticket(id), len)),
        Scheduler::LeastConn => least_conn::pick(tables.ticket(id), len, candidate),
        Scheduler::RandomTwo => random_two::pick((tables.random(), tables.random()), len, candidate),
        Scheduler::SourceHash => hashed::pick(client_hash(client), len, backend),
        Scheduler::Maglev => hashed::pick(tuple_hash(client), len, backend),
    }
}

/// Chooses the backend whose turn it is, whatever the scheduler: where its choice has come to nothing.
#[inline(always)]
pub fn next<T: Tables>((id, frontend): (FrontendId, &Frontend), tables: &T) -> Option<BackendId> {
    let SlotRange { base, len } = frontend.slots();
    let place = round_robin::place(tables.ticket(id), len);
    tables.slot(base.wrapping_add(place)).map(|slot| slot.backend)
}
