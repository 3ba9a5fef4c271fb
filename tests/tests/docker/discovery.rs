//! Containers that others start: found by their labels, balanced, and never stopped by the agent.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use lb_tests::{
    agent::{Agent, lb_user},
    lab::{command_in, run},
    site::{IMAGE, Site, docker},
};
use nix::sys::signal::Signal;

/// Containers that the test starts, as somebody would who knows nothing of an agent; they end with this.
pub struct Others<'a> {
    site: &'a Site,
}

impl<'a> Others<'a> {
    /// Starts none yet.
    pub fn of(site: &'a Site) -> Self {
        Self { site }
    }

    /// Starts one on the site's network with some labels, and returns its id.
    pub fn start(&self, name: &str, labels: &str) -> String {
        self.start_with(name, labels, &["--network", self.site.instance()])
    }

    /// Starts one with more options.
    pub fn start_with(&self, name: &str, labels: &str, options: &[&str]) -> String {
        let name = format!("{}{name}", self.prefix());
        let of = self.label();
        let mut words = vec!["run", "-d", "--name", &name, "--hostname", &name, "--label", "lb.enable=true"];
        words.extend(["--label", &of]);
        labels.split_whitespace().for_each(|label| words.extend(["--label", label]));
        words.extend(options);
        words.push(IMAGE);
        docker(&words).trim().to_owned()
    }

    fn prefix(&self) -> String {
        format!("{}-", self.site.instance())
    }

    /// Returns the label that all of them have.
    pub fn label(&self) -> String {
        format!("lb.instance={}", self.site.instance())
    }

    /// Returns those that run.
    pub fn running(&self) -> BTreeSet<String> {
        let filter = format!("label={}", self.label());
        docker(&["ps", "-q", "--no-trunc", "--filter", &filter]).lines().map(str::to_owned).collect()
    }
}

impl Drop for Others<'_> {
    fn drop(&mut self) {
        let filter = format!("label={}", self.label());
        let all = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output();
        for id in String::from_utf8_lossy(&all.map(|all| all.stdout).unwrap_or_default()).lines() {
            let _gone_already = Command::new("docker").args(["rm", "-f", id]).output();
        }
    }
}

/// Starts an agent that finds them.
pub fn start(site: &Site, more: &[&str]) -> Agent {
    let (publish, uplink) = (site.port().to_string(), site.uplink());
    let fixed = [
        "--discover",
        "--publish",
        &publish,
        "--uplink",
        &uplink,
        "--health",
        "http:/healthz",
        "--drain-timeout",
        "4s",
    ];
    Agent::start(None, site.instance(), &[&fixed[..], more].concat())
}

/// Asks by a new connection each, for as long as the work takes and a second longer; returns how many failed of how many.
fn asked_meanwhile(site: &Site, work: impl FnOnce()) -> (usize, usize) {
    let (client, url) = (site.client(), site.url());
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let (mut failed, mut asked) = (0, 0);
            while !is_over.load(order) {
                let mut curl = command_in(&client, "curl");
                let status = curl.args(["-sf", "-o", "/dev/null", "-m", "5", &url]).status().expect("curl starts");
                failed += usize::from(!status.success());
                asked += 1;
            }
            (failed, asked)
        });
        work();
        std::thread::sleep(Duration::from_secs(1));
        is_over.store(true, order);
        load.join().expect("the client does not panic")
    })
}

