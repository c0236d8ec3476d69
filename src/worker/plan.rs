//! From a claimed row to a delivery: who is to receive it, and who is done with it.

use std::cell::Cell;
use std::sync::Arc;

use rusqlite::Connection;

use super::delivery::{Attempt, Delivery};
use super::settling::record;
use super::under_way::UnderWay;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::event::{Event, EventId};
use crate::inbox::{self, Mark, Standing};
use crate::limiter::{Arrived, NoRoom, Permit};
use crate::ordering::{self, InHands, is_behind, release_first};
use crate::outbox::claim::{Claim, Claimed};
use crate::outbox::order::Aggregate;
use crate::outbox::settle::{self, Settlement, settle};
use crate::pauses::Pauses;
use crate::registry::Consumers;
use crate::settings::{Settings, UnhandledEvents};
use crate::subscription::Subscription;
use crate::sync::atomic::AtomicBool;

/// What becomes of a row that was just claimed.
pub(crate) enum Plan {
    Deliver(Box<Delivery>),
    /// It is settled at once: nobody has to see it.
    Settled {
        id: EventId,
        settlement: Settlement,
    },
}

/// What a turn plans by, inside the transaction that claimed the rows.
pub(crate) struct Planner<'a> {
    pub(crate) core: &'a Core,
    pub(crate) conn: &'a Connection,
    pub(crate) settings: &'a Settings,
    /// Those of the transaction.
    pub(crate) pauses: Pauses,
    pub(crate) in_hands: InHands,
    pub(crate) stopping: &'a Arc<AtomicBool>,
    pub(crate) now: i64,
    /// Events that waited for their turn are due now.
    pub(crate) has_released: Cell<bool>,
}

