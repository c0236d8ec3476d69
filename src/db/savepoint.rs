//! Several statements as one, inside a transaction that goes on whatever comes of them.

use rusqlite::Connection;

use crate::error::Result;

/// Whatever `f` has written by the time it fails is undone. The transaction stays usable.
///
/// The name is not one of the box's own, which are refused while the application has the connection. One of the same name of the
/// application's stays what it is: the innermost is meant.
pub(crate) fn all_or_none<T>(conn: &Connection, f: impl FnOnce() -> Result<T>) -> Result<T> {
    conn.prepare_cached("SAVEPOINT all_or_none")?.execute([])?;
    let result = f();
    // A trigger of the application's may have ended the whole transaction.
    if !conn.is_autocommit() {
        if result.is_err() {
            conn.prepare_cached("ROLLBACK TO all_or_none")?.execute([])?;
        }
        conn.prepare_cached("RELEASE all_or_none")?.execute([])?;
    }
    result
}
