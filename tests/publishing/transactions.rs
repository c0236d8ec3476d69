//! Transactions of the box: all or nothing, ended by the box alone, and no deadlock with itself.

use std::panic::{AssertUnwindSafe, catch_unwind};

use postbox::{EntityRef, Error, LinkType, NewLink, OutboxStatus, Subscription, Tx};
use rusqlite::ErrorCode;

use crate::support::{
    Calls, SECOND, TestBox, add_effect, boxes, effects, event, make_effects, noting, sql, status,
};

fn link() -> NewLink {
    let end = |id: &str| EntityRef::new("finance", "Invoice", id);
    NewLink::new(end("1"), end("2"), LinkType::Reference)
}

#[test]
fn what_a_transaction_wrote_and_published_is_there_together() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        let id = bus
            .transaction::<_, Error>(|tx| {
                add_effect(tx, "sql")?;
                tx.create_link(link())?;
                tx.publish(event("a"))
            })
            .unwrap();
        assert_eq!(effects(bus), ["sql"], "{kind}");
        assert_eq!(bus.links().count_from_module("finance").unwrap(), 1);
        assert_eq!(status(bus, id), OutboxStatus::Pending);
        assert_eq!(bus.drain().unwrap(), 1);
    }
}

#[derive(Debug, PartialEq)]
enum AppError {
    Mine,
    Box,
}

impl From<Error> for AppError {
    fn from(_: Error) -> Self {
        AppError::Box
    }
}

#[test]
fn an_error_or_a_panic_rolls_everything_back_and_reaches_the_caller() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        let write = |tx: &Tx<'_>| {
            add_effect(tx, "sql").unwrap();
            tx.create_link(link()).unwrap();
            tx.publish(event("a")).unwrap();
        };
        let failed = bus.transaction(|tx| {
            write(tx);
            Err::<(), AppError>(AppError::Mine)
        });
        assert_eq!(failed, Err(AppError::Mine));
        let refused = bus.transaction::<_, AppError>(|tx| {
            write(tx);
            Ok(tx.publish(event("")).map(|_| ())?)
        });
        assert_eq!(refused, Err(AppError::Box));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            bus.transaction::<(), Error>(|tx| {
                write(tx);
                panic!("the application's own");
            })
        }));
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"the application's own"));

        assert_eq!(effects(bus), [""; 0], "{kind}");
        assert_eq!(bus.links().count_from_module("finance").unwrap(), 0);
        assert_eq!(bus.stats().unwrap().total, 0);
        bus.publish(event("the box still works")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
    }
}

#[test]
fn a_publish_that_is_refused_leaves_the_transaction_usable() {
    for TestBox { bus, .. } in &boxes() {
        bus.transaction::<_, Error>(|tx| {
            assert!(tx.publish(event("")).is_err());
            tx.publish(event("a"))
        })
        .unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
    }
}

#[test]
fn a_transaction_cannot_be_ended_from_within() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        bus.transaction::<_, Error>(|tx| {
            add_effect(tx, "before")?;
            let id = tx.publish(event("a"))?;
            for end in [
                "COMMIT",
                "END TRANSACTION",
                "ROLLBACK",
                "BEGIN IMMEDIATE",
                "BEGIN",
                "commit;",
                "SAVEPOINT postbox_mine",
                "SAVEPOINT PostBox_mine",
            ] {
                assert!(tx.execute_batch(end).is_err(), "{kind}: {end}");
                assert!(tx.prepare_cached(end).is_err(), "{kind}: {end}");
            }
            add_effect(tx, "after")?;
            assert_eq!(tx.outbox().get(id)?.unwrap().id, id);
            Ok(())
        })
        .unwrap();
        assert_eq!(effects(bus), ["before", "after"]);
        assert_eq!(bus.drain().unwrap(), 1);
    }
}

/// The box's own statements are in the same cache, where SQLite's authorizer is not asked again.
#[test]
fn a_transaction_cannot_be_committed_by_the_boxs_own_cached_statement() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        bus.publish(event("so that it is in the cache")).unwrap();
        let result = bus.transaction::<(), Error>(|tx| {
            add_effect(tx, "before")?;
            if let Ok(mut commit) = tx.prepare_cached("COMMIT /* postbox */") {
                let _ = commit.execute([]);
            }
            Err(Error::Closed { operation: "any error" })
        });
        assert!(result.is_err());
        assert_eq!(effects(bus), [""; 0], "{kind}");
    }
}

