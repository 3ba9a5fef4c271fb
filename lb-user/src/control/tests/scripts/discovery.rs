//! Containers that others start: they come, are left out, end and go, and none is ever started or stopped.

use super::*;

/// A service that takes containers of others, so many at the most, and has some.
fn taking(most: u32, ready: u32) -> Script {
    Script::running_with(Settings { most: Some(most), ..Settings::new(Scaling::Fixed) }, ready)
}

fn unfit(ordinal: u32, why: &str) -> Sighting {
    let terms = Terms { unfit: Some(why.into()), ..Terms::default() };
    Sighting { address: None, terms, ..sighting(&name(ordinal), ordinal) }
}

fn all(sightings: &[Sighting]) -> Event {
    Event::Resynced(sightings.to_vec())
}

fn left_out(script: &mut Script) -> Vec<String> {
    let news = script.controller.take_news().into_iter();
    news.filter(|decision| decision.kind == DecisionKind::LeftOut).map(|decision| decision.reason).collect()
}

#[test]
fn one_that_comes_is_checked_and_one_that_dies_is_forgotten() {
    let mut script = taking(64, 1);

    assert_eq!(script.at(200).tell(Event::BackendSeen(sighting("b", 2))), [probe(2)]);
    assert_eq!(script.at(201).effect(passed(2)), [publish(3, &[1, 2], &[])]);
    script.confirm(3);
    assert_eq!(script.at(300).effect(died(2)), [publish(4, &[1], &[])]);
    assert_eq!(script.states(), [BackendState::Ready]);
    script.confirm(4);

    assert_eq!(script.at(400).tell(Event::BackendSeen(sighting("b", 2))), [probe(2)], "restarted, with the same id");
}

#[test]
fn one_that_is_unfit_is_told_once_and_taken_when_it_is_fit() {
    let mut script = taking(64, 1);

    assert_eq!(script.at(200).effect(Event::BackendSeen(unfit(2, "no port"))), []);
    assert_eq!(script.at(300).effect(all(&[sighting("a", 1), unfit(2, "no port")])), []);
    assert_eq!(left_out(&mut script), ["lb-test-2: no port"]);
    assert_eq!(script.problems(), ["container lb-test-2 is left out: no port"]);

    let commands = script.at(400).tell(all(&[sighting("a", 1), sighting("b", 2)]));
    assert_eq!(commands, [probe(2)]);
    assert_eq!(script.problems(), Vec::<String>::new());
}

#[test]
fn one_that_is_unfit_is_forgotten_when_it_ends() {
    for end in [died(2), gone(2, GoneCause::Removed), gone(2, GoneCause::Ending), all(&[sighting("a", 1)])] {
        let mut script = taking(64, 1);
        script.at(200).effect(Event::BackendSeen(unfit(2, "no port")));
        assert_eq!(script.problems().len(), 1);

        assert_eq!(script.at(300).effect(end.clone()), []);
        assert_eq!(script.problems(), Vec::<String>::new(), "{end:?}");
    }
    let mut script = taking(64, 1);
    script.at(200).effect(Event::BackendSeen(unfit(2, "no port")));
    script.effect(all(&[sighting("a", 1), Sighting { running: false, ..sighting("b", 2) }]));
    assert_eq!(script.problems(), Vec::<String>::new());
}

#[test]
fn one_that_is_unfit_by_other_settings_keeps_what_it_has() {
    let mut script = taking(64, 2);

    assert_eq!(script.at(200).effect(all(&[sighting("a", 1), unfit(2, "no port")])), [publish(4, &[1], &[2])]);
    script.confirm(4);
    assert_eq!(script.at(1_300).effect(swept(1_250, &[(2, 3)])), []);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Draining]);

    assert_eq!(script.at(2_300).effect(swept(2_250, &[])), [publish(5, &[1], &[])]);
    assert_eq!(script.problems(), ["container lb-test-2 is left out: no port"]);
}

#[test]
fn an_unfit_one_of_a_former_agent_is_drained() {
    let adopted_ready = [(id("b"), IpAddr::from([198, 19, 0, 2]).into())].into();
    let settings = Settings { most: Some(4), adopted_ready, ..Settings::new(Scaling::Fixed) };
    let mut script = Script::new(settings);

    assert_eq!(script.effect(all(&[unfit(2, "no port")])), [publish(1, &[], &[2])]);
    assert_eq!(script.states(), [BackendState::Draining]);
}

