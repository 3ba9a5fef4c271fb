//! Follows the engine's events: what happened is told at once, what may have been missed is found by listing.
//!
//! ```text
//! subscribe ─▶ list ─▶ Resynced ─▶ events: die, pause, destroy ─▶ Gone (nothing is asked first)
//!     ▲                    ▲               start, unpause ─▶ inspect ─▶ Seen
//!     │                    │               kill ─▶ Signalled; of others, where it asks to end, Gone
//!     │                    └── every 60 s ──┘
//!     └── back-off 0.5 s … 30 s ◀── Lost ◀── stream ended or list failed
//!
//! a container's first process ends ─▶ Gone (before the engine knows, and while it is away): see `vigil.rs`
//! ```
//!
//! Each service is told of its own containers, by the [`Roster`]; one that enters it makes everything be listed.
//!
//! Answers arrive later than they were true, so a [`Ledger`] keeps what the events said in the meantime: an
//! inspection is void once its container is gone, and a listing is corrected by the events since it was asked for. What
//! says that a process runs which is known to have ended is older than its end. A paused container is listed and reported
//! `Gone` again after every listing, as it runs but serves nobody.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::RandomState},
    convert::Infallible,
    future::pending,
    hash::{BuildHasher, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use bollard::models::{EventMessage, EventMessageTypeEnum};
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered},
};

use super::{
    Found, Roster,
    fleet::Listing,
    is_managed, offer,
    vigil::{End, Vigil},
};
use crate::{
    control::{ContainerId, GoneCause, Sighting},
    provider::{ProviderError, ProviderEvent},
};

/// How often everything is listed, in case the engine dropped an event.
const RESYNC: Duration = Duration::from_secs(60);
/// How soon after the first listing another one follows: the engine answers a subscription a moment before it is in
/// force, and nothing tells when it is.
const FIRST_RESYNC: Duration = Duration::from_secs(1);
/// The first pause after a failure, doubled with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A session that lasted this long ends the back-off; one that ends sooner is no better than none.
const STEADY: Duration = Duration::from_secs(30);

/// Watches for as long as it is let.
pub(super) async fn watch(roster: &Roster) {
    let mut failures = 0;
    let mut lost = false;
    let mut vigil = Vigil::new(roster.engine.clone());
    loop {
        let began = Instant::now();
        let Err(error) = Session::new(roster, &mut vigil).follow(&mut lost).await;
        if began.elapsed() >= STEADY {
            failures = 0;
        }
        if !std::mem::replace(&mut lost, true) {
            let error = Arc::new(error);
            roster.tell_all(|| ProviderEvent::Lost { error: Arc::clone(&error) }).await;
        }
        let pause = tokio::time::sleep(backoff(failures, entropy()));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                end = vigil.next() => tell_end(roster, &end.id).await,
                () = &mut pause => break,
            }
        }
        failures = failures.saturating_add(1);
    }
}

async fn tell_end(roster: &Roster, id: &ContainerId) {
    roster.tell_of(id, || ProviderEvent::Gone { id: id.clone(), cause: GoneCause::Ended }).await;
}

type Look = (ContainerId, u64, Result<Option<(Found, Option<u32>)>, ProviderError>);

/// One subscription, from the request to the interruption.
struct Session<'a> {
    roster: &'a Roster,
    vigil: &'a mut Vigil,
    ledger: Ledger,
    looks: FuturesUnordered<BoxFuture<'a, Look>>,
}

impl<'a> Session<'a> {
    fn new(roster: &'a Roster, vigil: &'a mut Vigil) -> Self {
        Self { roster, vigil, ledger: Ledger::default(), looks: FuturesUnordered::new() }
    }

    /// Follows the events until something fails. `lost` is taken back by the first listing that succeeds.
    async fn follow(mut self, lost: &mut bool) -> Result<Infallible, ProviderError> {
        let roster = self.roster;
        let mut events: BoxStream<'static, _> = roster.engine.subscribe(&roster.instance);
        let mut listing: Option<BoxFuture<'a, _>> = Some(Box::pin(roster.list()));
        let mut pause = FIRST_RESYNC;
        let resync = tokio::time::sleep(pause);
        tokio::pin!(resync);
        self.ledger.listing_begins();
        loop {
            // Events come first: a death must not wait for an answer that is only of interest to the living.
            tokio::select! {
                biased;
                Some(event) = events.next() => self.on_event(&event?).await,
                end = self.vigil.next() => self.on_end(end).await,
                Some(look) = self.looks.next() => self.on_look(look).await?,
                listed = answer(&mut listing) => {
                    listing = None;
                    self.on_listed(listed?, std::mem::take(lost)).await;
                    resync.as_mut().set(tokio::time::sleep(pause));
                    pause = RESYNC;
                }
                () = roster.has_changed.notified(), if listing.is_none() => {
                    self.ledger.listing_begins();
                    listing = Some(Box::pin(roster.list()));
                }
                () = &mut resync, if listing.is_none() => {
                    self.ledger.listing_begins();
                    listing = Some(Box::pin(roster.list()));
                }
            }
        }
    }

