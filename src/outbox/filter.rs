//! Which events: what an application or an operator asks for, as a condition on rows of `outbox_event`.

use std::fmt;

use rusqlite::types::Value;
use time::OffsetDateTime;

use super::OutboxStatus;
use crate::error::{Error, Result};
use crate::validate;

/// Which events are meant. All that is asked for has to hold; a filter that asks for nothing means every event.
///
/// Texts are compared as they are, upper and lower case apart; `%`, `_`, `[` and `?` mean themselves. A method that is called
/// again replaces what it said before, except [`status`](EventFilter::status). What is asked for is checked when the filter is
/// used, before anything is read or written: [`Error::Invalid`] names the field.
///
/// What is asked by status alone is found by an index, unless `Processed` is among it; the rest is looked at row by row: all
/// else that is asked for costs time in proportion to the events that have one of the statuses, or, without a status or with
/// `Processed`, to all events of the file (some tenths of a second for a million).
///
/// ```
/// # use postbox::{EventFilter, OutboxStatus};
/// let filter = EventFilter::new().name("invoice.*").status(OutboxStatus::DeadLetter).error_contains("timed out");
/// ```
#[derive(Clone, Default, PartialEq)]
#[must_use = "a filter does nothing by itself"]
pub struct EventFilter {
    name: Option<String>,
    source_module: Option<String>,
    aggregate_type: Option<String>,
    aggregate_id: Option<String>,
    statuses: Vec<OutboxStatus>,
    consumer: Option<String>,
    published_from: Option<OffsetDateTime>,
    published_before: Option<OffsetDateTime>,
    correlation_id: Option<String>,
    error_contains: Option<String>,
    replayed_to: Option<String>,
    is_past: bool,
    is_unstarted: bool,
}

impl EventFilter {
    /// Every event.
    pub fn new() -> Self {
        Self::default()
    }

    /// Events of this name, with the wildcards of a [`Subscription`](crate::Subscription): `invoice.*` means every name below
    /// `invoice.`, at every depth, and `*` every name. 1 to 255 characters.
    pub fn name(self, name: impl Into<String>) -> Self {
        EventFilter { name: Some(name.into()), ..self }
    }

    /// Events that this module published. 1 to 127 characters.
    pub fn source_module(self, module: impl Into<String>) -> Self {
        EventFilter { source_module: Some(module.into()), ..self }
    }

    /// Events about entities of this kind. 1 to 127 characters.
    pub fn aggregate_type(self, aggregate_type: impl Into<String>) -> Self {
        EventFilter { aggregate_type: Some(aggregate_type.into()), ..self }
    }

    /// Events about the entity of this id. 1 to 255 characters.
    pub fn aggregate_id(self, id: impl Into<String>) -> Self {
        EventFilter { aggregate_id: Some(id.into()), ..self }
    }

    /// Events in this status; called several times: in any of them.
    pub fn status(mut self, status: OutboxStatus) -> Self {
        if !self.statuses.contains(&status) {
            self.statuses.push(status);
        }
        self
    }

    /// Events of which this consumer has an inbox row: it has come to an outcome, good or bad, or was noted by the application.
    /// 1 to 255 characters.
    pub fn consumer(self, name: impl Into<String>) -> Self {
        EventFilter { consumer: Some(name.into()), ..self }
    }

    /// Events that were published at this moment or later.
    pub fn published_from(self, at: OffsetDateTime) -> Self {
        EventFilter { published_from: Some(at), ..self }
    }

    /// Events that were published before this moment.
    pub fn published_before(self, at: OffsetDateTime) -> Self {
        EventFilter { published_before: Some(at), ..self }
    }

    /// Events of this conversation. 1 to 255 characters.
    pub fn correlation_id(self, id: impl Into<String>) -> Self {
        EventFilter { correlation_id: Some(id.into()), ..self }
    }

    /// Events whose `last_error` has this text in it. 1 to 1023 characters.
    pub fn error_contains(self, text: impl Into<String>) -> Self {
        EventFilter { error_contains: Some(text.into()), ..self }
    }

    /// Events that are replayed to this consumer, perhaps among others: with [`OutboxStatus::Pending`], those that it has still to
    /// receive again. The others were last replayed to it. 1 to 255 characters.
    pub fn replayed_to(self, consumer: impl Into<String>) -> Self {
        EventFilter { replayed_to: Some(consumer.into()), ..self }
    }

