//! The questions asked of the kernel, and the reading of its answers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::{Stream, StreamExt, TryStream, TryStreamExt};
use rtnetlink::{
    Error as RtnetlinkError, Handle, RouteMessageBuilder, new_connection,
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
};
use tokio::{sync::Mutex, task::JoinHandle};

use crate::control::Family;

use super::{Framing, HostAddress, Link, LinkError, LinkKind, Mac, Standing};

/// The pauses between two looks at a neighbour that is being asked for; their sum is the time that it has.
const ASK_PAUSES: [(u32, Duration); 2] = [(10, Duration::from_millis(1)), (99, Duration::from_millis(10))];

/// How often a list is asked for that changes while the kernel writes it down.
const LIST_TRIES: usize = 16;

/// The connection to the kernel, closed when dropped.
#[derive(Debug)]
pub(super) struct Netlink {
    handle: Handle,
    /// Held while a list is asked for: the kernel refuses a second one on the same socket.
    lists: Mutex<()>,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The first step of a route.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NextHop {
    pub device: u32,
    pub by_gateway: bool,
}

/// What the kernel knows of a neighbour.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    state: NeighbourState,
    mac: Option<Mac>,
}

impl Neighbour {
    /// Returns its MAC address if that has been confirmed lately, or need not be. An older one may belong to a
    /// container that had the address before.
    pub fn trusted(&self) -> Option<Mac> {
        match self.state {
            NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp => self.mac,
            _ => None,
        }
    }

    /// Returns its MAC address, however old.
    pub fn known(&self) -> Option<Mac> {
        self.mac
    }

    /// Returns whether it was learnt; what somebody configured is not to be touched.
    pub fn changeable(&self) -> bool {
        !matches!(self.state, NeighbourState::Permanent | NeighbourState::Noarp)
    }
}

impl Netlink {
    pub fn open() -> Result<Self, LinkError> {
        let (mut connection, handle, _) = new_connection()
            .map_err(|source| LinkError::Netlink { action: "open a socket for routes and links".into(), source })?;
        // Of a short list, the end alone may tell that it is not whole.
        connection.set_forward_done(true);
        Ok(Self { handle, lists: Mutex::default(), connection: tokio::spawn(connection) })
    }

    pub async fn route_to(&self, backend: IpAddr) -> Result<NextHop, LinkError> {
        let question = match backend {
            IpAddr::V4(backend) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(backend, 32).build(),
            IpAddr::V6(backend) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(backend, 128).build(),
        };
        let answer = first(self.handle.route().get(question).execute()).await;
        match answer {
            Ok(Some(route)) => next_hop(&route, backend),
            Ok(None) => Err(LinkError::NoRoute { backend, source: io::ErrorKind::NetworkUnreachable.into() }),
            // An unreachable, a blackhole and a prohibited route answer with EHOSTUNREACH, EINVAL and EACCES.
            Err(error) => Err(LinkError::NoRoute { backend, source: io_error(error) }),
        }
    }

    /// Returns the devices of a family's default routes in the main table.
    pub async fn default_devices(&self, family: Family) -> Result<Vec<u32>, LinkError> {
        let question = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let answers = self.list(RouteNetlinkMessage::GetRoute(question), "list routes").await?;
        let routes = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        Ok(routes.flat_map(default_devices_of).collect())
    }

    pub async fn links(&self) -> Result<Vec<Link>, LinkError> {
        let mut question = LinkMessage::default();
        question.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let answers = self.list(RouteNetlinkMessage::GetLink(question), "list interfaces").await?;
        let links = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        Ok(links.map(link_of).collect())
    }

    pub async fn link(&self, index: u32) -> Result<Link, LinkError> {
        let question = self
            .handle
            .link()
            .get()
            .match_index(index)
            .set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        match first(question.execute()).await {
            Ok(Some(link)) => Ok(link_of(&link)),
            Ok(None) => Err(LinkError::InterfaceGone { index }),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Err(LinkError::InterfaceGone { index }),
            Err(error) => Err(failed("look at an interface")(error)),
        }
    }

