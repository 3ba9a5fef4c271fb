//! A step of the demand for real containers, and how soon another of them serves.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use lb_user::datapath::{Maps, Pins};
use serde_json::Value;

use crate::{
    agent::{Agent, lb_user},
    deaths::Slots,
    lab::{self, command_in},
    site::{IMAGE, Load, Site},
};

/// What each connection costs until the step, in milliseconds: about 17 of them come a second, a seventh of a processor.
const COSTLY: &str = "burn?ms=8";
/// So many connections within moments are the step, and not what comes all the time.
const BEGUN: u64 = 4;
/// Backends that a site here has at most.
const PLACES: u32 = 8;
/// How long the step may take to be answered.
const LIMIT: Duration = Duration::from_secs(20);
/// Until the cost of connections is learned, and what came at the last step is forgotten.
const SETTLED: Duration = Duration::from_secs(120);

/// A service of one container that is asked for something all the while.
pub struct Steady<'a> {
    site: &'a Site,
    agent: Agent,
    warm: u64,
    slots: Slots,
    maps: Maps,
    _load: Load,
}

/// What came of a step.
#[derive(Clone, Debug)]
pub struct Answered {
    /// From its first requests to a slot more.
    pub after: Duration,
    /// Whether it was decided between two ticks.
    pub is_surge: bool,
    /// Why, for people.
    pub reason: String,
}

impl<'a> Steady<'a> {
    /// Starts an agent for one to two containers, with so many more in reserve, and clients that come all the while. Windows
    /// are short for what happens between the steps: a burst does not wait for them. What one container may use, `cpus`, is
    /// to be more than 0.2: the clients of a step wait for answers, so that one that is throttled lets fewer come.
    pub fn start(site: &'a Site, warm: u64, interval: &str, cpus: &str) -> Self {
        let (publish, uplink, network) = (format!("{}:5000", site.port()), site.uplink(), site.instance());
        let reserve = warm.to_string();
        let agent = Agent::start(
            None,
            site.instance(),
            &[
                &["--image", IMAGE, "--publish", &publish, "--uplink", &uplink, "--network", network][..],
                &["--interval", interval, "--scale-up-window", "1s", "--scale-down-window", "3s"],
                &["--drain-timeout", "2s", "--health", "http:/healthz", "--cpus", cpus],
                &["--min", "1", "--max", "2", "--warm", &reserve, "--metric", "arrivals"],
            ]
            .concat(),
        );
        agent.wait_ready(1);
        let mut wrk = command_in(&site.client(), "wrk");
        wrk.args(["-t1", "-c1", "-d3600", "--timeout", "5s", "-H", "Connection: close", "-s"]).arg(site.script());
        let load = Load::start(wrk.arg(format!("{}{COSTLY}", site.url())));
        let maps = Maps::open(&Pins::of(site.instance())).expect("an agent runs");
        let steady = Self { slots: Slots::of(site), site, agent, warm, maps, _load: load };
        steady.settle();
        steady
    }

    /// Returns the agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Waits until one container serves, and it is known what a connection costs.
    fn settle(&self) {
        self.agent.wait_for("one serves, and the reserve is there", SETTLED, |status| {
            let count = |state: &str| status["scaling"][state].as_u64();
            (count("ready"), count("warm"), count("starting"), count("draining"))
                == (Some(1), Some(self.warm), Some(0), Some(0))
        });
        lab::wait_until("the cost of a connection is learned", SETTLED, || {
            let evidence = &self.explained()["record"]["evidence"];
            evidence["cost"].as_f64().is_some() && evidence["ready"] == 1 && evidence["current"] == 1
        });
    }

    fn explained(&self) -> Value {
        let output = lb_user(&["explain", "--json", "--instance", self.site.instance()]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Returns how many connections have begun.
    fn connections(&self) -> u64 {
        (0..PLACES).map(|id| self.maps.traffic(id).map_or(0, |traffic| traffic.connections)).sum()
    }

    /// Lets many come at once, for two seconds, and waits until one container serves again. What is to be done as soon as another
    /// one serves, is.
    pub fn step(&self, as_soon: impl FnOnce()) -> Answered {
        let before = self.slots.count();
        assert_eq!(before, 1, "{}", self.agent.log());
        let mut wrk = command_in(&self.site.client(), "wrk");
        wrk.args(["-t1", "-c8", "-d2", "--timeout", "5s", "-H", "Connection: close"]).arg(self.site.url());
        let mut recent = (Instant::now(), self.connections());
        let mut wrk = wrk.stdout(Stdio::null()).spawn().expect("wrk starts");
        let began = loop {
            let count = self.connections();
            if count >= recent.1 + BEGUN {
                break recent.0;
            }
            // Those that come all the while take longer for so many.
            if recent.0.elapsed() > Duration::from_millis(5) {
                recent = (Instant::now(), count);
            }
            assert!(wrk.try_wait().expect("it is our child").is_none(), "wrk has ended without a request");
            thread::sleep(Duration::from_micros(200));
        };
        while self.slots.count() == before {
            assert!(began.elapsed() < LIMIT, "nobody comes to help\n{}\n{}", self.explained(), self.agent.log());
            thread::sleep(Duration::from_micros(200));
        }
        let after = began.elapsed();
        as_soon();
        let changed = self.changed();
        wrk.wait().expect("wrk ends");
        self.settle();
        let reason = changed["verdict"]["reason"].as_str().unwrap_or_default().to_owned();
        Answered { after, is_surge: !changed["evidence"]["surge"].is_null(), reason }
    }

    /// Returns the decision of the step: the report of it is written a moment later.
    fn changed(&self) -> Value {
        let mut found = Value::Null;
        lab::wait_until("the decision is reported", Duration::from_secs(5), || {
            let explained = self.explained();
            // The last decision, where nothing has been measured since, is not shown twice.
            let all = [&explained["changed"], &explained["record"]];
            let rise =
                all.into_iter().find(|record| record["evidence"]["current"] == 1 && record["verdict"]["target"] == 2);
            found = rise.cloned().unwrap_or_default();
            !found.is_null()
        });
        found
    }
}
