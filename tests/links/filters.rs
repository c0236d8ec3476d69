//! What a filter means, page after page.

use postbox::{EntityRef, Error, IntegrationLink, LinkFilter, LinkType, Links, NewLink, Page};
use uuid::Uuid;

use crate::support::{TestBox, boxes, refused_field, sql};
use crate::{ids, invoice, link, on_both, task};

/// All pages of so many links, and whether each was full.
#[track_caller]
fn pages(
    links: &Links<'_>,
    filter: &LinkFilter,
    first: fn(usize) -> Page,
    limit: usize,
) -> Vec<IntegrationLink> {
    let mut all = Vec::new();
    let mut page = links.find(filter, &first(limit)).unwrap();
    loop {
        all.extend(page.links.clone());
        let Some(next) = page.next else { return all };
        assert_eq!(page.links.len(), limit, "{filter:?}");
        page = links.find(filter, &first(limit).after(next)).unwrap();
        assert!(!page.links.is_empty(), "{filter:?}: a next page that is empty");
    }
}

fn entities() -> Vec<EntityRef> {
    let mut entities = Vec::new();
    for module in ["finance", "operations"] {
        for entity_type in ["Invoice", "Task"] {
            entities.extend(["1", "2"].map(|id| EntityRef::new(module, entity_type, id)));
        }
    }
    entities
}

/// Each of them with what it means.
type Asked = (fn(LinkFilter) -> LinkFilter, fn(&IntegrationLink) -> bool);

fn one() -> EntityRef {
    EntityRef::new("finance", "Invoice", "1")
}

fn other() -> EntityRef {
    EntityRef::new("operations", "Task", "2")
}

/// Every filter that can be made of these, against the same asked of every link one by one.
#[test]
fn a_filter_means_the_links_of_which_all_that_it_asks_for_holds() {
    let of_source: [Asked; 7] = [
        (|filter| filter, |_| true),
        (|filter| filter.from(&one()), |link| link.source == one()),
        (|filter| filter.from(&other()), |link| link.source == other()),
        (|filter| filter.source_module("finance"), |link| link.source.module == "finance"),
        (|filter| filter.source_type("Task"), |link| link.source.entity_type == "Task"),
        (
            |filter| filter.source_module("finance").source_type("Task"),
            |link| link.source.module == "finance" && link.source.entity_type == "Task",
        ),
        (|filter| filter.source_module("Finance"), |_| false),
    ];
    let of_target: [Asked; 4] = [
        (|filter| filter, |_| true),
        (|filter| filter.to(&other()), |link| link.target == other()),
        (|filter| filter.target_module("operations"), |link| link.target.module == "operations"),
        (|filter| filter.target_type("Invoice"), |link| link.target.entity_type == "Invoice"),
    ];
    let touching: [Asked; 3] = [
        (|filter| filter, |_| true),
        (|filter| filter.touching(&one()), |link| link.source == one() || link.target == one()),
        (|filter| filter.touching(&other()), |link| link.source == other() || link.target == other()),
    ];
    let of_type: [Asked; 4] = [
        (|filter| filter, |_| true),
        (|filter| filter.link_type(LinkType::Cascade), |link| link.link_type == LinkType::Cascade),
        (
            |filter| filter.link_type(LinkType::Reference).link_type(LinkType::AggregateRoot),
            |link| link.link_type != LinkType::Cascade,
        ),
        (
            |filter| {
                let types =
                    [LinkType::Cascade, LinkType::Reference, LinkType::AggregateRoot, LinkType::Cascade];
                types.into_iter().fold(filter, LinkFilter::link_type)
            },
            |_| true,
        ),
    ];
    for test in &boxes() {
        let entities = entities();
        let types = [LinkType::Reference, LinkType::Cascade, LinkType::AggregateRoot];
        let mut all: Vec<IntegrationLink> = Vec::new();
        test.bus
            .transaction::<_, Error>(|tx| {
                for (n, source) in entities.iter().enumerate() {
                    for (m, target) in entities.iter().enumerate() {
                        let link_type = types[(n + 2 * m) % 3];
                        all.push(tx.create_link(NewLink::new(source.clone(), target.clone(), link_type))?);
                    }
                }
                Ok(())
            })
            .unwrap();
        on_both(test, |links| {
            for (source, is_source) in of_source {
                for (target, is_target) in of_target {
                    for (touch, is_touched) in touching {
                        for (by_type, is_of_type) in of_type {
                            let filter = by_type(touch(target(source(LinkFilter::new()))));
                            let mut expected: Vec<Uuid> = all
                                .iter()
                                .filter(|l| is_source(l) && is_target(l) && is_touched(l) && is_of_type(l))
                                .map(|link| link.id)
                                .collect();
                            assert_eq!(ids(&pages(links, &filter, Page::oldest, 7)), expected, "{filter:?}");
                            assert_eq!(ids(&pages(links, &filter, Page::oldest, 1_000)), expected);
                            expected.reverse();
                            assert_eq!(ids(&pages(links, &filter, Page::newest, 7)), expected, "{filter:?}");
                        }
                    }
                }
            }
        });
    }
}

