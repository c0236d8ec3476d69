//! Limits of a subscription: how many handlers at once, and how many in a time.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use postbox::{
    Backoff, Context, Event, EventFilter, HandlerError, NewEvent, OutboxStatus, PauseTarget, Postbox,
    Subscription, Tx,
};

use crate::support::{
    Calls, SECOND, TestBox, boxes, boxes_with, event, file_box, noting, outbox_row, refused_field, sql,
    status, wait_until,
};

const LIMIT: Duration = Duration::from_mins(1);
const MINUTE: Duration = Duration::from_mins(1);

/// How many events wait for room, as people see them.
fn waiting(bus: &Postbox) -> u64 {
    sql(bus, |tx| {
        tx.query_row(
            "SELECT count(*) FROM outbox_event_readable WHERE available_at = 'waits for room'",
            [],
            |row| row.get(0),
        )
    })
}

fn numbered(n: usize) -> NewEvent {
    NewEvent::new("a", "tests", "Thing", n.to_string())
}

#[test]
fn no_more_handlers_run_at_once_than_were_asked_for_and_others_go_on() {
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.handler_threads(6)) {
        let (inside, most, calls) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Calls::default());
        let handler = {
            let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
            move |_: &Event, _: &Context<'_>| {
                most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..20 {
                    std::thread::yield_now();
                }
                inside.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        };
        bus.subscribe_many([
            Subscription::new("a", "limited", handler).max_concurrency(2),
            Subscription::new("a", "free", noting(&calls, "free")),
        ])
        .unwrap();
        let ids = bus.publish_all((0..120).map(numbered)).unwrap();
        let worker = bus.start().unwrap();
        wait_until(LIMIT, || bus.stats().unwrap().processed == 120);
        worker.shutdown(LIMIT).unwrap();
        assert_eq!((most.load(Ordering::SeqCst), calls.count("free")), (2, 120), "{kind}");
        assert!(ids.iter().all(|id| outbox_row(bus, *id).attempt_count <= 2), "{kind}");
        assert_eq!(waiting(bus), 0);
    }
}

/// A plain handler that says that it has begun, and waits to be let go.
fn gate() -> (impl postbox::Handler, Receiver<String>, Sender<()>) {
    let (begun, begins) = bounded(100);
    let (end, ends) = bounded::<()>(100);
    let handler = move |event: &Event, _: &Context<'_>| {
        begun.send(event.aggregate_id().to_owned()).unwrap();
        ends.recv_timeout(LIMIT).unwrap();
        Ok(())
    };
    (handler, begins, end)
}

#[test]
fn those_that_wait_come_in_their_order_and_threads_are_free_for_others_meanwhile() {
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.handler_threads(2)) {
        let (handler, begins, end) = gate();
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("a", "limited", handler).max_concurrency(1),
            Subscription::new("b", "free", noting(&calls, "free")),
        ])
        .unwrap();
        let worker = bus.start().unwrap();
        bus.publish_all((0..10).map(numbered)).unwrap();
        assert_eq!(begins.recv_timeout(LIMIT).unwrap(), "0", "{kind}");
        wait_until(LIMIT, || waiting(bus) == 9);
        bus.publish(event("b")).unwrap();
        wait_until(LIMIT, || calls.count("free") == 1);
        // A newcomer goes behind them.
        bus.publish(numbered(10)).unwrap();
        for n in 1..=10 {
            end.send(()).unwrap();
            assert_eq!(begins.recv_timeout(LIMIT).unwrap(), n.to_string(), "{kind}");
        }
        end.send(()).unwrap();
        wait_until(LIMIT, || bus.stats().unwrap().processed == 12);
        worker.shutdown(LIMIT).unwrap();
    }
}

