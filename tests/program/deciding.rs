//! Decisions about events: `retry`, `discard`, `replay`, `catch-up`.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use postbox::{Context, Event, OutboxStatus, Postbox, Subscription};

use crate::incident::{id, incident};
use crate::support::{assert_bytes, integer, raw};
use crate::{clock, run};

/// What the application's consumer of this name is given from now on.
fn received(path: &Path, consumer: &str) -> Vec<String> {
    let bus = Postbox::builder().clock(clock()).open(path).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    bus.subscribe(Subscription::new("*", consumer, move |event: &Event, _: &Context<'_>| {
        keep.lock().unwrap().push(event.name().to_owned());
        Ok(())
    }))
    .unwrap();
    bus.drain().unwrap();
    bus.close().unwrap();
    Arc::try_unwrap(seen).unwrap().into_inner().unwrap()
}

fn statuses(path: &Path) -> Vec<OutboxStatus> {
    let bus = Postbox::open_read_only(path).unwrap();
    (1..=6).map(|n| bus.outbox().get(id(n).parse().unwrap()).unwrap().unwrap().status).collect()
}

const DEAD: OutboxStatus = OutboxStatus::DeadLetter;
const PENDING: OutboxStatus = OutboxStatus::Pending;
const PROCESSED: OutboxStatus = OutboxStatus::Processed;

#[test]
fn a_dry_run_counts_and_changes_nothing() {
    let (dir, path) = incident();
    let before = fs::read(&path).unwrap();
    let mail = id(4);
    for (args, text, count) in [
        (&["retry", "app.db", &mail][..], "1 dead letter gets new attempts", 1),
        (&["retry", "app.db", "--all"], "2 dead letters get new attempts", 2),
        (&["retry", "app.db", "--error", "550"], "1 dead letter gets new attempts", 1),
        (&["retry", "app.db", "--error", "551"], "0 dead letters get new attempts", 0),
        (&["discard", "app.db", "--all", "--reason", "old"], "2 dead letters are discarded", 2),
        (&["replay", "app.db", "--consumer", "ledger"], "3 processed events are delivered again", 3),
        (
            &["replay", "app.db", "--consumer", "new", "--module", "sales"],
            "1 processed event is delivered again",
            1,
        ),
        (&["catch-up", "app.db", "--consumer", "ledger"], "1 processed event is delivered to it", 1),
        (&["catch-up", "app.db", "--consumer", "new"], "3 processed events are delivered to it", 3),
    ] {
        let args = [args, &["--dry-run"]].concat();
        assert_eq!(run(dir.path(), &args).ok(), format!("dry run: {text}\n"));
        let json = run(dir.path(), &[&args[..], &["--json"]].concat()).json();
        assert_eq!((&json["events"], &json["dry_run"]), (&count.into(), &true.into()), "{args:?}");
    }
    assert_bytes(&path, &before, "after dry runs");
}

#[test]
fn dead_letters_are_retried_by_id_all_or_none() {
    let (dir, path) = incident();
    let (mail, queued, order, missing) = (id(4), id(5), id(1), id(99));
    for (wrong, said) in [
        (&order, "is processed, not a dead letter\n  next: `postbox show app.db 0198c0de"),
        (&missing, "no event with id 0198c0de-0000-7000-8000-000000000099\n  next: `postbox list app.db`"),
    ] {
        for dry in [&["--yes"][..], &["--dry-run"]] {
            let refused = run(dir.path(), &[&["retry", "app.db", &mail, wrong], dry].concat());
            assert_eq!((refused.code, refused.out.as_str()), (1, ""));
            assert!(refused.err.contains(said), "{}", refused.err);
        }
    }
    assert_eq!(statuses(&path)[3..5], [DEAD, DEAD], "none");
    let asked = run(dir.path(), &["retry", "app.db", &mail, &queued]);
    assert_eq!((asked.code, asked.out.as_str()), (4, ""));
    assert!(asked.err.contains("2 dead letters get new attempts."), "{}", asked.err);
    assert_eq!(statuses(&path)[3..5], [DEAD, DEAD], "it was not confirmed");
    let out = run(dir.path(), &["retry", "app.db", &mail, &queued, &mail, "--yes"]).ok();
    assert_eq!(out, "2 dead letters get new attempts\n");
    assert_eq!(statuses(&path)[3..5], [PENDING, PENDING]);
    assert_eq!(received(&path, "mail"), ["mail.sent", "mail.queued", "stock.counted"]);
}

#[test]
fn many_are_decided_about_once_it_is_confirmed() {
    let (dir, path) = incident();
    for (args, question) in [
        (&["retry", "app.db", "--all"][..], "2 dead letters get new attempts."),
        (&["discard", "app.db", "--module", "office", "--reason", "x"], "2 dead letters are discarded."),
        (&["replay", "app.db", "--consumer", "ledger"], "3 processed events are delivered again."),
        (
            &["catch-up", "app.db", "--consumer", "new"],
            "3 processed events are delivered to it. No consumer of the name new has had to do with this file: they wait until one \
             subscribes.",
        ),
        // Also where it is one.
        (
            &["replay", "app.db", "--to", "legder", "--module", "sales"],
            "1 processed event is delivered again. No consumer of the name legder has had to do with this file: they wait until \
             one subscribes.",
        ),
    ] {
        let refused = run(dir.path(), args);
        assert_eq!((refused.code, refused.out.as_str()), (4, ""), "{args:?}");
        assert_eq!(refused.err, format!("postbox: not confirmed: {question}\n  next: give --yes\n"));
    }
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM postbox_history"), 2, "the failures alone");
    let out = run(dir.path(), &["retry", "app.db", "--error", "timed out"]).ok();
    assert_eq!(out, "1 dead letter gets new attempts\n", "one needs no question");
    assert_eq!(statuses(&path)[3..5], [DEAD, PENDING]);
    let none = run(dir.path(), &["retry", "app.db", "--error", "timed out", "--json"]).json();
    assert_eq!((&none["events"], &none["dry_run"]), (&0.into(), &false.into()));
}

