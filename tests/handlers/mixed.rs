//! Plain and transactional consumers of one event, in every order and with every outcome.

use std::sync::Arc;

use postbox::{
    Context, Event, HandlerError, HandlerResult, InboxStatus, OutboxStatus, Settings, Subscription, Tx,
};
use serde_json::json;

use crate::support::{
    Calls, SECOND, TestBox, add_effect, effects, event, file_box_with, inbox_rows, make_effects,
    memory_box_with, outbox_row, sql,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    Succeeds,
    Fails,
    Skips,
    GivesUp,
    /// Rolls back the transaction that it shares with others.
    RollsBack,
    /// Its work fails at the commit.
    FailsTheCommit,
}

const DOES: [Does; 6] =
    [Does::Succeeds, Does::Fails, Does::Skips, Does::GivesUp, Does::RollsBack, Does::FailsTheCommit];

#[derive(Debug, Clone, Copy)]
struct Consumer {
    transactional: bool,
    does: Does,
}

impl Does {
    fn says(self) -> HandlerResult {
        match self {
            Does::Succeeds => Ok(()),
            Does::Skips => Err(HandlerError::skip("skips")),
            Does::GivesUp => Err(HandlerError::dead_letter("gives up")),
            _ => Err(HandlerError::retry("fails")),
        }
    }

    fn in_transaction(self, tx: &Tx<'_>) -> HandlerResult {
        match self {
            Does::RollsBack => tx.execute("INSERT OR ROLLBACK INTO once VALUES (1)", [])?,
            Does::FailsTheCommit => tx.execute("INSERT INTO child VALUES (1)", [])?,
            other => return other.says(),
        };
        Ok(())
    }

    fn needs_a_transaction(self) -> bool {
        matches!(self, Does::RollsBack | Does::FailsTheCommit)
    }

    fn tries_again(self) -> bool {
        matches!(self, Does::Fails | Does::RollsBack | Does::FailsTheCommit)
    }

    /// The inbox row's status and failed attempts after the first attempt.
    fn first_outcome(self) -> (InboxStatus, u32) {
        match self {
            Does::Succeeds => (InboxStatus::Processed, 0),
            Does::Skips => (InboxStatus::Skipped, 0),
            _ => (InboxStatus::Failed, 1),
        }
    }
}

/// Three consumers of one event, in the order in which they run.
type Case = [Consumer; 3];

fn all_cases() -> Vec<Case> {
    let all: Vec<Consumer> = [false, true]
        .into_iter()
        .flat_map(|transactional| DOES.map(|does| Consumer { transactional, does }))
        .filter(|consumer| consumer.transactional || !consumer.does.needs_a_transaction())
        .collect();
    let mut cases = Vec::new();
    for one in &all {
        for two in &all {
            cases.extend(all.iter().map(|three| [*one, *two, *three]));
        }
    }
    cases
}

/// Events of cases with the same kinds of consumers share their subscriptions: `plain.tx.plain.*`, for one.
fn event_name(case: Case, number: usize) -> String {
    let kinds = case.map(|consumer| if consumer.transactional { "tx" } else { "plain" });
    format!("{}.{number}", kinds.join("."))
}

fn subscribe(test: &TestBox, calls: &Calls, cases: &Arc<Vec<Case>>) {
    let first_of_its_kinds = cases.iter().filter(|case| case.iter().all(|c| c.does == Does::Succeeds));
    for case in first_of_its_kinds {
        for (at, Consumer { transactional, .. }) in case.iter().copied().enumerate() {
            let pattern = event_name(*case, 0).replace(".0", ".*");
            let cases = Arc::clone(cases);
            // Whatever may go wrong goes wrong at the first attempt.
            let part = move |given: &Event| {
                let number = given.payload().as_u64().unwrap();
                let does = cases[usize::try_from(number).unwrap()][at].does;
                (format!("{number}/{at}"), if given.attempt() == 1 { does } else { Does::Succeeds })
            };
            let calls = calls.clone();
            let subscription = if transactional {
                Subscription::transactional(pattern, at.to_string(), move |given: &Event, tx: &Tx<'_>| {
                    let (mark, does) = part(given);
                    add_effect(tx, &mark)?;
                    tx.publish(event("follow.up"))?;
                    does.in_transaction(tx)
                })
            } else {
                Subscription::new(pattern, at.to_string(), move |given: &Event, _: &Context<'_>| {
                    let (mark, does) = part(given);
                    calls.add(mark);
                    does.says()
                })
            };
            test.bus.subscribe(subscription).unwrap();
        }
    }
}

#[test]
fn every_mix_of_consumers_comes_to_the_right_rows_and_every_effect_happens_once_in_a_file() {
    assert_every_mix(&file_box_with(|builder| builder.settings(settings())));
}

#[test]
fn every_mix_of_consumers_comes_to_the_right_rows_and_every_effect_happens_once_in_memory() {
    assert_every_mix(&memory_box_with(|builder| builder.settings(settings())));
}

/// Batches in which neighbours share commits.
fn settings() -> Settings {
    Settings { batch_size: 9, ..Settings::default() }
}

