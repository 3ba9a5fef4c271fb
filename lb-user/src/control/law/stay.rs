//! How long connections stay where none has to wait, and so how many of those that are there do.

/// A mean takes one part in so many of each value.
const WEIGHT: f64 = 1.0 / 32.0;
/// Connections that stay longer, in seconds, are there for other reasons than to be served.
const SHORT: f64 = 10.0;
/// So many times what is usual is still no queue.
const USUAL: f64 = 1.5;

/// What is usual, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stay {
    usual: Option<f64>,
}

impl Stay {
    /// Returns how many connections wait, of `active` ones of which `rate` come in a second. Only backends that are
    /// saturated let them wait; others show what is usual (Little's law).
    pub fn waiting(&mut self, rate: f64, active: f64, is_saturated: bool) -> f64 {
        match (self.usual, is_saturated) {
            (Some(usual), true) if usual <= SHORT => (active - rate * usual * USUAL).max(0.0),
            (Some(_) | None, true) => 0.0,
            (usual, false) => {
                if rate >= 1.0 {
                    let stay = active / rate;
                    self.usual = Some(usual.map_or(stay, |usual| usual + WEIGHT * (stay - usual)));
                }
                0.0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_usual_waits_in_saturation_alone() {
        let mut stay = Stay::default();
        assert_eq!(stay.waiting(100.0, 500.0, true), 0.0, "nothing is known");

        for _ in 0..10 {
            assert_eq!(stay.waiting(100.0, 10.0, false), 0.0);
        }
        assert!((stay.waiting(100.0, 500.0, true) - 485.0).abs() < 1e-9);
        assert_eq!(stay.waiting(100.0, 12.0, true), 0.0);
    }

    #[test]
    fn connections_that_last_do_not_wait() {
        let mut stay = Stay::default();
        stay.waiting(10.0, 10_000.0, false);

        assert_eq!(stay.waiting(10.0, 20_000.0, true), 0.0);
    }
}
