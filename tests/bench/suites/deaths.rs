//! A part of `control`: how soon a container that has died is out of the slots, and replaced.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use lb_tests::{
    deaths::{Slots, kill_by_engine, kill_process},
    site::{Site, docker},
};

use super::{
    containers::lacks_docker,
    control::{SUITE, TIMES, wait_for},
};
use crate::{
    record::{Metric, Values},
    session::{Session, caught},
};

/// How many containers die, half of them each way: a median of them is worth something.
const DEATHS: u32 = 40;
/// Enough that the oldest has lived when its turn comes: others are replaced later, the sooner they ended.
const CONTAINERS: u64 = 10;
const A_LIFE: Duration = Duration::from_secs(11);

/// The system whose process is killed behind the engine's back.
pub const OUT: &str = "container death to out of rotation";
/// The same by `docker kill`, from the end of the process.
const KILLED: &str = "docker kill to out of rotation";
const REPLACED: &str = "container death to replaced";

/// From the death of a container to its last slot, and to its successor's first.
pub fn run(session: &mut Session) -> Result<()> {
    if let Some(lack) = lacks_docker() {
        session.leave_out(SUITE, "the death of a container", &lack);
        return Ok(());
    }
    session.expect(DEATHS as usize * 2);
    let site = caught(|| {
        let site = Site::new(91);
        let number = CONTAINERS.to_string();
        let agent = site.start(&["--min", &number, "--max", &number]);
        agent.wait_ready(CONTAINERS);
        thread::sleep(A_LIFE);
        let slots = Slots::of(&site);
        // In this order they end: a running agent would replace the containers that the site removes.
        Ok((agent, slots, site))
    });
    for death in 1..=DEATHS {
        let mut replaced = Err(anyhow!("the container did not leave"));
        let (system, kill): (_, fn(&str) -> Instant) =
            if death % 2 == 1 { (OUT, kill_process) } else { (KILLED, kill_by_engine) };
        session.turn((SUITE, TIMES), system, death, || {
            let (_agent, slots, site) = site.as_ref().map_err(|error| anyhow!("{error:#}"))?;
            wait_for("all containers", || slots.count() == CONTAINERS)?;
            let victim = oldest(site);
            let out = slots.leave(|| kill(&victim));
            let begun = Instant::now();
            replaced = wait_for("all containers again", || slots.count() == CONTAINERS).map(|()| out + begun.elapsed());
            Ok(Values::from([(Metric::Duration, out.as_secs_f64() * 1e3)]))
        })?;
        session.turn((SUITE, TIMES), REPLACED, death, || {
            Ok(Values::from([(Metric::Duration, replaced?.as_secs_f64() * 1e3)]))
        })?;
        // What is left of the dead one is removed meanwhile.
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// Returns the container that has run for the longest.
fn oldest(site: &Site) -> String {
    let filter = format!("label=io.lb-user.instance={}", site.instance());
    let newest_first = docker(&["ps", "-q", "--no-trunc", "--filter", &filter]);
    newest_first.lines().last().unwrap_or_default().to_owned()
}
