//! The application's SQLite file: connections, the write gate, the schema, copies.

mod access;
pub(crate) mod backup;
mod checkpoint;
pub(crate) mod compact;
mod connection;
mod fork;
mod gate;
mod identity;
mod locked;
pub(crate) mod owner;
mod readers;
mod savepoint;
pub(crate) mod schema;
mod temporary;
mod ticket;
mod traces;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use self::access::Access;
use self::connection::Source;
use self::fork::Opened;
pub(crate) use self::gate::{Bar, Gate, Job, WriteGuard};
use self::identity::FileIdentity;
use self::owner::OwnerState;
use self::readers::Readers;
pub(crate) use self::savepoint::all_or_none;
use self::traces::Traces;
pub(crate) use self::writer::{Synchronous, Writer};
use crate::crash::Crash;
use crate::error::{Error, Result};

/// One open database, generic over the jobs that share commits.
pub(crate) struct Database<J: Job> {
    gate: Gate<J>,
    wait_max: Duration,
    crash: Crash,
    /// `None`: in memory.
    file: Option<OpenFile>,
}

struct OpenFile {
    identity: FileIdentity,
    access: Access,
    /// `None` once closed.
    readers: RwLock<Option<Readers>>,
    /// `None` once closed.
    opened: Mutex<Option<Opened>>,
    /// Of a file that is only read.
    traces: Mutex<Option<Traces>>,
}

/// How [`Database::write_each`] writes.
#[derive(Clone, Copy)]
pub(crate) struct WriteEach {
    pub(crate) synchronous: Synchronous,
    /// The write lock is held for so long, and what is left is for another call.
    pub(crate) held_max: Option<Duration>,
}

impl WriteEach {
    /// All of them, synced.
    pub(crate) const ALL: Self = WriteEach { synchronous: Synchronous::Full, held_max: None };
}

impl OpenFile {
    fn new(identity: FileIdentity, access: Access, opened: Opened, wait_max: Duration) -> Result<Self> {
        let readers = RwLock::new(Some(Readers::open(&identity, access, wait_max)?));
        Ok(OpenFile { identity, access, readers, opened: Mutex::new(Some(opened)), traces: Mutex::new(None) })
    }

    /// Waits for those who read.
    fn close_readers(&self) {
        let readers = self.readers.write().unwrap_or_else(PoisonError::into_inner).take();
        readers.into_iter().for_each(Readers::close);
    }

