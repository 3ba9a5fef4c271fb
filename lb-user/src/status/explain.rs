//! Why there are as many backends as there are: the last decision with everything that led to it, and what another law
//! would have decided.

use std::io::Write as _;

use comfy_table::{Cell, CellAlignment};
use serde::Serialize;

use super::{
    Exit, Style,
    human::{age, clean, list},
    page::{Page, Paint},
    read::{self, StatusError},
    render::orders,
    snapshot::Scaling,
};
use crate::{
    config::{
        ConfigError,
        suppose::{Supposition, suppose},
    },
    control::{
        Timestamp,
        law::{Demand, Law, Metric, Record, Seen, Sight, Verdict, Wish},
    },
    datapath::report::ServiceReport,
};

/// Why nothing can be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The instance cannot be read.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// There is no such service.
    #[error("there is no service {given}: {}", list(there))]
    NoService {
        /// Which was asked for.
        given: String,
        /// Which there are.
        there: Vec<String>,
    },
    /// It could be any of several.
    #[error("there are several services: name one of {}", list(there))]
    WhichService {
        /// Which there are.
        there: Vec<String>,
    },
    /// Nothing has been decided by demand.
    #[error("service {service} has no decision by demand: {why}")]
    NoRecord {
        /// Which.
        service: String,
        /// Why not.
        why: String,
    },
    /// The law could not be as it is supposed to.
    #[error(transparent)]
    Supposed(#[from] ConfigError),
}

/// A decision, explained.
#[derive(Debug, Serialize)]
struct Explanation<'a> {
    schema: u32,
    service: &'a str,
    age_ms: u64,
    /// How many there are and should be, and what was ordered by hand, as `status` shows it.
    scaling: Scaling,
    record: &'a Record,
    changed_age_ms: Option<u64>,
    changed: Option<&'a Record>,
    supposed: Option<Supposed>,
}

/// What another law would have decided.
#[derive(Debug, Serialize)]
struct Supposed {
    what: Vec<String>,
    law: Law,
    verdict: Verdict,
}

/// Prints the last decision of a service, or of the only one.
///
/// # Errors
/// If there is none, or the law could not be as it is supposed to.
pub fn show(instance: &str, service: Option<&str>, all: &[Supposition], as_json: bool) -> Result<Exit, ExplainError> {
    let report = match read::report(instance) {
        Ok(report) => report,
        Err(StatusError::NotRunning(absent)) => {
            eprint!("{absent}");
            return Ok(Exit::NotRunning);
        }
        Err(error) => return Err(error.into()),
    };
    let told = chosen(&report.services, service)?;
    let explanation = explain(told, all, |at| report.age_of(at))?;
    let text = match as_json {
        true => explanation.json() + "\n",
        false => page(&explanation, Style::of_stdout()),
    };
    // Whoever closes the pipe has read enough.
    let _reader_left = std::io::stdout().write_all(text.as_bytes());
    Ok(Exit::Healthy)
}

/// Returns the document of the last decision of a service, or of the only one.
///
/// # Errors
/// If there is none, or the law could not be as it is supposed to.
pub fn document(instance: &str, service: Option<&str>, all: &[Supposition]) -> Result<String, ExplainError> {
    let report = read::report(instance)?;
    let told = chosen(&report.services, service)?;
    Ok(explain(told, all, |at| report.age_of(at))?.json())
}

impl Explanation<'_> {
    fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("keys are text and numbers are finite or null")
    }
}

fn chosen<'a>(services: &'a [ServiceReport], name: Option<&str>) -> Result<&'a ServiceReport, ExplainError> {
    let there = || services.iter().map(|service| service.name.clone()).collect();
    match (name, services) {
        (Some(name), _) => services
            .iter()
            .find(|service| service.name == name)
            .ok_or_else(|| ExplainError::NoService { given: name.to_owned(), there: there() }),
        (None, [only]) => Ok(only),
        (None, _) => Err(ExplainError::WhichService { there: there() }),
    }
}

