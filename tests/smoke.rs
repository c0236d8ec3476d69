use postbox::testing::ManualClock;
use postbox::*;
use serde_json::json;
use std::sync::{Arc, atomic::*};
use std::time::Duration;
use time::OffsetDateTime;

fn ev(n: &str) -> NewEvent {
    NewEvent::new(n, "m", "T", "1").payload(json!({"a": 1.1}))
}

#[test]
fn file_smoke() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let bus = Postbox::open(&path).unwrap();
    let n = Arc::new(AtomicUsize::new(0));
    let c = n.clone();
    bus.subscribe(Subscription::new("a", "plain", move |e: &Event, cx: &Context<'_>| {
        c.fetch_add(1, Ordering::SeqCst);
        if e.attempt() == 1 {
            cx.publish(ev("b"))?;
        }
        Ok(())
    }))
    .unwrap();
    bus.subscribe(Subscription::transactional("*", "tx", |e: &Event, tx: &Tx<'_>| {
        tx.execute_batch("CREATE TABLE IF NOT EXISTS t(x)")?;
        tx.execute("INSERT INTO t VALUES (?1)", [e.name()])?;
        Ok(())
    }))
    .unwrap();
    bus.publish(ev("a")).unwrap();
    assert_eq!(bus.drain().unwrap(), 2);
    assert_eq!(n.load(Ordering::SeqCst), 1);
    let w = bus.start().unwrap();
    assert!(w.wait_for_startup_drain(Duration::from_secs(5)));
    for _ in 0..100 {
        bus.publish(ev("a")).unwrap();
    }
    let t = std::time::Instant::now();
    while bus.stats().unwrap().processed < 202 {
        assert!(t.elapsed() < Duration::from_secs(10), "{:?}", bus.stats());
        std::thread::yield_now();
    }
    println!("{:?} {:?}", t.elapsed(), bus.stats());
    let r = w.shutdown(Duration::from_secs(5)).unwrap();
    assert!(r.clean);
    bus.close().unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["a.db"]);
    let bus = Postbox::open(&path).unwrap();
    assert_eq!(bus.stats().unwrap().processed, 202);
}

#[test]
fn memory_smoke() {
    let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    let bus = Postbox::builder().clock(clock.clone()).open_in_memory().unwrap();
    bus.subscribe(Subscription::new("a", "plain", |e: &Event, _: &Context<'_>| {
        if e.attempt() < 3 { Err(HandlerError::retry("no")) } else { Ok(()) }
    }))
    .unwrap();
    bus.subscribe(Subscription::transactional("a", "bad", |_: &Event, _: &Tx<'_>| panic!("boom"))).unwrap();
    let id = bus.publish(ev("a")).unwrap();
    assert_eq!(bus.drain().unwrap(), 0);
    println!("{:?}", bus.outbox().get(id).unwrap().unwrap().last_error);
    clock.advance(Duration::from_secs(1));
    bus.drain().unwrap();
    clock.advance(Duration::from_millis(1999));
    bus.drain().unwrap();
    assert_eq!(bus.outbox().get(id).unwrap().unwrap().attempt_count, 2);
    clock.advance(Duration::from_millis(1));
    bus.drain().unwrap();
    let row = bus.outbox().get(id).unwrap().unwrap();
    println!("{row:?} {:?}", row.last_error);
    assert_eq!(row.status, OutboxStatus::DeadLetter);
    assert!(bus.inbox().is_processed(id, "plain").unwrap());
    let w = bus.start().unwrap();
    bus.publish(ev("zzz")).unwrap();
    let t = std::time::Instant::now();
    while bus.stats().unwrap().processed < 1 {
        assert!(t.elapsed() < Duration::from_secs(10), "{:?}", bus.stats());
        std::thread::yield_now();
    }
    drop(w);
    bus.close().unwrap();
}
