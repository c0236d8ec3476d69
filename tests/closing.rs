//! Closing: everyone hears of it, and what is left is one complete file.

#[path = "support/files.rs"]
mod support;

use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use postbox::rusqlite::Connection;
use postbox::{
    Context, EntityRef, Error, Event, InboxId, LinkFilter, LinkType, NewLink, Page, Postbox, Result,
    Subscription, WalkOptions,
};
use support::{Tally, beside, counting, cp, event, integer, listing, raw, sound_copy, unhurried};

fn file_and_memory(folder: &Path) -> [Postbox; 2] {
    [Postbox::open(folder.join("app.db")).unwrap(), Postbox::open_in_memory().unwrap()]
}

fn link() -> NewLink {
    NewLink::new(EntityRef::new("a", "A", "1"), EntityRef::new("b", "B", "2"), LinkType::Reference)
}

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "so that calls stand in one line")]
fn assert_closed<T: Debug>(what: &str, result: Result<T>) {
    assert!(matches!(result, Err(Error::Closed { .. })), "{what}: {result:?}");
}

/// Everything that a clone can be asked for.
fn assert_all_closed(bus: &Postbox, folder: &Path) {
    let id = "0198c0de-0000-7000-8000-000000000000".parse().unwrap();
    let one = InboxId::from(1);
    let end = EntityRef::new("a", "A", "1");
    assert_closed("publish", bus.publish(event("a")));
    assert_closed("publish_all", bus.publish_all([event("a")]));
    assert_closed("publish_all of nothing", bus.publish_all([]));
    assert_closed("transaction", bus.transaction(|_| -> Result<()> { panic!("must not run") }));
    let subscription = Subscription::new("a", "late", |_: &Event, _: &Context<'_>| Ok(()));
    assert_closed("subscribe", bus.subscribe(subscription));
    assert_closed("start", bus.start());
    assert_closed("process_batch", bus.process_batch());
    assert_closed("drain", bus.drain());
    assert_closed("outbox.get", bus.outbox().get(id));
    assert_closed("count_by_status", bus.outbox().count_by_status(postbox::OutboxStatus::Pending));
    assert_closed("inbox.get_or_create", bus.inbox().get_or_create(id, "c"));
    assert_closed("inbox.get", bus.inbox().get(one));
    assert_closed("inbox.mark_processed", bus.inbox().mark_processed(one));
    assert_closed("inbox.is_processed", bus.inbox().is_processed(id, "c"));
    assert_closed("inbox.count_unprocessed", bus.inbox().count_unprocessed("c"));
    assert_closed("links.create", bus.links().create(link()));
    assert_closed("links.get", bus.links().get(id.as_uuid()));
    assert_closed("links.delete", bus.links().delete(id.as_uuid()));
    assert_closed("links.get_or_create", bus.links().get_or_create(link()));
    assert_closed("links.delete_of", bus.links().delete_of(&end));
    assert_closed("links.move_entity", bus.links().move_entity(&end, &end));
    assert_closed("links.find", bus.links().find(&LinkFilter::new(), &Page::oldest(1)));
    assert_closed("links.walk", bus.links().walk(&end, &WalkOptions::both(1)));
    assert_closed("announce_deleted", bus.announce_deleted(&end));
    assert_closed("links.find_outbound", bus.links().find_outbound(&end));
    assert_closed("links.find_by_type", bus.links().find_by_type(LinkType::Cascade));
    assert_closed("update_settings", bus.update_settings(|settings| settings.batch_size = 3));
    assert_closed("stats", bus.stats());
    assert_closed("backup", bus.backup(folder.join("backup.db")));
    bus.notify();
    let _ = bus.settings();
    assert_eq!(bus.registry().handler_count(), 0);
    assert_closed("a second close", bus.clone().close());
}

#[test]
fn clones_of_a_closed_box_get_closed_from_everything() {
    let dir = tempfile::tempdir().unwrap();
    for bus in file_and_memory(dir.path()) {
        let clone = bus.clone();
        bus.subscribe(Subscription::new("a", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        bus.publish(event("a")).unwrap();
        bus.close().unwrap();
        assert_all_closed(&clone, dir.path());
    }
    assert_eq!(listing(dir.path()), ["app.db"]);

    // The two that only a file has.
    let bus = Postbox::open(dir.path().join("app.db")).unwrap();
    let clone = bus.clone();
    bus.close().unwrap();
    assert_closed("with_quiesced_file", clone.with_quiesced_file(|_| -> std::io::Result<()> { panic!() }));
    let mut conn = raw(&dir.path().join("app.db"));
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    assert_closed("publish_in", clone.publish_in(&tx, event("a")));
}

#[test]
fn closing_leaves_one_file_with_everything_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    bus.transaction(|tx| -> Result<()> { Ok(tx.execute_batch("CREATE TABLE note (n INTEGER)")?) }).unwrap();
    bus.subscribe(Subscription::transactional("done", "c", |event: &Event, tx: &postbox::Tx<'_>| {
        tx.execute("INSERT INTO note VALUES (1)", [])?;
        tx.create_link(link())?;
        assert_eq!(event.attempt(), 1);
        Ok(())
    }))
    .unwrap();
    bus.publish_all((0..50).map(|_| event("done"))).unwrap();
    assert_eq!(bus.drain().unwrap(), 50);
    bus.publish_all((0..30).map(|_| event("waiting").delay(Duration::from_hours(1)))).unwrap();
    let clone = bus.clone();
    let stats = bus.stats().unwrap();
    bus.close().unwrap();
    drop(clone);
    assert_eq!(listing(dir.path()), ["app.db"]);

    let copy = dir.path().join("copy.db");
    cp(&path, &copy);
    let conn = sound_copy(&copy);
    let count = |table| integer(&conn, &format!("SELECT count(*) FROM {table}"));
    assert_eq!(u64::try_from(count("outbox_event")).unwrap(), stats.total);
    assert_eq!(count("outbox_event WHERE status = 'processed'"), 50);
    assert_eq!(count("outbox_event WHERE status = 'pending'"), 30);
    assert_eq!(
        (count("inbox_event WHERE status = 'processed'"), count("note"), count("integration_link")),
        (50, 50, 50)
    );
}

/// The application's own connection keeps the -wal alive: the main file alone has to be complete all the same.
#[test]
fn closing_completes_the_file_while_the_application_has_it_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    let apps = raw(&path);
    assert_eq!(integer(&apps, "SELECT count(*) FROM outbox_event"), 0);
    bus.publish_all((0..40).map(|_| event("a"))).unwrap();
    bus.close().unwrap();
    let copy = dir.path().join("copy.db");
    cp(&path, &copy);
    assert_eq!(integer(&sound_copy(&copy), "SELECT count(*) FROM outbox_event"), 40);
    assert_eq!(integer(&apps, "SELECT count(*) FROM outbox_event"), 40);
    drop(apps);
    assert!(!beside(&path, "-wal").exists());
}

