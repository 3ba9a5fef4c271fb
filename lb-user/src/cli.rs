//! The command line: what can be said, and how it is answered where it cannot.
//!
//! `main` takes three steps: [`parse`] (which prints help, version and mistakes, and returns the exit code),
//! [`Cli::start_log`], and for `run` [`RunArgs::resolve`]. Flags are keys of a file, too ([`file`]): what is said to a
//! [`ServiceArgs`] or an [`InstanceArgs`] in either way is read by the definition here, and checked together
//! ([`Draft::check`]). So a flag that is added here is a key by that alone.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    net::IpAddr,
    num::NonZeroU32,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{ArgAction, Args, Command, CommandFactory, FromArgMatches as _, Id, Parser, Subcommand, error::ErrorKind};
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use crate::{
    config::{
        ConfigError, Cpus, EnvVar, Hook, InstanceName, Lifetime, MemorySize, MetricChoice, OnChangeChoice, Percent,
        PublishRange, Reload, RunConfig, Scheduler, SourceRate, StaticBackend, SynCookies, TcAttach, guard, publish,
        snat,
        suppose::Supposition,
        value::{self, parse_duration},
    },
    doctor,
    health::HealthCheck,
    status::Exit,
    watchdog,
};

mod check;
pub mod file;
mod operate;
mod simulate;

pub use check::{Draft, Fault, Spot};
pub use operate::{EventsArgs, PauseArgs, RolloutArgs, ScaleArgs};
pub use simulate::SimulateArgs;

/// The environment variable that says what is logged, in the syntax of tracing's `EnvFilter`.
pub const LOG_VARIABLE: &str = "LB_LOG";

const ABOUT: &str = "Balances connections over containers in the kernel, and scales them by demand";

