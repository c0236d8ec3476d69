//! Times as the records' `Serialize` writes them: RFC 3339 in UTC, always to the microsecond, so that the texts sort as the times
//! do. `2023-11-14T22:13:20.000000Z`.

use serde::Serializer;
use time::{OffsetDateTime, UtcOffset};

pub(crate) fn serialize<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    let at = at.to_offset(UtcOffset::UTC);
    serializer.collect_str(&format_args!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.microsecond(),
    ))
}

/// The same where there may be none: `null`.
pub(crate) mod option {
    use super::{OffsetDateTime, Serializer};

    #[expect(clippy::ref_option, reason = "the shape that serde calls")]
    pub(crate) fn serialize<S: Serializer>(
        at: &Option<OffsetDateTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => super::serialize(at, serializer),
            None => serializer.serialize_none(),
        }
    }
}
