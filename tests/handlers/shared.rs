//! Transactional handlers share a commit: what one does wrong is undone, and its neighbours' work is done exactly once.

use postbox::{
    Context, Event, HandlerError, HandlerResult, InboxStatus, OutboxStatus, Settings, Subscription, Tx,
};
use serde_json::json;

use crate::support::{
    Calls, LEASE, SECOND, TestBox, add_effect, boxes, boxes_with, effects, event, inbox_rows, make_effects,
    outbox_row, sql, status,
};

/// Tables that handlers can break rules of: `once` holds 1 already, `child` needs a parent that is not there.
fn make_rules(test: &TestBox) {
    make_effects(&test.bus);
    sql(&test.bus, |tx| {
        tx.execute_batch(
            "CREATE TABLE once (n INTEGER UNIQUE); INSERT INTO once VALUES (1);
             CREATE TABLE parent (id INTEGER PRIMARY KEY);
             CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
        )
    });
}

/// Ends the whole transaction, whoever shares it.
fn roll_back(tx: &Tx<'_>) -> HandlerResult {
    tx.execute("INSERT OR ROLLBACK INTO once VALUES (1)", [])?;
    Ok(())
}

/// Fails only when the transaction is committed.
fn fail_the_commit(tx: &Tx<'_>) -> HandlerResult {
    tx.execute("INSERT INTO child VALUES (1)", [])?;
    Ok(())
}

#[test]
fn whatever_one_handler_does_its_neighbours_effects_happen_exactly_once() {
    type Misdeed = fn(&Tx<'_>) -> HandlerResult;
    let misdeeds: [(&str, Misdeed); 8] = [
        ("fails", |_| Err(HandlerError::retry("no"))),
        ("gives up", |_| Err(HandlerError::dead_letter("no"))),
        ("panics", |_| panic!("no")),
        ("rolls back", roll_back),
        ("rolls back and says nothing", |tx| {
            let _ = roll_back(tx);
            Ok(())
        }),
        ("rolls back and panics", |tx| {
            let _ = roll_back(tx);
            panic!("no")
        }),
        ("fails the commit", fail_the_commit),
        ("breaks a rule at once", |tx| Ok(tx.execute("INSERT INTO once VALUES (1)", []).map(|_| ())?)),
    ];
    for (name, misdeed) in misdeeds {
        for bad_at in [0, 2, 4] {
            for test in &boxes() {
                let TestBox { kind, bus, .. } = test;
                make_rules(test);
                bus.subscribe(Subscription::transactional("a", "c", move |event: &Event, tx: &Tx<'_>| {
                    let n = event.payload().as_u64().unwrap();
                    add_effect(tx, &n.to_string())?;
                    tx.publish(crate::support::event("follow.up"))?;
                    if n == bad_at { misdeed(tx) } else { Ok(()) }
                }))
                .unwrap();
                let ids = bus.publish_all((0..5_u64).map(|n| event("a").payload(json!(n)))).unwrap();
                assert_eq!(bus.drain().unwrap(), 4 + 4, "{kind}: {name} at {bad_at}");
                let mut done = effects(bus);
                done.sort();
                let good: Vec<_> = (0..5).filter(|n| *n != bad_at).map(|n| n.to_string()).collect();
                assert_eq!(done, good, "{kind}: {name} at {bad_at}");
                for (n, id) in (0_u64..).zip(ids) {
                    let row = outbox_row(bus, id);
                    assert_eq!(row.attempt_count, 1, "{kind}: {name}");
                    let (_, inbox_status, failures, error) = inbox_rows(bus, id).remove(0);
                    if n == bad_at {
                        assert_ne!(row.status, OutboxStatus::Processed);
                        assert_eq!((inbox_status, failures), (InboxStatus::Failed, 1), "{kind}: {name}");
                        assert!(error.is_some());
                    } else {
                        assert_eq!(row.status, OutboxStatus::Processed);
                        assert_eq!((inbox_status, failures, error), (InboxStatus::Processed, 0, None));
                    }
                }
            }
        }
    }
}

