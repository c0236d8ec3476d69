//! Failed attempts: how long each waits, how many there are, and how they end.

use std::time::Duration;

use postbox::{
    Backoff, Context, Event, HandlerError, InboxStatus, OutboxStatus, Settings, Subscription, Tx,
};

use crate::support::{
    Calls, MICROSECOND, SECOND, TestBox, boxes, boxes_with, event, inbox_rows, outbox_row, refused_field, status,
};

fn failing(calls: &Calls, name: &str) -> impl Fn(&Event, &Context<'_>) -> Result<(), HandlerError> + use<> {
    let (calls, name) = (calls.clone(), name.to_owned());
    move |event: &Event, _: &Context<'_>| {
        calls.add(format!("{name} {}", event.attempt()));
        Err(HandlerError::retry(format!("{name} failed")))
    }
}

/// Publishes one event, and asserts that its attempts come after exactly these delays and that it ends after them.
fn assert_delays(test: &TestBox, delays: &[Duration]) {
    let TestBox { kind, bus, clock, .. } = test;
    let id = bus.publish(event("a")).unwrap();
    for (failures, delay) in (1_u32..).zip(delays) {
        assert_eq!(bus.drain().unwrap(), 0);
        let row = outbox_row(bus, id);
        assert_eq!((row.status, row.attempt_count), (OutboxStatus::Pending, failures), "{kind}");
        assert_eq!(row.available_at, row.updated_at + *delay, "{kind}: after {failures} failures");
        clock.advance(*delay - MICROSECOND);
        bus.drain().unwrap();
        assert_eq!(outbox_row(bus, id), row_as(&row, bus, id), "{kind}: a microsecond early");
        clock.advance(MICROSECOND);
    }
    assert_eq!(bus.drain().unwrap(), 0);
    let row = outbox_row(bus, id);
    assert_eq!(row.status, OutboxStatus::DeadLetter, "{kind}");
    assert_eq!(usize::try_from(row.attempt_count).unwrap(), delays.len() + 1);
    assert_eq!(inbox_rows(bus, id)[0].2, row.attempt_count, "{kind}");
}
