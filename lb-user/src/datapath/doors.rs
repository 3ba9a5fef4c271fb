//! Where programs are attached, and how they stay attached when the agent dies.
//!
//! TCX, XDP and cgroup links are pinned, and their programs replaced atomically by the next agent. A filter on a clsact
//! qdisc (kernels before 6.6) stays by itself; the report remembers it, and the next agent adds its own before it takes
//! the old one away.

use std::{io, panic::resume_unwind, thread};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, Link as _, LinkError},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
    util::KernelVersion,
};
use lb_ebpf::abi::program;
use nix::{errno::Errno, net::if_::if_indextoname};
use serde::{Deserialize, Serialize};

use super::{DatapathError, links::Framing, pins, pins::Pins, sys};
use crate::config::TcAttach;

/// A program at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    /// What it does.
    pub kind: DoorKind,
    /// The device; zero for the cgroup.
    pub ifindex: u32,
    /// Its name; empty for the cgroup.
    pub interface: String,
    /// How its packets are framed.
    pub framing: Framing,
    /// How it is attached.
    pub attach: DoorAttach,
}

/// What a door does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoorKind {
    /// TC ingress of an uplink.
    TcIngress,
    /// XDP of an uplink, in the driver.
    Xdp,
    /// XDP of an uplink, behind the driver.
    XdpGeneric,
    /// TC ingress of a backend's device.
    TcReply,
    /// TC egress of a device at which clients are met, where a backend is this host itself.
    TcLocal,
    /// The cgroup's hooks.
    Cgroup,
}

/// How a door is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoorAttach {
    /// A pinned link.
    Link,
    /// A filter on a clsact qdisc.
    Clsact {
        /// The filter's priority.
        priority: u16,
        /// The filter's handle.
        handle: u32,
        /// Whether the qdisc was added for it.
        own_qdisc: bool,
    },
}

/// A device to attach to.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: &'a str,
    /// How its packets are framed.
    pub framing: Framing,
}

/// The programs of the cgroup and the names of their pins.
const CGROUP_PROGRAMS: [&str; 9] = [
    program::CONNECT4,
    program::CONNECT6,
    program::SENDMSG4,
    program::SENDMSG6,
    program::RECVMSG4,
    program::RECVMSG6,
    program::GETPEERNAME4,
    program::GETPEERNAME6,
    program::SOCK_RELEASE,
];

/// The programs of devices, with which the names of their pins begin.
const DEVICE_PROGRAMS: [&str; 7] = [
    program::TC_INGRESS,
    program::TC_INGRESS_L3,
    program::TC_REPLY,
    program::TC_REPLY_L3,
    program::TC_LOCAL,
    program::TC_LOCAL_L3,
    program::XDP_INGRESS,
];

/// How often a load that was interrupted is tried again.
const LOAD_TRIES: usize = 5;

impl DoorKind {
    const fn program(self, framing: Framing) -> &'static str {
        match (self, framing) {
            (Self::TcIngress, Framing::Ethernet) => program::TC_INGRESS,
            (Self::TcIngress, Framing::Bare) => program::TC_INGRESS_L3,
            (Self::Xdp | Self::XdpGeneric, _) => program::XDP_INGRESS,
            (Self::TcReply, Framing::Ethernet) => program::TC_REPLY,
            (Self::TcReply, Framing::Bare) => program::TC_REPLY_L3,
            (Self::TcLocal, Framing::Ethernet) => program::TC_LOCAL,
            (Self::TcLocal, Framing::Bare) => program::TC_LOCAL_L3,
            (Self::Cgroup, _) => program::CONNECT4,
        }
    }

    /// Returns at which side of a device a TC program is.
    const fn side(self) -> TcAttachType {
        match self {
            Self::TcLocal => TcAttachType::Egress,
            Self::TcIngress | Self::Xdp | Self::XdpGeneric | Self::TcReply | Self::Cgroup => TcAttachType::Ingress,
        }
    }
}

impl Door {
    /// Returns the name of the pin of a device's link. Dots are not allowed in the BPF file system, so it is the
    /// index, not the name of the device, that stands in it.
    fn pin(kind: DoorKind, framing: Framing, ifindex: u32) -> String {
        format!("{}-{ifindex}", kind.program(framing))
    }

    /// Returns the device.
    pub fn device(&self) -> Device<'_> {
        Device { ifindex: self.ifindex, name: &self.interface, framing: self.framing }
    }

    /// Returns whether it is a filter, which no pin holds and only its own network namespace knows.
    pub fn is_filter(&self) -> bool {
        matches!(self.attach, DoorAttach::Clsact { .. })
    }

    /// Returns whether the device's clsact qdisc was added for it.
    pub fn owns_qdisc(&self) -> bool {
        matches!(self.attach, DoorAttach::Clsact { own_qdisc: true, .. })
    }
}

