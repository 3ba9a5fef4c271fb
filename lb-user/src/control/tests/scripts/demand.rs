//! Scaling by demand: what is measured, what is decided, and who goes.

use super::*;
use crate::control::law::{HostUse, Law, Limit, Mood, Surge};
use crate::control::policy::TargetLoad;

const QUOTA: f64 = 1.0;

fn scaling(min: u32, max: u32) -> Scaling {
    Scaling::Demand(Law { quota: Some(QUOTA), ..Law::new(Bounds::new(min, max).unwrap()) })
}

/// What is measured where ready backends share a demand in processors, of which a connection costs a fiftieth.
fn measured(script: &Script, cores: f64, foreign: f64) -> Measures {
    let backends = script.controller.snapshot(script.now).backends;
    let ready: Vec<_> = backends.iter().filter(|backend| backend.state == BackendState::Ready).collect();
    let each = cores / ready.len().max(1) as f64;
    let used = CpuUsed { cores: each.min(QUOTA), quota: Some(QUOTA) };
    let cpu: BTreeMap<ContainerId, CpuUsed> = ready.iter().map(|backend| (backend.id.clone(), used)).collect();
    let own: f64 = cpu.values().map(|used| used.cores).sum();
    Measures {
        host: Some(HostUse { processors: 8.0, busy: Some(own + foreign) }),
        cpu,
        arrivals: Some(cores * 50.0),
        handshakes: None,
        responses: None,
        pressure: None,
        repeats: None,
    }
}

/// Measures once a second, from `from` to `to`, and returns what that led to.
fn demanded(script: &mut Script, cores: f64, foreign: f64, from: u64, to: u64) -> Vec<Command> {
    let second = |second: u64| {
        script.at(second * 1000);
        let measures = measured(script, cores, foreign);
        script.effect(Event::Measured(Box::new(measures)))
    };
    (from..=to).flat_map(second).collect()
}

fn running(min: u32, max: u32, ready: u32) -> Script {
    Script::running_with(Settings::new(scaling(min, max)), ready)
}

fn wish(script: &Script) -> u32 {
    script.controller.snapshot(script.now).desired
}

#[test]
fn demand_starts_what_it_needs_and_those_on_their_way_are_not_asked_for_twice() {
    let mut script = running(1, 8, 2);
    assert_eq!(demanded(&mut script, 1.2, 0.0, 1, 30), []);

    let commands = demanded(&mut script, 3.0, 0.0, 31, 60);

    assert_eq!(commands, [start(3), start(4), start(5)]);
    assert_eq!(wish(&script), 5);
    let report = script.controller.snapshot(script.now);
    let changed = report.changed.unwrap();
    assert_eq!((changed.verdict.mood, changed.inputs.current, changed.inputs.ready), (Mood::Burst, 2, 2));
    assert!(report.record.unwrap().at > changed.at, "what stands is recorded, too");
}

#[test]
fn the_load_of_the_host_decides_nothing_and_is_shown() {
    let mut script = running(1, 8, 2);

    assert_eq!(script.loaded(100.0, 1, 60), []);

    assert_eq!(wish(&script), 2);
    assert_eq!(script.controller.snapshot(script.now).load, CpuLoad::from_percent(100.0));
    script.effect(Event::LoadUnavailable { reason: "gone".into() });
    assert_eq!(script.controller.snapshot(script.now).standing, None);
}

#[test]
fn a_host_that_others_use_up_is_told_once_and_not_answered() {
    let mut script = running(1, 8, 2);
    demanded(&mut script, 1.2, 6.3, 1, 30);
    script.kinds();

    assert_eq!(demanded(&mut script, 1.8, 6.3, 31, 120), []);

    assert_eq!(script.kinds(), [DecisionKind::HostSaturated]);
    let record = script.controller.snapshot(script.now).record.unwrap();
    assert_eq!(record.verdict.limits, [Limit::Host]);
}

#[test]
fn who_has_the_fewest_connections_goes_first_and_then_the_newest() {
    let mut script = running(1, 8, 4);
    script.effect(swept(900, &[(1, 5), (2, 1), (3, 5), (4, 5)]));
    script.kinds();

    for second in 1..=200 {
        demanded(&mut script, 0.6, 0.0, second, second);
        script.effect(swept(second * 1000, &[(1, 5), (2, 1), (3, 5), (4, 5)]));
        if wish(&script) < 4 {
            break;
        }
    }

    use BackendState::{Draining, Ready};
    assert_eq!(script.states(), [Ready, Draining, Ready, Ready]);
    let told = script.controller.snapshot(script.now).decisions.pop().unwrap().reason;
    assert_eq!(told, "lb-test-2 has the fewest connections (1) of 4, and 3 are wanted");
}

