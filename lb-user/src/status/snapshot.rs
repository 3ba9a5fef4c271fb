//! An instance as `status` shows it: the stable JSON document, field by field.
//!
//! The document of schema 1 is a [`Snapshot`] with two members in front, `schema` and `health`
//! ([`Snapshot::json`](super::Snapshot::json)). Members are added without a change of schema; none is renamed, removed
//! or given another meaning. All counters count from the first start of the instance, over restarts of the agent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Guard;

/// Version of the document's shape.
pub const SCHEMA: u32 = 1;

/// An instance at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The instance's name.
    pub instance: String,
    /// When the snapshot was taken, in seconds of Unix time.
    pub taken_unix: u64,
    /// The process that scales and checks.
    pub agent: Agent,
    /// Where in the kernel the instance is attached.
    pub hooks: Vec<HookPoint>,
    /// The load that scaling follows.
    pub cpu: Cpu,
    /// How many backends there are and should be, in all services.
    pub scaling: Scaling,
    /// What is served, in the order of the configuration; services that were removed from it come last, until they are
    /// drained.
    #[serde(default)]
    pub services: Vec<Service>,
    /// What clients connect to, in the order in which it was first served.
    pub frontends: Vec<Frontend>,
    /// Packets that were not simply forwarded, by reason.
    pub verdicts: Verdicts,
    /// The connections that the kernel keeps in mind.
    pub flows: Flows,
    /// What was decided last, in all services, oldest first.
    pub decisions: Vec<Decision>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
}

/// The process that scales and checks. Without it the kernel goes on balancing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Whether the process exists.
    pub alive: bool,
    /// Its process id, also that of one that is gone.
    pub pid: u32,
    /// The age of its last sign of life, in milliseconds.
    pub heartbeat_age_ms: u64,
    /// The time between two signs of life, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// Its version, such as `0.1.0`.
    pub version: String,
    /// When it started, in seconds of Unix time.
    pub started_unix: u64,
    /// When the first agent of the instance started: from then on, everything is counted.
    pub first_started_unix: u64,
    /// What it is about.
    pub phase: Phase,
}

/// What the agent is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It takes over what is there, or starts the first backends.
    Starting,
    /// It serves.
    Running,
    /// It drains and removes everything.
    Stopping,
}

/// One place in the kernel where a program is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPoint {
    /// Which hook.
    pub hook: HookKind,
    /// The interface; null for `connect`, which has none.
    pub interface: Option<String>,
    /// How the program is attached.
    pub attach: Attach,
}

/// A hook at which clients' connections are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookKind {
    /// TC ingress of an uplink.
    Tc,
    /// XDP in the driver of an uplink.
    Xdp,
    /// XDP behind the driver of an uplink.
    XdpGeneric,
    /// connect(2) and its kin, for clients on this host.
    Connect,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attach {
    /// A TCX link.
    Tcx,
    /// A filter on a clsact queueing discipline.
    Clsact,
    /// An XDP link.
    XdpLink,
    /// A link to a control group.
    CgroupLink,
}

/// The load that scaling follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// The CPU load of the host at the last sign of life, 0 to 100; null while it is not known.
    pub load_percent: Option<f64>,
}

/// Frontends, and the backends that answer behind them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name; that of the command line's only service is the instance's.
    pub name: String,
    /// What it is about: `stopping` if it was removed from the configuration.
    pub phase: Phase,
    /// How many backends it has and should have.
    pub scaling: Scaling,
    /// The names of its frontends.
    pub frontends: Vec<String>,
}

