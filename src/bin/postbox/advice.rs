//! What somebody should do about what a box says, and the command that does it.

use std::path::Path;
use std::time::Duration;

use postbox::{Backlog, Pause, RecentFailure, Stats};
use serde_json::{Value, json};

use crate::commands::kind_and_name;
use crate::show;

/// Something that waits for a person.
pub(crate) struct Step {
    pub(crate) what: String,
    pub(crate) command: String,
}

/// Events that have been due for longer than this are taken by nobody: a worker with room takes them within a second or so.
const DUE_FOR_LONG: Duration = Duration::from_mins(1);

pub(crate) fn steps(file: &Path, stats: &Stats, backlog: &Backlog, pauses: &[Pause]) -> Vec<Step> {
    let file = word(&file.display().to_string());
    let mut steps = Vec::new();
    let dead = stats.dead_letter + stats.failed;
    if dead > 0 {
        let verb = if dead == 1 { "waits" } else { "wait" };
        steps.push(Step {
            what: format!("{} {verb} for a decision", show::count_of(dead, "dead letter")),
            command: format!("postbox dead-letters {file}"),
        });
    }
    if dead > 0 && backlog.behind > 0 {
        steps.push(Step {
            what: "events wait for their turn, perhaps behind a dead letter".to_owned(),
            command: format!("postbox blocked {file}"),
        });
    }
    for pause in pauses {
        let (kind, name) = kind_and_name(&pause.target);
        steps.push(Step {
            what: paused(pause),
            command: format!("postbox resume {file} {kind} {}", word(name)),
        });
    }
    if backlog.held > 0 {
        let verb = if backlog.held == 1 { "is" } else { "are" };
        steps.push(Step {
            what: format!("{} {verb} held until somebody subscribes", show::count_of(backlog.held, "event")),
            command: format!("postbox list {file} --status pending --oldest"),
        });
    }
    if backlog.newer > 0 {
        let verb = if backlog.newer == 1 { "waits" } else { "wait" };
        steps.push(Step {
            what: format!(
                "{} {verb} for a release of the application that knows the payload's version: start that one",
                show::count_of(backlog.newer, "event")
            ),
            command: format!("postbox list {file} --status pending --oldest"),
        });
    }
    let due_for = backlog.due_for_ms.map(Duration::from_millis).filter(|due_for| *due_for > DUE_FOR_LONG);
    if let Some(due_for) = due_for {
        steps.push(Step {
            what: format!(
                "events have been due for {}, and no worker takes them: start the application",
                show::duration(due_for)
            ),
            command: format!("postbox watch {file}"),
        });
    }
    steps
}

/// Since when, until when, and why.
pub(crate) fn paused(pause: &Pause) -> String {
    let until = pause.until.map_or_else(|| "it is resumed".to_owned(), show::time);
    let why = pause.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
    format!("{} is paused since {} until {until}{why}", pause.target, show::time(pause.since))
}

/// In one line, without its event's id.
pub(crate) fn failure(failure: &RecentFailure) -> String {
    let entry = &failure.entry;
    let consumer = entry.consumer_name.as_deref().unwrap_or("every consumer");
    let error = entry.detail.as_deref().unwrap_or(entry.kind.as_str());
    format!("{} {consumer} at {}: {error}", show::time(entry.at), failure.event_name)
}

/// How to look at its event.
pub(crate) fn look_at(file: &Path, failure: &RecentFailure) -> String {
    format!("postbox show {} {}", word(&file.display().to_string()), failure.event_id)
}

pub(crate) fn failure_json(failure: &RecentFailure) -> Value {
    let entry = &failure.entry;
    json!({
        "at": show::time_json(entry.at),
        "event_id": failure.event_id.to_string(),
        "event_name": failure.event_name,
        "consumer_name": entry.consumer_name,
        "kind": entry.kind.as_str(),
        "error": entry.detail,
    })
}

/// As a shell takes it for one word.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::word;

    #[test]
    fn words_are_quoted_where_a_shell_would_take_them_apart() {
        for (text, shown) in [
            ("app.db", "app.db"),
            ("/data/büro/app-2.db", "/data/büro/app-2.db"),
            ("my app.db", "'my app.db'"),
            ("it's", r"'it'\''s'"),
            ("$(rm)", "'$(rm)'"),
            ("", "''"),
        ] {
            assert_eq!(word(text), shown);
        }
    }
}
