//! `connections` and `requests`: wrk against nginx behind each system.

use anyhow::Result;
use lb_ebpf::abi::Proto;

use super::BACKENDS;
use crate::{
    field::{Field, HTTP, Service},
    session::Session,
    systems::{Running, System},
    wrk::{self, Reuse},
};

/// All systems before the same servers.
pub const TWO_SERVERS: &str = "two servers";
/// Only the balancer differs: without one, each of wrk's threads asks a server of its own, and the scheduler puts both on
/// one processor.
pub const ONE_SERVER: &str = "one server";

/// A new connection for every request.
pub fn connections(session: &mut Session) -> Result<()> {
    run(session, "connections", Reuse::OneRequest)
}

/// Connections that stay.
pub fn requests(session: &mut Session) -> Result<()> {
    run(session, "requests", Reuse::ManyRequests)
}

fn run(session: &mut Session, suite: &'static str, reuse: Reuse) -> Result<()> {
    session.say("making namespaces and servers");
    let field = Field::new(BACKENDS)?;
    let services = [(TWO_SERVERS, BACKENDS), (ONE_SERVER, 1)]
        .map(|(case, servers)| (case, field.service_of(HTTP, Proto::Tcp, servers)));
    let systems = session.able(suite, &session.systems(), &field, &services[0].1);
    let turns: Vec<(&str, &Service, System)> = services
        .iter()
        .flat_map(|(case, service)| systems.iter().map(move |&system| (*case, service, system)))
        .filter(|&(case, _, system)| case == TWO_SERVERS || !system.is_peer())
        .collect();
    session.expect(turns.len() * session.options.rounds as usize);
    let duration = session.options.duration;
    for round in 1..=session.options.rounds {
        for &(case, service, system) in &turns {
            session.turn((suite, case), system.name(), round, || {
                let running = Running::start(system, &field, service)?;
                wrk::run(&running.client, &running.targets, BACKENDS, duration, reuse)
            })?;
        }
    }
    Ok(())
}
