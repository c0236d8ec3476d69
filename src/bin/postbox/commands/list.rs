//! Events, a page at a time.

use std::path::PathBuf;

use crate::context::{self, Context};
use crate::events;
use crate::failure::Failure;
use crate::filter::{Filter, Paging};
use crate::show;

/// List events, the newest first
///
/// A page at a time: where there is more, the last line says how to go on. Payloads and metadata are not shown.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox list app.db
  postbox list app.db --name 'invoice.*' --from 2h --limit 200
  postbox list app.db --status pending --status processing --oldest
  postbox list app.db --consumer mail --error 'timed out' --json | jq -r '.events[].id'

With --json, one object:
  events  an array of objects, in the page's order: {id, event_name, source_module, aggregate_type, aggregate_id, status,
          attempt_count, last_error, available_at, processed_at, created_at, updated_at, correlation_id, causation_id,
          trace_parent, version, unreadable (columns that another program has spoilt)}
  next    what --after takes for the next page, or null")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    paging: Paging,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let page =
        postbox.outbox().list(&args.filter.filter(), &args.paging.page()).map_err(Failure::of(&args.file))?;
    context.show(
        || show::json_of(&page),
        || events::table(&page.events, "There are no such events.") + &events::more(&page),
    )
}
