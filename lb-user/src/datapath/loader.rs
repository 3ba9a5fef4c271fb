//! Loading the kernel object, taking over what a former agent has left, and leaving.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

use aya::{Ebpf, EbpfError, EbpfLoader, maps::MapError};
use lb_ebpf::abi::{ABI_VERSION, AgentRecord, BackendId, map};
use nix::unistd::Uid;

use super::{
    DatapathError, Maps, OBJECT, clock,
    doors::{self, Door, DoorKind},
    netns,
    pins::{self, Lock, Pins},
    publish::Registry,
    report::Report,
};
use crate::config::{Hook, TcAttach};

/// What a datapath is opened with.
#[derive(Clone, Debug)]
pub struct Opening<'a> {
    /// The instance.
    pub instance: &'a str,
    /// Proven flows at most; a datapath that is taken over keeps its own.
    pub max_flows: u32,
    /// How TC programs are attached.
    pub tc_attach: TcAttach,
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
    /// Its report.
    pub report: Report,
    /// Backends that had slots.
    pub ready: BTreeSet<BackendId>,
}

impl Datapath {
    /// Loads the kernel object, onto the maps of a former agent where there are any.
    ///
    /// # Errors
    /// Everything that keeps a machine or an instance from it; what was made by then is removed.
    pub fn open(opening: &Opening<'_>) -> Result<(Self, Option<Former>), DatapathError> {
        if OBJECT.is_empty() {
            return Err(DatapathError::NoObject);
        }
        if !Uid::effective().is_root() {
            return Err(DatapathError::NotRoot);
        }
        if !Path::new("/sys/kernel/btf/vmlinux").exists() {
            return Err(DatapathError::NoBtf);
        }
        let netns_cookie = netns::current_cookie().map_err(|source| DatapathError::Netns { source })?;
        let lock = pins::lock(opening.instance)?;
        let pins = Pins::of(opening.instance);
        let new = !pins.path(map::AGENT).exists();
        if new {
            // Whatever a run that died while it began has left serves nobody.
            pins.remove_all()?;
        } else {
            check_former(&pins, opening.instance, netns_cookie)?;
        }
        pins.create()?;
        let opened = Self::load(opening, pins.clone(), lock, netns_cookie, new);
        if opened.is_err() && new {
            pins.remove_all()?;
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
        let mut loader = EbpfLoader::new();
        if new {
            loader.map_max_entries(map::FLOWS, opening.max_flows).map_max_entries(map::REPLIES, opening.max_flows);
        }
        for name in map::ALL {
            loader.map_pin_path(name, pins.path(name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(load_error)?;
        start_log(&mut ebpf);
        doors::load_all(&mut ebpf)?;
        let maps = Maps::open(&pins)?;
        let (record, text) = maps.read_report()?;
        let former = Report::parse(&text).filter(|_| record.abi_version == ABI_VERSION);
        let (registry, ready) = Registry::adopt(&maps, former.as_ref())?;
        let doors_left = former.iter().flat_map(|report| &report.doors);
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
        datapath.maps.local_netns.insert(netns_cookie, 1, 0).map_err(super::maps::failed(map::LOCAL_NETNS))?;
        // Replies of the flows that are under way go on being rewritten, by the program of this agent.
        let replies: Vec<Door> =
            datapath.former.values().filter(|door| door.kind == DoorKind::TcReply).cloned().collect();
        for door in replies {
            if let Err(error) = datapath.open_door(DoorKind::TcReply, door.ifindex, &door.interface) {
                tracing::debug!(interface = door.interface, %error, "the device of a backend is gone");
            }
        }
        Ok((datapath, former.map(|report| Former { report, ready })))
    }

    /// Refuses endpoints that another instance in this network namespace has.
    ///
    /// # Errors
    /// [`DatapathError::FrontendTaken`].
    pub fn check_others(&self, endpoints: &BTreeSet<SocketAddrV4>, udp: bool) -> Result<(), DatapathError> {
        for other in pins::instances().into_iter().filter(|name| *name != self.instance) {
            // An instance that is being made or removed, or of another version, has no frontend that could be told.
            let Ok(maps) = Maps::open(&Pins::of(&other)) else { continue };
            let Ok(record) = maps.agent_record() else { continue };
            if record.netns_cookie != self.record.netns_cookie {
                continue;
            }
            for &endpoint in endpoints {
                if maps.addresses.get(&super::publish::endpoint(endpoint, udp), 0).is_ok() {
                    return Err(DatapathError::FrontendTaken { frontend: endpoint.to_string(), instance: other });
                }
            }
        }
        Ok(())
    }

    /// Attaches the front door of an uplink.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open_uplink(&mut self, hook: Hook, ifindex: u32, interface: &str) -> Result<(), DatapathError> {
        // XDP leaves to TC what it cannot do by itself, and the hand-off where the driver cannot.
        self.open_door(DoorKind::TcIngress, ifindex, interface)?;
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
        wanted.map_or(Ok(()), |kind| self.open_door(kind, ifindex, interface))
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
    pub fn open_door(&mut self, kind: DoorKind, ifindex: u32, interface: &str) -> Result<(), DatapathError> {
        if self.doors.contains_key(&(kind, ifindex)) {
            return Ok(());
        }
        let former = self.former.remove(&(kind, ifindex));
        let device = (ifindex, interface);
        let door = match kind {
            DoorKind::Xdp | DoorKind::XdpGeneric => doors::attach_xdp(&mut self.ebpf, &self.pins, kind, device)?,
            DoorKind::TcIngress | DoorKind::TcReply | DoorKind::Cgroup => {
                doors::attach_tc(&mut self.ebpf, &self.pins, kind, device, self.tc_attach, former.as_ref())?
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

    /// Forgets doors whose device is gone, so that they are attached anew should it return.
    pub fn forget_doors_except(&mut self, existing: &BTreeSet<u32>) {
        let gone: Vec<_> =
            self.doors.keys().filter(|(_, ifindex)| *ifindex != 0 && !existing.contains(ifindex)).copied().collect();
        for key in gone {
            if let Some(door) = self.doors.remove(&key)
                && let Err(error) = doors::detach_door(&self.pins, &door)
            {
                tracing::debug!(interface = door.interface, %error, "the pin of a device that is gone stays");
            }
        }
    }

    /// Returns where programs are attached.
    pub fn doors(&self) -> Vec<Door> {
        self.doors.values().cloned().collect()
    }

    /// Writes the sign of life and the report.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn write_report(&mut self, report: &Report, interval: std::time::Duration) -> Result<(), DatapathError> {
        let text = serde_json::to_vec(report).expect("a report has text keys and finite numbers");
        let record = AgentRecord { heartbeat: clock::ktime(), interval_ns: interval.as_nanos() as u64, ..self.record };
        self.record = self.maps.write_report(&text, record)?;
        Ok(())
    }

    /// Takes everything away: programs first, then maps.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove(self) -> Result<(), DatapathError> {
        let Self { ebpf, pins, maps, doors, former, instance, .. } = self;
        for door in doors.values().chain(former.values()) {
            doors::detach_door(&pins, door)?;
        }
        drop((ebpf, maps));
        pins.remove_all()?;
        pins::remove_lock(&instance);
        Ok(())
    }
}

/// Removes whatever an instance has left, in whatever state a crash left it. Returns whether there was anything.
///
/// # Errors
/// [`DatapathError::InUse`] if an agent runs it, or what the file system said.
pub fn remove_leftovers(instance: &str) -> Result<bool, DatapathError> {
    let pins = Pins::of(instance);
    let _lock = pins::lock(instance)?;
    let found = pins.exists();
    // Filters on clsact qdiscs have no pins; the report knows them, if it can be read.
    if let Ok(maps) = Maps::open(&pins)
        && let Ok((_, text)) = maps.read_report()
        && let Some(report) = Report::parse(&text)
    {
        for door in &report.doors {
            doors::detach_door(&pins, door)?;
        }
    }
    pins.remove_all()?;
    pins::remove_lock(instance);
    Ok(found)
}

/// Returns the first address of `addresses` that XDP can serve, or why the device cannot.
///
/// # Errors
/// [`DatapathError::XdpOnVeth`].
pub fn check_xdp(link: &super::links::Link, complete_checksums: bool) -> Result<(), DatapathError> {
    if link.kind == super::links::LinkKind::Veth && !complete_checksums {
        return Err(DatapathError::XdpOnVeth { interface: link.name.clone() });
    }
    Ok(())
}

/// Refuses to take over what belongs to another version or namespace.
fn check_former(pins: &Pins, instance: &str, netns_cookie: u64) -> Result<(), DatapathError> {
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

fn load_error(error: EbpfError) -> DatapathError {
    if let EbpfError::MapError(MapError::CreateError { io_error, .. }) = &error
        && matches!(io_error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS))
    {
        let source = io::Error::from_raw_os_error(io_error.raw_os_error().unwrap_or(libc::EPERM));
        return DatapathError::NoBpf { source };
    }
    DatapathError::Load { source: Box::new(error) }
}

/// Returns the addresses at which a frontend answers.
pub fn answering(given: Option<Ipv4Addr>, port: u16, local: &BTreeSet<Ipv4Addr>) -> BTreeSet<SocketAddrV4> {
    let at = |address| SocketAddrV4::new(address, port);
    match given {
        Some(address) => [at(address)].into(),
        None => local.iter().copied().chain([Ipv4Addr::LOCALHOST]).map(at).collect(),
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
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
            });
        }
        Err(error) => tracing::warn!(%error, "the kernel object's log cannot be followed"),
    }
}
