//! Commands performed: quick ones at once, slow ones beside the loop with an answer to come.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use super::{Agent, Answer, chain};
use crate::{
    config::{Source, publish::Proto},
    control::{Command, ContainerId, Event, Publication},
    datapath::{
        links::{self, Links},
        publish::{Member, Registry},
        report::{Reach, Way},
    },
    health::{self, HealthCheck},
};

/// How long a health check may take: long enough for a busy host, and checks of one backend never overlap.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Where containers are, and how they are reached.
#[derive(Debug, Default)]
pub struct Places {
    of: BTreeMap<ContainerId, Place>,
}

#[derive(Debug, Default)]
struct Place {
    address: Option<IpAddr>,
    way: Option<Way>,
    /// Whether the way was found by this agent since the container was last started.
    is_found: bool,
}

impl Places {
    /// Takes the ways that a former agent has found, so that its backends stay what they are.
    pub fn adopt(&mut self, registry: &Registry) {
        for backend in registry.backends() {
            let place = self.of.entry(backend.container.clone()).or_default();
            place.address = Some((*backend.endpoint.ip()).into());
            place.way = Some(backend.way.clone());
        }
    }

    /// Notes an address.
    pub fn located(&mut self, id: &ContainerId, address: IpAddr) {
        let place = self.of.entry(id.clone()).or_default();
        if place.address != Some(address) {
            *place = Place { address: Some(address), ..Place::default() };
        }
    }

    /// Notes that a container was started: its old veth is gone.
    pub fn moved(&mut self, id: &ContainerId) {
        if let Some(place) = self.of.get_mut(id) {
            place.is_found = false;
        }
    }

    /// Notes a way; returns whether it differs from one that was known.
    pub fn reached(&mut self, id: &ContainerId, way: Way) -> bool {
        let place = self.of.entry(id.clone()).or_default();
        place.is_found = true;
        let former = place.way.replace(way);
        former.is_some() && former != place.way
    }

    fn forget(&mut self, id: &ContainerId) {
        self.of.remove(id);
    }
}

