//! Events that have not started: listed, moved, cancelled.

use std::time::Duration;

use postbox::{
    Error, EventFilter, EventId, HandlerError, HistoryKind, NewEvent, OutboxStatus, PauseTarget, Postbox,
    Settings, Subscription,
};

use super::{entries, failing, some};
use crate::support::{
    Calls, SECOND, TestBox, boxes, boxes_with, event, file_box, inbox_rows, just_before, noting, outbox_row,
    refused_field, sql, start_time, status,
};

const HOUR: Duration = Duration::from_hours(1);

fn all() -> EventFilter {
    EventFilter::new()
}

fn in_hours(hours: u32) -> NewEvent {
    event("a").delay(HOUR * hours)
}

fn ids(bus: &Postbox, filter: &EventFilter) -> Vec<EventId> {
    bus.outbox().future(filter, 1_000).unwrap().into_iter().map(|event| event.id).collect()
}

fn listening(test: &TestBox) -> Calls {
    let calls = Calls::default();
    test.bus.subscribe(Subscription::new("*", "c", noting(&calls, "c"))).unwrap();
    calls
}

#[track_caller]
fn refused(result: postbox::Result<()>, at: &str) {
    match result {
        Err(Error::WrongStatus { status, expected, .. }) => {
            assert_eq!((status, expected), (at, "an event that has not started"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_published_for_later_is_listed_in_the_order_of_its_times_until_it_is_due() {
    for test in boxes() {
        let bus = &test.bus;
        let calls = listening(&test);
        let late = bus.publish(in_hours(3)).unwrap();
        let soon = bus.publish(in_hours(1)).unwrap();
        let also_soon = bus.publish(in_hours(1)).unwrap();
        bus.publish(event("a")).unwrap();
        let other = bus.publish(event("b").correlation_id("o-7").delay(HOUR * 2)).unwrap();
        assert_eq!(ids(bus, &all()), [soon, also_soon, other, late], "{}", test.kind);
        assert_eq!(ids(bus, &all().name("a")), [soon, also_soon, late]);
        assert_eq!(ids(bus, &all().correlation_id("o-7")), [other]);
        assert_eq!(ids(bus, &all().status(OutboxStatus::Processed)), []);
        test.clock.advance(just_before(HOUR));
        assert_eq!(ids(bus, &all()).len(), 4);
        test.clock.advance(Duration::from_micros(1));
        assert_eq!(ids(bus, &all()), [other, late], "those that are due are not to come any more");
        bus.drain().unwrap();
        assert_eq!(calls.all().len(), 3);
    }
}

#[test]
fn pages_go_on_behind_an_event_also_when_several_are_due_together_or_it_is_gone() {
    for test in boxes() {
        let bus = &test.bus;
        let published: Vec<EventId> = (0..25).map(|n| bus.publish(in_hours(1 + n / 10)).unwrap()).collect();
        let mut seen = Vec::new();
        let mut page = bus.outbox().future(&all(), 7).unwrap();
        while let Some(last) = page.last().cloned() {
            seen.extend(page.iter().map(|event| event.id));
            bus.outbox().cancel(last.id, "it is seen").unwrap();
            page = bus.outbox().future_after(&last, &all(), 7).unwrap();
        }
        assert_eq!(seen, published, "{}", test.kind);
        for limit in [0, 1_001] {
            assert_eq!(refused_field(bus.outbox().future(&all(), limit)), "limit");
        }
    }
}

#[test]
fn one_that_is_moved_is_due_at_its_new_time() {
    for test in boxes() {
        let bus = &test.bus;
        let calls = listening(&test);
        let [later, sooner, now] = [(); 3].map(|()| bus.publish(in_hours(2)).unwrap());
        bus.outbox().reschedule(later, start_time() + HOUR * 5).unwrap();
        bus.outbox().reschedule(sooner, start_time() + HOUR).unwrap();
        bus.outbox().reschedule(now, start_time() - HOUR).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{}", test.kind);
        assert_eq!(status(bus, now), OutboxStatus::Processed);
        assert_eq!(outbox_row(bus, sooner).available_at, start_time() + HOUR);
        test.clock.advance(HOUR);
        assert_eq!((bus.drain().unwrap(), status(bus, sooner)), (1, OutboxStatus::Processed));
        test.clock.advance(just_before(HOUR * 4));
        assert_eq!(bus.drain().unwrap(), 0);
        test.clock.advance(Duration::from_micros(1));
        assert_eq!((bus.drain().unwrap(), calls.all().len()), (1, 3));
    }
}

#[test]
fn one_that_is_cancelled_reaches_nobody_and_says_why() {
    for test in boxes() {
        let bus = &test.bus;
        let calls = listening(&test);
        let id = bus.publish(in_hours(2).idempotency_key("reminder")).unwrap();
        bus.outbox().cancel(id, "it was paid").unwrap();
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.last_error), (OutboxStatus::Processed, some("cancelled: it was paid")));
        assert_eq!(entries(bus, id), [(HistoryKind::Discarded, None, some("it was paid"))], "{}", test.kind);
        let stats = bus.stats().unwrap();
        assert_eq!((stats.pending, stats.processed, stats.total), (0, 1, 1));
        assert_eq!(bus.verify().unwrap().findings.len(), 0);
        assert_eq!(bus.publish(in_hours(2).idempotency_key("reminder")).unwrap(), id, "its key finds it");
        test.clock.advance(HOUR * 3);
        assert_eq!((bus.drain().unwrap(), calls.all().len(), inbox_rows(bus, id).len()), (0, 0, 0));
        refused(bus.outbox().cancel(id, "again"), "processed");
        refused(bus.outbox().reschedule(id, start_time()), "processed");
    }
}

/// A consumer that caught up with its past was given reminders of what had been paid.
#[test]
fn one_that_is_cancelled_is_neither_replayed_nor_caught_up_with() {
    for test in boxes() {
        let bus = &test.bus;
        let calls = listening(&test);
        let [cancelled, kept] = [(); 2].map(|()| bus.publish(in_hours(1)).unwrap());
        bus.outbox().cancel(cancelled, "it was paid").unwrap();
        test.clock.advance(HOUR * 2);
        assert_eq!((bus.drain().unwrap(), calls.take().len()), (1, 1), "{}", test.kind);
        let late = Calls::default();
        bus.subscribe(Subscription::new("*", "late", noting(&late, "late"))).unwrap();
        let all = EventFilter::new();
        let past = all.clone().past().status(OutboxStatus::Processed);
        assert_eq!(bus.outbox().count(&past).unwrap(), 1);
        assert_eq!(bus.outbox().catch_up(&all, "late").unwrap(), 1);
        bus.drain().unwrap();
        assert_eq!(bus.outbox().replay(&all, "late").unwrap(), 1);
        bus.drain().unwrap();
        assert_eq!((late.all().len(), inbox_rows(bus, cancelled).len()), (2, 0));
        assert_eq!(inbox_rows(bus, kept).len(), 2);
    }
}

#[test]
fn one_that_has_started_is_neither_moved_nor_cancelled() {
    for test in boxes() {
        let bus = &test.bus;
        failing(bus, "c", 2, &|_| Err(HandlerError::retry("not yet")));
        let id = bus.publish(in_hours(1)).unwrap();
        test.clock.advance(HOUR);
        bus.drain().unwrap();
        assert_eq!(status(bus, id), OutboxStatus::Pending, "{}", test.kind);
        refused(bus.outbox().cancel(id, "too late"), "pending");
        refused(bus.outbox().reschedule(id, start_time() + HOUR * 9), "pending");
        assert_eq!(ids(bus, &all()), [], "what waits for a backoff is not to come");
        assert_eq!(bus.outbox().cancel_all(&all(), "too late").unwrap(), 0);
        test.clock.advance(HOUR);
        bus.drain().unwrap();
        refused(bus.outbox().cancel(id, "too late"), "dead_letter");
        bus.outbox().retry(id).unwrap();
        refused(bus.outbox().cancel(id, "too late"), "pending");
        let taken_over = bus.publish(in_hours(1)).unwrap();
        sql(bus, |tx| {
            // Its process died in its handler: an attempt is spent, and no consumer has said anything yet.
            tx.execute("UPDATE outbox_event SET attempt_count = 1 WHERE id = ?1", [taken_over.as_uuid()])
        });
        refused(bus.outbox().cancel(taken_over, "too late"), "pending");
        let unknown = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        assert!(matches!(bus.outbox().cancel(unknown, "x"), Err(Error::NotFound { what: "event", .. })));
        assert_eq!(refused_field(bus.outbox().cancel(id, "")), "reason");
    }
}

#[test]
fn one_that_is_due_but_paused_or_not_claimed_yet_can_still_be_moved_and_cancelled() {
    for test in boxes() {
        let bus = &test.bus;
        let calls = listening(&test);
        bus.pause(&PauseTarget::event_name("a"), None, None).unwrap();
        let [moved, gone] = [(); 2].map(|()| bus.publish(event("a")).unwrap());
        bus.drain().unwrap(); // they are put aside for the pause
        let unclaimed = bus.publish(event("b")).unwrap();
        bus.outbox().cancel(unclaimed, "a mistake").unwrap();
        bus.outbox().cancel(gone, "a mistake").unwrap();
        bus.outbox().reschedule(moved, start_time() + HOUR).unwrap();
        bus.resume(&PauseTarget::event_name("a")).unwrap();
        assert_eq!((bus.drain().unwrap(), calls.all().len()), (0, 0), "{}", test.kind);
        test.clock.advance(HOUR);
        assert_eq!((bus.drain().unwrap(), calls.all().len()), (1, 1));
    }
}

#[test]
fn a_transaction_moves_and_cancels_if_it_commits() {
    for test in boxes() {
        let bus = &test.bus;
        let [moved, gone] = [(); 2].map(|()| bus.publish(in_hours(1)).unwrap());
        for commits in [false, true] {
            let done = bus.transaction(|tx| -> Result<(), Error> {
                tx.outbox().cancel(gone, "it was paid")?;
                tx.outbox().reschedule(moved, start_time() + HOUR * 2)?;
                if commits { Ok(()) } else { Err(Error::Closed { operation: "the test" }) }
            });
            assert_eq!(done.is_ok(), commits);
            let expected = if commits { vec![moved] } else { vec![moved, gone] };
            assert_eq!(ids(bus, &all()), expected, "{}", test.kind);
        }
    }
}

#[test]
fn many_are_cancelled_by_a_filter() {
    for test in boxes() {
        let bus = &test.bus;
        let calls = listening(&test);
        bus.publish_all((0..450).map(|_| in_hours(1).correlation_id("o-7"))).unwrap();
        let left = bus.publish(in_hours(1)).unwrap();
        assert_eq!(bus.outbox().cancel_all(&all().correlation_id("o-7"), "paid").unwrap(), 450);
        assert_eq!(ids(bus, &all()), [left], "{}", test.kind);
        let counted: u64 =
            sql(bus, |tx| tx.query_row("SELECT processed FROM postbox_counter", [], |row| row.get(0)));
        assert_eq!(counted, 450);
        test.clock.advance(HOUR);
        assert_eq!((bus.drain().unwrap(), calls.all().len()), (1, 1));
    }
}

#[test]
fn what_waits_behind_one_that_is_cancelled_or_moved_has_its_turn() {
    for test in boxes_with(|builder| builder.settings(Settings { max_attempts: 1, ..Settings::default() })) {
        let bus = &test.bus;
        let calls = Calls::default();
        bus.subscribe(Subscription::new("*", "c", noting(&calls, "c")).ordered()).unwrap();
        bus.pause(&PauseTarget::event_name("first"), None, None).unwrap();
        let cancelled = bus.publish(event("first")).unwrap();
        let moved = bus.publish(event("first")).unwrap();
        bus.publish(event("second")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0, "{}: behind what is paused", test.kind);
        bus.outbox().cancel(cancelled, "a mistake").unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        bus.outbox().reschedule(moved, start_time() + HOUR).unwrap();
        assert_eq!((bus.drain().unwrap(), calls.all().len()), (1, 1));
    }
}

#[test]
fn what_is_to_come_outlives_a_restart_and_a_clock_that_jumps() {
    let test = file_box();
    let id = test.bus.publish(in_hours(2)).unwrap();
    let cancelled = test.bus.publish(in_hours(2)).unwrap();
    test.bus.outbox().reschedule(id, start_time() + HOUR * 3).unwrap();
    test.bus.outbox().cancel(cancelled, "a mistake").unwrap();
    test.clock.advance(HOUR);
    let test = test.reopen();
    assert_eq!(ids(&test.bus, &all()), [id]);
    let calls = listening(&test);
    test.clock.set(start_time() - HOUR * 24);
    assert_eq!(ids(&test.bus, &all()), [id], "the box's time does not go back");
    test.clock.advance((HOUR * 2).checked_sub(SECOND).unwrap());
    assert_eq!(test.bus.drain().unwrap(), 0);
    test.clock.advance(SECOND);
    assert_eq!((test.bus.drain().unwrap(), calls.all().len()), (1, 1));
}
