//! The canary by every way into the library and out of it, by a worker and by hand: what is logged, printed and said.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use log::LevelFilter;
use postbox::{
    Backoff, Context, EntityRef, Event, EventId, HandlerError, LinkType, NewLink, OutboxStatus, Postbox,
    Result, Settings, Subscription, Tx,
};
use serde_json::json;

use crate::support::{self, LIMIT, Process, manual_clock, raw, wait_until};
use crate::{CANARY, Captured, LINES, secret};

#[track_caller]
fn silent(printed: &impl Debug) {
    for text in [format!("{printed:?}"), format!("{printed:#?}")] {
        assert!(!text.contains(CANARY), "{text}");
    }
}

#[track_caller]
fn says_nothing<T: Debug>(result: Result<T>) {
    let error = result.unwrap_err();
    silent(&error);
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(said) = cause {
        assert!(!said.to_string().contains(CANARY), "{said}");
        cause = said.source();
    }
    let of_handler = HandlerError::from(error);
    assert!(!format!("{of_handler} {of_handler:?}").contains(CANARY));
}

fn secret_link(to: &str) -> NewLink {
    let entity = |id: &str| EntityRef::new("m", "T", id);
    NewLink::new(entity("1"), entity(to), LinkType::Reference).metadata(json!({ CANARY: [CANARY] }))
}

fn subscribe(bus: &Postbox) {
    let at_once = Backoff::fixed(Duration::ZERO);
    bus.subscribe_many([
        Subscription::new("*", "plain", |event: &Event, cx: &Context<'_>| {
            silent(event);
            silent(cx);
            match event.name() {
                "fails" => Err(HandlerError::retry(event.payload())),
                "panics" => panic!("{}", event.payload()),
                "dies" => Err(HandlerError::dead_letter(event.payload())),
                _ => Ok(()),
            }
        })
        .backoff(at_once),
        Subscription::transactional("*", "tx", |event: &Event, tx: &Tx<'_>| {
            silent(tx);
            if event.name() == "again" {
                tx.publish(secret("follow-up").idempotency_key(CANARY))?;
                tx.publish(secret("follow-up").idempotency_key(CANARY))?;
                tx.create_link(secret_link("2"))?;
                silent(&tx.publish(secret("follow-up").idempotency_key(CANARY.repeat(500))));
            }
            if event.name() == "panics" { panic!("{}", event.payload()) } else { Ok(()) }
        })
        .backoff(at_once),
    ])
    .unwrap();
}

/// Each of them on the row of an event of its own.
fn poisons() -> Vec<String> {
    let bytes = format!("CAST(x'ff' || CAST('{CANARY}' AS BLOB) AS TEXT)");
    let columns = [
        "event_name",
        "source_module",
        "aggregate_type",
        "aggregate_id",
        "correlation_id",
        "traceparent",
        "deliver_to",
    ];
    let mut poisons: Vec<String> = columns.iter().map(|column| format!("{column} = {bytes}")).collect();
    poisons.extend([
        format!("payload = {bytes}"),
        format!("payload = '{{\"{CANARY}\": {CANARY}}}'"),
        format!("payload = '\"{CANARY}\\ud800\"'"),
        format!("payload = replace(hex(zeroblob(1000)), '0', '{CANARY}')"),
        format!("metadata = {bytes}"),
        format!("metadata = replace(hex(zeroblob(1000)), '0', '{CANARY}')"),
        format!("deliver_to = '[\"{CANARY}\", {CANARY}]'"),
        "attempt_count = 4294967295".to_owned(),
        "created_at = 9223372036854775807".to_owned(),
        "seq = seq | 1 << 44".to_owned(),
    ]);
    poisons
}

/// What takes the CHECKs off.
fn unchecked() -> Vec<String> {
    vec![
        format!("status = '{CANARY}'"),
        format!("id = CAST('{CANARY}' AS BLOB)"),
        format!("causation_id = CAST('{CANARY}' AS BLOB)"),
        format!("aggregate_id = replace(hex(zeroblob(500)), '0', '{CANARY}')"),
        "available_at = 9223372036854775807".to_owned(),
    ]
}

fn run(bus: &Postbox, by_worker: bool) {
    if !by_worker {
        let _ = bus.drain();
        return;
    }
    let worker = bus.start().unwrap();
    silent(&worker);
    wait_until("all is settled", || {
        let stats = bus.stats().unwrap();
        stats.pending + stats.processing == 0
            && stats.total == stats.processed + stats.dead_letter + stats.failed
    });
    let report = worker.shutdown(LIMIT).unwrap();
    silent(&report);
}

