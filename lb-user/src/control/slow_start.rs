//! How much of its share a backend gets that has just become ready: a tenth at first, then a tenth more with every tenth of
//! the ramp; more, where those that were there would get too much.

use std::time::Duration;

use super::time::Timestamp;

/// The whole share of a backend, in tenths.
pub const WHOLE: u32 = 10;

/// Returns how many tenths a backend gets that became ready at `ready`.
pub(super) fn tenths(ready: Timestamp, ramp: Duration, now: Timestamp) -> u32 {
    let steps = (now.since(ready).as_nanos() * u128::from(WHOLE)).checked_div(ramp.as_nanos());
    steps.map_or(WHOLE, |steps| steps.clamp(1, u128::from(WHOLE)) as u32)
}

/// Returns tenths as a part of the whole; without any it is all.
pub(super) fn part(tenths: Option<u32>) -> f64 {
    f64::from(tenths.unwrap_or(WHOLE)) / f64::from(WHOLE)
}

/// How many times an equal share a backend may get because others are warming.
const MOST: u32 = 2;

/// Returns how many tenths each has to get at least, so that nobody gets more than [`MOST`] equal shares: after an outage of
/// all but one, that one would bear nearly everything until the others are warm.
pub(super) fn floor(tenths: &[u32]) -> u32 {
    let most = tenths.iter().copied().max().unwrap_or(WHOLE) as usize * tenths.len();
    let sum = |floor: u32| tenths.iter().map(|&tenths| tenths.max(floor) as usize).sum::<usize>();
    (1..WHOLE).find(|&floor| most <= MOST as usize * sum(floor)).unwrap_or(WHOLE)
}

/// Returns when it gets more; `None` if it has all.
pub(super) fn next(ready: Timestamp, ramp: Duration, now: Timestamp) -> Option<Timestamp> {
    let tenths = tenths(ready, ramp, now);
    (tenths < WHOLE).then(|| {
        let after = (ramp.as_nanos() * u128::from(tenths + 1)).div_ceil(u128::from(WHOLE));
        ready + Duration::from_nanos(u64::try_from(after).unwrap_or(u64::MAX))
    })
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn the_share_rises_by_tenths() {
        let (ready, ramp) = (Timestamp::from_millis(5_000), Duration::from_secs(10));
        let at = |millis: u64| tenths(ready, ramp, Timestamp::from_millis(millis));

        assert_eq!([0, 5_000, 6_999, 7_000, 8_500, 14_999, 15_000, 99_000].map(at), [1, 1, 1, 2, 3, 9, 10, 10]);
        assert_eq!(tenths(ready, Duration::ZERO, ready), WHOLE, "without a ramp there is no step");
    }

    #[test]
    fn the_one_that_was_there_does_not_bear_everything() {
        assert_eq!(floor(&[10, 1]), 1, "ten of eleven are less than two of two");
        assert_eq!(floor(&[10, 1, 1]), 3);
        assert_eq!(floor(&[10, 1, 1, 1, 1, 1, 1, 1, 1, 1]), 5);
        assert_eq!(floor(&[1, 1, 1]), 1, "all are equal");
        assert_eq!(floor(&[]), 1);
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_two_equal_shares(tenths in proptest::collection::vec(1_u32..=WHOLE, 1..200)) {
            let floor = floor(&tenths);
            let shares: Vec<u32> = tenths.iter().map(|&tenths| tenths.max(floor)).collect();

            let (most, sum) = (shares.iter().max().unwrap(), shares.iter().sum::<u32>());

            prop_assert!(most * shares.len() as u32 <= 2 * sum, "{shares:?}");
        }

        #[test]
        fn every_step_is_announced_and_the_last_ends_with_the_ramp(ramp in 1_u64..=u64::from(u32::MAX), ready in 0_u64..1 << 40) {
            let (ready, ramp) = (Timestamp::new(Duration::from_nanos(ready)), Duration::from_nanos(ramp));
            let mut now = ready;
            for step in 2..=WHOLE {
                let Some(at) = next(ready, ramp, now) else { break };
                prop_assert!(at > now || tenths(ready, ramp, now) >= step);
                now = at;
                prop_assert!(tenths(ready, ramp, now) >= step);
            }
            prop_assert_eq!(tenths(ready, ramp, now), WHOLE);
            prop_assert_eq!(next(ready, ramp, now), None);
            prop_assert!(now.since(ready) <= ramp);
        }
    }
}
