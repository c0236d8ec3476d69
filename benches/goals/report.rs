//! What was measured, and whether it is as good as it is meant to be.

use std::fs::File;
use std::path::Path;

use postbox::serde_json;
use serde::Serialize;

use crate::machine::Machine;
use crate::measure::Sample;
use crate::table;

#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    quick: bool,
    rows: Vec<Row>,
    #[serde(skip)]
    section: &'static str,
    #[serde(skip)]
    markdown: bool,
}

#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) section: &'static str,
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: f64,
    pub(crate) floor: Option<f64>,
    pub(crate) ratio: Option<f64>,
    /// A row without one is there for information.
    pub(crate) goal: Option<Goal>,
    pub(crate) met: Option<bool>,
    /// The least and the most of what was measured.
    pub(crate) ours_spread: Option<[f64; 2]>,
    pub(crate) floor_spread: Option<[f64; 2]>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// For a figure without a floor.
    AtMost(f64),
}

impl Row {
    /// Against a floor that was measured in turn with it.
    pub(crate) fn against(
        what: impl Into<String>,
        unit: &'static str,
        ours: &Sample,
        floor: &Sample,
    ) -> Self {
        Row {
            floor: Some(floor.median()),
            ratio: Some(ours.ratio_to(floor)),
            floor_spread: Some([floor.least(), floor.most()]),
            ..Row::of(what, unit, ours)
        }
    }

    pub(crate) fn of(what: impl Into<String>, unit: &'static str, ours: &Sample) -> Self {
        Row { ours_spread: Some([ours.least(), ours.most()]), ..Row::figure(what, unit, ours.median()) }
    }

    /// Measured once.
    pub(crate) fn figure(what: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Row {
            section: "",
            what: what.into(),
            unit,
            ours,
            floor: None,
            ratio: None,
            goal: None,
            met: None,
            ours_spread: None,
            floor_spread: None,
        }
    }

    pub(crate) fn goal(self, goal: Goal) -> Self {
        let met = match goal {
            Goal::RatioAtLeast(least) => self.ratio.is_some_and(|ratio| ratio >= least),
            Goal::RatioAtMost(most) => self.ratio.is_some_and(|ratio| ratio <= most),
            Goal::AtMost(most) => self.ours <= most,
        };
        Row { goal: Some(goal), met: Some(met), ..self }
    }
}

impl Report {
    pub(crate) fn begin(machine: Machine, quick: bool, markdown: bool) -> Self {
        println!("{machine}; {}", if quick { "the short form" } else { "the long form" });
        if !markdown {
            table::print_head();
        }
        Report { machine, quick, rows: Vec::new(), section: "", markdown }
    }

    pub(crate) fn section(&mut self, name: &'static str) {
        self.section = name;
        if self.markdown {
            eprintln!("{name} ..."); // its table comes at the end, when the columns' widths are known
        }
    }

    pub(crate) fn add(&mut self, row: Row) {
        let row = Row { section: self.section, ..row };
        if !self.markdown {
            table::print(&row);
        }
        self.rows.push(row);
    }

    pub(crate) fn end(&self) {
        if self.markdown {
            println!("\n{}", table::markdown(&self.rows));
        }
        let with_goals = self.rows.iter().filter(|row| row.goal.is_some()).count();
        let met = self.rows.iter().filter(|row| row.met == Some(true)).count();
        println!("\n{met} of {with_goals} goals met");
    }

    pub(crate) fn write_json(&self, path: &Path, file: File) {
        serde_json::to_writer_pretty(file, self)
            .unwrap_or_else(|error| panic!("{} cannot be written: {error}", path.display()));
    }
}

/// Before anything is measured: a path that is wrong is known at once.
pub(crate) fn create(path: &Path) -> File {
    File::create(path).unwrap_or_else(|error| panic!("{} cannot be made: {error}", path.display()))
}
