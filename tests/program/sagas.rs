//! `sagas list`, `show`, `compensate` and `complete`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postbox::serde_json::json;
use postbox::{Event, HandlerResult, NewEvent, Postbox, Saga, SagaStatus, SagaStep};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::support::{assert_bytes, raw, wait_until};
use crate::terminal::Terminal;
use crate::{clock, expect, run};

#[derive(Default, Serialize, Deserialize)]
struct Order {
    total: u64,
}

fn about(name: &str, step: &SagaStep<'_>) -> NewEvent {
    NewEvent::new(name, "sales", "Order", step.correlation_id())
}

/// A closed file with three orders, a minute apart: one runs, one has completed, one was compensated.
fn orders() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let clock = clock();
    let bus = Postbox::builder().clock(clock.clone()).open(&path).unwrap();
    let placed = |order: &mut Order, event: &Event, step: &SagaStep<'_>| -> HandlerResult {
        order.total = event.payload()["total"].as_u64().unwrap_or_default();
        step.undo_with(about("stock.release", step))?;
        step.undo_with(about("customer.tell", step))?;
        step.timeout("payment", Duration::from_hours(24), about("payment.overdue", step))?;
        Ok(())
    };
    let saga = Saga::<Order>::new("order")
        .starts_on("order.placed", placed)
        .on("payment.captured", |_, _, step| Ok(step.complete()?))
        .on("payment.refused", |_, _, step| {
            step.compensate("the card was refused")?;
            Ok(())
        })
        .on("payment.overdue", |_, _, _| Ok(()));
    bus.subscribe_saga(saga).unwrap();
    for (id, then) in [("o-1", None), ("o-2", Some("payment.captured")), ("o-3", Some("payment.refused"))] {
        bus.publish(NewEvent::new("order.placed", "sales", "Order", id).payload(json!({ "total": 40 })))
            .unwrap();
        bus.drain().unwrap();
        clock.advance(Duration::from_mins(1));
        if let Some(then) = then {
            bus.publish(NewEvent::new(then, "payments", "Payment", id).correlation_id(id)).unwrap();
            bus.drain().unwrap();
        }
    }
    bus.close().unwrap();
    (dir, path)
}

/// Ids are random.
fn with_known_ids(path: &Path) {
    raw(path)
        .execute_batch(
            "UPDATE postbox_saga SET timeouts = json_set(timeouts, '$.payment.id', '0198c0de-0000-8000-8000-000000000001')
             WHERE timeouts IS NOT NULL;
             UPDATE outbox_event SET id = unhex('0198c0de000080008000000000000001')
             WHERE event_name = 'payment.overdue' AND correlation_id = 'o-1';",
        )
        .unwrap();
}

