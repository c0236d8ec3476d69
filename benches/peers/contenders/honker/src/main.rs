//! honker: a queue and its outbox share one table; this is the queue.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use contender::{Column, Contender, Description, Payload, Seen, Variant, synced};
use honker::{Database, EnqueueOpts, OpenOptions, Queue, QueueOpts};

#[path = "../../../shared/contender.rs"]
mod contender;

const SHM: &str = "honker, shm watcher";
const UNSYNCED: &str = "honker, unsynced";

/// Its documentation names no size. Claims of 100, 500, 1,000, 2,000 and 5,000 drained 37, 89, 114, 122 and 113 thousand
/// events a second here.
const CLAIM: i64 = 2_000;
const WORKER: &str = "claim_batch of 2,000 and ack_batch, one thread";

struct Honker {
    worker: Option<Worker>,
    queue: Queue,
    db: Database,
}

struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Contender for Honker {
    fn describe() -> Description {
        let full = "WAL, FULL (its default is NORMAL)";
        Description {
            library: "honker".to_owned(),
            sqlite: rusqlite::version().to_owned(),
            variants: vec![
                synced("honker", full, WORKER),
                Variant { columns: vec![Column::Latency], ..synced(SHM, full, WORKER) },
                Variant { unsynced: true, ..synced(UNSYNCED, "WAL, NORMAL (its default)", WORKER) },
            ],
        }
    }

    fn open(variant: &str, file: &Path) -> Self {
        let options = OpenOptions::default();
        // Looks at the WAL index every 0.1 ms, where the default asks for data_version every millisecond: "experimental"
        // (honker-core 0.5.0, WatcherBackend).
        let options =
            if variant == SHM { options.watcher_backend("shm").expect("compiled in") } else { options };
        let db = Database::open_with_options(file, options).expect("open");
        // honker-core 0.5.0, DEFAULT_PRAGMAS: WAL, NORMAL, a checkpoint every 10,000 pages, 32 MB of cache.
        let wanted = if variant == UNSYNCED { 1 } else { 2 };
        db.with_conn(|conn| {
            conn.pragma_update(None, "synchronous", wanted).expect("set");
            let set: i64 = conn.pragma_query_value(None, "synchronous", |row| row.get(0)).expect("read");
            let journal: String =
                conn.pragma_query_value(None, "journal_mode", |row| row.get(0)).expect("read");
            assert_eq!((set, journal.as_str()), (wanted, "wal"));
        });
        let queue = db.queue("invoices", QueueOpts::default());
        Honker { worker: None, queue, db }
    }

    fn one_by_one(&self, events: Vec<Payload>) {
        for payload in &events {
            self.queue.enqueue(payload, EnqueueOpts::default()).expect("enqueue");
        }
    }

    /// Through one handle: "Open additional `Database` instances for parallel readers", and these are writers.
    fn at_once(&self, parts: Vec<Vec<Payload>>) {
        thread::scope(|scope| {
            for part in parts {
                scope.spawn(|| self.one_by_one(part));
            }
        });
    }

    fn in_batches(&self, batches: Vec<Vec<Payload>>) {
        for batch in &batches {
            let tx = self.db.transaction().expect("begin");
            for payload in batch {
                self.queue.enqueue_tx(&tx, payload, EnqueueOpts::default()).expect("enqueue");
            }
            tx.commit().expect("commit");
        }
    }

    /// honker has no worker of its own in Rust: this is its `ClaimWaker`'s loop with a batch for the one job.
    fn start(&mut self, seen: Arc<Seen>) {
        let stop = Arc::new(AtomicBool::new(false));
        let (queue, stopped) = (self.queue.clone(), Arc::clone(&stop));
        let events = self.db.update_events();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let jobs = queue.claim_batch("worker-1", CLAIM).expect("claim");
                if jobs.is_empty() {
                    events.recv_timeout(Duration::from_millis(500)).expect("the watcher lives");
                    continue;
                }
                let mut ids = Vec::with_capacity(jobs.len());
                for job in &jobs {
                    let at = Instant::now();
                    seen.event(at, job.payload_as::<Payload>().expect("a payload").number);
                    ids.push(job.id);
                }
                let acked = queue.ack_batch(&ids, "worker-1").expect("ack");
                assert_eq!(acked, i64::try_from(ids.len()).expect("few"));
            }
        });
        self.worker = Some(Worker { stop, thread: Some(thread) });
    }

    fn unsettled(&self) -> usize {
        let live: i64 = self.db.with_conn(|conn| {
            conn.query_row("SELECT count(*) FROM _honker_live", [], |row| row.get(0)).expect("count")
        });
        usize::try_from(live).expect("few")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn main() {
    contender::main::<Honker>();
}
