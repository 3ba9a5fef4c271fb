//! What an instance runs with, in types that cannot be wrong: past this module nothing is checked again.
//!
//! Single values are parsed by the types themselves ([`publish`], [`value`]); what concerns several of them at once is
//! checked where a command line or a file becomes a [`RunConfig`]: [`Draft::check`](crate::cli::Draft::check). What
//! differs between two of them is told by [`diff`].

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use lb_ebpf::abi;

use crate::{
    control::{OnChange, law},
    health::HealthCheck,
};

pub mod diff;
pub mod error;
pub mod guard;
pub mod metric;
pub mod publish;
pub mod snat;
pub mod suppose;
pub mod value;

pub use error::{AddressKind, ConfigError};
pub use guard::{Guard, SourceRate};
pub use metric::{Following, MetricChoice};
pub use publish::{At, Family, Publish, PublishRange, StaticBackend};
pub use snat::Snat;
pub use value::{
    Cpus, EnvVar, Hook, InstanceName, Lifetime, MemorySize, OnChangeChoice, Percent, Scheduler, ServiceName,
    SynCookies, TcAttach, Weight,
};

/// Frontends that all services of one instance may have together.
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
    /// For how long flows may stay idle.
    pub lifetimes: abi::Lifetimes,
    /// The time between two samples of the load, and between two signs of life.
    pub interval: Duration,
    /// Whether containers and datapath outlive the agent when it is asked to end.
    pub keep: bool,
    /// What is served, in the order given: at least one, none of a name that another has. All that they publish is
    /// together 1 to [`MAX_FRONTENDS`], no two of which claim the same packet.
    pub services: Vec<Service>,
    /// What was chosen without being asked for, one sentence each, to be shown at the start.
    pub notes: Vec<String>,
}

/// Reads again what is to be run; the error says what is wrong with it.
pub type Reload = Arc<dyn Fn() -> Result<RunConfig, String> + Send + Sync>;

/// Frontends, and the backends that answer behind them.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its name; that of the command line's only service is the instance's.
    pub name: ServiceName,
    /// What clients connect to, as it was said: at least one.
    pub publish: Vec<Publish>,
    /// The same, one for each family that backends have. Of containers, what was said, until the engine has told of their
    /// network.
    pub frontends: Vec<Publish>,
    /// The families of the backends' addresses; none where that is not known yet.
    pub families: Vec<Family>,
    /// Who may begin connections to them.
    pub guard: Guard,
    /// By which addresses of this host backends know clients.
    pub snat: Snat,
    /// Where backends come from.
    pub source: Source,
    /// How a connection's backend is chosen.
    pub scheduler: Scheduler,
    /// For how long a client keeps its backend after its last connection has begun.
    pub affinity: Option<Duration>,
    /// How many connections of each backend may be under way, at each frontend.
    pub max_connections: Option<NonZeroU32>,
    /// How long a backend that has just become ready takes to its whole share of new connections.
    pub slow_start: Option<Duration>,
    /// What makes a backend healthy.
    pub health: HealthCheck,
    /// The time between two health checks of a backend that has passed one.
    pub health_interval: Duration,
    /// How long a draining backend may keep its flows before it is stopped.
    pub drain_timeout: Duration,
}

impl RunConfig {
    /// Returns every frontend of every service.
    pub fn frontends(&self) -> impl Iterator<Item = &Publish> {
        self.services.iter().flat_map(|service| &service.frontends)
    }

    /// Returns two frontends that claim the same packets, if there are any.
    pub fn overlap(&self) -> Option<(Publish, Publish)> {
        let all: Vec<Publish> = self.frontends().copied().collect();
        let claimed = |(position, second): (usize, &Publish)| {
            all[..position].iter().find(|first| first.overlaps(second)).map(|first| (*first, *second))
        };
        all.iter().enumerate().find_map(claimed)
    }

    /// Finds the first service for whose backends there is no room beside those of the services before it.
    ///
    /// # Errors
    /// Its name, and how many there would be.
    pub fn check_room(&self) -> Result<(), (ServiceName, ConfigError)> {
        let mut sum = 0;
        for service in &self.services {
            sum += service.most_backends();
            if sum > u64::from(MAX_BACKENDS_IN_ALL) {
                return Err((service.name.clone(), ConfigError::TooManyInServices { sum }));
            }
        }
        Ok(())
    }

    /// Returns the service to which everything belongs that names none, as an agent that knew one service only has left
    /// it: the one with the instance's name, or else the only one.
    pub fn heir(&self) -> ServiceName {
        match self.services.as_slice() {
            [only] => only.name.clone(),
            _ => ServiceName::from(&self.instance),
        }
    }
}

impl Service {
    /// Returns what is left of a service that is configured no longer: enough to drain and to stop it.
    pub fn leftover(name: ServiceName, source: Source) -> Self {
        Self {
            name,
            publish: Vec::new(),
            frontends: Vec::new(),
            families: Vec::new(),
            guard: Guard::default(),
            snat: Snat::default(),
            source,
            scheduler: Scheduler::RoundRobin,
            affinity: None,
            max_connections: None,
            slow_start: None,
            health: HealthCheck::None,
            health_interval: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(30),
        }
    }

