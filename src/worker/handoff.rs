//! From `publish` straight to a handler: while the worker has nothing else to do, a publisher inserts its events already
//! claimed, and hands them to the pool once they are committed. The worker need not wake up first.
//!
//! The worker opens the hand-off when it goes to sleep and says how many events it has room for; it closes it before it
//! claims by itself. What was handed over it takes into its books when the first report of it comes, or when it wakes.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;

use super::delivery::{Attempt, Delivery};
use super::dispatch;
use super::pool::Work;
use crate::core::Core;
use crate::error::Error;
use crate::handler::Cancellation;
use crate::outbox::claim::{Claim, LeaseId};
use crate::outbox::insert::{Content, Inserted, Lease, PreparedEvent};
use crate::outbox::settle;
use crate::registry::Consumers;
use crate::settings::Settings;

/// A worker that sleeps looks at what was handed over once a second, and renews leases at a third of their time: shorter
/// ones would run out unseen.
const LEASE_LEAST: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(crate) struct Handoff {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None`: the worker claims by itself, or there is none.
    open: Option<Open>,
    /// Events of publishers that are just committing.
    reserved: usize,
    /// Handed over, and not yet in the worker's books.
    handed: Vec<Handed>,
    /// Leases of events of which nobody knows whether they were committed.
    unsure: Vec<LeaseId>,
}

/// What a sleeping worker takes.
pub(crate) struct Open {
    /// For so many events.
    pub(crate) slots: usize,
    /// Nothing is in flight: transactional handlers share commits, which those that come one by one would not.
    pub(crate) is_idle: bool,
    pub(crate) settings: Arc<Settings>,
    pub(crate) work: Sender<Work>,
    pub(crate) stopping: Arc<AtomicBool>,
}

pub(crate) type Handed = (Claim, Arc<Cancellation>);

impl Handoff {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker goes to sleep. `open` counts its slots as if nothing were on its way.
    pub(crate) fn open(&self, open: Open) {
        let mut state = self.state();
        let taken = state.reserved + state.handed.len();
        let slots = open.slots.saturating_sub(taken);
        let long_enough = Duration::from_millis(open.settings.processing_lease_ms) >= LEASE_LEAST;
        state.open =
            (slots > 0 && long_enough).then_some(Open { slots, is_idle: open.is_idle && taken == 0, ..open });
    }

    /// Nothing is handed over from here on. How many events are still being committed by publishers who may yet.
    pub(crate) fn close(&self) -> usize {
        let mut state = self.state();
        state.open = None;
        state.reserved
    }

    /// Take results first: whatever they are of was handed over before.
    pub(crate) fn take_handed(&self) -> Vec<Handed> {
        std::mem::take(&mut self.state().handed)
    }

    pub(crate) fn take_unsure(&self) -> Vec<LeaseId> {
        std::mem::take(&mut self.state().unsure)
    }

    /// Room for these events, if the worker sleeps and has some: they are to be inserted as claimed.
    pub(crate) fn reserve<'c>(&self, core: &'c Core, events: &Arc<[PreparedEvent]>) -> Option<Reserved<'c>> {
        let consumers = {
            let state = self.state();
            let open = state.open.as_ref().filter(|open| open.slots >= events.len())?;
            let is_idle = open.is_idle;
            drop(state);
            consumers_of(core, events, is_idle)?
        };
        if !core.settings().allow_processing(true) {
            return None;
        }
        let mut state = self.state();
        let open = state.open.as_mut().filter(|open| open.slots >= events.len())?;
        open.slots -= events.len();
        open.is_idle = false;
        let lease = Lease { id: core.leases.next(), length_ms: open.settings.processing_lease_ms };
        state.reserved += events.len();
        Some(Reserved { core, events: Arc::clone(events), consumers, lease })
    }
}

/// Whom each event goes to. `None`: one of them is not for the hand-off.
fn consumers_of(core: &Core, events: &[PreparedEvent], is_idle: bool) -> Option<Vec<Consumers>> {
    events
        .iter()
        .map(|event| {
            let consumers = core.registry.consumers_of(event.name());
            let fits = consumers.first().is_some_and(|first| is_idle || !first.is_transactional());
            (event.is_due_at_once() && fits).then_some(consumers)
        })
        .collect()
}

/// Room with the worker for events that are being committed. Dropping it gives the room back.
pub(crate) struct Reserved<'c> {
    core: &'c Core,
    events: Arc<[PreparedEvent]>,
    consumers: Vec<Consumers>,
    lease: Lease,
}

impl Reserved<'_> {
    pub(crate) fn lease(&self) -> Lease {
        self.lease
    }

    /// After the commit. `content` is that of the first event, where it is at hand.
    pub(crate) fn hand_over(self, inserted: &[Inserted], mut content: Option<Content>) {
        let core = self.core;
        let mut state = core.handoff.state();
        let Some(open) = &state.open else {
            drop(state);
            return self.give_back();
        };
        let deliveries: Vec<Delivery> = inserted
            .iter()
            .zip(self.events.iter().zip(&self.consumers))
            .filter_map(|(inserted, (event, consumers))| {
                let Inserted { id, seq, at } = *inserted;
                // One that its key had published already is none of ours.
                let claim = Claim { seq: seq?, lease: self.lease.id, id };
                let (event, unparsed) = event.to_event(at, content.take());
                let stopping = Arc::clone(&open.stopping);
                Some(Delivery {
                    claim,
                    event,
                    unparsed,
                    consumers: Arc::clone(consumers),
                    failures_before: Vec::new(),
                    is_fresh: true,
                    next: 0,
                    attempt: Attempt::default(),
                    marks: Vec::new(),
                    cancellation: Arc::new(Cancellation { stopping, lost: AtomicBool::new(false) }),
                    refused: Vec::new(),
                })
            })
            .collect();
        core.in_flight().extend(deliveries.iter().map(|delivery| (delivery.claim.seq, delivery.claim.lease)));
        let handed: Vec<Handed> =
            deliveries.iter().map(|delivery| (delivery.claim, Arc::clone(&delivery.cancellation))).collect();
        let (settings, work) = (Arc::clone(&open.settings), open.work.clone());
        // In the books before a thread can have it, and all under the lock under which the worker closes.
        state.handed.extend(handed);
        for unit in dispatch::group(deliveries, core.handler_threads == 1) {
            let _: Result<(), _> = work.send((Arc::clone(&settings), unit)); // the pool lives for as long as it is open
        }
    }

    /// The worker has woken up meanwhile: the events are its to claim.
    fn give_back(self) {
        let core = self.core;
        let lease = self.lease.id;
        drop(self);
        let given_back =
            core.db.write("publish", |conn| settle::give_back_lease(conn, lease, core.clock.now()).map(drop));
        if let Err(error) = given_back {
            log::warn!(target: "postbox::worker", "published events wait for a lease to run out before they are delivered: {error}");
        }
        core.bell.ring();
    }

    /// The commit failed. Where nobody knows whether it did, the worker gives back whatever is there.
    pub(crate) fn failed(self, error: &Error) {
        if matches!(error, Error::CommitUnknown(_)) {
            self.core.handoff.state().unsure.push(self.lease.id);
        }
        let core = self.core;
        drop(self);
        core.bell.ring();
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.core.handoff.state();
        state.reserved -= self.events.len();
    }
}
