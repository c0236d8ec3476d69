//! Which file a box has open: by `stat` alone. Opening and closing it here would drop SQLite's POSIX locks on it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use rusqlite::Connection;

use crate::error::{Error, Result};

#[derive(Debug, Clone)]
pub(crate) struct FileIdentity {
    path: PathBuf,
    node: Node,
}

/// Device and inode. Elsewhere than on Unix the canonical path stands for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg(unix)]
struct Node {
    device: u64,
    inode: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg(not(unix))]
struct Node(PathBuf);

impl FileIdentity {
    /// `path` is absolute and exists.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let node = node(path).map_err(|error| Error::io("look at", path, error))?;
        Ok(FileIdentity { path: path.to_owned(), node })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the connection's main database is this file.
    pub(crate) fn is_main_of(&self, conn: &Connection) -> bool {
        match conn.path() {
            Some("") => false,
            Some(path) => self.is(Path::new(path)),
            None => path_in_bytes(conn).is_some_and(|path| self.is(&path)),
        }
    }

    /// Whether the path still leads to the file.
    pub(crate) fn is_in_place(&self) -> bool {
        self.is(&self.path)
    }

    /// SQLite would go on with what no path leads to any more, and say Ok.
    pub(crate) fn refuse_replaced(&self) -> Result<()> {
        if self.is_in_place() { Ok(()) } else { Err(Error::FileReplaced { path: self.path.clone() }) }
    }

    pub(crate) fn is_same_as(&self, other: &FileIdentity) -> bool {
        self.node == other.node
    }

    pub(crate) fn is(&self, path: &Path) -> bool {
        node(path).is_ok_and(|node| node == self.node)
    }
}

#[cfg(unix)]
fn node(path: &Path) -> io::Result<Node> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map(|metadata| Node { device: metadata.dev(), inode: metadata.ino() })
}

#[cfg(not(unix))]
fn node(path: &Path) -> io::Result<Node> {
    fs::canonicalize(path).map(Node)
}

/// A path that is no UTF-8 comes out of SQL as the bytes that it is.
fn path_in_bytes(conn: &Connection) -> Option<PathBuf> {
    let sql = "SELECT file FROM pragma_database_list WHERE name = 'main'";
    let bytes = conn.query_row(sql, [], |row| Ok(row.get_ref(0)?.as_bytes()?.to_vec())).ok()?;
    #[cfg(unix)]
    let path = PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes));
    #[cfg(not(unix))]
    let path = PathBuf::from(String::from_utf8(bytes).ok()?);
    (!path.as_os_str().is_empty()).then_some(path)
}

/// SQLite takes a few bytes for an empty database and writes over them.
pub(crate) fn refuse_too_short(path: &Path) -> Result<()> {
    let length = fs::metadata(path).map_err(|error| Error::io("look at", path, error))?.len();
    if (1..SMALLEST_DATABASE).contains(&length) {
        Err(Error::NotADatabase { path: path.to_owned() })
    } else {
        Ok(())
    }
}

/// One page of the smallest size (<https://sqlite.org/fileformat2.html#pages>), in bytes.
const SMALLEST_DATABASE: u64 = 512;

/// The absolute path of a file that may not exist yet: its folder must.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let cannot = |reason: &str| Error::CannotOpen { path: path.to_owned(), reason: reason.to_owned() };
    if path.as_os_str() == ":memory:" {
        return Err(cannot("use `open_in_memory` for a box in memory"));
    }
    if let Ok(found) = fs::canonicalize(path) {
        return if found.is_dir() { Err(cannot("it is a folder")) } else { Ok(found) };
    }
    let name = path.file_name().ok_or_else(|| cannot("it names no file"))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = fs::canonicalize(folder).map_err(|error| Error::io("find the folder", folder, error))?;
    Ok(folder.join(name))
}

/// Makes an empty file that only its owner may read and write, unless there is one. True when it was made.
pub(crate) fn create_private(path: &Path) -> Result<bool> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path).and_then(|file| undo_umask(&file)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("create", path, error)),
    }
}

/// A umask may have taken even its owner's rights, by which it could not be opened again.
#[cfg(unix)]
fn undo_umask(file: &fs::File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if file.metadata()?.permissions().mode() & 0o600 == 0o600 {
        return Ok(()); // also where the file system knows no modes
    }
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

#[cfg(not(unix))]
fn undo_umask(_: &fs::File) -> io::Result<()> {
    Ok(())
}

/// Beside `path`, under its name and `suffix`, as SQLite names its -wal and -shm.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
