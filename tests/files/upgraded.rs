//! Files of an earlier version: opened, they are of this one, with everything that was in them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use postbox::{Context, Event, InboxStatus, LinkType, OutboxStatus, Postbox, Subscription};
use rusqlite::params;
use uuid::Uuid;

use crate::support::{event, integer, raw, text};

/// Late enough that no clock has come to it.
const FUTURE: i64 = 4_000_000_000_000_000;

/// What version 1 wrote, as its box left it: the statuses, one each and more of what is pending, with their inbox rows.
fn file_of_version_1(path: &Path) {
    let conn = raw(path);
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; CREATE TABLE customer (id TEXT); INSERT INTO customer VALUES ('c-1');",
    )
    .unwrap();
    conn.execute_batch(include_str!("../data/schema-1.sql")).unwrap();
    conn.execute_batch(
        "CREATE VIEW open_work AS SELECT event_name FROM outbox_event WHERE status = 'pending'",
    )
    .unwrap();
    for (number, status, attempts, available_at, lease) in [
        (1, "processed", 1, 70, 0),
        (2, "pending", 0, 20, i64::MIN),
        (3, "pending", 0, FUTURE, i64::MIN),
        (4, "processing", 1, 40, 77_i64 << 32 | 1),
        (5, "dead_letter", 3, 50, 0),
        (6, "failed", 3, 60, 0),
        (7, "pending", 1, 65, i64::MIN),
        (8, "processed", 1, 80, 0),
    ] {
        conn.execute(
            "INSERT INTO outbox_event (id, status, attempt_count, available_at, lease_id, created_at, updated_at, processed_at,
                                       event_name, source_module, aggregate_type, aggregate_id, payload, metadata, last_error)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6 + 1, CASE ?2 WHEN 'processed' THEN ?4 END, 'a', 'tests', 'Thing', 'thing-1',
                     '{\"n\":1}', '{\"who\":\"me\"}', CASE WHEN ?3 > 1 THEN 'why' END)",
            params![id(number), status, attempts, available_at, lease, number],
        )
        .unwrap();
    }
    conn.execute_batch(
        "DELETE FROM outbox_event WHERE seq = 8;
         INSERT INTO inbox_event (event, consumer_name, status, attempt_count, gave_up, last_error, processed_at, created_at, updated_at)
         VALUES (1, 'one', 'processed', 0, 0, NULL, 70, 70, 70), (1, 'two', 'skipped', 0, 0, 'no', 71, 71, 71),
                (5, 'one', 'failed', 3, 1, 'why', NULL, 51, 55), (7, 'one', 'failed', 1, 0, 'once', NULL, 62, 62);
         INSERT INTO integration_link (id, source_module, source_entity_type, source_entity_id, target_module, target_entity_type,
                                       target_entity_id, link_type, created_at, updated_at)
         VALUES (x'00000000000000000000000000000009', 'a', 'A', '1', 'b', 'B', '2', 'cascade', 1, 1);
         INSERT INTO postbox_setting VALUES ('core.integration.outbox.batchSize', '17', 1);",
    )
    .unwrap();
}

fn id(number: i64) -> Uuid {
    Uuid::from_u128(u128::from(number.unsigned_abs()) << 64 | 0x7000_8000_0000_0000_0000)
}

