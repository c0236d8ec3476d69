//! Boxes that die between two steps, and what is promised of the next start.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use postbox::testing::{
    CrashPoint, Recorder, TestBox, assert_processed, assert_published, refute_published, wait_until_settled,
};
use postbox::{
    Context, Error, Event, HandlerError, HistoryKind, NewEvent, OutboxStatus, PauseTarget, Postbox, Settings,
    Subscription, Tx,
};

use crate::panics;
use crate::support::{SECOND, add_effect, effects, event, inbox_rows, outbox_row, status, writing};

const LIMIT: Duration = Duration::from_mins(1);

const POINTS: [CrashPoint; 8] = [
    CrashPoint::BeforePublish,
    CrashPoint::AfterPublish,
    CrashPoint::AfterClaim,
    CrashPoint::BeforeHandler,
    CrashPoint::AfterHandler,
    CrashPoint::BeforeCommit,
    CrashPoint::AfterCommit,
    CrashPoint::AfterSettle,
];

/// A box with a table, and these subscriptions at each start.
fn test_box(subscriptions: impl Fn() -> Vec<Subscription> + Send + Sync + 'static) -> TestBox {
    TestBox::builder()
        .setup(move |postbox| {
            let make = "CREATE TABLE IF NOT EXISTS effect (seq INTEGER PRIMARY KEY, who TEXT NOT NULL)";
            postbox.transaction(|tx| Ok::<_, Error>(tx.execute_batch(make)?)).unwrap();
            postbox.subscribe_many(subscriptions()).unwrap();
        })
        .open()
}

fn publish_and_drain(postbox: &TestBox) {
    postbox.publish(event("a")).unwrap();
    postbox.drain_all();
}

/// What was lost of the event, as its history has it.
fn lost(postbox: &Postbox) -> usize {
    let page = postbox.outbox().list(&postbox::EventFilter::new(), &postbox::Page::oldest(10)).unwrap();
    let history = page.events.iter().flat_map(|event| postbox.outbox().history(event.id).unwrap());
    history.filter(|entry| entry.kind == HistoryKind::Lost).count()
}

#[test]
fn a_transactional_effect_happens_exactly_once_wherever_the_box_dies() {
    for point in POINTS {
        // Nothing of a transactional handler is settled by itself.
        if point == CrashPoint::AfterSettle {
            continue;
        }
        let calls = Recorder::new("books");
        let recorder = calls.clone();
        let mut postbox = test_box(move || vec![recorder.around_transactional("a", writing("booked"))]);
        postbox.crash_at(point, publish_and_drain);
        let (status_then, attempts_then, calls_in_all, attempts_in_all, lost_in_all) = match point {
            CrashPoint::BeforePublish => {
                refute_published!(postbox, "*");
                assert_eq!((postbox.drain_all(), effects(&postbox).len()), (0, 0));
                continue;
            }
            CrashPoint::AfterPublish | CrashPoint::AfterClaim => (OutboxStatus::Pending, 0, 1, 1, 0),
            CrashPoint::BeforeHandler => (OutboxStatus::Processing, 1, 1, 2, 1),
            CrashPoint::AfterCommit => (OutboxStatus::Processed, 1, 1, 1, 0),
            _ => (OutboxStatus::Processing, 1, 2, 2, 1),
        };
        let id = assert_published!(postbox, "a", count = 1)[0].id;
        let row = outbox_row(&postbox, id);
        assert_eq!((row.status, row.attempt_count), (status_then, attempts_then), "{point:?}");
        assert_eq!(effects(&postbox).len(), usize::from(point == CrashPoint::AfterCommit), "{point:?}");
        postbox.drain_all();
        assert_eq!(assert_processed!(postbox, id, by = "books").attempt_count, attempts_in_all, "{point:?}");
        assert_eq!(effects(&postbox), ["booked"], "{point:?}");
        assert_eq!(calls.calls().len(), calls_in_all, "{point:?}");
        assert_eq!(lost(&postbox), lost_in_all, "{point:?}");
    }
}

