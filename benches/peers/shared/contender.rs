//! What every contender shares: the work, its timing and its checks. Each contender is a program of its own, since two of
//! them cannot link their two versions of SQLite into one; this file is a module of each, by `#[path]`.
//!
//! A contender does one column on one fresh file and prints one line of JSON; the driver runs them in turn.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use protocol::Outcome;
pub use protocol::{Column, Description, Variant};
use serde::{Deserialize, Serialize};

#[path = "protocol.rs"]
mod protocol;

/// A library under test. Dropping it closes it.
pub trait Contender: Sized {
    /// What can be run, and how it is set.
    fn describe() -> Description;

    /// Opens it on a new file, in a folder of its own.
    fn open(variant: &str, file: &Path) -> Self;

    /// Stores the events in turn, each in a commit of its own, from one thread or task.
    fn one_by_one(&self, events: Vec<Payload>);

    /// The same from one thread or task for each part, at once.
    fn at_once(&self, parts: Vec<Vec<Payload>>);

    /// Stores each batch in one transaction.
    fn in_batches(&self, batches: Vec<Vec<Payload>>);

    /// Starts the worker, whose handler tells `seen` of each event.
    fn start(&mut self, seen: Arc<Seen>);

    /// How many stored events are not yet recorded as handled.
    fn unsettled(&self) -> usize;
}

/// A row whose commits are synced, in every column.
pub fn synced(name: &str, durability: &str, worker: &str) -> Variant {
    Variant {
        name: name.to_owned(),
        columns: Column::ALL.to_vec(),
        durability: durability.to_owned(),
        worker: worker.to_owned(),
        unsynced: false,
    }
}

/// About 220 bytes as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Payload {
    pub number: u32,
    pub invoice_id: String,
    pub customer: String,
    pub currency: String,
    pub total_cents: u64,
    pub due_in_days: u32,
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub article: String,
    pub count: u32,
}

impl Payload {
    fn new(number: usize) -> Self {
        let number = u32::try_from(number).expect("fewer than four billion events");
        Payload {
            number,
            invoice_id: format!("inv-2026-{number:08}"),
            customer: format!("customer-{:06}", number % 1_000),
            currency: "EUR".to_owned(),
            total_cents: 12_550 + u64::from(number % 9_000),
            due_in_days: 30,
            lines: vec![
                Line { article: "hinge, brass".to_owned(), count: 12 },
                Line { article: "screw, 4 x 40".to_owned(), count: 144 },
            ],
        }
    }
}

/// What the handlers have been given. A handler takes the time in its first line, decodes the payload as the library has
/// it, and says which number it was: so every event is known to have arrived, and to have arrived once.
pub struct Seen {
    at: Vec<OnceLock<Instant>>,
    left: AtomicUsize,
    repeated: AtomicUsize,
    all: (Mutex<bool>, Condvar),
}

impl Seen {
    fn new(events: usize) -> Arc<Self> {
        Arc::new(Seen {
            at: (0..events).map(|_| OnceLock::new()).collect(),
            left: AtomicUsize::new(events),
            repeated: AtomicUsize::new(0),
            all: (Mutex::new(false), Condvar::new()),
        })
    }

