//! The whole set-up with a real engine: containers that scale, drain, die and are taken over.
//!
//! Clients come from a namespace of their own, by a veth that stands for the uplink.

use std::{
    collections::BTreeSet,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use lb_tests::{
    agent::{Agent, assert_no_failure, binary, detach},
    lab::{self, command_in, run, wait_until},
    site::{IMAGE, Load, Site, docker},
    suite::{self, Case, Need},
};
use nix::sys::signal::Signal;

#[path = "docker/deaths.rs"]
mod deaths;
#[path = "docker/discovery.rs"]
mod discovery;
#[path = "docker/engine.rs"]
mod engine;
#[path = "docker/frost.rs"]
mod frost;
#[path = "docker/orders.rs"]
mod orders;
#[path = "docker/rollout.rs"]
mod rollout;

const TOOLS: &[Need] = &[
    Need::Root,
    Need::Agent,
    Need::Docker,
    Need::Program("ip"),
    Need::Program("curl"),
    Need::Program("wrk"),
    Need::Program("stress-ng"),
];

/// For engines of our own.
const ENGINE: &[Need] = &[
    Need::Root,
    Need::Agent,
    Need::Docker,
    Need::Program("ip"),
    Need::Program("curl"),
    Need::Program("wrk"),
    Need::Program("dockerd"),
    Need::Program("containerd"),
];

fn main() -> ExitCode {
    let case = |name, run| Case { name, needs: TOOLS, run };
    suite::run(vec![
        case("containers_answer_in_turn_and_leave_nothing", containers_answer_in_turn_and_leave_nothing),
        case("load_scales_up_and_down_without_a_failed_request", load_scales_up_and_down_without_a_failed_request),
        case("demand_is_answered_and_foreign_load_is_not", demand_is_answered_and_foreign_load_is_not),
        case("a_killed_container_is_replaced", a_killed_container_is_replaced),
        case(
            "twenty_deaths_are_heard_of_at_once_and_told_once",
            deaths::twenty_deaths_are_heard_of_at_once_and_told_once,
        ),
        case(
            "a_container_that_its_engine_restarts_is_watched_again",
            deaths::a_container_that_its_engine_restarts_is_watched_again,
        ),
        Case {
            name: "an_engine_that_is_away_costs_nobody_a_request",
            needs: ENGINE,
            run: engine::an_engine_that_is_away_costs_nobody_a_request,
        },
        Case {
            name: "containers_that_end_with_their_engine_come_back",
            needs: ENGINE,
            run: engine::containers_that_end_with_their_engine_come_back,
        },
        case("a_killed_agent_is_replaced_without_loss", a_killed_agent_is_replaced_without_loss),
        case("an_agent_killed_while_it_publishes_loses_nothing", an_agent_killed_while_it_publishes_loses_nothing),
        case("containers_reach_the_frontend", containers_reach_the_frontend),
        case("services_have_containers_of_their_own", services_have_containers_of_their_own),
        case("containers_are_reached_by_both_families", containers_are_reached_by_both_families),
        case(
            "orders_hold_while_clients_are_served_and_agents_come_and_go",
            orders::orders_hold_while_clients_are_served_and_agents_come_and_go,
        ),
        case(
            "orders_that_make_no_sense_are_refused_and_change_nothing",
            orders::orders_that_make_no_sense_are_refused_and_change_nothing,
        ),
        case(
            "a_dry_run_tells_what_a_run_would_do_and_does_nothing",
            orders::a_dry_run_tells_what_a_run_would_do_and_does_nothing,
        ),
        case("containers_of_the_hosts_own_network_are_balanced", containers_of_the_hosts_own_network_are_balanced),
        case("who_is_asked_for_nothing_sleeps_and_wakes", frost::who_is_asked_for_nothing_sleeps_and_wakes),
        case("the_reserve_serves_before_anything_is_started", frost::the_reserve_serves_before_anything_is_started),
        case("a_step_is_answered_between_two_ticks", frost::a_step_is_answered_between_two_ticks),
        case("a_killed_agent_leaves_nobody_asleep", frost::a_killed_agent_leaves_nobody_asleep),
        case("what_is_left_frozen_is_told_and_thawed", frost::what_is_left_frozen_is_told_and_thawed),
        case("who_is_frozen_can_be_taken_away", frost::who_is_frozen_can_be_taken_away),
        case("who_is_frozen_takes_the_signal_that_ends_it", frost::who_is_frozen_takes_the_signal_that_ends_it),
        case("a_service_that_sleeps_can_be_removed", frost::a_service_that_sleeps_can_be_removed),
        case("a_pause_keeps_nobody_asleep_who_is_asked", frost::a_pause_keeps_nobody_asleep_who_is_asked),
        case("a_crashing_image_is_held_back", a_crashing_image_is_held_back),
        case(
            "containers_of_others_are_found_by_their_labels",
            discovery::containers_of_others_are_found_by_their_labels,
        ),
        case(
            "a_container_that_is_stopped_by_others_loses_nothing",
            discovery::a_container_that_is_stopped_by_others_loses_nothing,
        ),
        case(
            "containers_of_others_that_cannot_be_served_are_told",
            discovery::containers_of_others_that_cannot_be_served_are_told,
        ),
        case(
            "changed_settings_and_another_image_are_rolled_out_without_a_failed_request",
            rollout::changed_settings_and_another_image_are_rolled_out_without_a_failed_request,
        ),
        case("who_sleeps_is_rolled_out_and_answers_meanwhile", rollout::who_sleeps_is_rolled_out_and_answers_meanwhile),
        case("the_rollout_of_a_killed_agent_goes_on", rollout::the_rollout_of_a_killed_agent_goes_on),
        case("an_image_that_crashes_ends_its_rollout", rollout::an_image_that_crashes_ends_its_rollout),
        case("mistakes_are_explained_and_leave_nothing", mistakes_are_explained_and_leave_nothing),
        case("images_and_networks_are_checked_before", images_and_networks_are_checked_before),
    ])
}

fn containers_answer_in_turn_and_leave_nothing() {
    let site = Site::new(1);
    let mut agent = site.start(&["--min", "3", "--max", "3"]);
    agent.wait_ready(3);
    let hosts: Vec<String> = (0..9).map(|_| site.host()).collect();
    assert_eq!(hosts[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{hosts:?}");
    assert!(hosts[..3] == hosts[3..6] && hosts[..3] == hosts[6..], "{hosts:?}");

    agent.wait_for("each container's CPU is told", Duration::from_secs(10), |status| {
        let backends = status["frontends"][0]["backends"].as_array().cloned().unwrap_or_default();
        backends.iter().all(|backend| backend["cpu_percent"].is_number())
    });

    let local = |address: &str| {
        let url = format!("http://{address}:{}/", site.port());
        run(Command::new("curl").args(["-s", "-m", "3", &url]))
    };
    let mut locals: Vec<String> = (0..3).map(|_| local("127.0.0.1")).collect();
    locals.extend((0..3).map(|_| local("localhost")));
    assert_eq!(locals.iter().collect::<BTreeSet<_>>().len(), 3, "{locals:?}");

    agent.stop(Signal::SIGINT);
    site.assert_gone();
}

fn load_scales_up_and_down_without_a_failed_request() {
    let cycles: u32 = std::env::var("LB_CYCLES").ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(2);
    let site = Site::new(2);
    let agent = site.start(&["--min", "2", "--max", "4", "--metric", "host-cpu", "--target-cpu", "70"]);
    agent.wait_ready(2);
    // Gentle enough to let the load fall, and there all the while: new connections, and connections that are kept.
    let clients = [site.gentle_wrk(true), site.gentle_wrk(false)];
    for cycle in 0..cycles {
        let stress = Load::start(Command::new("stress-ng").args(["--cpu", "2", "--timeout", "60s", "-q"]));
        agent.wait_for("the load brings all four", Duration::from_secs(30), |status| status["scaling"]["ready"] == 4);
        let mut hosts = BTreeSet::new();
        wait_until("reloads show all four hosts", Duration::from_secs(10), || {
            hosts.insert(site.host());
            hosts.len() == 4
        });
        stress.finish();
        agent.wait_for("the rest brings two back", Duration::from_secs(60), |status| {
            let others = ["draining", "starting", "unhealthy"].iter().all(|state| status["scaling"][state] == 0);
            status["scaling"]["ready"] == 2 && others
        });
        wait_until("two containers are left", Duration::from_secs(20), || site.containers().len() == 2);
        eprintln!("cycle {cycle}: four and two again");
    }
    for client in clients {
        let requests = assert_no_failure(&client.finish());
        eprintln!("{requests} requests, none failed");
        assert!(requests > 300 * u64::from(cycles));
    }
    let decisions = agent.status()["decisions"].clone();
    let kinds: BTreeSet<&str> =
        decisions.as_array().unwrap().iter().filter_map(|decision| decision["kind"].as_str()).collect();
    assert!(kinds.contains("scale_up") && kinds.contains("scale_down"), "{kinds:?}");
}

fn demand_is_answered_and_foreign_load_is_not() {
    let site = Site::new(9);
    let metrics = ["--metric", "connections=4", "--metric", "arrivals"];
    let agent = site.start(&[&["--min", "1", "--max", "3", "--cpus", "0.1"], &metrics[..]].concat());
    agent.wait_ready(1);
    assert_eq!(agent.status()["scaling"]["metrics"], "arrivals (70 %) and connections (4)");

    let stress = Load::start(Command::new("stress-ng").args(["--cpu", "0", "--timeout", "60s", "-q"]));
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(agent.status()["scaling"]["desired"], 1, "a load of others is nothing to answer");
    let client = site.gentle_wrk(false);
    agent.wait_for("eight clients of a host that others use up are told so", Duration::from_secs(15), |status| {
        let decisions = status["decisions"].as_array().cloned().unwrap_or_default();
        decisions.iter().any(|decision| decision["kind"] == "host_saturated")
    });
    assert_eq!(agent.status()["scaling"]["desired"], 1, "they would share the same processors");

    stress.finish();
    let began = Instant::now();
    agent.wait_for("processors that are free are used", Duration::from_secs(60), |status| {
        status["scaling"]["ready"].as_u64() >= Some(2)
    });
    eprintln!("another served {:?} after the others' load ended", began.elapsed());
    let words = ["explain", "--instance", site.instance(), "--json", "--if", "max=1"];
    let explained = run(Command::new(binary()).args(words));
    let explained: serde_json::Value = serde_json::from_str(&explained).expect("a document");
    assert!(explained["record"]["verdict"]["target"].as_u64() >= Some(2), "{explained}");
    assert_eq!(explained["supposed"]["verdict"]["target"], 1, "{explained}");
    assert!(explained["record"]["evidence"]["used"].as_f64() > Some(0.0), "control groups are read: {explained}");
    assert_eq!(explained["record"]["evidence"]["limit"], 0.1, "and their quota: {explained}");

    assert_no_failure(&client.finish());
    agent.wait_for("without clients one is enough", Duration::from_secs(60), |status| {
        status["scaling"]["ready"] == 1 && status["scaling"]["draining"] == 0
    });
}

fn a_killed_container_is_replaced() {
    let site = Site::new(3);
    let agent = site.start(&["--min", "3", "--max", "3"]);
    agent.wait_ready(3);
    let before = site.containers();
    let victim = before.first().expect("a container").clone();
    let client = site.client();
    let url = site.url();
    let (killed, failures) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut failures = Vec::new();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(4) {
                let asked = Instant::now();
                let status = command_in(&client, "curl")
                    .args(["-s", "-o", "/dev/null", "-m", "3", &url])
                    .status()
                    .expect("curl starts");
                if !status.success() {
                    failures.push(asked);
                }
            }
            failures
        });
        std::thread::sleep(Duration::from_secs(1));
        docker(&["kill", &victim]);
        let killed = Instant::now();
        (killed, load.join().expect("the client does not panic"))
    });
    let late = failures.iter().filter(|asked| asked.saturating_duration_since(killed) > Duration::from_millis(200));
    assert_eq!(late.count(), 0, "{} failures, some asked later than 200 ms after the kill", failures.len());
    agent.wait_ready(3);
    wait_until("the dead one is removed", Duration::from_secs(10), || !site.containers().contains(&victim));
    assert_eq!(site.containers().intersection(&before).count(), 2);
    let kinds = agent.status()["decisions"].to_string();
    assert!(kinds.contains("backend_died"), "{kinds}");
}

