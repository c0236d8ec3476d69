//! Ticks of one schedule, and several processes, some of which die.

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::ChildStdout;
use std::time::Duration;

use postbox::{Event, Misfire, Postbox, Schedule, Settings, Subscription, Tx};

use crate::children::{child, lines_of, next_said, say};
use crate::support::{Process, event, given, integer, raw, unhurried, wait_until};
use crate::{Moments, sound};

const EVERY: Duration = Duration::from_millis(100);

/// Ticks and delivers until its standard input ends, or it is killed.
#[test]
#[ignore = "run as a process by another test"]
fn child_ticks() {
    let Some(path) = given("FILE") else { return };
    let often = Settings { polling_interval_ms: 100, idle_polling_interval_ms: 100, ..Settings::default() };
    let bus = unhurried().settings(often).open(path).unwrap();
    // As each of them would when it starts.
    let schedule = Schedule::every(EVERY, event("tick")).misfire(Misfire::All { max: 1_000 });
    bus.schedules().put("s", schedule).unwrap();
    bus.subscribe(noting()).unwrap();
    let worker = bus.start().unwrap();
    say("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    assert!(worker.shutdown(Duration::from_mins(1)).unwrap().clean);
    bus.close().unwrap();
}

/// Writes each tick into the application's table, in microseconds.
fn noting() -> Subscription {
    Subscription::transactional("tick", "noting", |event: &Event, tx: &Tx<'_>| {
        let tick = event.scheduled_for().expect("a tick").unix_timestamp_nanos() / 1_000;
        tx.execute("INSERT INTO seen VALUES (?1)", [i64::try_from(tick).expect("microseconds")])?;
        Ok(())
    })
}

/// With what it says: whoever closes that, kills it.
fn start(path: &Path) -> (Process, BufReader<ChildStdout>) {
    let mut process = Process::spawn(child("ticking::child_ticks", path));
    let mut lines = lines_of(&mut process);
    next_said(&mut lines, "ready").unwrap();
    (process, lines)
}

#[test]
fn every_tick_is_published_once_by_processes_that_are_killed_around_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    Postbox::open(&path).unwrap().close().unwrap();
    let conn = raw(&path);
    conn.execute_batch("CREATE TABLE seen (tick INTEGER NOT NULL)").unwrap();
    let seen = || integer(&conn, "SELECT count(*) FROM seen");

    let mut moments = Moments(7);
    let mut running = vec![start(&path), start(&path)];
    for round in 1..=12 {
        // Somewhere around a tick, whoever has it.
        std::thread::sleep(Duration::from_micros(moments.next(150_000)));
        let (mut killed, _) = running.remove(0);
        killed.0.kill().unwrap();
        killed.0.wait().unwrap();
        running.push(start(&path));
        wait_until("ticks are seen", || seen() >= round * 2);
    }
    for (mut process, mut lines) in running {
        drop(process.0.stdin.take());
        let mut said = String::new();
        lines.read_to_string(&mut said).unwrap();
        assert!(process.0.wait().unwrap().success(), "{said}");
    }

    // What the last have published and not delivered is delivered here; no more ticks come.
    let bus = unhurried().open(&path).unwrap();
    let next = bus.schedules().get("s").unwrap().unwrap();
    bus.schedules().pause("s").unwrap();
    bus.subscribe(noting()).unwrap();
    bus.drain().unwrap();
    bus.close().unwrap();

    let mut times: HashMap<i64, u32> = HashMap::new();
    let mut statement = conn.prepare("SELECT tick FROM seen").unwrap();
    for tick in statement.query_map([], |row| row.get::<_, i64>(0)).unwrap() {
        *times.entry(tick.unwrap()).or_default() += 1;
    }
    assert!(times.values().all(|count| *count == 1), "no tick twice");
    let (first, last) = (*times.keys().min().unwrap(), *times.keys().max().unwrap());
    let every = i64::try_from(EVERY.as_micros()).unwrap();
    assert_eq!(times.len(), usize::try_from((last - first) / every + 1).unwrap(), "none is left out");
    let last_at = next.last_at.unwrap().unix_timestamp_nanos() / 1_000;
    assert_eq!(i128::from(last), last_at);
    drop(statement);
    drop(conn);
    sound(&path);
}
