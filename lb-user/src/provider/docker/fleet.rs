//! The containers of an instance on one engine: one connection and one watch for all of its services.
//!
//! Each service enters the [`Roster`] with what its containers look like, and is told of those alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use futures_util::future;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use super::{
    DiscoveryProvider, DiscoverySettings, DockerProvider, DockerSettings, Engine, EngineFacts, Found, in_order, labels,
    offer::{self, Offer},
    watch,
};
use crate::{
    control::{Addresses, ContainerId, Sighting},
    provider::{EVENT_BACKLOG, ProviderError, ProviderEvent},
};

/// The connection to an engine, for all services of an instance. The watch ends with it.
#[derive(Debug)]
pub struct Fleet {
    engine: Engine,
    roster: Arc<Roster>,
}

impl Fleet {
    /// Connects to the engine that `DOCKER_HOST` names and makes sure that it answers and is recent enough. Containers of
    /// the instance that name no service belong to `heir`.
    ///
    /// # Errors
    /// `EndpointUnsupported`, `Unreachable`, `TimedOut`, `ApiTooOld`.
    pub async fn connect(instance: &str, heir: &str) -> Result<Self, ProviderError> {
        Ok(Self::of(Engine::connect().await?, instance, heir))
    }

    /// Returns what there is on an engine that answers.
    pub(super) fn of(engine: Engine, instance: &str, heir: &str) -> Self {
        let roster = Roster {
            engine: engine.clone(),
            instance: instance.to_owned(),
            heir: heir.to_owned(),
            entries: Mutex::default(),
            known: Mutex::default(),
            host: Mutex::default(),
            has_changed: Notify::new(),
            watch: OnceLock::new(),
        };
        Self { engine, roster: Arc::new(roster) }
    }

    /// Returns what the engine is.
    ///
    /// # Errors
    /// `Rootless`, and those of any request.
    pub async fn facts(&self) -> Result<EngineFacts, ProviderError> {
        self.engine.facts().await
    }

    /// Lists everything again soon, and looks which images are meant by now.
    pub fn look_again(&self) {
        self.roster.has_changed.notify_one();
    }

    /// Says by which addresses of this host containers are reached that share its network. If they have changed, everything
    /// is listed again.
    pub fn set_host_addresses(&self, addresses: Option<Addresses>) {
        if std::mem::replace(&mut *locked(&self.roster.host), addresses) != addresses {
            self.look_again();
        }
    }

    /// Returns the provider of a service's containers.
    pub fn provider(&self, settings: DockerSettings) -> DockerProvider {
        DockerProvider::new(self.engine.clone(), Arc::clone(&self.roster), settings)
    }

    /// Returns the provider of the containers that others have started for a service.
    pub fn discovery(&self, settings: DiscoverySettings) -> DiscoveryProvider {
        DiscoveryProvider::new(self.engine.clone(), Arc::clone(&self.roster), settings)
    }

    /// Returns the services of which the engine has containers that an agent has started.
    ///
    /// # Errors
    /// Those of any request.
    pub async fn services(&self) -> Result<BTreeSet<String>, ProviderError> {
        let Roster { instance, heir, .. } = &*self.roster;
        let containers = self.engine.containers(instance).await?;
        let labels = containers.into_iter().filter_map(|container| container.labels);
        let ours = labels.filter(|labels| labels::ordinal_in(instance, labels).is_some());
        Ok(ours.map(|labels| labels::service_in(&labels, heir).to_owned()).collect())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(watch) = self.roster.watch.get() {
            watch.abort();
        }
        // Entries and roster hold each other.
        locked(&self.roster.entries).clear();
    }
}

/// The services that take containers of others.
struct Takers {
    of: BTreeMap<String, DiscoveryProvider>,
}

impl Takers {
    /// Returns which of them a container offers itself to.
    fn offer(&self, instance: &str, labels: &HashMap<String, String>) -> Option<Offer<String>> {
        let names: Vec<&str> = self.of.keys().map(String::as_str).collect();
        let Offer { service, refused } = offer::offer(labels, instance, &names)?;
        Some(Offer { service: service.to_owned(), refused })
    }
}

