//! Timeouts: future events that are taken back when what they wait for comes.

use std::time::Duration;

use postbox::{
    Event, EventFilter, EventId, HandlerError, HandlerResult, ImportedEvent, InboxStatus, OutboxStatus, Page,
    PauseTarget, Postbox, Saga, SagaStep, Subscription,
};
use serde_json::json;

use crate::support::{
    Calls, SECOND, TestBox, boxes, file_box, just_before, noting as noting_calls, outbox_row, sql,
    start_time, status,
};
use crate::{MINUTE, Trail, assert_skipped, found, noted, of_order, order, outcome, seen};

/// `start` sets a timeout of ten minutes, `paid` takes it back, `later` moves it to ten minutes from then.
fn saga() -> Saga<Trail> {
    Saga::new("order")
        .starts_on("start", |trail: &mut Trail, event, step| {
            trail.note(event);
            set(step)
        })
        .on("paid", |trail, event, step| {
            trail.note(event);
            assert!(step.cancel_timeout("payment")?);
            assert!(!step.cancel_timeout("payment")?);
            Ok(())
        })
        .on("later", |trail, event, step| {
            trail.note(event);
            set(step)
        })
        .on("timed_out", |trail, event, step| {
            trail.seen.push(format!("{} {:?}", event.name(), step.fired_timeout()));
            assert!(step.fired_timeout().is_none() || !step.cancel_timeout("payment")?, "it is this event");
            Ok(())
        })
        .on("done", |trail, event, step| {
            trail.note(event);
            step.complete()?;
            Ok(())
        })
}

fn set(step: &SagaStep<'_>) -> HandlerResult {
    step.timeout("payment", 10 * MINUTE, order("timed_out", step.correlation_id()))?;
    Ok(())
}

fn timeouts(bus: &Postbox) -> Vec<EventId> {
    let page = bus.outbox().list(&EventFilter::new().name("timed_out"), &Page::oldest(100)).unwrap();
    page.events.into_iter().map(|event| event.id).collect()
}

fn started(bus: &Postbox) -> EventId {
    bus.subscribe_saga(saga()).unwrap();
    bus.publish(of_order("start")).unwrap();
    assert_eq!(bus.drain().unwrap(), 1);
    timeouts(bus)[0]
}

#[test]
fn a_timeout_comes_to_the_saga_when_its_time_has_come_and_is_noted_until_then() {
    for test in boxes() {
        let bus = &test.bus;
        let id = started(bus);
        let timeout = &found(bus).timeouts[0];
        assert_eq!((timeout.name.as_str(), timeout.event_id), ("payment", id), "{}", test.kind);
        assert_eq!((timeout.event_name.as_str(), timeout.due_at), ("timed_out", start_time() + 10 * MINUTE));
        let event = outbox_row(bus, id);
        assert_eq!((event.available_at, event.correlation_id.as_deref()), (timeout.due_at, Some("o-1")));

        test.clock.advance(just_before(10 * MINUTE));
        assert_eq!(bus.drain().unwrap(), 0);
        test.clock.advance(Duration::from_micros(1));
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(seen(bus), ["start", "timed_out Some(\"payment\")"], "{}", test.kind);
        assert_eq!(found(bus).timeouts, []);
    }
}

#[test]
fn a_timeout_that_is_cancelled_never_comes_also_across_restarts() {
    let test = file_box();
    let id = started(&test.bus);
    let test = test.reopen();
    test.bus.subscribe_saga(saga()).unwrap();
    test.bus.publish(of_order("paid")).unwrap();
    test.bus.drain().unwrap();
    let event = outbox_row(&test.bus, id);
    let why = "cancelled: the saga has cancelled the timeout";
    assert_eq!((event.status, event.last_error.as_deref()), (OutboxStatus::Processed, Some(why)));
    let test = test.reopen();
    test.bus.subscribe_saga(saga()).unwrap();
    test.clock.advance(20 * MINUTE);
    assert_eq!(test.bus.drain().unwrap(), 0);
    assert_eq!(seen(&test.bus), ["start", "paid"]);
    assert_eq!(found(&test.bus).timeouts, []);
}

