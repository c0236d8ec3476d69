//! What handlers do and say: effects that commit or are undone, errors and panics that are kept.

mod support;

#[path = "handlers/mixed.rs"]
mod mixed;
#[path = "handlers/shared.rs"]
mod shared;

use std::fmt;

use postbox::{
    Context, EntityRef, Event, HandlerError, HandlerResult, InboxStatus, LinkType, NewLink, OutboxStatus,
    Subscription, Tx,
};

use crate::support::{
    SECOND, TestBox, add_effect, boxes, effects, event, inbox_rows, make_effects, outbox_row, status,
};

/// Writes an effect, a link and a follow-up.
fn do_everything(tx: &Tx<'_>) -> HandlerResult {
    add_effect(tx, "effect")?;
    let end = |module: &str, id: &str| EntityRef::new(module, "T", id);
    tx.create_link(NewLink::new(end("finance", "1"), end("operations", "2"), LinkType::Cascade))?;
    tx.publish(event("follow.up"))?;
    Ok(())
}

/// How many effects, links and follow-ups there are.
fn everything_done(test: &TestBox) -> [usize; 3] {
    let bus = &test.bus;
    let links = bus.links().find_by_type(LinkType::Cascade).unwrap().len();
    [effects(bus).len(), links, usize::try_from(bus.stats().unwrap().total).unwrap() - 1]
}

type Ends = fn() -> HandlerResult;

#[test]
fn what_a_transactional_handler_did_is_undone_when_it_fails_panics_or_skips_and_kept_when_it_succeeds() {
    let fails: [(Ends, InboxStatus); 5] = [
        (|| Err(HandlerError::retry("no")), InboxStatus::Failed),
        (|| Err(HandlerError::retry_after("no", SECOND)), InboxStatus::Failed),
        (|| Err(HandlerError::dead_letter("no")), InboxStatus::Failed),
        (|| Err(HandlerError::skip("no")), InboxStatus::Skipped),
        (|| panic!("no"), InboxStatus::Failed),
    ];
    for (end, inbox_status) in fails {
        for test in &boxes() {
            let TestBox { kind, bus, .. } = test;
            make_effects(bus);
            bus.subscribe(Subscription::transactional("a", "c", move |_: &Event, tx: &Tx<'_>| {
                do_everything(tx)?;
                end()
            }))
            .unwrap();
            let id = bus.publish(event("a")).unwrap();
            bus.drain().unwrap();
            assert_eq!(everything_done(test), [0, 0, 0], "{kind}: {inbox_status}");
            let (consumer, status, ..) = inbox_rows(bus, id).remove(0);
            assert_eq!((consumer.as_str(), status), ("c", inbox_status));
        }
    }
    for test in &boxes() {
        let TestBox { bus, .. } = test;
        make_effects(bus);
        bus.subscribe(Subscription::transactional("a", "c", |_: &Event, tx: &Tx<'_>| do_everything(tx)))
            .unwrap();
        let id = bus.publish(event("a")).unwrap();
        assert_eq!(bus.drain().unwrap(), 2);
        assert_eq!(everything_done(test), [1, 1, 1]);
        assert_eq!(inbox_rows(bus, id), [("c".to_owned(), InboxStatus::Processed, 0, None)]);
        assert_eq!(
            bus.inbox().get_or_create(id, "c").unwrap().processed_at,
            outbox_row(bus, id).processed_at
        );
    }
}

#[test]
fn a_retry_of_a_transactional_handler_does_everything_once() {
    for test in &boxes() {
        let TestBox { kind, bus, clock, .. } = test;
        make_effects(bus);
        bus.subscribe(Subscription::transactional("a", "c", |event: &Event, tx: &Tx<'_>| {
            do_everything(tx)?;
            if event.attempt() < 3 { Err(HandlerError::retry("not yet")) } else { Ok(()) }
        }))
        .unwrap();
        bus.publish(event("a")).unwrap();
        for _ in 0..3 {
            bus.drain().unwrap();
            clock.advance(10 * SECOND);
        }
        assert_eq!(everything_done(test), [1, 1, 1], "{kind}");
        assert_eq!(bus.stats().unwrap().processed, 2);
    }
}

#[test]
fn a_transactional_handler_sees_what_it_and_its_neighbours_before_it_have_written() {
    for TestBox { kind, bus, .. } in &boxes() {
        make_effects(bus);
        bus.subscribe(Subscription::transactional("a", "c", |event: &Event, tx: &Tx<'_>| {
            let before: i64 = tx.query_row("SELECT count(*) FROM effect", [], |row| row.get(0))?;
            add_effect(tx, &before.to_string())?;
            assert!(!tx.inbox().is_processed(event.id(), "c")?, "marks are written when all have run");
            assert_eq!(tx.outbox().get(event.id())?.unwrap().status, OutboxStatus::Processing);
            Ok(())
        }))
        .unwrap();
        let ids = bus.publish_all([event("a"), event("a"), event("a")]).unwrap();
        assert_eq!(bus.drain().unwrap(), 3);
        assert_eq!(effects(bus), ["0", "1", "2"], "{kind}");
        assert!(ids.iter().all(|id| bus.inbox().is_processed(*id, "c").unwrap()));
    }
}

