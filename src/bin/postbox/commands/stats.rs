//! How many events there are of each kind.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use serde_json::json;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show;

/// Count the events of each status, and the file's bytes
///
/// Takes a fraction of a millisecond, however many events there are.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox stats app.db
  watch postbox stats app.db
  postbox stats app.db --json | jq .dead_letter

With --json, one object:
  pending, processing, processed, failed, dead_letter, total   numbers of events
  oldest_pending_age_ms   since the oldest pending event was published, or null
  file_bytes, wal_bytes   of the file, and of its -wal (0 where there is none)")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let stats = context::read(&args.file)?.stats().map_err(Failure::of(&args.file))?;
    let file_bytes = bytes_of(&args.file)?;
    let mut wal = args.file.canonicalize()?.into_os_string();
    wal.push("-wal");
    let wal_bytes = bytes_of(Path::new(&wal))?;
    context.show(
        || {
            json!({
                "pending": stats.pending,
                "processing": stats.processing,
                "processed": stats.processed,
                "failed": stats.failed,
                "dead_letter": stats.dead_letter,
                "total": stats.total,
                "oldest_pending_age_ms": stats.oldest_pending_age_ms,
                "file_bytes": file_bytes,
                "wal_bytes": wal_bytes,
            })
        },
        || {
            let oldest = stats.oldest_pending_age_ms.map(Duration::from_millis);
            show::pairs([
                ("pending", stats.pending.to_string()),
                ("processing", stats.processing.to_string()),
                ("processed", stats.processed.to_string()),
                ("failed", stats.failed.to_string()),
                ("dead letters", stats.dead_letter.to_string()),
                ("total", stats.total.to_string()),
                ("oldest pending", oldest.map_or("-".to_owned(), show::duration)),
                ("file bytes", file_bytes.to_string()),
                ("-wal bytes", wal_bytes.to_string()),
            ])
        },
    )
}

/// 0 where there is no such file.
fn bytes_of(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        metadata => Ok(metadata?.len()),
    }
}
