//! Another process holds the write lock for longer than anybody waits, again and again.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use postbox::{Error, Postbox};

use crate::children::{child, lines_of, next_said, say, tell};
use crate::support::{LIMIT, Process, Tally, given, integer, raw};
use crate::{assert_each_effect_once, make_effects, number, subscribe_effects, wait_until_all_is_done, work};

const BUSY_TIMEOUT: Duration = Duration::from_millis(50);
const PUBLISHERS: u64 = 3;
/// Handlers give up after three.
const REFUSALS: u64 = 6;

#[test]
fn a_lock_held_too_long_again_and_again_loses_nothing_and_costs_no_attempt() {
    let rounds = number("POSTBOX_ROUNDS", 12);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = Postbox::builder().busy_timeout(BUSY_TIMEOUT).open(&path).unwrap();
    make_effects(&bus);
    let plain = Tally::default();
    subscribe_effects(&bus, &plain);
    let worker = bus.start().unwrap();
    let mut process = Process::spawn(child("locked_out::child_locks", &path));
    let mut lines = lines_of(&mut process);
    next_said(&mut lines, "ready").unwrap();

    let (published, refused) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (told, told_busy) = (Tally::default(), Tally::default());
    thread::scope(|scope| {
        for _ in 0..PUBLISHERS {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    match bus.publish(work(n)) {
                        Ok(_) => {
                            published.lock().unwrap().push(n);
                            told.add();
                        }
                        Err(Error::Busy { .. }) => {
                            refused.lock().unwrap().push(n);
                            told_busy.add();
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        let _over = OnDrop(|| over.store(true, Ordering::SeqCst)); // or a failed assertion would wait for ever
        for round in 0..rounds {
            told.wait_for(told.get() + 5 * PUBLISHERS);
            tell(&mut process, "lock");
            next_said(&mut lines, "locked").expect("it lives");
            // All publishers have waited in vain several times, and so have the handlers: what they had begun is given up.
            told_busy.wait_for(told_busy.get() + REFUSALS * PUBLISHERS);
            assert!(worker.is_running(), "round {round}");
            tell(&mut process, "unlock");
            next_said(&mut lines, "unlocked").expect("it lives");
        }
        told.wait_for(told.get() + 5 * PUBLISHERS);
    });
    // A hundred thousand events and more where publishing is quick.
    wait_until_all_is_done(&bus, 12 * LIMIT);
    assert!(worker.is_running());
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    let stats = bus.stats().unwrap();
    bus.close().unwrap();

    let (published, refused) = (published.into_inner().unwrap(), refused.into_inner().unwrap());
    eprintln!("{rounds} locks: {} published, {} told Busy", published.len(), refused.len());
    assert!(refused.len() >= rounds * 6, "{} refused", refused.len());
    // What was acknowledged and nothing else: what was told Busy is not there.
    assert_each_effect_once(&path, &published);
    assert_eq!(plain.get(), published.len() as u64, "nobody died: the plain handler ran once as well");
    let conn = raw(&path);
    assert_eq!(integer(&conn, "SELECT max(attempt_count) FROM outbox_event"), 1, "an attempt was burned");
    assert_eq!(integer(&conn, "SELECT max(attempt_count) FROM inbox_event"), 0, "a failure was noted");
    assert_eq!(integer(&conn, "SELECT count(*) FROM lock_held").unsigned_abs(), rounds as u64);
    assert_eq!(stats.lost_leases, 0);
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
#[ignore = "run as a process by another test"]
fn child_locks() {
    let Some(path) = given("FILE").map(PathBuf::from) else { return };
    let conn = raw(&path);
    conn.execute_batch("CREATE TABLE lock_held (n INTEGER PRIMARY KEY)").unwrap();
    say("ready");
    for line in std::io::stdin().lock().lines() {
        if line.unwrap() == "lock" {
            conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO lock_held DEFAULT VALUES").unwrap();
            say("locked");
        } else {
            conn.execute_batch("COMMIT").unwrap();
            say("unlocked");
        }
    }
}
