//! Events by a filter: page after page, and how many.

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use serde::Serialize;

use super::filter::{EventFilter, Part, matches_filter};
use super::summary::{EventSummary, summary};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::page::{Order, Page};

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EventPage {
    /// Its events, in the page's order.
    pub events: Vec<EventSummary>,
    /// Where the next page begins; `None` when there was nothing more. To see later what is published then, go on behind the
    /// last event: [`EventSummary::cursor`].
    pub next: Option<Cursor>,
}

pub(crate) fn list(conn: &Connection, filter: &EventFilter, page: &Page) -> Result<EventPage> {
    let mut found = seqs(conn, filter, page.order, page.after, page.limit + 1)?;
    let next = page.cut(&mut found, |seq| Cursor(*seq));
    let mut events = Vec::with_capacity(found.len());
    for seq in found {
        events.extend(summary(conn, seq)?);
    }
    Ok(EventPage { events, next })
}

/// The first `limit` events (their `seq`) of the filter, in this order, behind the one `after`. For one snapshot or transaction.
pub(crate) fn seqs(
    conn: &Connection,
    filter: &EventFilter,
    order: Order,
    after: Option<i64>,
    limit: usize,
) -> Result<Vec<i64>> {
    let Some((first, last)) = order.range_behind(after) else { return Ok(Vec::new()) };
    let mut found: Vec<i64> = Vec::new();
    for (part, mut values) in filter.parts() {
        values.extend([first, last, i64::try_from(limit).unwrap_or(i64::MAX)].map(Value::Integer));
        let mut statement = conn.prepare_cached(select_seqs(part, order))?;
        let mut rows = statement.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            found.push(row.get(0)?);
        }
    }
    order.sort(&mut found);
    found.truncate(limit);
    Ok(found)
}

/// Each sorts no more than `limit` numbers, and reads the rows of its part at the most.
fn select_seqs(part: Part, order: Order) -> &'static str {
    match (part, order) {
        (Part::Due, Order::Oldest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_due
             WHERE e.status = 'pending' AND e.seq BETWEEN ?19 AND ?20 AND ",
            matches_filter!(),
            " ORDER BY e.seq LIMIT ?21"
        ),
        (Part::Due, Order::Newest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_due
             WHERE e.status = 'pending' AND e.seq BETWEEN ?19 AND ?20 AND ",
            matches_filter!(),
            " ORDER BY e.seq DESC LIMIT ?21"
        ),
        (Part::Claimed, Order::Oldest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_claimed
             WHERE e.status = 'processing' AND e.seq BETWEEN ?19 AND ?20 AND ",
            matches_filter!(),
            " ORDER BY e.seq LIMIT ?21"
        ),
        (Part::Claimed, Order::Newest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_claimed
             WHERE e.status = 'processing' AND e.seq BETWEEN ?19 AND ?20 AND ",
            matches_filter!(),
            " ORDER BY e.seq DESC LIMIT ?21"
        ),
        (Part::Dead, Order::Oldest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_dead
             WHERE e.status <> 'pending' AND e.status <> 'processing' AND e.status <> 'processed' AND e.status = ?1
                   AND e.seq BETWEEN ?19 AND ?20 AND ",
            matches_filter!(),
            " ORDER BY e.seq LIMIT ?21"
        ),
        (Part::Dead, Order::Newest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_dead
             WHERE e.status <> 'pending' AND e.status <> 'processing' AND e.status <> 'processed' AND e.status = ?1
                   AND e.seq BETWEEN ?19 AND ?20 AND ",
            matches_filter!(),
            " ORDER BY e.seq DESC LIMIT ?21"
        ),
        (Part::Table, Order::Oldest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e NOT INDEXED WHERE e.seq BETWEEN ?19 AND ?20 AND ",
            matches_filter!(),
            " ORDER BY e.seq LIMIT ?21"
        ),
        (Part::Table, Order::Newest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e NOT INDEXED WHERE e.seq BETWEEN ?19 AND ?20 AND ",
            matches_filter!(),
            " ORDER BY e.seq DESC LIMIT ?21"
        ),
    }
}

/// How many events are the filter's, counted one by one. For one snapshot or transaction.
pub(crate) fn count_filtered(conn: &Connection, filter: &EventFilter) -> Result<u64> {
    let mut count = 0;
    for (part, values) in filter.parts() {
        count += conn
            .prepare_cached(count_part(part))?
            .query_row(params_from_iter(values), |row| row.get::<_, u64>(0))?;
    }
    Ok(count)
}

fn count_part(part: Part) -> &'static str {
    match part {
        Part::Due => concat!(
            "SELECT count(*) FROM main.outbox_event AS e INDEXED BY outbox_event_due WHERE e.status = 'pending' AND ",
            matches_filter!(),
        ),
        Part::Claimed => concat!(
            "SELECT count(*) FROM main.outbox_event AS e INDEXED BY outbox_event_claimed WHERE e.status = 'processing' AND ",
            matches_filter!(),
        ),
        Part::Dead => concat!(
            "SELECT count(*) FROM main.outbox_event AS e INDEXED BY outbox_event_dead
             WHERE e.status <> 'pending' AND e.status <> 'processing' AND e.status <> 'processed' AND e.status = ?1 AND ",
            matches_filter!(),
        ),
        Part::Table => concat!(
            "SELECT count(*) FROM main.outbox_event AS e NOT INDEXED WHERE ",
            matches_filter!(),
        ),
    }
}
