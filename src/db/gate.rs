//! The write gate: SQLite has one writer, and so does the box.
//!
//! Whoever holds the gate has the one write connection. Threads that publish at the same moment share a commit: the
//! first becomes the leader, takes along every job that waits, commits them together and hands out the results.
//!
//! The order at the end of a turn matters: commit, put the connection back, promote the next in line, and only then
//! wake the followers. So the next commit is under way while they wake up.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Source;
use super::fork::Process;
pub(crate) use super::ticket::Job;
use super::ticket::{Follower, Followers, Stage, Ticket, run_job};
use super::writer::{Synchronous, Writer};
use crate::error::{Error, Result};
use crate::sync::{Mutex, MutexGuard, thread, thread_local};

pub(crate) struct Gate<J: Job> {
    id: u64,
    source: Source,
    wait_max: Duration,
    opened_by: Process,
    /// `None` while somebody holds it, after a commit whose outcome is unknown, and where nothing is written.
    writer: Mutex<Option<Writer>>,
    line: Mutex<Line<J>>,
}

struct Line<J: Job> {
    held: bool,
    closed: bool,
    waiting: VecDeque<Arc<Ticket<J>>>,
}

struct Held {
    gate: u64,
    writer: Rc<Writer>,
}

thread_local! {
    /// The gates that this thread holds, so that a call inside one is an error and not a deadlock.
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
    /// The gates through which this thread may not write for now.
    static BARRED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// `None` while the thread ends and has no such list any more: then it is in nobody's transaction.
fn with_held<T>(f: impl FnOnce(&mut Vec<Held>) -> T) -> Option<T> {
    HELD.try_with(|held| f(&mut held.borrow_mut())).ok()
}

impl<J: Job> Gate<J> {
    pub(crate) fn new(source: Source, writer: Option<Writer>, wait_max: Duration) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Gate {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            source,
            wait_max,
            opened_by: Process::this(),
            writer: Mutex::new(writer),
            line: Mutex::new(Line { held: false, closed: false, waiting: VecDeque::new() }),
        }
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    pub(crate) fn opened_by(&self) -> Process {
        self.opened_by
    }

    /// Takes the gate for this thread alone.
    pub(crate) fn lock(&self, operation: &'static str) -> Result<WriteGuard<'_, J>> {
        self.refuse_barred(operation)?;
        self.lock_to_read(operation)
    }

    /// The same for what only reads, in memory.
    pub(crate) fn lock_to_read(&self, operation: &'static str) -> Result<WriteGuard<'_, J>> {
        self.opened_by.refuse_forked(operation)?;
        self.refuse_read_only(operation)?;
        self.refuse_held(operation)?;
        if let Some(ticket) = self.join(operation, &mut Stage::Alone)? {
            self.wait(&ticket, operation)?;
        }
        self.take_up(operation, Gate::refuse_closed)
    }

    /// Runs a job in a synced commit, its own or a leader's.
    pub(crate) fn submit(&self, operation: &'static str, job: J) -> Result<J::Output> {
        self.opened_by.refuse_forked(operation)?;
        self.refuse_read_only(operation)?;
        self.refuse_reentry(operation)?;
        let mut stage = Stage::With(job);
        if let Some(ticket) = self.join(operation, &mut stage)? {
            stage = self.wait(&ticket, operation)?;
        }
        match stage {
            Stage::Done(result) => result,
            Stage::With(job) | Stage::Granted(Some(job)) => self.lead(operation, job),
            Stage::Alone | Stage::Taken | Stage::Granted(None) | Stage::Closed => {
                Err(Error::Panicked { operation }) // `wait` returns none of these to a job
            }
        }
    }

    /// The connection, if this thread holds the gate: for reads inside the box's own transaction in memory.
    pub(crate) fn held_here(&self) -> Option<Rc<Writer>> {
        with_held(|held| held.iter().find(|h| h.gate == self.id).map(|h| Rc::clone(&h.writer))).flatten()
    }

    /// Until the bar is dropped this thread writes nothing: it is lent to an observer, who is not to set off what he is told of.
    pub(crate) fn bar(&self) -> Bar {
        let _ = BARRED.try_with(|barred| barred.borrow_mut().push(self.id));
        Bar
    }

    pub(crate) fn refuse_reentry(&self, operation: &'static str) -> Result<()> {
        self.refuse_held(operation)?;
        self.refuse_barred(operation)
    }

    fn refuse_barred(&self, operation: &'static str) -> Result<()> {
        if BARRED.try_with(|barred| barred.borrow().contains(&self.id)) == Ok(true) {
            return Err(Error::Reentrant {
                operation,
                inside: "an observer",
                instead: "let another thread do it",
            });
        }
        Ok(())
    }

    fn refuse_held(&self, operation: &'static str) -> Result<()> {
        if with_held(|held| held.iter().any(|h| h.gate == self.id)) == Some(true) {
            return Err(Error::Reentrant {
                operation,
                inside: "a transaction",
                instead: "use what the transaction gives, such as its `Tx`, or do it afterwards",
            });
        }
        Ok(())
    }

    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self.source, Source::ReadOnly)
    }

    pub(crate) fn refuse_read_only(&self, operation: &'static str) -> Result<()> {
        if !self.is_read_only() {
            return Ok(());
        }
        self.refuse_closed(operation)?;
        Err(Error::ReadOnly { operation })
    }

    pub(crate) fn refuse_closed(&self, operation: &'static str) -> Result<()> {
        if self.line().closed { Err(Error::Closed { operation }) } else { Ok(()) }
    }

    /// Lets nobody in any more, and fails those who wait.
    pub(crate) fn shut(&self) {
        let waiting = {
            let mut line = self.line();
            line.closed = true;
            std::mem::take(&mut line.waiting)
        };
        for ticket in waiting {
            ticket.advance(Stage::Closed);
        }
    }

    /// Waits for whoever holds the gate still, and gives out the connection for the last time.
    pub(crate) fn take_last(&self, operation: &'static str) -> Result<Writer> {
        self.shut();
        if let Some(ticket) = self.join_always(&mut Stage::Alone) {
            self.wait(&ticket, operation)?;
        }
        let mut guard = self.take_up(operation, |_, _| Ok(()))?;
        guard.withdraw().ok_or(Error::Closed { operation })
    }

    fn line(&self) -> MutexGuard<'_, Line<J>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the gate if it is free, and otherwise moves `stage` to the end of the line.
    fn join(&self, operation: &'static str, stage: &mut Stage<J>) -> Result<Option<Arc<Ticket<J>>>> {
        let line = self.line();
        if line.closed { Err(Error::Closed { operation }) } else { Ok(Self::enter(line, stage)) }
    }

    fn join_always(&self, stage: &mut Stage<J>) -> Option<Arc<Ticket<J>>> {
        Self::enter(self.line(), stage)
    }

    fn enter(mut line: MutexGuard<'_, Line<J>>, stage: &mut Stage<J>) -> Option<Arc<Ticket<J>>> {
        if !line.held {
            line.held = true;
            return None;
        }
        let ticket = Ticket::new(std::mem::replace(stage, Stage::Taken));
        line.waiting.push_back(Arc::clone(&ticket));
        Some(ticket)
    }

    /// Parks until the gate is granted or a leader has done the work: `Granted` or `Done`.
    fn wait(&self, ticket: &Arc<Ticket<J>>, operation: &'static str) -> Result<Stage<J>> {
        let start = Instant::now();
        let mut deadline = Some(start + self.wait_max);
        loop {
            if let Some(stage) = ticket.arrived() {
                return match stage {
                    Stage::Closed => Err(Error::Closed { operation }),
                    stage => Ok(stage),
                };
            }
            match deadline {
                None => thread::park(),
                Some(end) => match end.checked_duration_since(Instant::now()) {
                    Some(left) => thread::park_timeout(left),
                    None if self.leave(ticket) => {
                        return Err(Error::Busy {
                            operation,
                            waited: start.elapsed(),
                            detail: "another transaction of this box goes on".to_owned(),
                        });
                    }
                    // A leader has the job, or the gate is on its way: what happens next is bounded by others.
                    None => deadline = None,
                },
            }
        }
    }

    /// Gives up waiting; false when it is too late for that.
    fn leave(&self, ticket: &Arc<Ticket<J>>) -> bool {
        let mut line = self.line();
        let before = line.waiting.len();
        line.waiting.retain(|other| !Arc::ptr_eq(other, ticket));
        line.waiting.len() < before
    }

    /// The gate is this thread's: registers it and takes the connection, a new one if the last was dropped and `may_open`.
    fn take_up(
        &self,
        operation: &'static str,
        may_open: impl FnOnce(&Self, &'static str) -> Result<()>,
    ) -> Result<WriteGuard<'_, J>> {
        let turn = Turn { gate: self };
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let writer = if let Some(writer) = writer {
            writer
        } else {
            may_open(self, operation)?;
            self.source.open_writer(self.wait_max)?
        };
        let writer = Rc::new(writer);
        with_held(|held| held.push(Held { gate: self.id, writer: Rc::clone(&writer) }));
        Ok(WriteGuard { writer: Some(writer), turn })
    }

    fn lead(&self, operation: &'static str, mut job: J) -> Result<J::Output> {
        let guard = self.take_up(operation, Gate::refuse_closed)?;
        let mut followers = Followers { operation, of: self.take_followers() };

        if followers.of.is_empty() {
            // Nobody's work but its own would be undone: no savepoint.
            return Self::alone(&guard, operation, &mut job);
        }
        let mut own = None;
        let together = guard.transaction(Synchronous::Full, operation, |conn| {
            let mut known = J::Known::default();
            own = Some(run_job(conn, &mut job, &mut known)?);
            for follower in &mut followers.of {
                follower.result = Some(run_job(conn, &mut follower.job, &mut known)?);
            }
            Ok(())
        });
        let committed = match together {
            // One of them ended the transaction for all (a trigger of the application can): each by itself, then.
            Err(error) if !error.is_fault_of_file() => {
                own = Some(Self::alone(&guard, operation, &mut job));
                for follower in &mut followers.of {
                    follower.result = Some(Self::alone(&guard, operation, &mut follower.job));
                }
                Ok(())
            }
            committed => committed,
        };
        drop(guard); // promotes the next in line

        if let Err(error) = committed {
            followers.fail(&error);
            return Err(error);
        }
        followers.wake();
        own.unwrap_or(Err(Error::Panicked { operation }))
    }

    fn alone(guard: &WriteGuard<'_, J>, operation: &'static str, job: &mut J) -> Result<J::Output> {
        guard.transaction(Synchronous::Full, operation, |conn| job.run(conn, &mut J::Known::default()))
    }

    fn take_followers(&self) -> Vec<Follower<J>> {
        let mut line = self.line();
        if line.waiting.is_empty() {
            return Vec::new();
        }
        let mut followers = Vec::with_capacity(line.waiting.len());
        line.waiting.retain(|ticket| match ticket.take_job() {
            Some(job) => {
                followers.push(Follower { ticket: Arc::clone(ticket), job, result: None });
                false
            }
            None => true,
        });
        followers
    }

    fn pass_on(&self) {
        let next = {
            let mut line = self.line();
            let next = line.waiting.pop_front();
            line.held = next.is_some();
            next
        };
        if let Some(ticket) = next {
            ticket.grant();
        }
    }
}

impl<J: Job> Drop for Gate<J> {
    fn drop(&mut self) {
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.opened_by.was_forked() {
            std::mem::forget(writer); // the parent's connection
            return;
        }
        self.source.end();
        if let Some(writer) = writer {
            writer.leave();
        }
    }
}

/// A thread that may not write. Dropping it ends that.
pub(crate) struct Bar;

impl Drop for Bar {
    fn drop(&mut self) {
        let _ = BARRED.try_with(|barred| barred.borrow_mut().pop());
    }
}

/// Holding the gate. Dropping it passes the gate on.
struct Turn<'g, J: Job> {
    gate: &'g Gate<J>,
}

