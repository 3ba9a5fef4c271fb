//! Frontends and static backends as they are written, on the command line or in a file.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
};

pub use lb_ebpf::abi::Proto;

use super::{ConfigError, Weight, error::AddressKind};
pub use crate::control::Family;

/// At which addresses of this host a frontend answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// At this one.
    One(IpAddr),
    /// At every local address of the uplinks, and the loopback, of a family.
    Every(Family),
    /// The same of both, as far as there are backends: what no address means until those are known.
    EveryOfBoth,
}

impl At {
    /// Returns whether there may be a packet for both.
    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::One(own), Self::One(others)) => own == others,
            (Self::Every(own), Self::Every(others)) => own == others,
            (Self::One(one), Self::Every(family)) | (Self::Every(family), Self::One(one)) => family == Family::of(one),
            (Self::EveryOfBoth, _) | (_, Self::EveryOfBoth) => true,
        }
    }
}

/// What clients connect to, and the port of the containers that answer: `[ADDR:]PORT[:CONTAINER_PORT][/tcp|/udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Publish {
    /// The addresses.
    pub at: At,
    /// The port.
    pub port: NonZeroU16,
    /// The port of the containers. Static backends bring their own and have none here.
    pub container_port: Option<NonZeroU16>,
    /// The protocol.
    pub proto: Proto,
}

/// A server that somebody else runs: `IP:PORT[=WEIGHT]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StaticBackend {
    /// Where it is.
    pub address: SocketAddr,
    /// How much it gets beside the others.
    pub weight: Weight,
}

impl fmt::Display for StaticBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if self.weight == Weight::ONE { Ok(()) } else { write!(f, "={}", self.weight.number()) }
    }
}

impl Publish {
    /// Returns the frontend without the containers' port, as [`Publish`] is written for static backends.
    #[must_use]
    pub fn frontend(self) -> Self {
        Self { container_port: None, ..self }
    }

    /// Returns the name of the frontend in `status`: `80/tcp`, `[::]:80/tcp`, or `192.0.2.1:80/tcp`.
    pub fn name(self) -> String {
        self.frontend().to_string()
    }

    /// Returns whether there may be a packet for both: same port and protocol, and an address that both have.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.at.overlaps(other.at) && (self.port, self.proto) == (other.port, other.proto)
    }

    /// Returns the family of its clients, and so of its backends; `None` until it is known.
    pub const fn family(&self) -> Option<Family> {
        match self.at {
            At::One(address) => Some(Family::of(address)),
            At::Every(family) => Some(family),
            At::EveryOfBoth => None,
        }
    }
}

/// Returns what `frontends` mean where there are backends of these families: one frontend for each family where there is
/// no address.
///
/// # Errors
/// If one of them could not have any backend.
pub fn of_families(frontends: &[Publish], families: &[Family]) -> Result<Vec<Publish>, ConfigError> {
    let mut known = Vec::with_capacity(frontends.len());
    for &publish in frontends {
        match publish.family() {
            Some(family) if families.contains(&family) => known.push(publish),
            Some(family) => return Err(ConfigError::FrontendWithoutBackend { publish, family }),
            None => known.extend(families.iter().map(|&family| Publish { at: At::Every(family), ..publish })),
        }
    }
    Ok(known)
}

impl FromStr for Publish {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (ends, proto) = match text.split_once('/') {
            Some((ends, proto)) => (ends, parse_proto(proto)?),
            None => (text, Proto::Tcp),
        };
        let syntax = || ConfigError::PublishSyntax { given: text.to_owned() };
        if lacks_brackets(ends) {
            return Err(ConfigError::Brackets { given: text.to_owned() });
        }
        let (addr, ports) = match split_brackets(ends) {
            Some((addr, rest)) => (Some(addr), rest.strip_prefix(':').ok_or_else(syntax)?),
            None => match ends.split_once(':') {
                Some((addr, ports)) if is_address(addr) || ports.contains(':') => (Some(addr), ports),
                Some(_) | None => (None, ends),
            },
        };
        let (port, container_port) = match ports.split(':').collect::<Vec<_>>()[..] {
            [port] => (port, None),
            [port, container_port] => (port, Some(container_port)),
            _ => return Err(syntax()),
        };
        Ok(Self {
            at: addr.map_or(Ok(At::EveryOfBoth), parse_frontend_address)?,
            port: parse_port(port)?,
            container_port: container_port.map(parse_port).transpose()?,
            proto,
        })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            At::One(IpAddr::V4(address)) => write!(f, "{address}:")?,
            At::One(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            At::Every(Family::V6) => f.write_str("[::]:")?,
            // As it is where there is no IPv6.
            At::Every(Family::V4) | At::EveryOfBoth => {}
        }
        write!(f, "{}", self.port)?;
        if let Some(port) = self.container_port {
            write!(f, ":{port}")?;
        }
        write!(f, "/{}", self.proto)
    }
}

