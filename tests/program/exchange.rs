//! `export` and `import`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use postbox::serde_json::{self, Value, json};
use postbox::{NewEvent, OutboxEvent, Postbox};

use crate::incident::{CANARY, id, incident};
use crate::support::{assert_bytes, listing, raw};
use crate::{Run, expect, program, run};

fn run_with(folder: &Path, args: &[&str], input: &[u8]) -> Run {
    let mut command = program(folder, args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input); // one that refuses before it has read all of it
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// An empty box beside it.
fn other(folder: &Path) -> Postbox {
    Postbox::open(folder.join("other.db")).unwrap()
}

fn get(bus: &Postbox, n: usize) -> OutboxEvent {
    bus.outbox().get(id(n).parse().unwrap()).unwrap().unwrap()
}

#[test]
fn each_event_is_a_line_and_the_file_stays_as_it_is() {
    let (dir, path) = incident();
    let before = fs::read(&path).unwrap();
    let out = run(dir.path(), &["export", "app.db"]).ok();
    expect("export.jsonl", &out);
    let dead = run(dir.path(), &["export", "app.db", "--status", "dead_letter", "--error", "550"]).ok();
    assert_eq!(Some(dead.as_str()), out.split_inclusive('\n').nth(3));
    assert_bytes(&path, &before, "after an export");
    assert_eq!(listing(dir.path()), ["app.db"]);
}

#[test]
fn an_output_file_is_whole_private_and_replaces_nothing_without_a_yes() {
    let (dir, path) = incident();
    let out = run(dir.path(), &["export", "app.db", "--output", "events.jsonl"]).ok();
    assert_eq!(out, "6 events in events.jsonl\n");
    let file = dir.path().join("events.jsonl");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(&file).unwrap(), run(dir.path(), &["export", "app.db"]).ok());
    fs::write(&file, "precious").unwrap();
    let refused = run(dir.path(), &["export", "app.db", "--output", "events.jsonl"]);
    assert_eq!((refused.code, refused.out.as_str()), (4, ""));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let done = run(
        dir.path(),
        &["export", "app.db", "--name", "mail.*", "--output", "events.jsonl", "--yes", "--json"],
    );
    assert_eq!(done.json(), json!({ "exported": 2, "output": "events.jsonl" }));

    let before = fs::read(&path).unwrap();
    std::os::unix::fs::symlink("app.db", dir.path().join("link.db")).unwrap();
    for output in ["app.db", "./app.db", "link.db", "app.db-wal", "app.db-shm"] {
        let refused = run(dir.path(), &["export", "app.db", "--yes", "--output", output]);
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{output}");
        assert!(refused.err.contains("invalid output: is the database itself"), "{}", refused.err);
    }
    let refused = run(dir.path(), &["export", "app.db", "--yes", "--output", "/dev/null"]);
    assert!(
        refused.code == 1 && refused.err.contains("is no file that could be replaced"),
        "{}",
        refused.err
    );
    let refused = run(dir.path(), &["export", "app.db", "--output", "nowhere/events.jsonl"]);
    assert!(
        refused.code == 1 && refused.err.contains("cannot write nowhere/events.jsonl"),
        "{}",
        refused.err
    );
    assert_bytes(&path, &before, "after exports that were refused");
    assert_eq!(listing(dir.path()), ["app.db", "events.jsonl", "link.db"]);
}

#[test]
fn rows_that_another_program_spoilt_are_left_out_and_that_is_said() {
    let (dir, path) = incident();
    raw(&path)
        .execute_batch(
            "PRAGMA ignore_check_constraints = 1;
             UPDATE outbox_event SET payload = 'canary-7f3a' WHERE seq = 1;
             UPDATE outbox_event SET status = 'weird' WHERE seq = 2;
             UPDATE outbox_event SET payload = CAST(x'2263616e6172792d37663361ff22' AS TEXT) WHERE seq = 3;
             UPDATE outbox_event SET payload = '{\"canary-7f3a\": 1e999}' WHERE seq = 4;
             UPDATE outbox_event SET event_name = CAST(x'ff' AS TEXT) WHERE seq = 5;",
        )
        .unwrap();
    let done = run(dir.path(), &["export", "app.db"]);
    assert_eq!((done.code, done.out.lines().count()), (3, 1));
    let named = |n: usize, what: &str| format!("postbox: event {} left out: {what} cannot be read\n", id(n));
    let json = "payload or metadata";
    let said: String = [(1, json), (2, "status"), (3, json), (4, json), (5, "event_name")]
        .map(|(n, what)| named(n, what))
        .concat();
    assert!(done.err.starts_with(&format!("{said}postbox: 5 events left out")), "{}", done.err);
    assert!(!done.err.contains(CANARY));
    let seen = run(dir.path(), &["verify", "app.db"]);
    assert_eq!(seen.code, 3);
    for what in ["payload or metadata is no JSON: 3", "of whose texts one is no UTF-8: 1"] {
        assert!(seen.out.contains(what), "{}", seen.out);
    }
}

