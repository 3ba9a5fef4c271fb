//! Loading the kernel object, taking over what a former agent has left, and leaving.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use aya::{Ebpf, EbpfError, EbpfLoader, maps::MapError};
use lb_ebpf::abi::{ABI_VERSION, AgentRecord, BackendId, Lifetimes, map};
use nix::unistd::Uid;

use super::{
    DatapathError, Maps, OBJECT, clock,
    doors::{self, Device, Door, DoorKind},
    links::{Link, LinkKind},
    netns,
    pins::{self, Lock, Pins},
    publish::{self, FrontendWish, Registry},
    report::{Inheritance, Report, Way},
    sys,
    wakes::Wakes,
};
use crate::{
    config::{At, Family, Hook, TcAttach},
    control::ContainerId,
    freezer::Freezer,
};

/// What a datapath is opened with.
#[derive(Clone, Debug)]
pub struct Opening<'a> {
    /// The instance.
    pub instance: &'a str,
    /// Proven flows at most; a datapath that is taken over keeps its own.
    pub max_flows: u32,
    /// How TC programs are attached.
    pub tc_attach: TcAttach,
    /// For how long flows may stay idle.
    pub lifetimes: Lifetimes,
}

/// The kernel's half of an instance. It outlives this handle: only [`Datapath::remove`] takes it away.
pub struct Datapath {
    ebpf: Ebpf,
    pins: Pins,
    /// The maps.
    pub maps: Maps,
    /// What was published.
    pub registry: Registry,
    doors: BTreeMap<(DoorKind, u32), Door>,
    former: BTreeMap<(DoorKind, u32), Door>,
    tc_attach: TcAttach,
    record: AgentRecord,
    instance: String,
    _lock: Lock,
}

/// What a former agent has left.
#[derive(Debug)]
pub struct Former {
    /// What it reported.
    pub inheritance: Inheritance,
    /// Backends that have slots.
    pub ready: BTreeSet<BackendId>,
    /// For how long the instance has existed by the report's clock: its age then, and what has passed since.
    pub age: Duration,
}

impl Datapath {
    /// Loads the kernel object, onto the maps of a former agent where there are any.
    ///
    /// # Errors
    /// Everything that keeps a machine or an instance from it; what was made by then is removed.
    pub fn open(opening: &Opening<'_>) -> Result<(Self, Option<Former>), DatapathError> {
        let netns_cookie = check_host()?;
        let lock = pins::lock(opening.instance)?;
        let pins = Pins::of(opening.instance);
        let new = is_new(&pins)?;
        if new {
            // Whatever a run that died while it began has left serves nobody.
            pins.remove_all()?;
        } else {
            check_former(&pins, opening.instance, netns_cookie)?;
        }
        pins.create()?;
        let opened = Self::load(opening, pins.clone(), lock, netns_cookie, new);
        if opened.is_err() && new {
            // The first error is the one to tell.
            let _leftovers = pins.remove_all();
            pins::remove_lock(opening.instance);
        }
        opened
    }

    fn load(
        opening: &Opening<'_>,
        pins: Pins,
        lock: Lock,
        netns_cookie: u64,
        new: bool,
    ) -> Result<(Self, Option<Former>), DatapathError> {
        let max_flows = new.then_some(opening.max_flows);
        let mut ebpf = load_object(opening.instance, max_flows, Some(&pins))?;
        start_log(&mut ebpf);
        doors::load_all(&mut ebpf)?;
        let mut maps = Maps::open(&pins)?;
        let (record, text) = maps.read_report()?;
        let inheritance = Inheritance::parse(&text);
        let (registry, ready) = Registry::adopt(&mut maps, &inheritance)?;
        let doors_left = inheritance.doors.iter();
        let mut datapath = Self {
            ebpf,
            pins,
            maps,
            registry,
            doors: BTreeMap::new(),
            former: doors_left.map(|door| ((door.kind, door.ifindex), door.clone())).collect(),
            tc_attach: opening.tc_attach,
            record: AgentRecord {
                abi_version: ABI_VERSION,
                pid: std::process::id(),
                netns_cookie,
                heartbeat: clock::ktime(),
                ..record
            },
            instance: opening.instance.to_owned(),
            _lock: lock,
        };
        datapath.maps.set_lifetimes(opening.lifetimes)?;
        datapath.maps.local_netns.insert(netns_cookie, 1, 0).map_err(super::maps::failed(map::LOCAL_NETNS))?;
        // Replies of the flows that are under way go on being rewritten, by the program of this agent.
        let is_of_replies = |door: &&Door| matches!(door.kind, DoorKind::TcReply | DoorKind::TcLocal);
        let replies: Vec<Door> = datapath.former.values().filter(is_of_replies).cloned().collect();
        for door in replies {
            if let Err(error) = datapath.open_door(door.kind, door.device()) {
                tracing::debug!(interface = door.interface, %error, "the device of a backend is gone");
            }
        }
        let age = inheritance.age(&record);
        Ok((datapath, (!new).then_some(Former { inheritance, ready, age })))
    }

