//! What is told of publishing: what is committed, by this box, and once.

use postbox::{Context, Error, Event, HandlerError, NewEvent, Tx};

use crate::support::{TestBox, event, sql};
use crate::{observed, subscription, transactional_subscription};

#[test]
fn what_is_published_is_told_when_it_is_in_the_file() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        let _ = notes.bus.set(bus.clone());
        bus.publish(event("a")).unwrap();
        bus.publish_all([event("b"), event("c").idempotency_key("k"), event("d")]).unwrap();
        let told = notes.take();
        assert_eq!(
            told,
            ["published a", "seen", "published b", "seen", "published c", "seen", "published d", "seen"],
            "{kind}"
        );
    }
}

#[test]
fn an_event_that_its_key_has_published_already_is_not_told() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        let keyed = || event("a").idempotency_key("k");
        bus.publish_all([keyed(), keyed()]).unwrap();
        bus.publish(keyed()).unwrap();
        bus.transaction(|tx| tx.publish(keyed())).unwrap();
        assert_eq!(notes.take(), ["published a"], "{kind}");
    }
}

#[test]
fn what_is_refused_is_not_told() {
    for (TestBox { bus, .. }, notes) in observed() {
        assert!(bus.publish(event("")).is_err());
        assert!(bus.publish_all([event("a"), event("")]).is_err());
        assert!(notes.take().is_empty());
    }
}

#[test]
fn a_transaction_is_told_after_its_commit_and_in_order() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        let lines = notes.lines.clone();
        bus.transaction(|tx| -> postbox::Result<()> {
            tx.publish(event("a"))?;
            bus.publish_in(tx, event("b"))?;
            tx.publish(event("c"))?;
            lines.add("inside");
            Ok(())
        })
        .unwrap();
        assert_eq!(notes.take(), ["inside", "published a", "published b", "published c"], "{kind}");
    }
}

#[test]
fn what_is_rolled_back_is_never_told() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        let rolled_back: postbox::Result<()> = bus.transaction(|tx| {
            tx.publish(event("gone"))?;
            tx.publish(event("keyed").idempotency_key("k"))?;
            Err(Error::Closed { operation: "test" })
        });
        assert!(rolled_back.is_err());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            bus.transaction(|tx| -> postbox::Result<()> {
                tx.publish(event("gone"))?;
                panic!("on purpose")
            })
        }));
        assert!(panicked.is_err());
        // The next transaction does not find them, nor what is published under the same id since.
        bus.publish(event("keyed").idempotency_key("k")).unwrap();
        bus.transaction(|tx| tx.publish(event("a"))).unwrap();
        assert_eq!(notes.take(), ["published keyed", "published a"], "{kind}");
    }
}

#[test]
fn what_a_savepoint_took_back_is_not_told() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        bus.transaction(|tx| -> postbox::Result<()> {
            tx.publish(event("a"))?;
            tx.execute_batch("SAVEPOINT mine")?;
            tx.publish(event("gone"))?;
            tx.publish(event("keyed").idempotency_key("k"))?;
            tx.execute_batch("ROLLBACK TO mine; RELEASE mine")?;
            tx.publish(event("keyed").idempotency_key("k"))?;
            Ok(())
        })
        .unwrap();
        assert_eq!(notes.take(), ["published a", "published keyed"], "{kind}");
    }
}

#[test]
fn a_transaction_whose_commit_fails_is_not_told() {
    for (TestBox { kind, bus, .. }, notes) in observed() {
        sql(&bus, |tx| {
            tx.execute_batch(
                "CREATE TABLE parent (id INTEGER PRIMARY KEY);
                 CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
            )
        });
        let failed = bus.transaction(|tx| -> postbox::Result<()> {
            tx.publish(event("gone"))?;
            tx.execute("INSERT INTO child VALUES (1)", [])?;
            Ok(())
        });
        assert!(failed.is_err(), "{kind}");
        assert!(notes.take().is_empty(), "{kind}");
    }
}

#[test]
fn what_others_publish_is_not_told() {
    let (test, notes) = observed().remove(0);
    test.second().publish(event("a")).unwrap();
    let mut app = test.app_connection();
    let tx = app.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    test.bus.publish_in(&tx, event("b")).unwrap();
    tx.commit().unwrap();
    // Nor is it told with what the box publishes next.
    test.bus.transaction(|tx| tx.publish(event("c"))).unwrap();
    assert_eq!(notes.take(), ["published c"]);
}

#[test]
fn what_handlers_publish_is_told_as_far_as_it_is_committed() {
    let follow = |name: &str| NewEvent::new(name, "m", "T", "1");
    for (TestBox { kind, bus, .. }, notes) in observed() {
        bus.subscribe(subscription("plain", "p", move |event: &Event, context: &Context<'_>| {
            context.publish(follow(&format!("by plain {}", event.attempt())))?;
            if event.attempt() == 1 { Err(HandlerError::retry("again")) } else { Ok(()) }
        }))
        .unwrap();
        bus.subscribe(transactional_subscription("tx", "t", move |event: &Event, tx: &Tx<'_>| {
            tx.publish(follow(&format!("by tx {}", event.attempt())))?;
            if event.attempt() == 1 { Err(HandlerError::retry("again")) } else { Ok(()) }
        }))
        .unwrap();
        bus.publish_all([event("plain"), event("tx")]).unwrap();
        bus.drain().unwrap();
        let mut published: Vec<String> =
            notes.take().into_iter().filter(|line| line.starts_with("published by")).collect();
        published.sort();
        // A plain handler's event is durable when `publish` returns; what a transactional one wrote is undone as it fails.
        assert_eq!(
            published,
            ["published by plain 1", "published by plain 2", "published by tx 2"],
            "{kind}"
        );
    }
}
