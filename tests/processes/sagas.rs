//! Sagas whose process is killed in the middle of a step, and two processes that take steps of the same ones.

use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::Duration;

use postbox::{Event, HandlerResult, NewEvent, Postbox, Saga, SagaStep, Settings};
use serde::{Deserialize, Serialize};

use crate::support::{LIMIT, Process, given, integer, raw, unhurried, wait_until};
use crate::{Moments, child, lines_of, next_said, say, sound};

/// How many steps there were, and the sum of their numbers.
#[derive(Default, Serialize, Deserialize)]
struct Sums {
    steps: u64,
    sum: u64,
}

const SAGAS: u64 = 4;
const STEPS: u64 = 300;

fn step(number: u64) -> NewEvent {
    let id = (number % SAGAS).to_string();
    NewEvent::new("step", "tests", "Sum", id.clone())
        .correlation_id(id)
        .payload(postbox::serde_json::json!({ "n": number }))
}

/// Each step counts itself, publishes a follow-up, moves the timeout, and notes what undoes it.
fn summing(slowly: bool) -> Saga<Sums> {
    let take = move |sums: &mut Sums, event: &Event, step: &SagaStep<'_>| -> HandlerResult {
        sums.steps += 1;
        sums.sum += event.payload()["n"].as_u64().unwrap_or_default();
        let about = |name: &str| NewEvent::new(name, "tests", "Sum", step.correlation_id());
        step.publish(about("followed"))?;
        step.timeout("idle", Duration::from_hours(1), about("idle"))?;
        step.undo_with(about("undo"))?;
        if slowly {
            thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    };
    Saga::new("sum").starts_on("step", take).on("step", take).on("idle", |_, _, _| Ok(()))
}

fn open(path: &Path) -> Postbox {
    let settings = Settings { max_attempts: 1_000, polling_interval_ms: 100, ..Settings::default() };
    unhurried().settings(settings).open(path).unwrap()
}

/// Each step once, with all that belongs to it.
fn assert_sums(path: &Path) {
    sound(path);
    let bus = Postbox::open_read_only(path).unwrap();
    for id in 0..SAGAS {
        let saga = bus.sagas().get("sum", &id.to_string()).unwrap().unwrap();
        let sum: u64 = (0..STEPS).filter(|n| n % SAGAS == id).sum();
        assert_eq!(
            (&saga.state["steps"], &saga.state["sum"]),
            (&(STEPS / SAGAS).into(), &sum.into()),
            "{id}"
        );
        assert_eq!(saga.undo.len() as u64, STEPS / SAGAS, "{id}");
        assert_eq!(saga.timeouts.len(), 1, "{id}");
    }
    let conn = raw(path);
    let count = |from: &str| integer(&conn, &format!("SELECT count(*) FROM {from}"));
    let steps = i64::try_from(STEPS).unwrap();
    assert_eq!(count("outbox_event WHERE event_name = 'followed'"), steps);
    assert_eq!(count("outbox_event WHERE event_name = 'idle'"), steps);
    let pending = count("outbox_event WHERE event_name = 'idle' AND status = 'pending'");
    assert_eq!(pending, i64::try_from(SAGAS).unwrap(), "one timeout of each is to come");
    assert_eq!(count("outbox_event WHERE event_name = 'undo'"), 0);
}

/// Takes steps until nothing is left, or until its standard input ends.
#[test]
#[ignore = "run as a process by another test"]
fn child_sums() {
    let Some(path) = given("FILE").map(std::path::PathBuf::from) else { return };
    let bus = open(&path);
    bus.subscribe_saga(summing(true)).unwrap();
    let worker = bus.start().unwrap();
    say("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    assert!(worker.shutdown(LIMIT).unwrap().clean);
    bus.close().unwrap();
}

fn is_finished(path: &Path) -> bool {
    integer(
        &raw(path),
        "SELECT count(*) FROM outbox_event WHERE event_name = 'step' AND status = 'processed'",
    ) == i64::try_from(STEPS).unwrap()
}

#[test]
fn each_step_of_a_saga_happens_exactly_once_however_often_the_process_is_killed_in_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = open(&path);
    bus.publish_all((0..STEPS).map(step)).unwrap();
    bus.close().unwrap();

    let mut moments = Moments(7);
    let mut kills = 0;
    while kills < 25 && !is_finished(&path) {
        let mut process = Process::spawn(child("sagas::child_sums", &path));
        let mut lines = lines_of(&mut process);
        next_said(&mut lines, "ready").unwrap();
        thread::sleep(Duration::from_micros(moments.next(25_000)));
        process.0.kill().unwrap();
        process.0.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 3, "{kills} kills");
    let bus = open(&path);
    bus.subscribe_saga(summing(false)).unwrap();
    bus.drain().unwrap();
    bus.close().unwrap();
    assert_sums(&path);
}

#[test]
fn two_processes_take_steps_of_the_same_sagas_and_none_is_lost_or_doubled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bus = open(&path);
    let started = || {
        let mut process = Process::spawn(child("sagas::child_sums", &path));
        let mut lines = lines_of(&mut process);
        next_said(&mut lines, "ready").unwrap();
        (process, lines)
    };
    let processes = [started(), started()];
    for first in (0..STEPS).step_by(10) {
        bus.publish_all((first..first + 10).map(step)).unwrap();
    }
    wait_until("all steps are taken", || is_finished(&path));
    for (mut process, mut lines) in processes {
        drop(process.0.stdin.take());
        let mut said = String::new();
        lines.read_to_string(&mut said).unwrap();
        assert!(process.0.wait().unwrap().success(), "{said}");
    }
    bus.close().unwrap();
    assert_sums(&path);
}