fn refused(bus: &Postbox) {
    let deep = (0..200).fold(json!(CANARY), |inner, _| json!([inner]));
    let long = json!(CANARY.repeat(500));
    for event in [
        secret(""),
        secret("a").version(0),
        secret("a").payload(deep.clone()),
        secret("a").payload(long.clone()),
        secret("a").metadata(long.clone()),
        secret("a").idempotency_key(""),
        secret("a").idempotency_key(CANARY.repeat(500)),
        secret("a").delay(Duration::MAX),
    ] {
        silent(&event);
        says_nothing(bus.publish(event.clone()));
        says_nothing(bus.publish_all([secret("a"), event.clone()]));
        says_nothing(bus.transaction(|tx| tx.publish(event.clone())));
        says_nothing(bus.transaction(|tx| bus.publish_in(tx, event.clone())));
    }
    says_nothing(bus.links().create(secret_link("")));
    says_nothing(bus.links().create(secret_link("2").metadata(deep)));
    says_nothing(bus.links().create(secret_link("2").metadata(long)));
    says_nothing(bus.update_settings(|settings| settings.batch_size = 0));
}

/// A trigger that refuses or swallows what is written: SQLite's own errors go by the log as well.
fn refused_by_triggers(bus: &Postbox) {
    for action in ["IGNORE", "ABORT, 'no'", "FAIL, 'no'", "ROLLBACK, 'no'"] {
        for table in ["outbox_event", "inbox_event", "integration_link", "postbox_setting"] {
            let ids = bus.publish_all(["a", "fails"].map(secret)).unwrap();
            let link = bus.links().create(secret_link("2")).unwrap();
            let made: Result<()> = bus.transaction(|tx| {
                Ok(tx.execute_batch(&format!(
                    "CREATE TRIGGER i BEFORE INSERT ON {table} BEGIN SELECT RAISE({action}); END;
                     CREATE TRIGGER u BEFORE UPDATE ON {table} BEGIN SELECT RAISE({action}); END;
                     CREATE TRIGGER d BEFORE DELETE ON {table} BEGIN SELECT RAISE({action}); END;"
                ))?)
            });
            made.unwrap();
            match table {
                "outbox_event" => {
                    says_nothing(bus.publish(secret("a")));
                    says_nothing(bus.publish(secret("a").idempotency_key(format!("{CANARY}/{action}"))));
                    says_nothing(bus.publish_all([secret("a"), secret("a")]));
                    says_nothing(bus.drain());
                }
                "inbox_event" => {
                    says_nothing(bus.inbox().get_or_create(ids[0], "c"));
                    let _ = bus.drain();
                }
                "integration_link" => {
                    says_nothing(bus.links().create(secret_link("2")));
                    says_nothing(bus.links().delete(link.id));
                }
                _ => says_nothing(bus.update_settings(|settings| settings.batch_size += 1)),
            }
            bus.transaction(|tx| -> Result<()> {
                Ok(tx.execute_batch("DROP TRIGGER i; DROP TRIGGER u; DROP TRIGGER d")?)
            })
            .unwrap();
        }
    }
}

fn shown(bus: &Postbox, id: EventId) {
    let row = bus.outbox().get(id).unwrap().unwrap();
    assert!(row.payload.to_string().contains(CANARY), "the test itself sees it");
    silent(&row);
    silent(&bus.outbox().get(id));
    let link = bus.links().create(secret_link("2")).unwrap();
    silent(&link);
    silent(&bus.links().get(link.id));
    silent(&bus.links().find_by_type(LinkType::Reference));
    silent(&bus.links().delete(link.id));
    silent(&bus.inbox().get_or_create(id, "plain"));
    silent(bus);
    silent(bus.registry());
    silent(&bus.stats());
    silent(&bus.settings());
}

