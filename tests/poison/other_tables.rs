//! Rows of the inbox, the consumers, the settings and the links that no box wrote so.

use std::time::Duration;

use postbox::{
    Context, EntityRef, Event, EventFilter, HandlerError, InboxStatus, LinkType, NewLink, OutboxStatus,
    Settings, Subscription,
};

use crate::support::{Calls, TestBox, boxes, event, file_box, noting, outbox_row, sql, wait_until};
use crate::{BOTH, By, Victim};

const LIMIT: Duration = Duration::from_mins(1);

/// SQL of another program's, with the CHECKs off.
#[track_caller]
fn forge(test: &TestBox, statements: &str) {
    let conn = test.app_connection();
    conn.pragma_update(None, "ignore_check_constraints", true).unwrap();
    conn.execute_batch(statements).unwrap_or_else(|error| panic!("{statements}: {error}"));
}

/// The row of the third event's consumer `plain`, whose number is 1.
const INBOX_ROW: &str = "INSERT INTO inbox_event (id, consumer_name, status, attempt_count, received_at, changed_at)
                         VALUES (3 << 20 | 1, 'plain', 'failed', 1, 0, 0); INSERT OR IGNORE INTO postbox_consumer VALUES (1, 'plain');";

#[test]
fn an_inbox_row_that_cannot_be_read_makes_its_event_a_dead_letter_and_no_other() {
    for set in [
        "status = 'unknown'",
        "status = ''",
        "status = CAST(x'ff' AS TEXT)",
        "status = 'failed' || char(0)",
        "attempt_count = -1",
        "attempt_count = 4294967296",
        "attempt_count = 9223372036854775807",
        "attempt_count = -9223372036854775808",
        "consumer_name = CAST(x'63ff' AS TEXT)",
        "last_error = CAST(x'63ff' AS TEXT)",
    ] {
        for by in BOTH {
            let victim = Victim::in_file();
            forge(&victim.test, &format!("{INBOX_ROW} UPDATE inbox_event SET {set}"));
            victim.assert_set_aside(by, "inbox row");
            assert!(victim.test.bus.inbox().get((3_i64 << 20 | 1).into()).is_err(), "{set}");
        }
    }
}

/// They are overwritten, or are attempts that are used up.
#[test]
fn numbers_in_an_inbox_row_at_their_limits_end_the_event_or_do_no_harm() {
    for (set, ends_as) in [
        ("attempt_count = 4294967295", "dead_letter"),
        ("attempt_count = 4294967295, gave_up = 1", "dead_letter"),
        ("gave_up = 9223372036854775807", "dead_letter"),
        ("processed_at = 9223372036854775807", "processed"),
        ("received_at = -9223372036854775808", "processed"),
        ("changed_at = 9223372036854775807", "processed"),
    ] {
        for lost in [false, true] {
            let victim = Victim::in_file();
            forge(&victim.test, &format!("{INBOX_ROW} UPDATE inbox_event SET {set}"));
            if lost {
                victim.poison("status = 'processing', attempt_count = 1, lease_id = 5, available_at = 0");
            }
            let bus = &victim.test.bus;
            let processed = bus.drain().unwrap();
            let row = bus.outbox().get(victim.id()).unwrap().unwrap();
            assert_eq!(row.status.as_str(), ends_as, "{set}, lost: {lost}: {:?}", row.last_error);
            assert!(processed >= 4, "{set}");
        }
    }
}

#[test]
fn inbox_rows_of_no_event_at_all_are_in_nobodys_way() {
    for id in ["9223372036854775807", "-9223372036854775808", "0", "-1", "8796093022207 << 20"] {
        for by in BOTH {
            let victim = Victim::in_file();
            forge(
                &victim.test,
                &format!(
                    "INSERT INTO inbox_event (id, consumer_name, status) VALUES ({id}, 'plain', 'rubbish')"
                ),
            );
            let bus = &victim.test.bus;
            match by {
                By::Drain => assert_eq!(bus.drain().unwrap(), 5, "{id}"),
                By::Worker => {
                    let worker = bus.start().unwrap();
                    wait_until(LIMIT, || bus.stats().unwrap().processed == 5);
                    assert!(worker.shutdown(LIMIT).unwrap().clean);
                }
            }
        }
    }
}

