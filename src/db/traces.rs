//! What SQLite makes beside a file in order to read it: a -wal and a -shm, which its read-only mode leaves behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;

use super::connection;
use super::fork::Process;
use super::identity::beside;

/// Noted before the first connection to a file that is only read. Dropped after the last one is closed, it takes away what was
/// not there, if nobody else has the file open.
pub(super) struct Traces {
    path: PathBuf,
    had_wal: bool,
    had_shm: bool,
    opened_by: Process,
}

impl Traces {
    pub(super) fn note(path: &Path) -> Self {
        let there = |suffix| beside(path, suffix).exists();
        let (had_wal, had_shm) = (there("-wal"), there("-shm"));
        Traces { path: path.to_owned(), had_wal, had_shm, opened_by: Process::this() }
    }

    fn remove(&self) -> rusqlite::Result<()> {
        let (wal, shm) = (beside(&self.path, "-wal"), beside(&self.path, "-shm"));
        let wal_length = || fs::metadata(&wal).map_or(0, |metadata| metadata.len());
        // What is in use holds something, and was there. So was a lone -wal, of a copy.
        let is_ours = |wal_length| wal_length == 0 || !self.had_shm;
        let is_new = shm.exists() || (!self.had_wal && wal.exists());
        if !is_new || !is_ours(wal_length()) {
            return Ok(());
        }
        let Ok(conn) = connection::open_file(&self.path) else { return Ok(()) };
        if conn.is_readonly("main")? {
            return Ok(());
        }
        conn.busy_timeout(Duration::ZERO)?; // whoever is in the way has the file open
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // It is read only if nobody else has the file open, and nobody opens it until this connection is closed: whoever does
        // takes a lock on it before he looks for a -wal or -shm.
        conn.query_row("PRAGMA main.locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
        conn.query_row("PRAGMA main.schema_version", [], |_| Ok(()))?;
        let empty = wal_length() == 0;
        if is_ours(wal_length()) {
            let _ = fs::remove_file(&shm); // this connection uses none; left behind, it does no harm
        }
        if empty && (self.had_shm || !self.had_wal) {
            // SQLite removes the -wal as it closes, and has nothing to write before.
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        }
        drop(conn);
        Ok(())
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if !self.opened_by.was_forked()
            && let Err(error) = self.remove()
        {
            log::debug!(target: "postbox::db", "what was made to read the file stays beside it: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    fn listing(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_taken_from_under_a_connection_that_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let traces = Traces::note(&path);
        let conn = Connection::open(&path).unwrap();
        conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
        conn.execute_batch("CREATE TABLE t (x)").unwrap();
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        assert_eq!(listing(dir.path()), ["app.db", "app.db-shm", "app.db-wal"]);
        drop(traces);
        assert_eq!(listing(dir.path()), ["app.db", "app.db-shm", "app.db-wal"]);
        conn.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    }
}
