//! What the controller commands, step by step, when everything answers as it should, and when one thing does not.

use super::*;

mod demand;
mod discovery;
mod ended;
mod frost;
mod orders;
mod rollout;

/// A controller with a clock. Backends are called `a`, `b`, `c` … by their ordinals.
struct Script {
    controller: Controller,
    now: Timestamp,
}

impl Script {
    fn new(settings: Settings) -> Self {
        Self { controller: Controller::new(settings), now: Timestamp::ZERO }
    }

    /// One that runs, with so many ready and published backends.
    fn running(min: u32, max: u32, ready: u32) -> Self {
        Self::running_with(Settings::new(Scaling::Auto(law(min, max))), ready)
    }

    fn running_with(settings: Settings, ready: u32) -> Self {
        let mut script = Self::new(settings);
        let there = (1..=ready).map(|ordinal| sighting(&name(ordinal), ordinal)).collect();
        let probes: Vec<Command> = (1..=ready).map(probe).collect();
        assert_eq!(script.tell(Event::Resynced(there)), [vec![publish(1, &[], &[])], probes].concat());
        script.confirm(1);
        for ordinal in 1..=ready {
            for command in script.tell(passed(ordinal)) {
                if let Command::Publish(publication) = command {
                    script.confirm(publication.generation);
                }
            }
        }
        script.at(100);
        script.controller.take_news();
        assert_eq!(script.states(), vec![BackendState::Ready; ready as usize]);
        script
    }

    fn at(&mut self, millis: u64) -> &mut Self {
        assert!(ms(millis) >= self.now, "the clock of a script goes forwards");
        self.now = ms(millis);
        self
    }

    fn tell(&mut self, event: Event) -> Vec<Command> {
        self.controller.handle(event, self.now)
    }

    /// As [`tell`](Self::tell), without the probes, which come every two seconds.
    fn effect(&mut self, event: Event) -> Vec<Command> {
        let mut commands = self.tell(event);
        commands.retain(|command| !matches!(command, Command::Probe { .. }));
        commands
    }

    /// Samples a load once a second, from `from` to `to`, and returns what that led to.
    fn loaded(&mut self, percent: f64, from: u64, to: u64) -> Vec<Command> {
        (from..=to).flat_map(|second| self.at(second * 1000).effect(load(percent))).collect()
    }

    fn tick(&mut self) -> Vec<Command> {
        self.tell(Event::Tick)
    }

    /// Returns how many publications are due.
    fn tick_publications(&mut self) -> usize {
        self.tick().iter().filter(|command| matches!(command, Command::Publish(_))).count()
    }

    /// Confirms publications until no other follows, and returns what else was commanded.
    fn confirm(&mut self, generation: u64) -> Vec<Command> {
        let mut others = Vec::new();
        let mut open = vec![generation];
        while let Some(generation) = open.pop() {
            for command in self.tell(Event::Published { generation }) {
                match command {
                    Command::Publish(publication) => open.push(publication.generation),
                    other => others.push(other),
                }
            }
        }
        others
    }

    fn states(&self) -> Vec<BackendState> {
        self.controller.snapshot(self.now).backends.into_iter().map(|backend| backend.state).collect()
    }

    fn kinds(&mut self) -> Vec<DecisionKind> {
        self.controller.take_news().into_iter().map(|decision| decision.kind).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.controller.snapshot(self.now).problems
    }
}

fn name(ordinal: u32) -> String {
    char::from(b'a' + ordinal as u8 - 1).to_string()
}

fn probe(ordinal: u32) -> Command {
    Command::Probe { id: id(&name(ordinal)) }
}

fn passed(ordinal: u32) -> Event {
    heard(ordinal, &[(Family::V4, true)])
}

/// A check that passed in some families, and was refused in others.
fn heard(ordinal: u32, families: &[(Family, bool)]) -> Event {
    let of = |&(family, passes): &(Family, bool)| (family, if passes { Ok(()) } else { Err("refused".into()) });
    Event::BackendProbed { id: id(&name(ordinal)), outcome: Ok(families.iter().map(of).collect()) }
}

fn failed(ordinal: u32) -> Event {
    Event::BackendProbed { id: id(&name(ordinal)), outcome: Err("refused".into()) }
}

fn gone(ordinal: u32, cause: GoneCause) -> Event {
    Event::BackendGone { id: id(&name(ordinal)), cause }
}

fn died(ordinal: u32) -> Event {
    gone(ordinal, GoneCause::Died { exit_code: Some(1), oom: false })
}

fn swept(began: u64, flows: &[(u32, u64)]) -> Event {
    Event::Swept {
        began: ms(began),
        flows: flows.iter().map(|&(ordinal, count)| (id(&name(ordinal)), count)).collect(),
        answers: BTreeMap::new(),
    }
}

/// A sweep that found how new connections were answered: accepted, refused, waiting.
fn answered(began: u64, answers: &[(u32, [u64; 3])]) -> Event {
    let of = |[accepted, refused, waiting]: [u64; 3]| Answers { accepted, refused, waiting };
    Event::Swept {
        began: ms(began),
        flows: BTreeMap::new(),
        answers: answers.iter().map(|&(ordinal, counted)| ((id(&name(ordinal)), Family::V4), of(counted))).collect(),
    }
}

fn publish(generation: u64, ready: &[u32], draining: &[u32]) -> Command {
    let ids = |ordinals: &[u32]| ordinals.iter().map(|&ordinal| id(&name(ordinal))).collect();
    let (deaf, warming) = (BTreeSet::new(), BTreeMap::new());
    Command::Publish(Publication {
        generation,
        ready: ids(ready),
        deaf,
        warming,
        asleep: BTreeSet::new(),
        draining: ids(draining),
    })
}

fn start(ordinal: u32) -> Command {
    Command::Start { ordinal }
}

fn stop(ordinal: u32) -> Command {
    Command::Stop { id: id(&name(ordinal)) }
}

fn remove(ordinal: u32) -> Command {
    Command::Remove { id: id(&name(ordinal)) }
}

#[test]
fn nothing_is_done_before_it_is_known_what_there_is() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(2, 4))));

    assert_eq!(script.tell(load(100.0)), []);
    assert_eq!(script.at(5_000).tick(), []);
    assert_eq!(script.controller.deadline(), None);

    assert_eq!(script.tell(Event::Resynced(Vec::new())), [publish(1, &[], &[]), start(1), start(2)]);
}

#[test]
fn a_backend_gets_connections_only_after_its_check_has_passed() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(1, 4))));
    assert_eq!(script.tell(Event::Resynced(Vec::new())), [publish(1, &[], &[]), start(1)]);
    assert_eq!(script.tell(Event::Published { generation: 1 }), []);

    assert_eq!(script.at(300).tell(Event::BackendSeen(sighting("a", 1))), [probe(1)]);
    assert_eq!(script.at(301).tell(Event::Started { ordinal: 1, id: id("a") }), []);
    assert_eq!(script.at(302).tell(failed(1)), []);
    assert_eq!(script.controller.deadline(), Some(ms(402)), "asked again soon");
    assert_eq!(script.at(402).tick(), [probe(1)]);

    assert_eq!(script.at(403).tell(passed(1)), [publish(2, &[1], &[])]);
    assert_eq!(script.states(), [BackendState::Ready]);
}

