//! A service as the agent runs it: its controller, where its backends come from, and what it takes over.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{ENGINE_DELAY, measure::Meters, perform::Places};
use crate::{
    config::{self, ConfigError, Family, Following, Publish, RunConfig, ServiceName, Source},
    control::{
        Addresses, ContainerId, Controller, OnChange, Reconfiguration, Scaling, Settings, Timestamp, law,
        policy::{Bounds, Law, TargetLoad},
    },
    datapath::{
        DatapathError, layout,
        loader::Former,
        publish::{Member, Registry},
        report::Past,
    },
    freezer,
    provider::{
        Provider, ProviderEvent,
        docker::{DiscoverySettings, DockerProvider, DockerSettings, Fleet, offer::Expected},
        fixed::FixedProvider,
    },
};

/// A service that runs, or is on its way out.
pub struct Service {
    pub config: config::Service,
    pub controller: Controller,
    pub provider: Arc<dyn Provider>,
    pub places: Places,
    pub meters: Meters,
    /// Frontends that are its no longer, by name, while they may have connections left.
    pub leaving: BTreeMap<String, Leave>,
    /// Whether it is configured no longer: it ends when it is drained.
    pub is_removed: bool,
    /// Whether its controller has nothing left to do.
    pub has_finished: bool,
    feed: Feed,
}

/// How long a frontend that has gone may keep its connections.
#[derive(Clone, Copy, Debug)]
pub struct Leave {
    /// When it went.
    pub since: Timestamp,
    /// When its connections end, if they have not by then.
    pub deadline: Timestamp,
}

/// What a provider told.
pub struct Told {
    service: ServiceName,
    serial: u64,
    /// Nothing if its watch has ended by itself.
    pub event: Option<ProviderEvent>,
}

/// Where what the providers tell comes together.
pub struct Feeds {
    sender: mpsc::Sender<Told>,
    serials: u64,
}

/// What a provider tells, on its way to the loop. It ends with this.
struct Feed {
    serial: u64,
    task: JoinHandle<()>,
}

impl Feeds {
    pub fn new(sender: mpsc::Sender<Told>) -> Self {
        Self { sender, serials: 0 }
    }

