//! Deaths that are told twice: by the kernel, and a moment later by the engine.

use super::*;

fn reasons(script: &mut Script) -> Vec<(DecisionKind, String)> {
    script.controller.take_news().into_iter().map(|decision| (decision.kind, decision.reason)).collect()
}

fn exited(ordinal: u32, code: i64) -> Event {
    gone(ordinal, GoneCause::Died { exit_code: Some(code), oom: false })
}

#[test]
fn a_death_that_is_told_twice_is_published_at_the_first_and_recorded_at_the_second() {
    let mut script = Script::running(3, 3, 3);

    assert_eq!(script.at(1_000).effect(gone(2, GoneCause::Ended)), [publish(5, &[1, 3], &[])]);
    script.confirm(5);
    assert_eq!(script.kinds(), [], "how it ended is not known");
    assert_eq!(script.effect(gone(2, GoneCause::Ended)), [], "once more");
    assert_eq!(script.at(1_060).effect(exited(2, 137)), []);

    let died = |reason: &str| (DecisionKind::BackendDied, reason.to_owned());
    assert_eq!(reasons(&mut script), [died("lb-test-2: ended with exit code 137")]);
    assert_eq!(script.problems(), ["lb-test-2: ended with exit code 137 (the next try is in 2 s)"], "counted once");
    assert_eq!(script.effect(exited(2, 137)), [], "a third time");
    assert_eq!(script.at(2_060).effect(Event::Tick), [start(4)], "the brake begins when it is known");
    assert_eq!(script.at(3_000).effect(Event::Tick), [remove(2)]);
    assert_eq!(script.kinds(), [DecisionKind::Start]);
}

#[test]
fn the_brake_waits_to_be_told_whether_a_short_life_was_ended_from_outside() {
    for (cause, starts) in [(GoneCause::Killed, true), (GoneCause::Died { exit_code: Some(1), oom: false }, false)] {
        let mut script = Script::running(2, 2, 2);
        script.at(1_000).effect(gone(2, GoneCause::Ended));
        assert_eq!(script.confirm(4), [], "nothing is started yet");

        let commands = script.at(1_050).effect(gone(2, cause));

        assert_eq!(commands, if starts { vec![start(3)] } else { vec![] }, "{cause}");
    }
}

#[test]
fn one_that_has_lived_is_replaced_before_it_is_told_how_it_ended() {
    let mut script = Script::running(2, 2, 2);

    assert_eq!(script.at(20_000).effect(gone(2, GoneCause::Ended)), [publish(4, &[1], &[]), start(3)]);
    assert_eq!(script.at(20_050).effect(gone(2, GoneCause::Died { exit_code: None, oom: true })), []);

    let died = (DecisionKind::BackendDied, "lb-test-2: killed for want of memory".to_owned());
    assert!(reasons(&mut script).contains(&died));
    assert_eq!(script.problems(), [""; 0]);
}

#[test]
fn an_engine_that_does_not_tell_is_not_waited_for() {
    let mut script = Script::running(2, 2, 2);
    script.at(1_000).effect(gone(2, GoneCause::Ended));
    script.confirm(4);
    script.tell(Event::ProviderLost { error: "gone".into() });
    script.kinds();

    let mut due = script.controller.deadline().expect("it is waited for");
    while due < ms(2_500) {
        script.at(due.elapsed().as_millis() as u64).effect(Event::Tick);
        assert!(!script.kinds().contains(&DecisionKind::BackendDied), "too early: {due:?}");
        due = script.controller.deadline().expect("it is waited for");
    }

    assert_eq!(due, ms(2_500));
    script.at(2_500).effect(Event::Tick);
    let died = (DecisionKind::BackendDied, "lb-test-2: found ended".to_owned());
    assert_eq!(reasons(&mut script), [died]);
    assert_eq!(script.at(2_600).effect(exited(2, 1)), []);
    assert_eq!(script.kinds(), [], "too late");
}

#[test]
fn a_list_that_lags_behind_does_not_tell_how_it_ended() {
    let mut script = Script::running(2, 2, 2);
    script.at(1_000).effect(gone(2, GoneCause::Ended));
    script.confirm(4);

    let ended = Sighting { running: false, ..sighting("b", 2) };
    assert_eq!(script.at(1_010).effect(Event::Resynced(vec![sighting("a", 1), ended])), []);
    assert_eq!(script.kinds(), []);
    script.at(1_060).effect(gone(2, GoneCause::Killed));

    let kinds = reasons(&mut script);
    assert_eq!(kinds[0], (DecisionKind::BackendDied, "lb-test-2: killed from outside".to_owned()));
}

#[test]
fn one_that_is_restarted_before_it_is_told_starts_anew() {
    let mut script = Script::running(2, 2, 2);
    script.at(20_000).effect(gone(2, GoneCause::Ended));
    script.confirm(4);

    script.at(20_500).effect(Event::BackendSeen(sighting("b", 2)));

    let died = (DecisionKind::BackendDied, "lb-test-2: found ended".to_owned());
    assert!(reasons(&mut script).contains(&died));
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Starting]);
    assert_eq!(script.effect(passed(2)), [publish(5, &[1, 2], &[])]);
}

#[test]
fn one_that_nobody_here_has_started_is_forgotten_and_never_removed() {
    let mut script = Script::running_with(Settings::new(Scaling::Fixed), 2);
    assert_eq!(script.at(1_000).effect(gone(2, GoneCause::Ended)), [publish(4, &[1], &[])]);
    script.confirm(4);
    let told = script.at(1_060).effect(exited(2, 3));

    assert_eq!((told, script.states().len()), (vec![], 1));
    assert_eq!(reasons(&mut script), [(DecisionKind::BackendDied, "lb-test-2: ended with exit code 3".to_owned())]);

    script.at(2_000).effect(gone(1, GoneCause::Ended));
    script.confirm(5);
    assert_eq!(script.at(60_000).effect(Event::Tick), [], "also where the agent was held up");
    assert_eq!(script.states(), []);
}

#[test]
fn one_that_ends_before_the_answer_to_its_start_counts_once() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(1, 4))));
    script.tell(Event::Resynced(Vec::new()));
    script.confirm(1);
    script.at(100).effect(gone(1, GoneCause::Ended));
    script.at(110).effect(Event::Started { ordinal: 1, id: id("a") });
    script.at(160).effect(died(1));

    let kinds = script.kinds();
    assert_eq!(kinds.iter().filter(|kind| **kind == DecisionKind::BackendDied).count(), 1, "{kinds:?}");
    assert_eq!(script.at(1_160).effect(Event::Tick), [start(2)]);
}

#[test]
fn one_that_was_asked_to_end_is_no_death() {
    let mut script = Script::running(1, 2, 2);
    script.tell(Event::StopRequested);
    script.confirm(4);
    script.kinds();

    script.at(10_000).effect(swept(9_900, &[]));
    script.effect(gone(2, GoneCause::Ended));
    script.effect(gone(2, GoneCause::Killed));

    assert!(!script.kinds().contains(&DecisionKind::BackendDied));
}
