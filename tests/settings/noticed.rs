//! Settings: who hears of a change.

use std::path::PathBuf;
use std::time::Duration;

use postbox::{Context, Error, Event, Postbox, Subscription};

use crate::store;
use crate::support::{
    LIMIT, ON_PURPOSE, Process, Tally, counting, event, given, integer, quiet_panics_on_purpose, raw, status,
    unhurried, wait_until,
};
use crate::timing::{folder, within};

#[test]
fn a_change_by_another_box_is_noticed_by_a_running_worker_and_by_processing_by_hand() {
    let dir = folder();
    let path = dir.path().join("app.db");
    let (bus, other) = (unhurried().open(&path).unwrap(), unhurried().open(&path).unwrap());
    let tally = Tally::default();
    bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    other.update_settings(|settings| settings.enabled = false).unwrap();
    bus.publish(event("a")).unwrap();
    assert_eq!((bus.drain().unwrap(), bus.process_batch().unwrap()), (0, 0));
    assert!(!bus.settings().enabled);

    let worker = bus.start().unwrap();
    within(Duration::from_millis(2_500), "where the polling interval is 5 seconds", || {
        let before = tally.get();
        other.update_settings(|settings| settings.enabled = true).unwrap();
        tally.wait_for(before + 1);
        other.update_settings(|settings| settings.enabled = false).unwrap();
        wait_until("the worker has seen it", || !bus.settings().enabled);
        bus.publish(event("a")).unwrap();
    });
    other.update_settings(|settings| settings.enabled = true).unwrap();
    wait_until("all are processed", || bus.stats().unwrap().pending + bus.stats().unwrap().processing == 0);
    let before = tally.get();
    other.update_settings(|settings| settings.batch_size = 17).unwrap();
    wait_until("the worker has seen it", || bus.settings().batch_size == 17);

    store(&path, "processor.enabled", "false");
    wait_until("the worker has seen it", || !bus.settings().processor_enabled);
    bus.publish(event("a")).unwrap();
    assert!(!tally.reaches(before + 1, Duration::from_millis(200)));
    assert_eq!(bus.drain().unwrap(), 1, "by hand it goes on");
    drop(worker);
}

#[test]
fn a_change_by_another_process_is_noticed_by_a_running_worker() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    let tally = Tally::default();
    bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    for on in [false, true] {
        let mut command = Process::command("noticed::child_changes_settings");
        command.env("FILE", &path).env("ON", on.to_string());
        Process::run(command);
        wait_until("the worker has seen it", || bus.settings().processor_enabled == on);
        bus.publish(event("a")).unwrap();
        assert_eq!(tally.reaches(1, if on { LIMIT } else { Duration::from_millis(200) }), on);
    }
    tally.wait_for(2);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_changes_settings() {
    let Some(path) = given("FILE").map(PathBuf::from) else { return };
    let bus = Postbox::open(path).unwrap();
    bus.update_settings(|settings| settings.processor_enabled = given("ON").unwrap() == "true").unwrap();
    bus.close().unwrap();
}

#[test]
fn a_change_counts_for_what_is_delivered_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    for bus in [Postbox::open(&path).unwrap(), Postbox::open_in_memory().unwrap()] {
        bus.subscribe(Subscription::new("*", "c", |_: &Event, _: &Context<'_>| {
            Err(postbox::HandlerError::retry("no"))
        }))
        .unwrap();
        bus.update_settings(|settings| {
            settings.max_attempts = 1;
            settings.dead_letter_enabled = false;
        })
        .unwrap();
        let first = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        assert_eq!(status(&bus, first), (postbox::OutboxStatus::Failed, 1));
        bus.update_settings(|settings| {
            settings.max_attempts = 2;
            settings.retry_base_delay_ms = 700;
        })
        .unwrap();
        let second = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        let row = bus.outbox().get(second).unwrap().unwrap();
        assert_eq!(row.available_at - row.updated_at, time::Duration::milliseconds(700));
    }
}

#[test]
fn settings_cannot_be_changed_inside_a_transaction_and_a_panic_in_the_change_breaks_nothing() {
    quiet_panics_on_purpose();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    for bus in [Postbox::open(&path).unwrap(), Postbox::open_in_memory().unwrap()] {
        let inside = bus
            .transaction(|_| -> postbox::Result<_> {
                Ok(bus.update_settings(|settings| settings.batch_size = 3))
            })
            .unwrap();
        assert!(matches!(inside, Err(Error::Reentrant { .. })), "{inside:?}");
        let change = || bus.update_settings(|_| panic!("{ON_PURPOSE}"));
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(change));
        assert!(caught.is_err());
        bus.update_settings(|settings| {
            // The change is made inside the write transaction, so that no other is lost.
            let inside = bus.publish(event("a"));
            assert!(matches!(inside, Err(Error::Reentrant { .. })), "{inside:?}");
            settings.batch_size = 4;
        })
        .unwrap();
        assert_eq!(bus.settings().batch_size, 4);
        assert_eq!(bus.stats().unwrap().pending, 0);
    }
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM postbox_setting"), 1);
}

#[test]
fn no_change_is_lost_among_many_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let boxes = [unhurried().open(&path).unwrap(), unhurried().open(&path).unwrap()];
    std::thread::scope(|scope| {
        for bus in boxes.iter().cycle().take(6) {
            scope.spawn(|| {
                for _ in 0..10 {
                    bus.update_settings(|settings| settings.batch_size += 1).unwrap();
                }
            });
        }
    });
    let settings = boxes[0].update_settings(|_| ()).unwrap();
    assert_eq!(settings.batch_size, 70);
}
