//! What the agent leaves in the kernel about itself, so that `status` can tell of it when it is dead, and the next
//! agent can go on where it ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
};

use lb_ebpf::abi::{BackendId, FrontendId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    doors::Door,
    links::{Framing, Path, Reach},
};
use crate::control::{ContainerId, ControlReport, Decision, Timestamp};

/// The report: JSON in the map `REPORT`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the agent.
    pub version: String,
    /// When the first agent of the instance started, in seconds of Unix time.
    pub started_unix: u64,
    /// When this agent started, in seconds of Unix time.
    pub agent_started_unix: u64,
    /// Milliseconds since the first start; the times of the controller count from there.
    pub age_ms: u64,
    /// What the controller knows.
    pub control: ControlReport,
    /// The load at which the most are wanted, in percent; none with static backends.
    pub target_cpu_percent: Option<f64>,
    /// Frontends.
    pub frontends: Vec<FrontendReport>,
    /// Backends that the kernel knows.
    pub backends: Vec<BackendReport>,
    /// How much of the host's CPU containers use, in percent, as far as it is known.
    pub cpu_percent: BTreeMap<ContainerId, f64>,
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
    /// Its weight beside the others'.
    #[serde(default = "one")]
    pub weight: u32,
    /// Whether it is out of the slots, and keeps the connections that it has.
    #[serde(default)]
    pub leaving: bool,
}

fn one() -> u32 {
    1
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
    /// How its packets are framed.
    pub reply_framing: Framing,
    /// The backend's MAC address; zero where the kernel resolves it.
    pub mac: [u8; 6],
    /// The MAC address from which it expects packets.
    pub source_mac: [u8; 6],
    /// The host's address on the backend's network; none where it has none.
    pub host_address: Option<Ipv4Addr>,
}

impl Way {
    /// Takes what of a path goes into the maps.
    pub fn new(path: Path, host_address: Option<Ipv4Addr>) -> Self {
        Self {
            reach: path.reach,
            ifindex: path.ifindex,
            name: path.name,
            reply_ifindex: path.reply_ifindex,
            reply_name: path.reply_name,
            reply_framing: path.reply_framing,
            mac: path.mac.unwrap_or_default(),
            source_mac: path.src_mac.unwrap_or_default(),
            host_address,
        }
    }
}

/// What an agent takes over from the report of a former one, of whatever version: what cannot be read is left out.
#[derive(Clone, Debug, Default)]
pub struct Inheritance {
    /// Frontends.
    pub frontends: Vec<FrontendReport>,
    /// Backends that the kernel may know.
    pub backends: Vec<BackendReport>,
    /// Where programs are attached.
    pub doors: Vec<Door>,
    /// When the first agent of the instance started, in seconds of Unix time.
    pub started_unix: Option<u64>,
    /// The publication that the kernel holds.
    pub generation: u64,
    /// The age of the instance when the report was written, in milliseconds.
    pub age_ms: u64,
    /// What was decided, oldest first.
    pub decisions: Vec<Decision>,
    /// Since when the shares of containers have been growing that have become ready.
    pub warming: BTreeMap<ContainerId, Timestamp>,
}

/// What of [`crate::control::BackendReport`] is taken over.
#[derive(Deserialize)]
struct Warming {
    id: ContainerId,
    warming_since: Timestamp,
}

impl Inheritance {
    /// Reads a report.
    pub fn parse(text: &[u8]) -> Self {
        let Ok(report) = serde_json::from_slice::<Value>(text) else { return Self::default() };
        Self {
            frontends: each(&report["frontends"]),
            backends: each(&report["backends"]),
            doors: each(&report["doors"]),
            started_unix: report["started_unix"].as_u64(),
            generation: report["control"]["generation"].as_u64().unwrap_or(0),
            age_ms: report["age_ms"].as_u64().unwrap_or(0),
            decisions: each(&report["control"]["decisions"]),
            warming: each(&report["control"]["backends"])
                .into_iter()
                .map(|Warming { id, warming_since }| (id, warming_since))
                .collect(),
        }
    }

    /// Returns the containers all of whose backends are in `ready`.
    pub fn containers_of(&self, ready: &BTreeSet<BackendId>) -> BTreeSet<ContainerId> {
        let mut of: BTreeMap<&ContainerId, bool> = BTreeMap::new();
        for backend in &self.backends {
            *of.entry(&backend.container).or_insert(true) &= ready.contains(&backend.id);
        }
        of.into_iter().filter(|(_, all)| *all).map(|(id, _)| id.clone()).collect()
    }
}

/// Reads the items of a list that can be read.
fn each<T: DeserializeOwned>(list: &Value) -> Vec<T> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|item| T::deserialize(item).ok()).collect()
}

impl Report {
    /// Reads a report; `None` if there is none, or none of this version's.
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_another_version_is_inherited_as_far_as_it_can_be_read() {
        let text = br#"{"age_ms":5000,"started_unix":7,"news":{},
            "control":{"generation":3,"phase":"dreaming","decisions":[{"at":"?"}],
                "backends":[{"id":"a","warming_since":{"secs":4,"nanos":0}},{"id":"b","warming_since":null},{"id":"c"}]},
            "frontends":[{"id":1,"name":"80/tcp","addresses":["198.18.1.1:80"],"colour":"red"},{"id":"two"}]}"#;

        let inheritance = Inheritance::parse(text);

        assert_eq!((inheritance.generation, inheritance.started_unix, inheritance.age_ms), (3, Some(7), 5000));
        assert_eq!(inheritance.frontends.len(), 1);
        assert_eq!(inheritance.warming, [(ContainerId::from("a"), Timestamp::from_millis(4_000))].into());
        assert!(inheritance.backends.is_empty() && inheritance.decisions.is_empty());
        assert!(Inheritance::parse(b"\xff").frontends.is_empty());
    }
}
