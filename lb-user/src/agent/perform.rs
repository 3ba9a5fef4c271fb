//! Commands performed: quick ones at once, slow ones beside the loop with an answer to come.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::{Agent, Answer, Service, chain};
use crate::{
    config::{self, Family, Publish, ServiceName, Snat, Source, Weight, publish::Proto},
    control::{Addresses, Command, ContainerId, Event, Heard, Publication, Terms, WHOLE},
    datapath::{
        DatapathError,
        links::{Belief, LinkError, Links, Path, Reach},
        publish::{Member, Registry},
        report::Way,
    },
    health::{self, HealthCheck},
};

/// How long a health check may take: long enough for a busy host, and checks of one backend never overlap.
pub(crate) const PROBE_LIMIT: Duration = Duration::from_secs(2);

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
    /// Families of whose address it is not the way, and why.
    barred: Barred,
    /// What it says of itself.
    terms: Terms,
}

/// Why families are not served.
type Barred = BTreeMap<Family, String>;

/// The way to a backend, as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    way: Way,
    /// Families of whose address it is not the way, and why.
    barred: Barred,
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
            Some(known) if known.are_of(&address) => {
                // A further address may be reached by another way.
                place.found = place.found.filter(|_| known == address);
                place.address = Some(address);
            }
            Some(_) | None => *place = Place { address: Some(address), ..Place::default() },
        }
    }

    /// Notes what a container that is located says of itself.
    pub fn told(&mut self, id: &ContainerId, terms: &Terms) {
        if let Some(place) = self.of.get_mut(id) {
            place.terms.clone_from(terms);
        }
    }

    fn terms(&self, id: &ContainerId) -> Terms {
        self.of.get(id).map(|place| place.terms.clone()).unwrap_or_default()
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
    pub fn reached(&mut self, id: &ContainerId, found: Found) -> bool {
        let Some(place) = self.of.get_mut(id) else { return false };
        place.found = Some(Instant::now());
        place.barred = found.barred;
        let former = place.way.replace(found.way);
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
            Command::Thaw { id } => return self.thaw(id),
            Command::Freeze { id } => return self.freeze(name, id),
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

    pub(super) fn beside(&self, name: &ServiceName, work: impl Future<Output = Event> + Send + 'static) {
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
                // Before the rest is confirmed, lest others go in favour of one that has no slot.
                left_out.chain([Event::Published { generation }]).collect()
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
        let mut draining: Vec<Member> =
            publication.draining.iter().filter_map(|id| service.leaver(registry, id)).collect();
        for id in &publication.ready {
            let is_deaf = |address: IpAddr| publication.deaf.contains(&(id.clone(), Family::of(address)));
            match service.member(registry, id, is_deaf, publication.warming.get(id).copied()) {
                Ok(member) => ready.push(Member { asleep: publication.asleep.contains(id), ..member }),
                Err(error) => {
                    unreachable.insert(id.clone(), error);
                }
            }
            if let Some(mut leaver) = service.leaver(registry, id) {
                leaver.endpoints.retain(|_, endpoint| is_deaf(endpoint.ip()));
                draining.extend((!leaver.endpoints.is_empty()).then_some(leaver));
            }
        }
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
        let way = place.and_then(|place| place.way.clone());
        let barred = place.map(|place| place.barred.clone()).unwrap_or_default();
        let trust = match place.filter(|_| way.is_some()).and_then(|place| place.found) {
            // One that has barred a family is looked at again, as that may have been but slow to answer.
            Some(found) if found.elapsed() < WAY_AGE && barred.is_empty() => Trust::Fresh,
            Some(_) => Trust::Old,
            None => Trust::None,
        };
        let terms = service.places.terms(&id);
        let endpoints = address.map(|address| probed_endpoints(&service.config, (&id, &terms), address));
        let endpoints = endpoints.unwrap_or_default();
        let (links, check, answers) = (self.links.clone(), service.config.health.clone(), self.answers.clone());
        let snat = service.config.snat;
        let name = name.clone();
        tokio::spawn(async move {
            let outcome = match address {
                Some(address) => {
                    examine((address, snat), trust, (way.as_ref(), barred), endpoints, &links, &check).await
                }
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

    /// Returns a backend that gets new connections, or some tenths of its share of them, but for those to deaf addresses.
    fn member(
        &self,
        registry: &Registry,
        id: &ContainerId,
        is_deaf: impl Fn(IpAddr) -> bool,
        tenths: Option<u32>,
    ) -> Result<Member, String> {
        let place = self.places.of.get(id);
        let address = place.and_then(|place| place.address).ok_or_else(|| format!("{id}: no address is known"))?;
        let way = place.and_then(|place| place.way.clone()).ok_or_else(|| format!("{id}: no way is known"))?;
        let terms = self.places.terms(id);
        let mut endpoints = BTreeMap::new();
        for publish in &self.config.frontends {
            if let Some(endpoint) =
                endpoint(&self.config, (id, &terms), address, publish)?.filter(|endpoint| !is_deaf(endpoint.ip()))
            {
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
        let (weight, tenths) = (self.weight(id), tenths.unwrap_or(WHOLE));
        Ok(Member { container: id.clone(), endpoints, way, weight, tenths, asleep: false })
    }

    /// Returns a backend's weight; our own containers are all alike.
    fn weight(&self, id: &ContainerId) -> u32 {
        if let Some(weight) = self.places.terms(id).weight {
            return weight.get();
        }
        let address = id.0.parse::<SocketAddr>().ok();
        let own = self.config.static_backends().iter().find(|backend| Some(backend.address) == address);
        own.map_or(Weight::ONE, |backend| backend.weight).number()
    }
}

/// Returns where a backend listens for a frontend: a static backend says so itself, and a container that others have started
/// may. Nowhere, if it has no address of the frontend's family.
fn endpoint(
    service: &config::Service,
    (id, terms): (&ContainerId, &Terms),
    address: Addresses,
    publish: &Publish,
) -> Result<Option<SocketAddr>, String> {
    let Some(address) = publish.family().and_then(|family| address.of_family(family)) else { return Ok(None) };
    match (&service.source, publish.container_port) {
        (Source::Docker(_), Some(port)) => Ok(Some(SocketAddr::new(address, port.get()))),
        (Source::Discovered(_), port) => {
            let port = terms.port.or(port).or(terms.exposed).ok_or_else(|| format!("{id}: no port is known"))?;
            Ok(Some(SocketAddr::new(address, port.get())))
        }
        (Source::Docker(_), None) | (Source::Static { .. }, _) => {
            id.0.parse().map(Some).map_err(|_| format!("{id}: no port is known"))
        }
    }
}

/// Returns whom to ask, in each family of which a backend serves anything: nobody where that is UDP alone.
fn probed_endpoints(
    service: &config::Service,
    backend: (&ContainerId, &Terms),
    address: Addresses,
) -> BTreeMap<Family, BTreeSet<SocketAddr>> {
    let mut probed: BTreeMap<Family, BTreeSet<SocketAddr>> = BTreeMap::new();
    for publish in &service.frontends {
        let Some(endpoint) = endpoint(service, backend, address, publish).ok().flatten() else { continue };
        let of_family = probed.entry(Family::of(endpoint.ip())).or_default();
        if publish.proto == Proto::Tcp {
            of_family.insert(endpoint);
        }
    }
    if matches!(service.health, HealthCheck::Http { .. }) {
        probed.values_mut().for_each(|endpoints| *endpoints = endpoints.first().copied().into_iter().collect());
    }
    probed
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

/// What a look at a backend has found.
pub struct Examined {
    /// The way, if it was looked for, and a family answered.
    pub found: Option<Found>,
    pub heard: Heard,
}

/// Looks for the way to a backend, and asks it in each family.
async fn examine(
    address: (Addresses, Snat),
    trust: Trust,
    (former, barred): (Option<&Way>, Barred),
    endpoints: BTreeMap<Family, BTreeSet<SocketAddr>>,
    links: &Links,
    check: &HealthCheck,
) -> Result<Examined, String> {
    let found = match trust {
        Trust::Fresh => None,
        Trust::Old => find_way(address, former, links, Belief::Kept).await.ok(),
        // First of all: until the kernel has found it, no check can pass either.
        Trust::None => Some(find_way(address, former, links, Belief::Lost).await?),
    };
    let barred = found.as_ref().map_or(&barred, |found| &found.barred);
    let heard: Heard = join_all(endpoints.into_iter().map(async |(family, endpoints)| {
        let outcome = match barred.get(&family) {
            Some(reason) => Err(reason.clone()),
            None => ask(check, endpoints).await,
        };
        (family, outcome)
    }))
    .await
    .into_iter()
    .collect();
    let found = found.filter(|_| heard.values().any(Result::is_ok));
    Ok(Examined { found, heard })
}

/// Asks a backend at all of its endpoints of a family.
async fn ask(check: &HealthCheck, endpoints: BTreeSet<SocketAddr>) -> Result<(), String> {
    for endpoint in endpoints {
        health::probe(check, endpoint, PROBE_LIMIT).await.map_err(|error| chain(&error))?;
    }
    Ok(())
}

/// Finds the way to a backend, by each of its addresses. What does not have to be another than on the former way is not.
async fn find_way(
    (address, snat): (Addresses, Snat),
    former: Option<&Way>,
    links: &Links,
    belief: Belief,
) -> Result<Found, String> {
    let paths = join_all(address.each().map(async |address| {
        let path = links.resolve(address, belief).await.and_then(|path| hidable(path, address, snat));
        (address, path.map_err(|error| chain(&error)))
    }));
    let (path, barred) = common(paths.await)?;
    if path.reach == Reach::Local {
        // It needs nobody to stand in for its clients, and its replies are here already.
        return Ok(Found { way: Way::new(path, (None, None)), barred });
    }
    let former = former.map_or((None, None), |way| (way.host_address, way.host_address_v6));
    let stand_ins = links.stand_ins(path.l3_ifindex, former).await.map_err(|error| chain(&error))?;
    Ok(Found { way: Way::new(path, stand_ins).hiding_clients_behind(snat), barred })
}

/// Refuses a path by which no client can be hidden.
pub(crate) fn hidable(path: Path, backend: IpAddr, snat: Snat) -> Result<Path, LinkError> {
    if path.reach == Reach::Routed && snat != Snat::default() {
        return Err(LinkError::RoutedSnat { backend, device: path.name });
    }
    Ok(path)
}

/// Returns the path to the first address that has one, and why the families of those are barred that have none, or another.
fn common(paths: Vec<(IpAddr, Result<Path, String>)>) -> Result<(Path, Barred), String> {
    let mut first: Option<(IpAddr, Path)> = None;
    let mut barred = Barred::new();
    for (address, path) in paths {
        match (path, &first) {
            (Ok(path), None) => first = Some((address, path)),
            (Ok(path), Some((_, own))) if path == *own => {}
            (Ok(path), Some((other, own))) => {
                let why = format!("{address} is reached by {}, and {other} by {}", path.reply_name, own.reply_name);
                barred.insert(Family::of(address), why);
            }
            (Err(error), _) => {
                barred.insert(Family::of(address), error);
            }
        }
    }
    let none = || barred.values().cloned().collect::<Vec<_>>().join("; ");
    let (_, path) = first.ok_or_else(none)?;
    Ok((path, barred))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        agent::service::{Feeds, settings},
        cli::file::parse,
        datapath::links::Framing,
        provider::fixed::FixedProvider,
    };

    fn path(port: u32) -> Path {
        Path {
            reach: Reach::Veth,
            ifindex: port,
            name: format!("veth{port}"),
            reply_ifindex: port,
            reply_name: format!("veth{port}"),
            reply_framing: Framing::Ethernet,
            l3_ifindex: 3,
            mac: Some([2, 0, 0, 0, 0, port as u8]),
            src_mac: Some([2; 6]),
            netns: Some(port),
        }
    }

    #[test]
    fn a_family_whose_address_is_elsewhere_is_barred() {
        let [v4, v6]: [IpAddr; 2] = ["198.18.2.2", "2001:db8::2"].map(|text| text.parse().unwrap());
        let none = || Err("no answer".to_owned());
        let barred = |family, why: &str| Barred::from([(family, why.to_owned())]);

        assert_eq!(common(vec![(v4, Ok(path(7))), (v6, Ok(path(7)))]), Ok((path(7), Barred::new())));
        let elsewhere = "2001:db8::2 is reached by veth8, and 198.18.2.2 by veth7";
        assert_eq!(common(vec![(v4, Ok(path(7))), (v6, Ok(path(8)))]), Ok((path(7), barred(Family::V6, elsewhere))));
        assert_eq!(common(vec![(v4, Ok(path(7))), (v6, none())]), Ok((path(7), barred(Family::V6, "no answer"))));
        assert_eq!(common(vec![(v4, none()), (v6, Ok(path(8)))]), Ok((path(8), barred(Family::V4, "no answer"))));
        assert_eq!(common(vec![(v4, none()), (v6, none())]), Err("no answer; no answer".to_owned()));
    }

    #[test]
    fn who_is_routed_to_cannot_be_told_another_client() {
        let [v4, snat]: [IpAddr; 2] = ["198.18.2.2", "198.18.2.1"].map(|text| text.parse().unwrap());
        let (none, snat) = (Snat::default(), Snat::new(&[snat]).unwrap());
        let routed = Path { reach: Reach::Routed, ..path(7) };

        assert!(hidable(path(7), v4, snat).is_ok());
        assert!(hidable(routed.clone(), v4, none).is_ok());
        let refused = hidable(routed, v4, snat);
        assert!(matches!(refused, Err(LinkError::RoutedSnat { backend, .. }) if backend == v4), "{refused:?}");
    }

    #[test]
    fn every_family_is_asked() {
        let address: Addresses = IpAddr::from([198, 18, 2, 2]).into();
        let address = address.or(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]).into());
        let asked = |rest: &str| {
            let text = format!("[[service]]\nname = \"a\"\nimage = \"lb-api\"\n{rest}\n");
            let mut config = parse(&text).unwrap_or_else(|mistakes| panic!("{text}{mistakes:?}"));
            config.services[0].complete(&[Family::V4, Family::V6]).unwrap();
            let probed = probed_endpoints(&config.services[0], (&"c".into(), &Terms::default()), address);
            let shown = probed.into_iter().map(|(family, endpoints)| {
                let ports: Vec<String> = endpoints.iter().map(|endpoint| endpoint.port().to_string()).collect();
                format!("{family} {}", ports.join(" "))
            });
            shown.collect::<Vec<_>>().join(", ")
        };

        assert_eq!(asked("publish = [\"80:5000\", \"81:5001\"]\nhealth = \"tcp\""), "IPv4 5000 5001, IPv6 5000 5001");
        assert_eq!(asked("publish = [\"80:5000\", \"81:5001\"]\nhealth = \"http:/\""), "IPv4 5000, IPv6 5000");
        assert_eq!(asked("publish = [\"[::]:80:5000\"]\nhealth = \"http:/\""), "IPv6 5000");
        assert_eq!(asked("publish = [\"0.0.0.0:80:5000\", \"[::]:53:53/udp\"]"), "IPv4 5000, IPv6 ");
    }

    #[test]
    fn a_container_of_others_listens_where_it_says_or_else_where_the_frontend_does() {
        let text = "[[service]]\nname = \"a\"\ndiscover = true\npublish = [\"80:5000\", \"81\"]\n";
        let mut config = parse(text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        config.services[0].complete(&[Family::V4]).unwrap();
        let asked = |port: u16, exposed: u16| {
            let (port, exposed) = (port.try_into().ok(), exposed.try_into().ok());
            let terms = Terms { port, exposed, ..Terms::default() };
            let address = Addresses::from(IpAddr::from([198, 18, 2, 2]));
            let endpoint = |publish| endpoint(&config.services[0], (&"c".into(), &terms), address, publish);
            config.services[0].frontends.iter().map(|publish| Some(endpoint(publish).ok()??.port())).collect::<Vec<_>>()
        };

        assert_eq!(asked(7000, 9000), [Some(7000), Some(7000)]);
        assert_eq!(asked(0, 9000), [Some(5000), Some(9000)]);
        assert_eq!(asked(0, 0), [Some(5000), None]);
    }

    #[tokio::test]
    async fn a_member_has_no_endpoint_of_a_family_in_which_it_is_deaf() {
        let text = "[[service]]\nname = \"a\"\nimage = \"lb-api\"\npublish = \"80:5000\"\n";
        let mut config = parse(text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        config.services[0].complete(&[Family::V4, Family::V6]).unwrap();
        let (id, address) = (ContainerId::from("c"), Addresses::from(IpAddr::from([198, 18, 2, 2])));
        let both = address.or(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]).into());
        let mut places = Places::default();
        places.located(&id, both);
        places.reached(&id, Found { way: Way::new(path(7), (None, None)), barred: Barred::new() });
        let settings = settings(&config.services[0], &config);
        let (sender, _told) = tokio::sync::mpsc::channel(1);
        let provider = Arc::new(FixedProvider::new(&[]));
        let service = Service::new(config.services[0].clone(), settings, provider, places, &mut Feeds::new(sender));
        let listens = |is_deaf: fn(IpAddr) -> bool| {
            let member = service.member(&Registry::default(), &id, is_deaf, None);
            member.map(|member| member.endpoints.into_values().map(|at| at.to_string()).collect::<Vec<_>>().join(" "))
        };

        assert_eq!(listens(|_| false).as_deref(), Ok("198.18.2.2:5000 [2001:db8::2]:5000"));
        assert_eq!(listens(|address| address.is_ipv6()).as_deref(), Ok("198.18.2.2:5000"));
        assert_eq!(listens(|address| address.is_ipv4()).as_deref(), Ok("[2001:db8::2]:5000"));
        assert!(listens(|_| true).is_err());
    }

    #[test]
    fn a_further_address_is_looked_for_and_the_way_is_kept() {
        let (id, v4) = (ContainerId::from("c"), Addresses::from(IpAddr::from([198, 18, 2, 2])));
        let mut places = Places::default();
        places.located(&id, v4);
        places.reached(&id, Found { way: Way::new(path(7), (None, None)), barred: Barred::new() });
        places.located(&id, v4);
        assert!(places.of[&id].found.is_some());

        places.located(&id, v4.or(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]).into()));

        assert!(places.of[&id].found.is_none() && places.of[&id].way.is_some());
    }
}
