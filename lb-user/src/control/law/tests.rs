//! The law by itself: rows for each rule, and what holds whatever is measured.

use proptest::{collection::vec, prelude::*};

use super::*;

const COST: f64 = 0.020;

pub(super) fn law(min: u32, max: u32) -> Law {
    Law { quota: Some(1.0), ..Law::new(Bounds::new(min, max).unwrap()) }
}

pub(super) fn second(number: u64) -> Timestamp {
    Timestamp::new(Duration::from_secs(number))
}

/// What is measured where `current` backends serve all of a demand, in processors, on a host with plenty of them.
pub(super) fn served(current: u32, cores: f64) -> Inputs {
    let age = Duration::from_secs(600);
    let one = CpuUse { cores: Some(cores / f64::from(current.max(1))), quota: Some(1.0), age, part: 1.0 };
    Inputs {
        current,
        ready: current,
        host: Some(HostUse { processors: 64.0, busy: Some(cores) }),
        cpu: vec![one; current as usize],
        aside: Vec::new(),
        beside: 0.0,
        arrivals: Some(cores / COST),
        connections: Some(cores / COST * 0.1),
        handshakes: None,
        responses: None,
        pressure: None,
        repeats: None,
    }
}

/// A service whose backends start at once, and whose clock ticks once a second.
struct Run {
    law: Law,
    state: State,
    now: u64,
    count: u32,
}

impl Run {
    fn new(law: Law, count: u32) -> Self {
        Self { law, state: State::default(), now: 0, count }
    }

    fn tick(&mut self, change: impl FnOnce(&mut Inputs), cores: f64) -> Record {
        let mut inputs = served(self.count, cores);
        change(&mut inputs);
        let record = decide(&self.law, &inputs, &mut self.state, second(self.now));
        self.now += 1;
        self.count = record.verdict.target;
        record
    }

    /// Ticks with these demands, and returns the counts.
    fn over(&mut self, demands: impl IntoIterator<Item = f64>) -> Vec<u32> {
        demands.into_iter().map(|cores| self.tick(|_| {}, cores).verdict.target).collect()
    }

    fn settled(law: Law, cores: f64) -> Self {
        let count = law.bounds.min();
        let mut run = Self::new(law, count);
        run.over(std::iter::repeat_n(cores, 250));
        run
    }
}

fn reversals(counts: &[u32]) -> usize {
    let steps: Vec<bool> = counts.windows(2).filter(|two| two[0] != two[1]).map(|two| two[0] < two[1]).collect();
    steps.windows(2).filter(|two| two[0] != two[1]).count()
}

#[test]
fn the_count_is_the_demand_over_what_one_is_to_carry() {
    for (cores, expected) in [(0.0, 1), (0.5, 1), (0.75, 1), (0.9, 2), (1.5, 3), (3.0, 5), (6.0, 9), (40.0, 20)] {
        assert_eq!(Run::settled(law(1, 20), cores).count, expected, "{cores} cores");
    }
}

#[test]
fn what_arrives_is_answered_in_the_second_in_which_it_does() {
    let mut run = Run::settled(law(1, 20), 1.2);

    // What two backends show of ten processors' demand is that they are busy.
    let record = run.tick(|inputs| inputs.cpu.iter_mut().for_each(|one| one.cores = Some(1.0)), 10.0);

    assert_eq!((record.verdict.target, record.verdict.mood), (15, Mood::Burst));
    assert_eq!(record.verdict.winner, Some(Winner::Metric(Metric::Arrivals)));
    assert!(record.verdict.reason.contains("burst: arrivals wants 14.3 at once: 2 -> 15"), "{}", record.verdict.reason);
}

#[test]
fn cpu_that_is_used_up_is_a_burst_where_nothing_counts_the_demand() {
    let targets = Targets { container_cpu: Some(Law::TARGET), ..Targets::default() };
    let mut run = Run::settled(Law { targets, ..law(1, 20) }, 1.2);

    let counts: Vec<u32> = (0..12)
        .map(|_| {
            let count = f64::from(run.count);
            run.tick(|_| {}, count).verdict.target
        })
        .collect();

    assert!(counts.is_sorted() && counts[2] == 3 && counts[11] >= 12, "{counts:?}");
}

#[test]
fn cpu_that_is_used_up_is_a_burst_where_what_arrives_does_not_explain_it() {
    let mut run = Run::settled(law(1, 20), 1.2);
    assert!(run.state.cost().is_some());

    let verdicts: Vec<Verdict> = (0..12)
        .map(|_| {
            let count = f64::from(run.count);
            run.tick(|inputs| inputs.arrivals = Some(0.0), count).verdict
        })
        .collect();

    let counts: Vec<u32> = verdicts.iter().map(|verdict| verdict.target).collect();
    assert!(verdicts[2].in_burst && counts.is_sorted() && counts[11] >= 12, "{counts:?}");
}

#[test]
fn what_arrives_and_costs_nothing_is_worth_what_cpu_shows() {
    let mut run = Run::settled(law(1, 20), 2.0);
    let forged = |inputs: &mut Inputs| inputs.arrivals = Some(2_000.0);

    let all: Vec<Verdict> = (0..300).map(|_| run.tick(forged, 2.0).verdict).collect();

    assert_eq!(all[0].target, 20, "at first nobody can know");
    let told = all[9].wishes.iter().find(|wish| wish.metric == Metric::Arrivals).unwrap();
    assert!(told.up.unwrap() < 3.0 && all[9].reason.contains("paid by 2.00 cores"), "{:?}", all[9]);
    assert!(all[299].target < 8, "{:?}", all[299]);
    let mut honest = Run::settled(law(1, 20), 2.0);
    assert!((0..60).all(|_| honest.tick(|_| {}, 6.0).evidence.paid.is_none()), "CPU follows");
}

