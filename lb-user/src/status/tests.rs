//! Golden tests of the page, the document and the exit codes, all from one literal snapshot.

use serde_json::Value;

use super::{snapshot::*, *};

const PLAIN: Style = Style { width: 100, colours: false };

fn hook(hook: HookKind, interface: Option<&str>, attach: Attach) -> HookPoint {
    HookPoint { hook, interface: interface.map(Into::into), attach }
}

fn backend(number: u32, state: BackendState) -> Backend {
    Backend {
        name: format!("lb-default-{number}"),
        container_id: Some(format!("{number}f4c1d2e3b4a5")),
        address: Some(format!("172.17.0.{}:5000", number + 2)),
        state,
        slot: state == BackendState::Ready,
        weight: 1,
        slow_start_percent: None,
        reach: Some(Reach::Veth),
        interface: Some(format!("veth{number}a2b3c4")),
        connections_active: 12,
        connections_total: 3104,
        local_connections_total: 41,
        ingress: Traffic { packets: 31_200, bytes: 25_794_970 },
        egress: Traffic { packets: 52_100, bytes: 367_001_600 },
        handshakes: Handshakes {
            accepted: 3063,
            p50_us: Some(64),
            p99_us: Some(2048),
            latency_log2_us: vec![0, 0, 3, 610, 900, 1400, 100, 20, 15, 9, 6],
            refused: 1,
            retransmitted: 4,
            waiting: 0,
            reset: 2,
        },
        responses: Responses {
            count: 2950,
            p50_us: Some(2048),
            p99_us: Some(524_288),
            latency_log2_us: vec![0, 0, 0, 0, 0, 0, 0, 10, 100, 700, 1900, 100, 50, 40, 10, 5, 3, 2, 30],
        },
        cpu_percent: Some(8.25),
        last_error: None,
    }
}

fn service(name: &str, ready: u32, frontends: &[&str]) -> Service {
    Service {
        name: name.into(),
        phase: Phase::Running,
        scaling: Scaling {
            min: Some(2),
            max: Some(10),
            desired: ready,
            ready,
            starting: 0,
            draining: 1,
            unhealthy: 0,
            idle: 0,
            warm: 0,
            target_cpu_percent: Some(100.0),
            metrics: Some("host-cpu (100%)".into()),
            standing: Some("a load of 37 % asks for 4, and 4 there are".into()),
            mood: None,
            manual: None,
            paused_in: false,
            paused_out: false,
            rollout: None,
        },
        frontends: frontends.iter().map(ToString::to_string).collect(),
    }
}

fn healthy() -> Snapshot {
    let hooks = vec![hook(HookKind::Tc, Some("eth0"), Attach::Tcx), hook(HookKind::Connect, None, Attach::CgroupLink)];
    Snapshot {
        instance: "default".into(),
        taken_unix: 1_700_008_040,
        agent: Agent {
            alive: true,
            pid: 123,
            heartbeat_age_ms: 400,
            heartbeat_interval_ms: 1000,
            version: "0.1.0".into(),
            started_unix: 1_700_000_000,
            first_started_unix: 1_690_000_000,
            phase: Phase::Running,
        },
        hooks: hooks.clone(),
        cpu: Cpu { load_percent: Some(37.2) },
        scaling: Scaling {
            min: Some(2),
            max: Some(10),
            desired: 4,
            ready: 4,
            starting: 0,
            draining: 1,
            unhealthy: 0,
            idle: 0,
            warm: 0,
            target_cpu_percent: Some(100.0),
            metrics: Some("host-cpu (100%)".into()),
            standing: Some("a load of 37 % asks for 4, and 4 there are".into()),
            mood: None,
            manual: None,
            paused_in: false,
            paused_out: false,
            rollout: None,
        },
        services: vec![service("default", 4, &["80/tcp"])],
        frontends: vec![Frontend {
            service: "default".into(),
            name: "80/tcp".into(),
            addresses: vec!["192.0.2.2:80".into(), "10.0.0.5:80".into(), "127.0.0.1:80".into()],
            protocol: "tcp".into(),
            scheduler: "round-robin".into(),
            affinity_ms: None,
            max_connections: None,
            hooks,
            guard: crate::config::Guard::default(),
            connections_total: 12_416,
            local_connections_total: 164,
            connections_active: 50,
            ingress: Traffic { packets: 124_800, bytes: 103_179_880 },
            egress: Traffic { packets: 208_400, bytes: 1_468_006_400 },
            backends: vec![
                backend(0, BackendState::Ready),
                backend(1, BackendState::Ready),
                backend(2, BackendState::Ready),
                backend(3, BackendState::Ready),
                Backend { connections_active: 2, cpu_percent: Some(0.4), ..backend(4, BackendState::Draining) },
            ],
        }],
        verdicts: Verdicts {
            passes: [("not_ours", 1_204), ("not_ip", 30), ("scope", 0)].map(|(k, v)| (k.to_owned(), v)).into(),
            drops: [("no_memory".to_owned(), 0)].into(),
            events: [("proven".to_owned(), 12_252)].into(),
        },
        flows: Flows { established: 48, half_open: 3, datagrams: 5, local: 2, capacity: 1_048_576 },
        decisions: [
            (93_000, "start", 3, 3, None, "two are needed at least", 1),
            (92_000, "adopted", 3, 3, None, "three containers of an earlier life", 1),
            (61_000, "scale_up", 3, 5, Some(48.0), "a load of 48 % for 3 s asks for 5", 1),
            (60_500, "start_failed", 5, 5, Some(48.0), "create container lb-default-4: the engine did not answer", 3),
            (31_000, "scale_down", 5, 4, Some(36.9), "for 30 s no more than 4 were asked for", 1),
            (
                30_900,
                "drain",
                4,
                4,
                Some(36.9),
                "lb-default-4 is the newest of 5, and 4 are wanted: it leaves the \
              rotation and is stopped once its connections have ended",
                1,
            ),
        ]
        .into_iter()
        .map(|(age_ms, kind, from, to, load_percent, reason, times)| Decision {
            service: "default".into(),
            age_ms,
            kind: kind.into(),
            from,
            to,
            load_percent,
            reason: reason.into(),
            times,
        })
        .collect(),
        problems: vec![],
    }
}

