//! A snapshot read from the pinned maps. It needs no agent: what the agent knew stands in its report, what goes on
//! stands in the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_ebpf::{
    abi::{self, AgentRecord, BackendId, Proto},
    verdict::{DropReason, Event, PassReason},
};

use super::{
    NotRunning,
    snapshot::{
        Agent, Attach, Backend, BackendState, Cpu, Decision, Flows, Frontend, Handshakes, HookKind, HookPoint, Manual,
        Phase, Reach, Responses, Rollout, Scaling, Service, Snapshot, Traffic, Verdicts,
    },
};
use crate::{
    control,
    datapath::{
        DatapathError, Maps, Pins, clock,
        doors::{Door, DoorAttach, DoorKind},
        links, pins,
        report::{BackendReport, FrontendReport, Report, ServiceReport},
        sweep::{self, Census},
    },
};

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// There is no such instance.
    #[error("{0}")]
    NotRunning(NotRunning),
    /// Pins can be read by root alone.
    #[error("not root: the maps of an instance can be read by root only: use sudo")]
    NotRoot,
    /// The instance is there, but its agent never got so far as to report.
    #[error("instance {instance} has not reported yet: its agent is starting, or died while it did")]
    NoReport {
        /// The instance.
        instance: String,
    },
    /// The maps cannot be read.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// Reads an instance.
///
/// # Errors
/// See [`StatusError`].
pub fn read(instance: &str) -> Result<Snapshot, StatusError> {
    let (maps, record, report) = open(instance)?;
    let census = sweep::count(&maps, clock::ktime())?;
    Ok(Reading { maps, record, report, census }.snapshot(instance)?)
}

/// What an agent has reported, and how old that is.
pub struct Reported {
    /// The services.
    pub services: Vec<ServiceReport>,
    /// The instance's age by then, in milliseconds.
    age_ms: u64,
    /// What has passed since, in milliseconds.
    since_ms: u64,
}

impl Reported {
    /// Returns how long ago a moment of the controllers' time was, in milliseconds.
    pub fn age_of(&self, at: control::Timestamp) -> u64 {
        self.age_ms.saturating_sub(at.elapsed().as_millis() as u64) + self.since_ms
    }
}

/// Reads what the agent of an instance has reported last, be it alive or not.
///
/// # Errors
/// See [`StatusError`].
pub fn report(instance: &str) -> Result<Reported, StatusError> {
    let (_, record, report) = open(instance)?;
    let since_ms = clock::ktime().saturating_sub(record.heartbeat) / 1_000_000;
    Ok(Reported { services: report.services, age_ms: report.age_ms, since_ms })
}

/// Reads what there is to say of the agent of an instance, be it alive or not.
///
/// # Errors
/// See [`StatusError`].
pub fn agent(instance: &str) -> Result<Agent, StatusError> {
    let (_, record, report) = open(instance)?;
    Ok(agent_of(&record, &report))
}

fn agent_of(record: &AgentRecord, report: &Report) -> Agent {
    Agent {
        alive: is_alive(record.pid),
        pid: record.pid,
        heartbeat_age_ms: clock::ktime().saturating_sub(record.heartbeat) / 1_000_000,
        heartbeat_interval_ms: record.interval_ns / 1_000_000,
        version: report.version.clone(),
        started_unix: report.agent_started_unix,
        first_started_unix: report.started_unix,
        phase: phase_of(report.services.iter().map(|service| phase(service.control.phase))),
    }
}

fn open(instance: &str) -> Result<(Maps, AgentRecord, Report), StatusError> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(StatusError::NotRoot);
    }
    let pins = Pins::of(instance);
    if !pins.path(abi::map::AGENT).exists() {
        let others = pins::instances().into_iter().filter(|name| name != instance).collect();
        let pin_path = pins.folder().to_owned();
        return Err(StatusError::NotRunning(NotRunning { instance: instance.to_owned(), pin_path, others }));
    }
    let maps = Maps::open(&pins)?;
    let (record, text) = maps.read_report()?;
    let report = Report::parse(&text).ok_or_else(|| StatusError::NoReport { instance: instance.to_owned() })?;
    Ok((maps, record, report))
}