#[test]
fn a_fall_waits_for_its_window_and_goes_step_by_step() {
    let mut run = Run::settled(law(1, 20), 8.0);
    assert_eq!(run.count, 12);

    let counts = run.over(std::iter::repeat_n(1.5, 400));

    let first = counts.iter().position(|&count| count < 12).unwrap();
    assert!((120..=170).contains(&first), "{first}");
    let steps: Vec<u32> = counts.windows(2).filter(|two| two[0] != two[1]).map(|two| two[1]).collect();
    assert_eq!(steps, [11, 9, 7, 6, 5, 4, 3], "{steps:?}");
    assert_eq!(reversals(&counts), 0);
}

#[test]
fn a_demand_that_is_gone_all_at_once_is_an_outage_at_first() {
    let mut run = Run::settled(law(1, 20), 4.0);
    assert_eq!(run.count, 6);

    let out = run.over(std::iter::repeat_n(0.0, 240));
    assert!(out.iter().all(|&count| count == 6), "{out:?}");
    let record = run.tick(|_| {}, 0.0);
    assert!(record.verdict.limits.contains(&Limit::Outage), "{:?}", record.verdict);
    assert!(run.over(std::iter::repeat_n(4.0, 200)).iter().all(|&count| count == 6));

    let gone = run.over(std::iter::repeat_n(0.0, 600));
    assert_eq!(gone[290], 6, "two and a half windows");
    assert_eq!(gone.last(), Some(&1));
}

#[test]
fn growth_outside_of_a_burst_is_limited() {
    let record = Run::new(law(1, 64), 2).tick(|_| {}, 30.0);
    let mut evidence = record.evidence;
    evidence.ready = 60;

    let verdict = judge(&law(1, 64), &evidence);

    assert_eq!((verdict.target, verdict.limits), (6, vec![Limit::UpRate]));
}

#[test]
fn foreign_load_is_told_apart_and_not_answered() {
    let mut run = Run::settled(law(1, 20), 2.0);
    assert_eq!(run.count, 3);

    let foreign = |inputs: &mut Inputs| {
        let own: f64 = inputs.cpu.iter().filter_map(|one| one.cores).sum();
        inputs.host = Some(HostUse { processors: 8.0, busy: Some(own + 4.2) });
    };
    let quiet: Vec<u32> = (0..60).map(|_| run.tick(foreign, 2.0).verdict.target).collect();
    assert!(quiet.iter().all(|&count| count == 3), "a load of others alone starts nothing: {quiet:?}");

    let record = (0..60).map(|_| run.tick(foreign, 3.5)).last().unwrap();
    assert_eq!((record.verdict.target, record.verdict.mood), (4, Mood::HostSaturated));
    assert_eq!(record.verdict.limits, [Limit::Host]);
    let told =
        "host saturated: foreign load 4.2 of 8 processors; 5 wanted, and more than 4 would share the same: 4 stay";
    assert!(record.verdict.reason.ends_with(told), "{}", record.verdict.reason);
}

#[test]
fn what_the_maximum_leaves_unanswered_is_told_with_how_much_it_is() {
    let mut run = Run::settled(law(1, 3), 2.0);
    assert_eq!(run.count, 3);

    let record = (0..60).map(|_| run.tick(|_| {}, 2.9)).last().unwrap();

    assert_eq!((record.verdict.target, record.verdict.mood), (3, Mood::AtMax));
    assert_eq!(record.verdict.limits, [Limit::Max]);
    let told = "; at max: container-cpu wants 4.1, so 5, and the maximum is 3: 3 stay";
    assert!(record.verdict.reason.ends_with(told), "{}", record.verdict.reason);

    let record = Run::settled(law(1, 3), 0.5).tick(|_| {}, 9.0);
    assert_eq!((record.verdict.target, record.verdict.mood), (3, Mood::Burst), "on the way there, that is what it is");
}

#[test]
fn what_is_not_done_leaves_no_trace_but_what_was_measured() {
    let mut run = Run::settled(law(1, 20), 6.0);
    let mut inputs = served(run.count, 0.5);
    let verdicts: Vec<u32> = (0..400)
        .map(|_| {
            let record = consider(&run.law, &inputs, &mut run.state, second(run.now));
            run.now += 1;
            record.verdict.target
        })
        .collect();
    assert_eq!((run.count, verdicts.last()), (9, Some(&7)), "it goes on asking");
    assert_eq!(run.state.cooldowns().fell, None);

    inputs.current = 9;
    let record = decide(&run.law, &inputs, &mut run.state, second(run.now));
    assert_eq!((record.verdict.target, run.state.cooldowns().fell), (7, Some(second(run.now))));
}

#[test]
fn a_next_law_waits_for_what_this_one_has_waited_for() {
    let mut run = Run::settled(law(1, 20), 6.0);
    for _ in 0..20 {
        run.tick(|inputs| (inputs.arrivals, inputs.connections) = (Some(0.0), Some(0.0)), 0.0);
    }
    let before = run.state.cooldowns();
    assert!(before.outage.is_some_and(|outage| outage.until > second(run.now + 250)), "{before:?}");

    let text = serde_json::to_string(&before).unwrap();
    let mut next = Run::new(run.law, run.count);
    next.state.adopt_cost(COST);
    next.state.adopt_cooldowns(serde_json::from_str(&text).unwrap());
    next.now = run.now + 5;

    // The windows alone would let them go by then.
    let record = (0..150).map(|_| next.tick(|_| {}, 0.1)).last().unwrap();
    assert_eq!((record.verdict.target, record.verdict.mood), (9, Mood::Holding));
    assert_eq!(record.verdict.limits, [Limit::Outage]);
    assert_eq!(next.over(std::iter::repeat_n(0.1, 400)).last(), Some(&1));
}

