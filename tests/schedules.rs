//! Schedules: one event per tick, whoever ticks, dies, sleeps or has a wrong clock.

mod support;

#[path = "schedules/clock.rs"]
mod clock;
#[cfg(feature = "cron")]
#[path = "schedules/cron.rs"]
mod cron;
#[path = "schedules/failing.rs"]
mod failing;
#[path = "schedules/input.rs"]
mod input;
#[path = "schedules/misfires.rs"]
mod misfires;
#[path = "schedules/pausing.rs"]
mod pausing;
#[path = "schedules/putting.rs"]
mod putting;
#[path = "schedules/several_boxes.rs"]
mod several_boxes;
#[path = "schedules/workers.rs"]
mod workers;

use std::time::Duration;

use postbox::{Event, Postbox, Schedule, StoredSchedule, Subscription, Tx};
use time::OffsetDateTime;

use support::{Calls, event, start_time};

pub(crate) const MINUTE: Duration = Duration::from_mins(1);
pub(crate) const HOUR: Duration = Duration::from_hours(1);
pub(crate) const DAY: Duration = Duration::from_hours(24);

/// Longer than anything takes, on a machine with other work as well.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// Ticks every minute.
pub(crate) fn minutely() -> Schedule {
    Schedule::every(MINUTE, event("tick"))
}

/// Notes each tick, in seconds after the start of the test's clock.
pub(crate) fn note_ticks(bus: &Postbox) -> Calls {
    let calls = Calls::default();
    let noted = calls.clone();
    let note = move |event: &Event, _: &Tx<'_>| {
        let tick = event.scheduled_for().expect("a tick") - start_time();
        noted.add(format!("{}@{}", event.scheduled_by().expect("a schedule"), tick.whole_seconds()));
        Ok(())
    };
    bus.subscribe(Subscription::transactional("tick", "noting", note)).unwrap();
    calls
}

#[track_caller]
pub(crate) fn stored(bus: &Postbox, name: &str) -> StoredSchedule {
    bus.schedules().get(name).unwrap().expect("the schedule")
}

/// In seconds after the start of the test's clock.
pub(crate) fn seconds(at: Option<OffsetDateTime>) -> Option<i64> {
    at.map(|at| (at - start_time()).whole_seconds())
}