#[test]
fn a_start_may_be_confirmed_before_the_container_is_seen() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(1, 4))));
    script.tell(Event::Resynced(Vec::new()));
    script.confirm(1);

    assert_eq!(script.at(300).tell(Event::Started { ordinal: 1, id: id("a") }), [], "it has no address yet");
    assert_eq!(script.at(301).tell(Event::Resynced(Vec::new())), [], "the list may be older than the container");

    assert_eq!(script.at(302).tell(Event::BackendSeen(sighting("a", 1))), [probe(1)]);
}

#[test]
fn a_rise_starts_what_is_missing_and_a_reason_is_told() {
    let mut script = Script::running(2, 10, 2);

    assert_eq!(script.loaded(47.0, 1, 3), [], "it has to last for three seconds");
    assert_eq!(script.loaded(47.0, 4, 4), [start(3), start(4), start(5)]);

    let news = script.controller.take_news();
    assert_eq!((news[0].kind, news[0].from, news[0].to), (DecisionKind::ScaleUp, 2, 5));
    assert!(news[0].reason.contains("47.0 %") && news[0].reason.contains("2 -> 5"), "{}", news[0].reason);
    assert_eq!(script.loaded(47.0, 5, 9), [], "what is under way is not asked for twice");
}

#[test]
fn no_more_than_four_containers_are_created_at_once() {
    let mut script = Script::running(1, 10, 1);

    assert_eq!(script.loaded(100.0, 1, 4), [2, 3, 4, 5].map(start));
    assert_eq!(script.at(4_500).effect(Event::Started { ordinal: 2, id: id("b") }), [start(6)]);
    assert_eq!(script.controller.deadline().map(|due| due > ms(4_500)), Some(true), "nothing to do is no timer");
}

#[test]
fn the_newest_is_drained_and_stopped_when_its_flows_are_gone() {
    let mut script = Script::running(1, 10, 3);
    assert_eq!(script.loaded(15.0, 1, 30), []);
    let commands = script.loaded(15.0, 31, 31);
    assert_eq!(commands, [publish(5, &[1, 2], &[3])], "out of the slots first, its flows go on");
    assert_eq!(script.kinds(), [DecisionKind::ScaleDown, DecisionKind::Drain]);

    assert_eq!(script.at(31_010).effect(swept(31_000, &[])), [], "the kernel has not confirmed");
    assert_eq!(script.at(31_020).effect(Event::Published { generation: 5 }), []);
    assert_eq!(script.at(31_500).effect(swept(31_500, &[])), [], "a SYN may be on its way");
    assert_eq!(script.at(33_000).effect(swept(32_500, &[(3, 7)])), [], "seven connections are left");

    assert_eq!(script.at(34_000).effect(swept(33_500, &[])), [stop(3)]);
    assert_eq!(script.at(34_200).effect(Event::Stopped { id: id("c") }), [publish(6, &[1, 2], &[])]);
    assert_eq!(script.states(), [BackendState::Ready; 2]);
}

#[test]
fn flows_that_do_not_end_are_cut_at_the_deadline() {
    let mut script = Script::running(1, 10, 2);
    script.loaded(5.0, 1, 31);
    script.confirm(4);
    let out = script.now;
    script.kinds();
    assert_eq!(script.effect(swept(31_000, &[(2, 3)])), []);

    script.at(60_999);
    assert_eq!(script.effect(swept(60_900, &[(2, 3)])), []);
    assert!(script.controller.deadline() <= Some(out + Duration::from_secs(30)));

    assert_eq!(script.at(61_000).effect(Event::Tick), [stop(2)]);
    assert_eq!(script.kinds(), [DecisionKind::DrainTimedOut]);
}

#[test]
fn a_drain_is_cancelled_when_the_load_returns() {
    let mut script = Script::running(1, 10, 2);
    script.loaded(5.0, 1, 31);
    script.confirm(4);
    script.kinds();

    assert_eq!(script.loaded(25.0, 32, 34), []);
    let commands = script.loaded(25.0, 35, 35);

    assert_eq!(commands, [publish(5, &[1, 2], &[]), start(3)]);
    assert_eq!(script.kinds(), [DecisionKind::ScaleUp, DecisionKind::DrainCancelled, DecisionKind::Start]);
}

#[test]
fn a_death_is_published_in_the_same_breath_and_made_good() {
    let mut script = Script::running(3, 3, 3);

    let commands = script.at(1_000).effect(died(2));

    assert_eq!(commands, [publish(5, &[1, 3], &[])]);
    assert_eq!(script.kinds(), [DecisionKind::BackendDied]);
    script.confirm(5);
    assert_eq!(script.problems().len(), 1, "it ended after a second: the next one waits");
    assert_eq!(script.at(2_000).effect(Event::Tick), [start(4)]);
    assert_eq!(script.kinds(), [DecisionKind::Start]);
    assert_eq!(script.at(3_000).effect(Event::Tick), [remove(2)], "in no hurry: somebody may be restarting it");
}

#[test]
fn a_container_that_somebody_kills_is_made_good_at_once() {
    for cause in [GoneCause::Killed, GoneCause::Removed] {
        let mut script = Script::running(3, 3, 3);

        let commands = script.at(1_000).effect(gone(2, cause));

        assert!(commands.iter().any(|command| matches!(command, Command::Start { .. })), "{cause}: {commands:?}");
        assert_eq!(commands[0], publish(5, &[1, 3], &[]), "{cause}");
        assert_eq!(script.problems(), [""; 0], "{cause}");
    }
}

#[test]
fn containers_that_end_at_once_are_started_less_and_less_often() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(1, 4))));
    script.tell(Event::Resynced(Vec::new()));
    script.confirm(1);
    let (mut starts, mut begun) = (vec![0], 0);

    while starts.len() < 6 {
        script.at(begun + 100).effect(Event::BackendSeen(sighting("a", 1)));
        script.effect(Event::Started { ordinal: 1, id: id("a") });
        script.at(begun + 200).effect(died(1));
        script.effect(gone(1, GoneCause::Removed));
        let due = script.controller.deadline().expect("another try");
        begun = due.elapsed().as_millis() as u64;
        assert_eq!(script.at(begun).effect(Event::Tick), [start(1)]);
        starts.push(begun);
    }

    let waits: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0] - 200).collect();
    assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 16_000]);
    assert!(script.problems()[0].contains("5 times in a row"), "{:?}", script.problems());
}

