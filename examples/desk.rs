//! A program at a desk that is often offline: orders are taken all the same, and the consumer that sends them on pauses until
//! there is a connection. Then it catches up, and a consumer that is new since gets what it has missed.
//!
//!     cargo run --example desk

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use postbox::serde_json::json;
use postbox::{
    Context, Event, EventFilter, HandlerError, HandlerResult, NewEvent, PauseTarget, Postbox, Result,
    Subscription, Tx,
};

const LIMIT: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let desk = Postbox::open(folder.path().join("desk.db"))?;
    desk.transaction(|tx| -> Result<()> {
        Ok(tx.execute_batch(
            "CREATE TABLE stock (article TEXT PRIMARY KEY, pieces INTEGER) WITHOUT ROWID;
             INSERT INTO stock VALUES ('pen', 100);",
        )?)
    })?;

    // The head office's address, which nobody answers at for now.
    let office = free_address()?;
    subscribe(&desk, office)?;
    let worker = desk.start()?;

    // Offline. Orders are taken, and the stock is kept: only what needs the connection waits.
    for number in 1..=5 {
        order(&desk, number)?;
    }
    let paused = || Ok(desk.pauses()?.len() == 1 && pieces(&desk)? == 95 && desk.stats()?.pending == 5);
    wait_until("the stock is kept and sending pauses", paused)?;
    let pause = &desk.pauses()?[0];
    println!("offline    5 orders taken, {} pens left", pieces(&desk)?);
    println!("paused     {:?}: {}", pause.target, pause.reason.as_deref().unwrap_or("for no reason"));
    assert_eq!(desk.stats()?.dead_letter, 0, "waiting spends no attempt");

    // Online: the application has noticed, and need not wait until the pause is over.
    let arrived = open_office(office)?;
    assert!(desk.resume(&PauseTarget::consumer("sync"))?);
    let mut received = Vec::new();
    for _ in 0..5 {
        received.push(arrived.recv_timeout(LIMIT)?);
    }
    received.sort();
    println!("online     the office has {}", received.join(", "));
    wait_until("all is processed", || Ok(desk.stats()?.processed == 5))?;

    // A new release has a consumer more. It catches up with the past, in order, and nobody else hears of it again.
    let (noted, statistics) = channel();
    desk.subscribe(Subscription::new("order.*", "statistics", move |event: &Event, _: &Context<'_>| {
        Ok(noted.send(event.aggregate_id().to_owned())?)
    }))?;
    let past = EventFilter::new().name("order.*");
    println!("catch up   {} events for statistics", desk.outbox().catch_up(&past, "statistics")?);
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(statistics.recv_timeout(LIMIT)?);
    }
    wait_until("all is processed again", || Ok(desk.stats()?.processed == 5))?;
    assert!(arrived.try_recv().is_err(), "the office has heard of each order once");
    println!("caught up  {} orders counted, {} pens left", seen.len(), pieces(&desk)?);

    assert!(worker.shutdown(LIMIT)?.clean);
    desk.close()?;
    Ok(())
}

fn subscribe(desk: &Postbox, office: SocketAddr) -> Result<()> {
    desk.subscribe_many([
        // In the file: exactly once, online or not.
        Subscription::transactional("order.placed", "stock", |event: &Event, tx: &Tx<'_>| -> HandlerResult {
            let (article, pieces) = (event.payload()["article"].as_str(), event.payload()["pieces"].as_i64());
            tx.execute("UPDATE stock SET pieces = pieces - ?2 WHERE article = ?1", (article, pieces))?;
            Ok(())
        }),
        // Outside: the office drops what it has by the event's id.
        Subscription::new("order.*", "sync", move |event: &Event, _: &Context<'_>| send(office, event)),
    ])
}

/// No connection is nobody's failure: the consumer pauses, and looks again in a minute if nobody has told it sooner.
fn send(office: SocketAddr, event: &Event) -> HandlerResult {
    let offline = |error| HandlerError::pause_consumer(format!("offline: {error}"), Duration::from_mins(1));
    let mut connection = TcpStream::connect_timeout(&office, Duration::from_secs(2)).map_err(offline)?;
    writeln!(connection, "{} {}", event.id(), event.aggregate_id())?;
    // The office answers once it has it.
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    if answer == "ok\n" { Ok(()) } else { Err(HandlerError::retry("the office did not answer")) }
}

fn order(desk: &Postbox, number: u32) -> Result<()> {
    let order = NewEvent::new("order.placed", "desk", "Order", format!("order-{number}"));
    desk.publish(order.payload(json!({ "article": "pen", "pieces": 1 }))).map(drop)
}

fn pieces(desk: &Postbox) -> Result<i64> {
    desk.transaction(|tx| Ok(tx.query_row("SELECT pieces FROM stock", [], |row| row.get(0))?))
}

fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// The head office: what arrives there.
fn open_office(at: SocketAddr) -> std::io::Result<Receiver<String>> {
    let listener = TcpListener::bind(at)?;
    let (into_office, arrived) = channel();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            if let Err(error) = receive(&connection, &into_office) {
                eprintln!("the office: {error}");
            }
        }
    });
    Ok(arrived)
}

fn receive(mut connection: &TcpStream, into_office: &Sender<String>) -> Result<(), Box<dyn Error>> {
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    let (_id, order) = line.trim_end().split_once(' ').ok_or("no order")?;
    into_office.send(order.to_owned())?;
    Ok(connection.write_all(b"ok\n")?)
}

fn wait_until(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    while !is_so()? {
        if start.elapsed() > LIMIT {
            return Err(format!("not within {LIMIT:?}: {what}").into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
