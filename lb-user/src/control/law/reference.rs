//! The law once more, for connections alone and a tick a second, as it is told to people: every number is taken anew from all
//! that has been, and nothing else is remembered. What the law keeps in windows has to come to the same.

use proptest::{collection::vec, prelude::*};

use super::tests::{law, second, served};
use super::*;

/// What one backend is to carry.
const EACH: f64 = 10.0;

/// All that has been: the connections at each tick, and the count at which they were met.
struct Reference {
    law: Law,
    connections: Vec<f64>,
    counts: Vec<u32>,
    bursts: Vec<usize>,
    falls: Vec<usize>,
}

impl Reference {
    fn seconds(span: Duration) -> usize {
        span.as_secs() as usize
    }

    /// The mean of so many ticks that end with one.
    fn mean(&self, end: usize, ticks: usize) -> f64 {
        let begin = (end + 1).saturating_sub(ticks);
        let of = &self.connections[begin..=end];
        of.iter().sum::<f64>() / of.len() as f64
    }

    /// Whether the last of these was less than so many ticks ago.
    fn is_recent(ticks: &[usize], now: usize, within: f64) -> bool {
        ticks.last().is_some_and(|last| ((now - last) as f64) < within)
    }

    fn tick(&mut self, connections: f64, current: u32) -> u32 {
        self.connections.push(connections);
        self.counts.push(current);
        let now = self.counts.len() - 1;
        let [up, down] = [self.law.up_window, self.law.down_window].map(Self::seconds);
        let (min, max) = (self.law.bounds.min(), self.law.bounds.max());
        let stands = f64::from(current);
        let whole = |backends: f64| (backends - 0.01).ceil() as u32;

        let fast = self.mean(now, 3) / EACH;
        // No shorter than what finds a burst.
        let slow = self.mean(now, up.max(3)) / EACH;
        let is_burst = fast >= 1.5 * stands && fast > f64::from(min);
        let wanted = if is_burst { fast.max(slow) } else { slow };
        let was_burst = Self::is_recent(&self.bursts, now, down as f64 / 2.0);
        if is_burst {
            self.bursts.push(now);
        }
        if wanted > 1.1 * stands {
            // Doubled in five seconds, or four more; at once in a burst.
            let base = *self.counts[(now + 1).saturating_sub(5)..].iter().min().unwrap();
            let most = if is_burst { max } else { (2 * base).max(base + 4) };
            return whole(wanted).min(max).min(most.max(current)).max(current);
        }

        let peak = (now.saturating_sub(down)..=now).map(|end| self.mean(end, up)).fold(0.0, f64::max) / EACH;
        let enough = peak.max(fast);
        let target = whole(1.05 * enough).max(min);
        let may_fall = enough < 0.8 * stands
            && target < current
            && now >= down
            && !is_burst
            && !was_burst
            && !Self::is_recent(&self.falls, now, down.min(15) as f64);
        if !may_fall {
            return current;
        }
        self.falls.push(now);
        // A quarter at a time.
        target.max(current - (current / 4).max(1))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_law_decides_as_it_is_told(
        min in 1..4_u32, more in 0..30_u32, up in 1..60_u64, down in 5..200_u64,
        // No demand is a tenth of another: that would be an outage.
        demands in vec((1..90_usize, 40.0..390.0_f64), 1..12),
    ) {
        let bounds = Bounds::new(min, min + more).unwrap();
        let targets = Targets { connections: Some(EACH), ..Targets::default() };
        let (up_window, down_window) = (Duration::from_secs(up), Duration::from_secs(down));
        let law = Law { bounds, up_window, down_window, targets, ..law(min, min + more) };
        let mut reference =
            Reference { law, connections: Vec::new(), counts: Vec::new(), bursts: Vec::new(), falls: Vec::new() };
        let (mut state, mut count) = (State::default(), min);

        let demands = demands.into_iter().flat_map(|(ticks, connections)| std::iter::repeat_n(connections, ticks));
        for (at, connections) in demands.enumerate() {
            let inputs = Inputs { connections: Some(connections), arrivals: None, ..served(count, 0.1) };
            let record = decide(&law, &inputs, &mut state, second(at as u64));
            let expected = reference.tick(connections, count);

            prop_assert_eq!(record.verdict.target, expected, "tick {}: {}", at, record.verdict.reason);
            count = expected;
        }
    }
}