/// Returns whether a program of this name, of which the kernel keeps fifteen bytes, is one of ours.
pub fn is_ours(name: &str) -> bool {
    let kept = |program: &str| program[..program.len().min(15)] == *name;
    DEVICE_PROGRAMS.into_iter().chain(CGROUP_PROGRAMS).any(kept)
}

/// Returns whether a pin of this name is a link's.
pub fn is_link_pin(name: &str) -> bool {
    let of_device = |program: &str| name.strip_prefix(program).is_some_and(|rest| rest.starts_with('-'));
    CGROUP_PROGRAMS.contains(&name) || DEVICE_PROGRAMS.into_iter().any(of_device)
}

/// Attaches a TC program, replacing that of a former agent. `is_qdisc_ours` tells whether an agent of ours has added the
/// clsact qdisc that the device turns out to have.
///
/// # Errors
/// What the kernel said.
pub fn attach_tc(
    ebpf: &mut Ebpf,
    pins: &Pins,
    kind: DoorKind,
    device: Device<'_>,
    how: TcAttach,
    former: Option<&Door>,
    is_qdisc_ours: impl FnOnce() -> bool,
) -> Result<Door, DatapathError> {
    let Device { ifindex, name: interface, framing } = device;
    let name = kind.program(framing);
    let failed = |source: ProgramError| DatapathError::Program {
        action: format!("attach to {interface}"),
        program: name,
        cause: Box::new(source),
    };
    let pin = Door::pin(kind, framing, ifindex);
    let program: &mut SchedClassifier = find(ebpf, name)?;
    let attach = if is_by_link(how) {
        if !replaced(pins, &pin, program.fd().map_err(failed)?)? {
            let id = program
                .attach_with_options(interface, kind.side(), TcAttachOptions::TcxOrder(LinkOrder::default()))
                .map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            pin_link(pins, &pin, link.try_into().map_err(link_failed(interface, name))?)?;
        }
        DoorAttach::Link
    } else {
        let own_qdisc = match tc::qdisc_add_clsact(interface) {
            Ok(()) => true,
            Err(error) if is_there(&error) => former.is_some_and(Door::owns_qdisc) || is_qdisc_ours(),
            Err(error) => return Err(failed(error.into())),
        };
        let options = TcAttachOptions::Netlink(NlOptions::default());
        let id = program.attach_with_options(interface, kind.side(), options).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        let priority = link.priority().map_err(failed)?;
        let handle = u32::from(link.handle().map_err(failed)?);
        // The filter has to outlive the agent; `detach_door` or the next agent removes it by its number.
        std::mem::forget(link);
        DoorAttach::Clsact { priority, handle, own_qdisc }
    };
    if let Some(former) = former
        && former.attach != attach
    {
        remove_former(pins, former, attach);
    }
    Ok(Door { kind, ifindex, interface: interface.to_owned(), framing, attach })
}

/// Returns whether TC programs are attached by links, of TCX, and not as filters of a clsact qdisc.
pub fn is_by_link(how: TcAttach) -> bool {
    match how {
        TcAttach::Tcx => true,
        TcAttach::Clsact => false,
        TcAttach::Auto => KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0)),
    }
}

/// Attaches the TC program of uplinks to a device of the calling thread's network namespace, and takes it away again; the
/// clsact qdisc stays, if it took one.
///
/// # Errors
/// What the kernel said.
pub fn try_tc(ebpf: &mut Ebpf, interface: &str, how: TcAttach) -> Result<(), ProgramError> {
    let options = if is_by_link(how) {
        TcAttachOptions::TcxOrder(LinkOrder::default())
    } else {
        tc::qdisc_add_clsact(interface)?;
        TcAttachOptions::Netlink(NlOptions::default())
    };
    let program: &mut SchedClassifier = try_find(ebpf, program::TC_INGRESS)?;
    let id = program.attach_with_options(interface, TcAttachType::Ingress, options)?;
    program.detach(id)
}

/// Attaches the XDP program to a device of the calling thread's network namespace, behind its driver, and takes it away again.
///
/// # Errors
/// What the kernel said.
pub fn try_xdp(ebpf: &mut Ebpf, interface: &str) -> Result<(), ProgramError> {
    let program: &mut Xdp = try_find(ebpf, program::XDP_INGRESS)?;
    let id = program.attach(interface, XdpMode::Skb)?;
    program.detach(id)
}

/// Returns whether the clsact qdisc could not be added because there is one. The library has a word of its own for that,
/// and does not use it.
fn is_there(error: &TcError) -> bool {
    match error {
        TcError::AlreadyAttached => true,
        TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        TcError::NulError(_) | TcError::IoError(_) | TcError::InvalidTcxAttach(_) | TcError::InvalidLinkOperation => {
            false
        }
    }
}