    async fn on_event(&mut self, event: &EventMessage) {
        if is_offered(event) && !self.roster.discovers() {
            return;
        }
        let change = change_of(event);
        if let Change::Signalled(id, signal) = &change {
            if !self.roster.is_of_others(id) {
                self.roster.tell_of(id, || ProviderEvent::Signalled { id: id.clone() }).await;
            } else if ends(*signal) {
                // It runs until it has finished, or its grace is over: others are to be asked from now on.
                self.roster.tell_of(id, || ProviderEvent::Gone { id: id.clone(), cause: GoneCause::Ending }).await;
            }
        }
        match self.ledger.record(change) {
            Action::None => {}
            Action::Tell { id, cause } => {
                self.roster.tell_of(&id, || ProviderEvent::Gone { id: id.clone(), cause }).await;
                if cause != GoneCause::Paused {
                    self.vigil.end(&id);
                }
            }
            Action::Look { id, ticket } => self.look(id, ticket),
        }
    }

    async fn on_end(&mut self, End { id, pid }: End) {
        self.ledger.ended(&id, pid);
        tell_end(self.roster, &id).await;
    }

    fn look(&mut self, id: ContainerId, ticket: u64) {
        let roster = self.roster;
        self.looks.push(Box::pin(async move {
            let seen = roster.look(&id).await;
            (id, ticket, seen)
        }));
    }

    async fn on_look(&mut self, (id, ticket, seen): Look) -> Result<(), ProviderError> {
        let seen = match seen {
            // Removed since; its own event says so.
            Err(ProviderError::Gone { .. }) => None,
            other => other?,
        };
        let (found, pid) = seen.filter(|(_, pid)| !self.ledger.has_ended(&id, *pid)).unzip();
        if let Some(sighting) = self.ledger.looked(&id, ticket, found) {
            self.vigil.begin(&id, pid.flatten());
            self.roster.tell_of(&id, || ProviderEvent::Seen(sighting.clone())).await;
        }
        Ok(())
    }

    async fn on_listed(&mut self, listed: Listing, was_lost: bool) {
        if was_lost {
            self.roster.tell_all(|| ProviderEvent::Back).await;
        }
        let mut found = listed.found;
        let doubtful = self.ledger.doubt(&mut found);
        let (paused, sightings) = self.ledger.listing_ends(found);
        self.vigil.keep_to(&sightings.iter().filter(|one| one.running).map(|one| one.id.clone()).collect());
        self.roster.tell_listing(listed.services, sightings).await;
        for id in paused {
            self.roster.tell_of(&id, || ProviderEvent::Gone { id: id.clone(), cause: GoneCause::Paused }).await;
        }
        for id in doubtful {
            let ticket = self.ledger.look(&id);
            self.look(id, ticket);
        }
    }
}

/// Returns whether an event is of a container that somebody else has labelled to be served.
fn is_offered(event: &EventMessage) -> bool {
    let attributes = event.actor.as_ref().and_then(|actor| actor.attributes.as_ref());
    attributes.is_some_and(|attributes| attributes.contains_key(offer::ENABLE)) && !is_managed(event)
}

/// Returns whether a signal asks a program to end, by what images name as the one to stop them: SIGTERM, and SIGINT, SIGQUIT
/// and SIGRTMIN+3 (signal(7), systemd(1)). SIGKILL does not ask.
fn ends(signal: i64) -> bool {
    matches!(signal, 2 | 3 | 15 | 37)
}

/// Waits for the answer to a request, for ever if there is none.
async fn answer<T>(request: &mut Option<BoxFuture<'_, T>>) -> T {
    match request {
        Some(request) => request.await,
        None => pending().await,
    }
}