/// `INSERT OR ROLLBACK` (and ON CONFLICT ROLLBACK in a schema, and RAISE(ROLLBACK) in a trigger) ends the transaction.
/// What the closure wrote after that was committed by itself, although the caller was told that all had failed.
#[test]
fn nothing_is_stored_by_a_closure_that_goes_on_after_its_transaction_was_rolled_back() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        let result = bus.transaction::<_, Error>(|tx| {
            add_effect(tx, "before")?;
            let _ = tx.execute("INSERT OR ROLLBACK INTO effect SELECT * FROM effect", []);
            let _ = add_effect(tx, "after");
            let _ = tx.create_link(link());
            let _ = tx.publish(event("a"));
            Ok(())
        });
        assert!(result.is_err(), "{kind}");
        assert_eq!(effects(bus), [""; 0], "{kind}");
        assert_eq!(bus.stats().unwrap().total, 0, "{kind}");
        assert_eq!(bus.links().count_from_module("finance").unwrap(), 0, "{kind}");
        sql(bus, |tx| add_effect(tx, "the box still works"));
        assert_eq!(effects(bus), ["the box still works"]);
    }
}

#[test]
fn savepoints_of_the_applications_own_undo_events_and_links_as_well() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        let (kept, undone) = bus
            .transaction::<_, Error>(|tx| {
                let kept = tx.publish(event("kept"))?;
                tx.execute_batch("SAVEPOINT mine")?;
                add_effect(tx, "undone")?;
                tx.create_link(link())?;
                let undone = tx.publish(event("undone"))?;
                tx.execute_batch("ROLLBACK TO mine; RELEASE mine; SAVEPOINT left_open")?;
                add_effect(tx, "kept")?;
                Ok((kept, undone))
            })
            .unwrap();
        assert_eq!(effects(bus), ["kept"], "{kind}");
        assert_eq!(bus.links().count_from_module("finance").unwrap(), 0);
        assert_eq!(status(bus, kept), OutboxStatus::Pending);
        assert!(bus.outbox().get(undone).unwrap().is_none());
    }
}

#[test]
fn a_commit_that_sqlite_refuses_is_an_error_and_stores_nothing() {
    for TestBox { kind, bus, .. } in &boxes() {
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TABLE parent (id INTEGER PRIMARY KEY);
                 CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
            )
        });
        let result = bus.transaction::<_, Error>(|tx| {
            tx.publish(event("a"))?;
            Ok(tx.execute("INSERT INTO child VALUES (1)", [])?)
        });
        match result {
            Err(Error::Sqlite(error)) => {
                assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation));
            }
            other => panic!("{kind}: {other:?}"),
        }
        assert_eq!(bus.stats().unwrap().total, 0);
        bus.publish(event("the box still works")).unwrap();
    }
}

#[test]
fn look_ups_inside_a_transaction_answer_on_the_transaction_and_on_the_box() {
    for TestBox { kind, bus, .. } in &boxes() {
        let before = bus.publish(event("before")).unwrap();
        let row = bus.inbox().get_or_create(before, "c").unwrap();
        bus.transaction::<_, Error>(|tx| {
            let id = tx.publish(event("a"))?;
            let made = tx.create_link(link())?;
            assert_eq!(tx.outbox().get(id)?.unwrap().id, id);
            assert_eq!(tx.outbox().count_by_status(OutboxStatus::Pending)?, 2);
            assert_eq!(tx.inbox().get(row.id)?.as_ref(), Some(&row));
            assert_eq!(tx.links().get(made.id)?.unwrap().id, made.id);

            // In memory there is one connection, so the box sees what the transaction has written so far.
            let also_here = usize::from(*kind == "memory");
            assert_eq!(usize::from(bus.outbox().get(id)?.is_some()), also_here, "{kind}");
            assert_eq!(bus.outbox().get(before)?.unwrap().id, before);
            assert_eq!(bus.stats()?.total, 1 + also_here as u64);
            assert_eq!(bus.links().find_by_type(LinkType::Reference)?.len(), also_here);
            assert_eq!(bus.inbox().get(row.id)?.as_ref(), Some(&row));
            assert!(!bus.inbox().is_processed(before, "c")?);
            assert_eq!(bus.settings(), postbox::Settings::default());
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn two_boxes_in_memory_have_nothing_in_common() {
    let [one, other] = [boxes(), boxes()].map(|[_, memory]| memory);
    one.bus.publish(event("a")).unwrap();
    let calls = Calls::default();
    other.bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
    assert_eq!(other.bus.stats().unwrap().total, 0);
    // One inside the other's transaction is no re-entry.
    one.bus
        .transaction::<_, Error>(|_| {
            other.bus.publish(event("a").delay(SECOND))?;
            other.bus.drain()
        })
        .unwrap();
    assert_eq!(calls.all(), [""; 0]);
    other.clock.advance(SECOND);
    assert_eq!(other.bus.drain().unwrap(), 1);
}