/// It was shown as one that is still to come, at a time when it would not.
#[test]
fn a_timeout_that_somebody_has_cancelled_is_not_shown_as_one_that_comes() {
    for test in boxes() {
        let bus = &test.bus;
        let id = started(bus);
        bus.outbox().reschedule(id, start_time() + 30 * MINUTE).unwrap();
        assert_eq!(found(bus).timeouts[0].due_at, start_time() + 30 * MINUTE);
        bus.outbox().cancel(id, "the customer called").unwrap();
        assert_eq!(found(bus).timeouts, [], "{}", test.kind);
        // Nor once it has gone.
        bus.update_settings(|settings| settings.retention_ms = 1_000).unwrap();
        test.clock.advance(20 * MINUTE);
        assert!(bus.prune().unwrap() > 0);
        assert_eq!(found(bus).timeouts, [], "{}", test.kind);
        assert_eq!(bus.drain().unwrap(), 0);
        // The saga may set it anew, or do without.
        bus.publish(of_order("later")).unwrap();
        bus.publish(of_order("paid")).unwrap();
        assert_eq!(bus.drain().unwrap(), 2);
        assert_eq!(seen(bus), ["start", "later", "paid"], "{}", test.kind);
    }
}

#[test]
fn a_timeout_that_is_set_again_is_moved() {
    for test in boxes() {
        let bus = &test.bus;
        started(bus);
        test.clock.advance(5 * MINUTE);
        bus.publish(of_order("later")).unwrap();
        bus.drain().unwrap();
        let ids = timeouts(bus);
        assert_eq!(ids.len(), 2);
        assert_eq!(status(bus, ids[0]), OutboxStatus::Processed, "{}", test.kind);
        let noted: Vec<_> = found(bus).timeouts.into_iter().map(|timeout| timeout.event_id).collect();
        assert_eq!(noted, [ids[1]]);
        test.clock.advance(5 * MINUTE);
        assert_eq!(bus.drain().unwrap(), 0);
        test.clock.advance(5 * MINUTE);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(seen(bus).len(), 3, "{}", test.kind);
    }
}

#[test]
fn the_end_of_the_saga_takes_all_of_its_timeouts_back() {
    for test in boxes() {
        let bus = &test.bus;
        let id = started(bus);
        bus.publish(of_order("done")).unwrap();
        bus.drain().unwrap();
        let why = "cancelled: the saga has completed";
        assert_eq!(outbox_row(bus, id).last_error.as_deref(), Some(why), "{}", test.kind);
        test.clock.advance(20 * MINUTE);
        assert_eq!(bus.drain().unwrap(), 0);
    }
}

/// Both are due. The timeout was claimed, failed once, and waits for its backoff, so that it cannot be cancelled any more.
#[test]
fn a_timeout_that_has_started_when_its_step_comes_is_skipped() {
    for ends in ["paid", "later", "done"] {
        for test in boxes() {
            let (bus, calls) = (&test.bus, Calls::default());
            // It fails for another consumer, which runs first and keeps the event from the saga.
            let refusing = move |_: &Event, _: &postbox::Context<'_>| -> HandlerResult {
                calls.add("refused");
                if calls.all().len() == 1 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
            };
            bus.subscribe(Subscription::new("timed_out", "mail", refusing).priority(9)).unwrap();
            let id = started(bus);
            bus.pause(&postbox::PauseTarget::consumer("saga.order"), None, None).unwrap();
            test.clock.advance(10 * MINUTE);
            bus.drain().unwrap();
            assert!(outbox_row(bus, id).last_error.is_some(), "it has started");
            bus.resume(&postbox::PauseTarget::consumer("saga.order")).unwrap();
            bus.publish(of_order(ends)).unwrap();
            bus.drain().unwrap();
            assert_eq!(seen(bus), ["start", ends], "{}", test.kind);
            assert!(found(bus).timeouts.iter().all(|timeout| timeout.event_id != id));

            test.clock.advance(SECOND);
            assert_eq!(bus.drain().unwrap(), 1);
            let why = "saga `order` of `o-1`: the saga does not wait for this timeout any more";
            assert_skipped(bus, id, why);
            assert_eq!(seen(bus), ["start", ends], "{} {ends}", test.kind);
        }
    }
}

