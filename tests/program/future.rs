//! Events that have not started: `future`, `reschedule`, `cancel`.

use std::fs;
use std::path::{Path, PathBuf};

use postbox::time::OffsetDateTime;
use postbox::{OutboxStatus, Postbox};
use tempfile::TempDir;

use crate::incident::id;
use crate::support::{assert_bytes, event, raw};
use crate::{clock, run};

/// New Year of the year 2100, and so many hours later.
fn hours_after_2100(hours: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(4_102_444_800 + hours * 3_600).unwrap()
}

/// A closed file with two reminders that are to come, one that is due, and one that has failed and waits.
fn reminders() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::builder().clock(clock()).open(&path).unwrap();
    for (hours, correlation) in [(2, "o-7"), (1, "o-8")] {
        let reminder = event("invoice.reminder").correlation_id(correlation);
        bus.publish(reminder.available_at(hours_after_2100(hours))).unwrap();
    }
    bus.publish(event("invoice.created")).unwrap();
    bus.publish(event("invoice.sent").available_at(hours_after_2100(9))).unwrap();
    bus.close().unwrap();
    let conn = raw(&path);
    for number in 1..=4 {
        let id: postbox::EventId = id(number).parse().unwrap();
        conn.execute("UPDATE outbox_event SET id = ?2 WHERE seq = ?1", (number, id.as_uuid())).unwrap();
    }
    conn.execute("UPDATE outbox_event SET attempt_count = 1, last_error = 'timed out' WHERE seq = 4", [])
        .unwrap();
    drop(conn);
    (dir, path)
}

fn status(path: &Path, number: usize) -> OutboxStatus {
    let bus = Postbox::open_read_only(path).unwrap();
    bus.outbox().get(id(number).parse().unwrap()).unwrap().unwrap().status
}

#[test]
fn what_is_to_come_is_listed_in_the_order_of_its_times() {
    let (dir, path) = reminders();
    let before = fs::read(&path).unwrap();
    let listed = run(dir.path(), &["future", "app.db"]).ok();
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 3, "{listed}");
    assert!(lines[0].starts_with("due "), "{listed}");
    for (line, due, number) in [(lines[1], "2100-01-01T01:00:00Z", 2), (lines[2], "2100-01-01T02:00:00Z", 1)]
    {
        assert!(line.starts_with(due) && line.trim_end().ends_with(&id(number)), "{listed}");
        assert!(line.contains("invoice.reminder"), "{listed}");
    }
    // A list that was cut short must not look like all that there is.
    let first = run(dir.path(), &["future", "app.db", "--limit", "1"]).ok();
    assert!(first.contains(&id(2)) && !first.contains(&id(1)), "{first}");
    assert!(first.ends_with("There are more, which are due later.\n"), "{first}");
    assert_eq!(run(dir.path(), &["future", "app.db", "--limit", "2"]).ok(), listed);
    let json = run(dir.path(), &["future", "app.db", "--correlation-id", "o-7", "--json"]).json();
    assert_eq!((json.as_array().unwrap().len(), &json[0]["id"]), (1, &id(1).into()));
    let first = run(dir.path(), &["future", "app.db", "--limit", "1", "--json"]).json();
    assert_eq!((first.as_array().unwrap().len(), &first[0]["id"]), (1, &id(2).into()));
    let none = run(dir.path(), &["future", "app.db", "--name", "other"]).ok();
    assert_eq!(none, "No events are to come.\n");
    assert_bytes(&path, &before, "after a look");
}

#[test]
fn one_is_moved_to_a_time() {
    let (dir, path) = reminders();
    let moved = run(dir.path(), &["reschedule", "app.db", &id(1), "--at", "2100-01-01T09:30:00+01:00"]).ok();
    assert_eq!(moved, format!("{} is due at 2100-01-01T08:30:00Z\n", id(1)));
    let json = run(dir.path(), &["reschedule", "app.db", &id(2), "--at", "2100-02-01", "--json"]).json();
    assert_eq!(json["available_at"], "2100-02-01T00:00:00.000000Z");
    let listed = run(dir.path(), &["future", "app.db", "--json"]).json();
    assert_eq!((&listed[0]["id"], &listed[1]["id"]), (&id(1).into(), &id(2).into()));
    run(dir.path(), &["reschedule", "app.db", &id(2), "--at", "now"]).ok();
    assert_eq!(run(dir.path(), &["future", "app.db", "--json"]).json().as_array().unwrap().len(), 1);
    let late = run(dir.path(), &["reschedule", "app.db", &id(4), "--at", "3d"]);
    assert_eq!((late.code, late.out.as_str()), (1, ""));
    assert!(late.err.contains("is pending, not an event that has not started\n  next: "), "{}", late.err);
    let wrong = run(dir.path(), &["reschedule", "app.db", &id(1), "--at", "tomorrow"]);
    assert!(wrong.code == 2 && wrong.err.contains("in how long (90s, 10m, 2h, 3d), or now"), "{}", wrong.err);
    assert_eq!(status(&path, 1), OutboxStatus::Pending);
}

#[test]
fn events_are_cancelled_by_id_or_filter_with_a_reason_that_is_kept() {
    let (dir, path) = reminders();
    let before = fs::read(&path).unwrap();
    let (first, started) = (id(1), id(4));
    for (which, text) in [
        (&[first.as_str()][..], "1 event is cancelled"),
        (&["--name", "invoice.*"], "3 events are cancelled"),
        (&["--correlation-id", "o-9"], "0 events are cancelled"),
    ] {
        let args = [&["cancel", "app.db", "--reason", "paid", "--dry-run"], which].concat();
        assert_eq!(run(dir.path(), &args).ok(), format!("dry run: {text}\n"));
    }
    for dry in [&["--yes"][..], &["--dry-run"]] {
        let args = [&["cancel", "app.db", &first, &started, "--reason", "paid"], dry].concat();
        let refused = run(dir.path(), &args);
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "all or none");
        assert!(refused.err.contains("is pending, not an event that has not started"), "{}", refused.err);
    }
    assert_bytes(&path, &before, "after what was refused");
    let asked = run(dir.path(), &["cancel", "app.db", "--all", "--reason", "paid"]);
    assert_eq!(asked.err, "postbox: not confirmed: 3 events are cancelled.\n  next: give --yes\n");
    assert_eq!(
        run(dir.path(), &["cancel", "app.db", &first, "--reason", "paid"]).ok(),
        "1 event is cancelled\n"
    );
    let all =
        run(dir.path(), &["cancel", "app.db", "--all", "--reason", "test data", "--yes", "--json"]).json();
    assert_eq!((&all["events"], &all["dry_run"]), (&2.into(), &false.into()));
    assert_eq!([1, 2, 3, 4].map(|n| status(&path, n) == OutboxStatus::Processed), [true, true, true, false]);
    let story = run(dir.path(), &["show", "app.db", &first]).ok();
    assert!(story.contains("cancelled: paid"), "{story}");
}
