//! Columns that cannot be read, or hold what no box would have written.

use postbox::{OutboxStatus, Settings};

use crate::support::{LIMIT, TestBox, boxes, boxes_with};
use crate::{BOTH, By, Victim};

/// What another program wrote into a row, and the column that the error names.
const POISONS: [(&str, &str); 30] = [
    ("payload = 'not JSON'", "payload"),
    ("payload = ''", "payload"),
    ("payload = '{\"a\":1} trailing'", "payload"),
    ("payload = '{\"a\":1}' || char(0)", "payload"),
    ("payload = CAST(x'22ff22' AS TEXT)", "payload"),
    ("payload = CAST(x'7b2261223a22610062227d' AS TEXT)", "payload"),
    ("payload = '\"\\ud800\"'", "payload"),
    ("payload = '\"\\udc00\\ud800\"'", "payload"),
    ("payload = replace(hex(zeroblob(100)), '0', '[') || replace(hex(zeroblob(100)), '0', ']')", "payload"),
    ("payload = replace(hex(zeroblob(5000)), '0', '[')", "payload"),
    ("metadata = '{'", "metadata"),
    ("metadata = ''", "metadata"),
    ("metadata = CAST(x'ff' AS TEXT)", "metadata"),
    ("metadata = '\"\\ud800\"'", "metadata"),
    ("metadata = replace(hex(zeroblob(100)), '0', '[') || replace(hex(zeroblob(100)), '0', ']')", "metadata"),
    ("event_name = CAST(x'61ff' AS TEXT)", "event_name"),
    ("event_name = 'a' || char(0) || 'b'", "event_name"),
    ("source_module = CAST(x'ff' AS TEXT)", "source_module"),
    ("source_module = 'm' || char(0)", "source_module"),
    ("aggregate_type = CAST(x'ff' AS TEXT)", "aggregate_type"),
    ("aggregate_type = 'T' || char(0)", "aggregate_type"),
    ("aggregate_id = CAST(x'ff' AS TEXT)", "aggregate_id"),
    ("aggregate_id = '1' || char(0)", "aggregate_id"),
    ("correlation_id = CAST(x'ff' AS TEXT)", "correlation_id"),
    ("correlation_id = 'c' || char(0)", "correlation_id"),
    ("traceparent = CAST(x'ff' AS TEXT)", "traceparent"),
    ("deliver_to = 'not JSON'", "deliver_to"),
    ("deliver_to = '{}'", "deliver_to"),
    ("deliver_to = '[1]'", "deliver_to"),
    ("deliver_to = CAST(x'5b22ff225d' AS TEXT)", "deliver_to"),
];

/// What only a program that has switched the CHECKs off can write.
const UNCHECKED: [(&str, &str); 13] = [
    ("id = x'0102'", "id"),
    ("id = x''", "id"),
    ("id = randomblob(17)", "id"),
    ("causation_id = x'01'", "causation_id"),
    ("event_name = ''", "event_name"),
    ("event_name = replace(hex(zeroblob(128)), '0', 'n')", "event_name"),
    ("source_module = ''", "source_module"),
    ("source_module = replace(hex(zeroblob(64)), '0', 'm')", "source_module"),
    ("aggregate_type = ''", "aggregate_type"),
    ("aggregate_id = replace(hex(zeroblob(2000000)), '0', 'i')", "aggregate_id"),
    ("correlation_id = ''", "correlation_id"),
    ("correlation_id = replace(hex(zeroblob(128)), '0', 'c')", "correlation_id"),
    ("traceparent = replace(hex(zeroblob(128)), '0', 't')", "traceparent"),
];

#[test]
fn a_row_that_cannot_be_read_is_a_dead_letter_that_names_the_column_and_its_neighbours_go_on() {
    for (set, column) in POISONS {
        for by in BOTH {
            for test in boxes() {
                let victim = Victim::new(test);
                victim.poison(set);
                victim.assert_set_aside(by, column);
            }
        }
    }
}

#[test]
fn a_row_past_the_checks_is_a_dead_letter_that_names_the_column_and_its_neighbours_go_on() {
    for (set, column) in UNCHECKED {
        for by in BOTH {
            let victim = Victim::in_file();
            victim.poison(set);
            victim.assert_set_aside(by, column);
        }
    }
}

/// Its metadata is not looked at, but kept as well.
#[test]
fn what_is_wrong_with_one_column_leaves_the_bytes_of_the_other_alone() {
    for by in BOTH {
        for test in boxes() {
            let victim = Victim::new(test);
            victim.poison("payload = CAST(x'ff00fe' AS TEXT), metadata = CAST(x'7b20ff' AS TEXT)");
            victim.assert_set_aside(by, "payload");
        }
    }
}

#[test]
fn a_row_that_cannot_be_read_fails_where_dead_letters_are_off() {
    let settings = Settings { dead_letter_enabled: false, ..Settings::default() };
    for by in BOTH {
        for test in boxes_with(|builder| builder.settings(settings.clone())) {
            let victim = Victim::new(test);
            victim.poison("payload = 'not JSON'");
            assert_eq!(victim.deliver(by).0, "failed", "{}", victim.test.kind);
            victim.assert_others_are_through(by);
        }
    }
}

#[test]
fn several_in_one_claim_are_set_aside_each_by_itself() {
    for by in BOTH {
        for test in boxes() {
            let victim = Victim::new(test);
            victim.poison("payload = 'not JSON'");
            let TestBox { bus, .. } = &victim.test;
            let more = bus.publish_all((0..4).map(|_| crate::support::event("a"))).unwrap();
            crate::support::sql(bus, |tx| {
                tx.execute("UPDATE outbox_event SET metadata = '{', aggregate_id = CAST(x'ff' AS TEXT) WHERE seq > 5", [])
            });
            let dead = || bus.stats().unwrap().dead_letter;
            match by {
                By::Drain => assert_eq!(bus.drain().unwrap(), 4),
                By::Worker => {
                    let worker = bus.start().unwrap();
                    crate::support::wait_until(LIMIT, || (dead(), bus.stats().unwrap().processed) == (5, 4));
                    assert!(worker.shutdown(LIMIT).unwrap().clean);
                }
            }
            assert_eq!((dead(), more.len()), (5, 4));
            victim.assert_others_are_through(by);
        }
    }
}

#[test]
fn a_dead_letter_by_poison_can_be_looked_at_and_its_error_is_there() {
    for test in boxes() {
        let victim = Victim::new(test);
        victim.poison("payload = 'not JSON'");
        victim.deliver(By::Drain);
        // The row's payload cannot be shown, which is said; nothing panics.
        let outbox = victim.test.bus.outbox();
        assert!(matches!(outbox.get(victim.id()), Err(postbox::Error::Json(_))));
        victim.poison("payload = '{}'");
        let row = outbox.get(victim.id()).unwrap().unwrap();
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::DeadLetter, 1));
        assert!(row.last_error.unwrap().contains("no JSON"));
    }
}

/// Nobody has to throw a payload away: repaired and pending again it is delivered.
#[test]
fn a_row_that_was_repaired_is_delivered() {
    for test in boxes() {
        let victim = Victim::new(test);
        victim.poison("payload = '\"\\ud800\"'");
        victim.deliver(By::Drain);
        victim.poison("payload = '\"sound\"', status = 'pending', lease_id = -32768, available_at = 0");
        assert_eq!(victim.test.bus.drain().unwrap(), 1);
        let row = victim.test.bus.outbox().get(victim.id()).unwrap().unwrap();
        assert_eq!((row.status, row.last_error), (OutboxStatus::Processed, None));
    }
}
