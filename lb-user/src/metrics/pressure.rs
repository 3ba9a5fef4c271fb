//! The share of the time in which tasks waited for a processor: those of the service's containers where their control
//! groups tell (version 2), and those of the host otherwise.
//!
//! The kernel tells it where it is built with `CONFIG_PSI`, and started with `psi=1` if that is off by default.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use super::cgroup::{Group, waited_in};
use crate::control::ContainerId;

/// Where the kernel tells it for the whole host.
const HOST: &str = "/proc/pressure/cpu";

/// Pressure on the processors.
#[derive(Debug, Default)]
pub struct Pressure {
    host: Meter,
    of: BTreeMap<ContainerId, Meter>,
}

/// The share of the time that a growing total is.
#[derive(Debug, Default)]
struct Meter {
    last: Option<(Instant, Duration)>,
    share: Option<f64>,
}

impl Meter {
    fn take(&mut self, total: Option<Duration>, now: Instant) {
        let Some(total) = total else {
            *self = Self::default();
            return;
        };
        if let Some((then, before)) = self.last.replace((now, total)) {
            let elapsed = (now - then).as_secs_f64();
            let waited = total.saturating_sub(before).as_secs_f64();
            self.share = (elapsed > 0.0).then(|| (waited / elapsed).min(1.0));
        }
    }
}

impl Pressure {
    /// Measures the host and these groups; others are forgotten.
    pub fn sample<'a>(&mut self, groups: impl Iterator<Item = (&'a ContainerId, &'a Group)>) {
        let host = fs::read_to_string(HOST).ok().and_then(|text| waited_in(&text));
        self.host.take(host, Instant::now());
        let mut former = std::mem::take(&mut self.of);
        for (id, group) in groups {
            if let Some(waited) = group.waited() {
                let mut meter = former.remove(id).unwrap_or_default();
                meter.take(Some(waited), Instant::now());
                self.of.insert(id.clone(), meter);
            }
        }
    }

    /// Returns the mean of those of these containers that tell, or, where none does, what the host tells.
    pub fn of<'a>(&self, containers: impl Iterator<Item = &'a ContainerId>) -> Option<f64> {
        let shares: Vec<f64> = containers.filter_map(|id| self.of.get(id)?.share).collect();
        match shares.as_slice() {
            [] => self.host.share,
            shares => Some(shares.iter().sum::<f64>() / shares.len() as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_what_the_total_grew_by() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut meter = Meter::default();

        meter.take(Some(second), now);
        assert_eq!(meter.share, None);
        meter.take(Some(second + second / 4), now + second);
        assert_eq!(meter.share, Some(0.25));
        meter.take(None, now + 2 * second);
        assert_eq!(meter.share, None);
    }

    #[test]
    fn containers_that_do_not_tell_are_left_out_and_where_none_does_it_is_the_hosts() {
        let (one, other) = (ContainerId::from("a"), ContainerId::from("b"));
        let meter = |share| Meter { last: None, share: Some(share) };
        let pressure = Pressure { host: meter(0.9), of: [(one.clone(), meter(0.1))].into() };

        assert_eq!(pressure.of([&one].into_iter()), Some(0.1));
        assert_eq!(pressure.of([&one, &other].into_iter()), Some(0.1));
        assert_eq!(pressure.of([&other].into_iter()), Some(0.9));
        assert_eq!(pressure.of(std::iter::empty()), Some(0.9));
    }
}
