//! What happened, in order, kept for a while: one line of JSON for each event, each with a number.
//!
//! ```json
//! {"seq":…,"unix_ms":…,"service":"web","kind":"decision","decision":"scale_up","from":2,"to":5,"reason":"…"}
//! {"seq":…,"unix_ms":…,"service":"web","kind":"backend","backend":"lb-default-web-3","id":"…","from":"starting","to":"ready"}
//! {"seq":…,"unix_ms":…,"service":"web","kind":"health","backend":"…","id":"…","from":"ready","to":"unhealthy","error":"…"}
//! {"seq":…,"unix_ms":…,"service":"web","kind":"publication","generation":7,"ready":5}
//! {"seq":…,"unix_ms":…,"kind":"agent","text":"…"}
//! {"seq":…,"unix_ms":…,"kind":"gap","missed":12}
//! ```
//!
//! Members are added, none is renamed or given another meaning. Numbers rise, also from one agent of an instance to the
//! next, as they count from the microsecond in which the agent began: who has seen `seq` goes on with `?after=SEQ` and gets
//! each event once. Where some are not kept any longer, a line of the kind `gap` says so; `missed` is null where an earlier
//! agent told them, and nobody knows how many.
//!
//! The writer waits for nobody. A reader holds the lock while it copies some references.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::control::{BackendState, Change, Decision, DecisionKind};

/// How many events are kept.
pub const CAPACITY: usize = 1024;

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number.
    pub seq: u64,
    /// When, in milliseconds of Unix time.
    pub unix_ms: u64,
    /// The service that it is about; none where it is about all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum What {
    /// The agent itself.
    Agent {
        /// What it did, for people.
        text: String,
    },
    /// Something was decided, or noted.
    Decision {
        /// What kind.
        decision: DecisionKind,
        /// How many backends were wanted before.
        from: u32,
        /// How many are wanted since.
        to: u32,
        /// Why, for people.
        reason: String,
    },
    /// A backend came, went, or changed its state.
    Backend(Step),
    /// A backend began to fail, or does so no longer.
    Health(Step),
    /// The kernel has taken another set of backends.
    Publication {
        /// Its number.
        generation: u64,
        /// How many backends get new connections.
        ready: usize,
    },
    /// Events are missing here.
    Gap {
        /// How many; none where that is not known.
        missed: Option<u64>,
    },
}

/// A backend's change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub backend: String,
    /// Its identity.
    pub id: String,
    /// What it was; null if it has come.
    pub from: Option<BackendState>,
    /// What it is; null if it is gone.
    pub to: Option<BackendState>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<&Decision> for What {
    fn from(decision: &Decision) -> Self {
        let Decision { kind, from, to, reason, .. } = decision;
        Self::Decision { decision: *kind, from: *from, to: *to, reason: reason.clone() }
    }
}

impl From<Change> for What {
    fn from(change: Change) -> Self {
        let Change { id, name, from, to, error } = change;
        let step = Step { backend: name.0, id: id.0, from, to, error };
        let is_failing = |state: Option<BackendState>| state == Some(BackendState::Unhealthy);
        let serves = |state: Option<BackendState>| state == Some(BackendState::Ready);
        match (step.from, step.to) {
            (from, to) if (is_failing(from) && serves(to)) || (serves(from) && is_failing(to)) => Self::Health(step),
            (_, _) => Self::Backend(step),
        }
    }
}

/// The last events.
#[derive(Debug)]
pub struct Journal {
    ring: Mutex<Ring>,
    /// The number of the last event; closed when there will be no other.
    newest: watch::Sender<Newest>,
}

/// What followers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// The number of the last event.
    pub seq: u64,
    /// Whether there will be no other.
    pub is_last: bool,
}

#[derive(Debug)]
struct Ring {
    /// The number before the first event of this agent.
    before: u64,
    kept: VecDeque<Kept>,
}

#[derive(Clone, Debug)]
struct Kept {
    seq: u64,
    unix_ms: u64,
    line: Bytes,
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With everything that is kept.
    Oldest,
    /// With what came after that number.
    After(u64),
    /// With what came at that time, in milliseconds of Unix time, or later.
    Since(u64),
    /// With the last so many.
    Last(usize),
}

/// Some events, as lines of JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The lines, each with its line feed.
    pub lines: Vec<Bytes>,
    /// Where to go on.
    pub after: u64,
    /// Whether these are all that there are.
    pub is_whole: bool,
}

