//! Where a process's control group tells of itself: either version, and either way in which engines name groups.
//!
//! A group is found through `/proc/PID/cgroup` and the table of mounts, never by its name: with systemd it is
//! `system.slice/docker-ID.scope`, without it `docker/ID`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The files of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    counter: Counter,
    limit: Limit,
    pressure: Option<PathBuf>,
}

/// Where a control group tells how much CPU its processes have used.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Counter {
    /// `cpuacct.usage` of version 1: nanoseconds.
    Nanoseconds(PathBuf),
    /// `cpu.stat` of version 2: a line `usage_usec`, microseconds.
    Stat(PathBuf),
}

/// Where it tells how much they may use.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Limit {
    /// `cpu.cfs_quota_us` and `cpu.cfs_period_us` of version 1.
    Quota(PathBuf, PathBuf),
    /// `cpu.max` of version 2: a quota or `max`, and a period.
    Max(PathBuf),
    /// Nowhere.
    Unknown,
}

impl Group {
    /// Finds the group of a process; nothing if it has none of its own.
    pub fn of(pid: u32) -> Option<Self> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Self::find(&groups, &mounts)
    }

    /// Finds a group in `/proc/PID/cgroup` (cgroups(7)) and a table of mounts (fstab(5)). Where both versions are mounted,
    /// the one that accounts for the CPU counts.
    pub fn find(groups: &str, mounts: &str) -> Option<Self> {
        let folder = |controller: &str| {
            let (group, mount) = (group_with(groups, controller)?, mount_of(mounts, "cgroup", Some(controller))?);
            below(mount, group)
        };
        if group_with(groups, "cpuacct").is_some() && mount_of(mounts, "cgroup", Some("cpuacct")).is_some() {
            let limit = folder("cpu").map_or(Limit::Unknown, |folder| {
                Limit::Quota(folder.join("cpu.cfs_quota_us"), folder.join("cpu.cfs_period_us"))
            });
            let counter = Counter::Nanoseconds(folder("cpuacct")?.join("cpuacct.usage"));
            return Some(Self { counter, limit, pressure: None });
        }
        let folder = below(mount_of(mounts, "cgroup2", None)?, group_with(groups, "")?)?;
        Some(Self {
            counter: Counter::Stat(folder.join("cpu.stat")),
            limit: Limit::Max(folder.join("cpu.max")),
            pressure: Some(folder.join("cpu.pressure")),
        })
    }

    /// Returns the CPU time used; nothing if the group has ended.
    pub fn used(&self) -> Option<Duration> {
        match &self.counter {
            Counter::Nanoseconds(path) => fs::read_to_string(path).ok()?.trim().parse().ok().map(Duration::from_nanos),
            Counter::Stat(path) => usage_in(&fs::read_to_string(path).ok()?),
        }
    }

    /// Returns how many processors it may use; nothing if that is not limited.
    pub fn limit(&self) -> Option<f64> {
        let read = |path: &Path| fs::read_to_string(path).ok();
        match &self.limit {
            Limit::Quota(quota, period) => quota_of(read(quota)?.trim(), read(period)?.trim()),
            Limit::Max(path) => {
                let text = read(path)?;
                let (quota, period) = text.trim().split_once(' ')?;
                quota_of(quota, period)
            }
            Limit::Unknown => None,
        }
    }

    /// Returns the time in which one of its tasks waited for a processor; nothing where the kernel does not tell.
    pub fn waited(&self) -> Option<Duration> {
        waited_in(&fs::read_to_string(self.pressure.as_ref()?).ok()?)
    }
}

/// Returns the group of a controller, in `/proc/PID/cgroup`.
pub(crate) fn group_with<'a>(groups: &'a str, controller: &str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        controllers.split(',').any(|one| one == controller).then_some(path)
    })
}

/// Returns where control groups of a kind, with an option, are mounted.
pub(crate) fn mount_of<'a>(mounts: &'a str, kind: &str, option: Option<&str>) -> Option<&'a Path> {
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let (path, found, options) = (fields.get(1)?, fields.get(2)?, fields.get(3)?);
        let has = option.is_none_or(|option| options.split(',').any(|one| one == option));
        (*found == kind && has).then_some(Path::new(*path))
    })
}

/// A container shares the root group, or none, only if it is no container of its own.
pub(crate) fn below(mount: &Path, group: &str) -> Option<PathBuf> {
    let group = group.trim_start_matches('/');
    (!group.is_empty()).then(|| mount.join(group))
}

