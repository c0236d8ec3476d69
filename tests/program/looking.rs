//! Commands that only look.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use postbox::{
    Context, DomainEvent, EntityRef, Event, EventFilter, LinkType, NewEvent, NewLink, PauseTarget, Postbox,
    Subscription,
};

use crate::support::{Process, assert_bytes, cp, event, given, listing, raw};
use crate::{customer, expect, program, publish, run, without_sizes};

#[test]
fn what_they_print_is_as_expected_and_the_file_stays_as_it_is() {
    let (dir, path) = customer();
    let before = fs::read(&path).unwrap();
    for (name, args) in [
        ("stats", &["stats", "app.db"][..]),
        ("consumers", &["consumers", "app.db"]),
        ("links", &["links", "app.db", "finance", "Invoice", "inv-1"]),
        ("no-links", &["links", "app.db", "finance", "Invoice", "none"]),
        (
            "links-filtered",
            &[
                "links",
                "app.db",
                "finance",
                "Invoice",
                "inv-1",
                "--type",
                "cascade",
                "--module",
                "operations",
            ],
        ),
        (
            "no-such-links",
            &["links", "app.db", "finance", "Invoice", "inv-1", "--inbound", "--type", "cascade"],
        ),
        ("links-walk", &["links", "app.db", "operations", "Task", "t-9", "--walk", "2"]),
        (
            "links-walk-outbound",
            &["links", "app.db", "operations", "Task", "t-9", "--walk", "2", "--outbound"],
        ),
        ("settings", &["settings", "get", "app.db"]),
        ("setting", &["settings", "get", "app.db", "batch_size"]),
        ("verify", &["verify", "app.db"]),
    ] {
        expect(&format!("{name}.txt"), &without_sizes(&run(dir.path(), args).ok(), &path));
        let args = [args, &["--json"]].concat();
        expect(&format!("{name}.json"), &without_sizes(&run(dir.path(), &args).ok(), &path));
        assert_eq!(listing(dir.path()), ["app.db"], "{name}");
    }
    assert_bytes(&path, &before, "after it was looked at");
}

#[test]
fn a_walk_that_is_not_shown_whole_says_so() {
    let (dir, path) = customer();
    let bus = Postbox::open(&path).unwrap();
    let at = |n: usize| EntityRef::new("m", "T", n.to_string());
    bus.transaction::<_, postbox::Error>(|tx| {
        (1..=1_001)
            .try_for_each(|n| tx.create_link(NewLink::new(at(0), at(n), LinkType::Reference)).map(drop))
    })
    .unwrap();
    bus.close().unwrap();
    let walk = ["links", "app.db", "m", "T", "0", "--walk", "1"];
    let text = run(dir.path(), &walk).ok();
    assert_eq!((text.lines().count(), text.lines().last()), (1_002, Some("There is more than is shown.")));
    let listed = run(dir.path(), &[&walk[..5], &["--json"]].concat()).json();
    assert_eq!(listed.as_array().unwrap().len(), 1_001, "without --walk it is all, page after page");
    assert_eq!(run(dir.path(), &[&walk[..], &["--json"]].concat()).json()["is_complete"], false);
}

