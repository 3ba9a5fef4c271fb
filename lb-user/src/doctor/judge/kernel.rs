//! The kernel, and what this process may do with it.

use std::collections::BTreeMap;

use super::super::{
    Finding, Group, Level,
    facts::{Kernel, Sight},
};
use crate::{
    config::{Hook, RunConfig},
    datapath::probe::{self, Trial},
    status::human::list,
};

/// The oldest kernel that has all that is used.
const OLDEST: (u32, u32) = (5, 15);
/// The oldest on which the tests run.
const TESTED: (u32, u32) = (6, 1);

/// Judges the kernel.
pub fn judge(kernel: &Kernel, config: &RunConfig) -> Vec<Finding> {
    let mut findings = vec![privileges(kernel), version(kernel)];
    for (subject, told) in &kernel.refusals {
        findings.push(new(Level::Error, subject, told));
    }
    // Without the object there was nothing to try.
    let has_object = kernel.refusals.iter().all(|(subject, _)| *subject != "object");
    match &kernel.trial {
        _ if !has_object => {}
        Sight::Seen(Ok(trial)) => findings.extend(tried(trial, kernel, config)),
        Sight::Seen(Err(told)) => findings.push(unloaded(told, kernel)),
        Sight::NeedsRoot => findings.push(Finding::needs_root(Group::Kernel, "programs")),
        Sight::Unclear(why) => findings.push(new(Level::Error, "programs", why)),
    }
    findings.push(bpffs(kernel));
    findings.push(cgroups(kernel));
    findings.extend(at_connect(kernel));
    findings
}

fn new(level: Level, subject: &str, found: impl Into<String>) -> Finding {
    Finding::new(Group::Kernel, level, subject, found)
}

fn privileges(kernel: &Kernel) -> Finding {
    if !kernel.is_root {
        return new(Level::Warning, "privileges", "not root")
            .means("lb-user run needs root; and here, what only root sees is not looked at")
            .command("sudo lb-user check");
    }
    // Others may stand in for them, as far as what was tried.
    let is_enough = matches!(&kernel.trial, Sight::Seen(Ok(trial)) if trial.is_passed());
    match kernel.lacking.as_slice() {
        [] => new(Level::Ok, "privileges", "root, with all that is needed"),
        lacking if is_enough => new(Level::Warning, "privileges", format!("root without {}", lacking.join(" and ")))
            .means(
                "programs can be loaded and attached all the same, but nothing be mounted, and no namespace be entered",
            ),
        lacking => new(Level::Error, "privileges", format!("root without {}", lacking.join(" and ")))
            .means("programs can neither be loaded nor attached; a container has to be given these powers")
            .mend("in a container: --cap-add SYS_ADMIN --cap-add NET_ADMIN --network host; or run it on the host"),
    }
}

fn version(kernel: &Kernel) -> Finding {
    let release = &kernel.release;
    match version_of(release) {
        Some(version) if version < OLDEST => new(Level::Error, "version", format!("Linux {release}"))
            .means("older than 5.15, the oldest that has all that is used")
            .mend("boot a newer kernel: TC by links (TCX) comes with 6.6"),
        Some(version) if version < TESTED => new(Level::Note, "version", format!("Linux {release}"))
            .means("it has all that is used, as far as is known; the tests run on 6.1 and 6.18"),
        Some(_) => new(Level::Ok, "version", format!("Linux {release}")),
        None => new(Level::Note, "version", format!("{release:?} is no version that is understood")),
    }
}

fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The object cannot be loaded at all.
fn unloaded(told: &str, kernel: &Kernel) -> Finding {
    let finding = new(Level::Error, "programs", told).means("nothing can be balanced by this kernel as it is");
    match kernel.lockdown.as_deref() {
        None | Some("none") => finding,
        Some(mode) => {
            finding.mend(format!("lockdown is {mode}: it may be what forbids it; boot without, or with integrity"))
        }
    }
}

