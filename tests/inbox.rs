//! The inbox: one row per event and consumer, kept by delivery, open to the application.

mod support;

use postbox::{
    Clock, Context, Error, Event, EventId, HandlerError, Inbox, InboxEvent, InboxId, InboxStatus,
    OutboxStatus, Subscription,
};

use crate::support::{
    Calls, SECOND, TestBox, boxes, event, inbox_rows, noting, refused_field, sql, start_time, status,
};

fn of_nobody() -> EventId {
    "0198c0de-0000-7000-8000-000000000000".parse().unwrap()
}

/// Runs the same calls on the box and inside a transaction of it.
fn on_both(test: &TestBox, calls: impl Fn(&Inbox<'_>)) {
    calls(&test.bus.inbox());
    test.bus
        .transaction::<_, Error>(|tx| {
            calls(&tx.inbox());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_new_row_is_received_and_getting_it_again_changes_nothing() {
    for test in &boxes() {
        let TestBox { bus, clock, .. } = test;
        let id = bus.publish(event("a")).unwrap();
        let row = bus.inbox().get_or_create(id, "c").unwrap();
        assert_eq!(row.outbox_event_id, id);
        assert_eq!(row.consumer_name, "c");
        assert_eq!((row.status, row.attempt_count), (InboxStatus::Received, 0));
        assert_eq!((row.last_error.as_ref(), row.processed_at), (None, None));
        assert_eq!((row.created_at, row.updated_at), (start_time(), start_time()));
        clock.advance(SECOND);
        on_both(test, |inbox| {
            assert_eq!(inbox.get_or_create(id, "c").unwrap(), row);
            assert_eq!(inbox.get(row.id).unwrap().as_ref(), Some(&row));
        });
        let other = bus.inbox().get_or_create(id, "C").unwrap();
        assert_ne!(other.id, row.id, "another consumer, another row");
    }
}

#[test]
fn a_row_needs_an_event_and_a_consumers_name_within_the_limits() {
    for test in &boxes() {
        let id = test.bus.publish(event("a")).unwrap();
        on_both(test, |inbox| {
            match inbox.get_or_create(of_nobody(), "c") {
                Err(Error::NotFound { what: "event", id }) => assert_eq!(id, of_nobody().to_string()),
                other => panic!("{other:?}"),
            }
            for bad in ["", " ", "a\0", &"é".repeat(256)] {
                assert_eq!(refused_field(inbox.get_or_create(id, bad)), "consumer_name");
            }
            assert_eq!(inbox.get_or_create(id, &"é".repeat(255)).unwrap().consumer_name, "é".repeat(255));
        });
        assert_eq!(inbox_rows(&test.bus, id).len(), 1);
    }
}

#[test]
fn every_mark_gives_the_row_as_it_is_then() {
    for test in &boxes() {
        let TestBox { bus, clock, .. } = test;
        let event_id = bus.publish(event("a")).unwrap();
        on_both(test, |inbox| {
            let consumer = format!("c{}", clock_seconds(test));
            let row = inbox.get_or_create(event_id, &consumer).unwrap();
            let check = |changed: InboxEvent, status, attempts, error: Option<&str>, done: bool| {
                assert_eq!((changed.id, changed.status, changed.attempt_count), (row.id, status, attempts));
                assert_eq!(changed.last_error.as_deref(), error);
                assert_eq!(changed.updated_at, start_time() + SECOND * clock_seconds(test));
                assert_eq!(changed.processed_at, done.then_some(changed.updated_at));
                assert_eq!(changed.created_at, row.created_at);
                assert_eq!(inbox.get(row.id).unwrap(), Some(changed));
                clock.advance(SECOND);
            };
            clock.advance(SECOND);
            check(inbox.mark_processing(row.id).unwrap(), InboxStatus::Processing, 0, None, false);
            check(inbox.increment_attempt(row.id).unwrap(), InboxStatus::Processing, 1, None, false);
            check(inbox.mark_failed(row.id, "first").unwrap(), InboxStatus::Failed, 2, Some("first"), false);
            check(
                inbox.mark_failed(row.id, "second").unwrap(),
                InboxStatus::Failed,
                3,
                Some("second"),
                false,
            );
            check(inbox.mark_processing(row.id).unwrap(), InboxStatus::Processing, 3, Some("second"), false);
            check(inbox.mark_skipped(row.id).unwrap(), InboxStatus::Skipped, 3, Some("second"), true);
            check(inbox.mark_processed(row.id).unwrap(), InboxStatus::Processed, 3, None, true);
        });
    }
}

fn clock_seconds(test: &TestBox) -> u32 {
    u32::try_from((test.clock.now() - start_time()).whole_seconds()).unwrap()
}

/// "When it was done": a row that is not done any more must not go on saying when it was.
#[test]
fn a_row_that_is_begun_again_has_no_time_of_being_done() {
    for test in &boxes() {
        let event_id = test.bus.publish(event("a")).unwrap();
        let inbox = test.bus.inbox();
        let row = inbox.get_or_create(event_id, "c").unwrap();
        inbox.mark_processed(row.id).unwrap();
        assert_eq!(inbox.mark_failed(row.id, "after all").unwrap().processed_at, None);
        inbox.mark_skipped(row.id).unwrap();
        assert_eq!(inbox.mark_processing(row.id).unwrap().processed_at, None);
    }
}

#[test]
fn a_row_that_is_not_there_is_not_found_and_not_made() {
    for test in &boxes() {
        on_both(test, |inbox| {
            let nobody = InboxId::from(4_711);
            assert_eq!(inbox.get(nobody).unwrap(), None);
            for result in [
                inbox.mark_processing(nobody),
                inbox.mark_processed(nobody),
                inbox.mark_failed(nobody, "no"),
                inbox.mark_skipped(nobody),
                inbox.increment_attempt(nobody),
            ] {
                match result {
                    Err(Error::NotFound { id, .. }) => assert_eq!(id, "4711"),
                    other => panic!("{other:?}"),
                }
            }
            assert!(!inbox.is_processed(of_nobody(), "c").unwrap());
            assert_eq!(inbox.count_unprocessed("c").unwrap(), 0);
        });
    }
}

#[test]
fn errors_are_cut_to_1023_characters_between_characters() {
    for TestBox { bus, .. } in &boxes() {
        let event_id = bus.publish(event("a")).unwrap();
        let row = bus.inbox().get_or_create(event_id, "c").unwrap();
        let marked = bus.inbox().mark_failed(row.id, &"ü".repeat(1_024)).unwrap();
        assert_eq!(marked.last_error, Some("ü".repeat(1_023)));
        let marked = bus.inbox().mark_failed(row.id, "a\0b").unwrap();
        assert_eq!(marked.last_error.as_deref(), Some("a\u{fffd}b"));
    }
}

#[test]
fn unprocessed_rows_are_those_neither_processed_nor_skipped() {
    for test in &boxes() {
        let bus = &test.bus;
        let ids = bus.publish_all((0..6).map(|_| event("a"))).unwrap();
        let inbox = bus.inbox();
        let rows = [0, 1, 2, 3, 4, 5].map(|n| inbox.get_or_create(ids[n], "c").unwrap().id);
        inbox.mark_processing(rows[1]).unwrap();
        inbox.mark_failed(rows[2], "no").unwrap();
        inbox.mark_processed(rows[3]).unwrap();
        inbox.mark_skipped(rows[4]).unwrap();
        inbox.mark_processed(rows[5]).unwrap();
        inbox.get_or_create(ids[0], "another").unwrap();
        on_both(test, |inbox| {
            assert_eq!(inbox.count_unprocessed("c").unwrap(), 3);
            assert_eq!(inbox.count_unprocessed("another").unwrap(), 1);
            assert_eq!(inbox.count_unprocessed("nobody").unwrap(), 0);
            let processed = ids.iter().map(|id| inbox.is_processed(*id, "c").unwrap()).collect::<Vec<_>>();
            assert_eq!(processed, [false, false, false, true, false, true]);
            assert!(!inbox.is_processed(ids[3], "another").unwrap());
        });
    }
}

#[test]
fn what_a_transaction_marked_is_undone_with_it() {
    for TestBox { bus, .. } in &boxes() {
        let id = bus.publish(event("a")).unwrap();
        let row = bus.inbox().get_or_create(id, "kept").unwrap();
        let rolled_back = bus.transaction::<(), Error>(|tx| {
            tx.inbox().mark_processed(row.id)?;
            tx.inbox().get_or_create(id, "undone")?;
            Err(Error::Closed { operation: "any error" })
        });
        assert!(rolled_back.is_err());
        assert_eq!(inbox_rows(bus, id), [("kept".to_owned(), InboxStatus::Received, 0, None)]);
    }
}

/// The application received it by another way, before the first delivery.
#[test]
fn a_consumer_that_was_marked_as_done_by_hand_is_not_run() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        for consumer in ["processed", "skipped", "received", "processing"] {
            bus.subscribe(Subscription::new("a", consumer, noting(&calls, consumer))).unwrap();
        }
        let ids = bus.publish_all([event("a"), event("a")]).unwrap();
        let inbox = bus.inbox();
        let row = |consumer: &str| inbox.get_or_create(ids[1], consumer).unwrap().id;
        inbox.mark_processed(row("processed")).unwrap();
        inbox.mark_skipped(row("skipped")).unwrap();
        inbox.mark_processing(row("processing")).unwrap();
        row("received");
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
        let all = ["processed", "skipped", "received", "processing"];
        assert_eq!(calls.all(), [all.as_slice(), &["received", "processing"]].concat(), "{kind}");
        let statuses: Vec<_> = inbox_rows(bus, ids[1]).into_iter().map(|row| row.1).collect();
        let processed = InboxStatus::Processed;
        assert_eq!(statuses, [processed, processed, processed, InboxStatus::Skipped]);
    }
}

#[test]
fn an_event_whose_consumers_are_all_done_by_hand_is_processed_without_running_anybody() {
    for TestBox { bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.transaction::<_, Error>(|tx| {
            let row = tx.inbox().get_or_create(id, "c")?;
            tx.inbox().mark_processed(row.id)
        })
        .unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), [""; 0]);
        assert_eq!(status(bus, id), OutboxStatus::Processed);
    }
}

