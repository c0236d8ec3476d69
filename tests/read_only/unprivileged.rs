//! Files and folders that cannot be written to. Permissions do not bind root, so that these run as nobody where it is root.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use postbox::{Error, EventId, Postbox};

use crate::support::{Process, beside, event, given, listing};
use crate::{assert_shows, assert_untouched, bytes_of, closed, crashed, furnished};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn in_words(ids: [EventId; 3]) -> String {
    ids.map(|id| id.to_string()).join(" ")
}

fn from_words(words: &str) -> [EventId; 3] {
    let ids: Vec<EventId> = words.split(' ').map(|id| id.parse().unwrap()).collect();
    ids.try_into().unwrap()
}

/// Everybody may read; only the owner may write, in the folders too.
fn read_only_to_others(folder: &Path) {
    for name in listing(folder) {
        set_mode(&folder.join(name), 0o644);
    }
    set_mode(folder, 0o755);
}

/// Runs `child_looks` as somebody who may only read.
fn look(folder: &Path, ids: [EventId; 3]) {
    let mut command = Process::command("unprivileged::child_looks");
    command.env("FOLDER", folder).env("IDS", in_words(ids));
    Process::run_unprivileged(command, folder);
}

#[test]
#[ignore = "run as a process by another test"]
fn child_looks() {
    let Some(folder) = given("FOLDER").map(PathBuf::from) else { return };
    let (path, names) = (folder.join("app.db"), listing(&folder));
    for _ in 0..2 {
        let bus = Postbox::open_read_only(&path).unwrap();
        assert_shows(&bus, from_words(&given("IDS").unwrap()));
        let apart = tempfile::tempdir().unwrap();
        bus.backup(apart.path().join("copy.db")).unwrap();
        bus.close().unwrap();
        assert_eq!(listing(&folder), names);
    }
}

#[test]
fn a_read_only_copy_in_a_read_only_folder_is_shown() {
    for what in ["closed", "crashed", "crashed with its -shm"] {
        let dir = tempfile::tempdir().unwrap();
        let (path, ids) = match what {
            "closed" => closed(dir.path(), "app.db"),
            other => crashed(dir.path(), "app.db", other == "crashed with its -shm"),
        };
        read_only_to_others(dir.path());
        set_mode(dir.path(), 0o555);
        let before = bytes_of(&path);
        look(dir.path(), ids);
        set_mode(dir.path(), 0o755);
        assert_untouched(&path, &before);
    }
}

/// SQLite would leave a -wal and a -shm there that the file's owner could not use.
#[test]
fn a_read_only_file_in_a_folder_that_anybody_can_write_to_gets_nothing_beside_it() {
    for what in ["closed", "crashed"] {
        let dir = tempfile::tempdir().unwrap();
        let (path, ids) = match what {
            "closed" => closed(dir.path(), "app.db"),
            _ => crashed(dir.path(), "app.db", false),
        };
        read_only_to_others(dir.path());
        set_mode(dir.path(), 0o777);
        let (before, names) = (bytes_of(&path), listing(dir.path()));
        look(dir.path(), ids);
        assert_eq!(listing(dir.path()), names);
        assert_untouched(&path, &before);
    }
}

#[test]
fn a_live_file_of_somebody_else_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let (bus, ids) = furnished(&path);
    read_only_to_others(dir.path());
    look(dir.path(), ids);
    bus.publish(event("later")).unwrap();
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
}

/// Read as one that nobody writes: when somebody does, what is read may be half old and half new.
#[test]
fn a_file_that_is_written_after_all_is_no_longer_shown() {
    for what in ["closed", "crashed"] {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = match what {
            "closed" => closed(dir.path(), "app.db"),
            _ => crashed(dir.path(), "app.db", false),
        };
        read_only_to_others(dir.path());
        if fs::metadata(&path).unwrap().uid() != 0 {
            return; // who owns it can write to it, and would have opened it otherwise
        }
        let mut command = Process::command("unprivileged::child_is_overtaken");
        command.env("DATABASE", &path);
        if !Process::is_nobodys(&mut command) {
            return;
        }
        let mut child = Process::spawn(command);
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("looked")));
        let bus = Postbox::open(&path).unwrap();
        bus.publish(event("later")).unwrap();
        assert!(beside(&path, "-shm").exists());
        child.0.stdin.take().unwrap().write_all(b"go on\n").unwrap();
        assert!(child.0.wait().unwrap().success(), "{what}: {:?}", lines.collect::<Vec<_>>());
    }
}

#[test]
#[ignore = "run as a process by another test"]
fn child_is_overtaken() {
    let Some(path) = given("DATABASE") else { return };
    let bus = Postbox::open_read_only(&path).unwrap();
    assert_eq!(bus.stats().unwrap().pending, 1);
    println!("looked");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    match bus.stats() {
        Err(Error::Busy { operation: "stats", detail, .. }) => {
            assert!(detail.contains("open it again"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
    let again = Postbox::open_read_only(&path);
    // Its -shm is the owner's alone, where the file was.
    match again {
        Ok(again) => assert_eq!(again.stats().unwrap().pending, 2),
        Err(error) => panic!("{error}"),
    }
}
