//! `cargo xtask test vm`: the suites on the oldest kernel that is supported, in a virtual machine.
//!
//! ```text
//! Debian's package ── vmlinuz, modules ─┐
//! this host ── programs, libraries ─────┼─▶ one initramfs ─▶ qemu ── serial line ─▶ what the suites print
//! cargo ── agent, test programs ────────┘
//! ```
//!
//! There is no disk and no network: the machine boots into memory, runs what `/init` lists, and switches itself off. Nothing
//! is installed on this host but qemu and what unpacks and packs; the kernel's package is only unpacked below `target`.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build::{self, Profile},
    setup::{self, Tool},
    sh,
    test::{Suite, result_line},
};

/// The oldest kernel that is supported by test, and Debian's package that names its newest build.
const KERNEL: &str = "6.1";
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// What makes the machine, besides what the tests start.
const TOOLS: [Tool; 4] = [
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Tool { program: "depmod", package: "kmod" },
    Tool { program: "cpio", package: "cpio" },
    Tool { program: "strip", package: "binutils" },
];

/// Programs of the host that `/init` and the suites need, besides [`setup::TEST_TOOLS`].
const PROGRAMS: [&str; 25] = [
    "sh", "mount", "umount", "cat", "ls", "mkdir", "rm", "cp", "chmod", "sleep", "uname", "env", "true", "timeout",
    "modprobe", "sysctl", "tc", "unshare", "setpriv", "id", "head", "grep", "dmesg", "nproc", "free",
];

/// Files of the host that those programs read.
const FILES: [&str; 6] =
    ["/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/protocols", "/etc/services", "/etc/ld.so.cache"];

/// Folders of the kernel's modules that a balancer and its clients can need.
const MODULES: [&str; 7] = [
    "kernel/net",
    "kernel/lib",
    "kernel/crypto",
    "kernel/drivers/net/veth.ko",
    "kernel/drivers/net/tun.ko",
    "kernel/drivers/net/macvlan.ko",
    "kernel/arch",
];

/// The suites that run whole: packets, which ask nothing of a kernel but its verifier and its helpers. Not `packet_model`, whose time
/// has to stand still for a whole sequence, which is too long under emulation.
const SUITES: [&str; 2] = ["packet_tables", "packets"];

/// The cases of `namespaces` that run on the old kernel, beside [`VLAN_CASES`]: one for each thing that it does in another way.
/// It has no TCX, so all of them attach to clsact. The others differ from these by what the agent does, which no kernel
/// changes; and each start of an agent takes the emulated verifier a minute.
const NET_CASES: [&str; 11] = [
    "requests_hit_backends_strictly_in_turn",
    "transfers_survive_checksum_offload_on_and_off",
    "clients_on_the_host_see_the_frontend",
    "a_killed_agent_with_filters_is_replaced",
    "a_smaller_uplink_is_discovered",
    "errors_of_the_network_reach_clients",
    "other_machines_of_the_network_reply_by_snat",
    "containers_on_macvlan_are_reached_by_a_macvlan_of_the_host",
    "check_leaves_nothing_on_a_machine",
    "servers_of_the_host_are_balanced_by_filters",
    "groups_of_version_2_freeze_and_tell_their_cpu",
];

/// The cases of `namespaces` with VLANs, which the host's own kernel may lack.
const VLAN_CASES: [&str; 4] = [
    "vlans_of_an_uplink_are_served",
    "xdp_leaves_vlans_to_their_devices",
    "a_vlan_may_be_the_uplink",
    "servers_of_the_host_are_reached_by_vlans",
];

/// How long the machine may take before it is switched off. Under emulation it takes a quarter of that.
const LIMIT: Duration = Duration::from_secs(40 * 60);
const MEMORY: &str = "4G";
/// What stands before what `/init` says, and no test prints.
const MARK: &str = "lb-vm: ";

/// Runs the suites in the machine; `filter` is a part of the names of those to run.
pub fn run(filter: Option<&str>) -> Result<Vec<Suite>> {
    let jobs = jobs(filter);
    ensure!(
        !jobs.is_empty(),
        "none of {SUITES:?}, {NET_CASES:?} and {VLAN_CASES:?} has {:?} in its name",
        filter.unwrap_or_default()
    );
    perform(&jobs)
}

/// Runs the case with VLANs in the machine that says most: each takes minutes there.
pub fn run_vlans() -> Result<Vec<Suite>> {
    let [most, ..] = VLAN_CASES;
    perform(&[Job::of_case(most)])
}

fn perform(jobs: &[Job]) -> Result<Vec<Suite>> {
    ensure!(cfg!(target_arch = "x86_64"), "the virtual machine is one of x86-64, and so has to be this host");
    setup::ensure_tools(&TOOLS)?;
    let folder = sh::target_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let kernel = Kernel::fetch(&folder)?;
    // As the test programs: the verifier takes the time, and it runs in the kernel.
    let agent = build::agent(Profile::Dev)?;
    let initramfs = Root::new(folder.join("root"))?.fill(&kernel, &agent, jobs)?;
    boot(&kernel, &initramfs, jobs)
}

