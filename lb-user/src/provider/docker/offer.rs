//! What a container that somebody else has started says of itself by labels, and whether it can be served.
//!
//! | label | |
//! | --- | --- |
//! | `lb.enable=true` | it is to be served |
//! | `lb.service=NAME` | by this service; without it, by the only one that takes such containers, or the instance's namesake |
//! | `lb.port=PORT` | where it listens; without it, the frontend's container port, or the only one that it exposes |
//! | `lb.weight=N` | how much it gets beside the others, 1 to 256 |
//! | `lb.network=NAME` | by which of its networks it is reached |
//! | `lb.instance=NAME` | by this instance alone |
//!
//! What cannot be understood is told, and never guessed at. Pure: the engine's answers come in as values.

use std::{
    collections::{BTreeSet, HashMap},
    num::{NonZeroU16, NonZeroU32},
};

use bollard::models::EndpointSettings;

use super::{address_at, labels};
use crate::{
    config::Weight,
    control::{Addresses, Terms},
};

/// The label of every container that is to be served; everything is found by it.
pub const ENABLE: &str = "lb.enable";
const SERVICE: &str = "lb.service";
const PORT: &str = "lb.port";
const WEIGHT: &str = "lb.weight";
const NETWORK: &str = "lb.network";
const INSTANCE: &str = "lb.instance";
/// What all of them begin with.
const PREFIX: &str = "lb.";
/// The network of containers that share this host's.
const HOST: &str = "host";
const KNOWN: [&str; 6] = [ENABLE, SERVICE, PORT, WEIGHT, NETWORK, INSTANCE];

/// To whom a container offers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer<S> {
    /// The service that takes it, or that tells why nobody does.
    pub service: S,
    /// Why nobody takes it.
    pub refused: Option<String>,
}

/// Returns to which of the services that take such containers one offers itself; `None` if it does not, or to others.
pub fn offer<'a>(labels: &HashMap<String, String>, instance: &str, takers: &[&'a str]) -> Option<Offer<&'a str>> {
    let enable = labels.get(ENABLE)?;
    let is_managed = labels.contains_key(labels::MANAGED);
    let is_elsewhere = labels.get(INSTANCE).is_some_and(|of| of != instance);
    if is_managed || is_elsewhere || enable == "false" {
        return None;
    }
    let first = *takers.first()?;
    let named = labels.get(SERVICE).map(String::as_str);
    let service = match (named, takers) {
        (Some(name), _) => takers.iter().find(|taker| **taker == name),
        (None, [only]) => Some(only),
        (None, _) => takers.iter().find(|taker| **taker == instance),
    };
    let list = || takers.join(", ");
    let refused = match (service, named) {
        _ if enable != "true" => Some(format!("{ENABLE} is {enable:?}: write true or false")),
        (Some(_), _) => None,
        (None, Some(name)) => Some(format!(
            "{SERVICE} is {name:?}, and no service of that name takes containers of others here: write one of {}, or name \
             another instance by {INSTANCE}",
            list()
        )),
        (None, None) => {
            Some(format!("{SERVICE} is missing, and several services take containers of others: {}", list()))
        }
    };
    Some(Offer { service: service.copied().unwrap_or(first), refused })
}

/// What is known of a container beside its labels.
pub struct Facts<'a> {
    /// Its networks.
    pub networks: &'a HashMap<String, EndpointSettings>,
    /// The ports that it exposes.
    pub exposed: BTreeSet<u16>,
    /// The addresses of this host by which one is reached that shares its network.
    pub host: Option<Addresses>,
}

/// What a service expects of those that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The network by which they are reached that name none themselves.
    pub network: Option<String>,
    /// Whether every frontend says at which port of theirs they listen.
    pub has_ports: bool,
}

/// Returns where a running container is and what it says of itself, or why it cannot be served.
pub fn terms(
    labels: &HashMap<String, String>,
    facts: &Facts<'_>,
    expected: &Expected,
) -> Result<(Addresses, Terms), String> {
    let mut strange: Vec<&str> = labels.keys().map(String::as_str).filter(|key| key.starts_with(PREFIX)).collect();
    strange.retain(|key| !KNOWN.contains(key));
    strange.sort_unstable();
    if let Some(strange) = strange.first() {
        return Err(format!("there is no label {strange}: there are {}", KNOWN.join(", ")));
    }
    let port = labels.get(PORT).map(|text| port(text)).transpose()?;
    let weight = labels.get(WEIGHT).map(|text| weight(text)).transpose()?;
    let exposed = match facts.exposed.iter().copied().collect::<Vec<u16>>().as_slice() {
        [only] => NonZeroU16::new(*only),
        _ => None,
    };
    if port.is_none() && !expected.has_ports && exposed.is_none() {
        let exposes = match facts.exposed.len() {
            0 => "no port".to_owned(),
            count => format!("{count} ports"),
        };
        return Err(format!("where it listens is not said, and it exposes {exposes}: label it {PORT}=5000"));
    }
    let wanted = labels.get(NETWORK).or(expected.network.as_ref());
    let address = address(facts, wanted.map(String::as_str))?;
    Ok((address, Terms { port, exposed, weight, unfit: None }))
}

