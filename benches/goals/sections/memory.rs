//! What a backlog costs in memory.

use std::env::current_exe;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::Bench;
use crate::measure::as_f64;
use crate::proc::resident_kib;
use crate::report::{Goal, Report, Row};
use crate::table::count;
use crate::work::{drain_by_worker, event, fill, open, subscribe};

/// In a process of its own: this one holds memory from the sections before that a backlog could use unseen, and its page
/// cache is wider than an application's.
pub(crate) fn memory(bench: &Bench, report: &mut Report) {
    let rows = bench.scale.history;
    let program = current_exe().expect("this program");
    let output = Command::new(program)
        .args(["--resident", &rows.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .expect("this program again");
    assert!(output.status.success(), "the process that is measured failed");
    let text = String::from_utf8(output.stdout).expect("figures");
    let kib: Vec<usize> = text.split_whitespace().map(|figure| figure.parse().expect("a figure")).collect();
    let &[empty, filled, drained] = kib.as_slice() else {
        eprintln!("memory: no /proc here");
        return;
    };
    for (what, kib) in [("pending", filled), ("delivered", drained)] {
        let more = as_f64(kib.saturating_sub(empty)) / 1_024.0;
        let what = format!("memory beyond an empty box, {} {what}", count(rows));
        report.add(Row::figure(what, "MiB", more).goal(Goal::AtMost(16.0)));
    }
}

/// That process: prints KiB with an empty box, with a backlog, and after it. Nothing, where there is no /proc.
pub(crate) fn print_resident(rows: usize, folder: &TempDir) {
    let postbox = open(&folder.path().join("box.db"));
    subscribe(&postbox);
    postbox.publish(event(0)).expect("published");
    postbox.drain().expect("drained");
    let Some(empty) = resident_kib() else { return };
    fill(&postbox, rows);
    let Some(filled) = resident_kib() else { return };
    drain_by_worker(&postbox);
    let Some(drained) = resident_kib() else { return };
    println!("{empty} {filled} {drained}");
}
