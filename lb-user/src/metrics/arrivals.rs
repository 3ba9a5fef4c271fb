//! New connections, from counters that only grow: the kernel counts each one that is given to a backend, whether that can
//! serve it or not. What is dropped as all backends have as many as they may is given to none.

use std::collections::BTreeMap;

use super::growth::{Growth, Key};

/// The connections of one service's backends.
#[derive(Debug, Default)]
pub struct Arrivals {
    counts: Growth<u64>,
}

impl Arrivals {
    /// Takes the connections that each backend has ever been given, and returns how many came since the last call; nothing
    /// the first time.
    pub fn sample(&mut self, counts: BTreeMap<Key, u64>) -> Option<f64> {
        let grown = self.counts.since_last(counts)?.map(|(_, before, now)| now.saturating_sub(before));
        Some(grown.sum::<u64>() as f64)
    }

    /// Forgets what was counted, as it could not be this time.
    pub fn lose(&mut self) {
        self.counts.lose();
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
