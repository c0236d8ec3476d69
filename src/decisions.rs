//! What people decide about events: to try dead letters again, to discard them, to replay what is past, to move or cancel what is to come.

use rusqlite::Connection;

use crate::error::{Error, Result};
use crate::event::EventId;
use crate::history::{self, HistoryKind, NewEntry};
use crate::outbox::claim::DELIVER_TO_BYTES_MAX;
use crate::outbox::{self, OutboxStatus, decided, future, settle};
use crate::{inbox, ordering, validate};

/// In characters: so that it fits where errors are kept.
const REASON_MAX: usize = 1_000;

pub(crate) fn check_reason(reason: &str) -> Result<()> {
    validate::name("reason", reason, REASON_MAX)
}

pub(crate) fn retry(conn: &Connection, id: EventId, now: i64) -> Result<()> {
    let seq = dead(conn, "retry", id)?;
    retry_row(conn, seq, now).map(drop)
}

/// False: it is no dead letter any more.
pub(crate) fn retry_row(conn: &Connection, seq: i64, now: i64) -> Result<bool> {
    if !is_dead(decided::status(conn, seq)?) {
        return Ok(false);
    }
    decided::retry(conn, seq, now)?;
    inbox::begin_again(conn, seq, now)?;
    history::add(conn, seq, &decision(HistoryKind::Retried, None, None), now)?;
    Ok(true)
}

pub(crate) fn discard(conn: &Connection, id: EventId, reason: &str, now: i64) -> Result<()> {
    let seq = dead(conn, "discard", id)?;
    discard_row(conn, seq, reason, now).map(drop)
}

/// False: it is no dead letter any more.
pub(crate) fn discard_row(conn: &Connection, seq: i64, reason: &str, now: i64) -> Result<bool> {
    if !is_dead(decided::status(conn, seq)?) {
        return Ok(false);
    }
    let why = format!("discarded: {reason}");
    inbox::skip_open(conn, seq, &why, now)?;
    end(conn, seq, [OutboxStatus::DeadLetter, OutboxStatus::Failed], (&why, reason), now)?;
    Ok(true)
}

pub(crate) fn reschedule(conn: &Connection, id: EventId, at: i64, now: i64) -> Result<()> {
    let seq = unstarted(conn, "reschedule", id)?;
    decided::reschedule(conn, seq, at.max(now), now)?;
    // It holds up nobody before its new time.
    ordering::let_look_again(conn, seq, now)
}

pub(crate) fn cancel(conn: &Connection, id: EventId, reason: &str, now: i64) -> Result<()> {
    let seq = unstarted(conn, "cancel", id)?;
    cancel_row(conn, seq, reason, now).map(drop)
}

/// False: somebody has begun with it.
pub(crate) fn cancel_row(conn: &Connection, seq: i64, reason: &str, now: i64) -> Result<bool> {
    if !future::is_unstarted(conn, seq)? {
        return Ok(false);
    }
    end(conn, seq, [OutboxStatus::Pending; 2], (&format!("cancelled: {reason}"), reason), now)?;
    Ok(true)
}

/// `why`: its last error, and the reason in its history.
fn end(conn: &Connection, seq: i64, from: [OutboxStatus; 2], why: (&str, &str), now: i64) -> Result<()> {
    let (error, reason) = why;
    decided::end(conn, seq, from, error, now)?;
    settle::count_processed(conn, 1)?;
    ordering::let_look_again(conn, seq, now)?;
    history::add(conn, seq, &decision(HistoryKind::Discarded, None, Some(reason)), now)
}

/// The row of an event that nobody has begun with.
fn unstarted(conn: &Connection, operation: &'static str, id: EventId) -> Result<i64> {
    let (seq, status) = row(conn, id)?;
    if future::is_unstarted(conn, seq)? {
        Ok(seq)
    } else {
        Err(Error::WrongStatus {
            operation,
            id: id.to_string(),
            status: status.as_str(),
            expected: "an event that has not started",
        })
    }
}

fn is_dead(status: Option<OutboxStatus>) -> bool {
    matches!(status, Some(OutboxStatus::DeadLetter | OutboxStatus::Failed))
}

