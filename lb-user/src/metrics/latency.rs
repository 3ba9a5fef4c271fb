//! The times from SYN to SYN-ACK, and from a first request to its answer, since the last look: from histograms that only grow.
//!
//! The first is what the way to a container and its kernel take, not its application: that it grows shows a host or a network
//! that is used up. The second is the application's, or whatever answers first there.

use std::{collections::BTreeMap, time::Duration};

use lb_ebpf::abi::{Handshakes, Histogram};

use super::growth::{Growth, Key};
use crate::control::law;

/// The handshakes of one service's backends, and their answers.
#[derive(Debug, Default)]
pub struct Latency {
    counts: Growth<Handshakes>,
}

impl Latency {
    /// Takes what each backend has ever answered, and returns what came since the last call; nothing the first time.
    pub fn sample(&mut self, all: BTreeMap<Key, Handshakes>) -> Option<(law::Handshakes, law::Responses)> {
        let (mut handshakes, mut responses) = (Histogram::default(), Histogram::default());
        for (_, before, now) in self.counts.since_last(all)? {
            handshakes.add(&now.latency.since(&before.latency));
            responses.add(&now.response.since(&before.response));
        }
        let p99 = |histogram: Histogram| Duration::from_micros(histogram.quantile_us(990).unwrap_or(0));
        let handshakes = law::Handshakes { count: handshakes.total(), p99: p99(handshakes) };
        // What is counted in a place took half of its upper end at least.
        let responses = law::Responses { count: responses.total(), p99_at_least: p99(responses) / 2 };
        Some((handshakes, responses))
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
    fn only_what_came_since_the_last_look_counts() {
        let with = |places: &[(usize, u64)]| {
            let mut handshakes = Handshakes::default();
            for &(place, count) in places {
                (handshakes.latency.counts[place], handshakes.response.counts[place + 8]) = (count, count / 2);
            }
            handshakes
        };
        let mut latency = Latency::default();
        assert_eq!(latency.sample([((1, 1), with(&[(12, 1000)]))].into()), None);

        let all = [((1, 1), with(&[(12, 1000), (5, 100)])), ((2, 1), with(&[(6, 50)]))];
        let (handshakes, responses) = latency.sample(all.into()).unwrap();
        assert_eq!((handshakes.count, handshakes.p99), (150, Duration::from_micros(128)));
        assert_eq!((responses.count, responses.p99_at_least), (75, Duration::from_micros(1 << 14)));

        let (handshakes, responses) = latency.sample([((1, 1), with(&[(12, 1000), (5, 100)]))].into()).unwrap();
        assert_eq!((handshakes.count, handshakes.p99), (0, Duration::ZERO));
        assert_eq!((responses.count, responses.p99_at_least), (0, Duration::ZERO));
    }
}
