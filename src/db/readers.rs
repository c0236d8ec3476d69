//! The read connections that callers of look-ups share: a pool whose connections are counted, so that `close` can wait
//! until the last of them is closed.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use r2d2::ManageConnection;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::Connection;

use super::access::Access;
use super::identity::FileIdentity;
use crate::error::{Error, Result};

/// The worker has one of its own beside these, so that neither starves the other.
const SIZE: u32 = 4;

/// How long the opening of a connection may take on a busy machine.
const OPENING_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Readers {
    pool: r2d2::Pool<Manager>,
    identity: FileIdentity,
    access: Access,
    open: Arc<Open>,
    wait_max: Duration,
}

impl Readers {
    pub(crate) fn open(identity: &FileIdentity, access: Access, wait_max: Duration) -> Result<Self> {
        let open = Arc::new(Open::default());
        let sqlite = SqliteConnectionManager::file(access.name_of(identity.path()))
            .with_flags(access.flags())
            .with_init(move |conn| access.configure(conn, wait_max));
        let pool = r2d2::Pool::builder()
            .max_size(SIZE)
            .min_idle(Some(0))
            // No reaper: an idle box wakes nobody up.
            .idle_timeout(None)
            .max_lifetime(None)
            .test_on_check_out(false)
            .connection_timeout(wait_max)
            .error_handler(Box::new(Errors))
            .build(Manager { sqlite, identity: identity.clone(), open: Arc::clone(&open) })
            .map_err(|error| Error::Pool { operation: "open", reason: error.to_string() })?;
        Ok(Readers { pool, identity: identity.clone(), access, open, wait_max })
    }

    pub(crate) fn read<T>(
        &self,
        operation: &'static str,
        f: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        // Connections that are open go on with the file that they have; for another one callers would wait in vain.
        if self.pool.state().idle_connections == 0 {
            self.identity.refuse_replaced()?;
        }
        let start = Instant::now();
        let reader = match self.pool.get_timeout(self.wait_max) {
            Ok(reader) => reader,
            Err(_) if self.pool.state().connections >= SIZE => {
                let detail = "all read connections are in use".to_owned();
                return Err(Error::Busy { operation, waited: start.elapsed(), detail });
            }
            // Not all are open yet, and the threads that open them were not quick enough: nobody is in the way.
            Err(_) => self.pool.get_timeout(OPENING_MAX).map_err(|error| {
                let replaced = self.identity.refuse_replaced().err();
                replaced.unwrap_or_else(|| Error::Pool { operation, reason: error.to_string() })
            })?,
        };
        let read = f(&reader.conn);
        self.access.refuse_changed(self.identity.path(), operation)?;
        read
    }

    /// Returns once every connection is closed, those included that the pool's own threads are just opening.
    pub(crate) fn close(self) {
        let Readers { pool, open, wait_max, .. } = self;
        open.refuse_more();
        drop(pool);
        open.wait_for_none(wait_max);
    }
}

struct Manager {
    sqlite: SqliteConnectionManager,
    identity: FileIdentity,
    open: Arc<Open>,
}

/// In this order: it is counted until its connection is closed.
struct Reader {
    conn: Connection,
    _counted: Counted,
}

impl ManageConnection for Manager {
    type Connection = Reader;
    type Error = rusqlite::Error;

    fn connect(&self) -> rusqlite::Result<Reader> {
        let counted = Open::count(&self.open).ok_or(rusqlite::Error::InvalidQuery)?; // nobody sees it: the pool is gone
        let conn = self.sqlite.connect()?;
        // The file that the box was opened on, and no other that has its name now. Whoever waits for it hears of it elsewhere.
        if !self.identity.is_in_place() {
            return Err(rusqlite::Error::InvalidPath(self.identity.path().to_owned()));
        }
        Ok(Reader { conn, _counted: counted })
    }

    fn is_valid(&self, reader: &mut Reader) -> rusqlite::Result<()> {
        self.sqlite.is_valid(&mut reader.conn)
    }

    fn has_broken(&self, reader: &mut Reader) -> bool {
        !reader.conn.is_autocommit()
    }
}

/// How many connections are open, or being opened.
#[derive(Default)]
struct Open {
    state: Mutex<Count>,
    changed: Condvar,
}

#[derive(Default)]
struct Count {
    live: usize,
    closing: bool,
}

struct Counted(Arc<Open>);

impl Open {
    fn count(open: &Arc<Self>) -> Option<Counted> {
        let mut state = open.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closing {
            return None;
        }
        state.live += 1;
        Some(Counted(Arc::clone(open)))
    }

    fn refuse_more(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
    }

    fn wait_for_none(&self, limit: Duration) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(state, limit, |state| state.live > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).live -= 1;
        self.0.changed.notify_all();
    }
}

/// r2d2 would log a failed connection by itself and under its own name; the caller is told anyway.
#[derive(Debug)]
struct Errors;

impl r2d2::HandleError<rusqlite::Error> for Errors {
    fn handle_error(&self, error: rusqlite::Error) {
        log::debug!(target: "postbox::db", "a read connection could not be opened, it is tried again: {error}");
    }
}
