//! Files that are written beside their target and then take its place, whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use uuid::Uuid;

use super::locked::LockedFile;
use super::{connection, identity};
use crate::error::{Error, Result};

/// A file of nobody's yet, private, gone with its value unless it is put in place.
///
/// Beside it stands another, locked for as long as this process works on it: what a process that died has left behind is
/// known by a lock that nobody holds, and goes when somebody next writes to the same target. The lock is on a file of its own:
/// the first becomes a database, and closing a descriptor of one drops SQLite's locks on it.
pub(super) struct TemporaryFile {
    pub(super) path: PathBuf,
    lock: PathBuf,
    /// `None` where the file system knows no locks.
    locked: Option<LockedFile>,
}

const ENDING: &str = ".tmp";
const LOCK: &str = "-lock";

/// What SQLite may make beside a file.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

impl TemporaryFile {
    pub(super) fn beside(target: &Path) -> Result<Self> {
        remove_left_behind(target);
        loop {
            let path = identity::beside(target, &format!(".{}{ENDING}", Uuid::new_v4().simple()));
            let lock = identity::beside(&path, LOCK);
            identity::create_private(&lock)?;
            let locked = OpenOptions::new().write(true).open(&lock).and_then(LockedFile::lock);
            let locked = match locked {
                // Somebody took it for left behind before it was locked.
                Ok(_) if !lock.exists() => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                locked => locked.ok(),
            };
            let file = TemporaryFile { path, lock, locked };
            identity::create_private(&file.path)?;
            return Ok(file);
        }
    }

    pub(super) fn open(&self) -> Result<Connection> {
        let conn = connection::open_file(&self.path)?;
        connection::set(&conn, "foreign_keys", 1)?;
        connection::set(&conn, "trusted_schema", 0)?;
        Ok(conn)
    }

    /// Whoever could read the old file can read the new one; its owner is whoever restores it.
    pub(super) fn take_mode_of(&self, target: &Path) -> Result<()> {
        #[cfg(unix)]
        if let Ok(metadata) = fs::metadata(target) {
            fs::set_permissions(&self.path, metadata.permissions())
                .map_err(|error| Error::io("set the mode of", &self.path, error))?;
        }
        let _ = target;
        Ok(())
    }

    /// Without the last step a backup came back from a power cut as 0 bytes.
    pub(super) fn put_in_place(self, target: &Path) -> Result<()> {
        let sync = |path: &Path| OpenOptions::new().write(true).open(path)?.sync_all();
        sync(&self.path).map_err(|error| Error::io("sync", &self.path, error))?;
        fs::rename(&self.path, target).map_err(|error| Error::io("put in place", target, error))?;
        sync_folder_of(target)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.path, &self.lock) {
            log::warn!(target: "postbox::db", "a temporary file is left behind until the next time: {error}");
        }
        drop(self.locked.take()); // not before: it would look left behind meanwhile
    }
}

/// A temporary file, what SQLite made beside it, and the lock last: without it nobody would find the rest the next time.
fn remove_all(path: &Path, lock: &Path) -> Result<()> {
    remove_if_there(path)?;
    for suffix in COMPANIONS {
        remove_if_there(&identity::beside(path, suffix))?;
    }
    remove_if_there(lock)
}

/// Removes what processes that died have left beside this target. What cannot be removed stays for the next time.
fn remove_left_behind(target: &Path) {
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else { return };
    let prefix = format!("{}.", name.to_string_lossy());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let entry_name = entry.file_name();
        let Some(id) = entry_name
            .to_str()
            .and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(LOCK)?.strip_suffix(ENDING))
        else {
            continue;
        };
        if Uuid::try_parse(id).is_err() {
            continue;
        }
        let lock = entry.path();
        let Ok(file) = OpenOptions::new().write(true).open(&lock) else { continue };
        let Ok(_nobody_else) = LockedFile::try_lock(file) else { continue };
        let path = identity::beside(target, &format!(".{id}{ENDING}"));
        if let Err(error) = remove_all(&path, &lock) {
            log::debug!(target: "postbox::db", "a temporary file stays where it was left: {error}");
        }
    }
}

pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Makes a rename survive a power cut. Windows has no such call; there the rename itself is journalled.
pub(super) fn sync_folder_of(path: &Path) -> Result<()> {
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| Error::io("sync the folder", folder, error))?;
    }
    let _ = path;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_removed_goes_the_next_time_though_a_forked_child_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("copy.db");
        let file = TemporaryFile::beside(&target).unwrap();
        let of_the_child = file.locked.as_ref().unwrap().try_clone().unwrap();
        let in_the_way = file.path.clone();
        fs::remove_file(&in_the_way).unwrap();
        fs::create_dir(&in_the_way).unwrap(); // is no file, and so cannot be removed as one
        drop(file);
        fs::remove_dir(&in_the_way).unwrap();
        fs::write(&in_the_way, "").unwrap();

        drop(TemporaryFile::beside(&target).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        drop(of_the_child);
    }
}
