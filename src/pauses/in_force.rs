//! The pauses as a delivery looks at them.

use std::collections::HashMap;

use super::PauseTarget;
use crate::clock::PAUSED_UNTIL;

/// What a delivery needs to know of the pauses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pauses {
    consumers: HashMap<String, End>,
    event_names: HashMap<String, End>,
}

#[derive(Debug, Clone, Copy)]
struct End {
    /// `None`: when somebody resumes it. Negative: it is over.
    until: Option<i64>,
    is_in_file: bool,
}

impl End {
    fn is_in_force(self, now: i64) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// When an event is due that waits for this one: what the file does not know lets nobody go.
    fn due(self, now: i64) -> Option<i64> {
        match self.until.filter(|_| !self.is_in_file) {
            _ if !self.is_in_force(now) => None,
            Some(until) => Some(until),
            None => Some(PAUSED_UNTIL),
        }
    }
}

impl Pauses {
    /// What the file says.
    pub(super) fn insert(&mut self, target: PauseTarget, until: Option<i64>) {
        let end = End { until, is_in_file: true };
        match target {
            PauseTarget::Consumer(name) => self.consumers.insert(name, end),
            PauseTarget::EventName(name) => self.event_names.insert(name, end),
        };
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.consumers.is_empty() && self.event_names.is_empty()
    }

    /// When an event is due that waits for this consumer alone; `None` when it is not paused.
    pub(crate) fn of_consumer(&self, name: &str, now: i64) -> Option<i64> {
        self.consumers.get(name)?.due(now)
    }

    /// The same of an event's name.
    pub(crate) fn of_event_name(&self, name: &str, now: i64) -> Option<i64> {
        self.event_names.get(name)?.due(now)
    }

    /// Adds a pause of a consumer, unless one that lasts as long is there.
    pub(crate) fn add(&mut self, consumer: &str, until: i64, is_in_file: bool) {
        let lasts = |end: &End| end.until.is_none_or(|other| other >= until);
        if !self.consumers.get(consumer).is_some_and(lasts) {
            self.consumers.insert(consumer.to_owned(), End { until: Some(until), is_in_file });
        }
    }

    fn ends(&self) -> impl Iterator<Item = End> {
        self.consumers.values().chain(self.event_names.values()).copied()
    }

    /// Whether one in the file is over, so that what waited for it is to be let go.
    pub(crate) fn is_any_over(&self, now: i64) -> bool {
        self.ends().any(|end| end.is_in_file && !end.is_in_force(now))
    }

    /// When the next one ends by itself.
    pub(crate) fn next_end(&self, now: i64) -> Option<i64> {
        self.ends().filter_map(|end| end.until).filter(|until| *until > now).min()
    }

    /// Whether `newer` lacks one that was in force, as when another program deletes it.
    pub(crate) fn lost_one(&self, newer: &Pauses, now: i64) -> bool {
        let lost = |old: &HashMap<String, End>, new: &HashMap<String, End>| {
            old.iter().any(|(name, end)| end.is_in_file && end.is_in_force(now) && !new.contains_key(name))
        };
        lost(&self.consumers, &newer.consumers) || lost(&self.event_names, &newer.event_names)
    }
}
