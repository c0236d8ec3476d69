//! Who receives events.

use std::path::PathBuf;

use postbox::time::OffsetDateTime;
use postbox::{ConsumerSummary, ReplayBacklog};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show::{self, Table};

/// List the consumers that have had to do with events of this file, and how far replays to them have come
///
/// `open` is how many events wait for the consumer after an attempt that failed, or are in its hands. `to replay` is how many past
/// events of a `replay` or `catch-up` it has still to receive: what is held waits until it subscribes. Who subscribes is known
/// to the application alone: a consumer that no event has come to yet, nor is to be replayed to, is not listed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox consumers app.db
  postbox consumers app.db --json | jq '.[] | select(.open > 0) | .name'
  postbox consumers app.db --json | jq '.[] | select(.name == \"search\") | .to_replay'

With --json, an array of objects, by name:
  name               the consumer
  open               events that it is not done with
  to_replay          past events that it has still to receive
  replay_paused      of them, those that wait for the end of a pause
  replay_held        of them, those that wait until it subscribes
  replay_dead        past events that it has failed at for good
  last_processed_at  when it last processed one of those that the newest 10,000 inbox rows are about, or null")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
}

/// What is known of a consumer. One that is only to receive past events has no summary, one that is not has no replay.
pub(crate) struct Consumer {
    pub(crate) name: String,
    summary: Option<ConsumerSummary>,
    replay: Option<ReplayBacklog>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let consumers = all(&context::read(&args.file)?).map_err(Failure::of(&args.file))?;
    context.show(
        || consumers.iter().map(Consumer::object).collect(),
        || table(Table::new(["consumer", "open", "to replay", "last processed"]), &consumers),
    )
}

/// By name.
pub(crate) fn all(postbox: &postbox::Postbox) -> postbox::Result<Vec<Consumer>> {
    let mut replays = postbox.outbox().replays()?;
    let mut consumers: Vec<Consumer> = Vec::new();
    for summary in postbox.inbox().consumers()? {
        let replay = replays.iter().position(|replay| replay.consumer_name == summary.name);
        let replay = replay.map(|at| replays.remove(at));
        consumers.push(Consumer { name: summary.name.clone(), summary: Some(summary), replay });
    }
    consumers.extend(replays.into_iter().map(|replay| Consumer {
        name: replay.consumer_name.clone(),
        summary: None,
        replay: Some(replay),
    }));
    consumers.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(consumers)
}

/// `table` has four columns.
pub(crate) fn table(table: Table, consumers: &[Consumer]) -> String {
    let mut table = table.right(1);
    for consumer in consumers {
        let last = consumer.last_processed_at().map_or("-".to_owned(), show::time);
        table.row([consumer.name.clone(), consumer.open().to_string(), consumer.to_replay(), last]);
    }
    table.render("No consumer has had to do with an event yet.")
}

impl Consumer {
    fn open(&self) -> u64 {
        self.summary.as_ref().map_or(0, |summary| summary.open)
    }

    fn last_processed_at(&self) -> Option<OffsetDateTime> {
        self.summary.as_ref().and_then(|summary| summary.last_processed_at)
    }

    /// As in `120 (20 held)`.
    fn to_replay(&self) -> String {
        let Some(replay) = &self.replay else { return "-".to_owned() };
        let parts: Vec<String> =
            [(replay.paused, "paused"), (replay.held, "held"), (replay.dead_letters, "failed for good")]
                .into_iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
        if parts.is_empty() {
            replay.waiting.to_string()
        } else {
            format!("{} ({})", replay.waiting, parts.join(", "))
        }
    }

    fn object(&self) -> Value {
        let of = |number: fn(&ReplayBacklog) -> u64| self.replay.as_ref().map_or(0, number);
        json!({
            "name": self.name,
            "open": self.open(),
            "to_replay": of(|replay| replay.waiting),
            "replay_paused": of(|replay| replay.paused),
            "replay_held": of(|replay| replay.held),
            "replay_dead": of(|replay| replay.dead_letters),
            "last_processed_at": self.last_processed_at().map(show::time_json),
        })
    }
}