/// Returns whether this host's kernel has VLANs, after loading what it has as a module.
pub fn host_has_vlans() -> bool {
    let _built_in_or_none = sh::as_root("modprobe").and_then(|mut modprobe| sh::output(modprobe.args(["-q", "8021q"])));
    std::path::Path::new("/proc/net/vlan/config").exists()
}

/// One start of a test program in the machine.
struct Job {
    suite: &'static str,
    arguments: Vec<String>,
}

/// Returns what is to be started: all, or the suites and the cases of namespaces with `filter` in their names.
fn jobs(filter: Option<&str>) -> Vec<Job> {
    let wanted = |name: &&str| filter.is_none_or(|part| name.contains(part));
    let suites = SUITES.into_iter().filter(wanted).map(|suite| Job { suite, arguments: Vec::new() });
    suites.chain(NET_CASES.into_iter().chain(VLAN_CASES).filter(wanted).map(Job::of_case)).collect()
}

impl Job {
    fn of_case(name: &str) -> Self {
        Self { suite: "namespaces", arguments: vec!["--exact".into(), name.into()] }
    }
}

/// Debian's kernel, unpacked.
struct Kernel {
    image: PathBuf,
    /// `/lib/modules/VERSION` in its package.
    modules: PathBuf,
    version: String,
}

impl Kernel {
    fn fetch(folder: &Path) -> Result<Self> {
        ensure!(
            setup::apt_offers(&[KERNEL_PACKAGE]),
            "apt offers no {KERNEL_PACKAGE}: the machine's kernel is Debian's"
        );
        let depends = sh::output(Command::new("apt-cache").args(["depends", KERNEL_PACKAGE]))?;
        let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).unwrap_or_default();
        let version = package.strip_prefix("linux-image-").unwrap_or_default().to_owned();
        ensure!(
            version.starts_with(&format!("{KERNEL}.")),
            "apt offers Linux {version} where {KERNEL} is wanted: Debian 12 has it"
        );
        let unpacked = folder.join(&version);
        let kernel = Self {
            image: unpacked.join(format!("boot/vmlinuz-{version}")),
            modules: unpacked.join("lib/modules").join(&version),
            version,
        };
        if !kernel.image.is_file() {
            let mut download = Command::new("apt-get");
            sh::step("fetching the kernel", "seconds", download.current_dir(folder).args(["download", package]))?;
            let archive = fs::read_dir(folder)
                .with_context(|| format!("read {}", folder.display()))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| {
                    path.to_string_lossy().contains(package) && path.extension().is_some_and(|end| end == "deb")
                })
                .with_context(|| format!("find {package} in {}", folder.display()))?;
            let mut unpack = Command::new("dpkg-deb");
            sh::step("unpacking it", "seconds", unpack.arg("-x").arg(&archive).arg(&unpacked))?;
            fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
        }
        Ok(kernel)
    }
}

/// The machine's file system, while it is put together.
struct Root {
    path: PathBuf,
    copied: BTreeSet<PathBuf>,
}

impl Root {
    fn new(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        let root = Self { path, copied: BTreeSet::new() };
        for folder in
            ["dev", "etc", "proc", "sys", "run", "tmp", "tests", "usr", "var/log/nginx", "var/lib/nginx", "root"]
        {
            root.folder(Path::new(folder))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            root.folder(&Path::new("usr").join(name))?;
            match fs::read_link(Path::new("/").join(name)) {
                Ok(to) => symlink(to, root.path.join(name)).with_context(|| format!("link /{name}"))?,
                Err(_) => root.folder(Path::new(name))?,
            }
        }
        Ok(root)
    }

    /// Puts everything in, and packs it.
    fn fill(mut self, kernel: &Kernel, agent: &Path, jobs: &[Job]) -> Result<PathBuf> {
        for program in PROGRAMS.iter().copied().chain(setup::test_programs()) {
            let path = sh::find_program(program).with_context(|| format!("find the program {program}"))?;
            self.program(&path)?;
        }
        for file in FILES.iter().map(Path::new).filter(|file| file.is_file()) {
            self.copy(file, file)?;
        }
        self.program_at(agent, Path::new("/tests/lb-user"))?;
        let suites: BTreeSet<&str> = jobs.iter().map(|job| job.suite).collect();
        for suite in suites {
            self.program_at(&test_program(suite)?, &Path::new("/tests").join(suite))?;
        }
        self.modules(kernel)?;
        let init = self.path.join("init");
        fs::write(&init, init_script(jobs)).with_context(|| format!("write {}", init.display()))?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("make /init executable")?;
        self.pack()
    }

