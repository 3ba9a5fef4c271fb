//! SYNs that came again since the last look, from counters that only grow, to backends that answer others.

use std::collections::BTreeMap;

use lb_ebpf::abi::{BackendId, Handshakes};

/// The SYNs of one service's backends.
#[derive(Debug, Default)]
pub struct Repeats {
    last: Option<BTreeMap<(BackendId, u32), Counted>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    repeated: u64,
    accepted: u64,
}

impl Repeats {
    /// Takes how each backend has ever answered, by id and generation, and returns how many SYNs came again since the last
    /// call to those that serve and have accepted any meanwhile: who accepts nobody is dead, and not short of help. Nothing
    /// the first time.
    pub fn sample(
        &mut self,
        all: &BTreeMap<(BackendId, u32), Handshakes>,
        serves: impl Fn(&(BackendId, u32)) -> bool,
    ) -> Option<f64> {
        let of = |one: &Handshakes| Counted { repeated: one.retransmitted, accepted: one.accepted() };
        let now: BTreeMap<_, _> = all.iter().map(|(key, one)| (*key, of(one))).collect();
        let last = self.last.replace(now)?;
        let grown = self.last.iter().flatten().filter(|(key, _)| serves(key)).filter_map(|(key, now)| {
            let before = last.get(key).copied().unwrap_or_default();
            let has_accepted = now.accepted > before.accepted;
            has_accepted.then(|| now.repeated.saturating_sub(before.repeated))
        });
        Some(grown.sum::<u64>() as f64)
    }

    /// Forgets what was counted, as it could not be this time.
    pub fn lose(&mut self) {
        self.last = None;
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
        let serves = |key: &(BackendId, u32)| *key != put_aside;
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
