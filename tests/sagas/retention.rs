//! How long sagas are kept: those that run for ever, those that have ended as long as events.

use std::time::Duration;

use postbox::{InboxStatus, OutboxStatus, SagaStatus};

use crate::support::{SECOND, TestBox, boxes, file_box, just_before, sql, status};
use crate::{endings::undoing, of_order, order, outcome};

const DAY: Duration = Duration::from_hours(24);

/// One runs, one has completed, one was compensated.
fn three(test: &TestBox) {
    let bus = &test.bus;
    bus.subscribe_saga(undoing()).unwrap();
    for id in ["runs", "completed", "compensated"] {
        bus.publish(order("start", id)).unwrap();
    }
    bus.drain().unwrap();
    bus.sagas().complete("order", "completed", "by hand").unwrap();
    bus.sagas().compensate("order", "compensated", "by hand").unwrap();
}

fn left(test: &TestBox) -> Vec<String> {
    sql(&test.bus, |tx| {
        tx.prepare("SELECT correlation_id FROM postbox_saga ORDER BY seq")?
            .query_map([], |row| row.get(0))?
            .collect()
    })
}

#[test]
fn ended_sagas_go_with_the_retention_of_events_and_running_ones_stay() {
    for test in boxes() {
        three(&test);
        test.bus.update_settings(|settings| settings.retention_ms = 86_400_000).unwrap();
        test.clock.advance(just_before(DAY));
        test.bus.prune().unwrap();
        assert_eq!(left(&test).len(), 3, "{}", test.kind);
        test.clock.advance(SECOND);
        test.bus.prune().unwrap();
        assert_eq!(left(&test), ["runs"], "{}", test.kind);
        test.clock.advance(365 * DAY);
        test.bus.prune().unwrap();
        assert_eq!(left(&test), ["runs"], "{}", test.kind);
    }
}

#[test]
fn without_a_retention_of_all_events_sagas_are_kept() {
    for test in boxes() {
        three(&test);
        test.bus
            .update_settings(|settings| settings.retention_by_event = [("start".to_owned(), 1_000)].into())
            .unwrap();
        test.clock.advance(365 * DAY);
        assert_eq!(test.bus.prune().unwrap(), 3, "the events");
        assert_eq!(left(&test).len(), 3, "{}", test.kind);
    }
}

#[test]
fn more_than_one_step_deletes_are_deleted() {
    let test = file_box();
    sql(&test.bus, |tx| {
        tx.execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO postbox_saga (name, correlation_id, status, created_at, updated_at, last_event, state)
             SELECT 's', i, iif(i % 100, 'completed', 'running'), i, i, 'e', 'null' FROM n",
        )
    });
    test.bus.update_settings(|settings| settings.retention_ms = 1_000).unwrap();
    test.bus.prune().unwrap();
    assert_eq!(left(&test).len(), 50);
}

/// A trigger of the application's keeps some: the others go, and pruning ends.
#[test]
fn sagas_that_may_not_be_deleted_keep_nobody_from_going() {
    let test = file_box();
    three(&test);
    sql(&test.bus, |tx| {
        tx.execute_batch(
            "CREATE TRIGGER keep BEFORE DELETE ON postbox_saga WHEN OLD.correlation_id = 'completed'
             BEGIN SELECT RAISE(ABORT, 'kept'); END",
        )
    });
    test.bus.update_settings(|settings| settings.retention_ms = 1_000).unwrap();
    test.clock.advance(DAY);
    test.bus.prune().unwrap();
    assert_eq!(left(&test), ["runs", "completed"]);
}

#[test]
fn an_event_of_a_saga_that_is_gone_waits_for_a_start_and_a_start_begins_anew() {
    let test = file_box();
    three(&test);
    test.bus.update_settings(|settings| settings.retention_ms = 1_000).unwrap();
    test.clock.advance(DAY);
    test.bus.prune().unwrap();
    let late = test.bus.publish(order("step.a", "completed")).unwrap();
    test.bus.drain().unwrap();
    assert_eq!(status(&test.bus, late), OutboxStatus::Pending);
    test.bus.publish(order("start", "completed")).unwrap();
    test.bus.drain().unwrap();
    test.clock.advance(SECOND);
    test.bus.drain().unwrap();
    assert_eq!(outcome(&test.bus, late).0, InboxStatus::Processed);
    let saga = test.bus.sagas().get("order", "completed").unwrap().unwrap();
    assert_eq!(saga.summary.status, SagaStatus::Running);
    assert!(test.bus.publish(of_order("start")).is_ok());
}
