//! The tables.

use std::fmt::Write as _;

use serde::Serialize;

use crate::contenders::{Failure, Library};
use crate::machine::Machine;
use crate::options::Work;
use crate::protocol::{Column, Outcome, Variant};

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) command: String,
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) work: Work,
    pub(crate) machine: Machine,
    pub(crate) load_before: Option<f64>,
    pub(crate) load_after: Option<f64>,
    /// Once a round.
    pub(crate) synced_append_us: Vec<f64>,
    pub(crate) libraries: Vec<Library>,
    pub(crate) tables: Vec<Table>,
    pub(crate) failures: Vec<Failure>,
}

#[derive(Serialize)]
pub(crate) struct Table {
    pub(crate) column: Column,
    pub(crate) events: usize,
    pub(crate) rows: Vec<Row>,
}

#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) library: String,
    #[serde(flatten)]
    pub(crate) variant: Variant,
    /// Once a round: events a second, or for latency the round's p50 after the return, in microseconds.
    rounds: Vec<f64>,
    median: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    /// Of all rounds together.
    latency: Option<Latency>,
    /// Events that a handler was given more than once, in all rounds.
    repeated: usize,
    #[serde(skip)]
    samples: Samples,
}

#[derive(Default)]
struct Samples {
    after_return_us: Vec<f64>,
    after_call_us: Vec<f64>,
}

/// From the return of the call that stored the event, and from the call, to the handler's first line.
#[derive(Clone, Copy, Serialize)]
struct Latency {
    after_return_p50_us: f64,
    after_return_p99_us: f64,
    after_call_p50_us: f64,
    after_call_p99_us: f64,
}

impl Row {
    pub(crate) fn new(library: String, variant: Variant) -> Self {
        Row {
            library,
            variant,
            rounds: Vec::new(),
            median: None,
            min: None,
            max: None,
            latency: None,
            repeated: 0,
            samples: Samples::default(),
        }
    }

    pub(crate) fn add(&mut self, outcome: Outcome, events: usize) {
        self.repeated += outcome.repeated;
        self.rounds.push(if outcome.after_return_us.is_empty() {
            events as f64 / outcome.seconds
        } else {
            quantile(&outcome.after_return_us, 0.5)
        });
        self.median = Some(quantile(&self.rounds, 0.5));
        self.min = Some(quantile(&self.rounds, 0.0));
        self.max = Some(quantile(&self.rounds, 1.0));
        self.samples.after_return_us.extend(outcome.after_return_us);
        self.samples.after_call_us.extend(outcome.after_call_us);
        let Samples { after_return_us, after_call_us } = &self.samples;
        self.latency = (!after_return_us.is_empty()).then(|| Latency {
            after_return_p50_us: quantile(after_return_us, 0.5),
            after_return_p99_us: quantile(after_return_us, 0.99),
            after_call_p50_us: quantile(after_call_us, 0.5),
            after_call_p99_us: quantile(after_call_us, 0.99),
        });
    }
}

/// The nearest rank; the mean of the middle two for a median of an even number.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len() - 1;
    if q == 0.5 && sorted.len().is_multiple_of(2) {
        return f64::midpoint(sorted[last / 2], sorted[last / 2 + 1]);
    }
    sorted[((q * last as f64).round() as usize).min(last)]
}

impl Report {
    pub(crate) fn as_markdown(&self) -> String {
        let mut text = String::new();
        self.head(&mut text);
        for table in &self.tables {
            let _ = writeln!(text, "\n### {}\n", self.title(table));
            text += &if table.column == Column::Latency { latencies(table) } else { rates(table) };
        }
        for Failure { what, why } in &self.failures {
            let _ = writeln!(text, "\nFAILED: {what}: {why}");
        }
        text
    }

