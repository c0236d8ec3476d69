//! postbox, through its public API.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use contender::{Column, Contender, Description, Payload, Seen, Variant, synced};
use postbox::rusqlite::{self, Connection};
use postbox::{Event, NewEvent, Postbox, Settings, Subscription, Worker};

#[path = "../../../shared/contender.rs"]
mod contender;

const ACKS_SYNCED: &str = "postbox, acks synced";
const UNSYNCED: &str = "postbox, published at NORMAL";
/// Claims of 100, 500, 1,000, 2,000 and 5,000 drained 88, 97, 105, 99 and 89 thousand events a second here. The default, ten,
/// suits handlers that do something; the peers are given their best as well.
const CLAIM: u32 = 1_000;
const WORKER: &str = "claims of 1,000, a thread a core";

struct Ours {
    // Dropped in this order: the worker ends before the box is closed.
    worker: Option<Worker>,
    /// The application's own connection, where that publishes.
    own: Option<Mutex<Connection>>,
    postbox: Postbox,
}

impl Contender for Ours {
    fn describe() -> Description {
        Description {
            library: "postbox".to_owned(),
            sqlite: rusqlite::version().to_owned(),
            variants: vec![
                synced("postbox", "WAL, FULL; acks NORMAL (its defaults)", WORKER),
                Variant {
                    columns: vec![Column::Drain, Column::Latency],
                    ..synced(ACKS_SYNCED, "WAL, FULL; acks FULL", WORKER)
                },
                Variant {
                    unsynced: true,
                    ..synced(UNSYNCED, "WAL, NORMAL, but FULL before a plain handler", WORKER)
                },
            ],
        }
    }

    fn open(variant: &str, file: &Path) -> Self {
        let settings = Settings { batch_size: CLAIM, startup_drain_batch_size: CLAIM, ..Settings::default() };
        let builder = Postbox::builder().settings(settings).synced_acks(variant == ACKS_SYNCED);
        let postbox = builder.open(file).expect("open");
        let own = (variant == UNSYNCED).then(|| {
            let own = Connection::open(file).expect("open the application's connection");
            own.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000").expect("set");
            Mutex::new(own)
        });
        Ours { worker: None, own, postbox }
    }

    fn one_by_one(&self, events: Vec<Payload>) {
        for payload in &events {
            let event = new_event(payload);
            match &self.own {
                None => drop(self.postbox.publish(event).expect("publish")),
                Some(own) => self.publish_in(own, [event]),
            }
        }
    }

    fn at_once(&self, parts: Vec<Vec<Payload>>) {
        thread::scope(|scope| {
            for part in parts {
                scope.spawn(|| self.one_by_one(part));
            }
        });
    }

    fn in_batches(&self, batches: Vec<Vec<Payload>>) {
        for batch in &batches {
            let events = batch.iter().map(new_event);
            match &self.own {
                None => drop(self.postbox.publish_all(events).expect("publish_all")),
                Some(own) => self.publish_in(own, events),
            }
        }
    }

    fn start(&mut self, seen: Arc<Seen>) {
        let handler = move |event: &Event, _: &postbox::Context<'_>| {
            let at = Instant::now();
            seen.event(at, event.payload_as::<Payload>()?.number);
            Ok(())
        };
        self.postbox
            .subscribe(Subscription::new("invoice.created", "operations", handler))
            .expect("subscribe");
        self.worker = Some(self.postbox.start().expect("start"));
    }

    fn unsettled(&self) -> usize {
        let stats = self.postbox.stats().expect("stats");
        usize::try_from(stats.total - stats.processed).expect("few")
    }
}

impl Ours {
    fn publish_in(&self, own: &Mutex<Connection>, events: impl IntoIterator<Item = NewEvent>) {
        let own = own.lock().expect("nobody panics with it");
        own.execute_batch("BEGIN IMMEDIATE").expect("begin");
        for event in events {
            self.postbox.publish_in(&own, event).expect("publish_in");
        }
        own.execute_batch("COMMIT").expect("commit");
        self.postbox.notify();
    }
}

fn new_event(payload: &Payload) -> NewEvent {
    NewEvent::new("invoice.created", "finance", "Invoice", payload.invoice_id.as_str())
        .payload_from(payload)
        .expect("a payload is JSON")
}

fn main() {
    contender::main::<Ours>();
}
