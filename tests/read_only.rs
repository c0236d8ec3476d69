//! Boxes that are only looked at: nothing is written, and nothing is left behind.

#[path = "support/files.rs"]
mod support;

#[path = "read_only/beside.rs"]
mod beside_others;
#[path = "read_only/refused.rs"]
mod refused;
#[path = "read_only/unprivileged.rs"]
mod unprivileged;

use std::fs;
use std::path::{Path, PathBuf};

use postbox::{
    Context, EntityRef, Error, Event, EventId, LinkType, NewLink, OutboxStatus, PauseTarget, Postbox, Result,
    Subscription,
};

use crate::support::{assert_bytes, beside, cp, event, integer, listing, raw, sound_copy, start_of_time};

/// A box with one event of each kind: processed, dead, pending; and one link.
pub(crate) fn furnished(path: &Path) -> (Postbox, [EventId; 3]) {
    let bus = Postbox::builder().clock(support::manual_clock()).open(path).unwrap();
    bus.subscribe(Subscription::new("done", "reader", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    bus.subscribe(Subscription::new("dead", "reader", |_: &Event, _: &Context<'_>| {
        Err(postbox::HandlerError::dead_letter("no such invoice"))
    }))
    .unwrap();
    let (done, dead) = (bus.publish(event("done")).unwrap(), bus.publish(event("dead")).unwrap());
    assert_eq!(bus.drain().unwrap(), 1);
    let pending = bus.publish(event("later")).unwrap();
    let (from, to) = (EntityRef::new("finance", "Invoice", "i-1"), EntityRef::new("tasks", "Task", "t-1"));
    bus.links().create(NewLink::new(from, to, LinkType::Reference)).unwrap();
    bus.update_settings(|settings| settings.batch_size = 7).unwrap();
    (bus, [done, dead, pending])
}

/// A closed box's lone file.
pub(crate) fn closed(folder: &Path, name: &str) -> (PathBuf, [EventId; 3]) {
    let path = folder.join(name);
    let (bus, ids) = furnished(&path);
    bus.close().unwrap();
    (path, ids)
}

/// A file as a program leaves it that was killed: most of it is in the -wal. Its -shm comes along only `with_shm`.
pub(crate) fn crashed(folder: &Path, name: &str, with_shm: bool) -> (PathBuf, [EventId; 3]) {
    let apart = tempfile::tempdir().unwrap();
    let (live, copy) = (apart.path().join("app.db"), folder.join(name));
    let (bus, ids) = furnished(&live);
    for suffix in ["", "-wal", "-shm"] {
        if with_shm || suffix != "-shm" {
            cp(&beside(&live, suffix), &beside(&copy, suffix));
        }
    }
    bus.close().unwrap();
    assert!(fs::metadata(beside(&copy, "-wal")).unwrap().len() > 0);
    (copy, ids)
}

/// Everything that the box shows of what `furnished` wrote.
#[track_caller]
pub(crate) fn assert_shows(bus: &Postbox, [done, dead, pending]: [EventId; 3]) {
    let stats = bus.stats().unwrap();
    assert_eq!((stats.processed, stats.dead_letter, stats.pending, stats.total), (1, 1, 1, 3));
    assert_eq!(bus.outbox().get(done).unwrap().unwrap().status, OutboxStatus::Processed);
    assert!(bus.outbox().get(dead).unwrap().unwrap().last_error.unwrap().contains("no such invoice"));
    assert_eq!(bus.outbox().count_by_status(OutboxStatus::Pending).unwrap(), 1);
    assert_eq!(bus.outbox().get(pending).unwrap().unwrap().attempt_count, 0);
    assert!(bus.inbox().is_processed(done, "reader").unwrap());
    assert_eq!(bus.links().count_from_module("finance").unwrap(), 1);
    assert_eq!(bus.settings().batch_size, 7);
}

/// The bytes of a file and of its -wal, where it has one. Of a file that nobody has open.
pub(crate) fn bytes_of(path: &Path) -> [Option<Vec<u8>>; 2] {
    ["", "-wal"].map(|suffix| fs::read(beside(path, suffix)).ok())
}

#[track_caller]
pub(crate) fn assert_untouched(path: &Path, before: &[Option<Vec<u8>>; 2]) {
    for (suffix, bytes) in ["", "-wal"].iter().zip(before) {
        match bytes {
            Some(bytes) => assert_bytes(&beside(path, suffix), bytes, "after it was read"),
            None => assert!(!beside(path, suffix).exists(), "{suffix}"),
        }
    }
}

#[test]
fn a_copy_is_shown_whole_and_left_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    for (name, make) in [
        ("closed", closed as fn(&Path, &str) -> _),
        ("crashed", |folder, name| crashed(folder, name, false)),
        ("crashed with its -shm", |folder, name| crashed(folder, name, true)),
    ] {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        let (path, ids) = make(&folder, "app.db");
        let (before, names) = (bytes_of(&path), listing(&folder));

        let bus = Postbox::open_read_only(&path).unwrap();
        assert_shows(&bus, ids);
        bus.close().unwrap();
        assert_eq!(listing(&folder), names, "{name}: after close");
        assert_untouched(&path, &before);

        let bus = Postbox::open_read_only(&path).unwrap();
        assert_shows(&bus, ids);
        drop(bus);
        assert_eq!(listing(&folder), names, "{name}: after it was dropped");
        assert_untouched(&path, &before);
    }
}

