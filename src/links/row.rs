//! One row: how each look-up reads it.

use rusqlite::{Connection, Row};

use super::{EntityRef, IntegrationLink};
use crate::clock::from_micros;
use crate::error::Result;

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
pub(super) use select_link;

pub(super) fn read(row: &Row<'_>) -> Result<IntegrationLink> {
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

pub(super) fn read_all(
    conn: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<IntegrationLink>> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut links = Vec::new();
    while let Some(row) = rows.next()? {
        links.push(read(row)?);
    }
    Ok(links)
}
