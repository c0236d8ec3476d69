//! Real processes, really killed: what was promised to them is kept.

#[path = "support/files.rs"]
mod support;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command};
use std::thread;
use std::time::{Duration, Instant};

use postbox::{
    Context, Event, EventId, HandlerResult, OutboxStatus, Postbox, Result, Settings, Subscription, Tx,
};
use support::{
    LIMIT, Latch, Process, Tally, blocking, counting, event, given, integer, listing, raw, text, wait_until,
};

/// Moments to kill at, different in each round and the same in each run.
struct Moments(u64);

impl Moments {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn child(entry: &str, file: &Path) -> Command {
    let mut command = Process::command(entry);
    command.env("FILE", file);
    command
}

fn lines_of(process: &mut Process) -> BufReader<ChildStdout> {
    BufReader::new(process.0.stdout.take().unwrap())
}

/// The next thing that a child says under this mark; `None` once it is gone.
fn next_said(lines: &mut impl BufRead, mark: &str) -> Option<String> {
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
            return None;
        }
        // The test harness writes on the same pipe.
        if let Some(at) = line.find(mark) {
            return Some(line[at + mark.len()..].trim().to_owned());
        }
    }
}

fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{what}").unwrap();
    out.flush().unwrap();
}

fn sound(path: &Path) {
    assert_eq!(text(&raw(path), "PRAGMA integrity_check"), "ok");
}

// ---- publishing ------------------------------------------------------------------------------------------------------

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
    let bus = Postbox::open(&path).unwrap();
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

// ---- delivering ------------------------------------------------------------------------------------------------------

fn make_effects(bus: &Postbox) {
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
            tx.publish(support::event("follow-up"))?;
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
    let bus = Postbox::builder().settings(patient()).open(&path).unwrap();
    make_effects(&bus);
    let ids = bus.publish_all((0..1_200).map(|_| event("work"))).unwrap();
    bus.close().unwrap();

    let mut moments = Moments(2);
    let (mut kills, mut in_the_middle) = (0, 0);
    let finished = |path: &Path| integer(&raw(path), "SELECT count(*) FROM effect") == 1_200;
    while kills < 30 && !finished(&path) {
        let mut command = child("child_works", &path);
        command.env("OUTSIDE", &outside).env("SLOWLY", "yes");
        let mut process = Process::spawn(command);
        let mut lines = lines_of(&mut process);
        next_said(&mut lines, "ready").unwrap();
        thread::sleep(Duration::from_micros(5_000 + moments.next(40_000)));
        process.0.kill().unwrap();
        process.0.wait().unwrap();
        kills += 1;
        in_the_middle += i64::from(
            integer(&raw(&path), "SELECT count(*) FROM outbox_event WHERE status = 'processing'") > 0,
        );
    }
    assert!(
        kills >= 10 && in_the_middle >= 5,
        "{kills} kills, {in_the_middle} of them in the middle of work"
    );
    let mut command = child("child_works", &path);
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
    let bus = Postbox::builder().settings(patient()).open(path).unwrap();
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
    let bus = Postbox::open(&path).unwrap();
    make_effects(&bus);
    let mut ids = bus.publish_all((0..1_500).map(|_| event("work"))).unwrap();
    let mut processes: Vec<Process> = (0..3)
        .map(|_| {
            let mut command = child("child_works", &path);
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

// ---- events that kill ------------------------------------------------------------------------------------------------

/// Restarts the application until it survives. How often it died.
fn restart_until_it_lives(path: &Path) -> u32 {
    for deaths in 0..20 {
        let mut process = Process::spawn(child("child_is_killed_by_poison", path));
        drop(process.0.stdin.take());
        let mut said = String::new();
        lines_of(&mut process).read_to_string(&mut said).unwrap();
        if process.0.wait().unwrap().success() {
            return deaths;
        }
    }
    panic!("a crash loop");
}

#[test]
#[ignore = "run as a process by another test"]
fn child_is_killed_by_poison() {
    let Some(path) = given("FILE") else { return };
    let bus = Postbox::open(path).unwrap();
    bus.subscribe_many([
        Subscription::new("poison", "c", |_: &Event, _: &Context<'_>| std::process::abort()),
        Subscription::transactional("poison in tx", "c", |_: &Event, _: &Tx<'_>| std::process::abort()),
        Subscription::transactional("work", "c", |event: &Event, tx: &Tx<'_>| {
            let id = event.id().to_string();
            tx.execute("INSERT INTO effect VALUES (?1, ?2)", (id, std::process::id()))?;
            Ok(())
        }),
    ])
    .unwrap();
    let worker = bus.start().unwrap();
    wait_until("nothing is left to do", || {
        let stats = bus.stats().unwrap();
        stats.pending + stats.processing == 0
    });
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
}

#[test]
fn an_event_that_kills_the_process_ends_as_a_dead_letter_and_not_as_a_crash_loop() {
    for poison in ["poison", "poison in tx"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let bus = Postbox::open(&path).unwrap();
        make_effects(&bus);
        let id = bus.publish(event(poison)).unwrap();
        bus.close().unwrap();
        assert_eq!(restart_until_it_lives(&path), 3, "max_attempts is 3");
        let bus = Postbox::open(&path).unwrap();
        let row = bus.outbox().get(id).unwrap().unwrap();
        assert_eq!(row.status, OutboxStatus::DeadLetter);
        assert!(row.last_error.unwrap().contains("was lost"));
        assert_eq!(bus.stats().unwrap().dead_letter, 1);
    }
}

/// They were claimed together with it and never begun: dying with it must not use up their attempts.
#[test]
fn the_neighbours_of_an_event_that_kills_the_process_are_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::open(&path).unwrap();
    make_effects(&bus);
    let poison = bus.publish(event("poison")).unwrap();
    let neighbours = bus.publish_all((0..30).map(|_| event("work"))).unwrap();
    bus.close().unwrap();
    restart_until_it_lives(&path);
    let bus = Postbox::open(&path).unwrap();
    assert_eq!(bus.outbox().get(poison).unwrap().unwrap().status, OutboxStatus::DeadLetter);
    let dead: Vec<_> = neighbours
        .iter()
        .map(|id| bus.outbox().get(*id).unwrap().unwrap())
        .filter(|row| row.status != OutboxStatus::Processed)
        .map(|row| (row.status, row.attempt_count, row.last_error))
        .collect();
    assert!(dead.is_empty(), "{} of 30 were never delivered: {:?}", dead.len(), dead[0]);
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM effect"), 30);
    assert_eq!(integer(&raw(&path), "SELECT count(DISTINCT id) FROM effect"), 30);
}

// ---- the living and the dead -----------------------------------------------------------------------------------------

#[test]
#[ignore = "run as a process by another test"]
fn child_hangs() {
    let Some(path) = given("FILE") else { return };
    let bus = Postbox::open(path).unwrap();
    let (entered, latch) = (Tally::default(), Latch::default());
    bus.subscribe(Subscription::new("work", "c", blocking(&entered, &latch))).unwrap();
    let _worker = bus.start().unwrap();
    entered.wait_for(1);
    say("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// The lease is 30 seconds long: it must not be waited for, and never be broken while its owner lives.
#[test]
fn work_in_flight_of_a_killed_process_is_taken_over_at_once_and_of_a_living_one_never() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let often = Settings { polling_interval_ms: 100, idle_polling_interval_ms: 100, ..Settings::default() };
    let open = || Postbox::builder().settings(often.clone()).open(&path).unwrap();
    let bus = open();
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
    assert!(tally.reaches(1, Duration::from_secs(3)), "its owner is dead");
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
