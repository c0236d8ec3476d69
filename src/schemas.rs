//! What payloads are to look like: JSON Schemas by event name and version, by which they are checked when they are published.

mod stack;
mod ways;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{ValidationError, Validator};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use self::stack::Steps;
use self::ways::Ways;
use crate::catalogue::{Catalogue, EventDeclaration, validate_version};
use crate::error::{Error, Result};
use crate::json::Json;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::typed::DomainEvent;
use crate::validate;

impl Catalogue<'_> {
    /// As [`declare`](Catalogue::declare), with the JSON Schema (draft 2020-12) that `schemars` derives from the type, as serde writes it.
    /// From now on every event of this name and version is checked by it before anything is written, typed or not:
    /// [`schema_of`](Catalogue::schema_of).
    ///
    /// ```
    /// # use postbox::{DomainEvent, Error, NewEvent, Postbox};
    /// # use postbox::serde_json::json;
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Serialize, Deserialize, postbox::schemars::JsonSchema)]
    /// #[schemars(crate = "postbox::schemars")]
    /// struct InvoicePaid {
    ///     number: String,
    ///     cents: u64,
    /// }
    /// # impl DomainEvent for InvoicePaid {
    /// #     const NAME: &'static str = "invoice.paid";
    /// #     const SOURCE_MODULE: &'static str = "finance";
    /// #     const AGGREGATE_TYPE: &'static str = "Invoice";
    /// #     fn aggregate_id(&self) -> String { self.number.clone() }
    /// # }
    /// # fn main() -> postbox::Result<()> {
    /// # let postbox = Postbox::open_in_memory()?;
    /// postbox.catalogue().declare_with_schema::<InvoicePaid>()?;
    /// let by_hand = NewEvent::new("invoice.paid", "finance", "Invoice", "inv-1").payload(json!({ "number": "inv-1", "cents": -5 }));
    /// match postbox.publish(by_hand) {
    ///     Err(Error::SchemaViolation { path, reason, .. }) => assert_eq!((path.as_str(), reason.as_str()), ("/cents", "must be at least 0")),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`declare`](Catalogue::declare) and [`schema_of`](Catalogue::schema_of). Nothing is declared then.
    pub fn declare_with_schema<E: DomainEvent + JsonSchema>(&self) -> Result<()> {
        let schema =
            SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<E>();
        self.declare_and(EventDeclaration::of::<E>(), |book| {
            book.schemas.put(E::NAME, E::VERSION, schema.to_value().into())
        })
    }

    /// The JSON Schema of one version of an event's payload: written by hand, for an event that is no type, or for an older version. It
    /// declares no publisher. Drafts 4, 6, 7, 2019-09 and 2020-12 (where `$schema` says nothing); nothing outside of it is fetched.
    ///
    /// Every publish of that name and version is checked by it before anything is written: [`publish`](crate::Postbox::publish),
    /// `publish_all`, `publish_in`, and those of transactions and handlers; a schedule's event when it is put and at each tick, and what a saga
    /// notes to [undo](crate::SagaStep::undo_with) what it did when it is noted. That is published also where it does not fit a schema that
    /// came in between, with a warning in the log. What was published before is not, and neither is what is
    /// [imported](crate::Postbox::import), since it has been published already. Events that still bear a former name are checked by the
    /// schema of that name.
    ///
    /// `format` is checked by schemas of the drafts 4, 6 and 7 alone; later ones say that it only annotates. A pattern that goes back and
    /// forth too often over a text counts as one that it does not match. Where a schema refers to itself by several alternatives
    /// (`oneOf`, as an enum's), what is nested deeply is refused without telling where it does not fit: to find out may take hours. So it is where several keywords that
    /// refer to it look at the same field.
    ///
    /// A check never takes more than half a megabyte of the caller's stack: what could take more, as where a payload of many levels meets
    /// a schema of many parts one within the other, runs on a thread of its own, which costs some hundredths of a millisecond. What not even
    /// a gigabyte would be enough for is refused.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field `schema` when it is none, or another one was given for that version. Nothing is changed then.
    pub fn schema_of(&self, name: &str, version: u32, schema: Value) -> Result<()> {
        let schema = Json::from(schema); // refused or not, it can be dropped
        validate::event_name(name)?;
        validate_version(name, version)?;
        self.schemas().put(name, version, schema)
    }
}

/// Those of one open box.
#[derive(Default)]
pub(crate) struct Schemas {
    /// Who has none does not look further.
    is_any: AtomicBool,
    by_name: RwLock<HashMap<String, BTreeMap<u32, Arc<Schema>>>>,
}

struct Schema {
    source: Value,
    validator: Validator,
    ways: Ways,
    steps: Steps,
}

impl Schema {
    /// Where, and why.
    fn first_violation(&self, payload: &Value) -> Option<(String, String)> {
        // Not yet where it does not fit: that may take incomparably longer.
        if self.validator.is_valid(payload) {
            return None;
        }
        let found = self.ways.are_few(payload).then(|| self.validator.validate(payload).err()).flatten();
        Some(found.map_or_else(|| (String::new(), NOT_SOUGHT.to_owned()), |error| describe(&error)))
    }
}

