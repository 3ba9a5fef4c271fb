//! The CPU that each container uses, read from its control group: 30 µs a container, where the engine's own statistics
//! take a second.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::control::ContainerId;

/// The CPU of the containers that are followed.
#[derive(Debug, Default)]
pub struct ContainerCpu {
    of: BTreeMap<ContainerId, Followed>,
}

#[derive(Debug)]
struct Followed {
    counter: Counter,
    last: Option<(Instant, Duration)>,
    cores: Option<f64>,
}

/// Where a control group tells how much CPU its processes have used.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Counter {
    /// `cpuacct.usage` of version 1: nanoseconds.
    Nanoseconds(PathBuf),
    /// `cpu.stat` of version 2: a line `usage_usec`, microseconds.
    Stat(PathBuf),
}

impl ContainerCpu {
    /// Returns whether a container is followed.
    pub fn follows(&self, id: &ContainerId) -> bool {
        self.of.contains_key(id)
    }

    /// Follows a container by the process id of its first process on this host. One without a control group of its own
    /// that tells its CPU is not followed.
    pub fn follow(&mut self, id: ContainerId, pid: u32) {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if let Some(counter) = counter_of(&groups, &mounts) {
            self.of.insert(id, Followed { counter, last: None, cores: None });
        }
    }

    /// Measures all of them; what has ended is followed no longer.
    pub fn sample(&mut self) {
        self.of.retain(|_, followed| {
            let Some(used) = followed.counter.read() else { return false };
            let now = Instant::now();
            if let Some((then, before)) = followed.last.replace((now, used)) {
                followed.cores = share(used.saturating_sub(before), now - then);
            }
            true
        });
    }

    /// Returns how much of the host's CPU each container used between the last two samples, in percent; one that was
    /// sampled once is missing.
    pub fn percent_of_host(&self) -> BTreeMap<ContainerId, f64> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let measured = |(id, followed): (&ContainerId, &Followed)| {
            followed.cores.map(|cores| (id.clone(), (cores / processors * 100.0).clamp(0.0, 100.0)))
        };
        self.of.iter().filter_map(measured).collect()
    }
}

impl Counter {
    fn read(&self) -> Option<Duration> {
        match self {
            Self::Nanoseconds(path) => fs::read_to_string(path).ok()?.trim().parse().ok().map(Duration::from_nanos),
            Self::Stat(path) => usage_in(&fs::read_to_string(path).ok()?),
        }
    }
}

/// Reads a version 2 `cpu.stat`.
fn usage_in(stat: &str) -> Option<Duration> {
    stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok().map(Duration::from_micros))
}

/// Returns how many processors were used; nothing if no time has passed.
fn share(used: Duration, elapsed: Duration) -> Option<f64> {
    (!elapsed.is_zero()).then(|| used.as_secs_f64() / elapsed.as_secs_f64())
}

/// Finds a process's counter in `/proc/PID/cgroup` (cgroups(7)) and a table of mounts (fstab(5)). Where both versions of
/// control groups are mounted, the one that accounts for the CPU counts.
fn counter_of(groups: &str, mounts: &str) -> Option<Counter> {
    let group_with = |controller: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            controllers.split(',').any(|one| one == controller).then_some(path)
        })
    };
    let mount_of = |kind: &str, option: Option<&str>| {
        mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let (path, found, options) = (fields.get(1)?, fields.get(2)?, fields.get(3)?);
            let has = option.is_none_or(|option| options.split(',').any(|one| one == option));
            (*found == kind && has).then_some(Path::new(*path))
        })
    };
    // A container shares the root group, or none, only if it is no container of its own.
    let below = |mount: &Path, group: &str| {
        let group = group.trim_start_matches('/');
        (!group.is_empty()).then(|| mount.join(group))
    };
    if let (Some(group), Some(mount)) = (group_with("cpuacct"), mount_of("cgroup", Some("cpuacct"))) {
        return below(mount, group).map(|folder| Counter::Nanoseconds(folder.join("cpuacct.usage")));
    }
    let (group, mount) = (group_with("")?, mount_of("cgroup2", None)?);
    below(mount, group).map(|folder| Counter::Stat(folder.join("cpu.stat")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_in_either_version() {
        let hybrid_mounts = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n\
                             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let hybrid = "4:memory:/x\n3:cpu,cpuacct:/docker/a1\n0::/docker/a1\n";
        assert_eq!(
            counter_of(hybrid, hybrid_mounts),
            Some(Counter::Nanoseconds("/sys/fs/cgroup/cpu,cpuacct/docker/a1/cpuacct.usage".into()))
        );

        let unified = "0::/system.slice/docker-a1.scope\n";
        assert_eq!(
            counter_of(unified, "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"),
            Some(Counter::Stat("/sys/fs/cgroup/system.slice/docker-a1.scope/cpu.stat".into()))
        );
    }

    #[test]
    fn what_is_no_group_of_its_own_is_not_followed() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        for groups in ["", "0::/\n", "nonsense", "3:cpuacct:/docker/a1\n"] {
            assert_eq!(counter_of(groups, mounts), None, "{groups:?}");
        }
    }

    #[test]
    fn the_statistics_of_version_2_are_read() {
        assert_eq!(usage_in("usage_usec 1500\nuser_usec 1000\n"), Some(Duration::from_micros(1500)));
        assert_eq!(usage_in("user_usec 1000\n"), None);
    }

    #[test]
    fn a_share_is_processors_over_time() {
        let second = Duration::from_secs(1);

        assert_eq!(share(second / 2, second), Some(0.5));
        assert_eq!(share(second, Duration::ZERO), None);
    }
}
