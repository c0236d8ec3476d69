//! The table `postbox_setting`: what an operator may change while the application runs.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{self, Error, Result};
use crate::outbox::OutboxStatus;
use crate::validate;

/// What happens to an event that nobody subscribes to when it is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnhandledEvents {
    /// It is processed, with one warning for each name: a consumer that subscribes later never receives it. The default.
    #[default]
    Complete,
    /// It stays pending, at no cost to claiming, until somebody subscribes to it, also when the setting goes back.
    Hold,
}

/// What can be tuned at run time. Stored in the file under the keys named here, each behind the prefix
/// `core.integration.outbox.`; a key that the file does not hold has the application's default
/// ([`Builder::settings`](crate::Builder::settings)), or else the one given here. Times are at most 366 days, batch sizes at
/// most 100,000. Build one with `..Settings::default()`: fields will be added.
///
/// ```
/// # use postbox::Postbox;
/// # fn main() -> postbox::Result<()> {
/// let postbox = Postbox::open_in_memory()?;
/// postbox.update_settings(|settings| settings.batch_size = 100)?;
/// assert_eq!(postbox.settings().batch_size, 100);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// `enabled`, true: the whole outbox's processing. Publishing goes on while it is off, and nothing is lost.
    pub enabled: bool,
    /// `processor.enabled`, true: the worker's processing. `process_batch` and `drain` by hand go on while it is off.
    pub processor_enabled: bool,
    /// `startupDrainEnabled`, true: a worker's first pass takes the whole backlog in batches of
    /// `startup_drain_batch_size`. Off: the loop takes it in its ordinary batches.
    pub startup_drain_enabled: bool,
    /// `pollingIntervalMs`, 5000, at least 100: how long the worker sleeps at the most after it has found work.
    pub polling_interval_ms: u64,
    /// `idlePollingIntervalMs`, 30000, at least `polling_interval_ms`: the same once it has found none.
    pub idle_polling_interval_ms: u64,
    /// `batchSize`, 10, at least 1: how many events are claimed and in flight at once.
    pub batch_size: u32,
    /// `maxAttempts`, 3, at least 1: for subscriptions without a number of their own.
    pub max_attempts: u32,
    /// `processingLeaseMs`, 30000, at least 1000: how long a claim lasts unless it is renewed. The worker renews at a
    /// third of it while handlers run; `process_batch` and `drain` do not.
    pub processing_lease_ms: u64,
    /// `retryBaseDelayMs`, 1000, at least 100: the delay after the first failure, doubled with each further one, for
    /// subscriptions without a backoff of their own.
    pub retry_base_delay_ms: u64,
    /// `deadLetterEnabled`, true: an event whose attempts are used up is a dead letter. Off: it is `failed`.
    pub dead_letter_enabled: bool,
    /// `startupDrainBatchSize`, 50, at least 1: how many events are in flight at once during the startup drain.
    pub startup_drain_batch_size: u32,
    /// `unhandledEvents`, `complete`: what happens to an event that nobody subscribes to.
    pub unhandled_events: UnhandledEvents,
    /// `retentionMs`, 0, otherwise 1,000 to 100 years: how long processed events are kept, with their inbox rows and their history,
    /// counted from when they were processed. A worker deletes them after that, a few at a time, and
    /// [`Postbox::prune`](crate::Postbox::prune) at once. 0 keeps them for ever. Dead letters, failed and pending events are never
    /// deleted. An idempotency key is known for as long as its event is kept. Sagas that have ended are kept as long, from when they last changed.
    pub retention_ms: u64,
    /// `retentionByEvent`, `{}`: the same for events of these names (exact, at most 1,000 of them), instead of `retention_ms`.
    pub retention_by_event: BTreeMap<String, u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            enabled: true,
            processor_enabled: true,
            startup_drain_enabled: true,
            polling_interval_ms: 5_000,
            idle_polling_interval_ms: 30_000,
            batch_size: 10,
            max_attempts: 3,
            processing_lease_ms: 30_000,
            retry_base_delay_ms: 1_000,
            dead_letter_enabled: true,
            startup_drain_batch_size: 50,
            unhandled_events: UnhandledEvents::Complete,
            retention_ms: 0,
            retention_by_event: BTreeMap::new(),
        }
    }
}

const PREFIX: &str = "core.integration.outbox.";

/// Each field and its key in the file.
const KEYS: [(&str, &str); 14] = [
    ("enabled", "enabled"),
    ("processor_enabled", "processor.enabled"),
    ("startup_drain_enabled", "startupDrainEnabled"),
    ("polling_interval_ms", "pollingIntervalMs"),
    ("idle_polling_interval_ms", "idlePollingIntervalMs"),
    ("batch_size", "batchSize"),
    ("max_attempts", "maxAttempts"),
    ("processing_lease_ms", "processingLeaseMs"),
    ("retry_base_delay_ms", "retryBaseDelayMs"),
    ("dead_letter_enabled", "deadLetterEnabled"),
    ("startup_drain_batch_size", "startupDrainBatchSize"),
    ("unhandled_events", "unhandledEvents"),
    ("retention_ms", "retentionMs"),
    ("retention_by_event", "retentionByEvent"),
];

