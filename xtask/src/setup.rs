//! `cargo xtask setup`: finds what building and testing need, and installs what is missing.

use std::{
    fmt::Write as _,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build,
    build_object::{self, Compiler, Toolchain},
    docker::Docker,
    options::Peer,
    sh,
};

/// Install what the build (and with --tests the tests) lacks; do nothing if nothing lacks.
///
/// The kernel object needs a Rust compiler with its standard library's source and bpf-linker. What is installed is used. Else, in this order:
///
///  1. Debian's packages, where apt offers them: rustc-web cargo-web rust-web-src (1 min), llvm-22-dev (1 min), and bpf-linker 0.13.0 built by cargo (2 min);
///
///  2. rustup's nightly with rust-src, and bpf-linker through cargo-binstall.
///
/// apt runs as root, through sudo if needed. No service that a package brings is started. Where installing is not possible the commands are
/// printed and the exit code is not zero. LB_BPF_TOOLCHAIN chooses a rustup toolchain, or a sysroot by its path.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask setup                  what the build needs; ends by building the kernel object
  cargo xtask setup --tests          also the tests' tools and a running Docker
  cargo xtask setup --check --tests  only report; exit code 1 if something lacks")]
pub struct Setup {
    /// Only report what is there and what lacks
    #[arg(long)]
    check: bool,
    /// Also what the tests use: iproute2 ethtool curl wrk iperf3 nginx redis nftables stress-ng tcpdump, and Docker
    #[arg(long)]
    tests: bool,
}

