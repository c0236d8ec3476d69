//! Opening, backing up and restoring, cut off by a kill: there is the old file or the whole new one.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use postbox::{Postbox, Result, restore};

use crate::support::{Process, cp, event, given, integer, listing, raw, text};
use crate::{Moments, child, lines_of, next_said, say};

fn make(path: &Path, events: usize) {
    let bus = Postbox::open(path).unwrap();
    bus.publish_all((0..events).map(|_| event("a"))).unwrap();
    bus.close().unwrap();
}

/// A lone copy of the file, if it is sound: how many events are in it.
fn events_in(path: &Path) -> i64 {
    let conn = raw(path);
    assert_eq!(text(&conn, "PRAGMA integrity_check"), "ok");
    integer(&conn, "SELECT count(*) FROM outbox_event")
}

/// At some moment of the first `within`.
fn kill(process: &mut Process, moments: &mut Moments, within: Duration) {
    next_said(&mut lines_of(process), "ready").unwrap();
    thread::sleep(within.mul_f64(f64::from(u32::try_from(moments.next(1_000)).unwrap()) / 1_000.0));
    process.0.kill().unwrap();
    process.0.wait().unwrap();
}

/// So many kills within this time, and then more, each within twice as much, until `is_enough`: a machine may be slow.
fn kill_again_and_again(
    rounds: u32,
    within: Duration,
    mut round: impl FnMut(Duration),
    is_enough: impl Fn() -> bool,
) -> bool {
    (0..rounds).for_each(|_| round(within));
    let mut longer = (1..=10).map(|doubled| within * (1 << doubled));
    is_enough()
        || longer.any(|within| {
            round(within);
            is_enough()
        })
}

#[test]
fn a_first_open_that_is_killed_leaves_a_file_that_opens() {
    let mut moments = Moments(3);
    for round in 0..15 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let mut process = Process::spawn(child("cut_off::child_opens", &path));
        kill(&mut process, &mut moments, Duration::from_millis(12));
        let bus = Postbox::open(&path).unwrap_or_else(|error| panic!("round {round}: {error}"));
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        bus.close().unwrap();
        // A lock that was not yet in place may stay; nobody takes it for one.
        let left = listing(dir.path());
        assert!(left.iter().all(|name| name == "app.db" || name.starts_with("app.db-postbox-")), "{left:?}");
    }
}

#[test]
#[ignore = "run as a process by another test"]
fn child_opens() {
    let Some(path) = given("FILE") else { return };
    say("ready");
    loop {
        let bus = Postbox::open(&path).unwrap();
        bus.close().unwrap();
        fs::remove_file(&path).unwrap(); // and again, as a new one
    }
}

#[test]
fn a_backup_that_is_killed_leaves_the_old_one_or_the_whole_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, backup) = (dir.path().join("app.db"), dir.path().join("backup.db"));
    make(&path, 400);
    let bus = Postbox::open(&path).unwrap();
    bus.backup(&backup).unwrap();
    bus.close().unwrap();
    let mut moments = Moments(4);
    let before = Cell::new(400);
    let round = |within| {
        let mut process = Process::spawn(child("cut_off::child_backs_up", &path));
        kill(&mut process, &mut moments, within);
        let copy = dir.path().join("copy.db");
        cp(&backup, &copy);
        let found = events_in(&copy);
        assert!(found >= before.get(), "{found} after {}", before.get());
        before.set(found);
    };
    let is_any_finished = kill_again_and_again(15, Duration::from_millis(20), round, || before.get() > 400);
    assert!(is_any_finished, "no backup was ever finished");
}

#[test]
#[ignore = "run as a process by another test"]
fn child_backs_up() {
    let Some(path) = given("FILE") else { return };
    let bus = Postbox::open(&path).unwrap();
    say("ready");
    loop {
        bus.publish(event("a")).unwrap();
        bus.backup(Path::new(&path).with_file_name("backup.db")).unwrap();
    }
}

#[test]
fn a_restore_that_is_killed_leaves_the_old_file_or_the_backup() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    make(&path, 1);
    make(&dir.path().join("few.db"), 20);
    make(&dir.path().join("many.db"), 600);
    let mut moments = Moments(5);
    let seen = [Cell::new(0), Cell::new(0)];
    let round = |within| {
        let mut process = Process::spawn(child("cut_off::child_restores", &path));
        kill(&mut process, &mut moments, within);
        let bus = Postbox::open(&path).unwrap_or_else(|error| panic!("after {seen:?}: {error}"));
        match bus.stats().unwrap().total {
            20 => seen[0].update(|times| times + 1),
            600 => seen[1].update(|times| times + 1),
            1 => {}
            total => panic!("after {seen:?}: {total} events are in neither"),
        }
        bus.close().unwrap();
        assert_eq!(text(&raw(&path), "PRAGMA integrity_check"), "ok");
    };
    let are_both_seen = || seen.iter().all(|times| times.get() > 0);
    assert!(kill_again_and_again(20, Duration::from_millis(60), round, are_both_seen), "{seen:?}");
}

#[test]
#[ignore = "run as a process by another test"]
fn child_restores() -> Result<()> {
    let Some(path) = given("FILE") else { return Ok(()) };
    let from = |name: &str| Path::new(&path).with_file_name(name);
    restore(from("few.db"), &path)?;
    say("ready");
    loop {
        restore(from("many.db"), &path)?;
        restore(from("few.db"), &path)?;
    }
}