/// What an event means for the container that it is about.
#[derive(Debug, Clone, PartialEq)]
enum Change {
    /// Nothing that matters here.
    None,
    /// It serves (again), at an address that has to be asked for.
    Serves(ContainerId),
    /// A signal was sent to it through the engine.
    Signalled(ContainerId, i64),
    /// A process in it was killed for want of memory; that was not necessarily its first one.
    OutOfMemory(ContainerId),
    /// Its first process ended, with this code.
    Died(ContainerId, Option<i64>),
    /// It is frozen.
    Paused(ContainerId),
    /// It exists no more.
    Removed(ContainerId),
}

/// Returns what an event means. Only `Type`, `Action` and `Actor` are looked at: API 1.52 has nothing else.
fn change_of(event: &EventMessage) -> Change {
    if event.typ != Some(EventMessageTypeEnum::CONTAINER) {
        return Change::None;
    }
    let (Some(action), Some(actor)) = (&event.action, &event.actor) else {
        return Change::None;
    };
    let Some(id) = actor.id.clone().map(ContainerId) else {
        return Change::None;
    };
    let number = |key| actor.attributes.as_ref()?.get(key)?.parse::<i64>().ok();
    match action.as_str() {
        "start" | "unpause" => Change::Serves(id),
        "kill" => number("signal").map_or(Change::None, |signal| Change::Signalled(id, signal)),
        "oom" => Change::OutOfMemory(id),
        "die" => Change::Died(id, number("exitCode")),
        "pause" => Change::Paused(id),
        "destroy" => Change::Removed(id),
        // create, stop, rename, exec_*, health_status and whatever the engine may add.
        _ => Change::None,
    }
}

/// What is to be done about an event.
#[derive(Debug, Clone, PartialEq)]
enum Action {
    None,
    Tell { id: ContainerId, cause: GoneCause },
    Look { id: ContainerId, ticket: u64 },
}

/// What is known beyond the answers that are still under way.
#[derive(Debug, Default)]
struct Ledger {
    /// By container: the inspection whose answer counts.
    looking: BTreeMap<ContainerId, u64>,
    tickets: u64,
    /// By container: what may explain its death when it comes.
    omens: BTreeMap<ContainerId, Omen>,
    /// By container: the number of a process that has ended before the engine has said so.
    ended: BTreeMap<ContainerId, u32>,
    /// While a listing is under way: what the events said since it was asked for.
    since_listing: Option<BTreeMap<ContainerId, Newer>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Omen {
    out_of_memory: bool,
    signal: Option<i64>,
}

#[derive(Debug)]
enum Newer {
    Serves(Sighting),
    Paused,
    Stopped,
    Removed,
}

impl Ledger {
    /// Takes an event into account and returns what is to be done about it.
    fn record(&mut self, change: Change) -> Action {
        match change {
            Change::None => Action::None,
            Change::Signalled(id, signal) => {
                self.omens.entry(id).or_default().signal = Some(signal);
                Action::None
            }
            Change::OutOfMemory(id) => {
                self.omens.entry(id).or_default().out_of_memory = true;
                Action::None
            }
            Change::Serves(id) => {
                self.omens.remove(&id);
                let ticket = self.look(&id);
                Action::Look { id, ticket }
            }
            Change::Died(id, exit_code) => {
                let omen = self.omens.remove(&id).unwrap_or_default();
                self.ended.remove(&id);
                self.gone(&id, Newer::Stopped);
                Action::Tell { id, cause: omen.explain(exit_code) }
            }
            Change::Paused(id) => {
                self.gone(&id, Newer::Paused);
                Action::Tell { id, cause: GoneCause::Paused }
            }
            Change::Removed(id) => {
                self.omens.remove(&id);
                self.ended.remove(&id);
                self.gone(&id, Newer::Removed);
                Action::Tell { id, cause: GoneCause::Removed }
            }
        }
    }

    /// Returns the ticket of an inspection that begins.
    fn look(&mut self, id: &ContainerId) -> u64 {
        self.tickets += 1;
        self.looking.insert(id.clone(), self.tickets);
        self.tickets
    }

    /// Takes note that a container's process has ended. How, the engine will say.
    fn ended(&mut self, id: &ContainerId, pid: u32) {
        self.gone(id, Newer::Stopped);
        self.ended.insert(id.clone(), pid);
    }

    /// Returns whether an answer is of before the end of the process that it names.
    fn has_ended(&self, id: &ContainerId, pid: Option<u32>) -> bool {
        pid.is_some() && self.ended.get(id).copied() == pid
    }