impl Setup {
    pub fn run(self) -> Result<ExitCode> {
        if self.check {
            return Ok(report(self.tests));
        }
        let toolchain = ensure_toolchain()?;
        println!("compiler    {} ({})", toolchain.version, toolchain.rustc.display());
        println!("bpf-linker  {}", toolchain.linker.display());
        if self.tests {
            ensure_tests()?;
            println!("test tools  all there");
            println!("docker      {}", ensure_docker()?.version()?);
        }
        eprintln!("building the kernel object (a minute the first time)");
        println!("object      {}", build::object(&toolchain)?.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// Finds the toolchain of the kernel object, after installing what of it is missing.
pub fn ensure_toolchain() -> Result<Toolchain> {
    let missing = match build_object::find() {
        Ok(toolchain) => return Ok(toolchain),
        Err(missing) => missing,
    };
    eprintln!("setting up: {missing}");
    let compiler = match build_object::find_compiler(None) {
        Ok(compiler) => compiler,
        Err(reason) => install_compiler(&reason)?,
    };
    if let Err(missing) = build_object::find() {
        install_linker(&compiler, &missing.to_string())?;
    }
    build_object::find().map_err(|missing| anyhow::anyhow!("after installing, still {missing}"))
}

fn install_compiler(reason: &str) -> Result<Compiler> {
    const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
    const RUSTUP: [&str; 7] = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
    if std::env::var_os(build_object::TOOLCHAIN_VARIABLE).is_some() {
        bail!("{reason}; unset {} to have one chosen or installed", build_object::TOOLCHAIN_VARIABLE);
    }
    if apt_offers(&PACKAGES) {
        apt_install(&PACKAGES)?;
    } else if sh::find_program("rustup").is_some() {
        sh::step("installing rustup's nightly with rust-src", "about a minute", Command::new("rustup").args(RUSTUP))
            .context("no other source of a compiler is known: neither apt offers one nor could rustup install it")?;
    } else {
        bail!(
            "{reason}, and it cannot be installed from here; run as root\n    apt-get update && apt-get install -y {}\nor, with rustup,\n    rustup {}",
            PACKAGES.join(" "),
            RUSTUP.join(" ")
        );
    }
    build_object::find_compiler(None).map_err(|reason| anyhow::anyhow!("after installing a compiler, still {reason}"))
}

fn install_linker(compiler: &Compiler, reason: &str) -> Result<()> {
    const LINKER: &str = "bpf-linker@0.13.0";
    let llvm = compiler.llvm.with_context(|| format!("learn the LLVM version of {}", compiler.rustc.display()))?;
    let package = format!("llvm-{llvm}-dev");
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let feature = format!("llvm-{llvm}");
    let mut install = sh::cargo();
    install.env("LLVM_PREFIX", &prefix);
    install.args(["install", LINKER, "--locked", "--force", "--no-default-features", "-F", &feature]);

    let mut packages = Vec::new();
    if !Path::new(&prefix).join("include/llvm-c").is_dir() {
        packages.push(package.as_str());
    }
    if sh::find_program("c++").is_none() || sh::find_program("cc").is_none() {
        packages.push("g++");
    }
    if packages.is_empty() || apt_offers(&packages) {
        if !packages.is_empty() {
            apt_install(&packages)?;
        }
        return sh::step(&format!("building {LINKER} against LLVM {llvm}"), "about two minutes", &mut install);
    }

    if sh::find_program("cargo-binstall").is_some() || sh::find_program("rustup").is_some() {
        if sh::find_program("cargo-binstall").is_none() {
            let mut binstall = sh::cargo();
            binstall.args(["install", "cargo-binstall", "--locked"]);
            sh::step("building cargo-binstall, which fetches a bpf-linker", "about five minutes", &mut binstall)?;
        }
        let mut binstall = sh::cargo();
        binstall.args(["binstall", "--no-confirm", "--force", LINKER]);
        return sh::step("fetching bpf-linker", "seconds", &mut binstall);
    }
    bail!(
        "{reason}, and it cannot be installed from here; run as root\n    apt-get update && apt-get install -y {package}\nand then\n    {}",
        sh::show(&install)
    )
}

/// A program that the tests start, and the Debian package it comes in.
pub struct Tool {
    pub program: &'static str,
    pub package: &'static str,
}

const TEST_TOOLS: [Tool; 13] = [
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "nsenter", package: "util-linux" },
    Tool { program: "ethtool", package: "ethtool" },
    Tool { program: "curl", package: "curl" },
    Tool { program: "wrk", package: "wrk" },
    Tool { program: "iperf3", package: "iperf3" },
    Tool { program: "nginx", package: "nginx-light" },
    Tool { program: "redis-server", package: "redis-server" },
    Tool { program: "redis-benchmark", package: "redis-tools" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "conntrack", package: "conntrack" },
    Tool { program: "stress-ng", package: "stress-ng" },
    Tool { program: "tcpdump", package: "tcpdump" },
];

/// Returns the programs that the tests start.
pub fn test_programs() -> impl Iterator<Item = &'static str> {
    TEST_TOOLS.iter().map(|tool| tool.program)
}

/// Installs the programs that the tests start.
pub fn ensure_tests() -> Result<()> {
    ensure_tools(&TEST_TOOLS)
}

/// Installs those of the programs that are missing.
pub fn ensure_tools(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| sh::find_program(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    if !apt_offers(&packages) {
        bail!(
            "the tests lack {}; as root: apt-get update && apt-get install -y {}",
            missing.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", "),
            packages.join(" ")
        );
    }
    apt_install(&packages)
}

/// What the balancer is compared with. Each can do without the others: what cannot be installed is left out, and told.
const PEERS: [(Peer, Tool); 10] = [
    (Peer::Nftables, Tool { program: "nft", package: "nftables" }),
    (Peer::Nftables, Tool { program: "conntrack", package: "conntrack" }),
    (Peer::Flowtable, Tool { program: "nft", package: "nftables" }),
    (Peer::Flowtable, Tool { program: "conntrack", package: "conntrack" }),
    (Peer::Iptables, Tool { program: "iptables-nft", package: "iptables" }),
    (Peer::Iptables, Tool { program: "conntrack", package: "conntrack" }),
    (Peer::Haproxy, Tool { program: "haproxy", package: "haproxy" }),
    (Peer::HaproxyHttp, Tool { program: "haproxy", package: "haproxy" }),
    (Peer::Nginx, Tool { program: "nginx", package: "nginx-light" }),
    (Peer::Ipvs, Tool { program: "ipvsadm", package: "ipvsadm" }),
];
/// nginx's module for TCP and UDP, a package of its own.
const STREAM_MODULE: (&str, &str) = ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream");

/// Installs those of the peers that are wanted.
pub fn ensure_peers(wanted: impl Fn(Peer) -> bool) -> Result<()> {
    let mut packages: Vec<&str> = Vec::new();
    for (_, tool) in PEERS.iter().filter(|(peer, _)| wanted(*peer)) {
        // Without the kernel's part there is no use for the tool.
        let useless = tool.program == "ipvsadm" && !kernel_has_ipvs();
        if sh::find_program(tool.program).is_none() && !useless && !packages.contains(&tool.package) {
            packages.push(tool.package);
        }
    }
    if wanted(Peer::Nginx) && !Path::new(STREAM_MODULE.0).exists() {
        packages.push(STREAM_MODULE.1);
    }
    packages.retain(|package| {
        let offered = apt_offers(&[package]);
        if !offered {
            eprintln!("{package} cannot be installed from here; what needs it will be left out");
        }
        offered
    });
    if packages.is_empty() { Ok(()) } else { apt_install(&packages) }
}

fn kernel_has_ipvs() -> bool {
    let probe = || sh::as_root("modprobe").and_then(|mut modprobe| sh::output(modprobe.arg("ip_vs")));
    Path::new("/proc/net/ip_vs").exists() || probe().is_ok()
}

/// Reaches Docker, after installing Debian's where there is none.
pub fn ensure_docker() -> Result<Docker> {
    let mut packages = Vec::new();
    if sh::find_program("docker").is_none() {
        packages.push("docker.io");
        if apt_offers(&["docker-cli"]) {
            packages.push("docker-cli"); // a package of its own since Debian 13
        }
    }
    if !packages.is_empty() && apt_offers(&packages) {
        apt_install(&packages)?;
    }
    Docker::reach()
}

fn report(tests: bool) -> ExitCode {
    let mut lacks = 0;
    let mut line = |name: &str, state: Result<String, String>| match state {
        Ok(found) => println!("ok       {name:<15} {found}"),
        Err(reason) => {
            lacks += 1;
            println!("missing  {name:<15} {reason}");
        }
    };
    match build_object::find() {
        Ok(toolchain) => {
            line("compiler", Ok(format!("{} ({})", toolchain.version, toolchain.rustc.display())));
            line("bpf-linker", Ok(toolchain.linker.display().to_string()));
        }
        Err(missing) => {
            line("compiler", missing.compiler.map_or(Ok("found".to_owned()), Err));
            line("bpf-linker", missing.linker.map_or(Ok("found".to_owned()), Err));
        }
    }
    if tests {
        for tool in &TEST_TOOLS {
            let found = sh::find_program(tool.program).map(|path| path.display().to_string());
            line(tool.program, found.ok_or_else(|| format!("Debian package {}", tool.package)));
        }
        let docker = Docker::answering().and_then(|docker| docker.version());
        line("docker", docker.map_err(|error| format!("{error:#}").replace('\n', "; ")));
    }
    if lacks == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells whether apt can install all of these here and now; fetches its lists if they do not know them.
pub fn apt_offers(packages: &[&str]) -> bool {
    if sh::find_program("apt-get").is_none() || !sh::can_be_root() {
        return false;
    }
    let known = || packages.iter().all(|package| apt_knows(package));
    if known() {
        return true;
    }
    static UPDATED: std::sync::OnceLock<()> = std::sync::OnceLock::new();
    UPDATED.get_or_init(|| {
        let updated = sh::as_root("apt-get")
            .and_then(|mut apt| sh::step("fetching apt's package lists", "seconds", apt.args(["update"])));
        if let Err(error) = updated {
            eprintln!("{error:#}"); // what is in the old lists may do
        }
    });
    known()
}

fn apt_knows(package: &str) -> bool {
    let policy = sh::output(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]));
    let candidate = policy.ok().and_then(|text| {
        text.lines().find_map(|line| line.trim().strip_prefix("Candidate:").map(|version| version.trim() != "(none)"))
    });
    candidate.unwrap_or(false)
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let mut shell = sh::as_root("sh")?;
    shell.args(["-c", &apt_script(packages)]);
    sh::step(&format!("installing {} by apt", packages.join(" ")), "about a minute", &mut shell)
        .with_context(|| format!("install Debian packages; by hand: apt-get install -y {}", packages.join(" ")))
}

