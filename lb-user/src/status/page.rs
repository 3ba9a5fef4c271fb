//! A page of text for a terminal: lines that break between words, tables, colours where they are wanted.

use std::{
    env,
    io::{IsTerminal, stdout},
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};

/// The width where there is no terminal to ask.
const DEFAULT_WIDTH: u16 = 100;
/// Lines of text are not made longer than this on a wide terminal: nobody reads them.
const WIDEST_TEXT: u16 = 120;
/// Below this, a terminal has to break lines by itself.
const NARROWEST: u16 = 20;
/// What stands between two statements of one line.
const SEPARATOR: &str = "  ·  ";
/// Spaces between two columns of a table, and in front of the first.
const GAP: u16 = 2;

/// What the page is shown on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal.
    pub width: u16,
    /// Whether colours are wanted.
    pub colours: bool,
}

impl Style {
    /// Returns the style of standard output: its width, and colours if it is a terminal and `NO_COLOR` is not set.
    pub fn of_stdout() -> Self {
        let no_colour = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let width = Table::new().width().filter(|width| *width > 0).unwrap_or(DEFAULT_WIDTH);
        Self { width, colours: stdout().is_terminal() && !no_colour }
    }
}

/// What a line means to the reader.
#[derive(Clone, Copy)]
pub enum Paint {
    /// Nothing in particular.
    Plain,
    /// A heading.
    Strong,
    /// A detail.
    Faint,
    /// Something that deserves a look.
    Worse,
    /// Something that is wrong.
    Bad,
}

impl Paint {
    /// Returns the parameter of the SGR sequence (ECMA-48, 8.3.117).
    fn sgr(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Strong => Some("1"),
            Self::Faint => Some("2"),
            Self::Worse => Some("33"),
            Self::Bad => Some("1;31"),
        }
    }
}

/// The page as far as it is written.
pub struct Page {
    text: String,
    style: Style,
}

impl Page {
    /// Returns an empty page.
    pub fn new(style: Style) -> Self {
        Self { text: String::new(), style }
    }

    /// Returns what is written.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Writes an empty line.
    pub fn gap(&mut self) {
        self.text.push('\n');
    }

    /// Writes a line of text; what does not fit goes on below, `indent` columns from the left.
    pub fn line(&mut self, paint: Paint, text: &str, indent: usize) {
        for line in wrap(text.split_inclusive(' '), self.room(), indent) {
            self.painted(paint, &line);
        }
    }

    /// Writes a line of text as it is, however long.
    pub fn whole(&mut self, paint: Paint, text: &str) {
        self.painted(paint, text);
    }

    /// Writes a line of statements; those that do not fit go on below, each in one piece if it can.
    pub fn parts(&mut self, paint: Paint, indent: usize, parts: &[String]) {
        let joined = parts.join(SEPARATOR);
        for line in wrap(joined.split_inclusive(SEPARATOR), self.room(), indent) {
            self.line(paint, &line, indent);
        }
    }

    /// Returns whether a table is no wider than the page.
    pub fn holds(&self, table: &Table) -> bool {
        let width: usize =
            table.column_max_content_widths().iter().map(|width| usize::from(width.saturating_add(GAP))).sum();
        width <= usize::from(self.style.width)
    }

    fn painted(&mut self, paint: Paint, line: &str) {
        match paint.sgr().filter(|_| self.style.colours) {
            Some(sgr) => self.text.push_str(&format!("\x1b[{sgr}m{line}\x1b[0m\n")),
            None => self.text.push_str(&format!("{line}\n")),
        }
    }

    fn room(&self) -> usize {
        usize::from(self.style.width.clamp(NARROWEST, WIDEST_TEXT))
    }

    /// Returns a table whose columns are two spaces apart, and as far from the left.
    pub fn new_table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).force_no_tty();
        table.set_width(self.style.width.max(NARROWEST));
        if self.style.colours {
            table.enforce_styling();
        }
        table
    }

    /// Writes a table.
    pub fn table(&mut self, mut table: Table) {
        for column in table.column_iter_mut() {
            column.set_padding((GAP, 0));
        }
        for line in table.lines() {
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
    }
}

/// Joins pieces to lines of at most `width` columns, if no piece is longer; what stands at the end of a line to hold
/// two pieces apart is left out.
fn wrap<'a>(pieces: impl Iterator<Item = &'a str>, width: usize, indent: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for piece in pieces {
        if used + bare(piece).chars().count() > width && used > indent {
            lines.push(" ".repeat(indent));
            used = indent;
        }
        used += piece.chars().count();
        if let Some(line) = lines.last_mut() {
            line.push_str(piece);
        }
    }
    lines.iter().map(|line| bare(line).to_owned()).collect()
}

fn bare(text: &str) -> &str {
    text.trim_end_matches([' ', '·'])
}
