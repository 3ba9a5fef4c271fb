//! Freezing a container by its control group: version 1 (`freezer.state`) or 2 (`cgroup.freeze`).
//!
//! By the files alone, never by the engine: a container that the engine has paused and a file has thawed is wedged for it.
//! What is frozen keeps its memory and its sockets; its kernel goes on accepting connections, up to the backlog of their
//! listener, and answers nothing of what is asked there.
//!
//! # Source
//! Linux, `Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst` and `cgroup-v2.rst`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::metrics::cgroup::{below, group_with, mount_of};

/// How long the kernel may take to stop all processes: one that waits for a disk is not stopped before that has answered.
const PATIENCE: Duration = Duration::from_millis(500);
/// The time between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// Where a container is frozen and thawed: the folder of its control group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freezer {
    /// Of version 1.
    State(PathBuf),
    /// Of version 2.
    Freeze(PathBuf),
}

/// Why a container is not frozen, or not thawed.
#[derive(Debug, thiserror::Error)]
pub enum FreezerError {
    /// This host has no hierarchy in which anything could be frozen.
    #[error(
        "containers cannot be frozen here: neither the freezer of control groups of version 1 nor version 2 is mounted"
    )]
    Missing,
    /// The file refuses.
    #[error("write {path}: {source}", path = path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It takes too long.
    #[error("{path}: not frozen after {} ms", PATIENCE.as_millis(), path = path.display())]
    Late {
        /// The folder of the group.
        path: PathBuf,
    },
    /// A group above it is frozen.
    #[error("{path}: still frozen, so a group above it is", path = path.display())]
    Above {
        /// The folder of the group.
        path: PathBuf,
    },
}

