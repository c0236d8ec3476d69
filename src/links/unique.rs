//! The same ends and type once.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::create::{PreparedLink, create};
use super::{IntegrationLink, NewLink, get_by_seq};
use crate::error::{Error, Result};

/// A link of which there is one between its ends, and whether it is new.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UniqueLink {
    /// The link, as it is stored.
    pub link: IntegrationLink,
    /// Whether it was made now. Otherwise it was there already, and stays as it was.
    pub is_new: bool,
}

/// Inside the write lock, so that nobody comes in between.
pub(crate) fn get_or_create(conn: &Connection, link: PreparedLink, id: Uuid, now: i64) -> Result<UniqueLink> {
    if let Some(seq) = seq_of_same(conn, &link.link)?
        && let Some(link) = get_by_seq(conn, seq)?
    {
        return Ok(UniqueLink { link, is_new: false });
    }
    Ok(UniqueLink { link: create(conn, link, id, now)?, is_new: true })
}

/// Inside the write lock as well.
pub(crate) fn create_unique(
    conn: &Connection,
    link: PreparedLink,
    id: Uuid,
    now: i64,
) -> Result<IntegrationLink> {
    if let Some(seq) = seq_of_same(conn, &link.link)? {
        let id = conn
            .prepare_cached("SELECT id FROM main.integration_link WHERE seq = ?1")?
            .query_row([seq], |row| row.get(0))?;
        let NewLink { source, target, link_type, .. } = &link.link;
        return Err(Error::LinkExists {
            id,
            from: source.to_string(),
            to: target.to_string(),
            link_type: link_type.as_str(),
        });
    }
    create(conn, link, id, now)
}

/// The oldest link with these ends and this type.
///
/// It is looked for from both ends at once, a link at a time: it takes as long as the end with fewer links is worth. No index has
/// both ends, and one that is linked to everything must not make each further link slower than the one before.
fn seq_of_same(conn: &Connection, link: &NewLink) -> Result<Option<i64>> {
    let NewLink { source, target, link_type, .. } = link;
    let ends = params![
        source.module,
        source.entity_type,
        source.entity_id,
        target.module,
        target.entity_type,
        target.entity_id,
        link_type,
    ];
    let mut outbound = conn.prepare_cached(
        "SELECT seq, target_module = ?4 AND target_entity_type = ?5 AND target_entity_id = ?6 AND link_type = ?7
         FROM main.integration_link INDEXED BY integration_link_source
         WHERE source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3 ORDER BY seq",
    )?;
    let mut inbound = conn.prepare_cached(
        "SELECT seq, source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3 AND link_type = ?7
         FROM main.integration_link INDEXED BY integration_link_target
         WHERE target_module = ?4 AND target_entity_type = ?5 AND target_entity_id = ?6 ORDER BY seq",
    )?;
    let (mut outbound, mut inbound) = (outbound.query(ends)?, inbound.query(ends)?);
    loop {
        // Each meets the links that are looked for in order of `seq`: the first that is met is the oldest.
        for rows in [&mut outbound, &mut inbound] {
            let Some(row) = rows.next()? else { return Ok(None) };
            if row.get(1)? {
                return Ok(Some(row.get(0)?));
            }
        }
    }
}
