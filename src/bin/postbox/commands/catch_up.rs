//! The past, for a consumer that is new.

use std::cell::Cell;
use std::path::PathBuf;

use postbox::OutboxStatus;

use crate::context::{self, Context};
use crate::decide::{self, Many, Sure};
use crate::failure::Failure;
use crate::filter::Which;

/// Deliver processed events to a consumer that has not heard of them
///
/// In order of publishing, to it alone: for a consumer that subscribes only now. A call that was cut off is made again, and
/// goes on with what is left. It is given events to which it subscribes, and no others: name them in the filter. `postbox
/// consumers` shows how many it has still to receive, and `postbox replay --cancel` takes it back.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox catch-up app.db --consumer search --name 'invoice.*' --dry-run
  postbox catch-up app.db --consumer search --name 'invoice.*' --yes

With --json, one object:
  events   how many
  dry_run  true: how many it would be")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    /// Who receives them
    #[arg(long, visible_alias = "to")]
    consumer: String,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    sure: Sure,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let filter = args.which.filter();
    let past = || args.which.filter().past().status(OutboxStatus::Processed).status(OutboxStatus::Pending);
    let waiting = || args.which.filter().replayed_to(args.consumer.as_str()).status(OutboxStatus::Pending);
    // Counted before it is decided.
    let counted = Cell::new(0);
    let many = Many {
        what: "processed event",
        says: ["is delivered to it", "are delivered to it"],
        to: Some(&args.consumer),
        count: &|outbox| {
            // Those that it knows or that wait for it, and, twice among them, those that it knows and that wait for it.
            let known = outbox.count(&past().consumer(&args.consumer))? + outbox.count(&waiting())?;
            let both = outbox.count(&waiting().consumer(&args.consumer))?;
            let count = (outbox.count(&past())? + both).saturating_sub(known);
            counted.set(count);
            Ok(count)
        },
        decide: &|outbox| {
            let bar = context::bar("made due", Some(counted.get()));
            outbox.catch_up_with_progress(&filter, &args.consumer, |events| bar.at(events as u64))
        },
    };
    decide::about_many(&args.file, &args.sure, &many, context)
}
