//! A surge: what has come within moments is so much that the burst rule is beyond doubt before the next tick.
//!
//! Between two ticks somebody looks at the counter of new connections every few milliseconds. [`Looks`] keeps what came
//! from look to look, and [`Looks::surge`] finds the shortest window, of 3, 6, 12, 24 or 48 looks, that proves a demand
//! beyond a limit. What [`hasten`] then decides is the verdict on what was known at the last tick, with the surge in place
//! of the last seconds' mean. The windows of the law take no part in it: the next tick measures all that came since the one
//! before, and its means are those of equal spans.
//!
//! # Evidence
//! A mean of seconds does not show a step that is 50 ms old, and any mean of milliseconds shows a step every minute. So a
//! window has to exclude both that can look like one:
//!
//! ```text
//! chance   clients that come independently of each other, at the limit, come in such a number less than once in 10^9
//!          windows (Chernoff's bound of the Poisson distribution), and are a hundred at least
//! clumps   a pool of connections that is opened at once, or a page's: each third of the window has at least two thirds of
//!          what it would have of a constant rate, so that what came at one moment is in no more than one of them
//! ```
//!
//! The limit is a rate at which the burst rule would fire anyway, so that below it only chance can trip it. A step to
//! three times what the backends are to carry, which is twice the limit, is proved by 110 connections, so by 42 ms where
//! 2,700 come a second; of fewer a second it takes as long as it takes to count so many.
//!
//! # What is wanted
//! The rate of a moment is extrapolated to a second: it says that more are wanted, and how many only roughly. So growth by
//! it is limited as it is outside of bursts, to doubling within 5 s; the rest is the next tick's, which has counted it.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::judge::{BURST, RISE_BAND, host_cap};
use super::metric::{Evidence, Metric, Seen};
use super::{ENOUGH, Law, Record, State, Timestamp, judge};

/// The numbers of looks that a window may have, each a multiple of three. A longer one shows what is slower.
const WINDOWS: [usize; 5] = [3, 6, 12, 24, 48];
/// A window reaches back no further: that is a tick's to see.
const REACH: Duration = Duration::from_secs(1);
/// The part of what a constant rate would bring that each third of a window has to have.
const EVEN: f64 = 2.0 / 3.0;
/// What happens by chance no more often than e^-20.7 = 10^-9 times is no chance.
const CERTAIN: f64 = 20.7;

/// New connections within a moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Surge {
    /// How many.
    pub connections: f64,
    /// How long the moment was.
    pub within: Duration,
}

impl Surge {
    /// Returns how many a second.
    pub fn rate(&self) -> f64 {
        self.connections / self.within.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Whether it is beyond a rate, a second, by more than chance.
    fn is_beyond(&self, limit: f64) -> bool {
        self.connections >= ENOUGH && is_no_chance(self.connections, limit * self.within.as_secs_f64())
    }
}

/// Whether so many events, each independent of the others, are too many for the mean that they should have.
///
/// # Source
/// Chernoff's bound of the Poisson distribution: of a mean `m`, `P(N >= n) <= exp(-(n ln(n/m) - n + m))` for `n > m`.
pub(super) fn is_no_chance(count: f64, mean: f64) -> bool {
    count > mean && (mean <= 0.0 || count * (count / mean).ln() - count + mean >= CERTAIN)
}

/// What has come from look to look.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    /// Each with what came since the one before; of the first, that is not known.
    looks: VecDeque<Look>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Timestamp,
    came: f64,
}

impl Looks {
    /// Adds a look, with how many connections have begun since the one before.
    pub fn push(&mut self, came: f64, now: Timestamp) {
        self.looks.push_back(Look { at: now, came });
        while self.looks.front().is_some_and(|first| now.since(first.at) > REACH) {
            self.looks.pop_front();
        }
    }

    /// Forgets them all: what comes next has come since who knows when.
    pub fn forget(&mut self) {
        self.looks.clear();
    }

