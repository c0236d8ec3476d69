//! I/O errors: each operation on the disk fails, once and for good, with EIO, with ENOSPC, cut short, and as a failed read. No
//! call says Ok to what is not so; what is refused is not there; no attempt is spent; and once the fault is gone, everything
//! goes on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use postbox::rusqlite::{self, Connection, TransactionBehavior};
use postbox::testing::ManualClock;
use postbox::{
    Context, EntityRef, Error, Event, EventId, HandlerResult, LinkType, NewEvent, NewLink, Postbox, Result,
    Subscription, Tx,
};

use serde_json::json;

use crate::fault::{Disk, Lasting, Plan, Trouble};
use crate::support::manual_clock;
use crate::{folder, logged, times};

/// Everything that is tried while the disk fails, and what came of it.
struct Scene {
    path: PathBuf,
    copy: PathBuf,
    clock: ManualClock,
    /// How often the plain handler was begun, by event.
    runs: Arc<Mutex<Vec<EventId>>>,
    acknowledged: Vec<EventId>,
    /// Orders whose row and event were committed, or refused.
    placed: Vec<String>,
    refused: Vec<String>,
    link: Option<postbox::uuid::Uuid>,
    batch_size: Option<u32>,
    copied: bool,
    wrong: Vec<String>,
}

impl Scene {
    fn set(folder: &std::path::Path) -> Self {
        let scene = Scene {
            path: folder.join("app.db"),
            copy: folder.join("copy.db"),
            clock: manual_clock(),
            runs: Arc::default(),
            acknowledged: Vec::new(),
            placed: Vec::new(),
            refused: Vec::new(),
            link: None,
            batch_size: None,
            copied: false,
            wrong: Vec::new(),
        };
        let bus = scene.open().unwrap();
        bus.transaction(|tx| -> Result<()> {
            tx.execute_batch("CREATE TABLE placed (n TEXT); CREATE TABLE effect (event TEXT)")?;
            Ok(())
        })
        .unwrap();
        bus.close().unwrap();
        scene
    }

