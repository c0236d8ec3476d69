//! The page OPERATING.md: its commands are run, in their order, and print what stands there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postbox::serde_json::json;
use postbox::testing::ManualClock;
use postbox::time::OffsetDateTime;
use postbox::{
    Context, Event, HandlerError, HandlerResult, Misfire, NewEvent, Postbox, Saga, Schedule, Subscription, Tx,
};
use tempfile::TempDir;

use crate::run;
use crate::support::raw;

/// Six invoices of a Saturday. The mail server refuses the second and the third; the fourth customer has no address.
fn shop() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shop.db");
    let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_mins(28_338_400));
    let bus = Postbox::builder().clock(clock.clone()).open(&path).unwrap();
    subscribe(&bus, |event: &Event, _: &Context<'_>| match event.aggregate_id() {
        "inv-2" | "inv-3" => Err(HandlerError::retry("mail.example:25: connection refused")),
        "inv-4" => Err(HandlerError::dead_letter("customer c-17 has no address")),
        _ => Ok(()),
    });
    for number in 1..=6 {
        let invoice = NewEvent::new("invoice.created", "finance", "Invoice", format!("inv-{number}"));
        bus.publish(invoice.payload(json!({ "total": 12.5 })).correlation_id(format!("order-{number}")))
            .unwrap();
        clock.advance(Duration::from_mins(7));
    }
    for _ in 0..4 {
        bus.drain().unwrap();
        clock.advance(Duration::from_mins(1));
    }
    bus.close().unwrap();
    raw(&path)
        .execute_batch(
            "UPDATE outbox_event SET id = unhex(printf('0198c0de000070008000%012d', seq));
             UPDATE postbox_history SET duration = 120000;",
        )
        .unwrap();
    (dir, path)
}

/// Two orders of Friday evening, which wait for their payment. One was paid by hand, and nobody has told the saga. Their reviews are asked
/// for much later.
fn orders(folder: &Path) {
    let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_mins(28_337_600));
    let bus = Postbox::builder().clock(clock.clone()).open(folder.join("orders.db")).unwrap();
    let about = |name: &str, event: &Event| NewEvent::new(name, "sales", "Order", event.aggregate_id());
    let saga = Saga::<u32>::new("order")
        .starts_on("order.placed", move |_, event, step| {
            step.undo_with(about("stock.release", event))?;
            step.undo_with(about("customer.tell", event))?;
            step.timeout("payment", Duration::from_hours(24 * 14), about("payment.overdue", event))?;
            Ok(())
        })
        .on("payment.overdue", |_, _, _| Ok(()));
    bus.subscribe_saga(saga).unwrap();
    for id in ["order-1", "order-2"] {
        bus.publish(NewEvent::new("order.placed", "sales", "Order", id)).unwrap();
        bus.drain().unwrap();
        clock.advance(Duration::from_mins(9));
    }
    let new_year_of_2100 = OffsetDateTime::from_unix_timestamp(4_102_444_800).unwrap();
    for id in ["order-1", "order-2"] {
        let review = NewEvent::new("review.wanted", "sales", "Order", id);
        bus.publish(review.available_at(new_year_of_2100)).unwrap();
    }
    bus.close().unwrap();
    raw(&folder.join("orders.db"))
        .execute_batch(
            "UPDATE postbox_saga
             SET timeouts = json_set(timeouts, '$.payment.id', '0198c0de-0000-8000-8000-00000000000' || substr(correlation_id, -1));
             UPDATE outbox_event SET id = unhex('0198c0de00008000800000000000000' || substr(correlation_id, -1))
             WHERE event_name = 'payment.overdue';
             UPDATE outbox_event SET id = unhex(printf('0198c0de000070008000%012d', seq)) WHERE event_name = 'review.wanted';",
        )
        .unwrap();
}

fn subscribe(bus: &Postbox, mail: impl postbox::Handler) {
    bus.subscribe_many([
        Subscription::transactional("invoice.*", "ledger", |_: &Event, _: &Tx<'_>| -> HandlerResult {
            Ok(())
        }),
        Subscription::new("invoice.*", "mail", mail).max_attempts(3),
        Subscription::transactional("invoice.*", "statistics", |_: &Event, _: &Tx<'_>| -> HandlerResult {
            Ok(())
        }),
    ])
    .unwrap();
}

/// The application goes on, with a mail server that answers.
fn go_on(path: &Path) {
    let bus = Postbox::open(path).unwrap();
    subscribe(&bus, |_: &Event, _: &Context<'_>| Ok(()));
    bus.drain().unwrap();
    bus.close().unwrap();
}

/// The application's schedules, as it puts them whenever it starts.
fn remind(path: &Path) {
    let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_mins(28_338_500));
    let bus = Postbox::builder().clock(clock).open(path).unwrap();
    let due = |what: &str| NewEvent::new(what, "finance", "Reminder", "all");
    let reminders = Schedule::cron("0 6 * * 1-5", "Europe/Berlin", due("reminders.due"));
    bus.schedules().put("reminders", reminders).unwrap();
    let rates = Schedule::every(Duration::from_mins(90), due("rates.due")).misfire(Misfire::Skip);
    bus.schedules().put("rates", rates).unwrap();
    bus.close().unwrap();
}

/// The words of a command line, with double quotes around those that have spaces.
fn words(line: &str) -> Vec<String> {
    let pieces = line.split('"').enumerate();
    pieces
        .flat_map(|(number, piece)| match number % 2 {
            0 => piece.split_whitespace().map(str::to_owned).collect(),
            _ => vec![piece.to_owned()],
        })
        .collect()
}

#[test]
fn the_operating_page_says_what_the_program_prints() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("OPERATING.md");
    let (dir, path) = shop();
    orders(dir.path());
    let mut printed = String::new();
    let (mut commands, mut in_console) = (0, false);
    for line in fs::read_to_string(&page).unwrap().lines() {
        if line.starts_with("```") {
            in_console = line == "```console";
        }
        // What stands between the commands is what they print.
        if in_console && !line.starts_with("```") && !line.starts_with("$ ") {
            continue;
        }
        printed.push_str(line);
        printed.push('\n');
        if let Some(command) = line.strip_prefix("$ postbox ").filter(|_| in_console) {
            let args = words(command);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            if args[0] == "schedules" {
                remind(&path);
            }
            let run = run(dir.path(), &args);
            assert_eq!((run.code, run.err.as_str()), (0, ""), "{command}");
            printed.push_str(&run.out);
            commands += 1;
            if ["discard", "replay"].contains(&args[0]) && !args.contains(&"--dry-run") {
                go_on(&path);
            }
        }
    }
    assert!(commands >= 13, "{commands}");
    if std::env::var_os("POSTBOX_BLESS").is_some() {
        fs::write(&page, &printed).unwrap();
    }
    let stands = fs::read_to_string(&page).unwrap();
    assert!(stands == printed, "the page says\n{stands}\nand the program\n{printed}");
}
