//! What can be wrong with a configuration: what was given, why it cannot be, what a right one looks like.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use humantime::format_duration;

use super::{At, Family, MAX_BACKENDS_IN_ALL, MAX_BACKENDS_PER_FRONTEND, MAX_FRONTENDS, Publish};
use crate::health::{HealthCheck, HealthCheckError};

/// Why a configuration is none.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are named after what the messages show")]
pub enum ConfigError {
    // Frontends.
    /// The parts of a frontend are not where they should be.
    #[error(
        "publish {given:?} is not of the form [ADDR:]PORT:CONTAINER_PORT[/tcp|/udp]: write 80:5000, 192.0.2.1:80:5000, \
         [2001:db8::1]:80:5000 or 53:5353/udp"
    )]
    PublishSyntax { given: String },
    /// Nobody said what clients connect to.
    #[error("what clients connect to is not said: give --publish PORT:CONTAINER_PORT, such as --publish 80:5000")]
    NoPublish,
    /// A range of ports that ends before it begins.
    #[error("ports {given} are none: write the lower port first, such as 8000-8010")]
    RangeOrder { given: String },
    /// A range of ports that cannot be led to the containers' ports one by one.
    #[error(
        "publish {given:?} does not lead each port to one port: write as many container ports, such as \
         8000-8010:5000-5010, or one for all, such as 8000-8010:5000"
    )]
    RangeLength { given: String },
    /// A port is not a number.
    #[error("port {given:?} is not a number: write one from 1 to 65535, such as 80")]
    PortSyntax { given: String },
    /// A port is 0, or too large.
    #[error("port {given} does not exist: write one from 1 to 65535, such as 80")]
    PortRange { given: String },
    /// An address is a name, or nothing at all.
    #[error("{given:?} is not an address: write one such as 192.0.2.1 or [2001:db8::1], names are not resolved")]
    Address { given: String },
    /// Where an IPv6 address ends and a port begins cannot be told.
    #[error("{given:?} has an IPv6 address without brackets: write one such as [2001:db8::1]:80")]
    Brackets { given: String },
    /// A protocol is neither TCP nor UDP.
    #[error("protocol {given:?} is not balanced: write /tcp or /udp, or nothing for /tcp")]
    Protocol { given: String },
    /// An address cannot be the destination of a connection to this host.
    #[error("{address} is {kind} address, to which nobody connects: write an address of this host such as 192.0.2.1")]
    FrontendAddress { address: IpAddr, kind: AddressKind },
    /// Another machine cannot reply to an address.
    #[error(
        "{address} is {kind} address, to which no backend can reply: write an address of this host such as 192.0.2.1"
    )]
    SnatAddress { address: IpAddr, kind: AddressKind },
    /// Two addresses in place of one.
    #[error("snat has two addresses of {family}: backends know all clients of {family} by one")]
    DuplicateSnat { family: Family },
    /// No backend would see an address.
    #[error("snat {address} is of {family}, and no backend is: leave it out")]
    SnatWithoutBackend { address: IpAddr, family: Family },
    /// No backend has an address of the family of a frontend's clients.
    #[error(
        "publish {publish} is for clients of {family}, and no backend has an address of {family}: give one, or leave the \
         frontend out, as packets are not translated"
    )]
    FrontendWithoutBackend { publish: Publish, family: Family },
    /// Containers need a port.
    #[error("publish {publish} does not say on which port the containers listen: write {port}:CONTAINER_PORT, such as {port}:5000",
        port = publish.port)]
    ContainerPortMissing { publish: Publish },
    /// Static backends bring their ports.
    #[error(
        "publish {publish} has a container port, but the backends given by --backend bring their own: write {} and put \
         the port into --backend",
        publish.frontend()
    )]
    ContainerPortUnwanted { publish: Publish },
    /// Two frontends claim the same packets.
    #[error("publish {second} claims connections that {first} claims: {}", way_apart(*first, *second))]
    DuplicatePublish { first: Publish, second: Publish },
    /// There are too many frontends.
    #[error("{count} frontends are too many: at most {MAX_FRONTENDS}, or run another instance with --instance")]
    TooManyFrontends { count: usize },

    // Source.
    /// Nobody said where backends come from.
    #[error(
        "where the backends are is not said: give --image IMAGE for containers, or --backend IP:PORT for others, or --discover \
         for containers that others start"
    )]
    NoSource,
    /// Two sources.
    #[error("--image and --backend exclude each other: leave one out, or run another instance with --instance")]
    TwoSources,
    /// Containers of others, and backends besides.
    #[error(
        "--discover takes containers that others start, and {other} beside them would make it unclear what is scaled: leave one \
         out, or give each a service of its own"
    )]
    DiscoverNotAlone { other: &'static str },
    /// Something was said about containers that somebody else starts.
    #[error(
        "{} would have no effect, containers that others start are neither started, stopped nor scaled: leave it out, or use \
         --image",
        flags.join(", ")
    )]
    NeedsOwnContainers { flags: Vec<&'static str> },
    /// Something was said about containers, and there are none.
    #[error(
        "{} would have no effect, the backends given by --backend are not started, stopped or scaled: leave it out, or \
         use --image",
        flags.join(", ")
    )]
    NeedsImage { flags: Vec<&'static str> },

    // Static backends.
    /// A backend is not an address with a port.
    #[error(
        "backend {given:?} is not of the form IP:PORT[=WEIGHT]: write 10.0.0.2:5000, 10.0.0.2:5000=3 or \
         [2001:db8::2]:5000"
    )]
    BackendSyntax { given: String },
    /// A backend's address is none that a packet can be redirected to.
    #[error("backend {backend} is {kind} address: {}", kind.as_backend())]
    BackendAddress { backend: SocketAddr, kind: AddressKind },
    /// No frontend has clients of the family of a backend.
    #[error(
        "backend {backend} has an address of {family}, and every frontend is for the other: publish one without an \
         address or with one of {family}, as packets are not translated"
    )]
    BackendWithoutFrontend { backend: SocketAddr, family: Family },
    /// A backend is there twice.
    #[error(
        "backend {backend} is given twice: leave one out; with --scheduler weighted, {backend}=2 gets the share of two"
    )]
    DuplicateBackend { backend: SocketAddr },
    /// A backend is what clients connect to.
    #[error("backend {backend} is a frontend itself, connections would go in circles: give another address or port")]
    BackendIsFrontend { backend: SocketAddr },
    /// A weight that is none.
    #[error("weight {given:?} is no whole number from 1 to {most}: write one, or leave the backend out")]
    Weight { given: String, most: u32 },
    /// Weights, and a scheduler that knows none.
    #[error("weights have no effect with --scheduler round-robin: leave them out, or use --scheduler weighted")]
    WeightsUnused,
    /// Weights whose sum is greater than a frontend has slots.
    #[error(
        "the weights of the backends sum up to {sum} in lowest terms, and {room} have room with {frontends} frontends: \
         write smaller ones, or use --scheduler least-conn"
    )]
    WeightsTooGreat { sum: u64, room: u32, frontends: usize },
    /// More backends than the table of a scheduler that hashes has places.
    #[error(
        "a table of {room} places is too small for {count} backends, and is no greater with {frontends} frontends: use \
         fewer backends or frontends, or --scheduler least-conn"
    )]
    TableTooSmall { count: u64, room: u32, frontends: usize },
    /// There are too many backends.
    #[error("{count} backends are too many: at most {MAX_BACKENDS_PER_FRONTEND} for a frontend")]
    TooManyBackends { count: usize },

    // Scaling.
    /// No backends at least, where the law is asked alone.
    #[error("--min 0 is decided beside the law, by nobody coming: at least 1 here")]
    MinZero,
    /// No backends at most.
    #[error("--max 0 would leave nobody to answer: at least 1")]
    MaxZero,
    /// More at least than at most.
    #[error("--min {min} exceeds --max {max}{}: raise --max or lower --min", if *max_given { "" } else { " (the default)" })]
    MinOverMax { min: u32, max: u32, max_given: bool },
    /// A greater reserve than could ever serve.
    #[error("--warm {warm} exceeds --max {max}: no more can be wanted at once")]
    WarmOverMax { warm: u32, max: u32 },
    /// More containers than a frontend may have.
    #[error("--max {max} is too many: at most {MAX_BACKENDS_PER_FRONTEND} containers")]
    TooManyContainers { max: u32 },
    /// More backends than an instance may have.
    #[error(
        "{each} backends for each of {frontends} frontends are too many: at most {MAX_BACKENDS_IN_ALL} in all, lower the \
         number of backends or run another instance with --instance"
    )]
    TooManyInAll { each: u32, frontends: usize },
    /// More backends than an instance may have, in several services.
    #[error(
        "with this service there may be {sum} backends, each counted once for each of its frontends, which are two where one \
         serves IPv4 and IPv6: at most {MAX_BACKENDS_IN_ALL} in all, lower their number, publish at 0.0.0.0 for IPv4 alone, \
         or run another instance with --instance"
    )]
    TooManyInServices { sum: u64 },

    /// A metric that nobody knows.
    #[error(
        "there is no metric {given:?}: write arrivals, container-cpu, connections=100, latency=5ms, latency=5ms/300ms or \
         pressure=20; or host-cpu alone"
    )]
    Metric { given: String },
    /// Connections without a number.
    #[error("{given:?} does not say how many connections are enough for a container: write connections=100")]
    ConnectionsTarget { given: String },
    /// No time at all.
    #[error("a latency of nothing cannot be kept to: write latency=5ms")]
    LatencyZero,
    /// A time to an answer that is not told from longer ones.
    #[error("times to an answer beyond {most:?} are hardly told from each other: write latency=5ms/{most:?} at most")]
    ResponseTooLong { most: Duration },
    /// The time to an answer, where a metric is asked for.
    #[error("the time to an answer is the second half of latency: write latency=5ms/{target}")]
    ResponseAlone { target: String },
    /// A metric twice.
    #[error("metric {metric} is given twice: leave one out")]
    DuplicateMetric { metric: &'static str },
    /// Containers that are to be as good as full.
    #[error(
        "{metric} at {given} leaves no room to tell full containers from those that need others beside them: give at most \
         {most}; where the load of the whole host is meant, --metric host-cpu"
    )]
    CpuTargetTooHigh {
        /// Which metric.
        metric: &'static str,
        /// What it is to aim at.
        given: String,
        /// What it may aim at.
        most: f64,
        /// Whether it says so itself, instead of `--target-cpu`.
        is_own: bool,
    },
    /// The load of the host beside other metrics.
    #[error("host-cpu is a law of its own: leave it out, or leave the other metrics out")]
    HostCpuAlone,
    /// Metrics that ask for more only.
    #[error(
        "latency and pressure tell that there are too few, never that there are too many: give --metric arrivals, \
         container-cpu or connections=100, too"
    )]
    MetricsPushOnly,

    /// Something that is no setting of the law.
    #[error(
        "{given:?} cannot be supposed: write target-cpu=60, min=1, max=20, or one of the service's metrics with another \
         target, such as arrivals=60"
    )]
    Supposition { given: String },
    /// A metric that was not asked at the time.
    #[error("{metric} was not measured: it can be supposed of metrics alone that the service follows")]
    NotMeasured { metric: &'static str },
    /// A metric that a simulation cannot show.
    #[error(
        "host-cpu, latency and pressure are not simulated: give --metric arrivals, container-cpu or connections=100"
    )]
    NotSimulated,

    // Values.
    /// A service without a name.
    #[error("a service needs a name: write name = \"web\"")]
    NoServiceName,
    /// A name of a service that cannot be part of names of containers.
    #[error("service name {given:?} has to be 1 to 32 of a-z, 0-9, - and _, a letter or digit first: write web-1")]
    ServiceName { given: String },
    /// Two services of one name.
    #[error("service {given} is there twice: give one of them another name")]
    DuplicateService { given: String },
    /// Nothing to serve.
    #[error("there is no service: write [[service]], and below it name, publish, and image or backends")]
    NoService,
    /// A name of an instance that cannot be part of paths and names of containers.
    #[error("instance name {given:?} has to be 1 to 32 of a-z, 0-9, - and _, a letter or digit first: write web-1")]
    InstanceName { given: String },
    /// A percentage that is none, or outside its range.
    #[error("{given:?} is not a percentage above 0 and up to 100: write 80 or 80%")]
    Percent { given: String },
    /// A duration that cannot be read.
    #[error("{given:?} is not a duration ({problem}): write 500ms, 30s or 2m")]
    Duration { given: String, problem: String },
    /// A duration outside its range.
    #[error("{given} is out of range: write a duration from {} to {}", format_duration(*least), format_duration(*most))]
    DurationRange { given: String, least: Duration, most: Duration },
    /// A size that cannot be read.
    #[error("{given:?} is not a size: write bytes, or a whole number with k, m or g, such as 64m")]
    Size { given: String },
    /// A size that no container starts with, or that no machine has.
    #[error("{given} of memory is out of range: write at least 6m, Docker starts no container with less, such as 64m")]
    SizeRange { given: String },
    /// A number of processors that is none.
    #[error("{given:?} is not a number of processors: write 0.01 or more, such as 0.5 or 2")]
    Cpus { given: String },
    /// An environment variable without a value.
    #[error("environment variable {given:?} has no value: write KEY=VALUE, or KEY= for an empty one")]
    EnvSyntax { given: String },
    /// An environment variable without a name.
    #[error("environment variable {given:?} has no name before the =: write KEY=VALUE")]
    EnvName { given: String },
    /// A name that no interface can have.
    #[error("{given:?} cannot be an interface: write the name that `ip link` shows, such as eth0")]
    Interface { given: String },
    /// An interface is there twice.
    #[error("uplink {given} is given twice: leave one out")]
    DuplicateUplink { given: String },
    /// An image, network or the like without a name.
    #[error("an empty name is none: leave the option out, or write one such as {example}")]
    Empty { example: &'static str },
    /// A size of the flow table outside its range.
    #[error("{given:?} flows are out of range: write a number from {least} to {most}")]
    MaxFlows { given: String, least: u32, most: u32 },
    /// A lifetime that cannot be read.
    #[error("\"{given}\" is no lifetime: write STATE=DUR, such as established=4h; the states are {states}")]
    Lifetime { given: String, states: String },
    /// A network that cannot be read.
    #[error("{given:?} is no network: write one such as 192.0.2.0/24 or 2001:db8::/32, or an address")]
    Network { given: String },
    /// A network is in both lists.
    #[error("{network} is both allowed and denied: leave one out")]
    Contradiction { network: ipnet::IpNet },
    /// A rate of new connections that cannot be read.
    #[error(
        "{given:?} is no rate: write connections per second from 1 to {most}, such as 100, or 100/24 for a network"
    )]
    SourceRate { given: String, most: u32 },
    /// A state has two lifetimes.
    #[error("the lifetime of {state} is given twice: leave one out")]
    DuplicateLifetime { state: &'static str },

    // Health and datapath.
    /// A health check that cannot be read.
    #[error(transparent)]
    HealthCheck(#[from] HealthCheckError),
    /// A check that speaks TCP, and nobody who does.
    #[error(
        "health check {check} needs a TCP port, and every frontend is UDP: publish one with /tcp, or --health none"
    )]
    HealthNeedsTcp { check: HealthCheck },
    /// A statement about XDP, and no XDP.
    #[error("--complete-checksums speaks of XDP and has no effect with --hook tc: leave it out, or use --hook xdp")]
    ChecksumsWithoutXdp,
}

