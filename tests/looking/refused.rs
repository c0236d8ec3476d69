//! What is refused, by the name of the field, before anything is read.

use postbox::{Cursor, EventFilter, Page};

use crate::on_both;
use crate::support::{SECOND, boxes, event, refused_field, start_time};

type Ask = fn(EventFilter, &str) -> EventFilter;

/// Each text, its field, and how many characters it may have.
const TEXTS: [(&str, Ask, usize); 8] = [
    ("event_name", |filter, text| filter.name(text), 255),
    ("source_module", |filter, text| filter.source_module(text), 127),
    ("aggregate_type", |filter, text| filter.aggregate_type(text), 127),
    ("aggregate_id", |filter, text| filter.aggregate_id(text), 255),
    ("consumer", |filter, text| filter.consumer(text), 255),
    ("correlation_id", |filter, text| filter.correlation_id(text), 255),
    ("consumer_name", |filter, text| filter.replayed_to(text), 255),
    ("error_contains", |filter, text| filter.error_contains(text), 1_023),
];

#[test]
fn texts_that_no_row_can_have_are_refused_by_name() {
    for test in &boxes() {
        test.bus.publish(event("a")).unwrap();
        on_both(test, |outbox| {
            for (field, ask, max) in TEXTS {
                let too_long = "ü".repeat(max + 1);
                for bad in ["", "  ", "a\0b", &too_long] {
                    let filter = ask(EventFilter::new(), bad);
                    assert_eq!(refused_field(outbox.list(&filter, &Page::newest(1))), field, "{bad:?}");
                    assert_eq!(refused_field(outbox.count(&filter)), field, "{bad:?}");
                }
                let longest = ask(EventFilter::new(), &"ü".repeat(max));
                assert!(outbox.list(&longest, &Page::newest(1)).unwrap().events.is_empty());
            }
        });
    }
}

#[test]
fn a_wildcard_stands_alone_or_last() {
    for test in &boxes() {
        on_both(test, |outbox| {
            for bad in ["a*", ".*", "**", "*.a", "a.*.b", "a.**"] {
                let filter = EventFilter::new().name(bad);
                assert_eq!(refused_field(outbox.list(&filter, &Page::newest(1))), "event_name", "{bad}");
                assert_eq!(refused_field(outbox.count(&filter)), "event_name", "{bad}");
            }
        });
    }
}

#[test]
fn a_time_range_that_ends_before_it_begins_is_refused() {
    for test in &boxes() {
        let filter = EventFilter::new().published_from(start_time() + SECOND).published_before(start_time());
        on_both(test, |outbox| {
            assert_eq!(refused_field(outbox.list(&filter, &Page::newest(1))), "published_from");
            assert_eq!(refused_field(outbox.count(&filter)), "published_from");
        });
    }
}

#[test]
fn pages_have_one_to_a_thousand_events() {
    for test in &boxes() {
        test.bus.publish_all((0..1_001).map(|_| event("a"))).unwrap();
        on_both(test, |outbox| {
            for limit in [0, 1_001, usize::MAX] {
                for page in [Page::newest(limit), Page::oldest(limit)] {
                    assert_eq!(refused_field(outbox.list(&EventFilter::new(), &page)), "limit", "{limit}");
                }
            }
            let page = outbox.list(&EventFilter::new(), &Page::newest(1_000)).unwrap();
            assert_eq!((page.events.len(), page.next.is_some()), (1_000, true));
        });
    }
}

#[test]
fn texts_that_are_no_cursors_are_refused() {
    for bad in ["", " ", "x", "-1", "+1", "01", "1F", "0x1", "1 ", "10000000000000000", "\u{661}"] {
        assert_eq!(refused_field(bad.parse::<Cursor>()), "cursor", "{bad:?}");
    }
    assert_eq!("1f".parse::<Cursor>().unwrap().to_string(), "1f");
}
