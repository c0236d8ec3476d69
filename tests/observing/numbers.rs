//! What a box says of itself: sizes, failures, and how far behind its consumers are.

use postbox::{
    ConsumerLag, Context, Event, EventFilter, HandlerError, PauseTarget, Postbox, Subscription, Tx,
};

use crate::support::{SECOND, TestBox, boxes, event, file_box, lose_an_attempt, noting, start_time};
use crate::{CANARY, both_kinds};

#[test]
fn sizes_are_those_of_the_file_and_its_wal() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.publish(event("a")).unwrap();
        let stats = bus.stats().unwrap();
        let is_file = *kind == "file";
        assert_eq!(stats.file_bytes.is_some(), is_file, "{kind}");
        assert_eq!(stats.wal_bytes.is_some_and(|bytes| bytes > 0), is_file, "{kind}");
    }
    let test = file_box();
    test.bus
        .with_quiesced_file(|path| {
            let size = std::fs::metadata(path)?.len();
            assert_eq!(test.bus.stats().unwrap().file_bytes, Some(size));
            Ok(())
        })
        .unwrap();
}

#[test]
fn failed_attempts_are_counted_and_the_last_is_named() {
    for of_kind in 0..2 {
        for TestBox { kind, bus, clock, .. } in &boxes() {
            let [plain, transactional] = both_kinds("a", "c", |attempt| match attempt {
                1 => Err(HandlerError::retry(CANARY)),
                2 => panic!("{CANARY}"),
                _ => Ok(()),
            });
            let (handler, subscription) = if of_kind == 0 { plain } else { transactional };
            bus.subscribe(subscription).unwrap();
            let [_, skipping] = both_kinds("b", "d", |_| Err(HandlerError::skip("no")));
            bus.subscribe(skipping.1).unwrap();
            let stats = bus.stats().unwrap();
            assert_eq!((stats.retries, stats.last_failure), (0, None), "{handler}, {kind}");
            bus.publish(event("b")).unwrap();
            let id = bus.publish(event("a")).unwrap();
            clock.advance(SECOND);
            bus.drain().unwrap();
            let stats = bus.stats().unwrap();
            assert_eq!(stats.retries, 2, "{handler}, {kind}");
            let last = stats.last_failure.as_ref().unwrap();
            assert_eq!((last.event_id, last.consumer_name.as_str()), (id, "c"), "{handler}, {kind}");
            assert_eq!(last.at, start_time() + SECOND, "{handler}, {kind}");
            let shown = format!("{stats:?}{}", serde_json::to_string(&stats).unwrap());
            assert!(!shown.contains(CANARY) && shown.contains("22:13:21"), "{shown}");
        }
    }
}

fn lag(bus: &Postbox) -> Vec<(String, u64, Option<u64>)> {
    let each = |one: ConsumerLag| (one.consumer_name, one.waiting, one.oldest_age_ms);
    bus.lag().unwrap().into_iter().map(each).collect()
}

fn of(consumer: &str, waiting: u64, oldest_age_ms: Option<u64>) -> (String, u64, Option<u64>) {
    (consumer.to_owned(), waiting, oldest_age_ms)
}

#[test]
fn lag_counts_what_each_consumer_has_still_to_finish() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        assert!(bus.lag().unwrap().is_empty());
        let calls = crate::support::Calls::default();
        bus.subscribe(Subscription::new("invoice.*", "all", noting(&calls, "all"))).unwrap();
        bus.subscribe(Subscription::new("invoice.paid", "paid", noting(&calls, "paid"))).unwrap();
        bus.subscribe(Subscription::new("other", "other", noting(&calls, "other"))).unwrap();
        let none = [of("all", 0, None), of("other", 0, None), of("paid", 0, None)];
        assert_eq!(lag(bus), none, "{kind}");

        bus.publish(event("invoice.created")).unwrap();
        clock.advance(SECOND);
        let id = bus.publish(event("invoice.paid")).unwrap();
        bus.publish(event("invoice.paid").delay(SECOND)).unwrap();
        bus.publish(event("nobody")).unwrap();
        clock.advance(SECOND / 2);
        let some = [of("all", 3, Some(1_500)), of("other", 0, None), of("paid", 2, Some(500))];
        assert_eq!(lag(bus), some, "{kind}");
        lose_an_attempt(bus, id); // claimed, as far as anybody knows
        assert_eq!(lag(bus), some, "{kind}");

        // One of them is paused: the other one has done its part.
        bus.pause(&PauseTarget::consumer("paid"), None, None).unwrap();
        bus.drain().unwrap();
        assert_eq!(
            lag(bus),
            [of("all", 1, Some(500)), of("other", 0, None), of("paid", 2, Some(500))],
            "{kind}"
        );
        bus.resume(&PauseTarget::consumer("paid")).unwrap();
        clock.advance(SECOND);
        bus.drain().unwrap();
        assert_eq!(lag(bus), none, "{kind}");

        // What is replayed waits for one consumer alone, not for one that has never seen it.
        bus.subscribe(Subscription::new("invoice.*", "late", noting(&calls, "late"))).unwrap();
        bus.outbox().replay(&EventFilter::new().name("invoice.paid"), "paid").unwrap();
        assert_eq!(
            lag(bus),
            [of("all", 0, None), of("late", 0, None), of("other", 0, None), of("paid", 2, Some(1_500))],
            "{kind}"
        );
    }
}

#[test]
fn lag_leaves_out_what_a_consumer_has_given_up() {
    for TestBox { kind, bus, .. } in &boxes() {
        let later = |_: &Event, _: &Context<'_>| Err(HandlerError::retry("later"));
        bus.subscribe(Subscription::new("a", "later", later)).unwrap();
        bus.subscribe(Subscription::transactional("a", "never", |_: &Event, _: &Tx<'_>| {
            Err(HandlerError::dead_letter("never"))
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(lag(bus), [of("later", 1, Some(0)), of("never", 0, None)], "{kind}");
        // Within a transaction as well.
        bus.transaction(|tx| -> postbox::Result<()> {
            tx.publish(event("a"))?;
            if *kind == "memory" {
                assert_eq!(lag(bus), [of("later", 2, Some(0)), of("never", 1, Some(0))]);
            }
            Ok(())
        })
        .unwrap();
    }
}
