//! The log: under the library's own targets, and without anything that is the application's secret.
//!
//! The logger is the process's: each test runs in a process of its own, and looks at everything that was logged there.

#[path = "logging/routes.rs"]
mod routes;
#[path = "support/files.rs"]
mod support;
#[path = "logging/typed.rs"]
mod typed;

use std::sync::Mutex;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use postbox::{
    Backoff, Context, EntityRef, Event, HandlerError, LinkType, NewEvent, NewLink, OutboxStatus, Postbox,
    Settings, Subscription, Tx, UnhandledEvents, restore,
};
use serde_json::json;
use support::{LIMIT, Process, manual_clock, raw, wait_until};

/// Stands in every place that must never be logged.
const CANARY: &str = "canary7f3a";

static LINES: Mutex<Vec<(Level, String, String)>> = Mutex::new(Vec::new());

struct Captured;

impl Log for Captured {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = (record.level(), record.target().to_owned(), record.args().to_string());
        LINES.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}

fn secret(name: &str) -> NewEvent {
    NewEvent::new(name, "m", "T", "1")
        .payload(json!({ "secret": CANARY, CANARY: 1 }))
        .metadata(json!({ "who": CANARY }))
}

/// Dead letters of one box: six names fail for good, each published twice, and five rows are poisoned.
const DEAD: usize = 17;

/// Lines at this level and target that hold the text.
fn logged(level: Level, target: &str, text: &str) -> usize {
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|(l, t, line)| *l == level && t == target && line.contains(text)).count()
}

fn subscribe(bus: &Postbox) {
    let to = |name: &str, consumer: &str, handler: fn(&Event, &Context<'_>) -> postbox::HandlerResult| {
        Subscription::new(name, consumer, handler).backoff(Backoff::fixed(Duration::ZERO))
    };
    bus.subscribe_many([
        to("works", "plain", |_, _| Ok(())),
        to("fails", "plain", |event, _| Err(HandlerError::retry(event.payload()))),
        to("dies", "plain", |event, _| Err(HandlerError::dead_letter(format!("{:?}", event.payload())))),
        to("skips", "plain", |event, _| Err(HandlerError::skip(event.payload()))),
        to("panics", "plain", |event, _| panic!("{}", event.payload())),
        to("does not fit", "plain", |event, _| {
            event.payload_as::<Vec<u8>>()?;
            Ok(())
        }),
        Subscription::transactional("works", "tx", |event: &Event, tx: &Tx<'_>| {
            tx.publish(secret("follow-up").idempotency_key(format!("{CANARY}/{}", event.id())))?;
            Ok(())
        }),
        Subscription::transactional("panics", "tx", |event: &Event, _: &Tx<'_>| {
            panic!("{}", event.payload())
        })
        .backoff(Backoff::fixed(Duration::ZERO)),
        Subscription::transactional("breaks", "tx", |event: &Event, tx: &Tx<'_>| {
            tx.execute("INSERT OR ROLLBACK INTO only VALUES (1, ?1)", [event.payload().to_string()])?;
            Ok(())
        })
        .backoff(Backoff::fixed(Duration::ZERO)),
        Subscription::transactional("bad sql", "tx", |event: &Event, tx: &Tx<'_>| {
            tx.execute(&format!("INSERT INTO nowhere VALUES ('{}')", event.payload()["secret"]), [])?;
            Ok(())
        })
        .backoff(Backoff::fixed(Duration::ZERO)),
    ])
    .unwrap();
}

/// What another program may have left in the file.
fn poison(bus: &Postbox) {
    let bad = [
        format!("payload = '{{\"secret\": \"{CANARY}'"),
        format!("payload = CAST(x'ff' || CAST('{CANARY}' AS BLOB) AS TEXT)"),
        format!("metadata = '{CANARY}'"),
        format!("deliver_to = '{CANARY}'"),
        format!("traceparent = CAST(x'ff' || CAST('{CANARY}' AS BLOB) AS TEXT)"),
    ];
    for change in bad {
        let id = bus.publish(secret("works")).unwrap();
        bus.transaction(|tx| -> postbox::Result<()> {
            tx.execute(&format!("UPDATE outbox_event SET {change} WHERE id = ?1"), [id.as_uuid()])?;
            Ok(())
        })
        .unwrap();
    }
}

fn refused(bus: &Postbox) {
    let many = "x".repeat(1_000);
    for event in [
        secret(""),
        secret("works").idempotency_key(""),
        secret("works").idempotency_key(CANARY.repeat(200)),
        secret("works")
            .payload(json!({ "secret": CANARY, "long": many }))
            .metadata(json!(CANARY.repeat(500))),
        secret("works").payload((0..200).fold(json!(CANARY), |inner, _| json!([inner]))),
    ] {
        let error = bus.publish(event).unwrap_err();
        assert!(!format!("{error} {error:?} {error:#?}").contains(CANARY), "{error}");
    }
    let end = || EntityRef::new("m", "T", "1");
    let link = NewLink::new(end(), EntityRef::new("", "T", "2"), LinkType::Reference).metadata(json!(CANARY));
    bus.links().create(link).unwrap_err();
}

