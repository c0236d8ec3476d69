//! Random sequences of publishing, failures, decisions and restarts: each call of an ordered handler is looked at, and in the end
//! nothing waits for ever.
//!
//! `POSTBOX_SEQUENCES=10000 cargo test --test ordering sequences` is the long form.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use postbox::{
    Backoff, Context, Event, EventFilter, HandlerError, HandlerResult, OutboxStatus, Page, PauseTarget,
    Postbox, Subscription, Tx,
};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::test_runner::{Config, TestRunner};
use rusqlite::params;

use crate::support::{TestBox, file_box, memory_box_with, sql};
use crate::{of, waiting};

const SEQUENCES: u32 = 60;
const STEPS_MAX: usize = 40;
const ATTEMPTS_MAX: u32 = 3;

#[derive(Debug, Clone)]
enum Step {
    /// One event of each of these aggregates, after so many seconds.
    Publish(Vec<u8>, u64),
    ProcessBatch,
    Drain,
    MoveClock(u64),
    Retry(u8),
    Discard(u8),
    Replay(u8),
    Pause,
    Resume,
    /// Somebody has claimed the event of this place, and died.
    Lose(u8),
    Delete(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let delay = prop_oneof![4 => Just(0), 1 => 1_u64..40];
    prop_oneof![
        7 => (vec(0_u8..3, 1..6), delay).prop_map(|(of, after)| Step::Publish(of, after)),
        5 => Just(Step::ProcessBatch),
        4 => Just(Step::Drain),
        3 => (1_u64..60).prop_map(Step::MoveClock),
        2 => any::<u8>().prop_map(Step::Retry),
        2 => any::<u8>().prop_map(Step::Discard),
        1 => any::<u8>().prop_map(Step::Replay),
        1 => Just(Step::Pause),
        1 => Just(Step::Resume),
        1 => any::<u8>().prop_map(Step::Lose),
        1 => any::<u8>().prop_map(Step::Delete),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, Clone)]
struct Setup {
    passes: bool,
    transactional: bool,
    in_memory: bool,
    /// What the handlers do, call by call.
    outcomes: Vec<u8>,
}

fn setup() -> impl Strategy<Value = Setup> {
    (any::<bool>(), any::<bool>(), any::<bool>(), vec(0_u8..10, 1..40)).prop_map(
        |(passes, transactional, in_memory, outcomes)| Setup { passes, transactional, in_memory, outcomes },
    )
}

/// What both handlers share.
struct Script {
    setup: Setup,
    call: AtomicUsize,
    all_is_well: AtomicBool,
    violations: AtomicU32,
}

impl Script {
    fn next(&self) -> HandlerResult {
        let call = self.call.fetch_add(1, Ordering::Relaxed);
        if self.all_is_well.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.setup.outcomes[call % self.setup.outcomes.len()] {
            0 => Err(HandlerError::dead_letter("never")),
            1 | 2 => Err(HandlerError::retry("not yet")),
            3 => Err(HandlerError::skip("not for me")),
            4 => Err(HandlerError::retry_after("at once", Duration::ZERO)),
            _ => Ok(()),
        }
    }

    /// Inside a call for this event: none of its aggregate that the consumer has to receive before it may be left, and none be in
    /// other hands.
    fn look(&self, tx: &Tx<'_>, event: &Event) {
        let others: u32 = tx
            .query_row(
                "SELECT count(*) FROM outbox_event o, (SELECT seq FROM outbox_event WHERE id = ?1) this
                 WHERE o.aggregate_id = ?2 AND o.seq <> this.seq AND o.status <> 'processed'
                       AND NOT EXISTS (SELECT 1 FROM inbox_event i WHERE i.event = o.seq AND i.consumer_name = 'c'
                                       AND (i.status IN ('processed', 'skipped') OR (?3 AND i.gave_up)))
                       AND NOT (?3 AND o.status = 'dead_letter')
                       AND NOT (o.status = 'pending' AND o.attempt_count = 0 AND o.last_error IS NULL
                                AND o.changed_at = o.created_at AND o.available_at > ?4 AND o.available_at < 253402300799999997)
                       AND (o.seq < this.seq OR (o.status = 'processing' AND o.event_name = 'even'))",
                params![
                    event.id().as_uuid(),
                    event.aggregate_id(),
                    self.setup.passes,
                    i64::try_from(tx_now(tx).unix_timestamp_nanos() / 1_000).unwrap()
                ],
                |row| row.get(0),
            )
            .unwrap();
        self.violations.fetch_add(others, Ordering::Relaxed);
    }
}

thread_local! {
    static NOW: std::cell::Cell<Option<time::OffsetDateTime>> = const { std::cell::Cell::new(None) };
}

fn tx_now(_: &Tx<'_>) -> time::OffsetDateTime {
    NOW.get().expect("set before the box works")
}

fn subscribe(bus: &Postbox, script: &Arc<Script>) {
    let ordered = if script.setup.transactional {
        let script = Arc::clone(script);
        Subscription::transactional("*", "c", move |event: &Event, tx: &Tx<'_>| {
            script.look(tx, event);
            script.next()
        })
    } else {
        let script = Arc::clone(script);
        Subscription::new("*", "c", move |event: &Event, cx: &Context<'_>| {
            let look = |tx: &Tx<'_>| -> postbox::Result<()> {
                script.look(tx, event);
                Ok(())
            };
            cx.postbox().transaction(look).unwrap();
            script.next()
        })
    };
    let ordered = if script.setup.passes { ordered.pass_dead_letters() } else { ordered.ordered() };
    let other = {
        let script = Arc::clone(script);
        Subscription::new("odd", "other", move |_: &Event, _: &Context<'_>| script.next())
    };
    let backoff = Backoff::fixed(Duration::from_secs(10));
    let with_options = |of: Subscription| of.max_attempts(ATTEMPTS_MAX).backoff(backoff);
    bus.subscribe_many([with_options(ordered), with_options(other)]).unwrap();
}

