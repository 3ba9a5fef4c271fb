//! Everything that touches the kernel: loading and attaching, the maps, devices and their names.
//!
//! The agent owns one [`Datapath`]. It decides nothing: it is told what to publish, and performs it in the order that
//! loses nothing (`publish`).

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

pub mod clock;
pub mod doors;
pub mod layout;
pub mod links;
pub mod loader;
pub mod local;
pub mod maps;
pub mod netdev;
pub mod netns;
pub mod pins;
pub mod probe;
pub mod publish;
pub mod rehearse;
pub mod report;
pub mod sockets;
pub mod sweep;
mod sys;
pub mod wakes;

pub use loader::{Datapath, Opening};
pub use maps::Maps;
pub use pins::Pins;

/// The kernel object: all maps and programs. Empty if the agent was built without the BPF toolchain.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb.o"));

/// Why the kernel could not be brought to do what was asked, one variant for each thing that can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The agent was built without the kernel object.
    #[error("this lb-user was built without its kernel object: build it with `cargo xtask build`")]
    NoObject,
    /// Without root, nothing can be loaded.
    #[error("not root: loading programs into the kernel needs root: use sudo")]
    NotRoot,
    /// The kernel describes no types.
    #[error(
        "the kernel has no type information (/sys/kernel/btf/vmlinux): use one that is built with CONFIG_DEBUG_INFO_BTF"
    )]
    NoBtf,
    /// The kernel refuses or lacks bpf(2).
    #[error("load the kernel object: {source}: the kernel lacks BPF, or a policy (lockdown, seccomp) forbids it")]
    NoBpf {
        /// What the kernel said.
        source: io::Error,
    },
    /// The BPF file system cannot be mounted.
    #[error("mount the BPF file system at {path}: {source}: mount it by hand with `mount -t bpf bpf {path}`", path = path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no unified cgroup hierarchy.
    #[error("open the unified cgroup hierarchy at {path}: {source}: clients on this host need it", path = path.display())]
    Cgroup {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pin cannot be made or removed.
    #[error("{action} {path}: {source}", path = path.display())]
    Pin {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The lock's file cannot be opened.
    #[error("lock {path}: {source}", path = path.display())]
    Lock {
        /// Where.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Another agent runs this instance.
    #[error("instance {instance} is in use by another lb-user: choose another name with --instance, or stop that one")]
    InUse {
        /// The instance.
        instance: String,
    },
    /// The instance balances elsewhere.
    #[error(
        "instance {instance} balances in another network namespace: choose another name with --instance, or remove it \
         with `lb-user detach --instance {instance}`"
    )]
    OtherNamespace {
        /// The instance.
        instance: String,
    },
    /// Filters of the instance are in another network namespace.
    #[error(
        "instance {instance} has filters on clsact qdiscs in another network namespace, and only there can they be \
         removed: run `lb-user detach --instance {instance}` there, as by `nsenter --net=/run/netns/NAME`"
    )]
    FiltersElsewhere {
        /// The instance.
        instance: String,
    },
    /// Pinned by another version of the agent.
    #[error(
        "instance {instance} was pinned by another version of lb-user (ABI {found}, this one has {ours}): its \
         connections cannot be taken over; remove it with `lb-user detach --instance {instance}`"
    )]
    OtherAbi {
        /// The instance.
        instance: String,
        /// Its ABI.
        found: u32,
        /// Ours.
        ours: u32,
    },
    /// Another instance has the frontend.
    #[error(
        "frontend {frontend} belongs to instance {instance} already: choose another port, or remove that instance with \
         `lb-user detach --instance {instance}`"
    )]
    FrontendTaken {
        /// The frontend's endpoint.
        frontend: String,
        /// Whose it is.
        instance: String,
    },
    /// A server of this host cannot stand behind itself.
    #[error(
        "backend {backend}: it is frontend {frontend} itself, so that there is nothing to balance: let the server listen at \
         another port, or name other addresses with --publish"
    )]
    OwnFrontend {
        /// The backend.
        backend: std::net::SocketAddr,
        /// The frontend's name.
        frontend: String,
    },
    /// Another instance is taking its frontends.
    #[error("look after the frontends' addresses: another instance is choosing its frontends: tried again in a moment")]
    FrontendsBusy,
    /// The kernel object cannot be loaded.
    #[error("load the kernel object: {source}")]
    Load {
        /// What was wrong.
        source: Box<EbpfError>,
    },
    /// The object lacks a program.
    #[error("the kernel object has no program {program}: it belongs to another version")]
    NoProgram {
        /// Its name.
        program: &'static str,
    },
    /// The kernel refuses a program, or to attach it.
    #[error("{action} {program}: {}", program_cause(cause))]
    Program {
        /// What was attempted.
        action: String,
        /// The program.
        program: &'static str,
        /// What the kernel said. Not the source of this error, lest the verifier's whole log is shown with it.
        cause: Box<ProgramError>,
    },
    /// XDP on a device that hands over unfinished checksums.
    #[error(
        "attach XDP to {interface}: it is a veth, whose sender leaves checksums unfinished, so that every rewritten \
         connection would break: use --hook tc, or turn the senders' checksum offload off (`ethtool -K IFACE tx off`) \
         and say so with --complete-checksums"
    )]
    XdpOnVeth {
        /// The device.
        interface: String,
    },
    /// XDP on a VLAN, which has no driver.
    #[error(
        "attach XDP to {interface}: it is a VLAN, whose packets XDP can meet only at the device below it: name that one \
         with --uplink, or use --hook tc"
    )]
    XdpOnVlan {
        /// The device.
        interface: String,
    },
    /// XDP on a device that is made of others.
    #[error(
        "attach XDP to {interface}: it is a {kind}, where XDP sees the devices below it, by which no reply finds its way: \
         use --hook tc"
    )]
    XdpOnBond {
        /// The device.
        interface: String,
        /// The kernel's name for its kind.
        kind: String,
    },
    /// XDP on a device that takes the tags of its VLANs off.
    #[error(
        "attach XDP to {interface}: it has VLANs, and takes their tags off before XDP sees a packet, so that none could \
         be told from the device's own: let it keep them (`ethtool -K {interface} rxvlan off`), or use --hook tc"
    )]
    XdpWithoutTags {
        /// The device.
        interface: String,
    },
    /// The driver cannot run XDP, or another program is there.
    #[error(
        "attach XDP to {interface}: {}: use --hook tc, or --hook xdp-generic where speed does not matter",
        program_cause(cause)
    )]
    Xdp {
        /// The device.
        interface: String,
        /// What the kernel said.
        cause: Box<ProgramError>,
    },
    /// A map refuses an operation.
    #[error("map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: Box<MapError>,
    },
    /// A map cannot be read or cleaned in batches.
    #[error("map {map}: {source}")]
    Scan {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Everything of a kind is in use.
    #[error("no room for more {what}: the limit is {limit}")]
    Full {
        /// The kind.
        what: &'static str,
        /// How many there are.
        limit: u32,
    },
    /// The sockets of the network namespace cannot be listed.
    #[error("list the sockets (inet_diag): {source}")]
    Sockets {
        /// What the kernel said.
        source: io::Error,
    },
    /// The number of processors is not known.
    #[error("count the processors: {source}")]
    Processors {
        /// What the system said.
        source: io::Error,
    },
    /// The report does not fit.
    #[error("the report is {len} bytes long, and {room} fit")]
    ReportTooLong {
        /// Bytes.
        len: usize,
        /// Bytes that fit.
        room: usize,
    },
    /// The report was rewritten faster than it could be read.
    #[error("the agent rewrites its report faster than it can be read: try again")]
    ReportRestless,
    /// The network namespace cannot be told.
    #[error("tell the network namespace: {source}: Linux 5.14 or newer is needed")]
    Netns {
        /// What the kernel said.
        source: io::Error,
    },
}

/// Returns what the kernel said, in a line: of the verifier's log, the last one that is about the program.
fn in_a_line(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return program_cause(error) };
    let log = verifier_log.to_string();
    // The last line counts instructions.
    let is_telling = |line: &&str| !line.trim().is_empty() && !line.starts_with("processed ");
    match log.lines().rev().find(is_telling) {
        Some(line) => format!("{}: {io_error}", line.trim()),
        None => io_error.to_string(),
    }
}

/// Returns what the kernel said, with the end of the verifier's log where there is one.
fn program_cause(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            format!("{io_error}\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
        }
        ProgramError::SyscallError(error) => error.io_error.to_string(),
        other => other.to_string(),
    }
}
