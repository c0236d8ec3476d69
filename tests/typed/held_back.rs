//! Events whose payload is of a version that is too new: they wait for a later release, and nobody else for them.

use std::time::Duration;

use postbox::{
    Context, Event, EventFilter, HandlerError, NewEvent, OutboxStatus, Postbox, Subscription, Tx,
    UnhandledEvents,
};

use crate::support::{
    Calls, SECOND, TestBox, boxes, event, file_box, inbox_rows, noting, outbox_row, sql, start_time, status,
    wait_until,
};
use crate::{CreatedV1, reading_v1, reading_v3, v1, v3};

const LIMIT: Duration = Duration::from_mins(1);

/// How many events wait for a newer release, as people see them.
pub(crate) fn held_back(bus: &Postbox) -> u64 {
    let shown = sql(bus, |tx| {
        tx.query_row(
            "SELECT count(*) FROM outbox_event_readable WHERE available_at = 'waits for a newer release'",
            [],
            |row| row.get(0),
        )
    });
    assert_eq!(bus.stats().unwrap().held_back, u64::min(shown, 5_000));
    let backlog = bus.outbox().backlog().unwrap();
    assert_eq!(backlog.newer, shown);
    shown
}

#[test]
fn a_newer_version_waits_across_restarts_for_a_release_that_knows_it_and_others_receive_it_once_meanwhile() {
    let mut test_box = file_box();
    let (typed, others) = (Calls::default(), Calls::default());
    let mut id = None;
    // The old release, again and again.
    for restart in 0..3 {
        let bus = &test_box.bus;
        bus.subscribe_many([
            reading_v1(&typed, "typed"),
            Subscription::new("invoice.created", "before", noting(&others, "before")).priority(1),
            Subscription::transactional("*", "behind", |_: &Event, _: &Tx<'_>| Ok(())).priority(-1),
        ])
        .unwrap();
        let id = *id.get_or_insert_with(|| bus.publish_typed(&v3("inv-1")).unwrap());
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 1), "restart {restart}");
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count, row.last_error), (OutboxStatus::Pending, 0, None));
        assert_eq!((typed.all().len(), others.all()), (0, vec!["before".to_owned()]), "restart {restart}");
        test_box = test_box.reopen();
    }
    let bus = &test_box.bus;
    bus.subscribe_many([
        reading_v3(&typed, "typed"),
        Subscription::new("invoice.created", "before", noting(&others, "before")),
        Subscription::transactional("*", "behind", |_: &Event, _: &Tx<'_>| Ok(())),
    ])
    .unwrap();
    assert_eq!((bus.drain().unwrap(), held_back(bus)), (1, 0));
    assert_eq!((typed.all(), others.all()), (vec!["inv-1: 990 CHF".to_owned()], vec!["before".to_owned()]));
    let row = outbox_row(bus, id.unwrap());
    assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processed, 1));
    assert_eq!(inbox_rows(bus, id.unwrap()).len(), 3);
}

#[test]
fn while_the_box_is_open_a_newer_subscription_lets_it_go() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v1(&calls, "typed")).unwrap();
        bus.publish_typed(&v3("inv-1")).unwrap();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 1), "{kind}");
        bus.registry().clear();
        bus.subscribe(reading_v3(&calls, "typed")).unwrap();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (1, 0), "{kind}");
        assert_eq!(calls.all(), ["inv-1: 990 CHF"], "{kind}");
    }
}

#[test]
fn for_a_transactional_consumer_it_waits_as_well() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let noted = calls.clone();
        bus.subscribe(Subscription::typed_transactional::<CreatedV1>("typed", move |created, _| {
            noted.add(&created.number);
            Ok(())
        }))
        .unwrap();
        let id = bus.publish_typed(&v3("inv-1")).unwrap();
        bus.publish_typed(&v1("inv-2")).unwrap();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (1, 1), "{kind}");
        assert_eq!((outbox_row(bus, id).attempt_count, calls.all()), (0, vec!["inv-2".to_owned()]), "{kind}");
    }
}

