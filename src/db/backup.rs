//! Whole copies of the file: made while the box runs, and put back.

use std::error::Error as _;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode};

use super::identity::{self, FileIdentity};
use super::temporary::{TemporaryFile, remove_if_there, sync_folder_of};
use super::traces::Traces;
use super::writer::Synchronous;
use super::{Database, Job, access, connection, schema};
use crate::error::{self, Error, Result};

/// Findings of `integrity_check` that an error quotes.
const FINDINGS_MAX: u32 = 5;

impl<J: Job> Database<J> {
    /// Copies everything that is committed to `dest`: the old file or the complete new one is there, whatever happens.
    pub(crate) fn backup(&self, dest: &Path) -> Result<()> {
        self.refuse_reentry("backup")?;
        let dest = identity::absolute(dest)?;
        if self.file.as_ref().is_some_and(|file| file.identity.is(&dest)) {
            return Err(Error::invalid("dest", "is the box's own file"));
        }
        if self.path().is_some_and(|path| is_companion(path, &dest)) {
            return Err(Error::invalid("dest", "is a file that belongs to the box's own"));
        }
        // SQLite would read the old -wal into the new file, or roll the old -journal back in it.
        for suffix in ["-wal", "-journal"] {
            if identity::beside(&dest, suffix).exists() {
                let reason = format!("has a {suffix} beside it: the old file is open, or was not closed");
                return Err(Error::invalid("dest", reason));
            }
        }
        let copy = TemporaryFile::beside(&dest)?;
        self.read_apart("backup", |conn| copy_whole(conn, &copy.path))?;
        check_integrity(&copy.open()?, &copy.path, &dest)?;
        copy.put_in_place(&dest)
    }

    /// Runs `copy` while nobody can write and the main file holds everything.
    pub(crate) fn with_quiesced_file<T>(&self, copy: impl FnOnce(&Path) -> io::Result<T>) -> Result<T> {
        const OPERATION: &str = "with_quiesced_file";
        let file = self.file.as_ref().ok_or(Error::InMemory { operation: OPERATION })?;
        let path = file.identity.path();
        let guard = self.lock(OPERATION)?;
        // A checkpoint cannot run on the connection that holds the write lock, but beside it.
        let second = connection::open_same(&file.identity, self.wait_max)?;
        let quiesced = guard.begin(Synchronous::Full, OPERATION)?;
        checkpoint_whole(&second, self.wait_max)?;
        let copied = copy(path).map_err(|error| Error::io("copy", path, error));
        drop(quiesced); // nothing was written: rolls back
        copied
    }
}

/// Puts the backup `from` in the place of `to`. `void_leases` is run on the copy before it is put there.
pub(crate) fn restore(
    from: &Path,
    to: &Path,
    wait_max: Duration,
    void_leases: impl FnOnce(&Connection) -> Result<()>,
) -> Result<()> {
    connection::refuse_unsound_sqlite()?;
    let from = fs::canonicalize(from).map_err(|error| Error::io("restore from", from, error))?;
    let to = identity::absolute(to)?;
    if FileIdentity::of(&from)?.is(&to) {
        return Err(Error::invalid("to", "is the backup itself"));
    }

    let copy = TemporaryFile::beside(&to)?;
    {
        let backup = OpenBackup::open(&from, wait_max)?;
        copy_whole(&backup.conn, &copy.path)?;
    }
    let conn = copy.open()?;
    check_integrity(&conn, &copy.path, &from)?;
    connection::set(&conn, "foreign_keys", 0)?; // for an upgrade: see `schema::create_or_upgrade`
    let tx = conn.unchecked_transaction()?;
    schema::create_or_upgrade(&tx, &copy.path)?;
    void_leases(&tx)?;
    tx.commit()?;
    conn.close().map_err(|(_, error)| Error::Sqlite(error))?;

    copy.take_mode_of(&to)?;
    settle_old_file(&to, wait_max)?;
    for suffix in ["-wal", "-shm", "-journal"] {
        remove_if_there(&identity::beside(&to, suffix))?;
    }
    sync_folder_of(&to)?;
    copy.put_in_place(&to)
}

/// Whether `restore` would take this backup, and the version of its schema.
pub(crate) fn check(from: &Path, wait_max: Duration) -> Result<u32> {
    connection::refuse_unsound_sqlite()?;
    let from = fs::canonicalize(from).map_err(|error| Error::io("check", from, error))?;
    let backup = OpenBackup::open(&from, wait_max)?;
    check_integrity(&backup.conn, &from, &from)?;
    Ok(backup.version)
}

/// It may lie on a medium that cannot be written to, and is not written to in any case.
struct OpenBackup {
    conn: Connection,
    version: u32,
    /// Dropped after the connection.
    _traces: Traces,
}

impl OpenBackup {
    fn open(path: &Path, wait_max: Duration) -> Result<Self> {
        let traces = Traces::note(path);
        identity::refuse_too_short(path)?;
        let (access, version) = access::find(path, wait_max)?;
        let Some(version) = version else {
            let reason = "it is no backup of a postbox".to_owned();
            return Err(Error::CannotOpen { path: path.to_owned(), reason });
        };
        Ok(OpenBackup { conn: access.open(path, wait_max)?, version, _traces: traces })
    }
}