    /// Refuses endpoints that another instance in this network namespace has. Only under [`pins::lock_frontends`] does
    /// the answer hold.
    ///
    /// # Errors
    /// [`DatapathError::FrontendTaken`].
    pub fn check_others(&self, wish: &FrontendWish) -> Result<(), DatapathError> {
        check_others(&self.instance, self.record.netns_cookie, wish)
    }

    /// Attaches the front door of an uplink.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open_uplink(&mut self, hook: Hook, device: Device<'_>) -> Result<(), DatapathError> {
        let ifindex = device.ifindex;
        // XDP leaves to TC what it cannot do by itself, and the hand-off where the driver cannot.
        self.open_door(DoorKind::TcIngress, device)?;
        let (wanted, other) = match hook {
            Hook::Auto | Hook::Tc => (None, [DoorKind::Xdp, DoorKind::XdpGeneric].as_slice()),
            Hook::Xdp => (Some(DoorKind::Xdp), [DoorKind::XdpGeneric].as_slice()),
            Hook::XdpGeneric => (Some(DoorKind::XdpGeneric), [DoorKind::Xdp].as_slice()),
        };
        for &kind in other {
            if let Some(door) = self.former.remove(&(kind, ifindex)) {
                doors::detach_door(&self.pins, &door)?;
            }
        }
        wanted.map_or(Ok(()), |kind| self.open_door(kind, device))
    }

    /// Says at which devices XDP answers by itself: at those that send back what it tells them to.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn answer_at(&mut self, devices: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let failed = super::maps::failed(map::XDP_ANSWERS);
        let there: BTreeSet<u32> = self.maps.xdp_answers.keys().collect::<Result<_, _>>().map_err(&failed)?;
        for gone in there.difference(devices) {
            self.maps.xdp_answers.remove(gone).map_err(&failed)?;
        }
        for new in devices.difference(&there) {
            self.maps.xdp_answers.insert(new, 1, 0).map_err(&failed)?;
        }
        Ok(())
    }

    /// Attaches the hooks of local sockets.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open_cgroup(&mut self) -> Result<(), DatapathError> {
        let door = doors::attach_cgroup(&mut self.ebpf, &self.pins)?;
        self.former.remove(&(DoorKind::Cgroup, 0));
        self.doors.insert((DoorKind::Cgroup, 0), door);
        Ok(())
    }

    /// Attaches a program to a device, unless it is.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open_door(&mut self, kind: DoorKind, device: Device<'_>) -> Result<(), DatapathError> {
        let ifindex = device.ifindex;
        if self.doors.contains_key(&(kind, ifindex)) {
            return Ok(());
        }
        let former = self.former.remove(&(kind, ifindex));
        let door = match kind {
            DoorKind::Xdp | DoorKind::XdpGeneric => doors::attach_xdp(&mut self.ebpf, &self.pins, kind, device)?,
            DoorKind::TcIngress | DoorKind::TcReply | DoorKind::TcLocal | DoorKind::Cgroup => {
                let own = self.doors.values().chain(self.former.values());
                let is_own = own.filter(|door| door.ifindex == ifindex).any(Door::owns_qdisc);
                let is_qdisc_ours =
                    || is_own || other_owns_qdisc(&self.instance, self.record.netns_cookie, device.ifindex);
                let (ebpf, pins) = (&mut self.ebpf, &self.pins);
                doors::attach_tc(ebpf, pins, kind, device, self.tc_attach, former.as_ref(), is_qdisc_ours)?
            }
        };
        self.doors.insert((kind, ifindex), door);
        Ok(())
    }

    /// Takes away the doors of a kind that are at none of `devices`, those of a former agent included.
    ///
    /// # Errors
    /// What the file system said.
    pub fn close_doors_except(&mut self, kind: DoorKind, devices: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let superfluous = |(door_kind, ifindex): &(DoorKind, u32)| *door_kind == kind && !devices.contains(ifindex);
        let keys: Vec<_> = self.doors.keys().chain(self.former.keys()).copied().filter(superfluous).collect();
        for key in keys {
            if let Some(door) = self.doors.remove(&key).or_else(|| self.former.remove(&key)) {
                doors::detach_door(&self.pins, &door)?;
            }
        }
        Ok(())
    }

    /// Forgets doors whose device is gone, so that they are attached anew should it return. `existing` are devices by
    /// index, as they were a while ago. Returns the containers whose reply door was among them.
    pub fn forget_doors_except(&mut self, existing: &BTreeMap<u32, String>) -> BTreeSet<ContainerId> {
        let gone = doors_gone(self.doors.keys(), existing, |ifindex| match doors::device_name(ifindex) {
            Ok(name) => name.is_some(),
            Err(error) => {
                tracing::debug!(ifindex, %error, "whether a device is gone cannot be told: its doors are kept");
                true
            }
        });
        for key in &gone {
            if let Some(door) = self.doors.remove(key)
                && let Err(error) = doors::detach_door(&self.pins, &door)
            {
                tracing::debug!(interface = door.interface, %error, "the pin of a device that is gone stays");
            }
        }
        let has_lost_its_door = |way: &Way| gone.contains(&(DoorKind::TcReply, way.reply_ifindex));
        let backends = self.registry.backends().filter(|backend| has_lost_its_door(&backend.way));
        backends.map(|backend| backend.container.clone()).collect()
    }

    /// Returns where programs are attached.
    pub fn doors(&self) -> Vec<Door> {
        self.doors.values().cloned().collect()
    }

    /// Opens what tells of flows that begin at backends that are asleep.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wakes(&self) -> Result<Wakes, DatapathError> {
        Wakes::open(&self.pins)
    }

    /// Writes the sign of life and the report.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn write_report(&mut self, report: &Report, interval: Duration) -> Result<(), DatapathError> {
        let text = serde_json::to_vec(report).expect("a report has text keys and finite numbers");
        let record = AgentRecord { heartbeat: clock::ktime(), interval_ns: interval.as_nanos() as u64, ..self.record };
        match self.maps.write_report(&text, record) {
            Ok(record) => self.record = record,
            Err(error) => {
                // Whatever is wrong with the report, the agent lives, and says so.
                self.record = self.maps.write_record(record)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes everything away: programs first, then maps.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove(self) -> Result<(), DatapathError> {
        let Self { ebpf, pins, maps, doors, former, instance, .. } = self;
        let detached = detach_all(&pins, doors.values().chain(former.values()));
        drop((ebpf, maps));
        let removed = pins.remove_all();
        pins::remove_lock(&instance);
        detached.and(removed)
    }
}

/// Refuses to go on without the kernel object.
///
/// # Errors
/// [`DatapathError::NoObject`].
pub fn check_object() -> Result<(), DatapathError> {
    if OBJECT.is_empty() { Err(DatapathError::NoObject) } else { Ok(()) }
}

/// Refuses to go on without root.
///
/// # Errors
/// [`DatapathError::NotRoot`].
pub fn check_root() -> Result<(), DatapathError> {
    if Uid::effective().is_root() { Ok(()) } else { Err(DatapathError::NotRoot) }
}

/// Refuses a kernel that does not describe its types.
///
/// # Errors
/// [`DatapathError::NoBtf`].
pub fn check_types() -> Result<(), DatapathError> {
    if Path::new("/sys/kernel/btf/vmlinux").exists() { Ok(()) } else { Err(DatapathError::NoBtf) }
}

/// Returns the cookie of the calling thread's network namespace.
///
/// # Errors
/// [`DatapathError::Netns`].
pub fn check_namespace() -> Result<u64, DatapathError> {
    netns::current_cookie().map_err(|source| DatapathError::Netns { source })
}

/// Makes sure that this machine can run an instance, and returns the cookie of the network namespace.
///
/// # Errors
/// What it lacks.
pub fn check_host() -> Result<u64, DatapathError> {
    check_object()?;
    check_root()?;
    check_types()?;
    check_namespace()
}

/// Refuses endpoints that another instance in a network namespace has.
///
/// # Errors
/// [`DatapathError::FrontendTaken`].
pub fn check_others(instance: &str, netns_cookie: u64, wish: &FrontendWish) -> Result<(), DatapathError> {
    for other in pins::instances().into_iter().filter(|name| name != instance) {
        // An instance that is being made or removed, or of another version, has no frontend that could be told.
        let Ok(maps) = Maps::open(&Pins::of(&other)) else { continue };
        let Ok(record) = maps.agent_record() else { continue };
        if record.netns_cookie != netns_cookie {
            continue;
        }
        for &address in &wish.addresses {
            if maps.addresses.get(&publish::endpoint(address, wish.proto), 0).is_ok() {
                return Err(DatapathError::FrontendTaken { frontend: address.to_string(), instance: other });
            }
        }
    }
    Ok(())
}

/// What there is of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// The process of the agent that wrote last.
    pub pid: u32,
    /// Whether an agent runs it.
    pub is_running: bool,
}