#[test]
fn a_failure_that_was_made_good_is_no_problem_any_longer() {
    let mut script = Script::running(1, 1, 1);
    script.at(1_000).effect(died(1));
    script.effect(gone(1, GoneCause::Removed));
    assert_eq!(script.problems(), ["lb-test-1: ended with exit code 1 (the next try is in 2 s)"]);
    assert_eq!(script.at(2_000).effect(Event::Tick), [start(1)]);
    assert_eq!(script.problems(), ["lb-test-1: ended with exit code 1 (another try is under way)"]);
    script.at(2_100).effect(Event::BackendSeen(sighting("b", 1)));

    script.tell(passed(2));

    assert_eq!(script.states(), [BackendState::Ready]);
    assert_eq!(script.problems(), [""; 0]);
}

#[test]
fn a_start_that_fails_is_told_and_tried_again() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(1, 4))));
    assert_eq!(script.tell(Event::Resynced(Vec::new())), [publish(1, &[], &[]), start(1)]);

    assert_eq!(script.at(100).tell(Event::StartFailed { ordinal: 1, error: "no such image".into() }), []);

    assert_eq!(script.problems(), ["no such image (the next try is in 2 s)"]);
    assert_eq!(script.controller.deadline(), Some(ms(1_100)));
    assert_eq!(script.at(1_100).tick(), [start(1)]);
}

#[test]
fn an_answer_to_a_start_that_never_comes_counts_as_a_failure() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(1, 4))));
    script.tell(Event::Resynced(Vec::new()));
    script.confirm(1);

    assert_eq!(script.controller.deadline(), Some(ms(390_000)));
    assert_eq!(script.at(390_000).tick(), []);

    assert!(script.problems()[0].contains("no answer"), "{:?}", script.problems());
    assert_eq!(script.at(391_000).tick(), [start(1)]);
}

#[test]
fn a_container_that_is_never_ready_is_replaced() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(1, 4))));
    script.tell(Event::Resynced(Vec::new()));
    script.confirm(1);
    script.at(100).tell(Event::BackendSeen(sighting("a", 1)));
    script.tell(failed(1));

    let commands = script.at(30_100).effect(Event::Tick);

    assert_eq!(commands, [stop(1)], "it has no flows to wait for");
    assert!(script.problems()[0].contains("not ready after 30 s: refused"), "{:?}", script.problems());
    assert_eq!(script.at(31_100).effect(Event::Tick), [start(2)], "the name of the first is still taken");
}

#[test]
fn a_backend_that_fails_three_checks_leaves_and_two_bring_it_back() {
    let mut script = Script::running(2, 2, 2);
    for check in 1..=3 {
        assert_eq!(script.at(check * 2_000).tick(), [probe(1), probe(2)]);
        script.tell(passed(1));
        let commands = script.tell(failed(2));
        assert_eq!(commands, if check < 3 { vec![] } else { vec![publish(4, &[1], &[2])] }, "check {check}");
    }
    script.confirm(4);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Unhealthy]);
    assert_eq!(script.kinds(), [DecisionKind::Unhealthy]);

    script.at(8_000).tick();
    assert_eq!(script.tell(passed(2)), []);
    script.at(10_000).tick();
    assert_eq!(script.tell(passed(2)), [publish(5, &[1, 2], &[])]);
    assert_eq!(script.kinds(), [DecisionKind::Recovered]);
}

#[test]
fn a_backend_that_refuses_its_clients_is_aside_for_a_while_whatever_its_checks_say() {
    let mut script = Script::running(2, 2, 2);
    script.at(1_000).tell(answered(900, &[(1, [9, 0, 0]), (2, [9, 0, 0])]));

    let effect = script.at(2_000).effect(answered(1_900, &[(1, [12, 0, 0]), (2, [9, 5, 0])]));

    assert_eq!(effect, [publish(4, &[1], &[2])]);
    script.confirm(4);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Unhealthy]);
    let backend = script.controller.snapshot(script.now).backends.remove(1);
    assert_eq!(
        backend.last_error.as_deref(),
        Some("it refused 5 new connections in a row: aside for 10 s"),
        "and not what a check says"
    );
    // Its checks pass all the time; they count from the twelfth second on.
    let mut effects = Vec::new();
    for check in 1..=8 {
        effects.extend(script.at(2_000 + check * 2_000).effect(Event::Tick));
        for effect in script.effect(passed(2)) {
            effects.push(effect);
        }
        script.effect(passed(1));
        assert_eq!(effects.len(), usize::from(check >= 6), "check {check}: {effects:?}");
    }
    assert_eq!(effects, [publish(5, &[1, 2], &[])]);
    assert_eq!(script.kinds(), [DecisionKind::Unhealthy, DecisionKind::Recovered]);
}

#[test]
fn a_backend_that_passes_its_checks_is_not_replaced_for_its_clients_sake() {
    let mut script = Script::running(2, 2, 2);
    let (mut effects, mut refused, mut times) = (Vec::new(), 0, 0);
    for second in 1..=200 {
        effects.extend(script.at(second * 1_000).effect(Event::Tick));
        effects.extend([1, 2].into_iter().flat_map(|ordinal| script.effect(passed(ordinal))));
        if script.states()[1] == BackendState::Ready {
            (refused, times) = (refused + 5, times + 1);
        }
        effects.extend(script.effect(answered(second * 1_000 - 100, &[(1, [second, 0, 0]), (2, [0, refused, 0])])));
        if let Some(Command::Publish(publication)) = effects.last() {
            let generation = publication.generation;
            effects.extend(script.confirm(generation));
        }
    }

    assert!(times >= 4, "aside for 10, 20, 40 and 80 seconds: {times}");
    let others: Vec<_> =
        effects.iter().filter(|effect| !matches!(effect, Command::Publish(_) | Command::Probe { .. })).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn the_last_backend_stays_although_it_refuses_its_clients() {
    let mut script = Script::running(1, 1, 1);
    script.at(1_000).tell(answered(900, &[(1, [0, 0, 0])]));

    assert_eq!(script.at(2_000).effect(answered(1_900, &[(1, [0, 50, 0])])), []);

    assert_eq!(script.states(), [BackendState::Ready]);
    assert_eq!(script.kinds(), [DecisionKind::KeptLast]);
}

#[test]
fn the_last_ready_backend_stays_whatever_its_checks_say() {
    let mut script = Script::running(1, 1, 1);
    for check in 1..=20 {
        let effect = script.at(check * 2_000).effect(Event::Tick);
        // From the third failure on it is given half a minute.
        assert_eq!(effect, if check == 18 { vec![start(2)] } else { vec![] }, "check {check}");
        assert_eq!(script.tell(failed(1)), [], "check {check}");
    }

    assert_eq!(script.states(), [BackendState::Ready]);
    assert_eq!(script.kinds(), [DecisionKind::KeptLast, DecisionKind::Start], "told once, and another is on its way");
    assert!(script.controller.deadline() > Some(script.now), "no timer that has run out");
}

#[test]
fn a_backend_that_fails_for_long_is_replaced() {
    let mut script = Script::running(2, 2, 2);
    let mut effects = Vec::new();
    for check in 1..=18 {
        effects.extend(script.at(check * 2_000).effect(Event::Tick));
        effects.extend(script.effect(passed(1)));
        effects.extend(script.effect(failed(2)));
        if let Some(Command::Publish(publication)) = effects.last() {
            let generation = publication.generation;
            script.confirm(generation);
        }
    }

    assert_eq!(effects, [publish(4, &[1], &[2]), start(3)]);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Draining]);
    assert_eq!(script.at(37_000).effect(swept(36_900, &[])), [stop(2)], "it was out of the slots already");
}

