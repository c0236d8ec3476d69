//! What JSON is to look like.

use std::fmt;
use std::panic::Location;

use serde_json::{Number, Value};

use crate::event::EventId;

/// What a JSON value is to look like: see [`json_pattern!`](crate::testing::json_pattern).
pub struct Pattern(Kind);

enum Kind {
    Anything,
    Absent,
    /// Text, a number, a boolean or null.
    Plain(Value),
    /// These fields, and whatever others.
    Object(Vec<(String, Pattern)>),
    /// Element by element.
    Array(Vec<Pattern>),
    Exactly(Value),
    That(Box<dyn Fn(&Value) -> bool>, &'static Location<'static>),
}

/// Any value, `null` included; but there has to be one. `_` means the same in a pattern.
pub fn anything() -> Pattern {
    Pattern(Kind::Anything)
}

/// The field is not there: not even as `null`.
pub fn absent() -> Pattern {
    Pattern(Kind::Absent)
}

/// This value and nothing besides: no further field at any depth.
pub fn exactly(value: impl Into<Value>) -> Pattern {
    Pattern(Kind::Exactly(value.into()))
}

/// A value of which this is true. Where it is not, the message names the line of this call. A closure that uses variables of the test
/// takes them with `move`.
///
/// It is asked about events that are as wanted in all else but JSON, and where it panics the test does. The list of a failed
/// assertion asks it about all other events as well: there a panic is one difference more.
#[track_caller]
pub fn that(is_so: impl Fn(&Value) -> bool + 'static) -> Pattern {
    Pattern(Kind::That(Box::new(is_so), Location::caller()))
}

impl Pattern {
    /// Of the fields that are given, whatever others there are. For [`json_pattern!`](crate::testing::json_pattern).
    #[doc(hidden)]
    pub fn object(fields: Vec<(String, Pattern)>) -> Self {
        Pattern(Kind::Object(fields))
    }

    /// Of so many elements. For [`json_pattern!`](crate::testing::json_pattern).
    #[doc(hidden)]
    pub fn array(elements: Vec<Pattern>) -> Self {
        Pattern(Kind::Array(elements))
    }

    /// Whether the value looks like this.
    pub fn matches(&self, value: &Value) -> bool {
        self.mismatches(Some(value)).is_empty()
    }

    /// Where the value does not look like this, first things first.
    pub(super) fn mismatches(&self, value: Option<&Value>) -> Vec<Mismatch> {
        let mut found = Vec::new();
        self.compare(value, "$", &mut found);
        found
    }

    fn compare(&self, value: Option<&Value>, path: &str, found: &mut Vec<Mismatch>) {
        let Some(value) = value else {
            if !matches!(self.0, Kind::Absent) {
                found.push(self.mismatch(None, path));
            }
            return;
        };
        match (&self.0, value) {
            (Kind::Object(fields), Value::Object(map)) => {
                for (key, pattern) in fields {
                    pattern.compare(map.get(key), &below(path, key), found);
                }
            }
            (Kind::Array(elements), Value::Array(values)) => {
                if elements.len() != values.len() {
                    found.push(Mismatch {
                        path: path.to_owned(),
                        wanted: counted(elements.len()),
                        found: format!("{}: {}", counted(values.len()), shown(value)),
                    });
                }
                for (index, (pattern, value)) in elements.iter().zip(values).enumerate() {
                    pattern.compare(Some(value), &format!("{path}[{index}]"), found);
                }
            }
            (Kind::Exactly(wanted), value) => compare_exactly(wanted, value, path, found),
            (Kind::Anything, _) => {}
            (Kind::Plain(wanted), value) if is_same(wanted, value) => {}
            (Kind::That(is_so, _), value) if is_so(value) => {}
            _ => found.push(self.mismatch(Some(value), path)),
        }
    }

    fn mismatch(&self, value: Option<&Value>, path: &str) -> Mismatch {
        let found = value.map_or_else(|| "nothing".to_owned(), shown);
        Mismatch { path: path.to_owned(), wanted: self.to_string(), found }
    }
}

/// A place where JSON is not as it was to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    path: String,
    wanted: String,
    found: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {}: wanted {}, found {}", self.path, self.wanted, self.found)
    }
}

