//! An engine of a test's own, which may be killed: that of the machine serves others.
//!
//! It has its data, its sockets and its processes in a folder of its own, and its containers on a bridge of its own, so that
//! neither engine knows of the other.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    lab::{self, end, entries, has_ended, run, wait_until},
    site::{IMAGE, Site},
};

/// How long an engine may take to begin and to end. The worst is one that stops its containers.
const LIMIT: Duration = Duration::from_secs(30);

/// What becomes of containers whose engine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containers {
    /// They go on (`live-restore`).
    Outlive,
    /// They end with it, or when it begins again after it was killed.
    End,
}

/// An engine with [`IMAGE`]; it ends with this, and so do its containers.
pub struct Engine {
    name: String,
    folder: PathBuf,
    /// What runs containers for it, and goes on without it, as where either is a service of its own.
    containerd: Child,
    child: Child,
}

impl Engine {
    /// Starts an engine whose containers are on a network of a site that has none on the machine's.
    pub fn start(site: &Site, containers: Containers) -> Self {
        // Swept like a site's own names; short, as the path of a socket has to be.
        let name = format!("{}e", site.instance());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(&folder).expect("a folder for an engine");
        lab::ip(&format!("link add {name} type bridge"));
        lab::ip(&format!("addr add {} dev {name}", site.bridge_address()));
        lab::ip(&format!("link set {name} up"));
        let path = |rest: &str| folder.join(rest).to_str().expect("a path that is text").to_owned();
        let settings = serde_json::json!({
            "data-root": path("data"),
            "exec-root": path("exec"),
            "pidfile": path("pid"),
            "hosts": [format!("unix://{}", path("sock"))],
            "containerd": path("containerd.sock"),
            // Without a bridge, it would take away that of the other engine.
            "bridge": name,
            "iptables": false,
            "ip6tables": false,
            "ip-forward": false,
            "ip-masq": false,
            "storage-driver": "vfs",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "cgroup-parent": format!("/{name}"),
            "live-restore": containers == Containers::Outlive,
        });
        fs::write(folder.join("settings.json"), settings.to_string()).expect("it can be written");
        let archive = path("image.tar");
        let of_containerd = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{}\"\n",
            path("containerd"),
            path("run"),
            path("containerd.sock")
        );
        fs::write(folder.join("containerd.toml"), of_containerd).expect("it can be written");
        let containerd = spawn(&folder, "containerd", "--config", "containerd.toml");
        let engine = Self { containerd, child: spawn_engine(&folder), name, folder };
        engine.wait();
        run(Command::new("docker").args(["save", "--output", &archive, IMAGE]));
        engine.docker(&["load", "--quiet", "--input", &archive]);
        engine
    }

    /// Returns where it listens, as in `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.folder.join("sock").display())
    }

    /// Asks it for something it has to be able to do.
    pub fn docker(&self, arguments: &[&str]) -> String {
        run(self.client().args(arguments))
    }

    fn client(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", self.host());
        command
    }

    /// Returns all containers, those included that do not run.
    pub fn containers(&self) -> Vec<String> {
        self.docker(&["ps", "-aq", "--no-trunc"]).lines().map(str::to_owned).collect()
    }

    /// Returns a container's first process.
    pub fn process(&self, container: &str) -> i32 {
        let told = self.docker(&["inspect", "--format", "{{.State.Pid}}", container]);
        told.trim().parse().expect("a number")
    }

    /// Ends the engine by a signal, and waits until it has.
    pub fn end(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
        let child = &mut self.child;
        wait_until("the engine ends", LIMIT, || child.try_wait().expect("it is our child").is_some());
    }

    /// Starts it again, and waits until it answers.
    pub fn begin(&mut self) {
        self.child = spawn_engine(&self.folder);
        self.wait();
    }

    fn wait(&self) {
        let began = Instant::now();
        while !self.answers() {
            assert!(began.elapsed() < LIMIT, "the engine does not answer\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn answers(&self) -> bool {
        self.client()
            .args(["version", "--format", "{{.Server.Version}}"])
            .output()
            .is_ok_and(|out| out.status.success())
    }

    /// Returns what it has printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

fn spawn_engine(folder: &Path) -> Child {
    spawn(folder, "dockerd", "--config-file", "settings.json")
}

fn spawn(folder: &Path, program: &str, option: &str, settings: &str) -> Child {
    let output = || File::options().create(true).append(true).open(folder.join("log")).expect("the log can be written");
    let mut command = Command::new(program);
    command.arg(option).arg(folder.join(settings)).stdout(output()).stderr(output());
    command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"))
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the engine:\n{}", self.log());
        }
        // What it knows of it removes itself.
        if self.answers() {
            let known = self.client().args(["ps", "-aq"]).output().map(|out| out.stdout).unwrap_or_default();
            for id in String::from_utf8_lossy(&known).lines() {
                let _tried_below = self.client().args(["rm", "-f", id]).output();
            }
            let _ended_already = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
            let began = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < LIMIT {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        end(&mut self.child);
        end(&mut self.containerd);
        remove(&self.name, &self.folder);
    }
}

/// Removes what test runs have left that were killed.
pub(crate) fn sweep_leftovers() {
    let folder = std::env::temp_dir();
    for name in entries(&folder.to_string_lossy()).into_iter().filter(|name| lab::is_leftover(name, 'd')) {
        remove(&name, &folder.join(&name));
    }
}

/// Removes an engine with all that is left of it: processes, mounts, control groups, its bridge and its folder.
fn remove(name: &str, folder: &Path) {
    let processes = processes_of(folder);
    for pid in &processes {
        let _ended_already = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    let began = Instant::now();
    while !processes.iter().all(|pid| has_ended(*pid)) && began.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(20));
    }
    // The last ones first, as they lie upon the others.
    for mount in mounts().iter().rev().filter(|mount| Path::new(mount).starts_with(folder)) {
        let _gone_already = Command::new("umount").args(["-l", mount]).output();
    }
    for group in mounts().iter().map(|mount| Path::new(mount).join(name)) {
        // Without processes, there are only the containers' groups below it.
        for container in entries(&group.to_string_lossy()) {
            let _a_file_or_gone = fs::remove_dir(group.join(container));
        }
        let _of_another_mount = fs::remove_dir(group);
    }
    let _gone_already = Command::new("ip").args(["link", "del", name]).output();
    let _gone_already = fs::remove_dir_all(folder);
}

/// Returns an engine's processes, and those of its containers: whoever names the folder, and all who descend from them.
fn processes_of(folder: &Path) -> Vec<i32> {
    let all: Vec<i32> = entries("/proc").iter().filter_map(|entry| entry.parse().ok()).collect();
    let names_folder = |pid: i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        words.any(|word| Path::new(&*String::from_utf8_lossy(word)).starts_with(folder))
    };
    let parent = |pid: i32| -> Option<i32> {
        // proc(5): behind the name, which may hold anything, come the state and the parent.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let mut found: Vec<i32> = all.iter().copied().filter(|pid| names_folder(*pid)).collect();
    let mut next = 0;
    while let Some(&elder) = found.get(next) {
        found.extend(all.iter().copied().filter(|pid| parent(*pid) == Some(elder)));
        next += 1;
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Returns where anything is mounted.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(1).map(str::to_owned)).collect()
}
