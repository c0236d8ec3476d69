//! Handlers that pause their own consumer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postbox::{
    Context, Event, HandlerError, HandlerResult, InboxStatus, OutboxStatus, Postbox, Subscription, Tx,
};

use crate::support::{
    Calls, SECOND, TestBox, add_effect, boxes, effects, event, inbox_rows, just_before, make_effects, noting,
    outbox_row, status, writing,
};
use crate::{consumer, is_parked, parked, rows};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    Transactional,
}

/// An application that may be online.
#[derive(Clone, Default)]
struct Online(Arc<AtomicBool>);

impl Online {
    fn set(&self, online: bool) {
        self.0.store(online, Ordering::Relaxed);
    }

    fn say(&self) -> HandlerResult {
        if self.0.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(HandlerError::pause_consumer("offline", SECOND))
        }
    }
}

fn sync(kind: Kind, calls: &Calls, online: &Online) -> Subscription {
    let (calls, online) = (calls.clone(), online.clone());
    match kind {
        Kind::Plain => Subscription::new("a", "sync", move |_: &Event, _: &Context<'_>| {
            calls.add("sync");
            online.say()
        }),
        Kind::Transactional => Subscription::transactional("a", "sync", move |_: &Event, tx: &Tx<'_>| {
            calls.add("sync");
            add_effect(tx, "sync")?;
            online.say()
        }),
    }
}

fn both(check: impl Fn(Kind, TestBox)) {
    for kind in [Kind::Plain, Kind::Transactional] {
        for test in boxes() {
            make_effects(&test.bus);
            check(kind, test);
        }
    }
}

fn publish(bus: &Postbox, events: usize) -> Vec<postbox::EventId> {
    bus.publish_all((0..events).map(|_| event("a"))).unwrap()
}

#[test]
fn a_handler_that_pauses_its_consumer_runs_once_and_no_attempt_is_spent() {
    both(|kind, TestBox { kind: of, bus, clock, .. }| {
        let (calls, online) = (Calls::default(), Online::default());
        bus.subscribe(sync(kind, &calls, &online).max_attempts(1)).unwrap();
        let ids = publish(&bus, 60);
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.take(), ["sync"], "{kind:?}, {of}: the others were claimed with it");
        assert_eq!(effects(&bus), [""; 0], "what it wrote is undone");
        for id in &ids {
            assert!(is_parked(&bus, *id), "{kind:?}, {of}");
            assert_eq!((outbox_row(&bus, *id).attempt_count, inbox_rows(&bus, *id)), (0, vec![]));
            assert_eq!(bus.outbox().history(*id).unwrap(), []);
        }
        let pauses = bus.pauses().unwrap();
        assert_eq!((&pauses[0].target, pauses[0].reason.as_deref()), (&consumer("sync"), Some("offline")));
        assert_eq!(pauses[0].until, Some(pauses[0].since + SECOND));
        // Later ones wait without a call; at the end of the pause one handler looks whether it is still offline.
        publish(&bus, 5);
        clock.advance(just_before(SECOND));
        assert_eq!((bus.drain().unwrap(), calls.take()), (0, vec![]), "{kind:?}, {of}");
        clock.advance(Duration::from_micros(1));
        assert_eq!((bus.drain().unwrap(), calls.take()), (0, vec!["sync".to_owned()]), "{kind:?}, {of}");
        online.set(true);
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 65, "{kind:?}, {of}");
        assert_eq!(calls.all().len(), 65);
        assert_eq!((rows(&bus), parked(&bus)), (0, 0));
        assert_eq!(outbox_row(&bus, ids[0]).attempt_count, 1);
    });
}