    /// Returns whether nobody has come as far back as is known.
    pub fn are_empty(&self) -> bool {
        self.looks.iter().skip(1).all(|look| look.came <= 0.0)
    }

    /// Returns the shortest moment that proves a rate beyond `limit`, a second.
    ///
    /// A handful of connections never does, nor what chance can bring, nor what has come at one moment: the module says
    /// why.
    pub fn surge(&self, limit: f64) -> Option<Surge> {
        let of = |back: usize, looks: usize| {
            let end = self.looks.len().checked_sub(back)?;
            let begin = end.checked_sub(looks + 1)?;
            let within = self.looks.get(end.checked_sub(1)?)?.at.since(self.looks.get(begin)?.at);
            let connections = self.looks.range(begin + 1..end).map(|look| look.came).sum();
            Some(Surge { connections, within })
        };
        WINDOWS.into_iter().find_map(|looks| {
            let whole = of(0, looks)?;
            let third = looks / 3;
            let is_even = (0..3).all(|number| {
                let share = whole.rate() * EVEN;
                of(number * third, third).is_some_and(|part| part.connections >= share * part.within.as_secs_f64())
            });
            (is_even && whole.is_beyond(limit)).then_some(whole)
        })
    }
}

/// How many backends stand at a moment between two ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many were wanted last.
    pub current: u32,
    /// How many serve.
    pub ready: u32,
}

impl Record {
    /// Returns the rate of new connections, a second, beyond which a burst begins that more backends answer. Nothing where
    /// what arrives is not followed, its cost is not known, or there can be no more of them.
    pub fn tripwire(&self, law: &Law, standing: Standing) -> Option<f64> {
        limit(law, &self.evidence_of(standing))
    }

    fn evidence_of(&self, Standing { current, ready }: Standing) -> Evidence {
        // What was pushed for meanwhile does not serve yet.
        let may_push = self.evidence.may_push && current == self.evidence.current && ready >= current;
        Evidence { current, ready, may_push, surge: None, ..self.evidence.clone() }
    }
}

fn limit(law: &Law, evidence: &Evidence) -> Option<f64> {
    let is_seen = |sight: &super::Sight| sight.metric == Metric::Arrivals && matches!(sight.seen, Seen::Demand(_));
    // What costs nothing is worth what the CPU shows, however much comes.
    if !evidence.sights.iter().any(is_seen) || evidence.paid.is_some() {
        return None;
    }
    let carries = evidence.one_carries(law, Metric::Arrivals).filter(|carries| *carries > 0.0)?;
    let most = host_cap(law, evidence, Metric::Arrivals).unwrap_or(u32::MAX).min(law.bounds.max());
    let (current, ready) = (f64::from(evidence.current), f64::from(evidence.ready.max(1)));
    let burst = (BURST * ready).max(f64::from(law.bounds.min()));
    (evidence.current < most).then(|| burst.max(current * (1.0 + RISE_BAND)) * carries)
}

/// Decides between two ticks, by what was known at the last one and a surge; nothing if that is no more than what those that
/// stand by now can be trusted with. Whether it is done, [`State::follow`] tells.
pub fn hasten(
    law: &Law,
    last: &Record,
    standing: Standing,
    surge: Surge,
    state: &mut State,
    now: Timestamp,
) -> Option<Record> {
    let evidence = last.evidence_of(standing);
    let is_known = now.since(last.at) <= law.gap();
    limit(law, &evidence).filter(|limit| is_known && surge.is_beyond(*limit))?;
    let evidence = Evidence { surge: Some(surge), ..evidence };
    let verdict = judge(law, &evidence);
    state.note_burst(law, &verdict, now);
    let Standing { current, ready } = standing;
    let inputs = super::Inputs { current, ready, ..last.inputs.clone() };
    Some(Record { at: now, law: *law, inputs, evidence, verdict })
}

#[cfg(test)]
mod tests;
