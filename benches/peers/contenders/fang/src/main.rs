//! fang, its async queue on SQLite.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use contender::{Column, Contender, Description, Payload, Seen, Variant, synced};
use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use fang::asynk::async_queue::{AsyncQueue, AsyncQueueable};
use fang::asynk::async_worker_pool::AsyncWorkerPool;
use fang::serde::{Deserialize, Serialize};
use fang::{AsyncRunnable, FangError, SleepParams, async_trait, typetag};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::runtime::Runtime;

#[path = "../../../shared/contender.rs"]
mod contender;

/// Two connections would get in each other's way: SQLite has one writer, and sqlx waits for it by sleeping.
const CONNECTIONS: u32 = 1;
/// fetch_and_touch_task reads and then writes without a transaction, so two workers can take the same task.
const WORKERS: u32 = 1;
const WORKER: &str = "1 worker, polls every 1 ms (its default is 5 s), RemoveAll";

struct Fang {
    queue: AsyncQueue,
    pool: SqlitePool,
    runtime: Runtime,
}

impl Contender for Fang {
    fn describe() -> Description {
        let columns = Column::ALL.into_iter().filter(|column| *column != Column::InBatches).collect();
        let variant = synced("fang", "WAL (forced from outside), FULL", WORKER);
        Description {
            library: "fang".to_owned(),
            sqlite: sqlite_version(),
            variants: vec![Variant { columns, ..variant }],
        }
    }

    fn open(_variant: &str, file: &Path) -> Self {
        let mut first = SqliteConnection::establish(file.to_str().expect("UTF-8")).expect("make the file");
        // WAL stays with the file; fang's own connections leave synchronous at SQLite's default, FULL.
        first.batch_execute("PRAGMA journal_mode = WAL").expect("switch to WAL");
        fang::run_migrations_sqlite(&mut first).expect("make the table");
        drop(first);
        let runtime = Runtime::new().expect("a runtime");
        let (queue, pool) = runtime.block_on(async {
            let uri = format!("sqlite://{}", file.display());
            let mut queue = AsyncQueue::builder().uri(uri).max_pool_size(CONNECTIONS).build();
            queue.connect().await.expect("connect");
            let pool =
                SqlitePool::connect_with(SqliteConnectOptions::new().filename(file)).await.expect("open");
            let journal: String =
                sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&pool).await.expect("read");
            assert_eq!(journal, "wal");
            (queue, pool)
        });
        Fang { queue, pool, runtime }
    }

    fn one_by_one(&self, events: Vec<Payload>) {
        self.runtime.block_on(insert(self.queue.clone(), events));
    }

    fn at_once(&self, parts: Vec<Vec<Payload>>) {
        self.runtime.block_on(async {
            let tasks: Vec<_> =
                parts.into_iter().map(|part| tokio::spawn(insert(self.queue.clone(), part))).collect();
            for task in tasks {
                task.await.expect("it does not panic");
            }
        });
    }

    /// It has no call for many: this only fills the backlog.
    fn in_batches(&self, batches: Vec<Vec<Payload>>) {
        self.one_by_one(batches.into_iter().flatten().collect());
    }

    fn start(&mut self, seen: Arc<Seen>) {
        assert!(SEEN.set(seen).is_ok(), "it is started once");
        let poll = Duration::from_millis(1);
        let sleep = SleepParams::builder()
            .sleep_period(poll)
            .min_sleep_period(poll)
            .max_sleep_period(poll)
            .sleep_step(Duration::ZERO)
            .build();
        let mut pool = AsyncWorkerPool::<AsyncQueue>::builder()
            .queue(self.queue.clone())
            .number_of_workers(WORKERS)
            .sleep_params(sleep)
            .build();
        self.runtime.block_on(pool.start());
    }

    fn unsettled(&self) -> usize {
        let query = sqlx::query_scalar("SELECT count(*) FROM fang_tasks");
        let left: i64 = self.runtime.block_on(query.fetch_one(&self.pool)).expect("count");
        usize::try_from(left).expect("few")
    }
}

/// A task is given nothing of the program's but the queue.
static SEEN: OnceLock<Arc<Seen>> = OnceLock::new();

#[derive(Serialize, Deserialize)]
#[serde(crate = "fang::serde")]
struct InvoiceCreated {
    payload: Payload,
}

#[typetag::serde]
#[async_trait]
impl AsyncRunnable for InvoiceCreated {
    async fn run(&self, _queue: &dyn AsyncQueueable) -> Result<(), FangError> {
        let at = Instant::now();
        if let Some(seen) = SEEN.get() {
            seen.event(at, self.payload.number);
        }
        Ok(())
    }
}

async fn insert(queue: AsyncQueue, events: Vec<Payload>) {
    for payload in events {
        queue.insert_task(&InvoiceCreated { payload }).await.expect("insert_task");
    }
}

fn sqlite_version() -> String {
    Runtime::new().expect("a runtime").block_on(async {
        let pool = SqlitePool::connect("sqlite::memory:").await.expect("open");
        sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&pool).await.expect("ask")
    })
}

fn main() {
    contender::main::<Fang>();
}
