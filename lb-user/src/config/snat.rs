//! Addresses by which backends know clients, in place of their own: so that replies come back here from anywhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{AddressKind, ConfigError, Family};

/// An address of this host for each family; none where backends know clients by their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Snat {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Snat {
    /// Joins the addresses that were given.
    ///
    /// # Errors
    /// If two are of one family; with the place of the second.
    pub fn new(given: &[IpAddr]) -> Result<Self, (ConfigError, usize)> {
        let mut snat = Self::default();
        for (place, &address) in given.iter().enumerate() {
            let family = Family::of(address);
            if snat.of(family).is_some() {
                return Err((ConfigError::DuplicateSnat { family }, place));
            }
            match address {
                IpAddr::V4(address) => snat.v4 = Some(address),
                IpAddr::V6(address) => snat.v6 = Some(address),
            }
        }
        Ok(snat)
    }

    /// Returns the address by which backends of a family know clients.
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// Returns all addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [self.of(Family::V4), self.of(Family::V6)].into_iter().flatten()
    }
}

/// Reads an address of this host.
///
/// # Errors
/// If it is none, or none to which another machine could reply.
pub fn parse_snat(text: &str) -> Result<IpAddr, ConfigError> {
    let address = text.parse().map_err(|_| ConfigError::Address { given: text.to_owned() })?;
    match AddressKind::of(address) {
        Some(kind) => Err(ConfigError::SnatAddress { address, kind }),
        None => Ok(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_address_for_each_family() {
        let [one, other, v6]: [IpAddr; 3] =
            ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|text| parse_snat(text).unwrap());

        let snat = Snat::new(&[v6, one]).unwrap();

        assert_eq!((snat.of(Family::V4), snat.of(Family::V6)), (Some(one), Some(v6)));
        assert_eq!(snat.addresses().collect::<Vec<_>>(), [one, v6]);
        assert_eq!(Snat::new(&[one, v6, other]), Err((ConfigError::DuplicateSnat { family: Family::V4 }, 2)));
    }

    #[test]
    fn replies_need_an_address_that_others_can_reach() {
        for text in ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "fe80::1", "::ffff:192.0.2.1"]
        {
            assert!(matches!(parse_snat(text), Err(ConfigError::SnatAddress { .. })), "{text}");
        }
        for text in ["", "eth0", "192.0.2.1:80", "[2001:db8::1]", "192.0.2.0/24"] {
            assert!(matches!(parse_snat(text), Err(ConfigError::Address { .. })), "{text}");
        }
    }
}
