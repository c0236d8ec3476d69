//! What is paused.

use std::path::PathBuf;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show::{self, Table};

use super::pause::{kind_and_name, object};

/// List what is paused: consumers, and event names
///
/// Also what handlers and circuit breakers have paused. A pause that has ended by itself is not listed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox pauses app.db
  postbox pauses app.db --json | jq -r '.[] | select(.kind == \"consumer\") | .name'

With --json, an array of objects, consumers first, by name:
  kind, name    what is paused: consumer or event, and its name
  reason        as it was given, or null
  since, until  times; until is null where only `resume` ends it")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let pauses = context::read(&args.file)?.pauses().map_err(Failure::of(&args.file))?;
    context.show(
        || pauses.iter().map(object).collect(),
        || {
            let mut table = Table::new(["kind", "name", "since", "until", "reason"]);
            for pause in &pauses {
                let (kind, name) = kind_and_name(&pause.target);
                table.row([
                    kind.to_owned(),
                    name.to_owned(),
                    show::time(pause.since),
                    pause.until.map_or_else(|| "it is resumed".to_owned(), show::time),
                    show::or_dash(pause.reason.clone()),
                ]);
            }
            table.render("Nothing is paused.")
        },
    )
}