#[test]
fn a_copy_in_rollback_mode_stays_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ids) = closed(dir.path(), "app.db");
    raw(&path).query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).unwrap();
    let before = bytes_of(&path);
    let bus = Postbox::open_read_only(&path).unwrap();
    assert_shows(&bus, ids);
    assert_eq!(listing(dir.path()), ["app.db"]);
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
    assert_untouched(&path, &before);
}

#[test]
fn a_path_that_has_to_be_escaped_is_read_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ids) = crashed(dir.path(), "50% of größe? yes&no#1.db", false);
    let bus = Postbox::open_read_only(&path).unwrap();
    assert_shows(&bus, ids);
    assert!(format!("{bus:?}").contains("50%"));
}

#[test]
fn whatever_would_write_is_refused_by_name_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, [done, ..]) = closed(dir.path(), "app.db");
    let before = bytes_of(&path);
    let bus = Postbox::open_read_only(&path).unwrap();
    let link = || {
        let to = EntityRef::new("tasks", "Task", "t-2");
        NewLink::new(EntityRef::new("finance", "Invoice", "i-2"), to, LinkType::Cascade)
    };
    let entity = || EntityRef::new("finance", "Invoice", "i-2");
    bus.subscribe(Subscription::new("*", "reader", |_: &Event, _: &Context<'_>| panic!("delivered")))
        .unwrap();
    let app = rusqlite_in_transaction(&path);
    let refused: Vec<(&str, Result<()>)> = vec![
        ("publish", bus.publish(event("a")).map(drop)),
        ("publish_all", bus.publish_all([event("a")]).map(drop)),
        ("publish_all", bus.publish_all([]).map(drop)),
        ("publish_in", bus.publish_in(&app, event("a")).map(drop)),
        ("transaction", bus.transaction(|_| -> Result<()> { panic!("begun") })),
        ("start", bus.start().map(drop)),
        ("process_batch", bus.process_batch().map(drop)),
        ("drain", bus.drain().map(drop)),
        ("update_settings", bus.update_settings(|settings| settings.batch_size = 9).map(drop)),
        ("set_setting", bus.set_setting("batch_size", 9.into()).map(drop)),
        ("outbox.retry", bus.outbox().retry(done)),
        ("outbox.discard", bus.outbox().discard(done, "no")),
        ("pause", bus.pause(&PauseTarget::consumer("reader"), None, None).map(drop)),
        ("resume", bus.resume(&PauseTarget::consumer("reader")).map(drop)),
        ("prune", bus.prune().map(drop)),
        ("compact", bus.compact().map(drop)),
        ("links.create", bus.links().create(link()).map(drop)),
        ("links.delete", bus.links().delete(postbox::uuid::Uuid::nil()).map(drop)),
        ("links.get_or_create", bus.links().get_or_create(link()).map(drop)),
        ("links.create_unique", bus.links().create_unique(link()).map(drop)),
        ("links.delete_of", bus.links().delete_of(&entity()).map(drop)),
        ("links.move_entity", bus.links().move_entity(&entity(), &entity()).map(drop)),
        ("announce_deleted", bus.announce_deleted(&entity()).map(drop)),
        ("inbox.get_or_create", bus.inbox().get_or_create(done, "other").map(drop)),
        ("inbox.mark_processed", bus.inbox().mark_processed(1.into()).map(drop)),
        ("with_quiesced_file", bus.with_quiesced_file(|_| -> std::io::Result<()> { panic!("quiesced") })),
    ];
    drop(app);
    for (wanted, result) in refused {
        match result {
            Err(Error::ReadOnly { operation }) => assert_eq!(operation, wanted),
            other => panic!("{wanted}: {other:?}"),
        }
    }
    let said = bus.publish(event("a")).unwrap_err();
    assert_eq!((said.to_string().as_str(), said.fault()), ("publish: the box was opened read-only", None));
    bus.notify();
    let clone = bus.clone();
    bus.close().unwrap();
    assert!(matches!(clone.publish(event("a")), Err(Error::Closed { operation: "publish" })));
    assert!(matches!(clone.stats(), Err(Error::Closed { .. })));
    assert_untouched(&path, &before);
    assert_eq!(listing(dir.path()), ["app.db"]);
}

fn rusqlite_in_transaction(path: &Path) -> postbox::rusqlite::Connection {
    let conn = raw(path);
    conn.execute_batch("BEGIN").unwrap();
    conn
}

#[test]
fn a_backup_of_what_is_only_read_is_a_whole_box() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ids) = crashed(dir.path(), "app.db", false);
    let before = bytes_of(&path);
    let bus = Postbox::open_read_only(&path).unwrap();
    let dest = dir.path().join("copy.db");
    bus.backup(&dest).unwrap();
    bus.close().unwrap();
    drop(sound_copy(&dest));
    assert_shows(&Postbox::open_read_only(&dest).unwrap(), ids);
    assert_untouched(&path, &before);
    assert_eq!(listing(dir.path()), ["app.db", "app.db-wal", "copy.db"]);
}