fn port(text: &str) -> Result<NonZeroU16, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|_| is_number);
    port.ok_or_else(|| format!("{PORT} is {text:?}: write a number from 1 to 65535, such as 5000"))
}

fn weight(text: &str) -> Result<NonZeroU32, String> {
    let weight = text.parse::<Weight>().map_err(|error| format!("{WEIGHT}: {error}"))?;
    Ok(NonZeroU32::new(weight.number()).expect("a weight is at least 1"))
}

/// Returns the address on the wanted network, or else on the only one.
fn address(facts: &Facts<'_>, wanted: Option<&str>) -> Result<Addresses, String> {
    let networks = facts.networks;
    let mut names: Vec<&str> = networks.keys().map(String::as_str).collect();
    names.sort_unstable();
    let (name, endpoint) = match (wanted, names.as_slice()) {
        (Some(wanted), _) => {
            let by_id = || networks.values().find(|endpoint| endpoint.network_id.as_deref() == Some(wanted));
            let endpoint = networks.get(wanted).or_else(by_id);
            let is_on = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            (wanted, endpoint.ok_or_else(|| format!("it is not on network {wanted}, but on {is_on}"))?)
        }
        (None, [only]) => (*only, &networks[*only]),
        (None, []) => return Err("it is on no network, and so has no address".to_owned()),
        (None, several) => {
            let (several, first) = (several.join(", "), several[0]);
            return Err(format!("it is on several networks, {several}: say by which, such as {NETWORK}={first}"));
        }
    };
    let is_hosts = name == HOST || networks.get(HOST).is_some_and(|host| std::ptr::eq(host, endpoint));
    match is_hosts {
        true => facts.host.ok_or_else(|| "it shares this host's network, and no uplink has an address".to_owned()),
        false => address_at(endpoint).ok_or_else(|| format!("it has no address on network {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> HashMap<String, String> {
        let pair = |word: &str| word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        text.split_whitespace().filter_map(pair).collect()
    }

    fn networks(names: &[&str]) -> HashMap<String, EndpointSettings> {
        let endpoint = |place: usize, name: &str| EndpointSettings {
            network_id: Some(format!("id-of-{name}")),
            ip_address: Some(if name == "bare" { String::new() } else { format!("198.19.{place}.2") }),
            ..EndpointSettings::default()
        };
        names.iter().enumerate().map(|(place, name)| ((*name).to_owned(), endpoint(place, name))).collect()
    }

    #[test]
    fn a_container_offers_itself_to_one_service() {
        let both: &[&str] = &["api", "web"];
        // Labels, services that take such containers; which of them does, or tells why not.
        type Row<'a> = (&'a str, &'a [&'a str], Option<(&'a str, &'a str)>);
        let rows: [Row<'_>; 15] = [
            ("", both, None),
            ("lb.service=web", both, None),
            ("lb.enable=false lb.service=web", both, None),
            ("lb.enable=true lb.service=web", &[], None),
            ("lb.enable=true lb.service=web", both, Some(("web", ""))),
            ("lb.enable=true lb.service=web lb.instance=edge", both, Some(("web", ""))),
            ("lb.enable=true lb.service=web lb.instance=other", both, None),
            ("lb.enable=true", &["web"], Some(("web", ""))),
            ("lb.enable=true", &["api", "edge"], Some(("edge", ""))),
            ("lb.enable=true", both, Some(("api", "lb.service is missing, and several services take containers"))),
            (
                "lb.enable=true lb.service=wbe",
                both,
                Some(("api", "lb.service is \"wbe\", and no service of that name")),
            ),
            ("lb.enable=true lb.service=", both, Some(("api", "lb.service is \"\", and no service of that name"))),
            ("lb.enable=yes lb.service=web", both, Some(("web", "lb.enable is \"yes\": write true or false"))),
            ("lb.enable= lb.service=web", both, Some(("web", "lb.enable is \"\": write true or false"))),
            ("lb.enable=true lb.service=web io.lb-user.managed=true", both, None),
        ];
        for (text, takers, expected) in rows {
            let offer = offer(&labels(text), "edge", takers);

            match (&offer, expected) {
                (None, None) => {}
                (Some(Offer { service, refused }), Some((taker, told))) => {
                    let refused = refused.clone().unwrap_or_default();
                    assert!(*service == taker && refused.starts_with(told), "{text}: {service} {refused}");
                    assert_eq!(refused.is_empty(), told.is_empty(), "{text}: {refused}");
                }
                _ => panic!("{text}: {offer:?}"),
            }
        }
    }

    #[test]
    fn labels_say_where_a_container_listens_and_how_much_it_gets() {
        // Labels, networks, exposed ports, whether frontends name ports; port, exposed port, weight, address.
        type Right<'a> = (&'a str, &'a [&'a str], &'a [u16], bool, [u32; 3], &'a str);
        let rows: [Right<'_>; 9] = [
            ("lb.port=5000", &["bridge"], &[], false, [5000, 0, 0], "198.19.0.2"),
            ("", &["bridge"], &[80], false, [0, 80, 0], "198.19.0.2"),
            ("", &["bridge"], &[80, 443], true, [0, 0, 0], "198.19.0.2"),
            ("lb.port=65535 lb.weight=256", &["a", "b"], &[80], true, [65535, 80, 256], "198.19.0.2"),
            ("lb.network=b", &["a", "b"], &[], true, [0, 0, 0], "198.19.1.2"),
            ("lb.network=id-of-b", &["web", "b"], &[], true, [0, 0, 0], "198.19.1.2"),
            ("lb.port=1", &["only"], &[], false, [1, 0, 0], "198.19.0.2"),
            ("lb.port=1", &["host"], &[], false, [1, 0, 0], "198.18.1.1"),
            ("lb.network=id-of-host", &["host"], &[80], false, [0, 80, 0], "198.18.1.1"),
        ];
        for (text, on, exposed, has_ports, numbers, at) in rows {
            let on = networks(on);
            let host = Addresses::of(Some([198, 18, 1, 1].into()), None);
            let facts = Facts { networks: &on, exposed: exposed.iter().copied().collect(), host };
            let network = on.contains_key("a").then(|| "a".to_owned());

            let (address, found) = terms(&labels(text), &facts, &Expected { network, has_ports }).expect(text);

            let port = |port: Option<NonZeroU16>| port.map_or(0, |port| u32::from(port.get()));
            let weight = found.weight.map_or(0, NonZeroU32::get);
            assert_eq!([port(found.port), port(found.exposed), weight], numbers, "{text}");
            assert_eq!((address.to_string().as_str(), found.unfit), (at, None), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        type Wrong<'a> = (&'a str, &'a [&'a str], &'a [u16], Option<&'a str>, &'a str);
        let rows: [Wrong<'_>; 21] = [
            ("lb.port=0", &["a"], &[], None, "lb.port is \"0\": write a number from 1 to 65535, such as 5000"),
            ("lb.port=", &["a"], &[], None, "lb.port is \"\""),
            ("lb.port=+80", &["a"], &[], None, "lb.port is \"+80\""),
            ("lb.port=65536", &["a"], &[], None, "lb.port is \"65536\""),
            ("lb.port=80/tcp", &["a"], &[], None, "lb.port is \"80/tcp\""),
            ("lb.port=http", &["a"], &[80], None, "lb.port is \"http\""),
            ("lb.weight=0 lb.port=1", &["a"], &[], None, "lb.weight: weight \"0\" is no whole number from 1 to 256"),
            ("lb.weight=257 lb.port=1", &["a"], &[], None, "lb.weight: weight \"257\""),
            ("lb.weight=1.5 lb.port=1", &["a"], &[], None, "lb.weight: weight \"1.5\""),
            ("lb.weight= lb.port=1", &["a"], &[], None, "lb.weight: weight \"\""),
            ("", &["a"], &[], None, "where it listens is not said, and it exposes no port: label it lb.port=5000"),
            ("", &["a"], &[80, 443], None, "where it listens is not said, and it exposes 2 ports"),
            ("lb.prot=80", &["a"], &[80], None, "there is no label lb.prot: there are lb.enable, lb.service, lb.port"),
            ("", &["host"], &[80], None, "it shares this host's network, and no uplink has an address"),
            ("lb.network=host", &["host"], &[80], None, "it shares this host's network"),
            ("lb.port=1", &["host"], &[], Some("c"), "it is not on network c, but on host"),
            ("", &[], &[80], None, "it is on no network, and so has no address"),
            ("", &["a", "b"], &[80], None, "it is on several networks, a, b: say by which, such as lb.network=a"),
            ("lb.network=c", &["a", "b"], &[80], None, "it is not on network c, but on a, b"),
            ("", &["b"], &[80], Some("c"), "it is not on network c, but on b"),
            ("", &["bare"], &[80], None, "it has no address on network bare"),
        ];
        for (text, on, exposed, network, told) in rows {
            let on = networks(on);
            let facts = Facts { networks: &on, exposed: exposed.iter().copied().collect(), host: None };
            let expected = Expected { network: network.map(str::to_owned), has_ports: false };

            let error = terms(&labels(text), &facts, &expected).expect_err(text);

            assert!(error.starts_with(told), "{text}: {error}");
        }
    }
}
