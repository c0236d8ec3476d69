//! Copies: made while the box works, and put back.

#[path = "support/files.rs"]
mod support;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postbox::rusqlite::Connection;
use postbox::{Context, Error, Event, EventId, OutboxStatus, Postbox, Result, Subscription, Tx, restore};
use support::{
    LIMIT, Process, Tally, assert_bytes, beside, counting, cp, event, given, integer, listing, manual_clock,
    raw, sound_copy, text, wait_until,
};

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

// ---- backup ----------------------------------------------------------------------------------------------------------

#[test]
fn a_backup_under_load_is_one_moment_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Postbox::open(dir.path().join("app.db")).unwrap();
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

// ---- a quiesced file -------------------------------------------------------------------------------------------------

#[test]
fn a_copy_of_the_quiesced_file_alone_is_complete_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    with_notes(&bus);
    let mut copied = Vec::new();
    let noted = under_load(&bus, |noted| {
        for round in 0..25 {
            let copy = dir.path().join(format!("copy-{round}.db"));
            let (before, during, after) = bus
                .with_quiesced_file(|file| {
                    assert_eq!(file, path.canonicalize().unwrap());
                    let count = || integer(&raw(&path), "SELECT count(*) FROM note");
                    let before = count();
                    cp(file, &copy);
                    Ok((noted.get(), before, count()))
                })
                .unwrap();
            assert_eq!(during, after, "nobody writes meanwhile");
            let found = agreed(&copy);
            assert_eq!(found, during, "the main file alone is complete");
            assert!(found >= i64::try_from(before).unwrap());
            copied.push(found);
        }
    });
    assert!(copied[24] > copied[0], "writers go on afterwards: {copied:?}");
    assert_eq!(i64::try_from(noted).unwrap(), integer(&raw(&path), "SELECT count(*) FROM note"));
}

#[test]
fn writers_of_every_kind_wait_for_a_quiesced_file_and_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let (bus, other) = (Postbox::open(&path).unwrap(), Postbox::open(&path).unwrap());
    let tally = Tally::default();
    bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    let done = Tally::default();
    thread::scope(|scope| {
        bus.with_quiesced_file(|_| {
            for writer in [&bus, &other] {
                scope.spawn(|| {
                    writer.publish(event("a")).unwrap();
                    done.add();
                });
            }
            scope.spawn(|| {
                raw(&path).execute_batch("CREATE TABLE apps (x)").unwrap();
                done.add();
            });
            assert!(!done.reaches(1, Duration::from_millis(200)), "somebody wrote");
            assert_eq!(bus.stats().unwrap().total, 0, "readers go on");
            Ok(())
        })
        .unwrap();
        done.wait_for(3);
    });
    tally.wait_for(2);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

#[test]
fn what_the_copying_closure_says_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    assert_eq!(bus.with_quiesced_file(|_| Ok(17)).unwrap(), 17);
    let full = || io::Error::new(io::ErrorKind::StorageFull, "no room");
    match bus.with_quiesced_file(|_| -> io::Result<()> { Err(full()) }) {
        Err(Error::Io { path: named, source, .. }) => {
            assert_eq!(named, path.canonicalize().unwrap());
            assert_eq!(
                (source.kind(), source.to_string()),
                (io::ErrorKind::StorageFull, "no room".to_owned())
            );
        }
        other => panic!("{other:?}"),
    }
    let inside = bus.with_quiesced_file(|_| Ok(bus.publish(event("a")))).unwrap();
    assert!(matches!(inside, Err(Error::Reentrant { .. })), "{inside:?}");
    bus.publish(event("a")).unwrap();
    assert_eq!(bus.stats().unwrap().total, 1);

    let memory = Postbox::open_in_memory().unwrap();
    let refused = memory.with_quiesced_file(|_| -> io::Result<()> { panic!("must not run") });
    assert!(matches!(refused, Err(Error::InMemory { .. })), "{refused:?}");
}

