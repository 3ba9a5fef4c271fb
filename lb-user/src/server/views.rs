//! What is read without the agent's loop: the pinned maps tell it to anybody, so the loop need not.

use crate::{
    config::suppose::Supposition,
    status::{
        explain::{self, ExplainError},
        read::{self, StatusError},
    },
};

/// What can be read of an instance.
pub trait Views: Send + Sync + 'static {
    /// Returns the document of `status --json`.
    ///
    /// # Errors
    /// What keeps it from being read.
    fn status(&self) -> Result<String, StatusError>;

    /// Returns the document of `explain --json`.
    ///
    /// # Errors
    /// What keeps it from being read, or from being explained.
    fn explain(&self, service: Option<&str>, suppositions: &[Supposition]) -> Result<String, ExplainError>;
}

/// An instance, by its name.
#[derive(Clone, Debug)]
pub struct Instance(pub String);

impl Views for Instance {
    fn status(&self) -> Result<String, StatusError> {
        Ok(read::read(&self.0)?.json())
    }

    fn explain(&self, service: Option<&str>, suppositions: &[Supposition]) -> Result<String, ExplainError> {
        explain::document(&self.0, service, suppositions)
    }
}