/// Attaches XDP, replacing that of a former agent.
///
/// # Errors
/// What the kernel said.
pub fn attach_xdp(ebpf: &mut Ebpf, pins: &Pins, kind: DoorKind, device: Device<'_>) -> Result<Door, DatapathError> {
    let Device { ifindex, name: interface, framing } = device;
    let name = kind.program(framing);
    let failed = |source: ProgramError| DatapathError::Xdp { interface: interface.to_owned(), cause: Box::new(source) };
    let mode = if kind == DoorKind::Xdp { XdpMode::Driver } else { XdpMode::Skb };
    let pin = Door::pin(kind, framing, ifindex);
    let program: &mut Xdp = find(ebpf, name)?;
    if !replaced(pins, &pin, program.fd().map_err(failed)?)? {
        let id = program.attach(interface, mode).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        pin_link(pins, &pin, link.try_into().map_err(link_failed(interface, name))?)?;
    }
    Ok(Door { kind, ifindex, interface: interface.to_owned(), framing, attach: DoorAttach::Link })
}

/// Attaches the programs of the cgroup, replacing those of a former agent.
///
/// # Errors
/// What the kernel said.
pub fn attach_cgroup(ebpf: &mut Ebpf, pins: &Pins) -> Result<Door, DatapathError> {
    let cgroup = pins::cgroup_root()?;
    for name in CGROUP_PROGRAMS {
        let failed = |source: ProgramError| DatapathError::Program {
            action: "attach to the root cgroup".into(),
            program: name,
            cause: Box::new(source),
        };
        // The kernel's links are always shared with other programs, whatever the mode says.
        let mode = CgroupAttachMode::Single;
        let found = ebpf.program_mut(name).ok_or(DatapathError::NoProgram { program: name })?;
        if replaced(pins, name, found.fd().map_err(failed)?)? {
            continue;
        }
        let link: Result<FdLink, LinkError> = match found {
            Program::CgroupSockAddr(program) => {
                let id = program.attach(&cgroup, mode).map_err(failed)?;
                program.take_link(id).map_err(failed)?.try_into()
            }
            Program::CgroupSock(program) => {
                let id = program.attach(&cgroup, mode).map_err(failed)?;
                program.take_link(id).map_err(failed)?.try_into()
            }
            _ => return Err(DatapathError::NoProgram { program: name }),
        };
        pin_link(pins, name, link.map_err(link_failed("the root cgroup", name))?)?;
    }
    let framing = Framing::Bare;
    Ok(Door { kind: DoorKind::Cgroup, ifindex: 0, interface: String::new(), framing, attach: DoorAttach::Link })
}

/// Takes a door away; one that is gone already does not matter.
///
/// # Errors
/// What the file system or the kernel said.
pub fn detach_door(pins: &Pins, door: &Door) -> Result<(), DatapathError> {
    match door.attach {
        DoorAttach::Link if door.kind == DoorKind::Cgroup => {
            CGROUP_PROGRAMS.iter().try_for_each(|name| pins.remove_link(name))
        }
        DoorAttach::Link => pins.remove_link(&Door::pin(door.kind, door.framing, door.ifindex)),
        DoorAttach::Clsact { priority, handle, own_qdisc } => {
            let failed = |source| DatapathError::Program {
                action: format!("detach from {}", door.interface),
                program: door.kind.program(door.framing),
                cause: Box::new(source),
            };
            // By its number: another device may bear the name by now, with a filter of the same priority and handle.
            let Some(interface) = device_name(door.ifindex).map_err(|source| failed(source.into()))? else {
                return Ok(());
            };
            let handle = TcHandle::from(handle);
            let link = SchedClassifierLink::attached(&interface, door.kind.side(), priority, handle, None)
                .map_err(|source| failed(source.into()))?;
            match link.detach() {
                Ok(()) => {}
                Err(error) if is_gone(&error) => {
                    tracing::debug!(interface, %error, "the filter was gone already");
                }
                Err(error) => return Err(failed(error)),
            }
            if own_qdisc {
                remove_qdisc(&interface);
            }
            Ok(())
        }
    }
}

/// Returns the name of a device; nothing if it is gone.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn device_name(ifindex: u32) -> io::Result<Option<String>> {
    // nix 0.31 takes the null pointer for a success, and the name for empty, which no device's is.
    let failure = match if_indextoname(ifindex) {
        Ok(name) if !name.is_empty() => return Ok(Some(name.to_string_lossy().into_owned())),
        Ok(_) => Errno::last(),
        Err(errno) => errno,
    };
    match failure {
        Errno::ENXIO | Errno::ENODEV => Ok(None),
        errno => Err(errno.into()),
    }
}

