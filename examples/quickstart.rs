//! The main job, from publish to links, in one program of three modules that know nothing of each other's insides:
//! finance writes invoices, operations plans a task for each, and mail tells the customers.
//!
//!     cargo run --example quickstart
//!
//! Things go wrong on the way: one customer's mail server refuses twice, one invoice is due on the 30th of February, and
//! one customer cancels. At the end every number is accounted for, and a plain copy of the file shows the same ones.

#![expect(unreachable_pub, reason = "the modules stand for crates of their own")]

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use postbox::rusqlite::Connection;
use postbox::{Backoff, OutboxStatus, Postbox, Subscription};

const LIMIT: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("shop.db");
    let mails = folder.path().join("mails");
    fs::create_dir(&mails)?;

    // One file holds the application's tables and the box.
    let postbox = Postbox::open(&file)?;
    postbox.transaction(|tx| -> postbox::Result<()> {
        tx.execute_batch(finance::TABLE)?;
        tx.execute_batch(operations::TABLE)?;
        Ok(())
    })?;

    // Operations first, by its priority; mail takes every event of an invoice.
    let (sent, arrivals) = channel();
    postbox.subscribe_many([
        Subscription::transactional("invoice.created", "operations.plan", operations::plan).priority(10),
        Subscription::transactional("invoice.cancelled", "operations.cancel", operations::cancel)
            .priority(10),
        Subscription::new("invoice.*", "mail.notify", mail::Mailer { folder: mails.clone(), sent })
            .backoff(Backoff::exponential(Duration::from_millis(20))),
    ])?;
    let worker = postbox.start()?;

    // Finance does its work, and knows of nobody who listens.
    let invoices = finance::read_invoices()?;
    let events =
        invoices.iter().map(|invoice| finance::create(&postbox, invoice)).collect::<Result<Vec<_>, _>>()?;
    println!("finance     {} invoices, each committed together with its event", events.len());

    let mails_sent = wait_for(invoices.len(), &arrivals)?;
    let late: Vec<_> = mails_sent.iter().filter(|mail| mail.attempt > 1).collect();
    let [late] = late[..] else { return Err("just one mail is late".into()) };
    assert_eq!(late.attempt, 3);
    println!("mail        {} went out at attempt 3, after two refusals", late.invoice_id);

    for invoice in invoices.iter().filter(|invoice| invoice.customer == "Jensen Cycles") {
        finance::cancel(&postbox, invoice)?;
        wait_for(1, &arrivals)?; // by its priority, operations has committed before mail has its turn
        println!("operations  {} was cancelled, and its task with it, found over their link", invoice.id);
    }
    assert!(worker.shutdown(LIMIT)?.clean, "every handler ended and its outcome is recorded");

    // The poisoned one held nobody up, and it is not lost either: here it is, with its reason.
    for id in events {
        let event = postbox.outbox().get(id)?.ok_or("a published event is there")?;
        if event.status == OutboxStatus::DeadLetter {
            println!("dead letter {}", event.last_error.unwrap_or_default());
        }
    }

    let numbers = count_all(&postbox, &file)?;
    print_table(&numbers);
    let counts = numbers.map(|(_, count)| count);
    assert_eq!(counts, [0, 0, 37, 0, 1, 38, 34, 2, 33, 2, 35], "all is accounted for");
    assert_eq!(fs::read_dir(&mails)?.count(), 38, "a mail for every event, also for the dead letter");

    // Closed, the box is one complete file: a plain copy of it is a backup.
    postbox.close()?;
    let copy = folder.path().join("copy.db");
    fs::copy(&file, &copy)?;
    let reopened = Postbox::open(&copy)?;
    assert_eq!(count_all(&reopened, &copy)?, numbers);
    println!("\nA plain copy of the file, opened again, shows the same numbers.");
    reopened.close()?;
    Ok(())
}

/// Bounded, so that a broken promise is an error and not a program that hangs.
fn wait_for(count: usize, arrivals: &Receiver<mail::Sent>) -> Result<Vec<mail::Sent>, Box<dyn Error>> {
    (0..count).map(|_| Ok(arrivals.recv_timeout(LIMIT)?)).collect()
}

/// The box's numbers, and those of the application's own tables.
fn count_all(postbox: &Postbox, file: &Path) -> postbox::Result<[(&'static str, u64); 11]> {
    let stats = postbox.stats()?;
    let conn = Connection::open(file)?;
    let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, u64>(0));
    Ok([
        ("events pending", stats.pending),
        ("events processing", stats.processing),
        ("events processed", stats.processed),
        ("events failed", stats.failed),
        ("events dead letter", stats.dead_letter),
        ("events in all", stats.total),
        ("invoices open", count("SELECT count(*) FROM finance_invoice WHERE status = 'open'")?),
        ("invoices cancelled", count("SELECT count(*) FROM finance_invoice WHERE status = 'cancelled'")?),
        ("tasks open", count("SELECT count(*) FROM operations_task WHERE status = 'open'")?),
        ("tasks cancelled", count("SELECT count(*) FROM operations_task WHERE status = 'cancelled'")?),
        ("links to tasks", postbox.links().count_from_module("finance")?),
    ])
}

fn print_table(numbers: &[(&str, u64)]) {
    println!("\n  {:<20}{:>6}", "what", "count");
    println!("  {}", "-".repeat(26));
    for (what, count) in numbers {
        println!("  {what:<20}{count:>6}");
    }
}

