//! The end of a conversation: its timeouts are cancelled, and what it has done is undone, or not.

use rusqlite::Connection;

use super::timeouts::{self, Timeouts};
use super::undo::Undo;
use super::{SagaStatus, table};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::event::Event;

/// Publishes what undoes what was done, the last first, and cancels the timeouts. How many were published.
pub(crate) fn compensate(
    core: &Core,
    conn: &Connection,
    correlation_id: &str,
    cause: Option<&Event>,
    (timeouts, undo): (&mut Timeouts, &mut Undo),
) -> Result<usize> {
    let events = undo.all()?;
    let count = events.len();
    for event in events.into_iter().rev() {
        // A schema of a later release must not keep what was done from being undone. What it says quotes the payload.
        let is_unfit = matches!(core.check_schema(&event), Err(Error::SchemaViolation { .. }));
        let unfit = is_unfit.then(|| (event.name().to_owned(), event.version()));
        let event = event.prepare(correlation_id, cause, || core.new_id())?;
        let id = core.publish_within(conn, &event)?.id;
        if let Some((name, version)) = unfit {
            log::warn!(
                target: "postbox::delivery",
                "event {id}, which undoes what a saga has done, does not fit today's schema of version {version} of `{name}`: it is published all the same"
            );
        }
    }
    complete(core, conn, (timeouts, undo), "the saga was compensated")?;
    Ok(count)
}

/// Cancels the timeouts, and forgets what would undo what was done.
pub(crate) fn complete(
    core: &Core,
    conn: &Connection,
    (timeouts, undo): (&mut Timeouts, &mut Undo),
    why: &str,
) -> Result<()> {
    timeouts::cancel(core, conn, &timeouts.take_all(), why)?;
    undo.clear();
    Ok(())
}

/// A person ends a conversation. How many events were published to undo what it had done.
pub(crate) fn by_hand(
    core: &Core,
    conn: &Connection,
    (name, correlation_id): (&str, &str),
    cause: Option<&Event>,
    ends_as: SagaStatus,
    reason: &str,
) -> Result<usize> {
    let id = || format!("{name}/{correlation_id}");
    let row =
        table::load(conn, name, correlation_id)?.ok_or_else(|| Error::NotFound { what: "saga", id: id() })?;
    if row.status != SagaStatus::Running {
        let reason = format!("{} is {} already: only one that is running can be ended", id(), row.status);
        return Err(Error::invalid("saga", reason));
    }
    let mut timeouts = Timeouts::parse(row.timeouts.as_deref())?;
    let mut undo = Undo::stored(row.undo);
    let parts = (&mut timeouts, &mut undo);
    let undone = if ends_as == SagaStatus::Compensated {
        compensate(core, conn, correlation_id, cause, parts)?
    } else {
        complete(core, conn, parts, "the saga was ended by hand")?;
        0
    };
    table::end(conn, row.seq, ends_as, reason, core.clock.now())?;
    Ok(undone)
}
