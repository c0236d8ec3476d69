//! The library's tables in the application's file: made, upgraded, recognised.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use crate::error::{self, Error, Result};

const SCHEMA: &str = include_str!("../../schema.sql");

/// The version that schema.sql makes.
pub(crate) const VERSION: u32 = 6;

/// Each step leads from the version before it to its own.
const UPGRADES: &[Upgrade] = &[
    Upgrade { to: 2, sql: include_str!("upgrades/2.sql") },
    Upgrade { to: 3, sql: include_str!("upgrades/3.sql") },
    Upgrade { to: 4, sql: include_str!("upgrades/4.sql") },
    Upgrade { to: 5, sql: include_str!("upgrades/5.sql") },
    Upgrade { to: 6, sql: include_str!("upgrades/6.sql") },
];

struct Upgrade {
    to: u32,
    sql: &'static str,
}

/// The names that the library takes for itself.
const NAMES: &[&str] = &[
    "postbox_setting",
    "postbox_counter",
    "postbox_consumer",
    "postbox_history",
    "postbox_pause",
    "postbox_schedule",
    "postbox_schedule_next",
    "postbox_saga",
    "postbox_saga_running",
    "postbox_saga_ended",
    "outbox_event",
    "inbox_event",
    "integration_link",
    "outbox_event_due",
    "outbox_event_claimed",
    "outbox_event_dead",
    "outbox_event_cause",
    "outbox_event_order",
    "inbox_event_open",
    "outbox_event_deleted",
    "integration_link_source",
    "integration_link_target",
    "integration_link_type",
    "outbox_event_readable",
    "inbox_event_readable",
    "integration_link_readable",
    "postbox_schedule_readable",
    "postbox_saga_readable",
];

/// The version in the file; `None` when it has no postbox yet.
pub(crate) fn version(conn: &Connection) -> Result<Option<u32>> {
    let there = conn
        .query_row(
            "SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'postbox_schema'",
            [],
            |_| Ok(()),
        )
        .optional()?;
    if there.is_none() {
        return Ok(None);
    }
    Ok(Some(conn.query_row("SELECT version FROM main.postbox_schema", [], |row| row.get(0))?))
}

/// Refuses, without a write, what this release must not write to. The version, if the file has postbox's tables.
pub(crate) fn check(conn: &Connection, path: &Path) -> Result<Option<u32>> {
    // One snapshot for all the reads: another process may be making the tables at this moment.
    let _snapshot = if conn.is_autocommit() { Some(conn.unchecked_transaction()?) } else { None };
    let cannot_open = |reason: &str| Error::CannotOpen { path: path.to_owned(), reason: reason.to_owned() };
    let version = version(conn).map_err(|error| match error {
        Error::Sqlite(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) => {
            Error::NotADatabase { path: path.to_owned() }
        }
        Error::Sqlite(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
            Error::Damaged { path: path.to_owned(), report: error.to_string() }
        }
        Error::Sqlite(error) if error::is_busy(&error) => Error::Busy {
            operation: "open",
            waited: Duration::from_millis(busy_timeout_ms(conn)),
            detail: "another connection has the file for itself".to_owned(),
        },
        Error::Sqlite(rusqlite::Error::QueryReturnedNoRows) => {
            cannot_open("its table postbox_schema is empty, so that its version is unknown")
        }
        // Negative, or no number.
        Error::Sqlite(error) if error.sqlite_error_code().is_none() => {
            cannot_open("its table postbox_schema holds no version that there ever was")
        }
        error => error,
    })?;
    match version {
        Some(0) => Err(cannot_open("its table postbox_schema holds no version that there ever was")),
        Some(found) if found > VERSION => Err(Error::SchemaTooNew { found, supported: VERSION }),
        Some(found) => Ok(Some(found)),
        None => refuse_foreign_names(conn, path).map(|()| None),
    }
}

/// Refuses what [`check`] lets by and this release could not read.
pub(crate) fn refuse_other(version: Option<u32>, path: &Path) -> Result<()> {
    match version {
        Some(VERSION) => Ok(()),
        Some(found) => Err(Error::SchemaTooOld { found, required: VERSION }),
        None => Err(Error::CannotOpen {
            path: path.to_owned(),
            reason: "it holds no tables of postbox: no box was ever opened in it".to_owned(),
        }),
    }
}

/// Run it inside a transaction, after [`check`], with foreign keys off: a table that is made anew is dropped first, and what
/// the application's tables say of its rows must outlive that.
pub(crate) fn create_or_upgrade(conn: &Connection, path: &Path) -> Result<()> {
    match check(conn, path)? {
        None => Ok(conn.execute_batch(SCHEMA)?),
        Some(found) => upgrade(conn, found, VERSION, UPGRADES),
    }
}

