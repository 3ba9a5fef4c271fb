//! Who is frozen, when, and how it comes back.

use super::*;

fn settings(min: u32, max: u32, warm: u32) -> Settings {
    Settings { warm, ..Settings::new(Scaling::Auto(law(min, max))) }
}

fn freeze(ordinal: u32) -> Command {
    Command::Freeze { id: id(&name(ordinal)) }
}

fn thaw(ordinal: u32) -> Command {
    Command::Thaw { id: id(&name(ordinal)) }
}

fn frozen(ordinal: u32) -> Event {
    Event::Frozen { id: id(&name(ordinal)) }
}

fn thawed(ordinal: u32) -> Event {
    Event::Thawed { id: id(&name(ordinal)) }
}

/// A publication with one backend, which is asleep.
fn publish_asleep(generation: u64, ordinal: u32) -> Command {
    match publish(generation, &[ordinal], &[]) {
        Command::Publish(publication) => {
            Command::Publish(Publication { asleep: [id(&name(ordinal))].into(), ..publication })
        }
        other => unreachable!("{other:?}"),
    }
}

fn arrived(arrivals: f64) -> Event {
    Event::Measured(Box::new(Measures { arrivals: Some(arrivals), ..Measures::default() }))
}

/// Looks once a second at a service to which nobody comes, and returns what that led to.
fn quiet(script: &mut Script, from: u64, to: u64) -> Vec<Command> {
    let second = |second: u64| {
        script.at(second * 1000);
        [script.effect(swept(second * 1000, &[])), script.effect(arrived(0.0))].concat()
    };
    (from..=to).flat_map(second).collect()
}

/// One whose only backend is frozen in its slots, 33 s after the beginning.
fn asleep() -> Script {
    let mut script = Script::running_with(settings(0, 4, 0), 1);
    assert_eq!(quiet(&mut script, 1, 29), []);
    assert_eq!(quiet(&mut script, 30, 30), [publish_asleep(3, 1)], "so long is the down window");
    assert_eq!(script.tell(Event::Published { generation: 3 }), []);
    script.at(31_000);
    assert_eq!(script.effect(swept(30_900, &[])), [], "it may have begun before the datapath told who comes");
    script.at(32_000);
    assert_eq!(script.effect(swept(31_000, &[])), [freeze(1)]);
    assert_eq!(script.at(32_005).tell(frozen(1)), []);
    assert_eq!(script.states(), [BackendState::Idle]);
    script
}

#[test]
fn the_last_one_sleeps_when_nobody_has_come_and_no_flow_is_left() {
    let mut script = asleep();

    assert_eq!(script.at(60_000).tick(), [], "who is frozen is asked nothing");
    assert_eq!(script.controller.snapshot(script.now).desired, 0);
    assert_eq!(script.problems(), Vec::<String>::new());
    assert_eq!(script.kinds(), [DecisionKind::ScaleDown]);
}

#[test]
fn whoever_comes_is_served_before_anything_else() {
    let mut script = asleep();

    assert_eq!(script.at(50_000).tell(Event::Woken { id: id("a") }), [thaw(1), publish(4, &[1], &[])]);
    assert_eq!(script.at(50_001).tell(thawed(1)), [probe(1)]);
    assert_eq!(script.states(), [BackendState::Ready]);
    assert_eq!(script.controller.snapshot(script.now).desired, 1);
    assert_eq!(
        script.controller.take_news().last().map(|news| (news.kind, news.from, news.to)),
        Some((DecisionKind::ScaleUp, 0, 1))
    );
    script.confirm(4);
    assert_eq!(script.tell(Event::Woken { id: id("a") }), [], "once is enough");
}

fn signalled(ordinal: u32) -> Event {
    Event::Signalled { id: id(&name(ordinal)) }
}

