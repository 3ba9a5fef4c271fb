//! By a hash of what a connection is known by: the same on every machine that has the same layout, with or without memory
//! of the connection.
//!
//! # Source
//! MurmurHash3 (x86, 32 bits), Appleby, public domain.

use super::BackendId;
use crate::abi::FlowKey;

/// How many places are looked at for another backend than one that does not answer.
const PROBES: u32 = 16;
/// How far apart those are, of all numbers: the golden ratio, so that they spread.
const STRIDE: u32 = 0x9e37_79b9;

/// Returns the hash of a client, whichever connection it begins.
#[inline(always)]
pub const fn client_hash(key: &FlowKey) -> u32 {
    mixed(with_address(0, key.source.numbers()))
}

/// Returns the hash of a connection.
#[inline(always)]
pub const fn tuple_hash(key: &FlowKey) -> u32 {
    let ports = (key.source_port.number() as u32) << 16 | key.destination_port.number() as u32;
    let proto = match key.proto() {
        Some(proto) => proto as u32,
        None => 0,
    };
    let addresses = with_address(with_address(0, key.source.numbers()), key.destination.numbers());
    mixed(with(with(addresses, ports), proto))
}

/// Returns the place within `len` slots of a hash: its share of the numbers, without a division.
#[inline(always)]
pub(super) const fn place(hash: u32, len: u32) -> u32 {
    ((hash as u64 * len as u64) >> 32) as u32
}

#[inline(always)]
pub(super) fn pick(hash: u32, len: u32, backend: impl Fn(u32) -> Option<BackendId>) -> Option<BackendId> {
    let mut probe = hash;
    for _ in 0..PROBES {
        if let Some(id) = backend(place(probe, len)) {
            return Some(id);
        }
        probe = probe.wrapping_add(STRIDE);
    }
    None
}

#[inline(always)]
const fn with_address(hash: u32, [a, b, c, d]: [u32; 4]) -> u32 {
    with(with(with(with(hash, a), b), c), d)
}

#[inline(always)]
const fn with(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// Lets every bit of a hash depend on every other.
#[inline(always)]
pub(super) const fn mixed(mut hash: u32) -> u32 {
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::{client_hash, pick, place, tuple_hash};
    use crate::abi::{Address, FlowKey, Port, Proto};

    fn key(client: [u8; 4], port: u16) -> FlowKey {
        let frontend = Address::from_v4([198, 18, 1, 1]);
        FlowKey::new(Address::from_v4(client), Port::new(port), frontend, Port::new(80), Proto::Tcp)
    }

    #[test]
    fn hashes_are_the_same_in_every_version() {
        let key = key([198, 18, 1, 2], 40_000);

        // Computed apart from this code.
        assert_eq!((client_hash(&key), tuple_hash(&key)), (812_685_015, 3_711_150_243));
    }

    #[test]
    fn a_client_is_told_by_its_address_and_a_connection_by_all_of_it() {
        let one = key([198, 18, 1, 2], 40_000);

        assert_eq!(client_hash(&one), client_hash(&key([198, 18, 1, 2], 40_001)));
        assert_ne!(tuple_hash(&one), tuple_hash(&key([198, 18, 1, 2], 40_001)));
        assert_ne!(client_hash(&one), client_hash(&key([198, 18, 1, 3], 40_000)));
    }

    #[test]
    fn neighbouring_clients_and_ports_spread_evenly() {
        let mut by_client = vec![0_u32; 16];
        let mut by_port = vec![0_u32; 16];
        for number in 0..16_000_u16 {
            let [high, low] = number.to_be_bytes();
            by_client[place(client_hash(&key([10, 0, high, low], 1)), 16) as usize] += 1;
            by_port[place(tuple_hash(&key([10, 0, 0, 1], number)), 16) as usize] += 1;
        }
        // Six standard deviations of a fair draw.
        assert!(by_client.iter().chain(&by_port).all(|times| times.abs_diff(1000) < 184), "{by_client:?} {by_port:?}");
    }

    #[test]
    fn every_hash_has_a_place() {
        for len in [1, 2, 3, 1021, 16_381] {
            assert_eq!((place(0, len), place(u32::MAX, len)), (0, len - 1));
        }
    }

    #[test]
    fn where_one_backend_is_not_wanted_another_is_found() {
        let layout = [0, 0, 1, 0];
        let but = |unwanted: u32| move |place: u32| Some(layout[place as usize]).filter(|id| *id != unwanted);
        for number in 0..1000_u32 {
            let hash = number.wrapping_mul(0x0123_4567);
            assert_eq!((pick(hash, 4, but(0)), pick(hash, 4, but(1))), (Some(1), Some(0)));
            assert_eq!(pick(hash, 4, but(2)), Some(layout[place(hash, 4) as usize]), "otherwise the first counts");
        }
        assert_eq!(pick(0, 4, |_| None), None);
    }
}
