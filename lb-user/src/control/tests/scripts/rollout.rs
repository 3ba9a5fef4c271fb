//! Containers of former settings are replaced: new ones first, old ones afterwards, and none of them where that fails.

use super::*;

const ROLLOUT: Event = Event::Ordered(Order::Rollout { parallel: 1 });

fn old(ordinal: u32) -> Sighting {
    Sighting { outdated: true, ..sighting(&name(ordinal), ordinal) }
}

/// A service whose containers are all outdated.
fn outdated(wanted: u32, max: u32) -> Script {
    let mut script = Script::running(wanted, max, wanted);
    let there: Vec<Sighting> = (1..=wanted).map(old).collect();
    assert_eq!(script.at(200).effect(Event::Resynced(there)), []);
    script.controller.take_news();
    script
}

impl Script {
    /// A container is there, and its start was confirmed.
    fn comes(&mut self, ordinal: u32) {
        self.tell(Event::BackendSeen(sighting(&name(ordinal), ordinal)));
        assert_eq!(self.effect(Event::Started { ordinal, id: id(&name(ordinal)) }), []);
    }

    fn told(&mut self, kind: DecisionKind) -> Vec<String> {
        let news = self.controller.take_news().into_iter();
        news.filter(|decision| decision.kind == kind).map(|decision| decision.reason).collect()
    }

    fn progress(&self) -> Option<(u32, u32)> {
        self.controller.snapshot(self.now).rollout.map(|rollout| (rollout.replaced, rollout.of))
    }
}

#[test]
fn one_after_the_other_is_replaced_the_new_one_first() {
    let mut script = outdated(2, 2);
    assert_eq!(script.at(300).effect(ROLLOUT), [start(3)], "one more than the most");
    assert_eq!(script.progress(), Some((0, 2)));
    assert_eq!(script.problems(), Vec::<String>::new(), "what is being done is no problem");

    script.at(400).comes(3);
    assert_eq!(script.at(500).effect(passed(3)), [publish(4, &[1, 2, 3], &[])], "it has no slot yet");
    assert_eq!(script.at(501).effect(Event::Published { generation: 4 }), [publish(5, &[1, 3], &[2]), start(4)]);
    assert_eq!(script.progress(), Some((1, 2)));
    assert_eq!(script.at(502).confirm(5), []);

    script.at(600).comes(4);
    assert_eq!(script.effect(passed(4)), [publish(6, &[1, 3, 4], &[2])]);
    assert_eq!(script.at(601).effect(Event::Published { generation: 6 }), [publish(7, &[3, 4], &[1, 2])]);
    script.confirm(7);
    assert_eq!(script.progress(), None);
    assert_eq!(
        script.told(DecisionKind::Rollout),
        ["2 of former settings or a former image are replaced, 1 at a time", "finished: 2 were replaced in 0 s"]
    );

    let commands = script.at(2_700).effect(swept(2_650, &[]));
    assert_eq!(commands, [stop(1), stop(2)], "they have no connections left");
    assert_eq!(script.at(2_701).loaded(0.0, 3, 9), [], "and nothing else is to be done");
}

#[test]
fn an_old_one_keeps_its_connections_until_they_end_and_is_never_needed_again() {
    let mut script = outdated(1, 4);
    script.at(300).effect(ROLLOUT);
    script.comes(2);
    assert_eq!(script.effect(passed(2)), [publish(3, &[1, 2], &[])]);
    assert_eq!(script.confirm(3), []);
    assert_eq!(script.states(), [BackendState::Draining, BackendState::Ready]);

    assert_eq!(script.at(5_000).effect(swept(4_900, &[(1, 7)])), []);
    let commands = script.loaded(100.0, 6, 10);
    assert!(commands.contains(&start(3)) && commands.contains(&start(4)), "{commands:?}");
    assert_eq!(script.states()[0], BackendState::Draining, "it is not what is wanted more of");
}

