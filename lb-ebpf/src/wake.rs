//! Backends that are asleep: frozen, and woken by the agent when a flow begins.
//!
//! The packet that begins it goes its way like any other: the kernel of a frozen container answers SYNs, and keeps what
//! comes until somebody reads it. An established packet asks for nothing, as no backend falls asleep with flows.

use crate::{
    abi::{BackendId, KtimeNs, Wake},
    tables::Tables,
    verdict::Event,
};

/// The least time between two wakings of a backend: so no flood fills what the agent reads.
const PAUSE_NS: KtimeNs = 1_000_000;

/// Wakes a backend, if it is asleep, and was not woken a moment ago. Two processors may do so at once: the agent is told
/// twice then.
#[inline(always)]
pub fn rouse<T: Tables>(id: BackendId, now: KtimeNs, tables: &T) {
    let Some(backend) = tables.backend(id).filter(|backend| backend.is_asleep()) else { return };
    let Some(woken) = tables.woken(id) else { return };
    if now.saturating_sub(woken.get()) < PAUSE_NS {
        return;
    }
    woken.set(now);
    let told = tables.wake(&Wake { backend: id, generation: backend.generation });
    tables.count_atomically(if told { Event::Woken } else { Event::WakeLost });
}