const AFTER_HELP: &str = "\
Environment:
  LB_LOG       What is logged, instead of --verbose: debug, or
               lb_user::datapath=trace,warn
  DOCKER_HOST  Where the container engine listens
               [default: unix:///var/run/docker.sock]
  NO_COLOR     No colours, if it is set and not empty

Exit codes:
  0   done; for status: healthy; for check: nothing is missing
  1   it did not work; for status: degraded; for check: something is missing
  2   for status and explain, and what speaks to an agent: not running
  64  the command line, or the file of services, makes no sense";

const RUN_EXAMPLES: &str = "\
Examples:
  Port 80 of this host, answered on port 5000 by 2 to 10 containers:
    lb-user run --image lb-api --publish 80:5000

  The same on one address, with a check of the service itself and small containers:
    lb-user run --image lb-api --publish 192.0.2.1:80:5000 \\
      --health http:/healthz --cpus 0.5 --memory 64m

  Up to 20 containers of one processor, each used to 60 %, or 500 connections each:
    lb-user run --image lb-api --publish 80:5000 --max 20 --cpus 1 \\
      --target-cpu 60 --metric arrivals --metric container-cpu --metric connections=500

  Servers that somebody else runs, without Docker:
    lb-user run --backend 10.0.0.2:5000 --backend 10.0.0.3:5000 --publish 80

  Containers that somebody else starts: docker run --label lb.enable=true --label lb.port=5000 …
    lb-user run --discover --publish 80

  Servers of two weights, the first with three times the connections of the second:
    lb-user run --backend 10.0.0.2:5000=3 --backend 10.0.0.3:5000 --publish 80 \\
      --scheduler least-conn

  What that would do, without doing it:
    lb-user run --image lb-api --publish 80:5000 --dry-run

  A second instance beside the first:
    lb-user run --instance dns --image resolver \\
      --publish 53:5353/udp --publish 53:5353/tcp

  Many services in one agent: lb-user run --config services.toml
    [[service]]
    name = \"web\"
    image = \"lb-api\"
    publish = [\"80:5000\", \"8000-8010:5000\"]
    max = 20

    [[service]]
    name = \"cache\"
    publish = \"6379\"
    backends = [\"10.0.0.2:6379\", \"10.0.0.3:6379\"]

  Keys are the flags without dashes; backends, metrics and uplinks are plurals, as
  they are lists. What holds for the whole agent (instance, uplinks, hook, interval, keep …)
  stands above the first [[service]]. `lb-user check --file-only` looks for mistakes
  without root, and `lb-user check` for what this machine lacks; on SIGHUP the file is
  read again, and what did not change is not touched.";

const CHECK_ABOUT: &str = "\
Tell what this machine can do, what it lacks, and what mends it; changes nothing

Looks at the kernel, at what it says to the programs, at interfaces and what is attached
there, at Docker, at backends, and at instances that run. Without --config, by what any
instance needs; with it, after the file's mistakes, by what that file needs. The flags of
`run` can be said, too, instead of a file. What only root sees is told as not looked at.";

const CHECK_EXAMPLES: &str = "\
Examples:
  Before the first run, or when something does not work:
    sudo lb-user check

  The same, held against what is to be run:
    sudo lb-user check --config services.toml
    sudo lb-user check --image lb-api --publish 80:5000 --hook xdp --uplink eth0

  Mistakes of a file alone, anywhere, without root:
    lb-user check --file-only --config services.toml && systemctl reload lb-user

  What it says, here of a machine whose uplink carries less than Docker's network:
    kernel
      ok       programs         all 16 pass the verifier
      ok       TC               TCX, by links: they outlive the agent, and are replaced without a gap
      …
    clients
      ok       eth0             device with a driver: IPv4, IPv6; TC; MTU 1400; its driver could run XDP
      note     MTU              eth0 has 1400, docker0 has 1500
                                what is too big for the smaller one is answered with …
                                make networks of containers as small as the uplink:
                                  docker network create -o com.docker.network.driver.mtu=1400 NAME
      …
    nothing is missing: lb-user run would start

  For machines:
    lb-user check --json | jq '.findings[] | select(.level == \"error\") | .found'

Exit codes:
  0   nothing is missing that `run` needs (there may be warnings)
  1   something is missing, or the file cannot be read
  64  the command line, or the file of services, makes no sense";

const STATUS_EXAMPLES: &str = "\
Examples:
  lb-user status
  lb-user status --instance dns --json \\
      | jq '.frontends[].backends[] | {name, state}'";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  lb-user explain
  lb-user explain web --if target-cpu=60 --if max=20
  lb-user explain web --json | jq .record.verdict.wishes";

const DETACH_EXAMPLES: &str = "\
Examples:
  What a crash left of the default instance, containers included:
    lb-user detach --containers";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "lb-user", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,

    /// Log more: once for debugging, twice for tracing; to standard error
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 900)]
    pub verbose: u8,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Balance, until SIGINT or SIGTERM
    #[command(after_long_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Tell what this machine can do, what it lacks, and what mends it; changes nothing
    #[command(long_about = CHECK_ABOUT, after_long_help = CHECK_EXAMPLES)]
    Check(Box<CheckArgs>),
    /// Show an instance; exit code 0 healthy, 1 degraded, 2 not running
    #[command(after_long_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Tell why there are as many containers as there are, and what another law would have decided
    #[command(after_long_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),
    /// Have so many containers, whatever demand is; or follow demand again
    #[command(after_long_help = operate::SCALE_EXAMPLES)]
    Scale(ScaleArgs),
    /// Do not let demand change the number of containers, in one direction or both
    #[command(after_long_help = operate::PAUSE_EXAMPLES)]
    Pause(PauseArgs),
    /// Let demand change the number of containers again
    #[command(after_long_help = operate::PAUSE_EXAMPLES)]
    Resume(PauseArgs),
    /// Replace containers of former settings or of a former image, new ones first
    #[command(after_long_help = operate::ROLLOUT_EXAMPLES)]
    Rollout(RolloutArgs),
    /// Show what was decided and what has happened, and follow it
    #[command(after_long_help = operate::EVENTS_EXAMPLES)]
    Events(EventsArgs),
    /// Try the scaling law on a trace of connections, beside the rules of other autoscalers; without root
    #[command(after_long_help = simulate::EXAMPLES)]
    Simulate(Box<SimulateArgs>),
    /// Remove an instance from the kernel, whatever state a crash left
    #[command(after_long_help = DETACH_EXAMPLES)]
    Detach(DetachArgs),
    /// Thaw what sleeps when the agent that started this has ended
    #[command(name = watchdog::VERB, hide = true)]
    Watchdog,
}

/// What can be said to `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The only service, where there is no file.
    #[command(flatten)]
    pub service: ServiceArgs,

    /// Serve what this TOML file says, instead of what flags say; read again on SIGHUP
    ///
    /// See the last of the examples. What did not change since is not touched by SIGHUP; a file with mistakes changes
    /// nothing at all, and `status` shows them.
    #[arg(long, value_name = "FILE", conflicts_with_all = flags_of_a_file(), help_heading = FRONTENDS)]
    pub config: Option<PathBuf>,

    /// What holds for all services.
    #[command(flatten)]
    pub instance: InstanceArgs,

    /// Look at everything that a run looks at, tell what it would do, and do nothing
    ///
    /// The engine is asked for image, network and containers, the kernel verifies the programs; nothing is attached, started,
    /// stopped or removed. Exit code 1 if a run would be refused, as where the instance runs already. What the law would do
    /// over time is told by `simulate`, and by `explain --if` of one that runs.
    #[arg(long)]
    pub dry_run: bool,
}

