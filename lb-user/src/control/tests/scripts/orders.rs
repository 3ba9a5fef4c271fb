//! What an operator orders: a count by hand, and a law that is not followed.

use super::*;

fn count(count: u32, seconds: Option<u64>) -> Event {
    Event::Ordered(Order::Count { count, lasting: seconds.map(Duration::from_secs), reach: Reach::Bounds })
}

fn pause(directions: Directions) -> Event {
    Event::Ordered(Order::Pause(directions))
}

fn resume(directions: Directions) -> Event {
    Event::Ordered(Order::Resume(directions))
}

fn wish(script: &Script) -> u32 {
    script.controller.snapshot(script.now).desired
}

fn standing(script: &Script) -> String {
    script.controller.snapshot(script.now).standing.unwrap_or_default()
}

/// Returns the decisions since the last call, as they are shown.
fn decided(script: &mut Script) -> Vec<String> {
    let news = script.controller.take_news();
    news.into_iter().map(|one| format!("{} {} {}: {}", one.kind, one.from, one.to, one.reason)).collect()
}

#[test]
fn a_count_by_hand_stands_whatever_the_load_is() {
    let mut script = Script::running(1, 8, 2);

    assert_eq!(script.effect(count(4, None)), [start(3), start(4)]);
    let told = decided(&mut script);
    assert_eq!(told[0], "manual count 2 4: 4 wanted by hand until `scale auto`");
    assert_eq!(script.controller.last_order(), Some("4 wanted by hand until `scale auto`"));

    assert_eq!(script.loaded(100.0, 1, 20), []);
    assert_eq!(script.loaded(0.0, 21, 80), []);
    assert_eq!(wish(&script), 4);
    assert_eq!(
        standing(&script),
        "4 by hand; the law: load 0.0 % of 100 %: demand 0.00, at most 1 wanted for 30s: 4 -> 1"
    );
}

#[test]
fn what_is_told_of_an_order_leaves_no_other_one_out() {
    let mut script = Script::running(1, 8, 2);
    let mut told = |order: Event| {
        script.effect(order);
        script.controller.last_order().unwrap_or_default().to_owned()
    };
    let auto = || Event::Ordered(Order::Auto);

    assert_eq!(told(resume(Directions::Both)), "nothing was paused: the law is followed");
    assert_eq!(told(auto()), "there was no count by hand: the law is followed");
    told(count(4, None));
    assert_eq!(told(resume(Directions::In)), "nothing was paused: 4 by hand stand until `scale auto`");
    assert_eq!(
        told(pause(Directions::In)),
        "scale-in paused, as soon as the law is followed again: 4 by hand stand until `scale auto`"
    );
    assert_eq!(told(resume(Directions::Out)), "scale-out was not paused: 4 by hand stand until `scale auto`");
    assert_eq!(told(auto()), "4 by hand no longer, as ordered: the law goes on from 4, with scale-in paused");
    assert_eq!(told(auto()), "there was no count by hand: the law is followed, with scale-in paused");
    told(pause(Directions::Out));
    assert_eq!(told(resume(Directions::In)), "scale-in resumed: the law is followed, with scale-out paused");
    told(count(4, Some(60)));
    assert_eq!(told(resume(Directions::Both)), "scale-out resumed: 4 by hand stand for their time");
    told(auto());
    told(pause(Directions::Both));
    assert_eq!(told(resume(Directions::Both)), "scale-in and scale-out resumed: the law is followed");
}

#[test]
fn what_was_decided_on_an_order_is_told_however_much_comes_of_it() {
    let mut script = Script::running(1, 100, 90);

    script.effect(count(1, None));

    assert_eq!(script.controller.last_order(), Some("1 wanted by hand until `scale auto`"));
}

#[test]
fn fewer_by_hand_are_drained_like_any_others() {
    let mut script = Script::running(1, 8, 3);

    assert_eq!(script.effect(count(1, None)), [publish(5, &[1], &[2, 3])]);

    let told = decided(&mut script);
    assert_eq!(
        told[..2],
        [
            "manual count 3 1: 1 wanted by hand until `scale auto`",
            "drain 1 1: lb-test-3 is the newest of 3, and 1 are wanted"
        ]
    );
}