#[test]
fn a_paused_container_leaves_at_once_and_returns_after_its_checks() {
    let mut script = Script::running(2, 2, 2);

    assert_eq!(script.at(1_000).tell(gone(2, GoneCause::Paused)), [publish(4, &[1], &[2])]);
    script.confirm(4);
    script.at(2_000).tick();
    script.tell(Event::BackendSeen(sighting("b", 2)));
    script.tell(passed(2));
    script.at(4_000).tick();

    assert_eq!(script.tell(passed(2)), [publish(5, &[1, 2], &[])]);
}

#[test]
fn a_container_at_another_address_is_checked_anew_and_loses_its_old_flows() {
    let mut script = Script::running(2, 2, 2);
    let moved = Sighting { address: Some(IpAddr::from([198, 19, 0, 77]).into()), ..sighting("b", 2) };

    assert_eq!(script.at(1_000).tell(Event::BackendSeen(moved)), [publish(4, &[1], &[]), probe(2)]);
    script.confirm(4);
    assert_eq!(script.tell(passed(2)), [publish(5, &[1, 2], &[])]);
}

#[test]
fn what_a_former_agent_served_is_ready_without_a_check() {
    let settings = Settings {
        adopted_ready: [1, 2].map(|ordinal| (id(&name(ordinal)), sighting("", ordinal).address.unwrap())).into(),
        adopted_flows: [id("c")].into(),
        adopted_generation: 41,
        ..Settings::new(Scaling::Auto(law(1, 4)))
    };
    let mut script = Script::new(settings);
    let stopped = Sighting { running: false, ..sighting("d", 4) };
    let there = vec![sighting("a", 1), sighting("b", 2), sighting("c", 3), stopped];

    let commands = script.tell(Event::Resynced(there));

    assert_eq!(commands, [publish(42, &[1, 2], &[3]), remove(4), probe(1), probe(2), probe(3)]);
    assert_eq!(script.kinds(), [DecisionKind::Adopted; 2]);
    assert_eq!(script.controller.snapshot(script.now).desired, 3, "as many as there are");
}

#[test]
fn what_is_served_and_not_listed_any_more_is_drained_and_never_stopped() {
    for scaling in [Scaling::Fixed, Scaling::Auto(law(1, 1))] {
        let settings = Settings {
            adopted_ready: [(id("a"), sighting("", 1).address.unwrap())].into(),
            adopted_leaving: [(id("b"), sighting("", 2).address.unwrap())].into(),
            ..Settings::new(scaling)
        };
        let begin = || {
            let mut script = Script::new(settings.clone());
            let commands = script.effect(Event::Resynced(vec![sighting("a", 1)]));
            assert_eq!(commands, [publish(1, &[1], &[2])], "it keeps its flows, and gets no more");
            assert_eq!(script.kinds(), [DecisionKind::Adopted, DecisionKind::Drain]);
            assert_eq!(script.controller.snapshot(script.now).desired, 1);
            script.confirm(1);
            script
        };

        let mut script = begin();
        assert_eq!(script.at(3_000).effect(swept(2_000, &[(1, 5), (2, 1)])), []);
        // A list that is repeated does not have it either.
        assert_eq!(script.effect(Event::Resynced(vec![sighting("a", 1)])), []);
        assert_eq!(script.at(5_000).effect(swept(4_000, &[(1, 5)])), [publish(2, &[1], &[])]);
        assert_eq!(script.states(), [BackendState::Ready]);

        let mut script = begin();
        script.at(3_000).effect(swept(2_000, &[(2, 7)]));
        assert_eq!(script.at(29_999).effect(Event::Tick), []);
        assert_eq!(script.at(30_000).effect(Event::Tick), [publish(2, &[1], &[])]);
        assert_eq!(script.kinds(), [DecisionKind::DrainTimedOut]);
    }
}

#[test]
fn what_is_lost_while_the_engine_is_away_is_found_when_it_returns() {
    let mut script = Script::running(3, 3, 3);
    script.at(1_000).tell(Event::ProviderLost { error: "connection refused".into() });
    assert!(script.problems()[0].contains("connection refused"), "{:?}", script.problems());
    assert_eq!(script.loaded(100.0, 2, 20), [], "nothing is started that could not be seen");

    script.at(21_000).tell(Event::ProviderBack);
    let commands = script.effect(Event::Resynced(vec![sighting("a", 1), sighting("c", 3)]));

    assert_eq!(commands, [publish(5, &[1, 3], &[]), start(2)]);
    assert_eq!(script.problems(), [""; 0]);
}

#[test]
fn a_publication_that_failed_is_tried_again() {
    let mut script = Script::running(2, 2, 2);
    script.at(1_000).effect(died(2));
    let error = "map SLOTS: no memory".to_owned();

    assert_eq!(script.effect(Event::PublishFailed { generation: 4, error }), []);

    assert!(script.problems()[0].contains("map SLOTS"), "{:?}", script.problems());
    assert_eq!(script.controller.deadline(), Some(ms(1_100)));
    assert_eq!(script.at(1_100).effect(Event::Tick), [publish(5, &[1], &[])]);
}

#[test]
fn a_stop_that_failed_is_tried_again_and_told() {
    let mut script = Script::running(1, 10, 2);
    script.loaded(5.0, 1, 31);
    script.confirm(4);
    assert_eq!(script.at(33_000).effect(swept(32_500, &[])), [stop(2)]);
    script.kinds();

    assert_eq!(script.effect(Event::StopFailed { id: id("b"), error: "timed out".into() }), []);

    assert_eq!(script.kinds(), [DecisionKind::StopFailed]);
    assert_eq!(script.at(34_000).effect(Event::Tick), [stop(2)]);
    let commands = script.effect(gone(2, GoneCause::Died { exit_code: Some(0), oom: false }));
    assert_eq!(commands, [publish(5, &[1], &[])], "its end was asked for, and its flows are over");
    script.confirm(5);
    script.effect(Event::Stopped { id: id("b") });
    assert_eq!(script.kinds(), []);
    assert_eq!(script.states(), [BackendState::Ready]);
}

