//! The table `postbox_schedule`: all of its SQL.
//!
//! Times in it are the wall clock's, which may go back, and not the box's own. `updated_at` says when somebody last wrote a row: one that was
//! written more than a day after now is of a clock that was wrong.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};
use time::OffsetDateTime;

use super::due::{self, Progress};
use super::rule::{Rule, Ticks};
use super::template::Template;
use super::{Misfire, Prepared, StoredSchedule};
use crate::clock::{LATEST, from_micros};
use crate::error::{Error, Result};
use crate::validate;

const TABLE: &str = "postbox_schedule";

/// A row, without knowing whether what stands in it can be understood.
pub(crate) struct Stored {
    pub(crate) seq: i64,
    pub(crate) name: String,
    pub(crate) rule: String,
    pub(crate) misfire: String,
    pub(crate) event: String,
    pub(crate) counted_from: Option<i64>,
    pub(crate) progress: Progress,
    pub(crate) paused_at: Option<i64>,
    created_at: i64,
    last_error: Option<String>,
}

macro_rules! select_schedule {
    ($rest:literal) => {
        concat!(
            "SELECT seq, name, rule, misfire, event, counted_from, next_at, last_at, latest_at, paused_at, created_at,
                    updated_at, last_error
             FROM main.postbox_schedule ",
            $rest
        )
    };
}

fn read(row: &Row<'_>) -> rusqlite::Result<Stored> {
    // SQLite stores any bytes: one row that cannot be read must not hide the others.
    let text = |column| -> rusqlite::Result<Option<String>> {
        Ok(match row.get_ref(column)? {
            ValueRef::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        })
    };
    Ok(Stored {
        seq: row.get(0)?,
        name: text(1)?.unwrap_or_default(),
        rule: text(2)?.unwrap_or_default(),
        misfire: text(3)?.unwrap_or_default(),
        event: text(4)?.unwrap_or_default(),
        counted_from: row.get(5)?,
        progress: Progress {
            next: row.get(6)?,
            last: row.get(7)?,
            latest: row.get(8)?,
            written_at: row.get(11)?,
        },
        paused_at: row.get(9)?,
        created_at: row.get(10)?,
        last_error: text(12)?,
    })
}

impl Stored {
    /// Its ticks, if they can be told.
    pub(crate) fn ticks(&self) -> Result<Ticks> {
        Rule::read(&self.rule).ok_or_else(|| spoilt("rule"))?.ticks(self.counted_from)
    }

    pub(crate) fn misfire(&self) -> Result<Misfire> {
        Misfire::read(&self.misfire).ok_or_else(|| spoilt("misfire"))
    }

    pub(crate) fn template(&self) -> Result<Template> {
        Template::read(&self.event).ok_or_else(|| spoilt("event"))
    }

    /// Why it cannot tick, as far as the row tells.
    pub(crate) fn fault(&self) -> Option<Error> {
        self.ticks().err().or_else(|| self.misfire().err()).or_else(|| self.template().err())
    }

    fn has_sound_times(&self) -> bool {
        let Progress { next, last, latest, .. } = self.progress;
        let others = [self.counted_from, next, last, latest, self.paused_at];
        let all = others.into_iter().flatten().chain([self.created_at, self.progress.written_at]);
        all.into_iter().all(|at| (0..=LATEST).contains(&at))
    }

    pub(crate) fn show(self) -> StoredSchedule {
        let error = self.fault().map(|error| validate::error_text(&error.to_string())).or(self.last_error);
        let (rule, starting_at, ending_at) = match Rule::read(&self.rule) {
            Some(rule) => (Some(rule.ticks), rule.starting_at, rule.ending_at),
            None => (None, None, None),
        };
        let time = |at: Option<i64>| -> Option<OffsetDateTime> { at.map(from_micros) };
        StoredSchedule {
            rule,
            starting_at: time(starting_at),
            ending_at: time(ending_at),
            misfire: Misfire::read(&self.misfire),
            event_name: Template::read(&self.event).map(|event| event.event_name().to_owned()),
            next_at: time(self.progress.next.filter(|_| self.paused_at.is_none())),
            last_at: time(self.progress.last),
            paused_at: time(self.paused_at),
            created_at: from_micros(self.created_at),
            updated_at: from_micros(self.progress.written_at),
            error,
            name: self.name,
        }
    }
}

