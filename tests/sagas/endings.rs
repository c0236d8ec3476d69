//! How a conversation ends: completed, compensated, by its own steps or by hand.

use postbox::{Event, NewEvent, OutboxStatus, Postbox, Saga, SagaStatus, Subscription, Tx};
use serde_json::json;

use crate::support::{LIMIT, boxes, file_box, outbox_row, sql};
use crate::{MINUTE, Trail, assert_skipped, found, noted, of_order, order, published_after, refused, seen};

/// `start` and each `step.*` note an event that undoes them, the first also a timeout; `refused` undoes all, `done` completes.
pub(crate) fn undoing() -> Saga<Trail> {
    Saga::new("order")
        .starts_on("start", |trail: &mut Trail, event, step| {
            trail.note(event);
            step.timeout("payment", MINUTE, order("step.timeout", step.correlation_id()))?;
            step.undo_with(of_order("undo.start").payload(json!({ "of": "start" })))?;
            Ok(())
        })
        .on("step.*", |trail, event, step| {
            trail.note(event);
            step.undo_with(of_order(&format!("undo.{}", event.name())))?;
            Ok(())
        })
        .on("refused", |trail, event, step| {
            trail.note(event);
            step.publish(of_order("before"))?;
            let undone = step.compensate("the card was refused")?;
            assert_eq!(undone, 3);
            step.publish(of_order("after"))?;
            Ok(())
        })
        .on("done", |trail, event, step| {
            trail.note(event);
            step.complete()?;
            Ok(())
        })
}

fn three_steps(bus: &Postbox) {
    for name in ["start", "step.a", "step.b"] {
        bus.publish(of_order(name)).unwrap();
    }
    assert_eq!(bus.drain().unwrap(), 3);
}

#[test]
fn compensation_publishes_what_undoes_the_steps_in_reverse_order() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(undoing()).unwrap();
        three_steps(bus);
        assert_eq!(found(bus).undo, ["undo.start", "undo.step.a", "undo.step.b"]);
        let refused = bus.publish(of_order("refused")).unwrap();
        bus.drain().unwrap();
        let published = published_after(bus, refused);
        assert_eq!(
            published,
            ["before", "undo.step.b", "undo.step.a", "undo.start", "after"],
            "{}",
            test.kind
        );
        let saga = found(bus);
        assert_eq!(saga.summary.status, SagaStatus::Compensated);
        assert_eq!(saga.summary.reason.as_deref(), Some("the card was refused"));
        assert_eq!((saga.undo.len(), saga.timeouts.len()), (0, 0));
        assert_eq!(saga.state["seen"][3], "refused", "the state of the last step is kept");
        let page =
            bus.outbox().list(&postbox::EventFilter::new().name("undo.start"), &postbox::Page::oldest(1));
        let undo = outbox_row(bus, page.unwrap().events[0].id);
        assert_eq!((undo.causation_id, undo.correlation_id.as_deref()), (Some(refused), Some("o-1")));
        assert_eq!(undo.payload, json!({ "of": "start" }));
        test.clock.advance(2 * MINUTE);
        assert_eq!(bus.drain().unwrap(), 0, "the timeout was cancelled");
    }
}

#[test]
fn what_undoes_the_steps_is_kept_across_a_restart() {
    let test = file_box();
    test.bus.subscribe_saga(undoing()).unwrap();
    three_steps(&test.bus);
    let test = test.reopen();
    test.bus.subscribe_saga(undoing()).unwrap();
    let refused = test.bus.publish(of_order("refused")).unwrap();
    test.bus.drain().unwrap();
    assert_eq!(published_after(&test.bus, refused)[1..4], ["undo.step.b", "undo.step.a", "undo.start"]);
}

