//! Where a list goes on.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

/// A place between two events in order of publishing, or between two links in the order in which they were made. It stays good
/// while others are made, deleted and changed, across restarts, and on a copy of the file.
///
/// As a text it can be kept or carried elsewhere: [`Display`](fmt::Display) and [`FromStr`]. What the text says is the library's
/// own affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor(pub(crate) i64);

impl fmt::Display for Cursor {
    /// In hexadecimal, so that it never begins with the minus of an option.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    /// [`Error::Invalid`] for a text that is no cursor's.
    fn from_str(text: &str) -> Result<Self> {
        // Of the parser's own, `+7f` and `007F` would be numbers as well.
        u64::from_str_radix(text, 16)
            .ok()
            .map(|bits| Cursor(bits.cast_signed()))
            .filter(|cursor| cursor.to_string() == text)
            .ok_or_else(|| Error::invalid("cursor", "is not the cursor of a list, such as `1f4`"))
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
