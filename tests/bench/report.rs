//! What a run leaves: a text for the terminal, a report, every round, and charts.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, TableStyle, presets};
use serde::Serialize;

use crate::{
    chart,
    machine::Machine,
    options::Options,
    record::{LeftOut, Metric, Record, Turn},
    suites::{containers, live, packet},
    systems,
    targets::{self, Outcome},
};

/// A run, ready to be told.
pub struct Report<'a> {
    options: &'a Options,
    record: &'a Record,
    machine: Machine,
    outcomes: Vec<Outcome>,
}

/// `results.json`.
#[derive(Serialize)]
struct Results<'a> {
    machine: &'a Machine,
    rounds: u32,
    duration_ms: u128,
    turns: &'a [Turn],
    left_out: &'a [LeftOut],
    targets: &'a [Outcome],
}

/// The suites with what they are about.
const SUITES: [(&str, &str); 9] = [
    (
        "connections",
        "A new TCP connection for every request, 64 at a time. wrk waits for an answer before it asks again, so a slow \
         balancer is asked less, and its latencies look better than those of open load would. Without a balancer each of \
         wrk's two threads asks one server, and the kernel soon runs both on one processor; behind a balancer every \
         thread asks every server. What a balancer itself costs is seen where there is one server.",
    ),
    ("requests", "The same by 64 connections that stay."),
    (
        "throughput",
        "TCP by iperf3, to one backend; its client stays on the first processor, its server on the last. UDP: 18 bytes of payload from 64 sockets of one sender that never waits; kpps are \
         those that arrive.",
    ),
    (
        "latency",
        "One message at a time, there and back; nothing else happens. Added: the median less that without a \
         balancer, of the same round. The client stays on the first processor, the server \
         on the last, and none of them sleeps: waking one takes longer than what is measured.",
    ),
    (
        "packet",
        "Each program by BPF_PROG_TEST_RUN. A program of the benchmark lays a whole packet anew, of another flow each \
         time, and tail-calls the one that is measured; what laying and calling cost is measured in the same turn with a \
         program that does nothing, slice by slice, and taken off; a turn's value is the median of its slices. New SYNs meet tables that are full, as in a flood.",
    ),
    (
        "live",
        "Frames of BPF_F_TEST_XDP_LIVE_FRAMES through XDP into a veth whose other end drops and counts them; kpps are \
         those of each processor, with connections of its own in maps that all share. Laying each frame anew is part of it, for both systems.",
    ),
    ("control", "Publications are those of the datapath as the agent makes them, with new connections all the while."),
    (
        "churn",
        "New connections, and every second one of four backends leaves or comes back. Worst second: the fewest new \
         connections of any second, of what there were before the changes began. Ours by the datapath as the agent drives \
         it, nftables and iptables by replacing their rules in one transaction, HAProxy by its runtime API, nginx by a reload.",
    ),
    ("containers", "One container of the sample API."),
];

impl<'a> Report<'a> {
    /// Prepares a report.
    pub fn new(options: &'a Options, record: &'a Record, machine: Machine) -> Self {
        Self { options, record, machine, outcomes: targets::outcomes(record) }
    }

