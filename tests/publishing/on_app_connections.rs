//! `publish_in`: inside a transaction of the application's own connection to the same file.

use postbox::{Error, OutboxStatus, Subscription};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::support::{
    Calls, TestBox, boxes, event, file_box, memory_box_with, noting, refused_field, sql, status,
};

#[test]
fn an_event_published_in_is_delivered_once_the_applications_transaction_commits_and_not_before() {
    let test = file_box();
    let calls = Calls::default();
    test.bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
    let mut conn = test.app_connection();
    conn.execute_batch("CREATE TABLE invoice (id TEXT)").unwrap();

    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    tx.execute("INSERT INTO invoice VALUES ('inv-1')", []).unwrap();
    let id = test.bus.publish_in(&tx, event("a").idempotency_key("k")).unwrap();
    assert!(test.bus.outbox().get(id).unwrap().is_none(), "nobody else sees it yet");
    assert_eq!(test.bus.drain().unwrap(), 0);
    assert_eq!(test.bus.publish_in(&tx, event("a").idempotency_key("k")).unwrap(), id);
    tx.commit().unwrap();

    assert_eq!(test.bus.drain().unwrap(), 1);
    assert_eq!(calls.all(), ["ran"]);
    assert_eq!(status(&test.bus, id), OutboxStatus::Processed);
}

#[test]
fn an_event_published_in_a_transaction_that_is_rolled_back_never_was() {
    let test = file_box();
    let mut conn = test.app_connection();
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let id = test.bus.publish_in(&tx, event("a")).unwrap();
    drop(tx);
    let mut tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let savepoint = tx.savepoint().unwrap();
    let in_savepoint = test.bus.publish_in(&savepoint, event("b")).unwrap();
    drop(savepoint); // rolls back
    tx.commit().unwrap();
    assert_eq!(test.bus.drain().unwrap(), 0);
    assert!(test.bus.outbox().get(id).unwrap().is_none());
    assert!(test.bus.outbox().get(in_savepoint).unwrap().is_none());
}

#[test]
fn a_savepoint_outside_a_transaction_is_one() {
    let test = file_box();
    let mut conn = test.app_connection();
    let savepoint = conn.savepoint().unwrap();
    test.bus.publish_in(&savepoint, event("a")).unwrap();
    savepoint.commit().unwrap();
    assert_eq!(test.bus.drain().unwrap(), 1);
}

#[test]
fn a_connection_without_a_transaction_is_refused() {
    let test = file_box();
    let conn = test.app_connection();
    assert_eq!(refused_field(test.bus.publish_in(&conn, event("a"))), "conn");
    assert_eq!(test.bus.stats().unwrap().total, 0);
}

#[test]
fn a_connection_to_another_database_is_refused() {
    let (test, other) = (file_box(), file_box());
    let refused = |conn: &Connection| {
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(refused_field(test.bus.publish_in(conn, event("a"))), "conn");
        conn.execute_batch("ROLLBACK").unwrap();
    };
    refused(&other.app_connection());
    refused(&Connection::open_in_memory().unwrap());
    refused(&Connection::open("").unwrap()); // a temporary file of SQLite's

    // Attached is not main: the event would be in the other file.
    let conn = other.app_connection();
    conn.execute("ATTACH ?1 AS app", [test.path().to_str()]).unwrap();
    refused(&conn);

    for TestBox { bus, .. } in [&test, &other] {
        assert_eq!(bus.stats().unwrap().total, 0);
    }
    // A transaction of another box is on another database, too.
    let both = [boxes(), boxes()];
    for (one, another) in both[0].iter().zip(&both[1]) {
        let result = one.bus.transaction(|tx| another.bus.publish_in(tx, event("a")));
        assert_eq!(refused_field(result), "conn");
        assert_eq!(another.bus.stats().unwrap().total + one.bus.stats().unwrap().total, 0);
    }
}

#[test]
fn a_box_in_memory_refuses_every_connection_but_its_own_transaction() {
    let test = memory_box_with(|builder| builder);
    for conn in [Connection::open_in_memory().unwrap(), file_box().app_connection()] {
        conn.execute_batch("BEGIN").unwrap();
        assert_eq!(refused_field(test.bus.publish_in(&conn, event("a"))), "conn");
    }
    test.bus.transaction(|tx| test.bus.publish_in(tx, event("a"))).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 1);
}