    fn open(&self) -> Result<Postbox> {
        let bus = Postbox::builder().clock(self.clock.clone()).open(&self.path)?;
        let runs = Arc::clone(&self.runs);
        bus.subscribe_many([
            Subscription::new("order", "outside", move |event: &Event, _: &Context<'_>| {
                runs.lock().unwrap().push(event.id());
                Ok(())
            }),
            Subscription::transactional("order", "inside", |event: &Event, tx: &Tx<'_>| -> HandlerResult {
                let id = event.id().to_string();
                let before: i64 = tx.query_row("SELECT count(*) FROM effect", [], |row| row.get(0))?;
                assert!(before >= 0);
                tx.execute("INSERT INTO effect VALUES (?1)", [id])?;
                Ok(())
            }),
        ])?;
        Ok(bus)
    }

    /// What this came to; anything but a typed fault is wrong.
    fn said<T>(&mut self, what: &str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if format!("{error} {error:?}").contains(CANARY) {
                    self.wrong.push(format!("{what} tells a secret: {error:?}"));
                }
                if error.fault().is_none() {
                    self.wrong.push(format!("{what} failed with no fault of the file: {error:?}"));
                }
                None
            }
        }
    }

    /// Every kind of call, whatever the ones before it came to.
    fn play(&mut self, bus: &Postbox) {
        for n in 0..2 {
            let published = bus.publish(secret("1"));
            let id = self.said(&format!("publish {n}"), published);
            self.acknowledged.extend(id);
        }
        let published = bus.publish_all((0..3).map(|_| secret("1")));
        let ids = self.said("publish_all", published);
        self.acknowledged.extend(ids.into_iter().flatten());
        self.place("in a transaction", |n| {
            bus.transaction(|tx| -> Result<EventId> {
                tx.execute("INSERT INTO placed VALUES (?1)", [n])?;
                tx.publish(secret(n))
            })
        });
        let path = self.path.clone();
        self.place("on its own connection", |n| {
            let mut conn = Connection::open(&path)?;
            let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let id = bus.publish_in(&tx, secret(n))?;
            tx.execute("INSERT INTO placed VALUES (?1)", [n])?;
            // An error here is the application's own to tell apart.
            tx.commit().map_err(Error::CommitUnknown)?;
            Ok(id)
        });
        let drained = bus.drain();
        self.said("drain", drained);
        let changed = bus.update_settings(|settings| settings.batch_size = 7);
        self.batch_size = self.said("update_settings", changed).map(|settings| settings.batch_size);
        let entity = |id: &str| EntityRef::new("finance", "Invoice", id);
        let made = bus.links().create(NewLink::new(entity("1"), entity("2"), LinkType::Reference));
        self.link = self.said("links.create", made).map(|link| link.id);
        let stats = bus.stats();
        self.said("stats", stats);
        let copied = bus.backup(&self.copy);
        self.copied = self.said("backup", copied).is_some();
    }

    fn place(&mut self, how: &str, place: impl FnOnce(&str) -> Result<EventId>) {
        match place(how) {
            Ok(id) => {
                self.acknowledged.push(id);
                self.placed.push(how.to_owned());
            }
            Err(Error::CommitUnknown(_)) => {}
            Err(error) => {
                self.said::<()>(how, Err(error));
                self.refused.push(how.to_owned());
            }
        }
    }

    /// After the fault is gone: the same box goes on, and the file has what was said.
    fn check(&mut self, bus: Option<Postbox>) {
        let bus = match bus.map_or_else(|| self.open(), Ok) {
            Ok(bus) => bus,
            Err(error) => return self.wrong.push(format!("it cannot be opened afterwards: {error:?}")),
        };
        if let Err(error) = self.check_box(&bus) {
            self.wrong.push(format!("it does not go on afterwards: {error:?}"));
        }
        if let Err(error) = bus.close() {
            self.wrong.push(format!("it cannot be closed afterwards: {error:?}"));
        }
        let conn = Connection::open(&self.path).unwrap();
        let integrity: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        if integrity != "ok" {
            self.wrong.push(integrity);
        }
        drop(conn);
        let folder = self.path.parent().unwrap();
        let left = crate::support::listing(folder);
        if left != ["app.db", "copy.db"] {
            self.wrong.push(format!("left behind: {left:?}"));
        }
    }

    fn check_box(&mut self, bus: &Postbox) -> Result<()> {
        let last = bus.publish(secret("1"))?;
        self.acknowledged.push(last);
        bus.drain()?;
        if let Some(size) = self.batch_size
            && bus.settings().batch_size != size
        {
            self.wrong.push("a setting was not stored".to_owned());
        }
        if let Some(link) = self.link
            && bus.links().get(link)?.is_none()
        {
            self.wrong.push("a link is not there".to_owned());
        }
        let wrong = bus.transaction(|tx| self.look(tx))?;
        self.wrong.extend(wrong);
        if self.copied {
            let copy = Connection::open(&self.copy)?;
            let integrity: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
            if integrity != "ok" {
                self.wrong.push(format!("a backup that was said to be done: {integrity}"));
            }
        }
        // It also clears away what could not be removed at the time.
        bus.backup(&self.copy)
    }

    fn look(&self, conn: &Connection) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let number =
            |sql: &str, id: &str| -> rusqlite::Result<i64> { conn.query_row(sql, [id], |row| row.get(0)) };
        for id in &self.acknowledged {
            let row = conn.query_row(
                "SELECT status, attempt_count FROM outbox_event WHERE id = ?1",
                [id.as_uuid()],
                |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)),
            );
            match row {
                Err(rusqlite::Error::QueryReturnedNoRows) => wrong.push(format!("lost: {id}")),
                row => {
                    let row = row?;
                    if row != ("processed".to_owned(), 1) {
                        wrong.push(format!("{id} is {row:?}"));
                    }
                }
            }
            let effects = number("SELECT count(*) FROM effect WHERE event = ?1", &id.to_string())?;
            if effects != 1 {
                wrong.push(format!("{id} has {effects} effects"));
            }
        }
        let attempts: i64 =
            conn.query_row("SELECT coalesce(max(attempt_count), 0) FROM outbox_event", [], |row| row.get(0))?;
        if attempts > 1 {
            wrong.push(format!("an attempt was spent: {attempts}"));
        }
        for n in &self.placed {
            if number("SELECT count(*) FROM placed WHERE n = ?1", n)? != 1 {
                wrong.push(format!("the row placed {n} is not there"));
            }
        }
        for n in &self.refused {
            let rows = number("SELECT count(*) FROM placed WHERE n = ?1", n)?;
            let events = number("SELECT count(*) FROM outbox_event WHERE aggregate_id = ?1", n)?;
            if rows + events > 0 {
                wrong.push(format!("what was refused {n} is there"));
            }
        }
        // Each event ran at least once, and no more often than it was lost or failed: not at all, here.
        let runs = self.runs.lock().unwrap();
        for id in &self.acknowledged {
            let ran = runs.iter().filter(|run| *run == id).count();
            if ran != 1 {
                wrong.push(format!("the plain handler of {id} ran {ran} times"));
            }
        }
        Ok(wrong)
    }
}

