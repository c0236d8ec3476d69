//! Events that are still to come.

use std::path::PathBuf;

use postbox::{EventSummary, Postbox};

use crate::context::{self, Context};
use crate::events;
use crate::failure::Failure;
use crate::filter::Which;
use crate::show;

/// List events that were published for later and are not due yet, the first to be due before the others
///
/// Those that wait for another attempt have started, and are not among them. `reschedule` moves one, `cancel` cancels.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox future app.db
  postbox future app.db --name 'invoice.reminder' --limit 200
  postbox future app.db --json | jq -r '.[].id'

With --json, an array of objects as of `list`, in the order of their available_at: with as many as --limit, there may be more")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
    #[command(flatten)]
    which: Which,
    /// So many at the most, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let (events, is_all) = found(&postbox, args).map_err(Failure::of(&args.file))?;
    context.show(
        || show::json_of(&events),
        || {
            let mut text = events::table_of_future(&events);
            if !is_all {
                text.push_str("There are more, which are due later.\n");
            }
            text
        },
    )
}

/// Whether they are all that there are is asked for only where it can be otherwise.
fn found(postbox: &Postbox, args: &Args) -> postbox::Result<(Vec<EventSummary>, bool)> {
    let (filter, limit) = (args.which.filter(), args.limit.into());
    let events = postbox.outbox().future(&filter, limit)?;
    let is_all = match events.last() {
        Some(last) if events.len() == limit => postbox.outbox().future_after(last, &filter, 1)?.is_empty(),
        _ => true,
    };
    Ok((events, is_all))
}
