//! A part of `control`: how soon another container serves after a step of the demand.

use anyhow::{Context as _, Result, anyhow};
use lb_tests::{site::Site, step::Steady};

use super::{
    containers::lacks_docker,
    control::{SUITE, TIMES},
};
use crate::{
    record::{Metric, Values},
    session::{Session, caught},
};

/// What one container may use: so much that it is not throttled by the step.
const CPUS: &str = "0.9";
/// How many steps each kind has to answer: where between two ticks they fall is chance.
const STEPS: u32 = 8;

/// The system that has one in reserve.
pub const WARM: &str = "load step to first extra backend, warm";
/// The same where one has to be started.
pub const COLD: &str = "load step to first extra backend, cold";

/// From the first requests of a step to the first slot of another container.
pub fn run(session: &mut Session) -> Result<()> {
    if let Some(lack) = lacks_docker() {
        session.leave_out(SUITE, "a step of the demand", &lack);
        return Ok(());
    }
    session.expect(STEPS as usize * 2);
    for (number, system, warm) in [(92, WARM, 1), (93, COLD, 0)] {
        session.say("control: learning what a connection costs");
        let site = caught(|| Ok(Site::new(number)));
        let site = site.as_ref();
        let steady = caught(|| Ok(Steady::start(site.map_err(|error| anyhow!("{error:#}"))?, warm, "1s", CPUS)));
        for step in 1..=STEPS {
            session.turn((SUITE, TIMES), system, step, || {
                let answered = steady.as_ref().map_err(|error| anyhow!("{error:#}")).context("begin")?.step(|| {});
                Ok(Values::from([(Metric::Duration, answered.after.as_secs_f64() * 1e3)]))
            })?;
        }
    }
    Ok(())
}
