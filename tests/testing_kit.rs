//! `postbox::testing`: what applications test themselves with. Needs the feature `testing`.

#[path = "testing_kit/alone.rs"]
mod alone;
#[path = "testing_kit/assertions.rs"]
mod assertions;
#[path = "testing_kit/crashes.rs"]
mod crashes;
#[path = "testing_kit/drains.rs"]
mod drains;
#[path = "testing_kit/patterns.rs"]
mod patterns;
#[path = "testing_kit/recorder.rs"]
mod recorder;
#[path = "testing_kit/steps.rs"]
mod steps;
mod support;

use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use postbox::testing::{
    Conversation, CrashPoint, Recorder, TestBox, assert_dead_lettered, assert_processed, assert_published,
    event, fail_attempt, panic_with, refute_published, run_step, wait_until_settled,
};

/// What `f` panics with: it has to.
#[track_caller]
fn panics<T>(f: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).map(drop).expect_err("it was to panic");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().expect("a text")).to_owned(),
    }
}

/// The line of this file that a panic of `f` points at.
fn line_of_panic<T>(f: impl FnOnce() -> T) -> Option<u32> {
    // One at a time: there is one hook.
    static HOOK: Mutex<()> = Mutex::new(());
    let _one = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = Arc::new(Mutex::new(None));
    let (noted, this) = (Arc::clone(&seen), thread::current().id());
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().id() == this {
            let location = info.location().filter(|location| location.file() == file!());
            *noted.lock().unwrap() = location.map(panic::Location::line);
        }
    }));
    let panicked = catch_unwind(AssertUnwindSafe(f)).is_err();
    panic::set_hook(before);
    assert!(panicked, "it was to panic");
    seen.lock().unwrap().take()
}

#[test]
#[rustfmt::skip] // each on one line
fn a_panic_points_at_the_line_of_the_test() {
    let mut postbox = TestBox::new();
    postbox.update_settings(|settings| settings.enabled = false).unwrap();
    let id = postbox.publish(support::event("a")).unwrap();
    let saga = postbox::Saga::<u32>::new("s").starts_on("start", |_, _, _| Ok(()));
    let (start, step) = (event(support::event("start")), event(support::event("step")));
    let never = Conversation::running(&1).timeout("t", Duration::ZERO, support::event("never"));
    let skipped = run_step(&postbox, &start, &saga, Conversation::completed(&1));
    let lines = [
        (line_of_panic(|| postbox.drain_all()), line!()),
        (line_of_panic(|| assert_published!(postbox, "b")), line!()),
        (line_of_panic(|| assert_published!(postbox, "b", { "c": 1 }, count = 1)), line!()),
        (line_of_panic(|| refute_published!(postbox, "a")), line!()),
        (line_of_panic(|| assert_processed!(postbox, id)), line!()),
        (line_of_panic(|| assert_dead_lettered!(postbox, id, count = 1)), line!()),
        (line_of_panic(|| wait_until_settled(&postbox, id, Duration::ZERO)), line!()),
        (line_of_panic(|| Recorder::new("c").wait_for(1, Duration::ZERO)), line!()),
        (line_of_panic(|| drop(Recorder::new("c").fail_attempt(0, panic_with("never")).clone())), line!()),
        (line_of_panic(|| drop(Recorder::new("c").fail_call(0, panic_with("never")).clone())), line!()),
        (line_of_panic(|| drop(fail_attempt(0, panic_with("never"), ()))), line!()),
        (line_of_panic(|| event(postbox::NewEvent::new("", "", "", ""))), line!()),
        (line_of_panic(|| TestBox::builder().options(|builder| builder.handler_threads(0)).open()), line!()),
        (line_of_panic(|| run_step(&postbox, &step, &saga, Conversation::not_begun())), line!()),
        (line_of_panic(|| run_step(&postbox, &start, &saga, Conversation::in_the_box().fires("t"))), line!()),
        (line_of_panic(|| run_step(&postbox, &start, &saga, never)), line!()),
        (line_of_panic(|| Conversation::running(&std::collections::HashMap::from([((1, 2), 3)]))), line!()),
        (line_of_panic(|| skipped.state::<String>()), line!()),
        (line_of_panic(|| postbox.crash_at(CrashPoint::AfterSettle, |_| ())), line!()),
    ];
    for (seen, line) in lines {
        assert_eq!(seen, Some(line));
    }
}

#[test]
fn the_links_of_the_kits_page_lead_somewhere_in_both_places_where_it_is_read() {
    // They were rustdoc's alone, and led nowhere on the repository's pages.
    let definitions = |text: &'static str| -> Vec<(&str, &str)> {
        let lines = text.lines().filter(|line| line.starts_with("[`"));
        lines.filter_map(|line| line.split_once("]: ")).collect()
    };
    let page = definitions(include_str!("../src/testing/your_application.md"));
    let rustdoc = definitions(include_str!("../src/testing/links.md"));
    let labels = |links: &[(&'static str, &str)]| links.iter().map(|(label, _)| *label).collect::<Vec<_>>();
    assert!(!page.is_empty());
    assert_eq!(labels(&page), labels(&rustdoc));
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testing");
    for (label, file) in page {
        assert!(folder.join(file).is_file(), "{label}] leads to {file}");
    }
}
