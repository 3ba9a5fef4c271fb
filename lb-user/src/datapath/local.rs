//! Backends that are this host itself: a process, or a container with `--network host`.
//!
//! Their replies enter by no device. So there are doors at the egress of each device at which clients are met, while there
//! is such a backend and no longer: every packet that the host sends by those passes there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use aya::maps::MapError;
use lb_ebpf::abi::{Endpoint, FrontendId, Proto, map};

use super::{
    Datapath, DatapathError,
    doors::{self, Device, Door, DoorKind},
    links::Reach,
    maps::failed,
    publish::{FrontendWish, Member, Registry, endpoint},
    report::BackendReport,
};

impl Registry {
    /// Returns whether a backend is this host itself.
    pub(super) fn has_local(&self) -> bool {
        self.backends().any(is_local)
    }

    /// Returns the endpoints of backends that are.
    pub(super) fn local_endpoints(&self) -> BTreeSet<Endpoint> {
        let protos: BTreeMap<FrontendId, Proto> = self.protos().collect();
        let of = |backend: &BackendReport| Some(endpoint(backend.endpoint, *protos.get(&backend.frontend)?));
        self.backends().filter(|backend| is_local(backend)).filter_map(of).collect()
    }
}

fn is_local(backend: &BackendReport) -> bool {
    backend.way.reach == Reach::Local
}

/// Refuses to lead clients from a frontend to itself.
///
/// # Errors
/// [`DatapathError::OwnFrontend`].
pub fn check_backend(backend: SocketAddr, proto: Proto, wishes: &[FrontendWish]) -> Result<(), DatapathError> {
    match wishes.iter().find(|wish| wish.proto == proto && wish.addresses.contains(&backend)) {
        Some(wish) => Err(DatapathError::OwnFrontend { backend, frontend: wish.name.clone() }),
        None => Ok(()),
    }
}

impl Datapath {
    /// Refuses a server of this host that is a frontend of its own: clients are there already.
    ///
    /// # Errors
    /// [`DatapathError::OwnFrontend`].
    pub(super) fn check_local(&self, member: &Member) -> Result<(), DatapathError> {
        for (name, &backend) in &member.endpoints {
            if let Some(frontend) = self.registry.frontend_at(backend, name) {
                return Err(DatapathError::OwnFrontend { backend, frontend: frontend.to_owned() });
            }
        }
        Ok(())
    }

    /// Opens the doors of replies that this host sends, wherever clients are met. By a device that is gone, none are.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn open_local(&mut self) -> Result<(), DatapathError> {
        let fronts: Vec<Door> = self.doors().into_iter().filter(|door| door.kind == DoorKind::TcIngress).collect();
        for front in fronts {
            match self.open_door(DoorKind::TcLocal, front.device()) {
                Ok(()) => {}
                Err(error) if matches!(doors::device_name(front.ifindex), Ok(None)) => {
                    tracing::debug!(interface = front.interface, %error, "the device is gone");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens such a door at a device at which clients are about to be met, if there is such a backend.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open_local_at(&mut self, device: Device<'_>) -> Result<(), DatapathError> {
        if self.registry.has_local() { self.open_door(DoorKind::TcLocal, device) } else { Ok(()) }
    }

    /// Takes those doors away where no clients are met any longer, `front`, and all of them where nobody needs them.
    ///
    /// # Errors
    /// What the kernel or the file system said.
    pub fn close_local_except(&mut self, front: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let none = BTreeSet::new();
        self.close_doors_except(DoorKind::TcLocal, if self.registry.has_local() { front } else { &none })
    }

    /// Tells the kernel of all backends that are this host itself.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn add_local_backends(&mut self) -> Result<(), DatapathError> {
        for endpoint in self.registry.local_endpoints() {
            self.maps.local_backends.insert(endpoint, 1, 0).map_err(failed(map::LOCAL_BACKENDS))?;
        }
        Ok(())
    }

    /// Forgets those that are no more, and takes the doors away with the last one.
    ///
    /// # Errors
    /// What the kernel or the file system said.
    pub(super) fn remove_local_backends(&mut self) -> Result<(), DatapathError> {
        let wanted = self.registry.local_endpoints();
        let there: BTreeSet<Endpoint> =
            self.maps.local_backends.keys().collect::<Result<_, _>>().map_err(failed(map::LOCAL_BACKENDS))?;
        for gone in there.difference(&wanted) {
            match self.maps.local_backends.remove(gone) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed(map::LOCAL_BACKENDS)(error)),
            }
        }
        if self.registry.has_local() { Ok(()) } else { self.close_local_except(&BTreeSet::new()) }
    }
}