/// Noted and published in one step.
#[test]
fn a_step_that_fails_late_undoes_also_what_it_has_noted_itself() {
    for test in boxes() {
        let bus = &test.bus;
        let saga = Saga::<Trail>::new("order").starts_on("start", |_, _, step| {
            step.undo_with(of_order("undo.one"))?;
            step.undo_with(of_order("undo.two"))?;
            step.compensate("at once")?;
            Ok(())
        });
        bus.subscribe_saga(saga).unwrap();
        let start = bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        assert_eq!(published_after(bus, start), ["undo.two", "undo.one"], "{}", test.kind);
    }
}

/// One that was made with a key is the same event, however often it is noted; and its delay counts from the compensation.
#[test]
fn an_event_that_undoes_keeps_its_key_its_delay_and_its_version() {
    for test in boxes() {
        let bus = &test.bus;
        let refund = || of_order("refund").idempotency_key("o-1/refund").delay(MINUTE).version(3);
        let saga = Saga::<Trail>::new("order")
            .starts_on("start", move |_, _, step| {
                step.undo_with(refund())?;
                step.undo_with(refund())?;
                Ok(())
            })
            .on("refused", |_, _, step| {
                step.compensate("refused")?;
                Ok(())
            });
        bus.subscribe_saga(saga).unwrap();
        bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        let row: String = sql(bus, |tx| tx.query_row("SELECT undo FROM postbox_saga", [], |row| row.get(0)));
        assert!(!row.contains("o-1/refund"), "the key is not stored: {row}");
        test.clock.advance(10 * MINUTE);
        bus.publish(of_order("refused")).unwrap();
        bus.drain().unwrap();
        let again = bus.publish(refund()).unwrap();
        let event = outbox_row(bus, again);
        assert_eq!(event.available_at, crate::support::start_time() + 11 * MINUTE, "{}", test.kind);
        assert_eq!(event.version, 3);
        let count = bus.outbox().count(&postbox::EventFilter::new().name("refund")).unwrap();
        assert_eq!(count, 1, "{}", test.kind);
    }
}

#[test]
fn events_of_an_ended_saga_are_skipped_with_the_reason() {
    for (ends, why) in [("done", "it has completed"), ("refused", "it was compensated")] {
        for test in boxes() {
            let bus = &test.bus;
            bus.subscribe_saga(undoing()).unwrap();
            three_steps(bus);
            bus.publish(of_order(ends)).unwrap();
            bus.drain().unwrap();
            let before = found(bus);
            for name in ["step.c", "start", "done"] {
                let late = bus.publish(of_order(name)).unwrap();
                bus.drain().unwrap();
                assert_skipped(bus, late, &format!("saga `order` of `o-1`: {why}"));
            }
            assert_eq!(found(bus), before, "{}", test.kind);
        }
    }
}

#[test]
fn completion_forgets_what_would_have_undone_the_steps() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(undoing()).unwrap();
        three_steps(bus);
        let done = bus.publish(of_order("done")).unwrap();
        bus.drain().unwrap();
        let saga = found(bus);
        assert_eq!(
            (saga.summary.status, saga.summary.reason),
            (SagaStatus::Completed, None),
            "{}",
            test.kind
        );
        assert_eq!((saga.undo.len(), published_after(bus, done).len()), (0, 0));
    }
}

#[test]
fn an_event_that_comes_after_the_end_has_a_handler_where_the_saga_wants_one() {
    for test in boxes() {
        let bus = &test.bus;
        let saga = undoing().after_end("paid", |trail: &mut Trail, event, step| {
            trail.note(event);
            for refused in [
                step.timeout("more", MINUTE, of_order("step.x")).map(drop),
                step.undo_with(of_order("undo.x")),
                step.compensate("again").map(drop),
                step.complete(),
            ] {
                let error = refused.unwrap_err().to_string();
                assert!(error.ends_with("saga `order` of `o-1` is compensated already"), "{error}");
            }
            step.publish(of_order("refund"))?;
            Ok(())
        });
        bus.subscribe_saga(saga).unwrap();
        three_steps(bus);
        bus.publish(of_order("refused")).unwrap();
        bus.drain().unwrap();
        let paid = bus.publish(of_order("paid")).unwrap();
        bus.drain().unwrap();
        assert_eq!(published_after(bus, paid), ["refund"], "{}", test.kind);
        let saga = found(bus);
        assert_eq!(
            (saga.summary.status, saga.summary.last_event.as_str()),
            (SagaStatus::Compensated, "paid")
        );
        assert_eq!(saga.summary.reason.as_deref(), Some("the card was refused"));
    }
}

