//! What the integration tests share: boxes of both kinds on a clock that only tests move, and looks at their rows.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use postbox::testing::ManualClock;
use postbox::{
    Builder, Context, Event, EventId, Handler, InboxStatus, NewEvent, OutboxEvent, OutboxStatus, Postbox,
    TransactionalHandler, Tx,
};
use rusqlite::params;
use tempfile::TempDir;
use time::OffsetDateTime;

/// How long what should happen at once may take on the slowest of machines.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MICROSECOND: Duration = Duration::from_micros(1);

/// The lease of the default settings.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// As long but for a microsecond.
pub(crate) fn just_before(delay: Duration) -> Duration {
    delay.checked_sub(MICROSECOND).unwrap()
}

/// What every test's clock shows at first.
pub(crate) fn start_time() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

/// A box and the clock that it goes by.
pub(crate) struct TestBox {
    /// `file` or `memory`, for the messages of assertions.
    pub(crate) kind: &'static str,
    pub(crate) bus: Postbox,
    pub(crate) clock: ManualClock,
    // After the box: it is closed before its folder goes.
    dir: Option<TempDir>,
}

/// One box in a temporary file and one in memory: every suitable test runs on both.
pub(crate) fn boxes() -> [TestBox; 2] {
    boxes_with(|builder| builder)
}

/// The same with options of the test's own.
pub(crate) fn boxes_with(options: impl Fn(Builder) -> Builder) -> [TestBox; 2] {
    [file_box_with(&options), memory_box_with(options)]
}

pub(crate) fn file_box() -> TestBox {
    file_box_with(|builder| builder)
}

pub(crate) fn file_box_with(options: impl FnOnce(Builder) -> Builder) -> TestBox {
    let clock = ManualClock::new(start_time());
    let dir = tempfile::tempdir().unwrap();
    let builder = options(unhurried(&clock));
    let bus = builder.open(dir.path().join("app.db")).unwrap();
    TestBox { kind: "file", bus, clock, dir: Some(dir) }
}

pub(crate) fn memory_box_with(options: impl FnOnce(Builder) -> Builder) -> TestBox {
    let clock = ManualClock::new(start_time());
    let bus = options(unhurried(&clock)).open_in_memory().unwrap();
    TestBox { kind: "memory", bus, clock, dir: None }
}

/// It does not give up where others write for long, however slow the disk.
fn unhurried(clock: &ManualClock) -> Builder {
    Postbox::builder().clock(clock.clone()).busy_timeout(LIMIT)
}

impl TestBox {
    /// The file of a box that has one.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.as_ref().expect("a box in a file").path().join("app.db")
    }

    /// A second box on the same file and clock, as another process would have it.
    pub(crate) fn second(&self) -> Postbox {
        unhurried(&self.clock).open(self.path()).unwrap()
    }

    /// The same file after a restart of the application.
    pub(crate) fn reopen(self) -> TestBox {
        let path = self.path();
        self.bus.close().unwrap();
        let bus = unhurried(&self.clock).open(path).unwrap();
        TestBox { bus, ..self }
    }

    /// An application's own connection to the same file.
    pub(crate) fn app_connection(&self) -> rusqlite::Connection {
        let conn = rusqlite::Connection::open(self.path()).unwrap();
        conn.busy_timeout(LIMIT).unwrap();
        conn
    }
}

pub(crate) fn event(name: &str) -> NewEvent {
    NewEvent::new(name, "finance", "Invoice", "inv-1")
}

/// Polls a condition that another thread makes true; fails the test when it does not within the limit.
#[track_caller]
pub(crate) fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain");
        thread::park_timeout(Duration::from_millis(1));
    }
}

/// Runs `f` on a thread of its own and fails the test when it does not end: a deadlock must not hang all tests.
#[track_caller]
pub(crate) fn ends<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || drop(done.send(f())));
    match ended.recv_timeout(LIMIT) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("it waits for itself"),
        Err(RecvTimeoutError::Disconnected) => panic!("it panicked: its message stands above"),
    }
}

/// What handlers have done, in order. Clones write to the same list.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<String>>>);