/// Returns whether a filter could not be removed because it, its qdisc (`EINVAL`) or its device is gone.
fn is_gone(error: &ProgramError) -> bool {
    let ProgramError::NetlinkError(error) = error else { return false };
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
}

/// Loads every program of the object, all at once: the verifier follows every way through each of them, which takes up to a
/// second of one processor.
///
/// # Errors
/// What the verifier said.
pub fn load_all(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    load_each(ebpf)?.into_iter().try_for_each(|(program, loaded)| {
        loaded.map_err(|cause| DatapathError::Program { action: "load".into(), program, cause: Box::new(cause) })
    })
}

/// What the verifier said of a program.
pub type Loaded = (&'static str, Result<(), ProgramError>);

/// The same, and what the verifier said of each.
///
/// # Errors
/// If one is not in the object.
pub fn load_each(ebpf: &mut Ebpf) -> Result<Vec<Loaded>, DatapathError> {
    let of_object = || DEVICE_PROGRAMS.into_iter().chain(CGROUP_PROGRAMS);
    thread::scope(|scope| {
        let loads: Vec<_> = ebpf
            .programs_mut()
            .filter_map(|(name, program)| Some((of_object().find(|known| *known == name)?, program)))
            .map(|(name, program)| (name, scope.spawn(move || load(program))))
            .collect();
        if let Some(missing) = of_object().find(|known| loads.iter().all(|(name, _)| name != known)) {
            return Err(DatapathError::NoProgram { program: missing });
        }
        let loaded = |(name, loading): (_, thread::ScopedJoinHandle<'_, _>)| {
            (name, loading.join().unwrap_or_else(|panic| resume_unwind(panic)))
        };
        Ok(loads.into_iter().map(loaded).collect())
    })
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    let mut outcome = load_once(program);
    for _ in 0..LOAD_TRIES {
        if !outcome.as_ref().is_err_and(is_interrupted) {
            break;
        }
        outcome = load_once(program);
    }
    outcome
}

fn load_once(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// The verifier gives up when a signal comes; the signal is handled in its time, and the program can be loaded.
fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN))
}

fn find<'a, P: 'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, DatapathError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    try_find(ebpf, name).map_err(|_| DatapathError::NoProgram { program: name })
}

fn try_find<'a, P: 'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, ProgramError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

/// Returns whether a former agent's link now runs `program`. A pin whose device is gone is removed.
fn replaced(pins: &Pins, pin: &str, program: &aya::programs::ProgramFd) -> Result<bool, DatapathError> {
    use std::os::fd::AsFd as _;
    match sys::replace_program(&pins.path(pin), program.as_fd()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => {
            tracing::debug!(pin, %error, "the former link is of no use");
            pins.remove_link(pin)?;
            Ok(false)
        }
    }
}

fn pin_link(pins: &Pins, pin: &str, link: FdLink) -> Result<(), DatapathError> {
    let path = pins.path(pin);
    match link.pin(&path) {
        // Dropping the handle closes its descriptor; the pin keeps the link.
        Ok(_pinned) => Ok(()),
        Err(error) => Err(DatapathError::Pin { action: "pin", path, source: io::Error::other(error) }),
    }
}

fn link_failed(place: &str, program: &'static str) -> impl FnOnce(LinkError) -> DatapathError {
    let action = format!("attach to {place}");
    move |error| DatapathError::Program {
        action,
        program,
        cause: Box::new(ProgramError::IOError(io::Error::other(error))),
    }
}

/// Removes what a former agent attached in another way than this one.
fn remove_former(pins: &Pins, former: &Door, present: DoorAttach) {
    let keep_qdisc = matches!(present, DoorAttach::Clsact { .. });
    let mut former = former.clone();
    if let DoorAttach::Clsact { own_qdisc, .. } = &mut former.attach
        && keep_qdisc
    {
        *own_qdisc = false;
    }
    if let Err(error) = detach_door(pins, &former) {
        tracing::warn!(interface = former.interface, %error, "a former program stays attached");
    }
}

/// Removes the clsact qdisc, which nothing but an agent of ours has asked for, if nobody else uses it by now.
fn remove_qdisc(interface: &str) {
    let is_used = |direction| {
        let shown = std::process::Command::new("tc").args(["filter", "show", "dev", interface, direction]).output();
        shown.map_or(true, |output| !output.stdout.is_empty() || !output.status.success())
    };
    if ["ingress", "egress"].into_iter().any(is_used) {
        return;
    }
    let removed = std::process::Command::new("tc").args(["qdisc", "del", "dev", interface, "clsact"]).status();
    if !removed.is_ok_and(|status| status.success()) {
        tracing::warn!(interface, "the clsact qdisc could not be removed: `tc qdisc del dev {interface} clsact`");
    }
}
