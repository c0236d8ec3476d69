//! New attempts for dead letters.

use std::path::PathBuf;

use crate::context::Context;
use crate::decide::{self, Chosen, Decision};
use crate::failure::Failure;

/// Give dead letters, and events that failed, new attempts
///
/// They are due at once, in the running application. Every consumer that had not finished begins again with its first
/// attempt; those that had, do not run again. Many are decided about in pieces: an error leaves what was decided by then.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox retry app.db 0198c0de-0000-7000-8000-000000000000
  postbox retry app.db --consumer mail --error 'connection refused' --dry-run
  postbox retry app.db --consumer mail --error 'connection refused' --yes
  postbox retry app.db --all

With --json, one object:
  events   how many
  dry_run  true: how many it would be")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    #[command(flatten)]
    chosen: Chosen,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let decision = Decision {
        about: decide::DEAD_LETTERS,
        says: ["gets new attempts", "get new attempts"],
        about_one: &|outbox, id| outbox.retry(id),
        about_many: &|outbox, filter| outbox.retry_all(filter),
    };
    decide::about_chosen(&args.file, &args.chosen, &decision, context)
}
