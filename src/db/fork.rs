//! Which process opened a box. `fork` without `exec` gives a child the parent's connections, but neither its threads nor its
//! locks: SQLite must not even close them there, and what it knows of the file's locks is wrong for connections that the child
//! opens by itself (<https://sqlite.org/howtocorrupt.html>, 2.6).

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::identity::FileIdentity;
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    /// The one that runs this.
    pub(crate) fn this() -> Self {
        Process(std::process::id())
    }

    /// Whether the code runs in a child that was forked since.
    pub(crate) fn was_forked(self) -> bool {
        self != Process::this()
    }

    pub(crate) fn refuse_forked(self, operation: &'static str) -> Result<()> {
        if self.was_forked() { Err(Error::Forked { operation }) } else { Ok(()) }
    }
}

/// The files that boxes have open, and since which process: a child inherits the list.
static OPEN: Mutex<Vec<(Process, FileIdentity)>> = Mutex::new(Vec::new());

fn open_files() -> MutexGuard<'static, Vec<(Process, FileIdentity)>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A box has this file open until this is dropped: when the box is closed.
pub(crate) struct Opened {
    by: Process,
    identity: FileIdentity,
}

impl Opened {
    /// Refuses a file that the parent had open when this process was forked.
    pub(crate) fn note(identity: FileIdentity) -> Result<Self> {
        let by = Process::this();
        let mut open = open_files();
        if open.iter().any(|(process, other)| *process != by && other.is(identity.path())) {
            return Err(Error::Forked { operation: "open" });
        }
        open.push((by, identity.clone()));
        Ok(Opened { by, identity })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut open = open_files();
        let own = |(process, identity): &(Process, FileIdentity)| {
            *process == self.by && identity.is_same_as(&self.identity)
        };
        // In a forked child what the parent had open stays noted.
        if !self.by.was_forked()
            && let Some(place) = open.iter().position(own)
        {
            open.swap_remove(place);
        }
    }
}
