//! Rows that another program has spoilt.

use std::time::Duration;

use postbox::{HandlerError, InboxStatus, OutboxStatus, Page, Saga, SagaFilter};

use crate::support::{boxes, sql, status};
use crate::{Trail, endings::undoing, noting, of_order, order, outcome};

#[test]
fn a_spoilt_row_makes_a_dead_letter_that_says_what_is_wrong() {
    for (column, value, event, says) in [
        (
            "state",
            "{",
            "step.x",
            "saga `order` of `o-1`: its state does not fit the type it is read into: EOF while",
        ),
        (
            "timeouts",
            "[]",
            "step.x",
            "saga `order` of `o-1`: its timeouts cannot be read: invalid type: sequence",
        ),
        (
            "undo",
            "7",
            "refused",
            "invalid undo: what another program left in the saga's row is no list of events",
        ),
        (
            "undo",
            "7",
            "step.x",
            "invalid undo: what another program left in the saga's row is no list of events",
        ),
    ] {
        for test in boxes() {
            let bus = &test.bus;
            bus.subscribe_saga(undoing().max_attempts(1)).unwrap();
            bus.publish(of_order("start")).unwrap();
            bus.drain().unwrap();
            sql(bus, |tx| tx.execute(&format!("UPDATE postbox_saga SET {column} = ?1"), [value]));
            let step = bus.publish(of_order(event)).unwrap();
            bus.drain().unwrap();
            assert_eq!(status(bus, step), OutboxStatus::DeadLetter, "{} {column}", test.kind);
            let (inbox, why) = outcome(bus, step);
            assert_eq!(inbox, InboxStatus::Failed);
            assert!(why.starts_with(says), "{column}: {why}");
            assert!(bus.sagas().get("order", "o-1").is_err());
            if column != "state" {
                assert!(bus.sagas().compensate("order", "o-1", "no").is_err(), "{column}");
            }
            let is: String = sql(bus, |tx| {
                tx.query_row(&format!("SELECT {column} FROM postbox_saga"), [], |row| row.get(0))
            });
            assert_eq!(is, value, "it is as it was");
        }
    }
}

/// What cannot be read keeps nobody from undoing what was done: only the application knows its state.
#[test]
fn a_saga_whose_state_is_spoilt_is_compensated_by_hand() {
    for test in boxes() {
        let bus = &test.bus;
        bus.subscribe_saga(undoing()).unwrap();
        bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        sql(bus, |tx| tx.execute("UPDATE postbox_saga SET state = '{'", []));
        assert_eq!(bus.sagas().compensate("order", "o-1", "spoilt").unwrap(), 1, "{}", test.kind);
    }
}

#[test]
fn a_handler_that_fails_says_so_in_its_own_words() {
    for test in boxes() {
        let bus = &test.bus;
        let saga = Saga::<Trail>::new("order")
            .starts_on("start", |_, _, _| Err(HandlerError::dead_letter("no such customer")));
        bus.subscribe_saga(saga).unwrap();
        let start = bus.publish(of_order("start")).unwrap();
        bus.drain().unwrap();
        assert_eq!(
            outcome(bus, start),
            (InboxStatus::Failed, "no such customer".to_owned()),
            "{}",
            test.kind
        );
    }
}

/// One row with bytes that are no text hid all others from whoever looked for the one that is stuck, and `verify` saw nothing wrong.
#[test]
fn a_row_whose_texts_are_spoilt_hides_no_other() {
    for column in ["name", "correlation_id", "last_event", "reason"] {
        for test in boxes() {
            let bus = &test.bus;
            bus.subscribe_saga(noting()).unwrap();
            for id in ["o-1", "o-2"] {
                bus.publish(order("start", id)).unwrap();
            }
            bus.drain().unwrap();
            let spoil = format!(
                "UPDATE postbox_saga SET {column} = CAST(x'ff' AS TEXT) WHERE correlation_id = 'o-2'"
            );
            sql(bus, |tx| tx.execute(&spoil, []));
            let page = bus.sagas().list(&SagaFilter::new(), &Page::oldest(10)).unwrap();
            assert_eq!(page.sagas.len(), 2, "{} {column}", test.kind);
            assert_eq!(page.sagas[0].correlation_id, "o-1");
            assert_eq!(bus.sagas().stuck(None, Duration::ZERO, 10).unwrap().len(), 2);
            assert_eq!(bus.sagas().totals().unwrap().iter().map(|of| of.running).sum::<u64>(), 2);
            let findings = bus.verify().unwrap().findings;
            assert_eq!(findings.iter().filter(|finding| finding.check == "sagas").count(), 1, "{findings:?}");
        }
    }
}
