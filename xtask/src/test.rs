//! `cargo xtask test`: every check there is, and one line of numbers at the end.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    build::{self, Profile},
    build_object,
    docker::Docker,
    image, setup, sh, vm,
};

/// Run the tests: all of them, or one group.
///
/// `unit` formats, lints and runs what needs no root. The other groups run the real kernel object, real network namespaces and real
/// containers, so they need root (through sudo if you are not) and, for `docker`, a Docker engine; their tools are installed as
/// `setup --tests` does. A test that cannot run here says what it lacks and counts as skipped; with CI=true or --no-skip it fails instead.
///
/// `vm` is no part of `all`: it runs the packets, and of `net` what the kernel has a say in, on Debian's Linux 6.1 in qemu. Where this
/// host's kernel has no VLANs, one test of `net` that needs them runs there, too; the others are left to `vm`.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask test                    everything
  cargo xtask test unit               no root needed
  cargo xtask test docker             one group
  cargo xtask test net -- round_robin the tests of a group whose names contain round_robin
  cargo xtask test vm                 the oldest kernel that is supported")]
pub struct Test {
    /// What to run
    #[arg(value_enum, default_value = "all")]
    group: Group,
    /// Let tests fail that cannot run here, instead of skipping them
    #[arg(long)]
    no_skip: bool,
    /// Arguments of the test programs, such as a part of a test's name
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

/// The benchmarks are checked like everything else; one set of features for all suites builds dependencies once.
const BENCH: [&str; 2] = ["--features", "lb-tests/bench"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Formatting, lints and tests without root
    Unit,
    /// Packets through the kernel object by BPF_PROG_TEST_RUN
    Packet,
    /// Real connections between network namespaces
    Net,
    /// Real containers: scaling, failures, restarts
    Docker,
    /// Everything but `vm`
    All,
    /// Packets and connections on Linux 6.1, in a virtual machine
    Vm,
}

impl Test {
    pub fn run(self) -> Result<ExitCode> {
        let strict = self.no_skip || env::var("CI").is_ok_and(|ci| ci == "true");
        let unit = matches!(self.group, Group::Unit | Group::All);
        let privileged = self.group != Group::Unit;
        if privileged && !sh::can_be_root() {
            bail!(
                "these tests need root, and sudo is not there or would ask for a password; `cargo xtask test unit` needs none"
            );
        }
        self.set_up(strict || self.group == Group::Vm)?;
        if self.group == Group::Vm {
            return Ok(summarise(&vm::run(self.arguments.first().map(String::as_str))?));
        }

        let mut suites = Vec::new();
        if unit {
            suites.push(check("format", sh::cargo().args(["fmt", "--all", "--check"])));
            let lints =
                ["clippy", "--workspace", "--all-targets", BENCH[0], BENCH[1], "--quiet", "--", "-D", "warnings"];
            suites.push(check("lints", with_object(&mut sh::cargo()).args(lints)));
            let crates = ["-p", "lb-ebpf", "-p", "lb-user", "-p", "lb-api", "-p", "xtask"];
            suites.push(self.tests("unit", &crates, &[]));
            suites.push(self.tests("harness", &["-p", "lb-tests", BENCH[0], BENCH[1], "--lib", "--bins"], &[]));
            let micro = ["test", "-p", "lb-tests", BENCH[0], BENCH[1], "--bench", "pure", "--quiet"];
            suites.push(check("micro-benchmarks, each once", with_object(&mut sh::cargo()).args(micro)));
        }

        let mut environment = Vec::new();
        if privileged {
            environment.push(("LB_BIN".to_owned(), build::agent(Profile::Release)?.display().to_string()));
            environment.push(("RUST_TEST_THREADS".to_owned(), "1".to_owned()));
            if strict {
                environment.push(("LB_REQUIRE_ALL".to_owned(), "1".to_owned()));
            }
        }
        // Tests that are picked by their names run here, and say what they lack.
        let vlans_elsewhere =
            matches!(self.group, Group::Net | Group::All) && self.arguments.is_empty() && !vm::host_has_vlans();
        if vlans_elsewhere {
            environment.push(("LB_VLANS".to_owned(), "vm".to_owned()));
        }
        for target in self.targets()? {
            suites.push(self.tests(&target, &["-p", "lb-tests", BENCH[0], BENCH[1], "--test", &target], &environment));
        }
        if vlans_elsewhere {
            eprintln!("this kernel has no VLANs: the tests that need them run in the virtual machine");
            match vm::run_vlans() {
                Ok(in_vm) => suites.extend(in_vm),
                Err(error) => suites.push(Suite::failed("VLANs, in the virtual machine", &error)),
            }
        }
        Ok(summarise(&suites))
    }

