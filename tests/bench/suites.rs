//! What is measured, suite by suite.

use anyhow::Result;

use crate::{options::Suite, session::Session};

pub mod churn;
pub mod containers;
pub mod control;
pub mod deaths;
pub mod http;
pub mod latency;
pub mod live;
pub mod packet;
pub mod steps;
pub mod throughput;

/// Backends behind a service, and threads of the load generator.
const BACKENDS: usize = 2;

/// Runs a suite.
///
/// # Errors
/// [`crate::session::Interrupted`], or what kept the suite from beginning.
pub fn run(suite: Suite, session: &mut Session) -> Result<()> {
    match suite {
        Suite::Connections => http::connections(session),
        Suite::Requests => http::requests(session),
        Suite::Throughput => throughput::run(session),
        Suite::Latency => latency::run(session),
        Suite::Packet => packet::run(session),
        Suite::Live => live::run(session),
        Suite::Control => control::run(session),
        Suite::Churn => churn::run(session),
        Suite::Containers => containers::run(session),
        Suite::Micro => Ok(()), // cargo runs it
    }
}
