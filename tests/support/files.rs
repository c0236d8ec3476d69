//! What the tests of files, workers and processes share.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, Once};
use std::time::{Duration, Instant};
use std::{env, fs, panic, thread};

use postbox::rusqlite::Connection;
use postbox::testing::ManualClock;
use postbox::{Builder, Context, Event, EventId, NewEvent, OutboxStatus, Postbox};
use serde_json::json;
use time::OffsetDateTime;

/// How long what should happen at once may take on the slowest of machines.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

pub(crate) fn event(name: &str) -> NewEvent {
    NewEvent::new(name, "tests", "Thing", "thing-1").payload(json!({ "n": 1 }))
}

pub(crate) fn start_of_time() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_hours(500_000)
}

pub(crate) fn manual_clock() -> ManualClock {
    ManualClock::new(start_of_time())
}

/// For boxes whose writers are often in each other's way: none gives up for that, however slow the disk.
pub(crate) fn unhurried() -> Builder {
    Postbox::builder().busy_timeout(LIMIT)
}

/// The application's own connection to the file.
pub(crate) fn raw(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(LIMIT).unwrap();
    conn
}

pub(crate) fn integer(conn: &Connection, sql: &str) -> i64 {
    conn.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

pub(crate) fn text(conn: &Connection, sql: &str) -> String {
    conn.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

pub(crate) fn status(postbox: &Postbox, id: EventId) -> (OutboxStatus, u32) {
    let row = postbox.outbox().get(id).unwrap().unwrap();
    (row.status, row.attempt_count)
}

/// The names in a folder, sorted.
pub(crate) fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// By another process: reading the file in this one would drop SQLite's locks on it.
pub(crate) fn cp(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

/// Without printing megabytes when they differ.
#[track_caller]
pub(crate) fn assert_bytes(path: &Path, expected: &[u8], what: &str) {
    let found = fs::read(path).unwrap();
    let same = found.iter().zip(expected).take_while(|(one, other)| one == other).count();
    assert!(
        found == expected,
        "{what}: {} has {} bytes, expected {}, the same up to {same}",
        path.display(),
        found.len(),
        expected.len()
    );
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Opens a lone copy of a box's file with plain SQLite and checks that it is sound.
pub(crate) fn sound_copy(path: &Path) -> Connection {
    let conn = raw(path);
    assert_eq!(text(&conn, "PRAGMA integrity_check"), "ok");
    conn
}

#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Counts, and lets others wait for the count.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<(Mutex<u64>, Condvar)>);

impl Tally {
    pub(crate) fn add(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }

    pub(crate) fn get(&self) -> u64 {
        *self.0.0.lock().unwrap()
    }

    pub(crate) fn reaches(&self, count: u64, limit: Duration) -> bool {
        let (counted, _) =
            self.0.1.wait_timeout_while(self.0.0.lock().unwrap(), limit, |counted| *counted < count).unwrap();
        *counted >= count
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, count: u64) {
        assert!(self.reaches(count, LIMIT), "{} instead of {count} within {LIMIT:?}", self.get());
    }
}

/// Closed until it is opened, and then open for ever.
#[derive(Clone, Default)]
pub(crate) struct Latch(Tally);

impl Latch {
    pub(crate) fn open(&self) {
        self.0.add();
    }

    /// Waits with a limit, so that a failed test ends.
    pub(crate) fn wait(&self) {
        self.0.reaches(1, 2 * LIMIT);
    }
}

/// A plain handler that counts itself in, waits for the latch, and succeeds.
pub(crate) fn blocking(
    entered: &Tally,
    latch: &Latch,
) -> impl Fn(&Event, &Context<'_>) -> postbox::HandlerResult + Send + Sync + 'static {
    let (entered, latch) = (entered.clone(), latch.clone());
    move |_, _| {
        entered.add();
        latch.wait();
        Ok(())
    }
}

/// A plain handler that counts.
pub(crate) fn counting(
    tally: &Tally,
) -> impl Fn(&Event, &Context<'_>) -> postbox::HandlerResult + Send + Sync + 'static {
    let tally = tally.clone();
    move |_, _| {
        tally.add();
        Ok(())
    }
}

/// What tests throw, so that it does not fill their output.
pub(crate) const ON_PURPOSE: &str = "on purpose";

pub(crate) fn quiet_panics_on_purpose() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if info.payload_as_str() != Some(ON_PURPOSE) {
                default(info);
            }
        }));
    });
}

/// This test binary again, running one of its ignored tests as a process of its own. Killed when it is dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn command(entry: &str) -> Command {
        Self::command_through(Command::new(env::current_exe().unwrap()), entry)
    }

    /// `command` runs what follows it.
    pub(crate) fn command_through(mut command: Command, entry: &str) -> Command {
        command.args([entry, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        command
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        Process(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Runs it to its end, which must be a success.
    #[track_caller]
    pub(crate) fn run(mut command: Command) {
        Self::check(&command.output().unwrap());
    }

    /// The same as nobody where the owner of `folder` is root, whom no permissions bind. False where nobody may not run
    /// this program, so that nothing can be tested.
    #[track_caller]
    pub(crate) fn run_unprivileged(mut command: Command, folder: &Path) -> bool {
        if fs::metadata(folder).unwrap().uid() == 0 && !Self::is_nobodys(&mut command) {
            return false;
        }
        Self::check(&command.output().unwrap());
        true
    }

    /// Has nobody run the command. False where nobody may not run this program.
    pub(crate) fn is_nobodys(command: &mut Command) -> bool {
        // Asked of this program itself: `command` may be a shell that runs it, and would start.
        let program = env::current_exe().unwrap();
        let asked = Command::new(&program).arg("--list").uid(65_534).gid(65_534).output();
        if let Err(error) = asked {
            eprintln!("not tested: nobody cannot run {} ({error})", program.display());
            return false;
        }
        command.uid(65_534).gid(65_534);
        true
    }

    #[track_caller]
    fn check(output: &Output) {
        let (said, erred) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}\n{said}\n{erred}", output.status);
        assert!(said.contains(RAN), "no test of that name was run:\n{said}");
    }
}

/// What the test harness says before it runs one test, and not when it finds none of that name.
pub(crate) const RAN: &str = "running 1 test\n";

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the test that runs this entry point as a process gave to it; `None` when somebody runs all ignored tests.
pub(crate) fn given(name: &str) -> Option<String> {
    env::var(name).ok()
}
