//! What the agent leaves in the kernel about itself, so that `status` can tell of it when it is dead, and the next
//! agent can go on where it ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
};

use lb_ebpf::abi::{BackendId, FrontendId};
use serde::{Deserialize, Serialize};

use super::doors::Door;
use crate::control::{ContainerId, ControlReport};

/// The report: JSON in the map `REPORT`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the agent.
    pub version: String,
    /// When the agent started, in seconds of Unix time.
    pub started_unix: u64,
    /// Milliseconds since then.
    pub age_ms: u64,
    /// What the controller knows.
    pub control: ControlReport,
    /// The load at which the most are wanted, in percent; none with static backends.
    pub target_cpu_percent: Option<f64>,
    /// Frontends.
    pub frontends: Vec<FrontendReport>,
    /// Backends that the kernel knows.
    pub backends: Vec<BackendReport>,
    /// Where programs are attached.
    pub doors: Vec<Door>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
}

/// A frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendReport {
    /// Its number in the maps.
    pub id: FrontendId,
    /// Its name: `80/tcp`.
    pub name: String,
    /// Its endpoints.
    pub addresses: BTreeSet<SocketAddrV4>,
}

/// A backend of one frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReport {
    /// Its number in the maps.
    pub id: BackendId,
    /// Its generation.
    pub generation: u32,
    /// The frontend that it serves.
    pub frontend: FrontendId,
    /// The container.
    pub container: ContainerId,
    /// Where it listens.
    pub endpoint: SocketAddrV4,
    /// How it is reached.
    pub way: Way,
}

/// How a backend is reached: what of [`super::links::Path`] goes into the maps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Way {
    /// How packets are handed over.
    pub reach: Reach,
    /// The device to redirect into.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// The device at whose ingress replies enter.
    pub reply_ifindex: u32,
    /// Its name.
    pub reply_name: String,
    /// The backend's MAC address; zero where the kernel resolves it.
    pub mac: [u8; 6],
    /// The MAC address from which it expects packets.
    pub source_mac: [u8; 6],
    /// The host's address on the backend's network; none where it has none.
    pub host_address: Option<Ipv4Addr>,
}

/// As [`super::links::Reach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Through a veth.
    Veth,
    /// Through a device on whose link it is.
    Neighbour,
    /// By the kernel's routing.
    Routed,
}

impl Report {
    /// Reads a report; `None` if there is none, or none of this version's.
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// Returns the containers that had slots when the report was written, by what `ready` says of ids.
    pub fn containers_of(&self, ready: &BTreeSet<BackendId>) -> BTreeSet<ContainerId> {
        let mut of: BTreeMap<&ContainerId, bool> = BTreeMap::new();
        for backend in &self.backends {
            *of.entry(&backend.container).or_insert(true) &= ready.contains(&backend.id);
        }
        of.into_iter().filter(|(_, all)| *all).map(|(id, _)| id.clone()).collect()
    }
}