#[test]
fn what_was_exported_is_imported_once() {
    let (dir, path) = incident();
    let odd = NewEvent::new("größe.geändert", "a/b %c", "Ty/pe%", "id/1 é")
        .payload(json!({ "f": 0.1, "n": u64::MAX }))
        .metadata(json!(["m", "\u{9b}"]))
        .version(u32::MAX);
    let bus = Postbox::open(&path).unwrap();
    let odd = bus.publish(odd).unwrap();
    bus.close().unwrap();
    other(dir.path()).close().unwrap();
    let events = run(dir.path(), &["export", "app.db"]).ok();

    let before = fs::read(dir.path().join("other.db")).unwrap();
    let dry = run_with(dir.path(), &["import", "other.db", "--dry-run"], events.as_bytes()).ok();
    assert_eq!(dry, "dry run: 7 events imported, 0 there already\n");
    assert_bytes(&dir.path().join("other.db"), &before, "after a dry run");

    let out = run_with(dir.path(), &["import", "other.db"], events.as_bytes()).ok();
    assert_eq!(out, "7 events imported, 0 there already\n");
    run(dir.path(), &["export", "app.db", "--output", "events.jsonl"]).ok();
    let again = run(dir.path(), &["import", "other.db", "events.jsonl", "--json"]).json();
    assert_eq!(again, json!({ "imported": 0, "already_there": 7, "dry_run": false }));
    let dry = run(dir.path(), &["import", "other.db", "events.jsonl", "--dry-run"]).ok();
    assert_eq!(dry, "dry run: 0 events imported, 7 there already\n");

    let (one, two) = (Postbox::open_read_only(&path).unwrap(), other(dir.path()));
    for id in (1..=6).map(|n| id(n).parse().unwrap()).chain([odd]) {
        let (was, is) = (one.outbox().get(id).unwrap().unwrap(), two.outbox().get(id).unwrap().unwrap());
        assert_eq!((was.payload, was.metadata), (is.payload, is.metadata), "{id}");
        assert_eq!((was.event_name, was.source_module), (is.event_name, is.source_module));
        assert_eq!((was.aggregate_type, was.aggregate_id), (is.aggregate_type, is.aggregate_id));
        assert_eq!((was.correlation_id, was.causation_id), (is.correlation_id, is.causation_id));
        assert_eq!((was.trace_parent, was.version), (is.trace_parent, is.version));
        assert_eq!((was.created_at, is.status.as_str()), (is.created_at, "pending"));
    }
    let order = |bus: &Postbox| {
        let page = bus.outbox().list(&postbox::EventFilter::new(), &postbox::Page::oldest(10)).unwrap();
        page.events.iter().map(|event| event.id).collect::<Vec<_>>()
    };
    assert_eq!(order(&one), order(&two));
    two.close().unwrap();
    run(dir.path(), &["verify", "other.db"]).ok();
}

#[test]
fn history_is_imported_as_that() {
    let (dir, _) = incident();
    other(dir.path()).close().unwrap();
    let events = run(dir.path(), &["export", "app.db"]).ok();
    run_with(dir.path(), &["import", "other.db", "-", "--as", "processed"], events.as_bytes()).ok();
    let stats = run(dir.path(), &["stats", "other.db", "--json"]).json();
    assert_eq!((&stats["processed"], &stats["total"]), (&6.into(), &6.into()));
    let tree = run(dir.path(), &["tree", "other.db", &id(3)]).ok();
    assert!(tree.lines().count() == 3 && tree.contains("order.placed"), "{tree}");
    run(dir.path(), &["verify", "other.db"]).ok();
}

/// A line of an event that could be imported, with one attribute changed.
fn line(n: usize, change: impl FnOnce(&mut Value)) -> String {
    let mut event = json!({
        "specversion": "1.0", "id": id(n), "source": "/postbox/finance", "type": "invoice.created",
        "subject": "Invoice/inv-1", "data": { "note": CANARY }, "unknown": 1, "time": null,
    });
    change(&mut event);
    format!("{event}\n")
}