/// Returns the flags that are keys of a file.
fn flags_of_a_file() -> Vec<Id> {
    let flags = InstanceArgs::augment_args(ServiceArgs::augment_args(Command::new("")));
    flags.get_arguments().map(|flag| flag.get_id().clone()).collect()
}

/// What can be said of a service. What concerns several options at once is checked by [`Draft::check`].
#[derive(Clone, Debug, PartialEq, Args)]
pub struct ServiceArgs {
    /// Balance [ADDR:]PORT over CONTAINER_PORT of the containers; may be repeated
    ///
    /// Without ADDR: every local address of the uplinks and their VLANs, and the loopback for clients on this host; of
    /// IPv4 and of IPv6, as far as backends have such addresses: then it is two frontends, and each backend counts in
    /// both. 0.0.0.0 and [::] are one of the two; an IPv6 address stands in brackets. Which families the network of
    /// containers has is asked when the agent starts, and on SIGHUP if settings of the containers have changed.
    /// Without a protocol: tcp. With --backend there is no CONTAINER_PORT. Ports may be ranges: 8000-8010:5000-5010, or
    /// 8000-8010:5000.
    #[arg(long, value_name = "[ADDR:]PORT:CONTAINER_PORT[/tcp|/udp]", help_heading = FRONTENDS)]
    pub publish: Vec<PublishRange>,

    /// Start containers of this image, as many as the load needs
    #[arg(long, value_name = "IMAGE", value_parser = value::parse_image, help_heading = FRONTENDS)]
    pub image: Option<String>,

    /// Balance over this server instead of containers, with this weight, 1 to 256, beside the others; may be repeated
    ///
    /// Somebody else runs it, behind a veth in another network namespace, anywhere that this host routes to, or on this
    /// host itself, as with --network host: then IP is one of its addresses, but no loopback one. An IPv6 address stands in
    /// brackets: [2001:db8::2]:5000; clients of IPv6 are led to such backends alone. The number of backends is fixed then,
    /// and options about containers and scaling are refused.
    #[arg(long, value_name = "IP:PORT[=WEIGHT]", value_parser = publish::parse_backend, help_heading = FRONTENDS)]
    pub backend: Vec<StaticBackend>,

    /// Balance over containers that others start and label lb.enable=true; none of them is ever started or stopped
    ///
    /// One comes as Docker tells of its start, and gets connections once it passes its checks; it is out of rotation as soon
    /// as it is asked to end. Labels: lb.service=NAME, where several services take such containers; lb.port=PORT, instead of
    /// CONTAINER_PORT, or of the only port that it exposes; lb.weight=1 to 256; lb.network=NET, where it is on several;
    /// lb.instance=NAME. One whose labels are wrong is left out, and `status` tells why. CONTAINER_PORT may be left out. Of
    /// the options about containers and scaling, only --max and --network have a meaning.
    #[arg(long, help_heading = FRONTENDS)]
    pub discover: bool,

    /// Let backends know clients by this address of this host, not by their own; once for each family
    ///
    /// Replies come back here from anywhere then: from other machines of the network, from containers on macvlan. Without
    /// it, backends have to reply through this host, as containers on a bridge do. At most 31744 connections at a time to
    /// each backend, and some 300 new ones a second; half-open ones count, and no SYN cookies spare them.
    #[arg(long, value_name = "ADDR", value_parser = snat::parse_snat, help_heading = FRONTENDS)]
    pub snat: Vec<IpAddr>,

    /// Let only clients of this NETWORK begin connections; may be repeated
    ///
    /// NETWORK is 192.0.2.0/24, 2001:db8::/32 or one address. Packets of others are dropped and counted; connections that
    /// are there go on; clients on this host are not asked.
    #[arg(long, value_name = "NETWORK", value_parser = guard::parse_network, help_heading = GUARD)]
    pub allow: Vec<IpNet>,

    /// Let no client of this NETWORK begin connections; may be repeated
    ///
    /// Of several networks that hold an address, allowed or denied, the smallest counts.
    #[arg(long, value_name = "NETWORK", value_parser = guard::parse_network, help_heading = GUARD)]
    pub deny: Vec<IpNet>,

    /// Let a client begin so many connections in a second; with /BITS, all of its IPv4 network together
    ///
    /// Of each frontend, and as many at once as in a second, at least 10. Of IPv6, all of a /64 together. What is beyond
    /// is dropped and counted: TCP tries again.
    #[arg(long, value_name = "RATE[/BITS]", help_heading = GUARD)]
    pub source_rate: Option<SourceRate>,

