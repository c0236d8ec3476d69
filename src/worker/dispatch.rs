//! Runs a delivery's handlers, on whichever thread it was handed to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::batch;
use super::delivery::{Delivery, Report};
use super::scope::HandlerScope;
use super::telling;
use super::under_way::Timed;
use crate::core::Core;
use crate::crash::CrashPoint;
use crate::handler::{Context, HandlerError, HandlerResult, Signal, panic_message};
use crate::outbox::claim::Claim;
use crate::pause_book::Asked;
use crate::postbox::Postbox;
use crate::settings::Settings;
use crate::span;
use crate::subscription::{Kind, Subscription};

/// What one thread takes at a time.
pub(crate) enum Unit {
    /// Its next consumer is plain.
    One(Box<Delivery>),
    /// Their next consumers are transactional, so that they may share commits.
    Together(Vec<Delivery>),
}

impl Unit {
    pub(crate) fn claims(&self) -> Vec<Claim> {
        match self {
            Unit::One(delivery) => vec![delivery.claim],
            Unit::Together(deliveries) => deliveries.iter().map(|delivery| delivery.claim).collect(),
        }
    }
}

/// Groups deliveries into units. In order of `seq`: neighbours alone are put together, and what goes on to a plain consumer
/// is the last among them, so that it is over before later events begin; or else all that can be.
pub(crate) fn group(deliveries: Vec<Delivery>, keep_order: bool) -> Vec<Unit> {
    let mut units = Vec::with_capacity(deliveries.len());
    let mut together: Option<usize> = None;
    for delivery in deliveries {
        let ends_group = keep_order && delivery.has_plain_ahead();
        if !delivery.next_is_transactional() {
            units.push(Unit::One(Box::new(delivery)));
        } else if let Some(Unit::Together(group)) = together.and_then(|at| units.get_mut(at)) {
            group.push(delivery);
        } else {
            together = Some(units.len());
            units.push(Unit::Together(vec![delivery]));
        }
        if ends_group {
            together = None;
        }
    }
    units
}

/// Runs a unit; every event in it is reported once as over, or once as going on elsewhere. `slot` is the thread's, for
/// noting what it has begun.
pub(crate) fn run(
    postbox: &Postbox,
    settings: &Settings,
    unit: Unit,
    slot: u64,
    report: &mut dyn FnMut(Report),
) {
    let mut is_ready = |delivery: &mut Delivery| match delivery.make_ready() {
        // The worker stops: nothing new is begun.
        Ok(()) if delivery.is_stopping() && !delivery.is_begun() => {
            report(Report::GivenBack { claim: delivery.claim, fault: None });
            false
        }
        Ok(()) => true,
        Err(error) => {
            report(Report::Broken { claim: delivery.claim, error });
            false
        }
    };
    match unit {
        Unit::One(mut delivery) => {
            if is_ready(&mut delivery) {
                run_one(postbox, settings, delivery, slot, report);
            }
        }
        Unit::Together(mut deliveries) => {
            deliveries.retain_mut(is_ready);
            batch::run(postbox, settings, deliveries, slot, report);
        }
    }
}

/// Runs plain consumers until none is left, or a transactional one comes.
fn run_one(
    postbox: &Postbox,
    settings: &Settings,
    mut delivery: Box<Delivery>,
    slot: u64,
    report: &mut dyn FnMut(Report),
) {
    let claim = delivery.claim;
    postbox.core().note_begun(slot, claim);
    while let Some(subscription) = delivery.next_consumer().cloned() {
        if delivery.is_lost() {
            return report(Report::Lost { claim });
        }
        let Kind::Plain(handler) = &subscription.handler else {
            return batch::run(postbox, settings, vec![*delivery], slot, report);
        };
        if postbox.core().pauses.is_consumer_paused(postbox.core(), &subscription.consumer_name) {
            delivery.attempt.paused.push(subscription.consumer_name.clone());
            delivery.next += 1;
            continue;
        }
        let crash = postbox.core().db.crash();
        crash.at(CrashPoint::BeforeHandler);
        delivery.begin(&subscription, &postbox.core().clock);
        telling::started(postbox.core(), &delivery.event, &subscription.consumer_name);
        let begun = Instant::now();
        if let Some(timed) = Timed::of(&mut delivery, begun) {
            delivery.under_way.begin(timed);
        }
        let handle = || {
            let _inside = HandlerScope::enter(postbox.core());
            let context = Context {
                postbox,
                event: &delivery.event,
                consumer_name: &subscription.consumer_name,
                signal: Signal::of(&delivery.under_way.cancellation, subscription.until(begun)),
            };
            handler.handle(&delivery.event, &context)
        };
        let result = span::deliver(&delivery.event, &subscription.consumer_name, || caught(handle));
        let duration = begun.elapsed();
        crash.at(CrashPoint::AfterHandler);
        if subscription.time_limit.is_some() {
            let Some(Timed { permits_behind, .. }) = delivery.under_way.end() else {
                // The worker has said that it ran too long, and what that comes to. Its room is free before the worker looks.
                delivery.permits.clear();
                return report(Report::Lost { claim });
            };
            delivery.permits.extend(permits_behind);
        }
        note_result(postbox.core(), &subscription, &result);
        let place = delivery.next;
        delivery.permits.retain(|permit| !permit.is_of(&subscription));
        let mark = {
            let before = delivery.failures_before(place);
            delivery.attempt.note(&subscription, before, result, Some(duration), settings)
        };
        delivery.next += 1;
        let Some(mark) = mark else { continue };
        let consumer = &subscription.consumer_name;
        telling::outcome(postbox.core(), &delivery.event, consumer, &mark, Some(duration));
        if delivery.next < delivery.consumers.len() && !delivery.has_transactional_ahead() {
            // Written at once: its neighbours may be slow, and it must not run again for their sake.
            delivery.is_fresh = false;
            report(Report::Marked { claim, consumer: subscription.consumer_name.clone(), mark });
        } else {
            delivery.marks.push((place, mark));
        }
    }
    report(delivery.finish());
}

/// Before the outcome is reported, so that whoever settles it has written the pause that it asks for.
pub(super) fn note_result(core: &Core, subscription: &Subscription, result: &HandlerResult) {
    let in_a_row = subscription.breaker.as_ref().map_or(0, |breaker| breaker.note(result));
    if let Some(asked) = Asked::by(subscription, result, in_a_row, &core.clock) {
        core.pauses.ask(asked);
    }
}

/// A panic is a failed attempt like any other.
pub(crate) fn caught(handle: impl FnOnce() -> HandlerResult) -> HandlerResult {
    catch_unwind(AssertUnwindSafe(handle))
        .unwrap_or_else(|panic| Err(HandlerError::retry(panic_message(panic))))
}
