//! Containers of former settings, or of a former image, are replaced while clients go on.

use std::{collections::BTreeSet, path::PathBuf, process::Command, time::Duration};

use lb_tests::{
    agent::{Agent, assert_no_failure, lb_user},
    lab::wait_until,
    site::{IMAGE, Site, docker},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::frost::{first_request, is_frozen};

/// A file of one service that is changed while the agent runs, and an image of the site's own.
struct Bed<'a> {
    site: &'a Site,
    folder: tempfile::TempDir,
}

impl<'a> Bed<'a> {
    fn new(site: &'a Site) -> Self {
        let bed = Self { site, folder: tempfile::tempdir().expect("a folder") };
        docker(&["tag", IMAGE, &bed.image()]);
        bed
    }

    fn image(&self) -> String {
        format!("{}-api", self.site.instance())
    }

    /// Returns the label of the images that are built here.
    fn mark(&self) -> String {
        format!("lb-test={}", self.site.instance())
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("services.toml")
    }

    /// Writes the file, with some more lines.
    fn write(&self, more: &str) {
        self.write_of((3, 3), more);
    }

    /// The same with other bounds.
    fn write_of(&self, (min, max): (u32, u32), more: &str) {
        let (name, image) = (self.site.instance(), self.image());
        let text = format!(
            "instance = \"{name}\"\ninterval = \"500ms\"\nuplinks = [\"{}\"]\n[[service]]\nname = \"{name}\"\nimage = \"{image}\"\n\
             publish = \"{}:5000\"\nmin = {min}\nmax = {max}\nhealth = \"http:/healthz\"\nnetwork = \"{name}\"\n\
             drain-timeout = \"4s\"\n{more}\n",
            self.site.uplink(),
            self.site.port()
        );
        std::fs::write(self.file(), text).expect("it can be written");
    }

    /// Builds another image under the same name, which differs in one line.
    fn build(&self, line: &str) {
        let image = self.image();
        std::fs::write(self.folder.path().join("Dockerfile"), format!("FROM {IMAGE}\n{line}\n"))
            .expect("it can be written");
        let folder = self.folder.path().to_str().expect("a path that is text");
        docker(&["build", "--quiet", "--label", &self.mark(), "--tag", &image, folder]);
    }

    fn start(&self) -> Agent {
        let agent = Agent::start_file(None, self.site.instance(), &self.file());
        agent.wait_ready(3);
        agent
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        for id in self.site.containers() {
            let _gone_already = Command::new("docker").args(["rm", "-f", &id]).output();
        }
        let _gone_already = Command::new("docker").args(["image", "rm", "-f", &self.image()]).output();
        // Those whose name another has got since.
        let filter = format!("label={}", self.mark());
        let built = Command::new("docker").args(["image", "ls", "-q", "--filter", &filter]).output();
        for id in String::from_utf8_lossy(&built.map(|built| built.stdout).unwrap_or_default()).lines() {
            let _gone_already = Command::new("docker").args(["image", "rm", "-f", id]).output();
        }
    }
}

fn is_calm(status: &Value) -> bool {
    let scaling = &status["scaling"];
    let others = ["draining", "starting", "unhealthy"].iter().all(|state| scaling[state] == 0);
    scaling["ready"] == 3 && others && scaling["rollout"].is_null()
}

pub fn changed_settings_and_another_image_are_rolled_out_without_a_failed_request() {
    let site = Site::new(13);
    let bed = Bed::new(&site);
    bed.write("on-change = \"rollout\"");
    let agent = bed.start();
    let clients = [site.gentle_wrk(true), site.gentle_wrk(false)];

    let changes: [(&str, &dyn Fn()); 2] = [
        ("other settings", &|| bed.write("on-change = \"rollout\"\nenv = [\"A=1\"]")),
        ("another image under the same name", &|| bed.build("LABEL version=2")),
    ];
    for (case, change) in changes {
        let before = site.containers();
        change();
        agent.signal(Signal::SIGHUP);
        let least = std::cell::Cell::new(3);
        agent.wait_for(case, Duration::from_secs(60), |status| {
            least.set(least.get().min(status["scaling"]["ready"].as_u64().unwrap_or(3)));
            is_calm(status) && site.containers().is_disjoint(&before)
        });
        assert_eq!(least.get(), 3, "{case}: there are never fewer than wanted\n{}", agent.log());
        assert_eq!(agent.status()["health"], "healthy", "{case}");
    }

    // By the verb, where nothing happens by itself.
    bed.write("");
    agent.signal(Signal::SIGHUP);
    let before = site.containers();
    bed.build("LABEL version=3");
    let verb = |words: &[&str]| lb_user(&[&["rollout", "--instance", site.instance()], words].concat());
    let done = verb(&["--parallel", "2", "--wait=60s"]);
    let told = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && told.contains("replaced"), "{told}\n{}", agent.log());
    agent.wait_for("the verb's rollout is done", Duration::from_secs(20), |status| {
        is_calm(status) && site.containers().is_disjoint(&before)
    });
    let again = verb(&["--wait=60s"]);
    assert!(again.status.success(), "{again:?}");
    agent.wait_for("nothing is left to be replaced", Duration::from_secs(5), |status| {
        status["decisions"].to_string().contains("every container is of today's image and settings")
    });

    for client in clients {
        let requests = assert_no_failure(&client.finish());
        eprintln!("{requests} requests, none failed");
        assert!(requests > 300);
    }
    let decisions = agent.status()["decisions"].to_string();
    assert!(decisions.contains("finished: 3 were replaced in"), "{decisions}");
}

