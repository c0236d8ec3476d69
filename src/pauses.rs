//! The table `postbox_pause`: which consumers and event names are paused; its types and all of its SQL.
//!
//! A pause that is over is not deleted at once. `until` becomes a negative number that no other end has: so everybody sees that
//! what waited for it is still to be let go, whatever process ended it, and after a restart too. Who has let all of it go deletes
//! the row.

mod in_force;

use std::fmt;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

pub(crate) use self::in_force::Pauses;
use crate::clock::{self, from_micros};
use crate::error::{Error, Result};
use crate::validate;

/// What can be paused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseTarget {
    /// A consumer: none of its handlers runs, whatever the event. The event's other consumers go on.
    Consumer(String),
    /// Every event of exactly this name: nobody receives it.
    EventName(String),
}

impl PauseTarget {
    /// The consumer of this name.
    pub fn consumer(name: impl Into<String>) -> Self {
        PauseTarget::Consumer(name.into())
    }

    /// All events of this name: the name that they are published with, without a wildcard.
    pub fn event_name(name: impl Into<String>) -> Self {
        PauseTarget::EventName(name.into())
    }

    pub(crate) fn validate(&self) -> Result<()> {
        match self {
            PauseTarget::Consumer(name) => validate::name("consumer_name", name, validate::CONSUMER_MAX),
            PauseTarget::EventName(name) => validate::event_name(name),
        }
    }

    fn columns(&self) -> (&'static str, &str) {
        match self {
            PauseTarget::Consumer(name) => ("consumer", name),
            PauseTarget::EventName(name) => ("event_name", name),
        }
    }

    /// `None` for what no box wrote.
    fn read(kind: ValueRef<'_>, name: ValueRef<'_>) -> Option<Self> {
        let name = name.as_str().ok()?.to_owned();
        match kind.as_str().ok()? {
            "consumer" => Some(PauseTarget::Consumer(name)),
            "event_name" => Some(PauseTarget::EventName(name)),
            _ => None,
        }
    }
}

/// As in `consumer mail.sync` and `event name invoice.created`.
impl fmt::Display for PauseTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PauseTarget::Consumer(name) => write!(f, "consumer {name}"),
            PauseTarget::EventName(name) => write!(f, "event name {name}"),
        }
    }
}

/// A pause that is in force. `Debug` leaves `reason` out: a handler may have given it, and quoted a payload.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pause {
    /// What is paused.
    pub target: PauseTarget,
    /// Why, as it was given; at most 1023 characters.
    pub reason: Option<String>,
    /// Since when. A pause that is prolonged or changed keeps its beginning.
    #[serde(serialize_with = "crate::rfc3339::serialize")]
    pub since: OffsetDateTime,
    /// When it ends by itself; `None` when only [`Postbox::resume`](crate::Postbox::resume) ends it.
    #[serde(serialize_with = "crate::rfc3339::option::serialize")]
    pub until: Option<OffsetDateTime>,
}

impl fmt::Debug for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pause")
            .field("target", &self.target)
            .field("since", &self.since)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// The shortest pause that an application can ask for. A handler that asks for less is given this: its event is due again at
/// its end, without an attempt spent, and must not come back at once for ever.
pub(crate) const LEAST: Duration = Duration::from_millis(100);

/// Of a pause that is asked for through the API.
pub(crate) fn check(target: &PauseTarget, reason: Option<&str>, duration: Option<Duration>) -> Result<()> {
    target.validate()?;
    reason.map_or(Ok(()), |reason| validate::name("reason", reason, validate::ERROR_MAX))?;
    if duration.is_some_and(|duration| duration < LEAST) {
        return Err(Error::invalid("duration", "must be at least 100 ms"));
    }
    Ok(())
}

/// Pauses, or changes the pause that there is: its reason and its end.
pub(crate) fn put(
    conn: &Connection,
    target: &PauseTarget,
    reason: Option<&str>,
    duration: Option<Duration>,
    now: i64,
) -> Result<Pause> {
    let (kind, name) = target.columns();
    let until = duration.map(|duration| clock::add(now, duration));
    let stored = conn
        .prepare_cached(
            "INSERT INTO main.postbox_pause (kind, name, reason, since, until) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (kind, name) DO UPDATE
             SET reason = excluded.reason, until = excluded.until,
                 since = iif(until IS NULL OR until > excluded.since, since, excluded.since)",
        )?
        .execute(params![kind, name, reason, now, until])?;
    let pause = get(conn, target, now)?;
    pause.filter(|_| stored == 1).ok_or(Error::NotStored { what: "the pause", table: "postbox_pause" })
}

