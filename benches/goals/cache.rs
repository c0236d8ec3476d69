//! Room in SQLite's page cache, so that the two sides of a comparison do not read for each other.

use postbox::rusqlite::Connection;
use tempfile::TempDir;

/// rusqlite builds its SQLite with `SQLITE_ENABLE_MEMORY_MANAGEMENT`, and so all connections of a process share one page
/// cache (`pcache1.c`, "mode 2"), whose limit is the sum of what each of them asked for. Once it is full, a page is lost
/// as soon as it is let go of: of a floor and a box that are measured in turn, whoever has fewer pages then reads several
/// for each event, and is slower by a third for nothing that is its own. An idle connection with a large `cache_size`,
/// which never reads a page, lifts the limit for both.
pub(crate) struct SharedCache {
    _idle: Connection,
    _folder: TempDir,
}

impl SharedCache {
    pub(crate) fn widen(folder: TempDir) -> Self {
        // A file: a database in memory has a cache apart.
        let idle = Connection::open(folder.path().join("idle.db")).expect("a database");
        idle.execute_batch("PRAGMA cache_size = -65536").expect("a pragma");
        SharedCache { _idle: idle, _folder: folder }
    }
}
