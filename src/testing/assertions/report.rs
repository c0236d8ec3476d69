//! What an assertion says that fails.

use std::fmt::Write as _;

use super::expected::{Expected, Fate, Subject};
use crate::error::Result;
use crate::outbox::{EventFilter, OutboxEvent};
use crate::postbox::Postbox;
use crate::testing::describe;

/// So many events are looked at, the newest.
const LOOKED_AT_MAX: usize = 1_000;
/// So many are shown.
const SHOWN_MAX: usize = 10;

/// There is no such event.
pub(super) fn none<N>(expected: &Expected<N>, fate: Fate, postbox: &Postbox) -> Result<String> {
    let mut text = format!("no event like this {}:\n  {expected}", verb(fate, 1));
    others(&mut text, expected, fate, &[], postbox)?;
    Ok(text)
}

/// There are more or less than were asked for.
pub(super) fn other_count<N>(
    expected: &Expected<N>,
    fate: Fate,
    wanted: usize,
    found: &[OutboxEvent],
    postbox: &Postbox,
) -> Result<String> {
    let events = if wanted == 1 { "event" } else { "events" };
    let mut text = format!(
        "{wanted} {events} like this wanted, but {} {}:\n  {expected}",
        found.len(),
        verb(fate, found.len())
    );
    if !found.is_empty() {
        list(&mut text, "like this:", found);
    }
    if found.len() < wanted {
        others(&mut text, expected, fate, found, postbox)?;
    }
    Ok(text)
}

/// There are some, and should be none.
pub(super) fn found_all_the_same(expected: &str, found: &[OutboxEvent]) -> String {
    let mut text = format!("no event like this was to be published:\n  {expected}");
    list(&mut text, &format!("but there {}:", counted(found.len())), found);
    text
}

fn verb(fate: Fate, events: usize) -> &'static str {
    match (fate, events) {
        (Fate::Published, 1) => "was published",
        (Fate::Published, _) => "were published",
        (Fate::Processed, 1) => "was processed",
        (Fate::Processed, _) => "were processed",
        (Fate::DeadLettered, 1) => "is a dead letter",
        (Fate::DeadLettered, _) => "are dead letters",
    }
}

fn counted(events: usize) -> String {
    if events == 1 { "is 1 event".to_owned() } else { format!("are {events} events") }
}

fn list(text: &mut String, title: &str, events: &[OutboxEvent]) {
    let _ = write!(text, "\n{title}");
    for event in events.iter().take(SHOWN_MAX) {
        let _ = write!(text, "\n  {}\n    payload {}", describe::line(event), describe::payload(event));
    }
    if events.len() > SHOWN_MAX {
        let _ = write!(text, "\n  and {} more", events.len() - SHOWN_MAX);
    }
}

/// The other events, the closest first, with what is different about each.
fn others<N>(
    text: &mut String,
    expected: &Expected<N>,
    fate: Fate,
    found: &[OutboxEvent],
    postbox: &Postbox,
) -> Result<()> {
    let all = describe::read_events(postbox, &EventFilter::new(), LOOKED_AT_MAX)?;
    let mut others = Vec::new();
    for event in all.into_iter().filter(|event| found.iter().all(|found| found.id != event.id)) {
        let differences = expected.differences(&event, postbox, fate)?;
        let distance = match expected.subject() {
            Subject::Name(name) if differences.iter().any(|what| what.starts_with("name: ")) => {
                1 + distance(name, &event.event_name)
            }
            Subject::Id(id) if *id != event.id => 1,
            _ => 0,
        };
        others.push((distance, differences, event));
    }
    if others.is_empty() {
        text.push_str(if found.is_empty() {
            "\nthere is no event at all"
        } else {
            "\nthere is no other event"
        });
        return Ok(());
    }
    others.sort_by_key(|(distance, differences, _)| (*distance, differences.len()));
    let other = if found.is_empty() { "" } else { " other" };
    let _ = match others.len() {
        1 => write!(text, "\nthere is 1{other} event:"),
        n => write!(text, "\nthere are {n}{other} events, the closest first:"),
    };
    for (_, differences, event) in others.iter().take(SHOWN_MAX) {
        let _ = write!(text, "\n  {}", describe::line(event));
        for difference in differences.iter().filter(|what| !what.starts_with("payload ")) {
            let _ = write!(text, "\n    {difference}");
        }
        let mut in_payload = differences.iter().filter(|what| what.starts_with("payload "));
        if let Some(first) = in_payload.next() {
            let _ = write!(text, "\n    {first}");
            match in_payload.count() {
                0 => {}
                1 => text.push_str(", and 1 more difference"),
                more => drop(write!(text, ", and {more} more differences")),
            }
        }
        let _ = write!(text, "\n    payload {}", describe::payload(event));
    }
    if others.len() > SHOWN_MAX {
        let _ = write!(text, "\n  and {} more", others.len() - SHOWN_MAX);
    }
    Ok(())
}

/// How many letters have to be changed, added or left out to make one of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut above: Vec<usize> = (0..=other.len()).collect();
    for (row, letter) in one.chars().enumerate() {
        let mut here = vec![row + 1];
        for (column, also) in other.iter().enumerate() {
            let changed = above[column] + usize::from(letter != *also);
            here.push(changed.min(above[column + 1] + 1).min(here[column] + 1));
        }
        above = here;
    }
    above[other.len()]
}
