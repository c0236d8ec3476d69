//! A small box with an event of each kind, as bytes, and a folder in which copies of it are opened.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postbox::testing::ManualClock;
use postbox::time::OffsetDateTime;
use postbox::{
    Builder, Context, EntityRef, Event, HandlerError, InboxStatus, LinkType, NewEvent, NewLink, OutboxStatus,
    Postbox, Subscription, Tx,
};
use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

/// In memory where there is such a folder: nothing here has to survive.
pub(crate) fn folder() -> TempDir {
    let in_memory = Path::new("/dev/shm");
    if in_memory.is_dir() { TempDir::new_in(in_memory) } else { TempDir::new() }.unwrap()
}

/// What the clock shows once the box is looked at.
pub(crate) fn now() -> OffsetDateTime {
    made_at() + Duration::from_secs(3_600)
}

fn made_at() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

pub(crate) fn builder() -> Builder {
    Postbox::builder().clock(ManualClock::new(now())).busy_timeout(Duration::from_millis(200))
}

pub(crate) fn subscribe(bus: &Postbox) {
    bus.subscribe(Subscription::new("*", "plain", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    bus.subscribe(Subscription::transactional("*", "tx", |_: &Event, _: &Tx<'_>| Ok(()))).unwrap();
}

pub(crate) fn event(name: &str) -> NewEvent {
    NewEvent::new(name, "shop", "Order", "o-1").payload(json!({ "name": name }))
}

/// A closed box in one file.
pub(crate) fn template(page_bytes: u32) -> Vec<u8> {
    let folder = folder();
    let path = folder.path().join("app.db");
    let conn = Connection::open(&path).unwrap();
    conn.pragma_update(None, "page_size", page_bytes).unwrap();
    conn.execute_batch("CREATE TABLE invoice (id TEXT PRIMARY KEY); INSERT INTO invoice VALUES ('inv-1')")
        .unwrap();
    conn.close().unwrap();

    let clock = ManualClock::new(made_at());
    let bus = Postbox::builder().clock(clock.clone()).open(&path).unwrap();
    bus.subscribe(Subscription::new("*", "plain", |event: &Event, _: &Context<'_>| match event.name() {
        "failed" => Err(HandlerError::retry_after("not now", Duration::from_secs(60))),
        "dead" => Err(HandlerError::dead_letter("never")),
        _ => Ok(()),
    }))
    .unwrap();
    bus.subscribe(Subscription::transactional("*", "tx", |_: &Event, _: &Tx<'_>| Ok(()))).unwrap();
    bus.publish_all(["processed", "failed", "dead"].map(event)).unwrap();
    bus.drain().unwrap();
    bus.publish(event("keyed").idempotency_key("k").metadata(json!({ "by": "me" })).correlation_id("c"))
        .unwrap();
    bus.publish(event("later").delay(Duration::from_secs(600))).unwrap();
    bus.publish(event("claimed")).unwrap();
    let end = |id: &str| EntityRef::new("shop", "Order", id);
    bus.links().create(NewLink::new(end("1"), end("2"), LinkType::Reference)).unwrap();
    bus.update_settings(|settings| settings.batch_size = 4).unwrap();
    bus.transaction(|tx| -> postbox::Result<()> {
        tx.execute_batch(
            "UPDATE outbox_event SET status = 'processing', attempt_count = 1, lease_id = 1291845633, changed_at = NULL
             WHERE event_name = 'claimed'",
        )?;
        Ok(())
    })
    .unwrap();
    bus.close().unwrap();
    fs::read(path).unwrap()
}

/// The box's file in this folder, with this content.
pub(crate) fn put(folder: &TempDir, content: &[u8]) -> PathBuf {
    let path = folder.path().join("app.db");
    fs::write(&path, content).unwrap();
    path
}

/// Everything there is to look at, whether it can be read or not.
pub(crate) fn look_at_all(bus: &Postbox) {
    let ids = |sql: &str| -> Vec<i64> {
        bus.transaction(|tx| -> postbox::Result<_> {
            let mut statement = tx.prepare(sql)?;
            let ids = statement.query_map([], |row| row.get(0))?;
            Ok(ids.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap_or_default()
    };
    for id in ids("SELECT id FROM main.inbox_event LIMIT 50") {
        if let Ok(Some(row)) = bus.inbox().get(id.into()) {
            let _ = bus.outbox().get(row.outbox_event_id);
            let _ = bus.inbox().is_processed(row.outbox_event_id, &row.consumer_name);
            let _ = bus.inbox().count_unprocessed(&row.consumer_name);
        }
    }
    for link_type in [LinkType::Reference, LinkType::Cascade, LinkType::AggregateRoot] {
        for link in bus.links().find_by_type(link_type).unwrap_or_default() {
            let _ = bus.links().get(link.id);
        }
    }
    for status in [OutboxStatus::Pending, OutboxStatus::DeadLetter] {
        let _ = bus.outbox().count_by_status(status);
    }
    let _ = bus.stats();
    let _ = bus.settings();
}

/// Publishes an event as any other, and delivers what is due. What comes of it is told, or why nothing does.
pub(crate) fn deliver_a_good_event(bus: &Postbox) -> postbox::Result<()> {
    let id = bus.publish(event("good"))?;
    bus.drain()?;
    if !bus.settings().enabled {
        return Ok(());
    }
    let row = bus.outbox().get(id)?.expect("the event that was published");
    let says_why_not = row.last_error.is_some();
    assert!(row.status == OutboxStatus::Processed || says_why_not, "{row:?}, {:?}", bus.stats());
    if row.status == OutboxStatus::Processed {
        for consumer in ["plain", "tx"] {
            let done = bus.inbox().get_or_create(id, consumer)?.status;
            assert!(matches!(done, InboxStatus::Processed | InboxStatus::Skipped), "{consumer}: {done}");
        }
    }
    Ok(())
}

/// With `POSTBOX_FUZZ_SAYS` set one can see which errors are found.
pub(crate) fn say<T>(operation: &str, outcome: postbox::Result<T>) {
    if let Err(error) = outcome
        && std::env::var_os("POSTBOX_FUZZ_SAYS").is_some()
    {
        eprintln!("{operation} says {error:?}");
    }
}