impl Journal {
    /// Creates an empty one; the first event gets the next number.
    pub fn new(before: u64) -> Self {
        let ring = Mutex::new(Ring { before, kept: VecDeque::with_capacity(CAPACITY) });
        Self { ring, newest: watch::channel(Newest { seq: before, is_last: false }).0 }
    }

    /// Adds an event; the oldest one goes where there is no room.
    pub fn push(&self, service: Option<&str>, what: What, unix_ms: u64) {
        let mut ring = self.ring();
        let seq = ring.last() + 1;
        let line = line(&Entry { seq, unix_ms, service: service.map(str::to_owned), what });
        if ring.kept.len() == CAPACITY {
            ring.kept.pop_front();
        }
        ring.kept.push_back(Kept { seq, unix_ms, line });
        drop(ring);
        self.newest.send_modify(|newest| newest.seq = seq);
    }

    /// Says that no event follows: whoever follows has seen the end.
    pub fn close(&self) {
        self.newest.send_modify(|newest| newest.is_last = true);
    }

    /// Returns what tells that there is more.
    pub fn watch(&self) -> watch::Receiver<Newest> {
        self.newest.subscribe()
    }

    /// Returns up to `most` events.
    pub fn read(&self, from: Start, most: usize, now_unix_ms: u64) -> Batch {
        let ring = self.ring();
        let first = ring.kept.front().map_or(ring.last() + 1, |kept| kept.seq);
        let mut lines = Vec::new();
        let after = match from {
            Start::Oldest => first - 1,
            Start::Last(count) => ring.last().saturating_sub(count as u64).max(first - 1),
            Start::Since(unix_ms) => {
                // The clock may have been set back: whatever follows one that is young enough belongs to it.
                let found = ring.kept.iter().find(|kept| kept.unix_ms >= unix_ms);
                found.map_or(ring.last(), |kept| kept.seq - 1)
            }
            Start::After(after) if (first - 1..=ring.last()).contains(&after) => after,
            Start::After(after) => {
                let is_known = (ring.before..first).contains(&after);
                let missed = is_known.then(|| first - 1 - after);
                let what = What::Gap { missed };
                lines.push(line(&Entry { seq: first - 1, unix_ms: now_unix_ms, service: None, what }));
                first - 1
            }
        };
        let rest = ring.kept.iter().skip((after + 1 - first) as usize);
        let mut last = after;
        for kept in rest.take(most.saturating_sub(lines.len()).max(1)) {
            lines.push(kept.line.clone());
            last = kept.seq;
        }
        Batch { lines, after: last, is_whole: last == ring.last() }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // It is whole at any time: nobody panics between two of its changes.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn last(&self) -> u64 {
        self.kept.back().map_or(self.before, |kept| kept.seq)
    }
}

