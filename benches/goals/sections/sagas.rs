//! What a step of a saga costs, against a transactional handler that keeps the same state in a table of its own.

use std::path::Path;
use std::time::Duration;

use postbox::rusqlite::{Connection, OptionalExtension};
use postbox::serde_json::{self, json};
use postbox::{Event, HandlerError, HandlerResult, NewEvent, Postbox, Saga, SagaStep, Subscription, Tx};
use serde::{Deserialize, Serialize};

use crate::Bench;
use crate::measure::{Pair, in_turn, rate_of};
use crate::report::{Report, Row};
use crate::work::{MODULE, open};

/// Events a slice, of so many conversations.
const SLICE: usize = 1_000;
const CONVERSATIONS: usize = 100;

const STEP: &str = "order.step";
const HOUR: Duration = Duration::from_hours(1);

#[derive(Default, Serialize, Deserialize)]
struct Order {
    customer: String,
    lines: Vec<String>,
    steps: u64,
}

impl Order {
    fn step(&mut self, event: &Event) {
        if self.lines.is_empty() {
            event.payload()["customer"].as_str().unwrap_or_default().clone_into(&mut self.customer);
            self.lines = (0..8).map(|line| format!("A-{line}: 2 pieces")).collect();
        }
        self.steps += 1;
    }
}

fn event(number: usize) -> NewEvent {
    let id = format!("o-{}", number % CONVERSATIONS);
    NewEvent::new(STEP, MODULE, "Order", id.clone())
        .correlation_id(id)
        .payload(json!({ "customer": "Miller and Daughters, Ltd." }))
}

fn late(id: &str) -> NewEvent {
    NewEvent::new("order.late", MODULE, "Order", id)
}

fn saga(times_out: bool) -> Saga<Order> {
    let step = move |order: &mut Order, event: &Event, step: &SagaStep<'_>| -> HandlerResult {
        order.step(event);
        if times_out {
            step.timeout("next", HOUR, late(step.correlation_id()))?;
        }
        Ok(())
    };
    Saga::new("order").starts_on(STEP, step).on(STEP, step).on("order.late", |_, _, _| Ok(()))
}

/// The same with the means that everybody has.
fn by_hand(times_out: bool) -> Subscription {
    let step = move |event: &Event, tx: &Tx<'_>| -> HandlerResult {
        let id = event.correlation_id().ok_or_else(|| HandlerError::dead_letter("no correlation id"))?;
        let stored = tx
            .prepare_cached("SELECT state, timeout FROM orders WHERE id = ?1")?
            .query_row([id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?)))
            .optional()?;
        let (mut order, before) = match stored {
            Some((state, before)) => (serde_json::from_str::<Order>(&state)?, before),
            None => (Order::default(), None),
        };
        order.step(event);
        let mut timeout = None;
        if times_out {
            if let Some(before) = before {
                tx.outbox().cancel(before.parse()?, "moved")?;
            }
            timeout = Some(tx.publish(late(id).delay(HOUR))?.to_string());
        }
        let state = serde_json::to_string(&order)?;
        tx.prepare_cached(
            "INSERT INTO orders VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET timeout = ?2, state = ?3",
        )?
        .execute((id, timeout, state))?;
        Ok(())
    };
    Subscription::transactional(STEP, "orders", step)
}

pub(crate) fn sagas(bench: &Bench, report: &mut Report) {
    for (times_out, what) in [
        (false, "a step of a saga (floor: its state in a table of the application's)"),
        (true, "a step that moves a timeout (floor: the same by hand)"),
    ] {
        let bench = bench.in_new_folder();
        let ours = of(&bench.path("saga.db"), |postbox| postbox.subscribe_saga(saga(times_out)));
        let floor = of(&bench.path("hand.db"), |postbox| postbox.subscribe(by_hand(times_out)));
        let rate = |postbox: &Postbox| {
            postbox.publish_all((0..SLICE).map(event)).expect("published");
            rate_of(SLICE, || assert_eq!(postbox.drain().expect("drained"), SLICE))
        };
        let mut rates = Pair::default();
        in_turn(bench.scale.slices, || rates.ours.push(rate(&ours)), || rates.floor.push(rate(&floor)));
        report.add(Row::against(what, "events/s", &rates.ours, &rates.floor));
    }
}

fn of(path: &Path, subscribe: impl FnOnce(&Postbox) -> postbox::Result<()>) -> Postbox {
    let postbox = open(path);
    let conn = Connection::open(path).expect("the file");
    conn.execute_batch("CREATE TABLE orders (id TEXT PRIMARY KEY, timeout TEXT, state TEXT)")
        .expect("a table");
    subscribe(&postbox).expect("subscribed");
    postbox
}