struct Reading {
    maps: Maps,
    record: AgentRecord,
    report: Report,
    census: Census,
}

/// What the maps tell of a backend.
#[derive(Default)]
struct Counted {
    traffic: abi::Traffic,
    active: u64,
    handshakes: Handshakes,
    responses: Responses,
}

impl Reading {
    fn snapshot(&self, instance: &str) -> Result<Snapshot, DatapathError> {
        let agent = agent_of(&self.record, &self.report);
        let heartbeat_age_ms = agent.heartbeat_age_ms;
        let frontends = self.report.frontends.iter().map(|told| self.frontend(told)).collect::<Result<Vec<_>, _>>()?;
        let frontends_of = |service: &ServiceReport| {
            let own = self.report.frontends.iter().filter(|frontend| frontend.service == service.name);
            own.map(|frontend| frontend.name.clone()).collect()
        };
        let told = self.report.services.iter();
        let services: Vec<Service> = told.map(|told| service(told, frontends_of(told), heartbeat_age_ms)).collect();
        let since_report = |at: control::Timestamp| {
            self.report.age_ms.saturating_sub(at.elapsed().as_millis() as u64) + heartbeat_age_ms
        };
        let told = self.report.services.iter();
        let mut decisions: Vec<Decision> = told
            .flat_map(|service| service.control.decisions.iter().map(move |decision| (service, decision)))
            .map(|(service, decision)| Decision {
                service: service.name.clone(),
                age_ms: since_report(decision.at),
                kind: kind_name(decision.kind),
                from: decision.from,
                to: decision.to,
                load_percent: decision.load.map(|load| load.share() * 100.0),
                reason: decision.reason.clone(),
                times: decision.times,
            })
            .collect();
        decisions.sort_by_key(|decision| std::cmp::Reverse(decision.age_ms));
        let mut problems = Vec::new();
        for service in &self.report.services {
            problems.extend(service.control.problems.iter().map(|problem| match services.len() {
                1 => problem.clone(),
                _ => format!("{}: {problem}", service.name),
            }));
        }
        problems.extend(self.report.problems.iter().cloned());
        if !is_alive(self.record.pid) {
            problems.extend(self.left_frozen());
        }
        let load = self.report.services.iter().find_map(|service| service.control.load);
        Ok(Snapshot {
            instance: instance.to_owned(),
            taken_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            agent,
            hooks: self.report.doors.iter().filter_map(hook_point).collect(),
            cpu: Cpu { load_percent: load.map(|load| load.share() * 100.0) },
            scaling: Scaling::of_all(&services.iter().map(|service| &service.scaling).collect::<Vec<_>>()),
            services,
            frontends,
            verdicts: self.verdicts()?,
            flows: Flows {
                established: self.census.established,
                half_open: self.census.half_open,
                datagrams: self.census.datagrams,
                local: self.census.local,
                capacity: u64::from(self.maps.flows.capacity()?),
            },
            decisions,
            problems,
        })
    }

    /// Says which containers stand still although there is no agent.
    fn left_frozen(&self) -> impl Iterator<Item = String> {
        let frozen = self.report.frozen.iter().filter(|(_, freezer)| freezer.is_frozen()).map(|(id, _)| id);
        frozen.map(|id| {
            let backends = self.report.services.iter().flat_map(|service| &service.control.backends);
            let known = backends.into_iter().find(|backend| backend.id == *id);
            let name = known.map_or_else(|| id.to_string(), |backend| backend.name.to_string());
            format!("{name} is frozen, and there is no agent to thaw it: start lb-user run again, or `lb-user detach`")
        })
    }