fn upgrade(conn: &Connection, from: u32, to: u32, steps: &[Upgrade]) -> Result<()> {
    if from == to {
        return Ok(());
    }
    let foreign = foreign_objects(conn)?;
    for step in steps.iter().filter(|step| step.to > from && step.to <= to) {
        conn.execute_batch(step.sql)?;
    }
    // They went with the tables that were made anew.
    let kept = foreign_objects(conn)?;
    for (_, sql) in foreign.iter().filter(|object| !kept.contains(object)) {
        conn.execute_batch(sql)?;
    }
    if conn.execute("UPDATE main.postbox_schema SET version = ?1", [to])? != 1 {
        return Err(Error::NotStored { what: "the schema's version", table: "postbox_schema" });
    }
    log::info!(target: "postbox::db", "upgraded the schema from version {from} to {to}");
    Ok(())
}

/// Names and SQL of the application's triggers and indexes on the library's tables.
fn foreign_objects(conn: &Connection) -> Result<Vec<(String, String)>> {
    const EARLIER: &[&str] = &["outbox_event_live"];
    let mut statement = conn.prepare(
        "SELECT name, sql FROM main.sqlite_schema
         WHERE type IN ('trigger', 'index') AND sql IS NOT NULL AND tbl_name IN ('outbox_event', 'inbox_event', 'integration_link')",
    )?;
    let objects = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let is_foreign = |name: &str| !NAMES.iter().chain(EARLIER).any(|ours| name.eq_ignore_ascii_case(ours));
    let all: Vec<(String, String)> = objects.collect::<rusqlite::Result<_>>()?;
    Ok(all.into_iter().filter(|(name, _)| is_foreign(name)).collect())
}

/// How the library's objects in the file differ from those that this release makes, and what is on its tables that it did not
/// make.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    /// Each as `index outbox_event_due`.
    pub(crate) missing: Vec<String>,
    pub(crate) changed: Vec<String>,
    /// Triggers and indexes.
    pub(crate) foreign: Vec<String>,
}

/// Reads only.
pub(crate) fn differences(conn: &Connection) -> Result<Differences> {
    let fresh = Connection::open_in_memory()?;
    fresh.execute_batch(SCHEMA)?;
    let mut differences = Differences::default();
    for (kind, name) in own_objects(&fresh)? {
        let definition = definition_of(&fresh, &kind, &name)?;
        match definition_of(conn, &kind, &name)? {
            None => differences.missing.push(format!("{kind} {name}")),
            Some(found) if Some(&found) != definition.as_ref() => {
                differences.changed.push(format!("{kind} {name}"));
            }
            Some(_) => {}
        }
    }
    let mut statement = conn.prepare(
        "SELECT type, name, tbl_name FROM main.sqlite_schema
         WHERE type IN ('trigger', 'index') AND sql IS NOT NULL ORDER BY type, name",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name, table): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if is_own(&table) && !is_own(&name) {
            differences.foreign.push(format!("{kind} {name} on {table}"));
        }
    }
    Ok(differences)
}

fn is_own(name: &str) -> bool {
    NAMES.iter().chain(&["postbox_schema"]).any(|own| name.eq_ignore_ascii_case(own))
}

fn own_objects(fresh: &Connection) -> Result<Vec<(String, String)>> {
    let mut statement = fresh
        .prepare("SELECT type, name FROM main.sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name")?;
    let objects = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(objects.collect::<rusqlite::Result<_>>()?)
}

/// `None`: there is no such object. Of a table its columns, since an upgraded one was put together in steps; of a view nothing,
/// as nothing depends on it; of others their SQL.
fn definition_of(conn: &Connection, kind: &str, name: &str) -> Result<Option<Vec<String>>> {
    let sql: Option<String> = conn
        .query_row("SELECT sql FROM main.sqlite_schema WHERE type = ?1 AND name = ?2", [kind, name], |row| {
            row.get(0)
        })
        .optional()?;
    let Some(sql) = sql else { return Ok(None) };
    match kind {
        "view" => Ok(Some(Vec::new())),
        "table" => {
            let mut statement = conn.prepare(
                "SELECT name || ' ' || type || ' ' || \"notnull\" || ' ' || pk || ' ' || hidden || ' ' || coalesce(dflt_value, '')
                 FROM pragma_table_xinfo(?1, 'main') ORDER BY name",
            )?;
            let columns = statement.query_map([name], |row| row.get(0))?;
            Ok(Some(columns.collect::<rusqlite::Result<_>>()?))
        }
        _ => Ok(Some(words_of(&sql))),
    }
}

