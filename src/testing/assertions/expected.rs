//! Which event is meant.

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::report;
use crate::error::Result;
use crate::event::EventId;
use crate::handler::panic_message;
use crate::inbox::InboxStatus;
use crate::outbox::{EventFilter, OutboxEvent, OutboxStatus};
use crate::postbox::Postbox;
use crate::testing::describe;
use crate::testing::drains::expect;
use crate::testing::pattern::Pattern;

/// One event is asked for, or more.
#[derive(Debug)]
pub enum One {}

/// So many events are asked for.
#[derive(Debug)]
pub enum Many {}

/// What an event is to be like: what the assertions make of their arguments. Each method is an option of theirs by its name:
/// `assert_published!(postbox, "invoice.created", aggregate_id = "inv-1", count = 2)`.
#[derive(Debug)]
#[must_use = "it asserts nothing by itself"]
pub struct Expected<N = One> {
    subject: Subject,
    payload: Option<Pattern>,
    metadata: Option<Pattern>,
    texts: Vec<(&'static str, String)>,
    caused_by: Option<EventId>,
    version: Option<u32>,
    status: Option<OutboxStatus>,
    by: Option<String>,
    error: Option<String>,
    count: Option<usize>,
    number: PhantomData<N>,
}

/// Which event: by its name, a pattern such as `invoice.*`, or its id.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Subject {
    /// Of this name, or of a name that fits the pattern.
    Name(String),
    /// This one.
    Id(EventId),
}

impl From<&str> for Subject {
    fn from(name: &str) -> Self {
        Subject::Name(name.to_owned())
    }
}

impl From<String> for Subject {
    fn from(name: String) -> Self {
        Subject::Name(name)
    }
}

impl From<&String> for Subject {
    fn from(name: &String) -> Self {
        Subject::Name(name.clone())
    }
}

impl From<EventId> for Subject {
    fn from(id: EventId) -> Self {
        Subject::Id(id)
    }
}

/// What is asserted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Published,
    Processed,
    DeadLettered,
}

impl Expected<One> {
    /// With this name, or a name that fits a pattern such as `invoice.*` (`*` is every name), or this id.
    pub fn event(subject: impl Into<Subject>) -> Self {
        Expected {
            subject: subject.into(),
            payload: None,
            metadata: None,
            texts: Vec::new(),
            caused_by: None,
            version: None,
            status: None,
            by: None,
            error: None,
            count: None,
            number: PhantomData,
        }
    }

    /// There is one at the least: the first published.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn assert_published(self, postbox: &Postbox) -> OutboxEvent {
        self.first(postbox, Fate::Published)
    }

    /// The same of events that are processed.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn assert_processed(self, postbox: &Postbox) -> OutboxEvent {
        self.first(postbox, Fate::Processed)
    }

    /// The same of dead letters, and events that failed for good.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn assert_dead_lettered(self, postbox: &Postbox) -> OutboxEvent {
        self.first(postbox, Fate::DeadLettered)
    }

    /// There is none.
    ///
    /// # Panics
    /// When there is one.
    #[track_caller]
    pub fn refute_published(self, postbox: &Postbox) {
        let found = expect(self.find(postbox, Fate::Published), "look for events");
        assert!(found.is_empty(), "{}", report::found_all_the_same(&self.to_string(), &found));
    }

    #[track_caller]
    fn first(self, postbox: &Postbox, fate: Fate) -> OutboxEvent {
        let mut found = expect(self.find(postbox, fate), "look for events");
        let none = || expect(report::none(&self, fate, postbox), "list what there is");
        assert!(!found.is_empty(), "{}", none());
        found.swap_remove(0)
    }
}

impl Expected<Many> {
    /// All of them, in order of publishing: as many as were asked for.
    ///
    /// # Panics
    /// When they are more or less.
    #[track_caller]
    pub fn assert_published(self, postbox: &Postbox) -> Vec<OutboxEvent> {
        self.all(postbox, Fate::Published)
    }

    /// The same of events that are processed.
    ///
    /// # Panics
    /// When they are more or less.
    #[track_caller]
    pub fn assert_processed(self, postbox: &Postbox) -> Vec<OutboxEvent> {
        self.all(postbox, Fate::Processed)
    }

    /// The same of dead letters, and events that failed for good.
    ///
    /// # Panics
    /// When they are more or less.
    #[track_caller]
    pub fn assert_dead_lettered(self, postbox: &Postbox) -> Vec<OutboxEvent> {
        self.all(postbox, Fate::DeadLettered)
    }