#[test]
fn no_more_begin_in_a_time_than_were_asked_for_wherever_it_begins() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran")).rate_limit(3, MINUTE)).unwrap();
        let ids = bus.publish_all((0..2).map(numbered)).unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        clock.advance(Duration::from_secs(50));
        let more = bus.publish_all((2..9).map(numbered)).unwrap();
        assert_eq!((bus.drain().unwrap(), waiting(bus)), (1, 6), "{kind}");
        assert_eq!(
            (status(bus, more[1]), outbox_row(bus, more[1]).attempt_count),
            (OutboxStatus::Pending, 0)
        );
        let before = outbox_row(bus, more[1]).updated_at;
        clock.advance(Duration::from_secs(9));
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(outbox_row(bus, more[1]).updated_at, before, "{kind}: it is not claimed over and over");
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}: a minute after the first two");
        clock.advance(Duration::from_secs(49));
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 3, "{kind}");
        assert_eq!((bus.drain().unwrap(), waiting(bus), calls.count("ran")), (0, 0, 9), "{kind}");
        assert_eq!(outbox_row(bus, ids[0]).attempt_count, 1);
    }
}

/// It was due before the one that is called, and is claimed first.
#[test]
fn a_newcomer_does_not_take_the_room_of_one_that_waits() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        bus.update_settings(|settings| settings.batch_size = 1).unwrap();
        let calls = Calls::default();
        let handler = {
            let calls = calls.clone();
            move |event: &Event, _: &Context<'_>| {
                calls.add(event.aggregate_id());
                Ok(())
            }
        };
        bus.subscribe(Subscription::new("a", "c", handler).rate_limit(1, MINUTE)).unwrap();
        bus.publish_all((0..2).map(numbered)).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        for newcomer in 2..5 {
            bus.publish(numbered(newcomer)).unwrap();
            clock.advance(MINUTE);
            assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        }
        assert_eq!(calls.all(), ["0", "1", "2", "3"], "{kind}");
    }
}

#[test]
fn attempts_that_are_repeated_count_as_well() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let handler = {
            let calls = calls.clone();
            move |_: &Event, _: &Context<'_>| {
                calls.add("ran");
                Err(HandlerError::retry("not yet"))
            }
        };
        let subscription = Subscription::new("a", "c", handler).rate_limit(2, MINUTE).max_attempts(100);
        bus.subscribe(subscription.backoff(Backoff::fixed(SECOND))).unwrap();
        bus.publish(numbered(0)).unwrap();
        for _ in 0..30 {
            bus.drain().unwrap();
            clock.advance(SECOND);
        }
        assert_eq!(calls.count("ran"), 2, "{kind}");
        clock.advance(MINUTE);
        bus.drain().unwrap();
        assert_eq!(calls.count("ran"), 3, "{kind}");
    }
}

#[test]
fn transactional_consumers_have_a_rate_and_share_commits_as_ever() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let handler = {
            let calls = calls.clone();
            move |_: &Event, _: &Tx<'_>| {
                calls.add("ran");
                Ok(())
            }
        };
        let subscription = Subscription::transactional("a", "c", handler).max_concurrency(1);
        bus.subscribe(subscription.rate_limit(5, MINUTE)).unwrap();
        bus.publish_all((0..12).map(numbered)).unwrap();
        // All five are claimed by one turn, whatever runs at once.
        assert_eq!(bus.process_batch().unwrap(), 5, "{kind}");
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 5, "{kind}");
        clock.advance(MINUTE);
        assert_eq!((bus.drain().unwrap(), calls.count("ran")), (2, 12), "{kind}");
    }
}

#[test]
fn a_worker_goes_on_by_itself_when_there_is_room() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran")).rate_limit(1, MINUTE)).unwrap();
        let worker = bus.start().unwrap();
        bus.publish_all((0..3).map(numbered)).unwrap();
        wait_until(LIMIT, || calls.count("ran") == 1 && waiting(bus) == 2);
        for ran in 2..=3 {
            clock.advance(MINUTE);
            wait_until(LIMIT, || calls.count("ran") == ran);
        }
        worker.shutdown(LIMIT).unwrap();
        assert_eq!(bus.stats().unwrap().processed, 3, "{kind}");
    }
}

