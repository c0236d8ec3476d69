//! Memory does not grow with what waits: real processes publish and work through a backlog, and read their own peak.
//!
//! `POSTBOX_EVENTS` says how many small events wait (50,000 where it is not set; 1,000,000 in the long form),
//! `POSTBOX_LARGE` how many with a payload at the cap of 1 MiB (200).
//!
//! What a process needs is made of: the program itself and its threads (about 10 MiB), SQLite's page cache (8 MB for the
//! writer and 2 MB for each reader), the events of a batch with what parsing them takes, and the group of one commit. What
//! `publish_all` is given lies in memory as a whole: that is the caller's own choice, here 500 small events at a time.
#![cfg(target_os = "linux")]

#[path = "support/children.rs"]
mod children;
#[path = "support/files.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use postbox::{Context, Event, HandlerResult, NewEvent, Postbox, Result, Settings, Subscription, Tx};
use serde_json::json;

use crate::children::{child, lines_of, next_said, say};
use crate::support::{LIMIT, Process, Tally, given, integer, raw};

const MIB: u64 = 1 << 20;

// About one and a half times what was seen, in a debug build with glibc's allocator.

/// Whatever the number of small events: 15 to 18 MiB were seen with 50,000 and with 1,000,000; 21 where as many names are held.
const SMALL_MAX: u64 = 28 * MIB;

/// One payload at the cap at a time, as a value and as text: 21 MiB were seen.
const LARGE_PUBLISHED_MAX: u64 = 32 * MIB;

/// Up to 50 payloads at the cap (the startup batch) as text and then parsed, three copies of each at the most while the
/// allocator keeps what one thread has freed from the others: 122 to 162 MiB were seen, and 30 MiB with batches of 10.
const LARGE_MAX: u64 = 240 * MIB;

fn number(variable: &str, otherwise: u64) -> u64 {
    given(variable).map_or(otherwise, |number| number.parse().expect("a number"))
}

fn small_events() -> u64 {
    number("POSTBOX_EVENTS", 50_000)
}

fn large_events() -> u64 {
    number("POSTBOX_LARGE", 200)
}

/// The most memory that this process has had at once.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Runs a child on the file to its end. Its peak.
#[track_caller]
fn peak_of(entry: &str, path: &Path, what: &str) -> u64 {
    let mut command = child(entry, path);
    command.env("WHAT", what);
    let mut process = Process::spawn(command);
    let mut lines = lines_of(&mut process);
    let peak: u64 = next_said(&mut lines, "peak=").expect("it came to its end").parse().unwrap();
    assert!(process.0.wait().unwrap().success());
    eprintln!("{entry} {what}: {}.{} MiB", peak / MIB, peak % MIB * 10 / MIB);
    peak
}

fn open_with_effects(path: &Path) {
    let bus = Postbox::open(path).unwrap();
    bus.transaction(|tx| -> Result<()> { Ok(tx.execute_batch("CREATE TABLE effect (n INTEGER)")?) }).unwrap();
    bus.close().unwrap();
}

/// Publishes in one process; a second works through half of it with a worker, a third through the rest with `drain`.
#[track_caller]
fn assert_bounded(what: &str, events: u64, publishing_max: u64, working_max: u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    open_with_effects(&path);
    let published = peak_of("child_publishes", &path, what);
    let worked = peak_of("child_works", &path, "half");
    let drained = peak_of("child_drains", &path, "rest");
    let conn = raw(&path);
    for count in ["outbox_event WHERE status = 'processed'", "outbox_event", "effect"] {
        let counted = integer(&conn, &format!("SELECT count(*) FROM {count}"));
        assert_eq!(counted.unsigned_abs(), events, "{count}");
    }
    assert!(published < publishing_max, "publishing {what} events took {published} bytes");
    assert!(worked < working_max, "a worker on {what} events took {worked} bytes");
    assert!(drained < working_max, "draining {what} events took {drained} bytes");
}

#[test]
fn a_backlog_of_small_events_is_published_and_worked_through_in_bounded_memory() {
    assert_bounded("small", small_events(), SMALL_MAX, SMALL_MAX);
}

#[test]
fn payloads_at_the_cap_that_wait_in_number_are_worked_through_in_bounded_memory() {
    assert_bounded("large", large_events(), LARGE_PUBLISHED_MAX, LARGE_MAX);
}

