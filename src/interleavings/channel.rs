//! What the library uses of crossbeam's channels, out of shuttle's locks. No timeout ever comes, but one of zero, which is a
//! look and no wait.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

pub(crate) use crossbeam_channel::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
use shuttle::sync::{Condvar, Mutex};

pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    channel(capacity)
}

pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    channel(usize::MAX)
}

fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), senders: 1, receivers: 1, waiting: Vec::new() };
    let channel = Arc::new(Channel { capacity, state: Mutex::new(state) });
    (Sender(Arc::clone(&channel)), Receiver(channel))
}

struct Channel<T> {
    capacity: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receivers: usize,
    waiting: Vec<Weak<Waiter>>,
}

impl<T> State<T> {
    fn wake(&mut self) {
        for waiter in self.waiting.drain(..).filter_map(|waiter| waiter.upgrade()) {
            waiter.wake();
        }
    }
}

/// One thread in its wait.
#[derive(Default)]
struct Waiter {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Waiter {
    fn wake(&self) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.changed.wait(woken).unwrap();
        }
        *woken = false;
    }
}

pub(crate) struct Sender<T>(Arc<Channel<T>>);

impl<T> Sender<T> {
    /// Only of channels without a bound: it never waits.
    pub(crate) fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.try_send(value).map_err(|error| SendError(error.into_inner()))
    }

    pub(crate) fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let mut state = self.0.state.lock().unwrap();
        if state.receivers == 0 {
            return Err(TrySendError::Disconnected(value));
        }
        if state.queue.len() >= self.0.capacity {
            return Err(TrySendError::Full(value));
        }
        state.queue.push_back(value);
        state.wake();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().unwrap().senders += 1;
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap();
        state.senders -= 1;
        if state.senders == 0 {
            state.wake();
        }
    }
}

pub(crate) struct Receiver<T>(Arc<Channel<T>>);

impl<T> Receiver<T> {
    pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut state = self.0.state.lock().unwrap();
        match state.queue.pop_front() {
            Some(value) => Ok(value),
            None if state.senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    pub(crate) fn recv(&self) -> Result<T, RecvError> {
        loop {
            match self.try_recv() {
                Ok(value) => return Ok(value),
                Err(TryRecvError::Disconnected) => return Err(RecvError),
                Err(TryRecvError::Empty) => drop(Select { of: vec![self] }.ready()),
            }
        }
    }

    pub(crate) fn recv_timeout(&self, limit: Duration) -> Result<T, RecvTimeoutError> {
        if limit.is_zero() {
            return self.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            });
        }
        self.recv().map_err(|_| RecvTimeoutError::Disconnected)
    }

    pub(crate) fn recv_deadline(&self, end: Instant) -> Result<T, RecvTimeoutError> {
        self.recv_timeout(end.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn try_iter(&self) -> impl Iterator<Item = T> {
        std::iter::from_fn(|| self.try_recv().ok())
    }
}

impl<T> IntoIterator for Receiver<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

pub(crate) struct IntoIter<T>(Receiver<T>);

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().unwrap().receivers += 1;
        Receiver(Arc::clone(&self.0))
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().receivers -= 1;
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver")
    }
}

/// Waits for one of several.
#[derive(Default)]
pub(crate) struct Select<'a> {
    of: Vec<&'a dyn Ready>,
}

impl<'a> Select<'a> {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn recv<T>(&mut self, from: &'a Receiver<T>) -> usize {
        self.of.push(from);
        self.of.len() - 1
    }

    /// As crossbeam's, it looks at them in an order that is not to be relied on.
    #[allow(clippy::unnecessary_wraps, reason = "crossbeam's times out")]
    pub(crate) fn ready_timeout(&mut self, _: Duration) -> Result<usize, RecvTimeoutError> {
        Ok(self.ready())
    }

    fn ready(&self) -> usize {
        use shuttle::rand::Rng;
        let waiter = Arc::new(Waiter::default());
        let first = shuttle::rand::thread_rng().gen_range(0..self.of.len());
        loop {
            // All of them know of the waiter before it waits.
            for index in (first..self.of.len()).chain(0..first) {
                if self.of[index].is_ready_or_wakes(&waiter) {
                    return index;
                }
            }
            waiter.wait();
        }
    }
}

trait Ready {
    fn is_ready_or_wakes(&self, waiter: &Arc<Waiter>) -> bool;
}

impl<T> Ready for Receiver<T> {
    fn is_ready_or_wakes(&self, waiter: &Arc<Waiter>) -> bool {
        let mut state = self.0.state.lock().unwrap();
        let ready = !state.queue.is_empty() || state.senders == 0;
        if !ready {
            state.waiting.push(Arc::downgrade(waiter));
        }
        ready
    }
}
