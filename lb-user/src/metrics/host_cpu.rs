//! The CPU load of the whole host, whoever causes it: the measure of the set-up that this project replaces.

use sysinfo::{CpuRefreshKind, RefreshKind, System};

use super::{LoadError, LoadSource};
use crate::control::CpuLoad;

/// The whole host's CPU.
#[derive(Debug)]
pub struct HostCpu {
    system: System,
    has_base: bool,
}

impl HostCpu {
    /// Opens the source; the first sample has nothing to compare with.
    ///
    /// # Errors
    /// [`LoadError::Unavailable`] where the system tells nothing.
    pub fn new() -> Result<Self, LoadError> {
        let kinds = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing().with_usage());
        let system = System::new_with_specifics(kinds).map_err(|_| LoadError::Unavailable)?;
        Ok(Self { system, has_base: false })
    }

    /// Returns how many processors there are.
    pub fn processors(&self) -> usize {
        self.system.cpus().len().max(1)
    }
}

impl LoadSource for HostCpu {
    fn name(&self) -> &'static str {
        "host-cpu"
    }

    /// The caller leaves at least [`sysinfo::MINIMUM_CPU_UPDATE_INTERVAL`] (200 ms) between calls.
    fn sample(&mut self) -> Result<Option<CpuLoad>, LoadError> {
        self.system.refresh_cpu_usage();
        if self.system.cpus().is_empty() {
            return Err(LoadError::Unavailable);
        }
        if !std::mem::replace(&mut self.has_base, true) {
            return Ok(None);
        }
        CpuLoad::from_percent(f64::from(self.system.global_cpu_usage())).map(Some).ok_or(LoadError::Unavailable)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_second_sample_is_a_load() {
        let mut source = HostCpu::new().unwrap();

        assert_eq!(source.sample().unwrap(), None);
        std::thread::sleep(sysinfo::MINIMUM_CPU_UPDATE_INTERVAL + Duration::from_millis(50));

        assert!(source.sample().unwrap().is_some());
    }
}
