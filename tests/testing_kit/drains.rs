//! Test boxes and their drains.

use std::time::Duration;

use postbox::testing::{DrainLimit, TestBox};
use postbox::{
    Context, Event, HandlerError, NewEvent, OutboxStatus, PauseTarget, Settings, Subscription,
    UnhandledEvents,
};

use time::OffsetDateTime;

use crate::panics;
use crate::support::{Calls, LIMIT, SECOND, event, noting, status};

/// What a test box's clock shows at first.
fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_704_067_200).unwrap()
}

fn failing(times: u32) -> impl postbox::Handler {
    move |event: &Event, _: &Context<'_>| {
        if event.attempt() <= times { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    }
}

#[test]
fn drain_due_leaves_what_waits_and_the_clock_alone() {
    let (postbox, calls) = (TestBox::new(), Calls::default());
    postbox.subscribe(Subscription::new("a", "c", noting(&calls, "a"))).unwrap();
    let start = postbox.now();
    assert_eq!(start.unix_timestamp(), 1_704_067_200);
    postbox.publish(event("a")).unwrap();
    postbox.publish(event("a").delay(SECOND)).unwrap();
    assert_eq!(postbox.drain_due(), 1);
    assert_eq!(postbox.now(), start);
    postbox.advance(SECOND);
    assert_eq!(postbox.drain_due(), 1);
    assert_eq!(calls.all(), ["a", "a"]);
}

#[test]
fn drain_for_delivers_each_event_at_its_own_time_and_ends_at_its_own() {
    let (postbox, calls) = (TestBox::new(), Calls::default());
    let (seen, clock, start) = (calls.clone(), postbox.clock().clone(), postbox.now());
    let note = move |_: &Event, _: &Context<'_>| {
        seen.add((postbox::Clock::now(&clock) - start).whole_seconds().to_string());
        Ok(())
    };
    postbox.subscribe(Subscription::new("a", "c", note)).unwrap();
    for seconds in [7, 3, 5, 11] {
        postbox.publish(event("a").delay(Duration::from_secs(seconds))).unwrap();
    }
    assert_eq!(postbox.drain_for(Duration::from_secs(10)), 3);
    assert_eq!(calls.all(), ["3", "5", "7"]);
    assert_eq!((postbox.now() - start).whole_seconds(), 10);
}

fn every_minute() -> postbox::Schedule {
    postbox::Schedule::every(SECOND * 60, event("tick"))
}

#[test]
fn schedules_tick_one_by_one_while_time_is_moved() {
    let (postbox, calls) = (TestBox::new(), Calls::default());
    let seen = calls.clone();
    let note = move |event: &Event, _: &Context<'_>| {
        seen.add(event.scheduled_for().unwrap().minute().to_string());
        Ok(())
    };
    postbox.subscribe(Subscription::new("tick", "c", note)).unwrap();
    postbox.schedules().put("s", every_minute().misfire(postbox::Misfire::Skip)).unwrap();
    assert_eq!(postbox.drain_for(SECOND * 200), 3);
    assert_eq!(calls.take(), ["1", "2", "3"]);
    // Where there is nothing but ticks to come, nothing is left to be done.
    assert_eq!(postbox.drain_all(), 0);
    assert_eq!((postbox.now() - start()).whole_seconds(), 200);
    postbox.publish(event("later").delay(SECOND * 110)).unwrap();
    assert_eq!(postbox.drain_all(), 3);
    assert_eq!(calls.take(), ["4", "5"], "those on the way to what is due");
    assert_eq!((postbox.now() - start()).whole_seconds(), 310);
}

/// Two hours of ticks were more than any test could wait for at once.
#[test]
fn drain_for_goes_on_for_as_many_deliveries_as_it_is_given() {
    let (postbox, limit) = (TestBox::new(), DrainLimit::default().time(Duration::ZERO));
    postbox.schedules().put("s", every_minute()).unwrap();
    let said = panics(|| postbox.drain_for_within(SECOND * 600, limit.deliveries(9)));
    assert!(said.starts_with("the limit of 9 deliveries is over"), "{said}");
    assert!(said.ends_with("\nno event is left"), "{said}");
    let postbox = TestBox::new();
    postbox.schedules().put("s", every_minute()).unwrap();
    assert_eq!(postbox.drain_for_within(SECOND * 600, limit.deliveries(11)), 10);
    assert_eq!((postbox.now() - start()).whole_seconds(), 600);
}