    #[track_caller]
    fn all(self, postbox: &Postbox, fate: Fate) -> Vec<OutboxEvent> {
        let found = expect(self.find(postbox, fate), "look for events");
        let wanted = self.count.unwrap_or(0);
        let other =
            || expect(report::other_count(&self, fate, wanted, &found, postbox), "list what there is");
        assert!(found.len() == wanted, "{}", other());
        found
    }
}

impl<N> Expected<N> {
    /// So many of them, and no more: the assertion then gives all of them.
    pub fn count(self, n: usize) -> Expected<Many> {
        let Expected { subject, payload, metadata, texts, caused_by, version, status, by, error, .. } = self;
        Expected {
            subject,
            payload,
            metadata,
            texts,
            caused_by,
            version,
            status,
            by,
            error,
            count: Some(n),
            number: PhantomData,
        }
    }

    /// What its payload looks like.
    pub fn payload(self, pattern: impl Into<Pattern>) -> Self {
        Expected { payload: Some(pattern.into()), ..self }
    }

    /// What its metadata look like. [`absent()`](crate::testing::absent): it has none.
    pub fn metadata(self, pattern: impl Into<Pattern>) -> Self {
        Expected { metadata: Some(pattern.into()), ..self }
    }

    /// The module that published it.
    pub fn source_module(self, module: impl Into<String>) -> Self {
        self.text("source_module", module.into())
    }

    /// What kind of entity it is about.
    pub fn aggregate_type(self, aggregate_type: impl Into<String>) -> Self {
        self.text("aggregate_type", aggregate_type.into())
    }

    /// Which entity it is about.
    pub fn aggregate_id(self, id: impl Into<String>) -> Self {
        self.text("aggregate_id", id.into())
    }

    /// The conversation that it belongs to.
    pub fn correlation_id(self, id: impl Into<String>) -> Self {
        self.text("correlation_id", id.into())
    }

    /// The event whose handler published it.
    pub fn caused_by(self, id: EventId) -> Self {
        Expected { caused_by: Some(id), ..self }
    }

    /// The version of its payload's shape.
    pub fn version(self, version: u32) -> Self {
        Expected { version: Some(version), ..self }
    }

    /// Where it is on its way.
    pub fn status(self, status: OutboxStatus) -> Self {
        Expected { status: Some(status), ..self }
    }

    /// The consumer that has processed it, or failed it: for `assert_processed!` and `assert_dead_lettered!`. For
    /// `assert_published!`: that has come to an outcome about it.
    pub fn by(self, consumer: impl Into<String>) -> Self {
        Expected { by: Some(consumer.into()), ..self }
    }

    /// Text in its last error; with [`by`](Expected::by), in the consumer's.
    pub fn error(self, text: impl Into<String>) -> Self {
        Expected { error: Some(text.into()), ..self }
    }

    fn text(mut self, field: &'static str, value: String) -> Self {
        self.texts.push((field, value));
        self
    }

    fn find(&self, postbox: &Postbox, fate: Fate) -> Result<Vec<OutboxEvent>> {
        let events = match &self.subject {
            Subject::Id(id) => describe::read_event(postbox, *id)?.into_iter().collect(),
            Subject::Name(name) => {
                describe::read_events(postbox, &EventFilter::new().name(name), usize::MAX)?
            }
        };
        let mut found = Vec::new();
        for event in events {
            // JSON last: a closure in a pattern may expect what the rest of it asks for.
            if self.differences_of_row(&event, postbox, fate)?.is_empty()
                && self.differences_of_json(&event).is_empty()
            {
                found.push(event);
            }
        }
        Ok(found)
    }

    /// What is different about this event, the name or id first. A closure in a pattern is asked about events here that it was not
    /// written for: where it panics, the report goes on.
    pub(super) fn differences(
        &self,
        event: &OutboxEvent,
        postbox: &Postbox,
        fate: Fate,
    ) -> Result<Vec<String>> {
        let mut found = self.differences_of_row(event, postbox, fate)?;
        match catch_unwind(AssertUnwindSafe(|| self.differences_of_json(event))) {
            Ok(in_json) => found.extend(in_json),
            Err(panic) => {
                found.push(format!("payload or metadata: a closure {}", panic_message(panic)));
            }
        }
        Ok(found)
    }