fn a_killed_agent_is_replaced_without_loss() {
    let site = Site::new(4);
    let agent = site.start(&["--min", "2", "--max", "2"]);
    agent.wait_ready(2);
    let before = site.containers();
    let loads = [site.wrk(8, true), site.wrk(8, false)];
    std::thread::sleep(Duration::from_secs(2));
    agent.crash();
    std::thread::sleep(Duration::from_secs(1));
    let next = site.start(&["--min", "2", "--max", "2"]);
    next.wait_ready(2);
    for load in loads {
        let report = load.wait_with_output().unwrap();
        assert!(assert_no_failure(&String::from_utf8_lossy(&report.stdout)) > 100);
    }
    assert_eq!(site.containers(), before, "adopted, not replaced");
    next.crash();
    detach(site.instance(), true);
    site.assert_gone();
}

fn an_agent_killed_while_it_publishes_loses_nothing() {
    let site = Site::new(8);
    for turn in 0..3 {
        let agent = site.start(&["--min", "2", "--max", "2"]);
        // The very moment in which the kernel has both.
        wait_until("both have a slot", Duration::from_secs(20), || {
            let status = agent.status();
            let backends = status["frontends"][0]["backends"].as_array().cloned().unwrap_or_default();
            backends.iter().filter(|backend| backend["slot"] == true).count() == 2
        });
        agent.crash();
        let address = site.address();
        let mut held: Vec<_> = lab::inside(&site.client(), || {
            (0..4).map(|_| std::net::TcpStream::connect(&address).expect("the kernel balances")).collect()
        });

        let next = site.start(&["--min", "2", "--max", "2"]);
        next.wait_ready(2);
        // Long enough for what is taken for dead to be swept.
        std::thread::sleep(Duration::from_secs(2));
        for stream in &mut held {
            ask(stream).unwrap_or_else(|error| panic!("turn {turn}: a connection is lost: {error}\n{}", next.log()));
        }
        drop(held);
        next.crash();
        detach(site.instance(), true);
        site.assert_gone();
    }
}