#[test]
fn several_are_replaced_at_a_time_if_that_is_asked_for() {
    let mut script = outdated(3, 3);
    assert_eq!(script.at(300).effect(Event::Ordered(Order::Rollout { parallel: 2 })), [start(4), start(5)]);
    script.comes(4);
    script.comes(5);
    script.effect(passed(4));
    script.effect(passed(5));
    assert_eq!(script.confirm(5), [start(6)]);

    assert_eq!(script.progress(), Some((2, 3)));
    let ready = script.states().iter().filter(|state| **state == BackendState::Ready).count();
    assert_eq!(ready, 3);
}

#[test]
fn where_nothing_is_known_to_be_outdated_the_next_list_tells() {
    const ASKED: &str = "asked for: whether any is of former settings or a former image is looked up";
    let mut script = Script::running(2, 4, 2);
    assert_eq!(script.at(300).effect(ROLLOUT), []);
    assert_eq!(script.progress(), Some((0, 0)));
    assert_eq!(script.at(400).effect(Event::Resynced(vec![sighting("a", 1), sighting("b", 2)])), []);
    assert_eq!(script.progress(), None);
    assert_eq!(script.told(DecisionKind::Rollout), [ASKED, "every container is of today's image and settings"]);

    script.at(500).effect(ROLLOUT);
    assert_eq!(script.at(600).effect(Event::Resynced(vec![old(1), sighting("b", 2)])), [start(3)]);
    assert_eq!(script.progress(), Some((0, 1)));

    let mut script = Script::running(2, 4, 2);
    script.at(300).effect(ROLLOUT);
    script.effect(Event::Ordered(Order::AbortRollout));
    assert_eq!(script.at(400).effect(Event::Resynced(vec![old(1), old(2)])), []);
    assert_eq!(script.told(DecisionKind::RolloutAborted), ["it was asked for, and had not begun"]);
}

/// What is told of it, what happens, and what the controller tells then.
type Failure = (&'static str, fn(&mut Script), &'static str);

/// What may become of a new container.
fn failures() -> [Failure; 5] {
    [
        (
            "it cannot be started",
            |script| {
                script.effect(Event::StartFailed { ordinal: 4, error: "no such image".into() });
            },
            "no such image",
        ),
        (
            "it ends at once",
            |script| {
                script.comes(4);
                script.effect(died(4));
            },
            "lb-test-4: ended with exit code 1",
        ),
        (
            "it does not pass its checks",
            |script| {
                script.comes(4);
                for second in 1..=31 {
                    script.at(300 + second * 1_000).tick();
                    script.tell(failed(4));
                }
            },
            "lb-test-4 is not ready after 30 s: refused",
        ),
        (
            "it ends after it was ready",
            |script| {
                script.comes(4);
                script.effect(passed(4));
                script.effect(died(4));
            },
            "lb-test-4: ended with exit code 1",
        ),
        (
            "somebody asks for it",
            |script| {
                script.comes(4);
                script.effect(passed(4));
                script.effect(Event::Ordered(Order::AbortRollout));
            },
            "it was asked for",
        ),
    ]
}

#[test]
fn one_that_fails_ends_the_rollout_and_the_old_ones_stay() {
    for (case, fail, why) in failures() {
        let mut script = outdated(3, 3);
        assert_eq!(script.at(300).effect(ROLLOUT), [start(4)]);
        fail(&mut script);

        let told = script.told(DecisionKind::RolloutAborted);
        assert_eq!(told, [format!("{why}: 0 are replaced, and 3 of before stay in service")], "{case}");
        assert_eq!(script.states()[..3], [BackendState::Ready; 3], "{case}");
        assert!(script.states()[3..].iter().all(|state| *state != BackendState::Ready), "{case}: the new one goes");
        let problems = script.problems();
        let problem = format!("rollout aborted: {why}; `lb-user rollout` tries again");
        assert!(problems.contains(&problem), "{case}: {problems:?}");
        for second in 40..100 {
            let commands = script.at(second * 1_000).effect(load(0.0));
            assert!(!commands.iter().any(|command| matches!(command, Command::Start { .. })), "{case}: {commands:?}");
        }
        assert_eq!(script.states()[..3], [BackendState::Ready; 3], "{case}: and stay");
        assert_eq!(script.progress(), None);
    }
}

