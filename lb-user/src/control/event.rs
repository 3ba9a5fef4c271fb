//! What the controller is told and what it asks for.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};

use serde::{Deserialize, Serialize};

use super::addresses::{Addresses, Family};
use super::families::Heard;
use super::law::Surge;
use super::load::CpuLoad;
use super::measures::Measures;
use super::orders::Order;
use super::passive::Answers;
use super::settings::Reconfiguration;
use super::time::Timestamp;

/// The identity of a backend: the engine's container id, or the endpoint of a static backend as text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId(pub String);

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for ContainerId {
    fn from(id: &str) -> Self {
        ContainerId(id.into())
    }
}

impl Borrow<str> for ContainerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The name of a backend, for people: the container's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendName(pub String);

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for BackendName {
    fn from(name: &str) -> Self {
        BackendName(name.into())
    }
}

/// A backend of this instance as the provider sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its identity.
    pub id: ContainerId,
    /// Its name.
    pub name: BackendName,
    /// Its number within the instance; unique among the containers that exist.
    pub ordinal: u32,
    /// Its addresses, once it has one.
    pub address: Option<Addresses>,
    /// Whether it runs. A paused container runs.
    pub running: bool,
    /// When it was created, in seconds of Unix time: the newest is the first to go.
    pub created: u64,
    /// Whether it was started with other settings than one would be today: it is the first to go.
    pub outdated: bool,
    /// What it says of itself, where somebody else has started it.
    pub terms: Terms,
}

/// What a container that somebody else has started says of itself by labels. Of our own, and of static backends, nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The port at which it listens, for every frontend.
    pub port: Option<NonZeroU16>,
    /// The only port that it exposes, for frontends that name none.
    pub exposed: Option<NonZeroU16>,
    /// How much it gets beside the others.
    pub weight: Option<NonZeroU32>,
    /// Why it cannot be served, for people, if it cannot.
    pub unfit: Option<String>,
}

/// Why a backend is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneCause {
    /// Its process has ended, as the kernel tells. How, the engine tells a moment later by one of the others.
    Ended,
    /// Its process ended.
    Died {
        /// The exit code, where it is known.
        exit_code: Option<i64>,
        /// Whether the kernel killed it for want of memory.
        oom: bool,
    },
    /// Somebody killed it.
    Killed,
    /// It does not exist any more.
    Removed,
    /// Somebody paused it: it exists, keeps its flows and does not answer.
    Paused,
    /// Somebody asked it to end: it still runs, and finishes what it has.
    Ending,
}

impl GoneCause {
    /// It was found not to run, and nobody tells how that came.
    pub const FOUND_ENDED: Self = GoneCause::Died { exit_code: None, oom: false };

    /// Whether the container ended by itself, so that the next one may well do the same.
    pub(super) fn is_own_doing(self) -> bool {
        match self {
            GoneCause::Died { .. } => true,
            GoneCause::Ended | GoneCause::Killed | GoneCause::Removed | GoneCause::Paused | GoneCause::Ending => false,
        }
    }
}