    fn differences_of_row(&self, event: &OutboxEvent, postbox: &Postbox, fate: Fate) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut differ = |what: &str, wanted: &str, is: &str| {
            found.push(format!("{what}: wanted {wanted}, found {is}"));
        };
        match &self.subject {
            Subject::Name(name) if !is_named(&event.event_name, name) => {
                differ("name", name, &event.event_name);
            }
            Subject::Id(id) if *id != event.id => differ("id", &id.to_string(), &event.id.to_string()),
            _ => {}
        }
        for (field, wanted) in &self.texts {
            let is = match *field {
                "source_module" => Some(event.source_module.as_str()),
                "aggregate_type" => Some(event.aggregate_type.as_str()),
                "aggregate_id" => Some(event.aggregate_id.as_str()),
                _ => event.correlation_id.as_deref(),
            };
            if is != Some(wanted) {
                differ(field, wanted, is.unwrap_or("none"));
            }
        }
        if self.caused_by.is_some() && event.causation_id != self.caused_by {
            let id = |id: Option<EventId>| id.map_or("nothing".to_owned(), |id| id.to_string());
            differ("caused by", &id(self.caused_by), &id(event.causation_id));
        }
        if let Some(version) = self.version.filter(|version| *version != event.version) {
            differ("version", &version.to_string(), &event.version.to_string());
        }
        if let Some(status) = self.status.filter(|status| *status != event.status) {
            differ("status", status.as_str(), event.status.as_str());
        }
        found.extend(self.differences_of_fate(event, postbox, fate)?);
        Ok(found)
    }

    fn differences_of_json(&self, event: &OutboxEvent) -> Vec<String> {
        let payload = self.payload.iter().flat_map(|pattern| pattern.mismatches(Some(&event.payload)));
        let metadata = self.metadata.iter().flat_map(|pattern| pattern.mismatches(event.metadata.as_ref()));
        payload
            .map(|mismatch| format!("payload {mismatch}"))
            .chain(metadata.map(|mismatch| format!("metadata {mismatch}")))
            .collect()
    }

    /// What has become of it.
    fn differences_of_fate(&self, event: &OutboxEvent, postbox: &Postbox, fate: Fate) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut error = event.last_error.clone();
        if let Some(consumer) = &self.by {
            let story = postbox.outbox().story(event.id)?;
            let row =
                story.and_then(|story| story.inbox.into_iter().find(|row| row.consumer_name == *consumer));
            let is = row.as_ref().map(|row| row.status);
            let is_so = match fate {
                Fate::Published => is.is_some(),
                Fate::Processed => matches!(is, Some(InboxStatus::Processed | InboxStatus::Skipped)),
                Fate::DeadLettered => is == Some(InboxStatus::Failed) && is_dead(event),
            };
            if !is_so {
                let is = is.map_or("it has not come to an outcome", InboxStatus::as_str);
                found.push(format!("consumer {consumer}: {is}; the event is {}", event.status));
            }
            error = row.and_then(|row| row.last_error);
        } else {
            let wanted = match fate {
                Fate::Processed if event.status != OutboxStatus::Processed => Some("processed"),
                Fate::DeadLettered if !is_dead(event) => Some("dead_letter"),
                _ => None,
            };
            if let Some(wanted) = wanted {
                let waits = describe::waits_for_in(event, postbox);
                let error = event.last_error.as_ref().map(|error| format!("; last error: {error}"));
                found.push(format!(
                    "status: wanted {wanted}, found {}: it {waits}{}",
                    event.status,
                    error.unwrap_or_default()
                ));
            }
        }
        if let Some(wanted) = &self.error
            && !error.as_ref().is_some_and(|error| error.contains(wanted))
        {
            let is = error.unwrap_or("none".to_owned());
            found.push(format!("error: wanted one with {wanted:?}, found {is}"));
        }
        Ok(found)
    }

    /// What the name or id is to be, for closeness.
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }
}

fn is_dead(event: &OutboxEvent) -> bool {
    matches!(event.status, OutboxStatus::DeadLetter | OutboxStatus::Failed)
}

/// As [`EventFilter::name`] has it.
fn is_named(name: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(prefix) => name.len() > prefix.len() && name.starts_with(prefix),
        None => name == wanted,
    }
}

/// What was asked for.
impl<N> std::fmt::Display for Expected<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.subject {
            Subject::Name(name) => write!(f, "{name}")?,
            Subject::Id(id) => write!(f, "event {id}")?,
        }
        for (field, value) in &self.texts {
            write!(f, ", {field} {value}")?;
        }
        if let Some(id) = self.caused_by {
            write!(f, ", caused by {id}")?;
        }
        if let Some(version) = self.version {
            write!(f, ", version {version}")?;
        }
        if let Some(status) = self.status {
            write!(f, ", status {status}")?;
        }
        if let Some(consumer) = &self.by {
            write!(f, ", by {consumer}")?;
        }
        if let Some(error) = &self.error {
            write!(f, ", error with {error:?}")?;
        }
        if let Some(pattern) = &self.payload {
            write!(f, "\n  payload like {pattern}")?;
        }
        if let Some(pattern) = &self.metadata {
            write!(f, "\n  metadata like {pattern}")?;
        }
        Ok(())
    }
}
