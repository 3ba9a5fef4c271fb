//! Looks at the machine. Everything that `run` would refuse is asked of the functions by which it refuses.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, thread, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::sync::oneshot;

use super::{
    Progress,
    facts::{
        Backend, Bridge, Clients, Containers, Engine, EngineTrouble, Facts, Hindrance, Instance, Kernel, Sight, Uplink,
    },
};
use crate::{
    agent::{chain, network::Network, perform, service},
    config::{Family, RunConfig, Service, ServiceName, Source},
    datapath::{
        DatapathError,
        links::{Link, LinkError, Links},
        loader, netdev, pins, probe, sockets,
    },
    health,
    provider::{ProviderError, docker::Fleet},
};

mod host;

/// How long the engine is waited for.
const ENGINE_LIMIT: Duration = Duration::from_secs(10);
/// How many backends are asked; a file may list a thousand.
const BACKENDS_ASKED: usize = 64;
/// How many of them at the same time.
const ASKED_AT_ONCE: usize = 16;

/// Looks at everything that has a consequence for what is configured, and completes the frontends by what the engine tells.
pub async fn gather(config: &mut RunConfig, progress: &Progress) -> Facts {
    // The verifier takes the longest.
    let trial = begin_trial(config);
    progress.tell("asking Docker");
    let (engine, containers) = engine(config).await;
    let room = service::check_room(config).err().map(|(name, error)| format!("service {name}: {error}"));
    let frost = frost(config);
    progress.tell("looking at the network");
    let (clients, refusals, taken) = clients(config).await;
    progress.tell("asking backends");
    let (backends, backends_left_out) = backends(config).await;
    let listeners = match sockets::listeners() {
        Ok(listeners) => Sight::Seen(listeners),
        Err(error) => Sight::Unclear(error.to_string()),
    };
    let instances = if is_root() { Sight::Seen(instances(config)) } else { Sight::NeedsRoot };
    progress.tell("loading programs through the verifier");
    let kernel = kernel(trial.await);
    let host = host::look();
    Facts {
        kernel,
        host,
        clients,
        refusals,
        listeners,
        taken,
        instances,
        engine,
        containers,
        room,
        frost,
        backends,
        backends_left_out,
    }
}

fn is_root() -> bool {
    loader::check_root().is_ok()
}

/// Loads the object beside everything else.
fn begin_trial(config: &RunConfig) -> impl Future<Output = Sight<Result<probe::Trial, String>>> + use<> {
    let (sender, receiver) = oneshot::channel();
    let how = config.tc_attach;
    if is_root() {
        thread::spawn(move || {
            let outcome = probe::try_out(how).map_err(|error| chain(&error));
            let _nobody_waits = sender.send(outcome);
        });
    }
    async move {
        match receiver.await {
            Ok(outcome) => Sight::Seen(outcome),
            Err(_) => Sight::NeedsRoot,
        }
    }
}

fn kernel(trial: Sight<Result<probe::Trial, String>>) -> Kernel {
    let refusals = [
        ("object", loader::check_object()),
        ("types", loader::check_types()),
        ("namespaces", loader::check_namespace().map(|_cookie| ())),
    ];
    let refused = |(subject, outcome): (&'static str, Result<(), DatapathError>)| {
        outcome.err().map(|error| (subject, chain(&error)))
    };
    Kernel {
        release: host::word("/proc/sys/kernel/osrelease"),
        is_root: is_root(),
        lacking: if is_root() { host::lacking_capabilities() } else { Vec::new() },
        refusals: refusals.into_iter().filter_map(refused).collect(),
        trial,
        lockdown: fs::read_to_string("/sys/kernel/security/lockdown").ok().and_then(|text| host::lockdown_in(&text)),
        has_tc: host::has_program("tc"),
        bpffs: pins::is_bpffs_mounted(),
        shares_mounts: host::shares_mounts(),
        cgroup2: pins::mounted_cgroup2().ok().flatten(),
        has_cgroup2: host::has_cgroup2(),
        sees_all_cgroups: host::sees_all_cgroups(),
        at_connect: match is_root().then(probe::at_connect) {
            Some(Ok(programs)) => Sight::Seen(programs),
            Some(Err(error)) => Sight::Unclear(error.to_string()),
            None => Sight::NeedsRoot,
        },
    }
}

