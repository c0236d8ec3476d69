//! Time limits of handlers: who is told, what counts as a failed attempt, and that an event does not wait for a handler that hangs.

#[path = "support/files.rs"]
mod files;
mod support;
#[path = "support/timing.rs"]
mod timing;

#[path = "time_limits/endings.rs"]
mod endings;
#[path = "time_limits/neighbours.rs"]
mod neighbours;
#[path = "time_limits/told.rs"]
mod told;

use std::time::Duration;

use postbox::{
    Backoff, Context, Event, HandlerResult, HistoryKind, InboxStatus, OutboxStatus, Postbox, Subscription,
    Worker,
};

use crate::files::{Latch, Tally};
use crate::support::{
    LEASE, SECOND, TestBox, boxes_with, event, inbox_rows, just_before, outbox_row, wait_until,
};

const LIMIT: Duration = Duration::from_mins(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const ERROR: &str = "ran longer than its time limit of 1 ms";

fn boxes() -> [TestBox; 2] {
    boxes_with(|builder| builder.handler_threads(2))
}

/// A handler that goes on, at the first calls, until it is let go.
#[derive(Clone, Default)]
struct Hung {
    calls: Tally,
    /// Calls that know that they should stop.
    late: Tally,
    go: Latch,
    ended: Tally,
}

impl Hung {
    /// `calls`: so many hang, and say `then` in the end; those after them succeed at once.
    fn handler(
        &self,
        calls: u64,
        then: fn() -> HandlerResult,
    ) -> impl Fn(&Event, &Context<'_>) -> HandlerResult + Send + Sync + 'static {
        let hung = self.clone();
        move |_, cx| {
            hung.calls.add();
            if hung.calls.get() > calls {
                return Ok(());
            }
            wait_until(LIMIT, || cx.is_cancelled());
            hung.late.add();
            hung.go.wait();
            hung.ended.add();
            then()
        }
    }

    /// `a` to `c`, by handlers of which the first `calls` hang for longer than their limit of a millisecond.
    fn subscription(&self, calls: u64, then: fn() -> HandlerResult) -> Subscription {
        let backoff = Backoff::fixed(60 * SECOND);
        Subscription::new("a", "c", self.handler(calls, then)).time_limit(MILLISECOND).backoff(backoff)
    }
}

/// Every lease that is not renewed by now has run out.
fn leases_run_out(test: &TestBox) {
    test.clock.advance(LEASE);
    test.bus.notify();
}

/// A worker that has nothing to do, so that what is published then is handed over to it.
fn idle_worker(bus: &Postbox) -> Worker {
    let worker = bus.start().unwrap();
    assert!(worker.wait_for_startup_drain(LIMIT));
    worker
}

/// The worker has looked at everything since.
fn a_turn_is_taken(bus: &Postbox) {
    let other = bus.publish(event("another's")).unwrap();
    bus.notify();
    wait_until(LIMIT, || outbox_row(bus, other).status == OutboxStatus::Processed);
}

#[test]
fn an_attempt_that_goes_on_past_its_limit_and_its_lease_has_failed() {
    for handed_over in [false, true] {
        for test in boxes() {
            let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
            bus.subscribe(hung.subscription(1, || Ok(()))).unwrap();
            let worker = handed_over.then(|| idle_worker(bus));
            let id = bus.publish(event("a")).unwrap();
            let worker = worker.unwrap_or_else(|| bus.start().unwrap());
            hung.late.wait_for(1);
            leases_run_out(&test);
            wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Pending);
            let row = outbox_row(bus, id);
            assert_eq!((row.attempt_count, row.last_error.as_deref()), (1, Some(ERROR)), "{kind}");
            assert_eq!(row.available_at, row.updated_at + 60 * SECOND, "it waits for its backoff");
            let failed = ("c".to_owned(), InboxStatus::Failed, 1, Some(ERROR.to_owned()));
            assert_eq!(inbox_rows(bus, id), [failed], "{kind}");
            let history = bus.outbox().history(id).unwrap();
            let [entry] = &history[..] else { panic!("{kind}: {history:?}") };
            assert_eq!((entry.kind, entry.consumer_name.as_deref()), (HistoryKind::Failed, Some("c")));
            assert_eq!(entry.detail.as_deref(), Some(ERROR));
            assert!(entry.duration.unwrap() >= MILLISECOND, "{kind}: {entry:?}");
            let stats = bus.stats().unwrap();
            assert_eq!((stats.retries, stats.lost_leases), (1, 0), "{kind}");
            assert_eq!(stats.last_failure.unwrap().event_id, id);
            hung.go.open();
            assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
        }
    }
}

#[test]
fn the_event_goes_on_by_another_thread_and_what_the_late_handler_says_is_refused() {
    let says: [fn() -> HandlerResult; 4] = [
        || Ok(()),
        || Err(postbox::HandlerError::dead_letter("late")),
        || Err(postbox::HandlerError::pause_consumer("late", SECOND)),
        || panic!("on purpose"),
    ];
    for then in says {
        for test in boxes() {
            let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
            bus.subscribe(hung.subscription(1, then)).unwrap();
            let id = bus.publish(event("a")).unwrap();
            let worker = bus.start().unwrap();
            hung.late.wait_for(1);
            leases_run_out(&test);
            wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Pending);
            test.clock.advance(60 * SECOND);
            bus.notify();
            wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Processed);
            assert_eq!((hung.calls.get(), hung.ended.get()), (2, 0), "{kind}: the first one still hangs");
            assert_eq!(bus.stats().unwrap().lost_leases, 0);
            hung.go.open();
            wait_until(LIMIT, || bus.stats().unwrap().lost_leases == 1);
            let row = outbox_row(bus, id);
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processed, 2), "{kind}");
            assert_eq!(inbox_rows(bus, id), [("c".to_owned(), InboxStatus::Processed, 1, None)], "{kind}");
            assert_eq!(bus.outbox().history(id).unwrap().len(), 1, "{kind}");
            assert!(bus.pauses().unwrap().is_empty(), "{kind}");
            assert_eq!(bus.stats().unwrap().retries, 1);
            assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
        }
    }
}

