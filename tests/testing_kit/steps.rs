//! One step of a saga alone.

use std::time::Duration;

use postbox::testing::{Alone, Conversation, Outcome, TestBox, event, run_step};
use postbox::{
    EntityRef, Event, HandlerError, HandlerResult, LinkType, NewEvent, NewLink, OutboxStatus, Saga,
    SagaStatus, SagaStep,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::panics;
use crate::support::{Calls, add_effect, boxes, effects, make_effects, status};

const MINUTE: Duration = Duration::from_mins(1);

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Order {
    seen: Vec<String>,
}

fn order(seen: &[&str]) -> Order {
    Order { seen: seen.iter().map(|name| (*name).to_owned()).collect() }
}

fn of_order(name: &str) -> NewEvent {
    NewEvent::new(name, "sales", "Order", "o-1").correlation_id("o-1")
}

type How = fn(&SagaStep<'_>) -> HandlerResult;

/// `step.*` does all that a step can do.
fn saga(how: impl Fn(&SagaStep<'_>) -> HandlerResult + Send + Sync + 'static) -> Saga<Order> {
    let note = |order: &mut Order, event: &Event, _: &SagaStep<'_>| {
        order.seen.push(event.name().to_owned());
        Ok(())
    };
    Saga::new("order").starts_on("start", note).after_end("late", note).on(
        "step.*",
        move |order: &mut Order, event, step| {
            note(order, event, step)?;
            step.publish(of_order("followed"))?;
            step.timeout("new", MINUTE, of_order("step.new"))?;
            step.timeout("moved", MINUTE, of_order("step.moved"))?;
            step.timeout("short", MINUTE, of_order("step.short"))?;
            step.cancel_timeout("short")?;
            step.cancel_timeout("old")?;
            step.undo_with(of_order("undo.step"))?;
            let entity = |kind: &str| EntityRef::new("sales", kind, "1");
            step.create_link(NewLink::new(entity("Order"), entity("Task"), LinkType::Reference))?;
            add_effect(step, "wrote")?;
            how(step)
        },
    )
}

fn waiting() -> Conversation {
    Conversation::running(&order(&["start"]))
        .timeout("old", MINUTE, of_order("step.old"))
        .timeout("moved", MINUTE * 9, of_order("step.moved"))
        .timeout("kept", MINUTE * 9, of_order("step.kept"))
        .undo_with(of_order("undo.start"))
}

#[test]
fn all_that_a_step_has_done_is_told() {
    for test in boxes() {
        let bus = &test.bus;
        make_effects(bus);
        let ran = run_step(bus, &event(of_order("step.a")), &saga(|_| Ok(())), waiting());
        assert_eq!(ran.outcome, Outcome::Processed, "{}", test.kind);
        assert_eq!(
            (ran.status(), ran.state::<Order>()),
            (Some(SagaStatus::Running), order(&["start", "step.a"]))
        );
        let set: Vec<_> = ran.timeouts_set.iter().map(|timeout| timeout.name.as_str()).collect();
        assert_eq!(set, ["moved", "new"]);
        let begun = ran.saga.as_ref().unwrap().summary.created_at;
        assert!(ran.timeouts_set.iter().all(|timeout| timeout.due_at == begun + MINUTE));
        assert_eq!(ran.timeouts_cancelled, ["old"]);
        assert_eq!(ran.undo(), ["undo.start", "undo.step"]);
        let published: Vec<_> = ran.published.iter().map(|event| event.event_name.as_str()).collect();
        assert_eq!(published, ["followed"]);
        assert_eq!((ran.links.len(), effects(bus)), (1, vec!["wrote".to_owned()]));
        let saga = ran.saga.unwrap();
        assert_eq!((saga.summary.last_event.as_str(), saga.timeouts.len()), ("step.a", 3));
        assert_eq!(bus.sagas().get("order", "o-1").unwrap().unwrap(), saga);
    }
}

#[test]
fn a_step_that_fails_leaves_the_conversation_as_the_test_gave_it() {
    for test in boxes() {
        let bus = &test.bus;
        make_effects(bus);
        let fails: [(How, Outcome); 3] = [
            (|_| Err(HandlerError::dead_letter("never")), Outcome::DeadLetter { why: "never".to_owned() }),
            (|_| Err(HandlerError::skip("not now")), Outcome::Skipped { why: "not now".to_owned() }),
            (|_| panic!("on purpose"), Outcome::Panicked { message: "on purpose".to_owned() }),
        ];
        for (how, outcome) in fails {
            let ran = run_step(bus, &event(of_order("step.a")), &saga(how), waiting());
            assert_eq!(ran.outcome, outcome, "{}", test.kind);
            assert_eq!(ran.state::<Order>(), order(&["start"]));
            assert_eq!(ran.undo(), ["undo.start"]);
            assert!(ran.timeouts_set.is_empty() && ran.timeouts_cancelled.is_empty(), "{ran:?}");
            assert!(ran.published.is_empty() && ran.links.is_empty() && effects(bus).is_empty(), "{ran:?}");
        }
    }
}

#[test]
fn an_end_is_told_with_what_it_undid_and_the_timeouts_that_it_took_back() {
    let postbox = TestBox::new();
    make_effects(&postbox);
    let compensates = saga(|step| Ok(step.compensate("all is lost").map(|_| ())?));
    let ran = run_step(&postbox, &event(of_order("step.a")), &compensates, waiting());
    assert_eq!(ran.status(), Some(SagaStatus::Compensated));
    assert_eq!(ran.saga.as_ref().unwrap().summary.reason.as_deref(), Some("all is lost"));
    let published: Vec<_> = ran.published.iter().map(|event| event.event_name.as_str()).collect();
    assert_eq!(published, ["followed", "undo.step", "undo.start"]);
    assert_eq!(
        (ran.timeouts_cancelled, ran.timeouts_set.len()),
        (["kept", "moved", "old"].map(str::to_owned).to_vec(), 0)
    );

    // Where it has ended, what comes late is for another handler, or for none.
    let late = event(of_order("late"));
    for ended in [
        Conversation::completed(&order(&[])),
        Conversation::compensated(&order(&[])),
        Conversation::in_the_box(),
    ] {
        let ran = run_step(&postbox, &late, &compensates, ended);
        assert_eq!(
            (&ran.outcome, ran.state::<Order>().seen.last().unwrap().as_str()),
            (&Outcome::Processed, "late")
        );
    }
    let ran =
        run_step(&postbox, &event(of_order("step.a")), &compensates, Conversation::completed(&order(&[])));
    let why = "saga `order` of `o-1`: it has completed".to_owned();
    assert_eq!(ran.outcome, Outcome::Skipped { why });
}

#[test]
fn a_timeout_fires_as_the_one_that_the_conversation_waits_for() {
    for test in boxes() {
        let (bus, calls) = (&test.bus, Calls::default());
        let fired = calls.clone();
        let saga = Saga::<Order>::new("order")
            .starts_on("start", |_, _, step| {
                step.timeout("t", MINUTE, of_order("overdue"))?;
                Ok(())
            })
            .on("overdue", move |_, _, step| {
                fired.add(step.fired_timeout().unwrap_or("none"));
                Ok(())
            })
            .only(|event| event.name() != "overdue"); // not asked about timeouts
        // Without the event's correlation id, which every timeout has.
        let overdue = event(NewEvent::new("overdue", "sales", "Order", "o-1"));
        let ran = run_step(bus, &overdue, &saga, Conversation::running(&order(&[])).fires("t"));
        assert_eq!((ran.outcome, ran.saga.unwrap().timeouts), (Outcome::Processed, vec![]), "{}", test.kind);
        assert!(ran.timeouts_cancelled.is_empty());
        run_step(bus, &event(of_order("start")), &saga, Conversation::not_begun());
        let ran = run_step(bus, &overdue, &saga, Conversation::in_the_box().fires("t"));
        assert_eq!((ran.outcome, calls.take()), (Outcome::Processed, vec!["t".to_owned(), "t".to_owned()]));

        let said = panics(|| run_step(bus, &overdue, &saga, Conversation::in_the_box().fires("t")));
        assert_eq!(said, "the conversation waits for no timeout `t`, but for []");
        let ran = run_step(bus, &event(of_order("overdue")), &saga, Conversation::in_the_box());
        assert!(
            matches!(ran.outcome, Outcome::Skipped { .. }),
            "an event that is no timeout: {:?}",
            ran.outcome
        );
    }
}

/// A test of a step that fails once could not try its timeout again: of one that fires there is no row, as of one that was cancelled.
#[test]
fn a_timeout_whose_step_failed_fires_once_more() {
    let postbox = TestBox::new();
    let calls = Calls::default();
    let tries = calls.clone();
    let saga =
        Saga::<u32>::new("order").starts_on("start", |_, _, _| Ok(())).on("overdue", move |_, _, step| {
            tries.add(step.fired_timeout().unwrap_or("none"));
            if tries.all().len() == 1 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
        });
    let overdue = event(of_order("overdue"));
    let waiting = Conversation::running(&1).timeout("other", MINUTE, of_order("overdue")).fires("t");
    let ran = run_step(&postbox, &overdue, &saga, waiting);
    assert_eq!(ran.outcome, Outcome::Retry { why: "not yet".to_owned(), after: None });
    let ran = run_step(&postbox, &overdue, &saga, Conversation::in_the_box().fires("t"));
    assert_eq!((ran.outcome, calls.take()), (Outcome::Processed, vec!["t".to_owned(), "t".to_owned()]));
    assert!(ran.timeouts_cancelled.is_empty() && ran.timeouts_set.is_empty(), "it is the step's own");

    // What somebody has cancelled never comes.
    let other = ran.saga.unwrap().timeouts.remove(0);
    postbox.outbox().cancel(other.event_id, "by hand").unwrap();
    let said = panics(|| run_step(&postbox, &overdue, &saga, Conversation::in_the_box().fires("other")));
    assert_eq!(said, "the conversation waits for no timeout `other`, but for []");
}

#[test]
fn what_a_saga_says_before_its_handler_is_told_as_well() {
    let postbox = TestBox::new();
    make_effects(&postbox);
    let saga = saga(|_| Ok(()));
    let ran = run_step(&postbox, &event(of_order("step.a")), &saga, Conversation::not_begun());
    assert!(
        matches!(&ran.outcome, Outcome::TooEarly { why, .. } if why.contains("has not begun")),
        "{:?}",
        ran.outcome
    );
    assert!(ran.saga.is_none() && ran.status().is_none() && ran.undo().is_empty());

    // The state that another release has left.
    let odd = Conversation::running(&json!({ "saw": 1 }));
    let ran = run_step(&postbox, &event(of_order("step.a")), &saga, odd);
    assert!(
        matches!(&ran.outcome, Outcome::DeadLetter { why } if why.contains("missing field `seen`")),
        "{:?}",
        ran.outcome
    );
    assert_eq!(ran.saga.unwrap().state, json!({ "saw": 1 }));

    let nobodys = event(NewEvent::new("step.a", "sales", "Order", "o-1"));
    let ran = run_step(&postbox, &nobodys, &saga, Conversation::not_begun());
    assert!(
        matches!(&ran.outcome, Outcome::DeadLetter { why } if why.contains("no correlation id")),
        "{:?}",
        ran.outcome
    );

    let panicking = saga.clone().correlate(|_| panic!("no such order"));
    let ran = run_step(&postbox, &nobodys, &panicking, Conversation::running(&order(&[])));
    assert_eq!(ran.outcome, Outcome::Panicked { message: "no such order".to_owned() });

    let old = event(of_order("step.a")).published_at(postbox.now() - Duration::from_hours(1));
    let ran = run_step(&postbox, &old, &saga, Conversation::not_begun());
    assert!(
        matches!(&ran.outcome, Outcome::Retry { why, .. } if why.contains("has not begun")),
        "{:?}",
        ran.outcome
    );

    let found = saga.clone().correlate(|event| event.payload()["order"].as_str().map(str::to_owned));
    let step = event(NewEvent::new("step.a", "sales", "Order", "x").payload(json!({ "order": "o-7" })));
    let ran = run_step(&postbox, &step, &found, Conversation::running(&order(&[])));
    assert_eq!(ran.saga.unwrap().summary.correlation_id, "o-7");
    let stops = Saga::<u32>::new("s").starts_on("start", |told, _, step| {
        *told = u32::from(step.is_cancelled());
        Ok(())
    });
    let ran = Alone::in_box(&postbox).cancelled().run_step(
        &event(of_order("start")),
        &stops,
        Conversation::not_begun(),
    );
    assert_eq!(ran.state::<u32>(), 1);
}

/// Each test of one box begins where it says, whatever the one before has left.
#[test]
fn what_the_box_holds_of_the_conversation_is_replaced() {
    let postbox = TestBox::new();
    make_effects(&postbox);
    let saga = saga(|_| Ok(()));
    let before = run_step(&postbox, &event(of_order("step.a")), &saga, waiting()).saga.unwrap();
    let ran = run_step(&postbox, &event(of_order("start")), &saga, Conversation::not_begun());
    assert_eq!((ran.state::<Order>(), ran.saga.unwrap().timeouts), (order(&["start"]), vec![]));
    for timeout in before.timeouts {
        assert_eq!(status(&postbox, timeout.event_id), OutboxStatus::Processed, "cancelled");
    }
}

#[test]
fn what_cannot_be_run_is_said() {
    let postbox = TestBox::new();
    let start = event(of_order("start"));
    let run = |name: &str, saga: &Saga<u32>, before| {
        panics(|| run_step(&postbox, &event(of_order(name)), saga, before))
    };
    let saga = Saga::<u32>::new("order").starts_on("start", |_, _, _| Ok(())).on("step", |_, _, _| Ok(()));
    let said = run("other", &saga, Conversation::not_begun());
    assert!(
        said.starts_with("saga `order` takes no events of the name `other`: ") && said.contains("step"),
        "{said}"
    );
    let said = run("start", &Saga::new("order").on("start", |_, _, _| Ok(())), Conversation::not_begun());
    assert!(said.starts_with("cannot run this saga: ") && said.contains("starts_on"), "{said}");
    let odd = Conversation::running(&1).timeout("t", MINUTE, of_order("start"));
    let said = run("step", &saga, odd);
    assert!(
        said.starts_with("the conversation cannot stand so: ") && said.contains("no `on` of saga"),
        "{said}"
    );
    for ended in [Conversation::not_begun(), Conversation::completed(&1), Conversation::in_the_box()] {
        let said = run("step", &saga, ended.undo_with(of_order("undo")));
        assert!(said.starts_with("the conversation cannot stand so: only one that is `running`"), "{said}");
    }
    assert!(postbox.sagas().get("order", "o-1").unwrap().is_none());
    assert_eq!(postbox.stats().unwrap().total, 0, "nothing is left of it");
    let said = panics(|| Conversation::running(&std::collections::HashMap::from([((1, 2), 3)])));
    assert!(said.starts_with("cannot write this state as JSON: "), "{said}");
    let said = panics(|| run_step(&postbox, &start, &saga, Conversation::not_begun().fires("t")));
    assert_eq!(said, "the conversation waits for no timeout `t`, but for []");
}
