//! Measures the library against floors of raw rusqlite, alternately in one run: figure, floor, ratio, goal, spread.
//!
//! ```console
//! $ cargo bench --bench goals                       # all of it, under ten minutes
//! $ cargo bench --bench goals -- --quick            # a short form, under two minutes
//! $ cargo bench --bench goals -- backlog            # the sections whose name contains the word
//! $ cargo bench --bench goals -- --json goals.json  # the rows and the machine as JSON as well
//! $ cargo bench --bench goals -- --markdown         # the table as Markdown
//! ```
//! A ratio is the median of the ratios of neighbouring measurements, which a disk that slows down for a while cannot bend;
//! it need not be the quotient of the two medians beside it. Nothing here passes or fails on time: machines are noisy.
#![allow(missing_docs, reason = "a program")]

mod cache;
mod floor;
mod machine;
mod measure;
mod options;
mod proc;
mod report;
mod sections;
mod table;
mod work;

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use self::cache::SharedCache;
use self::machine::Machine;
use self::options::Options;
use self::report::Report;

/// How much is measured.
struct Scale {
    /// Of what takes long.
    rounds: usize,
    /// Of what is measured in short turns.
    slices: usize,
    /// Events published one by one, a slice.
    singles: usize,
    /// Calls of each of many threads, a round.
    calls: usize,
    /// Events of a backlog.
    backlog: usize,
    /// Rows of a long history.
    history: usize,
    /// Events to an idle worker, a round.
    wakes: usize,
    idle_seconds: u32,
}

const FULL: Scale = Scale {
    rounds: 7,
    slices: 42,
    singles: 400,
    calls: 500,
    backlog: 100_000,
    history: 1_000_000,
    wakes: 500,
    idle_seconds: 60,
};
const QUICK: Scale = Scale {
    rounds: 3,
    slices: 21,
    singles: 150,
    calls: 200,
    backlog: 30_000,
    history: 100_000,
    wakes: 200,
    idle_seconds: 10,
};

/// A section's own folder, which goes with it.
struct Bench {
    scale: &'static Scale,
    folder: TempDir,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn in_new_folder(&self) -> Bench {
        Bench { scale: self.scale, folder: folder_in(self.folder.path()) }
    }
}

type Section = (&'static str, fn(&Bench, &mut Report));

const SECTIONS: &[Section] = &[
    ("publish", sections::publish::one_and_many_threads),
    ("publish_all", sections::batches::batches),
    ("backlog", sections::backlog::backlog),
    ("history", sections::history::history),
    ("waiting", sections::waiting::waiting),
    ("sagas", sections::sagas::sagas),
    ("typed", sections::typed::typed),
    ("latency", sections::latency::latency),
    ("idle", sections::idle::idle),
    ("memory", sections::memory::memory),
    ("bytes", sections::bytes::bytes_on_disk),
];

fn main() {
    let options = Options::of_this_run();
    if let Some(rows) = options.resident {
        return sections::memory::print_resident(rows, &folder());
    }
    let json = options.json.as_ref().map(|path| (path, report::create(path)));
    let mut report = Report::begin(Machine::here(), options.quick, options.markdown);
    let _cache = SharedCache::widen(folder());
    for (name, section) in SECTIONS {
        if options.wants(name) {
            report.section(name);
            section(
                &Bench { scale: if options.quick { &QUICK } else { &FULL }, folder: folder() },
                &mut report,
            );
        }
    }
    report.end();
    if let Some((path, file)) = json {
        report.write_json(path, file);
    }
}

/// In the target folder: /tmp may be a tmpfs, which syncs for nothing.
fn folder() -> TempDir {
    folder_in(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

fn folder_in(parent: &Path) -> TempDir {
    std::fs::create_dir_all(parent).expect("the target folder");
    tempfile::tempdir_in(parent).expect("a temporary folder")
}