/// Who is to be told of which containers.
pub(super) struct Roster {
    pub engine: Engine,
    pub instance: String,
    /// The service of containers that name none.
    heir: String,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Whose the containers are that were seen.
    known: Mutex<BTreeMap<ContainerId, String>>,
    /// Where containers are that share this host's network.
    host: Mutex<Option<Addresses>>,
    /// Told when a service has entered: it wants to know what there is.
    pub has_changed: Notify,
    watch: OnceLock<JoinHandle<()>>,
}

#[derive(Clone)]
struct Entry {
    source: Source,
    listener: mpsc::Sender<ProviderEvent>,
}

/// Whose containers a service has.
#[derive(Clone)]
enum Source {
    Ours(DockerProvider),
    Others(DiscoveryProvider),
}

/// A container that others have started, with the service that takes it, or tells why not.
pub(super) struct Listed {
    pub service: String,
    pub found: Found,
}

impl fmt::Debug for Roster {
    /// Its entries lead back to it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roster").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// All containers of the services that were in the roster when the engine had told them.
pub(super) struct Listing {
    pub services: BTreeSet<String>,
    pub found: Vec<Found>,
}

impl Roster {
    /// Enters a service, in place of what it was before, and starts the watch if it is the first. The first event is a
    /// list of its containers.
    pub fn enter(self: &Arc<Self>, provider: DockerProvider) -> mpsc::Receiver<ProviderEvent> {
        self.enter_source(provider.settings.service.clone(), Source::Ours(provider))
    }

    /// Enters a service that takes containers of others, as [`enter`](Self::enter) does.
    pub fn enter_discovery(self: &Arc<Self>, provider: DiscoveryProvider) -> mpsc::Receiver<ProviderEvent> {
        self.enter_source(provider.service().to_owned(), Source::Others(provider))
    }

    fn enter_source(self: &Arc<Self>, service: String, source: Source) -> mpsc::Receiver<ProviderEvent> {
        let (listener, receiver) = mpsc::channel(EVENT_BACKLOG);
        locked(&self.entries).insert(service, Entry { source, listener });
        self.has_changed.notify_one();
        self.watch.get_or_init(|| {
            let roster = Arc::clone(self);
            tokio::spawn(async move { watch::watch(&roster).await })
        });
        receiver
    }

    /// Returns the service of a container.
    pub fn owner<'a>(&'a self, labels: &'a HashMap<String, String>) -> &'a str {
        labels::service_in(labels, &self.heir)
    }

    /// Returns where containers are that share this host's network.
    pub fn host_addresses(&self) -> Option<Addresses> {
        *locked(&self.host)
    }

    /// Returns whether any service takes containers of others.
    pub fn discovers(&self) -> bool {
        locked(&self.entries).values().any(|entry| matches!(entry.source, Source::Others(_)))
    }

    /// Returns whether a container is one that a service takes which others have started.
    pub fn is_of_others(&self, id: &ContainerId) -> bool {
        let Some(service) = locked(&self.known).get(id).cloned() else { return false };
        locked(&self.entries).get(&service).is_some_and(|entry| matches!(entry.source, Source::Others(_)))
    }

    /// Asks for the containers that others have started for the services that take them.
    pub async fn offered(&self) -> Result<Vec<Listed>, ProviderError> {
        if !self.discovers() {
            return Ok(Vec::new());
        }
        let summaries = self.engine.offered().await?;
        let takers = self.takers();
        Ok(summaries
            .into_iter()
            .filter_map(|summary| {
                let Offer { service, refused } = takers.offer(&self.instance, summary.labels.as_ref()?)?;
                let found = takers.of.get(&service)?.found_in_list(summary, refused)?;
                Some(Listed { service, found })
            })
            .collect())
    }

    /// Returns the services that have containers of their own. What is only drained has no image.
    fn own(&self) -> impl Iterator<Item = DockerProvider> {
        let entries = locked(&self.entries).clone();
        entries.into_values().filter_map(|entry| match entry.source {
            Source::Ours(provider) if !provider.settings.image.is_empty() => Some(provider),
            Source::Ours(_) | Source::Others(_) => None,
        })
    }

    fn takers(&self) -> Takers {
        let entries = locked(&self.entries);
        let others = entries.iter().filter_map(|(service, entry)| match &entry.source {
            Source::Others(provider) => Some((service.clone(), provider.clone())),
            Source::Ours(_) => None,
        });
        Takers { of: others.collect() }
    }