/// Who looks for a first subscriber read the names of all that are held into memory.
#[test]
fn held_events_of_as_many_names_are_looked_through_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    Postbox::open(&path).unwrap().close().unwrap();
    let inserted = raw(&path).execute(
        "WITH RECURSIVE number (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM number WHERE n < 60000)
         INSERT INTO outbox_event (id, available_at, created_at, event_name, source_module, aggregate_type, aggregate_id, payload)
         SELECT randomblob(16), 253402300799999999, 1, printf('held.%0245d', n), 'tests', 'Thing', n, 'null' FROM number",
        [],
    );
    assert_eq!(inserted.unwrap(), 60_000);
    let looked = peak_of("child_looks_for_one_that_is_held", &path, "one of 60,000");
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM outbox_event WHERE status = 'processed'"), 1);
    assert!(looked < SMALL_MAX, "{looked} bytes");
}

#[test]
#[ignore = "run as a process by another test"]
fn child_looks_for_one_that_is_held() {
    let Some(path) = given("FILE") else { return };
    let bus = Postbox::open(path).unwrap();
    let found = Tally::default();
    let name = format!("held.{:0245}", 47_777);
    bus.subscribe(Subscription::new(name, "c", crate::support::counting(&found))).unwrap();
    let worker = bus.start().unwrap();
    found.wait_for(1);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
    say(&format!("peak={}", peak()));
}

#[test]
#[ignore = "run as a process by another test"]
fn child_publishes() {
    let (Some(path), Some(what)) = (given("FILE").map(PathBuf::from), given("WHAT")) else { return };
    let bus = Postbox::open(path).unwrap();
    if what == "small" {
        let mut left = small_events();
        while left > 0 {
            let some = left.min(500);
            bus.publish_all((0..some).map(|n| event(n, "small"))).unwrap();
            left -= some;
        }
    } else {
        // As JSON it is two bytes, the quotes, longer.
        let filler = "x".repeat(usize::try_from(MIB).unwrap() - 2);
        for _ in 0..large_events() {
            bus.publish(NewEvent::new("work", "tests", "Thing", "1").payload(json!(filler))).unwrap();
        }
    }
    bus.stats().unwrap();
    bus.close().unwrap();
    say(&format!("peak={}", peak()));
}

fn event(n: u64, filler: &str) -> NewEvent {
    NewEvent::new("work", "tests", "Thing", n.to_string()).payload(json!({ "n": n, "filler": filler }))
}

/// A transactional consumer and a plain one, which counts.
fn open_with_consumers() -> Option<(Postbox, Tally)> {
    let bus = Postbox::open(given("FILE")?).unwrap();
    let plain = Tally::default();
    let counted = plain.clone();
    bus.subscribe_many([
        Subscription::transactional("work", "inside", |event: &Event, tx: &Tx<'_>| -> HandlerResult {
            tx.execute("INSERT INTO effect VALUES (?1)", [event.payload()["n"].as_u64()])?;
            Ok(())
        }),
        Subscription::new("work", "outside", move |_: &Event, _: &Context<'_>| {
            counted.add();
            Ok(())
        }),
    ])
    .unwrap();
    Some((bus, plain))
}

#[test]
#[ignore = "run as a process by another test"]
fn child_works() {
    let Some((bus, plain)) = open_with_consumers() else { return };
    assert_eq!((Settings::default().batch_size, Settings::default().startup_drain_batch_size), (10, 50));
    let half = bus.stats().unwrap().pending / 2;
    let worker = bus.start().unwrap();
    assert!(plain.reaches(half, LIMIT * 6 + LIMIT / 1_000 * u32::try_from(half).unwrap()), "{}", plain.get());
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
    say(&format!("peak={}", peak()));
}

#[test]
#[ignore = "run as a process by another test"]
fn child_drains() {
    let Some((bus, plain)) = open_with_consumers() else { return };
    let waiting = bus.stats().unwrap().pending;
    assert!(waiting > 0);
    assert_eq!(bus.drain().unwrap() as u64, waiting);
    assert_eq!(plain.get(), waiting);
    bus.close().unwrap();
    say(&format!("peak={}", peak()));
}