    fn set_up(&self, strict: bool) -> Result<()> {
        if self.group == Group::Unit {
            if let Err(missing) = build_object::find() {
                eprintln!("testing without the kernel object: {missing}");
            }
            return Ok(());
        }
        setup::ensure_toolchain()?;
        let tools = setup::ensure_tests();
        let image = match self.group {
            Group::Docker | Group::All => setup::ensure_docker().and_then(|docker: Docker| image::ensure(&docker)),
            Group::Unit | Group::Packet | Group::Net | Group::Vm => Ok(()),
        };
        for lack in [tools, image] {
            match lack {
                Err(error) if !strict => eprintln!("some tests will be skipped: {error:#}"),
                result => result?,
            }
        }
        Ok(())
    }

    /// Returns the test programs of `lb-tests` that belong to the group, by their names.
    fn targets(&self) -> Result<Vec<String>> {
        let folder = sh::root().join("tests").join("tests");
        let mut targets = Vec::new();
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
            if let Some(name) = target_name(&path)
                && (self.group == Group::All || group_of(&name) == self.group)
            {
                targets.push(name);
            }
        }
        targets.sort_by_key(|name| (group_of(name) as u8, name.clone()));
        if targets.is_empty() && self.group != Group::Unit {
            bail!("find the tests of this group in {}: there are none", folder.display());
        }
        Ok(targets)
    }

    fn tests(&self, name: &str, selection: &[&str], environment: &[(String, String)]) -> Suite {
        let mut cargo = sh::cargo();
        with_object(&mut cargo).args(["test", "--no-fail-fast"]).args(selection);
        cargo.envs(environment.iter().map(|(name, value)| (name, value)));
        let privileged = !environment.is_empty();
        if privileged && !sh::is_root() {
            match runner_as_root(environment) {
                Ok(runner) => cargo.args(["--config", &runner]),
                Err(error) => return Suite::failed(name, &error),
            };
        }
        cargo.arg("--").args(&self.arguments);
        if privileged && !self.arguments.iter().any(|argument| argument.starts_with("--test-threads")) {
            // One machine, one Docker. But most of what happens between namespaces is waited for, and each case has its own.
            cargo.arg(if name == "namespaces" { "--test-threads=2" } else { "--test-threads=1" });
        }
        count(name, &mut cargo, &mut std::io::stdout())
    }
}

/// Returns the setting by which cargo builds as the user and starts what it has built as root.
fn runner_as_root(environment: &[(String, String)]) -> Result<String> {
    let env = sh::as_root("env")?; // sudo keeps no variables, so env sets them again
    let mut words = vec![env.get_program().to_string_lossy().into_owned()];
    words.extend(env.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
    Ok(runner_setting(&words))
}

fn runner_setting(words: &[String]) -> String {
    let list: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("target.'cfg(unix)'.runner=[{}]", list.join(","))
}

/// Requires the kernel object wherever it can be built. Cargo then builds the agent's crate once for all suites.
fn with_object(cargo: &mut Command) -> &mut Command {
    if build_object::find().is_ok() {
        cargo.env("LB_REQUIRE_OBJECT", "1");
    }
    cargo
}

fn target_name(path: &Path) -> Option<String> {
    let name = path.file_stem()?.to_str()?;
    let is_target = path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file();
    is_target.then(|| name.to_owned())
}

fn group_of(target: &str) -> Group {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| target.starts_with(prefix));
    if starts(&["packet"]) {
        Group::Packet
    } else if starts(&["namespace", "net", "bench"]) {
        Group::Net
    } else if starts(&["docker"]) {
        Group::Docker
    } else if starts(&["tidy", "abi"]) {
        Group::Unit
    } else {
        Group::All
    }
}

/// What one suite came to.
#[derive(Debug, Default)]
pub struct Suite {
    pub name: String,
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    pub took: Duration,
}

impl Suite {
    fn failed(name: &str, error: &anyhow::Error) -> Self {
        eprintln!("error: {error:#}");
        Self { name: name.to_owned(), failed: 1, ..Self::default() }
    }
}

