//! The first process of a container, as the kernel shows it: its end is told at once, while the engine needs tens of
//! milliseconds to learn of it.
//!
//! A process is held by a descriptor, which stands for that process alone, whoever gets its number later. Whether it is the
//! right one is told by its control group, which engines name after the container, with `systemd` or without. So a number
//! that means another process here, as that of an engine in a process namespace of its own, is no harm: its process is not
//! watched.
//!
//! # Source
//! pidfd_open(2), Linux 5.3; cgroups(7), `/proc/PID/cgroup`.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::control::ContainerId;

/// Where the kernel shows processes.
pub(super) const PROCESSES: &str = "/proc";

/// A process, also after its end.
#[derive(Debug)]
pub(super) struct Lifeline {
    pid: u32,
    descriptor: AsyncFd<OwnedFd>,
}

/// What is known of a container's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It runs, and is the container's.
    Runs,
    /// It has ended.
    Ended,
    /// It is not the container's, or that cannot be told.
    Unknown,
}

impl Lifeline {
    /// Holds a process; nothing if none has that number.
    ///
    /// # Errors
    /// What the kernel says: that it is older than Linux 5.3, or that no more files may be open.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(descriptor) => {
                // SAFETY: an `OwnedFd` is open, and stays the same one, for as long as the `AsyncFd` owns it.
                let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
                Ok(Some(Self { pid, descriptor }))
            }
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns whether it is a container's, by what stands below `processes` ([`PROCESSES`]).
    pub fn standing(&self, id: &ContainerId, processes: &Path, numbers_hold: bool) -> Standing {
        let groups = fs::read_to_string(processes.join(format!("{}/cgroup", self.pid))).unwrap_or_default();
        // It is asked last: as long as the process runs, its number is nobody else's, so what was read is about it.
        judge(is_named_after(&groups, id), self.has_ended(), numbers_hold)
    }

    fn has_ended(&self) -> bool {
        let mut descriptors = [PollFd::new(self.descriptor.get_ref(), PollFlags::IN)];
        poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What the kernel says; the runtime is about to end then.
    pub async fn ended(&self) -> io::Result<()> {
        self.descriptor.readable().await.map(drop)
    }
}

/// Returns what is known of a process. `numbers_hold` says that the engine's numbers of processes are those of this host, as
/// another one has shown: without that, one that is not there may be somewhere else.
fn judge(is_named: bool, has_ended: bool, numbers_hold: bool) -> Standing {
    match (is_named, has_ended) {
        (true, false) => Standing::Runs,
        (true, true) => Standing::Ended,
        (false, true) => absent(numbers_hold),
        (false, false) => Standing::Unknown,
    }
}

/// Returns what is known of a process that is not there.
pub(super) fn absent(numbers_hold: bool) -> Standing {
    if numbers_hold { Standing::Ended } else { Standing::Unknown }
}

/// Returns whether any of a process's control groups, or one that it is in, is named after a container.
fn is_named_after(groups: &str, ContainerId(id): &ContainerId) -> bool {
    let of_line =
        |line: &str| line.splitn(3, ':').nth(2).is_some_and(|path| path.split('/').any(|part| part.contains(id)));
    !id.is_empty() && groups.lines().any(of_line)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{super::sleeper::Sleeper, *};

    const ID: &str = "4f0c2d9a7be1";

    fn id() -> ContainerId {
        ID.into()
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_heard_of_within_milliseconds() {
        let mut took = Vec::new();
        for _ in 0..9 {
            let mut sleeper = Sleeper::start();
            let process = Lifeline::open(sleeper.pid()).unwrap().expect("it runs");
            let early = tokio::time::timeout(Duration::from_millis(20), process.ended()).await;
            assert!(early.is_err() && !process.has_ended(), "it runs");

            let killed = Instant::now();
            sleeper.kill();
            tokio::time::timeout(Duration::from_secs(10), process.ended()).await.expect("in time").unwrap();

            took.push(killed.elapsed());
            assert!(process.has_ended());
        }
        took.sort();
        assert!(took[4] < Duration::from_millis(10), "{took:?}");
    }

    #[tokio::test]
    async fn one_that_has_ended_before_is_found_at_once() {
        let mut sleeper = Sleeper::start();
        let pid = sleeper.pid();
        sleeper.kill();
        // A zombie keeps its number until it is waited for.
        let zombie = Lifeline::open(pid).unwrap().expect("it has its number");
        tokio::time::timeout(Duration::from_secs(10), zombie.ended()).await.expect("in time").unwrap();
        assert_eq!(zombie.standing(&id(), Path::new(PROCESSES), true), Standing::Ended);
        assert_eq!(zombie.standing(&id(), Path::new(PROCESSES), false), Standing::Unknown, "it may be anybody's");

        sleeper.reap();
        assert!(Lifeline::open(pid).unwrap().is_none());
        assert_eq!(absent(true), Standing::Ended);
        assert_eq!(absent(false), Standing::Unknown);
    }

    #[tokio::test]
    async fn a_process_of_no_container_is_not_taken_for_one() {
        let sleeper = Sleeper::start();
        let process = Lifeline::open(sleeper.pid()).unwrap().expect("it runs");

        assert_eq!(process.standing(&id(), Path::new(PROCESSES), true), Standing::Unknown);
        assert!(Lifeline::open(0).unwrap().is_none());
        assert!(Lifeline::open(u32::MAX).unwrap().is_none());
    }

    #[test]
    fn a_number_that_is_anothers_says_nothing() {
        // is_named, has_ended, numbers_hold
        let rows = [
            (true, false, false, Standing::Runs),
            (true, false, true, Standing::Runs),
            (true, true, false, Standing::Ended),
            (true, true, true, Standing::Ended),
            (false, false, false, Standing::Unknown),
            (false, false, true, Standing::Unknown),
            (false, true, false, Standing::Unknown),
            (false, true, true, Standing::Ended),
        ];
        for (is_named, has_ended, numbers_hold, expected) in rows {
            assert_eq!(judge(is_named, has_ended, numbers_hold), expected, "{is_named} {has_ended} {numbers_hold}");
        }
    }

    #[test]
    fn control_groups_are_named_after_containers() {
        let rows = [
            (format!("12:cpu,cpuacct:/docker/{ID}\n0::/docker/{ID}\n"), true),
            (format!("0::/system.slice/docker-{ID}.scope\n"), true),
            (format!("0::/machine.slice/libpod-{ID}.scope/container\n"), true),
            (format!("1:name=systemd:/own/parent/{ID}/init.scope\n0::/\n"), true),
            ("0::/system.slice/docker-0000.scope\n".to_owned(), false),
            (format!("1:name={ID}:/\n"), false),
            ("0::/\n".to_owned(), false),
            (String::new(), false),
        ];
        for (groups, expected) in rows {
            assert_eq!(is_named_after(&groups, &id()), expected, "{groups}");
        }
        assert!(!is_named_after("0::/docker\n", &"".into()));
    }
}