async fn clients(config: &RunConfig) -> (Result<Clients, String>, Vec<String>, Sight<Vec<String>>) {
    let survey = async {
        let links = Links::open()?;
        let (network, refusals) = Network::survey(config, &links).await?;
        let mut clients = Clients::default();
        let taken = if is_root() { Sight::Seen(taken(config, &network)) } else { Sight::NeedsRoot };
        for link in network.uplinks() {
            clients.uplinks.push(uplink(config, &network, &links, link).await?);
        }
        let all = links.all().await?;
        for bridge in network.bridges() {
            let mtu = all.iter().find(|link| link.index == bridge.index).map_or(0, |link| link.mtu);
            clients.bridges.push(Bridge { name: bridge.name.clone(), mtu });
        }
        let further = network.bridges().iter().map(|bridge| &bridge.name);
        for name in further.chain(network.vlans().iter().map(|vlan| &vlan.name)).filter(|_| is_root()) {
            // One that goes meanwhile has none.
            clients.programs.push((name.clone(), probe::at_ingress(name).unwrap_or_default()));
        }
        Ok::<_, LinkError>((clients, refusals, taken))
    };
    match survey.await {
        Ok((clients, refusals, taken)) => (Ok(clients), refusals, taken),
        Err(error) => (Err(chain(&error)), Vec::new(), Sight::Unclear("the interfaces are not known".into())),
    }
}

async fn uplink(config: &RunConfig, network: &Network, links: &Links, link: &Link) -> Result<Uplink, LinkError> {
    let addresses = network.addresses_of(link.index);
    let has = |family: &Family| addresses.iter().any(|address| Family::of(*address) == *family);
    let xdp = match netdev::xdp_features(link.index) {
        Ok(features) => Sight::Seen(features),
        Err(error) => Sight::Unclear(error.to_string()),
    };
    let programs = match is_root().then(|| probe::at_ingress(&link.name)) {
        Some(Ok(programs)) => Sight::Seen(programs),
        Some(Err(error)) => Sight::Unclear(error.to_string()),
        None => Sight::NeedsRoot,
    };
    let xdp_program = links.xdp_program(link.index).await?.map(|id| {
        let name = if is_root() { probe::name_of(id) } else { None };
        probe::Neighbour { id, name: name.unwrap_or_default() }
    });
    let of_link = |vlan: &&Link| vlan.lower == Some(link.index);
    Ok(Uplink {
        name: link.name.clone(),
        kind: link.kind.clone(),
        is_up: link.up,
        mtu: link.mtu,
        families: [Family::V4, Family::V6].into_iter().filter(has).collect(),
        vlans: network.vlans().iter().filter(of_link).map(|vlan| vlan.name.clone()).collect(),
        refusal: network.check_uplink(link, config).err().map(|error| chain(&error)),
        is_dispensable: network.is_dispensable(link.index),
        xdp,
        programs,
        xdp_program,
    })
}

/// Returns which frontends other instances have.
fn taken(config: &RunConfig, network: &Network) -> Vec<String> {
    let Ok(cookie) = loader::check_namespace() else { return Vec::new() };
    let wishes = network.wishes(config);
    let refusals = wishes.iter().filter_map(|wish| loader::check_others(config.instance.as_str(), cookie, wish).err());
    refusals.map(|error| chain(&error)).collect()
}

fn instances(config: &RunConfig) -> Vec<Instance> {
    let mut names = pins::instances();
    // Its lock alone would keep it from running.
    let own = config.instance.as_str();
    if pins::is_locked(own) && names.iter().all(|name| name != own) {
        names.push(own.to_owned());
    }
    let hindrance = |error| match error {
        DatapathError::OtherNamespace { .. } => Hindrance::Elsewhere(chain(&error)),
        DatapathError::OtherAbi { found, .. } => Hindrance::Version { told: chain(&error), abi: found },
        error => Hindrance::Other(chain(&error)),
    };
    let remains = |name: &String| loader::remains(name).map_err(hindrance);
    names.into_iter().map(|name| Instance { remains: remains(&name), name }).collect()
}

