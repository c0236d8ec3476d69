//! Where nothing goes on for an ordered consumer, and why.

use std::path::PathBuf;

use postbox::{BlockedAggregate, Outbox};

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show::{self, Table};

/// List the entities whose events wait behind one that has failed, for a consumer that wants them in order
///
/// What waits goes on once that event is processed (`retry` gives a dead letter new attempts), or given up (`discard`).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox blocked app.db
  postbox blocked app.db --json | jq -r '.[].event.id'
  postbox blocked app.db --json | jq 'map(.waiting) | add'

With --json, an array of objects, by module, type and id:
  event      the event that has failed, as of `list`; its source_module, aggregate_type and aggregate_id are the entity's
  consumers  those that have failed for it and have not finished
  waiting    how many events wait behind it")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

/// So many are asked for at a time.
const PAGE: usize = 1_000;

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let blocked = up_to(&postbox.outbox(), args.limit).map_err(Failure::of(&args.file))?;
    drop(postbox);
    context.show(
        || show::json_of(&blocked),
        || {
            let mut table = Table::new([
                "module",
                "type",
                "entity id",
                "waiting",
                "behind",
                "event",
                "consumers",
                "error",
            ])
            .right(3);
            for of in &blocked {
                table.row([
                    of.event.source_module.clone(),
                    of.event.aggregate_type.clone(),
                    of.event.aggregate_id.clone(),
                    of.waiting.to_string(),
                    of.event.id.to_string(),
                    of.event.event_name.clone(),
                    of.consumers.join(", "),
                    show::or_dash(of.event.last_error.clone()),
                ]);
            }
            table.render("No events wait behind one that has failed.")
        },
    )
}

fn up_to(outbox: &Outbox<'_>, limit: usize) -> postbox::Result<Vec<BlockedAggregate>> {
    let mut blocked: Vec<BlockedAggregate> = Vec::new();
    while blocked.len() < limit {
        let page = (limit - blocked.len()).min(PAGE);
        let more = match blocked.last() {
            Some(last) => outbox.blocked_after(last, page)?,
            None => outbox.blocked(page)?,
        };
        let is_last = more.len() < page;
        blocked.extend(more);
        if is_last {
            break;
        }
    }
    Ok(blocked)
}