#[test]
fn what_starts_or_stops_is_no_foreign_load_and_what_is_aside_is_demand() {
    let mut run = Run::settled(law(1, 20), 2.0);
    let mut record = None;

    for _ in 0..60 {
        let moved = |inputs: &mut Inputs| {
            (inputs.aside, inputs.beside) = (vec![Some(1.0), Some(1.0)], 1.5);
            inputs.host = Some(HostUse { processors: 64.0, busy: Some(2.0 + 2.0 + 1.5 + 0.25) });
        };
        record = Some(run.tick(moved, 2.0));
    }

    let evidence = record.unwrap().evidence;
    assert!((evidence.foreign.unwrap() - 0.25).abs() < 1e-9, "{evidence:?}");
    assert!((evidence.used.unwrap() - 2.0).abs() < 1e-9, "those that serve are as busy as they are");
    assert_eq!(run.count, 6, "4 processors at 70 %");
}

#[test]
fn a_backend_that_is_not_measured_uses_nothing_upwards_and_everything_downwards() {
    let mut run = Run::settled(law(1, 20), 4.0);
    let blind = |inputs: &mut Inputs| inputs.cpu[0].cores = None;

    let counts: Vec<u32> = (0..300).map(|_| run.tick(blind, 2.6).verdict.target).collect();

    assert!(counts.iter().all(|&count| count <= 6) && reversals(&counts) == 0, "{counts:?}");
    let evidence = run.tick(blind, 2.6).evidence;
    let cpu = evidence.sights.iter().find(|sight| sight.metric == Metric::ContainerCpu).unwrap();
    let Seen::Demand(demand) = cpu.seen else { panic!("{cpu:?}") };
    assert!(demand.slow < 2.6 && demand.peak > 3.0, "{demand:?}");
}

#[test]
fn a_gap_in_the_ticks_forgets_what_was_before_it() {
    let mut run = Run::settled(law(1, 20), 4.0);
    run.over(std::iter::repeat_n(1.0, 100));
    run.now += 60;

    let counts = run.over(std::iter::repeat_n(1.0, 119));

    assert!(counts.iter().all(|&count| count == 6), "nothing is known of the gap: {counts:?}");
    assert!(run.over(std::iter::repeat_n(1.0, 30)).iter().any(|&count| count < 6));
    assert!(run.state.cost().is_some(), "what a connection costs is no matter of time");
}

#[test]
fn a_metric_that_was_missing_or_is_new_agrees_to_fewer_after_its_window() {
    let targets = Targets { connections: Some(10.0), ..Law::new(Bounds::new(1, 20).unwrap()).targets };
    let with = Law { targets, ..law(1, 20) };

    let mut new = Run::settled(law(1, 20), 4.0);
    assert!(new.over(std::iter::repeat_n(1.0, 100)).iter().all(|&count| count == 6));
    new.law = with;
    let first =
        (0..300).position(|_| new.tick(|inputs| inputs.connections = Some(1.0), 1.0).verdict.target < 6).unwrap();
    assert!((119..=125).contains(&first), "{first}");

    let mut missed = Run::new(with, 6);
    for _ in 0..200 {
        missed.tick(|inputs| inputs.connections = Some(55.0), 1.0);
    }
    for _ in 0..60 {
        missed.tick(|inputs| inputs.connections = None, 1.0);
    }
    let counts: Vec<Verdict> =
        (0..130).map(|_| missed.tick(|inputs| inputs.connections = Some(1.0), 1.0).verdict).collect();
    assert!(counts[..119].iter().all(|verdict| verdict.target == 6), "{:?}", counts[0]);
    assert_eq!(counts[100].limits, [Limit::DownWindow], "its samples from before are over by then");
    assert!(counts.iter().any(|verdict| verdict.target < 6));
}

#[test]
fn late_answers_push_while_the_backends_are_busy_and_never_ask_for_fewer() {
    let targets = Targets { latency: Some(Duration::from_millis(5)), ..Law::new(Bounds::new(1, 20).unwrap()).targets };
    let mut run = Run::settled(Law { targets, ..law(1, 20) }, 4.0);
    let late = |ms: u64| {
        move |inputs: &mut Inputs| inputs.handshakes = Some(Handshakes { count: 50, p99: Duration::from_millis(ms) })
    };
    run.over([4.0; 3]);
    for _ in 0..3 {
        run.tick(late(2), 4.0);
    }
    assert_eq!(run.count, 6);

    let pushed: Vec<u32> = (0..3).map(|_| run.tick(late(9), 4.0).verdict.target).collect();
    assert_eq!(pushed, [6, 6, 8]);
    let idle: Vec<u32> = (0..10).map(|_| run.tick(late(9), 1.0).verdict.target).collect();
    assert_eq!(idle, [8; 10], "whoever is idle and late waits for something else");
    for _ in 0..600 {
        run.tick(late(2), 1.0);
    }
    assert_eq!(run.count, 2, "what is in time has nothing against fewer");
}

#[test]
fn what_was_late_a_while_ago_is_still_held_against_fewer() {
    let targets = Targets { latency: Some(Duration::from_millis(5)), ..Law::new(Bounds::new(1, 20).unwrap()).targets };
    let mut run = Run::settled(Law { targets, ..law(1, 20) }, 4.0);
    let answers = |ms: u64| {
        move |inputs: &mut Inputs| inputs.handshakes = Some(Handshakes { count: 50, p99: Duration::from_millis(ms) })
    };

    let held: Vec<u32> =
        (0..400).map(|at| run.tick(answers(if at % 10 == 0 { 3 } else { 1 }), 3.2).verdict.target).collect();
    assert_eq!(held, [6; 400], "late for a tick of ten");

    for _ in 0..200 {
        run.tick(answers(1), 3.2);
    }
    assert_eq!(run.count, 5);
}

