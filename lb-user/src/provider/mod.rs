//! Where backends come from: a provider lists, starts and stops them and tells what happens to them.
//!
//! The agent knows only [`Provider`]; a container engine is one implementation ([`docker`]), a fixed list of
//! addresses another ([`fixed`]). Futures are boxed and `Send`, so that a `dyn Provider` can be shared, spawned and
//! replaced by a fake in tests.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::control::{ContainerId, GoneCause, Sighting};

pub mod docker;
pub mod fixed;

/// How many events may wait for the agent before the provider's task waits itself.
pub const EVENT_BACKLOG: usize = 1024;

/// A source of backends.
pub trait Provider: Send + Sync {
    /// Returns every container of this service, running or not, in the order of their ordinals.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Sighting>, ProviderError>>;

    /// Creates and starts the container of `ordinal`; what was created is removed again if it cannot be started.
    fn start(&self, ordinal: u32) -> BoxFuture<'_, Result<ContainerId, ProviderError>>;

    /// Asks a container to end, ends it by force after `grace`, and removes it. One that is gone already is a success.
    fn stop<'a>(&'a self, id: &'a ContainerId, grace: Duration) -> BoxFuture<'a, Result<(), ProviderError>>;

    /// Removes a container at once, by force if it still runs. One that is gone already is a success.
    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), ProviderError>>;

    /// Returns a backend's first process on this host; `None` if there is none that could be seen from here.
    fn process<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Option<Process>>;

    /// Starts to watch and returns the events, the first of which is a [`ProviderEvent::Resynced`] (or a
    /// [`ProviderEvent::Lost`]). The watch ends when the receiver is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    fn events(&self) -> mpsc::Receiver<ProviderEvent>;
}

/// The first process of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id on this host.
    pub pid: u32,
    /// Whether the provider has paused it, by itself or for others.
    pub is_paused: bool,
}

/// What a provider tells about its containers.
#[derive(Debug)]
pub enum ProviderEvent {
    /// A container was started or thawed.
    Seen(Sighting),
    /// A container serves no longer.
    Gone {
        /// Which one.
        id: ContainerId,
        /// What ended it.
        cause: GoneCause,
    },
    /// Somebody has sent a container a signal, which it may have to be awake for.
    Signalled {
        /// Which one.
        id: ContainerId,
    },
    /// Everything there is; what is not in it is gone. Those that are paused are reported [`Gone`](Self::Gone) right
    /// after it.
    Resynced(Vec<Sighting>),
    /// The provider cannot see its containers and tries again by itself. They may well be alive.
    Lost {
        /// What went wrong.
        error: Arc<ProviderError>,
    },
    /// The provider sees its containers again; a `Resynced` follows.
    Back,
}

/// Why a provider could not do what it was asked, one variant for each thing that can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The engine does not answer: wait, start it, or correct `DOCKER_HOST`.
    #[error("{action}: the engine at {endpoint} does not answer: start Docker, or point DOCKER_HOST at its socket")]
    Unreachable {
        /// What was attempted.
        action: String,
        /// Where the engine was expected.
        endpoint: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// `DOCKER_HOST` names a transport that is not spoken here.
    #[error("DOCKER_HOST {endpoint} is not supported: name the socket of this host's engine, unix:///path/to/socket")]
    EndpointUnsupported {
        /// The value found.
        endpoint: String,
    },
    /// The engine took the request but did not answer in time.
    #[error("{action}: the engine did not answer within {} s", waited.as_secs())]
    TimedOut {
        /// What was attempted.
        action: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The engine is older than what is relied upon.
    #[error(
        "the engine at {endpoint} speaks API {found}, at least {needed} is needed: upgrade Docker to 19.03 or newer"
    )]
    ApiTooOld {
        /// Where the engine is.
        endpoint: String,
        /// The version that it speaks.
        found: String,
        /// The oldest version that works.
        needed: &'static str,
    },
    /// The addresses of a rootless engine's containers exist in another user's network namespace only.
    #[error(
        "the engine at {endpoint} is rootless, its containers cannot be reached from this network namespace: \
         use the system's Docker"
    )]
    Rootless {
        /// Where the engine is.
        endpoint: String,
    },
    /// The image has to be built or pulled first.
    #[error("image {image} is not on this engine: build it with `cargo xtask image` or pull it")]
    ImageMissing {
        /// The image's reference, with its tag.
        image: String,
    },
    /// The network has to be created first.
    #[error("network {network} is not on this engine: create it with `docker network create {network}`")]
    NetworkMissing {
        /// The network's name.
        network: String,
    },
    /// On this network containers have no address of their own.
    #[error(
        "network {network} gives containers no address of their own, and no two of them could listen at one port: use a \
         bridge network, or start one yourself and name it, by an address of this host, with --backend"
    )]
    NetworkWithoutAddresses {
        /// The network's name.
        network: String,
    },
    /// All names that this container may take belong to others.
    #[error("container name {name} is in use by a container that is not ours to remove: remove or rename it")]
    NameTaken {
        /// The first of the names tried.
        name: String,
    },
    /// The container does not exist any more.
    #[error("{action}: the container is gone")]
    Gone {
        /// What was attempted.
        action: String,
    },
    /// The engine understood and said no; its message tells why.
    #[error("{action}: the engine refused with status {status}: {message}")]
    Refused {
        /// What was attempted.
        action: String,
        /// The HTTP status.
        status: u16,
        /// What the engine said.
        message: String,
    },
    /// The engine's answer makes no sense.
    #[error("{action}: the engine's answer could not be understood")]
    Garbled {
        /// What was attempted.
        action: String,
        /// What is wrong with it.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// This provider cannot do such a thing at all.
    #[error("{action}: {whose} are neither started nor stopped")]
    Unsupported {
        /// What was attempted.
        action: String,
        /// With whose backends.
        whose: &'static str,
    },
}
