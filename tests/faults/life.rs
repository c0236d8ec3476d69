//! One life of an application, as the harnesses cut it short: it opens a file of version 1 (and so upgrades it), publishes from
//! two threads in every way there is and from four more at the same moments, handles by a plain and by a transactional consumer, makes backups meanwhile, shuts down,
//! restores a backup and closes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use postbox::rusqlite::{self, Connection, TransactionBehavior, params};
use postbox::uuid::Uuid;
use postbox::{
    Backoff, Context, Event, EventId, HandlerError, HandlerResult, NewEvent, Postbox, Result, Settings,
    Subscription, Tx,
};
use serde_json::json;

use crate::support::LIMIT;

/// The application's file, its backup, and another that the backup is restored to.
pub(crate) struct Files {
    pub(crate) app: PathBuf,
    pub(crate) copy: PathBuf,
    pub(crate) restored: PathBuf,
}

impl Files {
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Files {
            app: folder.join("app.db"),
            copy: folder.join("copy.db"),
            restored: folder.join("restored.db"),
        }
    }
}

/// Sees, from outside of the files, what a life was told and what it did.
pub(crate) trait Witness: Send + Sync + 'static {
    /// `publish`, or the commit of the transaction around it, said Ok.
    fn acknowledged(&self, id: EventId);
    /// The plain handler has begun.
    fn handled(&self, id: EventId);
    /// A backup, or what was restored from it, has taken the place of the old file.
    fn replaced(&self, what: Replaced);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replaced {
    Copy,
    Restored,
}

/// How the application is built: rightly, or with a mistake that a harness must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    Sound,
    /// The application's row and the event are committed one after the other.
    DualWrite,
    /// A plain handler writes the effect, on a connection of its own.
    EffectOutside,
    /// Events are published on a connection that does not sync.
    Unsynced,
}

pub(crate) const PLACED: &str = "order.placed";
const NOTED: &str = "order.noted";

pub(crate) const EFFECTS: &str = "warehouse";
const OUTSIDE: &str = "mail";

/// A file as version 1 left it, with events in it that were acknowledged.
pub(crate) fn make_file(path: &Path) -> Vec<String> {
    let conn = Connection::open(path).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    conn.execute_batch(include_str!("../data/schema-1.sql")).unwrap();
    conn.execute_batch(
        "CREATE TABLE placed (event TEXT NOT NULL); CREATE TABLE effect (event TEXT NOT NULL);",
    )
    .unwrap();
    let ids: Vec<Uuid> =
        (1..=6).map(|number| Uuid::from_u128(number << 64 | 0x7000_8000_0000_0000_0000)).collect();
    for (number, id) in (0_i64..).zip(&ids) {
        let (status, lease, processed_at) = match number {
            0 | 1 => ("processed", 0, Some(3)),
            2 => ("processing", 77_i64 << 32 | 1, None),
            _ => ("pending", i64::MIN, None),
        };
        conn.execute(
            "INSERT INTO outbox_event (id, status, attempt_count, available_at, lease_id, created_at, updated_at, processed_at,
                                       event_name, source_module, aggregate_type, aggregate_id, payload)
             VALUES (?1, ?2, ?2 <> 'pending', 3, ?3, 1, 2, ?4, ?5, 'shop', 'Order', ?6, '{\"number\":1}')",
            params![id, status, lease, processed_at, PLACED, number.to_string()],
        )
        .unwrap();
        conn.execute("INSERT INTO placed VALUES (?1)", [id.to_string()]).unwrap();
        if status == "processed" {
            conn.execute("INSERT INTO effect VALUES (?1)", [id.to_string()]).unwrap();
            for consumer in [EFFECTS, OUTSIDE] {
                conn.execute(
                    "INSERT INTO inbox_event (event, consumer_name, status, processed_at, created_at, updated_at)
                     VALUES (?1, ?2, 'processed', 3, 3, 3)",
                    params![number + 1, consumer],
                )
                .unwrap();
            }
        }
    }
    ids.iter().map(Uuid::to_string).collect()
}

/// Attempts are lost to kills, not to handlers.
pub(crate) fn patient() -> Settings {
    Settings { max_attempts: 1_000, ..Settings::default() }
}