/// Pauses a consumer at least until then: a pause that lasts longer stays as it is.
pub(crate) fn prolong(conn: &Connection, consumer: &str, reason: &str, until: i64, now: i64) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO main.postbox_pause (kind, name, reason, since, until) VALUES ('consumer', ?1, ?2, ?3, ?4)
         ON CONFLICT (kind, name) DO UPDATE
         SET reason = excluded.reason, until = excluded.until, since = iif(until > excluded.since, since, excluded.since)
         WHERE until < excluded.until",
    )?
    .execute(params![consumer, reason, now, until])?;
    let is_paused = conn
        .prepare_cached(
            "SELECT 1 FROM main.postbox_pause WHERE kind = 'consumer' AND name = ?1 AND (until IS NULL OR until >= ?2)",
        )?
        .exists(params![consumer, until])?;
    if is_paused { Ok(()) } else { Err(Error::NotStored { what: "the pause", table: "postbox_pause" }) }
}

/// Ends the pause. False: there was none.
pub(crate) fn end(conn: &Connection, target: &PauseTarget, now: i64) -> Result<bool> {
    let (kind, name) = target.columns();
    let ended = conn
        .prepare_cached(
            "UPDATE main.postbox_pause SET until = ?3
             WHERE kind = ?1 AND name = ?2 AND (until IS NULL OR until > ?4)",
        )?
        .execute(params![kind, name, an_end(), now])?;
    if ended == 0 && get(conn, target, now)?.is_some() {
        return Err(Error::NotStored { what: "the end of the pause", table: "postbox_pause" });
    }
    Ok(ended == 1)
}

/// Ends those whose time has passed, for everybody: another process's clock may be behind.
pub(crate) fn end_passed(conn: &Connection, now: i64) -> Result<()> {
    conn.prepare_cached("UPDATE main.postbox_pause SET until = ?2 WHERE until BETWEEN 0 AND ?1")?
        .execute([now, an_end()])?;
    let is_left = conn
        .prepare_cached("SELECT 1 FROM main.postbox_pause WHERE until BETWEEN 0 AND ?1")?
        .exists([now])?;
    if is_left {
        return Err(Error::NotStored { what: "the end of a pause", table: "postbox_pause" });
    }
    Ok(())
}

/// A number for `until` that no other end has: a pause that is made and ended anew is told from the first.
fn an_end() -> i64 {
    -i64::try_from(Uuid::new_v4().as_u128() >> 66).unwrap_or(i64::MAX) - 1
}

/// The ends of those that are over, and for which something may still wait.
pub(crate) fn ends(conn: &Connection) -> Result<Vec<i64>> {
    let mut statement =
        conn.prepare_cached("SELECT DISTINCT until FROM main.postbox_pause WHERE until < 0")?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// Everything that waited for the pauses of these ends has been let go.
pub(crate) fn forget(conn: &Connection, ends: &[i64]) -> Result<()> {
    for end in ends {
        conn.prepare_cached("DELETE FROM main.postbox_pause WHERE until = ?1")?.execute([end])?;
        let is_left =
            conn.prepare_cached("SELECT 1 FROM main.postbox_pause WHERE until = ?1")?.exists([end])?;
        if is_left {
            return Err(Error::NotStored { what: "the end of a pause", table: "postbox_pause" });
        }
    }
    Ok(())
}

/// The pause of this, if it is in force.
fn get(conn: &Connection, target: &PauseTarget, now: i64) -> Result<Option<Pause>> {
    let (kind, name) = target.columns();
    Ok(conn
        .prepare_cached(
            "SELECT reason, since, until FROM main.postbox_pause
             WHERE kind = ?1 AND name = ?2 AND (until IS NULL OR until > ?3)",
        )?
        .query_row(params![kind, name, now], |row| {
            Ok(Pause {
                target: target.clone(),
                reason: row.get(0)?,
                since: from_micros(row.get(1)?),
                until: row.get::<_, Option<i64>>(2)?.map(from_micros),
            })
        })
        .optional()?)
}

/// Those in force: consumers first, by name.
pub(crate) fn list(conn: &Connection, now: i64) -> Result<Vec<Pause>> {
    let mut statement = conn.prepare_cached(
        "SELECT kind, name, reason, since, until FROM main.postbox_pause
         WHERE until IS NULL OR until > ?1 ORDER BY kind, name",
    )?;
    let mut rows = statement.query([now])?;
    let mut pauses = Vec::new();
    while let Some(row) = rows.next()? {
        let Some(target) = PauseTarget::read(row.get_ref(0)?, row.get_ref(1)?) else { continue };
        let until: Option<i64> = row.get(4)?;
        pauses.push(Pause {
            target,
            reason: row.get(2)?,
            since: from_micros(row.get(3)?),
            until: until.map(from_micros),
        });
    }
    Ok(pauses)
}

/// All rows, those included that are over.
pub(crate) fn load(conn: &Connection) -> Result<Pauses> {
    let mut pauses = Pauses::default();
    let mut statement = conn.prepare_cached("SELECT kind, name, until FROM main.postbox_pause")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(target) = PauseTarget::read(row.get_ref(0)?, row.get_ref(1)?) {
            pauses.insert(target, row.get(2)?);
        }
    }
    Ok(pauses)
}
