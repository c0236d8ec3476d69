//! Commits that fail on the disk: nobody knows whether they are there, and the error says so. What resolves it, and what the box
//! does about it.

use std::path::Path;

use postbox::{Error, EventId, OutboxStatus, Postbox, Subscription};

use crate::fault::{Disk, Lasting, Plan, Trouble};
use crate::folder;
use crate::support::{LIMIT, Tally, counting, event, integer, raw, status, wait_until};

const FAILS: Plan = Plan { trouble: Trouble::Io, at: 1, lasting: Lasting::ForGood };

#[test]
fn the_connection_that_saw_a_failed_commit_is_dropped_and_another_opened() {
    let folder = folder();
    let disk = Disk::watch(folder.path());
    let bus = Postbox::open(folder.path().join("app.db")).unwrap();
    bus.publish(event("a")).unwrap();
    let opened = disk.opened();
    bus.publish(event("a")).unwrap();
    assert_eq!(disk.opened(), opened);
    disk.plan(FAILS);
    assert!(matches!(bus.publish(event("a")), Err(Error::CommitUnknown(_))));
    disk.mend();
    assert_eq!(disk.opened(), opened, "nobody has needed one yet");
    bus.publish(event("a")).unwrap();
    assert_eq!(disk.opened(), opened + 1);
    bus.close().unwrap();
}

/// The long form of the worker's faults found it: `close` said that the box was closed, and left the -wal.
#[test]
fn a_box_whose_connection_was_dropped_is_closed_in_order() {
    let folder = folder();
    let path = folder.path().join("app.db");
    let disk = Disk::watch(folder.path());
    let bus = Postbox::open(&path).unwrap();
    bus.publish(event("a")).unwrap();
    disk.plan(FAILS);
    assert!(matches!(bus.publish(event("a")), Err(Error::CommitUnknown(_))));
    disk.mend();
    bus.close().unwrap();
    assert!(!path.with_file_name("app.db-wal").exists());
    assert!(Postbox::open(&path).unwrap().stats().unwrap().total >= 1);
}

#[test]
fn an_unknown_commit_is_resolved_by_publishing_again_under_the_same_key() {
    for at in 1.. {
        let folder = folder();
        let disk = Disk::watch(folder.path());
        let bus = Postbox::open(folder.path().join("app.db")).unwrap();
        bus.publish(event("first")).unwrap();
        disk.plan(Plan { at, lasting: Lasting::Once, ..FAILS });
        let keyed = || bus.publish(event("a").idempotency_key("one"));
        let first = keyed();
        let over = disk.mend() == 0;
        let unknown = match &first {
            Err(Error::CommitUnknown(error)) => error.sqlite_error_code().is_some(),
            Err(error) => panic!("operation {at}: {error:?}"),
            Ok(_) => false,
        };
        let id = keyed().unwrap();
        assert_eq!(keyed().unwrap(), id);
        let conn = raw(&folder.path().join("app.db"));
        assert_eq!(
            integer(&conn, "SELECT count(*) FROM outbox_event WHERE event_name = 'a'"),
            1,
            "operation {at}"
        );
        if over {
            assert!(at > 3, "a commit of {at} operations");
            break;
        }
        assert!(unknown, "operation {at}: {first:?}");
    }
}

/// A sleeping worker's publishers insert their events as claimed. Where that commit fails, nobody has them in hand.
#[test]
fn events_whose_commit_failed_under_the_hand_off_are_in_nobodys_way() {
    for at in 1.. {
        let folder = folder();
        let path = folder.path().join("app.db");
        let disk = Disk::watch(folder.path());
        let handled = Tally::default();
        let bus = Postbox::open(&path).unwrap();
        bus.subscribe(Subscription::new("a", "c", counting(&handled))).unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        let before = bus.publish(event("a")).unwrap();
        handled.wait_for(1);
        wait_until("it is settled", || status(&bus, before) == (OutboxStatus::Processed, 1));
        disk.plan(Plan { at, lasting: Lasting::Once, ..FAILS });
        let failed = bus.publish(event("a"));
        let over = disk.mend() == 0;
        let after = bus.publish(event("a")).unwrap();
        handled.wait_for(2);
        assert_nothing_is_left(&path, &bus, &[before, after]);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        bus.close().unwrap();
        if over {
            failed.unwrap();
            break;
        }
    }
}

fn assert_nothing_is_left(path: &Path, bus: &Postbox, ids: &[EventId]) {
    wait_until("everything is processed", || {
        let stats = bus.stats().unwrap();
        stats.pending + stats.processing == 0
    });
    for id in ids {
        assert_eq!(status(bus, *id), (OutboxStatus::Processed, 1));
    }
    assert_eq!(integer(&raw(path), "SELECT max(attempt_count) FROM outbox_event"), 1);
}
