//! The controller in a world in which every call may fail, be slow or lie, and containers die when they like. What must
//! hold is checked at every command; and once the faults end, everything wanted has to be there.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::control::law::{self, HostUse, Surge};

mod rollouts;
mod taking;

/// How long faults go on, and how long the world is left in peace after them.
const TROUBLE: Duration = Duration::from_secs(600);
const PEACE: Duration = Duration::from_secs(400);
/// The time that a datapath's sweep takes at most.
const SWEEP: Duration = Duration::from_millis(500);

/// Chance, so that a run can be repeated.
///
/// # Source
/// SplitMix64, Steele et al. 2014.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        if all.is_empty() { None } else { Some(all[self.below(all.len() as u64) as usize].clone()) }
    }
}

/// Returns an address of IPv6.
fn v6_of(number: u64) -> Addresses {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16]).into()
}

/// A container of the engine.
#[derive(Clone, Debug)]
struct Real {
    sighting: Sighting,
    healthy: bool,
}

/// An engine and a datapath, and what the controller was told about them.
struct World {
    controller: Controller,
    chance: Chance,
    now: Timestamp,
    max: u32,
    /// The law that is in force in peace.
    scaling: Scaling,
    fault_one_in: u64,
    /// By time, and in the order in which they were planned.
    coming: BTreeMap<(Timestamp, u64), Event>,
    planned: u64,
    containers: BTreeMap<ContainerId, Real>,
    created: u64,
    engine_is_away: bool,
    /// Containers that have passed a check since they were last told to be gone, by family.
    proven: BTreeSet<(ContainerId, Family)>,
    /// The last publication that the controller was told to have succeeded.
    published: Publication,
    /// Since when a container is out of the confirmed slots.
    out_since: BTreeMap<ContainerId, Timestamp>,
    /// Containers that a sweep found without flows, which had begun long enough after they were out.
    found_clear: BTreeSet<ContainerId>,
    pending: BTreeSet<u32>,
    /// As they were told.
    addresses: BTreeMap<ContainerId, Option<Addresses>>,
    /// Connections by container.
    flows: BTreeMap<ContainerId, u64>,
    /// How new connections were answered.
    answers: BTreeMap<(ContainerId, Family), Answers>,
    load_percent: f64,
    /// Whether what is started by now never passes a check.
    image_is_bad: bool,
    /// The fewest that may be in the slots, where nothing but a rollout takes any out of them.
    least_ready: usize,
    /// Whose processes stand still.
    frozen: BTreeSet<ContainerId>,
    /// The flows that the controller was last told of.
    told_flows: BTreeMap<ContainerId, u64>,
    /// Since when the datapath tells who comes.
    asleep_since: BTreeMap<ContainerId, Timestamp>,
    /// Of those, to whom nobody had come by a sweep that could have found out.
    was_told_asleep: BTreeSet<ContainerId>,
    /// The reserve, and the one in peace.
    warm: u32,
    wanted_warm: u32,
    finished: bool,
    /// The last events and commands, shown when something does not hold.
    trace: VecDeque<String>,
}