/// Its failure came with the COMMIT, so that all were given back, again and again, and no attempt was counted.
#[test]
fn a_handler_whose_work_cannot_be_committed_waits_and_ends_as_a_dead_letter() {
    for test in &boxes() {
        let TestBox { kind, bus, clock, .. } = test;
        make_rules(test);
        bus.subscribe(Subscription::transactional("a", "c", |_: &Event, tx: &Tx<'_>| fail_the_commit(tx)))
            .unwrap();
        let id = bus.publish(event("a")).unwrap();
        for (attempt, delay) in [(1, 1), (2, 2)] {
            assert_eq!(bus.drain().unwrap(), 0);
            let row = outbox_row(bus, id);
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, attempt), "{kind}");
            assert_eq!(row.available_at - row.updated_at, delay * SECOND);
            clock.advance(delay * SECOND);
        }
        assert_eq!(bus.drain().unwrap(), 0);
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::DeadLetter, 3), "{kind}");
        assert!(row.last_error.unwrap().contains("FOREIGN KEY"));
    }
}

#[test]
fn consumers_of_one_event_that_both_break_the_transaction_each_run_once_in_an_attempt_that_counts() {
    for breaks in [roll_back, fail_the_commit] {
        for test in &boxes() {
            let TestBox { kind, bus, .. } = test;
            make_rules(test);
            let calls = Calls::default();
            let subscribe = |name: &'static str, breaks: Option<fn(&Tx<'_>) -> HandlerResult>| {
                let calls = calls.clone();
                let handler = move |_: &Event, tx: &Tx<'_>| {
                    calls.add(name);
                    // The way out of what was an endless loop.
                    if calls.all().len() > 30 {
                        return Err(HandlerError::dead_letter("it runs on and on"));
                    }
                    add_effect(tx, name)?;
                    breaks.map_or(Ok(()), |breaks| breaks(tx))
                };
                bus.subscribe(Subscription::transactional("a", name, handler)).unwrap();
            };
            subscribe("one", Some(breaks));
            subscribe("two", Some(breaks));
            subscribe("three", None);
            subscribe("four", Some(breaks));
            let id = bus.publish(event("a")).unwrap();
            assert_eq!(bus.process_batch().unwrap(), 0);
            assert!(calls.all().len() <= 30, "{kind}: {:?}", calls.all());
            assert_eq!(effects(bus), ["three"], "{kind}");
            let row = outbox_row(bus, id);
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, 1));
            let outcomes: Vec<_> = inbox_rows(bus, id)
                .into_iter()
                .map(|(name, status, failures, _)| (name, status, failures))
                .collect();
            let failed = |name: &str| (name.to_owned(), InboxStatus::Failed, 1);
            let three = ("three".to_owned(), InboxStatus::Processed, 0);
            assert_eq!(outcomes, [failed("four"), failed("one"), three, failed("two")], "{kind}");
        }
    }
}

/// After INSERT OR ROLLBACK each further statement was committed by itself, at every attempt anew.
#[test]
fn nothing_is_stored_by_a_handler_that_goes_on_after_its_transaction_was_rolled_back() {
    for test in &boxes() {
        let TestBox { kind, bus, clock, .. } = test;
        make_rules(test);
        bus.subscribe(Subscription::transactional("a", "c", |_: &Event, tx: &Tx<'_>| {
            add_effect(tx, "before")?;
            let _ = roll_back(tx);
            let _ = add_effect(tx, "after");
            let _ = tx.publish(event("follow.up"));
            let _ = tx.inbox().get_or_create("0198c0de-0000-7000-8000-000000000000".parse()?, "c");
            Ok(())
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        for _ in 0..4 {
            bus.drain().unwrap();
            clock.advance(60 * SECOND);
        }
        assert_eq!(effects(bus), [""; 0], "{kind}");
        let stats = bus.stats().unwrap();
        assert_eq!((stats.total, stats.dead_letter), (1, 1), "{kind}");
    }
}

#[test]
fn a_handler_cannot_end_the_transaction_and_may_go_on_after_trying() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        bus.subscribe(Subscription::transactional("a", "c", |_: &Event, tx: &Tx<'_>| {
            for end in ["COMMIT", "ROLLBACK", "END", "BEGIN IMMEDIATE"] {
                assert!(tx.execute_batch(end).is_err(), "{end}");
            }
            Ok(add_effect(tx, "done")?)
        }))
        .unwrap();
        bus.publish_all([event("a"), event("a")]).unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(effects(bus), ["done", "done"]);
    }
}