#[test]
fn a_person_compensates_a_saga_without_its_code() {
    let test = file_box();
    test.bus.subscribe_saga(undoing()).unwrap();
    three_steps(&test.bus);
    let test = test.reopen();
    let last = test.bus.publish(NewEvent::new("other", "m", "T", "t")).unwrap();
    let bus = &test.bus;
    assert_eq!(bus.sagas().compensate("order", "o-1", "ticket 4711").unwrap(), 3);
    assert_eq!(published_after(bus, last), ["undo.step.b", "undo.step.a", "undo.start"]);
    let saga = found(bus);
    assert_eq!(saga.summary.status, SagaStatus::Compensated);
    assert_eq!(saga.summary.reason.as_deref(), Some("ticket 4711"));
    assert_eq!(saga.summary.last_event, "step.b");
    assert_eq!((saga.timeouts.len(), saga.undo.len()), (0, 0));
    bus.subscribe_saga(undoing()).unwrap();
    test.clock.advance(MINUTE);
    bus.drain().unwrap();
    assert_eq!(seen(bus), ["start", "step.a", "step.b"]);
}

/// Nobody could tell from the events which one had a conversation undone.
#[test]
fn what_a_handler_has_undone_by_hand_names_its_event_as_the_cause() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(undoing()).unwrap();
        three_steps(bus);
        let close = |_: &Event, tx: &Tx<'_>| {
            tx.sagas().compensate("order", "o-1", "the shop has closed")?;
            Ok(())
        };
        bus.subscribe(Subscription::transactional("shop.closed", "closing", close)).unwrap();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let closed =
            NewEvent::new("shop.closed", "shop", "Shop", "s-1").correlation_id("c-9").trace_parent(parent);
        let closed = bus.publish(closed).unwrap();
        bus.drain().unwrap();
        assert_eq!(
            published_after(bus, closed),
            ["undo.step.b", "undo.step.a", "undo.start"],
            "{}",
            test.kind
        );
        let page = bus
            .outbox()
            .list(&postbox::EventFilter::new().name("undo.*"), &postbox::Page::oldest(9))
            .unwrap();
        for event in page.events {
            let row = outbox_row(bus, event.id);
            assert_eq!(row.causation_id, Some(closed));
            assert_eq!(row.correlation_id.as_deref(), Some("o-1"), "the conversation that is undone");
            assert_eq!(row.trace_parent.as_deref(), Some(parent));
        }
    }
}

#[test]
fn a_person_completes_a_saga_as_it_is() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(undoing()).unwrap();
        three_steps(bus);
        bus.sagas().complete("order", "o-1", "shipped by hand").unwrap();
        let saga = found(bus);
        assert_eq!(saga.summary.status, SagaStatus::Completed, "{}", test.kind);
        assert_eq!(saga.summary.reason.as_deref(), Some("shipped by hand"));
        test.clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 0);
    }
}

#[test]
fn a_saga_is_ended_by_hand_within_a_transaction_or_not_at_all() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(undoing()).unwrap();
        three_steps(bus);
        let before = found(bus);
        let rolled_back = bus.transaction(|tx| -> postbox::Result<()> {
            assert_eq!(tx.sagas().compensate("order", "o-1", "no")?, 3);
            assert_eq!(tx.sagas().get("order", "o-1")?.unwrap().summary.status, SagaStatus::Compensated);
            Err(postbox::Error::Closed { operation: "test" })
        });
        assert!(rolled_back.is_err());
        assert_eq!(found(bus), before, "{}", test.kind);
        bus.transaction(|tx| tx.sagas().complete("order", "o-1", "yes")).unwrap();
        assert_eq!(found(bus).summary.status, SagaStatus::Completed);
    }
}