    /// Asks for everything there is.
    pub async fn list(&self) -> Result<Listing, ProviderError> {
        let images = future::try_join_all(self.own().map(|provider| async move { provider.look_for_image().await }));
        let (summaries, offered, _) = tokio::try_join!(self.engine.containers(&self.instance), self.offered(), images)?;
        let entries = locked(&self.entries).clone();
        let mut known = BTreeMap::new();
        let mut found = Vec::new();
        for Listed { service, found: one } in offered {
            // Its service may have left meanwhile.
            if entries.contains_key(&service) {
                known.insert(one.sighting.id.clone(), service);
                found.push(one);
            }
        }
        for summary in summaries {
            let Some(labels) = &summary.labels else { continue };
            let Some((service, entry)) = entries.get_key_value(self.owner(labels)) else { continue };
            let Source::Ours(provider) = &entry.source else { continue };
            let Some(one) = provider.found_in_list(summary) else { continue };
            known.insert(one.sighting.id.clone(), service.clone());
            found.push(one);
        }
        in_order(&mut found);
        locked(&self.known).extend(known);
        Ok(Listing { services: entries.into_keys().collect(), found })
    }

    /// Looks at one container and its first process, `None` if it is of no service that is in the roster.
    pub async fn look(&self, id: &ContainerId) -> Result<Option<(Found, Option<u32>)>, ProviderError> {
        let container = self.engine.inspect(&id.0).await?;
        let pid = self.engine.process_in(&container).map(|process| process.pid);
        let Some(labels) = container.config.as_ref().and_then(|config| config.labels.as_ref()) else { return Ok(None) };
        let (service, found) = if labels.contains_key(labels::MANAGED) {
            let entry =
                locked(&self.entries).get_key_value(self.owner(labels)).map(|(name, of)| (name.clone(), of.clone()));
            let Some((service, Entry { source: Source::Ours(provider), .. })) = entry else { return Ok(None) };
            if provider.is_of_other_image(container.image.as_deref()) {
                // The name may have got this one since it was looked at.
                provider.look_for_image().await?;
            }
            (service, provider.found(container))
        } else {
            let takers = self.takers();
            let Some(Offer { service, refused }) = takers.offer(&self.instance, labels) else { return Ok(None) };
            let found = takers.of.get(&service).and_then(|provider| provider.found(container, refused));
            (service, found)
        };
        if found.is_some() {
            locked(&self.known).insert(id.clone(), service);
        }
        Ok(found.map(|found| (found, pid)))
    }

    /// Tells a container's service what happened to it; all of them if it is not known whose it is.
    pub async fn tell_of(&self, id: &ContainerId, event: impl Fn() -> ProviderEvent) {
        let service = locked(&self.known).get(id).cloned();
        match service {
            Some(service) => self.tell(&service, event()).await,
            None => self.tell_all(event).await,
        }
    }

    /// Tells every service.
    pub async fn tell_all(&self, event: impl Fn() -> ProviderEvent) {
        let services: Vec<String> = locked(&self.entries).keys().cloned().collect();
        for service in services {
            self.tell(&service, event()).await;
        }
    }

    /// Tells each service of a listing what it has; what is not in any is known no longer.
    pub async fn tell_listing(&self, services: BTreeSet<String>, sightings: Vec<Sighting>) {
        let mut parts: BTreeMap<String, Vec<Sighting>> =
            services.into_iter().map(|service| (service, Vec::new())).collect();
        {
            let mut known = locked(&self.known);
            let listed: BTreeSet<ContainerId> = sightings.iter().map(|sighting| sighting.id.clone()).collect();
            known.retain(|id, _| listed.contains(id));
            for sighting in sightings {
                if let Some(part) = known.get(&sighting.id).and_then(|service| parts.get_mut(service)) {
                    part.push(sighting);
                }
            }
        }
        for (service, part) in parts {
            self.tell(&service, ProviderEvent::Resynced(part)).await;
        }
    }

    /// Tells one service; one that listens no longer is struck out.
    async fn tell(&self, service: &str, event: ProviderEvent) {
        let Some(Entry { listener, .. }) = locked(&self.entries).get(service).cloned() else { return };
        if listener.send(event).await.is_err() {
            let mut entries = locked(&self.entries);
            // Unless it has entered again meanwhile.
            if entries.get(service).is_some_and(|entry| entry.listener.same_channel(&listener)) {
                entries.remove(service);
            }
        }
    }
}

/// Locks what nobody holds for longer than a look.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bollard::Docker;

