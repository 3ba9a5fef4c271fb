//! Watches the first process of each container that runs, so that its end is told before the engine knows of it.
//!
//! ```text
//! begin ─▶ the engine tells its number ─▶ held by a descriptor ─▶ proved to be the container's ─▶ ended: told
//!              │ none                        │ not possible           │ not so, or not known
//!              └─────────────────────────────┴────────────────────────┴──▶ not watched: the engine's events tell
//! ```
//!
//! It goes on while the engine is away. What cannot be watched is tried again when it is listed the next time.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
};

use super::{
    Engine,
    lifeline::{Lifeline, PROCESSES, Standing, absent},
};
use crate::control::ContainerId;

/// How many containers the engine is asked about at the same time.
const ASKED_AT_ONCE: usize = 8;

/// The watch over all containers of an engine. It ends with it.
#[derive(Debug)]
pub(super) struct Vigil {
    asked: Arc<Asked>,
    watches: BTreeMap<ContainerId, Watch>,
    tasks: JoinSet<Outcome>,
    tickets: u64,
}

/// The end of a container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub id: ContainerId,
    /// Which number it had.
    pub pid: u32,
}

#[derive(Debug)]
struct Watch {
    ticket: u64,
    /// The number, where it was known from the beginning.
    pid: Option<u32>,
    task: AbortHandle,
}

/// What has become of a watch: the number of the process that has ended, if it could be watched.
#[derive(Debug)]
struct Outcome {
    id: ContainerId,
    ticket: u64,
    ended: Option<u32>,
}

/// Whom to ask for numbers.
#[derive(Debug)]
struct Asked {
    engine: Engine,
    turns: Semaphore,
    processes: PathBuf,
    /// Whether the engine's numbers are those of this host, as a process has shown.
    numbers_hold: AtomicBool,
}

impl Vigil {
    pub fn new(engine: Engine) -> Self {
        Self::with(engine, PROCESSES.into())
    }

    fn with(engine: Engine, processes: PathBuf) -> Self {
        let (turns, numbers_hold) = (Semaphore::new(ASKED_AT_ONCE), AtomicBool::new(false));
        let asked = Asked { engine, turns, processes, numbers_hold };
        Self { asked: Arc::new(asked), watches: BTreeMap::new(), tasks: JoinSet::new(), tickets: 0 }
    }

    /// Watches a container that runs. One that is watched already is left alone, unless its process is another one.
    pub fn begin(&mut self, id: &ContainerId, pid: Option<u32>) {
        let is_same = |watch: &Watch| pid.is_none() || watch.pid == pid;
        if self.watches.get(id).is_some_and(is_same) {
            return;
        }
        self.end(id);
        self.tickets += 1;
        let (asked, of_task, ticket) = (Arc::clone(&self.asked), id.clone(), self.tickets);
        let task = self.tasks.spawn(async move {
            let ended = asked.watch(&of_task, pid).await;
            Outcome { id: of_task, ticket, ended }
        });
        self.watches.insert(id.clone(), Watch { ticket, pid, task });
    }

    /// Watches a container no longer.
    pub fn end(&mut self, id: &ContainerId) {
        if let Some(watch) = self.watches.remove(id) {
            watch.task.abort();
        }
    }

    /// Watches those that run, and no others.
    pub fn keep_to(&mut self, running: &BTreeSet<ContainerId>) {
        let others: Vec<ContainerId> = self.watches.keys().filter(|id| !running.contains(*id)).cloned().collect();
        for id in others {
            self.end(&id);
        }
        for id in running {
            self.begin(id, None);
        }
    }

    /// Waits for the next end, for ever if there is none to come.
    pub async fn next(&mut self) -> End {
        loop {
            let Some(outcome) = self.tasks.join_next().await else { return pending().await };
            // What was watched no longer was aborted, and is of no interest.
            let Ok(Outcome { id, ticket, ended }) = outcome else { continue };
            if self.watches.get(&id).is_none_or(|watch| watch.ticket != ticket) {
                continue;
            }
            self.watches.remove(&id);
            if let Some(pid) = ended {
                return End { id, pid };
            }
        }
    }
}

