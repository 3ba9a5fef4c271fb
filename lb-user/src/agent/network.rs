//! Where clients come from: uplinks and their VLANs, the host's bridges, and the addresses at which frontends answer.
//! Looked at again every few seconds, because interfaces and addresses change under a running agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    time::Duration,
};

use anyhow::Result;

use super::{Agent, Answer};
use crate::{
    config::{Family, Hook, RunConfig, Service, ServiceName, Snat, Source},
    control::{Addresses, Event},
    datapath::{
        Datapath, DatapathError,
        doors::{self, Device, DoorAttach, DoorKind},
        links::{self, Bridge, Framing, Link, LinkError, LinkKind, Links},
        loader, local, pins,
        publish::{FrontendWish, Scheduling},
        rehearse,
    },
    provider::docker::Fleet,
};

/// How long a look at the interfaces may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// The devices and addresses of an instance.
#[derive(Debug, Default)]
pub struct Network {
    uplinks: Vec<Link>,
    vlans: Vec<Link>,
    bridges: Vec<Bridge>,
    /// The addresses of uplinks and VLANs, by their index.
    addresses: BTreeMap<u32, Vec<IpAddr>>,
    /// Uplinks that are such for the sake of one family alone, while the other has uplinks of its own: they keep nothing from
    /// being served.
    dispensable: BTreeSet<u32>,
    /// Those of them that cannot do what the hook asks for.
    unfit: BTreeSet<u32>,
    existing: BTreeMap<u32, String>,
    /// By which addresses a container is reached that shares this host's network; nothing where no service would take it.
    host: Option<Addresses>,
    problems: Vec<String>,
}

impl Network {
    /// Looks at the interfaces.
    ///
    /// # Errors
    /// If a named uplink does not exist, or none can be found.
    pub async fn find(config: &RunConfig, links: &Links) -> Result<Self> {
        let (network, refusals) = Self::survey(config, links).await?;
        match refusals.into_iter().next() {
            Some(first) => anyhow::bail!(first),
            None => Ok(network),
        }
    }

