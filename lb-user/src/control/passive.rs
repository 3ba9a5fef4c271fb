//! What new connections tell of a backend: one that answers none of them is put aside, for longer each time.
//!
//! The active checks ask from this host every few seconds; this looks at what clients meet, and sees within a second or
//! two what a check cannot: a firewall in the container, a full backlog, a path that is broken for clients alone.

use std::time::Duration;

use super::time::Timestamp;

/// So many new connections in a row that were refused, or wait, put a backend aside.
const LIMIT: u64 = 5;
/// One that has accepted any for so long is not deaf: as long as a SYN counts as waiting.
const HEARING: Duration = Duration::from_secs(4);
/// For how long, the first time; each further time doubles it.
const FIRST: Duration = Duration::from_secs(10);
/// For how long at most.
const LONGEST: Duration = Duration::from_secs(300);
/// After so long without a further time, the next one counts as the first.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How a backend answers new connections of TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Those accepted since the backend's ids were given to it.
    pub accepted: u64,
    /// Those refused since then.
    pub refused: u64,
    /// Those that wait right now: their SYN is older than a second, so it has been repeated, and not so old that it was
    /// given to another backend long ago.
    pub waiting: u64,
}

impl Answers {
    /// Adds those of another frontend.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            accepted: self.accepted.wrapping_add(other.accepted),
            refused: self.refused.wrapping_add(other.refused),
            waiting: self.waiting.saturating_add(other.waiting),
        }
    }
}

/// What is remembered of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Passive {
    last: Option<Answers>,
    /// Connections refused since the last that was accepted.
    refused: u64,
    /// When it was last seen to have accepted any.
    accepted: Option<Timestamp>,
    times: u32,
    until: Option<Timestamp>,
}

impl Passive {
    /// Takes the counters of now; returns why the backend is put aside, if it is from now on.
    pub fn observe(&mut self, answers: Answers, now: Timestamp) -> Option<String> {
        let last = self.last.replace(answers)?;
        // Counters that went back are another id's.
        let accepted = answers.accepted.checked_sub(last.accepted)?;
        let refused = answers.refused.checked_sub(last.refused)?;
        if accepted > 0 {
            self.accepted = Some(now);
        }
        if self.is_aside(now) {
            return None;
        }
        if accepted > 0 {
            self.refused = 0;
            if self.until.is_some_and(|until| now.since(until) >= FORGOTTEN) {
                (self.times, self.until) = (0, None);
            }
            return None;
        }
        self.refused = self.refused.saturating_add(refused);
        // Whoever sends what a stack drops in silence, a SYN of a wrong checksum, must not put aside one that serves others.
        let hears = self.accepted.is_some_and(|at| now.since(at) < HEARING);
        let waiting = if hears { 0 } else { answers.waiting };
        if self.refused.saturating_add(waiting) < LIMIT {
            return None;
        }
        let reason = match (self.refused, waiting) {
            (refused, 0) => format!("it refused {refused} new connections in a row"),
            (0, waiting) => format!("{waiting} new connections wait for its answer"),
            (refused, waiting) => format!("it refused {refused} new connections in a row, and {waiting} wait"),
        };
        let pause = FIRST.saturating_mul(1 << self.times.min(5)).min(LONGEST);
        self.times += 1;
        self.refused = 0;
        self.until = Some(now + pause);
        Some(format!("{reason}: aside for {} s", pause.as_secs()))
    }

    /// Takes the counters of a time at which it is not judged.
    pub fn skip(&mut self, answers: Answers) {
        self.last = Some(answers);
        self.refused = 0;
    }

    /// Returns until when it is, or was last, put aside.
    pub fn until(&self) -> Option<Timestamp> {
        self.until
    }

    /// Returns whether it is put aside.
    pub fn is_aside(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn refusing(refused: u64) -> Answers {
        Answers { accepted: 100, refused, waiting: 0 }
    }

    #[test]
    fn what_was_counted_before_the_first_look_says_nothing() {
        assert_eq!(Passive::default().observe(Answers { accepted: 0, refused: 50, waiting: 0 }, at(1)), None);
    }

    #[test]
    fn five_refusals_in_a_row_are_enough_also_over_several_looks() {
        let mut passive = Passive::default();
        assert_eq!(passive.observe(refusing(0), at(0)), None);
        assert_eq!(passive.observe(refusing(2), at(1)), None);
        assert_eq!(passive.observe(refusing(4), at(2)), None);

        let reason = passive.observe(refusing(5), at(3));

        assert_eq!(reason.as_deref(), Some("it refused 5 new connections in a row: aside for 10 s"));
        assert!(passive.is_aside(at(12)) && !passive.is_aside(at(13)));
    }

    #[test]
    fn one_that_accepts_any_is_left_alone() {
        let mut passive = Passive::default();
        for second in 0..20 {
            let answers = Answers { accepted: second, refused: second * 100, waiting: 50 };
            assert_eq!(passive.observe(answers, at(second)), None);
        }
    }

    #[test]
    fn those_that_wait_count_once_not_once_a_look() {
        let mut passive = Passive::default();
        let waiting = |waiting| Answers { accepted: 0, refused: 0, waiting };
        for second in 0..20 {
            assert_eq!(passive.observe(waiting(4), at(second)), None);
        }

        let reason = passive.observe(waiting(5), at(20));

        assert_eq!(reason.as_deref(), Some("5 new connections wait for its answer: aside for 10 s"));
    }

    #[test]
    fn one_that_has_accepted_any_a_moment_ago_is_not_deaf() {
        let mut passive = Passive::default();
        let counted = |accepted, waiting| Answers { accepted, refused: 0, waiting };
        passive.observe(counted(0, 0), at(0));
        passive.observe(counted(1, 50), at(1));
        for second in 2..5 {
            assert_eq!(passive.observe(counted(1, 50), at(second)), None, "{second}");
        }

        assert!(passive.observe(counted(1, 50), at(5)).is_some());
    }

    #[test]
    fn each_time_is_longer_until_it_has_been_good_for_a_minute() {
        let mut passive = Passive::default();
        let (mut now, mut refused, mut pauses) = (0, 0, Vec::new());
        passive.observe(refusing(0), at(now));
        for _ in 0..7 {
            refused += 5;
            assert!(passive.observe(refusing(refused), at(now)).is_some());
            let pause = (0..).find(|second| !passive.is_aside(at(now + second))).unwrap();
            pauses.push(pause);
            now += pause;
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);

        passive.observe(Answers { accepted: 101, ..refusing(refused) }, at(now + 60));
        passive.observe(Answers { accepted: 101, ..refusing(refused + 5) }, at(now + 61));

        assert!(passive.is_aside(at(now + 70)) && !passive.is_aside(at(now + 71)));
    }

    proptest! {
        #[test]
        fn counters_that_go_back_put_nobody_aside(counters in proptest::collection::vec((0..9_u64, 0..9_u64), 2..40)) {
            let mut passive = Passive::default();
            for (second, (accepted, refused)) in (0..).zip(&counters) {
                let before = passive.last;
                let verdict = passive.observe(Answers { accepted: *accepted, refused: *refused, waiting: 0 }, at(second));
                if let Some(before) = before
                    && (*accepted < before.accepted || *refused < before.refused)
                {
                    prop_assert_eq!(verdict, None);
                }
            }
        }
    }
}
