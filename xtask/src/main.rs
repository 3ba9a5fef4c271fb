//! Everything one does with the project, one verb each: `cargo xtask --help`.

mod bench;
mod build;
#[path = "../../lb-ebpf/build_object.rs"]
mod build_object;
mod docker;
mod image;
#[path = "../../tests/bench/options.rs"]
mod options;
mod run;
mod setup;
mod sh;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs and tests the load balancer. Every verb first does the set-up that it needs.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::Setup),
    Build(build::Build),
    Image(image::Image),
    Run(run::Run),
    Test(test::Test),
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(setup) => setup.run(),
        Verb::Build(build) => build.run(),
        Verb::Image(image) => image.run(),
        Verb::Run(run) => run.run(),
        Verb::Test(test) => test.run(),
        Verb::Bench(bench) => bench.run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