    /// Events that have been processed: those that still are, and those that are or were replayed since, whatever has come of it. Those
    /// that were [cancelled](crate::Outbox::cancel) are not among them: they have never been.
    pub fn past(self) -> Self {
        EventFilter { is_past: true, ..self }
    }

    /// Events that have not started: no consumer has begun with them, and nobody has decided about them. They wait for their time or
    /// for a worker, and can be moved and cancelled: [`Outbox::reschedule`](crate::Outbox::reschedule),
    /// [`Outbox::cancel`](crate::Outbox::cancel).
    pub fn unstarted(self) -> Self {
        EventFilter { is_unstarted: true, ..self }
    }

    /// The same, unless it asks for another consumer already.
    pub(crate) fn or_replayed_to(self, consumer: &str) -> Self {
        if self.replayed_to.is_some() { self } else { self.replayed_to(consumer) }
    }

    /// The same, of these statuses alone; `None` where it asks for none of them.
    pub(crate) fn within(&self, statuses: &[OutboxStatus]) -> Option<Self> {
        let is_asked = |status: &&OutboxStatus| self.statuses.is_empty() || self.statuses.contains(status);
        let statuses: Vec<_> = statuses.iter().filter(is_asked).copied().collect();
        (!statuses.is_empty()).then(|| EventFilter { statuses, ..self.clone() })
    }

    /// Before anything is read or written.
    pub(crate) fn validate(&self) -> Result<()> {
        if let Some(name) = &self.name {
            validate::event_pattern(name)?;
        }
        for (field, value, max) in [
            ("source_module", &self.source_module, validate::MODULE_MAX),
            ("aggregate_type", &self.aggregate_type, validate::TYPE_MAX),
            ("aggregate_id", &self.aggregate_id, validate::ENTITY_ID_MAX),
            ("consumer", &self.consumer, validate::CONSUMER_MAX),
            ("correlation_id", &self.correlation_id, validate::CORRELATION_MAX),
            ("error_contains", &self.error_contains, validate::ERROR_MAX),
            ("consumer_name", &self.replayed_to, validate::CONSUMER_MAX),
        ] {
            if let Some(value) = value {
                validate::name(field, value, max)?;
            }
        }
        match (self.published_from, self.published_before) {
            (Some(from), Some(before)) if from > before => {
                Err(Error::invalid("published_from", "is later than published_before"))
            }
            _ => Ok(()),
        }
    }

    /// What to read for it: each part by itself, and none of its events is in two. With each the values for its statements.
    pub(crate) fn parts(&self) -> Vec<(Part, Vec<Value>)> {
        if self.statuses.is_empty() || self.statuses.contains(&OutboxStatus::Processed) {
            return vec![(Part::Table, self.values(&self.statuses))];
        }
        self.statuses
            .iter()
            .map(|status| match status {
                // Which status it is, the index says: the row need not be looked at for it.
                OutboxStatus::Pending => (Part::Due, self.values(&[])),
                OutboxStatus::Processing => (Part::Claimed, self.values(&[])),
                status => (Part::Dead, self.values(&[*status])),
            })
            .collect()
    }

    /// The values for a statement that says by itself which status is meant.
    pub(crate) fn values_of_any_status(&self) -> Vec<Value> {
        self.values(&[])
    }

    fn values(&self, statuses: &[OutboxStatus]) -> Vec<Value> {
        let status = |index: usize| statuses.get(index).map(|status| status.as_str().to_owned().into());
        let text = |text: &Option<String>| text.clone().map(Value::Text);
        let (exact, prefix) = match self.name.as_deref() {
            None | Some("*") => (None, None),
            Some(name) => match name.strip_suffix('*') {
                Some(prefix) => (None, Some(prefix)),
                None => (Some(name), None),
            },
        };
        let values: [Option<Value>; PARAMETERS] = [
            status(0),
            status(1),
            status(2),
            status(3),
            status(4),
            exact.map(|name| name.to_owned().into()),
            prefix.map(|prefix| prefix.to_owned().into()),
            text(&self.source_module),
            text(&self.aggregate_type),
            text(&self.aggregate_id),
            text(&self.consumer),
            self.published_from.map(|at| micros_rounded_up(at).into()),
            self.published_before.map(|at| micros_rounded_up(at).into()),
            text(&self.correlation_id),
            text(&self.error_contains),
            self.replayed_to.as_ref().map(|name| serde_json::Value::from(name.as_str()).to_string().into()),
            self.is_past.then_some(Value::Integer(1)),
            self.is_unstarted.then_some(Value::Integer(1)),
        ];
        values.into_iter().map(|value| value.unwrap_or(Value::Null)).collect()
    }
}

