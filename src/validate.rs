//! What is refused at the edge, before anything is written.

use crate::error::{Error, Result};

/// Limits in characters, the same as the CHECKs of schema.sql.
pub(crate) const EVENT_NAME_MAX: usize = 255;
pub(crate) const MODULE_MAX: usize = 127;
pub(crate) const TYPE_MAX: usize = 127;
pub(crate) const ENTITY_ID_MAX: usize = 255;
pub(crate) const CONSUMER_MAX: usize = 255;
pub(crate) const CORRELATION_MAX: usize = 255;
pub(crate) const TRACE_PARENT_MAX: usize = 255;
pub(crate) const ERROR_MAX: usize = 1023;

/// A name or an id: neither empty nor blank, no longer than `max` characters, without NUL (SQLite's `length` stops there).
pub(crate) fn name(field: &'static str, value: &str, max: usize) -> Result<()> {
    if value.trim().is_empty() {
        return Err(Error::invalid(field, "must not be empty or blank"));
    }
    if value.contains('\0') {
        return Err(Error::invalid(field, "must not contain the character NUL"));
    }
    // Bytes bound characters from above: most names are short enough without counting.
    if value.len() > max {
        let length = value.chars().count();
        if length > max {
            return Err(Error::invalid(field, format!("has {length} characters, at most {max} are allowed")));
        }
    }
    Ok(())
}

/// The name of an event that is published: a name without `*`, which is for patterns.
pub(crate) fn event_name(value: &str) -> Result<()> {
    name("event_name", value, EVENT_NAME_MAX)?;
    if value.contains('*') {
        return Err(Error::invalid("event_name", "must not contain `*`, which is for subscriptions"));
    }
    Ok(())
}

/// What a subscription listens to: an exact name, `prefix.*`, or `*`.
pub(crate) fn event_pattern(value: &str) -> Result<()> {
    name("event_name", value, EVENT_NAME_MAX)?;
    match value.find('*') {
        None => Ok(()),
        Some(0) if value.len() == 1 => Ok(()),
        Some(at) if at + 1 == value.len() && value.ends_with(".*") && at > 1 => Ok(()),
        Some(_) => Err(Error::invalid("event_name", "`*` may stand only alone or last, as in `invoice.*`")),
    }
}

/// A `traceparent` as W3C Trace Context, level 1, section 3.2 writes it (<https://www.w3.org/TR/trace-context/>).
pub(crate) fn trace_parent(value: &str) -> Result<()> {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let nonzero = |part: &str| part.bytes().any(|b| b != b'0');
    let mut parts = value.split('-');
    let mut next = || parts.next().unwrap_or_default();
    let (version, trace, parent, flags) = (next(), next(), next(), next());
    let more = parts.next().is_some();
    let sound = hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && nonzero(trace)
        && hex(parent, 16)
        && nonzero(parent)
        && hex(flags, 2)
        && (version != "00" || !more)
        && value.len() <= TRACE_PARENT_MAX
        && !value.contains('\0');
    if sound {
        Ok(())
    } else {
        Err(Error::invalid(
            "trace_parent",
            "must read 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, lower case",
        ))
    }
}

/// An error's text as it is stored: at most 1023 characters, cut between characters, without NUL.
pub(crate) fn error_text(text: &str) -> String {
    let kept = match text.char_indices().nth(ERROR_MAX) {
        Some((end, _)) => &text[..end],
        None => text,
    };
    kept.replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_measured_in_characters() {
        assert!(name("x", &"é".repeat(255), 255).is_ok());
        assert!(name("x", &"é".repeat(256), 255).is_err());
        for bad in ["", " ", "\t\n", "a\0b"] {
            assert!(name("x", bad, 255).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_wildcard_stands_alone_or_last() {
        for good in ["*", "a.*", "a.b.*", "a"] {
            assert!(event_pattern(good).is_ok(), "{good}");
        }
        for bad in ["a*", ".*", "**", "*.a", "a.*.b", "a.**", ""] {
            assert!(event_pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn traceparents_follow_the_w3c() {
        let sound = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(trace_parent(sound).is_ok());
        assert!(trace_parent(&format!("cc{}-future", &sound[2..])).is_ok());
        for bad in [
            "",
            "x",
            &sound.to_uppercase(),
            &format!("{sound}-more"),
            &format!("ff{}", &sound[2..]),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert!(trace_parent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn error_texts_are_cut_between_characters() {
        let text = error_text(&"ü".repeat(2_000));
        assert_eq!(text.chars().count(), ERROR_MAX);
        assert_eq!(error_text("a\0b"), "a\u{fffd}b");
    }
}
