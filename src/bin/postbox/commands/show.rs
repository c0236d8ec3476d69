//! All about one event.

use std::fmt::Write as _;
use std::path::PathBuf;

use postbox::{Error, EventId, EventStory, HistoryEntry, InboxEvent, OutboxEvent};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::events;
use crate::failure::Failure;
use crate::show::{self, Table};

use super::links;

/// Tell all about one event: its row, who has received it, what went wrong, cause and effects, links
///
/// What it says (payload and metadata) is shown only with --payload: it is the customer's.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox show app.db 0198c0de-0000-7000-8000-000000000000
  postbox show app.db 0198c0de-0000-7000-8000-000000000000 --payload
  postbox show app.db 0198c0de-0000-7000-8000-000000000000 --json | jq '.history[].detail'

With --json, one object:
  event       as of `list`; with --payload also payload and metadata
  inbox       an array: {consumer, status, attempt_count (that failed), last_error, processed_at, created_at, updated_at}
  history     an array, oldest first: {at, kind, consumer, duration_us (microseconds), detail}
  cause       the event whose handler published it (as of `list`), or null
  caused      an array: the events that its handlers published
  links       an array: the links of its entity: {id, source, target, link_type, created_at, updated_at}
  unreadable  an array: what another program has spoilt
  is_cut      true: there are more than 1,000 inbox rows, caused events or links")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
    /// The event
    id: EventId,
    /// Show payload and metadata as well
    #[arg(long)]
    payload: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let story = postbox
        .outbox()
        .story(args.id)
        .and_then(|story| story.ok_or_else(|| Error::NotFound { what: "event", id: args.id.to_string() }));
    let story = story.map_err(Failure::of(&args.file))?;
    context.show(|| object(&story, args.payload), || text(&story, args.payload))
}

fn object(story: &EventStory, with_payload: bool) -> Value {
    json!({
        "event": event_object(&story.event, &story.unreadable, with_payload),
        "inbox": story.inbox.iter().map(inbox_object).collect::<Value>(),
        "history": story.history.iter().map(history_object).collect::<Value>(),
        "cause": story.cause.as_ref().map(show::json_of),
        "caused": show::json_of(&story.caused),
        "links": story.links.iter().map(links::object).collect::<Value>(),
        "unreadable": story.unreadable,
        "is_cut": story.is_cut,
    })
}

fn event_object(event: &OutboxEvent, unreadable: &[&str], with_payload: bool) -> Value {
    let mut object = json!({
        "id": event.id,
        "event_name": event.event_name,
        "source_module": event.source_module,
        "aggregate_type": event.aggregate_type,
        "aggregate_id": event.aggregate_id,
        "status": event.status,
        "attempt_count": event.attempt_count,
        "last_error": event.last_error,
        "available_at": show::time_json(event.available_at),
        "processed_at": event.processed_at.map(show::time_json),
        "created_at": show::time_json(event.created_at),
        "updated_at": show::time_json(event.updated_at),
        "correlation_id": event.correlation_id,
        "causation_id": event.causation_id,
        "trace_parent": event.trace_parent,
        "version": event.version,
        "unreadable": unreadable,
    });
    if with_payload {
        object["payload"] = event.payload.clone();
        object["metadata"] = event.metadata.clone().unwrap_or_default();
    }
    object
}

fn inbox_object(row: &InboxEvent) -> Value {
    json!({
        "consumer": row.consumer_name,
        "status": row.status,
        "attempt_count": row.attempt_count,
        "last_error": row.last_error,
        "processed_at": row.processed_at.map(show::time_json),
        "created_at": show::time_json(row.created_at),
        "updated_at": show::time_json(row.updated_at),
    })
}

fn history_object(entry: &HistoryEntry) -> Value {
    json!({
        "at": show::time_json(entry.at),
        "kind": entry.kind,
        "consumer": entry.consumer_name,
        "duration_us": entry.duration.map(|duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)),
        "detail": entry.detail,
    })
}

fn text(story: &EventStory, with_payload: bool) -> String {
    let mut text = fields(&story.event);
    let mut section = |title: &str, content: String| {
        let _ = write!(text, "\n{title}:\n{content}");
    };
    if with_payload {
        section("Payload", show::json(&story.event.payload));
        if let Some(metadata) = &story.event.metadata {
            section("Metadata", show::json(metadata));
        }
    }
    section("Inbox", inbox(&story.inbox));
    if !story.history.is_empty() {
        section("History", history(&story.history));
    }
    if let Some(cause) = &story.cause {
        section("Cause", events::table([cause], ""));
    }
    if !story.caused.is_empty() {
        section("Caused", events::table(&story.caused, ""));
    }
    if !story.links.is_empty() {
        section("Links of its entity", links_of(story));
    }
    if !story.unreadable.is_empty() {
        section("Unreadable, since another program has written it", story.unreadable.join(", ") + "\n");
    }
    if story.is_cut {
        text.push_str("\nThere is more: the first 1,000 of each kind are shown.\n");
    }
    text
}

fn fields(event: &OutboxEvent) -> String {
    show::fields([
        ("id", event.id.to_string()),
        ("event", event.event_name.clone()),
        ("module", event.source_module.clone()),
        ("type", event.aggregate_type.clone()),
        ("entity id", event.aggregate_id.clone()),
        ("status", event.status.to_string()),
        ("attempts", event.attempt_count.to_string()),
        ("published", show::time(event.created_at)),
        ("due", events::due(event.available_at)),
        ("processed", show::or_dash(event.processed_at.map(show::time))),
        ("changed", show::time(event.updated_at)),
        ("conversation", show::or_dash(event.correlation_id.clone())),
        ("caused by", show::or_dash(event.causation_id.map(|id| id.to_string()))),
        ("traceparent", show::or_dash(event.trace_parent.clone())),
        ("payload version", event.version.to_string()),
        ("last error", show::or_dash(event.last_error.clone())),
    ])
}

fn inbox(rows: &[InboxEvent]) -> String {
    let mut table = Table::new(["consumer", "status", "failed attempts", "done", "last error"]).right(2);
    for row in rows {
        table.row([
            row.consumer_name.clone(),
            row.status.to_string(),
            row.attempt_count.to_string(),
            show::or_dash(row.processed_at.map(show::time)),
            show::or_dash(row.last_error.clone()),
        ]);
    }
    table.render("No consumer has come to an outcome.")
}

fn history(entries: &[HistoryEntry]) -> String {
    let mut table = Table::new(["at", "what", "consumer", "took", "detail"]);
    for entry in entries {
        table.row([
            show::time(entry.at),
            entry.kind.to_string(),
            show::or_dash(entry.consumer_name.clone()),
            show::or_dash(entry.duration.map(show::duration)),
            show::or_dash(entry.detail.clone()),
        ]);
    }
    table.render("")
}

fn links_of(story: &EventStory) -> String {
    let mut table = Table::new(["link type", "from", "to", "created"]);
    let entity = |entity: &postbox::EntityRef| {
        format!("{}/{}/{}", entity.module, entity.entity_type, entity.entity_id)
    };
    for link in &story.links {
        table.row([
            link.link_type.to_string(),
            entity(&link.source),
            entity(&link.target),
            show::time(link.created_at),
        ]);
    }
    table.render("")
}
