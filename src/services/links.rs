//! Links between entities, as the application sees them.

use uuid::Uuid;

use super::Access;
use crate::error::Result;
use crate::links::{
    self, ENTITY, EntityRef, IntegrationLink, LinkFilter, LinkPage, LinkType, LinkWalk, MovedLinks, NewLink,
    UniqueLink, WalkOptions,
};
use crate::page::Page;

/// Links between entities of different modules.
pub struct Links<'a> {
    access: Access<'a>,
}

impl<'a> Links<'a> {
    pub(crate) fn new(access: Access<'a>) -> Self {
        Links { access }
    }

    /// Creates a link. The same ends may be linked more than once: where they should not, use
    /// [`get_or_create`](Links::get_or_create) or [`create_unique`](Links::create_unique).
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

    /// The link with the same ends and type; a new one where there is none. One that is there already stays as it is, also its
    /// metadata; of several, it is the oldest. Whoever calls this at the same moment, on whatever thread and in whatever process,
    /// gets the same link.
    ///
    /// It takes as long as it takes to look through the links of one end: of the one that has fewer.
    ///
    /// ```
    /// # use postbox::{EntityRef, LinkType, NewLink, Postbox};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// let (invoice, task) = (EntityRef::new("finance", "Invoice", "inv-1"), EntityRef::new("operations", "Task", "t-9"));
    /// let link = || NewLink::new(invoice.clone(), task.clone(), LinkType::Reference);
    /// let first = postbox.links().get_or_create(link())?;
    /// let again = postbox.links().get_or_create(link())?;
    /// assert!(first.is_new && !again.is_new);
    /// assert_eq!(first.link.id, again.link.id);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`create`](Links::create).
    pub fn get_or_create(&self, link: NewLink) -> Result<UniqueLink> {
        let core = self.access.core();
        let link = links::prepare(link, core.payload_bytes_max)?;
        let id = core.new_id();
        self.access.write("links.get_or_create", |conn, now| links::get_or_create(conn, link, id, now))
    }

    /// Creates a link unless there is one with the same ends and type. As [`get_or_create`](Links::get_or_create) otherwise.
    ///
    /// # Errors
    /// [`Error::LinkExists`](crate::Error::LinkExists) when there is one, which stays as it is; otherwise as
    /// [`create`](Links::create).
    pub fn create_unique(&self, link: NewLink) -> Result<IntegrationLink> {
        let core = self.access.core();
        let link = links::prepare(link, core.payload_bytes_max)?;
        let id = core.new_id();
        self.access.write("links.create_unique", |conn, now| links::create_unique(conn, link, id, now))
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

    /// Deletes all links that start at or lead to this entity, and returns how many there were: the entity was deleted. All or
    /// none. Nobody is told: for that there is [`announce_deleted`](crate::Tx::announce_deleted).
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for `module`, `entity_type` or `entity_id` out of range.
    pub fn delete_of(&self, entity: &EntityRef) -> Result<usize> {
        entity.validate(ENTITY)?;
        self.access.write("links.delete_of", |conn, _| links::delete_of(conn, entity))
    }

    /// Makes all links of one entity those of another: it was renamed, or merged into the other. What started at or led to `from`
    /// starts at or leads to `to`. All or none; ids, `created_at` and metadata stay, `updated_at` is now.
    ///
    /// Links that would be superfluous are deleted instead: those between the two, which would lead from `to` to itself, and those
    /// of which `to` has the same already, with the same other end and type: that one stays, with its metadata. Links that `from`
    /// has twice are moved as they are, and so are those from it to itself.
    ///
    /// ```
    /// # use postbox::{EntityRef, LinkType, NewLink, Postbox};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # let (old, new) = (EntityRef::new("sales", "Customer", "c-17"), EntityRef::new("sales", "Customer", "c-4"));
    /// # postbox.links().create(NewLink::new(old.clone(), EntityRef::new("finance", "Invoice", "inv-1"), LinkType::Reference))?;
    /// let done = postbox.links().move_entity(&old, &new)?; // c-17 was c-4 all the time
    /// assert_eq!((done.moved, done.deleted), (1, 0));
    /// # assert_eq!(postbox.links().find_outbound(&new)?.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for what is out of range: `from_module`, `to_entity_id` and so on.
    pub fn move_entity(&self, from: &EntityRef, to: &EntityRef) -> Result<MovedLinks> {
        from.validate(["from_module", "from_entity_type", "from_entity_id"])?;
        to.validate(["to_module", "to_entity_type", "to_entity_id"])?;
        self.access.write("links.move_entity", |conn, now| links::move_entity(conn, from, to, now))
    }

    /// One page of the links that the filter means, always in the order in which they were made. Pages neither skip nor double a
    /// link while others are made and deleted.
    ///
    /// A page of an entity's links, or of a type's, costs what it has to look through of these until it is full, from where it
    /// begins; without either, of all links (some tenths of a second for a million).
    ///
    /// ```
    /// # use postbox::{EntityRef, LinkFilter, LinkType, NewLink, Page, Postbox};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # let (invoice, task) = (EntityRef::new("finance", "Invoice", "inv-1"), EntityRef::new("operations", "Task", "t-9"));
    /// # postbox.links().create(NewLink::new(invoice.clone(), task, LinkType::Cascade))?;
    /// let cascades = LinkFilter::new().link_type(LinkType::Cascade).source_module("finance");
    /// let page = postbox.links().find(&cascades, &Page::oldest(100))?;
    /// assert_eq!(page.links[0].source, invoice);
    /// assert!(page.next.is_none()); // otherwise: Page::oldest(100).after(next)
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a limit of 0 or more than 1,000, and for what the filter asks;
    /// [`Error::Json`](crate::Error::Json) when another program left something else than JSON in a link's metadata.
    pub fn find(&self, filter: &LinkFilter, page: &Page) -> Result<LinkPage> {
        filter.validate()?;
        page.validate()?;
        self.access.read_snapshot("links.find", |conn| links::list(conn, filter, page))
    }

    /// What an entity is linked to, directly and by way of others: each entity once, however many ways lead to it. Cycles end.
    ///
    /// All of it is of one moment. It takes one look-up, or two for both directions, for each entity that is gone through, and reads
    /// that one's links without their metadata.
    ///
    /// ```
    /// # use postbox::{EntityRef, LinkType, NewLink, Postbox, WalkOptions};
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// # let entity = |id: &str| EntityRef::new("catalogue", "Part", id);
    /// # for (from, to) in [("bike", "wheel"), ("wheel", "spoke"), ("spoke", "bike")] {
    /// #     postbox.links().create(NewLink::new(entity(from), entity(to), LinkType::AggregateRoot))?;
    /// # }
    /// let walk = postbox.links().walk(&entity("bike"), &WalkOptions::outbound(5).link_type(LinkType::AggregateRoot))?;
    /// let found: Vec<_> = walk.entities.iter().map(|found| (found.depth, found.entity.entity_id.as_str())).collect();
    /// assert_eq!(found, [(1, "wheel"), (2, "spoke")]);
    /// assert!(walk.is_complete);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for `depth` 0, `entities_max` out of range, and `module`, `entity_type` or
    /// `entity_id` out of range.
    pub fn walk(&self, start: &EntityRef, options: &WalkOptions) -> Result<LinkWalk> {
        start.validate(ENTITY)?;
        options.validate()?;
        self.access.read_snapshot("links.walk", |conn| links::walk(conn, start, options))
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
