//! From `publish` straight to a handler: while the worker has nothing else to do, a publisher inserts its events already
//! claimed, and hands them to the pool once they are committed. The worker need not wake up first.
//!
//! The worker opens the hand-off when it goes to sleep and says how many events it has room for; before it claims by itself it
//! closes it for those who have no room reserved yet. What was handed over it takes into its books when the first report of it
//! comes, or when it wakes. When it stops, what is still being committed is given back.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::delivery::{Attempt, Delivery};
use super::dispatch;
use super::pool::Work;
use super::under_way::UnderWay;
use crate::clock;
use crate::core::Core;
use crate::crash::CrashPoint;
use crate::error::Error;
use crate::outbox::claim::{Claim, LeaseId};
use crate::outbox::insert::{Content, Inserted, Lease, PreparedEvent};
use crate::outbox::settle;
use crate::registry::Consumers;
use crate::settings::Settings;
use crate::sync::atomic::AtomicBool;
use crate::sync::channel::Sender;
use crate::sync::{Mutex, MutexGuard};

/// A worker that sleeps looks at what was handed over once a second, and renews leases at a third of their time: shorter
/// ones would run out unseen.
const LEASE_LEAST: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(crate) struct Handoff {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None`: there is no worker.
    taker: Option<Taker>,
    /// Room for so many events; none while the worker claims by itself.
    slots: usize,
    /// Nothing is in flight: transactional handlers share commits, which those that come one by one would not.
    is_idle: bool,
    /// Leases of publishers that are just committing, and for how many events.
    reserved: Vec<(LeaseId, usize)>,
    /// Handed over, and not yet in the worker's books.
    handed: Vec<Handed>,
    /// Leases of which nobody knows whether anything was committed under them; nobody works on it.
    unsure: Vec<LeaseId>,
}

/// Who takes what is handed over.
#[derive(Clone)]
pub(crate) struct Taker {
    pub(crate) settings: Arc<Settings>,
    pub(crate) work: Sender<Work>,
    pub(crate) stopping: Arc<AtomicBool>,
}

/// A claim for the worker's books.
pub(crate) struct Handed {
    pub(crate) claim: Claim,
    pub(crate) under_way: Arc<UnderWay>,
    /// Its length, which the settings may have changed since.
    pub(crate) lease: Duration,
    pub(crate) runs_out_at: i64,
}

impl State {
    fn reserved(&self) -> usize {
        self.reserved.iter().map(|(_, events)| events).sum()
    }
}

impl Handoff {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker goes to sleep with `room` for so many events, as if nothing were on its way.
    pub(crate) fn open(&self, taker: Taker, room: usize, is_idle: bool) {
        let mut state = self.state();
        let on_their_way = state.reserved() + state.handed.len();
        let long_enough = Duration::from_millis(taker.settings.processing_lease_ms) >= LEASE_LEAST;
        state.slots = if long_enough { room.saturating_sub(on_their_way) } else { 0 };
        state.is_idle = is_idle && on_their_way == 0;
        state.taker = Some(taker);
    }

    /// The worker claims by itself. How many events may still be handed over: those that publishers are just committing.
    pub(crate) fn close(&self) -> usize {
        let mut state = self.state();
        state.slots = 0;
        state.reserved()
    }

    /// The worker stops: nothing is handed over from here on.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.slots = 0;
        state.taker = None;
    }

    /// Take results first: whatever they are of was handed over before.
    pub(crate) fn take_handed(&self) -> Vec<Handed> {
        std::mem::take(&mut self.state().handed)
    }

    pub(crate) fn put_unsure_back(&self, leases: Vec<LeaseId>) {
        self.state().unsure.extend(leases);
    }

    pub(crate) fn is_any_unsure(&self) -> bool {
        !self.state().unsure.is_empty()
    }

    pub(crate) fn take_unsure(&self) -> Vec<LeaseId> {
        std::mem::take(&mut self.state().unsure)
    }

    /// When the box closes and nobody commits any more: the leases under which rows may have been left.
    pub(crate) fn left_over(&self) -> Vec<LeaseId> {
        let mut state = self.state();
        let mut left = std::mem::take(&mut state.unsure);
        left.extend(state.reserved.iter().map(|(lease, _)| *lease));
        left
    }

    /// Room for these events, if the worker sleeps and has some: they are to be inserted as claimed.
    pub(crate) fn reserve<'c>(&self, core: &'c Core, events: &Arc<[PreparedEvent]>) -> Option<Reserved<'c>> {
        let is_idle = {
            let state = self.state();
            if state.slots < events.len() {
                return None;
            }
            state.is_idle
        };
        let generation = core.registry.generation();
        let consumers = consumers_of(core, events, is_idle)?;
        if !core.settings().allow_processing(true) {
            return None;
        }
        let mut state = self.state();
        if state.slots < events.len() {
            return None;
        }
        let length_ms = state.taker.as_ref()?.settings.processing_lease_ms;
        let lease = Lease { id: core.leases.next(), length_ms };
        state.slots -= events.len();
        state.is_idle = false;
        state.reserved.push((lease.id, events.len()));
        Some(Reserved { core, events: Arc::clone(events), consumers, generation, lease, is_over: false })
    }
}

/// Whom each event goes to. `None`: one of them is not for the hand-off.
fn consumers_of(core: &Core, events: &[PreparedEvent], is_idle: bool) -> Option<Vec<Consumers>> {
    events
        .iter()
        .map(|event| {
            let consumers = core.registry.consumers_of(event.name());
            let fits = consumers.first().is_some_and(|first| is_idle || !first.is_transactional())
                && !is_paused(core, event.name(), &consumers)
                && consumers.iter().all(|of| {
                    of.order.is_none() && of.limiter.is_none() && !of.is_too_old_for(event.version())
                });
            (event.is_due_at_once() && fits).then_some(consumers)
        })
        .collect()
}

/// Whether a part of it would have to wait: the worker sees to that.
fn is_paused(core: &Core, event_name: &str, consumers: &Consumers) -> bool {
    let pauses = &core.pauses;
    !pauses.is_quiet()
        && (pauses.is_event_name_paused(core, event_name)
            || consumers.iter().any(|of| pauses.is_consumer_paused(core, &of.consumer_name)))
}

/// Room with the worker for events that are being committed. Dropping it gives the room back.
pub(crate) struct Reserved<'c> {
    core: &'c Core,
    events: Arc<[PreparedEvent]>,
    consumers: Vec<Consumers>,
    /// Of the registry, when the consumers were looked up.
    generation: u64,
    lease: Lease,
    /// It is known what became of the events.
    is_over: bool,
}

impl Reserved<'_> {
    pub(crate) fn lease(&self) -> Lease {
        self.lease
    }

    /// After the commit. `content` is that of the first event, where it is at hand.
    pub(crate) fn hand_over(mut self, inserted: &[Inserted], mut content: Option<Content>) {
        let core = self.core;
        core.db.crash().at(CrashPoint::AfterClaim);
        // All of this may have changed while the commit waited for its turn.
        if !core.settings().allow_processing(true) {
            return self.give_back();
        }
        if self.generation != core.registry.generation() || !core.pauses.is_quiet() {
            match consumers_of(core, &self.events, true) {
                Some(consumers) => self.consumers = consumers,
                None => return self.give_back(),
            }
        }
        let mut state = core.handoff.state();
        let Some(taker) = state.taker.clone() else {
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
                let stopping = Arc::clone(&taker.stopping);
                Some(Delivery {
                    claim,
                    event,
                    unparsed,
                    consumers: Arc::clone(consumers),
                    permits: Vec::new(),
                    failures_before: Vec::new(),
                    is_fresh: true,
                    next: 0,
                    attempt: Attempt::default(),
                    marks: Vec::new(),
                    under_way: UnderWay::new(stopping),
                    refused: Vec::new(),
                    damage_met: 0,
                })
            })
            .collect();
        core.in_flight().extend(deliveries.iter().map(|delivery| (delivery.claim.seq, delivery.claim.lease)));
        let lease = Duration::from_millis(self.lease.length_ms);
        let handed =
            deliveries.iter().zip(inserted.iter().map(|inserted| inserted.at)).map(|(delivery, at)| {
                let (claim, under_way) = (delivery.claim, Arc::clone(&delivery.under_way));
                Handed { claim, under_way, lease, runs_out_at: clock::add(at, lease) }
            });
        // In the books before a thread can have it, and all under the lock under which the worker stops.
        state.handed.extend(handed);
        self.is_over = true;
        for unit in dispatch::group(deliveries, core.handler_threads == 1) {
            // The pool lives for as long as there is a taker.
            let _: Result<(), _> = taker.work.send((Arc::clone(&taker.settings), unit));
        }
    }

    /// The worker has stopped meanwhile: the events are anybody's to claim.
    fn give_back(mut self) {
        let core = self.core;
        let lease = self.lease.id;
        let given_back =
            core.db.write("publish", |conn| settle::give_back_lease(conn, lease, core.clock.now()).map(drop));
        self.is_over = given_back.is_ok();
        if let Err(error) = given_back
            && !matches!(error, Error::Closed { .. })
        {
            log::warn!(target: "postbox::worker", "published events wait for a worker, or for a lease to run out: {error}");
        }
        drop(self);
        core.bell.ring();
    }

    /// The commit failed: nothing is there, or nobody knows.
    pub(crate) fn failed(mut self, error: &Error) {
        self.is_over = !matches!(error, Error::CommitUnknown(_));
        let core = self.core;
        drop(self);
        core.bell.ring();
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.core.handoff.state();
        if !self.is_over {
            // The next worker gives back whatever is there, or the box as it closes. Noted while it is still reserved.
            state.unsure.push(self.lease.id);
        }
        state.reserved.retain(|(lease, _)| *lease != self.lease.id);
    }
}
