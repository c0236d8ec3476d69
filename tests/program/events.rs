//! Looking at events: `list`, `show`, `tree`, `dead-letters`.

use std::fmt::Write;
use std::fs;

use postbox::serde_json::Value;

use crate::incident::{CANARY, id, incident};
use crate::support::{assert_bytes, listing, raw};
use crate::{expect, run};

#[test]
fn what_they_print_is_as_expected_and_the_file_stays_as_it_is() {
    let (dir, path) = incident();
    let before = fs::read(&path).unwrap();
    let (order, invoice, mail) = (id(1), id(2), id(4));
    for (name, args) in [
        ("list", &["list", "app.db"][..]),
        ("show", &["show", "app.db", &order]),
        ("show-dead-letter", &["show", "app.db", &mail]),
        ("tree", &["tree", "app.db", &invoice]),
        ("dead-letters", &["dead-letters", "app.db"]),
    ] {
        let text = run(dir.path(), args).ok();
        expect(&format!("{name}.txt"), &text);
        let json = run(dir.path(), &[args, &["--json"]].concat()).ok();
        expect(&format!("{name}.json"), &json);
        assert!(!text.contains(CANARY) && !json.contains(CANARY), "{name}");
        assert!(!text.contains('\u{1b}'), "{name}: a terminal would obey it");
        assert_eq!(listing(dir.path()), ["app.db"], "{name}");
    }
    assert_bytes(&path, &before, "after it was looked at");
}

#[test]
fn a_payload_is_shown_where_it_is_asked_for() {
    let (dir, _) = incident();
    let text = run(dir.path(), &["show", "app.db", &id(1), "--payload"]).ok();
    expect("show-payload.txt", &text);
    assert!(!text.contains('\u{9b}'), "a terminal would obey it");
    let shown = run(dir.path(), &["show", "app.db", &id(1), "--payload", "--json"]).json();
    assert_eq!(shown["event"]["payload"]["total"], 12.5);
    assert_eq!(shown["event"]["payload"]["bell"], "\u{9b}31m");
    assert_eq!(shown["event"]["metadata"]["user"], CANARY);
}

fn names(list: &Value) -> Vec<&str> {
    list["events"].as_array().unwrap().iter().map(|event| event["event_name"].as_str().unwrap()).collect()
}

#[test]
fn each_flag_asks_for_something() {
    let (dir, _) = incident();
    for (flags, expected) in [
        (&["--name", "mail.*"][..], &["mail.queued", "mail.sent"][..]),
        (&["--name", "mail.sent"], &["mail.sent"]),
        (&["--module", "sales"], &["order.placed"]),
        (&["--aggregate-type", "Payment"], &["payment.due"]),
        (&["--aggregate-id", "m-1"], &["mail.queued", "mail.sent"]),
        (&["--status", "pending"], &["stock.counted"]),
        (&["--status", "dead-letter", "--status", "pending"], &["stock.counted", "mail.queued", "mail.sent"]),
        (&["--consumer", "ledger"], &["payment.due", "invoice.created"]),
        (&["--from", "2023-11-14T23:13:21Z"], &["stock.counted"]),
        (&["--from", "2023-11-15"], &["stock.counted"]),
        (&["--before", "2023-11-14T23:13:20+00:00"], &["payment.due", "invoice.created", "order.placed"]),
        (&["--from", "2h"], &[]),
        (&["--before", "2h", "--oldest", "--limit", "2"], &["order.placed", "invoice.created"]),
        (&["--correlation-id", "basket-3", "--module", "finance"], &["payment.due", "invoice.created"]),
        (&["--error", "timed out"], &["mail.queued"]),
    ] {
        let page = run(dir.path(), &[&["list", "app.db", "--json"], flags].concat()).json();
        assert_eq!(names(&page), expected, "{flags:?}");
    }
    let dead = run(dir.path(), &["dead-letters", "app.db", "--error", "550", "--consumer", "mail", "--json"]);
    assert_eq!(names(&dead.json()), ["mail.sent"]);
    let none = run(dir.path(), &["list", "app.db", "--from", "2h"]).ok();
    assert_eq!(none, "There are no such events.\n");
    let none = run(dir.path(), &["dead-letters", "app.db", "--consumer", "ledger"]).ok();
    assert_eq!(none, "There are no such dead letters.\n");
}

#[test]
fn a_list_goes_on_behind_the_cursor_that_it_has_told() {
    let (dir, _) = incident();
    for order in ["--newest", "--oldest"] {
        let mut seen = Vec::new();
        let mut cursor: Option<String> = None;
        for page in 0..3 {
            let mut args = vec!["list", "app.db", order, "--limit", "2"];
            args.extend(cursor.iter().flat_map(|cursor| ["--after", cursor]));
            let text = run(dir.path(), &args).ok();
            let json = run(dir.path(), &[&args[..], &["--json"]].concat()).json();
            seen.extend(names(&json).into_iter().map(str::to_owned));
            cursor = text.lines().last().unwrap().strip_prefix("more: --after ").map(str::to_owned);
            assert_eq!(cursor.as_deref(), json["next"].as_str());
            assert_eq!(cursor.is_some(), page < 2, "{text}");
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
        assert_eq!(seen[0] == "order.placed", order == "--oldest");
    }
}

#[test]
fn what_another_program_spoilt_is_shown_as_far_as_it_can_be() {
    let (dir, path) = incident();
    raw(&path)
        .execute_batch(
            "PRAGMA ignore_check_constraints = 1;
             UPDATE outbox_event SET status = 'weird', payload = 'no JSON' WHERE seq = 1;",
        )
        .unwrap();
    let list = run(dir.path(), &["list", "app.db", "--oldest", "--limit", "1"]).ok();
    assert!(list.contains("dead_letter (unreadable: status)"), "{list}");
    let story = run(dir.path(), &["show", "app.db", &id(1), "--payload"]).ok();
    assert!(story.contains("Payload:\nnull\n") && story.contains("status, payload"), "{story}");
}

#[test]
fn what_is_wrong_is_said_and_what_to_do() {
    let (dir, _) = incident();
    let missing = id(99);
    let mut said = String::new();
    for (code, args) in [
        (1, &["show", "app.db", &missing][..]),
        (1, &["tree", "app.db", &missing, "--json"]),
        (1, &["list", "app.db", "--name", "a*"]),
        (1, &["dead-letters", "app.db", "--module", " "]),
        (1, &["list", "app.db", "--from", "2026-01-02", "--before", "2026-01-01"]),
        (2, &["show", "app.db", "42"]),
        (2, &["list", "app.db", "--from", "yesterday"]),
        (2, &["list", "app.db", "--status", "lost"]),
        (2, &["list", "app.db", "--limit", "0"]),
        (2, &["list", "app.db", "--after", "x"]),
        (2, &["list", "app.db", "--newest", "--oldest"]),
        (2, &["dead-letters", "app.db", "--status", "pending"]),
    ] {
        let refused = run(dir.path(), args);
        assert_eq!((refused.code, refused.out.as_str()), (code, ""), "{args:?}: {}", refused.err);
        write!(said, "$ postbox {}\n{}", args.join(" "), refused.err).unwrap();
    }
    expect("events-errors.txt", &said);
}
