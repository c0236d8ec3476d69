//! Integers that no box wrote: as large and as small as they can be, in every column that has one.

use std::time::Duration;

use postbox::{Error, OutboxStatus, Postbox};

use crate::support::{LIMIT, SECOND, boxes, event, file_box, sql};
use crate::{BOTH, By, Victim};

const EXTREMES: [&str; 4] = ["9223372036854775807", "-9223372036854775808", "-1", "4294967296"];

/// The greatest that a box gives: 43 bits.
const SEQ_MAX: i64 = 8_796_093_022_207;

#[test]
fn numbers_that_a_handler_would_be_given_wrong_are_dead_letters() {
    for (column, values) in [
        ("attempt_count", [EXTREMES[0], EXTREMES[1], EXTREMES[2], "4294967295"]),
        ("payload_version", [EXTREMES[0], EXTREMES[1], "0", EXTREMES[3]]),
        ("created_at", [EXTREMES[0], EXTREMES[1], EXTREMES[2], "253402300799999999"]),
    ] {
        for value in values {
            for by in BOTH {
                let victim = Victim::in_file();
                victim.poison(&format!("{column} = {value}"));
                victim.assert_set_aside(by, column);
            }
        }
    }
}

/// They are overwritten, and say nothing to a handler.
#[test]
fn numbers_that_a_claim_overwrites_do_no_harm() {
    for column in ["lease_id", "changed_at", "processed_at"] {
        for value in EXTREMES {
            for by in BOTH {
                for test in boxes() {
                    let victim = Victim::new(test);
                    victim.poison(&format!("{column} = {value}"));
                    let bus = &victim.test.bus;
                    match by {
                        By::Drain => assert_eq!(bus.drain().unwrap(), 5, "{column} {value}"),
                        By::Worker => {
                            let worker = bus.start().unwrap();
                            crate::support::wait_until(LIMIT, || bus.stats().unwrap().processed == 5);
                            assert!(worker.shutdown(LIMIT).unwrap().clean);
                        }
                    }
                    let row = bus.outbox().get(victim.id()).unwrap().unwrap();
                    assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processed, 1));
                }
            }
        }
    }
}

/// Held events wait at the last microsecond of the year 9999; behind that nobody would ever look.
#[test]
fn a_row_that_would_never_be_due_is_set_aside() {
    for set in [
        "available_at = 9223372036854775807",
        "available_at = 253402300800000000",
        "available_at = 9223372036854775807, status = 'processing', lease_id = 77",
    ] {
        for by in BOTH {
            let victim = Victim::in_file();
            victim.poison(set);
            victim.assert_set_aside(by, "available_at is after the year 9999");
        }
    }
}

#[test]
fn a_row_that_was_due_before_all_time_is_delivered() {
    for test in boxes() {
        let victim = Victim::new(test);
        victim.poison("available_at = -9223372036854775808");
        assert_eq!(victim.test.bus.drain().unwrap(), 5);
    }
}

/// The box's own time starts no earlier than what the last rows show, and would have stood still for ever.
#[test]
fn a_time_that_no_box_has_come_to_does_not_become_the_boxs_own() {
    for set in [
        "created_at = 9223372036854775807",
        "changed_at = 9223372036854775807",
        "processed_at = 253402300799999998",
        "created_at = -9223372036854775808",
    ] {
        let victim = Victim::in_file();
        victim.poison(set);
        let second = victim.test.second();
        let id = second.publish(event("b")).unwrap();
        let row = second.outbox().get(id).unwrap().unwrap();
        assert_eq!(row.created_at, crate::support::start_time(), "{set}");
        victim.test.clock.advance(Duration::from_secs(1));
        let id = second.publish(event("b")).unwrap();
        let row = second.outbox().get(id).unwrap().unwrap();
        assert_eq!(row.created_at, crate::support::start_time() + SECOND, "{set}");
    }
    let test = file_box();
    sql(&test.bus, |tx| tx.execute("UPDATE postbox_schema SET clock_mark = 9223372036854775807", []));
    let second = test.second();
    let id = second.publish(event("b")).unwrap();
    assert_eq!(second.outbox().get(id).unwrap().unwrap().created_at, crate::support::start_time());
}

