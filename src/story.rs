//! All that the file says about one event.

use rusqlite::Connection;

use crate::error::Result;
use crate::event::EventId;
use crate::history::{self, HistoryEntry};
use crate::inbox::{self, InboxEvent};
use crate::links::{self, EntityRef, IntegrationLink};
use crate::outbox::{self, EventSummary, OutboxEvent};

/// So many rows of each kind are told at the most.
const ROWS_MAX: usize = 1_000;

/// All that the file says about one event, as of one moment. `Debug` leaves payloads, metadata and errors out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EventStory {
    /// Its row. Where another program wrote what cannot be read, it is shown as [`EventSummary::unreadable`] says; a payload or
    /// metadata that is no JSON is `Null`.
    pub event: OutboxEvent,
    /// What each consumer has done with it, those first that the file has known longest. A consumer that was never asked, or
    /// has not come to an outcome, has no row.
    pub inbox: Vec<InboxEvent>,
    /// What went wrong with it, and what people decided about it, oldest first.
    pub history: Vec<HistoryEntry>,
    /// The event whose handler published it; `None` where nobody's handler did, or that event was deleted.
    pub cause: Option<EventSummary>,
    /// The events that its handlers published, in order of publishing.
    pub caused: Vec<EventSummary>,
    /// The links that start at or lead to the entity that it is about (its source module, aggregate type and aggregate id),
    /// oldest first.
    pub links: Vec<IntegrationLink>,
    /// What cannot be read, since another program wrote it: columns of the event's row, which are shown as far as they can be;
    /// and `inbox_event`, `postbox_history` or `integration_link` where rows of theirs had to be left out. Empty for what boxes wrote.
    pub unreadable: Vec<&'static str>,
    /// Whether there are more than 1,000 inbox rows, caused events or links: the first of each are here.
    pub is_cut: bool,
}

/// For one snapshot or transaction.
pub(crate) fn story(conn: &Connection, id: EventId) -> Result<Option<EventStory>> {
    let Some(seq) = outbox::seq_of(conn, id)? else { return Ok(None) };
    let (Some(summary), Some(content)) = (outbox::summary(conn, seq)?, outbox::content(conn, seq)?) else {
        return Ok(None);
    };
    let mut unreadable = summary.unreadable.clone();
    unreadable.extend(content.unreadable);
    let event = summary.into_event(content.payload, content.metadata);

    let inbox = inbox::of_event(conn, id, seq, ROWS_MAX + 1)?;
    let cause = match event.causation_id.map(|cause| outbox::seq_of(conn, cause)).transpose()?.flatten() {
        Some(seq) => outbox::summary(conn, seq)?,
        None => None,
    };
    let mut caused = outbox::caused_by(conn, id, ROWS_MAX + 1)?;
    let entity = EntityRef::new(&event.source_module, &event.aggregate_type, &event.aggregate_id);
    let links = links::around(conn, &entity, ROWS_MAX + 1)?;

    let is_cut = [inbox.len(), caused.len(), links.len()].into_iter().any(|rows| rows > ROWS_MAX);
    caused.truncate(ROWS_MAX);
    Ok(Some(EventStory {
        event,
        inbox: readable(inbox, "inbox_event", &mut unreadable),
        history: readable(history::of(conn, seq)?, "postbox_history", &mut unreadable),
        cause,
        caused: caused
            .into_iter()
            .filter_map(|seq| outbox::summary(conn, seq).transpose())
            .collect::<Result<_>>()?,
        links: readable(links, "integration_link", &mut unreadable),
        unreadable,
        is_cut,
    }))
}

/// The first of them without those that cannot be read, which is noted.
fn readable<T>(rows: Vec<Result<T>>, table: &'static str, unreadable: &mut Vec<&'static str>) -> Vec<T> {
    let rows: Vec<Result<T>> = rows.into_iter().take(ROWS_MAX).collect();
    if rows.iter().any(Result::is_err) {
        unreadable.push(table);
    }
    rows.into_iter().flatten().collect()
}
