//! How the host reaches a backend: by which device, through which port of a bridge, to which MAC address.
//!
//! ```text
//! route to the backend ─▶ this host itself, or
//!                         device ─▶ neighbour (asked for if unknown) ─▶ MAC ─▶ port of the bridge ─▶ reach
//! ```
//!
//! Every answer is asked of the kernel for one object at a time, by rtnetlink, in the network namespace in which the
//! [`Links`] were opened. There is no cache: a backend that moves is found at its new place by asking again.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use self::netlink::{Neighbour, Netlink, NextHop};
use crate::control::Family;

mod netlink;

/// How many names an error lists; a Docker host may have thousands of interfaces.
const NAMES_LISTED: usize = 20;

/// The index of the loopback of every network namespace: `LOOPBACK_IFINDEX`, include/net/flow.h.
const LOOPBACK: u32 = 1;

/// A link-layer address.
pub type Mac = [u8; 6];

/// What stands in front of the network header of a device's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Framing {
    /// An Ethernet header.
    Ethernet,
    /// Nothing: a tunnel, a modem.
    Bare,
}

/// How packets for a backend are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Through a veth whose other end is in another network namespace: `bpf_redirect_peer` to `ifindex`.
    Veth,
    /// Through a device on whose link the backend, or the next router, is: `bpf_redirect_neigh` to `ifindex`.
    Neighbour,
    /// Over a device without link-layer addresses: the kernel has to route.
    Routed,
    /// It is a server of this host, or of a container that shares the host's network: its own stack takes them.
    Local,
}

/// The way to a backend and back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// How packets are handed over.
    pub reach: Reach,
    /// The device to redirect into: the veth's end on this side, or the device that the route names.
    pub ifindex: u32,
    /// The name of `ifindex`.
    pub name: String,
    /// The device at whose ingress the backend's packets enter: the veth, the bridge's port, or the device.
    pub reply_ifindex: u32,
    /// The name of `reply_ifindex`.
    pub reply_name: String,
    /// How its packets are framed.
    pub reply_framing: Framing,
    /// The device that the route names: the bridge if there is one.
    pub l3_ifindex: u32,
    /// The backend's MAC address; `None` where it is routed, be it by a router on the link.
    pub mac: Option<Mac>,
    /// The MAC address of `l3_ifindex`, from which the backend expects its packets.
    pub src_mac: Option<Mac>,
    /// The number of the network namespace behind the veth; none where there is no veth.
    pub netns: Option<u32>,
}

/// What is known of a way without asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// The device that the route names.
    pub device: Link,
    /// The way, if its neighbour is known.
    pub path: Option<Path>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Its link-layer address.
    pub mac: Option<Mac>,
    /// How its packets are framed.
    pub framing: Framing,
    /// Whether it is set up.
    pub up: bool,
    /// Its largest packet, in bytes.
    pub mtu: u32,
    /// The bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// The number that this network namespace has for the one in which its other end, or the device below it, is; none if
    /// that is here.
    pub peer_netns: Option<i32>,
    /// The other end, or the device below it, if that is in this one.
    pub lower: Option<u32>,
}

/// What an interface is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// The host's own.
    Loopback,
    /// A device with a driver of its own: hardware, or a hypervisor's.
    Physical,
    /// One end of a pair.
    Veth,
    /// A bridge of its ports.
    Bridge,
    /// A VLAN of another device.
    Vlan,
    /// Any other, by the kernel's name for it.
    Other(String),
}

/// A bridge that the host has an address on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The host's addresses on it.
    pub addresses: Vec<IpAddr>,
}

/// An address of global scope that an interface has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HostAddress {
    /// The interface's index.
    device: u32,
    address: IpAddr,
    standing: Standing,
}

/// For how long an address may be relied upon, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Until somebody takes it away.
    Lasting,
    /// Not for long: it is deprecated, or a temporary one of many.
    Passing,
    /// It is not sure yet that nobody else has it: the host does not answer for it.
    Tentative,
}