impl Calls {
    pub(crate) fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Those since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    pub(crate) fn count(&self, what: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|call| *call == what).count()
    }
}

/// A plain handler that notes `what` and succeeds.
pub(crate) fn noting(calls: &Calls, what: &str) -> impl Handler {
    let (calls, what) = (calls.clone(), what.to_owned());
    move |_: &Event, _: &Context<'_>| {
        calls.add(&what);
        Ok(())
    }
}

/// A transactional handler that writes the effect `what` and succeeds.
pub(crate) fn writing(what: &str) -> impl TransactionalHandler {
    let what = what.to_owned();
    move |_: &Event, tx: &Tx<'_>| Ok(add_effect(tx, &what)?)
}

/// Runs SQL in a transaction of the box: the only way into one in memory.
#[track_caller]
pub(crate) fn sql<T>(bus: &Postbox, f: impl FnOnce(&Tx<'_>) -> rusqlite::Result<T>) -> T {
    bus.transaction(|tx| f(tx).map_err(postbox::Error::from)).unwrap()
}

/// A table of the application's, for the effects of handlers.
pub(crate) fn make_effects(bus: &Postbox) {
    sql(bus, |tx| tx.execute_batch("CREATE TABLE effect (seq INTEGER PRIMARY KEY, who TEXT NOT NULL)"));
}

pub(crate) fn add_effect(conn: &rusqlite::Connection, who: &str) -> rusqlite::Result<()> {
    conn.execute("INSERT INTO effect (who) VALUES (?1)", [who]).map(|_| ())
}

pub(crate) fn effects(bus: &Postbox) -> Vec<String> {
    sql(bus, |tx| {
        tx.prepare("SELECT who FROM effect ORDER BY seq")?.query_map([], |row| row.get(0))?.collect()
    })
}

#[track_caller]
pub(crate) fn outbox_row(bus: &Postbox, id: EventId) -> OutboxEvent {
    bus.outbox().get(id).unwrap().expect("the event's row")
}

#[track_caller]
pub(crate) fn status(bus: &Postbox, id: EventId) -> OutboxStatus {
    outbox_row(bus, id).status
}

/// A consumer's inbox row: name, status, failed attempts, error.
pub(crate) type InboxRow = (String, InboxStatus, u32, Option<String>);

/// All inbox rows of the event, by the name of the consumer. None is created by looking.
pub(crate) fn inbox_rows(bus: &Postbox, id: EventId) -> Vec<InboxRow> {
    let ids: Vec<i64> = sql(bus, |tx| {
        tx.prepare(
            "SELECT i.id FROM inbox_event i JOIN outbox_event o ON o.seq = i.event WHERE o.id = ?1 ORDER BY consumer_name",
        )?
        .query_map([id.as_uuid()], |row| row.get(0))?
        .collect()
    });
    ids.into_iter()
        .map(|id| {
            let row = bus.inbox().get(id.into()).unwrap().expect("the inbox row");
            (row.consumer_name, row.status, row.attempt_count, row.last_error)
        })
        .collect()
}

/// As if another process had claimed the event and died, and its lease had run out just now.
pub(crate) fn lose_an_attempt(bus: &Postbox, id: EventId) {
    let changed = sql(bus, |tx| {
        tx.execute(
            "UPDATE outbox_event SET status = 'processing', attempt_count = attempt_count + 1, lease_id = ?2, available_at = created_at
             WHERE id = ?1",
            params![id.as_uuid(), 77_i64 << 24 | 1],
        )
    });
    assert_eq!(changed, 1);
}

/// The error's field, when a value was refused.
#[track_caller]
pub(crate) fn refused_field<T: Debug>(result: postbox::Result<T>) -> &'static str {
    match result {
        Err(postbox::Error::Invalid { field, .. }) => field,
        other => panic!("expected Error::Invalid, got {other:?}"),
    }
}

#[track_caller]
pub(crate) fn assert_reentrant<T: Debug>(result: postbox::Result<T>) {
    match result {
        Err(postbox::Error::Reentrant { .. }) => {}
        other => panic!("expected Error::Reentrant, got {other:?}"),
    }
}