impl Planner<'_> {
    /// `may_have_standings`: there may be inbox rows of the event.
    pub(crate) fn plan(&self, row: Claimed, may_have_standings: bool) -> Result<Plan> {
        let Planner { core, conn, settings, pauses, now, .. } = self;
        let (conn, now, claim) = (*conn, *now, row.claim);
        let settle_now = |settlement: Settlement| {
            settle(conn, claim.seq, claim.lease, &settlement, now)?;
            if matches!(settlement, Settlement::DeadLetter { .. } | Settlement::Failed { .. }) {
                ordering::release_next(core, conn, claim.seq, now)?;
            }
            Ok(Plan::Settled { id: claim.id, settlement })
        };
        let poisoned = |error: String| {
            let error = crate::validate::error_text(&error);
            log::warn!(target: "postbox::delivery", "event {} (row {}) cannot be delivered to anybody: {error}", claim.id, claim.seq);
            settle_now(if settings.dead_letter_enabled {
                Settlement::DeadLetter { error }
            } else {
                Settlement::Failed { error }
            })
        };

        let Claimed { event, unparsed, .. } = row;
        let all = core.registry.consumers_of(&event.name);
        let (consumers, absent) = match wanted(&all, row.deliver_to.as_deref()) {
            Ok(wanted) => wanted,
            Err(error) => return poisoned(error),
        };
        let _arrived = Arrived { seq: claim.seq, consumers: all };
        let of_name = pauses.of_event_name(&event.name, now);
        if consumers.is_empty() {
            // What is replayed for one consumer waits for that one.
            let is_replayed = row.deliver_to.is_some();
            return settle_now(match of_name {
                Some(available_at) => Settlement::Parked { available_at },
                None if is_replayed => Settlement::Held,
                None => unhandled(core, &event.name, settings),
            });
        }
        let standings = if may_have_standings { inbox::standings(conn, claim.seq) } else { Ok(Vec::new()) };
        let standings = match standings {
            Ok(standings) => standings,
            // No code of SQLite's: a value in the row is not one of ours.
            Err(Error::Sqlite(error)) if error.sqlite_error_code().is_none() => {
                return poisoned(
                    "an inbox row of the event cannot be read: it was not written by postbox".to_owned(),
                );
            }
            Err(error) => return Err(error),
        };

        let is_fresh = standings.is_empty() && !row.taken_over;
        let mut open = if is_fresh {
            Open { consumers, ..Open::default() }
        } else {
            let lost = row.taken_over.then(|| lost_attempt(event.attempt));
            still_open(
                conn,
                claim,
                &consumers,
                &standings,
                lost.as_deref(),
                event.version,
                settings,
                pauses,
                now,
            )?
        };
        if let Some(available_at) = of_name {
            return settle_now(Settlement::Parked { available_at });
        }
        open.attempt.absent = absent;
        self.leave_newer(&mut open, &event);
        open.leave_paused(pauses, now);
        self.leave_waiting(&mut open, claim.seq, &event)?;
        let permits = open.leave_limited(claim.seq, now);
        let Open { consumers, failures_before, attempt } = open;
        if consumers.is_empty() && attempt.is_to_be_held() {
            // Those that are here are done: who is to be waited for is written, or they would let it go.
            settle::deliver_only_to(conn, claim.seq, claim.lease, &serde_json::to_string(&attempt.absent)?)?;
            return settle_now(Settlement::Held);
        }
        if consumers.is_empty() {
            let settlement = attempt.settlement(settings, now, Some(pauses));
            attempt.remember(claim.seq, &settlement);
            return settle_now(settlement);
        }
        let is_fresh = is_fresh && !attempt.is_to_wait();
        let stopping = Arc::clone(self.stopping);
        Ok(Plan::Deliver(Box::new(Delivery {
            claim,
            event,
            unparsed: Some(unparsed),
            consumers,
            permits,
            failures_before,
            is_fresh,
            next: 0,
            attempt,
            marks: Vec::new(),
            under_way: UnderWay::new(stopping),
            refused: Vec::new(),
            damage_met: 0,
        })))
    }

    /// Those that do not know its version have their turn in a later release.
    fn leave_newer(&self, open: &mut Open, event: &Event) {
        let is_too_old = |of: &Arc<Subscription>| of.is_too_old_for(event.version);
        let Some(first) = open.consumers.iter().find(|of| is_too_old(of)) else { return };
        let (name, version) = (&event.name, event.version);
        // No name contains NUL.
        if self.core.first_warning_of(&format!("{name}\0{version}")) {
            log::warn!(
                target: "postbox::delivery",
                "version {version} of `{name}` is newer than consumer {} knows: its events are held back for a later release", first.consumer_name
            );
        }
        open.leave(is_too_old);
        open.attempt.is_newer = true;
    }

    /// Those whose turn it is not have it later.
    fn leave_waiting(&self, open: &mut Open, seq: i64, event: &Event) -> Result<()> {
        if !open.consumers.iter().any(|of| of.order.is_some()) {
            return Ok(());
        }
        let aggregate = Aggregate::of(event);
        let mut behind = Vec::new();
        for consumer in open.consumers.iter().filter(|of| of.order.is_some()) {
            let registry = &self.core.registry;
            if is_behind(registry, self.conn, &aggregate, seq, consumer, &self.in_hands, self.now)? {
                behind.push(Arc::clone(consumer));
            }
        }
        let consumers = behind.iter().map(|of| &**of);
        if release_first(self.core, self.conn, &aggregate, seq, consumers, self.now)? {
            self.has_released.set(true);
        }
        open.leave(|of| behind.iter().any(|other| Arc::ptr_eq(of, other)));
        open.attempt.waiting = behind;
        Ok(())
    }
}

/// Whom an attempt still has to reach.
#[derive(Default)]
struct Open {
    consumers: Consumers,
    failures_before: Vec<u32>,
    /// With what is known of those who have given up.
    attempt: Attempt,
}

impl Open {
    /// Those that are paused have their turn later.
    fn leave_paused(&mut self, pauses: &Pauses, now: i64) {
        let is_paused = |of: &Arc<Subscription>| pauses.of_consumer(&of.consumer_name, now).is_some();
        if pauses.is_empty() || !self.consumers.iter().any(is_paused) {
            return;
        }
        let names = self.consumers.iter().filter(|of| is_paused(of)).map(|of| of.consumer_name.clone());
        self.attempt.paused.extend(names);
        self.leave(is_paused);
    }

    /// Those that have no room have their turn later. The room that the others have.
    fn leave_limited(&mut self, seq: i64, now: i64) -> Vec<Permit> {
        if self.consumers.iter().all(|of| of.limiter.is_none()) {
            return Vec::new();
        }
        let mut permits = Vec::new();
        let mut limited = Vec::new();
        for subscription in self.consumers.iter() {
            match Permit::take(subscription, seq, now) {
                Ok(permit) => permits.extend(permit),
                Err(NoRoom) => limited.push(Arc::clone(subscription)),
            }
        }
        self.leave(|of| limited.iter().any(|other| Arc::ptr_eq(of, other)));
        self.attempt.limited = limited;
        permits
    }

