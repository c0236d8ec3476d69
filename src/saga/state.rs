//! The application's state, to text and back.

use std::{fmt, io};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::handler::HandlerError;
use crate::json::{BoundedSink, DEPTH_MAX};

/// As text that can be read back, into the same type. `which`: whose it is, in words.
pub(super) fn to_text<S: Serialize + DeserializeOwned>(
    state: &S,
    which: &impl fmt::Display,
    bytes_max: usize,
) -> Result<String, HandlerError> {
    let mut sink = Sink { text: BoundedSink::new(bytes_max), depth: Depth::default() };
    let written = serde_json::to_writer(&mut sink, state);
    if sink.depth.is_exceeded {
        let why = format!(
            "{which}: its state is nested more than {DEPTH_MAX} levels deep and could not be read back"
        );
        return Err(HandlerError::dead_letter(why));
    }
    if let Err(error) = written {
        return Err(HandlerError::dead_letter(format!("{which}: its state cannot be JSON: {error}")));
    }
    let BoundedSink { bytes, size, .. } = sink.text;
    if size > bytes_max {
        return Err(HandlerError::dead_letter(format!(
            "{which}: its state takes {size} bytes as JSON, more than the limit of {bytes_max} bytes"
        )));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| HandlerError::dead_letter(format!("{which}: its state is not UTF-8")))?;
    // `NaN` is written as `null`, for one: no later step could go on from there.
    serde_json::from_str::<S>(&text).map_err(|error| {
        HandlerError::dead_letter(format!("{which}: its state could not be read back: {error}"))
    })?;
    Ok(text)
}

/// Nothing of it is in a log: this is a handler's error.
pub(super) fn from_text<S: DeserializeOwned>(
    text: &str,
    which: &impl fmt::Display,
) -> Result<S, HandlerError> {
    serde_json::from_str(text).map_err(|error| {
        HandlerError::dead_letter(format!(
            "{which}: its state does not fit the type it is read into: {error}"
        ))
    })
}

/// The state is no `Value` whose depth could be looked at before.
struct Sink {
    text: BoundedSink,
    depth: Depth,
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.depth.follow(bytes);
        // An error ends what recurses, before the stack does.
        if self.depth.is_exceeded { Err(io::Error::other("too deep")) } else { self.text.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many lists and objects are open, by the text alone.
#[derive(Default)]
struct Depth {
    open: usize,
    is_in_string: bool,
    is_escaped: bool,
    is_exceeded: bool,
}

impl Depth {
    fn follow(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_in_string => self.is_escaped = true,
                b'"' => self.is_in_string = !self.is_in_string,
                b'[' | b'{' if !self.is_in_string => {
                    self.open += 1;
                    self.is_exceeded |= self.open > DEPTH_MAX;
                }
                b']' | b'}' if !self.is_in_string => self.open = self.open.saturating_sub(1),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!("[[{{\"\\"), |inner, _| json!([inner]))
    }

    #[test]
    fn what_is_written_can_be_read_back_and_what_could_not_be_is_refused() {
        for value in [nested(127), json!({ "a\"{": "\\\"[[[", "b": [1.5, null] })] {
            let text = to_text(&value, &"it", 10_000).ok().unwrap();
            assert_eq!(from_text::<Value>(&text, &"it").ok().unwrap(), value);
        }
        let error = to_text(&nested(128), &"saga `a` of `b`", 10_000).err().unwrap();
        assert!(error.to_string().starts_with("saga `a` of `b`: its state is nested"), "{error}");
    }

    #[test]
    fn what_is_larger_than_the_limit_is_refused_with_its_size() {
        assert!(to_text(&"x".repeat(8), &"it", 10).is_ok());
        let error = to_text(&"x".repeat(9), &"it", 10).err().unwrap();
        assert_eq!(
            error.to_string(),
            "it: its state takes 11 bytes as JSON, more than the limit of 10 bytes"
        );
    }
}
