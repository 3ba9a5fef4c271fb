//! Commands performed: quick ones at once, slow ones beside the loop with an answer to come.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{Agent, Answer, Service, chain};
use crate::{
    config::{Publish, ServiceName, Source, Weight, publish::Proto},
    control::{Addresses, Command, ContainerId, Event, Publication, WHOLE},
    datapath::{
        DatapathError,
        links::{self, Belief, Links},
        publish::{Member, Registry},
        report::Way,
    },
    health::{self, HealthCheck},
};

/// How long a health check may take: long enough for a busy host, and checks of one backend never overlap.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// After so long a way that is known is looked for again, in case the network has changed unseen.
const WAY_AGE: Duration = Duration::from_secs(30);

/// Where containers are, and how they are reached.
#[derive(Debug, Default)]
pub struct Places {
    of: BTreeMap<ContainerId, Place>,
}

#[derive(Debug, Default)]
struct Place {
    address: Option<Addresses>,
    way: Option<Way>,
    /// When the way was found last; nothing if it may be another by now.
    found: Option<Instant>,
}

impl Places {
    /// Takes the ways that a former agent has found to a service's backends, so that they stay what they are.
    pub fn adopt(&mut self, registry: &Registry, service: &str) {
        for backend in registry.backends_of(service) {
            let place = self.of.entry(backend.container.clone()).or_default();
            let address = Addresses::from(backend.endpoint.ip());
            place.address = Some(place.address.map_or(address, |others| others.or(address)));
            place.way = Some(backend.way.clone());
        }
    }

    /// Notes addresses. Of those by which a former agent knew a container, they may be more.
    pub fn located(&mut self, id: &ContainerId, address: Addresses) {
        let place = self.of.entry(id.clone()).or_default();
        match place.address {
            Some(known) if known.are_of(&address) => place.address = Some(address),
            Some(_) | None => *place = Place { address: Some(address), ..Place::default() },
        }
    }

    /// Notes that a container's way may be another by now.
    pub fn doubt(&mut self, id: &ContainerId) {
        if let Some(place) = self.of.get_mut(id) {
            place.found = None;
        }
    }

    /// Notes that any way may be another by now.
    pub fn doubt_all(&mut self) {
        self.of.values_mut().for_each(|place| place.found = None);
    }

    /// Notes that only these devices, by index, exist under these names.
    pub fn doubt_other_devices(&mut self, devices: &BTreeMap<u32, String>) {
        for place in self.of.values_mut() {
            let exists = |ifindex, name: &String| devices.get(&ifindex) == Some(name);
            if let Some(way) = &place.way
                && !(exists(way.ifindex, &way.name) && exists(way.reply_ifindex, &way.reply_name))
            {
                place.found = None;
            }
        }
    }

    /// Notes a way; returns whether it differs from one that was known. Of a container that was forgotten meanwhile
    /// nothing is noted.
    pub fn reached(&mut self, id: &ContainerId, way: Way) -> bool {
        let Some(place) = self.of.get_mut(id) else { return false };
        place.found = Some(Instant::now());
        let former = place.way.replace(way);
        former.is_some() && former != place.way
    }

    /// Forgets all but these.
    pub fn keep_only(&mut self, ids: &BTreeSet<&ContainerId>) {
        self.of.retain(|id, _| ids.contains(id));
    }

    fn forget(&mut self, id: &ContainerId) {
        self.of.remove(id);
    }
}

impl Agent {
    /// Performs a service's command; returns its answers where they are there at once.
    pub(super) fn perform(&mut self, name: &ServiceName, command: Command) -> Vec<Event> {
        let Some(service) = self.services.get_mut(name) else { return Vec::new() };
        let provider = service.provider.clone();
        match command {
            Command::Publish(publication) => return self.publish(name, &publication),
            Command::Probe { id } => self.probe(name, id),
            Command::Start { ordinal } => {
                self.beside(name, async move {
                    match provider.start(ordinal).await {
                        Ok(id) => Event::Started { ordinal, id },
                        Err(error) => Event::StartFailed { ordinal, error: chain(&error) },
                    }
                });
            }
            Command::Stop { id } => {
                let grace = service.stop_grace();
                service.places.forget(&id);
                self.beside(name, async move {
                    match provider.stop(&id, grace).await {
                        Ok(()) => Event::Stopped { id },
                        Err(error) => Event::StopFailed { id, error: chain(&error) },
                    }
                });
            }
            Command::Remove { id } => {
                service.places.forget(&id);
                self.beside(name, async move {
                    match provider.remove(&id).await {
                        Ok(()) => Event::Stopped { id },
                        Err(error) => Event::RemoveFailed { id, error: chain(&error) },
                    }
                });
            }
            Command::Finish => {}
        }
        Vec::new()
    }

