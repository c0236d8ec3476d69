//! What would undo what a conversation has done so far: events, kept as JSON until they are needed, in the order in which they were noted.

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

    fn parse(&self) -> Result<Vec<StoredEvent>> {
        let Some(text) = self.text.as_deref() else { return Ok(Vec::new()) };
        serde_json::from_str(text).map_err(|_| {
            Error::invalid("undo", "what another program left in the saga's row is no list of events")
        })
    }

    pub(crate) fn add(&mut self, event: StoredEvent) -> Result<()> {
        let stored = match self.count {
            Some(count) => count,
            None => *self.count.insert(self.parse()?.len()),
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

    pub(crate) fn into_text(self) -> Result<Option<String>> {
        if self.added.is_empty() { Ok(self.text) } else { Ok(Some(serde_json::to_string(&self.all()?)?)) }
    }
}