    use super::*;
    use crate::control::{BackendName, GoneCause, Terms};

    /// A roster on an engine that nobody asks.
    fn roster() -> Arc<Roster> {
        let docker = Docker::connect_with_host("unix:///dev/null").expect("a path that exists");
        let engine = Engine { docker, endpoint: "unix:///dev/null".into() };
        let watch = OnceLock::new();
        watch.set(tokio::spawn(async {})).expect("there is none");
        Arc::new(Roster {
            engine,
            instance: "edge".into(),
            heir: "edge".into(),
            entries: Mutex::default(),
            known: Mutex::default(),
            host: Mutex::default(),
            has_changed: Notify::new(),
            watch,
        })
    }

    fn enter(roster: &Arc<Roster>, service: &str) -> mpsc::Receiver<ProviderEvent> {
        let settings = DockerSettings {
            instance: "edge".into(),
            service: service.into(),
            image: "lb-api".into(),
            network: None,
            cpus: None,
            memory: None,
            env: Vec::new(),
            stop_grace: Duration::ZERO,
        };
        roster.enter(DockerProvider::new(roster.engine.clone(), Arc::clone(roster), settings))
    }

    fn know(roster: &Roster, id: &str, service: &str) {
        locked(&roster.known).insert(id.into(), service.to_owned());
    }

    fn sighting(id: &str) -> Sighting {
        let (name, created) = (BackendName::from(id), 1);
        Sighting {
            id: id.into(),
            name,
            ordinal: 1,
            address: None,
            running: true,
            created,
            outdated: false,
            terms: Terms::default(),
        }
    }

    async fn tell_gone(roster: &Roster, id: &str) {
        let event = || ProviderEvent::Gone { id: id.into(), cause: GoneCause::Removed };
        roster.tell_of(&id.into(), event).await;
    }

    /// Returns what a service was told, in short.
    fn told(receiver: &mut mpsc::Receiver<ProviderEvent>) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(event) = receiver.try_recv() {
            told.push(match event {
                ProviderEvent::Resynced(list) => {
                    format!("all {}", list.iter().map(|one| one.id.0.as_str()).collect::<Vec<_>>().join(" "))
                }
                ProviderEvent::Gone { id, .. } => format!("gone {id}"),
                other => format!("{other:?}"),
            });
        }
        told
    }

    #[tokio::test]
    async fn each_service_is_told_of_its_own_containers() {
        let roster = roster();
        let (mut web, mut api) = (enter(&roster, "web"), enter(&roster, "api"));
        know(&roster, "a", "web");
        know(&roster, "b", "api");
        let services = || ["web", "api"].map(str::to_owned).into();

        roster.tell_listing(services(), vec![sighting("a"), sighting("b")]).await;
        tell_gone(&roster, "a").await;
        roster.tell_listing(services(), vec![sighting("b")]).await;

        assert_eq!(told(&mut web), ["all a", "gone a", "all "]);
        assert_eq!(told(&mut api), ["all b", "all b"]);
    }

    #[tokio::test]
    async fn a_container_that_nobody_knows_may_be_anybodys() {
        let roster = roster();
        let (mut web, mut api) = (enter(&roster, "web"), enter(&roster, "api"));

        tell_gone(&roster, "c").await;

        assert_eq!((told(&mut web), told(&mut api)), (vec!["gone c".into()], vec!["gone c".into()]));
    }

    #[tokio::test]
    async fn a_listing_that_is_older_than_a_service_tells_it_nothing() {
        let roster = roster();
        let mut web = enter(&roster, "web");
        let listed = ["web".to_owned()].into();
        let mut api = enter(&roster, "api");

        roster.tell_listing(listed, Vec::new()).await;

        assert_eq!((told(&mut web), told(&mut api)), (vec!["all ".into()], Vec::new()), "it would seem to have none");
    }

    #[tokio::test]
    async fn one_that_listens_no_longer_is_struck_out_unless_it_has_entered_again() {
        let roster = roster();
        drop(enter(&roster, "web"));
        tell_gone(&roster, "a").await;
        assert!(locked(&roster.entries).is_empty());

        drop(enter(&roster, "web"));
        let mut again = enter(&roster, "web");
        tell_gone(&roster, "a").await;

        assert_eq!(told(&mut again), ["gone a"]);
    }
}