pub(crate) fn subscribe(bus: &Postbox, app: &Path, build: Build, witness: Arc<dyn Witness>) {
    let mut consumers = vec![
        Subscription::new(PLACED, OUTSIDE, {
            let witness = Arc::clone(&witness);
            move |event: &Event, _: &Context<'_>| -> HandlerResult {
                witness.handled(event.id());
                let number = event.payload()["number"].as_u64();
                if number.is_some_and(|number| number % 5 == 0) && event.attempt() == 1 {
                    return Err(HandlerError::retry("not the first time"));
                }
                Ok(())
            }
        })
        .backoff(Backoff::fixed(Duration::from_millis(1))),
        Subscription::new(NOTED, OUTSIDE, move |event: &Event, _: &Context<'_>| -> HandlerResult {
            witness.handled(event.id());
            Ok(())
        }),
    ];
    if build == Build::EffectOutside {
        let app = app.to_owned();
        consumers.push(Subscription::new(
            PLACED,
            EFFECTS,
            move |event: &Event, _: &Context<'_>| -> HandlerResult {
                let conn = connection(&app)?;
                conn.execute("INSERT INTO effect VALUES (?1)", [event.id().to_string()])?;
                Ok(())
            },
        ));
    } else {
        consumers.push(Subscription::transactional(
            PLACED,
            EFFECTS,
            |event: &Event, tx: &Tx<'_>| -> HandlerResult {
                tx.execute("INSERT INTO effect VALUES (?1)", [event.id().to_string()])?;
                tx.publish(NewEvent::new(NOTED, "warehouse", "Order", event.aggregate_id()))?;
                Ok(())
            },
        ));
    }
    bus.subscribe_many(consumers).unwrap();
}

fn connection(app: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(app)?;
    conn.busy_timeout(LIMIT)?;
    Ok(conn)
}

/// Threads that publish by themselves at the same moment.
const BURST: usize = 4;

/// How long a life is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    /// Orders that each of the two threads places.
    pub(crate) orders: u64,
}

/// From the opening of the file to the end; panics on any error.
pub(crate) fn live(files: &Files, build: Build, length: Length, witness: &Arc<dyn Witness>) {
    let bus = Postbox::builder().settings(patient()).handler_threads(2).open(&files.app).unwrap();
    subscribe(&bus, &files.app, build, Arc::clone(witness));
    let worker = bus.start().unwrap();
    let number = AtomicU64::new(1);
    let together = Barrier::new(BURST);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| place_orders(&bus, files, build, length, &number, &**witness));
        }
        // All at the same moment, so that they share commits.
        for _ in 0..BURST {
            scope.spawn(|| {
                for _ in 0..length.orders / 2 {
                    together.wait();
                    witness.acknowledged(bus.publish(NewEvent::new(NOTED, "shop", "Order", "0")).unwrap());
                }
            });
        }
        bus.backup(&files.copy).unwrap();
        witness.replaced(Replaced::Copy);
    });
    bus.backup(&files.copy).unwrap();
    let report = worker.shutdown(LIMIT).unwrap();
    assert!(report.clean);
    // The rest by hand, as a second start of the program.
    bus.close().unwrap();
    postbox::restore(&files.copy, &files.restored).unwrap();
    witness.replaced(Replaced::Restored);
    let bus = Postbox::builder().settings(patient()).open(&files.app).unwrap();
    subscribe(&bus, &files.app, build, Arc::clone(witness));
    bus.drain().unwrap();
    bus.close().unwrap();
}

fn place_orders(
    bus: &Postbox,
    files: &Files,
    build: Build,
    length: Length,
    number: &AtomicU64,
    witness: &dyn Witness,
) {
    let mut conn = connection(&files.app).unwrap();
    if build == Build::Unsynced {
        conn.execute_batch("PRAGMA synchronous = OFF").unwrap();
    }
    for _ in 0..length.orders {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let order =
            NewEvent::new(PLACED, "shop", "Order", number.to_string()).payload(json!({ "number": number }));
        let id = match (build, number % 4) {
            (Build::Unsynced, _) | (Build::Sound | Build::EffectOutside, 1) => {
                publish_in(bus, &mut conn, order)
            }
            (Build::DualWrite, _) => {
                let id = bus.publish(order).unwrap();
                witness.acknowledged(id);
                conn.execute("INSERT INTO placed VALUES (?1)", [id.to_string()]).unwrap();
                id
            }
            (_, 2) => publish_with_row(bus, order.idempotency_key(format!("order {number}"))),
            (_, 3) => {
                // An order that is called off: neither row nor event may ever be seen.
                let called_off = bus.transaction(|tx| -> Result<()> {
                    let id = tx.publish(order.clone())?;
                    tx.execute("INSERT INTO placed VALUES (?1)", [id.to_string()])?;
                    Err(postbox::Error::from(rusqlite::Error::QueryReturnedNoRows))
                });
                assert!(called_off.is_err());
                bus.publish(NewEvent::new(NOTED, "shop", "Order", number.to_string())).unwrap()
            }
            _ => publish_with_row(bus, order),
        };
        witness.acknowledged(id);
    }
}

fn publish_with_row(bus: &Postbox, order: NewEvent) -> EventId {
    bus.transaction(|tx| -> Result<EventId> {
        let id = tx.publish(order)?;
        tx.execute("INSERT INTO placed VALUES (?1)", [id.to_string()])?;
        Ok(id)
    })
    .unwrap()
}

fn publish_in(bus: &Postbox, conn: &mut Connection, order: NewEvent) -> EventId {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let id = bus.publish_in(&tx, order).unwrap();
    tx.execute("INSERT INTO placed VALUES (?1)", [id.to_string()]).unwrap();
    tx.commit().unwrap();
    id
}