pub fn containers_of_others_are_found_by_their_labels() {
    let site = Site::new(10);
    let others = Others::of(&site);
    // One is there before the agent, and listens where its label says.
    let first = others.start("a", "lb.port=5000");
    let mut agent = start(&site, &[]);
    agent.wait_ready(1);
    assert_eq!(site.host(), format!("{}a", others.prefix()));

    let began = Instant::now();
    let second = others.start("b", "lb.port=5000 lb.weight=3");
    agent.wait_ready(2);
    eprintln!("another served {:?} after it was asked for", began.elapsed());
    let hosts: BTreeSet<String> = (0..4).map(|_| site.host()).collect();
    assert_eq!(hosts.len(), 2, "{hosts:?}");

    // Another agent takes them over as they are.
    agent.crash();
    agent = start(&site, &[]);
    agent.wait_ready(2);
    assert!(agent.log().contains("had its slot already"), "{}", agent.log());
    assert_eq!(agent.status()["scaling"]["max"], serde_json::Value::Null, "their number is not ours to decide");

    // Paused, it gets nothing, and comes back by itself.
    docker(&["pause", &second]);
    agent.wait_for("the paused one is out", Duration::from_secs(10), |status| status["scaling"]["ready"] == 1);
    docker(&["unpause", &second]);
    agent.wait_ready(2);

    // One that shares this host's network is reached by an address of the uplink.
    let at = format!("{}:{}", site.host_address(), site.port() + 1000);
    let listen = format!("LB_API_LISTEN={at}");
    let label = format!("lb.port={}", site.port() + 1000);
    let third = others.start_with("host", &label, &["--network", "host", "--env", &listen]);
    agent.wait_ready(3);
    // Two rounds: it is ready a moment before it has its slot.
    let hosts: BTreeSet<String> = (0..6).map(|_| site.host()).collect();
    assert_eq!(hosts.len(), 3, "{hosts:?}");
    let status = agent.status();
    let backends = status["frontends"][0]["backends"].as_array().expect("a list");
    let local = backends.iter().find(|backend| backend["address"] == at.as_str()).expect("it is shown");
    assert_eq!(local["reach"], "local");
    // What a run would do is told of it as well; it would be refused beside this one.
    let port = site.port().to_string();
    let would = ["run", "--dry-run", "--discover", "--instance", site.instance(), "--publish", &port];
    let told = lb_user(&[&would[..], &["--uplink", &site.uplink()]].concat());
    let told = String::from_utf8_lossy(&told.stdout);
    assert!(told.contains(": 3 there\n"), "{told}");

    agent.stop(Signal::SIGTERM);
    assert_eq!(others.running(), [first, second, third].into(), "none is stopped by us");
    site.assert_gone();
}

pub fn a_container_that_is_stopped_by_others_loses_nothing() {
    let site = Site::new(11);
    let others = Others::of(&site);
    let ids = ["a", "b"].map(|name| others.start(name, "lb.port=5000"));
    let agent = start(&site, &[]);
    agent.wait_ready(2);

    let (failed, asked) = asked_meanwhile(&site, || {
        std::thread::sleep(Duration::from_millis(300));
        docker(&["stop", &ids[1]]);
        docker(&["start", &ids[1]]);
        agent.wait_ready(2);
        docker(&["stop", &ids[0]]);
    });

    eprintln!("{asked} asked, {failed} failed");
    assert_eq!((failed, asked > 30), (0, true), "{failed} of {asked} failed\n{}", agent.log());
    agent.wait_ready(1);
    let decisions = agent.status()["decisions"].to_string();
    assert!(decisions.contains("is asked to end from outside"), "{decisions}");
}

pub fn containers_of_others_that_cannot_be_served_are_told() {
    let site = Site::new(12);
    let others = Others::of(&site);
    let agent = start(&site, &["--max", "1"]);
    let told = |what: &str, words: &[&str]| {
        agent.wait_for(what, Duration::from_secs(10), |status| {
            let problems = status["problems"].to_string();
            words.iter().all(|word| problems.contains(word))
        });
    };
    others.start("right", "lb.port=5000");
    agent.wait_ready(1);

    others.start("port", "lb.port=http");
    others.start("silent", "");
    others.start("typo", "lb.port=5000 lb.wieght=3");
    others.start("elsewhere", "lb.port=5000 lb.service=nobody");
    others.start("further", "lb.port=5000");
    let none = others.start_with("none", "lb.port=5000", &["--network", "none"]);
    let lines = [
        "port is left out: lb.port is \\\"http\\\"",
        "typo is left out: there is no label lb.wieght",
        "elsewhere is left out: lb.service is \\\"nobody\\\", and no service of that name",
        "further is left out: there are 1 already",
        "none is left out: it has no address on network none",
    ];
    told("each is told", &lines);
    let page = lb_user(&["status", "--instance", site.instance()]);
    assert!(String::from_utf8_lossy(&page.stdout).contains("is left out"), "{page:?}");

    docker(&["rm", "-f", &none]);
    agent.wait_for("one that has gone is told no longer", Duration::from_secs(10), |status| {
        !status["problems"].to_string().contains("none is left out")
    });
    let answer = run(command_in(&site.client(), "curl").args(["-sf", "-m", "3", &site.url()]));
    assert!(answer.contains("right"), "{answer}");
}
