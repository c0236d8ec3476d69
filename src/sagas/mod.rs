//! The table `postbox_saga`: where each conversation of a saga stands. Its types, and what is done with its rows.

pub(crate) mod ending;
mod filter;
pub(crate) mod table;
pub(crate) mod timeouts;
pub(crate) mod undo;

use std::fmt;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::OffsetDateTime;

pub use self::filter::{SagaFilter, SagaPage};
use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::event::EventId;

/// Whether a saga goes on, or how it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SagaStatus {
    /// It takes events.
    Running,
    /// It has done what it was for, or was ended by hand.
    Completed,
    /// What it had done was undone.
    Compensated,
}

impl SagaStatus {
    /// As it is stored: `running`, `completed`, `compensated`.
    pub fn as_str(self) -> &'static str {
        match self {
            SagaStatus::Running => "running",
            SagaStatus::Completed => "completed",
            SagaStatus::Compensated => "compensated",
        }
    }
}

impl fmt::Display for SagaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ToSql for SagaStatus {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for SagaStatus {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "running" => Ok(SagaStatus::Running),
            "completed" => Ok(SagaStatus::Completed),
            "compensated" => Ok(SagaStatus::Compensated),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// Where one conversation stands, without its state. `Debug` leaves `reason` out: a handler may have given it, and quoted a payload.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SagaSummary {
    /// The saga's name.
    pub name: String,
    /// Which conversation it is.
    pub correlation_id: String,
    /// Whether it goes on.
    pub status: SagaStatus,
    /// When it began.
    #[serde(serialize_with = "crate::rfc3339::serialize")]
    pub created_at: OffsetDateTime,
    /// When it last changed.
    #[serde(serialize_with = "crate::rfc3339::serialize")]
    pub updated_at: OffsetDateTime,
    /// The name of the event that a handler of it took last.
    pub last_event: String,
    /// Why it was compensated, or ended by hand; at most 1000 characters.
    pub reason: Option<String>,
    /// Its place in a list: [`Page::after`](crate::Page::after).
    pub cursor: Cursor,
}

impl fmt::Debug for SagaSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SagaSummary")
            .field("name", &self.name)
            .field("correlation_id", &self.correlation_id)
            .field("status", &self.status)
            .field("created_at", &self.created_at)
            .field("updated_at", &self.updated_at)
            .field("last_event", &self.last_event)
            .finish_non_exhaustive()
    }
}

/// All that is kept about one conversation. `Debug` leaves the state out, and the reason.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SagaInstance {
    /// Where it stands.
    #[serde(flatten)]
    pub summary: SagaSummary,
    /// The application's state.
    pub state: Value,
    /// The timeouts that it waits for, by name. One whose event somebody has [cancelled](crate::Outbox::cancel) is none of them.
    pub timeouts: Vec<SagaTimeout>,
    /// The names of the events that would undo what it has done, in the order in which they were noted: they are published in
    /// reverse.
    pub undo: Vec<String>,
}

impl SagaInstance {
    /// Its state as the type that the saga keeps.
    ///
    /// # Errors
    /// [`Error::Json`] when the state does not fit the type.
    pub fn state_as<S: DeserializeOwned>(&self) -> Result<S> {
        S::deserialize(&self.state).map_err(Error::Json)
    }
}

impl fmt::Debug for SagaInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SagaInstance")
            .field("summary", &self.summary)
            .field("timeouts", &self.timeouts)
            .field("undo", &self.undo)
            .finish_non_exhaustive()
    }
}

/// A timeout that a saga waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SagaTimeout {
    /// Its name within the conversation.
    pub name: String,
    /// The event that it is.
    pub event_id: EventId,
    /// That event's name.
    pub event_name: String,
    /// When the event is to be delivered, also where somebody has [moved](crate::Outbox::reschedule) it.
    #[serde(serialize_with = "crate::rfc3339::serialize")]
    pub due_at: OffsetDateTime,
}

/// How many conversations of one saga the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SagaTotals {
    /// The saga's name.
    pub name: String,
    /// Those that go on.
    pub running: u64,
    /// Those that have completed.
    pub completed: u64,
    /// Those that were compensated.
    pub compensated: u64,
    /// Of those that go on, when the one that has not changed for longest did so; `None` where none goes on.
    #[serde(serialize_with = "crate::rfc3339::option::serialize")]
    pub oldest_change: Option<OffsetDateTime>,
}