#[test]
fn a_count_by_hand_ends_at_its_time_and_the_law_goes_on_from_there() {
    let mut script = Script::running(1, 8, 2);
    script.effect(count(4, Some(600)));
    assert_eq!(script.kinds(), [DecisionKind::Manual, DecisionKind::Start]);
    script.at(600_000);
    assert_eq!(wish(&script), 4);

    let due = script.controller.deadline().unwrap();
    assert!(due <= ms(600_100));
    script.at(600_100).tick();

    let ended = "manual count ended 4 4: 4 by hand have lasted 10m: the law goes on from 4".to_owned();
    assert!(decided(&mut script).contains(&ended));
    assert_eq!(script.controller.orders(), Orders::default());
    script.loaded(0.0, 601, 640);
    assert_eq!(wish(&script), 1, "which the windows show by then");
}

#[test]
fn the_time_of_a_count_is_a_deadline_of_its_own() {
    let mut script = Script::running(2, 2, 2);
    script.tell(Event::StopFailed { id: id("z"), error: "nobody".into() });
    script.effect(count(2, Some(1)));

    assert_eq!(script.controller.deadline(), Some(ms(1_100)));
}

#[test]
fn a_count_beside_the_bounds_is_taken_by_force_alone() {
    let mut script = Script::running(2, 4, 2);
    let order = |count, reach| Order::Count { count, lasting: None, reach };
    let bounds = Bounds::new(2, 4).unwrap();

    for count in [1, 5] {
        let refusal = script.controller.refusal(&order(count, Reach::Bounds));
        assert_eq!(refusal, Some(Refusal::OutOfBounds { count, bounds }));
        script.effect(Event::Ordered(order(count, Reach::Bounds)));
        assert_eq!((wish(&script), script.kinds()), (2, vec![]), "what is refused changes nothing");
    }
    assert_eq!(script.controller.refusal(&order(0, Reach::Beyond)), Some(Refusal::Nobody));

    assert_eq!(script.effect(Event::Ordered(order(6, Reach::Beyond))), [3, 4, 5, 6].map(start));
    script.loaded(50.0, 1, 5);
    assert_eq!(wish(&script), 6);
    script.effect(Event::Ordered(Order::Auto));
    assert_eq!(wish(&script), 4, "the law goes on from its maximum");
}

#[test]
fn only_what_is_scaled_takes_orders_and_nothing_that_ends() {
    let fixed = Script::new(Settings::new(Scaling::Fixed));
    assert_eq!(fixed.controller.refusal(&Order::Pause(Directions::Both)), Some(Refusal::NotScaled));

    let mut script = Script::running(1, 4, 1);
    script.effect(count(3, None));
    script.tell(Event::StopRequested);
    assert_eq!(script.controller.refusal(&Order::Auto), Some(Refusal::Ending));
    assert_eq!((wish(&script), script.controller.orders()), (0, Orders::default()));
}

#[test]
fn scale_in_that_is_paused_lets_more_come_and_none_go() {
    let mut script = Script::running(1, 8, 3);
    script.effect(pause(Directions::In));
    assert_eq!(decided(&mut script), ["paused 3 3: scale-in paused: no fewer than 3 because the law wants it"]);

    assert_eq!(script.loaded(0.0, 1, 120), []);
    assert!(standing(&script).starts_with("scale-in paused; the law: load 0.0 %"), "{}", standing(&script));
    assert_eq!(script.loaded(60.0, 121, 130), [start(4), start(5)]);

    script.effect(resume(Directions::Both));
    script.loaded(0.0, 131, 180);
    assert_eq!(wish(&script), 1);
}