/// Without layout, comments and the name of the database.
fn words_of(sql: &str) -> Vec<String> {
    let lines = sql.lines().map(|line| line.split_once("--").map_or(line, |(code, _)| code));
    lines.flat_map(str::split_whitespace).map(|word| word.replace("main.", "")).collect()
}

fn busy_timeout_ms(conn: &Connection) -> u64 {
    conn.pragma_query_value(None, "busy_timeout", |row| row.get(0)).unwrap_or(0)
}

fn refuse_foreign_names(conn: &Connection, path: &Path) -> Result<()> {
    let mut statement = conn.prepare("SELECT type, name FROM main.sqlite_schema")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name): (String, String) = (row.get(0)?, row.get(1)?);
        if NAMES.iter().any(|ours| name.eq_ignore_ascii_case(ours)) {
            return Err(Error::CannotOpen {
                path: path.to_owned(),
                reason: format!("it has a {kind} `{name}` that postbox did not make"),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        create_or_upgrade(&conn, Path::new("x")).unwrap();
        conn
    }

    #[test]
    fn every_object_of_the_schema_is_reserved() {
        let conn = fresh();
        conn.execute_batch(include_str!("../outbox/order.sql")).unwrap(); // made where it is asked for
        let mut statement = conn
            .prepare("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name")
            .unwrap();
        let made: Vec<String> =
            statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let mut reserved: Vec<_> = NAMES.iter().copied().chain(["postbox_schema"]).collect();
        reserved.sort_unstable();
        assert_eq!(made, reserved);
    }

    #[test]
    fn the_last_upgrade_makes_what_the_schema_says_to_the_word() {
        let upgraded = Connection::open_in_memory().unwrap();
        upgraded.execute_batch(include_str!("../../tests/data/schema-5.sql")).unwrap();
        create_or_upgrade(&upgraded, Path::new("x")).unwrap();
        let words = |conn: &Connection, kind: &str, name: &str| {
            let sql: String = conn
                .query_row(
                    "SELECT sql FROM sqlite_schema WHERE type = ?1 AND name = ?2",
                    [kind, name],
                    |row| row.get(0),
                )
                .unwrap();
            words_of(&sql)
        };
        let fresh = fresh();
        let objects = own_objects(&fresh).unwrap();
        assert_eq!(own_objects(&upgraded).unwrap(), objects);
        for (kind, name) in objects {
            assert_eq!(words(&upgraded, &kind, &name), words(&fresh, &kind, &name), "{kind} {name}");
        }
    }

    #[test]
    fn a_version_that_never_was_is_refused_with_the_reason() {
        for version in [0, -3] {
            let conn = fresh();
            conn.execute("UPDATE postbox_schema SET version = ?1", [version]).unwrap();
            match check(&conn, Path::new("x")) {
                Err(Error::CannotOpen { reason, .. }) => assert!(reason.contains("no version"), "{reason}"),
                other => panic!("{version}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_upgrade_runs_each_missing_step_in_order_and_only_those() {
        let conn = fresh();
        let steps = [
            Upgrade { to: 1, sql: "CREATE TABLE never (x)" },
            Upgrade { to: 2, sql: "CREATE TABLE second (x)" },
            Upgrade { to: 3, sql: "ALTER TABLE second ADD COLUMN third" },
        ];
        conn.execute("UPDATE postbox_schema SET version = 1", []).unwrap();
        upgrade(&conn, 1, 3, &steps).unwrap();
        assert_eq!(version(&conn).unwrap(), Some(3));
        conn.prepare("SELECT x, third FROM second").unwrap();
        assert!(conn.prepare("SELECT x FROM never").is_err());
    }

    #[test]
    fn an_upgrade_that_fails_leaves_the_old_version() {
        let mut conn = fresh();
        let steps = [
            Upgrade { to: 2, sql: "CREATE TABLE second (x)" },
            Upgrade { to: 3, sql: "CREATE TABLE second (x)" },
        ];
        conn.execute("UPDATE postbox_schema SET version = 1", []).unwrap();
        let tx = conn.transaction().unwrap();
        assert!(upgrade(&tx, 1, 3, &steps).is_err());
        drop(tx);
        assert_eq!(version(&conn).unwrap(), Some(1));
        assert!(conn.prepare("SELECT x FROM second").is_err());
    }
}
