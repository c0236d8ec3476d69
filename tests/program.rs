//! The program `postbox`, as people and scripts run it: `cargo test --features cli --test program`.
//!
//! What it prints is compared with the files in `program/expected`; `POSTBOX_BLESS=1` writes them anew.

#[path = "support/files.rs"]
mod support;

#[path = "program/blocked.rs"]
mod blocked;
#[path = "program/changing.rs"]
mod changing;
#[path = "program/deciding.rs"]
mod deciding;
#[path = "program/events.rs"]
mod events;
#[path = "program/exchange.rs"]
mod exchange;
#[cfg(unix)]
#[path = "program/full_screen.rs"]
mod full_screen;
#[path = "program/future.rs"]
mod future;
#[path = "program/incident.rs"]
mod incident;
#[path = "program/looking.rs"]
mod looking;
#[path = "program/operating.rs"]
mod operating;
#[path = "program/pausing.rs"]
mod pausing;
#[cfg(unix)]
#[path = "program/progress.rs"]
mod progress;
#[path = "program/refused.rs"]
mod refused;
#[path = "program/sagas.rs"]
mod sagas;
#[path = "program/schedules.rs"]
mod schedules;
#[path = "program/space.rs"]
mod space;
#[cfg(unix)]
#[path = "program/terminal.rs"]
mod terminal;
#[path = "program/watching.rs"]
mod watching;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use postbox::serde_json::{self, Value};
use postbox::testing::ManualClock;
use postbox::time::OffsetDateTime;
use postbox::{Context, EntityRef, Event, EventId, HandlerError, LinkType, NewLink, Postbox, Subscription};
use tempfile::TempDir;

use crate::support::{event, raw};

/// What a run came to.
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    #[track_caller]
    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }
}

fn program(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postbox"));
    command.args(args).current_dir(folder).stdin(Stdio::null());
    command
}

/// Runs it in the folder, so that paths are short. Where it says whole ones they are shortened.
fn run(folder: &Path, args: &[&str]) -> Run {
    let output = program(folder, args).output().unwrap();
    let prefix = format!("{}/", folder.canonicalize().unwrap().display());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&prefix, "");
    Run { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

#[track_caller]
fn expect(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/program/expected").join(name);
    if env::var_os("POSTBOX_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == text, "{name} says\n{expected}\nand the program\n{text}");
}

/// Numbers that change with the schema.
fn without_sizes(text: &str, path: &Path) -> String {
    let bytes = fs::metadata(path).unwrap().len().to_string();
    let text = text.replace(&bytes, &"N".repeat(bytes.len()));
    ["schema version ", "\"schema_version\": ", "\"pages\": ", "\"free_pages\": ", "in the -wal, ", " of "]
        .iter()
        .fold(text, |text, before| without_number_after(&text, before))
}

fn without_number_after(text: &str, before: &str) -> String {
    let mut pieces = text.split(before);
    let mut masked = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let rest = piece.trim_start_matches(|c: char| c.is_ascii_digit());
        masked.push_str(before);
        masked.push_str(if rest.len() < piece.len() { "N" } else { "" });
        masked.push_str(rest);
    }
    masked
}

/// Some time ago, by this machine's clock as well: in November 2023.
fn clock() -> ManualClock {
    ManualClock::new(OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
}

/// A closed file with two processed events, a dead letter and a failure that is tried again, and links of known ids.
fn customer() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let clock = clock();
    let bus = Postbox::builder().clock(clock.clone()).open(&path).unwrap();
    let done = |_: &Event, _: &Context<'_>| Ok(());
    bus.subscribe(Subscription::new("invoice.*", "ledger", done)).unwrap();
    bus.subscribe(Subscription::new("invoice.sent", "mail", |_: &Event, _: &Context<'_>| {
        Err(HandlerError::dead_letter("no such address"))
    }))
    .unwrap();
    bus.publish(event("invoice.created")).unwrap();
    clock.advance(Duration::from_secs(61));
    bus.publish(event("invoice.paid")).unwrap();
    bus.publish(event("invoice.sent")).unwrap();
    bus.drain().unwrap();
    let invoice = || EntityRef::new("finance", "Invoice", "inv-1");
    let task = EntityRef::new("operations", "Task", "t-9");
    bus.links().create(NewLink::new(invoice(), task, LinkType::Cascade)).unwrap();
    let order = EntityRef::new("sales", "Order", "o-\u{1b}[31m7");
    bus.links().create(NewLink::new(order, invoice(), LinkType::Reference)).unwrap();
    bus.update_settings(|settings| settings.batch_size = 7).unwrap();
    bus.close().unwrap();
    raw(&path)
        .execute_batch(
            "UPDATE outbox_event SET id = unhex(printf('0198c0de000070008000%012d', seq));
             UPDATE integration_link SET id = x'0123456789abcdef0123456789abcd01' WHERE seq = 1;
             UPDATE integration_link SET id = x'0123456789abcdef0123456789abcd02' WHERE seq = 2;",
        )
        .unwrap();
    (dir, path)
}

/// Publishes what stays pending.
fn publish(path: &Path, count: usize) -> Vec<EventId> {
    let bus = Postbox::builder().clock(clock()).open(path).unwrap();
    let ids = bus.publish_all((0..count).map(|_| event("later"))).unwrap();
    bus.close().unwrap();
    ids
}
