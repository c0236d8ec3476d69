//! The end of the worker's loop.

use std::sync::PoisonError;
use std::time::Instant;

use super::{FAULT_PAUSE, LOOK_EVERY, Run};
use crate::outbox::claim::Suspects;
use crate::worker::delivery::Report;
use crate::worker::dispatch::Unit;
use crate::worker::turn::Turn;

impl Run {
    /// Gives back what was not begun, waits for what runs, settles. How many events stay unfinished.
    pub(super) fn wind_down(&mut self) -> usize {
        let deadline = *self.signals.control.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = deadline.unwrap_or_else(Instant::now);
        self.core().handoff.end();
        self.take_handed();
        for unit in self.pool.take_back() {
            let not_begun = match unit {
                Unit::One(delivery) => vec![*delivery],
                Unit::Together(deliveries) => deliveries,
            };
            for delivery in not_begun {
                if delivery.is_begun() {
                    // Half of it is done: it goes on, within the limit.
                    self.pool.hand_out(&self.settings, Unit::One(Box::new(delivery)));
                } else {
                    self.take(Report::GivenBack { claim: delivery.claim, fault: None });
                }
            }
        }
        loop {
            self.take_reports();
            let settled = self.settle_last();
            let now = Instant::now();
            let are_all_back = self.in_flight.is_empty() && !self.in_flight.is_any_late();
            if (are_all_back && settled) || now >= deadline || self.core().db.crash().is_dead() {
                return self.in_flight.len()
                    + self.reports.iter().filter(|report| report.ends().is_some()).count();
            }
            let renewal = self.in_flight.renewal_due().unwrap_or(deadline).max(now);
            let mut until = deadline.min(if settled { renewal } else { now + FAULT_PAUSE });
            if let Some(end) = self.in_flight.next_end() {
                until = until.min(now + self.left_until(end).min(LOOK_EVERY));
            }
            if let Ok(report) = self.pool.reports().recv_deadline(until) {
                self.take(report);
            }
        }
    }

    /// True when nothing is left to be recorded.
    fn settle_last(&mut self) -> bool {
        self.end_overdue();
        let now = self.postbox.core().clock.now();
        let renew = self.in_flight.renewals(&self.settings, now);
        self.take_what_others_left();
        if self.reports.is_empty() && renew.is_empty() && self.unsure.is_empty() {
            return true;
        }
        let turn = Turn {
            settings: &self.settings,
            reports: &mut self.reports,
            renew: &renew,
            give_back: &self.unsure,
            claim_max: 0,
            release_held: false,
            pauses: true,
            stopping: &self.signals.control.stopping,
            by_worker: true,
            left_alone: &self.left_alone,
            suspects: Suspects::NotYet,
        };
        match turn.run(self.postbox.core()) {
            Ok(outcome) => {
                self.unsure.clear();
                if !renew.is_empty() {
                    self.in_flight.renewed(&renew, &outcome.lost, &self.settings, now);
                }
                self.reports.is_empty()
            }
            Err(error) => {
                log::warn!(target: "postbox::worker", "the last outcomes cannot be recorded yet: {error}");
                false
            }
        }
    }
}
