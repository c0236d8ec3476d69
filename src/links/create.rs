//! From a checked link to a row.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{IntegrationLink, NewLink, SOURCE, TARGET};
use crate::clock::from_micros;
use crate::error::{Error, Result};
use crate::json::Json;

/// A link that was checked and serialised.
pub(crate) struct PreparedLink {
    pub(super) link: NewLink,
    metadata: Option<String>,
}

pub(crate) fn prepare(link: NewLink, metadata_bytes_max: usize) -> Result<PreparedLink> {
    let metadata = check(&link, metadata_bytes_max)?;
    Ok(PreparedLink { link, metadata })
}

/// The metadata as JSON.
fn check(link: &NewLink, metadata_bytes_max: usize) -> Result<Option<String>> {
    link.source.validate(SOURCE)?;
    link.target.validate(TARGET)?;
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
