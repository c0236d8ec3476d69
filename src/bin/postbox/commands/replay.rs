//! The past, once more, for one consumer.

use std::cell::Cell;
use std::path::PathBuf;

use postbox::OutboxStatus;

use crate::context::{self, Context};
use crate::decide::{self, Many, Sure};
use crate::failure::Failure;
use crate::filter::Which;

/// Deliver processed events again, to one consumer and no other
///
/// In order of publishing, as if it had never heard of them: for a consumer whose own data was lost. It is given events to
/// which it subscribes, and no others: name them in the filter. Until it subscribes they are held. `postbox consumers` shows
/// how many it has still to receive.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox replay app.db --consumer ledger --name 'invoice.*' --dry-run
  postbox replay app.db --consumer ledger --name 'invoice.*' --from 2026-03-01 --yes
  postbox replay app.db --cancel --consumer legder

With --json, one object:
  events   how many
  dry_run  true: how many it would be")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    /// Who receives them
    #[arg(long, visible_alias = "to")]
    consumer: String,
    /// Take it back: what waits to be replayed to this consumer, or to catch up with it, is not delivered to it any more
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    sure: Sure,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    if args.cancel {
        return cancel(args, context);
    }
    let filter = args.which.filter();
    // Counted before it is decided.
    let counted = Cell::new(0);
    let many = Many {
        what: "processed event",
        says: ["is delivered again", "are delivered again"],
        to: Some(&args.consumer),
        count: &|outbox| {
            let filter = args.which.filter().status(OutboxStatus::Pending);
            let waiting = outbox.count(&filter.clone().replayed_to(args.consumer.as_str()))?;
            let past = outbox.count(&filter.past().status(OutboxStatus::Processed))?;
            let count = past.saturating_sub(waiting);
            counted.set(count);
            Ok(count)
        },
        decide: &|outbox| {
            let bar = context::bar("made due", Some(counted.get()));
            outbox.replay_with_progress(&filter, &args.consumer, |events| bar.at(events as u64))
        },
    };
    decide::about_many(&args.file, &args.sure, &many, context)
}

fn cancel(args: &Args, context: &Context) -> Result<(), Failure> {
    let filter = args.which.filter();
    let waiting = || args.which.filter().status(OutboxStatus::Pending).replayed_to(args.consumer.as_str());
    let many = Many {
        what: "event",
        says: ["is not replayed to it any more", "are not replayed to it any more"],
        to: None,
        count: &|outbox| outbox.count(&waiting()),
        decide: &|outbox| outbox.cancel_replay(&filter, &args.consumer),
    };
    decide::about_many(&args.file, &args.sure, &many, context)
}
