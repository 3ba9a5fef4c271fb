//! `lb-user check` on machines with something broken: it says what `run` says, before `run` does, and leaves nothing.

use std::{
    net::TcpListener,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    process::Output,
    time::Duration,
};

use aya::programs::{SchedClassifier, TcAttachType};
use lb_tests::{
    agent::{assert_gone, binary},
    lab::{self, Lab, Wiring, inside},
};
use nix::{net::if_::if_nametoindex, sys::signal::Signal};
use serde_json::Value;

use super::{arguments, start};

/// What `check` has said.
struct Said {
    code: Option<i32>,
    document: Value,
}

impl Said {
    fn of(output: &Output) -> Self {
        let document = serde_json::from_slice(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        Self { code: output.status.code(), document: document.unwrap_or_else(|error| panic!("{error}: {stderr}")) }
    }

    /// Returns what was found of a level and a subject.
    fn found(&self, level: &str, subject: &str) -> Vec<&str> {
        let findings = self.document["findings"].as_array().expect("findings");
        let of = findings.iter().filter(|finding| finding["level"] == level && finding["subject"] == subject);
        of.map(|finding| finding["found"].as_str().expect("a text")).collect()
    }

    /// Returns everything of a level.
    fn all(&self, level: &str) -> Vec<&str> {
        let findings = self.document["findings"].as_array().expect("findings");
        let of = findings.iter().filter(|finding| finding["level"] == level);
        of.map(|finding| finding["found"].as_str().expect("a text")).collect()
    }
}

fn check(lab: &Lab, arguments: &[&str]) -> Said {
    check_in(lab, &lab.balancer(), arguments)
}

fn check_in(lab: &Lab, namespace: &str, arguments: &[&str]) -> Said {
    let instance = lab.instance();
    let mut command = lab.command(namespace, &binary());
    command.args(["check", "--json"]).args(arguments);
    if !arguments.contains(&"--config") && !arguments.contains(&"--instance") {
        command.args(["--instance", &instance]);
    }
    Said::of(&command.output().expect("lb-user starts"))
}

/// Returns the error of `run`, which has to refuse.
fn refusal(lab: &Lab, instance: &str, arguments: &[&str]) -> String {
    let mut command = lab.command(&lab.balancer(), &binary());
    let output = command.args(["run", "--instance", instance]).args(arguments).output().expect("lb-user starts");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    error
}

/// Returns what anything that is left would change: devices and the programs at them, qdiscs, pins, locks, mounts.
fn state(lab: &Lab) -> Vec<String> {
    let balancer = lab.balancer();
    let in_namespace = |program: &str, arguments: &[&str]| lab::run(lab.command(&balancer, program).args(arguments));
    let links: Value = serde_json::from_str(&in_namespace("ip", &["-j", "link"])).expect("JSON");
    let devices =
        links.as_array().expect("devices").iter().map(|link| (link["ifname"].to_string(), link["xdp"].clone()));
    let programs = inside(&balancer, || {
        let at = |device| SchedClassifier::query_tcx(device, TcAttachType::Ingress).map(|(_, programs)| programs.len());
        ["up0", "br0", "lo"].map(|device| at(device).ok())
    });
    let names = |folder: &str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.contains(&lab.instance()) || name.contains("trial"));
        names.sort();
        names
    };
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    vec![
        format!("{:?}", devices.collect::<Vec<_>>()),
        format!("{programs:?}"),
        in_namespace("tc", &["qdisc"]),
        format!("{:?} {:?}", names("/sys/fs/bpf/lb"), names("/run/lb")),
        mounts.lines().filter(|line| line.contains(" bpf ") || line.contains(" cgroup2 ")).collect(),
    ]
}

/// A TCX program of somebody else, which lets everything pass to the next; it ends with this.
struct Stranger {
    _link: OwnedFd,
}

