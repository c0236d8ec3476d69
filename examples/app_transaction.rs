//! The application keeps its own connection and its own transactions, and the box joins them: an event is delivered if
//! and only if the application's transaction commits.
//!
//!     cargo run --example app_transaction

use std::error::Error;
use std::sync::mpsc::{TryRecvError, channel};
use std::time::Duration;

use postbox::rusqlite::{Connection, TransactionBehavior};
use postbox::{Context, Event, EventId, NewEvent, Postbox, Subscription};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("shop.db");

    // The application's own connection, with a table that refuses to sell what is not there.
    let mut conn = Connection::open(&file)?;
    conn.execute_batch(
        "CREATE TABLE shop_order (id TEXT PRIMARY KEY, lamps INTEGER NOT NULL) STRICT;
         CREATE TABLE stock (lamps INTEGER NOT NULL CONSTRAINT enough_in_stock CHECK (lamps >= 0)) STRICT;
         INSERT INTO stock VALUES (5);",
    )?;

    // The box, in the same file.
    let postbox = Postbox::open(&file)?;
    let (packed, parcels) = channel();
    postbox.subscribe(Subscription::new(
        "order.placed",
        "warehouse.pack",
        move |event: &Event, _: &Context<'_>| Ok(packed.send(event.aggregate_id().to_owned())?),
    ))?;
    let worker = postbox.start()?;

    place_order(&mut conn, &postbox, "order-1", 3)?;
    println!("committed    order-1, 3 lamps");
    println!("delivered    {}", parcels.recv_timeout(LIMIT)?);

    // The event is published before the stock refuses: it goes the way of its transaction.
    let refused = place_order(&mut conn, &postbox, "order-2", 4).expect_err("2 lamps are left");
    println!("rolled back  order-2, 4 lamps: {refused}");

    place_order(&mut conn, &postbox, "order-3", 2)?;
    println!("committed    order-3, 2 lamps");
    let delivered = parcels.recv_timeout(LIMIT)?;
    assert_eq!(delivered, "order-3", "nothing came of order-2");
    println!("delivered    {delivered}");

    // Without a transaction there is nothing to join.
    let alone = postbox.publish_in(&conn, order_placed("order-4", 1)).expect_err("no transaction is open");
    assert!(matches!(alone, postbox::Error::Invalid { field: "conn", .. }));
    println!("refused      {alone}");

    worker.shutdown(LIMIT)?;
    assert_eq!(parcels.try_recv(), Err(TryRecvError::Empty), "nothing else was delivered");
    let orders: u64 = conn.query_row("SELECT count(*) FROM shop_order", [], |row| row.get(0))?;
    let stats = postbox.stats()?;
    assert_eq!((orders, stats.total, stats.processed), (2, 2, 2));
    println!("in the file  {orders} orders, {} events, {} processed", stats.total, stats.processed);
    Ok(())
}

/// Order, event and stock change together. Leaving early with `?` drops the transaction, which rolls it back.
fn place_order(conn: &mut Connection, postbox: &Postbox, id: &str, lamps: u32) -> postbox::Result<EventId> {
    // IMMEDIATE: SQLite does not let a deferred transaction write once it has read and somebody else has written.
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute("INSERT INTO shop_order (id, lamps) VALUES (?1, ?2)", (id, lamps))?;
    let event = postbox.publish_in(&tx, order_placed(id, lamps))?;
    tx.execute("UPDATE stock SET lamps = lamps - ?1", [lamps])?;
    tx.commit()?;
    postbox.notify(); // optional: without it the worker notices within a second
    Ok(event)
}

fn order_placed(id: &str, lamps: u32) -> NewEvent {
    NewEvent::new("order.placed", "shop", "Order", id).payload(json!({ "lamps": lamps }))
}