/// Numbers that no box gives, and what stands in their lowest 43 bits: shifted into an inbox row's id they would be another's.
const FOREIGN_SEQS: [i64; 7] = [i64::MAX, i64::MIN, -1, 0, SEQ_MAX + 1, (1 << 44) | 2, -SEQ_MAX];

#[test]
fn a_row_whose_number_no_box_could_have_given_is_a_dead_letter_and_nobodys_inbox_row_is_touched() {
    for seq in FOREIGN_SEQS {
        for by in BOTH {
            for test in boxes() {
                let victim = Victim::new(test);
                let bus = &victim.test.bus;
                sql(bus, |tx| tx.execute("UPDATE outbox_event SET seq = ?1 WHERE seq = 3", [seq]));
                // The hole that it leaves, as if number 3 had been deleted.
                sql(bus, |tx| tx.execute("UPDATE postbox_counter SET deleted = 1", []));
                let ids = [0, 1, 3, 4].map(|neighbour| victim.ids[neighbour]);
                match by {
                    By::Drain => assert_eq!(bus.drain().unwrap(), 4, "{seq}"),
                    By::Worker => {
                        let worker = bus.start().unwrap();
                        crate::support::wait_until(LIMIT, || bus.stats().unwrap().processed == 4);
                        assert!(worker.shutdown(LIMIT).unwrap().clean);
                    }
                }
                let row = bus.outbox().get(victim.id()).unwrap().unwrap();
                assert_eq!(row.status, OutboxStatus::DeadLetter, "{seq}");
                assert!(row.last_error.unwrap().contains("seq"), "{seq}");
                assert_eq!(row.payload, 2);
                victim.assert_others_are_through(by);
                let stats = bus.stats().unwrap();
                assert_eq!((stats.processed, stats.dead_letter, stats.total), (4, 1, 5), "{seq}");

                // Whoever deletes it, deletes it alone.
                sql(bus, |tx| tx.execute("DELETE FROM outbox_event WHERE seq = ?1", [seq]));
                for id in ids {
                    assert!(bus.inbox().is_processed(id, "plain").unwrap(), "{seq}");
                    assert!(bus.inbox().is_processed(id, "tx").unwrap(), "{seq}");
                }
                let stats = bus.stats().unwrap();
                assert_eq!((stats.processed, stats.dead_letter, stats.total), (4, 0, 4), "{seq}");
                let next = bus.publish(event("b")).unwrap();
                assert_eq!(number_of(bus, next), 6, "{seq}");
            }
        }
    }
}

fn number_of(bus: &Postbox, id: postbox::EventId) -> i64 {
    sql(bus, |tx| {
        tx.query_row("SELECT seq FROM outbox_event WHERE id = ?1", [id.as_uuid()], |row| row.get(0))
    })
}

#[test]
fn such_a_row_keeps_nobody_from_publishing_and_its_number_from_nobody() {
    for seq in FOREIGN_SEQS {
        for test in boxes() {
            let bus = &test.bus;
            bus.publish(event("a")).unwrap();
            sql(bus, |tx| tx.execute("UPDATE outbox_event SET seq = ?1", [seq]));
            let next = bus.publish(event("a")).unwrap();
            assert_eq!(number_of(bus, next), 1, "{seq}");
            let list = bus.publish_all((0..20).map(|_| event("a"))).unwrap();
            assert_eq!(number_of(bus, list[19]), 21, "{seq}");
            let within = bus.transaction(|tx| tx.publish(event("a"))).unwrap();
            assert_eq!(number_of(bus, within), 22, "{seq}");
        }
    }
}

