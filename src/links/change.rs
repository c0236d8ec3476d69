//! Links that go, and links whose entity has another name.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{EntityRef, IntegrationLink, get};
use crate::db::all_or_none;
use crate::error::{Error, Result};

/// What came of the links of an entity that was renamed, or merged into another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MovedLinks {
    /// So many links are the other entity's now.
    pub moved: usize,
    /// So many were superfluous and are gone.
    pub deleted: usize,
}

pub(crate) fn delete(conn: &Connection, id: Uuid) -> Result<IntegrationLink> {
    let link = get(conn, id)?.ok_or_else(|| Error::NotFound { what: "link", id: id.to_string() })?;
    let deleted = conn.prepare_cached("DELETE FROM main.integration_link WHERE id = ?1")?.execute([id])?;
    if deleted == 1 {
        Ok(link)
    } else {
        Err(Error::NotStored { what: "the deletion of the link", table: "integration_link" })
    }
}

/// All that start at or lead to the entity; how many there were.
pub(crate) fn delete_of(conn: &Connection, entity: &EntityRef) -> Result<usize> {
    all_or_none(conn, || {
        let deleted = conn
            .prepare_cached(
                "DELETE FROM main.integration_link
                 WHERE (source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3)
                    OR (target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3)",
            )?
            .execute([&entity.module, &entity.entity_type, &entity.entity_id])?;
        refuse_left(conn, entity, "the deletion of the links")?;
        Ok(deleted)
    })
}

/// A trigger with RAISE(IGNORE) says Ok as well.
fn refuse_left(conn: &Connection, entity: &EntityRef, what: &'static str) -> Result<()> {
    let is_left = conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM main.integration_link
                            WHERE source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3)
                 OR EXISTS (SELECT 1 FROM main.integration_link
                            WHERE target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3)",
        )?
        .query_row([&entity.module, &entity.entity_type, &entity.entity_id], |row| row.get(0))?;
    if is_left { Err(Error::NotStored { what, table: "integration_link" }) } else { Ok(()) }
}

/// The links of ?1, ?2, ?3 that would lead from ?4, ?5, ?6 to itself, or would be there twice: between the two, and those of which
/// the other has the same. What the other has is listed once for each statement, so that it takes no more than all links of both.
macro_rules! of_superfluous {
    ($statement:literal) => {
        concat!(
            $statement,
            " FROM main.integration_link WHERE seq IN (
                 SELECT seq FROM main.integration_link INDEXED BY integration_link_source
                 WHERE source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3
                       AND ((target_module = ?4 AND target_entity_type = ?5 AND target_entity_id = ?6)
                            OR (target_module, target_entity_type, target_entity_id, link_type) IN
                               (SELECT target_module, target_entity_type, target_entity_id, link_type
                                FROM main.integration_link INDEXED BY integration_link_source
                                WHERE source_module = ?4 AND source_entity_type = ?5 AND source_entity_id = ?6
                                      AND NOT (target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3))
                            OR (target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3 AND link_type IN
                               (SELECT link_type FROM main.integration_link INDEXED BY integration_link_source
                                WHERE source_module = ?4 AND source_entity_type = ?5 AND source_entity_id = ?6
                                      AND target_module = ?4 AND target_entity_type = ?5 AND target_entity_id = ?6)))
                 UNION ALL
                 SELECT seq FROM main.integration_link INDEXED BY integration_link_target
                 WHERE target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3
                       AND ((source_module = ?4 AND source_entity_type = ?5 AND source_entity_id = ?6)
                            OR (source_module, source_entity_type, source_entity_id, link_type) IN
                               (SELECT source_module, source_entity_type, source_entity_id, link_type
                                FROM main.integration_link INDEXED BY integration_link_target
                                WHERE target_module = ?4 AND target_entity_type = ?5 AND target_entity_id = ?6
                                      AND NOT (source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3))))"
        )
    };
}

/// What starts at or leads to the one starts at or leads to the other.
pub(crate) fn move_entity(
    conn: &Connection,
    from: &EntityRef,
    to: &EntityRef,
    now: i64,
) -> Result<MovedLinks> {
    if from == to {
        return Ok(MovedLinks { moved: 0, deleted: 0 });
    }
    all_or_none(conn, || {
        let both =
            [&from.module, &from.entity_type, &from.entity_id, &to.module, &to.entity_type, &to.entity_id];
        let superfluous: usize =
            conn.prepare_cached(of_superfluous!("SELECT count(*)"))?.query_row(both, |row| row.get(0))?;
        let mut deleted = 0;
        if superfluous > 0 {
            deleted = conn.prepare_cached(of_superfluous!("DELETE"))?.execute(both)?;
            if deleted != superfluous {
                let what = "the deletion of links that would be there twice";
                return Err(Error::NotStored { what, table: "integration_link" });
            }
        }
        // A link from the entity to itself has both of its ends changed at once.
        let moved = conn
            .prepare_cached(
                "UPDATE main.integration_link
                 SET source_module = iif(source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3, ?4, source_module),
                     source_entity_type = iif(source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3, ?5, source_entity_type),
                     source_entity_id = iif(source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3, ?6, source_entity_id),
                     target_module = iif(target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3, ?4, target_module),
                     target_entity_type = iif(target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3, ?5, target_entity_type),
                     target_entity_id = iif(target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3, ?6, target_entity_id),
                     updated_at = ?7
                 WHERE (source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3)
                    OR (target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3)",
            )?
            .execute(params![
                from.module,
                from.entity_type,
                from.entity_id,
                to.module,
                to.entity_type,
                to.entity_id,
                now,
            ])?;
        refuse_left(conn, from, "the change of the links")?;
        Ok(MovedLinks { moved, deleted })
    })
}