#[test]
fn the_end_drains_everything_and_then_finishes() {
    let mut script = Script::running(2, 4, 2);

    assert_eq!(script.at(1_000).effect(Event::StopRequested), [publish(4, &[], &[1, 2])]);
    assert_eq!(script.confirm(4), []);
    assert_eq!(script.at(2_500).effect(swept(2_100, &[(2, 1)])), [stop(1)]);
    assert_eq!(script.effect(load(100.0)), [], "no load brings anything back");
    assert_eq!(script.effect(Event::Stopped { id: id("a") }), [publish(5, &[], &[2])]);
    script.confirm(5);
    assert_eq!(script.at(31_000).effect(Event::Tick), [stop(2)], "the drain's deadline");

    let commands = script.effect(Event::Stopped { id: id("b") });

    assert_eq!(commands.last(), Some(&Command::Finish));
}

#[test]
fn asked_twice_it_cuts_and_asked_again_it_goes() {
    let mut script = Script::running(2, 4, 2);
    script.at(1_000).effect(Event::StopRequested);
    script.confirm(4);

    assert_eq!(script.effect(Event::StopForced), [stop(1), stop(2)]);
    assert_eq!(script.effect(Event::StopForced), [Command::Finish]);
}

#[test]
fn with_keep_it_just_goes() {
    let settings = Settings { keep: true, ..Settings::new(Scaling::Auto(law(2, 4))) };
    let mut script = Script::running_with(settings, 2);

    assert_eq!(script.tell(Event::StopRequested), [Command::Finish]);
}

#[test]
fn a_start_under_way_at_the_end_is_waited_for_and_undone() {
    let mut script = Script::running(1, 4, 1);
    assert_eq!(script.loaded(60.0, 1, 4), [start(2), start(3)]);
    script.effect(Event::StopRequested);
    script.confirm(3);
    assert_eq!(script.at(6_000).effect(swept(5_500, &[])), [stop(1)]);
    script.effect(Event::Stopped { id: id("a") });

    script.effect(Event::StartFailed { ordinal: 3, error: "no".into() });
    let commands = script.effect(Event::Started { ordinal: 2, id: id("b") });

    assert!(commands.contains(&stop(2)), "{commands:?}");
    let commands = script.effect(Event::Stopped { id: id("b") });
    assert_eq!(commands.last(), Some(&Command::Finish));
}

#[test]
fn static_backends_are_checked_and_never_started_or_stopped() {
    let mut script = Script::new(Settings::new(Scaling::Fixed));
    let there = vec![sighting("a", 1), sighting("b", 2)];
    assert_eq!(script.tell(Event::Resynced(there)), [publish(1, &[], &[]), probe(1), probe(2)]);
    script.confirm(1);
    assert_eq!(script.tell(passed(1)), [publish(2, &[1], &[])]);
    script.confirm(2);
    assert_eq!(script.at(60_000).effect(failed(2)), [], "however long it takes");
    assert_eq!(script.loaded(100.0, 61, 90), []);

    script.effect(Event::StopRequested);
    script.confirm(3);
    let commands = script.at(100_000).effect(swept(99_000, &[]));

    assert_eq!(commands.last(), Some(&Command::Finish));
    assert!(!commands.iter().any(|command| matches!(command, Command::Stop { .. } | Command::Remove { .. })));
}

#[test]
fn repeated_and_unknown_events_change_nothing() {
    let mut script = Script::running(2, 2, 2);
    let nobody = || id("nobody");
    for event in [
        passed(1),
        failed(1),
        Event::Published { generation: 1 },
        Event::Published { generation: 99 },
        Event::PublishFailed { generation: 1, error: "late".into() },
        Event::StopFailed { id: id("a"), error: "late".into() },
        Event::RemoveFailed { id: id("a"), error: "late".into() },
        Event::BackendProbed { id: nobody(), outcome: Ok(Heard::new()) },
        Event::BackendGone { id: nobody(), cause: GoneCause::Killed },
        Event::Stopped { id: nobody() },
        Event::StopFailed { id: nobody(), error: "late".into() },
        Event::Swept {
            began: ms(50),
            flows: [(nobody(), 7)].into(),
            answers: [((nobody(), Family::V4), Answers::default())].into(),
        },
        Event::BackendSeen(sighting("a", 1)),
        Event::Resynced(vec![sighting("a", 1), sighting("b", 2)]),
        Event::ProviderBack,
        Event::Tick,
    ] {
        assert_eq!(script.effect(event.clone()), [], "{event:?}");
    }
    assert_eq!(script.states(), [BackendState::Ready; 2]);
}

#[test]
fn a_container_that_is_restarted_by_hand_is_left_alone() {
    let mut script = Script::running(2, 2, 2);
    assert_eq!(script.at(20_000).effect(gone(2, GoneCause::Killed)), [publish(4, &[1], &[]), start(3)]);
    script.confirm(4);

    assert_eq!(script.at(20_500).effect(Event::BackendSeen(sighting("b", 2))), []);
    assert_eq!(script.at(20_520).effect(passed(2)), [publish(5, &[1, 2], &[])]);
    script.confirm(5);
    assert_eq!(script.at(25_000).effect(Event::Tick), [], "nothing is removed");

    // The one that was started in its place is one too many.
    let commands = script.effect(Event::BackendSeen(sighting("c", 3)));
    assert_eq!(commands, [stop(3)]);
}

#[test]
fn what_is_about_to_be_started_is_no_leftover() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(2, 4))));
    assert_eq!(script.tell(Event::Resynced(Vec::new())), [publish(1, &[], &[]), start(1), start(2)]);
    script.confirm(1);
    let created = |name: &str, ordinal| Sighting { running: false, ..sighting(name, ordinal) };

    let commands = script.at(1_000).effect(Event::Resynced(vec![created("a", 1), created("b", 2), created("x", 9)]));

    assert_eq!(commands, [remove(24)], "x alone was left by an earlier life");
}

#[test]
fn a_death_before_the_answer_to_the_start_is_not_forgotten() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(1, 4))));
    script.tell(Event::Resynced(Vec::new()));
    script.confirm(1);

    assert_eq!(script.at(300).effect(died(1)), [], "nobody knows it yet");
    script.at(310).effect(Event::Started { ordinal: 1, id: id("a") });

    assert!(script.problems()[0].contains("ended with exit code 1"), "{:?}", script.problems());
    assert_eq!(script.states(), [BackendState::Dead]);
}

#[test]
fn a_backend_that_cannot_be_reached_keeps_nobody_else_out() {
    let mut script = Script::running(3, 3, 3);

    let unreachable = Event::BackendUnreachable { id: id("b"), error: "no such device".into() };
    assert_eq!(script.at(1_000).effect(unreachable), [publish(5, &[1, 3], &[2])]);
    script.confirm(5);
    assert_eq!(script.kinds(), [DecisionKind::Unhealthy]);

    script.at(2_000).tick();
    script.tell(passed(2));
    script.at(4_000).tick();
    assert_eq!(script.tell(passed(2)), [publish(6, &[1, 2, 3], &[])]);
}