#[test]
fn connections_of_those_that_drain_or_fail_are_still_demand() {
    let targets = crate::control::law::Targets { connections: Some(60.0), ..Default::default() };
    let law = Law { targets, quota: Some(QUOTA), ..Law::new(Bounds::new(1, 8).unwrap()) };
    let settings = Settings { drain_timeout: Duration::from_secs(600), ..Settings::new(Scaling::Demand(law)) };
    let mut script = Script::running_with(settings, 4);
    let flows = [(1, 30), (2, 30), (3, 30), (4, 30)];
    for second in 1..=400 {
        script.at(second * 1000).effect(swept(second * 1000 - 100, &flows));
        demanded(&mut script, 0.4, 0.0, second, second);
        (1..=4).for_each(|ordinal| drop(script.effect(passed(ordinal))));
    }
    assert_eq!(wish(&script), 3, "120 of 60 each, a twentieth beyond, however many of them drain");

    for second in 401..=410 {
        script.at(second * 1000).effect(swept(second * 1000 - 100, &[(1, 60), (2, 60), (3, 60), (4, 60)]));
        script.effect(failed(1));
        let mut measures = measured(&script, 0.9, 0.0);
        measures.cpu.insert(id(&name(1)), CpuUsed { cores: 1.0, quota: Some(QUOTA) });
        script.effect(Event::Measured(Box::new(measures)));
    }
    assert!(script.states().contains(&BackendState::Unhealthy), "{:?}", script.states());
    let inputs = script.controller.snapshot(script.now).record.unwrap().inputs;
    assert_eq!((inputs.connections, wish(&script)), (Some(240.0), 4));
    assert_eq!(inputs.aside.iter().flatten().sum::<f64>(), 1.0);
}

#[test]
fn who_is_in_slow_start_counts_by_its_part() {
    let settings = Settings { slow_start: Duration::from_secs(20), ..Settings::new(scaling(2, 8)) };
    let mut script = Script::running_with(settings, 2);
    demanded(&mut script, 1.2, 0.0, 1, 30);
    let parts = |script: &Script| {
        let record = script.controller.snapshot(script.now).record.unwrap();
        let parts: Vec<f64> = record.inputs.cpu.iter().map(|one| one.part).collect();
        (parts, record.evidence.whole)
    };
    assert_eq!(parts(&script), (vec![1.0, 1.0], 2.0));

    demanded(&mut script, 1.7, 0.0, 31, 80);
    assert_eq!(wish(&script), 3);
    script.tell(Event::BackendSeen(sighting(&name(3), 3)));
    script.tell(passed(3));
    demanded(&mut script, 1.7, 0.0, 81, 86);

    assert_eq!(parts(&script), (vec![1.0, 1.0, 0.3], 2.3));
}

#[test]
fn connections_that_nobody_has_counted_for_long_are_not_believed() {
    let targets = crate::control::law::Targets { connections: Some(10.0), ..Default::default() };
    let law = Law { targets, ..Law::new(Bounds::new(1, 8).unwrap()) };
    let mut script = Script::running_with(Settings::new(Scaling::Demand(law)), 2);
    script.effect(swept(0, &[(1, 30), (2, 30)]));
    demanded(&mut script, 0.0, 0.0, 1, 4);
    assert_eq!(wish(&script), 6);
    script.kinds();

    demanded(&mut script, 0.0, 0.0, 7, 400);

    assert_eq!(wish(&script), 6);
    assert!(script.kinds().contains(&DecisionKind::MetricMissing));
}

#[test]
fn another_target_takes_effect_at_once_and_keeps_what_was_measured() {
    let mut script = running(1, 8, 4);
    demanded(&mut script, 2.6, 0.0, 1, 130);
    assert_eq!(wish(&script), 4);
    let before = script.controller.snapshot(script.now).record.unwrap().evidence.cost.unwrap();

    let Scaling::Demand(mut law) = scaling(1, 8) else { panic!("it is by demand") };
    law.targets.container_cpu = TargetLoad::new(0.5);
    script.effect(Event::Reconfigured(Box::new(reconfigured(Scaling::Demand(law)))));
    demanded(&mut script, 2.6, 0.0, 131, 131);

    assert_eq!(wish(&script), 6);
    let after = script.controller.snapshot(script.now).record.unwrap().evidence.cost.unwrap();
    assert!((before - 0.02).abs() < 1e-9 && (after - before).abs() < 1e-9);
}

