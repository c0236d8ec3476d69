//! Idempotency keys: the same source module and key is the same event, published once.

use std::collections::HashSet;
use std::sync::Barrier;
use std::thread;

use postbox::{Context, Error, Event, EventId, HandlerError, NewEvent, OutboxStatus, Subscription};
use serde_json::json;

use crate::support::{
    Calls, SECOND, TestBox, boxes, event, file_box, lose_an_attempt, noting, outbox_row, status,
};

fn keyed(key: &str) -> NewEvent {
    event("keyed").idempotency_key(key)
}

#[test]
fn the_same_module_and_key_is_the_same_event_and_its_first_content_stays() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", noting(&calls, "ran"))).unwrap();
        let first = bus.publish(keyed("k").payload(json!(1))).unwrap();
        let other_content = NewEvent::new("other.name", "finance", "Other", "2")
            .payload(json!(2))
            .delay(9 * SECOND)
            .idempotency_key("k");
        assert_eq!(bus.publish(other_content).unwrap(), first, "{kind}");
        assert_eq!(bus.transaction(|tx| tx.publish(keyed("k"))).unwrap(), first);
        let row = outbox_row(bus, first);
        assert_eq!((row.event_name.as_str(), row.payload), ("keyed", json!(1)));
        assert_eq!(bus.stats().unwrap().total, 1);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), ["ran"]);
    }
}

#[test]
fn another_module_or_another_key_is_another_event() {
    for TestBox { bus, .. } in &boxes() {
        let with = |module: &str, key: &str| {
            bus.publish(NewEvent::new("a", module, "T", "1").idempotency_key(key)).unwrap()
        };
        let ids = [
            with("finance", "k"),
            with("finance", "K"),
            with("finance", "k "),
            with("sales", "k"),
            // The same characters, cut elsewhere.
            with("sales", "a/b"),
            with("sales/a", "b"),
            with("s", "alesk"),
            bus.publish(event("a")).unwrap(),
            bus.publish(event("a")).unwrap(),
        ];
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        assert_eq!(bus.stats().unwrap().total, 9);
        let versions = ids.map(|id| id.as_uuid().get_version_num());
        assert_eq!(versions, [5, 5, 5, 5, 5, 5, 5, 7, 7]);
    }
}

#[test]
fn publish_all_publishes_a_key_once_whether_it_is_there_already_or_comes_twice() {
    for TestBox { bus, .. } in &boxes() {
        let before = bus.publish(keyed("before")).unwrap();
        let ids = bus.publish_all([keyed("twice"), keyed("before"), event("none"), keyed("twice")]).unwrap();
        assert_eq!(ids[0], ids[3]);
        assert_eq!(ids[1], before);
        assert_eq!(bus.stats().unwrap().total, 3);
        assert_eq!(bus.drain().unwrap(), 3);
    }
}

#[test]
fn a_key_still_stands_after_its_event_was_processed_or_given_up() {
    for TestBox { bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("keyed", "c", noting(&calls, "ran"))).unwrap();
        bus.subscribe(Subscription::new("bad", "c", |_: &Event, _: &Context<'_>| {
            Err(HandlerError::dead_letter("no"))
        }))
        .unwrap();
        let done = bus.publish(keyed("done")).unwrap();
        let dead = bus.publish(event("bad").idempotency_key("dead")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(bus.publish(keyed("done")).unwrap(), done);
        assert_eq!(bus.publish(event("bad").idempotency_key("dead")).unwrap(), dead);
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.all(), ["ran"]);
        assert_eq!(status(bus, done), OutboxStatus::Processed);
        assert_eq!(status(bus, dead), OutboxStatus::DeadLetter);
    }
}

#[test]
fn a_key_still_stands_after_a_restart() {
    let test = file_box();
    let id = test.bus.publish(keyed("k")).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 1);
    let test = test.reopen();
    assert_eq!(test.bus.publish(keyed("k")).unwrap(), id);
    assert_eq!(test.second().publish(keyed("k")).unwrap(), id);
    assert_eq!(test.bus.stats().unwrap().total, 1);
    assert_eq!(test.bus.drain().unwrap(), 0);
}

#[test]
fn a_key_whose_transaction_was_rolled_back_is_free() {
    for TestBox { bus, .. } in &boxes() {
        let rolled_back = bus.transaction::<EventId, Error>(|tx| {
            tx.publish(keyed("k").payload(json!("first")))?;
            Err(Error::Closed { operation: "any error" })
        });
        assert!(rolled_back.is_err());
        let id = bus.publish(keyed("k").payload(json!("second"))).unwrap();
        assert_eq!(outbox_row(bus, id).payload, json!("second"));
        assert_eq!(bus.drain().unwrap(), 1);
    }
}

#[test]
fn many_threads_with_one_key_publish_once() {
    for TestBox { kind, bus, .. } in &boxes() {
        let together = Barrier::new(16);
        let ids: HashSet<EventId> = thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|n| {
                    let together = &together;
                    scope.spawn(move || {
                        together.wait();
                        match n % 3 {
                            0 => bus.publish(keyed("k")).unwrap(),
                            1 => bus.publish_all([event("other"), keyed("k")]).unwrap()[1],
                            _ => bus.transaction(|tx| tx.publish(keyed("k"))).unwrap(),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(ids.len(), 1, "{kind}");
        assert_eq!(bus.stats().unwrap().total, 1 + 5, "{kind}: the key's event, and five others");
    }
}

#[test]
fn a_follow_up_keyed_by_its_cause_is_published_once_however_often_the_handler_runs() {
    for TestBox { bus, .. } in &boxes() {
        bus.subscribe(Subscription::new("a", "c", |event: &Event, cx: &Context<'_>| {
            cx.publish(keyed(&format!("{}/b", event.id())))?;
            if event.attempt() < 2 { Err(HandlerError::retry("after publishing")) } else { Ok(()) }
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        lose_an_attempt(bus, id);
        bus.drain().unwrap();
        assert_eq!(status(bus, id), OutboxStatus::Processed);
        assert_eq!(bus.stats().unwrap().total, 2);
    }
}