#[test]
fn the_others_of_its_event_run_whatever_their_kind() {
    both(|kind, TestBox { kind: of, bus, clock, .. }| {
        let (calls, online) = (Calls::default(), Online::default());
        bus.subscribe_many([
            Subscription::transactional("a", "tx first", writing("tx first")).priority(3),
            Subscription::new("a", "first", noting(&calls, "first")).priority(2),
            sync(kind, &calls, &online).priority(1),
            Subscription::new("a", "last", noting(&calls, "last")),
            Subscription::transactional("a", "tx last", writing("tx last")),
        ])
        .unwrap();
        let ids = publish(&bus, 3);
        assert_eq!(bus.drain().unwrap(), 0);
        for what in ["first", "last"] {
            assert_eq!(calls.count(what), 3, "{kind:?}, {of}");
        }
        assert_eq!((calls.take().len(), effects(&bus).len()), (7, 6));
        for id in &ids {
            assert!(is_parked(&bus, *id), "{kind:?}, {of}");
            let done = inbox_rows(&bus, *id);
            assert_eq!(done.len(), 4);
            assert!(done.iter().all(|row| row.1 == InboxStatus::Processed));
        }
        online.set(true);
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 3);
        assert_eq!(calls.all(), ["sync"; 3], "{kind:?}, {of}");
    });
}

#[test]
fn a_failure_beside_it_is_retried_first_and_a_dead_letter_waits() {
    both(|kind, TestBox { kind: of, bus, clock, .. }| {
        let (calls, online) = (Calls::default(), Online::default());
        let fails = |_: &Event, _: &Context<'_>| Err(HandlerError::retry_after("no", 10 * SECOND));
        bus.subscribe_many([
            sync(kind, &calls, &online).priority(1),
            Subscription::new("a", "fails", fails).max_attempts(2),
        ])
        .unwrap();
        let id = publish(&bus, 1)[0];
        bus.drain().unwrap();
        assert!(!is_parked(&bus, id), "{kind:?}, {of}");
        let failed = inbox_rows(&bus, id);
        assert_eq!((failed.len(), failed[0].0.as_str(), failed[0].2), (1, "fails", 1));
        clock.advance(10 * SECOND);
        bus.drain().unwrap();
        assert_eq!(calls.take(), ["sync"; 2]);
        assert!(is_parked(&bus, id), "{kind:?}, {of}: no dead letter yet");
        online.set(true);
        clock.advance(SECOND);
        bus.drain().unwrap();
        assert_eq!((status(&bus, id), calls.take().len()), (OutboxStatus::DeadLetter, 1), "{kind:?}, {of}");
    });
}

#[test]
fn a_handlers_pause_never_shortens_one_that_lasts_longer() {
    both(|kind, TestBox { kind: of, bus, clock, .. }| {
        let (calls, online) = (Calls::default(), Online::default());
        bus.subscribe(sync(kind, &calls, &online)).unwrap();
        publish(&bus, 1);
        // An operator pauses it for longer while its handler runs.
        let operator = bus.clone();
        if matches!(kind, Kind::Plain) {
            let once = AtomicBool::new(false);
            bus.subscribe(Subscription::new("b", "sync", move |_: &Event, _: &Context<'_>| {
                if !once.swap(true, Ordering::Relaxed) {
                    operator.pause(&consumer("sync"), Some("upgrade"), None)?;
                }
                Err(HandlerError::pause_consumer("offline", SECOND))
            }))
            .unwrap();
        } else {
            bus.subscribe(Subscription::transactional("b", "sync", move |_: &Event, _: &Tx<'_>| {
                Err(HandlerError::pause_consumer("offline", 3 * SECOND))
            }))
            .unwrap();
        }
        bus.drain().unwrap();
        assert_eq!(bus.pauses().unwrap()[0].reason.as_deref(), Some("offline"));
        bus.resume(&consumer("sync")).unwrap();
        online.set(true);
        bus.drain().unwrap();
        bus.publish(event("b")).unwrap();
        bus.drain().unwrap();
        if matches!(kind, Kind::Plain) {
            let pause = &bus.pauses().unwrap()[0];
            assert_eq!((pause.reason.as_deref(), pause.until), (Some("upgrade"), None), "{of}");
        } else {
            clock.advance(just_before(3 * SECOND));
            assert_eq!(bus.pauses().unwrap().len(), 1, "{of}");
        }
    });
}