/// Returns a shell script that installs packages and starts none of their services: a web server of the distribution would
/// take port 80 from us. The policy that forbids starting goes away with the script, also when it fails or is interrupted.
///
/// # Source
/// Debian, /usr/share/doc/sysv-rc/README.policy-rc.d: exit code 101 forbids the action.
fn apt_script(packages: &[&str]) -> String {
    const SERVICES: [(&str, &str); 4] =
        [("nginx-light", "nginx"), ("redis-server", "redis-server"), ("iperf3", "iperf3"), ("haproxy", "haproxy")];
    let mut script = String::from(
        r#"set -e
policy=/usr/sbin/policy-rc.d
if [ -e $policy ]; then
    mv $policy $policy.before-lb
    trap 'mv $policy.before-lb $policy' EXIT
else
    trap 'rm -f $policy' EXIT
fi
trap 'exit 130' HUP INT TERM
printf '#!/bin/sh\nexit 101\n' > $policy
chmod 755 $policy
export DEBIAN_FRONTEND=noninteractive
"#,
    );
    let _ = writeln!(script, "apt-get install -y --no-install-recommends {}", packages.join(" "));
    for (package, service) in SERVICES {
        if packages.contains(&package) {
            // Nor shall the next boot start them.
            let _ = writeln!(script, "if [ -d /run/systemd/system ]; then systemctl disable {service} || true; fi");
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apt_script_is_a_shell_script_that_names_its_packages() {
        let script = apt_script(&["nginx-light", "wrk"]);

        assert!(script.contains("install -y --no-install-recommends nginx-light wrk\n"));
        assert!(script.contains("systemctl disable nginx "));
        assert!(!script.contains("disable redis"));
        sh::output(Command::new("sh").args(["-n", "-c", &script])).unwrap();
    }
}