    /// Returns the tables for a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (suite, _) in SUITES {
            for case in self.record.cases(suite) {
                let heading = if case.is_empty() { suite.to_owned() } else { format!("{suite}: {case}") };
                let _infallible =
                    write!(text, "\n{heading}\n{}\n", self.table(suite, &case, presets::UTF8_BORDERS_ONLY));
            }
        }
        if !self.outcomes.is_empty() {
            let _infallible = write!(text, "\ntargets\n{}\n", self.targets(presets::UTF8_BORDERS_ONLY));
        }
        for LeftOut { suite, what, reason } in &self.record.left_out {
            let _infallible = writeln!(text, "{suite}: {what} is left out: {reason}");
        }
        text
    }

    /// Writes everything into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let results = Results {
            machine: &self.machine,
            rounds: self.options.rounds,
            duration_ms: self.options.duration.as_millis(),
            turns: &self.record.turns,
            left_out: &self.record.left_out,
            targets: &self.outcomes,
        };
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        write("results.json", serde_json::to_string_pretty(&results)? + "\n")?;
        let charts = chart::draw_all(self.record, folder)?;
        write("report.md", self.markdown(&charts))
    }

    fn markdown(&self, charts: &[chart::Chart]) -> String {
        let mut text = format!(
            "# Benchmarks of {}\n\nOn {}. {} rounds, {:?} a turn; systems take turns, and a ratio compares two of them \
             within one round. Values are medians over the rounds, with the least and the greatest.\n",
            self.machine.started,
            self.machine.sentence(),
            self.options.rounds,
            self.options.duration,
        );
        let _infallible = write!(
            text,
            "\nWhat this does not show: client, balancer and servers share one machine's processors, so that a rate is \
             what all of them together can do; devices are veths, not network cards; {} other work may have run beside \
             it. Compare within a table, not between machines.\n",
            if self.machine.virtual_machine { "the processors are virtual ones;" } else { "" },
        );
        for (suite, about) in SUITES {
            let cases = self.record.cases(suite);
            if cases.is_empty() {
                continue;
            }
            let _infallible = write!(text, "\n## {suite}\n\n{about}\n");
            for case in cases {
                if !case.is_empty() {
                    let _infallible = write!(text, "\n### {case}\n");
                }
                let _infallible = write!(text, "\n{}\n", self.table(suite, &case, presets::ASCII_MARKDOWN));
            }
            for chart in charts.iter().filter(|chart| chart.suite == suite) {
                let _infallible = write!(text, "\n![{}]({})\n", chart.title, chart.file);
            }
        }
        if !self.outcomes.is_empty() {
            let _infallible = write!(text, "\n## Targets\n\n{}\n", self.targets(presets::ASCII_MARKDOWN));
        }
        if !self.record.left_out.is_empty() {
            text += "\n## Left out\n\n";
            for LeftOut { suite, what, reason } in &self.record.left_out {
                let _infallible = writeln!(text, "- {suite}: {what}: {reason}");
            }
        }
        text += "\n## Versions and settings\n\n";
        if let Some(commit) = &self.machine.commit {
            let _infallible = writeln!(text, "- commit: {commit}");
        }
        for (name, value) in self.machine.versions.iter().chain(&self.machine.settings) {
            let _infallible = writeln!(text, "- {name}: {value}");
        }
        text
    }

    fn table(&self, suite: &str, case: &str, preset: TableStyle) -> Table {
        let lines = self.record.lines(suite, case);
        let metrics: Vec<Metric> = {
            let mut all: Vec<Metric> = lines.iter().flat_map(|line| line.values.keys().copied()).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let mut table = new_table(preset);
        let mut header = vec![String::new()];
        header.extend(metrics.iter().map(Metric::to_string));
        let main = metrics
            .first()
            .copied()
            .filter(|_| lines.iter().any(|line| self.reference(suite, case, &line.system).is_some()));
        if let Some(main) = main {
            header.push(format!("{main}, ratio"));
        }
        table.set_header(header);
        for line in &lines {
            let mut row = vec![line.system.clone()];
            for (place, metric) in metrics.iter().enumerate() {
                row.push(line.values.get(metric).map_or_else(String::new, |spread| {
                    let median = metric.show(spread.median);
                    let spread = format!("{}–{}", metric.show(spread.low), metric.show(spread.high));
                    if place == 0 && self.options.rounds > 1 { format!("{median} ({spread})") } else { median }
                }));
            }
            if let Some(main) = main {
                let ratio = self.reference(suite, case, &line.system).and_then(|to| {
                    let ratio = self.record.ratio(suite, case, main, &line.system, to)?;
                    let spread = format!(" ({:.2}–{:.2})", ratio.low, ratio.high);
                    Some(format!("{:.2}{}", ratio.median, if self.options.rounds > 1 { &spread } else { "" }))
                });
                row.push(ratio.unwrap_or_default());
            }
            table.add_row(row);
        }
        align(&mut table);
        table
    }

    fn reference(&self, suite: &str, case: &str, system: &str) -> Option<&'static str> {
        match suite {
            "packet" => packet::reference(case, system),
            "live" => (system != live::ALONE).then_some(live::ALONE),
            "control" | "churn" => None,
            "containers" => containers::reference(system),
            _ => systems::reference(system),
        }
    }

    fn targets(&self, preset: TableStyle) -> Table {
        let mut table = new_table(preset);
        table.set_header(["", "wanted", "measured", "spread", ""]);
        for Outcome { what, wanted, measured, holds } in &self.outcomes {
            let show = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
            table.add_row([
                what.clone(),
                wanted.clone(),
                show(measured.median),
                format!("{}–{}", show(measured.low), show(measured.high)),
                if *holds { "holds" } else { "falls short" }.to_owned(),
            ]);
        }
        align(&mut table);
        table
    }
}

fn new_table(preset: TableStyle) -> Table {
    let mut table = Table::new();
    table.load_style(preset);
    table
}

/// Numbers stand to the right.
fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