    /// Returns the number of the XDP program at a device.
    pub async fn xdp_program(&self, index: u32) -> Result<Option<u32>, LinkError> {
        let question = self.handle.link().get().match_index(index);
        let link = first(question.execute()).await.map_err(failed("look at an interface"))?;
        Ok(link.as_ref().and_then(xdp_program_of))
    }

    /// Returns all addresses of global scope that are this host's, in the kernel's order.
    pub async fn addresses(&self) -> Result<Vec<HostAddress>, LinkError> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.list(question, "list addresses").await?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(answer) => host_address(answer),
                _ => None,
            })
            .collect())
    }

    pub async fn neighbour(&self, device: u32, backend: IpAddr) -> Result<Option<Neighbour>, LinkError> {
        match self.one_neighbour(neighbour_question(device, backend)).await {
            Ok(found) => Ok(found.as_ref().map(neighbour_of)),
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(failed("look up a neighbour")(error)),
        }
    }

    /// Has the kernel ask everybody for a neighbour and waits for the answer, `None` if there is none.
    ///
    /// What it knew before is forgotten: the kernel would first ask the old MAC address alone, for three seconds.
    pub async fn ask_anew(&self, device: u32, backend: IpAddr) -> Result<Option<Mac>, LinkError> {
        match self.handle.neighbours().del(neighbour_question(device, backend)).execute().await {
            Ok(()) => {}
            Err(error) if errno(&error) == Some(libc::ENOENT) => {}
            Err(error) => return Err(failed("forget a neighbour")(error)),
        }
        self.handle
            .neighbours()
            .add(device, backend)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
            .map_err(failed("ask for a neighbour"))?;
        for (times, pause) in ASK_PAUSES {
            for _ in 0..times {
                tokio::time::sleep(pause).await;
                match self.neighbour(device, backend).await? {
                    Some(Neighbour { state: NeighbourState::Failed, .. }) => return Ok(None),
                    Some(Neighbour { mac: Some(mac), .. }) => return Ok(Some(mac)),
                    Some(Neighbour { mac: None, .. }) | None => {}
                }
            }
        }
        Ok(None)
    }

    /// Returns the port of a bridge behind which a MAC address was seen.
    pub async fn port_of(&self, bridge: u32, mac: Mac) -> Result<Option<u32>, LinkError> {
        let mut question = NeighbourMessage::default();
        question.header.family = AddressFamily::Bridge;
        question.attributes =
            vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec()), NeighbourAttribute::Controller(bridge)];
        match self.one_neighbour(question).await {
            Ok(Some(entry)) => Ok(port_in(&entry, bridge, mac)),
            Ok(None) => Ok(None),
            // A bridge that filters VLANs knows the address only together with its VLAN, and before Linux 5.0 there is
            // no question for a single one.
            Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL)) => {
                self.port_among_all(bridge, mac).await
            }
            Err(error) => Err(failed("look up a MAC address in a bridge")(error)),
        }
    }

    async fn port_among_all(&self, bridge: u32, mac: Mac) -> Result<Option<u32>, LinkError> {
        let mut question = NeighbourMessage::default();
        question.header.family = AddressFamily::Bridge;
        let question = RouteNetlinkMessage::GetNeighbour(question);
        Ok(self.list(question, "list the MAC addresses of bridges").await?.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(entry) => port_in(entry, bridge, mac),
            _ => None,
        }))
    }

    /// Asks for a list; again if what it tells of has changed meanwhile, because such a list may lack even what was there
    /// all the while.
    ///
    /// # Source
    /// Documentation/userspace-api/netlink/intro.rst, "Dump consistency".
    async fn list(
        &self,
        question: RouteNetlinkMessage,
        action: &'static str,
    ) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
        let _one_at_a_time = self.lists.lock().await;
        for _ in 0..LIST_TRIES {
            let mut request = NetlinkMessage::from(question.clone());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let answers = self.handle.clone().request(request).map_err(failed(action))?;
            if let Some(list) = whole_list(answers).await.map_err(failed(action))? {
                return Ok(list);
            }
        }
        let source = io::Error::new(io::ErrorKind::Interrupted, "the list changed each time that it was read");
        Err(LinkError::Netlink { action: action.to_owned(), source })
    }

    async fn one_neighbour(&self, question: NeighbourMessage) -> Result<Option<NeighbourMessage>, RtnetlinkError> {
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(question));
        request.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.clone().request(request)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(found)) => return Ok(Some(found)),
                NetlinkPayload::Error(error) => return Err(RtnetlinkError::NetlinkError(error)),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// Reads a list to its end; `None` if it is not whole.