impl fmt::Display for GoneCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GoneCause::Ended => f.write_str("has ended"),
            GoneCause::Died { oom: true, .. } => f.write_str("killed for want of memory"),
            GoneCause::Died { exit_code: Some(code), oom: false } => write!(f, "ended with exit code {code}"),
            GoneCause::Died { exit_code: None, oom: false } => f.write_str("found ended"),
            GoneCause::Killed => f.write_str("killed from outside"),
            GoneCause::Removed => f.write_str("removed"),
            GoneCause::Paused => f.write_str("paused from outside"),
            GoneCause::Ending => f.write_str("asked to end from outside"),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The load was measured.
    LoadSampled(CpuLoad),
    /// The demand was measured, as far as it could be.
    Measured(Box<Measures>),
    /// New connections come that do not wait for the next measurement. What [`Controller::tripwire`](super::Controller::tripwire)
    /// does not ask for changes nothing.
    Surged(Surge),
    /// The load could not be measured.
    LoadUnavailable {
        /// Why.
        reason: String,
    },
    /// An operator wants something. What [`Controller::refusal`](super::Controller::refusal) refuses changes nothing.
    Ordered(Order),
    /// The provider reports one backend: it was started, unpaused or inspected.
    BackendSeen(Sighting),
    /// The provider reports all backends there are. Events that happened after the list was taken follow it.
    Resynced(Vec<Sighting>),
    /// A backend is gone.
    BackendGone {
        /// Which.
        id: ContainerId,
        /// Why.
        cause: GoneCause,
    },
    /// The answer to [`Command::Probe`].
    BackendProbed {
        /// Which.
        id: ContainerId,
        /// How it answered in each family; if it could not be asked at all, why.
        outcome: Result<Heard, String>,
    },
    /// [`Command::Publish`] succeeded.
    Published {
        /// Of which publication.
        generation: u64,
    },
    /// A publication has left out a backend that was to be ready, because packets cannot be handed to it.
    BackendUnreachable {
        /// Which.
        id: ContainerId,
        /// Why.
        error: String,
    },
    /// A backend that is published is reached in another way: what the datapath holds is out of date.
    WayChanged {
        /// Which.
        id: ContainerId,
    },
    /// Backends listen elsewhere, for other frontends, or get other shares of their connections: what the datapath holds is
    /// out of date.
    EndpointsChanged,
    /// Settings have changed.
    Reconfigured(Box<Reconfiguration>),
    /// [`Command::Publish`] failed; what the datapath holds is not known.
    PublishFailed {
        /// Of which publication.
        generation: u64,
        /// Why.
        error: String,
    },
    /// The flow tables were counted.
    Swept {
        /// When the counting began. Flows that came later may be missing.
        began: Timestamp,
        /// Live connections of each backend; one that is missing has none.
        flows: BTreeMap<ContainerId, u64>,
        /// How each backend answers new connections, by family.
        answers: BTreeMap<(ContainerId, Family), Answers>,
    },
    /// [`Command::Start`] succeeded.
    Started {
        /// Of which ordinal.
        ordinal: u32,
        /// The container.
        id: ContainerId,
    },
    /// [`Command::Start`] failed.
    StartFailed {
        /// Of which ordinal.
        ordinal: u32,
        /// Why.
        error: String,
    },
    /// [`Command::Stop`] succeeded: the container does not run.
    Stopped {
        /// Which.
        id: ContainerId,
    },
    /// [`Command::Stop`] failed.
    StopFailed {
        /// Which.
        id: ContainerId,
        /// Why.
        error: String,
    },
    /// [`Command::Remove`] failed. Its success is [`GoneCause::Removed`].
    RemoveFailed {
        /// Which.
        id: ContainerId,
        /// Why.
        error: String,
    },
    /// [`Command::Freeze`] succeeded.
    Frozen {
        /// Which.
        id: ContainerId,
    },
    /// [`Command::Freeze`] failed; the container may be frozen or not.
    FreezeFailed {
        /// Which.
        id: ContainerId,
        /// Why.
        error: String,
    },
    /// [`Command::Thaw`] succeeded.
    Thawed {
        /// Which.
        id: ContainerId,
    },
    /// [`Command::Thaw`] failed.
    ThawFailed {
        /// Which.
        id: ContainerId,
        /// Why.
        error: String,
    },
    /// A flow has begun at a backend that is published as asleep.
    Woken {
        /// Which.
        id: ContainerId,
    },
    /// Somebody has sent a container a signal through the provider. It has to run to take it.
    Signalled {
        /// Which.
        id: ContainerId,
    },
    /// The provider cannot be reached.
    ProviderLost {
        /// Why.
        error: String,
    },
    /// The provider can be reached again; [`Event::Resynced`] follows.
    ProviderBack,
    /// The agent was asked to end.
    StopRequested,
    /// The agent was asked to end at once.
    StopForced,
    /// [`Controller::deadline`](super::Controller::deadline) was reached.
    Tick,
}

/// The complete state that the datapath should have. Backends that are in neither list are dropped with their flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Counts the publications; a higher one is a later wish.
    pub generation: u64,
    /// In the slots, in this order.
    pub ready: Vec<ContainerId>,
    /// Of ready ones, the families in which they have no slot; their flows of those go on.
    pub deaf: BTreeSet<(ContainerId, Family)>,
    /// Of ready ones, those that get a part of their share of new connections only, in tenths.
    pub warming: BTreeMap<ContainerId, u32>,
    /// Of ready ones, those that are frozen or about to be: the datapath tells when a flow begins there.
    pub asleep: BTreeSet<ContainerId>,
    /// Not in the slots; their flows go on.
    pub draining: Vec<ContainerId>,
}

/// What should be done. Doing one twice is harmless; each has an event that says how it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Write the state to the datapath. Answer: [`Event::Published`] or [`Event::PublishFailed`].
    Publish(Publication),
    /// End the container: ask it, and kill it after the grace. Answer: [`Event::Stopped`], [`Event::BackendGone`] or
    /// [`Event::StopFailed`].
    Stop {
        /// Which.
        id: ContainerId,
    },
    /// Delete what is left of a container that does not run. Answer: [`Event::BackendGone`] with
    /// [`GoneCause::Removed`], or [`Event::RemoveFailed`].
    Remove {
        /// Which.
        id: ContainerId,
    },
    /// Create and start a container of that ordinal, and clean up where that fails half-way. Answer:
    /// [`Event::Started`] or [`Event::StartFailed`].
    Start {
        /// Which.
        ordinal: u32,
    },
    /// Freeze a container, which has no flows. Answer: [`Event::Frozen`] or [`Event::FreezeFailed`].
    Freeze {
        /// Which.
        id: ContainerId,
    },
    /// Thaw a container: somebody may be waiting. Answer: [`Event::Thawed`] or [`Event::ThawFailed`].
    Thaw {
        /// Which.
        id: ContainerId,
    },
    /// Check a backend's health once. Answer: [`Event::BackendProbed`].
    Probe {
        /// Which.
        id: ContainerId,
    },
    /// All is done.
    Finish,
}