/// Frontends of consecutive ports: a [`Publish`] in which ports may be ranges, `8000-8010:5000-5010`. Their containers'
/// ports are as many, or one for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishRange {
    first: Publish,
    /// How many more there are.
    more: u16,
    /// Whether the containers' ports rise with the frontends'.
    is_parallel: bool,
}

impl PublishRange {
    /// Returns how many frontends these are: at least one.
    pub fn count(&self) -> usize {
        usize::from(self.more) + 1
    }

    /// Returns the frontends, by port.
    pub fn frontends(self) -> impl Iterator<Item = Publish> {
        let Self { first, more, is_parallel } = self;
        (0..=more).map(move |step| Publish {
            port: first.port.saturating_add(step),
            container_port: first.container_port.map(|port| port.saturating_add(if is_parallel { step } else { 0 })),
            ..first
        })
    }
}

impl FromStr for PublishRange {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (ends, proto) = text.split_once('/').map_or((text, None), |(ends, proto)| (ends, Some(proto)));
        let mut mores = Vec::new();
        let mut firsts = Vec::new();
        for part in ends.split(':') {
            let range = part.split_once('-').filter(|(low, high)| is_number(low) && is_number(high));
            let Some((low, high)) = range else {
                mores.push(None);
                firsts.push(part);
                continue;
            };
            let (low_port, high_port) = (parse_port(low)?.get(), parse_port(high)?.get());
            let more = high_port.checked_sub(low_port);
            mores.push(Some(more.ok_or_else(|| ConfigError::RangeOrder { given: part.to_owned() })?));
            firsts.push(low);
        }
        let first = firsts.join(":") + &proto.map(|proto| format!("/{proto}")).unwrap_or_default();
        let first: Publish = first.parse()?;
        // The last parts are the ports.
        let container = if first.container_port.is_some() { mores.pop().flatten() } else { None };
        let more = mores.pop().flatten();
        let is_parallel = match (more, container) {
            (None, None) | (Some(_), None) => false,
            (Some(more), Some(container)) if more == container => true,
            (None, Some(0)) => false,
            (None | Some(_), Some(_)) => return Err(ConfigError::RangeLength { given: text.to_owned() }),
        };
        Ok(Self { first, more: more.unwrap_or(0), is_parallel })
    }
}

impl From<Publish> for PublishRange {
    fn from(only: Publish) -> Self {
        Self { first: only, more: 0, is_parallel: false }
    }
}

/// Reads a static backend, `IP:PORT[=WEIGHT]`.
///
/// # Errors
/// Where it is not written so, or its address is none that packets can be redirected to.
pub fn parse_backend(text: &str) -> Result<StaticBackend, ConfigError> {
    let syntax = || ConfigError::BackendSyntax { given: text.to_owned() };
    let (place, weight) = match text.split_once('=') {
        Some((place, weight)) => (place, weight.parse()?),
        None => (text, Weight::ONE),
    };
    if lacks_brackets(place) {
        return Err(ConfigError::Brackets { given: text.to_owned() });
    }
    let (address, port) = match split_brackets(place) {
        Some((address, rest)) => (address, rest.strip_prefix(':').ok_or_else(syntax)?),
        None => place.split_once(':').ok_or_else(syntax)?,
    };
    if port.contains(':') {
        return Err(syntax());
    }
    let backend = SocketAddr::new(parse_address(address)?, parse_port(port)?.get());
    match AddressKind::of(backend.ip()) {
        Some(kind) => Err(ConfigError::BackendAddress { backend, kind }),
        None => Ok(StaticBackend { address: backend, weight }),
    }
}

