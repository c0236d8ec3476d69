//! Measures the library against floors of raw rusqlite, alternately in one run, and prints figure, floor, ratio, spread.
//!
//! ```console
//! $ cargo bench --bench goals             # all of it
//! $ cargo bench --bench goals -- --quick  # a short form
//! $ cargo bench --bench goals -- backlog  # the sections whose name contains the word
//! ```
//! Nothing here passes or fails on time: machines are noisy.
#![allow(missing_docs, reason = "a program")]

mod floor;
mod sections;
mod table;

use std::path::{Path, PathBuf};

use postbox::{NewEvent, Postbox, Settings};
use serde_json::{Value, json};

/// How much is measured.
struct Scale {
    rounds: usize,
    /// Events published one by one, a round.
    singles: usize,
    /// Events of a backlog.
    backlog: usize,
    /// Rows of a long history.
    history: usize,
}

const FULL: Scale = Scale { rounds: 7, singles: 3_000, backlog: 100_000, history: 1_000_000 };
const QUICK: Scale = Scale { rounds: 3, singles: 1_000, backlog: 30_000, history: 100_000 };

struct Bench {
    scale: Scale,
    folder: tempfile::TempDir,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

type Section = (&'static str, fn(&Bench));

const SECTIONS: &[Section] = &[
    ("publish", sections::publish::one_and_many_threads),
    ("publish_all", sections::publish::batches),
    ("backlog", sections::deliver::backlog),
    ("history", sections::history::history),
    ("latency", sections::deliver::latency),
    ("idle", sections::resources::idle),
    ("memory", sections::resources::memory),
    ("bytes", sections::resources::bytes_on_disk),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let bench = Bench {
        scale: if quick { QUICK } else { FULL },
        folder: tempfile::tempdir().expect("a temporary folder"),
    };
    println!(
        "postbox {}, SQLite {}, {} cores, {}",
        env!("CARGO_PKG_VERSION"),
        postbox::rusqlite::version(),
        std::thread::available_parallelism().map_or(1, usize::from),
        if quick { "quick" } else { "full" },
    );
    table::head();
    for (name, section) in SECTIONS {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            section(&bench);
        }
    }
}

/// About 220 bytes as JSON.
fn payload(number: usize) -> Value {
    json!({
        "id": number,
        "customer": "Miller and Daughters, Ltd.",
        "total": 1_234.56,
        "currency": "EUR",
        "lines": [{ "sku": "A-1", "quantity": 2, "price": 12.5 }, { "sku": "B-7", "quantity": 1, "price": 99.9 }],
        "note": "payment within thirty days, thank you",
    })
}

/// Names of about 40 bytes together.
fn event(number: usize) -> NewEvent {
    NewEvent::new("invoice.created", "finance", "Invoice", format!("inv-{number:07}"))
        .payload(payload(number))
}

fn open(path: &Path) -> Postbox {
    let settings = Settings { batch_size: 500, startup_drain_batch_size: 500, ..Settings::default() };
    Postbox::builder().settings(settings).open(path).expect("a box")
}

fn fill(postbox: &Postbox, events: usize) {
    for first in (0..events).step_by(1_000) {
        let last = (first + 1_000).min(events);
        postbox.publish_all((first..last).map(event)).expect("published");
    }
}
