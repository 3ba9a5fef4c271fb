//! Where clients come from: uplinks, the host's bridges, and the addresses at which frontends answer. Looked at again
//! every few seconds, because interfaces and addresses change under a running agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    time::Duration,
};

use anyhow::Result;

use super::{Agent, Answer};
use crate::{
    config::{Hook, RunConfig, Service, ServiceName},
    control::Event,
    datapath::{
        Datapath, DatapathError,
        doors::{Device, DoorAttach, DoorKind},
        links::{Bridge, Framing, Link, LinkError, Links},
        loader, pins,
        publish::{FrontendWish, Scheduling},
    },
};

/// How long a look at the interfaces may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// The devices and addresses of an instance.
#[derive(Debug, Default)]
pub struct Network {
    uplinks: Vec<Link>,
    bridges: Vec<Bridge>,
    addresses: BTreeSet<IpAddr>,
    existing: BTreeMap<u32, String>,
    problems: Vec<String>,
}

impl Network {
    /// Looks at the interfaces.
    ///
    /// # Errors
    /// If a named uplink does not exist, or none can be found.
    pub async fn find(config: &RunConfig, links: &Links) -> Result<Self> {
        for name in &config.uplinks {
            links.index_of(name).await?;
        }
        let network = Self::look(config, links).await?;
        if network.uplinks.is_empty() {
            anyhow::bail!(
                "no interface carries a default route or has an address by which clients could come: name one with --uplink"
            );
        }
        Ok(network)
    }

    /// Looks at the interfaces; an uplink that is not there is a problem, and keeps no other from being served.
    async fn look(config: &RunConfig, links: &Links) -> Result<Self, LinkError> {
        let existing = links.all().await?;
        let mut problems = Vec::new();
        let uplinks = if config.uplinks.is_empty() {
            let backends: Vec<IpAddr> =
                config.services.iter().flat_map(Service::static_backends).map(|backend| backend.address.ip()).collect();
            links.uplinks(&backends).await?
        } else {
            let mut named = Vec::new();
            for name in &config.uplinks {
                match existing.iter().find(|link| link.name == *name) {
                    Some(link) => named.push(link.clone()),
                    None => problems.push(format!("uplink {name} does not exist: clients cannot come by it")),
                }
            }
            named
        };
        if uplinks.is_empty() {
            problems.push("no uplink is left: clients from outside cannot come".to_owned());
        }
        let mut bridges = links.bridges().await?;
        bridges.retain(|bridge| uplinks.iter().all(|uplink| uplink.index != bridge.index));
        let mut addresses = BTreeSet::new();
        for uplink in &uplinks {
            addresses.extend(links.addresses(uplink.index).await?);
        }
        addresses.extend(bridges.iter().flat_map(|bridge| bridge.addresses.iter().copied()));
        let existing = existing.into_iter().map(|link| (link.index, link.name)).collect();
        Ok(Self { uplinks, bridges, addresses, existing, problems })
    }

    /// Opens the doors and makes the frontends known to the kernel: what can fail comes before what clients see.
    ///
    /// # Errors
    /// If another instance has a frontend, or the kernel refuses.
    pub fn attach(&self, datapath: &mut Datapath, config: &RunConfig) -> Result<(), DatapathError> {
        for link in &self.uplinks {
            if matches!(config.hook, Hook::Xdp) {
                loader::check_xdp(link, config.complete_checksums)?;
            }
        }
        let _nobody_else_takes_one = pins::lock_frontends()?;
        let wishes = self.wishes(config);
        for wish in &wishes {
            datapath.check_others(wish)?;
        }
        for device in self.front_devices() {
            self.open(datapath, config, device)?;
        }
        datapath.open_cgroup()?;
        datapath.serve(&wishes)?;
        self.close_others(datapath)
    }

    /// Follows what has changed: as [`attach`](Self::attach), but what fails keeps nothing else from being done. Returns
    /// what is wrong.
    fn follow(&self, datapath: &mut Datapath, config: &RunConfig) -> Vec<String> {
        let mut problems = Vec::new();
        let mut note =
            |outcome: Result<(), DatapathError>| problems.extend(outcome.err().map(|error| super::chain(&error)));
        for device in self.front_devices() {
            note(self.open(datapath, config, device));
        }
        // The loop waits for nobody: who holds the lock is starting, or is hanging.
        match pins::try_lock_frontends() {
            Ok(Some(_nobody_else_takes_one)) => {
                let mut wishes = self.wishes(config);
                for wish in &mut wishes {
                    // An address that has come to the host may be another instance's by name.
                    for address in std::mem::take(&mut wish.addresses) {
                        let one = FrontendWish { addresses: [address].into(), ..wish.clone() };
                        match datapath.check_others(&one) {
                            Ok(()) => _ = wish.addresses.insert(address),
                            taken => note(taken),
                        }
                    }
                }
                note(datapath.serve(&wishes));
            }
            Ok(None) => note(Err(DatapathError::FrontendsBusy)),
            Err(error) => note(Err(error)),
        }
        note(self.close_others(datapath));
        problems
    }

