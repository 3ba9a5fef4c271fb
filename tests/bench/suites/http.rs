//! `connections` and `requests`: wrk against nginx behind each system.

use anyhow::Result;
use lb_ebpf::abi::Proto;

use super::BACKENDS;
use crate::{
    field::{Field, HTTP},
    session::Session,
    systems::Running,
    wrk::{self, Reuse},
};

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
    let service = field.service(HTTP, Proto::Tcp);
    let systems = session.able(suite, &session.systems(), &field, &service);
    session.expect(systems.len() * session.options.rounds as usize);
    let duration = session.options.duration;
    for round in 1..=session.options.rounds {
        for &system in &systems {
            session.turn((suite, ""), system.name(), round, || {
                let running = Running::start(system, &field, &service)?;
                wrk::run(&running.client, &running.targets, BACKENDS, duration, reuse)
            })?;
        }
    }
    Ok(())
}