#[test]
fn the_boxs_own_transaction_is_a_connection_like_another() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.transaction(|tx| bus.publish_in(tx, event("committed"))).unwrap();
        let rolled_back = bus.transaction::<(), Error>(|tx| {
            bus.publish_in(tx, event("rolled back"))?;
            Err(Error::Closed { operation: "any error" })
        });
        assert!(rolled_back.is_err());
        assert_eq!(bus.stats().unwrap().total, 1, "{kind}");
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
    }
}

#[test]
fn the_transaction_of_another_box_on_the_same_file_will_do() {
    let test = file_box();
    let other = test.second();
    other.transaction(|tx| test.bus.publish_in(tx, event("a"))).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 1);
}

#[cfg(unix)]
#[test]
fn the_same_file_by_another_path_is_the_same_file() {
    let test = file_box();
    let alias = test.path().with_file_name("alias");
    std::os::unix::fs::symlink(test.path().parent().unwrap(), &alias).unwrap();
    let mut conn = Connection::open(alias.join("app.db")).unwrap();
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    test.bus.publish_in(&tx, event("a")).unwrap();
    tx.commit().unwrap();
    assert_eq!(test.bus.drain().unwrap(), 1);
}

#[test]
fn a_deferred_transaction_that_read_before_somebody_wrote_gets_an_error_that_says_so() {
    let test = file_box();
    let mut conn = test.app_connection();
    let tx = conn.transaction_with_behavior(TransactionBehavior::Deferred).unwrap();
    let _: i64 = tx.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    test.bus.publish(event("somebody else's")).unwrap();
    match test.bus.publish_in(&tx, event("a")) {
        Err(Error::Invalid { field: "conn", reason }) => {
            assert!(reason.contains("DEFERRED") && reason.contains("IMMEDIATE"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    drop(tx);
    // A deferred one that has not read yet can still become a writer.
    let tx = conn.transaction_with_behavior(TransactionBehavior::Deferred).unwrap();
    test.bus.publish_in(&tx, event("a")).unwrap();
    tx.commit().unwrap();
    assert_eq!(test.bus.drain().unwrap(), 2);
}

#[test]
fn a_connection_that_only_reads_is_refused() {
    let test = file_box();
    let conn = Connection::open_with_flags(test.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    conn.execute_batch("BEGIN").unwrap();
    assert_eq!(refused_field(test.bus.publish_in(&conn, event("a"))), "conn");
    let conn = test.app_connection();
    conn.execute_batch("PRAGMA query_only = ON; BEGIN").unwrap();
    assert_eq!(refused_field(test.bus.publish_in(&conn, event("a"))), "conn");
}

#[test]
fn the_applications_connection_keeps_its_settings_and_its_transaction() {
    const PRAGMAS: [&str; 8] = [
        "synchronous",
        "foreign_keys",
        "busy_timeout",
        "trusted_schema",
        "query_only",
        "cell_size_check",
        "cache_size",
        "user_version",
    ];
    let test = file_box();
    let conn = test.app_connection();
    conn.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 1234; PRAGMA cache_size = 77")
        .unwrap();
    let look =
        || PRAGMAS.map(|pragma| conn.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).unwrap());
    let before = look();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    test.bus.publish_in(&conn, event("a")).unwrap();
    assert!(test.bus.publish_in(&conn, event("")).is_err());
    assert!(!conn.is_autocommit());
    conn.execute_batch("CREATE TABLE t (x); COMMIT; BEGIN; ROLLBACK").unwrap();
    assert_eq!(look(), before);
    sql(&test.bus, |tx| tx.execute("INSERT INTO t VALUES (1)", []));
    conn.close().unwrap();
}

#[test]
fn a_closed_box_publishes_in_nothing() {
    let test = file_box();
    let conn = test.app_connection();
    test.bus.clone().close().unwrap();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(matches!(test.bus.publish_in(&conn, event("a")), Err(Error::Closed { .. })));
}