/// Returns what there is of an instance that an agent could take over; nothing if there is nothing to take over.
///
/// # Errors
/// Why it could not be.
pub fn remains(instance: &str) -> Result<Option<Remains>, DatapathError> {
    let (pins, netns_cookie) = (Pins::of(instance), check_namespace()?);
    if is_new(&pins)? {
        return Ok(None);
    }
    check_former(&pins, instance, netns_cookie)?;
    let pid = Maps::open(&pins)?.agent_record()?.pid;
    Ok(Some(Remains { pid, is_running: pins::is_locked(instance) }))
}

/// Loads the object's maps, pinned where `pins` says so, with room for so many flows, where that is not settled.
///
/// # Errors
/// What the kernel said.
pub fn load_object(instance: &str, max_flows: Option<u32>, pins: Option<&Pins>) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    if let Some(max_flows) = max_flows {
        loader.map_max_entries(map::FLOWS, max_flows).map_max_entries(map::REPLIES, max_flows);
    }
    if let Some(pins) = pins {
        for name in map::ALL {
            loader.map_pin_path(name, pins.path(name));
        }
    }
    let mark = note_mark(instance);
    loader.override_global("NOTE_MARK", &mark, true);
    loader.load(OBJECT).map_err(load_error)
}

/// Returns the containers that an agent may have left frozen, as far as it has reported.
pub fn frozen(instance: &str) -> BTreeMap<ContainerId, Freezer> {
    let report = Maps::open(&Pins::of(instance)).and_then(|maps| maps.read_report());
    report.map(|(_, text)| Inheritance::parse(&text).frozen).unwrap_or_default()
}