#[test]
fn who_gets_a_signal_is_thawed_to_take_it_and_its_service_sleeps_on() {
    let mut script = asleep();
    assert_eq!(script.at(50_000).tell(signalled(1)), [thaw(1), publish(4, &[1], &[])]);
    assert_eq!(script.at(50_001).effect(thawed(1)), []);
    script.confirm(4);
    assert_eq!(script.kinds(), [DecisionKind::ScaleDown, DecisionKind::Signalled]);
    assert_eq!(script.controller.snapshot(script.now).desired, 0, "nobody has come");

    // It may have something to finish, or take it for no reason to end.
    for second in 51..170 {
        assert_eq!(script.at(second * 1000).effect(swept(second * 1000, &[])), [], "after {second} s");
    }
    assert_eq!(script.controller.deadline(), Some(Timestamp::from_millis(170_000)));
    assert_eq!(script.at(170_000).effect(Event::Tick), [publish_asleep(5, 1)]);

    // One that does end is replaced, and the other sleeps.
    script.confirm(5);
    script.at(172_000).effect(swept(171_100, &[]));
    script.at(172_005).tell(frozen(1));
    script.at(173_000).tell(signalled(1));
    script.tell(thawed(1));
    let gone = Event::BackendGone { id: id(&name(1)), cause: GoneCause::Killed };
    let commands = script.at(173_100).effect(gone);
    assert_eq!(commands.last(), Some(&start(2)), "{commands:?}");
    assert_eq!(script.controller.snapshot(script.now).desired, 0);
}

#[test]
fn who_gets_a_signal_while_it_starts_is_not_frozen_in_its_grace() {
    for is_asked_to_end in [false, true] {
        let mut script = Script::new(settings(1, 4, 1));
        script.tell(Event::Resynced(Vec::new()));
        script.confirm(1);
        for ordinal in [1, 2] {
            script.effect(Event::BackendSeen(sighting(&name(ordinal), ordinal)));
            script.effect(Event::Started { ordinal, id: id(&name(ordinal)) });
        }
        if is_asked_to_end {
            assert_eq!(script.tell(signalled(2)), []);
        }
        assert_eq!(script.effect(passed(1)), [publish(2, &[1], &[])]);
        script.confirm(2);
        let commands = script.effect(passed(2));
        assert_eq!(commands.contains(&freeze(2)), !is_asked_to_end, "{commands:?}");
    }
}

#[test]
fn one_of_the_reserve_gets_a_signal_too_and_others_are_left_alone() {
    let mut script = with_reserve(4);
    assert_eq!(script.at(40_000).effect(signalled(1)), [], "who runs needs no thaw");
    assert_eq!(script.tell(signalled(2)), [thaw(2)]);
    assert_eq!(script.effect(thawed(2)), []);
    assert_eq!(script.at(60_000).effect(Event::Tick), []);
    assert_eq!(script.at(160_000).effect(Event::Tick), [freeze(2)], "it has not ended");
}

#[test]
fn a_connection_that_only_a_sweep_has_seen_wakes_as_well() {
    let mut script = asleep();

    assert_eq!(script.at(50_000).tell(swept(49_900, &[(1, 1)])), [thaw(1), publish(4, &[1], &[])]);
}

#[test]
fn who_has_a_client_is_not_frozen() {
    let mut script = Script::running_with(settings(0, 4, 0), 1);
    quiet(&mut script, 1, 30);
    script.confirm(3);

    // It has come while the publication was on its way.
    assert_eq!(script.at(31_900).effect(swept(31_500, &[(1, 1)])), [publish(4, &[1], &[])]);
    assert_eq!(script.controller.snapshot(script.now).desired, 1);
    script.confirm(4);
    // A connection that lasts, without anything new.
    for second in 33..100 {
        script.at(second * 1000);
        assert_eq!([script.effect(swept(second * 1000, &[(1, 1)])), script.effect(arrived(0.0))].concat(), []);
    }
}

#[test]
fn with_a_minimum_nobody_sleeps() {
    let mut script = Script::running_with(settings(1, 4, 0), 1);

    assert_eq!(quiet(&mut script, 1, 200), []);
}

#[test]
fn what_cannot_be_frozen_goes_on_running_and_is_tried_again() {
    let mut script = Script::running_with(settings(0, 4, 0), 1);
    quiet(&mut script, 1, 30);
    script.confirm(3);
    assert_eq!(script.at(32_000).effect(swept(31_000, &[])), [freeze(1)]);

    let failed = Event::FreezeFailed { id: id("a"), error: "a disk is slow".into() };
    assert_eq!(script.at(32_100).effect(failed), [thaw(1), publish(4, &[1], &[])]);
    assert_eq!(script.problems(), ["lb-test-1 goes on running: a disk is slow"]);
    assert_eq!(script.at(32_101).effect(thawed(1)), []);
    assert_eq!(script.states(), [BackendState::Ready]);
    script.confirm(4);
    assert_eq!(script.at(33_200).tick().last(), Some(&publish_asleep(5, 1)), "a second later");
    assert!(script.controller.deadline().is_some());
}

