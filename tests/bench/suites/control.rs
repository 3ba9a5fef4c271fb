//! `control`: how fast changes take effect, and what the agent needs.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_ebpf::abi::{Address, FlowEntry, FlowKey, Port, Proto, ReplyEntry};
use lb_tests::{
    agent::Agent,
    lab::{self, Lab},
};
use lb_user::datapath::{Maps, Pins, clock, publish::Member};

use super::{deaths, steps};
use crate::{
    cpu,
    field::{Field, HTTP, SINK, Service},
    interrupt,
    ours::Ours,
    record::{Metric, Values},
    session::{Session, caught},
    wrk::{self, Reuse},
};

pub(super) const SUITE: &str = "control";
/// What is published to.
const NUMBERS: [u32; 3] = [1, 10, 1_000];
/// Addresses that one backend answers at, all of a network: so there can be a thousand of it.
const MANY: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 8, 0), 21);
const MANY_BACKENDS: u32 = 1_000;
const MANY_FLOWS: u32 = 1_000_000;
/// How long an agent is watched, at least.
const WATCH: Duration = Duration::from_secs(5);
/// How long one with much to do is watched, over all rounds: once a minute it looks through all of its tables.
const WATCH_ALL: Duration = Duration::from_secs(60);

/// The case of [`Metric::Duration`]s.
pub const TIMES: &str = "time";
/// The case of what the agent needs.
pub const NEEDS: &str = "agent";
/// The system that is at rest.
pub const AT_REST: &str = "2 backends, at rest";

/// Runs the suite.
pub fn run(session: &mut Session) -> Result<()> {
    let rounds = session.options.rounds;
    session.expect(rounds as usize * (NUMBERS.len() + 3 + 2));
    session.say("making namespaces and servers");
    let field = Field::new(2)?;
    let lab = &field.lab;
    // Every address of the network is local in the backend, and its ARP answers for all.
    lab::ip(&format!("-n {} route add local {}/{} dev lo", lab.backend(0), MANY.0, MANY.1));
    lab::ip(&format!("-n {} route add {}/{} dev br0", lab.balancer(), MANY.0, MANY.1));
    for round in 1..=rounds {
        for number in NUMBERS {
            let system = publishing(number);
            session.turn((SUITE, TIMES), &system, round, || publish(&field, number))?;
        }
        for (system, other) in [("change to first packet", Other::Known), ("new backend to first packet", Other::New)] {
            session.turn((SUITE, TIMES), system, round, || first_packet(&field, other))?;
        }
        session.turn((SUITE, TIMES), "agent start to first connection", round, || first_connection(&field))?;
    }
    needs(session, &field)?;
    deaths::run(session)?;
    steps::run(session)
}

/// Returns the name of a publication in tables.
pub fn publishing(number: u32) -> String {
    format!("publish {number} backends")
}

fn many(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(u32::from(MANY.0) + 1 + number), HTTP)
}

/// Publishes so many new backends while clients connect all the while.
fn publish(field: &Field, number: u32) -> Result<Values> {
    let service = field.service(HTTP, Proto::Tcp);
    let mut ours = Ours::open(&field.lab, &service)?;
    let way = ours.way_to(*many(0).ip())?;
    let first: Vec<Member> = vec![ours.member(service.endpoints()[0], &ours.way_to(service.backends[0])?)];
    ours.publish(&first, &[])?;
    let all: Vec<Member> = (0..number).map(|number| ours.member(many(number), &way)).chain(first.clone()).collect();
    thread::scope(|scope| {
        let client = field.lab.client();
        let targets = [service.frontend()];
        let load = scope.spawn(move || wrk::run(&client, &targets, 1, Duration::from_secs(1), Reuse::OneRequest));
        thread::sleep(Duration::from_millis(400));
        let took = ours.publish(&all, &[])?;
        let values = load.join().unwrap_or_else(|_| Err(anyhow!("wrk ended")))?;
        let failures = values.get(&Metric::Failures).copied().unwrap_or_default();
        Ok(Values::from([(Metric::Duration, took.as_secs_f64() * 1e3), (Metric::Failures, failures)]))
    })
}

/// The backend that is to get new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    /// It was published before, without new flows.
    Known,
    /// It was not, so that the reply door at its device is opened with this change.
    New,
}

