//! The publication: one on its way at most, the latest wish next, and nothing believed before it is confirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::addresses::Family;
use super::event::{ContainerId, Publication};
use super::retry::{Errand, Pace};
use super::time::Timestamp;

const PACE: Pace = Pace { first: Duration::from_millis(100), longest: Duration::from_secs(5) };
/// After so long without an answer a publication counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was asked of the datapath and what it confirmed.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    generation: u64,
    /// The publication that was sent last, until it is confirmed.
    open: Option<Open>,
    confirmed: Option<Publication>,
    confirmed_generation: Option<u64>,
    /// Whom the datapath may hold: what was confirmed, and whatever was sent since.
    held: BTreeSet<ContainerId>,
    error: Option<String>,
}

#[derive(Clone, Debug)]
struct Open {
    publication: Publication,
    /// When to try again: after [`PATIENCE`] while it is on its way, after [`PACE`] once it has failed.
    errand: Errand,
    on_its_way: bool,
}

impl Publisher {
    pub fn new(generation: u64) -> Self {
        Publisher {
            generation,
            open: None,
            confirmed: None,
            confirmed_generation: None,
            held: BTreeSet::new(),
            error: None,
        }
    }

    /// Returns the publication that should be sent for this wish, if any. A wish that differs from one that failed does
    /// not wait for the retry.
    pub fn offer(
        &mut self,
        ready: Vec<ContainerId>,
        deaf: BTreeSet<(ContainerId, Family)>,
        warming: BTreeMap<ContainerId, u32>,
        asleep: BTreeSet<ContainerId>,
        draining: Vec<ContainerId>,
        now: Timestamp,
    ) -> Option<Publication> {
        let same = |publication: &Publication| {
            let Publication { generation: _, ready: r, deaf: d, warming: w, asleep: a, draining: l } = publication;
            (r, d, w, a, l) == (&ready, &deaf, &warming, &asleep, &draining)
        };
        let errand = match &self.open {
            Some(open) if now < open.errand.due() && (open.on_its_way || same(&open.publication)) => return None,
            None if self.confirmed.as_ref().is_some_and(same) => return None,
            Some(open) => open.errand,
            None => Errand::new(now),
        };
        self.generation += 1;
        let publication = Publication { generation: self.generation, ready, deaf, warming, asleep, draining };
        self.held.extend(publication.ready.iter().chain(&publication.draining).cloned());
        let mut open = Open { publication: publication.clone(), errand, on_its_way: true };
        open.errand.sent(PATIENCE, now);
        self.open = Some(open);
        Some(publication)
    }

    /// Takes the confirmation of a publication and returns it; an outdated one is ignored.
    pub fn confirm(&mut self, generation: u64) -> Option<&Publication> {
        let open = self.open.take_if(|open| open.on_its_way && open.publication.generation == generation)?;
        self.error = None;
        self.confirmed_generation = Some(generation);
        self.held = open.publication.ready.iter().chain(&open.publication.draining).cloned().collect();
        Some(self.confirmed.insert(open.publication))
    }

    /// Takes the failure of a publication; returns whether it was the one that is on its way. What the datapath holds
    /// is unknown from here on, so the same wish is published again.
    pub fn fail(&mut self, generation: u64, error: &str, now: Timestamp) -> bool {
        match &mut self.open {
            Some(open) if open.on_its_way && open.publication.generation == generation => {
                open.on_its_way = false;
                open.errand.failed(PACE, now);
                self.error = Some(error.into());
                true
            }
            Some(_) | None => false,
        }
    }

    /// Forgets what was confirmed, so that the same wish is published again: what it means has changed.
    pub fn renew(&mut self) {
        self.confirmed = None;
    }

    /// Whether the datapath may hold anything of a backend.
    pub fn holds(&self, id: &ContainerId) -> bool {
        self.held.contains(id)
    }

    /// Returns when to try again, where something is open.
    pub fn due(&self) -> Option<Timestamp> {
        self.open.as_ref().map(|open| open.errand.due())
    }

    /// Returns whether the datapath is known to have given it slots.
    pub fn has_confirmed(&self, id: &ContainerId) -> bool {
        self.confirmed.as_ref().is_some_and(|confirmed| confirmed.ready.contains(id))
    }

    /// Returns the generation that was confirmed last.
    pub fn confirmed_generation(&self) -> Option<u64> {
        self.confirmed_generation
    }

