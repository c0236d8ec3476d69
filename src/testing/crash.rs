//! A box that dies, and is opened again on the same memory.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::drains::expect;
use super::test_box::TestBox;
use crate::crash::{CrashPoint, Crashed};

/// How long a step is waited for that a running worker has still to come to.
const LIMIT: Duration = Duration::from_secs(10);

impl TestBox {
    /// Ends the box and opens it again on the same memory, as if the process had been killed at this moment and started anew: claims,
    /// subscriptions and all else that was in memory are gone, a running worker ends, an open transaction is rolled back. What
    /// [`setup`](crate::testing::TestBoxBuilder::setup) does is done again; the clock goes on. Claims of the dead are taken over at
    /// once, as they are in a file. Clones of the old box get [`Error::Closed`](crate::Error::Closed), and so do handlers of it that still run.
    ///
    /// # Panics
    /// When the box was closed, or a thread holds its transaction for longer than the busy timeout.
    #[track_caller]
    pub fn reopen(&mut self) {
        let core = self.core();
        core.db.crash().die();
        assert!(core.begin_closing(), "the box was closed, and its memory is gone");
        core.worker.stop_and_wait(Duration::ZERO);
        let (owner, begun) = (core.leases.owner(), core.db.crash().begun());
        let db = expect(core.db.hand_over("reopen"), "take the memory over");
        core.registry.clear(); // handlers often hold a clone of the box
        let postbox = expect(self.recipe().open_on(db), "open the box again");
        expect(postbox.core().take_over(owner, &begun), "take over from the dead");
        self.replace(postbox);
    }

    /// Does `work` with the box, which dies at this step, as if its process had been killed there; then it is opened again, as
    /// [`reopen`](TestBox::reopen) does. `work` goes no further than the step where it comes to it on its own thread, in a drain or
    /// while it publishes. Where a worker's threads are to come to it, let `work` return the [`Worker`](crate::Worker), and it is
    /// waited for, for up to ten seconds; from its death on, whatever `work` still writes is
    /// [`Error::Closed`](crate::Error::Closed), so that `work` should not unwrap what it writes beside a worker.
    ///
    /// ```
    /// use postbox::testing::{CrashPoint, TestBox, assert_processed};
    /// use postbox::{Event, NewEvent, Subscription, Tx};
    ///
    /// let mut postbox = TestBox::builder()
    ///     .setup(|postbox| {
    ///         let make = |tx: &Tx<'_>| Ok::<_, postbox::Error>(tx.execute_batch("CREATE TABLE IF NOT EXISTS task (title TEXT)")?);
    ///         postbox.transaction(make).unwrap();
    ///         let tasks = |event: &Event, tx: &Tx<'_>| {
    ///             tx.execute("INSERT INTO task VALUES (?1)", [event.aggregate_id()])?;
    ///             Ok(())
    ///         };
    ///         postbox.subscribe(Subscription::transactional("invoice.created", "tasks", tasks)).unwrap();
    ///     })
    ///     .open();
    /// let id = postbox.publish(NewEvent::new("invoice.created", "finance", "Invoice", "inv-1"))?;
    /// postbox.crash_at(CrashPoint::BeforeCommit, |postbox| postbox.drain_due());
    ///
    /// postbox.drain_all();
    /// assert_processed!(postbox, id);
    /// let count = |tx: &Tx<'_>| Ok::<u32, postbox::Error>(tx.query_row("SELECT count(*) FROM task", [], |row| row.get(0))?);
    /// assert_eq!(postbox.transaction(count)?, 1);
    /// # Ok::<(), postbox::Error>(())
    /// ```
    ///
    /// # Panics
    /// When the step is never come to; when `work` panics; as [`reopen`](TestBox::reopen).
    #[track_caller]
    pub fn crash_at<T>(&mut self, point: CrashPoint, work: impl FnOnce(&TestBox) -> T) {
        self.crash_at_nth(point, 1, work);
    }

    /// The same when the box comes to this step for the `n`-th time, counted from 1.
    ///
    /// # Panics
    /// As [`crash_at`](TestBox::crash_at).
    #[track_caller]
    pub fn crash_at_nth<T>(&mut self, point: CrashPoint, n: usize, work: impl FnOnce(&TestBox) -> T) {
        let crash = self.core().db.crash().clone();
        crash.arm(point, n);
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(done) => {
                let limit = if self.core().worker.is_running() { LIMIT } else { Duration::ZERO };
                if !crash.wait_for_death(limit) {
                    crash.disarm();
                    drop(done);
                    panic!(
                        "it did not come to {point:?}{}",
                        if n > 1 { format!(" {n} times") } else { String::new() }
                    );
                }
                self.reopen(); // before `done`, which may be a worker, is dropped: it does not wait for the dead
            }
            Err(panic) if panic.is::<Crashed>() => self.reopen(),
            Err(panic) => {
                crash.disarm();
                resume_unwind(panic);
            }
        }
    }
}
