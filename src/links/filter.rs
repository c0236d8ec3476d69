//! Which links: what an application or an operator asks for, as a condition on rows of `integration_link`.

use rusqlite::types::Value;

use super::{ENTITY, EntityRef, LinkType};
use crate::error::Result;
use crate::validate;

/// Which links are meant. All that is asked for has to hold; a filter that asks for nothing means every link.
///
/// Texts are compared as they are, upper and lower case apart. A method that is called again replaces what it said before, except
/// [`link_type`](LinkFilter::link_type). What is asked for is checked when the filter is used:
/// [`Error::Invalid`](crate::Error::Invalid) names the field.
///
/// The links of an entity, and those of a type, are found by an index; what else is asked for is looked at link by link among
/// these, or, where neither an entity nor a type is asked for, among all links of the file.
///
/// ```
/// # use postbox::{EntityRef, LinkFilter, LinkType};
/// // All that goes when something of finance goes.
/// let cascades = LinkFilter::new().link_type(LinkType::Cascade).source_module("finance");
/// // What operations links to this invoice.
/// let invoice = EntityRef::new("finance", "Invoice", "inv-1");
/// let by_operations = LinkFilter::new().source_module("operations").to(&invoice);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a filter does nothing by itself"]
pub struct LinkFilter {
    source: End,
    target: End,
    touching: Option<EntityRef>,
    link_types: Vec<LinkType>,
}

/// What is asked of one end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct End {
    module: Option<String>,
    entity_type: Option<String>,
    entity_id: Option<String>,
}

impl End {
    fn of(entity: &EntityRef) -> Self {
        End {
            module: Some(entity.module.clone()),
            entity_type: Some(entity.entity_type.clone()),
            entity_id: Some(entity.entity_id.clone()),
        }
    }

    /// The entity, where all of it is asked for.
    fn entity(&self) -> Option<EntityRef> {
        Some(EntityRef {
            module: self.module.clone()?,
            entity_type: self.entity_type.clone()?,
            entity_id: self.entity_id.clone()?,
        })
    }

    fn validate(&self, [module, entity_type, entity_id]: [&'static str; 3]) -> Result<()> {
        for (field, value, max) in [
            (module, &self.module, validate::MODULE_MAX),
            (entity_type, &self.entity_type, validate::TYPE_MAX),
            (entity_id, &self.entity_id, validate::ENTITY_ID_MAX),
        ] {
            if let Some(value) = value {
                validate::name(field, value, max)?;
            }
        }
        Ok(())
    }
}

impl LinkFilter {
    /// Every link.
    pub fn new() -> Self {
        Self::default()
    }

    /// Links that start at this entity. The same as its source module, type and id.
    pub fn from(self, source: &EntityRef) -> Self {
        LinkFilter { source: End::of(source), ..self }
    }

    /// Links that lead to this entity. The same as its target module, type and id.
    pub fn to(self, target: &EntityRef) -> Self {
        LinkFilter { target: End::of(target), ..self }
    }

    /// Links that start at or lead to this entity.
    pub fn touching(self, entity: &EntityRef) -> Self {
        LinkFilter { touching: Some(entity.clone()), ..self }
    }

    /// Links of this type; called several times: of any of them.
    pub fn link_type(mut self, link_type: LinkType) -> Self {
        if !self.link_types.contains(&link_type) {
            self.link_types.push(link_type);
        }
        self
    }

    /// Links that start at entities of this module. 1 to 127 characters.
    pub fn source_module(mut self, module: impl Into<String>) -> Self {
        self.source.module = Some(module.into());
        self
    }

    /// Links that start at entities of this kind. 1 to 127 characters.
    pub fn source_type(mut self, entity_type: impl Into<String>) -> Self {
        self.source.entity_type = Some(entity_type.into());
        self
    }

    /// Links that lead to entities of this module. 1 to 127 characters.
    pub fn target_module(mut self, module: impl Into<String>) -> Self {
        self.target.module = Some(module.into());
        self
    }

    /// Links that lead to entities of this kind. 1 to 127 characters.
    pub fn target_type(mut self, entity_type: impl Into<String>) -> Self {
        self.target.entity_type = Some(entity_type.into());
        self
    }

    /// Before anything is read.
    pub(crate) fn validate(&self) -> Result<()> {
        self.source.validate(super::SOURCE)?;
        self.target.validate(super::TARGET)?;
        self.touching.iter().try_for_each(|entity| entity.validate(ENTITY))
    }

    /// What to read for it: each part by itself. A link from an entity to itself is in both parts of that entity; no other is in
    /// two. `first`, `last`: the range of `seq`.
    pub(super) fn parts(&self, first: i64, last: i64, limit: i64) -> Vec<(Part, Vec<Value>)> {
        let values = |by: [Option<&str>; 3], types: &[LinkType]| {
            let text = |text: Option<&str>| text.map_or(Value::Null, |text| Value::Text(text.to_owned()));
            let types = (0..3).map(|index| text(types.get(index).map(|link_type| link_type.as_str())));
            let ends = [&self.source, &self.target];
            let ends = ends.into_iter().flat_map(|end| [&end.module, &end.entity_type, &end.entity_id]);
            by.into_iter()
                .map(text)
                .chain([first, last, limit].map(Value::Integer))
                .chain(types)
                .chain(ends.map(|part| text(part.as_deref())))
                .collect()
        };
        let of_entity = |part: Part, entity: &EntityRef| {
            let by = [&entity.module, &entity.entity_type, &entity.entity_id].map(|text| Some(text.as_str()));
            (part, values(by, &self.link_types))
        };
        if let Some(entity) = &self.touching {
            vec![of_entity(Part::Source, entity), of_entity(Part::Target, entity)]
        } else if let Some(source) = self.source.entity() {
            vec![of_entity(Part::Source, &source)]
        } else if let Some(target) = self.target.entity() {
            vec![of_entity(Part::Target, &target)]
        } else if self.link_types.is_empty() {
            vec![(Part::Table, values([None; 3], &[]))]
        } else {
            let of_type =
                |link_type: &LinkType| (Part::Type, values([Some(link_type.as_str()), None, None], &[]));
            self.link_types.iter().map(of_type).collect()
        }
    }
}

/// A part of `integration_link` that is read by an index of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What starts at ?1, ?2, ?3.
    Source,
    /// What leads to it.
    Target,
    /// What is of the type ?1.
    Type,
    /// All of it.
    Table,
}

/// The condition on `main.integration_link AS l`, for `concat!`: always the same text, so that statements stay prepared. A
/// parameter that is NULL asks for nothing. ?1 to ?6 are the part's own.
macro_rules! matches_links {
    () => {
        "(?7 IS NULL OR l.link_type IN (?7, ?8, ?9))
         AND (?10 IS NULL OR l.source_module = ?10)
         AND (?11 IS NULL OR l.source_entity_type = ?11)
         AND (?12 IS NULL OR l.source_entity_id = ?12)
         AND (?13 IS NULL OR l.target_module = ?13)
         AND (?14 IS NULL OR l.target_entity_type = ?14)
         AND (?15 IS NULL OR l.target_entity_id = ?15)"
    };
}
pub(super) use matches_links;