async fn whole_list(
    answers: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
) -> Result<Option<Vec<RouteNetlinkMessage>>, RtnetlinkError> {
    let mut answers = std::pin::pin!(answers);
    let (mut list, mut is_whole) = (Vec::new(), true);
    while let Some(answer) = answers.next().await {
        is_whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(item) => list.push(item),
            NetlinkPayload::Error(error) => return Err(RtnetlinkError::NetlinkError(error)),
            // The kernel has given up on the way, or had more to say than it found room for.
            NetlinkPayload::Done(end) => is_whole &= end.code == 0,
            NetlinkPayload::Overrun(_) => is_whole = false,
            _ => {}
        }
    }
    Ok(is_whole.then_some(list))
}

fn neighbour_question(device: u32, backend: IpAddr) -> NeighbourMessage {
    let (family, destination) = match backend {
        IpAddr::V4(backend) => (AddressFamily::Inet, NeighbourAddress::Inet(backend)),
        IpAddr::V6(backend) => (AddressFamily::Inet6, NeighbourAddress::Inet6(backend)),
    };
    let mut question = NeighbourMessage::default();
    question.header.family = family;
    question.header.ifindex = device;
    question.attributes = vec![NeighbourAttribute::Destination(destination)];
    question
}

/// Reads an address of global scope; one that another host has as well is none.
fn host_address(answer: &AddressMessage) -> Option<HostAddress> {
    let flags = answer.header.flags;
    let address = address_of(answer).filter(|_| answer.header.scope == AddressScope::Universe)?;
    // Of IPv4, the same bit says that there is another address of the network.
    let is_temporary = address.is_ipv6() && flags.contains(AddressHeaderFlags::Secondary);
    let standing = if flags.contains(AddressHeaderFlags::Dadfailed) {
        return None;
    } else if flags.contains(AddressHeaderFlags::Tentative) && !flags.contains(AddressHeaderFlags::Optimistic) {
        Standing::Tentative
    } else if is_temporary || flags.contains(AddressHeaderFlags::Deprecated) {
        Standing::Passing
    } else {
        Standing::Lasting
    };
    Some(HostAddress { device: answer.header.index, address, standing })
}

/// Returns the address of this host in an answer. On a point-to-point device `Address` is the other side, and `Local` ours;
/// IPv6 has the second there alone.
fn address_of(answer: &AddressMessage) -> Option<IpAddr> {
    let local = answer.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = answer.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address @ IpAddr::V6(_)) => Some(*address),
        _ => None,
    });
    local.or(address)
}

/// Reads a route to one address.
fn next_hop(route: &RouteMessage, backend: IpAddr) -> Result<NextHop, LinkError> {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(LinkError::Local { backend }),
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            return Err(LinkError::NotUnicast { backend });
        }
        _ => return Err(LinkError::NoRoute { backend, source: io::ErrorKind::NetworkUnreachable.into() }),
    }
    let device = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    match device {
        Some(device) => Ok(NextHop { device, by_gateway: has_gateway(&route.attributes) }),
        None => Err(LinkError::NoRoute { backend, source: io::ErrorKind::NetworkUnreachable.into() }),
    }
}

fn has_gateway(attributes: &[RouteAttribute]) -> bool {
    attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)))
}

/// Returns the devices of a route if it is a default route of the main table; several if it has several next hops.
fn default_devices_of(route: &RouteMessage) -> Vec<u32> {
    let header = &route.header;
    let is_default = header.destination_prefix_length == 0
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast;
    if !is_default {
        return Vec::new();
    }
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => devices.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    devices
}