    fn head(&self, text: &mut String) {
        let Machine { processor, cores, system } = &self.machine;
        let _ = writeln!(text, "{processor}, {cores} cores, {system}; {} rounds, medians", self.rounds);
        if !self.synced_append_us.is_empty() {
            let of = |q| quantile(&self.synced_append_us, q);
            let _ = writeln!(
                text,
                "a synced append of 4 KiB on this disk: {:.0} us ({:.0} - {:.0})",
                of(0.5),
                of(0.0),
                of(1.0)
            );
        }
        if let (Some(before), Some(after)) = (self.load_before, self.load_after) {
            let _ = writeln!(text, "load average: {before} before, {after} after");
        }
        let mut grid = Grid::new(&["library", "version", "SQLite"]);
        for Library { name, version, sqlite } in &self.libraries {
            grid.row([name.clone(), version.clone(), sqlite.clone()]);
        }
        let _ = writeln!(text);
        *text += &grid.to_string();
    }

    fn title(&self, table: &Table) -> String {
        let events = thousands(table.events);
        let Work { threads, batch, .. } = self.work;
        match table.column {
            Column::OneByOne => format!("Enqueue one by one, 1 thread, events/s ({events}, a commit each)"),
            Column::AtOnce => {
                format!("Enqueue from {threads} threads or tasks at once, events/s ({events})")
            }
            Column::InBatches => format!("Enqueue {batch} a transaction, events/s ({events})"),
            Column::Drain => format!("Drain a backlog of {events}, events/s"),
            Column::Latency => format!("Latency to an idle worker, microseconds ({events} a round)"),
        }
    }
}

fn rates(table: &Table) -> String {
    let drain = table.column == Column::Drain;
    // Synced commits beside synced ones, and the others beside the others.
    let ours = |row: &Row| {
        let mut ours = table.rows.iter().filter(|ours| ours.library == "postbox");
        ours.find(|ours| ours.variant.unsynced == row.variant.unsynced)?.median
    };
    let mut grid = Grid::new(&["", "median", "min - max", "to postbox", "durability"]);
    if drain {
        grid.column("worker");
    }
    for row in &table.rows {
        let ratio = row.median.zip(ours(row)).map_or_else(none, |(median, ours)| ratio(median / ours));
        let cells = [name(row), rate(row.median), spread(row), ratio, row.variant.durability.clone()];
        grid.row(cells.into_iter().chain(drain.then(|| row.variant.worker.clone())));
    }
    grid.to_string()
}

fn latencies(table: &Table) -> String {
    let heads =
        ["", "p50", "p50 of rounds", "p99", "p50 from the call", "p99 from the call", "durability", "worker"];
    let mut grid = Grid::new(&heads);
    for row in &table.rows {
        let figure = |of: fn(&Latency) -> f64| rate(row.latency.as_ref().map(of));
        grid.row([
            name(row),
            figure(|latency| latency.after_return_p50_us),
            spread(row),
            figure(|latency| latency.after_return_p99_us),
            figure(|latency| latency.after_call_p50_us),
            figure(|latency| latency.after_call_p99_us),
            row.variant.durability.clone(),
            row.variant.worker.clone(),
        ]);
    }
    grid.to_string()
}

fn name(row: &Row) -> String {
    match row.repeated {
        0 => row.variant.name.clone(),
        times => format!("{} ({} handled twice)", row.variant.name, thousands(times)),
    }
}

fn spread(row: &Row) -> String {
    row.min.zip(row.max).map_or_else(none, |(min, max)| format!("{} - {}", rate(Some(min)), rate(Some(max))))
}

fn ratio(ratio: f64) -> String {
    if ratio < 0.095 { format!("{ratio:.3}") } else { format!("{ratio:.2}") }
}

fn none() -> String {
    "-".to_owned()
}

fn rate(value: Option<f64>) -> String {
    value.map_or_else(none, |value| {
        let sign = if value < -0.5 { "-" } else { "" };
        format!("{sign}{}", thousands(value.abs().round() as usize))
    })
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A Markdown table whose columns line up.
pub(crate) struct Grid {
    rows: Vec<Vec<String>>,
}

impl Grid {
    pub(crate) fn new(heads: &[&str]) -> Self {
        Grid { rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()] }
    }

    fn column(&mut self, head: &str) {
        self.rows[0].push(head.to_owned());
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            writeln!(f, "| {} |", cells.join(" | "))?;
            if index == 0 {
                let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width.max(3))).collect();
                writeln!(f, "| {} |", rule.join(" | "))?;
            }
        }
        Ok(())
    }
}