    fn frontend(&self, told: &FrontendReport) -> Result<Frontend, DatapathError> {
        let service = self.report.services.iter().find(|service| service.name == told.service);
        let known = service.map(|service| service.control.backends.as_slice()).unwrap_or_default();
        let is_static = service.is_some_and(|service| service.control.max.is_none());
        let none = abi::Frontend::new(abi::SlotRange { base: 0, len: 0 }, abi::Scheduler::RoundRobin);
        let held = self.maps.frontends.get(&told.id, 0).unwrap_or(none);
        let in_slots: BTreeSet<BackendId> =
            self.maps.layout(held.slots())?.into_iter().map(|slot| slot.backend).collect();
        let mut sum = self.maps.retired.get(&told.id, 0).map_err(crate::datapath::maps::failed(abi::map::RETIRED))?;
        // All backends that the frontend ever had and whose counters are not put away yet, be they gone or not.
        for (id, backend) in (0..).zip(self.maps.all_backends()?) {
            if backend.generation != 0 && backend.frontend == told.id {
                sum.add(&self.maps.traffic(id)?);
            }
        }
        let published: BTreeMap<&control::ContainerId, &BackendReport> = self
            .report
            .backends
            .iter()
            .filter(|backend| backend.frontend == told.id && backend.service == told.service)
            .map(|backend| (&backend.container, backend))
            .collect();
        let mut backends = Vec::new();
        let mut active_sum = 0;
        // Clients of one family are never led to backends that have addresses of the other alone.
        let family = told.addresses.first().map(|address| control::Family::of(address.ip()));
        let is_of_another = |known: &control::BackendReport| {
            known.address.zip(family).is_some_and(|(addresses, family)| addresses.of_family(family).is_none())
        };
        for known in known {
            let backend = published.get(&known.id).copied();
            if backend.is_none() && is_of_another(known) {
                continue;
            }
            let counted = backend.map(|backend| self.counted(backend)).transpose()?.unwrap_or_default();
            active_sum += counted.active;
            backends.push(self.backend(known, is_static, backend, &in_slots, &counted));
        }
        // What an agent that has just begun has not seen yet.
        for backend in published.values() {
            if known.iter().any(|known| known.id == backend.container) {
                continue;
            }
            let counted = self.counted(backend)?;
            active_sum += counted.active;
            let is_ready = in_slots.contains(&backend.id);
            let unseen = control::BackendReport {
                id: backend.container.clone(),
                name: control::BackendName(backend.container.0.get(..12).unwrap_or(&backend.container.0).to_owned()),
                ordinal: 0,
                address: Some(backend.endpoint.ip().into()),
                state: if is_ready { control::BackendState::Ready } else { control::BackendState::Draining },
                since: control::Timestamp::ZERO,
                warming_since: None,
                tenths: None,
                flows: counted.active,
                last_error: None,
            };
            backends.push(self.backend(&unseen, is_static, Some(backend), &in_slots, &counted));
        }
        let (_, proto) = told.name.rsplit_once('/').unwrap_or(("", "tcp"));
        let proto = if proto == "udp" { Proto::Udp } else { Proto::Tcp };
        Ok(Frontend {
            service: told.service.clone(),
            name: told.name.clone(),
            addresses: told.addresses.iter().map(ToString::to_string).collect(),
            protocol: proto.to_string(),
            scheduler: held.scheduler().name().into(),
            affinity_ms: Some(held.affinity_ms()).filter(|affinity| *affinity > 0),
            max_connections: Some(held.max_connections()).filter(|most| *most > 0),
            hooks: self.report.doors.iter().filter_map(hook_point).collect(),
            guard: told.guard.clone(),
            connections_total: sum.connections + sum.local_connections,
            local_connections_total: sum.local_connections,
            connections_active: active_sum,
            ingress: Traffic { packets: sum.ingress_packets, bytes: sum.ingress_bytes },
            egress: Traffic { packets: sum.egress_packets, bytes: sum.egress_bytes },
            backends,
        })
    }