/// SQLite's savepoint names have no case; the guard's had one, and the mark in the inbox could be undone.
#[test]
fn the_librarys_savepoints_are_out_of_reach_in_any_case_of_letters() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.subscribe(Subscription::transactional("a", "c", |_: &Event, tx: &Tx<'_>| {
            for name in ["postbox_delivery", "POSTBOX_DELIVERY", "PostBox_Delivery", "\"postbox_delivery\""] {
                for verb in ["ROLLBACK TO", "RELEASE", "SAVEPOINT"] {
                    assert!(tx.execute_batch(&format!("{verb} {name}")).is_err(), "{verb} {name}");
                }
            }
            Ok(())
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(inbox_rows(bus, id), [("c".to_owned(), InboxStatus::Processed, 0, None)]);
    }
}

#[test]
fn savepoints_of_a_handlers_own_work_and_one_left_open_ends_with_it() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        make_effects(bus);
        bus.subscribe(Subscription::transactional("a", "c", |event: &Event, tx: &Tx<'_>| {
            tx.execute_batch("SAVEPOINT mine")?;
            add_effect(tx, "undone")?;
            tx.execute_batch("ROLLBACK TO mine; RELEASE mine; SAVEPOINT left_open")?;
            add_effect(tx, "kept")?;
            if event.attempt() == 1 { Err(HandlerError::retry("with a savepoint open")) } else { Ok(()) }
        }))
        .unwrap();
        bus.publish_all([event("a"), event("a"), event("a")]).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(effects(bus), [""; 0], "{kind}");
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 3);
        assert_eq!(effects(bus), ["kept"; 3], "{kind}");
    }
}

#[test]
fn more_events_than_share_one_commit_are_all_done_once() {
    let settings = Settings { batch_size: 1_000, ..Settings::default() };
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.settings(settings.clone())) {
        make_effects(bus);
        bus.subscribe(Subscription::transactional("a", "c", |event: &Event, tx: &Tx<'_>| {
            let n = event.payload().as_u64().unwrap();
            add_effect(tx, &n.to_string())?;
            if n % 100 == 7 { Err(HandlerError::dead_letter("no")) } else { Ok(()) }
        }))
        .unwrap();
        bus.publish_all((0..700_u64).map(|n| event("a").payload(json!(n)))).unwrap();
        assert_eq!(bus.process_batch().unwrap(), 693, "{kind}");
        let expected: Vec<_> = (0..700).filter(|n| n % 100 != 7).map(|n| n.to_string()).collect();
        assert_eq!(effects(bus), expected, "{kind}: in the order of publishing");
    }
}

/// The row that a settle has to find is gone: nothing of it may be committed, and the event is not lost.
#[test]
fn a_handler_that_deletes_its_own_event_is_undone() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        make_effects(bus);
        bus.subscribe(Subscription::transactional("a", "c", |event: &Event, tx: &Tx<'_>| {
            add_effect(tx, "with the deletion")?;
            tx.execute("DELETE FROM outbox_event WHERE id = ?1", [event.id().as_uuid()])?;
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::new("b", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
        let ids = bus.publish_all([event("a"), event("b")]).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        for _ in 0..4 {
            clock.advance(2 * LEASE);
            assert_eq!(bus.drain().unwrap(), 0);
        }
        assert_eq!(effects(bus), [""; 0], "{kind}");
        assert_eq!(status(bus, ids[0]), OutboxStatus::DeadLetter, "{kind}");
    }
}