#[test]
fn what_is_still_too_new_is_not_touched_again() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v1(&calls, "typed")).unwrap();
        let id = bus.publish_typed(&v3("inv-1")).unwrap();
        bus.drain().unwrap();
        let before = outbox_row(bus, id).updated_at;
        for round in 0..5 {
            clock.advance(Duration::from_hours(1));
            bus.subscribe(Subscription::new("other", format!("c-{round}"), noting(&calls, "other"))).unwrap();
            assert_eq!((bus.drain().unwrap(), bus.process_batch().unwrap()), (0, 0), "{kind}");
        }
        assert_eq!((outbox_row(bus, id).updated_at, held_back(bus)), (before, 1), "{kind}");
    }
}

/// One that another process let go, for one: it is due, and planned anew.
#[test]
fn one_that_is_let_go_too_early_is_parked_again_without_an_attempt() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v1(&calls, "typed")).unwrap();
        let id = bus.publish_typed(&v3("inv-1")).unwrap();
        bus.drain().unwrap();
        for _ in 0..3 {
            clock.advance(SECOND);
            sql(bus, |tx| tx.execute("UPDATE outbox_event SET available_at = created_at", []));
            assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 1), "{kind}");
        }
        assert_eq!((outbox_row(bus, id).attempt_count, inbox_rows(bus, id).len()), (0, 0), "{kind}");
    }
}

#[test]
fn a_jump_of_the_clock_neither_lets_it_go_nor_keeps_it() {
    let jumps = [Duration::from_hours(24 * 366 * 900), Duration::ZERO, SECOND];
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v1(&calls, "typed")).unwrap();
        bus.publish_typed(&v3("inv-1")).unwrap();
        for jump in jumps {
            clock.set(start_time() + jump);
            assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 1), "{kind}: {jump:?}");
        }
        clock.set(start_time() - Duration::from_hours(1));
        bus.registry().clear();
        bus.subscribe(reading_v3(&calls, "typed")).unwrap();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (1, 0), "{kind}");
    }
}

#[test]
fn several_thousand_that_are_held_back_are_all_delivered_and_are_in_nobodys_way() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v1(&calls, "typed")).unwrap();
        let many = |number: usize| NewEvent::typed(&v3(&format!("inv-{number}"))).unwrap();
        bus.publish_all((0..6_001).map(many)).unwrap();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 6_001), "{kind}");
        bus.publish_typed(&v1("inv-old")).unwrap();
        assert_eq!((bus.drain().unwrap(), calls.take().len()), (1, 1), "{kind}");
        bus.registry().clear();
        bus.subscribe(reading_v3(&calls, "typed")).unwrap();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (6_001, 0), "{kind}");
        let seen = calls.all();
        assert_eq!((seen.len(), seen.last().unwrap().as_str()), (6_001, "inv-6000: 990 CHF"), "{kind}");
    }
}

#[test]
fn a_worker_holds_it_back_and_lets_it_go_when_the_subscriptions_change() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            reading_v1(&calls, "typed"),
            Subscription::new("invoice.created", "other", noting(&calls, "other")),
        ])
        .unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        // One by one, as they are handed over while the worker sleeps.
        for number in 0..20 {
            bus.publish_typed(&v3(&format!("inv-{number}"))).unwrap();
        }
        wait_until(LIMIT, || bus.outbox().backlog().unwrap().newer == 20);
        assert_eq!((calls.count("other"), calls.take().len()), (20, 20), "{kind}");
        assert_eq!(bus.registry().remove_by_consumer_prefix("typed"), 1);
        bus.subscribe(reading_v3(&calls, "typed")).unwrap();
        wait_until(LIMIT, || bus.stats().unwrap().processed == 20);
        worker.shutdown(LIMIT).unwrap();
        assert_eq!((calls.all().len(), calls.count("other")), (20, 0), "{kind}");
    }
}

/// An old and a new release on one file: what the old one parks is for the new one.
#[test]
fn a_newer_release_beside_the_old_one_takes_what_that_has_parked() {
    let test_box = file_box();
    let (old, new) = (&test_box.bus, test_box.second());
    let calls = Calls::default();
    old.subscribe(reading_v1(&calls, "typed")).unwrap();
    new.subscribe(reading_v3(&calls, "typed")).unwrap();
    assert_eq!(new.drain().unwrap(), 0);
    new.publish_typed(&v3("inv-1")).unwrap();
    assert_eq!((old.drain().unwrap(), held_back(old)), (0, 1));
    // The new one looks at its next poll.
    test_box.clock.advance(Duration::from_mins(1));
    assert_eq!((old.drain().unwrap(), new.drain().unwrap(), held_back(&new)), (0, 1, 0));
    assert_eq!(calls.all(), ["inv-1: 990 CHF"]);
}

