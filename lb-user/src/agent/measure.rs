//! What is measured for services that scale by demand, once a tick.

use std::collections::{BTreeMap, BTreeSet};

use lb_ebpf::abi::Handshakes;

use super::{Agent, chain};
use crate::{
    config::{Following, ServiceName, Source},
    control::{
        BackendState, CpuLoad, CpuUsed, Event, Measures,
        law::{HostUse, Targets},
    },
    datapath::{Datapath, DatapathError, report},
    metrics::{arrivals::Arrivals, growth::Key, latency::Latency, repeats::Repeats},
};

/// What a service's counters were at the last tick.
#[derive(Debug, Default)]
pub struct Meters {
    arrivals: Arrivals,
    latency: Latency,
    repeats: Repeats,
}

/// What the kernel has counted for each backend of a service, by id and generation.
#[derive(Default)]
struct Counted {
    connections: BTreeMap<Key, u64>,
    handshakes: BTreeMap<Key, Handshakes>,
}

impl Agent {
    /// Measures the demand for every service that scales by it, or sleeps without it. The containers' CPU was sampled a moment ago, and so was
    /// the load of the host if it is known.
    pub(super) fn measure(&mut self, load: Option<CpuLoad>) -> Vec<(ServiceName, Event)> {
        let by_demand = |source: &Source| match source {
            Source::Docker(docker) => match &docker.scaling.following {
                Following::Demand(targets) => Some(**targets),
                // Whether anybody comes, though the law does not ask.
                Following::HostCpu(_) => (docker.scaling.min == 0).then(Targets::default),
            },
            Source::Static { .. } | Source::Discovered(_) => None,
        };
        let scaled =
            |service: &super::Service| Some(by_demand(&service.config.source)?).filter(|_| !service.is_removed);
        let services: Vec<_> =
            self.services.iter().filter_map(|(name, service)| Some((name.clone(), scaled(service)?))).collect();
        if services.iter().any(|(_, targets)| targets.pressure.is_some()) {
            self.pressure.sample(self.container_cpu.groups());
        }
        let processors = self.host_cpu.processors() as f64;
        let host = Some(HostUse { processors, busy: load.map(|load| load.share() * processors) });
        let mut events = Vec::new();
        for (name, targets) in services {
            let counted = match self.counted(&name, targets.metrics().next().is_some()) {
                Ok(counted) => Some(counted),
                Err(error) => {
                    tracing::debug!("count the connections of {name}: {}", chain(&error));
                    None
                }
            };
            let now = self.now();
            let Some(service) = self.services.get_mut(&name) else { continue };
            let backends = service.controller.snapshot(now).backends;
            let cpu: BTreeMap<_, CpuUsed> = backends
                .iter()
                .filter_map(|backend| Some((backend.id.clone(), self.container_cpu.used(&backend.id)?)))
                .collect();
            // Those that start or stop wait for other reasons than too many clients.
            let ready = backends.iter().filter(|backend| backend.state == BackendState::Ready);
            let ready: BTreeSet<_> = ready.map(|backend| &backend.id).collect();
            let pressure = targets.pressure.and_then(|_| self.pressure.of(ready.iter().copied()));
            let (arrivals, timed, repeats) = match counted {
                Some(counted) => {
                    let registry = &self.datapath.registry;
                    let serves = |(id, generation)| {
                        registry.backend(id, generation).is_some_and(|backend| ready.contains(&backend.container))
                    };
                    let repeats = service.meters.repeats.sample(&counted.handshakes, serves);
                    let timed = targets.latency.and_then(|_| service.meters.latency.sample(counted.handshakes));
                    (service.meters.arrivals.sample(counted.connections), timed, repeats)
                }
                None => {
                    service.meters.arrivals.lose();
                    service.meters.latency.lose();
                    service.meters.repeats.lose();
                    (None, None, None)
                }
            };
            let (handshakes, responses) = timed.unzip();
            let measures = Measures { host, cpu, arrivals, handshakes, responses, pressure, repeats };
            events.push((name, Event::Measured(Box::new(measures))));
        }
        events
    }

    fn counted(&self, name: &ServiceName, with_handshakes: bool) -> Result<Counted, DatapathError> {
        let mut counted = Counted { connections: connections(&self.datapath, name)?, ..Counted::default() };
        for backend in self.datapath.registry.backends_of(name.as_str()).filter(|_| with_handshakes) {
            let key = (backend.id, backend.generation);
            counted.handshakes.insert(key, self.datapath.maps.handshakes(backend.id)?);
        }
        Ok(counted)
    }
}

/// Returns how many connections each backend of a service has ever been given, by id and generation.
pub(super) fn connections(datapath: &Datapath, name: &ServiceName) -> Result<BTreeMap<Key, u64>, DatapathError> {
    let of = |backend: &report::BackendReport| {
        let traffic = datapath.maps.traffic(backend.id)?;
        Ok(((backend.id, backend.generation), traffic.connections + traffic.local_connections))
    };
    datapath.registry.backends_of(name.as_str()).map(of).collect()
}
