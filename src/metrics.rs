//! Counters, gauges and histograms, through the [`metrics`](https://docs.rs/metrics) crate: feature `metrics`.
//!
//! The application installs a recorder (an exporter for Prometheus, for one), and gives its box a [`MetricsObserver`], which counts
//! as things happen. Gauges are looked up: [`record_gauges`] as often as they are collected, [`record_lag`] once a minute.
//!
//! | name | kind | labels | says |
//! |---|---|---|---|
//! | `postbox_published_total` | counter | `event` | events that were published |
//! | `postbox_processed_total` | counter | `event`, `consumer` | events that a consumer is done with, those that it skipped included |
//! | `postbox_skipped_total` | counter | `event`, `consumer` | events that a consumer skipped |
//! | `postbox_failed_total` | counter | `event`, `consumer` | failed attempts |
//! | `postbox_dead_letters_total` | counter | `event` | events that became dead letters, or failed for good |
//! | `postbox_drained_total` | counter | | times that nothing was due any more |
//! | `postbox_handler_seconds` | histogram | `consumer` | how long handlers ran |
//! | `postbox_pending`, `postbox_processing`, `postbox_dead_letters`, `postbox_failed` | gauge | | events in that status |
//! | `postbox_oldest_pending_seconds` | gauge | | age of the oldest pending event; 0 when there is none |
//! | `postbox_lost_leases` | gauge | | as [`Stats::lost_leases`](crate::Stats::lost_leases) |
//! | `postbox_worker_running`, `postbox_healthy` | gauge | | 1 or 0 |
//! | `postbox_file_bytes`, `postbox_wal_bytes` | gauge | | sizes; none in memory |
//! | `postbox_consumer_waiting` | gauge | `consumer` | events that wait for it: [`record_lag`] |
//! | `postbox_consumer_lag_seconds` | gauge | `consumer` | age of the oldest of them; 0 when there is none: [`record_lag`] |
//!
//! When a counter counts, [`Observer`] says. Ids are no labels. Of each label the first [`LABEL_VALUES_MAX`] values are told apart by
//! each observer; what comes later is counted under `other`.
//!
//! ```
//! use postbox::Postbox;
//! use postbox::metrics::{MetricsObserver, record_gauges};
//!
//! # fn main() -> postbox::Result<()> {
//! // After the recorder is installed.
//! let postbox = Postbox::builder().observer(MetricsObserver::new()).open_in_memory()?;
//! record_gauges(&postbox)?;
//! # Ok(())
//! # }
//! ```

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use metrics::{
    SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::error::Result;
use crate::health::Health;
use crate::observer::{DeadLettered, Drained, Failed, Finished, Observer, Published};
use crate::postbox::Postbox;
use crate::sync::RwLock;

/// So many values of each label are told apart.
pub const LABEL_VALUES_MAX: usize = 100;

/// Counts what a box does, through the recorder that is installed. Two boxes with one each add up in the same counters.
#[derive(Debug, Default)]
pub struct MetricsObserver {
    events: Values,
    consumers: Values,
}

impl MetricsObserver {
    /// Describes all metrics to the recorder that is installed: install it first, or they have no descriptions.
    pub fn new() -> Self {
        let counted = |name, says: &'static str| describe_counter!(name, Unit::Count, says);
        counted("postbox_published_total", "Events that were published");
        counted("postbox_processed_total", "Events that a consumer is done with");
        counted("postbox_skipped_total", "Events that a consumer skipped");
        counted("postbox_failed_total", "Failed attempts");
        counted("postbox_dead_letters_total", "Events that became dead letters, or failed for good");
        counted("postbox_drained_total", "Times that nothing was due any more");
        describe_histogram!("postbox_handler_seconds", Unit::Seconds, "How long handlers ran");
        let measured = |name, unit, says: &'static str| describe_gauge!(name, unit, says);
        measured("postbox_pending", Unit::Count, "Events that wait to be due or claimed");
        measured("postbox_processing", Unit::Count, "Events that are claimed");
        measured("postbox_dead_letters", Unit::Count, "Dead letters");
        measured("postbox_failed", Unit::Count, "Events that failed for good, where dead letters are off");
        measured("postbox_oldest_pending_seconds", Unit::Seconds, "Age of the oldest pending event");
        measured("postbox_lost_leases", Unit::Count, "Outcomes that were refused since the box was opened");
        measured("postbox_worker_running", Unit::Count, "1 while the box has a running worker");
        measured("postbox_healthy", Unit::Count, "1 while nothing is in the worker's way");
        measured("postbox_file_bytes", Unit::Bytes, "Size of the file");
        measured("postbox_wal_bytes", Unit::Bytes, "Size of its -wal");
        measured("postbox_consumer_waiting", Unit::Count, "Events that wait for a consumer");
        measured(
            "postbox_consumer_lag_seconds",
            Unit::Seconds,
            "Age of the oldest event that waits for a consumer",
        );
        MetricsObserver::default()
    }
}

impl Observer for MetricsObserver {
    fn published(&self, published: &Published<'_>) {
        counter!("postbox_published_total", "event" => self.events.label(published.event_name)).increment(1);
    }

    fn finished(&self, finished: &Finished<'_>) {
        let event = self.events.label(finished.event_name);
        let consumer = self.consumers.label(finished.consumer_name);
        counter!("postbox_processed_total", "event" => event.clone(), "consumer" => consumer.clone())
            .increment(1);
        if finished.skipped {
            counter!("postbox_skipped_total", "event" => event, "consumer" => consumer.clone()).increment(1);
        }
        histogram!("postbox_handler_seconds", "consumer" => consumer).record(finished.duration.as_secs_f64());
    }

    fn failed(&self, failed: &Failed<'_>) {
        let event = self.events.label(failed.event_name);
        let consumer = self.consumers.label(failed.consumer_name);
        counter!("postbox_failed_total", "event" => event, "consumer" => consumer.clone()).increment(1);
        if let Some(duration) = failed.duration {
            histogram!("postbox_handler_seconds", "consumer" => consumer).record(duration.as_secs_f64());
        }
    }

    fn dead_lettered(&self, dead_lettered: &DeadLettered<'_>) {
        let event = self.events.label(dead_lettered.event_name);
        counter!("postbox_dead_letters_total", "event" => event).increment(1);
    }

    fn drained(&self, _: &Drained) {
        counter!("postbox_drained_total").increment(1);
    }
}

/// Sets the gauges that [`Postbox::stats`] has: a fraction of a millisecond.
///
/// # Errors
/// When the file cannot be read. `postbox_worker_running` and `postbox_healthy` are not set then either: see
/// [`Postbox::health`].
pub fn record_gauges(postbox: &Postbox) -> Result<()> {
    let stats = postbox.stats()?;
    gauge!("postbox_pending").set(float(stats.pending));
    gauge!("postbox_processing").set(float(stats.processing));
    gauge!("postbox_dead_letters").set(float(stats.dead_letter));
    gauge!("postbox_failed").set(float(stats.failed));
    gauge!("postbox_oldest_pending_seconds").set(seconds(stats.oldest_pending_age_ms));
    gauge!("postbox_lost_leases").set(float(stats.lost_leases));
    gauge!("postbox_worker_running").set(f64::from(u8::from(stats.worker_running)));
    gauge!("postbox_healthy").set(f64::from(u8::from(stats.health == Health::Ok)));
    if let Some(bytes) = stats.file_bytes {
        gauge!("postbox_file_bytes").set(float(bytes));
    }
    if let Some(bytes) = stats.wal_bytes {
        gauge!("postbox_wal_bytes").set(float(bytes));
    }
    Ok(())
}

/// Sets the gauges that [`Postbox::lag`] has, which reads all live events. Of more than [`LABEL_VALUES_MAX`] consumers those that
/// come later by name are together under `other`: what waits for them is added up, and the oldest of it counts.
///
/// # Errors
/// When the file cannot be read.
pub fn record_lag(postbox: &Postbox) -> Result<()> {
    let lag = postbox.lag()?;
    let (told, others) = lag.split_at(lag.len().min(LABEL_VALUES_MAX));
    let set = |consumer: SharedString, waiting: u64, oldest_age_ms: Option<u64>| {
        gauge!("postbox_consumer_waiting", "consumer" => consumer.clone()).set(float(waiting));
        gauge!("postbox_consumer_lag_seconds", "consumer" => consumer).set(seconds(oldest_age_ms));
    };
    for one in told {
        set(SharedString::from(one.consumer_name.clone()), one.waiting, one.oldest_age_ms);
    }
    if !others.is_empty() {
        let waiting = others.iter().map(|one| one.waiting).sum();
        set(OTHER, waiting, others.iter().filter_map(|one| one.oldest_age_ms).max());
    }
    Ok(())
}

const OTHER: SharedString = SharedString::const_str("other");

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

fn seconds(age_ms: Option<u64>) -> f64 {
    float(age_ms.unwrap_or(0)) / 1_000.0
}

/// The values of one label that are told apart.
#[derive(Debug, Default)]
struct Values {
    known: RwLock<HashSet<Arc<str>>>,
}

impl Values {
    fn label(&self, value: &str) -> SharedString {
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(value) = known.get(value) {
                return SharedString::from_shared(Arc::clone(value));
            }
            if known.len() >= LABEL_VALUES_MAX {
                return OTHER;
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= LABEL_VALUES_MAX && !known.contains(value) {
            return OTHER;
        }
        let value: Arc<str> = known.get(value).cloned().unwrap_or_else(|| Arc::from(value));
        known.insert(Arc::clone(&value));
        SharedString::from_shared(value)
    }
}
