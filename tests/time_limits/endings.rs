//! By the system's clock, at the worker's end, with observers and breakers, and where the lease is somebody else's.

use std::thread;

use postbox::{Context, Event, OutboxStatus, PauseTarget, Postbox, Settings, Subscription};

use crate::files::{Tally, integer, text};
use crate::support::{Calls, SECOND, boxes_with, event, file_box, outbox_row, wait_until};
use crate::timing::{folder, within};
use crate::{ERROR, Hung, LIMIT, boxes, leases_run_out, support};

fn short_lease() -> Settings {
    Settings { processing_lease_ms: 1_000, ..Settings::default() }
}

/// Nobody wakes the worker, and the lease is not renewed.
#[test]
fn it_has_failed_within_about_a_lease_by_the_systems_clock() {
    let dir = folder();
    let builder = || Postbox::builder().settings(short_lease()).handler_threads(2);
    for bus in [builder().open(dir.path().join("app.db")).unwrap(), builder().open_in_memory().unwrap()] {
        let worker = bus.start().unwrap();
        within(3 * SECOND, "a lease of a second", || {
            let hung = Hung::default();
            bus.registry().clear();
            bus.subscribe(hung.subscription(1, || Ok(()))).unwrap();
            let id = bus.publish(event("a")).unwrap();
            hung.late.wait_for(1);
            wait_until(LIMIT, || outbox_row(&bus, id).status == OutboxStatus::Pending);
            assert_eq!(outbox_row(&bus, id).last_error.as_deref(), Some(ERROR));
            hung.go.open();
        });
        assert!(worker.shutdown(LIMIT).unwrap().clean);
    }
}

#[test]
fn a_shutdown_waits_for_a_late_handler_no_longer_than_its_limit() {
    for let_go in [true, false] {
        for test in boxes() {
            let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
            bus.subscribe(hung.subscription(1, || Ok(()))).unwrap();
            let id = bus.publish(event("a")).unwrap();
            let worker = bus.start().unwrap();
            hung.late.wait_for(1);
            leases_run_out(&test);
            wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Pending);
            let report = if let_go {
                let (done, shut_down) = std::sync::mpsc::channel();
                thread::spawn(move || done.send(worker.shutdown(LIMIT).unwrap()));
                assert!(shut_down.recv_timeout(SECOND / 5).is_err(), "{kind}: it does not wait");
                hung.go.open();
                shut_down.recv_timeout(LIMIT).unwrap()
            } else {
                support::ends(move || worker.shutdown(SECOND / 10).unwrap())
            };
            assert_eq!((report.clean, report.unfinished), (let_go, 0), "{kind}");
            assert_eq!(outbox_row(bus, id).status, OutboxStatus::Pending, "{kind}");
            hung.go.open();
            hung.ended.wait_for(1);
        }
    }
}

/// While the worker waits for its handlers to end, their leases run out as ever.
#[test]
fn an_attempt_that_runs_out_while_the_worker_stops_has_failed() {
    for test in boxes_with(|builder| builder.settings(short_lease()).handler_threads(2)) {
        let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
        bus.subscribe(hung.subscription(1, || Ok(()))).unwrap();
        let (entered, told) = (Tally::default(), Tally::default());
        let (inside, stops) = (entered.clone(), told.clone());
        bus.subscribe(Subscription::new("b", "c", move |_: &Event, cx: &Context<'_>| {
            inside.add();
            wait_until(LIMIT, || cx.is_cancelled());
            stops.add();
            Ok(())
        }))
        .unwrap();
        let ids = bus.publish_all([event("a"), event("b")]).unwrap();
        let id = ids[0];
        let worker = bus.start().unwrap();
        hung.late.wait_for(1);
        entered.wait_for(1);
        let stopping = thread::spawn(move || worker.shutdown(LIMIT).unwrap());
        told.wait_for(1);
        wait_until(LIMIT, || outbox_row(bus, ids[1]).status == OutboxStatus::Processed);
        test.clock.advance(SECOND);
        wait_until(LIMIT / 2, || outbox_row(bus, id).status == OutboxStatus::Pending);
        assert_eq!(outbox_row(bus, id).last_error.as_deref(), Some(ERROR), "{kind}");
        hung.go.open();
        let report = stopping.join().unwrap();
        assert_eq!((report.clean, report.unfinished), (true, 0), "{kind}");
    }
}

