//! Copies: made while the box works, and put back.

#[path = "support/files.rs"]
mod support;

#[path = "backup/quiesced.rs"]
mod quiesced;
#[path = "backup/restored.rs"]
mod restored;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, thread};

use postbox::{Error, EventId, OutboxStatus, Postbox, Result, Subscription, Tx};

use crate::support::{Tally, beside, counting, event, integer, listing, sound_copy, unhurried};

/// A row of the application's and its event, in one transaction.
fn note(tx: &Tx<'_>) -> Result<EventId> {
    let id = tx.publish(event("noted"))?;
    tx.execute("INSERT INTO note VALUES (?1)", [id.as_uuid()])?;
    Ok(id)
}

fn with_notes(bus: &Postbox) {
    bus.transaction(|tx| -> Result<()> { Ok(tx.execute_batch("CREATE TABLE note (id BLOB)")?) }).unwrap();
}

fn note_many(bus: &Postbox, count: usize) {
    for _ in 0..count {
        bus.transaction(note).unwrap();
    }
}

/// Checks a lone file: sound, and every note has its event and every event its note. How many.
fn agreed(path: &Path) -> i64 {
    let conn = sound_copy(path);
    let notes = integer(&conn, "SELECT count(*) FROM note");
    assert_eq!(integer(&conn, "SELECT count(*) FROM outbox_event"), notes);
    assert_eq!(integer(&conn, "SELECT count(*) FROM outbox_event JOIN note USING (id)"), notes);
    notes
}

/// Four threads that note, until the closure ends. How often they were told that it was done.
fn under_load(bus: &Postbox, f: impl FnOnce(&Tally)) -> u64 {
    let (stop, noted) = (AtomicBool::new(false), Tally::default());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    bus.transaction(note).unwrap();
                    noted.add();
                }
            });
        }
        noted.wait_for(8);
        // Also when an assertion in it fails: the threads must end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(&noted)));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    noted.get()
}

fn boxed(folder: &Path, name: &str, events: usize) -> PathBuf {
    let path = folder.join(name);
    let bus = Postbox::open(&path).unwrap();
    with_notes(&bus);
    note_many(&bus, events);
    bus.close().unwrap();
    path
}

#[test]
fn a_backup_under_load_is_one_moment_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let bus = unhurried().open(dir.path().join("app.db")).unwrap();
    with_notes(&bus);
    let dest = dir.path().join("backup.db");
    let mut copied = Vec::new();
    let noted = under_load(&bus, |noted| {
        for _ in 0..12 {
            let before = noted.get();
            bus.backup(&dest).unwrap();
            let found = agreed(&dest);
            assert!(found >= i64::try_from(before).unwrap(), "{found} of at least {before}");
            copied.push(found);
        }
    });
    assert!(copied.is_sorted(), "{copied:?}");
    assert!(copied[11] > copied[0], "nobody could write meanwhile: {copied:?}");
    bus.backup(&dest).unwrap();
    assert_eq!(u64::try_from(agreed(&dest)).unwrap(), noted);
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db", "backup.db"], "no temporary file is left");
}

#[test]
fn a_backup_replaces_the_old_one_for_its_owner_alone_and_is_a_box() {
    let dir = tempfile::tempdir().unwrap();
    for memory in [false, true] {
        let folder = dir.path().join(format!("{memory}"));
        fs::create_dir(&folder).unwrap();
        let bus =
            if memory { Postbox::open_in_memory() } else { Postbox::open(folder.join("app.db")) }.unwrap();
        with_notes(&bus);
        let id = bus.transaction(note).unwrap();
        bus.update_settings(|settings| settings.batch_size = 3).unwrap();
        let dest = folder.join("backup.db");
        fs::write(&dest, b"an old file of any kind").unwrap();
        fs::set_permissions(&dest, fs::Permissions::from_mode(0o666)).unwrap();
        bus.backup(&dest).unwrap();
        assert_eq!(fs::metadata(&dest).unwrap().mode() & 0o777, 0o600);
        assert_eq!(agreed(&dest), 1);

        bus.transaction(note).unwrap(); // the two go separate ways
        let copy = Postbox::open(&dest).unwrap();
        assert_eq!(copy.settings().batch_size, 3);
        assert_eq!(copy.stats().unwrap().total, 1);
        let tally = Tally::default();
        copy.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
        assert_eq!(copy.drain().unwrap(), 1);
        assert_eq!(copy.outbox().get(id).unwrap().unwrap().status, OutboxStatus::Processed);
        copy.close().unwrap();
        bus.close().unwrap();
        let names: &[&str] = if memory { &["backup.db"] } else { &["app.db", "backup.db"] };
        assert_eq!(listing(&folder), names);
    }
}

#[test]
fn a_backup_is_refused_where_it_would_do_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    bus.publish(event("a")).unwrap();
    symlink(&path, dir.path().join("link.db")).unwrap();
    fs::hard_link(&path, dir.path().join("hard.db")).unwrap();
    let refused = |dest: &Path| match bus.backup(dest) {
        Err(Error::Invalid { field: "dest", reason }) => reason,
        other => panic!("{}: {other:?}", dest.display()),
    };
    for own in ["app.db", "link.db", "hard.db", "./app.db"] {
        assert_eq!(refused(&dir.path().join(own)), "is the box's own file");
    }
    let open = dir.path().join("open.db");
    let other = Postbox::open(&open).unwrap();
    let before = other.publish(event("b")).unwrap();
    assert!(refused(&open).contains("-wal"));
    assert_eq!(other.outbox().get(before).unwrap().unwrap().event_name, "b");

    fs::write(beside(&dir.path().join("new.db"), "-wal"), b"stale").unwrap();
    assert!(refused(&dir.path().join("new.db")).contains("-wal"));
    assert!(!dir.path().join("new.db").exists());

    assert!(matches!(bus.backup(dir.path()), Err(Error::CannotOpen { .. })));
    match bus.backup(dir.path().join("missing/backup.db")) {
        Err(Error::Io { path, .. }) => assert!(path.ends_with("missing"), "{}", path.display()),
        other => panic!("{other:?}"),
    }
    let inside = bus.transaction(|_| -> Result<_> { Ok(bus.backup(dir.path().join("b.db"))) }).unwrap();
    assert!(matches!(inside, Err(Error::Reentrant { .. })), "{inside:?}");
    bus.publish(event("c")).unwrap();
    assert_eq!(bus.stats().unwrap().total, 2);
}
