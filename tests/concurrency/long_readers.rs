//! The application reads an old snapshot for a long time: the -wal grows meanwhile, and shrinks again.

use std::fs;

use postbox::NewEvent;
use serde_json::json;

use crate::support::{LIMIT, Tally, beside, integer, raw, unhurried, wait_until};
use crate::{assert_each_effect_once, make_effects, number, subscribe_effects, wait_until_all_is_done, work};

/// The library's `journal_size_limit`.
const CUT_BACK_TO: u64 = 16 << 20;
const GROWN_TO: u64 = 3 * CUT_BACK_TO / 2;

fn large(n: usize) -> NewEvent {
    work(n).payload(json!({ "n": n, "filler": "x".repeat(100_000) }))
}

#[test]
fn a_wal_that_grows_under_a_long_reader_shrinks_again_while_publishing_and_working_go_on() {
    let rounds = number("POSTBOX_ROUNDS", 2);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = unhurried().open(&path).unwrap();
    make_effects(&bus);
    let plain = Tally::default();
    subscribe_effects(&bus, &plain);
    let worker = bus.start().unwrap();
    let wal = || fs::metadata(beside(&path, "-wal")).unwrap().len();
    let mut published = 0;
    let mut publish = || {
        bus.publish(large(published)).unwrap();
        published += 1;
        published
    };
    for round in 0..rounds {
        let reader = raw(&path);
        reader.execute_batch("BEGIN").unwrap();
        let seen = integer(&reader, "SELECT count(*) FROM outbox_event");
        let mut count = publish();
        while wal() < GROWN_TO {
            count = publish();
        }
        // The events of this round are delivered under the reader's eyes, which sees none of them.
        wait_until("they are delivered", || plain.get() == count as u64);
        assert_eq!(integer(&reader, "SELECT count(*) FROM outbox_event"), seen, "round {round}");
        let grown = wal();
        reader.execute_batch("COMMIT").unwrap();
        drop(reader);
        // By whoever publishes once a checkpoint is over, which another thread may be doing.
        let mut more = 0;
        wait_until("the -wal is cut back", || {
            publish();
            more += 1;
            wal() <= CUT_BACK_TO
        });
        eprintln!(
            "round {round}: the -wal grew to {grown} bytes; {more} events after the reader it has {}",
            wal()
        );
    }
    wait_until_all_is_done(&bus, LIMIT);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
    assert!(!beside(&path, "-wal").exists());
    assert_eq!(plain.get(), published as u64);
    assert_each_effect_once(&path, &(0..published).collect::<Vec<_>>());
}