/// A handler's shortest pause still lets a drain end.
#[test]
fn a_pause_of_no_length_is_a_tenth_of_a_second() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let seen = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
            seen.add("ran");
            Err(HandlerError::pause_consumer("", Duration::ZERO))
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        clock.advance(Duration::from_millis(100));
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(calls.all(), ["ran"; 2], "{kind}");
        assert_eq!(bus.pauses().unwrap()[0].reason.as_deref(), Some(""));
    }
}

/// What is asked in a shared transaction that begins again is asked again, and what its neighbours did stands.
#[test]
fn a_pause_in_a_shared_transaction_that_begins_again_is_not_lost() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        make_effects(bus);
        let (calls, online) = (Calls::default(), Online::default());
        bus.subscribe_many([
            sync(Kind::Transactional, &calls, &online),
            Subscription::transactional("b", "rolls back", |_: &Event, tx: &Tx<'_>| {
                tx.execute("INSERT OR ROLLBACK INTO effect (seq, who) VALUES (1, 'x'), (1, 'y')", [])?;
                Ok(())
            })
            .max_attempts(1),
            Subscription::transactional("d", "writes", writing("d")),
        ])
        .unwrap();
        let ids = bus.publish_all(["a", "d", "b", "a", "d"].map(event)).unwrap();
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        assert_eq!(effects(bus), ["d"; 2]);
        assert_eq!(status(bus, ids[2]), OutboxStatus::DeadLetter);
        assert!(is_parked(bus, ids[0]) && is_parked(bus, ids[3]), "{kind}");
        online.set(true);
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
    }
}

/// The claim is lost in the middle of its transaction: the pause is undone with all else, and nothing waits for it.
#[test]
fn a_pause_that_is_undone_with_its_lost_claim_is_waited_for_by_nobody() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let seen = calls.clone();
        bus.subscribe_many([
            Subscription::transactional("stolen", "thief", |event: &Event, tx: &Tx<'_>| {
                tx.execute(
                    "UPDATE outbox_event SET lease_id = lease_id + 1 WHERE id = ?1",
                    [event.id().as_uuid()],
                )?;
                Ok(())
            })
            .priority(1),
            Subscription::transactional("*", "c", move |event: &Event, _: &Tx<'_>| {
                seen.add(event.name());
                match event.name() {
                    "stolen" => Err(HandlerError::pause_consumer("offline", SECOND)),
                    _ => Ok(()),
                }
            }),
        ])
        .unwrap();
        bus.pause(&consumer("other"), None, None).unwrap();
        let ids = bus.publish_all(["stolen", "a"].map(event)).unwrap();
        bus.drain().unwrap();
        assert!(calls.count("stolen") > 0, "{kind}");
        assert_eq!(bus.pauses().unwrap().len(), 1, "{kind}");
        clock.advance(10 * SECOND);
        bus.drain().unwrap();
        assert_eq!(status(bus, ids[1]), OutboxStatus::Processed, "{kind}");
    }
}

#[test]
fn a_handler_may_pause_others_through_the_box_or_its_transaction() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("plain", "one", |_: &Event, cx: &Context<'_>| {
                cx.postbox().pause(&consumer("other"), None, None)?;
                Ok(())
            })
            .priority(1),
            Subscription::transactional("tx", "one", |_: &Event, tx: &Tx<'_>| {
                tx.pause(&consumer("other"), None, None)?;
                Ok(())
            })
            .priority(1),
            Subscription::new("*", "other", noting(&calls, "other")),
        ])
        .unwrap();
        for name in ["plain", "tx"] {
            let id = bus.publish(event(name)).unwrap();
            assert_eq!(bus.drain().unwrap(), 0, "{kind}, {name}");
            assert!(is_parked(bus, id), "{kind}, {name}");
            bus.resume(&consumer("other")).unwrap();
            assert_eq!(bus.drain().unwrap(), 1);
            assert_eq!(calls.take(), ["other"], "{kind}, {name}");
        }
    }
}
