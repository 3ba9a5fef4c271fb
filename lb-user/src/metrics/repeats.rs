//! SYNs that came again since the last look, from counters that only grow, to backends that answer others.

use std::collections::BTreeMap;

use lb_ebpf::abi::Handshakes;

use super::growth::{Growth, Key};

/// The SYNs of one service's backends.
#[derive(Debug, Default)]
pub struct Repeats {
    counts: Growth<Counted>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    repeated: u64,
    accepted: u64,
}

impl Repeats {
    /// Takes how each backend has ever answered, and returns how many SYNs came again since the last call to those that
    /// serve and have accepted any meanwhile: who accepts nobody is dead, and not short of help. Nothing the first time.
    pub fn sample(&mut self, all: &BTreeMap<Key, Handshakes>, serves: impl Fn(Key) -> bool) -> Option<f64> {
        let of = |one: &Handshakes| Counted { repeated: one.retransmitted, accepted: one.accepted() };
        let now = all.iter().map(|(key, one)| (*key, of(one))).collect();
        let helped = self.counts.since_last(now)?.filter(|&(key, before, now)| {
            let has_accepted = now.accepted > before.accepted;
            has_accepted && serves(key)
        });
        Some(helped.map(|(_, before, now)| now.repeated.saturating_sub(before.repeated)).sum::<u64>() as f64)
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
    fn only_those_count_that_serve_and_answer() {
        let counted = |retransmitted, accepted| {
            let mut handshakes = Handshakes { retransmitted, ..Handshakes::default() };
            handshakes.latency.counts[3] = accepted;
            handshakes
        };
        let mut repeats = Repeats::default();
        let (busy, dead, put_aside) = ((1, 1), (2, 1), (3, 1));
        let serves = |key: Key| key != put_aside;
        let all = [(busy, counted(50, 9)), (dead, counted(0, 9)), (put_aside, counted(0, 9))];
        assert_eq!(repeats.sample(&all.into(), serves), None, "it is not known since when");

        let all = [(busy, counted(57, 10)), (dead, counted(30, 9)), (put_aside, counted(30, 10))];
        assert_eq!(repeats.sample(&all.into(), serves), Some(7.0));

        let all = [(busy, counted(57, 11)), ((2, 2), counted(4, 1))];
        assert_eq!(repeats.sample(&all.into(), serves), Some(4.0), "an id is another backend's");
        repeats.lose();
        assert_eq!(repeats.sample(&[(busy, counted(99, 12))].into(), serves), None);
    }
}
