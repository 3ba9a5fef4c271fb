//! Findings as a page for people: what was configured, each group with its findings, and last, next to the prompt, what `run`
//! would do.

use super::{Diagnosis, Finding, Group, Level, NOT_LOOKED_AT, Scope};
use crate::status::{
    Style,
    human::{clean, list},
    page::{Page, Paint},
};

/// The columns of the level, with the space behind it.
const LEVEL_WIDTH: usize = 9;
/// The narrowest page that has a column of subjects.
const NARROW: u16 = 70;

/// Returns the page, with a line feed at its end.
pub fn render(diagnosis: &Diagnosis, scope: Scope, style: Style) -> String {
    let mut page = Page::new(style);
    let (of_file, of_machine): (Vec<&Finding>, Vec<&Finding>) =
        diagnosis.findings.iter().partition(|finding| finding.group == Group::Configuration);
    for finding in of_file {
        page.whole(Paint::Plain, &clean(&finding.found));
    }
    for service in &diagnosis.services {
        page.whole(Paint::Plain, &format!("{}: {}", service.name, list(&service.frontends)));
    }
    if let Some(file) = &diagnosis.file {
        page.whole(Paint::Plain, &format!("{}: no mistakes", clean(&file.display().to_string())));
    }
    if scope == Scope::File {
        return page.into_text();
    }
    let subjects = of_machine.iter().map(|finding| finding.subject.chars().count()).max().unwrap_or_default();
    let indent = if style.width < NARROW { LEVEL_WIDTH + 2 } else { LEVEL_WIDTH + 2 + subjects + 2 };
    let mut group = None;
    for finding in of_machine {
        if group.replace(finding.group) != Some(finding.group) {
            if !(diagnosis.services.is_empty() && finding.group == Group::Kernel) {
                page.gap();
            }
            page.line(Paint::Strong, title(finding.group), 0);
        }
        block(&mut page, finding, indent, style);
    }
    page.gap();
    let (paint, text) = ending(diagnosis);
    page.line(paint, &text, 0);
    page.into_text()
}

fn block(page: &mut Page, finding: &Finding, indent: usize, style: Style) {
    let (word, paint) = match finding.level {
        Level::Ok => ("ok", Paint::Plain),
        Level::Note => ("note", Paint::Plain),
        Level::Warning => ("warning", Paint::Worse),
        Level::Error => ("error", Paint::Bad),
    };
    let subject = clean(&finding.subject);
    let width = indent.saturating_sub(LEVEL_WIDTH + 2);
    let head = if style.width < NARROW {
        format!("  {word:<LEVEL_WIDTH$}{subject}: ")
    } else {
        format!("  {word:<LEVEL_WIDTH$}{subject:<width$}")
    };
    let mut lines = finding.found.lines();
    page.line(paint, &format!("{head}{}", clean(lines.next().unwrap_or_default())), indent);
    let mut below = |paint, text: &str| page.line(paint, &format!("{}{}", " ".repeat(indent), clean(text)), indent);
    lines.for_each(|line| below(paint, line));
    for text in [&finding.means, &finding.mend].into_iter().filter(|text| !text.is_empty()) {
        below(Paint::Plain, text);
    }
    // In one piece, to be copied.
    for command in &finding.commands {
        page.whole(Paint::Strong, &format!("{}  {}", " ".repeat(indent), clean(command)));
    }
}

fn title(group: Group) -> &'static str {
    match group {
        Group::Configuration => "configuration",
        Group::Kernel => "kernel",
        Group::Host => "host",
        Group::Clients => "clients",
        Group::Containers => "containers",
        Group::Backends => "backends",
        Group::Instances => "instances",
    }
}

fn ending(diagnosis: &Diagnosis) -> (Paint, String) {
    let [errors, warnings] = [Level::Error, Level::Warning].map(|level| diagnosis.count(level));
    let many = |count: usize, word: &str| match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    };
    let counted: Vec<String> = [(errors, "error"), (warnings, "warning")]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| many(count, word))
        .collect();
    let is_partial = diagnosis.findings.iter().any(|finding| finding.found == NOT_LOOKED_AT);
    let unseen = if is_partial { "; not all was looked at: run it as root" } else { "" };
    let counted = if counted.is_empty() { "nothing is missing".to_owned() } else { list(counted) };
    match errors {
        0 if is_partial => (Paint::Strong, format!("{counted}{unseen}")),
        0 => (Paint::Strong, format!("{counted}: lb-user run would start")),
        _ => (Paint::Bad, format!("{counted}: lb-user run would not work{unseen}")),
    }
}