    /// Whether the SYNs of a flood are answered here, without an entry in any table
    ///
    /// By SYN cookies of the container's own kernel, as soon as its listener has no room for more; it has to allow them
    /// (net.ipv4.tcp_syncookies is 1, as is the default). Counted as `cookie_issued`, `cookie_accepted`, `cookie_refused`.
    /// Only for backends behind a veth of this host, or on it, without --snat; 32 in a second for each address, beyond which
    /// SYNs are dropped, and come again.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = SynCookies::Auto, help_heading = GUARD)]
    pub syn_cookies: SynCookies,

    /// How the backend of a connection is chosen
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Scheduler::RoundRobin, help_heading = SCHEDULING)]
    pub scheduler: Scheduler,

    /// Time after its last connection began for which a client's next goes to the same backend, 1s to 1day
    ///
    /// Clients are told apart by their addresses; all processes on this host are one. A backend that is out of rotation, or
    /// full, is kept by nobody.
    #[arg(long, value_name = "DUR", value_parser = value::parse_memory, help_heading = SCHEDULING)]
    pub affinity: Option<Duration>,

    /// Most connections of each backend, at each frontend of each family, that may be under way [default: any number]
    ///
    /// A backend that has so many is passed over by every scheduler, and by clients that keep it. Where all are full, what
    /// begins a connection is dropped and counted: TCP tries again, and gets in as others end. TCP counts from the end of its
    /// handshake, so that forged SYNs keep nobody out, and as many too many may begin as are within one. UDP flows count
    /// until they idle out. A process on this host is told EPERM.
    #[arg(long, value_name = "N", help_heading = SCHEDULING)]
    pub max_connections: Option<NonZeroU32>,

    /// Time in which a backend that has just become ready is given more and more connections, 1s to 1day
    ///
    /// It begins with a tenth of its share, or with more where another would get twice an equal share, and gets all of it at
    /// the end.
    #[arg(long, value_name = "DUR", value_parser = value::parse_memory, help_heading = SCHEDULING)]
    pub slow_start: Option<Duration>,

    /// Fewest containers; with 0, the last one is frozen while nobody comes, and thawed by the first who does [default: 2]
    ///
    /// It is frozen when no connection has begun for the scale-down window and none is under way, through its control group; its
    /// kernel goes on accepting connections, and none is lost up to the backlog of its listener. Its memory stays in use.
    #[arg(long, value_name = "N", help_heading = SCALING)]
    pub min: Option<u32>,

    /// Most containers [default: 10]
    ///
    /// With --discover: how many are taken of those that others start, by default 64.
    #[arg(long, value_name = "N", help_heading = SCALING)]
    pub max: Option<u32>,

    /// Containers that are kept frozen beside those that serve, to be thawed where more are wanted [default: 0]
    ///
    /// One that is thawed serves within milliseconds; others are started behind it. They use memory, and no CPU.
    #[arg(long, value_name = "N", help_heading = SCALING)]
    pub warm: Option<u32>,

    /// Scale by this; may be repeated [default: arrivals and container-cpu]
    ///
    /// container-cpu[=PCT]: the CPU that the containers use, of their --cpus or else of the host divided by --max.
    /// A program of one thread never uses more than one processor: where that share is larger, it needs --cpus.
    /// arrivals[=PCT]: new connections a second times the CPU that one costs, as learned: more is asked for before it is
    /// missing. connections=N: live connections, N for each container. latency[=DUR[/DUR]]: more while SYN-ACKs take
    /// longer [5ms], or first bytes of answers to the first requests of connections longer than the second [none];
    /// pressure[=PCT]: more while tasks wait for a processor [20]; both only ask for more, and hold; with control groups of
    /// version 1, pressure is the whole host's.
    /// The largest wish counts; for fewer, all have to agree. But for that pressure and host-cpu, what others use of the
    /// host is never answered.
    /// host-cpu[=PCT] alone: the share of --max that the load of the whole host is of PCT [100].
    #[arg(long, value_name = "NAME[=TARGET]", help_heading = SCALING)]
    pub metric: Vec<MetricChoice>,

    /// CPU, in percent, that a container is to use of what it may [default: 70]
    ///
    /// It is what metrics of CPU aim at that say nothing else: at most 85, as a container at its limit shows no more than
    /// 100. With --metric host-cpu: the CPU load of the host at which
    /// --max are wanted, by default 100: one container for every 10 %.
    #[arg(long, value_name = "PCT", help_heading = SCALING)]
    pub target_cpu: Option<Percent>,

    /// Time whose mean asks for more containers; a burst does not wait for it [default: 45s]
    ///
    /// With --metric host-cpu: time that more have to be wanted, by default 3s.
    #[arg(long, value_name = "DUR", value_parser = parse_duration, help_heading = SCALING)]
    pub scale_up_window: Option<Duration>,

    /// Time that fewer containers have to be enough before one is drained [default: 2m]
    ///
    /// After a burst half of it has to pass, and where nobody is left all at once, two and a half times: that is an outage
    /// more often than not. With --metric host-cpu: by default 30s.
    #[arg(long, value_name = "DUR", value_parser = parse_duration, help_heading = SCALING)]
    pub scale_down_window: Option<Duration>,

    /// What makes a backend healthy: it accepts a connection, answers GET PATH with 200 to 399, or just runs
    /// [default: tcp, or none if every frontend is UDP]
    ///
    /// A container is asked at its address of each family that is published: by tcp at all ports, by http at one. It gets
    /// clients of those families in which it passes.
    #[arg(long, value_name = "tcp|http:PATH|none", help_heading = HEALTH)]
    pub health: Option<HealthCheck>,

    /// Time between two health checks of a backend, at least 100ms
    #[arg(long, value_name = "DUR", value_parser = value::parse_health_interval, default_value = "2s", help_heading = HEALTH)]
    pub health_interval: Duration,

    /// Time that a backend out of rotation may keep its connections before it is stopped
    #[arg(long, value_name = "DUR", value_parser = parse_duration, default_value = "30s", help_heading = HEALTH)]
    pub drain_timeout: Duration,

    /// Time between SIGTERM and SIGKILL when a container is stopped [default: 10s]
    #[arg(long, value_name = "DUR", value_parser = parse_duration, help_heading = HEALTH)]
    pub stop_grace: Option<Duration>,

    /// Processors that one container may use, such as 0.5 [default: all]
    #[arg(long, value_name = "X", help_heading = CONTAINERS)]
    pub cpus: Option<Cpus>,

    /// Memory that one container may use, in bytes or with k, m, g (binary), such as 64m [default: all]
    #[arg(long, value_name = "SIZE", help_heading = CONTAINERS)]
    pub memory: Option<MemorySize>,

    /// Environment variable of the containers; may be repeated
    #[arg(long, value_name = "K=V", help_heading = CONTAINERS)]
    pub env: Vec<EnvVar>,

    /// What becomes of containers that were started with other settings, or of another image under the same name
    /// [default: keep]
    ///
    /// A rollout starts one more than there are wanted, even than --max, and drains an old one when that is ready, until none
    /// is left. One that is not ready within 30s, ends or fails ends the rollout: the old ones stay, and `status` tells why.
    #[arg(long, value_name = "WHAT", value_enum, help_heading = CONTAINERS)]
    pub on_change: Option<OnChangeChoice>,

    /// Network that the containers join [default: the engine's]
    ///
    /// With --discover: the one by which those are reached that are on several and name none.
    #[arg(long, value_name = "NET", value_parser = value::parse_network, help_heading = CONTAINERS)]
    pub network: Option<String>,
}