/// The same with everything wrong that can be.
fn degraded() -> Snapshot {
    let mut snapshot = healthy();
    snapshot.agent.alive = false;
    snapshot.agent.heartbeat_age_ms = 12_300;
    snapshot.scaling = Scaling { ready: 0, starting: 1, draining: 0, unhealthy: 1, standing: None, ..snapshot.scaling };
    snapshot.frontends[0].backends = vec![
        Backend {
            last_error: Some("connect to 172.17.0.2:5000: connection refused".into()),
            ..backend(0, BackendState::Unhealthy)
        },
        Backend {
            address: None,
            reach: None,
            interface: None,
            cpu_percent: None,
            ..backend(1, BackendState::Starting)
        },
    ];
    snapshot.verdicts.drops.insert("no_memory".into(), 7);
    snapshot.decisions.clear();
    snapshot.problems = vec!["hook tc at eth0 is detached: somebody removed it".into()];
    snapshot
}

/// Two services, and one that was removed and is drained.
fn several() -> Snapshot {
    let mut snapshot = healthy();
    let mut web = Service { name: "web".into(), ..snapshot.services[0].clone() };
    web.scaling.manual = Some(Manual { count: 4, age_ms: 60_000, left_ms: Some(540_000) });
    web.scaling.paused_in = true;
    web.scaling.rollout = Some(Rollout { replaced: 1, of: 4, parallel: 2 });
    let mut cache = service("cache", 2, &["6379/tcp"]);
    cache.scaling =
        Scaling { min: None, max: None, target_cpu_percent: None, standing: None, draining: 0, ..cache.scaling };
    let mut old = service("old", 0, &["81/tcp"]);
    old.phase = Phase::Stopping;
    old.scaling = Scaling { desired: 0, standing: None, ..old.scaling };
    snapshot.scaling = Scaling { min: None, max: None, desired: 6, ready: 6, draining: 2, ..cache.scaling.clone() };
    let of = |service: &str, name: &str, backends: Vec<Backend>| Frontend {
        service: service.into(),
        name: name.into(),
        backends,
        ..snapshot.frontends[0].clone()
    };
    let fixed = |number: u32| Backend {
        name: format!("10.0.0.{number}:6379"),
        address: Some(format!("10.0.0.{number}:6379")),
        container_id: None,
        cpu_percent: None,
        ..backend(number, BackendState::Ready)
    };
    let leaving = vec![Backend { connections_active: 2, slot: false, ..backend(6, BackendState::Draining) }];
    let mut frontends = vec![
        of("web", "80/tcp", snapshot.frontends[0].backends.clone()),
        of("cache", "6379/tcp", vec![fixed(2), fixed(3)]),
        of("old", "81/tcp", leaving),
    ];
    frontends[1].addresses = vec!["192.0.2.2:6379".into()];
    frontends[2].addresses.clear();
    for (decision, service) in snapshot.decisions.iter_mut().zip(["web", "web", "web", "web", "cache", "old"]) {
        decision.service = service.into();
    }
    (snapshot.services, snapshot.frontends) = (vec![web, cache, old], frontends);
    snapshot
}

