//! The file held still, for a copy by another process.

use std::time::{Duration, Instant};
use std::{io, thread};

use postbox::{Error, Postbox, Subscription};

use crate::support::{LIMIT, Tally, counting, cp, event, integer, raw, unhurried, wait_until};
use crate::{agreed, under_load, with_notes};

#[test]
fn a_copy_of_the_quiesced_file_alone_is_complete_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = unhurried().open(&path).unwrap();
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
    let (bus, other) = (unhurried().open(&path).unwrap(), unhurried().open(&path).unwrap());
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

/// A checkpoint under way answers neither how long the -wal is nor how much of it is done: that was taken for done.
#[test]
fn a_file_that_somebody_is_just_checkpointing_is_not_quiesced_yet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::builder().busy_timeout(Duration::from_millis(300)).open(&path).unwrap();
    bus.publish(event("a")).unwrap();
    let reader = raw(&path);
    reader.execute_batch("BEGIN; SELECT count(*) FROM outbox_event").unwrap();
    let checkpoint = |conn: &postbox::rusqlite::Connection, mode: &str| -> bool {
        conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get(0)).unwrap()
    };
    thread::scope(|scope| {
        // It waits for the reader, and nobody else can do one meanwhile. It does not wait for another checkpoint, such as the
        // one below by which it is noticed: that it was in the way is no reason to give up.
        scope.spawn(|| wait_until("the reader is gone", || !checkpoint(&raw(&path), "RESTART")));
        let other = raw(&path);
        wait_until("the checkpoint is under way", || checkpoint(&other, "PASSIVE"));
        let quiesced = bus.with_quiesced_file(|_| -> io::Result<()> { panic!("it is not complete") });
        assert!(matches!(quiesced, Err(Error::Busy { .. })), "{quiesced:?}");
        reader.execute_batch("COMMIT").unwrap();
    });
    bus.with_quiesced_file(|_| Ok(())).unwrap();
}
