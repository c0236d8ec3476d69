//! Events that end without success, however they do.

use postbox::{Event, HandlerError, HandlerResult, OutboxStatus, Settings, Tx};

use crate::support::{TestBox, boxes_with, event, lose_an_attempt, sql, status};
use crate::{Notes, both_kinds, observed, transactional_subscription};

const NEVER: fn(u32) -> HandlerResult = |_| Err(HandlerError::dead_letter("never"));

#[test]
fn where_dead_letters_are_off_it_is_told_that_the_event_failed() {
    for of_kind in 0..2 {
        let notes = Notes::default();
        let settings = Settings { dead_letter_enabled: false, ..Settings::default() };
        for TestBox { kind, bus, .. } in
            boxes_with(|builder| builder.settings(settings.clone()).observer(notes.clone()))
        {
            let [plain, transactional] = both_kinds("a", "c", NEVER);
            let (handler, subscription) = if of_kind == 0 { plain } else { transactional };
            bus.subscribe(subscription).unwrap();
            let id = bus.publish(event("a")).unwrap();
            bus.drain().unwrap();
            assert_eq!(status(&bus, id), OutboxStatus::Failed);
            assert_eq!(notes.lines.count("failed a, 1"), 1, "{handler}, {kind}");
            notes.take();
        }
    }
}

#[test]
fn rows_that_nobody_can_be_given_are_told_as_well() {
    let spoilt = [
        ("its payload is no JSON", "UPDATE outbox_event SET payload = '{'"),
        ("nor is its deliver_to", "UPDATE outbox_event SET deliver_to = '{'"),
        ("its payload is too large", "UPDATE outbox_event SET payload = printf('\"%.2000000c\"', 'x')"),
    ];
    for (what, spoil) in spoilt {
        for (TestBox { kind, bus, .. }, notes) in observed() {
            let [(_, plain), (_, transactional)] = both_kinds("a", "c", |_| Ok(()));
            drop(plain);
            bus.subscribe(transactional).unwrap();
            bus.publish(event("a")).unwrap();
            sql(&bus, |tx| tx.execute_batch(spoil));
            notes.take();
            bus.drain().unwrap();
            assert_eq!(bus.stats().unwrap().dead_letter, 1, "{what}, {kind}");
            let told = notes.take();
            let dead: Vec<_> = told.iter().filter(|line| line.starts_with("dead_letter a, ")).collect();
            assert_eq!(dead.len(), 1, "{what}, {kind}: {told:?}");
            assert!(notes.errors.take()[0].len() > 10, "{what}, {kind}");
        }
    }
}

#[test]
fn an_event_whose_last_attempt_was_lost_is_told_as_a_dead_letter() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        let [(_, plain), _] = both_kinds("a", "c", |_| Ok(()));
        bus.subscribe(plain.max_attempts(1)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        lose_an_attempt(&bus, id);
        notes.take();
        bus.drain().unwrap();
        assert_eq!(status(&bus, id), OutboxStatus::DeadLetter, "{kind}");
        assert_eq!(notes.take(), ["dead_letter a, 2", "drained 0"], "{kind}");
    }
}

/// A trigger of the application's forbids the outcome: the event is set aside.
#[test]
fn an_event_whose_outcome_cannot_be_recorded_is_told() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        sql(&bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER no BEFORE INSERT ON inbox_event BEGIN SELECT RAISE(ABORT, 'no'); END",
            )
        });
        let [(_, plain), _] = both_kinds("a", "p", |_| Ok(()));
        bus.subscribe(plain).unwrap();
        bus.subscribe(transactional_subscription("b", "t", |_: &Event, _: &Tx<'_>| Ok(()))).unwrap();
        let ids = bus.publish_all([event("a"), event("b")]).unwrap();
        bus.drain().unwrap();
        let told = notes.take();
        for (id, name) in ids.into_iter().zip(["a", "b"]) {
            assert_eq!(status(&bus, id), OutboxStatus::DeadLetter, "{kind}");
            let line = format!("dead_letter {name}, 1");
            assert_eq!(told.iter().filter(|told| **told == line).count(), 1, "{kind}: {told:?}");
        }
    }
}

#[test]
fn dead_letters_of_another_box_are_not_told() {
    let (test, notes) = observed().remove(0);
    let second = test.second();
    let [(_, plain), _] = both_kinds("a", "c", NEVER);
    second.subscribe(plain).unwrap();
    second.publish(event("a")).unwrap();
    second.drain().unwrap();
    test.bus.drain().unwrap();
    assert!(notes.take().is_empty());
}

/// No claim finds a row of a status that nobody knows.
#[test]
fn a_row_that_is_set_aside_is_told() {
    let (test, notes) = observed().remove(0);
    test.bus.publish(event("a")).unwrap();
    notes.take();
    let app = test.app_connection();
    app.execute_batch("PRAGMA ignore_check_constraints = 1; UPDATE outbox_event SET status = 'lost'")
        .unwrap();
    test.bus.drain().unwrap();
    assert_eq!(notes.take(), ["dead_letter a, 0"]);
    assert_eq!(notes.errors.take(), ["its status was `lost`, which nobody knows"]);
}

/// A trigger of the application's ends the transaction that claims one row: the others are claimed apart.
#[test]
fn a_dead_letter_beside_a_row_that_cannot_be_claimed_is_told() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        sql(&bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER stuck BEFORE UPDATE ON outbox_event
                 WHEN new.event_name = 'stuck' AND new.status = 'processing'
                 BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
            )
        });
        let [(_, plain), _] = both_kinds("*", "c", |_| Ok(()));
        bus.subscribe(plain).unwrap();
        bus.publish_all([event("stuck"), event("spoilt"), event("good")]).unwrap();
        sql(&bus, |tx| {
            tx.execute("UPDATE outbox_event SET deliver_to = '{' WHERE event_name = 'spoilt'", [])
        });
        notes.take();
        assert!(bus.drain().is_err());
        assert_eq!(
            notes.take(),
            ["dead_letter spoilt, 1", "started good by c, 1", "finished good by c, 1"],
            "{kind}"
        );
    }
}
