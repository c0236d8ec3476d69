//! Decisions about all events that a filter means.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postbox::{
    Context, Error, Event, EventFilter, HandlerError, NewEvent, OutboxStatus, Postbox, Settings,
    Subscription, Tx,
};

use crate::support::{TestBox, boxes, boxes_with, event, refused_field, sql};

fn once() -> Settings {
    Settings { max_attempts: 1, batch_size: 100, ..Settings::default() }
}

/// Dead letters: so many of each name, about an entity of the same name.
fn dead(test: &TestBox, names: &[(&str, usize)]) -> Arc<AtomicBool> {
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = Arc::clone(&mended);
    test.bus
        .subscribe(Subscription::new("*", "c", move |event: &Event, _: &Context<'_>| {
            if is_mended.load(Ordering::SeqCst) {
                Ok(())
            } else {
                Err(HandlerError::retry(format!("no {}", event.name())))
            }
        }))
        .unwrap();
    for (name, count) in names {
        let events = (0..*count).map(|_| NewEvent::new(*name, "m", "t", *name));
        test.bus.publish_all(events).unwrap();
    }
    test.bus.drain().unwrap();
    mended
}

fn counts(bus: &Postbox) -> [u64; 4] {
    let stats = bus.stats().unwrap();
    [stats.pending, stats.processed, stats.failed, stats.dead_letter]
}

fn history_of(bus: &Postbox, kind: &str) -> i64 {
    sql(bus, |tx| {
        tx.query_row("SELECT count(*) FROM postbox_history WHERE kind = ?1", [kind], |row| row.get(0))
    })
}

#[test]
fn all_that_the_filter_means_are_retried_and_nothing_else() {
    for test in boxes_with(|builder| builder.settings(once())) {
        let mended = dead(&test, &[("a.one", 450), ("a.two", 30), ("b", 20)]);
        let bus = &test.bus;
        assert_eq!(counts(bus), [0, 0, 0, 500]);
        let of_a = EventFilter::new().name("a.*");
        assert_eq!(bus.outbox().count(&of_a).unwrap(), 480);
        mended.store(true, Ordering::SeqCst);
        assert_eq!(bus.outbox().retry_all(&of_a).unwrap(), 480, "{}", test.kind);
        assert_eq!(counts(bus), [480, 0, 0, 20]);
        assert_eq!(bus.outbox().retry_all(&of_a).unwrap(), 0, "they are no dead letters any more");
        assert_eq!(bus.drain().unwrap(), 480);
        assert_eq!(counts(bus), [0, 480, 0, 20]);
        assert_eq!(bus.outbox().retry_all(&EventFilter::new().error_contains("no b")).unwrap(), 20);
        assert_eq!(history_of(bus, "retried"), 500);
    }
}

#[test]
fn all_that_the_filter_means_are_discarded_with_the_reason() {
    for test in boxes_with(|builder| builder.settings(once())) {
        dead(&test, &[("a", 250), ("b", 5)]);
        let bus = &test.bus;
        bus.update_settings(|settings| settings.dead_letter_enabled = false).unwrap();
        bus.publish_all((0..3).map(|_| NewEvent::new("a", "m", "t", "a"))).unwrap();
        bus.drain().unwrap();
        assert_eq!(counts(bus), [0, 0, 3, 255]);
        let only_dead = EventFilter::new().name("a").status(OutboxStatus::DeadLetter);
        assert_eq!(bus.outbox().discard_all(&only_dead, "obsolete").unwrap(), 250, "{}", test.kind);
        assert_eq!(counts(bus), [0, 250, 3, 5]);
        assert_eq!(bus.outbox().discard_all(&EventFilter::new(), "the rest").unwrap(), 8);
        assert_eq!(counts(bus), [0, 258, 0, 0]);
        let reasons = EventFilter::new().error_contains("discarded: obsolete");
        assert_eq!(bus.outbox().count(&reasons).unwrap(), 250);
        assert_eq!(history_of(bus, "discarded"), 258);
    }
}

