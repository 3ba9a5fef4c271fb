//! What chance and clumps bring proves nothing, and what lasts does.

use proptest::prelude::*;

use super::*;

const LOOK: f64 = 0.014;

/// Chance, so that a run can be repeated.
///
/// # Source
/// SplitMix64, Steele et al. 2014.
struct Chance(u64);

impl Chance {
    /// Returns a number above 0, at most 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((mixed ^ (mixed >> 31)) >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

/// Clients that come independently of each other, and are looked at every 14 ms.
struct Stream {
    chance: Chance,
    looks: Looks,
    /// In seconds.
    now: f64,
    next: f64,
}

impl Stream {
    fn new(seed: u64) -> Self {
        Self { chance: Chance(seed), looks: Looks::default(), now: 0.0, next: 0.0 }
    }

    /// Lets so many come a second until the next look, and so many at once; returns what the look shows.
    fn look(&mut self, rate: f64, at_once: f64, limit: f64) -> Option<Surge> {
        self.now += LOOK;
        let mut came = at_once;
        while self.next < self.now {
            came += 1.0;
            self.next -= self.chance.share().ln() / rate;
        }
        // What was drawn at another rate is drawn again: such clients have no memory.
        self.next = self.now - self.chance.share().ln() / rate;
        self.looks.push(came, Timestamp::new(Duration::from_secs_f64(self.now)));
        self.looks.surge(limit)
    }
}

#[test]
fn chance_trips_nothing_in_thousands_of_seconds() {
    let looks = |seconds: f64| (seconds / LOOK) as u64;
    for (seed, rate, seconds) in
        [(1, 5.0, 2000.0), (2, 70.0, 1000.0), (3, 350.0, 600.0), (4, 1_000.0, 400.0), (5, 5_000.0, 200.0)]
    {
        // As much as is to be carried, and as much as the limit itself.
        for demand in [rate, BURST * rate] {
            let mut stream = Stream::new(seed);
            for look in 0..looks(seconds) {
                let surge = stream.look(demand, 0.0, BURST * rate);
                assert_eq!(surge, None, "{demand} a second, look {look}");
            }
        }
    }
}

#[test]
fn what_comes_at_one_moment_trips_nothing() {
    for (seed, rate) in [(1, 500.0), (2, 1_000.0), (3, 3_000.0)] {
        let mut stream = Stream::new(seed);
        for look in 0..20_000_u32 {
            let pool = if look % 67 == 0 { f64::from(100 + look % 200) } else { 0.0 };
            let surge = stream.look(rate, pool, BURST * rate);
            assert_eq!(surge, None, "{rate} a second, look {look}");
        }
    }
}

/// Returns for how long, in seconds, there has to be three times the demand until it is proved.
fn time_to_trip(rate: f64, seed: u64, begun: f64) -> f64 {
    let mut stream = Stream::new(seed);
    for _ in 0..200 {
        assert_eq!(stream.look(rate, 0.0, BURST * rate), None);
    }
    // It begins at some moment between two looks.
    let first = rate + 2.0 * rate * (1.0 - begun);
    let mut time = LOOK * (1.0 - begun);
    let mut surge = stream.look(first, 0.0, BURST * rate);
    while surge.is_none() {
        surge = stream.look(3.0 * rate, 0.0, BURST * rate);
        time += LOOK;
        assert!(time < 2.0, "{rate} a second, seed {seed}: it is not seen");
    }
    time
}

#[test]
fn three_times_the_demand_trips_within_50_ms_of_counts() {
    for begun in [0.0, 0.3, 0.6, 0.99] {
        let mut times: Vec<f64> = (0..100).map(|seed| time_to_trip(3_000.0, seed, begun)).collect();
        times.sort_by(f64::total_cmp);
        assert!(times[90] <= 0.05 && times[99] <= 0.08, "{begun}: {times:?}");
    }
    // Where fewer come it takes longer to count a hundred, and never longer than a tick.
    for (rate, most) in [(700.0, 0.2), (300.0, 0.4), (100.0, 1.0)] {
        let times: Vec<f64> = (0..50).map(|seed| time_to_trip(rate, seed, 0.5)).collect();
        let worst = times.iter().copied().fold(0.0, f64::max);
        assert!(worst <= most, "{rate} a second: {worst}");
    }
}

#[test]
fn looks_that_are_late_are_counted_by_the_time_that_they_took() {
    let mut looks = Looks::default();
    let mut at = 0;
    for (pause, came) in [(0, 0.0), (15, 45.0), (300, 900.0), (15, 45.0)] {
        at += pause;
        looks.push(came, Timestamp::from_millis(at));
    }

    let surge = looks.surge(1_000.0).unwrap();
    assert_eq!((surge.connections, surge.within), (990.0, Duration::from_millis(330)));
    assert!((surge.rate() - 3_000.0).abs() < 1e-6 && !looks.are_empty());
    assert_eq!(looks.surge(3_000.0), None);

    looks.push(45.0, Timestamp::from_millis(at + 5_000));
    assert_eq!((looks.surge(1.0), looks.looks.len()), (None, 1), "nobody has looked meanwhile");
    looks.forget();
    assert!(looks.are_empty());
}

proptest! {
    #[test]
    fn a_handful_proves_nothing_whatever_the_limit(
        came in proptest::collection::vec((1..40_u64, 0..3_u32), 1..48),
        limit in 0.0..2_000.0_f64,
    ) {
        let mut looks = Looks::default();
        let mut at = 0;
        for (pause, came) in came {
            at += pause;
            looks.push(f64::from(came), Timestamp::from_millis(at));
        }
        prop_assert_eq!(looks.surge(limit), None);
    }

    #[test]
    fn what_is_proved_was_counted_and_is_beyond_the_limit(
        came in proptest::collection::vec((1..40_u64, 0..400_u32), 1..60),
        limit in 0.0..20_000.0_f64,
    ) {
        let mut looks = Looks::default();
        let mut at = 0;
        for (pause, came) in &came {
            at += pause;
            looks.push(f64::from(*came), Timestamp::from_millis(at));
            if let Some(surge) = looks.surge(limit) {
                prop_assert!(surge.connections >= ENOUGH && surge.rate() > limit && surge.within <= REACH);
            }
        }
    }
}
