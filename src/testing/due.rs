//! When something is next due.

use crate::core::Core;
use crate::error::Result;
use crate::{limits, outbox};

/// When something is to be done next, by the box's clock: a time that has come means now. `None`: time alone brings nothing more.
///
/// What the box does at a time of its own belongs here, besides the events in the file.
pub(super) fn next_due(core: &Core) -> Result<Option<i64>> {
    let row =
        core.db.read("next due", |conn| outbox::next_due(conn, |seq| core.in_flight().contains_key(&seq)))?;
    let now = core.clock.now();
    let is_due = core.pauses.is_release_due(now) || limits::is_call_due(core, now);
    let times = [row, core.pauses.next_end(now), limits::next_room(core, now), is_due.then_some(now)];
    Ok(times.into_iter().flatten().min())
}