    /// Returns the devices at which clients are met: uplinks, and bridges for the containers of this host.
    fn front_devices(&self) -> impl Iterator<Item = Device<'_>> {
        let bridges = self.bridges.iter().map(|bridge| Device {
            ifindex: bridge.index,
            name: &bridge.name,
            framing: Framing::Ethernet,
        });
        let uplinks = self.uplinks.iter().map(|uplink| Device {
            ifindex: uplink.index,
            name: &uplink.name,
            framing: uplink.framing,
        });
        bridges.chain(uplinks)
    }

    fn open(&self, datapath: &mut Datapath, config: &RunConfig, device: Device<'_>) -> Result<(), DatapathError> {
        if self.uplinks.iter().any(|uplink| uplink.index == device.ifindex) {
            datapath.open_uplink(config.hook, device)
        } else {
            datapath.open_door(DoorKind::TcIngress, device)
        }
    }

    fn close_others(&self, datapath: &mut Datapath) -> Result<(), DatapathError> {
        let front = self.front_devices().map(|device| device.ifindex).collect();
        let uplinks = self.uplinks.iter().map(|uplink| uplink.index).collect();
        datapath.close_doors_except(DoorKind::TcIngress, &front)?;
        datapath.close_doors_except(DoorKind::Xdp, &uplinks)?;
        datapath.close_doors_except(DoorKind::XdpGeneric, &uplinks)
    }

    fn wishes(&self, config: &RunConfig) -> Vec<FrontendWish> {
        let frontends =
            config.services.iter().flat_map(|service| service.frontends.iter().map(move |publish| (service, publish)));
        frontends
            .map(|(service, publish)| FrontendWish {
                service: service.name.to_string(),
                name: publish.name(),
                proto: publish.proto,
                addresses: loader::answering(publish.at, publish.port.get(), &self.addresses),
                guard: service.guard.clone(),
                scheduling: scheduling(service),
            })
            .collect()
    }

    /// Tells the user where it serves.
    pub fn announce(&self, datapath: &Datapath) {
        for frontend in datapath.registry.frontends() {
            let addresses: Vec<String> = frontend.addresses.iter().map(ToString::to_string).collect();
            tracing::info!("frontend {} at {}", frontend.name, addresses.join(", "));
        }
        for door in datapath.doors() {
            let how = match (door.kind, door.attach) {
                (DoorKind::TcReply, _) => continue,
                (DoorKind::TcIngress, DoorAttach::Link) => "TCX",
                (DoorKind::TcIngress, DoorAttach::Clsact { .. }) => "TC (clsact)",
                (DoorKind::Xdp, _) => "XDP",
                (DoorKind::XdpGeneric, _) => "generic XDP",
                (DoorKind::Cgroup, _) => {
                    tracing::info!("clients on this host: connect()");
                    continue;
                }
            };
            tracing::info!("clients at {}: {how}", door.interface);
        }
    }

    /// Returns what is wrong.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// Returns how the frontends of a service choose backends.
fn scheduling(service: &Service) -> Scheduling {
    // The configuration was checked: it is at most a day.
    let affinity_ms = service.affinity.map_or(0, |affinity| affinity.as_millis() as u32);
    Scheduling {
        scheduler: service.scheduler.into(),
        affinity_ms,
        max_connections: service.max_connections.map_or(0, NonZeroU32::get),
    }
}

impl Agent {
    /// Looks at interfaces and addresses, beside the loop.
    pub(super) fn look_at_network(&mut self) {
        if std::mem::replace(&mut self.is_looking, true) {
            return;
        }
        let (config, links, answers) = (self.config.clone(), self.links.clone(), self.answers.clone());
        tokio::spawn(async move {
            let outcome = match tokio::time::timeout(LOOK_LIMIT, Network::look(&config, &links)).await {
                Ok(outcome) => outcome.map_err(Into::into),
                Err(_) => Err(anyhow::anyhow!("look at the interfaces: no answer within {} s", LOOK_LIMIT.as_secs())),
            };
            let _nobody_listens = answers.send(Answer::Looked(outcome));
        });
    }

    /// Follows interfaces and addresses that have changed. Backends whose device is gone are looked for again.
    pub(super) fn on_network(&mut self, looked: Result<Network>) -> Vec<(ServiceName, Event)> {
        let mut network = match looked {
            Ok(network) => network,
            Err(error) => {
                self.note_network(vec![format!("{error:#}")]);
                return Vec::new();
            }
        };
        if network.addresses != self.network.addresses {
            tracing::info!("the host's addresses have changed; the frontends follow");
        }
        let lost = self.datapath.forget_doors_except(&network.existing);
        for service in self.services.values_mut() {
            service.places.doubt_other_devices(&network.existing);
        }
        let found = std::mem::take(&mut network.problems);
        network.problems = std::mem::take(&mut self.network.problems);
        self.network = network;
        let events = self.follow(found);
        lost.into_iter().flat_map(|id| self.to_all(&Event::WayChanged { id })).chain(events).collect()
    }

    /// Follows frontends that have changed.
    pub(super) fn serve_frontends(&mut self) -> Vec<(ServiceName, Event)> {
        self.follow(Vec::new())
    }

    /// Brings doors and frontends to what they should be. Returns what services have to be told whose frontends have come,
    /// or are to choose backends in another way.
    fn follow(&mut self, mut problems: Vec<String>) -> Vec<(ServiceName, Event)> {
        let before = self.datapath.registry.owners();
        problems.extend(self.network.follow(&mut self.datapath, &self.config));
        self.note_network(problems);
        let owners = self.datapath.registry.owners();
        let came = owners.iter().filter(|(id, owner)| before.get(id) != Some(owner)).map(|(_, owner)| &owner.service);
        let came: BTreeSet<&String> = came.collect();
        let names = self.services.keys().filter(|name| came.iter().any(|service| *service == name.as_str()));
        names.map(|name| (name.clone(), Event::EndpointsChanged)).collect()
    }

    fn note_network(&mut self, problems: Vec<String>) {
        for problem in &problems {
            if !self.network.problems.contains(problem) {
                tracing::error!("{problem}");
            }
        }
        self.network.problems = problems;
    }
}