#[test]
fn another_way_to_a_backend_is_published() {
    let mut script = Script::running(2, 2, 2);

    assert_eq!(script.at(1_000).effect(Event::WayChanged { id: id("b") }), [publish(4, &[1, 2], &[])]);

    assert_eq!(script.effect(Event::PublishFailed { generation: 4, error: "busy".into() }), []);
    assert_eq!(script.at(1_100).effect(Event::Tick), [publish(5, &[1, 2], &[])], "and tried until it succeeds");
}

#[test]
fn an_end_before_it_is_known_what_there_is_waits_for_that() {
    let settings = Settings {
        adopted_ready: [(id("a"), sighting("", 1).address.unwrap())].into(),
        ..Settings::new(Scaling::Auto(law(1, 4)))
    };
    let mut script = Script::new(settings.clone());
    assert_eq!(script.tell(Event::StopRequested), []);
    let commands = script.at(500).effect(Event::Resynced(vec![sighting("a", 1)]));
    assert_eq!(commands, [publish(1, &[], &[1])], "drained, not cut");
    script.confirm(1);
    assert_eq!(script.at(2_000).effect(swept(1_600, &[])), [stop(1)]);

    let mut impatient = Script::new(settings.clone());
    assert_eq!(impatient.tell(Event::StopRequested), []);
    assert_eq!(impatient.tell(Event::StopForced), [Command::Finish]);

    let mut keeping = Script::new(Settings { keep: true, ..settings });
    assert_eq!(keeping.tell(Event::StopRequested), [Command::Finish]);
}

#[test]
fn a_container_that_came_to_another_address_meanwhile_is_checked() {
    let settings = Settings {
        adopted_ready: [(id("a"), IpAddr::from([198, 19, 0, 99]).into())].into(),
        ..Settings::new(Scaling::Auto(law(1, 4)))
    };
    let mut script = Script::new(settings);

    assert_eq!(script.tell(Event::Resynced(vec![sighting("a", 1)])), [publish(1, &[], &[]), probe(1)]);
}

#[test]
fn what_was_started_with_other_settings_is_told_and_goes_first() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(1, 10))));
    let old = Sighting { outdated: true, ..sighting("a", 1) };
    script.tell(Event::Resynced(vec![old, sighting("b", 2)]));
    script.confirm(1);
    for ordinal in [1, 2] {
        if let Some(Command::Publish(publication)) = script.tell(passed(ordinal)).first() {
            let generation = publication.generation;
            script.confirm(generation);
        }
    }
    assert!(script.problems()[0].contains("1 of the containers"), "{:?}", script.problems());

    assert_eq!(script.loaded(5.0, 1, 31), [publish(4, &[2], &[1])]);
}

#[test]
fn a_failure_that_passed_is_not_shown_for_ever() {
    let mut script = Script::running(2, 2, 2);
    let error = |script: &Script| script.controller.snapshot(script.now).backends[1].last_error.clone();
    script.at(2_000).tick();
    script.tell(failed(2));
    assert_eq!(error(&script).as_deref(), Some("refused"));

    script.at(4_000).tick();
    script.tell(passed(2));

    assert_eq!(error(&script), None);
}

#[test]
fn decisions_of_a_former_agent_are_remembered() {
    let former = Decision {
        at: ms(5),
        kind: DecisionKind::ScaleUp,
        from: 1,
        to: 2,
        load: None,
        reason: "as it was".into(),
        times: 1,
    };
    let settings = Settings { adopted_decisions: vec![former.clone()], ..Settings::new(Scaling::Fixed) };
    let script = Script::new(settings);

    assert_eq!(script.controller.snapshot(ms(10)).decisions, [former]);
}

#[test]
fn other_bounds_take_effect_at_once_and_are_told() {
    let mut script = Script::running(2, 10, 2);

    let raised = Event::Reconfigured(Box::new(reconfigured(Scaling::Auto(law(4, 10)))));
    assert_eq!(script.effect(raised), [start(3), start(4)]);
    let news = script.controller.take_news();
    assert_eq!((news[0].kind, news[0].from, news[0].to), (DecisionKind::Reconfigured, 2, 4));

    let mut script = Script::running(4, 10, 4);
    let lowered = Event::Reconfigured(Box::new(reconfigured(Scaling::Auto(law(1, 3)))));
    assert_eq!(script.effect(lowered), [publish(6, &[1, 2, 3], &[4])], "the newest is drained, not killed");
}

#[test]
fn windows_of_a_law_that_stays_are_kept_and_those_of_another_begin_anew() {
    let mut script = Script::running(2, 10, 2);
    script.loaded(47.0, 1, 3);
    let same = Reconfiguration { drain_timeout: Duration::from_secs(5), ..reconfigured(Scaling::Auto(law(2, 10))) };
    assert_eq!(script.effect(Event::Reconfigured(Box::new(same))), []);
    assert_eq!(script.loaded(47.0, 4, 4), [start(3), start(4), start(5)], "three seconds are over");

    let mut script = Script::running(2, 10, 2);
    script.loaded(47.0, 1, 3);
    let other = reconfigured(Scaling::Auto(law(2, 11)));
    assert_eq!(script.effect(Event::Reconfigured(Box::new(other))), []);
    assert_eq!(script.loaded(47.0, 4, 6), [], "seen under the other law");
    assert_eq!(script.loaded(47.0, 7, 7), [start(3), start(4), start(5), start(6)]);
}

#[test]
fn a_shorter_drain_ends_one_that_is_under_way() {
    let mut script = Script::running(2, 2, 2);
    let fewer = reconfigured(Scaling::Auto(law(1, 1)));
    assert_eq!(script.effect(Event::Reconfigured(Box::new(fewer.clone()))), [publish(4, &[1], &[2])]);
    script.confirm(4);
    script.effect(swept(200, &[(2, 1)]));

    let shorter = Reconfiguration { drain_timeout: Duration::from_millis(500), ..fewer };
    assert_eq!(script.at(400).effect(Event::Reconfigured(Box::new(shorter))), []);
    assert_eq!(script.controller.deadline(), Some(ms(600)));

    assert_eq!(script.at(600).effect(Event::Tick), [stop(2)]);
}

#[test]
fn a_backend_that_is_not_listed_any_more_keeps_its_connections() {
    let mut script = Script::running_with(Settings::new(Scaling::Fixed), 2);
    let unlisted = Reconfiguration { unlisted: [id("b")].into(), ..reconfigured(Scaling::Fixed) };

    assert_eq!(script.effect(Event::Reconfigured(Box::new(unlisted))), [publish(4, &[1], &[2])]);
    script.confirm(4);
    assert_eq!(script.effect(Event::Resynced(vec![sighting("a", 1), sighting("c", 3)])), [], "b is not missed");
    assert_eq!(script.at(200).tell(passed(3)), [publish(5, &[1, 3], &[2])]);
    script.confirm(5);

    assert_eq!(script.at(2_000).effect(swept(1_900, &[(2, 1)])), [], "a connection is left");
    assert_eq!(script.at(3_000).effect(swept(2_900, &[])), [publish(6, &[1, 3], &[])]);
}

