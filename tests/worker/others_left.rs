//! What a worker finds when it begins, or runs beside others: how the last one ended, and outcomes that nobody has recorded.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postbox::{
    Clock, Context, Event, Fault, HandlerError, Health, OutboxStatus, Postbox, Settings, Subscription,
};
use time::OffsetDateTime;

use crate::support::{LIMIT, Tally, counting, event, quiet_panics_on_purpose, raw, status, wait_until};

/// Panics once, on the worker's own thread.
struct Panicking(Arc<AtomicBool>);

impl Clock for Panicking {
    fn now(&self) -> OffsetDateTime {
        let is_worker = std::thread::current().name() == Some("postbox-worker");
        assert!(!(is_worker && self.0.swap(false, SeqCst)), "on purpose");
        OffsetDateTime::now_utc()
    }
}

#[test]
fn after_a_worker_that_panicked_another_begins_in_good_health() {
    quiet_panics_on_purpose();
    let dir = tempfile::tempdir().unwrap();
    let panics = Arc::new(AtomicBool::new(false));
    let bus =
        Postbox::builder().clock(Panicking(Arc::clone(&panics))).open(dir.path().join("app.db")).unwrap();
    let handled = Tally::default();
    bus.subscribe(Subscription::new("a", "c", counting(&handled))).unwrap();
    let worker = bus.start().unwrap();
    panics.store(true, SeqCst);
    bus.notify();
    wait_until("it has ended", || !worker.is_running());
    assert!(matches!(bus.health(), Health::Stopped { .. }), "{:?}", bus.health());
    drop(worker);

    let worker = bus.start().unwrap();
    bus.publish(event("a")).unwrap();
    handled.wait_for(1);
    assert_eq!(bus.health(), Health::Ok);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

/// It was recorded only by the next worker, and its retry waited for that.
#[test]
fn a_worker_records_what_was_processed_by_hand_beside_it_and_could_not_be_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let settings = Settings { retry_base_delay_ms: 100, polling_interval_ms: 30_000, ..Settings::default() };
    let bus = Postbox::builder()
        .settings(Settings { processor_enabled: false, ..settings })
        .busy_timeout(Duration::from_millis(100))
        .open(&path)
        .unwrap();
    let worker = bus.start().unwrap();
    let (handled, lock) = (Tally::default(), Arc::new(Mutex::new(None)));
    let (tries, held, file) = (handled.clone(), Arc::clone(&lock), path.clone());
    bus.subscribe(Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| {
        tries.add();
        if tries.get() > 1 {
            return Ok(());
        }
        let conn = raw(&file);
        conn.execute_batch("BEGIN IMMEDIATE")?;
        *held.lock().unwrap() = Some(conn);
        Err(HandlerError::retry("later"))
    }))
    .unwrap();
    let id = bus.publish(event("a")).unwrap();
    assert_eq!(bus.drain().unwrap_err().fault(), Some(Fault::Busy));
    assert_eq!(status(&bus, id), (OutboxStatus::Processing, 1));
    drop(lock.lock().unwrap().take());
    bus.update_settings(|settings| settings.processor_enabled = true).unwrap();
    wait_until("it is tried again", || status(&bus, id) == (OutboxStatus::Processed, 2));
    assert_eq!(handled.get(), 2);
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}
