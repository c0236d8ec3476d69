//! Events as types of the application's: what ties a type to its event, and reads payloads that older releases wrote.

use std::any::type_name;
use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result, describe_json};
use crate::event::{Event, NewEvent};
use crate::handler::{Context, HandlerError, HandlerResult, panic_message};
use crate::json::Json;
use crate::subscription::Subscription;
use crate::tx::Tx;

/// Ties a type to the event whose payload it is: its name, its aggregate, and the version of the payload's shape.
///
/// The payload is what the type serialises to. Rows know nothing of types: what [`Postbox::publish`](crate::Postbox::publish) and
/// [`Postbox::publish_typed`](crate::Postbox::publish_typed) write is the same, and typed and untyped subscriptions stand side by
/// side on it.
///
/// ```
/// # use postbox::{Context, DomainEvent, Postbox, Subscription};
/// # use postbox::serde_json::{Value, json};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct InvoiceCreated {
///     number: String,
///     cents: i64, // until version 1 it was `total`, in euros
/// }
///
/// impl DomainEvent for InvoiceCreated {
///     const NAME: &'static str = "invoice.created";
///     const SOURCE_MODULE: &'static str = "finance";
///     const AGGREGATE_TYPE: &'static str = "Invoice";
///     const VERSION: u32 = 2;
///
///     fn aggregate_id(&self) -> String {
///         self.number.clone()
///     }
///
///     fn upcasters() -> postbox::Upcasters {
///         postbox::Upcasters::none().step(1, |mut payload: Value| {
///             let total = payload["total"].as_f64().ok_or("`total` is no number")?;
///             payload["cents"] = json!((total * 100.0).round() as i64);
///             Ok::<_, &str>(payload)
///         })
///     }
/// }
///
/// # fn main() -> postbox::Result<()> {
/// # let postbox = Postbox::open_in_memory()?;
/// postbox.subscribe(Subscription::typed::<InvoiceCreated>("operations", |invoice, cx| {
///     println!("{} of {} cents, event {}", invoice.number, invoice.cents, cx.event().id());
///     Ok(())
/// }))?;
/// postbox.publish_typed(&InvoiceCreated { number: "inv-1".into(), cents: 1_250 })?;
/// assert_eq!(postbox.drain()?, 1);
/// # Ok(())
/// # }
/// ```
///
/// # Versions
///
/// `VERSION` is the version that the type writes, and the newest that it reads. What a typed subscription does with an event's
/// [version](Event::version):
///
/// - The same: it is read.
/// - Older: the [upcasters](Upcasters) from that version on bring the payload up to it, one after the other.
/// - Newer, as where an older release runs beside, or after, a newer one: the event is **held back** for this consumer. It is
///   nobody's failure: no attempt is spent, and the event's other consumers receive it meanwhile. It goes on once the file is opened,
///   or is open already, in a process whose subscription knows the version. [`Stats::held_back`](crate::Stats::held_back) and
///   [`Backlog::newer`](crate::Backlog::newer) count such events.
///
/// A payload that does not fit the type, is older than the oldest upcaster, or whose upcaster fails or panics, is a dead letter of this
/// consumer at once, since no retry can help; the error says which event, type, version and field.
pub trait DomainEvent: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The event's name, such as `invoice.created`: as of [`NewEvent::new`].
    const NAME: &'static str;
    /// The module that publishes it.
    const SOURCE_MODULE: &'static str;
    /// What kind of entity it is about.
    const AGGREGATE_TYPE: &'static str;
    /// The version of the payload's shape that this type writes, and the newest that it reads. From 1.
    const VERSION: u32 = 1;
    /// Names under which it was published before. Events that still have one of them reach typed subscriptions as well:
    /// [`Subscription::alias`].
    const FORMER_NAMES: &'static [&'static str] = &[];

    /// Which entity it is about.
    fn aggregate_id(&self) -> String;

    /// What brings payloads of older versions up to [`VERSION`](DomainEvent::VERSION).
    fn upcasters() -> Upcasters {
        Upcasters::none()
    }
}

/// Steps from one version of a payload's shape to the next: [`DomainEvent::upcasters`].
///
/// Together they lead without a gap from the oldest version that is to be read up to the type's own;
/// [`Postbox::subscribe`](crate::Postbox::subscribe) checks that.
#[must_use]
#[derive(Default)]
pub struct Upcasters {
    /// In the order in which they were given.
    steps: Vec<(u32, Step)>,
}

type Step = Box<dyn Fn(Value) -> std::result::Result<Value, String> + Send + Sync>;

impl Upcasters {
    /// No older version can be read.
    pub fn none() -> Self {
        Upcasters::default()
    }

