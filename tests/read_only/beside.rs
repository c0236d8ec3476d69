//! Beside a box that writes: in the same process and in another.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use postbox::{Error, Postbox};

use crate::support::{LIMIT, Process, event, given, integer, listing, raw};
use crate::{assert_shows, furnished};

#[test]
fn a_box_of_the_same_process_goes_on_and_what_it_commits_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let (bus, ids) = furnished(&path);
    let names = listing(dir.path());
    let looking = Postbox::open_read_only(&path).unwrap();
    assert_shows(&looking, ids);
    assert_eq!(listing(dir.path()), names, "no lock of an owner, nor anything else");
    bus.publish(event("later")).unwrap();
    assert_eq!(looking.stats().unwrap().pending, 2);
    drop(looking);
    assert_eq!(listing(dir.path()), names);
    bus.publish(event("later")).unwrap();
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM outbox_event"), 5);
}

/// Whoever closes last tidies up, whether it writes or not.
#[test]
fn nothing_is_left_when_the_application_closes_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let (bus, ids) = furnished(&path);
    let looking = Postbox::open_read_only(&path).unwrap();
    assert_shows(&looking, ids);
    bus.close().unwrap();
    assert_shows(&looking, ids);
    looking.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
}

#[test]
fn an_application_may_start_while_a_copy_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ids) = crate::closed(dir.path(), "app.db");
    let looking = Postbox::builder().busy_timeout(LIMIT).open_read_only(&path).unwrap();
    assert_shows(&looking, ids);
    let bus = Postbox::open(&path).unwrap();
    bus.publish(event("later")).unwrap();
    assert_eq!(looking.stats().unwrap().pending, 2);
    let start = Instant::now();
    looking.close().unwrap();
    assert!(start.elapsed() < LIMIT / 4, "it waited to have the file for itself");
    bus.publish(event("later")).unwrap();
    assert_eq!(bus.stats().unwrap().pending, 3);
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
}

#[test]
fn a_process_that_publishes_all_the_time_is_watched_and_killed_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut command = Process::command("beside_others::child_publishes");
    command.env("DATABASE", &path);
    let mut child = Process::spawn(command);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("begun")));
    // Opened and closed again and again, while it checkpoints.
    let mut seen = 0;
    while seen < 1_500 {
        let looking = Postbox::open_read_only(&path).unwrap();
        let stats = looking.stats().unwrap();
        assert!(stats.total >= seen, "{} after {seen}", stats.total);
        assert_eq!(stats.total, stats.pending);
        seen = stats.total;
        if seen % 2 == 0 {
            looking.close().unwrap();
        }
    }
    let looking = Postbox::open_read_only(&path).unwrap();
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let left = listing(dir.path());
    assert!(left.iter().any(|name| name.contains("-postbox-")), "a dead owner's lock: {left:?}");
    let total = looking.stats().unwrap().total;
    looking.close().unwrap();
    assert_eq!(listing(dir.path()), left);
    let bus = Postbox::open(&path).unwrap();
    // The last commit may have been in the -wal already, and not yet in its index, when its process died.
    assert!((total..=total + 20).contains(&bus.stats().unwrap().total));
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_publishes() {
    let Some(path) = given("DATABASE") else { return };
    let bus = Postbox::open(Path::new(&path)).unwrap();
    println!("begun");
    std::io::stdout().flush().unwrap();
    loop {
        bus.publish_all((0..20).map(|_| event("a"))).unwrap();
    }
}

/// Who keeps the file for himself is waited for as long as for anything, and then named.
#[test]
fn a_connection_that_has_the_file_for_itself_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = crate::closed(dir.path(), "app.db");
    let conn = raw(&path);
    conn.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(())).unwrap();
    conn.execute_batch("CREATE TABLE t (x)").unwrap();
    let quick = Postbox::builder().busy_timeout(Duration::from_millis(20));
    match quick.open_read_only(&path) {
        Err(Error::Busy { operation: "open", .. }) => {}
        other => panic!("{other:?}"),
    }
    drop(conn);
    Postbox::open_read_only(&path).unwrap().close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
}

/// For one that reads with a connection of its own: `backup` beside the writer.
#[test]
fn a_backup_beside_the_writer_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let (bus, ids) = furnished(&path);
    let looking = Postbox::open_read_only(&path).unwrap();
    let dest = dir.path().join("copy.db");
    looking.backup(&dest).unwrap();
    assert_shows(&Postbox::open_read_only(&dest).unwrap(), ids);
    assert!(matches!(looking.backup(&path), Err(Error::Invalid { field: "dest", .. })));
    bus.close().unwrap();
}
