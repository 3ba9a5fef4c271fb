//! One backend in each family: a server may listen at one of its container's addresses alone, and one family's trouble is
//! not the other's.

use std::collections::BTreeMap;

use super::addresses::{Addresses, Family};
use super::passive::{Answers, Passive};
use super::settings::Settings;
use super::time::Timestamp;

/// How a backend answered a check, in each family of which it has a frontend's endpoint; if not, why.
pub type Heard = BTreeMap<Family, Result<(), String>>;

/// Why nobody was asked.
const NO_FRONTEND: &str = "no frontend has clients that could be led to it";

/// What is remembered of a backend, by family.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Families {
    sides: BTreeMap<Family, Side>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Side {
    /// Whether its clients are led there while the backend is ready.
    serves: bool,
    /// Whether it did before.
    has_served: bool,
    passes: u32,
    failures: u32,
    /// Why it fails, or was put aside.
    error: Option<String>,
    /// Whether that was told.
    is_told: bool,
    passive: Passive,
}

impl Side {
    fn fail(&mut self, error: String) {
        self.passes = 0;
        self.failures = self.failures.saturating_add(1);
        self.error = Some(error);
    }

    fn is_failing(&self, settings: &Settings, now: Timestamp) -> bool {
        self.failures >= settings.fall || self.passive.is_aside(now)
    }
}

/// What a check says of the whole backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Verdict {
    Passes,
    /// It passes where it is put aside for its clients' sake, and nowhere else.
    Aside,
}

/// What changes in a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    /// Its clients are led there again, or for the first time.
    Comes(Family),
    /// Its clients are not led there to begin with.
    Fails(Family, String),
    /// Its clients are led there no longer.
    Goes(Family, String),
    /// It fails, and there is no other backend for its clients.
    Stays(Family, String),
}

impl Families {
    /// Takes over that a backend serves at these addresses already.
    pub fn adopt(&mut self, addresses: Addresses) {
        for family in addresses.families() {
            self.sides.insert(family, Side { serves: true, has_served: true, ..Side::default() });
        }
    }

    /// Takes the outcome of a check. A ready backend is judged by the families that it serves.
    ///
    /// # Errors
    /// If no family of those passes, why.
    pub fn check(&mut self, heard: Heard, is_ready: bool, now: Timestamp) -> Result<Verdict, String> {
        // Until another one passes, what is served stays, even where it was not asked.
        let is_asked = self.sides.iter().any(|(family, side)| side.serves && heard.contains_key(family));
        self.sides.retain(|family, side| heard.contains_key(family) || (side.serves && !is_asked));
        for (_, side) in self.sides.iter_mut().filter(|(family, _)| !heard.contains_key(family)) {
            side.fail(NO_FRONTEND.to_owned());
        }
        for (family, outcome) in heard {
            let side = self.sides.entry(family).or_default();
            match outcome {
                Ok(()) => {
                    side.failures = 0;
                    side.passes = if side.passive.is_aside(now) { 0 } else { side.passes.saturating_add(1) };
                    if !side.passive.is_aside(now) {
                        side.error = None;
                    }
                }
                Err(error) => side.fail(error),
            }
        }
        let serves_any = is_ready && self.sides.values().any(|side| side.serves);
        let judged: Vec<&Side> = self.sides.values().filter(|side| side.serves || !serves_any).collect();
        if judged.iter().any(|side| side.passes > 0) {
            Ok(Verdict::Passes)
        } else if judged.is_empty() {
            Err(NO_FRONTEND.to_owned())
        } else if judged.iter().all(|side| side.failures == 0) {
            Ok(Verdict::Aside)
        } else {
            Err(judged.iter().filter_map(|side| side.error.as_deref()).collect::<Vec<_>>().join("; "))
        }
    }

    /// Takes note that a check of everything failed.
    pub fn fail(&mut self, error: &str) {
        for side in self.sides.values_mut() {
            side.fail(error.to_owned());
        }
    }

    /// Begins to serve the families that pass.
    pub fn begin(&mut self) {
        for side in self.sides.values_mut() {
            side.serves = side.passes > 0;
            (side.has_served, side.is_told) = (side.has_served || side.serves, false);
        }
    }

    /// Brings each family of a ready backend to where it belongs. The last one that is served stays, and so does one for
    /// which there is no other backend.
    pub fn shift(&mut self, is_last: impl Fn(Family) -> bool, settings: &Settings, now: Timestamp) -> Vec<Shift> {
        let mut shifts = Vec::new();
        for (&family, side) in self.sides.iter_mut().filter(|(_, side)| !side.serves) {
            let needed = if side.has_served { settings.rise_again } else { settings.rise };
            if side.passes >= needed && !side.passive.is_aside(now) {
                (side.serves, side.has_served, side.is_told, side.error) = (true, true, false, None);
                shifts.push(Shift::Comes(family));
            } else if let Some(error) = side.error.clone().filter(|_| !side.is_told) {
                side.is_told = true;
                shifts.push(Shift::Fails(family, error));
            }
        }
        let is_failing = |side: &Side| side.serves && side.is_failing(settings, now);
        let serves_well = self.sides.values().any(|side| side.serves && !is_failing(side));
        for (&family, side) in self.sides.iter_mut().filter(|(_, side)| serves_well && is_failing(side)) {
            let error = side.error.clone().unwrap_or_default();
            if !is_last(family) {
                (side.serves, side.is_told, side.passes) = (false, true, 0);
                shifts.push(Shift::Goes(family, error));
            } else if !std::mem::replace(&mut side.is_told, true) {
                shifts.push(Shift::Stays(family, error));
            }
        }
        for side in self.sides.values_mut().filter(|side| side.serves && !side.is_failing(settings, now)) {
            side.is_told = false;
        }
        shifts
    }

    /// Takes how new connections of a family were answered. Returns why the whole backend falls, if no other family that it
    /// serves does well.
    pub fn answered(&mut self, family: Family, answers: Answers, is_ready: bool, now: Timestamp) -> Option<String> {
        let side = self.sides.entry(family).or_default();
        if !is_ready || !side.serves {
            side.passive.skip(answers);
            return None;
        }
        let reason = side.passive.observe(answers, now)?;
        side.passes = 0;
        side.error = Some(reason.clone());
        let others = self.sides.iter().filter(|(other, _)| **other != family);
        let does_well = |side: &Side| side.serves && side.failures == 0 && !side.passive.is_aside(now);
        let is_served = others.into_iter().any(|(_, side)| does_well(side));
        (!is_served).then_some(reason)
    }

    /// Returns whether a family is served while the backend is ready.
    pub fn serves(&self, family: Family) -> bool {
        self.sides.get(&family).is_some_and(|side| side.serves)
    }

    /// Returns until when it is, or was last, put aside in every family that it serves.
    pub fn aside_until(&self) -> Option<Timestamp> {
        self.sides.values().filter(|side| side.serves).map(|side| side.passive.until()).min().flatten()
    }

    /// Returns whether it is put aside in any family.
    pub fn is_aside(&self, now: Timestamp) -> bool {
        self.sides.values().any(|side| side.passive.is_aside(now))
    }

    /// Says what is wrong in families, while others are well.
    pub fn error(&self) -> Option<String> {
        let wrong = self.sides.iter().filter_map(|(family, side)| Some((family, side.serves, side.error.as_ref()?)));
        let told = wrong.map(|(family, serves, error)| match serves {
            true => format!("{family}: {error}"),
            false => format!("no clients of {family} are led to it: {error}"),
        });
        let told: Vec<String> = told.collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}
