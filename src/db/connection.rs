//! Opening connections, and the pragmas that each is given. The application's own connections are never touched.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::FromSql;
use rusqlite::{Connection, OpenFlags};

use super::access::Access;
use super::checkpoint::Checkpoints;
use super::identity::FileIdentity;
use super::writer::{Writer, WriterFile};
use crate::error::{Error, Result};

/// SQLite before this version can corrupt a WAL database when two connections write and checkpoint
/// (<https://sqlite.org/releaselog/3_51_3.html>).
const SQLITE_REQUIRED: (i32, &str) = (3_051_003, "3.51.3");

/// A -wal that once grew is cut back to this at the next checkpoint, in bytes.
const WAL_BYTES_MAX: i64 = 16 << 20;

/// Where the box's connections come from.
#[derive(Clone)]
pub(crate) enum Source {
    File {
        identity: FileIdentity,
        checkpoints: Arc<Checkpoints>,
    },
    Memory,
    /// A file that is not written to.
    ReadOnly,
}

impl Source {
    pub(crate) fn file(identity: FileIdentity, wait_max: Duration) -> Self {
        let checkpoints = Arc::new(Checkpoints::new(identity.clone(), wait_max));
        Source::File { identity, checkpoints }
    }

    /// Before the last writer is closed.
    pub(crate) fn end(&self) {
        if let Source::File { checkpoints, .. } = self {
            checkpoints.stop();
        }
    }

    pub(crate) fn open_writer(&self, wait_max: Duration) -> Result<Writer> {
        match self {
            Source::File { identity, checkpoints } => {
                let conn = open_same(identity, wait_max)?;
                set(&conn, "synchronous", 2)?;
                Checkpoints::follow(&conn);
                let file = WriterFile { identity: identity.clone(), checkpoints: Arc::clone(checkpoints) };
                Writer::new(conn, wait_max, Some(file))
            }
            Source::Memory => {
                let conn = Connection::open_in_memory_with_flags(flags())?;
                configure(&conn, wait_max)?;
                Writer::new(conn, wait_max, None)
            }
            Source::ReadOnly => Err(Error::ReadOnly { operation: "write" }), // the gate lets nobody in
        }
    }
}

pub(crate) fn refuse_unsound_sqlite() -> Result<()> {
    refuse_unsound(rusqlite::version_number(), rusqlite::version())
}

fn refuse_unsound(number: i32, found: &'static str) -> Result<()> {
    let (least, required) = SQLITE_REQUIRED;
    if number < least { Err(Error::UnsupportedSqlite { found, required }) } else { Ok(()) }
}

/// Opens an existing file as it is, without a change to it.
pub(crate) fn open_file(path: &Path) -> Result<Connection> {
    Connection::open_with_flags(path, flags())
        .map_err(|error| Error::CannotOpen { path: path.to_owned(), reason: error.to_string() })
}

/// The same, set up as every connection of the library's own.
pub(super) fn open_configured(path: &Path, wait_max: Duration) -> Result<Connection> {
    let conn = open_file(path)?;
    configure(&conn, wait_max)?;
    Ok(conn)
}

/// The file that the box was opened on, and no other that has its name now.
pub(super) fn open_same(identity: &FileIdentity, wait_max: Duration) -> Result<Connection> {
    identity.refuse_replaced()?;
    let conn = open_configured(identity.path(), wait_max)?;
    identity.refuse_replaced()?; // or it may have been another that was opened
    Ok(conn)
}

/// Neither CREATE (a file that is gone must not come back empty) nor URI (a path is a path).
pub(crate) fn flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE
}

