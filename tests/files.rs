//! Opening files: what is refused is left as it was, and what is the application's stays the application's.

#[path = "support/files.rs"]
mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;

use postbox::rusqlite::Connection;
use postbox::{Context, Error, Event, Postbox, Subscription};
use support::{Process, assert_bytes, beside, cp, event, given, integer, listing, raw, text};
use tempfile::TempDir;

/// A closed box's file with one pending event.
fn boxed(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let bus = Postbox::open(&path).unwrap();
    bus.publish(event("a")).unwrap();
    bus.close().unwrap();
    path
}

#[test]
fn what_is_no_database_is_refused_and_left_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let real = fs::read(boxed(dir.path(), "real.db")).unwrap();
    let random: Vec<u8> = (0..8_192_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    let cases: [(&str, Vec<u8>); 8] = [
        ("text", b"Dear diary, this is no database.\n".repeat(200)),
        ("short text", b"hello".to_vec()),
        ("random bytes", random),
        ("1 byte", vec![b'S']),
        ("99 bytes", vec![0x53; 99]),
        ("zeros", vec![0; 4_096]),
        ("a header cut off inside its magic", real[..10].to_vec()),
        ("a header cut off behind its magic", real[..99].to_vec()),
    ];
    for (what, bytes) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        fs::write(&path, &bytes).unwrap();
        let before = fs::metadata(&path).unwrap();
        match Postbox::open(&path) {
            Err(Error::NotADatabase { path: named }) => assert_eq!(named, path.canonicalize().unwrap()),
            other => panic!("{what}: {other:?}"),
        }
        assert_bytes(&path, &bytes, what);
        assert_eq!(listing(dir.path()), ["app.db"], "{what}");
        let after = fs::metadata(&path).unwrap();
        assert_eq!(
            (after.modified().unwrap(), after.mode(), after.ino()),
            (before.modified().unwrap(), before.mode(), before.ino()),
            "{what}"
        );
    }
}

/// A copy that broke off: its header is whole and says that there is more.
#[test]
fn a_database_that_was_cut_off_is_refused_and_left_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let real = fs::read(boxed(dir.path(), "real.db")).unwrap();
    for length in [100, 512, 4_096, 8_192] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        fs::write(&path, &real[..length]).unwrap();
        let refused = Postbox::open(&path);
        assert!(refused.is_err(), "{length}: {refused:?}");
        assert_bytes(&path, &real[..length], "cut off");
        assert_eq!(listing(dir.path()), ["app.db"], "{length}");
    }
}

#[test]
fn paths_that_name_no_file_get_an_error_that_says_so_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().canonicalize().unwrap();
    let reason = |path: &Path| match Postbox::open(path) {
        Err(Error::CannotOpen { path: named, reason }) => {
            assert_eq!(named, path);
            reason
        }
        other => panic!("{}: {other:?}", path.display()),
    };
    assert_eq!(reason(&folder), "it is a folder");
    assert_eq!(reason(Path::new("")), "it names no file");
    assert_eq!(reason(Path::new(":memory:")), "use `open_in_memory` for a box in memory");

    match Postbox::open(folder.join("missing/app.db")) {
        Err(Error::Io { path, source, .. }) => {
            assert_eq!(path, folder.join("missing"));
            assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }

    symlink(folder.join("nowhere.db"), folder.join("dangling.db")).unwrap();
    let dangling = Postbox::open(folder.join("dangling.db"));
    assert!(matches!(dangling, Err(Error::CannotOpen { .. } | Error::Io { .. })), "{dangling:?}");
    assert_eq!(listing(&folder), ["dangling.db"]);
}

