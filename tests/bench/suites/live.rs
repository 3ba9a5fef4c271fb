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

/// What all processors work with: one object, each with flows of its own, as a card's queues would have it.
struct Lanes {
    yardsticks: Vec<Yardstick>,
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
    let mut lanes = lay_out(cases.iter().copied().max().unwrap_or(1), out)?;
    let duration = session.options.duration;
    for round in 1..=session.options.rounds {
        for &processors in cases {
            let case = if processors == 1 { "1 processor".to_owned() } else { format!("{processors} processors") };
            for system in [ALONE, OURS] {
                session.turn((SUITE, &case), system, round, || {
                    let before = sink.sunk()?;
                    let start = Instant::now();
                    send(&mut lanes, processors, &balancer, system, from, duration)?;
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

/// Lays out an object, whose connections are opened on one processor.
fn lay_out(processors: usize, out: u32) -> Result<Lanes> {
    let made = thread::scope(|scope| {
        let work = || {
            stay_on(0)?;
            let mut yardsticks = (0..processors).map(|_| Yardstick::load(1024)).collect::<Result<Vec<_>>>()?;
            let flows = FLOWS * processors as u32;
            let mut bed = Bed::new(Size { flows, frontends: 1, backends: 1 }, &mut yardsticks[0])?;
            bed.lead_to(out);
            for (first, yardstick) in (0..).step_by(FLOWS as usize).zip(&mut yardsticks) {
                let pattern = bed.pattern(Kind::Established, 0);
                yardstick.lay(Pattern { first, count: FLOWS, stride: 1, device: out, ..pattern })?;
            }
            Ok(Lanes { yardsticks, bed })
        };
        scope.spawn(work).join()
    });
    made.unwrap_or_else(|_| Err(anyhow!("lay the object out")))
}

/// Sends from one processor per lane, for so long.
fn send(
    lanes: &mut Lanes,
    processors: usize,
    namespace: &str,
    system: &str,
    from: u32,
    duration: Duration,
) -> Result<()> {
    let Lanes { yardsticks, bed } = lanes;
    thread::scope(|scope| {
        let senders: Vec<_> = yardsticks[..processors]
            .iter_mut()
            .enumerate()
            .map(|(processor, yardstick)| {
                let called = if system == ALONE { Called::Forward } else { bed.called(Door::Xdp) };
                scope.spawn(move || {
                    lab::inside(namespace, || {
                        stay_on(processor)?;
                        let start = Instant::now();
                        while start.elapsed() < duration && !interrupt::asked() {
                            yardstick.run_live(called, CHUNK, from)?;
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        senders.into_iter().try_for_each(|sender| sender.join().unwrap_or_else(|_| Err(anyhow!("send frames"))))
    })
}