#[test]
fn a_backend_that_is_listed_again_serves_again() {
    let mut script = Script::running_with(Settings::new(Scaling::Fixed), 2);
    let unlisted = Reconfiguration { unlisted: [id("b")].into(), ..reconfigured(Scaling::Fixed) };
    script.effect(Event::Reconfigured(Box::new(unlisted)));
    script.confirm(4);

    let both = Event::Resynced(vec![sighting("a", 1), sighting("b", 2)]);
    assert_eq!(script.at(200).effect(both.clone()), [publish(5, &[1, 2], &[])]);
    assert_eq!(script.states(), [BackendState::Ready; 2]);
    script.confirm(5);
    assert_eq!(script.at(300).effect(both), []);
}

#[test]
fn a_service_that_is_removed_is_drained_although_it_was_to_be_kept() {
    let settings = Settings { keep: true, ..Settings::new(Scaling::Auto(law(1, 1))) };
    let mut script = Script::running_with(settings, 1);
    script.effect(Event::Reconfigured(Box::new(reconfigured(Scaling::Auto(law(1, 1))))));

    assert_eq!(script.effect(Event::StopRequested), [publish(3, &[], &[1])]);
    script.confirm(3);
    assert_eq!(script.at(2_000).effect(swept(1_900, &[])), [stop(1)]);
    assert_eq!(script.effect(Event::Stopped { id: id("a") }), [publish(4, &[], &[]), Command::Finish]);
}

#[test]
fn other_endpoints_are_published_again() {
    let mut script = Script::running(2, 2, 2);

    assert_eq!(script.effect(Event::EndpointsChanged), [publish(4, &[1, 2], &[])]);
}

#[test]
fn a_backend_that_becomes_ready_is_given_more_and_more() {
    let settings = Settings {
        slow_start: Duration::from_secs(10),
        adopted_ready: [(id("a"), sighting("", 1).address.unwrap())].into(),
        ..Settings::new(Scaling::Fixed)
    };
    let mut script = Script::new(settings);
    let warming = |script: &mut Script| {
        let mut shares = Vec::new();
        let mut due = script.tick();
        while let Some(command) = due.pop() {
            if let Command::Publish(publication) = command {
                due.extend(script.tell(Event::Published { generation: publication.generation }));
                assert_eq!(publication.ready, [id("a"), id("b")]);
                shares.push(publication.warming);
            }
        }
        shares
    };
    script.tell(Event::Resynced(vec![sighting("a", 1), sighting("b", 2)]));
    script.confirm(1);
    let became_ready = script.effect(passed(2));
    let [Command::Publish(publication)] = &became_ready[..] else { panic!("{became_ready:?}") };
    assert_eq!(publication.warming, [(id("b"), 1)].into(), "that of a former agent had its share already");
    script.confirm(publication.generation);

    assert_eq!(script.at(1_999).tick_publications(), 0);
    for tenths in 2..=9_u32 {
        script.at(u64::from(tenths) * 1000);
        assert_eq!(script.controller.deadline().map(|due| due <= script.now + Duration::from_secs(1)), Some(true));
        assert_eq!(warming(&mut script), [BTreeMap::from([(id("b"), tenths)])]);
        assert_eq!(script.controller.snapshot(script.now).backends[1].tenths, Some(tenths));
    }
    script.at(10_000);
    assert_eq!(warming(&mut script), [BTreeMap::new()], "and then its whole share");
    script.at(20_000);
    assert_eq!(warming(&mut script), [], "once and for all");
}

#[test]
fn the_one_that_an_outage_has_left_does_not_bear_everything() {
    let settings = Settings {
        slow_start: Duration::from_secs(10),
        adopted_ready: [(id("a"), sighting("", 1).address.unwrap())].into(),
        ..Settings::new(Scaling::Fixed)
    };
    let mut script = Script::new(settings);
    script.tell(Event::Resynced(vec![sighting("a", 1), sighting("b", 2), sighting("c", 3)]));
    script.confirm(1);
    script.effect(passed(2));
    script.confirm(2);

    let commands = script.effect(passed(3));

    let [Command::Publish(publication)] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!(publication.warming, [(id("b"), 3), (id("c"), 3)].into(), "ten of sixteen are less than two of three");
    let shown =
        script.controller.snapshot(script.now).backends.iter().map(|backend| backend.tenths).collect::<Vec<_>>();
    assert_eq!(shown, [None, Some(3), Some(3)]);
}

#[test]
fn another_slow_start_takes_effect_at_once() {
    let mut script = Script::running_with(Settings::new(Scaling::Fixed), 2);
    let slower = Reconfiguration { slow_start: Duration::from_secs(10), ..reconfigured(Scaling::Fixed) };

    let commands = script.at(3_000).effect(Event::Reconfigured(Box::new(slower)));

    let [Command::Publish(publication)] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!(publication.warming, [(id("a"), 3), (id("b"), 3)].into(), "they have become ready a while ago");
    script.confirm(publication.generation);
    let commands = script.effect(Event::Reconfigured(Box::new(reconfigured(Scaling::Fixed))));
    let [Command::Publish(publication)] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!(publication.warming, BTreeMap::new());
}

#[test]
fn a_share_goes_on_growing_under_the_next_agent() {
    let settings = Settings {
        slow_start: Duration::from_secs(10),
        adopted_ready: [1, 2].map(|ordinal| (id(&name(ordinal)), sighting("", ordinal).address.unwrap())).into(),
        adopted_warming: [(id("a"), ms(1_000)), (id("b"), ms(57_000))].into(),
        ..Settings::new(Scaling::Fixed)
    };
    let mut script = Script::new(settings);

    let commands = script.at(60_000).effect(Event::Resynced(vec![sighting("a", 1), sighting("b", 2)]));

    let [Command::Publish(publication)] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!((&publication.ready, &publication.warming), (&vec![id("a"), id("b")], &[(id("b"), 3)].into()));
}

const V4: Family = Family::V4;
const V6: Family = Family::V6;

/// A container with addresses of both families.
fn dual(name: &str, ordinal: u32) -> Sighting {
    let one = sighting(name, ordinal);
    let v6 = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, ordinal as u16]);
    Sighting { address: one.address.map(|address| address.or(v6.into())), ..one }
}

/// A publication of ready backends, some of which have no slot in a family.
fn publish_but(generation: u64, ready: &[u32], deaf: &[(u32, Family)]) -> Command {
    let Command::Publish(all) = publish(generation, ready, &[]) else { unreachable!("it is a publication") };
    let deaf = deaf.iter().map(|&(ordinal, family)| (id(&name(ordinal)), family)).collect();
    Command::Publish(Publication { deaf, ..all })
}