/// SQLite would go on with any number that is free.
#[test]
fn when_the_last_number_is_taken_publishing_says_so_and_stores_nothing() {
    for taken in [SEQ_MAX, SEQ_MAX - 5] {
        for test in boxes() {
            let bus = &test.bus;
            bus.publish(event("a")).unwrap();
            sql(bus, |tx| tx.execute("UPDATE outbox_event SET seq = ?1", [taken]));
            let left = usize::try_from(SEQ_MAX - taken).unwrap();
            let is_said = |result: postbox::Result<()>| {
                assert!(
                    matches!(result, Err(Error::NoNumberLeft { table: "outbox_event", .. })),
                    "{result:?}"
                );
            };
            is_said(bus.publish_all((0..=left).map(|_| event("a"))).map(drop));
            is_said(bus.publish_all((0..30).map(|_| event("a"))).map(drop));
            let stored: usize =
                sql(bus, |tx| tx.query_row("SELECT count(*) FROM outbox_event", [], |row| row.get(0)));
            assert_eq!(stored, 1);
            bus.publish_all((0..left).map(|_| event("a"))).unwrap();
            is_said(bus.publish(event("a")).map(drop));
            is_said(bus.publish(event("a").idempotency_key("k")).map(drop));
            is_said(bus.transaction(|tx| tx.publish(event("a")).map(drop)));
            if test.kind == "file" {
                let mut conn = test.app_connection();
                let tx = conn.transaction().unwrap();
                is_said(bus.publish_in(&tx, event("a")).map(drop));
                tx.commit().unwrap();
            }
            let stored: usize =
                sql(bus, |tx| tx.query_row("SELECT count(*) FROM outbox_event", [], |row| row.get(0)));
            assert_eq!(stored, 1 + left);

            // As the error's documentation says.
            sql(bus, |tx| {
                tx.execute_batch(
                    "DELETE FROM outbox_event; UPDATE postbox_counter SET last_deleted = 10, deleted = 10",
                )
            });
            let next = bus.publish(event("a")).unwrap();
            assert_eq!(number_of(bus, next), 11);
        }
    }
}

#[test]
fn rubbish_in_the_counters_is_a_clear_error_or_does_no_harm() {
    for test in boxes() {
        let bus = &test.bus;
        bus.publish(event("a")).unwrap();
        for (set, is_stored) in [
            ("last_deleted = 9223372036854775807", false),
            ("last_deleted = 8796093022207", false),
            ("last_deleted = -9223372036854775808", true),
            ("processed = -9223372036854775808, deleted = 9223372036854775807", true),
            ("processed = 9223372036854775807, deleted = -9223372036854775808", true),
        ] {
            sql(bus, |tx| {
                tx.execute("UPDATE postbox_counter SET last_deleted = 0, deleted = 0, processed = 0", [])
            });
            sql(bus, |tx| tx.execute(&format!("UPDATE postbox_counter SET {set}"), []));
            match bus.publish(event("a")) {
                Ok(_) => assert!(is_stored, "{set}"),
                Err(error) => {
                    assert!(matches!(error, Error::NoNumberLeft { .. }) && !is_stored, "{set}: {error}");
                }
            }
        }
        sql(bus, |tx| tx.execute("DELETE FROM postbox_counter", []));
        bus.publish(event("a")).unwrap();
        bus.stats().unwrap();
        assert_eq!(bus.drain().unwrap(), 5, "{}", test.kind);
    }
}

/// The key's id is the dedupe: what stands there has been published under it, as far as anybody can tell.
#[test]
fn a_foreign_row_under_the_id_of_a_key_stays_as_it_is_and_its_id_is_returned() {
    for test in boxes() {
        let bus = &test.bus;
        let id = bus.publish(event("a").idempotency_key("k")).unwrap();
        sql(bus, |tx| {
            tx.execute("UPDATE outbox_event SET seq = -7, event_name = 'foreign', payload = 'not JSON', metadata = '[1]'", [])
        });
        assert_eq!(bus.publish(event("a").idempotency_key("k")).unwrap(), id);
        assert_eq!(bus.stats().unwrap().total, 1);
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(bus.publish(event("a").idempotency_key("k")).unwrap(), id);
        let row: (String, String, String) = sql(bus, |tx| {
            tx.query_row("SELECT status, payload, metadata FROM outbox_event", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
        });
        assert_eq!(row, ("dead_letter".to_owned(), "not JSON".to_owned(), "[1]".to_owned()));
    }
}
