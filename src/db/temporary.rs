//! Files that are written beside their target and then take its place, whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use uuid::Uuid;

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
    /// Its descriptor holds the lock. `None` where the file system knows no locks.
    _locked: Option<File>,
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
            let locked =
                OpenOptions::new().write(true).open(&lock).and_then(|file| file.lock().map(|()| file));
            let locked = match locked {
                // Somebody took it for left behind before it was locked.
                Ok(_) if !lock.exists() => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                locked => locked.ok(),
            };
            let file = TemporaryFile { path, lock, _locked: locked };
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
        // Still locked: or it would look left behind meanwhile.
        for path in own_files(&self.path).chain([self.lock.clone()]) {
            if let Err(error) = remove_if_there(&path) {
                log::warn!(target: "postbox::db", "a temporary file is left behind: {error}");
            }
        }
    }
}

fn own_files(path: &Path) -> impl Iterator<Item = PathBuf> {
    [path.to_owned()].into_iter().chain(COMPANIONS.map(|suffix| identity::beside(path, suffix)))
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
        if file.try_lock().is_err() {
            continue;
        }
        let path = identity::beside(target, &format!(".{id}{ENDING}"));
        // The lock goes last: without it nobody would find the rest.
        for left in own_files(&path).chain([lock]) {
            if let Err(error) = remove_if_there(&left) {
                log::debug!(target: "postbox::db", "a temporary file stays where it was left: {error}");
                break;
            }
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