/// How many backends there are and should be. A backend of several frontends counts once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// The fewest; null with static backends, and for several services some of which have static ones.
    pub min: Option<u32>,
    /// The most; null where `min` is.
    pub max: Option<u32>,
    /// How many are wanted; with static backends all of them.
    pub desired: u32,
    /// How many are in rotation.
    pub ready: u32,
    /// How many are started and have not passed a health check.
    pub starting: u32,
    /// How many are out of rotation and finish their connections.
    pub draining: u32,
    /// How many fail their health checks.
    pub unhealthy: u32,
    /// How many sleep in rotation until somebody comes.
    #[serde(default)]
    pub idle: u32,
    /// How many are kept frozen beside those that serve.
    #[serde(default)]
    pub warm: u32,
    /// The CPU load of the host at which `max` are wanted, above 0 to 100; null where that is not what is followed, and for
    /// several services together.
    pub target_cpu_percent: Option<f64>,
    /// What the number follows, for people: `arrivals (70 %) and container-cpu (70 %)`; null with static backends, and for
    /// several services together.
    #[serde(default)]
    pub metrics: Option<String>,
    /// Why the number does not change, for people; null while it does, and for several services together.
    pub standing: Option<String>,
    /// What scaling by demand is about: `steady`, `scaling-up`, `burst`, `holding`, `scaling-down`, `host-saturated`, `at-max`
    /// (more are wanted than `max`) or `degraded`; null where nothing was decided by demand, and for several services
    /// together.
    #[serde(default)]
    pub mood: Option<String>,
    /// How many were asked for by hand, in place of what is followed; null if nobody did, and for several services together.
    #[serde(default)]
    pub manual: Option<Manual>,
    /// Whether no fewer are wanted, whatever is followed says; of several services, whether that is so of any.
    #[serde(default)]
    pub paused_in: bool,
    /// The same of more.
    #[serde(default)]
    pub paused_out: bool,
    /// How far the replacement of containers of former settings is; null if none is under way, and for several services
    /// together.
    #[serde(default)]
    pub rollout: Option<Rollout>,
}

/// A count that was asked for by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manual {
    /// How many.
    pub count: u32,
    /// How long ago, in milliseconds.
    pub age_ms: u64,
    /// For how much longer, in milliseconds; null if until somebody says otherwise.
    pub left_ms: Option<u64>,
}

/// Containers of former settings, or of a former image, are being replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// How many have been.
    pub replaced: u32,
    /// How many there are in all, those included.
    pub of: u32,
    /// How many are replaced at a time.
    pub parallel: u32,
}

/// What clients connect to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frontend {
    /// The name of the service that answers.
    #[serde(default)]
    pub service: String,
    /// Its name: port and protocol, in front of them the address if it has one of its own: `80/tcp`.
    pub name: String,
    /// The addresses on which it answers, `ADDRESS:PORT`.
    pub addresses: Vec<String>,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// How a connection's backend is chosen: `round-robin`, `weighted`, `least-conn`, `random-two`, `source-hash` or
    /// `maglev`.
    pub scheduler: String,
    /// For how long after its last connection began a client keeps its backend, in milliseconds; null if not at all.
    #[serde(default)]
    pub affinity_ms: Option<u32>,
    /// How many connections of each backend may be under way; null if any number. A new one for which no backend has room is
    /// dropped, counted as `backends_full`.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// The hooks that lead to it.
    pub hooks: Vec<HookPoint>,
    /// Who may begin connections to it.
    pub guard: Guard,
    /// Connections begun, by packets and by sockets of this host, those of removed backends included.
    pub connections_total: u64,
    /// Those of them begun by sockets of this host; their packets pass the counters by.
    pub local_connections_total: u64,
    /// Connections under way.
    pub connections_active: u64,
    /// From clients.
    pub ingress: Traffic,
    /// To clients.
    pub egress: Traffic,
    /// Its backends, oldest first.
    pub backends: Vec<Backend>,
}

/// Packets in one direction. Those of connections from this host are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets as the kernel saw them: segments that were merged on reception are one packet.
    pub packets: u64,
    /// Bytes of those, link header included.
    pub bytes: u64,
}

/// What answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// The container's name; the address of a static backend.
    pub name: String,
    /// The container's full id; null for a static backend.
    pub container_id: Option<String>,
    /// Where it listens, `ADDRESS:PORT`; null until it has an address.
    pub address: Option<String>,
    /// What it is in.
    pub state: BackendState,
    /// Whether it gets new connections: it holds a slot in the kernel's map.
    pub slot: bool,
    /// Its weight beside the others'; of no effect with `round-robin`.
    #[serde(default = "one")]
    pub weight: u32,
    /// How much of its share of new connections it gets while it starts slowly, 10 to 90; null if all of it.
    #[serde(default)]
    pub slow_start_percent: Option<u32>,
    /// How packets get to it; null until it is known.
    pub reach: Option<Reach>,
    /// The interface by which packets leave for it; null where the kernel's routing decides, or none
    /// do.
    pub interface: Option<String>,
    /// Connections under way.
    pub connections_active: u64,
    /// Connections begun, by packets and by sockets of this host.
    pub connections_total: u64,
    /// Those of them begun by sockets of this host; their packets pass the counters by.
    pub local_connections_total: u64,
    /// From clients.
    pub ingress: Traffic,
    /// To clients.
    pub egress: Traffic,
    /// How it answers new connections of TCP, as packets show it: those of sockets of this host are not seen.
    pub handshakes: Handshakes,
    /// How soon it answers what they ask for first, as packets show it: sockets of this host as there. Nothing of a connection
    /// in which the server alone speaks, or speaks before it has received anything.
    #[serde(default)]
    pub responses: Responses,
    /// The share of the host's CPU that it uses, 0 to 100; null where nobody measures it.
    pub cpu_percent: Option<f64>,
    /// Why its last health check failed, or it could not be started; null while all is well.
    pub last_error: Option<String>,
}

