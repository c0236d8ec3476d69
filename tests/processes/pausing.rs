//! A pause of one process, and the worker of another.

use std::fs;
use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::process::ChildStdout;

use postbox::{Context, Event, HandlerResult, PauseTarget, Postbox, Settings, Subscription};

use crate::support::{LIMIT, Process, event, given, integer, listing, raw, unhurried, wait_until};
use crate::{child, lines_of, next_said, say, sound};

fn consumer() -> PauseTarget {
    PauseTarget::consumer("paused")
}

/// Delivers until its standard input ends. What the consumer receives is a line outside.
#[test]
#[ignore = "run as a process by another test"]
fn child_delivers() {
    let (Some(path), Some(outside)) = (given("FILE"), given("OUTSIDE")) else { return };
    let outside = fs::OpenOptions::new().create(true).append(true).open(outside).unwrap();
    // It looks around often, so that the test need not wait for a second each time.
    let often = Settings { polling_interval_ms: 100, idle_polling_interval_ms: 100, ..Settings::default() };
    let bus = unhurried().settings(often).open(path).unwrap();
    bus.subscribe_many([
        Subscription::new("work", "paused", move |event: &Event, _: &Context<'_>| -> HandlerResult {
            (&outside).write_all(format!("{}\n", event.id()).as_bytes())?;
            Ok(())
        }),
        Subscription::new("other", "other", |_: &Event, _: &Context<'_>| Ok(())),
    ])
    .unwrap();
    let worker = bus.start().unwrap();
    say("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
}

/// Pauses and resumes as it is told.
#[test]
#[ignore = "run as a process by another test"]
fn child_pauses() {
    let Some(path) = given("FILE") else { return };
    let bus = unhurried().open(path).unwrap();
    say("ready");
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "pause" => drop(bus.pause(&consumer(), Some("the server moves"), None).unwrap()),
            _ => assert!(bus.resume(&consumer()).unwrap()),
        }
        say("done");
    }
}

struct Running(Process, std::io::BufReader<ChildStdout>);

impl Running {
    fn start(entry: &str, path: &Path, outside: &Path) -> Self {
        let mut command = child(entry, path);
        command.env("OUTSIDE", outside);
        let mut process = Process::spawn(command);
        let mut lines = lines_of(&mut process);
        next_said(&mut lines, "ready").unwrap();
        Running(process, lines)
    }

    fn tell(&mut self, what: &str) {
        crate::children::tell(&mut self.0, what);
        next_said(&mut self.1, "done").unwrap();
    }

    fn kill(mut self) {
        self.0.0.kill().unwrap();
        self.0.0.wait().unwrap();
    }

    fn end(mut self) {
        drop(self.0.0.stdin.take());
        let mut said = String::new();
        self.1.read_to_string(&mut said).unwrap();
        assert!(self.0.0.wait().unwrap().success(), "{said}");
    }
}

/// What is looked at from a third process, which delivers nothing.
struct Looking<'a> {
    bus: Postbox,
    outside: &'a Path,
    conn: postbox::rusqlite::Connection,
}

impl Looking<'_> {
    fn publish(&self, name: &str, count: usize) {
        self.bus.publish_all((0..count).map(|_| event(name))).unwrap();
    }

    fn received(&self) -> usize {
        fs::read_to_string(self.outside).unwrap_or_default().lines().count()
    }

    #[track_caller]
    fn wait_for_processed(&self, count: u64) {
        wait_until("they are processed", || self.bus.stats().unwrap().processed == count);
    }

    /// Waits until all that is left is parked, and sees that the worker goes on and leaves it alone.
    #[track_caller]
    fn assert_all_waits(&self) {
        let waits = || {
            let (stats, backlog) = (self.bus.stats().unwrap(), self.bus.outbox().backlog().unwrap());
            stats.processing == 0 && stats.pending > 0 && stats.pending == backlog.paused
        };
        wait_until("all that is left waits for the pause", waits);
        let (received, processed) = (self.received(), self.bus.stats().unwrap().processed);
        let others = integer(&self.conn, "SELECT count(*) FROM outbox_event WHERE event_name = 'other'");
        assert_eq!(received as u64, processed - u64::try_from(others).unwrap());
        for more in 1..=3 {
            self.publish("other", 1);
            self.wait_for_processed(processed + more);
        }
        assert!(waits(), "it is still so");
        assert_eq!(self.received(), received, "none was received in spite of the pause");
        let burnt = "SELECT count(*) FROM outbox_event WHERE status = 'pending' AND attempt_count <> 0";
        assert_eq!(integer(&self.conn, burnt), 0, "no attempt was spent");
        assert_eq!(self.bus.pauses().unwrap()[0].reason.as_deref(), Some("the server moves"));
    }
}

#[test]
fn a_pause_of_one_process_holds_for_anothers_worker_until_it_is_resumed_whoever_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, outside) = (dir.path().join("app.db"), dir.path().join("outside.txt"));
    let looking = Looking { bus: unhurried().open(&path).unwrap(), outside: &outside, conn: raw(&path) };
    let worker = Running::start("pausing::child_delivers", &path, &outside);
    let mut pauser = Running::start("pausing::child_pauses", &path, &outside);
    looking.publish("work", 20);
    looking.wait_for_processed(20);

    // While events come, one batch after the other.
    let mut published = 20;
    let mut publish = || {
        for _ in 0..40 {
            looking.publish("work", 25);
        }
        published += 1_000;
        published
    };
    publish();
    pauser.tell("pause");
    publish();
    looking.assert_all_waits();
    pauser.tell("resume");
    wait_until("all is received", || looking.received() == 2_020);
    looking.wait_for_processed(2_020 + 3);

    // Once more, and the one that has paused dies; then the one that delivers.
    pauser.tell("pause");
    pauser.kill();
    publish();
    looking.assert_all_waits();
    worker.kill();
    let worker = Running::start("pausing::child_delivers", &path, &outside);
    let all = publish();
    looking.assert_all_waits();
    let mut resumer = Running::start("pausing::child_pauses", &path, &outside);
    resumer.tell("resume");
    wait_until("all is received", || looking.received() == all);
    looking.wait_for_processed(all as u64 + 9);

    let attempts = integer(&looking.conn, "SELECT max(attempt_count) FROM outbox_event");
    assert_eq!((attempts, looking.bus.pauses().unwrap().len()), (1, 0));
    let lines = fs::read_to_string(&outside).unwrap();
    let each: std::collections::HashSet<&str> = lines.lines().collect();
    assert_eq!(each.len(), all, "each once");
    worker.end();
    resumer.end();
    drop(looking.conn);
    looking.bus.close().unwrap();
    sound(&path);
    assert_eq!(listing(dir.path()), ["app.db", "outside.txt"], "nothing of the dead is left");
}
