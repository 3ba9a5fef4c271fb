//! What an operator orders: a count of his own in place of the law's, and a law that is not followed upwards or downwards.
//!
//! The law goes on judging all the while, so that its windows are whole when it decides again; what it wants is told and
//! not done ([`Orders::gate`] is the only place). A count of the operator's stands whatever is paused. Neither touches what
//! keeps that many alive: the dead are replaced, and the brake on starts holds.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::history::DecisionKind;
use super::policy::Bounds;
use super::time::Timestamp;
use super::{Controller, Phase};

/// Something that an operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// So many backends, whatever the law wants.
    Count {
        /// How many, at least one.
        count: u32,
        /// For how long; without it until another order.
        lasting: Option<Duration>,
        /// Whether it may lie outside of the law's bounds.
        reach: Reach,
    },
    /// As many as the law wants.
    Auto,
    /// The law is not followed in these directions.
    Pause(Directions),
    /// The law is followed again in these directions.
    Resume(Directions),
    /// Containers of former settings, or of a former image, are replaced.
    Rollout {
        /// How many at a time.
        parallel: u32,
    },
    /// They are not replaced any further.
    AbortRollout,
}

/// How far a count may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// As far as the law's.
    Bounds,
    /// Beyond the law's smallest and largest count.
    Beyond,
}

/// Ways in which a count changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directions {
    /// To fewer.
    In,
    /// To more.
    Out,
    /// To fewer and to more.
    Both,
}

impl Directions {
    fn has_in(self) -> bool {
        matches!(self, Directions::In | Directions::Both)
    }

    fn has_out(self) -> bool {
        matches!(self, Directions::Out | Directions::Both)
    }
}

impl fmt::Display for Directions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Directions::In => "scale-in",
            Directions::Out => "scale-out",
            Directions::Both => "scale-in and scale-out",
        })
    }
}

/// The orders that are in force. They outlive the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// The operator's count.
    #[serde(default)]
    pub manual: Option<Manual>,
    /// Since when no fewer are wanted because the law says so.
    #[serde(default)]
    pub paused_in: Option<Timestamp>,
    /// The same of more.
    #[serde(default)]
    pub paused_out: Option<Timestamp>,
}

/// A count in place of the law's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manual {
    /// How many.
    pub count: u32,
    /// Since when.
    pub since: Timestamp,
    /// When the law decides again; without it, at another order.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

impl Orders {
    /// Returns the count that is wanted where `current` are and the law wants `proposed`.
    pub fn gate(&self, current: u32, proposed: u32) -> u32 {
        match self.manual {
            Some(manual) => manual.count,
            None if proposed < current && self.paused_in.is_some() => current,
            None if proposed > current && self.paused_out.is_some() => current,
            None => proposed,
        }
    }

    /// Returns in which directions the law is not followed.
    pub fn paused(&self) -> Option<Directions> {
        match (self.paused_in, self.paused_out) {
            (Some(_), Some(_)) => Some(Directions::Both),
            (Some(_), None) => Some(Directions::In),
            (None, Some(_)) => Some(Directions::Out),
            (None, None) => None,
        }
    }

    /// Says what decides on the count.
    fn told(&self) -> String {
        match (self.manual, self.paused()) {
            (Some(Manual { count, until: None, .. }), _) => format!("{count} by hand stand until `scale auto`"),
            (Some(Manual { count, until: Some(_), .. }), _) => format!("{count} by hand stand for their time"),
            (None, Some(Directions::Both)) => "scale-in and scale-out are paused".to_owned(),
            (None, Some(paused)) => format!("the law is followed, with {paused} paused"),
            (None, None) => "the law is followed".to_owned(),
        }
    }

    /// Says of a count that the law does not want why it stands.
    pub(super) fn excuse(&self, reason: &str) -> String {
        match (self.manual, self.paused()) {
            (Some(manual), _) => format!("{} by hand; the law: {reason}", manual.count),
            (None, Some(paused)) => format!("{paused} paused; the law: {reason}"),
            (None, None) => reason.to_owned(),
        }
    }
}

/// Why an order is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Somebody else runs the backends.
    #[error("its backends are run by others: nothing here scales or replaces them")]
    NotScaled,
    /// It ends.
    #[error("it is being drained and ends")]
    Ending,
    /// Nobody would answer.
    #[error(
        "0 backends would leave its clients without an answer: the fewest are 1; `lb-user detach` ends an instance"
    )]
    Nobody,
    /// More or fewer than the law may want.
    #[error("{count} is {}: ask for it by force, or change the setting", beside(*count, *bounds))]
    OutOfBounds {
        /// What was asked for.
        count: u32,
        /// What the law may want.
        bounds: Bounds,
    },
}

fn beside(count: u32, bounds: Bounds) -> String {
    if count > bounds.max() {
        format!("more than the maximum of {}", bounds.max())
    } else {
        format!("less than the minimum of {}", bounds.min())
    }
}

impl DecisionKind {
    /// Returns whether it is about what an operator orders.
    pub(super) fn is_about_orders(self) -> bool {
        matches!(
            self,
            DecisionKind::Manual
                | DecisionKind::ManualEnded
                | DecisionKind::Paused
                | DecisionKind::Resumed
                | DecisionKind::Rollout
                | DecisionKind::RolloutAborted
        )
    }
}