fn one() -> u32 {
    1
}

/// How soon a backend answers the first request of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Responses {
    /// Connections whose first request was answered.
    pub count: u64,
    /// The time from the first byte of the request to the first of the answer that half of them did not exceed, in
    /// microseconds, rounded up to a power of two; null without any.
    pub p50_us: Option<u64>,
    /// The same for 99 of a hundred.
    pub p99_us: Option<u64>,
    /// All of them by that time, as in `handshakes`.
    pub latency_log2_us: Vec<u64>,
}

/// How a backend answers new connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshakes {
    /// SYNs answered by SYN-ACK.
    pub accepted: u64,
    /// The time from SYN to SYN-ACK that half of them did not exceed, in microseconds, rounded up to a power of two; null
    /// without any.
    pub p50_us: Option<u64>,
    /// The same for 99 of a hundred.
    pub p99_us: Option<u64>,
    /// All of them by that time: the first number counts those below 2 microseconds, each further one those up to twice as
    /// long, the last all above.
    pub latency_log2_us: Vec<u64>,
    /// SYNs answered by RST.
    pub refused: u64,
    /// SYNs repeated by their clients, as nothing had answered them.
    pub retransmitted: u64,
    /// Connections whose client has repeated its SYN and waits right now.
    pub waiting: u64,
    /// Connections that it accepted and reset.
    pub reset: u64,
}

/// What a backend is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// Started, and no health check passed.
    Starting,
    /// In rotation.
    Ready,
    /// In rotation, and frozen: thawed when somebody comes.
    Idle,
    /// Kept frozen, to be thawed and come into rotation when more are wanted.
    Warm,
    /// Out of rotation, finishing its connections.
    Draining,
    /// Out of rotation, failing its health checks.
    Unhealthy,
    /// Not running.
    Stopped,
}

/// How packets get to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Redirected into the namespace behind a veth.
    Veth,
    /// Redirected out of an interface, to a neighbour that the kernel finds.
    Neighbour,
    /// Handed to the kernel's routing and firewall.
    Routed,
    /// Handed to the stack of this host, whose server it is.
    Local,
}

/// Packets that were not simply forwarded, by reason. The reasons' names are stable; those that never occurred may be
/// absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Packets left to the host, by reason.
    pub passes: BTreeMap<String, u64>,
    /// Packets ended, by reason.
    pub drops: BTreeMap<String, u64>,
    /// What else was counted, by name.
    pub events: BTreeMap<String, u64>,
}

/// The connections that the kernel keeps in mind, in all frontends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// TCP connections of clients that have proven to be real.
    pub established: u64,
    /// TCP connections begun and not proven.
    pub half_open: u64,
    /// UDP flows.
    pub datagrams: u64,
    /// Connections of sockets of this host.
    pub local: u64,
    /// How many established ones there is room for.
    pub capacity: u64,
}

/// Something that the agent decided or took note of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The service that it is about.
    #[serde(default)]
    pub service: String,
    /// How long ago, in milliseconds; where it was repeated, the last time.
    pub age_ms: u64,
    /// What kind, in snake case: `scale_up`.
    pub kind: String,
    /// How many backends were wanted before.
    pub from: u32,
    /// How many backends are wanted since.
    pub to: u32,
    /// The CPU load known then, 0 to 100; null if none was.
    pub load_percent: Option<f64>,
    /// Why, for people.
    pub reason: String,
    /// How many times in a row the same was decided for the same reason.
    pub times: u32,
}
