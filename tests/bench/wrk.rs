//! HTTP load by wrk.

use std::{net::SocketAddrV4, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::lab;
use serde_json::Value;

use crate::{
    cpu::Cpu,
    interrupt,
    record::{Metric, Values},
};

/// Whether a connection serves one request or many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    OneRequest,
    ManyRequests,
}

/// Connections that are open at the same time.
const CONNECTIONS: usize = 64;

/// Each of wrk's threads asks one of these servers, in turn; all the same one, if there is one.
const SCRIPT: &str = r#"
local targets, number = { @TARGETS@ }, 0

function setup(thread)
    local target = targets[number % #targets + 1]
    number = number + 1
    thread.addr = wrk.lookup(target[1], target[2])[1]
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '{"requests":%d,"us":%d,"p50":%d,"p99":%d,"p999":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
        errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
"#;

/// Asks for pages for so long, in a namespace.
pub fn run(
    namespace: &str,
    targets: &[SocketAddrV4],
    threads: usize,
    duration: Duration,
    reuse: Reuse,
) -> Result<Values> {
    ask(lab::command_in(namespace, "wrk"), targets, threads, duration, reuse)
}

/// Asks for pages for so long, as a program of this host.
pub fn run_here(targets: &[SocketAddrV4], threads: usize, duration: Duration, reuse: Reuse) -> Result<Values> {
    ask(Command::new("wrk"), targets, threads, duration, reuse)
}

fn ask(mut wrk: Command, targets: &[SocketAddrV4], threads: usize, duration: Duration, reuse: Reuse) -> Result<Values> {
    let Some(first) = targets.first() else { bail!("no server to ask") };
    let list: Vec<String> = targets.iter().map(|at| format!("{{ \"{}\", \"{}\" }}", at.ip(), at.port())).collect();
    let script = tempfile::NamedTempFile::new().context("a file for the script")?;
    std::fs::write(script.path(), SCRIPT.replace("@TARGETS@", &list.join(", "))).context("write the script")?;
    wrk.arg(format!("-t{threads}")).arg(format!("-c{CONNECTIONS}"));
    // wrk reads whole seconds; a turn is never shorter than asked for.
    wrk.arg(format!("-d{}", duration.as_secs_f64().ceil())).arg("--timeout").arg("5s").arg("-s").arg(script.path());
    if reuse == Reuse::OneRequest {
        wrk.args(["-H", "Connection: close"]);
    }
    wrk.arg(format!("http://{first}/"));
    let before = Cpu::read()?;
    let output = interrupt::output(&mut wrk).context("wrk")?;
    let spent = Cpu::read()?.since(before);
    ensure!(output.status.success(), "wrk: {}", String::from_utf8_lossy(&output.stderr).trim());
    values(&String::from_utf8_lossy(&output.stdout), spent)
}

fn values(printed: &str, spent: Cpu) -> Result<Values> {
    let line = printed.lines().rfind(|line| line.starts_with('{')).context("wrk did not report")?;
    let report: Value = serde_json::from_str(line).context("read wrk's report")?;
    let number = |name: &str| report[name].as_f64().with_context(|| format!("wrk's report lacks {name}"));
    let requests = number("requests")?;
    ensure!(requests > 0.0, "wrk got no answer: {line}");
    let mut failures = 0.0;
    for kind in ["connect", "read", "write", "status", "timeout"] {
        failures += number(kind)?;
    }
    let per_request = |time: Duration| time.as_secs_f64() * 1e6 / requests;
    Ok(Values::from([
        (Metric::RequestsPerSecond, requests / (number("us")? / 1e6)),
        (Metric::LatencyP50, number("p50")?),
        (Metric::LatencyP99, number("p99")?),
        (Metric::LatencyP999, number("p999")?),
        (Metric::CpuPerRequest, per_request(spent.busy())),
        (Metric::SoftirqPerRequest, per_request(spent.softirq)),
        (Metric::ProcessPerRequest, per_request(spent.process)),
        (Metric::Failures, failures),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_becomes_values() {
        let printed = "Running 1s test\n  2 threads\n\
            {\"requests\":2000,\"us\":2000000,\"p50\":100,\"p99\":300,\"p999\":900,\"connect\":1,\"read\":2,\"write\":0,\
            \"status\":0,\"timeout\":1}\n";
        let spent = Cpu { process: Duration::from_millis(300), softirq: Duration::from_millis(100) };

        let values = values(printed, spent).unwrap();

        assert_eq!(values[&Metric::RequestsPerSecond], 1000.0);
        assert_eq!(values[&Metric::CpuPerRequest], 200.0);
        assert_eq!(values[&Metric::Failures], 4.0);
        assert!(super::values("Segmentation fault", spent).is_err());
    }
}