#[test]
fn a_plain_handler_runs_at_least_once_wherever_the_box_dies_and_no_more_often_than_is_said() {
    for point in POINTS {
        // No transaction is a plain handler's.
        if matches!(point, CrashPoint::BeforeCommit | CrashPoint::AfterCommit) {
            continue;
        }
        let calls = Recorder::new("mail");
        let recorder = calls.clone();
        let mut postbox = test_box(move || vec![recorder.subscription("a")]);
        postbox.crash_at(point, publish_and_drain);
        let (attempts_then, calls_then, calls_in_all, attempts_in_all) = match point {
            CrashPoint::BeforePublish => {
                refute_published!(postbox, "*");
                continue;
            }
            CrashPoint::AfterPublish | CrashPoint::AfterClaim => (0, 0, 1, 1),
            CrashPoint::BeforeHandler => (1, 0, 1, 2),
            CrashPoint::AfterHandler => (1, 1, 2, 2),
            _ => (1, 1, 1, 1),
        };
        let id = assert_published!(postbox, "a").id;
        assert_eq!(outbox_row(&postbox, id).attempt_count, attempts_then, "{point:?}");
        assert_eq!(calls.calls().len(), calls_then, "{point:?}");
        postbox.drain_all();
        assert_eq!(assert_processed!(postbox, id).attempt_count, attempts_in_all, "{point:?}");
        assert_eq!(calls.calls().len(), calls_in_all, "{point:?}");
        let ids: Vec<_> = calls.events().iter().map(|event| event.id()).collect();
        assert!(ids.iter().all(|given| *given == id), "{point:?}");
    }
}

#[test]
fn a_crash_loop_in_a_handler_ends_as_a_dead_letter_and_takes_no_neighbour_along() {
    let calls = Recorder::new("mail");
    let recorder = calls.clone();
    let mut postbox = test_box(move || vec![recorder.subscription("a")]);
    let ids = postbox.publish_all([event("a"), event("a"), event("a")]).unwrap();
    for _ in 0..3 {
        // It is claimed alone once it has killed its process.
        postbox.crash_at(CrashPoint::AfterHandler, |postbox| postbox.drain_all());
    }
    postbox.drain_all();
    let dead = postbox::testing::assert_dead_lettered!(postbox, ids[0]);
    assert_eq!(dead.attempt_count, 4, "three that were lost, and the one that found it so");
    assert_processed!(postbox, "a", count = 2);
    let of_the_first = calls.events().iter().filter(|event| event.id() == ids[0]).count();
    assert_eq!((of_the_first, calls.calls().len()), (3, 5));
}

#[test]
fn neighbours_of_a_batch_that_had_begun_go_on_and_those_that_had_not_lose_no_attempt() {
    let calls = Recorder::new("mail");
    let recorder = calls.clone();
    let mut postbox = test_box(move || vec![recorder.subscription("a")]);
    let ids = postbox.publish_all((0..5).map(|_| event("a"))).unwrap();
    postbox.crash_at_nth(CrashPoint::BeforeHandler, 3, |postbox| postbox.drain_all());
    assert_eq!(calls.calls().len(), 2, "none is called by the dead");
    let attempts: Vec<_> = ids.iter().map(|id| outbox_row(&postbox, *id).attempt_count).collect();
    assert_eq!(attempts[3..], [0, 0]);
    assert_eq!(attempts[2], 1);
    postbox.drain_all();
    assert_processed!(postbox, "a", count = 5);
}

