//! Opening files: what is the application's stays the application's, and opening again changes nothing.

#[path = "support/files.rs"]
mod support;

#[path = "files/paths.rs"]
mod paths;
#[path = "files/refused.rs"]
mod refused;
#[path = "files/upgraded.rs"]
mod upgraded;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;

use postbox::{Context, Error, Event, Postbox, Result, Subscription};

use crate::support::{Process, assert_bytes, beside, event, given, integer, listing, raw, text, unhurried};

/// A closed box's file with one pending event.
fn boxed(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let bus = Postbox::open(&path).unwrap();
    bus.publish(event("a")).unwrap();
    bus.close().unwrap();
    path
}

/// Everything that a file says of itself and that is not the library's.
fn belongings(path: &Path) -> Vec<String> {
    let conn = raw(path);
    let mut found: Vec<String> =
        ["user_version", "application_id", "page_size", "encoding", "auto_vacuum", "legacy_alter_table"]
            .iter()
            .map(|pragma| {
                let sql = format!("SELECT CAST({pragma} AS TEXT) FROM pragma_{pragma}");
                format!("{pragma} = {}", text(&conn, &sql))
            })
            .collect();
    let ours = "('outbox_event', 'inbox_event', 'integration_link')";
    let sql = format!(
        "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema
         WHERE tbl_name NOT IN {ours} AND tbl_name NOT LIKE 'postbox_%' AND name NOT LIKE '%_readable' AND name <> 'sqlite_sequence' ORDER BY 1"
    );
    let mut statement = conn.prepare(&sql).unwrap();
    found.extend(statement.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap));
    let sql = "SELECT rowid || ' ' || id || ' ' || name || ' ' || quote(data) FROM customer ORDER BY rowid";
    let mut statement = conn.prepare(sql).unwrap();
    found.extend(statement.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap));
    found
}

#[test]
fn what_is_the_applications_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for encoding in ["UTF-8", "UTF-16le"] {
        let path = dir.path().join(encoding);
        raw(&path)
            .execute_batch(&format!(
                "PRAGMA encoding = '{encoding}'; PRAGMA page_size = 8192; PRAGMA auto_vacuum = INCREMENTAL;
                 PRAGMA user_version = 4711; PRAGMA application_id = 305419896;
                 CREATE TABLE customer (id TEXT, name TEXT, data BLOB);
                 CREATE INDEX customer_name ON customer (name);
                 CREATE TABLE changes (n INTEGER); INSERT INTO changes VALUES (0);
                 CREATE TRIGGER on_customer AFTER INSERT ON customer BEGIN UPDATE changes SET n = n + 1; END;
                 INSERT INTO customer (rowid, id, name, data) VALUES (7, 'c-7', 'Zoë', x'00ff'), (9, 'c-9', '', NULL);"
            ))
            .unwrap();
        let before = belongings(&path);
        assert!(before.contains(&"user_version = 4711".to_owned()), "{before:?}");

        let bus = Postbox::open(&path).unwrap();
        bus.subscribe(Subscription::new("*", "c", |event: &Event, _: &Context<'_>| {
            assert_eq!(event.payload()["n"], 1);
            Ok(())
        }))
        .unwrap();
        bus.publish(event("größe.changed")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        bus.update_settings(|settings| settings.batch_size = 7).unwrap();
        assert_eq!(belongings(&path), before);
        bus.close().unwrap();
        assert_eq!(belongings(&path), before, "after close");
        assert_eq!(Postbox::open(&path).unwrap().stats().unwrap().processed, 1);
    }
}

#[test]
fn a_file_of_the_application_keeps_its_mode_and_becomes_wal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    raw(&path).execute_batch("CREATE TABLE t (x)").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let bus = Postbox::open(&path).unwrap();
    bus.publish(event("a")).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let mode = fs::metadata(beside(&path, suffix)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o640, "{suffix}");
    }
    assert_eq!(text(&raw(&path), "PRAGMA journal_mode"), "wal");
    bus.close().unwrap();
    assert_eq!(text(&raw(&path), "PRAGMA journal_mode"), "wal");
}

/// The umask is the process's: it takes one of its own.
#[test]
fn new_files_are_for_their_owner_alone_whatever_the_umask() {
    for umask in ["000", "022", "077", "177", "277", "377", "477", "777"] {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap(); // for whoever runs the process
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("umask {umask}; exec \"$0\" \"$@\""));
        shell.arg(std::env::current_exe().unwrap());
        let mut command = Process::command_through(shell, "child_makes_files");
        command.env("FOLDER", dir.path());
        // Not as root, for whom a file without any rights is as good as another.
        if !Process::run_unprivileged(command, dir.path()) {
            return;
        }
        let names = listing(dir.path());
        assert!(names.iter().any(|name| name.starts_with("app.db-postbox-")), "the owner's lock: {names:?}");
        for name in ["app.db", "app.db-shm", "app.db-wal", "backup.db", "restored.db"] {
            assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
        }
        for name in names {
            let mode = fs::metadata(dir.path().join(&name)).unwrap().mode() & 0o777;
            assert_eq!(mode, 0o600, "{name} under umask {umask}");
        }
    }
}

#[test]
#[ignore = "run as a process by another test"]
fn child_makes_files() {
    let Some(folder) = given("FOLDER").map(PathBuf::from) else { return };
    let bus = Postbox::open(folder.join("app.db")).unwrap();
    bus.publish(event("a")).unwrap();
    bus.backup(folder.join("backup.db")).unwrap();
    postbox::restore(folder.join("backup.db"), folder.join("restored.db")).unwrap();
    std::process::exit(0); // without closing: the -wal and -shm are to be looked at
}

