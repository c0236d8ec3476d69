//! Starting and stopping a worker.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::pool::Pool;
use super::run::Run;
use super::scope::refuse_inside_handler;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::postbox::Postbox;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, MutexGuard};

/// How long running handlers have when a [`Worker`] is dropped or the box is closed.
pub(crate) const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// What a shutdown came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Every handler that ran came to its end, and its outcome is recorded.
    pub clean: bool,
    /// Events whose handlers still ran at the limit: they are delivered again once their lease has run out, and what such a
    /// handler says later is refused. Or whose outcome could not be recorded: the box's next worker, `drain` or `close` records
    /// it; when the process ends before, they are delivered again. A handler that runs past its
    /// [time limit](crate::Subscription::time_limit), and whose attempt has failed for that, is not counted; `clean` is false.
    pub unfinished: usize,
}

/// A running worker. Dropping it stops it and waits as [`shutdown`](Worker::shutdown) does, for at most ten seconds; inside
/// a transaction or handler of the same box it does not wait.
#[must_use = "dropping a worker stops it"]
#[derive(Debug)]
pub struct Worker {
    control: Arc<Control>,
    // The box stays open for as long as its worker is held.
    postbox: Postbox,
}

impl Worker {
    /// Whether its thread runs.
    pub fn is_running(&self) -> bool {
        !self.control.is_over()
    }

    /// Waits until the startup drain is over: everything that was due when the worker started has been tried once, ticks of schedules that
    /// had come by then as well. True at once where there is none to wait for; false when the limit came first, or the worker ended.
    pub fn wait_for_startup_drain(&self, limit: Duration) -> bool {
        wait_for_end_of(&self.control.drained, limit) && self.control.has_drained.load(Ordering::Acquire)
    }

    /// Stops claiming, gives back what no handler has begun (no attempt is spent), lets running handlers end within the
    /// limit, and records their outcomes, for which it may wait the busy timeout more.
    ///
    /// # Errors
    /// [`Error::Panicked`] when the worker's thread had died. [`Error::Reentrant`] inside a transaction or handler of the
    /// same box, which it would wait for: the worker is told to stop, and not waited for.
    pub fn shutdown(self, limit: Duration) -> Result<ShutdownReport> {
        if let Err(error) = self.refuse_to_wait() {
            self.control.stop(limit);
            return Err(error);
        }
        self.control.stop_and_wait(limit).ok_or(Error::Panicked { operation: "shutdown" })
    }

    fn refuse_to_wait(&self) -> Result<()> {
        const OPERATION: &str = "shutdown";
        let core = self.postbox.core();
        core.db.refuse_forked(OPERATION)?; // its thread is the parent's
        core.db.refuse_reentry(OPERATION)?;
        refuse_inside_handler(core, OPERATION)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.control.is_over() {
            return;
        }
        if self.refuse_to_wait().is_ok() {
            self.control.stop_and_wait(SHUTDOWN_LIMIT);
        } else {
            self.control.stop(SHUTDOWN_LIMIT);
        }
    }
}

/// The worker's side of [`Control`].
pub(crate) struct Signals {
    pub(crate) stop: Receiver<()>,
    pub(crate) control: Arc<Control>,
    /// Dropped when the startup drain is over.
    pub(crate) drained: Option<Sender<()>>,
    /// Dropped when the thread ends, after everything else.
    _over: Sender<()>,
}

impl Signals {
    pub(crate) fn startup_drain_is_over(&mut self) {
        if self.drained.is_some() {
            self.control.has_drained.store(true, Ordering::Release);
            self.drained = None;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Control {
    /// Dropped to stop.
    stop: Mutex<Option<Sender<()>>>,
    /// Seen by handlers.
    pub(crate) stopping: Arc<AtomicBool>,
    pub(crate) deadline: Mutex<Option<Instant>>,
    has_drained: AtomicBool,
    drained: Receiver<()>,
    over: Receiver<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
    pub(crate) report: Mutex<Option<ShutdownReport>>,
}

impl Control {
    fn new() -> (Arc<Self>, Signals) {
        let (stop, stopped) = bounded(0);
        let (drained_sender, drained) = bounded(0);
        let (over_sender, over) = bounded(0);
        let control = Arc::new(Control {
            stop: Mutex::new(Some(stop)),
            stopping: Arc::default(),
            deadline: Mutex::new(None),
            has_drained: AtomicBool::new(false),
            drained,
            over,
            thread: Mutex::new(None),
            report: Mutex::new(None),
        });
        let signals = Signals {
            stop: stopped,
            control: Arc::clone(&control),
            drained: Some(drained_sender),
            _over: over_sender,
        };
        (control, signals)
    }

    fn is_over(&self) -> bool {
        wait_for_end_of(&self.over, Duration::ZERO)
    }

    fn stop(&self, limit: Duration) {
        {
            let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            // The first to stop it sets the limit.
            deadline.get_or_insert(now.checked_add(limit).unwrap_or(now + Duration::from_hours(24 * 365)));
        }
        self.stopping.store(true, Ordering::Release);
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// `None`: the thread died without a report.
    fn stop_and_wait(&self, limit: Duration) -> Option<ShutdownReport> {
        self.stop(limit);
        let _ = self.over.recv(); // an error is what is waited for: the sender was dropped
        // Its last act is done; what is left is that the thread itself goes.
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
        *self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True when the other side was dropped.
fn wait_for_end_of(signal: &Receiver<()>, limit: Duration) -> bool {
    matches!(signal.recv_timeout(limit), Err(RecvTimeoutError::Disconnected))
}

/// Where a box keeps its worker, if it has one.
#[derive(Default)]
pub(crate) struct WorkerSlot {
    control: Mutex<Option<Arc<Control>>>,
}

impl WorkerSlot {
    pub(crate) fn is_running(&self) -> bool {
        self.control().as_ref().is_some_and(|control| !control.is_over())
    }

    pub(crate) fn stop_and_wait(&self, limit: Duration) {
        let control = self.control().take();
        if let Some(control) = control.filter(|control| !control.is_over()) {
            control.stop_and_wait(limit);
        }
    }

    fn control(&self) -> MutexGuard<'_, Option<Arc<Control>>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn start(postbox: &Postbox) -> Result<Worker> {
    let core: &Core = postbox.core();
    let mut slot = core.worker.control();
    core.db.refuse_forked("start")?;
    core.db.refuse_read_only("start")?;
    core.refuse_closed("start")?; // inside the slot's lock: `close` looks for a worker after it has closed the box
    if slot.as_ref().is_some_and(|control| !control.is_over()) {
        return Err(Error::WorkerRunning);
    }
    let (control, signals) = Control::new();
    let pool = Pool::start(postbox, core.handler_threads)?;
    let run = Run::new(postbox.clone(), pool, signals)?;
    let thread = thread::Builder::new()
        .name("postbox-worker".to_owned())
        .spawn(move || run.run())
        .map_err(|error| Error::io("start the thread", "postbox-worker", error))?;
    *control.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    *slot = Some(Arc::clone(&control));
    Ok(Worker { control, postbox: postbox.clone() })
}