    /// From the version `from` to the next. It is given the payload as it is stored, or as the step before has left it. What it
    /// says when it fails is kept as the consumer's error.
    pub fn step<E: Display>(
        mut self,
        from: u32,
        upcast: impl Fn(Value) -> std::result::Result<Value, E> + Send + Sync + 'static,
    ) -> Self {
        self.steps.push((from, Box::new(move |payload| upcast(payload).map_err(|error| error.to_string()))));
        self
    }

    /// From the version `from` to the next nothing has to be done, as where a field came that has a default.
    pub fn unchanged(mut self, from: u32) -> Self {
        self.steps.push((from, Box::new(Ok)));
        self
    }

    fn from(&self, version: u32) -> Option<&Step> {
        self.steps.iter().find(|(from, _)| *from == version).map(|(_, step)| step)
    }

    fn oldest(&self) -> Option<u32> {
        self.steps.iter().map(|(from, _)| *from).min()
    }

    /// Whether they lead without a gap up to this version, and no further.
    fn check(&self, version: u32) -> std::result::Result<(), String> {
        for (place, (from, _)) in self.steps.iter().enumerate() {
            if *from == 0 {
                return Err("there is a step from version 0, and versions count from 1".to_owned());
            }
            if *from >= version {
                return Err(format!("the step from version {from} leads past the type's version, {version}"));
            }
            if self.steps[..place].iter().any(|(other, _)| other == from) {
                return Err(format!("there are two steps {from} -> {}", from + 1));
            }
        }
        let missing = (self.oldest().unwrap_or(version)..version).find(|from| self.from(*from).is_none());
        missing.map_or(Ok(()), |from| Err(format!("the step {from} -> {} is missing", from + 1)))
    }

    /// The payload of the event as this type.
    pub(crate) fn read<E: DomainEvent>(&self, event: &Event) -> std::result::Result<E, HandlerError> {
        let mut doing = Doing::Reading;
        let read = catch_unwind(AssertUnwindSafe(|| self.try_to_read(event, &mut doing)));
        read.unwrap_or_else(|panic| Err(panic_message(panic))).map_err(|why| {
            let (name, version, this) = (event.name(), event.version(), shown::<E>());
            HandlerError::dead_letter(format!(
                "version {version} of `{name}` cannot be read as {this}: {doing}{why}"
            ))
        })
    }

    fn try_to_read<E: DomainEvent>(
        &self,
        event: &Event,
        doing: &mut Doing,
    ) -> std::result::Result<E, String> {
        if event.version() == E::VERSION {
            return decode(event.payload());
        }
        let mut payload = event.payload().clone();
        for from in event.version()..E::VERSION {
            *doing = Doing::Upcasting { from };
            let step = self.from(from).ok_or_else(|| match self.oldest() {
                Some(oldest) => format!("it is older than version {oldest}, the oldest that can be"),
                None => "it has no upcasters".to_owned(),
            });
            let step = step.inspect_err(|_| *doing = Doing::Reading)?;
            // What it has made may be nested so deeply that reading or dropping it would exhaust the stack.
            let upcast = Json::from(step(payload)?);
            upcast.refuse_depth_within("payload", 0).map_err(|error| error.to_string())?;
            payload = upcast.into_value();
        }
        *doing = Doing::Reading;
        decode(&payload)
    }
}

impl fmt::Debug for Upcasters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|(from, _)| from)).finish()
    }
}

/// For the error.
enum Doing {
    Reading,
    Upcasting { from: u32 },
}

impl Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doing::Reading => Ok(()),
            Doing::Upcasting { from } => write!(f, "the upcaster {from} -> {} failed: ", from + 1),
        }
    }
}

/// The error is serde's, with the path of the field. It goes where a handler's own error would.
fn decode<E: DomainEvent>(payload: &Value) -> std::result::Result<E, String> {
    // Again with the path, once it has failed: keeping track of it takes time.
    E::deserialize(payload).or_else(|_| {
        serde_path_to_error::deserialize(payload).map_err(|error| {
            let path = error.path().to_string();
            let error = error.into_inner();
            if path == "." { error.to_string() } else { format!("at `{path}`: {error}") }
        })
    })
}

/// The type and its version, as errors show them.
fn shown<E: DomainEvent>() -> String {
    format!("{} (version {})", short_name(type_name::<E>()), E::VERSION)
}