fn objects(path: &Path) -> Vec<String> {
    let conn = raw(path);
    let mut statement =
        conn.prepare("SELECT type || name || coalesce(sql, '') FROM sqlite_schema ORDER BY 1").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn opening_again_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = boxed(dir.path(), "app.db");
    let (made, stats) = (objects(&path), Postbox::open(&path).unwrap().stats().unwrap());
    for _ in 0..5 {
        let bus = Postbox::open(&path).unwrap();
        let again = bus.stats().unwrap();
        assert_eq!((again.pending, again.total), (stats.pending, stats.total));
        bus.close().unwrap();
        assert_eq!(objects(&path), made);
    }
    let conn = raw(&path);
    assert_eq!(integer(&conn, "SELECT count(*) FROM postbox_schema"), 1);
    assert_eq!(integer(&conn, "SELECT version FROM postbox_schema"), 6);
    assert_eq!(integer(&conn, "SELECT count(*) FROM postbox_setting"), 0);
}

#[test]
fn an_empty_file_becomes_a_box() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    fs::write(&path, b"").unwrap();
    let bus = Postbox::open(&path).unwrap();
    bus.publish(event("a")).unwrap();
    assert_eq!(bus.drain().unwrap(), 1);
}

#[test]
fn many_boxes_opened_on_one_new_file_at_the_same_moment_all_work() {
    for _ in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let barrier = Barrier::new(8);
        let open = || {
            barrier.wait();
            let bus = unhurried().open(&path)?;
            bus.publish(event("a"))?;
            Ok(bus)
        };
        let opened: Vec<Result<Postbox, Error>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let opened: Vec<Postbox> = opened.into_iter().map(Result::unwrap).collect();
        for bus in &opened {
            assert_eq!(bus.stats().unwrap().total, 8);
        }
        std::thread::scope(|scope| {
            for bus in opened {
                scope.spawn(|| bus.close().unwrap());
            }
        });
        assert_eq!(listing(dir.path()), ["app.db"]);
        assert_eq!(integer(&support::sound_copy(&path), "SELECT count(*) FROM outbox_event"), 8);
    }
}

/// SQLite would go on writing to what no path leads to any more, and say Ok.
#[test]
fn a_file_that_is_deleted_or_replaced_under_a_box_is_noticed_by_every_write_and_never_written_to() {
    for (replaced, closed) in [(true, true), (true, false), (false, true), (false, false)] {
        let dir = tempfile::tempdir().unwrap();
        let path = boxed(dir.path(), "app.db");
        let other = boxed(dir.path(), "other.db");
        let bus = Postbox::open(&path).unwrap();
        let id = bus.publish(event("b")).unwrap();
        let before = fs::read(&other).unwrap();
        if replaced {
            fs::rename(&other, &path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        let refused = |result: Result<(), Error>| match result {
            Err(Error::FileReplaced { path: named }) => {
                assert_eq!(named.file_name(), path.file_name());
            }
            other => panic!("replaced: {replaced}: {other:?}"),
        };
        refused(bus.publish(event("c")).map(drop));
        refused(bus.publish_all([event("c")]).map(drop));
        refused(bus.transaction(|_| -> Result<(), Error> { panic!("must not run") }));
        refused(bus.update_settings(|settings| settings.batch_size = 3).map(drop));
        refused(bus.inbox().get_or_create(id, "c").map(drop));
        if closed {
            let _ = bus.close();
        } else {
            drop(bus);
        }
        if replaced {
            assert_bytes(&path, &before, "the other file");
            // Nothing of the old file is read into it.
            let bus = Postbox::open(&path).unwrap();
            assert_eq!(bus.stats().unwrap().total, 1);
            assert!(bus.outbox().get(id).unwrap().is_none());
            bus.close().unwrap();
            assert_eq!(listing(dir.path()), ["app.db"]);
        } else {
            assert!(!path.exists());
        }
    }
}

#[test]
fn deleting_an_event_deletes_its_inbox_rows() {
    let dir = tempfile::tempdir().unwrap();
    for bus in [Postbox::open_in_memory().unwrap(), Postbox::open(dir.path().join("app.db")).unwrap()] {
        bus.subscribe(Subscription::new("*", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert!(bus.inbox().is_processed(id, "c").unwrap());
        let left = bus
            .transaction(|tx| {
                assert_eq!(tx.execute("DELETE FROM outbox_event", [])?, 1);
                tx.query_row("SELECT count(*) FROM inbox_event", [], |row| row.get::<_, i64>(0))
                    .map_err(Error::from)
            })
            .unwrap();
        assert_eq!(left, 0);
    }
}

/// Checkpoints run beside the writer, and somebody has to let the -wal begin anew all the same.
#[test]
fn the_wal_stays_small_under_a_load_that_never_pauses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    let text = "x".repeat(20_000);
    for _ in 0..60 {
        bus.publish_all((0..50).map(|_| event("a").payload(serde_json::json!(text)))).unwrap();
    }
    let size = |suffix| fs::metadata(beside(&path, suffix)).unwrap().len() >> 20;
    assert!(size("") + size("-wal") > 55, "{} and {} MiB", size(""), size("-wal"));
    assert!(size("-wal") < 20, "{} MiB", size("-wal"));
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
}
