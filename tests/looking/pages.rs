//! Pages: their order, their bounds, and that nothing is in two of them or in none, whatever happens in between.

use std::collections::HashSet;

use postbox::{Context, Cursor, Event, EventFilter, EventId, HandlerError, OutboxStatus, Page, Subscription};

use crate::support::{TestBox, boxes, event, file_box, sql};
use crate::{all_pages, ids, on_both};

const STATUSES: [OutboxStatus; 5] = [
    OutboxStatus::Pending,
    OutboxStatus::Processing,
    OutboxStatus::Processed,
    OutboxStatus::Failed,
    OutboxStatus::DeadLetter,
];

#[test]
fn pages_of_every_size_hold_all_events_once_and_in_order() {
    for test in &boxes() {
        let published = test.bus.publish_all((0..10).map(|_| event("a"))).unwrap();
        let reversed: Vec<EventId> = published.iter().rev().copied().collect();
        on_both(test, |outbox| {
            for limit in [1, 2, 3, 5, 9, 10, 11, 1_000] {
                for (first, expected) in [(Page::oldest(limit), &published), (Page::newest(limit), &reversed)]
                {
                    let pages = all_pages(outbox, &EventFilter::new(), first);
                    assert_eq!(&pages.concat(), expected);
                    assert_eq!(pages.len(), 10_usize.div_ceil(limit), "no page is empty");
                    assert!(pages.iter().all(|page| page.len() <= limit));
                }
            }
        });
    }
}

/// Each status is read from an index of its own, and what is pending does not stand there in order of publishing.
#[test]
fn pages_of_several_statuses_are_in_order_of_publishing() {
    for test in &boxes() {
        test.bus.publish_all((0..60).map(|_| event("a"))).unwrap();
        sql(&test.bus, |tx| {
            tx.execute(
                "UPDATE outbox_event SET available_at = 1000000 - (seq * 7919) % 1009,
                        status = CASE seq % 5 WHEN 0 THEN 'pending' WHEN 1 THEN 'processing' WHEN 2 THEN 'processed'
                                              WHEN 3 THEN 'failed' ELSE 'dead_letter' END",
                [],
            )
        });
        on_both(test, |outbox| {
            let everything = outbox.list(&EventFilter::new(), &Page::oldest(1_000)).unwrap().events;
            assert_eq!(everything.len(), 60);
            // Every set of statuses.
            for set in 1_usize..32 {
                let statuses: Vec<OutboxStatus> =
                    (0..5).filter(|bit| set >> bit & 1 == 1).map(|bit| STATUSES[bit]).collect();
                let filter =
                    statuses.iter().fold(EventFilter::new(), |filter, status| filter.status(*status));
                let mut expected: Vec<EventId> = everything
                    .iter()
                    .filter(|event| statuses.contains(&event.status))
                    .map(|event| event.id)
                    .collect();
                assert_eq!(all_pages(outbox, &filter, Page::oldest(7)).concat(), expected, "{statuses:?}");
                expected.reverse();
                assert_eq!(all_pages(outbox, &filter, Page::newest(7)).concat(), expected, "{statuses:?}");
                assert_eq!(outbox.count(&filter).unwrap(), expected.len() as u64);
            }
        });
    }
}

#[test]
fn a_page_that_is_just_full_has_no_next() {
    for test in &boxes() {
        let published = test.bus.publish_all((0..4).map(|_| event("a"))).unwrap();
        on_both(test, |outbox| {
            let page = outbox.list(&EventFilter::new(), &Page::newest(4)).unwrap();
            assert_eq!((page.events.len(), page.next), (4, None));
            let page = outbox.list(&EventFilter::new(), &Page::newest(3)).unwrap();
            assert_eq!(page.next, Some(page.events[2].cursor()));
            let last = outbox.list(&EventFilter::new(), &Page::newest(3).after(page.next.unwrap())).unwrap();
            assert_eq!((ids(&last.events), last.next), (vec![published[0]], None));
            let behind = Page::newest(3).after(last.events[0].cursor());
            assert_eq!(outbox.list(&EventFilter::new(), &behind).unwrap().events, []);
        });
    }
}

