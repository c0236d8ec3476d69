//! `watch` on a whole screen, in a real terminal.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use postbox::{Context, Event, HandlerError, PauseTarget, Postbox, Subscription};

use crate::incident::{CANARY, incident};
use crate::support::{assert_bytes, event, listing, wait_until};
use crate::terminal::Terminal;
use crate::{program, run};

const QUICKLY: [&str; 4] = ["watch", "app.db", "--every", "100ms"];

#[test]
fn it_shows_what_another_process_does_and_q_leaves_the_terminal_as_it_was() {
    let (dir, path) = incident();
    let bus = Postbox::open(&path).unwrap();
    let mut terminal = Terminal::run(dir.path(), &QUICKLY, 45, 120);
    terminal.wait_for("dead letters          2");
    assert!(terminal.is_raw());
    for shown in [
        "app.db  20",
        "pending               1  oldest ",
        "\n  due                 1\n",
        "every 100 ms, q quits",
        "\nlast failures:\n  2023-11-14T23:13:20Z mail at mail.queued: timed out after\\u{1b}[31m 30 s\n",
        "\nnext:\n  2 dead letters wait for a decision: postbox dead-letters app.db\n",
        "\nmail         2  -          -",
    ] {
        assert!(terminal.screen().contains(shown), "{shown:?} is not on\n{}", terminal.screen());
    }
    assert!(!terminal.screen().contains("\npaused:"));

    bus.publish_all((0..500).map(|_| event("a"))).unwrap();
    wait_until("a rate is shown", || {
        let written = terminal.written();
        let rates = written.split("published ").skip(1);
        rates.filter_map(|rate| rate.split_once("/s")?.0.parse::<f64>().ok()).any(|rate| rate > 100.0)
    });
    terminal.wait_for("pending             501");
    bus.pause(&PauseTarget::consumer("mail"), Some("the server moves"), None).unwrap();
    terminal.wait_for("\npaused:\n  consumer mail is paused since ");
    terminal.wait_for(" until it is resumed: the server moves\n");
    bus.subscribe(Subscription::new("a", "fails", |_: &Event, _: &Context<'_>| {
        Err(HandlerError::dead_letter("no more of these"))
    }))
    .unwrap();
    bus.process_batch().unwrap();
    terminal.wait_for(" fails at a: no more of these\n");
    terminal.wait_for("\nfails ");

    terminal.press("xq");
    assert_eq!(terminal.ended().code(), Some(0));
    terminal.assert_as_before();
    assert!(!terminal.written().contains(CANARY));
    bus.close().unwrap();
    assert_eq!(listing(dir.path()), ["app.db"]);
}

#[test]
fn whatever_ends_it_leaves_the_terminal_as_it_was_and_the_file_too() {
    let (dir, path) = incident();
    let before = fs::read(&path).unwrap();
    for keys in ["Q", "\u{3}", "\u{4}"] {
        let mut terminal = Terminal::run(dir.path(), &QUICKLY, 45, 120);
        terminal.wait_for("dead letters          2");
        terminal.press(keys);
        assert_eq!(terminal.ended().code(), Some(0), "{keys:?}");
        terminal.assert_as_before();
    }
    for (signal, number) in [("-TERM", 15), ("-INT", 2), ("-HUP", 1)] {
        let mut terminal = Terminal::run(dir.path(), &["watch", "app.db", "--every", "1h"], 45, 120);
        terminal.wait_for("dead letters          2");
        let id = terminal.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        assert_eq!(terminal.ended().signal(), Some(number), "{signal}: as for any other program");
        terminal.assert_as_before();
    }
    let mut terminal = Terminal::run(dir.path(), &[&QUICKLY[..], &["--count", "3"]].concat(), 45, 120);
    assert_eq!(terminal.ended().code(), Some(0));
    terminal.assert_as_before();
    assert_bytes(&path, &before, "after it was watched");
    assert_eq!(listing(dir.path()), ["app.db"]);
    // The file goes while it is looked at: the reason stands on the terminal that is left.
    let mut terminal = Terminal::run(dir.path(), &QUICKLY, 45, 120);
    terminal.wait_for("dead letters          2");
    fs::rename(&path, dir.path().join("away.db")).unwrap();
    assert_eq!(terminal.ended().code(), Some(1));
    terminal.assert_as_before();
    // The program's last words may still be on their way.
    let left = || terminal.written().rsplit_once("\u{1b}[?1049l").unwrap().1.to_owned();
    wait_until(&format!("the reason, in {:?}", left()), || left().contains("postbox: app.db: "));
}

#[test]
fn it_is_drawn_anew_for_another_size_and_no_longer_than_the_screen() {
    let (dir, _) = incident();
    let mut terminal = Terminal::run(dir.path(), &["watch", "app.db", "--every", "1h"], 5, 120);
    terminal.wait_for("  later               0");
    assert_eq!(terminal.screen().lines().count(), 5, "{}", terminal.screen());
    terminal.resize(45, 120);
    assert!(Command::new("kill").args(["-WINCH", &terminal.id().to_string()]).status().unwrap().success());
    terminal.wait_for("\nmail         2");
    terminal.press("\u{1b}");
    assert_eq!(terminal.ended().code(), Some(0));
    terminal.assert_as_before();
}

#[test]
fn lines_are_for_those_who_want_them_and_where_there_is_no_screen() {
    let (dir, _) = incident();
    let mut terminal =
        Terminal::run(dir.path(), &[&QUICKLY[..], &["--lines", "--count", "2"]].concat(), 45, 120);
    assert_eq!(terminal.ended().code(), Some(0));
    wait_until("two lines", || terminal.written().matches("\rpending 1 (oldest ").count() == 2);
    assert!(!terminal.written().contains("\u{1b}[?1049h"), "{}", terminal.written());
    let json = [&QUICKLY[..], &["--json", "--count", "1"]].concat();
    let mut terminal = Terminal::run(dir.path(), &json, 45, 120);
    assert_eq!(terminal.ended().code(), Some(0));
    wait_until("an object", || terminal.written().contains("\"pending\":1"));
    assert!(!terminal.written().contains('\u{1b}'), "{}", terminal.written());
    // No keys, no screen.
    let output =
        program(dir.path(), &[&QUICKLY[..], &["--count", "1"]].concat()).stdin(Stdio::null()).output();
    assert!(output.unwrap().stdout.starts_with(b"pending 1"));
    let missing = run(dir.path(), &["watch", "missing.db", "--lines"]);
    assert_eq!(missing.code, 1, "{}", missing.err);
    let mut terminal = Terminal::run(dir.path(), &["watch", "missing.db"], 45, 120);
    assert_eq!(terminal.ended().code(), Some(1));
    wait_until("the reason", || terminal.written().contains("postbox: missing.db: "));
    assert!(!terminal.written().contains("\u{1b}[?1049h"), "a file that is not there takes no screen");
}