#[test]
fn the_others_consumers_of_an_event_do_not_wait_and_run_once() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("a", "limited", noting(&calls, "limited")).rate_limit(1, MINUTE),
            Subscription::new("a", "free", noting(&calls, "free")),
            Subscription::transactional("a", "tx", |_: &Event, _: &Tx<'_>| Ok(())),
        ])
        .unwrap();
        bus.publish_all((0..3).map(numbered)).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!((calls.count("limited"), calls.count("free")), (1, 3), "{kind}");
        clock.advance(MINUTE);
        bus.drain().unwrap();
        clock.advance(MINUTE);
        bus.drain().unwrap();
        assert_eq!((calls.count("limited"), calls.count("free")), (3, 3), "{kind}");
        assert_eq!(bus.stats().unwrap().processed, 3);
    }
}

#[test]
fn what_waits_survives_a_restart_and_is_delivered_where_the_limit_is_gone() {
    for keeps_limit in [true, false] {
        let mut test = file_box();
        let calls = Calls::default();
        let limited = || Subscription::new("a", "c", noting(&calls, "ran")).rate_limit(1, MINUTE);
        test.bus.subscribe(limited()).unwrap();
        test.bus.publish_all((0..1_300).map(numbered)).unwrap();
        assert_eq!((test.bus.drain().unwrap(), waiting(&test.bus)), (1, 1_299));
        test = test.reopen();
        if keeps_limit {
            test.bus.subscribe(limited()).unwrap();
            assert_eq!((test.bus.drain().unwrap(), waiting(&test.bus)), (1, 1_298), "a restart counts anew");
            test.clock.advance(MINUTE);
            assert_eq!(test.bus.drain().unwrap(), 1);
        } else {
            test.bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
            assert_eq!(test.bus.drain().unwrap(), 1_299);
        }
    }
}

#[test]
fn another_box_takes_over_what_a_closed_one_has_parked() {
    let test = file_box();
    let calls = Calls::default();
    let limited = || Subscription::new("a", "c", noting(&calls, "ran")).rate_limit(1, MINUTE);
    let first = test.second();
    first.subscribe(limited()).unwrap();
    test.bus.subscribe(limited()).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 0);
    first.publish_all((0..3).map(numbered)).unwrap();
    assert_eq!(first.drain().unwrap(), 1);
    first.close().unwrap();
    test.clock.advance(MINUTE);
    assert_eq!(test.bus.drain().unwrap(), 1);
    test.clock.advance(MINUTE);
    assert_eq!((test.bus.drain().unwrap(), waiting(&test.bus)), (1, 0));
}

#[test]
fn order_pauses_and_limits_go_together() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let handler = {
            let calls = calls.clone();
            move |event: &Event, _: &Context<'_>| {
                calls.add(event.name());
                Ok(())
            }
        };
        bus.subscribe(Subscription::new("*", "c", handler).ordered().rate_limit(2, MINUTE)).unwrap();
        for name in ["a", "b", "c", "d", "e"] {
            bus.publish(event(name)).unwrap();
        }
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        let paused = PauseTarget::consumer("c");
        bus.pause(&paused, None, None).unwrap();
        clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        bus.resume(&paused).unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(calls.all(), ["a", "b", "c", "d", "e"], "{kind}");
    }
}

#[test]
fn a_replay_waits_for_room_as_well() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("a", "c", noting(&calls, "ran")).rate_limit(2, MINUTE),
            Subscription::new("a", "other", noting(&calls, "other")).rate_limit(1_000, MINUTE),
        ])
        .unwrap();
        bus.publish_all((0..2).map(numbered)).unwrap();
        assert_eq!(bus.drain().unwrap(), 2);
        bus.outbox().replay(&EventFilter::new(), "c").unwrap();
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        clock.advance(MINUTE);
        assert_eq!((bus.drain().unwrap(), calls.count("ran"), calls.count("other")), (2, 4, 2), "{kind}");
    }
}

