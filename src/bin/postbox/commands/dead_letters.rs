//! Events that nobody processes by itself.

use std::path::PathBuf;

use crate::context::{self, Context};
use crate::events;
use crate::failure::Failure;
use crate::filter::{Paging, WithConsumer};
use crate::show::{self, Table};

/// List dead letters, and events that failed, with their errors
///
/// They wait for a decision: `retry` gives them new attempts, `discard` gives them up, `show` tells all about one.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox dead-letters app.db
  postbox dead-letters app.db --consumer mail --error 'connection refused'
  postbox dead-letters app.db --json | jq -r '.events[].last_error' | sort | uniq -c

With --json, an object as of `list`.")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
    #[command(flatten)]
    filter: WithConsumer,
    #[command(flatten)]
    paging: Paging,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let page =
        postbox.outbox().list(&args.filter.dead(), &args.paging.page()).map_err(Failure::of(&args.file))?;
    context.show(
        || show::json_of(&page),
        || {
            let mut table =
                Table::new(["id", "failed", "event", "module", "type", "entity id", "attempts", "error"])
                    .right(6);
            for event in &page.events {
                table.row([
                    event.id.to_string(),
                    show::time(event.updated_at),
                    event.event_name.clone(),
                    event.source_module.clone(),
                    event.aggregate_type.clone(),
                    event.aggregate_id.clone(),
                    event.attempt_count.to_string(),
                    show::or_dash(event.last_error.clone()),
                ]);
            }
            table.render("There are no such dead letters.") + &events::more(&page)
        },
    )
}
