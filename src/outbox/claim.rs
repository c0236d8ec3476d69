//! Claiming: due rows become this box's, with a lease.

use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::types::{FromSql, ValueRef};
use rusqlite::{Connection, Row, params};
use serde_json::Value;
use uuid::Uuid;

use super::SEQ_MAX;
use super::run::{Run, runs};
use crate::clock::{LATEST, from_micros};
use crate::error::{Error, Result, describe_json};
use crate::event::{Event, EventId};
use crate::validate;

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

/// The names of a replay's consumers: what is longer is not read. Some hundreds of the longest fit.
pub(crate) const DELIVER_TO_BYTES_MAX: usize = 1 << 20;

/// A row that is claimed.
pub(crate) struct Claimed {
    pub(crate) claim: Claim,
    /// Its last owner lost it in the middle of an attempt.
    pub(crate) taken_over: bool,
    /// When it was due.
    pub(crate) due_at: i64,
    /// The only consumers that are asked, as JSON; all when there is none.
    pub(crate) deliver_to: Option<String>,
    pub(crate) event: Event,
    pub(crate) unparsed: Unparsed,
}

/// A row that no box wrote so: it is not claimed but set aside.
pub(crate) struct Unreadable {
    pub(crate) seq: i64,
    pub(crate) id: EventId,
    pub(crate) why: String,
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
    /// A row with a longer payload or metadata is poisoned, and what is too long is not read.
    pub(crate) payload_bytes_max: usize,
    /// Pending rows up to this place are passed over.
    pub(crate) behind: Option<Place>,
}

/// In the order in which pending rows are claimed: when a row was due, and its number.
pub(crate) type Place = (i64, i64);

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

/// What is due, as far as a claim takes it.
#[derive(Default)]
pub(crate) struct Due {
    /// In order of `seq`.
    pub(crate) rows: Vec<Claimed>,
    pub(crate) unreadable: Vec<Unreadable>,
    /// One that was taken over is next, or is all that there is: nothing else is claimed until it is over.
    pub(crate) alone: bool,
    /// Up to here there are none but rows that are left alone.
    pub(crate) passed: Option<Place>,
}

/// Looks up due rows, those that were due first: to be claimed with [`take`] in the same transaction.
///
/// A row that is taken over runs alone, or its neighbours would be lost with it, again and again, until they were dead
/// letters as well.
pub(crate) fn due(
    conn: &Connection,
    request: &ClaimRequest,
    suspects: Suspects,
    in_hand: impl Fn(i64) -> bool,
    left_alone: impl Fn(i64) -> bool,
    wait_for_owner: impl Fn(i64, LeaseId) -> bool,
) -> Result<Due> {
    let mut due = Due::default();
    let mut select = conn.prepare_cached(
            "SELECT seq, id, status = 'processing', attempt_count, available_at, created_at, payload_version,
                    event_name, source_module, aggregate_type, aggregate_id, causation_id, correlation_id, traceparent,
                    iif(octet_length(deliver_to) > ?5 * octet_length('x'), -octet_length(deliver_to) / octet_length('x'), deliver_to),
                    iif(octet_length(payload) > ?2 * octet_length('x'), -octet_length(payload) / octet_length('x'), payload),
                    iif(octet_length(metadata) > ?2 * octet_length('x'), -octet_length(metadata) / octet_length('x'), metadata), lease_id
             FROM main.outbox_event INDEXED BY outbox_event_claimed
             WHERE status = 'processing' AND available_at <= ?1
             UNION ALL
             SELECT seq, id, status = 'processing', attempt_count, available_at, created_at, payload_version,
                    event_name, source_module, aggregate_type, aggregate_id, causation_id, correlation_id, traceparent,
                    iif(octet_length(deliver_to) > ?5 * octet_length('x'), -octet_length(deliver_to) / octet_length('x'), deliver_to),
                    iif(octet_length(payload) > ?2 * octet_length('x'), -octet_length(payload) / octet_length('x'), payload),
                    iif(octet_length(metadata) > ?2 * octet_length('x'), -octet_length(metadata) / octet_length('x'), metadata), lease_id
             FROM main.outbox_event INDEXED BY outbox_event_due
             WHERE status = 'pending' AND available_at <= ?1 AND available_at >= ?3 AND (available_at > ?3 OR seq > ?4)
             ORDER BY available_at, seq",
    )?;
    let (behind_at, behind_seq) = request.behind.unwrap_or((i64::MIN, i64::MIN));
    let payload_bytes_max = request.payload_bytes_max;
    let mut rows =
        select.query(params![request.now, payload_bytes_max, behind_at, behind_seq, DELIVER_TO_BYTES_MAX])?;
    while due.rows.len() + due.unreadable.len() < request.limit
        && let Some(row) = rows.next()?
    {
        let seq = row.get(0)?;
        let taken_over: bool = row.get(2)?;
        let is_left_alone = left_alone(seq);
        if !taken_over && is_left_alone && due.rows.is_empty() && due.unreadable.is_empty() {
            due.passed = Some((row.get(4)?, seq));
        }
        if is_left_alone || in_hand(seq) || (taken_over && wait_for_owner(seq, LeaseId(row.get(17)?))) {
            continue;
        }
        let claimed = match read_claimed(row, seq, taken_over, request) {
            Ok(claimed) => claimed,
            Err(why) => {
                let id = EventId(column(row, "id", 1).unwrap_or(Uuid::nil()));
                due.unreadable.push(Unreadable { seq, id, why });
                continue;
            }
        };
        if !taken_over || suspects == Suspects::AsOthers {
            due.rows.push(claimed);
            continue;
        }
        due.alone = true;
        if suspects == Suspects::Alone && due.rows.is_empty() {
            due.rows.push(claimed);
        }
        break;
    }
    due.rows.sort_unstable_by_key(|row| row.claim.seq);
    Ok(due)
}

