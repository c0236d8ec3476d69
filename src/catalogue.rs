//! Which events there are: what the application publishes, in which versions, and who receives it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::registry::Registry;
#[cfg(feature = "schema")]
use crate::schemas::Schemas;
use crate::sync::RwLock;
use crate::typed::DomainEvent;
use crate::validate;

/// Which events the application publishes, in which versions, and who receives them: [`Postbox::catalogue`](crate::Postbox::catalogue).
///
/// It knows what modules have declared here and who has subscribed. Like the subscriptions it is kept in memory: an application declares
/// anew at every start. Nothing has to be declared to be published; what is, is checked for holes: events that nobody handles, and
/// handlers of events that nobody publishes.
///
/// ```
/// # use postbox::{Context, Event, EventDeclaration, Postbox, Subscription};
/// # fn main() -> postbox::Result<()> {
/// # let postbox = Postbox::open_in_memory()?;
/// # let handler = |_: &Event, _: &Context<'_>| Ok(());
/// let catalogue = postbox.catalogue();
/// catalogue.declare_event(EventDeclaration::new("invoice.created", 1, "finance").aggregate_type("Invoice"))?;
/// catalogue.declare_event(EventDeclaration::new("invoice.paid", 1, "finance").aggregate_type("Invoice"))?;
/// postbox.subscribe(Subscription::new("invoice.created", "operations", handler))?;
/// postbox.subscribe(Subscription::new("invoice.payed", "mail", handler))?; // a slip of the pen
///
/// assert_eq!(catalogue.unhandled(), ["invoice.paid"]);
/// assert_eq!(catalogue.unpublished(), ["invoice.payed"]);
/// let created = &catalogue.entries()[0];
/// assert_eq!((created.publishers.as_slice(), created.consumers.as_slice()), (&["finance".into()][..], &["operations".into()][..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Catalogue<'a> {
    book: &'a CatalogueBook,
    registry: &'a Registry,
}

/// An event that is published, as a module declares it: [`Catalogue::declare_event`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "it declares nothing until it is given to the catalogue"]
pub struct EventDeclaration {
    name: String,
    version: u32,
    source_module: String,
    aggregate_type: Option<String>,
    former_names: Vec<String>,
}

impl EventDeclaration {
    /// The module publishes events of this name and payload version. The limits are those of [`NewEvent`](crate::NewEvent::new).
    pub fn new(name: impl Into<String>, version: u32, source_module: impl Into<String>) -> Self {
        EventDeclaration {
            name: name.into(),
            version,
            source_module: source_module.into(),
            aggregate_type: None,
            former_names: Vec::new(),
        }
    }

    /// What kind of entity it is about. All that declare this name and version and say so have to say the same.
    pub fn aggregate_type(self, aggregate_type: impl Into<String>) -> Self {
        EventDeclaration { aggregate_type: Some(aggregate_type.into()), ..self }
    }

    /// A name under which it was published before; it may be called again, for more.
    pub fn former_name(mut self, name: impl Into<String>) -> Self {
        self.former_names.push(name.into());
        self
    }

    pub(crate) fn of<E: DomainEvent>() -> Self {
        let new =
            EventDeclaration::new(E::NAME, E::VERSION, E::SOURCE_MODULE).aggregate_type(E::AGGREGATE_TYPE);
        E::FORMER_NAMES.iter().fold(new, |new, name| new.former_name(*name))
    }

    fn validate(&self) -> Result<()> {
        validate::event_name(&self.name)?;
        validate_version(&self.name, self.version)?;
        validate::name("source_module", &self.source_module, validate::MODULE_MAX)?;
        if let Some(aggregate_type) = &self.aggregate_type {
            validate::name("aggregate_type", aggregate_type, validate::TYPE_MAX)?;
        }
        for former in &self.former_names {
            validate::event_name(former)?;
            if *former == self.name {
                return Err(Error::invalid("former_name", format!("`{former}` is the event's own name")));
            }
        }
        Ok(())
    }
}

