//! `verify`: what it finds, that it finds nothing where nothing is wrong, and that it changes nothing.

mod support;

use std::fs;
use std::time::Duration;

use postbox::rusqlite::Connection;
use postbox::{Context, Event, HandlerError, Postbox, Severity, Subscription, Verification, check_backup};

use crate::support::{LEASE, TestBox, boxes, event, file_box};

fn worked() -> [TestBox; 2] {
    let boxes = boxes();
    for TestBox { bus, .. } in &boxes {
        work(bus);
    }
    boxes
}

/// Two events are processed, one waits for its backoff, one is pending.
fn work(bus: &Postbox) {
    let name = "c";
    bus.subscribe(Subscription::new("good", name, |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    bus.subscribe(Subscription::new("bad", name, |_: &Event, _: &Context<'_>| {
        Err(HandlerError::retry("no"))
    }))
    .unwrap();
    for name in ["good", "good", "bad"] {
        bus.publish(event(name)).unwrap();
    }
    bus.drain().unwrap();
    bus.publish(event("good")).unwrap();
}

/// What is worse than a note or not, as `check: what`.
fn found(seen: &Verification) -> Vec<(Severity, String)> {
    seen.findings
        .iter()
        .map(|finding| (finding.severity, format!("{}: {}", finding.check, finding.what)))
        .collect()
}

#[test]
fn a_box_that_nobody_has_spoilt_is_sound() {
    for TestBox { kind, bus, .. } in worked() {
        let seen = bus.verify().unwrap();
        assert_eq!(found(&seen), [], "{kind}");
        assert!(seen.is_sound());
        assert_eq!(seen.schema_version, postbox::SCHEMA_VERSION);
        assert_eq!((seen.file_bytes.is_some(), seen.wal_bytes.is_some()), (kind == "file", kind == "file"));
        assert!(seen.pages > 10 && seen.page_bytes == 4_096, "{seen:?}");
    }
}

#[test]
fn files_of_every_version_are_sound_once_they_are_upgraded() {
    for schema in [
        include_str!("data/schema-1.sql"),
        include_str!("data/schema-2.sql"),
        include_str!("data/schema-3.sql"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        Connection::open(&path).unwrap().execute_batch(schema).unwrap();
        let bus = Postbox::open(&path).unwrap();
        assert_eq!(found(&bus.verify().unwrap()), []);
        work(&bus);
        assert_eq!(found(&bus.verify().unwrap()), []);
    }
}

/// What another program did, and what is found then.
const SPOILT: [(&str, Severity, &str); 25] = [
    (
        "UPDATE postbox_counter SET processed = 7",
        Severity::Warning,
        "counters: processed events: 7 by the counter, 2 by counting",
    ),
    (
        "UPDATE postbox_counter SET deleted = 3",
        Severity::Warning,
        "counters: events: 1 by the counter, 4 by counting",
    ),
    ("DELETE FROM postbox_counter", Severity::Error, "counters: postbox_counter has no row"),
    (
        "UPDATE outbox_event SET status = 'weird' WHERE status = 'pending'",
        Severity::Warning,
        "events: events of a status that nobody knows: 2",
    ),
    (
        "UPDATE outbox_event SET available_at = 253402300800000000 WHERE status = 'pending'",
        Severity::Warning,
        "events: events that are due after the year 9999, that is, never: 2",
    ),
    (
        "UPDATE outbox_event SET seq = 8796093022208 WHERE seq = 4",
        Severity::Warning,
        "events: events of a number that no box can have given: 1",
    ),
    (
        "UPDATE outbox_event SET payload = 'secret' WHERE seq = 4",
        Severity::Error,
        "events: events whose payload or metadata is no JSON: 1",
    ),
    // SQLite's own `json_valid` finds nothing wrong with these.
    (
        "UPDATE outbox_event SET payload = CAST(x'22ff22' AS TEXT) WHERE seq = 4",
        Severity::Error,
        "events: events whose payload or metadata is no JSON: 1",
    ),
    (
        "UPDATE outbox_event SET metadata = '[1e999]' WHERE seq = 4",
        Severity::Error,
        "events: events whose payload or metadata is no JSON: 1",
    ),
    (
        "UPDATE outbox_event SET aggregate_id = CAST(x'ff' AS TEXT) WHERE seq = 4",
        Severity::Error,
        "events: events of whose texts one is no UTF-8: 1",
    ),
    (
        "UPDATE outbox_event SET available_at = 253402300799999997 WHERE seq = 4",
        Severity::Note,
        "events: events that wait for their turn: 1",
    ),
    (
        "UPDATE outbox_event SET available_at = 253402300799999996 WHERE seq = 4",
        Severity::Note,
        "events: events that wait for room with a consumer that has limits: 1",
    ),
    (
        "UPDATE outbox_event SET available_at = 253402300799999999 WHERE seq = 4",
        Severity::Note,
        "events: events that wait for somebody to subscribe to them: 1",
    ),
    (
        "UPDATE outbox_event SET available_at = 253402300799999998 WHERE seq = 4",
        Severity::Note,
        "events: events that wait for what is paused: 1",
    ),
    (
        "UPDATE outbox_event SET status = 'dead_letter' WHERE seq = 3",
        Severity::Note,
        "events: events that have failed for good: 1",
    ),
    (
        "UPDATE outbox_event SET created_at = created_at + 7200000000 WHERE seq = 4",
        Severity::Warning,
        "clock: the newest event is 2 hours ahead of this machine's clock",
    ),
    (
        "INSERT INTO inbox_event (id, consumer_name) VALUES (99 << 20 | 1, 'c')",
        Severity::Warning,
        "inbox: inbox rows about events that are not there: 1",
    ),
    (
        "UPDATE inbox_event SET consumer_name = 'other' WHERE id = (1 << 20 | 1)",
        Severity::Error,
        "inbox: inbox rows under another consumer's number: 1",
    ),
    (
        "INSERT INTO postbox_history (event, number, at, kind) VALUES (99, 1, 1, 'lost')",
        Severity::Warning,
        "history: rows of postbox_history about events that are not there: 1",
    ),
    (
        "INSERT INTO postbox_setting VALUES ('core.integration.outbox.batchSize', 'many', 1)",
        Severity::Warning,
        "settings: the value of core.integration.outbox.batchSize cannot be used and is passed over",
    ),
    (
        "DROP TRIGGER outbox_event_deleted",
        Severity::Error,
        "schema: the trigger outbox_event_deleted is missing",
    ),
    ("DROP VIEW inbox_event_readable", Severity::Error, "schema: the view inbox_event_readable is missing"),
    (
        "DROP INDEX integration_link_type; CREATE INDEX integration_link_type ON integration_link (id)",
        Severity::Warning,
        "schema: the index integration_link_type is not as postbox makes it",
    ),
    (
        "ALTER TABLE integration_link ADD COLUMN mine TEXT",
        Severity::Warning,
        "schema: the table integration_link is not as postbox makes it",
    ),
    (
        "CREATE INDEX mine ON outbox_event (aggregate_id)",
        Severity::Note,
        "schema: the index mine on outbox_event is not postbox's",
    ),
];

/// Each in a box of its own.
#[test]
fn what_other_programs_have_spoilt_is_found() {
    for (sql, severity, what) in SPOILT {
        let boxed = file_box();
        work(&boxed.bus);
        let app = boxed.app_connection();
        app.execute_batch("PRAGMA ignore_check_constraints = 1").unwrap();
        app.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        let seen = boxed.bus.verify().unwrap();
        assert!(found(&seen).contains(&(severity, what.to_owned())), "{sql}: {:#?}", seen.findings);
        assert!(seen.findings.is_sorted_by_key(|finding| std::cmp::Reverse(finding.severity)));
        assert!(seen.findings.iter().all(|finding| !finding.advice.is_empty()));
        assert_eq!(seen.is_sound(), severity == Severity::Note, "{sql}: {:#?}", seen.findings);
        assert!(!format!("{seen:?}").contains("secret"));
        let again = boxed.bus.verify().unwrap();
        assert_eq!(seen.findings, again.findings, "{sql}: it changes nothing");
    }
}

#[test]
fn sagas_that_are_spoilt_or_wait_in_vain_are_found() {
    let test = file_box();
    let bus = &test.bus;
    let about = |name: &str, id: &str| postbox::NewEvent::new(name, "sales", "Order", id);
    let saga = postbox::Saga::<u32>::new("order")
        .starts_on("start", move |_, _, step| {
            step.timeout("a", Duration::from_hours(1), about("late", step.correlation_id()))?;
            step.undo_with(about("undo", step.correlation_id()))?;
            Ok(())
        })
        .on("late", |_, _, _| Err(HandlerError::dead_letter("no")));
    bus.subscribe_saga(saga).unwrap();
    for id in ["sound", "cancelled", "gone", "dead", "state", "timeouts", "undo", "ended"] {
        bus.publish(about("start", id)).unwrap();
    }
    bus.drain().unwrap();
    assert_eq!(found(&bus.verify().unwrap()), []);

    let event = |id: &str| bus.sagas().get("order", id).unwrap().unwrap().timeouts[0].event_id;
    bus.outbox().cancel(event("cancelled"), "a mistake").unwrap();
    bus.sagas().complete("order", "ended", "by hand").unwrap();
    let app = test.app_connection();
    for spoils in [
        format!("DELETE FROM outbox_event WHERE id = unhex('{}')", event("gone").as_uuid().simple()),
        format!(
            "UPDATE outbox_event SET available_at = 0 WHERE id = unhex('{}')",
            event("dead").as_uuid().simple()
        ),
        "UPDATE postbox_saga SET state = '{' WHERE correlation_id = 'state'".to_owned(),
        "UPDATE postbox_saga SET timeouts = '[7]' WHERE correlation_id = 'timeouts'".to_owned(),
        "UPDATE postbox_saga SET undo = '{}' WHERE correlation_id = 'undo'".to_owned(),
    ] {
        app.execute_batch(&spoils).unwrap();
    }
    bus.drain().unwrap();
    let seen = found(&bus.verify().unwrap());
    let of_sagas: Vec<_> = seen.into_iter().filter(|(_, what)| what.starts_with("sagas")).collect();
    assert_eq!(
        of_sagas,
        [
            (Severity::Error, "sagas: sagas whose row cannot be read: 3".to_owned()),
            (Severity::Warning, "sagas: sagas that wait for a timeout which does not come: 2".to_owned()),
            (Severity::Warning, "sagas: sagas that have failed for good at a timeout: 1".to_owned()),
        ]
    );
}

#[test]
fn claims_are_told_apart_by_what_is_known_of_their_owners() {
    let boxed = file_box();
    work(&boxed.bus);
    let claim = |lease: i64| {
        let sql = "UPDATE outbox_event SET status = 'processing', lease_id = ?1 WHERE seq = 4";
        assert_eq!(boxed.app_connection().execute(sql, [lease]).unwrap(), 1);
        found(&boxed.bus.verify().unwrap())
    };
    assert_eq!(
        claim(0x2a << 24 | 1),
        [(
            Severity::Note,
            "claims: events that a process has claimed of which nothing is known here: 1".to_owned()
        )]
    );
    let path = boxed.path();
    let folder = path.parent().unwrap();
    let lock = folder.join("app.db-postbox-0000002a");
    fs::write(&lock, "").unwrap(); // nobody holds it
    assert_eq!(
        claim(0x2a << 24 | 1),
        [(Severity::Warning, "claims: events that a process has claimed which died: 1".to_owned())]
    );
    assert!(lock.exists(), "nobody is buried");

    let own = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| i64::from_str_radix(name.strip_prefix("app.db-postbox-")?, 16).ok())
        .find(|owner| *owner != 0x2a)
        .unwrap();
    let sql = "UPDATE outbox_event SET available_at = available_at + 1000000 WHERE seq = 4";
    boxed.app_connection().execute(sql, []).unwrap();
    assert_eq!(claim(own << 24 | 1), []);
    boxed.clock.advance(LEASE);
    assert_eq!(
        claim(own << 24 | 1),
        [(
            Severity::Warning,
            "claims: events whose lease has run out under a process that lives: 1".to_owned()
        )]
    );
}

#[test]
fn damage_is_found_and_its_backup_refused() {
    let boxed = file_box();
    let large = "x".repeat(3_000);
    for n in 0..200 {
        boxed.bus.publish(event("a").payload(postbox::serde_json::json!([n, large]))).unwrap();
    }
    let path = boxed.path();
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'outbox_event_due'";
    let root: usize = boxed.app_connection().query_row(sql, [], |row| row.get(0)).unwrap();
    boxed.bus.clone().close().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[(root - 1) * 4_096 + 8..root * 4_096].fill(0x5a);
    fs::write(&path, &bytes).unwrap();
    let seen = Postbox::open_read_only(&path).unwrap().verify().unwrap();
    let worst = &seen.findings[0];
    assert_eq!((worst.severity, worst.check), (Severity::Error, "integrity"), "{seen:#?}");
    assert!(matches!(check_backup(&path), Err(postbox::Error::Damaged { .. })));
    assert_eq!(fs::read(&path).unwrap().len(), bytes.len());
}

#[test]
fn a_backup_is_checked_without_a_write() {
    let boxed = file_box();
    work(&boxed.bus);
    let backup = boxed.path().with_file_name("backup.db");
    boxed.bus.backup(&backup).unwrap();
    let before = fs::read(&backup).unwrap();
    assert_eq!(check_backup(&backup).unwrap(), postbox::SCHEMA_VERSION);
    assert!(fs::read(&backup).unwrap() == before);
    assert!(!backup.with_file_name("backup.db-wal").exists());
    Connection::open(&backup).unwrap().execute("UPDATE postbox_schema SET version = 2", []).unwrap();
    assert_eq!(check_backup(&backup).unwrap(), 2, "`restore` would bring it up to date");
    Connection::open(backup.with_file_name("other.db")).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let refused = check_backup(backup.with_file_name("other.db")).unwrap_err();
    assert!(refused.to_string().contains("no backup of a postbox"), "{refused}");
}

#[test]
fn consumers_are_listed_with_what_is_open_and_when_they_last_were_done() {
    for TestBox { kind, bus, clock, .. } in worked() {
        let [first] = bus.inbox().consumers().unwrap().try_into().unwrap();
        assert_eq!((first.name.as_str(), first.open), ("c", 1), "{kind}");
        assert_eq!(first.last_processed_at, Some(support::start_time()));
        bus.subscribe(Subscription::new("good", "a", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        clock.advance(Duration::from_secs(5));
        bus.drain().unwrap();
        let names: Vec<_> = bus
            .inbox()
            .consumers()
            .unwrap()
            .into_iter()
            .map(|c| (c.name, c.open, c.last_processed_at))
            .collect();
        let later = Some(support::start_time() + Duration::from_secs(5));
        assert_eq!(names, [("a".to_owned(), 0, later), ("c".to_owned(), 1, later)], "{kind}");
    }
}

#[test]
fn one_setting_is_stored_by_its_name_also_where_it_is_the_default() {
    for TestBox { bus, .. } in boxes() {
        assert_eq!(bus.stored_settings().unwrap(), []);
        let settings = bus.set_setting("batch_size", 10.into()).unwrap();
        assert_eq!(
            (settings.batch_size, bus.stored_settings().unwrap()),
            (10, vec![("batch_size", 10.into())])
        );
        for (key, value, field) in [
            ("batchSize", 10.into(), "key"),
            ("batch_size", 0.into(), "batch_size"),
            ("batch_size", "secret".into(), "batch_size"),
            ("idle_polling_interval_ms", 200.into(), "idle_polling_interval_ms"),
        ] {
            match bus.set_setting(key, value) {
                Err(postbox::Error::Invalid { field: named, reason }) => {
                    assert_eq!(named, field);
                    assert!(!reason.contains("secret"), "{reason}");
                }
                other => panic!("{key}: {other:?}"),
            }
        }
        assert_eq!(bus.stored_settings().unwrap(), [("batch_size", 10.into())]);
    }
}