/// A lease or a delay longer than this is a mistake of units.
const MILLIS_MAX: u64 = 366 * 86_400_000;

/// A hundred years.
const RETENTION_MAX: u64 = 36_525 * 86_400_000;

const RETENTION_NAMES_MAX: usize = 1_000;

/// In flight is bounded by memory too.
const BATCH_MAX: u32 = 100_000;

impl Settings {
    pub(crate) fn validate(&self) -> Result<()> {
        self.validate_each()?;
        if self.idle_polling_interval_ms < self.polling_interval_ms {
            let reason = format!(
                "must be at least polling_interval_ms ({}), not {}",
                self.polling_interval_ms, self.idle_polling_interval_ms
            );
            return Err(Error::invalid("idle_polling_interval_ms", reason));
        }
        Ok(())
    }

    /// Each value by itself.
    fn validate_each(&self) -> Result<()> {
        let within = |field: &'static str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::invalid(field, format!("must be from {least} to {most}, not {value}")))
            }
        };
        within("polling_interval_ms", self.polling_interval_ms, 100, MILLIS_MAX)?;
        within("idle_polling_interval_ms", self.idle_polling_interval_ms, 100, MILLIS_MAX)?;
        within("batch_size", self.batch_size.into(), 1, BATCH_MAX.into())?;
        within("max_attempts", self.max_attempts.into(), 1, u32::MAX.into())?;
        within("processing_lease_ms", self.processing_lease_ms, 1_000, MILLIS_MAX)?;
        within("retry_base_delay_ms", self.retry_base_delay_ms, 100, MILLIS_MAX)?;
        within("startup_drain_batch_size", self.startup_drain_batch_size.into(), 1, BATCH_MAX.into())?;
        if self.retention_by_event.len() > RETENTION_NAMES_MAX {
            let reason = format!(
                "must be of at most {RETENTION_NAMES_MAX} names, not {}",
                self.retention_by_event.len()
            );
            return Err(Error::invalid("retention_by_event", reason));
        }
        for (name, retention_ms) in &self.retention_by_event {
            validate::event_name(name).map_err(|error| match error {
                Error::Invalid { reason, .. } => {
                    Error::invalid("retention_by_event", format!("a name {reason}"))
                }
                error => error,
            })?;
            if *retention_ms != 0 {
                within("retention_by_event", *retention_ms, 1_000, RETENTION_MAX)?;
            }
        }
        if self.retention_ms == 0 {
            Ok(())
        } else {
            within("retention_ms", self.retention_ms, 1_000, RETENTION_MAX)
        }
    }

    /// How long processed events of this name are kept, in milliseconds; `None` for ever.
    pub(crate) fn retention_of(&self, event_name: &str) -> Option<u64> {
        let retention = self.retention_by_event.get(event_name).copied().unwrap_or(self.retention_ms);
        Some(retention).filter(|retention| *retention > 0)
    }

    /// The shortest time for which any are kept; `None` where all are for ever.
    pub(crate) fn shortest_retention(&self) -> Option<u64> {
        let all = self.retention_by_event.values().copied().chain([self.retention_ms]);
        all.filter(|retention| *retention > 0).min()
    }

    /// Whether events may be claimed: by a worker, or by hand.
    pub(crate) fn allow_processing(&self, by_worker: bool) -> bool {
        self.enabled && (self.processor_enabled || !by_worker)
    }

    /// What becomes of an event that nobody will process.
    pub(crate) fn dead_status(&self) -> OutboxStatus {
        if self.dead_letter_enabled { OutboxStatus::DeadLetter } else { OutboxStatus::Failed }
    }

    /// With another value in one field, if that value is sound by itself.
    fn with(&self, field: &str, value: Value) -> Result<Settings> {
        let mut fields = self.to_fields()?;
        fields.insert(field.to_owned(), value);
        let settings: Settings = serde_json::from_value(Value::Object(fields))?;
        settings.validate_each()?;
        Ok(settings)
    }

    fn to_fields(&self) -> Result<Map<String, Value>> {
        match serde_json::to_value(self)? {
            Value::Object(fields) => Ok(fields),
            _ => Ok(Map::new()),
        }
    }
}

