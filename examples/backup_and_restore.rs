//! Three ways to a good copy of a box, two of them while it runs, and the way back from one.
//!
//!     cargo run --example backup_and_restore
//!
//! In every copy the application's rows and the box's own agree, since they are one file and commit together.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;
use std::{fs, io, thread};

use postbox::rusqlite::Connection;
use postbox::{Event, HandlerResult, NewEvent, Postbox, Subscription, Tx};

const LIMIT: Duration = Duration::from_secs(30);
const PAYMENTS: u64 = 300;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let (live, backup, quiesced, plain) =
        (path("live.db"), path("backup.db"), path("quiesced.db"), path("plain.db"));

    let postbox = open(&live)?;
    let worker = postbox.start()?;
    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        // Somebody is busy publishing all the while.
        let (published, progress) = channel();
        let shop = postbox.clone();
        scope.spawn(move || -> Result<(), Box<dyn Error + Send + Sync>> {
            for n in (0..PAYMENTS).step_by(20) {
                shop.publish_all((n..n + 20).map(payment_received))?;
                published.send(n + 20)?;
            }
            Ok(())
        });

        while progress.recv_timeout(LIMIT)? < 100 {}
        postbox.backup(&backup)?;
        while progress.recv_timeout(LIMIT)? < 200 {}
        // For `cp`, rsync or a snapshot. It must be another process: reading the file in this one, by other means than
        // SQLite, would drop SQLite's locks on it.
        postbox.with_quiesced_file(|file| copy_in_another_process(file, &quiesced))?;
        while progress.recv_timeout(LIMIT)? < PAYMENTS {}
        Ok(())
    })?;
    worker.shutdown(LIMIT)?;
    postbox.drain()?;
    postbox.close()?;
    // Closed, it is one complete file, and nobody's: now any copy will do.
    fs::copy(&live, &plain)?;

    let in_backup = examine(&backup)?;
    println!("backup, while running    {in_backup}");
    println!("quiesced file, by cp     {}", examine(&quiesced)?);
    let at_the_end = examine(&plain)?;
    println!("plain copy, once closed  {at_the_end}");
    assert!(in_backup.events >= 100);
    assert_eq!((at_the_end.events, at_the_end.processed), (PAYMENTS, PAYMENTS));

    // The disaster, and the way back.
    fs::write(&live, "coffee")?;
    let refused = Postbox::open(&live).expect_err("coffee is no database");
    assert!(matches!(refused, postbox::Error::NotADatabase { .. }));
    println!("disaster                 live.db is no database any more");
    postbox::restore(&backup, &live)?;
    let restored = examine(&live)?;
    println!("restored                 {restored}");
    assert_eq!(restored, in_backup);

    // What was still to be done at the moment of the backup is done now, and nothing of it twice.
    let postbox = open(&live)?;
    postbox.drain()?;
    postbox.close()?;
    let continued = examine(&live)?;
    println!("continued                {continued}");
    assert_eq!((continued.events, continued.processed), (in_backup.events, in_backup.events));
    Ok(())
}

/// A box with a ledger, and a transactional handler that books payments into it.
fn open(file: &Path) -> postbox::Result<Postbox> {
    let postbox = Postbox::open(file)?;
    postbox.transaction(|tx| -> postbox::Result<()> {
        Ok(tx.execute_batch("CREATE TABLE IF NOT EXISTS ledger (payment TEXT NOT NULL) STRICT")?)
    })?;
    postbox.subscribe(Subscription::transactional("payment.received", "ledger", book))?;
    Ok(postbox)
}

fn payment_received(n: u64) -> NewEvent {
    NewEvent::new("payment.received", "bank", "Payment", format!("pay-{n}"))
}

fn book(event: &Event, tx: &Tx<'_>) -> HandlerResult {
    tx.execute("INSERT INTO ledger (payment) VALUES (?1)", [event.aggregate_id()])?;
    Ok(())
}

fn copy_in_another_process(from: &Path, to: &Path) -> io::Result<()> {
    let mut command = if cfg!(windows) { Command::new("cmd") } else { Command::new("cp") };
    if cfg!(windows) {
        command.args(["/C", "copy"]);
    }
    let status = command.args([from, to]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("the copy failed: {status}"))) }
}

#[derive(Debug, PartialEq)]
struct Numbers {
    events: u64,
    processed: u64,
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>3} events, {:>3} processed and booked", self.events, self.processed)
    }
}

/// Opens the copy as a box. Its ledger has each processed payment, once, and no other.
fn examine(file: &Path) -> postbox::Result<Numbers> {
    let postbox = Postbox::open(file)?;
    let stats = postbox.stats()?;
    postbox.close()?;
    let booked: (u64, u64) = Connection::open(file)?.query_row(
        "SELECT count(*), count(DISTINCT payment) FROM ledger",
        [],
        |row| row.try_into(),
    )?;
    assert_eq!(booked, (stats.processed, stats.processed), "rows and events agree in {}", file.display());
    Ok(Numbers { events: stats.total, processed: stats.processed })
}
