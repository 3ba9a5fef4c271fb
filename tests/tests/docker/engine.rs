//! An engine that is killed, or ends, and returns: what becomes of containers, clients and orders meanwhile.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use lb_tests::{
    agent::{Agent, assert_no_failure, lb_user},
    deaths::Slots,
    engine::{Containers, Engine},
    lab::wait_until,
    site::Site,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn order(site: &Site, count: &str) {
    let told = lb_user(&["scale", count, "--instance", site.instance()]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
}

fn wait_lost(agent: &Agent) {
    agent.wait_for("the engine's absence is told", Duration::from_secs(10), |status| {
        status["problems"].to_string().contains("nothing is started or stopped") && status["health"] == "degraded"
    });
}

/// Waits until so many serve, the engine has as many, and the kernel leads to as many.
fn wait_whole(agent: &Agent, engine: &Engine, slots: &Slots, count: usize) -> BTreeSet<String> {
    let number = count as u64;
    agent.wait_for("all of them serve, and nothing is wrong", Duration::from_secs(60), |status| {
        let scaling = &status["scaling"];
        let others = ["draining", "starting", "unhealthy"].iter().all(|state| scaling[state] == 0);
        status["health"] == "healthy" && scaling["ready"] == number && scaling["desired"] == number && others
    });
    wait_until("there are as many, and all have slots", Duration::from_secs(20), || {
        engine.containers().len() == count && slots.count() == number
    });
    engine.containers().into_iter().collect()
}

pub fn an_engine_that_is_away_costs_nobody_a_request() {
    let site = Site::without_network(19);
    let mut engine = Engine::start(&site, Containers::Outlive);
    let mut agent = site.start_at(&engine, &["--min", "2", "--max", "4"]);
    agent.wait_ready(2);
    let slots = Slots::of(&site);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let before = wait_whole(&agent, &engine, &slots, 2);
        let clients = [site.gentle_wrk(true), site.gentle_wrk(false)];
        std::thread::sleep(Duration::from_secs(1));
        engine.end(signal);
        wait_lost(&agent);
        // What is ordered meanwhile is done later.
        order(&site, "3");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(slots.count(), 2, "{signal}");
        assert_eq!(agent.status()["scaling"]["ready"], 2, "{signal}");

        engine.begin();
        let began = Instant::now();
        let three = wait_whole(&agent, &engine, &slots, 3);
        eprintln!("{signal}: one that was ordered meanwhile served {:?} after the engine's return", began.elapsed());
        assert!(before.is_subset(&three), "{signal}: none is replaced: {before:?}, then {three:?}\n{}", agent.log());
        for client in clients {
            let requests = assert_no_failure(&client.finish());
            eprintln!("{signal}: {requests} requests, none failed");
            assert!(requests > 300, "{signal}: {requests}");
        }

        // Watched as before: by orders, and for deaths, while it is there and while it is not.
        let mut there = three;
        for is_away in [false, true] {
            if is_away {
                order(&site, "2");
                there = wait_whole(&agent, &engine, &slots, 2);
            }
            let (count, victim) = (there.len(), there.first().expect("there are some").clone());
            let process = engine.process(&victim);
            if is_away {
                engine.end(signal);
                wait_lost(&agent);
            }
            kill(Pid::from_raw(process), Signal::SIGKILL).expect("it runs");
            wait_until("it has no slot any more", Duration::from_secs(5), || slots.count() < count as u64);
            if is_away {
                assert_eq!(slots.count(), 1, "{signal}: nobody can be started in its place");
                engine.begin();
            }
            let now = wait_whole(&agent, &engine, &slots, count);
            assert!(!now.contains(&victim), "{signal}: it is replaced");
            assert_eq!(now.intersection(&there).count(), count - 1, "{signal}: and no other");
            there = now;
        }
        assert!(!site.host().is_empty());
    }
    agent.stop(Signal::SIGTERM);
    assert_eq!(engine.containers(), Vec::<String>::new());
    site.assert_gone();
}

pub fn containers_that_end_with_their_engine_come_back() {
    let site = Site::without_network(19);
    let mut engine = Engine::start(&site, Containers::End);
    let mut agent = site.start_at(&engine, &["--min", "2", "--max", "2"]);
    agent.wait_ready(2);
    let slots = Slots::of(&site);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let before = wait_whole(&agent, &engine, &slots, 2);
        engine.end(signal);
        let began = Instant::now();
        wait_lost(&agent);
        // Killed, it can end nobody.
        if signal == Signal::SIGKILL {
            assert!(slots.count() == 2 && !site.host().is_empty());
        } else {
            wait_until("all have ended", Duration::from_secs(5), || slots.count() == 0);
        }

        engine.begin();
        agent.wait_for("the service is back", Duration::from_secs(60), |status| {
            status["health"] == "healthy" && status["scaling"]["ready"] == 2
        });
        let now = wait_whole(&agent, &engine, &slots, 2);
        eprintln!("{signal}: two served again {:?} after the engine had gone", began.elapsed());
        assert!(now.is_disjoint(&before), "{signal}: {before:?}, then {now:?}");
        let hosts: BTreeSet<String> = (0..4).map(|_| site.host()).collect();
        assert_eq!(hosts.len(), 2, "{signal}: {hosts:?}");
    }
    agent.stop(Signal::SIGTERM);
    assert_eq!(engine.containers(), Vec::<String>::new());
    site.assert_gone();
}
