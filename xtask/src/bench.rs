//! `cargo xtask bench`: sets up what the benchmarks need, builds them, and starts them.

use std::{
    env,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build::{self, Profile},
    image,
    options::{self, Options, Peer, Suite},
    setup, sh,
};

// Without a text of its own, so that `--help` shows that of the options.
#[derive(Args)]
pub struct Bench {
    #[command(flatten)]
    options: Options,
}

impl Bench {
    pub fn run(self) -> Result<ExitCode> {
        let suites = self.options.suites();
        if suites.contains(&Suite::Micro) {
            sh::run(sh::cargo().args(["bench", "-p", "lb-tests", "--features", "bench", "--bench", "pure"]))?;
        }
        if suites == [Suite::Micro] {
            return Ok(ExitCode::SUCCESS);
        }
        if !sh::can_be_root() {
            bail!("the benchmarks need root, and sudo is not there or would ask for a password");
        }
        self.set_up(&suites)?;
        let agent = build::agent(Profile::Release)?;
        let yardstick = build::yardstick(&setup::ensure_toolchain()?)?;
        let mut cargo = sh::cargo();
        cargo.args(["build", "--release", "-p", "lb-tests", "--features", "bench", "--bin", "lb-bench"]);
        sh::run(cargo.env("LB_REQUIRE_OBJECT", "1"))?;

        let out = match &self.options.out {
            Some(out) => out.clone(),
            None => sh::target_dir()?.join("bench").join(options::folder_name(SystemTime::now())),
        };
        let mut bench = sh::as_root("env")?;
        bench.arg(format!("LB_BIN={}", agent.display())).arg(format!("LB_YARDSTICK={}", yardstick.display()));
        if let Some(commit) = commit() {
            bench.arg(format!("LB_COMMIT={commit}"));
        }
        bench.arg(sh::target_dir()?.join("release").join("lb-bench")).args(passed_on()).arg("--out").arg(out);
        eprintln!("$ {}", sh::show(&bench));
        // Becoming it, signals reach it, and nobody has the prompt back before it has cleaned up.
        Err(bench.exec()).context("start lb-bench")
    }

    fn set_up(&self, suites: &[Suite]) -> Result<()> {
        setup::ensure_toolchain()?;
        setup::ensure_tests()?;
        let peers = |peer: Peer| self.options.peers.is_empty() || self.options.peers.contains(&peer);
        let with_peers = suites.iter().any(|suite| {
            matches!(suite, Suite::Connections | Suite::Requests | Suite::Throughput | Suite::Latency | Suite::Churn)
        });
        if with_peers {
            setup::ensure_peers(peers)?;
        }
        if suites.contains(&Suite::Containers) || suites.contains(&Suite::Control) {
            let image = setup::ensure_docker().and_then(|docker| image::ensure(&docker));
            if let Err(error) = image {
                eprintln!("what needs Docker will be left out: {error:#}");
            }
        }
        Ok(())
    }
}

/// Returns the command line behind `bench`, without where the results go.
fn passed_on() -> Vec<String> {
    let mut arguments = env::args().skip_while(|argument| argument != "bench").skip(1);
    let mut passed = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--out" => _ = arguments.next(),
            out if out.starts_with("--out=") => {}
            _ => passed.push(argument),
        }
    }
    passed
}

/// Returns the revision that is measured; nothing if this is no clone.
fn commit() -> Option<String> {
    let mut git = Command::new("git");
    git.arg("-C").arg(sh::root()).args(["describe", "--always", "--dirty", "--abbrev=12"]);
    sh::output(&mut git).ok().map(|text| text.trim().to_owned())
}
