//! The table `postbox_consumer`: consumers that inbox rows speak of, and their numbers.

use rusqlite::ffi::SQLITE_CONSTRAINT_CHECK;
use rusqlite::{Connection, OptionalExtension};

use crate::error::{Error, Result};

/// The consumer's number, if it has one: the same for ever. One that no box can have given, since it does not fit an inbox
/// row's id, is none.
pub(crate) fn known_number_of(conn: &Connection, consumer: &str) -> Result<Option<i64>> {
    Ok(conn
        .prepare_cached(
            "SELECT number FROM main.postbox_consumer INDEXED BY sqlite_autoindex_postbox_consumer_1
             WHERE name = ?1 AND number BETWEEN 1 AND 1048575",
        )?
        .query_row([consumer], |row| row.get(0))
        .optional()?)
}

/// The same, given out where there was none.
pub(crate) fn number_of(conn: &Connection, consumer: &str) -> Result<i64> {
    if let Some(number) = known_number_of(conn, consumer)? {
        return Ok(number);
    }
    let added = conn
        .prepare_cached(
            "INSERT INTO main.postbox_consumer (number, name)
             SELECT coalesce(max(number), 0) + 1, ?1 FROM main.postbox_consumer WHERE number BETWEEN 1 AND 1048575
             ON CONFLICT (name) DO UPDATE SET number = excluded.number",
        )?
        .execute([consumer]);
    match added {
        Ok(1) => known_number_of(conn, consumer)?
            .ok_or(Error::NotStored { what: "the consumer", table: "postbox_consumer" }),
        Ok(_) => Err(Error::NotStored { what: "the consumer", table: "postbox_consumer" }),
        Err(error) if error.sqlite_error().map(|e| e.extended_code) == Some(SQLITE_CONSTRAINT_CHECK) => {
            Err(Error::NoNumberLeft { what: "the consumer", table: "postbox_consumer" })
        }
        Err(error) => Err(error.into()),
    }
}

/// All names, sorted.
pub(crate) fn names(conn: &Connection) -> Result<Vec<String>> {
    let mut statement = conn.prepare_cached(
        "SELECT name FROM main.postbox_consumer INDEXED BY sqlite_autoindex_postbox_consumer_1 ORDER BY name",
    )?;
    let names = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(names)
}
