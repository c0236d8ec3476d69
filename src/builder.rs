//! How a box is opened.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::core::{Core, Options};
use crate::db::Database;
use crate::error::{Error, Result};
use crate::observer::Observer;
use crate::postbox::Postbox;
use crate::settings::Settings;

/// Opens a box with options of one's own.
#[must_use = "a builder does nothing until it opens a box"]
pub struct Builder {
    options: Options,
}

impl Builder {
    pub(crate) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(2, usize::from);
        Builder {
            options: Options {
                settings: Settings::default(),
                clock: Box::new(SystemClock),
                handler_threads: cores.max(2),
                payload_bytes_max: 1 << 20,
                wait_max: Duration::from_secs(5),
                synced_acks: false,
                observers: Vec::new(),
            },
        }
    }

    /// The application's defaults; what the file holds wins over these. Defaults to [`Settings::default`].
    pub fn settings(mut self, defaults: Settings) -> Self {
        self.options.settings = defaults;
        self
    }

    /// Where the box takes its time from. Defaults to the system's clock.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.options.clock = Box::new(clock);
        self
    }

    /// How many threads run a worker's handlers: 1 to 1024. Defaults to the machine's cores, and at least 2.
    pub fn handler_threads(mut self, n: usize) -> Self {
        self.options.handler_threads = n;
        self
    }

    /// How large a payload or metadata may be as JSON, in bytes: 2 to 256 MiB. Defaults to 1 MiB.
    ///
    /// It holds for what is delivered as well. A row that another program, or a box with a higher limit, has written larger
    /// is neither read nor parsed: it is a dead letter, and its error says its size and this limit. (SQLite itself holds a row
    /// in memory while it writes its status. Where there is too little for that, the row is left as it is.) To have it
    /// delivered, open the box with a higher limit and set the row to `pending` again.
    pub fn max_payload_bytes(mut self, n: usize) -> Self {
        self.options.payload_bytes_max = n;
        self
    }

    /// How long a call waits for the write lock, the box's write connection or a read connection, each, before it fails
    /// with [`Error::Busy`]. At least 1 ms, at most an hour. Defaults to 5 seconds.
    pub fn busy_timeout(mut self, limit: Duration) -> Self {
        self.options.wait_max = limit;
        self
    }

    /// Whether what the box writes about deliveries waits for the disk as well (publishing always does). Defaults to
    /// false: an acknowledgement that a power cut takes back is a second delivery to a plain handler, while a
    /// transactional handler loses effect and acknowledgement together and stays exactly once.
    pub fn synced_acks(mut self, synced: bool) -> Self {
        self.options.synced_acks = synced;
        self
    }

    /// Somebody who is told what the box does, as it does it. Called again, it adds another; they are told in that order. Defaults to
    /// nobody.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.options.observers.push(Box::new(observer));
        self
    }

    /// Opens the box in this SQLite file. A file that is not there is made, for its owner's eyes only (0600 on Unix); an
    /// existing one keeps everything that is the application's, and is switched to WAL mode.
    ///
    /// # Errors
    /// [`Error::NotADatabase`], [`Error::Damaged`], [`Error::SchemaTooNew`] and [`Error::CannotOpen`] leave the file as it was;
    /// [`Error::UnsupportedSqlite`]; [`Error::Invalid`] for an option out of its range; [`Error::Busy`] when another
    /// connection is in the way; [`Error::Io`].
    pub fn open(self, path: impl AsRef<Path>) -> Result<Postbox> {
        self.validate()?;
        let db = Database::open_file(path.as_ref(), self.options.wait_max)?;
        self.finish(db)
    }

    /// Opens the box in this SQLite file only to look at it: beside the running application, or in a copy. Nothing is written:
    /// the file stays as it is to the last byte, no schema is made or upgraded, nobody's claims are taken over, no -wal is folded
    /// in, and what SQLite makes beside the file to read it is gone after [`close`](Postbox::close). What writes returns
    /// [`Error::ReadOnly`], and so do [`start`](Postbox::start), [`process_batch`](Postbox::process_batch) and
    /// [`drain`](Postbox::drain); [`backup`](Postbox::backup), which reads, goes.
    ///
    /// The file and its folder may be read-only themselves. A file that has no -wal or no -shm then is read as one that nobody
    /// writes to; if somebody begins to all the same, reads return [`Error::Busy`] from then on. Of a copy that was made with a
    /// -wal, that is a part: keep both together.
    ///
    /// [`settings`](Postbox::settings) are those of the moment of opening.
    ///
    /// # Errors
    /// [`Error::CannotOpen`] for a file without postbox's tables, or that cannot be read as it is; [`Error::SchemaTooOld`] and
    /// [`Error::SchemaTooNew`] for one of another release's version; [`Error::NotADatabase`]; [`Error::Damaged`];
    /// [`Error::Busy`] when another connection has the file for itself; [`Error::Io`] when there is no such file;
    /// [`Error::Invalid`] for an option out of its range; [`Error::UnsupportedSqlite`].
    pub fn open_read_only(self, path: impl AsRef<Path>) -> Result<Postbox> {
        self.validate()?;
        let db = Database::open_read_only(path.as_ref(), self.options.wait_max)?;
        self.finish(db)
    }

    /// Opens a box in memory, of its own, safe from many threads. It is gone with its last clone.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an option out of its range; [`Error::UnsupportedSqlite`].
    pub fn open_in_memory(self) -> Result<Postbox> {
        self.validate()?;
        let db = Database::open_in_memory(self.options.wait_max)?;
        self.finish(db)
    }

    /// On a database that is open already.
    #[cfg(feature = "testing")]
    pub(crate) fn open_on(self, db: Database<crate::outbox::insert::InsertJob>) -> Result<Postbox> {
        self.validate()?;
        self.finish(db)
    }

    fn validate(&self) -> Result<()> {
        let options = &self.options;
        options.settings.validate()?;
        if !(1..=1024).contains(&options.handler_threads) {
            return Err(Error::invalid("handler_threads", "must be from 1 to 1024"));
        }
        if !(2..=256 << 20).contains(&options.payload_bytes_max) {
            return Err(Error::invalid("max_payload_bytes", "must be from 2 bytes to 256 MiB"));
        }
        if !(Duration::from_millis(1)..=Duration::from_hours(1)).contains(&options.wait_max) {
            return Err(Error::invalid("busy_timeout", "must be from 1 ms to an hour"));
        }
        Ok(())
    }

    fn finish(self, db: Database<crate::outbox::insert::InsertJob>) -> Result<Postbox> {
        Ok(Postbox::of(Arc::new(Core::open(db, self.options)?)))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("settings", &self.options.settings)
            .field("handler_threads", &self.options.handler_threads)
            .field("max_payload_bytes", &self.options.payload_bytes_max)
            .field("busy_timeout", &self.options.wait_max)
            .field("synced_acks", &self.options.synced_acks)
            .finish_non_exhaustive()
    }
}