    fn beside(&self, name: &ServiceName, work: impl Future<Output = Event> + Send + 'static) {
        let (answers, name) = (self.answers.clone(), name.clone());
        tokio::spawn(async move {
            // The loop has ended if nobody listens; then nobody wants to know.
            let _nobody_listens = answers.send(Answer::Event(name, work.await));
        });
    }

    fn publish(&mut self, name: &ServiceName, publication: &Publication) -> Vec<Event> {
        let generation = publication.generation;
        let before = self.datapath.registry.in_slots(name.as_str());
        match self.write(name, publication) {
            Ok(unreachable) => {
                self.tell_rotation(name, &before);
                let Some(service) = self.services.get_mut(name) else { return Vec::new() };
                let left_out = unreachable.into_iter().map(|(id, error)| {
                    service.places.doubt(&id);
                    Event::BackendUnreachable { id, error }
                });
                let left_out: Vec<Event> = left_out.collect();
                std::iter::once(Event::Published { generation }).chain(left_out).collect()
            }
            Err(error) => vec![Event::PublishFailed { generation, error: chain(&error) }],
        }
    }

    /// Tells who has come into rotation and who has left it.
    fn tell_rotation(&self, name: &ServiceName, before: &BTreeSet<ContainerId>) {
        let Some(service) = self.services.get(name) else { return };
        let after = self.datapath.registry.in_slots(name.as_str());
        let names: BTreeMap<ContainerId, String> = service
            .controller
            .snapshot(self.now())
            .backends
            .into_iter()
            .map(|backend| (backend.id, backend.name.to_string()))
            .collect();
        let shown = |sign: char, id: &ContainerId| format!("{sign}{}", names.get(id).unwrap_or(&id.0));
        let came = after.difference(before).map(|id| shown('+', id));
        let left = before.difference(&after).map(|id| shown('-', id));
        let changes: Vec<String> = came.chain(left).collect();
        if !changes.is_empty() {
            tracing::info!("{}{} in rotation: {}", self.prefix(name), after.len(), changes.join(" "));
        }
    }

    /// Writes a publication; returns who was to be ready and is left out, and why.
    fn write(
        &mut self,
        name: &ServiceName,
        publication: &Publication,
    ) -> Result<BTreeMap<ContainerId, String>, DatapathError> {
        let Some(service) = self.services.get(name) else { return Ok(BTreeMap::new()) };
        let registry = &self.datapath.registry;
        let mut unreachable = BTreeMap::new();
        let mut ready = Vec::new();
        for id in &publication.ready {
            match service.member(registry, id, publication.warming.get(id).copied()) {
                Ok(member) => ready.push(member),
                Err(error) => {
                    unreachable.insert(id.clone(), error);
                }
            }
        }
        let draining: Vec<Member> = publication.draining.iter().filter_map(|id| service.leaver(registry, id)).collect();
        let prepared = self.datapath.prepare(name.as_str(), &ready, &draining)?;
        unreachable.extend(prepared.unreachable.iter().map(|(id, error)| (id.clone(), chain(error))));
        // Should the agent die from here on, the next one knows what the kernel may hold.
        self.report();
        self.datapath.commit(prepared)?;
        Ok(unreachable)
    }

    /// Finds the way to a backend, if it is not known, and checks its health.
    fn probe(&self, name: &ServiceName, id: ContainerId) {
        let Some(service) = self.services.get(name) else { return };
        let place = service.places.of.get(&id);
        let address = place.and_then(|place| place.address);
        let trust = match place.filter(|place| place.way.is_some()).and_then(|place| place.found) {
            Some(found) if found.elapsed() < WAY_AGE => Trust::Fresh,
            Some(_) => Trust::Old,
            None => Trust::None,
        };
        let endpoints = address.map(|address| service.probed_endpoints(&id, address)).unwrap_or_default();
        let address = address.and_then(|address| address.first());
        let (links, check, answers) = (self.links.clone(), service.config.health.clone(), self.answers.clone());
        let name = name.clone();
        tokio::spawn(async move {
            let outcome = match address {
                Some(address) => examine(address, trust, &endpoints, &links, &check).await,
                None => Err("it has no address".to_owned()),
            };
            let _nobody_listens = answers.send(Answer::Probed { service: name, id, outcome });
        });
    }
}