fn link_of(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: if flags.contains(LinkFlags::Loopback) { LinkKind::Loopback } else { LinkKind::Physical },
        mac: None,
        // As `dev_is_mac_header_xmit` of include/linux/if_arp.h tells apart the kinds that carry IP.
        framing: match message.header.link_layer_type {
            LinkLayerType::Ether | LinkLayerType::Loopback => Framing::Ethernet,
            _ => Framing::Bare,
        },
        up: flags.contains(LinkFlags::Up),
        mtu: 0,
        controller: None,
        peer_netns: None,
        lower: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac_of(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkNetNsId(number) => link.peer_netns = Some(*number),
            LinkAttribute::Link(index) => link.lower = Some(*index),
            LinkAttribute::LinkInfo(details) => {
                let kind = details.iter().find_map(|detail| match detail {
                    LinkInfo::Kind(kind) => Some(kind_of(kind)),
                    _ => None,
                });
                link.kind = kind.unwrap_or(link.kind);
            }
            _ => {}
        }
    }
    // The number of a device elsewhere says nothing here.
    link.lower = link.lower.filter(|_| link.peer_netns.is_none());
    link
}

fn xdp_program_of(message: &LinkMessage) -> Option<u32> {
    let details = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(details) => Some(details),
        _ => None,
    })?;
    details.iter().find_map(|detail| match detail {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    })
}

fn kind_of(kind: &InfoKind) -> LinkKind {
    match kind {
        InfoKind::Veth => LinkKind::Veth,
        InfoKind::Bridge => LinkKind::Bridge,
        InfoKind::Vlan => LinkKind::Vlan,
        other => LinkKind::Other(other.to_string()),
    }
}

fn neighbour_of(message: &NeighbourMessage) -> Neighbour {
    Neighbour { state: message.header.state, mac: message_mac(message) }
}

/// Returns the port that an entry of a bridge's table names, if it is of this bridge and MAC address. The bridge's own
/// addresses are entries as well, without a port.
fn port_in(entry: &NeighbourMessage, bridge: u32, mac: Mac) -> Option<u32> {
    let of_bridge = entry
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, NeighbourAttribute::Controller(index) if *index == bridge));
    let port = entry.header.ifindex;
    (of_bridge && port != bridge && message_mac(entry) == Some(mac)).then_some(port)
}

fn message_mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac_of(bytes),
        _ => None,
    })
}

/// Reads a MAC address; that of loopback and of a neighbour not yet known is all zero, which is none.
fn mac_of(bytes: &[u8]) -> Option<Mac> {
    Mac::try_from(bytes).ok().filter(|mac| *mac != Mac::default())
}

/// Returns the first answer, and reads the others, so that none is left to confuse the next question.
async fn first<T>(answers: impl TryStream<Ok = T, Error = RtnetlinkError>) -> Result<Option<T>, RtnetlinkError> {
    answers.try_fold(None, |first, answer| async move { Ok(first.or(Some(answer))) }).await
}

fn failed(action: &'static str) -> impl Fn(RtnetlinkError) -> LinkError {
    move |error| LinkError::Netlink { action: action.to_owned(), source: io_error(error) }
}

fn io_error(error: RtnetlinkError) -> io::Error {
    match error {
        RtnetlinkError::NetlinkError(error) => error.to_io(),
        other => io::Error::other(other),
    }
}

