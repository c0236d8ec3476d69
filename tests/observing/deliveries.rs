//! What is told of handlers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postbox::{Event, HandlerError, HandlerResult, Tx};

use crate::support::{LIMIT, SECOND, TestBox, event, sql, wait_until};
use crate::{CANARY, both_kinds, observed, transactional_subscription};

#[test]
fn each_outcome_is_told_for_both_kinds_of_handlers() {
    type Says = fn(u32) -> HandlerResult;
    let cases: [(&str, Says, &[&str]); 5] = [
        ("success", |_| Ok(()), &["started a by c, 1", "finished a by c, 1", "drained 1"]),
        (
            "skip",
            |_| Err(HandlerError::skip("not mine")),
            &["started a by c, 1", "skipped a by c, 1", "drained 1"],
        ),
        (
            "second try",
            |attempt| if attempt == 1 { Err(HandlerError::retry("not yet")) } else { Ok(()) },
            &[
                "started a by c, 1",
                "failed a by c, 1",
                "started a by c, 2",
                "finished a by c, 2",
                "drained 1",
            ],
        ),
        (
            "for good",
            |_| Err(HandlerError::dead_letter("never")),
            &["started a by c, 1", "failed a by c, 1, for good", "dead_letter a, 1", "drained 0"],
        ),
        (
            "panic",
            |attempt| if attempt == 1 { panic!("on purpose") } else { Ok(()) },
            &[
                "started a by c, 1",
                "failed a by c, 1",
                "started a by c, 2",
                "finished a by c, 2",
                "drained 1",
            ],
        ),
    ];
    for (case, says, expected) in cases {
        for of_kind in 0..2 {
            for (TestBox { kind, bus, .. }, notes) in observed() {
                let [plain, transactional] = both_kinds("a", "c", says);
                let (handler, subscription) = if of_kind == 0 { plain } else { transactional };
                bus.subscribe(subscription).unwrap();
                bus.publish(event("a")).unwrap();
                assert_eq!(notes.take(), ["published a"]);
                bus.drain().unwrap();
                assert_eq!(notes.take(), expected, "{case}, {handler}, {kind}");
                // There was nothing to do.
                bus.drain().unwrap();
                assert!(notes.take().is_empty(), "{case}, {handler}, {kind}");
            }
        }
    }
}

#[test]
fn a_handler_that_pauses_its_consumer_has_neither_finished_nor_failed() {
    for of_kind in 0..2 {
        for (TestBox { kind, bus, clock, .. }, notes) in observed() {
            let says: fn(u32) -> HandlerResult = {
                static OFFLINE: AtomicU32 = AtomicU32::new(0);
                |_| match OFFLINE.fetch_add(1, Ordering::Relaxed) % 2 {
                    0 => Err(HandlerError::pause_consumer("offline", SECOND)),
                    _ => Ok(()),
                }
            };
            let [plain, transactional] = both_kinds("a", "c", says);
            let (handler, subscription) = if of_kind == 0 { plain } else { transactional };
            bus.subscribe(subscription).unwrap();
            bus.publish(event("a")).unwrap();
            bus.drain().unwrap();
            assert_eq!(notes.take(), ["published a", "started a by c, 1", "drained 0"], "{handler}, {kind}");
            clock.advance(SECOND);
            bus.drain().unwrap();
            assert_eq!(
                notes.take(),
                ["started a by c, 1", "finished a by c, 1", "drained 1"],
                "{handler}, {kind}"
            );
        }
    }
}

#[test]
fn each_consumer_of_an_event_is_told_by_itself() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        let ok: fn(u32) -> HandlerResult = |_| Ok(());
        let once: fn(u32) -> HandlerResult =
            |attempt| if attempt == 1 { Err(HandlerError::retry("again")) } else { Ok(()) };
        let [(_, first), _] = both_kinds("a", "first", ok);
        let [_, (_, second)] = both_kinds("a", "second", once);
        let [(_, third), _] = both_kinds("a", "third", once);
        bus.subscribe_many([first, second, third]).unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(
            notes.take(),
            [
                "published a",
                "started a by first, 1",
                "finished a by first, 1",
                "started a by second, 1",
                "failed a by second, 1",
                "started a by third, 1",
                "failed a by third, 1",
                "started a by second, 2",
                "finished a by second, 2",
                "started a by third, 2",
                "finished a by third, 2",
                "drained 1",
            ],
            "{kind}"
        );
    }
}

/// What several handlers share a commit for is told when it is committed: nothing while the transaction is open.
#[test]
fn transactional_handlers_are_told_after_the_commit_that_they_share() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        let lines = notes.lines.clone();
        bus.subscribe(transactional_subscription("a", "c", move |_: &Event, _: &Tx<'_>| {
            lines.add("runs");
            Ok(())
        }))
        .unwrap();
        bus.publish_all([event("a"), event("a")]).unwrap();
        notes.take();
        bus.drain().unwrap();
        assert_eq!(
            notes.take(),
            [
                "started a by c, 1",
                "runs",
                "started a by c, 1",
                "runs",
                "finished a by c, 1",
                "finished a by c, 1",
                "drained 2",
            ],
            "{kind}"
        );
    }
}