impl Service {
    /// Returns a backend that keeps the connections it has: where they go is what the kernel holds.
    fn leaver(&self, registry: &Registry, id: &ContainerId) -> Option<Member> {
        let member = registry.member(self.config.name.as_str(), id)?;
        let way = self.places.of.get(id).and_then(|place| place.way.clone());
        Some(Member { way: way.unwrap_or(member.way), ..member })
    }

    fn member(&self, registry: &Registry, id: &ContainerId, tenths: Option<u32>) -> Result<Member, String> {
        let place = self.places.of.get(id);
        let address = place.and_then(|place| place.address).ok_or_else(|| format!("{id}: no address is known"))?;
        let way = place.and_then(|place| place.way.clone()).ok_or_else(|| format!("{id}: no way is known"))?;
        let mut endpoints = BTreeMap::new();
        for publish in &self.config.frontends {
            if let Some(endpoint) = self.endpoint(id, address, publish)? {
                endpoints.insert(publish.name(), endpoint);
            }
        }
        if !self.leaving.is_empty()
            && let Some(held) = registry.member(self.config.name.as_str(), id)
        {
            endpoints.extend(held.endpoints.into_iter().filter(|(frontend, _)| self.leaving.contains_key(frontend)));
        }
        if endpoints.is_empty() {
            return Err(format!("{id}: no frontend has clients that could be led to {address}"));
        }
        Ok(Member { container: id.clone(), endpoints, way, weight: self.weight(id), tenths: tenths.unwrap_or(WHOLE) })
    }

    /// Returns a backend's weight; containers are all alike.
    fn weight(&self, id: &ContainerId) -> u32 {
        let address = id.0.parse::<SocketAddr>().ok();
        let own = self.config.static_backends().iter().find(|backend| Some(backend.address) == address);
        own.map_or(Weight::ONE, |backend| backend.weight).number()
    }

    /// Returns where a backend listens for a frontend: a static backend says so itself. Nowhere, if it has no address of
    /// the frontend's family.
    fn endpoint(&self, id: &ContainerId, address: Addresses, publish: &Publish) -> Result<Option<SocketAddr>, String> {
        let Some(address) = publish.family().and_then(|family| address.of_family(family)) else { return Ok(None) };
        match (&self.config.source, publish.container_port) {
            (Source::Docker(_), Some(port)) => Ok(Some(SocketAddr::new(address, port.get()))),
            (Source::Docker(_), None) | (Source::Static { .. }, _) => {
                id.0.parse().map(Some).map_err(|_| format!("{id}: no port is known"))
            }
        }
    }

    fn probed_endpoints(&self, id: &ContainerId, address: Addresses) -> Vec<SocketAddr> {
        let tcp = self.config.frontends.iter().filter(|publish| publish.proto == Proto::Tcp);
        let mut endpoints: Vec<SocketAddr> =
            tcp.filter_map(|publish| self.endpoint(id, address, publish).ok().flatten()).collect();
        endpoints.sort();
        endpoints.dedup();
        if matches!(self.config.health, HealthCheck::Http { .. }) {
            endpoints.truncate(1);
        }
        endpoints
    }
}

/// How much is known of a way.
enum Trust {
    /// It was found a moment ago.
    Fresh,
    /// It was found some time ago: worth a look, and good enough if that fails.
    Old,
    /// It is not known, or is another by now.
    None,
}

async fn examine(
    address: IpAddr,
    trust: Trust,
    endpoints: &[SocketAddr],
    links: &Links,
    check: &HealthCheck,
) -> Result<Option<Way>, String> {
    let way = match trust {
        Trust::Fresh => None,
        Trust::Old => find_way(address, links, Belief::Kept).await.ok(),
        // First of all: until the kernel has found it, no check can pass either.
        Trust::None => Some(find_way(address, links, Belief::Lost).await.map_err(|error| chain(&error))?),
    };
    for &endpoint in endpoints {
        health::probe(check, endpoint, PROBE_LIMIT).await.map_err(|error| chain(&error))?;
    }
    Ok(way)
}

/// Finds the way to one address of a backend, which is the way to the other, too: they are of one network.
async fn find_way(address: IpAddr, links: &Links, belief: Belief) -> Result<Way, links::LinkError> {
    let path = links.resolve(address, belief).await?;
    let own = links.addresses(path.l3_ifindex).await?;
    let v4 = own.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let v6 = own.iter().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    });
    Ok(Way::new(path, (v4, v6)))
}