#[test]
fn a_line_that_no_box_could_have_published_refuses_all_and_is_named() {
    let (dir, _) = incident();
    other(dir.path()).close().unwrap();
    let before = fs::read(dir.path().join("other.db")).unwrap();
    let good = line(1, |_| {});
    let with = |name: &'static str, value: Value| line(2, move |event| event[name] = value);
    for (bad, said) in [
        ("canary-7f3a\n".to_owned(), "is no JSON that can be read: see column 1"),
        ("[1]\n".to_owned(), "is no JSON object"),
        ("{\"id\": \"canary-7f3a\n".to_owned(), "is no JSON that can be read"),
        (with("specversion", json!("0.3")), "specversion: only 1.0 is known"),
        (with("specversion", json!(1)), "specversion: is no text"),
        (with("id", Value::Null), "id: is missing"),
        (with("id", json!(CANARY)), "id: is no UUID"),
        (
            with("id", json!("0198c0de-0000-4000-8000-000000000001")),
            "invalid id: is no UUID of version 7, 5 or 8",
        ),
        (with("source", json!("/elsewhere")), "source: is not /postbox/MODULE"),
        (with("source", json!("/postbox/%zz")), "source: is not /postbox/MODULE"),
        (with("source", json!("/postbox/")), "invalid source_module: must not be empty"),
        (with("subject", json!(CANARY)), "subject: is not TYPE/ID"),
        (with("subject", json!("Invoice/")), "invalid aggregate_id: must not be empty"),
        (with("type", json!("a.*")), "invalid event_name: must not contain `*`"),
        (with("time", json!("yesterday")), "time: is not as RFC 3339 writes it"),
        (with("time", json!("1969-12-31T23:59:59.9Z")), "invalid published_at: must not be before 1970"),
        (with("datacontenttype", json!("application/xml")), "datacontenttype: only data that is JSON"),
        (with("data_base64", json!("AA==")), "datacontenttype: only data that is JSON"),
        (with("traceparent", json!("x")), "invalid trace_parent"),
        (with("causationid", json!("x")), "causationid: is no UUID"),
        (with("payloadversion", json!(0)), "invalid version"),
        (with("payloadversion", json!(1.5)), "payloadversion: is no number"),
        (with("postboxmetadata", json!("{")), "postboxmetadata: is no JSON"),
        (with("postboxmetadata", json!({})), "postboxmetadata: is no text"),
        (
            with("data", json!("deep")).replace(r#""deep""#, &("[".repeat(128) + &"]".repeat(128))),
            "data: is no JSON that can be read back",
        ),
        (with("data", json!("x".repeat(1 << 20))), "the payload or metadata takes 1048578 bytes"),
        (format!("{}\n", " ".repeat(13 << 20)), "is longer than any event of that payload"),
    ] {
        let input = format!("{good}\n{bad}{good}");
        let refused = run_with(dir.path(), &["import", "other.db"], input.as_bytes());
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{said}");
        let expected = format!("postbox: standard input: line 3: {said}");
        assert!(refused.err.starts_with(&expected), "{expected}\n{}", refused.err);
        assert!(!refused.err.contains(CANARY), "{}", refused.err);
    }
    let refused = run(dir.path(), &["import", "other.db", "missing.jsonl"]);
    assert!(
        refused.code == 1 && refused.err.starts_with("postbox: missing.jsonl: cannot read"),
        "{}",
        refused.err
    );
    let refused = run(dir.path(), &["import", "missing.db", "missing.jsonl"]);
    assert!(refused.code == 1 && refused.err.starts_with("postbox: missing.db: "), "{}", refused.err);
    assert_bytes(&dir.path().join("other.db"), &before, "nothing was imported");
    assert_eq!(
        run_with(dir.path(), &["import", "other.db"], b"").ok(),
        "0 events imported, 0 there already\n"
    );

    let large = line(3, |event| event["data"] = json!("x".repeat(1 << 20)));
    let args = ["import", "other.db", "--max-payload-bytes", "2000000"];
    assert_eq!(run_with(dir.path(), &args, large.as_bytes()).ok(), "1 event imported, 0 there already\n");
    assert_eq!(run_with(dir.path(), &["import", "other.db"], good.as_bytes()).code, 0);
    assert_eq!(get(&other(dir.path()), 1).payload["note"], CANARY);
}

#[test]
fn a_dry_run_counts_as_the_import_would() {
    let (dir, _) = incident();
    other(dir.path()).close().unwrap();
    let lines = [1, 2, 1, 1].map(|n| line(n, |_| {})).concat();
    for (args, said) in [
        (&["--dry-run"][..], "dry run: 2 events imported, 2 there already\n"),
        (&[], "2 events imported, 2 there already\n"),
        (&["--dry-run"], "dry run: 0 events imported, 4 there already\n"),
    ] {
        let args = [&["import", "other.db", "-"], args].concat();
        assert_eq!(run_with(dir.path(), &args, lines.as_bytes()).ok(), said);
    }
}

#[test]
fn what_an_export_left_that_was_killed_goes_with_the_next() {
    let (dir, _) = incident();
    let file = |name: &str| dir.path().join(name);
    let kept = ["events.jsonl.partial-1x", "events.jsonl.partial-", "other.jsonl.partial-1"];
    for name in kept.iter().chain(&["events.jsonl.partial-1", "events.jsonl.partial-2"]) {
        fs::write(file(name), "half").unwrap();
    }
    std::os::unix::fs::symlink("app.db", file("events.jsonl.partial-3")).unwrap();
    let writing = fs::File::open(file("events.jsonl.partial-2")).unwrap();
    writing.lock().unwrap();
    run(dir.path(), &["export", "app.db", "--output", "events.jsonl"]).ok();
    let mut left =
        [&kept[..], &["app.db", "events.jsonl", "events.jsonl.partial-2", "events.jsonl.partial-3"]].concat();
    left.sort_unstable();
    assert_eq!(listing(dir.path()), left);
}

#[test]
fn all_that_a_box_takes_can_be_imported() {
    let (dir, _) = incident();
    let bus = other(dir.path());
    let deep = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    let deepest = bus.publish(crate::support::event("deep").payload(deep(127)).metadata(deep(127))).unwrap();
    bus.close().unwrap();
    let events = run(dir.path(), &["export", "other.db"]).ok();
    Postbox::open(dir.path().join("third.db")).unwrap().close().unwrap();
    assert_eq!(
        run_with(dir.path(), &["import", "third.db"], events.as_bytes()).ok(),
        "1 event imported, 0 there already\n"
    );
    // As large as they may be, by a program that escapes all there is.
    let large = r"\u0078".repeat((1 << 20) - 2);
    let line = line(1, |event| event["data"] = json!("DATA"));
    let line = line.replace("DATA", &large).replacen(
        '{',
        &format!(r#"{{"postboxmetadata":"\u0022{large}\u0022","#),
        1,
    );
    assert_eq!(
        run_with(dir.path(), &["import", "third.db"], line.as_bytes()).ok(),
        "1 event imported, 0 there already\n"
    );
    let bus = Postbox::open_read_only(dir.path().join("third.db")).unwrap();
    let event = bus.outbox().get(deepest).unwrap().unwrap();
    assert_eq!((event.payload, event.metadata), (deep(127), Some(deep(127))));
    assert_eq!(get(&bus, 1).metadata, Some(json!("x".repeat((1 << 20) - 2))));
}

#[test]
fn many_are_imported_in_pieces_beside_a_writer() {
    let (dir, _) = incident();
    let bus = other(dir.path());
    let ids = |n: usize| format!("0198c0de-0000-7000-8000-{n:012}");
    let lines: String = (0..1_050).map(|n| line(1, |event| event["id"] = ids(n).into())).collect();
    fs::write(dir.path().join("events.jsonl"), &lines).unwrap();
    let mut import = program(dir.path(), &["import", "other.db", "events.jsonl"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Not for as long as it takes: who writes without a pause keeps others waiting.
    let mut published = 0;
    while published < 50 && import.try_wait().unwrap().is_none() {
        bus.publish(crate::support::event("mine")).unwrap();
        published += 1;
    }
    let output = import.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1050 events imported, 0 there already\n");
    assert_eq!(bus.stats().unwrap().total, 1_050 + published);
    bus.close().unwrap();
    let exported = run(dir.path(), &["export", "other.db", "--module", "finance"]).ok();
    assert_eq!(exported.lines().count(), 1_050);
    let first: Value = serde_json::from_str(exported.lines().next().unwrap()).unwrap();
    assert_eq!(first["id"], ids(0));
}

#[test]
fn a_reader_that_wants_no_more_is_no_failure() {
    let (dir, _) = incident();
    let mut child = program(dir.path(), &["export", "app.db"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
