//! An event that is moved before it starts.

use std::path::PathBuf;

use postbox::EventId;
use postbox::time::OffsetDateTime;
use serde_json::json;

use crate::context::{self, Context};
use crate::failure::Failure;
use crate::{show, when};

/// Move an event that has not started to another time
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  postbox reschedule app.db 0198c0de-0000-7000-8000-000000000000 --at 2026-12-24T08:00:00+01:00
  postbox reschedule app.db 0198c0de-0000-7000-8000-000000000000 --at 3d
  postbox reschedule app.db 0198c0de-0000-7000-8000-000000000000 --at now

With --json, one object:
  id            the event's
  available_at  when it is due now")]
pub(crate) struct Args {
    /// The application's database
    file: PathBuf,
    /// The event
    id: EventId,
    /// When it is to be due: 2026-03-01T08:00:00Z, 2026-03-01 (in UTC), in how long: 90s, 10m, 2h, 3d, or now
    #[arg(long, value_name = "TIME", value_parser = when::moment_to_come)]
    at: OffsetDateTime,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let postbox = context::write(&args.file)?;
    let moved = postbox.transaction(|tx| -> postbox::Result<OffsetDateTime> {
        tx.outbox().reschedule(args.id, args.at)?;
        Ok(tx.outbox().get(args.id)?.map_or(args.at, |event| event.available_at))
    });
    let due = moved.and_then(|due| postbox.close().map(|()| due)).map_err(Failure::of(&args.file))?;
    context.show(
        || json!({ "id": args.id, "available_at": show::time_json(due) }),
        || format!("{} is due at {}\n", args.id, show::time(due)),
    )
}