/// What stays as it is has to be in exactly one page: others come, go and change between any two pages.
#[test]
fn pages_neither_skip_nor_double_while_events_come_go_and_change() {
    for test in boxes() {
        for newest in [false, true] {
            let TestBox { bus, kind, .. } = &test;
            sql(bus, |tx| tx.execute("DELETE FROM outbox_event", []));
            let published = bus.publish_all((0..300).map(|_| event("a"))).unwrap();
            sql(bus, |tx| tx.execute("UPDATE outbox_event SET status = 'dead_letter' WHERE seq % 3 = 0", []));
            let at = |id: EventId| published.iter().position(|one| *one == id);
            let filter = EventFilter::new().status(OutboxStatus::Pending).status(OutboxStatus::DeadLetter);
            let first = if newest { Page::newest(10) } else { Page::oldest(10) };
            let (mut page, mut seen, mut touched) = (first, Vec::new(), HashSet::new());
            for round in 0_usize.. {
                let found = bus.outbox().list(&filter, &page).unwrap();
                seen.extend(ids(&found.events));
                // Behind, before and at the cursor itself.
                for n in [round * 10, round * 10 + 9, (2_999 - round * 10) % 300, 150] {
                    touched.insert(n % 300);
                    let id = published[n % 300].as_uuid();
                    let change = match round % 3 {
                        0 => "DELETE FROM outbox_event WHERE id = ?1",
                        1 => "UPDATE outbox_event SET status = 'processed' WHERE id = ?1",
                        _ => {
                            "UPDATE outbox_event SET status = iif(status = 'pending', 'dead_letter', 'pending'), available_at = 7 WHERE id = ?1"
                        }
                    };
                    sql(bus, |tx| tx.execute(change, [id]));
                }
                bus.publish(event("new")).unwrap();
                let Some(next) = found.next else { break };
                page = first.after(next);
            }
            let of_old: Vec<usize> = seen.iter().filter_map(|id| at(*id)).collect();
            let ordered =
                of_old.windows(2).all(|pair| if newest { pair[0] > pair[1] } else { pair[0] < pair[1] });
            assert!(ordered, "{kind}: {of_old:?}");
            assert_eq!(seen.len(), seen.iter().collect::<HashSet<_>>().len(), "{kind}: doubled");
            let missing: Vec<usize> =
                (0..300).filter(|n| !touched.contains(n) && !of_old.contains(n)).collect();
            assert_eq!(missing, [0; 0], "{kind}");
        }
    }
}

/// Where a list ends for now, it goes on with what is published then.
#[test]
fn behind_the_last_event_stand_those_that_are_published_later() {
    for test in &boxes() {
        let TestBox { bus, .. } = test;
        bus.publish_all((0..3).map(|_| event("a"))).unwrap();
        let page = bus.outbox().list(&EventFilter::new(), &Page::oldest(10)).unwrap();
        assert_eq!(page.next, None);
        let behind = Page::oldest(10).after(page.events.last().unwrap().cursor());
        assert!(bus.outbox().list(&EventFilter::new(), &behind).unwrap().events.is_empty());
        let later = bus.publish_all((0..2).map(|_| event("b"))).unwrap();
        sql(bus, |tx| tx.execute("DELETE FROM outbox_event WHERE event_name = 'a'", []));
        assert_eq!(ids(&bus.outbox().list(&EventFilter::new(), &behind).unwrap().events), later);
    }
}

#[test]
fn a_cursor_is_carried_as_a_text_also_to_another_box_of_the_file() {
    let test = file_box();
    let published = test.bus.publish_all((0..600).map(|_| event("a"))).unwrap();
    let page = test.bus.outbox().list(&EventFilter::new(), &Page::oldest(500)).unwrap();
    let carried: Cursor = page.next.unwrap().to_string().parse().unwrap();
    assert_eq!(Some(carried), page.next);
    let test = test.reopen();
    let rest = test.bus.outbox().list(&EventFilter::new(), &Page::oldest(500).after(carried)).unwrap();
    assert_eq!(ids(&rest.events), published[500..]);
}

