//! The table `integration_link`: its types and all of its SQL.

use std::fmt;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::from_micros;
use crate::error::{Error, Result};
use crate::json::Json;
use crate::validate;

/// What a link means. The library stores it and does nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkType {
    /// The source knows of the target.
    Reference,
    /// The target goes when the source goes.
    Cascade,
    /// The target belongs to the source's aggregate.
    AggregateRoot,
}

impl LinkType {
    /// As it is stored: `reference`, `cascade`, `aggregate_root`.
    pub fn as_str(self) -> &'static str {
        match self {
            LinkType::Reference => "reference",
            LinkType::Cascade => "cascade",
            LinkType::AggregateRoot => "aggregate_root",
        }
    }
}

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ToSql for LinkType {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for LinkType {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "reference" => Ok(LinkType::Reference),
            "cascade" => Ok(LinkType::Cascade),
            "aggregate_root" => Ok(LinkType::AggregateRoot),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// An entity of some module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EntityRef {
    /// The module that owns it; 1 to 127 characters.
    pub module: String,
    /// What kind of entity it is; 1 to 127 characters.
    pub entity_type: String,
    /// Which one it is; 1 to 255 characters.
    pub entity_id: String,
}

impl EntityRef {
    /// Its limits are checked when a link is made of it.
    pub fn new(
        module: impl Into<String>,
        entity_type: impl Into<String>,
        entity_id: impl Into<String>,
    ) -> Self {
        EntityRef { module: module.into(), entity_type: entity_type.into(), entity_id: entity_id.into() }
    }
}

impl fmt::Display for EntityRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.module, self.entity_type, self.entity_id)
    }
}

/// A link to be made. `Debug` leaves its metadata out.
#[derive(Clone)]
#[must_use = "a link does nothing until it is created"]
pub struct NewLink {
    source: EntityRef,
    target: EntityRef,
    link_type: LinkType,
    metadata: Option<Json>,
}

impl NewLink {
    /// From `source` to `target`.
    pub fn new(source: EntityRef, target: EntityRef, link_type: LinkType) -> Self {
        NewLink { source, target, link_type, metadata: None }
    }

    /// Data about the link, under the limits of a payload.
    pub fn metadata(self, metadata: Value) -> Self {
        NewLink { metadata: Some(metadata.into()), ..self }
    }
}

impl fmt::Debug for NewLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewLink")
            .field("source", &self.source)
            .field("target", &self.target)
            .field("link_type", &self.link_type)
            .finish_non_exhaustive()
    }
}

/// A link between two entities. `Debug` leaves its metadata out.
#[derive(Clone)]
#[non_exhaustive]
pub struct IntegrationLink {
    /// Its id.
    pub id: Uuid,
    /// Where it starts.
    pub source: EntityRef,
    /// Where it leads.
    pub target: EntityRef,
    /// What it means.
    pub link_type: LinkType,
    /// Data about the link.
    pub metadata: Option<Value>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it was last written.
    pub updated_at: OffsetDateTime,
}

impl fmt::Debug for IntegrationLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntegrationLink")
            .field("id", &self.id)
            .field("source", &self.source)
            .field("target", &self.target)
            .field("link_type", &self.link_type)
            .field("created_at", &self.created_at)
            .field("updated_at", &self.updated_at)
            .finish_non_exhaustive()
    }
}

/// A link that was checked and serialised.
pub(crate) struct PreparedLink {
    link: NewLink,
    metadata: Option<String>,
}

pub(crate) fn prepare(link: NewLink, metadata_bytes_max: usize) -> Result<PreparedLink> {
    let metadata = check(&link, metadata_bytes_max)?;
    Ok(PreparedLink { link, metadata })
}

/// The metadata as JSON.
fn check(link: &NewLink, metadata_bytes_max: usize) -> Result<Option<String>> {
    let ends = [
        (&link.source, ["source_module", "source_entity_type", "source_entity_id"]),
        (&link.target, ["target_module", "target_entity_type", "target_entity_id"]),
    ];
    for (end, [module, entity_type, entity_id]) in ends {
        validate::name(module, &end.module, validate::MODULE_MAX)?;
        validate::name(entity_type, &end.entity_type, validate::TYPE_MAX)?;
        validate::name(entity_id, &end.entity_id, validate::ENTITY_ID_MAX)?;
    }
    link.metadata.as_ref().map(|value| value.to_text("metadata", metadata_bytes_max)).transpose()
}

pub(crate) fn create(conn: &Connection, link: PreparedLink, id: Uuid, now: i64) -> Result<IntegrationLink> {
    let NewLink { source, target, link_type, metadata } = link.link;
    let metadata = metadata.map(Json::into_value);
    let inserted = conn
        .prepare_cached(
            "INSERT INTO main.integration_link
                (id, source_module, source_entity_type, source_entity_id, target_module, target_entity_type,
                 target_entity_id, link_type, metadata, created_at, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?10)",
        )?
        .execute(params![
            id,
            source.module,
            source.entity_type,
            source.entity_id,
            target.module,
            target.entity_type,
            target.entity_id,
            link_type,
            link.metadata,
            now,
        ])?;
    if inserted != 1 {
        return Err(Error::NotStored { what: "the link", table: "integration_link" });
    }
    let at = from_micros(now);
    Ok(IntegrationLink { id, source, target, link_type, metadata, created_at: at, updated_at: at })
}

macro_rules! select_link {
    ($rest:literal) => {
        concat!(
            "SELECT id, source_module, source_entity_type, source_entity_id, target_module, target_entity_type,
                    target_entity_id, link_type, metadata, created_at, updated_at
             FROM main.integration_link ",
            $rest
        )
    };
}

fn read(row: &Row<'_>) -> Result<IntegrationLink> {
    let metadata: Option<String> = row.get(8)?;
    Ok(IntegrationLink {
        id: row.get(0)?,
        source: EntityRef { module: row.get(1)?, entity_type: row.get(2)?, entity_id: row.get(3)? },
        target: EntityRef { module: row.get(4)?, entity_type: row.get(5)?, entity_id: row.get(6)? },
        link_type: row.get(7)?,
        metadata: metadata.as_deref().map(serde_json::from_str).transpose()?,
        created_at: from_micros(row.get(9)?),
        updated_at: from_micros(row.get(10)?),
    })
}

fn read_all(conn: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<Vec<IntegrationLink>> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut links = Vec::new();
    while let Some(row) = rows.next()? {
        links.push(read(row)?);
    }
    Ok(links)
}

pub(crate) fn get(conn: &Connection, id: Uuid) -> Result<Option<IntegrationLink>> {
    Ok(read_all(conn, select_link!("WHERE id = ?1"), [id])?.pop())
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