/// A step is late: whichever is handled first decides, and the other does not happen.
#[test]
fn a_step_that_comes_after_its_timeout_finds_it_gone() {
    for test in boxes() {
        let bus = &test.bus;
        let saga = Saga::<Trail>::new("order")
            .starts_on("start", |_, _, step| set(step))
            .on("timed_out", noted)
            .on("paid", |trail: &mut Trail, event, step| {
                trail.seen.push(format!("{} {}", event.name(), step.cancel_timeout("payment")?));
                Ok(())
            });
        bus.subscribe_saga(saga).unwrap();
        bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        test.clock.advance(10 * MINUTE);
        bus.publish(of_order("paid")).unwrap();
        bus.drain().unwrap();
        assert_eq!(seen(bus), ["timed_out", "paid false"], "{}", test.kind);
    }
}

#[test]
fn an_event_of_the_same_name_that_is_no_timeout_is_a_step_like_any_other() {
    for test in boxes() {
        let bus = &test.bus;
        started(bus);
        bus.publish(of_order("timed_out")).unwrap();
        bus.drain().unwrap();
        assert_eq!(seen(bus), ["start", "timed_out None"], "{}", test.kind);
        assert_eq!(found(bus).timeouts.len(), 1, "the timeout is still to come");
    }
}

#[test]
fn a_timeout_is_known_without_the_applications_correlate_and_only() {
    for test in boxes() {
        let bus = &test.bus;
        let saga = saga()
            .correlate(|event| event.payload()["order"].as_str().map(str::to_owned))
            .only(|event| event.name() == "start");
        bus.subscribe_saga(saga).unwrap();
        bus.publish(order("start", "x").payload(json!({ "order": "o-1" }))).unwrap();
        bus.drain().unwrap();
        test.clock.advance(10 * MINUTE);
        bus.drain().unwrap();
        assert_eq!(seen(bus).len(), 2, "{}", test.kind);
    }
}

#[test]
fn a_timeout_whose_handler_fails_is_noted_still_and_tried_again() {
    for test in boxes() {
        let (bus, calls) = (&test.bus, Calls::default());
        let fails = {
            let calls = calls.clone();
            move |trail: &mut Trail, event: &Event, _: &SagaStep<'_>| -> HandlerResult {
                calls.add("ran");
                trail.note(event);
                if calls.all().len() == 1 { Err(HandlerError::dead_letter("no")) } else { Ok(()) }
            }
        };
        let saga =
            Saga::<Trail>::new("order").starts_on("start", |_, _, step| set(step)).on("timed_out", fails);
        bus.subscribe_saga(saga).unwrap();
        bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        test.clock.advance(10 * MINUTE);
        bus.drain().unwrap();
        let id = timeouts(bus)[0];
        assert_eq!(status(bus, id), OutboxStatus::DeadLetter, "{}", test.kind);
        assert_eq!((found(bus).timeouts.len(), seen(bus).len()), (1, 0));
        bus.outbox().retry(id).unwrap();
        bus.drain().unwrap();
        assert_eq!((found(bus).timeouts.len(), seen(bus).len()), (0, 1), "{}", test.kind);
        assert_eq!(outcome(bus, id).0, InboxStatus::Processed);
    }
}

#[test]
fn other_consumers_of_a_timeout_that_is_cancelled_in_time_do_not_receive_it_either() {
    for test in boxes() {
        let (bus, calls) = (&test.bus, Calls::default());
        bus.subscribe(Subscription::new("timed_out", "mail", noting_calls(&calls, "mail"))).unwrap();
        started(bus);
        bus.publish(of_order("paid")).unwrap();
        bus.drain().unwrap();
        test.clock.advance(20 * MINUTE);
        bus.drain().unwrap();
        assert_eq!(calls.all(), [] as [&str; 0], "{}", test.kind);
    }
}

#[test]
fn a_clock_that_steps_back_or_far_ahead_neither_loses_a_timeout_nor_has_it_come_twice() {
    for test in boxes() {
        let bus = &test.bus;
        started(bus);
        // Back by a day: the box's time goes on from where it was.
        test.clock.set(start_time() - Duration::from_hours(24));
        assert_eq!(bus.drain().unwrap(), 0);
        test.clock.advance(10 * MINUTE);
        assert_eq!(bus.drain().unwrap(), 1, "{}", test.kind);
        assert_eq!(seen(bus).len(), 2);

        bus.publish(of_order("later")).unwrap();
        bus.drain().unwrap();
        test.clock.advance(Duration::from_hours(24 * 365));
        assert_eq!(bus.drain().unwrap(), 1);
        test.clock.set(start_time());
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(seen(bus).len(), 4, "{}", test.kind);
    }
}