fn compare_exactly(wanted: &Value, value: &Value, path: &str, found: &mut Vec<Mismatch>) {
    let mut differs = |path: &str, wanted: String, value: String| {
        found.push(Mismatch { path: path.to_owned(), wanted, found: value });
    };
    match (wanted, value) {
        (Value::Object(wanted), Value::Object(value)) => {
            for (key, wanted) in wanted {
                match value.get(key) {
                    Some(value) => compare_exactly(wanted, value, &below(path, key), found),
                    None => found.push(Mismatch {
                        path: below(path, key),
                        wanted: shown(wanted),
                        found: "nothing".to_owned(),
                    }),
                }
            }
            for (key, value) in value.iter().filter(|(key, _)| !wanted.contains_key(*key)) {
                found.push(Mismatch {
                    path: below(path, key),
                    wanted: "nothing".to_owned(),
                    found: shown(value),
                });
            }
        }
        (Value::Array(wanted), Value::Array(values)) if wanted.len() == values.len() => {
            for (index, (wanted, value)) in wanted.iter().zip(values).enumerate() {
                compare_exactly(wanted, value, &format!("{path}[{index}]"), found);
            }
        }
        (wanted, value) if is_same(wanted, value) => {}
        (wanted, value) => differs(path, shown(wanted), shown(value)),
    }
}

/// JSON has one kind of numbers: 12 is 12.0.
fn is_same(wanted: &Value, value: &Value) -> bool {
    match (wanted, value) {
        (Value::Number(wanted), Value::Number(value)) => is_same_number(wanted, value),
        _ => wanted == value,
    }
}

fn is_same_number(one: &Number, other: &Number) -> bool {
    if one.is_f64() == other.is_f64() { one == other } else { one.as_f64() == other.as_f64() }
}

fn below(path: &str, key: &str) -> String {
    let is_word = !key.is_empty()
        && key.chars().all(|c| c == '_' || c.is_alphanumeric())
        && !key.starts_with(|c: char| c.is_numeric());
    if is_word { format!("{path}.{key}") } else { format!("{path}[{}]", Value::from(key)) }
}

fn counted(elements: usize) -> String {
    if elements == 1 { "1 element".to_owned() } else { format!("{elements} elements") }
}

/// On one line, cut where it is long.
pub(super) fn shown(value: &Value) -> String {
    const SHOWN_MAX: usize = 400;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Anything => f.write_str("anything"),
            Kind::Absent => f.write_str("nothing"),
            Kind::Plain(value) => f.write_str(&shown(value)),
            Kind::Exactly(value) => write!(f, "exactly {}", shown(value)),
            Kind::That(_, at) => write!(f, "what {}:{} accepts", at.file(), at.line()),
            Kind::Array(elements) => {
                f.write_str("[")?;
                for (index, element) in elements.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    write!(f, "{comma}{element}")?;
                }
                f.write_str("]")
            }
            Kind::Object(fields) => {
                f.write_str("{")?;
                for (index, (key, pattern)) in fields.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    write!(f, "{comma}{}: {pattern}", Value::from(key.as_str()))?;
                }
                f.write_str("}")
            }
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({self})")
    }
}

/// Objects match those that have more fields, at every depth; for the value as it is there is [`exactly`].
impl From<Value> for Pattern {
    fn from(value: Value) -> Self {
        Pattern(match value {
            Value::Object(map) => {
                Kind::Object(map.into_iter().map(|(key, value)| (key, value.into())).collect())
            }
            Value::Array(values) => Kind::Array(values.into_iter().map(Pattern::from).collect()),
            plain => Kind::Plain(plain),
        })
    }
}

impl From<&Value> for Pattern {
    fn from(value: &Value) -> Self {
        value.clone().into()
    }
}

impl From<&String> for Pattern {
    fn from(value: &String) -> Self {
        value.as_str().into()
    }
}

/// As its text, as it stands in a payload.
impl From<EventId> for Pattern {
    fn from(id: EventId) -> Self {
        id.to_string().into()
    }
}

macro_rules! from_plain {
    ($($plain:ty)*) => {$(
        impl From<$plain> for Pattern {
            fn from(value: $plain) -> Self {
                Pattern(Kind::Plain(value.into()))
            }
        }
    )*};
}

from_plain!(&str String bool f32 f64 i8 i16 i32 i64 isize u8 u16 u32 u64 usize);

/// `None` is `null`.
impl<T: Into<Pattern>> From<Option<T>> for Pattern {
    fn from(value: Option<T>) -> Self {
        value.map_or(Pattern(Kind::Plain(Value::Null)), Into::into)
    }
}

impl<T: Into<Pattern>> From<Vec<T>> for Pattern {
    fn from(values: Vec<T>) -> Self {
        Pattern(Kind::Array(values.into_iter().map(Into::into).collect()))
    }
}