#[test]
fn the_worse_of_handshake_and_answer_pushes_by_its_own_name() {
    let targets = Targets {
        latency: Some(Duration::from_millis(5)),
        response: Some(Duration::from_millis(300)),
        ..Law::new(Bounds::new(1, 9).unwrap()).targets
    };
    let run = || Run::settled(Law { targets, ..law(1, 9) }, 4.0);
    let timed = |handshake: u64, response: u64| {
        move |inputs: &mut Inputs| {
            inputs.handshakes = Some(Handshakes { count: 50, p99: Duration::from_millis(handshake) });
            inputs.responses = Some(Responses { count: 50, p99_at_least: Duration::from_millis(response) });
        }
    };
    let pushed = |handshake, response| {
        let mut run = run();
        let verdicts: Vec<Verdict> = (0..3).map(|_| run.tick(timed(handshake, response), 4.0).verdict).collect();
        let last = &verdicts[2];
        ((verdicts[1].target, last.target), last.winner, last.reason.clone())
    };

    let (counts, winner, reason) = pushed(1, 524);
    assert_eq!((counts, winner), ((6, 8), Some(Winner::Metric(Metric::Response))));
    assert!(
        reason.contains("latency 1.00 ms, response 524.00 ms") && reason.contains("response wants 8.0"),
        "{reason}"
    );
    let (counts, winner, _) = pushed(9, 100);
    assert_eq!((counts, winner), ((6, 8), Some(Winner::Metric(Metric::Latency))));
    let (counts, ..) = pushed(9, 524);
    assert_eq!(counts, (6, 8), "both late ask for no more than one");
    let (counts, ..) = pushed(1, 300);
    assert_eq!(counts, (6, 6), "in time");

    // What is slow by nature is not served sooner by more: a quarter at a time, while the backends are busy, and no further.
    let mut slow = run();
    let idle: Vec<u32> = (0..60).map(|_| slow.tick(timed(1, 10_000), 1.0).verdict.target).collect();
    assert_eq!(idle, [6; 60], "nobody is busy");
    let busy: Vec<u32> = (0..60).map(|_| slow.tick(timed(1, 10_000), 8.0).verdict.target).collect();
    assert!(busy.is_sorted() && busy.iter().all(|count| *count <= 9), "{busy:?}");

    // Whoever is late by more than half holds, and who cannot be measured does.
    let mut held = run();
    let above = (0..400).map(|at| held.tick(timed(1, if at % 10 == 0 { 262 } else { 1 }), 3.2).verdict.target);
    assert!(above.eq([6; 400]));
    let mut missed = run();
    let told = |inputs: &mut Inputs| {
        timed(1, 1)(inputs);
        inputs.responses = None;
    };
    let verdict = (0..10).map(|_| missed.tick(told, 4.0).verdict).last().unwrap();
    assert_eq!((verdict.target, verdict.mood), (6, Mood::Degraded));
    assert!(verdict.reason.contains("response missing for "), "{}", verdict.reason);
}

#[test]
fn what_more_do_not_mend_neither_grows_nor_swings() {
    let targets = Targets { response: Some(Duration::from_millis(300)), ..law(1, 40).targets };
    let response = |late: u64| {
        move |inputs: &mut Inputs| {
            inputs.responses = Some(Responses { count: 50, p99_at_least: Duration::from_millis(late) });
        }
    };
    for busy in [0.3, 0.45, 0.55, 0.6, 0.65, 0.69] {
        for from in [2, 3, 5, 10, 20] {
            let cores = busy * f64::from(from);
            let mut slow = Run::settled(Law { targets, ..law(1, 40) }, cores);
            let counts: Vec<u32> = (0..900).map(|_| slow.tick(response(10_000), cores).verdict.target).collect();
            assert!(reversals(&counts) <= 1, "{cores} cores, answers late: {counts:?}");
            assert!(f64::from(*counts.last().unwrap()) <= (cores / 0.5).ceil() * 1.25 + 1.0, "{counts:?}");

            let mut lossy = Run::settled(law(1, 40), cores);
            let again = |inputs: &mut Inputs| inputs.repeats = Some(200.0);
            let counts: Vec<u32> = (0..900).map(|_| lossy.tick(again, cores).verdict.target).collect();
            assert!(reversals(&counts) <= 1, "{cores} cores, SYNs come again: {counts:?}");
            // It ends with what was the matter.
            lossy.over(std::iter::repeat_n(cores, 600));
            let mut calm = Run::settled(law(1, 40), cores);
            calm.over(std::iter::repeat_n(cores, 600));
            assert!(
                lossy.count <= (calm.count * 5).div_ceil(4),
                "{} of {}: beyond the dead band",
                lossy.count,
                calm.count
            );
        }
    }
}

#[test]
fn answers_that_take_longer_than_a_tick_are_late_all_the_same() {
    let targets = Targets { response: Some(Duration::from_secs(2)), ..law(1, 9).targets };
    let mut run = Run::settled(Law { targets, ..law(1, 9) }, 4.0);
    let count = run.count;
    // One in five seconds, and none in the ticks between.
    let told = |at: u32| {
        move |inputs: &mut Inputs| {
            let count = if at.is_multiple_of(5) { 1 } else { 0 };
            let p99_at_least = Duration::from_secs(if count == 0 { 0 } else { 4 });
            inputs.responses = Some(Responses { count, p99_at_least });
        }
    };
    let counts: Vec<u32> = (0..20).map(|at| run.tick(told(at), 4.0).verdict.target).collect();
    assert!(counts.last().is_some_and(|last| *last > count), "{counts:?}");

    // What was late once is forgotten when nothing has been answered for the up window.
    let mut run = Run::settled(Law { targets, ..law(1, 9) }, 1.0);
    (0..20).for_each(|at| _ = run.tick(told(at), 1.0));
    let none = |inputs: &mut Inputs| inputs.responses = Some(Responses { count: 0, p99_at_least: Duration::ZERO });
    (0..60).for_each(|_| _ = run.tick(none, 1.0));
    let count = run.count;
    assert_eq!(
        run.tick(none, f64::from(count)).verdict.winner.filter(|by| *by == Winner::Metric(Metric::Response)),
        None
    );
}

