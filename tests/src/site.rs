//! Real containers: a Docker network, and a client behind a veth that stands for the uplink.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Once,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    agent::{Agent, assert_gone, binary, detach, status},
    engine::{self, Engine},
    lab::{self, command_in, entries, is_leftover, namespaces, run, wait_until},
};

/// The image whose containers answer.
pub const IMAGE: &str = "lb-api:latest";

/// Short windows, so that a cycle takes seconds.
const BRISK: &[&str] = &[
    "--interval",
    "500ms",
    "--scale-up-window",
    "1s",
    "--scale-down-window",
    "3s",
    "--drain-timeout",
    "4s",
    "--health",
    "http:/healthz",
];

/// A program that makes load until it is finished; it ends with this, also where a test fails.
pub struct Load(Option<Child>);

impl Load {
    /// Starts the program.
    pub fn start(command: &mut Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).spawn().expect("the program starts")))
    }

    /// Interrupts it, and returns what it printed.
    pub fn finish(mut self) -> String {
        let mut child = self.0.take().expect("it is finished once");
        lab::interrupt(&mut child);
        String::from_utf8_lossy(&child.wait_with_output().expect("it ends").stdout).into_owned()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // Not killed: its own children have to end with it.
            lab::interrupt(&mut child);
            let _nobody_asks = child.wait();
        }
    }
}

/// A Docker network, and a client behind a veth; both end with this.
pub struct Site {
    name: String,
    number: u32,
    /// For wrk: a pause of 50 ms before every request.
    script: tempfile::NamedTempFile,
}

impl Site {
    /// Makes the network and the client of that number, which no other site has at the same time.
    pub fn new(number: u32) -> Self {
        let site = Self::without_network(number);
        docker(&["network", "create", "--subnet", &site.subnet(), &site.name]);
        site
    }

    /// The same with addresses of IPv6 beside the others.
    pub fn with_ipv6(number: u32) -> Self {
        let site = Self::without_network(number);
        lab::ip(&format!("addr add {}/64 dev {} nodad", site.host_address_v6(), site.uplink()));
        lab::ip(&format!("-n {} addr add 2001:db8:{}::2/64 dev c0 nodad", site.client(), 100 + number));
        let subnet = format!("2001:db8:{}::/64", 200 + number);
        docker(&["network", "create", "--ipv6", "--subnet", &site.subnet(), "--subnet", &subnet, &site.name]);
        site
    }