#[test]
fn an_event_whose_attempts_are_used_up_so_is_a_dead_letter() {
    for dead_letters in [true, false] {
        for test in boxes() {
            let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
            bus.update_settings(|settings| settings.dead_letter_enabled = dead_letters).unwrap();
            bus.subscribe(hung.subscription(2, || Ok(())).max_attempts(2)).unwrap();
            let id = bus.publish(event("a")).unwrap();
            let worker = bus.start().unwrap();
            hung.late.wait_for(1);
            leases_run_out(&test);
            wait_until(LIMIT, || outbox_row(bus, id).status == OutboxStatus::Pending);
            test.clock.advance(60 * SECOND);
            bus.notify();
            hung.late.wait_for(2);
            leases_run_out(&test);
            let ends_as = if dead_letters { OutboxStatus::DeadLetter } else { OutboxStatus::Failed };
            wait_until(LIMIT, || outbox_row(bus, id).status == ends_as);
            let row = outbox_row(bus, id);
            assert_eq!((row.attempt_count, row.last_error.as_deref()), (2, Some(ERROR)), "{kind}");
            assert_eq!(hung.ended.get(), 0, "both hang");
            hung.go.open();
            assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
            assert_eq!(outbox_row(bus, id).status, ends_as);
        }
    }
}

/// The limit is none of the box's clock, which may jump.
#[test]
fn a_handler_within_its_limit_keeps_its_event_when_the_clock_jumps() {
    for test in boxes() {
        let (bus, kind) = (&test.bus, test.kind);
        let (entered, latch) = (Tally::default(), Latch::default());
        let within = Subscription::new("a", "c", files::blocking(&entered, &latch));
        bus.subscribe(within.time_limit(3_600 * SECOND)).unwrap();
        let id = bus.publish(event("a")).unwrap();
        let worker = bus.start().unwrap();
        entered.wait_for(1);
        for _ in 0..3 {
            test.clock.advance(100_000 * SECOND);
            bus.notify();
            let now = postbox::Clock::now(&test.clock);
            wait_until(LIMIT, || outbox_row(bus, id).available_at == now + LEASE);
        }
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processing, 1), "{kind}");
        latch.open();
        assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processed, 1), "{kind}");
        assert_eq!((entered.get(), bus.stats().unwrap().retries), (1, 0), "{kind}");
    }
}

#[test]
fn what_a_handler_says_late_counts_while_its_lease_lasts() {
    let says: [(fn() -> HandlerResult, OutboxStatus); 2] = [
        (|| Ok(()), OutboxStatus::Processed),
        (|| Err(postbox::HandlerError::dead_letter("its own words")), OutboxStatus::DeadLetter),
    ];
    for (then, ends_as) in says {
        for test in boxes() {
            let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
            bus.subscribe(hung.subscription(1, then)).unwrap();
            let id = bus.publish(event("a")).unwrap();
            let worker = bus.start().unwrap();
            hung.late.wait_for(1);
            test.clock.advance(just_before(LEASE));
            a_turn_is_taken(bus);
            hung.go.open();
            assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
            let row = outbox_row(bus, id);
            assert_eq!((row.status, row.attempt_count), (ends_as, 1), "{kind}");
            assert_ne!(row.last_error.as_deref(), Some(ERROR), "{kind}");
            assert_eq!(bus.stats().unwrap().lost_leases, 0, "{kind}");
        }
    }
}

/// The limit passes after the lease was renewed: it lasts from then on. False where it passed before.
fn lasts_its_whole_length(test: &TestBox, limit: Duration) -> bool {
    let (bus, kind, hung) = (&test.bus, test.kind, Hung::default());
    bus.subscribe(hung.subscription(1, || Ok(())).time_limit(limit)).unwrap();
    let id = bus.publish(event("a")).unwrap();
    let worker = bus.start().unwrap();
    hung.calls.wait_for(1);
    leases_run_out(test);
    let now = postbox::Clock::now(&test.clock);
    let (is_renewed, has_failed) = (
        || outbox_row(bus, id).available_at == now + LEASE,
        || outbox_row(bus, id).status == OutboxStatus::Pending,
    );
    wait_until(LIMIT, || is_renewed() || has_failed());
    let in_time = !has_failed();
    if in_time {
        hung.late.wait_for(1);
        test.clock.advance(just_before(LEASE));
        a_turn_is_taken(bus);
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.available_at), (OutboxStatus::Processing, now + LEASE), "{kind}");
        test.clock.advance(support::MICROSECOND);
        bus.notify();
        wait_until(LIMIT, has_failed);
    }
    hung.go.open();
    assert!(worker.shutdown(LIMIT).unwrap().clean, "{kind}");
    in_time
}

#[test]
fn a_lease_that_was_renewed_within_the_limit_lasts_its_whole_length() {
    // A busy machine may take longer than the first of them.
    let limits = [2 * SECOND, 10 * SECOND, 50 * SECOND];
    for kind in 0..2 {
        assert!(limits.into_iter().any(|limit| lasts_its_whole_length(&boxes()[kind], limit)));
    }
}
