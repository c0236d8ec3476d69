//! What the box takes: wake-ups and CPU at rest, memory, bytes on disk. Read from /proc: on Linux alone.

use std::fs;
use std::thread;
use std::time::Duration;

use postbox::{Context, Event, Subscription};

use crate::table::{self, as_f64};
use crate::{Bench, event, fill, open};

pub(crate) fn idle(bench: &Bench) {
    let postbox = open(&bench.path("idle.db"));
    let worker = postbox.start().expect("a worker");
    assert!(worker.wait_for_startup_drain(Duration::from_mins(1)));
    let seconds = if bench.scale.rounds > 3 { 60 } else { 5 };
    let Some(before) = usage() else { return };
    thread::sleep(Duration::from_secs(seconds));
    let Some(after) = usage() else { return };
    drop(worker);
    let wakes = as_f64(usize::try_from(after.0 - before.0).unwrap_or(0))
        / as_f64(usize::try_from(seconds).unwrap_or(1));
    table::figure("idle: wake-ups of the worker a second", &format!("{wakes:.2}"), "1");
    table::figure(&format!("idle: CPU ticks (10 ms) in {seconds} s"), &(after.1 - before.1).to_string(), "0");
}

/// Wake-ups of the worker's thread, and the process's CPU time in ticks.
fn usage() -> Option<(u64, u64)> {
    let worker = fs::read_dir("/proc/self/task").ok()?.flatten().find(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "postbox-worker")
    })?;
    let status = fs::read_to_string(worker.path().join("status")).ok()?;
    let switches =
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()?;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some((switches, fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?))
}

pub(crate) fn memory(bench: &Bench) {
    let rows = bench.scale.history;
    let postbox = open(&bench.path("memory.db"));
    postbox.subscribe(Subscription::new("*", "c", |_: &Event, _: &Context<'_>| Ok(()))).expect("subscribed");
    postbox.publish(event(0)).expect("published");
    postbox.drain().expect("drained");
    let Some(empty) = resident_kib() else { return };
    fill(&postbox, rows);
    let Some(filled) = resident_kib() else { return };
    let worker = postbox.start().expect("a worker");
    assert!(worker.wait_for_startup_drain(Duration::from_mins(10)));
    let Some(drained) = resident_kib() else { return };
    drop(worker);
    let more = |kib: u64| {
        format!("{:.1} MiB", as_f64(usize::try_from(kib.saturating_sub(empty)).unwrap_or(0)) / 1_024.0)
    };
    table::figure(&format!("memory: more with {rows} pending"), &more(filled), "16 MiB");
    table::figure(&format!("memory: more after {rows} delivered"), &more(drained), "16 MiB");
}

fn resident_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .trim()
        .trim_end_matches(" kB")
        .trim()
        .parse()
        .ok()
}

pub(crate) fn bytes_on_disk(bench: &Bench) {
    let count = bench.scale.backlog;
    let path = bench.path("bytes.db");
    let postbox = open(&path);
    postbox
        .subscribe(Subscription::new("*", "operations", |_: &Event, _: &Context<'_>| Ok(())))
        .expect("subscribed");
    fill(&postbox, count);
    postbox.drain().expect("drained");
    postbox.close().expect("closed");
    let bytes = fs::metadata(&path).expect("the file").len() / u64::try_from(count).expect("a count");
    table::figure("bytes on disk for each processed event", &bytes.to_string(), "420");
}
