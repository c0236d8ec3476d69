//! effectum: one thread writes everything that is queued at the moment in one transaction.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contender::{Contender, Description, Payload, Seen, Variant, synced};
use effectum::{Job, JobRunner, Queue, RunningJob, Worker};
use rusqlite::Connection;
use tokio::runtime::Runtime;

#[path = "../../../shared/contender.rs"]
mod contender;
mod full_sync;

const SHIPPED: &str = "effectum, as it ships";
const UNSYNCED: &str = "effectum, unsynced";

/// "Defaults to 1, but you will usually want to set this to a higher number" (`WorkerBuilder`): the best of 64 to 2,048 here, by
/// a little.
const CONCURRENCY: u16 = 512;
const REFILL: u16 = 448;
const WORKER: &str = "max_concurrency 512, min_concurrency 448";

struct Effectum {
    worker: Option<Worker>,
    /// Taken at the end only: it wants to be dropped inside the runtime.
    queue: Option<Arc<Queue>>,
    runtime: Runtime,
}

impl Contender for Effectum {
    fn describe() -> Description {
        Description {
            library: "effectum".to_owned(),
            sqlite: rusqlite::version().to_owned(),
            variants: vec![
                synced("effectum", "WAL, FULL (both forced from outside)", WORKER),
                synced(SHIPPED, "rollback journal, NORMAL", WORKER),
                Variant { unsynced: true, ..synced(UNSYNCED, "WAL (forced from outside), NORMAL", WORKER) },
            ],
        }
    }

    fn open(variant: &str, file: &Path) -> Self {
        if variant != SHIPPED {
            // effectum 0.7.0 sets the pragma `journal`, which does not exist; WAL is a property of the file, so it is
            // given one that has it.
            let conn = Connection::open(file).expect("make the file");
            let mode: String = conn
                .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
                .expect("switch to WAL");
            assert_eq!(mode, "wal");
        }
        if variant == "effectum" {
            full_sync::hold();
        }
        let runtime = Runtime::new().expect("a runtime");
        let queue = Some(Arc::new(runtime.block_on(Queue::new(file)).expect("open")));
        Effectum { worker: None, queue, runtime }
    }

    fn one_by_one(&self, events: Vec<Payload>) {
        self.runtime.block_on(add(self.queue(), events));
    }

    fn at_once(&self, parts: Vec<Vec<Payload>>) {
        self.runtime.block_on(async {
            let tasks: Vec<_> = parts.into_iter().map(|part| tokio::spawn(add(self.queue(), part))).collect();
            for task in tasks {
                task.await.expect("it does not panic");
            }
        });
    }

    fn in_batches(&self, batches: Vec<Vec<Payload>>) {
        self.runtime.block_on(async {
            for batch in &batches {
                self.queue().add_jobs(batch.iter().map(job).collect()).await.expect("add_jobs");
            }
        });
    }

    fn start(&mut self, seen: Arc<Seen>) {
        let runner = JobRunner::builder("invoice.created", handle).build();
        let worker = self.runtime.block_on(
            Worker::builder(&self.queue(), Shared(seen))
                .jobs([runner])
                .max_concurrency(CONCURRENCY)
                .min_concurrency(REFILL)
                .build(),
        );
        self.worker = Some(worker.expect("build the worker"));
    }

    fn unsettled(&self) -> usize {
        let active = self.runtime.block_on(self.queue().num_active_jobs()).expect("count");
        usize::try_from(active.pending + active.running).expect("few")
    }
}

impl Drop for Effectum {
    fn drop(&mut self) {
        self.runtime.block_on(async {
            if let Some(worker) = self.worker.take() {
                worker.unregister(Some(Duration::from_secs(10))).await.expect("stop the worker");
            }
            if let Some(queue) = self.queue.take() {
                queue.close(Duration::from_secs(10)).await.expect("close");
            }
        });
    }
}

impl Effectum {
    fn queue(&self) -> Arc<Queue> {
        Arc::clone(self.queue.as_ref().expect("it is taken at the end only"))
    }
}

async fn add(queue: Arc<Queue>, events: Vec<Payload>) {
    for payload in &events {
        queue.add_job(job(payload)).await.expect("add_job");
    }
}

fn job(payload: &Payload) -> Job {
    Job::builder("invoice.created").json_payload(payload).expect("a payload is JSON").build()
}

#[derive(Clone)]
struct Shared(Arc<Seen>);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

async fn handle(job: RunningJob, seen: Shared) -> Result<(), effectum::Error> {
    let at = Instant::now();
    seen.0.event(at, job.json_payload::<Payload>()?.number);
    Ok(())
}

fn main() {
    contender::main::<Effectum>();
}