/// `defaults`, with what the file holds over them. A value that cannot be used is passed over with a warning, alone.
///
/// `is_news` says whether a warning about a key is the first: the settings are loaded again and again.
pub(crate) fn load(
    conn: &Connection,
    defaults: &Settings,
    is_news: impl Fn(&str) -> bool,
) -> Result<Settings> {
    let mut settings = defaults.clone();
    let mut statement =
        conn.prepare_cached("SELECT key, value FROM main.postbox_setting WHERE key >= ?1 AND key < ?2")?;
    let mut rows = statement.query([PREFIX, "core.integration.outbox/"])?;
    while let Some(row) = rows.next()? {
        let (key, value) = (row.get_ref(0)?.as_bytes(), row.get_ref(1)?.as_bytes());
        let key = key.ok().map(String::from_utf8_lossy).unwrap_or_default();
        // A key that this release does not know may be a later one's.
        let Some((field, _)) = KEYS.iter().find(|(_, name)| key.strip_prefix(PREFIX) == Some(name)) else {
            continue;
        };
        match value.ok().and_then(|value| settings.with(field, serde_json::from_slice(value).ok()?).ok()) {
            Some(with) => settings = with,
            None if is_news(&key) => {
                log::warn!(target: "postbox::settings", "the file's value of {key} cannot be used and is passed over");
            }
            None => {}
        }
    }
    if settings.idle_polling_interval_ms < settings.polling_interval_ms {
        if is_news("idlePollingIntervalMs below pollingIntervalMs") {
            log::warn!(target: "postbox::settings", "the file's idlePollingIntervalMs is below pollingIntervalMs, which is used for both");
        }
        settings.idle_polling_interval_ms = settings.polling_interval_ms;
    }
    Ok(settings)
}

/// Keys of this release whose values [`load`] passes over.
pub(crate) fn unusable(conn: &Connection) -> Result<Vec<String>> {
    let passed_over = RefCell::new(Vec::new());
    load(conn, &Settings::default(), |key| {
        passed_over.borrow_mut().push(key.to_owned());
        false
    })?;
    Ok(passed_over.into_inner())
}

/// What the file holds of this release's settings, by the names of the fields, in their order: values that cannot be used
/// included, as texts where they are no JSON.
pub(crate) fn stored(conn: &Connection) -> Result<Vec<(&'static str, Value)>> {
    let mut found = Vec::new();
    for (field, name) in KEYS {
        let value: Option<String> = conn
            .prepare_cached("SELECT value FROM main.postbox_setting WHERE key = ?1")?
            .query_row([format!("{PREFIX}{name}")], |row| row.get(0))
            .optional()?;
        if let Some(value) = value {
            found.push((field, serde_json::from_str(&value).unwrap_or(Value::String(value))));
        }
    }
    Ok(found)
}

/// Stores one setting, also where it is the application's default.
pub(crate) fn store_one(
    conn: &Connection,
    defaults: &Settings,
    field: &str,
    value: Value,
    now: i64,
) -> Result<()> {
    let Some((field, name)) = KEYS.iter().find(|(known, _)| *known == field) else {
        let known: Vec<&str> = KEYS.iter().map(|(field, _)| *field).collect();
        return Err(Error::invalid("key", format!("must be one of {}", known.join(", "))));
    };
    let stored = value.to_string();
    let wanted = load(conn, defaults, |_| false)?.with(field, value).map_err(|error| match error {
        Error::Json(error) => Error::invalid(field, error::describe_json(&error)),
        error => error,
    })?;
    wanted.validate()?;
    write(conn, name, &stored, now)
}

/// Stores what differs. The rest keeps following the application's defaults.
pub(crate) fn store(conn: &Connection, old: &Settings, new: &Settings, now: i64) -> Result<()> {
    let (old, new) = (old.to_fields()?, new.to_fields()?);
    for (field, name) in KEYS {
        if old.get(field) != new.get(field) {
            write(conn, name, &new.get(field).unwrap_or(&Value::Null).to_string(), now)?;
        }
    }
    Ok(())
}

fn write(conn: &Connection, name: &str, value: &str, now: i64) -> Result<()> {
    let stored = conn
        .prepare_cached(
            "INSERT INTO main.postbox_setting (key, value, updated_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
        )?
        .execute(params![format!("{PREFIX}{name}"), value, now])?;
    if stored == 1 { Ok(()) } else { Err(Error::NotStored { what: "the setting", table: "postbox_setting" }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_key_and_every_key_a_field() {
        let fields = Settings::default().to_fields().unwrap();
        assert_eq!(fields.len(), KEYS.len());
        assert!(KEYS.iter().all(|(field, _)| fields.contains_key(*field)));
    }

    #[test]
    fn the_least_values_are_taken_and_smaller_ones_are_not() {
        let least = Settings {
            polling_interval_ms: 100,
            idle_polling_interval_ms: 100,
            batch_size: 1,
            max_attempts: 1,
            processing_lease_ms: 1_000,
            retry_base_delay_ms: 100,
            startup_drain_batch_size: 1,
            ..Settings::default()
        };
        least.validate().unwrap();
        for (field, bad) in [
            ("polling_interval_ms", Settings { polling_interval_ms: 99, ..least.clone() }),
            ("idle_polling_interval_ms", Settings { polling_interval_ms: 101, ..least.clone() }),
            ("batch_size", Settings { batch_size: 0, ..least.clone() }),
            ("max_attempts", Settings { max_attempts: 0, ..least.clone() }),
            ("processing_lease_ms", Settings { processing_lease_ms: 999, ..least.clone() }),
            ("retry_base_delay_ms", Settings { retry_base_delay_ms: 99, ..least.clone() }),
            ("startup_drain_batch_size", Settings { startup_drain_batch_size: 0, ..least.clone() }),
        ] {
            match bad.validate() {
                Err(Error::Invalid { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }
}
