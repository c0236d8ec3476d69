//! Sagas: one state for each conversation, each step exactly once.

mod support;

#[path = "sagas/endings.rs"]
mod endings;
#[path = "sagas/failures.rs"]
mod failures;
#[path = "sagas/looking.rs"]
mod looking;
#[path = "sagas/refused.rs"]
mod refused;
#[path = "sagas/retention.rs"]
mod retention;
#[path = "sagas/several_boxes.rs"]
mod several_boxes;
#[path = "sagas/spoilt.rs"]
mod spoilt;
#[path = "sagas/timeouts.rs"]
mod timeouts;
#[path = "sagas/typed.rs"]
mod typed;

use std::time::Duration;

use postbox::{
    Event, EventFilter, EventId, HandlerResult, InboxStatus, NewEvent, OutboxStatus, Page, PauseTarget,
    Postbox, Saga, SagaInstance, SagaStep,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::{Calls, SECOND, TestBox, boxes, inbox_rows, just_before, outbox_row, status};

const MINUTE: Duration = Duration::from_mins(1);

/// The names of the events that a conversation has handled.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Trail {
    seen: Vec<String>,
}

impl Trail {
    fn note(&mut self, event: &Event) {
        self.seen.push(event.name().to_owned());
    }
}

/// An event of order `o-1`'s conversation.
fn of_order(name: &str) -> NewEvent {
    order(name, "o-1")
}

fn order(name: &str, id: &str) -> NewEvent {
    NewEvent::new(name, "sales", "Order", id).correlation_id(id)
}

#[expect(clippy::unnecessary_wraps, reason = "it is a handler")]
fn noted(trail: &mut Trail, event: &Event, _: &SagaStep<'_>) -> HandlerResult {
    trail.note(event);
    Ok(())
}

/// A saga that starts with `start` and takes every `step.*`.
fn noting() -> Saga<Trail> {
    Saga::new("order").starts_on("start", noted).on("step.*", noted)
}

#[track_caller]
fn found(bus: &Postbox) -> SagaInstance {
    bus.sagas().get("order", "o-1").unwrap().expect("the saga's row")
}

fn seen(bus: &Postbox) -> Vec<String> {
    let state = found(bus).state;
    serde_json::from_value::<Trail>(state).unwrap().seen
}

/// Names of the events that were published after this one.
fn published_after(bus: &Postbox, id: EventId) -> Vec<String> {
    let page = bus.outbox().list(&EventFilter::new(), &Page::oldest(100)).unwrap();
    page.events.into_iter().skip_while(|event| event.id != id).skip(1).map(|event| event.event_name).collect()
}

/// What the saga's inbox row says of the event.
#[track_caller]
fn outcome(bus: &Postbox, id: EventId) -> (InboxStatus, String) {
    let rows = inbox_rows(bus, id);
    let row = rows.into_iter().find(|row| row.0 == "saga.order").expect("the saga's inbox row");
    (row.1, row.3.unwrap_or_default())
}

#[track_caller]
fn assert_skipped(bus: &Postbox, id: EventId, why: &str) {
    assert_eq!(outcome(bus, id), (InboxStatus::Skipped, why.to_owned()));
    assert_eq!(status(bus, id), OutboxStatus::Processed);
}

#[test]
fn each_step_is_given_the_state_that_the_last_one_left_also_after_a_restart() {
    let mut test = support::file_box();
    for (event, expected) in [("start", vec!["start"]), ("step.a", vec!["start", "step.a"])] {
        test.bus.subscribe_saga(noting()).unwrap();
        test.bus.publish(of_order(event)).unwrap();
        assert_eq!(test.bus.drain().unwrap(), 1);
        test = test.reopen();
        assert_eq!(seen(&test.bus), expected);
        assert_eq!(found(&test.bus).summary.last_event, event);
    }
}

#[test]
fn conversations_have_states_of_their_own_and_so_have_sagas_of_other_names() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(noting()).unwrap();
        bus.subscribe_saga(Saga::<Trail>::new("other").starts_on("start", noted)).unwrap();
        for (name, id) in [("start", "o-1"), ("start", "o-2"), ("step.a", "o-2"), ("step.b", "o-1")] {
            bus.publish(order(name, id)).unwrap();
        }
        bus.drain().unwrap();
        let seen = |saga: &str, id: &str| bus.sagas().get(saga, id).unwrap().unwrap().state["seen"].clone();
        assert_eq!(seen("order", "o-1"), json!(["start", "step.b"]), "{}", test.kind);
        assert_eq!(seen("order", "o-2"), json!(["start", "step.a"]), "{}", test.kind);
        assert_eq!(seen("other", "o-1"), json!(["start"]), "{}", test.kind);
    }
}