/// As another connection reads it, which sees what is committed and nothing else.
#[test]
fn what_ends_in_the_file_is_told_when_it_is_there() {
    for by_worker in [false, true] {
        for of_kind in 0..2 {
            let (test, notes) = observed().remove(0);
            let bus = test.bus.clone();
            let _ = notes.bus.set(bus.clone());
            let [plain, transactional] = both_kinds("bad", "c", |_| Err(HandlerError::dead_letter("never")));
            let (handler, subscription) = if of_kind == 0 { plain } else { transactional };
            let [_, (_, good)] = both_kinds("good", "d", |_| Ok(()));
            bus.subscribe_many([subscription, good]).unwrap();
            bus.publish_all([event("bad"), event("good")]).unwrap();
            if by_worker {
                let worker = bus.start().unwrap();
                wait_until(LIMIT, || notes.lines.count("drained 1") > 0);
                drop(worker);
            } else {
                bus.drain().unwrap();
            }
            let statuses = notes.statuses.take();
            let expected = ["bad is dead_letter", "good is processed"];
            for line in expected {
                assert!(statuses.contains(&line.to_owned()), "{handler}, worker {by_worker}: {statuses:?}");
            }
        }
    }
}

/// One of three rolls back the transaction that they share: the others begin again without it. What was rolled back with it is
/// told once, when it is committed.
#[test]
fn a_shared_transaction_that_begins_again_tells_each_outcome_once() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        sql(&bus, |tx| tx.execute_batch("CREATE TABLE t (x UNIQUE); INSERT INTO t VALUES (1)"));
        bus.subscribe(
            transactional_subscription("*", "c", |event: &Event, tx: &Tx<'_>| {
                tx.publish(crate::support::event(&format!("after {}", event.name())))?;
                if event.name() == "bad" {
                    let _ = tx.execute("INSERT OR ROLLBACK INTO t VALUES (1)", []);
                }
                Ok(())
            })
            .max_attempts(1),
        )
        .unwrap();
        bus.publish_all([event("one"), event("bad"), event("two")]).unwrap();
        notes.take();
        bus.process_batch().unwrap();
        let mut outcomes = notes.take();
        let follow_ups: Vec<String> =
            outcomes.iter().filter(|line| line.starts_with("published")).cloned().collect();
        assert_eq!(follow_ups, ["published after one", "published after two"], "{kind}");
        outcomes.retain(|line| !line.starts_with("started") && !line.contains("after"));
        outcomes.sort();
        assert_eq!(
            outcomes,
            [
                "dead_letter bad, 1",
                "failed bad by c, 1, for good",
                "finished one by c, 1",
                "finished two by c, 1"
            ],
            "{kind}"
        );
    }
}

#[test]
fn what_handlers_say_is_behind_an_accessor_and_never_in_debug() {
    for of_kind in 0..2 {
        for (TestBox { kind, bus, .. }, notes) in observed() {
            let [plain, transactional] = both_kinds("a", "c", |attempt| match attempt {
                1 => Err(HandlerError::retry(CANARY)),
                2 => panic!("{CANARY}"),
                _ => Err(HandlerError::dead_letter(CANARY)),
            });
            let (handler, subscription) = if of_kind == 0 { plain } else { transactional };
            bus.subscribe(subscription).unwrap();
            let secret = event("a")
                .payload(serde_json::json!({ "secret": CANARY }))
                .metadata(serde_json::json!(CANARY))
                .idempotency_key(CANARY);
            bus.publish(secret).unwrap();
            bus.drain().unwrap();
            let shown = notes.shown.take();
            assert_eq!(shown.len(), 9, "{handler}, {kind}: {shown:#?}");
            assert!(!shown.concat().contains(CANARY), "{handler}, {kind}: {shown:#?}");
            let panicked = format!("panicked: {CANARY}");
            assert_eq!(notes.errors.take(), [CANARY, &panicked, CANARY, CANARY], "{handler}, {kind}");
        }
    }
}

#[test]
fn a_handler_s_duration_is_that_of_its_run() {
    for (TestBox { bus, .. }, notes) in observed() {
        let took = Arc::new(Mutex::new(Duration::ZERO));
        let inside = Arc::clone(&took);
        bus.subscribe(transactional_subscription("a", "c", move |_: &Event, _: &Tx<'_>| {
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(2) {
                std::hint::spin_loop();
            }
            *inside.lock().unwrap() = begun.elapsed();
            Ok(())
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert!(notes.durations.lock().unwrap()[0] >= *took.lock().unwrap());
    }
}
