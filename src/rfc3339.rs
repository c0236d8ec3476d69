//! Times as the records' `Serialize` writes them: RFC 3339 in UTC, always to the microsecond, so that the texts sort as the times
//! do. `2023-11-14T22:13:20.000000Z`.

use serde::Serializer;
use time::{Date, Month, OffsetDateTime, Time, UtcOffset};

pub(crate) fn serialize<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(*at))
}

pub(crate) fn text(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.microsecond(),
    )
}

/// Reads what [`text`] has written, and nothing else.
pub(crate) fn read(text_of: &str) -> Option<OffsetDateTime> {
    let number = |range: std::ops::Range<usize>| text_of.get(range)?.parse::<u32>().ok();
    let small = |range| u8::try_from(number(range)?).ok();
    let month = Month::try_from(small(5..7)?).ok()?;
    let date = Date::from_calendar_date(i32::try_from(number(0..4)?).ok()?, month, small(8..10)?).ok()?;
    let time = Time::from_hms_micro(small(11..13)?, small(14..16)?, small(17..19)?, number(20..26)?).ok()?;
    let at = OffsetDateTime::new_utc(date, time);
    (text(at) == text_of).then_some(at)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        for micros in [0, 1, 1_793_000_000_123_456, 253_402_300_799_999_999] {
            let at = OffsetDateTime::from_unix_timestamp_nanos(micros * 1_000).unwrap();
            assert_eq!(read(&text(at)), Some(at));
        }
        for bad in [
            "",
            "2026-11-28",
            "2026-11-28T05:00:00Z",
            "2026-13-28T05:00:00.000000Z",
            "2026-11-28T05:00:00.000000+",
            "2026-11-28 05:00:00.000000Z",
            "2026-11-28T05:00:00.000000Zé",
            "+026-11-28T05:00:00.000000Z",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