/// What can be said of the whole instance. What concerns several options at once is checked by [`Draft::check`].
#[derive(Clone, Debug, Args)]
pub struct InstanceArgs {
    /// Name of this instance, part of pins, labels and names of containers
    ///
    /// 1 to 32 of a-z, 0-9, - and _. Instances with different names run side by side.
    #[arg(long, value_name = "NAME", default_value = InstanceName::DEFAULT, help_heading = FRONTENDS)]
    pub instance: InstanceName,

    /// Time between two samples of the CPU load, at least 200ms
    ///
    /// Where arrivals are a metric, a burst does not wait for the next one: new connections are looked at every few
    /// milliseconds.
    #[arg(long, value_name = "DUR", value_parser = value::parse_interval, default_value = "1s", help_heading = SCALING)]
    pub interval: Duration,

    /// Leave containers and kernel programs serving on SIGINT and SIGTERM, for the next run to adopt
    #[arg(long, help_heading = HEALTH)]
    pub keep: bool,

    /// Interface by which clients come; may be repeated [default: those of the default routes]
    ///
    /// Of each family that is published: those of its default routes, or else those that have an address of it. With --hook
    /// xdp, one that is so for IPv6 alone and cannot do XDP is left out.
    ///
    /// Its VLANs belong to it: eth0 means eth0.5, too, and what is in that. To balance at one VLAN alone, name that.
    #[arg(long, value_name = "IFACE", value_parser = value::parse_interface, help_heading = DATAPATH)]
    pub uplink: Vec<String>,

    /// Where in the kernel clients' packets are taken
    #[arg(long, value_name = "HOOK", value_enum, default_value_t = Hook::Auto, help_heading = DATAPATH)]
    pub hook: Hook,

    /// How TC programs are attached
    #[arg(long, value_name = "HOW", value_enum, default_value_t = TcAttach::Auto, help_heading = DATAPATH)]
    pub tc_attach: TcAttach,

    /// State that every sender behind the uplinks delivers complete checksums, to allow XDP on a veth
    ///
    /// The kernel leaves checksums to the device; a packet that has only crossed a veth has none, and XDP cannot
    /// complete it. If the statement is wrong, connections hang. Real network cards always deliver complete ones.
    #[arg(long, help_heading = DATAPATH)]
    pub complete_checksums: bool,

