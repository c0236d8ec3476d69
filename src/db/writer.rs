//! The one write connection: IMMEDIATE transactions, and how far they are synced.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, ErrorCode};

use super::checkpoint::Checkpoints;
use super::connection;
use super::identity::FileIdentity;
use crate::crash::Crash;
use crate::error::{self, Error, Result};

/// Whether a commit waits for the disk (`PRAGMA synchronous`, <https://sqlite.org/pragma.html#pragma_synchronous>).
///
/// In WAL mode a synced commit carries every earlier one with it, and a crash keeps a prefix of the commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Synchronous {
    /// Consistent after a power cut, but the last commits may be gone.
    Normal,
    /// There when it returns.
    Full,
}

/// What a writer knows of its file.
pub(crate) struct WriterFile {
    pub(crate) identity: FileIdentity,
    pub(crate) checkpoints: Arc<Checkpoints>,
}

pub(crate) struct Writer {
    conn: Connection,
    synchronous: Cell<Synchronous>,
    wait_max: Duration,
    /// Set while the application's code has the connection; what it may not do then is refused by the authorizer.
    lent: Arc<AtomicBool>,
    /// A statement of the application's has rolled the open transaction back; a savepoint may have begun another.
    rolled_back: Arc<AtomicBool>,
    broken: Cell<bool>,
    crash: Crash,
    /// `None`: in memory.
    file: Option<WriterFile>,
    /// The `data_version` up to which commits of other connections are known to be synced.
    synced_version: Cell<Option<i64>>,
    /// This connection committed events without syncing them.
    unsynced_events: Cell<bool>,
    /// The open transaction has written events.
    event_written: Cell<bool>,
}

impl Writer {
    /// `conn` is configured and at [`Synchronous::Full`].
    pub(crate) fn new(conn: Connection, wait_max: Duration, file: Option<WriterFile>) -> Result<Self> {
        let lent = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&lent);
        conn.authorizer(Some(move |context: AuthContext<'_>| authorize(&seen, &context)))?;
        // Nothing is committed while the application has the connection: after `ON CONFLICT ROLLBACK` its further
        // statements would each commit by themselves. True turns a commit into a rollback.
        let seen = Arc::clone(&lent);
        conn.commit_hook(Some(move || seen.load(Ordering::Relaxed)))?;
        let rolled_back = Arc::new(AtomicBool::new(false));
        let (seen, note) = (Arc::clone(&lent), Arc::clone(&rolled_back));
        conn.rollback_hook(Some(move || note.store(seen.load(Ordering::Relaxed), Ordering::Relaxed)))?;
        Ok(Writer {
            conn,
            synchronous: Cell::new(Synchronous::Full),
            wait_max,
            lent,
            rolled_back,
            broken: Cell::new(false),
            crash: Crash::default(),
            file,
            synced_version: Cell::new(None),
            unsynced_events: Cell::new(false),
            event_written: Cell::new(false),
        })
    }

    pub(crate) fn conn(&self) -> &Connection {
        &self.conn
    }

    pub(crate) fn crash(&self) -> &Crash {
        &self.crash
    }

    pub(crate) fn into_conn(self) -> Connection {
        self.conn
    }

    /// Closes without [`into_conn`](Self::into_conn). SQLite leaves the -wal of a file that was moved where it was, and
    /// would read it into whatever file is there now: it is emptied first.
    pub(crate) fn leave(self) {
        if self.file.as_ref().is_some_and(|file| !file.identity.is_in_place()) {
            let _ = self.conn.query_row("PRAGMA main.wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
    }

    /// Runs `f` in an IMMEDIATE transaction and commits; rolls back when `f` fails or panics.
    pub(crate) fn transaction<T>(
        &self,
        synchronous: Synchronous,
        operation: &'static str,
        f: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        let open = self.begin(synchronous, operation)?;
        let value = f(&self.conn)?;
        open.commit()?;
        Ok(value)
    }

    /// Begins an IMMEDIATE transaction, waiting for other writers as long as the box waits for anything.
    pub(crate) fn begin(
        &self,
        synchronous: Synchronous,
        operation: &'static str,
    ) -> Result<OpenTransaction<'_>> {
        self.crash.refuse_dead(operation)?;
        if let Some(file) = &self.file {
            file.identity.refuse_replaced()?;
        }
        self.set_synchronous(synchronous)?;
        if self.file.as_ref().is_some_and(|file| file.checkpoints.is_room_due()) {
            connection::make_room_in_cache(&self.conn)?;
        }
        // SQLite's own busy handler does the waiting.
        let start = Instant::now();
        match self.conn.prepare_cached("BEGIN IMMEDIATE /* postbox */")?.execute([]) {
            Ok(_) => {
                self.event_written.set(false);
                self.rolled_back.store(false, Ordering::Relaxed);
                Ok(OpenTransaction { writer: self, operation })
            }
            Err(error) if error::is_busy(&error) => Err(Error::Busy {
                operation,
                waited: start.elapsed(),
                detail: "another connection holds the file's write lock".to_owned(),
            }),
            Err(error) => {
                // Opened anew: it may have been opened while the file was read-only, or know pages that are not so.
                self.broken.set(true);
                Err(error.into())
            }
        }
    }

    /// Lends the connection to the application's code: until it returns, the transaction cannot be ended from within.
    pub(crate) fn lend<T>(&self, f: impl FnOnce() -> T) -> T {
        struct Back<'a>(&'a Writer);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.lent.store(false, Ordering::Relaxed);
                let _ = self.0.conn.busy_timeout(self.0.wait_max); // it may have been set to another
            }
        }
        self.lent.store(true, Ordering::Relaxed);
        let _back = Back(self);
        f()
    }

    /// Changes when another connection has committed, and never by this one's own commits.
    pub(crate) fn data_version(&self) -> Result<i64> {
        Ok(self.conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)
    }

    /// Whether somebody may have committed events that a power cut could still take back. Ask inside a transaction.
    pub(crate) fn may_hold_unsynced_events(&self) -> Result<bool> {
        Ok(self.file.is_some()
            && (self.unsynced_events.get() || self.synced_version.get() != Some(self.data_version()?)))
    }

    /// A synced commit that wrote something has carried to the disk whatever was committed before it. `data_version` was
    /// read inside that transaction.
    pub(crate) fn note_synced_up_to(&self, data_version: i64) {
        self.synced_version.set(Some(data_version));
        self.unsynced_events.set(false);
    }

    /// The open transaction writes an event.
    pub(crate) fn note_event_written(&self) {
        self.event_written.set(true);
    }

    /// Inside a transaction: whether the application's SQL has ended it, as `ON CONFLICT ROLLBACK` does, or a full disk.
    pub(crate) fn refuse_ended(&self) -> Result<()> {
        if self.conn.is_autocommit() || self.rolled_back.load(Ordering::Relaxed) {
            return Err(Error::Sqlite(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK),
                Some("a statement rolled the whole transaction back".to_owned()),
            )));
        }
        Ok(())
    }

    pub(crate) fn is_broken(&self) -> bool {
        // A database in memory lives in its connection: it is never given up.
        self.broken.get() && self.file.is_some()
    }

    pub(crate) fn rollback_if_open(&self) {
        if !self.conn.is_autocommit()
            && let Err(error) = self.conn.execute_batch("ROLLBACK /* postbox */")
        {
            log::error!(target: "postbox::db", "a rollback failed; the write connection is opened anew: {error}");
            self.broken.set(true);
        }
    }

    fn set_synchronous(&self, to: Synchronous) -> Result<()> {
        if self.file.is_none() || self.synchronous.get() == to {
            return Ok(());
        }
        let value = match to {
            Synchronous::Normal => 1,
            Synchronous::Full => 2,
        };
        self.conn.pragma_update(Some("main"), "synchronous", value)?;
        self.synchronous.set(to);
        Ok(())
    }
}