impl Schemas {
    fn put(&self, name: &str, version: u32, source: Json) -> Result<()> {
        let of = |why: String| Error::invalid("schema", format!("of version {version} of `{name}`: {why}"));
        source.to_text("schema", usize::MAX)?; // not nested too deeply
        let source = source.into_value();
        // In the words of the schema: there is no payload yet.
        let compiled = stack::compiling(|| jsonschema::options().offline().build(&source))?;
        let validator = compiled.map_err(|error| {
            let path = error.instance_path().to_string();
            of(if path.is_empty() { error.to_string() } else { format!("at `{path}`: {error}") })
        })?;
        // Before the lock, which keeps whoever publishes waiting: of a large one it takes a while.
        let schema = Schema { ways: Ways::of(&source), steps: Steps::of(&source), source, validator };
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        match by_name.get(name).and_then(|versions| versions.get(&version)) {
            Some(known) if known.source == schema.source => return Ok(()),
            Some(_) => return Err(of("another one was declared".to_owned())),
            None => {}
        }
        by_name.entry(name.to_owned()).or_default().insert(version, Arc::new(schema));
        self.is_any.store(true, Ordering::Release);
        Ok(())
    }

    /// Where there is none for this version everything fits.
    pub(crate) fn check(&self, name: &str, version: u32, payload: &Value) -> Result<()> {
        if !self.is_any.load(Ordering::Acquire) {
            return Ok(());
        }
        let schema = {
            let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
            by_name.get(name).and_then(|versions| versions.get(&version)).map(Arc::clone)
        };
        let Some(schema) = schema else { return Ok(()) };
        let found = schema.steps.run(payload, || schema.first_violation(payload))?;
        let found = found.unwrap_or_else(|| Some((String::new(), NOT_CHECKED.to_owned())));
        found.map_or(Ok(()), |(path, reason)| {
            Err(Error::SchemaViolation { event_name: name.to_owned(), version, path, reason })
        })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    pub(crate) fn versions(&self, name: &str) -> Vec<u32> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        by_name.get(name).map(|versions| versions.keys().copied().collect()).unwrap_or_default()
    }
}

const NOT_SOUGHT: &str =
    "it is nested so deeply, in a schema that refers to itself, that where is not looked for";

const NOT_CHECKED: &str =
    "it is nested so deeply, in a schema of so many parts one within the other, that it is not checked";

/// Where, and what the schema asks for. jsonschema's own text quotes what stands there, which is the payload's.
fn describe(error: &ValidationError<'_>) -> (String, String) {
    use ValidationErrorKind as Kind;

    let mut path = error.instance_path().to_string();
    let reason = match error.kind() {
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            if let Some(first) = unexpected.first() {
                path = format!("{path}/{}", first.replace('~', "~0").replace('/', "~1"));
            }
            "the schema does not know this field".to_owned()
        }
        Kind::Required { property } => match property.as_str() {
            Some(property) => format!("the field `{property}` is missing"),
            None => "a field is missing".to_owned(),
        },
        Kind::Type { kind } => format!("must be of type {}", types(kind)),
        Kind::Minimum { limit } => format!("must be at least {limit}"),
        Kind::Maximum { limit } => format!("must be at most {limit}"),
        Kind::ExclusiveMinimum { limit } => format!("must be more than {limit}"),
        Kind::ExclusiveMaximum { limit } => format!("must be less than {limit}"),
        Kind::MinLength { limit } => format!("must have at least {limit} characters"),
        Kind::MaxLength { limit } => format!("must have at most {limit} characters"),
        Kind::MinItems { limit } => format!("must have at least {limit} items"),
        Kind::MaxItems { limit } => format!("must have at most {limit} items"),
        Kind::MinProperties { limit } => format!("must have at least {limit} fields"),
        Kind::MaxProperties { limit } => format!("must have at most {limit} fields"),
        Kind::MultipleOf { multiple_of } => format!("must be a multiple of {multiple_of}"),
        Kind::Pattern { pattern } => format!("must match the pattern `{pattern}`"),
        Kind::BacktrackLimitExceeded { .. } | Kind::RegexEngineFailure { .. } => {
            "matching a pattern takes too many steps".to_owned()
        }
        Kind::Format { format } => format!("must be of the format `{format}`"),
        Kind::Enum { .. } | Kind::Constant { .. } => {
            "is none of the values that the schema allows".to_owned()
        }
        Kind::AnyOf { .. } | Kind::OneOfNotValid { .. } => {
            "fits none of the schema's alternatives".to_owned()
        }
        Kind::OneOfMultipleValid { .. } => "fits more than one of the schema's alternatives".to_owned(),
        Kind::UniqueItems => "must have no item twice".to_owned(),
        Kind::PropertyNames { .. } => "the name of a field does not fit `propertyNames`".to_owned(),
        Kind::FalseSchema => "the schema allows nothing here".to_owned(),
        other => format!("does not fit `{}`", other.keyword()),
    };
    (path, reason)
}

fn types(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(one) => one.to_string(),
        TypeKind::Multiple(several) => {
            several.iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" or ")
        }
    }
}