    fn counted(&self, backend: &BackendReport) -> Result<Counted, DatapathError> {
        let of = |counts: &BTreeMap<(BackendId, u32), u64>| {
            counts.get(&(backend.id, backend.generation)).copied().unwrap_or(0)
        };
        let kernel = self.maps.handshakes(backend.id)?;
        let responses = Responses {
            count: kernel.response.total(),
            p50_us: kernel.response.quantile_us(500),
            p99_us: kernel.response.quantile_us(990),
            latency_log2_us: kernel.response.counts.to_vec(),
        };
        let handshakes = Handshakes {
            accepted: kernel.accepted(),
            p50_us: kernel.latency.quantile_us(500),
            p99_us: kernel.latency.quantile_us(990),
            latency_log2_us: kernel.latency.counts.to_vec(),
            refused: kernel.refused,
            retransmitted: kernel.retransmitted,
            waiting: of(&self.census.waiting),
            reset: kernel.reset,
        };
        Ok(Counted { traffic: self.maps.traffic(backend.id)?, active: of(&self.census.active), handshakes, responses })
    }

    fn backend(
        &self,
        known: &control::BackendReport,
        is_static: bool,
        published: Option<&BackendReport>,
        in_slots: &BTreeSet<BackendId>,
        Counted { traffic, active, handshakes, responses }: &Counted,
    ) -> Backend {
        // Containers that others start are no more scaled than static backends, and have ids nevertheless.
        let is_static = is_static && known.id.0.parse::<SocketAddr>().is_ok();
        Backend {
            name: known.name.to_string(),
            container_id: (!is_static).then(|| known.id.to_string()),
            address: published.map(|backend| backend.endpoint.to_string()).or_else(|| {
                known.address.map(|address| if is_static { known.id.to_string() } else { address.to_string() })
            }),
            state: match known.state {
                control::BackendState::Starting => BackendState::Starting,
                control::BackendState::Ready => BackendState::Ready,
                control::BackendState::Idle => BackendState::Idle,
                control::BackendState::Warm => BackendState::Warm,
                control::BackendState::Unhealthy => BackendState::Unhealthy,
                control::BackendState::Draining | control::BackendState::Stopping => BackendState::Draining,
                control::BackendState::Dead => BackendState::Stopped,
            },
            slot: published.is_some_and(|backend| in_slots.contains(&backend.id)),
            weight: published.map_or(1, |backend| backend.weight),
            slow_start_percent: known.tenths.map(|tenths| tenths * 100 / control::WHOLE),
            reach: published.map(|backend| match backend.way.reach {
                links::Reach::Veth => Reach::Veth,
                links::Reach::Neighbour => Reach::Neighbour,
                links::Reach::Routed => Reach::Routed,
                links::Reach::Local => Reach::Local,
            }),
            interface: published
                .filter(|backend| !matches!(backend.way.reach, links::Reach::Routed | links::Reach::Local))
                .map(|backend| backend.way.name.clone()),
            connections_active: *active,
            connections_total: traffic.connections + traffic.local_connections,
            local_connections_total: traffic.local_connections,
            ingress: Traffic { packets: traffic.ingress_packets, bytes: traffic.ingress_bytes },
            egress: Traffic { packets: traffic.egress_packets, bytes: traffic.egress_bytes },
            handshakes: handshakes.clone(),
            responses: responses.clone(),
            cpu_percent: self.report.cpu_percent.get(&known.id).copied(),
            last_error: known.last_error.clone(),
        }
    }

    fn verdicts(&self) -> Result<Verdicts, DatapathError> {
        let mut verdicts = Verdicts::default();
        for reason in PassReason::ALL {
            verdicts.passes.insert(reason.name().into(), self.maps.counter(reason.index())?);
        }
        for reason in DropReason::ALL {
            verdicts.drops.insert(reason.name().into(), self.maps.counter(reason.index())?);
        }
        for event in Event::ALL {
            verdicts.events.insert(event.name().into(), self.maps.counter(event.index())?);
        }
        Ok(verdicts)
    }
}

