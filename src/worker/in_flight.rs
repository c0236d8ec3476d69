//! What a worker has claimed and not got back, and when its leases are to be renewed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::delivery::Delivery;
use super::handoff::Handed;
use super::under_way::{Timed, UnderWay};
use crate::clock;
use crate::outbox::claim::Claim;
use crate::seq_map::SeqMap;
use crate::settings::Settings;

pub(crate) struct InFlight {
    claims: SeqMap<Held>,
    /// Given up since their handlers go on past their time limit, and not heard of since: those still have their threads.
    late: HashSet<Claim>,
    next_renewal: Instant,
    /// When the next lease runs out by the box's time, which may jump.
    runs_out_at: i64,
    /// Some leases were not renewed when it was time to.
    are_some_left: bool,
}

struct Held {
    claim: Claim,
    under_way: Arc<UnderWay>,
    /// By the box's time.
    runs_out_at: i64,
}

impl InFlight {
    pub(crate) fn new() -> Self {
        InFlight {
            claims: SeqMap::default(),
            late: HashSet::new(),
            next_renewal: Instant::now(),
            runs_out_at: i64::MAX,
            are_some_left: false,
        }
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

    /// Whether handlers still run that were given up.
    pub(crate) fn is_any_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// `now` is the box's time.
    pub(crate) fn add(&mut self, deliveries: &[Delivery], settings: &Settings, now: i64) {
        let lease = Duration::from_millis(settings.processing_lease_ms);
        for delivery in deliveries {
            let (claim, under_way) = (delivery.claim, Arc::clone(&delivery.under_way));
            self.add_one(Handed { claim, under_way, lease, runs_out_at: clock::add(now, lease) });
        }
    }

    pub(crate) fn add_one(&mut self, handed: Handed) {
        let Handed { claim, under_way, lease, runs_out_at } = handed;
        let renewal = Instant::now() + lease / 3;
        if self.claims.is_empty() {
            (self.runs_out_at, self.next_renewal) = (runs_out_at, renewal);
        } else {
            // Sooner, where an operator has made leases shorter.
            self.runs_out_at = self.runs_out_at.min(runs_out_at);
            self.next_renewal = self.next_renewal.min(renewal);
        }
        self.claims.insert(claim.seq, Held { claim, under_way, runs_out_at });
    }

    pub(crate) fn remove(&mut self, claim: Claim) {
        if !self.late.is_empty() {
            self.late.remove(&claim);
        }
        // A report of an earlier claim says nothing about a later one of the same row.
        if self.claims.get(&claim.seq).is_some_and(|held| held.claim == claim) {
            self.claims.remove(&claim.seq);
        }
    }

    /// Tells all handlers that nobody waits for them any more: nothing further is begun.
    pub(crate) fn give_up(&self) {
        self.claims.values().for_each(|held| held.under_way.lose());
    }

    /// Gives up those whose lease has run out and whose handler goes on past its time limit.
    pub(crate) fn give_up_overdue(&mut self, now: i64) -> Vec<(Claim, Timed)> {
        if now < self.runs_out_at {
            return Vec::new();
        }
        let run_out = self.claims.values().filter(|held| held.runs_out_at <= now);
        let overdue: Vec<_> =
            run_out.filter_map(|held| Some((held.claim, held.under_way.give_up_overdue()?))).collect();
        for (claim, _) in &overdue {
            self.claims.remove(&claim.seq);
            self.late.insert(*claim);
        }
        self.note_next_end();
        overdue
    }

    /// When the leases are to be renewed; `None` where there are none.
    pub(crate) fn renewal_due(&self) -> Option<Instant> {
        (!self.claims.is_empty()).then_some(self.next_renewal)
    }

    /// When the next lease runs out by the box's time, if it may not be renewed before.
    pub(crate) fn next_end(&self) -> Option<i64> {
        (self.are_some_left && !self.claims.is_empty()).then_some(self.runs_out_at)
    }

    /// The claims, if it is time to renew their leases: at a third of a lease, or at once when the clock has jumped past it.
    /// Not of those whose handler goes on past its time limit.
    pub(crate) fn renewals(&mut self, settings: &Settings, now: i64) -> Vec<Claim> {
        if now < self.runs_out_at && self.renewal_due().is_none_or(|due| due > Instant::now()) {
            return Vec::new();
        }
        let renew: Vec<_> =
            self.claims.values().filter(|held| !held.under_way.is_overdue()).map(|held| held.claim).collect();
        self.are_some_left = renew.len() < self.claims.len();
        if renew.is_empty() {
            self.next_renewal = next_renewal(settings);
        }
        renew
    }

    /// After [`renewals`](Self::renewals): `lost` were somebody else's by then, and their handlers are told.
    pub(crate) fn renewed(&mut self, renewed: &[Claim], lost: &[Claim], settings: &Settings, now: i64) {
        let runs_out_at = clock::add(now, Duration::from_millis(settings.processing_lease_ms));
        for claim in renewed {
            if let Some(held) = self.held(*claim) {
                held.runs_out_at = runs_out_at;
            }
        }
        for claim in lost {
            if let Some(held) = self.held(*claim) {
                held.under_way.lose();
            }
        }
        self.next_renewal = next_renewal(settings);
        self.note_next_end();
    }

    fn held(&mut self, claim: Claim) -> Option<&mut Held> {
        self.claims.get_mut(&claim.seq).filter(|held| held.claim == claim)
    }

    fn note_next_end(&mut self) {
        self.runs_out_at = self.claims.values().map(|held| held.runs_out_at).min().unwrap_or(i64::MAX);
    }
}

fn next_renewal(settings: &Settings) -> Instant {
    Instant::now() + Duration::from_millis(settings.processing_lease_ms / 3)
}
