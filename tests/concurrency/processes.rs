//! Several processes on one file, each with publishers and a worker.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use postbox::{Context, Error, Event, HandlerResult, Postbox, Result, Subscription};
use rusqlite::TransactionBehavior;

use crate::children::{child, lines_of, next_said, say};
use crate::support::{LIMIT, Process, given, integer, listing, raw};
use crate::{
    SECOND, assert_each_effect_once, make_effects, number, wait_until_all_is_done, work, write_effect,
};

const PROCESSES: usize = 4;
const PUBLISHERS: usize = 2;

fn limit(events: usize) -> Duration {
    3 * LIMIT + SECOND * u32::try_from(events / 100).unwrap()
}

#[test]
fn four_processes_that_publish_and_work_at_once_have_each_effect_exactly_once() {
    let events = number("POSTBOX_EVENTS", 4_000);
    let share = events / PROCESSES / PUBLISHERS;
    let dir = tempfile::tempdir().unwrap();
    let (path, outside) = (dir.path().join("app.db"), dir.path().join("outside.txt"));
    let bus = Postbox::open(&path).unwrap();
    make_effects(&bus);
    bus.close().unwrap();

    let start = Instant::now();
    let mut processes: Vec<Process> = (0..PROCESSES)
        .map(|number| {
            let mut command = child("processes::child_publishes_and_works", &path);
            command.env("OUTSIDE", &outside);
            command.env("FIRST", (number * PUBLISHERS * share).to_string()).env("SHARE", share.to_string());
            Process::spawn(command)
        })
        .collect();
    let mut pipes: Vec<_> = processes.iter_mut().map(lines_of).collect();
    let mut busy = 0;
    for lines in &mut pipes {
        let told = next_said(lines, "published, told to wait: ").expect("it has published its share");
        busy += told.parse::<u64>().unwrap();
    }
    let published = start.elapsed();
    for process in &mut processes {
        drop(process.0.stdin.take());
    }
    for (process, lines) in processes.iter_mut().zip(&mut pipes) {
        let mut said = String::new();
        lines.read_to_string(&mut said).unwrap();
        assert!(process.0.wait().unwrap().success(), "{said}");
    }
    let total = PROCESSES * PUBLISHERS * share;
    eprintln!(
        "{total} events: published after {published:?} ({busy} times Busy), all done after {:?}",
        start.elapsed()
    );

    let numbers: Vec<usize> = (0..total).collect();
    assert_each_effect_once(&path, &numbers);
    let lines = fs::read_to_string(&outside).unwrap();
    let mut reached: Vec<usize> = lines.lines().map(|line| line.parse().unwrap()).collect();
    reached.sort_unstable();
    reached.dedup();
    assert!(reached == numbers, "{} of {total} reached the plain consumer", reached.len());
    let conn = raw(&path);
    let worked = integer(&conn, "SELECT count(DISTINCT pid) FROM effect");
    assert_eq!(worked, 4, "processes that worked");
    drop(conn);
    assert_eq!(listing(dir.path()), ["app.db", "outside.txt"]);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_publishes_and_works() {
    let (Some(path), Some(outside)) = (given("FILE"), given("OUTSIDE")) else { return };
    let path = Path::new(&path);
    let (first, share) = (number("FIRST", 0), number("SHARE", 0));
    let bus = Postbox::open(path).unwrap();
    let outside = fs::OpenOptions::new().create(true).append(true).open(outside).unwrap();
    bus.subscribe_many([
        Subscription::transactional("work", "inside", write_effect),
        Subscription::new("work", "outside", move |event: &Event, _: &Context<'_>| -> HandlerResult {
            (&outside).write_all(format!("{}\n", event.payload()["n"]).as_bytes())?;
            Ok(())
        }),
    ])
    .unwrap();
    let worker = bus.start().unwrap();
    let busy: usize = thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let bus = &bus;
                scope.spawn(move || publish_share(bus, path, first + publisher * share, share))
            })
            .collect();
        publishers.into_iter().map(|publisher| publisher.join().unwrap()).sum()
    });
    say(&format!("published, told to wait: {busy}"));
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    wait_until_all_is_done(&bus, limit(share * PUBLISHERS * PROCESSES));
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
}

/// In every way there is to publish. How often it was told that the file was busy: then nothing was written, and it is
/// published again.
fn publish_share(bus: &Postbox, path: &Path, first: usize, share: usize) -> usize {
    let mut app = raw(path);
    let mut busy = 0;
    let mut next = first;
    while next < first + share {
        let several = 8.min(first + share - next);
        let (published, tried) = match next % 4 {
            0 => (several, bus.publish_all((next..next + several).map(work)).map(drop)),
            1 => (1, bus.transaction(|tx| tx.publish(work(next)).map(drop))),
            2 => {
                let in_app =
                    app.transaction_with_behavior(TransactionBehavior::Immediate).map_err(Error::from);
                (1, in_app.and_then(|tx| publish_in(bus, tx, next)))
            }
            _ => (1, bus.publish(work(next)).map(drop)),
        };
        match tried {
            Ok(()) => next += published,
            Err(Error::Busy { .. }) => busy += 1,
            Err(error) => panic!("event {next}: {error}"),
        }
    }
    busy
}

fn publish_in(bus: &Postbox, tx: rusqlite::Transaction<'_>, n: usize) -> Result<()> {
    bus.publish_in(&tx, work(n))?;
    tx.commit()?;
    bus.notify();
    Ok(())
}
