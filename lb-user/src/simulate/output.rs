//! What a simulation prints: a table, or JSON, and a picture if it is asked for.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use comfy_table::{Cell, CellAlignment};
use serde::Serialize;

use super::{Outcome, Scenario, Trace, compare, svg};
use crate::{
    control::law::{Law, Targets},
    status::{
        Style,
        page::{Page, Paint},
    },
};

/// What is to be simulated, and how it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What it is simulated on.
    pub scenario: Scenario,
    /// The law.
    pub law: Law,
    /// The traces.
    pub traces: Vec<Trace>,
    /// Whether JSON is printed instead of the table.
    pub as_json: bool,
    /// Where the picture goes.
    pub picture: Option<PathBuf>,
}

/// Why a simulation cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The picture cannot be written.
    #[error("write {}: {source}", path.display())]
    Picture {
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// The document of schema 1.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    processors: f64,
    foreign: f64,
    quota: f64,
    cost_seconds: f64,
    start_seconds: f64,
    objective_seconds: f64,
    min: u32,
    max: u32,
    targets: Targets,
    up_window_seconds: f64,
    down_window_seconds: f64,
    outcomes: &'a [Outcome],
}

/// Runs everything, and prints it.
///
/// # Errors
/// If the picture cannot be written.
pub fn show(request: &Request) -> Result<(), SimulateError> {
    let Request { scenario, law, traces, as_json, picture } = request;
    let outcomes: Vec<Outcome> = traces.iter().flat_map(|trace| compare(scenario, law, trace)).collect();
    let text = match as_json {
        true => {
            let document = Document {
                schema: 1,
                processors: scenario.processors,
                foreign: scenario.foreign,
                quota: scenario.quota,
                cost_seconds: scenario.cost,
                start_seconds: scenario.start_lag.as_secs_f64(),
                objective_seconds: scenario.objective.as_secs_f64(),
                min: scenario.bounds.min(),
                max: scenario.bounds.max(),
                targets: law.targets,
                up_window_seconds: law.up_window.as_secs_f64(),
                down_window_seconds: law.down_window.as_secs_f64(),
                outcomes: &outcomes,
            };
            serde_json::to_string_pretty(&document).expect("keys are text and numbers are finite") + "\n"
        }
        false => page(request, &outcomes, Style::of_stdout()),
    };
    if let Some(path) = picture {
        let written = std::fs::write(path, svg::draw(&outcomes));
        written.map_err(|source| SimulateError::Picture { path: path.clone(), source })?;
    }
    // Whoever closes the pipe has read enough.
    let _reader_left = io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// Returns the table, below what it is about.
pub(super) fn page(request: &Request, outcomes: &[Outcome], style: Style) -> String {
    let Request { scenario, law, .. } = request;
    let mut page = Page::new(style);
    page.parts(
        Paint::Strong,
        2,
        &[
            format!("{} to {} backends of {} processors", scenario.bounds.min(), scenario.bounds.max(), scenario.quota),
            format!("host of {} processors, {} of them foreign load", scenario.processors, scenario.foreign),
            format!("{:?} of CPU a connection", std::time::Duration::from_secs_f64(scenario.cost)),
            format!("{:?} to start", scenario.start_lag),
        ],
    );
    page.line(
        Paint::Plain,
        &format!("lb-user follows {}; windows {:?} up, {:?} down", law.targets.told(), law.up_window, law.down_window),
        2,
    );
    page.gap();
    let mut table = page.new_table();
    let titles = ["TRACE", "MODEL", "VIOLATION", "EXTRA", "LACKING", "ACTIONS", "REVERSALS", "SETTLING"];
    table.set_header(titles);
    for outcome in outcomes {
        table.add_row([
            Cell::new(&outcome.trace),
            Cell::new(outcome.model),
            Cell::new(format!("{:.2} %", outcome.violation_percent)),
            Cell::new(format!("{:.2}", outcome.extra)),
            Cell::new(format!("{:.2}", outcome.lacking)),
            Cell::new(outcome.actions),
            Cell::new(outcome.reversals),
            Cell::new(format!("{} s", outcome.settling_seconds)),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    page.table(table);
    page.gap();
    let objective = scenario.objective;
    page.line(
        Paint::Faint,
        &format!(
            "violation: seconds in which a connection had to wait longer than {objective:?}; extra and lacking: backends \
             beyond and below what carries the demand at 70 %, on average; settling: the longest wait without a break"
        ),
        2,
    );
    page.into_text()
}