/// Rows of other programs may have any number there is.
#[test]
fn rows_with_the_least_and_the_greatest_numbers_are_in_the_pages_like_others() {
    for test in &boxes() {
        let TestBox { bus, kind, .. } = test;
        bus.publish(event("5")).unwrap();
        for (number, name) in [(i64::MAX, "7"), (i64::MIN, "1"), (-1, "2"), (0, "3"), (1 << 50, "6")] {
            sql(bus, |tx| {
                tx.execute(
                    "INSERT INTO outbox_event (seq, id, available_at, created_at, event_name, source_module, aggregate_type, aggregate_id, payload)
                     VALUES (?1, randomblob(16), 0, 0, ?2, 'm', 'T', '1', '{}')",
                    rusqlite::params![number, name],
                )
            });
        }
        for filter in [EventFilter::new(), EventFilter::new().status(OutboxStatus::Pending)] {
            for first in [Page::oldest(1), Page::newest(1), Page::newest(4)] {
                let (mut names, mut page) = (Vec::new(), first);
                loop {
                    let found = bus.outbox().list(&filter, &page).unwrap();
                    names.extend(found.events.iter().map(|event| event.event_name.clone()));
                    let Some(next) = found.next else { break };
                    let carried: Cursor = next.to_string().parse().unwrap();
                    assert_eq!(carried, next);
                    assert!(!next.to_string().starts_with('-'));
                    page = first.after(carried);
                }
                names.sort();
                assert_eq!(names, ["1", "2", "3", "5", "6", "7"], "{kind}, {filter:?}, {first:?}");
            }
        }
        let last = Page::oldest(5).after(cursor_at(i64::MAX));
        assert!(bus.outbox().list(&EventFilter::new(), &last).unwrap().events.is_empty());
        let first = Page::newest(5).after(cursor_at(i64::MIN));
        assert!(bus.outbox().list(&EventFilter::new(), &first).unwrap().events.is_empty());
    }
}

fn cursor_at(number: i64) -> Cursor {
    format!("{number:x}").parse().unwrap()
}

#[test]
fn a_transaction_sees_what_it_has_written_and_nobody_else_does() {
    let test = file_box();
    test.bus.publish(event("before")).unwrap();
    test.bus
        .transaction::<(), postbox::Error>(|tx| {
            tx.publish(event("inside"))?;
            tx.execute("UPDATE outbox_event SET status = 'failed' WHERE event_name = 'before'", [])?;
            let all = EventFilter::new();
            let failed = EventFilter::new().status(OutboxStatus::Failed);
            assert_eq!(tx.outbox().list(&all, &Page::oldest(10))?.events.len(), 2);
            assert_eq!((tx.outbox().count(&all)?, tx.outbox().count(&failed)?), (2, 1));
            assert_eq!((test.bus.outbox().count(&all)?, test.bus.outbox().count(&failed)?), (1, 0));
            Ok(())
        })
        .unwrap();
}

/// A handler can look, too: plain ones at the box, others in their transaction.
#[test]
fn handlers_can_look() {
    for TestBox { bus, kind, .. } in &boxes() {
        let look = |outbox: postbox::Outbox<'_>, id: EventId| -> Result<(), HandlerError> {
            let processing = EventFilter::new().status(OutboxStatus::Processing);
            let page = outbox.list(&processing, &Page::newest(10))?;
            let seen = ids(&page.events) == [id] && outbox.count(&processing)? == 1;
            let told = outbox.story(id)?.is_some() && outbox.causation_tree(id)?.is_some();
            if seen && told { Ok(()) } else { Err(HandlerError::dead_letter("it cannot be seen")) }
        };
        bus.subscribe(Subscription::new("a", "plain", move |event: &Event, cx: &Context<'_>| {
            look(cx.postbox().outbox(), event.id())
        }))
        .unwrap();
        bus.subscribe(Subscription::transactional("a", "tx", move |event: &Event, tx: &postbox::Tx<'_>| {
            look(tx.outbox(), event.id())
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
    }
}
