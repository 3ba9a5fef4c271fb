//! The front door's guard: who may begin a connection, and how often. Connections that go on are not asked.

use crate::{
    abi::{Address, FrontendId, KtimeNs, RateKey},
    tables::{Shared, Tables},
};

/// Whether a client may begin a connection.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Granted,
    /// Its address is denied, or not among those that are allowed.
    Denied,
    /// Its network begins too many.
    TooMany,
}

/// Decides whether a client may begin a connection to a frontend. A function of its own in the object: its keys need room
/// on the stack, and nothing is called from it.
#[inline(never)]
pub fn admit<T: Tables>(client: &Address, frontend: FrontendId, now: KtimeNs, tables: &T) -> Admission {
    let Some(guard) = tables.guard(frontend) else { return Admission::Granted };
    if guard.asks_for_sources() {
        let admits = match tables.source(frontend, client) {
            Some(admits) => admits,
            None => guard.admits_others(),
        };
        if !admits {
            return Admission::Denied;
        }
    }
    if let Some(limit) = guard.limit() {
        let key = RateKey::new(frontend, client.network(limit.v4_mask));
        let bucket = tables.bucket(&key);
        let full_at = bucket.map_or(0, Shared::get);
        let Some(full_at) = spend(full_at, limit.interval_ns, limit.burst, now) else { return Admission::TooMany };
        match bucket {
            // Should it be another network's by now, that one may begin one less.
            Some(bucket) => bucket.set(full_at),
            None => tables.add_bucket(&key, full_at),
        }
    }
    Admission::Granted
}

/// Takes one from a bucket that holds `burst` and regains one every `interval_ns`, and of which is known when it will be
/// full. Returns when it will be full then; `None` if it is empty. A bucket that nobody knows is full.
///
/// Two processors that take from the same bucket at once may both take the same one: a few more than allowed get in.
///
/// # Source
/// The virtual scheduling algorithm (GCRA), ITU-T I.371, A.1.
#[inline(always)]
pub const fn spend(full_at: KtimeNs, interval_ns: u32, burst: u32, now: KtimeNs) -> Option<KtimeNs> {
    let missing = full_at.saturating_sub(now);
    let whole = interval_ns as u64 * burst as u64;
    if missing + interval_ns as u64 > whole { None } else { Some(now + missing + interval_ns as u64) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Asks at each of these times; returns how often it was granted.
    fn granted(times: impl IntoIterator<Item = u64>, interval_ns: u32, burst: u32) -> u64 {
        let (mut full_at, mut granted) = (0, 0);
        for now in times {
            if let Some(after) = spend(full_at, interval_ns, burst, now) {
                (full_at, granted) = (after, granted + 1);
            }
        }
        granted
    }

    #[test]
    fn a_burst_is_granted_at_once_and_then_one_for_each_interval() {
        let interval = (SECOND / 10) as u32;
        let at_once = core::iter::repeat_n(SECOND, 50);
        assert_eq!(granted(at_once, interval, 10), 10);

        let each_millisecond = (0..5_000).map(|ms| SECOND + ms * 1_000_000);
        assert_eq!(granted(each_millisecond, interval, 10), 10 + 49, "ten at once, then ten a second for five seconds");
    }

    #[test]
    fn who_keeps_to_the_rate_is_never_refused() {
        let each_tenth = (0..1000).map(|tenth| tenth * SECOND / 10);
        assert_eq!(granted(each_tenth, (SECOND / 10) as u32, 1), 1000);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_allow(
            gaps in proptest::collection::vec(0..300_000_000_u64, 1..300),
            interval_ns in 1_000_000..SECOND as u32,
            burst in 1..20_u32,
        ) {
            let times: Vec<u64> = gaps.iter().scan(SECOND, |now, gap| { *now += gap; Some(*now) }).collect();
            let span = times[times.len() - 1] - times[0];

            let granted = granted(times, interval_ns, burst);

            prop_assert!(granted <= u64::from(burst) + span / u64::from(interval_ns), "{granted} in {span} ns");
        }
    }
}
