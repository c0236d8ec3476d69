//! Delivering on the test's own thread, with the clock moved along, and never for ever.

use std::thread;
use std::time::{Duration, Instant};

use super::test_box::TestBox;
use super::{describe, due};
use crate::clock;
use crate::outbox::{EventFilter, OutboxStatus};
use crate::worker;

/// How much a drain may do before it panics: a handler that publishes what it handles would keep it busy for ever.
///
/// ```
/// # use postbox::testing::DrainLimit;
/// # use std::time::Duration;
/// let limit = DrainLimit::default().deliveries(100).time(Duration::from_hours(1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a limit does nothing by itself"]
pub struct DrainLimit {
    deliveries: usize,
    time: Duration,
}

impl Default for DrainLimit {
    /// 10,000 deliveries and 366 days of the box's time.
    fn default() -> Self {
        DrainLimit { deliveries: 10_000, time: Duration::from_hours(366 * 24) }
    }
}

impl DrainLimit {
    /// How many events may be claimed, each retry counted; at least 1. It is looked at after each batch of `batch_size`.
    pub fn deliveries(self, n: usize) -> Self {
        DrainLimit { deliveries: n.max(1), ..self }
    }

    /// How far the clock may be moved.
    pub fn time(self, time: Duration) -> Self {
        DrainLimit { time, ..self }
    }
}

/// Times that something was due and nothing came of it, in a row.
const IN_VAIN_MAX: usize = 1_000;

/// How long a running worker is waited for that has events in hand, of real time.
const WORKER_LIMIT: Duration = Duration::from_secs(10);
/// Looks that find a running worker with nothing in hand, in a row, before it has nothing to do with what is left.
const IDLE_MAX: usize = 50;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);

impl TestBox {
    /// Delivers what is due now, follow-ups included, and says how many events reached `processed`. The clock stays where it is.
    ///
    /// # Panics
    /// After 10,000 deliveries, with a list of what is left; on an error of [`Postbox::drain`](crate::Postbox::drain).
    #[track_caller]
    pub fn drain_due(&self) -> usize {
        self.drain_now(&mut Budget::of(DrainLimit::default()))
    }

    /// Moves the clock forward by `time`, and delivers what becomes due on the way, each event at its own time: delays, backoffs,
    /// ends of pauses, room under rate limits, each tick of a schedule. How many events reached `processed`.
    ///
    /// # Panics
    /// As [`drain_due`](TestBox::drain_due).
    #[track_caller]
    pub fn drain_for(&self, time: Duration) -> usize {
        self.drain_for_within(time, DrainLimit::default())
    }

    /// The same with another limit, of which the deliveries alone are looked at: how far the clock is moved, `time` says.
    ///
    /// ```
    /// # use postbox::testing::{DrainLimit, TestBox};
    /// # use postbox::{NewEvent, Schedule};
    /// # use std::time::Duration;
    /// # let postbox = TestBox::new();
    /// let beat = NewEvent::new("heart.beat", "body", "Heart", "h-1");
    /// postbox.schedules().put("heart", Schedule::every(Duration::from_secs(1), beat))?;
    /// let three_hours = Duration::from_hours(3); // of 10,800 beats
    /// postbox.drain_for_within(three_hours, DrainLimit::default().deliveries(20_000));
    /// # assert_eq!(postbox.stats()?.total, 10_800);
    /// # Ok::<(), postbox::Error>(())
    /// ```
    ///
    /// # Panics
    /// As [`drain_for`](TestBox::drain_for).
    #[track_caller]
    pub fn drain_for_within(&self, time: Duration, limit: DrainLimit) -> usize {
        let end = clock::add(self.core().clock.now(), time);
        let mut budget = Budget::of(limit);
        let mut processed = self.drain_now(&mut budget);
        while self.settings().enabled
            && let Some(at) =
                [self.next_due(), self.next_tick()].into_iter().flatten().min().filter(|at| *at <= end)
        {
            processed += self.drain_at(at, &mut budget);
        }
        self.move_to(end);
        processed
    }

    /// Delivers until no event is left that is not finished, moving the clock to whatever is due next: delays, backoffs, ends of
    /// pauses, room under rate limits. How many events reached `processed`. A dead letter is finished.
    ///
    /// Schedules tick on the way, and what they publish is delivered as well; the clock is not moved for their sake, since their ticks
    /// never end: see [`drain_for`](TestBox::drain_for). What a running worker has in hand is waited for, for up to ten seconds.
    ///
    /// # Panics
    /// When something is left that time alone does not bring (it waits for a subscriber, for a pause without an end, behind a dead
    /// letter), and after 10,000 deliveries or 366 days: with a list of what is left, and why.
    #[track_caller]
    pub fn drain_all(&self) -> usize {
        self.drain_until_empty(DrainLimit::default())
    }