#[test]
fn the_age_of_the_oldest_pending_event_is_told() {
    let (dir, path) = customer();
    publish(&path, 3);
    let out = run(dir.path(), &["stats", "app.db"]).ok();
    let line = out.lines().find(|line| line.starts_with("oldest pending")).unwrap();
    assert!(line.contains(" d"), "{line}");
    let stats = run(dir.path(), &["stats", "app.db", "--json"]).json();
    assert_eq!(stats["pending"], 3);
    assert!(stats["oldest_pending_age_ms"].is_u64(), "{stats}");
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Counted {}

impl DomainEvent for Counted {
    const NAME: &'static str = "stock.counted";
    const SOURCE_MODULE: &'static str = "stock";
    const AGGREGATE_TYPE: &'static str = "Shelf";

    fn aggregate_id(&self) -> String {
        "s-1".to_owned()
    }
}

#[test]
fn what_waits_for_a_newer_release_is_told() {
    let (dir, path) = customer();
    let bus = Postbox::builder().clock(crate::clock()).open(&path).unwrap();
    bus.subscribe(Subscription::typed::<Counted>("shelves", |_, _| Ok(()))).unwrap();
    let id = bus.publish(NewEvent::typed(&Counted {}).unwrap().version(2)).unwrap().to_string();
    bus.drain().unwrap();
    bus.close().unwrap();
    let stats = run(dir.path(), &["stats", "app.db"]).ok();
    assert!(stats.lines().any(|line| line.split_whitespace().eq(["newer", "1"])), "{stats}");
    assert!(
        stats.contains("1 event waits for a release of the application that knows the payload's version"),
        "{stats}"
    );
    assert_eq!(run(dir.path(), &["stats", "app.db", "--json"]).json()["newer"], 1);
    let shown = run(dir.path(), &["show", "app.db", &id]).ok();
    assert!(shown.contains("waits for a newer release"), "{shown}");
    let verified = run(dir.path(), &["verify", "app.db"]).ok();
    assert!(
        verified.contains("events that wait for a release that knows their payload's version: 1"),
        "{verified}"
    );
}

/// A consumer that is paused, one that has yet to subscribe, and what fails: with a name that a shell would take apart.
#[test]
fn what_waits_is_told_with_what_to_do_about_it() {
    let (dir, path) = crate::incident::incident();
    let clock = crate::clock();
    let bus = Postbox::builder().clock(clock.clone()).open(&path).unwrap();
    let done = |_: &Event, _: &Context<'_>| Ok(());
    bus.subscribe(Subscription::new("stock.counted", "the shelves", done)).unwrap();
    let shelves = PauseTarget::consumer("the shelves");
    bus.pause(&shelves, Some("in the cellar"), None).unwrap();
    bus.pause(&PauseTarget::event_name("nobody"), None, Some(Duration::from_hours(1_000_000))).unwrap();
    assert_eq!(bus.outbox().catch_up(&EventFilter::new().name("invoice.*"), "search").unwrap(), 1);
    bus.publish(event("stock.counted").delay(Duration::from_hours(1_000_000))).unwrap();
    bus.drain().unwrap();
    bus.close().unwrap();
    cp(&path, &dir.path().join("my app.db"));
    let before = fs::read(&path).unwrap();
    for args in [&["stats", "my app.db"][..], &["consumers", "my app.db"]] {
        let name = format!("waiting-{}", args[0]);
        expect(&format!("{name}.txt"), &without_ages(&run(dir.path(), args).ok(), &path));
        let args = [args, &["--json"]].concat();
        expect(&format!("{name}.json"), &without_ages(&run(dir.path(), &args).ok(), &path));
    }
    assert_bytes(&path, &before, "after it was looked at");
    let next = run(dir.path(), &["stats", "my app.db", "--json"]).json()["next"].clone();
    let resume = next[1]["command"].as_str().unwrap().to_owned();
    assert_eq!(resume, "postbox resume 'my app.db' consumer 'the shelves'");
    // It is what a shell takes.
    let program = env!("CARGO_BIN_EXE_postbox");
    let script = resume.replacen("postbox", "\"$POSTBOX\"", 1);
    let shell = Command::new("sh")
        .args(["-c", &script])
        .env("POSTBOX", program)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&shell.stdout), "consumer the shelves goes on\n");
}

#[test]
fn events_that_nobody_takes_are_told() {
    let (dir, _) = crate::incident::incident();
    let shown = run(dir.path(), &["stats", "app.db", "--json"]).json();
    assert_eq!((&shown["due"], &shown["later"]), (&1.into(), &0.into()), "{shown}");
    let what = shown["next"][1]["what"].as_str().unwrap();
    assert!(
        what.starts_with("events have been due for ") && what.ends_with("start the application"),
        "{what}"
    );
    let text = run(dir.path(), &["stats", "app.db"]).ok();
    assert!(text.contains(what) && text.contains("\n  due"), "{text}");
}

/// Numbers that change with the day.
fn without_ages(text: &str, path: &Path) -> String {
    let text = without_sizes(text, path);
    let mut masked = String::new();
    for line in text.lines() {
        let line = match line.split_once("oldest pending") {
            Some((before, age)) if age.trim() != "-" => format!("{before}oldest pending A"),
            _ => crate::without_number_after(line, "_ms\": "),
        };
        let indented = line.len() - line.trim_start().len();
        let words = line.trim_start().split("  ").map(str::trim).filter(|word| !word.is_empty());
        masked.push_str(&line[..indented]);
        masked.push_str(&words.collect::<Vec<_>>().join("  "));
        masked.push('\n');
    }
    masked
}

#[test]
fn a_file_without_anything_in_it_is_shown_as_that() {
    let dir = tempfile::tempdir().unwrap();
    Postbox::open(dir.path().join("app.db")).unwrap().close().unwrap();
    let consumers = run(dir.path(), &["consumers", "app.db"]).ok();
    assert_eq!(consumers, "No consumer has had to do with an event yet.\n");
    assert_eq!(run(dir.path(), &["consumers", "app.db", "--json"]).ok(), "[]\n");
    assert!(run(dir.path(), &["verify", "app.db"]).ok().starts_with("sound;"));
}

