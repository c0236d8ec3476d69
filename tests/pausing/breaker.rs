//! Circuit breakers: failures in a row pause their consumer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use postbox::{Backoff, Context, Event, HandlerError, HandlerResult, Postbox, Subscription, Tx};

use crate::consumer;
use crate::support::{Calls, SECOND, TestBox, boxes, event, inbox_rows, make_effects, outbox_row};

/// What the handler says next, a letter for each call: `s`uccess, `f`ailure, s`k`ip, `d`ead letter, `p`anic.
#[derive(Clone, Default)]
struct Script(Arc<std::sync::Mutex<Vec<char>>>);

impl Script {
    fn set(&self, says: &str) {
        *self.0.lock().unwrap() = says.chars().rev().collect();
    }

    fn left(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn say(&self, calls: &Calls) -> HandlerResult {
        calls.add("ran");
        let next = self.0.lock().unwrap().pop();
        match next.expect("a call that was not expected") {
            's' => Ok(()),
            'f' => Err(HandlerError::retry("the server is down")),
            'k' => Err(HandlerError::skip("no")),
            'd' => Err(HandlerError::dead_letter("bad")),
            _ => panic!("on purpose"),
        }
    }
}

fn subscribe(bus: &Postbox, transactional: bool, calls: &Calls, script: &Script) {
    let (calls, script) = (calls.clone(), script.clone());
    let subscription = if transactional {
        Subscription::transactional("a", "c", move |_: &Event, _: &Tx<'_>| script.say(&calls))
    } else {
        Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| script.say(&calls))
    };
    let backoff = Backoff::fixed(SECOND);
    bus.subscribe(subscription.circuit_breaker(3, 60 * SECOND).max_attempts(100).backoff(backoff)).unwrap();
}

fn both(check: impl Fn(&str, TestBox, Calls, Script)) {
    for transactional in [false, true] {
        for test in boxes() {
            let (calls, script) = (Calls::default(), Script::default());
            subscribe(&test.bus, transactional, &calls, &script);
            let what = format!("{}, transactional: {transactional}", test.kind);
            check(&what, test, calls, script);
        }
    }
}

#[test]
fn it_opens_after_so_many_failures_in_a_row_and_closes_with_a_success() {
    both(|what, TestBox { bus, clock, .. }, calls, script| {
        let ids = bus.publish_all((0..10).map(|_| event("a"))).unwrap();
        script.set("ffsfkfff");
        assert_eq!(bus.drain().unwrap(), 2, "{what}");
        assert_eq!(script.left(), 0, "{what}");
        assert_eq!(calls.take().len(), 8, "two that were claimed with them did not run");
        let pauses = bus.pauses().unwrap();
        assert_eq!(pauses.len(), 1, "{what}");
        assert_eq!(pauses[0].target, consumer("c"));
        assert_eq!(
            pauses[0].reason.as_deref(),
            Some("circuit breaker: 3 failures in a row: the server is down")
        );
        assert_eq!(pauses[0].until, Some(pauses[0].since + 60 * SECOND));
        // The failures that opened it are failures like any others; those that waited cost nothing.
        assert_eq!((inbox_rows(&bus, ids[7])[0].2, outbox_row(&bus, ids[7]).attempt_count), (1, 1), "{what}");
        assert_eq!(
            (inbox_rows(&bus, ids[9]).len(), outbox_row(&bus, ids[9]).attempt_count),
            (0, 0),
            "{what}"
        );
        clock.advance(59 * SECOND);
        assert_eq!(bus.drain().unwrap(), 0, "{what}: nothing runs");

        // Half open: one failure more opens it again.
        clock.advance(SECOND);
        script.set("f");
        assert_eq!(bus.drain().unwrap(), 0, "{what}");
        assert_eq!(script.left(), 0);
        let reason = bus.pauses().unwrap()[0].reason.clone().unwrap();
        assert!(reason.starts_with("circuit breaker: 4 failures in a row: "), "{what}: {reason}");

        // A success closes it, and the count begins anew.
        clock.advance(60 * SECOND);
        script.set("sffsssss");
        bus.drain().unwrap();
        assert_eq!((script.left(), bus.pauses().unwrap().len()), (0, 0), "{what}");
    });
}

#[test]
fn a_panic_and_a_dead_letter_count_and_an_operator_may_resume() {
    both(|what, TestBox { bus, .. }, calls, script| {
        bus.publish_all((0..6).map(|_| event("a"))).unwrap();
        script.set("pdf");
        bus.drain().unwrap();
        assert_eq!((script.left(), calls.take().len()), (0, 3), "{what}");
        assert!(bus.resume(&consumer("c")).unwrap());
        script.set("sss");
        assert_eq!(bus.drain().unwrap(), 3, "{what}");
    });
}

/// In a shared transaction that begins again, a failure counts once.
#[test]
fn what_is_run_again_since_its_transaction_was_rolled_back_counts_once() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        let fails = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&fails);
        bus.subscribe_many([
            Subscription::transactional("a", "c", move |_: &Event, _: &Tx<'_>| {
                seen.fetch_add(1, Ordering::Relaxed);
                Err(HandlerError::retry("no"))
            })
            .circuit_breaker(2, SECOND),
            Subscription::transactional("b", "rolls back", |_: &Event, tx: &Tx<'_>| {
                tx.execute("INSERT OR ROLLBACK INTO effect (seq, who) VALUES (1, 'x'), (1, 'y')", [])?;
                Ok(())
            }),
        ])
        .unwrap();
        bus.publish_all(["a", "b"].map(event)).unwrap();
        bus.drain().unwrap();
        assert!(fails.load(Ordering::Relaxed) > 1, "{kind}: it ran again");
        assert_eq!(bus.pauses().unwrap(), [], "{kind}: it failed once");
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(bus.pauses().unwrap().len(), 1, "{kind}");
    }
}

/// The reason is as long as the file takes.
#[test]
fn a_long_error_is_cut() {
    for TestBox { kind, bus, .. } in &boxes() {
        bus.subscribe(
            Subscription::new("a", "c", |_: &Event, _: &Context<'_>| {
                Err(HandlerError::retry("ü".repeat(5_000)))
            })
            .circuit_breaker(1, SECOND),
        )
        .unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        let reason = bus.pauses().unwrap()[0].reason.clone().unwrap();
        assert_eq!(reason.chars().count(), 1_023, "{kind}");
    }
}
