//! Containers that are frozen: the last one while nobody comes, and the reserve.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpStream,
    time::{Duration, Instant, SystemTime},
};

use lb_tests::{
    agent::{self, Agent, assert_no_failure, detach},
    deaths::unix_ns,
    lab::{self, run, wait_until},
    site::{IMAGE, Site, docker},
    step::Steady,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::ask;

/// So many milliseconds are hardly ever exceeded by a wake on a busy machine with two processors; an agent that is waited for,
/// or a SYN that is repeated, takes a second.
const SOON: Duration = Duration::from_millis(300);

/// Returns whether a container's control group is frozen, by the kernel's word.
pub fn is_frozen(container: &str) -> bool {
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", container]);
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.trim())).unwrap_or_default();
    let group = |name: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, of, path) = (fields.next()?, fields.next()?, fields.next()?);
            (of == name).then(|| path.to_owned())
        })
    };
    let read = |path: String| fs::read_to_string(path).unwrap_or_default();
    match group("freezer") {
        Some(path) => read(format!("/sys/fs/cgroup/freezer{path}/freezer.state")).trim() == "FROZEN",
        None => read(format!("/sys/fs/cgroup{}/cgroup.events", group("").unwrap_or_default())).contains("frozen 1"),
    }
}

fn only(site: &Site) -> String {
    let containers = site.containers();
    assert_eq!(containers.len(), 1, "{containers:?}");
    containers.into_iter().next().expect("one")
}

fn wait_asleep(agent: &Agent, site: &Site) -> String {
    agent.wait_for("nobody comes, so the only one sleeps", Duration::from_secs(40), |status| {
        // And not what a former agent has left.
        status["agent"]["pid"] == agent.pid() && status["scaling"]["idle"] == 1 && status["scaling"]["desired"] == 0
    });
    let status = agent.status();
    assert_eq!((&status["health"], status["scaling"]["ready"].as_u64()), (&"healthy".into(), Some(0)), "{status:#}");
    let backend = &status["frontends"][0]["backends"][0];
    assert_eq!((&backend["state"], &backend["slot"]), (&"idle".into(), &true.into()), "{status:#}");
    let container = only(site);
    wait_until("the kernel says so, too", Duration::from_secs(2), || is_frozen(&container));
    container
}