#[test]
fn verify_says_what_is_wrong_and_what_to_do_and_ends_with_code_3() {
    let (dir, path) = customer();
    let conn = raw(&path);
    conn.execute_batch(
        "PRAGMA ignore_check_constraints = 1;
         UPDATE postbox_counter SET processed = 1000;
         UPDATE outbox_event SET status = 'weird' WHERE event_name = 'invoice.paid';
         CREATE TRIGGER mine AFTER INSERT ON outbox_event BEGIN SELECT 1; END;
         DROP INDEX integration_link_type;",
    )
    .unwrap();
    drop(conn);
    let seen = run(dir.path(), &["verify", "app.db"]);
    assert_eq!((seen.code, seen.err.as_str()), (3, ""));
    expect("verify-problems.txt", &without_sizes(&seen.out, &path));
    let mut unread = program(dir.path(), &["verify", "app.db"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(unread.stdout.take());
    assert_eq!(unread.wait().unwrap().code(), Some(3));
    let seen = run(dir.path(), &["verify", "app.db", "--json"]);
    assert_eq!(seen.code, 3);
    expect("verify-problems.json", &without_sizes(&seen.out, &path));
}

#[test]
fn a_reader_that_wants_no_more_is_no_failure() {
    let (dir, _) = customer();
    for args in [&["settings", "get", "app.db"][..], &["completions", "bash"], &["stats", "app.db", "--json"]]
    {
        let mut child =
            program(dir.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{args:?}");
    }
}

#[test]
fn an_error_that_nobody_reads_is_an_exit_code_still() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = program(dir.path(), &["stats", "app.db"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn help_has_examples_for_each_command() {
    let dir = tempfile::tempdir().unwrap();
    expect("help.txt", &run(dir.path(), &["--help"]).ok());
    for command in [
        "stats",
        "watch",
        "list",
        "show",
        "tree",
        "dead-letters",
        "blocked",
        "retry",
        "discard",
        "replay",
        "catch-up",
        "pause",
        "resume",
        "pauses",
        "prune",
        "compact",
        "export",
        "import",
        "consumers",
        "links",
        "settings get",
        "settings set",
        "backup",
        "restore",
        "verify",
        "upgrade",
        "completions",
    ] {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = run(dir.path(), &args).ok();
        assert!(help.contains("Examples:\n  postbox "), "{command}: {help}");
        assert!(help.contains("With --json") || command == "completions", "{command}: {help}");
        assert!(!help.contains('\u{1b}'), "{command}: no colours");
    }
    assert!(run(dir.path(), &["completions", "bash"]).ok().contains("complete -F _postbox"));
    assert_eq!(run(dir.path(), &["--version"]).ok(), concat!("postbox ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// Everything beside a process that publishes as fast as it can, which must not notice.
#[test]
fn a_running_application_is_looked_at_copied_and_tuned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut command = Process::command("looking::child_publishes");
    command.env("DATABASE", &path);
    let mut child = Process::spawn(command);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("begun")));
    let mut seen = 0;
    for round in 0..5 {
        let stats = run(dir.path(), &["stats", "app.db", "--json"]).json();
        let total = stats["total"].as_u64().unwrap();
        assert!(total >= seen && stats["pending"] == total, "{stats}");
        seen = total;
        let backup = format!("copy-{round}.db");
        run(dir.path(), &["backup", "app.db", &backup]).ok();
        let copied = run(dir.path(), &["stats", &backup, "--json"]).json()["total"].as_u64().unwrap();
        assert!(copied >= total, "{copied} after {total}");
        run(dir.path(), &["verify", &backup]).ok();
    }
    run(dir.path(), &["settings", "set", "app.db", "batch_size", "33"]).ok();
    assert!(lines.any(|line| line.unwrap().contains("batch size 33")), "the application sees it");
    let mut stdin = child.0.stdin.take().unwrap();
    stdin.write_all(b"end\n").unwrap();
    assert!(child.0.wait().unwrap().success());
    run(dir.path(), &["verify", "app.db"]).ok();
    assert!(!listing(dir.path()).iter().any(|name| name.contains("app.db-")), "{:?}", listing(dir.path()));
}

#[test]
#[ignore = "run as a process by another test"]
fn child_publishes() {
    let Some(path) = given("DATABASE") else { return };
    let bus = Postbox::open(Path::new(&path)).unwrap();
    println!("begun");
    while bus.settings().batch_size != 33 {
        bus.publish_all((0..20).map(|_| event("a"))).unwrap();
        // Without a worker: what the file holds is read with each change of one's own.
        bus.update_settings(|settings| settings.max_attempts = 3 + settings.max_attempts % 2).unwrap();
    }
    println!("batch size {}", bus.settings().batch_size);
    std::io::stdin().read_line(&mut String::new()).unwrap();
    bus.close().unwrap();
}