/// Gives the last backends of all but one a tenth of their share, which is all that they are asked to do.
fn beside_one_that_is_full(inputs: &mut Inputs, part: f64) {
    for one in &mut inputs.cpu[1..] {
        (one.cores, one.part) = (Some(part), part);
    }
    inputs.cpu[0].cores = Some(1.0);
}

#[test]
fn who_is_spared_in_slow_start_does_not_hide_that_the_others_are_full() {
    let mut run = Run::settled(law(4, 20), 2.0);
    let before = run.state.cost().unwrap();

    for _ in 0..60 {
        run.tick(|inputs| beside_one_that_is_full(inputs, 0.1), 2.0);
    }

    assert_eq!(run.state.cost(), Some(before), "what waits is not paid yet");
    let mut all = served(4, 2.0);
    all.cpu.iter_mut().for_each(|one| one.part = 0.1);
    assert_eq!(all.whole(), 4.0, "where all begin, each has its whole share");
    beside_one_that_is_full(&mut all, 0.1);
    all.cpu[0].part = 1.0;
    assert!((all.whole() - 1.3).abs() < 1e-9);
}

#[test]
fn no_second_push_comes_before_the_first_serves() {
    let targets = Targets { latency: Some(Duration::from_millis(5)), ..Law::new(Bounds::new(1, 20).unwrap()).targets };
    let mut run = Run::settled(Law { targets, ..law(4, 20) }, 2.5);
    let mut late = |part: f64| {
        let change = |inputs: &mut Inputs| {
            inputs.handshakes = Some(Handshakes { count: 50, p99: Duration::from_millis(9) });
            inputs.cpu[4..].iter_mut().for_each(|one| (one.cores, one.part) = (Some(0.6 * part), part));
            inputs.cpu[..4].iter_mut().for_each(|one| one.cores = Some(0.9));
        };
        run.tick(change, 2.5).verdict.target
    };

    let pushed: Vec<u32> = (0..3).map(|_| late(1.0)).collect();
    assert_eq!(pushed, [4, 4, 5]);
    assert!((0..20).all(|_| late(0.4) == 5), "a fifth has hardly begun");
    assert_eq!(late(0.5), 7);
}

#[test]
fn connections_that_last_are_counted() {
    let targets = Targets { connections: Some(100.0), ..Targets::default() };
    let law = Law { targets, ..law(1, 20) };
    let mut run = Run::new(law, 1);

    for _ in 0..200 {
        run.tick(|inputs| inputs.connections = Some(950.0), 0.0);
    }
    assert_eq!(run.count, 10);
}

#[test]
fn connections_are_no_matter_of_processors_until_the_host_is_busy() {
    let targets = Targets { connections: Some(100.0), ..Targets::default() };
    let count_beside = |foreign: f64| {
        let mut run = Run::new(Law { targets, ..law(1, 20) }, 1);
        let change = |inputs: &mut Inputs| {
            inputs.connections = Some(950.0);
            inputs.host = Some(HostUse { processors: 8.0, busy: Some(foreign) });
        };
        (0..60).map(|_| run.tick(change, 0.0)).last().unwrap().verdict
    };

    assert_eq!(count_beside(6.0).target, 10, "ten that idle find room where two processors are free");
    let verdict = count_beside(7.5);
    assert_eq!((verdict.target, verdict.limits), (1, vec![Limit::Host]));
}

#[test]
fn without_a_quota_a_backend_has_its_share_of_the_host() {
    let mut run = Run::new(Law { quota: None, ..law(1, 10) }, 1);
    let shared = |inputs: &mut Inputs| {
        inputs.cpu.iter_mut().for_each(|one| one.quota = None);
        inputs.host = Some(HostUse { processors: 2.0, busy: Some(0.7) });
    };

    let record = (0..60).map(|_| run.tick(shared, 0.7)).last().unwrap();

    assert_eq!(record.evidence.unit(&record.law), 0.2);
    let record = run.tick(
        |inputs| {
            shared(inputs);
            inputs.host = Some(HostUse { processors: 2.0, busy: None });
        },
        0.7,
    );
    assert_eq!(
        (record.evidence.unit(&record.law), run.count),
        (0.2, 5),
        "a reading that is missing is no processor less"
    );
    assert_eq!(run.count, 5, "0.7 of two processors at 70 % are five of ten: {}", record.verdict.reason);
}

#[test]
fn another_law_judges_the_same_evidence() {
    let mut run = Run::settled(law(1, 20), 3.0);
    let record = run.tick(|_| {}, 3.0);
    assert_eq!(record.verdict.target, 5);
    assert_eq!(record.under(&record.law), record.verdict);

    let half = TargetLoad::new(0.4);
    let stricter = Law { targets: Targets { container_cpu: half, arrivals: half, ..record.law.targets }, ..record.law };
    assert_eq!(record.under(&stricter).target, 8);

    let shared = Record { evidence: Evidence { limit: None, ..record.evidence.clone() }, ..record.clone() };
    let small = Law { bounds: Bounds::new(1, 64).unwrap(), ..record.law };
    let large = Law { bounds: Bounds::new(1, 16).unwrap(), ..record.law };
    assert_eq!(
        (shared.under(&small).target, shared.under(&large).target),
        (5, 4),
        "without a limit each has its share"
    );

    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
}

#[test]
fn a_day_passes_with_its_two_reversals() {
    let mut run = Run::settled(law(1, 20), 4.0);

    let counts = run.over((0..86_400).map(|at| 4.0 + 3.2 * (f64::from(at) / 86_400.0 * std::f64::consts::TAU).sin()));

    assert_eq!(reversals(&counts), 2, "up, down and up again");
    assert_eq!((counts.iter().max(), counts.iter().min()), (Some(&10), Some(&2)));
}

