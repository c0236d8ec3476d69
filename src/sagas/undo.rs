//! What would undo what a conversation has done so far: events, kept as JSON until they are needed, in the order in which they were noted.

use serde::de::{DeserializeOwned, IgnoredAny};

use crate::error::{Error, Result};
use crate::stored_event::StoredEvent;

/// Of one conversation.
const EVENTS_MAX: usize = 1_000;

/// Most steps neither read it nor change it.
pub(crate) struct Undo {
    /// As it is stored.
    text: Option<String>,
    /// How many that are, once somebody has asked.
    count: Option<usize>,
    added: Vec<StoredEvent>,
}

impl Undo {
    pub(crate) fn stored(text: Option<String>) -> Self {
        Undo { text, count: None, added: Vec::new() }
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        let Some(text) = self.text.as_deref() else { return Ok(Vec::new()) };
        serde_json::from_str(text).map_err(|_| {
            Error::invalid("undo", "what another program left in the saga's row is no list of events")
        })
    }

    pub(crate) fn add(&mut self, event: StoredEvent) -> Result<()> {
        let stored = match self.count {
            Some(count) => count,
            None => *self.count.insert(self.parse::<IgnoredAny>()?.len()),
        };
        if stored + self.added.len() >= EVENTS_MAX {
            let reason =
                format!("the saga has noted {EVENTS_MAX} events already, which is as many as it may");
            return Err(Error::invalid("undo_with", reason));
        }
        self.added.push(event);
        Ok(())
    }

    /// All of them, the first that was noted first.
    pub(crate) fn all(&self) -> Result<Vec<StoredEvent>> {
        let mut all = self.parse()?;
        all.extend(self.added.iter().cloned());
        Ok(all)
    }

    pub(crate) fn clear(&mut self) {
        *self = Undo::stored(None);
    }

    /// Those that are there stay as they are: to read and write them all at each step would cost more with every one.
    pub(crate) fn into_text(self) -> Result<Option<String>> {
        if self.added.is_empty() {
            return Ok(self.text);
        }
        let added = serde_json::to_string(&self.added)?;
        // Counted when the first was added, so that it is a list.
        let is_any = self.count > Some(0);
        let Some(list) = self.text.filter(|_| is_any) else { return Ok(Some(added)) };
        let list = list.trim_end();
        Ok(Some(format!("{},{}", list.strip_suffix(']').unwrap_or(list), &added[1..])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NewEvent;

    fn event(name: &str) -> StoredEvent {
        StoredEvent::of(NewEvent::new(name, "m", "T", "t"), 1_000).unwrap()
    }

    #[test]
    fn what_is_added_stands_behind_what_was_there() {
        for before in [None, Some("[]"), Some(" [ ] \n")] {
            let mut undo = Undo::stored(before.map(str::to_owned));
            undo.add(event("a")).unwrap();
            undo.add(event("b")).unwrap();
            let mut undo = Undo::stored(undo.into_text().unwrap());
            undo.add(event("c")).unwrap();
            let text = undo.into_text().unwrap().map(|text| format!(" {text}\n"));
            let mut undo = Undo::stored(text);
            undo.add(event("d")).unwrap();
            let undo = Undo::stored(undo.into_text().unwrap());
            let names: Vec<_> = undo.all().unwrap().iter().map(|event| event.name().to_owned()).collect();
            assert_eq!(names, ["a", "b", "c", "d"], "{before:?}");
        }
    }

    /// A newer release may have noted what this one does not understand: it is for that one to read.
    #[test]
    fn what_is_not_understood_stays_as_it_is() {
        let newer = r#"[{"of":["a newer","release"]},[[1]]]"#;
        let mut undo = Undo::stored(Some(newer.to_owned()));
        undo.add(event("a")).unwrap();
        let text = undo.into_text().unwrap().unwrap();
        assert!(text.starts_with(&newer[..newer.len() - 1]), "{text}");
        assert_eq!(serde_json::from_str::<Vec<IgnoredAny>>(&text).unwrap().len(), 3);
        assert!(Undo::stored(Some(text)).all().is_err());
        for odd in ["7", "{}", "[", "[1,]"] {
            assert!(Undo::stored(Some(odd.to_owned())).add(event("a")).is_err(), "{odd}");
        }
    }
}
