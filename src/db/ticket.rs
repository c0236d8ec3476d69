//! Waiting in line at the gate: jobs, tickets, and a leader's followers.

use std::sync::{Arc, PoisonError};

use rusqlite::Connection;

use crate::error::{Error, Result};
use crate::sync::thread::{self, Thread};
use crate::sync::{Mutex, MutexGuard};

/// A piece of writing that may share its commit with others.
pub(crate) trait Job: Send + 'static {
    type Output: Send;

    /// What a job can tell those that come after it in the same transaction. Forgotten when a job fails.
    type Known: Default;

    /// Runs inside a transaction that others share. When it fails, what it wrote is undone, and only that.
    fn run(&mut self, conn: &Connection, known: &mut Self::Known) -> Result<Self::Output>;

    /// Whether `run` writes with more than one statement, so that undoing it takes a savepoint.
    fn needs_savepoint(&self) -> bool;
}

/// The outer error ends the whole transaction: SQLite has rolled it back by itself, or it has to be.
pub(super) fn run_job<J: Job>(
    conn: &Connection,
    job: &mut J,
    known: &mut J::Known,
) -> Result<Result<J::Output>> {
    if job.needs_savepoint() {
        conn.prepare_cached("SAVEPOINT postbox_job")?.execute([])?;
    }
    let result = job.run(conn, known);
    match result {
        // What a single statement wrote before it failed is undone with the whole transaction alone: a trigger's
        // `RAISE(FAIL)` leaves it.
        Err(error) if !job.needs_savepoint() || conn.is_autocommit() => return Err(error),
        Ok(_) if conn.is_autocommit() => return Err(Error::Panicked { operation: "publish" }),
        _ => {}
    }
    if job.needs_savepoint() {
        if result.is_err() {
            *known = J::Known::default();
            conn.prepare_cached("ROLLBACK TO postbox_job")?.execute([])?;
        }
        conn.prepare_cached("RELEASE postbox_job")?.execute([])?;
    }
    Ok(result)
}

pub(super) struct Ticket<J: Job> {
    thread: Thread,
    stage: Mutex<Stage<J>>,
}

/// How far a ticket has come.
pub(super) enum Stage<J: Job> {
    /// Waits for the gate itself.
    Alone,
    /// Waits for the gate, or for a leader that takes the job along.
    With(J),
    /// A leader has the job. Its result will come: the leader's own waits are bounded.
    Taken,
    /// The gate is this thread's now.
    Granted(Option<J>),
    Done(Result<J::Output>),
    Closed,
}

impl<J: Job> Ticket<J> {
    /// Of this thread.
    pub(super) fn new(stage: Stage<J>) -> Arc<Self> {
        Arc::new(Ticket { thread: thread::current(), stage: Mutex::new(stage) })
    }

    fn stage(&self) -> MutexGuard<'_, Stage<J>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn advance(&self, stage: Stage<J>) {
        *self.stage() = stage;
        self.thread.unpark();
    }

    pub(super) fn grant(&self) {
        let mut stage = self.stage();
        let job = match std::mem::replace(&mut *stage, Stage::Taken) {
            Stage::With(job) => Some(job),
            _ => None,
        };
        *stage = Stage::Granted(job);
        drop(stage);
        self.thread.unpark();
    }

    pub(super) fn take_job(&self) -> Option<J> {
        let mut stage = self.stage();
        match std::mem::replace(&mut *stage, Stage::Taken) {
            Stage::With(job) => Some(job),
            other => {
                *stage = other;
                None
            }
        }
    }

    /// What has come, once it has.
    pub(super) fn arrived(&self) -> Option<Stage<J>> {
        let mut stage = self.stage();
        match &*stage {
            Stage::Granted(_) | Stage::Done(_) | Stage::Closed => {
                Some(std::mem::replace(&mut *stage, Stage::Taken))
            }
            Stage::Alone | Stage::With(_) | Stage::Taken => None,
        }
    }
}

/// One whose job a leader has taken along.
pub(super) struct Follower<J: Job> {
    pub(super) ticket: Arc<Ticket<J>>,
    pub(super) job: J,
    pub(super) result: Option<Result<J::Output>>,
}

/// Everyone whose job a leader took gets an answer, even when the leader panics.
pub(super) struct Followers<J: Job> {
    pub(super) operation: &'static str,
    pub(super) of: Vec<Follower<J>>,
}

impl<J: Job> Followers<J> {
    pub(super) fn wake(mut self) {
        for follower in self.of.drain(..) {
            let result = follower.result.unwrap_or(Err(Error::Panicked { operation: self.operation }));
            follower.ticket.advance(Stage::Done(result));
        }
    }

    pub(super) fn fail(mut self, error: &Error) {
        for follower in self.of.drain(..) {
            follower.ticket.advance(Stage::Done(Err(error.replicate())));
        }
    }
}

impl<J: Job> Drop for Followers<J> {
    fn drop(&mut self) {
        for follower in self.of.drain(..) {
            follower.ticket.advance(Stage::Done(Err(Error::Panicked { operation: self.operation })));
        }
    }
}