/// One step: in small steps a copy begins anew whenever somebody commits, and never ends under load.
fn copy_whole(source: &Connection, dest: &Path) -> Result<()> {
    let mut dest = connection::open_file(dest)?;
    // The file is synced as a whole before it gets its name.
    connection::set(&dest, "synchronous", 0)?;
    dest.query_row("PRAGMA main.journal_mode = MEMORY", [], |_| Ok(()))?;
    let backup = Backup::new(source, &mut dest)?;
    match backup.step(-1)? {
        rusqlite::backup::StepResult::Done => {}
        _ => {
            return Err(Error::Busy {
                operation: "backup",
                waited: Duration::ZERO,
                detail: "the copy was locked".to_owned(),
            });
        }
    }
    drop(backup);
    dest.close().map_err(|(_, error)| Error::Sqlite(error))
}

/// Whether `other` is a -wal, -shm, -journal or lock file of the database.
fn is_companion(database: &Path, other: &Path) -> bool {
    let prefix = identity::beside(database, "-");
    other.as_os_str().as_encoded_bytes().starts_with(prefix.as_os_str().as_encoded_bytes())
}

/// `blame` is the file that the caller knows.
fn check_integrity(conn: &Connection, path: &Path, blame: &Path) -> Result<()> {
    let findings = integrity_findings(conn)?;
    if findings.is_empty() {
        return Ok(());
    }
    log::error!(target: "postbox::db", "the copy {} was found damaged and is dropped", path.display());
    Err(Error::Damaged { path: blame.to_owned(), report: findings.join("; ") })
}

/// The first findings of SQLite's `integrity_check`.
pub(crate) fn integrity_findings(conn: &Connection) -> Result<Vec<String>> {
    match run_check(conn, &format!("PRAGMA main.integrity_check({FINDINGS_MAX})")) {
        // The application's own collations and functions, which its schema uses, are not known here.
        Err(error) if is_sql_refused(&error) => check_each_table(conn),
        findings => Ok(findings?),
    }
}

/// Whether SQLite refuses the statement itself. rusqlite says that by one of two variants, and has the other only where it is built
/// with the feature `bundled`; SQLite's own error is the source of both.
fn is_sql_refused(error: &rusqlite::Error) -> bool {
    let own = error.source().and_then(|source| source.downcast_ref::<rusqlite::ffi::Error>());
    own.is_some_and(|own| own.code == ErrorCode::Unknown)
}

/// Checks what can be checked, and the library's tables are always among it.
fn check_each_table(conn: &Connection) -> Result<Vec<String>> {
    let tables: Vec<String> = conn
        .prepare("SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut findings = Vec::new();
    for table in tables {
        let quoted = table.replace('"', "\"\"");
        match run_check(conn, &format!("PRAGMA main.integrity_check(\"{quoted}\")")) {
            Ok(of_table) => findings.extend(of_table),
            Err(error) => {
                log::warn!(target: "postbox::db", "the copy's table {table} cannot be checked without the application's collations and functions: {error}");
            }
        }
    }
    Ok(findings)
}

/// What is wrong; nothing, where all is well.
fn run_check(conn: &Connection, pragma: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare(pragma)?;
    let findings: Vec<String> =
        statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(findings.into_iter().filter(|finding| finding != "ok").collect())
}

fn checkpoint_whole(conn: &Connection, wait_max: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let (busy, frames, done): (bool, i64, i64) =
            conn.query_row("PRAGMA main.wal_checkpoint(PASSIVE)", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        // While somebody else is at it, both numbers are -1.
        if !busy && frames == done {
            return Ok(());
        }
        if start.elapsed() >= wait_max {
            return Err(Error::Busy {
                operation: "with_quiesced_file",
                waited: start.elapsed(),
                detail: "somebody reads an older state of the file, so that it cannot be completed"
                    .to_owned(),
            });
        }
        thread::sleep(Duration::from_millis(5)); // a reader of another process tells nobody when it ends
    }
}

/// Proves that nobody has the old file open, and completes it, so that its -wal can go. A damaged one is in nobody's use.
fn settle_old_file(to: &Path, wait_max: Duration) -> Result<()> {
    if !to.exists() {
        return Ok(());
    }
    let in_use = || Error::Busy {
        operation: "restore",
        waited: wait_max,
        detail: format!("{} is open: close it everywhere first", to.display()),
    };
    let conn = connection::open_file(to)?;
    conn.busy_timeout(wait_max)?;
    // Leaving WAL mode takes the file for this connection alone.
    match conn.query_row("PRAGMA main.journal_mode = DELETE", [], |row| row.get::<_, String>(0)) {
        Ok(mode) if mode == "delete" => Ok(()),
        Ok(_) => Err(in_use()),
        Err(error) if error::is_busy(&error) => Err(in_use()),
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Ok(()),
            _ => Err(error.into()),
        },
    }
}
