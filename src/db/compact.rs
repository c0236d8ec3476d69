//! Giving back the space of what was deleted.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::{Database, Job, Synchronous, WriteGuard};
use crate::error::{self, Error, Result};

/// What [`Postbox::compact`](crate::Postbox::compact) has come to: sizes of the file in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Compaction {
    /// Before it.
    pub bytes_before: u64,
    /// After it.
    pub bytes_after: u64,
    /// False: somebody began to read the file meanwhile, and still does. The new content is in the -wal. The file becomes smaller
    /// with the first checkpoint after that reader has ended, for which nobody need ask: `bytes_after` is its size until then.
    pub is_complete: bool,
}

/// The gate is held for so long at a time where readers are waited for: publishers go in between.
const HELD_MAX: Duration = Duration::from_millis(100);

/// And left alone for so long. A reader of another process tells nobody when it ends.
const PAUSE: Duration = Duration::from_millis(10);

impl<J: Job> Database<J> {
    pub(crate) fn compact(&self, operation: &'static str) -> Result<Compaction> {
        let path = self.path().ok_or(Error::InMemory { operation })?;
        let size = || {
            fs::metadata(path)
                .map(|metadata| metadata.len())
                .map_err(|error| Error::io("look at", path, error))
        };
        let writer = self.lock_between_readers(operation)?;
        // The main file is complete: what is measured before is what is there.
        let bytes_before = size()?;
        let start = Instant::now();
        match writer.conn().execute_batch("VACUUM main /* postbox */") {
            Err(error) if error::is_busy(&error) => {
                let detail = "another connection is in the way".to_owned();
                return Err(Error::Busy { operation, waited: start.elapsed(), detail });
            }
            done => done?,
        }
        let is_complete = self.complete(operation, writer)?;
        Ok(Compaction { bytes_before, bytes_after: size()?, is_complete })
    }

    /// The gate, once nobody reads an older state of the file. Beside such a reader VACUUM would write the whole file into
    /// the -wal, and make nothing smaller.
    fn lock_between_readers(&self, operation: &'static str) -> Result<WriteGuard<'_, J>> {
        let start = Instant::now();
        loop {
            let writer = self.lock(operation)?;
            refuse_implicit_rowids(writer.conn())?;
            let is_free = briefly(&writer, self.wait_max, |conn| {
                let written = writer.transaction(Synchronous::Full, operation, touch);
                if matches!(written, Err(Error::Busy { .. })) {
                    return Ok(false);
                }
                written?;
                Ok(checkpoint(conn)?.is_empty)
            })?;
            if is_free {
                return Ok(writer);
            }
            drop(writer);
            if start.elapsed() >= self.wait_max {
                return Err(Error::Busy {
                    operation,
                    waited: start.elapsed(),
                    detail: "another connection reads an older state of the file, or holds its write lock"
                        .to_owned(),
                });
            }
            thread::sleep(PAUSE);
        }
    }

    /// Copies the -wal into the file. False: readers did not let it in time.
    fn complete<'a>(&'a self, operation: &'static str, mut writer: WriteGuard<'a, J>) -> Result<bool> {
        let start = Instant::now();
        loop {
            let done = briefly(&writer, self.wait_max, checkpoint)?;
            drop(writer);
            if done.is_empty || done.is_copied || start.elapsed() >= self.wait_max {
                return Ok(done.is_empty || done.is_copied);
            }
            thread::sleep(PAUSE);
            let Ok(again) = self.lock(operation) else { return Ok(false) }; // closed meanwhile, or kept by another
            writer = again;
        }
    }
}

/// With a short busy timeout.
fn briefly<J: Job, T>(
    writer: &WriteGuard<'_, J>,
    wait_max: Duration,
    f: impl FnOnce(&Connection) -> Result<T>,
) -> Result<T> {
    let conn = writer.conn();
    conn.busy_timeout(HELD_MAX.min(wait_max))?;
    let done = f(conn);
    conn.busy_timeout(wait_max)?;
    done
}

/// A commit that changes nothing. It puts a page into the -wal: who reads the file alone, since the -wal was empty, stands in nobody's
/// way before there is something to be copied.
fn touch(conn: &Connection) -> Result<()> {
    let version: i64 = conn.pragma_query_value(Some("main"), "user_version", |row| row.get(0))?;
    Ok(conn.pragma_update(Some("main"), "user_version", version)?)
}

struct Checkpointed {
    /// The -wal is empty, and nobody reads from it.
    is_empty: bool,
    /// All of it is in the file as well.
    is_copied: bool,
}

fn checkpoint(conn: &Connection) -> Result<Checkpointed> {
    conn.query_row("PRAGMA main.wal_checkpoint(TRUNCATE)", [], |row| {
        let (busy, frames, copied): (bool, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(Checkpointed { is_empty: !busy, is_copied: frames >= 0 && frames == copied })
    })
    .map_err(Error::from)
}

fn refuse_implicit_rowids(conn: &Connection) -> Result<()> {
    let Some(table) = with_implicit_rowids(conn)? else { return Ok(()) };
    let reason =
        format!("VACUUM could renumber the rows of the table `{table}`, which has no INTEGER PRIMARY KEY");
    Err(Error::CannotCompact { reason })
}

/// A table of the application's whose rows have numbers that it did not choose, and may have noted elsewhere
/// (<https://sqlite.org/lang_vacuum.html>: "The VACUUM command may change the ROWIDs"). An INTEGER PRIMARY KEY that has an index of its
/// own is none: `INTEGER PRIMARY KEY DESC` (<https://sqlite.org/lang_createtable.html>, "ROWIDs and the INTEGER PRIMARY KEY").
fn with_implicit_rowids(conn: &Connection) -> Result<Option<String>> {
    let mut statement = conn.prepare(
        "SELECT t.name FROM pragma_table_list AS t
         WHERE t.schema = 'main' AND t.type = 'table' AND t.wr = 0 AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
               AND NOT EXISTS (SELECT 1 FROM pragma_table_info(t.name, 'main') AS c
                               WHERE c.pk = 1 AND upper(c.type) = 'INTEGER'
                                     AND (SELECT max(pk) FROM pragma_table_info(t.name, 'main')) = 1
                                     AND NOT EXISTS (SELECT 1 FROM pragma_index_list(t.name, 'main') WHERE origin = 'pk'))
         ORDER BY t.name LIMIT 1",
    )?;
    let mut rows = statement.query([])?;
    Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
}