/// Owns invoices.
mod finance {
    use postbox::{EventId, NewEvent, Postbox};
    use serde::{Deserialize, Serialize};

    pub const TABLE: &str = "
        CREATE TABLE finance_invoice (
            id TEXT PRIMARY KEY, customer TEXT NOT NULL, due_on TEXT NOT NULL, total_cents INTEGER NOT NULL,
            status TEXT NOT NULL DEFAULT 'open'
        ) STRICT";

    #[derive(Serialize, Deserialize)]
    pub struct Invoice {
        pub id: String,
        pub customer: String,
        pub email: String,
        pub work: String,
        pub due_on: String,
        pub total_cents: i64,
    }

    /// Some dozens; one of them is bad.
    pub fn read_invoices() -> serde_json::Result<Vec<Invoice>> {
        serde_json::from_str(include_str!("data/invoices.json"))
    }

    /// The row and its event: both or neither.
    pub fn create(postbox: &Postbox, invoice: &Invoice) -> postbox::Result<EventId> {
        postbox.transaction(|tx| {
            tx.execute(
                "INSERT INTO finance_invoice (id, customer, due_on, total_cents) VALUES (?1, ?2, ?3, ?4)",
                (&invoice.id, &invoice.customer, &invoice.due_on, invoice.total_cents),
            )?;
            tx.publish(about("invoice.created", invoice)?)
        })
    }

    pub fn cancel(postbox: &Postbox, invoice: &Invoice) -> postbox::Result<EventId> {
        postbox.transaction(|tx| {
            tx.execute("UPDATE finance_invoice SET status = 'cancelled' WHERE id = ?1", [&invoice.id])?;
            tx.publish(about("invoice.cancelled", invoice)?)
        })
    }

    fn about(event_name: &str, invoice: &Invoice) -> postbox::Result<NewEvent> {
        NewEvent::new(event_name, "finance", "Invoice", &invoice.id).payload_from(invoice)
    }
}

/// Owns tasks. Its handlers are transactional: their rows and links happen exactly once.
mod operations {
    use postbox::{EntityRef, Event, HandlerError, HandlerResult, LinkType, NewLink, Tx};
    use serde::Deserialize;

    pub const TABLE: &str = "
        CREATE TABLE operations_task (
            id INTEGER PRIMARY KEY, work TEXT NOT NULL, due_on TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'open'
        ) STRICT";

    /// What operations reads of an invoice, and no more.
    #[derive(Deserialize)]
    struct Order {
        work: String,
        due_on: String,
    }

    pub fn plan(event: &Event, tx: &Tx<'_>) -> HandlerResult {
        let order: Order = event.payload_as()?;
        let is_a_day: bool = tx.query_row("SELECT ?1 IS date(?1)", [&order.due_on], |row| row.get(0))?;
        if !is_a_day {
            // Trying again cannot help.
            let why = format!("{} is due on {}, which is no day", event.aggregate_id(), order.due_on);
            return Err(HandlerError::dead_letter(why));
        }

        tx.execute(
            "INSERT INTO operations_task (work, due_on) VALUES (?1, ?2)",
            [&order.work, &order.due_on],
        )?;
        let task = EntityRef::new("operations", "Task", tx.last_insert_rowid().to_string());
        tx.create_link(NewLink::new(invoice_of(event), task, LinkType::Cascade))?;
        Ok(())
    }

    pub fn cancel(event: &Event, tx: &Tx<'_>) -> HandlerResult {
        for link in tx.links().find_outbound(&invoice_of(event))? {
            if link.target.module == "operations" && link.target.entity_type == "Task" {
                let task = &link.target.entity_id;
                tx.execute("UPDATE operations_task SET status = 'cancelled' WHERE id = ?1", [task])?;
            }
        }
        Ok(())
    }

    fn invoice_of(event: &Event) -> EntityRef {
        EntityRef::new(event.source_module(), event.aggregate_type(), event.aggregate_id())
    }
}

/// Tells customers. Its handler is plain, since no transaction reaches the world outside: at least once.
mod mail {
    use std::path::PathBuf;
    use std::sync::mpsc::Sender;

    use postbox::{Context, Event, Handler, HandlerError, HandlerResult};
    use serde::Deserialize;

    pub struct Mailer {
        pub folder: PathBuf,
        pub sent: Sender<Sent>,
    }

    /// Which mail went out, and at which attempt.
    pub struct Sent {
        pub invoice_id: String,
        pub attempt: u32,
    }

    #[derive(Deserialize)]
    struct Recipient {
        customer: String,
        email: String,
    }

    impl Handler for Mailer {
        fn handle(&self, event: &Event, _: &Context<'_>) -> HandlerResult {
            let recipient: Recipient = event.payload_as()?;
            // Greylisting: this server turns a stranger away twice before it takes the mail.
            if recipient.email.ends_with("@oakhollow.example") && event.attempt() <= 2 {
                return Err(HandlerError::retry("451 greylisted, please come back later"));
            }
            let mail = format!(
                "To: {} <{}>\nSubject: {} {}\n",
                recipient.customer,
                recipient.email,
                event.name(),
                event.aggregate_id()
            );
            // The event's id is the same at every delivery: a mail that is sent again takes the place of the first.
            std::fs::write(self.folder.join(format!("{}.txt", event.id())), mail)?;
            self.sent.send(Sent { invoice_id: event.aggregate_id().to_owned(), attempt: event.attempt() })?;
            Ok(())
        }
    }
}
