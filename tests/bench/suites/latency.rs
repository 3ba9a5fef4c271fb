//! `latency`: round trips of one message at a time.

use std::collections::BTreeMap;

use anyhow::Result;
use lb_ebpf::abi::Proto;

use super::BACKENDS;
use crate::{
    awake::Awake,
    field::{ECHO, Field},
    pingpong,
    record::{Metric, Values},
    session::Session,
    stats::quantile,
    systems::{Running, reference},
};

const SUITE: &str = "latency";
const PROTOCOLS: [(&str, Proto); 2] = [("TCP", Proto::Tcp), ("UDP", Proto::Udp)];

/// Runs the suite.
pub fn run(session: &mut Session) -> Result<()> {
    session.say("making namespaces and servers");
    let field = Field::new(BACKENDS)?;
    let able = PROTOCOLS.map(|(case, proto)| {
        let service = field.service(ECHO, proto);
        (case, proto, session.able(SUITE, &session.systems(), &field, &service), service)
    });
    session.expect(able.iter().map(|(.., systems, _)| systems.len()).sum::<usize>() * session.options.rounds as usize);
    let duration = session.options.duration;
    let _awake = Awake::begin()?;
    for round in 1..=session.options.rounds {
        for (case, proto, systems, service) in &able {
            // Those without a balancer have their turns before those that are compared with them.
            let mut without = BTreeMap::new();
            for &system in systems {
                session.turn((SUITE, case), system.name(), round, || {
                    let running = Running::start(system, &field, service)?;
                    let times = pingpong::measure(&running.client, *proto, running.targets[0], duration)?;
                    let p50 = quantile(&times, 0.5);
                    let mut values =
                        Values::from([(Metric::RoundTripP50, p50), (Metric::RoundTripP99, quantile(&times, 0.99))]);
                    match reference(system.name()) {
                        Some(direct) => {
                            values.extend(without.get(direct).map(|least| (Metric::RoundTripAdded, p50 - least)));
                        }
                        None => {
                            without.insert(system.name(), p50);
                        }
                    }
                    Ok(values)
                })?;
            }
        }
    }
    Ok(())
}
