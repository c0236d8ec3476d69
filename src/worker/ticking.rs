//! Publishing the ticks of schedules that have come. Whoever processes does it first: a worker in its loop, and a caller by hand.

use std::time::Duration;

use rusqlite::Connection;

use super::left_alone::LeftAlone;
use crate::clock::to_micros;
use crate::core::Core;
use crate::db::{Synchronous, WriteEach, all_or_none};
use crate::error::{Error, Result};
use crate::observing::Publication;
use crate::outbox::insert;
use crate::schedule::due;
use crate::schedule::table::{self, Stored};
use crate::validate;

const OPERATION: &str = "publish ticks";

/// Others write in between.
const HOW: WriteEach =
    WriteEach { synchronous: Synchronous::Full, held_max: Some(Duration::from_millis(20)) };

/// So many schedules are looked at in one transaction.
const SCHEDULES_MAX: usize = 256;

/// By the clock that ticks go by.
pub(super) fn wall(core: &Core) -> i64 {
    to_micros(core.clock.of_its_source())
}

/// Publishes what has come by now. True when there was anything. A schedule that cannot tick is left alone.
///
/// What comes meanwhile is for the next call: on a slow disk a tick may take longer to publish than it is to the next one, and nothing
/// would ever be delivered.
pub(super) fn publish_due(core: &Core, left_alone: &LeftAlone) -> Result<bool> {
    let wall = wall(core);
    let mut any = false;
    while let Some(published) = publish_some(core, left_alone, wall)? {
        any |= published;
    }
    Ok(any)
}

/// As much of it as is written at a time; `None` when there is nothing. True when anything was published. However many ticks were
/// missed, a worker has leases to renew in between.
pub(super) fn publish_some(core: &Core, left_alone: &LeftAlone, wall: i64) -> Result<Option<bool>> {
    let skip = |seq| left_alone.contains(seq);
    let due = core.db.read(OPERATION, |conn| table::due(conn, wall, SCHEDULES_MAX, skip))?;
    if due.is_empty() {
        return Ok(None);
    }
    let mut any = false;
    for (seq, done) in each(core, &due, |conn, seq| tick(core, conn, seq, wall))? {
        match done {
            Done::Published { any: published, told } => {
                any |= published;
                if let Some(observing) = &core.observing {
                    observing.tell_publications(&core.db, &told);
                }
            }
            Done::Failed(failed) => {
                left_alone.leave(seq);
                tell(core, &failed);
            }
        }
    }
    Ok(Some(any))
}

/// Where the clock was wrong and is right again, or the other way round, schedules go on from now. Few rows: an application has as
/// many schedules as somebody has thought of.
pub(super) fn follow_clock(core: &Core, left_alone: &LeftAlone) -> Result<()> {
    let wall = wall(core);
    let ahead = core.db.read(OPERATION, |conn| table::ahead(conn, wall))?;
    let ahead: Vec<i64> = ahead.into_iter().filter(|seq| !left_alone.contains(*seq)).collect();
    let mut left = ahead.as_slice();
    while !left.is_empty() {
        let done = each(core, left, |conn, seq| go_on_from(conn, seq, wall))?;
        left = left.get(done.len().max(1)..).unwrap_or_default();
        for (seq, done) in done {
            if let Done::Failed(failed) = done {
                left_alone.leave(seq);
                tell(core, &failed);
            }
        }
    }
    Ok(())
}

/// What came of one schedule.
enum Done {
    /// `told`: what observers are to be told, if there are any.
    Published {
        any: bool,
        told: Vec<Publication>,
    },
    Failed(Failed),
}

impl Done {
    const NOTHING: Self = Done::Published { any: false, told: Vec::new() };
}

struct Failed {
    name: String,
    error: Error,
    /// The row does not show it by itself.
    is_to_be_noted: bool,
}

