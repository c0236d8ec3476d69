//! A backup put in the place of a file.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use postbox::rusqlite::Connection;
use postbox::{Context, Error, Event, OutboxStatus, Postbox, Result, Subscription, restore};

use crate::support::{
    Process, Tally, assert_bytes, beside, counting, cp, event, given, integer, listing, manual_clock, raw,
    text, wait_until,
};
use crate::{agreed, boxed, note, note_many};

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

    let mut command = Process::command("restored::child_has_it_open");
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
    // Index leaves whose last entry leads to another row: only a full check finds it.
    let mut subtle = whole.clone();
    for page in subtle.chunks_mut(4_096).skip(1).filter(|page| page[0] == 0x0a) {
        page[4_095] ^= 1;
    }
    let subtle = write("subtle.db", &subtle);
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
    check(&subtle, |error| matches!(error, Error::Damaged { .. }));
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
    let mut command = Process::command("restored::child_restores");
    command.env("FROM", &backup).env("TO", home.join("app.db"));
    if Process::run_unprivileged(command, &home) {
        assert_eq!(agreed(&home.join("app.db")), 5);
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