/// Reads the address of a frontend.
fn parse_frontend_address(text: &str) -> Result<At, ConfigError> {
    let address = parse_address(text)?;
    match AddressKind::of(address) {
        Some(AddressKind::Unspecified) if address.is_unspecified() => Ok(At::Every(Family::of(address))),
        Some(AddressKind::Loopback) | None => Ok(At::One(address)),
        Some(
            kind @ (AddressKind::Unspecified
            | AddressKind::Multicast
            | AddressKind::Broadcast
            | AddressKind::LinkLocal
            | AddressKind::Mapped),
        ) => Err(ConfigError::FrontendAddress { address, kind }),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, ConfigError> {
    text.parse().map_err(|_| ConfigError::Address { given: text.to_owned() })
}

fn parse_port(text: &str) -> Result<NonZeroU16, ConfigError> {
    if !is_number(text) {
        return Err(ConfigError::PortSyntax { given: text.to_owned() });
    }
    text.parse().map_err(|_| ConfigError::PortRange { given: text.to_owned() })
}

fn parse_proto(text: &str) -> Result<Proto, ConfigError> {
    match text {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        _ => Err(ConfigError::Protocol { given: text.to_owned() }),
    }
}

/// Returns the IPv6 address that a text begins with, and what follows its brackets.
fn split_brackets(text: &str) -> Option<(&str, &str)> {
    let (address, rest) = text.strip_prefix('[')?.split_once(']')?;
    address.contains(':').then_some((address, rest))
}

/// Returns whether somebody wrote an IPv6 address without brackets, with ports or without. An IPv4 publication has two
/// colons at most and no empty part between them.
fn lacks_brackets(text: &str) -> bool {
    !text.starts_with('[') && (text.contains("::") || text.parse::<Ipv6Addr>().is_ok())
}

/// Returns whether somebody meant an address, or a name, and not a port.
fn is_address(text: &str) -> bool {
    text.contains(|letter: char| letter == '.' || letter.is_alphabetic())
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    #[test]
    fn frontends_are_read_as_they_are_written() {
        let rows = [
            ("80", At::EveryOfBoth, 80, None, Proto::Tcp),
            ("80:5000", At::EveryOfBoth, 80, Some(5000), Proto::Tcp),
            ("80:5000/tcp", At::EveryOfBoth, 80, Some(5000), Proto::Tcp),
            ("53:5353/udp", At::EveryOfBoth, 53, Some(5353), Proto::Udp),
            ("192.0.2.1:80", one("192.0.2.1"), 80, None, Proto::Tcp),
            ("192.0.2.1:65535:1/udp", one("192.0.2.1"), 65535, Some(1), Proto::Udp),
            ("127.0.0.1:80:5000", one("127.0.0.1"), 80, Some(5000), Proto::Tcp),
            ("0.0.0.0:80:5000", At::Every(Family::V4), 80, Some(5000), Proto::Tcp),
            ("[2001:db8::1]:80", one("2001:db8::1"), 80, None, Proto::Tcp),
            ("[2001:db8::1]:53:5353/udp", one("2001:db8::1"), 53, Some(5353), Proto::Udp),
            ("[::1]:80", one("::1"), 80, None, Proto::Tcp),
            ("[::]:80:5000", At::Every(Family::V6), 80, Some(5000), Proto::Tcp),
        ];
        for (text, at, port, container_port, proto) in rows {
            let publish: Publish = text.parse().expect(text);

            assert_eq!(publish.at, at, "{text}");
            assert_eq!(publish.port.get(), port, "{text}");
            assert_eq!(publish.container_port.map(NonZeroU16::get), container_port, "{text}");
            assert_eq!(publish.proto, proto, "{text}");
        }
    }

    fn one(address: &str) -> At {
        At::One(address.parse().expect(address))
    }

    #[test]
    fn what_is_no_frontend_is_told_so() {
        let rows = [
            ("", r#"port "" is not a number: write one from 1 to 65535, such as 80"#),
            ("http", r#"port "http" is not a number"#),
            ("80:", r#"port "" is not a number"#),
            ("+80:5000", r#"port "+80" is not a number"#),
            ("8000-8010:5000", r#"port "8000-8010" is not a number"#),
            ("80:5000x", r#"port "5000x" is not a number"#),
            ("0:5000", "port 0 does not exist: write one from 1 to 65535, such as 80"),
            ("80:0", "port 0 does not exist"),
            ("65536:5000", "port 65536 does not exist"),
            ("80:99999999999999999999", "port 99999999999999999999 does not exist"),
            (":80:5000", r#""" is not an address: write one such as 192.0.2.1 or [2001:db8::1], names are not"#),
            ("localhost:80", r#""localhost" is not an address"#),
            ("localhost:80:5000", r#""localhost" is not an address"#),
            ("192.0.2:80:5000", r#""192.0.2" is not an address"#),
            ("192.0.2.256:80:5000", r#""192.0.2.256" is not an address"#),
            ("1:2:3:4", r#"publish "1:2:3:4" is not of the form [ADDR:]PORT:CONTAINER_PORT[/tcp|/udp]: write 80:5000"#),
            ("::1", r#""::1" has an IPv6 address without brackets: write one such as [2001:db8::1]:80"#),
            ("2001:db8::1:80:5000", r#""2001:db8::1:80:5000" has an IPv6 address without brackets"#),
            ("2001:db8:0:0:0:0:0:1", r#""2001:db8:0:0:0:0:0:1" has an IPv6 address without brackets"#),
            ("[2001:db8::1]", r#"publish "[2001:db8::1]" is not of the form"#),
            ("[2001:db8::1]80", r#"publish "[2001:db8::1]80" is not of the form"#),
            ("[2001:db8::1]:80:5000:1", r#"publish "[2001:db8::1]:80:5000:1" is not of the form"#),
            ("[2001:db8::g]:80", r#""2001:db8::g" is not an address"#),
            ("[2001:db8::1%eth0]:80", r#""2001:db8::1%eth0" is not an address"#),
            ("[192.0.2.1]:80", r#""[192.0.2.1]" is not an address"#),
            ("[ff02::1]:80", "ff02::1 is a multicast address"),
            ("[fe80::1]:80", "fe80::1 is a link-local address"),
            ("[::ffff:192.0.2.1]:80", "::ffff:192.0.2.1 is an IPv4-in-IPv6 address"),
            ("80:5000/sctp", r#"protocol "sctp" is not balanced: write /tcp or /udp, or nothing for /tcp"#),
            ("80:5000/", r#"protocol "" is not balanced"#),
            ("80:5000/tcp/udp", r#"protocol "tcp/udp" is not balanced"#),
            ("224.0.0.1:80:5000", "224.0.0.1 is a multicast address, to which nobody connects: write an address of"),
            ("255.255.255.255:80:5000", "255.255.255.255 is a broadcast address"),
            ("0.1.2.3:80:5000", "0.1.2.3 is an unspecified address"),
        ];
        for (text, message) in rows {
            let error = text.parse::<Publish>().expect_err(text).to_string();

            assert!(error.starts_with(message), "{text:?} gives {error}");
        }
    }

    #[test]
    fn ranges_are_frontends_of_consecutive_ports() {
        let rows = [
            ("80:5000", "80:5000/tcp"),
            ("53/udp", "53/udp"),
            ("8000-8002:5000-5002", "8000:5000/tcp 8001:5001/tcp 8002:5002/tcp"),
            ("8000-8002:5000", "8000:5000/tcp 8001:5000/tcp 8002:5000/tcp"),
            ("192.0.2.1:8000-8001/udp", "192.0.2.1:8000/udp 192.0.2.1:8001/udp"),
            ("127.0.0.1:65534-65535:1-2", "127.0.0.1:65534:1/tcp 127.0.0.1:65535:2/tcp"),
            ("[2001:db8::1]:8000-8001:5000-5001", "[2001:db8::1]:8000:5000/tcp [2001:db8::1]:8001:5001/tcp"),
            ("80-80:5000-5000", "80:5000/tcp"),
            ("80:5000-5000", "80:5000/tcp"),
        ];
        for (text, expected) in rows {
            let range: PublishRange = text.parse().expect(text);

            let frontends: Vec<String> = range.frontends().map(|publish| publish.to_string()).collect();
            assert_eq!((frontends.join(" ").as_str(), range.count()), (expected, frontends.len()), "{text}");
        }
    }

    #[test]
    fn what_is_no_range_is_told_so() {
        let rows = [
            ("8010-8000:5000", "ports 8010-8000 are none: write the lower port first, such as 8000-8010"),
            ("8000-8010:5000-5009", r#"publish "8000-8010:5000-5009" does not lead each port to one port: write as"#),
            ("80:5000-5001", r#"publish "80:5000-5001" does not lead each port to one port"#),
            ("65530-65536:5000", "port 65536 does not exist"),
            ("0-5:5000", "port 0 does not exist"),
            ("80-:5000", r#"port "80-" is not a number"#),
            ("a-b:80:5000", r#""a-b" is not an address"#),
        ];
        for (text, message) in rows {
            let error = text.parse::<PublishRange>().expect_err(text).to_string();

            assert!(error.starts_with(message), "{text:?} gives {error}");
        }
    }

    #[test]
    fn backends_are_addresses_with_ports() {
        let weight = |text: &str| text.parse().expect(text);
        for text in ["10.0.0.2:5000", "[2001:db8::2]:5000", "[fd00::2]:1"] {
            let address = text.parse().expect(text);
            assert_eq!(parse_backend(text), Ok(StaticBackend { address, weight: Weight::ONE }));
            assert_eq!(parse_backend(&format!("{text}=3")), Ok(StaticBackend { address, weight: weight("3") }));
        }

        let rows = [
            ("10.0.0.2", r#"backend "10.0.0.2" is not of the form IP:PORT[=WEIGHT]: write 10.0.0.2:5000,"#),
            ("2001:db8::2=3", r#""2001:db8::2=3" has an IPv6 address without brackets"#),
            ("[2001:db8::2]=3", r#"backend "[2001:db8::2]=3" is not of the form IP:PORT"#),
            ("[2001:db8::2]:80=0", r#"weight "0" is no whole number from 1 to 256"#),
            ("10.0.0.2=3", r#"backend "10.0.0.2=3" is not of the form IP:PORT[=WEIGHT]"#),
            ("10.0.0.2:80:5000", r#"backend "10.0.0.2:80:5000" is not of the form IP:PORT[=WEIGHT]"#),
            ("10.0.0.2:80=", r#"weight "" is no whole number from 1 to 256"#),
            ("10.0.0.2:80=1=2", r#"weight "1=2" is no whole number"#),
            ("10.0.0.2:0", "port 0 does not exist"),
            ("10.0.0.2:http", r#"port "http" is not a number"#),
            ("10.0.0.2:80/udp", r#"port "80/udp" is not a number"#),
            ("web:80", r#""web" is not an address"#),
            ("::1", r#""::1" has an IPv6 address without brackets"#),
            ("[2001:db8::2]", r#"backend "[2001:db8::2]" is not of the form IP:PORT"#),
            ("[2001:db8::2]:80:5000", r#"backend "[2001:db8::2]:80:5000" is not of the form IP:PORT"#),
            ("[::1]:80", "backend [::1]:80 is a loopback address: a packet from outside cannot be redirected to"),
            ("[fe80::2]:80", "backend [fe80::2]:80 is a link-local address: it means another host on every link"),
            ("[::ffff:10.0.0.2]:80", "backend [::ffff:10.0.0.2]:80 is an IPv4-in-IPv6 address: write"),
            ("0.0.0.0:80", "backend 0.0.0.0:80 is an unspecified address: it names no host"),
            (
                "127.0.0.1:80",
                "backend 127.0.0.1:80 is a loopback address: a packet from outside cannot be redirected to",
            ),
            ("224.0.0.1:80", "backend 224.0.0.1:80 is a multicast address: a connection has one other end"),
            ("255.255.255.255:80", "backend 255.255.255.255:80 is a broadcast address"),
        ];
        for (text, message) in rows {
            let error = parse_backend(text).expect_err(text).to_string();

            assert!(error.starts_with(message), "{text:?} gives {error}");
        }
    }

    #[test]
    fn a_frontend_with_every_address_overlaps_one_of_them() {
        let publish = |text: &str| text.parse::<Publish>().expect(text);
        let rows = [
            ("80:5000", "80:5001", true),
            ("80:5000", "192.0.2.1:80:5000", true),
            ("192.0.2.1:80:5000", "192.0.2.1:80:5001", true),
            ("192.0.2.1:80:5000", "192.0.2.2:80:5000", false),
            ("80:5000", "81:5000", false),
            ("80:5000/tcp", "80:5000/udp", false),
            ("0.0.0.0:80", "[::]:80", false),
            ("80", "[::]:80", true),
            ("[2001:db8::1]:80", "[::]:80", true),
            ("[2001:db8::1]:80", "0.0.0.0:80", false),
            ("[2001:db8::1]:80", "[2001:db8::2]:80", false),
        ];
        for (one, other, overlap) in rows {
            assert_eq!(publish(one).overlaps(&publish(other)), overlap, "{one} {other}");
            assert_eq!(publish(other).overlaps(&publish(one)), overlap, "{other} {one}");
        }
    }

    #[test]
    fn a_frontend_is_named_by_what_clients_see() {
        assert_eq!("80:5000".parse::<Publish>().map(Publish::name), Ok("80/tcp".to_owned()));
        assert_eq!("192.0.2.1:53:5353/udp".parse::<Publish>().map(Publish::name), Ok("192.0.2.1:53/udp".to_owned()));
        assert_eq!("[2001:db8::1]:80".parse::<Publish>().map(Publish::name), Ok("[2001:db8::1]:80/tcp".to_owned()));
        assert_eq!("[::]:80".parse::<Publish>().map(Publish::name), Ok("[::]:80/tcp".to_owned()));
    }

    #[test]
    fn without_an_address_there_is_a_frontend_for_each_family() {
        let names = |text: &str, families: &[Family]| {
            let frontends = of_families(&[text.parse().expect(text)], families)?;
            Ok(frontends.into_iter().map(Publish::name).collect::<Vec<_>>())
        };
        let both = [Family::V4, Family::V6];

        assert_eq!(names("80", &both), Ok(vec!["80/tcp".to_owned(), "[::]:80/tcp".to_owned()]));
        assert_eq!(names("80", &[Family::V4]), Ok(vec!["80/tcp".to_owned()]));
        assert_eq!(names("80", &[Family::V6]), Ok(vec!["[::]:80/tcp".to_owned()]));
        assert_eq!(names("0.0.0.0:80", &both), Ok(vec!["80/tcp".to_owned()]));
        assert_eq!(names("[2001:db8::1]:80", &both), Ok(vec!["[2001:db8::1]:80/tcp".to_owned()]));
        let none: Result<_, ConfigError> = names("[::]:80", &[Family::V4]);
        assert!(none.is_err_and(|error| error.to_string().starts_with("publish [::]:80/tcp is for clients of IPv6")));
    }

    fn publishes() -> impl Strategy<Value = Publish> {
        let hosts = |address: IpAddr| {
            matches!(AddressKind::of(address), None | Some(AddressKind::Loopback)).then_some(At::One(address))
        };
        let at = prop_oneof![
            Just(At::EveryOfBoth),
            Just(At::Every(Family::V6)),
            any::<Ipv4Addr>().prop_filter_map("a host's", move |address| hosts(address.into())),
            any::<Ipv6Addr>().prop_filter_map("a host's", move |address| hosts(address.into())),
        ];
        let proto = prop_oneof![Just(Proto::Tcp), Just(Proto::Udp)];
        (at, any::<NonZeroU16>(), any::<Option<NonZeroU16>>(), proto)
            .prop_map(|(at, port, container_port, proto)| Publish { at, port, container_port, proto })
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(publish in publishes()) {
            prop_assert_eq!(publish.to_string().parse(), Ok(publish));
        }

        #[test]
        fn any_text_is_a_frontend_or_an_error(text in ".*", near in "[0-9a-f:./\\[\\]tcpud-]{0,24}") {
            for text in [text, near] {
                if let Ok(publish) = text.parse::<Publish>() {
                    let again: Publish = publish.to_string().parse().expect("what is shown");
                    prop_assert_eq!(again.to_string(), publish.to_string());
                    prop_assert_eq!(text.parse(), Ok(PublishRange::from(publish)));
                }
                if let Ok(backend) = parse_backend(&text) {
                    prop_assert_eq!(parse_backend(&backend.to_string()), Ok(backend));
                }
            }
        }
    }
}
