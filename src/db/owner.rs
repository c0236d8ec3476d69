//! Proof of life. Each open box holds a lock on a small file of its own beside the database; the kernel lets go of it
//! when the process dies, however it dies. A claim whose owner is provably dead need not sit out its lease.
//!
//! Only a file that is there and not locked proves a death: one that is missing proves nothing.
//!
//! The file also says whose handlers had begun: each thread that runs handlers notes the `seq` of its event, in a slot of
//! its own, before the handler starts. What the dead had claimed and not begun is not to blame for the death. The notes
//! outlive the process but, not being synced, maybe not a power cut: then an attempt may go uncounted.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::identity;
use super::locked::LockedFile;
use crate::error::{Error, Result};

/// Followed by the owner as eight hexadecimal digits.
const INFIX: &str = "-postbox-";

/// This box's own lock. Dropping it removes the file: an orderly end leaves nothing behind.
///
/// A child that is forked and never calls `exec` shares the lock: a box whose process was killed seems alive until the child
/// has ended as well.
pub(crate) struct OwnerLock {
    path: PathBuf,
    file: LockedFile,
}

/// What ends the name of one that is not in place yet.
const NEW: &str = ".new";

/// Bytes of a slot: one `seq`, little-endian; 0 is none.
const SLOT: u64 = 8;

/// More slots than threads can be.
const SLOTS_MAX: u64 = 1 << 16;

impl OwnerLock {
    /// `None` where the file system knows no locks: then leases alone tell.
    pub(crate) fn take(database: &Path, owner: u32) -> Result<Option<Self>> {
        let path = identity::beside(database, &format!("{INFIX}{owner:08x}"));
        let unlocked = identity::beside(&path, NEW);
        loop {
            identity::create_private(&unlocked)?;
            let locked = OpenOptions::new().write(true).open(&unlocked).and_then(LockedFile::lock);
            // Renamed once it is locked: nobody ever sees it in place and not locked while its owner lives.
            match locked.and_then(|file| fs::rename(&unlocked, &path).map(|()| file)) {
                Ok(file) => return Ok(Some(OwnerLock { path, file })),
                // Another box took it for left behind before it was locked.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    log::warn!(
                        target: "postbox::db",
                        "no lock beside the database ({error}): after a crash, work in flight waits for its lease to run out"
                    );
                    fs::remove_file(&unlocked).map_err(|error| Error::io("remove", &unlocked, error))?;
                    return Ok(None);
                }
            }
        }
    }
}

impl OwnerLock {
    /// Notes that the thread of this slot begins to handle an event.
    pub(crate) fn note_begun(&self, slot: u64, seq: i64) {
        if let Err(error) = write_at(&self.file, &seq.to_le_bytes(), slot.min(SLOTS_MAX) * SLOT) {
            log::debug!(target: "postbox::db", "cannot note what is begun: {error}");
        }
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    std::os::windows::fs::FileExt::seek_write(file, bytes, at).map(|_| ())
}

#[cfg(not(any(unix, windows)))]
fn write_at(_: &File, _: &[u8], _: u64) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

impl Drop for OwnerLock {
    fn drop(&mut self) {
        if !self.file.is_of_parent() {
            let _ = fs::remove_file(&self.path); // still locked: or it would look like a death for a moment
        }
    }
}

/// A box whose process has died without closing it.
pub(crate) struct DeadOwner {
    pub(crate) owner: u32,
    /// The events whose handlers it had begun, and perhaps some that were over.
    pub(crate) begun: Vec<i64>,
    path: PathBuf,
    /// Locked, so that one survivor at a time takes over.
    _file: LockedFile,
}

impl DeadOwner {
    /// After its claims have been taken from it.
    pub(crate) fn bury(self) {
        let _ = fs::remove_file(&self.path); // left behind, it is found again
    }
}

/// Whether an owner of this number is there, alive or dead.
pub(crate) fn is_known(database: &Path, owner: u32) -> bool {
    identity::beside(database, &format!("{INFIX}{owner:08x}")).exists()
}

/// Whether this owner's process provably lives.
pub(crate) fn is_alive(database: &Path, owner: u32) -> bool {
    let path = identity::beside(database, &format!("{INFIX}{owner:08x}"));
    OpenOptions::new()
        .write(true)
        .open(path)
        .is_ok_and(|file| matches!(LockedFile::try_lock(file), Err(TryLockError::WouldBlock)))
}

/// What a look at an owner's lock says, which changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnerState {
    Alive,
    Dead,
    /// There is no lock, as beside a copy, or it may not be read.
    Unknown,
}

