//! apalis with its SQLite backend.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apalis::prelude::{BackendExt, Data, Strategy, TaskSink, WorkerBuilder};
use apalis_sqlite::callback::HookCallbackListener;
use apalis_sqlite::{Config, SqlitePoolOptions, SqliteStorage};
use contender::{Contender, Description, Payload, Seen, Variant, synced};
use futures::StreamExt;
use sqlx::SqlitePool;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

#[path = "../../../shared/contender.rs"]
mod contender;

const SHIPPED: &str = "apalis-sqlite, as documented";

const QUEUE: &str = "invoices";
/// 10, its default, 50, 100, 500 and 2,000 drained 1.3, 1.6, 1.7, 1.5 and 0.9 thousand events a second here, of a backlog of 2,000.
const BATCH: usize = 100;
const WORKER: &str = "batch_size 100, update hook and 500 ms poll, lock_tasks off";

struct Apalis {
    worker: Option<Worker>,
    pool: SqlitePool,
    /// A pool of one connection, for many tasks: they wait for it in turn, where ten connections would sleep in SQLite's busy
    /// handler.
    single: SqlitePool,
    listener: Option<HookCallbackListener>,
    runtime: Runtime,
}

struct Worker {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Contender for Apalis {
    fn describe() -> Description {
        Description {
            library: "apalis-sqlite".to_owned(),
            sqlite: sqlite_version(),
            variants: vec![
                synced("apalis-sqlite", "WAL, FULL (its setup turns syncing off)", WORKER),
                Variant {
                    unsynced: true,
                    ..synced(SHIPPED, "WAL, OFF on whichever connection ran setup", WORKER)
                },
            ],
        }
    }

    fn open(variant: &str, file: &Path) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (pool, single, listener) = runtime.block_on(async {
            let url = format!("sqlite://{}?mode=rwc", file.display());
            if variant == SHIPPED {
                let (pool, listener) = SqliteStorage::connect_with_callback(&url).expect("open");
                SqliteStorage::setup(&pool).await.expect("setup");
                return (pool.clone(), pool, listener);
            }
            // `setup` says synchronous = OFF on the connection that it gets (apalis-sqlite 1.0.0, src/lib.rs): here one that
            // is closed again. WAL stays with the file, and sqlx leaves synchronous at SQLite's default, FULL.
            let first = SqlitePool::connect(&url).await.expect("open");
            SqliteStorage::setup(&first).await.expect("setup");
            first.close().await;
            let (pool, listener) = SqliteStorage::connect_with_callback(&url).expect("open");
            let synchronous = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&pool).await;
            let journal = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&pool).await;
            assert_eq!((synchronous.expect("read"), journal.expect("read")), (2_i64, "wal".to_owned()));
            let single = SqlitePoolOptions::new().max_connections(1).connect(&url).await.expect("open");
            (pool, single, listener)
        });
        Apalis { worker: None, pool, single, listener: Some(listener), runtime }
    }

    fn one_by_one(&self, events: Vec<Payload>) {
        self.runtime.block_on(push(storage(&self.pool), events));
    }

    fn at_once(&self, parts: Vec<Vec<Payload>>) {
        self.runtime.block_on(async {
            let tasks: Vec<_> =
                parts.into_iter().map(|part| tokio::spawn(push(storage(&self.single), part))).collect();
            for task in tasks {
                task.await.expect("it does not panic");
            }
        });
    }

    fn in_batches(&self, batches: Vec<Vec<Payload>>) {
        let mut storage = storage(&self.pool);
        self.runtime.block_on(async {
            for batch in batches {
                storage.push_bulk(batch).await.expect("push_bulk");
            }
        });
    }

    fn start(&mut self, seen: Arc<Seen>) {
        let listener = self.listener.take().expect("it is started once");
        // The README's event-driven worker.
        let strategy =
            Strategy::new().stream(listener.ready_chunks(BATCH)).interval(Duration::from_millis(500));
        let backend = storage(&self.pool).poll_with_strategy(strategy);
        let (stop, stopped) = oneshot::channel();
        let task = self.runtime.spawn(async move {
            let worker = WorkerBuilder::new("worker-1").backend(backend).data(seen).build(handle);
            worker.run_until(async { stopped.await.or(Ok::<_, std::io::Error>(())) }).await.expect("run");
        });
        self.worker = Some(Worker { stop, task });
    }

    fn unsettled(&self) -> usize {
        let query = sqlx::query_scalar("SELECT count(*) FROM Jobs WHERE status <> 'Done'");
        let left: i64 = self.runtime.block_on(query.fetch_one(&self.pool)).expect("count");
        usize::try_from(left).expect("few")
    }
}

impl Drop for Apalis {
    fn drop(&mut self) {
        self.runtime.block_on(async {
            if let Some(worker) = self.worker.take() {
                let _ = worker.stop.send(());
                let _ = tokio::time::timeout(Duration::from_secs(10), worker.task).await;
            }
            self.single.close().await;
            self.pool.close().await;
        });
    }
}

fn storage(pool: &SqlitePool) -> SqliteStorage<Payload> {
    // `lock_tasks` would write each task a second time before it runs; fetching has marked it as this worker's already.
    let config = Config::default().queue(QUEUE).batch_size(BATCH).lock_tasks(false);
    SqliteStorage::new(pool).with_config(config)
}

async fn push(mut storage: SqliteStorage<Payload>, events: Vec<Payload>) {
    for payload in events {
        storage.push(payload).await.expect("push");
    }
}

async fn handle(payload: Payload, seen: Data<Arc<Seen>>) {
    seen.event(Instant::now(), payload.number);
}

fn sqlite_version() -> String {
    Runtime::new().expect("a runtime").block_on(async {
        let pool = SqlitePool::connect("sqlite::memory:").await.expect("open");
        sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&pool).await.expect("ask")
    })
}

fn main() {
    contender::main::<Apalis>();
}
