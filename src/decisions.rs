//! What people decide about events: to try dead letters again, to discard them, to replay what is past.

use rusqlite::Connection;

use crate::error::{Error, Result};
use crate::event::EventId;
use crate::history::{self, HistoryKind, NewEntry};
use crate::outbox::{self, OutboxStatus, decided};
use crate::{inbox, validate};

/// In characters: so that it fits where errors are kept.
const REASON_MAX: usize = 1_000;

pub(crate) fn check_reason(reason: &str) -> Result<()> {
    validate::name("reason", reason, REASON_MAX)
}

pub(crate) fn retry(conn: &Connection, id: EventId, now: i64) -> Result<()> {
    let seq = dead(conn, "retry", id)?;
    retry_row(conn, seq, now)
}

fn retry_row(conn: &Connection, seq: i64, now: i64) -> Result<()> {
    decided::retry(conn, seq, now)?;
    inbox::begin_again(conn, seq, now)?;
    history::add(conn, seq, &decision(HistoryKind::Retried, None, None), now)
}

pub(crate) fn discard(conn: &Connection, id: EventId, reason: &str, now: i64) -> Result<()> {
    let seq = dead(conn, "discard", id)?;
    discard_row(conn, seq, reason, now)?;
    outbox::settle::count_processed(conn, 1).map(drop)
}

fn discard_row(conn: &Connection, seq: i64, reason: &str, now: i64) -> Result<()> {
    let why = format!("discarded: {reason}");
    decided::discard(conn, seq, &why, now)?;
    inbox::skip_open(conn, seq, &why, now)?;
    history::add(conn, seq, &decision(HistoryKind::Discarded, None, Some(reason)), now)
}

/// The row of an event that nobody will process by itself.
fn dead(conn: &Connection, operation: &'static str, id: EventId) -> Result<i64> {
    match decided::standing(conn, id)? {
        Some((seq, OutboxStatus::DeadLetter | OutboxStatus::Failed)) => Ok(seq),
        Some((_, status)) => Err(Error::WrongStatus {
            operation,
            id: id.to_string(),
            status: status.as_str(),
            expected: "a dead letter",
        }),
        None => Err(Error::NotFound { what: "event", id: id.to_string() }),
    }
}

fn decision<'a>(kind: HistoryKind, consumer_name: Option<&'a str>, detail: Option<&'a str>) -> NewEntry<'a> {
    NewEntry { kind, consumer_name, duration: None, detail }
}
