//! `lb-user simulate`: the production law and the models it is compared with, on a trace of connections and a host that
//! is a fluid model. No root, no clock, and the same answer each time.
//!
//! ```text
//! shape, or CSV ─▶ Trace ─▶ World (queue, start lag, quota, foreign load) ◀─▶ Scaler: ours, HPA, KPA, …
//!                             └─▶ Outcome: violations, extra backends, actions, reversals, settling ─▶ table, JSON, SVG
//! ```
//!
//! The models of others are their published rules with their defaults ([`models`]), not the products. All start with
//! what the first second needs, see the host as they would, and wait the same time for a backend to start.

use std::time::Duration;

use serde::Serialize;

use crate::control::{law::Law, policy::Bounds};

pub mod models;
mod output;
pub mod shape;
mod svg;
pub mod world;

pub use output::{Request, SimulateError, show};
pub use shape::{Shape, Trace};

use models::{Scaler, Sight};
use world::World;

/// What is simulated on.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// The processors of the host.
    pub processors: f64,
    /// How many of them others keep busy.
    pub foreign: f64,
    /// How many one backend may use.
    pub quota: f64,
    /// The CPU that a connection costs, in seconds.
    pub cost: f64,
    /// How long a connection lasts that does not wait.
    pub service_time: Duration,
    /// The time from the wish for a backend until it serves.
    pub start_lag: Duration,
    /// A second is one of violation if a connection that begins in it would have to wait longer than this.
    pub objective: Duration,
    /// The smallest and the largest count.
    pub bounds: Bounds,
}

impl Default for Scenario {
    /// A host of 16 processors, backends of one processor that take 3 s to start, connections of 20 ms of CPU that last
    /// 100 ms and are to wait half a second at the most.
    fn default() -> Self {
        Self {
            processors: 16.0,
            foreign: 0.0,
            quota: 1.0,
            cost: 0.020,
            service_time: Duration::from_millis(100),
            start_lag: Duration::from_secs(3),
            objective: Duration::from_millis(500),
            bounds: Bounds::new(1, 16).expect("1 is at least 1, and at most 16"),
        }
    }
}

impl Scenario {
    /// Returns how many backends carry a demand at the usual target.
    fn needed(&self, cores: f64) -> u32 {
        self.bounds.clamp((cores / (Law::TARGET.share() * self.quota) - 1e-9).ceil() as u32)
    }
}

/// How a model has done on a trace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The trace.
    pub trace: String,
    /// The model.
    pub model: &'static str,
    /// The share of the seconds in which connections waited for too long, in percent.
    pub violation_percent: f64,
    /// The backends beyond those that carry the demand at 70 %, on average.
    pub extra: f64,
    /// The backends that lacked for that, on average.
    pub lacking: f64,
    /// How many times the wish has changed.
    pub actions: u32,
    /// How many of these went against the one before.
    pub reversals: u32,
    /// The longest time in which connections had to wait without a break, in seconds.
    pub settling_seconds: u32,
    /// Each second.
    #[serde(skip)]
    pub course: Vec<Moment>,
}

/// One second of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// The demand, in backends that are used whole.
    pub demand: f64,
    /// The count that is wanted.
    pub wish: u32,
    /// The count that serves.
    pub ready: u32,
    /// Whether connections wait for too long.
    pub violates: bool,
}

/// Runs a model on a trace.
pub fn run(scenario: &Scenario, trace: &Trace, scaler: &mut dyn Scaler) -> Outcome {
    let first = trace.arrivals.first().copied().unwrap_or(0.0) * scenario.cost;
    let mut wish = scenario.needed(first);
    let mut world = World::new(wish);
    let mut course = Vec::with_capacity(trace.arrivals.len());
    let (mut violations, mut extra, mut lacking) = (0_u32, 0.0, 0.0);
    let (mut actions, mut reversals, mut last_rise) = (0, 0, None);
    let (mut settling, mut waiting) = (0, 0);
    for (second, &arrivals) in (0..).zip(&trace.arrivals) {
        let past = world.second(scenario, arrivals);
        let cores = arrivals * scenario.cost;
        let (ready, needed) = (f64::from(past.ready), f64::from(scenario.needed(cores)));
        extra += (ready - needed).max(0.0);
        lacking += (needed - ready).max(0.0);
        let violates = past.longest_wait > scenario.objective.as_secs_f64();
        violations += u32::from(violates);
        waiting = if past.longest_wait > 0.01 { waiting + 1 } else { 0 };
        settling = settling.max(waiting);
        course.push(Moment { demand: cores / scenario.quota, wish, ready: past.ready, violates });

        let sight = Sight { second: second + 1, wish, arrivals, past: &past, scenario };
        let next = scaler.step(&sight);
        if next != wish {
            let rise = next > wish;
            actions += 1;
            reversals += u32::from(last_rise.is_some_and(|last| last != rise));
            last_rise = Some(rise);
            wish = next;
        }
        world.want(scenario, wish);
    }
    let seconds = trace.arrivals.len().max(1) as f64;
    Outcome {
        trace: trace.name.clone(),
        model: scaler.name(),
        violation_percent: f64::from(violations) / seconds * 100.0,
        extra: extra / seconds,
        lacking: lacking / seconds,
        actions,
        reversals,
        settling_seconds: settling,
        course,
    }
}

/// Runs the law and all models on a trace, the law first.
pub fn compare(scenario: &Scenario, law: &Law, trace: &Trace) -> Vec<Outcome> {
    models::all(law, scenario).iter_mut().map(|scaler| run(scenario, trace, scaler.as_mut())).collect()
}

#[cfg(test)]
mod tests;