pub(crate) fn state_of(database: &Path, owner: u32) -> OwnerState {
    let path = identity::beside(database, &format!("{INFIX}{owner:08x}"));
    // Shared, and for a moment: whoever would take over finds it locked at the most once.
    match File::open(path).map(LockedFile::try_lock_shared) {
        Ok(Ok(_)) => OwnerState::Dead,
        Ok(Err(TryLockError::WouldBlock)) => OwnerState::Alive,
        Ok(Err(TryLockError::Error(_))) | Err(_) => OwnerState::Unknown,
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
        let Some(rest) = entry_name.to_str().and_then(|name| name.strip_prefix(&prefix)) else { continue };
        let path = entry.path();
        if rest.strip_suffix(NEW).and_then(parse_owner).is_some() {
            remove_if_nobody_locks(&path);
        }
        let Some(owner) = parse_owner(rest) else { continue };
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        match LockedFile::try_lock(file) {
            Ok(file) => {
                let begun = read_slots(&file);
                dead.push(DeadOwner { owner, begun, path, _file: file });
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
    dead
}

/// One whose maker died before it was in place.
fn remove_if_nobody_locks(path: &Path) {
    if let Ok(file) = OpenOptions::new().write(true).open(path)
        && let Ok(_nobody_else) = LockedFile::try_lock(file)
    {
        let _ = fs::remove_file(path); // while it is locked; left behind, it is found again
    }
}

fn read_slots(file: &File) -> Vec<i64> {
    let mut bytes = Vec::new();
    if let Err(error) = file.take(SLOTS_MAX * SLOT).read_to_end(&mut bytes) {
        log::debug!(target: "postbox::db", "cannot read what a dead owner had begun: {error}");
    }
    bytes.as_chunks().0.iter().map(|slot| i64::from_le_bytes(*slot)).filter(|seq| *seq != 0).collect()
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
        assert!(is_alive(&database, 7) && !is_alive(&database, 8));
        assert!(is_known(&database, 7) && !is_known(&database, 8));
        assert_eq!(
            [state_of(&database, 7), state_of(&database, 8)],
            [OwnerState::Alive, OwnerState::Unknown]
        );
        drop(alive);
        assert!(!is_alive(&database, 7));
        assert!(find_dead(&database).is_empty(), "an orderly end is no death");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

        let slots = [3_i64, 0, 5].map(i64::to_le_bytes).concat();
        fs::write(folder.path().join("app.db-postbox-0000002a"), slots).unwrap();
        fs::write(folder.path().join("app.db-postbox-notes"), "").unwrap();
        fs::write(folder.path().join("app.db-postbox-0000002a.new"), "").unwrap();
        fs::write(folder.path().join("other.db-postbox-0000002b"), "").unwrap();
        assert_eq!(state_of(&database, 42), OwnerState::Dead);
        let mut dead = find_dead(&database);
        assert_eq!(dead.iter().map(|dead| dead.owner).collect::<Vec<_>>(), [42]);
        assert_eq!(dead[0].begun, [3, 5]);
        assert!(find_dead(&database).is_empty(), "one survivor at a time");
        assert!(!folder.path().join("app.db-postbox-0000002a.new").exists(), "nobody made it whole");
        dead.remove(0).bury();
        assert!(find_dead(&database).is_empty());
    }
}
