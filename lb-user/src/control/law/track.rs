//! A demand over time: its means, and the highest of them.

use std::collections::VecDeque;
use std::time::Duration;

use super::metric::{Demand, Seen};
use super::{Law, Timestamp};

/// What was measured of one demand, as far back as any window reaches.
#[derive(Clone, Debug, Default)]
pub struct Track {
    samples: VecDeque<Sample>,
    /// Since when it has been measured without a gap.
    unbroken_since: Option<Timestamp>,
}

/// One measurement: the demand lies between `low` and `high`.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Timestamp,
    low: f64,
    high: f64,
    /// The mean of `high` over the up window that ends here.
    mean: f64,
}

impl Track {
    /// Adds a measurement and forgets those that no window reaches.
    pub fn push(&mut self, law: &Law, low: f64, high: f64, at: Timestamp) {
        if !low.is_finite() || !high.is_finite() {
            return;
        }
        if self.samples.back().is_none_or(|last| at.since(last.at) > law.gap()) {
            self.unbroken_since = Some(at);
        }
        let (low, high) = (low.max(0.0), high.max(low).max(0.0));
        self.samples.push_back(Sample { at, low, high, mean: high });
        let mean = self.mean(law.up_window, at).map_or(high, |(_, high)| high);
        if let Some(sample) = self.samples.back_mut() {
            sample.mean = mean;
        }
        while self.samples.front().is_some_and(|sample| at.since(sample.at) > law.keep()) {
            self.samples.pop_front();
        }
    }

    /// Returns how many measurements are kept.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Returns the means of the last `span`, of `low` and of `high`.
    pub fn mean(&self, span: Duration, now: Timestamp) -> Option<(f64, f64)> {
        let (mut count, mut low, mut high) = (0.0, 0.0, 0.0);
        for sample in self.samples.iter().rev().take_while(|sample| now.since(sample.at) < span || span.is_zero()) {
            count += 1.0;
            low += sample.low;
            high += sample.high;
            if span.is_zero() {
                break;
            }
        }
        (count > 0.0).then(|| (low / count, high / count))
    }

    /// Returns the shortest span, up to `most`, in which at least `enough` of what is counted a second has come.
    pub fn shortest(&self, enough: f64, most: Duration, now: Timestamp) -> Duration {
        let mut sum = 0.0;
        let mut after = now;
        for sample in self.samples.iter().rev().take_while(|sample| now.since(sample.at) < most) {
            let span = after.since(sample.at).as_secs_f64().max(1.0);
            sum += sample.low * span;
            after = sample.at;
            if sum >= enough {
                return now.since(sample.at) + Duration::from_millis(1);
            }
        }
        most
    }

    /// Returns what is known of the demand by now.
    pub fn seen(&self, law: &Law, is_measured: bool, fast: Duration, now: Timestamp) -> Seen {
        let known = self.mean(fast, now).zip(self.mean(law.up_window.max(fast), now));
        let Some(((fast, _), (slow, _))) = known.filter(|_| is_measured) else {
            return Seen::Learning { connections: 0 };
        };
        let within = self.samples.iter().filter(|sample| now.since(sample.at) <= law.down_window);
        let peak = within.map(|sample| sample.mean).fold(0.0, f64::max);
        let seen_for = self.unbroken_since.map_or(Duration::ZERO, |since| now.since(since));
        Seen::Demand(Demand { fast, slow, peak, seen_for })
    }

    /// Returns the mean of the last `recent`, and that between the two ends of `before`.
    pub fn fall(&self, recent: Duration, before: (Duration, Duration), now: Timestamp) -> Option<(f64, f64)> {
        let is_before = |sample: &&Sample| (before.0..before.1).contains(&now.since(sample.at));
        let (sum, count) =
            self.samples.iter().filter(is_before).fold((0.0, 0.0), |(sum, n), sample| (sum + sample.low, n + 1.0));
        let (recent, _) = self.mean(recent, now)?;
        (count > 0.0).then(|| (recent, sum / count))
    }
}
