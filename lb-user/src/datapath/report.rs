//! What the agent leaves in the kernel about itself, so that `status` can tell of it when it is dead, and the next
//! agent can go on where it ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use lb_ebpf::abi::{AgentRecord, BackendId, FrontendId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    clock,
    doors::Door,
    links::{Framing, Path, Reach},
};
use crate::{
    config::{Guard, Snat},
    control::{
        BackendState, ContainerId, ControlReport, CrashLoop, Decision, Family, Orders, RolloutReport, Timestamp,
        law::Cooldowns,
    },
    freezer::Freezer,
};

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
    /// Services, in the order in which they are configured; those that are on their way out come last.
    pub services: Vec<ServiceReport>,
    /// Frontends.
    pub frontends: Vec<FrontendReport>,
    /// Backends that the kernel knows.
    pub backends: Vec<BackendReport>,
    /// How much of the host's CPU containers use, in percent, as far as it is known.
    pub cpu_percent: BTreeMap<ContainerId, f64>,
    /// Where programs are attached.
    pub doors: Vec<Door>,
    /// Containers that may be frozen, and where they are thawed.
    #[serde(default)]
    pub frozen: BTreeMap<ContainerId, Freezer>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its name.
    pub name: String,
    /// What its controller knows.
    pub control: ControlReport,
    /// The load at which the most are wanted, in percent; none with static backends.
    pub target_cpu_percent: Option<f64>,
    /// What scaling follows, for people; none with static backends.
    #[serde(default)]
    pub metrics: Option<String>,
}

/// A frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendReport {
    /// The service that answers. Agents that knew one service only have left it out.
    #[serde(default)]
    pub service: String,
    /// Its number in the maps.
    pub id: FrontendId,
    /// Its name: `80/tcp`.
    pub name: String,
    /// Its endpoints.
    pub addresses: BTreeSet<SocketAddr>,
    /// Who may begin connections to it.
    #[serde(default)]
    pub guard: Guard,
}

/// A backend of one frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReport {
    /// The service whose it is. Agents that knew one service only have left it out.
    #[serde(default)]
    pub service: String,
    /// Its number in the maps.
    pub id: BackendId,
    /// Its generation.
    pub generation: u32,
    /// The frontend that it serves.
    pub frontend: FrontendId,
    /// The container.
    pub container: ContainerId,
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// How it is reached.
    pub way: Way,
    /// Its weight beside the others'.
    #[serde(default = "one")]
    pub weight: u32,
    /// Whether it is out of the slots, and keeps the connections that it has.
    #[serde(default)]
    pub leaving: bool,
    /// Whether it is frozen or about to be: a flow that begins there is told.
    #[serde(default)]
    pub asleep: bool,
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
    /// The host's IPv4 address on the backend's network; none where it has none.
    pub host_address: Option<Ipv4Addr>,
    /// The same of IPv6.
    #[serde(default)]
    pub host_address_v6: Option<Ipv6Addr>,
    /// The addresses of the host by which it knows clients.
    #[serde(default)]
    pub snat: Snat,
    /// The number of the network namespace in which the backend listens, where that can be asked.
    #[serde(default)]
    pub netns: Option<u32>,
}

impl Way {
    /// Takes what of a path goes into the maps.
    pub fn new(path: Path, host_addresses: (Option<Ipv4Addr>, Option<Ipv6Addr>)) -> Self {
        Self {
            reach: path.reach,
            ifindex: path.ifindex,
            name: path.name,
            reply_ifindex: path.reply_ifindex,
            reply_name: path.reply_name,
            reply_framing: path.reply_framing,
            mac: path.mac.unwrap_or_default(),
            source_mac: path.src_mac.unwrap_or_default(),
            host_address: host_addresses.0,
            host_address_v6: host_addresses.1,
            netns: path.netns,
            snat: Snat::default(),
        }
    }