/// What opening a box sets right: the counter, rows that no claim would find, and claims of the dead.
#[test]
fn nothing_is_set_right() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = closed(dir.path(), "app.db");
    let conn = raw(&path);
    conn.execute_batch(
        "PRAGMA ignore_check_constraints = 1;
         UPDATE postbox_counter SET processed = 1000;
         UPDATE outbox_event SET status = 'weird' WHERE status = 'dead_letter';
         UPDATE outbox_event SET status = 'processing', lease_id = 42 << 24 | 1, attempt_count = 1 WHERE status = 'pending';",
    )
    .unwrap();
    drop(conn);
    fs::write(dir.path().join("app.db-postbox-0000002a"), "").unwrap(); // nobody locks it: its owner is dead
    let before = bytes_of(&path);
    let bus = Postbox::open_read_only(&path).unwrap();
    let stats = bus.stats().unwrap();
    assert_eq!((stats.processing, stats.dead_letter, stats.processed), (1, 0, 1));
    bus.close().unwrap();
    assert_untouched(&path, &before);
    assert_eq!(listing(dir.path()), ["app.db", "app.db-postbox-0000002a"]);

    Postbox::builder().clock(support::manual_clock()).open(&path).unwrap().close().unwrap();
    let conn = raw(&path);
    assert_eq!(integer(&conn, "SELECT processed FROM postbox_counter"), 1, "a box that writes sets it right");
    assert_eq!(integer(&conn, "SELECT count(*) FROM outbox_event WHERE status = 'processing'"), 0);
}

/// The box's time starts no earlier than what is in the file, also where nothing is written.
#[test]
fn ages_are_those_of_the_boxes_clock() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = closed(dir.path(), "app.db");
    let clock = postbox::testing::ManualClock::new(start_of_time() + std::time::Duration::from_secs(90));
    let bus = Postbox::builder().clock(clock).open_read_only(&path).unwrap();
    assert_eq!(bus.stats().unwrap().oldest_pending_age_ms, Some(90_000));
}