    /// Takes note of the families of the backends' addresses: there is a frontend for each where no address was said.
    ///
    /// # Errors
    /// If a frontend could not have any backend.
    pub fn complete(&mut self, families: &[Family]) -> Result<(), ConfigError> {
        self.families = families.to_vec();
        self.frontends = publish::of_families(&self.publish, families)?;
        Ok(())
    }

    /// Returns how many backends there may be, each counted once for each of its frontends.
    fn most_backends(&self) -> u64 {
        self.frontends.iter().map(|publish| self.most_backends_at(publish)).sum()
    }

    /// Returns how many backends the frontend may have that may have the most.
    pub fn most_backends_each(&self) -> u64 {
        self.frontends.iter().map(|publish| self.most_backends_at(publish)).max().unwrap_or_default()
    }

    fn most_backends_at(&self, publish: &Publish) -> u64 {
        match &self.source {
            Source::Docker(docker) => u64::from(docker.scaling.max),
            Source::Discovered(discovery) => u64::from(discovery.max),
            Source::Static { backends } => {
                let is_served = |backend: &&StaticBackend| publish.family() == Some(Family::of(backend.address.ip()));
                backends.iter().filter(is_served).count() as u64
            }
        }
    }

    /// Returns what its scaling follows, for people; nothing with static backends.
    pub fn metrics(&self) -> Option<String> {
        match &self.source {
            Source::Docker(docker) => Some(docker.scaling.following.told()),
            Source::Static { .. } | Source::Discovered(_) => None,
        }
    }

    /// Returns the backends that somebody else runs.
    pub fn static_backends(&self) -> &[StaticBackend] {
        match &self.source {
            Source::Static { backends } => backends,
            Source::Docker(_) | Source::Discovered(_) => &[],
        }
    }
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
    /// Containers that others start, and label to be served. A [`Publish::container_port`] counts for those that name no
    /// port themselves.
    Discovered(Discovery),
}

/// Which of the containers that others start are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// The most: 1 to [`MAX_BACKENDS_PER_FRONTEND`].
    pub max: u32,
    /// The network by which those are reached that name none; without it, their only one.
    pub network: Option<String>,
}

/// Containers that share less than this of a processor each are hardly meant to.
const LEAST_SHARE: f64 = 0.25;

/// The containers of a service.
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
    /// What becomes of those of former settings.
    pub on_change: OnChange,
}

impl Docker {
    /// Returns what of the settings needs containers that can be frozen, for people.
    pub fn freezes(&self) -> Option<&'static str> {
        match (self.scaling.warm, self.scaling.min) {
            (0, 0) => Some("--min 0"),
            (0, _) => None,
            (_, _) => Some("--warm"),
        }
    }

    /// Tells where a container's share of the host, which stands in for `--cpus`, is likely not what it can use.
    pub fn note_on_share(&self, processors: usize) -> Option<String> {
        let Following::Demand(targets) = &self.scaling.following else { return None };
        let target = targets.container_cpu.or(targets.arrivals).filter(|_| self.cpus.is_none())?;
        let max = self.scaling.max;
        let share = processors as f64 / f64::from(max);
        let is = format!(
            "without --cpus, each container is taken to be able to use {share:.2} processors, {processors} / --max {max}"
        );
        // One thread uses a processor at most, which has to exceed the target.
        if share * target.share() * (1.0 + law::RISE_BAND) >= 1.0 {
            Some(format!(
                "{is}: a program of one thread never gets there, and nothing asks for more of it; give --cpus"
            ))
        } else if share < LEAST_SHARE {
            Some(format!("{is}: little load is taken for much, and brings all of them; give --cpus, or a lower --max"))
        } else {
            None
        }
    }

    /// Returns what is left of the containers of a service that is configured no longer: none is started.
    pub fn leftover() -> Self {
        let scaling = Scaling {
            min: 1,
            max: 1,
            warm: 0,
            following: Following::HostCpu(Percent::WHOLE),
            up_window: Duration::ZERO,
            down_window: Duration::ZERO,
        };
        Self {
            image: String::new(),
            scaling,
            cpus: None,
            memory: None,
            env: Vec::new(),
            network: None,
            stop_grace: Duration::from_secs(10),
            on_change: OnChange::Keep,
        }
    }
}

/// How the number of containers follows demand.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// The fewest: `min <= max`. With zero, the last one sleeps while nobody comes.
    pub min: u32,
    /// The most: `1 <= max <= MAX_BACKENDS_PER_FRONTEND`.
    pub max: u32,
    /// How many more are kept frozen: `warm <= max`.
    pub warm: u32,
    /// What it follows.
    pub following: Following,
    /// How long more have to be wanted before one is started.
    pub up_window: Duration,
    /// How long fewer have to be wanted before one is stopped.
    pub down_window: Duration,
}