/// How many lines are shown.
const TRACED: usize = 60;

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.trace.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl World {
    fn new(seed: u64, settings: Settings, max: u32) -> Self {
        let (scaling, warm) = (settings.scaling, settings.warm);
        let mut world = World {
            scaling,
            controller: Controller::new(settings),
            chance: Chance(seed),
            now: Timestamp::ZERO,
            max,
            fault_one_in: 6,
            coming: BTreeMap::new(),
            planned: 0,
            containers: BTreeMap::new(),
            created: 0,
            engine_is_away: false,
            proven: BTreeSet::new(),
            published: Publication {
                generation: 0,
                ready: Vec::new(),
                deaf: BTreeSet::new(),
                warming: BTreeMap::new(),
                asleep: BTreeSet::new(),
                draining: Vec::new(),
            },
            out_since: BTreeMap::new(),
            found_clear: BTreeSet::new(),
            pending: BTreeSet::new(),
            addresses: BTreeMap::new(),
            flows: BTreeMap::new(),
            answers: BTreeMap::new(),
            load_percent: 0.0,
            image_is_bad: false,
            least_ready: 0,
            frozen: BTreeSet::new(),
            told_flows: BTreeMap::new(),
            asleep_since: BTreeMap::new(),
            was_told_asleep: BTreeSet::new(),
            warm,
            wanted_warm: warm,
            finished: false,
            trace: VecDeque::new(),
        };
        world.plan(0, Event::Resynced(Vec::new()));
        world
    }

    fn is_faulty(&mut self) -> bool {
        self.fault_one_in > 0 && self.chance.one_in(self.fault_one_in)
    }

    fn plan(&mut self, in_ms: u64, event: Event) {
        self.planned += 1;
        self.coming.insert((self.now + Duration::from_millis(in_ms), self.planned), event);
    }

    /// Goes on until `end`; each second the load is sampled, the flows are swept, and something may happen by itself.
    fn run(&mut self, end: Timestamp) {
        let mut second = self.now + Duration::from_secs(1);
        while self.now < end && !self.finished {
            let next = self.coming.keys().next().map(|&(at, _)| at);
            let due = self.controller.deadline();
            assert!(due.is_none_or(|due| due > self.now), "a timer that has run out: {due:?} at {:?}", self.now);
            let at = [next, due, Some(second)].into_iter().flatten().min().expect("there is a next second");
            self.now = at.max(self.now);
            if next == Some(at) {
                let event = self.coming.pop_first().expect("it is there").1;
                self.tell(event);
            } else if due == Some(at) {
                self.tell(Event::Tick);
            } else {
                second = at + Duration::from_secs(1);
                self.each_second();
            }
        }
    }

    fn each_second(&mut self) {
        if self.fault_one_in > 0 {
            self.mischief();
        }
        if self.fault_one_in > 0 && self.chance.one_in(20) {
            self.load_percent = if self.chance.one_in(3) { 0.0 } else { self.chance.below(101) as f64 };
        }
        match self.is_faulty() && self.chance.one_in(3) {
            true => self.tell(Event::LoadUnavailable { reason: "no numbers".into() }),
            false => self.tell(load(self.load_percent)),
        }
        let measures = self.measures();
        self.tell(Event::Measured(Box::new(measures)));
        if self.is_faulty() {
            let (connections, within) = (self.chance.below(400) as f64, Duration::from_millis(45));
            self.tell(Event::Surged(Surge { connections, within }));
        }
        let began = self.now;
        // Where new ones come, any number; elsewhere fewer and fewer, and some that never end.
        let mut flows = BTreeMap::new();
        for id in self.published.ready.clone() {
            let count = if self.load_percent == 0.0 { 0 } else { self.chance.below(50) };
            if count > 0 && self.published.asleep.contains(&id) && !self.is_faulty() {
                self.tell(Event::Woken { id: id.clone() });
            }
            flows.insert(id, count);
        }
        for id in self.published.draining.clone() {
            let left = self.flows.get(&id).copied().unwrap_or(0);
            let count = if self.chance.one_in(8) { left } else { self.chance.below(left + 1) };
            flows.insert(id, count);
        }
        self.flows.clone_from(&flows);
        for id in self.published.ready.clone() {
            for family in [Family::V4, Family::V6] {
                let is_faulty = self.is_faulty();
                let answers = self.answers.entry((id.clone(), family)).or_default();
                (answers.waiting, answers.accepted) = (0, answers.accepted + self.chance.below(3));
                if is_faulty {
                    answers.refused += self.chance.below(8);
                    answers.waiting = self.chance.below(8);
                }
            }
        }
        let after = self.chance.below(SWEEP.as_millis() as u64);
        self.plan(after, Event::Swept { began, flows, answers: self.answers.clone() });
    }

    /// Measures a demand of up to four processors, and in trouble not all of it.
    fn measures(&mut self) -> Measures {
        let cores = self.load_percent / 25.0;
        let is_told = |world: &mut Self| !(world.is_faulty() && world.chance.one_in(3));
        let ready = self.published.ready.clone();
        let used = CpuUsed { cores: (cores / ready.len().max(1) as f64).min(1.0), quota: Some(1.0) };
        Measures {
            host: Some(HostUse { processors: 16.0, busy: is_told(self).then_some(cores) }),
            cpu: ready.into_iter().filter(|_| is_told(self)).map(|id| (id, used)).collect(),
            arrivals: is_told(self).then_some(cores * 50.0),
            handshakes: None,
            responses: None,
            pressure: None,
            repeats: Some(if self.is_faulty() { self.chance.below(200) as f64 } else { 0.0 }),
        }
    }

    /// Something that nobody asked for.
    fn mischief(&mut self) {
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        let victim = self.chance.pick(&ids);
        let after = self.chance.below(20);
        let most = 1 + self.chance.below(self.max.into()) as u32;
        match (self.chance.below(49), victim) {
            (0, Some(id)) => {
                self.end(&id);
                let cause = self
                    .chance
                    .pick(&[GoneCause::Killed, GoneCause::Died { exit_code: Some(1), oom: false }])
                    .expect("two");
                self.kernel_tells(after, &id);
                self.notice(after + 60, Event::BackendGone { id, cause });
            }
            (1, Some(id)) => {
                self.containers.remove(&id);
                self.notice(after, Event::BackendGone { id, cause: GoneCause::Removed });
            }
            (2, Some(id)) => self.containers.get_mut(&id).expect("it is there").healthy ^= true,
            (3, Some(id)) => self.notice(after, Event::BackendGone { id, cause: GoneCause::Paused }),
            (4, Some(id)) => {
                let real = self.containers.get_mut(&id).expect("it is there");
                let v4 = real.sighting.address.and_then(|address| address.of_family(Family::V4));
                // It moves, or comes to an address of the other family, too.
                real.sighting.address = match (v4, self.chance.one_in(2)) {
                    (Some(v4), true) => Some(Addresses::from(v4).or(v6_of(self.created))),
                    (Some(_) | None, _) => Some(IpAddr::from([198, 19, 9, self.created as u8]).into()),
                };
                self.created += 1;
                if real.sighting.running {
                    let sighting = real.sighting.clone();
                    self.notice(after, Event::BackendSeen(sighting));
                }
            }
            (5, _) if !self.engine_is_away => {
                self.engine_is_away = true;
                self.plan(after, Event::ProviderLost { error: "gone fishing".into() });
            }
            (6 | 7, _) => self.bring_engine_back(after),
            (9, _) => self.reconfigure(Scaling::Auto(law(1, most))),
            (10, _) => self.tell(Event::EndpointsChanged),
            (11..=14, _) => self.order(most),
            (15, _) => self.change_image(),
            (16, _) => {
                let parallel = 1 + self.chance.below(3) as u32;
                self.tell(Event::Ordered(Order::Rollout { parallel }));
            }
            (17, _) => self.tell(Event::Ordered(Order::AbortRollout)),
            (18, _) => {
                self.warm = self.chance.below(4) as u32;
                self.reconfigure(Scaling::Auto(law(0, most)));
            }
            (48, Some(id)) => self.notice(after, Event::Signalled { id }),
            (8, _) if !self.engine_is_away => {
                let listed = self.listed();
                self.tell(Event::Resynced(listed));
            }
            _ => {}
        }
    }

    fn order(&mut self, count: u32) {
        let directions = self.chance.pick(&[Directions::In, Directions::Out, Directions::Both]).expect("three");
        let lasting = self.chance.one_in(2).then(|| Duration::from_secs(self.chance.below(60)));
        let reach = self.chance.pick(&[Reach::Bounds, Reach::Beyond]).expect("two");
        let order = match self.chance.below(5) {
            0 | 1 => Order::Count { count, lasting, reach },
            2 => Order::Auto,
            3 => Order::Pause(directions),
            _ => Order::Resume(directions),
        };
        self.tell(Event::Ordered(order));
    }

    /// Checks that the count is the operator's, or moves as the operator allows.
    fn check_orders(&self, before: &ControlReport, is_order: bool) {
        let after = self.controller.snapshot(self.now);
        let (Some(min), Some(max)) = (after.min, after.max) else { return };
        if (before.phase, after.phase) != (Phase::Running, Phase::Running) {
            return;
        }
        let (orders, desired) = (after.orders, after.desired);
        if let Some(manual) = orders.manual {
            assert_eq!(desired, manual.count);
            assert!(manual.until.is_none_or(|until| until > self.now), "its time is over");
        } else if orders.paused().is_none() {
            assert!((min..=max).contains(&desired), "{desired} is beside {min} to {max}");
        } else if before.orders.manual.is_none() && !is_order {
            assert!(orders.paused_in.is_none() || desired >= before.desired, "scale-in is paused");
            // Whoever comes to one that sleeps is answered nevertheless.
            let is_allowed = desired <= before.desired.max(1);
            assert!(orders.paused_out.is_none() || is_allowed, "scale-out is paused");
        }
    }

    fn reconfigure(&mut self, scaling: Scaling) {
        self.tell(Event::Reconfigured(Box::new(Reconfiguration { warm: self.warm, ..reconfigured(scaling) })));
    }

    /// What is there is of a former image from now on.
    fn change_image(&mut self) {
        self.containers.values_mut().for_each(|real| real.sighting.outdated = true);
        if !self.engine_is_away {
            let listed = self.listed();
            self.tell(Event::Resynced(listed));
        }
    }

    /// Plans what the engine would report, if it were there.
    fn notice(&mut self, in_ms: u64, event: Event) {
        if !self.engine_is_away {
            self.plan(in_ms, event);
        }
    }

    /// Lets the kernel tell of a death before the engine does, whether that is there or not; or not at all.
    fn kernel_tells(&mut self, in_ms: u64, id: &ContainerId) {
        if self.chance.one_in(2) {
            self.plan(in_ms, Event::BackendGone { id: id.clone(), cause: GoneCause::Ended });
        }
    }

    fn bring_engine_back(&mut self, in_ms: u64) {
        if std::mem::take(&mut self.engine_is_away) {
            // What was under way is told by the list.
            self.coming.retain(|_, event| {
                !matches!(event, Event::BackendSeen(_) | Event::BackendGone { .. } | Event::ProviderLost { .. })
            });
            self.plan(in_ms, Event::ProviderBack);
            let listed = self.listed();
            self.plan(in_ms, Event::Resynced(listed));
        }
    }

    fn listed(&self) -> Vec<Sighting> {
        self.containers.values().map(|real| real.sighting.clone()).collect()
    }

    fn end(&mut self, id: &ContainerId) {
        if let Some(real) = self.containers.get_mut(id) {
            real.sighting.running = false;
            self.frozen.remove(id);
        }
    }

    /// Notes what the controller is told, tells it, and performs what it commands.
    fn tell(&mut self, event: Event) {
        self.note(format!("{:10.3} {event:?}", self.now.elapsed().as_secs_f64()));
        match &event {
            Event::BackendProbed { id, outcome: Ok(heard) } => {
                let passed = heard.iter().filter(|(_, outcome)| outcome.is_ok());
                self.proven.extend(passed.map(|(family, _)| (id.clone(), *family)));
            }
            Event::BackendGone { id, cause } if *cause != GoneCause::Paused => self.note_gone(id),
            // The engine's from now on, to thaw as well.
            Event::BackendGone { id, cause: GoneCause::Paused } => _ = self.frozen.remove(id),
            Event::BackendSeen(sighting) => self.note_seen(sighting),
            Event::Resynced(sightings) => {
                sightings.iter().for_each(|sighting| self.note_seen(sighting));
            }
            Event::Started { ordinal, .. } | Event::StartFailed { ordinal, .. } => {
                self.pending.remove(ordinal);
            }
            Event::Swept { began, flows, answers: _ } => {
                self.told_flows.clone_from(flows);
                let Publication { ready, draining, .. } = &self.published;
                self.told_flows.retain(|id, _| ready.contains(id) || draining.contains(id));
                for id in &self.published.asleep {
                    let since = self.asleep_since.get(id).copied().unwrap_or(Timestamp::ZERO);
                    if flows.get(id).copied().unwrap_or(0) == 0 && *began >= since + Duration::from_secs(1) {
                        self.was_told_asleep.insert(id.clone());
                    } else {
                        self.was_told_asleep.remove(id);
                    }
                }
                for (id, out) in &self.out_since {
                    let clear = flows.get(id).copied().unwrap_or(0) == 0 && *began >= *out + Duration::from_secs(1);
                    if clear {
                        self.found_clear.insert(id.clone());
                    } else {
                        self.found_clear.remove(id);
                    }
                }
            }
            _ => {}
        }
        let (before, is_order) = (self.controller.snapshot(self.now), matches!(event, Event::Ordered(_)));
        let commands = self.controller.handle(event, self.now);
        self.check_orders(&before, is_order);
        for command in commands {
            self.perform(command);
        }
        let active = self.controller.snapshot(self.now).backends;
        let active = active.iter().filter(|backend| {
            matches!(backend.state, BackendState::Starting | BackendState::Ready | BackendState::Unhealthy)
        });
        // Given up, yet alive: one more than wanted at most for each that fails; and three beside them that replace others.
        assert!(active.count() as u32 <= self.max + 4 + 3, "more than anybody may want");
    }

    /// Its flows are over, and a slot that it may have leads nowhere.
    fn note_gone(&mut self, id: &ContainerId) {
        self.published.ready.retain(|ready| ready != id);
        self.proven.retain(|(proven, _)| proven != id);
        self.out_since.remove(id);
        self.addresses.remove(id);
    }

    fn note_seen(&mut self, sighting: &Sighting) {
        self.pending.remove(&sighting.ordinal);
        let former = self.addresses.get(&sighting.id).copied();
        let has_moved = former.flatten().zip(sighting.address).is_some_and(|(own, seen)| !own.are_of(&seen));
        if !sighting.running || has_moved {
            self.note_gone(&sighting.id);
        }
        self.addresses.insert(sighting.id.clone(), sighting.address);
    }

    fn note(&mut self, line: String) {
        if self.trace.len() == TRACED {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    fn perform(&mut self, command: Command) {
        self.note(format!("{:10.3} => {command:?}", self.now.elapsed().as_secs_f64()));
        match command {
            Command::Publish(publication) => self.publish(publication),
            Command::Probe { id } => self.probe(id),
            Command::Start { ordinal } => self.start(ordinal),
            Command::Stop { id } => self.stop(id),
            Command::Remove { id } => self.remove(id),
            Command::Freeze { id } => self.freeze(id),
            Command::Thaw { id } => self.thaw(id),
            Command::Finish => self.finished = true,
        }
    }

    /// Freezes a container, or not, or only seems to; what has flows is never asked to.
    fn freeze(&mut self, id: ContainerId) {
        assert_eq!(self.told_flows.get(&id).copied().unwrap_or(0), 0, "{id} is frozen with flows");
        if self.published.ready.contains(&id) {
            assert!(self.published.asleep.contains(&id), "{id} is frozen, and nobody would be told who comes");
            assert!(self.was_told_asleep.contains(&id), "{id} is frozen before a sweep that could have found a flow");
        }
        if !self.is_faulty() || self.chance.one_in(2) {
            self.frozen.insert(id.clone());
        }
        let is_lost = self.is_faulty() && self.chance.one_in(3);
        if is_lost {
            return;
        }
        let after = self.chance.below(20);
        let event = match self.is_faulty() || !self.frozen.contains(&id) {
            true => Event::FreezeFailed { id, error: "a disk is slow".into() },
            false => Event::Frozen { id },
        };
        self.plan(after, event);
    }

    fn thaw(&mut self, id: ContainerId) {
        if self.is_faulty() {
            self.tell(Event::ThawFailed { id, error: "no such file".into() });
            return;
        }
        self.frozen.remove(&id);
        self.tell(Event::Thawed { id });
    }

    fn publish(&mut self, publication: Publication) {
        assert!(publication.generation > self.published.generation, "generations rise");
        for id in &publication.ready {
            let address = self.addresses[id].expect("it has an address");
            let is_deaf = |family: &Family| publication.deaf.contains(&(id.clone(), *family));
            let served: Vec<Family> = address.families().filter(|family| !is_deaf(family)).collect();
            assert!(!served.is_empty(), "{id} is ready in no family");
            for family in served {
                assert!(self.proven.contains(&(id.clone(), family)), "{id} has a slot and passed no check by {family}");
            }
            assert!(!publication.draining.contains(id), "{id} is both");
        }
        assert!(publication.ready.len() >= self.least_ready, "a rollout has cost capacity");
        let generation = publication.generation;
        // As the agent does it: the answer is there before anything else happens.
        if self.is_faulty() {
            self.tell(Event::PublishFailed { generation, error: "no memory".into() });
            return;
        }
        let now = self.now;
        for id in &publication.ready {
            self.out_since.remove(id);
            self.found_clear.remove(id);
        }
        for id in self.published.ready.iter().filter(|id| publication.draining.contains(id)) {
            self.out_since.entry(id.clone()).or_insert(now);
        }
        self.was_told_asleep.retain(|id| publication.asleep.contains(id));
        for id in &publication.asleep {
            if !self.published.asleep.contains(id) {
                self.asleep_since.insert(id.clone(), now);
            }
        }
        // Of whoever is in neither list, the flows have ended.
        self.told_flows.retain(|id, _| publication.ready.contains(id) || publication.draining.contains(id));
        self.published = publication;
        self.tell(Event::Published { generation });
    }

    fn probe(&mut self, id: ContainerId) {
        let passes = self.containers.get(&id).is_some_and(|real| real.healthy && real.sighting.running)
            && !self.frozen.contains(&id);
        let outcome = if self.is_faulty() { Err("no way".to_owned()) } else { Ok(self.ask(&id, passes)) };
        if !(self.is_faulty() && self.chance.one_in(4)) {
            let after = self.chance.below(30);
            self.plan(after, Event::BackendProbed { id, outcome });
        }
    }

    /// Asks a container in each of its families: one may fail alone.
    fn ask(&mut self, id: &ContainerId, passes: bool) -> Heard {
        let address = self.containers.get(id).and_then(|real| real.sighting.address);
        let families: Vec<Family> =
            address.into_iter().flat_map(|address| address.families().collect::<Vec<_>>()).collect();
        let mut of = |family| (family, if passes && !self.is_faulty() { Ok(()) } else { Err("refused".to_owned()) });
        families.into_iter().map(&mut of).collect()
    }

    fn start(&mut self, ordinal: u32) {
        assert!(self.pending.insert(ordinal), "ordinal {ordinal} is being started already");
        assert!(self.pending.len() <= 4, "too many at once");
        let after = 200 + self.chance.below(600);
        if self.engine_is_away || self.is_faulty() {
            self.plan(after, Event::StartFailed { ordinal, error: "out of space".into() });
            return;
        }
        self.created += 1;
        let id = ContainerId(format!("{:06}", self.created));
        let name = BackendName(format!("lb-test-{ordinal}"));
        let v4 = Addresses::from(IpAddr::from([198, 19, (self.created >> 8) as u8, self.created as u8]));
        let address = Some(if self.chance.one_in(2) { v4.or(v6_of(self.created)) } else { v4 });
        let sighting = Sighting {
            id: id.clone(),
            name,
            ordinal,
            address,
            running: true,
            created: self.created,
            outdated: false,
            terms: Terms::default(),
        };
        let is_broken = self.is_faulty() && self.chance.one_in(2);
        let healthy = !is_broken && !self.image_is_bad;
        self.containers.insert(id.clone(), Real { sighting: sighting.clone(), healthy });
        let (seen, started) = (self.chance.below(30), self.chance.below(30));
        self.notice(after + seen, Event::BackendSeen(sighting));
        self.plan(after + started, Event::Started { ordinal, id: id.clone() });
        if self.is_faulty() && self.chance.one_in(3) {
            self.end(&id);
            let cause = GoneCause::Died { exit_code: Some(1), oom: false };
            self.kernel_tells(after, &id);
            self.notice(after + 40, Event::BackendGone { id, cause });
        }
    }

    fn stop(&mut self, id: ContainerId) {
        assert!(!self.published.ready.contains(&id), "{id} is stopped and has a slot");
        if let Some(out) = self.out_since.get(&id)
            && self.containers.get(&id).is_some_and(|real| real.sighting.running)
        {
            let waited = self.now.since(*out) >= Duration::from_secs(30);
            assert!(waited || self.found_clear.contains(&id), "{id} is stopped with flows");
        }
        let after = 100 + self.chance.below(2_000);
        if self.engine_is_away || self.is_faulty() {
            self.plan(after, Event::StopFailed { id, error: "timed out".into() });
            return;
        }
        self.end(&id);
        self.notice(after, Event::BackendGone { id: id.clone(), cause: GoneCause::Killed });
        self.containers.remove(&id);
        self.notice(after, Event::BackendGone { id: id.clone(), cause: GoneCause::Removed });
        self.plan(after, Event::Stopped { id });
    }

    fn remove(&mut self, id: ContainerId) {
        assert!(self.containers.get(&id).is_none_or(|real| !real.sighting.running), "{id} is removed although it runs");
        let after = 10 + self.chance.below(200);
        if self.engine_is_away || self.is_faulty() {
            self.plan(after, Event::RemoveFailed { id, error: "busy".into() });
            return;
        }
        self.containers.remove(&id);
        self.plan(after, Event::Stopped { id: id.clone() });
        self.notice(after, Event::BackendGone { id, cause: GoneCause::Removed });
    }

    /// Returns whose processes stand still.
    fn frozen(&self) -> BTreeSet<ContainerId> {
        self.frozen.iter().filter(|id| self.containers.contains_key(*id)).cloned().collect()
    }

    /// Ends all faults.
    fn calm(&mut self, load_percent: f64) {
        self.fault_one_in = 0;
        self.tell(Event::Ordered(Order::Auto));
        self.tell(Event::Ordered(Order::Resume(Directions::Both)));
        self.warm = self.wanted_warm;
        let new = Reconfiguration { on_change: OnChange::Rollout, warm: self.warm, ..reconfigured(self.scaling) };
        self.tell(Event::Reconfigured(Box::new(new)));
        self.bring_engine_back(1);
        self.containers.values_mut().for_each(|real| real.healthy = true);
        self.load_percent = load_percent;
    }
}

/// Returns the law of the host's load, or that of demand with windows that fit into the peace.
fn any_law(seed: u64, min: u32, max: u32) -> Scaling {
    if seed.is_multiple_of(2) {
        return Scaling::Auto(law(min, max));
    }
    let (up_window, down_window) = (Duration::from_secs(10), Duration::from_secs(20));
    Scaling::Demand(law::Law { up_window, down_window, ..law::Law::new(Bounds::new(min, max).unwrap()) })
}

fn the_last_one_sleeps(seed: u64, max: u32, warm: u32) -> Result<(), TestCaseError> {
    let warm = warm.min(max);
    let mut world = World::new(seed, Settings { warm, ..Settings::new(any_law(seed, 0, max)) }, max);
    world.run(Timestamp::ZERO + TROUBLE);
    world.calm(0.0);
    world.run(Timestamp::ZERO + TROUBLE + PEACE);

    let report = world.controller.snapshot(world.now);
    let of = |state| report.backends.iter().filter(|backend| backend.state == state).count();
    let counts = (report.desired, of(BackendState::Idle), of(BackendState::Warm), report.backends.len());
    prop_assert_eq!(counts, (0, 1, warm as usize, 1 + warm as usize), "{:?}", report.backends);
    prop_assert_eq!(world.containers.keys().cloned().collect::<BTreeSet<_>>(), world.frozen());
    prop_assert_eq!(world.published.ready.len(), 1, "it is in its slots");
    prop_assert_eq!(&world.published.asleep, &world.published.ready.iter().cloned().collect::<BTreeSet<_>>());

    let id = world.published.ready[0].clone();
    world.load_percent = 5.0;
    world.tell(Event::Woken { id: id.clone() });
    prop_assert!(!world.frozen.contains(&id) && world.published.asleep.is_empty(), "whoever comes is served at once");
    prop_assert_eq!(world.controller.snapshot(world.now).desired, 1);
    Ok(())
}

/// One passed its checks while it had flows, and went to the reserve with them.
#[test]
fn one_that_may_have_flows_is_drained_before_it_is_of_the_reserve() {
    the_last_one_sleeps(16_337_286_440_207_247_118, 2, 2).expect("it holds");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn when_the_trouble_ends_everything_wanted_is_there(seed: u64, min in 0..4_u32, more in 1..8_u32, warm in 0..3_u32) {
        let (max, warm) = (min + more, warm.min(min + more));
        let slow_start = Duration::from_secs(seed % 3 * 20);
        let mut world = World::new(seed, Settings { slow_start, warm, ..Settings::new(any_law(seed, min, max)) }, max);
        world.run(Timestamp::ZERO + TROUBLE);
        world.calm(35.0);
        world.run(Timestamp::ZERO + TROUBLE + Duration::from_secs(60));
        // What was on its way when the trouble ended may have failed it.
        world.tell(Event::Ordered(Order::Rollout { parallel: 2 }));
        let listed = world.listed();
        world.tell(Event::Resynced(listed));
        world.run(Timestamp::ZERO + TROUBLE + PEACE);

        let report = world.controller.snapshot(world.now);
        let ready: Vec<&ContainerId> =
            report.backends.iter().filter(|backend| backend.state == BackendState::Ready).map(|backend| &backend.id).collect();
        let kept: BTreeSet<ContainerId> =
            report.backends.iter().filter(|backend| backend.state == BackendState::Warm).map(|backend| backend.id.clone()).collect();
        prop_assert_eq!(report.backends.len(), ready.len() + kept.len(), "nothing is left half-way: {:?}", report.backends);
        prop_assert_eq!((kept.len() as u32, world.frozen()), (warm, kept.clone()), "the reserve, and nobody else, is frozen");
        prop_assert_eq!(ready.len() as u32, report.desired);
        prop_assert!(report.desired >= min && report.desired <= max);
        let there: BTreeSet<&ContainerId> = world.published.ready.iter().chain(&kept).collect();
        prop_assert_eq!(world.containers.keys().collect::<BTreeSet<_>>(), there);
        prop_assert_eq!(&world.published.deaf, &BTreeSet::new(), "each family is served again");
        prop_assert_eq!(report.problems, Vec::<String>::new());
        prop_assert!(world.containers.values().all(|real| !real.sighting.outdated), "what was outdated is replaced");
        prop_assert_eq!(report.rollout, None);
    }

    #[test]
    fn when_nobody_comes_any_more_the_last_one_sleeps(seed: u64, max in 1..6_u32, warm in 0..3_u32) {
        the_last_one_sleeps(seed, max, warm)?;
    }

    #[test]
    fn whatever_happens_the_end_leaves_nothing(seed: u64, max in 1..8_u32, seconds in 1..120_u64) {
        let warm = (seed % 3) as u32;
        let mut world = World::new(seed, Settings { warm, ..Settings::new(any_law(seed, 0, max)) }, max);
        world.run(Timestamp::ZERO + Duration::from_secs(seconds));
        world.tell(Event::StopRequested);
        world.run(world.now + Duration::from_secs(60));
        world.calm(35.0);
        world.run(world.now + PEACE);

        prop_assert!(world.finished, "{:?}", world.controller.snapshot(world.now).backends);
        prop_assert!(world.containers.is_empty(), "{:?}", world.containers);
    }
}