impl Controller {
    /// Returns why an order would not be taken.
    pub fn refusal(&self, order: &Order) -> Option<Refusal> {
        let Some(bounds) = self.bounds() else { return Some(Refusal::NotScaled) };
        if self.phase == Phase::Stopping || self.stop_awaits_list {
            return Some(Refusal::Ending);
        }
        match *order {
            Order::Count { count: 0, .. } => Some(Refusal::Nobody),
            Order::Count { count, reach: Reach::Bounds, .. } if bounds.clamp(count) != count => {
                Some(Refusal::OutOfBounds { count, bounds })
            }
            Order::Count { .. }
            | Order::Auto
            | Order::Pause(_)
            | Order::Resume(_)
            | Order::Rollout { .. }
            | Order::AbortRollout => None,
        }
    }

    /// Returns the orders that are in force.
    pub fn orders(&self) -> Orders {
        self.orders
    }

    /// Returns what was decided on the last order.
    pub fn last_order(&self) -> Option<&str> {
        self.last_order.as_deref()
    }

    /// Takes an order; one that would be refused changes nothing.
    pub(super) fn ordered(&mut self, order: Order, now: Timestamp) {
        if self.refusal(&order).is_some() {
            return;
        }
        match order {
            Order::Count { count, lasting, reach: _ } => {
                let until = lasting.map(|lasting| now + lasting);
                self.orders.manual = Some(Manual { count, since: now, until });
                let from = std::mem::replace(&mut self.wish, count);
                let how_long = lasting.map_or_else(
                    || "until `scale auto`".to_owned(),
                    |lasting| format!("for {}", humantime::format_duration(lasting)),
                );
                self.standing = None;
                self.record(DecisionKind::Manual, from, format!("{count} wanted by hand {how_long}"), now);
            }
            Order::Auto => match self.orders.manual {
                Some(manual) => self.end_manual(&format!("{} by hand no longer, as ordered", manual.count), now),
                None => {
                    let reason = format!("there was no count by hand: {}", self.orders.told());
                    self.remark(DecisionKind::ManualEnded, reason, now);
                }
            },
            Order::Pause(directions) => {
                if directions.has_in() {
                    self.orders.paused_in.get_or_insert(now);
                }
                if directions.has_out() {
                    self.orders.paused_out.get_or_insert(now);
                }
                let stay = self.wish;
                let reason = match directions {
                    Directions::In | Directions::Out | Directions::Both if self.orders.manual.is_some() => {
                        format!("{directions} paused, as soon as the law is followed again: {}", self.orders.told())
                    }
                    Directions::In => format!("scale-in paused: no fewer than {stay} because the law wants it"),
                    Directions::Out => format!("scale-out paused: no more than {stay} because the law wants it"),
                    Directions::Both => format!("scale-in and scale-out paused: {stay} stay, whatever the law wants"),
                };
                self.standing = None;
                self.remark(DecisionKind::Paused, reason, now);
            }
            Order::Resume(directions) => {
                let ended = Orders {
                    manual: None,
                    paused_in: self.orders.paused_in.take_if(|_| directions.has_in()),
                    paused_out: self.orders.paused_out.take_if(|_| directions.has_out()),
                };
                let ended = match (ended.paused(), self.orders.paused()) {
                    (Some(ended), _) => format!("{ended} resumed"),
                    (None, Some(_)) => format!("{directions} was not paused"),
                    (None, None) => "nothing was paused".to_owned(),
                };
                let from = self.wish;
                if self.phase == Phase::Running {
                    self.keep_to_bounds();
                }
                self.standing = None;
                self.record(DecisionKind::Resumed, from, format!("{ended}: {}", self.orders.told()), now);
            }
            Order::Rollout { parallel } => self.rollout_requested(parallel, now),
            Order::AbortRollout => self.rollout_abort_requested(now),
        }
    }

    /// Ends a count by hand whose time is over.
    pub(super) fn lapse(&mut self, now: Timestamp) {
        if self.phase != Phase::Running {
            return;
        }
        if let Some((manual, until)) = self.orders.manual.and_then(|manual| Some((manual, manual.until?)))
            && until <= now
        {
            let lasted = humantime::format_duration(Duration::from_secs(until.since(manual.since).as_secs()));
            self.end_manual(&format!("{} by hand have lasted {lasted}", manual.count), now);
        }
    }

    /// Returns when the count by hand ends.
    pub(super) fn manual_until(&self) -> Option<Timestamp> {
        self.orders.manual?.until
    }

    /// Goes on from the operator's count, as far as the law may have it.
    fn end_manual(&mut self, why: &str, now: Timestamp) {
        self.orders.manual = None;
        let from = self.wish;
        self.keep_to_bounds();
        self.standing = None;
        let paused = self.orders.paused().map(|paused| format!(", with {paused} paused")).unwrap_or_default();
        let reason = format!("{why}: the law goes on from {}{paused}", self.wish);
        self.record(DecisionKind::ManualEnded, from, reason, now);
    }

    /// Draws the count into the law's bounds, as far as orders allow.
    pub(super) fn keep_to_bounds(&mut self) {
        if let Some(bounds) = self.bounds() {
            self.wish = self.orders.gate(self.wish, bounds.clamp(self.wish));
        }
    }
}
