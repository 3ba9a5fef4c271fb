//! What the controller is configured with.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::addresses::Addresses;
use super::crash_loop::CrashLoop;
use super::event::ContainerId;
use super::history::Decision;
use super::law;
use super::orders::Orders;
use super::policy::Law;
use super::report::RolloutReport;
use super::time::Timestamp;

/// Who decides how many backends there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Somebody else: backends come and go, none is started or stopped.
    Fixed,
    /// The controller, by the load of the host.
    Auto(Law),
    /// The controller, by the demand for the service.
    Demand(law::Law),
}

/// What becomes of containers of former settings, or of a former image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnChange {
    /// They stay, until there are too many or somebody asks for a rollout.
    Keep,
    /// They are replaced, one at a time.
    Rollout,
}

/// Everything that the controller is configured with.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Who decides how many backends there are.
    pub scaling: Scaling,
    /// The most backends that are taken of those that others start; nothing where the list of them is itself a wish.
    pub most: Option<u32>,
    /// What becomes of containers of former settings.
    pub on_change: OnChange,
    /// How long a draining backend may keep flows before it is stopped.
    pub drain_timeout: Duration,
    /// How long after a backend has left the slots a sweep may begin that is believed when it finds no flows: the time
    /// that a SYN in flight needs to become a flow and an accepted connection.
    pub settle: Duration,
    /// How long a backend that has just become ready takes to its whole share of new connections; zero: no time.
    pub slow_start: Duration,
    /// The time between two checks of a backend that is ready or unhealthy.
    pub probe_interval: Duration,
    /// The time between two checks of a backend that is starting.
    pub start_probe_interval: Duration,
    /// How many checks in a row a starting backend has to pass.
    pub rise: u32,
    /// How many checks in a row a ready backend may fail before it is unhealthy.
    pub fall: u32,
    /// How many checks in a row an unhealthy backend has to pass.
    pub rise_again: u32,
    /// How long a backend may take from its start to being ready.
    pub start_timeout: Duration,
    /// How long a backend may fail its checks before it is replaced.
    pub unhealthy_limit: Duration,
    /// How many containers are kept frozen, beside those that serve.
    pub warm: u32,
    /// How many containers may be in creation at once.
    pub start_limit: u32,
    /// Backends that are in the kernel's slots already, with their addresses there: they are ready when first seen at
    /// that address, without a check.
    pub adopted_ready: BTreeMap<ContainerId, Addresses>,
    /// Since when the shares of those have been growing, where they have.
    pub adopted_warming: BTreeMap<ContainerId, Timestamp>,
    /// Containers that a former agent kept in reserve: they do not count as those that are wanted.
    pub adopted_warm: BTreeSet<ContainerId>,
    /// Backends that are in no slot, but to which the kernel still leads flows: they keep them until they are drained.
    pub adopted_flows: BTreeSet<ContainerId>,
    /// Backends that the kernel serves and that nobody will show: they get no new connections, and keep the others until
    /// they are drained. With their addresses.
    pub adopted_leaving: BTreeMap<ContainerId, Addresses>,
    /// The generation that the kernel holds already; publications count on from there.
    pub adopted_generation: u64,
    /// What a former agent decided, oldest first.
    pub adopted_decisions: Vec<Decision>,
    /// What a connection cost a former agent, in seconds of CPU.
    pub adopted_cost: Option<f64>,
    /// What its law was waiting for.
    pub adopted_cooldowns: Option<law::Cooldowns>,
    /// What an operator had ordered it.
    pub adopted_orders: Orders,
    /// How many backends it wanted; counts where orders keep the law from being followed.
    pub adopted_desired: Option<u32>,
    /// The starts in a row that came to nothing: the next one is tried at once.
    pub adopted_crash_loop: Option<CrashLoop>,
    /// The rollout that was under way: it goes on.
    pub adopted_rollout: Option<RolloutReport>,
    /// How long the answer to a stop is waited for: longer than its grace and the engine's own delays.
    pub stop_patience: Duration,
    /// Whether containers and datapath outlive the agent when it is asked to end.
    pub keep: bool,
}

/// What of the settings may change while the controller runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconfiguration {
    /// What has changed, for people.
    pub reason: String,
    /// The law, if there was one; who decides stays.
    pub scaling: Scaling,
    /// See [`Settings::most`]. Where there are more already, they stay.
    pub most: Option<u32>,
    /// See [`Settings::on_change`].
    pub on_change: OnChange,
    /// See [`Settings::drain_timeout`].
    pub drain_timeout: Duration,
    /// See [`Settings::slow_start`].
    pub slow_start: Duration,
    /// See [`Settings::warm`].
    pub warm: u32,
    /// See [`Settings::probe_interval`].
    pub probe_interval: Duration,
    /// See [`Settings::stop_patience`].
    pub stop_patience: Duration,
    /// See [`Settings::keep`].
    pub keep: bool,
    /// Static backends that are listed no longer: they get no new connections, and keep the others until they are
    /// drained.
    pub unlisted: BTreeSet<ContainerId>,
}

impl Settings {
    /// Returns the defaults.
    pub fn new(scaling: Scaling) -> Self {
        Settings {
            scaling,
            most: None,
            on_change: OnChange::Keep,
            drain_timeout: Duration::from_secs(30),
            settle: Duration::from_secs(1),
            slow_start: Duration::ZERO,
            probe_interval: Duration::from_secs(2),
            start_probe_interval: Duration::from_millis(100),
            rise: 1,
            fall: 3,
            rise_again: 2,
            start_timeout: Duration::from_secs(30),
            unhealthy_limit: Duration::from_secs(30),
            warm: 0,
            start_limit: 4,
            adopted_ready: BTreeMap::new(),
            adopted_warming: BTreeMap::new(),
            adopted_warm: BTreeSet::new(),
            adopted_flows: BTreeSet::new(),
            adopted_leaving: BTreeMap::new(),
            adopted_generation: 0,
            adopted_decisions: Vec::new(),
            adopted_cost: None,
            adopted_cooldowns: None,
            adopted_orders: Orders::default(),
            adopted_desired: None,
            adopted_crash_loop: None,
            adopted_rollout: None,
            stop_patience: Duration::from_secs(130),
            keep: false,
        }
    }
}