#[test]
fn filters_of_other_statuses_mean_no_dead_letters() {
    for test in boxes_with(|builder| builder.settings(once())) {
        dead(&test, &[("a", 2)]);
        let outbox = test.bus.outbox();
        for status in [OutboxStatus::Pending, OutboxStatus::Processing, OutboxStatus::Processed] {
            let filter = EventFilter::new().status(status);
            assert_eq!(outbox.retry_all(&filter).unwrap(), 0);
            assert_eq!(outbox.discard_all(&filter, "why").unwrap(), 0);
        }
        assert_eq!(counts(&test.bus), [0, 0, 0, 2], "{}", test.kind);
    }
}

#[test]
fn inside_a_transaction_all_or_none_are_decided_about() {
    for test in boxes_with(|builder| builder.settings(once())) {
        dead(&test, &[("a", 450)]);
        let bus = &test.bus;
        let undone: postbox::Result<()> = bus.transaction(|tx| {
            assert_eq!(tx.outbox().retry_all(&EventFilter::new())?, 450);
            Err(Error::WorkerRunning)
        });
        assert!(undone.is_err());
        assert_eq!((counts(bus), history_of(bus, "retried")), ([0, 0, 0, 450], 0), "{}", test.kind);
        let done = bus.transaction(|tx| tx.outbox().discard_all(&EventFilter::new(), "why"));
        assert_eq!((done.unwrap(), counts(bus)), (450, [0, 450, 0, 0]));
    }
}

#[test]
fn what_is_asked_for_wrongly_changes_nothing() {
    for test in boxes_with(|builder| builder.settings(once())) {
        dead(&test, &[("a", 1)]);
        let outbox = test.bus.outbox();
        let bad = EventFilter::new().name("a*");
        assert_eq!(refused_field(outbox.retry_all(&bad)), "event_name");
        assert_eq!(refused_field(outbox.discard_all(&bad, "why")), "event_name");
        assert_eq!(refused_field(outbox.replay(&bad, "c")), "event_name");
        assert_eq!(refused_field(outbox.discard_all(&EventFilter::new(), "")), "reason");
        assert_eq!(refused_field(outbox.replay(&EventFilter::new(), "")), "consumer_name");
        assert_eq!(refused_field(outbox.catch_up(&EventFilter::new(), &"x".repeat(256))), "consumer_name");
        assert_eq!(counts(&test.bus), [0, 0, 0, 1]);
    }
}

/// A trigger refuses the last part of a decision, and the application goes on with its transaction: what had been written by then was
/// committed, events of which no history knew why they were over, and in the counters nobody.
#[test]
fn a_decision_that_fails_in_a_transaction_that_goes_on_has_done_nothing() {
    for test in boxes() {
        let bus = &test.bus;
        let later = |n: usize| event("a").correlation_id(n.to_string()).delay(Duration::from_mins(1));
        let ids = bus.publish_all((0..450).map(later)).unwrap();
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER no BEFORE INSERT ON postbox_history
                 WHEN NEW.event = (SELECT seq FROM outbox_event WHERE correlation_id = '300')
                 BEGIN SELECT RAISE(ABORT, 'no'); END;",
            )
        });
        let goes_on = |tx: &Tx<'_>| -> postbox::Result<()> {
            assert!(tx.outbox().cancel(ids[300], "why").is_err());
            assert!(tx.outbox().cancel_all(&EventFilter::new(), "why").is_err());
            tx.publish(event("b")).map(drop)
        };
        bus.transaction(goes_on).unwrap();
        assert_eq!(bus.outbox().count(&EventFilter::new().unstarted()).unwrap(), 451, "{}", test.kind);
        let findings = bus.verify().unwrap().findings;
        assert!(findings.iter().all(|finding| finding.check != "counters"), "{findings:?}");
    }
}