/// Claims rows that [`due`] has found, in order of `seq`. Each costs an attempt.
pub(crate) fn take(conn: &Connection, rows: &[Claimed], request: &ClaimRequest) -> Result<()> {
    let mut update = conn.prepare_cached(
        "UPDATE OR FAIL main.outbox_event NOT INDEXED
         SET status = 'processing', lease_id = ?3, available_at = ?4, changed_at = NULL,
             attempt_count = iif(attempt_count BETWEEN 0 AND 4294967295, attempt_count, iif(attempt_count < 0, 0, 4294967295)) + 1
         WHERE seq BETWEEN ?1 AND ?2 AND available_at <= ?5
               AND (status = 'pending' OR status <> 'processed' AND status <> 'failed' AND status <> 'dead_letter')",
    )?;
    for (run, rows) in runs(rows, |row| row.claim.seq, |_, _| true) {
        let lease = request.lease.0;
        let changed =
            update.execute(params![run.first, run.last, lease, request.lease_until, request.now])?;
        if changed != rows.len() {
            refuse_rows_that_are_not_due(conn, run, request)?;
            return Err(Error::NotStored { what: "a claim", table: "outbox_event" });
        }
    }
    Ok(())
}

/// An index in a damaged file may name rows that are over. Nothing that is done to such a row takes it out of the index: it
/// would be claimed for ever.
fn refuse_rows_that_are_not_due(conn: &Connection, run: Run, request: &ClaimRequest) -> Result<()> {
    let not_due: Option<i64> = conn
        .prepare_cached(
            "SELECT min(seq) FROM main.outbox_event NOT INDEXED
             WHERE seq BETWEEN ?1 AND ?2 AND lease_id <> ?3
                   AND (available_at > ?4 OR status = 'processed' OR status = 'failed' OR status = 'dead_letter')",
        )?
        .query_row(params![run.first, run.last, request.lease.0, request.now], |row| row.get(0))?;
    match not_due {
        None => Ok(()),
        Some(seq) => Err(Error::Damaged {
            path: conn.path().unwrap_or_default().into(),
            report: format!(
                "an index of outbox_event says that the event of seq {seq} is due, and its row does not"
            ),
        }),
    }
}

fn read_claimed(
    row: &Row<'_>,
    seq: i64,
    taken_over: bool,
    request: &ClaimRequest,
) -> std::result::Result<Claimed, String> {
    let (event, unparsed, deliver_to) = read_event(row, seq, request.payload_bytes_max)?;
    Ok(Claimed {
        claim: Claim { seq, lease: request.lease, id: event.id },
        taken_over,
        due_at: column(row, "available_at", 4)?,
        deliver_to,
        event,
        unparsed,
    })
}

type Read = (Event, Unparsed, Option<String>);

