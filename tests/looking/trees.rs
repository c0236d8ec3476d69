//! Trees of what caused what: from the first cause down, in order, bounded, and no circle goes on for ever.

use postbox::{CausationTree, EventId, Outbox, Postbox};
use rusqlite::params;

use crate::support::{TestBox, boxes, ends, event, sql};
use crate::{on_both, set_cause};

fn tree(outbox: &Outbox<'_>, id: EventId) -> CausationTree {
    let tree = outbox.causation_tree(id).unwrap().unwrap();
    assert_eq!(tree.nodes[tree.asked].event.id, id);
    assert_eq!(tree.nodes[tree.root].parent, None);
    for (index, node) in tree.nodes.iter().enumerate() {
        assert!(node.children.is_sorted());
        for child in &node.children {
            assert_eq!(tree.nodes[*child].parent, Some(index));
        }
        let caused: usize = tree.nodes.iter().filter(|other| other.parent == Some(index)).count();
        assert_eq!(node.children.len(), caused);
    }
    assert_eq!(tree.walk().count(), tree.nodes.len(), "each once");
    tree
}

/// Each event with its depth, by its place among those that were published.
fn shape(tree: &CausationTree, published: &[EventId]) -> Vec<(usize, usize)> {
    let place = |id| published.iter().position(|one| *one == id).unwrap();
    tree.walk().map(|(depth, node)| (depth, place(node.event.id))).collect()
}

/// Events that are caused as is said: by the one at that place.
fn published(bus: &Postbox, causes: &[Option<usize>]) -> Vec<EventId> {
    let ids = bus.publish_all(causes.iter().map(|_| event("a"))).unwrap();
    for (event, cause) in causes.iter().enumerate() {
        if let Some(cause) = cause {
            set_cause(bus, ids[event], ids[*cause]);
        }
    }
    ids
}

#[test]
fn from_whichever_event_it_is_asked_for_it_begins_at_the_first_cause() {
    for test in &boxes() {
        let ids = published(&test.bus, &[None, Some(0), None, Some(0), Some(1), Some(3), Some(1), Some(2)]);
        on_both(test, |outbox| {
            for asked in [0, 1, 3, 4, 5, 6] {
                let tree = tree(outbox, ids[asked]);
                assert_eq!(shape(&tree, &ids), [(0, 0), (1, 1), (2, 4), (2, 6), (1, 3), (2, 5)]);
                let in_order: Vec<EventId> = tree.nodes.iter().map(|node| node.event.id).collect();
                assert_eq!(in_order, [0, 1, 3, 4, 5, 6].map(|place| ids[place]));
                assert!(!tree.is_cut);
            }
            assert_eq!(shape(&tree(outbox, ids[7]), &ids), [(0, 2), (1, 7)]);
        });
    }
}

#[test]
fn below_a_cause_that_is_gone_the_tree_begins_with_what_is_there() {
    for test in &boxes() {
        let ids = published(&test.bus, &[None, Some(0), Some(1), Some(0)]);
        sql(&test.bus, |tx| tx.execute("DELETE FROM outbox_event WHERE seq = 1", []));
        on_both(test, |outbox| {
            let tree = tree(outbox, ids[2]);
            assert_eq!(shape(&tree, &ids), [(0, 1), (1, 2)]);
            assert_eq!(tree.nodes[tree.root].event.causation_id, Some(ids[0]));
            assert!(!tree.is_cut);
        });
    }
}

#[test]
fn causes_in_a_circle_end() {
    for test in boxes() {
        ends(move || circles(&test));
    }
}

fn circles(test: &TestBox) {
    let ids = published(&test.bus, &[None, Some(0), Some(1), Some(2)]);
    set_cause(&test.bus, ids[0], ids[2]);
    on_both(test, |outbox| {
        assert_eq!(shape(&tree(outbox, ids[0]), &ids), [(0, 1), (1, 2), (2, 0), (2, 3)]);
        assert_eq!(shape(&tree(outbox, ids[1]), &ids), [(0, 2), (1, 0), (2, 1), (1, 3)]);
        assert_eq!(shape(&tree(outbox, ids[3]), &ids), [(0, 0), (1, 1), (2, 2), (3, 3)]);
    });
    set_cause(&test.bus, ids[3], ids[3]);
    on_both(test, |outbox| {
        let tree = tree(outbox, ids[3]);
        assert_eq!(shape(&tree, &ids), [(0, 3)]);
        assert!(!tree.is_cut);
    });
}