    /// Looks at the interfaces, and tells all that keeps an instance from starting on them.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn survey(config: &RunConfig, links: &Links) -> Result<(Self, Vec<String>), LinkError> {
        let mut refusals = Vec::new();
        for name in &config.uplinks {
            match links.index_of(name).await {
                Ok(_) => {}
                Err(error @ LinkError::UnknownInterface { .. }) => refusals.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        for (service, address) in snats(config) {
            if !links.is_own(address).await? {
                refusals.push(foreign_snat(service, address));
            }
        }
        let network = Self::look(config, links, None).await?;
        if network.uplinks.is_empty() && config.uplinks.is_empty() {
            refusals.push(
                "no interface carries a default route or has an address by which clients could come: name one with --uplink"
                    .to_owned(),
            );
        }
        Ok((network, refusals))
    }

    /// Looks at the interfaces; an uplink that is not there is a problem, and keeps no other from being served.
    /// The `former` addresses for those who share its network stay, as long as they are there.
    async fn look(config: &RunConfig, links: &Links, former: Option<Addresses>) -> Result<Self, LinkError> {
        let existing = links.all().await?;
        let mut problems = Vec::new();
        let mut dispensable = BTreeSet::new();
        let uplinks = if config.uplinks.is_empty() {
            // With snat, clients and backends may come by one device.
            let apart = config.services.iter().filter(|service| service.snat == Snat::default());
            let backends: Vec<IpAddr> =
                apart.flat_map(Service::static_backends).map(|backend| backend.address.ip()).collect();
            let mut of_each = Vec::new();
            for family in families(config) {
                of_each.push(links.uplinks(family, &backends).await?);
            }
            let (uplinks, others) = union(of_each);
            dispensable = others;
            uplinks
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
        for (service, address) in snats(config) {
            if !links.is_own(address).await? {
                problems.push(foreign_snat(service, address));
            }
        }
        let mut bridges = links.bridges().await?;
        bridges.retain(|bridge| uplinks.iter().all(|uplink| uplink.index != bridge.index));
        let vlans = links::vlans_of(&uplinks, &existing);
        let mut addresses = BTreeMap::new();
        for link in uplinks.iter().chain(&vlans) {
            addresses.insert(link.index, links.addresses(link.index).await?);
        }
        let existing = existing.into_iter().map(|link| (link.index, link.name)).collect();
        let takes_others = |service: &Service| matches!(service.source, Source::Discovered(_));
        let host = if config.services.iter().any(takes_others) {
            let devices: Vec<u32> = uplinks.iter().chain(&vlans).map(|link| link.index).collect();
            let former = former.map_or((None, None), |former| former.pair());
            let (v4, v6) = links.host_network_addresses(&devices, former).await?;
            Addresses::of(v4, v6)
        } else {
            None
        };
        Ok(Self { uplinks, vlans, bridges, addresses, dispensable, unfit: BTreeSet::new(), existing, host, problems })
    }

    /// Tells containers of an engine where those are that share this host's network.
    pub fn tell_host(&self, fleet: Option<&Fleet>) {
        if let Some(fleet) = fleet {
            fleet.set_host_addresses(self.host);
        }
    }

    /// Opens the doors and makes the frontends known to the kernel: what can fail comes before what clients see.
    ///
    /// # Errors
    /// If another instance has a frontend, or the kernel refuses.
    pub fn attach(&mut self, datapath: &mut Datapath, config: &RunConfig) -> Result<(), DatapathError> {
        for link in self.uplinks.clone() {
            let outcome = self.check_uplink(&link, config);
            self.dispense(link.index, outcome)?;
        }
        let _nobody_else_takes_one = pins::lock_frontends()?;
        let wishes = self.wishes(config);
        self.check_own(config, &wishes)?;
        for wish in &wishes {
            datapath.check_others(wish)?;
        }
        self.open_all(datapath, config).into_iter().collect::<Result<(), _>>()?;
        datapath.answer_at(&self.answering(config))?;
        datapath.open_cgroup()?;
        datapath.serve(&wishes)?;
        self.close_others(datapath)
    }

    /// Makes sure that nothing keeps the doors from being opened that can be seen before it is tried.
    ///
    /// # Errors
    /// If another instance has a frontend, or an uplink cannot do what the hook asks for.
    pub fn check(&self, config: &RunConfig) -> Result<(), DatapathError> {
        for link in self.uplinks.iter().filter(|link| !self.dispensable.contains(&link.index)) {
            loader::check_xdp(link, config.hook, config.complete_checksums)?;
            self.check_tags(link, config.hook)?;
        }
        let wishes = self.wishes(config);
        self.check_own(config, &wishes)?;
        rehearse::check_frontends(config.instance.as_str(), &wishes)
    }

    /// Says where clients would be served, a line each.
    pub fn rehearse(&self, config: &RunConfig) -> Vec<String> {
        let hook = |name: &str| match config.hook {
            Hook::Xdp if self.uplinks.iter().any(|uplink| uplink.name == name) => "XDP and TC",
            Hook::XdpGeneric if self.uplinks.iter().any(|uplink| uplink.name == name) => "generic XDP and TC",
            Hook::Auto | Hook::Tc | Hook::Xdp | Hook::XdpGeneric => "TC",
        };
        let frontends = self.wishes(config).into_iter().map(|wish| {
            let addresses: Vec<String> = wish.addresses.iter().map(ToString::to_string).collect();
            format!("frontend {} of service {}: {}", wish.name, wish.service, addresses.join(", "))
        });
        let devices = self.front_devices().map(|device| format!("clients at {}: {}", device.name, hook(device.name)));
        let local = std::iter::once("clients on this host: connect()".to_owned());
        frontends.chain(devices).chain(local).collect()
    }

    /// Refuses servers of this host that are frontends themselves.
    fn check_own(&self, config: &RunConfig, wishes: &[FrontendWish]) -> Result<(), DatapathError> {
        let own = self.own_addresses();
        for service in &config.services {
            let backends = service.static_backends().iter().map(|backend| backend.address);
            for backend in backends.filter(|backend| own.contains(&backend.ip())) {
                for publish in &service.frontends {
                    local::check_backend(backend, publish.proto, wishes)?;
                }
            }
        }
        Ok(())
    }

    /// Opens every door, and leaves out uplinks that are dispensable and unfit.
    fn open_all(&mut self, datapath: &mut Datapath, config: &RunConfig) -> Vec<Result<(), DatapathError>> {
        let devices: Vec<(u32, Result<(), DatapathError>)> =
            self.front_devices().map(|device| (device.ifindex, self.open(datapath, config, device))).collect();
        devices.into_iter().map(|(ifindex, outcome)| self.dispense(ifindex, outcome)).collect()
    }

    /// Leaves an uplink out that cannot do XDP, if it is dispensable, instead of failing. A bridge or a VLAN that is gone
    /// since it was found is missed by nobody: networks of Docker come and go.
    fn dispense(&mut self, ifindex: u32, outcome: Result<(), DatapathError>) -> Result<(), DatapathError> {
        match outcome {
            Err(
                error @ (DatapathError::Xdp { .. }
                | DatapathError::XdpOnVeth { .. }
                | DatapathError::XdpOnVlan { .. }
                | DatapathError::XdpOnBond { .. }
                | DatapathError::XdpWithoutTags { .. }),
            ) if self.dispensable.contains(&ifindex) => {
                self.leave_out(ifindex);
                let error = super::chain(&error);
                if self.vlans.iter().any(|vlan| vlan.index == ifindex) {
                    tracing::warn!("{error}; clients come by it as a VLAN of another uplink, by TC");
                } else {
                    tracing::warn!("{error}; clients do not come by it, as it is an uplink of one family alone");
                }
                Ok(())
            }
            Err(error)
                if self.uplinks.iter().all(|uplink| uplink.index != ifindex)
                    && matches!(doors::device_name(ifindex), Ok(None)) =>
            {
                tracing::debug!("{}: it is gone", super::chain(&error));
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Leaves an uplink out, and its VLANs with it. It may be a VLAN of another one, though.
    fn leave_out(&mut self, unfit: u32) {
        self.vlans.extend(self.uplinks.extract_if(.., |uplink| uplink.index == unfit));
        self.vlans = links::vlans_of(&self.uplinks, &self.vlans);
        let left: BTreeSet<u32> = self.uplinks.iter().chain(&self.vlans).map(|link| link.index).collect();
        self.addresses.retain(|index, _| left.contains(index));
        self.unfit.insert(unfit);
    }

    /// Leaves out what was found to be unfit before, as long as it is there and is dispensable.
    fn remember_unfit(&mut self, former: &Self) {
        for &unfit in former.unfit.intersection(&self.dispensable.clone()) {
            if former.existing.get(&unfit) == self.existing.get(&unfit) {
                self.leave_out(unfit);
            }
        }
    }

    /// Returns the addresses of uplinks, VLANs and bridges.
    fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let of_bridges = self.bridges.iter().flat_map(|bridge| &bridge.addresses);
        self.addresses.values().flatten().chain(of_bridges).copied().collect()
    }

    /// Follows what has changed: as [`attach`](Self::attach), but what fails keeps nothing else from being done. Returns
    /// what is wrong.
    fn follow(&mut self, datapath: &mut Datapath, config: &RunConfig) -> Vec<String> {
        let mut problems = Vec::new();
        let mut note =
            |outcome: Result<(), DatapathError>| problems.extend(outcome.err().map(|error| super::chain(&error)));
        for uplink in &self.uplinks {
            note(self.check_tags(uplink, config.hook));
        }
        self.open_all(datapath, config).into_iter().for_each(&mut note);
        note(datapath.answer_at(&self.answering(config)));
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

    /// Refuses an uplink at which XDP cannot serve.
    ///
    /// # Errors
    /// Those of [`loader::check_xdp`] and [`loader::check_tags`].
    pub fn check_uplink(&self, uplink: &Link, config: &RunConfig) -> Result<(), DatapathError> {
        loader::check_xdp(uplink, config.hook, config.complete_checksums)?;
        self.check_tags(uplink, config.hook)
    }

    /// Returns the uplinks, without their VLANs.
    pub fn uplinks(&self) -> &[Link] {
        &self.uplinks
    }

    /// Returns the VLANs of uplinks.
    pub fn vlans(&self) -> &[Link] {
        &self.vlans
    }

    /// Returns the bridges at which containers of this host are clients.
    pub fn bridges(&self) -> &[Bridge] {
        &self.bridges
    }

    /// Returns the addresses of an uplink or a VLAN.
    pub fn addresses_of(&self, ifindex: u32) -> &[IpAddr] {
        self.addresses.get(&ifindex).map_or(&[], Vec::as_slice)
    }

    /// Returns whether an uplink is left out if XDP cannot serve there.
    pub fn is_dispensable(&self, ifindex: u32) -> bool {
        self.dispensable.contains(&ifindex)
    }

    /// Refuses XDP where it would take what came by a VLAN of an uplink for the uplink's own.
    fn check_tags(&self, uplink: &Link, hook: Hook) -> Result<(), DatapathError> {
        let is_trunk = self.vlans.iter().any(|vlan| vlan.lower == Some(uplink.index));
        match hook {
            Hook::Xdp | Hook::XdpGeneric if is_trunk => loader::check_tags(uplink),
            Hook::Auto | Hook::Tc | Hook::Xdp | Hook::XdpGeneric => Ok(()),
        }
    }

    /// Returns the devices at which clients are met: uplinks, their VLANs, and bridges for the containers of this host.
    fn front_devices(&self) -> impl Iterator<Item = Device<'_>> {
        let bridges = self.bridges.iter().map(|bridge| Device {
            ifindex: bridge.index,
            name: &bridge.name,
            framing: Framing::Ethernet,
        });
        let links = self.vlans.iter().chain(&self.uplinks).map(|link| Device {
            ifindex: link.index,
            name: &link.name,
            framing: link.framing,
        });
        bridges.chain(links)
    }

    /// Returns the devices that send back what XDP tells them to: behind the driver all do, in it those that are no veth,
    /// whose other end has to poll for that, which cannot be seen from here.
    fn answering(&self, config: &RunConfig) -> BTreeSet<u32> {
        let answers = |link: &&Link| match config.hook {
            Hook::Auto | Hook::Tc => false,
            Hook::Xdp => link.kind != LinkKind::Veth,
            Hook::XdpGeneric => true,
        };
        self.uplinks.iter().filter(answers).map(|link| link.index).collect()
    }

    fn open(&self, datapath: &mut Datapath, config: &RunConfig, device: Device<'_>) -> Result<(), DatapathError> {
        // Replies before requests.
        datapath.open_local_at(device)?;
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
        datapath.close_local_except(&front)?;
        datapath.close_doors_except(DoorKind::Xdp, &uplinks)?;
        datapath.close_doors_except(DoorKind::XdpGeneric, &uplinks)
    }

    /// Returns the frontends with the addresses at which they are to answer.
    pub fn wishes(&self, config: &RunConfig) -> Vec<FrontendWish> {
        let own = self.own_addresses();
        let frontends =
            config.services.iter().flat_map(|service| service.frontends.iter().map(move |publish| (service, publish)));
        frontends
            .map(|(service, publish)| FrontendWish {
                service: service.name.to_string(),
                name: publish.name(),
                proto: publish.proto,
                addresses: loader::answering(publish.at, publish.port.get(), &own),
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
                (DoorKind::TcReply | DoorKind::TcLocal, _) => continue,
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

/// Returns the families of which there are frontends; both where that is not known.
fn families(config: &RunConfig) -> BTreeSet<Family> {
    let both = [Family::V4, Family::V6];
    let is_served = |family: &Family| {
        config.frontends().all(|publish| publish.family().is_none())
            || config.frontends().any(|publish| publish.family().is_none_or(|of| of == *family))
    };
    both.into_iter().filter(is_served).collect()
}

/// Puts the uplinks of families together, by rising index; returns also the indices of those that are not of the first family
/// that has any.
fn union(of_each: Vec<Vec<Link>>) -> (Vec<Link>, BTreeSet<u32>) {
    let mut of_each = of_each.into_iter().filter(|links| !links.is_empty());
    let mut all = of_each.next().unwrap_or_default();
    let needed: BTreeSet<u32> = all.iter().map(|link| link.index).collect();
    all.extend(of_each.flatten().filter(|link| !needed.contains(&link.index)));
    all.sort_by_key(|link| link.index);
    let dispensable = all.iter().map(|link| link.index).filter(|index| !needed.contains(index)).collect();
    (all, dispensable)
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

/// Returns the addresses by which backends know clients, and of which services.
fn snats(config: &RunConfig) -> impl Iterator<Item = (&ServiceName, IpAddr)> {
    config.services.iter().flat_map(|service| service.snat.addresses().map(move |address| (&service.name, address)))
}

fn foreign_snat(service: &ServiceName, address: IpAddr) -> String {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    format!(
        "snat {address} of service {service} is no address of this host, so that no reply comes here: add it to the \
         interface by which backends are reached, as by `ip address add {address}/{bits} dev IFACE`"
    )
}

impl Agent {
    /// Looks at interfaces and addresses, beside the loop.
    pub(super) fn look_at_network(&mut self) {
        if std::mem::replace(&mut self.is_looking, true) {
            return;
        }
        let (config, links, answers) = (self.config.clone(), self.links.clone(), self.answers.clone());
        let former = self.network.host;
        tokio::spawn(async move {
            let outcome = match tokio::time::timeout(LOOK_LIMIT, Network::look(&config, &links, former)).await {
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
        network.remember_unfit(&self.network);
        if network.own_addresses() != self.network.own_addresses() {
            tracing::info!("the host's addresses have changed; the frontends follow");
            // A backend may have become this host, or ceased to be.
            self.services.values_mut().for_each(|service| service.places.doubt_all());
        }
        let lost = self.datapath.forget_doors_except(&network.existing);
        for service in self.services.values_mut() {
            service.places.doubt_other_devices(&network.existing);
        }
        let found = std::mem::take(&mut network.problems);
        network.problems = std::mem::take(&mut self.network.problems);
        self.network = network;
        self.tell_host();
        let events = self.follow(found);
        lost.into_iter().flat_map(|id| self.to_all(&Event::WayChanged { id })).chain(events).collect()
    }

    /// Tells the engine's containers where those are that share this host's network.
    pub(super) fn tell_host(&self) {
        self.network.tell_host(self.fleet.as_deref());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::file::parse, datapath::links::LinkKind};

    fn link(index: u32, kind: LinkKind) -> Link {
        Link {
            index,
            name: format!("if{index}"),
            kind,
            mac: None,
            framing: Framing::Ethernet,
            up: true,
            mtu: 1500,
            controller: None,
            peer_netns: None,
            lower: None,
        }
    }

    fn network(of_each: Vec<Vec<Link>>) -> Network {
        let (uplinks, dispensable) = union(of_each);
        let addresses = uplinks.iter().map(|link| (link.index, vec![IpAddr::from([198, 18, 0, link.index as u8])]));
        let existing = uplinks.iter().map(|link| (link.index, link.name.clone())).collect();
        Network { addresses: addresses.collect(), dispensable, existing, uplinks, ..Network::default() }
    }

    /// What is looked at with these VLANs beside the uplinks.
    fn network_with(of_each: Vec<Vec<Link>>, vlans: &[Link]) -> Network {
        let mut network = network(of_each);
        network.vlans = links::vlans_of(&network.uplinks, vlans);
        let addressed =
            network.vlans.iter().map(|vlan| (vlan.index, vec![IpAddr::from([198, 18, 0, vlan.index as u8])]));
        network.addresses.extend(addressed);
        network
    }

    fn indices(network: &Network) -> Vec<u32> {
        network.uplinks.iter().map(|link| link.index).collect()
    }

    #[test]
    fn uplinks_of_ipv6_come_beside_those_of_ipv4() {
        let [physical, veth] = [link(2, LinkKind::Physical), link(3, LinkKind::Veth)];

        let both = network(vec![vec![physical.clone()], vec![veth.clone(), physical.clone()]]);
        assert_eq!((indices(&both), both.dispensable), (vec![2, 3], [3].into()));
        let only = network(vec![Vec::new(), vec![veth]]);
        assert_eq!((indices(&only), only.dispensable), (vec![3], [].into()), "there is no other");
    }

    #[test]
    fn xdp_is_refused_where_no_reply_would_find_its_way() {
        let refusal = |kind: &str, hook| loader::check_xdp(&link(2, LinkKind::Other(kind.into())), hook, true).err();

        for kind in ["bond", "team"] {
            let error = refusal(kind, Hook::Xdp).expect("refused").to_string();
            assert!(error.contains(&format!(": it is a {kind}")) && error.ends_with("use --hook tc"), "{error}");
            assert!([Hook::Auto, Hook::Tc, Hook::XdpGeneric].into_iter().all(|hook| refusal(kind, hook).is_none()));
        }
        assert!(refusal("dummy", Hook::Xdp).is_none());
    }

    #[test]
    fn an_uplink_of_ipv6_alone_that_cannot_do_xdp_is_left_out() {
        let [physical, veth] = [link(2, LinkKind::Physical), link(3, LinkKind::Veth)];
        let look = || network(vec![vec![physical.clone()], vec![veth.clone()]]);
        let refusal = |link: &Link| loader::check_xdp(link, Hook::Xdp, false);
        let mut found = look();

        assert!(found.dispense(3, refusal(&veth)).is_ok());
        assert!(found.dispense(2, refusal(&veth)).is_err(), "that of IPv4 cannot be done without");

        assert_eq!(indices(&found), [2]);
        assert_eq!(found.own_addresses(), [IpAddr::from([198, 18, 0, 2])].into());
        let mut next = look();
        next.remember_unfit(&found);
        assert_eq!(indices(&next), [2], "nor is it tried again every few seconds");
    }

    #[test]
    fn what_is_gone_since_it_was_found_is_missed_unless_it_is_an_uplink() {
        let [there, gone] = [1, i32::MAX as u32];
        let of = |uplink| network(vec![vec![link(uplink, LinkKind::Physical)]]);
        let refusal = || Err(DatapathError::XdpWithoutTags { interface: "br-1".into() });

        assert!(of(2).dispense(gone, refusal()).is_ok());
        assert!(of(2).dispense(there, refusal()).is_err());
        assert!(of(gone).dispense(gone, refusal()).is_err());
    }

    #[test]
    fn an_uplink_that_is_left_out_takes_its_vlans_along() {
        let vlan = |index, lower| Link { lower: Some(lower), ..link(index, LinkKind::Vlan) };
        let look = || {
            let of_each = vec![vec![link(2, LinkKind::Physical)], vec![link(3, LinkKind::Physical)]];
            network_with(of_each, &[vlan(4, 2), vlan(5, 3), vlan(6, 5)])
        };
        let mut found = look();
        assert_eq!(found.vlans.iter().map(|vlan| vlan.index).collect::<Vec<_>>(), [4, 5, 6]);

        assert!(found.dispense(3, Err(DatapathError::XdpWithoutTags { interface: "if3".into() })).is_ok());

        let mut next = look();
        next.remember_unfit(&found);
        for network in [found, next] {
            assert_eq!(network.front_devices().map(|device| device.ifindex).collect::<Vec<_>>(), [4, 2]);
            assert_eq!(network.own_addresses(), [2, 4].map(|index| IpAddr::from([198, 18, 0, index])).into());
        }
    }

    #[test]
    fn a_vlan_that_is_no_uplink_of_its_own_is_one_of_the_device_below() {
        let vlan = Link { lower: Some(2), ..link(3, LinkKind::Vlan) };
        let mut found = network(vec![vec![link(2, LinkKind::Physical)], vec![vlan.clone()]]);

        assert!(found.dispense(3, loader::check_xdp(&vlan, Hook::Xdp, true)).is_ok());

        assert_eq!(indices(&found), [2]);
        assert_eq!(found.vlans, [vlan]);
        assert_eq!(found.own_addresses(), [2, 3].map(|index| IpAddr::from([198, 18, 0, index])).into());
    }

    #[test]
    fn uplinks_are_looked_for_of_the_families_that_are_served() {
        let of = |publish: &str, backend: &str| {
            let text = format!("[[service]]\nname = \"a\"\npublish = \"{publish}\"\nbackends = [{backend}]\n");
            let config = parse(&text).unwrap_or_else(|mistakes| panic!("{text}{mistakes:?}"));
            families(&config).into_iter().collect::<Vec<_>>()
        };

        assert_eq!(of("80", "\"198.18.2.11:80\""), [Family::V4]);
        assert_eq!(of("80", "\"[2001:db8::2]:80\""), [Family::V6]);
        assert_eq!(of("80", "\"198.18.2.11:80\", \"[2001:db8::2]:80\""), [Family::V4, Family::V6]);
    }
}
