//! Dead letters that are given up.

use std::path::PathBuf;

use crate::context::Context;
use crate::decide::{self, Chosen, Decision};
use crate::failure::Failure;

/// Give dead letters, and events that failed, up, for a reason that is kept
///
/// Consumers that had not finished skip them, and they count as processed. It cannot be taken back; `replay` delivers a
/// discarded event again. Many are decided about in pieces: an error leaves what was decided by then.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox discard app.db 0198c0de-0000-7000-8000-000000000000 --reason 'sent by hand, ticket 4711'
  postbox discard app.db --name 'mail.*' --before 30d --reason 'too old to matter' --dry-run
  postbox discard app.db --all --reason 'test data' --yes

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
        about: decide::DEAD_LETTERS,
        says: ["is discarded", "are discarded"],
        about_one: &|outbox, id| outbox.discard(id, &args.reason),
        about_many: &|outbox, filter| outbox.discard_all(filter, &args.reason),
    };
    decide::about_chosen(&args.file, &args.chosen, &decision, context)
}
