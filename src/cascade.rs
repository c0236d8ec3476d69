//! An entity was deleted: its links go, and the modules whose entities should go with it are told.

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::all_or_none;
use crate::error::{Error, Result};
use crate::event::{EventId, NewEvent};
use crate::links::{self, ENTITY, EntityRef, LinkType};

/// What an event of [`announce_deleted`](crate::Tx::announce_deleted) says, as its payload: the source of a cascade link was
/// deleted, and the module that owns the target decides what becomes of that.
///
/// As JSON: `{"link_id", "link_type", "source", "target"}`, the ends as `{"module", "entity_type", "entity_id"}`.
///
/// ```
/// # use postbox::{EntityRef, Event, LinkCascade, LinkType, NewLink, Postbox, Subscription, Tx};
/// # fn main() -> postbox::Result<()> {
/// # let postbox = Postbox::open_in_memory()?;
/// # postbox.transaction(|tx| -> postbox::Result<_> { Ok(tx.execute_batch(
/// #     "CREATE TABLE invoice (id TEXT); CREATE TABLE task (id TEXT); INSERT INTO task VALUES ('t-9'); INSERT INTO invoice VALUES ('inv-1')")?) })?;
/// // Operations owns tasks: what becomes of one is said here and nowhere else.
/// let name = LinkCascade::event_name("operations");
/// postbox.subscribe(Subscription::transactional(name, "operations.cascade", |event: &Event, tx: &Tx<'_>| {
///     let LinkCascade { target, .. } = event.payload_as()?;
///     tx.execute("DELETE FROM task WHERE id = ?1", [&target.entity_id])?;
///     tx.announce_deleted(&target)?; // what hangs on the task is told in its turn
///     Ok(())
/// }))?;
///
/// let invoice = EntityRef::new("finance", "Invoice", "inv-1");
/// let task = EntityRef::new("operations", "Task", "t-9");
/// postbox.links().create(NewLink::new(invoice.clone(), task, LinkType::Cascade))?;
///
/// // Finance deletes an invoice, and says so.
/// postbox.transaction(|tx| -> postbox::Result<_> {
///     tx.execute("DELETE FROM invoice WHERE id = ?1", [&invoice.entity_id])?;
///     tx.announce_deleted(&invoice)
/// })?;
/// postbox.drain()?;
/// # let tasks: u64 = postbox.transaction(|tx| -> postbox::Result<_> { Ok(tx.query_row("SELECT count(*) FROM task", [], |row| row.get(0))?) })?;
/// # assert_eq!(tasks, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LinkCascade {
    /// The link, which is gone.
    pub link_id: Uuid,
    /// What it meant: [`LinkType::Cascade`].
    pub link_type: LinkType,
    /// Where it started: the entity that was deleted.
    pub source: EntityRef,
    /// Where it led: the entity that should go as well.
    pub target: EntityRef,
}

impl LinkCascade {
    /// What the names of these events begin with; the module that owns the target comes behind it and a dot. Subscribe to
    /// `link.cascade.*` for those of all modules.
    pub const EVENT_PREFIX: &'static str = "link.cascade";

    /// The name under which this module is told that entities of its own should go: `link.cascade.operations`. Each module receives
    /// its own and nobody else's.
    pub fn event_name(target_module: &str) -> String {
        format!("{}.{target_module}", Self::EVENT_PREFIX)
    }
}

/// What came of announcing that an entity was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Announcement {
    /// The events, one for each entity that should go as well, in the order in which the links were made.
    pub events: Vec<EventId>,
    /// So many links started at or led to the entity, and are gone.
    pub links_deleted: usize,
}

/// All or none, in the caller's transaction.
pub(crate) fn announce(
    conn: &Connection,
    deleted: &EntityRef,
    publish: impl Fn(NewEvent) -> Result<EventId>,
) -> Result<Announcement> {
    deleted.validate(ENTITY)?;
    all_or_none(conn, || {
        let mut events = Vec::new();
        for seq in links::cascades_from(conn, deleted)? {
            if let Some(link) = links::get_by_seq(conn, seq)? {
                events.push(publish(event_of(link)?)?);
            }
        }
        Ok(Announcement { events, links_deleted: links::delete_of(conn, deleted)? })
    })
}

/// The link's metadata is the event's: the link will not be there any more to be asked for it.
fn event_of(link: links::IntegrationLink) -> Result<NewEvent> {
    let links::IntegrationLink { id, source, target, link_type, metadata, .. } = link;
    if target.module.contains('*') {
        return Err(Error::invalid("target_module", "contains `*`, so that no event can be named after it"));
    }
    let name = LinkCascade::event_name(&target.module);
    let event = NewEvent::new(name, &source.module, &target.entity_type, &target.entity_id)
        .payload_from(&LinkCascade { link_id: id, link_type, source, target })?;
    Ok(match metadata {
        Some(metadata) => event.metadata(metadata),
        None => event,
    })
}