#[test]
fn what_is_in_the_file_outlives_the_box_and_what_is_in_memory_does_not() {
    let mut postbox = TestBox::builder().settings(Settings { batch_size: 7, ..Settings::default() }).open();
    postbox.update_settings(|settings| settings.max_attempts = 9).unwrap();
    postbox.pause(&PauseTarget::consumer("sync"), Some("offline"), None).unwrap();
    postbox.subscribe(Subscription::new("a", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    let id = postbox.publish(event("a").delay(SECOND * 60)).unwrap();
    postbox.advance(SECOND * 30);
    let (before, old) = (postbox.now(), postbox.postbox());
    postbox.reopen();
    assert_eq!(postbox.now(), before);
    assert_eq!((postbox.settings().max_attempts, postbox.settings().batch_size), (9, 7));
    assert_eq!(postbox.pauses().unwrap().len(), 1);
    assert_eq!(postbox.registry().handler_count(), 0);
    assert_eq!(status(&postbox, id), OutboxStatus::Pending);
    assert!(matches!(old.publish(event("a")), Err(Error::Closed { .. })));
    assert!(matches!(old.stats(), Err(Error::Closed { .. })));
    postbox.subscribe(Subscription::new("a", "c", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    assert_eq!(postbox.drain_due(), 0);
    assert_eq!(postbox.drain_for(SECOND * 30), 1);
    postbox.reopen();
    assert_eq!(status(&postbox, id), OutboxStatus::Processed);
}

#[test]
fn an_open_transaction_is_rolled_back_and_one_that_was_committed_stays() {
    let mut postbox = test_box(Vec::new);
    for (point, is_there) in [(CrashPoint::BeforePublish, 0), (CrashPoint::AfterPublish, 1)] {
        postbox.crash_at(point, |postbox| {
            let done = postbox.transaction(|tx| {
                add_effect(tx, "the application's")?;
                tx.publish(event("a"))
            });
            unreachable!("{done:?}");
        });
        assert_eq!(effects(&postbox).len(), is_there, "{point:?}");
        assert_eq!(postbox.stats().unwrap().total, is_there as u64, "{point:?}");
    }
}

#[test]
fn a_handler_that_publishes_dies_with_its_box_and_the_follow_up_stays() {
    let calls = Recorder::new("made");
    let recorder = calls.clone();
    let mut postbox = test_box(move || {
        let publish = |event: &Event, cx: &Context<'_>| {
            let key = event.id().to_string();
            cx.publish(NewEvent::new("b", "m", "T", "1").idempotency_key(key))?;
            Ok(())
        };
        vec![Subscription::new("a", "makes", publish), recorder.subscription("b")]
    });
    let id = postbox.publish(event("a")).unwrap();
    postbox.crash_at(CrashPoint::AfterPublish, |postbox| postbox.drain_all());
    assert_eq!(status(&postbox, id), OutboxStatus::Processing);
    postbox.drain_all();
    assert_processed!(postbox, "*", count = 2);
    assert_eq!(calls.calls().len(), 1);
}

#[test]
fn a_recorder_does_not_write_down_a_call_that_the_death_has_cut_short() {
    let makes = Recorder::new("makes");
    let recorder = makes.clone();
    let mut postbox = test_box(move || {
        let publish = |_: &Event, cx: &Context<'_>| {
            cx.publish(NewEvent::new("b", "m", "T", "1"))?;
            Ok(())
        };
        vec![recorder.around("a", publish)]
    });
    postbox.publish(event("a")).unwrap();
    postbox.crash_at(CrashPoint::AfterPublish, |postbox| postbox.drain_all());
    assert!(makes.calls().is_empty());
    postbox.drain_all();
    assert_eq!(makes.calls().len(), 1);
}

#[test]
fn a_running_worker_dies_as_well_and_the_next_takes_over() {
    for point in [
        CrashPoint::AfterPublish,
        CrashPoint::AfterClaim,
        CrashPoint::BeforeHandler,
        CrashPoint::AfterHandler,
        CrashPoint::BeforeCommit,
        CrashPoint::AfterCommit,
        CrashPoint::AfterSettle,
    ] {
        let mail = Recorder::new("mail");
        let recorder = mail.clone();
        let mut postbox = test_box(move || {
            vec![
                recorder.subscription("plain"),
                Subscription::transactional("booked", "books", writing("booked")),
            ]
        });
        let published = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&published);
        postbox.crash_at(point, move |postbox| {
            let worker = postbox.start().unwrap();
            assert!(worker.wait_for_startup_drain(LIMIT));
            // The box may die while the second is published, which is then refused.
            for name in ["plain", "booked"] {
                let id = postbox.publish(event(name));
                noted.lock().unwrap().extend(id);
            }
            worker
        });
        let ids = published.lock().unwrap().clone();
        let worker = postbox.start().unwrap();
        let page = postbox.outbox().list(&postbox::EventFilter::new(), &postbox::Page::oldest(10)).unwrap();
        for event in page.events {
            assert_eq!(wait_until_settled(&postbox, event.id, LIMIT), OutboxStatus::Processed, "{point:?}");
        }
        for id in ids {
            assert_eq!(status(&postbox, id), OutboxStatus::Processed, "{point:?}");
        }
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        let booked = postbox.outbox().count(&postbox::EventFilter::new().name("booked")).unwrap();
        assert_eq!(effects(&postbox).len() as u64, booked, "{point:?}");
    }
}

#[test]
fn a_handler_that_still_runs_when_its_box_dies_writes_nothing_any_more() {
    let (begun, begins) = channel();
    let (go_on, goes_on) = channel::<()>();
    let goes_on = Mutex::new(Some(goes_on));
    let (said, says) = channel();
    let first = Mutex::new(Some((begun, said)));
    let mail = Arc::new(move |_: &Event, cx: &Context<'_>| {
        let Some((begun, said)) = first.lock().unwrap().take() else { return Ok(()) };
        begun.send(()).map_err(HandlerError::retry)?;
        let goes_on = goes_on.lock().unwrap().take().expect("once");
        let _ = goes_on.recv();
        let published = cx.publish(NewEvent::new("b", "m", "T", "1"));
        said.send(matches!(published, Err(Error::Closed { .. }))).map_err(HandlerError::retry)
    });
    let mut postbox = test_box(move || {
        let mail = Arc::clone(&mail);
        vec![Subscription::new("a", "mail", move |event: &Event, cx: &Context<'_>| mail(event, cx))]
    });
    let worker = postbox.start().unwrap();
    let id = postbox.publish(event("a")).unwrap();
    begins.recv_timeout(LIMIT).unwrap();
    postbox.reopen();
    drop(worker);
    go_on.send(()).unwrap();
    assert!(says.recv_timeout(LIMIT).unwrap(), "it is refused");
    assert_eq!((status(&postbox, id), outbox_row(&postbox, id).attempt_count), (OutboxStatus::Processing, 1));
    postbox.drain_all();
    assert_processed!(postbox, id);
    refute_published!(postbox, "b");
    assert_eq!(inbox_rows(&postbox, id).len(), 1);
}

#[test]
fn nothing_is_begun_in_a_box_that_has_died_on_another_thread() {
    let (mut postbox, mut refused) = (test_box(Vec::new), 0);
    postbox.crash_at(CrashPoint::AfterPublish, |postbox| {
        let bus = postbox.postbox();
        assert!(thread::spawn(move || bus.publish(event("a"))).join().is_err(), "it ends with its box");
        refused += u32::from(matches!(postbox.publish(event("b")), Err(Error::Closed { .. })));
        let written = postbox.transaction(|tx| Ok::<_, Error>(add_effect(tx, "too late")?));
        refused += u32::from(matches!(written, Err(Error::Closed { .. })));
    });
    assert_eq!(refused, 2);
    assert!(effects(&postbox).is_empty());
    assert_published!(postbox, "a", count = 1);
    refute_published!(postbox, "b");
}

#[test]
fn a_transaction_that_is_open_on_another_thread_when_the_box_dies_is_not_committed() {
    let (begun, begins) = channel();
    let (go_on, goes_on) = channel::<()>();
    let goes_on = Mutex::new(goes_on);
    let wait = move |_: &Event, _: &Context<'_>| {
        begun.send(()).map_err(HandlerError::retry)?;
        goes_on.lock().unwrap().recv().map_err(HandlerError::retry)
    };
    let (mut postbox, mut is_refused) = (test_box(Vec::new), false);
    postbox.subscribe(Subscription::new("a", "waits", wait)).unwrap();
    postbox.crash_at(CrashPoint::AfterHandler, |postbox| {
        let worker = postbox.start().unwrap();
        let id = postbox.publish(event("a")).unwrap();
        begins.recv_timeout(LIMIT).unwrap();
        let written = postbox.transaction(|tx| {
            go_on.send(()).unwrap();
            // It unwinds when the box is dead.
            let wait = AssertUnwindSafe(|| wait_until_settled(postbox, id, LIMIT));
            assert!(catch_unwind(wait).is_err());
            Ok::<_, Error>(add_effect(tx, "too late")?)
        });
        is_refused = matches!(written, Err(Error::Closed { .. }));
        worker
    });
    assert!(is_refused && effects(&postbox).is_empty());
}

#[test]
fn a_step_that_is_never_come_to_is_no_crash() {
    let mut postbox = test_box(Vec::new);
    let said = panics(|| postbox.crash_at(CrashPoint::AfterHandler, |postbox| postbox.drain_all()));
    assert_eq!(said, "it did not come to AfterHandler");
    let said =
        panics(|| postbox.crash_at_nth(CrashPoint::AfterPublish, 2, |postbox| postbox.publish(event("a"))));
    assert_eq!(said, "it did not come to AfterPublish 2 times");
    postbox.publish(event("a")).unwrap(); // nothing is armed any more
    let said = panics(|| postbox.crash_at(CrashPoint::AfterPublish, |_| panic!("the test's own")));
    assert_eq!(said, "the test's own");
    postbox.publish(event("a")).unwrap();
    postbox.postbox().close().unwrap();
    let said = panics(|| postbox.reopen());
    assert_eq!(said, "the box was closed, and its memory is gone");
}

#[test]
fn a_crash_in_a_transactional_chain_loses_follow_ups_and_effects_together() {
    let mut postbox = test_box(|| {
        let make = |_: &Event, tx: &Tx<'_>| {
            add_effect(tx, "first")?;
            tx.publish(NewEvent::new("b", "m", "T", "1"))?;
            Ok(())
        };
        vec![
            Subscription::transactional("a", "first", make),
            Subscription::transactional("b", "second", writing("second")),
        ]
    });
    postbox.publish(event("a")).unwrap();
    postbox.crash_at(CrashPoint::BeforeCommit, |postbox| postbox.drain_all());
    refute_published!(postbox, "b");
    postbox.crash_at_nth(CrashPoint::BeforeCommit, 2, |postbox| postbox.drain_all());
    postbox.drain_all();
    assert_eq!(effects(&postbox), ["first", "second"]);
    assert_processed!(postbox, "*", count = 2);
}

