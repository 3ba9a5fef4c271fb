//! Where demand is measured: one file for each kind. Live connections are counted by the sweep
//! ([`Census`](crate::datapath::sweep::Census)), which walks the tables anyway.

use crate::control::CpuLoad;

pub mod arrivals;
pub mod cgroup;
pub mod container_cpu;
pub mod growth;
pub mod host_cpu;
pub mod latency;
pub mod pressure;
pub mod repeats;

/// Measures a load.
pub trait LoadSource {
    /// Returns the name shown to people.
    fn name(&self) -> &'static str;

    /// Returns the load since the last call; `None` while there is nothing to compare with.
    ///
    /// # Errors
    /// [`LoadError`] if the system does not tell.
    fn sample(&mut self) -> Result<Option<CpuLoad>, LoadError>;
}

/// Why a load could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The system shows no processors, or nonsense.
    #[error("the system does not tell its CPU load")]
    Unavailable,
}