#[test]
fn a_thaw_that_fails_is_tried_again_at_once() {
    let mut script = asleep();
    script.at(50_000).tell(Event::Woken { id: id("a") });
    script.confirm(4);

    let failed = Event::ThawFailed { id: id("a"), error: "no such file".into() };
    assert_eq!(script.at(50_001).tell(failed), []);
    assert_eq!(script.controller.deadline(), Some(ms(50_021)));
    assert_eq!(script.at(50_021).tick(), [thaw(1)]);
}

#[test]
fn who_serves_and_cannot_be_thawed_is_told_of_and_replaced() {
    let mut script = asleep();
    let fail = |script: &mut Script, commands: Vec<Command>| match commands.contains(&thaw(1)) {
        true => [commands, script.effect(Event::ThawFailed { id: id("a"), error: "it is above".into() })].concat(),
        false => commands,
    };
    let woken = script.at(50_000).effect(Event::Woken { id: id("a") });
    fail(&mut script, woken);
    script.confirm(4);

    let started = (50_100..100_000).step_by(100).find(|millis| {
        let due = script.at(*millis).tick();
        fail(&mut script, due).contains(&start(2))
    });

    assert!(started.is_some_and(|at| (80_000..82_000).contains(&at)), "as long as others may fail: {started:?}");
    assert_eq!(script.problems(), ["lb-test-1 stays frozen: it is above"]);
    assert!(script.kinds().contains(&DecisionKind::KeptLast));
    script.effect(Event::BackendSeen(sighting("b", 2)));
    script.effect(Event::Started { ordinal: 2, id: id("b") });
    assert_eq!(script.effect(passed(2)).first(), Some(&publish(5, &[2], &[1])));
    script.confirm(5);
    assert!(script.at(200_000).effect(swept(199_000, &[])).contains(&stop(1)), "as it is");
}

#[test]
fn who_is_thawed_at_last_has_to_pass_its_checks_again() {
    let mut script = asleep();
    script.at(50_000).tell(Event::Woken { id: id("a") });
    script.confirm(4);
    for half in 101..120 {
        if script.at(half * 500).tick().contains(&thaw(1)) {
            script.effect(Event::ThawFailed { id: id("a"), error: "it is above".into() });
        }
    }

    assert_eq!(script.at(60_100).tell(thawed(1)), [probe(1)]);
    assert_eq!(script.effect(passed(1)), []);
    assert_eq!((script.problems(), script.states()), (Vec::new(), vec![BackendState::Ready]));
    assert_eq!(script.at(120_000).effect(Event::Tick), [], "nobody is to replace it");
}

/// One that runs with one backend and one in reserve.
fn with_reserve(max: u32) -> Script {
    let mut script = Script::new(settings(1, max, 1));
    assert_eq!(script.tell(Event::Resynced(Vec::new())), [publish(1, &[], &[]), start(1), start(2)]);
    script.confirm(1);
    for ordinal in [1, 2] {
        script.effect(Event::BackendSeen(sighting(&name(ordinal), ordinal)));
        script.effect(Event::Started { ordinal, id: id(&name(ordinal)) });
    }
    assert_eq!(script.effect(passed(1)), [publish(2, &[1], &[])]);
    script.confirm(2);
    assert_eq!(script.effect(passed(2)), [freeze(2)], "enough are ready");
    assert_eq!(script.at(100).tell(frozen(2)), []);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Warm]);
    script
}

#[test]
fn the_reserve_comes_first_and_is_filled_up_behind() {
    let mut script = with_reserve(4);

    assert_eq!(script.loaded(40.0, 1, 4), [thaw(2), start(3)]);
    assert_eq!(script.at(4_001).tell(thawed(2)), [publish(3, &[1, 2], &[]), probe(2)]);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Ready]);
    script.confirm(3);

    script.at(4_300).effect(Event::BackendSeen(sighting("c", 3)));
    assert_eq!(script.at(4_310).effect(passed(3)), [freeze(3)]);
}

