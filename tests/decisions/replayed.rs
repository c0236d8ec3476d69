//! Past events, delivered again to one consumer.

use postbox::{
    Context, Event, EventFilter, HandlerError, HistoryKind, InboxStatus, NewEvent, OutboxStatus, Settings,
    Subscription, UnhandledEvents,
};

use crate::support::{
    Calls, LIMIT, TestBox, boxes, boxes_with, event, inbox_rows, make_effects, noting, outbox_row, sql,
    status, writing,
};

/// Two consumers of everything, and three processed events of each of two names.
fn with_a_past(test: &TestBox) -> Calls {
    let calls = Calls::default();
    for consumer in ["one", "two"] {
        test.bus.subscribe(Subscription::new("*", consumer, numbered(&calls, consumer))).unwrap();
    }
    for name in ["a", "b"] {
        test.bus.publish_all((1..=3).map(|n| NewEvent::new(name, "m", "t", n.to_string()))).unwrap();
    }
    assert_eq!(test.bus.drain().unwrap(), 6);
    calls.take();
    calls
}

fn numbered(calls: &Calls, consumer: &'static str) -> impl postbox::Handler + use<> {
    let calls = calls.clone();
    move |event: &Event, _: &Context<'_>| {
        calls.add(format!("{consumer} {}{}", event.name(), event.aggregate_id()));
        Ok(())
    }
}

#[test]
fn what_is_replayed_reaches_the_one_consumer_again_in_order_and_nobody_else() {
    for test in boxes() {
        let calls = with_a_past(&test);
        let bus = &test.bus;
        test.clock.advance(crate::support::SECOND);
        assert_eq!(bus.outbox().replay(&EventFilter::new().name("a"), "two").unwrap(), 3, "{}", test.kind);
        let stats = bus.stats().unwrap();
        assert_eq!((stats.pending, stats.processed, stats.total), (3, 3, 6));
        assert_eq!(bus.drain().unwrap(), 3);
        assert_eq!(calls.take(), ["two a1", "two a2", "two a3"]);
        let stats = bus.stats().unwrap();
        assert_eq!((stats.pending, stats.processed, stats.total), (0, 6, 6));
        // Again, and the other one.
        assert_eq!(bus.outbox().replay(&EventFilter::new(), "one").unwrap(), 6);
        assert_eq!(bus.drain().unwrap(), 6);
        assert_eq!(calls.take().len(), 6);
        let page = bus.outbox().list(&EventFilter::new().name("a"), &postbox::Page::oldest(1)).unwrap();
        let id = page.events[0].id;
        let story = bus.outbox().story(id).unwrap().unwrap();
        let history: Vec<_> = story.history.iter().map(|e| (e.kind, e.consumer_name.as_deref())).collect();
        assert_eq!(history, [(HistoryKind::Replayed, Some("two")), (HistoryKind::Replayed, Some("one"))]);
        assert!(inbox_rows(bus, id).iter().all(|row| row.1 == InboxStatus::Processed));
        assert_eq!(outbox_row(bus, id).attempt_count, 1);
    }
}

#[test]
fn a_replayed_event_that_fails_is_retried_and_a_dead_letter_for_that_consumer_alone() {
    for test in boxes() {
        let calls = Calls::default();
        let bus = &test.bus;
        bus.subscribe(Subscription::new("*", "other", noting(&calls, "other"))).unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        let failing = |_: &Event, _: &Context<'_>| Err(HandlerError::retry("no"));
        bus.subscribe(Subscription::new("*", "fails", failing).max_attempts(2)).unwrap();
        assert_eq!(bus.outbox().catch_up(&EventFilter::new(), "fails").unwrap(), 1);
        crate::drain_for_long(&test);
        assert_eq!(status(bus, id), OutboxStatus::DeadLetter, "{}", test.kind);
        assert_eq!(calls.all(), ["other"]);
        // It is left to a decision.
        assert_eq!(bus.outbox().replay(&EventFilter::new(), "other").unwrap(), 0);
        bus.outbox().discard(id, "enough").unwrap();
        assert_eq!(bus.outbox().replay(&EventFilter::new(), "other").unwrap(), 1);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), ["other", "other"]);
    }
}

