//! Events that are parked in the year 9999, until what they wait for is there.

use rusqlite::{Connection, OptionalExtension, params};

use crate::clock::{LIMITED_UNTIL, NEWER_UNTIL, PAUSED_UNTIL};
use crate::error::{Error, Result};

/// One of them.
pub(crate) struct Parked {
    pub(crate) seq: i64,
    pub(crate) event_name: String,
    /// The only consumers that are asked, as JSON; all when there is none.
    pub(crate) deliver_to: Option<String>,
    /// Of its payload; 0 where no box wrote it.
    pub(crate) version: u32,
}

/// Whether there are any that wait for something that is paused.
pub(crate) fn is_any(conn: &Connection) -> Result<bool> {
    Ok(conn
        .prepare_cached(
            "SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_due
             WHERE status = 'pending' AND available_at = ?1 LIMIT 1",
        )?
        .query_row([PAUSED_UNTIL], |_| Ok(()))
        .optional()?
        .is_some())
}

/// How many wait for a release that knows their version, counted up to `limit`.
pub(crate) fn count_newer(conn: &Connection, limit: u64) -> Result<u64> {
    Ok(conn
        .prepare_cached(
            "SELECT count(*) FROM (SELECT 1 FROM main.outbox_event INDEXED BY outbox_event_due
                                   WHERE status = 'pending' AND available_at = ?1 LIMIT ?2)",
        )?
        .query_row(params![NEWER_UNTIL, limit], |row| row.get(0))?)
}

/// So many of those that are parked until this time of the year 9999, behind this `seq`, in its order.
pub(crate) fn behind(conn: &Connection, until: i64, seq: i64, limit: usize) -> Result<Vec<Parked>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, event_name, deliver_to, payload_version FROM main.outbox_event INDEXED BY outbox_event_due
         WHERE status = 'pending' AND available_at = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let parked = statement.query_map(params![until, seq, limit], |row| {
        let event_name = String::from_utf8_lossy(row.get_ref(1)?.as_bytes().unwrap_or_default()).into_owned();
        Ok(Parked {
            seq: row.get(0)?,
            event_name,
            deliver_to: row.get(2).unwrap_or_default(),
            version: row.get(3).unwrap_or_default(),
        })
    })?;
    Ok(parked.collect::<rusqlite::Result<_>>()?)
}

/// Why an event is parked: it is due at one of these times of the year 9999.
#[derive(Clone, Copy)]
pub(crate) struct Parking {
    from: i64,
    until: i64,
    /// What letting it go says of it, for the error.
    what: &'static str,
}

pub(crate) const FOR_A_PAUSE: Parking = Parking::until(PAUSED_UNTIL, "the end of its pause");

/// Whatever else it is parked for as well: it is planned anew.
pub(crate) const FOR_ITS_TURN: Parking =
    Parking { from: LIMITED_UNTIL, until: PAUSED_UNTIL, what: "that it is an event's turn" };

pub(crate) const FOR_ROOM: Parking = Parking::until(LIMITED_UNTIL, "that there is room for an event");

impl Parking {
    pub(crate) const fn until(at: i64, what: &'static str) -> Self {
        Parking { from: at, until: at, what }
    }

    /// The event is due now. False: it is not parked so any more.
    pub(crate) fn release(self, conn: &Connection, seq: i64, now: i64) -> Result<bool> {
        let released = conn
            .prepare_cached(
                "UPDATE main.outbox_event NOT INDEXED SET available_at = ?2, changed_at = ?2
                 WHERE seq = ?1 AND status = 'pending' AND available_at BETWEEN ?3 AND ?4",
            )?
            .execute([seq, now, self.from, self.until])?;
        if released == 1 {
            return Ok(true);
        }
        let is_left = conn
            .prepare_cached(
                "SELECT 1 FROM main.outbox_event NOT INDEXED
                 WHERE seq = ?1 AND status = 'pending' AND available_at BETWEEN ?2 AND ?3",
            )?
            .exists([seq, self.from, self.until])?;
        if is_left {
            return Err(Error::NotStored { what: self.what, table: "outbox_event" });
        }
        Ok(false)
    }
}