#[test]
fn one_that_drains_is_kept_where_the_reserve_is_short() {
    let mut script = with_reserve(2);
    script.loaded(80.0, 1, 4);
    script.tell(thawed(2));
    script.confirm(3);
    // The start that was to fill the reserve has failed, and is not tried again while one drains.
    script.at(5_000).effect(Event::StartFailed { ordinal: 3, error: "out of space".into() });

    let commands = script.loaded(0.0, 6, 40);
    assert_eq!(commands.iter().filter(|command| matches!(command, Command::Start { .. })).count(), 1, "{commands:?}");
    script.effect(Event::StartFailed { ordinal: 3, error: "out of space".into() });
    let generation = commands.iter().find_map(|command| match command {
        Command::Publish(publication) if publication.draining == [id("b")] => Some(publication.generation),
        _ => None,
    });
    script.confirm(generation.expect("the newest drains"));
    let commands = script.at(42_000).effect(swept(41_500, &[]));
    assert_eq!(commands, [publish(5, &[1], &[])], "not before the datapath has let go of it");
    assert_eq!(script.confirm(5), [freeze(2)]);
    assert_eq!(script.tell(frozen(2)), []);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Warm]);
}

#[test]
fn who_is_frozen_is_thawed_before_it_is_stopped() {
    let mut script = with_reserve(4);

    let commands = script.at(10_000).effect(Event::StopRequested);
    assert_eq!(commands, [thaw(2), publish(3, &[], &[1])]);
    assert_eq!(script.at(10_001).tell(thawed(2)), [stop(2)]);
}

#[test]
fn who_cannot_be_thawed_is_stopped_as_it_is() {
    let mut script = with_reserve(4);
    script.at(10_000).effect(Event::StopRequested);
    let mut commands = Vec::new();
    for try_ in 1..=4_u64 {
        let failed = Event::ThawFailed { id: id("b"), error: "no such file".into() };
        commands.extend(script.at(10_000 + try_ * 1000).effect(failed));
        commands.extend(script.at(10_500 + try_ * 1000).effect(Event::Tick));
    }

    assert!(commands.contains(&stop(2)), "{commands:?}");
}

#[test]
fn the_reserve_shrinks_with_its_setting_and_keeps_nobody_of_other_settings() {
    let mut script = with_reserve(4);
    let new = Reconfiguration { warm: 0, ..reconfigured(Scaling::Auto(law(1, 4))) };
    assert_eq!(script.at(5_000).effect(Event::Reconfigured(Box::new(new))), [thaw(2)]);
    assert_eq!(script.tell(thawed(2)), [stop(2)]);

    let mut script = with_reserve(4);
    let outdated = Sighting { outdated: true, ..sighting("b", 2) };
    let commands = script.at(5_000).effect(Event::BackendSeen(outdated));
    assert_eq!(commands, [thaw(2), start(3)], "another comes in its place");
    assert_eq!(script.effect(thawed(2)), [stop(2)]);
    assert_eq!(script.at(5_001).effect(Event::Stopped { id: id("b") }), []);
}

#[test]
fn the_reserve_of_a_former_agent_is_no_demand() {
    let adopted_ready = [(id("a"), sighting("a", 1).address.unwrap())].into();
    let mut script = Script::new(Settings { adopted_ready, adopted_warm: [id("b")].into(), ..settings(1, 4, 1) });

    script.tell(Event::Resynced(vec![sighting("a", 1), sighting("b", 2)]));

    assert_eq!(script.controller.snapshot(script.now).desired, 1);
    script.confirm(1);
    assert_eq!(script.effect(passed(2)), [freeze(2)], "it has passed its check again");
}

#[test]
fn who_dies_frozen_is_replaced() {
    let mut script = asleep();
    assert_eq!(script.at(40_000).tell(gone(1, GoneCause::Removed)), [publish(4, &[], &[]), start(1)]);

    let mut script = with_reserve(4);
    assert_eq!(script.at(40_000).effect(gone(2, GoneCause::Removed)), [start(2)]);
}

#[test]
fn what_the_engine_has_paused_is_the_engines_to_thaw() {
    let mut script = asleep();

    let commands = script.at(40_000).tell(gone(1, GoneCause::Paused));

    assert!(!commands.contains(&thaw(1)), "{commands:?}");
    assert_eq!(script.states(), [BackendState::Unhealthy]);
}

