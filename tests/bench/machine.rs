//! On what was measured: machine, kernel, versions.

use std::{collections::BTreeMap, fs, process::Command, thread, time::SystemTime};

use serde::Serialize;

/// The machine and what ran on it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// When the run began, UTC.
    pub started: String,
    /// How long it took, in seconds.
    pub took_s: u64,
    /// The revision that was measured, as git describes it.
    pub commit: Option<String>,
    /// Kernel release.
    pub kernel: String,
    /// Processor model.
    pub cpu: String,
    /// Number of processors.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Whether this is a virtual machine, as the processor says.
    pub virtual_machine: bool,
    /// Versions by program.
    pub versions: BTreeMap<String, String>,
    /// Settings of the kernel that matter.
    pub settings: BTreeMap<String, String>,
}

const PROGRAMS: [(&str, &[&str]); 10] = [
    ("lb-user", &["--version"]),
    ("wrk", &["-v"]),
    ("iperf3", &["--version"]),
    ("nginx", &["-v"]),
    ("haproxy", &["-v"]),
    ("nft", &["--version"]),
    ("iptables-nft", &["--version"]),
    ("ipvsadm", &["--version"]),
    ("docker", &["--version"]),
    ("rustc", &["--version"]),
];
const SETTINGS: [&str; 5] = [
    "/proc/sys/net/core/bpf_jit_enable",
    "/proc/sys/kernel/bpf_stats_enabled",
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/netfilter/nf_conntrack_max",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource",
];

impl Machine {
    /// Looks around, at the end of a run.
    pub fn look(started: SystemTime) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let (cpuinfo, meminfo) = (text("/proc/cpuinfo"), text("/proc/meminfo"));
        let memory_kib: u64 = field(&meminfo, "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
        let settings = SETTINGS.iter().filter_map(|path| Some((*path, fs::read_to_string(path).ok()?)));
        Self {
            started: humantime::format_rfc3339_seconds(started).to_string(),
            took_s: started.elapsed().unwrap_or_default().as_secs(),
            commit: std::env::var("LB_COMMIT").ok(),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field(&cpuinfo, "model name"),
            cpus: thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_mib: memory_kib / 1024,
            virtual_machine: field(&cpuinfo, "flags").split(' ').any(|flag| flag == "hypervisor"),
            versions: PROGRAMS.iter().filter_map(|&(name, arguments)| version(name, arguments)).collect(),
            settings: settings.map(|(path, value)| (path.to_owned(), value.trim().to_owned())).collect(),
        }
    }

    /// Returns a sentence about it.
    pub fn sentence(&self) -> String {
        let kind = if self.virtual_machine { "a virtual machine" } else { "a machine" };
        format!("{kind} with {} processors ({}) and Linux {}", self.cpus, self.cpu, self.kernel)
    }
}

fn version(name: &str, arguments: &[&str]) -> Option<(String, String)> {
    let program = if name == "lb-user" { std::env::var("LB_BIN").ok()? } else { name.to_owned() };
    let output = Command::new(program).args(arguments).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let line =
        String::from_utf8_lossy(&said).lines().find(|line| line.contains(|c: char| c.is_ascii_digit()))?.to_owned();
    Some((name.to_owned(), line.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::options::folder_name;

    #[test]
    fn the_folder_of_a_run_has_its_time() {
        assert_eq!(folder_name(UNIX_EPOCH + Duration::from_secs(1_780_000_000)), "2026-05-28-202640");
    }

    #[test]
    fn this_machine_has_processors_and_a_kernel() {
        let machine = Machine::look(SystemTime::now());

        assert!(machine.cpus > 0 && machine.memory_mib > 0 && !machine.kernel.is_empty());
    }
}
