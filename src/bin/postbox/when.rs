//! Moments and lengths of time, as people write them.

use std::time::Duration;

use postbox::time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

/// For clap: a moment as RFC 3339 writes it, a day (its beginning in UTC), or how long ago.
pub(crate) fn moment(text: &str) -> Result<OffsetDateTime, String> {
    if let Some(at) = rfc3339(text).or_else(|| Some(day(text)?.midnight().assume_utc())) {
        return Ok(at);
    }
    let ago = length(text).map_err(
        |_| "write a time (2026-03-01T08:00:00Z), a day (2026-03-01), or how long ago (90s, 10m, 2h, 3d)",
    )?;
    OffsetDateTime::now_utc().checked_sub(signed(ago)?).ok_or_else(|| TOO_LONG.to_owned())
}

/// For clap: a moment that is still to come: as above, `now`, or in how long.
pub(crate) fn moment_to_come(text: &str) -> Result<OffsetDateTime, String> {
    if let Some(at) = rfc3339(text).or_else(|| Some(day(text)?.midnight().assume_utc())) {
        return Ok(at);
    }
    let after = if text == "now" { Ok(Duration::ZERO) } else { length(text) };
    let after = after.map_err(
        |_| "write a time (2026-03-01T08:00:00Z), a day (2026-03-01), in how long (90s, 10m, 2h, 3d), or now",
    )?;
    OffsetDateTime::now_utc().checked_add(signed(after)?).ok_or_else(|| TOO_LONG.to_owned())
}

/// For clap: a length of time, such as `10m` or `1h30m`.
pub(crate) fn length(text: &str) -> Result<Duration, String> {
    let unreadable = || "write a length of time: 500ms, 90s, 10m, 2h, 3d, 1w, or 1h30m".to_owned();
    let mut rest = text;
    let mut whole = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let (unit, behind) = behind.split_at(letters);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            _ => return Err(unreadable()),
        };
        let number: u64 = number.parse().map_err(|_| unreadable())?;
        let part = number.checked_mul(millis).map(Duration::from_millis);
        whole = part.and_then(|part| whole.checked_add(part)).ok_or(TOO_LONG)?;
        rest = behind;
    }
    if text.is_empty() { Err(unreadable()) } else { Ok(whole) }
}

const TOO_LONG: &str = "that is longer than there are years";

fn signed(length: Duration) -> Result<postbox::time::Duration, String> {
    length.try_into().map_err(|_| TOO_LONG.to_owned())
}

/// As of <https://www.rfc-editor.org/rfc/rfc3339#section-5.6>, without leap seconds; in UTC.
pub(crate) fn rfc3339(text: &str) -> Option<OffsetDateTime> {
    let date = day(text.get(..10)?)?;
    matches!(text.as_bytes().get(10)?, b'T' | b't' | b' ').then_some(())?;
    let time = text.get(11..19)?;
    let separated = time.as_bytes()[2] == b':' && time.as_bytes()[5] == b':';
    let (hour, minute, second) = (number(time.get(..2)?)?, number(time.get(3..5)?)?, number(time.get(6..)?)?);
    separated.then_some(())?;
    let rest = text.get(19..)?;
    let (nanos, offset) = match rest.strip_prefix('.') {
        None => (0, rest),
        Some(behind) => {
            let digits = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (fraction, offset) = behind.split_at(digits);
            let kept = &fraction[..digits.min(9)];
            (number::<u32>(kept)? * 10_u32.pow(9 - u32::try_from(kept.len()).ok()?), offset)
        }
    };
    let time = Time::from_hms_nano(hour, minute, second, nanos).ok()?;
    PrimitiveDateTime::new(date, time).assume_offset(offset_of(offset)?).checked_to_offset(UtcOffset::UTC)
}

fn day(text: &str) -> Option<Date> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    ((year.len(), month.len(), day.len()) == (4, 2, 2) && parts.next().is_none()).then_some(())?;
    let month = Month::try_from(number::<u8>(month)?).ok()?;
    Date::from_calendar_date(number(year)?, month, number(day)?).ok()
}

fn offset_of(text: &str) -> Option<UtcOffset> {
    if matches!(text, "Z" | "z") {
        return Some(UtcOffset::UTC);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = text[1..].split_once(':')?;
    ((hours.len(), minutes.len()) == (2, 2)).then_some(())?;
    let (hours, minutes): (i8, i8) = (number(hours)?, number(minutes)?);
    UtcOffset::from_hms(sign * hours, sign * minutes, 0).ok()
}

/// Digits alone: `parse` would take a sign as well.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_rfc_3339_writes_them() {
        let at = |text: &str| rfc3339(text).map(OffsetDateTime::unix_timestamp_nanos);
        assert_eq!(at("1970-01-01T00:00:01Z"), Some(1_000_000_000));
        assert_eq!(at("1970-01-01t00:00:01.5z"), Some(1_500_000_000));
        assert_eq!(at("1970-01-01 01:00:00.0000000019+01:00"), Some(1));
        assert_eq!(at("1969-12-31T22:30:00-01:30"), Some(0));
        for bad in [
            "",
            "1970-01-01",
            "1970-01-01T00:00:01",
            "1970-13-01T00:00:01Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00-00-00Z",
            "1970-01-01T00:00:00+1:00",
            "1970-01-01T00:00:00Z ",
            "+970-01-01T00:00:00Z",
            "9999-12-31T23:59:59-01:00",
            "1970-01-01T00:0é:0Z",
            "1970-01-01T0é:0:00Z",
        ] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn lengths_are_sums_of_numbers_with_units() {
        let of = |text: &str| length(text).ok().map(|length| length.as_millis());
        for (text, millis) in
            [("500ms", 500), ("90s", 90_000), ("10m", 600_000), ("1h30m", 5_400_000), ("1w", 604_800_000)]
        {
            assert_eq!(of(text), Some(millis), "{text}");
        }
        for bad in ["", "5", "m", "-5m", "5 m", "5y", "1h30", "99999999999999999999s", "999999999999999999w"]
        {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert!(moment("3d").is_ok() && moment("2026-03-01").is_ok() && moment("99999999w").is_err());
        assert!(
            moment_to_come("3d").unwrap() > moment_to_come("now").unwrap()
                && moment_to_come("99999999w").is_err()
        );
        assert!(moment_to_come("tomorrow").unwrap_err().contains("in how long"));
        assert!(moment("yesterday").unwrap_err().contains("2026-03-01T08:00:00Z"));
    }
}