async fn engine(
    config: &mut RunConfig,
) -> (Result<Engine, EngineTrouble>, Vec<(ServiceName, Result<Containers, String>)>) {
    let trouble = |error: &ProviderError| EngineTrouble {
        told: chain(error),
        is_permission: matches!(error, ProviderError::Unreachable { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied),
    };
    let connected = async {
        let fleet = Fleet::connect(config.instance.as_str(), config.heir().as_str()).await?;
        let facts = fleet.facts().await?;
        Ok::<_, ProviderError>((Arc::new(fleet), facts))
    };
    let connected = tokio::time::timeout(ENGINE_LIMIT, connected).await;
    let late = || ProviderError::TimedOut { action: "ask for the engine's state".into(), waited: ENGINE_LIMIT };
    let (fleet, facts) = match connected.unwrap_or_else(|_| Err(late())) {
        Ok(connected) => connected,
        Err(error) => return (Err(trouble(&error)), Vec::new()),
    };
    let mut containers = Vec::new();
    let said = config.clone();
    for service in &mut config.services {
        let Source::Docker(docker) = &service.source else { continue };
        let provider = fleet.provider(service::docker_settings(&said, &service.name, docker));
        let found = match service::complete(service, &provider).await {
            Ok(()) => match provider.network_driver().await {
                Ok(driver) => Ok(Containers { driver, families: service.families.clone() }),
                Err(error) => Err(chain(&error)),
            },
            Err(error) => Err(chain(&*error)),
        };
        containers.push((service.name.clone(), found));
    }
    let engine = Engine {
        endpoint: facts.endpoint,
        version: facts.version,
        api: facts.api_version,
        cgroups: facts.cgroup_version,
    };
    (Ok(engine), containers)
}

/// Returns the services whose containers cannot be frozen, though they are to be.
fn frost(config: &RunConfig) -> Vec<(ServiceName, String)> {
    let refusal = |service: &Service| Some((service.name.clone(), chain(&*service::check_frost(service).err()?)));
    config.services.iter().filter_map(refusal).collect()
}

/// Asks backends as their health check does, and then the kernel for what it has learnt of the way.
async fn backends(config: &RunConfig) -> (Vec<Backend>, usize) {
    let all: Vec<(&Service, SocketAddr)> = config
        .services
        .iter()
        .flat_map(|service| service.static_backends().iter().map(move |backend| (service, backend.address)))
        .collect();
    let links = match Links::open() {
        Ok(links) => links,
        Err(error) => {
            let unknown = |(service, address): &(&Service, SocketAddr)| Backend {
                service: service.name.clone(),
                address: *address,
                way: Err(chain(&error)),
                health: Ok(()),
            };
            return (all.iter().map(unknown).collect(), 0);
        }
    };
    let asked: Vec<Backend> = stream::iter(all.iter().take(BACKENDS_ASKED))
        .map(async |&(service, address)| backend(&links, service, address).await)
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await;
    let left_out = all.len() - asked.len();
    (asked, left_out)
}

async fn backend(links: &Links, service: &Service, address: SocketAddr) -> Backend {
    let (mut health, mut way) = (Ok(()), links.outlook(address.ip()).await);
    // Whom the kernel does not lead to needs not be asked.
    if way.is_ok() {
        let limit = perform::PROBE_LIMIT.min(service.health_interval);
        health = health::probe(&service.health, address, limit).await.map_err(|error| chain(&error));
        way = links.outlook(address.ip()).await;
    }
    let way = way.and_then(|outlook| {
        let path = outlook.path.map(|path| perform::hidable(path, address.ip(), service.snat)).transpose()?;
        Ok((path.as_ref().map(|path| path.reach), path.map_or(outlook.device.name, |path| path.name)))
    });
    Backend { service: service.name.clone(), address, way: way.map_err(|error| chain(&error)), health }
}

/// Returns where a program is looked for.
fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}
