//! Rows that other programs have written: they are shown in their place, as far as they can be, and nothing is hidden by them.

use postbox::{EventFilter, EventId, EventSummary, OutboxStatus, Page};
use rusqlite::params;
use serde_json::Value;

use crate::support::{TestBox, boxes, event, file_box, sql};
use crate::{ids, on_both};

type IsShown = fn(&EventSummary) -> bool;

/// What was written, the column that says so, and how it is shown.
const SPOILT: [(&str, &str, IsShown); 14] = [
    ("event_name = CAST(x'61ff' AS TEXT)", "event_name", |event| event.event_name == "a\u{fffd}"),
    ("source_module = CAST(x'ff6d' AS TEXT)", "source_module", |event| event.source_module == "\u{fffd}m"),
    ("aggregate_type = CAST(x'ff' AS TEXT)", "aggregate_type", |event| event.aggregate_type == "\u{fffd}"),
    ("aggregate_id = CAST(x'ff' AS TEXT)", "aggregate_id", |event| event.aggregate_id == "\u{fffd}"),
    ("correlation_id = CAST(x'ff' AS TEXT)", "correlation_id", |event| {
        event.correlation_id.as_deref() == Some("\u{fffd}")
    }),
    ("traceparent = CAST(x'ff' AS TEXT)", "traceparent", |event| {
        event.trace_parent.as_deref() == Some("\u{fffd}")
    }),
    ("last_error = CAST(x'78ff' AS TEXT)", "last_error", |event| {
        event.last_error.as_deref() == Some("x\u{fffd}")
    }),
    ("attempt_count = 1 << 40", "attempt_count", |event| event.attempt_count == u32::MAX),
    ("available_at = 9223372036854775807", "available_at", |event| event.available_at.year() == 9999),
    ("created_at = -5", "created_at", |event| event.created_at.unix_timestamp() == 0),
    ("processed_at = -5", "processed_at", |event| {
        event.processed_at.is_some_and(|at| at.unix_timestamp() == 0)
    }),
    ("changed_at = -5", "updated_at", |event| event.updated_at.unix_timestamp() == 0),
    ("event_name = 'a' || char(0) || 'b'", "", |event| event.event_name == "a\0b"),
    ("payload = 'no JSON', metadata = CAST(x'ff' AS TEXT)", "", |event| event.event_name == "a"),
];

/// What only a program that has switched the CHECKs off can write.
const UNCHECKED: [(&str, &str, IsShown); 9] = [
    ("id = x'0102'", "id", |event| event.id.as_uuid().is_nil()),
    ("causation_id = x'01'", "causation_id", |event| {
        event.causation_id.is_some_and(|id| id.as_uuid().is_nil())
    }),
    ("status = 'archived'", "status", |event| event.status == OutboxStatus::DeadLetter),
    ("status = CAST(x'ff' AS TEXT)", "status", |event| event.status == OutboxStatus::DeadLetter),
    ("attempt_count = -3", "attempt_count", |event| event.attempt_count == 0),
    ("payload_version = -3", "payload_version", |event| event.version == 0),
    ("event_name = ''", "", |event| event.event_name.is_empty()),
    ("aggregate_id = replace(hex(zeroblob(2000000)), '0', 'i')", "aggregate_id", |event| {
        event.aggregate_id.is_empty()
    }),
    ("last_error = replace(hex(zeroblob(2000000)), '0', 'e')", "last_error", |event| {
        event.last_error.as_deref() == Some("")
    }),
];

/// The middle one of five, which another program has written to.
fn spoil(test: &TestBox, set: &str, unchecked: bool) -> Vec<EventId> {
    let published = test.bus.publish_all((0..5).map(|_| event("a"))).unwrap();
    let update = format!("UPDATE outbox_event SET {set} WHERE id = ?1");
    let changed = if unchecked {
        let conn = test.app_connection();
        conn.pragma_update(None, "ignore_check_constraints", true).unwrap();
        conn.execute(&update, params![published[2].as_uuid()]).unwrap()
    } else {
        sql(&test.bus, |tx| tx.execute(&update, params![published[2].as_uuid()]))
    };
    assert_eq!(changed, 1, "{set}");
    published
}