#[test]
fn what_a_step_publishes_carries_the_conversation_on_and_names_its_cause() {
    for test in boxes() {
        let bus = &test.bus;
        // Found in the payload: the event's own correlation id is another.
        let saga = Saga::<Trail>::new("order")
            .starts_on("start", |_, _, step| {
                assert_eq!(
                    (step.saga(), step.correlation_id(), step.fired_timeout()),
                    ("order", "o-1", None)
                );
                step.publish(NewEvent::new("followed", "sales", "Order", "x"))?;
                step.publish(NewEvent::new("followed", "sales", "Order", "x").correlation_id("its own"))?;
                let tx: &postbox::Tx<'_> = step;
                tx.publish(NewEvent::new("followed", "sales", "Order", "x"))?;
                Ok(())
            })
            .correlate(|event| event.payload()["order"].as_str().map(str::to_owned));
        bus.subscribe_saga(saga).unwrap();
        let start = order("start", "elsewhere").payload(json!({ "order": "o-1" }));
        let start = bus.publish(start).unwrap();
        bus.drain().unwrap();
        let of = |id: &str| {
            let filter = EventFilter::new().name("followed").correlation_id(id);
            bus.outbox().list(&filter, &Page::oldest(10)).unwrap().events
        };
        assert_eq!((of("o-1").len(), of("its own").len(), of("elsewhere").len()), (2, 1, 0), "{}", test.kind);
        assert_eq!(of("o-1")[0].causation_id, Some(start));
    }
}

#[test]
fn an_event_that_comes_before_the_start_waits_for_it_without_an_attempt() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(noting()).unwrap();
        let early = bus.publish(of_order("step.early")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        let row = outbox_row(bus, early);
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, 0), "{}", test.kind);
        let why = "saga `order` of `o-1` has not begun: the event waits for the one that starts it";
        assert_eq!(row.last_error.as_deref(), Some(why));
        assert_eq!(inbox_rows(bus, early), []);

        bus.publish(of_order("start")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "only the start");
        test.clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(seen(bus), ["start", "step.early"], "{}", test.kind);
    }
}

#[test]
fn who_was_paused_while_an_event_waits_for_its_start_is_asked_when_the_saga_looks_again() {
    for test in boxes() {
        let (bus, calls) = (&test.bus, Calls::default());
        bus.subscribe_saga(noting()).unwrap();
        for consumer in ["goes on", "is paused"] {
            let note = support::noting(&calls, consumer);
            bus.subscribe(postbox::Subscription::new("step.early", consumer, note)).unwrap();
        }
        let paused = PauseTarget::consumer("is paused");
        bus.pause(&paused, None, None).unwrap();
        let early = bus.publish(of_order("step.early")).unwrap();
        test.clock.advance(10 * MINUTE);
        bus.drain().unwrap();
        assert_eq!(calls.take(), ["goes on"], "{}", test.kind);
        bus.resume(&paused).unwrap();
        test.clock.advance(just_before(5 * MINUTE));
        bus.drain().unwrap();
        assert_eq!(calls.take(), Vec::<String>::new());
        test.clock.advance(SECOND);
        bus.drain().unwrap();
        assert_eq!((calls.take(), status(bus, early)), (vec!["is paused".to_owned()], OutboxStatus::Pending));
    }
}

#[test]
fn an_event_whose_conversation_never_begins_is_a_dead_letter_in_the_end_and_is_not_lost() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(noting().wait_for_start(10 * MINUTE).max_attempts(2)).unwrap();
        let early = bus.publish(of_order("step.early")).unwrap();
        let mut tries = 0;
        while status(bus, early) == OutboxStatus::Pending {
            bus.drain().unwrap();
            tries += 1;
            let due = bus.outbox().get(early).unwrap().unwrap().available_at;
            test.clock.set(due.max(postbox::Clock::now(&test.clock)));
        }
        assert_eq!(status(bus, early), OutboxStatus::DeadLetter, "{}", test.kind);
        assert!(tries < 30, "{tries} tries in ten minutes");
        let waited = postbox::Clock::now(&test.clock) - support::start_time();
        assert!(waited >= 10 * MINUTE && waited < 12 * MINUTE, "{waited}");

        bus.publish(of_order("start")).unwrap();
        bus.outbox().retry(early).unwrap();
        bus.drain().unwrap();
        test.clock.advance(MINUTE);
        bus.drain().unwrap();
        assert_eq!(seen(bus), ["start", "step.early"], "{}", test.kind);
    }
}

