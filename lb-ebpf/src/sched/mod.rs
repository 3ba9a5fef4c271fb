//! Which slot the next connection goes to.

mod round_robin;

use crate::abi::Scheduler;

/// Returns the place within `len` slots for a connection that drew `ticket`; `None` if there are no slots.
#[inline(always)]
pub const fn pick(scheduler: Scheduler, ticket: u64, len: u32) -> Option<u32> {
    match scheduler {
        Scheduler::RoundRobin => round_robin::pick(ticket, len),
    }
}