#[test]
fn a_file_of_version_1_keeps_everything_that_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    file_of_version_1(&path);
    let bus = Postbox::open(&path).unwrap();
    let conn = raw(&path);
    assert_eq!(integer(&conn, "SELECT version FROM postbox_schema"), 6);
    assert_eq!(text(&conn, "PRAGMA integrity_check"), "ok");
    assert_eq!(text(&conn, "SELECT id FROM customer"), "c-1");
    assert_eq!(integer(&conn, "SELECT count(*) FROM open_work"), 3, "a view of the application's");
    assert_eq!(integer(&conn, "SELECT count(*) FROM temp.sqlite_schema"), 0);

    let stats = bus.stats().unwrap();
    let counts =
        [stats.pending, stats.processing, stats.processed, stats.failed, stats.dead_letter, stats.total];
    assert_eq!(counts, [3, 1, 1, 1, 1, 7]);
    assert_eq!(bus.settings().batch_size, 17);
    assert_eq!(bus.links().find_by_type(LinkType::Cascade).unwrap().len(), 1);

    let micros = |at: time::OffsetDateTime| at.unix_timestamp_nanos() / 1_000;
    let event_id = |number| id(number).to_string().parse::<postbox::EventId>().unwrap();
    let row = |number| bus.outbox().get(event_id(number)).unwrap().unwrap();
    let (done, dead, waits) = (row(1), row(5), row(7));
    assert_eq!((done.status, done.processed_at.map(micros)), (OutboxStatus::Processed, Some(70)));
    assert_eq!(
        (dead.status, micros(dead.created_at), micros(dead.updated_at)),
        (OutboxStatus::DeadLetter, 5, 6)
    );
    assert_eq!((dead.last_error.as_deref(), dead.attempt_count), (Some("why"), 3));
    assert_eq!((waits.payload["n"].as_i64(), waits.metadata.unwrap()["who"].as_str()), (Some(1), Some("me")));

    let inbox = |number, consumer| bus.inbox().get_or_create(event_id(number), consumer).unwrap();
    assert_eq!(inbox(1, "one").status, InboxStatus::Processed);
    let skipped = inbox(1, "two");
    assert_eq!((skipped.status, skipped.last_error.as_deref()), (InboxStatus::Skipped, Some("no")));
    let failed = inbox(5, "one");
    assert_eq!((failed.attempt_count, micros(failed.created_at), micros(failed.updated_at)), (3, 51, 55));
}

#[test]
fn events_of_a_file_of_version_1_are_delivered_and_its_numbers_are_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    file_of_version_1(&path);
    let bus = Postbox::open(&path).unwrap();
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let note = Arc::clone(&calls);
    bus.subscribe(Subscription::new("a", "one", move |event: &Event, _: &Context<'_>| {
        note.lock().unwrap().push(format!(
            "{} {}",
            event.id().as_uuid().as_u64_pair().0 & 0xfff,
            event.attempt()
        ));
        Ok(())
    }))
    .unwrap();
    let new = bus.publish(event("a")).unwrap();
    bus.drain().unwrap();
    let mut seen = calls.lock().unwrap().clone();
    seen.pop(); // the new one
    assert_eq!(seen, ["2 1", "4 2", "7 2"]);
    assert_eq!(bus.outbox().count_by_status(OutboxStatus::Processed).unwrap(), 5);
    let seq =
        raw(&path).query_row("SELECT seq FROM outbox_event WHERE id = ?1", [new.as_uuid()], |row| row.get(0));
    assert_eq!(seq, Ok(9_i64), "8 was somebody else's");
    assert_eq!(bus.stats().unwrap().total, 8);
}

#[test]
fn an_upgrade_that_cannot_be_done_leaves_the_file_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    file_of_version_1(&path);
    raw(&path).execute_batch("CREATE TABLE postbox_counter (mine)").unwrap();
    let error = Postbox::open(&path).unwrap_err().to_string();
    assert!(error.contains("postbox_counter"), "{error}");
    let conn = raw(&path);
    assert_eq!(integer(&conn, "SELECT version FROM postbox_schema"), 1);
    assert_eq!(integer(&conn, "SELECT count(*) FROM outbox_event JOIN inbox_event ON event = seq"), 4);
}

#[test]
fn a_backup_of_version_1_is_restored_as_one_of_this_version() {
    let dir = tempfile::tempdir().unwrap();
    let (old, path) = (dir.path().join("old.db"), dir.path().join("app.db"));
    file_of_version_1(&old);
    postbox::restore(&old, &path).unwrap();
    assert_eq!(integer(&raw(&old), "SELECT version FROM postbox_schema"), 1, "the backup is left alone");
    let stats = Postbox::open(&path).unwrap().stats().unwrap();
    assert_eq!((stats.pending, stats.processing, stats.processed, stats.total), (4, 0, 1, 7));
}

