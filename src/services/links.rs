//! Links between entities, as the application sees them.

use uuid::Uuid;

use super::Access;
use crate::error::Result;
use crate::links::{self, EntityRef, IntegrationLink, LinkType, NewLink};

/// Links between entities of different modules.
pub struct Links<'a> {
    access: Access<'a>,
}

impl<'a> Links<'a> {
    pub(crate) fn new(access: Access<'a>) -> Self {
        Links { access }
    }

    /// Creates a link. The same ends may be linked more than once.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) and [`Error::PayloadTooLarge`](crate::Error::PayloadTooLarge) before
    /// anything is written.
    pub fn create(&self, link: NewLink) -> Result<IntegrationLink> {
        let core = self.access.core();
        let link = links::prepare(link, core.payload_bytes_max)?;
        let id = core.new_id();
        self.access.write("links.create", |conn, now| links::create(conn, link, id, now))
    }

    /// The link; `None` when there is no such link.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get(&self, id: Uuid) -> Result<Option<IntegrationLink>> {
        self.access.read("links.get", |conn| links::get(conn, id))
    }

    /// Deletes the link and returns what it was.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) when there is no such link.
    pub fn delete(&self, id: Uuid) -> Result<IntegrationLink> {
        self.access.write("links.delete", |conn, _| links::delete(conn, id))
    }

    /// The links that start at this entity, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find_outbound(&self, source: &EntityRef) -> Result<Vec<IntegrationLink>> {
        self.access.read("links.find_outbound", |conn| links::find_outbound(conn, source))
    }

    /// The links that lead to this entity, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find_inbound(&self, target: &EntityRef) -> Result<Vec<IntegrationLink>> {
        self.access.read("links.find_inbound", |conn| links::find_inbound(conn, target))
    }

    /// All links of this type, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find_by_type(&self, link_type: LinkType) -> Result<Vec<IntegrationLink>> {
        self.access.read("links.find_by_type", |conn| links::find_by_type(conn, link_type))
    }

    /// The oldest link between the two, whichever way it leads.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find_bidirectional(&self, one: &EntityRef, other: &EntityRef) -> Result<Option<IntegrationLink>> {
        self.access.read("links.find_bidirectional", |conn| links::find_bidirectional(conn, one, other))
    }

    /// How many links start in this module.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn count_from_module(&self, source_module: &str) -> Result<u64> {
        self.access.read("links.count_from_module", |conn| links::count_from_module(conn, source_module))
    }
}
