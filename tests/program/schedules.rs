//! `schedules`: list, next, pause, resume, remove.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use postbox::time::OffsetDateTime;
use postbox::{Misfire, NewEvent, Postbox, Schedule};
use tempfile::TempDir;

use crate::support::{assert_bytes, listing, raw};
use crate::{clock, expect, run};

/// One by an expression, one by an interval that begins in a hundred years, and two that cannot tick.
fn scheduled() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let clock = clock();
    let bus = Postbox::builder().clock(clock.clone()).open(&path).unwrap();
    let event = |name| NewEvent::new(name, "mail", "Mailbox", "inbox");
    let put = |name, schedule| drop(bus.schedules().put(name, schedule).unwrap());
    put("digest", Schedule::cron("0 6 * * 1-5", "Europe/Berlin", event("digest.due")));
    let later = OffsetDateTime::UNIX_EPOCH + Duration::from_hours(1_139_568);
    let hours = Schedule::every(Duration::from_hours(36), event("sync.due"))
        .starting_at(later)
        .ending_at(later + Duration::from_hours(100))
        .misfire(Misfire::All { max: 5 });
    put("far", hours);
    put("refused", Schedule::every(Duration::from_mins(1), event("refused")).misfire(Misfire::Skip));
    put("spoilt\u{1b}[31m", Schedule::every(Duration::from_mins(1), event("spoilt")));
    put("still", Schedule::every(Duration::from_millis(1_500), event("still")));
    bus.schedules().pause("still").unwrap();
    raw(&path)
        .execute_batch(
            "CREATE TRIGGER no_refused BEFORE INSERT ON outbox_event WHEN NEW.event_name = 'refused'
             BEGIN SELECT RAISE(ABORT, 'none of these'); END;
             UPDATE postbox_schedule SET rule = '{}' WHERE name LIKE 'spoilt%';",
        )
        .unwrap();
    clock.advance(Duration::from_hours(12));
    bus.drain().unwrap();
    bus.close().unwrap();
    (dir, path)
}

#[test]
fn schedules_are_listed_with_their_rules_and_errors_and_nothing_is_written() {
    let (dir, path) = scheduled();
    let before = fs::read(&path).unwrap();
    expect("schedules.txt", &run(dir.path(), &["schedules", "list", "app.db"]).ok());
    expect("schedules.json", &run(dir.path(), &["schedules", "list", "app.db", "--json"]).ok());
    let times = run(dir.path(), &["schedules", "next", "app.db", "far"]).ok();
    assert_eq!(times, "2100-01-01T00:00:00Z\n2100-01-02T12:00:00Z\n2100-01-04T00:00:00Z\n");
    let times = run(dir.path(), &["schedules", "next", "app.db", "far", "-n", "1", "--json"]).json();
    assert_eq!(times, postbox::serde_json::json!(["2100-01-01T00:00:00.000000Z"]));
    let times = run(dir.path(), &["schedules", "next", "app.db", "digest"]).ok();
    assert_eq!(times.lines().count(), 5);
    assert!(
        times.lines().all(|time| time.ends_with("T05:00:00Z") || time.ends_with("T04:00:00Z")),
        "{times}"
    );
    assert_bytes(&path, &before, "after it was looked at");
    assert_eq!(listing(dir.path()), ["app.db"]);
}

#[test]
fn a_file_without_schedules_says_so() {
    let dir = tempfile::tempdir().unwrap();
    Postbox::open(dir.path().join("app.db")).unwrap().close().unwrap();
    assert_eq!(run(dir.path(), &["schedules", "list", "app.db"]).ok(), "There are no schedules.\n");
    let json = run(dir.path(), &["schedules", "list", "app.db", "--json"]).json();
    assert_eq!(json, postbox::serde_json::json!([]));
}

#[test]
fn a_schedule_is_paused_resumed_and_removed() {
    let (dir, path) = scheduled();
    let run = |args: &[&str]| {
        let all: Vec<&str> = [&["schedules", args[0], "app.db"], &args[1..]].concat();
        run(dir.path(), &all)
    };
    assert_eq!(run(&["pause", "digest"]).ok(), "schedule digest is paused\n");
    assert_eq!(run(&["pause", "digest"]).ok(), "schedule digest was paused already\n");
    let paused = run(&["list", "--json"]).json();
    assert!(paused[0]["paused_at"].is_string() && paused[0]["next_at"].is_null(), "{paused}");
    assert_eq!(run(&["resume", "digest", "--json"]).json()["changed"], true);
    assert_eq!(run(&["resume", "digest"]).ok(), "schedule digest was not paused\n");
    let goes_on = run(&["list", "--json"]).json();
    assert!(goes_on[0]["next_at"].as_str().unwrap() > "2026", "from now on: {goes_on}");

    let refused = run(&["remove", "digest"]);
    assert_eq!((refused.code, refused.out.as_str()), (4, ""));
    assert!(refused.err.contains("Remove the schedule digest from app.db?"), "{}", refused.err);
    assert_eq!(run(&["remove", "digest", "--yes"]).ok(), "schedule digest is removed\n");
    assert_eq!(run(&["remove", "digest", "--yes", "--json"]).json()["removed"], false);
    let bus = Postbox::open(&path).unwrap();
    assert_eq!(bus.schedules().list().unwrap().len(), 4);
}

#[test]
fn what_is_not_there_or_cannot_be_told_is_refused_with_the_next_step() {
    let (dir, path) = scheduled();
    let before = fs::read(&path).unwrap();
    for (code, args, said) in [
        (
            1,
            &["next", "app.db", "nobody"][..],
            "no schedule with id nobody\n  next: `postbox schedules list app.db`",
        ),
        (1, &["pause", "app.db", "nobody"], "no schedule with id nobody"),
        (1, &["resume", "app.db", "nobody"], "no schedule with id nobody"),
        (1, &["next", "app.db", "spoilt\u{1b}[31m"], "invalid rule: "),
        (1, &["list", "missing.db"], "missing.db"),
        (2, &["next", "app.db"], "<NAME>"),
        (2, &["next", "app.db", "digest", "-n", "-1"], "-1"),
        // None at all would read like a schedule that has ended.
        (2, &["next", "app.db", "digest", "-n", "0"], "0 is not in 1..=1000"),
        (2, &["next", "app.db", "digest", "-n", "1001"], "1001 is not in 1..=1000"),
        (2, &[], "list"),
    ] {
        let args = [&["schedules"], args].concat();
        let refused = run(dir.path(), &args);
        assert_eq!((refused.code, refused.out.as_str()), (code, ""), "{args:?}: {}", refused.err);
        assert!(refused.err.contains(said), "{args:?}: {}", refused.err);
    }
    assert_bytes(&path, &before, "after what was refused");
}
