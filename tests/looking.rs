//! Looking at events: what a filter means, page after page, one event's story, and the tree of what caused what.

mod support;

#[path = "looking/backlogs.rs"]
mod backlogs;
#[path = "looking/failures.rs"]
mod failures;
#[path = "looking/filters.rs"]
mod filters;
#[path = "looking/pages.rs"]
mod pages;
#[path = "looking/records.rs"]
mod records;
#[path = "looking/refused.rs"]
mod refused;
#[path = "looking/spoilt.rs"]
mod spoilt;
#[path = "looking/stories.rs"]
mod stories;
#[path = "looking/trees.rs"]
mod trees;

use postbox::{Error, EventFilter, EventId, EventSummary, Outbox, Page, Postbox};
use rusqlite::params;

use crate::support::{TestBox, sql};

/// Runs the same look on the box and inside a transaction of it.
pub(crate) fn on_both(test: &TestBox, look: impl Fn(&Outbox<'_>)) {
    look(&test.bus.outbox());
    test.bus
        .transaction::<_, Error>(|tx| {
            look(&tx.outbox());
            Ok(())
        })
        .unwrap();
}

pub(crate) fn ids(events: &[EventSummary]) -> Vec<EventId> {
    events.iter().map(|event| event.id).collect()
}

/// Names of the events that the filter means, oldest first; by pages of either order, and counted.
#[track_caller]
pub(crate) fn names(outbox: &Outbox<'_>, filter: &EventFilter) -> Vec<String> {
    let names = |page: Page| {
        let page = outbox.list(filter, &page).unwrap();
        assert_eq!(page.next, None);
        page.events.into_iter().map(|event| event.event_name).collect::<Vec<_>>()
    };
    let oldest = names(Page::oldest(1_000));
    let mut newest = names(Page::newest(1_000));
    newest.reverse();
    assert_eq!(oldest, newest);
    assert_eq!(outbox.count(filter).unwrap(), oldest.len() as u64);
    oldest
}

/// All pages of the list, one after the other.
pub(crate) fn all_pages(outbox: &Outbox<'_>, filter: &EventFilter, first: Page) -> Vec<Vec<EventId>> {
    let mut pages = Vec::new();
    let mut page = first;
    loop {
        let found = outbox.list(filter, &page).unwrap();
        pages.push(ids(&found.events));
        let Some(next) = found.next else { return pages };
        page = first.after(next);
    }
}

/// As a handler would have published it, or another program wrote it.
#[track_caller]
pub(crate) fn set_cause(bus: &Postbox, event: EventId, cause: EventId) {
    let changed = sql(bus, |tx| {
        tx.execute(
            "UPDATE outbox_event SET causation_id = ?2 WHERE id = ?1",
            params![event.as_uuid(), cause.as_uuid()],
        )
    });
    assert_eq!(changed, 1);
}
