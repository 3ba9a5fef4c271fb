//! `throughput`: bulk TCP by iperf3, and small datagrams.

use std::time::Duration;

use anyhow::Result;
use lb_ebpf::abi::Proto;

use super::BACKENDS;
use crate::{
    cpu::Cpu,
    datagrams,
    field::{BULK, Field, SINK},
    iperf::{self, Way},
    record::{Metric, Values},
    session::{Session, caught},
    systems::Running,
};

const TRANSFERS: [(&str, usize, Way); 4] = [
    ("1 stream to backend", 1, Way::ToBackend),
    ("1 stream to client", 1, Way::ToClient),
    ("8 streams to backend", 8, Way::ToBackend),
    ("8 streams to client", 8, Way::ToClient),
];
const DATAGRAMS: &str = "UDP, 64-byte packets";
const SUITE: &str = "throughput";

/// Runs the suite.
pub fn run(session: &mut Session) -> Result<()> {
    session.say("making namespaces and servers");
    let field = Field::new(BACKENDS)?;
    let duration = session.options.duration;
    // iperf3 wants all streams of a transfer at one server.
    let bulk = field.service_of(BULK, Proto::Tcp, 1);
    let datagrams = field.service(SINK, Proto::Udp);
    let (of_bulk, of_datagrams) = (
        session.able(SUITE, &session.systems(), &field, &bulk),
        session.able(SUITE, &session.systems(), &field, &datagrams),
    );
    session.expect((of_bulk.len() * TRANSFERS.len() + of_datagrams.len()) * session.options.rounds as usize);
    for round in 1..=session.options.rounds {
        for &system in &of_bulk {
            // Only while its turns last: systems would be in each other's way.
            let running = caught(|| Running::start(system, &field, &bulk));
            for (case, streams, way) in TRANSFERS {
                session.turn((SUITE, case), system.name(), round, || {
                    let running = running.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
                    iperf::run(&running.client, running.targets[0], streams, way, duration)
                })?;
            }
        }
        for &system in &of_datagrams {
            session.turn((SUITE, DATAGRAMS), system.name(), round, || {
                let running = Running::start(system, &field, &datagrams)?;
                burst(&running, duration, &field)
            })?;
        }
    }
    Ok(())
}

fn burst(running: &Running<'_>, duration: Duration, field: &Field) -> Result<Values> {
    let before = Cpu::read()?;
    let burst = datagrams::send(&running.client, &running.targets, duration, || field.arrived())?;
    let spent = Cpu::read()?.since(before);
    let (sent, arrived) = (burst.sent.max(1) as f64, burst.arrived as f64);
    Ok(Values::from([
        (Metric::PacketsPerSecond, arrived / burst.took.as_secs_f64() / 1e3),
        (Metric::Loss, (1.0 - arrived / sent).max(0.0) * 100.0),
        (Metric::CpuPerPacket, spent.busy().as_secs_f64() * 1e6 / arrived.max(1.0)),
    ]))
}