#[test]
fn drain_all_goes_through_backoffs_delays_pauses_and_rate_limits_until_nothing_is_left() {
    let (postbox, calls) = (TestBox::new(), Calls::default());
    let start = postbox.now();
    postbox.subscribe(Subscription::new("retried", "c", failing(2))).unwrap();
    postbox.subscribe(Subscription::new("paused", "sync", noting(&calls, "paused"))).unwrap();
    let limited = Subscription::new("limited", "slow", noting(&calls, "limited")).rate_limit(1, SECOND * 100);
    postbox.subscribe(limited).unwrap();
    let retried = postbox.publish(event("retried")).unwrap();
    postbox.pause(&PauseTarget::consumer("sync"), None, Some(SECOND * 50)).unwrap();
    postbox.publish(event("paused")).unwrap();
    postbox.publish_all((0..3).map(|_| event("limited"))).unwrap();
    postbox.publish(event("nobody").delay(SECOND * 150)).unwrap();
    assert_eq!(postbox.drain_all(), 6);
    assert_eq!(postbox.outbox().get(retried).unwrap().unwrap().attempt_count, 3);
    assert_eq!(calls.all(), ["limited", "paused", "limited", "limited"]);
    assert_eq!((postbox.now() - start).whole_seconds(), 200);
}

#[test]
fn a_dead_letter_is_not_left() {
    let postbox = TestBox::new();
    postbox.subscribe(Subscription::new("a", "c", failing(9))).unwrap();
    let id = postbox.publish(event("a")).unwrap();
    assert_eq!(postbox.drain_all(), 0);
    assert_eq!(status(&postbox, id), OutboxStatus::DeadLetter);
}

#[test]
fn a_handler_that_publishes_what_it_handles_does_not_keep_a_drain_busy_for_ever() {
    let postbox = TestBox::new();
    let again = |_: &Event, cx: &Context<'_>| {
        cx.publish(NewEvent::new("tick", "clock", "Tick", "1"))?;
        Ok(())
    };
    postbox.subscribe(Subscription::new("tick", "tock", again)).unwrap();
    postbox.publish(NewEvent::new("tick", "clock", "Tick", "1")).unwrap();
    let limit = DrainLimit::default().deliveries(25);
    let said = panics(|| postbox.drain_until_empty(limit));
    assert!(said.starts_with("the limit of 25 deliveries is over, and more is to come: "), "{said}");
    assert!(said.contains("1 event is left:\n  tick  clock/Tick/1  pending  "), "{said}");
    assert!(said.ends_with("\n    is due now"), "{said}");
    let said = panics(|| postbox.drain_due());
    assert!(said.starts_with("the limit of 10000 deliveries is over"), "{said}");
}

#[test]
fn one_that_publishes_it_for_later_does_not_either() {
    let postbox = TestBox::new();
    let again = |_: &Event, cx: &Context<'_>| {
        cx.publish(NewEvent::new("tick", "clock", "Tick", "1").delay(SECOND))?;
        Ok(())
    };
    postbox.subscribe(Subscription::new("tick", "tock", again)).unwrap();
    postbox.publish(NewEvent::new("tick", "clock", "Tick", "1")).unwrap();
    let begun = postbox.now();
    assert_eq!(postbox.drain_for(SECOND * 9), 10);
    let said = panics(|| postbox.drain_until_empty(DrainLimit::default().deliveries(5)));
    assert!(said.starts_with("the limit of 5 deliveries is over, and more is to come: "), "{said}");
    assert!(said.ends_with("\n    is due in 1s"), "{said}");
    assert_eq!(postbox.now(), begun + SECOND * 14);
}

#[test]
fn threads_share_a_test_box_and_its_clones() {
    let (postbox, calls) = (TestBox::new(), Calls::default());
    postbox.subscribe(Subscription::new("a", "c", noting(&calls, "a"))).unwrap();
    let clone = postbox.postbox();
    std::thread::scope(|scope| {
        scope.spawn(|| postbox.publish(event("a")).unwrap());
        scope.spawn(move || clone.publish(event("a")).unwrap());
    });
    assert_eq!(postbox.drain_due(), 2);
}

