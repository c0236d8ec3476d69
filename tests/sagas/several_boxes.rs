//! Several boxes on one file, as several processes have it, and workers of many threads.

use std::time::Duration;

use postbox::{Event, HandlerResult, Postbox, Saga, SagaStep};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::support::{file_box, wait_until};
use crate::{found, of_order, order};

const LIMIT: Duration = Duration::from_mins(1);

fn counting() -> Saga<u64> {
    let count = |n: &mut u64, _: &Event, _: &SagaStep<'_>| -> HandlerResult {
        *n += 1;
        Ok(())
    };
    Saga::new("order").starts_on("count", count).on("count", count)
}

fn counted(bus: &Postbox, id: &str) -> u64 {
    bus.sagas().get("order", id).unwrap().map_or(0, |saga| saga.state.as_u64().unwrap())
}

/// Whatever is read and written by two at once loses a count.
#[test]
fn two_workers_on_one_file_never_write_a_state_at_once() {
    let test = file_box();
    let other = test.second();
    for bus in [&test.bus, &other] {
        bus.subscribe_saga(counting()).unwrap();
    }
    let workers = [test.bus.start().unwrap(), other.start().unwrap()];
    for _ in 0..20 {
        test.bus.publish_all((0..50).map(|n| order("count", &format!("o-{}", n % 2)))).unwrap();
        other.publish(of_order("count")).unwrap();
        other.notify();
    }
    wait_until(LIMIT, || counted(&other, "o-0") + counted(&other, "o-1") == 20 * 51);
    for worker in workers {
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
    assert_eq!((counted(&test.bus, "o-0"), counted(&test.bus, "o-1")), (20 * 25, 20 * 26));
}

#[test]
fn a_saga_that_is_ended_by_hand_between_two_steps_of_a_worker_undoes_each_that_has_happened() {
    for _ in 0..3 {
        let test = file_box();
        let other = test.second();
        let step = |steps: &mut usize, _: &Event, step: &SagaStep<'_>| -> HandlerResult {
            *steps += 1;
            step.undo_with(of_order("undo"))?;
            Ok(())
        };
        test.bus.subscribe_saga(Saga::new("order").starts_on("step", step).on("step", step)).unwrap();
        test.bus.publish(of_order("step")).unwrap();
        test.bus.drain().unwrap();
        let worker = test.bus.start().unwrap();
        test.bus.publish_all((0..200).map(|_| of_order("step"))).unwrap();
        let undone = other.sagas().compensate("order", "o-1", "by hand").unwrap();
        wait_until(LIMIT, || {
            let stats = test.bus.stats().unwrap();
            stats.pending + stats.processing == 0
        });
        assert!(worker.shutdown(LIMIT).unwrap().clean);
        assert_eq!(found(&test.bus).state, undone, "those that came later were skipped");
        let undo = postbox::EventFilter::new().name("undo");
        assert_eq!(test.bus.outbox().count(&undo).unwrap(), undone as u64);
    }
}

#[test]
fn steps_go_on_in_whichever_box_has_the_event() {
    let test = file_box();
    let other = test.second();
    for bus in [&test.bus, &other] {
        bus.subscribe_saga(counting()).unwrap();
    }
    for n in 1..=6 {
        let bus = if n % 2 == 0 { &test.bus } else { &other };
        bus.publish(of_order("count")).unwrap();
        assert_eq!(bus.drain().unwrap(), 1);
        assert_eq!((counted(&test.bus, "o-1"), counted(&other, "o-1")), (n, n));
    }
}

/// The first release's state, which keeps what it does not know.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Older {
    paid: bool,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Newer {
    paid: bool,
    coupon: String,
}

#[test]
fn an_older_release_keeps_the_fields_of_a_newer_one_where_its_type_does() {
    let test = file_box();
    let other = test.second();
    let older = Saga::<Older>::new("order").starts_on("start", |_, _, _| Ok(())).on("paid", |order, _, _| {
        order.paid = true;
        Ok(())
    });
    let newer = Saga::<Newer>::new("order").starts_on("start", |order: &mut Newer, _, _| {
        order.coupon = "c-1".to_owned();
        Ok(())
    });
    other.subscribe_saga(newer).unwrap();
    other.publish(of_order("start")).unwrap();
    other.drain().unwrap();
    test.bus.subscribe_saga(older).unwrap();
    test.bus.publish(of_order("paid")).unwrap();
    test.bus.drain().unwrap();
    assert_eq!(found(&test.bus).state, json!({ "paid": true, "coupon": "c-1" }));
}
