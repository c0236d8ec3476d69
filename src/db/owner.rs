//! Proof of life. Each open box holds a lock on a small file of its own beside the database; the kernel lets go of it
//! when the process dies, however it dies. A claim whose owner is provably dead need not sit out its lease.
//!
//! Only a file that is there and not locked proves a death: one that is missing proves nothing.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use super::identity;
use crate::error::{Error, Result};

/// Followed by the owner as eight hexadecimal digits.
const INFIX: &str = "-postbox-";

/// This box's own lock. Dropping it removes the file: an orderly end leaves nothing behind.
pub(crate) struct OwnerLock {
    path: PathBuf,
    _file: File,
}

impl OwnerLock {
    /// `None` where the file system knows no locks: then leases alone tell.
    pub(crate) fn take(database: &Path, owner: u32) -> Result<Option<Self>> {
        let path = identity::beside(database, &format!("{INFIX}{owner:08x}"));
        let unlocked = identity::beside(&path, ".new");
        identity::create_private(&unlocked)?;
        let locked =
            OpenOptions::new().write(true).open(&unlocked).and_then(|file| file.lock().map(|()| file));
        // Renamed once it is locked: nobody ever sees it in place and not locked while its owner lives.
        match locked.and_then(|file| fs::rename(&unlocked, &path).map(|()| file)) {
            Ok(file) => Ok(Some(OwnerLock { path, _file: file })),
            Err(error) => {
                log::warn!(
                    target: "postbox::db",
                    "no lock beside the database ({error}): after a crash, work in flight waits for its lease to run out"
                );
                fs::remove_file(&unlocked).map_err(|error| Error::io("remove", &unlocked, error))?;
                Ok(None)
            }
        }
    }
}

impl Drop for OwnerLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // still locked: or it would look like a death for a moment
    }
}

/// A box whose process has died without closing it.
pub(crate) struct DeadOwner {
    pub(crate) owner: u32,
    path: PathBuf,
    /// Locked, so that one survivor at a time takes over.
    _file: File,
}

impl DeadOwner {
    /// After its claims have been taken from it.
    pub(crate) fn bury(self) {
        let _ = fs::remove_file(&self.path); // left behind, it is found again
    }
}

/// The dead among those who had this database open.
pub(crate) fn find_dead(database: &Path) -> Vec<DeadOwner> {
    let (Some(folder), Some(name)) = (database.parent(), database.file_name()) else { return Vec::new() };
    let prefix = format!("{}{INFIX}", name.to_string_lossy());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            log::debug!(target: "postbox::db", "cannot look for dead owners in {}: {error}", folder.display());
            return Vec::new();
        }
    };
    let mut dead = Vec::new();
    for entry in entries.flatten() {
        let entry_name = entry.file_name();
        let Some(owner) =
            entry_name.to_str().and_then(|name| name.strip_prefix(&prefix)).and_then(parse_owner)
        else {
            continue;
        };
        let path = entry.path();
        let Ok(file) = OpenOptions::new().write(true).open(&path) else { continue };
        match file.try_lock() {
            Ok(()) => dead.push(DeadOwner { owner, path, _file: file }),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
    dead
}

fn parse_owner(hex: &str) -> Option<u32> {
    if hex.len() == 8 { u32::from_str_radix(hex, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lock_that_nobody_holds_proves_a_death() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        let alive = OwnerLock::take(&database, 7).unwrap().unwrap();
        assert!(find_dead(&database).is_empty());
        drop(alive);
        assert!(find_dead(&database).is_empty(), "an orderly end is no death");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

        fs::write(folder.path().join("app.db-postbox-0000002a"), "").unwrap();
        fs::write(folder.path().join("app.db-postbox-notes"), "").unwrap();
        fs::write(folder.path().join("other.db-postbox-0000002b"), "").unwrap();
        let mut dead = find_dead(&database);
        assert_eq!(dead.iter().map(|dead| dead.owner).collect::<Vec<_>>(), [42]);
        assert!(find_dead(&database).is_empty(), "one survivor at a time");
        dead.remove(0).bury();
        assert!(find_dead(&database).is_empty());
    }
}
