//! What waited is let go: all of it, in pieces, after a restart, and however the pause ended.

use std::time::Duration;

use postbox::{
    Context, Event, EventFilter, HandlerError, NewEvent, PauseTarget, Postbox, Settings, Subscription,
};

use crate::support::{Calls, SECOND, TestBox, boxes, boxes_with, event, file_box, noting, sql};
use crate::{consumer, parked, rows};

fn settings(batch_size: u32) -> Settings {
    Settings { batch_size, ..Settings::default() }
}

/// A trigger of the application's counts what is done to rows.
fn count_updates(bus: &Postbox) {
    sql(bus, |tx| {
        tx.execute_batch(
            "CREATE TABLE updates (n INTEGER NOT NULL); INSERT INTO updates VALUES (0);
             CREATE TRIGGER counts AFTER UPDATE ON outbox_event BEGIN UPDATE updates SET n = n + 1; END;",
        )
    });
}

fn updates(bus: &Postbox) -> u64 {
    sql(bus, |tx| {
        let n = tx.query_row("SELECT n FROM updates", [], |row| row.get(0))?;
        tx.execute("UPDATE updates SET n = 0", [])?;
        Ok(n)
    })
}

/// Ten thousand that wait are claimed once, and never looked at again: not by what goes on, nor by another pause's end.
#[test]
fn ten_thousand_that_wait_cost_nothing() {
    const MANY: usize = 10_000;
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.settings(settings(500))) {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("paused", "c", noting(&calls, "c")),
            Subscription::new("goes on", "d", noting(&calls, "d")),
        ])
        .unwrap();
        bus.pause(&consumer("c"), None, None).unwrap();
        bus.publish_all((0..MANY).map(|_| event("paused"))).unwrap();
        count_updates(bus);
        bus.drain().unwrap();
        assert_eq!(updates(bus), 2 * MANY as u64, "{kind}: a claim each, and its end");
        assert_eq!(parked(bus), MANY as u64);
        for _ in 0..20 {
            bus.publish(event("goes on")).unwrap();
            assert_eq!(bus.drain().unwrap(), 1);
        }
        assert_eq!(updates(bus), 40, "{kind}: those that went on, and no other");
        bus.pause(&consumer("d"), None, None).unwrap();
        bus.pause(&PauseTarget::event_name("paused"), None, None).unwrap();
        bus.publish(event("goes on")).unwrap();
        bus.drain().unwrap();
        updates(bus);
        bus.resume(&PauseTarget::event_name("paused")).unwrap();
        bus.resume(&consumer("d")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!((updates(bus), rows(bus)), (3, 1), "{kind}: let go, claimed and processed");
        bus.resume(&consumer("c")).unwrap();
        assert_eq!(bus.drain().unwrap(), MANY, "{kind}");
        assert_eq!((calls.count("c"), rows(bus), parked(bus)), (MANY, 0, 0));
    }
}

/// Those that are let go stand behind many that are not.
#[test]
fn a_batch_finds_what_is_let_go_behind_a_thousand_that_wait() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("first", "c", noting(&calls, "c")),
            Subscription::new("last", "d", noting(&calls, "d")),
        ])
        .unwrap();
        for name in ["c", "d"] {
            bus.pause(&consumer(name), None, None).unwrap();
        }
        bus.publish_all((0..1_700).map(|_| event("first"))).unwrap();
        bus.publish(event("last")).unwrap();
        bus.drain().unwrap();
        bus.resume(&consumer("d")).unwrap();
        assert_eq!(bus.process_batch().unwrap(), 1, "{kind}");
        assert_eq!((rows(bus), parked(bus)), (1, 1_700));
    }
}

