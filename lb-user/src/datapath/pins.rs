//! Where an instance lives in the BPF file system, so that everything outlives the agent.
//!
//! ```text
//! /sys/fs/bpf/lb/NAME/FLOWS …              maps, by their names
//! /sys/fs/bpf/lb/NAME/tc_ingress-IFINDEX   links, by program and device
//! /sys/fs/bpf/lb/NAME/connect4 …           links of the cgroup
//! /run/lb/NAME.lock                        held by the agent that runs
//! /run/lb/NAME.sock                        where it listens to operators
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        stat::{major, minor},
        statfs::{FsType, statfs},
    },
};

use super::{DatapathError, sys};

/// Where the BPF file system is mounted.
const BPFFS: &str = "/sys/fs/bpf";
/// Its magic number: `BPF_FS_MAGIC`, include/uapi/linux/magic.h.
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);
/// The folder of all instances in it.
const ROOT: &str = "/sys/fs/bpf/lb";
/// Where locks are.
const RUN: &str = "/run/lb";
/// The lock under which frontends are given to instances, in it: no name of an instance begins with a dot.
const FRONTENDS_LOCK: &str = ".frontends.lock";
/// Where a unified cgroup hierarchy is mounted if there is none.
const OWN_CGROUP2: &str = "/run/lb/cgroup2";

/// The pins of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    folder: PathBuf,
}

/// Held as long as an agent of an instance runs; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _held: Flock<File>,
}

impl Pins {
    /// Names the pins of an instance; nothing is touched.
    pub fn of(instance: &str) -> Self {
        Self { folder: Path::new(ROOT).join(instance) }
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the path of a pin.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns whether the instance has left anything.
    pub fn exists(&self) -> bool {
        self.folder.is_dir()
    }

    /// Makes the folder, after mounting the BPF file system where it is not.
    ///
    /// # Errors
    /// What was attempted, and what the kernel said.
    pub fn create(&self) -> Result<(), DatapathError> {
        mount_bpffs()?;
        fs::create_dir_all(&self.folder).map_err(|source| DatapathError::Pin {
            action: "create",
            path: self.folder.clone(),
            source,
        })
    }

    /// Returns the names of the pins.
    ///
    /// # Errors
    /// What the file system said.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Removes one pin; one that is not there does not matter.
    ///
    /// # Errors
    /// What was attempted, and what the file system said.
    pub fn remove(&self, name: &str) -> Result<(), DatapathError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::Pin { action: "remove", path, source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes the pin of a link, and detaches its program first; one that is not there does not matter.
    ///
    /// # Errors
    /// What was attempted, and what the file system said.
    pub fn remove_link(&self, name: &str) -> Result<(), DatapathError> {
        match sys::detach(&self.path(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Without its pin it ends by itself a little later.
            Err(error) => tracing::debug!(name, %error, "a link is not detached by itself"),
        }
        self.remove(name)
    }

    /// Removes everything: links first, so that no program runs on maps that nobody can see.
    ///
    /// # Errors
    /// What was attempted, and what the file system said.
    pub fn remove_all(&self) -> Result<(), DatapathError> {
        let names = match self.names() {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(DatapathError::Pin { action: "read", path: self.folder.clone(), source }),
        };
        let (maps, links): (Vec<_>, Vec<_>) =
            names.iter().partition(|name| lb_ebpf::abi::map::ALL.contains(&name.as_str()));
        links.into_iter().try_for_each(|name| self.remove_link(name))?;
        maps.into_iter().try_for_each(|name| self.remove(name))?;
        match fs::remove_dir(&self.folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::Pin { action: "remove", path: self.folder.clone(), source })
            }
            Ok(()) | Err(_) => {
                // The folder of all instances goes with the last one.
                let _others_remain = fs::remove_dir(ROOT);
                Ok(())
            }
        }
    }
}

/// Returns the names of all instances that have left pins.
pub fn instances() -> Vec<String> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Takes the lock of an instance.
///
/// # Errors
/// [`DatapathError::InUse`] if another agent holds it.
pub fn lock(instance: &str) -> Result<Lock, DatapathError> {
    lock_file(&format!("{instance}.lock"), FlockArg::LockExclusiveNonblock)?
        .ok_or_else(|| DatapathError::InUse { instance: instance.to_owned() })
}

/// Returns whether an agent holds the lock of an instance, without touching it: proc_locks(5).
pub fn is_locked(instance: &str) -> bool {
    let Ok(lock) = fs::metadata(Path::new(RUN).join(format!("{instance}.lock"))) else { return false };
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    holds(&locks, (lock.dev(), lock.ino()))
}

/// Finds a lock of flock(2) on a file in the table of locks, where devices are in hexadecimals.
fn holds(locks: &str, (device, inode): (u64, u64)) -> bool {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    locks.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some("FLOCK") && fields.any(|field| field == file)
    })
}

/// Takes the lock under which frontends are given to instances, after waiting for who holds it.
///
/// # Errors
/// [`DatapathError::Lock`].
pub fn lock_frontends() -> Result<Lock, DatapathError> {
    loop {
        if let Some(lock) = lock_file(FRONTENDS_LOCK, FlockArg::LockExclusive)? {
            return Ok(lock);
        }
    }
}