/// The error names the column that cannot be read, and never its content. What a box would not have written is not
/// delivered: nobody knows what else is wrong with the row.
fn read_event(row: &Row<'_>, seq: i64, bytes_max: usize) -> std::result::Result<Read, String> {
    if !(1..=SEQ_MAX).contains(&seq) {
        return Err("the row's seq is no number that a box gives".to_owned());
    }
    let attempts: u32 = column(row, "attempt_count", 3)?;
    let created_at: i64 = column(row, "created_at", 5)?;
    let event = Event {
        id: EventId(column(row, "id", 1)?),
        attempt: attempts.checked_add(1).ok_or_else(|| unreadable("attempt_count"))?,
        timestamp: from_micros(created_at),
        version: column(row, "payload_version", 6)?,
        name: name(row, "event_name", 7, validate::EVENT_NAME_MAX)?,
        source_module: name(row, "source_module", 8, validate::MODULE_MAX)?,
        aggregate_type: name(row, "aggregate_type", 9, validate::TYPE_MAX)?,
        aggregate_id: name(row, "aggregate_id", 10, validate::ENTITY_ID_MAX)?,
        causation_id: column::<Option<Uuid>>(row, "causation_id", 11)?.map(EventId),
        correlation_id: optional_name(row, "correlation_id", 12, validate::CORRELATION_MAX)?,
        trace_parent: optional_name(row, "traceparent", 13, validate::TRACE_PARENT_MAX)?,
        payload: Value::Null,
        metadata: None,
    };
    if event.version == 0 {
        return Err(unreadable("payload_version"));
    }
    if !(0..=LATEST).contains(&created_at) {
        return Err(unreadable("created_at"));
    }
    let payload = text(row, "payload", 15, bytes_max)?.ok_or_else(|| "the row has no payload".to_owned())?;
    let metadata = text(row, "metadata", 16, bytes_max)?;
    let deliver_to = text(row, "deliver_to", 14, DELIVER_TO_BYTES_MAX)?
        .map(|names| String::from_utf8(names).map_err(|_| unreadable("deliver_to")))
        .transpose()?;
    Ok((event, Unparsed { payload, metadata }, deliver_to))
}

fn unreadable(name: &str) -> String {
    format!("the row's {name} cannot be read: it was not written by postbox")
}

fn column<T: FromSql>(row: &Row<'_>, name: &str, index: usize) -> std::result::Result<T, String> {
    row.get(index).map_err(|_| unreadable(name))
}

fn name(row: &Row<'_>, column: &str, index: usize, max: usize) -> std::result::Result<String, String> {
    optional_name(row, column, index, max)?.ok_or_else(|| unreadable(column))
}

/// Under the limits of the CHECKs, which another program can switch off, and without NUL, where they stop counting.
fn optional_name(
    row: &Row<'_>,
    name: &str,
    index: usize,
    max: usize,
) -> std::result::Result<Option<String>, String> {
    let Some(text) = column::<Option<String>>(row, name, index)? else { return Ok(None) };
    let is_sound =
        !text.is_empty() && !text.contains('\0') && (text.len() <= max || text.chars().count() <= max);
    if is_sound { Ok(Some(text)) } else { Err(unreadable(name)) }
}

/// A text that is too long has not been read: a number below 0 stands for it, its length. (In a database of UTF-16 two bytes are one
/// of ASCII.)
fn text(
    row: &Row<'_>,
    name: &str,
    index: usize,
    bytes_max: usize,
) -> std::result::Result<Option<Vec<u8>>, String> {
    match row.get_ref(index) {
        Ok(ValueRef::Text(text)) => Ok(Some(text.to_vec())),
        Ok(ValueRef::Null) => Ok(None),
        Ok(ValueRef::Integer(size)) if size < 0 => {
            let bytes = size.unsigned_abs();
            Err(format!("its {name} takes {bytes} bytes, more than this box's limit of {bytes_max}"))
        }
        _ => Err(format!("the row's {name} is no text")),
    }
}

fn json(name: &str, text: &[u8]) -> std::result::Result<Value, String> {
    // Looked at once, and not again at each of its strings. What is no UTF-8 is left to serde_json, which says where.
    str::from_utf8(text)
        .map_or_else(|_| serde_json::from_slice(text), serde_json::from_str)
        .map_err(|error| format!("the row's {name} is no JSON: {}", describe_json(&error)))
}
