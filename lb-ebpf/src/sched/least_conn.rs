//! The fewest connections under way, by weight: of all backends, or of [`LOOKS`] in a row where there are more. Where the
//! row begins is a matter of the ticket, so that backends that are equally busy take turns.

use super::{BackendId, Candidate, NOBODY, round_robin};

/// How many slots are looked at for one connection: few enough for the verifier, which follows each look, and enough that
/// no busy one of them is chosen.
const LOOKS: u32 = 16;

#[inline(always)]
pub(super) fn pick(ticket: u64, len: u32, candidate: impl Fn(u32) -> Option<Candidate>) -> Option<BackendId> {
    let mut best = Candidate::NONE;
    for look in 0..LOOKS {
        if look >= len {
            break;
        }
        // By a division each time: of a place that is counted up and begins anew at the end, the verifier would follow
        // every place at which it may have begun anew.
        if let Some(other) = candidate(round_robin::place(ticket.wrapping_add(u64::from(look)), len))
            && other.is_less_busy(&best)
        {
            best = other;
        }
    }
    if best.id == NOBODY { None } else { Some(best.id) }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{vec, vec::Vec};

    use super::{Candidate, LOOKS, pick};

    /// Chooses among backends with these weights and connections, by number.
    fn choose(ticket: u64, backends: &[(u32, u64)]) -> Option<u32> {
        pick(ticket, backends.len() as u32, |place| {
            let (weight, active) = backends[place as usize];
            Some(Candidate::new(place, weight, active))
        })
    }

    #[test]
    fn the_one_with_the_fewest_connections_for_its_weight_is_chosen() {
        for ticket in 0..4 {
            assert_eq!(choose(ticket, &[(1, 3), (1, 2), (1, 4)]), Some(1), "the fewest");
            assert_eq!(choose(ticket, &[(1, 3), (4, 6), (1, 2)]), Some(1), "six of four are fewer than two of one");
            assert_eq!(choose(ticket, &[(1, 0), (3, 0)]), Some(1), "the first of three is less than the first of one");
            assert_eq!(choose(ticket, &[(1, u64::MAX), (256, u64::MAX)]), Some(1), "nothing overflows");
            assert_eq!(choose(ticket, &[(0, 0), (1, 1_000_000)]), Some(1), "without a weight it gets nothing");
        }
    }

    #[test]
    fn equals_take_turns() {
        let chosen: Vec<_> = (0..6).map(|ticket| choose(ticket, &[(1, 5), (1, 5), (1, 5)])).collect();

        assert_eq!(chosen, [0, 1, 2, 0, 1, 2].map(Some));
    }

    #[test]
    fn connections_that_last_spread_by_weight() {
        let mut backends = vec![(1, 0), (2, 0), (5, 0)];
        for ticket in 0..800 {
            let chosen = choose(ticket, &backends).unwrap();
            backends[chosen as usize].1 += 1;
        }

        assert_eq!(backends, [(1, 100), (2, 200), (5, 500)]);
    }

    #[test]
    fn no_more_than_so_many_are_looked_at_and_in_the_end_all() {
        let many = vec![(1, 1); 1000];
        let mut seen = vec![false; many.len()];
        for ticket in 0..1000 {
            let mut looks = 0;
            let looked = core::cell::RefCell::new(&mut looks);
            let seen = core::cell::RefCell::new(&mut seen);
            pick(ticket, 1000, |place| {
                **looked.borrow_mut() += 1;
                seen.borrow_mut()[place as usize] = true;
                Some(Candidate::new(place, 1, 1))
            });
            assert_eq!(looks, LOOKS);
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn nobody_is_chosen_where_nobody_is() {
        assert_eq!(pick(3, 8, |_| None), None);
    }
}