/// A [`Pattern`], written as JSON. An object matches every object that has these fields, whatever others; an array matches
/// element by element, and is as long. Numbers match by their value: `12` is `12.0`. Where a value stands, there may be
///
/// - an expression: numbers, texts, booleans, `Option`, `Vec`, a `serde_json::Value`, an [`EventId`](crate::EventId);
/// - `_` or [`anything()`](crate::testing::anything): any value, but there has to be one;
/// - [`absent()`](crate::testing::absent): there is no such field;
/// - [`exactly(json!(..))`](crate::testing::exactly): this value and no further field;
/// - [`that(|value| ..)`](crate::testing::that): a value of which this is true.
///
/// ```
/// use postbox::serde_json::json;
/// use postbox::testing::{absent, exactly, json_pattern, that};
///
/// let number = "inv-1";
/// let pattern = json_pattern!({
///     "number": number,
///     "total": that(|total| total.as_f64() > Some(10.0)),
///     "customer": { "name": _, "discount": absent() },
///     "lines": [{ "sku": "pen" }, exactly(json!({ "sku": "ink", "count": 2 }))],
///     "paid_at": null,
/// });
/// assert!(pattern.matches(&json!({
///     "number": "inv-1",
///     "total": 12.5,
///     "customer": { "name": "Ada", "city": "London" },
///     "lines": [{ "sku": "pen", "count": 7 }, { "sku": "ink", "count": 2 }],
///     "paid_at": null,
/// })));
/// ```
#[macro_export]
macro_rules! json_pattern {
    (@fields $fields:ident) => {};
    (@fields $fields:ident $key:tt : null $(, $($rest:tt)*)?) => {
        $crate::json_pattern!(@field $fields $key (null));
        $crate::json_pattern!(@fields $fields $($($rest)*)?)
    };
    (@fields $fields:ident $key:tt : _ $(, $($rest:tt)*)?) => {
        $crate::json_pattern!(@field $fields $key (_));
        $crate::json_pattern!(@fields $fields $($($rest)*)?)
    };
    (@fields $fields:ident $key:tt : { $($inner:tt)* } $(, $($rest:tt)*)?) => {
        $crate::json_pattern!(@field $fields $key ({ $($inner)* }));
        $crate::json_pattern!(@fields $fields $($($rest)*)?)
    };
    (@fields $fields:ident $key:tt : [ $($inner:tt)* ] $(, $($rest:tt)*)?) => {
        $crate::json_pattern!(@field $fields $key ([ $($inner)* ]));
        $crate::json_pattern!(@fields $fields $($($rest)*)?)
    };
    (@fields $fields:ident $key:tt : $value:expr $(, $($rest:tt)*)?) => {
        $crate::json_pattern!(@field $fields $key ($value));
        $crate::json_pattern!(@fields $fields $($($rest)*)?)
    };
    (@field $fields:ident $key:tt ($($value:tt)*)) => {
        $fields.push((::std::string::String::from($key), $crate::json_pattern!($($value)*)));
    };
    (@elements $elements:ident) => {};
    (@elements $elements:ident null $(, $($rest:tt)*)?) => {
        $elements.push($crate::json_pattern!(null));
        $crate::json_pattern!(@elements $elements $($($rest)*)?)
    };
    (@elements $elements:ident _ $(, $($rest:tt)*)?) => {
        $elements.push($crate::json_pattern!(_));
        $crate::json_pattern!(@elements $elements $($($rest)*)?)
    };
    (@elements $elements:ident { $($inner:tt)* } $(, $($rest:tt)*)?) => {
        $elements.push($crate::json_pattern!({ $($inner)* }));
        $crate::json_pattern!(@elements $elements $($($rest)*)?)
    };
    (@elements $elements:ident [ $($inner:tt)* ] $(, $($rest:tt)*)?) => {
        $elements.push($crate::json_pattern!([ $($inner)* ]));
        $crate::json_pattern!(@elements $elements $($($rest)*)?)
    };
    (@elements $elements:ident $value:expr $(, $($rest:tt)*)?) => {
        $elements.push($crate::json_pattern!($value));
        $crate::json_pattern!(@elements $elements $($($rest)*)?)
    };
    (null) => {
        $crate::testing::Pattern::from($crate::serde_json::Value::Null)
    };
    (_) => {
        $crate::testing::anything()
    };
    ({ $($inner:tt)* }) => {{
        #[allow(unused_mut, clippy::vec_init_then_push, reason = "there may be none, and they come one by one")]
        let fields = {
            let mut fields = ::std::vec::Vec::<(::std::string::String, $crate::testing::Pattern)>::new();
            $crate::json_pattern!(@fields fields $($inner)*);
            fields
        };
        $crate::testing::Pattern::object(fields)
    }};
    ([ $($inner:tt)* ]) => {{
        #[allow(unused_mut, clippy::vec_init_then_push, reason = "there may be none, and they come one by one")]
        let elements = {
            let mut elements = ::std::vec::Vec::<$crate::testing::Pattern>::new();
            $crate::json_pattern!(@elements elements $($inner)*);
            elements
        };
        $crate::testing::Pattern::array(elements)
    }};
    ($value:expr) => {
        $crate::testing::Pattern::from($value)
    };
}
