//! How a box dies at a step: nothing of it is written from then on, and its threads unwind as they come to a step.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::CrashPoint;
use crate::error::{Error, Result};

/// What a thread unwinds with that comes to its end with the box.
pub(crate) struct Crashed;

/// One open box's life.
#[derive(Clone, Default)]
pub(crate) struct Crash {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    is_armed: AtomicBool,
    is_dead: AtomicBool,
    state: Mutex<State>,
    died: Condvar,
}

#[derive(Default)]
struct State {
    /// Where it is to die, and at the how many-th time from now.
    armed: Option<(CrashPoint, usize)>,
    /// What the thread of each slot has begun: in memory there is no owner's file to note it in.
    begun: HashMap<u64, i64>,
}

impl Crash {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is to die when it comes to this point for the `n`-th time, from 1.
    pub(crate) fn arm(&self, point: CrashPoint, n: usize) {
        self.state().armed = Some((point, n.max(1)));
        self.shared.is_armed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn disarm(&self) {
        self.shared.is_armed.store(false, Ordering::SeqCst);
        self.state().armed = None;
    }

    /// A thread has come to this step: does not return where the box dies, or is dead.
    pub(crate) fn at(&self, point: CrashPoint) {
        if self.is_dead() {
            Self::end_thread();
        } else if self.shared.is_armed.load(Ordering::SeqCst) && self.is_hit(point) {
            self.die();
            Self::end_thread();
        }
    }

    fn is_hit(&self, point: CrashPoint) -> bool {
        let mut state = self.state();
        match &mut state.armed {
            Some((at, n)) if *at == point => {
                *n -= 1;
                let is_hit = *n == 0;
                if is_hit {
                    state.armed = None;
                }
                is_hit
            }
            _ => false,
        }
    }

    /// The transaction of this operation is complete.
    pub(crate) fn before_commit(&self, operation: &'static str) -> Result<()> {
        self.refuse_dead(operation)?;
        match operation {
            "publish" | "publish_all" | "transaction" => self.at(CrashPoint::BeforePublish),
            "deliver" => self.at(CrashPoint::BeforeCommit),
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn after_commit(&self, operation: &'static str) {
        match operation {
            "publish" | "publish_all" | "transaction" => self.at(CrashPoint::AfterPublish),
            "deliver" => self.at(CrashPoint::AfterCommit),
            _ => {}
        }
    }

    /// The dead write nothing.
    pub(crate) fn refuse_dead(&self, operation: &'static str) -> Result<()> {
        if self.is_dead() { Err(Error::Closed { operation }) } else { Ok(()) }
    }

    /// The thread of this slot begins to handle an event.
    pub(crate) fn note_begun(&self, slot: u64, seq: i64) {
        self.state().begun.insert(slot, seq);
    }

    /// The events whose handlers had begun, and perhaps some that were over.
    pub(crate) fn begun(&self) -> Vec<i64> {
        self.state().begun.values().copied().collect()
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.shared.is_dead.load(Ordering::SeqCst)
    }

    pub(crate) fn die(&self) {
        let _state = self.state(); // whoever is about to wait for it has not looked yet, or waits
        self.shared.is_dead.store(true, Ordering::SeqCst);
        self.shared.died.notify_all();
    }

    /// Whether it is dead by then.
    pub(crate) fn wait_for_death(&self, limit: Duration) -> bool {
        let waited = self.shared.died.wait_timeout_while(self.state(), limit, |_| !self.is_dead());
        drop(waited);
        self.is_dead()
    }

    /// Unwinds, without a word of the panic hook's. What unwinds already goes on.
    pub(crate) fn end_thread() {
        if !thread::panicking() {
            resume_unwind(Box::new(Crashed));
        }
    }
}
