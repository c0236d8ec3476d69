//! What wakes a worker that sleeps.

use std::time::Duration;

use crate::sync::channel::{Receiver, Select, Sender, bounded};

/// It holds one ring: a bell that rings already need not be rung again.
///
/// Whoever has something for the worker makes it seen first (commits, sends, sets), and rings then. The worker looks first, and
/// sleeps then. So what its look has missed rings in its sleep.
pub(crate) struct Bell {
    sender: Sender<()>,
    receiver: Receiver<()>,
}

/// Why a sleep has ended.
pub(crate) enum Woken<T> {
    /// The other end of `stop` was dropped.
    Stopped,
    Report(T),
    Rung,
    /// The limit has come, or nothing: a look around does no harm.
    Overslept,
}

impl Bell {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = bounded(1);
        Bell { sender, receiver }
    }

    /// Ring after the commit, never before.
    pub(crate) fn ring(&self) {
        let _ = self.sender.try_send(()); // full: it rings already
    }

    /// Sleeps until there is a ring, a report or the stop, and for no longer than `limit`.
    pub(crate) fn sleep<T>(&self, stop: &Receiver<()>, reports: &Receiver<T>, limit: Duration) -> Woken<T> {
        let mut select = Select::new();
        let (stopped, reported) = (select.recv(stop), select.recv(reports));
        select.recv(&self.receiver);
        match select.ready_timeout(limit) {
            Ok(ready) if ready == stopped => Woken::Stopped,
            Ok(ready) if ready == reported => reports.try_recv().map_or(Woken::Overslept, Woken::Report),
            Ok(_) => self.receiver.try_recv().map_or(Woken::Overslept, |()| Woken::Rung),
            Err(_) => Woken::Overslept,
        }
    }
}
