//! A status that nobody knows: no claim finds such a row, and it must not be lost out of sight.

use postbox::{OutboxStatus, Postbox, Settings};
use rusqlite::params;

use crate::support::{LIMIT, file_box, file_box_with, wait_until};
use crate::{BOTH, By, Victim, polling_often};

/// Around and between those that are known, in another case, with a character NUL, as no text of any encoding, and long.
const UNKNOWN: [&str; 9] = [
    "''",
    "'archived'",
    "'e'",
    "'zzz'",
    "'Pending'",
    "'pending' || char(0)",
    "CAST(x'ff' AS TEXT)",
    "'x' || char(10) || char(27)",
    "replace(hex(zeroblob(100000)), '0', 's')",
];

#[test]
fn a_row_whose_status_nobody_knows_is_a_dead_letter_that_says_which_it_was() {
    for status in UNKNOWN {
        for by in BOTH {
            let victim = Victim::in_file();
            victim.poison(&format!("status = {status}, metadata = '{{ }}'"));
            victim.assert_set_aside(by, "its status was `");
        }
    }
}

#[test]
fn the_error_shows_the_status_cut_short_and_safe_to_print() {
    for (status, error) in [
        ("'archived'", "its status was `archived`, which nobody knows".to_owned()),
        ("'a' || char(27) || char(0) || 'b'", "its status was `a\\u{1b}\\0b`, which nobody knows".to_owned()),
        (
            "replace(hex(zeroblob(500)), '0', 's')",
            format!("its status was `{}`, which nobody knows", "s".repeat(64)),
        ),
    ] {
        let victim = Victim::in_file();
        victim.poison(&format!("status = {status}"));
        assert_eq!(victim.deliver(By::Drain).1, error);
    }
}

/// It kept the box from being opened.
#[test]
fn where_a_trigger_rolls_back_it_stays_and_the_others_are_set_aside() {
    for by in BOTH {
        let victim = Victim::in_file();
        victim.poison("status = 'archived'");
        let conn = victim.test.app_connection();
        conn.pragma_update(None, "ignore_check_constraints", true).unwrap();
        conn.execute("UPDATE outbox_event SET status = 'unknown' WHERE seq = 4", []).unwrap();
        conn.execute_batch(
            "CREATE TRIGGER forbids BEFORE UPDATE ON outbox_event WHEN OLD.seq = 3 BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
        )
        .unwrap();
        let others = victim.test.second();
        let status_of = |seq: i64| -> String {
            conn.query_row("SELECT status FROM outbox_event WHERE seq = ?1", [seq], |row| row.get(0)).unwrap()
        };
        assert_eq!([3, 4].map(status_of), ["archived", "dead_letter"]);
        let bus = &victim.test.bus;
        match by {
            By::Drain => assert_eq!(bus.drain().unwrap(), 3),
            By::Worker => {
                let worker = bus.start().unwrap();
                wait_until(LIMIT, || bus.stats().unwrap().processed == 3);
                assert!(worker.shutdown(LIMIT).unwrap().clean);
            }
        }
        others.close().unwrap();
    }
}

#[test]
fn it_has_failed_where_dead_letters_are_off() {
    for by in BOTH {
        let settings = Settings { dead_letter_enabled: false, ..polling_often() };
        let victim = Victim::new(file_box_with(|builder| builder.settings(settings)));
        victim.poison("status = 'archived'");
        assert_eq!(victim.deliver(by).0, "failed");
        victim.assert_others_are_through(by);
    }
}

#[test]
fn opening_the_box_sets_it_aside() {
    let victim = Victim::in_file();
    victim.poison("status = 'archived'");
    assert_eq!(victim.test.bus.stats().unwrap().total, 5);
    let second = victim.test.second();
    let row = second.outbox().get(victim.id()).unwrap().unwrap();
    assert_eq!((row.status, row.attempt_count), (OutboxStatus::DeadLetter, 0));
    assert_eq!(row.payload, 2);
}

/// By its next poll, with nothing else to wake it.
#[test]
fn a_worker_at_rest_sets_it_aside() {
    let settings =
        Settings { polling_interval_ms: 100, idle_polling_interval_ms: 100, ..Settings::default() };
    let victim = Victim::new(file_box_with(|builder| builder.settings(settings)));
    let bus = &victim.test.bus;
    let worker = bus.start().unwrap();
    wait_until(LIMIT, || bus.stats().unwrap().processed == 5);
    victim.poison("status = 'archived'");
    wait_until(LIMIT, || bus.stats().unwrap().dead_letter == 1);
    assert_eq!(bus.stats().unwrap().processed, 4);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

/// More than one write takes, and none of them is counted as anything else.
#[test]
fn many_are_set_aside_and_counted_as_what_they_are() {
    let test = file_box();
    let conn = test.app_connection();
    conn.pragma_update(None, "ignore_check_constraints", true).unwrap();
    let forge = |number: i64| {
        conn.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO outbox_event (id, status, available_at, created_at, event_name, source_module, aggregate_type, aggregate_id, payload)
             SELECT randomblob(16), CASE i % 3 WHEN 0 THEN 'archived' WHEN 1 THEN 'e' ELSE 'sleeping' END, 0, 0, 'a', 'm', 'T', '1', '{}' FROM n",
            params![number],
        )
        .unwrap()
    };
    assert_eq!(forge(1_300), 1_300);
    let counts = |bus: &Postbox| {
        let stats = bus.stats().unwrap();
        (stats.pending + stats.processing + stats.processed + stats.failed, stats.dead_letter, stats.total)
    };
    assert_eq!(counts(&test.bus), (0, 0, 1_300));
    assert_eq!(test.bus.drain().unwrap(), 0);
    assert_eq!(counts(&test.bus), (0, 1_300, 1_300));
}

/// It would be found again for ever.
#[test]
fn one_that_a_trigger_keeps_as_it_is_does_not_keep_others_from_anything() {
    for action in ["IGNORE", "ABORT, 'no'"] {
        for by in BOTH {
            let victim = Victim::in_file();
            victim.poison("status = 'archived'");
            let conn = victim.test.app_connection();
            conn.execute_batch(&format!(
                "CREATE TRIGGER keeps BEFORE UPDATE ON outbox_event WHEN OLD.status = 'archived' BEGIN SELECT RAISE({action}); END"
            ))
            .unwrap();
            let bus = &victim.test.bus;
            match by {
                By::Drain => assert_eq!(bus.drain().unwrap(), 4),
                By::Worker => {
                    let worker = bus.start().unwrap();
                    wait_until(LIMIT, || bus.stats().unwrap().processed == 4);
                    assert!(worker.shutdown(LIMIT).unwrap().clean);
                }
            }
            victim.assert_others_are_through(by);
            drop(victim.test.second()); // opens all the same
        }
    }
}
