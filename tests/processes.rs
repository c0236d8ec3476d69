//! Real processes, really killed: what was promised to them is kept.

#[path = "support/children.rs"]
mod children;
#[path = "support/files.rs"]
mod support;

#[path = "processes/cut_off.rs"]
mod cut_off;
#[path = "processes/delivering.rs"]
mod delivering;
#[path = "processes/large.rs"]
mod large;
#[path = "processes/links.rs"]
mod links;
#[path = "processes/pausing.rs"]
mod pausing;
#[path = "processes/poison.rs"]
mod poison;
#[path = "processes/sagas.rs"]
mod sagas;
#[path = "processes/ticking.rs"]
mod ticking;

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use postbox::{EventId, OutboxStatus, Postbox, Result, Settings, Subscription};

use crate::children::{child, lines_of, next_said, say};
use crate::support::{
    Latch, Process, Tally, blocking, counting, event, given, integer, listing, raw, text, unhurried,
    wait_until,
};

/// Moments to kill at, different in each round and the same in each run.
struct Moments(u64);

impl Moments {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn sound(path: &Path) {
    assert_eq!(text(&raw(path), "PRAGMA integrity_check"), "ok");
}

const KILLS: u64 = 40;

#[test]
fn everything_acknowledged_before_a_kill_is_there_and_rows_and_events_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    bus.transaction(|tx| -> Result<()> { Ok(tx.execute_batch("CREATE TABLE note (id BLOB)")?) }).unwrap();
    bus.close().unwrap();

    let mut moments = Moments(1);
    let mut acknowledged: Vec<EventId> = Vec::new();
    for _ in 0..KILLS {
        let mut process = Process::spawn(child("child_publishes", &path));
        let mut lines = lines_of(&mut process);
        for _ in 0..moments.next(30) {
            acknowledged.push(next_said(&mut lines, "id=").unwrap().parse().unwrap());
        }
        thread::sleep(Duration::from_micros(moments.next(3_000)));
        process.0.kill().unwrap();
        while let Some(id) = next_said(&mut lines, "id=") {
            acknowledged.push(id.parse().unwrap());
        }
    }
    sound(&path);
    let bus = unhurried().open(&path).unwrap();
    let lost = acknowledged.iter().filter(|id| bus.outbox().get(**id).unwrap().is_none()).count();
    assert_eq!(lost, 0, "of {} acknowledged events", acknowledged.len());
    assert_eq!(acknowledged.iter().collect::<HashSet<_>>().len(), acknowledged.len());
    assert!(acknowledged.len() > 200, "only {} were published", acknowledged.len());

    let conn = raw(&path);
    let count = |from: &str| integer(&conn, &format!("SELECT count(*) FROM {from}"));
    let noted = count("note");
    assert!(noted > 50, "only {noted} notes");
    assert_eq!(count("outbox_event WHERE event_name = 'noted'"), noted);
    assert_eq!(count("outbox_event JOIN note USING (id)"), noted);
    assert_eq!(count("outbox_event WHERE event_name = 'three'") % 3, 0, "all or none");
    assert_eq!(count("outbox_event WHERE status <> 'pending' OR attempt_count <> 0"), 0);
    drop(conn);
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"], "nothing of the dead is left");
}

#[test]
#[ignore = "run as a process by another test"]
fn child_publishes() {
    let Some(path) = given("FILE").map(PathBuf::from) else { return };
    let bus = Postbox::open(&path).unwrap();
    let mut conn = raw(&path);
    let note =
        |tx: &rusqlite::Connection, id: EventId| tx.execute("INSERT INTO note VALUES (?1)", [id.as_uuid()]);
    for round in 0_u64.. {
        let ids = match round % 4 {
            0 => vec![bus.publish(event("one")).unwrap()],
            1 => bus.publish_all([event("three"), event("three"), event("three")]).unwrap(),
            2 => {
                let published = bus.transaction(|tx| -> Result<_> {
                    let id = tx.publish(event("noted"))?;
                    note(tx, id)?;
                    Ok(id)
                });
                vec![published.unwrap()]
            }
            _ => {
                let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
                let id = bus.publish_in(&tx, event("noted")).unwrap();
                note(&tx, id).unwrap();
                tx.commit().unwrap();
                vec![id]
            }
        };
        for id in ids {
            say(&format!("id={id}"));
        }
    }
}

#[test]
#[ignore = "run as a process by another test"]
fn child_hangs() {
    let Some(path) = given("FILE") else { return };
    let bus = unhurried().open(path).unwrap();
    let (entered, latch) = (Tally::default(), Latch::default());
    bus.subscribe(Subscription::new("work", "c", blocking(&entered, &latch))).unwrap();
    let _worker = bus.start().unwrap();
    entered.wait_for(1);
    say("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// The lease is an hour long: it must not be waited for, and never be broken while its owner lives.
#[test]
fn work_in_flight_of_a_killed_process_is_taken_over_at_once_and_of_a_living_one_never() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let often = Settings { polling_interval_ms: 100, idle_polling_interval_ms: 100, ..Settings::default() };
    let open = || unhurried().settings(often.clone()).open(&path).unwrap();
    let bus = open();
    bus.update_settings(|settings| settings.processing_lease_ms = 3_600_000).unwrap();
    let id = bus.publish(event("work")).unwrap();
    let mut process = Process::spawn(child("child_hangs", &path));
    next_said(&mut lines_of(&mut process), "ready").unwrap();

    let tally = Tally::default();
    bus.subscribe(Subscription::new("work", "c", counting(&tally))).unwrap();
    let worker = bus.start().unwrap();
    open().close().unwrap();
    assert!(!tally.reaches(1, Duration::from_millis(400)), "its owner lives");
    assert_eq!(support::status(&bus, id), (OutboxStatus::Processing, 1));

    process.0.kill().unwrap();
    tally.wait_for(1);
    wait_until("it is processed", || support::status(&bus, id) == (OutboxStatus::Processed, 2));
    drop(worker);
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
}

#[test]
fn a_restarted_application_need_not_wait_for_the_lease_of_its_former_life() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    Postbox::open(&path).unwrap().publish(event("work")).unwrap();
    let mut process = Process::spawn(child("child_hangs", &path));
    next_said(&mut lines_of(&mut process), "ready").unwrap();
    process.0.kill().unwrap();
    process.0.wait().unwrap();
    let bus = Postbox::open(&path).unwrap();
    let tally = Tally::default();
    bus.subscribe(Subscription::new("work", "c", counting(&tally))).unwrap();
    assert_eq!(bus.drain().unwrap(), 1);
    assert_eq!(tally.get(), 1);
}