#[test]
fn discarded_dead_letters_keep_the_reason() {
    let (dir, path) = incident();
    let out = run(dir.path(), &["discard", "app.db", "--all", "--reason", "ticket 4711", "--yes"]).ok();
    assert_eq!(out, "2 dead letters are discarded\n");
    assert_eq!(statuses(&path)[3..5], [PROCESSED, PROCESSED]);
    let story = run(dir.path(), &["show", "app.db", &id(4)]).ok();
    assert!(story.contains("discarded  -         -     ticket 4711"), "{story}");
    run(dir.path(), &["verify", "app.db"]).ok();
}

#[test]
fn the_past_is_delivered_to_one_consumer_alone() {
    let (dir, path) = incident();
    run(dir.path(), &["replay", "app.db", "--consumer", "ledger", "--name", "invoice.*"]).ok();
    assert_eq!(received(&path, "ledger"), ["invoice.created", "stock.counted"]);
    let out = run(dir.path(), &["catch-up", "app.db", "--consumer", "search", "--yes"]).ok();
    assert_eq!(out, "4 processed events are delivered to it\n");
    let again = run(dir.path(), &["catch-up", "app.db", "--consumer", "search", "--yes", "--json"]).json();
    assert_eq!(again["events"], 0);
    let expected = ["order.placed", "invoice.created", "payment.due", "stock.counted"];
    assert_eq!(received(&path, "search"), expected);
    assert_eq!(received(&path, "search"), Vec::<String>::new());
}

/// There was no way back but to subscribe a consumer of the wrong name.
#[test]
fn a_replay_to_a_wrong_name_is_taken_back() {
    let (dir, path) = incident();
    let before = statuses(&path);
    let replay = |args: &[&str]| run(dir.path(), &[&["replay", "app.db"], args].concat());
    replay(&["--to", "legder", "--yes"]).ok();
    assert_eq!(
        replay(&["--to", "ledger", "--dry-run"]).ok(),
        "dry run: 3 processed events are delivered again\n"
    );
    assert_eq!(
        replay(&["--to", "legder", "--dry-run"]).ok(),
        "dry run: 0 processed events are delivered again\n"
    );
    let catch_up = run(dir.path(), &["catch-up", "app.db", "--to", "legder", "--dry-run"]).ok();
    assert_eq!(catch_up, "dry run: 0 processed events are delivered to it\n");
    assert_ne!(statuses(&path), before);
    let text = "events are not replayed to it any more";
    assert_eq!(replay(&["--cancel", "--to", "legder", "--dry-run"]).ok(), format!("dry run: 3 {text}\n"));
    let refused = replay(&["--cancel", "--to", "legder"]);
    assert_eq!(
        (refused.code, refused.err),
        (4, format!("postbox: not confirmed: 3 {text}.\n  next: give --yes\n"))
    );
    assert_eq!(replay(&["--cancel", "--to", "other", "--yes"]).ok(), format!("0 {text}\n"));
    let json = replay(&["--cancel", "--consumer", "legder", "--yes", "--json"]).json();
    assert_eq!((&json["events"], &json["dry_run"]), (&3.into(), &false.into()));
    assert_eq!(statuses(&path), before);
    run(dir.path(), &["verify", "app.db"]).ok();
}

#[test]
fn what_is_wrong_changes_nothing() {
    let (dir, path) = incident();
    let mail = id(4);
    let long = "x".repeat(1_001);
    for (code, args, said) in [
        (2, &["retry", "app.db"][..], "say which: the events' ids, a filter, or --all"),
        (2, &["retry", "app.db", &mail, "--all"], "ids, or a filter, and not both"),
        (2, &["discard", "app.db", &mail, "--module", "m", "--reason", "r"], "and not both"),
        (2, &["discard", "app.db", &mail], "--reason"),
        (2, &["retry", "app.db", "42"], "invalid event_id"),
        (2, &["replay", "app.db"], "--consumer"),
        (1, &["discard", "app.db", &mail, "--reason", " "], "invalid reason: must not be empty"),
        (1, &["discard", "app.db", "--all", "--yes", "--reason", &long], "invalid reason: has 1001"),
        (1, &["retry", "app.db", "--name", "*a"], "invalid event_name"),
        (1, &["replay", "app.db", "--consumer", "", "--yes"], "invalid consumer_name"),
        (1, &["catch-up", "app.db", "--consumer", " ", "--yes"], "invalid consumer"),
        (1, &["retry", "missing.db", "--all"], "missing.db"),
    ] {
        let refused = run(dir.path(), args);
        assert_eq!((refused.code, refused.out.as_str()), (code, ""), "{args:?}: {}", refused.err);
        assert!(refused.err.contains(said), "{args:?}: {}", refused.err);
    }
    assert_eq!(integer(&raw(&path), "SELECT count(*) FROM postbox_history"), 2);
}
