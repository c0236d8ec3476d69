//! A step that fails leaves nothing of itself behind.

use std::collections::HashMap;
use std::time::Duration;

use postbox::{
    Event, EventFilter, HandlerError, HandlerResult, InboxStatus, OutboxStatus, Page, Postbox, Saga,
    SagaStatus, SagaStep,
};
use serde_json::json;

use crate::support::{SECOND, TestBox, boxes, boxes_with, effects, make_effects, outbox_row, sql, status};
use crate::{MINUTE, Trail, found, noted, of_order, outcome, published_after, seen};

/// Does all that a step can do, then ends as `how` says.
fn all_of_it(
    how: fn() -> HandlerResult,
) -> impl Fn(&mut Trail, &Event, &SagaStep<'_>) -> HandlerResult + Send + Sync + 'static {
    move |trail, event, step| {
        trail.note(event);
        step.publish(of_order("followed"))?;
        step.timeout("more", MINUTE, of_order("step.more"))?;
        assert!(step.cancel_timeout("first")?);
        step.undo_with(of_order("undo.step"))?;
        crate::support::add_effect(step, "wrote")?;
        step.compensate("all is lost")?;
        how()
    }
}

fn saga(how: fn() -> HandlerResult) -> Saga<Trail> {
    Saga::new("order")
        .starts_on("start", |trail: &mut Trail, event, step| {
            trail.note(event);
            step.timeout("first", MINUTE, of_order("step.first"))?;
            step.undo_with(of_order("undo.start"))?;
            Ok(())
        })
        .on("step.*", all_of_it(how))
}

#[test]
fn a_step_that_fails_panics_or_skips_leaves_all_as_it_was() {
    let ways: [(fn() -> HandlerResult, OutboxStatus); 4] = [
        (|| Err(HandlerError::retry("not now")), OutboxStatus::Pending),
        (|| Err(HandlerError::dead_letter("never")), OutboxStatus::DeadLetter),
        (|| Err(HandlerError::skip("not for me")), OutboxStatus::Processed),
        (|| panic!("on purpose"), OutboxStatus::Pending),
    ];
    for (how, ends_as) in ways {
        for test in boxes() {
            let bus = &test.bus;
            make_effects(bus);
            bus.subscribe_saga(saga(how)).unwrap();
            bus.publish(of_order("start")).unwrap();
            bus.drain().unwrap();
            let before = found(bus);
            let timeout = before.timeouts[0].event_id;
            test.clock.advance(SECOND);
            let step = bus.publish(of_order("step.a")).unwrap();
            bus.drain().unwrap();
            assert_eq!(status(bus, step), ends_as, "{}", test.kind);
            assert_eq!(found(bus), before, "{}", test.kind);
            assert_eq!(published_after(bus, step), [] as [&str; 0]);
            assert_eq!(effects(bus), [] as [&str; 0]);
            assert_eq!(status(bus, timeout), OutboxStatus::Pending);
        }
    }
}

#[test]
fn a_first_step_that_fails_begins_nothing_and_begins_when_it_succeeds() {
    for test in boxes() {
        let bus = &test.bus;
        let start = |trail: &mut Trail, event: &Event, _: &SagaStep<'_>| {
            trail.note(event);
            if event.attempt() == 1 { Err(HandlerError::retry("not now")) } else { Ok(()) }
        };
        bus.subscribe_saga(Saga::<Trail>::new("order").starts_on("start", start)).unwrap();
        bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        assert!(bus.sagas().get("order", "o-1").unwrap().is_none(), "{}", test.kind);
        test.clock.advance(SECOND);
        bus.drain().unwrap();
        assert_eq!(seen(bus), ["start"], "{}", test.kind);
    }
}

/// Many steps of one conversation share a transaction: those that fail take no part of the others' state with them.
#[test]
fn neighbours_in_one_transaction_see_each_others_state_and_not_that_of_those_that_failed() {
    for test in boxes() {
        let bus = &test.bus;
        let on = |trail: &mut Trail, event: &Event, _: &SagaStep<'_>| {
            trail.seen.push(event.payload()["n"].to_string());
            if event.payload()["n"].as_u64().is_some_and(|n| n % 3 == 0) {
                return Err(HandlerError::dead_letter("every third"));
            }
            Ok(())
        };
        bus.subscribe_saga(Saga::<Trail>::new("order").starts_on("start", noted).on("step", on)).unwrap();
        bus.publish(of_order("start")).unwrap();
        bus.publish_all((1..=60).map(|n| of_order("step").payload(json!({ "n": n })))).unwrap();
        bus.drain().unwrap();
        let expected: Vec<String> = (1..=60).filter(|n| n % 3 != 0).map(|n| n.to_string()).collect();
        assert_eq!(seen(bus)[1..], expected, "{}", test.kind);
        assert_eq!(bus.outbox().count_by_status(OutboxStatus::DeadLetter).unwrap(), 20);
    }
}

