//! What a frontend's slots hold: which backends, how often, in which order. Pure, so that two machines that are told the
//! same lay out the same.
//!
//! - Round robin: each backend once. By weight: as often as its weight says, in nginx's smooth order.
//! - Least connections: each once, with its weight beside it. Of two: as often as its weight says, with its weight beside it.
//! - By hash: a Maglev table, in which every backend keeps nearly all of its places when another comes or goes.

use std::net::SocketAddr;

use lb_ebpf::abi::{BackendId, MAX_BACKENDS, MAX_SLOTS, Scheduler, Slot};

/// Returns how many places a frontend's layout may have, where there are so many frontends. By hash it has exactly so many,
/// whatever backends there are: with another size all clients would move. Primes, as the tables of Maglev need them.
pub const fn room(frontends: usize) -> u32 {
    match frontends {
        0..=4 => 16_381,
        5..=16 => 4_093,
        _ => 1_021,
    }
}

/// A live and a spare range of each frontend with its roll, and as much again for the gaps between ranges of different
/// lengths.
const _: () = {
    const fn is_room(frontends: u32) -> bool {
        4 * (frontends * room(frontends as usize) + MAX_BACKENDS) <= MAX_SLOTS
    }
    assert!(is_room(4) && is_room(16) && is_room(64));
};

/// Returns how many places a frontend's layout has whatever backends there are; nothing where they decide.
pub const fn fixed(scheduler: Scheduler, frontends: usize) -> Option<u32> {
    match scheduler {
        Scheduler::SourceHash | Scheduler::Maglev => Some(room(frontends)),
        Scheduler::RoundRobin | Scheduler::Weighted | Scheduler::LeastConn | Scheduler::RandomTwo => None,
    }
}

/// A backend of a frontend, and how much of its connections it is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its number here.
    pub backend: BackendId,
    /// What it is known by everywhere.
    pub endpoint: SocketAddr,
    /// Its weight beside the others'.
    pub weight: u32,
}

/// Returns how many places a layout by weight takes: the sum of the weights in lowest terms.
pub fn places(weights: &[u32]) -> u64 {
    let divisor = weights.iter().fold(0, |divisor, &weight| gcd(divisor, weight)).max(1);
    weights.iter().map(|&weight| u64::from(weight / divisor)).sum()
}

/// Lays out the slots of a frontend, at most `room` of them; by hash exactly so many.
pub fn lay_out(scheduler: Scheduler, shares: &[Share], room: u32) -> Vec<Slot> {
    let weights = lowest(shares);
    let slot = |place: usize| Slot { backend: shares[place].backend, weight: weights[place] };
    let order = match scheduler {
        Scheduler::RoundRobin | Scheduler::Weighted | Scheduler::RandomTwo => smooth(&fitted(&weights, room)),
        Scheduler::LeastConn => (0..shares.len()).collect(),
        Scheduler::SourceHash | Scheduler::Maglev => scattered(shares, &weights, room),
    };
    order.into_iter().map(slot).collect()
}

/// Returns what follows a layout: each backend once, unless the layout is that already. There one is looked for that may have
/// one more connection, when it is not whose turn it is.
pub fn roll(layout: &[Slot], shares: &[Share]) -> Vec<Slot> {
    if layout.len() <= shares.len() {
        return Vec::new();
    }
    let slot = |(share, weight): (&Share, u32)| Slot { backend: share.backend, weight };
    shares.iter().zip(lowest(shares)).map(slot).collect()
}

/// Returns the weights in lowest terms; there is none of zero.
fn lowest(shares: &[Share]) -> Vec<u32> {
    let weights: Vec<u32> = shares.iter().map(|share| share.weight.max(1)).collect();
    let divisor = weights.iter().fold(0, |divisor, &weight| gcd(divisor, weight)).max(1);
    weights.into_iter().map(|weight| weight / divisor).collect()
}