/// A part of `outbox_event` that is read by an index of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// What is pending: `outbox_event_due`.
    Due,
    /// What is processing: `outbox_event_claimed`.
    Claimed,
    /// Dead letters or failed ones, as ?1 says: `outbox_event_dead`.
    Dead,
    /// All of it.
    Table,
}

/// How many parameters the condition has.
pub(crate) const PARAMETERS: usize = 18;

/// The condition on `main.outbox_event AS e`, for `concat!`: always the same text, so that statements stay prepared. A
/// parameter that is NULL asks for nothing.
///
/// A prefix is compared by `substr`: LIKE and GLOB have wildcards of their own, and a range of a UTF-16 file is not in order of
/// the characters. A name in `deliver_to` stands as JSON writes it: in the midst of another name a backslash would be before its
/// quote. What was cancelled was never claimed, and says so in its error. A row whose `seq` no box gives has no inbox rows: shifted, its number would be some other event's.
macro_rules! matches_filter {
    () => {
        "(?1 IS NULL OR e.status IN (?1, ?2, ?3, ?4, ?5))
         AND (?6 IS NULL OR e.event_name = ?6)
         AND (?7 IS NULL OR (substr(e.event_name, 1, length(?7)) = ?7 AND e.event_name <> ?7))
         AND (?8 IS NULL OR e.source_module = ?8)
         AND (?9 IS NULL OR e.aggregate_type = ?9)
         AND (?10 IS NULL OR e.aggregate_id = ?10)
         AND (?12 IS NULL OR e.created_at >= ?12)
         AND (?13 IS NULL OR e.created_at < ?13)
         AND (?14 IS NULL OR e.correlation_id = ?14)
         AND (?15 IS NULL OR instr(e.last_error, ?15) > 0)
         AND (?16 IS NULL OR instr(e.deliver_to, '[' || ?16) > 0 OR instr(e.deliver_to, ',' || ?16) > 0)
         AND (?17 IS NULL OR e.deliver_to IS NOT NULL
              OR (e.status = 'processed'
                  AND (e.attempt_count > 0 OR substr(coalesce(e.last_error, ''), 1, 11) <> 'cancelled: ')))
         AND (?18 IS NULL
              OR (e.status = 'pending' AND e.attempt_count = 0 AND e.last_error IS NULL AND e.deliver_to IS NULL
                  AND (e.seq NOT BETWEEN 1 AND 8796093022207
                       OR NOT EXISTS (SELECT 1 FROM main.inbox_event AS i
                                      WHERE i.id BETWEEN e.seq << 20 AND (e.seq << 20) + 1048575))))
         AND (?11 IS NULL
              OR (e.seq BETWEEN 1 AND 8796093022207
                  AND EXISTS (SELECT 1 FROM main.inbox_event AS i
                              WHERE i.id = e.seq << 20 | (SELECT c.number FROM main.postbox_consumer AS c
                                                          INDEXED BY sqlite_autoindex_postbox_consumer_1
                                                          WHERE c.name = ?11 AND c.number BETWEEN 1 AND 1048575))))"
    };
}
pub(crate) use matches_filter;

/// Stored times are whole microseconds: one of them is at or after a moment exactly if it is at or after the next whole one.
fn micros_rounded_up(at: OffsetDateTime) -> i64 {
    let nanos = at.unix_timestamp_nanos();
    i64::try_from(nanos.div_euclid(1_000) + i128::from(nanos.rem_euclid(1_000) > 0)).unwrap_or(i64::MAX)
}

/// The error's text is left out: it may quote a payload, as the error itself.
impl fmt::Debug for EventFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventFilter")
            .field("name", &self.name)
            .field("source_module", &self.source_module)
            .field("aggregate_type", &self.aggregate_type)
            .field("aggregate_id", &self.aggregate_id)
            .field("statuses", &self.statuses)
            .field("consumer", &self.consumer)
            .field("published_from", &self.published_from)
            .field("published_before", &self.published_before)
            .field("correlation_id", &self.correlation_id)
            .field("replayed_to", &self.replayed_to)
            .field("is_past", &self.is_past)
            .field("is_unstarted", &self.is_unstarted)
            .finish_non_exhaustive()
    }
}