impl<J: Job> Drop for Turn<'_, J> {
    fn drop(&mut self) {
        self.gate.pass_on();
    }
}

/// The write connection, for as long as this lives. Dropping it rolls back what is open and passes the gate on.
pub(crate) struct WriteGuard<'g, J: Job> {
    writer: Option<Rc<Writer>>,
    turn: Turn<'g, J>,
}

impl<J: Job> WriteGuard<'_, J> {
    /// Ends this guard's use of the connection: nobody will find it behind the gate.
    fn withdraw(&mut self) -> Option<Writer> {
        with_held(|held| held.retain(|h| h.gate != self.turn.gate.id));
        self.writer.take().and_then(|writer| Rc::try_unwrap(writer).ok())
    }
}

impl<J: Job> std::ops::Deref for WriteGuard<'_, J> {
    type Target = Writer;

    fn deref(&self) -> &Writer {
        self.writer.as_deref().expect("only `withdraw` takes it, which ends the guard's use")
    }
}

impl<J: Job> Drop for WriteGuard<'_, J> {
    fn drop(&mut self) {
        // `turn` is dropped after this body: the connection is back before the next in line looks for it.
        if let Some(writer) = self.withdraw() {
            writer.rollback_if_open();
            if !writer.is_broken() {
                *self.turn.gate.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
            }
        }
    }
}