impl Agent {
    /// Performs a command; returns its answer where that is there at once.
    pub(super) fn perform(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Publish(publication) => Some(self.publish(publication)),
            Command::Probe { id } => {
                self.probe(id);
                None
            }
            Command::Start { ordinal } => {
                let provider = self.provider.clone();
                self.beside(async move {
                    match provider.start(ordinal).await {
                        Ok(id) => Event::Started { ordinal, id },
                        Err(error) => Event::StartFailed { ordinal, error: chain(&error) },
                    }
                });
                None
            }
            Command::Stop { id } => {
                let (provider, grace) = (self.provider.clone(), self.engine_settings);
                self.places.forget(&id);
                self.beside(async move {
                    match provider.stop(&id, grace).await {
                        Ok(()) => Event::Stopped { id },
                        Err(error) => Event::StopFailed { id, error: chain(&error) },
                    }
                });
                None
            }
            Command::Remove { id } => {
                let provider = self.provider.clone();
                self.places.forget(&id);
                self.beside(async move {
                    match provider.remove(&id).await {
                        Ok(()) => Event::Stopped { id },
                        Err(error) => Event::RemoveFailed { id, error: chain(&error) },
                    }
                });
                None
            }
            Command::Finish => None,
        }
    }

    fn beside(&self, work: impl Future<Output = Event> + Send + 'static) {
        let answers = self.answers.clone();
        tokio::spawn(async move {
            // The loop has ended if nobody listens; then nobody wants to know.
            let _nobody_listens = answers.send(Answer::Event(work.await));
        });
    }

    fn publish(&mut self, publication: Publication) -> Event {
        let generation = publication.generation;
        let outcome = self.write(&publication);
        self.last_publication = Some(publication);
        match outcome {
            Ok(()) => Event::Published { generation },
            Err(error) => Event::PublishFailed { generation, error },
        }
    }

    /// Writes the last publication again: a way has changed.
    pub(super) fn publish_again(&mut self) {
        if let Some(publication) = self.last_publication.clone()
            && let Err(error) = self.write(&publication)
        {
            tracing::error!(error, "a backend's device has changed, and the maps could not follow");
        }
    }

    fn write(&mut self, publication: &Publication) -> Result<(), String> {
        let ready: Vec<Member> = publication.ready.iter().map(|id| self.member(id)).collect::<Result<_, _>>()?;
        // A container that is being stopped may have been forgotten: what the kernel holds of it stays as it is.
        let draining: Vec<Member> = publication
            .draining
            .iter()
            .filter_map(|id| self.member(id).ok().or_else(|| self.datapath.registry.member(id)))
            .collect();
        self.datapath.publish(&ready, &draining).map_err(|error| chain(&error))
    }

    fn member(&self, id: &ContainerId) -> Result<Member, String> {
        let place = self.places.of.get(id);
        let address = place.and_then(|place| place.address).ok_or_else(|| format!("{id}: no address is known"))?;
        let way = place.and_then(|place| place.way.clone()).ok_or_else(|| format!("{id}: no way is known"))?;
        let mut endpoints = BTreeMap::new();
        for publish in &self.config.frontends {
            endpoints.insert(publish.name(), self.endpoint(id, address, publish.container_port.map(Into::into))?);
        }
        Ok(Member { container: id.clone(), endpoints, way })
    }

    /// Returns where a backend listens for a frontend: a static backend says so itself.
    fn endpoint(&self, id: &ContainerId, address: IpAddr, port: Option<u16>) -> Result<SocketAddrV4, String> {
        let IpAddr::V4(address) = address else { return Err(format!("{id}: {address} is not IPv4")) };
        match (&self.config.source, port) {
            (Source::Docker(_), Some(port)) => Ok(SocketAddrV4::new(address, port)),
            (Source::Docker(_), None) | (Source::Static { .. }, _) => {
                id.0.parse().map_err(|_| format!("{id}: no port is known"))
            }
        }
    }

    /// Finds the way to a backend, if it is not known, and checks its health.
    fn probe(&self, id: ContainerId) {
        let place = self.places.of.get(&id);
        let address = place.and_then(|place| place.address);
        let known = place.filter(|place| place.is_found).and_then(|place| place.way.clone());
        let endpoints = address.map(|address| self.probed_endpoints(&id, address)).unwrap_or_default();
        let (links, check, answers) = (self.links.clone(), self.config.health.clone(), self.answers.clone());
        tokio::spawn(async move {
            let outcome = match address {
                Some(IpAddr::V4(address)) => examine(address, known, &endpoints, &links, &check).await,
                Some(IpAddr::V6(address)) => Err(format!("{address}: IPv6 backends are not supported yet")),
                None => Err("it has no address".to_owned()),
            };
            let _nobody_listens = answers.send(Answer::Probed { id, outcome });
        });
    }

    fn probed_endpoints(&self, id: &ContainerId, address: IpAddr) -> Vec<SocketAddr> {
        let tcp = self.config.frontends.iter().filter(|publish| publish.proto == Proto::Tcp);
        let mut endpoints: Vec<SocketAddr> = tcp
            .filter_map(|publish| self.endpoint(id, address, publish.container_port.map(Into::into)).ok())
            .map(SocketAddr::V4)
            .collect();
        endpoints.sort();
        endpoints.dedup();
        if matches!(self.config.health, HealthCheck::Http { .. }) {
            endpoints.truncate(1);
        }
        endpoints
    }
}

async fn examine(
    address: Ipv4Addr,
    known: Option<Way>,
    endpoints: &[SocketAddr],
    links: &Links,
    check: &HealthCheck,
) -> Result<Way, String> {
    for &endpoint in endpoints {
        health::probe(check, endpoint, PROBE_LIMIT).await.map_err(|error| chain(&error))?;
    }
    match known {
        Some(way) => Ok(way),
        None => find_way(address, links).await.map_err(|error| chain(&error)),
    }
}

async fn find_way(address: Ipv4Addr, links: &Links) -> Result<Way, links::LinkError> {
    let path = links.resolve(address).await?;
    let host_address = links.addresses(path.l3_ifindex).await?.first().copied();
    Ok(Way {
        reach: match path.reach {
            links::Reach::Veth => Reach::Veth,
            links::Reach::Neighbour => Reach::Neighbour,
            links::Reach::Routed => Reach::Routed,
        },
        ifindex: path.ifindex,
        name: path.name,
        reply_ifindex: path.reply_ifindex,
        reply_name: path.reply_name,
        mac: path.mac.unwrap_or_default(),
        source_mac: path.src_mac.unwrap_or_default(),
        host_address,
    })
}