/// Permissions do not bind root, so that the test runs as nobody where it is root.
#[test]
fn a_file_or_folder_that_cannot_be_written_gets_a_clear_error_and_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let real = boxed(dir.path(), "real.db");
    let copies = ["empty.db", "wal.db", "plain.db", "new"].map(|name| dir.path().join(name));
    let [empty, wal, plain, new] = &copies;
    fs::write(empty, b"").unwrap();
    fs::copy(&real, wal).unwrap();
    fs::copy(&real, plain).unwrap();
    raw(plain).query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).unwrap();
    for path in [empty, wal, plain] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
    }
    fs::remove_file(&real).unwrap();
    let before = [empty, wal, plain].map(|path| (path, fs::read(path).unwrap()));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();

    let mut command = Process::command("child_opens_as_nobody");
    command.env("FOLDER", dir.path());
    if fs::metadata(dir.path()).unwrap().uid() == 0 {
        command.uid(65_534).gid(65_534);
    }
    match command.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        }
        Err(error) => eprintln!("not tested: nobody cannot run {:?} ({error})", command.get_program()),
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(listing(dir.path()), ["empty.db", "plain.db", "wal.db"]);
    for (path, bytes) in before {
        assert_bytes(path, &bytes, "read-only");
    }
    assert!(!new.exists());
}

#[test]
#[ignore = "run as a process by another test"]
fn child_opens_as_nobody() {
    let Some(folder) = given("FOLDER").map(PathBuf::from) else { return };
    for name in ["empty.db", "wal.db", "plain.db"] {
        match Postbox::open(folder.join(name)) {
            Err(Error::CannotOpen { path, .. }) => assert_eq!(path, folder.join(name)),
            other => panic!("{name}: {other:?}"),
        }
    }
    match Postbox::open(folder.join("new")) {
        Err(Error::Io { path, source, .. }) => {
            assert_eq!(path, folder.join("new"));
            assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
        }
        other => panic!("{other:?}"),
    }
}