/// For every connection of the library's own.
pub(crate) fn configure(conn: &Connection, wait_max: Duration) -> rusqlite::Result<()> {
    conn.set_prepared_statement_cache_capacity(64);
    conn.busy_timeout(wait_max)?;
    set(conn, "foreign_keys", 1)?;
    set(conn, "trusted_schema", 0)?;
    set(conn, "cell_size_check", 1)?;
    set(conn, "journal_size_limit", WAL_BYTES_MAX)?;
    // Without a row: SQLite was built without memory mapping, or the database is in memory.
    if let Some(mapped) = set_and_read::<i64>(conn, "mmap_size", 0)?
        && mapped != 0
    {
        return Err(refused("mmap_size"));
    }
    for (config, name) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, "SQLITE_DBCONFIG_DEFENSIVE"),
        // Or statements with parameters are prepared anew at every run near a partial index.
        (DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, "SQLITE_DBCONFIG_ENABLE_QPSG"),
    ] {
        if !conn.set_db_config(config, true)? {
            return Err(refused(name));
        }
    }
    Ok(())
}

/// SQLite as rusqlite bundles it (`SQLITE_ENABLE_MEMORY_MANAGEMENT`) keeps one page cache for all connections of a
/// process. Connections that write in turn, such as the application's own, take each other's pages, and once the cache is
/// full the one with fewer loses every page as soon as it has used it: it reads each several times an event. A smaller
/// limit for a moment lets go of the pages that nobody has used for longest, whoever's they are. 8,000 KiB are the write
/// connection's share of the whole, 2,000 of them free when a transaction begins.
pub(super) fn make_room_in_cache(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("PRAGMA main.cache_size = -6000; PRAGMA main.cache_size = -8000")
}

/// For one thread's own use.
pub(super) fn open_reader(identity: &FileIdentity, access: Access, wait_max: Duration) -> Result<Connection> {
    identity.refuse_replaced()?;
    let conn = access.open(identity.path(), wait_max)?;
    identity.refuse_replaced()?; // or it may have been another that was opened
    Ok(conn)
}

/// For connections that only read.
pub(super) fn configure_reader(conn: &Connection, wait_max: Duration) -> rusqlite::Result<()> {
    configure(conn, wait_max)?;
    set(conn, "query_only", 1)
}

/// Sets a pragma and reads it back: a misspelt one says Ok and does nothing.
pub(crate) fn set(conn: &Connection, pragma: &'static str, value: i64) -> rusqlite::Result<()> {
    set_and_read::<i64>(conn, pragma, value)?;
    let read: i64 = conn.pragma_query_value(Some("main"), pragma, |row| row.get(0))?;
    if read == value { Ok(()) } else { Err(refused(pragma)) }
}

fn set_and_read<T: FromSql>(conn: &Connection, pragma: &str, value: i64) -> rusqlite::Result<Option<T>> {
    let mut read = None;
    conn.pragma_update_and_check(Some("main"), pragma, value, |row| {
        read = Some(row.get(0)?);
        Ok(())
    })
    .or_else(|error| match error {
        rusqlite::Error::QueryReturnedNoRows => Ok(()),
        error => Err(error),
    })?;
    Ok(read)
}

fn refused(name: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_MISUSE),
        Some(format!("SQLite did not take the setting {name}")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_is_refused_up_to_the_last_version_with_the_bug_and_no_further() {
        for (number, version) in
            [(3_051_002, "3.51.2"), (3_050_004, "3.50.4"), (3_007_000, "3.7.0"), (2_999_999, "2")]
        {
            match refuse_unsound(number, version) {
                Err(Error::UnsupportedSqlite { found, required }) => {
                    assert_eq!((found, required), (version, "3.51.3"));
                }
                other => panic!("{version}: {other:?}"),
            }
            let said = refuse_unsound(number, version).unwrap_err().to_string();
            assert!(
                said.contains(version) && said.contains("WAL-reset") && said.contains("3.51.3"),
                "{said}"
            );
        }
        for number in [3_051_003, 3_051_004, 3_052_000, 3_053_002, 4_000_000] {
            refuse_unsound(number, "").unwrap();
        }
        refuse_unsound_sqlite().unwrap();
    }
}