    fn folder(&self, path: &Path) -> Result<()> {
        let path = self.path.join(path);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))
    }

    /// Copies a file, what a link leads to included.
    fn copy(&mut self, from: &Path, to: &Path) -> Result<PathBuf> {
        let inside = to.strip_prefix("/").unwrap_or(to);
        if let Some(folder) = inside.parent() {
            self.folder(folder)?;
        }
        let target = self.path.join(inside);
        if self.copied.insert(to.to_owned()) {
            fs::copy(from, &target).with_context(|| format!("copy {} to {}", from.display(), target.display()))?;
        }
        Ok(target)
    }

    fn program(&mut self, path: &Path) -> Result<()> {
        self.copy(path, path)?;
        self.libraries(path)
    }

    /// The same for one of ours, which is smaller without what a debugger needs.
    fn program_at(&mut self, path: &Path, at: &Path) -> Result<()> {
        let copy = self.copy(path, at)?;
        sh::output(Command::new("strip").arg("--strip-debug").arg(copy))?;
        self.libraries(path)
    }

    fn libraries(&mut self, program: &Path) -> Result<()> {
        // A program that is linked statically, or a script, has none, and ldd says so by its exit code.
        let Ok(listed) = sh::output(Command::new("ldd").arg(program)) else { return Ok(()) };
        for library in libraries_in(&listed) {
            self.copy(library, library)?;
        }
        Ok(())
    }

    fn modules(&mut self, kernel: &Kernel) -> Result<()> {
        let inside = Path::new("lib/modules").join(&kernel.version);
        let target = self.path.join(&inside);
        fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
        for wanted in MODULES {
            let from = kernel.modules.join(wanted);
            if !from.exists() {
                continue;
            }
            let to = target.join(wanted);
            let parent = to.parent().context("a module has a folder")?;
            fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            sh::output(Command::new("cp").arg("-r").arg(&from).arg(&to))?;
        }
        for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
            sh::output(Command::new("cp").arg(kernel.modules.join(list)).arg(&target))?;
        }
        let depmod = sh::find_program("depmod").context("find depmod")?;
        sh::output(Command::new(depmod).arg("-b").arg(&self.path).arg(&kernel.version))?;
        Ok(())
    }

    fn pack(&self) -> Result<PathBuf> {
        let packed = self.path.with_extension("cpio");
        let script = "find . -print0 | cpio --quiet --null --create --format=newc > \"$0\"";
        sh::output(Command::new("sh").current_dir(&self.path).args(["-c", script]).arg(&packed))?;
        Ok(packed)
    }
}

/// Returns the libraries that `ldd` lists: `libc.so.6 => /lib/…/libc.so.6 (0x…)`, and the loader as a path alone.
fn libraries_in(listed: &str) -> impl Iterator<Item = &Path> {
    listed.lines().filter_map(|line| {
        let path = line.split("=>").last()?.trim().split(' ').next()?;
        path.starts_with('/').then(|| Path::new(path))
    })
}

/// Builds a test program of `lb-tests` and returns where it is.
fn test_program(name: &str) -> Result<PathBuf> {
    const FIELD: &str = "\"executable\":\"";
    let mut cargo = sh::cargo();
    cargo.env("LB_REQUIRE_OBJECT", "1");
    cargo.args(["test", "-p", "lb-tests", "--features", "lb-tests/bench", "--test", name, "--no-run", "--quiet"]);
    cargo.arg("--message-format=json");
    eprintln!("$ {}", sh::show(&cargo));
    let messages = sh::output(&mut cargo)?;
    let of_target = |line: &&str| line.contains(&format!("\"name\":\"{name}\"")) && line.contains(FIELD);
    let line = messages.lines().find(of_target).with_context(|| format!("find the test program {name}"))?;
    let path = line.split_once(FIELD).and_then(|(_, rest)| rest.split('"').next());
    path.map(PathBuf::from).with_context(|| format!("find where the test program {name} is"))
}

/// Returns the machine's first and only process.
fn init_script(jobs: &[Job]) -> String {
    let mut script = String::from(
        "#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
modprobe -a tun 8021q
ip link set lo up
export LB_BIN=/tests/lb-user LB_REQUIRE_ALL=1 LB_PACKETS=20000 LB_PATIENCE=6 RUST_BACKTRACE=0
",
    );
    let _ = writeln!(script, "echo \"{MARK}kernel $(uname -r), $(nproc) processors\"");
    for Job { suite, arguments } in jobs {
        let arguments = arguments.join(" ");
        let _ = writeln!(script, "echo '{MARK}begin {suite}'");
        let _ = writeln!(script, "/tests/{suite} --format=terse --color=never {arguments} < /dev/null 2>&1");
        let _ = writeln!(script, "echo \"{MARK}end {suite} $?\"");
    }
    // Power off.
    script.push_str("echo o > /proc/sysrq-trigger\nsleep 60\n");
    script
}