fn exercise(bus: &Postbox, folder: &std::path::Path) {
    bus.transaction(|tx| -> postbox::Result<()> {
        Ok(tx.execute_batch(
            "CREATE TABLE only (n INTEGER PRIMARY KEY, t TEXT); INSERT INTO only VALUES (1, '')",
        )?)
    })
    .unwrap();
    subscribe(bus);
    let names = ["works", "fails", "dies", "skips", "panics", "does not fit", "breaks", "bad sql", "nobody"];
    for (n, name) in names.into_iter().enumerate() {
        bus.publish(secret(name).idempotency_key(format!("{CANARY}/{n}")).correlation_id("c-1")).unwrap();
        bus.publish(secret(name).idempotency_key(format!("{CANARY}/{n}"))).unwrap(); // again
    }
    poison(bus);
    refused(bus);
    let end = |id: &str| EntityRef::new("m", "T", id);
    bus.links().create(NewLink::new(end("1"), end("2"), LinkType::Cascade).metadata(json!(CANARY))).unwrap();
    bus.drain().unwrap();
    bus.publish_all(names.map(secret)).unwrap();
    let worker = bus.start().unwrap();
    wait_until("all is settled", || {
        let stats = bus.stats().unwrap();
        stats.pending + stats.processing == 0
    });
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    assert_eq!(bus.outbox().count_by_status(OutboxStatus::DeadLetter).unwrap(), DEAD as u64);
    // It is kept where an operator looks for it.
    let kept = bus.transaction(|tx| -> postbox::Result<i64> {
        let sql = "SELECT count(*) FROM outbox_event WHERE instr(last_error, 'canary7f3a')";
        Ok(tx.query_row(sql, [], |row| row.get(0))?)
    });
    assert!(kept.unwrap() >= 6);
    bus.update_settings(|settings| settings.unhandled_events = UnhandledEvents::Hold).unwrap();
    bus.publish(secret("nobody else")).unwrap();
    bus.drain().unwrap();
    bus.backup(folder.join("backup.db")).unwrap();
    let printed = format!("{bus:?} {:?} {:?} {:?}", bus.stats(), bus.registry(), secret("a"));
    assert!(!printed.contains(CANARY));
}

#[test]
fn nothing_secret_is_logged_and_everything_under_the_librarys_own_targets() {
    // Its handlers' panics print what they say, as panics do: that is not for this test's output.
    let mut command = Process::command("child_logs");
    command.env("ALONE", "yes");
    Process::run(command);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_logs() {
    let Some(_) = support::given("ALONE") else { return };
    log::set_logger(&Captured).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let builder = || {
        let defaults = Settings { max_attempts: 2, ..Settings::default() };
        Postbox::builder().settings(defaults).clock(manual_clock()).max_payload_bytes(900)
    };
    let bus = builder().open(&path).unwrap();
    exercise(&bus, dir.path());
    bus.close().unwrap();
    restore(dir.path().join("backup.db"), &path).unwrap();
    raw(&path)
        .execute(
            "INSERT INTO postbox_setting VALUES ('core.integration.outbox.batchSize', 'no number', 0)",
            [],
        )
        .unwrap();
    builder().open(&path).unwrap().close().unwrap();
    std::fs::write(dir.path().join("not.db"), CANARY.repeat(100)).unwrap();
    builder().open(dir.path().join("not.db")).unwrap_err();
    exercise(&builder().open_in_memory().unwrap(), dir.path());

    for (level, target, line) in LINES.lock().unwrap().iter() {
        assert!(!line.contains(CANARY), "{level} {target}: {line}");
        assert!(target.starts_with("postbox"), "{level} {target}: {line}");
    }
    // It is not silent either, or the above would be easy.
    let delivery = "postbox::delivery";
    assert_eq!(logged(Level::Warn, delivery, "is a dead letter"), 2 * DEAD);
    assert_eq!(logged(Level::Info, delivery, "will be tried again"), 20);
    assert_eq!(logged(Level::Warn, delivery, "cannot be delivered to anybody"), 4);
    assert_eq!(
        logged(Level::Warn, delivery, "nobody subscribes to `nobody`"),
        2,
        "one for each name and box"
    );
    assert_eq!(logged(Level::Warn, delivery, "nobody subscribes to `nobody else`"), 2);
    assert_eq!(logged(Level::Info, "postbox::worker", "the worker starts"), 2);
    assert!(logged(Level::Warn, "postbox::settings", "batchSize") >= 1);
    assert_eq!(logged(Level::Error, "", ""), 0);
}