/// In as few transactions as can be. What fails is noted in its row, unless whoever looks sees it there by himself, as one of
/// another build may not.
fn each(
    core: &Core,
    seqs: &[i64],
    work: impl Fn(&Connection, i64) -> Result<Done>,
) -> Result<Vec<(i64, Done)>> {
    let done = core.db.write_each(OPERATION, HOW, seqs, |conn, seq| match work(conn, *seq) {
        Ok(Done::Failed(failed)) if failed.is_to_be_noted => {
            table::note_error(conn, *seq, &validate::error_text(&failed.error.to_string()))?;
            Ok(Done::Failed(failed))
        }
        done => done,
    })?;
    let mut each = Vec::with_capacity(done.len());
    for (seq, done) in seqs.iter().zip(done) {
        each.push((
            *seq,
            match done {
                Ok(done) => done,
                // It takes its transaction with it whenever it is tried.
                Err(error) => {
                    let text = validate::error_text(&error.to_string());
                    match core.db.write(OPERATION, |conn| table::note_error(conn, *seq, &text)) {
                        Err(error) if error.is_fault_of_file() => return Err(error),
                        _ => Done::Failed(Failed {
                            name: format!("in row {seq}"),
                            error,
                            is_to_be_noted: false,
                        }),
                    }
                }
            },
        ));
    }
    Ok(each)
}

/// The ticks of one schedule, if it is still their time: another box may have been faster.
fn tick(core: &Core, conn: &Connection, seq: i64, wall: i64) -> Result<Done> {
    let Some(stored) = table::get_due(conn, seq, wall)? else {
        return Ok(Done::NOTHING);
    };
    let publish = || {
        let (ticks, misfire, template) = (stored.ticks()?, stored.misfire()?, stored.template()?);
        let (due, progress) = due::decide(&ticks, misfire, stored.progress, wall);
        if !due.is_empty() {
            core.check_schema(template.event())?;
        }
        let now = core.clock.now();
        let any = !due.is_empty();
        let mut told = Vec::new();
        // One after the other: many ticks of a large payload are as much as one in memory.
        for tick in due {
            let event = template.prepare(&stored.name, tick)?;
            let inserted = insert::insert(conn, &event, now)?;
            if core.observing.is_some() {
                told.extend(Publication::of(&event, inserted));
            }
        }
        table::go_on(conn, seq, progress, wall)?;
        // A trigger of the application's may have put it back: it would come again and again.
        if table::get_due(conn, seq, wall)?.is_some() {
            return Err(table::not_stored("the schedule's next tick"));
        }
        Ok(Done::Published { any, told })
    };
    alone(conn, &stored, publish)
}

/// With the first tick from now on.
fn go_on_from(conn: &Connection, seq: i64, wall: i64) -> Result<Done> {
    let Some(stored) = table::get_ahead(conn, seq, wall)? else {
        return Ok(Done::NOTHING);
    };
    let go_on = || {
        let progress = stored.progress.going_on(&stored.ticks()?, wall);
        table::go_on(conn, seq, progress, wall)?;
        Ok(Done::NOTHING)
    };
    alone(conn, &stored, go_on)
}

/// A schedule that fails has done nothing, and what is its own is not the others'. What ends the whole transaction, and a fault of the
/// file, is the error.
fn alone(conn: &Connection, stored: &Stored, work: impl FnOnce() -> Result<Done>) -> Result<Done> {
    match all_or_none(conn, work) {
        Err(error) if conn.is_autocommit() => Err(error),
        // What is not SQLite's is the row's: it cannot be understood, or not by this build.
        Err(error) if error.fault().is_none() => Ok(Done::Failed(Failed {
            name: stored.name.clone(),
            error,
            is_to_be_noted: stored.fault().is_none(),
        })),
        done => done,
    }
}

fn tell(core: &Core, Failed { name, error, .. }: &Failed) {
    if core.first_warning_of(&format!("the schedule {name}")) {
        log::warn!(target: "postbox::delivery", "the schedule {name} does not tick: {error}");
    }
}
