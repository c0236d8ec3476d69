//! Retention: processed events are deleted after a time, a few at a time, and so are sagas that have ended.

use std::time::Duration;

use crate::core::Core;
use crate::db::{Synchronous, WriteEach};
use crate::error::{Error, Result};
use crate::outbox::prune::{self, Passed};
use crate::sagas::table as sagas;
use crate::settings::Settings;

/// So many rows are looked at in one step.
const LOOKED_AT_MAX: usize = 1_000;

/// The write lock is held no longer than this, and the one row's deletion that is under way by then: others write in between.
const HELD_MAX: Duration = Duration::from_millis(4);

/// A pass through the table, from the oldest row to the first that is too young for anything to be deleted behind it.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// The last row that was looked at.
    at: i64,
    /// The sagas have had their turn, which comes first.
    past_sagas: bool,
}

/// What a step has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) deleted: usize,
    /// Nothing is left to be deleted: the next step begins from the oldest row.
    pub(crate) is_over: bool,
}

impl Pass {
    /// Deletes some of what is due.
    pub(crate) fn step(&mut self, core: &Core, settings: &Settings) -> Result<Step> {
        let now = core.clock.now();
        let Some(shortest) = settings.shortest_retention() else { return Ok(self.over(0)) };
        if !self.past_sagas {
            self.past_sagas = delete_some_sagas(core, settings, now)?;
            if !self.past_sagas {
                return Ok(Step { deleted: 0, is_over: false });
            }
        }
        let young = now.saturating_sub(micros(shortest));
        let rows = core.db.read("prune", |conn| prune::rows_after(conn, self.at, LOOKED_AT_MAX))?;
        let ends = rows.len() < LOOKED_AT_MAX;
        let rows: Vec<Passed> = rows.into_iter().take_while(|row| row.created_at <= young).collect();
        let Some(last) = rows.last().map(|row| row.seq) else { return Ok(self.over(0)) };
        let is_last = ends || rows.len() < LOOKED_AT_MAX;
        let due: Vec<(i64, i64)> = rows.iter().filter_map(|row| due(row, settings, now)).collect();
        let (deleted, stopped_at) = delete_some(core, &due)?;
        if let Some(stopped_at) = stopped_at {
            self.at = stopped_at;
        } else if is_last {
            return Ok(self.over(deleted));
        } else {
            self.at = last;
        }
        Ok(Step { deleted, is_over: false })
    }

    fn over(&mut self, deleted: usize) -> Step {
        *self = Pass::default();
        Step { deleted, is_over: true }
    }
}

/// The row's number and the time at which it was processed, if it is to go.
fn due(row: &Passed, settings: &Settings, now: i64) -> Option<(i64, i64)> {
    let retention = settings.retention_of(row.event_name.as_deref()?)?;
    let processed_at = row.processed_at?;
    (processed_at <= now.saturating_sub(micros(retention))).then_some((row.seq, processed_at))
}

fn micros(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX).saturating_mul(1_000)
}

/// How many were deleted, and the last that was tried where others are left.
fn delete_some(core: &Core, due: &[(i64, i64)]) -> Result<(usize, Option<i64>)> {
    // Not synced: what a power cut brings back is deleted again.
    let how = WriteEach { synchronous: Synchronous::Normal, held_max: Some(HELD_MAX) };
    let done = core.db.write_each("prune", how, due, |conn, (seq, processed_at)| {
        prune::delete(conn, *seq, *processed_at)
    })?;
    let stopped_at =
        if done.len() < due.len() { done.len().checked_sub(1).map(|at| due[at].0) } else { None };
    let mut deleted = 0;
    for done in done {
        match done {
            Ok(done) => deleted += usize::from(done),
            Err(error) => warn_once(core, &error),
        }
    }
    Ok((deleted, stopped_at))
}

/// Sagas that have ended and are past the retention of events that have none of their own. True: none is left that can be deleted.
fn delete_some_sagas(core: &Core, settings: &Settings, now: i64) -> Result<bool> {
    if settings.retention_ms == 0 {
        return Ok(true);
    }
    let since = now.saturating_sub(micros(settings.retention_ms));
    let due = core.db.read("prune", |conn| sagas::ended_before(conn, since, LOOKED_AT_MAX))?;
    let how = WriteEach { synchronous: Synchronous::Normal, held_max: Some(HELD_MAX) };
    let done = core.db.write_each("prune", how, &due, |conn, seq| sagas::delete_ended(conn, *seq, since))?;
    let is_cut = done.len() < due.len();
    let mut deleted = false;
    for done in done {
        match done {
            Ok(done) => deleted |= done,
            Err(error) => warn_once(core, &error),
        }
    }
    Ok(!deleted || (!is_cut && due.len() < LOOKED_AT_MAX))
}

/// A trigger or a foreign key of the application's keeps the row: it stays, and others go.
fn warn_once(core: &Core, error: &Error) {
    if core.first_warning_of("events that cannot be pruned") {
        log::warn!(target: "postbox::db", "processed events or ended sagas that are past their retention cannot be deleted: {error}");
    }
}

/// A whole pass, now. How many were deleted.
pub(crate) fn prune(core: &Core) -> Result<usize> {
    core.db.refuse_read_only("prune")?;
    core.db.refuse_reentry("prune")?;
    let settings = core.db.read("prune", |conn| core.reload_settings(conn))?;
    let mut pass = Pass::default();
    let mut deleted = 0;
    loop {
        let step = pass.step(core, &settings)?;
        deleted += step.deleted;
        if step.is_over {
            return Ok(deleted);
        }
    }
}

/// How many a whole pass would delete now.
pub(crate) fn prunable(core: &Core) -> Result<u64> {
    const OPERATION: &str = "prunable";
    let settings = core.db.read(OPERATION, |conn| core.reload_settings(conn))?;
    let Some(shortest) = settings.shortest_retention() else { return Ok(0) };
    let now = core.clock.now();
    let young = now.saturating_sub(micros(shortest));
    let (mut at, mut count) = (0, 0);
    loop {
        let rows = core.db.read(OPERATION, |conn| prune::rows_after(conn, at, LOOKED_AT_MAX))?;
        let looked_at = rows.iter().take_while(|row| row.created_at <= young);
        count += looked_at.filter(|row| due(row, &settings, now).is_some()).count() as u64;
        match rows.last() {
            Some(last) if rows.len() == LOOKED_AT_MAX && last.created_at <= young => at = last.seq,
            _ => return Ok(count),
        }
    }
}