/// Dropping it rolls back.
#[must_use]
pub(crate) struct OpenTransaction<'w> {
    writer: &'w Writer,
    operation: &'static str,
}

impl OpenTransaction<'_> {
    pub(crate) fn commit(self) -> Result<()> {
        let conn = &self.writer.conn;
        self.writer.refuse_ended()?;
        self.writer.crash.before_commit(self.operation)?;
        let start = Instant::now();
        loop {
            match conn.prepare_cached("COMMIT /* postbox */")?.execute([]) {
                Ok(_) => {
                    if self.writer.event_written.get() && self.writer.synchronous.get() == Synchronous::Normal
                    {
                        self.writer.unsynced_events.set(true);
                    }
                    if let Some(file) = &self.writer.file {
                        file.checkpoints.after_commit(conn);
                    }
                    self.writer.crash.after_commit(self.operation);
                    return Ok(());
                }
                // The transaction is still whole: the commit itself is tried again.
                Err(error) if error::is_busy(&error) && start.elapsed() < self.writer.wait_max => {}
                Err(error) if error::is_busy(&error) => {
                    return Err(Error::Busy {
                        operation: self.operation,
                        waited: start.elapsed(),
                        detail: "another connection is in the way of the commit".to_owned(),
                    });
                }
                Err(error) => return Err(self.failed_commit(error)),
            }
        }
    }

    /// After an I/O error in a commit its frames may be in the -wal, so that a crash could still bring them back.
    fn failed_commit(&self, error: rusqlite::Error) -> Error {
        match error.sqlite_error_code() {
            Some(ErrorCode::SystemIoFailure | ErrorCode::DiskFull | ErrorCode::DatabaseCorrupt) => {
                self.writer.broken.set(true);
                Error::CommitUnknown(error)
            }
            _ => Error::Sqlite(error),
        }
    }
}

impl Drop for OpenTransaction<'_> {
    fn drop(&mut self) {
        self.writer.rollback_if_open();
    }
}

/// The application's code runs inside the box's transaction: it may do everything but end it.
fn authorize(lent: &AtomicBool, context: &AuthContext<'_>) -> Authorization {
    if !lent.load(Ordering::Relaxed) {
        return Authorization::Allow;
    }
    match context.action {
        AuthAction::Transaction { .. } => Authorization::Deny,
        AuthAction::Pragma { pragma_name, pragma_value: Some(_) } if is_setting(pragma_name) => {
            Authorization::Deny
        }
        AuthAction::Savepoint { savepoint_name, .. } if is_reserved(savepoint_name) => Authorization::Deny,
        _ => Authorization::Allow,
    }
}

/// Names of savepoints are the same to SQLite in any case of letters.
fn is_reserved(savepoint: &str) -> bool {
    savepoint.as_bytes().get(..7).is_some_and(|start| start.eq_ignore_ascii_case(b"postbox"))
}

/// What the box has set on its write connection, or what would keep it from writing.
fn is_setting(pragma: &str) -> bool {
    const SETTINGS: [&str; 15] = [
        "busy_timeout",
        "cell_size_check",
        "foreign_keys",
        "ignore_check_constraints",
        "journal_mode",
        "journal_size_limit",
        "locking_mode",
        "mmap_size",
        "query_only",
        "recursive_triggers",
        "schema_version",
        "synchronous",
        "trusted_schema",
        "wal_autocheckpoint",
        "writable_schema",
    ];
    SETTINGS.iter().any(|setting| pragma.eq_ignore_ascii_case(setting))
}