/// Runs the machine until it switches itself off, shows what it prints, and adds up what the suites say of themselves.
fn boot(kernel: &Kernel, initramfs: &Path, jobs: &[Job]) -> Result<Vec<Suite>> {
    let mut qemu = Command::new("timeout");
    qemu.args(["--kill-after=5", &LIMIT.as_secs().to_string(), "qemu-system-x86_64"]);
    // Emulated everywhere: virtualization within a virtual machine, where it is offered, does not always work.
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY]);
    qemu.args(["-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on"]);
    eprintln!("$ {}", sh::show(&qemu));
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start qemu")?;
    let output = child.stdout.take().context("take the machine's serial line")?;
    let mut tally = Tally::new(jobs);
    let mut shown = std::io::stdout();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("read the machine's serial line")?;
        shown.write_all(&line).and_then(|()| shown.write_all(b"\n")).context("show what the machine prints")?;
        tally.read(String::from_utf8_lossy(&line).trim_end());
    }
    let status = child.wait().context("wait for qemu")?;
    if !status.success() {
        bail!("qemu: {status}; after {} s it is ended", LIMIT.as_secs());
    }
    Ok(tally.suites())
}

/// What the suites in the machine came to.
struct Tally {
    suites: Vec<Suite>,
    /// How often each of `suites` has still to end.
    missing: Vec<usize>,
    begun: Instant,
}

impl Tally {
    fn new(jobs: &[Job]) -> Self {
        let mut tally = Self { suites: Vec::new(), missing: Vec::new(), begun: Instant::now() };
        for job in jobs {
            match tally.place(job.suite) {
                Some(place) => tally.missing[place] += 1,
                None => {
                    tally.suites.push(Suite { name: name(job.suite), ..Suite::default() });
                    tally.missing.push(1);
                }
            }
        }
        tally
    }

    fn place(&self, suite: &str) -> Option<usize> {
        self.suites.iter().position(|known| known.name == name(suite))
    }

    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.strip_prefix(MARK).unwrap_or_default().split(' ').collect();
        match words[..] {
            ["begin", _] => self.begun = Instant::now(),
            ["end", suite, code] => {
                let Some(place) = self.place(suite) else { return };
                self.missing[place] = self.missing[place].saturating_sub(1);
                self.suites[place].took += self.begun.elapsed();
                if code != "0" && self.suites[place].failed == 0 {
                    self.suites[place].failed = 1; // it was killed, or could not be started
                }
            }
            _ => {
                let unended = self.missing.iter().position(|&missing| missing > 0);
                if let (Some((passed, failed, skipped)), Some(place)) = (result_line(line), unended) {
                    let suite = &mut self.suites[place];
                    (suite.passed, suite.failed) = (suite.passed + passed, suite.failed + failed);
                    suite.skipped += skipped;
                }
            }
        }
    }

    /// Returns the suites; what the machine has not come to has failed.
    fn suites(mut self) -> Vec<Suite> {
        for (suite, &missing) in self.suites.iter_mut().zip(&self.missing) {
            suite.failed += missing as u64;
        }
        self.suites
    }
}

fn name(suite: &str) -> String {
    format!("{suite}, Linux {KERNEL}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_lists() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibgone.so => not found\n";

        let found: Vec<&Path> = libraries_in(listed).collect();

        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(Path::new));
    }

    #[test]
    fn what_the_machine_has_not_come_to_has_failed() {
        let job = |suite| Job { suite, arguments: Vec::new() };
        let mut tally = Tally::new(&[job("packets"), job("namespaces"), job("namespaces")]);
        for line in [
            "lb-vm: begin packets",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "lb-vm: end packets 0",
            "lb-vm: begin namespaces",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s",
            "lb-vm: end namespaces 0",
            "lb-vm: begin namespaces",
        ] {
            tally.read(line);
        }

        let suites = tally.suites();

        assert_eq!(suites.iter().map(|suite| (suite.passed, suite.failed)).collect::<Vec<_>>(), [(3, 0), (1, 1)]);
    }

    #[test]
    fn a_program_that_dies_in_the_machine_counts_as_a_failure() {
        let mut tally = Tally::new(&[Job { suite: "packets", arguments: Vec::new() }]);

        tally.read("lb-vm: end packets 139");

        assert_eq!(tally.suites()[0].failed, 1);
    }

    #[test]
    fn init_is_a_shell_script_that_ends_the_machine() {
        let script = init_script(&jobs(None));

        assert!(script.ends_with("echo o > /proc/sysrq-trigger\nsleep 60\n"));
        sh::output(Command::new("sh").args(["-n", "-c", &script])).unwrap();
    }
}
