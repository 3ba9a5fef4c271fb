//! The load of the host as one number that cannot be wrong.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How busy the host's processors are, all together.
///
/// # Units
/// A share: 0.0 is idle, 1.0 is every processor busy all the time. Never NaN.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct CpuLoad(f64);

impl CpuLoad {
    /// Returns the load of that share, drawn into 0.0..=1.0, or nothing where the number is not finite.
    pub fn new(share: f64) -> Option<Self> {
        // Adding zero turns -0.0, which `clamp` lets through, into 0.0.
        share.is_finite().then(|| CpuLoad(share.clamp(0.0, 1.0) + 0.0))
    }

    /// Returns the load of that many per cent; see [`CpuLoad::new`].
    pub fn from_percent(percent: f64) -> Option<Self> {
        Self::new(percent / 100.0)
    }

    /// Returns the load as a share, 0.0..=1.0.
    pub fn share(self) -> f64 {
        self.0
    }
}

impl fmt::Display for CpuLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} %", self.0 * 100.0)
    }
}

impl From<CpuLoad> for f64 {
    fn from(load: CpuLoad) -> f64 {
        load.0
    }
}

/// A number that is no load: infinite, or not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a load has to be a finite number")]
pub struct NotALoad;

impl TryFrom<f64> for CpuLoad {
    type Error = NotALoad;

    fn try_from(share: f64) -> Result<Self, NotALoad> {
        Self::new(share).ok_or(NotALoad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finite_numbers_are_loads_and_they_are_drawn_into_range() {
        let cases = [
            (f64::NAN, None),
            (f64::INFINITY, None),
            (f64::NEG_INFINITY, None),
            (-0.5, Some(0.0)),
            (0.0, Some(0.0)),
            (0.25, Some(0.25)),
            (1.0, Some(1.0)),
            (1.01, Some(1.0)),
            (f64::MAX, Some(1.0)),
        ];

        for (share, expected) in cases {
            assert_eq!(CpuLoad::new(share).map(CpuLoad::share), expected, "share {share}");
        }
        assert!(CpuLoad::new(-0.0).unwrap().share().is_sign_positive());
        assert_eq!(CpuLoad::from_percent(37.26).unwrap().to_string(), "37.3 %");
    }
}