/// What the catalogue knows of one event name: [`Catalogue::entries`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CatalogueEntry {
    /// The name.
    pub name: String,
    /// Names under which it was published before, by name: those that were declared, and the aliases of subscriptions to it.
    pub former_names: Vec<String>,
    /// The versions that were declared, and those that have a schema, in order. Empty where it is only subscribed to.
    pub versions: Vec<CatalogueVersion>,
    /// The modules that publish it, by name.
    pub publishers: Vec<String>,
    /// The consumers that it reaches, in the order in which they run.
    pub consumers: Vec<String>,
}

/// One version of an event's payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CatalogueVersion {
    /// The version.
    pub version: u32,
    /// What kind of entity it is about, where that was declared.
    pub aggregate_type: Option<String>,
    /// Whether there is a JSON Schema for it, by which it is checked when it is published. Always false without the feature `schema`.
    pub has_schema: bool,
}

impl<'a> Catalogue<'a> {
    pub(crate) fn new(book: &'a CatalogueBook, registry: &'a Registry) -> Self {
        Catalogue { book, registry }
    }

    /// Declares that an event of this type is published: its name, version, module, aggregate and former names. Again it changes nothing.
    ///
    /// # Errors
    /// As [`declare_event`](Catalogue::declare_event).
    pub fn declare<E: DomainEvent>(&self) -> Result<()> {
        self.declare_event(EventDeclaration::of::<E>())
    }

    /// Declares an event that is published. Again it changes nothing; another module that declares the same is one more publisher.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name, version or module that no event can have, and where it contradicts what was declared before: with
    /// the field `aggregate_type` when that version is about another kind of entity, with `former_name` when another event had that name.
    /// Nothing is declared then.
    pub fn declare_event(&self, event: EventDeclaration) -> Result<()> {
        self.declare_and(event, |_| Ok(()))
    }

    /// `then`: the last that may be refused.
    pub(crate) fn declare_and(
        &self,
        event: EventDeclaration,
        then: impl FnOnce(&CatalogueBook) -> Result<()>,
    ) -> Result<()> {
        event.validate()?;
        let mut events = self.book.events.write().unwrap_or_else(PoisonError::into_inner);
        check(&events, &event)?;
        then(self.book)?;
        declare(&mut events, event);
        Ok(())
    }

    #[cfg(feature = "schema")]
    pub(crate) fn schemas(&self) -> &Schemas {
        &self.book.schemas
    }

    /// Every name that was declared, or that somebody subscribes to (patterns are among the consumers of what they match), by name.
    pub fn entries(&self) -> Vec<CatalogueEntry> {
        let declared = self.book.events.read().unwrap_or_else(PoisonError::into_inner).clone();
        let subscribed = self.registry.names_and_aliases();
        let exact = subscribed.iter().filter(|(name, _)| !is_pattern(name)).map(|(name, _)| name.clone());
        let mut names: BTreeSet<String> = declared.keys().cloned().collect();
        names.extend(exact);
        #[cfg(feature = "schema")]
        names.extend(self.book.schemas.names());
        names.into_iter().map(|name| self.entry(name, &declared, &subscribed)).collect()
    }

    fn entry(
        &self,
        name: String,
        declared: &BTreeMap<String, Declared>,
        subscribed: &[(String, Vec<String>)],
    ) -> CatalogueEntry {
        let event = declared.get(&name).cloned().unwrap_or_default();
        let mut former_names = event.former_names;
        let aliases = subscribed.iter().filter(|(of, _)| *of == name).flat_map(|(_, aliases)| aliases);
        former_names.extend(aliases.cloned());
        let mut versions: BTreeMap<u32, CatalogueVersion> = event
            .versions
            .into_iter()
            .map(|(version, aggregate_type)| {
                (version, CatalogueVersion { version, aggregate_type, has_schema: false })
            })
            .collect();
        #[cfg(feature = "schema")]
        for version in self.book.schemas.versions(&name) {
            versions
                .entry(version)
                .or_insert(CatalogueVersion { version, aggregate_type: None, has_schema: true })
                .has_schema = true;
        }
        let consumers = self.registry.consumers(&name);
        CatalogueEntry {
            former_names: former_names.into_iter().collect(),
            versions: std::mem::take(&mut versions).into_values().collect(),
            publishers: event.publishers.into_iter().collect(),
            consumers,
            name,
        }
    }