#[test]
fn a_limit_of_time_says_what_is_left_and_why() {
    let postbox = TestBox::new();
    postbox.subscribe(Subscription::new("a", "c", failing(1))).unwrap();
    postbox.publish(event("a")).unwrap();
    let limit = DrainLimit::default().time(Duration::from_millis(400));
    let said = panics(|| postbox.drain_until_empty(limit));
    assert!(said.starts_with("the limit of 400ms is over, and the next is due 600ms later\n"), "{said}");
    assert!(said.ends_with("\n    is due in 1s, after 1 attempt\n    last error: not yet"), "{said}");
    assert_eq!(postbox.drain_all(), 1);
}

#[test]
fn what_no_time_brings_is_named_and_not_waited_for() {
    let settings = Settings { unhandled_events: UnhandledEvents::Hold, ..Settings::default() };
    let postbox = TestBox::builder().settings(settings).open();
    postbox.publish(event("held")).unwrap();
    postbox.subscribe(Subscription::new("paused", "sync", noting(&Calls::default(), ""))).unwrap();
    postbox.pause(&PauseTarget::consumer("sync"), None, None).unwrap();
    postbox.publish(event("paused")).unwrap();
    let said = panics(|| postbox.drain_all());
    assert!(said.starts_with("no time makes what is left due\n2 events are left:\n  held  "), "{said}");
    assert!(said.contains("\n    waits for somebody who subscribes to it\n"), "{said}");
    assert!(said.ends_with("\n    waits for the end of a pause"), "{said}");
}

#[test]
fn processing_that_is_off_is_said_by_drain_all() {
    let postbox = TestBox::new();
    postbox.update_settings(|settings| settings.enabled = false).unwrap();
    postbox.publish(event("a")).unwrap();
    assert_eq!(postbox.drain_due(), 0);
    let said = panics(|| postbox.drain_all());
    assert!(said.starts_with("processing is off: the setting `enabled`\n"), "{said}");
}

#[test]
fn a_test_box_is_opened_with_options_a_start_and_a_setup() {
    let start = time::OffsetDateTime::UNIX_EPOCH + SECOND * 1_000_000_000;
    let calls = Calls::default();
    let noted = calls.clone();
    let postbox = TestBox::builder()
        .starting_at(start)
        .options(|builder| builder.max_payload_bytes(10))
        .setup(|postbox| {
            postbox.subscribe(Subscription::new("a", "c", noting(&Calls::default(), ""))).unwrap();
        })
        .setup(move |_| noted.add("second"))
        .open();
    assert_eq!(postbox.now(), start);
    assert_eq!(postbox.registry().consumers("a"), ["c"]);
    assert_eq!(calls.all(), ["second"]);
    let large = event("a").payload(serde_json::json!({ "text": "more than ten bytes" }));
    assert!(matches!(postbox.publish(large), Err(postbox::Error::PayloadTooLarge { .. })));
}

#[test]
fn what_a_running_worker_has_in_hand_is_waited_for() {
    // `drain_all` gave up with "no time makes what is left due" whenever it came while the worker had an event.
    let (postbox, calls) = (TestBox::new(), Calls::default());
    let (begun, begins) = std::sync::mpsc::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let goes_on = std::sync::Mutex::new(goes_on);
    let noted = calls.clone();
    let slow = move |_: &Event, _: &Context<'_>| {
        begun.send(()).map_err(HandlerError::retry)?;
        goes_on.lock().unwrap().recv().map_err(HandlerError::retry)?;
        noted.add("slow");
        Ok(())
    };
    postbox.subscribe(Subscription::new("a", "c", slow)).unwrap();
    let worker = postbox.start().unwrap();
    let id = postbox.publish(event("a")).unwrap();
    begins.recv().unwrap();
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| postbox.drain_all());
        for _ in 0..200 {
            postbox.stats().unwrap(); // meanwhile it finds nothing else to do
        }
        go_on.send(()).unwrap();
        drained.join().unwrap();
    });
    assert_eq!((status(&postbox, id), calls.all()), (OutboxStatus::Processed, vec!["slow".to_owned()]));
    worker.shutdown(LIMIT).unwrap();
}