#[test]
fn several_services_are_told_apart() {
    let page = render(&several(), PLAIN);

    assert_eq!(page, include_str!("golden/several.txt"), "\n{page}");
    assert_eq!(several().health(), Exit::Healthy, "a frontend that is on its way out needs no ready backend");
}

#[test]
fn a_healthy_instance_is_a_calm_page() {
    let page = render(&healthy(), PLAIN);

    assert_eq!(page, include_str!("golden/healthy.txt"), "\n{page}");
}

#[test]
fn a_degraded_instance_says_what_is_wrong() {
    let page = render(&degraded(), PLAIN);

    assert_eq!(page, include_str!("golden/degraded.txt"), "\n{page}");
}

#[test]
fn a_narrow_terminal_gets_fewer_columns() {
    let page = render(&healthy(), Style { width: 64, ..PLAIN });

    assert_eq!(page, include_str!("golden/narrow.txt"), "\n{page}");
}

#[test]
fn no_line_is_longer_than_the_terminal() {
    for width in 60..200 {
        for snapshot in [healthy(), degraded(), several()] {
            let page = render(&snapshot, Style { width, ..PLAIN });

            let longest = page.lines().map(|line| line.chars().count()).max();
            assert!(longest <= Some(width.into()), "{width}\n{page}");
        }
    }
}

#[test]
fn tiny_terminals_and_empty_snapshots_do_no_harm() {
    let mut empty = healthy();
    (empty.frontends, empty.decisions, empty.hooks) = (vec![], vec![], vec![]);
    for width in [0, 1, 2, 10, 19, 40] {
        for snapshot in [&empty, &healthy(), &degraded(), &several()] {
            assert!(render(snapshot, Style { width, ..PLAIN }).ends_with('\n'));
        }
    }
}

#[test]
fn colours_change_nothing_but_colours() {
    let page = render(&degraded(), Style { colours: true, ..PLAIN });

    assert!(page.contains("\x1b[1;31m! the agent is dead (pid 123"), "{page}");
    let mut bare = String::new();
    for (position, part) in page.split('\x1b').enumerate() {
        bare.push_str(if position == 0 { part } else { part.split_once('m').map_or("", |(_, text)| text) });
    }
    let trimmed: Vec<&str> = bare.lines().map(str::trim_end).collect();
    assert_eq!(trimmed, render(&degraded(), PLAIN).lines().collect::<Vec<_>>());
}

#[test]
fn static_backends_are_not_scaled() {
    let mut snapshot = degraded();
    snapshot.scaling = Scaling { min: None, max: None, target_cpu_percent: None, ..snapshot.scaling };

    let page = render(&snapshot, PLAIN);

    assert!(!page.contains("scaling:"), "{page}");
    let joined = page.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(joined.contains("the kernel goes on balancing; backends are not checked"), "{page}");
}

#[test]
fn the_document_has_the_keys_of_its_schema() {
    let mut snapshot = healthy();
    snapshot.frontends[0].backends.truncate(1);
    snapshot.decisions.truncate(1);

    let document = snapshot.json();

    assert_eq!(document, include_str!("golden/healthy.json").trim_end(), "\n{document}");
}

#[test]
fn a_frontend_says_how_it_chooses_and_when_a_backend_is_full() {
    let mut snapshot = healthy();
    let frontend = &mut snapshot.frontends[0];
    (frontend.scheduler, frontend.affinity_ms, frontend.max_connections) = ("maglev".into(), Some(90_000), Some(1_500));

    let page = render(&snapshot, PLAIN);

    assert!(page.contains("maglev  ·  affinity 1m 30s  ·  at most 1500 connections each"), "{page}");
    let document: Value = serde_json::from_str(&snapshot.json()).expect("a document");
    assert_eq!(document["frontends"][0]["max_connections"], 1_500);
}

#[test]
fn the_document_is_read_back() {
    let read: Snapshot = serde_json::from_str(&healthy().json()).expect("a document");

    assert_eq!(read, healthy());
}

#[test]
fn the_document_of_a_degraded_instance_has_every_finding() {
    let document: Value = serde_json::from_str(&degraded().json()).expect("a document");

    assert_eq!(document["schema"], 1);
    assert_eq!(document["health"], "degraded");
    assert_eq!(
        document["problems"],
        serde_json::json!([
            "the agent is dead (pid 123, last heartbeat 12 s ago): start lb-user run again",
            "frontend 80/tcp has no ready backend: new connections are refused",
            "hook tc at eth0 is detached: somebody removed it",
        ])
    );
    assert_eq!(document["frontends"][0]["backends"][1]["address"], Value::Null);
}