/// The tables are made anew: what the application has tied to them must not go with the old ones.
#[test]
fn an_upgrade_leaves_foreign_keys_triggers_and_indexes_of_the_application_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("app.db"), dir.path().join("restored.db"));
    file_of_version_1(&path);
    raw(&path)
        .execute_batch(
            "CREATE TABLE invoice (event BLOB REFERENCES outbox_event (id) ON DELETE CASCADE);
             CREATE TABLE note (event BLOB REFERENCES outbox_event (id) ON DELETE SET NULL);
             CREATE TABLE strict (event BLOB REFERENCES outbox_event (id));
             INSERT INTO invoice SELECT id FROM outbox_event; INSERT INTO note SELECT id FROM outbox_event;
             INSERT INTO strict SELECT id FROM outbox_event;
             CREATE TABLE seen (n); CREATE INDEX mine ON outbox_event (aggregate_id);
             CREATE TRIGGER ours AFTER INSERT ON outbox_event BEGIN INSERT INTO seen VALUES (NEW.seq); END;",
        )
        .unwrap();
    postbox::restore(&path, &copy).unwrap();
    for path in [&path, &copy] {
        let bus = Postbox::open(path).unwrap();
        let conn = raw(path);
        for table in ["invoice", "note", "strict"] {
            assert_eq!(integer(&conn, &format!("SELECT count(event) FROM {table}")), 7, "{table}");
        }
        assert_eq!(integer(&conn, "SELECT count(*) FROM pragma_foreign_key_check"), 0);
        assert_eq!(integer(&conn, "SELECT count(*) FROM seen"), 0, "copying is no publishing");
        bus.publish(event("a")).unwrap();
        assert_eq!(integer(&conn, "SELECT count(*) FROM seen"), 1);
        assert_eq!(integer(&conn, "SELECT count(*) FROM sqlite_schema WHERE name = 'mine'"), 1);
        let on = bus.transaction(|tx| -> postbox::Result<i64> {
            Ok(tx.query_row("PRAGMA foreign_keys", [], |row| row.get(0))?)
        });
        assert_eq!(on.unwrap(), 1);
    }
}

/// What version 2 wrote: a row of each status, and one of a status that is another program's.
fn file_of_version_2(path: &Path) {
    file_of(path, include_str!("../data/schema-2.sql"));
}

/// The same in version 3.
fn file_of_version_3(path: &Path) {
    file_of(path, include_str!("../data/schema-3.sql"));
}

/// The same in version 4.
fn file_of_version_4(path: &Path) {
    file_of(path, include_str!("../data/schema-4.sql"));
}

/// The same in version 5.
fn file_of_version_5(path: &Path) {
    file_of(path, include_str!("../data/schema-5.sql"));
}

fn file_of(path: &Path, schema: &str) {
    let conn = raw(path);
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA ignore_check_constraints = ON;").unwrap();
    conn.execute_batch(schema).unwrap();
    for (number, status) in [
        (1, "processed"),
        (2, "pending"),
        (3, "processing"),
        (4, "failed"),
        (5, "dead_letter"),
        (6, "archived"),
        (7, "pending"),
    ] {
        conn.execute(
            "INSERT INTO outbox_event (id, status, attempt_count, available_at, lease_id, created_at, changed_at, event_name,
                                       source_module, aggregate_type, aggregate_id, payload)
             VALUES (?1, ?2, 1, ?3, CASE ?2 WHEN 'pending' THEN -32768 WHEN 'processing' THEN ?4 ELSE 0 END, ?3, ?3, 'a', 'tests',
                     'Thing', 'thing-1', '{ \"n\": 1 }')",
            params![id(number), status, number, 0x101_i64 << 24 | 1],
        )
        .unwrap();
    }
    conn.execute_batch(
        "UPDATE postbox_counter SET processed = 1;
         INSERT INTO postbox_consumer VALUES (1, 'one');
         INSERT INTO inbox_event (id, consumer_name, status, attempt_count, last_error, received_at, changed_at)
         VALUES (7 << 20 | 1, 'one', 'failed', 1, 'once', 62, 62);
         CREATE INDEX mine ON outbox_event (status) WHERE status = 'failed';",
    )
    .unwrap();
}