/// Returns whether containers can be frozen on this host.
///
/// # Errors
/// [`FreezerError::Missing`].
pub fn check() -> Result<(), FreezerError> {
    check_in(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

fn check_in(mounts: &str) -> Result<(), FreezerError> {
    match mount_of(mounts, "cgroup", Some("freezer")).or_else(|| mount_of(mounts, "cgroup2", None)) {
        Some(_) => Ok(()),
        None => Err(FreezerError::Missing),
    }
}

impl Freezer {
    /// Finds that of a process; nothing if it has no control group of its own.
    pub fn of(pid: u32) -> Option<Self> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Self::find(&groups, &mounts)
    }

    /// Finds one in `/proc/PID/cgroup` (cgroups(7)) and a table of mounts (fstab(5)). Where both versions are mounted, the
    /// engine puts containers into the first.
    pub fn find(groups: &str, mounts: &str) -> Option<Self> {
        if let (Some(group), Some(mount)) = (group_with(groups, "freezer"), mount_of(mounts, "cgroup", Some("freezer")))
        {
            return below(mount, group).map(Self::State);
        }
        below(mount_of(mounts, "cgroup2", None)?, group_with(groups, "")?).map(Self::Freeze)
    }

    /// Asks the kernel to stop the processes; [`settled`](Self::settled) waits for that.
    ///
    /// # Errors
    /// [`FreezerError::Write`].
    pub fn freeze(&self) -> Result<(), FreezerError> {
        self.write("FROZEN", "1")
    }

    /// Waits until all processes stand still.
    ///
    /// # Errors
    /// [`FreezerError::Late`]: they may do so later.
    pub async fn settled(&self) -> Result<(), FreezerError> {
        for _ in 0..PATIENCE.as_millis() / LOOK.as_millis() {
            if self.is_frozen() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(FreezerError::Late { path: self.folder().to_owned() })
    }

    /// Lets the processes go on.
    ///
    /// # Errors
    /// [`FreezerError::Write`], [`FreezerError::Above`].
    pub fn thaw(&self) -> Result<(), FreezerError> {
        self.write("THAWED", "0")?;
        // Version 2 tells a moment later.
        match self {
            Self::State(folder) if self.is_frozen() => Err(FreezerError::Above { path: folder.clone() }),
            Self::State(_) | Self::Freeze(_) => Ok(()),
        }
    }

    /// Returns whether all processes stand still; of version 2, false if there are none.
    pub fn is_frozen(&self) -> bool {
        let read = |name: &str| fs::read_to_string(self.folder().join(name)).unwrap_or_default();
        match self {
            Self::State(_) => read("freezer.state").trim() == "FROZEN",
            Self::Freeze(_) => {
                let events = read("cgroup.events");
                // A group in which all have ended stays frozen.
                ["populated 1", "frozen 1"].iter().all(|event| events.lines().any(|line| line == *event))
            }
        }
    }

    /// Returns whether the processes were asked to stand still, whether they do yet or not.
    pub fn is_asked(&self) -> bool {
        let read = |name: &str| fs::read_to_string(self.folder().join(name)).unwrap_or_default();
        match self {
            Self::State(_) => matches!(read("freezer.state").trim(), "FROZEN" | "FREEZING"),
            Self::Freeze(_) => read("cgroup.freeze").trim() == "1",
        }
    }

    /// Returns whether the control group is gone; not if that cannot be seen.
    pub fn is_gone(&self) -> bool {
        matches!(self.folder().try_exists(), Ok(false))
    }

    fn folder(&self) -> &Path {
        match self {
            Self::State(folder) | Self::Freeze(folder) => folder,
        }
    }

    fn write(&self, state: &str, number: &str) -> Result<(), FreezerError> {
        let (path, text) = match self {
            Self::State(folder) => (folder.join("freezer.state"), state),
            Self::Freeze(folder) => (folder.join("cgroup.freeze"), number),
        };
        // A file of its own would be made where there is none.
        let written = fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| {
            use io::Write as _;
            file.write_all(text.as_bytes())
        });
        written.map_err(|source| FreezerError::Write { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "cgroup /sys/fs/cgroup/freezer cgroup rw,nosuid,freezer 0 0\n\
                          cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
    const UNIFIED: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";

    #[test]
    fn a_freezer_is_found_in_either_version_and_under_either_name() {
        let state = |path: &str| Some(Freezer::State(path.into()));
        let freeze = |path: &str| Some(Freezer::Freeze(path.into()));
        let cases = [
            ("4:memory:/x\n3:freezer:/docker/a1\n0::/docker/a1\n", HYBRID, state("/sys/fs/cgroup/freezer/docker/a1")),
            (
                "3:freezer:/system.slice/docker-a1.scope\n",
                HYBRID,
                state("/sys/fs/cgroup/freezer/system.slice/docker-a1.scope"),
            ),
            ("0::/system.slice/docker-a1.scope\n", UNIFIED, freeze("/sys/fs/cgroup/system.slice/docker-a1.scope")),
            ("0::/docker/a1\n", UNIFIED, freeze("/sys/fs/cgroup/docker/a1")),
            ("3:freezer:/docker/a1\n0::/docker/a1\n", UNIFIED, freeze("/sys/fs/cgroup/docker/a1")),
            ("3:freezer:/\n0::/\n", HYBRID, None),
            ("0::/\n", UNIFIED, None),
            ("0::/docker/a1\n", "", None),
        ];
        for (groups, mounts, expected) in cases {
            assert_eq!(Freezer::find(groups, mounts), expected, "{groups}");
        }
    }

    #[test]
    fn a_host_without_a_freezer_is_told_so() {
        assert!(check_in(HYBRID).is_ok() && check_in(UNIFIED).is_ok());
        let error = check_in("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n").unwrap_err().to_string();
        assert!(error.starts_with("containers cannot be frozen here"), "{error}");
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("lb-freezer-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[tokio::test(start_paused = true)]
    async fn version_1_is_frozen_when_its_state_says_so() {
        let folder = folder("v1");
        let freezer = Freezer::State(folder.clone());
        let state = folder.join("freezer.state");
        assert!(matches!(freezer.freeze(), Err(FreezerError::Write { .. })), "there is no such group");
        fs::write(&state, "THAWED\n").unwrap();
        assert!(!freezer.is_frozen());

        freezer.freeze().unwrap();
        assert!(freezer.is_frozen());
        freezer.settled().await.unwrap();

        // The kernel is at it.
        fs::write(&state, "FREEZING\n").unwrap();
        let error = freezer.settled().await.unwrap_err().to_string();
        assert!(error.ends_with("not frozen after 500 ms"), "{error}");
        assert!(freezer.is_asked() && !freezer.is_gone(), "it will be, unless somebody thaws it");

        freezer.thaw().unwrap();
        assert!(fs::read_to_string(&state).unwrap().starts_with("THAWED"));
        fs::remove_dir_all(&folder).unwrap();
        assert!(!freezer.is_frozen() && !freezer.is_asked() && freezer.thaw().is_err(), "it has ended");
        assert!(freezer.is_gone());
    }

    #[tokio::test(start_paused = true)]
    async fn version_2_is_asked_by_one_file_and_tells_by_another() {
        let folder = folder("v2");
        let freezer = Freezer::Freeze(folder.clone());
        fs::write(folder.join("cgroup.freeze"), "0").unwrap();
        fs::write(folder.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();

        freezer.freeze().unwrap();
        assert_eq!(fs::read_to_string(folder.join("cgroup.freeze")).unwrap(), "1");
        assert!(freezer.is_asked() && freezer.settled().await.is_err(), "asked for, and not so yet");
        fs::write(folder.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        freezer.settled().await.unwrap();
        fs::write(folder.join("cgroup.events"), "populated 0\nfrozen 1\n").unwrap();
        assert!(freezer.is_asked() && !freezer.is_frozen(), "all have ended");

        freezer.thaw().unwrap();
        assert_eq!(fs::read_to_string(folder.join("cgroup.freeze")).unwrap(), "0");
        fs::remove_dir_all(&folder).unwrap();
    }
}