/// Removes whatever an instance has left, in whatever state a crash left it. Returns whether there was anything.
///
/// # Errors
/// [`DatapathError::InUse`] if an agent runs it, [`DatapathError::FiltersElsewhere`], or what the file system said.
pub fn remove_leftovers(instance: &str) -> Result<bool, DatapathError> {
    let pins = Pins::of(instance);
    let _lock = pins::lock(instance)?;
    let found = pins.exists();
    // Filters on clsact qdiscs have no pins; the report knows them, if it can be read.
    let mut detached = Ok(());
    if let Ok(maps) = Maps::open(&pins)
        && let Ok((record, text)) = maps.read_report()
    {
        let doors = Inheritance::parse(&text).doors;
        let here = netns::current_cookie().map_err(|source| DatapathError::Netns { source })?;
        // Filters that went with their namespace keep nothing alive.
        if record.netns_cookie != here && doors.iter().any(Door::is_filter) && maps.serve_filters()? {
            return Err(DatapathError::FiltersElsewhere { instance: instance.to_owned() });
        }
        detached = detach_all(&pins, doors.iter());
    }
    let removed = pins.remove_all();
    pins::remove_lock(instance);
    detached.and(removed).map(|()| found)
}

/// Returns the doors whose device is gone. One that came up after `existing` was listed is not in it: so each that is not
/// is asked for.
fn doors_gone<'a>(
    doors: impl Iterator<Item = &'a (DoorKind, u32)>,
    existing: &BTreeMap<u32, String>,
    is_there: impl Fn(u32) -> bool,
) -> BTreeSet<(DoorKind, u32)> {
    let is_gone = |ifindex: u32| ifindex != 0 && !existing.contains_key(&ifindex) && !is_there(ifindex);
    doors.filter(|(_, ifindex)| is_gone(*ifindex)).copied().collect()
}

/// Returns whether another instance in this network namespace has added the clsact qdisc of a device.
fn other_owns_qdisc(instance: &str, netns_cookie: u64, ifindex: u32) -> bool {
    pins::instances().into_iter().filter(|name| name != instance).any(|other| {
        let report = Maps::open(&Pins::of(&other)).and_then(|maps| maps.read_report());
        report.is_ok_and(|(record, text)| {
            let doors = Inheritance::parse(&text).doors;
            record.netns_cookie == netns_cookie && doors.iter().any(|door| door.ifindex == ifindex && door.owns_qdisc())
        })
    })
}

