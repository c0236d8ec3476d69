//! `watch`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use postbox::Postbox;
use postbox::serde_json::{self, Value};

use crate::incident::incident;
use crate::support::{assert_bytes, event, listing};
use crate::{program, run};

#[test]
fn it_ends_after_so_many_looks_and_the_file_stays_as_it_is() {
    let (dir, path) = incident();
    let before = fs::read(&path).unwrap();
    let out = run(dir.path(), &["watch", "app.db", "--count", "2", "--every", "100ms"]).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    for line in lines {
        assert!(line.starts_with("pending 1 (oldest "), "{line}");
        let end = "  processing 0  processed 3  failed 0  dead letters 2  published 0/s  processed 0/s";
        assert!(line.ends_with(end) && !line.contains(['\r', '\u{1b}']), "{line}");
    }
    assert_bytes(&path, &before, "after it was watched");
    assert_eq!(listing(dir.path()), ["app.db"]);
    for (args, said) in [
        (["--count", "0"], "not in 1.."),
        (["--every", "1ms"], "must be at least 100ms"),
        (["--every", "often"], "write a length of time"),
    ] {
        let refused = run(dir.path(), &[&["watch", "app.db"], &args[..]].concat());
        assert!(refused.code == 2 && refused.err.contains(said), "{}", refused.err);
    }
    let missing = run(dir.path(), &["watch", "missing.db"]);
    assert!(missing.code == 1 && missing.err.starts_with("postbox: missing.db: "), "{}", missing.err);
}

#[test]
fn a_running_application_is_watched_until_ctrl_c_which_leaves_nothing_behind() {
    let (dir, path) = incident();
    let bus = Postbox::open(&path).unwrap();
    let mut child = program(dir.path(), &["watch", "app.db", "--json", "--every", "300ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut look = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = look();
    assert_eq!((&first["pending"], &first["published_per_s"]), (&1.into(), &0.0.into()));
    bus.publish_all((0..500).map(|_| event("a"))).unwrap();
    let seen = loop {
        let seen = look();
        if seen["pending"] == 501 {
            break seen;
        }
    };
    let rate = seen["published_per_s"].as_f64().unwrap();
    assert!(rate > 0.0, "{seen}");
    bus.close().unwrap();
    look(); // alone with the file
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.success(), output.stderr.as_slice()), (false, &b""[..]), "by the signal");
    run(dir.path(), &["verify", "app.db"]).ok();
    assert_eq!(listing(dir.path()), ["app.db"]);
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    let (dir, _) = incident();
    let mut child = program(dir.path(), &["watch", "app.db", "--every", "100ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