#[test]
fn sagas_are_listed_and_shown_without_their_state_and_nothing_is_written() {
    let (dir, path) = orders();
    with_known_ids(&path);
    let before = fs::read(&path).unwrap();
    let run = |args: &[&str]| run(dir.path(), args);
    expect("sagas.txt", &run(&["sagas", "list", "app.db"]).ok());
    expect("sagas.json", &run(&["sagas", "list", "app.db", "--limit", "2", "--json"]).ok());
    expect("saga.txt", &run(&["sagas", "show", "app.db", "order", "o-1"]).ok());
    expect("saga.json", &run(&["sagas", "show", "app.db", "order", "o-1", "--json"]).ok());
    expect("saga-state.txt", &run(&["sagas", "show", "app.db", "order", "o-3", "--state"]).ok());

    let first = run(&["sagas", "list", "app.db", "--limit", "2", "--json"]).json();
    let next = first["next"].as_str().unwrap();
    let rest = run(&["sagas", "list", "app.db", "--after", next, "--json"]).json();
    assert_eq!((rest["sagas"][0]["correlation_id"].as_str(), rest["next"].is_null()), (Some("o-1"), true));
    for (flags, expected) in [
        (vec!["--status", "completed"], vec!["o-2"]),
        (vec!["--name", "order", "--status", "compensated"], vec!["o-3"]),
        (vec!["--name", "gift"], vec![]),
        (vec!["--stuck-for", "1h"], vec!["o-1"]),
        (vec!["--stuck-for", "99999d"], vec![]),
    ] {
        let shown = run(&[vec!["sagas", "list", "app.db", "--json"], flags.clone()].concat()).json();
        let ids: Vec<&str> = shown["sagas"]
            .as_array()
            .unwrap()
            .iter()
            .map(|saga| saga["correlation_id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, expected, "{flags:?}");
    }
    assert_eq!(run(&["sagas", "list", "app.db", "--name", "gift"]).ok(), "There are no such sagas.\n");
    assert_bytes(&path, &before, "after it was looked at");
}

#[test]
fn one_that_is_not_there_or_has_ended_is_named() {
    let (dir, path) = orders();
    let before = fs::read(&path).unwrap();
    let failed = |args: &[&str]| {
        let run = run(dir.path(), args);
        assert_eq!(run.code, 1, "{}", run.out);
        run.err
    };
    let said = failed(&["sagas", "show", "app.db", "order", "o-9"]);
    let next = "postbox: app.db: no saga with id order/o-9\n  next: `postbox sagas list app.db` lists the sagas that are there\n";
    assert_eq!(said, next);
    for what in ["compensate", "complete"] {
        let end = ["sagas", what, "app.db", "order", "o-2", "--reason", "x", "--yes"];
        let said = failed(&end);
        let ended = "postbox: app.db: invalid saga: order/o-2 is completed already: only one that is running can be ended\n";
        assert!(said.starts_with(ended), "{said}");
        let blank = ["sagas", what, "app.db", "order", "o-1", "--reason", " ", "--yes"];
        assert!(failed(&blank).contains("invalid reason: must not be empty or blank"));
    }
    assert_bytes(&path, &before, "after it was refused");
}

#[test]
fn a_saga_is_compensated_once_it_is_confirmed() {
    let (dir, path) = orders();
    let before = fs::read(&path).unwrap();
    let compensate = ["sagas", "compensate", "app.db", "order", "o-1", "--reason", "ticket 4711"];
    let what = "the saga order of o-1 is undone; published: customer.tell, stock.release";
    let dry = run(dir.path(), &[&compensate[..], &["--dry-run"]].concat()).ok();
    assert_eq!(dry, format!("dry run: {what}\n"));
    let unsure = run(dir.path(), &compensate);
    assert_eq!(unsure.code, 4);
    let asked =
        "postbox: not confirmed: The saga order of o-1 is undone; published: customer.tell, stock.release.\n";
    assert!(unsure.err.starts_with(asked), "{}", unsure.err);
    assert_bytes(&path, &before, "before it was confirmed");

    assert_eq!(run(dir.path(), &[&compensate[..], &["--yes"]].concat()).ok(), format!("{what}\n"));
    let bus = Postbox::open_read_only(&path).unwrap();
    let saga = bus.sagas().get("order", "o-1").unwrap().unwrap();
    assert_eq!(saga.summary.status, SagaStatus::Compensated);
    assert_eq!(saga.summary.reason.as_deref(), Some("ticket 4711"));
    let filter = postbox::EventFilter::new().correlation_id("o-1").name("stock.release");
    assert_eq!(bus.outbox().count(&filter).unwrap(), 1);
}

/// A terminal showed the id of one order as that of another.
#[test]
fn an_id_that_turns_the_text_around_is_shown_as_what_it_is() {
    let (dir, path) = orders();
    let odd = "\u{202e}1-o\u{2066}\u{200f}";
    raw(&path)
        .execute("UPDATE postbox_saga SET correlation_id = ?1 WHERE correlation_id = 'o-3'", [odd])
        .unwrap();
    let list = ["sagas", "list", "app.db"];
    let shown = run(dir.path(), &list).ok();
    assert!(shown.contains("\\u{202e}1-o\\u{2066}\\u{200f}"), "{shown}");
    let json = run(dir.path(), &[&list[..], &["--json"]].concat()).ok();
    assert!(json.contains("\\u202e1-o\\u2066\\u200f"), "{json}");
    let json: postbox::serde_json::Value = postbox::serde_json::from_str(&json).unwrap();
    assert!(json["sagas"].as_array().unwrap().iter().any(|saga| saga["correlation_id"] == odd), "{json}");
}

/// It told what it had found before it asked, whatever the saga had done until the answer came.
#[test]
fn what_was_undone_is_told_as_it_is_when_the_answer_comes() {
    let (dir, path) = orders();
    let mut terminal = Terminal::run(
        dir.path(),
        &["sagas", "compensate", "app.db", "order", "o-1", "--reason", "ticket 4711"],
        45,
        200,
    );
    let asks = "is undone; published: customer.tell, stock.release. Type yes to go on: ";
    wait_until("it asks", || terminal.written().contains(asks));
    let bus = Postbox::builder().clock(clock()).open(&path).unwrap();
    let weighed = Saga::<Order>::new("order").starts_on("order.placed", |_, _, _| Ok(())).on(
        "parcel.weighed",
        |_, _, step| {
            step.undo_with(about("parcel.unpack", step))?;
            Ok(())
        },
    );
    bus.subscribe_saga(weighed).unwrap();
    bus.publish(NewEvent::new("parcel.weighed", "shop", "Parcel", "p-1").correlation_id("o-1")).unwrap();
    assert_eq!(bus.drain().unwrap(), 1);
    bus.close().unwrap();
    terminal.press("yes\n");
    assert!(terminal.ended().success());
    let told = "the saga order of o-1 is undone; published: parcel.unpack, customer.tell, stock.release";
    wait_until("it tells", || terminal.written().contains(told));
}

#[test]
fn a_saga_is_completed_as_it_is() {
    let (dir, path) = orders();
    let complete =
        ["sagas", "complete", "app.db", "order", "o-1", "--reason", "shipped by hand", "--yes", "--json"];
    let shown = run(dir.path(), &complete).json();
    assert_eq!(shown, json!({ "name": "order", "correlation_id": "o-1", "published": [], "dry_run": false }));
    let bus = Postbox::open_read_only(&path).unwrap();
    let saga = bus.sagas().get("order", "o-1").unwrap().unwrap();
    assert_eq!((saga.summary.status, saga.timeouts.len()), (SagaStatus::Completed, 0));
}
