//! Checkpoints beside the writer. SQLite would have whoever commits the thousandth page of the -wal copy them all into the
//! main file and sync it, for some milliseconds, while everybody else waits at the gate. Here a thread of its own does it,
//! which is started when it is first needed and sleeps until the next thousand.
//!
//! Under a load that never pauses the -wal never comes to an end that way: it can begin anew only when all of it was copied
//! while nobody wrote. So whoever commits beyond [`PAGES_MAX`] does the rest, which is little.

use std::cell::Cell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::Connection;
use rusqlite::hooks::Wal;

use super::connection;
use super::identity::FileIdentity;

/// A checkpoint for so many pages, as SQLite does by itself (<https://sqlite.org/pragma.html#pragma_wal_autocheckpoint>).
const PAGES: c_int = 1_000;

/// Beyond this whoever commits does the checkpoint: the -wal stays below the size to which it is cut back. Less would let a
/// new -wal come sooner to its size (commits that make a file longer take longer), and cost more checkpoints ever after.
const PAGES_MAX: c_int = 3_500;

/// And again after so many more, where a reader of an old state keeps the -wal from beginning anew.
const PAGES_MORE: c_int = 500;

/// Room in the page cache is made anew after so many pages.
const PAGES_OF_ROOM: c_int = 100;

pub(crate) struct Checkpoints {
    identity: FileIdentity,
    wait_max: Duration,
    /// The size of the -wal after the last commit, in pages.
    pages: AtomicI32,
    /// That for which a checkpoint was last asked of the thread, and of a committer.
    asked_at: AtomicI32,
    done_at: AtomicI32,
    /// And its size when room was last made in the page cache.
    room_at: AtomicI32,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    bell: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    stopped: bool,
}

thread_local! {
    /// How many pages the -wal had after this thread's last commit; `None` where nothing was written.
    static WAL_PAGES: Cell<Option<c_int>> = const { Cell::new(None) };
}

impl Checkpoints {
    pub(crate) fn new(identity: FileIdentity, wait_max: Duration) -> Self {
        Checkpoints {
            identity,
            wait_max,
            pages: AtomicI32::new(0),
            asked_at: AtomicI32::new(0),
            done_at: AtomicI32::new(0),
            room_at: AtomicI32::new(-PAGES_OF_ROOM),
            running: Mutex::default(),
        }
    }

    /// From here on the connection's commits are followed, and do no checkpoints by themselves.
    pub(super) fn follow(conn: &Connection) {
        conn.wal_hook(Some(|wal: &Wal, pages| {
            if wal.name() == c"main" {
                WAL_PAGES.set(Some(pages));
            } else if pages >= PAGES {
                // Of a file that the application has attached. An error here would be taken for one of the commit.
                let _: rusqlite::Result<()> = wal.checkpoint();
            }
            Ok(())
        }));
    }

    /// Whether so much was written since the last time that a writer may have lost its pages to other connections.
    pub(super) fn is_room_due(&self) -> bool {
        let (pages, last) = (self.pages.load(Ordering::Relaxed), self.room_at.load(Ordering::Relaxed));
        let due = pages >= last + PAGES_OF_ROOM || pages < last;
        if due {
            self.room_at.store(pages, Ordering::Relaxed);
        }
        due
    }

    /// After a commit of this connection on this thread.
    pub(super) fn after_commit(&self, conn: &Connection) {
        let Some(pages) = WAL_PAGES.take() else { return };
        self.pages.store(pages, Ordering::Relaxed);
        if pages < self.asked_at.load(Ordering::Relaxed) {
            self.asked_at.store(0, Ordering::Relaxed); // it has begun anew
            self.done_at.store(0, Ordering::Relaxed);
        }
        if pages >= PAGES_MAX.max(self.done_at.load(Ordering::Relaxed) + PAGES_MORE) {
            self.done_at.store(pages, Ordering::Relaxed);
            let _: bool = checkpoint(conn);
        } else if pages >= self.asked_at.load(Ordering::Relaxed) + PAGES {
            self.asked_at.store(pages, Ordering::Relaxed);
            if self.ring().is_err() {
                let _: bool = checkpoint(conn); // no thread can be had
            }
        }
    }

    fn ring(&self) -> std::io::Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.bell.is_none() && !running.stopped {
            let (bell, rings) = bounded(1);
            let (identity, wait_max) = (self.identity.clone(), self.wait_max);
            let thread = thread::Builder::new()
                .name("postbox-checkpoint".to_owned())
                .spawn(move || run(&identity, wait_max, &rings))?;
            (running.bell, running.thread) = (Some(bell), Some(thread));
        }
        if let Some(bell) = &running.bell {
            let _: std::result::Result<(), _> = bell.try_send(()); // full: it rings already
        }
        Ok(())
    }

    /// Ends the thread and waits for it: its connection must not be the last to close.
    pub(crate) fn stop(&self) {
        let thread = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.stopped = true;
            running.bell = None;
            running.thread.take()
        };
        if thread.is_some_and(|thread| thread.join().is_err()) {
            log::error!(target: "postbox::db", "the checkpoint thread panicked");
        }
    }
}

fn run(identity: &FileIdentity, wait_max: Duration, rings: &Receiver<()>) {
    let mut conn = None;
    for () in rings {
        match conn.take().map_or_else(|| connection::open_same(identity, wait_max), Ok) {
            // One that failed is opened anew.
            Ok(open) => conn = checkpoint(&open).then_some(open),
            Err(error) => {
                log::debug!(target: "postbox::db", "no connection for a checkpoint; whoever commits does it later: {error}");
            }
        }
    }
}

/// As much of it as can be done now, without waiting for anybody. What is not done is done the next time.
/// False: it failed.
fn checkpoint(conn: &Connection) -> bool {
    conn.query_row("PRAGMA main.wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        .inspect_err(|error| {
            log::debug!(target: "postbox::db", "a checkpoint failed and is tried again later: {error}");
        })
        .is_ok()
}
