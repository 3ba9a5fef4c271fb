//! Counters that only grow, of each backend: what has come since the last look.

use std::collections::BTreeMap;

use lb_ebpf::abi::BackendId;

/// A backend's id and its generation: an id alone may be another backend's by the next look.
pub type Key = (BackendId, u32);

/// The counters of one service's backends at the last look.
#[derive(Debug)]
pub struct Growth<T> {
    last: Option<BTreeMap<Key, T>>,
}

impl<T> Default for Growth<T> {
    fn default() -> Self {
        Self { last: None }
    }
}

impl<T: Copy + Default> Growth<T> {
    /// Takes what the counters are, and returns what they were and are for each backend that is there; nothing the first
    /// time, as it is not known since when. A backend that was not there has begun with none.
    pub fn since_last(&mut self, now: BTreeMap<Key, T>) -> Option<impl Iterator<Item = (Key, T, T)>> {
        let last = self.last.replace(now)?;
        let now = self.last.iter().flatten();
        Some(now.map(move |(key, now)| (*key, last.get(key).copied().unwrap_or_default(), *now)))
    }

    /// Forgets what was counted: it could not be this time, and what comes next has come since who knows when.
    pub fn lose(&mut self) {
        self.last = None;
    }
}