/// Why a way, or an interface, could not be found.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no such interface.
    #[error("interface {name} does not exist here: there are {}", listed(existing))]
    UnknownInterface {
        /// The name asked for.
        name: String,
        /// Those that exist.
        existing: Vec<String>,
    },
    /// The interface went away.
    #[error("interface {index} does not exist any more")]
    InterfaceGone {
        /// Its index.
        index: u32,
    },
    /// The host has no route to the backend.
    #[error("backend {backend}: no route from here: check its address and network")]
    NoRoute {
        /// The backend's address.
        backend: IpAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The backend's address is one of this host's own.
    #[error("backend {backend}: the address is this host's own")]
    Local {
        /// The backend's address.
        backend: IpAddr,
    },
    /// The kernel routes to it, and refuses packets that come from elsewhere with an address of its own.
    #[error(
        "backend {backend}: {device} has no link-layer addresses, so that the kernel has to route there, and it refuses \
         the address of --snat as a source: leave that out, and let the backend reply through {device}"
    )]
    RoutedSnat {
        /// The backend's address.
        backend: IpAddr,
        /// The device.
        device: String,
    },
    /// The address is not that of one machine.
    #[error("backend {backend}: the address is a broadcast or multicast address here")]
    NotUnicast {
        /// The backend's address.
        backend: IpAddr,
    },
    /// Nobody has the backend's address.
    #[error(
        "backend {backend}: no answer to {} on {device}: check that it is up and has this address; one on a macvlan of \
         {device} hears this host only by a macvlan of its own (README, \"macvlan\")",
        if backend.is_ipv4() { "ARP" } else { "neighbour solicitations" }
    )]
    NoNeighbour {
        /// The backend's address.
        backend: IpAddr,
        /// The device on which it should be.
        device: String,
    },
    /// The kernel cannot be asked.
    #[error("{action}: rtnetlink")]
    Netlink {
        /// What was attempted.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whether the kernel is believed that it knows a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belief {
    /// It is, while it has confirmed the neighbour lately.
    Kept,
    /// It is not: the backend may have another device by now, and the kernel would go on believing for half a minute.
    Lost,
}

/// The interfaces, routes and neighbours of one network namespace.
#[derive(Debug)]
pub struct Links {
    netlink: Netlink,
}