#[test]
fn observers_are_told_of_the_failed_attempt_once_and_of_nothing_later() {
    struct Noting(Calls, Tally);
    impl postbox::Observer for Noting {
        fn started(&self, started: &postbox::Started<'_>) {
            self.0.add(format!("started {}, {}", started.consumer_name, started.attempt));
        }

        fn finished(&self, finished: &postbox::Finished<'_>) {
            self.0.add(format!("finished {}, {}", finished.consumer_name, finished.attempt));
        }

        fn failed(&self, failed: &postbox::Failed<'_>) {
            assert!(failed.duration.unwrap() >= crate::MILLISECOND);
            assert_eq!(failed.event_name, "a");
            let end = if failed.gave_up { ", for good" } else { "" };
            self.0.add(format!(
                "failed {}, {}: {}{end}",
                failed.consumer_name,
                failed.attempt,
                failed.error()
            ));
        }

        fn dead_lettered(&self, dead: &postbox::DeadLettered<'_>) {
            self.0.add(format!("dead {}, {}: {}", dead.event_name, dead.attempt, dead.error()));
            self.1.add();
        }
    }
    let (calls, dead) = (Calls::default(), Tally::default());
    let observed =
        || boxes_with(|builder| builder.handler_threads(2).observer(Noting(calls.clone(), dead.clone())));
    for (number, test) in observed().into_iter().enumerate() {
        let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
        bus.subscribe(hung.subscription(1, || Ok(())).max_attempts(1)).unwrap();
        bus.publish(event("a")).unwrap();
        let worker = bus.start().unwrap();
        hung.late.wait_for(1);
        leases_run_out(&test);
        dead.wait_for(number as u64 + 1);
        let told = [
            "started c, 1".to_owned(),
            format!("failed c, 1: {ERROR}, for good"),
            format!("dead a, 1: {ERROR}"),
        ];
        assert_eq!(calls.take(), told, "{kind}");
        hung.go.open();
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
        assert!(calls.take().is_empty(), "{kind}");
    }
}

#[test]
fn it_counts_for_the_circuit_breaker_and_what_is_said_late_does_not() {
    for test in boxes() {
        let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
        let fails = || Err(postbox::HandlerError::retry("late"));
        bus.subscribe(hung.subscription(1, fails).circuit_breaker(1, 600 * SECOND)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        let worker = bus.start().unwrap();
        hung.late.wait_for(1);
        leases_run_out(&test);
        wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Pending);
        let reason =
            || bus.pauses().unwrap().into_iter().map(|pause| pause.reason.unwrap()).collect::<Vec<_>>();
        let expected = [format!("circuit breaker: 1 failures in a row: {ERROR}")];
        assert_eq!(reason(), expected, "{kind}");
        assert!(bus.resume(&PauseTarget::Consumer("c".to_owned())).unwrap());
        hung.go.open();
        wait_until(LIMIT, || bus.stats().unwrap().lost_leases == 1);
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
        assert!(reason().is_empty(), "{kind}");
    }
}

/// Somebody else has it by then: all of it is his.
#[test]
fn nothing_is_written_once_the_lease_is_somebody_elses() {
    let test = file_box();
    let (bus, hung) = (&test.bus, Hung::default());
    bus.subscribe(hung.subscription(1, || Ok(()))).unwrap();
    bus.publish(event("a")).unwrap();
    let worker = bus.start().unwrap();
    hung.late.wait_for(1);
    let conn = test.app_connection();
    let steal =
        "UPDATE outbox_event SET lease_id = 123, available_at = 253402300799999998, attempt_count = 2";
    assert_eq!(conn.execute(steal, []).unwrap(), 1);
    leases_run_out(&test);
    wait_until(LIMIT, || bus.stats().unwrap().lost_leases > 0);
    hung.go.open();
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    let row = "SELECT status || ' ' || lease_id || ' ' || attempt_count || ' ' || ifnull(last_error, 'no error') FROM outbox_event";
    assert_eq!(text(&conn, row), "processing 123 2 no error");
    assert_eq!(integer(&conn, "SELECT count(*) FROM inbox_event"), 0);
    assert_eq!(integer(&conn, "SELECT count(*) FROM postbox_history"), 0);
}