    /// Returns why the last publication failed, until one succeeds.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<ContainerId> {
        names.iter().map(|name| ContainerId::from(*name)).collect()
    }

    fn offer(publisher: &mut Publisher, ready: &[&str], at_ms: u64) -> Option<u64> {
        let (deaf, warming) = (BTreeSet::new(), BTreeMap::new());
        let offered =
            publisher.offer(ids(ready), deaf, warming, BTreeSet::new(), Vec::new(), Timestamp::from_millis(at_ms));
        offered.map(|publication| publication.generation)
    }

    #[test]
    fn one_is_on_its_way_and_the_latest_wish_is_next() {
        let mut publisher = Publisher::new(7);

        assert_eq!(offer(&mut publisher, &["a"], 0), Some(8));
        assert_eq!(offer(&mut publisher, &["a", "b"], 1), None);
        assert_eq!(offer(&mut publisher, &["c"], 2), None);
        assert!(publisher.confirm(7).is_none());
        assert_eq!(publisher.confirm(8).map(|p| p.ready.clone()), Some(ids(&["a"])));
        assert!(publisher.confirm(8).is_none());
        assert_eq!(offer(&mut publisher, &["c"], 3), Some(9));
        assert!(publisher.confirm(9).is_some());
        assert_eq!(offer(&mut publisher, &["c"], 4), None);
    }

    #[test]
    fn a_failure_is_retried_later_and_a_changed_wish_at_once() {
        let mut publisher = Publisher::new(0);
        offer(&mut publisher, &["a"], 0);

        assert!(publisher.fail(1, "no memory", Timestamp::from_millis(10)));
        assert!(publisher.holds(&"a".into()), "who knows");
        assert!(!publisher.fail(1, "no memory", Timestamp::from_millis(10)));
        assert!(publisher.confirm(1).is_none());
        assert_eq!(offer(&mut publisher, &["a"], 109), None);
        assert_eq!(offer(&mut publisher, &["a"], 110), Some(2));
        assert!(publisher.fail(2, "no memory", Timestamp::from_millis(120)));
        assert_eq!(publisher.due(), Some(Timestamp::from_millis(320)));
        assert_eq!(offer(&mut publisher, &["b"], 130), Some(3));
        assert_eq!(publisher.error(), Some("no memory"));
        assert!(publisher.confirm(3).is_some());
        assert_eq!(publisher.error(), None);
        assert!(publisher.holds(&"b".into()) && !publisher.holds(&"a".into()));
    }

    #[test]
    fn an_unknown_state_is_written_again_even_where_the_wish_is_the_confirmed_one() {
        let mut publisher = Publisher::new(0);
        offer(&mut publisher, &["a"], 0);
        publisher.confirm(1);
        offer(&mut publisher, &["b"], 1);
        publisher.fail(2, "half-way", Timestamp::from_millis(2));

        assert_eq!(offer(&mut publisher, &["a"], 3), Some(3));
    }

    #[test]
    fn a_wish_whose_meaning_has_changed_is_published_again() {
        let mut publisher = Publisher::new(0);
        offer(&mut publisher, &["a"], 0);
        publisher.confirm(1);

        publisher.renew();

        assert_eq!(publisher.confirmed_generation(), Some(1));
        assert_eq!(offer(&mut publisher, &["a"], 1), Some(2));
    }

    #[test]
    fn a_share_that_has_grown_is_another_wish() {
        let mut publisher = Publisher::new(0);
        let mut offer = |tenths, at_ms| {
            let warming = BTreeMap::from([(ContainerId::from("a"), tenths)]);
            let now = Timestamp::from_millis(at_ms);
            let offered = publisher.offer(ids(&["a"]), BTreeSet::new(), warming, BTreeSet::new(), Vec::new(), now);
            offered.map(|publication| publisher.confirm(publication.generation).map(|p| p.warming.clone()))
        };

        assert!(offer(1, 0).is_some());
        assert!(offer(1, 1).is_none());
        assert_eq!(offer(2, 2).flatten(), Some(BTreeMap::from([(ContainerId::from("a"), 2)])));
    }

    #[test]
    fn an_answer_that_never_comes_counts_as_a_failure() {
        let mut publisher = Publisher::new(0);
        offer(&mut publisher, &["a"], 0);

        assert_eq!(offer(&mut publisher, &["a"], 9_999), None);
        assert_eq!(offer(&mut publisher, &["a"], 10_000), Some(2));
        assert!(publisher.confirm(1).is_none());
    }
}