fn explain<'a>(
    told: &'a ServiceReport,
    all: &[Supposition],
    age_ms: impl Fn(Timestamp) -> u64,
) -> Result<Explanation<'a>, ExplainError> {
    let control = &told.control;
    let Some(record) = &control.record else {
        let why = match (&control.standing, control.max) {
            (_, None) => "its backends are not scaled".to_owned(),
            (Some(standing), _) if told.target_cpu_percent.is_some() => format!("it follows host-cpu: {standing}"),
            (_, _) if told.target_cpu_percent.is_some() => "it follows host-cpu".to_owned(),
            (_, _) => "nothing was measured yet".to_owned(),
        };
        return Err(ExplainError::NoRecord { service: told.name.clone(), why });
    };
    let supposed = match all {
        [] => None,
        all => {
            let law = suppose(record, all)?;
            Some(Supposed { what: all.iter().map(ToString::to_string).collect(), law, verdict: record.under(&law) })
        }
    };
    let changed = control.changed.as_ref().filter(|changed| changed.at != record.at);
    Ok(Explanation {
        schema: 1,
        service: &told.name,
        age_ms: age_ms(record.at),
        scaling: read::service(told, Vec::new(), age_ms(control.at)).scaling,
        record,
        changed_age_ms: changed.map(|changed| age_ms(changed.at)),
        changed,
        supposed,
    })
}

