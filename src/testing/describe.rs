//! Events in words, for whoever reads why a test failed. Payloads and errors are shown: they are the test's own.

use std::fmt::Write as _;
use std::time::Duration;

use time::OffsetDateTime;

use super::pattern;
use crate::clock::{HELD_UNTIL, LIMITED_UNTIL, NEWER_UNTIL, PAUSED_UNTIL, WAITING_UNTIL, from_micros};
use crate::error::{Error, Result};
use crate::event::EventId;
use crate::outbox::{EventFilter, OutboxEvent, OutboxStatus};
use crate::page::Page;
use crate::postbox::Postbox;

/// The events that the filter means, in order of publishing or, where there are more than `max`, the last of them.
pub(super) fn read_events(postbox: &Postbox, filter: &EventFilter, max: usize) -> Result<Vec<OutboxEvent>> {
    let mut events = Vec::new();
    let mut page = Page::newest(max.clamp(1, 1_000));
    loop {
        let found = postbox.outbox().list(filter, &page)?;
        for event in found.events {
            events.extend(read_event(postbox, event.id)?);
        }
        match found.next {
            Some(next) if events.len() < max => page = page.after(next),
            _ => break,
        }
    }
    events.truncate(max);
    events.reverse();
    Ok(events)
}

/// A payload that cannot be read, since another program wrote it, is `null`.
pub(super) fn read_event(postbox: &Postbox, id: EventId) -> Result<Option<OutboxEvent>> {
    match postbox.outbox().get(id) {
        Err(Error::Json(_)) => Ok(postbox.outbox().story(id)?.map(|story| story.event)),
        read => read,
    }
}

fn now(postbox: &Postbox) -> OffsetDateTime {
    from_micros(postbox.core().clock.now())
}

/// `invoice.created  finance/Invoice/inv-1  pending  0198...`
pub(super) fn line(event: &OutboxEvent) -> String {
    let OutboxEvent { event_name, source_module, aggregate_type, aggregate_id, status, id, .. } = event;
    format!("{event_name}  {source_module}/{aggregate_type}/{aggregate_id}  {status}  {id}")
}

/// The payload on one line, cut where it is long.
pub(super) fn payload(event: &OutboxEvent) -> String {
    pattern::shown(&event.payload)
}

/// What an event that is not finished waits for in this box.
pub(super) fn waits_for_in(event: &OutboxEvent, postbox: &Postbox) -> String {
    waits_for(event, now(postbox))
}

/// What an event that is not finished waits for, as far as its row says.
fn waits_for(event: &OutboxEvent, now: OffsetDateTime) -> String {
    let micros = i64::try_from(event.available_at.unix_timestamp_nanos() / 1_000).unwrap_or(HELD_UNTIL);
    let attempts = match event.attempt_count {
        0 => String::new(),
        1 => ", after 1 attempt".to_owned(),
        n => format!(", after {n} attempts"),
    };
    let what = match (event.status, micros) {
        (OutboxStatus::Processed | OutboxStatus::Failed | OutboxStatus::DeadLetter, _) => {
            "is finished".to_owned()
        }
        (OutboxStatus::Processing, _) => {
            format!("is claimed, under a lease that ends {}", relative(event.available_at, now))
        }
        (OutboxStatus::Pending, HELD_UNTIL) => "waits for somebody who subscribes to it".to_owned(),
        (OutboxStatus::Pending, PAUSED_UNTIL) => "waits for the end of a pause".to_owned(),
        (OutboxStatus::Pending, WAITING_UNTIL) => {
            "waits for its turn, behind an earlier event of its aggregate".to_owned()
        }
        (OutboxStatus::Pending, LIMITED_UNTIL) => "waits for room under a consumer's limits".to_owned(),
        (OutboxStatus::Pending, NEWER_UNTIL) => {
            format!("waits for a subscription that can read version {}", event.version)
        }
        (OutboxStatus::Pending, _) => format!("is due {}", relative(event.available_at, now)),
    };
    what + &attempts
}

fn relative(at: OffsetDateTime, now: OffsetDateTime) -> String {
    match Duration::try_from(at - now) {
        Ok(Duration::ZERO) => "now".to_owned(),
        Ok(left) => format!("in {left:?}"),
        Err(_) => match Duration::try_from(now - at) {
            Ok(past) => format!("since {past:?}"),
            Err(_) => "now".to_owned(),
        },
    }
}

/// Events that are not finished: so many, each with what it waits for and its last error.
pub(super) fn unfinished(postbox: &Postbox) -> Result<String> {
    const SHOWN_MAX: usize = 10;
    let filter = EventFilter::new().status(OutboxStatus::Pending).status(OutboxStatus::Processing);
    let count = postbox.outbox().count(&filter)?;
    let now = now(postbox);
    let mut text = match count {
        0 => "no event is left".to_owned(), // a schedule's next tick is
        1 => "1 event is left:".to_owned(),
        count => format!("{count} events are left:"),
    };
    let page = postbox.outbox().list(&filter, &Page::oldest(SHOWN_MAX))?;
    for summary in page.events {
        let Some(event) = read_event(postbox, summary.id)? else { continue };
        let _ = write!(text, "\n  {}\n    {}", line(&event), waits_for(&event, now));
        if let Some(error) = &event.last_error {
            let _ = write!(text, "\n    last error: {error}");
        }
    }
    if count > SHOWN_MAX as u64 {
        let _ = write!(text, "\n  and {} more", count - SHOWN_MAX as u64);
    }
    Ok(text)
}

/// All that became of one event.
pub(super) fn story(postbox: &Postbox, id: EventId) -> Result<String> {
    let Some(story) = postbox.outbox().story(id)? else { return Ok(format!("there is no event {id}")) };
    let event = &story.event;
    let mut text = format!("{}\n  {}", line(event), waits_for(event, now(postbox)));
    if let Some(error) = &event.last_error {
        let _ = write!(text, "\n  last error: {error}");
    }
    let _ = write!(text, "\n  payload: {}", payload(event));
    if story.inbox.is_empty() {
        text.push_str("\n  no consumer has come to an outcome");
    }
    for row in &story.inbox {
        let _ = write!(text, "\n  consumer {}: {}", row.consumer_name, row.status);
        if row.attempt_count > 0 {
            let _ = write!(text, ", failed attempts: {}", row.attempt_count);
        }
        if let Some(error) = &row.last_error {
            let _ = write!(text, ", {error}");
        }
    }
    let consumers = postbox.registry().consumers(&event.event_name);
    let _ = match consumers.len() {
        0 => write!(text, "\n  nobody subscribes to it in this box"),
        _ => write!(text, "\n  subscribed in this box: {}", consumers.join(", ")),
    };
    for entry in &story.history {
        let consumer = entry.consumer_name.as_deref().unwrap_or("all");
        let detail = entry.detail.as_deref().unwrap_or_default();
        let _ = write!(text, "\n  history: {} {} ({consumer}) {detail}", entry.at, entry.kind);
    }
    Ok(text)
}