/// Takes doors away, all that can be, and returns the first error.
fn detach_all<'a>(pins: &Pins, doors: impl Iterator<Item = &'a Door>) -> Result<(), DatapathError> {
    doors.map(|door| doors::detach_door(pins, door)).fold(Ok(()), Result::and)
}

/// Refuses XDP at devices that cannot run it, or not well.
///
/// # Errors
/// [`DatapathError::XdpOnVeth`], [`DatapathError::XdpOnVlan`], [`DatapathError::XdpOnBond`].
pub fn check_xdp(link: &Link, hook: Hook, complete_checksums: bool) -> Result<(), DatapathError> {
    let interface = || link.name.clone();
    match (hook, &link.kind) {
        (Hook::Xdp, LinkKind::Veth) if !complete_checksums => Err(DatapathError::XdpOnVeth { interface: interface() }),
        (Hook::Xdp, LinkKind::Vlan) => Err(DatapathError::XdpOnVlan { interface: interface() }),
        // The driver of a bond runs the program at its ports, whose numbers a flow would remember.
        (Hook::Xdp, LinkKind::Other(kind)) if ["bond", "team"].contains(&kind.as_str()) => {
            Err(DatapathError::XdpOnBond { interface: interface(), kind: kind.clone() })
        }
        (Hook::Auto | Hook::Tc | Hook::Xdp | Hook::XdpGeneric, _) => Ok(()),
    }
}

/// Refuses XDP at a device with VLANs that takes their tags off before XDP sees the packet.
///
/// # Errors
/// [`DatapathError::XdpWithoutTags`].
pub fn check_tags(link: &Link) -> Result<(), DatapathError> {
    match sys::takes_tags_off(&link.name) {
        Ok(true) => Err(DatapathError::XdpWithoutTags { interface: link.name.clone() }),
        Ok(false) => Ok(()),
        Err(error) => {
            tracing::debug!(interface = link.name, %error, "its driver does not tell whether it takes VLAN tags off");
            Ok(())
        }
    }
}

/// Returns the number by which the programs of an instance know their own notes, the same for every agent of it: while one
/// takes over from another, programs of both are at work.
///
/// # Source
/// FNV-1a, Fowler, Noll, Vo; zero is kept for "no note".
fn note_mark(instance: &str) -> u32 {
    instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)) | 1
}

/// Returns whether what is pinned is nothing, or what a run has left that died while it began. Maps are pinned one by one,
/// in no order, before anything is attached or reported: so one that is missing tells that nothing was, unless a link
/// or a record tells otherwise.
fn is_stillborn(names: &[String], has_record: impl FnOnce() -> bool) -> bool {
    let is_pinned = |name: &str| names.iter().any(|pinned| pinned == name);
    if !is_pinned(map::AGENT) {
        return true;
    }
    let lacks_map = map::ALL.into_iter().any(|name| !is_pinned(name));
    let has_link = names.iter().any(|name| doors::is_link_pin(name));
    lacks_map && !has_link && !has_record()
}

/// Returns whether there is nothing that serves, or has served.
fn is_new(pins: &Pins) -> Result<bool, DatapathError> {
    let names = match pins.names() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        // What cannot be read may be serving, and is not to be removed.
        names => {
            names.map_err(|source| DatapathError::Pin { action: "read", path: pins.folder().to_owned(), source })?
        }
    };
    Ok(is_stillborn(&names, || Maps::has_record(pins)))
}

/// Refuses to take over what belongs to another version or namespace.
pub(super) fn check_former(pins: &Pins, instance: &str, netns_cookie: u64) -> Result<(), DatapathError> {
    let other_abi = |found| DatapathError::OtherAbi { instance: instance.to_owned(), found, ours: ABI_VERSION };
    let maps = match Maps::open(pins) {
        Ok(maps) => maps,
        // A map whose shape differs cannot even be opened; the rest may tell which version it is of.
        Err(DatapathError::Map { source, .. }) if is_other_shape(&source) => return Err(other_abi(0)),
        Err(error) => return Err(error),
    };
    let record = maps.agent_record()?;
    // Nothing was written yet: a run that died while it began.
    if record == AgentRecord::default() {
        return Ok(());
    }
    if record.abi_version != ABI_VERSION {
        return Err(other_abi(record.abi_version));
    }
    if record.netns_cookie != netns_cookie {
        return Err(DatapathError::OtherNamespace { instance: instance.to_owned() });
    }
    Ok(())
}