/// Why an address is not that of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// 0.0.0.0/8, ::.
    Unspecified,
    /// 127.0.0.0/8, ::1.
    Loopback,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 255.255.255.255.
    Broadcast,
    /// fe80::/10.
    LinkLocal,
    /// The rest of ::/32, above all ::ffff:0:0/96.
    Mapped,
}

impl AddressKind {
    /// Returns the kind of an address; `None` if a host can have it.
    pub fn of(address: IpAddr) -> Option<Self> {
        match address {
            _ if address.is_unspecified() => Some(Self::Unspecified),
            _ if address.is_loopback() => Some(Self::Loopback),
            _ if address.is_multicast() => Some(Self::Multicast),
            IpAddr::V4(address) if address.octets()[0] == 0 => Some(Self::Unspecified),
            IpAddr::V4(address) if address.is_broadcast() => Some(Self::Broadcast),
            IpAddr::V6(address) if address.is_unicast_link_local() => Some(Self::LinkLocal),
            IpAddr::V6(address) if address.segments()[..2] == [0, 0] => Some(Self::Mapped),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }

    /// Returns why a backend cannot have such an address, and what to do.
    fn as_backend(self) -> &'static str {
        match self {
            Self::Unspecified => "it names no host, write the backend's own such as 10.0.0.2:5000",
            Self::Loopback => {
                "a packet from outside cannot be redirected to the loopback, let the backend listen on an address of this \
                 host or of a network, such as 10.0.0.2:5000"
            }
            Self::Multicast | Self::Broadcast => {
                "a connection has one other end, write one host's such as 10.0.0.2:5000"
            }
            Self::LinkLocal => {
                "it means another host on every link, and routers send nothing there, write one that means the same host \
                 everywhere, such as [fd00::2]:5000"
            }
            Self::Mapped => "write the IPv4 address itself, such as 10.0.0.2:5000",
        }
    }
}

impl fmt::Display for AddressKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "an unspecified",
            Self::Loopback => "a loopback",
            Self::Multicast => "a multicast",
            Self::Broadcast => "a broadcast",
            Self::LinkLocal => "a link-local",
            Self::Mapped => "an IPv4-in-IPv6",
        })
    }
}

/// Says how two frontends are told apart. One without an address may well be meant for the family that the other is not of.
fn way_apart(first: Publish, second: Publish) -> String {
    let other = "give one of them another port or address";
    let of_both = match (first.at, second.at) {
        (At::EveryOfBoth, At::Every(_) | At::One(_)) => (first, second),
        (At::Every(_) | At::One(_), At::EveryOfBoth) => (second, first),
        (At::EveryOfBoth, At::EveryOfBoth) | (At::Every(_) | At::One(_), At::Every(_) | At::One(_)) => {
            return other.to_owned();
        }
    };
    let (wide, narrow) = of_both;
    let family = match narrow.family() {
        Some(Family::V4) => Family::V6,
        Some(Family::V6) | None => Family::V4,
    };
    let apart = Publish { at: At::Every(family), ..wide };
    let address = if family == Family::V4 { "0.0.0.0:" } else { "" };
    format!("write {address}{apart} for {family} alone, or {other}")
}