    fn follow(&mut self, service: &ServiceName, provider: &dyn Provider) -> Feed {
        self.serials += 1;
        let (serial, service, sender) = (self.serials, service.clone(), self.sender.clone());
        let mut events = provider.events();
        let task = tokio::spawn(async move {
            loop {
                let event = events.recv().await;
                let is_over = event.is_none();
                let told = Told { service: service.clone(), serial, event };
                if sender.send(told).await.is_err() || is_over {
                    return;
                }
            }
        });
        Feed { serial, task }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Told {
    /// Returns the name of the service that this is for, if it is the service's present provider that told it.
    pub fn addressee(&self, services: &BTreeMap<ServiceName, Service>) -> Option<ServiceName> {
        services.get(&self.service).filter(|service| service.feed.serial == self.serial)?;
        Some(self.service.clone())
    }
}

impl Service {
    pub fn new(
        config: config::Service,
        settings: Settings,
        provider: Arc<dyn Provider>,
        places: Places,
        feeds: &mut Feeds,
    ) -> Self {
        let feed = feeds.follow(&config.name, &*provider);
        Self {
            config,
            controller: Controller::new(settings),
            provider,
            places,
            meters: Meters::default(),
            leaving: BTreeMap::new(),
            is_removed: false,
            has_finished: false,
            feed,
        }
    }

    /// Takes another provider in place of its own.
    pub fn change_provider(&mut self, provider: Arc<dyn Provider>, feeds: &mut Feeds) {
        self.feed = feeds.follow(&self.config.name, &*provider);
        self.provider = provider;
    }

    /// Returns the time between the request to end and the kill.
    pub fn stop_grace(&self) -> Duration {
        stop_grace(&self.config)
    }

    /// Lets frontends go that it has no longer, with the connections that they have.
    pub fn let_go(&mut self, registry: &Registry, now: Timestamp) {
        let names: BTreeSet<String> = self.config.frontends.iter().map(|publish| publish.name()).collect();
        self.leaving.retain(|name, _| !names.contains(name));
        let leave = Leave { since: now, deadline: now + self.config.drain_timeout };
        for backend in registry.backends_of(self.config.name.as_str()) {
            let name = registry.frontend_name(backend.frontend).filter(|name| !names.contains(*name));
            if let Some(name) = name {
                self.leaving.entry(name.to_owned()).or_insert(leave);
            }
        }
    }

    /// Returns what its controller has to be told after `config` has changed.
    pub fn reconfiguration(&self, run: &RunConfig, reason: String) -> Reconfiguration {
        let Settings {
            scaling, most, on_change, drain_timeout, slow_start, warm, probe_interval, stop_patience, ..
        } = settings(&self.config, run);
        let (keep, unlisted) = (run.keep && !self.is_removed, BTreeSet::new());
        Reconfiguration {
            reason,
            scaling,
            most,
            on_change,
            drain_timeout,
            slow_start,
            warm,
            probe_interval,
            stop_patience,
            keep,
            unlisted,
        }
    }

    /// Returns the load of the host at which the most are wanted, in percent, where it is followed.
    pub fn target_cpu_percent(&self) -> Option<f64> {
        match &self.config.source {
            Source::Docker(docker) => match &docker.scaling.following {
                Following::HostCpu(target) => Some(target.percent()),
                Following::Demand(_) => None,
            },
            Source::Static { .. } | Source::Discovered(_) => None,
        }
    }
}

impl Service {
    /// Returns what its scaling follows, for people; nothing with backends that others run.
    pub fn metrics(&self) -> Option<String> {
        self.config.metrics()
    }
}

/// Connects to everything that backends come from, makes sure that containers can be started, and completes the frontends
/// by what the engine tells.
///
/// # Errors
/// The first thing that keeps a service from being served.
pub async fn connect(config: &mut RunConfig) -> Result<(Option<Arc<Fleet>>, BTreeMap<ServiceName, Arc<dyn Provider>>)> {
    let mut fleet = None;
    let mut providers = BTreeMap::new();
    let in_service = |name: &ServiceName, count: usize, error: anyhow::Error| match count {
        1 => error,
        _ => error.context(format!("service {name}")),
    };
    let count = config.services.len();
    for place in 0..count {
        let mut service = config.services[place].clone();
        let found = provider(config, &mut service, &mut fleet).await;
        let found = found.map_err(|error| in_service(&service.name, count, error))?;
        providers.insert(service.name.clone(), found);
        config.services[place] = service;
    }
    check_room(config).map_err(|(name, error)| in_service(&name, count, error.into()))?;
    Ok((fleet, providers))
}

/// Finds the first service for whose backends, or their weights, there is no room: known when all frontends are.
///
/// # Errors
/// Its name, and how much there would be.
pub fn check_room(config: &RunConfig) -> Result<(), (ServiceName, ConfigError)> {
    config.check_room()?;
    let frontends = config.frontends().count();
    let room = layout::room(frontends);
    for service in config.services.iter().filter(|service| service.scheduler.hashes()) {
        let count = service.most_backends_each();
        if count > u64::from(room) {
            return Err((service.name.clone(), ConfigError::TableTooSmall { count, room, frontends }));
        }
    }
    for service in config.services.iter().filter(|service| service.scheduler.counts_weights()) {
        let weights: Vec<u32> = service.static_backends().iter().map(|backend| backend.weight.number()).collect();
        let sum = layout::places(&weights);
        if sum > u64::from(room) {
            return Err((service.name.clone(), ConfigError::WeightsTooGreat { sum, room, frontends }));
        }
    }
    Ok(())
}

/// Returns a service's provider; connects to the engine if it is the first that needs one. Of containers, the engine tells
/// the families, by which the service's frontends are completed.
///
/// # Errors
/// What keeps its containers from being started, or its frontends from having any.
pub async fn provider(
    config: &RunConfig,
    service: &mut config::Service,
    fleet: &mut Option<Arc<Fleet>>,
) -> Result<Arc<dyn Provider>> {
    let fixed = |backends: &[config::StaticBackend]| -> Arc<dyn Provider> {
        let backends: Vec<_> = backends.iter().map(|backend| backend.address).collect();
        Arc::new(FixedProvider::new(&backends))
    };
    if let Source::Static { backends } = &service.source {
        return Ok(fixed(backends));
    }
    if !nix::unistd::Uid::effective().is_root() {
        return Err(DatapathError::NotRoot.into());
    }
    check_frost(service)?;
    let fleet = match fleet {
        Some(fleet) => fleet,
        None => {
            let connected = Fleet::connect(config.instance.as_str(), config.heir().as_str()).await?;
            let facts = connected.facts().await?;
            tracing::info!("Docker {} at {} (API {})", facts.version, facts.endpoint, facts.api_version);
            fleet.insert(Arc::new(connected))
        }
    };
    match &service.source {
        Source::Static { backends } => Ok(fixed(backends)),
        Source::Docker(docker) => {
            let provider = fleet.provider(docker_settings(config, &service.name, docker));
            complete(service, &provider).await?;
            Ok(Arc::new(provider))
        }
        Source::Discovered(discovery) => {
            let provider = fleet.discovery(discovery_settings(service, discovery));
            let families = provider.check().await?;
            service.complete(&families)?;
            Ok(Arc::new(provider))
        }
    }
}

/// Makes sure that a service's containers can be started, and completes its frontends by their families.
///
/// # Errors
/// What keeps them from being started, or its frontends from having any.
pub async fn complete(service: &mut config::Service, provider: &DockerProvider) -> Result<()> {
    let families = provider.check().await?;
    service.complete(&families)?;
    Ok(())
}

/// Returns what a service expects of containers that others start.
pub fn discovery_settings(service: &config::Service, discovery: &config::Discovery) -> DiscoverySettings {
    let has_ports = service.publish.iter().all(|publish| publish.container_port.is_some());
    let expected = Expected { network: discovery.network.clone(), has_ports };
    DiscoverySettings { service: service.name.as_str().to_owned(), expected }
}

/// Makes sure that containers can be frozen, if any are to be.
///
/// # Errors
/// What asks for it, and why it cannot be.
pub fn check_frost(service: &config::Service) -> Result<()> {
    match &service.source {
        Source::Docker(docker) => match docker.freezes() {
            Some(option) => freezer::check().with_context(|| option),
            None => Ok(()),
        },
        Source::Static { .. } | Source::Discovered(_) => Ok(()),
    }
}

/// Returns what a service's containers look like.
pub fn docker_settings(config: &RunConfig, name: &ServiceName, docker: &config::Docker) -> DockerSettings {
    DockerSettings {
        instance: config.instance.as_str().to_owned(),
        service: name.as_str().to_owned(),
        image: docker.image.clone(),
        network: docker.network.clone(),
        cpus: docker.cpus.map(config::Cpus::count),
        memory: docker.memory.map(config::MemorySize::bytes),
        env: docker.env.iter().map(ToString::to_string).collect(),
        stop_grace: docker.stop_grace,
    }
}

/// Returns what a service's controller is configured with.
pub fn settings(service: &config::Service, run: &RunConfig) -> Settings {
    let scaling = match &service.source {
        Source::Static { .. } | Source::Discovered(_) => Scaling::Fixed,
        Source::Docker(docker) => {
            let scaling = &docker.scaling;
            let bounds = Bounds::new(scaling.min, scaling.max).expect("the configuration was checked");
            let (up_window, down_window, interval) = (scaling.up_window, scaling.down_window, run.interval);
            match &scaling.following {
                Following::HostCpu(target) => {
                    let target = TargetLoad::new(target.share()).expect("the configuration was checked");
                    Scaling::Auto(Law { bounds, target, up_window, down_window, interval })
                }
                Following::Demand(targets) => {
                    let (targets, quota) = (**targets, docker.cpus.map(config::Cpus::count));
                    Scaling::Demand(law::Law { bounds, targets, quota, up_window, down_window, interval })
                }
            }
        }
    };
    let most = match &service.source {
        Source::Discovered(discovery) => Some(discovery.max),
        Source::Static { .. } | Source::Docker(_) => None,
    };
    let on_change = match &service.source {
        Source::Docker(docker) => docker.on_change,
        Source::Static { .. } | Source::Discovered(_) => OnChange::Keep,
    };
    Settings {
        most,
        on_change,
        drain_timeout: service.drain_timeout,
        slow_start: service.slow_start.unwrap_or_default(),
        warm: match &service.source {
            Source::Docker(docker) => docker.scaling.warm,
            Source::Static { .. } | Source::Discovered(_) => 0,
        },
        probe_interval: service.health_interval,
        keep: run.keep,
        stop_patience: stop_grace(service).saturating_add(ENGINE_DELAY),
        ..Settings::new(scaling)
    }
}

fn stop_grace(service: &config::Service) -> Duration {
    match &service.source {
        Source::Docker(docker) => docker.stop_grace,
        Source::Static { .. } | Source::Discovered(_) => Duration::ZERO,
    }
}

/// Tells a service's controller what a former agent has left of it.
pub fn adopt(
    settings: &mut Settings,
    places: &mut Places,
    former: &mut Former,
    registry: &Registry,
    service: &config::Service,
) {
    let name = service.name.as_str();
    let slotted = former.inheritance.containers_of(name, &former.ready);
    let mut served: BTreeMap<&ContainerId, Addresses> = BTreeMap::new();
    for backend in registry.backends_of(name) {
        let address = Addresses::from(backend.endpoint.ip());
        served.entry(&backend.container).and_modify(|others| *others = others.or(address)).or_insert(address);
    }
    for (&id, &address) in &served {
        if !is_to_be_shown(id, service) {
            settings.adopted_leaving.insert(id.clone(), address);
            continue;
        }
        let member = registry.member(name, id);
        let is_ready = |family| {
            slotted.contains(&(id.clone(), family))
                && member.as_ref().is_some_and(|member| is_wanted(member, service, family))
        };
        match address.only(is_ready) {
            Some(ready) => _ = settings.adopted_ready.insert(id.clone(), ready),
            None => _ = settings.adopted_flows.insert(id.clone()),
        }
    }
    let is_static = matches!(service.source, Source::Static { .. });
    if is_static && served.keys().any(|id| is_container(id)) {
        tracing::warn!(
            "the containers of the former run stay: `lb-user detach --containers` of an instance that has ended, or \
             `docker rm -f`, removes them"
        );
    }
    if let Some(past) = former.inheritance.services.remove(name) {
        take_over(settings, past);
    }
    places.adopt(registry, name);
    if !served.is_empty() {
        tracing::info!(
            service = name,
            backends = settings.adopted_ready.len(),
            "taking over what a former agent has left; its connections go on"
        );
    }
}

/// Tells a service's controller what its former one has reported.
pub fn take_over(settings: &mut Settings, past: Past) {
    settings.adopted_generation = past.generation;
    settings.adopted_decisions = past.decisions;
    settings.adopted_cost = past.connection_cost;
    settings.adopted_cooldowns = past.cooldowns;
    settings.adopted_orders = past.orders;
    settings.adopted_desired = past.desired;
    settings.adopted_crash_loop = past.crash_loop;
    settings.adopted_rollout = past.rollout;
    settings.adopted_warming = past.warming;
    settings.adopted_warm = past.warm;
}

/// Returns whether a backend is a container, and not a static backend.
pub fn is_container(id: &ContainerId) -> bool {
    id.0.parse::<SocketAddr>().is_err()
}

/// Returns whether the provider may show a backend; one of another provider, or of another list, it does not.
fn is_to_be_shown(id: &ContainerId, service: &config::Service) -> bool {
    match (&service.source, id.0.parse::<SocketAddr>()) {
        (Source::Static { backends }, Ok(address)) => backends.iter().any(|backend| backend.address == address),
        (Source::Static { .. }, Err(_)) | (Source::Docker(_) | Source::Discovered(_), Ok(_)) => false,
        (Source::Docker(_) | Source::Discovered(_), Err(_)) => true,
    }
}

/// Returns whether a backend serves clients of a family as it would today, whatever else it has served. What it lacks of the
/// other family, because that was not served by then, comes with its check.
fn is_wanted(member: &Member, service: &config::Service, family: Family) -> bool {
    if service.frontends.is_empty() {
        return true;
    }
    // A container that others have started may have named its port itself.
    let may_differ = matches!(service.source, Source::Discovered(_));
    let mut of_family = service.frontends.iter().filter(|publish| publish.family() == Some(family)).peekable();
    let serves = |publish: &Publish| {
        let endpoint = member.endpoints.get(&publish.name());
        endpoint.is_some_and(|endpoint| {
            may_differ || publish.container_port.is_none_or(|port| port.get() == endpoint.port())
        })
    };
    of_family.peek().is_some() && of_family.all(serves)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::file::parse,
        config::Snat,
        control::WHOLE,
        datapath::{
            links::{Framing, Reach},
            report::Way,
        },
    };

    #[test]
    fn each_family_is_taken_over_for_itself() {
        let way = Way {
            reach: Reach::Veth,
            ifindex: 7,
            name: "veth7".into(),
            reply_ifindex: 7,
            reply_name: "veth7".into(),
            reply_framing: Framing::Ethernet,
            mac: [2; 6],
            source_mac: [4; 6],
            host_address: None,
            host_address_v6: None,
            netns: None,
            snat: Snat::default(),
        };
        let wanted = |publish: &str, held: &[(&str, &str)]| {
            let text = format!("[[service]]\nname = \"a\"\nimage = \"lb-api\"\npublish = [{publish}]\n");
            let mut config = parse(&text).unwrap_or_else(|mistakes| panic!("{text}{mistakes:?}"));
            config.services[0].complete(&[Family::V4, Family::V6]).unwrap();
            let endpoints = held.iter().map(|&(name, at)| (name.to_owned(), at.parse().unwrap())).collect();
            let (weight, tenths) = (1, WHOLE);
            let member = Member { container: "c".into(), endpoints, way: way.clone(), weight, tenths, asleep: false };
            [Family::V4, Family::V6].map(|family| is_wanted(&member, &config.services[0], family))
        };
        let (v4, v6) = (("80/tcp", "198.18.2.2:5000"), ("[::]:80/tcp", "[2001:db8::2]:5000"));

        assert_eq!(wanted("\"80:5000\"", &[v4]), [true, false], "of an agent that knew IPv4 alone");
        assert_eq!(wanted("\"80:5000\"", &[v4, v6]), [true, true]);
        assert_eq!(wanted("\"80:5001\"", &[v4, v6]), [false, false], "another port");
        assert_eq!(wanted("\"80:5000\", \"81:5001\"", &[v4, v6]), [false, false], "a further frontend");
        assert_eq!(wanted("\"[::]:80:5000\"", &[v4, v6]), [false, true]);
    }
}
