//! What can be said to the benchmarks. `xtask` has the same command line and passes it on.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum};

/// Compare the balancer with what one would use instead, side by side on this machine.
///
/// Everything runs in network namespaces that are made and removed by the run; `containers` and a part of `control` use
/// Docker. Systems take turns round by round (A B C A B C), and a ratio compares two systems within one round, so that
/// what else the machine does meets all of them alike. What a peer or a kernel lacks is said and left out.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  cargo xtask bench                                  everything, about 25 minutes
  cargo xtask bench connections requests             two suites
  cargo xtask bench requests --peers haproxy --rounds 3 --duration 2s
  cargo xtask bench packet                           what a packet costs, without any peer
  cargo xtask bench micro                            pure functions, by criterion

Results go to a folder of their own below target/bench: report.md, results.json (every round), and charts.")]
pub struct Options {
    /// What to measure [default: everything]
    #[arg(value_enum, value_name = "SUITE")]
    pub suites: Vec<Suite>,

    /// How often each system has its turn in a suite
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// How long one turn takes, 100ms to 1m
    #[arg(long, value_name = "DUR", default_value = "2s", value_parser = parse_duration)]
    pub duration: Duration,

    /// Compare with these only, separated by commas [default: all]
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    pub peers: Vec<Peer>,

    /// Where the results go [default: target/bench/DATE-TIME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// A group of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Suite {
    /// A new TCP connection for every request
    Connections,
    /// Requests by connections that stay
    Requests,
    /// Bulk TCP, one and eight streams, both directions; small UDP packets
    Throughput,
    /// The time that a balancer adds to a round trip, at low load
    Latency,
    /// What the kernel programs cost per packet, by flows, backends and frontends
    Packet,
    /// Packets per second and processor through XDP, with live frames
    Live,
    /// How fast changes take effect; what the agent needs
    Control,
    /// Connections while a backend comes or goes every second, for a minute
    Churn,
    /// Connections and requests to real containers, beside a port that Docker publishes
    Containers,
    /// Pure functions, by criterion
    Micro,
}

/// What the balancer is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Peer {
    /// DNAT by nftables, `numgen inc`
    Nftables,
    /// The same with a flowtable, where the kernel has it
    Flowtable,
    /// DNAT by iptables, `-m statistic --mode nth`
    Iptables,
    /// HAProxy, mode tcp
    Haproxy,
    /// HAProxy, mode http
    HaproxyHttp,
    /// nginx, stream module
    Nginx,
    /// IPVS, masquerading, where the kernel has it
    Ipvs,
    /// A port that Docker publishes, and its proxy for local clients
    Docker,
}

/// Returns the name of the folder for the results of a run that starts now, such as `2026-05-28-202640`.
pub fn folder_name(started: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(started).to_string();
    text.trim_end_matches('Z').replace(':', "").replace('T', "-")
}

/// Reads a duration.
///
/// # Errors
/// Why it is none that makes sense here.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration < Duration::from_millis(100) || duration > Duration::from_secs(60) {
        return Err("not between 100ms and 1m".to_owned());
    }
    Ok(duration)
}

impl Options {
    /// Returns the suites to run, in the order in which they are listed.
    pub fn suites(&self) -> Vec<Suite> {
        let mut suites = self.suites.clone();
        if suites.is_empty() {
            suites = Suite::value_variants().to_vec();
        }
        suites.sort_unstable();
        suites.dedup();
        suites
    }
}