/// Runs a check that counts no tests: it fails or is fine.
fn check(name: &str, command: &mut Command) -> Suite {
    let began = Instant::now();
    let mut suite = match sh::run(command) {
        Ok(()) => Suite { name: name.to_owned(), ..Suite::default() },
        Err(error) => Suite::failed(name, &error),
    };
    suite.took = began.elapsed();
    suite
}

/// Runs test programs, passes on what they print, and adds up what they say of themselves.
fn count(name: &str, command: &mut Command, shown: &mut impl Write) -> Suite {
    let began = Instant::now();
    let mut suite = Suite { name: name.to_owned(), ..Suite::default() };
    eprintln!("$ {}", sh::show(command));
    let outcome = (|| {
        let mut child =
            command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {}", sh::show(command)))?;
        let output = child.stdout.take().context("take the test's output")?;
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("read the test's output")?;
            shown.write_all(&line).and_then(|()| shown.write_all(b"\n")).context("show the test's output")?;
            if let Some((passed, failed, skipped)) = result_line(&String::from_utf8_lossy(&line)) {
                suite.passed += passed;
                suite.failed += failed;
                suite.skipped += skipped;
            }
        }
        child.wait().context("wait for the tests")
    })();
    match outcome {
        Ok(status) if !status.success() && suite.failed == 0 => suite.failed = 1, // it did not compile, or was killed
        Ok(_) => {}
        Err(error) => {
            eprintln!("error: {error:#}");
            suite.failed += 1;
        }
    }
    suite.took = began.elapsed();
    suite
}

/// Reads libtest's last line: `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; …`.
pub fn result_line(line: &str) -> Option<(u64, u64, u64)> {
    let counts = line.trim().strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |what: &str| counts.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    Some((number("passed")?, number("failed")?, number("ignored")?))
}

fn summarise(suites: &[Suite]) -> ExitCode {
    let width = suites.iter().map(|suite| suite.name.len()).max().unwrap_or_default();
    println!();
    for suite in suites {
        let outcome = if suite.failed == 0 { "ok" } else { "FAILED" };
        println!(
            "{:<width$}  {outcome:<6}  {:>4} passed  {:>3} failed  {:>3} skipped  {:>6.1} s",
            suite.name,
            suite.passed,
            suite.failed,
            suite.skipped,
            suite.took.as_secs_f64(),
        );
    }
    let sum = |count: fn(&Suite) -> u64| suites.iter().map(count).sum::<u64>();
    let failed = sum(|suite| suite.failed);
    println!("{} passed, {failed} failed, {} skipped", sum(|suite| suite.passed), sum(|suite| suite.skipped));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_libtest_is_read() {
        let ok = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s";
        let failed =
            "test result: FAILED. 14 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.03s";

        assert_eq!(result_line(ok), Some((3, 0, 1)));
        assert_eq!(result_line(failed), Some((14, 2, 0)));
        assert_eq!(result_line("test a::b ... ok"), None);
    }

    #[test]
    fn a_program_that_dies_counts_as_a_failure() {
        let mut dying = Command::new("sh");
        dying.args(["-c", "echo 'test a ... ok'; kill -9 $$"]);
        let mut shown = Vec::new();

        let suite = count("dies", &mut dying, &mut shown);

        assert_eq!(shown, b"test a ... ok\n");
        assert_eq!((suite.passed, suite.failed), (0, 1));
    }

    #[test]
    fn the_numbers_of_several_programs_are_added() {
        let line = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out";
        let mut two = Command::new("sh");
        two.args(["-c", &format!("echo '{line}'; echo '{line}'")]);

        let suite = count("two", &mut two, &mut Vec::new());

        assert_eq!((suite.passed, suite.failed, suite.skipped), (4, 0, 2));
    }

    #[test]
    fn the_runner_is_a_list_in_toml() {
        let words = ["sudo", "env", "LB_BIN=/a b/lb-user"].map(str::to_owned);

        assert_eq!(runner_setting(&words), r#"target.'cfg(unix)'.runner=["sudo","env","LB_BIN=/a b/lb-user"]"#);
    }

    #[test]
    fn a_test_program_belongs_to_the_group_of_its_name() {
        assert_eq!(group_of("packets"), Group::Packet);
        assert_eq!(group_of("namespaces"), Group::Net);
        assert_eq!(group_of("benchmarks"), Group::Net);
        assert_eq!(group_of("docker"), Group::Docker);
        assert_eq!(group_of("tidy"), Group::Unit);
        assert_eq!(target_name(Path::new("/x/tests/tidy.rs")), Some("tidy".to_owned()));
    }
}
