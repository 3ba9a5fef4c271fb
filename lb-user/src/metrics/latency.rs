//! The time from SYN to SYN-ACK since the last look, from histograms that only grow.
//!
//! It is what the way to a container and its kernel take, not its application: that it grows shows a host or a network
//! that is used up. The time to the first byte of an answer is not measured.

use std::{collections::BTreeMap, time::Duration};

use lb_ebpf::abi::{BackendId, Handshakes};

use crate::control::law;

/// The handshakes of one service's backends.
#[derive(Debug, Default)]
pub struct Latency {
    last: Option<BTreeMap<(BackendId, u32), Handshakes>>,
}

impl Latency {
    /// Takes what each backend has ever answered, by id and generation, and returns what came since the last call; nothing
    /// the first time.
    pub fn sample(&mut self, all: BTreeMap<(BackendId, u32), Handshakes>) -> Option<law::Handshakes> {
        let last = self.last.replace(all)?;
        let mut grown = Handshakes::default();
        for (key, now) in self.last.iter().flatten() {
            let before = last.get(key).copied().unwrap_or_default();
            for ((sum, now), before) in grown.latency.iter_mut().zip(now.latency).zip(before.latency) {
                *sum += now.saturating_sub(before);
            }
        }
        let p99 = Duration::from_micros(grown.quantile_us(990).unwrap_or(0));
        Some(law::Handshakes { count: grown.accepted(), p99 })
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
    fn only_what_came_since_the_last_look_counts() {
        let with = |places: &[(usize, u64)]| {
            let mut handshakes = Handshakes::default();
            places.iter().for_each(|&(place, count)| handshakes.latency[place] = count);
            handshakes
        };
        let mut latency = Latency::default();
        assert_eq!(latency.sample([((1, 1), with(&[(12, 1000)]))].into()), None);

        let one = latency.sample([((1, 1), with(&[(12, 1000), (5, 100)])), ((2, 1), with(&[(6, 50)]))].into()).unwrap();
        assert_eq!((one.count, one.p99), (150, Duration::from_micros(128)));

        let none = latency.sample([((1, 1), with(&[(12, 1000), (5, 100)]))].into()).unwrap();
        assert_eq!((none.count, none.p99), (0, Duration::ZERO));
    }
}
