//! What a worker takes, and the threads that it runs on.

use std::sync::{Arc, Mutex};
use std::{fs, thread};

use postbox::{Context, Event, OutboxStatus, Postbox, Settings, Subscription, Tx};

use crate::sized;
use crate::support::{
    LIMIT, Latch, ON_PURPOSE, Tally, blocking, counting, event, quiet_panics_on_purpose, wait_until,
};

/// Handlers ask how many events are claimed at that moment.
#[test]
fn no_more_than_batch_size_events_are_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    for file in [true, false] {
        let builder = Postbox::builder().settings(sized(4)).handler_threads(8);
        let bus =
            if file { builder.open(dir.path().join("app.db")) } else { builder.open_in_memory() }.unwrap();
        let (entered, tally, most) = (Tally::default(), Tally::default(), Arc::new(Mutex::new((0, 0, 0))));
        let (inside, counted, gauge) = (entered.clone(), tally.clone(), Arc::clone(&most));
        bus.subscribe(Subscription::new("*", "c", move |_: &Event, cx: &Context<'_>| {
            {
                let mut gauge = gauge.lock().unwrap();
                gauge.0 += 1;
                gauge.1 = gauge.1.max(gauge.0);
            }
            inside.add();
            inside.reaches(4, LIMIT); // the first four meet
            let processing = cx.postbox().stats()?.processing;
            let mut gauge = gauge.lock().unwrap();
            gauge.0 -= 1;
            gauge.2 = gauge.2.max(processing);
            counted.add();
            Ok(())
        }))
        .unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT)); // it has batches of its own size
        bus.publish_all((0..400).map(|_| event("a"))).unwrap();
        tally.wait_for(400);
        let (_, at_once, claimed) = *most.lock().unwrap();
        assert_eq!((at_once, claimed), (4, 4), "handlers that ran at once, events that were claimed at once");
        wait_until("all are processed", || bus.stats().unwrap().processed == 400);
    }
}

#[test]
fn one_handler_thread_whose_handler_publishes_reads_and_writes_works() {
    let dir = tempfile::tempdir().unwrap();
    for file in [true, false] {
        let builder = Postbox::builder().handler_threads(1);
        let bus =
            if file { builder.open(dir.path().join("app.db")) } else { builder.open_in_memory() }.unwrap();
        bus.transaction(|tx| -> postbox::Result<()> { Ok(tx.execute_batch("CREATE TABLE note (id TEXT)")?) })
            .unwrap();
        let tally = Tally::default();
        bus.subscribe(Subscription::new("leaf", "c", counting(&tally))).unwrap();
        bus.subscribe(Subscription::new("root", "c", |event: &Event, cx: &Context<'_>| {
            let bus = cx.postbox();
            cx.publish(crate::support::event("leaf"))?;
            bus.publish_all([crate::support::event("leaf"), crate::support::event("leaf")])?;
            bus.transaction(|tx| -> postbox::Result<()> {
                tx.execute("INSERT INTO note VALUES (?1)", [event.id().to_string()])?;
                tx.publish(crate::support::event("leaf"))?;
                Ok(())
            })?;
            assert_eq!(bus.outbox().get(event.id())?.map(|row| row.status), Some(OutboxStatus::Processing));
            bus.inbox().get_or_create(event.id(), "by hand")?;
            bus.update_settings(|settings| settings.max_attempts += 1)?;
            bus.stats()?;
            Ok(())
        }))
        .unwrap();
        let _worker = bus.start().unwrap();
        bus.publish_all((0..20).map(|_| event("root"))).unwrap();
        tally.wait_for(80);
        wait_until("all are processed", || bus.stats().unwrap().processed == 100);
        assert_eq!(bus.settings().max_attempts, 23);
    }
}

#[test]
fn handlers_that_block_do_not_stop_the_others() {
    let bus = Postbox::builder().handler_threads(4).open_in_memory().unwrap();
    let (entered, latch, quick) = (Tally::default(), Latch::default(), Tally::default());
    bus.subscribe(Subscription::new("slow", "c", blocking(&entered, &latch))).unwrap();
    bus.subscribe(Subscription::new("quick", "c", counting(&quick))).unwrap();
    bus.subscribe(Subscription::transactional("quick", "tx", |_: &Event, _: &Tx<'_>| Ok(()))).unwrap();
    let worker = bus.start().unwrap();
    bus.publish_all((0..3).map(|_| event("slow"))).unwrap();
    entered.wait_for(3);
    bus.publish_all((0..100).map(|_| event("quick"))).unwrap();
    quick.wait_for(100);
    wait_until("the quick ones are processed", || bus.stats().unwrap().processed == 100);
    assert_eq!(bus.stats().unwrap().processing, 3);
    latch.open();
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    assert_eq!(bus.stats().unwrap().processed, 103);
}

#[test]
fn a_panic_costs_no_thread() {
    quiet_panics_on_purpose();
    let defaults = Settings { max_attempts: 1, ..Settings::default() };
    let bus = Postbox::builder().settings(defaults).handler_threads(3).open_in_memory().unwrap();
    bus.subscribe(Subscription::new("bad", "c", |_: &Event, _: &Context<'_>| panic!("{ON_PURPOSE}")))
        .unwrap();
    bus.subscribe(Subscription::transactional("bad", "tx", |_: &Event, _: &Tx<'_>| panic!("{ON_PURPOSE}")))
        .unwrap();
    let (entered, latch) = (Tally::default(), Latch::default());
    bus.subscribe(Subscription::new("good", "c", blocking(&entered, &latch))).unwrap();
    let worker = bus.start().unwrap();
    let ids = bus.publish_all((0..100).map(|_| event("bad"))).unwrap();
    wait_until("all are dead", || bus.stats().unwrap().dead_letter == 100);
    let error = bus.outbox().get(ids[99]).unwrap().unwrap().last_error.unwrap();
    assert_eq!(error, "c: panicked: on purpose; tx: panicked: on purpose");

    bus.publish_all((0..3).map(|_| event("good"))).unwrap();
    entered.wait_for(3); // all of the threads, at once
    latch.open();
    assert!(worker.shutdown(LIMIT).unwrap().clean);
}

#[test]
fn threads_have_names() {
    let bus = Postbox::builder().handler_threads(3).open_in_memory().unwrap();
    let (names, entered, latch) = (Arc::new(Mutex::new(Vec::new())), Tally::default(), Latch::default());
    let (into, inside, wait) = (Arc::clone(&names), entered.clone(), latch.clone());
    bus.subscribe(Subscription::new("*", "c", move |_: &Event, _: &Context<'_>| {
        into.lock().unwrap().push(thread::current().name().map(str::to_owned));
        inside.add();
        wait.wait();
        Ok(())
    }))
    .unwrap();
    let _worker = bus.start().unwrap();
    bus.publish_all((0..3).map(|_| event("a"))).unwrap();
    entered.wait_for(3);
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let comms: Vec<String> =
        threads.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok()).collect();
    latch.open();
    assert!(comms.iter().any(|comm| comm == "postbox-worker\n"), "{comms:?}");
    let mut names: Vec<_> = names.lock().unwrap().drain(..).map(Option::unwrap).collect();
    names.sort();
    assert_eq!(names, ["postbox-handler-1", "postbox-handler-2", "postbox-handler-3"]);
}
