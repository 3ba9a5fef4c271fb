//! What scales in a simulation: the production law, and the rules of others with their defaults.
//!
//! # Source
//! Kubernetes' horizontal pod autoscaler: its documentation and `pkg/controller/podautoscaler`; Knative's: `pkg/autoscaler`
//! and the defaults of `config-autoscaler`. The two thresholds are what scripts and simple tools do. The seed's law is one
//! backend for every 10 % of the host's CPU.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Scenario, world::Past};
use crate::control::{
    Timestamp,
    law::{self, CpuUse, HostUse, Inputs, Law},
    policy::Bounds,
};

/// What a scaler is shown, once a second.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// Seconds that have passed.
    pub second: u64,
    /// The count that is wanted.
    pub wish: u32,
    /// Connections that began in the last second.
    pub arrivals: f64,
    /// What the last second was like.
    pub past: &'a Past,
    /// What it is simulated on.
    pub scenario: &'a Scenario,
}

/// Something that scales.
pub trait Scaler {
    /// Returns its name.
    fn name(&self) -> &'static str;

    /// Returns how many backends are wanted from here on.
    fn step(&mut self, sight: &Sight<'_>) -> u32;
}

/// Returns the law, and all models.
pub fn all(law: &Law, scenario: &Scenario) -> Vec<Box<dyn Scaler>> {
    let bounds = scenario.bounds;
    vec![
        Box::new(Ours { law: *law, state: law::State::default() }),
        Box::new(Hpa { bounds, used: Means::new(15), wishes: VecDeque::new() }),
        Box::new(Kpa { bounds, concurrency: Means::new(60), panic: None }),
        Box::new(Thresholds { bounds, used: Means::new(10), acted: None }),
        Box::new(Seed),
    ]
}

/// The share of its processors that a backend is to use, for all that have such a target.
const TARGET: f64 = 0.70;

/// The production law.
struct Ours {
    law: Law,
    state: law::State,
}

impl Scaler for Ours {
    fn name(&self) -> &'static str {
        "lb-user"
    }

    fn step(&mut self, sight: &Sight<'_>) -> u32 {
        let Sight { second, wish, arrivals, past, scenario } = *sight;
        let each = past.used / f64::from(past.ready.max(1));
        let of = |age: &f64| {
            let age = Duration::from_secs_f64(*age);
            CpuUse { cores: Some(each), quota: Some(scenario.quota), age, part: 1.0 }
        };
        let inputs = Inputs {
            current: wish,
            ready: past.ready,
            host: Some(HostUse { processors: scenario.processors, busy: Some(past.used + scenario.foreign) }),
            cpu: past.ages.iter().map(of).collect(),
            aside: Vec::new(),
            beside: 0.0,
            arrivals: Some(arrivals),
            connections: Some(past.in_flight),
            handshakes: None,
            responses: None,
            pressure: None,
            repeats: None,
        };
        let now = Timestamp::new(Duration::from_secs(second));
        law::decide(&self.law, &inputs, &mut self.state, now).verdict.target
    }
}

/// The last values, one a second.
struct Means {
    values: VecDeque<f64>,
    most: usize,
}

impl Means {
    fn new(most: usize) -> Self {
        Self { values: VecDeque::new(), most }
    }

    fn push(&mut self, value: f64) {
        self.values.push_back(value);
        if self.values.len() > self.most {
            self.values.pop_front();
        }
    }

    fn of_last(&self, seconds: usize) -> f64 {
        let count = self.values.len().min(seconds).max(1);
        self.values.iter().rev().take(count).sum::<f64>() / count as f64
    }
}

/// Kubernetes' horizontal pod autoscaler on CPU use: a look every 15 s at the mean of the last 15, a tolerance of 10 %,
/// growth by the larger of doubling and 4 in 15 s, a fall to the highest wish of 300 s.
struct Hpa {
    bounds: Bounds,
    used: Means,
    wishes: VecDeque<u32>,
}