pub fn who_sleeps_is_rolled_out_and_answers_meanwhile() {
    let site = Site::new(13);
    let bed = Bed::new(&site);
    bed.write_of((0, 2), "warm = 1\nscale-down-window = \"3s\"");
    let agent = Agent::start_file(None, site.instance(), &bed.file());
    let wait_asleep = |without: &BTreeSet<String>| {
        agent.wait_for("one sleeps, and one is in reserve", Duration::from_secs(60), |status| {
            let count = |state: &str| status["scaling"][state].as_u64();
            (count("idle"), count("warm"), count("draining"), count("desired")) == (Some(1), Some(1), Some(0), Some(0))
        });
        wait_until("two are left", Duration::from_secs(20), || site.containers().len() == 2);
        let containers = site.containers();
        assert!(containers.is_disjoint(without), "none of before is kept\n{}", agent.log());
        wait_until("both are frozen", Duration::from_secs(5), || containers.iter().all(|one| is_frozen(one)));
        assert_eq!(agent.status()["health"], "healthy", "{:#}", agent.status());
        containers
    };
    let rollout = || {
        let done = lb_user(&["rollout", "--instance", site.instance(), "--wait=60s"]);
        let told = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && told.contains("replaced"), "{told}\n{}", agent.log());
    };

    // Nobody comes.
    let first = wait_asleep(&BTreeSet::new());
    bed.build("LABEL version=2");
    rollout();
    let second = wait_asleep(&first);

    // Somebody comes all the while.
    bed.build("LABEL version=3");
    std::thread::scope(|scope| {
        let done = scope.spawn(rollout);
        let mut asked = 0;
        while !done.is_finished() || asked < 5 {
            assert!(first_request(&site) < Duration::from_secs(1), "{}", agent.log());
            asked += 1;
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("{asked} requests meanwhile");
    });
    wait_asleep(&second);

    // An operator who has changed his mind: nobody stays frozen.
    bed.write_of((1, 2), "scale-down-window = \"3s\"");
    agent.signal(Signal::SIGHUP);
    agent.wait_for("one is left, and runs", Duration::from_secs(30), |status| {
        let count = |state: &str| status["scaling"][state].as_u64();
        (count("ready"), count("idle"), count("warm"), count("desired")) == (Some(1), Some(0), Some(0), Some(1))
    });
    wait_until("the reserve is gone", Duration::from_secs(20), || site.containers().len() == 1);
    assert!(site.containers().iter().all(|one| !is_frozen(one)));
    assert!(first_request(&site) < Duration::from_secs(1));
}

pub fn an_image_that_crashes_ends_its_rollout() {
    let site = Site::new(14);
    let bed = Bed::new(&site);
    bed.write("on-change = \"rollout\"");
    let mut agent = bed.start();
    let before = site.containers();
    let client = site.gentle_wrk(true);

    bed.build("ENV LB_API_LISTEN=nonsense");
    agent.signal(Signal::SIGHUP);
    agent.wait_for("the rollout is aborted, and it is told why", Duration::from_secs(60), |status| {
        let problems = status["problems"].to_string();
        problems.contains("rollout aborted: ") && problems.contains("ended with exit code") && is_calm(status)
    });
    let now = || -> BTreeSet<String> { site.containers() };
    wait_until("what crashed is removed", Duration::from_secs(20), || now() == before);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(now(), before, "nothing is tried by itself");
    assert_no_failure(&client.finish());

    // Asked for once more, it fails once more.
    let again = lb_user(&["rollout", "--instance", site.instance(), "--wait=60s"]);
    let error = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(1) && error.contains("rollout aborted: "), "{error}\n{}", agent.log());
    assert!(before.is_subset(&now()), "{:?}", now());

    // A better one, and settings that are read again: another attempt.
    bed.build("LABEL version=3");
    agent.signal(Signal::SIGHUP);
    bed.write("on-change = \"rollout\"\nslow-start = \"1s\"");
    agent.signal(Signal::SIGHUP);
    agent.wait_for("the better one is rolled out", Duration::from_secs(60), |status| {
        status["health"] == "healthy" && is_calm(status) && now().is_disjoint(&before)
    });
    agent.stop(Signal::SIGTERM);
    site.assert_gone();
}

pub fn the_rollout_of_a_killed_agent_goes_on() {
    let site = Site::new(13);
    let bed = Bed::new(&site);
    bed.write("");
    let agent = bed.start();
    let clients = [site.gentle_wrk(true), site.gentle_wrk(false)];
    let before = site.containers();

    bed.build("LABEL version=2");
    let ordered = lb_user(&["rollout", "--instance", site.instance()]);
    assert!(ordered.status.success(), "{}", String::from_utf8_lossy(&ordered.stderr));
    agent.wait_for("it is half-way", Duration::from_secs(60), |status| {
        status["scaling"]["rollout"]["replaced"].as_u64() >= Some(1)
    });
    agent.crash();
    let mut agent = Agent::start_file(None, site.instance(), &bed.file());
    agent.wait_for("the next agent ends it", Duration::from_secs(60), |status| {
        status["agent"]["pid"] == agent.pid() && is_calm(status) && site.containers().is_disjoint(&before)
    });
    for client in clients {
        let requests = assert_no_failure(&client.finish());
        eprintln!("{requests} requests, none failed");
        assert!(requests > 100);
    }
    assert_eq!(agent.status()["health"], "healthy");
    let log = agent.log();
    assert!(
        log.contains("what a former agent was at goes on: ") && log.contains("finished: 3 were replaced in"),
        "{log}"
    );
    agent.stop(Signal::SIGTERM);
    site.assert_gone();
}