    /// Established connections that the kernel keeps in mind, 1024 to 16777216; about 300 bytes each
    #[arg(long, value_name = "N", value_parser = value::parse_max_flows, default_value = "1048576", help_heading = DATAPATH)]
    pub max_flows: u32,

    /// Time that a connection may be idle in a STATE before it is over, at least 1s; may be repeated
    ///
    /// By default established=2h4m, client-closed=4m and backend-closed=4m (one side has closed), closed=2m, reset=10s,
    /// syn-sent=1m, syn-received=1m; udp-replied=2m, udp-unreplied=30s.
    #[arg(long, value_name = "STATE=DUR", help_heading = DATAPATH)]
    pub lifetime: Vec<Lifetime>,
}

const FRONTENDS: &str = "Frontends and backends";
const SCHEDULING: &str = "Scheduling";
const GUARD: &str = "Guard";
const SCALING: &str = "Scaling (DUR is written 500ms, 30s, 2m)";
const HEALTH: &str = "Health and the end of a backend";
const DATAPATH: &str = "Datapath";
const CONTAINERS: &str = "Containers";

/// What can be said to `check`: all that can be said to `run`, and how it is looked at.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// What is to be run.
    #[command(flatten)]
    pub run: RunArgs,

    /// Look at the file of services alone, not at the machine; exit code 0 or 64
    #[arg(long, requires = "config")]
    pub file_only: bool,

    /// Print the stable JSON document instead of the table
    #[arg(long)]
    pub json: bool,
}

/// What can be said to `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Name of the instance
    #[arg(long, value_name = "NAME", default_value = InstanceName::DEFAULT)]
    pub instance: InstanceName,

    /// Print the stable JSON document instead of the table, with exact numbers
    #[arg(long)]
    pub json: bool,
}

/// What can be said to `explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// Name of the service, where there are several
    #[arg(value_name = "SERVICE")]
    pub service: Option<String>,

    /// Name of the instance
    #[arg(long, value_name = "NAME", default_value = InstanceName::DEFAULT)]
    pub instance: InstanceName,

    /// Suppose that a setting had been another; may be repeated
    ///
    /// target-cpu=PCT, min=N, max=N, or one of the service's metrics with another target. The same function decides on
    /// what was measured then; the windows are those of the service. Of a service that follows host-cpu there is only its
    /// reason to tell.
    #[arg(long = "if", value_name = "KEY=VALUE")]
    pub suppositions: Vec<Supposition>,

    /// Print JSON, with the whole record of the decision
    #[arg(long)]
    pub json: bool,
}

/// What can be said to `detach`.
#[derive(Clone, Debug, Args)]
pub struct DetachArgs {
    /// Name of the instance
    #[arg(long, value_name = "NAME", default_value = InstanceName::DEFAULT)]
    pub instance: InstanceName,

    /// Stop and remove the instance's containers too
    #[arg(long)]
    pub containers: bool,
}

/// Reads the command line of this process.
///
/// # Errors
/// The exit code, once what there is to say has been printed: success after help and version, [`Exit::Usage`] after a
/// mistake.
pub fn parse() -> Result<Cli, ExitCode> {
    parse_from(std::env::args_os()).map_err(|answer| print(&answer))
}

impl RunArgs {
    /// Returns what is to be run, and how to read it again where it comes from a file.
    ///
    /// # Errors
    /// The exit code, once it is printed what is wrong.
    pub fn resolve(mut self) -> Result<(RunConfig, Option<Reload>), ExitCode> {
        let Some(path) = self.config.take() else {
            return self.check().map(|config| (config, None)).map_err(|error| print(&in_style("run", &error)));
        };
        let config = file::read(&path).map_err(|error| file_error(&error))?;
        let reload: Reload = Arc::new(move || file::read(&path).map_err(|error| error.to_string()));
        Ok((config, Some(reload)))
    }
}

impl CheckArgs {
    /// Returns what is to be checked: a file, or what flags say, which has no mistakes by then; or the machine alone.
    ///
    /// # Errors
    /// The exit code, once it is printed what is wrong.
    pub fn resolve(self) -> Result<doctor::Request, ExitCode> {
        let scope = if self.file_only { doctor::Scope::File } else { doctor::Scope::Machine };
        let (file, as_json) = (self.run.config.clone(), self.json);
        let config = if file.is_none() && self.run.service == ServiceArgs::unsaid() {
            let draft = Draft { instance: self.run.instance, services: Vec::new() };
            draft.check().map_err(|faults| {
                let first = faults.into_iter().next().expect("where a check fails there is a fault");
                print(&in_style("check", &first.error))
            })?
        } else if let Some(path) = &file {
            file::read(path).map_err(|error| {
                if let (true, file::FileError::Mistaken { path, mistakes }) = (as_json, &error) {
                    println!("{}", doctor::Diagnosis::of_mistakes(path, mistakes).json());
                }
                file_error(&error)
            })?
        } else {
            self.run.check().map_err(|error| print(&in_style("check", &error)))?
        };
        Ok(doctor::Request { file, config, scope, as_json })
    }
}

