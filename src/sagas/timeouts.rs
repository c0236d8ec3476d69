//! The timeouts of one conversation: which there are, and how their events are known.
//!
//! A timeout's id says whose it is, so that the saga knows it for one of its own also when it is not noted any more: an event that was
//! claimed cannot be cancelled, and comes after all.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use uuid::{Builder, Uuid};

use super::SagaTimeout;
use crate::clock::from_micros;
use crate::core::Core;
use crate::error::Result;
use crate::event::EventId;
use crate::{decisions, outbox};

/// The namespace of what ids of timeouts begin with. Never change it: timeouts on their way would not be known any more.
const NAMESPACE: Uuid = Uuid::from_u128(0x5c1d_8a40_37fe_4b92_a6c8_0d2b_94e1_7f53);

/// Of one conversation.
pub(crate) const NAMES_MAX: usize = 100;

/// Those that are noted, by name.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Timeouts(BTreeMap<String, Noted>);

#[derive(Serialize, Deserialize)]
pub(crate) struct Noted {
    id: EventId,
    event: String,
    due: i64,
}

impl Timeouts {
    pub(crate) fn parse(text: Option<&str>) -> serde_json::Result<Self> {
        text.map_or(Ok(Timeouts::default()), serde_json::from_str)
    }

    /// As it is stored: nothing, where there is none.
    pub(crate) fn to_text(&self) -> Result<Option<String>> {
        if self.0.is_empty() { Ok(None) } else { Ok(Some(serde_json::to_string(self)?)) }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The name of the one that is this event.
    pub(crate) fn name_of(&self, id: EventId) -> Option<&str> {
        self.0.iter().find(|(_, noted)| noted.id == id).map(|(name, _)| name.as_str())
    }

    /// The event of the one that had the name before.
    pub(crate) fn note(&mut self, name: &str, id: EventId, event: String, due: i64) -> Option<EventId> {
        self.0.insert(name.to_owned(), Noted { id, event, due }).map(|before| before.id)
    }

    pub(crate) fn forget(&mut self, name: &str) -> Option<EventId> {
        self.0.remove(name).map(|noted| noted.id)
    }

    pub(crate) fn take_all(&mut self) -> Vec<EventId> {
        std::mem::take(&mut self.0).into_values().map(|noted| noted.id).collect()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = EventId> {
        self.0.values().map(|noted| noted.id)
    }

    /// For one snapshot: somebody may have moved their events, or cancelled them.
    pub(crate) fn into_shown(self, conn: &Connection) -> Result<Vec<SagaTimeout>> {
        let mut shown = Vec::new();
        for (name, Noted { id, event, due }) in self.0 {
            if let Some(due) = outbox::future::due_at(conn, id, due)? {
                shown.push(SagaTimeout { name, event_id: id, event_name: event, due_at: from_micros(due) });
            }
        }
        Ok(shown)
    }
}

/// The low bits of an id that are its own, behind the 32 that say whose it is.
const OWN_BITS: u32 = 30;

/// The id of a new timeout: a UUID of version 8. It begins with the time, as all ids do, so that ids stand in the order in which they were made;
/// what follows says whose it is. `new_id`: an id of the box's.
pub(crate) fn new_id(saga: &str, correlation_id: &str, new_id: Uuid) -> EventId {
    let (time, tail) = new_id.as_u64_pair();
    let own = tail & ((1 << OWN_BITS) - 1);
    let low = u64::from(mark(saga, correlation_id)) << OWN_BITS | own;
    EventId(Builder::from_custom_bytes((u128::from(time) << 64 | u128::from(low)).to_be_bytes()).into_uuid())
}

/// Whether it is a timeout of this conversation, whether noted or not.
pub(crate) fn is_of(saga: &str, correlation_id: &str, id: EventId) -> bool {
    let id = id.as_uuid();
    // Cut to its 32 bits: what stands before them is the variant.
    #[expect(clippy::cast_possible_truncation, reason = "the bits above are another part of the id")]
    let found = (id.as_u64_pair().1 >> OWN_BITS) as u32;
    id.get_version_num() == 8 && found == mark(saga, correlation_id)
}

/// NUL separates the two: no name contains one.
fn mark(saga: &str, correlation_id: &str) -> u32 {
    Uuid::new_v5(&NAMESPACE, format!("{saga}\0{correlation_id}").as_bytes()).as_fields().0
}

/// Those that somebody has begun with, or that are gone, come or do not: they are not noted any more.
pub(crate) fn cancel(core: &Core, conn: &Connection, ids: &[EventId], why: &str) -> Result<()> {
    let now = core.clock.now();
    for id in ids {
        if let Some(seq) = outbox::seq_of(conn, *id)? {
            decisions::cancel_row(conn, seq, why, now)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_whose_timeout_it_is() {
        let id = new_id("order", "c-1", Uuid::new_v4());
        assert_ne!(id, new_id("order", "c-1", Uuid::new_v4()));
        assert!(is_of("order", "c-1", id));
        assert!(!is_of("order", "c-2", id) && !is_of("orders", "c-1", id) && !is_of("order\0c", "-1", id));
        assert_eq!(id.as_uuid().get_version_num(), 8);
        assert!(!is_of("order", "c-1", EventId(Uuid::new_v4())));
    }

    /// Files hold them.
    #[test]
    fn marks_never_change() {
        assert_eq!(mark("order", "c-1"), 0xc670_0740);
    }
}
