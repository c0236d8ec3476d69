//! One handler alone, and events that are made up for it.

use std::time::Duration;

use postbox::testing::{
    Alone, Outcome, TestBox, assert_published, event, refute_published, run_handler, run_transactional,
};
use postbox::{
    Context, EntityRef, Event, HandlerError, HandlerResult, LinkType, NewEvent, NewLink, Subscription, Tx,
};
use serde_json::json;

use crate::panics;
use crate::support::{SECOND, add_effect, assert_reentrant, boxes, effects, make_effects, sql};

fn created() -> NewEvent {
    NewEvent::new("invoice.created", "finance", "Invoice", "inv-1").correlation_id("talk")
}

fn link(n: u32) -> NewLink {
    let entity = |kind: &str| EntityRef::new("finance", kind, n.to_string());
    NewLink::new(entity("Invoice"), entity("Task"), LinkType::Reference)
}

fn follow_up() -> NewEvent {
    NewEvent::new("task.made", "operations", "Task", "t-1")
}

#[test]
fn what_a_plain_handler_says_publishes_and_links_is_told() {
    for test in boxes() {
        let bus = &test.bus;
        bus.publish(created()).unwrap(); // there before
        bus.links().create(link(1)).unwrap();
        let handle = |event: &Event, cx: &Context<'_>| {
            assert_eq!(cx.consumer_name(), "tasks");
            cx.publish(follow_up().payload(json!({ "of": event.aggregate_id() })))?;
            cx.postbox().publish(NewEvent::new("audit.noted", "audit", "Entry", "1"))?;
            cx.postbox().links().create(link(2))?;
            Ok(())
        };
        let created = event(created());
        let ran = Alone::in_box(bus).consumer("tasks").run(&created, &handle);
        assert_eq!(ran.outcome, Outcome::Processed);
        let names: Vec<_> = ran.published.iter().map(|event| event.event_name.as_str()).collect();
        assert_eq!(names, ["task.made", "audit.noted"]);
        assert_eq!(ran.links.len(), 1);
        assert_eq!(ran.links[0].source.entity_id, "2");
        let made = assert_published!(bus, "task.made", { "of": "inv-1" }, caused_by = created.id());
        assert_eq!(made.correlation_id.as_deref(), Some("talk"));
    }
}

#[test]
fn what_a_transactional_handler_wrote_stays_when_it_succeeds_and_goes_when_it_does_not() {
    for test in boxes() {
        let bus = &test.bus;
        make_effects(bus);
        let handle = |event: &Event, tx: &Tx<'_>| {
            add_effect(tx, event.aggregate_id())?;
            tx.publish(follow_up())?;
            tx.create_link(link(1))?;
            if event.attempt() == 1 { Err(HandlerError::skip("not the first time")) } else { Ok(()) }
        };
        let ran = run_transactional(bus, &event(created()), &handle);
        assert_eq!(ran.outcome, Outcome::Skipped { why: "not the first time".to_owned() });
        assert!(ran.published.is_empty() && ran.links.is_empty(), "{ran:?}");
        assert!(effects(bus).is_empty());
        refute_published!(bus, "*");

        let second = event(created()).with_attempt(2);
        let ran = run_transactional(bus, &second, &handle);
        assert_eq!(ran.outcome, Outcome::Processed);
        assert_eq!((ran.published.len(), ran.links.len()), (1, 1));
        assert_eq!(ran.published[0].causation_id, Some(second.id()));
        assert_eq!(effects(bus), ["inv-1"]);
        assert_eq!(bus.stats().unwrap().total, 1, "the event itself is in no box");
    }
}