/// Reads a version 2 `cpu.stat`.
fn usage_in(stat: &str) -> Option<Duration> {
    stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok().map(Duration::from_micros))
}

/// Returns how many processors a quota of a period is; a negative one, or `max`, is none.
fn quota_of(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// Reads pressure stall information (kernel, `Documentation/accounting/psi.rst`): the total of `some`, microseconds.
pub fn waited_in(pressure: &str) -> Option<Duration> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split(' ').find_map(|field| field.strip_prefix("total="))?;
    total.trim().parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_in_either_version_and_under_either_name() {
        let hybrid_mounts = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n\
                             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let hybrid = "4:memory:/x\n3:cpu,cpuacct:/docker/a1\n0::/docker/a1\n";
        let folder = Path::new("/sys/fs/cgroup/cpu,cpuacct/docker/a1");
        assert_eq!(
            Group::find(hybrid, hybrid_mounts),
            Some(Group {
                counter: Counter::Nanoseconds(folder.join("cpuacct.usage")),
                limit: Limit::Quota(folder.join("cpu.cfs_quota_us"), folder.join("cpu.cfs_period_us")),
                pressure: None,
            })
        );

        let separate_mounts =
            "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /sys/fs/cgroup/cpuacct cgroup rw,cpuacct 0 0\n";
        let separate = Group::find("3:cpu:/docker/a1\n2:cpuacct:/docker/a1\n", separate_mounts).unwrap();
        assert_eq!(separate.counter, Counter::Nanoseconds("/sys/fs/cgroup/cpuacct/docker/a1/cpuacct.usage".into()));

        let folder = Path::new("/sys/fs/cgroup/system.slice/docker-a1.scope");
        assert_eq!(
            Group::find("0::/system.slice/docker-a1.scope\n", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"),
            Some(Group {
                counter: Counter::Stat(folder.join("cpu.stat")),
                limit: Limit::Max(folder.join("cpu.max")),
                pressure: Some(folder.join("cpu.pressure")),
            })
        );
    }

    #[test]
    fn what_is_no_group_of_its_own_is_none() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        for groups in ["", "0::/\n", "nonsense", "3:cpuacct:/docker/a1\n"] {
            assert_eq!(Group::find(groups, mounts), None, "{groups:?}");
        }
    }

    #[test]
    fn the_files_are_read() {
        assert_eq!(usage_in("usage_usec 1500\nuser_usec 1000\n"), Some(Duration::from_micros(1500)));
        assert_eq!(usage_in("user_usec 1000\n"), None);
        assert_eq!(quota_of("50000", "100000"), Some(0.5));
        assert_eq!((quota_of("max", "100000"), quota_of("-1", "100000"), quota_of("1", "0")), (None, None, None));
        let pressure = "some avg10=35.77 avg60=42.43 avg300=20.02 total=89290099\nfull avg10=0.00 avg60=0.00 total=7\n";
        assert_eq!(waited_in(pressure), Some(Duration::from_micros(89_290_099)));
        assert_eq!(waited_in("full total=7\n"), None);
    }

    #[test]
    fn files_of_both_versions_in_a_folder_are_read_from_there() {
        let folder = std::env::temp_dir().join(format!("lb-cgroup-{}", std::process::id()));
        fs::create_dir_all(folder.join("a1")).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join("a1").join(name), text).unwrap();
        write("cpu.stat", "usage_usec 2000000\n");
        write("cpu.max", "150000 100000\n");
        write("cpu.pressure", "some avg10=0.00 total=5\n");
        write("cpuacct.usage", "3000000000\n");
        write("cpu.cfs_quota_us", "-1\n");
        write("cpu.cfs_period_us", "100000\n");

        let second = Group::find("0::/a1\n", &format!("cgroup2 {} cgroup2 rw 0 0\n", folder.display())).unwrap();
        let mounts = format!("cgroup {} cgroup rw,cpu,cpuacct 0 0\n", folder.display());
        let first = Group::find("3:cpu,cpuacct:/a1\n", &mounts).unwrap();

        let seconds = |group: &Group| group.used().map(|used| used.as_secs());
        assert_eq!(
            (seconds(&second), second.limit(), second.waited()),
            (Some(2), Some(1.5), Some(Duration::from_micros(5)))
        );
        assert_eq!((seconds(&first), first.limit(), first.waited()), (Some(3), None, None));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(second.used(), None, "it has ended");
    }
}
