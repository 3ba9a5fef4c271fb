//! Runs as a picture: for each, the demand, the wish and what serves over time, and where connections waited.

use std::fmt::Write as _;

use super::{Moment, Outcome};

const WIDTH: f64 = 1000.0;
const PANEL: f64 = 150.0;
const LEFT: f64 = 40.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 22.0;
/// A line has no more points than this: there are no more columns to be seen.
const MOST_POINTS: usize = 960;

/// What of a moment is drawn.
type Value = fn(&Moment) -> f64;

/// Draws a panel for each run, one below the other.
pub fn draw(outcomes: &[Outcome]) -> String {
    let height = PANEL * outcomes.len() as f64 + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let keys = [("#888", "demand, in backends used whole"), ("#d95f02", "wanted"), ("#1b6ca8", "serving")];
    let mut x = LEFT;
    for (colour, text) in keys {
        let _ = writeln!(
            svg,
            "<path d=\"M{x} 12h18\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{}\" y=\"16\">{text}</text>",
            x + 24.0
        );
        x += 60.0 + 6.0 * text.len() as f64;
    }
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"6\" width=\"18\" height=\"12\" fill=\"#f4c7c3\"/><text x=\"{}\" y=\"16\">connections wait for too \
         long</text>",
        x + 24.0
    );
    for (place, outcome) in outcomes.iter().enumerate() {
        panel(&mut svg, outcome, 30.0 + PANEL * place as f64);
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, outcome: &Outcome, top: f64) {
    let course = &outcome.course;
    let highest = |moment: &Moment| moment.demand.max(f64::from(moment.wish)).max(f64::from(moment.ready));
    let most = course.iter().map(highest).fold(1.0, f64::max).ceil();
    let (bottom, height) = (top + PANEL - BOTTOM, PANEL - TOP - BOTTOM);
    let seconds = course.len().max(1) as f64;
    let x = |second: f64| LEFT + second / seconds * (WIDTH - LEFT - RIGHT);
    let y = |count: f64| bottom - count / most * height;

    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{} · {}: {:.2} % in violation, {:.2} extra, {} actions, {} \
         reversals</text>",
        top + 14.0,
        escaped(&outcome.trace),
        outcome.model,
        outcome.violation_percent,
        outcome.extra,
        outcome.actions,
        outcome.reversals
    );
    for (begin, end) in violations(course) {
        let width = (x(end as f64) - x(begin as f64)).max(1.0);
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"#f4c7c3\"/>",
            x(begin as f64),
            y(most)
        );
    }
    for count in [0.0, most] {
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {0:.1}H{1}\" stroke=\"#ddd\"/><text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{count}</text>",
            y(count),
            WIDTH - RIGHT,
            LEFT - 6.0,
            y(count) + 4.0
        );
    }
    for minutes in [0.0, seconds / 120.0, seconds / 60.0] {
        let anchor = if minutes * 60.0 >= seconds { "end" } else { "middle" };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#666\">{minutes:.0} min</text>",
            x(minutes * 60.0),
            bottom + 14.0
        );
    }
    let lines: [(&str, Value); 3] = [
        ("#888", |moment| moment.demand),
        ("#d95f02", |moment| f64::from(moment.wish)),
        ("#1b6ca8", |moment| f64::from(moment.ready)),
    ];
    for (colour, value) in lines {
        let mut path = String::new();
        for (second, value) in thinned(course, value) {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x(second), y(value));
        }
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\"/>");
    }
}

/// Returns the points of a line; of several that share a column, the highest.
fn thinned(course: &[Moment], value: Value) -> Vec<(f64, f64)> {
    let each = course.len().div_ceil(MOST_POINTS).max(1);
    let highest = |(place, some): (usize, &[Moment])| {
        ((place * each) as f64, some.iter().map(value).fold(f64::NEG_INFINITY, f64::max))
    };
    course.chunks(each).enumerate().map(highest).collect()
}

/// Returns the stretches of violation, from the first second to behind the last.
fn violations(course: &[Moment]) -> Vec<(usize, usize)> {
    let mut stretches: Vec<(usize, usize)> = Vec::new();
    for (second, _) in course.iter().enumerate().filter(|(_, moment)| moment.violates) {
        match stretches.last_mut() {
            Some((_, end)) if *end == second => *end += 1,
            Some(_) | None => stretches.push((second, second + 1)),
        }
    }
    stretches
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(demand: f64, violates: bool) -> Moment {
        Moment { demand, wish: 2, ready: 1, violates }
    }

    fn outcome(course: Vec<Moment>) -> Outcome {
        Outcome {
            trace: "a<b".into(),
            model: "HPA",
            violation_percent: 0.0,
            extra: 0.0,
            lacking: 0.0,
            actions: 0,
            reversals: 0,
            settling_seconds: 0,
            course,
        }
    }

    #[test]
    fn a_picture_has_a_panel_for_each_run_and_no_open_element() {
        let svg = draw(&[outcome(vec![moment(1.0, false), moment(9.0, true)]), outcome(Vec::new())]);

        assert_eq!(svg.matches("a&lt;b · HPA").count(), 2);
        assert_eq!(svg.matches("fill=\"#f4c7c3\"").count(), 2, "one in the key, one stretch");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn a_long_line_is_thinned_and_keeps_its_peaks() {
        let mut course = vec![moment(1.0, false); 100_000];
        course[77_777] = moment(50.0, true);

        let points = thinned(&course, |moment| moment.demand);

        assert!(points.len() <= MOST_POINTS);
        assert_eq!(points.iter().map(|point| point.1).fold(0.0, f64::max), 50.0);
        assert_eq!(violations(&course), [(77_777, 77_778)]);
    }
}
