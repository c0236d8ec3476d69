//! A row of a hundred megabytes: it is set aside, where there is memory to do so, and is in nobody's way.

use std::path::Path;

use postbox::{Event, Postbox, Subscription, Tx};

use crate::child;
use crate::support::{LIMIT, Process, Tally, counting, event, given, integer, raw, text, wait_until};

/// Of SQLite's own memory. SQLite itself holds a row twice while it writes it.
const ENOUGH_BYTES: u64 = 300 << 20;
/// Less than half of what the row takes.
const TOO_FEW_BYTES: u64 = 48 << 20;

fn file_with_a_large_row(path: &Path, column: &str) {
    let bus = Postbox::open(path).unwrap();
    bus.publish_all((0..5).map(|_| event("a"))).unwrap();
    bus.close().unwrap();
    let conn = raw(path);
    conn.execute(
        &format!("UPDATE outbox_event SET {column} = CAST(zeroblob(104857600) AS TEXT) WHERE seq = 3"),
        [],
    )
    .unwrap();
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
}

#[test]
#[ignore = "run as a process by another test"]
fn child_has_little_memory() {
    let (Some(path), Some(heap_bytes_max)) = (given("FILE"), given("HEAP_BYTES_MAX")) else { return };
    // SQLite's own, for the whole process: a statement that needs more fails.
    let other = raw(Path::new(":memory:"));
    other.query_row(&format!("PRAGMA hard_heap_limit = {heap_bytes_max}"), [], |_| Ok(())).unwrap();
    let bus = Postbox::open(path).unwrap();
    let tally = Tally::default();
    bus.subscribe(Subscription::new("a", "c", counting(&tally))).unwrap();
    bus.subscribe(Subscription::transactional("a", "tx", |_: &Event, _: &Tx<'_>| Ok(()))).unwrap();
    if given("BY").as_deref() == Some("worker") {
        let worker = bus.start().unwrap();
        wait_until("the others are through", || bus.stats().unwrap().processed == 4);
        assert!(worker.shutdown(2 * LIMIT).unwrap().clean);
    } else {
        let drained = bus.drain();
        let is_too_few = heap_bytes_max == TOO_FEW_BYTES.to_string();
        assert!(if is_too_few { drained.is_err() } else { drained.as_ref().ok() == Some(&4) }, "{drained:?}");
    }
    assert_eq!(tally.get(), 4);
    bus.close().unwrap();
}

fn deliver(path: &Path, by: &str, heap_bytes_max: u64) {
    let mut command = child("large::child_has_little_memory", path);
    command.env("BY", by).env("HEAP_BYTES_MAX", heap_bytes_max.to_string());
    Process::run(command);
}

#[test]
fn a_hundred_megabytes_are_set_aside_and_never_given_to_anybody() {
    for (column, by) in [("payload", "worker"), ("metadata", "hand")] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        file_with_a_large_row(&path, column);
        deliver(&path, by, ENOUGH_BYTES);
        let conn = raw(&path);
        assert_eq!(
            text(&conn, "SELECT last_error FROM outbox_event WHERE seq = 3"),
            format!("its {column} takes 104857600 bytes, more than this box's limit of 1048576")
        );
        assert_eq!(text(&conn, "SELECT status FROM outbox_event WHERE seq = 3"), "dead_letter");
        let kept = format!("SELECT octet_length({column}) FROM outbox_event WHERE seq = 3");
        assert_eq!(integer(&conn, &kept), 104_857_600);
    }
}

/// SQLite has to hold a row to write its status: where it cannot, all the others went no further either.
#[test]
fn a_row_that_is_larger_than_the_memory_is_left_alone_and_its_neighbours_are_delivered() {
    for by in ["worker", "hand"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        file_with_a_large_row(&path, "payload");
        deliver(&path, by, TOO_FEW_BYTES);
        let conn = raw(&path);
        let statuses = text(&conn, "SELECT group_concat(status, ' ' ORDER BY seq) FROM outbox_event");
        assert_eq!(statuses, "processed processed pending processed processed");
        assert_eq!(text(&conn, "PRAGMA quick_check"), "ok");
    }
}