/// The event of this place among those of a status, if there are any.
fn pick(bus: &Postbox, status: OutboxStatus, place: u8) -> Option<postbox::EventId> {
    let events = bus.outbox().list(&EventFilter::new().status(status), &Page::oldest(1_000)).unwrap().events;
    (!events.is_empty()).then(|| events[usize::from(place) % events.len()].id)
}

fn play(setup: &Setup, steps: &[Step]) {
    let script = Arc::new(Script {
        setup: setup.clone(),
        call: AtomicUsize::new(0),
        all_is_well: AtomicBool::new(false),
        violations: AtomicU32::new(0),
    });
    let mut test = if setup.in_memory { memory_box_with(|builder| builder) } else { file_box() };
    subscribe(&test.bus, &script);
    let paused = PauseTarget::consumer("c");
    for step in steps {
        let TestBox { bus, clock, .. } = &test;
        NOW.set(Some(postbox::Clock::now(clock)));
        match step {
            Step::Publish(aggregates, after) => {
                let after = Duration::from_secs(*after);
                let events = aggregates.iter().map(|aggregate| {
                    of(&aggregate.to_string(), if aggregate % 2 == 1 { "odd" } else { "even" }).delay(after)
                });
                bus.publish_all(events).unwrap();
            }
            Step::ProcessBatch => drop(bus.process_batch().unwrap()),
            Step::Drain => drop(bus.drain().unwrap()),
            Step::MoveClock(seconds) => clock.advance(Duration::from_secs(*seconds)),
            Step::Retry(place) => {
                if let Some(id) = pick(bus, OutboxStatus::DeadLetter, *place) {
                    bus.outbox().retry(id).unwrap();
                }
            }
            Step::Discard(place) => {
                if let Some(id) = pick(bus, OutboxStatus::DeadLetter, *place) {
                    bus.outbox().discard(id, "no").unwrap();
                }
            }
            Step::Replay(aggregate) => {
                let filter = EventFilter::new().aggregate_id((aggregate % 3).to_string());
                bus.outbox().replay(&filter, "c").unwrap();
            }
            Step::Pause => drop(bus.pause(&paused, None, None).unwrap()),
            Step::Resume => drop(bus.resume(&paused).unwrap()),
            Step::Lose(place) => {
                // Only what is due can have been claimed.
                let now = i64::try_from(NOW.get().unwrap().unix_timestamp_nanos() / 1_000).unwrap();
                if let Some(id) = pick(bus, OutboxStatus::Pending, *place) {
                    sql(bus, |tx| {
                        tx.execute(
                            "UPDATE outbox_event SET status = 'processing', attempt_count = attempt_count + 1, lease_id = ?2,
                                    available_at = ?3 + 5000000, changed_at = NULL
                             WHERE id = ?1 AND available_at <= ?3",
                            params![id.as_uuid(), 77_i64 << 24 | 1, now],
                        )
                    });
                }
            }
            Step::Delete(place) => {
                if let Some(id) = pick(bus, OutboxStatus::DeadLetter, *place) {
                    sql(bus, |tx| tx.execute("DELETE FROM outbox_event WHERE id = ?1", [id.as_uuid()]));
                }
            }
            Step::Reopen if setup.in_memory => {}
            Step::Reopen => {
                test = test.reopen();
                subscribe(&test.bus, &script);
            }
        }
        assert_eq!(script.violations.load(Ordering::Relaxed), 0, "{step:?}");
    }
    end(&test, &script, &paused);
}

/// Once every handler succeeds and people have decided, everything is processed.
fn end(test: &TestBox, script: &Script, paused: &PauseTarget) {
    let TestBox { bus, clock, .. } = test;
    script.all_is_well.store(true, Ordering::Relaxed);
    bus.resume(paused).unwrap();
    for _ in 0..10 {
        NOW.set(Some(postbox::Clock::now(clock)));
        bus.outbox().discard_all(&EventFilter::new(), "the end").unwrap();
        bus.drain().unwrap();
        clock.advance(Duration::from_mins(1));
    }
    assert_eq!(script.violations.load(Ordering::Relaxed), 0, "in the end");
    let stats = bus.stats().unwrap();
    assert_eq!((stats.pending, stats.processing, stats.dead_letter, waiting(bus)), (0, 0, 0, 0));
}

#[test]
fn whatever_happens_the_order_is_kept_and_nothing_waits_for_ever() {
    let cases = env::var("POSTBOX_SEQUENCES").map_or(SEQUENCES, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&(setup(), vec(step(), 1..STEPS_MAX)), |(setup, steps)| {
            play(&setup, &steps);
            Ok(())
        })
        .unwrap();
}
