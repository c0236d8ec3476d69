//! The end of a pause.

use std::path::PathBuf;

use serde_json::json;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show;

use super::pause::{Target, kind_and_name, stranger};

/// End the pause of a consumer, or of the events of a name
///
/// What waited for it is due, also where the application runs. No error where there was no pause; a warning where
/// the file has never heard of the name.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox resume app.db consumer mail
  postbox resume app.db event invoice.created

With --json, one object:
  kind, name  as given
  resumed     false: it was not paused")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    #[command(flatten)]
    target: Target,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let target = args.target.get();
    let postbox = context::write(&args.file)?;
    let resumed = postbox.resume(&target).map_err(Failure::of(&args.file))?;
    let warning = if resumed { None } else { stranger(&postbox, &target) };
    postbox.close().map_err(Failure::of(&args.file))?;
    if let Some(warning) = warning {
        show::tell(&warning);
    }
    context.show(
        || {
            let (kind, name) = kind_and_name(&target);
            json!({ "kind": kind, "name": name, "resumed": resumed })
        },
        || {
            let what = show::printable(&target.to_string());
            if resumed { format!("{what} goes on\n") } else { format!("{what} was not paused\n") }
        },
    )
}