    /// Names that were declared and that no subscription matches, by its name, an alias or a pattern: what is published under them is
    /// received by nobody. By name.
    pub fn unhandled(&self) -> Vec<String> {
        let declared = self.book.events.read().unwrap_or_else(PoisonError::into_inner);
        declared.keys().filter(|name| !self.registry.has_handlers(name)).cloned().collect()
    }

    /// Names and patterns that are subscribed to and match nothing that was declared, neither themselves nor by one of their aliases:
    /// nobody publishes for them, as far as is known. A name under which a declared event was published before is such a name: new
    /// events do not have it. By name.
    pub fn unpublished(&self) -> Vec<String> {
        let declared = self.book.events.read().unwrap_or_else(PoisonError::into_inner);
        // Several subscriptions to a name: one alias is enough.
        let mut is_published: BTreeMap<String, bool> = BTreeMap::new();
        for (name, aliases) in self.registry.names_and_aliases() {
            let is_declared = match name.strip_suffix('*') {
                Some(prefix) => declared.keys().any(|of| of.len() > prefix.len() && of.starts_with(prefix)),
                None => declared.contains_key(&name),
            };
            let by_alias = aliases.iter().any(|alias| declared.contains_key(alias));
            *is_published.entry(name).or_default() |= is_declared || by_alias;
        }
        is_published.into_iter().filter(|(_, is_published)| !is_published).map(|(name, _)| name).collect()
    }
}

impl std::fmt::Debug for Catalogue<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

/// What was declared in one open box.
#[derive(Default)]
pub(crate) struct CatalogueBook {
    events: RwLock<BTreeMap<String, Declared>>,
    #[cfg(feature = "schema")]
    pub(crate) schemas: Schemas,
}

impl CatalogueBook {
    /// Whether the payload is as its schema says, where there is one.
    #[cfg(feature = "schema")]
    pub(crate) fn check(&self, name: &str, version: u32, payload: &Value) -> Result<()> {
        self.schemas.check(name, version, payload)
    }

    #[cfg(not(feature = "schema"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "there are no schemas")]
    pub(crate) fn check(&self, _: &str, _: u32, _: &Value) -> Result<()> {
        Ok(())
    }
}

/// Under one name.
#[derive(Clone, Default)]
struct Declared {
    /// With what kind of entity each is about.
    versions: BTreeMap<u32, Option<String>>,
    publishers: BTreeSet<String>,
    former_names: BTreeSet<String>,
}

/// Refuses what contradicts.
fn check(events: &BTreeMap<String, Declared>, new: &EventDeclaration) -> Result<()> {
    let EventDeclaration { name, version, aggregate_type, former_names, .. } = new;
    let known = events.get(name).and_then(|of| of.versions.get(version)).and_then(Option::as_ref);
    if let (Some(known), Some(other)) = (known, aggregate_type)
        && known != other
    {
        return Err(Error::invalid(
            "aggregate_type",
            format!("version {version} of `{name}` was declared with `{known}`, not `{other}`"),
        ));
    }
    for former in former_names {
        if let Some((other, _)) =
            events.iter().find(|(of, event)| *of != name && event.former_names.contains(former))
        {
            return Err(Error::invalid(
                "former_name",
                format!("`{former}` was declared as a former name of `{other}`, and not of `{name}`"),
            ));
        }
    }
    Ok(())
}

fn declare(events: &mut BTreeMap<String, Declared>, new: EventDeclaration) {
    let event = events.entry(new.name).or_default();
    let aggregate_type = event.versions.entry(new.version).or_default();
    *aggregate_type = aggregate_type.take().or(new.aggregate_type);
    event.publishers.insert(new.source_module);
    event.former_names.extend(new.former_names);
}

pub(crate) fn validate_version(name: &str, version: u32) -> Result<()> {
    if version == 0 {
        return Err(Error::invalid("version", format!("of `{name}`: versions count from 1")));
    }
    Ok(())
}

fn is_pattern(name: &str) -> bool {
    name.ends_with('*')
}