/// Three times what two backends are to carry, for 60 ms.
const THRICE: Surge = Surge { connections: 126.0, within: Duration::from_millis(60) };

/// A service of connections that are cheap, so that many come: two backends carry 1,400 a second.
fn cheap() -> Run {
    let mut run = Run::new(law(1, 20), 2);
    run.state.adopt_cost(0.001);
    for _ in 0..60 {
        run.tick(|inputs| inputs.arrivals = Some(1_000.0), 1.0);
    }
    assert_eq!(run.count, 2);
    run
}

fn rates(record: &Record) -> Vec<Sight> {
    record.evidence.sights.clone()
}

#[test]
fn a_surge_is_answered_between_two_ticks_and_leaves_the_windows_alone() {
    let (mut run, mut other) = (cheap(), cheap());
    let tick = |run: &mut Run| run.tick(|inputs| inputs.arrivals = Some(1_000.0), 1.0);
    let (last, _) = (tick(&mut run), tick(&mut other));
    let standing = Standing { current: 2, ready: 2 };
    let limit = last.tripwire(&run.law, standing).unwrap();
    assert!((limit - 2_100.0).abs() < 30.0, "one and a half times what two carry: {limit}");
    let now = second(run.now - 1) + Duration::from_millis(60);

    let surge = Surge { connections: 270.0, within: Duration::from_millis(60) };
    let record = hasten(&run.law, &last, standing, surge, &mut run.state, now).unwrap();
    run.state.follow(&record);

    assert_eq!((record.verdict.target, record.verdict.mood), (6, Mood::Burst), "{:?}", record.verdict);
    assert_eq!(record.verdict.limits, [Limit::UpRate], "seven are a guess");
    let told = "; burst: arrivals, 270 in 60ms, wants 6.4 at once, limited by the rate of growth: 2 -> 6";
    assert!(record.verdict.reason.ends_with(told), "{}", record.verdict.reason);
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);

    let (after, without) = (tick(&mut run), tick(&mut other));
    assert_eq!((rates(&after), after.evidence.cost), (rates(&without), without.evidence.cost));
    assert!(!after.evidence.burst_for.is_zero() && without.evidence.burst_for.is_zero(), "none goes for a while");

    // What is not beyond those that stand by now changes nothing.
    let enough = Standing { current: 6, ready: 6 };
    assert_eq!(hasten(&run.law, &last, enough, surge, &mut run.state, now), None);
    assert_eq!(hasten(&run.law, &last, standing, THRICE, &mut run.state, now), None, "chance can bring so many");
    let late = now + run.law.gap();
    assert_eq!(hasten(&run.law, &last, standing, surge, &mut run.state, late), None, "it is of another time");
}

#[test]
fn nobody_looks_for_a_surge_that_nothing_would_come_of() {
    let mut run = cheap();
    let last = run.tick(|inputs| inputs.arrivals = Some(1_000.0), 1.0);
    let two = Standing { current: 2, ready: 2 };
    let limit = |law: &Law, record: &Record, standing| record.tripwire(law, standing);
    assert!(limit(&run.law, &last, two).is_some());

    assert_eq!(limit(&law(1, 2), &last, two), None, "there can be no more");
    let by_cpu = Targets { arrivals: None, ..run.law.targets };
    assert_eq!(limit(&Law { targets: by_cpu, ..run.law }, &last, two), None, "what arrives is not followed");
    let foreign = |foreign| Record {
        evidence: Evidence { processors: Some(4.0), foreign: Some(foreign), ..last.evidence.clone() },
        ..last.clone()
    };
    assert_eq!(limit(&run.law, &foreign(2.0), two), None, "the host has no room");
    assert!(limit(&run.law, &foreign(0.0), two).is_some());
    let paid = Demand { fast: 0.1, slow: 0.1, peak: 0.1, seen_for: Duration::ZERO };
    let forged = Record { evidence: Evidence { paid: Some(paid), ..last.evidence.clone() }, ..last.clone() };
    assert_eq!(limit(&run.law, &forged, two), None, "what comes costs nothing");
    let new = Run::new(law(1, 20), 2).tick(|_| {}, 1.0);
    assert_eq!(limit(&run.law, &new, two), None, "the cost is not known");
    // Those on their way are counted, and the limit is of more than they carry.
    let limits = [2, 4].map(|current| limit(&run.law, &last, Standing { current, ready: 2 }).unwrap());
    assert!(limits[1] > limits[0] * 1.4, "{limits:?}");
}

#[test]
fn a_surge_does_not_ride_on_a_push_that_does_not_serve_yet() {
    let mut run = Run::new(law(1, 40), 16);
    run.state.adopt_cost(0.001);
    for _ in 0..60 {
        run.tick(|inputs| inputs.arrivals = Some(10_500.0), 10.5);
    }
    let again = |inputs: &mut Inputs| (inputs.arrivals, inputs.repeats) = (Some(10_500.0), Some(4_000.0));
    let last = run.tick(again, 10.5);
    assert_eq!((last.verdict.target, last.verdict.winner), (20, Some(Winner::Repeats)), "{}", last.verdict.reason);

    // It wants 24.5, and another push of a quarter 25.
    let surge = Surge { connections: 171_500.0, within: Duration::from_secs(10) };
    let now = second(run.now - 1) + Duration::from_millis(60);
    let standing = Standing { current: 20, ready: 16 };
    let record = hasten(&run.law, &last, standing, surge, &mut run.state, now).unwrap();
    assert_eq!(record.verdict.winner, Some(Winner::Metric(Metric::Arrivals)), "{}", record.verdict.reason);
}

