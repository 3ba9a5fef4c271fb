//! The CPU that each container uses, read from its control group: 30 µs a container, where the engine's own statistics
//! take a second.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::cgroup::Group;
use crate::control::{ContainerId, CpuUsed};

/// How often limits are read again: they change by hand only (`docker update --cpus`).
const LIMITS: Duration = Duration::from_secs(30);

/// The CPU of the containers that are followed.
#[derive(Debug, Default)]
pub struct ContainerCpu {
    of: BTreeMap<ContainerId, Followed>,
}

#[derive(Debug)]
struct Followed {
    group: Group,
    last: Option<(Instant, Duration)>,
    cores: Option<f64>,
    limit: Option<f64>,
    limit_read: Instant,
}

impl ContainerCpu {
    /// Returns whether a container is followed.
    pub fn follows(&self, id: &ContainerId) -> bool {
        self.of.contains_key(id)
    }

    /// Follows a container by the process id of its first process on this host. One without a control group of its own
    /// that tells its CPU is not followed.
    pub fn follow(&mut self, id: ContainerId, pid: u32) {
        if let Some(group) = Group::of(pid) {
            let (limit, limit_read) = (group.limit(), Instant::now());
            self.of.insert(id, Followed { group, last: None, cores: None, limit, limit_read });
        }
    }

    /// Measures all of them; what has ended is followed no longer.
    pub fn sample(&mut self) {
        self.of.retain(|_, followed| {
            let Some(used) = followed.group.used() else { return false };
            let now = Instant::now();
            if let Some((then, before)) = followed.last.replace((now, used)) {
                followed.cores = share(used.saturating_sub(before), now - then);
            }
            if now - followed.limit_read >= LIMITS {
                (followed.limit, followed.limit_read) = (followed.group.limit(), now);
            }
            true
        });
    }

    /// Returns what a container used between the last two samples; nothing if it was sampled once.
    pub fn used(&self, id: &ContainerId) -> Option<CpuUsed> {
        let followed = self.of.get(id)?;
        Some(CpuUsed { cores: followed.cores?, quota: followed.limit })
    }

    /// Returns the groups that are followed.
    pub fn groups(&self) -> impl Iterator<Item = (&ContainerId, &Group)> {
        self.of.iter().map(|(id, followed)| (id, &followed.group))
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

/// Returns how many processors were used; nothing if no time has passed.
fn share(used: Duration, elapsed: Duration) -> Option<f64> {
    (!elapsed.is_zero()).then(|| used.as_secs_f64() / elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_processors_over_time() {
        let second = Duration::from_secs(1);

        assert_eq!(share(second / 2, second), Some(0.5));
        assert_eq!(share(second, Duration::ZERO), None);
    }
}