/// So many backends with both families, ready and published.
fn running_dual(number: u32) -> Script {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(number, number))));
    script.tell(Event::Resynced((1..=number).map(|ordinal| dual(&name(ordinal), ordinal)).collect()));
    script.confirm(1);
    for ordinal in 1..=number {
        if let [Command::Publish(publication)] = script.tell(heard(ordinal, &[(V4, true), (V6, true)])).as_slice() {
            assert_eq!(publication.deaf, BTreeSet::new());
            script.confirm(publication.generation);
        }
    }
    assert_eq!(script.states(), vec![BackendState::Ready; number as usize]);
    script.controller.take_news();
    script
}

#[test]
fn a_server_of_one_family_serves_that_one() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(1, 1))));
    script.tell(Event::Resynced(vec![dual("a", 1)]));
    script.confirm(1);

    let commands = script.at(100).effect(heard(1, &[(V4, true), (V6, false)]));

    assert_eq!(commands, [publish_but(2, &[1], &[(1, V6)])]);
    script.confirm(2);
    assert_eq!(script.states(), [BackendState::Ready]);
    let error = script.controller.snapshot(script.now).backends[0].last_error.clone();
    assert_eq!(error.as_deref(), Some("no clients of IPv6 are led to it: refused"));
    assert!(script.kinds().contains(&DecisionKind::Unhealthy), "it is told");
    // It is told once, and changes nothing.
    for second in 3..20 {
        script.at(second * 1000).tick();
        assert_eq!(script.effect(heard(1, &[(V4, true), (V6, false)])), []);
    }
    assert_eq!(script.kinds(), []);

    // It may come later.
    script.at(22_000).tick();
    assert_eq!(script.effect(heard(1, &[(V4, true), (V6, true)])), [publish(3, &[1], &[])]);
    assert_eq!(script.controller.snapshot(script.now).backends[0].last_error, None);
}

#[test]
fn a_family_that_fails_leaves_alone_and_comes_back() {
    let mut script = running_dual(2);
    let mut check = |second: u64, passes: bool| {
        script.at(second * 1000).tick();
        let _other = script.tell(heard(1, &[(V4, true), (V6, true)]));
        let commands = script.effect(heard(2, &[(V4, true), (V6, passes)]));
        if let [Command::Publish(publication)] = commands.as_slice() {
            script.confirm(publication.generation);
        }
        assert_eq!(script.states(), [BackendState::Ready; 2]);
        commands
    };

    assert_eq!(check(2, false), []);
    assert_eq!(check(4, false), []);
    assert_eq!(check(6, false), [publish_but(4, &[1, 2], &[(2, V6)])]);
    assert_eq!(check(8, true), []);
    assert_eq!(check(10, true), [publish(5, &[1, 2], &[])]);
}

#[test]
fn the_last_backend_of_a_family_is_kept() {
    let mut script = running_dual(2);
    for second in [2, 4, 6, 8] {
        script.at(second * 1000).tick();
        for ordinal in [1, 2] {
            if let [Command::Publish(publication)] =
                script.effect(heard(ordinal, &[(V4, true), (V6, false)])).as_slice()
            {
                assert_eq!(publication.deaf, [(id("a"), V6)].into(), "only the first one may go");
                script.confirm(publication.generation);
            }
        }
    }
    assert_eq!(script.kinds(), [DecisionKind::Unhealthy, DecisionKind::KeptLast]);
}

#[test]
fn a_family_that_refuses_its_clients_is_put_aside_alone() {
    let mut script = running_dual(2);
    let counted = |began: u64, refused: u64| Event::Swept {
        began: ms(began),
        flows: BTreeMap::new(),
        answers: [
            ((id("a"), V4), Answers { accepted: 0, refused: 0, waiting: 0 }),
            ((id("a"), V6), Answers { accepted: 0, refused, waiting: 0 }),
        ]
        .into(),
    };
    script.at(1_000).effect(counted(900, 0));

    let commands = script.at(1_500).effect(counted(1_400, 5));

    assert_eq!(commands, [publish_but(4, &[1, 2], &[(1, V6)])]);
    assert_eq!(script.states(), [BackendState::Ready; 2], "clients of IPv4 are served");
    script.confirm(4);
    // Its checks pass, and are not believed for ten seconds.
    let mut came_back = None;
    for second in 2..20 {
        script.at(second * 1000).tick();
        script.tell(heard(2, &[(V4, true), (V6, true)]));
        if script.effect(heard(1, &[(V4, true), (V6, true)])) == [publish(5, &[1, 2], &[])] {
            came_back.get_or_insert(second);
            script.confirm(5);
        }
    }
    assert_eq!(came_back, Some(14), "after ten seconds, and two checks");
}

#[test]
fn a_backend_fails_when_every_family_that_it_serves_does() {
    let mut script = running_dual(2);
    for second in [2, 4] {
        script.at(second * 1000).tick();
        script.tell(heard(1, &[(V4, true), (V6, true)]));
        assert_eq!(script.effect(heard(2, &[(V4, false), (V6, false)])), []);
    }
    script.at(6_000).tick();

    assert_eq!(script.effect(heard(2, &[(V4, false), (V6, false)])), [publish(4, &[1], &[2])]);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Unhealthy]);
}

#[test]
fn a_backend_that_was_served_in_one_family_goes_on_and_the_other_follows() {
    let settings = Settings {
        adopted_ready: [(id("a"), sighting("", 1).address.unwrap())].into(),
        ..Settings::new(Scaling::Auto(law(1, 1)))
    };
    let mut script = Script::new(settings);

    let commands = script.tell(Event::Resynced(vec![dual("a", 1)]));

    assert_eq!(commands, [publish_but(1, &[1], &[(1, V6)]), probe(1)], "it keeps its slot");
    script.confirm(1);
    assert_eq!(script.effect(heard(1, &[(V4, true), (V6, true)])), [publish(2, &[1], &[])]);
}

#[test]
fn a_backend_that_gets_another_address_keeps_what_it_has() {
    let mut script = Script::running(1, 1, 1);

    let commands = script.effect(Event::BackendSeen(dual("a", 1)));

    assert_eq!(commands, [publish_but(3, &[1], &[(1, V6)])]);
    assert_eq!(script.states(), [BackendState::Ready]);
    script.confirm(3);
    script.tick();
    assert_eq!(script.effect(heard(1, &[(V4, true), (V6, true)])), [publish(4, &[1], &[])]);
}

#[test]
fn a_backend_that_refuses_in_one_family_and_fails_in_the_other_falls() {
    let mut script = running_dual(2);
    let counted = |began: u64, refused: u64| Event::Swept {
        began: ms(began),
        flows: BTreeMap::new(),
        answers: [((id("b"), V4), Answers { accepted: 0, refused, waiting: 0 })].into(),
    };
    script.at(1_000).effect(counted(900, 0));
    script.at(2_000).tick();
    script.tell(heard(2, &[(V4, true), (V6, false)]));

    let commands = script.at(2_500).effect(counted(2_400, 5));

    assert_eq!(commands, [publish(4, &[1], &[2])]);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Unhealthy]);
}