fn assert_every_mix(test: &TestBox) {
    let TestBox { kind, bus, clock, .. } = test;
    make_effects(bus);
    sql(bus, |tx| {
        tx.execute_batch(
            "CREATE TABLE once (n INTEGER UNIQUE); INSERT INTO once VALUES (1);
             CREATE TABLE parent (id INTEGER PRIMARY KEY);
             CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
        )
    });
    let (calls, cases) = (Calls::default(), Arc::new(all_cases()));
    subscribe(test, &calls, &cases);
    let events = cases.iter().enumerate().map(|(n, case)| event(&event_name(*case, n)).payload(json!(n)));
    let ids = bus.publish_all(events).unwrap();
    bus.drain().unwrap();

    let (mut ran, mut wrote) = (Vec::new(), Vec::new());
    for (case, (consumers, id)) in cases.iter().zip(&ids).enumerate() {
        let does = consumers.map(|consumer| consumer.does);
        let status = if does.into_iter().any(Does::tries_again) {
            OutboxStatus::Pending
        } else if does.contains(&Does::GivesUp) {
            OutboxStatus::DeadLetter
        } else {
            OutboxStatus::Processed
        };
        let row = outbox_row(bus, *id);
        assert_eq!((row.status, row.attempt_count), (status, 1), "{kind}: {consumers:?}");
        let rows: Vec<_> = inbox_rows(bus, *id).into_iter().map(|row| (row.0, (row.1, row.2))).collect();
        let expected: Vec<_> =
            does.iter().enumerate().map(|(at, does)| (at.to_string(), does.first_outcome())).collect();
        assert_eq!(rows, expected, "{kind}: {consumers:?}");
        for (at, consumer) in consumers.iter().enumerate() {
            let mark = format!("{case}/{at}");
            let attempts = 1 + usize::from(consumer.does.tries_again());
            if !consumer.transactional {
                ran.extend(std::iter::repeat_n(mark, attempts));
            } else if consumer.does == Does::Succeeds || consumer.does.tries_again() {
                wrote.push(mark);
            }
        }
    }

    clock.advance(SECOND);
    bus.drain().unwrap();
    for (consumers, id) in cases.iter().zip(&ids) {
        let does = consumers.map(|consumer| consumer.does);
        let gave_up = does.contains(&Does::GivesUp);
        let status = if gave_up { OutboxStatus::DeadLetter } else { OutboxStatus::Processed };
        let attempts = 1 + u32::from(does.into_iter().any(Does::tries_again));
        let row = outbox_row(bus, *id);
        assert_eq!((row.status, row.attempt_count), (status, attempts), "{kind}: {consumers:?}");
        assert_eq!(row.last_error.is_some(), gave_up, "{kind}: {consumers:?}");
        for (does, row) in does.iter().zip(inbox_rows(bus, *id)) {
            let (status, failures) = does.first_outcome();
            let status = if does.tries_again() { InboxStatus::Processed } else { status };
            assert_eq!((row.1, row.2), (status, failures), "{kind}: {consumers:?}");
        }
    }
    let (mut has_run, mut has_written) = (calls.all(), effects(bus));
    for list in [&mut has_run, &mut has_written, &mut ran, &mut wrote] {
        list.sort();
    }
    assert_eq!(has_run, ran, "{kind}: plain consumers");
    assert_eq!(has_written, wrote, "{kind}: effects");
    let follow_ups = bus.stats().unwrap().total - cases.len() as u64;
    assert_eq!(follow_ups, wrote.len() as u64, "{kind}: follow-ups");
}

/// `process_batch` and `drain` promise one event after the other. Neighbours whose next consumers were transactional shared
/// their transaction all the same, and where one of them had a plain consumer to come, a later event overtook it there.
#[test]
fn by_hand_an_event_is_over_before_the_next_begins_whatever_kinds_its_consumers_are() {
    for TestBox { kind, bus, .. } in &[file_box_with(|builder| builder), memory_box_with(|builder| builder)] {
        let calls = Calls::default();
        let plain = |event_name: &str, name: &str| {
            let (calls, name) = (calls.clone(), name.to_owned());
            Subscription::new(event_name, name.clone(), move |event: &Event, _: &Context<'_>| {
                calls.add(format!("{} {name}", event.name()));
                Ok(())
            })
        };
        let transactional = |event_name: &str, name: &str| {
            let (calls, name) = (calls.clone(), name.to_owned());
            Subscription::transactional(event_name, name.clone(), move |event: &Event, _: &Tx<'_>| {
                calls.add(format!("{} {name}", event.name()));
                Ok(())
            })
        };
        bus.subscribe_many([
            transactional("mixed", "first"),
            plain("mixed", "second"),
            transactional("*", "third"),
        ])
        .unwrap();
        bus.publish_all(["pure", "mixed", "pure", "mixed"].map(event)).unwrap();
        assert_eq!(bus.drain().unwrap(), 4);
        let mixed = ["mixed first", "mixed second", "mixed third"];
        assert_eq!(calls.all(), [&["pure third"], &mixed[..], &["pure third"], &mixed].concat(), "{kind}");
    }
}
