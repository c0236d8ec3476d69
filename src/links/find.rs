//! Look-ups: one link, those of an entity, those of a type.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::row::{read, read_all, select_link};
use super::{EntityRef, IntegrationLink, LinkType};
use crate::error::Result;

pub(crate) fn get(conn: &Connection, id: Uuid) -> Result<Option<IntegrationLink>> {
    Ok(read_all(conn, select_link!("WHERE id = ?1"), [id])?.pop())
}

pub(crate) fn get_by_seq(conn: &Connection, seq: i64) -> Result<Option<IntegrationLink>> {
    Ok(read_all(conn, select_link!("WHERE seq = ?1"), [seq])?.pop())
}

pub(crate) fn find_outbound(conn: &Connection, source: &EntityRef) -> Result<Vec<IntegrationLink>> {
    read_all(
        conn,
        select_link!(
            "WHERE source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3 ORDER BY seq"
        ),
        [&source.module, &source.entity_type, &source.entity_id],
    )
}

pub(crate) fn find_inbound(conn: &Connection, target: &EntityRef) -> Result<Vec<IntegrationLink>> {
    read_all(
        conn,
        select_link!(
            "WHERE target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3 ORDER BY seq"
        ),
        [&target.module, &target.entity_type, &target.entity_id],
    )
}

/// Those that start at or lead to the entity, oldest first, so many at the most; an error for each that cannot be read.
pub(crate) fn around(
    conn: &Connection,
    entity: &EntityRef,
    limit: usize,
) -> Result<Vec<Result<IntegrationLink>>> {
    let mut statement = conn.prepare_cached(select_link!(
        "WHERE (source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3)
            OR (target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3)
         ORDER BY seq LIMIT ?4"
    ))?;
    let mut rows = statement.query(params![entity.module, entity.entity_type, entity.entity_id, limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row));
    }
    Ok(found)
}

pub(crate) fn find_by_type(conn: &Connection, link_type: LinkType) -> Result<Vec<IntegrationLink>> {
    read_all(conn, select_link!("WHERE link_type = ?1 ORDER BY seq"), [link_type])
}

/// The oldest link between the two, whichever way it leads.
pub(crate) fn find_bidirectional(
    conn: &Connection,
    one: &EntityRef,
    other: &EntityRef,
) -> Result<Option<IntegrationLink>> {
    let found = read_all(
        conn,
        select_link!(
            "WHERE (source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3
                    AND target_module = ?4 AND target_entity_type = ?5 AND target_entity_id = ?6)
                OR (source_module = ?4 AND source_entity_type = ?5 AND source_entity_id = ?6
                    AND target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3)
             ORDER BY seq LIMIT 1"
        ),
        [&one.module, &one.entity_type, &one.entity_id, &other.module, &other.entity_type, &other.entity_id],
    )?;
    Ok(found.into_iter().next())
}

pub(crate) fn count_from_module(conn: &Connection, source_module: &str) -> Result<u64> {
    Ok(conn
        .prepare_cached("SELECT count(*) FROM main.integration_link WHERE source_module = ?1")?
        .query_row([source_module], |row| row.get(0))?)
}

/// For each other entity that cascade links lead to from this one, the oldest such link (its `seq`), oldest first.
pub(crate) fn cascades_from(conn: &Connection, source: &EntityRef) -> Result<Vec<i64>> {
    let mut statement = conn.prepare_cached(
        "SELECT min(seq) AS oldest FROM main.integration_link INDEXED BY integration_link_source
         WHERE source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3 AND link_type = 'cascade'
               AND NOT (target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3)
         GROUP BY target_module, target_entity_type, target_entity_id ORDER BY oldest",
    )?;
    let seqs =
        statement.query_map([&source.module, &source.entity_type, &source.entity_id], |row| row.get(0))?;
    Ok(seqs.collect::<rusqlite::Result<_>>()?)
}