/// Asks once, on a connection that is kept.
fn ask(stream: &mut std::net::TcpStream) -> std::io::Result<()> {
    use std::io::{Error, Read as _, Write as _};
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut room = [0; 1024];
    while !answer.ends_with(b"}") {
        match stream.read(&mut room)? {
            0 => return Err(Error::other(format!("closed after {} bytes", answer.len()))),
            len => answer.extend_from_slice(&room[..len]),
        }
    }
    let is_right = answer.starts_with(b"HTTP/1.1 200");
    is_right.then_some(()).ok_or_else(|| Error::other(String::from_utf8_lossy(&answer).into_owned()))
}

fn containers_reach_the_frontend() {
    let site = Site::new(5);
    let agent = site.start(&["--min", "2", "--max", "2"]);
    agent.wait_ready(2);
    let container = site.containers().first().expect("a container").clone();
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", &container]);
    let from_container = || {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", pid.trim()))
            .args(["curl", "-s", "-m", "3", &site.url()])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let answers: BTreeSet<String> = (0..4).map(|_| from_container()).collect();
    assert!(answers.len() == 2 && answers.iter().all(|answer| answer.contains("Hello")), "{answers:?}");
}

/// A container that a test has started itself; it ends with this.
struct Started(String);

impl Started {
    /// Starts one that answers with this name.
    fn new(name: String, network: &str, listen: &str) -> Self {
        let listen = format!("LB_API_LISTEN={listen}");
        let names = ["--name", &name, "--hostname", &name];
        let rest = ["--network", network, "--env", &listen, IMAGE];
        docker(&[&["run", "--detach", "--rm"], &names[..], &rest].concat());
        Self(name)
    }

    fn inspect(&self, format: &str) -> String {
        docker(&["inspect", "--format", format, &self.0]).trim().to_owned()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _gone_already = Command::new("docker").args(["rm", "-f", &self.0]).output();
    }
}

fn containers_of_the_hosts_own_network_are_balanced() {
    let site = Site::new(10);
    let name = |rest: &str| format!("{}{rest}", site.instance());
    let own = [18_510, 18_511].map(|port| format!("{}:{port}", site.host_address()));
    let mut containers: Vec<Started> =
        own.iter().zip(["a", "b"]).map(|(listen, rest)| Started::new(name(rest), "host", listen)).collect();
    let bridged = Started::new(name("c"), site.instance(), "0.0.0.0:5000");
    let there = format!("{}:5000", bridged.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"));
    let pid = bridged.inspect("{{.State.Pid}}");
    containers.push(bridged);
    let (port, uplink) = (site.port().to_string(), site.uplink());
    let backends = ["--backend", &own[0], "--backend", &own[1], "--backend", &there];
    let fixed = ["--publish", &port, "--uplink", &uplink, "--health", "http:/healthz"];
    let mut agent = Agent::start(None, site.instance(), &[&fixed[..], &backends].concat());
    agent.wait_ready(3);

    let all: BTreeSet<String> = ["a", "b", "c"].map(name).into();
    let by = |mut command: Command| {
        let output = command.args(["-s", "-m", "3", &site.url()]).output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an answer");
        answer["host"].as_str().expect("a name").to_owned()
    };
    assert_eq!((0..3).map(|_| site.host()).collect::<BTreeSet<_>>(), all, "a client elsewhere");
    assert_eq!((0..3).map(|_| by(Command::new("curl"))).collect::<BTreeSet<_>>(), all, "a process on the host");
    let inside = || {
        let mut command = Command::new("nsenter");
        command.args([&format!("--net=/proc/{pid}/ns/net"), "curl"]);
        command
    };
    assert_eq!((0..3).map(|_| by(inside())).collect::<BTreeSet<_>>(), all, "a container on a bridge");
    let wrk = site.wrk(2, true).wait_with_output().expect("wrk ends");
    assert!(assert_no_failure(&String::from_utf8_lossy(&wrk.stdout)) > 300);
    let status = agent.status();
    let reach = |at: &str| {
        let backends = status["frontends"][0]["backends"].as_array().expect("a list");
        backends.iter().find(|backend| backend["address"] == at).map(|backend| backend["reach"].clone())
    };
    assert_eq!([&own[0], &own[1], &there].map(|at| reach(at).expect(at)), ["local", "local", "veth"]);

    agent.stop(Signal::SIGTERM);
    site.assert_gone();
}

fn services_have_containers_of_their_own() {
    let site = Site::new(8);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services.toml");
    let top = format!("instance = \"{}\"\nuplinks = [\"{}\"]\n", site.instance(), site.uplink());
    let service = |name: &str, port: u32, image: &str, number: u32| {
        format!(
            "[[service]]\nname = \"{name}\"\nimage = \"{image}\"\npublish = \"{port}:5000\"\nmin = {number}\n\
             max = {number}\nhealth = \"http:/healthz\"\nnetwork = \"{}\"\ndrain-timeout = \"4s\"\n",
            site.instance()
        )
    };
    let (port, other) = (site.port(), site.port() + 100);
    let write = |services: &[String]| std::fs::write(&file, top.clone() + &services.concat()).unwrap();
    let start = || Agent::start_file(None, site.instance(), &file);
    let host = || {
        let url = format!("http://{}:{other}/", site.host_address());
        let output = command_in(&site.client(), "curl").args(["-s", "-m", "3", &url]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let named = || {
        let filter = format!("label=io.lb-user.instance={}", site.instance());
        let names = docker(&["ps", "--filter", &filter, "--format", "{{.Names}}"]);
        names.lines().map(str::to_owned).collect::<BTreeSet<String>>()
    };
    let name = |rest: &str| format!("lb-{}-{rest}", site.instance());

    write(&[service("web", port, IMAGE, 2), service("api", other, IMAGE, 1)]);
    let agent = start();
    agent.wait_ready(3);
    assert_eq!(named(), ["web-1", "web-2", "api-1"].map(name).into());
    assert!(host().contains("Hello") && !site.host().is_empty());

    // Another agent finds each service's containers again.
    let before = site.containers();
    agent.crash();
    let mut agent = start();
    agent.wait_ready(3);
    assert_eq!(site.containers(), before, "{}", agent.log());

    // One that cannot be started is told, and left as it was; the other follows.
    write(&[service("web", port, IMAGE, 1), service("api", other, "lb-no-such-image", 1)]);
    agent.signal(Signal::SIGHUP);
    agent.wait_for("the missing image is told", Duration::from_secs(20), |status| {
        status["problems"].to_string().contains("service api is left as it was: image lb-no-such-image:latest")
            && status["services"][0]["scaling"]["desired"] == 1
    });
    assert!(host().contains("Hello"));

    write(&[service("web", port, IMAGE, 1)]);
    agent.signal(Signal::SIGHUP);
    agent.wait_for("the other service is drained", Duration::from_secs(30), |status| {
        status["health"] == "healthy" && status["services"].as_array().map(Vec::len) == Some(1)
    });
    wait_until("its containers are gone", Duration::from_secs(20), || named() == [name("web-1")].into());

    agent.stop(Signal::SIGTERM);
    site.assert_gone();
}

fn containers_are_reached_by_both_families() {
    let site = Site::with_ipv6(9);
    let over_v6 = format!("http://[{}]:{}/", site.host_address_v6(), site.port());
    let ask = |url: &str| run(command_in(&site.client(), "curl").args(["-s", "-f", "-g", "-m", "3", url]));

    // Servers that listen at IPv4 alone serve that, and say so.
    let mut agent = site.start(&["--min", "1", "--max", "1", "--env", "LB_API_LISTEN=0.0.0.0:5000"]);
    agent.wait_for("IPv4 is served, and IPv6 is told not to be", Duration::from_secs(30), |status| {
        status["scaling"]["ready"] == 1
            && status["frontends"][0]["backends"][0]["slot"] == true
            && status["frontends"][1]["backends"][0]["slot"] == false
            && status.to_string().contains("no clients of IPv6 are led to it: connect to [2001:db8:209::")
    });
    assert!(ask(&site.url()).contains("Hello"));
    let refused = command_in(&site.client(), "curl").args(["-s", "-g", "-m", "3", &over_v6]).status().unwrap();
    assert_eq!(refused.code(), Some(7), "curl: failed to connect");
    agent.stop(Signal::SIGINT);

    let mut agent = site.start(&["--min", "2", "--max", "2", "--env", "LB_API_LISTEN=[::]:5000"]);
    agent.wait_ready(2);
    let ask_here = |url: String| run(Command::new("curl").args(["-s", "-f", "-g", "-m", "3", &url]));
    for answers in [
        [ask(&over_v6), ask(&over_v6)],
        [ask(&site.url()), ask(&site.url())],
        [ask_here(format!("http://[::1]:{}/", site.port())), ask_here(format!("http://[::1]:{}/", site.port()))],
    ] {
        assert_ne!(answers[0], answers[1], "each container in its turn");
    }
    let status = agent.status();
    let names = status["frontends"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names, [format!("{}/tcp", site.port()), format!("[::]:{}/tcp", site.port())]);
    for (frontend, beginning) in [(0, "198.19.109."), (1, "[2001:db8:209::")] {
        for backend in status["frontends"][frontend]["backends"].as_array().unwrap() {
            let address = backend["address"].as_str().unwrap_or_default();
            assert!(address.starts_with(beginning) && address.ends_with(":5000"), "{address}");
        }
    }

    agent.stop(Signal::SIGINT);
    site.assert_gone();
}

fn a_crashing_image_is_held_back() {
    let site = Site::new(6);
    let agent = site.start(&["--min", "1", "--max", "2", "--env", "LB_API_LISTEN=nonsense"]);
    agent.wait_for("the failures are told", Duration::from_secs(30), |status| {
        status["health"] == "degraded" && status["problems"].to_string().contains("times in a row")
    });
    std::thread::sleep(Duration::from_secs(6));
    let starts = agent.log().matches("backend died").count();
    assert!((2..8).contains(&starts), "{starts} starts: {}", agent.log());
}

fn mistakes_are_explained_and_leave_nothing() {
    let site = Site::new(7);
    let uplink = site.uplink();
    let cases: [(&[&str], &str); 4] = [
        (&["--image", "lb-api:latest", "--publish", "18087:5000", "--network", "host"], "no address of their own"),
        (&["--image", "lb-no-such-image", "--publish", "18087:5000"], "lb-no-such-image"),
        (&["--image", "lb-api:latest", "--publish", "18087:5000", "--network", "lb-no-such-net"], "lb-no-such-net"),
        (&["--image", "lb-api:latest", "--publish", "18087:5000", "--uplink", "nope0"], "nope0"),
    ];
    for (arguments, word) in cases {
        let mut command = Command::new(binary());
        command.args(["run", "--instance", site.instance()]).args(arguments);
        if !arguments.contains(&"--uplink") {
            command.args(["--uplink", &uplink]);
        }
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && error.contains(word), "{arguments:?}: {error}");
        site.assert_gone();
    }
}

/// A network of containers on macvlans of the uplink, which ends with this.
struct Macvlan(String);

impl Macvlan {
    fn new(site: &Site) -> Self {
        let name = format!("{}m", site.instance());
        let parent = format!("parent={}", site.uplink());
        docker(&["network", "create", "-d", "macvlan", "-o", &parent, "--subnet", "198.19.90.0/24", &name]);
        Self(name)
    }
}

impl Drop for Macvlan {
    fn drop(&mut self) {
        let _gone_already = Command::new("docker").args(["network", "rm", &self.0]).output();
    }
}

fn images_and_networks_are_checked_before() {
    let site = Site::new(12);
    let publish = format!("{}:5000", site.port());
    let fixed = ["--instance", site.instance(), "--publish", &publish, "--uplink", &site.uplink()];
    let said = |engine: Option<&str>, arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["check", "--json"]).args(fixed).args(arguments);
        if let Some(engine) = engine {
            command.env("DOCKER_HOST", engine);
        }
        let output = command.output().expect("lb-user starts");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = document["findings"].as_array().expect("findings").clone();
        let of_containers = findings.into_iter().filter(|finding| finding["group"] == "containers");
        let told = of_containers.filter(|finding| finding["level"] != "ok");
        let told: Vec<String> = told.map(|finding| format!("{} {}", finding["level"], finding["found"])).collect();
        (output.status.code(), told)
    };
    let network = site.instance();

    assert_eq!(said(None, &["--image", IMAGE, "--network", network]), (Some(0), Vec::new()));
    let macvlan = Macvlan::new(&site);
    let (code, told) = said(None, &["--image", IMAGE, "--network", &macvlan.0]);
    assert!(code == Some(0) && told.len() == 1 && told[0].starts_with("\"warning\""), "{told:?}");
    assert!(told[0].contains("(macvlan)"), "{told:?}");
    for (engine, arguments) in [
        (None, ["--image", "lbt-nothing", "--network", network]),
        (None, ["--image", IMAGE, "--network", "lbt-nothing"]),
        (None, ["--image", IMAGE, "--network", "host"]),
        (Some("unix:///run/lbt-nothing.sock"), ["--image", IMAGE, "--network", network]),
    ] {
        let (code, told) = said(engine, &arguments);

        let [found] = told.as_slice() else { panic!("{arguments:?}: {told:?}") };
        let mut run = Command::new(binary());
        run.arg("run").args(fixed).args(arguments).envs(engine.map(|engine| ("DOCKER_HOST", engine)));
        let refused = run.output().expect("lb-user starts");
        let error = String::from_utf8_lossy(&refused.stderr);
        let found = found.trim_start_matches("\"error\" \"").trim_end_matches('"');
        assert!(code == Some(1) && refused.status.code() == Some(1) && error.contains(found), "{error} is not {found}");
    }
    let without = ["--publish", "80", "--uplink", &site.uplink(), "--backend", "198.18.112.2:80", "--health", "none"];
    let mut command = Command::new(binary());
    let output =
        command.arg("check").args(without).env("DOCKER_HOST", "unix:///run/lbt-nothing.sock").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "who needs no containers needs no engine");
    site.assert_gone();
}
