//! What an instance runs with, in types that cannot be wrong: past this module nothing is checked again.
//!
//! Single values are parsed by the types themselves ([`publish`], [`value`]); what concerns several of them at once is
//! checked where the command line becomes a [`RunConfig`]: [`RunArgs::check`](crate::cli::RunArgs::check).

use std::time::Duration;

use lb_ebpf::abi;

use crate::health::HealthCheck;

pub mod error;
pub mod publish;
pub mod value;

pub use error::ConfigError;
pub use publish::{Publish, StaticBackend};
pub use value::{Cpus, EnvVar, Hook, InstanceName, MemorySize, Percent, Scheduler, TcAttach, Weight};

/// Frontends that one instance may have.
pub const MAX_FRONTENDS: usize = 64;
/// Backends that one frontend may have.
pub const MAX_BACKENDS_PER_FRONTEND: u32 = 1024;
/// Backends that all frontends of an instance may have together: half of what the kernel's map holds, so that draining
/// ones find room beside those that replace them.
pub const MAX_BACKENDS_IN_ALL: u32 = abi::MAX_BACKENDS / 2;

/// Everything that an instance runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct RunConfig {
    /// The instance's name.
    pub instance: InstanceName,
    /// What clients connect to: 1 to [`MAX_FRONTENDS`], no two of which claim the same packet.
    pub frontends: Vec<Publish>,
    /// Where backends come from.
    pub source: Source,
    /// How a connection's backend is chosen.
    pub scheduler: Scheduler,
    /// For how long a client keeps its backend after its last connection has begun.
    pub affinity: Option<Duration>,
    /// How long a backend that has just become ready takes to its whole share of new connections.
    pub slow_start: Option<Duration>,
    /// What makes a backend healthy.
    pub health: HealthCheck,
    /// The time between two health checks of a backend that has passed one.
    pub health_interval: Duration,
    /// The interfaces by which clients come; empty: those of the default routes.
    pub uplinks: Vec<String>,
    /// Where in the kernel clients' packets are taken.
    pub hook: Hook,
    /// How TC programs are attached.
    pub tc_attach: TcAttach,
    /// Whether every sender behind the uplinks delivers complete checksums, although they are veths.
    pub complete_checksums: bool,
    /// How many proven flows the kernel keeps.
    pub max_flows: u32,
    /// The time between two samples of the load, and between two signs of life.
    pub interval: Duration,
    /// How long a draining backend may keep its flows before it is stopped.
    pub drain_timeout: Duration,
    /// Whether containers and datapath outlive the agent when it is asked to end.
    pub keep: bool,
    /// What was chosen without being asked for, one sentence each, to be shown at the start.
    pub notes: Vec<String>,
}

/// Where backends come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Containers that the agent starts and stops. Every [`Publish::container_port`] is there.
    Docker(Docker),
    /// Backends that somebody else runs. No [`Publish::container_port`] is there.
    Static {
        /// Where they are: 1 to [`MAX_BACKENDS_PER_FRONTEND`], none twice.
        backends: Vec<StaticBackend>,
    },
}

/// The containers of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Docker {
    /// The image's reference.
    pub image: String,
    /// How many of them.
    pub scaling: Scaling,
    /// How many processors one may use; without it, all.
    pub cpus: Option<Cpus>,
    /// How much memory one may use; without it, all.
    pub memory: Option<MemorySize>,
    /// Environment variables, in the order given.
    pub env: Vec<EnvVar>,
    /// The network they join; without it, the engine's default.
    pub network: Option<String>,
    /// The time between the request to end and the kill.
    pub stop_grace: Duration,
}

/// How the number of containers follows the load.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// The fewest: `1 <= min <= max`.
    pub min: u32,
    /// The most: `min <= max <= MAX_BACKENDS_PER_FRONTEND`.
    pub max: u32,
    /// The load of the host at which `max` are wanted.
    pub target_cpu: Percent,
    /// How long more have to be wanted before one is started.
    pub up_window: Duration,
    /// How long fewer have to be wanted before one is stopped.
    pub down_window: Duration,
}
