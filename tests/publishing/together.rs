//! Many threads at once: the commits that they share, and what each is told.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use postbox::{Error, EventId, NewEvent, Postbox};

use crate::support::{LIMIT, TestBox, boxes, event, sql, wait_until};

/// Publishes all of them at once, a thread for each: they queue behind a transaction, so that they share a commit when
/// it ends.
fn publish_at_once(bus: &Postbox, events: Vec<NewEvent>) -> Vec<postbox::Result<EventId>> {
    let count = events.len();
    let ready = &AtomicUsize::new(0);
    thread::scope(|scope| {
        let threads: Vec<_> = bus
            .transaction::<_, Error>(|_| {
                let threads = events
                    .into_iter()
                    .map(|new| {
                        scope.spawn(move || {
                            ready.fetch_add(1, Ordering::SeqCst);
                            bus.publish(new)
                        })
                    })
                    .collect();
                wait_until(LIMIT, || ready.load(Ordering::SeqCst) == count);
                // The last steps into the queue give no signal. A thread that misses it publishes alone: also right.
                thread::sleep(Duration::from_millis(20));
                Ok(threads)
            })
            .unwrap();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn sixty_four_threads_publish_at_once_and_every_event_is_there_under_its_own_id() {
    for TestBox { kind, bus, .. } in &boxes() {
        let events = (0..64).map(|n| NewEvent::new("a", "m", "T", n.to_string())).collect();
        let ids: Vec<EventId> = publish_at_once(bus, events).into_iter().map(Result::unwrap).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 64, "{kind}");
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(bus.outbox().get(*id).unwrap().unwrap().aggregate_id, n.to_string(), "{kind}");
        }
        assert_eq!(bus.drain().unwrap(), 64, "{kind}");
    }
}

/// The good ones are stored, the bad ones fail, whoever they shared a commit with.
fn assert_the_bad_fail_alone(test: &TestBox, raise: &str) {
    let TestBox { kind, bus, .. } = test;
    sql(bus, |tx| {
        tx.execute_batch(&format!(
            "CREATE TRIGGER refuse BEFORE INSERT ON outbox_event WHEN NEW.event_name = 'bad'
             BEGIN SELECT RAISE({raise}, 'the application refuses it'); END"
        ))
    });
    let names = |n| if n % 8 == 3 { "bad" } else { "good" };
    let results = publish_at_once(bus, (0..64).map(|n| event(names(n))).collect());
    let mut stored = HashSet::new();
    for (n, result) in results.into_iter().enumerate() {
        match result {
            Ok(id) if names(n) == "good" => assert!(stored.insert(id)),
            Err(Error::Sqlite(_)) if names(n) == "bad" => {}
            other => panic!("{kind}, RAISE({raise}), a {} event: {other:?}", names(n)),
        }
    }
    assert_eq!(stored.len(), 56);
    assert_eq!(bus.stats().unwrap().total, 56, "{kind}");
}

#[test]
fn an_event_that_fails_in_a_shared_commit_fails_alone() {
    for test in &boxes() {
        assert_the_bad_fail_alone(test, "ABORT");
    }
}

#[test]
fn an_event_that_ends_the_shared_transaction_fails_alone() {
    for test in &boxes() {
        assert_the_bad_fail_alone(test, "ROLLBACK");
    }
}

#[test]
fn a_list_that_fails_in_a_shared_commit_leaves_nothing_of_itself_behind() {
    for TestBox { kind, bus, .. } in &boxes() {
        sql(bus, |tx| {
            tx.execute_batch(
                "CREATE TRIGGER refuse BEFORE INSERT ON outbox_event WHEN NEW.event_name = 'bad'
                 BEGIN SELECT RAISE(ABORT, 'the application refuses it'); END",
            )
        });
        thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|n| {
                    scope.spawn(move || {
                        let last = if n % 2 == 0 { "bad" } else { "good" };
                        bus.publish_all([event("list"), event("list"), event(last)])
                    })
                })
                .collect();
            for (n, thread) in threads.into_iter().enumerate() {
                assert_eq!(thread.join().unwrap().is_ok(), n % 2 == 1, "{kind}");
            }
        });
        assert_eq!(bus.stats().unwrap().total, 8 * 3, "{kind}");
    }
}

#[test]
fn transactions_of_many_threads_do_not_lose_each_others_updates() {
    for TestBox { kind, bus, .. } in &boxes() {
        sql(bus, |tx| tx.execute_batch("CREATE TABLE counter (n INTEGER); INSERT INTO counter VALUES (0)"));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        bus.transaction::<_, Error>(|tx| {
                            let n: i64 = tx.query_row("SELECT n FROM counter", [], |row| row.get(0))?;
                            tx.execute("UPDATE counter SET n = ?1", [n + 1])?;
                            Ok(())
                        })
                        .unwrap();
                    }
                });
            }
        });
        let n: i64 = sql(bus, |tx| tx.query_row("SELECT n FROM counter", [], |row| row.get(0)));
        assert_eq!(n, 200, "{kind}");
    }
}
