//! Commands that only look.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use postbox::Postbox;

use crate::support::{Process, assert_bytes, event, given, listing, raw};
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