impl Asked {
    /// Waits for the end of a container's process; nothing if it cannot be watched.
    async fn watch(&self, id: &ContainerId, pid: Option<u32>) -> Option<u32> {
        let pid = match pid {
            Some(pid) => pid,
            None => {
                let _turn = self.turns.acquire().await.ok()?;
                self.engine.process(id).await?.pid
            }
        };
        let holds = || self.numbers_hold.load(Ordering::Relaxed);
        let process = match Lifeline::open(pid) {
            Ok(process) => process,
            Err(error) => {
                tracing::debug!(container = id.0, %error, "its end is told by the engine alone");
                return None;
            }
        };
        let of = |process: &Lifeline| process.standing(id, &self.processes, holds());
        let standing = process.as_ref().map_or_else(|| absent(holds()), of);
        match (standing, process) {
            (Standing::Runs, Some(process)) => {
                self.numbers_hold.store(true, Ordering::Relaxed);
                process.ended().await.ok()?;
                Some(pid)
            }
            (Standing::Ended, _) => Some(pid),
            (Standing::Unknown, _) | (Standing::Runs, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, Instant},
    };

    use bollard::Docker;

    use super::{super::sleeper::Sleeper, *};

    /// A watch over containers of an engine that answers nothing, and the control groups of their processes.
    struct Ward {
        vigil: Vigil,
        processes: tempfile::TempDir,
    }

    impl Ward {
        fn new() -> Self {
            let docker = Docker::connect_with_host("unix:///dev/null").expect("a path that exists");
            let engine = Engine { docker, endpoint: "unix:///dev/null".into() };
            let processes = tempfile::tempdir().unwrap();
            Self { vigil: Vigil::with(engine, processes.path().into()), processes }
        }

        /// Puts a process into a container.
        fn has(&self, id: &str, sleeper: &Sleeper) -> u32 {
            let pid = sleeper.pid();
            let folder = self.processes.path().join(pid.to_string());
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cgroup"), format!("0::/system.slice/docker-{id}.scope\n")).unwrap();
            pid
        }

        async fn next(&mut self) -> (String, u32) {
            let End { id, pid } =
                tokio::time::timeout(Duration::from_secs(10), self.vigil.next()).await.expect("in time");
            (id.0, pid)
        }

        async fn is_silent(&mut self) -> bool {
            tokio::time::timeout(Duration::from_millis(50), self.vigil.next()).await.is_err()
        }
    }

    /// Returns how many descriptors of this process stand for another one, by proc(5), `/proc/PID/fdinfo`.
    fn holds(pid: u32) -> usize {
        let line = format!("Pid:\t{pid}");
        let all = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
        let texts = all.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        texts.filter(|text| text.lines().any(|one| one == line)).count()
    }

    #[tokio::test]
    async fn the_end_of_a_containers_process_is_told_once_and_at_once() {
        let mut ward = Ward::new();
        let mut sleeper = Sleeper::start();
        let pid = ward.has("a1", &sleeper);
        ward.vigil.begin(&"a1".into(), Some(pid));
        ward.vigil.begin(&"a1".into(), None);
        assert!(ward.is_silent().await);
        assert_eq!(holds(pid), 1);

        let killed = Instant::now();
        sleeper.kill();

        assert_eq!(ward.next().await, ("a1".into(), pid));
        assert!(killed.elapsed() < Duration::from_millis(500), "{:?}", killed.elapsed());
        assert!(ward.is_silent().await);
        assert_eq!((holds(pid), ward.vigil.watches.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_is_watched_no_longer_is_not_told_and_not_held() {
        let mut ward = Ward::new();
        let (mut gone, mut unlisted, stays) = (Sleeper::start(), Sleeper::start(), Sleeper::start());
        for (id, sleeper) in [("gone", &gone), ("unlisted", &unlisted), ("stays", &stays)] {
            let pid = ward.has(id, sleeper);
            ward.vigil.begin(&id.into(), Some(pid));
        }
        assert!(ward.is_silent().await);

        ward.vigil.end(&"gone".into());
        ward.vigil.keep_to(&["stays".into()].into());
        assert!(ward.is_silent().await);

        assert_eq!([&gone, &unlisted, &stays].map(|sleeper| holds(sleeper.pid())), [0, 0, 1]);
        gone.kill();
        unlisted.kill();
        assert!(ward.is_silent().await);
    }

    #[tokio::test]
    async fn a_restarted_container_is_watched_by_its_next_process() {
        let mut ward = Ward::new();
        let (mut first, mut second) = (Sleeper::start(), Sleeper::start());
        let pids = [ward.has("a1", &first), ward.has("a1", &second)];
        ward.vigil.begin(&"a1".into(), Some(pids[0]));
        assert!(ward.is_silent().await);

        // Its end has not been heard of yet.
        first.kill();
        ward.vigil.begin(&"a1".into(), Some(pids[1]));

        assert!(ward.is_silent().await);
        second.kill();
        assert_eq!(ward.next().await, ("a1".into(), pids[1]));
    }

    #[tokio::test]
    async fn a_number_that_means_another_process_is_not_watched_and_tried_again() {
        let mut ward = Ward::new();
        let mut stranger = Sleeper::start();
        let pid = ward.has("b2", &stranger);
        ward.vigil.begin(&"a1".into(), Some(pid));
        assert!(ward.is_silent().await);
        assert_eq!((holds(pid), ward.vigil.watches.len()), (0, 0));
        stranger.kill();
        assert!(ward.is_silent().await);

        let sleeper = Sleeper::start();
        let pid = ward.has("a1", &sleeper);
        ward.vigil.begin(&"a1".into(), Some(pid));
        assert!(ward.is_silent().await);
        assert_eq!(holds(pid), 1);
    }

    #[tokio::test]
    async fn one_that_has_ended_before_is_told_where_numbers_are_known_to_hold() {
        let mut ward = Ward::new();
        let mut ended = Sleeper::start();
        let pid = ended.pid();
        ended.kill();
        ended.reap();
        ward.vigil.begin(&"gone".into(), Some(pid));
        assert!(ward.is_silent().await, "it may be that the engine counts in another namespace");

        let sleeper = Sleeper::start();
        let shown = ward.has("a1", &sleeper);
        ward.vigil.begin(&"a1".into(), Some(shown));
        assert!(ward.is_silent().await);
        ward.vigil.begin(&"gone".into(), Some(pid));

        assert_eq!(ward.next().await, ("gone".into(), pid));
    }

    #[tokio::test]
    async fn an_engine_that_does_not_tell_numbers_is_left_to_tell_ends() {
        let mut ward = Ward::new();

        ward.vigil.begin(&"a1".into(), None);

        assert!(ward.is_silent().await);
        assert!(ward.vigil.watches.is_empty());
    }
}
