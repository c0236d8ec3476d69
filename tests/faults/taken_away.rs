//! What happens to an open file from outside: it is deleted, moved, replaced, damaged, made read-only; its process is forked.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use postbox::{Error, Event, Fault, Health, Postbox, Result, Settings, Subscription};

use crate::fault::{Disk, Lasting, Plan, Trouble, fork};
use crate::support::{
    LIMIT, Process, Tally, assert_bytes, beside, counting, event, given, integer, raw, text, wait_until,
};
use crate::{folder, logged};

fn open(path: &Path) -> Postbox {
    let settings =
        Settings { polling_interval_ms: 200, idle_polling_interval_ms: 200, ..Settings::default() };
    Postbox::builder().settings(settings).open(path).unwrap()
}

fn waits_for(bus: &Postbox, expected: Fault) -> String {
    let mut said = String::new();
    wait_until("the worker says that it waits", || match bus.health() {
        Health::Waiting { fault, reason, .. } => {
            assert_eq!(fault, expected, "{reason}");
            said = reason;
            true
        }
        _ => false,
    });
    said
}

/// Once a fault, however often it is tried again.
fn assert_said_once(path: &Path) {
    assert_eq!(logged::lines_with(&["processing pauses", path.to_str().unwrap()]).len(), 1);
}

/// A sleeping worker notices by itself, without anything to write.
#[test]
fn a_file_that_is_moved_is_noticed_and_work_goes_on_when_it_is_back() {
    logged::collect();
    let folder = folder();
    let path = folder.path().join("app.db");
    let handled = Tally::default();
    let bus = open(&path);
    bus.subscribe(Subscription::new("order", "outside", counting(&handled))).unwrap();
    let worker = bus.start().unwrap();
    bus.publish(event("order")).unwrap();
    handled.wait_for(1);
    bus.stats().unwrap();
    let away = folder.path().join("away.db");
    fs::rename(&path, &away).unwrap();
    let said = waits_for(&bus, Fault::FileReplaced);
    assert!(said.contains("app.db"), "{said}");
    assert!(matches!(bus.stats().unwrap().health, Health::Waiting { fault: Fault::FileReplaced, .. }));
    for refused in [bus.publish(event("order")).map(drop), bus.backup(folder.path().join("copy.db"))] {
        let error = refused.unwrap_err();
        assert!(matches!(&error, Error::FileReplaced { path: named } if *named == path), "{error:?}");
        assert_eq!(error.fault(), Some(Fault::FileReplaced));
    }
    wait_until("it tries again", || matches!(bus.health(), Health::Waiting { tries, .. } if tries >= 3));
    assert_said_once(&path);
    fs::rename(&away, &path).unwrap();
    wait_until("it goes on", || bus.health() == Health::Ok);
    bus.publish(event("order")).unwrap();
    handled.wait_for(2);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
}

#[test]
fn a_file_in_the_place_of_another_is_neither_read_nor_written() {
    let folder = folder();
    let (path, other) = (folder.path().join("app.db"), folder.path().join("other.db"));
    let theirs = Postbox::open(&other).unwrap();
    theirs.publish(event("theirs")).unwrap();
    theirs.close().unwrap();
    let before = fs::read(&other).unwrap();

    let handled = Tally::default();
    let disk = Disk::watch(folder.path());
    let bus = open(&path);
    bus.subscribe(Subscription::new("theirs", "outside", counting(&handled))).unwrap();
    let worker = bus.start().unwrap();
    // Its write connection is dropped, and would be opened anew by name.
    disk.plan(Plan { trouble: Trouble::Io, at: 1, lasting: Lasting::ForGood });
    bus.publish(event("ours")).unwrap_err();
    disk.mend();
    fs::rename(&other, &path).unwrap();
    waits_for(&bus, Fault::FileReplaced);
    assert!(matches!(bus.publish(event("ours")), Err(Error::FileReplaced { .. })));
    assert!(matches!(
        bus.outbox().count_by_status(postbox::OutboxStatus::Pending),
        Ok(0) | Err(Error::FileReplaced { .. })
    ));
    assert_eq!(handled.get(), 0, "an event of another file was handled");
    assert!(worker.shutdown(LIMIT).is_ok());
    drop(bus);
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(beside(&path, suffix));
    }
    assert_bytes(&path, &before, "the other file");
}

#[test]
fn a_deleted_file_is_not_made_anew() {
    let folder = folder();
    let path = folder.path().join("app.db");
    let bus = open(&path);
    let worker = bus.start().unwrap();
    fs::remove_file(&path).unwrap();
    waits_for(&bus, Fault::FileReplaced);
    assert!(matches!(bus.publish(event("order")), Err(Error::FileReplaced { .. })));
    assert!(!path.exists(), "an empty file in its place would look like data that is lost");
    assert!(worker.shutdown(LIMIT).is_ok());
    assert!(bus.close().is_err());
    assert!(!path.exists());
}

