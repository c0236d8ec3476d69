//! Events by a filter: page after page, and how many.

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use serde::Serialize;

use super::cursor::Cursor;
use super::filter::{EventFilter, Part, matches_filter};
use super::summary::{EventSummary, summary};
use crate::error::{Error, Result};

/// So many events are in a page at the most.
const LIMIT_MAX: usize = 1_000;

/// Which page of a list: from which end, how many events, and behind which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a page does nothing by itself"]
pub struct Page {
    order: Order,
    limit: usize,
    after: Option<Cursor>,
}

impl Page {
    /// The newest events, the last published first. `limit`: 1 to 1,000.
    pub fn newest(limit: usize) -> Self {
        Page { order: Order::Newest, limit, after: None }
    }

    /// The oldest events, the first published first. `limit`: 1 to 1,000.
    pub fn oldest(limit: usize) -> Self {
        Page { order: Order::Oldest, limit, after: None }
    }

    /// Those that come behind this place, in the page's own order: [`EventPage::next`] of the page before. Its event need not
    /// be there any more.
    pub fn after(self, cursor: Cursor) -> Self {
        Page { after: Some(cursor), ..self }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check_limit(self.limit)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn order(&self) -> Order {
        self.order
    }

    /// Of the numbers that may be in it.
    pub(crate) fn range(&self) -> Option<(i64, i64)> {
        range(self.order, self.after.map(|cursor| cursor.0))
    }
}

/// The first and the last number behind `after`; `None` where there is none.
fn range(order: Order, after: Option<i64>) -> Option<(i64, i64)> {
    match (order, after) {
        (_, None) => Some((i64::MIN, i64::MAX)),
        (Order::Oldest, Some(after)) => after.checked_add(1).map(|first| (first, i64::MAX)),
        (Order::Newest, Some(after)) => after.checked_sub(1).map(|last| (i64::MIN, last)),
    }
}

pub(crate) fn check_limit(limit: usize) -> Result<()> {
    if (1..=LIMIT_MAX).contains(&limit) {
        Ok(())
    } else {
        Err(Error::invalid("limit", format!("must be 1 to {LIMIT_MAX}, not {limit}")))
    }
}

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
    let mut found = seqs(conn, filter, page.order, page.after.map(|cursor| cursor.0), page.limit + 1)?;
    let is_more = found.len() > page.limit;
    found.truncate(page.limit);
    let next = found.last().filter(|_| is_more).map(|seq| Cursor(*seq));
    let mut events = Vec::with_capacity(found.len());
    for seq in found {
        events.extend(summary(conn, seq)?);
    }
    Ok(EventPage { events, next })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Oldest,
    Newest,
}

/// The first `limit` events (their `seq`) of the filter, in this order, behind the one `after`. For one snapshot or transaction.
pub(crate) fn seqs(
    conn: &Connection,
    filter: &EventFilter,
    order: Order,
    after: Option<i64>,
    limit: usize,
) -> Result<Vec<i64>> {
    let Some((first, last)) = range(order, after) else { return Ok(Vec::new()) };
    let mut found: Vec<i64> = Vec::new();
    for (part, mut values) in filter.parts() {
        values.extend([first, last, i64::try_from(limit).unwrap_or(i64::MAX)].map(Value::Integer));
        let mut statement = conn.prepare_cached(select_seqs(part, order))?;
        let mut rows = statement.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            found.push(row.get(0)?);
        }
    }
    match order {
        Order::Oldest => found.sort_unstable(),
        Order::Newest => found.sort_unstable_by(|one, other| other.cmp(one)),
    }
    found.truncate(limit);
    Ok(found)
}

/// Each sorts no more than `limit` numbers, and reads the rows of its part at the most.
fn select_seqs(part: Part, order: Order) -> &'static str {
    match (part, order) {
        (Part::Due, Order::Oldest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_due
             WHERE e.status = 'pending' AND e.seq BETWEEN ?18 AND ?19 AND ",
            matches_filter!(),
            " ORDER BY e.seq LIMIT ?20"
        ),
        (Part::Due, Order::Newest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_due
             WHERE e.status = 'pending' AND e.seq BETWEEN ?18 AND ?19 AND ",
            matches_filter!(),
            " ORDER BY e.seq DESC LIMIT ?20"
        ),
        (Part::Claimed, Order::Oldest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_claimed
             WHERE e.status = 'processing' AND e.seq BETWEEN ?18 AND ?19 AND ",
            matches_filter!(),
            " ORDER BY e.seq LIMIT ?20"
        ),
        (Part::Claimed, Order::Newest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_claimed
             WHERE e.status = 'processing' AND e.seq BETWEEN ?18 AND ?19 AND ",
            matches_filter!(),
            " ORDER BY e.seq DESC LIMIT ?20"
        ),
        (Part::Dead, Order::Oldest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_dead
             WHERE e.status <> 'pending' AND e.status <> 'processing' AND e.status <> 'processed' AND e.status = ?1
                   AND e.seq BETWEEN ?18 AND ?19 AND ",
            matches_filter!(),
            " ORDER BY e.seq LIMIT ?20"
        ),
        (Part::Dead, Order::Newest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e INDEXED BY outbox_event_dead
             WHERE e.status <> 'pending' AND e.status <> 'processing' AND e.status <> 'processed' AND e.status = ?1
                   AND e.seq BETWEEN ?18 AND ?19 AND ",
            matches_filter!(),
            " ORDER BY e.seq DESC LIMIT ?20"
        ),
        (Part::Table, Order::Oldest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e NOT INDEXED WHERE e.seq BETWEEN ?18 AND ?19 AND ",
            matches_filter!(),
            " ORDER BY e.seq LIMIT ?20"
        ),
        (Part::Table, Order::Newest) => concat!(
            "SELECT e.seq FROM main.outbox_event AS e NOT INDEXED WHERE e.seq BETWEEN ?18 AND ?19 AND ",
            matches_filter!(),
            " ORDER BY e.seq DESC LIMIT ?20"
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