/// Returns what a service is like, of which the agent has told `since_ms` ago.
pub fn service(told: &ServiceReport, frontends: Vec<String>, since_ms: u64) -> Service {
    let control = &told.control;
    let count =
        |state: control::BackendState| control.backends.iter().filter(|backend| backend.state == state).count() as u32;
    let now = control.at + Duration::from_millis(since_ms);
    let ms = |duration: Duration| duration.as_millis() as u64;
    Service {
        name: told.name.clone(),
        phase: phase(control.phase),
        scaling: Scaling {
            min: control.min,
            max: control.max,
            desired: control.desired,
            ready: count(control::BackendState::Ready),
            starting: count(control::BackendState::Starting),
            draining: count(control::BackendState::Draining),
            unhealthy: count(control::BackendState::Unhealthy),
            idle: count(control::BackendState::Idle),
            warm: count(control::BackendState::Warm),
            target_cpu_percent: told.target_cpu_percent,
            metrics: told.metrics.clone(),
            standing: control.standing.clone(),
            mood: control.record.as_ref().and_then(|record| name_of(record.verdict.mood)),
            manual: control.orders.manual.map(|manual| Manual {
                count: manual.count,
                age_ms: ms(now.since(manual.since)),
                left_ms: manual.until.map(|until| ms(until.since(now))),
            }),
            paused_in: control.orders.paused_in.is_some(),
            paused_out: control.orders.paused_out.is_some(),
            rollout: control.rollout.map(|rollout| Rollout {
                replaced: rollout.replaced,
                of: rollout.of,
                parallel: rollout.parallel,
            }),
        },
        frontends,
    }
}

fn phase(phase: control::Phase) -> Phase {
    match phase {
        control::Phase::Starting => Phase::Starting,
        control::Phase::Running => Phase::Running,
        control::Phase::Stopping => Phase::Stopping,
    }
}

/// Returns the name by which a value of an enumeration is written in JSON.
fn name_of(value: impl serde::Serialize) -> Option<String> {
    serde_json::to_value(value).ok()?.as_str().map(str::to_owned)
}

impl Scaling {
    /// Returns the scaling of several services together.
    fn of_all(services: &[&Self]) -> Self {
        if let [only] = services {
            return (*only).clone();
        }
        let sum = |of: fn(&Self) -> u32| services.iter().copied().map(of).sum();
        let sum_if_all = |of: fn(&Self) -> Option<u32>| services.iter().copied().map(of).sum();
        Self {
            min: sum_if_all(|scaling| scaling.min),
            max: sum_if_all(|scaling| scaling.max),
            desired: sum(|scaling| scaling.desired),
            ready: sum(|scaling| scaling.ready),
            starting: sum(|scaling| scaling.starting),
            draining: sum(|scaling| scaling.draining),
            unhealthy: sum(|scaling| scaling.unhealthy),
            idle: sum(|scaling| scaling.idle),
            warm: sum(|scaling| scaling.warm),
            target_cpu_percent: None,
            metrics: None,
            standing: None,
            mood: None,
            manual: None,
            paused_in: services.iter().any(|scaling| scaling.paused_in),
            paused_out: services.iter().any(|scaling| scaling.paused_out),
            rollout: None,
        }
    }
}

/// Returns what the agent is about: it ends if everything does, and begins while anything does.
fn phase_of(services: impl Iterator<Item = Phase>) -> Phase {
    let phases: Vec<Phase> = services.collect();
    if phases.iter().all(|phase| *phase == Phase::Stopping) {
        Phase::Stopping
    } else if phases.contains(&Phase::Starting) {
        Phase::Starting
    } else {
        Phase::Running
    }
}