#[test]
fn scale_out_that_is_paused_lets_some_go_and_none_come() {
    let mut script = Script::running(1, 8, 3);
    script.effect(pause(Directions::Out));

    assert_eq!(script.loaded(100.0, 1, 60), []);
    assert!(standing(&script).starts_with("scale-out paused; the law: load 100.0 %"), "{}", standing(&script));
    script.loaded(0.0, 61, 120);
    assert_eq!(wish(&script), 1);
    let commands = script.loaded(100.0, 121, 160);
    assert!(!commands.iter().any(|command| matches!(command, Command::Start { .. })), "{commands:?}");
    assert_eq!(wish(&script), 1);

    script.effect(resume(Directions::Out));
    script.loaded(100.0, 161, 170);
    assert_eq!(wish(&script), 8);
}

#[test]
fn the_dead_are_replaced_whatever_is_paused_and_the_brake_holds() {
    for order in [pause(Directions::Both), count(2, None)] {
        let mut script = Script::running(1, 8, 2);
        script.effect(order);
        script.kinds();

        // Not the controller's doing, so no reason to wait.
        script.at(20_000).effect(gone(2, GoneCause::Killed));
        let commands = script.effect(Event::Tick);
        let replaced = decided(&mut script);
        assert!(replaced.iter().any(|one| one.starts_with("start 2 2")), "{replaced:?} {commands:?}");

        // It ends by itself, at once, again and again: the waits grow as ever.
        let mut starts = Vec::new();
        let mut now = 20_000;
        let mut next = 3;
        script.effect(Event::BackendSeen(sighting("c", 3)));
        while now < 60_000 {
            script.at(now);
            let mut commands = script.effect(died(next));
            commands.extend(script.effect(Event::Tick));
            for command in commands {
                if let Command::Start { ordinal } = command {
                    starts.push(now / 1000);
                    next = ordinal;
                    script.effect(Event::BackendSeen(sighting(&name(ordinal), ordinal)));
                }
            }
            now += 500;
        }
        assert!((3..8).contains(&starts.len()), "{starts:?}");
        assert_eq!(wish(&script), 2);
    }
}

#[test]
fn who_fails_its_checks_is_replaced_though_scale_in_is_paused() {
    let mut script = Script::running(2, 2, 2);
    script.effect(pause(Directions::Both));
    script.kinds();
    for second in 1..=40 {
        for command in script.at(second * 1_000).tick() {
            match command {
                Command::Probe { id } => {
                    let outcome = if id == super::id("b") { failed(2) } else { passed(1) };
                    script.effect(outcome);
                }
                Command::Publish(publication) => _ = script.confirm(publication.generation),
                Command::Start { .. }
                | Command::Stop { .. }
                | Command::Remove { .. }
                | Command::Freeze { .. }
                | Command::Thaw { .. }
                | Command::Finish => {}
            }
        }
    }

    let kinds = script.kinds();
    assert!(kinds.contains(&DecisionKind::Drain) && kinds.contains(&DecisionKind::Start), "{kinds:?}");
}

#[test]
fn a_count_by_hand_goes_before_a_pause() {
    let mut script = Script::running(1, 8, 2);
    script.effect(pause(Directions::Both));

    assert_eq!(script.effect(count(4, Some(60))), [start(3), start(4)]);
    script.at(61_000).tick();

    assert_eq!(wish(&script), 4, "the pause holds what the hand has left");
    assert_eq!(script.controller.orders().paused(), Some(Directions::Both));
}

#[test]
fn other_bounds_wait_for_whoever_has_given_an_order() {
    let mut script = Script::running(1, 8, 3);
    script.effect(pause(Directions::In));
    script.tell(Event::Reconfigured(Box::new(reconfigured(Scaling::Auto(law(1, 2))))));
    assert_eq!(wish(&script), 3);

    script.effect(resume(Directions::In));
    assert_eq!(wish(&script), 2);

    script.effect(Event::Ordered(Order::Count { count: 5, lasting: None, reach: Reach::Beyond }));
    script.tell(Event::Reconfigured(Box::new(reconfigured(Scaling::Auto(law(1, 3))))));
    assert_eq!(wish(&script), 5);
}

/// What a next agent is told of what this one has shown.
fn heir(script: &Script, scaling: Scaling) -> Settings {
    let ControlReport { orders, desired, cooldowns, crash_loop, .. } = script.controller.snapshot(script.now);
    Settings {
        adopted_orders: orders,
        adopted_desired: Some(desired),
        adopted_cooldowns: Some(cooldowns),
        adopted_crash_loop: crash_loop,
        ..Settings::new(scaling)
    }
}

