//! From entity to entity.

use postbox::{EntityRef, Error, LinkDirection, LinkType, LinkWalk, NewLink, Postbox, WalkOptions};

use crate::support::{boxes, file_box, refused_field};
use crate::{link, on_both};

fn part(id: impl Into<String>) -> EntityRef {
    EntityRef::new("catalogue", "Part", id)
}

fn numbered(n: u32) -> EntityRef {
    part(n.to_string())
}

fn connect(bus: &Postbox, pairs: &[(&str, &str)]) {
    for (from, to) in pairs {
        bus.links().create(link(part(*from), part(*to))).unwrap();
    }
}

/// Depth and id of each, in the order in which they were found.
fn found(walk: &LinkWalk) -> Vec<(u32, &str)> {
    walk.entities.iter().map(|found| (found.depth, found.entity.entity_id.as_str())).collect()
}

#[test]
fn a_walk_finds_each_entity_once_the_nearest_first_and_cycles_end() {
    for test in &boxes() {
        // Two ways to d, one of them longer; a cycle back to a, one that leads to itself, and one apart.
        connect(
            &test.bus,
            &[
                ("a", "b"),
                ("a", "c"),
                ("b", "b"),
                ("c", "d"),
                ("b", "e"),
                ("e", "d"),
                ("d", "a"),
                ("d", "f"),
                ("x", "a"),
            ],
        );
        on_both(test, |links| {
            let walk = |options| links.walk(&part("a"), &options).unwrap();
            let all = walk(WalkOptions::outbound(u32::MAX));
            assert_eq!(found(&all), [(1, "b"), (1, "c"), (2, "e"), (2, "d"), (3, "f")]);
            let from: Vec<_> = all.entities.iter().map(|found| found.reached_from).collect();
            assert_eq!(from, [None, None, Some(0), Some(1), Some(3)]);
            for found in &all.entities {
                let link = links.get(found.link_id).unwrap().unwrap();
                let before = found.reached_from.map_or(part("a"), |index| all.entities[index].entity.clone());
                assert_eq!(
                    (link.source, link.target, link.link_type),
                    (before, found.entity.clone(), found.link_type)
                );
                assert_eq!(found.direction, LinkDirection::Outbound);
            }
            for (depth, count) in [(1, 2), (2, 4), (3, 5), (4, 5)] {
                let walk = walk(WalkOptions::outbound(depth));
                assert_eq!(found(&walk), found(&all)[..count]);
                assert!(walk.is_complete, "all within the depth");
            }
            assert_eq!(found(&walk(WalkOptions::inbound(1))), [(1, "d"), (1, "x")]);
            assert_eq!(
                found(&walk(WalkOptions::inbound(9))),
                [(1, "d"), (1, "x"), (2, "c"), (2, "e"), (3, "b")]
            );
            let both = walk(WalkOptions::both(1));
            assert_eq!(found(&both), [(1, "b"), (1, "c"), (1, "d"), (1, "x")]);
            assert_eq!(both.entities[2].direction, LinkDirection::Inbound);
            let back = links.get(both.entities[2].link_id).unwrap().unwrap();
            assert_eq!((back.source, back.target), (part("d"), part("a")));
            assert_eq!(found(&walk(WalkOptions::both(9))).len(), 6);
            assert_eq!(found(&links.walk(&part("nobody"), &WalkOptions::both(9)).unwrap()), []);
        });
    }
}