    /// After its last connection is closed.
    fn let_go(&self) {
        drop(self.traces.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.opened.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl<J: Job> Database<J> {
    pub(crate) fn open_in_memory(wait_max: Duration) -> Result<Self> {
        connection::refuse_unsound_sqlite()?;
        let writer = Source::Memory.open_writer(wait_max)?;
        writer.transaction(Synchronous::Full, "open", |conn| {
            schema::create_or_upgrade(conn, Path::new(":memory:"))
        })?;
        Ok(Self::in_memory(writer, wait_max))
    }

    fn in_memory(writer: Writer, wait_max: Duration) -> Self {
        let crash = writer.crash().clone();
        Database { gate: Gate::new(Source::Memory, Some(writer), wait_max), wait_max, crash, file: None }
    }

    /// The same memory for a new box, once nobody holds the connection any more; this one is closed.
    #[cfg(feature = "testing")]
    pub(crate) fn hand_over(&self, operation: &'static str) -> Result<Self> {
        let conn = self.gate.take_last(operation)?.into_conn();
        Ok(Self::in_memory(Writer::new(conn, self.wait_max, None)?, self.wait_max))
    }

    /// Nothing is written before the file is known to be one that may be written to.
    pub(crate) fn open_file(path: &Path, wait_max: Duration) -> Result<Self> {
        connection::refuse_unsound_sqlite()?;
        let path = identity::absolute(path)?;
        identity::create_private(&path)?;
        let opened = Opened::note(FileIdentity::of(&path)?)?;
        identity::refuse_too_short(&path)?;
        let probe = connection::open_file(&path)?;
        // Before anything is read: SQLite would make a -wal and -shm that are read-only as well, and leave them there.
        if probe.is_readonly("main")? {
            return Err(Error::CannotOpen { path, reason: "it is read-only".to_owned() });
        }
        probe.busy_timeout(wait_max)?;
        // A file that is refused keeps its -wal as it is; one that has none is left without.
        let has_wal = identity::beside(&path, "-wal").exists();
        probe.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_wal)?;
        schema::check(&probe, &path).map_err(|error| say_read_only(error, &path))?;
        switch_to_wal(&probe, &path, wait_max).map_err(|error| say_read_only(error, &path))?;

        let identity = FileIdentity::of(&path)?;
        let source = Source::file(identity.clone(), wait_max);
        let writer = source.open_writer(wait_max)?;
        drop(probe); // after the writer is open, or the last one out would remove the -wal just to make it again
        connection::set(writer.conn(), "foreign_keys", 0)?;
        writer.transaction(Synchronous::Full, "open", |conn| schema::create_or_upgrade(conn, &path))?;
        connection::set(writer.conn(), "foreign_keys", 1)?;

        let file = OpenFile::new(identity, Access::BesideWriter, opened, wait_max)?;
        let crash = writer.crash().clone();
        Ok(Database { gate: Gate::new(source, Some(writer), wait_max), wait_max, crash, file: Some(file) })
    }

    /// Writes nothing: neither to the file, nor anything beside it that stays.
    pub(crate) fn open_read_only(path: &Path, wait_max: Duration) -> Result<Self> {
        connection::refuse_unsound_sqlite()?;
        let path = identity::absolute(path)?;
        let identity = FileIdentity::of(&path)?;
        let opened = Opened::note(identity.clone())?;
        identity::refuse_too_short(&path)?;
        // Before the first connection: dropped after the last, also when the file is refused.
        let traces = Traces::note(&path);
        let (access, version) = access::find(&path, wait_max)?;
        schema::refuse_other(version, &path)?;
        let file = OpenFile::new(identity, access, opened, wait_max)?;
        *file.traces.lock().unwrap_or_else(PoisonError::into_inner) = Some(traces);
        let crash = Crash::default();
        Ok(Database { gate: Gate::new(Source::ReadOnly, None, wait_max), wait_max, crash, file: Some(file) })
    }

    /// Where tests make the box die.
    pub(crate) fn crash(&self) -> &Crash {
        &self.crash
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.gate.is_read_only()
    }

    pub(crate) fn refuse_read_only(&self, operation: &'static str) -> Result<()> {
        self.gate.refuse_read_only(operation)
    }

    /// `None`: in memory.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.identity.path())
    }

    /// Beside the file, under its name and `suffix`.
    pub(crate) fn beside(&self, suffix: &str) -> Option<PathBuf> {
        self.path().map(|path| identity::beside(path, suffix))
    }

    /// Of the file and its -wal in bytes, as far as they can be looked at; neither in memory.
    pub(crate) fn sizes(&self) -> (Option<u64>, Option<u64>) {
        let size = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len());
        let wal = self.beside("-wal").and_then(|wal| match size(&wal) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(0),
            size => size.ok(),
        });
        (self.path().and_then(|path| size(path).ok()), wal)
    }

    /// Whether the box that has this number lives. In memory there is only this one.
    pub(crate) fn owner_state(&self, owner: u32) -> OwnerState {
        self.path().map_or(OwnerState::Alive, |path| owner::state_of(path, owner))
    }

    pub(crate) fn refuse_forked(&self, operation: &'static str) -> Result<()> {
        self.gate.opened_by().refuse_forked(operation)
    }

    /// A look at where the path leads to.
    pub(crate) fn refuse_replaced(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.identity.refuse_replaced())
    }

    /// Takes the write connection for this thread alone.
    pub(crate) fn lock(&self, operation: &'static str) -> Result<WriteGuard<'_, J>> {
        self.gate.lock(operation)
    }

    /// Runs a job in a synced commit that others may share.
    pub(crate) fn submit(&self, operation: &'static str, job: J) -> Result<J::Output> {
        self.gate.submit(operation, job)
    }

    pub(crate) fn refuse_reentry(&self, operation: &'static str) -> Result<()> {
        self.gate.refuse_reentry(operation)
    }

    /// Until what this returns is dropped, this thread writes nothing.
    pub(crate) fn bar_writes(&self) -> Bar {
        self.gate.bar()
    }

    /// Writes in a synced transaction of its own.
    pub(crate) fn write<T>(
        &self,
        operation: &'static str,
        f: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        self.lock(operation)?.transaction(Synchronous::Full, operation, f)
    }

    /// Writes each of the items: all in one transaction, or, where something of the application's in the file rolls that back,
    /// each in one of its own. What came of them, in their order, as far as it got; the outer error is a fault of the file.
    pub(crate) fn write_each<I, T>(
        &self,
        operation: &'static str,
        how: WriteEach,
        items: &[I],
        write: impl Fn(&Connection, &I) -> Result<T>,
    ) -> Result<Vec<Result<T>>> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let transaction = |work: &mut dyn FnMut(&Connection) -> Result<()>| {
            self.lock(operation)?.transaction(how.synchronous, operation, work)
        };
        let mut done = Vec::with_capacity(items.len());
        let together = transaction(&mut |conn| {
            let begun = Instant::now();
            for item in items {
                match write(conn, item) {
                    Err(error) if error.is_fault_of_file() || conn.is_autocommit() => return Err(error),
                    written => done.push(written),
                }
                if how.held_max.is_some_and(|max| begun.elapsed() >= max) {
                    break;
                }
            }
            Ok(())
        });
        match together {
            Err(error) if !error.is_fault_of_file() => done.clear(),
            together => return together.map(|()| done),
        }
        for item in items {
            let mut written = None;
            let alone = transaction(&mut |conn| {
                written = Some(write(conn, item)?);
                Ok(())
            });
            match (alone, written) {
                (Ok(()), Some(written)) => done.push(Ok(written)),
                (Err(error), _) if error.is_fault_of_file() => return Err(error),
                (Err(error), _) => done.push(Err(error)),
                (Ok(()), None) => {} // never: the work has run
            }
        }
        Ok(done)
    }

    /// Reads what is committed. In memory, on a thread that is inside a transaction, what it has written so far as well.
    pub(crate) fn read<T>(
        &self,
        operation: &'static str,
        f: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        self.refuse_forked(operation)?;
        let Some(file) = &self.file else {
            return match self.gate.held_here() {
                Some(writer) => f(writer.conn()),
                None => f(self.gate.lock_to_read(operation)?.conn()),
            };
        };
        // Held until the end: `close` waits for those who read.
        let readers = file.readers.read().unwrap_or_else(PoisonError::into_inner);
        let readers = readers.as_ref().ok_or(Error::Closed { operation })?;
        readers.read(operation, f)
    }

    /// A read connection for one thread's own use, which ends before `close` goes on. `None` in memory, where the gate's
    /// connection is the only one.
    pub(crate) fn open_reader(&self, operation: &'static str) -> Result<Option<Connection>> {
        self.gate.refuse_closed(operation)?;
        let Some(file) = &self.file else { return Ok(None) };
        connection::open_reader(&file.identity, file.access, self.wait_max).map(Some)
    }

    /// Runs `f` with a read connection of its own: for work that would keep a shared one too long.
    pub(crate) fn read_apart<T>(
        &self,
        operation: &'static str,
        f: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        self.refuse_forked(operation)?;
        // As in `read`: `close` waits.
        let open = self.file.as_ref().map(|file| file.readers.read().unwrap_or_else(PoisonError::into_inner));
        if open.as_ref().is_some_and(|open| open.is_none()) {
            return Err(Error::Closed { operation });
        }
        match self.open_reader(operation)? {
            Some(reader) => {
                let read = f(&reader);
                if let Some(file) = &self.file {
                    file.access.refuse_changed(file.identity.path(), operation)?;
                }
                read
            }
            None => f(self.gate.lock_to_read(operation)?.conn()),
        }
    }

    /// Whether the connection's main database is this one. A transaction of the box's own always is.
    pub(crate) fn is_main_of(&self, conn: &Connection) -> bool {
        if self.is_own_transaction(conn) {
            return true;
        }
        self.file.as_ref().is_some_and(|file| file.identity.is_main_of(conn))
    }

    /// Whether the connection is lent out of a transaction of the box's own, on this thread.
    pub(crate) fn is_own_transaction(&self, conn: &Connection) -> bool {
        self.gate.held_here().is_some_and(|writer| std::ptr::eq(writer.conn(), conn))
    }

    /// An event is about to be written through this connection.
    pub(crate) fn note_event_written(&self, conn: &Connection) {
        if let Some(writer) = self.gate.held_here().filter(|writer| std::ptr::eq(writer.conn(), conn)) {
            writer.note_event_written();
        }
    }

    /// Leaves one complete file, with what `last` writes. From the start of it callers get [`Error::Closed`], those who
    /// wait included.
    pub(crate) fn close(
        &self,
        operation: &'static str,
        last: impl FnOnce(&Connection) -> Result<()>,
    ) -> Result<()> {
        self.gate.shut();
        self.gate.source().end();
        if let Some(file) = &self.file {
            // Before the last connection closes: it is the one that removes the -wal.
            file.close_readers();
        }
        if self.is_read_only() {
            self.file.iter().for_each(OpenFile::let_go);
            return Ok(());
        }
        let writer = self.gate.take_last(operation)?;
        let written = writer.transaction(Synchronous::Full, operation, last);
        let conn = writer.into_conn();
        if self.file.is_some() {
            // Complete even where the application's own connections stay open and keep the -wal.
            conn.query_row("PRAGMA main.wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        conn.close().map_err(|(_, error)| Error::Sqlite(error))?;
        if let Some(path) = self.path() {
            remove_wal_left_by_a_race(path);
        }
        self.file.iter().for_each(OpenFile::let_go);
        written
    }
}

/// In a forked child the parent's connections are left alone. What was only read is left as it was found.
impl<J: Job> Drop for Database<J> {
    fn drop(&mut self) {
        let is_read_only = self.is_read_only();
        let Some(file) = &mut self.file else { return };
        if self.gate.opened_by().was_forked() {
            std::mem::forget(file.readers.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        } else if is_read_only {
            file.close_readers();
            file.let_go();
        }
    }
}

/// Of two connections that close at the same moment each may take the other for the last one, and leave the -wal to it.
/// Where others have the file open it stays.
fn remove_wal_left_by_a_race(path: &Path) {
    let wal = identity::beside(path, "-wal");
    for _ in 0..5 {
        if !wal.exists() || !path.exists() {
            return;
        }
        if let Ok(conn) = connection::open_file(path) {
            let _ = conn.query_row("PRAGMA main.schema_version", [], |_| Ok(()));
        }
        if wal.exists() {
            std::thread::sleep(Duration::from_millis(5)); // others tell nobody when they have closed
        }
    }
}

#[cfg(all(test, shuttle))]
pub(crate) mod testing {
    use super::{Duration, Gate, Job, Result, Source};

    /// A gate to an empty database.
    pub(crate) fn gate_in_memory<J: Job>(wait_max: Duration) -> Result<Gate<J>> {
        Ok(Gate::new(Source::Memory, Some(Source::Memory.open_writer(wait_max)?), wait_max))
    }
}

fn say_read_only(error: Error, path: &Path) -> Error {
    match error {
        Error::Sqlite(error)
            if matches!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen)) =>
        {
            let reason = format!("it, or its folder, is read-only ({error})");
            Error::CannotOpen { path: path.to_owned(), reason }
        }
        error => error,
    }
}

/// Leaves a file that is in WAL mode already untouched.
fn switch_to_wal(conn: &Connection, path: &Path, wait_max: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        match conn.query_row("PRAGMA main.journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                return Err(Error::CannotOpen {
                    path: path.to_owned(),
                    reason: format!("it cannot be used in WAL mode (its journal mode stays `{mode}`)"),
                });
            }
            // SQLite does not ask its busy handler here.
            Err(error) if crate::error::is_busy(&error) && start.elapsed() < wait_max => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) if crate::error::is_busy(&error) => {
                return Err(Error::Busy {
                    operation: "open",
                    waited: start.elapsed(),
                    detail: "another connection keeps the file out of WAL mode".to_owned(),
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
}