#[test]
fn marking_a_waiting_consumer_as_done_ends_its_retries() {
    for TestBox { bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
            note.add("ran");
            Err(HandlerError::retry("no"))
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        let row = bus.inbox().get_or_create(id, "c").unwrap();
        assert_eq!((row.status, row.attempt_count), (InboxStatus::Failed, 1));
        bus.inbox().mark_skipped(row.id).unwrap();
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(calls.all(), ["ran"]);
        assert_eq!(status(bus, id), OutboxStatus::Processed);
    }
}

#[test]
fn a_failure_is_not_written_over_a_row_that_was_marked_as_done_meanwhile() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        let calls = Calls::default();
        let note = calls.clone();
        bus.subscribe(Subscription::new("a", "c", move |event: &Event, cx: &Context<'_>| {
            note.add("ran");
            let inbox = cx.postbox().inbox();
            inbox.mark_processed(inbox.get_or_create(event.id(), "c")?.id)?;
            Err(HandlerError::retry("after it was marked"))
        }))
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(inbox_rows(bus, id), [("c".to_owned(), InboxStatus::Processed, 0, None)], "{kind}");
        clock.advance(SECOND);
        bus.drain().unwrap();
        assert_eq!(calls.all(), ["ran"], "{kind}");
        assert_eq!(status(bus, id), OutboxStatus::Processed);
    }
}