    /// Says by which addresses of the host the backend knows clients.
    #[must_use]
    pub fn hiding_clients_behind(mut self, snat: Snat) -> Self {
        self.snat = snat;
        self
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
    /// Containers that may be frozen, and where they are thawed.
    pub frozen: BTreeMap<ContainerId, Freezer>,
    /// When the first agent of the instance started, in seconds of Unix time.
    pub started_unix: Option<u64>,
    /// The age of the instance when the report was written, in milliseconds.
    pub age_ms: u64,
    /// What there was of each service, by its name; that of an agent that knew one service only has none.
    pub services: BTreeMap<String, Past>,
}

/// What a service has left.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// The publication that the kernel holds.
    pub generation: u64,
    /// What was decided, oldest first.
    pub decisions: Vec<Decision>,
    /// What a connection costs, in seconds of CPU, as far as it was learned.
    pub connection_cost: Option<f64>,
    /// What its law was waiting for.
    pub cooldowns: Option<Cooldowns>,
    /// What an operator had ordered.
    pub orders: Orders,
    /// How many backends were wanted.
    pub desired: Option<u32>,
    /// The starts in a row that came to nothing.
    pub crash_loop: Option<CrashLoop>,
    /// The rollout that was under way.
    pub rollout: Option<RolloutReport>,
    /// Since when the shares of containers have been growing that have become ready.
    pub warming: BTreeMap<ContainerId, Timestamp>,
    /// Containers that were kept in reserve.
    pub warm: BTreeSet<ContainerId>,
}

/// What of [`crate::control::BackendReport`] is taken over.
#[derive(Deserialize)]
struct Warming {
    id: ContainerId,
    warming_since: Timestamp,
}

/// The same of the reserve.
#[derive(Deserialize)]
struct Kept {
    id: ContainerId,
    state: BackendState,
}

impl Inheritance {
    /// Reads a report.
    pub fn parse(text: &[u8]) -> Self {
        let Ok(report) = serde_json::from_slice::<Value>(text) else { return Self::default() };
        let past = |control: &Value| Past {
            generation: control["generation"].as_u64().unwrap_or(0),
            decisions: each(&control["decisions"]),
            connection_cost: control["record"]["evidence"]["cost"].as_f64(),
            cooldowns: Cooldowns::deserialize(&control["cooldowns"]).ok(),
            orders: Orders::deserialize(&control["orders"]).unwrap_or_default(),
            desired: control["desired"].as_u64().and_then(|desired| desired.try_into().ok()),
            crash_loop: CrashLoop::deserialize(&control["crash_loop"]).ok(),
            rollout: RolloutReport::deserialize(&control["rollout"]).ok(),
            warming: each(&control["backends"])
                .into_iter()
                .map(|Warming { id, warming_since }| (id, warming_since))
                .collect(),
            warm: each(&control["backends"])
                .into_iter()
                .filter(|kept: &Kept| kept.state == BackendState::Warm)
                .map(|kept| kept.id)
                .collect(),
        };
        let services = match report["services"].as_array() {
            Some(services) => services
                .iter()
                .filter_map(|service| Some((service["name"].as_str()?.to_owned(), past(&service["control"]))))
                .collect(),
            None => [(String::new(), past(&report["control"]))].into(),
        };
        Self {
            frontends: each(&report["frontends"]),
            backends: each(&report["backends"]),
            doors: each(&report["doors"]),
            frozen: BTreeMap::deserialize(&report["frozen"]).unwrap_or_default(),
            started_unix: report["started_unix"].as_u64(),
            age_ms: report["age_ms"].as_u64().unwrap_or(0),
            services,
        }
    }

    /// Returns for how long the instance has existed by the report's clock: its age then, and what has passed since.
    pub fn age(&self, record: &AgentRecord) -> Duration {
        Duration::from_millis(self.age_ms) + Duration::from_nanos(clock::ktime().saturating_sub(record.heartbeat))
    }

    /// Gives to a service what an agent has left that knew one service only.
    pub fn bequeath(&mut self, heir: &str) {
        for backend in self.backends.iter_mut().filter(|backend| backend.service.is_empty()) {
            backend.service = heir.to_owned();
        }
        if let Some(past) = self.services.remove("") {
            self.services.insert(heir.to_owned(), past);
        }
    }