#[test]
fn an_old_one_that_dies_is_replaced_and_ends_nothing() {
    let mut script = outdated(2, 2);
    script.at(300).effect(ROLLOUT);
    script.comes(3);

    let commands = script.at(400).effect(died(1));
    assert_eq!(commands[0], publish(4, &[2], &[]));
    assert!(script.told(DecisionKind::RolloutAborted).is_empty());
    assert_eq!(script.progress(), Some((0, 1)));

    script.confirm(4);
    script.effect(passed(3));
    script.confirm(5);
    assert_eq!(script.states()[1..], [BackendState::Ready, BackendState::Ready], "one more is needed before it may go");
}

#[test]
fn what_has_gone_already_comes_back_where_a_rollout_fails_and_it_is_missed() {
    let mut script = outdated(2, 2);
    script.at(300).effect(ROLLOUT);
    script.comes(3);
    script.effect(passed(3));
    assert_eq!(script.confirm(4), [start(4)]);
    assert_eq!(script.states()[..3], [BackendState::Ready, BackendState::Draining, BackendState::Ready]);

    script.at(1_000).effect(died(3));
    assert_eq!(script.states()[..2], [BackendState::Ready, BackendState::Ready]);
    assert!(script.kinds().contains(&DecisionKind::DrainCancelled));
}

#[test]
fn an_aborted_rollout_is_tried_again_when_it_is_asked_for_or_settings_change() {
    let again: [fn(&mut Script) -> Vec<Command>; 2] = [
        |script| script.effect(ROLLOUT),
        |script| {
            let scaling = Scaling::Auto(law(2, 2));
            let new = Reconfiguration { on_change: OnChange::Rollout, ..reconfigured(scaling) };
            script.effect(Event::Reconfigured(Box::new(new)))
        },
    ];
    for again in again {
        let mut script = outdated(2, 2);
        script.at(300).effect(ROLLOUT);
        script.effect(Event::StartFailed { ordinal: 3, error: "no such image".into() });
        assert_eq!(script.at(2_000).effect(Event::Tick), []);

        assert_eq!(again(script.at(3_000)), [start(3)]);
        assert_eq!(script.progress(), Some((0, 2)));
    }
}

#[test]
fn it_may_happen_by_itself() {
    let settings = Settings { on_change: OnChange::Rollout, ..Settings::new(Scaling::Auto(law(2, 2))) };
    let mut script = Script::running_with(settings, 2);

    assert_eq!(script.at(300).effect(Event::Resynced(vec![old(1), old(2)])), [start(3)]);
    assert_eq!(script.progress(), Some((0, 2)));

    script.effect(Event::StartFailed { ordinal: 3, error: "no such image".into() });
    assert_eq!(script.at(60_000).effect(Event::Resynced(vec![old(1), old(2)])), [], "once failed, it waits");
}

#[test]
fn while_the_engine_is_away_nothing_is_replaced() {
    let mut script = outdated(2, 2);
    script.at(300).effect(ROLLOUT);
    script.comes(3);
    script.effect(Event::ProviderLost { error: "gone fishing".into() });
    script.effect(passed(3));
    assert_eq!(script.confirm(4), []);
    assert_eq!(script.states(), [BackendState::Ready; 3]);

    let there = vec![old(1), old(2), sighting("c", 3)];
    let commands = script.at(9_000).effect(Event::Resynced(there));
    assert_eq!(commands, [publish(5, &[1, 3], &[2]), start(4)]);
}

#[test]
fn the_law_goes_on_beside_it() {
    let mut script = outdated(2, 8);
    assert_eq!(script.at(300).effect(ROLLOUT), [start(3)]);
    let starts: Vec<Command> = script.loaded(50.0, 1, 4);
    assert_eq!(starts, [start(4), start(5)], "four are wanted, and one beside them");
    assert_eq!(script.progress(), Some((0, 2)));
}

#[test]
fn the_end_of_the_agent_ends_it() {
    let mut script = outdated(2, 2);
    script.at(300).effect(ROLLOUT);
    script.comes(3);

    script.effect(Event::StopRequested);
    assert_eq!(script.progress(), None);
    let mut states = script.states();
    assert_eq!(states.pop(), Some(BackendState::Stopping), "nobody was led to the new one");
    assert_eq!(states, [BackendState::Draining; 2]);
}