fn is_other_shape(error: &MapError) -> bool {
    matches!(
        error,
        MapError::InvalidKeySize { .. } | MapError::InvalidValueSize { .. } | MapError::InvalidMapType { .. }
    )
}

pub(super) fn load_error(error: EbpfError) -> DatapathError {
    if let EbpfError::MapError(MapError::CreateError { io_error, .. }) = &error
        && matches!(io_error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS))
    {
        let source = io::Error::from_raw_os_error(io_error.raw_os_error().unwrap_or(libc::EPERM));
        return DatapathError::NoBpf { source };
    }
    DatapathError::Load { source: Box::new(error) }
}

/// Returns the addresses at which a frontend answers.
pub fn answering(given: At, port: u16, local: &BTreeSet<IpAddr>) -> BTreeSet<SocketAddr> {
    let at = |address| SocketAddr::new(address, port);
    let every = |family: Family| {
        let of_family = move |address: &IpAddr| Family::of(*address) == family;
        local.iter().copied().filter(of_family).chain([family.loopback()]).map(at)
    };
    match given {
        At::One(address) => [at(address)].into(),
        At::Every(family) => every(family).collect(),
        At::EveryOfBoth => every(Family::V4).chain(every(Family::V6)).collect(),
    }
}

/// Follows the kernel object's log, if it was built with one: for debugging only.
fn start_log(ebpf: &mut Ebpf) {
    if ebpf.map("AYA_LOGS").is_none() {
        return;
    }
    match aya_log::EbpfLogger::init(ebpf) {
        Ok(mut logger) => {
            std::thread::spawn(move || {
                loop {
                    logger.flush();
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        Err(error) => tracing::warn!(%error, "the kernel object's log cannot be followed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_at_a_device_that_came_up_after_the_look_is_kept() {
        let doors = [(DoorKind::TcIngress, 2), (DoorKind::TcReply, 7), (DoorKind::TcReply, 8), (DoorKind::Cgroup, 0)];
        let existing = [(2, "eth0".to_owned())].into();

        let gone = doors_gone(doors.iter(), &existing, |ifindex| ifindex == 8);

        assert_eq!(gone, [(DoorKind::TcReply, 7)].into());
    }

    #[test]
    fn a_frontend_answers_at_the_addresses_of_its_family() {
        let local = ["192.0.2.1", "2001:db8::1"].map(|address| address.parse().unwrap()).into();
        let at = |at| answering(at, 80, &local).into_iter().map(|at| at.to_string()).collect::<Vec<_>>();

        assert_eq!(at(At::Every(Family::V4)), ["127.0.0.1:80", "192.0.2.1:80"]);
        assert_eq!(at(At::Every(Family::V6)), ["[::1]:80", "[2001:db8::1]:80"]);
        assert_eq!(at(At::One("2001:db8::9".parse().unwrap())), ["[2001:db8::9]:80"]);
    }

    #[test]
    fn a_device_is_asked_for_by_its_number() {
        assert_eq!(doors::device_name(1).unwrap().as_deref(), Some("lo"));
        assert_eq!(doors::device_name(i32::MAX as u32).unwrap(), None);
    }

    #[test]
    fn a_run_that_died_while_it_began_is_told_from_one_that_served() {
        let all = || map::ALL.map(str::to_owned).to_vec();
        let without = |missing: &str, more: &[&str]| {
            let left = map::ALL.into_iter().filter(|name| *name != missing);
            left.chain(more.iter().copied()).map(str::to_owned).collect::<Vec<_>>()
        };
        let cases = [
            ("nothing", Vec::new(), false, true),
            ("no record can be there", without(map::AGENT, &[]), true, true),
            ("a map is missing", without(map::FLOWS, &[]), false, true),
            ("a map is missing, and there was a report", without(map::FLOWS, &[]), true, false),
            ("a map is missing, and a door is there", without(map::FLOWS, &["tc_reply-7"]), false, false),
            ("a map is missing, and a hook of the cgroup is there", without(map::FLOWS, &["connect4"]), false, false),
            ("all maps", all(), false, false),
        ];
        for (what, names, has_record, expected) in cases {
            assert_eq!(is_stillborn(&names, || has_record), expected, "{what}");
        }
    }
}
