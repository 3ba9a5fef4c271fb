//! Control groups of version 2, real ones: freezing, and what CPU is used, by the agent's code and by the kernel's word.
//!
//! Where version 1 is mounted as well, an engine's containers are in that; so the table of mounts is shown as it is on a host
//! that has version 2 alone.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command},
    thread,
    time::Duration,
};

use lb_tests::{
    lab::{end, unified, wait_until},
    suite::Need,
};
use lb_user::{freezer::Freezer, metrics::cgroup::Group};

pub const NEEDS: &[Need] = &[Need::Root, Need::Unified, Need::Program("sh")];

/// The clock's ticks in which proc(5) tells times, of which Linux shows a hundred in a second.
const TICK: Duration = Duration::from_millis(10);
/// How much both may lag: each by the tick that is under way, and proc(5) rounds twice.
const LAG: Duration = TICK.saturating_mul(5);

/// A process that uses all the CPU that it gets, in a group of its own below a mount; both end with this.
struct Spinning {
    child: Child,
    folder: PathBuf,
}

impl Spinning {
    fn start() -> Self {
        let folder = unified().expect("it is needed").join(format!("lbt{}g", std::process::id()));
        fs::create_dir(&folder).expect("a group can be made");
        let child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh starts");
        let spinning = Self { child, folder };
        fs::write(spinning.folder.join("cgroup.procs"), spinning.child.id().to_string()).expect("it can be moved");
        spinning
    }

    /// Returns its line of a file of the group.
    fn line(&self, file: &str, name: &str) -> String {
        let text = fs::read_to_string(self.folder.join(file)).expect("a file of the group");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in {text}")).to_owned()
    }

    /// Returns what CPU time the process has used, as proc(5) tells it: fields 14 and 15, of which the first behind the name is
    /// the third.
    fn used(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let (_, fields) = stat.rsplit_once(") ").expect("a name");
        let ticks: u32 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u32>().expect("ticks")).sum();
        TICK * ticks
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        // What is frozen ends as well, in this version.
        end(&mut self.child);
        let _nobody_is_left = fs::remove_dir(&self.folder);
    }
}

pub fn groups_of_version_2_freeze_and_tell_their_cpu() {
    let mut spinning = Spinning::start();
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", spinning.child.id())).expect("it runs");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("a table");
    let unified: String = mounts.split_inclusive('\n').filter(|line| line.contains(" cgroup2 ")).collect();
    let freezer = Freezer::find(&groups, &unified).expect("it has a group");
    let group = Group::find(&groups, &unified).expect("it has a group");
    assert_eq!(freezer, Freezer::Freeze(spinning.folder.clone()));
    let used = || group.used().expect("the kernel tells it");

    let (outer, inner) = (spinning.used(), used());
    let inner_began = spinning.used();
    wait_until("it uses half a second", Duration::from_secs(30), || used() >= inner + Duration::from_millis(500));
    let inner_ended = spinning.used();
    let (took, most) = (used() - inner, spinning.used() - outer + LAG);
    let least = (inner_ended - inner_began).saturating_sub(LAG);
    println!("{took:?} by its group; by proc(5) {least:?} to {most:?}");
    assert!(least <= took && took <= most, "{took:?} is not {least:?} to {most:?}");

    for _ in 0..3 {
        assert!(!freezer.is_asked() && !freezer.is_frozen());
        freezer.freeze().expect("the file takes it");
        assert!(freezer.is_asked());
        wait_until("it stands still", Duration::from_secs(5), || freezer.is_frozen());
        assert_eq!(spinning.line("cgroup.events", "frozen"), "1");
        let still = (used(), spinning.used());
        thread::sleep(Duration::from_millis(200));
        assert_eq!((used(), spinning.used()), still, "it uses nothing");

        freezer.thaw().expect("the file takes it");
        wait_until("it runs", Duration::from_secs(5), || !freezer.is_frozen());
        assert_eq!(spinning.line("cgroup.events", "frozen"), "0");
        wait_until("it uses CPU", Duration::from_secs(5), || {
            used() > still.0 + Duration::from_millis(50) && spinning.used() > still.1
        });
    }

    // One that is killed while it stands still has nobody left in its group who does.
    freezer.freeze().expect("the file takes it");
    wait_until("it stands still", Duration::from_secs(5), || freezer.is_frozen());
    end(&mut spinning.child);
    assert!(freezer.is_asked() && !freezer.is_frozen() && !freezer.is_gone());
    fs::remove_dir(&spinning.folder).expect("nobody is left");
    assert!(freezer.is_gone() && group.used().is_none());
}
