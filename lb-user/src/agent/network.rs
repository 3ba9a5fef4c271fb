//! Where clients come from: uplinks, the host's bridges, and the addresses at which frontends answer. Looked at again
//! every few seconds, because interfaces and addresses change under a running agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::Result;

use super::Agent;
use crate::{
    config::{Hook, RunConfig, Source},
    datapath::{
        Datapath, DatapathError,
        doors::{DoorAttach, DoorKind},
        links::{Bridge, Link, LinkError, Links},
        loader,
        publish::FrontendWish,
    },
};

/// The devices and addresses of an instance.
#[derive(Debug, Default)]
pub struct Network {
    uplinks: Vec<Link>,
    bridges: Vec<Bridge>,
    addresses: BTreeSet<Ipv4Addr>,
    existing: BTreeSet<u32>,
    problems: Vec<String>,
}

impl Network {
    /// Looks at the interfaces.
    ///
    /// # Errors
    /// If a named uplink does not exist, or none can be found.
    pub async fn find(config: &RunConfig, links: &Links) -> Result<Self> {
        let network = Self::look(config, links).await?;
        if network.uplinks.is_empty() {
            anyhow::bail!(
                "no interface carries a default route or has an address by which clients could come: name one with --uplink"
            );
        }
        Ok(network)
    }

    async fn look(config: &RunConfig, links: &Links) -> Result<Self, LinkError> {
        let existing = links.all().await?;
        let uplinks = if config.uplinks.is_empty() {
            let backends = match &config.source {
                Source::Static { backends } => backends.iter().map(|backend| *backend.ip()).collect(),
                Source::Docker(_) => Vec::new(),
            };
            links.uplinks(&backends).await?
        } else {
            let mut named = Vec::new();
            for name in &config.uplinks {
                let index = links.index_of(name).await?;
                named.extend(existing.iter().find(|link| link.index == index).cloned());
            }
            named
        };
        let mut bridges = links.bridges().await?;
        bridges.retain(|bridge| uplinks.iter().all(|uplink| uplink.index != bridge.index));
        let mut addresses = BTreeSet::new();
        for uplink in &uplinks {
            addresses.extend(links.addresses(uplink.index).await?);
        }
        addresses.extend(bridges.iter().flat_map(|bridge| bridge.addresses.iter().copied()));
        let existing = existing.iter().map(|link| link.index).collect();
        Ok(Self { uplinks, bridges, addresses, existing, problems: Vec::new() })
    }

    /// Makes the frontends known to the kernel and opens the doors.
    ///
    /// # Errors
    /// If another instance has a frontend, or the kernel refuses.
    pub fn attach(&self, datapath: &mut Datapath, config: &RunConfig) -> Result<(), DatapathError> {
        for link in &self.uplinks {
            if matches!(config.hook, Hook::Xdp) {
                loader::check_xdp(link, config.complete_checksums)?;
            }
        }
        let wishes = self.wishes(config);
        for wish in &wishes {
            datapath.check_others(&wish.addresses, wish.proto == lb_ebpf::abi::Proto::Udp)?;
        }
        self.bring_up(datapath, config, &wishes)
    }

    fn bring_up(
        &self,
        datapath: &mut Datapath,
        config: &RunConfig,
        wishes: &[FrontendWish],
    ) -> Result<(), DatapathError> {
        datapath.serve(wishes)?;
        let doors: BTreeMap<u32, &str> =
            self.bridges.iter().map(|bridge| (bridge.index, bridge.name.as_str())).collect();
        for (&ifindex, name) in &doors {
            datapath.open_door(DoorKind::TcIngress, ifindex, name)?;
        }
        for uplink in &self.uplinks {
            datapath.open_uplink(config.hook, uplink.index, &uplink.name)?;
        }
        datapath.open_cgroup()?;
        let uplinks: BTreeSet<u32> = self.uplinks.iter().map(|uplink| uplink.index).collect();
        let front = uplinks.iter().copied().chain(doors.into_keys()).collect();
        datapath.close_doors_except(DoorKind::TcIngress, &front)?;
        datapath.close_doors_except(DoorKind::Xdp, &uplinks)?;
        datapath.close_doors_except(DoorKind::XdpGeneric, &uplinks)
    }

    fn wishes(&self, config: &RunConfig) -> Vec<FrontendWish> {
        config
            .frontends
            .iter()
            .map(|publish| FrontendWish {
                name: publish.name(),
                proto: publish.proto,
                addresses: loader::answering(publish.addr, publish.port.get(), &self.addresses),
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

impl Agent {
    /// Follows interfaces and addresses that have changed.
    pub(super) async fn check_network(&mut self) {
        let mut problems = Vec::new();
        match Network::look(&self.config, &self.links).await {
            Ok(network) => {
                if network.addresses != self.network.addresses {
                    tracing::info!("the host's addresses have changed; the frontends follow");
                }
                if network.uplinks.is_empty() {
                    problems.push("no uplink is left: clients from outside cannot come".to_owned());
                }
                self.datapath.forget_doors_except(&network.existing);
                let wishes = network.wishes(&self.config);
                if let Err(error) = network.bring_up(&mut self.datapath, &self.config, &wishes) {
                    problems.push(super::chain(&error));
                }
                self.network = network;
            }
            Err(error) => problems.push(super::chain(&error)),
        }
        for problem in &problems {
            if !self.network.problems.contains(problem) {
                tracing::error!("{problem}");
            }
        }
        self.network.problems = problems;
    }
}