#[test]
fn a_failure_beside_it_waits_for_its_backoff_and_is_counted_as_ever() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let noted = calls.clone();
        let failing = move |event: &Event, _: &Context<'_>| {
            noted.add(format!("attempt {}", event.attempt()));
            Err(HandlerError::retry("no"))
        };
        bus.subscribe_many([
            reading_v1(&calls, "typed"),
            Subscription::new("invoice.created", "failing", failing).max_attempts(2),
        ])
        .unwrap();
        let id = bus.publish_typed(&v3("inv-1")).unwrap();
        bus.drain().unwrap();
        assert_eq!(
            (outbox_row(bus, id).attempt_count, held_back(bus)),
            (1, 0),
            "{kind}: it waits for its backoff"
        );
        clock.advance(LIMIT);
        bus.drain().unwrap();
        // No try is left, and somebody has still to receive it: it is no dead letter yet.
        assert_eq!((status(bus, id), held_back(bus)), (OutboxStatus::Pending, 1), "{kind}");
        assert_eq!(calls.take(), ["attempt 1", "attempt 2"], "{kind}");
        assert_eq!(bus.registry().remove_by_consumer_prefix("typed"), 1);
        bus.subscribe(reading_v3(&calls, "typed")).unwrap();
        bus.drain().unwrap();
        assert_eq!(
            (status(bus, id), calls.all()),
            (OutboxStatus::DeadLetter, vec!["inv-1: 990 CHF".to_owned()])
        );
    }
}

#[test]
fn without_the_consumer_it_is_processed_or_held_as_any_other() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(reading_v1(&calls, "typed")).unwrap();
        let id = bus.publish_typed(&v3("inv-1")).unwrap();
        bus.drain().unwrap();
        bus.update_settings(|settings| settings.unhandled_events = UnhandledEvents::Hold).unwrap();
        bus.registry().clear();
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 0), "{kind}");
        assert_eq!(bus.outbox().backlog().unwrap().held, 1, "{kind}");
        bus.subscribe(Subscription::new("*", "untyped", noting(&calls, "untyped"))).unwrap();
        assert_eq!((bus.drain().unwrap(), status(bus, id)), (1, OutboxStatus::Processed), "{kind}");
        assert_eq!(calls.all(), ["untyped"]);
    }
}

#[test]
fn a_replay_of_a_newer_version_waits_and_can_be_cancelled() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        let id = bus.publish_typed(&v3("inv-1")).unwrap();
        bus.publish(event("other")).unwrap();
        assert_eq!(bus.drain().unwrap(), 2);
        bus.subscribe(reading_v1(&calls, "typed")).unwrap();
        let filter = EventFilter::new().name("invoice.created");
        assert_eq!(bus.outbox().replay(&filter, "typed").unwrap(), 1);
        assert_eq!((bus.drain().unwrap(), held_back(bus)), (0, 1), "{kind}");
        assert_eq!(bus.outbox().replays().unwrap()[0].waiting, 1);
        assert_eq!(bus.outbox().cancel_replay(&filter, "typed").unwrap(), 1);
        assert_eq!((status(bus, id), held_back(bus)), (OutboxStatus::Processed, 0), "{kind}");
        assert_eq!(bus.outbox().replay(&filter, "typed").unwrap(), 1);
        bus.drain().unwrap();
        bus.registry().clear();
        bus.subscribe(reading_v3(&calls, "typed")).unwrap();
        assert_eq!((bus.drain().unwrap(), calls.all().len()), (1, 1), "{kind}");
    }
}

#[test]
fn verify_tells_of_them() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.subscribe(reading_v1(&Calls::default(), "typed")).unwrap();
        bus.publish_typed(&v3("inv-1")).unwrap();
        bus.drain().unwrap();
        let findings = bus.verify().unwrap().findings;
        let said = |text: &str| findings.iter().any(|finding| finding.what.contains(text));
        assert!(
            said("that wait for a release that knows their payload's version: 1"),
            "{kind}: {findings:?}"
        );
    }
}
