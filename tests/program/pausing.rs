//! `pause`, `resume`, `pauses`.

use std::fs;

use postbox::time::OffsetDateTime;
use postbox::{PauseTarget, Postbox};

use crate::incident::incident;
use crate::support::{assert_bytes, integer, raw};
use crate::{expect, run};

#[test]
fn what_is_paused_is_listed_until_it_is_resumed() {
    let (dir, path) = incident();
    let out = run(dir.path(), &["pause", "app.db", "consumer", "mail", "--reason", "the server moves"]).ok();
    assert_eq!(out, "consumer mail is paused until it is resumed\n");
    let shown =
        run(dir.path(), &["pause", "app.db", "event", "stock.counted", "--for", "2h", "--json"]).json();
    assert_eq!((&shown["kind"], &shown["name"]), (&"event".into(), &"stock.counted".into()));
    assert!(shown["reason"].is_null() && shown["until"].is_string(), "{shown}");

    let bus = Postbox::open(&path).unwrap();
    let pauses = bus.pauses().unwrap();
    assert_eq!(pauses[1].target, PauseTarget::event_name("stock.counted"));
    assert_eq!((pauses[1].until.unwrap() - pauses[1].since).whole_minutes(), 120);
    bus.close().unwrap();
    raw(&path)
        .execute_batch(
            "UPDATE postbox_pause SET since = 1700000000000000, until = 4102444800000000 WHERE until IS NOT NULL;
             UPDATE postbox_pause SET since = 1700000000000000, reason = reason || char(27) WHERE until IS NULL;",
        )
        .unwrap();
    let before = fs::read(&path).unwrap();
    expect("pauses.txt", &run(dir.path(), &["pauses", "app.db"]).ok());
    expect("pauses.json", &run(dir.path(), &["pauses", "app.db", "--json"]).ok());
    assert_bytes(&path, &before, "after it was looked at");

    assert_eq!(run(dir.path(), &["resume", "app.db", "consumer", "mail"]).ok(), "consumer mail goes on\n");
    let event = run(dir.path(), &["resume", "app.db", "event", "stock.counted", "--json"]).json();
    assert_eq!(event["resumed"], true);
    assert_eq!(run(dir.path(), &["pauses", "app.db"]).ok(), "Nothing is paused.\n");
    let again = run(dir.path(), &["resume", "app.db", "consumer", "mail"]).ok();
    assert_eq!(again, "consumer mail was not paused\n");
}

#[test]
fn a_pause_that_ends_by_itself_says_when() {
    let (dir, _) = incident();
    let out = run(dir.path(), &["pause", "app.db", "consumer", "mail", "--for", "1h30m"]).ok();
    let year = OffsetDateTime::now_utc().year();
    assert!(out.starts_with(&format!("consumer mail is paused until {}", year / 100)), "{out}");
}

/// A typo paused nothing and said that it had.
#[test]
fn names_that_the_file_has_never_heard_of_are_warned_of() {
    let (dir, _) = incident();
    let consumer = "postbox: warning: no consumer of the name mial has had to do with this file: \
                    `postbox consumers` lists those that have\n";
    let event = "postbox: warning: no event of the name stock.count is in this file\n";
    for (kind, name, warning) in [("consumer", "mial", consumer), ("event", "stock.count", event)] {
        let not_paused = run(dir.path(), &["resume", "app.db", kind, name]);
        assert_eq!((not_paused.code, not_paused.err.as_str()), (0, warning), "{}", not_paused.out);
        assert!(not_paused.out.ends_with("was not paused\n"), "{}", not_paused.out);
        let paused = run(dir.path(), &["pause", "app.db", kind, name]);
        assert_eq!((paused.code, paused.err.as_str()), (0, warning));
        assert!(paused.out.ends_with("is paused until it is resumed\n"), "{}", paused.out);
        run(dir.path(), &["resume", "app.db", kind, name]).ok(); // it was paused
    }
    for (kind, name) in [("consumer", "mail"), ("event", "stock.counted")] {
        run(dir.path(), &["resume", "app.db", kind, name]).ok();
    }
}

#[test]
fn what_cannot_be_paused_is_refused() {
    let (dir, path) = incident();
    for (code, args, said) in [
        (2, &["pause", "app.db", "worker", "mail"][..], "[possible values: consumer, event]"),
        (2, &["pause", "app.db", "consumer"], "<NAME>"),
        (2, &["pause", "app.db", "consumer", "mail", "--for", "long"], "write a length of time"),
        (
            1,
            &["pause", "app.db", "consumer", "mail", "--for", "99ms"],
            "invalid duration: must be at least 100 ms",
        ),
        (1, &["pause", "app.db", "consumer", " "], "invalid consumer_name"),
        (1, &["pause", "app.db", "event", "invoice.*"], "invalid event_name"),
        (1, &["pause", "app.db", "event", "a", "--reason", ""], "invalid reason"),
        (1, &["resume", "app.db", "event", "invoice.*"], "invalid event_name"),
        (1, &["pauses", "missing.db"], "missing.db"),
    ] {
        let refused = run(dir.path(), args);
        assert_eq!((refused.code, refused.out.as_str()), (code, ""), "{args:?}: {}", refused.err);
        assert!(refused.err.contains(said), "{args:?}: {}", refused.err);
    }
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM postbox_pause"), 0);
}