#[test]
fn syns_that_come_again_are_a_burst_where_the_backends_are_busy() {
    let mut run = Run::settled(law(1, 20), 2.5);
    assert_eq!(run.count, 4);
    let repeats = |syns: f64| move |inputs: &mut Inputs| inputs.repeats = Some(syns);

    for _ in 0..20 {
        let verdict = run.tick(repeats(6.0), 2.5).verdict;
        assert_eq!((verdict.target, verdict.in_burst), (4, false), "a handful: {}", verdict.reason);
    }
    let record = run.tick(repeats(100.0), 2.5);
    assert_eq!((record.verdict.target, record.verdict.mood), (5, Mood::Burst), "{}", record.verdict.reason);
    assert_eq!(record.verdict.winner, Some(Winner::Repeats));
    let told = "burst: 112 SYNs that came again in 3.0 s, beside 375 connections, as where listeners overflow, want 5.0 \
                at once: 4 -> 5";
    assert!(record.verdict.reason.ends_with(told), "{}", record.verdict.reason);

    // A second push waits until the first serves, and none goes meanwhile.
    for _ in 0..10 {
        let starting = |inputs: &mut Inputs| {
            inputs.repeats = Some(100.0);
            inputs.ready = 4;
        };
        let verdict = run.tick(starting, 2.5).verdict;
        assert_eq!((verdict.target, verdict.in_burst), (5, true), "{}", verdict.reason);
    }
    let pushed: Vec<u32> = (0..9).map(|_| run.tick(repeats(100.0), 3.5).verdict.target).collect();
    assert!(pushed.is_sorted() && pushed[8] > 5, "{pushed:?}");
}

#[test]
fn syns_that_come_again_for_other_reasons_ask_for_nobody() {
    let counts = |change: &dyn Fn(&mut Inputs), cores: f64| {
        let mut run = Run::settled(law(1, 20), 2.5);
        let verdicts: Vec<Verdict> = (0..60).map(|_| run.tick(change, cores).verdict).collect();
        assert!(verdicts.iter().all(|verdict| verdict.winner != Some(Winner::Repeats)), "{:?}", verdicts.last());
        verdicts.last().unwrap().target
    };
    assert_eq!(counts(&|inputs| inputs.repeats = Some(12.0), 2.5), 4, "a tenth of 125 a second is lost on the way");
    assert_eq!(counts(&|inputs| inputs.repeats = Some(300.0), 1.0), 4, "nobody is busy: they wait for something else");
    assert_eq!(counts(&|inputs| inputs.repeats = None, 2.5), 4);
    let flood = |inputs: &mut Inputs| {
        (inputs.arrivals, inputs.repeats) = (Some(50_000.0), Some(3_000.0));
        inputs.cpu.iter_mut().for_each(|one| one.cores = Some(0.65));
    };
    let mut run = Run::settled(law(1, 4), 2.5);
    assert!((0..60).all(|_| run.tick(flood, 2.5).verdict.winner != Some(Winner::Repeats)), "forged ones are arrivals");

    let mut run = Run::settled(law(1, 20), 2.5);
    let crowded = |inputs: &mut Inputs| {
        inputs.repeats = Some(300.0);
        inputs.host = Some(HostUse { processors: 4.0, busy: Some(2.5 + 1.5) });
    };
    let verdict = (0..60).map(|_| run.tick(crowded, 2.5).verdict).last().unwrap();
    assert_eq!((verdict.target, verdict.mood), (4, Mood::HostSaturated), "{}", verdict.reason);
}

/// A demand that is there all the time, with what backends can do of it.
fn overloaded(inputs: &mut Inputs, cores: f64) {
    let each = (cores / f64::from(inputs.ready.max(1))).min(1.0);
    inputs.cpu.iter_mut().for_each(|one| one.cores = Some(each));
}

/// Anything that can be measured, and what cannot.
fn anything() -> impl Strategy<Value = Inputs> {
    let number = || prop_oneof![8 => (0.0..20.0_f64).prop_map(Some), 1 => Just(None), 1 => any::<f64>().prop_map(Some)];
    let cpu = vec((number(), 0..30_u64, 1..=10_u32), 0..12);
    let busy = prop_oneof![(0.0..16.0_f64).prop_map(Some), Just(None)];
    let host = prop_oneof![
        4 => busy.prop_map(|busy| Some(HostUse { processors: 16.0, busy })),
        1 => Just(None),
    ];
    (0..30_u32, 0..30_u32, host, cpu, number(), number(), number(), number()).prop_map(
        |(current, ready, host, cpu, arrivals, connections, late, pressure)| Inputs {
            current,
            ready: ready.min(current),
            host,
            cpu: cpu
                .into_iter()
                .map(|(cores, age, tenths)| {
                    let (age, part) = (Duration::from_secs(age), f64::from(tenths) / 10.0);
                    CpuUse { cores, quota: Some(1.0), age, part }
                })
                .collect(),
            aside: vec![late, pressure],
            beside: 0.0,
            arrivals: arrivals.map(|rate| rate * 50.0),
            connections: connections.map(|count| count * 10.0),
            handshakes: late.map(|late| Handshakes {
                count: 3,
                p99: Duration::try_from_secs_f64(late / 1000.0).unwrap_or_default(),
            }),
            responses: late.map(|late| Responses {
                count: 3,
                p99_at_least: Duration::try_from_secs_f64(late / 20.0).unwrap_or_default(),
            }),
            pressure,
            repeats: late,
        },
    )
}

