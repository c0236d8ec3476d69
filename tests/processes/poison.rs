//! Events that kill the process that handles them.

use std::io::Read;
use std::path::Path;

use postbox::{Context, Event, OutboxStatus, Postbox, Subscription, Tx};

use crate::delivering::make_effects;
use crate::support::{LIMIT, Process, RAN, event, given, integer, raw, wait_until};
use crate::{child, lines_of};

/// Restarts the application until it survives. How often it died.
fn restart_until_it_lives(path: &Path) -> u32 {
    for deaths in 0..20 {
        let mut process = Process::spawn(child("poison::child_is_killed_by_poison", path));
        drop(process.0.stdin.take());
        let mut said = String::new();
        lines_of(&mut process).read_to_string(&mut said).unwrap();
        assert!(said.contains(RAN), "{said}");
        if process.0.wait().unwrap().success() {
            return deaths;
        }
    }
    panic!("a crash loop");
}

#[test]
#[ignore = "run as a process by another test"]
fn child_is_killed_by_poison() {
    let Some(path) = given("FILE") else { return };
    let bus = Postbox::open(path).unwrap();
    bus.subscribe_many([
        Subscription::new("poison", "c", |_: &Event, _: &Context<'_>| std::process::abort()),
        Subscription::transactional("poison in tx", "c", |_: &Event, _: &Tx<'_>| std::process::abort()),
        Subscription::transactional("work", "c", |event: &Event, tx: &Tx<'_>| {
            let id = event.id().to_string();
            tx.execute("INSERT INTO effect VALUES (?1, ?2)", (id, std::process::id()))?;
            Ok(())
        }),
    ])
    .unwrap();
    let worker = bus.start().unwrap();
    wait_until("nothing is left to do", || {
        let stats = bus.stats().unwrap();
        stats.pending + stats.processing == 0
    });
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
}

#[test]
fn an_event_that_kills_the_process_ends_as_a_dead_letter_and_not_as_a_crash_loop() {
    for poison in ["poison", "poison in tx"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let bus = Postbox::open(&path).unwrap();
        make_effects(&bus);
        let id = bus.publish(event(poison)).unwrap();
        bus.close().unwrap();
        assert_eq!(restart_until_it_lives(&path), 3, "max_attempts is 3");
        let bus = Postbox::open(&path).unwrap();
        let row = bus.outbox().get(id).unwrap().unwrap();
        assert_eq!(row.status, OutboxStatus::DeadLetter);
        assert!(row.last_error.unwrap().contains("was lost"));
        assert_eq!(bus.stats().unwrap().dead_letter, 1);
    }
}

/// They were claimed together with it and never begun: dying with it must not use up their attempts.
#[test]
fn the_neighbours_of_an_event_that_kills_the_process_are_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    make_effects(&bus);
    let poison = bus.publish(event("poison")).unwrap();
    let neighbours = bus.publish_all((0..30).map(|_| event("work"))).unwrap();
    bus.close().unwrap();
    restart_until_it_lives(&path);
    let bus = Postbox::open(&path).unwrap();
    assert_eq!(bus.outbox().get(poison).unwrap().unwrap().status, OutboxStatus::DeadLetter);
    let dead: Vec<_> = neighbours
        .iter()
        .map(|id| bus.outbox().get(*id).unwrap().unwrap())
        .filter(|row| row.status != OutboxStatus::Processed)
        .map(|row| (row.status, row.attempt_count, row.last_error))
        .collect();
    assert!(dead.is_empty(), "{} of 30 were never delivered: {:?}", dead.len(), dead[0]);
    // Another thread may have begun one of them when the first death came.
    let begun = integer(
        &raw(&path),
        "SELECT count(*) FROM outbox_event WHERE event_name = 'work' AND attempt_count > 1",
    );
    assert!(begun <= 2, "{begun} of 30 have lost an attempt");
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM effect"), 30);
    assert_eq!(integer(&raw(&path), "SELECT count(DISTINCT id) FROM effect"), 30);
}
