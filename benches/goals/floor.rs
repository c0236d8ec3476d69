//! The floors: the least that raw rusqlite needs for the same rows. A lean table: an INTEGER key, a UUIDv7 of 16 bytes,
//! one partial index over live rows, and the inbox with its unique key.

use std::path::Path;

use postbox::rusqlite::config::DbConfig;
use postbox::rusqlite::{Connection, params};
use postbox::uuid::Uuid;

use crate::payload;

const SCHEMA: &str = "
    CREATE TABLE event (
        seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, status TEXT NOT NULL, attempts INTEGER NOT NULL, at INTEGER NOT NULL,
        lease INTEGER NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, processed_at INTEGER,
        name TEXT NOT NULL, module TEXT NOT NULL, type TEXT NOT NULL, aggregate TEXT NOT NULL, payload TEXT NOT NULL
    ) STRICT;
    CREATE INDEX live ON event (at) WHERE status IN ('pending', 'processing');
    CREATE TABLE inbox (
        id INTEGER PRIMARY KEY, event INTEGER NOT NULL, consumer TEXT NOT NULL, status TEXT NOT NULL, at INTEGER NOT NULL,
        UNIQUE (event, consumer)
    ) STRICT;
    CREATE TABLE task (title TEXT);";

pub(crate) struct Floor {
    conn: Connection,
    now: i64,
}

impl Floor {
    pub(crate) fn open(path: &Path) -> Self {
        let conn = Connection::open(path).expect("a database");
        conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA mmap_size = 0;")
            .expect("pragmas");
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).expect("planner stability");
        conn.set_prepared_statement_cache_capacity(64);
        conn.execute_batch(SCHEMA).expect("the schema");
        Floor { conn, now: 1_700_000_000_000_000 }
    }

    pub(crate) fn unsynced(&self) {
        self.conn.execute_batch("PRAGMA synchronous = NORMAL").expect("a pragma");
    }

    fn run(&self, sql: &str) {
        self.conn.prepare_cached(sql).and_then(|mut statement| statement.execute([])).expect("a statement");
    }

    fn insert(&mut self, number: usize) {
        self.now += 1;
        self.conn
            .prepare_cached(
                "INSERT INTO event (id, status, attempts, at, lease, created_at, updated_at, name, module, type, aggregate, payload)
                 VALUES (?1, 'pending', 0, ?2, -9223372036854775808, ?2, ?2, ?3, ?4, ?5, ?6, ?7)",
            )
            .and_then(|mut statement| {
                statement.execute(params![
                    Uuid::now_v7(),
                    self.now,
                    "invoice.created",
                    "finance",
                    "Invoice",
                    format!("inv-{number:07}"),
                    payload(number).to_string(),
                ])
            })
            .expect("an insert");
    }

    /// One commit for `count` rows.
    pub(crate) fn publish(&mut self, first: usize, count: usize) {
        self.run("BEGIN IMMEDIATE");
        for number in first..first + count {
            self.insert(number);
        }
        self.run("COMMIT");
    }

    /// Claims and settles in batches until nothing is due, in two commits a batch, or in one where there are `effects`.
    pub(crate) fn drain(&mut self, batch: usize, most: usize) {
        let mut lease = 0_i64;
        let mut done = 0;
        while done < most {
            lease += 1;
            let rows = self.claim(batch, lease);
            if rows.is_empty() {
                return;
            }
            done += rows.len();
            self.settle(&rows, lease);
        }
    }

    fn claim(&self, batch: usize, lease: i64) -> Vec<(i64, String, String)> {
        self.run("BEGIN IMMEDIATE");
        let rows = {
            let mut claim = self
                .conn
                .prepare_cached(
                    "UPDATE event SET status = 'processing', attempts = attempts + 1, lease = ?1, at = ?2
                     WHERE seq IN (SELECT seq FROM event INDEXED BY live WHERE status IN ('pending', 'processing') AND at <= ?3
                                   ORDER BY at LIMIT ?4)
                     RETURNING seq, aggregate, payload",
                )
                .expect("a statement");
            let rows = claim
                .query_map(params![lease, i64::MAX / 2, self.now, batch], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .expect("a claim");
            rows.map(|row| row.expect("a row")).collect()
        };
        self.run("COMMIT");
        rows
    }

    fn settle(&self, rows: &[(i64, String, String)], lease: i64) {
        self.run("BEGIN IMMEDIATE");
        for (seq, _, _) in rows {
            self.conn
                .prepare_cached(
                    "UPDATE event SET status = 'processed', lease = 0, processed_at = ?3, updated_at = ?3 WHERE seq = ?1 AND lease = ?2",
                )
                .and_then(|mut statement| statement.execute(params![seq, lease, self.now]))
                .expect("a settle");
            self.conn
                .prepare_cached("INSERT INTO inbox (event, consumer, status, at) VALUES (?1, 'operations', 'processed', ?2)")
                .and_then(|mut statement| statement.execute(params![seq, self.now]))
                .expect("an inbox row");
        }
        self.run("COMMIT");
    }
}