#[test]
fn whoever_is_left_serving_is_not_left_asleep() {
    let mut script = asleep();
    let new = Reconfiguration { keep: true, ..reconfigured(Scaling::Auto(law(0, 4))) };
    script.at(40_000).effect(Event::Reconfigured(Box::new(new)));

    assert_eq!(script.tell(Event::StopRequested), [thaw(1), Command::Finish]);
}

#[test]
fn who_cannot_be_reached_while_it_sleeps_comes_back_by_its_checks() {
    let mut script = asleep();
    let lost = Event::BackendUnreachable { id: id("a"), error: "its device is gone".into() };

    assert_eq!(script.at(40_000).effect(lost).first(), Some(&thaw(1)));
    script.confirm(4);
    assert!(script.at(40_001).tell(thawed(1)).contains(&probe(1)));
    script.at(40_002).effect(passed(1));
    script.at(42_002).tick();
    script.at(42_003).effect(passed(1));

    assert_eq!(script.states(), [BackendState::Ready]);
}

#[test]
fn who_sleeps_is_replaced_by_one_that_sleeps_and_a_count_by_hand_wakes_it() {
    let mut script = Script::new(settings(0, 4, 1));
    script.tell(Event::Resynced(Vec::new()));
    script.confirm(1);
    let come = |script: &mut Script, ordinal: u32| {
        script.effect(Event::BackendSeen(sighting(&name(ordinal), ordinal)));
        script.effect(Event::Started { ordinal, id: id(&name(ordinal)) });
        script.effect(passed(ordinal))
    };
    come(&mut script, 1);
    script.confirm(2);
    assert_eq!(come(&mut script, 2), [freeze(2)]);
    script.tell(frozen(2));
    quiet(&mut script, 1, 30);
    script.confirm(3);
    assert_eq!(script.at(32_000).effect(swept(31_000, &[])), [freeze(1)]);
    script.tell(frozen(1));
    assert_eq!(script.states(), [BackendState::Idle, BackendState::Warm]);

    let old = |ordinal: u32| Event::BackendSeen(Sighting { outdated: true, ..sighting(&name(ordinal), ordinal) });
    assert_eq!(script.at(40_000).effect(old(2)), [thaw(2), start(3)], "the reserve first");
    assert_eq!(script.effect(thawed(2)), [stop(2)]);
    assert_eq!(script.effect(old(1)), []);
    assert_eq!(script.effect(Event::Ordered(Order::Rollout { parallel: 1 })), [start(4)]);
    script.effect(Event::Stopped { id: id(&name(2)) });
    let commands = come(&mut script, 3);
    assert!(matches!(commands.as_slice(), [Command::Publish(both)] if both.asleep.len() == 2), "{commands:?}");
    let drained = script.confirm(4);
    assert_eq!(drained.first(), Some(&thaw(1)), "not before its successor has its slots: {drained:?}");
    assert_eq!(come(&mut script, 4), [freeze(4)]);
    script.tell(thawed(1));
    script.tell(frozen(4));
    script.confirm(5);
    let mut commands = script.at(43_000).effect(swept(42_000, &[]));
    commands.extend(script.confirm(6));
    commands.extend(script.at(45_000).effect(swept(44_500, &[])));
    let at = |wanted: Command| commands.iter().position(|command| *command == wanted);
    assert!(at(stop(1)).is_some() && at(freeze(3)).is_some(), "{commands:?}");
    script.effect(Event::Stopped { id: id(&name(1)) });
    script.tell(frozen(3));
    assert_eq!(script.states(), [BackendState::Idle, BackendState::Warm]);
    assert_eq!(script.controller.snapshot(script.now).rollout, None);
    assert!(matches!(script.at(60_000).tick().as_slice(), [Command::Publish(_)]), "whose drain is over");
    assert_eq!(script.confirm(7), []);

    let count = Order::Count { count: 2, lasting: None, reach: Reach::Bounds };
    let commands = script.at(61_000).effect(Event::Ordered(count));
    assert_eq!(commands[..2], [thaw(3), thaw(4)]);
    assert!(commands.contains(&start(1)), "the reserve is filled up behind: {commands:?}");
    assert_eq!(quiet(&mut script, 62, 200).iter().filter(|it| matches!(it, Command::Freeze { .. })).count(), 0);
}
