//! The write gate: leaders, followers, those who want the connection for themselves, and the end.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use shuttle::thread;

use super::in_many_orders;
use crate::db::testing::gate_in_memory;
use crate::db::{Gate, Job, Synchronous};
use crate::error::{Error, Result};

/// Writes one number. It fails where the number is odd, after it has written it.
struct Number(i64);

impl Job for Number {
    type Output = i64;
    type Known = ();

    fn run(&mut self, conn: &Connection, (): &mut ()) -> Result<i64> {
        conn.execute("INSERT INTO number VALUES (?1)", [self.0])?;
        if self.0 % 2 == 1 { Err(Error::Panicked { operation: "odd" }) } else { Ok(self.0) }
    }

    fn needs_savepoint(&self) -> bool {
        true
    }
}

fn gate() -> Arc<Gate<Number>> {
    let gate = gate_in_memory(Duration::from_hours(1)).unwrap();
    let create = |conn: &Connection| Ok(conn.execute_batch("CREATE TABLE number (n)")?);
    gate.lock("create").unwrap().transaction(Synchronous::Full, "create", create).unwrap();
    Arc::new(gate)
}

fn numbers(conn: &Connection) -> Vec<i64> {
    let mut select = conn.prepare("SELECT n FROM number ORDER BY n").unwrap();
    select.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

/// Everyone gets an answer, and it is the truth, for each by itself.
#[test]
fn all_who_submit_at_once_are_told_what_became_of_their_own() {
    in_many_orders(2_000, || {
        let gate = gate();
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let gate = Arc::clone(&gate);
                thread::spawn(move || gate.submit("submit", Number(n)))
            })
            .collect();
        let alone = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || numbers(gate.lock("look").unwrap().conn()).len())
        };
        for (n, told) in threads.into_iter().map(|thread| thread.join().unwrap()).enumerate() {
            assert_eq!(told.is_ok(), n % 2 == 0, "{n}");
        }
        assert!(alone.join().unwrap() <= 2);
        assert_eq!(numbers(gate.lock("look").unwrap().conn()), [0, 2]);
    });
}

/// Whoever was told Ok is there, whoever was told that it is closed is not, and nobody waits for ever.
#[test]
fn who_submits_while_the_gate_is_shut_is_in_or_out() {
    in_many_orders(2_000, || {
        let gate = gate();
        let threads: Vec<_> = [2, 4, 6]
            .into_iter()
            .map(|n| {
                let gate = Arc::clone(&gate);
                thread::spawn(move || gate.submit("submit", Number(n)))
            })
            .collect();
        let last = gate.take_last("close").unwrap();
        let mut told_ok = Vec::new();
        for told in threads.into_iter().map(|thread| thread.join().unwrap()) {
            match told {
                Ok(n) => told_ok.push(n),
                Err(error) => assert!(matches!(error, Error::Closed { .. }), "{error}"),
            }
        }
        assert_eq!(numbers(last.conn()), told_ok);
    });
}

/// The control: a thread at the gate that nobody wakes is noticed.
#[test]
#[should_panic(expected = "deadlock")]
fn control_who_waits_inside_the_gate_for_somebody_at_the_gate_waits_for_ever() {
    in_many_orders(2_000, || {
        let gate = gate();
        let inside = gate.lock("wait").unwrap();
        let outside = Arc::clone(&gate);
        let other = thread::spawn(move || outside.submit("submit", Number(2)).unwrap());
        other.join().unwrap();
        drop(inside);
    });
}
