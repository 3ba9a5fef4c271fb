//! What a connection costs, learned from what all of them cost.

use std::time::Duration;

/// Half of what is known is younger than this.
const HALF_LIFE: Duration = Duration::from_secs(300);
/// So many connections are looked at together: the CPU of fewer is mostly that of doing nothing.
const BATCH: f64 = 20.0;
/// After so long, fewer than a batch are forgotten.
const BATCH_TIME: Duration = Duration::from_secs(10);
/// So many connections make the cost known.
const KNOWN: f64 = 200.0;
/// The cost at the most doubles or halves in this time.
const DOUBLING: Duration = Duration::from_secs(60);

/// The CPU that a connection costs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    seconds: Option<f64>,
    seen: f64,
    /// Both fade with [`HALF_LIFE`].
    cpu: f64,
    connections: f64,
    batch: Batch,
}

#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    cpu: f64,
    connections: f64,
    time: Duration,
}

impl Cost {
    /// Takes the CPU, in seconds, and the connections of `elapsed`.
    pub fn learn(&mut self, cpu: f64, connections: f64, elapsed: Duration) {
        self.batch.cpu += cpu;
        self.batch.connections += connections;
        self.batch.time += elapsed;
        if self.batch.connections < BATCH {
            if self.batch.time >= BATCH_TIME {
                self.batch = Batch::default();
            }
            return;
        }
        let Batch { cpu, connections, time } = std::mem::take(&mut self.batch);
        let fade = 0.5_f64.powf(time.as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.cpu = self.cpu * fade + cpu;
        self.connections = self.connections * fade + connections;
        self.seen += connections;
        if self.seen < KNOWN {
            return;
        }
        let estimate = self.cpu / self.connections;
        let most = 2.0_f64.powf(time.as_secs_f64() / DOUBLING.as_secs_f64());
        self.seconds = Some(match self.seconds {
            Some(before) if before > 0.0 => estimate.clamp(before / most, before * most),
            Some(_) | None => estimate,
        });
    }

    /// Forgets what would be mixed with a time that says nothing.
    pub fn skip(&mut self) {
        self.batch = Batch::default();
    }

    /// Takes over what was learned before; it counts as much as the fewest connections that make a cost known.
    pub fn adopt(&mut self, seconds: f64) {
        if seconds.is_finite() && seconds > 0.0 {
            let (cpu, connections) = (seconds * KNOWN, KNOWN);
            *self = Self { seconds: Some(seconds), seen: KNOWN, cpu, connections, batch: Batch::default() };
        }
    }

    /// Returns the cost in seconds, once it is known. What costs nothing measurable says nothing.
    pub fn known(&self) -> Option<f64> {
        self.seconds.filter(|seconds| *seconds > 0.0)
    }

    /// Returns how many connections have been looked at.
    pub fn connections(&self) -> u64 {
        self.seen as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_cost_is_known_after_enough_connections_and_follows_slowly() {
        let mut cost = Cost::default();
        for _ in 0..3 {
            cost.learn(1.0, 50.0, SECOND);
        }
        assert_eq!(cost.known(), None);

        cost.learn(1.0, 50.0, SECOND);
        assert!((cost.known().unwrap() - 0.02).abs() < 1e-9);

        for _ in 0..60 {
            cost.learn(100.0, 50.0, SECOND);
        }
        let doubled = cost.known().unwrap();
        assert!(doubled <= 0.04 + 1e-9 && doubled > 0.039, "{doubled}");
        for _ in 0..3_000 {
            cost.learn(2.5, 50.0, SECOND);
        }
        assert!((cost.known().unwrap() - 0.05).abs() < 0.003);
    }

    #[test]
    fn the_cpu_of_doing_nothing_is_no_cost_of_connections() {
        let mut cost = Cost::default();
        for _ in 0..1_000 {
            cost.learn(0.5, 1.0, SECOND);
        }
        assert_eq!((cost.known(), cost.connections()), (None, 0));
    }
}
