//! What is refused is left as it was.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use postbox::{Error, Postbox};

use crate::boxed;
use crate::support::{Process, assert_bytes, beside, cp, given, listing, raw};

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

    let mut command = Process::command("refused::child_opens_as_nobody");
    command.env("FOLDER", dir.path());
    Process::run_unprivileged(command, dir.path());
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
        Err(Error::SchemaTooNew { found, supported }) => assert_eq!((found, supported), (99, 6)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_newer_schema_is_refused_without_a_write() {
    for mode in ["WAL", "DELETE"] {
        let dir = tempfile::tempdir().unwrap();
        let path = boxed(dir.path(), "app.db");
        let conn = raw(&path);
        conn.execute("UPDATE postbox_schema SET version = 99", []).unwrap();
        conn.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(())).unwrap();
        drop(conn);
        let before = fs::read(&path).unwrap();
        assert_too_new(&path);
        assert_bytes(&path, &before, mode);
        assert_eq!(listing(dir.path()), ["app.db"], "{mode}");
    }
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
        "CREATE TABLE t (x); CREATE INDEX outbox_event_due ON t (x)",
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
