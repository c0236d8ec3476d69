//! Handlers that go on past their time limit: nobody waits for them for ever.

use std::time::Duration;

use super::Run;
use crate::core::Core;
use crate::handler::HandlerError;
use crate::outbox::claim::Claim;
use crate::settings::Settings;
use crate::worker::delivery::Report;
use crate::worker::dispatch::note_result;
use crate::worker::telling::{self, About};
use crate::worker::under_way::Timed;

impl Run {
    /// The attempts of those whose lease has run out have failed: their events go on without them, by other threads.
    pub(super) fn end_overdue(&mut self) {
        let overdue = self.in_flight.give_up_overdue(self.core().clock.now());
        if overdue.is_empty() {
            return;
        }
        // Their threads have said before what came of the consumers before: that is recorded first.
        self.take_reports();
        for (claim, timed) in overdue {
            let mut report = fail(self.core(), claim, timed, &self.settings);
            self.note_handlers(&mut report);
            self.reports.push(report);
        }
        self.expect_work = true; // slots are free, and retries may be due at once
    }
}

/// Consumers that have not had their turn have it in the next attempt, and are not to blame.
fn fail(core: &Core, claim: Claim, timed: Timed, settings: &Settings) -> Report {
    let Timed { consumers, place, failures_before, mut attempt, mut marks, .. } = timed;
    let subscription = &consumers[place];
    let (consumer, limit) = (&subscription.consumer_name, shown(timed.limit));
    log::warn!(
        target: "postbox::delivery",
        "the handler of `{consumer}` runs past its time limit of {limit} and has lost its lease: its attempt at event {} has failed", claim.id
    );
    let duration = Some(timed.begun.elapsed());
    let late = Err(HandlerError::retry(format!("ran longer than its time limit of {limit}")));
    note_result(core, subscription, &late);
    if let Some(mark) = attempt.note(subscription, failures_before, late, duration, settings) {
        let about = About { event_id: claim.id, event_name: &timed.event_name, attempt: timed.event_attempt };
        telling::outcome(core, about, consumer, &mark, duration);
        marks.push((place, mark));
    }
    attempt.is_cut = place + 1 < consumers.len();
    Report::Finished { claim, consumers, marks, attempt }
}

/// `5 s`, `1.5 s`, `250 ms`.
fn shown(limit: Duration) -> String {
    let mut text = format!("{limit:?}");
    if let Some(unit) = text.find(|c: char| !c.is_ascii_digit() && c != '.') {
        text.insert(unit, ' ');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_shown_with_its_unit() {
        for (micros, expected) in
            [(5_000_000, "5 s"), (1_500_000, "1.5 s"), (250_000, "250 ms"), (1_500, "1.5 ms")]
        {
            assert_eq!(shown(Duration::from_micros(micros)), expected);
        }
    }
}
