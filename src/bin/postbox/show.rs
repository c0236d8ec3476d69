//! How things are printed: tables on a terminal, the same without lines in a pipe, never a colour.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use comfy_table::presets::{NOTHING, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, ContentArrangement};
use postbox::time::OffsetDateTime;
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;

/// Whole, or as far as whoever reads it wants it.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// On stderr. Where nobody reads it any more, the exit code says enough.
pub(crate) fn tell(text: &str) {
    let mut err = io::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// What stands in a file may hold what a terminal obeys.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || turns_text(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Has what stands beside it shown in another order, or on another line: an id could look like another's.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(crate) fn path(path: &Path) -> String {
    printable(&path.display().to_string())
}

/// Seconds are enough for people.
pub(crate) fn time(at: OffsetDateTime) -> String {
    format!("{}Z", seconds(at))
}

/// With all that is known.
pub(crate) fn time_json(at: OffsetDateTime) -> String {
    format!("{}.{:06}Z", seconds(at), at.microsecond())
}

fn seconds(at: OffsetDateTime) -> String {
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// In its two largest units.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let Some(first) = units.iter().position(|(size, _)| seconds >= *size) else {
        return format!("{} ms", duration.subsec_millis());
    };
    let (size, name) = units[first];
    let mut shown = format!("{} {name}", seconds / size);
    if let Some((smaller, name)) = units.get(first + 1)
        && seconds % size / smaller > 0
    {
        let _ = write!(shown, " {} {name}", seconds % size / smaller);
    }
    shown
}

/// Names and numbers, below each other.
pub(crate) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    two_columns(pairs, CellAlignment::Right)
}

/// Names and texts, below each other.
pub(crate) fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> String {
    two_columns(fields, CellAlignment::Left)
}

fn two_columns<'a>(rows: impl IntoIterator<Item = (&'a str, String)>, alignment: CellAlignment) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in rows {
        table.add_row([name.to_owned(), printable(&value)]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(alignment);
    }
    flush_left(&table)
}

/// As in `1 error` and `2 errors`.
pub(crate) fn count_of(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// What is not there.
pub(crate) fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

/// Over several lines.
pub(crate) fn json(value: &Value) -> String {
    inert(&format!("{value:#}\n"))
}

/// What a terminal obeys and JSON does not escape by itself is escaped as well: it stands in strings alone.
pub(crate) fn inert(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if ('\u{7f}'..='\u{9f}').contains(&c) || turns_text(c) {
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text
}

/// A record of the library's, which has no keys but texts: it always becomes JSON.
pub(crate) fn json_of(record: &impl Serialize) -> Value {
    serde_json::to_value(record).unwrap_or_default()
}

pub(crate) struct Table(comfy_table::Table);

impl Table {
    pub(crate) fn new<const N: usize>(columns: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        let preset = if io::stdout().is_terminal() { UTF8_FULL_CONDENSED } else { NOTHING };
        table.load_style(preset).set_content_arrangement(ContentArrangement::Disabled).set_header(columns);
        Table(table)
    }

    /// The same without lines also on a terminal, for what stands between other things.
    pub(crate) fn bare<const N: usize>(columns: [&str; N]) -> Self {
        let mut table = Table::new(columns);
        table.0.load_style(NOTHING);
        table
    }

    /// Of this column, from 0, the numbers stand below each other.
    pub(crate) fn right(mut self, column: usize) -> Self {
        if let Some(column) = self.0.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        self
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.map(|cell| printable(&cell)));
    }

    /// `empty`, where there are no rows.
    pub(crate) fn render(self, empty: &str) -> String {
        if self.0.row_count() == 0 { format!("{empty}\n") } else { flush_left(&self.0) }
    }
}

/// Without the blanks at the ends of lines.
fn flush_left(table: &comfy_table::Table) -> String {
    let mut text = String::new();
    for line in table.to_string().lines() {
        let _ = writeln!(text, "{}", line.strip_prefix(' ').unwrap_or(line).trim_end());
    }
    text
}
