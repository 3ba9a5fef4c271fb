//! What the law waits for: the part of its memory that a next agent goes on with.
//!
//! The windows themselves do not outlive an agent: nobody has measured while there was none, and windows that begin anew
//! can only put falls off. What would let the law act too early, if it were forgotten, is here.

use serde::{Deserialize, Serialize};

use super::{Collapse, State, Timestamp};

/// What the law waits for, on the controller's clock, which goes on from agent to agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cooldowns {
    /// Until when none goes after a burst.
    pub burst_until: Timestamp,
    /// Until when none goes after a gap in the samples.
    pub hold_until: Timestamp,
    /// The demand that was gone all at once, if any was.
    pub outage: Option<Outage>,
    /// When the last ones went.
    pub fell: Option<Timestamp>,
    /// When more were asked for last because a level was too high.
    pub pushed: Option<Timestamp>,
}

/// A demand that was gone all at once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// Until when the count is held for its sake.
    pub until: Timestamp,
    /// How much it was, in processors, or in connections where that is all that is measured.
    pub before: f64,
}

impl State {
    /// Returns what the law waits for.
    pub fn cooldowns(&self) -> Cooldowns {
        Cooldowns {
            burst_until: self.burst_until,
            hold_until: self.hold_until,
            outage: self.collapse.map(|Collapse { until, before }| Outage { until, before }),
            fell: self.fell,
            pushed: self.pushed,
        }
    }

    /// Goes on waiting for what a former law was waiting for.
    pub fn adopt_cooldowns(&mut self, former: Cooldowns) {
        let Cooldowns { burst_until, hold_until, outage, fell, pushed } = former;
        (self.burst_until, self.hold_until, self.fell, self.pushed) = (burst_until, hold_until, fell, pushed);
        self.collapse = outage.map(|Outage { until, before }| Collapse { until, before });
    }
}