/// The row of an event that nobody will process by itself.
fn dead(conn: &Connection, operation: &'static str, id: EventId) -> Result<i64> {
    let (seq, status) = row(conn, id)?;
    if is_dead(Some(status)) {
        Ok(seq)
    } else {
        Err(Error::WrongStatus {
            operation,
            id: id.to_string(),
            status: status.as_str(),
            expected: "a dead letter",
        })
    }
}

fn row(conn: &Connection, id: EventId) -> Result<(i64, OutboxStatus)> {
    let seq = outbox::seq_of(conn, id)?;
    let status = seq.map(|seq| decided::status(conn, seq)).transpose()?.flatten();
    seq.zip(status).ok_or_else(|| Error::NotFound { what: "event", id: id.to_string() })
}

/// Past events, for one consumer.
pub(crate) struct Replay<'a> {
    consumer: &'a str,
    /// The same as the rows say it.
    deliver_to: String,
}

impl<'a> Replay<'a> {
    pub(crate) fn to(consumer: &'a str) -> Result<Self> {
        validate::name("consumer_name", consumer, validate::CONSUMER_MAX)?;
        Ok(Replay { consumer, deliver_to: serde_json::to_string(&[consumer])? })
    }

    /// False: it is neither processed nor waits to be replayed to others, or it does so to this one already.
    pub(crate) fn replay_row(&self, conn: &Connection, seq: i64, now: i64) -> Result<bool> {
        if decided::status(conn, seq)? == Some(OutboxStatus::Processed) {
            decided::replay(conn, seq, &self.deliver_to, now)?;
            settle::uncount_processed(conn)?;
        } else {
            let Some(mut names) = replayed_to(conn, seq)? else { return Ok(false) };
            match names.iter().any(|name| name == self.consumer) {
                false => names.push(self.consumer.to_owned()),
                true if is_done(conn, seq, self.consumer)? => {}
                true => return Ok(false),
            }
            let deliver_to = serde_json::to_string(&names)?;
            if deliver_to.len() > DELIVER_TO_BYTES_MAX {
                return Err(Error::invalid(
                    "consumer_name",
                    "an event waits to be replayed to too many others",
                ));
            }
            decided::replay_only_to(conn, seq, &deliver_to, now)?;
        }
        inbox::forget(conn, seq, self.consumer)?;
        let entry = decision(HistoryKind::Replayed, Some(self.consumer), None);
        history::add(conn, seq, &entry, now)?;
        Ok(true)
    }

    /// False: it does not wait to be replayed to this consumer, or somebody works on it.
    pub(crate) fn cancel_row(&self, conn: &Connection, seq: i64, now: i64) -> Result<bool> {
        let mut left = Vec::new();
        let mut is_to_come = false;
        for name in replayed_to(conn, seq)?.unwrap_or_default() {
            if is_done(conn, seq, &name)? {
                continue;
            }
            if name == self.consumer {
                is_to_come = true;
            } else {
                left.push(name);
            }
        }
        if !is_to_come {
            return Ok(false);
        }
        inbox::forget(conn, seq, self.consumer)?;
        if left.is_empty() {
            decided::end_replay(conn, seq, now)?;
            settle::count_processed(conn, 1)?;
        } else {
            decided::replay_only_to(conn, seq, &serde_json::to_string(&left)?, now)?;
        }
        ordering::let_look_again(conn, seq, now)?;
        Ok(true)
    }

    /// False also where the consumer has heard of it.
    pub(crate) fn catch_up_row(&self, conn: &Connection, seq: i64, now: i64) -> Result<bool> {
        Ok(!inbox::is_known_to(conn, seq, self.consumer)? && self.replay_row(conn, seq, now)?)
    }
}

/// Whether one of the consumers to whom an event waits to be replayed has received it: then another is to try again.
fn is_done(conn: &Connection, seq: i64, consumer: &str) -> Result<bool> {
    Ok(inbox::standing_of(conn, seq, consumer)?.is_some_and(|(status, ..)| status.is_done()))
}

/// To whom an event waits to be replayed. What is no list of names is set aside when it is claimed.
fn replayed_to(conn: &Connection, seq: i64) -> Result<Option<Vec<String>>> {
    let names = decided::replayed_to(conn, seq)?;
    Ok(names.and_then(|names| serde_json::from_str(&names).ok()))
}

fn decision<'a>(kind: HistoryKind, consumer_name: Option<&'a str>, detail: Option<&'a str>) -> NewEntry<'a> {
    NewEntry { kind, consumer_name, duration: None, detail }
}