fn spoilt(column: &'static str) -> Error {
    Error::invalid(column, "was written by another program, or a newer release, and cannot be understood")
}

/// What no box would write, or what keeps a schedule from ticking.
pub(crate) enum Flaw {
    Spoilt(Error),
    /// Not within the years 1970 to 9999.
    Time,
    Failing,
}

/// By name. A build without a feature that a schedule needs sees nothing wrong in that.
pub(crate) fn flaws(conn: &Connection) -> Result<Vec<(String, Flaw)>> {
    let flaw = |stored: &Stored| match stored.fault() {
        Some(error) if !matches!(error, Error::FeatureMissing { .. }) => Some(Flaw::Spoilt(error)),
        _ if !stored.has_sound_times() => Some(Flaw::Time),
        None if stored.last_error.is_some() => Some(Flaw::Failing),
        _ => None,
    };
    Ok(list(conn)?.into_iter().filter_map(|stored| flaw(&stored).map(|flaw| (stored.name, flaw))).collect())
}

/// When the next tick after this time is, of those schedules that are not to be skipped.
pub(crate) fn next_tick(conn: &Connection, after: i64, skip: impl Fn(i64) -> bool) -> Result<Option<i64>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, next_at FROM main.postbox_schedule
         WHERE paused_at IS NULL AND next_at IS NOT NULL AND next_at > ?1 ORDER BY next_at",
    )?;
    let mut rows = statement.query([after])?;
    while let Some(row) = rows.next()? {
        if !skip(row.get(0)?) {
            return Ok(Some(row.get(1)?));
        }
    }
    Ok(None)
}

/// Schedules with ticks that have come, the longest ago first.
pub(crate) fn due(
    conn: &Connection,
    wall: i64,
    limit: usize,
    skip: impl Fn(i64) -> bool,
) -> Result<Vec<i64>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq FROM main.postbox_schedule
         WHERE paused_at IS NULL AND next_at IS NOT NULL AND next_at <= ?1 ORDER BY next_at",
    )?;
    let mut rows = statement.query([wall])?;
    let mut due = Vec::new();
    while let Some(row) = rows.next()?.filter(|_| due.len() < limit) {
        let seq = row.get(0)?;
        if !skip(seq) {
            due.push(seq);
        }
    }
    Ok(due)
}

/// The schedule, if a tick of it has come and nobody has dealt with it.
pub(crate) fn get_due(conn: &Connection, seq: i64, wall: i64) -> Result<Option<Stored>> {
    Ok(conn
        .prepare_cached(select_schedule!("WHERE seq = ?1 AND paused_at IS NULL AND next_at <= ?2"))?
        .query_row([seq, wall], read)
        .optional()?)
}

/// Schedules that a clock has written which was ahead of this one by more than it can be corrected.
pub(crate) fn ahead(conn: &Connection, wall: i64) -> Result<Vec<i64>> {
    let mut statement =
        conn.prepare_cached("SELECT seq FROM main.postbox_schedule WHERE updated_at >= ?1")?;
    let ahead = statement.query_map([due::later(wall)], |row| row.get(0))?;
    Ok(ahead.collect::<rusqlite::Result<_>>()?)
}

pub(crate) fn get_ahead(conn: &Connection, seq: i64, wall: i64) -> Result<Option<Stored>> {
    Ok(conn
        .prepare_cached(select_schedule!("WHERE seq = ?1 AND updated_at >= ?2"))?
        .query_row([seq, due::later(wall)], read)
        .optional()?)
}

pub(crate) fn get(conn: &Connection, name: &str) -> Result<Option<Stored>> {
    Ok(conn.prepare_cached(select_schedule!("WHERE name = ?1"))?.query_row([name], read).optional()?)
}

/// By name.
pub(crate) fn list(conn: &Connection) -> Result<Vec<Stored>> {
    let mut statement = conn.prepare_cached(select_schedule!("ORDER BY name"))?;
    Ok(statement.query_map([], read)?.collect::<rusqlite::Result<_>>()?)
}

