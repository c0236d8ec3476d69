//! Events that are cancelled before they start.

use std::path::PathBuf;

use crate::context::Context;
use crate::decide::{self, Chosen, Decision};
use crate::failure::Failure;

/// Cancel events that have not started, for a reason that is kept
///
/// No consumer receives them, and they count as processed. Such are those that `future` lists, and those that are due and that nobody has
/// begun with. Many are decided about in pieces: an error leaves what was decided by then.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox cancel app.db 0198c0de-0000-7000-8000-000000000000 --reason 'it was paid'
  postbox cancel app.db --name 'invoice.reminder' --aggregate-id inv-1 --reason 'it was paid' --dry-run

With --json, one object:
  events   how many
  dry_run  true: how many it would be")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    #[command(flatten)]
    chosen: Chosen,
    /// Why, for the event's history: 1 to 1000 characters
    #[arg(long)]
    reason: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let decision = Decision {
        about: decide::UNSTARTED,
        says: ["is cancelled", "are cancelled"],
        about_one: &|outbox, id| outbox.cancel(id, &args.reason),
        about_many: &|outbox, filter| outbox.cancel_all(filter, &args.reason),
    };
    decide::about_chosen(&args.file, &args.chosen, &decision, context)
}