#[test]
fn a_saga_whose_step_is_a_dead_letter_runs_shows_as_stuck_and_goes_on_when_it_is_retried() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(fails_the_first_time()).unwrap();
        bus.publish(of_order("start")).unwrap();
        let step = bus.publish(of_order("step")).unwrap();
        bus.drain().unwrap();
        assert_eq!(status(bus, step), OutboxStatus::DeadLetter, "{}", test.kind);
        let stuck = |bus: &Postbox| bus.sagas().stuck(None, Duration::from_hours(1), 10).unwrap();
        assert_eq!(stuck(bus), []);
        test.clock.advance(Duration::from_hours(1));
        assert_eq!(stuck(bus).len(), 1);
        assert_eq!((stuck(bus)[0].status, stuck(bus)[0].last_event.as_str()), (SagaStatus::Running, "start"));
        bus.outbox().retry(step).unwrap();
        bus.drain().unwrap();
        assert_eq!(seen(bus), ["start", "step"], "{}", test.kind);
        assert_eq!(stuck(bus), []);
    }
}

fn fails_the_first_time() -> Saga<Trail> {
    let failed = std::sync::atomic::AtomicBool::new(false);
    Saga::new("order").starts_on("start", noted).on("step", move |trail: &mut Trail, event, _| {
        trail.note(event);
        if failed.swap(true, std::sync::atomic::Ordering::SeqCst) {
            Ok(())
        } else {
            Err(HandlerError::dead_letter("no such stock"))
        }
    })
}

#[test]
fn a_state_that_does_not_fit_its_type_any_more_is_a_dead_letter_and_a_fixed_release_goes_on() {
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Newer {
        seen: Vec<String>,
        total: u32,
    }
    let test = crate::support::file_box();
    test.bus.subscribe_saga(Saga::<Trail>::new("order").starts_on("start", noted)).unwrap();
    test.bus.publish(of_order("start")).unwrap();
    test.bus.drain().unwrap();

    let test = test.reopen();
    let newer = Saga::<Newer>::new("order").starts_on("start", |_, _, _| Ok(())).on("step", |order, _, _| {
        order.total += 1;
        Ok(())
    });
    test.bus.subscribe_saga(newer).unwrap();
    let step = test.bus.publish(of_order("step")).unwrap();
    test.bus.drain().unwrap();
    assert_eq!(status(&test.bus, step), OutboxStatus::DeadLetter);
    let (inbox, why) = outcome(&test.bus, step);
    assert_eq!(inbox, InboxStatus::Failed);
    let expected = "saga `order` of `o-1`: its state does not fit the type it is read into: missing field `total` at line 1 column ";
    assert!(why.starts_with(expected), "{why}");
    assert_eq!(seen(&test.bus), ["start"], "the state is as it was");

    let test = test.reopen();
    test.bus.subscribe_saga(Saga::<Trail>::new("order").starts_on("start", noted).on("step", noted)).unwrap();
    test.bus.outbox().retry(step).unwrap();
    test.bus.drain().unwrap();
    assert_eq!(seen(&test.bus), ["start", "step"]);
}

#[test]
fn a_state_that_is_too_large_or_no_json_is_a_dead_letter_and_nothing_is_written() {
    for test in boxes_with(|builder| builder.max_payload_bytes(200)) {
        let bus = &test.bus;
        let saga =
            Saga::<Trail>::new("order").starts_on("start", noted).on("step", |trail: &mut Trail, _, step| {
                step.publish(of_order("followed"))?;
                trail.seen.push("x".repeat(200));
                Ok(())
            });
        bus.subscribe_saga(saga).unwrap();
        bus.publish(of_order("start")).unwrap();
        let step = bus.publish(of_order("step")).unwrap();
        bus.drain().unwrap();
        assert_eq!(status(bus, step), OutboxStatus::DeadLetter, "{}", test.kind);
        let why =
            "saga `order` of `o-1`: its state takes 221 bytes as JSON, more than the limit of 200 bytes";
        assert_eq!(outcome(bus, step), (InboxStatus::Failed, why.to_owned()));
        assert_eq!((seen(bus), published_after(bus, step)), (vec!["start".to_owned()], vec![]));
    }
    for test in boxes() {
        let bus = &test.bus;
        let saga = Saga::<HashMap<(u8, u8), u8>>::new("order").starts_on("start", |odd, _, _| {
            odd.insert((1, 2), 3);
            Ok(())
        });
        bus.subscribe_saga(saga).unwrap();
        let start = bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        let why = "saga `order` of `o-1`: its state cannot be JSON: key must be a string";
        assert_eq!(outcome(bus, start), (InboxStatus::Failed, why.to_owned()), "{}", test.kind);
        assert!(bus.sagas().get("order", "o-1").unwrap().is_none());
    }
}

