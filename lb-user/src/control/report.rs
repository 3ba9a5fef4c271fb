//! What the controller shows of itself.

use serde::{Deserialize, Serialize};

use super::addresses::Addresses;
use super::backend::BackendState;
use super::crash_loop::CrashLoop;
use super::event::{BackendName, ContainerId};
use super::history::Decision;
use super::law::{Cooldowns, Record};
use super::load::CpuLoad;
use super::orders::Orders;
use super::time::Timestamp;

/// The controller at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlReport {
    /// When.
    pub at: Timestamp,
    /// What it is about.
    pub phase: Phase,
    /// The fewest backends; nothing with static backends.
    pub min: Option<u32>,
    /// The most backends; nothing with static backends.
    pub max: Option<u32>,
    /// How many are wanted; with static backends, as many as there are.
    pub desired: u32,
    /// The load at the last sample.
    pub load: Option<CpuLoad>,
    /// Why the number stays as it is.
    pub standing: Option<String>,
    /// The last decision on demand, with everything that led to it.
    #[serde(default)]
    pub record: Option<Record>,
    /// The last one that changed the number.
    #[serde(default)]
    pub changed: Option<Record>,
    /// What an operator has ordered.
    #[serde(default)]
    pub orders: Orders,
    /// What the law waits for before it wants fewer, or pushes again.
    #[serde(default)]
    pub cooldowns: Cooldowns,
    /// Starts that came to nothing, if any did in a row.
    #[serde(default)]
    pub crash_loop: Option<CrashLoop>,
    /// The replacement of containers of former settings that is under way.
    #[serde(default)]
    pub rollout: Option<RolloutReport>,
    /// The backends, by ordinal.
    pub backends: Vec<BackendReport>,
    /// What was decided, oldest first.
    pub decisions: Vec<Decision>,
    /// The publication that the kernel is known to hold.
    pub generation: Option<u64>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
}

/// How far a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutReport {
    /// Since when.
    pub since: Timestamp,
    /// How many are replaced at a time.
    pub parallel: u32,
    /// How many have been replaced.
    pub replaced: u32,
    /// How many there are in all, those included.
    pub of: u32,
}

/// What the controller is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It does not know yet what there is.
    Starting,
    /// It serves.
    Running,
    /// It drains and removes.
    Stopping,
}

/// A backend at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendReport {
    /// The container.
    pub id: ContainerId,
    /// Its name.
    pub name: BackendName,
    /// Its place.
    pub ordinal: u32,
    /// Its addresses.
    pub address: Option<Addresses>,
    /// Its state.
    pub state: BackendState,
    /// Since when.
    pub since: Timestamp,
    /// Since when its share of new connections has been growing.
    #[serde(default)]
    pub warming_since: Option<Timestamp>,
    /// How many tenths of its share of new connections it gets; nothing if all of them.
    #[serde(default)]
    pub tenths: Option<u32>,
    /// Connections at the last sweep.
    pub flows: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
}
