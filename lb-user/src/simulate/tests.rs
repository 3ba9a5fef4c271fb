//! The targets: the law keeps to the objective at least as well as every model, on every shape, and is as calm as the
//! calmest of those that do.

use super::*;

const SEEDS: std::ops::RangeInclusive<u64> = 1..=12;

fn law(scenario: &Scenario) -> Law {
    Law { quota: Some(scenario.quota), ..Law::new(scenario.bounds) }
}

fn named<'a>(outcomes: &'a [Outcome], model: &str) -> &'a Outcome {
    outcomes.iter().find(|outcome| outcome.model == model).expect("the model is simulated")
}

/// Compares on an hour of each shape; returns what is wrong.
fn worse_than_a_model(scenario: &Scenario, seed: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    for shape in Shape::ALL {
        let outcomes = compare(scenario, &law(scenario), &shape.trace(scenario, seed, shape::SHAPE_SECONDS));
        let ours = named(&outcomes, "lb-user");
        assert_eq!(outcomes.len(), 5);
        let better = outcomes.iter().filter(|model| model.violation_percent < ours.violation_percent);
        wrong.extend(better.map(|model| {
            let (own, other) = (ours.violation_percent, model.violation_percent);
            format!("{shape}, seed {seed}: {own:.2} %, {} {other:.2} %", model.model)
        }));
    }
    wrong
}

#[test]
fn the_objective_is_kept_as_well_as_by_every_model_on_every_shape() {
    let quick = Scenario { start_lag: Duration::from_secs(1), ..Scenario::default() };
    let mut wrong = worse_than_a_model(&Scenario::default(), 1);
    wrong.extend(worse_than_a_model(&quick, 1));

    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn noise_costs_no_more_than_with_the_calmest_model() {
    let scenario = Scenario::default();
    let (mut reversals, mut others) = (0, 0);
    for seed in SEEDS {
        let outcomes = compare(&scenario, &law(&scenario), &Shape::Noise.trace(&scenario, seed, shape::SHAPE_SECONDS));
        let (ours, hpa) = (named(&outcomes, "lb-user"), named(&outcomes, "HPA"));

        assert!(ours.extra <= hpa.extra, "seed {seed}: {} extra, HPA {}", ours.extra, hpa.extra);
        assert!(ours.violation_percent <= hpa.violation_percent, "seed {seed}: {}", ours.violation_percent);
        if seed == 1 {
            assert!(ours.reversals <= hpa.reversals + 2, "{} reversals, HPA {}", ours.reversals, hpa.reversals);
        }
        reversals += ours.reversals;
        others += hpa.reversals;
    }
    let seeds = SEEDS.count() as u32;
    assert!(reversals <= others + 2 * seeds, "{reversals} reversals in {seeds} hours, HPA {others}");
}

#[test]
fn foreign_load_starts_nothing() {
    let quiet = Scenario::default();
    let loud = Scenario { foreign: 8.0, ..Scenario::default() };
    let trace = Shape::Noise.trace(&quiet, 1, shape::SHAPE_SECONDS);
    let run = |scenario: &Scenario| compare(scenario, &law(scenario), &trace);

    let (quiet, loud) = (run(&quiet), run(&loud));

    assert_eq!(named(&quiet, "lb-user").course, named(&loud, "lb-user").course);
    assert!(named(&loud, "seed").actions > 10 * named(&loud, "lb-user").actions.max(1), "the seed's law answers it");
}

#[test]
fn the_same_is_simulated_twice_and_told() {
    let scenario = Scenario::default();
    let request = Request {
        traces: vec![Trace { name: "log".into(), arrivals: vec![100.0; 60] }],
        law: law(&scenario),
        scenario,
        as_json: false,
        picture: None,
    };
    let outcomes = compare(&request.scenario, &request.law, &request.traces[0]);
    assert_eq!(outcomes, compare(&request.scenario, &request.law, &request.traces[0]));

    let page = output::page(&request, &outcomes, crate::status::Style { width: 110, colours: false });

    assert!(
        page.contains("lb-user follows arrivals (70 %) and container-cpu (70 %); windows 45s up, 120s down"),
        "{page}"
    );
    for model in ["lb-user", "HPA", "KPA", "thresholds", "seed"] {
        assert!(page.contains(&format!("log    {model}")), "{page}");
    }
}
