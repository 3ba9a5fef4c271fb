//! Who may begin connections, and how often.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net};
use lb_ebpf::abi::{self, Address, FrontendId, RateLimit, SOURCE_BITS, Source};
use serde::{Deserialize, Serialize};

use super::{ConfigError, SynCookies};

/// The most connections in a second that can be allowed: beyond it, nobody is limited.
const HIGHEST_RATE: u32 = 1_000_000;
/// A browser begins half a dozen connections at once: so many are let in at least.
const LEAST_BURST: u32 = 10;
/// Bits of an IPv4 address that are a network by itself.
const HOST: u8 = 32;
/// Every address of IPv4.
const ALL_OF_IPV4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
/// The same mapped into IPv6, RFC 4291, 2.5.5.2.
const MAPPED: (Ipv6Addr, u8) = (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// The guard of a frontend. By default everybody may, as often as they like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// Networks that may; if there are any, others may not.
    pub allow: BTreeSet<IpNet>,
    /// Networks that may not. Of several that hold an address, the smallest counts.
    pub deny: BTreeSet<IpNet>,
    /// How many connections one network may begin.
    pub source_rate: Option<SourceRate>,
    /// Whether their SYNs are answered by cookies while there is a flood of them.
    #[serde(default)]
    pub syn_cookies: SynCookies,
}

/// How many connections a network may begin in a second: `100`, or `100/24` for all of an IPv4 network together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourceRate {
    per_second: u32,
    v4_bits: u8,
}

impl Guard {
    /// Joins what was said.
    ///
    /// # Errors
    /// [`ConfigError::Contradiction`] if a network is both allowed and denied.
    pub fn new(allow: &[IpNet], deny: &[IpNet], source_rate: Option<SourceRate>) -> Result<Self, ConfigError> {
        let syn_cookies = SynCookies::default();
        let whole = |list: &[IpNet]| list.iter().map(IpNet::trunc).collect::<BTreeSet<_>>();
        let guard = Self { allow: whole(allow), deny: whole(deny), source_rate, syn_cookies };
        match guard.allow.intersection(&guard.deny).next() {
            Some(&network) => Err(ConfigError::Contradiction { network }),
            None => Ok(guard),
        }
    }

    /// Says whether SYNs are answered by cookies.
    #[must_use]
    pub fn with_syn_cookies(self, syn_cookies: SynCookies) -> Self {
        Self { syn_cookies, ..self }
    }

    /// Returns whether everybody may, as often as they like.
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// Returns what the kernel is told of it, but for the networks.
    pub fn rules(&self) -> abi::Guard {
        let mut rules = match self.syn_cookies {
            SynCookies::Auto => abi::Guard::default(),
            SynCookies::Off => abi::Guard::default().without_cookies(),
        };
        if !(self.allow.is_empty() && self.deny.is_empty()) {
            rules = rules.with_sources(self.allow.is_empty());
        }
        match self.source_rate {
            Some(rate) => rules.with_limit(rate.limit()),
            None => rules,
        }
    }

    /// Returns the networks as the kernel is told of them: how many bits of what, and whether it may.
    pub fn sources(&self, frontend: FrontendId) -> impl Iterator<Item = (u32, Source, bool)> {
        let row = move |network: &IpNet, admits| {
            let bits = SOURCE_BITS - u32::from(network.max_prefix_len()) + u32::from(network.prefix_len());
            (bits, Source { frontend, address: Address::from(network.network()) }, admits)
        };
        let allowed = self.allow.iter().map(move |network| row(network, true));
        let denied = self.deny.iter().map(move |network| row(network, false));
        let ipv4 = self.is_ipv4_apart().then(|| row(&IpNet::V4(ALL_OF_IPV4), self.allow.is_empty()));
        allowed.chain(denied).chain(ipv4)
    }

    /// Returns whether the kernel has to be told of IPv4 by itself: its table has those addresses mapped into IPv6, where a
    /// network such as `::/0` would hold them, too.
    fn is_ipv4_apart(&self) -> bool {
        let holds_it = |network: &IpNet| match network {
            IpNet::V4(_) => false,
            IpNet::V6(network) => network.prefix_len() < MAPPED.1 && network.contains(&MAPPED.0),
        };
        let is_it = |network: &IpNet| match network {
            IpNet::V4(network) => *network == ALL_OF_IPV4,
            IpNet::V6(network) => (network.addr(), network.prefix_len()) == MAPPED,
        };
        let all = || self.allow.iter().chain(&self.deny);
        all().any(holds_it) && !all().any(is_it)
    }
}

impl SourceRate {
    fn limit(self) -> RateLimit {
        let v4_mask = u32::MAX.checked_shl(u32::from(HOST - self.v4_bits)).unwrap_or(0);
        RateLimit {
            interval_ns: 1_000_000_000 / self.per_second,
            burst: self.per_second.max(LEAST_BURST),
            v4_mask: v4_mask.to_be(),
        }
    }
}

impl FromStr for SourceRate {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::SourceRate { given: text.to_owned(), most: HIGHEST_RATE };
        let (rate, bits) = text.split_once('/').map_or((text, None), |(rate, bits)| (rate, Some(bits)));
        let per_second = rate.parse().ok().filter(|rate| (1..=HIGHEST_RATE).contains(rate)).ok_or_else(wrong)?;
        let v4_bits = match bits {
            None => HOST,
            Some(bits) => bits.parse().ok().filter(|bits| (1..=HOST).contains(bits)).ok_or_else(wrong)?,
        };
        Ok(Self { per_second, v4_bits })
    }
}

