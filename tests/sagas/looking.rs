//! Sagas, looked at: one, pages, those that are stuck, and how many.

use std::time::Duration;

use postbox::{Page, Postbox, Saga, SagaFilter, SagaStatus, SagaSummary};
use serde_json::json;

use super::refused::field;
use crate::support::{SECOND, boxes, file_box, start_time};
use crate::{Trail, noted, order};

fn saga(name: &str) -> Saga<Trail> {
    let prefix = name.to_owned();
    Saga::new(name).starts_on(format!("{prefix}.start"), noted).on(format!("{prefix}.done"), |_, _, step| {
        step.complete()?;
        Ok(())
    })
}

/// Orders 1 to 9, a second apart, of which 2, 4, .. have completed; and one gift.
fn some(bus: &Postbox, clock: &postbox::testing::ManualClock) {
    bus.subscribe_saga(saga("order")).unwrap();
    bus.subscribe_saga(saga("gift")).unwrap();
    for n in 1..10 {
        bus.publish(order("order.start", &n.to_string())).unwrap();
        if n % 2 == 0 {
            bus.publish(order("order.done", &n.to_string())).unwrap();
        }
        bus.drain().unwrap();
        clock.advance(SECOND);
    }
    bus.publish(order("gift.start", "1")).unwrap();
    bus.drain().unwrap();
}

fn ids(sagas: &[SagaSummary]) -> Vec<&str> {
    sagas.iter().map(|saga| saga.correlation_id.as_str()).collect()
}

#[test]
fn pages_neither_skip_nor_double_a_saga() {
    for test in boxes() {
        let bus = &test.bus;
        some(bus, &test.clock);
        let all = SagaFilter::new();
        for (first, expected) in [
            (Page::oldest(4), ["1", "2", "3", "4", "5", "6", "7", "8", "9", "1"]),
            (Page::newest(4), ["1", "9", "8", "7", "6", "5", "4", "3", "2", "1"]),
        ] {
            let mut page = bus.sagas().list(&all, &first).unwrap();
            let mut seen = page.sagas.clone();
            while let Some(next) = page.next {
                page = bus.sagas().list(&all, &first.after(next)).unwrap();
                seen.extend(page.sagas.clone());
            }
            assert_eq!(ids(&seen), expected, "{}", test.kind);
        }
    }
}

#[test]
fn a_filter_means_a_name_and_a_status() {
    for test in boxes() {
        let bus = &test.bus;
        some(bus, &test.clock);
        let list = |filter: SagaFilter| {
            let page = bus.sagas().list(&filter, &Page::oldest(100)).unwrap();
            ids(&page.sagas).join(" ")
        };
        assert_eq!(list(SagaFilter::new().name("gift")), "1", "{}", test.kind);
        assert_eq!(list(SagaFilter::new().status(SagaStatus::Completed)), "2 4 6 8");
        assert_eq!(list(SagaFilter::new().name("order").status(SagaStatus::Running)), "1 3 5 7 9");
        assert_eq!(list(SagaFilter::new().status(SagaStatus::Compensated)), "");
        assert_eq!(list(SagaFilter::new().name("ord")), "");
        assert_eq!(field(bus.sagas().list(&SagaFilter::new().name(""), &Page::oldest(1))), "name");
        assert_eq!(field(bus.sagas().list(&SagaFilter::new(), &Page::oldest(0))), "limit");
        assert_eq!(field(bus.sagas().list(&SagaFilter::new(), &Page::oldest(1_001))), "limit");
    }
}

#[test]
fn those_that_are_stuck_come_by_age_the_oldest_first() {
    for test in boxes() {
        let bus = &test.bus;
        some(bus, &test.clock);
        // It is nine seconds later than the first began.
        let stuck = |name, seconds, limit| {
            let found = bus.sagas().stuck(name, Duration::from_secs(seconds), limit).unwrap();
            ids(&found).join(" ")
        };
        assert_eq!(stuck(None, 0, 100), "1 3 5 7 9 1", "{}", test.kind);
        assert_eq!(stuck(None, 6, 100), "1 3");
        assert_eq!(stuck(None, 6, 1), "1");
        assert_eq!(stuck(Some("gift"), 0, 100), "1");
        assert_eq!(stuck(Some("order"), 9, 100), "1");
        assert_eq!(stuck(None, 10, 100), "");
        assert_eq!(bus.sagas().stuck(None, Duration::MAX, 100).unwrap(), []);
        assert_eq!(field(bus.sagas().stuck(None, SECOND, 0)), "limit");
        assert_eq!(field(bus.sagas().stuck(Some(" "), SECOND, 1)), "name");
    }
}

#[test]
fn totals_are_told_of_each_saga() {
    for test in boxes() {
        let bus = &test.bus;
        assert_eq!(bus.sagas().totals().unwrap(), []);
        some(bus, &test.clock);
        bus.sagas().compensate("order", "9", "no more").unwrap();
        let totals = bus.sagas().totals().unwrap();
        let told: Vec<_> =
            totals.iter().map(|t| (t.name.as_str(), t.running, t.completed, t.compensated)).collect();
        assert_eq!(told, [("gift", 1, 0, 0), ("order", 4, 4, 1)], "{}", test.kind);
        assert_eq!(totals[1].oldest_change, Some(start_time()));
    }
}

#[test]
fn a_saga_is_told_as_json_as_it_is() {
    let test = file_box();
    some(&test.bus, &test.clock);
    let saga = test.bus.sagas().get("order", "2").unwrap().unwrap();
    assert_eq!(
        serde_json::to_value(&saga).unwrap(),
        json!({
            "name": "order", "correlation_id": "2", "status": "completed",
            "created_at": "2023-11-14T22:13:21.000000Z", "updated_at": "2023-11-14T22:13:21.000000Z",
            "last_event": "order.done", "reason": null, "cursor": "2",
            "state": { "seen": ["order.start"] }, "timeouts": [], "undo": [],
        })
    );
    assert!(test.bus.sagas().get("order", "none").unwrap().is_none());
    // As whoever only looks sees it.
    let path = test.path();
    let reader = Postbox::open_read_only(path).unwrap();
    assert_eq!(reader.sagas().get("order", "2").unwrap().unwrap(), saga);
    assert!(matches!(reader.sagas().complete("order", "1", "no"), Err(postbox::Error::ReadOnly { .. })));
}
