//! `cargo xtask bench`: holds the verb's place.

use std::process::ExitCode;

use clap::Args;

/// Compare the balancer with its peers (not here yet).
///
/// The benchmarks come with an issue of their own. Until then this says so and exits with 2.
#[derive(Args)]
pub struct Bench {}

impl Bench {
    pub fn run(self) -> ExitCode {
        eprintln!("benchmarks are not here yet; `cargo xtask test` runs what there is");
        ExitCode::from(2)
    }
}