fn hook_point(door: &Door) -> Option<HookPoint> {
    let hook = match door.kind {
        DoorKind::TcIngress => HookKind::Tc,
        DoorKind::Xdp => HookKind::Xdp,
        DoorKind::XdpGeneric => HookKind::XdpGeneric,
        DoorKind::Cgroup => HookKind::Connect,
        DoorKind::TcReply | DoorKind::TcLocal => return None,
    };
    let attach = match (door.kind, door.attach) {
        (_, DoorAttach::Clsact { .. }) => Attach::Clsact,
        (DoorKind::TcIngress | DoorKind::TcReply | DoorKind::TcLocal, DoorAttach::Link) => Attach::Tcx,
        (DoorKind::Xdp | DoorKind::XdpGeneric, DoorAttach::Link) => Attach::XdpLink,
        (DoorKind::Cgroup, DoorAttach::Link) => Attach::CgroupLink,
    };
    Some(HookPoint { hook, interface: (door.kind != DoorKind::Cgroup).then(|| door.interface.clone()), attach })
}

/// Returns the name of a kind of decision in the JSON document: snake case, as it is written in reports.
pub fn kind_name(kind: control::DecisionKind) -> String {
    name_of(kind).unwrap_or_else(|| kind.to_string())
}

/// Returns whether a process lives and is no other than an agent. One that has ended and waits for its parent does not.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| is_living_agent(&stat))
}

/// Reads name and state in `/proc/PID/stat`, proc(5).
fn is_living_agent(stat: &str) -> bool {
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") "));
    name.is_some_and(|(name, rest)| name == "lb-user" && !rest.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::{Phase, Scaling, is_living_agent, phase_of};

    fn scaling(max: Option<u32>, ready: u32) -> Scaling {
        let standing = Some("enough".to_owned());
        let (starting, draining, unhealthy, idle, warm, target_cpu_percent) = (0, 1, 0, 0, 2, Some(70.0));
        let metrics = Some("host-cpu (70%)".to_owned());
        Scaling {
            min: max,
            max,
            desired: 3,
            ready,
            starting,
            draining,
            unhealthy,
            idle,
            warm,
            target_cpu_percent,
            metrics,
            standing,
            mood: None,
            manual: None,
            paused_in: max.is_some(),
            paused_out: false,
            rollout: None,
        }
    }

    #[test]
    fn the_scaling_of_one_service_is_that_of_the_instance() {
        let only = scaling(Some(4), 3);

        assert_eq!(Scaling::of_all(&[&only]), only);
    }

    #[test]
    fn the_scaling_of_several_services_is_their_sum() {
        let sum = Scaling::of_all(&[&scaling(Some(4), 3), &scaling(Some(6), 2)]);
        assert_eq!((sum.min, sum.max, sum.desired, sum.ready, sum.draining), (Some(10), Some(10), 6, 5, 2));
        assert_eq!((sum.idle, sum.warm), (0, 4));
        assert_eq!((sum.target_cpu_percent, sum.standing), (None, None));
        assert!(sum.paused_in && !sum.paused_out);

        let mixed = Scaling::of_all(&[&scaling(Some(4), 3), &scaling(None, 2)]);
        assert_eq!((mixed.max, mixed.ready), (None, 5));
    }

    #[test]
    fn the_agent_ends_when_all_its_services_do() {
        use Phase::{Running, Starting, Stopping};

        assert_eq!(phase_of([Running, Stopping].into_iter()), Running);
        assert_eq!(phase_of([Running, Starting].into_iter()), Starting);
        assert_eq!(phase_of([Stopping, Stopping].into_iter()), Stopping);
    }

    #[test]
    fn a_process_that_only_waits_to_be_reaped_is_dead() {
        assert!(is_living_agent("123 (lb-user) S 1 123 0"));
        assert!(!is_living_agent("123 (lb-user) Z 1 123 0"));
        assert!(!is_living_agent("123 (bash) S 1 123 0"));
        assert!(!is_living_agent(""));
    }
}
