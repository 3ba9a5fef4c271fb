//! Bulk TCP by iperf3.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Context as _, Result, bail};
use lb_tests::lab;
use serde_json::Value;

use crate::{
    awake::processors,
    cpu::Cpu,
    interrupt,
    record::{Metric, Values},
};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToBackend,
    ToClient,
}

/// How often a transfer is begun anew: the server takes one client at a time, and may still be at its last.
const ATTEMPTS: usize = 20;

/// Transfers for so long, by so many streams.
pub fn run(namespace: &str, to: SocketAddrV4, streams: usize, way: Way, duration: Duration) -> Result<Values> {
    let mut outcome = attempt(namespace, to, streams, way, duration);
    for _ in 1..ATTEMPTS {
        if outcome.is_ok() || interrupt::asked() {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
        outcome = attempt(namespace, to, streams, way, duration);
    }
    outcome
}

fn attempt(namespace: &str, to: SocketAddrV4, streams: usize, way: Way, duration: Duration) -> Result<Values> {
    let mut iperf = lab::command_in(namespace, "iperf3");
    iperf.args(["-c", &to.ip().to_string(), "-p", &to.port().to_string(), "-P", &streams.to_string(), "-J"]);
    iperf.args(["-t", &duration.as_secs_f64().ceil().to_string(), "--connect-timeout", "3000"]);
    // Whether the scheduler puts both ends on one processor or not makes more of a difference than any balancer.
    iperf.args(["-A", &format!("0,{}", processors() - 1)]);
    if way == Way::ToClient {
        iperf.arg("-R");
    }
    let before = Cpu::read()?;
    let output = interrupt::output(&mut iperf).context("iperf3")?;
    let spent = Cpu::read()?.since(before);
    let report: Value = serde_json::from_slice(&output.stdout).context("read iperf3's report")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let received = &report["end"]["sum_received"];
    let number = |name: &str| received[name].as_f64().with_context(|| format!("iperf3's report lacks {name}"));
    let kibibytes = number("bytes")? / 1024.0;
    Ok(Values::from([
        (Metric::BitsPerSecond, number("bits_per_second")? / 1e9),
        (Metric::CpuPerByte, spent.busy().as_secs_f64() * 1e9 / kibibytes.max(1.0)),
    ]))
}