#[test]
fn every_outcome_is_told_apart() {
    let postbox = TestBox::new();
    let outcome = |handle: fn() -> HandlerResult| {
        let plain = run_handler(&postbox, &event(created()), &move |_: &Event, _: &Context<'_>| handle());
        let in_tx = run_transactional(&postbox, &event(created()), &move |_: &Event, _: &Tx<'_>| handle());
        assert_eq!(plain.outcome, in_tx.outcome);
        plain.outcome
    };
    let why = "why".to_owned();
    assert_eq!(outcome(|| Ok(())), Outcome::Processed);
    assert_eq!(outcome(|| Err(HandlerError::retry("why"))), Outcome::Retry { why: why.clone(), after: None });
    let after = Outcome::Retry { why: why.clone(), after: Some(SECOND) };
    assert_eq!(outcome(|| Err(HandlerError::retry_after("why", SECOND))), after);
    assert_eq!(outcome(|| Err(HandlerError::dead_letter("why"))), Outcome::DeadLetter { why: why.clone() });
    assert_eq!(outcome(|| Err(HandlerError::skip("why"))), Outcome::Skipped { why: why.clone() });
    let pause = Outcome::PauseConsumer { why, duration: SECOND };
    assert_eq!(outcome(|| Err(HandlerError::pause_consumer("why", SECOND))), pause);
    assert_eq!(outcome(|| panic!("boom {}", 1)), Outcome::Panicked { message: "boom 1".to_owned() });
    let parsed = |text: &str| text.parse::<u32>().map(drop).map_err(HandlerError::from);
    let retry = Outcome::from(parsed("x"));
    assert!(matches!(retry, Outcome::Retry { why, after: None } if why.contains("invalid digit")));
}

#[test]
fn work_that_cannot_be_committed_is_a_failed_attempt() {
    let postbox = TestBox::new();
    sql(&postbox, |tx| {
        tx.execute_batch(
            "CREATE TABLE parent (id INTEGER PRIMARY KEY);
             CREATE TABLE child (parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
        )
    });
    let orphan = |_: &Event, tx: &Tx<'_>| {
        tx.execute("INSERT INTO child VALUES (1)", [])?;
        Ok(())
    };
    let ran = run_transactional(&postbox, &event(created()), &orphan);
    match ran.outcome {
        Outcome::Retry { why, after: None } => {
            assert!(why.starts_with("its work cannot be committed: "), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        sql(&postbox, |tx| tx.query_row("SELECT count(*) FROM child", [], |row| row.get::<_, u32>(0))),
        0
    );
}

#[test]
fn a_handler_alone_is_told_to_stop_and_cannot_process_inside_itself() {
    let postbox = TestBox::new();
    let plain = |_: &Event, cx: &Context<'_>| {
        assert_reentrant(cx.postbox().drain());
        if cx.is_cancelled() { Err(HandlerError::retry("stopped")) } else { Ok(()) }
    };
    let in_tx = |_: &Event, tx: &Tx<'_>| {
        if tx.is_cancelled() { Err(HandlerError::retry("stopped")) } else { Ok(()) }
    };
    let (created, alone) = (event(created()), Alone::in_box(&postbox));
    assert_eq!(alone.run(&created, &plain).outcome, Outcome::Processed);
    assert_eq!(alone.run_transactional(&created, &in_tx).outcome, Outcome::Processed);
    let stopped = Outcome::Retry { why: "stopped".to_owned(), after: None };
    assert_eq!(alone.clone().cancelled().run(&created, &plain).outcome, stopped);
    assert_eq!(alone.cancelled().run_transactional(&created, &in_tx).outcome, stopped);
    postbox.subscribe(Subscription::transactional("x", "c", in_tx)).unwrap();
    postbox.publish(NewEvent::new("x", "m", "T", "1")).unwrap();
    assert_eq!(postbox.drain_due(), 1, "the box is as it was");
}

#[test]
fn a_made_up_event_says_what_it_was_given() {
    let at = time::OffsetDateTime::UNIX_EPOCH + Duration::from_secs(7);
    let id = "0198c0de-0000-7000-8000-000000000000".parse().unwrap();
    let cause = event(created()).id();
    let new = created().payload(json!({ "total": 1 })).metadata(json!({ "user": "Ada" })).version(2);
    let made_up = event(new).with_id(id).with_attempt(3).published_at(at).caused_by(cause);
    assert_eq!((made_up.id(), made_up.attempt(), made_up.timestamp()), (id, 3, at));
    assert_eq!(made_up.causation_id(), Some(cause));
    assert_eq!(made_up.payload(), &json!({ "total": 1 }));
    assert_eq!(made_up.metadata(), Some(&json!({ "user": "Ada" })));
    assert_eq!((made_up.version(), made_up.correlation_id()), (2, Some("talk")));
    let plain = event(created());
    assert_eq!((plain.attempt(), plain.timestamp().unix_timestamp()), (1, 1_704_067_200));
    assert_ne!(plain.id(), event(created()).id());
    let ticked = event(created().metadata(json!({ "user": "Ada" }))).scheduled("digest", at);
    assert_eq!((ticked.scheduled_by(), ticked.scheduled_for()), (Some("digest"), Some(at)));
    assert_eq!(ticked.metadata().unwrap()["user"], "Ada");
    let said = panics(|| event(created().metadata(json!(7))).scheduled("digest", at));
    assert_eq!(said, "cannot schedule this event: its metadata are no object");
    let said = panics(|| event(NewEvent::new("", "m", "T", "1")));
    assert!(said.starts_with("cannot make this event up: invalid event_name"), "{said}");
}
