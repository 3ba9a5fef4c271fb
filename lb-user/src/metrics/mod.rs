//! Where the load comes from: one file for each kind.

use crate::control::CpuLoad;

pub mod container_cpu;
pub mod host_cpu;

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
