//! Several boxes on one file, as several processes have it, and workers of many threads.

use std::time::Duration;

use postbox::{Event, HandlerResult, Postbox, Saga, SagaStep};

use crate::support::{file_box, wait_until};
use crate::{of_order, order};

const LIMIT: Duration = Duration::from_secs(30);

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