fn tried(trial: &Trial, kernel: &Kernel, config: &RunConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    let refused: Vec<_> = trial.programs.iter().filter_map(|(name, why)| Some((name, why.as_ref()?))).collect();
    let (all, passed) = (trial.programs.len(), trial.programs.len() - refused.len());
    if refused.is_empty() {
        findings.push(new(Level::Ok, "programs", format!("all {all} pass the verifier")));
    } else {
        let finding =
            new(Level::Error, "programs", format!("{passed} of {all} pass the verifier{}", reasons(&refused)))
                .means("lb-user run loads all of them, or none");
        findings.push(match kernel.lacking.as_slice() {
            [] => finding.mend("boot a kernel in which they pass, or report these lines"),
            // It is told where that is judged.
            _ => finding,
        });
    }
    if passed == 0 {
        return findings;
    }
    findings.push(if trial.is_compiled {
        new(Level::Ok, "compiler", "programs are compiled to machine code")
    } else {
        new(Level::Warning, "compiler", "programs are interpreted")
            .means("each packet costs several times as much")
            .command("sysctl -w net.core.bpf_jit_enable=1")
    });
    if !refused.is_empty() {
        return findings;
    }
    let how = if trial.is_by_link { "TCX, by links" } else { "filters on a clsact qdisc" };
    findings.push(match (&trial.tc, trial.is_by_link) {
        (Some(why), _) => new(Level::Error, "TC", format!("{how}: {why}")).means("no front door can be attached").mend(
            if trial.is_by_link {
                "TCX needs Linux 6.6: leave --tc-attach out"
            } else {
                "the kernel has to have CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"
            },
        ),
        (None, true) => new(Level::Ok, "TC", format!("{how}: they outlive the agent, and are replaced without a gap")),
        (None, false) => new(Level::Ok, "TC", format!("{how}, as TCX is not there (Linux 6.6) or not wanted")),
    });
    if !trial.is_by_link && !kernel.has_tc {
        findings.push(
            new(Level::Warning, "tc", "there is no program tc")
                .means("the clsact qdiscs that lb-user adds stay at their devices when it has ended; they do no harm")
                .command("apt-get install iproute2"),
        );
    }
    if let Some(why) = &trial.xdp {
        let level = match config.hook {
            Hook::Auto | Hook::Tc => Level::Note,
            Hook::Xdp | Hook::XdpGeneric => Level::Error,
        };
        findings.push(new(level, "XDP", why).means("XDP cannot be attached to any device").mend("use --hook tc"));
    }
    findings
}

/// Returns a line for each reason, with the programs that are refused for it.
fn reasons(refused: &[(&String, &String)]) -> String {
    let mut of: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for (name, why) in refused {
        of.entry(why).or_default().push(name);
    }
    of.values_mut().for_each(|names| names.sort());
    of.iter().map(|(why, names)| format!("\n{}: {why}", list(names))).collect()
}

fn bpffs(kernel: &Kernel) -> Finding {
    let own_mounts = matches!(kernel.shares_mounts, Sight::Seen(false));
    match (kernel.bpffs, own_mounts) {
        (true, _) => new(Level::Ok, "BPF file system", "mounted at /sys/fs/bpf"),
        (false, false) => new(Level::Note, "BPF file system", "not mounted at /sys/fs/bpf: lb-user run mounts it")
            .command("mount -t bpf bpf /sys/fs/bpf"),
        (false, true) => new(Level::Warning, "BPF file system", "not mounted, or hidden in this mount namespace")
            .means(
                "what lb-user run mounts here, nobody else sees: status and detach find no instance from elsewhere, and it \
                 ends with the last process of the namespace",
            )
            .mend("enter the network namespace alone, not by `ip netns exec`:")
            .command("nsenter --net=/run/netns/NAME lb-user run …"),
    }
}

/// Programs of others that meet the sockets of this host before ours.
fn at_connect(kernel: &Kernel) -> Option<Finding> {
    const SUBJECT: &str = "others at connect()";
    match &kernel.at_connect {
        Sight::Seen(programs) => {
            let before = programs.iter().take_while(|program| !probe::is_ours(program));
            let before: Vec<String> = before.map(ToString::to_string).collect();
            (!before.is_empty()).then(|| {
                new(Level::Note, SUBJECT, format!("{} at the root of control groups, before ours", list(before))).means(
                    "of clients on this host, what they refuse is refused, and what they lead elsewhere does not come to \
                     frontends",
                )
            })
        }
        Sight::NeedsRoot => Some(Finding::needs_root(Group::Kernel, SUBJECT)),
        Sight::Unclear(why) => Some(new(Level::Note, SUBJECT, format!("the programs there cannot be listed: {why}"))),
    }
}

fn cgroups(kernel: &Kernel) -> Finding {
    const SUBJECT: &str = "control groups";
    if !kernel.has_cgroup2 {
        return new(Level::Error, SUBJECT, "the kernel has no unified control groups (cgroup2)")
            .means("the hooks of connect(), by which clients on this host are led, cannot be attached")
            .mend("use a kernel with CONFIG_CGROUPS and CONFIG_CGROUP_BPF");
    }
    match &kernel.cgroup2 {
        Some(path) if !kernel.sees_all_cgroups => {
            new(Level::Warning, SUBJECT, format!("those of a container at {}", path.display()))
                .means("clients on this host that are outside of it are not led to backends")
                .mend("start this container with --cgroupns host, and with /sys/fs/cgroup of the host")
        }
        Some(path) => new(Level::Ok, SUBJECT, format!("unified ones at {}, for clients on this host", path.display())),
        None => new(Level::Note, SUBJECT, "unified ones are not mounted: lb-user run mounts them at /run/lb/cgroup2"),
    }
}