/// The other consumer is not run again and again while the saga waits.
#[test]
fn other_consumers_of_an_event_that_comes_early_receive_it_once() {
    for test in boxes() {
        let (bus, calls) = (&test.bus, Calls::default());
        bus.subscribe_saga(noting()).unwrap();
        bus.subscribe(postbox::Subscription::new("step.*", "mail", support::noting(&calls, "mail"))).unwrap();
        bus.publish(of_order("step.early")).unwrap();
        bus.drain().unwrap();
        for _ in 0..5 {
            test.clock.advance(SECOND);
            bus.drain().unwrap();
        }
        assert_eq!(calls.all(), ["mail"], "{}", test.kind);
        bus.publish(of_order("start")).unwrap();
        test.clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 1, "the early one has its turn before the start, in vain");
        test.clock.advance(MINUTE);
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!((seen(bus).len(), calls.all().len()), (2, 1), "{}", test.kind);
    }
}

#[test]
fn a_second_start_is_skipped_unless_a_running_saga_takes_it() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(noting().starts_on("start.or.on", noted).on("start.or.on", noted)).unwrap();
        bus.publish(of_order("start")).unwrap();
        let second = bus.publish(of_order("start")).unwrap();
        bus.publish(of_order("start.or.on")).unwrap();
        bus.publish(order("start.or.on", "o-2")).unwrap();
        assert_eq!(bus.drain().unwrap(), 4);
        let why = "saga `order` of `o-1`: it is running already, and the event only starts it";
        assert_skipped(bus, second, why);
        assert_eq!(seen(bus), ["start", "start.or.on"], "{}", test.kind);
        assert!(bus.sagas().get("order", "o-2").unwrap().is_some());
    }
}

#[test]
fn a_start_without_a_correlation_id_begins_a_conversation_under_its_aggregate_id() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(noting()).unwrap();
        bus.publish(NewEvent::new("start", "sales", "Order", "o-1")).unwrap();
        bus.publish(of_order("step.a")).unwrap();
        let lonely = bus.publish(NewEvent::new("step.b", "sales", "Order", "o-1")).unwrap();
        bus.drain().unwrap();
        assert_eq!(seen(bus), ["start", "step.a"], "{}", test.kind);
        assert_eq!(status(bus, lonely), OutboxStatus::DeadLetter);
        let why = "saga `order`: the event `step.b` has no correlation id, so that nobody knows which conversation it belongs to: \
                   publish it with one, or give the saga a `correlate`";
        assert_eq!(outcome(bus, lonely), (InboxStatus::Failed, why.to_owned()));
    }
}

#[test]
fn a_correlation_id_that_cannot_be_used_makes_a_dead_letter() {
    for test in boxes() {
        let bus = &test.bus;
        let saga = noting().correlate(|event| event.payload()["order"].as_str().map(str::to_owned));
        bus.subscribe_saga(saga).unwrap();
        let none = bus.publish(of_order("step.a")).unwrap();
        let blank = bus.publish(of_order("start").payload(json!({ "order": " " }))).unwrap();
        let long = bus.publish(of_order("start").payload(json!({ "order": "x".repeat(256) }))).unwrap();
        bus.drain().unwrap();
        for (id, why) in [
            (none, "saga `order`: its `correlate` finds no correlation id in the event `step.a`"),
            (blank, "saga `order`: invalid correlation_id: must not be empty or blank"),
            (long, "saga `order`: invalid correlation_id: has 256 characters, at most 255 are allowed"),
        ] {
            assert_eq!(status(bus, id), OutboxStatus::DeadLetter, "{}", test.kind);
            assert_eq!(outcome(bus, id), (InboxStatus::Failed, why.to_owned()), "{}", test.kind);
        }
        assert!(bus.sagas().totals().unwrap().is_empty());
    }
}

#[test]
fn events_that_are_none_of_the_sagas_are_skipped_at_once() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(noting().only(|event| event.aggregate_type() == "Order")).unwrap();
        let other = NewEvent::new("step.a", "sales", "Gift", "g-1").correlation_id("o-1");
        let other = bus.publish(other).unwrap();
        bus.drain().unwrap();
        assert_skipped(bus, other, "it is none of saga `order`'s events, as its `only` says");
    }
}

#[test]
fn the_consumer_is_called_after_the_saga_and_is_paused_as_any_other() {
    for test in boxes() {
        let bus = &test.bus;
        let saga = noting().priority(3);
        assert_eq!((saga.name(), saga.consumer_name().as_str()), ("order", "saga.order"));
        bus.subscribe_saga(saga).unwrap();
        assert_eq!(bus.registry().consumers("step.a"), ["saga.order"]);
        let consumer = postbox::PauseTarget::consumer("saga.order");
        bus.pause(&consumer, None, None).unwrap();
        bus.publish(of_order("start")).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        assert!(bus.sagas().get("order", "o-1").unwrap().is_none(), "{}", test.kind);
        bus.resume(&consumer).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!(seen(bus), ["start"], "{}", test.kind);
    }
}

