//! Events of other boxes.

use rusqlite::Connection;
use time::OffsetDateTime;
use uuid::{Variant, Version};

use crate::clock;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::event::{EventId, NewEvent};
use crate::outbox::insert::{self, PreparedEvent};
use crate::outbox::{imported, settle};

/// An event that another box has published, to be taken over under its id: [`Postbox::import`](crate::Postbox::import).
#[derive(Debug, Clone)]
#[must_use = "an event does nothing until it is imported"]
pub struct ImportedEvent {
    id: EventId,
    event: NewEvent,
    causation_id: Option<EventId>,
    published_at: Option<OffsetDateTime>,
    is_processed: bool,
}

impl ImportedEvent {
    /// `id`: as a box makes them, a UUID of version 7, 5 or 8. `event` has no idempotency key, which the id stands for; its limits
    /// are those of an event that is published. It is due at once, or when the event says.
    pub fn new(id: EventId, event: NewEvent) -> Self {
        ImportedEvent { id, event, causation_id: None, published_at: None, is_processed: false }
    }

    /// Its id.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The event whose handler published it. That one need not be there.
    pub fn causation_id(self, id: EventId) -> Self {
        ImportedEvent { causation_id: Some(id), ..self }
    }

    /// When it was published, from 1970 on. Now, when not given or in the future.
    pub fn published_at(self, at: OffsetDateTime) -> Self {
        ImportedEvent { published_at: Some(at), ..self }
    }

    /// As history: it is processed, with now as the time, and no consumer receives it, unless it is asked for with
    /// [`replay`](crate::Outbox::replay) or [`catch_up`](crate::Outbox::catch_up).
    pub fn processed(self) -> Self {
        ImportedEvent { is_processed: true, ..self }
    }

    /// Refuses what [`prepare`](ImportedEvent::prepare) would.
    pub(crate) fn check(&self, payload_bytes_max: usize) -> Result<()> {
        self.check_own()?;
        insert::check(&self.event, payload_bytes_max).map(drop)
    }

    fn check_own(&self) -> Result<()> {
        let uuid = self.id.as_uuid();
        // The last is a saga's timeout.
        let is_ours = matches!(uuid.get_version(), Some(Version::SortRand | Version::Sha1 | Version::Custom));
        if !is_ours || uuid.get_variant() != Variant::RFC4122 {
            return Err(Error::invalid("id", "is no UUID of version 7, 5 or 8, as boxes make them"));
        }
        if self.event.idempotency_key.is_some() {
            return Err(Error::invalid(
                "idempotency_key",
                "is not for imported events: their id stands for it",
            ));
        }
        // A row's times begin there: it would be moved.
        if self.published_at.is_some_and(|at| at < OffsetDateTime::UNIX_EPOCH) {
            return Err(Error::invalid("published_at", "must not be before 1970"));
        }
        Ok(())
    }

    fn prepare(self, payload_bytes_max: usize) -> Result<Prepared> {
        self.check_own()?;
        Ok(Prepared {
            event: insert::prepare_imported(self.id, self.event, self.causation_id, payload_bytes_max)?,
            published_at: self.published_at.map(clock::to_micros),
            is_processed: self.is_processed,
        })
    }
}

struct Prepared {
    event: PreparedEvent,
    published_at: Option<i64>,
    is_processed: bool,
}

/// In one transaction. How many were not there.
pub(crate) fn import(core: &Core, events: impl IntoIterator<Item = ImportedEvent>) -> Result<usize> {
    const OPERATION: &str = "import";
    core.db.refuse_forked(OPERATION)?;
    core.db.refuse_read_only(OPERATION)?;
    let prepare = |event: ImportedEvent| event.prepare(core.payload_bytes_max);
    let events = events.into_iter().map(prepare).collect::<Result<Vec<_>>>()?;
    if events.is_empty() {
        return core.refuse_closed(OPERATION).map(|()| 0);
    }
    let imported = core.db.write(OPERATION, |conn| {
        let now = core.clock.now();
        events.iter().try_fold(0, |count, event| Ok(count + usize::from(import_one(conn, event, now)?)))
    })?;
    core.bell.ring();
    Ok(imported)
}

/// False: it was there.
fn import_one(conn: &Connection, event: &Prepared, now: i64) -> Result<bool> {
    let Some(seq) = insert::insert_once(conn, &event.event, now)? else { return Ok(false) };
    if let Some(at) = event.published_at {
        imported::published_at(conn, seq, at)?;
    }
    if event.is_processed {
        imported::processed(conn, seq, now)?;
        settle::count_processed(conn, 1)?;
    }
    Ok(true)
}