impl Links {
    /// Opens them for the network namespace of the calling thread.
    ///
    /// # Errors
    /// `Netlink`, if the socket cannot be opened.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> Result<Self, LinkError> {
        Ok(Self { netlink: Netlink::open()? })
    }

    /// Finds the way to `backend`. If the kernel does not know its MAC address for sure, or is not to be believed, it is
    /// asked for (ARP, neighbour discovery), which takes up to a second.
    ///
    /// # Errors
    /// `NoRoute`, `NotUnicast`, `NoNeighbour`; `InterfaceGone` or `Netlink` if things change under way.
    pub async fn resolve(&self, backend: IpAddr, belief: Belief) -> Result<Path, LinkError> {
        let hop = match self.netlink.route_to(backend).await {
            Err(LinkError::Local { .. }) => return Ok(path(&self.netlink.link(LOOPBACK).await?, Place::Here)),
            hop => hop?,
        };
        let device = self.netlink.link(hop.device).await?;
        if device.framing == Framing::Bare {
            return Ok(path(&device, Place::Routed));
        }
        if hop.by_gateway {
            return Ok(path(&device, Place::BehindRouter));
        }
        let known = self.netlink.neighbour(device.index, backend).await?;
        let fresh = known.as_ref().filter(|known| belief == Belief::Kept || !known.changeable());
        let fresh = fresh.and_then(Neighbour::trusted);
        let mac = match fresh {
            Some(mac) => mac,
            None => self.ask_again(&device, backend).await?,
        };
        if device.kind != LinkKind::Bridge {
            return Ok(path(&device, Place::OnLink { mac }));
        }
        if let Some(port) = self.netlink.port_of(device.index, mac).await? {
            return self.by_port(&device, mac, port).await;
        }
        // The bridge forgets sooner than the neighbour table does, and the container may be another one by now. An
        // answer passes through the bridge and teaches it.
        let mac = if fresh.is_some() && known.is_some_and(|known| known.changeable()) {
            self.ask_again(&device, backend).await?
        } else {
            mac
        };
        match self.netlink.port_of(device.index, mac).await? {
            Some(port) => self.by_port(&device, mac, port).await,
            None => Ok(path(&device, Place::OnLink { mac })),
        }
    }

    /// Tells what is known of the way to `backend` without asking anybody for it, and without changing anything.
    ///
    /// # Errors
    /// `NoRoute`, `Local`, `NotUnicast`; `InterfaceGone` or `Netlink`.
    pub async fn outlook(&self, backend: IpAddr) -> Result<Outlook, LinkError> {
        let hop = self.netlink.route_to(backend).await?;
        let device = self.netlink.link(hop.device).await?;
        let place = if device.framing == Framing::Bare {
            Some(Place::Routed)
        } else if hop.by_gateway {
            Some(Place::BehindRouter)
        } else {
            let known = self.netlink.neighbour(device.index, backend).await?;
            known.as_ref().and_then(Neighbour::known).map(|mac| Place::OnLink { mac })
        };
        let path = match place {
            Some(Place::OnLink { mac }) if device.kind == LinkKind::Bridge => {
                match self.netlink.port_of(device.index, mac).await? {
                    Some(port) => Some(self.by_port(&device, mac, port).await?),
                    None => None,
                }
            }
            Some(place) => Some(path(&device, place)),
            None => None,
        };
        Ok(Outlook { device, path })
    }

    /// Returns the number of the XDP program at an interface, whosever it is.
    ///
    /// # Errors
    /// `Netlink`.
    pub async fn xdp_program(&self, ifindex: u32) -> Result<Option<u32>, LinkError> {
        self.netlink.xdp_program(ifindex).await
    }

    /// Returns whether an address is this host's own, at whatever interface.
    ///
    /// # Errors
    /// `InterfaceGone`, `Netlink`.
    pub async fn is_own(&self, address: IpAddr) -> Result<bool, LinkError> {
        match self.netlink.route_to(address).await {
            Err(LinkError::Local { .. }) => Ok(true),
            Ok(_) | Err(LinkError::NoRoute { .. } | LinkError::NotUnicast { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the interfaces by which clients of a family come: those of its default routes, or where there is none, those
    /// that are up and have a global address of it, except loopback, bridges, ports, and those that lead to `backends`.
    ///
    /// # Errors
    /// `Netlink`.
    pub async fn uplinks(&self, family: Family, backends: &[IpAddr]) -> Result<Vec<Link>, LinkError> {
        let defaults = self.netlink.default_devices(family).await?;
        let links = self.all().await?;
        if !defaults.is_empty() {
            return Ok(links.into_iter().filter(|link| defaults.contains(&link.index)).collect());
        }
        let mut leading_away = Vec::new();
        for backend in backends {
            // A backend without a route excludes nothing; it is complained about where it is resolved.
            if let Ok(NextHop { device, .. }) = self.netlink.route_to(*backend).await {
                leading_away.push(device);
            }
        }
        let addresses = self.netlink.addresses().await?;
        let of_family = |found: &HostAddress| Family::of(found.address) == family;
        let addressed: Vec<u32> = addresses.into_iter().filter(of_family).map(|found| found.device).collect();
        Ok(links
            .into_iter()
            .filter(Link::may_be_uplink)
            .filter(|link| addressed.contains(&link.index) && !leading_away.contains(&link.index))
            .collect())
    }

    /// Returns the bridges that the host has an address on.
    ///
    /// # Errors
    /// `Netlink`.
    pub async fn bridges(&self) -> Result<Vec<Bridge>, LinkError> {
        let addresses = self.netlink.addresses().await?;
        let on = |index| sure(&addresses, index);
        let bridges = self.all().await?.into_iter().filter(|link| link.kind == LinkKind::Bridge);
        Ok(bridges
            .map(|link| Bridge { addresses: on(link.index).collect(), index: link.index, name: link.name })
            .filter(|bridge| !bridge.addresses.is_empty())
            .collect())
    }

    /// Returns the addresses of global scope at which an interface answers, in the kernel's order.
    ///
    /// # Errors
    /// `Netlink`.
    pub async fn addresses(&self, ifindex: u32) -> Result<Vec<IpAddr>, LinkError> {
        let all = self.netlink.addresses().await?;
        Ok(sure(&all, ifindex).collect())
    }

    /// Returns an address of this host on an interface for each family, by which it stands in for others there: the former
    /// ones while the interface has them, because connections depend on them.
    ///
    /// # Errors
    /// `Netlink`.
    pub async fn stand_ins(
        &self,
        ifindex: u32,
        (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
    ) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), LinkError> {
        let mut all = self.netlink.addresses().await?;
        all.retain(|found| found.device == ifindex);
        let of_v4 = |found: &HostAddress| match found.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        let of_v6 = |found: &HostAddress| match found.address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        };
        // The kernel lists the oldest address of IPv4 first, and the youngest of IPv6.
        let v4 = stand_in(all.iter().filter_map(|found| Some((found.standing, (), of_v4(found)?))), v4);
        let v6 = stand_in(all.iter().filter_map(|found| Some((found.standing, of_v6(found)?, of_v6(found)?))), v6);
        Ok((v4, v6))
    }

    /// Returns the addresses by which a server is reached that shares this host's network, as a container with
    /// `--network host` does, and has no address of its own: of each family one of the first of these devices that has any;
    /// the former ones while these devices have them, because connections depend on them.
    ///
    /// # Errors
    /// `Netlink`.
    pub async fn host_network_addresses(
        &self,
        devices: &[u32],
        former: (Option<Ipv4Addr>, Option<Ipv6Addr>),
    ) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), LinkError> {
        let mut of_each = Vec::new();
        for &device in devices {
            of_each.push(self.stand_ins(device, former).await?);
        }
        Ok(first_of_each_family(&of_each, former))
    }

    /// Returns every interface, by rising index.
    ///
    /// # Errors
    /// `Netlink`.
    pub async fn all(&self) -> Result<Vec<Link>, LinkError> {
        let mut links = self.netlink.links().await?;
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Returns the interface of an index.
    ///
    /// # Errors
    /// `InterfaceGone`, `Netlink`.
    pub async fn link(&self, ifindex: u32) -> Result<Link, LinkError> {
        self.netlink.link(ifindex).await
    }

    /// Returns the interface of a name.
    ///
    /// # Errors
    /// `UnknownInterface`, `Netlink`.
    pub async fn named(&self, name: &str) -> Result<Link, LinkError> {
        // Asking for all costs little beside attaching to one, and an error needs them anyway.
        let links = self.all().await?;
        match links.iter().find(|link| link.name == name) {
            Some(link) => Ok(link.clone()),
            None => {
                let existing = links.into_iter().map(|link| link.name).collect();
                Err(LinkError::UnknownInterface { name: name.to_owned(), existing })
            }
        }
    }

    /// Returns the index of the interface of a name.
    ///
    /// # Errors
    /// `UnknownInterface`, `Netlink`.
    pub async fn index_of(&self, name: &str) -> Result<u32, LinkError> {
        self.named(name).await.map(|link| link.index)
    }

    /// Returns what the interface of an index is.
    ///
    /// # Errors
    /// `InterfaceGone`, `Netlink`.
    pub async fn kind(&self, ifindex: u32) -> Result<LinkKind, LinkError> {
        self.link(ifindex).await.map(|link| link.kind)
    }

    async fn ask_again(&self, device: &Link, backend: IpAddr) -> Result<Mac, LinkError> {
        let answer = self.netlink.ask_anew(device.index, backend).await?;
        answer.ok_or_else(|| LinkError::NoNeighbour { backend, device: device.name.clone() })
    }

    async fn by_port(&self, bridge: &Link, mac: Mac, port: u32) -> Result<Path, LinkError> {
        let port = self.netlink.link(port).await?;
        Ok(path(bridge, Place::BehindPort { mac, port: &port }))
    }
}

impl Link {
    /// Whether clients may come by it, as far as it can be told from the interface alone.
    fn may_be_uplink(&self) -> bool {
        let suits = match self.kind {
            LinkKind::Loopback | LinkKind::Bridge => false,
            LinkKind::Physical | LinkKind::Veth | LinkKind::Vlan | LinkKind::Other(_) => true,
        };
        suits && self.up && self.controller.is_none()
    }

    /// Whether it is a VLAN of a device of this network namespace, and the host's own: one that is a port of a bridge is
    /// the bridge's.
    fn is_vlan_of(&self, lower: u32) -> bool {
        self.kind == LinkKind::Vlan && self.lower == Some(lower) && self.controller.is_none()
    }

    /// Whether it is a veth whose other end is in another network namespace, so that packets can be put there.
    fn leads_elsewhere(&self) -> bool {
        self.kind == LinkKind::Veth && self.peer_netns.is_some()
    }
}

/// Returns the addresses for which an interface answers.
fn sure(addresses: &[HostAddress], device: u32) -> impl Iterator<Item = IpAddr> {
    let on = addresses.iter().filter(move |found| found.device == device);
    on.filter(|found| found.standing != Standing::Tentative).map(|found| found.address)
}

/// Returns the former address if it is still there, or else the one of the best standing, and of those the first by rank.
fn stand_in<A: Copy + PartialEq, R: Ord>(
    addresses: impl Iterator<Item = (Standing, R, A)>,
    former: Option<A>,
) -> Option<A> {
    let addresses: Vec<(Standing, R, A)> = addresses.collect();
    let kept = addresses.iter().find(|(_, _, address)| Some(*address) == former);
    let best = || addresses.iter().min_by_key(|(standing, rank, _)| (*standing, rank));
    kept.or_else(best).map(|(_, _, address)| *address)
}

/// Returns the first address of each family, or the former one if it is among them.
fn first_of_each_family(
    addresses: &[(Option<Ipv4Addr>, Option<Ipv6Addr>)],
    former: (Option<Ipv4Addr>, Option<Ipv6Addr>),
) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let mut v4 = addresses.iter().filter_map(|(v4, _)| *v4);
    let mut v6 = addresses.iter().filter_map(|(_, v6)| *v6);
    let former_v4 = former.0.filter(|former| v4.clone().any(|address| address == *former));
    let former_v6 = former.1.filter(|former| v6.clone().any(|address| address == *former));
    (former_v4.or_else(|| v4.next()), former_v6.or_else(|| v6.next()))
}

/// Returns the VLANs of devices, and those inside them, that are none of the devices themselves.
pub fn vlans_of(devices: &[Link], all: &[Link]) -> Vec<Link> {
    let mut vlans: Vec<Link> = Vec::new();
    let mut below: Vec<u32> = devices.iter().map(|device| device.index).collect();
    while let Some(lower) = below.pop() {
        for link in all.iter().filter(|link| link.is_vlan_of(lower)) {
            if devices.iter().chain(&vlans).all(|known| known.index != link.index) {
                below.push(link.index);
                vlans.push(link.clone());
            }
        }
    }
    vlans.sort_by_key(|link| link.index);
    vlans
}

/// Where a backend is, seen from the device that the route names.
#[derive(Clone, Copy)]
enum Place<'a> {
    Here,
    Routed,
    BehindRouter,
    OnLink { mac: Mac },
    BehindPort { mac: Mac, port: &'a Link },
}

fn path(device: &Link, place: Place<'_>) -> Path {
    let (reach, into, reply, mac) = match place {
        Place::Here => (Reach::Local, device, device, None),
        Place::Routed => (Reach::Routed, device, device, None),
        Place::BehindRouter => (Reach::Neighbour, device, device, None),
        Place::OnLink { mac } if device.leads_elsewhere() => (Reach::Veth, device, device, Some(mac)),
        Place::OnLink { mac } => (Reach::Neighbour, device, device, Some(mac)),
        Place::BehindPort { mac, port } if port.leads_elsewhere() => (Reach::Veth, port, port, Some(mac)),
        Place::BehindPort { mac, port } => (Reach::Neighbour, device, port, Some(mac)),
    };
    let behind = (reach == Reach::Veth).then_some(into.peer_netns).flatten();
    Path {
        netns: behind.and_then(|number| u32::try_from(number).ok()),
        reach,
        ifindex: into.index,
        name: into.name.clone(),
        reply_ifindex: reply.index,
        reply_name: reply.name.clone(),
        reply_framing: reply.framing,
        l3_ifindex: device.index,
        mac,
        src_mac: device.mac,
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    #[test]
    fn a_container_behind_a_bridge_is_reached_by_its_veth() {
        let bridge = link(3, LinkKind::Bridge);
        let port = Link { peer_netns: Some(5), controller: Some(3), ..link(9, LinkKind::Veth) };

        let path = path(&bridge, Place::BehindPort { mac: MAC, port: &port });

        assert_eq!((path.reach, path.ifindex, path.reply_ifindex, path.l3_ifindex), (Reach::Veth, 9, 9, 3));
        assert_eq!((path.mac, path.src_mac), (Some(MAC), bridge.mac));
        assert_eq!((path.name.as_str(), path.reply_name.as_str()), ("if9", "if9"));
        assert_eq!(path.netns, Some(5), "its listeners can be asked");
    }

    #[test]
    fn another_port_of_a_bridge_is_reached_through_the_bridge() {
        let bridge = link(3, LinkKind::Bridge);

        for kind in [LinkKind::Physical, LinkKind::Other("tun".into()), LinkKind::Veth] {
            let port = link(9, kind);
            let path = path(&bridge, Place::BehindPort { mac: MAC, port: &port });

            assert_eq!((path.reach, path.ifindex, path.reply_ifindex), (Reach::Neighbour, 3, 9));
        }
    }

    #[test]
    fn an_unknown_port_of_a_bridge_answers_at_the_bridge() {
        let path = path(&link(3, LinkKind::Bridge), Place::OnLink { mac: MAC });

        assert_eq!((path.reach, path.ifindex, path.reply_ifindex), (Reach::Neighbour, 3, 3));
    }

    #[test]
    fn a_routed_veth_is_reached_by_itself() {
        let veth = Link { peer_netns: Some(5), ..link(9, LinkKind::Veth) };

        let path = path(&veth, Place::OnLink { mac: MAC });

        assert_eq!((path.reach, path.ifindex, path.reply_ifindex), (Reach::Veth, 9, 9));
    }

    #[test]
    fn a_veth_within_the_namespace_is_a_neighbour() {
        let path = path(&link(9, LinkKind::Veth), Place::OnLink { mac: MAC });

        assert_eq!((path.reach, path.ifindex, path.netns), (Reach::Neighbour, 9, None));
    }

    #[test]
    fn beyond_a_router_the_kernel_finds_the_mac() {
        let path = path(&link(2, LinkKind::Physical), Place::BehindRouter);

        assert_eq!((path.reach, path.mac), (Reach::Neighbour, None));
    }

    #[test]
    fn at_this_host_nothing_has_to_be_known() {
        let loopback = Link { mac: None, ..link(1, LinkKind::Loopback) };

        let path = path(&loopback, Place::Here);

        assert_eq!((path.reach, path.mac, path.netns), (Reach::Local, None, None));
    }

    #[test]
    fn over_a_tunnel_the_kernel_routes() {
        let tunnel = Link { framing: Framing::Bare, ..link(2, LinkKind::Other("tun".into())) };

        let path = path(&tunnel, Place::Routed);

        assert_eq!((path.reach, path.mac, path.reply_framing), (Reach::Routed, None, Framing::Bare));
    }

    #[test]
    fn the_host_stands_in_by_the_same_address_while_it_has_it() {
        use Standing::{Lasting, Passing, Tentative};
        let choose = |addresses: &[(Standing, u8)], former| {
            stand_in(addresses.iter().map(|&(standing, address)| (standing, address, address)), former)
        };

        assert_eq!(choose(&[(Lasting, 9), (Lasting, 3)], None), Some(3), "whatever the kernel lists first");
        assert_eq!(choose(&[(Lasting, 1), (Lasting, 3)], Some(3)), Some(3), "another one has come");
        assert_eq!(choose(&[(Lasting, 1), (Passing, 3)], Some(3)), Some(3));
        assert_eq!(choose(&[(Lasting, 1)], Some(3)), Some(1), "it is gone");
        assert_eq!(choose(&[(Tentative, 1), (Passing, 2), (Lasting, 3)], None), Some(3));
        assert_eq!(choose(&[(Tentative, 1), (Passing, 2)], None), Some(2));
        assert_eq!(choose(&[(Tentative, 1)], None), Some(1), "it will be sure in a moment");
        assert_eq!(choose(&[], Some(3)), None);
    }

    #[test]
    fn who_shares_the_network_of_the_host_has_its_first_address() {
        let v4 = |last| Some(Ipv4Addr::new(198, 18, 0, last));
        let v6 = Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
        let none = (None, None);

        assert_eq!(first_of_each_family(&[(v4(1), None), (v4(2), v6)], none), (v4(1), v6));
        assert_eq!(first_of_each_family(&[(v4(1), v6), (v4(2), None)], (v4(2), None)), (v4(2), v6), "as it was");
        assert_eq!(first_of_each_family(&[(v4(1), None)], (v4(2), v6)), (v4(1), None), "what is gone is not believed");
        assert_eq!(first_of_each_family(&[], (v4(2), None)), none);
    }

    #[test]
    fn an_address_that_is_not_sure_is_no_frontend() {
        let found = |address: &str, standing| HostAddress { device: 2, address: address.parse().unwrap(), standing };
        let all = [found("2001:db8::1", Standing::Tentative), found("2001:db8::2", Standing::Passing)];

        assert_eq!(sure(&all, 2).map(|address| address.to_string()).collect::<Vec<_>>(), ["2001:db8::2"]);
        assert_eq!(sure(&all, 3).count(), 0);
    }

    #[test]
    fn only_free_interfaces_that_are_up_may_be_uplinks() {
        assert!(link(2, LinkKind::Physical).may_be_uplink());
        assert!(link(2, LinkKind::Veth).may_be_uplink());
        assert!(!link(2, LinkKind::Loopback).may_be_uplink());
        assert!(!link(2, LinkKind::Bridge).may_be_uplink());
        assert!(!Link { up: false, ..link(2, LinkKind::Physical) }.may_be_uplink());
        assert!(!Link { controller: Some(1), ..link(2, LinkKind::Physical) }.may_be_uplink());
    }

    #[test]
    fn a_trunk_has_its_vlans_and_those_inside_them() {
        let vlan = |index, lower| Link { lower: Some(lower), ..link(index, LinkKind::Vlan) };
        let all = [
            link(2, LinkKind::Physical),
            vlan(3, 2),
            vlan(4, 3),
            Link { controller: Some(9), ..vlan(5, 2) },
            vlan(6, 8),
            Link { lower: Some(2), ..link(7, LinkKind::Other("macvlan".into())) },
            link(8, LinkKind::Physical),
        ];
        let of = |devices: &[usize]| {
            let devices: Vec<Link> = devices.iter().map(|&at| all[at].clone()).collect();
            vlans_of(&devices, &all).into_iter().map(|vlan| vlan.index).collect::<Vec<_>>()
        };

        assert_eq!(of(&[0]), [3, 4]);
        assert_eq!(of(&[1]), [4]);
        assert_eq!(of(&[0, 1]), [4], "one that is named is none of the others'");
        assert_eq!(of(&[2]), [0_u32; 0]);
    }

    #[test]
    fn an_unknown_interface_is_answered_with_those_there_are() {
        let unknown = |count: u32| LinkError::UnknownInterface {
            name: "eth9".into(),
            existing: (0..count).map(|number| format!("v{number}")).collect(),
        };

        assert_eq!(unknown(2).to_string(), "interface eth9 does not exist here: there are v0, v1");
        assert!(unknown(1020).to_string().ends_with("v18, v19 and 1000 more"));
    }

    fn link(index: u32, kind: LinkKind) -> Link {
        Link {
            index,
            name: format!("if{index}"),
            kind,
            mac: Some([2, 0, 0, 0, 1, index.to_le_bytes()[0]]),
            framing: Framing::Ethernet,
            up: true,
            mtu: 1500,
            controller: None,
            peer_netns: None,
            lower: None,
        }
    }
}