impl Stranger {
    fn attach(lab: &Lab, device: &str) -> Self {
        const PROG_LOAD: libc::c_long = 5;
        const LINK_CREATE: libc::c_long = 28;
        const SCHED_CLS: u32 = 3;
        const TCX_INGRESS: u32 = 46;
        /// The beginning of `bpf_attr` for BPF_PROG_LOAD, up to the program's name.
        #[repr(C)]
        #[derive(Default)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel: u32,
            flags: u32,
            name: [u8; 16],
        }
        #[repr(C)]
        struct Create {
            program: u32,
            ifindex: u32,
            attach_type: u32,
            flags: u32,
        }
        fn bpf<A>(command: libc::c_long, attr: &A) -> OwnedFd {
            // SAFETY: the attributes, and what they point to, outlive the call; both commands only read them.
            let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<A>()) };
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            // SAFETY: the kernel has just given us this descriptor.
            unsafe { OwnedFd::from_raw_fd(fd as i32) }
        }
        // r0 = -1 (TCX_NEXT); exit
        let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let load = Load {
            kind: SCHED_CLS,
            count: 2,
            instructions: instructions.as_ptr().expose_provenance() as u64,
            license: c"GPL".as_ptr().expose_provenance() as u64,
            name: *b"stranger\0\0\0\0\0\0\0\0",
            ..Load::default()
        };
        inside(&lab.balancer(), || {
            let program = bpf(PROG_LOAD, &load);
            let ifindex = if_nametoindex(device).expect("a device");
            let program = program.as_raw_fd() as u32;
            Self { _link: bpf(LINK_CREATE, &Create { program, ifindex, attach_type: TCX_INGRESS, flags: 0 }) }
        })
    }
}

pub(super) fn check_leaves_nothing_on_a_machine() {
    let mut lab = Lab::new(2, Wiring::Bridge);
    lab.start_servers();
    let arguments = arguments(2);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let before = state(&lab);

    let said = check(&lab, &arguments);

    assert_eq!(said.code, Some(0), "{:#}", said.document);
    assert_eq!(said.all("error"), [""; 0]);
    assert!(said.found("ok", "programs")[0].ends_with("pass the verifier"), "{:#}", said.document);
    assert!(said.found("ok", "up0")[0].starts_with("veth: IPv4; TC; MTU 1500"), "{:#}", said.document);
    let servers = said.found("ok", &lab.instance());
    assert!(servers.contains(&"2 of 2 answer (tcp)"), "{servers:?}");
    assert!(servers.iter().any(|found| found.starts_with("2 behind veths of this host")), "{servers:?}");
    assert_eq!(state(&lab), before);

    // Whenever it is interrupted.
    for pause in [20, 200, 500, 900] {
        let mut child = lab.command(&lab.balancer(), &binary());
        let mut child = child.args(["check", "--instance", &lab.instance()]).args(&arguments);
        child = child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = child.spawn().expect("lb-user starts");
        std::thread::sleep(Duration::from_millis(pause));
        lab::interrupt(&mut child);
        child.wait().expect("it ends");
        assert_eq!(state(&lab), before, "after {pause} ms");
    }
}

pub(super) fn check_finds_what_run_refuses() {
    let lab = Lab::new(1, Wiring::Bridge);
    let backend = format!("{}:80", lab::backend(0));
    let fixed = ["--publish", "80", "--backend", &backend];
    let rows: [(&str, &[&str]); 3] = [
        ("interfaces", &["--uplink", "nope0"]),
        ("interfaces", &["--uplink", "up0", "--snat", "198.18.9.9"]),
        ("up0", &["--uplink", "up0", "--hook", "xdp"]),
    ];
    for (subject, more) in rows {
        let arguments = [&fixed, more].concat();

        let said = check(&lab, &arguments);

        assert_eq!(said.code, Some(1), "{more:?}: {:#}", said.document);
        let [found] = said.found("error", subject)[..] else { panic!("{more:?}: {:#}", said.document) };
        let told = refusal(&lab, &lab.instance(), &arguments);
        assert!(told.contains(found), "{told} does not say {found}");
        assert_gone(&lab.instance());
    }

    // `ip netns exec` hides the BPF file system, in which what runs is found.
    let mut hidden = std::process::Command::new("ip");
    hidden.args(["netns", "exec", &lab.balancer(), &binary(), "check", "--json", "--instance", &lab.instance()]);
    let said = Said::of(&hidden.output().expect("ip starts"));
    assert_eq!(said.found("warning", "BPF file system"), ["not mounted, or hidden in this mount namespace"]);

    let empty = lab.namespace("e");
    let said = check_in(&lab, &empty, &[]);
    assert_eq!(said.code, Some(1), "{:#}", said.document);
    assert!(said.found("error", "interfaces")[0].starts_with("no interface carries a default route"));
}

