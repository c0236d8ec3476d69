//! From entity to entity, along their links.

use std::collections::HashSet;

use rusqlite::{Connection, params};
use serde::Serialize;
use uuid::Uuid;

use super::{EntityRef, LinkType};
use crate::error::{Error, Result};

/// So many entities are found where nothing else is asked for, and at the most.
const ENTITIES: usize = 1_000;
const ENTITIES_MAX: usize = 100_000;

/// How far a walk goes, and along which links.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "it does nothing by itself"]
pub struct WalkOptions {
    depth: u32,
    directions: &'static [LinkDirection],
    link_types: Vec<LinkType>,
    entities_max: usize,
}

impl WalkOptions {
    /// Along links from their source to their target. `depth`: so many links away at the most, from 1; `u32::MAX` is to the end.
    pub fn outbound(depth: u32) -> Self {
        Self::along(&[LinkDirection::Outbound], depth)
    }

    /// Along links from their target to their source.
    pub fn inbound(depth: u32) -> Self {
        Self::along(&[LinkDirection::Inbound], depth)
    }

    /// Along links both ways.
    pub fn both(depth: u32) -> Self {
        Self::along(&[LinkDirection::Outbound, LinkDirection::Inbound], depth)
    }

    fn along(directions: &'static [LinkDirection], depth: u32) -> Self {
        WalkOptions { depth, directions, link_types: Vec::new(), entities_max: ENTITIES }
    }

    /// Along links of this type; called several times: of any of them. Along all links when not called.
    pub fn link_type(mut self, link_type: LinkType) -> Self {
        if !self.link_types.contains(&link_type) {
            self.link_types.push(link_type);
        }
        self
    }

    /// So many entities at the most: 1 to 100,000. 1,000 when not given.
    pub fn entities_max(self, entities_max: usize) -> Self {
        WalkOptions { entities_max, ..self }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.depth == 0 {
            return Err(Error::invalid("depth", "counts from 1: the entity itself is at 0"));
        }
        if !(1..=ENTITIES_MAX).contains(&self.entities_max) {
            let reason = format!("must be 1 to {ENTITIES_MAX}, not {}", self.entities_max);
            return Err(Error::invalid("entities_max", reason));
        }
        Ok(())
    }
}

/// Which way a link is gone along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkDirection {
    /// From its source to its target.
    Outbound,
    /// From its target to its source.
    Inbound,
}

impl LinkDirection {
    /// As it is shown: `outbound`, `inbound`.
    pub fn as_str(self) -> &'static str {
        match self {
            LinkDirection::Outbound => "outbound",
            LinkDirection::Inbound => "inbound",
        }
    }
}

/// What an entity is linked to, directly and by others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LinkWalk {
    /// Each entity once, at its least distance, the nearest first; at the same distance in the order in which they were met: those
    /// behind an entity that was found earlier first, and of its links those that start at it before those that lead to it, each
    /// oldest first. Where it began is not among them.
    pub entities: Vec<LinkedEntity>,
    /// Whether these are all within the depth. Otherwise there are more than
    /// [`entities_max`](WalkOptions::entities_max), and the nearest are here.
    pub is_complete: bool,
}

/// An entity that a walk has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LinkedEntity {
    /// The entity.
    pub entity: EntityRef,
    /// How many links away it is, from 1.
    pub depth: u32,
    /// The link by which it was reached.
    pub link_id: Uuid,
    /// What that link means.
    pub link_type: LinkType,
    /// Which way that link was gone along.
    pub direction: LinkDirection,
    /// From which entity it was reached: an index into `entities`; `None`: from where the walk began.
    pub reached_from: Option<usize>,
}

/// Breadth first, for one snapshot or transaction. An entity that was met before is not gone through again, so that cycles end.
///
/// One recursive statement would be quicker along a chain, but it meets an entity once for each depth at which it can be reached, and
/// knows no bound: over a hundred thousand links between a thousand entities it took six times as long at depth 6, and thirty-five times
/// at depth 50.
pub(crate) fn walk(conn: &Connection, start: &EntityRef, options: &WalkOptions) -> Result<LinkWalk> {
    let mut walking = Walking { options, seen: HashSet::from([start.clone()]), entities: Vec::new() };
    let mut is_complete = walking.look_around(conn, start, 0, None)?;
    let mut next = 0;
    while is_complete
        && let Some(LinkedEntity { entity, depth, .. }) = walking.entities.get(next)
        && *depth < options.depth
    {
        let (entity, depth) = (entity.clone(), *depth);
        is_complete = walking.look_around(conn, &entity, depth, Some(next))?;
        next += 1;
    }
    Ok(LinkWalk { entities: walking.entities, is_complete })
}

struct Walking<'a> {
    options: &'a WalkOptions,
    seen: HashSet<EntityRef>,
    entities: Vec<LinkedEntity>,
}

impl Walking<'_> {
    /// Adds what is linked to the entity. False: there is no room for all of it.
    fn look_around(
        &mut self,
        conn: &Connection,
        entity: &EntityRef,
        depth: u32,
        index: Option<usize>,
    ) -> Result<bool> {
        for &direction in self.options.directions {
            let link_type = |index: usize| self.options.link_types.get(index);
            let mut statement = conn.prepare_cached(select_neighbours(direction))?;
            let mut rows = statement.query(params![
                entity.module,
                entity.entity_type,
                entity.entity_id,
                link_type(0),
                link_type(1),
                link_type(2),
            ])?;
            while let Some(row) = rows.next()? {
                let entity =
                    EntityRef { module: row.get(2)?, entity_type: row.get(3)?, entity_id: row.get(4)? };
                if self.seen.contains(&entity) {
                    continue;
                }
                if self.entities.len() == self.options.entities_max {
                    return Ok(false);
                }
                self.seen.insert(entity.clone());
                self.entities.push(LinkedEntity {
                    entity,
                    depth: depth + 1,
                    link_id: row.get(0)?,
                    link_type: row.get(1)?,
                    direction,
                    reached_from: index,
                });
            }
        }
        Ok(true)
    }
}

/// Without metadata, which may be large.
fn select_neighbours(direction: LinkDirection) -> &'static str {
    match direction {
        LinkDirection::Outbound => {
            "SELECT id, link_type, target_module, target_entity_type, target_entity_id
             FROM main.integration_link INDEXED BY integration_link_source
             WHERE source_module = ?1 AND source_entity_type = ?2 AND source_entity_id = ?3
                   AND (?4 IS NULL OR link_type IN (?4, ?5, ?6))
             ORDER BY seq"
        }
        LinkDirection::Inbound => {
            "SELECT id, link_type, source_module, source_entity_type, source_entity_id
             FROM main.integration_link INDEXED BY integration_link_target
             WHERE target_module = ?1 AND target_entity_type = ?2 AND target_entity_id = ?3
                   AND (?4 IS NULL OR link_type IN (?4, ?5, ?6))
             ORDER BY seq"
        }
    }
}