impl TryFrom<String> for SourceRate {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<SourceRate> for String {
    fn from(rate: SourceRate) -> Self {
        rate.to_string()
    }
}

impl fmt::Display for SourceRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.v4_bits {
            HOST => write!(f, "{}", self.per_second),
            bits => write!(f, "{}/{bits}", self.per_second),
        }
    }
}

/// Reads a network: `192.0.2.0/24`, `2001:db8::/32`, or one address.
///
/// # Errors
/// Where it is none.
pub fn parse_network(text: &str) -> Result<IpNet, ConfigError> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| ConfigError::Network { given: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| parse_network(text).expect("a network")).collect()
    }

    #[test]
    fn networks_are_written_as_prefixes_or_addresses() {
        for (text, shown) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(parse_network(text).map(|network| network.to_string()).ok().as_deref(), Some(shown));
        }
        for text in ["", "192.0.2.0/33", "192.0.2", "host", "192.0.2.0/24,198.18.0.0/15"] {
            assert!(
                parse_network(text).unwrap_err().to_string().starts_with(&format!("{text:?} is no network")),
                "{text}"
            );
        }
    }

    #[test]
    fn rates_are_numbers_with_or_without_a_network() {
        for text in ["1", "100", "1000000", "100/24", "5/1"] {
            assert_eq!(text.parse::<SourceRate>().map(|rate| rate.to_string()).ok().as_deref(), Some(text));
        }
        assert_eq!("7/32".parse::<SourceRate>().map(|rate| rate.to_string()).ok().as_deref(), Some("7"));
        for text in ["0", "-1", "1000001", "100/0", "100/33", "100/", "/24", "many", ""] {
            assert!(text.parse::<SourceRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_kernel_is_told_the_interval_the_burst_and_the_mask() {
        let limit = |text: &str| text.parse::<SourceRate>().expect("a rate").limit();

        assert_eq!(limit("100"), RateLimit { interval_ns: 10_000_000, burst: 100, v4_mask: u32::MAX });
        let wide = limit("2/24");
        assert_eq!((wide.interval_ns, wide.burst), (500_000_000, 10));
        assert_eq!(Address::from_v4([198, 18, 1, 2]).network(wide.v4_mask), Address::from_v4([198, 18, 1, 0]));
    }

    #[test]
    fn prefixes_of_ipv4_stand_behind_the_mapping() {
        let guard =
            Guard::new(&networks(&["198.18.1.7/16"]), &networks(&["2001:db8::/32", "198.18.1.2"]), None).unwrap();

        let rows: Vec<_> = guard.sources(3).collect();

        let source = |address| Source { frontend: 3, address };
        let v6 = Address::from("2001:db8::".parse::<std::net::Ipv6Addr>().unwrap());
        assert_eq!(rows[0], (32 + 96 + 16, source(Address::from_v4([198, 18, 0, 0])), true));
        assert!(rows.contains(&(32 + 32, source(v6), false)));
        assert!(rows.contains(&(160, source(Address::from_v4([198, 18, 1, 2])), false)));
        assert!(guard.rules().asks_for_sources() && !guard.rules().admits_others());
    }

    #[test]
    fn all_of_ipv6_is_none_of_ipv4() {
        let ipv4 = |allow: &[&str], deny: &[&str]| {
            let guard = Guard::new(&networks(allow), &networks(deny), None).unwrap();
            let whole = Source { frontend: 3, address: Address::from_v4([0; 4]) };
            let rows: Vec<bool> = guard
                .sources(3)
                .filter(|(bits, source, _)| (*bits, *source) == (SOURCE_BITS - 32, whole))
                .map(|(_, _, admits)| admits)
                .collect();
            rows
        };

        assert_eq!(ipv4(&["::/0"], &[]), [false]);
        assert_eq!(ipv4(&[], &["::/0"]), [true]);
        assert_eq!(ipv4(&["::/0", "0.0.0.0/0"], &[]), [true], "as it is said");
        assert_eq!(ipv4(&["2001:db8::/32", "198.18.0.0/15"], &[]), [false; 0]);
    }

    #[test]
    fn a_list_of_the_denied_lets_others_in() {
        let guard = Guard::new(&[], &networks(&["198.18.0.0/15"]), None).unwrap();

        assert!(guard.rules().asks_for_sources() && guard.rules().admits_others() && guard.rules().limit().is_none());
        assert!(Guard::default().is_open() && Guard::default().rules() == abi::Guard::default());
        assert!(guard.rules().allows_cookies(), "unless it is told otherwise");
        assert!(!guard.with_syn_cookies(SynCookies::Off).rules().allows_cookies());
    }

    #[test]
    fn nobody_is_both_allowed_and_denied() {
        let error = Guard::new(&networks(&["198.18.0.0/16"]), &networks(&["198.18.7.7/16"]), None).unwrap_err();

        assert_eq!(error.to_string(), "198.18.0.0/16 is both allowed and denied: leave one out");
    }
}