#[test]
fn no_more_than_the_most_are_taken_and_the_oldest_follows_as_one_goes() {
    let mut script = taking(2, 2);
    let four = [1, 2, 3, 4].map(|ordinal| sighting(&name(ordinal), ordinal));

    assert_eq!(script.at(200).effect(all(&four)), []);
    assert_eq!(script.problems().len(), 2);
    assert_eq!(
        left_out(&mut script),
        [3, 4].map(|n| format!("lb-test-{n}: there are 2 already, and no more are taken: raise --max"))
    );
    assert_eq!(script.controller.snapshot(ms(200)).desired, 2);

    assert_eq!(script.at(300).tell(died(1)), [publish(4, &[2], &[]), probe(3)]);
    assert_eq!(script.problems().len(), 1);

    script.confirm(4);
    let wider = Reconfiguration { most: Some(9), ..reconfigured(Scaling::Fixed) };
    assert_eq!(script.at(400).tell(Event::Reconfigured(Box::new(wider))), [probe(4)]);
    assert_eq!(script.problems(), Vec::<String>::new());
}

#[test]
fn one_that_is_asked_to_end_gets_no_more_and_keeps_what_it_has() {
    let mut script = taking(64, 2);

    assert_eq!(script.at(200).effect(gone(2, GoneCause::Ending)), [publish(4, &[1], &[2])]);
    script.confirm(4);
    assert_eq!(script.kinds(), [DecisionKind::Drain]);
    assert_eq!(script.at(300).effect(gone(2, GoneCause::Ending)), [], "asked again");
    assert_eq!(script.at(400).effect(all(&[sighting("a", 1), sighting("b", 2)])), [], "it still runs");
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Draining]);
    assert_eq!(script.controller.snapshot(script.now).desired, 1);

    assert_eq!(script.at(2_000).effect(gone(2, GoneCause::Killed)), [publish(5, &[1], &[])]);
    assert_eq!(script.states(), [BackendState::Ready]);
}

#[test]
fn one_that_is_asked_to_end_and_does_not_is_taken_again_after_a_minute() {
    let mut script = taking(64, 2);
    let there = [sighting("a", 1), sighting("b", 2)];
    script.at(200).effect(gone(2, GoneCause::Ending));
    script.confirm(4);

    assert_eq!(script.at(2_300).effect(swept(2_250, &[])), [], "it may still be finishing");
    assert_eq!(script.at(2_400).effect(all(&there)), []);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Draining]);
    assert_eq!(script.at(60_200).effect(Event::Tick), [publish(5, &[1], &[])]);
    script.confirm(5);

    assert_eq!(script.at(62_000).effect(all(&there)), []);
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Starting]);
}

#[test]
fn one_that_is_ending_does_not_keep_the_agent_from_ending() {
    let mut script = taking(64, 2);
    script.at(200).effect(gone(2, GoneCause::Ending));
    script.confirm(4);

    script.at(300).effect(Event::StopRequested);
    script.confirm(5);
    assert_eq!(script.at(2_300).effect(swept(2_250, &[])).last(), Some(&Command::Finish));
}

#[test]
fn the_last_one_stays_until_it_has_ended_or_another_is_ready() {
    let mut script = taking(64, 1);
    assert_eq!(script.at(200).effect(gone(1, GoneCause::Ending)), [], "it may still answer, and nobody else would");
    assert_eq!(script.states(), [BackendState::Ready]);

    script.at(300).effect(Event::BackendSeen(sighting("b", 2)));
    assert_eq!(script.at(301).effect(passed(2)), [publish(3, &[2], &[1])]);
}

#[test]
fn a_paused_one_is_out_and_has_to_pass_its_checks_again() {
    let mut script = taking(64, 2);

    assert_eq!(script.at(200).effect(gone(2, GoneCause::Paused)), [publish(4, &[1], &[2])]);
    script.confirm(4);
    script.at(300).tell(Event::BackendSeen(sighting("b", 2)));
    assert_eq!(script.states(), [BackendState::Ready, BackendState::Unhealthy]);
}

#[test]
fn none_is_stopped_when_the_agent_ends() {
    let mut script = taking(64, 2);
    script.at(200).effect(Event::BackendSeen(unfit(3, "no port")));

    assert_eq!(script.at(300).effect(Event::StopRequested), [publish(4, &[], &[1, 2])]);
    assert_eq!(script.confirm(4), []);

    assert_eq!(script.at(2_300).effect(swept(2_250, &[])), [publish(5, &[], &[]), Command::Finish]);
}