impl ServiceArgs {
    /// Returns what is meant where nothing is said.
    fn unsaid() -> Self {
        let flags = Self::augment_args(Command::new("").no_binary_name(true));
        let matches = flags.try_get_matches_from(Vec::<OsString>::new());
        let unsaid = matches.and_then(|matches| Self::from_arg_matches(&matches));
        unsaid.expect("no flag of a service is required")
    }
}

/// Returns the whole definition. The flags of `run` can be said to `check` as well, whose own help would be lost among them.
fn command() -> Command {
    const OWN: [&str; 4] = ["config", "file_only", "json", "verbose"];
    Cli::command().mut_subcommand("check", |check| {
        let check = check.mut_args(|arg| if OWN.contains(&arg.get_id().as_str()) { arg } else { arg.hide(true) });
        check.mut_arg("config", |config| {
            let help = "Look for mistakes in this file of services, and then at the machine by what it needs";
            config.help(help).long_help(help).help_heading(None)
        })
    })
}

fn file_error(error: &file::FileError) -> ExitCode {
    eprintln!("error: {error}");
    match error {
        file::FileError::Unreadable { .. } => ExitCode::FAILURE,
        file::FileError::Mistaken { .. } => ExitCode::from(Exit::Usage),
    }
}

fn parse_from(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command().try_get_matches_from(args)?)
}

/// Dresses an error in the style in which clap reports those that it finds by itself.
fn in_style(verb: &str, error: &ConfigError) -> clap::Error {
    let mut command = command();
    command.build();
    let verb = command.find_subcommand_mut(verb).expect("there is such a verb");
    verb.error(ErrorKind::ValueValidation, error)
}

fn print(answer: &clap::Error) -> ExitCode {
    // Nobody is left to be told that nobody reads.
    let _ = answer.print();
    if answer.use_stderr() { ExitCode::from(Exit::Usage) } else { ExitCode::SUCCESS }
}

