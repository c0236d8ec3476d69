//! A worker with nothing to do does nothing.

use std::time::Duration;
use std::{fs, thread};

use postbox::{Postbox, Settings, Subscription};

use crate::support::{LIMIT, Latch, Process, Tally, blocking, counting, event, given, wait_until};
use crate::timing::TRIES;
use crate::{SECOND, sized};

/// Threads of other tests would be counted too: it runs as a process of its own.
#[test]
fn an_idle_worker_costs_next_to_nothing() {
    let mut command = Process::command("rest::child_rests");
    command.env("ALONE", "yes");
    Process::run(command);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_rests() {
    let Some(_) = given("ALONE") else { return };
    let dir = tempfile::tempdir().unwrap();
    let held = Settings { unhandled_events: postbox::UnhandledEvents::Hold, ..sized(2) };
    let builder = || Postbox::builder().settings(held.clone()).handler_threads(4);
    for bus in [builder().open(dir.path().join("app.db")).unwrap(), builder().open_in_memory().unwrap()] {
        let tally = Tally::default();
        bus.subscribe(Subscription::new("*", "c", counting(&tally))).unwrap();
        bus.registry().clear();
        bus.publish_all((0..50).map(|_| event("held"))).unwrap();
        bus.publish_all((0..50).map(|_| event("later").delay(SECOND * 3_600))).unwrap();
        let worker = bus.start().unwrap();
        assert!(worker.wait_for_startup_drain(LIMIT));
        assert_rests("with nothing due");

        // All slots taken, more waiting: nothing can be done until a handler ends.
        let (entered, latch) = (Tally::default(), Latch::default());
        bus.subscribe(Subscription::new("slow", "c", blocking(&entered, &latch))).unwrap();
        bus.publish_all((0..20).map(|_| event("slow"))).unwrap();
        entered.wait_for(2);
        assert_rests("with every slot taken");
        latch.open();
        entered.wait_for(20);

        // Its lease is not renewed any more, though it is time to.
        bus.update_settings(|settings| settings.processing_lease_ms = 3_000).unwrap();
        let (entered, latch) = (Tally::default(), Latch::default());
        let late = Subscription::new("late", "c", blocking(&entered, &latch));
        bus.subscribe(late.time_limit(Duration::from_millis(1))).unwrap();
        bus.publish(event("late")).unwrap();
        entered.wait_for(1);
        assert_rests("with a handler past its time limit");
        latch.open();
        drop(worker);
        bus.close().unwrap();
    }
    wait_until("no thread outlives its box", || {
        tasks().iter().all(|(name, _)| !name.contains("postbox") && !name.contains("r2d2"))
    });
}

fn tasks() -> Vec<(String, std::path::PathBuf)> {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| {
            let path = task.unwrap().path();
            let name = fs::read_to_string(path.join("comm")).ok()?;
            Some((name.trim().to_owned(), path))
        })
        .collect()
}

/// Voluntary switches of the worker's thread, and the whole process's CPU time in hundredths of a second.
fn cost() -> (u64, u64) {
    let (_, worker) = tasks().into_iter().find(|(name, _)| name == "postbox-worker").unwrap();
    let status = fs::read_to_string(worker.join("status")).unwrap();
    let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let cpu = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    (switches.trim().parse().unwrap(), cpu)
}

fn assert_rests(what: &str) {
    let mut costs = Vec::new();
    for _ in 0..TRIES {
        thread::sleep(Duration::from_millis(100)); // what is being finished may be finished
        let (switches_before, cpu_before) = cost();
        thread::sleep(Duration::from_millis(1_500)); // absence is what is measured
        let (switches, cpu) = cost();
        costs.push((switches - switches_before, cpu - cpu_before));
        // It was not done yet, or the machine was slow to do it: who never rests does so in no try.
        if costs.last().is_some_and(|(switches, cpu)| *switches <= 5 && *cpu <= 8) {
            return;
        }
    }
    panic!("{what}: how often it woke up in a second and a half, and its CPU time in hundredths: {costs:?}");
}