fn all_metrics(min: u32, max: u32) -> Law {
    let targets = Targets {
        container_cpu: Some(Law::TARGET),
        arrivals: Some(Law::TARGET),
        connections: Some(20.0),
        latency: Some(Duration::from_millis(5)),
        response: Some(Duration::from_millis(300)),
        pressure: TargetLoad::new(0.2),
    };
    Law { targets, ..law(min, max) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_constant_demand_leads_to_one_reversal_at_most(cores in 0.0..30.0_f64, from in 1..25_u32) {
        let mut run = Run::new(law(1, 25), from);
        let counts: Vec<u32> = (0..900)
            .map(|_| run.tick(|inputs| overloaded(inputs, cores), cores).verdict.target)
            .collect();

        prop_assert!(reversals(&counts) <= 1, "{:?}", counts);
        prop_assert_eq!(counts[600], counts[899]);
        prop_assert!(f64::from(run.count) >= (cores / 0.7 / 1.1 - 1e-6).min(25.0), "{} for {}", run.count, cores);
    }

    #[test]
    fn a_rising_demand_never_lowers_the_count(mut demands in vec(0.0..20.0_f64, 1..400)) {
        demands.sort_by(f64::total_cmp);
        let counts = Run::settled(law(1, 40), demands[0]).over(demands);

        prop_assert!(counts.is_sorted(), "{:?}", counts);
    }

    #[test]
    fn a_falling_demand_never_raises_the_count(mut demands in vec(0.0..20.0_f64, 1..400)) {
        demands.sort_by(|one, other| other.total_cmp(one));
        let counts = Run::settled(law(1, 40), demands[0]).over(demands);

        prop_assert!(counts.iter().rev().is_sorted(), "{:?}", counts);
    }

    #[test]
    fn nothing_that_is_measured_leads_out_of_the_bounds_or_beyond_the_host(
        all in vec(anything(), 1..200),
        min in 1..6_u32,
        more in 0..20_u32,
    ) {
        let law = all_metrics(min, min + more);
        let mut state = State::default();
        for (number, inputs) in (0..).zip(&all) {
            let Record { evidence, verdict, .. } = decide(&law, inputs, &mut state, second(number));

            prop_assert!((min..=min + more).contains(&verdict.target), "{:?}", verdict);
            if let (Some(processors), Some(foreign)) = (evidence.processors, evidence.foreign) {
                let fit = ((processors - foreign) / evidence.unit(&law) + 0.5).floor() as u32;
                let is_grown = verdict.target > law.bounds.clamp(inputs.current);
                let is_about_cpu = verdict.winner != Some(Winner::Metric(Metric::Connections));
                let is_busy = evidence.busy.is_some_and(|busy| busy >= 0.9 * processors);
                let is_bounded = is_grown && (is_about_cpu || is_busy);
                prop_assert!(!is_bounded || verdict.target <= fit.max(min), "{:?}", verdict);
            }
        }
    }

    #[test]
    fn a_surge_leads_neither_out_of_the_bounds_nor_beyond_the_host_nor_to_more_than_twice_as_many(
        all in vec((anything(), 0.0..3_000.0_f64), 1..100),
        min in 1..6_u32,
        more in 0..20_u32,
    ) {
        let law = all_metrics(min, min + more);
        let mut state = State::default();
        state.adopt_cost(0.001);
        for (number, (inputs, came)) in (0..).zip(&all) {
            let inputs = Inputs { current: law.bounds.clamp(inputs.current), ..inputs.clone() };
            let last = decide(&law, &inputs, &mut state, second(number));
            let standing = Standing { current: last.verdict.target, ready: inputs.ready };
            let surge = Surge { connections: came.floor(), within: Duration::from_millis(42) };
            let before = state.cooldowns();
            let now = second(number) + Duration::from_millis(500);
            let Some(record) = hasten(&law, &last, standing, surge, &mut state, now) else {
                prop_assert_eq!(state.cooldowns(), before);
                continue;
            };
            let Record { evidence, verdict, .. } = record;
            prop_assert!(verdict.in_burst && surge.connections >= 100.0);
            prop_assert!((standing.current..=min + more).contains(&verdict.target), "{:?}", verdict);
            let is_grown = verdict.target > standing.current;
            let base = evidence.count_before;
            prop_assert!(!is_grown || verdict.target <= (2 * base).max(base + 4), "{:?}", verdict);
            if let (Some(processors), Some(foreign)) = (evidence.processors, evidence.foreign) {
                let fit = ((processors - foreign) / evidence.unit(&law) + 0.5).floor() as u32;
                let is_about_cpu = verdict.winner != Some(Winner::Metric(Metric::Connections));
                prop_assert!(!is_grown || !is_about_cpu || verdict.target <= fit.max(min), "{:?}", verdict);
            }
        }
    }

    #[test]
    fn in_a_burst_and_without_a_measurement_none_goes(all in vec(anything(), 1..300)) {
        let law = Law { down_window: Duration::from_secs(5), ..all_metrics(1, 30) };
        let mut state = State::default();
        for (number, inputs) in (0..).zip(&all) {
            let inputs = Inputs { current: inputs.current.max(1), ..inputs.clone() };
            let Record { evidence, verdict, .. } = decide(&law, &inputs, &mut state, second(number));
            let is_missing = evidence.sights.iter().any(|sight| matches!(sight.seen, Seen::Missing { .. }));

            if verdict.in_burst || !evidence.burst_for.is_zero() || is_missing {
                prop_assert!(verdict.target >= inputs.current, "{:?}", verdict);
            }
        }
    }

    #[test]
    fn a_metric_that_is_missing_never_makes_fewer(metric in 0..2_u8, cores in 0.0..10.0_f64, gone in 1..400_usize) {
        let mut run = Run::settled(law(1, 20), cores);
        let before = run.count;

        for _ in 0..gone {
            let verdict = run.tick(|inputs| match metric {
                0 => inputs.arrivals = None,
                _ => inputs.cpu.iter_mut().for_each(|one| one.cores = None),
            }, 0.0).verdict;

            prop_assert!(verdict.target >= before, "{:?}", verdict);
        }
    }

    #[test]
    fn what_is_remembered_stays_small(demands in vec(0.0..20.0_f64, 1500)) {
        let mut run = Run::new(law(1, 40), 1);
        run.over(demands);

        let most = run.law.keep().as_secs() as usize + 2;
        prop_assert!(run.state.arrivals.len() <= most && run.state.counts.len() <= 6);
    }
}