#[test]
fn a_pause_outlives_a_restart_and_so_does_its_end() {
    let mut test = file_box();
    let calls = Calls::default();
    let subscribe = |bus: &Postbox| {
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
    };
    subscribe(&test.bus);
    test.bus.pause(&consumer("c"), Some("offline"), Some(10 * SECOND)).unwrap();
    test.bus.publish_all((0..700).map(|_| event("a"))).unwrap();
    test.bus.drain().unwrap();
    test = test.reopen();
    subscribe(&test.bus);
    assert_eq!(test.bus.pauses().unwrap().len(), 1);
    assert_eq!(test.bus.drain().unwrap(), 0);
    // Resumed, and closed before anybody could let go; then half of it is let go, and the box is closed again.
    assert!(test.bus.resume(&consumer("c")).unwrap());
    test = test.reopen();
    subscribe(&test.bus);
    assert_eq!(test.bus.process_batch().unwrap(), usize::try_from(Settings::default().batch_size).unwrap());
    assert_eq!((parked(&test.bus), rows(&test.bus)), (200, 1), "a piece of 500");
    test = test.reopen();
    subscribe(&test.bus);
    test.bus.drain().unwrap();
    assert_eq!((calls.take().len(), parked(&test.bus), rows(&test.bus)), (700, 0, 0));
    // One that ends while nobody has the file open.
    test.bus.pause(&consumer("c"), None, Some(10 * SECOND)).unwrap();
    test.bus.publish(event("a")).unwrap();
    test.bus.drain().unwrap();
    test.clock.advance(Duration::from_hours(1));
    test = test.reopen();
    subscribe(&test.bus);
    assert_eq!(test.bus.drain().unwrap(), 1);
}

/// Between the pieces of a walk the same pause is made and ended anew: what was parked behind the walk is not forgotten.
#[test]
fn a_pause_that_is_made_and_ended_anew_during_the_walk_loses_nothing() {
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.settings(settings(1))) {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        bus.pause(&consumer("c"), None, None).unwrap();
        bus.publish_all((0..700).map(|_| event("a"))).unwrap();
        bus.drain().unwrap();
        bus.resume(&consumer("c")).unwrap();
        assert_eq!(bus.process_batch().unwrap(), 1);
        assert_eq!(parked(bus), 200, "{kind}: the walk has come to 500");
        bus.pause(&consumer("c"), None, None).unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        assert_eq!(parked(bus), 699, "{kind}");
        bus.resume(&consumer("c")).unwrap();
        assert_eq!(bus.drain().unwrap(), 699, "{kind}");
        assert_eq!((parked(bus), rows(bus)), (0, 0));
    }
}

/// The same in the middle of a walk, in the time between two of its pieces.
#[test]
fn a_second_pause_that_ends_during_the_walk_has_a_walk_of_its_own() {
    for TestBox { kind, bus, .. } in &boxes_with(|builder| builder.settings(settings(1))) {
        let calls = Calls::default();
        bus.subscribe_many([
            Subscription::new("a", "c", noting(&calls, "c")),
            Subscription::new("b", "d", noting(&calls, "d")),
        ])
        .unwrap();
        for name in ["c", "d"] {
            bus.pause(&consumer(name), None, None).unwrap();
        }
        bus.publish(event("b")).unwrap();
        bus.publish_all((0..700).map(|_| event("a"))).unwrap();
        bus.drain().unwrap();
        bus.resume(&consumer("c")).unwrap();
        assert_eq!(bus.process_batch().unwrap(), 1);
        bus.resume(&consumer("d")).unwrap(); // its event is the first: the walk is past it
        assert_eq!(bus.drain().unwrap(), 700, "{kind}");
        assert_eq!((calls.count("d"), parked(bus), rows(bus)), (1, 0, 0), "{kind}");
    }
}

/// Not the way to do it, but nothing waits for ever.
#[test]
fn a_pause_that_another_program_deletes_is_over() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        for keeps_another in [false, true] {
            bus.pause(&consumer("c"), None, None).unwrap();
            if keeps_another {
                bus.pause(&consumer("other"), None, None).unwrap();
            }
            bus.publish(event("a")).unwrap();
            assert_eq!(bus.drain().unwrap(), 0);
            sql(bus, |tx| tx.execute("DELETE FROM postbox_pause WHERE name = 'c'", []));
            assert_eq!(bus.drain().unwrap(), 1, "{kind}, {keeps_another}");
            assert_eq!(bus.drain().unwrap(), 0);
        }
    }
    let mut test = file_box();
    let calls = Calls::default();
    test.bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
    test.bus.pause(&consumer("c"), None, None).unwrap();
    test.bus.publish(event("a")).unwrap();
    test.bus.drain().unwrap();
    sql(&test.bus, |tx| tx.execute("DELETE FROM postbox_pause", []));
    test = test.reopen();
    test.bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
    assert_eq!(test.bus.drain().unwrap(), 1);
}