#[test]
fn rows_go_with_their_event() {
    for TestBox { bus, .. } in &boxes() {
        let ids = bus.publish_all([event("a"), event("a")]).unwrap();
        let gone = bus.inbox().get_or_create(ids[0], "c").unwrap();
        let kept = bus.inbox().get_or_create(ids[1], "c").unwrap();
        sql(bus, |tx| tx.execute("DELETE FROM outbox_event WHERE id = ?1", [ids[0].as_uuid()]));
        assert_eq!(bus.inbox().get(gone.id).unwrap(), None);
        assert_eq!(bus.inbox().get(kept.id).unwrap(), Some(kept));
        assert_eq!(bus.inbox().count_unprocessed("c").unwrap(), 1);
    }
}

#[test]
fn states_are_stored_and_shown_under_the_names_of_the_schema() {
    let of_inbox = [
        InboxStatus::Received,
        InboxStatus::Processing,
        InboxStatus::Processed,
        InboxStatus::Failed,
        InboxStatus::Skipped,
    ];
    let names = of_inbox.map(|status| status.to_string());
    assert_eq!(names, ["received", "processing", "processed", "failed", "skipped"]);
    let of_outbox = [
        OutboxStatus::Pending,
        OutboxStatus::Processing,
        OutboxStatus::Processed,
        OutboxStatus::Failed,
        OutboxStatus::DeadLetter,
    ];
    let names = of_outbox.map(|status| status.to_string());
    assert_eq!(names, ["pending", "processing", "processed", "failed", "dead_letter"]);
    assert_eq!(InboxId::from(7).to_string(), "7");
}