/// A trigger of the application's swallows what the step writes.
/// `NaN` was written as `null`, which no later step could read: the conversation could only be ended by hand.
#[test]
fn a_state_that_could_not_be_read_back_is_a_dead_letter_and_the_saga_stays_as_it_was() {
    for test in boxes() {
        let bus = &test.bus;
        let set = |to: f64| {
            move |state: &mut f64, _: &Event, step: &SagaStep<'_>| {
                step.publish(of_order("follow.up"))?;
                *state = to;
                Ok(())
            }
        };
        let saga = Saga::<f64>::new("order")
            .starts_on("start", set(1.0))
            .on("nan", set(f64::NAN))
            .on("two", set(2.0));
        bus.subscribe_saga(saga).unwrap();
        bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        let nan = bus.publish(of_order("nan")).unwrap();
        bus.drain().unwrap();
        let why = "saga `order` of `o-1`: its state could not be read back: invalid type: null, expected f64";
        let (inbox, said) = outcome(bus, nan);
        assert_eq!(inbox, InboxStatus::Failed, "{}", test.kind);
        assert!(said.starts_with(why), "{said}");
        assert_eq!(published_after(bus, nan), [] as [&str; 0]);
        assert_eq!(found(bus).state, json!(1.0));
        bus.publish(of_order("two")).unwrap();
        bus.drain().unwrap();
        assert_eq!(found(bus).state, json!(2.0));
    }
}

#[test]
fn a_row_that_cannot_be_written_fails_the_step() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(crate::noting()).unwrap();
        bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER no BEFORE UPDATE ON postbox_saga BEGIN SELECT RAISE(IGNORE); END;",
            )
        });
        let step = bus.publish(of_order("step.a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(status(bus, step), OutboxStatus::Pending, "{}", test.kind);
        let why = "the saga was not stored: a trigger on postbox_saga swallowed the write";
        assert_eq!(outcome(bus, step), (InboxStatus::Failed, why.to_owned()));
        sql(bus, |tx| tx.execute_batch("DROP TRIGGER no"));
        test.clock.advance(SECOND);
        bus.drain().unwrap();
        assert_eq!(seen(bus), ["start", "step.a"]);
    }
}

/// The second of the events that undo cannot be written, and the handler lets the error pass.
#[test]
fn a_compensation_that_fails_half_way_is_not_committed_by_half() {
    for test in boxes() {
        let bus = &test.bus;
        let saga = Saga::<Trail>::new("order")
            .starts_on("start", |_, _, step| {
                step.undo_with(of_order("undo.a"))?;
                step.undo_with(of_order("undo.b"))?;
                Ok(())
            })
            .on("refused", |_, _, step| {
                assert!(step.compensate("refused").is_err());
                Ok(())
            });
        bus.subscribe_saga(saga).unwrap();
        bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        let before = found(bus);
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER no BEFORE INSERT ON outbox_event WHEN NEW.event_name = 'undo.a'
                 BEGIN SELECT RAISE(ABORT, 'no more of these'); END;",
            )
        });
        let refused = bus.publish(of_order("refused")).unwrap();
        bus.drain().unwrap();
        assert_eq!(found(bus), before, "{}", test.kind);
        assert_eq!(published_after(bus, refused), [] as [&str; 0]);
        let why = outbox_row(bus, refused).last_error.unwrap();
        assert!(
            why.starts_with("saga `order` of `o-1`: SQLite: ") && why.contains("no more of these"),
            "{why}"
        );
    }
}

#[test]
fn neither_states_nor_reasons_are_in_debug() {
    let test: TestBox = crate::support::file_box();
    let bus = &test.bus;
    let saga = Saga::<Trail>::new("order").starts_on("start", |trail: &mut Trail, _, step| {
        trail.seen.push("a secret".to_owned());
        step.undo_with(of_order("undo").payload(json!("a secret")))?;
        assert!(!format!("{step:?}").contains("secret"));
        step.compensate("a secret")?;
        Ok(())
    });
    assert_eq!(format!("{saga:?}"), "Saga { name: \"order\", events: [\"start\"], .. }");
    bus.subscribe_saga(saga).unwrap();
    bus.publish(of_order("start")).unwrap();
    bus.drain().unwrap();
    let saga = found(bus);
    assert_eq!(saga.summary.reason.as_deref(), Some("a secret"));
    assert!(!format!("{saga:?} {:?}", saga.summary).contains("secret"), "{saga:?}");
    let page = bus.outbox().list(&EventFilter::new(), &Page::oldest(10)).unwrap();
    assert_eq!(page.events.len(), 2);
}