/// Without the modules, unless it has parameters.
fn short_name(name: &'static str) -> &'static str {
    if name.contains('<') { name } else { name.rsplit("::").next().unwrap_or(name) }
}

/// What a typed subscription reads.
#[derive(Clone)]
pub(crate) struct Reads {
    pub(crate) version: u32,
    /// What is wrong with the type: the constant or function, and why.
    refused: Option<(&'static str, String)>,
}

impl Reads {
    pub(crate) fn of<E: DomainEvent>(upcasters: &Upcasters) -> Self {
        let refused = match upcasters.check(E::VERSION) {
            _ if E::VERSION == 0 => Some(("version", "versions count from 1".to_owned())),
            _ if E::NAME.contains('*') => {
                Some(("event_name", "a type is of one event name, not of a pattern".to_owned()))
            }
            Err(why) => Some(("upcasters", why)),
            Ok(()) => None,
        };
        let of_type = |(field, why)| (field, format!("of `{}`, {}: {why}", E::NAME, shown::<E>()));
        Reads { version: E::VERSION, refused: refused.map(of_type) }
    }

    /// Of what was validated already.
    pub(crate) fn up_to(version: u32) -> Self {
        Reads { version, refused: None }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        match &self.refused {
            Some((field, why)) => Err(Error::invalid(field, why)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up to version {}", self.version)
    }
}

impl NewEvent {
    /// An event of the application's as it is to be published: with [`publish_typed`](crate::Postbox::publish_typed) nothing more can
    /// be said about it, and here a delay, a key, a conversation.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field `payload` when the type cannot be JSON (a map whose keys are no strings, for one).
    pub fn typed<E: DomainEvent>(event: &E) -> Result<Self> {
        let payload = serde_json::to_value(event).map_err(|error| {
            let why = describe_json(&error);
            Error::invalid("payload", format!("of `{}`, {}, cannot be JSON: {why}", E::NAME, shown::<E>()))
        })?;
        let new = NewEvent::new(E::NAME, E::SOURCE_MODULE, E::AGGREGATE_TYPE, event.aggregate_id());
        Ok(new.payload(payload).version(E::VERSION))
    }
}

impl Subscription {
    /// As [`new`](Subscription::new), for an event that is a type: [`DomainEvent`] says what is done about its versions. Events that
    /// have one of its [former names](DomainEvent::FORMER_NAMES) reach it as well.
    pub fn typed<E: DomainEvent>(
        consumer_name: impl Into<String>,
        handler: impl Fn(&E, &Context<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        let upcasters = E::upcasters();
        let reads = Reads::of::<E>(&upcasters);
        let handler = move |event: &Event, cx: &Context<'_>| handler(&upcasters.read(event)?, cx);
        Subscription::new(E::NAME, consumer_name, handler).reading::<E>(reads)
    }

    /// As [`transactional`](Subscription::transactional), for an event that is a type: see [`typed`](Subscription::typed).
    pub fn typed_transactional<E: DomainEvent>(
        consumer_name: impl Into<String>,
        handler: impl Fn(&E, &Tx<'_>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        let upcasters = E::upcasters();
        let reads = Reads::of::<E>(&upcasters);
        let handler = move |event: &Event, tx: &Tx<'_>| handler(&upcasters.read(event)?, tx);
        Subscription::transactional(E::NAME, consumer_name, handler).reading::<E>(reads)
    }

    pub(crate) fn reading<E: DomainEvent>(mut self, reads: Reads) -> Self {
        self.reads = Some(reads);
        E::FORMER_NAMES.iter().fold(self, |this, name| this.alias(*name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(from: &[u32]) -> Upcasters {
        from.iter().fold(Upcasters::none(), |steps, from| steps.unchanged(*from))
    }

    #[test]
    fn upcasters_lead_without_a_gap_up_to_the_types_version() {
        for (from, version) in [(&[] as &[u32], 1), (&[], 7), (&[1], 2), (&[2, 1], 3), (&[4, 3], 5)] {
            assert_eq!(steps(from).check(version), Ok(()), "{from:?}");
        }
        for (from, version, said) in [
            (&[1_u32] as &[u32], 3, "the step 2 -> 3 is missing"),
            (&[1, 3], 4, "the step 2 -> 3 is missing"),
            (&[0, 1], 2, "there is a step from version 0"),
            (&[1, 2], 2, "the step from version 2 leads past the type's version, 2"),
            (&[u32::MAX], u32::MAX, "leads past"),
            (&[1, 1], 2, "there are two steps 1 -> 2"),
        ] {
            let error = steps(from).check(version).unwrap_err();
            assert!(error.contains(said), "{from:?}: {error}");
        }
    }

    #[test]
    fn types_are_named_without_their_modules() {
        assert_eq!(short_name("app::events::InvoiceCreated"), "InvoiceCreated");
        assert_eq!(short_name("app::Of<app::Invoice>"), "app::Of<app::Invoice>");
    }
}