/// It would be the key of a row of some other event's, or of none.
#[test]
fn a_consumer_whose_number_no_box_could_have_given_gets_another() {
    for number in ["9223372036854775807", "-9223372036854775808", "-1", "0", "1048576", "1048577"] {
        for by in BOTH {
            let victim = Victim::in_file();
            forge(
                &victim.test,
                &format!(
                    "INSERT INTO postbox_consumer VALUES ({number}, 'plain'), (7, CAST(x'ff' AS TEXT)), (8, '')"
                ),
            );
            let bus = &victim.test.bus;
            match by {
                By::Drain => assert_eq!(bus.drain().unwrap(), 5, "{number}"),
                By::Worker => {
                    let worker = bus.start().unwrap();
                    wait_until(LIMIT, || bus.stats().unwrap().processed == 5);
                    assert!(worker.shutdown(LIMIT).unwrap().clean);
                }
            }
            for id in &victim.ids {
                for consumer in ["plain", "tx"] {
                    assert!(bus.inbox().is_processed(*id, consumer).unwrap(), "{number} {consumer}");
                }
            }
            let rows: i64 = sql(bus, |tx| {
                tx.query_row(
                    "SELECT count(*) FROM inbox_event WHERE id BETWEEN 1 << 20 AND 6 << 20",
                    [],
                    |row| row.get(0),
                )
            });
            assert_eq!(rows, 10, "{number}");
        }
    }
}

#[test]
fn when_the_last_number_of_a_consumer_is_taken_its_events_are_dead_letters_that_say_so() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "known", noting(&calls, "known"))).unwrap();
        bus.subscribe(Subscription::new("b", "new", noting(&calls, "new"))).unwrap();
        sql(bus, |tx| {
            tx.execute_batch("INSERT INTO postbox_consumer VALUES (1, 'known'), (1048575, 'last')")
        });
        let ids = bus.publish_all(["a", "b", "a"].map(event)).unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        let row = bus.outbox().get(ids[1]).unwrap().unwrap();
        assert_eq!(row.status, OutboxStatus::DeadLetter, "{kind}");
        assert!(
            row.last_error.as_ref().unwrap().contains("postbox_consumer"),
            "{row:?} {:?}",
            row.last_error
        );
    }
}

/// Each by itself is passed over, and the application's default stands.
#[test]
fn rubbish_among_the_settings_is_passed_over() {
    let rubbish = [
        "'not JSON'",
        "''",
        "CAST(x'ff' AS TEXT)",
        "'1' || char(0)",
        "'\"\\ud800\"'",
        "replace(hex(zeroblob(100)), '0', '[')",
        "'-1'",
        "'0'",
        "'9223372036854775808'",
        "'1e400'",
        "'null'",
        "'{}'",
        "CAST(zeroblob(5000000) AS TEXT)",
    ];
    for value in rubbish {
        let victim = Victim::in_file();
        for key in ["batchSize", "maxAttempts", "enabled", "processingLeaseMs", "unhandledEvents"] {
            forge(
                &victim.test,
                &format!(
                    "INSERT INTO postbox_setting VALUES ('core.integration.outbox.{key}', {value}, 9223372036854775807)"
                ),
            );
        }
        forge(
            &victim.test,
            "INSERT INTO postbox_setting VALUES ('core.integration.outbox.retryBaseDelayMs', '250', -1), (CAST(x'ff' AS TEXT), 'x', 0),
                                                ('core.integration.outbox.' || CAST(x'ff' AS TEXT), 'x', 0), ('', 'x', 0)",
        );
        let second = victim.test.second();
        let expected = Settings { retry_base_delay_ms: 250, ..Settings::default() };
        assert_eq!(second.settings(), expected, "{value}");
        drop(second);
        assert_eq!(victim.test.bus.drain().unwrap(), 5, "{value}");
        victim.test.bus.update_settings(|settings| settings.batch_size = 17).unwrap();
        assert_eq!(victim.test.bus.settings().batch_size, 17, "{value}");
    }
}

