//! Rows that no box wrote so: each is set aside by itself, its bytes are kept, and what is around it is delivered.

mod support;

#[path = "poison/columns.rs"]
mod columns;
#[path = "poison/deferred.rs"]
mod deferred;
#[path = "poison/ended.rs"]
mod ended;
#[path = "poison/numbers.rs"]
mod numbers;
#[path = "poison/other_tables.rs"]
mod other_tables;
#[path = "poison/refused.rs"]
mod refused;
#[path = "poison/sizes.rs"]
mod sizes;
#[path = "poison/status.rs"]
mod status;

use postbox::{EventId, OutboxStatus, Settings, Subscription};
use rusqlite::params;

use crate::support::{
    Calls, LIMIT, TestBox, effects, event, file_box_with, make_effects, noting, sql, wait_until, writing,
};

/// Who delivers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum By {
    Drain,
    Worker,
}

pub(crate) const BOTH: [By; 2] = [By::Drain, By::Worker];

/// A box with a consumer of each kind for everything, and five events; the one in the middle is to be poisoned.
pub(crate) struct Victim {
    pub(crate) test: TestBox,
    pub(crate) ids: Vec<EventId>,
    calls: Calls,
}

/// A worker looks for what no claim finds at each poll.
pub(crate) fn polling_often() -> Settings {
    Settings { polling_interval_ms: 100, idle_polling_interval_ms: 100, ..Settings::default() }
}

/// What must outlive whatever becomes of the row.
#[derive(Debug, PartialEq, Eq)]
struct Bytes {
    payload: Option<String>,
    metadata: Option<String>,
}

impl Victim {
    pub(crate) fn new(test: TestBox) -> Self {
        let calls = Calls::default();
        make_effects(&test.bus);
        test.bus.subscribe(Subscription::new("*", "plain", noting(&calls, "ran"))).unwrap();
        test.bus.subscribe(Subscription::transactional("*", "tx", writing("ran"))).unwrap();
        let ids = test.bus.publish_all((0..5).map(|n| event("a").payload(n.into()))).unwrap();
        Victim { test, ids, calls }
    }

    /// In a file, where another program may write what it likes.
    pub(crate) fn in_file() -> Self {
        Victim::new(file_box_with(|builder| builder.settings(polling_often())))
    }

    pub(crate) fn id(&self) -> EventId {
        self.ids[2]
    }

    /// What another program does to the row: assignments of an UPDATE, the CHECKs off where there is a file.
    #[track_caller]
    pub(crate) fn poison(&self, set: &str) {
        let update = format!("UPDATE outbox_event SET {set} WHERE seq = 3");
        let changed = if self.test.kind == "file" {
            let conn = self.test.app_connection();
            conn.pragma_update(None, "ignore_check_constraints", true).unwrap();
            conn.execute(&update, []).unwrap_or_else(|error| panic!("{set}: {error}"))
        } else {
            sql(&self.test.bus, |tx| tx.execute(&update, []))
        };
        assert_eq!(changed, 1, "{set}");
    }

    /// Delivers whatever is due, and says of the poisoned row: its status, and its error.
    #[track_caller]
    pub(crate) fn deliver(&self, by: By) -> (String, String) {
        let bus = &self.test.bus;
        match by {
            By::Drain => assert_eq!(bus.drain().unwrap(), 4, "{}", self.test.kind),
            By::Worker => {
                let worker = bus.start().unwrap();
                wait_until(LIMIT, || {
                    let stats = bus.stats().unwrap();
                    (stats.processed, stats.dead_letter + stats.failed) == (4, 1)
                });
                assert!(worker.shutdown(LIMIT).unwrap().clean);
            }
        }
        sql(bus, |tx| {
            tx.query_row(
                "SELECT status, coalesce(last_error, '') FROM outbox_event WHERE seq = 3",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
        })
    }

    /// The poisoned row is a dead letter whose error says `what`, its bytes are as they were, and the others are through.
    #[track_caller]
    pub(crate) fn assert_set_aside(&self, by: By, what: &str) {
        let (kind, bus) = (self.test.kind, &self.test.bus);
        let before = self.bytes();
        let (status, error) = self.deliver(by);
        assert_eq!(status, "dead_letter", "{kind}, {by:?}: {error}");
        assert!(error.contains(what), "{kind}, {by:?}: {error}");
        assert_eq!(self.bytes(), before, "{kind}, {by:?}");
        self.assert_others_are_through(by);
        assert_eq!(bus.outbox().count_by_status(OutboxStatus::DeadLetter).unwrap(), 1);
        let rows_of_it = "SELECT count(*) FROM inbox_event WHERE event = 3 AND status = 'processed'";
        assert_eq!(
            sql(bus, |tx| tx.query_row(rows_of_it, [], |row| row.get::<_, i64>(0))),
            0,
            "{kind}, {by:?}"
        );
    }

    #[track_caller]
    pub(crate) fn assert_others_are_through(&self, by: By) {
        let (kind, bus) = (self.test.kind, &self.test.bus);
        assert_eq!(self.calls.all(), ["ran"; 4], "{kind}, {by:?}");
        assert_eq!(effects(bus), ["ran"; 4], "{kind}, {by:?}");
        for id in [0, 1, 3, 4].map(|neighbour| self.ids[neighbour]) {
            let row = bus.outbox().get(id).unwrap().unwrap();
            assert_eq!((row.status, row.attempt_count), (OutboxStatus::Processed, 1), "{kind}, {by:?}");
        }
        let integrity: String = sql(bus, |tx| tx.query_row("PRAGMA quick_check", [], |row| row.get(0)));
        // Only what another program wrote past the CHECKs may be complained of.
        assert!(integrity == "ok" || integrity.starts_with("CHECK constraint failed"), "{integrity}");
    }

    fn bytes(&self) -> Bytes {
        let column = |column: &str| {
            let query = format!("SELECT hex(CAST({column} AS BLOB)) FROM outbox_event WHERE seq = ?1");
            sql(&self.test.bus, |tx| tx.query_row(&query, params![3], |row| row.get(0)))
        };
        Bytes { payload: column("payload"), metadata: column("metadata") }
    }
}