/// One of the events that undo could not be written, and the application went on with its transaction: the others were published, the
/// saga ran on, and undid the same again when it was ended once more.
#[test]
fn an_end_by_hand_that_fails_half_way_has_done_nothing_in_a_transaction_that_goes_on() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(undoing()).unwrap();
        three_steps(bus);
        let before = found(bus);
        let last = bus.publish(of_order("last")).unwrap();
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER no BEFORE INSERT ON outbox_event WHEN NEW.event_name = 'undo.start'
                 BEGIN SELECT RAISE(ABORT, 'no more of these'); END;",
            )
        });
        let goes_on = |tx: &Tx<'_>| -> postbox::Result<()> {
            assert!(tx.sagas().compensate("order", "o-1", "no").is_err());
            tx.publish(of_order("of its own")).map(drop)
        };
        bus.transaction(goes_on).unwrap();
        assert_eq!(found(bus), before, "{}", test.kind);
        assert_eq!(published_after(bus, last), ["of its own"]);
        sql(bus, |tx| tx.execute_batch("DROP TRIGGER no"));
        assert_eq!(bus.sagas().compensate("order", "o-1", "yes").unwrap(), 3);
        let undone = ["of its own", "undo.step.b", "undo.step.a", "undo.start"];
        assert_eq!(published_after(bus, last), undone);
    }
}

#[test]
fn an_ended_saga_and_one_that_is_not_there_cannot_be_ended_by_hand() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(undoing()).unwrap();
        three_steps(bus);
        bus.publish(of_order("done")).unwrap();
        bus.drain().unwrap();
        let before = found(bus);
        let ended = bus.sagas().compensate("order", "o-1", "why not").unwrap_err().to_string();
        assert_eq!(
            ended,
            "invalid saga: order/o-1 is completed already: only one that is running can be ended"
        );
        let none = bus.sagas().complete("order", "o-9", "why not").unwrap_err().to_string();
        assert_eq!(none, "no saga with id order/o-9");
        for reason in ["", " ", &"x".repeat(1_001)] {
            assert_eq!(refused::field(bus.sagas().complete("order", "o-1", reason)), "reason");
        }
        assert_eq!(found(bus), before, "{}", test.kind);
    }
}

/// What it wrote would otherwise be overwritten by the step's own end.
#[test]
fn a_step_that_ends_its_own_saga_by_hand_is_refused_whole() {
    for test in boxes() {
        let bus = &test.bus;
        let saga = Saga::<Trail>::new("order").starts_on("start", noted).on("step", |_, _, step| {
            step.sagas().complete("order", "o-1", "by hand")?;
            Ok(())
        });
        bus.subscribe_saga(saga).unwrap();
        bus.publish(of_order("start")).unwrap();
        let step = bus.publish(of_order("step")).unwrap();
        bus.drain().unwrap();
        assert_eq!(outbox_row(bus, step).status, OutboxStatus::DeadLetter, "{}", test.kind);
        assert_eq!(found(bus).summary.status, SagaStatus::Running);
    }
}

/// Those that a person's compensation publishes are delivered at once, as others are.
#[test]
fn a_worker_delivers_what_a_compensation_by_hand_publishes() {
    let test = file_box();
    test.bus.subscribe_saga(undoing()).unwrap();
    three_steps(&test.bus);
    crate::support::make_effects(&test.bus);
    test.bus
        .subscribe(Subscription::transactional("undo.*", "undo", |event: &Event, tx: &Tx<'_>| {
            Ok(crate::support::add_effect(tx, event.name())?)
        }))
        .unwrap();
    let worker = test.bus.start().unwrap();
    test.bus.sagas().compensate("order", "o-1", "ticket 4711").unwrap();
    let bus = &test.bus;
    crate::support::wait_until(LIMIT, || crate::support::effects(bus).len() == 3);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}