#[test]
fn another_agent_goes_on_with_it() {
    let mut script = outdated(2, 8);
    script.at(300).effect(Event::Ordered(Order::Rollout { parallel: 2 }));
    script.comes(3);
    script.comes(4);
    let told = |script: &Script| {
        let ControlReport { desired, rollout, .. } = script.controller.snapshot(script.now);
        (desired, rollout.map(|rollout| (rollout.parallel, rollout.replaced, rollout.of)))
    };
    assert_eq!(told(&script), (2, Some((2, 0, 2))));

    // The first one is killed before it knows what there is.
    for is_listed in [false, true] {
        let ControlReport { desired, rollout, .. } = script.controller.snapshot(script.now);
        let ready = (1..=2).map(|ordinal| (id(&name(ordinal)), sighting("", ordinal).address.unwrap())).collect();
        let now = script.now.elapsed().as_millis() as u64;
        script = Script::new(Settings {
            adopted_ready: ready,
            adopted_desired: Some(desired),
            adopted_rollout: rollout,
            ..Settings::new(Scaling::Auto(law(1, 8)))
        });
        script.at(now + 1_000);
        if is_listed {
            let there = vec![old(1), old(2), sighting(&name(3), 3), sighting(&name(4), 4)];
            let commands = script.tell(Event::Resynced(there));
            assert!(!commands.iter().any(|command| matches!(command, Command::Start { .. })), "{commands:?}");
        }
        assert_eq!(told(&script), (2, Some((2, 0, 2))), "two are wanted, though four are there");
    }
    assert_eq!(
        script.told(DecisionKind::Rollout),
        ["what a former agent was at goes on: 0 of 2 are replaced, 2 at a time"]
    );
}

#[test]
fn another_agent_looks_up_what_was_asked_for() {
    let mut script = Script::running(2, 4, 2);
    script.at(300).effect(ROLLOUT);
    let rollout = script.controller.snapshot(script.now).rollout;

    let settings = Settings { adopted_rollout: rollout, ..Settings::new(Scaling::Auto(law(2, 4))) };
    let mut next = Script::new(settings.clone());
    next.at(2_000).tell(Event::Resynced(vec![sighting("a", 1), sighting("b", 2)]));
    assert_eq!(next.told(DecisionKind::Rollout), ["every container is of today's image and settings"]);

    let mut next = Script::new(settings);
    next.at(2_000).tell(Event::Resynced(vec![old(1), old(2)]));
    assert_eq!(next.progress(), Some((0, 2)));
}

/// An agent that has taken over from one that was at a rollout, and does not know yet what there is.
fn successor(keep: bool) -> Script {
    let adopted = RolloutReport { since: Timestamp::ZERO, parallel: 1, replaced: 0, of: 2 };
    Script::new(Settings {
        adopted_rollout: Some(adopted),
        adopted_desired: Some(2),
        keep,
        ..Settings::new(Scaling::Auto(law(1, 8)))
    })
}

#[test]
fn an_agent_that_ends_before_it_knows_anything_hands_it_on() {
    let mut script = successor(true);
    script.at(100).tell(Event::StopRequested);
    assert_eq!(script.progress(), Some((0, 2)), "the next one goes on with it");
}

#[test]
fn what_is_ordered_before_anything_is_known_goes_before_what_was_adopted() {
    let mut script = successor(false);
    script.at(100).tell(Event::Ordered(Order::AbortRollout));
    assert_eq!(script.progress(), None);
    script.at(200).tell(Event::Resynced(vec![old(1), old(2)]));
    assert_eq!(script.progress(), None, "it was aborted");

    let mut script = successor(false);
    script.at(100).tell(Event::Ordered(Order::Rollout { parallel: 2 }));
    script.at(200).tell(Event::Resynced(vec![old(1), old(2)]));
    let rollout = script.controller.snapshot(script.now).rollout;
    assert_eq!(rollout.map(|rollout| (rollout.parallel, rollout.of)), Some((2, 2)));
}