/// Makes it, or changes what there is. What ticks alike goes on as it does; a pause stays.
pub(crate) fn put(conn: &Connection, name: &str, schedule: &Prepared, wall: i64) -> Result<Stored> {
    let before = get(conn, name)?;
    let is_same = |before: &Stored| {
        (&before.rule, &before.misfire, &before.event) == (&schedule.rule, &schedule.misfire, &schedule.event)
    };
    if let Some(before) = before.as_ref().filter(|before| is_same(before))
        && before.last_error.is_none()
    {
        return after(conn, name);
    }
    let (counted_from, progress) = match &before {
        Some(before) if before.rule == schedule.rule => (before.counted_from, before.progress),
        _ => {
            let counted_from = Some(wall).filter(|_| schedule.is_counted);
            let ticks = Rule::read(&schedule.rule).ok_or_else(|| spoilt("rule"))?.ticks(counted_from)?;
            let progress = before.as_ref().map(|before| before.progress).unwrap_or_default();
            (counted_from, progress.going_on(&ticks, wall))
        }
    };
    let stored = conn
        .prepare_cached(
            "INSERT INTO main.postbox_schedule
                (name, rule, misfire, event, counted_from, next_at, last_at, latest_at, created_at, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9)
             ON CONFLICT (name) DO UPDATE
             SET rule = excluded.rule, misfire = excluded.misfire, event = excluded.event,
                 counted_from = excluded.counted_from, next_at = excluded.next_at, last_at = excluded.last_at,
                 latest_at = excluded.latest_at, updated_at = excluded.updated_at, last_error = NULL",
        )?
        .execute(params![
            name,
            schedule.rule,
            schedule.misfire,
            schedule.event,
            counted_from,
            progress.next,
            progress.last,
            progress.latest,
            wall,
        ])?;
    refuse_swallowed(stored, "the schedule")?;
    after(conn, name)
}

fn after(conn: &Connection, name: &str) -> Result<Stored> {
    get(conn, name)?.ok_or_else(|| not_stored("the schedule"))
}

/// Its ticks up to now have been dealt with.
pub(crate) fn go_on(conn: &Connection, seq: i64, progress: Progress, wall: i64) -> Result<()> {
    let stored = conn
        .prepare_cached(
            "UPDATE main.postbox_schedule
             SET next_at = ?2, last_at = ?3, latest_at = ?4, updated_at = ?5, last_error = NULL WHERE seq = ?1",
        )?
        .execute(params![seq, progress.next, progress.last, progress.latest, wall])?;
    refuse_swallowed(stored, "the schedule's next tick")
}

/// Why it did not tick.
pub(crate) fn note_error(conn: &Connection, seq: i64, error: &str) -> Result<()> {
    conn.prepare_cached(
        "UPDATE main.postbox_schedule SET last_error = ?2 WHERE seq = ?1 AND last_error IS NOT ?2",
    )?
    .execute(params![seq, error])?;
    Ok(())
}

pub(crate) fn pause(conn: &Connection, seq: i64, wall: i64) -> Result<()> {
    let stored = conn
        .prepare_cached("UPDATE main.postbox_schedule SET paused_at = ?2, updated_at = ?2 WHERE seq = ?1")?
        .execute([seq, wall])?;
    refuse_swallowed(stored, "the pause of the schedule")
}

/// With the first tick from now on.
pub(crate) fn resume(conn: &Connection, seq: i64, progress: Progress, wall: i64) -> Result<()> {
    let stored = conn
        .prepare_cached(
            "UPDATE main.postbox_schedule
             SET paused_at = NULL, next_at = ?2, last_at = ?3, latest_at = ?4, updated_at = ?5 WHERE seq = ?1",
        )?
        .execute(params![seq, progress.next, progress.last, progress.latest, wall])?;
    refuse_swallowed(stored, "the end of the schedule's pause")
}

/// False: there was none.
pub(crate) fn remove(conn: &Connection, name: &str) -> Result<bool> {
    let deleted =
        conn.prepare_cached("DELETE FROM main.postbox_schedule WHERE name = ?1")?.execute([name])?;
    if deleted == 0 && get(conn, name)?.is_some() {
        return Err(not_stored("the removal of the schedule"));
    }
    Ok(deleted == 1)
}

/// A trigger with RAISE(IGNORE) says Ok as well.
fn refuse_swallowed(rows: usize, what: &'static str) -> Result<()> {
    if rows == 1 { Ok(()) } else { Err(not_stored(what)) }
}

pub(crate) fn not_stored(what: &'static str) -> Error {
    Error::NotStored { what, table: TABLE }
}
