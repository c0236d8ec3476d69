//! Whether all is well with a file.

use std::fmt::Write as _;
use std::path::PathBuf;

use postbox::{Severity, Verification};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show;

/// Look at all that is in the file, and say what to do about what is found
///
/// It reads every row, a second or so for each gigabyte, and changes nothing. SQLite's own integrity check, the schema, the
/// counters against the rows, rows that would never be delivered, claims of processes that died, inbox rows, settings, times
/// and sizes. Exit code 3 when anything is worse than a note.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox verify app.db
  postbox verify app.db --json | jq '.findings[] | select(.severity == \"error\")'

With --json, one object:
  sound                         false when a finding is a warning or an error
  schema_version                postbox's own
  file_bytes, wal_bytes         of the file, and of its -wal (0 where there is none)
  page_bytes, pages, free_pages SQLite's
  findings                      an array, the worst first: {severity (error, warning, note), check, what, advice}")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = match context::read(&args.file) {
        // Too far to be looked at: what is to be done is on stderr.
        Err(failure) if failure.is_damage() => {
            failure.report();
            return Err(Failure::Problems);
        }
        opened => opened?,
    };
    let progress = context::progress(format!("looking at {}", show::path(&args.file)));
    let seen = postbox.verify().map_err(Failure::of(&args.file))?;
    drop(progress);
    match context.show(|| object(&seen), || text(&seen)) {
        // The exit code is the answer also for whoever reads no more than the first line.
        Ok(()) | Err(Failure::ClosedPipe) if !seen.is_sound() => Err(Failure::Problems),
        shown => shown,
    }
}

fn object(seen: &Verification) -> Value {
    json!({
        "sound": seen.is_sound(),
        "schema_version": seen.schema_version,
        "file_bytes": seen.file_bytes,
        "wal_bytes": seen.wal_bytes,
        "page_bytes": seen.page_bytes,
        "pages": seen.pages,
        "free_pages": seen.free_pages,
        "findings": seen.findings,
    })
}

fn text(seen: &Verification) -> String {
    let mut text = String::new();
    for finding in &seen.findings {
        let (what, advice) = (show::printable(&finding.what), show::printable(&finding.advice));
        let _ = writeln!(text, "{} ({}): {what}\n  {advice}", finding.severity, finding.check);
    }
    let count = |severity| seen.findings.iter().filter(|finding| finding.severity == severity).count() as u64;
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if seen.is_sound() {
        text.push_str("sound");
    } else {
        let _ = write!(
            text,
            "not sound: {}, {}",
            show::count_of(errors, "error"),
            show::count_of(warnings, "warning")
        );
    }
    let bytes = |bytes: Option<u64>| bytes.unwrap_or(0);
    let _ = writeln!(
        text,
        "; schema version {}, {} bytes, {} more in the -wal, {} of {} pages free",
        seen.schema_version,
        bytes(seen.file_bytes),
        bytes(seen.wal_bytes),
        seen.free_pages,
        seen.pages
    );
    text
}