impl Scaler for Hpa {
    fn name(&self) -> &'static str {
        "HPA"
    }

    fn step(&mut self, sight: &Sight<'_>) -> u32 {
        let Sight { second, wish, past, scenario, .. } = *sight;
        self.used.push(past.used);
        if second % 15 != 0 {
            return wish;
        }
        let ready = f64::from(past.ready.max(1));
        let ratio = self.used.of_last(15) / (TARGET * scenario.quota * ready);
        // Pods that do not serve yet count as idle on the way up.
        let ratio = if ratio > 1.0 && past.ready < wish { ratio * ready / f64::from(wish) } else { ratio };
        let wanted = match (ratio - 1.0).abs() <= 0.1 {
            true => wish,
            false if past.ready < wish && ratio > 1.0 => (ratio * f64::from(wish)).ceil() as u32,
            false => (ratio * ready).ceil() as u32,
        };
        self.wishes.push_back(self.bounds.clamp(wanted));
        if self.wishes.len() > 300 / 15 {
            self.wishes.pop_front();
        }
        let held = self.wishes.iter().copied().max().unwrap_or(wish);
        let grown = wanted.min((wish * 2).max(wish + 4));
        self.bounds.clamp(if wanted > wish { grown } else { held.min(wish) })
    }
}

/// Knative's autoscaler on concurrency: a look every 2 s at the means of 60 s and, for a panic, of 6 s; a panic where the
/// latter wants twice what is ready, in which there is no fall; no band and no hold.
struct Kpa {
    bounds: Bounds,
    concurrency: Means,
    /// When the panic was seen last, and its highest wish.
    panic: Option<(u64, f64)>,
}

impl Scaler for Kpa {
    fn name(&self) -> &'static str {
        "KPA"
    }

    fn step(&mut self, sight: &Sight<'_>) -> u32 {
        let Sight { second, wish, past, scenario, .. } = *sight;
        self.concurrency.push(past.in_flight);
        if second % 2 != 0 {
            return wish;
        }
        // As many as are under way in a backend that is used as it should be.
        let target = TARGET * scenario.quota / scenario.cost * scenario.service_time.as_secs_f64();
        let ready = f64::from(past.ready.max(1));
        let bounded = |wanted: f64| wanted.ceil().clamp((ready / 2.0).floor(), (1000.0 * ready).ceil());
        let stable = bounded(self.concurrency.of_last(60) / target);
        let panicked = bounded(self.concurrency.of_last(6) / target);
        if panicked / ready >= 2.0 {
            let most = self.panic.map_or(0.0, |(_, most)| most);
            self.panic = Some((second, most));
        }
        if self.panic.is_some_and(|(seen, _)| second - seen > 60) {
            self.panic = None;
        }
        let wanted = match &mut self.panic {
            Some((_, most)) => {
                *most = most.max(stable).max(panicked).max(f64::from(wish));
                *most
            }
            None => stable,
        };
        self.bounds.clamp(wanted as u32)
    }
}

/// Scripts with two thresholds: the mean of 10 s, one more above 85 % and one fewer below 25 %, then nothing for a minute.
struct Thresholds {
    bounds: Bounds,
    used: Means,
    acted: Option<u64>,
}

impl Scaler for Thresholds {
    fn name(&self) -> &'static str {
        "thresholds"
    }

    fn step(&mut self, sight: &Sight<'_>) -> u32 {
        let Sight { second, wish, past, scenario, .. } = *sight;
        self.used.push(past.used);
        if second % 10 != 0 || self.acted.is_some_and(|acted| second - acted < 60) {
            return wish;
        }
        let share = self.used.of_last(10) / (scenario.quota * f64::from(past.ready.max(1)));
        let wanted = match share {
            share if share > 0.85 => self.bounds.clamp(wish + 1),
            share if share < 0.25 => self.bounds.clamp(wish.saturating_sub(1)),
            _ => wish,
        };
        if wanted != wish {
            self.acted = Some(second);
        }
        wanted
    }
}

/// The seed's law: one of ten backends for every 10 % of the host's CPU, whoever uses it.
struct Seed;

impl Scaler for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn step(&mut self, sight: &Sight<'_>) -> u32 {
        let Sight { past, scenario, .. } = *sight;
        let load = (past.used + scenario.foreign).min(scenario.processors) / scenario.processors;
        ((load * 10.0).round() as u32).clamp(1, 10)
    }
}
