//! A host as a fluid: work comes in, backends that serve take it, and what they cannot take waits.

use std::collections::VecDeque;

use super::Scenario;

/// The steps of a second.
const STEPS: u32 = 10;

/// The host at one moment.
#[derive(Clone, Debug)]
pub struct World {
    /// In steps.
    now: u64,
    /// When each backend serves, or has begun to, in steps; the newest last.
    serves: VecDeque<u64>,
    /// Work that waits, in seconds of a processor.
    queue: f64,
}

/// What happened in a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// How many backends serve at its end.
    pub ready: u32,
    /// How long each of them has, in seconds.
    pub ages: Vec<f64>,
    /// Processors that they used on average.
    pub used: f64,
    /// The longest time that a connection that began had to wait, in seconds.
    pub longest_wait: f64,
    /// Connections under way at its end.
    pub in_flight: f64,
}

impl World {
    /// Creates a host with so many backends that have served for long.
    pub fn new(ready: u32) -> Self {
        let now = 3600 * u64::from(STEPS);
        Self { now, serves: (0..ready).map(|_| 0).collect(), queue: 0.0 }
    }

    /// Starts and ends backends, so that there are as many as are wanted: those that do not serve yet go first.
    pub fn want(&mut self, scenario: &Scenario, wish: u32) {
        let lag = (scenario.start_lag.as_secs_f64() * f64::from(STEPS)).round() as u64;
        while self.serves.len() < wish as usize {
            self.serves.push_back(self.now + lag);
        }
        self.serves.truncate(wish as usize);
    }

    /// Lets a second pass in which so many connections begin.
    pub fn second(&mut self, scenario: &Scenario, arrivals: f64) -> Past {
        let step = 1.0 / f64::from(STEPS);
        let work = arrivals * scenario.cost * step;
        let (mut used, mut longest_wait) = (0.0, 0.0_f64);
        for _ in 0..STEPS {
            let ready = self.serves.iter().filter(|since| **since <= self.now).count() as f64;
            let free = (scenario.processors - scenario.foreign).max(0.0);
            let capacity = (ready * scenario.quota).min(free);
            let done = (self.queue + work).min(capacity * step);
            self.queue += work - done;
            used += done;
            let wait = match self.queue {
                queue if queue <= 1e-9 => 0.0,
                queue if capacity > 0.0 => queue / capacity,
                _ => f64::INFINITY,
            };
            longest_wait = longest_wait.max(wait);
            self.now += 1;
        }
        let age = |since: &u64| (self.now - since) as f64 * step;
        let ages: Vec<f64> = self.serves.iter().filter(|since| **since <= self.now).map(age).collect();
        let in_flight = arrivals * scenario.service_time.as_secs_f64() + self.queue / scenario.cost;
        Past { ready: ages.len() as u32, ages, used, longest_wait, in_flight }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_served_waits_and_is_served_when_it_can() {
        let scenario = Scenario::default();
        let mut world = World::new(2);

        let over = world.second(&scenario, 150.0);
        assert!((over.used - 2.0).abs() < 1e-9);
        assert!((over.longest_wait - 0.5).abs() < 1e-9, "a core-second for two processors: {}", over.longest_wait);

        let under = world.second(&scenario, 50.0);
        assert!((under.used - 2.0).abs() < 1e-9, "what waited is served");
        assert_eq!(world.second(&scenario, 50.0).longest_wait, 0.0);
    }

    #[test]
    fn a_backend_serves_after_its_start_and_the_newest_goes_first() {
        let scenario = Scenario::default();
        let mut world = World::new(1);
        world.want(&scenario, 3);
        let ready: Vec<u32> = (0..5).map(|_| world.second(&scenario, 0.0).ready).collect();
        assert_eq!(ready, [1, 1, 3, 3, 3]);

        world.want(&scenario, 2);
        assert_eq!(world.second(&scenario, 0.0).ages, [3606.0, 3.0]);
    }

    #[test]
    fn foreign_load_takes_from_what_backends_can_use() {
        let scenario = Scenario { foreign: 15.0, ..Scenario::default() };
        let mut world = World::new(4);

        assert!((world.second(&scenario, 100.0).used - 1.0).abs() < 1e-9);
    }
}
