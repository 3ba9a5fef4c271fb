//! The less busy of two that are drawn: nearly as good as to look at all of them, at the cost of two looks.
//!
//! The layout has backends as often as their weights say, and their weights are compared, too.
//!
//! # Source
//! Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001.

use super::{BackendId, Candidate, hashed};

/// Draws two different places of `len`, if there are two.
#[inline(always)]
const fn places((one, other): (u32, u32), len: u32) -> (u32, u32) {
    let first = hashed::place(one, len);
    if len < 2 {
        return (first, first);
    }
    let second = hashed::place(other, len - 1);
    (first, if second < first { second } else { second + 1 })
}

#[inline(always)]
pub(super) fn pick(random: (u32, u32), len: u32, candidate: impl Fn(u32) -> Option<Candidate>) -> Option<BackendId> {
    let (first, second) = places(random, len);
    match (candidate(first), candidate(second)) {
        (Some(one), Some(other)) => Some(if other.is_less_busy(&one) { other.id } else { one.id }),
        (Some(only), None) | (None, Some(only)) => Some(only.id),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeSet, vec};

    use super::{Candidate, pick, places};

    /// Numbers without a pattern.
    fn dice(seed: u32) -> impl FnMut() -> u32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            super::super::hashed::mixed(state)
        }
    }

    #[test]
    fn every_pair_of_different_places_is_drawn_alike() {
        let mut roll = dice(7);
        let mut drawn = [0_u32; 25];
        for _ in 0..50_000 {
            let (one, other) = places((roll(), roll()), 5);
            drawn[(one * 5 + other) as usize] += 1;
        }
        for (pair, &times) in drawn.iter().enumerate() {
            let expected = if pair % 6 == 0 { 0 } else { 2_500 };
            assert!(times.abs_diff(expected) < 250, "{pair}: {times}");
        }
        assert_eq!(places((roll(), roll()), 1), (0, 0));
    }

    #[test]
    fn the_less_busy_of_the_two_is_chosen() {
        let load = [9, 1, 5];
        let mut roll = dice(3);
        let mut chosen = BTreeSet::new();
        for _ in 0..1000 {
            let random = (roll(), roll());
            let (one, other) = places(random, 3);
            let pick = pick(random, 3, |place| Some(Candidate::new(place, 1, load[place as usize])));
            let better = if load[one as usize] < load[other as usize] { one } else { other };
            assert_eq!(pick, Some(better));
            chosen.extend(pick);
        }
        assert_eq!(chosen, [1, 2].into(), "the busiest loses every comparison");
    }

    #[test]
    fn nobody_is_far_ahead_of_the_others() {
        let mut active = vec![0_u64; 100];
        let mut roll = dice(1);
        for _ in 0..100_000 {
            let chosen = pick((roll(), roll()), 100, |place| Some(Candidate::new(place, 1, active[place as usize])));
            active[chosen.unwrap() as usize] += 1;
        }
        // By one draw alone it would be about 80 over the mean.
        assert!(active.iter().max().unwrap() - 1000 <= 5, "{:?}", active.iter().max());
    }
}