#[test]
fn files_of_versions_2_to_5_keep_their_rows_and_what_nobody_could_see_in_them_is_set_aside() {
    for make in [file_of_version_2 as fn(&Path), file_of_version_3, file_of_version_4, file_of_version_5] {
        keeps_its_rows(make);
    }
}

fn keeps_its_rows(make: fn(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    make(&path);
    let bus = Postbox::open(&path).unwrap();
    let conn = raw(&path);
    assert_eq!(integer(&conn, "SELECT version FROM postbox_schema"), 6);
    assert_eq!(text(&conn, "PRAGMA integrity_check"), "ok");
    let rows = text(&conn, "SELECT group_concat(seq || ' ' || status, ', ' ORDER BY seq) FROM outbox_event");
    assert_eq!(
        rows,
        "1 processed, 2 pending, 3 processing, 4 failed, 5 dead_letter, 6 dead_letter, 7 pending"
    );
    assert_eq!(
        text(&conn, "SELECT last_error FROM outbox_event WHERE seq = 6"),
        "its status was `archived`, which nobody knows"
    );
    assert_eq!(text(&conn, "SELECT payload FROM outbox_event WHERE seq = 6"), "{ \"n\": 1 }");
    let stats = bus.stats().unwrap();
    let counts =
        [stats.pending, stats.processing, stats.processed, stats.failed, stats.dead_letter, stats.total];
    assert_eq!(counts, [2, 1, 1, 1, 2, 7]);
    assert_eq!(integer(&conn, "SELECT count(*) FROM sqlite_schema WHERE name = 'mine'"), 1);

    bus.subscribe(Subscription::new("a", "one", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    assert_eq!(bus.drain().unwrap(), 3);
    let row = bus.inbox().get((7_i64 << 20 | 1).into()).unwrap().unwrap();
    assert_eq!((row.status, row.attempt_count), (InboxStatus::Processed, 1), "the row that was there");
}

/// Whichever version a file comes from, it ends up as one that is made anew.
#[test]
fn an_upgraded_file_has_the_objects_of_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let objects = |path: &Path| {
        text(
            &raw(path),
            "SELECT group_concat(type || ' ' || name || ' ' || tbl_name, x'0a' ORDER BY type, name) FROM sqlite_schema
             WHERE name NOT IN ('customer', 'open_work', 'mine', 'sqlite_sequence')",
        )
    };
    let indexes = |path: &Path| {
        let conn = raw(path);
        let sql = "SELECT replace(sql, 'main.', '') FROM sqlite_schema
                   WHERE name IN ('outbox_event_due', 'outbox_event_claimed', 'outbox_event_dead', 'outbox_event_cause', 'inbox_event_open')
                   ORDER BY name";
        let mut statement = conn.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect::<Vec<String>>()
    };
    let new = dir.path().join("new.db");
    drop(Postbox::open(&new).unwrap());
    for (name, make) in [
        ("1.db", file_of_version_1 as fn(&Path)),
        ("2.db", file_of_version_2),
        ("3.db", file_of_version_3),
        ("4.db", file_of_version_4),
    ] {
        let path = dir.path().join(name);
        make(&path);
        drop(Postbox::open(&path).unwrap());
        assert_eq!(objects(&path), objects(&new), "{name}");
        assert_eq!(indexes(&path), indexes(&new), "{name}");
    }
}
