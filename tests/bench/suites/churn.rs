//! `churn`: new connections all the while, and every second a backend comes or goes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddrV4,
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use lb_ebpf::abi::Proto;
use lb_tests::lab;
use lb_user::datapath::publish::Member;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    field::{Field, HTTP, Service},
    interrupt,
    ours::Ours,
    record::{Metric, Values},
    session::Session,
    stats::Spread,
    systems::{self, Running, System},
    wrk::{self, Reuse},
};

const SUITE: &str = "churn";
const BACKENDS: usize = 4;
const THREADS: usize = 2;
/// So many turns' time of changes: a minute, if a turn takes two seconds.
const CHURN: u32 = 30;
/// So many turns' time without changes before.
const STEADY: u32 = 3;
/// Time between two changes.
const EVERY: Duration = Duration::from_secs(1);

/// Returns whether a system can change its backends while it works, as its operators do it.
const fn takes_part(system: System) -> bool {
    match system {
        System::Tc | System::Nftables | System::Iptables | System::Haproxy | System::Nginx => true,
        System::Direct
        | System::DirectComplete
        | System::DirectLocal
        | System::Xdp
        | System::Socket
        | System::Flowtable
        | System::HaproxyHttp
        | System::Ipvs => false,
    }
}

/// Runs the suite. A minute is long: there is one round where other suites have up to five.
pub fn run(session: &mut Session) -> Result<()> {
    let systems: Vec<System> = session.systems().into_iter().filter(|&system| takes_part(system)).collect();
    let rounds = session.options.rounds.div_ceil(5);
    session.say("making namespaces and servers");
    let field = Field::new(BACKENDS)?;
    let service = field.service(HTTP, Proto::Tcp);
    let systems = session.able(SUITE, &systems, &field, &service);
    session.expect(systems.len() * rounds as usize);
    let duration = session.options.duration;
    for round in 1..=rounds {
        for &system in &systems {
            session.turn((SUITE, ""), system.name(), round, || {
                let mut changing = Changing::start(system, &field, &service)?;
                measure(&mut changing, &field, duration)
            })?;
        }
    }
    Ok(())
}

fn measure(changing: &mut Changing<'_>, field: &Field, turn: Duration) -> Result<Values> {
    let client = field.lab.client();
    let targets = [changing.service.frontend()];
    let steady = wrk::run(&client, &targets, THREADS, turn * STEADY, Reuse::OneRequest)?;
    let steady = steady.get(&Metric::RequestsPerSecond).copied().unwrap_or_default();
    let time = turn * CHURN;
    thread::scope(|scope| {
        let load = scope.spawn(|| wrk::run(&client, &targets, THREADS, time, Reuse::OneRequest));
        let seconds = change_until(changing, &client, Instant::now() + time)?;
        let mut values = load.join().unwrap_or_else(|_| Err(anyhow!("wrk ended")))?;
        let worst = Spread::of(seconds).map_or(0.0, |seconds| seconds.low);
        values.insert(Metric::WorstSecond, worst / steady.max(1.0) * 100.0);
        Ok(values)
    })
}

/// Changes the backends every second and returns the new connections of each second, the first one left out.
fn change_until(changing: &mut Changing<'_>, client: &str, end: Instant) -> Result<Vec<f64>> {
    let mut seconds = Vec::new();
    let mut opened = connections_opened(client)?;
    let mut at = Instant::now();
    for turn in 0_usize.. {
        if at + EVERY > end {
            break;
        }
        changing.serve_by(if turn.is_multiple_of(2) { BACKENDS - 1 } else { BACKENDS })?;
        interrupt::sleep((at + EVERY).saturating_duration_since(Instant::now()))?;
        let (now, total) = (Instant::now(), connections_opened(client)?);
        if turn > 0 {
            seconds.push((total - opened) as f64 / (now - at).as_secs_f64());
        }
        (at, opened) = (now, total);
    }
    Ok(seconds)
}

/// Returns how many TCP connections a namespace has opened.
///
/// # Source
/// RFC 4022, tcpActiveOpens.
fn connections_opened(namespace: &str) -> Result<u64> {
    let text = lab::inside(namespace, || fs::read_to_string("/proc/thread-self/net/snmp")).context("read snmp")?;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (rows.next().context("names")?, rows.next().context("values")?);
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "ActiveOpens");
    found.and_then(|(_, value)| value.parse().ok()).context("find ActiveOpens")
}

/// A system whose backends change.
struct Changing<'f> {
    system: System,
    field: &'f Field,
    service: Service,
    running: Option<Running<'f>>,
    ours: Option<(Ours, Vec<Member>)>,
}

impl<'f> Changing<'f> {
    fn start(system: System, field: &'f Field, service: &Service) -> Result<Self> {
        let mut changing = Self { system, field, service: service.clone(), running: None, ours: None };
        if system == System::Tc {
            // As the agent does it; what else the agent does is not in the way of a publication.
            let ours = Ours::open(&field.lab, service)?;
            let member = |&at: &SocketAddrV4| Ok(ours.member(at, &ours.way_to(*at.ip())?));
            let members = service.endpoints().iter().map(member).collect::<Result<_>>()?;
            changing.ours = Some((ours, members));
            changing.serve_by(BACKENDS)?;
        } else {
            changing.running = Some(Running::start(system, field, service)?);
        }
        Ok(changing)
    }

    /// Lets new connections go to the first backends only. The others keep what they have.
    fn serve_by(&mut self, backends: usize) -> Result<()> {
        let (now, all) =
            (Service { backends: self.service.backends[..backends].to_vec(), ..self.service.clone() }, BACKENDS);
        match (self.system, &mut self.ours, &self.running) {
            (System::Tc, Some((ours, members)), _) => {
                ours.publish(&members[..backends], &members[backends..]).map(|_took| ())
            }
            (System::Nftables, _, Some(_)) => {
                systems::apply_nft(&self.field.lab.balancer(), &systems::nft_replacement(&now))
            }
            (System::Iptables, _, Some(_)) => systems::replace_iptables(&self.field.lab.balancer(), &now),
            (System::Haproxy, _, Some(running)) => {
                let state = if backends == all { "ready" } else { "drain" };
                let mut admin = UnixStream::connect(running.file("admin")).context("reach haproxy")?;
                admin.write_all(format!("set server servers/s{} state {state}\n", all - 1).as_bytes())?;
                let mut answer = String::new();
                admin.read_to_string(&mut answer)?;
                if answer.trim().is_empty() { Ok(()) } else { bail!("haproxy: {}", answer.trim()) }
            }
            (System::Nginx, _, Some(running)) => {
                fs::write(running.file("nginx.conf"), running.nginx_config(&now))?;
                let pid = running.process().context("nginx is a process")?;
                kill(Pid::from_raw(pid as i32), Signal::SIGHUP).context("reload nginx")
            }
            _ => bail!("its backends do not change here"),
        }
    }
}
