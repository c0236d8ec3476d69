//! How events are shown: without what they say.

use std::fmt::Write as _;

use postbox::time::OffsetDateTime;
use postbox::{EventPage, EventSummary};

use crate::show::{self, Table};

/// Events of any kind, below each other.
pub(crate) fn table<'a>(events: impl IntoIterator<Item = &'a EventSummary>, empty: &str) -> String {
    let mut table =
        Table::new(["id", "published", "event", "module", "type", "entity id", "status", "attempts"])
            .right(7);
    for event in events {
        table.row([
            event.id.to_string(),
            show::time(event.created_at),
            event.event_name.clone(),
            event.source_module.clone(),
            event.aggregate_type.clone(),
            event.aggregate_id.clone(),
            status(event),
            event.attempt_count.to_string(),
        ]);
    }
    table.render(empty)
}

/// Events that are still to come, below each other.
pub(crate) fn table_of_future(events: &[EventSummary]) -> String {
    let mut table = Table::new(["due", "event", "module", "type", "entity id", "published", "id"]);
    for event in events {
        table.row([
            due(event.available_at),
            event.event_name.clone(),
            event.source_module.clone(),
            event.aggregate_type.clone(),
            event.aggregate_id.clone(),
            show::time(event.created_at),
            event.id.to_string(),
        ]);
    }
    table.render("No events are to come.")
}

/// In one line.
pub(crate) fn line(event: &EventSummary) -> String {
    let (id, name, status) = (event.id, &event.event_name, status(event));
    let (module, kind, entity) = (&event.source_module, &event.aggregate_type, &event.aggregate_id);
    format!("{name} of {module}/{kind}/{entity}, {status}, {id}")
}

/// What another program has spoilt stands behind it.
pub(crate) fn status(event: &EventSummary) -> String {
    let mut shown = event.status.to_string();
    if !event.unreadable.is_empty() {
        let _ = write!(shown, " (unreadable: {})", event.unreadable.join(", "));
    }
    shown
}

/// Behind the table of a page: how to go on.
pub(crate) fn more(page: &EventPage) -> String {
    page.next.map_or(String::new(), |cursor| format!("more: --after {cursor}\n"))
}

/// When an event is due; the last microseconds of the year 9999 are no times.
pub(crate) fn due(at: OffsetDateTime) -> String {
    match (at.year(), at.to_hms(), at.microsecond()) {
        (9999, (23, 59, 59), 999_999) => "held until somebody subscribes".to_owned(),
        (9999, (23, 59, 59), 999_998) => "waits for what is paused".to_owned(),
        (9999, (23, 59, 59), 999_997) => "waits for its turn".to_owned(),
        (9999, (23, 59, 59), 999_996) => "waits for room".to_owned(),
        (9999, (23, 59, 59), 999_995) => "waits for a newer release".to_owned(),
        _ => show::time(at),
    }
}
