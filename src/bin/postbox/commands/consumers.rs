//! Who receives events.

use std::path::PathBuf;

use serde_json::json;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show::{self, Table};

/// List the consumers that have had to do with events of this file
///
/// `open` is how many events wait for the consumer after an attempt that failed, or are in its hands. Who subscribes is known
/// to the application alone: a consumer that no event has come to yet is not listed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox consumers app.db
  postbox consumers app.db --json | jq '.[] | select(.open > 0) | .name'

With --json, an array of objects, by name:
  name               the consumer
  open               events that it is not done with
  last_processed_at  when it last processed one of those that the newest 10,000 inbox rows are about, or null")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let consumers = context::read(&args.file)?.inbox().consumers().map_err(Failure::of(&args.file))?;
    context.show(
        || {
            let object = |consumer: &postbox::ConsumerSummary| {
                json!({
                    "name": consumer.name,
                    "open": consumer.open,
                    "last_processed_at": consumer.last_processed_at.map(show::time_json),
                })
            };
            consumers.iter().map(object).collect()
        },
        || {
            let mut table = Table::new(["consumer", "open", "last processed"]).right(1);
            for consumer in &consumers {
                let last = consumer.last_processed_at.map_or("-".to_owned(), show::time);
                table.row([consumer.name.clone(), consumer.open.to_string(), last]);
            }
            table.render("No consumer has had to do with an event yet.")
        },
    )
}
