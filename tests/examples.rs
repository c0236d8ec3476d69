//! Runs every file in examples/ as its reader would, as a process of its own, and looks at what it says.
//!
//! A plain `cargo test` builds the examples first; for this file alone, run `cargo build --examples` before it.

use std::env::{self, consts::EXE_SUFFIX};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_mins(2);

#[test]
fn the_quickstart_does_the_whole_main_job() {
    let said = run("quickstart");
    for line in [
        "finance     36 invoices, each committed together with its event",
        "mail        inv-1022 went out at attempt 3, after two refusals",
        "operations  inv-1010 was cancelled, and its task with it, found over their link",
        "operations  inv-1034 was cancelled, and its task with it, found over their link",
        "dead letter inv-1024 is due on 2026-02-30, which is no day",
        "  events pending           0",
        "  events processing        0",
        "  events processed        37",
        "  events failed            0",
        "  events dead letter       1",
        "  events in all           38",
        "  tasks open              33",
        "  tasks cancelled          2",
        "  links to tasks          35",
        "A plain copy of the file, opened again, shows the same numbers.",
    ] {
        has_line(&said, line);
    }
}

#[test]
fn the_applications_own_transaction_decides_whether_its_event_is_delivered() {
    let said = run("app_transaction");
    has_line(&said, "delivered    order-1");
    has_line(&said, "delivered    order-3");
    assert!(!said.contains("delivered    order-2"), "{said}");
    has_line(&said, "in the file  2 orders, 2 events, 2 processed");
}

#[test]
fn effects_of_transactional_handlers_happen_exactly_once_across_kill_9() {
    let said = run("exactly_once");
    assert!(said.contains("killed           in the ledger handler: "), "{said}");
    assert!(said.contains("killed           in the receipts handler: "), "{said}");
    assert!(said.contains("continued        to the end: 12 in the ledger, "), "{said}");
    has_line(&said, "the ledger has   every payment exactly once");
}

#[test]
fn settings_are_tuned_while_a_worker_runs_also_by_another_box() {
    let said = run("settings_at_runtime");
    has_line(&said, "switched off     5 labels wait");
    has_line(&said, "switched on      5 labels printed");
    has_line(&said, "batch_size 4     4 labels in one batch");
    assert!(said.contains("refused          invalid batch_size: "), "{said}");
    has_line(&said, "opened again     batch_size is still 100");
}

#[test]
fn a_desk_works_offline_and_catches_up_online() {
    let said = run("desk");
    has_line(&said, "offline    5 orders taken, 95 pens left");
    assert!(said.contains("paused     Consumer(\"sync\"): offline: "), "{said}");
    has_line(&said, "online     the office has order-1, order-2, order-3, order-4, order-5");
    has_line(&said, "catch up   5 events for statistics");
    has_line(&said, "caught up  5 orders counted, 95 pens left");
}

#[test]
fn schedules_tick_make_up_for_what_was_missed_and_never_twice() {
    let said = run("schedules");
    has_line(&said, "running      sync 08:15, sync 08:30, sync 08:45, sync 09:00");
    has_line(&said, "off for 48h  reading 07:00, reading 08:00, reading 09:00, report 20:00");
    has_line(&said, "paused       reading 13:00");
    has_line(&said, "set back     nothing twice");
    if cfg!(feature = "cron") {
        has_line(&said, "06:00 Berlin 05:00, 05:00, 04:00, 04:00 UTC");
        assert!(
            said.contains("refused      invalid expression: `0 6 * * FRY`: the day of the week `FRY`: "),
            "{said}"
        );
    }
}

#[test]
fn every_copy_is_whole_and_a_backup_comes_back_with_its_numbers() {
    let said = run("backup_and_restore");
    has_line(&said, "plain copy, once closed  300 events, 300 processed and booked");
    let after = |what: &str| {
        let line = said.lines().find(|line| line.starts_with(what));
        line.unwrap_or_else(|| panic!("no {what} in: {said}"))[25..].to_owned()
    };
    assert_eq!(after("restored"), after("backup, while running"));
}

#[cfg(feature = "testing")]
#[test]
fn an_application_tests_itself_with_the_kit() {
    let said = run("testing_your_app");
    has_line(&said, "placed       order.placed is published with its lines");
    has_line(&said, "refused      nothing is published for an order without lines");
    has_line(&said, "mailed       at the third attempt, and once");
    has_line(&said, "dead letter  an order without an address");
    has_line(&said, "crashed      at 7 steps, and each order was booked exactly once");
    assert!(said.contains("    payload at $.lines[0].sku: wanted \"pen\", found \"ink\"\n"), "{said}");
}

#[test]
fn events_that_are_types_are_read_across_releases() {
    let said = run("typed_events");
    has_line(&said, "second release   inv-1 1200, inv-1 1200, inv-2 990");
    has_line(&said, "second release   1 held back, no attempt spent");
    has_line(&said, "third release    inv-4 500 CHF");
}

#[test]
fn an_order_is_paid_and_shipped_or_undone() {
    let said = run("saga");
    for line in [
        "o-1  completed    paid, and on its way as parcel-o-1",
        "o-3  compensated  the card was refused",
        "o-2  running      waits for its payment; if it does not come, stock.release undoes it",
        "o-2  stuck        for an hour, since order.placed",
        "o-2  compensated  not paid within a day",
        "o-2  refunded     the payment came too late",
        "stock             9 of 10 lamps",
    ] {
        has_line(&said, line);
    }
}

#[test]
fn every_example_is_run_by_a_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let call = format!("run({:?})", path.file_stem().unwrap());
            assert!(include_str!("examples.rs").contains(&call), "no test calls {call}");
        }
    }
}

/// Runs the example and returns what it said. It must succeed, in time, and leave nothing behind.
fn run(name: &str) -> String {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = Command::new(binary(name))
        .env("TMPDIR", temporary.path())
        .env("TMP", temporary.path()) // on Windows
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = read_to_end(child.stdout.take().unwrap());
    let stderr = read_to_end(child.stderr.take().unwrap());
    let Ok(said) = stdout.recv_timeout(LIMIT) else {
        child.kill().unwrap();
        panic!("{name} still runs after {LIMIT:?}");
    };
    let status = child.wait().unwrap();
    let complained = stderr.recv_timeout(LIMIT).unwrap();
    assert!(status.success(), "{name}: {status}\n{said}\n{complained}");
    let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [] as [PathBuf; 0], "{name} leaves files behind");
    said
}

/// The profile's folder is above this test's own binary.
fn binary(name: &str) -> PathBuf {
    let this = env::current_exe().unwrap();
    let file = format!("examples/{name}{EXE_SUFFIX}");
    this.ancestors()
        .map(|folder| folder.join(&file))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no {file} above {}: run `cargo build --examples` first", this.display()))
}

fn read_to_end(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

fn has_line(said: &str, wanted: &str) {
    assert!(said.lines().any(|line| line == wanted), "no line {wanted:?} in:\n{said}");
}