    /// Takes what is listed as running for ended where its process is known to have, and returns whom to look at: another
    /// process may run there by now.
    fn doubt(&mut self, listed: &mut [Found]) -> Vec<ContainerId> {
        let there: BTreeSet<&ContainerId> = listed.iter().map(|found| &found.sighting.id).collect();
        self.ended.retain(|id, _| there.contains(id));
        let mut doubtful = Vec::new();
        for found in listed.iter_mut().filter(|found| found.sighting.running) {
            if self.ended.contains_key(&found.sighting.id) {
                (found.sighting.running, found.paused) = (false, false);
                doubtful.push(found.sighting.id.clone());
            }
        }
        doubtful
    }

    fn gone(&mut self, id: &ContainerId, how: Newer) {
        self.looking.remove(id);
        if let Some(newer) = &mut self.since_listing {
            newer.insert(id.clone(), how);
        }
    }

    /// Takes the answer of an inspection and returns it if it still holds.
    fn looked(&mut self, id: &ContainerId, ticket: u64, seen: Option<Found>) -> Option<Sighting> {
        if self.looking.get(id) != Some(&ticket) {
            return None;
        }
        self.looking.remove(id);
        let Found { sighting, .. } = seen.filter(|found| found.sighting.running && !found.paused)?;
        self.ended.remove(id);
        if let Some(newer) = &mut self.since_listing {
            newer.insert(id.clone(), Newer::Serves(sighting.clone()));
        }
        Some(sighting)
    }

    fn listing_begins(&mut self) {
        self.since_listing = Some(BTreeMap::new());
    }

    /// Corrects a listing by what has happened since it was asked for. Returns who is paused, and everything there is.
    fn listing_ends(&mut self, listed: Vec<Found>) -> (Vec<ContainerId>, Vec<Sighting>) {
        let mut newer = self.since_listing.take().unwrap_or_default();
        let mut paused = Vec::new();
        let mut sightings = Vec::with_capacity(listed.len());
        for Found { sighting, paused: was_paused } in listed {
            let is_paused = match newer.remove(&sighting.id) {
                None => was_paused,
                Some(Newer::Paused) => true,
                Some(Newer::Removed) => continue,
                Some(Newer::Stopped) => {
                    sightings.push(Sighting { running: false, ..sighting });
                    continue;
                }
                Some(Newer::Serves(later)) => {
                    sightings.push(later);
                    continue;
                }
            };
            if is_paused {
                paused.push(sighting.id.clone());
            }
            sightings.push(sighting);
        }
        sightings.extend(newer.into_values().filter_map(|later| match later {
            Newer::Serves(sighting) => Some(sighting),
            Newer::Paused | Newer::Stopped | Newer::Removed => None,
        }));
        (paused, sightings)
    }
}

impl Omen {
    /// Returns what a death was: somebody's doing through the engine if it fits the last signal sent, else its own.
    fn explain(self, exit_code: Option<i64>) -> GoneCause {
        match (self.signal, exit_code) {
            (Some(signal), Some(code)) if code == 128 + signal || code == 0 => GoneCause::Killed,
            (Some(_) | None, _) => GoneCause::Died { exit_code, oom: self.out_of_memory },
        }
    }
}

/// Returns the pause after `failures` earlier ones, between a half and the whole of the doubled minimum.
fn backoff(failures: u32, entropy: u64) -> Duration {
    let whole = BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    let share = 0.5 + 0.5 * (entropy >> 32) as f64 / f64::from(u32::MAX);
    whole.mul_f64(share).max(BACKOFF_MIN)
}

/// Returns a number that differs between agents, so that they do not all return at the same moment.
fn entropy() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Terms;

    fn event(json: &str) -> EventMessage {
        serde_json::from_str(json).unwrap()
    }