/// Asks as the client on a new connection; returns how long that took.
pub fn first_request(site: &Site) -> Duration {
    let address = site.address();
    lab::inside(&site.client(), || {
        let began = Instant::now();
        let mut stream = TcpStream::connect(&address).expect("its kernel answers");
        ask(&mut stream).expect("it is answered");
        began.elapsed()
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

pub fn who_is_asked_for_nothing_sleeps_and_wakes() {
    let cycles = std::env::var("LB_CYCLES").ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(4);
    let site = Site::new(11);
    let mut agent = site.start(&["--min", "0", "--max", "2"]);
    agent.wait_ready(1);
    let container = wait_asleep(&agent, &site);
    let mut times = Vec::new();
    for cycle in 0..cycles {
        match cycle % 10 {
            // Many at once, and new ones all the while.
            1 => {
                let report = site.wrk(2, true).wait_with_output().expect("wrk ends");
                assert!(assert_no_failure(&String::from_utf8_lossy(&report.stdout)) > 100);
            }
            // A process on this host.
            3 => {
                let url = format!("http://127.0.0.1:{}/", site.port());
                let began = Instant::now();
                let answer = run(std::process::Command::new("curl").args(["-s", "-m", "3", &url]));
                assert!(answer.contains("Hello") && began.elapsed() < SOON, "{:?}: {answer}", began.elapsed());
            }
            _ => {
                let took = first_request(&site);
                assert!(took < SOON, "{took:?}\n{}", agent.log());
                times.push(took);
            }
        }
        agent
            .wait_for("it is awake", Duration::from_secs(5), |status| status["scaling"]["desired"].as_u64() >= Some(1));
        assert!(!is_frozen(&container));
        assert_eq!(wait_asleep(&agent, &site), container, "the same, thawed and frozen again");
    }
    eprintln!("first requests of a frozen service: median {:?} of {}, {times:?}", median(times.clone()), times.len());
    let events = agent.status()["verdicts"]["events"].clone();
    assert!(events["woken"].as_u64() >= Some(cycles) && events["wake_lost"] == 0, "{events}");

    let began = Instant::now();
    agent.stop(Signal::SIGTERM);
    assert!(began.elapsed() < Duration::from_secs(8), "thawed first, or it could not end before it is killed");
    site.assert_gone();
}

pub fn the_reserve_serves_before_anything_is_started() {
    let cycles: u64 = std::env::var("LB_CYCLES").ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(2);
    let site = Site::new(12);
    let mut agent = site.start(&["--min", "1", "--max", "2", "--warm", "1"]);
    let settled = |ready: u64| {
        agent.wait_for("there is one in reserve", Duration::from_secs(60), |status| {
            let count = |state: &str| status["scaling"][state].as_u64();
            (count("ready"), count("warm"), count("starting"), count("draining"))
                == (Some(ready), Some(1), Some(0), Some(0))
        });
    };
    // By hand, as a host that others use up is given no more by demand, whatever there is in reserve.
    let scale = |count: &str| {
        let output = agent::lb_user(&["scale", count, "--instance", site.instance()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    settled(1);
    let mut times = Vec::new();
    for cycle in 0..cycles {
        let before = site.containers();
        let frozen = || before.iter().filter(|container| is_frozen(container)).count();
        wait_until("the reserve is frozen", Duration::from_secs(5), || frozen() == 1);
        let (address, first) = (site.address(), site.host());
        let began = Instant::now();
        scale("2");
        let took = lab::inside(&site.client(), || {
            loop {
                let mut stream = TcpStream::connect(&address).expect("it listens");
                if !answer(&mut stream).contains(&first) {
                    return began.elapsed();
                }
                assert!(began.elapsed() < Duration::from_secs(20), "nobody comes to help\n{}", agent.log());
            }
        });
        assert!(took < SOON, "cycle {cycle}: {took:?}\n{}", agent.log());
        times.push(took);
        settled(2);
        assert_eq!(site.containers().intersection(&before).count(), 2, "cycle {cycle}: it was there already");
        // One that drains is kept instead of another; of the two, one is one too many.
        scale("1");
        settled(1);
        wait_until("two are left", Duration::from_secs(20), || site.containers().len() == 2);
    }
    let told = format!("{times:?}");
    eprintln!("from the order of another to its first answer: median {:?}, {told}", median(times));

    // The reserve follows SIGTERM like the others.
    let began = Instant::now();
    agent.stop(Signal::SIGTERM);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    site.assert_gone();
}

pub fn a_step_is_answered_between_two_ticks() {
    let cycles: usize = std::env::var("LB_CYCLES").ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(4);
    let site = Site::new(21);
    // Long intervals, so that hardly any tick falls between a step and its answer; little for each container, so that a host
    // that is in use has room for two.
    let steady = Steady::start(&site, 1, "3s", "0.3");
    let mut answers = Vec::new();
    for _ in 0..cycles {
        let before = site.containers();
        wait_until("the reserve is frozen", Duration::from_secs(5), || before.iter().any(|one| is_frozen(one)));
        let reserve = before.iter().find(|one| is_frozen(one)).expect("it is frozen").clone();
        let answered = steady.step(|| assert!(!is_frozen(&reserve), "another one serves"));
        eprintln!("a step is answered after {:?}: {}", answered.after, answered.reason);
        assert!(answered.reason.contains("burst: arrivals"), "{}", answered.reason);
        answers.push(answered);
        if answers.iter().any(|answered| answered.is_surge) && answers.len() >= cycles.min(2) {
            break;
        }
    }
    assert!(answers.iter().any(|answered| answered.is_surge), "no tick was waited for: {answers:?}");
}

/// Asks on a connection, and returns the answer.
fn answer(stream: &mut TcpStream) -> String {
    use std::io::{Read as _, Write as _};
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("it is open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.contains("Hello"), "{answer}");
    answer
}

pub fn a_killed_agent_leaves_nobody_asleep() {
    let site = Site::new(13);
    let mut times = Vec::new();
    let mut container = String::new();
    for _ in 0..3 {
        let agent = site.start(&["--min", "0", "--max", "2", "--warm", "1"]);
        agent.wait_for("one sleeps, and one is in reserve", Duration::from_secs(60), |status| {
            let (idle, warm) = (&status["scaling"]["idle"], &status["scaling"]["warm"]);
            status["agent"]["pid"] == agent.pid() && *idle == 1 && *warm == 1
        });
        let both = site.containers();
        assert_eq!(both.len(), 2, "adopted, not replaced");
        wait_until("both are frozen", Duration::from_secs(5), || both.iter().all(|one| is_frozen(one)));
        assert!(container.is_empty() || both.contains(&container));
        agent.crash();
        times.push(first_request(&site));
        let awake: Vec<&String> = both.iter().filter(|one| !is_frozen(one)).collect();
        assert_eq!(awake.len(), 1, "who has a slot; the reserve gets no connections");
        container.clone_from(awake[0]);
    }
    eprintln!("from the kill of the agent to an answer: {times:?}");
    assert!(times.iter().all(|took| *took < SOON), "{times:?}");

    let status = agent::status(site.instance());
    assert!(status["problems"].to_string().contains("is frozen"), "the reserve is told of: {status:#}");
    // Asked to end and to keep everything, the agent leaves nobody asleep either.
    let mut agent = site.start(&["--min", "0", "--max", "2", "--keep"]);
    wait_asleep(&agent, &site);
    agent.stop(Signal::SIGTERM);
    assert!(!is_frozen(&only(&site)));
    assert!(first_request(&site) < SOON);
    detach(site.instance(), true);
    site.assert_gone();
}

pub fn what_is_left_frozen_is_told_and_thawed() {
    let site = Site::new(14);
    let kill_both = |agent: Agent| {
        let pid = agent.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("the agent has a child");
        let watchdog: i32 = children.trim().parse().expect("one child");
        kill(Pid::from_raw(watchdog), Signal::SIGKILL).expect("it runs");
        agent.crash();
    };
    let agent = site.start(&["--min", "0", "--max", "2"]);
    let container = wait_asleep(&agent, &site);
    kill_both(agent);
    assert!(is_frozen(&container), "nobody is left to thaw it");
    let told = agent::status(site.instance())["problems"].to_string();
    assert!(told.contains("is frozen, and there is no agent to thaw it"), "{told}");

    // The next agent does, and goes on.
    let agent = site.start(&["--min", "0", "--max", "2"]);
    agent.wait_ready(1);
    wait_until("it is thawed", Duration::from_secs(2), || !is_frozen(&container));
    assert!(first_request(&site) < SOON);
    assert_eq!(wait_asleep(&agent, &site), container);

    // A watchdog that is killed alone is replaced.
    let children = || {
        let pid = agent.pid();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default().trim().parse::<i32>().ok()
    };
    let former = children().expect("one child");
    kill(Pid::from_raw(former), Signal::SIGKILL).expect("it runs");
    wait_until("there is another", Duration::from_secs(10), || children().is_some_and(|pid| pid != former));
    kill_both(agent);
    assert!(is_frozen(&container));

    detach(site.instance(), false);
    assert!(!is_frozen(&container), "detach leaves nobody frozen");
    detach(site.instance(), true);
    site.assert_gone();
}

pub fn who_is_frozen_can_be_taken_away() {
    let site = Site::new(15);
    let agent = site.start(&["--min", "0", "--max", "2", "--warm", "1"]);
    let both = |without: &BTreeSet<String>| {
        agent.wait_for("one sleeps, and one is in reserve", Duration::from_secs(60), |status| {
            status["scaling"]["idle"] == 1 && status["scaling"]["warm"] == 1
        });
        // What is left of the former ones is removed a moment later.
        wait_until("two others are there", Duration::from_secs(20), || {
            let containers = site.containers();
            containers.len() == 2 && containers.is_disjoint(without)
        });
        let containers = site.containers();
        wait_until("both are frozen", Duration::from_secs(5), || containers.iter().all(|one| is_frozen(one)));
        containers
    };
    let first = both(&BTreeSet::new());
    docker(&[&["rm", "-f"], &first.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    let second = both(&first);
    docker(&[&["stop", "-t", "1"], &second.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    let third = both(&second);

    // The engine refuses to pause what is frozen, and nothing comes of it.
    for container in &third {
        let refused = std::process::Command::new("docker").args(["pause", container]).output().expect("docker starts");
        assert!(!refused.status.success(), "{}", String::from_utf8_lossy(&refused.stdout));
    }
    assert!(first_request(&site) < SOON, "{}", agent.log());
}

/// Returns the code with which a container has ended, by the engine's word.
fn exit_code(container: &str, since: SystemTime) -> i32 {
    let seconds = |time| (unix_ns(time) / 1_000_000_000).to_string();
    let (since, until) = (seconds(since), seconds(SystemTime::now() + Duration::from_secs(1)));
    let filters = ["--filter", &format!("container={container}"), "--filter", "event=die"];
    let format = ["--since", &since, "--until", &until, "--format", "{{.Actor.Attributes.exitCode}}"];
    let told = docker(&[&["events"], &filters[..], &format[..]].concat());
    told.trim().parse().unwrap_or_else(|_| panic!("one death of {container}: {told:?}"))
}

pub fn who_is_frozen_takes_the_signal_that_ends_it() {
    let site = Site::new(15);
    let agent = site.start(&["--min", "0", "--max", "2", "--warm", "1"]);
    let settled = || {
        agent.wait_for("one sleeps, and one is in reserve", Duration::from_secs(60), |status| {
            let count = |state: &str| status["scaling"][state].as_u64();
            (count("idle"), count("warm"), count("desired")) == (Some(1), Some(1), Some(0))
        });
        wait_until("there are two", Duration::from_secs(20), || site.containers().len() == 2);
        let containers = site.containers();
        wait_until("both are frozen", Duration::from_secs(5), || containers.iter().all(|one| is_frozen(one)));
        containers
    };
    let mut there = settled();
    for _ in 0..2 {
        for container in there.clone() {
            let (since, began) = (SystemTime::now(), Instant::now());
            docker(&["stop", "--time", "20", &container]);
            let took = began.elapsed();
            let code = exit_code(&container, since);
            eprintln!("one that was frozen stopped in {took:?}, with code {code}");
            assert_ne!(code, 137, "it was killed at the end of its grace, after {took:?}\n{}", agent.log());
        }
        let next = settled();
        assert!(next.is_disjoint(&there), "others have taken their places");
        there = next;
    }
    assert!(agent.status()["decisions"].to_string().contains("is thawed to take a signal from outside"));
    assert!(first_request(&site) < SOON, "{}", agent.log());
}

pub fn a_service_that_sleeps_can_be_removed() {
    let site = Site::new(16);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("services.toml");
    let name = site.instance();
    let top = format!("instance = \"{name}\"\ninterval = \"500ms\"\nuplinks = [\"{}\"]\n", site.uplink());
    let service = |service: &str, port: u32, bounds: &str| {
        format!(
            "[[service]]\nname = \"{service}\"\nimage = \"{IMAGE}\"\npublish = \"{port}:5000\"\n{bounds}\n\
             health = \"http:/healthz\"\nnetwork = \"{name}\"\nscale-down-window = \"3s\"\ndrain-timeout = \"4s\"\n"
        )
    };
    let stays = service("stays", site.port(), "min = 1\nmax = 1");
    let sleeps = service("sleeps", site.port() + 100, "min = 0\nmax = 2\nwarm = 1");
    let write = |services: &[&str]| fs::write(&file, top.clone() + &services.concat()).expect("it can be written");
    let of = |service: &str| -> BTreeSet<String> {
        let ours = format!("label=io.lb-user.instance={name}");
        let its = format!("label=io.lb-user.service={service}");
        let told = docker(&["ps", "-aq", "--no-trunc", "--filter", &ours, "--filter", &its]);
        told.lines().map(str::to_owned).collect()
    };
    write(&[&stays, &sleeps]);
    let mut agent = Agent::start_file(None, name, &file);
    agent.wait_for("one sleeps, and one is in reserve", Duration::from_secs(60), |status| {
        let scaling = &status["services"][1]["scaling"];
        (&scaling["idle"], &scaling["warm"], &scaling["desired"]) == (&1.into(), &1.into(), &0.into())
    });
    let (kept, removed) = (of("stays"), of("sleeps"));
    assert_eq!((kept.len(), removed.len()), (1, 2));
    wait_until("both are frozen", Duration::from_secs(5), || removed.iter().all(|one| is_frozen(one)));

    let (since, began) = (SystemTime::now(), Instant::now());
    write(&[&stays]);
    agent.signal(Signal::SIGHUP);
    wait_until("they are taken away", Duration::from_secs(30), || of("sleeps").is_empty());
    eprintln!("two that were frozen were taken away in {:?}", began.elapsed());
    for container in &removed {
        assert_ne!(exit_code(container, since), 137, "thawed first, or it is killed\n{}", agent.log());
    }
    agent.wait_for("the other service is all there is", Duration::from_secs(10), |status| {
        status["health"] == "healthy" && status["services"].as_array().map(Vec::len) == Some(1)
    });
    assert_eq!(of("stays"), kept);
    assert!(first_request(&site) < SOON);
    agent.stop(Signal::SIGTERM);
    site.assert_gone();
}

pub fn a_pause_keeps_nobody_asleep_who_is_asked() {
    let site = Site::new(16);
    let agent = site.start(&["--min", "0", "--max", "2"]);
    let verb = |words: &[&str]| {
        let output = agent::lb_user(&[words, &["--instance", site.instance()]].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    for directions in [&["pause"][..], &["pause", "--out"], &["pause", "--in"]] {
        let container = wait_asleep(&agent, &site);
        verb(directions);
        std::thread::sleep(Duration::from_secs(1));
        assert!(is_frozen(&container), "{directions:?}: nobody has come");
        let took = first_request(&site);
        assert!(took < SOON, "{directions:?}: {took:?}\n{}", agent.log());
        agent.wait_for("it is awake", Duration::from_secs(5), |status| status["scaling"]["desired"] == 1);
        if directions != ["pause", "--out"] {
            // As long as it takes to fall asleep, and longer.
            std::thread::sleep(Duration::from_secs(6));
            assert!(!is_frozen(&container), "{directions:?}: fewer are not to be wanted");
            assert!(first_request(&site) < SOON);
        }
        verb(&["resume"]);
    }
    wait_asleep(&agent, &site);
}
