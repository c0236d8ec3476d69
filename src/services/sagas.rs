//! Sagas, as the application sees them: looking, and ending them by hand.

use std::time::Duration;

use rusqlite::Connection;

use super::Access;
use crate::db::all_or_none;
use crate::decisions;
use crate::error::Result;
use crate::event::Event;
use crate::observing::Observing;
use crate::page::{Page, check_limit};
use crate::sagas::{SagaFilter, SagaInstance, SagaPage, SagaStatus, SagaSummary, SagaTotals, ending, table};
use crate::validate;

/// Looks up sagas ([`Saga`](crate::Saga)), and ends those that no longer go on.
///
/// None of this needs the saga's code: a program of another language, or the `postbox` command, can do it.
pub struct Sagas<'a> {
    access: Access<'a>,
    /// The event whose handler asks.
    cause: Option<&'a Event>,
}

impl<'a> Sagas<'a> {
    pub(crate) fn new(access: Access<'a>) -> Self {
        Sagas { access, cause: None }
    }

    pub(crate) fn caused_by(self, cause: Option<&'a Event>) -> Self {
        Sagas { cause, ..self }
    }

    /// All that is kept about one conversation; `None` when there is none of that name and correlation id.
    ///
    /// # Errors
    /// [`Error::Json`](crate::Error::Json) when another program left something else than JSON in the row.
    pub fn get(&self, name: &str, correlation_id: &str) -> Result<Option<SagaInstance>> {
        self.access.read_snapshot("sagas.get", |conn| table::get(conn, name, correlation_id))
    }

    /// One page of the sagas that the filter means, in the order in which they began: without their states, of which none is read.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a limit of 0 or more than 1,000, and for what the filter asks.
    pub fn list(&self, filter: &SagaFilter, page: &Page) -> Result<SagaPage> {
        filter.validate()?;
        page.validate()?;
        self.access.read("sagas.list", |conn| table::list(conn, filter, page))
    }

    /// Those that are running and have not changed for so long, the one first that has not for longest: at most `limit`, 1 to 1,000. Of
    /// one saga, or of all.
    ///
    /// What to make of them is for a person to say: one that waits for a timeout of thirty days is not stuck by then. One whose event
    /// is a dead letter is: it goes on when that is retried ([`Outbox::retry`](crate::Outbox::retry)).
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a limit of 0 or more than 1,000, and for the name.
    pub fn stuck(&self, name: Option<&str>, older_than: Duration, limit: usize) -> Result<Vec<SagaSummary>> {
        check_limit(limit)?;
        name.map_or(Ok(()), |name| validate::name("name", name, validate::EVENT_NAME_MAX))?;
        let older_than = i64::try_from(older_than.as_micros()).unwrap_or(i64::MAX);
        let since = self.access.core().clock.now().saturating_sub(older_than);
        self.access.read("sagas.stuck", |conn| table::unchanged_since(conn, name, since, limit))
    }

    /// How many there are of each saga, by name. They are counted one by one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn totals(&self) -> Result<Vec<SagaTotals>> {
        self.access.read("sagas.totals", table::totals)
    }

    /// Ends one that is running, and undoes what it has done: as [`SagaStep::compensate`](crate::SagaStep::compensate) in a handler. How
    /// many events were published to undo it. Within a transactional handler ([`Tx::sagas`](crate::Tx::sagas)) they name its event as their cause.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound); [`Error::Invalid`](crate::Error::Invalid) where it has ended already, and for a
    /// reason that is empty or longer than 1000 characters; [`Error::Json`](crate::Error::Json) where another program has spoilt the
    /// row. Nothing is written then.
    pub fn compensate(&self, name: &str, correlation_id: &str, reason: &str) -> Result<usize> {
        self.end("sagas.compensate", name, correlation_id, SagaStatus::Compensated, reason)
    }

    /// Ends one that is running as it is: its timeouts are cancelled, and nothing is undone.
    ///
    /// # Errors
    /// As [`compensate`](Sagas::compensate).
    pub fn complete(&self, name: &str, correlation_id: &str, reason: &str) -> Result<()> {
        self.end("sagas.complete", name, correlation_id, SagaStatus::Completed, reason).map(drop)
    }

    fn end(
        &self,
        operation: &'static str,
        name: &str,
        correlation_id: &str,
        ends_as: SagaStatus,
        reason: &str,
    ) -> Result<usize> {
        decisions::check_reason(reason)?;
        let core = self.access.core();
        let end = |conn: &Connection| {
            ending::by_hand(core, conn, (name, correlation_id), self.cause, ends_as, reason)
        };
        if let Access::Within(_, conn) = self.access {
            return all_or_none(conn, || end(conn));
        }
        let (undone, published) = core.db.write(operation, |conn| {
            core.observing.iter().for_each(Observing::transaction_begins);
            let undone = end(conn)?;
            Ok((undone, core.observing.as_ref().map(|observing| observing.take_published(conn))))
        })?;
        core.bell.ring();
        if let (Some(observing), Some(published)) = (&core.observing, published) {
            observing.tell_publications(&core.db, &published);
        }
        Ok(undone)
    }
}