    pub fn event(&self, at: Instant, number: u32) {
        if self.at[number as usize].set(at).is_err() {
            self.repeated.fetch_add(1, Ordering::Relaxed);
        } else if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.all.0.lock().expect("nobody panics with the lock") = true;
            self.all.1.notify_all();
        }
    }

    fn wait_for_all(&self) {
        let all = self.all.0.lock().expect("nobody panics with the lock");
        let (all, _) = self.all.1.wait_timeout_while(all, LIMIT, |all| !*all).expect("nobody panics");
        assert!(*all, "{} events did not arrive within {LIMIT:?}", self.left.load(Ordering::Acquire));
    }

    fn wait_for(&self, number: usize) -> Instant {
        let asked = Instant::now();
        loop {
            if let Some(at) = self.at[number].get() {
                return *at;
            }
            assert!(asked.elapsed() < LIMIT, "event {number} did not arrive within {LIMIT:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Longer than any column takes. A contender that hangs ends after it.
const LIMIT: Duration = Duration::from_mins(10);

/// The body of every contender's `main`.
pub fn main<C: Contender>() {
    thread::spawn(|| {
        thread::sleep(LIMIT);
        eprintln!("not done within {LIMIT:?}");
        process::exit(1);
    });
    let mut arguments = env::args().skip(1);
    let line = match arguments.next().as_deref() {
        Some("describe") => serde_json::to_string(&C::describe()),
        Some("run") => {
            let arguments: HashMap<String, String> =
                std::iter::from_fn(|| Some((arguments.next()?, arguments.next()?))).collect();
            serde_json::to_string(&run::<C>(&Run::of(&arguments)))
        }
        _ => panic!("this program is run by the driver in benches/peers"),
    };
    println!("{}", line.expect("plain data is JSON"));
}

struct Run {
    variant: String,
    column: Column,
    events: usize,
    threads: usize,
    batch: usize,
    dir: PathBuf,
}

impl Run {
    fn of(arguments: &HashMap<String, String>) -> Self {
        let text = |name: &str| arguments.get(name).unwrap_or_else(|| panic!("{name} is missing")).clone();
        let number = |name: &str| text(name).parse().unwrap_or_else(|_| panic!("{name} is no number"));
        Run {
            variant: text("--variant"),
            column: Column::from_key(&text("--column")).expect("a column"),
            events: number("--events"),
            threads: number("--threads"),
            batch: number("--batch"),
            dir: text("--dir").into(),
        }
    }
}

fn run<C: Contender>(run: &Run) -> Outcome {
    let _ = fs::remove_dir_all(&run.dir);
    fs::create_dir_all(&run.dir).unwrap_or_else(|error| panic!("create {}: {error}", run.dir.display()));
    let contender = C::open(&run.variant, &run.dir.join("box.db"));
    let events: Vec<Payload> = (0..run.events).map(Payload::new).collect();
    let outcome = match run.column {
        Column::OneByOne => stored(run, &contender, || contender.one_by_one(events)),
        Column::AtOnce => {
            let parts = parts(events, run.events.div_ceil(run.threads));
            stored(run, &contender, || contender.at_once(parts))
        }
        Column::InBatches => {
            let batches = parts(events, run.batch);
            stored(run, &contender, || contender.in_batches(batches))
        }
        Column::Drain => {
            contender.in_batches(parts(events, run.batch));
            drain(run, contender)
        }
        Column::Latency => latency(contender, events),
    };
    let _ = fs::remove_dir_all(&run.dir);
    outcome
}

fn parts(events: Vec<Payload>, size: usize) -> Vec<Vec<Payload>> {
    events.chunks(size.max(1)).map(<[Payload]>::to_vec).collect()
}

fn stored<C: Contender>(run: &Run, contender: &C, work: impl FnOnce()) -> Outcome {
    let began = Instant::now();
    work();
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(contender.unsettled(), run.events, "what was stored is in the file");
    Outcome { seconds, repeated: 0, after_return_us: Vec::new(), after_call_us: Vec::new() }
}

/// Until every event is recorded as handled, not only until the last handler has run.
fn drain<C: Contender>(run: &Run, mut contender: C) -> Outcome {
    assert_eq!(contender.unsettled(), run.events, "the backlog is in the file");
    let seen = Seen::new(run.events);
    let began = Instant::now();
    contender.start(Arc::clone(&seen));
    seen.wait_for_all();
    while contender.unsettled() > 0 {
        assert!(began.elapsed() < LIMIT, "{} events were not settled", contender.unsettled());
        thread::sleep(Duration::from_micros(200));
    }
    let seconds = began.elapsed().as_secs_f64();
    let repeated = seen.repeated.load(Ordering::Acquire);
    Outcome { seconds, repeated, after_return_us: Vec::new(), after_call_us: Vec::new() }
}

/// One event at a time, to a worker that has had nothing to do for 20 to 30 ms: by turns of another length, so that no
/// poll's rhythm is met.
fn latency<C: Contender>(mut contender: C, events: Vec<Payload>) -> Outcome {
    /// The first ones warm the caches up.
    const UNCOUNTED: usize = 5;
    let seen = Seen::new(events.len());
    contender.start(Arc::clone(&seen));
    thread::sleep(Duration::from_millis(200));
    let (mut after_return_us, mut after_call_us) = (Vec::new(), Vec::new());
    for (index, event) in events.into_iter().enumerate() {
        let event = vec![event];
        let called = Instant::now();
        contender.one_by_one(event);
        let returned = Instant::now();
        thread::sleep(Duration::from_micros(20_000 + (index as u64 * 7_919) % 10_000));
        let handled = seen.wait_for(index);
        if index >= UNCOUNTED {
            after_return_us.push(signed_us(returned, handled));
            after_call_us.push(signed_us(called, handled));
        }
    }
    Outcome { seconds: 0.0, repeated: seen.repeated.load(Ordering::Acquire), after_return_us, after_call_us }
}

fn signed_us(from: Instant, to: Instant) -> f64 {
    let later = to.saturating_duration_since(from).as_secs_f64();
    let earlier = from.saturating_duration_since(to).as_secs_f64();
    (later - earlier) * 1e6
}