/// Both have a handler on their hands at the same moment, and a restart lies between.
#[test]
fn a_clock_that_steps_back_across_a_restart_delays_a_timeout_by_nothing_more() {
    let test = file_box();
    started(&test.bus);
    test.clock.advance(9 * MINUTE);
    assert_eq!(test.bus.drain().unwrap(), 0);
    test.clock.set(start_time() - Duration::from_hours(1));
    let test = test.reopen();
    test.bus.subscribe_saga(saga()).unwrap();
    test.clock.advance(just_before(MINUTE));
    assert_eq!(test.bus.drain().unwrap(), 0);
    test.clock.advance(SECOND);
    assert_eq!(test.bus.drain().unwrap(), 1);
    assert_eq!(seen(&test.bus).len(), 2);
}

#[test]
fn a_timeout_that_is_no_more_is_skipped_when_its_conversation_is_gone_as_well() {
    for test in boxes() {
        let bus = &test.bus;
        let id = started(bus);
        sql(bus, |tx| tx.execute("DELETE FROM postbox_saga", []));
        test.clock.advance(10 * MINUTE);
        bus.drain().unwrap();
        assert_eq!(outcome(bus, id).0, InboxStatus::Skipped, "{}", test.kind);
    }
}

/// The saga of before is gone, and another has begun under the same correlation id: the timeout is not the new one's.
#[test]
fn a_timeout_of_an_earlier_conversation_of_the_same_id_is_skipped() {
    let test: TestBox = file_box();
    let bus = &test.bus;
    let id = started(bus);
    sql(bus, |tx| tx.execute("DELETE FROM postbox_saga", []));
    test.clock.advance(MINUTE);
    bus.publish(of_order("start")).unwrap();
    bus.drain().unwrap();
    test.clock.advance(9 * MINUTE);
    bus.drain().unwrap();
    assert_eq!(outcome(bus, id).0, InboxStatus::Skipped);
    assert_eq!(seen(bus), ["start"]);
    test.clock.advance(MINUTE);
    bus.drain().unwrap();
    assert_eq!(seen(bus).len(), 2);
}

/// The row keeps the time at which it was set.
#[test]
fn a_timeout_that_somebody_has_moved_is_told_with_its_new_time_and_comes_then() {
    for test in boxes() {
        let bus = &test.bus;
        started(bus);
        let before = found(bus).timeouts.remove(0);
        bus.outbox().reschedule(before.event_id, before.due_at + 2 * MINUTE).unwrap();
        let moved = found(bus).timeouts.remove(0);
        assert_eq!(
            (moved.event_id, moved.due_at),
            (before.event_id, before.due_at + 2 * MINUTE),
            "{}",
            test.kind
        );
        bus.pause(&PauseTarget::consumer("saga.order"), None, None).unwrap();
        test.clock.advance(13 * MINUTE);
        bus.drain().unwrap();
        let parked = found(bus).timeouts.remove(0);
        assert_eq!(
            parked, before,
            "while it waits for something else than its time, that is when it was to come"
        );
        bus.resume(&PauseTarget::consumer("saga.order")).unwrap();
        bus.drain().unwrap();
        assert_eq!(found(bus).timeouts, []);
    }
}

/// Its id is of a version of its own, which an import did not know: no file of a box with sagas could be taken over.
#[test]
fn a_timeout_is_taken_over_by_another_box_and_skipped_there() {
    for test in boxes() {
        let id = started(&test.bus);
        let other = file_box();
        other.bus.subscribe_saga(saga()).unwrap();
        assert_eq!(
            other.bus.import([ImportedEvent::new(id, of_order("timed_out"))]).unwrap(),
            1,
            "{}",
            test.kind
        );
        other.bus.drain().unwrap();
        assert_skipped(
            &other.bus,
            id,
            "saga `order` of `o-1`: the saga does not wait for this timeout any more",
        );
    }
}