#[test]
fn a_link_from_an_entity_to_itself_is_on_one_page_once() {
    for TestBox { bus, .. } in &boxes() {
        let first = bus.links().create(link(invoice("1"), invoice("1"))).unwrap().id;
        let second = bus.links().create(link(task("1"), invoice("1"))).unwrap().id;
        let third = bus.links().create(link(invoice("1"), invoice("1"))).unwrap().id;
        let filter = LinkFilter::new().touching(&invoice("1"));
        for limit in 1..=4 {
            assert_eq!(ids(&pages(&bus.links(), &filter, Page::oldest, limit)), [first, second, third]);
            assert_eq!(ids(&pages(&bus.links(), &filter, Page::newest, limit)), [third, second, first]);
        }
    }
}

#[test]
fn pages_neither_skip_nor_double_while_links_come_and_go() {
    for TestBox { bus, .. } in &boxes() {
        let make = |n: usize| bus.links().create(link(invoice("1"), task(&n.to_string()))).unwrap().id;
        let first_six: Vec<Uuid> = (0..6).map(make).collect();
        for filter in [
            LinkFilter::new(),
            LinkFilter::new().from(&invoice("1")),
            LinkFilter::new().link_type(LinkType::Reference),
        ] {
            let first = bus.links().find(&filter, &Page::oldest(2)).unwrap();
            assert_eq!(ids(&first.links), first_six[..2]);
            let gone = bus.links().delete(first_six[1]).unwrap();
            let late = make(99);
            let second = bus.links().find(&filter, &Page::oldest(2).after(first.next.unwrap())).unwrap();
            assert_eq!(ids(&second.links), first_six[2..4]);
            let rest = bus.links().find(&filter, &Page::oldest(9).after(second.next.unwrap())).unwrap();
            assert_eq!(ids(&rest.links), [first_six[4], first_six[5], late]);
            assert!(rest.next.is_none());
            // As it was, for the next filter.
            bus.links().delete(late).unwrap();
            sql(bus, |tx| {
                tx.execute(
                    "INSERT INTO integration_link (seq, id, source_module, source_entity_type, source_entity_id,
                        target_module, target_entity_type, target_entity_id, link_type, created_at, updated_at)
                     VALUES (2, ?1, 'finance', 'Invoice', '1', 'operations', 'Task', '1', 'reference', 1, 1)",
                    [gone.id],
                )
            });
        }
    }
}

#[test]
fn what_a_filter_cannot_ask_for_is_refused_by_its_field() {
    for test in &boxes() {
        on_both(test, |links| {
            let find = |filter: LinkFilter| links.find(&filter, &Page::oldest(10));
            let long = "x".repeat(128);
            let bad = EntityRef::new("m", "T", " ");
            for (filter, field) in [
                (LinkFilter::new().source_module(""), "source_module"),
                (LinkFilter::new().source_type(long.clone()), "source_entity_type"),
                (LinkFilter::new().target_module("a\0"), "target_module"),
                (LinkFilter::new().target_type(long.clone()), "target_entity_type"),
                (LinkFilter::new().from(&bad), "source_entity_id"),
                (LinkFilter::new().to(&bad), "target_entity_id"),
                (LinkFilter::new().touching(&bad), "entity_id"),
                (LinkFilter::new().touching(&EntityRef::new("", "T", "1")), "module"),
                (LinkFilter::new().touching(&EntityRef::new("m", &*long, "1")), "entity_type"),
            ] {
                assert_eq!(refused_field(find(filter)), field);
            }
            for limit in [0, 1_001, usize::MAX] {
                assert_eq!(refused_field(links.find(&LinkFilter::new(), &Page::newest(limit))), "limit");
            }
            assert!(find(LinkFilter::new()).unwrap().links.is_empty());
        });
    }
}

#[test]
fn metadata_that_is_no_json_is_an_error_of_the_page_that_it_is_on() {
    for TestBox { bus, .. } in &boxes() {
        bus.links().create(link(invoice("1"), task("1"))).unwrap();
        bus.links().create(link(invoice("2"), task("1"))).unwrap();
        sql(bus, |tx| tx.execute("UPDATE integration_link SET metadata = 'canary' WHERE seq = 2", []));
        let find = |filter: LinkFilter| bus.links().find(&filter, &Page::oldest(1));
        assert_eq!(find(LinkFilter::new()).unwrap().links.len(), 1);
        match find(LinkFilter::new().from(&invoice("2"))) {
            Err(error @ Error::Json(_)) => assert!(!format!("{error} {error:?}").contains("canary")),
            other => panic!("{other:?}"),
        }
    }
}