#[test]
fn a_long_reader_keeps_a_file_from_being_quiesced_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::builder().busy_timeout(Duration::from_millis(150)).open(&path).unwrap();
    let reader = raw(&path);
    reader.execute_batch("BEGIN").unwrap();
    integer(&reader, "SELECT count(*) FROM outbox_event");
    bus.publish(event("a")).unwrap();
    let start = Instant::now();
    match bus.with_quiesced_file(|_| -> io::Result<()> { panic!("must not run") }) {
        Err(Error::Busy { detail, .. }) => assert!(detail.contains("reads an older state"), "{detail}"),
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() < Duration::from_secs(3));
    reader.execute_batch("COMMIT").unwrap();
    bus.with_quiesced_file(|_| Ok(())).unwrap();
    bus.publish(event("a")).unwrap();
}

// ---- restore ---------------------------------------------------------------------------------------------------------

#[test]
fn a_restored_file_is_the_backup() {
    let dir = tempfile::tempdir().unwrap();
    let backup = boxed(dir.path(), "backup.db", 5);
    let before = fs::read(&backup).unwrap();
    let app = boxed(dir.path(), "app.db", 9);
    fs::set_permissions(&app, fs::Permissions::from_mode(0o644)).unwrap();
    restore(&backup, &app).unwrap();
    assert_eq!(agreed(&app), 5);
    assert_bytes(&backup, &before, "the backup");

    // Where nothing was, over what is no database, and through links.
    restore(&backup, dir.path().join("new.db")).unwrap();
    assert_eq!(agreed(&dir.path().join("new.db")), 5);
    assert_eq!(fs::metadata(dir.path().join("new.db")).unwrap().mode() & 0o777, 0o600);
    fs::write(dir.path().join("junk.db"), b"junk").unwrap();
    restore(&backup, dir.path().join("junk.db")).unwrap();
    assert_eq!(agreed(&dir.path().join("junk.db")), 5);
    fs::create_dir(dir.path().join("elsewhere")).unwrap();
    let real = boxed(&dir.path().join("elsewhere"), "real.db", 2);
    symlink(&backup, dir.path().join("from.db")).unwrap();
    symlink(&real, dir.path().join("to.db")).unwrap();
    restore(dir.path().join("from.db"), dir.path().join("to.db")).unwrap();
    assert!(fs::symlink_metadata(dir.path().join("to.db")).unwrap().is_symlink());
    assert_eq!(agreed(&real), 5);
    let names = ["app.db", "backup.db", "elsewhere", "from.db", "junk.db", "new.db", "to.db"];
    assert_eq!(listing(dir.path()), names);

    let bus = Postbox::open(&app).unwrap();
    bus.publish(event("a")).unwrap();
    assert_eq!(bus.stats().unwrap().total, 6);
}

/// A -wal that is left beside a restored file would be read into it: that once revived 200 rows of the old file.
#[test]
fn a_stale_wal_does_not_revive_the_old_file() {
    for with_main in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let backup = boxed(dir.path(), "backup.db", 5);
        let app = dir.path().join("app.db");
        {
            // An application that died: its -wal holds 200 rows that the main file does not.
            let alive = boxed(dir.path(), "alive.db", 1);
            let bus = Postbox::open(&alive).unwrap();
            note_many(&bus, 200);
            if with_main {
                cp(&alive, &app);
            }
            cp(&beside(&alive, "-wal"), &beside(&app, "-wal"));
            cp(&beside(&alive, "-shm"), &beside(&app, "-shm"));
            bus.close().unwrap();
            fs::remove_file(&alive).unwrap();
        }
        assert!(fs::metadata(beside(&app, "-wal")).unwrap().len() > 100_000);
        fs::write(beside(&app, "-journal"), b"stale").unwrap();
        restore(&backup, &app).unwrap();
        assert_eq!(listing(dir.path()), ["app.db", "backup.db"]);
        assert_eq!(agreed(&app), 5);
    }
}