pub(super) fn check_tells_what_keeps_clients_away() {
    let mut lab = Lab::new(2, Wiring::Bridge);
    lab.start_server(0);
    let [answering, silent] = [0, 1].map(|number| format!("{}:80", lab::backend(number)));
    let nowhere = "203.0.113.9:80";
    let arguments =
        ["--publish", "80", "--uplink", "up0", "--backend", &answering, "--backend", &silent, "--backend", nowhere];
    let _stranger = Stranger::attach(&lab, "up0");
    let _listener = inside(&lab.balancer(), || TcpListener::bind("0.0.0.0:80").expect("nobody else is there"));

    let said = check(&lab, &arguments);

    assert_eq!(said.code, Some(0), "run would start: {:#}", said.document);
    let [other] = said.found("warning", "others at up0")[..] else { panic!("{:#}", said.document) };
    assert!(other.starts_with("program stranger (") && other.ends_with("at TCX, before ours"), "{other}");
    assert_eq!(said.found("warning", "ports"), ["80/tcp: a socket of this host waits at 0.0.0.0:80"]);
    let servers = said.found("warning", &lab.instance());
    assert!(servers.iter().any(|found| found.contains(&format!("connect to {silent}"))), "{servers:?}");
    assert!(servers.iter().any(|found| found.contains("203.0.113.9: no route from here")), "{servers:?}");
    assert!(said.found("ok", &lab.instance()).contains(&"1 of 3 answer (tcp)"));

    let none = check(&lab, &["--publish", "80", "--uplink", "up0", "--backend", nowhere]);
    assert_eq!((none.code, none.found("error", &lab.instance())), (Some(1), vec!["0 of 1 answer (tcp)"]));
}

pub(super) fn check_tells_of_instances_that_run() {
    let mut lab = Lab::new(1, Wiring::Bridge);
    lab.start_servers();
    let arguments = arguments(1);
    let mut agent = start(&lab, &arguments, &[]);
    agent.wait_ready(1);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let pid = agent.pid();

    let own = check(&lab, &arguments);
    assert_eq!(own.code, Some(0), "its file may be checked while it runs: {:#}", own.document);
    assert_eq!(own.found("note", &lab.instance()), [format!("runs (pid {pid})")]);
    assert_eq!(own.found("warning", "others at up0"), [""; 0], "its own program is nobody else's");
    assert_eq!(own.found("note", "others at connect()"), [""; 0]);

    let other = format!("{}o", lab.instance());
    let said = check(&lab, &[&["--instance", &other], arguments.as_slice()].concat());
    assert_eq!(said.code, Some(1), "{:#}", said.document);
    let taken = said.found("error", "frontends");
    let told = refusal(&lab, &other, &arguments);
    assert!(taken.iter().any(|found| told.contains(found)), "{told} does not say {taken:?}");
    assert_gone(&other);

    agent.stop(Signal::SIGTERM);
    assert_gone(&lab.instance());
}

pub(super) fn check_without_root_tells_what_is_out_of_sight() {
    let lab = Lab::new(1, Wiring::Bridge);
    let folder = tempfile::tempdir().expect("a folder");
    lab::run(std::process::Command::new("chmod").args(["755"]).arg(folder.path()));
    let file = folder.path().join("services.toml");
    let as_nobody = |arguments: &[&str]| {
        let mut command = lab.command(&lab.balancer(), "setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", &binary(), "check"]);
        command.args(arguments).output().expect("setpriv starts")
    };
    let text = |uplink: &str| {
        format!(
            "uplinks = [\"{uplink}\"]\n[[service]]\nname = \"web\"\npublish = \"80\"\nbackends = [\"{}:80\"]\nhealth = \"none\"\n",
            lab::backend(0)
        )
    };
    let path = file.to_str().expect("a text");

    std::fs::write(&file, text("up0")).expect("it can be written");
    let said = Said::of(&as_nobody(&["--json", "--config", path]));
    assert_eq!(said.code, Some(0), "{:#}", said.document);
    for subject in ["programs", "others at connect()", "others at up0", "frontends of others", "instances"] {
        assert_eq!(said.found("note", subject), ["not looked at: needs root"], "{subject}: {:#}", said.document);
    }

    std::fs::write(&file, text("nope0")).expect("it can be written");
    assert_eq!(Said::of(&as_nobody(&["--json", "--config", path])).code, Some(1), "that is seen without root");
    let alone = as_nobody(&["--file-only", "--config", path]);
    let told = format!("web: 80/tcp\n{path}: no mistakes\n");
    assert_eq!((alone.status.code(), String::from_utf8_lossy(&alone.stdout).into_owned()), (Some(0), told));

    std::fs::write(&file, text("up0").replace("name", "nam")).expect("it can be written");
    for scope in [&["--config", path][..], &["--config", path, "--file-only"]] {
        let output = as_nobody(scope);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(64) && error.contains(":3:1: unknown key nam"), "{error}");
    }
    let missing = as_nobody(&["--config", "/nonexistent/services.toml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(!Path::new("/run/lb").join(format!("{}.lock", lab.instance())).exists());
}