/// One look-up says what is wrong; the others answer.
#[test]
fn a_link_that_cannot_be_read_is_an_error_of_its_own() {
    for set in [
        "metadata = 'not JSON'",
        "metadata = '\"\\ud800\"'",
        "metadata = CAST(x'ff' AS TEXT)",
        "link_type = 'unknown'",
        "id = x'01'",
        "source_entity_id = CAST(x'ff' AS TEXT)",
    ] {
        let test = file_box();
        let entity = |id: &str| EntityRef::new("m", "T", id);
        let links = test.bus.links();
        let create = |from, to, kind| links.create(NewLink::new(entity(from), entity(to), kind)).unwrap();
        let bad = create("1", "2", LinkType::Reference);
        let good = create("3", "4", LinkType::Cascade);
        forge(&test, &format!("UPDATE integration_link SET {set} WHERE seq = 1"));
        let is_gone = set.starts_with("id");
        match links.get(bad.id) {
            Ok(None) => assert!(is_gone, "{set}"),
            other => assert!(other.is_err() && !is_gone, "{set}: {other:?}"),
        }
        assert_eq!(links.find_by_type(LinkType::Cascade).unwrap()[0].id, good.id);
        assert_eq!(links.find_inbound(&entity("4")).unwrap().len(), 1);
        // Extreme times are shown as the nearest that can be.
        forge(
            &test,
            "UPDATE integration_link SET created_at = 9223372036854775807, updated_at = -9223372036854775808 WHERE seq = 2",
        );
        assert!(links.get(good.id).unwrap().unwrap().created_at > crate::support::start_time());
    }
}

#[test]
fn the_inbox_of_a_sound_event_is_as_it_was_beside_poison() {
    let victim = Victim::in_file();
    victim.test.bus.drain().unwrap();
    forge(
        &victim.test,
        "UPDATE inbox_event SET status = 'rubbish' WHERE event = 3 AND consumer_name = 'plain'",
    );
    for (place, id) in victim.ids.iter().enumerate() {
        let is_processed = victim.test.bus.inbox().is_processed(*id, "plain").unwrap();
        assert_eq!(is_processed, place != 2);
        let tx = victim.test.bus.inbox().get_or_create(*id, "tx").unwrap();
        assert_eq!(tx.status, InboxStatus::Processed);
    }
}

/// The next number was none, so that a failure could not be recorded: the event was a dead letter at its second attempt.
#[test]
fn a_history_whose_numbers_are_spoilt_keeps_nobody_from_trying_again() {
    for number in ["9223372036854775807", "9223372036854775806", "-9223372036854775808", "number * 1000"] {
        for test in boxes() {
            let bus = &test.bus;
            let calls = Calls::default();
            let failing = {
                let calls = calls.clone();
                move |_: &Event, _: &Context<'_>| {
                    calls.add("c");
                    if calls.all().len() < 5 {
                        Err(HandlerError::retry_after(calls.all().len(), Duration::ZERO))
                    } else {
                        Ok(())
                    }
                }
            };
            bus.subscribe(Subscription::new("*", "c", failing).max_attempts(10)).unwrap();
            let id = bus.publish(event("a")).unwrap();
            bus.process_batch().unwrap();
            sql(bus, |tx| tx.execute(&format!("UPDATE postbox_history SET number = {number}"), []));
            bus.drain().unwrap();
            let row = outbox_row(bus, id);
            assert_eq!(
                (row.status, calls.all().len()),
                (OutboxStatus::Processed, 5),
                "{number} {}",
                test.kind
            );
            assert!(bus.outbox().history(id).unwrap().len() >= 2, "{number}");
            assert_eq!(bus.outbox().replay(&EventFilter::new(), "c").unwrap(), 1);
        }
    }
}

/// Counted on from a number below all others, the entries had no end.
#[test]
fn a_history_whose_numbers_are_spoilt_keeps_a_hundred_entries() {
    for number in [i64::MIN, -1, i64::MAX] {
        for test in boxes() {
            let bus = &test.bus;
            let failing = |_: &Event, _: &Context<'_>| Err(HandlerError::retry_after("no", Duration::ZERO));
            bus.subscribe(Subscription::new("*", "c", failing).max_attempts(1_000)).unwrap();
            let id = bus.publish(event("a")).unwrap();
            bus.process_batch().unwrap();
            sql(bus, |tx| tx.execute("UPDATE postbox_history SET number = ?1", [number]));
            for _ in 0..150 {
                bus.process_batch().unwrap();
            }
            assert_eq!(outbox_row(bus, id).status, OutboxStatus::Pending, "{number} {}", test.kind);
            let kept = bus.outbox().history(id).unwrap().len();
            assert!((100..=101).contains(&kept), "{number} {}: {kept}", test.kind);
        }
    }
}