#[test]
fn a_transactional_consumers_effects_are_made_anew() {
    for test in boxes() {
        let bus = &test.bus;
        make_effects(bus);
        bus.subscribe(Subscription::transactional("*", "ledger", writing("entry"))).unwrap();
        bus.publish_all((0..20).map(|_| event("a"))).unwrap();
        bus.drain().unwrap();
        sql(bus, |tx| tx.execute("DELETE FROM effect", []));
        assert_eq!(bus.outbox().replay(&EventFilter::new(), "ledger").unwrap(), 20);
        assert_eq!(bus.drain().unwrap(), 20);
        assert_eq!(crate::support::effects(bus).len(), 20, "{}", test.kind);
    }
}

#[test]
fn a_consumer_that_subscribes_only_now_catches_up_with_what_it_has_missed() {
    for test in boxes() {
        let calls = with_a_past(&test);
        let bus = &test.bus;
        bus.publish_all((1..=400).map(|n| NewEvent::new("many", "m", "t", n.to_string()))).unwrap();
        bus.drain().unwrap();
        calls.take();
        bus.subscribe(Subscription::new("*", "new", numbered(&calls, "new"))).unwrap();
        let recent = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(calls.take().len(), 3);
        let all = EventFilter::new().name("many");
        assert_eq!(bus.outbox().catch_up(&all, "new").unwrap(), 400, "{}", test.kind);
        // As after a crash: some have run, the others wait already.
        bus.process_batch().unwrap();
        assert_eq!(bus.outbox().catch_up(&all, "new").unwrap(), 0);
        bus.drain().unwrap();
        let expected: Vec<_> = (1..=400).map(|n| format!("new many{n}")).collect();
        assert_eq!(calls.take(), expected, "in order, each once");
        assert_eq!(bus.outbox().catch_up(&EventFilter::new(), "new").unwrap(), 6, "all but the recent one");
        assert_eq!(status(bus, recent), OutboxStatus::Processed);
        bus.drain().unwrap();
        assert_eq!(bus.outbox().catch_up(&EventFilter::new(), "new").unwrap(), 0);
    }
}

/// Whatever is to become of events that nobody subscribes to.
#[test]
fn what_is_replayed_for_a_consumer_that_is_not_there_waits_for_it() {
    for unhandled_events in [UnhandledEvents::Complete, UnhandledEvents::Hold] {
        for test in boxes_with(|b| b.settings(Settings { unhandled_events, ..Settings::default() })) {
            let calls = with_a_past(&test);
            let bus = &test.bus;
            assert_eq!(bus.outbox().catch_up(&EventFilter::new().name("a"), "late").unwrap(), 3);
            assert_eq!(bus.drain().unwrap(), 0, "{}", test.kind);
            assert_eq!(bus.stats().unwrap().pending, 3);
            bus.subscribe(Subscription::new("a", "late", numbered(&calls, "late"))).unwrap();
            assert_eq!(bus.drain().unwrap(), 3);
            assert_eq!(calls.take(), ["late a1", "late a2", "late a3"]);
        }
    }
}