/// Delivers one event to a plain and to a transactional consumer that both end so, and asserts what is kept of it.
#[track_caller]
fn assert_kept(end: Ends, expected: &str) {
    for (transactional, test) in [true, false].into_iter().flat_map(|kind| boxes().map(|test| (kind, test))) {
        let bus = &test.bus;
        bus.subscribe(if transactional {
            Subscription::transactional("a", "c", move |_: &Event, _: &Tx<'_>| end())
        } else {
            Subscription::new("a", "c", move |_: &Event, _: &Context<'_>| end())
        })
        .unwrap();
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        let kept = inbox_rows(bus, id).remove(0).3.expect("an error in the inbox");
        assert_eq!(kept, expected, "{} transactional: {transactional}", test.kind);
        if status(bus, id) != OutboxStatus::Processed {
            assert_eq!(outbox_row(bus, id).last_error.as_deref(), Some(expected), "{}", test.kind);
        }
    }
}

#[test]
fn the_message_of_a_panic_is_kept() {
    assert_kept(|| panic!("a &str"), "panicked: a &str");
    assert_kept(|| panic!("a String of {}", 3), "panicked: a String of 3");
    assert_kept(|| std::panic::panic_any(7), "panicked with something that is no text");
    assert_kept(
        || {
            "x".parse::<u8>().expect("a number");
            Ok(())
        },
        "panicked: a number: ParseIntError { kind: InvalidDigit }",
    );
}

#[test]
fn a_panic_that_drops_badly_is_a_failed_attempt_like_any_other() {
    struct Bad;
    impl Drop for Bad {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "while the panic's payload is dropped");
        }
    }
    assert_kept(|| std::panic::panic_any(Bad), "panicked with something that is no text");
}

#[test]
fn a_panic_is_tried_again_and_the_box_goes_on() {
    for TestBox { kind, bus, clock, .. } in &boxes() {
        bus.subscribe(Subscription::new("plain", "c", |event: &Event, _: &Context<'_>| {
            assert!(event.attempt() > 1, "the first attempt");
            Ok(())
        }))
        .unwrap();
        bus.subscribe(Subscription::transactional("tx", "c", |event: &Event, _: &Tx<'_>| {
            assert!(event.attempt() > 1, "the first attempt");
            Ok(())
        }))
        .unwrap();
        let ids = bus.publish_all([event("plain"), event("tx"), event("nobody")]).unwrap();
        assert_eq!(bus.drain().unwrap(), 1, "{kind}");
        assert_eq!(outbox_row(bus, ids[1]).last_error.as_deref(), Some("panicked: the first attempt"));
        clock.advance(SECOND);
        assert_eq!(bus.drain().unwrap(), 2, "{kind}");
    }
}

#[derive(Debug)]
struct Outer(std::num::ParseIntError);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the total is no number")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[test]
fn an_error_with_a_question_mark_is_a_retry_with_its_text_and_that_of_its_source() {
    assert_kept(
        || {
            "x".parse::<u8>().map_err(Outer)?;
            Ok(())
        },
        "the total is no number: invalid digit found in string",
    );
    assert_kept(
        || {
            "x".parse::<u8>()?;
            Ok(())
        },
        "invalid digit found in string",
    );
}

#[test]
fn errors_are_kept_up_to_1023_characters_and_cut_between_characters() {
    for end in [
        (|| Err(HandlerError::retry("ü".repeat(1_024)))) as Ends,
        || Err(HandlerError::dead_letter("ü".repeat(5_000))),
        || Err(HandlerError::skip("ü".repeat(1_023))),
    ] {
        assert_kept(end, &"ü".repeat(1_023));
    }
    assert_kept(|| Err(HandlerError::retry("\u{1F600}".repeat(2_000))), &"\u{1F600}".repeat(1_023));
    assert_kept(|| panic!("{}", "é".repeat(1_015)), &format!("panicked: {}", "é".repeat(1_013)));
    assert_kept(|| Err(HandlerError::retry("x".repeat(1_023) + "y")), &"x".repeat(1_023));
    assert_kept(|| Err(HandlerError::retry("before\0after")), "before\u{fffd}after");
    assert_kept(|| Err(HandlerError::retry("")), "");
}

#[test]
fn the_errors_of_several_consumers_stand_together_and_are_cut_together() {
    for TestBox { bus, .. } in &boxes() {
        for name in ["one", "two"] {
            let long = |_: &Event, _: &Context<'_>| Err(HandlerError::retry("ö".repeat(600)));
            bus.subscribe(Subscription::new("a", name, long)).unwrap();
        }
        let id = bus.publish(event("a")).unwrap();
        bus.drain().unwrap();
        let all = format!("one: {0}; two: {0}", "ö".repeat(600));
        let cut: String = all.chars().take(1_023).collect();
        assert_eq!(outbox_row(bus, id).last_error, Some(cut));
        assert_eq!(inbox_rows(bus, id)[1].3, Some("ö".repeat(600)));
    }
}
