//! The table `integration_link`: its types; all of its SQL is below.

mod change;
mod create;
mod filter;
mod find;
mod list;
mod row;
mod unique;
mod walk;

use std::fmt;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::change::MovedLinks;
pub(crate) use self::change::{delete, delete_of, move_entity};
pub(crate) use self::create::{create, prepare};
pub use self::filter::LinkFilter;
pub(crate) use self::find::{
    around, cascades_from, count_from_module, find_bidirectional, find_by_type, find_inbound, find_outbound,
    get, get_by_seq,
};
pub use self::list::LinkPage;
pub(crate) use self::list::list;
pub use self::unique::UniqueLink;
pub(crate) use self::unique::{create_unique, get_or_create};
pub(crate) use self::walk::walk;
pub use self::walk::{LinkDirection, LinkWalk, LinkedEntity, WalkOptions};
use crate::error::Result;
use crate::json::Json;
use crate::validate;

/// What a link means. The library stores it and does nothing about it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkType {
    /// The source knows of the target.
    Reference,
    /// The target goes when the source goes: the module that owns the target is told so, where the application
    /// [announces](crate::Tx::announce_deleted) that the source was deleted.
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

    /// The names that a refusal gives module, type and id.
    pub(crate) fn validate(&self, [module, entity_type, entity_id]: [&'static str; 3]) -> Result<()> {
        validate::name(module, &self.module, validate::MODULE_MAX)?;
        validate::name(entity_type, &self.entity_type, validate::TYPE_MAX)?;
        validate::name(entity_id, &self.entity_id, validate::ENTITY_ID_MAX)
    }
}

/// The fields of an entity that stands by itself, of a link's source and of its target.
pub(crate) const ENTITY: [&str; 3] = ["module", "entity_type", "entity_id"];
pub(crate) const SOURCE: [&str; 3] = ["source_module", "source_entity_type", "source_entity_id"];
pub(crate) const TARGET: [&str; 3] = ["target_module", "target_entity_type", "target_entity_id"];

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
