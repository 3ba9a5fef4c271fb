//! Charts: systems side by side, and cost against scale.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, DrawingArea, IntoDrawingArea as _, IntoLogRange as _, LineSeries, PathElement,
    RGBColor, Rectangle, SVGBackend, SeriesLabelPosition, Text, TextStyle, WHITE,
};
use plotters::{
    coord::Shift,
    style::{
        Color as _, IntoFont as _, IntoTextStyle as _,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::{
    record::{Better, Line, Metric, Record},
    stats::Spread,
    suites::packet::thousands,
};

/// A chart that was drawn.
pub struct Chart {
    /// The suite it belongs to.
    pub suite: &'static str,
    /// What it shows.
    pub title: String,
    /// Its file, without the folder.
    pub file: String,
}

/// What is shown of each suite as bars.
const BARS: [(&str, &[Metric]); 8] = [
    ("connections", &[Metric::RequestsPerSecond, Metric::CpuPerRequest]),
    ("requests", &[Metric::RequestsPerSecond, Metric::CpuPerRequest]),
    ("throughput", &[Metric::BitsPerSecond, Metric::PacketsPerSecond]),
    ("latency", &[Metric::RoundTripP50]),
    ("packet", &[Metric::PerPacket]),
    ("live", &[Metric::PacketsPerSecond]),
    ("churn", &[Metric::WorstSecond]),
    ("containers", &[Metric::RequestsPerSecond]),
];

const OURS: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const OTHERS: RGBColor = RGBColor(0xb0, 0xb8, 0xc0);
const LINES: [RGBColor; 4] =
    [RGBColor(0x1f, 0x77, 0xb4), RGBColor(0xd6, 0x62, 0x2b), RGBColor(0x2c, 0x8c, 0x4e), RGBColor(0x7b, 0x52, 0xab)];
const FONT: &str = "sans-serif";
const WIDTH: u32 = 800;
/// Where bars begin.
const MARGIN: i32 = 230;
const BAR: i32 = 22;

/// Draws what there is to draw into a folder.
pub fn draw_all(record: &Record, folder: &Path) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    for (suite, metrics) in BARS {
        for case in record.cases(suite).into_iter().filter(|case| !case.contains(" by ") || case == "by kind") {
            let lines = record.lines(suite, &case);
            for &metric in metrics.iter().filter(|metric| lines.iter().any(|line| line.values.contains_key(metric))) {
                let of = if case.is_empty() { suite.to_owned() } else { format!("{suite}, {case}") };
                let title = format!("{of}: {metric}");
                let file = format!("{}.svg", file_name(&title));
                bars(&folder.join(&file), &title, metric, &lines).map_err(|error| anyhow!("draw {file}: {error}"))?;
                charts.push(Chart { suite, title, file });
            }
        }
    }
    for what in ["flows", "backends", "frontends"] {
        let cases: Vec<String> =
            record.cases("packet").into_iter().filter(|case| case.ends_with(&format!(" by {what}"))).collect();
        if !cases.is_empty() {
            let (title, file) = (format!("packet: ns/packet by {what}"), format!("packet-by-{what}.svg"));
            let name = |case: &str| case.split(", by ").next().unwrap_or_default().to_owned();
            let series: Vec<(String, Vec<(f64, Spread)>)> =
                cases.iter().map(|case| (name(case), points(&record.lines("packet", case)))).collect();
            growth(&folder.join(&file), &title, what, &series).map_err(|error| anyhow!("draw {file}: {error}"))?;
            charts.push(Chart { suite: "packet", title, file });
        }
    }
    Ok(charts)
}

fn file_name(title: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = title.chars().map(kept).collect();
    name.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// Reads sizes such as `1,000 flows`.
fn points(lines: &[Line]) -> Vec<(f64, Spread)> {
    let number = |text: &str| text.split(' ').next()?.replace(',', "").parse().ok();
    lines.iter().filter_map(|line| Some((number(&line.system)?, *line.values.get(&Metric::PerPacket)?))).collect()
}

type Outcome = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn text_style<'a>(area: &Area<'_>, size: i32, place: HPos) -> TextStyle<'a> {
    (FONT, size).into_text_style(area).pos(Pos::new(place, VPos::Center))
}

