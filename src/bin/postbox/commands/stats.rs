//! The box in numbers, what went wrong last, and what is to be done.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use postbox::{Backlog, Stats};
use serde_json::{Value, json};

use super::pause;
use crate::advice::{self, Step};
use crate::context::{self, Context};
use crate::failure::Failure;
use crate::show;

/// Count the events of each status, and say what waits, what is paused, what failed last, and what to do
///
/// Takes some milliseconds, and with a million pending events some tenths of a second. What the running application counts in its memory (retries, lost leases,
/// its worker's health) is in its own statistics, not in the file.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox stats app.db
  watch postbox stats app.db
  postbox stats app.db --json | jq .dead_letter
  postbox stats app.db --json | jq -r '.next[].command'

With --json, one object:
  pending, processing, processed, failed, dead_letter, total   numbers of events
  due, later, paused, behind, limited, newer, held
                            of those that are pending: due for a worker; delayed, or tried again later; waiting for the
                            end of a pause; for an earlier event of their entity; for room with a consumer that has limits;
                            for a release that knows their payload's version; for somebody who subscribes
  due_for_ms                since the first of those that are due was, or null
  oldest_pending_age_ms     since the oldest pending event was published, or null
  file_bytes, wal_bytes     of the file, and of its -wal (0 where there is none)
  pauses                    what is paused, as of `pauses`
  last_failure              the attempt that failed last: {at, event_id, event_name, consumer_name, kind, error}, or null
  next                      what waits for a person: {what, command}")]
pub(crate) struct Args {
    /// The application's database, or a copy of it
    file: PathBuf,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::read(&args.file)?;
    let look = || -> postbox::Result<_> {
        let outbox = postbox.outbox();
        Ok((postbox.stats()?, outbox.backlog()?, postbox.pauses()?, outbox.recent_failures(1)?))
    };
    let (stats, backlog, pauses, failures) = look().map_err(Failure::of(&args.file))?;
    drop(postbox);
    let next = advice::steps(&args.file, &stats, &backlog, &pauses);
    context.show(
        || {
            let steps = next.iter().map(|step| json!({ "what": step.what, "command": step.command }));
            let mut object = numbers(&stats, &backlog);
            object["pauses"] = pauses.iter().map(pause::object).collect();
            object["last_failure"] = failures.first().map(advice::failure_json).into();
            object["next"] = steps.collect();
            object
        },
        || {
            let mut shown = table(&stats, &backlog);
            if let Some(failure) = failures.first() {
                let command = advice::look_at(&args.file, failure);
                list(&mut shown, "last failure", &[Step { what: advice::failure(failure), command }]);
            }
            list(&mut shown, "next", &next);
            shown
        },
    )
}

fn numbers(stats: &Stats, backlog: &Backlog) -> Value {
    json!({
        "pending": stats.pending,
        "processing": stats.processing,
        "processed": stats.processed,
        "failed": stats.failed,
        "dead_letter": stats.dead_letter,
        "total": stats.total,
        "due": backlog.due,
        "later": backlog.later,
        "paused": backlog.paused,
        "behind": backlog.behind,
        "limited": backlog.limited,
        "newer": backlog.newer,
        "held": backlog.held,
        "due_for_ms": backlog.due_for_ms,
        "oldest_pending_age_ms": stats.oldest_pending_age_ms,
        "file_bytes": stats.file_bytes,
        "wal_bytes": stats.wal_bytes,
    })
}

fn table(stats: &Stats, backlog: &Backlog) -> String {
    let oldest = stats.oldest_pending_age_ms.map(Duration::from_millis);
    let bytes = |bytes: Option<u64>| show::or_dash(bytes.map(|bytes| bytes.to_string()));
    let mut rows = vec![("pending", stats.pending.to_string())];
    // What they wait for, where there is something to tell.
    for (name, count) in [
        ("  due", backlog.due),
        ("  later", backlog.later),
        ("  paused", backlog.paused),
        ("  behind", backlog.behind),
        ("  limited", backlog.limited),
        ("  newer", backlog.newer),
        ("  held", backlog.held),
    ] {
        if count > 0 {
            rows.push((name, count.to_string()));
        }
    }
    rows.extend([
        ("processing", stats.processing.to_string()),
        ("processed", stats.processed.to_string()),
        ("failed", stats.failed.to_string()),
        ("dead letters", stats.dead_letter.to_string()),
        ("total", stats.total.to_string()),
        ("oldest pending", oldest.map_or("-".to_owned(), show::duration)),
        ("file bytes", bytes(stats.file_bytes)),
        ("-wal bytes", bytes(stats.wal_bytes)),
    ]);
    show::pairs(rows)
}

/// Below each other, each with its command; nothing where there are none.
fn list(shown: &mut String, heading: &str, steps: &[Step]) {
    let mut heading = Some(heading);
    for Step { what, command } in steps {
        if let Some(heading) = heading.take() {
            let _ = writeln!(shown, "\n{heading}:");
        }
        let _ = writeln!(shown, "  {}\n    {}", show::printable(what), show::printable(command));
    }
}
