//! Claiming: due rows become this box's, with a lease.

use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::types::{FromSql, ValueRef};
use rusqlite::{Connection, Row, params};
use serde_json::Value;
use uuid::Uuid;

use super::run::runs;
use crate::clock::from_micros;
use crate::error::{Error, Result, describe_json};
use crate::event::{Event, EventId};

/// One claim of one box. What is written under it is refused once the row is somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LeaseId(pub(crate) i64);

/// What fences everything that is written about a claimed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) seq: i64,
    pub(crate) lease: LeaseId,
    pub(crate) id: EventId,
}

impl LeaseId {
    /// The box is in the bits above these, its claims are counted in them.
    pub(crate) const OWNER_SHIFT: u32 = 24;

    /// The box that made it.
    pub(crate) fn owner(self) -> Option<u32> {
        u32::try_from(self.0 >> Self::OWNER_SHIFT).ok()
    }
}

/// Makes lease ids, all of them 6 bytes wide in the file (see schema.sql).
pub(crate) struct Leases {
    owner: u32,
    next: AtomicU32,
}

impl Leases {
    /// For a box that nobody else is, as far as `is_taken` knows.
    pub(crate) fn new(is_taken: impl Fn(u32) -> bool) -> Self {
        // 23 random bits, so that the id is a positive number of 48 bits, and more than 32 of them: 256 and less are nobody's
        // (an upgrade gives claims that it finds to 256).
        let mut owner = 0;
        while owner <= 0x100 || is_taken(owner) {
            owner = (Uuid::new_v4().as_u128() & 0x7f_ffff) as u32;
        }
        Leases { owner, next: AtomicU32::new(1) }
    }

    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }

    pub(crate) fn next(&self) -> LeaseId {
        let count = self.next.fetch_add(1, Ordering::Relaxed) & ((1 << LeaseId::OWNER_SHIFT) - 1);
        LeaseId(i64::from(self.owner) << LeaseId::OWNER_SHIFT | i64::from(count))
    }
}

/// A row that was claimed.
pub(crate) struct Claimed {
    pub(crate) claim: Claim,
    pub(crate) name: String,
    /// Its last owner lost it in the middle of an attempt.
    pub(crate) taken_over: bool,
    /// When it was due.
    pub(crate) due_at: i64,
    /// The only consumers that are asked, as JSON; all when there is none.
    pub(crate) deliver_to: Option<String>,
    /// Or why nobody can handle it: a row that no box wrote so.
    pub(crate) event: std::result::Result<(Event, Unparsed), String>,
}

/// The JSON of a claimed row: parsed where its handlers run, outside the write lock.
pub(crate) struct Unparsed {
    payload: Vec<u8>,
    metadata: Option<Vec<u8>>,
}

impl Unparsed {
    /// Of an event that was just published.
    pub(crate) fn of(payload: &str, metadata: Option<&str>) -> Self {
        Unparsed { payload: payload.into(), metadata: metadata.map(Into::into) }
    }

    /// Completes the event. The error names the column that is no JSON, and never its content.
    pub(crate) fn parse_into(self, event: &mut Event) -> std::result::Result<(), String> {
        event.payload = json("payload", &self.payload)?;
        event.metadata = self.metadata.map(|metadata| json("metadata", &metadata)).transpose()?;
        Ok(())
    }
}

/// What a claim takes.
pub(crate) struct ClaimRequest {
    pub(crate) now: i64,
    pub(crate) lease: LeaseId,
    pub(crate) lease_until: i64,
    pub(crate) limit: usize,
}

/// What a claim does about a row that is taken over, and may have killed its last owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suspects {
    /// Claims it with nothing beside it.
    Alone,
    /// Leaves it, and what is behind it: other handlers run.
    NotYet,
    /// Claims it like any other: it was waited for long enough.
    AsOthers,
}

/// What a claim got.
#[derive(Default)]
pub(crate) struct Claims {
    /// In order of `seq`.
    pub(crate) rows: Vec<Claimed>,
    /// One that was taken over is next, or is all that was claimed: nothing else is claimed until it is over.
    pub(crate) alone: bool,
}