    /// The same with another limit.
    ///
    /// # Panics
    /// As [`drain_all`](TestBox::drain_all).
    #[track_caller]
    pub fn drain_until_empty(&self, limit: DrainLimit) -> usize {
        let begun = self.core().clock.now();
        let end = clock::add(begun, limit.time);
        let mut budget = Budget::of(limit);
        let mut processed = self.drain_now(&mut budget);
        let mut waited = Waited::default();
        while !self.is_empty() {
            let next = self.next_due();
            if next.is_some() {
                waited = Waited::default();
            }
            match next {
                Some(at) if at <= end => {
                    processed += self.drain_at(self.next_tick().map_or(at, |tick| tick.min(at)), &mut budget);
                }
                Some(at) => {
                    let left = Duration::from_micros(u64::try_from(at - end).unwrap_or(0));
                    self.give_up(&format!(
                        "the limit of {:?} is over, and the next is due {left:?} later",
                        limit.time
                    ))
                }
                None if self.worker_may_go_on(&mut waited) => thread::park_timeout(LOOK_EVERY),
                None => self.give_up("no time makes what is left due"),
            }
        }
        processed
    }

    /// When something is next due, in microseconds.
    #[track_caller]
    fn next_due(&self) -> Option<i64> {
        expect(due::next_due(self.core()), "look for what is due")
    }

    #[track_caller]
    fn next_tick(&self) -> Option<i64> {
        expect(due::next_tick(self.core()), "look for the next tick")
    }

    #[track_caller]
    fn drain_at(&self, at: i64, budget: &mut Budget) -> usize {
        if budget.deliveries == 0 {
            self.give_up(&budget.is_spent());
        }
        let before = budget.deliveries;
        self.move_to(at);
        let processed = self.drain_now(budget);
        budget.in_vain = if budget.deliveries == before { budget.in_vain + 1 } else { 0 };
        if !self.settings().enabled {
            self.give_up("processing is off: the setting `enabled`");
        }
        if budget.in_vain >= IN_VAIN_MAX {
            self.give_up("something is due, and nothing comes of it");
        }
        processed
    }

    #[track_caller]
    fn drain_now(&self, budget: &mut Budget) -> usize {
        let drained = worker::drain_while(self, |claimed| {
            budget.deliveries = budget.deliveries.saturating_sub(claimed);
            budget.deliveries > 0
        });
        let processed = expect(drained, "drain");
        let now = self.core().clock.now();
        if budget.deliveries == 0 && self.next_due().is_some_and(|due| due <= now) {
            self.give_up(&budget.is_spent());
        }
        processed
    }

    /// Whether what is left may be in the hands of a running worker, or about to be.
    fn worker_may_go_on(&self, waited: &mut Waited) -> bool {
        if !self.core().worker.is_running() {
            return false;
        }
        waited.idle = if self.core().in_flight().is_empty() { waited.idle + 1 } else { 0 };
        waited.idle < IDLE_MAX && waited.since.get_or_insert_with(Instant::now).elapsed() < WORKER_LIMIT
    }

    fn is_empty(&self) -> bool {
        let filter = EventFilter::new().status(OutboxStatus::Pending).status(OutboxStatus::Processing);
        expect(self.outbox().count(&filter), "count what is left") == 0
    }

    #[track_caller]
    fn give_up(&self, why: &str) -> ! {
        let left = expect(describe::unfinished(self), "list what is left");
        panic!("{why}\n{left}");
    }
}

/// How long a running worker has been waited for.
#[derive(Default)]
struct Waited {
    since: Option<Instant>,
    idle: usize,
}

/// What is left of a limit.
struct Budget {
    limit: usize,
    deliveries: usize,
    in_vain: usize,
}

impl Budget {
    fn of(limit: DrainLimit) -> Self {
        Budget { limit: limit.deliveries, deliveries: limit.deliveries, in_vain: 0 }
    }

    fn is_spent(&self) -> String {
        format!(
            "the limit of {} deliveries is over, and more is to come: does a handler publish what it handles, or a schedule tick so \
             often? For more there are `drain_for_within` and `drain_until_empty`, which take a `DrainLimit`",
            self.limit
        )
    }
}

#[track_caller]
pub(super) fn expect<T>(result: crate::Result<T>, what: &str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("cannot {what}: {error}"),
    }
}
