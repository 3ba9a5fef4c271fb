//! Where a backend is: at an address of one version of IP, or of both.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

/// A version of IP. Clients of one are never led to backends of the other: packets are rewritten, not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Returns the family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Returns its loopback address.
    pub const fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The addresses of one backend, one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Addresses {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl From<IpAddr> for Addresses {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self { v4: Some(address), v6: None },
            IpAddr::V6(address) => Self { v4: None, v6: Some(address) },
        }
    }
}

/// Addresses as they are written in reports: those of agents that know one family only are readable, and so are theirs here.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    One(IpAddr),
    Several(Vec<IpAddr>),
}

impl From<Addresses> for Written {
    fn from(addresses: Addresses) -> Self {
        let all: Vec<IpAddr> = addresses.each().collect();
        match all.as_slice() {
            [one] => Self::One(*one),
            _ => Self::Several(all),
        }
    }
}

impl TryFrom<Written> for Addresses {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let all = match written {
            Written::One(address) => vec![address],
            Written::Several(addresses) => addresses,
        };
        let joined = all.into_iter().map(Self::from).reduce(Self::or);
        joined.ok_or("a list of addresses without any")
    }
}

impl Addresses {
    /// Joins what there is; `None` if there is nothing.
    pub fn of(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Option<Self> {
        (v4.is_some() || v6.is_some()).then_some(Self { v4, v6 })
    }

    /// Returns that of each family.
    pub const fn pair(&self) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        (self.v4, self.v6)
    }

    /// Returns that of a family.
    pub fn of_family(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// Returns the families of which there is one.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        [Family::V4, Family::V6].into_iter().filter(|family| self.of_family(*family).is_some())
    }

    /// Returns those of both, where they are in `other` instead of here.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { v4: self.v4.or(other.v4), v6: self.v6.or(other.v6) }
    }

    /// Returns those of some families; `None` if there is none.
    pub fn only(&self, is_wanted: impl Fn(Family) -> bool) -> Option<Self> {
        Self::of(self.v4.filter(|_| is_wanted(Family::V4)), self.v6.filter(|_| is_wanted(Family::V6)))
    }

    /// Returns each of them, IPv4 first.
    pub fn each(&self) -> impl Iterator<Item = IpAddr> {
        [Family::V4, Family::V6].into_iter().filter_map(|family| self.of_family(family))
    }

    /// Returns whether all of these are those of `other`.
    pub fn are_of(&self, other: &Self) -> bool {
        (self.v4.is_none() || self.v4 == other.v4) && (self.v6.is_none() || self.v6 == other.v6)
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4}, {v6}"),
            (Some(v4), None) => v4.fmt(f),
            (None, Some(v6)) => v6.fmt(f),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_told_from_other_addresses() {
        let v4 = Addresses::from(IpAddr::from([198, 19, 0, 2]));
        let v6 = Addresses::from(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)));
        let both = v4.or(v6);

        assert!(v4.are_of(&both) && v6.are_of(&both) && both.are_of(&both));
        assert!(!both.are_of(&v4) && !v6.are_of(&v4));
        assert!(!Addresses::from(IpAddr::from([198, 19, 0, 3])).are_of(&both));
        assert_eq!(both.to_string(), "198.19.0.2, 2001:db8::2");
        assert_eq!(
            both.each().chain(v6.each()).map(Family::of).collect::<Vec<_>>(),
            [Family::V4, Family::V6, Family::V6]
        );
        assert_eq!(Addresses::of(None, None), None);
    }

    #[test]
    fn one_address_is_written_as_agents_read_it_that_know_no_other() {
        let both = r#"["198.19.0.2","2001:db8::2"]"#;
        for text in [r#""198.19.0.2""#, r#""2001:db8::2""#, both] {
            let addresses: Addresses = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));

            assert_eq!(serde_json::to_string(&addresses).unwrap(), text);
        }
        let read: Addresses = serde_json::from_str(both).unwrap();
        assert_eq!(read.to_string(), "198.19.0.2, 2001:db8::2");
        assert!(serde_json::from_str::<Addresses>("[]").is_err());
    }
}
