//! Waiting for a running worker.

use std::thread;
use std::time::{Duration, Instant};

use super::describe;
use super::drains::expect;
use crate::crash::Crash;
use crate::event::EventId;
use crate::outbox::OutboxStatus;
use crate::postbox::Postbox;

/// Between two looks. A box in memory has one connection, which the worker needs as well.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Waits, beside a running worker, until the event is finished: processed, a dead letter, or failed for good; which of them, is
/// returned. The limit is of real time, and only bounds the wait: a test that passes does not wait for it.
///
/// A worker does not wait for a [`ManualClock`](crate::testing::ManualClock) that nobody moves: an event that waits for its delay or
/// backoff has to be waited for by moving the clock. Without a worker there are [`TestBox`](crate::testing::TestBox)'s drains.
///
/// ```
/// use postbox::testing::{Recorder, TestBox, wait_until_settled};
/// use postbox::{NewEvent, OutboxStatus};
/// use std::time::Duration;
///
/// let postbox = TestBox::new();
/// postbox.subscribe(Recorder::new("mail").subscription("invoice.*"))?;
/// let worker = postbox.start()?;
/// let id = postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
/// assert_eq!(wait_until_settled(&postbox, id, Duration::from_secs(10)), OutboxStatus::Processed);
/// # drop(worker);
/// # Ok::<(), postbox::Error>(())
/// ```
///
/// # Panics
/// When it is not finished within the limit: with all that became of it. When there is no such event, at once.
#[track_caller]
pub fn wait_until_settled(postbox: &Postbox, id: EventId, limit: Duration) -> OutboxStatus {
    let begun = Instant::now();
    loop {
        let event = expect(describe::read_event(postbox, id), "look at the event");
        let Some(event) = event else { panic!("there is no event {id}") };
        match event.status {
            OutboxStatus::Pending | OutboxStatus::Processing => {}
            settled => return settled,
        }
        if postbox.core().db.crash().is_dead() {
            Crash::end_thread(); // nothing settles it here
        }
        if begun.elapsed() >= limit {
            let story = expect(describe::story(postbox, id), "look at the event");
            let worker = if postbox.core().worker.is_running() { "" } else { "\n  no worker runs" };
            panic!("not settled within {limit:?}:\n  {}{worker}", story.replace('\n', "\n  "));
        }
        thread::park_timeout(LOOK_EVERY);
    }
}
