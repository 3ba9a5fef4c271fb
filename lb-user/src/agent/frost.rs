//! Freezing and thawing, performed: by the containers' control groups, with the watchdog beside whatever sleeps in a slot.

use std::collections::BTreeMap;

use lb_ebpf::abi::Wake;

use super::{Agent, chain};
use crate::{
    config::ServiceName,
    control::{BackendState, ContainerId, Event},
    datapath::report::ServiceReport,
    freezer::Freezer,
    provider::Process,
};

/// Why a container is not frozen whose control group is not known.
const UNKNOWN: &str = "its control group is not known, or not on this host";

impl Agent {
    /// Takes note of a container's first process. One that is frozen although nobody wants that, as a former agent has left
    /// it, is thawed, unless the engine has paused it: then it is the engine's.
    pub(super) fn on_process(&mut self, id: ContainerId, Process { pid, is_paused }: Process) {
        self.container_cpu.follow(id.clone(), pid);
        let Some(freezer) = Freezer::of(pid) else { return };
        if freezer.is_asked() && !is_paused && !self.is_cold(&id) {
            match freezer.thaw() {
                Ok(()) => tracing::info!("{id}: a former agent has left it frozen, and it is thawed"),
                Err(error) => tracing::error!("{id}: {}", chain(&error)),
            }
        }
        self.freezers.insert(id, freezer);
    }

    /// Whether a controller has had it frozen.
    fn is_cold(&self, id: &ContainerId) -> bool {
        let now = self.now();
        let of = |service: &super::Service| service.controller.snapshot(now).backends;
        let is_it = |backend: &crate::control::BackendReport| backend.id == *id && is_cold(backend.state);
        self.services.values().any(|service| of(service).iter().any(is_it))
    }

    /// Returns what of these may be frozen, for the report.
    pub(super) fn frozen(&self, services: &[ServiceReport]) -> BTreeMap<ContainerId, Freezer> {
        let backends = services.iter().flat_map(|service| &service.control.backends);
        let cold = backends.filter(|backend| is_cold(backend.state));
        cold.filter_map(|backend| Some((backend.id.clone(), self.freezers.get(&backend.id)?.clone()))).collect()
    }

    /// Freezes a container: it is reported before that, and the watchdog knows of it if it has a slot.
    pub(super) fn freeze(&mut self, name: &ServiceName, id: ContainerId) -> Vec<Event> {
        let Some(freezer) = self.freezers.get(&id).cloned() else {
            return vec![Event::FreezeFailed { id, error: UNKNOWN.into() }];
        };
        if self.datapath.registry.in_slots(name.as_str()).contains(&id)
            && let Err(error) = self.watchdog.hold(&freezer)
        {
            return vec![Event::FreezeFailed { id, error: format!("start the watchdog: {error}") }];
        }
        // Should the agent die from here on, the next one, `status` and `detach` know what may be frozen.
        self.report();
        if let Err(error) = freezer.freeze() {
            return vec![Event::FreezeFailed { id, error: chain(&error) }];
        }
        self.beside(name, async move {
            match freezer.settled().await {
                Ok(()) => Event::Frozen { id },
                Err(error) => Event::FreezeFailed { id, error: chain(&error) },
            }
        });
        Vec::new()
    }

    /// Thaws a container, at once.
    pub(super) fn thaw(&mut self, id: ContainerId) -> Vec<Event> {
        let Some(freezer) = self.freezers.get(&id) else {
            return vec![Event::Thawed { id }];
        };
        match freezer.thaw() {
            Ok(()) => {
                self.watchdog.release(freezer);
                vec![Event::Thawed { id }]
            }
            Err(error) => vec![Event::ThawFailed { id, error: chain(&error) }],
        }
    }

    /// Takes note that the engine has paused a container: it is the engine's to thaw.
    pub(super) fn on_paused(&mut self, id: &ContainerId) {
        if let Some(freezer) = self.freezers.get(id) {
            self.watchdog.release(freezer);
        }
    }

    /// Tells services of their backends to which somebody has come.
    pub(super) fn on_wakes(&self, wakes: Vec<Wake>) -> Vec<(ServiceName, Event)> {
        let registry = &self.datapath.registry;
        let woken = wakes.into_iter().filter_map(|wake| {
            let backend = registry.backend(wake.backend, wake.generation)?;
            let name = self.services.keys().find(|name| name.as_str() == backend.service)?;
            Some((name.clone(), Event::Woken { id: backend.container.clone() }))
        });
        woken.collect()
    }

    /// Keeps the watchdog alive, and forgets containers that have ended.
    pub(super) fn look_after_frost(&mut self) {
        self.freezers.retain(|_, freezer| !freezer.is_gone());
        if let Err(error) = self.watchdog.beat() {
            tracing::error!("start the watchdog: {error}; tried again in a moment");
        }
    }
}

fn is_cold(state: BackendState) -> bool {
    match state {
        BackendState::Idle | BackendState::Warm => true,
        BackendState::Starting
        | BackendState::Ready
        | BackendState::Unhealthy
        | BackendState::Draining
        | BackendState::Stopping
        | BackendState::Dead => false,
    }
}
