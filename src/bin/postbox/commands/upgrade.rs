//! A file of an older release brought up to date.

use std::path::PathBuf;

use postbox::{Error, Postbox};
use serde_json::json;

use crate::context::Context;
use crate::failure::Failure;
use crate::show;

/// Bring a file of an older release up to date
///
/// The application does so by itself when it opens the file. For copies, and for looking at them. An older release of the
/// application cannot open the file afterwards.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox upgrade copy-from-the-customer.db

With --json, one object:
  file      the path as given
  from, to  versions of postbox's schema; the same where there was nothing to do")]
pub(crate) struct Args {
    /// The database
    file: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let file = &args.file;
    let from = match Postbox::open_read_only(file) {
        Ok(_) => postbox::SCHEMA_VERSION,
        Err(Error::SchemaTooOld { found, .. }) => {
            Postbox::open(file).and_then(Postbox::close).map_err(Failure::of(file))?;
            found
        }
        Err(error) => return Err(Failure::of(file)(error)),
    };
    let to = postbox::SCHEMA_VERSION;
    context.show(
        || json!({ "file": file.to_string_lossy(), "from": from, "to": to }),
        || {
            let file = show::path(file);
            if from == to {
                format!("{file} is up to date: schema version {to}\n")
            } else {
                format!("{file} has schema version {to} now, after {from}\n")
            }
        },
    )
}