    /// Returns the containers of a service, with the families in which all of their backends are in `ready`.
    pub fn containers_of(&self, service: &str, ready: &BTreeSet<BackendId>) -> BTreeSet<(ContainerId, Family)> {
        let mut of: BTreeMap<(&ContainerId, Family), bool> = BTreeMap::new();
        for backend in self.backends.iter().filter(|backend| backend.service == service) {
            let family = Family::of(backend.endpoint.ip());
            *of.entry((&backend.container, family)).or_insert(true) &= ready.contains(&backend.id);
        }
        of.into_iter().filter(|(_, all)| *all).map(|((id, family), _)| (id.clone(), family)).collect()
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
    use crate::control::Manual;

    #[test]
    fn a_report_of_another_version_is_inherited_as_far_as_it_can_be_read() {
        let text = br#"{"age_ms":5000,"started_unix":7,"news":{},
            "control":{"generation":3,"phase":"dreaming","decisions":[{"at":"?"}],
                "backends":[{"id":"a","warming_since":{"secs":4,"nanos":0}},{"id":"b","warming_since":null},{"id":"c"}]},
            "frontends":[{"id":1,"name":"80/tcp","addresses":["198.18.1.1:80"],"colour":"red"},{"id":"two"}]}"#;

        let mut inheritance = Inheritance::parse(text);
        inheritance.bequeath("web");

        assert_eq!((inheritance.started_unix, inheritance.age_ms), (Some(7), 5000));
        assert_eq!(inheritance.frontends.len(), 1);
        let past = &inheritance.services["web"];
        assert_eq!(past.generation, 3, "there was one service, and no name");
        assert_eq!(past.warming, [(ContainerId::from("a"), Timestamp::from_millis(4_000))].into());
        assert!(inheritance.backends.is_empty() && past.decisions.is_empty());
        assert!(Inheritance::parse(b"\xff").frontends.is_empty());
    }

    #[test]
    fn orders_and_what_was_waited_for_are_inherited() {
        let text = br#"{"services":[{"name":"web","control":{"desired":5,
            "orders":{"manual":{"count":5,"since":{"secs":4,"nanos":0},"until":null},"paused_in":{"secs":5,"nanos":0}},
            "cooldowns":{"burst_until":{"secs":9,"nanos":0},"hold_until":{"secs":0,"nanos":0},"outage":null,"fell":null,
                "pushed":{"secs":8,"nanos":0}},
            "crash_loop":{"failures":3,"last_failure":{"secs":6,"nanos":0},"wait_until":{"secs":10,"nanos":0}},
            "rollout":{"since":{"secs":9,"nanos":0},"parallel":2,"replaced":1,"of":5}}},
            {"name":"old","control":{"desired":2,"orders":"none","cooldowns":7,"rollout":null}}]}"#;

        let inheritance = Inheritance::parse(text);

        let (web, old) = (&inheritance.services["web"], &inheritance.services["old"]);
        let manual = Manual { count: 5, since: Timestamp::from_millis(4_000), until: None };
        let paused_in = Some(Timestamp::from_millis(5_000));
        assert_eq!(web.orders, Orders { manual: Some(manual), paused_in, paused_out: None });
        assert_eq!(web.cooldowns.unwrap().pushed, Some(Timestamp::from_millis(8_000)));
        assert!(web.crash_loop.is_some() && web.desired == Some(5));
        let since = Timestamp::from_millis(9_000);
        assert_eq!(web.rollout, Some(RolloutReport { since, parallel: 2, replaced: 1, of: 5 }));
        assert_eq!(old.rollout, None);
        assert_eq!((old.orders, old.cooldowns, old.crash_loop.as_ref()), (Orders::default(), None, None));
    }

    #[test]
    fn what_services_have_left_is_told_apart() {
        let text = br#"{"services":[{"name":"web","control":{"generation":3,"record":{"evidence":{"cost":0.02}}}},{"name":"cache","control":{"generation":5}},{}]}"#;

        let mut inheritance = Inheritance::parse(text);
        inheritance.bequeath("web");

        let generations: Vec<(&str, u64)> =
            inheritance.services.iter().map(|(name, past)| (name.as_str(), past.generation)).collect();
        assert_eq!(generations, [("cache", 5), ("web", 3)]);
        let costs: Vec<Option<f64>> = inheritance.services.values().map(|past| past.connection_cost).collect();
        assert_eq!(costs, [None, Some(0.02)]);
    }
}
