//! A death that is told twice: at once by the kernel, which knows that a process has ended, and a moment later by the
//! engine, which knows how.
//!
//! The first telling takes the backend out of service; the second one is recorded, and counts for the brake on starts. Until
//! then nothing is started in place of a container that did not live, as it may have been killed, or may do the same again.
//! An engine that tells nothing is not waited for: after [`PATIENCE`] the container was found ended.

use std::time::Duration;

use super::backend::{Backend, State};
use super::crash_loop::SHORT_LIFE;
use super::event::{ContainerId, GoneCause};
use super::retry::Errand;
use super::time::Timestamp;
use super::{Controller, REMOVE_DELAY};

/// How long the engine is waited for to tell how a container has ended. It is shorter than the time that passes before
/// what is left of it is removed.
const PATIENCE: Duration = Duration::from_millis(1_500);
const _: () = assert!(PATIENCE.as_millis() < REMOVE_DELAY.as_millis());

/// What is kept of a backend that has ended until it is told how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Untold {
    /// How long that is waited for.
    pub until: Timestamp,
    /// Whether it did not live.
    pub short: bool,
}

impl Backend {
    /// Whether it did not live.
    pub fn is_short_lived(&self, now: Timestamp) -> bool {
        self.life(now).is_none_or(|life| life < SHORT_LIFE)
    }
}

impl Controller {
    /// Takes a backend out of service whose process has ended.
    pub(super) fn ended(&mut self, id: &ContainerId, now: Timestamp) {
        let is_auto = self.is_auto();
        let Some(backend) = self.backends.get_mut(id) else { return };
        match backend.state {
            State::Starting | State::Ready | State::Warm | State::Unhealthy | State::Draining(_) => {
                let counts = backend.is_active() || backend.state == State::Warm;
                let short = backend.is_short_lived(now);
                backend.held = super::Held::Nothing;
                backend.last_error = Some(GoneCause::Ended.to_string());
                backend.enter(State::Dead(Errand::new(now + REMOVE_DELAY)), now);
                if counts {
                    backend.untold = Some(Untold { until: now + PATIENCE, short });
                } else if !is_auto {
                    self.forget(id);
                }
            }
            // Its stop is under way, and its answer to come.
            State::Stopping(_) => backend.held = super::Held::Nothing,
            State::Dead(_) => {}
        }
    }

    /// Returns whether it is still to be told how a backend has ended.
    pub(super) fn is_untold(&self, id: &ContainerId) -> bool {
        self.backends.get(id).is_some_and(|backend| backend.untold.is_some())
    }

    /// Returns whether starts have to wait until it is told how a container has ended that did not live.
    pub(super) fn is_to_be_told(&self) -> bool {
        self.backends.values().any(|backend| backend.untold.is_some_and(|untold| untold.short))
    }

    /// Waits no longer for who does not tell.
    pub(super) fn expire_untold(&mut self, now: Timestamp) {
        let overdue: Vec<ContainerId> = self
            .backends
            .values()
            .filter(|backend| backend.untold.is_some_and(|untold| untold.until <= now))
            .map(|backend| backend.id.clone())
            .collect();
        for id in overdue {
            self.gone(&id, GoneCause::FOUND_ENDED, now);
        }
    }
}