/// Stands in payloads, metadata and keys: no log line and no error may show it.
const CANARY: &str = "canary7f3a";

fn secret(n: &str) -> NewEvent {
    static KEYS: AtomicU64 = AtomicU64::new(0);
    let key = format!("{CANARY}{}", KEYS.fetch_add(1, Ordering::Relaxed));
    NewEvent::new("order", "shop", "Order", n)
        .payload(json!({ "secret": CANARY }))
        .metadata(json!({ "secret": CANARY }))
        .idempotency_key(key)
}

/// One run with one fault. `None`: it was over before the fault came.
fn run(plan: Plan) -> Option<Vec<String>> {
    let folder = folder();
    let mut scene = Scene::set(folder.path());
    let disk = Disk::watch(folder.path());
    disk.plan(plan);
    let opened = scene.open();
    let bus = scene.said("open", opened);
    if let Some(bus) = &bus {
        scene.play(bus);
    }
    let troubled = disk.mend();
    scene.check(bus);
    (troubled > 0).then_some(scene.wrong)
}

#[derive(Debug, Default)]
struct Tally {
    faults: usize,
    bad: usize,
    first: Option<String>,
}

/// Every `stride`-th operation fails, in every way that is given.
fn fail_each(ways: &[(Trouble, Lasting)], stride: u64) -> Tally {
    let tally = Mutex::new(Tally::default());
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some((trouble, lasting)) =
                    ways.get(usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap())
                {
                    let (trouble, lasting) = (*trouble, *lasting);
                    let mut at = 1;
                    while let Some(wrong) = run(Plan { trouble, at, lasting }) {
                        let mut tally = tally.lock().unwrap();
                        tally.faults += 1;
                        if !wrong.is_empty() {
                            tally.bad += 1;
                            tally.first.get_or_insert_with(|| {
                                format!("{trouble:?} {lasting:?} at operation {at}: {}", wrong.join("\n"))
                            });
                        }
                        at += stride;
                    }
                }
            });
        }
    });
    tally.into_inner().unwrap()
}

const WAYS: [(Trouble, Lasting); 8] = [
    (Trouble::Io, Lasting::Once),
    (Trouble::Io, Lasting::ForGood),
    (Trouble::IoOfAll, Lasting::Once),
    (Trouble::IoOfAll, Lasting::ForGood),
    (Trouble::Full, Lasting::Once),
    (Trouble::Full, Lasting::ForGood),
    (Trouble::FullTorn, Lasting::Once),
    (Trouble::FullTorn, Lasting::ForGood),
];

#[test]
fn no_failed_operation_makes_a_call_say_what_is_not_so_or_spends_an_attempt() {
    let stride = times("POSTBOX_FAULT_STRIDE", 5) as u64;
    logged::collect();
    let tally = fail_each(&WAYS, stride);
    assert_eq!(logged::lines_with(&[CANARY]), [""; 0], "the log tells a secret");
    println!("{} faults, {} with a finding", tally.faults, tally.bad);
    assert_eq!(tally.bad, 0, "{}", tally.first.unwrap());
    assert!(tally.faults > 100, "only {} faults", tally.faults);
}

#[test]
fn control_a_disk_that_loses_writes_and_says_ok_is_found() {
    let tally = fail_each(&[(Trouble::Lie, Lasting::ForGood)], 5);
    println!("control: {} lies, {} with a finding", tally.faults, tally.bad);
    assert!(tally.bad > 0, "lost writes were never found: the harness sees nothing");
}
