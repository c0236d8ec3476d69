//! Files that are locked, so that others know whether somebody is still at them: the kernel lets go of the lock when the
//! process dies, however it dies.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Deref;

use super::fork::Process;

/// A file, and the lock on it.
///
/// The lock belongs to what was opened, not to this process's descriptor of it: a child that any thread of the application
/// has forked meanwhile shares both, until it calls `exec` or ends. So the lock is taken off when this is dropped. Closing the
/// descriptor would leave it with the child.
#[derive(Debug)]
pub(super) struct LockedFile {
    file: File,
    by: Process,
}

impl LockedFile {
    /// Waits for whoever has it.
    pub(super) fn lock(file: File) -> io::Result<Self> {
        file.lock().map(|()| Self::of(file))
    }

    pub(super) fn try_lock(file: File) -> Result<Self, TryLockError> {
        file.try_lock().map(|()| Self::of(file))
    }

    /// Beside others that share it.
    pub(super) fn try_lock_shared(file: File) -> Result<Self, TryLockError> {
        file.try_lock_shared().map(|()| Self::of(file))
    }

    fn of(file: File) -> Self {
        LockedFile { file, by: Process::this() }
    }

    /// Whether the code runs in a child that was forked since: the lock is still the parent's.
    pub(super) fn is_of_parent(&self) -> bool {
        self.by.was_forked()
    }
}

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        if !self.is_of_parent() {
            let _ = self.file.unlock(); // closing it comes next, which is as good where nobody has forked
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_owner_whatever_a_forked_child_still_has_open() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let open = || File::options().write(true).open(&path).unwrap();
        for take in [LockedFile::lock as fn(File) -> _, |file| Ok(LockedFile::try_lock_shared(file)?)] {
            let locked = take(open()).unwrap();
            // What `fork` makes of it: another descriptor of what was opened.
            let of_the_child = locked.try_clone().unwrap();
            assert!(matches!(LockedFile::try_lock(open()), Err(TryLockError::WouldBlock)));
            drop(locked);
            LockedFile::try_lock(open()).unwrap();
            drop(of_the_child);
        }
    }
}