fn assert_too_new(path: &Path) {
    match Postbox::open(path) {
        Err(Error::SchemaTooNew { found, supported }) => assert_eq!((found, supported), (99, 1)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_newer_schema_is_refused_without_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = boxed(dir.path(), "app.db");
    raw(&path).execute("UPDATE postbox_schema SET version = 99", []).unwrap();
    let before = fs::read(&path).unwrap();
    assert_too_new(&path);
    assert_bytes(&path, &before, "refused");
    assert_eq!(listing(dir.path()), ["app.db"]);
}

/// The last connection to close a file folds its -wal into it: for a file that is refused, that is a write as well.
#[test]
fn a_newer_schema_with_a_wal_left_behind_is_refused_without_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = boxed(dir.path(), "app.db");
    let conn = raw(&path);
    conn.execute("UPDATE postbox_schema SET version = 99", []).unwrap();
    let crashed = dir.path().join("crashed.db");
    cp(&path, &crashed);
    cp(&beside(&path, "-wal"), &beside(&crashed, "-wal"));
    drop(conn);
    fs::remove_file(&path).unwrap();

    let before = (fs::read(&crashed).unwrap(), fs::read(beside(&crashed, "-wal")).unwrap());
    assert!(!before.1.is_empty());
    assert_too_new(&crashed);
    assert_bytes(&crashed, &before.0, "the database");
    assert_bytes(&beside(&crashed, "-wal"), &before.1, "its -wal");
}

#[test]
fn a_foreign_object_under_one_of_our_names_is_refused_without_a_write() {
    for sql in [
        "CREATE TABLE outbox_event (x)",
        "CREATE TABLE Outbox_Event (x)",
        "CREATE VIEW inbox_event AS SELECT 1",
        "CREATE TABLE t (x); CREATE INDEX outbox_event_live ON t (x)",
        "CREATE TABLE postbox_setting (x)",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        raw(&path).execute_batch(sql).unwrap();
        let before = fs::read(&path).unwrap();
        match Postbox::open(&path) {
            Err(Error::CannotOpen { path: named, reason }) => {
                assert_eq!(named, path.canonicalize().unwrap());
                assert!(reason.contains("that postbox did not make"), "{reason}");
            }
            other => panic!("{sql}: {other:?}"),
        }
        assert_bytes(&path, &before, sql);
        assert_eq!(listing(dir.path()), ["app.db"], "{sql}");
    }
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
    let ours = "('postbox_schema', 'postbox_setting', 'outbox_event', 'inbox_event', 'integration_link')";
    let sql = format!(
        "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema
         WHERE tbl_name NOT IN {ours} AND name NOT LIKE '%_readable' AND name <> 'sqlite_sequence' ORDER BY 1"
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
    for umask in ["000", "022", "077", "177"] {
        let dir = tempfile::tempdir().unwrap();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("umask {umask}; exec \"$0\" \"$@\""));
        shell.arg(std::env::current_exe().unwrap());
        let mut command = Process::command_through(shell, "child_makes_files");
        command.env("FOLDER", dir.path());
        Process::run(command);
        let names = listing(dir.path());
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
    assert_eq!(integer(&conn, "SELECT version FROM postbox_schema"), 1);
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
            let bus = Postbox::open(&path)?;
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

/// Publishes through the path in every way that looks at it, and finds one file of that name.
fn use_path(folder: &Path, path: &Path, name: &std::ffi::OsStr) {
    let what = path.display();
    let bus = Postbox::open(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    bus.publish(event("a")).unwrap();
    let mut conn = Connection::open(path).unwrap();
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    bus.publish_in(&tx, event("b")).unwrap_or_else(|error| panic!("{what}: {error}"));
    tx.commit().unwrap();
    drop(conn);
    let own = bus.backup(path);
    assert!(matches!(own, Err(Error::Invalid { field: "dest", .. })), "{what}: {own:?}");
    bus.with_quiesced_file(|file| fs::metadata(file).map(|_| ())).unwrap();
    bus.close().unwrap();
    let files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(files, [name], "{what}");
    let bus = Postbox::open(path).unwrap();
    assert_eq!(bus.stats().unwrap().pending, 2, "{what}");
    bus.close().unwrap();
}

#[test]
fn a_path_is_a_path_whatever_its_characters() {
    use std::os::unix::ffi::OsStrExt;
    let names: [&[u8]; 9] = [
        b"with a space.db",
        b"100%41.db",
        b"what?mode=memory",
        b"a#b&c=d.db",
        b"file:x.db?mode=ro",
        "größe-データ.db".as_bytes(),
        b"quote'd\"and\\back.db",
        b"no-extension",
        b"not-utf8-\xff.db",
    ];
    for name in names {
        let dir = tempfile::tempdir().unwrap();
        let name = std::ffi::OsStr::from_bytes(name);
        use_path(dir.path(), &dir.path().join(name), name);
    }
}

#[test]
fn relative_paths_and_symlinks_lead_to_the_one_file() {
    let outer = tempfile::tempdir().unwrap();
    let folder = |name: &str| -> PathBuf {
        let folder = outer.path().join(name);
        fs::create_dir(&folder).unwrap();
        folder.canonicalize().unwrap()
    };
    let name = std::ffi::OsStr::new("app.db");

    let depth = std::env::current_dir().unwrap().components().count();
    let relative = folder("relative");
    let up: PathBuf = std::iter::repeat_n("..", depth - 1).collect();
    use_path(&relative, &up.join(relative.strip_prefix("/").unwrap()).join("app.db"), name);

    let real = folder("real");
    symlink(&real, outer.path().join("link")).unwrap();
    use_path(&real, &outer.path().join("link/../link/./app.db"), name);

    let target = folder("target");
    fs::write(target.join("app.db"), b"").unwrap();
    symlink(target.join("app.db"), outer.path().join("link.db")).unwrap();
    use_path(&target, &outer.path().join("link.db"), name);
    assert!(!beside(&outer.path().join("link.db"), "-wal").exists());
}

#[test]
fn deleting_an_event_deletes_its_inbox_rows() {
    let dir = tempfile::tempdir().unwrap();
    let boxes: [(Option<TempDir>, Postbox); 2] = [
        (None, Postbox::open_in_memory().unwrap()),
        (Some(tempfile::tempdir().unwrap()), Postbox::open(dir.path().join("app.db")).unwrap()),
    ];
    for (_, bus) in boxes {
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
