//! Links by a filter: page after page.

use rusqlite::{Connection, params_from_iter};

use super::filter::{LinkFilter, Part, matches_links};
use super::{IntegrationLink, get_by_seq};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::page::{Order, Page};

/// One page of a list.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LinkPage {
    /// Its links, in the page's order.
    pub links: Vec<IntegrationLink>,
    /// Where the next page begins; `None` when there was nothing more.
    pub next: Option<Cursor>,
}

/// For one snapshot or transaction.
pub(crate) fn list(conn: &Connection, filter: &LinkFilter, page: &Page) -> Result<LinkPage> {
    let mut found = seqs(conn, filter, page)?;
    let next = page.cut(&mut found, |seq| Cursor(*seq));
    let links =
        found.into_iter().filter_map(|seq| get_by_seq(conn, seq).transpose()).collect::<Result<_>>()?;
    Ok(LinkPage { links, next })
}

/// One more than the page holds, where there are so many.
fn seqs(conn: &Connection, filter: &LinkFilter, page: &Page) -> Result<Vec<i64>> {
    let Some((first, last)) = page.order.range_behind(page.after) else { return Ok(Vec::new()) };
    let limit = i64::try_from(page.limit).map_or(i64::MAX, |limit| limit.saturating_add(1));
    let mut found: Vec<i64> = Vec::new();
    for (part, values) in filter.parts(first, last, limit) {
        let mut statement = conn.prepare_cached(select_seqs(part, page.order))?;
        let mut rows = statement.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            found.push(row.get(0)?);
        }
    }
    page.order.sort(&mut found);
    found.dedup(); // a link from the entity to itself
    found.truncate(page.limit + 1);
    Ok(found)
}

/// None of them sorts: each reads its part in order, from where the page begins until it is full.
fn select_seqs(part: Part, order: Order) -> &'static str {
    match (part, order) {
        (Part::Source, Order::Oldest) => concat!(
            "SELECT l.seq FROM main.integration_link AS l INDEXED BY integration_link_source
             WHERE l.source_module = ?1 AND l.source_entity_type = ?2 AND l.source_entity_id = ?3
                   AND l.seq BETWEEN ?4 AND ?5 AND ",
            matches_links!(),
            " ORDER BY l.seq LIMIT ?6"
        ),
        (Part::Source, Order::Newest) => concat!(
            "SELECT l.seq FROM main.integration_link AS l INDEXED BY integration_link_source
             WHERE l.source_module = ?1 AND l.source_entity_type = ?2 AND l.source_entity_id = ?3
                   AND l.seq BETWEEN ?4 AND ?5 AND ",
            matches_links!(),
            " ORDER BY l.seq DESC LIMIT ?6"
        ),
        (Part::Target, Order::Oldest) => concat!(
            "SELECT l.seq FROM main.integration_link AS l INDEXED BY integration_link_target
             WHERE l.target_module = ?1 AND l.target_entity_type = ?2 AND l.target_entity_id = ?3
                   AND l.seq BETWEEN ?4 AND ?5 AND ",
            matches_links!(),
            " ORDER BY l.seq LIMIT ?6"
        ),
        (Part::Target, Order::Newest) => concat!(
            "SELECT l.seq FROM main.integration_link AS l INDEXED BY integration_link_target
             WHERE l.target_module = ?1 AND l.target_entity_type = ?2 AND l.target_entity_id = ?3
                   AND l.seq BETWEEN ?4 AND ?5 AND ",
            matches_links!(),
            " ORDER BY l.seq DESC LIMIT ?6"
        ),
        (Part::Type, Order::Oldest) => concat!(
            "SELECT l.seq FROM main.integration_link AS l INDEXED BY integration_link_type
             WHERE l.link_type = ?1 AND l.seq BETWEEN ?4 AND ?5 AND ",
            matches_links!(),
            " ORDER BY l.seq LIMIT ?6"
        ),
        (Part::Type, Order::Newest) => concat!(
            "SELECT l.seq FROM main.integration_link AS l INDEXED BY integration_link_type
             WHERE l.link_type = ?1 AND l.seq BETWEEN ?4 AND ?5 AND ",
            matches_links!(),
            " ORDER BY l.seq DESC LIMIT ?6"
        ),
        (Part::Table, Order::Oldest) => concat!(
            "SELECT l.seq FROM main.integration_link AS l NOT INDEXED
             WHERE l.seq BETWEEN ?4 AND ?5 AND ",
            matches_links!(),
            " ORDER BY l.seq LIMIT ?6"
        ),
        (Part::Table, Order::Newest) => concat!(
            "SELECT l.seq FROM main.integration_link AS l NOT INDEXED
             WHERE l.seq BETWEEN ?4 AND ?5 AND ",
            matches_links!(),
            " ORDER BY l.seq DESC LIMIT ?6"
        ),
    }
}