/// The place of the first page of a kind in the file, and the page's size.
fn leaf_of(path: &Path, object: &str) -> (u64, u64) {
    let conn = raw(path);
    let size = u64::try_from(integer(&conn, "PRAGMA page_size")).unwrap();
    let root =
        u64::try_from(integer(&conn, &format!("SELECT rootpage FROM sqlite_schema WHERE name = '{object}'")))
            .unwrap();
    ((root - 1) * size, size)
}

fn damage(path: &Path, object: &str) -> (u64, Vec<u8>) {
    let (at, size) = leaf_of(path, object);
    let rubbish = vec![0xa5; usize::try_from(size).unwrap()];
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&rubbish, at).unwrap();
    (at, rubbish)
}

#[test]
fn a_damaged_page_stops_work_and_is_left_as_it_is() {
    logged::collect();
    for object in ["outbox_event", "outbox_event_due"] {
        let folder = folder();
        let path = folder.path().join("app.db");
        let bus = open(&path);
        bus.publish_all((0..300).map(|_| event("order"))).unwrap();
        bus.close().unwrap();
        let (at, rubbish) = damage(&path, object);

        // Opening looks at the newest rows and at what is pending: it may see the damage itself.
        let handled = Tally::default();
        let opened = Postbox::builder()
            .settings(Settings {
                polling_interval_ms: 200,
                idle_polling_interval_ms: 200,
                ..Settings::default()
            })
            .open(&path);
        match opened {
            Err(error) => assert_eq!(error.fault(), Some(Fault::Damaged), "{object}: {error:?}"),
            Ok(bus) => {
                bus.subscribe(Subscription::new("order", "outside", counting(&handled))).unwrap();
                let worker = bus.start().unwrap();
                let said = waits_for(&bus, Fault::Damaged);
                assert!(said.contains("malformed"), "{said}");
                let refused = bus.publish(event("order")).unwrap_err();
                assert_eq!(refused.fault(), Some(Fault::Damaged), "{object}: {refused:?}");
                wait_until(
                    "it tries again",
                    || matches!(bus.health(), Health::Waiting { tries, .. } if tries >= 3),
                );
                assert!(worker.is_running());
                assert_said_once(&path);
                assert!(worker.shutdown(LIMIT).is_ok());
                let _ = bus.close(); // the last mark may not be written
            }
        }
        let mut found = vec![0; rubbish.len()];
        fs::File::open(&path).unwrap().read_exact_at(&mut found, at).unwrap();
        assert!(found == rubbish, "{object}: the damaged page was written over");
    }
}

/// Pages of the application's own tables: only the handler that reads them fails.
#[test]
fn damage_in_a_table_of_the_applications_sets_aside_the_events_that_need_it() {
    let folder = folder();
    let path = folder.path().join("app.db");
    let bus = open(&path);
    bus.transaction(|tx| -> Result<()> {
        tx.execute_batch(
            "CREATE TABLE stock (n INTEGER); INSERT INTO stock VALUES (1); CREATE TABLE effect (event TEXT)",
        )?;
        Ok(())
    })
    .unwrap();
    bus.close().unwrap();
    damage(&path, "stock");
    let bus = open(&path);
    bus.subscribe(Subscription::transactional(
        "reads stock",
        "warehouse",
        |_: &Event, tx: &postbox::Tx<'_>| {
            tx.query_row("SELECT n FROM stock", [], |_| Ok(()))?;
            Ok(())
        },
    ))
    .unwrap();
    bus.subscribe(Subscription::transactional(
        "needs none",
        "mail",
        |event: &Event, tx: &postbox::Tx<'_>| {
            tx.execute("INSERT INTO effect VALUES (?1)", [event.id().to_string()])?;
            Ok(())
        },
    ))
    .unwrap();
    let bad = bus.publish(event("reads stock")).unwrap();
    let good: Vec<_> = (0..20).map(|_| bus.publish(event("needs none")).unwrap()).collect();
    bus.drain().unwrap();
    for id in good {
        assert_eq!(crate::support::status(&bus, id), (postbox::OutboxStatus::Processed, 1));
    }
    let row = bus.outbox().get(bad).unwrap().unwrap();
    assert_eq!(
        (row.status, row.attempt_count),
        (postbox::OutboxStatus::Pending, 1),
        "it waits for its next attempt"
    );
    assert!(row.last_error.unwrap().contains("malformed"));
    bus.close().unwrap();
}

#[test]
fn a_file_that_becomes_read_only_is_written_while_it_is_open_and_then_refused() {
    let folder = folder();
    let own = folder.path().join("own");
    fs::create_dir(&own).unwrap();
    // Whom root's powers do not help.
    for path in [folder.path(), &own] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut command = Process::command("taken_away::child_meets_a_read_only_file");
    command.env("FOLDER", &own);
    Process::run_unprivileged(command, folder.path());
}