#[test]
fn a_running_worker_takes_up_what_is_replayed_while_it_works() {
    for test in boxes() {
        let calls = with_a_past(&test);
        let bus = &test.bus;
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        assert_eq!(bus.outbox().replay(&EventFilter::new(), "one").unwrap(), 6);
        crate::support::wait_until(LIMIT, || bus.stats().unwrap().processed == 6);
        assert_eq!(calls.take().len(), 6, "{}", test.kind);
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

/// Each poll let them go and claimed them again; with large batches a drain never ended.
#[test]
fn what_waits_for_a_consumer_that_is_not_there_is_left_alone() {
    for batch_size in [10, 5_000] {
        for test in boxes_with(|b| b.settings(Settings { batch_size, ..Settings::default() })) {
            let bus = &test.bus;
            bus.subscribe(Subscription::new("*", "there", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
            bus.publish_all((0..1_500).map(|_| event("a"))).unwrap();
            bus.drain().unwrap();
            assert_eq!(bus.outbox().replay(&EventFilter::new(), "absent").unwrap(), 1_500);
            assert_eq!(bus.drain().unwrap(), 0);
            sql(bus, |tx| {
                tx.execute_batch(
                    "CREATE TABLE touched (n); CREATE TRIGGER touches AFTER UPDATE ON outbox_event BEGIN INSERT INTO touched VALUES (1); END",
                )
            });
            test.clock.advance(crate::support::SECOND);
            bus.subscribe(Subscription::new("*", "another", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
            assert_eq!(bus.drain().unwrap(), 0);
            let touched: i64 =
                sql(bus, |tx| tx.query_row("SELECT count(*) FROM touched", [], |row| row.get(0)));
            assert_eq!(touched, 0, "{}", test.kind);
        }
    }
}

/// The second replay left out the events that waited for the first.
#[test]
fn events_that_wait_to_be_replayed_to_one_are_replayed_to_another_too() {
    for test in boxes() {
        let calls = with_a_past(&test);
        let bus = &test.bus;
        bus.publish(NewEvent::new("a", "m", "t", "new")).unwrap();
        assert_eq!(bus.outbox().replay(&EventFilter::new(), "one").unwrap(), 6, "{}", test.kind);
        assert_eq!(bus.outbox().replay(&EventFilter::new().name("a"), "two").unwrap(), 3, "not the new one");
        assert_eq!(bus.outbox().replay(&EventFilter::new(), "one").unwrap(), 0, "it does so already");
        let past = EventFilter::new().past();
        assert_eq!(bus.outbox().count(&past).unwrap(), 6, "not the new one");
        assert_eq!(bus.outbox().count(&past.status(OutboxStatus::Processed)).unwrap(), 0);
        let waiting: Vec<_> =
            bus.outbox().replays().unwrap().into_iter().map(|r| (r.consumer_name, r.waiting)).collect();
        assert_eq!(waiting, [("one".to_owned(), 6), ("two".to_owned(), 3)]);
        assert_eq!(bus.drain().unwrap(), 7);
        let replayed =
            ["one a1", "two a1", "one a2", "two a2", "one a3", "two a3", "one b1", "one b2", "one b3"];
        let new = ["one anew", "two anew"];
        let mut seen = calls.take();
        seen.sort();
        let mut expected = [&replayed[..], &new].concat();
        expected.sort_unstable();
        assert_eq!(seen, expected);
        let stats = bus.stats().unwrap();
        assert_eq!((stats.pending, stats.processed), (0, 7));
        assert_eq!(bus.verify().unwrap().findings.len(), 0);
    }
}

/// What is replayed to two, of whom one subscribes later: neither is forgotten, and neither is given it twice.
#[test]
fn one_of_two_that_is_not_there_yet_is_waited_for() {
    for order in [["one", "late"], ["late", "one"]] {
        for test in boxes() {
            let calls = with_a_past(&test);
            let bus = &test.bus;
            for consumer in order {
                let replayed = bus.outbox().replay(&EventFilter::new().name("a"), consumer).unwrap();
                assert_eq!(replayed, 3, "{} {consumer}", test.kind);
            }
            assert_eq!(bus.drain().unwrap(), 0, "{} {order:?}", test.kind);
            assert_eq!(calls.take(), ["one a1", "one a2", "one a3"]);
            let held: Vec<_> =
                bus.outbox().replays().unwrap().into_iter().map(|r| (r.consumer_name, r.held)).collect();
            assert_eq!(held, [("late".to_owned(), 3)]);
            bus.subscribe(Subscription::new("b", "somebody", numbered(&calls, "somebody"))).unwrap();
            assert_eq!((bus.drain().unwrap(), calls.take().len()), (0, 0));
            bus.subscribe(Subscription::new("a", "late", numbered(&calls, "late"))).unwrap();
            assert_eq!(bus.drain().unwrap(), 3);
            assert_eq!(calls.take(), ["late a1", "late a2", "late a3"]);
            assert_eq!(bus.verify().unwrap().findings.len(), 0);
        }
    }
}

/// As above, where the one that is there is transactional, and where it fails for good.
#[test]
fn one_that_is_not_there_yet_is_waited_for_behind_a_transactional_one_and_not_behind_a_dead_letter() {
    for test in boxes() {
        let bus = &test.bus;
        make_effects(bus);
        bus.subscribe(Subscription::transactional("good", "work", writing("work"))).unwrap();
        let calls = Calls::default();
        let noted = calls.clone();
        let failing = move |_: &Event, _: &Context<'_>| {
            noted.add("fails");
            if noted.all().len() == 1 { Ok(()) } else { Err(HandlerError::dead_letter("never")) }
        };
        bus.subscribe(Subscription::new("bad", "fails", failing)).unwrap();
        let (good, bad) = (bus.publish(event("good")).unwrap(), bus.publish(event("bad")).unwrap());
        assert_eq!(bus.drain().unwrap(), 2);
        for consumer in ["work", "fails", "late"] {
            assert_eq!(bus.outbox().replay(&EventFilter::new(), consumer).unwrap(), 2, "{}", test.kind);
        }
        bus.drain().unwrap();
        assert_eq!(crate::support::effects(bus).len(), 2);
        assert_eq!((status(bus, good), status(bus, bad)), (OutboxStatus::Pending, OutboxStatus::DeadLetter));
        // In a transaction with a decision of its own.
        assert_eq!(bus.transaction(|tx| tx.outbox().cancel_replay(&EventFilter::new(), "late")).unwrap(), 1);
        assert_eq!(bus.drain().unwrap(), 0);
        // It waits for `fails` too, which never subscribes to it.
        assert_eq!((status(bus, good), crate::support::effects(bus).len()), (OutboxStatus::Pending, 2));
        assert_eq!(bus.outbox().cancel_replay(&EventFilter::new(), "fails").unwrap(), 1);
        assert_eq!(status(bus, good), OutboxStatus::Processed);
    }
}

#[test]
fn one_of_two_is_taken_back_and_the_other_stands() {
    for test in boxes() {
        let calls = with_a_past(&test);
        let bus = &test.bus;
        let a = EventFilter::new().name("a");
        for consumer in ["absent", "one"] {
            assert_eq!(bus.outbox().replay(&a, consumer).unwrap(), 3);
        }
        assert_eq!(bus.outbox().cancel_replay(&a, "absent").unwrap(), 3, "{}", test.kind);
        assert_eq!(bus.drain().unwrap(), 3);
        assert_eq!(calls.take(), ["one a1", "one a2", "one a3"]);
        // One that is parked for whom it is taken from is not for ever.
        bus.pause(&postbox::PauseTarget::consumer("two"), None, None).unwrap();
        for consumer in ["one", "two"] {
            assert_eq!(bus.outbox().replay(&a, consumer).unwrap(), 3);
        }
        assert_eq!((bus.drain().unwrap(), calls.take().len()), (0, 3));
        assert_eq!(bus.outbox().cancel_replay(&a, "two").unwrap(), 3);
        assert_eq!(bus.stats().unwrap().pending, 0, "nobody is left");
        assert_eq!((bus.drain().unwrap(), calls.take().len()), (0, 0));
    }
}

/// The cap on payloads was one on the consumers' names as well: what was replayed was a dead letter.
#[test]
fn a_small_limit_of_payloads_is_none_of_names() {
    for test in boxes_with(|builder| builder.max_payload_bytes(20)) {
        let bus = &test.bus;
        let calls = Calls::default();
        let name = "\u{1F4EE}".repeat(255);
        bus.subscribe(Subscription::new("*", &name, noting(&calls, "ran"))).unwrap();
        bus.publish(NewEvent::new("a", "m", "t", "1")).unwrap();
        bus.drain().unwrap();
        assert_eq!(bus.outbox().replay(&EventFilter::new(), &name).unwrap(), 1);
        assert_eq!(bus.drain().unwrap(), 1, "{}", test.kind);
        assert_eq!((calls.take().len(), bus.stats().unwrap().dead_letter), (2, 0));
    }
}

/// An event cannot wait for more consumers than a claim reads.
#[test]
fn an_event_waits_for_as_many_consumers_as_a_claim_reads() {
    for test in boxes() {
        let bus = &test.bus;
        let calls = Calls::default();
        let id = bus.publish(event("a")).unwrap();
        bus.subscribe(Subscription::new("*", "there", noting(&calls, "there"))).unwrap();
        bus.drain().unwrap();
        bus.outbox().replay(&EventFilter::new(), "there").unwrap();
        // As if so many others waited.
        let names = |count| format!("[\"there\"{}]", ",\"x\"".repeat(count));
        let count = ((1 << 20) - 9) / 4;
        sql(bus, |tx| tx.execute("UPDATE outbox_event SET deliver_to = ?1", [names(count)]));
        let refused = bus.outbox().replay(&EventFilter::new(), "one more");
        assert_eq!(crate::support::refused_field(refused), "consumer_name", "{}", test.kind);
        bus.drain().unwrap();
        assert_eq!((calls.take().len(), status(bus, id)), (2, OutboxStatus::Pending));
    }
}
