//! Space for the file system.

use std::path::PathBuf;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show;

/// Give the space of what was deleted back to the file system
///
/// SQLite writes the whole file anew (VACUUM), the application's own tables included. Writers wait meanwhile, or give up with
/// Busy; it needs up to twice the file's size on the disk for a moment. It begins once nobody reads an older state of the file, and
/// gives up with Busy when that takes too long. Refused where it could renumber rows of a table of the
/// application's that has no INTEGER PRIMARY KEY.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox compact app.db
  postbox prune app.db --yes && postbox compact app.db

With --json, one object:
  bytes_before, bytes_after  of the file
  is_complete                false: somebody reads it still, and it becomes smaller after that")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::write(&args.file)?;
    let progress = context::progress(format!("writing {} anew", show::path(&args.file)));
    let done = postbox.compact().map_err(Failure::of(&args.file))?;
    drop(progress);
    postbox.close().map_err(Failure::of(&args.file))?;
    context.show(
        || show::json_of(&done),
        || {
            let file = show::path(&args.file);
            let (after, before) = (done.bytes_after, done.bytes_before);
            if done.is_complete {
                format!("{file} has {after} bytes now, after {before}\n")
            } else {
                format!(
                    "{file} has {after} bytes still, after {before}: it is written anew, and becomes smaller once whoever \
                     reads it now has ended\n"
                )
            }
        },
    )
}
