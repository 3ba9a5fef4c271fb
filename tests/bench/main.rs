//! `lb-bench`: compares the balancer with its peers. `cargo xtask bench` builds what it needs and starts it.
//!
//! ```text
//! options ─▶ session ─▶ suites ──▶ field      namespaces and servers; one for all systems of a suite
//!                         │  │  └▶ systems    ours and the peers, started for a turn
//!                         │  └───▶ wrk, iperf, datagrams, pingpong      the load
//!                         └──────▶ bed, yardstick                       the programs alone
//! record ─▶ targets, report, chart
//! ```

mod awake;
mod bed;
mod chart;
mod cpu;
mod datagrams;
mod field;
mod interrupt;
mod iperf;
mod machine;
mod options;
mod ours;
mod pingpong;
mod record;
mod report;
mod session;
mod stats;
mod suites;
mod systems;
mod targets;
mod wrk;
mod yardstick;

use std::{fs, path::PathBuf, process::ExitCode, time::SystemTime};

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::{
    interrupt::Interrupted,
    machine::Machine,
    options::{Options, Suite},
    report::Report,
    session::Session,
};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    match run(Cli::parse().options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted; nothing is left behind");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<()> {
    let started = SystemTime::now();
    let folder =
        options.out.clone().unwrap_or_else(|| PathBuf::from("target/bench").join(options::folder_name(started)));
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let mut session = Session::begin(options)?;
    let mut outcome = Ok(());
    // Micro-benchmarks are cargo's.
    let suites: Vec<Suite> = session.options.suites().into_iter().filter(|&suite| suite != Suite::Micro).collect();
    for (place, &suite) in suites.iter().enumerate() {
        session.begin_suite(place + 1, suites.len());
        outcome = suites::run(suite, &mut session);
        if outcome.is_err() {
            break;
        }
    }
    session.end();
    if !session.record.turns.is_empty() {
        // Also of a run that was cut short: what was measured was.
        let report = Report::new(&session.options, &session.record, Machine::look(started));
        report.write(&folder)?;
        println!("{}", report.text());
        println!("report, charts and every round: {}", folder.display());
    }
    outcome
}