/// Read connections are opened on threads of the pool's: one that is still on its way when the box closes would bring
/// the -wal and -shm back.
#[test]
fn closing_leaves_one_file_when_many_threads_have_just_read() {
    for round in 0..25 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let bus = Postbox::open(&path).unwrap();
        let barrier = Barrier::new(6);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    barrier.wait();
                    assert_eq!(bus.stats().unwrap().total, 0);
                });
            }
        });
        bus.close().unwrap();
        assert_eq!(listing(dir.path()), ["app.db"], "round {round}");
        // Nobody has it open any more.
        let conn = Connection::open(&path).unwrap();
        let mode: String = conn.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "delete", "round {round}");
    }
}

#[test]
fn dropping_the_last_clone_closes_the_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let tally = Tally::default();
    {
        let bus = Postbox::open(&path).unwrap();
        let clone = bus.clone();
        bus.subscribe(Subscription::new("a", "c", counting(&tally))).unwrap();
        drop(bus);
        clone.publish_all([event("a"), event("b"), event("b")]).unwrap();
        clone.process_batch().unwrap();
    }
    assert_eq!(tally.get(), 1);
    assert_eq!(listing(dir.path()), ["app.db"]);
    let bus = Postbox::open(&path).unwrap();
    assert_eq!(bus.stats().unwrap().total, 3);
    assert_eq!(bus.stats().unwrap().processed, 3);
}

/// Handlers hold clones of the box, and the box holds its handlers.
#[test]
fn handlers_and_what_they_hold_are_dropped_by_closing() {
    let dir = tempfile::tempdir().unwrap();
    for bus in file_and_memory(dir.path()) {
        let held = Arc::new(());
        for consumer in ["one", "two"] {
            let (clone, held) = (bus.clone(), Arc::clone(&held));
            bus.subscribe(Subscription::new("a", consumer, move |_: &Event, _: &Context<'_>| {
                assert_eq!(Arc::strong_count(&held), 3);
                assert_eq!(clone.settings().batch_size, 10);
                Ok(())
            }))
            .unwrap();
        }
        let (clone, in_tx) = (bus.clone(), Arc::clone(&held));
        bus.subscribe(Subscription::transactional("b", "three", move |_: &Event, _: &postbox::Tx<'_>| {
            let _ = (&clone, &in_tx);
            Ok(())
        }))
        .unwrap();
        bus.registry().remove_by_consumer_prefix("three");
        bus.publish(event("a")).unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(support::LIMIT));
        let clone = bus.clone();
        bus.close().unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
        drop((worker, clone));
    }
    assert_eq!(listing(dir.path()), ["app.db"]);
}

