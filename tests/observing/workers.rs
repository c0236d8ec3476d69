//! What a worker tells.

use std::time::Duration;

use postbox::HandlerError;

use crate::support::{TestBox, event, wait_until};
use crate::{both_kinds, observed};

const LIMIT: Duration = Duration::from_mins(1);

#[test]
fn a_worker_tells_of_each_delivery_and_when_nothing_is_left() {
    for of_kind in 0..2 {
        for (TestBox { kind, bus, .. }, notes) in observed() {
            let [plain, transactional] = both_kinds("a", "c", |_| Ok(()));
            let (handler, subscription) = if of_kind == 0 { plain } else { transactional };
            let [_, never] = both_kinds("b", "d", |_| Err(HandlerError::dead_letter("never")));
            bus.subscribe_many([subscription, never.1]).unwrap();
            bus.publish_all((0..20).map(|_| event("a"))).unwrap();
            let worker = bus.start().unwrap();
            let drained = || notes.lines.all().iter().any(|line| line.starts_with("drained"));
            wait_until(LIMIT, drained);
            assert_eq!(notes.lines.count("finished a by c, 1"), 20, "{handler}, {kind}");
            assert_eq!(notes.lines.count("drained 20"), 1, "{handler}, {kind}: {:?}", notes.lines.all());
            notes.take();

            // Straight to a handler, with the hand-off.
            bus.publish(event("a")).unwrap();
            wait_until(LIMIT, drained);
            let mut told = notes.take();
            told.sort();
            assert_eq!(
                told,
                ["drained 1", "finished a by c, 1", "published a", "started a by c, 1"],
                "{handler}, {kind}"
            );

            bus.publish(event("b")).unwrap();
            wait_until(LIMIT, drained);
            let mut told = notes.take();
            told.sort();
            assert_eq!(
                told,
                [
                    "dead_letter b, 1",
                    "drained 0",
                    "failed b by d, 1, for good",
                    "published b",
                    "started b by d, 1"
                ],
                "{handler}, {kind}"
            );
            worker.shutdown(LIMIT).unwrap();
            assert!(notes.take().is_empty(), "{handler}, {kind}");
        }
    }
}
