//! What a worker has claimed and not got back, and when its leases are to be renewed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::delivery::Delivery;
use super::handoff::Handed;
use crate::clock;
use crate::handler::Cancellation;
use crate::outbox::claim::Claim;
use crate::settings::Settings;
use crate::sync::atomic::Ordering;

pub(crate) struct InFlight {
    claims: HashMap<i64, (Claim, Arc<Cancellation>)>,
    next_renewal: Instant,
    /// When the next lease runs out by the box's time, which may jump.
    runs_out_at: i64,
}

impl InFlight {
    pub(crate) fn new() -> Self {
        InFlight { claims: HashMap::new(), next_renewal: Instant::now(), runs_out_at: i64::MAX }
    }

    pub(crate) fn len(&self) -> usize {
        self.claims.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    pub(crate) fn contains(&self, seq: i64) -> bool {
        self.claims.contains_key(&seq)
    }

    pub(crate) fn seqs(&self) -> impl Iterator<Item = i64> {
        self.claims.keys().copied()
    }

    /// `now` is the box's time.
    pub(crate) fn add(&mut self, deliveries: &[Delivery], settings: &Settings, now: i64) {
        let lease = Duration::from_millis(settings.processing_lease_ms);
        for delivery in deliveries {
            let (claim, cancellation) = (delivery.claim, Arc::clone(&delivery.cancellation));
            self.add_one(Handed { claim, cancellation, lease, runs_out_at: clock::add(now, lease) });
        }
    }

    pub(crate) fn add_one(&mut self, handed: Handed) {
        let Handed { claim, cancellation, lease, runs_out_at } = handed;
        let renewal = Instant::now() + lease / 3;
        if self.claims.is_empty() {
            (self.runs_out_at, self.next_renewal) = (runs_out_at, renewal);
        } else {
            // Sooner, where an operator has made leases shorter.
            self.runs_out_at = self.runs_out_at.min(runs_out_at);
            self.next_renewal = self.next_renewal.min(renewal);
        }
        self.claims.insert(claim.seq, (claim, cancellation));
    }

    pub(crate) fn remove(&mut self, claim: Claim) {
        // A report of an earlier claim says nothing about a later one of the same row.
        if self.claims.get(&claim.seq).is_some_and(|(held, _)| *held == claim) {
            self.claims.remove(&claim.seq);
        }
    }

    /// Tells all handlers that nobody waits for them any more: nothing further is begun.
    pub(crate) fn give_up(&self) {
        for (_, cancellation) in self.claims.values() {
            cancellation.lost.store(true, Ordering::Relaxed);
        }
    }

    /// When the leases are to be renewed; `None` where there are none.
    pub(crate) fn renewal_due(&self) -> Option<Instant> {
        (!self.claims.is_empty()).then_some(self.next_renewal)
    }

    /// The claims, if it is time to renew their leases: at a third of a lease, or at once when the clock has jumped past it.
    pub(crate) fn to_renew(&self, now: i64) -> Vec<Claim> {
        if now >= self.runs_out_at || self.renewal_due().is_some_and(|due| due <= Instant::now()) {
            self.claims.values().map(|(claim, _)| *claim).collect()
        } else {
            Vec::new()
        }
    }

    /// After [`to_renew`](Self::to_renew): `lost` were somebody else's by then, and their handlers are told.
    pub(crate) fn renewed(&mut self, lost: &[Claim], settings: &Settings, now: i64) {
        self.next_renewal = next_renewal(settings);
        self.runs_out_at = clock::add(now, Duration::from_millis(settings.processing_lease_ms));
        for claim in lost {
            if let Some((_, cancellation)) = self.claims.get(&claim.seq).filter(|(held, _)| held == claim) {
                cancellation.lost.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn next_renewal(settings: &Settings) -> Instant {
    Instant::now() + Duration::from_millis(settings.processing_lease_ms / 3)
}