#[test]
fn a_walk_goes_along_links_of_the_types_that_it_is_given() {
    for test in &boxes() {
        for (from, to, link_type) in [
            ("a", "b", LinkType::Cascade),
            ("b", "c", LinkType::Reference),
            ("a", "d", LinkType::AggregateRoot),
            ("a", "c", LinkType::Reference),
            ("b", "e", LinkType::Cascade),
        ] {
            test.bus.links().create(NewLink::new(part(from), part(to), link_type)).unwrap();
        }
        on_both(test, |links| {
            let walk = |types: &[LinkType]| {
                let options =
                    types.iter().fold(WalkOptions::outbound(5), |o, link_type| o.link_type(*link_type));
                let walk = links.walk(&part("a"), &options).unwrap();
                found(&walk).into_iter().map(|(depth, id)| format!("{depth}{id}")).collect::<Vec<_>>()
            };
            assert_eq!(walk(&[]), ["1b", "1d", "1c", "2e"]);
            assert_eq!(walk(&[LinkType::Cascade]), ["1b", "2e"]);
            assert_eq!(
                walk(&[LinkType::Cascade, LinkType::Cascade, LinkType::Reference]),
                ["1b", "1c", "2e"]
            );
            assert_eq!(walk(&[LinkType::AggregateRoot, LinkType::Reference]), ["1d", "1c"]);
        });
    }
}

#[test]
fn a_walk_ends_at_its_bound_and_says_so() {
    for test in &boxes() {
        test.bus
            .transaction::<_, Error>(|tx| {
                for n in 0..1_001 {
                    tx.create_link(link(part("hub"), numbered(n)))?;
                    tx.create_link(link(part("hub"), numbered(n)))?; // twice, which is no further entity
                }
                tx.create_link(link(numbered(1_000), part("behind"))).map(drop)
            })
            .unwrap();
        on_both(test, |links| {
            let walk = |options| {
                let walk = links.walk(&part("hub"), &options).unwrap();
                (walk.entities.len(), walk.is_complete)
            };
            assert_eq!(walk(WalkOptions::outbound(1)), (1_000, false));
            assert_eq!(walk(WalkOptions::outbound(1).entities_max(1_000)), (1_000, false));
            assert_eq!(walk(WalkOptions::outbound(1).entities_max(1_001)), (1_001, true));
            assert_eq!(walk(WalkOptions::outbound(2).entities_max(1_001)), (1_001, false));
            assert_eq!(walk(WalkOptions::outbound(2).entities_max(1_002)), (1_002, true));
            assert_eq!(walk(WalkOptions::outbound(1).entities_max(1)), (1, false));
            assert_eq!(walk(WalkOptions::inbound(1)), (0, true));
        });
    }
}

#[test]
fn a_long_chain_is_followed_to_its_end_also_after_a_restart() {
    const LENGTH: u32 = 5_000;
    let test = file_box();
    test.bus
        .transaction::<_, Error>(|tx| {
            (0..LENGTH)
                .try_for_each(|n| tx.create_link(link(numbered(n), numbered((n + 1) % LENGTH))).map(drop))
        })
        .unwrap();
    let test = test.reopen();
    let options = WalkOptions::outbound(u32::MAX).entities_max(10_000);
    let walk = test.bus.links().walk(&numbered(0), &options).unwrap();
    assert!(walk.is_complete);
    let depths: Vec<u32> = walk.entities.iter().map(|found| found.depth).collect();
    assert_eq!(depths, (1..LENGTH).collect::<Vec<_>>());
}

#[test]
fn what_a_walk_cannot_do_is_refused_by_its_field() {
    for test in &boxes() {
        on_both(test, |links| {
            let walk = |start: &EntityRef, options| refused_field(links.walk(start, &options));
            assert_eq!(walk(&part("a"), WalkOptions::both(0)), "depth");
            for entities_max in [0, 100_001] {
                let options = WalkOptions::both(1).entities_max(entities_max);
                assert_eq!(walk(&part("a"), options), "entities_max");
            }
            assert_eq!(walk(&EntityRef::new("", "T", "1"), WalkOptions::both(1)), "module");
            assert_eq!(walk(&EntityRef::new("m", " ", "1"), WalkOptions::both(1)), "entity_type");
            assert_eq!(walk(&part("a\0"), WalkOptions::both(1)), "entity_id");
        });
    }
}