fn page(explanation: &Explanation<'_>, style: Style) -> String {
    let Explanation { service, age_ms, scaling, record, changed, changed_age_ms, supposed, schema: _ } = explanation;
    let Record { law, evidence, verdict, .. } = record;
    let mut page = Page::new(style);
    page.parts(
        Paint::Strong,
        2,
        &[
            format!("service {}", clean(service)),
            format!("{} wanted, {} serve", scaling.desired, evidence.ready),
            verdict.mood.to_string(),
            format!("decided {} ago", age(*age_ms)),
        ],
    );
    // The law knows one at least.
    let (min, max) = (scaling.min.unwrap_or(law.bounds.min()), law.bounds.max());
    let bounds = format!("{min} to {max} backends");
    let mut facts = vec![bounds, format!("one may use {:.2} processors", evidence.unit(law))];
    facts.extend(
        evidence.processors.zip(evidence.foreign).map(|(processors, foreign)| {
            format!("host of {processors:.0} processors, {foreign:.1} of them foreign load")
        }),
    );
    facts.extend(evidence.cost.map(|cost| format!("a connection costs {:.2} ms of CPU", cost * 1000.0)));
    facts.extend(evidence.surge.map(|surge| {
        let per_second = surge.rate();
        format!("{} connections within {:.0?}, as {per_second:.0} a second", surge.connections, surge.within)
    }));
    facts.extend(evidence.repeats.filter(|repeats| repeats.syns > 0.0).map(|repeats| {
        let seconds = repeats.within.as_secs_f64();
        format!("{} SYNs came again in {seconds:.1} s, beside {} connections", repeats.syns, repeats.connections)
    }));
    facts.push(format!("windows {:?} up, {:?} down", law.up_window, law.down_window));
    page.parts(Paint::Plain, 2, &facts);
    if let Some(orders) = orders(scaling) {
        page.line(Paint::Worse, &format!("{orders}; the law wants {}", verdict.target), 9);
    }
    if scaling.desired == 0 {
        let told = format!("asleep until somebody comes; awake, the law would want {}", verdict.target);
        page.line(Paint::Strong, &told, 2);
    }
    page.gap();
    let mut table = page.new_table();
    table.set_header(["METRIC", "LAST SECONDS", "UP WINDOW", "PEAK", "ONE CARRIES", "WANTS AT LEAST", "AT MOST"]);
    for (sight, wish) in evidence.sights.iter().zip(&verdict.wishes) {
        table.add_row(row(sight, wish, evidence.one_carries(law, sight.metric)));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    page.table(table);
    page.gap();
    page.line(Paint::Plain, &format!("reason: {}", clean(&verdict.reason)), 8);
    if !verdict.limits.is_empty() {
        page.line(Paint::Worse, &format!("limits: {}", list(verdict.limits.iter().map(|limit| limit.name()))), 8);
    }
    if let Some((changed, ms)) = changed.zip(*changed_age_ms) {
        let (from, to) = (changed.evidence.current, changed.verdict.target);
        let reason = clean(&changed.verdict.reason);
        page.line(Paint::Plain, &format!("last change {} ago, {from} -> {to}: {reason}", age(ms)), 2);
    }
    if let Some(Supposed { what, verdict: other, .. }) = supposed {
        page.gap();
        let (what, target) = (clean(&what.join(", ")), other.target);
        let instead = match other.target == verdict.target {
            true => format!("{target} as well"),
            false => format!("{target} instead of {}", verdict.target),
        };
        page.line(Paint::Strong, &format!("if {what}: {instead}"), 2);
        page.line(Paint::Plain, &format!("  {}", clean(&other.reason)), 2);
    }
    page.into_text()
}

fn row(sight: &Sight, wish: &Wish, carries: Option<f64>) -> Vec<Cell> {
    let shown = |value: f64| match sight.metric {
        Metric::ContainerCpu => format!("{value:.2} cores"),
        Metric::Arrivals => format!("{value:.1}/s"),
        Metric::Connections => format!("{value:.1}"),
        Metric::Latency | Metric::Response => format!("{:.2} ms", value * 1000.0),
        Metric::Pressure => format!("{:.0} %", value * 100.0),
    };
    let [fast, slow, peak] = match sight.seen {
        Seen::Demand(Demand { fast, slow, peak, seen_for: _ }) => [fast, slow, peak].map(shown),
        Seen::Level { latest, lasting, highest, seen_for: _ } => [latest, lasting, highest].map(shown),
        Seen::Learning { connections: 0 } => ["begins".to_owned(), "-".to_owned(), "-".to_owned()],
        Seen::Learning { connections } => [format!("learns ({connections})"), "-".to_owned(), "-".to_owned()],
        Seen::Missing { ticks } => [format!("missing ({ticks} ticks)"), "-".to_owned(), "-".to_owned()],
    };
    let count = |wish: Option<f64>| wish.map_or_else(|| "-".to_owned(), |wish| format!("{wish:.2}"));
    let carries = carries.map_or_else(|| "-".to_owned(), shown);
    let down = if wish.abstains { "abstains".to_owned() } else { count(wish.down) };
    [sight.metric.to_string(), fast, slow, peak, carries, count(wish.up), down].into_iter().map(Cell::new).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::{
        ControlReport, Manual, Orders, Phase,
        law::{self, Cooldowns, CpuUse, HostUse, Inputs, Repeats, Surge},
        policy::Bounds,
    };

    /// A service for which 150 connections of 20 ms came each second, for a minute.
    fn told(name: &str) -> ServiceReport {
        let law = Law { quota: Some(1.0), ..Law::new(Bounds::new(1, 8).unwrap()) };
        let (mut state, mut current) = (law::State::default(), 2);
        let (mut last, mut changed) = (None, None);
        for second in 0..60 {
            let age = Duration::from_secs(60);
            let one = CpuUse { cores: Some(3.0 / f64::from(current)), quota: Some(1.0), age, part: 1.0 };
            let inputs = Inputs {
                current,
                ready: current,
                host: Some(HostUse { processors: 8.0, busy: Some(4.0) }),
                cpu: vec![one; current as usize],
                arrivals: Some(150.0),
                connections: Some(15.0),
                ..Inputs::default()
            };
            let record = law::decide(&law, &inputs, &mut state, Timestamp::new(Duration::from_secs(second)));
            current = record.verdict.target;
            changed = if record.evidence.current == current { changed } else { Some(record.clone()) };
            last = Some(record);
        }
        let control = ControlReport {
            at: Timestamp::ZERO,
            phase: Phase::Running,
            min: Some(1),
            max: Some(8),
            desired: current,
            load: None,
            standing: None,
            record: last,
            changed,
            orders: Orders::default(),
            cooldowns: Cooldowns::default(),
            crash_loop: None,
            rollout: None,
            backends: Vec::new(),
            decisions: Vec::new(),
            generation: None,
            problems: Vec::new(),
        };
        ServiceReport { name: name.into(), control, target_cpu_percent: None, metrics: None }
    }

    fn shown(words: &[&str]) -> String {
        let all: Vec<Supposition> = words.iter().map(|word| word.parse().unwrap()).collect();
        let report = told("web");
        let explanation = explain(&report, &all, |at| 60_000 - at.elapsed().as_millis() as u64).unwrap();
        page(&explanation, Style { width: 120, colours: false })
    }

    #[test]
    fn that_a_service_sleeps_is_told_beside_what_its_law_would_want() {
        let mut report = told("web");
        (report.control.min, report.control.desired) = (Some(0), 0);
        let explanation = explain(&report, &[], |_| 0).unwrap();
        let page = page(&explanation, Style { width: 120, colours: false });

        for line in ["\nasleep until somebody comes; awake, the law would want 5\n", "\n0 to 8 backends"] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }

    #[test]
    fn the_last_decision_is_told_with_what_led_to_it() {
        let page = shown(&[]);

        for line in [
            "service web  ·  5 wanted, 5 serve  ·  steady  ·  decided 1 s ago",
            "host of 8 processors, 1.0 of them foreign load\n  a connection costs 20.00 ms of CPU",
            "METRIC         LAST SECONDS   UP WINDOW        PEAK  ONE CARRIES  WANTS AT LEAST  AT MOST",
            "arrivals            150.0/s     150.0/s     150.0/s       35.0/s            4.29     4.29",
            "container-cpu    3.00 cores  3.00 cores  3.00 cores   0.70 cores            4.29     4.29",
            "2 -> 5",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
        assert!(!page.contains("if "), "{page}");
    }

    #[test]
    fn what_came_at_once_and_what_came_again_is_told() {
        let mut report = told("web");
        let evidence = &mut report.control.record.as_mut().unwrap().evidence;
        evidence.surge = Some(Surge { connections: 150.0, within: Duration::from_micros(42_300) });
        evidence.repeats = Some(Repeats { syns: 61.0, connections: 450.0, within: Duration::from_secs(3) });

        let explanation = explain(&report, &[], |_| 0).unwrap();
        let page = page(&explanation, Style { width: 160, colours: false });

        for part in
            ["150 connections within 42ms, as 3546 a second", "61 SYNs came again in 3.0 s, beside 450 connections"]
        {
            assert!(page.contains(part), "{part}\n{page}");
        }
        let json: serde_json::Value = serde_json::from_str(&explanation.json()).unwrap();
        assert_eq!(json["record"]["evidence"]["surge"]["connections"], 150.0);
        assert_eq!(json["record"]["evidence"]["repeats"]["syns"], 61.0);
    }

    #[test]
    fn what_was_ordered_by_hand_stands_beside_what_the_law_wants() {
        let mut report = told("web");
        report.control.desired = 7;
        let manual = Manual { count: 7, since: Timestamp::ZERO, until: Some(Timestamp::from_millis(600_000)) };
        report.control.orders = Orders { manual: Some(manual), paused_in: Some(Timestamp::ZERO), paused_out: None };

        let explanation = explain(&report, &[], |at| 60_000 - at.elapsed().as_millis() as u64).unwrap();
        let page = page(&explanation, Style { width: 140, colours: false });

        assert!(page.starts_with("service web  ·  7 wanted, 5 serve"), "{page}");
        let ordered = "ordered: 7 by hand since 1 min, for 9 min more; scale-in paused until `lb-user resume`";
        assert!(page.contains(&format!("{ordered};")) && page.contains("the law wants 5\n"), "{page}");
    }

    #[test]
    fn what_another_law_would_have_decided_is_told() {
        let page = shown(&["target-cpu=50", "max=6"]);
        assert!(page.contains("if target-cpu=50, max=6: 6 instead of 5\n"), "{page}");

        let page = shown(&["min=2"]);
        assert!(page.contains("if min=2: 5 as well\n"), "{page}");
    }

    #[test]
    fn a_service_without_a_decision_says_why() {
        let why = |change: fn(&mut ServiceReport)| {
            let mut report = told("web");
            report.control.record = None;
            change(&mut report);
            explain(&report, &[], |_| 0).unwrap_err().to_string()
        };

        assert_eq!(why(|_| {}), "service web has no decision by demand: nothing was measured yet");
        assert!(why(|report| report.control.max = None).ends_with("its backends are not scaled"));
        let host = why(|report| {
            report.target_cpu_percent = Some(100.0);
            report.control.standing = Some("2 stay".into());
        });
        assert!(host.ends_with("it follows host-cpu: 2 stay"), "{host}");
    }

    #[test]
    fn one_of_several_services_has_to_be_named() {
        let services = [told("web"), told("cache")];

        assert_eq!(chosen(&services, Some("cache")).unwrap().name, "cache");
        assert_eq!(chosen(&services[..1], None).unwrap().name, "web");
        assert!(chosen(&services, None).unwrap_err().to_string().contains("web, cache"));
        assert!(chosen(&services, Some("x")).unwrap_err().to_string().starts_with("there is no service x"));
    }
}