/// From the decision that another backend gets new flows to the first datagram there.
fn first_packet(field: &Field, other: Other) -> Result<Values> {
    let service = field.service(SINK, Proto::Udp);
    let mut ours = Ours::open(&field.lab, &service)?;
    let mut members = Vec::new();
    for at in service.endpoints() {
        members.push(ours.member(at, &ours.way_to(*at.ip())?));
    }
    let draining = match other {
        Other::Known => &members[1..],
        Other::New => &[],
    };
    ours.publish(&members[..1], draining)?;
    let client = field.lab.client();
    let open = || lab::inside(&client, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let (one, other) = (open()?, open()?);
    let before = field.arrived_at(0);
    one.send_to(b"which", service.frontend())?;
    wait_for("the first datagram", || field.arrived_at(0) > before)?;
    let before = field.arrived_at(1);
    let start = Instant::now();
    ours.publish(&members[1..], &members[..1])?;
    other.send_to(b"which", service.frontend())?;
    wait_for("a datagram at the other backend", || field.arrived_at(1) > before)?;
    Ok(Values::from([(Metric::Duration, start.elapsed().as_secs_f64() * 1e3)]))
}

/// From the start of the agent's process to the first connection that it has led to a backend.
fn first_connection(field: &Field) -> Result<Values> {
    let service = field.service(HTTP, Proto::Tcp);
    let start = Instant::now();
    let _agent = start_agent(&field.lab, &service);
    let at = service.frontend();
    let client = field.lab.client();
    lab::inside(&client, || {
        wait_for("a connection", || TcpStream::connect_timeout(&at.into(), Duration::from_millis(200)).is_ok())
    })?;
    Ok(Values::from([(Metric::Duration, start.elapsed().as_secs_f64() * 1e3)]))
}

fn start_agent(lab: &Lab, service: &Service) -> Agent {
    let publish = format!("{}/{}", service.frontend(), service.proto);
    let endpoints: Vec<String> = service.endpoints().iter().map(ToString::to_string).collect();
    let mut arguments = vec!["--uplink", "up0", "--publish", &publish];
    for endpoint in &endpoints {
        arguments.extend(["--backend", endpoint]);
    }
    Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments)
}

/// What the agent needs at rest, and with a thousand backends and a million connections.
fn needs(session: &mut Session, field: &Field) -> Result<()> {
    let watch = (session.options.duration * 2).max(WATCH);
    let long = watch.max(WATCH_ALL / session.options.rounds.max(1));
    let few = field.service(HTTP, Proto::Tcp);
    let crowd = Service { backends: (0..MANY_BACKENDS).map(|number| *many(number).ip()).collect(), ..few.clone() };
    let crowded = "1,000 backends, 1,000,000 connections";
    for (system, service, flows, watch) in [(AT_REST, &few, 0, watch), (crowded, &crowd, MANY_FLOWS, long)] {
        session.say("control: filling the kernel's tables");
        let agent = caught(|| {
            let agent = start_agent(&field.lab, service);
            let ready = service.backends.len() as u64;
            agent.wait_for("all backends are ready", Duration::from_secs(60), |status| {
                status["scaling"]["ready"] == ready
            });
            establish(&field.lab.instance(), flows, ready as u32)?;
            thread::sleep(Duration::from_secs(2)); // what starting has cost is behind it
            Ok(agent)
        });
        for round in 1..=session.options.rounds {
            session.turn((SUITE, NEEDS), system, round, || {
                let pid = agent.as_ref().map_err(|error| anyhow!("{error:#}"))?.pid();
                let before = cpu::of_process(pid)?;
                let start = Instant::now();
                interrupt::sleep(watch)?;
                let share = (cpu::of_process(pid)? - before).as_secs_f64() / start.elapsed().as_secs_f64();
                Ok(Values::from([(Metric::CpuShare, share * 100.0), (Metric::Resident, cpu::resident_mib(pid)?)]))
            })?;
        }
    }
    Ok(())
}

/// Writes connections into the tables of a running instance as if packets had.
fn establish(instance: &str, flows: u32, backends: u32) -> Result<()> {
    let mut maps = Maps::open(&Pins::of(instance))?;
    let now = clock::ktime();
    for number in 0..flows {
        let client = Address::from_v4(Ipv4Addr::from(0x0a00_0000 + number).octets());
        if number % 4096 == 0 {
            interrupt::check()?;
        }
        let id = number % backends;
        let backend = maps.backends.get(&id, 0).context("find the backend")?;
        let frontend = (Address::from_v4(lab::UPLINK.parse::<Ipv4Addr>()?.octets()), Port::new(HTTP));
        let key = FlowKey::new(client, Port::new(40_000), frontend.0, frontend.1, Proto::Tcp);
        let reply = FlowKey::new(backend.address, backend.port, client, Port::new(40_000), Proto::Tcp);
        let whose = (id, backend.generation);
        let mut entry = FlowEntry::new(&key, whose, 1, lb_ebpf::tcp_state::Seen::PROVEN, now);
        entry.egress = lb_ebpf::tcp_state::Seen::ANSWERED;
        maps.flows.put(&key, &entry.seen_as(Port::new(40_000)))?;
        maps.replies.put(&reply, &ReplyEntry::new(&reply, key, (whose.0, whose.1, 1), 0, now))?;
    }
    Ok(())
}

/// Waits, without sleeping, for something that comes soon.
pub(super) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(20);
    let start = Instant::now();
    while !is_so() {
        ensure!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        interrupt::check()?;
        // Whatever comes may come by this processor.
        thread::yield_now();
    }
    Ok(())
}
