//! Giving back the space of what was deleted.

use std::fs;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::{Database, Job};
use crate::error::{Error, Result};

/// What [`Postbox::compact`](crate::Postbox::compact) has come to: sizes of the file in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Compaction {
    /// Before it.
    pub bytes_before: u64,
    /// After it.
    pub bytes_after: u64,
}

impl<J: Job> Database<J> {
    pub(crate) fn compact(&self, operation: &'static str) -> Result<Compaction> {
        let path = self.path().ok_or(Error::InMemory { operation })?;
        let size = || {
            fs::metadata(path)
                .map(|metadata| metadata.len())
                .map_err(|error| Error::io("look at", path, error))
        };
        let writer = self.lock(operation)?;
        let conn = writer.conn();
        if let Some(table) = with_implicit_rowids(conn)? {
            let reason = format!(
                "VACUUM could renumber the rows of the table `{table}`, which has no INTEGER PRIMARY KEY"
            );
            return Err(Error::CannotCompact { reason });
        }
        // The main file is complete: what is measured before is what is there.
        self.checkpoint_all(conn)?;
        let bytes_before = size()?;
        conn.execute_batch("VACUUM main /* postbox */")?;
        self.checkpoint_all(conn)?;
        Ok(Compaction { bytes_before, bytes_after: size()? })
    }

    /// As far as readers let it. Beside another checkpoint SQLite does not wait by itself.
    fn checkpoint_all(&self, conn: &Connection) -> Result<()> {
        let start = Instant::now();
        while conn.query_row("PRAGMA main.wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0))?
            && start.elapsed() < self.wait_max
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// A table of the application's whose rows have numbers that it did not choose, and may have noted elsewhere
/// (<https://sqlite.org/lang_vacuum.html>: "The VACUUM command may change the ROWIDs").
fn with_implicit_rowids(conn: &Connection) -> Result<Option<String>> {
    let mut statement = conn.prepare(
        "SELECT t.name FROM pragma_table_list AS t
         WHERE t.schema = 'main' AND t.type = 'table' AND t.wr = 0 AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
               AND NOT EXISTS (SELECT 1 FROM pragma_table_info(t.name, 'main') AS c
                               WHERE c.pk = 1 AND upper(c.type) = 'INTEGER'
                                     AND (SELECT max(pk) FROM pragma_table_info(t.name, 'main')) = 1)
         ORDER BY t.name LIMIT 1",
    )?;
    let mut rows = statement.query([])?;
    Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
}