    /// The same without a network.
    pub fn without_network(number: u32) -> Self {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep_leftovers);
        let name = format!("lbt{}d{number}", std::process::id());
        let script = tempfile::NamedTempFile::new().expect("a file for a script");
        std::fs::write(script.path(), "function delay() return 50 end\n").expect("it can be written");
        let site = Self { name, number, script };
        let (client, up) = (site.client(), site.uplink());
        lab::ip(&format!("netns add {client}"));
        lab::ip(&format!("link add {up} type veth peer name c0 netns {client}"));
        lab::ip(&format!("addr add 198.18.{}.1/24 dev {up}", 100 + number));
        lab::ip(&format!("link set {up} up"));
        lab::ip(&format!("-n {client} addr add 198.18.{}.2/24 dev c0", 100 + number));
        lab::ip(&format!("-n {client} link set lo up"));
        lab::ip(&format!("-n {client} link set c0 up"));
        site
    }

    fn subnet(&self) -> String {
        format!("198.19.{}.0/24", 100 + self.number)
    }

    /// Returns the address of a bridge that takes the place of its network.
    pub fn bridge_address(&self) -> String {
        format!("198.19.{}.1/24", 100 + self.number)
    }

    /// Returns the host's IPv6 address on the client's side.
    pub fn host_address_v6(&self) -> String {
        format!("2001:db8:{}::1", 100 + self.number)
    }

    /// Returns the client's namespace.
    pub fn client(&self) -> String {
        format!("{}c", self.name)
    }

    /// Returns the device by which the client comes.
    pub fn uplink(&self) -> String {
        format!("{}u", self.name)
    }

    /// Returns the agent's instance, whose name the network has too.
    pub fn instance(&self) -> &str {
        &self.name
    }

    /// Returns a script for wrk: a pause of 50 ms before every request.
    pub fn script(&self) -> &Path {
        self.script.path()
    }

    /// Returns the frontend's port.
    pub fn port(&self) -> u32 {
        18_080 + self.number
    }

    /// Returns what the client asks for.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address())
    }

    /// Returns the frontend.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host_address(), self.port())
    }

    /// Returns the host's address on the client's side.
    pub fn host_address(&self) -> String {
        format!("198.18.{}.1", 100 + self.number)
    }

    /// Starts an agent for containers of [`IMAGE`], in short windows.
    pub fn start(&self, more: &[&str]) -> Agent {
        self.start_by(Command::new(binary()), &[&["--network", &self.name], more].concat())
    }

    /// The same with containers of another engine, on its own network.
    pub fn start_at(&self, engine: &Engine, more: &[&str]) -> Agent {
        let mut command = Command::new(binary());
        command.env("DOCKER_HOST", engine.host());
        self.start_by(command, more)
    }

    fn start_by(&self, command: Command, more: &[&str]) -> Agent {
        let publish = format!("{}:5000", self.port());
        let uplink = self.uplink();
        let fixed = ["--image", IMAGE, "--publish", &publish, "--uplink", &uplink];
        Agent::start_by(command, None, &self.name, &[&fixed, BRISK, more].concat())
    }

    /// Asks as the client and returns the host's name in the answer.
    pub fn host(&self) -> String {
        let output = command_in(&self.client(), "curl").args(["-s", "-m", "3", &self.url()]).output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an answer");
        assert_eq!(answer["message"], "Hello");
        answer["host"].as_str().expect("a name").to_owned()
    }

    /// Starts wrk as the client.
    pub fn wrk(&self, seconds: u32, closing: bool) -> Child {
        let mut command = command_in(&self.client(), "wrk");
        command.args(["-t1", "-c8", &format!("-d{seconds}"), "--timeout", "5s"]);
        if closing {
            command.args(["-H", "Connection: close"]);
        }
        command.arg(self.url()).stdout(Stdio::piped()).spawn().expect("wrk starts")
    }

    /// As [`wrk`](Self::wrk), with a pause before every request, until it is finished.
    pub fn gentle_wrk(&self, closing: bool) -> Load {
        let mut command = command_in(&self.client(), "wrk");
        command.args(["-t1", "-c8", "-d3600", "--timeout", "5s", "-s"]).arg(self.script.path());
        if closing {
            command.args(["-H", "Connection: close"]);
        }
        Load::start(command.arg(self.url()))
    }

    /// Returns the agent's containers.
    pub fn containers(&self) -> BTreeSet<String> {
        let filter = format!("label=io.lb-user.instance={}", self.name);
        docker(&["ps", "-aq", "--no-trunc", "--filter", &filter]).lines().map(str::to_owned).collect()
    }

    /// Checks that nothing is left of the agent.
    pub fn assert_gone(&self) {
        assert_gone(&self.name);
        assert_eq!(self.containers(), BTreeSet::new());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for id in self.containers() {
            let _gone_already = Command::new("docker").args(["rm", "-f", &id]).output();
        }
        let _gone_already = Command::new("docker").args(["network", "rm", &self.name]).output();
        let _gone_already = Command::new("ip").args(["netns", "del", &self.client()]).output();
        let _gone_with_it = Command::new("ip").args(["link", "del", &self.uplink()]).output();
    }
}

/// Removes what test runs have left that were killed: their agents, which would hold what a site of today needs, and
/// their containers, networks, namespaces and links.
fn sweep_leftovers() {
    let of_the_dead = |names: Vec<String>| names.into_iter().filter(|name| is_leftover(name, 'd'));
    for instance in of_the_dead(entries("/sys/fs/bpf/lb")) {
        let agent = status(&instance)["agent"]["pid"].as_i64().filter(|_| status(&instance)["agent"]["alive"] == true);
        if let Some(pid) = agent.and_then(|pid| i32::try_from(pid).ok()) {
            let _ended_already = kill(Pid::from_raw(pid), Signal::SIGTERM);
            wait_until("a leftover agent ends", Duration::from_secs(60), || {
                status(&instance)["agent"]["alive"] != true
            });
        }
        if status(&instance) != Value::Null {
            detach(&instance, true);
        }
    }
    let networks = docker(&["network", "ls", "--format", "{{.Name}}"]);
    for network in of_the_dead(networks.lines().map(str::to_owned).collect()) {
        let there = docker(&["ps", "-aq", "--filter", &format!("network={network}")]);
        for id in there.lines() {
            docker(&["rm", "-f", id]);
        }
        docker(&["network", "rm", &network]);
    }
    engine::sweep_leftovers();
    for name in of_the_dead(namespaces()) {
        let _gone_already = Command::new("ip").args(["netns", "del", &name]).output();
    }
    for link in of_the_dead(entries("/sys/class/net")) {
        let _gone_with_its_namespace = Command::new("ip").args(["link", "del", &link]).output();
    }
}

/// Asks the engine for something it has to be able to do.
pub fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments))
}
