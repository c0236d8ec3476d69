//! Many at once, on one file: processes, threads, other people's locks and readers. Nothing is lost and nothing doubled.
//!
//! `POSTBOX_EVENTS` says how many events the processes work through (4,000 where it is not set), `POSTBOX_ROUNDS` how many
//! rounds the others go.

#[path = "support/children.rs"]
mod children;
#[path = "support/files.rs"]
mod support;

#[path = "concurrency/all_at_once.rs"]
mod all_at_once;
#[path = "concurrency/late.rs"]
mod late;
#[path = "concurrency/locked_out.rs"]
mod locked_out;
#[path = "concurrency/long_readers.rs"]
mod long_readers;
#[path = "concurrency/processes.rs"]
mod processes;

use std::path::Path;
use std::time::{Duration, Instant};

use postbox::{Context, Event, HandlerResult, NewEvent, Postbox, Result, Subscription, Tx};
use serde_json::json;

use crate::support::{Tally, integer, raw, text};

const SECOND: Duration = Duration::from_secs(1);

/// An environment variable's number, or what stands here.
fn number(variable: &str, otherwise: usize) -> usize {
    support::given(variable).map_or(otherwise, |number| number.parse().expect("a number"))
}

fn work(n: usize) -> NewEvent {
    NewEvent::new("work", "tests", "Thing", n.to_string()).payload(json!({ "n": n }))
}

/// No column is UNIQUE: what is doubled shows.
fn make_effects(bus: &Postbox) {
    let sql = "CREATE TABLE effect (n INTEGER NOT NULL, id TEXT NOT NULL, pid INTEGER NOT NULL)";
    bus.transaction(|tx| -> Result<()> { Ok(tx.execute_batch(sql)?) }).unwrap();
}

fn write_effect(event: &Event, tx: &Tx<'_>) -> HandlerResult {
    let n = event.payload()["n"].as_u64();
    let id = event.id().to_string();
    tx.execute("INSERT INTO effect VALUES (?1, ?2, ?3)", (n, id, std::process::id()))?;
    Ok(())
}

/// A transactional consumer whose effects are rows, and a plain one that counts.
fn subscribe_effects(bus: &Postbox, plain: &Tally) {
    let plain = plain.clone();
    bus.subscribe_many([
        Subscription::transactional("work", "inside", write_effect),
        Subscription::new("work", "outside", move |_: &Event, _: &Context<'_>| {
            plain.add();
            Ok(())
        })
        .priority(1),
    ])
    .unwrap();
}

/// Each of these numbers was published once and has had its one effect; the file is sound and nothing is left to do.
#[track_caller]
fn assert_each_effect_once(path: &Path, numbers: &[usize]) {
    let conn = raw(path);
    assert_eq!(text(&conn, "PRAGMA integrity_check"), "ok");
    let mut expected = numbers.to_vec();
    expected.sort_unstable();
    let all = |sql: &str| -> Vec<usize> {
        conn.prepare(sql)
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap()
    };
    let published = all(
        "SELECT payload ->> '$.n' FROM outbox_event WHERE event_name = 'work' ORDER BY payload ->> '$.n'",
    );
    assert!(published == expected, "{} rows for {} acknowledged events", published.len(), expected.len());
    let effects = all("SELECT n FROM effect ORDER BY n");
    assert!(effects == expected, "{} effects for {} acknowledged events", effects.len(), expected.len());
    assert_eq!(integer(&conn, "SELECT count(*) FROM outbox_event WHERE status <> 'processed'"), 0);
}

/// Until nothing is pending or claimed, by the file's own word.
#[track_caller]
fn wait_until_all_is_done(bus: &Postbox, limit: Duration) {
    let start = Instant::now();
    loop {
        let stats = bus.stats().unwrap();
        if stats.pending + stats.processing == 0 {
            return;
        }
        assert!(start.elapsed() < limit, "not done within {limit:?}: {stats:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