fn adopted(former: &Script, scaling: Scaling, there: u32) -> (Script, Vec<Command>) {
    let ready = (1..=there).map(|ordinal| (id(&name(ordinal)), sighting("", ordinal).address.unwrap())).collect();
    let mut next = Script::new(Settings { adopted_ready: ready, ..heir(former, scaling) });
    next.at(former.now.elapsed().as_millis() as u64 + 2_000);
    let there = (1..=there).map(|ordinal| sighting(&name(ordinal), ordinal)).collect();
    let mut commands = next.tell(Event::Resynced(there));
    commands.retain(|command| matches!(command, Command::Start { .. }));
    (next, commands)
}

#[test]
fn orders_outlive_the_agent() {
    let scaling = Scaling::Auto(law(1, 8));
    let mut script = Script::running(1, 8, 2);
    script.effect(count(4, Some(600)));

    let (mut next, starts) = adopted(&script, scaling, 2);
    assert_eq!((wish(&next), starts), (4, vec![start(3), start(4)]));
    next.at(600_100).tick();
    assert_eq!(next.controller.orders().manual, None, "at the time that was said");

    let (late, _) = {
        script.at(700_000);
        adopted(&script, scaling, 4)
    };
    assert_eq!((wish(&late), late.controller.orders().manual), (4, None), "also where nobody was there");
}

#[test]
fn who_died_while_there_was_no_agent_is_replaced_where_scaling_is_paused() {
    let scaling = Scaling::Auto(law(1, 8));
    let mut script = Script::running(1, 8, 4);
    script.effect(pause(Directions::In));

    let (next, starts) = adopted(&script, scaling, 2);
    assert_eq!((wish(&next), starts), (4, vec![start(3), start(4)]));

    script.effect(resume(Directions::In));
    let (next, starts) = adopted(&script, scaling, 2);
    assert_eq!((wish(&next), starts), (2, vec![]), "as ever, without an order");
}

#[test]
fn a_next_agent_tries_one_start_at_once_and_then_waits_as_long_as_was_due() {
    let mut script = Script::new(Settings::new(Scaling::Auto(law(2, 2))));
    script.tell(Event::Resynced(vec![sighting("a", 1)]));
    for second in [0, 1, 4, 9] {
        script.at(1_000 + second * 1_000).tick();
        script.tell(Event::StartFailed { ordinal: 2, error: "no image".into() });
    }

    let (mut next, starts) = adopted(&script, Scaling::Auto(law(2, 2)), 1);
    assert_eq!(starts, [start(2)]);
    let now = next.now;
    next.tell(Event::StartFailed { ordinal: 2, error: "no image".into() });

    assert_eq!(next.controller.crash_loop.wait_until().since(now), Duration::from_secs(16));
}

#[test]
fn what_becomes_of_backends_is_told() {
    let mut script = Script::running(1, 4, 1);
    let told = |script: &mut Script| -> Vec<String> {
        let shown = |state: Option<BackendState>| state.map_or_else(|| "-".to_owned(), |state| format!("{state:?}"));
        let changes = script.controller.take_changes().into_iter();
        changes.map(|change| format!("{} {} {}", change.id, shown(change.from), shown(change.to))).collect()
    };
    assert_eq!(told(&mut script), ["a - Starting", "a Starting Ready"]);

    script.effect(count(2, None));
    script.tell(Event::Started { ordinal: 2, id: id("b") });
    assert_eq!(told(&mut script), Vec::<String>::new(), "nobody knows its name");
    script.tell(Event::BackendSeen(sighting("b", 2)));
    script.tell(passed(2));
    script.tell(died(2));
    script.tell(gone(2, GoneCause::Removed));

    assert_eq!(told(&mut script), ["b - Starting", "b Starting Ready", "b Ready Dead", "b Dead -"]);
    assert_eq!((script.controller.count(BackendState::Ready), script.controller.count(BackendState::Dead)), (1, 0));
}