    fn of(action: &str, attributes: &str) -> Change {
        change_of(&event(&format!(
            r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"a1","Attributes":{{{attributes}}}}},
                "scope":"local","time":1732421106,"timeNano":1732421106123456789}}"#
        )))
    }

    fn id(name: &str) -> ContainerId {
        ContainerId(name.to_owned())
    }

    fn seen(name: &str) -> Sighting {
        Sighting {
            id: id(name),
            name: name.into(),
            ordinal: 0,
            address: None,
            running: true,
            created: 1,
            outdated: false,
            terms: Terms::default(),
        }
    }

    fn serving(name: &str) -> Found {
        Found { sighting: seen(name), paused: false }
    }

    fn paused(name: &str) -> Found {
        Found { sighting: seen(name), paused: true }
    }

    fn ended(name: &str) -> Found {
        Found { sighting: Sighting { running: false, ..seen(name) }, paused: false }
    }

    #[test]
    fn events_of_a_new_engine_are_understood() {
        assert_eq!(of("start", ""), Change::Serves(id("a1")));
        assert_eq!(of("unpause", ""), Change::Serves(id("a1")));
        assert_eq!(of("pause", ""), Change::Paused(id("a1")));
        assert_eq!(of("oom", ""), Change::OutOfMemory(id("a1")));
        assert_eq!(of("destroy", ""), Change::Removed(id("a1")));
        assert_eq!(of("die", r#""exitCode":"137""#), Change::Died(id("a1"), Some(137)));
        assert_eq!(of("kill", r#""signal":"9""#), Change::Signalled(id("a1"), 9));
    }

    #[test]
    fn events_of_an_old_engine_are_understood() {
        let old = event(
            r#"{"status":"die","id":"a1","from":"lb-api","Type":"container","Action":"die",
                "Actor":{"ID":"a1","Attributes":{"exitCode":"1","image":"lb-api","name":"lb-web-1"}},
                "scope":"local","time":1732421106,"timeNano":1732421106123456789}"#,
        );

        assert_eq!(change_of(&old), Change::Died(id("a1"), Some(1)));
    }

    #[test]
    fn a_death_without_a_code_is_still_a_death() {
        assert_eq!(of("die", ""), Change::Died(id("a1"), None));
        assert_eq!(of("die", r#""exitCode":"""#), Change::Died(id("a1"), None));
    }

    #[test]
    fn other_events_mean_nothing() {
        for action in ["create", "stop", "rename", "exec_start: sh", "health_status: healthy", "of next year"] {
            assert_eq!(of(action, ""), Change::None, "{action}");
        }
        assert_eq!(change_of(&event(r#"{"Type":"network","Action":"destroy","Actor":{"ID":"n1"}}"#)), Change::None);
        assert_eq!(change_of(&event(r#"{"Type":"container","Action":"die"}"#)), Change::None);
        assert_eq!(change_of(&event("{}")), Change::None);
    }

    #[test]
    fn a_death_is_explained_by_what_came_before() {
        let cause = |changes: &[Change], code| {
            let mut ledger = Ledger::default();
            for change in changes {
                ledger.record(change.clone());
            }
            match ledger.record(Change::Died(id("a1"), Some(code))) {
                Action::Tell { cause, .. } => cause,
                other => panic!("{other:?}"),
            }
        };
        let signal = |number| Change::Signalled(id("a1"), number);

        assert_eq!(cause(&[], 1), GoneCause::Died { exit_code: Some(1), oom: false });
        assert_eq!(cause(&[signal(9)], 137), GoneCause::Killed);
        assert_eq!(cause(&[signal(15)], 0), GoneCause::Killed);
        assert_eq!(cause(&[signal(15), signal(9)], 137), GoneCause::Killed);
        assert_eq!(cause(&[signal(1)], 2), GoneCause::Died { exit_code: Some(2), oom: false });
        assert_eq!(cause(&[Change::OutOfMemory(id("a1"))], 137), GoneCause::Died { exit_code: Some(137), oom: true });
        assert_eq!(
            cause(&[signal(15), Change::Serves(id("a1"))], 0),
            GoneCause::Died { exit_code: Some(0), oom: false }
        );
        assert_eq!(cause(&[Change::OutOfMemory(id("b2"))], 1), GoneCause::Died { exit_code: Some(1), oom: false });
    }

    #[test]
    fn an_inspection_is_void_once_its_container_is_gone() {
        for end in [Change::Died(id("a1"), Some(1)), Change::Paused(id("a1")), Change::Removed(id("a1"))] {
            let mut ledger = Ledger::default();
            ledger.record(Change::Serves(id("a1")));
            ledger.record(end);

            assert_eq!(ledger.looked(&id("a1"), 1, Some(serving("a1"))), None);
        }
    }

    #[test]
    fn only_the_last_inspection_counts() {
        let mut ledger = Ledger::default();
        ledger.record(Change::Serves(id("a1")));
        ledger.record(Change::Died(id("a1"), Some(1)));
        ledger.record(Change::Serves(id("a1")));

        assert_eq!(ledger.looked(&id("a1"), 1, Some(serving("a1"))), None);
        assert_eq!(ledger.looked(&id("a1"), 2, Some(serving("a1"))), Some(seen("a1")));
    }

    #[test]
    fn one_that_serves_no_longer_when_it_is_looked_at_is_not_seen() {
        for found in [Some(ended("a1")), Some(paused("a1")), None] {
            let mut ledger = Ledger::default();
            ledger.record(Change::Serves(id("a1")));

            assert_eq!(ledger.looked(&id("a1"), 1, found), None);
        }
    }

    #[test]
    fn a_listing_is_corrected_by_what_happened_meanwhile() {
        let mut ledger = Ledger::default();
        ledger.record(Change::Died(id("before"), Some(1)));
        ledger.listing_begins();
        ledger.record(Change::Died(id("died"), Some(1)));
        ledger.record(Change::Removed(id("removed")));
        ledger.record(Change::Serves(id("new")));
        ledger.looked(&id("new"), 1, Some(serving("new")));
        ledger.record(Change::Paused(id("froze")));
        ledger.record(Change::Serves(id("thawed")));
        ledger.looked(&id("thawed"), 2, Some(serving("thawed")));

        let (paused, listed) = ledger.listing_ends(vec![
            serving("kept"),
            serving("died"),
            serving("removed"),
            ended("before"),
            serving("froze"),
            paused("thawed"),
            paused("frozen"),
        ]);

        assert_eq!(paused, [id("froze"), id("frozen")]);
        let expected = [
            seen("kept"),
            ended("died").sighting,
            ended("before").sighting,
            seen("froze"),
            seen("thawed"),
            seen("frozen"),
            seen("new"),
        ];
        assert_eq!(listed, expected);
        assert!(ledger.since_listing.is_none());
    }

    #[test]
    fn what_is_older_than_the_end_of_a_process_is_not_believed() {
        let mut ledger = Ledger::default();
        ledger.record(Change::Signalled(id("a1"), 9));
        ledger.ended(&id("a1"), 7);
        ledger.listing_begins();
        let mut listed = [serving("a1"), serving("b2"), ended("c3")];

        let doubtful = ledger.doubt(&mut listed);
        let (_, listed) = ledger.listing_ends(listed.into());

        assert_eq!(listed, [ended("a1").sighting, seen("b2"), ended("c3").sighting]);
        assert_eq!(doubtful, [id("a1")], "it is looked at");
        let ticket = ledger.look(&id("a1"));
        assert!(ledger.has_ended(&id("a1"), Some(7)) && !ledger.has_ended(&id("a1"), Some(8)));
        assert!(!ledger.has_ended(&id("a1"), None), "an engine elsewhere");
        let death = ledger.record(Change::Died(id("a1"), Some(137)));
        assert_eq!(death, Action::Tell { id: id("a1"), cause: GoneCause::Killed }, "the look forgets no omen");
        assert_eq!(ledger.looked(&id("a1"), ticket, Some(serving("a1"))), None);
        assert!(!ledger.has_ended(&id("a1"), Some(7)), "the engine knows");
    }

    #[test]
    fn the_next_process_of_a_container_is_another_one() {
        let mut ledger = Ledger::default();
        ledger.ended(&id("a1"), 7);
        let ticket = ledger.look(&id("a1"));

        assert!(!ledger.has_ended(&id("a1"), Some(8)));
        assert_eq!(ledger.looked(&id("a1"), ticket, Some(serving("a1"))), Some(seen("a1")));

        assert_eq!(ledger.doubt(&mut [serving("a1")]), [], "and it runs");
    }

    #[test]
    fn an_end_voids_an_inspection_and_corrects_a_listing() {
        let mut ledger = Ledger::default();
        ledger.listing_begins();
        ledger.record(Change::Serves(id("a1")));
        ledger.ended(&id("a1"), 7);

        assert_eq!(ledger.looked(&id("a1"), 1, Some(serving("a1"))), None);
        let (_, listed) = ledger.listing_ends(vec![serving("a1")]);
        assert_eq!(listed, [ended("a1").sighting]);
    }

    #[test]
    fn pauses_grow_to_their_limit_and_differ() {
        assert_eq!(backoff(0, 0), BACKOFF_MIN);
        assert_eq!(backoff(1, u64::MAX), Duration::from_secs(1));
        assert_eq!(backoff(2, 0), Duration::from_secs(1));
        assert_eq!(backoff(u32::MAX, u64::MAX), BACKOFF_MAX);
        assert_eq!(backoff(u32::MAX, 0), BACKOFF_MAX / 2);
        assert_ne!(backoff(3, entropy()), backoff(3, entropy()));
    }
}
