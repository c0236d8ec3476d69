//! Links that go.

use rusqlite::Connection;
use uuid::Uuid;

use super::{IntegrationLink, get};
use crate::error::{Error, Result};

pub(crate) fn delete(conn: &Connection, id: Uuid) -> Result<IntegrationLink> {
    let link = get(conn, id)?.ok_or_else(|| Error::NotFound { what: "link", id: id.to_string() })?;
    let deleted = conn.prepare_cached("DELETE FROM main.integration_link WHERE id = ?1")?.execute([id])?;
    if deleted == 1 {
        Ok(link)
    } else {
        Err(Error::NotStored { what: "the deletion of the link", table: "integration_link" })
    }
}
