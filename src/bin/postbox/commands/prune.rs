//! Processed events past their retention.

use std::path::PathBuf;

use postbox::Settings;
use serde_json::json;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show;

/// Delete the processed events that are past their retention
///
/// With their inbox rows and their history. The settings `retention_ms` and `retention_by_event` say how long they are kept;
/// a running application deletes them by itself. The file keeps its size: see `compact`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox settings set app.db retention_ms 2592000000     (30 days)
  postbox settings set app.db retention_by_event '{\"stock.counted\": 86400000}'
  postbox prune app.db --dry-run
  postbox prune app.db --yes

With --json, one object:
  events                            how many
  dry_run                           true: how many it would be
  retention_ms, retention_by_event  the settings in force: milliseconds, and 0 for ever")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    /// Only say how many it would be
    #[arg(long)]
    dry_run: bool,
    /// Delete them without a question
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let Args { file, dry_run, yes } = args;
    let postbox = if *dry_run { context::read(file)? } else { context::write(file)? };
    let settings = postbox.settings();
    let progress = context::progress("counting".to_owned());
    let mut events = postbox.prunable().map_err(Failure::of(file))?;
    drop(progress);
    if !dry_run {
        if events > 0 {
            let many = show::count_of(events, "processed event");
            context::confirm(*yes, &format!("{many} will be deleted."))?;
            let progress = context::progress(format!("deleting {many}"));
            events = postbox.prune().map_err(Failure::of(file))? as u64;
            drop(progress);
        }
        postbox.close().map_err(Failure::of(file))?;
    }
    context.show(
        || {
            json!({
                "events": events,
                "dry_run": dry_run,
                "retention_ms": settings.retention_ms,
                "retention_by_event": settings.retention_by_event,
            })
        },
        || {
            let many = show::count_of(events, "event");
            match (is_on(&settings), dry_run) {
                (false, _) => format!(
                    "The file sets no retention: nothing is deleted. To keep processed events for 30 days:\n  \
                     postbox settings set {} retention_ms 2592000000\n",
                    show::path(file)
                ),
                (true, true) => format!("dry run: {many} past the retention\n"),
                (true, false) => format!("{many} deleted\n"),
            }
        },
    )
}

fn is_on(settings: &Settings) -> bool {
    settings.retention_ms > 0 || settings.retention_by_event.values().any(|retention_ms| *retention_ms > 0)
}