/// Claims due rows, those that were due first. Each costs an attempt.
///
/// A row that is taken over runs alone, or its neighbours would be lost with it, again and again, until they were dead
/// letters as well.
pub(crate) fn claim(
    conn: &Connection,
    request: &ClaimRequest,
    suspects: Suspects,
    skip: impl Fn(i64) -> bool,
    wait_for_owner: impl Fn(i64, LeaseId) -> bool,
) -> Result<Claims> {
    let mut claimed = Vec::new();
    let mut alone = false;
    {
        let mut select = conn.prepare_cached(
            "SELECT seq, id, status = 'processing', min(attempt_count, 4294967295) + 1, available_at, created_at, payload_version,
                    event_name, source_module, aggregate_type, aggregate_id, causation_id, correlation_id, traceparent,
                    deliver_to, payload, metadata, lease_id
             FROM main.outbox_event INDEXED BY outbox_event_claimed
             WHERE status = 'processing' AND available_at <= ?1
             UNION ALL
             SELECT seq, id, status = 'processing', min(attempt_count, 4294967295) + 1, available_at, created_at, payload_version,
                    event_name, source_module, aggregate_type, aggregate_id, causation_id, correlation_id, traceparent,
                    deliver_to, payload, metadata, lease_id
             FROM main.outbox_event INDEXED BY outbox_event_due
             WHERE status = 'pending' AND available_at <= ?1
             ORDER BY available_at, seq",
        )?;
        let mut rows = select.query([request.now])?;
        while claimed.len() < request.limit
            && let Some(row) = rows.next()?
        {
            let seq = row.get(0)?;
            if skip(seq) {
                continue;
            }
            let last_lease = LeaseId(row.get(17)?);
            let row = read_claimed(row, seq, request.lease)?;
            if row.taken_over && wait_for_owner(seq, last_lease) {
                continue;
            }
            if !row.taken_over || suspects == Suspects::AsOthers {
                claimed.push(row);
                continue;
            }
            alone = true;
            if suspects == Suspects::Alone && claimed.is_empty() {
                claimed.push(row);
            }
            break;
        }
    }
    claimed.sort_unstable_by_key(|row| row.claim.seq);
    let mut update = conn.prepare_cached(
        "UPDATE OR FAIL main.outbox_event NOT INDEXED
         SET status = 'processing', attempt_count = min(attempt_count, 4294967295) + 1, lease_id = ?3, available_at = ?4,
             changed_at = NULL
         WHERE seq BETWEEN ?1 AND ?2",
    )?;
    for (run, rows) in runs(&claimed, |row| row.claim.seq, |_, _| true) {
        let changed = update.execute(params![run.first, run.last, request.lease.0, request.lease_until])?;
        if changed != rows.len() {
            return Err(Error::NotStored { what: "a claim", table: "outbox_event" });
        }
    }
    drop(update);
    Ok(Claims { rows: claimed, alone })
}

fn read_claimed(row: &Row<'_>, seq: i64, lease: LeaseId) -> Result<Claimed> {
    let (event, deliver_to) = match column(row, "deliver_to", 14) {
        Ok(deliver_to) => (read_event(row), deliver_to),
        Err(error) => (Err(error), None),
    };
    Ok(Claimed {
        claim: Claim { seq, lease, id: EventId(column(row, "id", 1).unwrap_or(Uuid::nil())) },
        name: row
            .get_ref(7)?
            .as_bytes()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .unwrap_or_default(),
        taken_over: row.get(2)?,
        due_at: row.get(4)?,
        deliver_to,
        event,
    })
}

/// The error names the column that cannot be read, and never its content.
fn read_event(row: &Row<'_>) -> std::result::Result<(Event, Unparsed), String> {
    let event = Event {
        id: EventId(column(row, "id", 1)?),
        attempt: column(row, "attempt_count", 3)?,
        timestamp: from_micros(column(row, "created_at", 5)?),
        version: column(row, "payload_version", 6)?,
        name: column(row, "event_name", 7)?,
        source_module: column(row, "source_module", 8)?,
        aggregate_type: column(row, "aggregate_type", 9)?,
        aggregate_id: column(row, "aggregate_id", 10)?,
        causation_id: column::<Option<Uuid>>(row, "causation_id", 11)?.map(EventId),
        correlation_id: column(row, "correlation_id", 12)?,
        trace_parent: column(row, "traceparent", 13)?,
        payload: Value::Null,
        metadata: None,
    };
    let payload = text(row, "payload", 15)?.ok_or_else(|| "the row has no payload".to_owned())?;
    Ok((event, Unparsed { payload, metadata: text(row, "metadata", 16)? }))
}

fn column<T: FromSql>(row: &Row<'_>, name: &str, index: usize) -> std::result::Result<T, String> {
    row.get(index).map_err(|_| format!("the row's {name} cannot be read: it was not written by postbox"))
}

fn text(row: &Row<'_>, name: &str, index: usize) -> std::result::Result<Option<Vec<u8>>, String> {
    match row.get_ref(index) {
        Ok(ValueRef::Null) => Ok(None),
        Ok(ValueRef::Text(text)) => Ok(Some(text.to_vec())),
        _ => Err(format!("the row's {name} is no text")),
    }
}

fn json(name: &str, text: &[u8]) -> std::result::Result<Value, String> {
    serde_json::from_slice(text)
        .map_err(|error| format!("the row's {name} is no JSON: {}", describe_json(&error)))
}