fn poison(bus: &Postbox, path: Option<&Path>) {
    for set in poisons() {
        let id = bus.publish(secret("a")).unwrap();
        let changed: Result<usize> = bus.transaction(|tx| {
            Ok(tx.execute(&format!("UPDATE outbox_event SET {set} WHERE id = ?1"), [id.as_uuid()])?)
        });
        assert_eq!(changed.unwrap(), 1, "{set}");
        if set.starts_with("payload") {
            silent(&bus.outbox().get(id));
        }
    }
    let link = bus.links().create(secret_link("2")).unwrap();
    let poisoned: Result<usize> = bus.transaction(|tx| {
        Ok(tx.execute("UPDATE integration_link SET metadata = '{' || metadata WHERE id = ?1", [link.id])?)
    });
    assert_eq!(poisoned.unwrap(), 1);
    says_nothing(bus.links().get(link.id));
    says_nothing(bus.links().find_by_type(LinkType::Reference));
    bus.links().delete(link.id).unwrap_err();
    let Some(path) = path else { return };

    let app = raw(path);
    app.pragma_update(None, "ignore_check_constraints", true).unwrap();
    for set in unchecked() {
        let id = bus.publish(secret("a")).unwrap();
        let update = format!("UPDATE outbox_event SET {set} WHERE id = ?1");
        assert_eq!(app.execute(&update, [id.as_uuid()]).unwrap(), 1, "{set}");
    }
    let id = bus.publish(secret("a")).unwrap();
    let row = bus.inbox().get_or_create(id, "plain").unwrap();
    app.execute(
        &format!("UPDATE inbox_event SET status = '{CANARY}', last_error = CAST(x'ff' || CAST('{CANARY}' AS BLOB) AS TEXT)"),
        [],
    )
    .unwrap();
    says_nothing(bus.inbox().get(row.id));
    app.execute(
        &format!("INSERT OR REPLACE INTO postbox_setting VALUES ('core.integration.outbox.batchSize', '\"{CANARY}\"', 0)"),
        [],
    )
    .unwrap();
}

fn publish_in(bus: &Postbox, path: &Path) {
    let mut app = raw(path);
    says_nothing(bus.publish_in(&app, secret("a")));
    says_nothing(bus.publish_in(&raw(Path::new(":memory:")), secret("a")));
    let tx = app.transaction().unwrap();
    bus.publish_in(&tx, secret("a").idempotency_key(CANARY)).unwrap();
    bus.publish_in(&tx, secret("a").idempotency_key(CANARY)).unwrap();
    says_nothing(bus.publish_in(&tx, secret("a").payload(json!(CANARY.repeat(500)))));
    tx.commit().unwrap();
    // A lock that cannot be had, and a transaction that can never write.
    let reader = raw(path);
    reader.execute_batch("BEGIN; SELECT count(*) FROM outbox_event").unwrap();
    bus.publish(secret("a")).unwrap();
    says_nothing(bus.publish_in(&reader, secret("a")));
    let locker = raw(path);
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    says_nothing(bus.publish(secret("a")));
    says_nothing(bus.transaction(|tx| tx.publish(secret("a"))));
}

fn exercise(bus: &Postbox, path: Option<&Path>, by_worker: bool) {
    subscribe(bus);
    let id = bus.publish(secret("works").idempotency_key(format!("{CANARY}/1"))).unwrap();
    assert_eq!(bus.publish(secret("works").idempotency_key(format!("{CANARY}/1"))).unwrap(), id);
    bus.publish_all(["again", "fails", "panics", "dies", "again"].map(secret)).unwrap();
    refused(bus);
    shown(bus, id);
    run(bus, by_worker);
    let works = bus.outbox().get(id).unwrap().unwrap();
    assert_eq!(
        works.status,
        OutboxStatus::Processed,
        "an assertion in a handler failed: {:?}",
        works.last_error
    );
    poison(bus, path);
    run(bus, by_worker);
    if let Some(path) = path {
        publish_in(bus, path);
        run(bus, by_worker);
    }
    refused_by_triggers(bus);
    bus.clone().close().unwrap();

    says_nothing(bus.publish(secret("a")));
    says_nothing(bus.links().create(secret_link("2")));
}

#[test]
fn the_canary_is_in_nothing_that_is_logged_printed_or_said_on_any_route() {
    for by in ["worker", "hand"] {
        let mut command = Process::command("routes::child_goes_every_route");
        command.env("BY", by);
        Process::run(command);
    }
}

#[test]
#[ignore = "run as a process by another test"]
fn child_goes_every_route() {
    let Some(by) = support::given("BY") else { return };
    log::set_logger(&Captured).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let builder = || {
        let defaults = Settings {
            max_attempts: 2,
            polling_interval_ms: 100,
            idle_polling_interval_ms: 100,
            ..Settings::default()
        };
        let builder = Postbox::builder().settings(defaults).clock(manual_clock()).max_payload_bytes(900);
        let builder = builder.busy_timeout(Duration::from_millis(200));
        silent(&builder);
        builder
    };
    exercise(&builder().open(&path).unwrap(), Some(&path), by == "worker");
    exercise(&builder().open_in_memory().unwrap(), None, by == "worker");
    // What was left behind is looked at again.
    drop(builder().open(&path).unwrap());

    let lines = LINES.lock().unwrap();
    assert!(lines.len() > 60, "{}", lines.len());
    for (level, target, line) in lines.iter() {
        assert!(!line.contains(CANARY), "{level} {target}: {line}");
        assert!(target.starts_with("postbox"), "{level} {target}: {line}");
    }
}