#[test]
fn the_law_can_be_exchanged_for_that_of_the_host_and_back() {
    let mut script = running(1, 8, 2);
    demanded(&mut script, 1.2, 0.0, 1, 30);

    script.effect(Event::Reconfigured(Box::new(reconfigured(Scaling::Auto(law(3, 8))))));
    assert_eq!(wish(&script), 3);
    script.loaded(100.0, 31, 40);
    assert_eq!(wish(&script), 8);
    script.effect(Event::Reconfigured(Box::new(reconfigured(scaling(1, 4)))));

    assert_eq!(wish(&script), 4);
}

#[test]
fn what_a_connection_cost_a_former_agent_is_known_at_once() {
    let settings = Settings { adopted_cost: Some(0.02), ..Settings::new(scaling(1, 8)) };
    let mut script = Script::running_with(settings, 2);

    assert_eq!(demanded(&mut script, 3.0, 0.0, 1, 3), [start(3), start(4), start(5)]);
}

/// So many that two backends, of 35 a second each, have no part in it.
const SURGE: Event = Event::Surged(Surge { connections: 150.0, within: Duration::from_millis(42) });

#[test]
fn a_surge_starts_others_between_two_measurements_and_the_next_one_counts_it() {
    let mut script = running(1, 8, 2);
    assert_eq!(script.effect(SURGE), [], "nothing was measured yet");
    demanded(&mut script, 1.2, 0.0, 1, 30);
    let limit = script.controller.tripwire().unwrap();
    assert!((limit - 105.0).abs() < 1e-6, "{limit}");
    script.kinds();

    assert_eq!(script.at(30_100).effect(SURGE), [3, 4, 5, 6].map(start));
    assert_eq!(script.kinds(), [DecisionKind::ScaleUp, DecisionKind::Start]);
    assert!(script.controller.tripwire().unwrap() > 200.0, "those on their way are counted");
    assert_eq!(script.at(30_200).effect(SURGE), [], "no more than twice as many within seconds");

    demanded(&mut script, 6.0, 0.0, 31, 31);
    let report = script.controller.snapshot(script.now);
    assert_eq!((report.desired, script.controller.tripwire()), (8, None), "as many as there may be");
    assert!(report.changed.unwrap().evidence.surge.is_none());
}

#[test]
fn a_surge_calls_the_reserve_before_it_starts_anybody() {
    let mut script = Script::new(Settings { warm: 1, ..Settings::new(scaling(1, 2)) });
    script.tell(Event::Resynced(Vec::new()));
    script.confirm(1);
    for ordinal in [1, 2] {
        script.effect(Event::BackendSeen(sighting(&name(ordinal), ordinal)));
        script.effect(Event::Started { ordinal, id: id(&name(ordinal)) });
    }
    script.effect(passed(1));
    script.confirm(2);
    assert_eq!(script.effect(passed(2)), [Command::Freeze { id: id(&name(2)) }]);
    script.effect(Event::Frozen { id: id(&name(2)) });
    assert_eq!(demanded(&mut script, 0.4, 0.0, 1, 30), []);

    let commands = script.at(30_100).effect(SURGE);

    assert_eq!(commands, [Command::Thaw { id: id(&name(2)) }, start(3)]);
    let commands = script.at(30_105).effect(Event::Thawed { id: id(&name(2)) });
    assert_eq!(commands, [publish(3, &[1, 2], &[])]);
}

#[test]
fn a_surge_that_an_operator_or_sleep_stands_against_is_not_looked_for() {
    let mut script = running(1, 8, 2);
    demanded(&mut script, 1.2, 0.0, 1, 30);
    script.effect(Event::Ordered(Order::Pause(Directions::Out)));
    assert_eq!(script.controller.tripwire(), None);
    assert_eq!(script.effect(SURGE), []);
    script.effect(Event::Ordered(Order::Resume(Directions::Out)));
    assert!(script.controller.tripwire().is_some());

    script.effect(Event::Ordered(Order::Count { count: 3, lasting: None, reach: Reach::Bounds }));
    assert_eq!(script.controller.tripwire(), None, "a count by hand stands");

    let mut script = running(0, 8, 1);
    demanded(&mut script, 0.4, 0.0, 1, 30);
    for second in 31..=200 {
        demanded(&mut script, 0.0, 0.0, second, second);
        script.effect(swept(second * 1000, &[]));
    }
    assert_eq!((wish(&script), script.controller.tripwire()), (0, None), "whoever comes wakes it at once");
    assert_eq!(script.effect(SURGE), []);
}
