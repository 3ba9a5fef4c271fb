//! `live`: frames that really leave, by XDP, into a veth whose other end drops them.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use lb_ebpf::yardstick::Pattern;
use lb_tests::{
    lab::{self, Lab, Wiring},
    object::Door,
};

use crate::{
    awake::processors,
    bed::{Bed, Kind, Size},
    interrupt,
    record::{Metric, Values},
    session::{Session, caught},
    yardstick::{Called, Yardstick, ifindex, stay_on},
};

const SUITE: &str = "live";
const FLOWS: u32 = 1000;
/// Frames between two looks at the clock.
const CHUNK: u32 = 100_000;
/// What is compared with: the same frames, redirected by a program that does nothing else.
pub const ALONE: &str = "redirect alone";
const OURS: &str = "ours, XDP";

/// Runs the suite.
pub fn run(session: &mut Session) -> Result<()> {
    let cases: Vec<usize> = if processors() > 1 { vec![1, processors()] } else { vec![1] };
    session.expect(session.options.rounds as usize * cases.len() * 2);
    if let Err(error) = caught(|| measure(session, &cases)) {
        interrupt::check()?;
        session.leave_out(SUITE, "the rest", &format!("{error:#}"));
    }
    Ok(())
}

/// What one processor works with.
struct Lane {
    yardstick: Yardstick,
    bed: Bed,
}

fn measure(session: &mut Session, cases: &[usize]) -> Result<()> {
    let lab = Lab::open(0, Wiring::Routed);
    let (balancer, drain) = (lab.balancer(), lab.namespace("d"));
    lab::ip(&format!("link add out0 netns {balancer} type veth peer name in0 netns {drain}"));
    lab::ip(&format!("-n {balancer} link set out0 up"));
    lab::ip(&format!("-n {drain} link set in0 up"));
    let (from, out) = (ifindex(&balancer, "up0")?, ifindex(&balancer, "out0")?);
    let mut sink = Yardstick::load(1024)?;
    lab::inside(&drain, || sink.sink("in0"))?;
    let mut lanes = Vec::new();
    for processor in 0..cases.iter().copied().max().unwrap_or(1) {
        lanes.push(lane(processor, out)?);
    }
    let duration = session.options.duration;
    for round in 1..=session.options.rounds {
        for &processors in cases {
            let case = if processors == 1 { "1 processor".to_owned() } else { format!("{processors} processors") };
            for system in [ALONE, OURS] {
                session.turn((SUITE, &case), system, round, || {
                    let before = sink.sunk()?;
                    let start = Instant::now();
                    send(&mut lanes[..processors], &balancer, system, from, duration)?;
                    let (took, dropped) = (start.elapsed(), sink.sunk()? - before);
                    Ok(Values::from([(
                        Metric::PacketsPerSecond,
                        dropped as f64 / took.as_secs_f64() / processors as f64 / 1e3,
                    )]))
                })?;
            }
        }
    }
    Ok(())
}

/// Lays out an object whose connections were opened on one processor.
fn lane(processor: usize, out: u32) -> Result<Lane> {
    let made = thread::scope(|scope| {
        let work = || {
            stay_on(processor)?;
            let mut yardstick = Yardstick::load(1024)?;
            let mut bed = Bed::new(Size { flows: FLOWS, frontends: 1, backends: 1 }, &mut yardstick)?;
            bed.lead_to(out);
            let pattern = bed.pattern(Kind::Established, 0);
            yardstick.lay(Pattern { device: out, ..pattern })?;
            Ok(Lane { yardstick, bed })
        };
        scope.spawn(work).join()
    });
    made.unwrap_or_else(|_| Err(anyhow!("lay the object out")))
}

/// Sends from one processor per lane, for so long.
fn send(lanes: &mut [Lane], namespace: &str, system: &str, from: u32, duration: Duration) -> Result<()> {
    thread::scope(|scope| {
        let senders: Vec<_> = lanes
            .iter_mut()
            .enumerate()
            .map(|(processor, lane)| {
                scope.spawn(move || {
                    lab::inside(namespace, || {
                        stay_on(processor)?;
                        let start = Instant::now();
                        while start.elapsed() < duration && !interrupt::asked() {
                            let called = if system == ALONE { Called::Forward } else { lane.bed.called(Door::Xdp) };
                            lane.yardstick.run_live(called, CHUNK, from)?;
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        senders.into_iter().try_for_each(|sender| sender.join().unwrap_or_else(|_| Err(anyhow!("send frames"))))
    })
}