fn errno(error: &RtnetlinkError) -> Option<i32> {
    match error {
        RtnetlinkError::NetlinkError(error) => Some(-error.raw_code()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use rtnetlink::{
        packet_core::{DoneMessage, NetlinkHeader},
        packet_route::route::{RouteAddress, RouteNextHop},
    };

    use super::*;

    const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2));
    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    #[test]
    fn a_route_is_direct_or_by_a_gateway() {
        let direct = route(RouteType::Unicast, vec![RouteAttribute::Oif(7)]);
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(198, 18, 0, 1)));
        let by_gateway = route(RouteType::Unicast, vec![RouteAttribute::Oif(7), gateway]);

        assert_eq!(next_hop(&direct, BACKEND).unwrap(), NextHop { device: 7, by_gateway: false });
        assert_eq!(next_hop(&by_gateway, BACKEND).unwrap(), NextHop { device: 7, by_gateway: true });
    }

    #[test]
    fn routes_that_lead_to_no_other_machine_are_refused() {
        let refusal = |kind| next_hop(&route(kind, vec![RouteAttribute::Oif(1)]), BACKEND).unwrap_err();

        assert!(matches!(refusal(RouteType::Local), LinkError::Local { .. }));
        assert!(matches!(refusal(RouteType::Broadcast), LinkError::NotUnicast { .. }));
        assert!(matches!(refusal(RouteType::Multicast), LinkError::NotUnicast { .. }));
        assert!(matches!(refusal(RouteType::Unreachable), LinkError::NoRoute { .. }));
        let without_device = next_hop(&route(RouteType::Unicast, vec![]), BACKEND);
        assert!(matches!(without_device, Err(LinkError::NoRoute { .. })));
    }

    #[test]
    fn default_routes_name_all_their_devices() {
        let mut hop = RouteNextHop::default();
        hop.interface_index = 8;
        let several = route(RouteType::Unicast, vec![RouteAttribute::MultiPath(vec![hop.clone(), hop])]);

        assert_eq!(default_devices_of(&route(RouteType::Unicast, vec![RouteAttribute::Oif(7)])), [7]);
        assert_eq!(default_devices_of(&several), [8, 8]);
    }

    #[test]
    fn other_routes_are_no_default_routes() {
        let oif = || vec![RouteAttribute::Oif(7)];
        let mut narrower = route(RouteType::Unicast, oif());
        narrower.header.destination_prefix_length = 1;
        let mut elsewhere = route(RouteType::Unicast, oif());
        elsewhere.header.table = 100;

        assert!(default_devices_of(&narrower).is_empty());
        assert!(default_devices_of(&elsewhere).is_empty());
        assert!(default_devices_of(&route(RouteType::BlackHole, oif())).is_empty());
    }

    #[test]
    fn an_address_of_this_host_is_told_from_the_other_side() {
        let [one, other]: [IpAddr; 2] = ["198.18.0.1", "198.18.0.2"].map(|text| text.parse().unwrap());
        let [ours, theirs]: [IpAddr; 2] = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().unwrap());
        let read = |attributes| {
            let mut answer = AddressMessage::default();
            answer.attributes = attributes;
            address_of(&answer)
        };

        assert_eq!(read(vec![AddressAttribute::Address(other), AddressAttribute::Local(one)]), Some(one));
        assert_eq!(read(vec![AddressAttribute::Address(theirs), AddressAttribute::Local(ours)]), Some(ours));
        assert_eq!(read(vec![AddressAttribute::Address(ours)]), Some(ours));
        assert_eq!(read(vec![]), None);
    }

    #[test]
    fn an_address_that_is_not_sure_is_told_from_others() {
        let standing = |address: &str, flags: AddressHeaderFlags| {
            let mut answer = AddressMessage::default();
            (answer.header.scope, answer.header.flags) = (AddressScope::Universe, flags);
            answer.attributes = vec![AddressAttribute::Local(address.parse().unwrap())];
            host_address(&answer).map(|found| found.standing)
        };
        let v6 = |flags| standing("2001:db8::1", flags);

        assert_eq!(v6(AddressHeaderFlags::Permanent), Some(Standing::Lasting));
        assert_eq!(v6(AddressHeaderFlags::Secondary), Some(Standing::Passing), "temporary, RFC 8981");
        assert_eq!(v6(AddressHeaderFlags::Deprecated), Some(Standing::Passing));
        assert_eq!(v6(AddressHeaderFlags::Tentative), Some(Standing::Tentative));
        assert_eq!(v6(AddressHeaderFlags::Tentative | AddressHeaderFlags::Optimistic), Some(Standing::Lasting));
        assert_eq!(v6(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed), None);
        assert_eq!(standing("198.18.0.1", AddressHeaderFlags::Secondary), Some(Standing::Lasting));
    }

    #[test]
    fn a_link_is_read_from_its_attributes() {
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message.header.flags = LinkFlags::Up;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes = vec![
            LinkAttribute::IfName("veth9".into()),
            LinkAttribute::Address(MAC.to_vec()),
            LinkAttribute::Mtu(1400),
            LinkAttribute::Controller(3),
            LinkAttribute::Link(4),
            LinkAttribute::LinkNetNsId(0),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ];

        let expected = Link {
            index: 9,
            name: "veth9".into(),
            kind: LinkKind::Veth,
            mac: Some(MAC),
            framing: Framing::Ethernet,
            up: true,
            mtu: 1400,
            controller: Some(3),
            peer_netns: Some(0),
            lower: None,
        };
        assert_eq!(link_of(&message), expected);
        message.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::LinkNetNsId(_)));
        assert_eq!(link_of(&message), Link { peer_netns: None, lower: Some(4), ..expected });
    }

    #[test]
    fn a_link_without_a_kind_is_physical_or_loopback() {
        let mut message = LinkMessage::default();
        assert_eq!(link_of(&message).kind, LinkKind::Physical);

        message.header.flags = LinkFlags::Loopback;
        assert_eq!(link_of(&message).kind, LinkKind::Loopback);
        assert_eq!(kind_of(&InfoKind::Tun), LinkKind::Other("tun".into()));
    }

    #[test]
    fn a_neighbour_is_trusted_only_while_it_is_confirmed() {
        let trusted = |state| Neighbour { state, mac: Some(MAC) }.trusted();

        for state in [NeighbourState::Reachable, NeighbourState::Permanent, NeighbourState::Noarp] {
            assert_eq!(trusted(state), Some(MAC));
        }
        for state in [NeighbourState::Stale, NeighbourState::Delay, NeighbourState::Probe, NeighbourState::Failed] {
            assert_eq!(trusted(state), None);
        }
    }

    #[test]
    fn an_entry_of_a_bridge_names_a_port_of_that_bridge() {
        let mut entry = NeighbourMessage::default();
        entry.header.ifindex = 9;
        entry.attributes = vec![NeighbourAttribute::LinkLayerAddress(MAC.to_vec()), NeighbourAttribute::Controller(3)];

        assert_eq!(port_in(&entry, 3, MAC), Some(9));
        assert_eq!(port_in(&entry, 4, MAC), None);
        assert_eq!(port_in(&entry, 3, [2, 0, 0, 0, 0, 8]), None);
        entry.header.ifindex = 3;
        assert_eq!(port_in(&entry, 3, MAC), None);
    }

    #[tokio::test]
    async fn a_list_that_was_interrupted_is_not_whole() {
        let item = || NetlinkMessage::from(RouteNetlinkMessage::NewLink(LinkMessage::default()));
        let mut interrupted = item();
        interrupted.header.flags |= NLM_F_DUMP_INTR;
        let end = |flags| {
            let mut end = NetlinkMessage::<RouteNetlinkMessage>::new(
                NetlinkHeader::default(),
                NetlinkPayload::Done(DoneMessage::default()),
            );
            end.header.flags = flags;
            end
        };

        let whole = whole_list(stream::iter([item(), item(), end(0)])).await.unwrap();
        assert_eq!(whole.map(|list| list.len()), Some(2));
        assert_eq!(whole_list(stream::iter([item(), interrupted, end(0)])).await.unwrap(), None);
        assert_eq!(whole_list(stream::iter([item(), end(NLM_F_DUMP_INTR)])).await.unwrap(), None);
    }

    #[test]
    fn no_address_is_no_mac() {
        assert_eq!(mac_of(&MAC), Some(MAC));
        assert_eq!(mac_of(&[0; 6]), None);
        assert_eq!(mac_of(&[1, 2, 3, 4]), None);
    }

    fn route(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.kind = kind;
        route.attributes = attributes;
        route
    }
}