#[test]
fn restoring_voids_the_leases_of_the_backup() {
    let dir = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let open = |name: &str| Postbox::builder().clock(clock.clone()).open(dir.path().join(name)).unwrap();
    let bus = open("app.db");
    let dest = dir.path().join("backup.db");
    let tally = Tally::default();
    let (counted, to) = (tally.clone(), dest.clone());
    bus.subscribe(Subscription::new("claimed", "c", move |_: &Event, cx: &Context<'_>| {
        if !to.exists() {
            cx.postbox().backup(&to)?; // while it is being processed
        }
        counted.add();
        Ok(())
    }))
    .unwrap();
    let claimed = bus.publish(event("claimed")).unwrap();
    let later = bus.publish(event("claimed").delay(Duration::from_mins(1))).unwrap();
    assert_eq!(bus.drain().unwrap(), 1);
    bus.close().unwrap();
    assert_eq!(text(&raw(&dest), "SELECT status FROM outbox_event ORDER BY seq LIMIT 1"), "processing");

    restore(&dest, dir.path().join("app.db")).unwrap();
    let bus = open("app.db");
    let row = bus.outbox().get(claimed).unwrap().unwrap();
    assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, 1));
    assert!(row.available_at <= bus.outbox().get(later).unwrap().unwrap().created_at);
    bus.subscribe(Subscription::new("claimed", "c", counting(&tally))).unwrap();
    assert_eq!(bus.drain().unwrap(), 1, "it is due at once, and the delayed one is not");
    assert_eq!(tally.get(), 2);
    clock.advance(Duration::from_mins(1));
    assert_eq!(bus.drain().unwrap(), 1);
}

