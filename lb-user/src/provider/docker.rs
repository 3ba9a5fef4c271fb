//! Containers of a Docker engine as backends, over its HTTP API (unix socket or TCP).
//!
//! Everything that is ours carries the labels of [`labels`]; nothing else is ever touched. The engine's answers are
//! read only as far as API 1.40 to 1.52 agree: requests go out without a version, so the engine speaks its newest.

use std::{
    collections::HashMap,
    env,
    error::Error as StdError,
    io,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bollard::{
    Docker,
    errors::Error as BollardError,
    models::{
        ContainerCreateBody, ContainerInspectResponse, ContainerSummary, ContainerSummaryStateEnum, EndpointSettings,
        EventMessage, HostConfig, RestartPolicy, RestartPolicyNameEnum, SystemInfoCgroupVersionEnum,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder,
        RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
    },
};
use futures_util::{
    StreamExt, TryStreamExt,
    future::{self, BoxFuture},
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;

use super::{Process, Provider, ProviderError, ProviderEvent};
use crate::control::{Addresses, BackendName, ContainerId, Family, Sighting, Terms};

mod discover;
#[cfg(test)]
mod fake;
mod fleet;
pub mod labels;
mod lifeline;
pub mod offer;
mod vigil;
mod watch;

pub use discover::{DiscoveryProvider, DiscoverySettings};
pub use fleet::Fleet;
use fleet::Roster;

/// The oldest API whose fields are relied upon: Docker 19.03, Podman's compatibility layer.
pub const OLDEST_API: &str = "1.40";
/// Where the engine listens unless `DOCKER_HOST` says otherwise.
pub const DEFAULT_ENDPOINT: &str = "unix:///var/run/docker.sock";

/// The network of containers that are told to join none.
const DEFAULT_NETWORK: &str = "bridge";

/// For requests that only read. An engine that starts a dozen containers needs a second for them.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// For requests that create, start or remove a container.
const WRITE_LIMIT: Duration = Duration::from_secs(120);
/// How many containers are stopped at the same time by [`remove_all`]. Most of that time is their grace.
const REMOVALS_AT_ONCE: usize = 16;

/// What the containers of a service look like.
#[derive(Debug, Clone, PartialEq)]
pub struct DockerSettings {
    /// The instance's name, part of the containers' names and labels.
    pub instance: String,
    /// The service's name, part of the containers' names and labels.
    pub service: String,
    /// The image's reference.
    pub image: String,
    /// The network to join; without it, the engine's default.
    pub network: Option<String>,
    /// How many CPUs a container may use.
    pub cpus: Option<f64>,
    /// How many bytes of memory a container may use.
    pub memory: Option<u64>,
    /// Environment variables, `NAME=VALUE`.
    pub env: Vec<String>,
    /// How long the engine waits between SIGTERM and SIGKILL when somebody else stops a container.
    pub stop_grace: Duration,
}

/// What [`Fleet::facts`] found out about the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// Where it is, as in `DOCKER_HOST`.
    pub endpoint: String,
    /// The engine's version, such as `20.10.24`.
    pub version: String,
    /// The newest API that it speaks, such as `1.41`.
    pub api_version: String,
    /// The version of the control groups its containers live in, 1 or 2, where the engine tells.
    pub cgroup_version: Option<u8>,
}

/// The containers of one service on one engine.
#[derive(Debug, Clone)]
pub struct DockerProvider {
    engine: Engine,
    /// Whom the instance's containers belong to.
    roster: Arc<Roster>,
    settings: Arc<DockerSettings>,
    /// The hash of the settings, [`labels::CONFIG`].
    config: Arc<str>,
    /// The id of the image when it was last looked for: the same name may be another image after a build.
    image_id: Arc<Mutex<Option<String>>>,
}

impl DockerProvider {
    fn new(engine: Engine, roster: Arc<Roster>, settings: DockerSettings) -> Self {
        let config = labels::config_hash(&settings).into();
        Self { engine, roster, settings: Arc::new(settings), config, image_id: Arc::default() }
    }

    /// Makes sure that containers of these settings can be started here, and returns of which families their addresses are.
    ///
    /// # Errors
    /// `ImageMissing`, `NetworkMissing`, `NetworkWithoutAddresses`, and those of any request.
    pub async fn check(&self) -> Result<Vec<Family>, ProviderError> {
        self.check_image().await?;
        self.engine.families_on(self.settings.network.as_deref()).await
    }

    /// Looks which image the name means by now. One that is there no longer is missed when a container is to be started.
    async fn look_for_image(&self) -> Result<(), ProviderError> {
        match self.check_image().await {
            Err(ProviderError::ImageMissing { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    async fn check_image(&self) -> Result<(), ProviderError> {
        let image = with_tag(&self.settings.image);
        let answer = self.engine.docker.inspect_image(&image);
        match self.engine.ask(format!("look for image {image}"), READ_LIMIT, answer).await {
            Ok(found) => {
                if found.id.is_some() {
                    *fleet::locked(&self.image_id) = found.id;
                }
                Ok(())
            }
            Err(ProviderError::Refused { status: 404, .. }) => Err(ProviderError::ImageMissing { image }),
            Err(error) => Err(error),
        }
    }

    /// Returns the driver of the network that containers join; nothing where there is none, or the engine does not tell.
    ///
    /// # Errors
    /// Those of any request.
    pub async fn network_driver(&self) -> Result<Option<String>, ProviderError> {
        let network = self.settings.network.as_deref().unwrap_or(DEFAULT_NETWORK);
        let answer = self.engine.docker.inspect_network(network, None);
        match self.engine.ask(format!("look for network {network}"), READ_LIMIT, answer).await {
            Ok(found) => Ok(found.driver),
            Err(ProviderError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list_now(&self) -> Result<Vec<Found>, ProviderError> {
        let summaries = self.engine.containers(&self.settings.instance).await?;
        let mut found: Vec<Found> = summaries.into_iter().filter_map(|summary| self.found_in_list(summary)).collect();
        in_order(&mut found);
        Ok(found)
    }

    async fn start_now(&self, ordinal: u32) -> Result<ContainerId, ProviderError> {
        let id = self.create(ordinal).await?;
        let answer = self.engine.docker.start_container(&id.0, None);
        let action = format!("start container {} of {}", short(&id), self.settings.image);
        if let Err(error) = self.engine.ask(action, WRITE_LIMIT, answer).await {
            if let Err(leftover) = self.engine.remove(&id).await {
                tracing::warn!(container = short(&id), %leftover, "a container that cannot start is left behind");
            }
            return Err(self.name_what_is_missing(error));
        }
        Ok(id)
    }

    /// Creates the container under the first of its names that is free, or can be freed.
    async fn create(&self, ordinal: u32) -> Result<ContainerId, ProviderError> {
        let DockerSettings { instance, service, .. } = &*self.settings;
        for name in labels::names(instance, service, ordinal) {
            if let Some(id) = self.create_named(&name, ordinal).await? {
                return Ok(id);
            }
            if self.clear_leftover(&name).await?
                && let Some(id) = self.create_named(&name, ordinal).await?
            {
                return Ok(id);
            }
        }
        let name = labels::names(instance, service, ordinal).next().expect("there is a first name");
        Err(ProviderError::NameTaken { name })
    }

    /// Creates the container, `None` if the name is in use.
    async fn create_named(&self, name: &str, ordinal: u32) -> Result<Option<ContainerId>, ProviderError> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let answer = self.engine.docker.create_container(Some(options), self.container(ordinal));
        match self.engine.ask(format!("create container {name}"), WRITE_LIMIT, answer).await {
            Ok(created) => Ok(Some(ContainerId(created.id))),
            Err(ProviderError::Refused { status: 409, .. }) => Ok(None),
            Err(error) => Err(self.name_what_is_missing(error)),
        }
    }

    /// Returns the engine's description of the container of `ordinal`.
    ///
    /// It publishes no ports and the engine never restarts it: both are the agent's work. The number of processes is
    /// not limited, as no number suits a server of one process and one of a thousand threads.
    fn container(&self, ordinal: u32) -> ContainerCreateBody {
        let settings = &self.settings;
        ContainerCreateBody {
            image: Some(with_tag(&settings.image)),
            env: Some(settings.env.clone()),
            labels: Some(labels::of(settings, ordinal)),
            stop_timeout: Some(whole_seconds(settings.stop_grace).into()),
            host_config: Some(HostConfig {
                nano_cpus: settings.cpus.map(labels::nano_cpus),
                memory: settings.memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
                network_mode: settings.network.clone(),
                restart_policy: Some(RestartPolicy {
                    name: Some(RestartPolicyNameEnum::NO),
                    maximum_retry_count: None,
                }),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        }
    }

    /// Frees `name` if a container of this service holds it that does not run: what a crash left between create and
    /// start, or one that has ended. Returns whether the name is worth another try.
    async fn clear_leftover(&self, name: &str) -> Result<bool, ProviderError> {
        let holder = match self.engine.inspect(name).await {
            Ok(holder) => holder,
            Err(ProviderError::Gone { .. }) => return Ok(true),
            Err(error) => return Err(error),
        };
        let runs = holder.state.as_ref().and_then(|state| state.running).unwrap_or(true);
        match self.found(holder) {
            Some(leftover) if !runs => {
                self.engine.remove(&leftover.sighting.id).await?;
                Ok(true)
            }
            Some(_) | None => Ok(false),
        }
    }

    fn found_in_list(&self, summary: ContainerSummary) -> Option<Found> {
        let networks = summary.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let paused = summary.state == Some(ContainerSummaryStateEnum::PAUSED);
        let labels = summary.labels?;
        let sighting = Sighting {
            outdated: self.is_outdated(&labels, summary.image_id.as_deref()),
            ordinal: self.ordinal_in(&labels)?,
            id: ContainerId(summary.id?),
            name: plain_name(summary.names.unwrap_or_default().first().map_or("", String::as_str)),
            address: address_on(&networks, self.settings.network.as_deref()),
            running: paused || summary.state == Some(ContainerSummaryStateEnum::RUNNING),
            created: summary.created.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0),
            terms: Terms::default(),
        };
        Some(Found { sighting, paused })
    }

    fn found(&self, container: ContainerInspectResponse) -> Option<Found> {
        let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let state = container.state.unwrap_or_default();
        let labels = container.config?.labels?;
        let sighting = Sighting {
            outdated: self.is_outdated(&labels, container.image.as_deref()),
            ordinal: self.ordinal_in(&labels)?,
            id: ContainerId(container.id?),
            name: plain_name(&container.name.unwrap_or_default()),
            address: address_on(&networks, self.settings.network.as_deref()),
            running: state.running == Some(true) && state.restarting != Some(true),
            created: unix_seconds(&container.created.unwrap_or_default()),
            terms: Terms::default(),
        };
        Some(Found { sighting, paused: state.paused == Some(true) })
    }

    /// Returns the ordinal of a container of this service.
    fn ordinal_in(&self, labels: &HashMap<String, String>) -> Option<u32> {
        let is_ours = self.roster.owner(labels) == self.settings.service;
        is_ours.then(|| labels::ordinal_in(&self.settings.instance, labels))?
    }

    /// Returns whether a container is of other settings, or of another image, than one would be today.
    fn is_outdated(&self, labels: &HashMap<String, String>, image_id: Option<&str>) -> bool {
        self.is_of_other_image(image_id) || labels::is_outdated(&self.config, labels)
    }

    /// Returns whether an image is another than the name meant when it was looked for last.
    fn is_of_other_image(&self, image_id: Option<&str>) -> bool {
        match (image_id, &*fleet::locked(&self.image_id)) {
            (Some(its), Some(todays)) => its != todays,
            (Some(_) | None, _) => false,
        }
    }

    /// Turns the engine's "not found" into the thing that is to be provided.
    fn name_what_is_missing(&self, error: ProviderError) -> ProviderError {
        let ProviderError::Refused { status: 404, message, .. } = &error else {
            return error;
        };
        if message.to_lowercase().contains("no such image") {
            return ProviderError::ImageMissing { image: with_tag(&self.settings.image) };
        }
        match &self.settings.network {
            Some(network) if message.contains(network.as_str()) => {
                ProviderError::NetworkMissing { network: network.clone() }
            }
            Some(_) | None => error,
        }
    }
}

/// Sorts containers by their ordinals.
fn in_order(found: &mut [Found]) {
    found.sort_by(|Found { sighting: a, .. }, Found { sighting: b, .. }| {
        (a.ordinal, a.created, &a.id).cmp(&(b.ordinal, b.created, &b.id))
    });
}

/// A container of a service. One that is paused runs, but serves nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    sighting: Sighting,
    paused: bool,
}

impl Provider for DockerProvider {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Sighting>, ProviderError>> {
        Box::pin(async { Ok(self.list_now().await?.into_iter().map(|found| found.sighting).collect()) })
    }

    fn start(&self, ordinal: u32) -> BoxFuture<'_, Result<ContainerId, ProviderError>> {
        Box::pin(self.start_now(ordinal))
    }

    fn stop<'a>(&'a self, id: &'a ContainerId, grace: Duration) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(self.engine.stop(id, grace))
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(self.engine.remove(id))
    }

    fn process<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Option<Process>> {
        Box::pin(self.engine.process(id))
    }

    fn events(&self) -> mpsc::Receiver<ProviderEvent> {
        self.roster.enter(self.clone())
    }
}

/// Stops and removes every container of `instance` on the engine that `DOCKER_HOST` names, and returns their names.
///
/// # Errors
/// Those of [`Fleet::connect`], then the first that occurred; the other containers are removed all the same.
pub async fn remove_all(instance: &str, grace: Duration) -> Result<Vec<String>, ProviderError> {
    Engine::connect().await?.remove_all(instance, grace).await
}

/// The connection, and the translation of its errors.
#[derive(Debug, Clone)]
struct Engine {
    docker: Docker,
    endpoint: Arc<str>,
}

impl Engine {
    async fn connect() -> Result<Self, ProviderError> {
        let named = env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        Self::connect_to(named.as_deref().unwrap_or(DEFAULT_ENDPOINT)).await
    }

    async fn connect_to(endpoint: &str) -> Result<Self, ProviderError> {
        let docker = Docker::connect_with_host(endpoint).map_err(|error| explain(endpoint, "connect".into(), error))?;
        // The limits that count are those of `ask`; the client's own must not cut a long stop short.
        let engine = Self { docker: docker.with_timeout(Duration::MAX), endpoint: endpoint.into() };
        engine.ask("ping".into(), READ_LIMIT, engine.docker.ping()).await?;
        let version = engine.ask("ask for the version".into(), READ_LIMIT, engine.docker.version()).await?;
        let found = version.api_version.unwrap_or_default();
        if api_order(&found) < api_order(OLDEST_API) {
            return Err(ProviderError::ApiTooOld { endpoint: endpoint.to_owned(), found, needed: OLDEST_API });
        }
        Ok(engine)
    }

    async fn facts(&self) -> Result<EngineFacts, ProviderError> {
        let version = self.ask("ask for the version".into(), READ_LIMIT, self.docker.version()).await?;
        let info = self.ask("ask for the engine's state".into(), READ_LIMIT, self.docker.info()).await?;
        if info.security_options.unwrap_or_default().iter().any(|option| option.contains("rootless")) {
            return Err(ProviderError::Rootless { endpoint: self.endpoint.to_string() });
        }
        Ok(EngineFacts {
            endpoint: self.endpoint.to_string(),
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            cgroup_version: match info.cgroup_version {
                Some(SystemInfoCgroupVersionEnum::_1) => Some(1),
                Some(SystemInfoCgroupVersionEnum::_2) => Some(2),
                Some(SystemInfoCgroupVersionEnum::EMPTY) | None => None,
            },
        })
    }

    /// Returns of which families the addresses are that containers get on a network, or on the one that they join by default.
    async fn families_on(&self, network: Option<&str>) -> Result<Vec<Family>, ProviderError> {
        let name = network.unwrap_or(DEFAULT_NETWORK).to_owned();
        let answer = self.docker.inspect_network(&name, None);
        match self.ask(format!("look for network {name}"), READ_LIMIT, answer).await {
            Ok(found) if matches!(found.driver.as_deref(), Some("host" | "null")) => {
                Err(ProviderError::NetworkWithoutAddresses { network: name })
            }
            Ok(found) => Ok(families_of(found.enable_ipv4, found.enable_ipv6)),
            // Podman's has another name, and an engine may be told to have none.
            Err(ProviderError::Refused { status: 404, .. }) if network.is_none() => Ok(vec![Family::V4]),
            Err(ProviderError::Refused { status: 404, .. }) => Err(ProviderError::NetworkMissing { network: name }),
            Err(error) => Err(error),
        }
    }

    async fn containers(&self, instance: &str) -> Result<Vec<ContainerSummary>, ProviderError> {
        let filters = HashMap::from([("label", vec![format!("{}={instance}", labels::INSTANCE)])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let answer = self.docker.list_containers(Some(options));
        self.ask(format!("list containers of {instance}"), READ_LIMIT, answer).await
    }

    /// Returns the containers that others have started and labelled to be served.
    async fn offered(&self) -> Result<Vec<ContainerSummary>, ProviderError> {
        let filters = HashMap::from([("label", vec![offer::ENABLE.to_owned()])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let answer = self.docker.list_containers(Some(options));
        self.ask("list containers of others".to_owned(), READ_LIMIT, answer).await
    }

    /// Returns a container's first process on this host.
    async fn process(&self, id: &ContainerId) -> Option<Process> {
        // Unasked, where the answer would mean nothing.
        if !self.is_here() {
            return None;
        }
        self.process_in(&self.inspect(&id.0).await.ok()?)
    }

    /// Returns the first process of a container that was inspected.
    fn process_in(&self, container: &ContainerInspectResponse) -> Option<Process> {
        let state = container.state.as_ref().filter(|_| self.is_here())?;
        let pid = state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid > 0)?;
        Some(Process { pid, is_paused: state.paused == Some(true) })
    }

    /// Returns whether it is an engine of this host: process ids of one elsewhere mean nothing here.
    fn is_here(&self) -> bool {
        self.endpoint.starts_with("unix:")
    }

    async fn inspect(&self, name: &str) -> Result<ContainerInspectResponse, ProviderError> {
        let action = format!("inspect container {name}");
        match self.ask(action.clone(), READ_LIMIT, self.docker.inspect_container(name, None)).await {
            Err(ProviderError::Refused { status: 404, .. }) => Err(ProviderError::Gone { action }),
            answer => answer,
        }
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), ProviderError> {
        let options = StopContainerOptionsBuilder::new().t(whole_seconds(grace)).build();
        let answer = self.docker.stop_container(&id.0, Some(options));
        match self.ask(format!("stop container {}", short(id)), grace.saturating_add(WRITE_LIMIT), answer).await {
            Ok(()) => self.remove(id).await,
            Err(ProviderError::Refused { status: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), ProviderError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let answer = self.docker.remove_container(&id.0, Some(options));
        match self.ask(format!("remove container {}", short(id)), WRITE_LIMIT, answer).await {
            // Gone, or somebody is removing it at this moment.
            Ok(()) | Err(ProviderError::Refused { status: 404 | 409, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove_all(&self, instance: &str, grace: Duration) -> Result<Vec<String>, ProviderError> {
        let ours = self.containers(instance).await?.into_iter().filter_map(|container| {
            labels::ordinal_in(instance, container.labels.as_ref()?)?;
            let BackendName(name) = plain_name(container.names.as_ref()?.first()?);
            Some((ContainerId(container.id?), name))
        });
        let removals = stream::iter(ours)
            .map(|(id, name)| async move { self.stop(&id, grace).await.map(|()| name) })
            .buffer_unordered(REMOVALS_AT_ONCE);
        let mut outcomes: Vec<Result<String, ProviderError>> = removals.collect().await;
        outcomes.sort_by(|a, b| a.as_ref().ok().cmp(&b.as_ref().ok()));
        outcomes.into_iter().collect()
    }

    /// Returns the events of the instance's containers, and of those that others have started and labelled to be served. It
    /// ends when either ends. The requests are sent when the stream is first polled.
    fn subscribe(&self, instance: &str) -> BoxStream<'static, Result<EventMessage, ProviderError>> {
        let ours = self.events_of(format!("{}={instance}", labels::INSTANCE));
        let offered = self.events_of(offer::ENABLE.to_owned()).filter(|event| {
            // It is told of by its instance's label, and its image may bring the other.
            future::ready(!event.as_ref().is_ok_and(is_managed))
        });
        stream::select(ours, offered).boxed()
    }

    /// Returns the events of containers with a label; an error is its end, and its end an error.
    fn events_of(&self, label: String) -> BoxStream<'static, Result<EventMessage, ProviderError>> {
        let filters = HashMap::from([("type", vec!["container".to_owned()]), ("label", vec![label])]);
        let options = EventsOptionsBuilder::new().filters(&filters).build();
        let (endpoint, at) = (Arc::clone(&self.endpoint), self.endpoint.to_string());
        let ended = stream::once(future::ready(Err(ProviderError::Unreachable {
            action: "follow the engine's events".into(),
            endpoint: at,
            source: io::Error::new(io::ErrorKind::UnexpectedEof, "the engine closed the connection"),
        })));
        self.docker
            .events(Some(options))
            .map_err(move |error| explain(&endpoint, "follow the engine's events".into(), error))
            .chain(ended)
            .boxed()
    }

    /// Waits for an answer no longer than `limit`, and says what was attempted if it is an error.
    async fn ask<T>(
        &self,
        action: String,
        limit: Duration,
        answer: impl Future<Output = Result<T, BollardError>>,
    ) -> Result<T, ProviderError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.map_err(|error| explain(&self.endpoint, action, error)),
            Err(_) => Err(ProviderError::TimedOut { action, waited: limit }),
        }
    }
}

/// Returns whether an event is of a container that an agent has started.
fn is_managed(event: &EventMessage) -> bool {
    let attributes = event.actor.as_ref().and_then(|actor| actor.attributes.as_ref());
    attributes.is_some_and(|attributes| attributes.contains_key(labels::MANAGED))
}

/// Sorts the client's errors by what can be done about them.
fn explain(endpoint: &str, action: String, error: BollardError) -> ProviderError {
    let endpoint = endpoint.to_owned();
    match error {
        BollardError::DockerResponseServerError { status_code, message } => {
            ProviderError::Refused { action, status: status_code, message: message.trim().to_owned() }
        }
        BollardError::SocketNotFoundError(_) => {
            ProviderError::Unreachable { action, endpoint, source: io::ErrorKind::NotFound.into() }
        }
        BollardError::HyperLegacyError { .. }
        | BollardError::HyperResponseError { .. }
        | BollardError::IOError { .. }
        | BollardError::RequestTimeoutError => {
            ProviderError::Unreachable { action, endpoint, source: io_cause(&error) }
        }
        BollardError::UnsupportedURISchemeError { .. }
        | BollardError::URLParseError { .. }
        | BollardError::InvalidURIError { .. }
        | BollardError::InvalidURIPartsError { .. } => ProviderError::EndpointUnsupported { endpoint },
        // The remaining ones are all answers that cannot be decoded; which they are depends on the client's features.
        other => ProviderError::Garbled { action, source: Box::new(other) },
    }
}

/// Returns what the operating system said, or else the innermost error's words.
fn io_cause(error: &(dyn StdError + 'static)) -> io::Error {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    match innermost.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(innermost.to_string()),
    }
}

/// Returns the address that a container has on the wanted network, or else on its only one.
///
/// On several networks without a wish it is that of the engine's default network, or of the first by name. A container
/// that does not run, or shares the host's network, has none.
fn address_on(networks: &HashMap<String, EndpointSettings>, wanted: Option<&str>) -> Option<Addresses> {
    let Some(wanted) = wanted else {
        let mut names: Vec<&String> = networks.keys().collect();
        names.sort_by_key(|name| (name.as_str() != DEFAULT_NETWORK, *name));
        return names.into_iter().find_map(|name| address_at(&networks[name]));
    };
    let by_id = || networks.values().find(|endpoint| endpoint.network_id.as_deref() == Some(wanted));
    address_at(networks.get(wanted).or_else(by_id)?)
}

fn address_at(endpoint: &EndpointSettings) -> Option<Addresses> {
    let ipv4 = endpoint.ip_address.as_deref().and_then(|text| text.parse().ok());
    let ipv6 = endpoint.global_ipv6_address.as_deref().and_then(|text| text.parse().ok());
    Addresses::of(ipv4, ipv6)
}

/// Returns of which families the addresses on a network are; engines that do not tell of IPv4 always give it.
fn families_of(ipv4: Option<bool>, ipv6: Option<bool>) -> Vec<Family> {
    let given = [(Family::V4, ipv4.unwrap_or(true)), (Family::V6, ipv6.unwrap_or(false))];
    given.into_iter().filter_map(|(family, given)| given.then_some(family)).collect()
}

/// Returns an image's reference with the tag that the engine would assume.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') || image.starts_with("sha256:") {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

/// Returns a container's name without the slash that the engine puts before it.
fn plain_name(name: &str) -> BackendName {
    BackendName(name.strip_prefix('/').unwrap_or(name).to_owned())
}

/// Returns the part of an id by which people know a container.
fn short(id: &ContainerId) -> &str {
    id.0.get(..12).unwrap_or(&id.0)
}

/// Returns a duration in the engine's unit, rounded up, as zero would mean at once.
fn whole_seconds(duration: Duration) -> i32 {
    let seconds = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// Returns an RFC 3339 time as seconds since 1970, 0 if it cannot be read.
fn unix_seconds(rfc3339: &str) -> u64 {
    humantime::parse_rfc3339(rfc3339)
        .ok()
        .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map_or(0, |age| age.as_secs())
}

/// Returns a version such as `1.41` as something that can be compared; what cannot be read is the oldest.
fn api_order(version: &str) -> (u32, u32) {
    let read = || {
        let (major, minor) = version.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    read().unwrap_or((0, 0))
}

#[cfg(test)]
mod sleeper;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_are_compared_as_numbers() {
        assert!(api_order("1.9") < api_order(OLDEST_API));
        assert!(api_order("1.40") >= api_order(OLDEST_API));
        assert!(api_order("1.52") >= api_order(OLDEST_API));
        assert!(api_order("2.0") >= api_order(OLDEST_API));
        assert!(api_order("") < api_order(OLDEST_API));
    }

    #[test]
    fn an_image_without_a_tag_is_the_latest() {
        assert_eq!(with_tag("lb-api"), "lb-api:latest");
        assert_eq!(with_tag("host:5000/lb-api"), "host:5000/lb-api:latest");
        assert_eq!(with_tag("lb-api:7"), "lb-api:7");
        assert_eq!(with_tag("lb-api@sha256:00"), "lb-api@sha256:00");
        assert_eq!(with_tag("sha256:00"), "sha256:00");
    }

    #[test]
    fn the_address_is_that_of_the_wanted_network() {
        let networks = networks(&[("web", "198.19.1.2"), ("bridge", "198.19.2.2"), ("all", "198.19.3.2")]);

        assert_eq!(address_on(&networks, Some("web")), ipv4("198.19.1.2"));
        assert_eq!(address_on(&networks, Some("id-of-all")), ipv4("198.19.3.2"));
        assert_eq!(address_on(&networks, Some("other")), None);
        assert_eq!(address_on(&networks, None), ipv4("198.19.2.2"));
    }

    #[test]
    fn the_address_is_that_of_the_only_network() {
        assert_eq!(address_on(&networks(&[("web", "198.19.1.2")]), None), ipv4("198.19.1.2"));
    }

    fn ipv4(address: &str) -> Option<Addresses> {
        Addresses::of(address.parse().ok(), None)
    }

    #[test]
    fn on_the_hosts_network_there_is_no_address() {
        assert_eq!(address_on(&networks(&[("host", "")]), None), None);
        assert_eq!(address_on(&networks(&[("host", "")]), Some("host")), None);
        assert_eq!(address_on(&networks(&[]), None), None);
    }

    #[test]
    fn a_container_has_an_address_of_each_family_of_its_network() {
        let address = |ipv4: &str| {
            address_at(&EndpointSettings {
                ip_address: Some(ipv4.into()),
                global_ipv6_address: Some("2001:db8::2".into()),
                ..EndpointSettings::default()
            })
        };

        assert_eq!(address(""), Addresses::of(None, "2001:db8::2".parse().ok()));
        assert_eq!(address("198.19.1.2"), Addresses::of("198.19.1.2".parse().ok(), "2001:db8::2".parse().ok()));
        assert_eq!(families_of(None, Some(true)), [Family::V4, Family::V6]);
        assert_eq!(families_of(Some(false), Some(true)), [Family::V6]);
        assert_eq!(families_of(Some(true), None), [Family::V4]);
    }

    #[test]
    fn a_grace_is_never_rounded_to_nothing() {
        assert_eq!(whole_seconds(Duration::ZERO), 0);
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(10)), 10);
        assert_eq!(whole_seconds(Duration::MAX), i32::MAX);
    }

    #[test]
    fn the_engines_times_are_read() {
        assert_eq!(unix_seconds("2024-11-24T04:05:06.123456789Z"), 1_732_421_106);
        assert_eq!(unix_seconds("yesterday"), 0);
    }

    #[test]
    fn errors_say_what_was_tried_and_what_to_do() {
        let error = explain("unix:///nonexistent", "ping".into(), BollardError::SocketNotFoundError("x".into()));

        assert_eq!(
            error.to_string(),
            "ping: the engine at unix:///nonexistent does not answer: start Docker, or point DOCKER_HOST at its socket"
        );
        assert!(error.source().is_some());
    }

    fn networks(addresses: &[(&str, &str)]) -> HashMap<String, EndpointSettings> {
        let endpoint = |name: &str, address: &str| EndpointSettings {
            network_id: Some(format!("id-of-{name}")),
            ip_address: Some(address.to_owned()),
            ..EndpointSettings::default()
        };
        addresses.iter().map(|(name, address)| ((*name).to_owned(), endpoint(name, address))).collect()
    }
}