fn line(entry: &Entry) -> Bytes {
    let mut text = serde_json::to_vec(entry).expect("an event has text keys");
    text.push(b'\n');
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: u64 = 1_000;

    fn filled(count: u64) -> Journal {
        let journal = Journal::new(BEFORE);
        (1..=count).for_each(|number| push(&journal, number));
        journal
    }

    fn push(journal: &Journal, number: u64) {
        journal.push(Some("web"), What::Agent { text: number.to_string() }, number * 10);
    }

    /// Returns what was told: texts of events, and gaps.
    fn told(batch: &Batch) -> Vec<String> {
        let entries = batch.lines.iter().map(|line| serde_json::from_slice::<Entry>(line).unwrap());
        entries
            .map(|entry| match entry.what {
                What::Agent { text } => text,
                What::Gap { missed } => format!("gap {missed:?} at {}", entry.seq),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn read(journal: &Journal, from: Start) -> Vec<String> {
        told(&journal.read(from, usize::MAX, 0))
    }

    #[test]
    fn who_goes_on_gets_each_event_once() {
        let journal = filled(5);
        let first = journal.read(Start::Oldest, 3, 0);
        assert_eq!(
            (told(&first), first.after, first.is_whole),
            (vec!["1".into(), "2".into(), "3".into()], 1_003, false)
        );

        let second = journal.read(Start::After(first.after), 3, 0);
        assert_eq!((told(&second), second.after, second.is_whole), (vec!["4".into(), "5".into()], 1_005, true));

        let none = journal.read(Start::After(second.after), 3, 0);
        assert_eq!((none.lines.len(), none.after, none.is_whole), (0, 1_005, true));
        push(&journal, 6);
        assert_eq!(read(&journal, Start::After(1_005)), ["6"]);
    }

    #[test]
    fn a_reader_begins_where_it_wants() {
        let journal = filled(5);

        assert_eq!(read(&journal, Start::Last(2)), ["4", "5"]);
        assert_eq!(read(&journal, Start::Last(9)).len(), 5);
        assert_eq!(read(&journal, Start::Last(0)), Vec::<String>::new());
        assert_eq!(read(&journal, Start::Since(31)), ["4", "5"]);
        assert_eq!(read(&journal, Start::Since(99)), Vec::<String>::new());
        assert_eq!(read(&Journal::new(7), Start::Oldest), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_kept_is_told_as_missed() {
        let kept = CAPACITY as u64;
        let journal = filled(kept + 10);

        let all = journal.read(Start::After(BEFORE), usize::MAX, 0);
        assert_eq!(told(&all)[..2], ["gap Some(10) at 1010".to_owned(), "11".to_owned()]);
        assert_eq!(all.lines.len(), CAPACITY + 1);
        assert_eq!(read(&journal, Start::After(BEFORE + 4))[0], "gap Some(6) at 1010");
        assert_eq!(read(&journal, Start::After(BEFORE + 10))[0], "11", "nothing is missing");
        assert_eq!(read(&journal, Start::Oldest)[0], "11", "who has seen nothing misses nothing");

        // One that has room for nothing else goes on nevertheless.
        let one = journal.read(Start::After(BEFORE + 4), 1, 0);
        assert_eq!((one.lines.len(), one.after), (2, BEFORE + 11));
    }

    #[test]
    fn what_another_agent_told_is_missed_in_a_number_that_nobody_knows() {
        let journal = filled(2);

        assert_eq!(read(&journal, Start::After(17)), ["gap None at 1000", "1", "2"]);
        assert_eq!(read(&journal, Start::After(2_000)), ["gap None at 1000", "1", "2"], "the clock was set back");
        assert_eq!(read(&Journal::new(BEFORE), Start::After(17)), ["gap None at 1000"]);
        assert_eq!(read(&Journal::new(BEFORE), Start::After(BEFORE)), Vec::<String>::new());
        assert_eq!(read(&journal, Start::After(u64::MAX)), ["gap None at 1000", "1", "2"]);
    }

    #[test]
    fn followers_are_told_of_more_and_of_the_end() {
        let journal = Journal::new(0);
        let mut watch = journal.watch();
        watch.borrow_and_update();

        push(&journal, 1);
        assert_eq!(*watch.borrow_and_update(), Newest { seq: 1, is_last: false });
        journal.close();
        assert_eq!(*watch.borrow(), Newest { seq: 1, is_last: true });
    }

    #[test]
    fn a_change_is_one_of_health_only_between_serving_and_failing() {
        use BackendState::{Dead, Ready, Starting, Unhealthy};
        let of = |from: Option<BackendState>, to| {
            let (id, name) = ("f00".into(), "lb-web-1".into());
            What::from(Change { id, name, from, to, error: Some("refused".into()) })
        };

        for (from, to) in [(Ready, Unhealthy), (Unhealthy, Ready)] {
            assert!(matches!(of(Some(from), Some(to)), What::Health(_)));
        }
        for (from, to) in
            [(None, Some(Starting)), (Some(Starting), Some(Ready)), (Some(Unhealthy), Some(Dead)), (Some(Dead), None)]
        {
            assert!(matches!(of(from, to), What::Backend(_)));
        }
    }

    #[test]
    fn the_lines_are_as_documented() {
        let shown = |service: Option<&str>, what| {
            let journal = Journal::new(41);
            journal.push(service, what, 7);
            String::from_utf8(journal.read(Start::Oldest, 1, 0).lines[0].to_vec()).unwrap()
        };
        let decision = DecisionKind::ScaleUp;
        let what = What::Decision { decision, from: 2, to: 5, reason: "burst".into() };
        assert_eq!(
            shown(Some("web"), what),
            r#"{"seq":42,"unix_ms":7,"service":"web","kind":"decision","decision":"scale_up","from":2,"to":5,"reason":"burst"}"#.to_owned() + "\n"
        );
        let step = Step { backend: "b".into(), id: "f".into(), from: None, to: Some(BackendState::Ready), error: None };
        assert_eq!(
            shown(None, What::Backend(step)),
            r#"{"seq":42,"unix_ms":7,"kind":"backend","backend":"b","id":"f","from":null,"to":"ready"}"#.to_owned()
                + "\n"
        );
        assert_eq!(
            shown(None, What::Gap { missed: None }),
            r#"{"seq":42,"unix_ms":7,"kind":"gap","missed":null}"#.to_owned() + "\n"
        );
    }
}