    fn leave(&mut self, which: impl Fn(&Arc<Subscription>) -> bool) {
        let mut failures_before = Vec::new();
        let mut consumers = Vec::new();
        for (place, subscription) in self.consumers.iter().enumerate() {
            if !which(subscription) {
                consumers.push(Arc::clone(subscription));
                failures_before.extend(self.failures_before.get(place));
            }
        }
        (self.consumers, self.failures_before) = (consumers.into(), failures_before);
    }
}

/// Of an event that was claimed before. `lost`: what is to be said of its last attempt, if that was lost. A consumer that is
/// paused, or too old for its version, had no part in it.
#[expect(clippy::too_many_arguments, reason = "a part of `plan`")]
fn still_open(
    conn: &Connection,
    claim: Claim,
    consumers: &Consumers,
    standings: &[Standing],
    lost: Option<&str>,
    version: u32,
    settings: &Settings,
    pauses: &Pauses,
    now: i64,
) -> Result<Open> {
    let mut attempt = Attempt::default();
    let mut open = Vec::with_capacity(consumers.len());
    let mut failures_before = Vec::with_capacity(consumers.len());
    for subscription in consumers.iter() {
        let standing = standings.iter().find(|standing| standing.consumer_name == subscription.consumer_name);
        if standing.is_some_and(|standing| standing.status.is_done()) {
            continue;
        }
        let had_given_up = standing.is_some_and(|standing| standing.gave_up);
        let is_left_out = pauses.of_consumer(&subscription.consumer_name, now).is_some()
            || subscription.is_too_old_for(version);
        let lost = lost.filter(|_| !had_given_up && !is_left_out);
        if let Some(error) = lost {
            let gave_up = failures(standing).saturating_add(1) >= subscription.attempts_in(settings);
            let mark = Mark::Lost { error: error.to_owned(), gave_up };
            record(conn, claim.seq, &subscription.consumer_name, &mark, now)?;
        }
        let failures = failures(standing).saturating_add(u32::from(lost.is_some()));
        if had_given_up || failures >= subscription.attempts_in(settings) {
            attempt.gave_up = true;
            let error =
                lost.map(str::to_owned).or_else(|| standing.and_then(|standing| standing.last_error.clone()));
            attempt.earlier.push((subscription.consumer_name.clone(), error.unwrap_or_default()));
        } else {
            open.push(Arc::clone(subscription));
            failures_before.push(failures);
        }
    }
    Ok(Open { consumers: open.into(), failures_before, attempt })
}

fn failures(standing: Option<&Standing>) -> u32 {
    standing.map_or(0, |standing| standing.failed_attempts)
}

/// `attempt` is the one that begins now.
fn lost_attempt(attempt: u32) -> String {
    format!(
        "attempt {} was lost: its lease ran out before it ended (the process died, or the handler hung)",
        attempt.saturating_sub(1)
    )
}

/// Those of the event's consumers that are asked, and the names of those that are to be asked and are not among them.
fn wanted(
    all: &Consumers,
    deliver_to: Option<&str>,
) -> std::result::Result<(Consumers, Vec<String>), String> {
    let Some(names) = deliver_to else { return Ok((Arc::clone(all), Vec::new())) };
    let mut names: Vec<String> = serde_json::from_str(names)
        .map_err(|_| "the row's deliver_to is no JSON array of names".to_owned())?;
    let asked =
        all.iter().filter(|subscription| names.contains(&subscription.consumer_name)).cloned().collect();
    names.retain(|name| all.iter().all(|subscription| subscription.consumer_name != *name));
    Ok((asked, names))
}

fn unhandled(core: &Core, event_name: &str, settings: &Settings) -> Settlement {
    let first = core.first_warning_of(event_name);
    match settings.unhandled_events {
        UnhandledEvents::Complete => {
            if first {
                log::warn!(target: "postbox::delivery", "nobody subscribes to `{event_name}`: its events are processed without a handler");
            }
            Settlement::Processed
        }
        UnhandledEvents::Hold => {
            if first {
                log::warn!(target: "postbox::delivery", "nobody subscribes to `{event_name}`: its events are held until somebody does");
            }
            Settlement::Held
        }
    }
}
