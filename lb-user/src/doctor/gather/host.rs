//! What stands in files of the kernel: proc(5), sysctl(8), capabilities(7), getrlimit(2).

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::parent_id},
    path::Path,
    thread,
};

use super::search_path;
use crate::{
    config::Family,
    doctor::facts::{Host, Sight},
};

/// What an agent needs of root's powers, by their bits. `CAP_SYS_ADMIN` includes `CAP_BPF` and `CAP_PERFMON`, and is needed
/// to mount file systems.
///
/// # Source
/// include/uapi/linux/capability.h
const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");

/// The inode of the first control group namespace: `PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h.
const FIRST_CGROUP_NAMESPACE: u64 = 0xefff_fffb;

/// Looks at the machine.
pub fn look() -> Host {
    let forwards = |path: &str| match word(path).as_str() {
        "" => None,
        value => Some(value != "0"),
    };
    Host {
        processors: thread::available_parallelism().map_or(1, usize::from),
        memory_available: available_in(&text("/proc/meminfo")),
        open_files: open_files_in(&text("/proc/self/limits")),
        tells_pressure: fs::read("/proc/pressure/cpu").is_ok(),
        forwards: [
            (Family::V4, forwards("/proc/sys/net/ipv4/ip_forward")),
            (Family::V6, forwards("/proc/sys/net/ipv6/conf/all/forwarding")),
        ],
        local_ports: range_in(&text("/proc/sys/net/ipv4/ip_local_port_range")),
        reserved_ports: word("/proc/sys/net/ipv4/ip_local_reserved_ports"),
    }
}

/// Returns the text of a file, without space around it; nothing if it cannot be read.
pub fn word(path: &str) -> String {
    text(path).trim().to_owned()
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Returns what this process lacks of what an agent needs.
pub fn lacking_capabilities() -> Vec<&'static str> {
    lacking_in(&text("/proc/self/status"))
}

fn lacking_in(status: &str) -> Vec<&'static str> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(set) = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()) else { return Vec::new() };
    [NET_ADMIN, SYS_ADMIN].into_iter().filter(|(bit, _)| set >> bit & 1 == 0).map(|(_, name)| name).collect()
}

/// Returns whether a program is where programs are looked for.
pub fn has_program(name: &str) -> bool {
    search_path().iter().any(|folder| folder.join(name).is_file())
}

/// Returns whether what is mounted here is seen by the machine's first process; or, where that is not shown, by the process
/// that has started this one.
pub fn shares_mounts() -> Sight<bool> {
    let namespace = |process: &str| fs::metadata(format!("/proc/{process}/ns/mnt")).map(|found| found.ino());
    let other = namespace("1").or_else(|error| namespace(&parent_id().to_string()).map_err(|_| error));
    match (other, namespace("self")) {
        (Ok(other), Ok(own)) => Sight::Seen(other == own),
        (Err(error), _) if error.kind() == std::io::ErrorKind::PermissionDenied => Sight::NeedsRoot,
        (Err(error), _) | (_, Err(error)) => Sight::Unclear(error.to_string()),
    }
}

/// Returns whether the kernel has unified control groups.
pub fn has_cgroup2() -> bool {
    text("/proc/filesystems").lines().any(|line| line.split_whitespace().last() == Some("cgroup2"))
}

/// Returns whether this process is in the first control group namespace.
pub fn sees_all_cgroups() -> bool {
    // A kernel without such namespaces has one.
    !Path::new("/proc/self/ns/cgroup").exists()
        || fs::metadata("/proc/self/ns/cgroup").is_ok_and(|found| found.ino() == FIRST_CGROUP_NAMESPACE)
}

/// Finds the mode of lockdown that holds, which stands in brackets.
pub fn lockdown_in(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

fn available_in(memory: &str) -> Option<u64> {
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn open_files_in(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn range_in(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        assert_eq!(lockdown_in("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(lockdown_in(""), None);
        assert_eq!(available_in("MemFree: 1 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(available_in("MemFree: 1 kB\n"), None);
        let limits =
            "Limit    Soft Limit  Hard Limit  Units\nMax open files            1024                 4096      files\n";
        assert_eq!(open_files_in(limits), Some(1024));
        assert_eq!(open_files_in("Max open files   unlimited  unlimited  files\n"), None);
        assert_eq!(range_in("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(range_in(""), None);
    }

    #[test]
    fn what_root_lacks_in_a_container_is_told() {
        assert_eq!(lacking_in("CapEff:\t00000000a80425fb\n"), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"], "Docker's default");
        assert_eq!(lacking_in("CapEff:\t000001ffffffffff\n"), [""; 0]);
        assert_eq!(lacking_in("CapEff:\t0000000000201000\n"), [""; 0]);
        assert_eq!(lacking_in(""), [""; 0], "what is not told is not lacking");
    }

    #[test]
    fn this_machine_is_seen() {
        let host = look();

        assert!(host.processors > 0 && host.memory_available > Some(0), "{host:?}");
        assert!(has_program("sh") && !has_program("no such program"));
        assert!(!word("/proc/sys/kernel/osrelease").is_empty() && word("/nonexistent").is_empty());
    }
}
