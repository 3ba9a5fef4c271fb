//! What becomes of backends, told as it happens: each change of a state, with why where something went wrong.

use super::Controller;
use super::backend::{Backend, BackendState};
use super::event::{BackendName, ContainerId};

/// A backend's change from one state to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which backend.
    pub id: ContainerId,
    /// Its name.
    pub name: BackendName,
    /// What it was; nothing if it was not known.
    pub from: Option<BackendState>,
    /// What it is; nothing if it is gone.
    pub to: Option<BackendState>,
    /// What went wrong with it, if that is known.
    pub error: Option<String>,
}

impl Controller {
    /// Returns what has become of backends since the last call, in the order in which it did.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Returns how many backends are in a state.
    pub fn count(&self, state: BackendState) -> usize {
        self.backends.values().filter(|backend| backend.summary() == state).count()
    }

    /// Notes the states that differ from those that were told last.
    pub(super) fn note_changes(&mut self) {
        for backend in self.backends.values_mut() {
            let (from, to) = (backend.told, Some(backend.summary()));
            // One that was only started has no name yet.
            let is_nameless = from.is_none() && !backend.sighted && to == Some(BackendState::Starting);
            if from != to && !is_nameless {
                backend.told = to;
                self.changes.push(change(backend, from, to));
            }
        }
    }

    /// Notes that a backend is gone.
    pub(super) fn note_end(&mut self, backend: &Backend) {
        if backend.told.is_some() {
            self.changes.push(change(backend, backend.told, None));
        }
    }
}

fn change(backend: &Backend, from: Option<BackendState>, to: Option<BackendState>) -> Change {
    Change { id: backend.id.clone(), name: backend.name.clone(), from, to, error: backend.error() }
}
