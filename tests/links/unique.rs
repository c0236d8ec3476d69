//! The same ends and type once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use postbox::{Error, LinkType, NewLink, Postbox};
use serde_json::json;

use crate::support::{boxes, boxes_with, file_box, refused_field, sql};
use crate::{ids, invoice, link, on_both, parts, task};

#[track_caller]
fn count(bus: &Postbox) -> u64 {
    sql(bus, |tx| tx.query_row("SELECT count(*) FROM integration_link", [], |row| row.get(0)))
}

#[test]
fn a_link_that_is_to_be_the_only_one_is_made_once_and_stays_as_it_was() {
    for test in &boxes() {
        let first = test.bus.links().get_or_create(link(invoice("1"), task("1")).metadata(json!(1))).unwrap();
        assert!(first.is_new);
        test.clock.advance(crate::SECOND);
        on_both(test, |links| {
            let again = links.get_or_create(link(invoice("1"), task("1")).metadata(json!(2))).unwrap();
            assert!(!again.is_new);
            assert_eq!(parts(&again.link), parts(&first.link));
            assert_eq!(again.link.metadata, Some(json!(1)), "that of the second is not taken");
            assert_eq!(again.link.updated_at, first.link.updated_at);
            match links.create_unique(link(invoice("1"), task("1")).metadata(json!("canary"))) {
                Err(error @ Error::LinkExists { .. }) => {
                    let id = first.link.id;
                    assert_eq!(
                        error.to_string(),
                        format!(
                            "finance/Invoice/1 has a link to operations/Task/1 of type reference already: {id}"
                        )
                    );
                    let Error::LinkExists { id: named, from, to, link_type } = error else { unreachable!() };
                    assert_eq!(
                        (named, &*from, &*to, link_type),
                        (id, "finance/Invoice/1", "operations/Task/1", "reference")
                    );
                }
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(count(&test.bus), 1, "{}", test.kind);
    }
}

#[test]
fn other_ends_another_type_and_the_way_back_are_other_links() {
    for test in &boxes() {
        let links = test.bus.links();
        links.create_unique(link(invoice("1"), task("1"))).unwrap();
        for new in [
            link(invoice("1"), task("2")),
            link(invoice("2"), task("1")),
            link(task("1"), invoice("1")),
            link(invoice("1"), invoice("1")),
            link(task("1"), task("1")),
            NewLink::new(invoice("1"), task("1"), LinkType::Cascade),
            NewLink::new(invoice("1"), task("1"), LinkType::AggregateRoot),
        ] {
            assert!(links.get_or_create(new.clone()).unwrap().is_new, "{new:?}");
            assert!(matches!(links.create_unique(new), Err(Error::LinkExists { .. })));
        }
        assert_eq!(count(&test.bus), 8);
    }
}

#[test]
fn of_several_that_are_the_same_the_oldest_is_the_one() {
    for test in &boxes() {
        let links = test.bus.links();
        for n in 0..5 {
            links.create(link(invoice("1"), task(&format!("other-{n}")))).unwrap();
            links.create(link(invoice(&format!("other-{n}")), task("1"))).unwrap();
        }
        let oldest = links.create(link(invoice("1"), task("1"))).unwrap();
        for _ in 0..3 {
            links.create(link(invoice("1"), task("1"))).unwrap();
        }
        on_both(test, |links| {
            assert_eq!(links.get_or_create(link(invoice("1"), task("1"))).unwrap().link.id, oldest.id);
            match links.create_unique(link(invoice("1"), task("1"))) {
                Err(Error::LinkExists { id, .. }) => assert_eq!(id, oldest.id),
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn what_cannot_be_stored_is_refused_also_where_the_link_is_there() {
    for test in &boxes_with(|builder| builder.max_payload_bytes(100)) {
        test.bus.links().create(link(invoice("1"), task("1"))).unwrap();
        on_both(test, |links| {
            assert_eq!(refused_field(links.get_or_create(link(invoice(" "), task("1")))), "source_entity_id");
            assert_eq!(refused_field(links.create_unique(link(invoice("1"), task("")))), "target_entity_id");
            let large = || link(invoice("1"), task("1")).metadata(json!("x".repeat(99)));
            for refused in [links.get_or_create(large()).map(drop), links.create_unique(large()).map(drop)] {
                assert!(
                    matches!(refused, Err(Error::PayloadTooLarge { size: 101, limit: 100 })),
                    "{refused:?}"
                );
            }
        });
        assert_eq!(count(&test.bus), 1);
    }
}

#[test]
fn an_only_link_of_a_transaction_that_is_rolled_back_can_be_made_again() {
    for test in &boxes() {
        let rolled_back = test.bus.transaction::<(), Error>(|tx| {
            let first = tx.links().get_or_create(link(invoice("1"), task("1")))?;
            let again = tx.links().get_or_create(link(invoice("1"), task("1")))?;
            assert!(first.is_new && !again.is_new);
            Err(Error::Closed { operation: "any error" })
        });
        assert!(rolled_back.is_err());
        assert!(test.bus.links().get_or_create(link(invoice("1"), task("1"))).unwrap().is_new);
    }
}

#[test]
fn a_link_is_the_only_one_after_a_restart_too() {
    let test = file_box();
    let made = test.bus.links().create_unique(link(invoice("1"), task("1"))).unwrap();
    let test = test.reopen();
    let again = test.bus.links().get_or_create(link(invoice("1"), task("1"))).unwrap();
    assert!(!again.is_new);
    assert_eq!(parts(&again.link), parts(&made));
}

const THREADS: usize = 8;
const LINKS: usize = 25;

/// Eight threads, on `buses` in turn, make the same links at the same moments. All of them are told of the same ones.
fn make_at_once(buses: &[Postbox]) {
    let barrier = Arc::new(Barrier::new(THREADS));
    let (new, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let bus = buses[n % buses.len()].clone();
            let (barrier, new, refused) = (Arc::clone(&barrier), Arc::clone(&new), Arc::clone(&refused));
            thread::spawn(move || {
                let mut told = Vec::new();
                for n in 0..LINKS {
                    let target = task(&n.to_string());
                    barrier.wait();
                    let made = bus.links().get_or_create(link(invoice("hub"), target.clone())).unwrap();
                    new.fetch_add(usize::from(made.is_new), Ordering::Relaxed);
                    told.push(made.link.id);
                    barrier.wait();
                    match bus.links().create_unique(NewLink::new(invoice("hub"), target, LinkType::Cascade)) {
                        Ok(_) => {}
                        Err(Error::LinkExists { .. }) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => panic!("{error}"),
                    }
                }
                told
            })
        })
        .collect();
    let told: HashSet<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(told.len(), 1, "all were told of the same links");
    assert_eq!(new.load(Ordering::Relaxed), LINKS);
    assert_eq!(refused.load(Ordering::Relaxed), LINKS * (THREADS - 1));
    assert_eq!(count(&buses[0]), 2 * LINKS as u64);
}

#[test]
fn threads_that_make_the_same_link_at_the_same_moment_make_one() {
    for test in &boxes() {
        make_at_once(std::slice::from_ref(&test.bus));
    }
}

#[test]
fn two_boxes_on_one_file_that_make_the_same_link_at_the_same_moment_make_one() {
    let test = file_box();
    make_at_once(&[test.bus.clone(), test.second()]);
}

/// What is linked to everything would make each further link slower than the one before, if its links were looked through.
#[test]
fn a_link_is_looked_for_from_the_end_that_has_fewer() {
    let test = file_box();
    sql(&test.bus, |tx| {
        tx.execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO integration_link (id, source_module, source_entity_type, source_entity_id, target_module,
                                           target_entity_type, target_entity_id, link_type, created_at, updated_at)
             SELECT randomblob(16), 'finance', 'Invoice', 'hub', 'operations', 'Task', i, 'reference', 1, 1 FROM n
             UNION ALL
             SELECT randomblob(16), 'finance', 'Invoice', i, 'operations', 'Task', 'hub', 'reference', 1, 1 FROM n;",
        )
    });
    let steps = |new: NewLink| {
        test.bus
            .transaction::<_, Error>(|tx| {
                let steps = Arc::new(AtomicUsize::new(0));
                let seen = Arc::clone(&steps);
                tx.progress_handler(1, Some(move || seen.fetch_add(1, Ordering::Relaxed) > usize::MAX - 1))?;
                tx.links().get_or_create(new)?;
                tx.progress_handler(0, None::<fn() -> bool>)?;
                Ok(steps.load(Ordering::Relaxed))
            })
            .unwrap()
    };
    for new in [
        link(invoice("hub"), task("5000")),
        link(invoice("hub"), task("none yet")),
        link(invoice("5000"), task("hub")),
        link(invoice("none yet"), task("hub")),
    ] {
        let taken = steps(new.clone());
        assert!(taken < 1_000, "{new:?}: {taken} steps of SQLite's");
    }
    assert_eq!(ids(&test.bus.links().find_outbound(&invoice("none yet")).unwrap()).len(), 1);
}
