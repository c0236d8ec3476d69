//! A disk that fails when it is told to: every operation of SQLite and of the library on the files of one folder is counted, and
//! the k-th can fail (once, or from then on), be cut short, lie, or kill the process. What was written and not yet synced is
//! journalled, so that a power cut can be played at any point.
//!
//! Two layers see the operations. [`vfs`] wraps SQLite's own, for everything that SQLite does. [`calls`] stands before the C
//! library's `open64`, `rename`, `unlink`, `fsync` and `fdatasync`, for what the library does by itself around a backup and the
//! like. All `unsafe` code of this repository is in these two.
#![allow(dead_code, reason = "each test binary uses its own part")]

mod calls;
pub(crate) mod journal;
mod vfs;

use std::ffi::c_int;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

pub(crate) use self::calls::fork;
use self::journal::{Change, Journal, Op};

/// What an operation does to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Create,
    Write,
    Sync,
    Truncate,
    Delete,
    Rename,
    SyncFolder,
    /// The -shm gets longer.
    Grow,
    /// Counted only where it is asked for.
    Read,
}

impl Kind {
    fn needs_space(self) -> bool {
        matches!(self, Kind::Create | Kind::Write | Kind::Grow)
    }
}

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The process dies before it.
    Kill,
    /// The process dies in the middle of it, if it is a write.
    KillTorn,
    /// EIO.
    Io,
    /// The same, of reads as well.
    IoOfAll,
    /// ENOSPC, for what needs space.
    Full,
    /// Half of a write is done, and then the disk is full.
    FullTorn,
    /// Nothing is done, and said to be done: a broken disk, for controls.
    Lie,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasting {
    Once,
    ForGood,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) trouble: Trouble,
    /// The operation that it begins with, counted from 1.
    pub(crate) at: u64,
    pub(crate) lasting: Lasting,
}

/// The disk under one folder. Dropping it ends the watch.
pub(crate) struct Disk {
    watched: Arc<Watched>,
}

impl Disk {
    /// Counts from here on, of files that are opened from here on.
    pub(crate) fn watch(folder: &Path) -> Self {
        vfs::install();
        let folder = fs::canonicalize(folder).unwrap();
        let watched = Arc::new(Watched { folder, state: Mutex::default() });
        WATCHED.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&watched));
        Disk { watched }
    }

    /// From here on this happens; what was planned before does not. Operations are counted anew.
    pub(crate) fn plan(&self, plan: Plan) {
        let mut state = self.watched.state();
        (state.plan, state.count, state.troubled) = (Some(plan), 0, 0);
    }

    /// All is well again. How many operations came to grief.
    pub(crate) fn mend(&self) -> u64 {
        let mut state = self.watched.state();
        state.plan = None;
        state.troubled
    }

    /// How many operations were counted since the last plan.
    pub(crate) fn count(&self) -> u64 {
        self.watched.state().count
    }

    /// How many of them came to grief.
    pub(crate) fn troubled(&self) -> u64 {
        self.watched.state().troubled
    }

    /// How often SQLite has opened a database here, since the watch began.
    pub(crate) fn opened(&self) -> u64 {
        self.watched.state().opened
    }

    /// From here on operations are journalled. Nobody has a file of the folder open.
    pub(crate) fn record(&self) {
        let journal = Journal::of(&self.watched.folder);
        self.watched.state().journal = Some(journal);
    }

    /// Where the journal has come to.
    pub(crate) fn position(&self) -> usize {
        self.watched.state().journal.as_ref().map_or(0, Journal::position)
    }

    pub(crate) fn take_journal(&self) -> Journal {
        self.watched.state().journal.take().unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut watched = WATCHED.write().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|other| !Arc::ptr_eq(other, &self.watched));
        let mut state = self.watched.state();
        (state.plan, state.journal) = (None, None);
    }
}

static WATCHED: RwLock<Vec<Arc<Watched>>> = RwLock::new(Vec::new());

struct Watched {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    count: u64,
    troubled: u64,
    opened: u64,
    journal: Option<Journal>,
}

/// What is to become of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Go,
    /// It is not done, and said to be done.
    Pretend,
    /// It is not done, for this reason of the system's.
    Fail(c_int),
    /// Half of it is done.
    Halve(c_int),
}

impl Watched {
    /// Who watches this file, if anybody does.
    fn of(path: &Path) -> Option<Arc<Self>> {
        let watched = WATCHED.read().unwrap_or_else(PoisonError::into_inner);
        watched.iter().find(|watched| path.starts_with(&watched.folder)).cloned()
    }

    fn is_anything_watched() -> bool {
        !WATCHED.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the operation is done. `torn` does half of it.
    fn decide(&self, kind: Kind, torn: impl FnOnce()) -> Verdict {
        let mut state = self.state();
        let Some(plan) = state.plan else {
            state.count += u64::from(kind != Kind::Read);
            return Verdict::Go;
        };
        if kind == Kind::Read && plan.trouble != Trouble::IoOfAll {
            return Verdict::Go;
        }
        state.count += 1;
        let applies = match plan.trouble {
            Trouble::Full | Trouble::FullTorn => kind.needs_space(),
            Trouble::Lie => kind == Kind::Write,
            _ => true,
        };
        let over = plan.lasting == Lasting::Once && state.troubled > 0;
        if !applies || over || state.count < plan.at {
            return Verdict::Go;
        }
        state.troubled += 1;
        match plan.trouble {
            Trouble::Kill => calls::die(),
            Trouble::KillTorn => {
                drop(state); // what is torn is journalled
                torn();
                calls::die()
            }
            Trouble::Io | Trouble::IoOfAll => Verdict::Fail(libc::EIO),
            Trouble::FullTorn if kind == Kind::Write => Verdict::Halve(libc::ENOSPC),
            Trouble::Full | Trouble::FullTorn => Verdict::Fail(libc::ENOSPC),
            Trouble::Lie => Verdict::Pretend,
        }
    }

    /// After the operation was done.
    fn note(&self, note: impl FnOnce(&mut Journal)) {
        if let Some(journal) = &mut self.state().journal {
            note(journal);
        }
    }

    fn note_change(&self, path: &Path, change: Change) {
        self.note(|journal| {
            let file = journal.file_at(path);
            journal.add(Op::Change { file, change });
        });
    }

    /// For a sync that is about to begin: it carries what was written before.
    fn before_sync(&self) -> usize {
        self.state().journal.as_ref().map_or(0, Journal::position)
    }

    fn note_synced(&self, path: &Path, before: usize) {
        self.note(|journal| {
            let file = journal.file_at(path);
            journal.add(Op::Sync { file, before });
        });
    }
}
