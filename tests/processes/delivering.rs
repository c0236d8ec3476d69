//! Deliveries that are cut off by a kill, and by nothing.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use postbox::rusqlite::Connection;
use postbox::{Context, Event, EventId, HandlerResult, Postbox, Result, Settings, Subscription, Tx};

use crate::support::{LIMIT, Process, event, given, integer, listing, raw, unhurried, wait_until};
use crate::{Moments, child, lines_of, next_said, say, sound};

pub(crate) fn make_effects(bus: &Postbox) {
    let sql = "CREATE TABLE effect (id TEXT, pid INTEGER)"; // without UNIQUE: what is doubled shows
    bus.transaction(|tx| -> Result<()> { Ok(tx.execute_batch(sql)?) }).unwrap();
}

/// An effect in the file, with a follow-up, and one outside of it.
fn subscribe_effects(bus: &Postbox, outside: &Path) {
    let outside = fs::OpenOptions::new().create(true).append(true).open(outside).unwrap();
    bus.subscribe_many([
        Subscription::transactional("work", "inside", |event: &Event, tx: &Tx<'_>| -> HandlerResult {
            let id = event.id().to_string();
            tx.execute("INSERT INTO effect VALUES (?1, ?2)", (id, std::process::id()))?;
            tx.publish(crate::support::event("follow-up"))?;
            Ok(())
        }),
        Subscription::new("work", "outside", move |event: &Event, _: &Context<'_>| -> HandlerResult {
            (&outside).write_all(format!("{}\n", event.id()).as_bytes())?;
            Ok(())
        })
        .priority(1),
    ])
    .unwrap();
}

fn patient() -> Settings {
    Settings { max_attempts: 1_000, ..Settings::default() }
}

/// Exactly one effect and one follow-up an event, and at least one line outside. How many lines.
fn assert_effects(path: &Path, outside: &Path, ids: &[EventId]) -> usize {
    sound(path);
    let conn = raw(path);
    let count = |from: &str| integer(&conn, &format!("SELECT count(*) FROM {from}"));
    let expected = i64::try_from(ids.len()).unwrap();
    assert_eq!(count("(SELECT DISTINCT id FROM effect)"), expected);
    assert_eq!(count("effect"), expected, "effects were doubled");
    assert_eq!(count("outbox_event WHERE event_name = 'follow-up'"), expected);
    assert_eq!(count("outbox_event WHERE status = 'processed'"), 2 * expected);
    assert_eq!(count("inbox_event WHERE status = 'processed'"), 3 * expected);
    let lines = fs::read_to_string(outside).unwrap();
    let reached: HashSet<&str> = lines.lines().collect();
    assert!(ids.iter().all(|id| reached.contains(id.to_string().as_str())), "some never left the file");
    lines.lines().count()
}

#[test]
fn effects_in_the_file_happen_exactly_once_and_others_at_least_once_however_often_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, outside) = (dir.path().join("app.db"), dir.path().join("outside.txt"));
    let bus = unhurried().settings(patient()).open(&path).unwrap();
    make_effects(&bus);
    let ids = bus.publish_all((0..1_200).map(|_| event("work"))).unwrap();
    bus.close().unwrap();

    let mut moments = Moments(2);
    let (mut kills, mut in_the_middle) = (0, 0);
    let finished = |conn: &Connection| integer(conn, "SELECT count(*) FROM effect") == 1_200;
    let is_claimed = |conn: &Connection| {
        integer(conn, "SELECT count(*) FROM outbox_event WHERE status = 'processing'") > 0
    };
    while kills < 30 && !finished(&raw(&path)) {
        let mut command = child("delivering::child_works", &path);
        command.env("OUTSIDE", &outside).env("SLOWLY", "yes");
        let mut process = Process::spawn(command);
        let mut lines = lines_of(&mut process);
        next_said(&mut lines, "ready").unwrap();
        let conn = raw(&path);
        wait_until("it works", || is_claimed(&conn) || finished(&conn));
        drop(conn);
        thread::sleep(Duration::from_micros(5_000 + moments.next(40_000)));
        process.0.kill().unwrap();
        process.0.wait().unwrap();
        kills += 1;
        in_the_middle += u32::from(is_claimed(&raw(&path)));
    }
    assert!(
        kills >= 10 && in_the_middle >= 5,
        "{kills} kills, {in_the_middle} of them in the middle of work"
    );
    let mut command = child("delivering::child_works", &path);
    command.env("OUTSIDE", &outside);
    Process::run(command);
    let lines = assert_effects(&path, &outside, &ids);
    assert!(lines >= 1_200);
    let left = listing(dir.path());
    assert_eq!(left, ["app.db", "outside.txt"]);
}

/// Works until its standard input ends and nothing is left to do.
#[test]
#[ignore = "run as a process by another test"]
fn child_works() {
    let (Some(path), Some(outside)) = (given("FILE"), given("OUTSIDE")) else { return };
    let bus = unhurried().settings(patient()).open(path).unwrap();
    subscribe_effects(&bus, Path::new(&outside));
    if given("SLOWLY").is_some() {
        bus.subscribe(
            Subscription::new("work", "slow", |_: &Event, _: &Context<'_>| {
                thread::sleep(Duration::from_millis(1));
                Err(postbox::HandlerError::skip("only to be slow"))
            })
            .priority(2),
        )
        .unwrap();
    }
    bus.subscribe(Subscription::new("follow-up", "slow", |_: &Event, _: &Context<'_>| Ok(()))).unwrap();
    let worker = bus.start().unwrap();
    say("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let start = Instant::now();
    loop {
        let stats = bus.stats().unwrap();
        if stats.pending + stats.processing == 0 {
            break;
        }
        assert!(start.elapsed() < 3 * LIMIT, "{stats:?}");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
}

#[test]
fn three_processes_on_one_file_deliver_each_event_once() {
    let dir = tempfile::tempdir().unwrap();
    let (path, outside) = (dir.path().join("app.db"), dir.path().join("outside.txt"));
    let bus = unhurried().open(&path).unwrap();
    make_effects(&bus);
    let mut ids = bus.publish_all((0..1_500).map(|_| event("work"))).unwrap();
    let mut processes: Vec<Process> = (0..3)
        .map(|_| {
            let mut command = child("delivering::child_works", &path);
            command.env("OUTSIDE", &outside);
            Process::spawn(command)
        })
        .collect();
    let mut pipes: Vec<_> = processes.iter_mut().map(lines_of).collect();
    for lines in &mut pipes {
        next_said(lines, "ready").unwrap();
    }
    for _ in 0..30 {
        ids.extend(bus.publish_all((0..50).map(|_| event("work"))).unwrap());
    }
    for process in &mut processes {
        drop(process.0.stdin.take());
    }
    for (process, lines) in processes.iter_mut().zip(&mut pipes) {
        let mut said = String::new();
        lines.read_to_string(&mut said).unwrap();
        assert!(process.0.wait().unwrap().success(), "{said}");
    }
    bus.close().unwrap();
    assert_eq!(assert_effects(&path, &outside, &ids), 3_000, "nobody died: plain handlers ran once as well");
    let conn = raw(&path);
    assert_eq!(integer(&conn, "SELECT max(attempt_count) FROM outbox_event"), 1);
    let worked = integer(&conn, "SELECT count(DISTINCT pid) FROM effect");
    assert!(worked >= 2, "{worked} of three processes did all of the work");
    drop(conn);
    assert_eq!(listing(dir.path()), ["app.db", "outside.txt"]);
}
