//! Payloads that are larger than the box takes: they are not read into memory to find that out (see processes/large.rs).

use postbox::{OutboxStatus, Postbox};

use crate::support::{boxes_with, event, file_box_with};
use crate::{BOTH, Victim};

/// JSON of so many bytes.
fn json_of(bytes: usize) -> String {
    format!("'\"' || replace(hex(zeroblob({})), '0', 'p') || '\"'", (bytes - 2) / 2)
}

#[test]
fn a_row_that_is_larger_than_the_box_takes_is_a_dead_letter_that_says_its_size_and_the_limit() {
    const NAMES_MAX: usize = 1 << 20; // whatever the limit of payloads
    for (column, max) in [("payload", 1_000), ("metadata", 1_000), ("deliver_to", NAMES_MAX)] {
        for by in BOTH {
            for test in boxes_with(|builder| builder.max_payload_bytes(1_000)) {
                let victim = Victim::new(test);
                victim.poison(&format!("{column} = {}", json_of(max + 2)));
                let bytes = max + 2;
                victim.assert_set_aside(
                    by,
                    &format!("its {column} takes {bytes} bytes, more than this box's limit of {max}"),
                );
            }
        }
    }
}

/// As the documentation of the limit says.
#[test]
fn under_a_higher_limit_it_is_delivered() {
    let victim = Victim::new(file_box_with(|builder| builder.max_payload_bytes(1_000)));
    victim.poison(&format!("payload = {}", json_of(2_000)));
    victim.deliver(crate::By::Drain);
    victim.poison("status = 'pending', lease_id = -32768, available_at = 0");
    let bus = Postbox::builder().max_payload_bytes(2_000).open(victim.test.path()).unwrap();
    bus.subscribe(postbox::Subscription::new(
        "*",
        "plain",
        |event: &postbox::Event, _: &postbox::Context<'_>| {
            assert_eq!(event.payload().as_str().unwrap().len(), 1_998);
            Ok(())
        },
    ))
    .unwrap();
    assert_eq!(bus.drain().unwrap(), 1);
}

#[test]
fn the_limit_itself_is_delivered_also_where_the_file_is_utf_16() {
    for encoding in ["UTF-8", "UTF-16le"] {
        for text in ["p", "é", "漢", "😀"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            rusqlite::Connection::open(&path)
                .unwrap()
                .execute_batch(&format!("PRAGMA encoding = '{encoding}'; CREATE TABLE app (x)"))
                .unwrap();
            let bus = Postbox::builder().max_payload_bytes(1_002).open(&path).unwrap();
            let payload = text.repeat(1_000 / text.len());
            let id = bus.publish(event("a").payload(payload.clone().into())).unwrap();
            assert_eq!(bus.drain().unwrap(), 1, "{encoding} {text}");
            let row = bus.outbox().get(id).unwrap().unwrap();
            assert_eq!((row.status, row.payload.as_str()), (OutboxStatus::Processed, Some(payload.as_str())));
        }
    }
}
