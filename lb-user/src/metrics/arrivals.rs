//! New connections, from counters that only grow: the kernel counts each one that is given to a backend, whether that can
//! serve it or not. What is dropped as all backends have as many as they may is given to none.

use std::collections::BTreeMap;

use lb_ebpf::abi::BackendId;

/// The connections of one service's backends.
#[derive(Debug, Default)]
pub struct Arrivals {
    last: Option<BTreeMap<(BackendId, u32), u64>>,
}

impl Arrivals {
    /// Takes the connections that each backend has ever been given, by id and generation, and returns how many came since
    /// the last call; nothing the first time, as it is not known since when. A backend that was not there has begun with
    /// none.
    pub fn sample(&mut self, counts: BTreeMap<(BackendId, u32), u64>) -> Option<f64> {
        let last = self.last.replace(counts)?;
        let now = self.last.iter().flatten();
        let grown = now.map(|(key, count)| count.saturating_sub(last.get(key).copied().unwrap_or(0)));
        Some(grown.sum::<u64>() as f64)
    }

    /// Forgets what was counted: it could not be this time, and what comes next has come since who knows when.
    pub fn lose(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_since_the_last_call_is_counted() {
        let mut arrivals = Arrivals::default();

        assert_eq!(arrivals.sample([((1, 1), 500)].into()), None);
        assert_eq!(arrivals.sample([((1, 1), 510), ((2, 1), 7)].into()), Some(17.0), "one is new");
        assert_eq!(arrivals.sample([((2, 1), 9)].into()), Some(2.0), "one is gone");
        assert_eq!(arrivals.sample([((2, 2), 4)].into()), Some(4.0), "an id is another backend's");
        arrivals.lose();
        assert_eq!(arrivals.sample([((2, 2), 90)].into()), None);
    }
}
