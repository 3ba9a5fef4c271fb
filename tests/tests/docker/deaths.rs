//! Containers that die: how soon they are out of the slots, what is made of it, and that nothing is left behind.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use lb_tests::{
    agent::{Agent, detach},
    deaths::{Slots, kill_by_engine, kill_process, process, told_by_engine, unix_ns},
    lab::{command_in, wait_until},
    site::Site,
};

use crate::discovery::{self, Others};

/// What has served for so long is no crash, and is replaced at once.
const A_LIFE: Duration = Duration::from_secs(11);
const CONTAINERS: u64 = 10;

/// Checks that nearly all of the dead were out of the slots before the engine itself knew of their deaths, however busy the
/// machine is. What is aimed at is a median of 10 ms, which `cargo xtask bench control` measures where nothing else runs.
fn assert_before_engine(label: &str, began: SystemTime, left: &[SystemTime]) {
    let told = told_by_engine(label, began);
    assert_eq!(told.len(), left.len(), "each death is an event of the engine");
    let before = told.iter().zip(left).filter(|(told, left)| unix_ns(**left) < **told).count();
    println!("{before} of {} were out of the slots before the engine knew", left.len());
    assert!(before * 3 >= left.len() * 2, "only {before} of {}", left.len());
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Returns how many descriptors an agent has, and how many of them stand for processes.
fn descriptors(agent: &Agent) -> (usize, usize) {
    let folder = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("the agent runs");
    let targets: Vec<String> = folder
        .flatten()
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        .collect();
    // "anon_inode:[pidfd]", and "pidfd:[…]" since Linux 6.9.
    (targets.len(), targets.iter().filter(|target| target.contains("pidfd")).count())
}

pub fn twenty_deaths_are_heard_of_at_once_and_told_once() {
    let site = Site::new(17);
    let number = CONTAINERS.to_string();
    let start = || site.start(&["--min", &number, "--max", &number]);
    let agent = start();
    agent.wait_ready(CONTAINERS);
    let slots = Slots::of(&site);
    let is_whole = || slots.count() == CONTAINERS && site.containers().len() as u64 == CONTAINERS;
    let first = site.containers();
    std::thread::sleep(A_LIFE);
    let began = SystemTime::now();

    let (over, client, url) = (AtomicBool::new(false), site.client(), site.url());
    let (kills, failures) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut failures = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let mut command = command_in(&client, "curl");
                let status = command.args(["-s", "-o", "/dev/null", "-m", "3", &url]).status().expect("curl starts");
                if !status.success() {
                    failures.push((asked, Instant::now()));
                }
            }
            failures
        });
        let (mut kills, mut left) = (Vec::new(), Vec::new());
        let mut agent = agent;
        let mut before = (0, 0);
        for round in 0..CONTAINERS {
            // Those of the beginning have lived, so that their own ends are no crashes.
            let there: BTreeSet<String> = site.containers();
            let old = there.intersection(&first).next().expect("one dies in each round");
            let took = slots.leave(|| kill_process(old));
            left.push(SystemTime::now());
            kills.push((Instant::now() - took, took, "its process"));
            wait_until("it is replaced", Duration::from_secs(20), &is_whole);

            let there: BTreeSet<String> = site.containers();
            let young = there.difference(&first).last().expect("one was started in each round");
            let took = slots.leave(|| kill_by_engine(young));
            left.push(SystemTime::now());
            kills.push((Instant::now() - took, took, "the engine"));
            wait_until("it is replaced", Duration::from_secs(20), &is_whole);
            if round == 4 {
                wait_until("all are watched", Duration::from_secs(5), || descriptors(&agent).1 as u64 == CONTAINERS);
                before = descriptors(&agent);
                tell_of(&agent, [5, 5]);
                agent.crash();
                agent = start();
                wait_until("all are adopted", Duration::from_secs(20), || {
                    agent.log().contains("adopted") && descriptors(&agent).1 as u64 == CONTAINERS
                });
            }
        }
        over.store(true, Ordering::Relaxed);
        agent.wait_ready(CONTAINERS);
        tell_of(&agent, [5, 5]);
        wait_until("as many are watched as there are", Duration::from_secs(5), || {
            descriptors(&agent).1 as u64 == CONTAINERS
        });
        let after = descriptors(&agent);
        assert!(after.0 <= before.0 + 4, "descriptors, and of processes: {before:?}, then {after:?}");
        assert_before_engine(&format!("io.lb-user.instance={}", site.instance()), began, &left);
        agent.crash();
        (kills, asking.join().expect("the client does not panic"))
    });
    detach(site.instance(), true);

    for by in ["its process", "the engine"] {
        let times: Vec<Duration> = kills.iter().filter(|kill| kill.2 == by).map(|kill| kill.1).collect();
        println!("killed by {by}: {:?} out of the slots, of {times:?}", median(times.clone()));
    }
    // Who has asked shortly after a death, or whose container died meanwhile.
    let is_explained = |(asked, failed): &(Instant, Instant)| {
        kills.iter().any(|(died, ..)| *asked <= *died + Duration::from_millis(100) && failed >= died)
    };
    let others = failures.iter().filter(|failure| !is_explained(failure)).count();
    println!("{} requests failed", failures.len());
    assert_eq!(others, 0, "of {} failures", failures.len());
}

/// Checks that so many deaths were told, by exit code and by the engine's doing, each once, and that none counts as a crash.
fn tell_of(agent: &Agent, [exited, killed]: [usize; 2]) {
    let log = agent.log();
    let told = |how: &str| log.lines().filter(|line| line.contains("backend died") && line.contains(how)).count();
    assert_eq!(told("ended with exit code 137"), exited, "{log}");
    assert_eq!(told("killed from outside"), killed, "{log}");
    assert_eq!(told(""), exited + killed, "{log}");
    assert_eq!(agent.status()["problems"].to_string(), "[]");
}

pub fn a_container_that_its_engine_restarts_is_watched_again() {
    let site = Site::new(18);
    // Of others: containers of the agent's own would be replaced by it meanwhile, where the engine takes its time.
    let others = Others::of(&site);
    let network = ["--network", site.instance()];
    let victim = others.start_with("a", "lb.port=5000", &[&network[..], &["--restart=always"]].concat());
    others.start("b", "lb.port=5000");
    let agent = discovery::start(&site, &[]);
    agent.wait_ready(2);
    let slots = Slots::of(&site);

    let began = SystemTime::now();
    let mut processes = BTreeSet::new();
    let mut left = Vec::new();
    for _ in 0..3 {
        assert!(processes.insert(process(&victim)), "another process each time");
        slots.leave(|| kill_process(&victim));
        left.push(SystemTime::now());
        wait_until("it serves again", Duration::from_secs(20), || slots.count() == 2);
    }

    assert_before_engine(&others.label(), began, &left);
    let log = agent.log();
    let deaths = log.lines().filter(|line| line.contains("backend died")).count();
    assert_eq!(deaths, 3, "each told once: {log}");
    assert!(others.running().contains(&victim), "it was left to its engine");
}
