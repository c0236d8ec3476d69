//! What cannot be shown is refused with the reason, and left as it was.

use std::fs;
use std::path::Path;

use postbox::{Error, Postbox};

use crate::support::{Process, beside, cp, given, listing, raw};
use crate::{assert_untouched, bytes_of, closed};

#[track_caller]
fn reason(path: &Path) -> String {
    match Postbox::open_read_only(path) {
        Err(Error::CannotOpen { path: named, reason }) => {
            assert_eq!(named, path.canonicalize().unwrap());
            reason
        }
        other => panic!("{}: {other:?}", path.display()),
    }
}

#[test]
fn a_file_without_postboxes_tables_is_refused_and_gets_none() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("empty.db"), b"").unwrap();
    for (name, mode) in [("app.db", "DELETE"), ("wal.db", "WAL")] {
        let conn = raw(&dir.path().join(name));
        conn.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(())).unwrap();
        conn.execute_batch("CREATE TABLE t (x)").unwrap();
    }
    for name in ["empty.db", "app.db", "wal.db"] {
        let path = dir.path().join(name);
        let before = bytes_of(&path);
        assert!(reason(&path).contains("no tables of postbox"), "{name}");
        assert_untouched(&path, &before);
    }
    assert_eq!(listing(dir.path()), ["app.db", "empty.db", "wal.db"]);
}

#[test]
fn another_releases_schema_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = closed(dir.path(), "app.db");
    let now =
        raw(&path).query_row("SELECT version FROM postbox_schema", [], |row| row.get::<_, u32>(0)).unwrap();
    let set = |version: u32| {
        raw(&path).execute("UPDATE postbox_schema SET version = ?1", [version]).unwrap();
        let before = bytes_of(&path);
        let refused = Postbox::open_read_only(&path).unwrap_err();
        assert_untouched(&path, &before);
        assert_eq!(listing(dir.path()), ["app.db"]);
        refused
    };
    match set(1) {
        Error::SchemaTooOld { found, required } => assert_eq!((found, required), (1, now)),
        other => panic!("{other:?}"),
    }
    let said = set(1).to_string();
    assert!(said.contains("version 1") && said.contains("postbox upgrade"), "{said}");
    fs::remove_file(&path).unwrap();
    raw(&path).execute_batch(include_str!("../data/schema-1.sql")).unwrap();
    assert!(matches!(Postbox::open_read_only(&path), Err(Error::SchemaTooOld { found: 1, .. })));
    Postbox::open(&path).unwrap().close().unwrap();
    assert_eq!(Postbox::open_read_only(&path).unwrap().stats().unwrap().total, 0);
    match set(99) {
        Error::SchemaTooNew { found, supported } => assert_eq!((found, supported), (99, now)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_database_or_not_there_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    match Postbox::open_read_only(&path) {
        Err(Error::Io { path: named, source, .. }) => {
            assert_eq!(
                (named, source.kind()),
                (path.canonicalize().unwrap_or(path.clone()), std::io::ErrorKind::NotFound)
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(listing(dir.path()).is_empty(), "nothing is made");
    for bytes in [b"hello".to_vec(), b"Dear diary, this is no database.\n".repeat(200)] {
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(Postbox::open_read_only(&path), Err(Error::NotADatabase { .. })));
        assert_eq!((fs::read(&path).unwrap(), listing(dir.path())), (bytes, vec!["app.db".to_owned()]));
    }
    assert!(matches!(Postbox::open_read_only(dir.path()), Err(Error::CannotOpen { .. })));
    assert!(matches!(Postbox::open_read_only(":memory:"), Err(Error::CannotOpen { .. })));
}

/// Reading it as it is would show half a transaction; rolling it back would be a write.
#[test]
fn a_transaction_that_broke_off_in_rollback_mode_is_not_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = closed(dir.path(), "app.db");
    let mut command = Process::command("refused::child_dies_inside_a_transaction");
    command.env("DATABASE", &path);
    let mut child = Process::spawn(command);
    child.0.wait().unwrap();
    let torn = dir.path().join("torn.db");
    cp(&path, &torn);
    cp(&beside(&path, "-journal"), &beside(&torn, "-journal"));
    let (before, journal) = (bytes_of(&torn), fs::read(beside(&torn, "-journal")).unwrap());
    assert!(reason(&torn).contains("-journal holds a transaction that broke off"));
    assert_untouched(&torn, &before);
    assert_eq!(fs::read(beside(&torn, "-journal")).unwrap(), journal);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_dies_inside_a_transaction() {
    let Some(path) = given("DATABASE") else { return };
    let conn = raw(Path::new(&path));
    conn.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).unwrap();
    // So that pages come into the file, and the journal with them, before the end.
    conn.execute_batch(
        "PRAGMA cache_size = 5; CREATE TABLE filler (x);
         BEGIN IMMEDIATE; UPDATE outbox_event SET last_error = 'torn';
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
         INSERT INTO filler SELECT randomblob(1000) FROM n;",
    )
    .unwrap();
    std::process::abort();
}