#[test]
fn a_sagas_steps_happen_once_wherever_its_process_dies() {
    use postbox::{Saga, SagaStep};

    let order = |name: &str| NewEvent::new(name, "sales", "Order", "o-1").correlation_id("o-1");
    let take = move |seen: &mut Vec<String>, event: &Event, step: &SagaStep<'_>| {
        seen.push(event.name().to_owned());
        match event.name() {
            "start" => {
                step.timeout("t", SECOND * 60, order("step.t"))?;
                step.timeout("u", SECOND * 60, order("step.u"))?;
                step.publish(order("step.a"))?;
                step.undo_with(order("undo.start"))?;
            }
            "step.a" => {
                step.cancel_timeout("u")?;
                step.undo_with(order("undo.a"))?;
            }
            _ => {
                step.compensate("it took too long")?;
            }
        }
        Ok(())
    };
    let saga = move || Saga::<Vec<String>>::new("order").starts_on("start", take).on("step.*", take);
    let points = [
        CrashPoint::AfterClaim,
        CrashPoint::BeforeHandler,
        CrashPoint::AfterHandler,
        CrashPoint::BeforeCommit,
        CrashPoint::AfterCommit,
    ];
    for (point, nth) in points.into_iter().flat_map(|point| (1..=3).map(move |nth| (point, nth))) {
        let mut postbox = TestBox::builder().setup(move |bus| bus.subscribe_saga(saga()).unwrap()).open();
        postbox.publish(order("start")).unwrap();
        postbox.crash_at_nth(point, nth, |postbox| postbox.drain_for(SECOND * 120));
        postbox.drain_for(SECOND * 120);
        let stands = postbox.sagas().get("order", "o-1").unwrap().unwrap();
        assert_eq!(stands.state, serde_json::json!(["start", "step.a", "step.t"]), "{point:?} {nth}");
        let events =
            postbox.outbox().list(&postbox::EventFilter::new(), &postbox::Page::oldest(100)).unwrap().events;
        let names: Vec<_> = events.iter().map(|event| event.event_name.as_str()).collect();
        assert_eq!(names, ["start", "step.t", "step.u", "step.a", "undo.a", "undo.start"], "{point:?} {nth}");
    }
}