#[test]
fn closing_inside_a_transaction_or_a_handler_is_an_error_and_closes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for bus in file_and_memory(dir.path()) {
        let inside = bus.transaction(|_| -> Result<_> { Ok(bus.clone().close()) }).unwrap();
        assert!(matches!(inside, Err(Error::Reentrant { .. })), "{inside:?}");
        let tally = Tally::default();
        let seen = tally.clone();
        bus.subscribe(Subscription::new("a", "c", move |_: &Event, cx: &Context<'_>| {
            let inside = cx.postbox().clone().close();
            if matches!(inside, Err(Error::Reentrant { .. })) {
                seen.add();
            }
            Ok(())
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        let worker = bus.start().unwrap();
        bus.publish(event("a")).unwrap();
        tally.wait_for(2);
        drop(worker);
        bus.publish(event("b")).unwrap();
        bus.close().unwrap();
    }
}

#[test]
fn a_close_that_gives_up_waiting_for_a_transaction_has_closed_the_box_for_everyone_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let open = || Postbox::builder().busy_timeout(Duration::from_millis(100)).open(&path).unwrap();
    let bus = open();
    let (inside, leave) = (Tally::default(), support::Latch::default());
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            bus.transaction(|tx| -> Result<()> {
                tx.publish(event("a"))?;
                inside.add();
                leave.wait();
                Ok(())
            })
        });
        inside.wait_for(1);
        let closed = bus.clone().close();
        assert!(matches!(closed, Err(Error::Busy { .. })), "{closed:?}");
        assert_closed("publish", bus.publish(event("b")));
        leave.open();
        busy.join().unwrap().unwrap();
    });
    assert_closed("publish", bus.publish(event("b")));
    assert_closed("stats", bus.stats());
    drop(bus);
    let bus = open();
    assert_eq!(bus.stats().unwrap().total, 1);
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
    assert!(fs::metadata(&path).unwrap().len() > 0);
}

#[test]
fn publishers_in_the_middle_of_a_close_are_told_and_what_was_acknowledged_is_there() {
    for _ in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let bus = unhurried().open(&path).unwrap();
        let published = Tally::default();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        match bus.publish(event("a")) {
                            Ok(_) => published.add(),
                            Err(Error::Closed { .. }) => return,
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            published.wait_for(20);
            bus.clone().close().unwrap();
        });
        assert_eq!(listing(dir.path()), ["app.db"]);
        let stored = integer(&sound_copy(&path), "SELECT count(*) FROM outbox_event");
        assert_eq!(u64::try_from(stored).unwrap(), published.get());
    }
}

#[test]
fn readers_and_backups_in_the_middle_of_a_close_end_or_are_told() {
    for round in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let bus = unhurried().open(dir.path().join("app.db")).unwrap();
        let id = bus.publish(event("a")).unwrap();
        let (read, backed_up) = (Tally::default(), Tally::default());
        let until_closed = |done: &Tally, act: &dyn Fn() -> Result<()>| {
            loop {
                match act() {
                    Ok(()) => done.add(),
                    Err(Error::Closed { .. }) => return,
                    Err(error) => panic!("round {round}: {error}"),
                }
            }
        };
        let change = || bus.update_settings(|settings| settings.batch_size ^= 1).map(drop);
        thread::scope(|scope| {
            scope.spawn(|| until_closed(&read, &|| bus.stats().map(drop)));
            scope.spawn(|| until_closed(&read, &|| bus.outbox().get(id).map(drop)));
            scope.spawn(|| until_closed(&read, &|| bus.drain().map(drop)));
            scope.spawn(|| until_closed(&read, &change));
            scope.spawn(|| until_closed(&backed_up, &|| bus.backup(dir.path().join("backup.db"))));
            read.wait_for(50);
            backed_up.wait_for(1);
            bus.clone().close().unwrap();
            let left = listing(dir.path());
            assert!(left.iter().all(|name| !name.starts_with("app.db-")), "round {round}: {left:?}");
        });
        assert_eq!(listing(dir.path()), ["app.db", "backup.db"], "round {round}");
        sound_copy(&dir.path().join("backup.db"));
    }
}

#[test]
fn a_worker_that_starts_in_the_middle_of_a_close_is_stopped_or_refused() {
    for round in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let bus = unhurried().open(dir.path().join("app.db")).unwrap();
        bus.publish_all((0..20).map(|_| event("a"))).unwrap();
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            let start = scope.spawn(|| {
                barrier.wait();
                bus.start()
            });
            barrier.wait();
            bus.clone().close().unwrap();
            match start.join().unwrap() {
                Ok(worker) => assert!(!worker.is_running(), "round {round}"),
                Err(error) => assert!(matches!(error, Error::Closed { .. }), "round {round}: {error}"),
            }
        });
        assert_eq!(listing(dir.path()), ["app.db"], "round {round}");
        let processing = "SELECT count(*) FROM outbox_event WHERE status = 'processing'";
        assert_eq!(integer(&sound_copy(&dir.path().join("app.db")), processing), 0, "round {round}");
    }
}
