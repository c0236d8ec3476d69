//! A backup put in the place of a file.

use std::path::PathBuf;

use serde_json::json;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show;

/// Put a backup in the place of a file that nobody has open
///
/// The backup is checked first. The file is replaced whole or not at all; what was claimed when the backup was made is due at
/// once. Close the application before.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox restore app-backup.db app.db --dry-run
  postbox restore app-backup.db app.db --yes

With --json, one object:
  backup, file    the paths as given
  schema_version  of the backup; an older one is brought up to date in FILE
  restored        false for a dry run")]
pub(crate) struct Args {
    /// The backup; it stays as it is
    backup: PathBuf,
    /// What it replaces
    file: PathBuf,
    /// Only check the backup
    #[arg(long)]
    dry_run: bool,
    /// Replace FILE without a question
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let Args { backup, file, dry_run, yes } = args;
    let progress = context::progress(format!("checking {}", show::path(backup)));
    let version = postbox::check_backup(backup).map_err(Failure::of(backup))?;
    drop(progress);
    let replaces = file.exists();
    if !dry_run {
        if replaces {
            context::confirm(*yes, &format!("All that is in {} will be gone.", file.display()))?;
        }
        let progress = context::progress(format!("restoring {}", show::path(file)));
        postbox::restore(backup, file).map_err(Failure::of(file))?;
        drop(progress);
    }
    context.show(
        || {
            json!({
                "backup": backup.to_string_lossy(),
                "file": file.to_string_lossy(),
                "schema_version": version,
                "restored": !dry_run,
            })
        },
        || {
            let (backup, file) = (show::path(backup), show::path(file));
            match (dry_run, replaces) {
                (false, _) => format!("{file} is what {backup} was (schema version {version})\n"),
                (true, true) => {
                    format!("{backup} is sound (schema version {version}); {file} would be replaced\n")
                }
                (true, false) => {
                    format!("{backup} is sound (schema version {version}); {file} would be made\n")
                }
            }
        },
    )
}