/// Published before its cause: another program's doing, and no reason to lose it.
#[test]
fn an_effect_with_the_number_of_an_earlier_event_is_in_the_tree() {
    for test in &boxes() {
        let ids = published(&test.bus, &[Some(2), Some(0), None]);
        on_both(test, |outbox| {
            for asked in &ids {
                let tree = tree(outbox, *asked);
                assert_eq!(shape(&tree, &ids), [(0, 2), (1, 0), (2, 1)]);
                assert_eq!(tree.root, 2);
            }
        });
    }
}

/// A chain of so many, the next one's cause always the one before.
fn chain(bus: &Postbox, length: i64) -> Vec<EventId> {
    let ids = bus.publish_all((0..length).map(|_| event("a"))).unwrap();
    sql(bus, |tx| {
        tx.execute(
            "UPDATE outbox_event SET causation_id = (SELECT id FROM outbox_event AS before WHERE before.seq = outbox_event.seq - 1)",
            [],
        )
    });
    ids
}

/// A tree that were nested, or walked by calls, would overflow this thread's stack.
#[test]
fn chains_of_ten_thousand_are_cut_at_both_ends_around_the_event_that_is_asked_for() {
    for test in boxes() {
        ends(move || {
            let (bus, kind) = (test.bus.clone(), test.kind);
            let ids = chain(&bus, 10_000);
            let thread = std::thread::Builder::new().stack_size(128 * 1_024);
            let walked = thread.spawn(move || {
                for (asked, first, last) in [
                    (0, 0, 999),
                    (400, 0, 999),
                    (500, 0, 999),
                    (501, 1, 1_000),
                    (5_000, 4_500, 5_499),
                    (9_999, 9_499, 9_999),
                ] {
                    let tree = tree(&bus.outbox(), ids[asked]);
                    let expected: Vec<(usize, EventId)> =
                        ids[first..=last].iter().copied().enumerate().collect();
                    let walked: Vec<(usize, EventId)> =
                        tree.walk().map(|(depth, node)| (depth, node.event.id)).collect();
                    assert_eq!(walked, expected, "{kind}, {asked}");
                    assert!(tree.is_cut, "{kind}, {asked}");
                    assert!(serde_json::to_string(&tree).unwrap().len() > 100_000);
                    drop(tree.clone());
                }
            });
            walked.unwrap().join().unwrap();
            drop(test);
        });
    }
}

#[test]
fn exactly_a_thousand_are_whole_and_one_more_is_cut() {
    for TestBox { bus, kind, .. } in &boxes() {
        let ids = bus.publish_all((0..1_001).map(|_| event("a"))).unwrap();
        let cause = |last: i64| {
            sql(bus, |tx| {
                tx.execute(
                    "UPDATE outbox_event SET causation_id = ?1 WHERE seq BETWEEN 2 AND ?2",
                    params![ids[0].as_uuid(), last],
                )
            });
        };
        cause(1_000);
        let whole = tree(&bus.outbox(), ids[0]);
        assert_eq!((whole.nodes.len(), whole.is_cut), (1_000, false), "{kind}");
        cause(1_001);
        let cut = tree(&bus.outbox(), ids[0]);
        assert_eq!((cut.nodes.len(), cut.is_cut), (1_000, true), "{kind}");
        assert_eq!(cut.nodes.last().unwrap().event.id, ids[999]);
        // The one that is asked for is there in any case, in the place of another.
        let last = tree(&bus.outbox(), ids[1_000]);
        assert_eq!((last.nodes.len(), last.is_cut), (1_000, true), "{kind}");
        assert_eq!(last.nodes[998].event.id, ids[998]);
    }
}

/// Many branches of many events each: the first published of all of them, whatever branch they are in.
#[test]
fn of_a_large_tree_the_first_published_are_shown() {
    for TestBox { bus, kind, .. } in &boxes() {
        let ids = bus.publish_all((0..5_000).map(|_| event("a"))).unwrap();
        // Each event has caused seven.
        sql(bus, |tx| {
            tx.execute(
                "UPDATE outbox_event SET causation_id = (SELECT id FROM outbox_event AS cause WHERE cause.seq = (outbox_event.seq + 5) / 7)
                 WHERE seq > 1",
                [],
            )
        });
        let shown = |asked: usize| -> Vec<EventId> {
            let tree = tree(&bus.outbox(), ids[asked]);
            assert!(tree.is_cut, "{kind}");
            tree.nodes.iter().map(|node| node.event.id).collect()
        };
        assert_eq!(shown(0), ids[..1_000]);
        assert_eq!(shown(999), ids[..1_000]);
        let with_late: Vec<EventId> = ids[..999].iter().chain([&ids[4_999]]).copied().collect();
        assert_eq!(shown(4_999), with_late);
    }
}
