//! Rows as people read them.

use std::fmt::Write as _;

use crate::measure::as_f64;
use crate::report::{Goal, Row};

const HEADS: [&str; 8] = ["what", "ours", "floor", "ratio", "goal", "met", "spread of ours", "of the floor"];

/// When rows are printed as they come.
const WIDTHS: [usize; 8] = [70, 16, 16, 7, 7, 4, 20, 20];

pub(crate) fn print_head() {
    println!("{}", line(&HEADS.map(str::to_owned)));
}

pub(crate) fn print(row: &Row) {
    println!("{}", line(&cells(row)));
}

fn line(cells: &[String; 8]) -> String {
    let mut text = String::new();
    for (column, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        let _ = if column == 0 { write!(text, "{cell:<width$}") } else { write!(text, " {cell:>width$}") };
    }
    text
}

/// A Markdown table whose columns line up.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let all: Vec<[String; 8]> =
        std::iter::once(HEADS.map(str::to_owned)).chain(rows.iter().map(cells)).collect();
    let widths: [usize; 8] =
        std::array::from_fn(|column| all.iter().map(|cells| cells[column].len()).max().unwrap_or(0).max(3));
    let mut text = String::new();
    for (index, cells) in all.iter().enumerate() {
        let padded: [String; 8] = std::array::from_fn(|column| {
            let (cell, width) = (&cells[column], widths[column]);
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(text, "| {} |", padded.join(" | "));
        if index == 0 {
            let rule: [String; 8] = std::array::from_fn(|column| match widths[column] {
                width if column == 0 => "-".repeat(width),
                width => format!("{}:", "-".repeat(width - 1)),
            });
            let _ = writeln!(text, "| {} |", rule.join(" | "));
        }
    }
    text
}

fn cells(row: &Row) -> [String; 8] {
    let spread = |of: Option<[f64; 2]>| {
        of.map_or_else(String::new, |[least, most]| format!("{} to {}", figure(least), figure(most)))
    };
    [
        row.what.clone(),
        format!("{} {}", figure(row.ours), row.unit),
        row.floor.map_or_else(String::new, |floor| format!("{} {}", figure(floor), row.unit)),
        row.ratio.map_or_else(String::new, ratio),
        row.goal.map_or_else(String::new, goal),
        row.met.map_or("", |met| if met { "yes" } else { "no" }).to_owned(),
        spread(row.ours_spread),
        spread(row.floor_spread),
    ]
}

/// So fine that what misses its goal does not look like it.
fn ratio(ratio: f64) -> String {
    if ratio.abs() < 1.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") }
}

fn goal(goal: Goal) -> String {
    match goal {
        Goal::RatioAtLeast(least) => format!(">= {least}"),
        Goal::RatioAtMost(most) | Goal::AtMost(most) => format!("<= {most}"),
    }
}

/// Three or more digits that mean something.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 99.95 => thousands(value),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// For the names of rows.
pub(crate) fn count(number: usize) -> String {
    thousands(as_f64(number))
}

fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
