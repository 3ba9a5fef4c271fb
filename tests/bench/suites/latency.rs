//! `latency`: round trips of one message at a time.

use anyhow::Result;
use lb_ebpf::abi::Proto;

use super::BACKENDS;
use crate::{
    field::{ECHO, Field},
    pingpong,
    record::{Metric, Values},
    session::Session,
    stats::quantile,
    systems::Running,
};

const SUITE: &str = "latency";
const PROTOCOLS: [(&str, Proto); 2] = [("TCP", Proto::Tcp), ("UDP", Proto::Udp)];

/// Runs the suite.
pub fn run(session: &mut Session) -> Result<()> {
    let systems = session.systems();
    session.expect(systems.len() * session.options.rounds as usize * PROTOCOLS.len());
    session.say("making namespaces and servers");
    let field = Field::new(BACKENDS)?;
    let duration = session.options.duration;
    for round in 1..=session.options.rounds {
        for &system in &systems {
            for (case, proto) in PROTOCOLS {
                session.turn((SUITE, case), system.name(), round, || {
                    let running = Running::start(system, &field, &field.service(ECHO, proto))?;
                    let times = pingpong::measure(&running.client, proto, running.targets[0], duration)?;
                    Ok(Values::from([
                        (Metric::RoundTripP50, quantile(&times, 0.5)),
                        (Metric::RoundTripP99, quantile(&times, 0.99)),
                    ]))
                })?;
            }
        }
    }
    Ok(())
}
