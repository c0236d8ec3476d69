//! Exactly once, across `kill -9`: this program runs itself as a child, kills it in the middle of a handler, twice, and
//! then continues where it was.
//!
//!     cargo run --example exactly_once
//!
//! The ledger's handler is transactional: its rows commit together with the mark that it is done, or not at all. The
//! receipts are a file outside the database, so their handler is plain: at least once, with the event's id to tell a
//! repeated receipt by.

use std::collections::HashSet;
use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{self, Command, Stdio};

use postbox::rusqlite::Connection;
use postbox::{Context, Event, HandlerResult, NewEvent, Postbox, Subscription, Tx};

const PAYMENTS: usize = 12;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, folder, consumer] = &arguments[..] {
        return Ok(work(Path::new(folder), Some(consumer))?);
    }

    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let postbox = Postbox::open(folder.join("bank.db"))?;
    // Nothing in this table would keep a payment from being booked twice.
    postbox.transaction(|tx| -> postbox::Result<()> {
        Ok(tx.execute_batch("CREATE TABLE ledger (payment TEXT NOT NULL) STRICT")?)
    })?;
    let payment = |n| NewEvent::new("payment.received", "bank", "Payment", format!("pay-{n}"));
    postbox.publish_all((1..=PAYMENTS).map(payment))?;
    postbox.close()?;
    println!("published        {PAYMENTS} payments");

    for consumer in ["ledger", "receipts"] {
        run_and_kill(folder, consumer)?;
        println!("killed           in the {consumer} handler: {}", progress(folder)?);
    }
    // What the dead process had claimed is due at once: nobody waits for its leases to run out.
    work(folder, None)?;
    println!("continued        to the end: {}", progress(folder)?);

    let conn = Connection::open(folder.join("bank.db"))?;
    let (rows, payments): (usize, usize) =
        conn.query_row("SELECT count(*), count(DISTINCT payment) FROM ledger", [], |row| row.try_into())?;
    assert_eq!((rows, payments), (PAYMENTS, PAYMENTS), "each payment is in the ledger exactly once");
    println!("the ledger has   every payment exactly once");

    let receipts = fs::read_to_string(folder.join("receipts.txt"))?;
    let distinct: HashSet<&str> = receipts.lines().collect();
    assert_eq!(distinct.len(), PAYMENTS, "each payment has a receipt");
    assert!(receipts.lines().count() > PAYMENTS, "and the one that was interrupted has more");
    println!("receipts are     at least one for each, repeated ones with the same event id");
    Ok(())
}

/// Handles what is due. Where a consumer is named, this process comes to its end in the middle of that one's handler.
fn work(folder: &Path, dies_in: Option<&String>) -> postbox::Result<()> {
    let file = folder.join("receipts.txt");
    let dies_in = |consumer: &str| dies_in.is_some_and(|name| name == consumer);
    let (dies_in_ledger, dies_in_receipts) = (dies_in("ledger"), dies_in("receipts"));

    let book = move |event: &Event, tx: &Tx<'_>| -> HandlerResult {
        tx.execute("INSERT INTO ledger (payment) VALUES (?1)", [event.aggregate_id()])?;
        if dies_in_ledger && event.aggregate_id() == "pay-5" {
            wait_for_the_end(); // the row is written, and not committed
        }
        Ok(())
    };
    let print_receipt = move |event: &Event, _: &Context<'_>| -> HandlerResult {
        let mut receipts = OpenOptions::new().create(true).append(true).open(&file)?;
        writeln!(receipts, "{} {}", event.id(), event.aggregate_id())?;
        if dies_in_receipts && event.aggregate_id() == "pay-5" {
            wait_for_the_end(); // the receipt is printed, and nobody has noted it
        }
        Ok(())
    };

    let postbox = Postbox::open(folder.join("bank.db"))?;
    // A crash costs each event that was claimed an attempt, so that one that kills the process cannot do so for ever.
    postbox.subscribe_many([
        Subscription::transactional("payment.received", "ledger", book).priority(10).max_attempts(10),
        Subscription::new("payment.received", "receipts", print_receipt).max_attempts(10),
    ])?;
    postbox.drain()?;
    assert_eq!(postbox.stats()?.processed, PAYMENTS as u64);
    postbox.close()
}

fn run_and_kill(folder: &Path, consumer: &str) -> Result<(), Box<dyn Error>> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([folder.as_os_str(), consumer.as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    BufReader::new(child.stdout.take().ok_or("its output is piped")?).read_line(&mut said)?;
    child.kill()?; // SIGKILL: nothing of it runs any more, no destructor and no rollback
    child.wait()?;
    if said.trim() == "in the middle" { Ok(()) } else { Err("the child ended by itself".into()) }
}

/// Tells the parent, which has its hand on our standard input until it kills us.
fn wait_for_the_end() {
    println!("in the middle");
    let _ = io::stdin().read_line(&mut String::new());
    process::abort(); // the parent is gone
}

fn progress(folder: &Path) -> Result<String, Box<dyn Error>> {
    let conn = Connection::open(folder.join("bank.db"))?;
    let booked: u64 = conn.query_row("SELECT count(*) FROM ledger", [], |row| row.get(0))?;
    let receipts = fs::read_to_string(folder.join("receipts.txt")).unwrap_or_default();
    Ok(format!("{booked} in the ledger, {} receipts", receipts.lines().count()))
}
