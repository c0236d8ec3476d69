//! What is logged of events that are types.

use log::{Level, LevelFilter};
use postbox::{DomainEvent, NewEvent, Postbox, Subscription, Upcasters};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::{self, Process, manual_clock};
use crate::{CANARY, Captured, LINES, logged};

#[derive(Serialize, Deserialize)]
struct Counted {
    pieces: u8,
}

impl DomainEvent for Counted {
    const NAME: &'static str = "stock.counted";
    const SOURCE_MODULE: &'static str = "m";
    const AGGREGATE_TYPE: &'static str = "T";
    const VERSION: u32 = 2;

    fn aggregate_id(&self) -> String {
        "1".to_owned()
    }

    fn upcasters() -> Upcasters {
        Upcasters::none().step(1, |payload| Err(format!("cannot read {payload}")))
    }
}

#[test]
fn a_version_that_is_too_new_is_told_once_and_no_payload_that_cannot_be_read() {
    let mut command = Process::command("typed::child_logs");
    command.env("ALONE", "yes");
    Process::run(command);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_logs() {
    let Some(_) = support::given("ALONE") else { return };
    log::set_logger(&Captured).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let bus = Postbox::builder().clock(manual_clock()).open_in_memory().unwrap();
    bus.subscribe_many([
        Subscription::typed::<Counted>("shelves", |_, _| Ok(())),
        Subscription::typed_transactional::<Counted>("ledger", |_, _| Ok(())),
    ])
    .unwrap();
    for version in [1, 2, 3, 3, 4, 3] {
        let event = NewEvent::new("stock.counted", "m", "T", "1").version(version);
        bus.publish(event.payload(json!({ "pieces": CANARY, CANARY: CANARY }))).unwrap();
        bus.drain().unwrap();
    }
    for version in [3, 4] {
        let said = format!("version {version} of `stock.counted` is newer than consumer shelves knows");
        assert_eq!(logged(Level::Warn, "postbox::delivery", &said), 1);
    }
    assert_eq!(logged(Level::Warn, "postbox::delivery", "is newer than"), 2);
    assert_eq!(logged(Level::Warn, "postbox::delivery", "is a dead letter"), 2);
    assert!(LINES.lock().unwrap().iter().all(|(_, _, line)| !line.contains(CANARY)));
}