#[track_caller]
fn assert_in_use(result: Result<()>) {
    match result {
        Err(Error::Busy { detail, .. }) => assert!(detail.contains("is open"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_somebody_has_open_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let backup = boxed(dir.path(), "backup.db", 5);
    let app = boxed(dir.path(), "app.db", 9);

    let bus = Postbox::open(&app).unwrap();
    assert_in_use(restore(&backup, &app));
    bus.transaction(note).unwrap();
    assert_eq!(bus.stats().unwrap().total, 10);
    bus.close().unwrap();
    assert_eq!(agreed(&app), 10);

    let reader: Connection = raw(&app);
    integer(&reader, "SELECT count(*) FROM note");
    assert_in_use(restore(&backup, &app));
    drop(reader);

    let mut command = Process::command("child_has_it_open");
    command.env("FILE", &app);
    let mut child = Process::spawn(command);
    let ready = dir.path().join("app.db.ready");
    wait_until("the child has it open", || ready.exists());
    assert_in_use(restore(&backup, &app));
    drop(child.0.stdin.take());
    assert!(child.0.wait().unwrap().success());
    fs::remove_file(ready).unwrap();

    assert_eq!(agreed(&app), 11);
    assert_eq!(listing(dir.path()), ["app.db", "backup.db"]);
    restore(&backup, &app).unwrap();
    assert_eq!(agreed(&app), 5);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_has_it_open() {
    let Some(path) = given("FILE").map(PathBuf::from) else { return };
    let bus = Postbox::open(&path).unwrap();
    fs::write(beside(&path, ".ready"), b"").unwrap();
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap(); // until the parent closes it
    bus.transaction(note).unwrap();
    bus.close().unwrap();
}

#[test]
fn what_is_no_sound_backup_is_refused_and_the_target_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (sources, targets) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&sources).unwrap();
    fs::create_dir(&targets).unwrap();
    let app = boxed(&targets, "app.db", 9);
    let before = fs::read(&app).unwrap();
    let whole = fs::read(boxed(&sources, "sound.db", 300)).unwrap();

    let write = |name: &str, bytes: &[u8]| {
        fs::write(sources.join(name), bytes).unwrap();
        sources.join(name)
    };
    let text_file = write(
        "text.db",
        b"no database at all, but longer than a header of one hundred bytes: \n".repeat(9).as_slice(),
    );
    let empty = write("empty.db", b"");
    let cut = write("cut.db", &whole[..whole.len() / 2]);
    let mut damaged = whole.clone();
    let pages = damaged.len() / 4_096;
    for page in (pages / 2)..pages {
        damaged[page * 4_096..page * 4_096 + 200].fill(0x5a);
    }
    let damaged = write("damaged.db", &damaged);
    let foreign = sources.join("foreign.db");
    raw(&foreign).execute_batch("CREATE TABLE t (x)").unwrap();
    let newer = write("newer.db", &whole);
    raw(&newer).execute("UPDATE postbox_schema SET version = 99", []).unwrap();

    let check = |from: &Path, is_right: fn(&Error) -> bool| {
        match restore(from, &app) {
            Err(error) if is_right(&error) => {
                let said = error.to_string();
                let name = from.file_name().unwrap().to_str().unwrap();
                assert!(said.contains(name) || matches!(error, Error::SchemaTooNew { .. }), "{name}: {said}");
            }
            other => panic!("{}: {other:?}", from.display()),
        }
        assert_bytes(&app, &before, "the target");
        assert_eq!(listing(&targets), ["app.db"]);
        let new = targets.join("new.db");
        assert!(restore(from, &new).is_err());
        assert_eq!(listing(&targets), ["app.db"]);
    };
    check(&text_file, |error| matches!(error, Error::NotADatabase { .. }));
    check(&empty, |error| matches!(error, Error::CannotOpen { .. } | Error::NotADatabase { .. }));
    check(&cut, |error| matches!(error, Error::Damaged { .. }));
    check(&damaged, |error| matches!(error, Error::Damaged { .. }));
    check(&foreign, |error| matches!(error, Error::CannotOpen { .. }));
    check(&newer, |error| matches!(error, Error::SchemaTooNew { found: 99, .. }));
    check(
        &sources.join("missing.db"),
        |error| matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound),
    );
    check(&sources, |error| matches!(error, Error::CannotOpen { .. } | Error::Io { .. }));
}

#[test]
fn a_backup_is_not_restored_onto_itself_nor_into_a_folder_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let backup = boxed(dir.path(), "backup.db", 5);
    let before = fs::read(&backup).unwrap();
    symlink(&backup, dir.path().join("link.db")).unwrap();
    for to in ["backup.db", "link.db", "./backup.db"] {
        match restore(&backup, dir.path().join(to)) {
            Err(Error::Invalid { field: "to", .. }) => {}
            other => panic!("{to}: {other:?}"),
        }
    }
    assert!(matches!(restore(&backup, dir.path()), Err(Error::CannotOpen { .. })));
    match restore(&backup, dir.path().join("missing/app.db")) {
        Err(Error::Io { path, .. }) => assert!(path.ends_with("missing")),
        other => panic!("{other:?}"),
    }
    assert_bytes(&backup, &before, "the backup");
    assert_eq!(listing(dir.path()), ["backup.db", "link.db"]);
}

/// As on a CD, or in an archive folder. Permissions do not bind root: the test runs as nobody where it is root.
#[test]
fn a_backup_that_cannot_be_written_to_is_restored_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("archive, 100% of it?");
    let home = dir.path().join("home");
    fs::create_dir(&archive).unwrap();
    fs::create_dir(&home).unwrap();
    let backup = boxed(&archive, "backup.db", 5);
    let before = fs::read(&backup).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(dir.path(), 0o755);
    mode(&home, 0o777);
    mode(&backup, 0o444);
    mode(&archive, 0o555);
    let mut command: Command = Process::command("child_restores");
    command.env("FROM", &backup).env("TO", home.join("app.db"));
    if fs::metadata(&home).unwrap().uid() == 0 {
        command.uid(65_534).gid(65_534);
    }
    match command.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stdout));
            assert_eq!(agreed(&home.join("app.db")), 5);
        }
        Err(error) => eprintln!("not tested: nobody cannot run {:?} ({error})", command.get_program()),
    }
    assert_bytes(&backup, &before, "the backup");
    assert_eq!(listing(&archive), ["backup.db"]);
    mode(&archive, 0o755);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_restores() {
    let (Some(from), Some(to)) = (given("FROM"), given("TO")) else { return };
    restore(from, to).unwrap();
}