#[track_caller]
fn assert_shown(test: &TestBox, published: &[EventId], set: &str, column: &str, is_shown: IsShown) {
    on_both(test, |outbox| {
        for page in [Page::oldest(10), Page::newest(10)] {
            let mut events = outbox.list(&EventFilter::new(), &page).unwrap().events;
            if events[0].id == published[4] {
                events.reverse();
            }
            assert_eq!(events.len(), 5, "{set}");
            for neighbour in [0, 1, 3, 4] {
                assert_eq!(events[neighbour].id, published[neighbour], "{set}");
                assert!(events[neighbour].unreadable.is_empty(), "{set}");
            }
            let shown = &events[2];
            assert!(is_shown(shown), "{set}: {shown:?}");
            let expected: Vec<&str> = if column.is_empty() { vec![] } else { vec![column] };
            assert_eq!(shown.unreadable, expected, "{set}");
        }
    });
}

#[test]
fn a_spoilt_row_is_in_its_place_and_shown_as_far_as_it_can_be() {
    for (set, column, is_shown) in SPOILT {
        for test in &boxes() {
            let published = spoil(test, set, false);
            assert_shown(test, &published, set, column, is_shown);
        }
    }
}

#[test]
fn so_is_one_that_was_written_past_the_checks() {
    for (set, column, is_shown) in UNCHECKED {
        let test = file_box();
        let published = spoil(&test, set, true);
        assert_shown(&test, &published, set, column, is_shown);
    }
}

/// Two updates of one column each, and all at once.
#[test]
fn each_column_that_cannot_be_read_is_named() {
    for test in &boxes() {
        let set = "event_name = CAST(x'ff' AS TEXT), aggregate_id = CAST(x'ff' AS TEXT), created_at = -1, changed_at = 1";
        let published = spoil(test, set, false);
        let page = test.bus.outbox().list(&EventFilter::new(), &Page::oldest(10)).unwrap();
        assert_eq!(ids(&page.events), published);
        assert_eq!(page.events[2].unreadable, ["created_at", "event_name", "aggregate_id"]);
    }
}

/// It is the index of dead letters that has it, but by its own status.
#[test]
fn a_status_that_nobody_knows_is_no_filters() {
    let test = file_box();
    spoil(&test, "status = 'archived'", true);
    let outbox = test.bus.outbox();
    assert_eq!(outbox.count(&EventFilter::new()).unwrap(), 5);
    for (status, count) in [
        (OutboxStatus::Pending, 4),
        (OutboxStatus::Processing, 0),
        (OutboxStatus::Processed, 0),
        (OutboxStatus::Failed, 0),
        (OutboxStatus::DeadLetter, 0),
    ] {
        assert_eq!(outbox.count(&EventFilter::new().status(status)).unwrap(), count);
    }
    drop(test.second()); // sets it aside
    assert_eq!(outbox.count(&EventFilter::new().status(OutboxStatus::DeadLetter)).unwrap(), 1);
}

/// Of all events, support has to look at just this one.
#[test]
fn the_story_of_an_event_that_cannot_be_read_is_told() {
    for test in &boxes() {
        let set = "payload = 'no JSON', metadata = CAST(x'ff' AS TEXT), aggregate_id = CAST(x'69ff' AS TEXT)";
        let published = spoil(test, set, false);
        assert!(test.bus.outbox().get(published[2]).is_err());
        on_both(test, |outbox| {
            let story = outbox.story(published[2]).unwrap().unwrap();
            assert_eq!(story.event.id, published[2]);
            assert_eq!((&story.event.payload, &story.event.metadata), (&Value::Null, &Some(Value::Null)));
            assert_eq!(story.event.aggregate_id, "i\u{fffd}");
            assert_eq!(story.unreadable, ["aggregate_id", "payload", "metadata"]);
            assert_eq!(outbox.causation_tree(published[2]).unwrap().unwrap().nodes.len(), 1);
        });
    }
}

/// What stands for the ids of both would be the same.
#[test]
fn events_without_a_readable_id_are_nobodys_cause() {
    let test = file_box();
    let published = test.bus.publish_all((0..3).map(|_| event("a"))).unwrap();
    let conn = test.app_connection();
    conn.pragma_update(None, "ignore_check_constraints", true).unwrap();
    conn.execute("UPDATE outbox_event SET causation_id = zeroblob(16) WHERE seq = 3", []).unwrap();
    conn.execute(
        "UPDATE outbox_event SET id = x'00', causation_id = ?1 WHERE seq = 2",
        [published[0].as_uuid()],
    )
    .unwrap();
    let tree = test.bus.outbox().causation_tree(published[0]).unwrap().unwrap();
    let shown: Vec<_> = tree.walk().map(|(depth, node)| (depth, node.event.unreadable.clone())).collect();
    assert_eq!(shown, [(0, vec![]), (1, vec!["id"])]);
    let tree = test.bus.outbox().causation_tree(published[2]).unwrap().unwrap();
    assert_eq!(tree.nodes.len(), 1);
}
