//! Numbers and times as people read them: three digits and a unit.

use std::{fmt::Display, time::Duration};

/// Returns a count: `0`, `999`, `1.2k`, `12k`, `123k`, `1.2M`.
pub fn count(number: u64) -> String {
    scaled(number, 1000, &["", "k", "M", "G", "T", "P", "E"], "")
}

/// Returns a number of bytes in binary multiples: `0 B`, `999 B`, `1.2 KiB`, `12 KiB`, `1.2 GiB`.
pub fn bytes(number: u64) -> String {
    scaled(number, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], " ")
}

/// Returns a share of a hundred: `0 %`, `0.4 %`, `37 %`.
pub fn percent(number: f64) -> String {
    if number > 0.0 && number < 9.95 { format!("{number:.1} %") } else { format!("{number:.0} %") }
}

/// Returns a latency that was not exceeded, given in microseconds as a power of two: `≤ 64 µs`, `≤ 2 ms`, `≤ 1 s`.
pub fn at_most(us: u64) -> String {
    match us {
        0..1_000 => format!("≤ {us} µs"),
        1_000..1_000_000 => format!("≤ {} ms", us / 1_000),
        1_000_000.. => format!("≤ {} s", us / 1_000_000),
    }
}

/// Returns a span of time given in milliseconds, in its two largest units: `0 s`, `12 s`, `3 min`, `2 h 14 min`,
/// `5 d 3 h`.
pub fn age(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {small_unit}"),
    };
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => two(hours, "h", minutes % 60, "min"),
        (_, _, _) => two(days, "d", hours % 24, "h"),
    }
}

/// Joins items with commas.
pub fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Replaces what would move the cursor or colour the screen: names and errors come from elsewhere.
pub fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

fn scaled(number: u64, base: u64, units: &[&str], space: &str) -> String {
    let (mut unit, mut divisor) = (0, 1_u64);
    while number / divisor >= base && unit + 1 < units.len() {
        (unit, divisor) = (unit + 1, divisor * base);
    }
    let tenths = (u128::from(number) * 10 + u128::from(divisor) / 2) / u128::from(divisor);
    let whole = (u128::from(number) + u128::from(divisor) / 2) / u128::from(divisor);
    match unit {
        0 => format!("{number}{space}{}", units[0]),
        _ if tenths < 100 => format!("{}.{}{space}{}", tenths / 10, tenths % 10, units[unit]),
        _ => format!("{whole}{space}{}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::prop_assert, proptest};

    use super::*;

    #[test]
    fn counts_have_three_digits() {
        let rows = [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (1250, "1.3k"),
            (9949, "9.9k"),
            (9950, "10k"),
            (12_345, "12k"),
            (999_499, "999k"),
            (1_048_576, "1.0M"),
            (u64::MAX, "18E"),
        ];
        for (number, text) in rows {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn bytes_are_binary() {
        let rows = [
            (0, "0 B"),
            (999, "999 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (25_794_970, "25 MiB"),
            (1_503_238_553, "1.4 GiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (number, text) in rows {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn small_shares_keep_a_digit() {
        let rows = [(0.0, "0 %"), (0.44, "0.4 %"), (9.94, "9.9 %"), (9.96, "10 %"), (37.2, "37 %"), (100.0, "100 %")];
        for (number, text) in rows {
            assert_eq!(percent(number), text);
        }
    }

    #[test]
    fn ages_have_two_units() {
        let rows = [
            (0, "0 s"),
            (999, "0 s"),
            (12_700, "12 s"),
            (60_000, "1 min"),
            (3_600_000, "1 h"),
            (8_070_000, "2 h 14 min"),
            (86_400_000, "1 d"),
            (443_000_000, "5 d 3 h"),
        ];
        for (ms, text) in rows {
            assert_eq!(age(ms), text);
        }
    }

    #[test]
    fn texts_from_elsewhere_do_not_reach_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\nc"), "a\u{fffd}[31mb\u{fffd}c");
    }

    proptest! {
        #[test]
        fn any_number_is_short(number: u64) {
            prop_assert!(count(number).len() <= 5, "{}", count(number));
            prop_assert!(bytes(number).len() <= 8, "{}", bytes(number));
            prop_assert!(age(number).len() <= 20, "{}", age(number));
        }
    }
}