/// Takes the lock under which frontends are given to instances; `None` if another process holds it.
///
/// # Errors
/// [`DatapathError::Lock`].
pub fn try_lock_frontends() -> Result<Option<Lock>, DatapathError> {
    lock_file(FRONTENDS_LOCK, FlockArg::LockExclusiveNonblock)
}

/// Takes the lock of a file in [`RUN`]; `None` if another process holds it.
fn lock_file(name: &str, how: FlockArg) -> Result<Option<Lock>, DatapathError> {
    let path = Path::new(RUN).join(name);
    let failed = |source| DatapathError::Lock { path: path.clone(), source };
    loop {
        // Whatever the umask is, nobody else puts anything there; and who can open a file can lock it.
        DirBuilder::new().recursive(true).mode(0o755).create(RUN).map_err(failed)?;
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
        let opened = file.metadata().map_err(failed)?.ino();
        let held = match Flock::lock(file, how) {
            Ok(held) => held,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, nix::errno::Errno::EINTR)) => continue,
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        // Its former holder may have removed the file between the opening and the lock; then nobody else sees this one.
        if fs::metadata(&path).is_ok_and(|there| there.ino() == opened) {
            return Ok(Some(Lock { _held: held }));
        }
    }
}

/// Returns the path of an instance's control socket.
pub fn socket(instance: &str) -> PathBuf {
    Path::new(RUN).join(format!("{instance}.sock"))
}

/// Removes the lock's file with the socket of its holder, and with the last one what else was made beside it. Only the
/// lock's holder, or who found nobody holding it, may.
pub fn remove_lock(instance: &str) {
    let _there_may_be_none = fs::remove_file(socket(instance));
    let _leaves_an_empty_file = fs::remove_file(Path::new(RUN).join(format!("{instance}.lock")));
    let others = fs::read_dir(RUN).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.ends_with(".lock") && !name.starts_with('.')
    });
    if !others {
        let _was_not_ours_to_mount = umount2(OWN_CGROUP2, MntFlags::MNT_DETACH);
        let _is_in_use = fs::remove_dir(OWN_CGROUP2);
        let _was_not_there = fs::remove_file(Path::new(RUN).join(FRONTENDS_LOCK));
        let _others_remain = fs::remove_dir(RUN);
    }
}

/// Returns whether the BPF file system is mounted, as the calling process sees it.
pub fn is_bpffs_mounted() -> bool {
    statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts the BPF file system, unless it is mounted.
fn mount_bpffs() -> Result<(), DatapathError> {
    if is_bpffs_mounted() {
        return Ok(());
    }
    tracing::info!("mounting the BPF file system at {BPFFS}");
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| DatapathError::Mount { path: BPFFS.into(), source: errno.into() })
}

/// Returns the root of the unified cgroup hierarchy, wherever it is mounted; mounts one where there is none.
///
/// # Errors
/// What was attempted, and what the kernel said.
pub fn cgroup_root() -> Result<OwnedFd, DatapathError> {
    let found =
        mounted_cgroup2().map_err(|source| DatapathError::Cgroup { path: "/proc/self/mounts".into(), source })?;
    let path = match found {
        Some(path) => path,
        None => {
            let own = PathBuf::from(OWN_CGROUP2);
            tracing::info!("mounting a unified cgroup hierarchy at {OWN_CGROUP2}");
            fs::create_dir_all(&own).map_err(|source| DatapathError::Cgroup { path: own.clone(), source })?;
            mount(Some("none"), &own, Some("cgroup2"), MsFlags::empty(), None::<&str>)
                .map_err(|errno| DatapathError::Cgroup { path: own.clone(), source: errno.into() })?;
            own
        }
    };
    File::open(&path).map(OwnedFd::from).map_err(|source| DatapathError::Cgroup { path, source })
}

/// Returns where the unified cgroup hierarchy is mounted.
///
/// # Errors
/// What the file system said.
pub fn mounted_cgroup2() -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(cgroup2_in(&mounts).map(PathBuf::from))
}

/// Finds the unified hierarchy in a table of mounts, fstab(5).
fn cgroup2_in(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_found_in_the_table_of_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1a:99 0 EOF\n2: FLOCK  ADVISORY  WRITE 8 00:1a:42 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 00:1a:43 0 EOF\n";
        let device = nix::sys::stat::makedev(0, 0x1a);

        assert!(holds(locks, (device, 42)));
        assert!(!holds(locks, (device, 99)), "a lock of another kind");
        assert!(!holds(locks, (device, 43)), "who waits holds nothing");
        assert!(!holds(locks, (nix::sys::stat::makedev(0, 0x1b), 42)));
    }

    #[test]
    fn the_unified_hierarchy_is_found_beside_others() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";

        assert_eq!(cgroup2_in(hybrid), Some("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2_in("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"), None);
        assert_eq!(cgroup2_in(""), None);
    }
}