#[test]
fn a_trigger_that_forbids_to_let_one_go_holds_up_that_one_alone() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran")).rate_limit(1, MINUTE)).unwrap();
        let ids = bus.publish_all((0..3).map(numbered)).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER mine BEFORE UPDATE OF available_at ON outbox_event
                 WHEN OLD.aggregate_id = '1' AND NEW.status = 'pending' BEGIN SELECT RAISE(ABORT, 'mine'); END",
            )
        });
        clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(
            [status(bus, ids[1]), status(bus, ids[2])],
            [OutboxStatus::Pending, OutboxStatus::Processed]
        );
        sql(bus, |tx| tx.execute_batch("DROP TRIGGER mine"));
        clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 1, "{kind}: it is found again");
    }
}

/// It has no use for room while it is paused, or before its turn: others have.
#[test]
fn room_is_not_kept_for_an_event_that_cannot_take_it() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("*", "ordered", noting(&calls, "ordered")).ordered().max_concurrency(1),
            Subscription::new("a", "slow", noting(&calls, "slow")).rate_limit(1, Duration::from_hours(1)),
        ])
        .unwrap();
        let paused = PauseTarget::event_name("first");
        bus.pause(&paused, None, None).unwrap();
        bus.publish(NewEvent::new("first", "tests", "Thing", "x")).unwrap();
        bus.publish_all((0..20).map(|_| NewEvent::new("a", "tests", "Thing", "x"))).unwrap();
        for _ in 0..5 {
            bus.drain().unwrap();
            clock.advance(MINUTE);
        }
        assert_eq!(calls.count("ordered"), 0, "{kind}");
        bus.resume(&paused).unwrap();
        bus.drain().unwrap();
        assert_eq!(calls.count("ordered"), 21, "{kind}");
    }
}

/// The write lock is the application's as well.
#[test]
fn a_turn_calls_no_more_than_it_may_claim() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.update_settings(|settings| settings.batch_size = 10).unwrap();
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran")).rate_limit(1, MINUTE)).unwrap();
        bus.publish_all((0..101).map(numbered)).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        bus.registry().clear();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran")).rate_limit(1_000, MINUTE)).unwrap();
        assert_eq!((bus.process_batch().unwrap(), waiting(bus)), (10, 90), "{kind}");
        assert_eq!(bus.drain().unwrap(), 90, "{kind}");
    }
}

#[test]
fn a_shared_transaction_that_begins_again_counts_its_calls_again() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TABLE parent (id INTEGER PRIMARY KEY);
                 CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
            )
        });
        let handler = {
            let calls = calls.clone();
            move |event: &Event, tx: &Tx<'_>| {
                calls.add("ran");
                if event.aggregate_id() == "0" {
                    tx.execute("INSERT INTO child VALUES (1)", [])?;
                }
                Ok(())
            }
        };
        let subscription = Subscription::transactional("a", "c", handler).rate_limit(6, MINUTE);
        bus.subscribe(subscription.max_attempts(1)).unwrap();
        bus.publish_all((0..2).map(numbered)).unwrap();
        bus.drain().unwrap();
        let so_far = calls.count("ran");
        assert!(so_far > 2, "{kind}: the transaction has begun again");
        bus.publish_all((2..12).map(numbered)).unwrap();
        bus.drain().unwrap();
        assert_eq!(calls.count("ran"), so_far.max(6), "{kind}");
        clock.advance(MINUTE);
        bus.drain().unwrap();
        assert!(calls.count("ran") <= so_far.max(6) + 6, "{kind}");
    }
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    for TestBox { bus, .. } in &boxes() {
        let new = || Subscription::new("a", "c", noting(&Calls::default(), "ran"));
        assert_eq!(refused_field(bus.subscribe(new().max_concurrency(0))), "max_concurrency");
        for (n, per) in [
            (0, MINUTE),
            (100_001, MINUTE),
            (1, Duration::ZERO),
            (1, Duration::from_micros(999)),
            (1, Duration::MAX),
        ] {
            assert_eq!(refused_field(bus.subscribe(new().rate_limit(n, per))), "rate_limit", "{n} {per:?}");
        }
        assert_eq!(bus.registry().handler_count(), 0);
        bus.subscribe(new().rate_limit(100_000, Duration::from_millis(1)).max_concurrency(u32::MAX)).unwrap();
    }
}