#[test]
#[ignore = "run as a process by another test"]
fn child_meets_a_read_only_file() {
    let Some(folder) = given("FOLDER").map(PathBuf::from) else { return };
    let path = folder.join("app.db");
    let disk = Disk::watch(&folder);
    let handled = Tally::default();
    let bus = open(&path);
    bus.subscribe(Subscription::new("order", "outside", counting(&handled))).unwrap();
    let worker = bus.start().unwrap();
    bus.publish(event("order")).unwrap();
    handled.wait_for(1);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    // What is open stays writable: SQLite keeps descriptors for connections that are opened anew.
    disk.plan(Plan { trouble: Trouble::Io, at: 1, lasting: Lasting::ForGood });
    assert_eq!(bus.publish(event("order")).unwrap_err().fault(), Some(Fault::Io));
    disk.mend();
    bus.publish(event("order")).unwrap();
    handled.wait_for(2);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
    let before = fs::read(&path).unwrap();
    match Postbox::open(&path) {
        Err(Error::CannotOpen { reason, .. }) => assert!(reason.contains("read-only"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_bytes(&path, &before, "a file that may not be written to");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    open(&path).close().unwrap();
}

#[test]
fn a_forked_process_gets_an_error_and_does_no_harm() {
    let folder = folder();
    let path = folder.path().join("app.db");
    let mut command = Process::command("taken_away::child_is_forked_beside_a_box");
    command.env("FILE", &path);
    Process::run(command);
    let conn = raw(&path);
    assert_eq!(text(&conn, "PRAGMA integrity_check"), "ok");
    assert_eq!(integer(&conn, "SELECT count(*) FROM outbox_event WHERE status = 'processed'"), 2);
}

/// A process of its own: a lock that another thread holds at the fork is held for ever in the child.
#[test]
#[ignore = "run as a process by another test"]
fn child_is_forked_beside_a_box() {
    let Some(path) = given("FILE").map(PathBuf::from) else { return };
    let handled = Tally::default();
    // Its worker sleeps at the fork: it looks around once a second.
    let bus = Postbox::open(&path).unwrap();
    bus.subscribe(Subscription::new("order", "outside", counting(&handled))).unwrap();
    let mut worker = Some(bus.start().unwrap()); // the child's copy of it goes in the child
    bus.publish(event("order")).unwrap();
    handled.wait_for(1);
    wait_until("it is recorded", || bus.stats().unwrap().processed == 1);

    let (clone, child_path) = (bus.clone(), path.clone());
    let wrong = fork(|| {
        let forked = |result: Result<()>| matches!(result, Err(Error::Forked { .. }));
        let checks = [
            forked(clone.publish(event("order")).map(drop)),
            forked(clone.publish_all([event("order")]).map(drop)),
            forked(clone.transaction(|_| Ok(()))),
            forked(clone.stats().map(drop)),
            forked(clone.drain().map(drop)),
            forked(clone.start().map(drop)),
            forked(clone.backup(child_path.with_extension("copy"))),
            forked(worker.take().unwrap().shutdown(LIMIT).map(drop)),
            forked(Postbox::open(&child_path).map(drop)), // SQLite knows wrong locks of it
            forked(clone.clone().close()),
        ];
        // The number of the first that failed.
        checks.iter().position(|right| !right).map_or(0, |check| u8::try_from(check + 1).unwrap())
    });
    assert_eq!(wrong, 0, "a check in the child");

    // The parent goes on, with its locks.
    bus.publish(event("order")).unwrap();
    handled.wait_for(2);
    let second = Command::new(std::env::current_exe().unwrap())
        .args(["taken_away::child_cannot_take_the_file", "--exact", "--ignored", "--test-threads=1"])
        .env("FILE", &path)
        .output()
        .unwrap();
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stdout));
    bus.close().unwrap();
}

/// The parent's clones of the box kept the file from its children.
#[test]
fn a_process_that_is_forked_after_the_box_was_closed_may_open_the_file() {
    let folder = folder();
    let path = folder.path().join("app.db");
    let mut command = Process::command("taken_away::child_is_forked_after_close");
    command.env("FILE", &path);
    Process::run(command);
    assert_eq!(open(&path).stats().unwrap().total, 1);
}

/// A process of its own: a lock that another thread holds at the fork is held for ever in the child.
#[test]
#[ignore = "run as a process by another test"]
fn child_is_forked_after_close() {
    let Some(path) = given("FILE").map(PathBuf::from) else { return };
    let bus = open(&path);
    let clone = bus.clone();
    bus.close().unwrap();
    wait_until("the threads of the pool are gone", || fs::read_dir("/proc/self/task").unwrap().count() <= 2);
    let failed = fork(|| u8::from(open(&path).publish(event("order")).is_err()));
    assert_eq!(failed, 0);
    drop(clone);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_cannot_take_the_file() {
    let Some(path) = given("FILE") else { return };
    let conn = postbox::rusqlite::Connection::open(path).unwrap();
    conn.busy_timeout(std::time::Duration::ZERO).unwrap();
    let left: String =
        conn.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).unwrap_or_default();
    assert_ne!(left, "delete", "the parent's locks are gone");
}