#[test]
fn an_ordered_saga_takes_the_events_of_its_entity_in_their_order() {
    for test in boxes() {
        let (bus, calls) = (&test.bus, Calls::default());
        let fails_once = {
            let calls = calls.clone();
            move |trail: &mut Trail, event: &Event, _: &SagaStep<'_>| -> HandlerResult {
                calls.add(event.name());
                if calls.count("step.a") == 1 {
                    return Err(postbox::HandlerError::retry("not yet"));
                }
                trail.note(event);
                Ok(())
            }
        };
        let saga = Saga::<Trail>::new("order").starts_on("start", noted).on("step.*", fails_once);
        let subscriptions = saga.subscriptions().unwrap();
        bus.subscribe_many(subscriptions.into_iter().map(postbox::Subscription::ordered)).unwrap();
        for name in ["start", "step.a", "step.b"] {
            bus.publish(of_order(name)).unwrap();
        }
        bus.drain().unwrap();
        assert_eq!(seen(bus), ["start"], "{}", test.kind);
        test.clock.advance(SECOND);
        bus.drain().unwrap();
        assert_eq!(seen(bus), ["start", "step.a", "step.b"], "{}", test.kind);
    }
}

#[test]
fn waits_grow_with_the_age_of_the_event() {
    let test = support::file_box();
    let bus = &test.bus;
    bus.subscribe_saga(noting()).unwrap();
    let early = bus.publish(of_order("step.early")).unwrap();
    test.clock.advance(20 * MINUTE);
    bus.drain().unwrap();
    let due = |test: &TestBox| outbox_row(&test.bus, early).available_at - support::start_time();
    assert_eq!(due(&test), 30 * MINUTE);
    test.clock.advance(just_before(10 * MINUTE));
    bus.drain().unwrap();
    assert_eq!(due(&test), 30 * MINUTE);
    assert_eq!(outbox_row(bus, early).attempt_count, 0);
    assert_eq!(bus.sagas().totals().unwrap(), []);
}

/// A handler for what comes late had the same events skipped before the end, although a pattern takes them then; and one for a running
/// conversation kept them from beginning one.
#[test]
fn the_handler_of_each_kind_is_that_of_the_closest_name_that_has_one() {
    let named = |name: &'static str| {
        move |trail: &mut Trail, event: &Event, step: &SagaStep<'_>| -> HandlerResult {
            trail.seen.push(format!("{} by {name}", event.name()));
            if event.name() == "pay.captured" && step.fired_timeout().is_none() {
                step.timeout("again", MINUTE, of_order("pay.captured"))?;
            }
            if event.name() == "stop" {
                step.complete()?;
            }
            Ok(())
        }
    };
    let saga = || {
        Saga::<Trail>::new("order")
            .on("*", named("all"))
            .starts_on("pay.*", named("starts"))
            .on("pay.*", named("payments"))
            .on("pay.card.*", named("cards"))
            .after_end("pay.captured", |trail: &mut Trail, _, _| {
                trail.seen.push("late".to_owned());
                Ok(())
            })
    };
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(saga()).unwrap();
        for name in ["pay.card.a", "pay.card.b", "pay.captured"] {
            bus.publish(of_order(name)).unwrap();
            bus.drain().unwrap();
        }
        test.clock.advance(MINUTE);
        bus.drain().unwrap();
        for name in ["stop", "pay.captured", "pay.card.c"] {
            bus.publish(of_order(name)).unwrap();
            bus.drain().unwrap();
        }
        let expected = [
            "pay.card.a by starts",
            "pay.card.b by cards",
            "pay.captured by payments",
            "pay.captured by payments",
            "stop by all",
            "late",
        ];
        assert_eq!(seen(bus), expected, "{}", test.kind);
    }
}

/// In a test whose clock stood still it held up nothing, and everywhere else it did.
#[test]
fn in_an_ordered_saga_what_comes_before_the_start_is_in_its_way_until_somebody_decides_or_it_is_passed() {
    for test in boxes() {
        let bus = &test.bus;
        let subscriptions = noting().wait_for_start(MINUTE).max_attempts(1).subscriptions().unwrap();
        let ordered = subscriptions.into_iter().map(postbox::Subscription::pass_dead_letters);
        bus.subscribe_many(ordered).unwrap();
        let early = bus.publish(of_order("step.early")).unwrap();
        let start = bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        assert_eq!(status(bus, start), OutboxStatus::Pending, "{}", test.kind);
        for _ in 0..7 {
            test.clock.advance(SECOND * 10);
            bus.drain().unwrap();
        }
        assert_eq!((status(bus, early), seen(bus)), (OutboxStatus::DeadLetter, vec!["start".to_owned()]));
        bus.outbox().retry(early).unwrap();
        bus.drain().unwrap();
        assert_eq!(seen(bus), ["start", "step.early"]);
    }
}