/// Bars from the median, with the least and the greatest as a whisker.
fn bars(path: &Path, title: &str, metric: Metric, lines: &[Line]) -> Outcome {
    let shown: Vec<(&str, Spread)> =
        lines.iter().filter_map(|line| Some((line.system.as_str(), *line.values.get(&metric)?))).collect();
    let greatest = shown.iter().map(|(_, spread)| spread.high).fold(0.0, f64::max);
    let height = 60 + BAR * shown.len() as i32 + 10;
    let area = SVGBackend::new(path, (WIDTH, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let direction = match metric.better() {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    area.draw(&Text::new(format!("{title} ({direction})"), (10, 20), text_style(&area, 16, HPos::Left)))?;
    let scale = f64::from(WIDTH as i32 - MARGIN - 120) / if greatest > 0.0 { greatest } else { 1.0 };
    let at = |value: f64| MARGIN + (value * scale) as i32;
    for (row, (system, spread)) in shown.iter().enumerate() {
        let top = 50 + BAR * row as i32;
        let middle = top + BAR / 2;
        area.draw(&Text::new((*system).to_owned(), (MARGIN - 8, middle), text_style(&area, 13, HPos::Right)))?;
        let colour = if system.starts_with("ours") { OURS } else { OTHERS };
        area.draw(&Rectangle::new([(MARGIN, top + 3), (at(spread.median), top + BAR - 3)], colour.filled()))?;
        area.draw(&PathElement::new([(at(spread.low), middle), (at(spread.high), middle)], BLACK))?;
        let label = metric.show(spread.median);
        area.draw(&Text::new(label, (at(spread.high) + 6, middle), text_style(&area, 13, HPos::Left)))?;
    }
    area.present()?;
    Ok(())
}

/// Lines over a logarithmic axis.
fn growth(path: &Path, title: &str, what: &str, series: &[(String, Vec<(f64, Spread)>)]) -> Outcome {
    let all = || series.iter().flat_map(|(_, points)| points);
    let (least, most) = all().fold((f64::MAX, 1.0_f64), |(least, most), &(x, _)| (least.min(x), most.max(x)));
    let highest = all().map(|(_, spread)| spread.high).fold(1.0, f64::max);
    let area = SVGBackend::new(path, (WIDTH, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{title} (less is better)"), (FONT, 16).into_font())
        .margin(15)
        .margin_right(40)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((least..most).log_scale(), 0.0..highest * 1.15)?;
    chart
        .configure_mesh()
        .x_desc(what)
        .y_desc("ns")
        .x_label_formatter(&|x| thousands(x.round() as u32))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .label_style((FONT, 12))
        .draw()?;
    for ((name, points), colour) in series.iter().zip(LINES.iter().cycle()) {
        let medians = points.iter().map(|&(x, spread)| (x, spread.median));
        chart
            .draw_series(LineSeries::new(medians.clone(), colour.stroke_width(2)))?
            .label(name.as_str())
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(medians.map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .label_font((FONT, 12))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Values;

    #[test]
    fn bars_and_growth_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = Record::default();
        for (system, rps) in [("ours, TC", 12_000.0), ("nftables", 9_000.0)] {
            record.add("connections", "", system, 1, Values::from([(Metric::RequestsPerSecond, rps)]));
        }
        for (size, cost) in [("1,000 flows", 90.0), ("1,000,000 flows", 140.0)] {
            record.add("packet", "XDP, established TCP, by flows", size, 1, Values::from([(Metric::PerPacket, cost)]));
        }

        let charts = draw_all(&record, folder.path()).unwrap();

        let files: Vec<&str> = charts.iter().map(|chart| chart.file.as_str()).collect();
        assert_eq!(files, ["connections-requests-s.svg", "packet-by-flows.svg"]);
        let drawn = std::fs::read_to_string(folder.path().join(files[0])).unwrap();
        assert!(drawn.contains("nftables") && drawn.contains("12000"), "{drawn}");
    }
}
