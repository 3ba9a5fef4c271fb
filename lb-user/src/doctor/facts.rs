//! What was seen of a machine: numbers and words, without a judgement of any of them.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use crate::{
    config::{Family, ServiceName, publish::Proto},
    datapath::{
        links::{LinkKind, Reach},
        loader::Remains,
        netdev::XdpFeatures,
        probe::{Neighbour, Trial},
    },
};

/// Something that may be out of sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight<T> {
    /// It was seen.
    Seen(T),
    /// It shows itself to root alone.
    NeedsRoot,
    /// It could not be seen, and why.
    Unclear(String),
}

/// What was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The kernel, and what this process may do with it.
    pub kernel: Kernel,
    /// What the machine has, and lets processes have.
    pub host: Host,
    /// Where clients come from; or why that is not known.
    pub clients: Result<Clients, String>,
    /// What keeps an instance from starting on these interfaces, in the words of `run`.
    pub refusals: Vec<String>,
    /// Where sockets of this host wait for clients.
    pub listeners: Sight<BTreeSet<(Proto, SocketAddr)>>,
    /// Frontends that other instances have, in the words of `run`.
    pub taken: Sight<Vec<String>>,
    /// The instances that have left pins.
    pub instances: Sight<Vec<Instance>>,
    /// The container engine; or why it is of no use, in the words of `run`.
    pub engine: Result<Engine, EngineTrouble>,
    /// By service with containers: what its image and network are.
    pub containers: Vec<(ServiceName, Result<Containers, String>)>,
    /// What there is no room for, once the families of all frontends are known.
    pub room: Option<String>,
    /// By service that is to freeze containers: why this host cannot, in the words of `run`.
    pub frost: Vec<(ServiceName, String)>,
    /// The backends that somebody else runs.
    pub backends: Vec<Backend>,
    /// How many of those were left out, as there are so many.
    pub backends_left_out: usize,
}

/// The kernel, and what this process may do with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Its release, such as `6.1.0-49-amd64`.
    pub release: String,
    /// Whether this process is root.
    pub is_root: bool,
    /// What root may not do here.
    pub lacking: Vec<&'static str>,
    /// What `run` refuses before it touches anything, in its words, by subject.
    pub refusals: Vec<(&'static str, String)>,
    /// What came of loading the object.
    pub trial: Sight<Result<Trial, String>>,
    /// The mode of lockdown, where the kernel has it.
    pub lockdown: Option<String>,
    /// Whether there is the program `tc`.
    pub has_tc: bool,
    /// Whether the BPF file system is mounted, as seen from here.
    pub bpffs: bool,
    /// Whether others see what is mounted here.
    pub shares_mounts: Sight<bool>,
    /// Where the unified control groups are mounted.
    pub cgroup2: Option<PathBuf>,
    /// Whether the kernel has them at all.
    pub has_cgroup2: bool,
    /// Whether their root is the machine's, not a container's.
    pub sees_all_cgroups: bool,
    /// The programs that meet connect() at their root, in the order in which they run.
    pub at_connect: Sight<Vec<Neighbour>>,
}

/// What the machine has, and lets processes have.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// Processors.
    pub processors: usize,
    /// Bytes of memory that may be taken.
    pub memory_available: Option<u64>,
    /// Descriptors that a process may have open.
    pub open_files: Option<u64>,
    /// Whether the kernel tells how long tasks wait for a processor.
    pub tells_pressure: bool,
    /// Whether packets of a family are forwarded.
    pub forwards: [(Family, Option<bool>); 2],
    /// The ports from which connections of this host begin.
    pub local_ports: Option<(u16, u16)>,
    /// Those of them that nobody takes unasked, as the kernel writes them.
    pub reserved_ports: String,
}

/// Where clients come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Clients {
    /// The uplinks.
    pub uplinks: Vec<Uplink>,
    /// The bridges on which the host has an address.
    pub bridges: Vec<Bridge>,
    /// TCX programs at the ingress of bridges and VLANs, where clients are met, too.
    pub programs: Vec<(String, Vec<Neighbour>)>,
}

/// A device by which clients come.
#[derive(Clone, Debug, PartialEq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Whether it is set up.
    pub is_up: bool,
    /// Its largest packet.
    pub mtu: u32,
    /// The families of its addresses.
    pub families: Vec<Family>,
    /// The names of its VLANs.
    pub vlans: Vec<String>,
    /// Why XDP cannot serve there although it is to, in the words of `run`.
    pub refusal: Option<String>,
    /// Whether it is left out where XDP cannot serve.
    pub is_dispensable: bool,
    /// What its driver says of XDP.
    pub xdp: Sight<XdpFeatures>,
    /// TCX programs at its ingress, in the order in which they run.
    pub programs: Sight<Vec<Neighbour>>,
    /// The XDP program there, whosever it is.
    pub xdp_program: Option<Neighbour>,
}

/// A bridge on which the host has an address.
#[derive(Clone, Debug, PartialEq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Its largest packet.
    pub mtu: u32,
}

/// An instance that has left pins.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// What of it could be taken over; or why it could not be.
    pub remains: Result<Option<Remains>, Hindrance>,
}

/// Why an instance could not be taken over, in the words of `run`.
#[derive(Clone, Debug, PartialEq)]
pub enum Hindrance {
    /// It is in another network namespace.
    Elsewhere(String),
    /// It is of another version, of this ABI.
    Version {
        /// In the words of `run`.
        told: String,
        /// Its ABI; zero where its maps have another shape.
        abi: u32,
    },
    /// Anything else.
    Other(String),
}

/// The container engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// Where it is.
    pub endpoint: String,
    /// Its version.
    pub version: String,
    /// The newest API that it speaks.
    pub api: String,
    /// The version of its control groups, if it tells.
    pub cgroups: Option<u8>,
}

/// Why the engine is of no use.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineTrouble {
    /// In the words of `run`.
    pub told: String,
    /// Whether it is only that this user may not ask.
    pub is_permission: bool,
}

/// What containers of a service would be.
#[derive(Clone, Debug, PartialEq)]
pub struct Containers {
    /// The driver of their network.
    pub driver: Option<String>,
    /// The families of their addresses.
    pub families: Vec<Family>,
}

/// A backend that somebody else runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Its service.
    pub service: ServiceName,
    /// Where it is.
    pub address: SocketAddr,
    /// How packets reach it, if that is known, and by which device; or why they do not, in the words of `run`.
    pub way: Result<(Option<Reach>, String), String>,
    /// What its health check said.
    pub health: Result<(), String>,
}
