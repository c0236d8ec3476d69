//! A complete copy.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show;

/// Write a complete, checked copy of the file, while the application goes on
///
/// It is the whole file, the application's own tables included. A plain copy of a file that is in use is not: its newest
/// commits are in the -wal.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox backup app.db app-backup.db
  postbox backup app.db /mnt/backups/app.db --yes

With --json, one object:
  file, backup  the paths as given
  bytes         of the backup")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    /// Where the copy goes
    dest: PathBuf,
    /// Replace DEST where there is such a file already
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let Args { file, dest, yes } = args;
    let postbox = context::read(file)?;
    if dest.exists() {
        context::confirm(*yes, &format!("{} will be replaced.", dest.display()))?;
    }
    let progress = context::progress(format!("copying {} and checking the copy", show::path(file)));
    postbox.backup(dest).map_err(Failure::of(dest))?;
    drop(progress);
    let bytes = fs::metadata(dest)?.len();
    context.show(
        || json!({ "file": file.to_string_lossy(), "backup": dest.to_string_lossy(), "bytes": bytes }),
        || format!("{} is a complete copy of {}: {bytes} bytes\n", show::path(dest), show::path(file)),
    )
}