impl Cli {
    /// Starts the log, to standard error.
    ///
    /// # Errors
    /// [`Exit::Usage`], once it is printed what is wrong with [`LOG_VARIABLE`].
    pub fn start_log(&self) -> Result<(), ExitCode> {
        let wanted = std::env::var(LOG_VARIABLE).ok();
        let filter = EnvFilter::try_new(self.log_directives(wanted.as_deref())).map_err(|error| {
            eprintln!("error: {LOG_VARIABLE} cannot be read: {error}: write debug, or lb_user=debug,warn");
            ExitCode::from(Exit::Usage)
        })?;
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours).init();
        Ok(())
    }

    /// Returns what is logged: what the environment wants, else as much as was asked for.
    fn log_directives<'a>(&self, wanted: Option<&'a str>) -> &'a str {
        match (wanted, self.verbose) {
            (Some(wanted), _) if !wanted.trim().is_empty() => wanted,
            (Some(_) | None, 0) => "warn,lb_user=info",
            (Some(_) | None, 1) => "info,lb_user=debug",
            (Some(_) | None, 2..) => "debug,lb_user=trace",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(args: &[&str]) -> (String, ExitCode) {
        let answer = parse_from(args).expect_err("help, version or a mistake");
        (answer.to_string(), print(&answer))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_of_the_contract_is_there() {
        let contract = [
            (
                "run",
                "--image --publish --backend --instance --min --max --warm --metric --target-cpu --interval --scale-up-window",
            ),
            (
                "run",
                "--scale-down-window --uplink --hook --health --drain-timeout --cpus --memory --env --network --keep",
            ),
            ("run", "--allow --deny --source-rate --lifetime --scheduler --affinity --max-connections --slow-start"),
            ("run", "--snat --syn-cookies --dry-run --discover --on-change"),
            ("run", "--health-interval --tc-attach --complete-checksums --max-flows --stop-grace --verbose --config"),
            ("check", "--config --file-only --json --verbose"),
            ("status", "--instance --json --verbose"),
            (
                "simulate",
                "--shape --trace --seed --duration --min --max --metric --target-cpu --scale-up-window --scale-down-window \
                 --cpus --host-cpus --foreign --cost --start-time --json --output",
            ),
            ("explain", "--instance --if --json"),
            ("scale", "--for --force --wait --instance"),
            ("pause", "--in --out --instance"),
            ("resume", "--in --out --instance"),
            ("rollout", "--parallel --abort --wait --instance"),
            ("events", "--follow --since --last --json --instance"),
            ("detach", "--instance --containers --verbose"),
        ];
        for (verb, options) in contract {
            let (help, _) = text_of(&["lb-user", verb, "--help"]);

            for option in options.split(' ') {
                assert!(help.contains(option), "{verb} does not know {option}");
            }
        }
    }

    #[test]
    fn help_and_version_succeed_and_mistakes_do_not() {
        let usage = format!("{:?}", ExitCode::from(Exit::Usage));
        let success = format!("{:?}", ExitCode::SUCCESS);
        let rows: [(&[&str], &str); 9] = [
            (&["lb-user", "--help"], &success),
            (&["lb-user", "--version"], &success),
            (&["lb-user", "run", "-h"], &success),
            (&["lb-user"], &usage),
            (&["lb-user", "walk"], &usage),
            (&["lb-user", "check", "--json", "extra"], &usage),
            (&["lb-user", "check", "--file-only"], &usage),
            (&["lb-user", "status", "--jsn"], &usage),
            (&["lb-user", "run", "--publish", "80:0"], &usage),
        ];
        for (args, code) in rows {
            assert_eq!(format!("{:?}", text_of(args).1), code, "{args:?}");
        }
    }

    #[test]
    fn a_mistake_names_the_option_and_what_a_right_one_looks_like() {
        let (text, _) = text_of(&["lb-user", "run", "--image", "lb-api", "--publish", "::1"]);

        assert!(text.starts_with(
            "error: invalid value '::1' for '--publish <[ADDR:]PORT:CONTAINER_PORT[/tcp|/udp]>': \
             \"::1\" has an IPv6 address without brackets: write one such as [2001:db8::1]:80"
        ));
    }

    #[test]
    fn a_mistake_of_the_whole_is_told_in_the_same_style() {
        let text = in_style("run", &ConfigError::NoSource).to_string();

        assert!(text.starts_with("error: where the backends are is not said: give --image IMAGE for containers"));
        assert!(text.contains("Usage: lb-user run"), "{text}");
    }

    #[test]
    fn a_file_and_flags_exclude_each_other() {
        for flag in
            [["--publish", "80"], ["--min", "1"], ["--uplink", "eth0"], ["--instance", "a"], ["--drain-timeout", "1s"]]
        {
            let (text, _) = text_of(&[&["lb-user", "run", "--config", "services.toml"], &flag[..]].concat());

            let told = format!("error: the argument '--config <FILE>' cannot be used with '{} ", flag[0]);
            assert!(text.starts_with(&told), "{text}");
        }
        assert!(parse_from(["lb-user", "run", "-v", "--config", "services.toml"]).is_ok());
    }

    #[test]
    fn what_is_checked_is_the_machine_and_what_is_to_be_run() {
        let resolve = |args: &str| {
            let words = ["lb-user", "check"].into_iter().chain(args.split_whitespace());
            match parse_from(words).unwrap_or_else(|error| panic!("{args}: {error}")).verb {
                Verb::Check(args) => args.resolve(),
                other => panic!("{args}: {other:?}"),
            }
        };

        let machine = resolve("").expect("nothing has to be said");
        assert!(machine.config.services.is_empty() && machine.file.is_none() && !machine.as_json);
        let uplink = resolve("--uplink eth0 --hook xdp --instance edge --json").expect("of no service");
        assert_eq!((uplink.config.services.len(), uplink.config.hook, uplink.as_json), (0, Hook::Xdp, true));
        let service = resolve("--image lb-api --publish 80:5000 --max 3").expect("a service");
        assert_eq!((service.config.services.len(), service.scope), (1, doctor::Scope::Machine));
        for args in
            ["--publish 80", "--snat 192.0.2.1", "--hook tc --complete-checksums", "--config /nonexistent/a.toml"]
        {
            assert!(resolve(args).is_err(), "{args}");
        }
        let (help, _) = text_of(&["lb-user", "check", "--help"]);
        assert!(!help.contains("--affinity"), "what belongs to run is told there: {help}");
    }

    #[test]
    fn the_environment_says_more_about_the_log_than_the_command_line() {
        let cli = |args: &[&str]| parse_from(args).expect("a right command line");

        assert_eq!(cli(&["lb-user", "status"]).log_directives(None), "warn,lb_user=info");
        assert_eq!(cli(&["lb-user", "status", "-v"]).log_directives(None), "info,lb_user=debug");
        assert_eq!(cli(&["lb-user", "-vvv", "status"]).log_directives(Some("")), "debug,lb_user=trace");
        assert_eq!(cli(&["lb-user", "-vv", "status"]).log_directives(Some("error")), "error");
    }
}