#[test]
fn every_name_in_the_document_is_the_documented_one() {
    let names =
        |values: Vec<Value>| values.iter().map(|name| name.as_str().unwrap_or("?").to_owned()).collect::<Vec<_>>();
    fn all<T: Serialize>(values: &[T]) -> Vec<Value> {
        values.iter().map(|value| serde_json::to_value(value).expect("a name")).collect()
    }

    assert_eq!(
        names(all(&[HookKind::Tc, HookKind::Xdp, HookKind::XdpGeneric, HookKind::Connect])),
        ["tc", "xdp", "xdp-generic", "connect"]
    );
    assert_eq!(
        names(all(&[Attach::Tcx, Attach::Clsact, Attach::XdpLink, Attach::CgroupLink])),
        ["tcx", "clsact", "xdp-link", "cgroup-link"]
    );
    assert_eq!(
        names(all(&[
            BackendState::Starting,
            BackendState::Ready,
            BackendState::Idle,
            BackendState::Warm,
            BackendState::Draining,
            BackendState::Unhealthy,
            BackendState::Stopped
        ])),
        ["starting", "ready", "idle", "warm", "draining", "unhealthy", "stopped"]
    );
    assert_eq!(
        names(all(&[Reach::Veth, Reach::Neighbour, Reach::Routed, Reach::Local])),
        ["veth", "neighbour", "routed", "local"]
    );
    assert_eq!(names(all(&[Phase::Starting, Phase::Running, Phase::Stopping])), ["starting", "running", "stopping"]);
}

/// A change, what it is called, and how `status` ends after it.
type HealthRow = (&'static str, fn(&mut Snapshot), Exit);

#[test]
fn the_exit_code_tells_whether_anything_is_wrong() {
    let rows: [HealthRow; 11] = [
        ("as it is", |_| {}, Exit::Healthy),
        ("the agent is gone", |snapshot| snapshot.agent.alive = false, Exit::Degraded),
        ("the agent hangs", |snapshot| snapshot.agent.heartbeat_age_ms = 5_001, Exit::Degraded),
        ("the agent is late", |snapshot| snapshot.agent.heartbeat_age_ms = 5_000, Exit::Healthy),
        (
            "a slow agent is late",
            |snapshot| (snapshot.agent.heartbeat_interval_ms, snapshot.agent.heartbeat_age_ms) = (60_000, 299_000),
            Exit::Healthy,
        ),
        ("a problem", |snapshot| snapshot.problems.push("a hook is gone".into()), Exit::Degraded),
        ("no backends", |snapshot| snapshot.frontends[0].backends.clear(), Exit::Degraded),
        (
            "ready backends without slots",
            |snapshot| snapshot.frontends[0].backends.iter_mut().for_each(|backend| backend.slot = false),
            Exit::Degraded,
        ),
        (
            "one ready backend is left",
            |snapshot| {
                snapshot.frontends[0].backends[1..]
                    .iter_mut()
                    .for_each(|backend| (backend.state, backend.slot) = (BackendState::Unhealthy, false));
            },
            Exit::Healthy,
        ),
        (
            "a second frontend without backends",
            |snapshot| {
                let second = Frontend { backends: vec![], ..snapshot.frontends[0].clone() };
                snapshot.frontends.push(second);
            },
            Exit::Degraded,
        ),
        (
            "packets were dropped",
            |snapshot| *snapshot.verdicts.drops.entry("no_memory".into()).or_default() = 1,
            Exit::Healthy,
        ),
    ];
    for (name, change, exit) in rows {
        let mut snapshot = healthy();

        change(&mut snapshot);

        assert_eq!(snapshot.health(), exit, "{name}");
    }
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    let codes = [Exit::Healthy, Exit::Degraded, Exit::NotRunning, Exit::Usage].map(Exit::code);

    assert_eq!(codes, [0, 1, 2, 64]);
}

#[test]
fn an_instance_that_does_not_run_is_told_with_those_that_do() {
    let answer = |others: &[&str]| NotRunning {
        instance: "web".into(),
        pin_path: "/sys/fs/bpf/lb/web".into(),
        others: others.iter().map(ToString::to_string).collect(),
    };

    let first = "instance web is not running: nothing is pinned at /sys/fs/bpf/lb/web\n";
    assert_eq!(answer(&[]).to_string(), format!("{first}no other instance runs on this host\n"));
    assert_eq!(
        answer(&["api"]).to_string(),
        format!("{first}one other instance runs: lb-user status --instance api\n")
    );
    assert_eq!(
        answer(&["api", "dns"]).to_string(),
        format!("{first}other instances run: api, dns; name one with --instance\n")
    );
    let document: Value = serde_json::from_str(&answer(&["api"]).json()).expect("a document");
    assert_eq!(
        document,
        serde_json::json!({
            "schema": 1,
            "health": "not-running",
            "instance": "web",
            "pin_path": "/sys/fs/bpf/lb/web",
            "others": ["api"],
        })
    );
}