/// Nothing is let go, and no pause ends, while processing is off.
#[test]
fn what_waits_is_let_go_by_those_who_process() {
    for TestBox { kind, bus, .. } in &boxes() {
        let calls = Calls::default();
        bus.subscribe(Subscription::new("a", "c", noting(&calls, "ran"))).unwrap();
        bus.pause(&consumer("c"), None, None).unwrap();
        bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        bus.update_settings(|settings| settings.enabled = false).unwrap();
        bus.resume(&consumer("c")).unwrap();
        assert_eq!((bus.drain().unwrap(), parked(bus)), (0, 1), "{kind}");
        bus.update_settings(|settings| settings.enabled = true).unwrap();
        assert_eq!((bus.drain().unwrap(), parked(bus)), (1, 0), "{kind}");
    }
}

/// Of those for whom an event is, only the ones that are not done with it count: each end of anybody's pause let everything go that
/// waited for another, and it was claimed and parked again.
#[test]
fn what_waits_for_those_who_are_left_is_not_touched_by_the_end_of_anothers_pause() {
    for TestBox { kind, bus, clock, .. } in &boxes_with(|builder| builder.settings(settings(500))) {
        let calls = Calls::default();
        let failing = |event: &Event, _: &Context<'_>| match event.aggregate_id() {
            "fails" => Err(HandlerError::dead_letter("never")),
            _ => Ok(()),
        };
        bus.subscribe_many([
            Subscription::new("a", "ledger", failing),
            Subscription::new("a", "mail", noting(&calls, "mail")),
            Subscription::new("a", "search", noting(&calls, "search")),
            Subscription::new("b", "sync", noting(&calls, "sync")),
        ])
        .unwrap();
        // Three of each: for search alone, and left to mail by ledger and search who succeed, or of whom one fails.
        bus.publish_all((0..3).map(|_| event("a"))).unwrap();
        assert_eq!(bus.drain().unwrap(), 3);
        for consumer in ["mail", "search"] {
            bus.pause(&PauseTarget::consumer(consumer), None, None).unwrap();
        }
        bus.outbox().replay(&EventFilter::new(), "search").unwrap();
        assert_eq!(bus.drain().unwrap(), 0);
        bus.publish_all((0..3).map(|_| event("a"))).unwrap();
        bus.publish_all((0..3).map(|_| NewEvent::new("a", "m", "t", "fails"))).unwrap();
        assert_eq!(bus.drain().unwrap(), 0, "{kind}");
        assert_eq!(parked(bus), 9);
        count_updates(bus);
        let sync = PauseTarget::consumer("sync");
        for n in 0..3 {
            bus.pause(&sync, None, Some(SECOND)).unwrap();
            bus.publish(event("b")).unwrap();
            bus.drain().unwrap();
            updates(bus);
            clock.advance(2 * SECOND);
            assert_eq!(bus.drain().unwrap(), 1, "{kind}: of sync");
            let of_sync = 3; // let go, claimed, processed
            assert_eq!((updates(bus), parked(bus)), (of_sync, 9), "{kind}: turn {n}");
        }
        calls.take();
        bus.resume(&PauseTarget::consumer("search")).unwrap();
        // The three that mail has finished; of the others search has its turn.
        assert_eq!(bus.drain().unwrap(), 3, "{kind}");
        assert_eq!((calls.count("search"), calls.count("mail"), parked(bus)), (9, 0, 6));
        bus.resume(&PauseTarget::consumer("mail")).unwrap();
        bus.drain().unwrap();
        assert_eq!((calls.count("search"), calls.count("mail"), parked(bus)), (9, 6, 0));
        let stats = bus.stats().unwrap();
        assert_eq!((stats.pending, stats.dead_letter, stats.processed), (0, 3, 9));
    }
}
