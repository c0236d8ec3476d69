//! How the connections that read reach the file: beside the box's own writer, or without one, where nothing may be written.
//!
//! SQLite reads a WAL file through a -shm, and makes one where there is none (<https://sqlite.org/wal.html#read_only_databases>).
//! Where it may not, in a folder or on a medium that is read-only, the file is read as one that nobody writes meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::identity::beside;
use super::{connection, schema};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Beside a writer of the same box.
    BesideWriter,
    /// In SQLite's read-only mode, beside whoever else has the file open.
    ReadOnly,
    /// As a file that never changes: it has no -wal, and none can be made.
    Immutable,
    /// With its -wal and without a -shm, and without locks: what is read-only has nobody to lock out.
    Unlocked,
}

impl Access {
    /// For [`Connection::open_with_flags`].
    pub(super) fn name_of(self, path: &Path) -> PathBuf {
        match self {
            Access::BesideWriter | Access::ReadOnly => path.to_owned(),
            Access::Immutable => uri(path, "immutable=1"),
            Access::Unlocked => uri(path, "vfs=unix-none"),
        }
    }

    pub(super) fn flags(self) -> OpenFlags {
        let read_only = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE;
        match self {
            Access::BesideWriter => connection::flags(),
            Access::ReadOnly => read_only,
            Access::Immutable | Access::Unlocked => read_only | OpenFlags::SQLITE_OPEN_URI,
        }
    }

    pub(super) fn configure(self, conn: &Connection, wait_max: Duration) -> rusqlite::Result<()> {
        if self == Access::Unlocked {
            // Before anything is read: then SQLite keeps the index of the -wal in its own memory.
            conn.query_row("PRAGMA main.locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
        }
        connection::configure_reader(conn, wait_max)
    }

    pub(super) fn open(self, path: &Path, wait_max: Duration) -> Result<Connection> {
        let conn = Connection::open_with_flags(self.name_of(path), self.flags())
            .map_err(|error| Error::CannotOpen { path: path.to_owned(), reason: error.to_string() })?;
        self.configure(&conn, wait_max)?;
        Ok(conn)
    }

    /// After a read: whether the file was the one that nobody writes, as it had to be.
    pub(super) fn refuse_changed(self, path: &Path, operation: &'static str) -> Result<()> {
        let changed = match self {
            Access::BesideWriter | Access::ReadOnly => false,
            Access::Immutable => {
                beside(path, "-shm").exists() || holds(path, "-wal") || holds(path, "-journal")
            }
            Access::Unlocked => beside(path, "-shm").exists(),
        };
        if !changed {
            return Ok(());
        }
        Err(Error::Busy {
            operation,
            waited: Duration::ZERO,
            detail: "somebody has begun to write to the file, which was opened as one that nobody writes: open it again"
                .to_owned(),
        })
    }
}

/// How a file that must not be written to can be read, and the version of its schema. Refuses what a newer release wrote.
pub(super) fn find(path: &Path, wait_max: Duration) -> Result<(Access, Option<u32>)> {
    // Opened and not read: SQLite looks at nothing yet, and says whether it could write.
    let is_writable = !connection::open_file(path)?.is_readonly("main")?;
    let in_use = beside(path, "-shm").exists() && beside(path, "-wal").exists();
    let choices: &[Access] = match (is_writable, holds(path, "-wal")) {
        _ if in_use || holds(path, "-journal") => &[Access::ReadOnly],
        (true, true) => &[Access::ReadOnly, Access::Unlocked],
        (true, false) => &[Access::ReadOnly, Access::Immutable],
        // In a folder that can be written to SQLite would make a -wal and -shm that are read-only, and leave them there.
        (false, true) => &[Access::Unlocked],
        (false, false) => &[Access::Immutable],
    };
    let mut refused = None;
    for access in choices {
        if *access == Access::Unlocked {
            refuse_locked(path, wait_max)?;
        }
        match access.open(path, wait_max).and_then(|conn| schema::check(&conn, path)) {
            Ok(version) => return Ok((*access, version)),
            Err(Error::Sqlite(error))
                if matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)) =>
            {
                refused = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    let reason = match refused {
        Some(error) if holds(path, "-journal") => format!(
            "its -journal holds a transaction that broke off, which only a connection that writes can roll back ({error})"
        ),
        Some(error) => format!(
            "it, or its folder, is read-only ({error}): copy it, with its -wal, to a folder that can be written to"
        ),
        None => "it, or its folder, is read-only".to_owned(), // never: there is always a choice
    };
    Err(Error::CannotOpen { path: path.to_owned(), reason })
}

/// Somebody who keeps a file to himself has no -shm either, and has to be waited for.
fn refuse_locked(path: &Path, wait_max: Duration) -> Result<()> {
    let flags = Access::Immutable.flags();
    let Ok(conn) = Connection::open_with_flags(uri(path, "readonly_shm=1"), flags) else { return Ok(()) };
    conn.busy_timeout(wait_max)?;
    match conn.query_row("PRAGMA main.schema_version", [], |_| Ok(())) {
        Err(error) if crate::error::is_busy(&error) => Err(Error::Busy {
            operation: "open",
            waited: wait_max,
            detail: "another connection has the file for itself".to_owned(),
        }),
        // That there is no -shm comes after the lock.
        _ => Ok(()),
    }
}

fn holds(path: &Path, suffix: &str) -> bool {
    fs::metadata(beside(path, suffix)).is_ok_and(|metadata| metadata.len() > 0)
}

/// A path with parameters (<https://sqlite.org/uri.html>). The path is absolute.
fn uri(path: &Path, parameters: &str) -> PathBuf {
    #[cfg(windows)]
    let path =
        PathBuf::from(format!("/{}", path.to_string_lossy().trim_start_matches(r"\\?\").replace('\\', "/")));
    let mut encoded = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' | b':' => {
                encoded.push(char::from(*byte));
            }
            other => encoded.extend(["%".to_owned(), format!("{other:02X}")]),
        }
    }
    PathBuf::from(format!("{encoded}?{parameters}"))
}
