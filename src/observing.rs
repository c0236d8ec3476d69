//! What one open box tells its observers, and how: none of them can fail it, write into it, or wait for it.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

use rusqlite::Connection;

use crate::db::Database;
use crate::event::EventId;
use crate::observer::{DeadLettered, Observer, Published};
use crate::outbox;
use crate::outbox::dead::Dead;
use crate::outbox::insert::{InsertJob, Inserted, PreparedEvent};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct Observing {
    observers: Vec<Box<dyn Observer>>,
    has_panicked: AtomicBool,
    /// What the transaction that has the gate has published, savepoints that were rolled back since included.
    published: Mutex<Vec<Publication>>,
}

/// An event that is in a transaction's reach, or was.
pub(crate) struct Publication {
    id: EventId,
    name: String,
}

impl Publication {
    /// `None`: it was there already.
    pub(crate) fn of(event: &PreparedEvent, inserted: Inserted) -> Option<Self> {
        inserted.seq.map(|_| Publication { id: inserted.id, name: event.name().to_owned() })
    }
}

impl Observing {
    /// `None`: nobody is to be told.
    pub(crate) fn by(observers: Vec<Box<dyn Observer>>) -> Option<Self> {
        if observers.is_empty() {
            return None;
        }
        Some(Observing { observers, has_panicked: AtomicBool::new(false), published: Mutex::default() })
    }

    pub(crate) fn tell(&self, db: &Database<InsertJob>, what: impl Fn(&dyn Observer)) {
        let _barred = db.bar_writes();
        for observer in &self.observers {
            let Err(panic) = catch_unwind(AssertUnwindSafe(|| what(&**observer))) else { continue };
            // What was thrown is the application's, and may panic in its own drop.
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
                std::mem::forget(again);
            }
            if !self.has_panicked.swap(true, Ordering::Relaxed) {
                log::error!(target: "postbox::delivery", "an observer panicked, which changes nothing else; further panics are not logged");
            }
        }
    }

    /// After the commit of events that were published together.
    pub(crate) fn tell_inserted(
        &self,
        db: &Database<InsertJob>,
        events: &[PreparedEvent],
        inserted: &[Inserted],
    ) {
        for (event, inserted) in events.iter().zip(inserted) {
            if inserted.seq.is_some() {
                self.tell_published(db, inserted.id, event.name());
            }
        }
    }

    pub(crate) fn tell_publications(&self, db: &Database<InsertJob>, publications: &[Publication]) {
        for publication in publications {
            self.tell_published(db, publication.id, &publication.name);
        }
    }

    fn tell_published(&self, db: &Database<InsertJob>, event_id: EventId, event_name: &str) {
        self.tell(db, |observer| observer.published(&Published { event_id, event_name }));
    }

    pub(crate) fn tell_dead(&self, db: &Database<InsertJob>, dead: &[Dead]) {
        for Dead { id, name, attempt, status, error } in dead {
            let dead =
                DeadLettered { event_id: *id, event_name: name, attempt: *attempt, status: *status, error };
            self.tell(db, |observer| observer.dead_lettered(&dead));
        }
    }

    /// A transaction in which the application may publish begins: what the last one left is not told.
    pub(crate) fn transaction_begins(&self) {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn note_published(&self, event: &PreparedEvent, inserted: Inserted) {
        if let Some(publication) = Publication::of(event, inserted) {
            self.published.lock().unwrap_or_else(PoisonError::into_inner).push(publication);
        }
    }

    /// Before the commit: what of it is there. The application may have rolled back to a savepoint of its own, and a handler that
    /// failed was.
    pub(crate) fn take_published(&self, conn: &Connection) -> Vec<Publication> {
        let mut published =
            std::mem::take(&mut *self.published.lock().unwrap_or_else(PoisonError::into_inner));
        let mut seen = HashSet::new();
        published.retain(|publication| {
            matches!(outbox::seq_of(conn, publication.id), Ok(Some(_))) && seen.insert(publication.id)
        });
        published
    }
}
