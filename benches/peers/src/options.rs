//! What the command line says.

use std::env;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::protocol::Column;

pub(crate) const USAGE: &str = "\
The same work through postbox and its peers.

  --quick          less of it: about two minutes, for a smoke test
  --json FILE      the figures as JSON as well
  --rounds N       how often each is measured (5; with --quick 2)
  --only A,B       these libraries: postbox, honker, effectum, apalis-sqlite, fang
  --columns A,B    these columns: one-by-one, at-once, in-batches, drain, latency
  --unsynced       also the rows whose commits are not synced
  --dir DIR        where the databases are written (the target folder); never a tmpfs
  --syncs          no timing: counts fsync and fdatasync for each event, with strace";

/// How much of each column.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Work {
    pub(crate) one_by_one: usize,
    pub(crate) at_once: usize,
    pub(crate) in_batches: usize,
    pub(crate) drain: usize,
    pub(crate) latency: usize,
    /// Threads or tasks of `at_once`.
    pub(crate) threads: usize,
    /// Events a transaction of `in_batches`.
    pub(crate) batch: usize,
}

impl Work {
    const FULL: Work = Work {
        one_by_one: 3_000,
        at_once: 8_000,
        in_batches: 20_000,
        drain: 20_000,
        latency: 305,
        threads: 16,
        batch: 100,
    };
    const QUICK: Work = Work {
        one_by_one: 300,
        at_once: 1_600,
        in_batches: 4_000,
        drain: 1_000,
        latency: 45,
        threads: 16,
        batch: 100,
    };

    pub(crate) fn events(&self, column: Column) -> usize {
        match column {
            Column::OneByOne => self.one_by_one,
            Column::AtOnce => self.at_once,
            Column::InBatches => self.in_batches,
            Column::Drain => self.drain,
            Column::Latency => self.latency,
        }
    }
}

pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) json: Option<PathBuf>,
    pub(crate) rounds: usize,
    pub(crate) only: Option<Vec<String>>,
    pub(crate) columns: Vec<Column>,
    pub(crate) unsynced: bool,
    pub(crate) dir: PathBuf,
    pub(crate) syncs: bool,
    pub(crate) work: Work,
    /// Where everything is built.
    pub(crate) target: PathBuf,
}

impl Options {
    pub(crate) fn from_arguments(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = arguments;
        let (mut quick, mut unsynced, mut syncs) = (false, false, false);
        let (mut json, mut rounds, mut only, mut columns, mut dir) = (None, None, None, None, None);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value\n\n{USAGE}"));
            match argument.as_str() {
                "--quick" => quick = true,
                "--unsynced" => unsynced = true,
                "--syncs" => syncs = true,
                "--json" => json = Some(PathBuf::from(value()?)),
                "--rounds" => {
                    let rounds_text = value()?;
                    let parsed = rounds_text.parse().ok().filter(|n| *n > 0);
                    rounds =
                        Some(parsed.ok_or_else(|| format!("--rounds {rounds_text} is no number from 1"))?);
                }
                "--only" => only = Some(value()?.split(',').map(str::to_owned).collect()),
                "--columns" => columns = Some(value()?.split(',').map(column).collect::<Result<_, _>>()?),
                "--dir" => dir = Some(PathBuf::from(value()?)),
                "--help" | "-h" => return Err(USAGE.to_owned()),
                _ => return Err(format!("{argument} is not known\n\n{USAGE}")),
            }
        }
        let target = env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
        Ok(Options {
            quick,
            json,
            rounds: rounds.unwrap_or(if quick { 2 } else { 5 }),
            only,
            columns: columns.unwrap_or_else(|| Column::ALL.to_vec()),
            unsynced,
            dir: dir.unwrap_or_else(|| target.join("peers-data")),
            syncs,
            work: if quick { Work::QUICK } else { Work::FULL },
            target,
        })
    }
}

fn column(key: &str) -> Result<Column, String> {
    Column::from_key(key).ok_or_else(|| format!("{key} is no column\n\n{USAGE}"))
}
