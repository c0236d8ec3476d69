//! The floors: the least that raw rusqlite needs for the same rows. A lean table: an INTEGER key, a UUIDv7 of 16 bytes,
//! one partial index over live rows, and the inbox with its unique key.

use std::path::Path;

use postbox::rusqlite::config::DbConfig;
use postbox::rusqlite::{Connection, Params, params};
use postbox::uuid::Uuid;

use crate::work::{CONSUMER, MODULE, NAME, TYPE, aggregate, payload};

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

/// What a claim hands to a handler.
struct Claimed {
    seq: i64,
    aggregate: String,
    _payload: String,
}

impl Floor {
    pub(crate) fn open(path: &Path) -> Self {
        let conn = Connection::open(path).expect("a database");
        // A cache as large as the library's.
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA mmap_size = 0; PRAGMA cache_size = -8000;",
        )
        .expect("pragmas");
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).expect("planner stability");
        conn.set_prepared_statement_cache_capacity(64);
        conn.execute_batch(SCHEMA).expect("the schema");
        Floor { conn, now: 1_700_000_000_000_000 }
    }

    /// As the library acknowledges.
    pub(crate) fn unsynced(&self) {
        self.conn.execute_batch("PRAGMA synchronous = NORMAL").expect("a pragma");
    }

    /// One commit for `count` rows.
    pub(crate) fn publish(&mut self, first: usize, count: usize) {
        self.run("BEGIN IMMEDIATE", []);
        for number in first..first + count {
            self.insert(number);
        }
        self.run("COMMIT", []);
    }

    /// Claims and settles in batches until nothing is due, in two commits a batch. `with_task`: as a transactional
    /// consumer, an INSERT for each event, in a savepoint with what settles it.
    pub(crate) fn drain(&mut self, batch: usize, with_task: bool) {
        for lease in 1.. {
            let claimed = self.claim(batch, lease);
            if claimed.is_empty() {
                return;
            }
            self.run("BEGIN IMMEDIATE", []);
            for event in claimed {
                if with_task {
                    self.run("SAVEPOINT one", []);
                    self.run("INSERT INTO task VALUES (?1)", [&event.aggregate]);
                }
                self.settle(event.seq, lease);
                if with_task {
                    self.run("RELEASE one", []);
                }
            }
            self.run("COMMIT", []);
        }
    }

    fn insert(&mut self, number: usize) {
        self.now += 1;
        self.run(
            "INSERT INTO event (id, status, attempts, at, lease, created_at, updated_at, name, module, type, aggregate, payload)
             VALUES (?1, 'pending', 0, ?2, -9223372036854775808, ?2, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![Uuid::now_v7(), self.now, NAME, MODULE, TYPE, aggregate(number), payload(number).to_string()],
        );
    }

    fn claim(&self, batch: usize, lease: i64) -> Vec<Claimed> {
        self.run("BEGIN IMMEDIATE", []);
        let claimed = {
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
                    Ok(Claimed { seq: row.get(0)?, aggregate: row.get(1)?, _payload: row.get(2)? })
                })
                .expect("a claim");
            rows.map(|row| row.expect("a row")).collect()
        };
        self.run("COMMIT", []);
        claimed
    }

    fn settle(&self, seq: i64, lease: i64) {
        self.run(
            "UPDATE event SET status = 'processed', lease = 0, processed_at = ?3, updated_at = ?3 WHERE seq = ?1 AND lease = ?2",
            params![seq, lease, self.now],
        );
        self.run(
            "INSERT INTO inbox (event, consumer, status, at) VALUES (?1, ?2, 'processed', ?3)",
            params![seq, CONSUMER, self.now],
        );
    }

    fn run(&self, sql: &str, parameters: impl Params) {
        self.conn.prepare_cached(sql).and_then(|mut statement| statement.execute(parameters)).expect(sql);
    }
}