fn gcd(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// Makes weights whose sum is too great smaller, nearly in proportion, none of them zero.
fn fitted(weights: &[u32], room: u32) -> Vec<u32> {
    let sum: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
    if sum <= u64::from(room) {
        return weights.to_vec();
    }
    // Those that are rounded up to one have a place each left for them.
    let scale = u64::from(room).saturating_sub(weights.len() as u64);
    weights.iter().map(|&weight| (u64::from(weight) * scale / sum).max(1) as u32).collect()
}

/// Returns each number as often as its weight says, as evenly as can be: 5, 1, 1 gives `a a b a c a a`.
///
/// # Source
/// nginx, commit 52327e0627f4.
fn smooth(weights: &[u32]) -> Vec<usize> {
    let sum: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
    if sum == weights.len() as i64 {
        return (0..weights.len()).collect();
    }
    let mut owed = vec![0_i64; weights.len()];
    let mut order = Vec::with_capacity(sum as usize);
    for _ in 0..sum {
        let mut next = 0;
        for (number, &weight) in weights.iter().enumerate() {
            owed[number] += i64::from(weight);
            if owed[number] > owed[next] {
                next = number;
            }
        }
        owed[next] -= sum;
        order.push(next);
    }
    order
}

/// Fills a table: the backends take turns, each takes the first free place in an order of its own; by weight, a lighter one
/// sits out turns. A backend's order and turn depend on nothing but its endpoint.
///
/// # Source
/// Eisenbud et al., Maglev, NSDI 2016, 3.4. Weights as in Envoy, `maglev_lb.cc`.
fn scattered(shares: &[Share], weights: &[u32], size: u32) -> Vec<usize> {
    const FREE: usize = usize::MAX;
    let size = size as usize;
    let heaviest = weights.iter().copied().max().map(u64::from).unwrap_or_default();
    let mut takers: Vec<Taker> = (0..shares.len()).map(|number| Taker::new(number, &shares[number], size)).collect();
    takers.sort_by_key(|taker| (shares[taker.number].endpoint, taker.number));
    if takers.is_empty() {
        return Vec::new();
    }
    let mut table = vec![FREE; size];
    let mut taken = 0;
    for turn in 1_u64.. {
        for taker in &mut takers {
            if turn * u64::from(weights[taker.number]) < taker.due {
                continue;
            }
            taker.due += heaviest;
            while table[taker.place] != FREE {
                taker.step(size);
            }
            table[taker.place] = taker.number;
            taken += 1;
            if taken == size {
                return table;
            }
        }
    }
    table
}

/// A backend that takes places in a table.
struct Taker {
    number: usize,
    place: usize,
    stride: usize,
    /// How much weight its turns have to sum up to before its next.
    due: u64,
}

impl Taker {
    fn new(number: usize, share: &Share, size: usize) -> Self {
        let name = share.endpoint.to_string();
        let (start, stride) = (hash(&name, 0), hash(&name, 1));
        let place = (start % size as u64) as usize;
        Self { number, place, stride: (stride % (size as u64 - 1)) as usize + 1, due: 0 }
    }

    /// Goes on to its next place. The size is a prime, so that all of them are visited.
    fn step(&mut self, size: usize) {
        self.place = (self.place + self.stride) % size;
    }
}

/// Returns a number by a name, the same in every version and on every machine.
///
/// # Source
/// FNV-1a, draft-eastlake-fnv; mixed by SplitMix64, Steele et al. 2014.
fn hash(name: &str, which: u64) -> u64 {
    let named = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = named.wrapping_add((which + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        net::{IpAddr, Ipv4Addr},
    };

    use proptest::{prelude::*, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const HASHED: [Scheduler; 2] = [Scheduler::SourceHash, Scheduler::Maglev];

    /// Backends with these weights; the first is number 10.
    fn shares(weights: &[u32]) -> Vec<Share> {
        let share = |(number, &weight): (u32, &u32)| Share {
            backend: 10 + number,
            endpoint: SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0xc612_020b + number)), 5000),
            weight,
        };
        (0..).zip(weights).map(share).collect()
    }

    fn order(slots: &[Slot]) -> Vec<u32> {
        slots.iter().map(|slot| slot.backend).collect()
    }

    fn counts(slots: &[Slot]) -> BTreeMap<u32, usize> {
        slots.iter().fold(BTreeMap::new(), |mut counts, slot| {
            *counts.entry(slot.backend).or_default() += 1;
            counts
        })
    }

    /// Returns which part of the places has another backend than before.
    fn moved(before: &[Slot], after: &[Slot]) -> f64 {
        assert_eq!(before.len(), after.len());
        let moved = before.iter().zip(after).filter(|(one, other)| one.backend != other.backend).count();
        moved as f64 / before.len() as f64
    }

    #[test]
    fn round_robin_has_each_backend_once_in_the_order_given() {
        let slots = lay_out(Scheduler::RoundRobin, &shares(&[1, 1, 1]), 1_021);

        assert_eq!(order(&slots), [10, 11, 12]);
        assert_eq!(lay_out(Scheduler::RoundRobin, &[], 1_021), []);
    }

    #[test]
    fn a_backend_with_a_reduced_share_is_as_much_less_often_there() {
        let slots = lay_out(Scheduler::RoundRobin, &shares(&[10, 10, 2]), 1_021);

        assert_eq!(counts(&slots), [(10, 5), (11, 5), (12, 1)].into());
    }

    #[test]
    fn the_smooth_order_is_that_of_nginx() {
        let slots = lay_out(Scheduler::Weighted, &shares(&[5, 1, 1]), 1_021);
        assert_eq!(order(&slots), [10, 10, 11, 10, 12, 10, 10]);

        let slots = lay_out(Scheduler::Weighted, &shares(&[100, 200, 300]), 1_021);
        assert_eq!(order(&slots), [12, 11, 10, 12, 11, 12], "in lowest terms");
    }

    #[test]
    fn schedulers_that_compare_are_told_the_weights() {
        let slots = lay_out(Scheduler::LeastConn, &shares(&[2, 4, 6]), 1_021);
        let slot = |backend, weight| Slot { backend, weight };
        assert_eq!(slots, [slot(10, 1), slot(11, 2), slot(12, 3)]);

        let slots = lay_out(Scheduler::RandomTwo, &shares(&[1, 3]), 1_021);
        assert_eq!(counts(&slots), [(10, 1), (11, 3)].into());
        assert!(slots.iter().all(|slot| slot.weight == if slot.backend == 10 { 1 } else { 3 }));
    }

    #[test]
    fn weights_that_do_not_fit_are_rounded_and_nobody_is_left_out() {
        let mut weights = vec![256; 1_000];
        weights[7] = 1;

        let slots = lay_out(Scheduler::Weighted, &shares(&weights), 16_381);

        let counts = counts(&slots);
        assert!(slots.len() <= 16_381 && counts.len() == 1_000);
        assert_eq!((counts[&17], counts[&18]), (1, 15));
    }

    #[test]
    fn room_shrinks_with_the_number_of_frontends_alone() {
        assert_eq!([1, 4, 5, 16, 17, 64].map(room), [16_381, 16_381, 4_093, 4_093, 1_021, 1_021]);
        for size in [1, 5, 17].map(room) {
            assert!(
                (2..size).take_while(|part| part * part <= size).all(|part| size % part != 0),
                "{size} is no prime"
            );
        }
    }

    #[test]
    fn a_table_is_the_same_in_every_version_and_in_whatever_order_backends_are_told() {
        let mut told = shares(&[1, 2, 1]);
        let table = lay_out(Scheduler::Maglev, &told, 1_021);
        told.reverse();

        assert_eq!(order(&lay_out(Scheduler::Maglev, &told, 1_021)), order(&table));
        assert_eq!(order(&table)[..12], FIRST_PLACES);
    }

    const FIRST_PLACES: [u32; 12] = [11, 11, 11, 10, 11, 12, 11, 12, 11, 11, 11, 12];

    #[test]
    fn equal_backends_have_nearly_equal_parts_of_a_table() {
        for (backends, size) in [(2, 1_021), (3, 1_021), (10, 4_093), (100, 16_381), (1_000, 16_381)] {
            let table = lay_out(Scheduler::SourceHash, &shares(&vec![1; backends]), size);

            let counts = counts(&table);
            let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
            assert_eq!((table.len(), counts.len()), (size as usize, backends));
            assert!(most - least <= 1, "{backends} backends: {least} to {most}");
        }
    }

    /// What a change moves beyond the least possible, of all places of a table of each size.
    const BEYOND: [(u32, f64); 3] = [(16_381, 0.02), (4_093, 0.04), (1_021, 0.06)];

    #[test]
    fn a_change_of_one_backend_moves_little_more_than_its_share() {
        for (size, beyond) in BEYOND {
            let mut worst = 0.0_f64;
            for backends in [2_usize, 3, 5, 10, 20, 30, 50, 100] {
                let all = shares(&vec![1; backends]);
                let before = lay_out(Scheduler::Maglev, &all, size);
                for gone in 0..backends {
                    let mut left = all.clone();
                    left.remove(gone);
                    let after = lay_out(Scheduler::Maglev, &left, size);
                    let excess = moved(&before, &after) - 1.0 / backends as f64;
                    assert!(excess <= beyond, "{gone} of {backends} in {size}: {excess}");
                    worst = worst.max(excess);
                }
                println!("{size} places, {backends} backends and fewer: {worst:.4}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn weights_are_exact_over_a_cycle_and_the_order_is_smooth(weights in proptest::collection::vec(1_u32..=20, 1..12)) {
            let slots = lay_out(Scheduler::Weighted, &shares(&weights), 16_381);
            let divisor = weights.iter().fold(0, |divisor, &weight| gcd(divisor, weight));
            let sum: u32 = weights.iter().map(|weight| weight / divisor).sum();
            let counts = counts(&slots);

            prop_assert_eq!(slots.len(), sum as usize);
            prop_assert_eq!(places(&weights), u64::from(sum));
            for (number, weight) in weights.iter().enumerate() {
                let backend = 10 + number as u32;
                prop_assert_eq!(counts[&backend], (weight / divisor) as usize);
                // At no moment of the cycle is it a whole turn of everybody away from what is its due.
                let share = f64::from(weight / divisor) / f64::from(sum);
                let mut got = 0.0;
                for (turn, slot) in slots.iter().enumerate() {
                    got += f64::from(u8::from(slot.backend == backend));
                    let due = share * (turn + 1) as f64;
                    prop_assert!((got - due).abs() <= weights.len() as f64, "{:?}", order(&slots));
                }
            }
        }

        #[test]
        fn parts_of_a_table_follow_the_weights(weights in proptest::collection::vec(1_u32..=50, 1..20)) {
            for scheduler in HASHED {
                let table = lay_out(scheduler, &shares(&weights), 4_093);
                let sum: u32 = weights.iter().sum();
                let counts = counts(&table);
                for (number, &weight) in weights.iter().enumerate() {
                    let due = 4_093.0 * f64::from(weight) / f64::from(sum);
                    let got = counts[&(10 + number as u32)] as f64;
                    prop_assert!((got - due).abs() <= 2.0 + due * 0.02, "{weights:?}: {got} of {due}");
                }
            }
        }

        #[test]
        fn whoever_stays_keeps_its_places(weights in proptest::collection::vec(1_u32..=4, 2..40), which in any::<prop::sample::Index>()) {
            let all = shares(&weights);
            let gone = which.index(all.len());
            let mut left = all.clone();
            left.remove(gone);
            let share = f64::from(weights[gone]) / f64::from(weights.iter().sum::<u32>());

            let moved = moved(&lay_out(Scheduler::Maglev, &all, 16_381), &lay_out(Scheduler::Maglev, &left, 16_381));

            prop_assert!(moved <= share + 0.1, "{weights:?} without {gone}: {moved} for {share}");
        }

        #[test]
        fn no_layout_is_too_long_and_nobody_is_left_out(
            weights in proptest::collection::vec(1_u32..=2_560, 0..100),
            number in 0_u8..6,
        ) {
            let slots = lay_out(Scheduler::from_number(number), &shares(&weights), 1_021);

            let roll = roll(&slots, &shares(&weights));

            prop_assert!(slots.len() <= 1_021);
            prop_assert_eq!(counts(&slots).len(), weights.len());
            let each = if roll.is_empty() { &slots } else { &roll };
            prop_assert_eq!(counts(each).len(), weights.len());
            prop_assert_eq!(each.len(), weights.len(), "each once");
        }
    }
}
