//! Cases with requirements. A case that cannot run here is skipped and says what it lacks; with `LB_REQUIRE_ALL=1` (as
//! in CI) it fails instead.

use std::{
    process::{Command, ExitCode},
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::lab;

/// A case that takes so long says it.
const LONG: Duration = Duration::from_secs(5);

/// Held by every case, and by one that has to be alone for itself.
static MACHINE: RwLock<()> = RwLock::new(());

/// What a case needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The privileges of root.
    Root,
    /// A program on the path.
    Program(&'static str),
    /// The agent's binary: `LB_BIN`.
    Agent,
    /// A Docker engine with the image `lb-api`.
    Docker,
    /// A kernel with VLANs.
    Vlans,
    /// The machine for itself: no other case of the suite runs beside it.
    Alone,
    /// Control groups of version 2.
    Unified,
}

/// One case.
pub struct Case {
    /// Its name, a sentence.
    pub name: &'static str,
    /// What it needs.
    pub needs: &'static [Need],
    /// What it does; it panics if it fails.
    pub run: fn(),
}

impl Need {
    /// Returns what is lacking, if anything.
    fn lacking(self) -> Option<String> {
        match self {
            Self::Root => (!nix::unistd::Uid::effective().is_root()).then(|| "root".to_owned()),
            Self::Program(name) => {
                let found = std::env::var_os("PATH")
                    .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()));
                (!found).then(|| format!("the program {name}"))
            }
            Self::Agent => std::env::var_os("LB_BIN").is_none().then(|| "LB_BIN, the path of lb-user".to_owned()),
            Self::Docker => {
                let there = Command::new("docker")
                    .args(["image", "inspect", "--format", "{{.Id}}", "lb-api:latest"])
                    .output()
                    .is_ok_and(|output| output.status.success());
                (!there).then(|| "Docker with the image lb-api:latest (cargo xtask image)".to_owned())
            }
            Self::Alone => None,
            Self::Vlans => {
                let _built_in_or_none = Command::new("modprobe").args(["-q", "8021q"]).output();
                let there = std::path::Path::new("/proc/net/vlan/config").exists();
                (!there).then(|| "a kernel with VLANs (CONFIG_VLAN_8021Q)".to_owned())
            }
            Self::Unified => {
                lab::unified().is_none().then(|| "control groups of version 2 (mount -t cgroup2)".to_owned())
            }
        }
    }
}

/// Runs cases, one after the other unless told otherwise. Those that need VLANs are left out where `LB_VLANS=vm` says that they
/// run in the virtual machine, as this kernel has none.
pub fn run(mut cases: Vec<Case>) -> ExitCode {
    if std::env::var_os("LB_VLANS").is_some_and(|place| place == "vm") {
        cases.retain(|case| !case.needs.contains(&Need::Vlans));
    }
    run_trials(cases.into_iter().map(|case| trial(case.name.to_owned(), case.needs, case.run)).collect())
}

/// Runs cases that are made of a table, all with the same needs, by their names.
pub fn run_named(needs: &[Need], cases: Vec<(String, Box<dyn FnOnce() + Send>)>) -> ExitCode {
    run_trials(cases.into_iter().map(|(name, run)| trial(name, needs, run)).collect())
}

fn run_trials(trials: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: String, needs: &[Need], run: impl FnOnce() + Send + 'static) -> Trial {
    let strict = std::env::var_os("LB_REQUIRE_ALL").is_some_and(|value| value == "1");
    let lacking: Vec<String> = needs.iter().filter_map(|need| need.lacking()).collect();
    let alone = needs.contains(&Need::Alone);
    if lacking.is_empty() {
        return Trial::test(name, move || {
            // One that has panicked beside it is no reason not to run.
            let _others = (!alone).then(|| MACHINE.read().unwrap_or_else(PoisonError::into_inner));
            let _none = alone.then(|| MACHINE.write().unwrap_or_else(PoisonError::into_inner));
            let began = Instant::now();
            run();
            // Of a suite that takes minutes, these are what makes it so.
            if began.elapsed() >= LONG {
                println!("took {:.0} s", began.elapsed().as_secs_f64());
            }
            Ok(())
        });
    }
    let lacking = format!("needs {}", lacking.join(", "));
    let message = lacking.clone();
    Trial::test(name, move || Err(Failed::from(message)))
        .with_kind(format!("skipped: {lacking}"))
        .with_ignored_flag(!strict)
}
